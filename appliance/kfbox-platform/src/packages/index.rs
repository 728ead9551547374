//! What projects have which files: upstream's pages, remembered on disk, and the folders of local packages.

use super::{
    Config, Packages,
    fetch::{FetchError, Page},
    page::{self, File},
    store::write_whole,
};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};
use url::Url;

/// After the index could not be reached, old pages are used at once for this long: in an air gap, `pip` must not wait
/// for a timeout with every project.
const UNREACHABLE_FOR: Duration = Duration::from_secs(30);
/// Pages kept in memory; those of large projects are a few MiB each.
const IN_MEMORY: usize = 64;

pub struct Index {
    folder: PathBuf,
    pages: Mutex<HashMap<String, (Instant, Arc<Project>)>>,
    /// One request for a project at a time; the others wait for its page.
    asking: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    unreachable: Mutex<Option<Instant>>,
    local: Local,
}

/// A project's page as it was read.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Project {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    etag: Option<String>,
    pub files: Vec<File>,
}

#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    #[error("no such project")]
    Absent,
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error("the index cache: {0}")]
    Disk(#[from] io::Error),
}

impl Index {
    pub fn open(config: &Config) -> io::Result<Self> {
        let folder = config.cache_dir.join("index");
        fs::create_dir_all(&folder)?;
        Ok(Self {
            folder,
            pages: Mutex::default(),
            asking: Mutex::default(),
            unreachable: Mutex::new(None),
            local: Local { folders: config.find_links.clone(), hashes: Mutex::default() },
        })
    }

    fn in_memory(&self, project: &str, fresh_for: Duration) -> Option<Arc<Project>> {
        self.pages.lock().get(project).filter(|(since, _)| since.elapsed() < fresh_for).map(|(_, p)| p.clone())
    }

    fn remember(&self, project: &str, page: Arc<Project>) {
        let mut pages = self.pages.lock();
        if pages.len() >= IN_MEMORY && !pages.contains_key(project) {
            let oldest = pages.iter().min_by_key(|(_, (since, _))| *since).map(|(name, _)| name.clone());
            if let Some(oldest) = oldest {
                pages.remove(&oldest);
            }
        }
        pages.insert(project.to_owned(), (Instant::now(), page));
    }

    fn on_disk(&self, project: &str) -> Option<Project> {
        let bytes = fs::read(self.page_path(project)).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    fn page_path(&self, project: &str) -> PathBuf {
        self.folder.join(format!("{project}.json"))
    }

    /// Projects that can be installed without a network.
    pub fn known(&self) -> io::Result<Vec<String>> {
        let mut names: Vec<String> = fs::read_dir(&self.folder)?
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.strip_suffix(".json").map(str::to_owned))
            .collect();
        names.extend(self.local.projects());
        names.sort_unstable();
        names.dedup();
        Ok(names)
    }
}

impl Packages {
    /// The files of a project, local ones first. `project` must be normalised.
    pub async fn project(&self, project: &str) -> Result<Vec<File>, IndexError> {
        let this = self.clone();
        let name = project.to_owned();
        let mut files =
            tokio::task::spawn_blocking(move || this.inner.index.local.files(&name)).await.map_err(io::Error::other)?;
        match self.upstream(project).await {
            Ok(page) => {
                let known: Vec<String> = files.iter().map(|f| f.name.clone()).collect();
                files.extend(page.files.iter().filter(|f| !known.contains(&f.name)).cloned());
            }
            Err(_) if !files.is_empty() => {}
            Err(error) => return Err(error),
        }
        Ok(files)
    }

    async fn upstream(&self, project: &str) -> Result<Arc<Project>, IndexError> {
        let index = &self.inner.index;
        let fresh_for = self.inner.config.page_fresh_for;
        if let Some(page) = index.in_memory(project, fresh_for) {
            return Ok(page);
        }
        let turn = index.asking.lock().entry(project.to_owned()).or_default().clone();
        let page = {
            let _turn = turn.lock().await;
            match index.in_memory(project, fresh_for) {
                Some(page) => Ok(page),
                None => self.ask(project).await,
            }
        };
        drop(turn);
        let mut asking = index.asking.lock();
        if asking.get(project).is_some_and(|turn| Arc::strong_count(turn) == 1) {
            asking.remove(project);
        }
        page
    }

    async fn ask(&self, project: &str) -> Result<Arc<Project>, IndexError> {
        let index = &self.inner.index;
        let (this, name) = (self.clone(), project.to_owned());
        let old =
            tokio::task::spawn_blocking(move || this.inner.index.on_disk(&name)).await.map_err(io::Error::other)?;
        let down = index.unreachable.lock().is_some_and(|since| since.elapsed() < UNREACHABLE_FOR);
        if down && let Some(old) = old {
            return Ok(Arc::new(old));
        }
        let url = project_url(&self.inner.config.upstream_index_url, project);
        let etag = old.as_ref().and_then(|o| o.etag.clone());
        match self.inner.fetcher.page(&url, etag.as_deref()).await {
            Ok(Page::Unchanged) => {
                *index.unreachable.lock() = None;
                let page = Arc::new(old.unwrap_or_default());
                index.remember(project, page.clone());
                Ok(page)
            }
            Ok(Page::Fresh { body, content_type, etag, url }) => {
                *index.unreachable.lock() = None;
                let (this, name) = (self.clone(), project.to_owned());
                let page = tokio::task::spawn_blocking(move || {
                    let files = page::read(&content_type, &body, &url).map_err(|e| FetchError::Page {
                        host: url.host_str().unwrap_or("?").to_owned(),
                        reason: e.to_string(),
                    })?;
                    let page = Project { etag, files };
                    let bytes = serde_json::to_vec(&page).map_err(io::Error::from)?;
                    write_whole(&this.inner.index.page_path(&name), &bytes)?;
                    Ok::<_, IndexError>(Arc::new(page))
                })
                .await
                .map_err(io::Error::other)??;
                index.remember(project, page.clone());
                Ok(page)
            }
            Err(error) if error.is_absent() => Err(IndexError::Absent),
            Err(error) => {
                if matches!(error, FetchError::Unreachable { .. } | FetchError::Timeout { .. }) {
                    *index.unreachable.lock() = Some(Instant::now());
                }
                match old {
                    Some(old) => {
                        tracing::info!(%error, project, "the index did not answer: its last page is used");
                        Ok(Arc::new(old))
                    }
                    None => Err(error.into()),
                }
            }
        }
    }

    /// The entry behind one of our file addresses. After a restart the page is found again by the file's name.
    pub async fn find(&self, sha256: &str, name: &str) -> Result<File, IndexError> {
        let fits = |f: &&File| f.sha256 == sha256 && f.name == name;
        let projects = page::projects_of(name);
        for project in &projects {
            let kept = self.inner.index.in_memory(project, Duration::MAX);
            if let Some(file) = kept.as_ref().and_then(|p| p.files.iter().find(fits)) {
                return Ok(file.clone());
            }
        }
        for project in &projects {
            if let Ok(files) = self.project(project).await
                && let Some(file) = files.iter().find(fits)
            {
                return Ok(file.clone());
            }
        }
        Err(IndexError::Absent)
    }
}

fn project_url(index: &Url, project: &str) -> Url {
    let mut url = index.clone();
    if let Ok(mut segments) = url.path_segments_mut() {
        segments.pop_if_empty().push(project).push("");
    }
    url
}

/// Folders with packages. Hashes are computed once for each version of a file.
struct Local {
    folders: Vec<PathBuf>,
    hashes: Mutex<HashMap<PathBuf, (SystemTime, u64, String)>>,
}

impl Local {
    fn entries(&self) -> impl Iterator<Item = (PathBuf, String)> + '_ {
        self.folders.iter().filter_map(|f| fs::read_dir(f).ok()).flatten().filter_map(|entry| {
            let entry = entry.ok()?;
            let name = entry.file_name().to_str()?.to_owned();
            let kind = [".whl", ".tar.gz", ".zip", ".tar.bz2"].iter().any(|end| name.ends_with(end));
            (kind && page::is_file_name(&name)).then(|| (entry.path(), name))
        })
    }

    fn projects(&self) -> Vec<String> {
        self.entries().filter_map(|(_, name)| project_of(&name)).collect()
    }

    fn files(&self, project: &str) -> Vec<File> {
        self.entries()
            .filter(|(_, name)| project_of(name).as_deref() == Some(project))
            .filter_map(|(path, name)| {
                let sha256 = self.sha256(&path).ok()?;
                let url = Url::from_file_path(&path).ok()?;
                Some(File {
                    name,
                    url,
                    sha256,
                    requires_python: None,
                    yanked: None,
                    metadata: None,
                    size: None,
                    upload_time: None,
                })
            })
            .collect()
    }

    fn sha256(&self, path: &Path) -> io::Result<String> {
        let metadata = fs::metadata(path)?;
        if !metadata.is_file() {
            return Err(io::Error::other("not a file"));
        }
        let key = (metadata.modified()?, metadata.len());
        if let Some((when, length, hash)) = self.hashes.lock().get(path)
            && (*when, *length) == key
        {
            return Ok(hash.clone());
        }
        let mut hasher = Sha256::new();
        let mut file = fs::File::open(path)?;
        let mut buffer = vec![0; 1 << 16];
        loop {
            let read = io::Read::read(&mut file, &mut buffer)?;
            if read == 0 {
                break;
            }
            hasher.update(&buffer[..read]);
        }
        let hash = hex::encode(hasher.finalize());
        self.hashes.lock().insert(path.to_owned(), (key.0, key.1, hash.clone()));
        Ok(hash)
    }
}

/// The project of a local file: a wheel's name ends at the first hyphen, a source archive's before its version.
fn project_of(name: &str) -> Option<String> {
    if name.ends_with(".whl") {
        return page::normalise(name.split('-').next()?);
    }
    let at = name
        .match_indices('-')
        .map(|(at, _)| at)
        .find(|at| name[at + 1..].starts_with(|c: char| c.is_ascii_digit()))?;
    page::normalise(&name[..at])
}

//! Artifacts between the daemon and the container's file system. Invariant: a fetched file never leaves the artifact's
//! own path; an upload follows links to files, never to folders.

use crate::{
    Failure, Input, InputFile, Output,
    http::{Client, HttpError, encode},
    say,
};
use std::{
    fs::{self, File},
    io::{BufWriter, Read, Write},
    path::{Component, Path, PathBuf},
};

/// Folders in folders; also ends a walk that a mount loop would make endless.
const MAX_DEPTH: usize = 64;

fn http(what: String) -> impl FnOnce(HttpError) -> Failure {
    move |error| match error {
        HttpError::Gone => Failure::Obsolete,
        HttpError::Local(source) => Failure::File { what, source },
        other => Failure::Unfit(format!("{what}: {other}")),
    }
}

/// `kfp`'s mapping from an artifact's address to its place in the container.
pub fn local_path(uri: &str) -> Option<String> {
    if let Some(rest) = uri.strip_prefix("oci://") {
        return Some(format!("/oci/{}/models", rest.replace('/', "_")));
    }
    [("gs://", "/gcs/"), ("minio://", "/minio/"), ("s3://", "/s3/")]
        .iter()
        .find_map(|(scheme, mount)| uri.strip_prefix(scheme).map(|rest| format!("{mount}{rest}")))
}

fn is_below(path: &str) -> bool {
    Path::new(path).components().all(|c| matches!(c, Component::Normal(_)))
}

/// Fetches one input artifact. Some are fetched only if they can be: why one is not is returned, and said.
pub fn fetch(client: &Client, index: usize, input: &Input) -> Result<Option<String>, Failure> {
    let unfetched = |why: String| {
        let told = format!("input {} is not fetched, and the step gets its address only: {why}", input.name);
        say!("{told}");
        Ok(Some(told))
    };
    if input.uri.starts_with("oci://") {
        // A volume of the pod's.
        return match input.path.as_deref().map(Path::new) {
            Some(path) if !path.exists() => {
                let told = format!("input {} is an image without a folder /models: {}", input.name, input.uri);
                say!("{told}");
                Ok(Some(told))
            }
            _ => Ok(None),
        };
    }
    let Some(files) = &input.files else {
        let why = input.problem.as_deref().unwrap_or("the daemon does not fetch it");
        if input.fatal {
            return Err(Failure::Unfit(format!("input {}: {why}", input.name)));
        }
        return unfetched(why.to_owned());
    };
    if input.uri.starts_with("http://") || input.uri.starts_with("https://") {
        // The SDK takes the address itself for the path. Where that cannot be a file, the step has its address.
        if let Err(error) = fetch_files(client, index, input, files) {
            if input.fatal {
                return Err(error);
            }
            return unfetched(error.to_string());
        }
        return Ok(None);
    }
    fetch_files(client, index, input, files).map(|()| None)
}

fn fetch_files(client: &Client, index: usize, input: &Input, files: &[InputFile]) -> Result<(), Failure> {
    let Some(target) = &input.path else { return Ok(()) };
    let target = Path::new(target);
    // The daemon does not say such a path; what it was told may.
    if target.components().any(|c| c == Component::ParentDir) {
        return Err(Failure::Unfit(format!(
            "input {} would lie at {}, which is refused",
            input.name,
            target.display()
        )));
    }
    if files.is_empty() {
        // The step that should have made it wrote nothing, which is allowed; reading it then fails with its name.
        say!("input {} at {} is empty: the step before wrote nothing there", input.name, input.uri);
        if let Some(folder) = target.parent() {
            fs::create_dir_all(folder)
                .map_err(Failure::file(format!("the folder {} cannot be created", folder.display())))?;
        }
        return Ok(());
    }
    for file in files {
        let path = if file.path.is_empty() {
            target.to_owned()
        } else if is_below(&file.path) {
            target.join(&file.path)
        } else {
            return Err(Failure::Unfit(format!(
                "input {} holds a file with the name {:?}, which is refused",
                input.name, file.path
            )));
        };
        let what = format!("input {} ({})", input.name, path.display());
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)
                .map_err(Failure::file(format!("the folder {} cannot be created", folder.display())))?;
        }
        let create = || -> std::io::Result<Box<dyn Write>> {
            Ok(Box::new(BufWriter::with_capacity(256 * 1024, File::create(&path)?)))
        };
        client
            .get_into(&format!("/inputs/{index}?path={}", encode(&file.path)), &create)
            .map_err(http(what.clone()))?;
        let written = fs::metadata(&path).map_err(Failure::file(what.clone()))?.len();
        if written != file.size {
            return Err(Failure::Unfit(format!("{what}: {written} bytes were fetched, and it has {}", file.size)));
        }
    }
    Ok(())
}

/// Uploads one output artifact, a file or a folder. A step may leave it out, as upstream allows.
pub fn store(client: &Client, output: &Output, uri: &str, custom: Option<&str>, root: &str) -> Result<(), Failure> {
    let moved = uri != output.uri;
    let path = match custom {
        Some(path) => path.to_owned(),
        None if moved => match local_path(uri) {
            Some(path) => path,
            None => {
                say!("output {} lies at {uri}, outside this box's store; only its address is recorded", output.name);
                return Ok(());
            }
        },
        None => output.path.clone(),
    };
    if moved && !uri.starts_with(&format!("{root}/")) {
        say!("output {} lies at {uri}, outside the step's own place; only its address is recorded", output.name);
        return Ok(());
    }
    let path = PathBuf::from(path);
    let found = match fs::metadata(&path) {
        Ok(found) => found,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            say!("output {} was not written: there is no {}", output.name, path.display());
            return Ok(());
        }
        Err(error) => return Err(Failure::file(format!("output {} ({})", output.name, path.display()))(error)),
    };
    if found.is_file() {
        return send(client, output, uri, &path, "");
    }
    if !found.is_dir() {
        return Err(Failure::Unfit(format!(
            "output {} ({}) is neither a file nor a folder",
            output.name,
            path.display()
        )));
    }
    let mut folders = vec![(path, String::new(), 0)];
    while let Some((folder, below, depth)) = folders.pop() {
        if depth > MAX_DEPTH {
            return Err(Failure::Unfit(format!("output {} has folders more than {MAX_DEPTH} deep", output.name)));
        }
        let what = format!("output {} ({})", output.name, folder.display());
        for entry in fs::read_dir(&folder).map_err(Failure::file(what.clone()))? {
            let entry = entry.map_err(Failure::file(what.clone()))?;
            let Some(name) = entry.file_name().to_str().map(str::to_owned) else {
                return Err(Failure::Unfit(format!("{what}: the name {:?} is not UTF-8", entry.file_name())));
            };
            let relative = if below.is_empty() { name } else { format!("{below}/{name}") };
            let kind = entry.file_type().map_err(Failure::file(what.clone()))?;
            let target = if kind.is_symlink() { fs::metadata(entry.path()).ok() } else { None };
            if kind.is_dir() {
                folders.push((entry.path(), relative, depth + 1));
            } else if kind.is_file() || target.is_some_and(|t| t.is_file()) {
                send(client, output, uri, &entry.path(), &relative)?;
            } else {
                say!("output {}: {relative} is no plain file and is left out", output.name);
            }
        }
    }
    Ok(())
}

fn send(client: &Client, output: &Output, uri: &str, path: &Path, relative: &str) -> Result<(), Failure> {
    let what = format!("output {} ({})", output.name, path.display());
    let size = fs::metadata(path).map_err(Failure::file(what.clone()))?.len();
    let open = || -> std::io::Result<Box<dyn Read>> { Ok(Box::new(File::open(path)?)) };
    let address = format!("/outputs/{}?path={}&uri={}", encode(&output.name), encode(relative), encode(uri));
    client.put(&address, size, &open).map_err(http(what))
}

//! Blobs on their way in: whole, or in pieces that may be taken up again where they broke.
//!
//! An upload is the daemon's alone: after a restart a client is told to begin anew. It belongs to the repository that it was
//! begun for, and to who began it.

use super::{
    Call,
    access::Action,
    answer::{self, Fault},
    route,
};
use crate::images::{Owner, StoreError, Upload, is_digest};
use axum::{body::Body, response::Response};
use bytes::Bytes;
use futures::StreamExt;
use http::{StatusCode, header};
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

/// Uploads at once; each has an open file.
const MAX_OPEN: usize = 256;
const MAX_OPEN_OF_ONE: usize = 64;
/// An upload of which nothing is heard is given up.
const IDLE: Duration = Duration::from_secs(3600);
/// A client that sends nothing for so long has gone; what it sent stays.
const SILENCE: Duration = Duration::from_secs(60);
/// Pieces between the network and the disk.
const IN_FLIGHT: usize = 16;

#[derive(Default)]
pub struct Uploads {
    open: Mutex<HashMap<String, Open>>,
}

#[derive(Clone)]
struct Open {
    owner: Owner,
    repository: String,
    user: String,
    touched: Instant,
    /// Empty once it was finished or failed for good.
    upload: Arc<tokio::sync::Mutex<Option<Upload>>>,
}

impl Uploads {
    fn insert(&self, open: Open) -> Result<String, Fault> {
        let mut all = self.open.lock();
        // One that is being written is locked.
        all.retain(|_, open| open.touched.elapsed() < IDLE || open.upload.try_lock().is_err());
        let of_one = all.values().filter(|other| other.user == open.user).count();
        if all.len() >= MAX_OPEN || of_one >= MAX_OPEN_OF_ONE {
            let message = format!("at most {MAX_OPEN_OF_ONE} uploads of one user, and {MAX_OPEN} in all, may be open");
            return Err(Fault::new(StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS", message));
        }
        let id = uuid::Uuid::new_v4().to_string();
        all.insert(id.clone(), open);
        Ok(id)
    }

    fn find(&self, call: &Call<'_>, id: &str) -> Result<Open, Fault> {
        let mut all = self.open.lock();
        let mine = |open: &&mut Open| {
            open.owner == call.owner && open.repository == call.repository && open.user == call.user.username
        };
        let open = all.get_mut(id).filter(mine).ok_or_else(Fault::upload_unknown)?;
        open.touched = Instant::now();
        Ok(open.clone())
    }

    fn forget(&self, id: &str) {
        self.open.lock().remove(id);
    }
}

impl Call<'_> {
    /// A session; or the blob at once, mounted from another repository or with the request's body.
    pub(super) async fn begin_upload(&self, body: Body) -> Result<Response, Fault> {
        let mut query = answer::query(&self.head.uri)?;
        if let (Some(digest), Some(from)) = (query.remove("mount"), query.remove("from"))
            && is_digest(&digest)
            && self.mounted(&digest, &from).await?
        {
            return Ok(created(self.repository, &digest));
        }
        let upload = self.registry.images.begin_upload().await?;
        let open = Open {
            owner: self.owner.clone(),
            repository: self.repository.to_owned(),
            user: self.user.username.clone(),
            touched: Instant::now(),
            upload: Arc::new(tokio::sync::Mutex::new(Some(upload))),
        };
        let id = self.registry.uploads.insert(open)?;
        if !query.contains_key("digest") {
            return Ok(progress(StatusCode::ACCEPTED, self.repository, &id, 0));
        }
        let stored = self.end_upload(&id, body).await;
        // Nobody was told of the session.
        self.registry.uploads.forget(&id);
        stored
    }

    /// Only from where the caller may read: that a blob is somewhere is nobody else's business.
    async fn mounted(&self, digest: &str, from: &str) -> Result<bool, Fault> {
        let Some(from) = route::name_of(from) else { return Ok(false) };
        let access = &self.registry.access;
        if access.check(self.user, Action::Pull, &from).await.is_err() {
            return Ok(false);
        }
        let Some(source) = access.owner(&from).await? else { return Ok(false) };
        let images = &self.registry.images;
        Ok(images.mount_blob((&source, &from), (&self.owner, self.repository), digest).await?)
    }

    pub(super) async fn upload_status(&self, id: &str) -> Result<Response, Fault> {
        let open = self.registry.uploads.find(self, id)?;
        let upload = open.upload.lock().await;
        let bytes = upload.as_ref().ok_or_else(Fault::upload_unknown)?.bytes();
        Ok(progress(StatusCode::NO_CONTENT, self.repository, id, bytes))
    }

    pub(super) async fn continue_upload(&self, id: &str, body: Body) -> Result<Response, Fault> {
        let mut slot = match self.slot(id).await? {
            Ok(slot) => slot,
            Err(at) => return Ok(progress(StatusCode::RANGE_NOT_SATISFIABLE, self.repository, id, at)),
        };
        // A task of its own: a client that goes away must find what it sent.
        let received = self.registry.tasks.spawn("registry-upload", async move {
            let result = fill(&mut slot, body).await;
            result.map(|()| slot.as_ref().map_or(0, Upload::bytes))
        });
        let bytes = received.await.map_err(|error| Fault::internal(&error))??;
        Ok(progress(StatusCode::ACCEPTED, self.repository, id, bytes))
    }

    pub(super) async fn end_upload(&self, id: &str, body: Body) -> Result<Response, Fault> {
        let digest = answer::query(&self.head.uri)?.remove("digest").unwrap_or_default();
        if !is_digest(&digest) {
            return Err(Fault::digest_invalid(&digest));
        }
        let mut slot = match self.slot(id).await? {
            Ok(slot) => slot,
            Err(at) => return Ok(progress(StatusCode::RANGE_NOT_SATISFIABLE, self.repository, id, at)),
        };
        let (registry, owner, repository) = (self.registry.clone(), self.owner.clone(), self.repository.to_owned());
        let (id, wanted) = (id.to_owned(), digest.clone());
        let stored = self.registry.tasks.spawn("registry-upload", async move {
            fill(&mut slot, body).await?;
            let upload = slot.take().ok_or_else(Fault::upload_unknown)?;
            // Whatever becomes of it, it is not to be gone on with.
            registry.uploads.forget(&id);
            Ok::<_, Fault>(registry.images.finish_upload(&owner, &repository, upload, &wanted).await?)
        });
        stored.await.map_err(|error| Fault::internal(&error))??;
        Ok(created(self.repository, &digest))
    }

    pub(super) fn cancel_upload(&self, id: &str) -> Result<Response, Fault> {
        self.registry.uploads.find(self, id)?;
        self.registry.uploads.forget(id);
        Ok(answer::headers(StatusCode::NO_CONTENT, &[]))
    }

    /// The upload, for this request alone. Where it is, when the request's piece does not begin there.
    async fn slot(&self, id: &str) -> Result<Result<Slot, u64>, Fault> {
        let slot = self.registry.uploads.find(self, id)?.upload.lock_owned().await;
        let at = slot.as_ref().ok_or_else(Fault::upload_unknown)?.bytes();
        let Some(range) = self.head.headers.get(header::CONTENT_RANGE) else { return Ok(Ok(slot)) };
        let text = range.to_str().unwrap_or_default();
        let first = text.trim_start_matches("bytes ").split('-').next();
        match first.and_then(|first| first.trim().parse::<u64>().ok()) {
            None => Err(Fault::upload_invalid(format!("the Content-Range {text:?} is not FIRST-LAST"))),
            Some(first) if first == at => Ok(Ok(slot)),
            Some(_) => Ok(Err(at)),
        }
    }
}

type Slot = tokio::sync::OwnedMutexGuard<Option<Upload>>;

fn created(repository: &str, digest: &str) -> Response {
    let location = format!("/v2/{repository}/blobs/{digest}");
    answer::headers(StatusCode::CREATED, &[("location", location), ("docker-content-digest", digest.to_owned())])
}

fn progress(status: StatusCode, repository: &str, id: &str, bytes: u64) -> Response {
    let fields = [
        ("location", format!("/v2/{repository}/blobs/uploads/{id}")),
        ("range", format!("0-{}", bytes.saturating_sub(1))),
        ("docker-upload-uuid", id.to_owned()),
    ];
    answer::headers(status, &fields)
}

/// Takes a body into an upload, which keeps what arrived, whatever happens then.
async fn fill(slot: &mut Slot, body: Body) -> Result<(), Fault> {
    let mut upload = slot.take().ok_or_else(Fault::upload_unknown)?;
    let (to_disk, mut from_net) = tokio::sync::mpsc::channel::<Bytes>(IN_FLIGHT);
    let writer = crate::images::blocking(move || {
        let mut written = Ok(());
        while let Some(piece) = from_net.blocking_recv() {
            written = upload.append(&piece);
            if written.is_err() {
                break;
            }
        }
        Ok::<_, StoreError>((upload, written))
    });
    let reader = async move {
        let mut body = body.into_data_stream();
        loop {
            match tokio::time::timeout(SILENCE, body.next()).await {
                Ok(Some(Ok(piece))) => {
                    // The writer stopped and says why.
                    if to_disk.send(piece).await.is_err() {
                        return Ok(());
                    }
                }
                Ok(None) => return Ok(()),
                Ok(Some(Err(_))) => return Err(Fault::upload_invalid("the request ended before its body did")),
                Err(_) => return Err(Fault::upload_invalid("nothing came for a minute")),
            }
        }
    };
    let (written, read) = futures::join!(writer, reader);
    let (upload, written) = written?;
    **slot = Some(upload);
    written.map_err(Fault::from).and(read)
}

//! Single objects: put, get, copy, delete, tags.

use crate::{
    Error,
    content::{Expected, Stored},
    digest::{Algorithm, Checksums},
    reading::{ContentStream, Slice, read_at},
    store::{
        Attributes, BucketInfo, Condition, MAX_PUT, ObjectInfo, Store, blobs, bucket, check_key, delete_row, find,
        from_millis, latest, now, to_i64, unnamed,
    },
};
use bytes::Bytes;
use futures::Stream;
use kfbox_base::BoxError;
use rusqlite::{Connection, Transaction, params};
use std::{fs::File, io, ops::Range};

/// Content up to this size is read together with its row, in one step off the asynchronous threads.
const READ_WHOLE: u64 = 128 * 1024;

/// A put that is checked before its body is read and again when it takes effect.
#[derive(Debug, Default)]
pub(crate) struct Put {
    pub bucket: String,
    pub key: String,
    pub attributes: Attributes,
    pub tags: Vec<(String, String)>,
    pub condition: Condition,
    pub length: Option<u64>,
    pub algorithms: Vec<Algorithm>,
}

/// An object about to become the current version of its key.
pub(crate) struct NewObject<'a> {
    pub bucket: &'a BucketInfo,
    pub key: &'a str,
    pub etag: &'a str,
    pub attributes: &'a Attributes,
    pub tags: &'a [(String, String)],
    pub slices: &'a [(String, u64)],
}

/// The part of an object that is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ByteRange {
    /// From `first` to `last`, both included; to the end without `last`.
    From { first: u64, last: Option<u64> },
    /// The last so many bytes.
    Last(u64),
    /// One part of a multipart upload, counted from 1; part 1 of any other object is all of it.
    Part(i32),
}

pub(crate) struct Found {
    pub info: ObjectInfo,
    pub range: Range<u64>,
    pub parts: usize,
    pub body: ContentStream,
}

/// What a deletion did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Deleted {
    /// The version deleted, or the delete marker made.
    pub version: Option<String>,
    pub delete_marker: bool,
}

impl Store {
    /// `declared` is asked for after the body is read: checksums may arrive in its trailer.
    pub async fn put<S, F>(&self, put: Put, body: S, declared: F) -> Result<ObjectInfo, Error>
    where
        S: Stream<Item = Result<Bytes, BoxError>> + Unpin + Send,
        F: FnOnce() -> Result<(Option<[u8; 16]>, Checksums), Error>,
    {
        check_key(&put.key)?;
        put.attributes.check()?;
        let (name, key, condition) = (put.bucket.clone(), put.key.clone(), put.condition.clone());
        self.db
            .read(move |c| {
                let bucket = bucket(c, &name)?;
                if condition.if_match.is_some() || condition.if_none_match.is_some() {
                    let current = latest(c, &bucket, &key)?.filter(|o| !o.delete_marker);
                    condition.check_write(current.as_ref(), &name, &key)?;
                }
                Ok::<_, Error>(())
            })
            .await?;
        let expected = Expected { length: put.length, most: MAX_PUT, algorithms: put.algorithms.clone() };
        let stored = self.content.receive(body, expected).await?;
        verify(&stored, declared()?)?;
        self.commit(put, stored).await
    }

    async fn commit(&self, put: Put, stored: Stored) -> Result<ObjectInfo, Error> {
        let (info, pin, free) = self
            .db
            .write(move |tx| {
                let bucket = bucket(tx, &put.bucket)?;
                let current = latest(tx, &bucket, &put.key)?.filter(|o| !o.delete_marker);
                put.condition.check_write(current.as_ref(), &put.bucket, &put.key)?;
                let mut attributes = put.attributes;
                attributes.checksums = stored.checksums.clone();
                attributes.full_checksum = true;
                let new = NewObject {
                    bucket: &bucket,
                    key: &put.key,
                    etag: &hex::encode(stored.md5),
                    attributes: &attributes,
                    tags: &put.tags,
                    slices: &[(stored.id.clone(), stored.size)],
                };
                let (info, free) = insert(tx, new)?;
                Ok::<_, Error>((info, stored.named(), free))
            })
            .await?;
        drop(pin);
        self.content.remove(free).await;
        Ok(info)
    }

    pub async fn head(&self, name: &str, key: &str, version: Option<&str>) -> Result<(ObjectInfo, usize), Error> {
        let (name, key, version) = (name.to_owned(), key.to_owned(), version.map(str::to_owned));
        self.db
            .read(move |c| {
                let bucket = bucket(c, &name)?;
                let info = find(c, &bucket, &key, version.as_deref())?;
                let parts = slices(c, info.id)?.len();
                Ok((info, parts))
            })
            .await
    }

    /// The object's bytes, or a range of them. `check` sees the object first and may refuse.
    pub async fn get<F, E>(
        &self,
        name: &str,
        key: &str,
        version: Option<&str>,
        range: Option<ByteRange>,
        check: F,
    ) -> Result<Found, E>
    where
        F: Fn(&ObjectInfo) -> Result<(), E> + Clone + Send + 'static,
        E: From<Error> + From<kfbox_db::Error> + Send + 'static,
    {
        // A file can vanish between its row being read and its being opened, when the object is replaced meanwhile.
        for _ in 0..8 {
            let (store, check) = (self.clone(), check.clone());
            let (name, key, version) = (name.to_owned(), key.to_owned(), version.map(str::to_owned));
            let found = self
                .db
                .read(move |c| {
                    let look = || find(c, &bucket(c, &name)?, &key, version.as_deref());
                    let info = look()?;
                    check(&info)?;
                    Ok::<_, E>(store.open_found(c, info, range)?)
                })
                .await?;
            if let Some(found) = found {
                return Ok(found);
            }
        }
        Err(Error::Io(io::ErrorKind::NotFound.into()).into())
    }

    /// `None`: replaced or deleted while it was being opened.
    fn open_found(&self, c: &Connection, info: ObjectInfo, range: Option<ByteRange>) -> Result<Option<Found>, Error> {
        let all = slices(c, info.id)?;
        let parts = all.len();
        let range = resolve(range, &all, info.size)?;
        let wanted = cut(all, &range);
        let pin = self.content.pin(wanted.iter().map(|s| s.id.clone()));
        let Some(first) = wanted.first() else {
            let body = ContentStream::whole(self.content.clone(), Bytes::new());
            return Ok(Some(Found { info, range, parts, body }));
        };
        let file = match File::open(self.content.path(&first.id)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        if wanted.len() == 1 && first.size <= READ_WHOLE {
            let body = ContentStream::whole(self.content.clone(), read_at(&file, first.offset, first.size)?);
            return Ok(Some(Found { info, range, parts, body }));
        }
        // With the files pinned, an object that is still there keeps them until the stream ends.
        let there: bool = wanted.len() == 1
            || c.query_row("SELECT EXISTS (SELECT 1 FROM object WHERE id = ?1)", [info.id], |r| r.get(0))?;
        let body = ContentStream::new(self.content.clone(), wanted, Some(file), pin);
        Ok(there.then_some(Found { info, range, parts, body }))
    }

    /// Copies without moving bytes. `attributes` and `tags` replace those of the source.
    pub async fn copy(&self, copy: Copy) -> Result<ObjectInfo, Error> {
        check_key(&copy.key)?;
        if let Some(attributes) = &copy.attributes {
            attributes.check()?;
        }
        let (info, free) = self
            .db
            .write(move |tx| {
                let from = bucket(tx, &copy.from_bucket)?;
                let source = find(tx, &from, &copy.from_key, copy.from_version.as_deref())?;
                copy.source.check_read(&source)?;
                let to = bucket(tx, &copy.bucket)?;
                let current = latest(tx, &to, &copy.key)?.filter(|o| !o.delete_marker);
                copy.condition.check_write(current.as_ref(), &copy.bucket, &copy.key)?;
                let same = copy.from_bucket == copy.bucket && copy.from_key == copy.key;
                if same && copy.from_version.is_none() && copy.attributes.is_none() && copy.tags.is_none() {
                    return Err(Error::InvalidArgument(
                        "an object can be copied onto itself only with other metadata or tags".into(),
                    ));
                }
                let attributes = match copy.attributes {
                    Some(new) => Attributes {
                        checksums: source.attributes.checksums.clone(),
                        full_checksum: source.attributes.full_checksum,
                        ..new
                    },
                    None => source.attributes.clone(),
                };
                let slices: Vec<(String, u64)> = slices(tx, source.id)?.into_iter().map(|s| (s.id, s.size)).collect();
                let new = NewObject {
                    bucket: &to,
                    key: &copy.key,
                    etag: &source.etag,
                    attributes: &attributes,
                    tags: copy.tags.as_deref().unwrap_or(&source.tags),
                    slices: &slices,
                };
                insert(tx, new)
            })
            .await?;
        self.content.remove(free).await;
        Ok(info)
    }

    /// Deleting what is not there succeeds, as in S3.
    pub async fn delete(
        &self,
        name: &str,
        key: &str,
        version: Option<&str>,
        condition: Condition,
    ) -> Result<Deleted, Error> {
        let (name, key, version) = (name.to_owned(), key.to_owned(), version.map(str::to_owned));
        let (deleted, free) = self
            .db
            .write(move |tx| {
                let bucket = bucket(tx, &name)?;
                if condition.if_match.is_some() {
                    let current = latest(tx, &bucket, &key)?.filter(|o| !o.delete_marker);
                    condition.check_write(current.as_ref(), &name, &key)?;
                }
                match version {
                    Some(version) => delete_version(tx, &bucket, &key, &version),
                    None => delete_current(tx, &bucket, &key),
                }
            })
            .await?;
        self.content.remove(free).await;
        Ok(deleted)
    }

    pub async fn set_tags(
        &self,
        name: &str,
        key: &str,
        version: Option<&str>,
        tags: Vec<(String, String)>,
    ) -> Result<ObjectInfo, Error> {
        let (name, key, version) = (name.to_owned(), key.to_owned(), version.map(str::to_owned));
        self.db
            .write(move |tx| {
                let info = find(tx, &bucket(tx, &name)?, &key, version.as_deref())?;
                tx.execute(
                    "UPDATE object SET tags = ?2 WHERE id = ?1",
                    params![info.id, serde_json::to_string(&tags)?],
                )?;
                Ok(info)
            })
            .await
    }
}

/// A server-side copy.
#[derive(Debug, Default)]
pub(crate) struct Copy {
    pub from_bucket: String,
    pub from_key: String,
    pub from_version: Option<String>,
    pub source: ReadCondition,
    pub bucket: String,
    pub key: String,
    pub condition: Condition,
    pub attributes: Option<Attributes>,
    pub tags: Option<Vec<(String, String)>>,
}

/// Conditions on a source, with the precedence of RFC 9110 section 13.2.2.
#[derive(Debug, Default, Clone)]
pub(crate) struct ReadCondition {
    pub etag: Condition,
    pub if_modified_since: Option<i64>,
    pub if_unmodified_since: Option<i64>,
}

pub(crate) enum ReadVerdict {
    Proceed,
    NotModified,
    Failed,
}

impl ReadCondition {
    pub fn verdict(&self, info: &ObjectInfo) -> ReadVerdict {
        // HTTP dates have whole seconds.
        let modified = crate::store::to_millis(info.modified) / 1000;
        let matches = |m: &crate::store::EtagMatch| match m {
            crate::store::EtagMatch::Any => true,
            crate::store::EtagMatch::Tag(tag) => *tag == info.etag,
        };
        match (&self.etag.if_match, self.if_unmodified_since) {
            (Some(m), _) if !matches(m) => return ReadVerdict::Failed,
            (None, Some(since)) if modified > since / 1000 => return ReadVerdict::Failed,
            _ => {}
        }
        match (&self.etag.if_none_match, self.if_modified_since) {
            (Some(m), _) if matches(m) => ReadVerdict::NotModified,
            (None, Some(since)) if modified <= since / 1000 => ReadVerdict::NotModified,
            _ => ReadVerdict::Proceed,
        }
    }

    fn check_read(&self, info: &ObjectInfo) -> Result<(), Error> {
        match self.verdict(info) {
            ReadVerdict::Proceed => Ok(()),
            ReadVerdict::NotModified | ReadVerdict::Failed => Err(Error::PreconditionFailed),
        }
    }
}

pub(crate) fn verify(stored: &Stored, (md5, declared): (Option<[u8; 16]>, Checksums)) -> Result<(), Error> {
    if md5.is_some_and(|md5| md5 != stored.md5) {
        return Err(Error::BadDigest("Content-MD5"));
    }
    stored.checksums.verify(&declared)
}

pub(crate) fn slices(c: &Connection, object: i64) -> Result<Vec<Slice>, Error> {
    let mut statement = c.prepare_cached("SELECT blob, size FROM slice WHERE object = ?1 ORDER BY position")?;
    let rows = statement.query_map([object], |r| {
        Ok(Slice { id: r.get(0)?, offset: 0, size: u64::try_from(r.get::<_, i64>(1)?).unwrap_or_default() })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn resolve(range: Option<ByteRange>, slices: &[Slice], size: u64) -> Result<Range<u64>, Error> {
    let outside = Error::InvalidRange { size };
    match range {
        None => Ok(0..size),
        Some(ByteRange::From { first, last }) => {
            let end = last.map_or(size, |last| last.saturating_add(1).min(size));
            if first < end { Ok(first..end) } else { Err(outside) }
        }
        Some(ByteRange::Last(0)) => Err(outside),
        Some(ByteRange::Last(_)) if size == 0 => Err(outside),
        Some(ByteRange::Last(n)) => Ok(size.saturating_sub(n)..size),
        Some(ByteRange::Part(number)) => {
            let index =
                usize::try_from(number).ok().and_then(|n| n.checked_sub(1)).filter(|n| *n < slices.len().max(1));
            let Some(index) = index else { return Err(outside) };
            let start: u64 = slices[..index].iter().map(|s| s.size).sum();
            Ok(start..start + slices.get(index).map_or(0, |s| s.size))
        }
    }
}

/// The pieces of `all` that make up `range`.
fn cut(all: Vec<Slice>, range: &Range<u64>) -> Vec<Slice> {
    let mut start = 0;
    let mut wanted = Vec::new();
    for slice in all {
        let (from, to) = (range.start.max(start), range.end.min(start + slice.size));
        if from < to {
            wanted.push(Slice { id: slice.id, offset: from - start, size: to - from });
        }
        start += slice.size;
    }
    wanted
}

/// Makes the object the current version of its key. Returns the content files that nothing names any more.
pub(crate) fn insert(tx: &Transaction<'_>, new: NewObject<'_>) -> Result<(ObjectInfo, Vec<String>), Error> {
    let NewObject { bucket, key, etag, attributes, tags, slices } = new;
    let (version, free) = make_room(tx, bucket, key)?;
    let (modified, size) = (now(), slices.iter().map(|(_, n)| n).sum::<u64>());
    let id: i64 = tx
        .prepare_cached(
            "INSERT INTO object (bucket, key, version, latest, marker, size, etag, modified, attributes, tags) \
             VALUES (?1, ?2, ?3, 1, 0, ?4, ?5, ?6, ?7, ?8) RETURNING id",
        )?
        .query_row(
            params![
                bucket.name,
                key,
                version,
                to_i64(size),
                etag,
                modified,
                serde_json::to_string(attributes)?,
                serde_json::to_string(tags)?
            ],
            |r| r.get(0),
        )?;
    let mut statement =
        tx.prepare_cached("INSERT INTO slice (object, position, blob, size) VALUES (?1, ?2, ?3, ?4)")?;
    for (position, (blob, size)) in slices.iter().enumerate() {
        statement.execute(params![id, i64::try_from(position).unwrap_or(i64::MAX), blob, to_i64(*size)])?;
    }
    // What was replaced may be what is named again: a copy onto itself.
    let free = unnamed(tx, free)?;
    let info = ObjectInfo {
        id,
        bucket: bucket.name.clone(),
        key: key.into(),
        size,
        etag: etag.into(),
        modified: from_millis(modified),
        version: bucket.versioning.is_some().then_some(version),
        latest: true,
        delete_marker: false,
        attributes: attributes.clone(),
        tags: tags.to_vec(),
    };
    Ok((info, free))
}

/// Clears the way for a new current version: with versioning the old one steps back, without it is deleted. Returns
/// the new version's name and candidates for unlinking.
fn make_room(tx: &Connection, bucket: &BucketInfo, key: &str) -> Result<(String, Vec<String>), Error> {
    let mut free = Vec::new();
    let enabled = bucket.versioning.as_deref() == Some("Enabled");
    if !enabled {
        let old: Vec<i64> = {
            let mut statement =
                tx.prepare_cached("SELECT id FROM object WHERE bucket = ?1 AND key = ?2 AND version = 'null'")?;
            statement.query_map(params![bucket.name, key], |r| r.get(0))?.collect::<Result<_, _>>()?
        };
        for id in old {
            free.extend(blobs(tx, "SELECT DISTINCT blob FROM slice WHERE object = ?1", params![id])?);
            tx.prepare_cached("DELETE FROM object WHERE id = ?1")?.execute([id])?;
        }
    }
    if bucket.versioning.is_some() {
        tx.prepare_cached("UPDATE object SET latest = 0 WHERE bucket = ?1 AND key = ?2 AND latest = 1")?
            .execute(params![bucket.name, key])?;
    }
    let version = if enabled { uuid::Uuid::now_v7().simple().to_string() } else { "null".into() };
    Ok((version, free))
}

fn delete_current(tx: &Transaction<'_>, bucket: &BucketInfo, key: &str) -> Result<(Deleted, Vec<String>), Error> {
    if bucket.versioning.is_none() {
        let Some(current) = latest(tx, bucket, key)? else { return Ok(Default::default()) };
        return Ok((Deleted::default(), delete_row(tx, current.id)?));
    }
    let (version, free) = make_room(tx, bucket, key)?;
    tx.execute(
        "INSERT INTO object (bucket, key, version, latest, marker, size, etag, modified, attributes) \
         VALUES (?1, ?2, ?3, 1, 1, 0, '', ?4, ?5)",
        params![bucket.name, key, version, now(), serde_json::to_string(&Attributes::default())?],
    )?;
    Ok((Deleted { version: Some(version), delete_marker: true }, unnamed(tx, free)?))
}

fn delete_version(
    tx: &Transaction<'_>,
    bucket: &BucketInfo,
    key: &str,
    version: &str,
) -> Result<(Deleted, Vec<String>), Error> {
    let mut deleted = Deleted { version: Some(version.into()), delete_marker: false };
    let row: Option<(i64, bool, bool)> = rusqlite::OptionalExtension::optional(tx.query_row(
        "SELECT id, latest, marker FROM object WHERE bucket = ?1 AND key = ?2 AND version = ?3",
        params![bucket.name, key, version],
        |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)),
    ))?;
    let Some((id, was_latest, marker)) = row else { return Ok((deleted, Vec::new())) };
    deleted.delete_marker = marker;
    let free = delete_row(tx, id)?;
    if was_latest {
        tx.execute(
            "UPDATE object SET latest = 1 WHERE id = (SELECT max(id) FROM object WHERE bucket = ?1 AND key = ?2)",
            params![bucket.name, key],
        )?;
    }
    Ok((deleted, free))
}

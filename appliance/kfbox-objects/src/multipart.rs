//! Multipart uploads. Completing one is a change of rows only: the parts' content files become the object's slices.
//! Source: "Uploading and copying objects using multipart upload" in the Amazon S3 user guide.

use crate::{
    Error,
    content::Expected,
    digest::{Algorithm, Checksums, combine, multipart_etag},
    objects::{NewObject, insert, verify},
    store::{
        Attributes, Condition, MAX_PUT, ObjectInfo, Store, blobs, bucket, check_key, from_millis, latest, now, to_i64,
        unnamed,
    },
};
use bytes::Bytes;
use futures::Stream;
use kfbox_base::BoxError;
use rusqlite::{Connection, OptionalExtension, params};
use std::time::SystemTime;

/// Every part but the last has at least so many bytes, as in S3.
pub const MIN_PART: u64 = 5 * 1024 * 1024;
/// Parts are numbered 1 to this, as in S3.
pub const MAX_PARTS: i32 = 10_000;
/// An upload neither completed nor aborted for so long is given up and its parts are deleted.
pub const UPLOAD_LIFETIME_DAYS: i64 = 7;

#[derive(Debug, Clone)]
pub(crate) struct Upload {
    pub id: String,
    pub bucket: String,
    pub key: String,
    pub created: SystemTime,
    pub attributes: Attributes,
    pub tags: Vec<(String, String)>,
    pub algorithm: Option<Algorithm>,
    pub full_checksum: bool,
}

#[derive(Debug, Clone)]
pub(crate) struct Part {
    pub number: i32,
    pub blob: String,
    pub size: u64,
    pub md5: [u8; 16],
    pub checksums: Checksums,
    pub modified: SystemTime,
}

impl Part {
    pub fn etag(&self) -> String {
        hex::encode(self.md5)
    }
}

/// A part as the client lists it on completion.
#[derive(Debug, Clone, Default)]
pub(crate) struct ListedPart {
    pub number: i32,
    pub etag: String,
    pub checksums: Checksums,
}

#[derive(Debug, Default)]
pub(crate) struct Completion {
    pub parts: Vec<ListedPart>,
    pub condition: Condition,
    /// The checksum of the whole, if the client sent one.
    pub checksums: Checksums,
    pub size: Option<u64>,
}

impl Store {
    pub async fn create_upload(
        &self,
        name: &str,
        key: &str,
        attributes: Attributes,
        tags: Vec<(String, String)>,
        checksum: Option<(Algorithm, bool)>,
    ) -> Result<String, Error> {
        check_key(key)?;
        attributes.check()?;
        let (name, key) = (name.to_owned(), key.to_owned());
        let id = uuid::Uuid::new_v4().simple().to_string();
        self.db
            .write(move |tx| {
                bucket(tx, &name)?;
                tx.execute(
                    "INSERT INTO upload (id, bucket, key, created, attributes, tags, algorithm, full_checksum) \
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
                    params![
                        id,
                        name,
                        key,
                        now(),
                        serde_json::to_string(&attributes)?,
                        serde_json::to_string(&tags)?,
                        checksum.map(|(a, _)| a.name()),
                        checksum.is_some_and(|(_, full)| full),
                    ],
                )?;
                Ok(id)
            })
            .await
    }

    pub async fn upload(&self, name: &str, key: &str, id: &str) -> Result<Upload, Error> {
        let (name, key, id) = (name.to_owned(), key.to_owned(), id.to_owned());
        self.db.read(move |c| upload(c, &name, &key, &id)).await
    }

    /// Stores a part; an earlier one of the same number is replaced.
    pub async fn put_part<S, F>(
        &self,
        upload: &Upload,
        number: i32,
        length: Option<u64>,
        mut algorithms: Vec<Algorithm>,
        body: S,
        declared: F,
    ) -> Result<Part, Error>
    where
        S: Stream<Item = Result<Bytes, BoxError>> + Unpin + Send,
        F: FnOnce() -> Result<(Option<[u8; 16]>, Checksums), Error>,
    {
        if !(1..=MAX_PARTS).contains(&number) {
            return Err(Error::InvalidArgument(format!("a part number lies between 1 and {MAX_PARTS}")));
        }
        algorithms.extend(upload.algorithm);
        let stored = self.content.receive(body, Expected { length, most: MAX_PUT, algorithms }).await?;
        verify(&stored, declared()?)?;
        let (name, key, id) = (upload.bucket.clone(), upload.key.clone(), upload.id.clone());
        let (part, pin, free) = self
            .db
            .write(move |tx| {
                let found = self::upload(tx, &name, &key, &id)?;
                let old = blobs(tx, "SELECT blob FROM part WHERE upload = ?1 AND number = ?2", params![id, number])?;
                let part = Part {
                    number,
                    blob: stored.id.clone(),
                    size: stored.size,
                    md5: stored.md5,
                    checksums: stored.checksums.clone(),
                    modified: from_millis(now()),
                };
                tx.execute(
                    "INSERT OR REPLACE INTO part (upload, number, blob, size, md5, checksums, modified) \
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                    params![
                        found.id,
                        number,
                        part.blob,
                        to_i64(part.size),
                        part.md5.as_slice(),
                        serde_json::to_string(&part.checksums)?,
                        now()
                    ],
                )?;
                Ok::<_, Error>((part, stored.named(), unnamed(tx, old)?))
            })
            .await?;
        drop(pin);
        self.content.remove(free).await;
        Ok(part)
    }

    pub async fn parts(&self, upload: &Upload, after: i32, limit: usize) -> Result<Vec<Part>, Error> {
        let id = upload.id.clone();
        self.db.read(move |c| parts(c, &id, after, limit)).await
    }

    /// Uploads under way in a bucket, ordered by key and id, after the pair given.
    pub async fn uploads(
        &self,
        name: &str,
        prefix: &str,
        after: (String, String),
        limit: usize,
    ) -> Result<Vec<Upload>, Error> {
        let (name, prefix) = (name.to_owned(), prefix.to_owned());
        self.db
            .read(move |c| {
                bucket(c, &name)?;
                let mut statement = c.prepare_cached(&format!(
                    "SELECT {UPLOAD_COLUMNS} FROM upload WHERE bucket = ?1 AND substr(key, 1, length(?2)) = ?2 \
                     AND (key > ?3 OR (key = ?3 AND ?4 <> '' AND id > ?4)) ORDER BY key, id LIMIT ?5"
                ))?;
                let limit = i64::try_from(limit).unwrap_or(i64::MAX);
                let mut rows = statement.query(params![name, prefix, after.0, after.1, limit])?;
                let mut uploads = Vec::new();
                while let Some(row) = rows.next()? {
                    uploads.push(upload_from(row)?);
                }
                Ok(uploads)
            })
            .await
    }

    pub async fn complete(&self, name: &str, key: &str, id: &str, completion: Completion) -> Result<ObjectInfo, Error> {
        let (name, key, id) = (name.to_owned(), key.to_owned(), id.to_owned());
        let (info, free) = self
            .db
            .write(move |tx| {
                let upload = upload(tx, &name, &key, &id)?;
                let bucket = bucket(tx, &name)?;
                let current = latest(tx, &bucket, &key)?.filter(|o| !o.delete_marker);
                completion.condition.check_write(current.as_ref(), &name, &key)?;
                let chosen = choose(parts(tx, &id, 0, usize::MAX)?, &completion)?;
                let mut attributes = upload.attributes.clone();
                attributes.full_checksum = upload.full_checksum;
                if let Some(algorithm) = upload.algorithm {
                    let sums: Vec<_> = chosen.iter().map(|p| (&p.checksums, p.size)).collect();
                    if let Some(sum) = combine(algorithm, upload.full_checksum, &sums) {
                        attributes.checksums.set(algorithm, sum);
                    }
                    if upload.full_checksum && completion.checksums.get(algorithm).is_some() {
                        attributes.checksums.verify(&completion.checksums)?;
                    }
                }
                let md5s: Vec<[u8; 16]> = chosen.iter().map(|p| p.md5).collect();
                let slices: Vec<(String, u64)> = chosen.iter().map(|p| (p.blob.clone(), p.size)).collect();
                let new = NewObject {
                    bucket: &bucket,
                    key: &key,
                    etag: &multipart_etag(&md5s),
                    attributes: &attributes,
                    tags: &upload.tags,
                    slices: &slices,
                };
                let (info, mut free) = insert(tx, new)?;
                free.extend(drop_upload(tx, &id)?);
                Ok::<_, Error>((info, free))
            })
            .await?;
        self.content.remove(free).await;
        Ok(info)
    }

    pub async fn abort(&self, name: &str, key: &str, id: &str) -> Result<(), Error> {
        let (name, key, id) = (name.to_owned(), key.to_owned(), id.to_owned());
        let free = self
            .db
            .write(move |tx| {
                upload(tx, &name, &key, &id)?;
                drop_upload(tx, &id)
            })
            .await?;
        self.content.remove(free).await;
        Ok(())
    }

    /// Gives up uploads older than [`UPLOAD_LIFETIME_DAYS`].
    pub async fn expire_uploads(&self) -> Result<usize, Error> {
        let before = now() - UPLOAD_LIFETIME_DAYS * 24 * 3600 * 1000;
        let (count, free) = self
            .db
            .write(move |tx| {
                let ids = blobs(tx, "SELECT id FROM upload WHERE created < ?1", params![before])?;
                let mut free = Vec::new();
                for id in &ids {
                    free.extend(drop_upload(tx, id)?);
                }
                Ok::<_, Error>((ids.len(), free))
            })
            .await?;
        self.content.remove(free).await;
        Ok(count)
    }
}

/// The parts listed by the client, held against those uploaded.
fn choose(uploaded: Vec<Part>, completion: &Completion) -> Result<Vec<Part>, Error> {
    let listed = &completion.parts;
    if listed.is_empty() {
        return Err(Error::InvalidArgument("an upload is completed with at least one part".into()));
    }
    if !listed.is_sorted_by(|a, b| a.number < b.number) {
        return Err(Error::InvalidPartOrder);
    }
    let mut by_number: std::collections::BTreeMap<i32, Part> = uploaded.into_iter().map(|p| (p.number, p)).collect();
    let mut chosen = Vec::new();
    for part in listed {
        let found = by_number.remove(&part.number).ok_or(Error::InvalidPart(part.number))?;
        if part.etag != found.etag() || found.checksums.verify(&part.checksums).is_err() {
            return Err(Error::InvalidPart(part.number));
        }
        chosen.push(found);
    }
    if let Some(small) = chosen.iter().rev().skip(1).rev().find(|p| p.size < MIN_PART) {
        return Err(Error::PartTooSmall { number: small.number, size: small.size, least: MIN_PART });
    }
    let got = chosen.iter().map(|p| p.size).sum();
    match completion.size {
        Some(want) if want != got => Err(Error::Incomplete { got, want }),
        _ => Ok(chosen),
    }
}

const UPLOAD_COLUMNS: &str = "id, bucket, key, created, attributes, tags, algorithm, full_checksum";

fn upload_from(row: &rusqlite::Row<'_>) -> Result<Upload, Error> {
    Ok(Upload {
        id: row.get(0)?,
        bucket: row.get(1)?,
        key: row.get(2)?,
        created: from_millis(row.get(3)?),
        attributes: serde_json::from_str(&row.get::<_, String>(4)?)?,
        tags: serde_json::from_str(&row.get::<_, String>(5)?)?,
        algorithm: row.get::<_, Option<String>>(6)?.and_then(|name| Algorithm::parse(&name)),
        full_checksum: row.get(7)?,
    })
}

fn upload(c: &Connection, name: &str, key: &str, id: &str) -> Result<Upload, Error> {
    let mut statement =
        c.prepare_cached(&format!("SELECT {UPLOAD_COLUMNS} FROM upload WHERE id = ?1 AND bucket = ?2 AND key = ?3"))?;
    let mut rows = statement.query(params![id, name, key])?;
    match rows.next()? {
        Some(row) => upload_from(row),
        None => Err(Error::NoSuchUpload(id.into())),
    }
}

fn parts(c: &Connection, upload: &str, after: i32, limit: usize) -> Result<Vec<Part>, Error> {
    let mut statement = c.prepare_cached(
        "SELECT number, blob, size, md5, checksums, modified FROM part WHERE upload = ?1 AND number > ?2 \
         ORDER BY number LIMIT ?3",
    )?;
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let mut rows = statement.query(params![upload, after, limit])?;
    let mut parts = Vec::new();
    while let Some(row) = rows.next()? {
        parts.push(Part {
            number: row.get(0)?,
            blob: row.get(1)?,
            size: u64::try_from(row.get::<_, i64>(2)?).unwrap_or_default(),
            md5: row.get(3)?,
            checksums: serde_json::from_str(&row.get::<_, String>(4)?)?,
            modified: from_millis(row.get(5)?),
        });
    }
    Ok(parts)
}

fn drop_upload(c: &Connection, id: &str) -> Result<Vec<String>, Error> {
    let candidates = blobs(c, "SELECT blob FROM part WHERE upload = ?1", params![id])?;
    let there: Option<i64> =
        c.query_row("DELETE FROM upload WHERE id = ?1 RETURNING 1", [id], |r| r.get(0)).optional()?;
    if there.is_none() {
        return Ok(Vec::new());
    }
    unnamed(c, candidates)
}

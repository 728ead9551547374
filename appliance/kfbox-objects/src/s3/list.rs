//! Listings of buckets, objects and versions.

use super::{
    Answer, Protocol,
    access::Caller,
    answer,
    convert::{KeyEncoding, checksum_type, etag, size, timestamp},
};
use crate::{
    listing::{Place, Query},
    store::{MAX_LIST, ObjectInfo},
};
use s3s::{S3Request, S3Result, dto::*, s3_error};

fn limit(asked: Option<i32>) -> S3Result<usize> {
    match asked.map(usize::try_from) {
        None => Ok(MAX_LIST),
        Some(Ok(n)) => Ok(n.min(MAX_LIST)),
        Some(Err(_)) => Err(s3_error!(InvalidArgument, "the number of entries cannot be negative")),
    }
}

fn count(n: usize) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}

/// One owner of everything: who may do what is not told by ownership here.
fn owner() -> Owner {
    Owner { display_name: Some("kfbox".into()), id: Some("kfbox".into()) }
}

fn object(info: ObjectInfo, encoding: KeyEncoding, owner: Option<Owner>) -> Object {
    let algorithms: Vec<ChecksumAlgorithm> =
        info.attributes.checksums.algorithms().map(|a| ChecksumAlgorithm::from_static(a.name())).collect();
    Object {
        checksum_type: checksum_type(&info.attributes),
        checksum_algorithm: (!algorithms.is_empty()).then_some(algorithms),
        e_tag: Some(etag(&info.etag)),
        key: Some(encoding.of(&info.key)),
        last_modified: Some(timestamp(info.modified)),
        owner,
        restore_status: None,
        size: Some(size(info.size)),
        storage_class: Some(ObjectStorageClass::from_static(ObjectStorageClass::STANDARD)),
    }
}

fn prefixes(found: &[String], encoding: KeyEncoding) -> Option<CommonPrefixList> {
    let list: CommonPrefixList = found.iter().map(|p| CommonPrefix { prefix: Some(encoding.of(p)) }).collect();
    (!list.is_empty()).then_some(list)
}

impl Protocol {
    pub(super) async fn buckets(&self, req: S3Request<ListBucketsInput>) -> Answer<ListBucketsOutput> {
        let caller = Caller::of(&req)?;
        let input = req.input;
        let limit = limit(input.max_buckets.map(|n| n.min(1000)))?;
        let after = input.continuation_token.unwrap_or_default();
        let prefix = input.prefix.clone().unwrap_or_default();
        let mut seen: Vec<_> = self
            .store
            .buckets()
            .await?
            .into_iter()
            .filter(|b| caller.sees(&b.name) && b.name > after && b.name.starts_with(&prefix))
            .collect();
        let more = seen.len() > limit;
        seen.truncate(limit);
        let next = seen.last().filter(|_| more).map(|b| b.name.clone());
        let buckets = seen
            .into_iter()
            .map(|b| Bucket {
                name: Some(b.name),
                creation_date: Some(timestamp(b.created)),
                bucket_region: Some(self.region.clone()),
            })
            .collect();
        answer(ListBucketsOutput {
            buckets: Some(buckets),
            continuation_token: next,
            owner: Some(owner()),
            prefix: input.prefix,
        })
    }

    pub(super) async fn list_v1(&self, req: S3Request<ListObjectsInput>) -> Answer<ListObjectsOutput> {
        let caller = Caller::of(&req)?;
        let input = req.input;
        let prefix = input.prefix.clone().unwrap_or_default();
        caller.list(&input.bucket, &prefix)?;
        let encoding = KeyEncoding::asked(input.encoding_type.as_ref());
        let marker = input.marker.clone().unwrap_or_default();
        let delimiter = input.delimiter.as_deref();
        let limit = limit(input.max_keys)?;
        let query = Query {
            bucket: input.bucket.clone(),
            after: (!marker.is_empty()).then(|| Place::marker(&marker, &prefix, delimiter)),
            prefix,
            delimiter: input.delimiter.clone(),
            limit,
            versions: false,
        };
        let page = self.store.list(query).await?;
        let next = page.next.as_ref().map(|place| match place {
            Place::Key(text) | Place::Prefix(text) | Place::Version(text, _) => encoding.of(text),
        });
        answer(ListObjectsOutput {
            name: Some(input.bucket),
            prefix: Some(encoding.of(input.prefix.as_deref().unwrap_or_default())),
            marker: Some(encoding.of(&marker)),
            max_keys: Some(count(limit)),
            is_truncated: Some(page.next.is_some()),
            common_prefixes: prefixes(&page.prefixes, encoding),
            contents: Some(page.objects.into_iter().map(|o| object(o, encoding, Some(owner()))).collect()),
            delimiter: input.delimiter.map(|d| encoding.of(&d)),
            next_marker: next,
            encoding_type: encoding.answer(),
            ..Default::default()
        })
    }

    pub(super) async fn list_v2(&self, req: S3Request<ListObjectsV2Input>) -> Answer<ListObjectsV2Output> {
        let caller = Caller::of(&req)?;
        let input = req.input;
        let prefix = input.prefix.clone().unwrap_or_default();
        caller.list(&input.bucket, &prefix)?;
        let encoding = KeyEncoding::asked(input.encoding_type.as_ref());
        let after = match (&input.continuation_token, &input.start_after) {
            (Some(token), _) => Some(
                Place::parse(token).ok_or_else(|| s3_error!(InvalidArgument, "the continuation token is not ours"))?,
            ),
            (None, Some(start)) => Some(Place::marker(start, &prefix, input.delimiter.as_deref())),
            (None, None) => None,
        };
        let limit = limit(input.max_keys)?;
        let query = Query {
            bucket: input.bucket.clone(),
            prefix,
            delimiter: input.delimiter.clone(),
            after,
            limit,
            versions: false,
        };
        let page = self.store.list(query).await?;
        let with_owner = input.fetch_owner.unwrap_or_default().then(owner);
        answer(ListObjectsV2Output {
            name: Some(input.bucket),
            prefix: Some(encoding.of(input.prefix.as_deref().unwrap_or_default())),
            max_keys: Some(count(limit)),
            key_count: Some(count(page.objects.len() + page.prefixes.len())),
            continuation_token: input.continuation_token,
            is_truncated: Some(page.next.is_some()),
            next_continuation_token: page.next.map(|place| place.token()),
            common_prefixes: prefixes(&page.prefixes, encoding),
            contents: Some(page.objects.into_iter().map(|o| object(o, encoding, with_owner.clone())).collect()),
            delimiter: input.delimiter.map(|d| encoding.of(&d)),
            encoding_type: encoding.answer(),
            start_after: input.start_after.map(|s| encoding.of(&s)),
            ..Default::default()
        })
    }

    /// Markers are those of S3 in form: `key-marker` and `version-id-marker`, where the second is our row's place.
    pub(super) async fn versions(&self, req: S3Request<ListObjectVersionsInput>) -> Answer<ListObjectVersionsOutput> {
        let caller = Caller::of(&req)?;
        let input = req.input;
        let prefix = input.prefix.clone().unwrap_or_default();
        caller.list(&input.bucket, &prefix)?;
        let encoding = KeyEncoding::asked(input.encoding_type.as_ref());
        let after = match (&input.key_marker, &input.version_id_marker) {
            (Some(_), Some(token)) if !token.is_empty() => {
                Some(Place::parse(token).ok_or_else(|| s3_error!(InvalidArgument, "the version marker is not ours"))?)
            }
            // Past all versions of the key: none has an id below the least.
            (Some(key), _) if !key.is_empty() => Some(match Place::marker(key, &prefix, input.delimiter.as_deref()) {
                Place::Key(key) => Place::Version(key, i64::MIN),
                other => other,
            }),
            _ => None,
        };
        let limit = limit(input.max_keys)?;
        let query = Query {
            bucket: input.bucket.clone(),
            prefix,
            delimiter: input.delimiter.clone(),
            after,
            limit,
            versions: true,
        };
        let page = self.store.list(query).await?;
        let (next_key, next_version) = match &page.next {
            Some(place @ Place::Version(key, _)) => (Some(encoding.of(key)), Some(place.token())),
            Some(Place::Prefix(text) | Place::Key(text)) => (Some(encoding.of(text)), None),
            None => (None, None),
        };
        let (mut versions, mut markers) = (Vec::new(), Vec::new());
        for info in page.objects {
            let version_id = Some(info.version.clone().unwrap_or_else(|| "null".into()));
            let (key, last_modified) = (Some(encoding.of(&info.key)), Some(timestamp(info.modified)));
            if info.delete_marker {
                markers.push(DeleteMarkerEntry {
                    is_latest: Some(info.latest),
                    key,
                    last_modified,
                    owner: Some(owner()),
                    version_id,
                });
            } else {
                versions.push(ObjectVersion {
                    e_tag: Some(etag(&info.etag)),
                    is_latest: Some(info.latest),
                    key,
                    last_modified,
                    owner: Some(owner()),
                    size: Some(size(info.size)),
                    storage_class: Some(ObjectVersionStorageClass::from_static(ObjectVersionStorageClass::STANDARD)),
                    version_id,
                    ..Default::default()
                });
            }
        }
        answer(ListObjectVersionsOutput {
            name: Some(input.bucket),
            prefix: Some(encoding.of(input.prefix.as_deref().unwrap_or_default())),
            max_keys: Some(count(limit)),
            is_truncated: Some(page.next.is_some()),
            common_prefixes: prefixes(&page.prefixes, encoding),
            delete_markers: (!markers.is_empty()).then_some(markers),
            versions: (!versions.is_empty()).then_some(versions),
            delimiter: input.delimiter.map(|d| encoding.of(&d)),
            encoding_type: encoding.answer(),
            key_marker: Some(encoding.of(input.key_marker.as_deref().unwrap_or_default())),
            version_id_marker: input.version_id_marker,
            next_key_marker: next_key,
            next_version_id_marker: next_version,
            ..Default::default()
        })
    }
}

//! Operations on single objects.

use super::{
    Answer, Protocol,
    access::Caller,
    answer,
    convert::{
        attributes, checksum_type, checksums_of, condition, declared, etag, expires, not_modified, read_condition,
        size, tags_header, timestamp, user_metadata, wanted, with_checksums,
    },
};
use crate::{
    Error,
    objects::{ByteRange, Copy, Found, Put, ReadCondition, ReadVerdict},
    reading::ContentStream,
    store::{Condition, ObjectInfo},
};
use bytes::Bytes;
use futures::{Stream, StreamExt};
use http::{HeaderMap, HeaderValue, StatusCode};
use s3s::{
    S3Error, S3Request, S3Response, S3Result,
    dto::*,
    s3_error,
    stream::{ByteStream, RemainingLength},
};
use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

/// After a refusal the rest of a small body is read and dropped, so that the client sees the answer and not a
/// connection closed under its hands.
const DRAIN: usize = 16 * 1024 * 1024;
const DRAIN_TIME: Duration = Duration::from_secs(10);

/// A content stream as s3s wants it.
struct Body(ContentStream);

impl Stream for Body {
    type Item = Result<Bytes, s3s::StdError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Pin::new(&mut self.0).poll_next(context).map_err(|e| Box::new(e) as s3s::StdError)
    }
}

impl ByteStream for Body {
    fn remaining_length(&self) -> RemainingLength {
        RemainingLength::new_exact(usize::try_from(self.0.remaining()).unwrap_or(usize::MAX))
    }
}

/// A request body that can be read on after the store has given up on it.
pub(super) struct Incoming {
    body: Option<StreamingBlob>,
    /// The client waits for leave to send (`Expect: 100-continue`), which reading gives.
    waiting: bool,
}

impl Incoming {
    pub fn new(body: Option<StreamingBlob>, headers: &HeaderMap) -> Self {
        Self { body, waiting: headers.contains_key(http::header::EXPECT) }
    }

    pub fn stream(&mut self) -> impl Stream<Item = Result<Bytes, s3s::StdError>> + Unpin + Send + '_ {
        futures::stream::poll_fn(|context| match &mut self.body {
            Some(blob) => {
                self.waiting = false;
                Pin::new(blob).poll_next(context)
            }
            None => Poll::Ready(None),
        })
    }

    pub async fn drain(mut self) {
        if self.waiting {
            return;
        }
        let rest = async {
            let mut left = DRAIN;
            while let Some(Ok(chunk)) = self.stream().next().await {
                match left.checked_sub(chunk.len()) {
                    Some(n) => left = n,
                    None => break,
                }
            }
        };
        // Out of time is as good as drained: the answer goes out either way.
        drop(tokio::time::timeout(DRAIN_TIME, rest).await);
    }
}

/// Who refuses encryption with customer keys says so rather than storing plain text.
macro_rules! refuse_customer_keys {
    ($input:expr) => {
        if $input.sse_customer_algorithm.is_some() || $input.sse_customer_key.is_some() {
            return Err(s3_error!(NotImplemented, "encryption with customer-provided keys is not supported"));
        }
    };
}
pub(super) use refuse_customer_keys;

struct Asked {
    bucket: String,
    key: String,
    version: Option<String>,
    range: Option<ByteRange>,
    condition: ReadCondition,
}

fn byte_range(range: Option<Range>, part: Option<i32>) -> S3Result<Option<ByteRange>> {
    match (range, part) {
        (Some(_), Some(_)) => Err(s3_error!(InvalidRequest, "ask for a range or a part number, not both")),
        (Some(Range::Int { first, last }), None) => Ok(Some(ByteRange::From { first, last })),
        (Some(Range::Suffix { length }), None) => Ok(Some(ByteRange::Last(length))),
        (None, Some(part)) => Ok(Some(ByteRange::Part(part))),
        (None, None) => Ok(None),
    }
}

fn content_range(found: &Found) -> String {
    format!("bytes {}-{}/{}", found.range.start, found.range.end.saturating_sub(1), found.info.size)
}

/// `partNumber` answers 206 with the part's range; an object of no bytes has none to name.
fn is_partial(range: Option<ByteRange>, found: &Found) -> bool {
    range.is_some() && found.info.size > 0
}

fn checked(condition: &ReadCondition, info: &ObjectInfo) -> Result<(), S3Error> {
    match condition.verdict(info) {
        ReadVerdict::Proceed => Ok(()),
        ReadVerdict::NotModified => Err(not_modified(info)),
        ReadVerdict::Failed => Err(Error::PreconditionFailed.into()),
    }
}

/// An error of the store or of the protocol, for closures that can meet both.
struct Either(S3Error);

impl From<Error> for Either {
    fn from(error: Error) -> Self {
        Self(error.into())
    }
}

impl From<kfbox_db::Error> for Either {
    fn from(error: kfbox_db::Error) -> Self {
        Self(Error::from(error).into())
    }
}

impl Protocol {
    pub(super) async fn put(&self, req: S3Request<PutObjectInput>) -> Answer<PutObjectOutput> {
        let caller = Caller::of(&req)?;
        let S3Request { mut input, headers, trailing_headers, .. } = req;
        let mut body = Incoming::new(input.body.take(), &headers);
        let stored = async {
            caller.write(&input.bucket, &input.key)?;
            refuse_customer_keys!(input);
            let length = input.content_length.and_then(|n| u64::try_from(n).ok());
            let sums = checksums_of!(input);
            let put = Put {
                attributes: attributes!(input),
                tags: tags_header(input.tagging.as_deref())?,
                condition: condition(input.if_match.take(), input.if_none_match.take()),
                length,
                algorithms: wanted(&sums, &headers, input.checksum_algorithm.as_ref()),
                bucket: std::mem::take(&mut input.bucket),
                key: std::mem::take(&mut input.key),
            };
            let md5 = input.content_md5.take();
            let declared = || declared(sums, md5.as_deref(), trailing_headers.as_ref());
            Ok::<_, S3Error>(self.store.put(put, body.stream(), declared).await?)
        }
        .await;
        let info = match stored {
            Ok(info) => info,
            Err(error) => {
                body.drain().await;
                return Err(error);
            }
        };
        let output = PutObjectOutput {
            e_tag: Some(etag(&info.etag)),
            checksum_type: checksum_type(&info.attributes),
            version_id: info.version,
            ..Default::default()
        };
        answer(with_checksums!(output, &info.attributes.checksums))
    }

    async fn find(&self, caller: &Caller, asked: Asked) -> S3Result<Found> {
        caller.read(&asked.bucket, &asked.key)?;
        let Asked { bucket, key, version, range, condition } = asked;
        let check = move |info: &ObjectInfo| checked(&condition, info).map_err(Either);
        self.store.get(&bucket, &key, version.as_deref(), range, check).await.map_err(|Either(error)| error)
    }

    pub(super) async fn get(&self, req: S3Request<GetObjectInput>) -> Answer<GetObjectOutput> {
        let caller = Caller::of(&req)?;
        let input = req.input;
        let range = byte_range(input.range, input.part_number)?;
        let asked = Asked {
            bucket: input.bucket,
            key: input.key,
            version: input.version_id,
            range,
            condition: read_condition(
                input.if_match,
                input.if_none_match,
                input.if_modified_since,
                input.if_unmodified_since,
            ),
        };
        let found = self.find(&caller, asked).await?;
        let partial = is_partial(range, &found);
        let content_range = partial.then(|| content_range(&found));
        let Found { info, range: bytes, parts, body } = found;
        let kept = &info.attributes;
        let mut output = GetObjectOutput {
            accept_ranges: Some("bytes".into()),
            cache_control: kept.cache_control.clone(),
            content_disposition: kept.content_disposition.clone(),
            content_encoding: kept.content_encoding.clone(),
            content_language: kept.content_language.clone(),
            content_length: Some(size(bytes.end - bytes.start)),
            content_range,
            content_type: Some(content_type(kept.content_type.clone())),
            e_tag: Some(etag(&info.etag)),
            expires: expires(kept),
            last_modified: Some(timestamp(info.modified)),
            metadata: user_metadata(kept),
            parts_count: matches!(range, Some(ByteRange::Part(_))).then(|| i32::try_from(parts).unwrap_or(i32::MAX)),
            tag_count: tag_count(&info),
            version_id: info.version.clone(),
            body: Some(StreamingBlob::new(Body(body))),
            ..Default::default()
        };
        // A checksum is of the whole object; a client that verifies would hold a part of it against it.
        if input.checksum_mode.is_some() && !partial {
            output.checksum_type = checksum_type(kept);
            output = with_checksums!(output, &kept.checksums);
        }
        let overrides = [
            (http::header::CACHE_CONTROL, input.response_cache_control),
            (http::header::CONTENT_DISPOSITION, input.response_content_disposition),
            (http::header::CONTENT_ENCODING, input.response_content_encoding),
            (http::header::CONTENT_LANGUAGE, input.response_content_language),
            (http::header::CONTENT_TYPE, input.response_content_type),
        ];
        let mut headers = HeaderMap::new();
        for (name, value) in overrides {
            if let Some(value) = value {
                let value = HeaderValue::from_str(&value)
                    .map_err(|_| s3_error!(InvalidArgument, "{name} cannot be overridden with that"))?;
                headers.insert(name, value);
            }
        }
        let mut response = S3Response::with_headers(output, headers);
        response.status = partial.then_some(StatusCode::PARTIAL_CONTENT);
        Ok(response)
    }

    pub(super) async fn head(&self, req: S3Request<HeadObjectInput>) -> Answer<HeadObjectOutput> {
        let caller = Caller::of(&req)?;
        let input = req.input;
        let range = byte_range(input.range, input.part_number)?;
        let asked = Asked {
            bucket: input.bucket,
            key: input.key,
            version: input.version_id,
            range,
            condition: read_condition(
                input.if_match,
                input.if_none_match,
                input.if_modified_since,
                input.if_unmodified_since,
            ),
        };
        caller.read(&asked.bucket, &asked.key)?;
        let (info, parts) = self.store.head(&asked.bucket, &asked.key, asked.version.as_deref()).await?;
        checked(&asked.condition, &info)?;
        let (bytes, partial) = match range {
            Some(_) => {
                let found = self.find(&caller, asked).await?;
                (found.range.clone(), is_partial(range, &found).then(|| content_range(&found)))
            }
            None => (0..info.size, None),
        };
        let kept = &info.attributes;
        let mut output = HeadObjectOutput {
            accept_ranges: Some("bytes".into()),
            cache_control: kept.cache_control.clone(),
            content_disposition: kept.content_disposition.clone(),
            content_encoding: kept.content_encoding.clone(),
            content_language: kept.content_language.clone(),
            content_length: Some(size(bytes.end - bytes.start)),
            content_range: partial.clone(),
            content_type: Some(content_type(kept.content_type.clone())),
            e_tag: Some(etag(&info.etag)),
            expires: expires(kept),
            last_modified: Some(timestamp(info.modified)),
            metadata: user_metadata(kept),
            parts_count: matches!(range, Some(ByteRange::Part(_))).then(|| i32::try_from(parts).unwrap_or(i32::MAX)),
            version_id: info.version.clone(),
            ..Default::default()
        };
        if input.checksum_mode.is_some() && partial.is_none() {
            output.checksum_type = checksum_type(kept);
            output = with_checksums!(output, &kept.checksums);
        }
        let mut response = S3Response::new(output);
        response.status = partial.map(|_| StatusCode::PARTIAL_CONTENT);
        Ok(response)
    }

    pub(super) async fn copy(&self, req: S3Request<CopyObjectInput>) -> Answer<CopyObjectOutput> {
        let caller = Caller::of(&req)?;
        let mut input = req.input;
        refuse_customer_keys!(input);
        let (from_bucket, from_key, from_version) = copy_source(input.copy_source.clone())?;
        caller.write(&input.bucket, &input.key)?;
        caller.read(&from_bucket, &from_key)?;
        let replace = |directive: Option<&str>, value| directive == Some(value);
        let new = replace(input.metadata_directive.as_ref().map(MetadataDirective::as_str), MetadataDirective::REPLACE);
        let retag = replace(input.tagging_directive.as_ref().map(TaggingDirective::as_str), TaggingDirective::REPLACE);
        let copy = Copy {
            from_bucket,
            from_key,
            from_version: from_version.clone(),
            source: read_condition(
                input.copy_source_if_match.take(),
                input.copy_source_if_none_match.take(),
                input.copy_source_if_modified_since.take(),
                input.copy_source_if_unmodified_since.take(),
            ),
            attributes: new.then(|| attributes!(input)),
            tags: if retag { Some(tags_header(input.tagging.as_deref())?) } else { None },
            condition: Condition::default(),
            bucket: input.bucket,
            key: input.key,
        };
        let info = self.store.copy(copy).await?;
        let result = CopyObjectResult {
            e_tag: Some(etag(&info.etag)),
            last_modified: Some(timestamp(info.modified)),
            checksum_type: checksum_type(&info.attributes),
            ..Default::default()
        };
        answer(CopyObjectOutput {
            copy_object_result: Some(with_checksums!(result, &info.attributes.checksums)),
            copy_source_version_id: from_version,
            version_id: info.version,
            ..Default::default()
        })
    }

    pub(super) async fn delete(&self, req: S3Request<DeleteObjectInput>) -> Answer<DeleteObjectOutput> {
        let caller = Caller::of(&req)?;
        let input = req.input;
        caller.write(&input.bucket, &input.key)?;
        let condition = condition(input.if_match, None);
        let done = self.store.delete(&input.bucket, &input.key, input.version_id.as_deref(), condition).await?;
        answer(DeleteObjectOutput {
            delete_marker: done.delete_marker.then_some(true),
            version_id: done.version,
            ..Default::default()
        })
    }

    pub(super) async fn delete_many(&self, req: S3Request<DeleteObjectsInput>) -> Answer<DeleteObjectsOutput> {
        let caller = Caller::of(&req)?;
        let input = req.input;
        caller.see(&input.bucket)?;
        if input.delete.objects.len() > crate::store::MAX_LIST {
            return Err(s3_error!(MalformedXML, "at most 1000 objects are deleted at a time"));
        }
        self.store.bucket(&input.bucket).await?;
        let quiet = input.delete.quiet.unwrap_or_default();
        let bucket = &input.bucket;
        // All at once, so that they share commits.
        let outcomes = input.delete.objects.into_iter().map(|object| async {
            let outcome = if caller.may_write(bucket, &object.key) {
                let condition = condition(object.e_tag.clone().map(ETagCondition::ETag), None);
                let version = object.version_id.as_deref();
                self.store.delete(bucket, &object.key, version, condition).await.map_err(S3Error::from)
            } else {
                Err(s3_error!(AccessDenied, "this access key may not delete that"))
            };
            (object, outcome)
        });
        let (mut deleted, mut errors) = (Vec::new(), Vec::new());
        for (object, outcome) in futures::future::join_all(outcomes).await {
            match outcome {
                Ok(done) => deleted.push(DeletedObject {
                    delete_marker: done.delete_marker.then_some(true),
                    delete_marker_version_id: done.version.filter(|_| done.delete_marker),
                    version_id: object.version_id,
                    key: Some(object.key),
                }),
                Err(error) => errors.push(s3s::dto::Error {
                    code: Some(error.code().as_str().to_owned()),
                    message: error.message().map(str::to_owned),
                    version_id: object.version_id,
                    key: Some(object.key),
                }),
            }
        }
        answer(DeleteObjectsOutput {
            deleted: (!quiet && !deleted.is_empty()).then_some(deleted),
            errors: (!errors.is_empty()).then_some(errors),
            ..Default::default()
        })
    }

    pub(super) async fn attributes(
        &self,
        req: S3Request<GetObjectAttributesInput>,
    ) -> Answer<GetObjectAttributesOutput> {
        let caller = Caller::of(&req)?;
        let input = req.input;
        caller.read(&input.bucket, &input.key)?;
        let (info, parts) = self.store.head(&input.bucket, &input.key, input.version_id.as_deref()).await?;
        let asked = |name: &str| input.object_attributes.iter().any(|a| a.as_str().contains(name));
        let checksum = Checksum { checksum_type: checksum_type(&info.attributes), ..Default::default() };
        answer(GetObjectAttributesOutput {
            checksum: asked("Checksum").then(|| with_checksums!(checksum, &info.attributes.checksums)),
            e_tag: asked("ETag").then(|| etag(&info.etag)),
            last_modified: Some(timestamp(info.modified)),
            object_parts: (asked("ObjectParts") && info.etag.contains('-')).then(|| GetObjectAttributesParts {
                total_parts_count: i32::try_from(parts).ok(),
                ..Default::default()
            }),
            object_size: asked("ObjectSize").then(|| size(info.size)),
            storage_class: asked("StorageClass").then(|| StorageClass::from_static(StorageClass::STANDARD)),
            version_id: info.version,
            ..Default::default()
        })
    }
}

pub(super) fn copy_source(source: CopySource) -> S3Result<(String, String, Option<String>)> {
    match source {
        CopySource::Bucket { bucket, key, version_id } => Ok((bucket.into(), key.into(), version_id.map(Into::into))),
        _ => Err(s3_error!(NotImplemented, "a copy source is a bucket and a key; access points are not supported")),
    }
}

/// S3's own default.
fn content_type(kept: Option<String>) -> String {
    kept.unwrap_or_else(|| "binary/octet-stream".into())
}

fn tag_count(info: &ObjectInfo) -> Option<i32> {
    (!info.tags.is_empty()).then(|| i32::try_from(info.tags.len()).unwrap_or(i32::MAX))
}

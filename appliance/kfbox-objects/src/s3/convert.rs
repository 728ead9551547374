//! Between the store's words and the protocol's.

use crate::{
    Error,
    digest::{Algorithm, Checksums},
    objects::ReadCondition,
    store::{Attributes, Condition, EtagMatch, ObjectInfo, from_millis},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use http::{HeaderMap, StatusCode};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use s3s::{S3Error, S3ErrorCode, TrailingHeaders, dto, s3_error};
use std::{borrow::Cow, time::SystemTime};

/// MinIO's code for it; S3 itself has none, since its disks do not fill.
const STORAGE_FULL: &str = "XMinioStorageFull";

impl From<Error> for S3Error {
    fn from(error: Error) -> Self {
        let code = match &error {
            Error::NoSuchBucket(_) => S3ErrorCode::NoSuchBucket,
            Error::BucketExists(_) => S3ErrorCode::BucketAlreadyOwnedByYou,
            Error::BucketNotEmpty(_) => S3ErrorCode::BucketNotEmpty,
            Error::InvalidBucketName(_) => S3ErrorCode::InvalidBucketName,
            Error::NoSuchKey { .. } => S3ErrorCode::NoSuchKey,
            Error::NoSuchVersion { .. } => S3ErrorCode::NoSuchVersion,
            Error::DeleteMarker => S3ErrorCode::MethodNotAllowed,
            Error::NoSuchUpload(_) => S3ErrorCode::NoSuchUpload,
            Error::InvalidPart(_) => S3ErrorCode::InvalidPart,
            Error::InvalidPartOrder => S3ErrorCode::InvalidPartOrder,
            Error::PartTooSmall { .. } => S3ErrorCode::EntityTooSmall,
            Error::TooLarge { .. } => S3ErrorCode::EntityTooLarge,
            Error::Incomplete { .. } => S3ErrorCode::IncompleteBody,
            Error::BadDigest(_) => S3ErrorCode::BadDigest,
            Error::PreconditionFailed => S3ErrorCode::PreconditionFailed,
            Error::InvalidRange { .. } => S3ErrorCode::InvalidRange,
            Error::MetadataTooLarge { .. } => S3ErrorCode::MetadataTooLarge,
            Error::InvalidArgument(_) => S3ErrorCode::InvalidArgument,
            Error::StorageFull => S3ErrorCode::Custom(STORAGE_FULL.into()),
            Error::Body(source) => return body_error(&source.to_string()),
            Error::Closed => S3ErrorCode::ServiceUnavailable,
            Error::Io(_) | Error::Db(_) | Error::Corrupt(_) => {
                tracing::error!(%error, "the object store failed a request");
                return s3_error!(InternalError, "the object store could not do this; its log says why");
            }
        };
        let full = matches!(error, Error::StorageFull);
        let mut answer = S3Error::with_message(code, error.to_string());
        if full {
            answer.set_status_code(StatusCode::INSUFFICIENT_STORAGE);
        }
        answer
    }
}

/// s3s checks the body's signature and hash as it passes, and reports them as errors of the stream, told apart only by
/// their text.
fn body_error(text: &str) -> S3Error {
    if text.contains("Sha256Mismatch") {
        return S3Error::with_message(
            S3ErrorCode::Custom("XAmzContentSHA256Mismatch".into()),
            "the body differs from its x-amz-content-sha256",
        )
        .with_status(StatusCode::BAD_REQUEST);
    }
    if text.contains("SignatureMismatch") {
        return s3_error!(SignatureDoesNotMatch, "a chunk of the body is not signed as it should be");
    }
    s3_error!(IncompleteBody, "the body could not be read to its end: {text}")
}

trait WithStatus {
    fn with_status(self, status: StatusCode) -> Self;
}

impl WithStatus for S3Error {
    fn with_status(mut self, status: StatusCode) -> Self {
        self.set_status_code(status);
        self
    }
}

pub(super) fn timestamp(time: SystemTime) -> dto::Timestamp {
    dto::Timestamp::from(time)
}

pub(super) fn millis(timestamp: dto::Timestamp) -> i64 {
    let nanos = time::OffsetDateTime::from(timestamp).unix_timestamp_nanos();
    i64::try_from(nanos / 1_000_000).unwrap_or_default()
}

pub(super) fn etag(value: &str) -> dto::ETag {
    dto::ETag::Strong(value.to_owned())
}

fn etag_match(condition: dto::ETagCondition) -> EtagMatch {
    match condition {
        dto::ETagCondition::Any => EtagMatch::Any,
        dto::ETagCondition::ETag(tag) => EtagMatch::Tag(tag.into_value()),
    }
}

pub(super) fn condition(if_match: Option<dto::ETagCondition>, if_none_match: Option<dto::ETagCondition>) -> Condition {
    Condition { if_match: if_match.map(etag_match), if_none_match: if_none_match.map(etag_match) }
}

pub(super) fn read_condition(
    if_match: Option<dto::ETagCondition>,
    if_none_match: Option<dto::ETagCondition>,
    if_modified_since: Option<dto::Timestamp>,
    if_unmodified_since: Option<dto::Timestamp>,
) -> ReadCondition {
    ReadCondition {
        etag: condition(if_match, if_none_match),
        if_modified_since: if_modified_since.map(millis),
        if_unmodified_since: if_unmodified_since.map(millis),
    }
}

/// The answer to a condition that holds against the client's cached copy.
pub(super) fn not_modified(info: &ObjectInfo) -> S3Error {
    let mut error = S3Error::new(S3ErrorCode::NotModified);
    let mut headers = HeaderMap::new();
    if let Ok(value) = format!("\"{}\"", info.etag).parse() {
        headers.insert(http::header::ETAG, value);
    }
    error.set_headers(headers);
    error
}

/// The fields that put, copy and create-upload share.
macro_rules! attributes {
    ($input:expr) => {
        $crate::store::Attributes {
            content_type: $input.content_type.take(),
            content_encoding: $crate::s3::convert::content_encoding($input.content_encoding.take()),
            content_disposition: $input.content_disposition.take(),
            content_language: $input.content_language.take(),
            cache_control: $input.cache_control.take(),
            expires: $input.expires.take().map($crate::s3::convert::millis),
            user: $input.metadata.take().unwrap_or_default().into_iter().collect(),
            ..$crate::store::Attributes::default()
        }
    };
}
pub(super) use attributes;

/// `aws-chunked` is how the body travelled, not how the object is encoded.
pub(super) fn content_encoding(value: Option<String>) -> Option<String> {
    let kept: Vec<&str> =
        value.as_deref()?.split(',').map(str::trim).filter(|e| !e.is_empty() && *e != "aws-chunked").collect();
    (!kept.is_empty()).then(|| kept.join(", "))
}

pub(super) fn user_metadata(attributes: &Attributes) -> Option<dto::Metadata> {
    (!attributes.user.is_empty()).then(|| attributes.user.clone().into_iter().collect())
}

pub(super) fn expires(attributes: &Attributes) -> Option<dto::Timestamp> {
    attributes.expires.map(|ms| timestamp(from_millis(ms)))
}

pub(super) fn checksum_type(attributes: &Attributes) -> Option<dto::ChecksumType> {
    attributes.checksums.algorithms().next()?;
    let kind = if attributes.full_checksum { dto::ChecksumType::FULL_OBJECT } else { dto::ChecksumType::COMPOSITE };
    Some(dto::ChecksumType::from_static(kind))
}

/// The five checksum fields of an output, from `$sums`.
macro_rules! with_checksums {
    ($output:expr, $sums:expr) => {{
        let (mut output, sums) = ($output, $sums);
        output.checksum_crc32 = sums.crc32.clone();
        output.checksum_crc32c = sums.crc32c.clone();
        output.checksum_crc64nvme = sums.crc64nvme.clone();
        output.checksum_sha1 = sums.sha1.clone();
        output.checksum_sha256 = sums.sha256.clone();
        output
    }};
}
pub(super) use with_checksums;

/// The checksums that an input carries in its headers.
macro_rules! checksums_of {
    ($input:expr) => {
        $crate::digest::Checksums {
            crc32: $input.checksum_crc32.clone(),
            crc32c: $input.checksum_crc32c.clone(),
            crc64nvme: $input.checksum_crc64nvme.clone(),
            sha1: $input.checksum_sha1.clone(),
            sha256: $input.checksum_sha256.clone(),
        }
    };
}
pub(super) use checksums_of;

/// Which checksums to compute: those in headers, those that the trailer will bring, and the one that the SDK names.
pub(super) fn wanted(
    declared: &Checksums,
    headers: &HeaderMap,
    named: Option<&dto::ChecksumAlgorithm>,
) -> Vec<Algorithm> {
    let trailer: Vec<&str> = headers.get_all("x-amz-trailer").iter().filter_map(|v| v.to_str().ok()).collect();
    let in_trailer =
        |a: Algorithm| trailer.iter().flat_map(|t| t.split(',')).any(|t| t.trim().eq_ignore_ascii_case(a.header()));
    Algorithm::ALL
        .into_iter()
        .filter(|a| declared.get(*a).is_some() || in_trailer(*a) || named.is_some_and(|n| n.as_str() == a.name()))
        .collect()
}

/// The digests to hold the body against, once it and its trailer are read.
pub(super) fn declared(
    mut checksums: Checksums,
    md5: Option<&str>,
    trailer: Option<&TrailingHeaders>,
) -> Result<(Option<[u8; 16]>, Checksums), Error> {
    if let Some(headers) = trailer.and_then(TrailingHeaders::take) {
        for algorithm in Algorithm::ALL {
            if let Some(value) = headers.get(algorithm.header()).and_then(|v| v.to_str().ok()) {
                checksums.set(algorithm, value.trim().to_owned());
            }
        }
    }
    let md5 = md5
        .map(|text| {
            let bytes = BASE64_STANDARD.decode(text).ok().and_then(|b| b.try_into().ok());
            bytes.ok_or_else(|| Error::InvalidArgument("Content-MD5 is not the base64 of 16 bytes".into()))
        })
        .transpose()?;
    Ok((md5, checksums))
}

/// Leaves `/` as it is; clients undo it as they would a form field, so a space must not become a plus sign here.
const LISTED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');

/// Keys in listings, encoded if the client asked for it.
#[derive(Clone, Copy)]
pub(super) struct KeyEncoding(bool);

impl KeyEncoding {
    pub fn asked(encoding: Option<&dto::EncodingType>) -> Self {
        Self(encoding.is_some_and(|e| e.as_str() == dto::EncodingType::URL))
    }

    pub fn always() -> Self {
        Self(true)
    }

    pub fn of(self, text: &str) -> String {
        if self.0 { utf8_percent_encode(text, LISTED).to_string() } else { text.to_owned() }
    }

    pub fn answer(self) -> Option<dto::EncodingType> {
        self.0.then(|| dto::EncodingType::from_static(dto::EncodingType::URL))
    }
}

/// Tags as S3 bounds them: 10 an object, names of 128 and values of 256 characters, no name twice.
pub(super) fn check_tags(tags: Vec<(String, String)>) -> Result<Vec<(String, String)>, S3Error> {
    let invalid = |why: String| Err(s3_error!(InvalidTag, "{why}"));
    if tags.len() > 10 {
        return Err(s3_error!(InvalidTag, "an object has at most 10 tags"));
    }
    for (n, (key, value)) in tags.iter().enumerate() {
        if key.is_empty() || key.chars().count() > 128 || value.chars().count() > 256 {
            return invalid(format!("the tag {key:?} or its value has a wrong length"));
        }
        if tags[..n].iter().any(|(other, _)| other == key) {
            return invalid(format!("the tag {key:?} is given twice"));
        }
    }
    Ok(tags)
}

/// The `x-amz-tagging` header.
pub(super) fn tags_header(header: Option<&str>) -> Result<Vec<(String, String)>, S3Error> {
    let decode = |text: &str| -> Result<String, S3Error> {
        let spaced = text.replace('+', " ");
        percent_encoding::percent_decode_str(&spaced)
            .decode_utf8()
            .map(Cow::into_owned)
            .map_err(|_| s3_error!(InvalidArgument, "x-amz-tagging is not UTF-8"))
    };
    let pairs = header.unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
    let tags = pairs.map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        Ok((decode(key)?, decode(value)?))
    });
    check_tags(tags.collect::<Result<_, S3Error>>()?)
}

pub(super) fn tag_set(tags: Vec<(String, String)>) -> dto::TagSet {
    tags.into_iter().map(|(key, value)| dto::Tag { key: Some(key), value: Some(value) }).collect()
}

pub(super) fn tags_of(set: dto::TagSet) -> Result<Vec<(String, String)>, S3Error> {
    check_tags(set.into_iter().map(|t| (t.key.unwrap_or_default(), t.value.unwrap_or_default())).collect())
}

pub(super) fn size(n: u64) -> i64 {
    crate::store::to_i64(n)
}

//! Multipart uploads.

use super::{
    Answer, Protocol,
    access::Caller,
    answer,
    convert::{
        KeyEncoding, attributes, checksum_type, checksums_of, condition, declared, etag, read_condition, size,
        tags_header, timestamp, wanted, with_checksums,
    },
    object::{Incoming, copy_source, refuse_customer_keys},
};
use crate::{
    Error,
    digest::Algorithm,
    multipart::{Completion, ListedPart, Part as StoredPart, Upload},
    objects::{ByteRange, ReadVerdict},
    store::{MAX_LIST, MAX_PUT},
};
use futures::StreamExt;
use s3s::{S3Error, S3Request, S3Result, dto::*, s3_error};

/// The checksum an upload asks for, and whether it is to be of the whole object. CRC64NVME only knows the whole.
fn checksum(algorithm: Option<&ChecksumAlgorithm>, kind: Option<&ChecksumType>) -> S3Result<Option<(Algorithm, bool)>> {
    let Some(algorithm) = algorithm else { return Ok(None) };
    let name = algorithm.as_str();
    let algorithm =
        Algorithm::parse(name).ok_or_else(|| s3_error!(InvalidRequest, "{name} is not a checksum algorithm here"))?;
    let asked = kind.map(ChecksumType::as_str);
    match (algorithm, asked) {
        (Algorithm::Crc64Nvme, Some(ChecksumType::COMPOSITE)) => {
            Err(s3_error!(InvalidRequest, "CRC64NVME is always of the full object"))
        }
        (Algorithm::Sha1 | Algorithm::Sha256, Some(ChecksumType::FULL_OBJECT)) => {
            Err(s3_error!(InvalidRequest, "{name} of the full object cannot be told from its parts"))
        }
        (Algorithm::Crc64Nvme, _) | (_, Some(ChecksumType::FULL_OBJECT)) => Ok(Some((algorithm, true))),
        _ => Ok(Some((algorithm, false))),
    }
}

fn algorithm_of(upload: &Upload) -> Option<ChecksumAlgorithm> {
    upload.algorithm.map(|a| ChecksumAlgorithm::from_static(a.name()))
}

fn type_of(upload: &Upload) -> Option<ChecksumType> {
    let kind = if upload.full_checksum { ChecksumType::FULL_OBJECT } else { ChecksumType::COMPOSITE };
    upload.algorithm.map(|_| ChecksumType::from_static(kind))
}

fn limit(asked: Option<i32>) -> usize {
    asked.and_then(|n| usize::try_from(n).ok()).map_or(MAX_LIST, |n| n.clamp(1, MAX_LIST))
}

impl Protocol {
    pub(super) async fn create_upload(
        &self,
        req: S3Request<CreateMultipartUploadInput>,
    ) -> Answer<CreateMultipartUploadOutput> {
        let caller = Caller::of(&req)?;
        let mut input = req.input;
        caller.write(&input.bucket, &input.key)?;
        refuse_customer_keys!(input);
        let asked = checksum(input.checksum_algorithm.as_ref(), input.checksum_type.as_ref())?;
        let tags = tags_header(input.tagging.as_deref())?;
        let id = self.store.create_upload(&input.bucket, &input.key, attributes!(input), tags, asked).await?;
        let kind = |full| if full { ChecksumType::FULL_OBJECT } else { ChecksumType::COMPOSITE };
        answer(CreateMultipartUploadOutput {
            bucket: Some(input.bucket),
            key: Some(input.key),
            upload_id: Some(id),
            checksum_algorithm: asked.map(|(a, _)| ChecksumAlgorithm::from_static(a.name())),
            checksum_type: asked.map(|(_, full)| ChecksumType::from_static(kind(full))),
            ..Default::default()
        })
    }

    pub(super) async fn put_part(&self, req: S3Request<UploadPartInput>) -> Answer<UploadPartOutput> {
        let caller = Caller::of(&req)?;
        let S3Request { mut input, headers, trailing_headers, .. } = req;
        let mut body = Incoming::new(input.body.take(), &headers);
        let stored = async {
            caller.write(&input.bucket, &input.key)?;
            refuse_customer_keys!(input);
            let upload = self.store.upload(&input.bucket, &input.key, &input.upload_id).await?;
            let sums = checksums_of!(input);
            let algorithms = wanted(&sums, &headers, input.checksum_algorithm.as_ref());
            let length = input.content_length.and_then(|n| u64::try_from(n).ok());
            let declared = || declared(sums, input.content_md5.as_deref(), trailing_headers.as_ref());
            let part = self.store.put_part(&upload, input.part_number, length, algorithms, body.stream(), declared);
            Ok::<_, S3Error>(part.await?)
        }
        .await;
        match stored {
            Ok(part) => {
                let output = UploadPartOutput { e_tag: Some(etag(&part.etag())), ..Default::default() };
                answer(with_checksums!(output, &part.checksums))
            }
            Err(error) => {
                body.drain().await;
                Err(error)
            }
        }
    }

    pub(super) async fn copy_part(&self, req: S3Request<UploadPartCopyInput>) -> Answer<UploadPartCopyOutput> {
        let caller = Caller::of(&req)?;
        let mut input = req.input;
        refuse_customer_keys!(input);
        let (from_bucket, from_key, version) = copy_source(input.copy_source.clone())?;
        caller.write(&input.bucket, &input.key)?;
        caller.read(&from_bucket, &from_key)?;
        let upload = self.store.upload(&input.bucket, &input.key, &input.upload_id).await?;
        let range = match input.copy_source_range.as_deref().map(Range::parse) {
            None => None,
            Some(Ok(Range::Int { first, last: Some(last) })) => Some(ByteRange::From { first, last: Some(last) }),
            Some(_) => return Err(s3_error!(InvalidArgument, "x-amz-copy-source-range has the form bytes=first-last")),
        };
        let condition = read_condition(
            input.copy_source_if_match.take(),
            input.copy_source_if_none_match.take(),
            input.copy_source_if_modified_since.take(),
            input.copy_source_if_unmodified_since.take(),
        );
        let check = move |info: &crate::ObjectInfo| match condition.verdict(info) {
            ReadVerdict::Proceed => Ok(()),
            ReadVerdict::NotModified | ReadVerdict::Failed => Err(Error::PreconditionFailed),
        };
        let found = self.store.get(&from_bucket, &from_key, version.as_deref(), range, check).await?;
        let length = found.range.end - found.range.start;
        if length > MAX_PUT {
            return Err(Error::TooLarge { most: MAX_PUT }.into());
        }
        let body = found.body.map(|chunk| chunk.map_err(kfbox_base::BoxError::from));
        let declared = || Ok(Default::default());
        let part = self.store.put_part(&upload, input.part_number, Some(length), Vec::new(), body, declared).await?;
        let result = CopyPartResult {
            e_tag: Some(etag(&part.etag())),
            last_modified: Some(timestamp(part.modified)),
            ..Default::default()
        };
        answer(UploadPartCopyOutput {
            copy_part_result: Some(with_checksums!(result, &part.checksums)),
            copy_source_version_id: version,
            ..Default::default()
        })
    }

    pub(super) async fn complete_upload(
        &self,
        req: S3Request<CompleteMultipartUploadInput>,
    ) -> Answer<CompleteMultipartUploadOutput> {
        let caller = Caller::of(&req)?;
        let input = req.input;
        caller.write(&input.bucket, &input.key)?;
        let listed = input.multipart_upload.and_then(|m| m.parts).unwrap_or_default();
        let parts = listed.iter().map(|part| ListedPart {
            number: part.part_number.unwrap_or_default(),
            etag: part.e_tag.clone().map(ETag::into_value).unwrap_or_default(),
            checksums: checksums_of!(part),
        });
        let completion = Completion {
            parts: parts.collect(),
            condition: condition(input.if_match.clone(), input.if_none_match.clone()),
            checksums: checksums_of!(input),
            size: input.mpu_object_size.and_then(|n| u64::try_from(n).ok()),
        };
        let info = self.store.complete(&input.bucket, &input.key, &input.upload_id, completion).await?;
        let output = CompleteMultipartUploadOutput {
            location: Some(format!("/{}/{}", input.bucket, KeyEncoding::always().of(&input.key))),
            bucket: Some(input.bucket),
            key: Some(input.key),
            e_tag: Some(etag(&info.etag)),
            checksum_type: checksum_type(&info.attributes),
            version_id: info.version,
            ..Default::default()
        };
        answer(with_checksums!(output, &info.attributes.checksums))
    }

    pub(super) async fn parts(&self, req: S3Request<ListPartsInput>) -> Answer<ListPartsOutput> {
        let caller = Caller::of(&req)?;
        let input = req.input;
        caller.write(&input.bucket, &input.key)?;
        let upload = self.store.upload(&input.bucket, &input.key, &input.upload_id).await?;
        let limit = limit(input.max_parts);
        let mut parts = self.store.parts(&upload, input.part_number_marker.unwrap_or_default(), limit + 1).await?;
        let more = parts.len() > limit;
        parts.truncate(limit);
        let next = parts.last().map(|p| p.number);
        let shown = |part: StoredPart| {
            let shown = Part {
                e_tag: Some(etag(&part.etag())),
                last_modified: Some(timestamp(part.modified)),
                part_number: Some(part.number),
                size: Some(size(part.size)),
                ..Default::default()
            };
            with_checksums!(shown, &part.checksums)
        };
        answer(ListPartsOutput {
            bucket: Some(input.bucket),
            key: Some(input.key),
            upload_id: Some(input.upload_id),
            checksum_algorithm: algorithm_of(&upload),
            checksum_type: type_of(&upload),
            is_truncated: Some(more),
            max_parts: i32::try_from(limit).ok(),
            part_number_marker: Some(input.part_number_marker.unwrap_or_default()),
            next_part_number_marker: next,
            parts: Some(parts.into_iter().map(shown).collect()),
            storage_class: Some(StorageClass::from_static(StorageClass::STANDARD)),
            ..Default::default()
        })
    }

    pub(super) async fn uploads(
        &self,
        req: S3Request<ListMultipartUploadsInput>,
    ) -> Answer<ListMultipartUploadsOutput> {
        let caller = Caller::of(&req)?;
        let input = req.input;
        let prefix = input.prefix.clone().unwrap_or_default();
        caller.list(&input.bucket, &prefix)?;
        let encoding = KeyEncoding::asked(input.encoding_type.as_ref());
        if input.delimiter.as_deref().is_some_and(|d| !d.is_empty()) {
            return Err(s3_error!(NotImplemented, "uploads are listed without a delimiter here"));
        }
        let limit = limit(input.max_uploads);
        let after = (input.key_marker.clone().unwrap_or_default(), input.upload_id_marker.clone().unwrap_or_default());
        let mut found = self.store.uploads(&input.bucket, &prefix, after, limit + 1).await?;
        let more = found.len() > limit;
        found.truncate(limit);
        let last = found.last().filter(|_| more).map(|u| (encoding.of(&u.key), u.id.clone()));
        let (next_key_marker, next_upload_id_marker) = last.unzip();
        let uploads = found.into_iter().map(|upload| MultipartUpload {
            checksum_algorithm: algorithm_of(&upload),
            checksum_type: type_of(&upload),
            initiated: Some(timestamp(upload.created)),
            key: Some(encoding.of(&upload.key)),
            storage_class: Some(StorageClass::from_static(StorageClass::STANDARD)),
            upload_id: Some(upload.id.clone()),
            ..Default::default()
        });
        answer(ListMultipartUploadsOutput {
            uploads: Some(uploads.collect()),
            bucket: Some(input.bucket),
            encoding_type: encoding.answer(),
            is_truncated: Some(more),
            key_marker: input.key_marker.map(|k| encoding.of(&k)),
            max_uploads: i32::try_from(limit).ok(),
            next_key_marker,
            next_upload_id_marker,
            prefix: Some(encoding.of(&prefix)),
            upload_id_marker: input.upload_id_marker,
            ..Default::default()
        })
    }
}

//! The S3 operations. Operations absent here answer `NotImplemented`, which is s3s's default. Every operation asks its
//! [`access::Caller`] first; those on single objects are in `object.rs`, listings in `list.rs`, uploads in `upload.rs`.

mod access;
mod convert;
mod list;
mod object;
mod upload;

use crate::{credentials::Credentials, store::Store};
use access::{Caller, Gate};
use s3s::{
    S3, S3Request, S3Response, S3Result,
    config::{S3Config, StaticConfigProvider},
    dto::*,
    s3_error,
    service::{S3Service, S3ServiceBuilder},
};
use std::sync::Arc;

/// s3s holds the file of a browser's form upload in memory.
const MAX_FORM_FILE: u64 = 64 * 1024 * 1024;
/// The largest XML body is a complete-upload of ten thousand parts with checksums, or a thousand keys to delete.
const MAX_XML: usize = 4 * 1024 * 1024;

#[derive(Clone)]
struct Protocol {
    store: Store,
    region: String,
}

pub(crate) fn service(store: Store, credentials: Credentials, region: String) -> S3Service {
    let mut config = S3Config::default();
    config.post_object_max_file_size = MAX_FORM_FILE;
    config.xml_max_body_size = MAX_XML;
    let mut builder = S3ServiceBuilder::new(Protocol { store, region });
    builder.set_config(Arc::new(StaticConfigProvider::new(Arc::new(config))));
    // Access is asked only where authentication is set; both always are.
    builder.set_auth(credentials.clone());
    builder.set_access(Gate(credentials));
    builder.build()
}

type Answer<T> = S3Result<S3Response<T>>;

fn answer<T>(output: T) -> Answer<T> {
    Ok(S3Response::new(output))
}

#[async_trait::async_trait]
impl S3 for Protocol {
    async fn list_buckets(&self, req: S3Request<ListBucketsInput>) -> Answer<ListBucketsOutput> {
        self.buckets(req).await
    }

    async fn create_bucket(&self, req: S3Request<CreateBucketInput>) -> Answer<CreateBucketOutput> {
        Caller::of(&req)?.own(&req.input.bucket)?;
        self.store.create_bucket(&req.input.bucket).await?;
        answer(CreateBucketOutput { location: Some(format!("/{}", req.input.bucket)) })
    }

    async fn head_bucket(&self, req: S3Request<HeadBucketInput>) -> Answer<HeadBucketOutput> {
        Caller::of(&req)?.see(&req.input.bucket)?;
        self.store.bucket(&req.input.bucket).await?;
        answer(HeadBucketOutput { bucket_region: Some(self.region.clone()), ..Default::default() })
    }

    async fn delete_bucket(&self, req: S3Request<DeleteBucketInput>) -> Answer<DeleteBucketOutput> {
        Caller::of(&req)?.own(&req.input.bucket)?;
        self.store.delete_bucket(&req.input.bucket).await?;
        answer(DeleteBucketOutput::default())
    }

    async fn get_bucket_location(&self, req: S3Request<GetBucketLocationInput>) -> Answer<GetBucketLocationOutput> {
        Caller::of(&req)?.see(&req.input.bucket)?;
        self.store.bucket(&req.input.bucket).await?;
        // The first region is named by silence, as in S3.
        let named = (self.region != "us-east-1").then(|| BucketLocationConstraint::from(self.region.clone()));
        answer(GetBucketLocationOutput { location_constraint: named })
    }

    async fn get_bucket_versioning(
        &self,
        req: S3Request<GetBucketVersioningInput>,
    ) -> Answer<GetBucketVersioningOutput> {
        Caller::of(&req)?.see(&req.input.bucket)?;
        let bucket = self.store.bucket(&req.input.bucket).await?;
        let status = bucket.versioning.map(BucketVersioningStatus::from);
        answer(GetBucketVersioningOutput { status, ..Default::default() })
    }

    async fn put_bucket_versioning(
        &self,
        req: S3Request<PutBucketVersioningInput>,
    ) -> Answer<PutBucketVersioningOutput> {
        Caller::of(&req)?.own(&req.input.bucket)?;
        let enabled = match req.input.versioning_configuration.status.as_ref().map(BucketVersioningStatus::as_str) {
            Some(BucketVersioningStatus::ENABLED) => true,
            Some(BucketVersioningStatus::SUSPENDED) => false,
            _ => return Err(s3_error!(IllegalVersioningConfigurationException, "Status is Enabled or Suspended")),
        };
        self.store.set_versioning(&req.input.bucket, enabled).await?;
        answer(PutBucketVersioningOutput::default())
    }

    async fn put_object(&self, req: S3Request<PutObjectInput>) -> Answer<PutObjectOutput> {
        self.put(req).await
    }

    async fn get_object(&self, req: S3Request<GetObjectInput>) -> Answer<GetObjectOutput> {
        self.get(req).await
    }

    async fn head_object(&self, req: S3Request<HeadObjectInput>) -> Answer<HeadObjectOutput> {
        self.head(req).await
    }

    async fn copy_object(&self, req: S3Request<CopyObjectInput>) -> Answer<CopyObjectOutput> {
        self.copy(req).await
    }

    async fn delete_object(&self, req: S3Request<DeleteObjectInput>) -> Answer<DeleteObjectOutput> {
        self.delete(req).await
    }

    async fn delete_objects(&self, req: S3Request<DeleteObjectsInput>) -> Answer<DeleteObjectsOutput> {
        self.delete_many(req).await
    }

    async fn get_object_attributes(
        &self,
        req: S3Request<GetObjectAttributesInput>,
    ) -> Answer<GetObjectAttributesOutput> {
        self.attributes(req).await
    }

    async fn get_object_tagging(&self, req: S3Request<GetObjectTaggingInput>) -> Answer<GetObjectTaggingOutput> {
        let caller = Caller::of(&req)?;
        let input = req.input;
        caller.read(&input.bucket, &input.key)?;
        let (info, _) = self.store.head(&input.bucket, &input.key, input.version_id.as_deref()).await?;
        answer(GetObjectTaggingOutput { tag_set: convert::tag_set(info.tags), version_id: info.version })
    }

    async fn put_object_tagging(&self, req: S3Request<PutObjectTaggingInput>) -> Answer<PutObjectTaggingOutput> {
        let caller = Caller::of(&req)?;
        let input = req.input;
        caller.write(&input.bucket, &input.key)?;
        let tags = convert::tags_of(input.tagging.tag_set)?;
        let info = self.store.set_tags(&input.bucket, &input.key, input.version_id.as_deref(), tags).await?;
        answer(PutObjectTaggingOutput { version_id: info.version })
    }

    async fn delete_object_tagging(
        &self,
        req: S3Request<DeleteObjectTaggingInput>,
    ) -> Answer<DeleteObjectTaggingOutput> {
        let caller = Caller::of(&req)?;
        let input = req.input;
        caller.write(&input.bucket, &input.key)?;
        let info = self.store.set_tags(&input.bucket, &input.key, input.version_id.as_deref(), Vec::new()).await?;
        answer(DeleteObjectTaggingOutput { version_id: info.version })
    }

    async fn list_objects(&self, req: S3Request<ListObjectsInput>) -> Answer<ListObjectsOutput> {
        self.list_v1(req).await
    }

    async fn list_objects_v2(&self, req: S3Request<ListObjectsV2Input>) -> Answer<ListObjectsV2Output> {
        self.list_v2(req).await
    }

    async fn list_object_versions(&self, req: S3Request<ListObjectVersionsInput>) -> Answer<ListObjectVersionsOutput> {
        self.versions(req).await
    }

    async fn create_multipart_upload(
        &self,
        req: S3Request<CreateMultipartUploadInput>,
    ) -> Answer<CreateMultipartUploadOutput> {
        self.create_upload(req).await
    }

    async fn upload_part(&self, req: S3Request<UploadPartInput>) -> Answer<UploadPartOutput> {
        self.put_part(req).await
    }

    async fn upload_part_copy(&self, req: S3Request<UploadPartCopyInput>) -> Answer<UploadPartCopyOutput> {
        self.copy_part(req).await
    }

    async fn complete_multipart_upload(
        &self,
        req: S3Request<CompleteMultipartUploadInput>,
    ) -> Answer<CompleteMultipartUploadOutput> {
        self.complete_upload(req).await
    }

    async fn abort_multipart_upload(
        &self,
        req: S3Request<AbortMultipartUploadInput>,
    ) -> Answer<AbortMultipartUploadOutput> {
        let caller = Caller::of(&req)?;
        let input = req.input;
        caller.write(&input.bucket, &input.key)?;
        self.store.abort(&input.bucket, &input.key, &input.upload_id).await?;
        answer(AbortMultipartUploadOutput::default())
    }

    async fn list_parts(&self, req: S3Request<ListPartsInput>) -> Answer<ListPartsOutput> {
        self.parts(req).await
    }

    async fn list_multipart_uploads(
        &self,
        req: S3Request<ListMultipartUploadsInput>,
    ) -> Answer<ListMultipartUploadsOutput> {
        self.uploads(req).await
    }
}

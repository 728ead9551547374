//! The pipelines' artifacts in the object store.

use futures::{StreamExt, TryStreamExt, future::BoxFuture};
use kfbox_base::BoxError;
use kfbox_objects::{Error, Objects};
use kfbox_pipelines::{ArtifactStore, ByteStream, ObjectInfo, StoreError};

pub struct Artifacts(pub Objects);

/// Keys a page, the store's own limit.
const PAGE: usize = 1000;

impl ArtifactStore for Artifacts {
    fn put<'a>(
        &'a self,
        bucket: &'a str,
        key: &'a str,
        size: u64,
        body: ByteStream,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move {
            // The store keeps nothing of a body that ends in an error; one that ends early becomes such a body.
            let mut body = body;
            let checked = async_stream::stream! {
                let mut received = 0_u64;
                while let Some(chunk) = body.next().await {
                    if let Ok(chunk) = &chunk {
                        received += chunk.len() as u64;
                    }
                    yield chunk;
                }
                if received != size {
                    yield Err(BoxError::from(format!("{received} bytes came, {size} were announced")));
                }
            };
            self.0.put(bucket, key, checked.boxed(), None).await.map(drop).map_err(failed)
        })
    }

    fn get<'a>(&'a self, bucket: &'a str, key: &'a str) -> BoxFuture<'a, Result<(u64, ByteStream), StoreError>> {
        Box::pin(async move {
            let (_, body) = self.0.get(bucket, key, None).await.map_err(failed)?;
            Ok((body.remaining(), body.map_err(Into::into).boxed()))
        })
    }

    fn list<'a>(&'a self, bucket: &'a str, prefix: &'a str) -> BoxFuture<'a, Result<Vec<ObjectInfo>, StoreError>> {
        Box::pin(async move {
            let (mut all, mut token) = (Vec::new(), None);
            loop {
                let page = self.0.list(bucket, prefix, None, token.as_deref(), PAGE).await.map_err(failed)?;
                all.extend(page.objects.into_iter().map(|o| ObjectInfo { key: o.key, size: o.size }));
                token = page.next_token;
                if token.is_none() {
                    return Ok(all);
                }
            }
        })
    }

    fn delete<'a>(&'a self, bucket: &'a str, key: &'a str) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move { self.0.delete(bucket, key).await.map(drop).map_err(failed) })
    }
}

fn failed(error: Error) -> StoreError {
    match error {
        Error::NoSuchKey { .. } | Error::NoSuchBucket(_) => StoreError::NotFound,
        Error::StorageFull => StoreError::Full,
        other => StoreError::Failed(other.into()),
    }
}

//! Authentication for s3s, and the first gate: nothing anonymous passes. What the signer may do is decided where the
//! operation's bucket and keys are known: each operation asks [`Caller`] before it touches the store.

use crate::credentials::{Credentials, Principal};
use s3s::{
    S3Request, S3Result,
    access::{S3Access, S3AccessContext},
    auth::{S3Auth, SecretKey},
    s3_error,
};
use std::sync::Arc;

#[async_trait::async_trait]
impl S3Auth for Credentials {
    async fn get_secret_key(&self, access_key: &str) -> S3Result<SecretKey> {
        match self.get(access_key) {
            Some(principal) => Ok(SecretKey::from(principal.secret.clone())),
            None => Err(s3_error!(InvalidAccessKeyId, "the access key is not known here, or was revoked")),
        }
    }
}

pub(super) struct Gate(pub Credentials);

#[async_trait::async_trait]
impl S3Access for Gate {
    async fn check(&self, context: &mut S3AccessContext<'_>) -> S3Result<()> {
        let Some(credentials) = context.credentials() else {
            return Err(s3_error!(
                AccessDenied,
                "sign the request, or use a presigned URL: anonymous access is refused"
            ));
        };
        let Some(principal) = self.0.get(&credentials.access_key) else {
            return Err(s3_error!(InvalidAccessKeyId, "the access key was revoked"));
        };
        context.extensions_mut().insert(Caller(principal));
        Ok(())
    }
}

/// The signer of a request that passed the gate.
#[derive(Clone)]
pub(super) struct Caller(Arc<Principal>);

impl Caller {
    pub fn of<T>(request: &S3Request<T>) -> S3Result<Self> {
        request.extensions.get().cloned().ok_or_else(|| s3_error!(AccessDenied, "the request was not authenticated"))
    }

    pub fn sees(&self, bucket: &str) -> bool {
        self.0.sees(bucket)
    }

    pub fn may_write(&self, bucket: &str, key: &str) -> bool {
        self.0.may_write(bucket, key)
    }

    pub fn read(&self, bucket: &str, key: &str) -> S3Result<()> {
        allow(self.0.may_read(bucket, key))
    }

    pub fn write(&self, bucket: &str, key: &str) -> S3Result<()> {
        allow(self.0.may_write(bucket, key))
    }

    pub fn list(&self, bucket: &str, prefix: &str) -> S3Result<()> {
        allow(self.0.may_list(bucket, prefix))
    }

    pub fn see(&self, bucket: &str) -> S3Result<()> {
        allow(self.0.sees(bucket))
    }

    pub fn own(&self, bucket: &str) -> S3Result<()> {
        allow(self.0.owns(bucket))
    }
}

fn allow(allowed: bool) -> S3Result<()> {
    if allowed { Ok(()) } else { Err(s3_error!(AccessDenied, "this access key may not do that here")) }
}

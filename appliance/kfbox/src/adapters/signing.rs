//! The controllers' [`CertificateSigner`] over the API server's authority.

use kfbox_apiserver::auth::{Authority, SigningError, SigningRequest};
use kfbox_controllers::{CertificateRequest, CertificateSigner, SigningRefusal};
use std::{fmt, sync::Arc};

pub struct Signer(pub Arc<Authority>);

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Signer")
    }
}

impl CertificateSigner for Signer {
    fn sign(&self, request: &CertificateRequest<'_>) -> Result<String, SigningRefusal> {
        let CertificateRequest { signer, request_pem, usages, expiration_seconds } = *request;
        let request = SigningRequest { signer, request_pem, usages, expiration_seconds };
        self.0.sign_request_now(&request).map_err(|error| match error {
            SigningError::NotOurs(_) => SigningRefusal::NotOurs,
            SigningError::Refused(why) => SigningRefusal::Refused(why),
            other @ (SigningError::Unreadable(_) | SigningError::Failed(_)) => {
                SigningRefusal::Failed(other.to_string())
            }
        })
    }
}

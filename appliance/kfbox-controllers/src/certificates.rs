//! Certificate requests: signs those that people approved, and removes old ones. Invariants: nothing is signed that nobody
//! approved; approving is people's. The key lives elsewhere, behind [`CertificateSigner`]. Upstream:
//! <https://kubernetes.io/docs/reference/access-authn-authz/certificate-signing-requests/>.

use crate::{
    CertificateRequest, SigningRefusal,
    context::{Context, Registered},
    pods,
    queue::{Outcome, Queue},
    write::{self, WriteError},
};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    ByteString,
    api::certificates::v1::{
        CertificateSigningRequest, CertificateSigningRequestCondition, CertificateSigningRequestStatus,
    },
    apimachinery::pkg::apis::meta::v1::Time,
};
use std::sync::Arc;

/// Upstream's times after which requests are removed.
const SETTLED: SignedDuration = SignedDuration::from_hours(1);
const PENDING: SignedDuration = SignedDuration::from_hours(24);

pub fn register(context: &Arc<Context>) -> Registered {
    let queue = Queue::<String>::new();
    let q = queue.clone();
    context.caches.requests.on_change(move |change| {
        if let Some(request) = change.new {
            q.add(request.metadata.name.clone().unwrap_or_default());
        }
    });
    let context = context.clone();
    let run = async move {
        context.caches.synced().await;
        let shutdown = context.shutdown.clone();
        queue.run("certificatesigningrequest", 1, shutdown, move |name| reconcile(context.clone(), name)).await
    };
    ("certificatesigningrequest", Box::pin(run))
}

fn condition<'a>(request: &'a CertificateSigningRequest, kind: &str) -> Option<&'a CertificateSigningRequestCondition> {
    let conditions = request.status.as_ref()?.conditions.as_deref()?;
    conditions.iter().find(|c| c.type_ == kind && c.status == "True")
}

fn certificate(request: &CertificateSigningRequest) -> Option<&ByteString> {
    request.status.as_ref()?.certificate.as_ref().filter(|c| !c.0.is_empty())
}

fn is_to_be_signed(request: &CertificateSigningRequest) -> bool {
    condition(request, "Approved").is_some()
        && condition(request, "Denied").is_none()
        && condition(request, "Failed").is_none()
        && certificate(request).is_none()
}

/// When the request has been there long enough.
fn ends_at(request: &CertificateSigningRequest) -> Timestamp {
    let since = |c: &CertificateSigningRequestCondition| {
        c.last_update_time.as_ref().map_or_else(|| pods::created(&request.metadata), |t| t.0)
    };
    let settled = ["Denied", "Failed"].into_iter().filter_map(|kind| condition(request, kind)).map(since);
    let issued = condition(request, "Approved").filter(|_| certificate(request).is_some()).map(since);
    let (start, lasts) = match settled.chain(issued).min() {
        Some(at) => (at, SETTLED),
        // Waiting for a person, or approved for a signer that does not come.
        None => (condition(request, "Approved").map_or_else(|| pods::created(&request.metadata), since), PENDING),
    };
    start.checked_add(lasts).unwrap_or(Timestamp::MAX)
}

async fn reconcile(context: Arc<Context>, name: String) -> Result<Outcome, WriteError> {
    let (client, cache) = (&context.client, &context.caches.requests);
    let Some(request) = cache.get("", &name).filter(|r| r.metadata.deletion_timestamp.is_none()) else {
        return Ok(Outcome::Done);
    };
    let left = ends_at(&request).duration_since(Timestamp::now());
    if left <= SignedDuration::ZERO {
        write::delete::<CertificateSigningRequest>(client, "", &name, crate::cache::uid(&*request)).await?;
        return Ok(Outcome::Done);
    }
    if let (true, Some(signer)) = (is_to_be_signed(&request), &context.config.signer) {
        let spec = &request.spec;
        let usages = spec.usages.clone().unwrap_or_default();
        let asked = CertificateRequest {
            signer: &spec.signer_name,
            request_pem: &spec.request.0,
            usages: &usages,
            expiration_seconds: spec.expiration_seconds,
        };
        let old = request.status.clone().unwrap_or_default();
        if let Some(status) = answer(&old, signer.sign(&asked), Timestamp::now()) {
            write::status_of(client, cache, &*request, &old, &status).await?;
        }
    }
    Ok(Outcome::Again(left.unsigned_abs()))
}

/// The status that tells of the signer's answer; `None` when the request is not for it.
fn answer(
    old: &CertificateSigningRequestStatus,
    signed: Result<String, SigningRefusal>,
    now: Timestamp,
) -> Option<CertificateSigningRequestStatus> {
    let mut status = old.clone();
    match signed {
        Ok(pem) => status.certificate = Some(ByteString(pem.into_bytes())),
        Err(SigningRefusal::NotOurs) => return None,
        Err(SigningRefusal::Refused(why)) => {
            status.conditions.get_or_insert_default().push(CertificateSigningRequestCondition {
                type_: "Failed".into(),
                status: "True".into(),
                reason: Some("SignerValidationFailure".into()),
                message: Some(why),
                last_update_time: Some(Time(now)),
                last_transition_time: Some(Time(now)),
            });
        }
        Err(SigningRefusal::Failed(why)) => {
            // Nothing the asker did: the request stays, and is tried again at its next news.
            tracing::warn!(why, "a certificate request could not be signed");
            return None;
        }
    }
    Some(status)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::testing::{at, object};
    use serde_json::{Value, json};

    fn request(conditions: Value, certificate: Value) -> CertificateSigningRequest {
        object(json!({ "metadata": { "name": "r", "creationTimestamp": at(0).to_string() },
            "spec": { "request": "", "signerName": "kubernetes.io/kube-apiserver-client" },
            "status": { "conditions": conditions, "certificate": certificate } }))
    }

    fn said(kind: &str, seconds: i64) -> Value {
        json!({ "type": kind, "status": "True", "lastUpdateTime": at(seconds).to_string() })
    }

    #[test]
    fn only_what_was_approved_is_signed_and_only_once() {
        assert!(!is_to_be_signed(&request(json!([]), json!(null))));
        assert!(is_to_be_signed(&request(json!([said("Approved", 1)]), json!(null))));
        assert!(!is_to_be_signed(&request(json!([said("Approved", 1)]), json!("YQ=="))));
        assert!(!is_to_be_signed(&request(json!([said("Approved", 1), said("Failed", 2)]), json!(null))));
        assert!(!is_to_be_signed(&request(json!([said("Approved", 1), said("Denied", 2)]), json!(null))));
    }

    #[test]
    fn requests_are_kept_for_upstreams_times() {
        assert_eq!(ends_at(&request(json!([]), json!(null))), at(86_400));
        assert_eq!(ends_at(&request(json!([said("Denied", 50)]), json!(null))), at(3650));
        assert_eq!(ends_at(&request(json!([said("Approved", 60)]), json!("YQ=="))), at(3660));
        assert_eq!(ends_at(&request(json!([said("Approved", 60)]), json!(null))), at(86_460));
    }

    #[test]
    fn a_refusal_is_told_and_final() {
        let old = CertificateSigningRequestStatus::default();
        let status = answer(&old, Err(SigningRefusal::Refused("no".into())), at(0)).unwrap();
        assert_eq!(status.conditions.unwrap()[0].reason.as_deref(), Some("SignerValidationFailure"));
        assert!(answer(&old, Err(SigningRefusal::NotOurs), at(0)).is_none());
        assert_eq!(answer(&old, Ok("x".into()), at(0)).unwrap().certificate, Some(ByteString(b"x".to_vec())));
    }
}

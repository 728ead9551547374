//! CertificateApproval, CertificateSigning and CertificateSubjectRestriction: who may approve or sign for a signer is
//! asked of authorization (`approve` and `sign` on `signers`), and nobody asks for the group of all rights.

use super::Request;
use crate::status::ApiError;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use kfbox_base::{Decision, ResourceAttributes, UserInfo};
use serde_json::Value;
use x509_parser::{certification_request::X509CertificationRequest, pem::parse_x509_pem, prelude::FromDer as _};

const REQUESTS: &str = "certificatesigningrequests.certificates.k8s.io";
const CLIENTS: &str = "kubernetes.io/kube-apiserver-client";

pub fn validate(request: &Request, new: &Value) -> Result<(), ApiError> {
    if &*request.call.resource.collection != REQUESTS {
        return Ok(());
    }
    match (request.old, request.subresource) {
        (None, _) => subject(request, new),
        (Some(old), "approval") => authorized(request, old, "approve"),
        (Some(old), "status")
            if ["certificate", "conditions"].iter().any(|part| old["status"][part] != new["status"][part]) =>
        {
            authorized(request, old, "sign")
        }
        _ => Ok(()),
    }
}

fn authorized(request: &Request, old: &Value, verb: &str) -> Result<(), ApiError> {
    let signer = old["spec"]["signerName"].as_str().unwrap_or_default();
    let domain = signer.split('/').next().unwrap_or_default();
    let call = request.call;
    let allowed = [signer.to_owned(), format!("{domain}/*")].into_iter().any(|name| {
        let wanted = ResourceAttributes {
            verb: verb.into(),
            group: "certificates.k8s.io".into(),
            resource: "signers".into(),
            name,
            ..ResourceAttributes::default()
        };
        matches!(call.core.rbac.authorize(&call.user, &wanted), Decision::Allow)
    });
    if allowed {
        return Ok(());
    }
    Err(request.forbid(format!("user not permitted to {verb} requests with signerName {signer:?}")))
}

fn subject(request: &Request, new: &Value) -> Result<(), ApiError> {
    if new["spec"]["signerName"] != CLIENTS {
        return Ok(());
    }
    let organizations = new["spec"]["request"].as_str().ok_or("there is none".to_owned()).and_then(organizations);
    match organizations {
        Err(why) => Err(request.forbid(format!("failed to parse CSR: {why}"))),
        Ok(groups) if groups.iter().any(|group| group == UserInfo::MASTERS) => {
            Err(request.forbid(format!("use of {CLIENTS} signer with {} group is not allowed", UserInfo::MASTERS)))
        }
        Ok(_) => Ok(()),
    }
}

/// The groups that a certificate would put its bearer in.
fn organizations(encoded: &str) -> Result<Vec<String>, String> {
    let text = STANDARD.decode(encoded).map_err(|error| error.to_string())?;
    let (_, pem) = parse_x509_pem(&text).map_err(|error| error.to_string())?;
    if pem.label != "CERTIFICATE REQUEST" {
        return Err("PEM block type must be CERTIFICATE REQUEST".to_owned());
    }
    let (_, parsed) = X509CertificationRequest::from_der(&pem.contents).map_err(|error| error.to_string())?;
    let subject = &parsed.certification_request_info.subject;
    // What is no text cannot be compared, so it is refused rather than passed over.
    subject.iter_organization().map(|o| o.as_str().map(str::to_owned).map_err(|error| error.to_string())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_read_from_the_request_and_rubbish_is_none() {
        let mut params = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
        params.distinguished_name.push(rcgen::DnType::OrganizationName, "team");
        let key = rcgen::KeyPair::generate().unwrap();
        let pem = params.serialize_request(&key).unwrap().pem().unwrap();
        assert_eq!(organizations(&STANDARD.encode(&pem)), Ok(vec!["team".to_owned()]));
        let other = params.self_signed(&key).unwrap().pem();
        let why = organizations(&STANDARD.encode(other)).unwrap_err();
        assert_eq!(why, "PEM block type must be CERTIFICATE REQUEST");
        let cut = pem.replace("REQUEST-----\n", "REQUEST-----\nAAAA");
        for bad in ["", "no base64", &STANDARD.encode("x"), &STANDARD.encode(cut)] {
            assert!(organizations(bad).is_err(), "{bad}");
        }
    }
}

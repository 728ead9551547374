//! Signs certificate requests for upstream's signers `kubernetes.io/kube-apiserver-client`,
//! `kubernetes.io/kube-apiserver-client-kubelet` and `kubernetes.io/kubelet-serving`.
//! Guarantees: a request is signed only when its own signature holds and its signer admits its subject, names and usages;
//! subject, public key and alternative names are taken byte for byte, so that no group is lost or added; the certificate
//! never outlives the authority and never is one itself. The certificate is put together here because the library that
//! makes ours keeps one value an attribute type, and a subject has one organization a group.
//! <https://kubernetes.io/docs/reference/access-authn-authz/certificate-signing-requests/#kubernetes-signers>

use super::Authority;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use chrono::{DateTime, Datelike, Duration, Utc};
use rcgen::SigningKey as _;
use rustls_pki_types::{CertificateSigningRequestDer, pem::PemObject};
use x509_parser::{
    certificate::X509Certificate,
    certification_request::X509CertificationRequest,
    cri_attributes::ParsedCriAttribute,
    extensions::{GeneralName, ParsedExtension, X509Extension},
    prelude::FromDer,
};

/// `--cluster-signing-duration`.
const LONGEST: Duration = Duration::days(365);
const SHORTEST: Duration = Duration::minutes(10);
/// For clients whose clocks are behind.
const BACKDATED: Duration = Duration::minutes(5);
/// Certificates for less than this are not shortened by what they are backdated.
const SHORT: Duration = Duration::hours(8);

pub struct SigningRequest<'a> {
    pub signer: &'a str,
    pub request_pem: &'a [u8],
    pub usages: &'a [String],
    pub expiration_seconds: Option<i32>,
}

#[derive(Debug, thiserror::Error)]
pub enum SigningError {
    /// The signer is none of ours: somebody else signs.
    #[error("no signer {0:?} here")]
    NotOurs(String),
    /// The signer does not admit the request, and never will.
    #[error("{0}")]
    Refused(String),
    #[error("unable to parse csr: {0}")]
    Unreadable(String),
    #[error("the authority cannot sign: {0}")]
    Failed(String),
}

/// What the subject and the alternative names say.
#[derive(Default)]
struct Facts {
    common_name: String,
    organizations: Vec<String>,
    dns: bool,
    ip: bool,
    email: bool,
    uri: bool,
}

fn facts(request: &X509CertificationRequest<'_>, names: Option<&X509Extension<'_>>) -> Facts {
    let subject = &request.certification_request_info.subject;
    let mut facts = Facts {
        common_name: subject.iter_common_name().last().and_then(|n| n.as_str().ok()).unwrap_or_default().into(),
        organizations: subject.iter_organization().filter_map(|o| o.as_str().ok().map(str::to_owned)).collect(),
        ..Facts::default()
    };
    if let Some(ParsedExtension::SubjectAlternativeName(names)) = names.map(X509Extension::parsed_extension) {
        for name in &names.general_names {
            match name {
                GeneralName::DNSName(_) => facts.dns = true,
                GeneralName::IPAddress(_) => facts.ip = true,
                GeneralName::RFC822Name(_) => facts.email = true,
                GeneralName::URI(_) => facts.uri = true,
                _ => {}
            }
        }
    }
    facts
}

fn check(signer: &str, facts: &Facts, usages: &[String]) -> Result<(), SigningError> {
    let refuse = |why: &str| Err(SigningError::Refused(why.into()));
    let is_exactly =
        |wanted: &[&str]| usages.len() == wanted.len() && wanted.iter().all(|w| usages.iter().any(|u| u == w));
    match signer {
        "kubernetes.io/kube-apiserver-client" => {
            let optional = ["digital signature", "key encipherment", "client auth"];
            if let Some(other) = usages.iter().find(|u| !optional.contains(&u.as_str())) {
                return refuse(&format!("invalid usage for client certificate: {other}"));
            }
            if !usages.iter().any(|u| u == "client auth") {
                return refuse("missing required usage for client certificate: client auth");
            }
            return Ok(());
        }
        "kubernetes.io/kube-apiserver-client-kubelet" | "kubernetes.io/kubelet-serving" => {}
        other => return Err(SigningError::NotOurs(other.into())),
    }
    let serving = signer == "kubernetes.io/kubelet-serving";
    if facts.organizations != ["system:nodes"] {
        return refuse("subject organization is not system:nodes");
    }
    if serving && !facts.dns && !facts.ip {
        return refuse("DNS or IP subjectAltName is required");
    }
    if facts.dns && !serving {
        return refuse("DNS subjectAltNames are not allowed");
    }
    if facts.ip && !serving {
        return refuse("IP subjectAltNames are not allowed");
    }
    if facts.email {
        return refuse("Email subjectAltNames are not allowed");
    }
    if facts.uri {
        return refuse("URI subjectAltNames are not allowed");
    }
    if !facts.common_name.starts_with("system:node:") {
        return refuse("subject common name does not begin with system:node: ");
    }
    let role = if serving { "server auth" } else { "client auth" };
    if !is_exactly(&["key encipherment", "digital signature", role]) && !is_exactly(&["digital signature", role]) {
        return refuse(&format!(
            "usages did not match [digital signature {role}] or [digital signature key encipherment {role}]"
        ));
    }
    Ok(())
}

impl Authority {
    /// The certificate for a request, in PEM, valid from now.
    pub fn sign_request_now(&self, request: &SigningRequest<'_>) -> Result<String, SigningError> {
        self.sign_request(request, Utc::now())
    }

    fn sign_request(&self, request: &SigningRequest<'_>, now: DateTime<Utc>) -> Result<String, SigningError> {
        let unreadable = |why: String| SigningError::Unreadable(why);
        let der = CertificateSigningRequestDer::from_pem_slice(request.request_pem)
            .map_err(|error| unreadable(format!("PEM block type must be CERTIFICATE REQUEST: {error}")))?;
        let (rest, parsed) = X509CertificationRequest::from_der(&der).map_err(|error| unreadable(error.to_string()))?;
        if !rest.is_empty() {
            return Err(unreadable("there is data behind the request".into()));
        }
        let extensions = parsed.certification_request_info.iter_attributes().find_map(|a| match a.parsed_attribute() {
            ParsedCriAttribute::ExtensionRequest(requested) => Some(&requested.extensions),
            _ => None,
        });
        let names = extensions
            .into_iter()
            .flatten()
            .find(|e| matches!(e.parsed_extension(), ParsedExtension::SubjectAlternativeName(_)));
        check(request.signer, &facts(&parsed, names), request.usages)?;
        parsed
            .verify_signature()
            .map_err(|error| unreadable(format!("the request is not signed by its own key: {error}")))?;
        self.issue(&parsed, names, request, now)
    }

    fn issue(
        &self,
        csr: &X509CertificationRequest<'_>,
        names: Option<&X509Extension<'_>>,
        request: &SigningRequest<'_>,
        now: DateTime<Utc>,
    ) -> Result<String, SigningError> {
        let failed = |why: String| SigningError::Failed(why);
        let (_, ca) = X509Certificate::from_der(&self.ca_der).map_err(|error| failed(error.to_string()))?;
        let ca_end = DateTime::from_timestamp(ca.validity().not_after.timestamp(), 0).unwrap_or(now);
        let (begin, end) = validity(request.expiration_seconds, now, ca_end);

        let mut extensions = usage_extensions(request.usages);
        // Neither an authority nor on the way to one.
        extensions.push(extension(&[0x55, 0x1d, 0x13], true, &der(0x30, &[])));
        let key_id = ca.extensions().iter().find_map(|e| match e.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0),
            _ => None,
        });
        if let Some(key_id) = key_id {
            extensions.push(extension(&[0x55, 0x1d, 0x23], false, &der(0x30, &der(0x80, key_id))));
        }
        if let Some(names) = names {
            extensions.push(extension(&[0x55, 0x1d, 0x11], names.critical, names.value));
        }

        let info = &csr.certification_request_info;
        let algorithm = algorithm(&ca);
        let mut serial = uuid::Uuid::new_v4().into_bytes();
        // A positive number without leading zeros.
        serial[0] = serial[0] & 0x7f | 0x40;
        let fields = [
            der(0xa0, &der(0x02, &[2])),
            der(0x02, &serial),
            algorithm.clone(),
            ca.subject().as_raw().to_vec(),
            der(0x30, &[time(begin), time(end)].concat()),
            info.subject.as_raw().to_vec(),
            info.subject_pki.raw.to_vec(),
            der(0xa3, &der(0x30, &extensions.concat())),
        ];
        let signed = der(0x30, &fields.concat());
        let signature = self.issuer.key().sign(&signed).map_err(|error| failed(error.to_string()))?;
        let bits = [vec![0], signature].concat();
        let certificate = der(0x30, &[signed, algorithm, der(0x03, &bits)].concat());

        let (_, made) = X509Certificate::from_der(&certificate).map_err(|error| failed(error.to_string()))?;
        made.verify_signature(Some(ca.public_key()))
            .map_err(|error| failed(format!("its key does not belong to its certificate: {error}")))?;
        Ok(pem(&certificate))
    }
}

fn validity(seconds: Option<i32>, now: DateTime<Utc>, ca_end: DateTime<Utc>) -> (DateTime<Utc>, DateTime<Utc>) {
    let lasts = seconds.map_or(LONGEST, |s| Duration::seconds(s.into())).clamp(SHORTEST, LONGEST);
    let end = if lasts < SHORT { now + lasts } else { now + lasts - BACKDATED };
    (now - BACKDATED, end.min(ca_end))
}

/// Key usage and extended key usage.
fn usage_extensions(usages: &[String]) -> Vec<Vec<u8>> {
    let has = |name: &str| usages.iter().any(|u| u == name);
    let mut all = Vec::new();
    let bits = if has("digital signature") { 0x80 } else { 0_u8 } | if has("key encipherment") { 0x20 } else { 0 };
    if bits != 0 {
        let unused = u8::try_from(bits.trailing_zeros()).unwrap_or(0);
        all.push(extension(&[0x55, 0x1d, 0x0f], true, &der(0x03, &[unused, bits])));
    }
    // id-kp-serverAuth and id-kp-clientAuth.
    let purposes = [("server auth", 1_u8), ("client auth", 2)];
    let purposes: Vec<Vec<u8>> = purposes
        .iter()
        .filter(|(name, _)| has(name))
        .map(|(_, number)| der(0x06, &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, *number]))
        .collect();
    if !purposes.is_empty() {
        all.push(extension(&[0x55, 0x1d, 0x25], false, &der(0x30, &purposes.concat())));
    }
    all
}

/// How the authority signs: as it signed itself.
fn algorithm(ca: &X509Certificate<'_>) -> Vec<u8> {
    let oid = der(0x06, ca.signature_algorithm.algorithm.as_bytes());
    let parameters = if ca.signature_algorithm.parameters.is_some() { der(0x05, &[]) } else { Vec::new() };
    der(0x30, &[oid, parameters].concat())
}

fn extension(oid: &[u8], critical: bool, value: &[u8]) -> Vec<u8> {
    let critical = if critical { der(0x01, &[0xff]) } else { Vec::new() };
    der(0x30, &[der(0x06, oid), critical, der(0x04, value)].concat())
}

fn time(at: DateTime<Utc>) -> Vec<u8> {
    // RFC 5280, 4.1.2.5: two digits of the year until 2049.
    match at.year() {
        1950..2050 => der(0x17, at.format("%y%m%d%H%M%SZ").to_string().as_bytes()),
        _ => der(0x18, at.format("%Y%m%d%H%M%SZ").to_string().as_bytes()),
    }
}

/// Tag, length and content in DER.
fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![tag];
    let length = content.len();
    if let Some(short) = u8::try_from(length).ok().filter(|l| *l < 0x80) {
        bytes.push(short);
    } else {
        let big: Vec<u8> = length.to_be_bytes().into_iter().skip_while(|b| *b == 0).collect();
        bytes.push(0x80 | u8::try_from(big.len()).unwrap_or(0));
        bytes.extend(big);
    }
    bytes.extend_from_slice(content);
    bytes
}

fn pem(der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines = text.as_bytes().chunks(64).map(|line| String::from_utf8_lossy(line).into_owned() + "\n");
    format!("-----BEGIN CERTIFICATE-----\n{}-----END CERTIFICATE-----\n", lines.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
    use rustls_pki_types::CertificateDer;

    fn request(name: &str, organizations: &[&str], sans: &[&str]) -> Vec<u8> {
        let key = KeyPair::generate().unwrap();
        let sans: Vec<String> = sans.iter().map(|s| (*s).to_owned()).collect();
        let mut params = CertificateParams::new(sans).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        let kinds = [DnType::OrganizationName, DnType::CustomDnType(vec![2, 5, 4, 10])];
        for (kind, organization) in kinds.into_iter().zip(organizations) {
            params.distinguished_name.push(kind, *organization);
        }
        params.serialize_request(&key).unwrap().pem().unwrap().into_bytes()
    }

    fn sign(
        signer: &str,
        pem: &[u8],
        usages: &[&str],
        seconds: Option<i32>,
    ) -> Result<(Authority, String), SigningError> {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::load_or_create::<&str>(dir.path(), &[]).unwrap();
        let usages: Vec<String> = usages.iter().map(|u| (*u).to_owned()).collect();
        let request = SigningRequest { signer, request_pem: pem, usages: &usages, expiration_seconds: seconds };
        authority.sign_request(&request, Utc::now()).map(|pem| (authority, pem))
    }

    const CLIENT: &str = "kubernetes.io/kube-apiserver-client";
    const KUBELET: &str = "kubernetes.io/kube-apiserver-client-kubelet";
    const SERVING: &str = "kubernetes.io/kubelet-serving";

    #[test]
    fn a_client_certificate_says_what_was_asked_and_no_more() {
        let csr = request("ada", &["staff", "ops"], &[]);
        let (authority, pem) = sign(CLIENT, &csr, &["client auth", "digital signature"], Some(3600)).unwrap();
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        let user = authority.identify(std::slice::from_ref(&der)).unwrap();
        assert_eq!((user.username.as_str(), &user.groups[..2]), ("ada", &["staff".to_owned(), "ops".to_owned()][..]));
        let (_, certificate) = X509Certificate::from_der(&der).unwrap();
        let lasts = certificate.validity().not_after.timestamp() - Utc::now().timestamp();
        assert!((3590..=3600).contains(&lasts), "{lasts}");
        assert!(!certificate.is_ca());
        let usage = certificate.key_usage().unwrap().unwrap().value;
        assert!(usage.digital_signature() && !usage.key_encipherment() && !usage.key_cert_sign());
        let extended = certificate.extended_key_usage().unwrap().unwrap().value;
        assert!(extended.client_auth && !extended.server_auth);
        assert_eq!(certificate.version(), x509_parser::x509::X509Version::V3);
    }

    #[test]
    fn certificates_last_as_asked_within_bounds() {
        let now = Utc::now();
        let far = now + Duration::days(4000);
        let lasts = |seconds| (validity(seconds, now, far).1 - now).num_seconds();
        assert_eq!(lasts(None), 365 * 86_400 - 300);
        assert_eq!(lasts(Some(i32::MAX)), 365 * 86_400 - 300);
        assert_eq!(lasts(Some(1)), 600);
        assert_eq!(lasts(Some(-5)), 600);
        assert_eq!(lasts(Some(7200)), 7200);
        assert_eq!(validity(None, now, now + Duration::days(1)).1, now + Duration::days(1), "not beyond the authority");
    }

    #[test]
    fn signers_refuse_what_they_do_not_admit() {
        let refused = |signer: &str, csr: &[u8], usages: &[&str]| match sign(signer, csr, usages, None) {
            Err(SigningError::Refused(why)) => why,
            other => panic!("{:?}", other.map(|o| o.1)),
        };
        let ada = request("ada", &[], &[]);
        assert!(refused(CLIENT, &ada, &["server auth", "client auth"]).contains("server auth"));
        assert!(refused(CLIENT, &ada, &["digital signature"]).contains("client auth"));
        assert!(refused(KUBELET, &ada, &["client auth", "digital signature"]).contains("organization"));
        let node = request("system:node:a", &["system:nodes"], &["node.example"]);
        assert!(refused(KUBELET, &node, &["client auth", "digital signature"]).contains("DNS"));
        assert!(refused(SERVING, &node, &["client auth", "digital signature"]).contains("usages"));
        let bare = request("system:node:a", &["system:nodes"], &[]);
        assert!(refused(SERVING, &bare, &["server auth", "digital signature"]).contains("required"));
        let masters = request("system:node:a", &["system:nodes", "system:masters"], &[]);
        assert!(refused(KUBELET, &masters, &["client auth", "digital signature"]).contains("organization"));
        let other = request("ada", &["system:nodes"], &[]);
        assert!(refused(KUBELET, &other, &["client auth", "digital signature"]).contains("common name"));
        assert!(matches!(sign("example.org/mine", &ada, &["client auth"], None), Err(SigningError::NotOurs(_))));
        for bad in [&b""[..], b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"] {
            assert!(matches!(sign(CLIENT, bad, &["client auth"], None), Err(SigningError::Unreadable(_))));
        }
    }

    #[test]
    fn serving_certificates_keep_their_names_and_forged_requests_are_refused() {
        let csr = request("system:node:a", &["system:nodes"], &["node.example", "10.0.0.7"]);
        let (_, pem) = sign(SERVING, &csr, &["server auth", "digital signature", "key encipherment"], None).unwrap();
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        let (_, certificate) = X509Certificate::from_der(&der).unwrap();
        assert_eq!(certificate.subject_alternative_name().unwrap().unwrap().value.general_names.len(), 2);
        let mut forged = CertificateSigningRequestDer::from_pem_slice(&csr).unwrap().to_vec();
        let at = forged.windows(6).position(|w| w == b"node:a").unwrap();
        forged[at + 5] = b'b';
        let text = pem_of_request(&forged);
        assert!(matches!(
            sign(SERVING, text.as_bytes(), &["server auth", "digital signature"], None),
            Err(SigningError::Unreadable(_))
        ));
    }

    fn pem_of_request(der: &[u8]) -> String {
        pem(der).replace("CERTIFICATE-", "CERTIFICATE REQUEST-")
    }
}

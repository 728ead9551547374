//! AdmissionReview, `v1` and `v1beta1` (apiserver `pkg/admission/plugin/webhook/request/admissionreview.go`).

use crate::status::ApiError;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Warnings that one webhook may add to an answer, and the length of each: a header has its limits.
const WARNINGS: usize = 32;
const WARNING_LENGTH: usize = 256;

/// One question.
pub struct Review {
    uid: String,
    version: &'static str,
}

/// What a webhook said.
#[derive(Debug, Default)]
pub struct Answer {
    pub allowed: bool,
    pub result: Value,
    pub patch: Option<Vec<u8>>,
    pub patch_type: String,
    pub warnings: Vec<String>,
    pub annotations: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Told {
    api_version: String,
    kind: String,
    response: Option<Response>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Response {
    uid: String,
    allowed: bool,
    status: Value,
    patch: Option<String>,
    patch_type: Option<String>,
    warnings: Option<Vec<String>>,
    audit_annotations: Option<BTreeMap<String, String>>,
}

impl Review {
    /// In the first version of the webhook's list that is known.
    pub fn new(versions: &[String]) -> Option<Self> {
        let version =
            versions.iter().find_map(|version| ["v1", "v1beta1"].into_iter().find(|known| known == version))?;
        Some(Self { uid: uuid::Uuid::new_v4().to_string(), version })
    }

    pub fn encode(&self, mut request: Map<String, Value>) -> Vec<u8> {
        request.insert("uid".into(), self.uid.clone().into());
        let review = json!({
            "kind": "AdmissionReview", "apiVersion": format!("admission.k8s.io/{}", self.version), "request": request,
        });
        review.to_string().into_bytes()
    }

    /// Checks that the answer is one to this question, and says what upstream says if not.
    pub fn decode(&self, bytes: &[u8], mutating: bool) -> Result<Answer, String> {
        let told: Told = serde_json::from_slice(bytes)
            .map_err(|error| format!("failed to call webhook: couldn't get version/kind; json parse error: {error}"))?;
        let invalid = |why: String| format!("received invalid webhook response: {why}");
        let Some(response) = told.response else { return Err(invalid("webhook response was absent".to_owned())) };
        let (patch, kind) = (response.patch.as_deref().filter(|p| !p.is_empty()), response.patch_type.as_deref());
        let patch_type = if self.version == "v1" {
            if response.uid != self.uid {
                return Err(invalid(format!("expected response.uid={:?}, got {:?}", self.uid, response.uid)));
            }
            if told.api_version != "admission.k8s.io/v1" || told.kind != "AdmissionReview" {
                return Err(invalid(format!(
                    "expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview, got {}, Kind={}",
                    told.api_version, told.kind
                )));
            }
            let why = match (mutating, patch, kind) {
                (true, Some(_), None) => Some("webhook returned response.patch but not response.patchType".to_owned()),
                (true, None, Some(_)) => Some("webhook returned response.patchType but not response.patch".to_owned()),
                (true, Some(_), Some("")) => Some("webhook returned invalid response.patchType of \"\"".to_owned()),
                (false, Some(_), _) => Some("validating webhook may not return response.patch".to_owned()),
                (false, _, Some(_)) => Some("validating webhook may not return response.patchType".to_owned()),
                _ => None,
            };
            if let Some(why) = why {
                return Err(invalid(why));
            }
            kind.unwrap_or_default().to_owned()
        } else {
            // The older version took every patch for the one type there was.
            "JSONPatch".to_owned()
        };
        let patch = match patch.filter(|_| mutating) {
            Some(text) => Some(
                STANDARD
                    .decode(text)
                    .map_err(|error| format!("failed to call webhook: json: response.patch is no base64: {error}"))?,
            ),
            None => None,
        };
        let warnings = response.warnings.unwrap_or_default();
        let warnings = warnings.iter().take(WARNINGS).map(|text| text.chars().take(WARNING_LENGTH).collect());
        Ok(Answer {
            allowed: response.allowed,
            result: response.status,
            patch,
            patch_type,
            warnings: warnings.collect(),
            annotations: response.audit_annotations.unwrap_or_default(),
        })
    }
}

/// A denial in the webhook's words (`ToStatusErr`).
pub fn refusal(webhook: &str, result: &Value) -> ApiError {
    let denied = format!("admission webhook {webhook:?} denied the request");
    let text = |field: &str| result[field].as_str().unwrap_or_default();
    let message = match (text("message"), text("reason")) {
        ("", "") => format!("{denied} without explanation"),
        ("", reason) => format!("{denied}: {reason}"),
        (message, _) => format!("{denied}: {message}"),
    };
    let code = result["code"].as_u64().and_then(|code| u16::try_from(code).ok()).unwrap_or(0);
    let code = if code < 400 { 400 } else { code };
    let code = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let details = result["details"].as_object().cloned().unwrap_or_default();
    ApiError::new(code, "", message).with_reason(code, text("reason")).with_details(details)
}

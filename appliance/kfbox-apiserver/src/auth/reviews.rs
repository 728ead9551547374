//! The review APIs: questions about callers and rights, answered and never stored. Upstream:
//! <https://kubernetes.io/docs/reference/kubernetes-api/authorization-resources/> and `authentication-resources`.

use super::{
    authenticate::Authenticator,
    rbac::Rbac,
    tokens::{Binding, BoundKind, Reference, ServiceAccountTokens, TokenError, requested_seconds},
};
use chrono::{SecondsFormat, Utc};
use kfbox_base::{Decision, ResourceAttributes, UserInfo};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Why a review cannot be answered; becomes a Status object.
#[derive(Debug, thiserror::Error)]
pub enum ReviewError {
    /// 422, reason `Invalid`; `field` is the path of what is wrong.
    #[error("{kind} is invalid: {field}: {why}")]
    Invalid { kind: &'static str, field: &'static str, why: String },
    /// 404, reason `NotFound`.
    #[error("{resource} {name:?} not found")]
    NotFound { resource: &'static str, name: String },
    /// 409, reason `Conflict`.
    #[error("{0}")]
    Conflict(String),
    /// 403, reason `Forbidden`.
    #[error("{0}")]
    Forbidden(String),
    #[error("cannot issue the token")]
    Token(#[source] TokenError),
}

impl ReviewError {
    pub fn code(&self) -> u16 {
        match self {
            Self::Invalid { .. } => 422,
            Self::NotFound { .. } => 404,
            Self::Conflict(_) => 409,
            Self::Forbidden(_) => 403,
            Self::Token(_) => 500,
        }
    }

    /// `reason` of the Status object.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Invalid { .. } => "Invalid",
            Self::NotFound { .. } => "NotFound",
            Self::Conflict(_) => "Conflict",
            Self::Forbidden(_) => "Forbidden",
            Self::Token(_) => "InternalError",
        }
    }
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct AccessSpec {
    resource_attributes: Option<WantedResource>,
    non_resource_attributes: Option<WantedUrl>,
    user: Option<String>,
    uid: Option<String>,
    groups: Option<Vec<String>>,
    extra: Option<BTreeMap<String, Option<Vec<String>>>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct WantedResource {
    namespace: Option<String>,
    verb: Option<String>,
    group: Option<String>,
    resource: Option<String>,
    subresource: Option<String>,
    name: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct WantedUrl {
    path: Option<String>,
    verb: Option<String>,
}

fn spec<T: for<'de> Deserialize<'de>>(kind: &'static str, body: &Value) -> Result<T, ReviewError> {
    let spec = body.get("spec").cloned().unwrap_or_else(|| Value::Object(Map::new()));
    serde_json::from_value(spec).map_err(|error| ReviewError::Invalid { kind, field: "spec", why: error.to_string() })
}

fn answer(body: &Value, api_version: &str, kind: &str, status: Value) -> Value {
    let mut answer = body.as_object().cloned().unwrap_or_default();
    answer.insert("apiVersion".into(), api_version.into());
    answer.insert("kind".into(), kind.into());
    answer.entry("metadata").or_insert_with(|| json!({}));
    answer.insert("status".into(), status);
    Value::Object(answer)
}

fn decide(kind: &'static str, rbac: &Rbac, user: &UserInfo, spec: AccessSpec) -> Result<Decision, ReviewError> {
    let invalid = |why: &str| ReviewError::Invalid { kind, field: "spec.resourceAttributes", why: why.into() };
    match (spec.resource_attributes, spec.non_resource_attributes) {
        (Some(r), None) => Ok(rbac.authorize(
            user,
            &ResourceAttributes {
                verb: r.verb.unwrap_or_default(),
                group: r.group.unwrap_or_default(),
                resource: r.resource.unwrap_or_default(),
                subresource: r.subresource.unwrap_or_default(),
                namespace: r.namespace.unwrap_or_default(),
                name: r.name.unwrap_or_default(),
            },
        )),
        (None, Some(url)) => Ok(rbac.authorize_url(user, &url.verb.unwrap_or_default(), &url.path.unwrap_or_default())),
        (Some(_), Some(_)) => Err(invalid("cannot be specified in combination with nonResourceAttributes")),
        (None, None) => Err(invalid("exactly one of nonResourceAttributes or resourceAttributes must be specified")),
    }
}

fn access_status(decision: Decision) -> Value {
    match decision {
        Decision::Allow => json!({ "allowed": true }),
        Decision::Deny(reason) => json!({ "allowed": false, "reason": reason }),
    }
}

fn subject(kind: &'static str, spec: &mut AccessSpec) -> Result<UserInfo, ReviewError> {
    let user = UserInfo {
        username: spec.user.take().unwrap_or_default(),
        uid: spec.uid.take().unwrap_or_default(),
        groups: spec.groups.take().unwrap_or_default(),
        extra: spec.extra.take().unwrap_or_default().into_iter().map(|(k, v)| (k, v.unwrap_or_default())).collect(),
    };
    if user.username.is_empty() && user.groups.is_empty() {
        let why = "at least one of user or group must be specified".into();
        return Err(ReviewError::Invalid { kind, field: "spec.user", why });
    }
    Ok(user)
}

const AUTHORIZATION: &str = "authorization.k8s.io/v1";
const AUTHENTICATION: &str = "authentication.k8s.io/v1";

/// `POST /apis/authorization.k8s.io/v1/subjectaccessreviews`
pub fn subject_access_review(rbac: &Rbac, body: &Value) -> Result<Value, ReviewError> {
    const KIND: &str = "SubjectAccessReview";
    let mut spec: AccessSpec = spec(KIND, body)?;
    let user = subject(KIND, &mut spec)?;
    Ok(answer(body, AUTHORIZATION, KIND, access_status(decide(KIND, rbac, &user, spec)?)))
}

/// `POST /apis/authorization.k8s.io/v1/namespaces/{namespace}/localsubjectaccessreviews`
pub fn local_subject_access_review(rbac: &Rbac, namespace: &str, body: &Value) -> Result<Value, ReviewError> {
    const KIND: &str = "LocalSubjectAccessReview";
    let mut spec: AccessSpec = spec(KIND, body)?;
    let user = subject(KIND, &mut spec)?;
    let wanted = spec.resource_attributes.as_ref().and_then(|r| r.namespace.as_deref()).unwrap_or_default();
    if wanted != namespace || spec.non_resource_attributes.is_some() {
        let why = format!("must match metadata.namespace, which is {namespace:?}");
        return Err(ReviewError::Invalid { kind: KIND, field: "spec.resourceAttributes.namespace", why });
    }
    Ok(answer(body, AUTHORIZATION, KIND, access_status(decide(KIND, rbac, &user, spec)?)))
}

/// `POST /apis/authorization.k8s.io/v1/selfsubjectaccessreviews`
pub fn self_subject_access_review(rbac: &Rbac, user: &UserInfo, body: &Value) -> Result<Value, ReviewError> {
    const KIND: &str = "SelfSubjectAccessReview";
    let spec: AccessSpec = spec(KIND, body)?;
    Ok(answer(body, AUTHORIZATION, KIND, access_status(decide(KIND, rbac, user, spec)?)))
}

/// `POST /apis/authorization.k8s.io/v1/selfsubjectrulesreviews`
pub fn self_subject_rules_review(rbac: &Rbac, user: &UserInfo, body: &Value) -> Result<Value, ReviewError> {
    const KIND: &str = "SelfSubjectRulesReview";
    let namespace = body.pointer("/spec/namespace").and_then(Value::as_str).unwrap_or_default();
    if namespace.is_empty() {
        let why = "no namespace on request".into();
        return Err(ReviewError::Invalid { kind: KIND, field: "spec.namespace", why });
    }
    let (mut resources, mut urls) = (Vec::new(), Vec::new());
    for rule in rbac.rules(user, namespace) {
        if !rule.resources.is_empty() {
            let mut shown = json!({ "verbs": rule.verbs, "apiGroups": rule.api_groups, "resources": rule.resources });
            if !rule.resource_names.is_empty() {
                shown["resourceNames"] = rule.resource_names.into();
            }
            resources.push(shown);
        } else if !rule.non_resource_urls.is_empty() {
            urls.push(json!({ "verbs": rule.verbs, "nonResourceURLs": rule.non_resource_urls }));
        }
    }
    let status = json!({ "resourceRules": resources, "nonResourceRules": urls, "incomplete": false });
    Ok(answer(body, AUTHORIZATION, KIND, status))
}

/// `POST /apis/authentication.k8s.io/v1/selfsubjectreviews`
pub fn self_subject_review(user: &UserInfo, body: &Value) -> Value {
    answer(body, AUTHENTICATION, "SelfSubjectReview", json!({ "userInfo": user_value(user) }))
}

/// `POST /apis/authentication.k8s.io/v1/tokenreviews`. The token is not repeated in the answer.
pub async fn token_review(authenticator: &Authenticator, body: &Value) -> Result<Value, ReviewError> {
    const KIND: &str = "TokenReview";
    #[derive(Deserialize, Default)]
    #[serde(default)]
    struct Spec {
        token: Option<String>,
        audiences: Option<Vec<String>>,
    }
    let Spec { token, audiences } = spec(KIND, body)?;
    let token = token.unwrap_or_default();
    if token.is_empty() {
        let why = "token is required for TokenReview in authentication".into();
        return Err(ReviewError::Invalid { kind: KIND, field: "spec.token", why });
    }
    let status = match authenticator.token(&token, &audiences.unwrap_or_default()).await {
        Ok(verified) => {
            json!({ "authenticated": true, "user": user_value(&verified.user), "audiences": verified.audiences })
        }
        Err(error) => json!({ "authenticated": false, "user": {}, "error": error }),
    };
    let mut answer = answer(body, AUTHENTICATION, KIND, status);
    answer["spec"]["token"] = Value::String(String::new());
    Ok(answer)
}

/// `POST /api/v1/namespaces/{namespace}/serviceaccounts/{name}/token`
pub fn token_request(
    tokens: &ServiceAccountTokens,
    lookup: &dyn super::tokens::ObjectLookup,
    namespace: &str,
    name: &str,
    body: &Value,
) -> Result<Value, ReviewError> {
    const KIND: &str = "TokenRequest";
    #[derive(Deserialize, Default)]
    #[serde(rename_all = "camelCase", default)]
    struct Spec {
        audiences: Option<Vec<String>>,
        expiration_seconds: Option<i64>,
        bound_object_ref: Option<Bound>,
    }
    #[derive(Deserialize, Default)]
    #[serde(rename_all = "camelCase", default)]
    struct Bound {
        kind: Option<String>,
        api_version: Option<String>,
        name: Option<String>,
        uid: Option<String>,
    }
    let Spec { audiences, expiration_seconds, bound_object_ref } = spec(KIND, body)?;
    let audiences = audiences.unwrap_or_default();
    let seconds = requested_seconds(expiration_seconds).map_err(|why| ReviewError::Invalid {
        kind: KIND,
        field: "spec.expirationSeconds",
        why: why.into(),
    })?;
    let account = lookup
        .find(BoundKind::ServiceAccount, namespace, name)
        .ok_or_else(|| ReviewError::NotFound { resource: "serviceaccounts", name: name.into() })?;

    let mut binding = Binding::default();
    if let Some(bound) = bound_object_ref {
        let (bound_kind, bound_name) = (bound.kind.unwrap_or_default(), bound.name.unwrap_or_default());
        let (kind, resource, scope) = match (bound.api_version.as_deref().unwrap_or("v1"), bound_kind.as_str()) {
            ("v1", "Pod") => (BoundKind::Pod, "pods", namespace),
            ("v1", "Secret") => (BoundKind::Secret, "secrets", namespace),
            ("v1", "Node") => (BoundKind::Node, "nodes", ""),
            (version, kind) => {
                let why = format!("cannot bind token to object of type {version}, Kind={kind}");
                return Err(ReviewError::Invalid { kind: KIND, field: "spec.boundObjectRef", why });
            }
        };
        let facts = lookup
            .find(kind, scope, &bound_name)
            .ok_or_else(|| ReviewError::NotFound { resource, name: bound_name.clone() })?;
        if let Some(uid) = bound.uid.filter(|uid| !uid.is_empty() && *uid != facts.uid) {
            return Err(ReviewError::Conflict(format!(
                "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have \
                 been deleted and then recreated"
            )));
        }
        let reference = Reference { name: bound_name, uid: facts.uid };
        match kind {
            BoundKind::Pod => {
                if facts.service_account != name {
                    return Err(ReviewError::Forbidden(format!(
                        "cannot bind token for serviceaccount {name:?} to pod running with different serviceaccount name."
                    )));
                }
                if !facts.node.is_empty() {
                    let node = lookup.find(BoundKind::Node, "", &facts.node);
                    binding.node = node.map(|node| Reference { name: facts.node, uid: node.uid });
                }
                binding.pod = Some(reference);
            }
            BoundKind::Node => binding.node = Some(reference),
            _ => binding.secret = Some(reference),
        }
    }
    let minted = tokens
        .mint(namespace, Reference { name: name.into(), uid: account.uid }, binding, &audiences, seconds, Utc::now())
        .map_err(ReviewError::Token)?;
    let mut answer = answer(
        body,
        AUTHENTICATION,
        KIND,
        json!({
            "token": minted.token,
            "expirationTimestamp": minted.expires.to_rfc3339_opts(SecondsFormat::Secs, true),
        }),
    );
    if !answer["spec"].is_object() {
        answer["spec"] = json!({});
    }
    answer["spec"]["expirationSeconds"] = seconds.into();
    answer["spec"]["audiences"] = if audiences.is_empty() { tokens.api_audiences().into() } else { audiences.into() };
    answer["metadata"]["name"] = name.into();
    answer["metadata"]["namespace"] = namespace.into();
    answer["metadata"]["creationTimestamp"] = Utc::now().to_rfc3339_opts(SecondsFormat::Secs, true).into();
    Ok(answer)
}

fn user_value(user: &UserInfo) -> Value {
    let mut value = json!({ "username": user.username });
    if !user.uid.is_empty() {
        value["uid"] = user.uid.clone().into();
    }
    if !user.groups.is_empty() {
        value["groups"] = user.groups.clone().into();
    }
    if !user.extra.is_empty() {
        value["extra"] = json!(user.extra);
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::authenticate::tests::{runner_token, world};

    #[tokio::test]
    async fn a_token_is_reviewed_for_its_audience() {
        let world = world();
        let token = runner_token(&world);
        let review = |token: &str, audiences: Value| json!({ "spec": { "token": token, "audiences": audiences } });
        let good = token_review(&world.authenticator, &review(&token, Value::Null)).await.unwrap();
        assert_eq!(good["status"]["authenticated"], true);
        assert_eq!(good["status"]["user"]["username"], "system:serviceaccount:team:runner");
        assert!(!good.to_string().contains(&token));
        let bad = token_review(&world.authenticator, &review(&token, json!(["elsewhere"]))).await.unwrap();
        assert_eq!(bad["status"]["authenticated"], false);
        assert!(bad["status"]["error"].as_str().unwrap().contains("audience"));
        let error = token_review(&world.authenticator, &json!({ "spec": {} })).await.unwrap_err();
        assert_eq!((error.code(), error.reason()), (422, "Invalid"));
    }

    #[tokio::test]
    async fn a_requested_token_is_accepted_and_bound() {
        let world = world();
        world.objects.put(BoundKind::Pod, "team", "p", "pod-1");
        let (tokens, lookup) = (world.authenticator.tokens(), world.authenticator.lookup());
        let ask = |spec: Value| token_request(tokens, lookup, "team", "runner", &json!({ "spec": spec }));
        let bound = json!({ "kind": "Pod", "apiVersion": "v1", "name": "p", "uid": "pod-1" });
        let answer = ask(json!({ "audiences": ["x"], "expirationSeconds": 900, "boundObjectRef": bound })).unwrap();
        let token = answer["status"]["token"].as_str().unwrap();
        let verified = world.authenticator.token(token, &["x".into()]).await.unwrap();
        assert_eq!(verified.user.extra["authentication.kubernetes.io/pod-name"], ["p"]);
        assert_eq!(answer["spec"]["expirationSeconds"], 900);
        assert!(answer["status"]["expirationTimestamp"].as_str().unwrap().ends_with('Z'));

        assert_eq!(ask(json!({ "expirationSeconds": 5 })).unwrap_err().code(), 422);
        let replaced = json!({ "kind": "Pod", "apiVersion": "v1", "name": "p", "uid": "pod-0" });
        assert_eq!(ask(json!({ "boundObjectRef": replaced })).unwrap_err().code(), 409);
        assert_eq!(ask(json!({ "boundObjectRef": { "kind": "Pod", "name": "q" } })).unwrap_err().code(), 404);
        assert_eq!(ask(json!({ "boundObjectRef": { "kind": "Job", "name": "q" } })).unwrap_err().code(), 422);
        let foreign = token_request(tokens, lookup, "team", "nobody", &json!({})).unwrap_err();
        assert_eq!(foreign.to_string(), r#"serviceaccounts "nobody" not found"#);
        world.objects.put(BoundKind::ServiceAccount, "team", "other", "sa-9");
        let body = json!({ "spec": { "boundObjectRef": { "kind": "Pod", "name": "p" } } });
        assert_eq!(token_request(tokens, lookup, "team", "other", &body).unwrap_err().code(), 403);
        assert!(token_request(tokens, lookup, "team", "other", &json!({})).is_ok(), "an empty body is fine");
    }

    #[test]
    fn access_reviews_answer_for_the_one_they_name() {
        let world = world();
        let rbac = &world.rbac;
        let pods = json!({ "namespace": "team", "verb": "get", "resource": "pods" });
        let body = json!({ "spec": { "user": "ada", "resourceAttributes": pods } });
        assert_eq!(subject_access_review(rbac, &body).unwrap()["status"]["allowed"], false);
        let master = json!({ "spec": { "groups": ["system:masters"], "resourceAttributes": pods } });
        assert_eq!(subject_access_review(rbac, &master).unwrap()["status"]["allowed"], true);
        assert!(subject_access_review(rbac, &json!({ "spec": { "resourceAttributes": pods } })).is_err());
        assert!(subject_access_review(rbac, &json!({ "spec": { "user": "ada" } })).is_err());
        assert!(local_subject_access_review(rbac, "other", &body).is_err());
        assert!(local_subject_access_review(rbac, "team", &body).is_ok());
        let url = json!({ "spec": { "nonResourceAttributes": { "path": "/healthz", "verb": "get" } } });
        let me = UserInfo::anonymous();
        assert_eq!(self_subject_access_review(rbac, &me, &url).unwrap()["status"]["allowed"], true);
        let rules = json!({ "spec": { "namespace": "team" } });
        let answer = self_subject_rules_review(rbac, &UserInfo::new("ada", []), &rules).unwrap();
        let list = answer["status"]["resourceRules"].as_array().unwrap();
        assert!(list.iter().any(|r| r["resources"] == json!(["selfsubjectreviews"])));
        assert_eq!(self_subject_review(&me, &json!({}))["status"]["userInfo"]["username"], "system:anonymous");
    }
}

//! What a request asks for, read from its method, path and query (apiserver `pkg/endpoints/request/requestinfo.go`).

use crate::status::ApiError;
use http::{Method, request::Parts};
use percent_encoding::percent_decode_str;

/// The parts of a resource path.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Target {
    pub group: String,
    pub version: String,
    pub namespace: String,
    pub resource: String,
    pub name: String,
    pub subresource: String,
    /// What follows the subresource, for proxies; without a leading slash.
    pub rest: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// A resource, and the verb that authorization is asked about.
    Resource { verb: &'static str, target: Target },
    /// Anything else: discovery, health, OpenAPI.
    Other,
}

pub fn route(parts: &Parts, query: &Query) -> Result<Route, ApiError> {
    let path = parts.uri.path();
    let mut steps = path.split('/').filter(|s| !s.is_empty());
    let mut target = Target::default();
    match steps.next() {
        Some("api") => {}
        Some("apis") => match steps.next() {
            Some(group) => target.group = decode(group)?,
            None => return Ok(Route::Other),
        },
        _ => return Ok(Route::Other),
    }
    let Some(version) = steps.next() else { return Ok(Route::Other) };
    target.version = decode(version)?;
    let mut steps: Vec<&str> = steps.collect();
    if steps.is_empty() {
        return Ok(Route::Other);
    }
    // The historic way to ask for a watch.
    let watch_path = steps[0] == "watch" && steps.len() > 1;
    if watch_path {
        steps.remove(0);
    }
    // `namespaces/NAME` and its own subresources are the namespace itself.
    let own = |step: &&str| matches!(*step, "status" | "finalize");
    if steps[0] == "namespaces" && steps.len() > 2 && !(steps.len() == 3 && own(&steps[2])) {
        target.namespace = decode(steps[1])?;
        steps.drain(..2);
    } else if steps[0] == "namespaces" && steps.len() > 1 {
        target.namespace = decode(steps[1])?;
    }
    target.resource = decode(steps[0])?;
    if let Some(name) = steps.get(1) {
        target.name = decode(name)?;
    }
    if let Some(subresource) = steps.get(2) {
        target.subresource = decode(subresource)?;
    }
    if steps.len() > 3 {
        // Proxied paths travel as they were written, without the part in front.
        let mut left = steps.len() - 3;
        let start = path
            .rmatch_indices('/')
            .find(|(at, _)| {
                let is_step = path[at + 1..].split('/').next().is_some_and(|s| !s.is_empty());
                left -= usize::from(is_step);
                left == 0
            })
            .map_or(path.len(), |(at, _)| at + 1);
        target.rest = path[start..].to_owned();
    } else if path.ends_with('/') && target.subresource == "proxy" {
        target.rest = String::new();
    }
    let one = !target.name.is_empty();
    let watching = watch_path || query.flag("watch");
    let verb = match parts.method {
        Method::GET | Method::HEAD if one && !watch_path => "get",
        Method::GET | Method::HEAD if watching => "watch",
        Method::GET | Method::HEAD => "list",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE if one => "delete",
        Method::DELETE => "deletecollection",
        _ => return Err(ApiError::method_not_allowed()),
    };
    Ok(Route::Resource { verb, target })
}

fn decode(step: &str) -> Result<String, ApiError> {
    let step = percent_decode_str(step).decode_utf8().map_err(|_| ApiError::bad_request("the path is not UTF-8"))?;
    if step.contains('/') || step == "." || step == ".." || step.contains('\0') {
        return Err(ApiError::bad_request(format!("the path has a step {step:?} that is no name")));
    }
    Ok(step.into_owned())
}

/// The query string, by first value.
#[derive(Debug, Clone, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    pub fn parse(query: Option<&str>) -> Result<Self, ApiError> {
        let Some(query) = query else { return Ok(Self::default()) };
        serde_urlencoded::from_str(query)
            .map(Self)
            .map_err(|_| ApiError::bad_request("the query string cannot be parsed"))
    }

    /// The value if there is one that is not empty.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(k, v)| k == key && !v.is_empty()).map(|(_, v)| v.as_str())
    }

    pub fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// Go's conversion of query values to bool: present and not `false` or `0`.
    pub fn flag(&self, key: &str) -> bool {
        self.0.iter().find(|(k, _)| k == key).is_some_and(|(_, v)| !v.eq_ignore_ascii_case("false") && v != "0")
    }

    pub fn number(&self, key: &str) -> Result<Option<i64>, ApiError> {
        self.get(key)
            .map(|v| {
                v.parse().map_err(|_| ApiError::bad_request(format!("strconv.ParseInt: parsing {v:?}: invalid syntax")))
            })
            .transpose()
    }

    /// `dryRun=All`.
    pub fn dry_run(&self) -> Result<bool, ApiError> {
        let mut dry = false;
        for value in self.all("dryRun") {
            if value != "All" {
                return Err(ApiError::bad_request(format!("Invalid value: {value:?}: dryRun must be All")));
            }
            dry = true;
        }
        Ok(dry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(method: &str, uri: &str) -> (&'static str, Target) {
        let (parts, ()) = http::Request::builder().method(method).uri(uri).body(()).unwrap().into_parts();
        match route(&parts, &Query::parse(parts.uri.query()).unwrap()).unwrap() {
            Route::Resource { verb, target } => (verb, target),
            Route::Other => panic!("{uri} is a resource"),
        }
    }

    fn target(group: &str, namespace: &str, resource: &str, name: &str, subresource: &str, rest: &str) -> Target {
        Target {
            group: group.into(),
            version: "v1".into(),
            namespace: namespace.into(),
            resource: resource.into(),
            name: name.into(),
            subresource: subresource.into(),
            rest: rest.into(),
        }
    }

    #[test]
    fn paths_are_read_as_upstream_reads_them() {
        assert_eq!(parsed("GET", "/api/v1/pods"), ("list", target("", "", "pods", "", "", "")));
        assert_eq!(parsed("GET", "/api/v1/pods?watch=true"), ("watch", target("", "", "pods", "", "", "")));
        assert_eq!(
            parsed("GET", "/apis/apps/v1/watch/namespaces/n/deployments"),
            ("watch", target("apps", "n", "deployments", "", "", ""))
        );
        assert_eq!(
            parsed("DELETE", "/api/v1/namespaces/n/pods"),
            ("deletecollection", target("", "n", "pods", "", "", ""))
        );
        assert_eq!(parsed("GET", "/api/v1/namespaces/n"), ("get", target("", "n", "namespaces", "n", "", "")));
        assert_eq!(
            parsed("PUT", "/api/v1/namespaces/n/finalize"),
            ("update", target("", "n", "namespaces", "n", "finalize", ""))
        );
        assert_eq!(
            parsed("PATCH", "/apis/apps/v1/namespaces/n/deployments/d/scale"),
            ("patch", target("apps", "n", "deployments", "d", "scale", ""))
        );
        assert_eq!(
            parsed("GET", "/api/v1/namespaces/n/services/http:s:80/proxy/a//b%2Fc/"),
            ("get", target("", "n", "services", "http:s:80", "proxy", "a//b%2Fc/"))
        );
        assert_eq!(
            parsed("GET", "/api/v1/namespaces/n/pods/p/proxy/"),
            ("get", target("", "n", "pods", "p", "proxy", ""))
        );
    }

    #[test]
    fn a_step_that_hides_a_slash_is_refused() {
        let (parts, ()) = http::Request::get("/api/v1/namespaces/a%2F..%2Fb/pods").body(()).unwrap().into_parts();
        assert!(route(&parts, &Query::default()).is_err());
    }
}

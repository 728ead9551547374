//! What a path asks for. Invariant: names, tags and digests that come out of here follow their grammars, so they are safe as
//! parts of files' names.

use super::answer::Fault;
use crate::images::{is_component, is_digest, is_tag};
use percent_encoding::percent_decode_str;

/// The grammar's limit on a name with its host is 255.
const MAX_NAME: usize = 230;

#[derive(Debug, PartialEq, Eq)]
pub enum Route {
    Base,
    Catalog,
    Repository { name: String, target: Target },
}

#[derive(Debug, PartialEq, Eq)]
pub enum Target {
    Tags,
    Manifest(String),
    Blob(String),
    Uploads,
    Upload(String),
    Referrers(String),
}

impl Route {
    /// None: not the registry's at all.
    pub fn parse(path: &str) -> Option<Result<Self, Fault>> {
        let path = percent_decode_str(path).decode_utf8().ok()?;
        let rest = match path.strip_prefix("/v2") {
            Some("" | "/") => return Some(Ok(Self::Base)),
            Some("/_catalog") => return Some(Ok(Self::Catalog)),
            Some(rest) => rest.strip_prefix('/')?,
            None => return None,
        };
        let parts: Vec<&str> = rest.split('/').collect();
        let (name, target) = match parts.as_slice() {
            [name @ .., "tags", "list"] => (name, Ok(Target::Tags)),
            [name @ .., "blobs", "uploads", ""] | [name @ .., "blobs", "uploads"] => (name, Ok(Target::Uploads)),
            [name @ .., "blobs", "uploads", id] => (name, Ok(Target::Upload((*id).to_owned()))),
            [name @ .., "blobs", digest] => (name, digest_of(digest).map(Target::Blob)),
            [name @ .., "referrers", digest] => (name, digest_of(digest).map(Target::Referrers)),
            [name @ .., "manifests", reference] => {
                let reference = if is_tag(reference) { Ok((*reference).to_owned()) } else { digest_of(reference) };
                (name, reference.map(Target::Manifest))
            }
            _ => return None,
        };
        Some(repository(name).and_then(|name| Ok(Self::Repository { name, target: target? })))
    }
}

fn digest_of(text: &str) -> Result<String, Fault> {
    if is_digest(text) { Ok(text.to_owned()) } else { Err(Fault::digest_invalid(text)) }
}

fn repository(parts: &[&str]) -> Result<String, Fault> {
    let name = parts.join("/");
    if parts.len() < 2 || name.len() > MAX_NAME || !parts.iter().all(|part| is_component(part)) {
        return Err(Fault::name_invalid(&name));
    }
    Ok(name)
}

/// A name that a query carries.
pub fn name_of(text: &str) -> Option<String> {
    repository(&text.split('/').collect::<Vec<_>>()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(path: &str) -> Option<String> {
        match Route::parse(path)? {
            Ok(Route::Repository { name, .. }) => Some(name),
            _ => None,
        }
    }

    #[test]
    fn names_may_hold_what_paths_do() {
        let digest = format!("sha256:{}", "a".repeat(64));
        assert_eq!(Route::parse("/v2/").unwrap().ok(), Some(Route::Base));
        assert_eq!(name("/v2/ann/app/tags/list").as_deref(), Some("ann/app"));
        assert_eq!(name(&format!("/v2/ann/blobs/uploads/x/blobs/{digest}")).as_deref(), Some("ann/blobs/uploads/x"));
        assert_eq!(name("/v2/ann/manifests/manifests/1.0").as_deref(), Some("ann/manifests"));
        let escaped = format!("/v2/ann/app/manifests/{}", digest.replace(':', "%3A"));
        let Some(Ok(Route::Repository { target, .. })) = Route::parse(&escaped) else { panic!("{escaped}") };
        assert_eq!(target, Target::Manifest(digest));
    }

    #[test]
    fn what_leaves_the_root_is_no_name() {
        for bad in [
            "/v2/../../etc/tags/list",
            "/v2/ann/../bob/tags/list",
            "/v2/ann/%2e%2e/bob/tags/list",
            "/v2/ann%2f..%2fbob/tags/list",
            "/v2/ann/.hidden/tags/list",
            "/v2/ann//app/tags/list",
            "/v2/ann/app+x/tags/list",
            "/v2/ANN/app/tags/list",
            "/v2/ann/app/manifests/../../x",
            "/v2/ann/app/manifests/.next",
            "/v2/ann/app/blobs/sha256:abc",
            "/v2/alone/tags/list",
            "/v2/ann/app\0/tags/list",
        ] {
            assert_eq!(name(bad), None, "{bad}");
        }
        assert_eq!(name(&format!("/v2/ann/{}/tags/list", "a".repeat(300))), None);
    }
}

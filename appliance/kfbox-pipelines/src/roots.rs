//! Where artifacts live in the box's own store, and the fence around each namespace. Invariant: a key outside the
//! namespace's own root is never read nor written for a step, whatever a pipeline, a parameter or a step says. What lies
//! in another store is the matter of `outside`.

/// The scheme, bucket and prefix of the default pipeline root, `{namespace}` standing for the namespace; upstream's is
/// `minio://mlpipeline/v2/artifacts`.
#[derive(Debug, Clone)]
pub struct Roots {
    template: String,
}

/// An object, or the prefix of several, in the artifact store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    pub bucket: String,
    pub key: String,
}

#[derive(Debug, Clone, thiserror::Error)]
#[error("the pipeline root {0} should look like minio://BUCKET/PREFIX/{{namespace}}")]
pub struct RootError(String);

/// Scheme, bucket and key of an address in the box's own store.
fn split(uri: &str) -> Option<(&str, &str, &str)> {
    split_any(uri).filter(|(scheme, ..)| matches!(*scheme, "minio" | "s3"))
}

/// Scheme, bucket and key of an address in an object store.
pub fn split_any(uri: &str) -> Option<(&str, &str, &str)> {
    let (scheme, rest) = uri.split_once("://")?;
    if !matches!(scheme, "minio" | "s3" | "gs") {
        return None;
    }
    let (bucket, key) = rest.split_once('/')?;
    // A bucket may become part of a host's name.
    let clean = bucket.starts_with(|c: char| c.is_ascii_alphanumeric())
        && bucket.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
        && !key.is_empty()
        && !uri.contains(['?', '#', '\\', '\0'])
        && key.split('/').all(|part| !matches!(part, "" | "." | ".."));
    clean.then_some((scheme, bucket, key))
}

/// A pipeline root without the query that says where its store is.
pub fn bare(root: &str) -> &str {
    root.split_once('?').map_or(root, |(bare, _)| bare)
}

/// A name as one part of a key and of a path: letters, digits, `.`, `_` and `-`.
pub fn part(name: &str) -> String {
    let kept: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' }).take(100).collect();
    if matches!(kept.as_str(), "" | "." | "..") { "-".into() } else { kept }
}

impl Roots {
    pub fn parse(template: &str) -> Result<Self, RootError> {
        let template = template.trim_end_matches('/');
        let example = template.replace("{namespace}", "n");
        if split(&example).is_none() || !template.ends_with("/{namespace}") {
            return Err(RootError(template.to_owned()));
        }
        Ok(Self { template: template.to_owned() })
    }

    /// Where the namespace keeps its artifacts when nobody says otherwise.
    pub fn namespace(&self, namespace: &str) -> String {
        self.template.replace("{namespace}", namespace)
    }

    /// The bucket that all namespaces share.
    pub fn is_own_bucket(&self, bucket: &str) -> bool {
        split(&self.template.replace("{namespace}", "n")).is_some_and(|(_, own, _)| own == bucket)
    }

    pub fn inside(&self, namespace: &str, uri: &str) -> bool {
        let own = self.namespace(namespace);
        match (split(uri), split(&own)) {
            (Some((_, bucket, key)), Some((_, own_bucket, own_key))) => {
                bucket == own_bucket
                    && key.strip_prefix(own_key).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            }
            _ => false,
        }
    }

    /// The object that `uri` names, if the namespace may touch it.
    pub fn object(&self, namespace: &str, uri: &str) -> Option<Location> {
        let (_, bucket, key) = split(uri)?;
        self.inside(namespace, uri).then(|| Location { bucket: bucket.to_owned(), key: key.to_owned() })
    }
}

/// The root of one run below the root chosen for it, whose query stays at the end (`GenerateOutputURI` upstream).
pub fn for_run(chosen: &str, pipeline: &str, run_id: &str) -> String {
    let (base, query) = chosen.split_at(bare(chosen).len());
    format!("{}/{}/{run_id}{query}", base.trim_end_matches('/'), part(pipeline))
}

/// Where kfp's runtime expects an artifact in the container (`LocalPathForURI` in
/// `backend/src/v2/component/launcher_v2.go` upstream). The SDK takes a web address for the path itself: below the folder
/// in which the step starts.
pub fn local_path(uri: &str) -> Option<String> {
    if let Some(rest) = uri.strip_prefix("oci://") {
        return Some(format!("/oci/{}/models", rest.replace('/', "_")));
    }
    for (scheme, mount) in [("gs://", "/gcs/"), ("minio://", "/minio/"), ("s3://", "/s3/")] {
        if let Some(rest) = uri.strip_prefix(scheme) {
            return Some(format!("{mount}{rest}"));
        }
    }
    is_web(uri).then(|| uri.to_owned())
}

pub fn is_web(uri: &str) -> bool {
    uri.starts_with("http://") || uri.starts_with("https://")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_stays_within_its_fence() {
        let roots = Roots::parse("minio://mlpipeline/v2/artifacts/{namespace}/").unwrap();
        let mine = "minio://mlpipeline/v2/artifacts/ann";
        assert_eq!(roots.object("ann", &format!("{mine}/p/r/x")).unwrap().key, "v2/artifacts/ann/p/r/x");
        assert!(roots.object("ann", "s3://mlpipeline/v2/artifacts/ann/x").is_some());
        for outside in [
            "minio://mlpipeline/v2/artifacts/bob/x".to_owned(),
            "minio://mlpipeline/v2/artifacts/anna/x".to_owned(),
            "minio://other/v2/artifacts/ann/x".to_owned(),
            format!("{mine}/../bob/x"),
            format!("{mine}//x"),
            format!("{mine}/x?y"),
            "gs://mlpipeline/v2/artifacts/ann/x".to_owned(),
            "file:///etc/passwd".to_owned(),
            "s3://a@b.example:80/x".to_owned(),
            "s3://../x".to_owned(),
        ] {
            assert!(roots.object("ann", &outside).is_none(), "{outside}");
            assert!(!roots.inside("ann", &outside), "{outside}");
        }
        assert_eq!(roots.namespace("ann"), mine);
        assert!(roots.is_own_bucket("mlpipeline") && !roots.is_own_bucket("other"));
        assert!(Roots::parse("minio://mlpipeline/all").is_err());
    }

    #[test]
    fn a_runs_root_keeps_the_query_at_its_end() {
        assert_eq!(for_run("minio://b/a/", "a/b ..", "r"), "minio://b/a/a-b-../r");
        assert_eq!(for_run("s3://b/a?region=x", "p", "r"), "s3://b/a/p/r?region=x");
        assert_eq!(bare("s3://b/a/p/r?region=x"), "s3://b/a/p/r");
    }
}

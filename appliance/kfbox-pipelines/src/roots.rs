//! Where artifacts live, and the fence around each namespace. Invariant: a key outside the namespace's own root is
//! never read nor written for a step, whatever a pipeline, a parameter or a step says.

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

fn split(uri: &str) -> Option<(&str, &str, &str)> {
    let (scheme, rest) = uri.split_once("://")?;
    if !matches!(scheme, "minio" | "s3") {
        return None;
    }
    let (bucket, key) = rest.split_once('/')?;
    let clean = !bucket.is_empty()
        && !key.is_empty()
        && !uri.contains(['?', '#', '\\', '\0'])
        && key.split('/').all(|part| !matches!(part, "" | "." | ".."));
    clean.then_some((scheme, bucket, key))
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

    fn namespace(&self, namespace: &str) -> String {
        self.template.replace("{namespace}", namespace)
    }

    /// The root of one run, under the root asked for or the default one.
    pub fn for_run(&self, namespace: &str, asked: &str, pipeline: &str, run_id: &str) -> Result<String, String> {
        let own = self.namespace(namespace);
        let asked = asked.trim_end_matches('/');
        let base = if asked.is_empty() {
            own
        } else if self.inside(namespace, asked) {
            asked.to_owned()
        } else {
            return Err(format!(
                "the pipeline root {asked} is not within {own}, where namespace {namespace} keeps its artifacts"
            ));
        };
        Ok(format!("{base}/{}/{run_id}", part(pipeline)))
    }

    fn inside(&self, namespace: &str, uri: &str) -> bool {
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

/// Where kfp's runtime expects an artifact in the container (`LocalPathForURI` in
/// `backend/src/v2/component/launcher_v2.go` upstream).
pub fn local_path(uri: &str) -> Option<String> {
    if let Some(rest) = uri.strip_prefix("oci://") {
        return Some(format!("/oci/{}/models", rest.replace('/', "_")));
    }
    for (scheme, mount) in [("gs://", "/gcs/"), ("minio://", "/minio/"), ("s3://", "/s3/")] {
        if let Some(rest) = uri.strip_prefix(scheme) {
            return Some(format!("{mount}{rest}"));
        }
    }
    None
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
        ] {
            assert!(roots.object("ann", &outside).is_none(), "{outside}");
            assert!(roots.for_run("ann", &outside, "p", "r").is_err(), "{outside}");
        }
        assert_eq!(roots.for_run("ann", "", "a/b ..", "r").unwrap(), format!("{mine}/a-b-../r"));
        assert_eq!(roots.for_run("ann", &format!("{mine}/mine/"), "p", "r").unwrap(), format!("{mine}/mine/p/r"));
        assert!(Roots::parse("minio://mlpipeline/all").is_err());
    }
}

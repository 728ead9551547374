//! Image names as container runtimes read them: `python:3.11` is `docker.io/library/python:3.11`. Source: the grammar of
//! the distribution project's `reference` package, and Docker's rule for names without a registry.

use std::fmt;

/// A full name: registry, repository, and a tag or a digest or both.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ImageName {
    pub registry: String,
    pub repository: String,
    pub tag: Option<String>,
    pub digest: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid image name {name:?}: {why}")]
pub struct InvalidName {
    pub name: String,
    pub why: &'static str,
}

const DEFAULT_REGISTRY: &str = "docker.io";
/// The limit of the reference grammar on everything before the tag.
const MAX_NAME: usize = 255;
const MAX_TAG: usize = 128;

impl ImageName {
    /// Reads a name as a user types it. A name with neither tag nor digest gets the tag `latest`.
    pub fn parse(text: &str) -> Result<Self, InvalidName> {
        let invalid = |why| InvalidName { name: text.chars().take(2 * MAX_NAME).collect(), why };
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => {
                if !is_digest(digest) {
                    return Err(invalid("the digest is not sha256: or sha512: with its hexadecimal digits"));
                }
                (rest, Some(digest.to_owned()))
            }
            None => (text, None),
        };
        // A colon after the last slash begins a tag; before it, a port.
        let (path, tag) = match rest.rsplit_once(':') {
            Some((path, tag)) if !tag.contains('/') => {
                if !is_tag(tag) {
                    return Err(invalid("the tag has characters other than letters, digits, '_', '.' and '-'"));
                }
                (path, Some(tag.to_owned()))
            }
            _ => (rest, None),
        };
        let (registry, repository) = match path.split_once('/') {
            Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => (first, rest.to_owned()),
            _ => (DEFAULT_REGISTRY, path.to_owned()),
        };
        let registry = if registry == "index.docker.io" { DEFAULT_REGISTRY } else { registry };
        let repository = if registry == DEFAULT_REGISTRY && !repository.contains('/') && !repository.is_empty() {
            format!("library/{repository}")
        } else {
            repository
        };
        if repository.is_empty() {
            return Err(invalid("the repository is missing"));
        }
        if registry.len() + 1 + repository.len() > MAX_NAME {
            return Err(invalid("it is longer than 255 characters"));
        }
        if !is_registry(registry) {
            return Err(invalid("the registry is not a host with an optional port"));
        }
        if !repository.split('/').all(is_component) {
            return Err(invalid(
                "the repository may have lower-case letters, digits, and single separators between them",
            ));
        }
        let tag = if tag.is_none() && digest.is_none() { Some("latest".to_owned()) } else { tag };
        Ok(Self { registry: registry.to_owned(), repository, tag, digest })
    }

    /// Registry and repository.
    pub fn without_tag(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// The name that a store files an image under: a digest outranks a tag.
    pub fn key(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => format!("{}@{digest}", self.without_tag()),
            (None, tag) => format!("{}:{}", self.without_tag(), tag.as_deref().unwrap_or("latest")),
        }
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.key())
    }
}

/// The full form of a name, as in `docker.io/library/python:3.11`.
pub fn normalize(text: &str) -> Result<String, InvalidName> {
    ImageName::parse(text).map(|name| name.key())
}

/// Where an alias of the configuration sends a name, if one matches: an entry for the full name with its tag first, then
/// one for the repository with any tag, then the longest one that ends in `*` and begins it.
pub fn alias_of(aliases: &std::collections::BTreeMap<String, String>, name: &ImageName) -> Option<String> {
    let (full, repository) = (name.key(), name.without_tag());
    let mut by_repository = None;
    let mut by_prefix: Option<(usize, String)> = None;
    for (from, to) in aliases {
        if let Some(prefix) = from.strip_suffix('*') {
            if let Some(rest) = full.strip_prefix(prefix)
                && by_prefix.as_ref().is_none_or(|(length, _)| *length < prefix.len())
            {
                let target = to.strip_suffix('*').map_or_else(|| to.clone(), |to| format!("{to}{rest}"));
                by_prefix = Some((prefix.len(), target));
            }
            continue;
        }
        let Ok(parsed) = ImageName::parse(from) else { continue };
        if parsed.key() == full && has_tag(from) {
            return Some(to.clone());
        }
        if !has_tag(from) && parsed.without_tag() == repository {
            by_repository = Some(to.clone());
        }
    }
    by_repository.or(by_prefix.map(|(_, to)| to))
}

fn has_tag(text: &str) -> bool {
    text.contains('@') || text.rsplit('/').next().is_some_and(|last| last.contains(':'))
}

pub fn is_digest(text: &str) -> bool {
    let hex = |s: &str, n| s.len() == n && s.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    match text.split_once(':') {
        Some(("sha256", rest)) => hex(rest, 64),
        Some(("sha512", rest)) => hex(rest, 128),
        _ => false,
    }
}

pub fn is_tag(text: &str) -> bool {
    let mut bytes = text.bytes();
    text.len() <= MAX_TAG
        && bytes.next().is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_')
        && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

fn is_registry(text: &str) -> bool {
    let (host, port) = text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port)));
    let label = |l: &str| {
        !l.is_empty()
            && !l.starts_with('-')
            && !l.ends_with('-')
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    host.split('.').all(label) && port.is_none_or(|p| p.parse::<u16>().is_ok())
}

/// Lower-case letters and digits, with `.`, `_`, `__` or any number of `-` between them.
pub fn is_component(text: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    if !bytes.first().is_some_and(|b| alphanumeric(*b)) || !bytes.last().is_some_and(|b| alphanumeric(*b)) {
        return false;
    }
    bytes.split(|b| alphanumeric(*b)).all(|separator| match separator {
        [] | [b'.'] | [b'_'] | [b'_', b'_'] => true,
        more => more.iter().all(|b| *b == b'-'),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_completed_as_docker_does() {
        let digest = format!("sha256:{}", "a".repeat(64));
        for (given, full) in [
            ("python:3.11", "docker.io/library/python:3.11".to_owned()),
            ("python", "docker.io/library/python:latest".to_owned()),
            ("docker.io/python", "docker.io/library/python:latest".to_owned()),
            ("index.docker.io/library/python", "docker.io/library/python:latest".to_owned()),
            ("kubeflow/trainer:v2", "docker.io/kubeflow/trainer:v2".to_owned()),
            ("localhost/x", "localhost/x:latest".to_owned()),
            ("localhost:5000/x:1", "localhost:5000/x:1".to_owned()),
            ("registry:5000/a/b", "registry:5000/a/b:latest".to_owned()),
            ("ghcr.io/a/b__c-d--e.f:V_1", "ghcr.io/a/b__c-d--e.f:V_1".to_owned()),
            (&format!("python:3.11@{digest}"), format!("docker.io/library/python@{digest}")),
        ] {
            assert_eq!(normalize(given).unwrap(), full, "{given}");
        }
    }

    #[test]
    fn names_that_are_none_are_refused() {
        for bad in [
            "",
            ":",
            "@",
            "/",
            "a//b",
            "UPPER",
            "a:b:c",
            "../etc",
            "a/../b",
            "a b",
            "a_",
            "a___b",
            "a..b",
            "x:-tag",
            "x:",
            "-host.io/a",
            "host.io:99999/a",
            "a@sha256:short",
            "docker.io/",
            "x@sha256:",
            "a\n",
            "a/b@md5:d41d8cd98f00b204e9800998ecf8427e",
        ] {
            assert!(ImageName::parse(bad).is_err(), "{bad:?}");
        }
        assert!(ImageName::parse(&"a".repeat(300)).is_err());
    }

    #[test]
    fn the_most_exact_alias_wins() {
        let aliases = [
            ("registry.access.redhat.com/ubi9/python-311", "python:3.11"),
            ("registry.access.redhat.com/ubi9/python-311:special", "python:special"),
            ("quay.io/*", "mirror.lab/quay/*"),
            ("quay.io/lab/*", "mirror.lab/ours:1"),
        ]
        .into_iter()
        .map(|(a, b)| (a.to_owned(), b.to_owned()))
        .collect();
        let of = |text: &str| alias_of(&aliases, &ImageName::parse(text).unwrap());
        assert_eq!(of("registry.access.redhat.com/ubi9/python-311:latest").as_deref(), Some("python:3.11"));
        assert_eq!(of("registry.access.redhat.com/ubi9/python-311:special").as_deref(), Some("python:special"));
        assert_eq!(of("quay.io/a/b:2").as_deref(), Some("mirror.lab/quay/a/b:2"));
        assert_eq!(of("quay.io/lab/x:2").as_deref(), Some("mirror.lab/ours:1"));
        assert_eq!(of("python:3.11"), None);
    }
}

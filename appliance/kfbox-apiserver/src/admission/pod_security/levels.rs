//! Which policy a namespace's labels ask for (pod-security-admission `api/helpers.go`). Guarantee: there is always a
//! policy; a label that cannot be read makes enforcement strict, and warning and audit silent.

use crate::schema::FieldError;
use serde_json::json;
use std::fmt;

const ENFORCE: &str = "pod-security.kubernetes.io/enforce";
const AUDIT: &str = "pod-security.kubernetes.io/audit";
const WARN: &str = "pod-security.kubernetes.io/warn";

/// From lax to strict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Privileged,
    Baseline,
    Restricted,
}

/// The release whose rules hold: 1.N, or the newest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    Minor(u64),
    Latest,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LevelVersion {
    pub level: Level,
    pub version: Version,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    pub enforce: LevelVersion,
    pub audit: LevelVersion,
    pub warn: LevelVersion,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Privileged => "privileged",
            Self::Baseline => "baseline",
            Self::Restricted => "restricted",
        })
    }
}

impl fmt::Display for LevelVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.version {
            Version::Latest => write!(f, "{}:latest", self.level),
            Version::Minor(minor) => write!(f, "{}:v1.{minor}", self.level),
        }
    }
}

impl Level {
    fn parse(text: &str) -> Option<Self> {
        match text {
            "privileged" => Some(Self::Privileged),
            "baseline" => Some(Self::Baseline),
            "restricted" => Some(Self::Restricted),
            _ => None,
        }
    }
}

impl Version {
    fn parse(text: &str) -> Option<Self> {
        if text == "latest" {
            return Some(Self::Latest);
        }
        let digits = text.strip_prefix("v1.")?;
        let plain = digits.bytes().all(|b| b.is_ascii_digit()) && (digits == "0" || !digits.starts_with('0'));
        // Upstream's numbers end where Go's int does.
        plain.then(|| digits.parse::<i64>().ok()).flatten().map(|minor| Self::Minor(minor.unsigned_abs()))
    }
}

impl Policy {
    pub fn is_privileged(&self) -> bool {
        [self.enforce, self.audit, self.warn].iter().all(|mode| mode.level == Level::Privileged)
    }

    /// The policy, and what is wrong with the labels.
    pub fn of<'a>(label: impl Fn(&str) -> Option<&'a str>) -> (Self, Vec<FieldError>) {
        let mut errors = Vec::new();
        let mut invalid = |name: &str, value: &str, why: &str| {
            errors.push(FieldError::invalid(&format!("metadata.labels[{name}]"), &json!(value), why));
        };
        let mut mode = |name: &str, unreadable: Level| {
            let mut found = LevelVersion { level: Level::Privileged, version: Version::Latest };
            let given = label(name);
            let level = given.map(Level::parse);
            if let (Some(level), Some(value)) = (level, given) {
                found.level = level.unwrap_or(unreadable);
                if level.is_none() {
                    invalid(name, value, "must be one of privileged, baseline, restricted");
                }
            }
            let name = format!("{name}-version");
            let version = label(&name);
            if let Some(value) = version {
                let parsed = Version::parse(value);
                found.version = parsed.unwrap_or(Version::Latest);
                if parsed.is_none() {
                    invalid(&name, value, "must be \"latest\" or \"v1.x\"");
                }
            }
            (found, level, version.is_some())
        };
        let (enforce, enforce_level, _) = mode(ENFORCE, Level::Restricted);
        let (audit, _, _) = mode(AUDIT, Level::Privileged);
        let (mut warn, warn_level, warn_version) = mode(WARN, Level::Privileged);
        // Who enforces is warned too, also of templates, unless told otherwise.
        if warn_level.is_none() && enforce_level.flatten().is_some() && enforce.level > warn.level {
            warn.level = enforce.level;
            if !warn_version {
                warn.version = enforce.version;
            }
        }
        (Self { enforce, audit, warn }, errors)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(labels: &[(&str, &str)]) -> (Policy, Vec<FieldError>) {
        let labels: Vec<(String, String)> =
            labels.iter().map(|(k, v)| (format!("pod-security.kubernetes.io/{k}"), (*v).to_owned())).collect();
        Policy::of(|name| labels.iter().find(|(k, _)| k == name).map(|(_, v)| v.as_str()))
    }

    #[test]
    fn labels_make_the_policy() {
        let (none, errors) = policy(&[]);
        assert!(none.is_privileged() && errors.is_empty());
        let (found, _) = policy(&[("enforce", "baseline"), ("enforce-version", "v1.20")]);
        assert_eq!(found.enforce.to_string(), "baseline:v1.20");
        assert_eq!(found.warn, found.enforce, "warned of what is enforced");
        assert_eq!(found.audit.level, Level::Privileged);
        let (found, _) = policy(&[("enforce", "restricted"), ("warn", "baseline"), ("warn-version", "v1.0")]);
        assert_eq!(
            (found.enforce.to_string(), found.warn.to_string()),
            ("restricted:latest".into(), "baseline:v1.0".into())
        );
        let (found, _) = policy(&[("enforce", "baseline"), ("warn-version", "v1.3"), ("enforce-version", "v1.9")]);
        assert_eq!(found.warn.to_string(), "baseline:v1.3");
    }

    #[test]
    fn what_cannot_be_read_is_enforced_strictly_and_told() {
        let (found, errors) = policy(&[("enforce", "Baseline"), ("warn", "x"), ("audit-version", "v1.05")]);
        assert_eq!(found.enforce.level, Level::Restricted);
        assert_eq!(found.warn.level, Level::Privileged);
        let told: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(
            told,
            [
                "metadata.labels[pod-security.kubernetes.io/enforce]: Invalid value: \"Baseline\": must be one of privileged, baseline, restricted",
                "metadata.labels[pod-security.kubernetes.io/audit-version]: Invalid value: \"v1.05\": must be \"latest\" or \"v1.x\"",
                "metadata.labels[pod-security.kubernetes.io/warn]: Invalid value: \"x\": must be one of privileged, baseline, restricted",
            ]
        );
        for bad in ["v2.0", "1.20", "v1.", "v1.-1", "v1.99999999999999999999", "", "Latest", "v1.+1"] {
            assert!(Version::parse(bad).is_none(), "{bad}");
        }
        assert_eq!(Version::parse("v1.0"), Some(Version::Minor(0)));
        assert!(Version::Minor(900) < Version::Latest);
    }
}

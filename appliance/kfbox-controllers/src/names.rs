//! Names that follow from what they are made for. The alphabet is upstream's (`apimachinery/pkg/util/rand`): no vowels and
//! no characters that are easily taken for others.

use serde::Serialize;
use sha2::{Digest, Sha256};

const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
/// A DNS label.
const MAX_NAME: usize = 63;

fn encode(digest: &[u8], length: usize) -> String {
    digest.iter().take(length).map(|byte| char::from(ALPHABET[usize::from(*byte) % ALPHABET.len()])).collect()
}

/// Five characters that follow from the parts.
pub fn suffix(parts: &[&str]) -> String {
    digest(parts, 5)
}

/// `length` characters (32 at most) that follow from the parts.
pub fn digest(parts: &[&str], length: usize) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        // The length keeps ("ab", "c") and ("a", "bc") apart.
        hash.update(part.len().to_be_bytes());
        hash.update(part.as_bytes());
    }
    encode(&hash.finalize(), length)
}

/// `base-suffix`, the base cut so that the whole stays a DNS label.
pub fn child(base: &str, parts: &[&str]) -> String {
    let suffix = suffix(parts);
    let room = MAX_NAME - suffix.len() - 1;
    let base = base.get(..room).unwrap_or(base).trim_end_matches(['-', '.']);
    format!("{base}-{suffix}")
}

/// A short hash of a value's JSON, for revisions. `salt` resolves collisions.
pub fn revision<T: Serialize>(value: &T, salt: i32) -> String {
    // Through Value, whose maps are sorted.
    let json = serde_json::to_value(value).map(|v| v.to_string()).unwrap_or_default();
    let salt = if salt == 0 { String::new() } else { salt.to_string() };
    digest(&[&json, &salt], 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_stable_distinct_and_labels() {
        assert_eq!(child("web", &["uid", "1"]), child("web", &["uid", "1"]));
        assert_ne!(child("web", &["uid", "1"]), child("web", &["uid", "2"]));
        assert_ne!(suffix(&["ab", "c"]), suffix(&["a", "bc"]));
        let long = child(&"a".repeat(80), &["x"]);
        assert_eq!(long.len(), 63);
        assert!(child(&format!("{}-b", "a".repeat(56)), &["x"]).starts_with(&format!("{}-", "a".repeat(56))));
        assert_ne!(revision(&serde_json::json!({"a": 1}), 0), revision(&serde_json::json!({"a": 1}), 1));
    }
}

//! Paths from strangers: which request paths are looked at at all, and where a sign-in may return to.

use percent_encoding::percent_decode_str;
use url::Url;

/// Longest place to return to; longer ones are a mistake or an attack, and cookies of state are not kept for them.
const MAX_RETURN: usize = 2048;

/// False for paths whose meaning depends on who decodes them: dot segments, empty segments, backslashes and control
/// characters, plain or percent-encoded, once or twice.
pub fn is_plain(path: &str) -> bool {
    if !path.starts_with('/') || path.contains("//") {
        return false;
    }
    if !path.contains('%') {
        return !is_confusing(path.as_bytes());
    }
    let mut text = path.as_bytes().to_vec();
    for _ in 0..2 {
        text = percent_encoding::percent_decode(&text).collect();
        if is_confusing(&text) {
            return false;
        }
    }
    true
}

fn is_confusing(text: &[u8]) -> bool {
    text.iter().any(|b| b.is_ascii_control() || *b == b'\\')
        || text.split(|b| *b == b'/').any(|segment| segment == b"." || segment == b"..")
}

/// The place to return to after sign-in: always a path on this very host. Anything else becomes `/`.
pub fn return_path(wanted: &str) -> String {
    safe_path(wanted).unwrap_or_else(|| "/".to_owned())
}

fn safe_path(wanted: &str) -> Option<String> {
    let tail = wanted.strip_prefix('/')?;
    // Browsers read `/\host` and `/<tab>/host` as `//host`.
    if wanted.len() > MAX_RETURN || tail.starts_with(['/', '\\']) || wanted.chars().any(|c| c.is_control() || c == '\\')
    {
        return None;
    }
    let base = Url::parse("http://kfbox.invalid").ok()?;
    let url = base.join(wanted).ok()?;
    if url.origin() != base.origin() || !url.username().is_empty() || !is_plain(url.path()) {
        return None;
    }
    // Returning to the sign-in page itself would be a loop.
    let decoded = percent_decode_str(url.path()).decode_utf8_lossy();
    let leads_back = decoded.starts_with("/oauth2/") || decoded.starts_with("/dex/auth/");
    if leads_back && url.path() != crate::change_password::PATH {
        return None;
    }
    Some(url[url::Position::BeforePath..url::Position::AfterQuery].to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn returns_stay_on_this_host() {
        for good in [
            "/",
            "/runs?state=failed&x=%2F",
            "/runs/1",
            "/oauth2/password",
            "/dex/auth?client_id=a&redirect_uri=http%3A%2F%2Fb",
        ] {
            assert_eq!(return_path(good), good);
        }
        for bad in [
            "",
            "https://evil.example/",
            "//evil.example/",
            "/\\evil.example/",
            "\\\\evil.example",
            "/\t/evil.example",
            "/%2e%2e//evil.example",
            "/.//evil.example",
            "/a/..//evil.example",
            "javascript:alert(1)",
            "http:evil.example",
            "/x\r\nSet-Cookie: a=b",
            "/oauth2/start?rd=/",
            "/oauth2/password/../start",
            "/oauth2/password/",
            "/dex/auth/local/login?rd=/",
            "/dex/auth/corp/login?rd=/",
            "/dex/auth/corp?rd=/",
            "evil.example",
            "@evil.example",
        ] {
            assert_eq!(return_path(bad), "/", "{bad:?}");
        }
        assert_eq!(return_path(&format!("/{}", "a".repeat(5000))), "/");
    }

    #[test]
    fn confusing_paths_are_refused() {
        for good in ["/", "/apis/v2beta1/runs", "/runs/a%20b", "/x/..y/z.", "/pipeline/"] {
            assert!(is_plain(good), "{good}");
        }
        for bad in [
            "",
            "x",
            "//x",
            "/dex/../apis",
            "/dex/%2e%2e/apis",
            "/dex/%2E./apis",
            "/dex/..%2fapis",
            "/dex/%252e%252e/apis",
            "/a/./b",
            "/a%5c..%5cb",
            "/a%00",
            "/a%0d%0ab",
            "/healthz%2f..%2fapis",
        ] {
            assert!(!is_plain(bad), "{bad}");
        }
    }
}

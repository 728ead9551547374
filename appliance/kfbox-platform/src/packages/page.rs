//! Project pages: reading both forms of upstream's, writing both of ours, names.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::fmt::Write as _;
use url::Url;

pub const JSON_TYPE: &str = "application/vnd.pypi.simple.v1+json";
pub const HTML_TYPE: &str = "application/vnd.pypi.simple.v1+html";

/// A file of a project, as the index describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    pub name: String,
    /// Where upstream has it; a `file:` URL for a local one.
    pub url: Url,
    /// Lower-case hexadecimal.
    pub sha256: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requires_python: Option<String>,
    /// The reason, empty when none was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub yanked: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Metadata>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upload_time: Option<String>,
}

/// The core metadata file beside a wheel, PEP 658.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metadata {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PageError {
    #[error("the index sent JSON that is not a project page: {0}")]
    Json(String),
    #[error("the index sent a page that is not text")]
    Text,
}

/// PEP 503: lower case, runs of `-`, `_`, `.` become one `-`. None when it is no project name.
pub fn normalise(name: &str) -> Option<String> {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    let fine = name.len() <= 200
        && edge(name.chars().next())
        && edge(name.chars().last())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
    if !fine {
        return None;
    }
    let mut out = String::with_capacity(name.len());
    for c in name.chars() {
        match c {
            '-' | '_' | '.' if out.ends_with('-') => {}
            '-' | '_' | '.' => out.push('-'),
            c => out.push(c.to_ascii_lowercase()),
        }
    }
    Some(out)
}

pub fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// A distribution's file name: no separators, nothing hidden.
pub fn is_file_name(name: &str) -> bool {
    name.len() <= 300
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '+' | '!' | '~'))
}

/// The projects that a file name may belong to: for `a-b-1.0.tar.gz` both `a` and `a-b`.
pub fn projects_of(file: &str) -> Vec<String> {
    let mut found: Vec<String> =
        file.char_indices().filter(|(_, c)| *c == '-').filter_map(|(at, _)| normalise(&file[..at])).collect();
    found.dedup();
    found.reverse();
    found
}

/// Reads a page by its content type. Files without a SHA-256 are left out: they could not be verified.
pub fn read(content_type: &str, body: &[u8], base: &Url) -> Result<Vec<File>, PageError> {
    if content_type.contains("json") {
        read_json(body, base)
    } else {
        Ok(read_html(std::str::from_utf8(body).map_err(|_| PageError::Text)?, base))
    }
}

fn read_json(body: &[u8], base: &Url) -> Result<Vec<File>, PageError> {
    let page: Value = serde_json::from_slice(body).map_err(|e| PageError::Json(e.to_string()))?;
    let files = page["files"].as_array().ok_or_else(|| PageError::Json("no list of files".into()))?;
    Ok(files.iter().filter_map(|file| json_file(file, base)).collect())
}

fn json_file(file: &Value, base: &Url) -> Option<File> {
    let text = |key: &str| file[key].as_str().map(str::to_owned);
    let metadata =
        ["core-metadata", "dist-info-metadata", "data-dist-info-metadata"].iter().find_map(|key| match &file[*key] {
            Value::Bool(true) => Some(Metadata { sha256: None }),
            Value::Object(hashes) => Some(Metadata { sha256: hashes.get("sha256")?.as_str().map(str::to_lowercase) }),
            _ => None,
        });
    let yanked = match &file["yanked"] {
        Value::Bool(true) => Some(String::new()),
        Value::String(why) => Some(why.clone()),
        _ => None,
    };
    checked(File {
        name: text("filename")?,
        url: base.join(file["url"].as_str()?).ok()?,
        sha256: file["hashes"]["sha256"].as_str()?.to_lowercase(),
        requires_python: text("requires-python"),
        yanked,
        metadata,
        size: file["size"].as_u64(),
        upload_time: text("upload-time"),
    })
}

fn checked(mut file: File) -> Option<File> {
    file.url.set_fragment(None);
    if file.metadata.as_ref().and_then(|m| m.sha256.as_ref()).is_some_and(|h| !is_sha256(h)) {
        file.metadata = None;
    }
    let fine = is_sha256(&file.sha256) && is_file_name(&file.name) && matches!(file.url.scheme(), "http" | "https");
    fine.then_some(file)
}

fn read_html(page: &str, base: &Url) -> Vec<File> {
    let mut files = Vec::new();
    let mut rest = page;
    let mut base = base.clone();
    while let Some(at) = rest.find('<') {
        rest = &rest[at + 1..];
        let Some(end) = tag_end(rest) else { break };
        let (tag, after) = (&rest[..end], &rest[end + 1..]);
        rest = after;
        let (name, attributes) = tag.split_once(|c: char| c.is_ascii_whitespace()).unwrap_or((tag, ""));
        if name.eq_ignore_ascii_case("base") {
            let href = attributes_of(attributes).into_iter().find(|(k, _)| k == "href");
            if let Some(url) = href.and_then(|(_, href)| base.join(&href).ok()) {
                base = url;
            }
        } else if name.eq_ignore_ascii_case("a") {
            let text = after.split('<').next().unwrap_or("");
            files.extend(anchor(attributes, &unescape(text.trim()), &base));
        }
    }
    files
}

/// Where a tag ends: `>` outside quotes, for attributes like `data-requires-python=">=3.8"`.
fn tag_end(text: &str) -> Option<usize> {
    let mut quote = None;
    for (at, byte) in text.bytes().enumerate() {
        match (quote, byte) {
            (None, b'>') => return Some(at),
            (None, b'"' | b'\'') => quote = Some(byte),
            (Some(q), b) if q == b => quote = None,
            _ => {}
        }
    }
    None
}

fn attributes_of(text: &str) -> Vec<(String, String)> {
    let mut pairs = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let end = rest.find(|c: char| c == '=' || c.is_ascii_whitespace()).unwrap_or(rest.len());
        let name = rest[..end].trim_end_matches('/').to_ascii_lowercase();
        rest = rest[end..].trim_start();
        let mut value = "";
        if let Some(after) = rest.strip_prefix('=') {
            let after = after.trim_start();
            let quoted = after.chars().next().filter(|c| matches!(c, '"' | '\''));
            (value, rest) = match quoted {
                Some(q) => after[1..].split_once(q).unwrap_or((&after[1..], "")),
                None => after.split_at(after.find(|c: char| c.is_ascii_whitespace()).unwrap_or(after.len())),
            };
            rest = rest.trim_start();
        }
        if !name.is_empty() {
            pairs.push((name, unescape(value)));
        }
    }
    pairs
}

fn anchor(attributes: &str, text: &str, base: &Url) -> Option<File> {
    let attributes = attributes_of(attributes);
    let get = |key: &str| attributes.iter().find(|(k, _)| k == key).map(|(_, v)| v.clone());
    let url = base.join(&get("href")?).ok()?;
    let hash = |text: &str| text.split('&').find_map(|p| p.strip_prefix("sha256=")).map(str::to_lowercase);
    let sha256 = url.fragment().and_then(hash)?;
    let metadata = get("data-core-metadata").or_else(|| get("data-dist-info-metadata"));
    checked(File {
        name: text.to_owned(),
        sha256,
        requires_python: get("data-requires-python"),
        yanked: get("data-yanked"),
        metadata: metadata.filter(|m| m != "false").map(|m| Metadata { sha256: hash(&m) }),
        size: None,
        upload_time: get("data-upload-time"),
        url,
    })
}

fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('&') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        // Entities that index pages use are short; a lone ampersand stays.
        let entity = rest.find(';').filter(|end| *end <= 8).map(|end| (&rest[1..end], end));
        let known = entity.and_then(|(name, end)| {
            let c = match name {
                "amp" => '&',
                "lt" => '<',
                "gt" => '>',
                "quot" => '"',
                "apos" => '\'',
                _ => {
                    let number = name.strip_prefix('#')?;
                    let code = match number.strip_prefix(['x', 'X']) {
                        Some(hex) => u32::from_str_radix(hex, 16).ok()?,
                        None => number.parse().ok()?,
                    };
                    char::from_u32(code)?
                }
            };
            Some((c, end))
        });
        match known {
            Some((c, end)) => {
                out.push(c);
                rest = &rest[end + 1..];
            }
            None => {
                out.push('&');
                rest = &rest[1..];
            }
        }
    }
    out.push_str(rest);
    out
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

/// Our address of a file. Relative to a project page, so that it holds under any host name; `!` and `+` are fine as
/// they are in a path.
pub fn our_url(file: &File) -> String {
    format!("../../files/{}/{}", file.sha256, file.name)
}

pub fn write_json(project: &str, files: &[File]) -> Value {
    let files: Vec<Value> = files
        .iter()
        .map(|f| {
            let mut entry = json!({
                "filename": f.name,
                "url": our_url(f),
                "hashes": {"sha256": f.sha256},
                "yanked": match &f.yanked {
                    None => json!(false),
                    Some(why) if why.is_empty() => json!(true),
                    Some(why) => json!(why),
                },
            });
            let mut set = |key: &str, value: Value| {
                entry[key] = value;
            };
            if let Some(text) = &f.requires_python {
                set("requires-python", json!(text));
            }
            if let Some(metadata) = &f.metadata {
                let value = metadata.sha256.as_ref().map_or(json!(true), |h| json!({"sha256": h}));
                set("core-metadata", value.clone());
                set("dist-info-metadata", value);
            }
            if let Some(size) = f.size {
                set("size", json!(size));
            }
            if let Some(time) = &f.upload_time {
                set("upload-time", json!(time));
            }
            entry
        })
        .collect();
    // Version 1.0 of the API: 1.1 would promise a size for every file, which HTML pages do not tell.
    json!({"meta": {"api-version": "1.0"}, "name": project, "files": files})
}

pub fn write_html(project: &str, files: &[File]) -> String {
    let mut page = format!(
        "<!DOCTYPE html>\n<html>\n<head><meta name=\"pypi:repository-version\" content=\"1.0\">\
         <title>Links for {0}</title></head>\n<body>\n<h1>Links for {0}</h1>\n",
        escape(project)
    );
    for f in files {
        let mut attributes = String::new();
        if let Some(text) = &f.requires_python {
            let _ = write!(attributes, " data-requires-python=\"{}\"", escape(text));
        }
        if let Some(why) = &f.yanked {
            let _ = write!(attributes, " data-yanked=\"{}\"", escape(why));
        }
        if let Some(metadata) = &f.metadata {
            let value = metadata.sha256.as_ref().map_or_else(|| "true".to_owned(), |h| format!("sha256={h}"));
            let _ = write!(attributes, " data-core-metadata=\"{value}\" data-dist-info-metadata=\"{value}\"");
        }
        let _ = writeln!(
            page,
            "<a href=\"{}#sha256={}\"{attributes}>{}</a><br>",
            escape(&our_url(f)),
            f.sha256,
            escape(&f.name)
        );
    }
    page.push_str("</body>\n</html>\n");
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHA: &str = "207506239b23eaeb6e6e816b4f0d8e6bad15d381098065320e26d859e56d5fce";

    fn base() -> Url {
        "https://pypi.org/simple/demo/".parse().unwrap()
    }

    #[test]
    fn names_are_normalised_and_others_refused() {
        assert_eq!(normalise("Foo._-Bar").as_deref(), Some("foo-bar"));
        for bad in ["", "-x", "x-", "../x", "a/b", "a b", "a%2f", "é", ".x"] {
            assert_eq!(normalise(bad), None, "{bad}");
        }
        assert_eq!(projects_of("zope.interface-5.0.tar.gz"), ["zope-interface"]);
        assert_eq!(projects_of("a-b-1.0.tar.gz"), ["a-b", "a"]);
        for bad in ["../x.whl", "a/b.whl", ".x", "a\0.whl", "", "a%2f.whl"] {
            assert!(!is_file_name(bad), "{bad}");
        }
        assert!(is_file_name("torch-2.1.0+cu121-cp311-cp311-linux_x86_64.whl"));
    }

    #[test]
    fn html_and_json_pages_mean_the_same() {
        let html = format!(
            "<!DOCTYPE html><html><body><A HREF='/packages/demo-1.0-py3-none-any.whl#sha256={SHA}' \
             data-requires-python=\"&gt;=3.8, !=3.9.*\" data-yanked='bad &amp; old' data-core-metadata=\"sha256={SHA}\" \
             data-upload-time=\"2020-01-01T00:00:00Z\">demo-1.0-py3-none-any.whl</A><br/>\
             <a href=\"https://x.example/nohash-1.0.tar.gz\">nohash-1.0.tar.gz</a>\
             <a href=\"javascript:alert(1)#sha256={SHA}\">demo-2.0.tar.gz</a>\
             <a href=\"../../evil#sha256={SHA}\">../../etc/passwd</a></body></html>"
        );
        let json = serde_json::json!({"files": [{
            "filename": "demo-1.0-py3-none-any.whl", "url": "https://pypi.org/packages/demo-1.0-py3-none-any.whl",
            "hashes": {"sha256": SHA}, "requires-python": ">=3.8, !=3.9.*", "yanked": "bad & old",
            "core-metadata": {"sha256": SHA}, "upload-time": "2020-01-01T00:00:00Z"
        }, {"filename": "nohash-1.0.tar.gz", "url": "x", "hashes": {}}]});
        let from_html = read("text/html; charset=utf-8", html.as_bytes(), &base()).unwrap();
        assert_eq!(from_html.len(), 1, "{from_html:?}");
        assert_eq!(from_html, read(JSON_TYPE, json.to_string().as_bytes(), &base()).unwrap());
        // What we write reads back, at our address.
        let ours = "http://10.0.0.1:8886/simple/demo/".parse().unwrap();
        let again = read("text/html", write_html("demo", &from_html).as_bytes(), &ours).unwrap();
        assert_eq!(again[0].url.as_str(), format!("http://10.0.0.1:8886/files/{SHA}/demo-1.0-py3-none-any.whl"));
        assert_eq!(again[0].requires_python, from_html[0].requires_python);
        assert_eq!(again[0].metadata, from_html[0].metadata);
        let again = read(JSON_TYPE, write_json("demo", &from_html).to_string().as_bytes(), &ours).unwrap();
        assert_eq!(again[0].yanked.as_deref(), Some("bad & old"));
    }

    #[test]
    fn broken_pages_are_errors_or_empty_never_a_panic() {
        assert!(read(JSON_TYPE, b"{", &base()).is_err());
        assert!(read(JSON_TYPE, b"[]", &base()).is_err());
        for html in
            ["<", "<a", "<a href=", "<a href='x", "<a =x>&#x;&#99999999;&</a>", "<é é='é'>", "&;<a href=x#sha256=>"]
        {
            assert_eq!(read("text/html", html.as_bytes(), &base()), Ok(Vec::new()), "{html}");
        }
    }
}

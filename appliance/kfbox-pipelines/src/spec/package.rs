//! Uploaded packages: YAML or JSON as it is, or inside a `.zip`, `.tar.gz` or `.tgz`. Invariant: nothing is written to
//! disk, and no archive makes the daemon hold more than [`MAX_PACKAGE`] bytes.

use flate2::read::{DeflateDecoder, GzDecoder};
use serde::Deserialize;
use serde_json::Value;
use std::io::Read;

/// The largest package and the largest pipeline file in an archive; the limit of upstream's `MaxFileLength`.
pub const MAX_PACKAGE: usize = 32 << 20;
/// Entries looked at in an archive: a package has a handful.
const MAX_ENTRIES: usize = 1000;

#[derive(Debug, thiserror::Error)]
pub enum PackageError {
    #[error("the package is empty")]
    Empty,
    #[error("the package is larger than {} MiB", MAX_PACKAGE >> 20)]
    TooLarge,
    #[error("the {kind} archive cannot be read: {why}")]
    Archive { kind: &'static str, why: String },
    #[error("the archive holds no .yaml file")]
    NoYaml,
    #[error("the archive holds {0} .yaml files and none is called pipeline.yaml")]
    ManyYaml(usize),
    #[error("the package is not UTF-8 text, nor a zip, nor a gzipped tar archive")]
    NotText,
    #[error("the YAML cannot be read: {0}")]
    Yaml(String),
    #[error("the package holds no pipeline: it should be the YAML file that kfp's compiler writes")]
    NoDocument,
    #[error("document {0} of the package is not a mapping")]
    NotMapping(usize),
}

/// The documents of a package, still untyped: the pipeline and, when there is one, its platform part.
#[derive(Debug, Clone, PartialEq)]
pub struct Documents {
    pub pipeline_spec: Value,
    pub platform_spec: Option<Value>,
}

/// Reads a package of any of the formats, told apart by content: names lie.
pub fn read(bytes: &[u8]) -> Result<Documents, PackageError> {
    if bytes.is_empty() {
        return Err(PackageError::Empty);
    }
    if bytes.len() > MAX_PACKAGE {
        return Err(PackageError::TooLarge);
    }
    if bytes.starts_with(b"PK") {
        return documents(&from_zip(bytes)?);
    }
    if bytes.starts_with(&[0x1f, 0x8b]) {
        return documents(&from_tar_gz(bytes)?);
    }
    documents(bytes)
}

fn documents(bytes: &[u8]) -> Result<Documents, PackageError> {
    let text = std::str::from_utf8(bytes).map_err(|_| PackageError::NotText)?;
    let mut found = Vec::new();
    for document in serde_yaml::Deserializer::from_str(text) {
        let value = Value::deserialize(document).map_err(|e| PackageError::Yaml(e.to_string()))?;
        if value.is_null() {
            continue;
        }
        if !value.is_object() {
            return Err(PackageError::NotMapping(found.len() + 1));
        }
        found.push(value);
    }
    let mut found = found.into_iter();
    let pipeline_spec = found.next().ok_or(PackageError::NoDocument)?;
    // Later documents are merged at the top, as the SDK does.
    let platform_spec = found.reduce(|mut all, next| {
        if let (Value::Object(all), Value::Object(next)) = (&mut all, next) {
            all.extend(next);
        }
        all
    });
    Ok(split(pipeline_spec, platform_spec))
}

/// A run's inline spec is either the pipeline itself or `{pipeline_spec, platform_spec}`.
pub fn split(value: Value, platform: Option<Value>) -> Documents {
    let Value::Object(mut map) = value else {
        return Documents { pipeline_spec: value, platform_spec: platform };
    };
    for (pipeline_key, platform_key) in [("pipeline_spec", "platform_spec"), ("pipelineSpec", "platformSpec")] {
        if let Some(inner) = map.remove(pipeline_key) {
            return Documents { pipeline_spec: inner, platform_spec: map.remove(platform_key).or(platform) };
        }
    }
    Documents { pipeline_spec: Value::Object(map), platform_spec: platform }
}

fn is_yaml(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    name.ends_with(".yaml") || name.ends_with(".yml") || name.ends_with(".json")
}

fn choose<T>(entries: Vec<(String, T)>) -> Result<T, PackageError> {
    let count = entries.len();
    let mut only = None;
    for (name, entry) in entries {
        if name == "pipeline.yaml" || name == "./pipeline.yaml" {
            return Ok(entry);
        }
        only = Some(entry);
    }
    match (count, only) {
        (1, Some(entry)) => Ok(entry),
        (0, _) => Err(PackageError::NoYaml),
        _ => Err(PackageError::ManyYaml(count)),
    }
}

fn bounded(mut reader: impl Read, kind: &'static str) -> Result<Vec<u8>, PackageError> {
    let mut content = Vec::new();
    let limit = u64::try_from(MAX_PACKAGE).unwrap_or(u64::MAX).saturating_add(1);
    reader
        .by_ref()
        .take(limit)
        .read_to_end(&mut content)
        .map_err(|e| PackageError::Archive { kind, why: e.to_string() })?;
    if content.len() > MAX_PACKAGE {
        return Err(PackageError::TooLarge);
    }
    Ok(content)
}

fn from_tar_gz(bytes: &[u8]) -> Result<Vec<u8>, PackageError> {
    let broken = |e: std::io::Error| PackageError::Archive { kind: "tar.gz", why: e.to_string() };
    // Everything before the entry we want is inflated too, so the whole stream is bounded.
    let limit = u64::try_from(MAX_PACKAGE).unwrap_or(u64::MAX).saturating_mul(2);
    let mut archive = tar::Archive::new(GzDecoder::new(bytes).take(limit));
    let mut entries = Vec::new();
    for (seen, entry) in archive.entries().map_err(broken)?.enumerate() {
        let entry = entry.map_err(broken)?;
        if seen >= MAX_ENTRIES {
            return Err(PackageError::Archive {
                kind: "tar.gz",
                why: format!("it has more than {MAX_ENTRIES} entries"),
            });
        }
        let name = entry.path().map_err(broken)?.to_string_lossy().into_owned();
        if entry.header().entry_type().is_file() && is_yaml(&name) {
            entries.push((name, bounded(entry, "tar.gz")?));
        }
    }
    choose(entries)
}

/// A reader for the small part of the zip format that packages use: stored and deflated entries, no encryption, no
/// zip64. Source: PKWARE's APPNOTE, sections 4.3.7, 4.3.12 and 4.3.16.
fn from_zip(bytes: &[u8]) -> Result<Vec<u8>, PackageError> {
    let broken = |why: &str| PackageError::Archive { kind: "zip", why: why.to_owned() };
    let u16_at =
        |at: usize| bytes.get(at..at + 2).and_then(|b| Some(usize::from(u16::from_le_bytes(b.try_into().ok()?))));
    let u32_at =
        |at: usize| bytes.get(at..at + 4).and_then(|b| usize::try_from(u32::from_le_bytes(b.try_into().ok()?)).ok());
    let end = (0..=bytes.len().saturating_sub(22))
        .rev()
        .take(22 + usize::from(u16::MAX))
        .find(|&at| bytes[at..].starts_with(b"PK\x05\x06"))
        .ok_or_else(|| broken("its end record is missing; the file is cut off or not a zip"))?;
    let cut = || broken("a record points outside the file");
    let count = u16_at(end + 10).ok_or_else(cut)?;
    let mut at = u32_at(end + 16).ok_or_else(cut)?;
    if count > MAX_ENTRIES {
        return Err(broken("it has too many entries"));
    }
    let mut entries = Vec::new();
    for _ in 0..count {
        if !bytes.get(at..).is_some_and(|rest| rest.starts_with(b"PK\x01\x02")) {
            return Err(broken("its directory is damaged"));
        }
        let field = |offset: usize| u16_at(at + offset).ok_or_else(cut);
        let (flags, method, name_len, extra, comment) = (field(8)?, field(10)?, field(28)?, field(30)?, field(32)?);
        let packed = u32_at(at + 20).ok_or_else(cut)?;
        let local = u32_at(at + 42).ok_or_else(cut)?;
        let name = bytes.get(at + 46..at + 46 + name_len).ok_or_else(cut)?;
        let name = String::from_utf8_lossy(name).into_owned();
        if is_yaml(&name) {
            if flags & 1 != 0 {
                return Err(broken("it is encrypted"));
            }
            let data = local + 30 + u16_at(local + 26).ok_or_else(cut)? + u16_at(local + 28).ok_or_else(cut)?;
            let data = bytes.get(data..data.saturating_add(packed)).ok_or_else(cut)?;
            entries.push((name, (method, data)));
        }
        at += 46 + name_len + extra + comment;
    }
    let (method, data) = choose(entries)?;
    match method {
        0 => Ok(data.to_vec()),
        8 => bounded(DeflateDecoder::new(data), "zip"),
        other => Err(broken(&format!("it uses compression method {other}; only stored and deflate are read"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    const YAML: &str = "pipelineInfo: {name: x}\n---\nplatforms: {kubernetes: {}}\n";

    fn tar_gz(name: &str, content: &[u8]) -> Vec<u8> {
        let mut builder = tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, content).unwrap();
        builder.into_inner().unwrap().finish().unwrap()
    }

    /// One deflated entry.
    fn zip(name: &str, content: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(content).unwrap();
        let data = encoder.finish().unwrap();
        let mut out = Vec::new();
        let sizes = |out: &mut Vec<u8>| {
            out.extend(0u32.to_le_bytes());
            out.extend((data.len() as u32).to_le_bytes());
            out.extend((content.len() as u32).to_le_bytes());
            out.extend((name.len() as u16).to_le_bytes());
            out.extend(0u16.to_le_bytes());
        };
        out.extend(b"PK\x03\x04\x14\0\0\0\x08\0\0\0\0\0");
        sizes(&mut out);
        out.extend(name.as_bytes());
        out.extend(&data);
        let directory = out.len() as u32;
        out.extend(b"PK\x01\x02\x14\0\x14\0\0\0\x08\0\0\0\0\0");
        sizes(&mut out);
        out.extend([0u8; 14]);
        out.extend(name.as_bytes());
        let size = out.len() as u32 - directory;
        out.extend(b"PK\x05\x06\0\0\0\0\x01\0\x01\0");
        out.extend(size.to_le_bytes());
        out.extend(directory.to_le_bytes());
        out.extend(0u16.to_le_bytes());
        out
    }

    #[test]
    fn every_format_gives_the_same_documents() {
        let plain = read(YAML.as_bytes()).unwrap();
        assert_eq!(plain.pipeline_spec["pipelineInfo"]["name"], "x");
        assert!(plain.platform_spec.is_some());
        assert_eq!(read(&tar_gz("a/pipeline.yml", YAML.as_bytes())).unwrap(), plain);
        assert_eq!(read(&zip("pipeline.yaml", YAML.as_bytes())).unwrap(), plain);
    }

    #[test]
    fn an_archive_bomb_is_refused() {
        let zeros = vec![b'#'; MAX_PACKAGE + 1];
        assert!(matches!(read(&tar_gz("p.yaml", &zeros)), Err(PackageError::TooLarge)));
        assert!(matches!(read(&zip("p.yaml", &zeros)), Err(PackageError::TooLarge)));
    }

    #[test]
    fn every_cut_of_a_zip_is_an_error_and_no_panic() {
        let whole = zip("p.yaml", YAML.as_bytes());
        for end in 0..whole.len() {
            assert!(read(&whole[..end]).is_err(), "{end}");
        }
        assert!(read(b"a: &a [x,x,x,x]\nb: &b [*a,*a,*a,*a]\nc: ]").is_err());
    }
}

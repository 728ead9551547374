//! pip's own settings on this machine (`PIP_*` variables, then its configuration files), so that pods get packages from
//! where the machine does. Source: pip's documentation, "Configuration".

use std::path::PathBuf;

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Settings {
    pub index_url: Option<String>,
    pub find_links: Vec<PathBuf>,
    pub cert: Option<PathBuf>,
}

pub fn settings() -> Settings {
    #[expect(clippy::disallowed_methods, reason = "pip's own rule for where its configuration lies")]
    let variable = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
    let home = variable("HOME").unwrap_or_else(|| "/root".into());
    let files = ["/etc/pip.conf".to_owned(), format!("{home}/.pip/pip.conf"), format!("{home}/.config/pip/pip.conf")];
    let mut texts: Vec<String> = files.iter().filter_map(|file| std::fs::read_to_string(file).ok()).collect();
    texts.extend(variable("PIP_CONFIG_FILE").and_then(|file| std::fs::read_to_string(file).ok()));
    resolve(&texts, variable)
}

/// Later texts win over earlier, variables over all.
fn resolve(texts: &[String], variable: impl Fn(&str) -> Option<String>) -> Settings {
    let find = |key: &str| {
        let from_files = || texts.iter().rev().find_map(|text| value(text, key));
        variable(&format!("PIP_{}", key.to_uppercase().replace('-', "_"))).or_else(from_files)
    };
    let links = find("find-links").unwrap_or_default();
    Settings {
        index_url: find("index-url"),
        find_links: links.split_whitespace().map(PathBuf::from).filter(|p| p.is_dir()).collect(),
        cert: find("cert").map(PathBuf::from).filter(|p| p.is_file()),
    }
}

/// A key of the `[global]` section.
fn value(text: &str, key: &str) -> Option<String> {
    let mut section = "";
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            section = name;
        } else if section == "global"
            && let Some((name, value)) = line.split_once('=')
            && name.trim().replace('_', "-") == key
        {
            return Some(value.trim().to_owned()).filter(|v| !v.is_empty());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_wins_over_a_file_and_a_later_file_over_an_earlier() {
        let texts = [
            "[install]\nindex-url = https://not.this\n[global]\nindex-url = https://first/simple\n".to_owned(),
            "[global]\nindex_url=https://second/simple\n".to_owned(),
        ];
        let none = |_: &str| None;
        assert_eq!(resolve(&texts, none).index_url.as_deref(), Some("https://second/simple"));
        let variable = |name: &str| (name == "PIP_INDEX_URL").then(|| "https://third/simple".to_owned());
        assert_eq!(resolve(&texts, variable).index_url.as_deref(), Some("https://third/simple"));
        assert_eq!(resolve(&[], none), Settings::default());
    }
}

//! The layers of `appliance/ARCHITECTURE.md`, held against what cargo sees.

use std::{collections::BTreeMap, path::Path};

/// Reads the table of crates: name to (row, crates it may use).
fn table(text: &str) -> BTreeMap<String, (u8, Vec<String>)> {
    text.lines()
        .filter_map(|line| {
            let cells: Vec<&str> = line.split('|').map(str::trim).collect();
            let [_, row, name, _, uses, _] = cells[..] else { return None };
            let name = name.strip_prefix('`')?.strip_suffix('`')?;
            let uses = uses.split(',').map(str::trim).filter(|u| !u.is_empty()).map(String::from).collect();
            Some((name.to_owned(), (row.parse().ok()?, uses)))
        })
        .collect()
}

#[test]
fn crates_depend_only_downwards_and_as_the_architecture_says() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let table = table(&std::fs::read_to_string(root.join("appliance/ARCHITECTURE.md")).unwrap());
    assert!(table.len() >= 14, "the table of crates was not found: {table:?}");
    let metadata =
        cargo_metadata::MetadataCommand::new().manifest_path(root.join("Cargo.toml")).no_deps().exec().unwrap();
    let mut wrong = Vec::new();
    for package in metadata.packages.iter().filter(|p| p.name.as_str() != "kfbox-tests") {
        let Some((row, uses)) = table.get(package.name.as_str()) else {
            wrong.push(format!("{} is not in the table", package.name));
            continue;
        };
        let ours = package
            .dependencies
            .iter()
            .filter(|d| d.kind == cargo_metadata::DependencyKind::Normal && table.contains_key(&d.name));
        for dependency in ours {
            let below = table[&dependency.name].0 < *row;
            let named = uses.iter().any(|u| u == "all" || format!("kfbox-{u}") == dependency.name);
            if !below || !named {
                wrong.push(format!("{} must not use {}", package.name, dependency.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn one_stack_of_each_kind_is_linked() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let lock = std::fs::read_to_string(root.join("Cargo.lock")).unwrap();
    for name in ["openssl", "openssl-sys", "native-tls", "async-std", "actix-web"] {
        assert!(
            !lock.contains(&format!("name = \"{name}\"\n")),
            "{name} came in; see what brings it: cargo tree -i {name}"
        );
    }
    for name in ["hyper", "axum", "http", "rustls", "tonic", "prost"] {
        let versions = lock.matches(&format!("name = \"{name}\"\n")).count();
        assert_eq!(versions, 1, "{versions} versions of {name}: cargo tree -d");
    }
}

//! The definitions under `bundles/` are generated from the types of this crate and checked in.

use crate::{pipelines, profile, snapshots};
use std::{env, fs, path::Path};

/// With `KFBOX_WRITE_BUNDLES` set, writes the files; without, they must be what would be written.
#[test]
fn bundles_are_what_the_types_say() {
    let header = "# Generated from appliance/kfbox-api; write anew with: KFBOX_WRITE_BUNDLES=1 cargo test -p kfbox-api bundles\n";
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../bundles");
    let text = |crd| serde_yaml::to_string(&crd).unwrap();
    let pipelines: Vec<String> = pipelines::crds().into_iter().map(text).collect();
    let snapshots: Vec<String> = snapshots::crds().into_iter().map(text).collect();
    for (file, wanted) in [
        ("profiles/crd.yaml", text(profile::definition())),
        ("pipelines/crds.yaml", pipelines.join("---\n")),
        ("snapshots/crds.yaml", snapshots.join("---\n")),
    ] {
        let (path, wanted) = (folder.join(file), format!("{header}{wanted}"));
        if env::var_os("KFBOX_WRITE_BUNDLES").is_some() {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, &wanted).unwrap();
        }
        let found = fs::read_to_string(&path).unwrap_or_default();
        assert!(found == wanted, "{} is not what the type says; see its first line", path.display());
    }
}

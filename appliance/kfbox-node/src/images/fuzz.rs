//! Layers that nobody wrote by hand. Whatever an archive says, nothing outside of its folder changes, and what is inside is
//! only what a layer may hold.

use super::{
    tests::{Entry, tar_of},
    unpack,
};
use proptest::prelude::*;
use std::{
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::Path,
};
use tar::EntryType as Kind;

/// Few names, so that entries meet: links in the way of files, files in the way of folders.
const NAMES: [&str; 9] = ["a", "b", "..", ".", "", ".wh.a", ".wh..wh..opq", "victim", ".wh..."];
const TARGETS: [&str; 8] = ["..", "../outside", "../outside/victim", "a", "/", "/proc/self/root", "b/../..", "victim"];
const KINDS: [Kind; 8] =
    [Kind::Regular, Kind::Directory, Kind::Symlink, Kind::Link, Kind::Char, Kind::Block, Kind::Fifo, Kind::GNUSparse];
const ATTRIBUTES: [&str; 4] = ["user.x", "trusted.overlay.opaque", "trusted.overlay.redirect", "security.capability"];

#[derive(Debug, Clone)]
struct Drawn {
    path: String,
    kind: Kind,
    link: &'static str,
    content: Vec<u8>,
    mode: u32,
    attribute: Option<&'static str>,
}

fn drawn() -> impl Strategy<Value = Drawn> {
    let path = (any::<bool>(), prop::collection::vec(prop::sample::select(&NAMES[..]), 1..4))
        .prop_map(|(absolute, parts)| format!("{}{}", if absolute { "/" } else { "" }, parts.join("/")));
    let kind = prop::sample::select(&KINDS[..]);
    let link = prop::sample::select(&TARGETS[..]);
    let content = prop::collection::vec(any::<u8>(), 0..40);
    let attribute = prop::option::weighted(0.2, prop::sample::select(&ATTRIBUTES[..]));
    (path, kind, link, content, 0_u32..0o10000, attribute)
        .prop_map(|(path, kind, link, content, mode, attribute)| Drawn { path, kind, link, content, mode, attribute })
}

fn archive(drawn: &[Drawn]) -> Vec<u8> {
    let entries: Vec<Entry<'_>> = drawn
        .iter()
        .map(|d| Entry {
            path: &d.path,
            kind: d.kind,
            link: if matches!(d.kind, Kind::Symlink | Kind::Link) { d.link } else { "" },
            content: if d.kind == Kind::Regular { &d.content } else { b"" },
            mode: d.mode,
            owner: 7,
            xattr: d.attribute.map(|name| (name, &b"y"[..])),
        })
        .collect();
    tar_of(&entries)
}

/// Unpacks beside a folder that must not change, and looks at everything.
fn unpack_and_look(bytes: &[u8]) {
    let folder = tempfile::tempdir().unwrap();
    let (target, outside) = (folder.path().join("layer"), folder.path().join("outside"));
    fs::create_dir(&target).unwrap();
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("victim"), "untouched").unwrap();
    let seen = |path: &Path| {
        let meta = fs::symlink_metadata(path).unwrap();
        (meta.mode(), meta.uid(), meta.gid(), meta.nlink(), meta.mtime(), meta.ctime_nsec())
    };
    let before = [outside.clone(), outside.join("victim")].map(|p| seen(&p));
    drop(unpack::unpack(bytes, &target, None, &mut |_| {}));
    assert_eq!([outside.clone(), outside.join("victim")].map(|p| seen(&p)), before);
    assert_eq!(fs::read(outside.join("victim")).unwrap(), b"untouched");
    let names: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "{names:?}");
    let mut folders = vec![target];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            assert!(!meta.file_type().is_block_device(), "{}", path.display());
            // The only device is the one by which overlayfs hides what is below.
            assert!(!meta.file_type().is_char_device() || meta.rdev() == 0, "{}", path.display());
            if meta.is_dir() {
                let opaque = xattr::get(&path, "trusted.overlay.opaque").unwrap();
                assert!(opaque.is_none_or(|value| value == b"y"), "{}", path.display());
                folders.push(path.clone());
            }
            let redirect = xattr::get(&path, "trusted.overlay.redirect").ok().flatten();
            assert!(redirect.is_none(), "{}", path.display());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn no_archive_reaches_out_of_its_folder(entries in prop::collection::vec(drawn(), 1..12)) {
        unpack_and_look(&archive(&entries));
    }

    #[test]
    fn damaged_archives_fail_and_nothing_more(
        entries in prop::collection::vec(drawn(), 1..6),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..24),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = archive(&entries);
        for (place, value) in damage {
            let place = place.index(bytes.len());
            bytes[place] = value;
        }
        bytes.truncate(cut.index(bytes.len()) + 1);
        unpack_and_look(&bytes);
    }
}

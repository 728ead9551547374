//! Imports, damage and hostile layers. These run as root, as the daemon does: ownership and whiteouts need it.

use super::{blobs::digest_of, *};
use std::{
    collections::HashSet,
    fs,
    io::Write,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

pub(super) struct Entry<'a> {
    pub path: &'a str,
    pub kind: tar::EntryType,
    pub link: &'a str,
    pub content: &'a [u8],
    pub mode: u32,
    pub owner: u64,
    pub xattr: Option<(&'a str, &'a [u8])>,
}

fn entry<'a>(path: &'a str, kind: tar::EntryType) -> Entry<'a> {
    Entry { path, kind, link: "", content: b"", mode: 0o755, owner: 0, xattr: None }
}

fn file<'a>(path: &'a str, content: &'a [u8]) -> Entry<'a> {
    Entry { content, mode: 0o644, ..entry(path, tar::EntryType::Regular) }
}

fn link<'a>(path: &'a str, kind: tar::EntryType, link: &'a str) -> Entry<'a> {
    Entry { link, ..entry(path, kind) }
}

/// A tar whose names are written raw, because the tar crate would refuse the hostile ones.
pub(super) fn tar_of(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut block = |header: &mut tar::Header, content: &[u8]| {
        header.set_size(content.len() as u64);
        header.set_cksum();
        out.extend_from_slice(header.as_bytes());
        out.extend_from_slice(content);
        out.resize(out.len().next_multiple_of(512), 0);
    };
    for entry in entries {
        if let Some((name, value)) = entry.xattr {
            let body = [format!("SCHILY.xattr.{name}=").as_bytes(), value, b"\n"].concat();
            let mut length = body.len() + 3;
            while length != body.len() + 1 + length.to_string().len() {
                length = body.len() + 1 + length.to_string().len();
            }
            let mut header = tar::Header::new_ustar();
            header.set_entry_type(tar::EntryType::XHeader);
            block(&mut header, &[format!("{length} ").as_bytes(), &body].concat());
        }
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(entry.kind);
        header.set_mode(entry.mode);
        header.set_uid(entry.owner);
        header.set_gid(entry.owner);
        header.set_mtime(1_700_000_000);
        header.as_mut_bytes()[..entry.path.len()].copy_from_slice(entry.path.as_bytes());
        header.as_mut_bytes()[157..157 + entry.link.len()].copy_from_slice(entry.link.as_bytes());
        block(&mut header, entry.content);
    }
    out.resize(out.len() + 1024, 0);
    out
}

fn unpack_into(target: &Path, entries: &[Entry<'_>]) -> Result<(String, u64), UnpackError> {
    fs::create_dir_all(target).unwrap();
    unpack::unpack(&tar_of(entries)[..], target, None, &mut |_| {})
}

use tar::EntryType as Kind;

#[test]
fn nothing_leaves_the_layer() {
    let folder = tempfile::tempdir().unwrap();
    let outside = folder.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("victim"), "untouched").unwrap();
    let absolute = outside.to_str().unwrap();
    let through_proc = format!("proc{absolute}/victim");
    let hostile: Vec<Vec<Entry<'_>>> = vec![
        vec![file("../outside/victim", b"owned")],
        vec![file("a/../../outside/victim", b"owned")],
        vec![link("x", Kind::Symlink, "../outside"), file("x/victim", b"owned")],
        vec![link("x", Kind::Symlink, absolute), file("x/victim", b"owned")],
        vec![link("x", Kind::Symlink, absolute), entry("x/victim", Kind::Directory)],
        vec![link("x", Kind::Symlink, "../outside/victim"), file("x", b"owned")],
        vec![link("x", Kind::Link, "../outside/victim"), file("x", b"owned")],
        vec![link("x", Kind::Symlink, absolute), link("y", Kind::Link, "x/victim"), file("y", b"owned")],
        vec![link("x", Kind::Symlink, absolute), file("x/.wh.victim", b"")],
        vec![link("x", Kind::Symlink, absolute), file("x/.wh..wh..opq", b"")],
        vec![file("../outside/.wh.victim", b"")],
        vec![file(".wh...", b"")],
        vec![file("a/.wh..", b"")],
        vec![link("d", Kind::Symlink, absolute), entry("d", Kind::Directory), file("d/victim", b"owned")],
        vec![
            entry("d", Kind::Directory),
            link("d/e", Kind::Symlink, absolute),
            link("d", Kind::Symlink, "/"),
            file("d/victim", b"owned"),
        ],
        vec![link("proc", Kind::Symlink, "/proc/self/root"), file(&through_proc, b"owned")],
    ];
    for (i, entries) in hostile.iter().enumerate() {
        let target = folder.path().join(format!("layer{i}"));
        drop(unpack_into(&target, entries));
        assert_eq!(fs::read(outside.join("victim")).unwrap(), b"untouched", "archive {i}");
        assert_eq!(fs::metadata(outside.join("victim")).unwrap().nlink(), 1, "archive {i}");
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1, "archive {i}");
        assert!(xattr::get(&outside, "trusted.overlay.opaque").unwrap().is_none(), "archive {i}");
    }
    // `..` is refused, not bent into something else.
    let refused = unpack_into(&folder.path().join("r"), &[file("a/../b", b"")]);
    assert!(matches!(refused, Err(UnpackError::Escape { .. })), "{refused:?}");
}

#[test]
fn links_inside_the_layer_work_and_absolute_paths_stay_inside() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("layer");
    unpack_into(
        &target,
        &[
            entry("usr/bin", Kind::Directory),
            link("bin", Kind::Symlink, "/usr/bin"),
            file("bin/tool", b"tool"),
            file("/etc/conf", b"conf"),
            link("etc/hard", Kind::Link, "/etc/conf"),
        ],
    )
    .unwrap();
    assert_eq!(fs::read(target.join("usr/bin/tool")).unwrap(), b"tool");
    assert_eq!(fs::read(target.join("etc/conf")).unwrap(), b"conf");
    assert_eq!(fs::metadata(target.join("etc/conf")).unwrap().nlink(), 2);
}

#[test]
fn whiteouts_take_the_form_that_overlayfs_reads() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("layer");
    unpack_into(
        &target,
        &[
            entry("a", Kind::Directory),
            file("a/.wh.gone", b""),
            entry("opaque", Kind::Directory),
            file("opaque/.wh..wh..opq", b""),
            file("opaque/new", b"new"),
            // Hidden, then made again: nothing from beneath may show through.
            file(".wh.again", b""),
            entry("again", Kind::Directory),
            file("kept", b"kept"),
            file(".wh.kept", b""),
        ],
    )
    .unwrap();
    let gone = fs::symlink_metadata(target.join("a/gone")).unwrap();
    assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
    for opaque in ["opaque", "again"] {
        assert_eq!(
            xattr::get(target.join(opaque), "trusted.overlay.opaque").unwrap().as_deref(),
            Some(&b"y"[..]),
            "{opaque}"
        );
    }
    assert_eq!(fs::read(target.join("kept")).unwrap(), b"kept");
    assert_eq!(fs::read(target.join("opaque/new")).unwrap(), b"new");
}

#[test]
fn owners_modes_times_and_capabilities_are_kept_but_not_overlayfs_own_attributes() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("layer");
    // With a byte that is a line break, as real ones have.
    let capability: &[u8] = &[1, 0, 0, 2, 10, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    unpack_into(
        &target,
        &[
            Entry { mode: 0o1777, owner: 7, ..entry("tmp", Kind::Directory) },
            Entry { mode: 0o4755, owner: 5, xattr: Some(("security.capability", capability)), ..file("ping", b"x") },
            Entry { xattr: Some(("trusted.overlay.redirect", b"/etc")), ..entry("evil", Kind::Directory) },
            Entry { xattr: Some(("user.overlay.opaque", b"y")), ..entry("evil2", Kind::Directory) },
            entry("dev", Kind::Directory),
            entry("dev/sda", Kind::Block),
            entry("pipe", Kind::Fifo),
            file("tmp/inside", b""),
        ],
    )
    .unwrap();
    let tmp = fs::metadata(target.join("tmp")).unwrap();
    assert_eq!((tmp.permissions().mode() & 0o7777, tmp.uid(), tmp.mtime()), (0o1777, 7, 1_700_000_000));
    let ping = fs::metadata(target.join("ping")).unwrap();
    assert_eq!((ping.permissions().mode() & 0o7777, ping.uid(), ping.gid()), (0o4755, 5, 5));
    assert_eq!(xattr::get(target.join("ping"), "security.capability").unwrap().as_deref(), Some(capability));
    assert!(xattr::get(target.join("evil"), "trusted.overlay.redirect").unwrap().is_none());
    assert!(!target.join("dev/sda").exists());
    assert!(fs::metadata(target.join("pipe")).unwrap().file_type().is_fifo());
}

#[test]
fn a_layer_of_another_digest_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = tar_of(&[file("a", b"a")]);
    let wrong = digest_of(b"something else");
    let refused = unpack::unpack(&bytes[..], folder.path(), Some(&wrong), &mut |_| {});
    assert!(matches!(refused, Err(UnpackError::Mismatch { .. })), "{refused:?}");
    for cut in [100, 512, 700, 1024] {
        let target = folder.path().join(cut.to_string());
        fs::create_dir(&target).unwrap();
        let cut = unpack::unpack(&bytes[..cut], &target, Some(&digest_of(&bytes)), &mut |_| {});
        assert!(cut.is_err(), "{cut:?}");
    }
    // Without the padding and the end mark it is whole, as some writers leave it; without its content it is not.
    let target = folder.path().join("bare");
    fs::create_dir(&target).unwrap();
    let short = &bytes[..513];
    unpack::unpack(short, &target, Some(&digest_of(short)), &mut |_| {}).unwrap();
    assert_eq!(fs::read(target.join("a")).unwrap(), b"a");
    let shorter = &bytes[..512];
    assert!(unpack::unpack(shorter, &target, Some(&digest_of(shorter)), &mut |_| {}).is_err());
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

struct Layout {
    files: Vec<(String, Vec<u8>)>,
    manifest: String,
}

/// An OCI layout of one image with the given layers (compressed, plain).
fn layout(layers: &[(Vec<u8>, Vec<u8>)], name: Option<&str>) -> Layout {
    let mut files: Vec<(String, Vec<u8>)> = vec![("oci-layout".into(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec())];
    let mut blob = |bytes: Vec<u8>| {
        let digest = digest_of(&bytes);
        let size = bytes.len();
        files.push((format!("blobs/{}", digest.replace(':', "/")), bytes));
        (digest, size)
    };
    let config = serde_json::json!({
        "architecture": config::architecture(), "os": "linux", "created": "2026-01-01T00:00:00Z",
        "config": {"Entrypoint": null, "Cmd": ["python3"], "Env": ["A=b"], "User": "1000:1000", "ExposedPorts": {"80/tcp": {}}},
        "rootfs": {"type": "layers", "diff_ids": layers.iter().map(|(_, plain)| digest_of(plain)).collect::<Vec<_>>()},
    });
    let (config, config_size) = blob(serde_json::to_vec(&config).unwrap());
    let descriptors: Vec<_> = layers
        .iter()
        .map(|(bytes, _)| {
            let (digest, size) = blob(bytes.clone());
            serde_json::json!({"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest, "size": size})
        })
        .collect();
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": config::MANIFEST_TYPE, "layers": descriptors,
        "config": {"mediaType": config::CONFIG_TYPE, "digest": config, "size": config_size},
    });
    let (manifest, size) = blob(serde_json::to_vec(&manifest).unwrap());
    let annotations = name.map(|name| serde_json::json!({"org.opencontainers.image.ref.name": name}));
    let mut entry = serde_json::json!({"mediaType": config::MANIFEST_TYPE, "digest": manifest, "size": size});
    if let Some(annotations) = annotations {
        entry["annotations"] = annotations;
    }
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [entry]});
    files.push(("index.json".into(), serde_json::to_vec(&index).unwrap()));
    Layout { files, manifest }
}

fn archive(folder: &Path, files: &[(String, Vec<u8>)]) -> PathBuf {
    let path = folder.join("image.tar");
    let entries: Vec<Entry<'_>> = files.iter().map(|(path, bytes)| file(path, bytes)).collect();
    fs::write(&path, tar_of(&entries)).unwrap();
    path
}

fn two_layers() -> Vec<(Vec<u8>, Vec<u8>)> {
    let base = tar_of(&[entry("etc", Kind::Directory), file("etc/name", b"base"), file("etc/gone", b"gone")]);
    let top = tar_of(&[file("etc/.wh.gone", b""), file("etc/name", b"top")]);
    vec![(gzip(&base), base), (zstd::encode_all(&top[..], 1).unwrap(), top)]
}

fn store(folder: &Path) -> ImageStore {
    let mut config = ImageConfig::default();
    config.aliases.insert("registry.access.redhat.com/ubi9/python-311".into(), "python:3.11".into());
    ImageStore::open(&folder.join("images"), config).unwrap()
}

#[tokio::test]
async fn an_oci_archive_becomes_an_image_that_survives_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let layout = layout(&two_layers(), Some("python:3.11"));
    let path = archive(folder.path(), &layout.files);
    let images = store(folder.path()).import(&path, ImportOptions::default(), silent()).await.unwrap();
    assert_eq!(images.len(), 1);

    let store = store(folder.path());
    let image = store.resolve("python:3.11").unwrap();
    assert_eq!(image, images[0]);
    assert_eq!(image.digest, layout.manifest);
    assert_eq!(image.config.cmd, ["python3"]);
    assert_eq!(image.config.exposed_ports, ["80/tcp"]);
    for other in ["docker.io/library/python:3.11", &format!("python@{}", image.digest), &image.id, &image.digest] {
        assert_eq!(store.resolve(other).as_ref(), Some(&image), "{other}");
    }
    assert_eq!(store.resolve("registry.access.redhat.com/ubi9/python-311:1-77").as_ref(), Some(&image));
    assert!(store.resolve("python:3.12").is_none());

    let lower = store.snapshot(&image).await.unwrap().lower_dirs;
    assert_eq!(fs::read(lower[0].join("etc/name")).unwrap(), b"top");
    assert_eq!(fs::read(lower[1].join("etc/name")).unwrap(), b"base");
    assert_eq!(fs::symlink_metadata(lower[0].join("etc/gone")).unwrap().rdev(), 0);

    // A layer that was lost is unpacked again from its blob.
    fs::remove_dir_all(&lower[1]).unwrap();
    assert_eq!(store.snapshot(&image).await.unwrap().lower_dirs, lower);
    assert_eq!(fs::read(lower[1].join("etc/name")).unwrap(), b"base");
}

#[tokio::test]
async fn a_layout_folder_and_docker_save_are_read_too() {
    let folder = tempfile::tempdir().unwrap();
    let layers = two_layers();
    let layout = layout(&layers, Some("latest"));
    let root = folder.path().join("layout");
    for (path, bytes) in &layout.files {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    let store = store(folder.path());
    let nameless = store.import(&root, ImportOptions::default(), silent()).await;
    assert!(matches!(nameless, Err(ImportError::NoName)), "{nameless:?}");
    let options = ImportOptions { name: Some("lab/tool:1".into()), ..Default::default() };
    let image = store.import(&root, options, silent()).await.unwrap().remove(0);
    assert!(image.names.contains(&"docker.io/lab/tool:1".to_owned()), "{:?}", image.names);

    let config = layout.files[1].1.clone();
    let saved = [
        ("abc.json".to_owned(), config),
        ("0/layer.tar".to_owned(), layers[0].1.clone()),
        ("1/layer.tar".to_owned(), layers[1].1.clone()),
        (
            "manifest.json".to_owned(),
            br#"[{"Config":"abc.json","RepoTags":["saved:1","saved:2"],"Layers":["0/layer.tar","1/layer.tar"]}]"#
                .to_vec(),
        ),
    ];
    let path = archive(folder.path(), &saved);
    let image = store.import(&path, ImportOptions::default(), silent()).await.unwrap().remove(0);
    assert_eq!(store.resolve("saved:2").unwrap().id, image.id);
    assert_eq!(store.list().len(), 2);
}

#[tokio::test]
async fn a_damaged_archive_leaves_no_image() {
    for broken in 1..6 {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path());
        let mut layout = layout(&two_layers(), Some("broken:1"));
        if broken < 5 {
            // The content no longer fits the name it is stored under.
            let file = &mut layout.files[broken].1;
            let last = file.len() - 1;
            file[last / 2] ^= 1;
        } else {
            layout.files.remove(2);
        }
        let path = archive(folder.path(), &layout.files);
        let result = store.import(&path, ImportOptions::default(), silent()).await;
        assert!(result.is_err(), "file {broken}: {result:?}");
        assert!(store.resolve("broken:1").is_none());
    }
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let not_an_image = folder.path().join("noise");
    fs::write(&not_an_image, vec![7; 4096]).unwrap();
    let result = store.import(&not_an_image, ImportOptions::default(), silent()).await;
    assert!(matches!(result, Err(ImportError::NotAnImage(_))), "{result:?}");
}

#[tokio::test]
async fn imports_at_once_of_one_image_agree() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let path = archive(folder.path(), &layout(&two_layers(), Some("twice:1")).files);
    let all = (0..8).map(|_| store.import(&path, ImportOptions::default(), silent()));
    for result in futures::future::join_all(all).await {
        assert_eq!(result.unwrap().len(), 1);
    }
    assert_eq!(store.list().len(), 1);
    assert_eq!(fs::read_dir(folder.path().join("images/layers")).unwrap().count(), 2);
    assert_eq!(fs::read_dir(folder.path().join("images/tmp")).unwrap().count(), 0);
}

#[tokio::test]
async fn a_root_file_system_and_an_image_from_memory() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let path = folder.path().join("rootfs.tar.gz");
    fs::write(&path, gzip(&tar_of(&[file("hello", b"hello")]))).unwrap();
    let options = ImportOptions {
        name: Some("rootfs:1".into()),
        config: RunConfig { cmd: vec!["/hello".into()], ..Default::default() },
    };
    let image = store.import(&path, options, silent()).await.unwrap().remove(0);
    assert_eq!(image.config.cmd, ["/hello"]);
    assert_eq!(fs::read(store.snapshot(&image).await.unwrap().lower_dirs[0].join("hello")).unwrap(), b"hello");

    let name = "kfbox.local/launcher:0.1.0";
    let launcher = |content: &'static [u8]| {
        let tar = tar_of(&[Entry { mode: 0o755, ..file("kfbox-launcher", content) }]);
        let store = store.clone();
        async move { store.import_layer_image(name, tar, RunConfig::default()).await.unwrap() }
    };
    let first = launcher(b"one").await;
    assert_eq!(launcher(b"one").await, first);
    let second = launcher(b"two").await;
    assert_ne!(second.digest, first.digest);
    assert_eq!(store.resolve(name).unwrap(), second);
}

#[tokio::test]
async fn garbage_is_what_no_image_and_no_container_needs() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let path = archive(folder.path(), &layout(&two_layers(), Some("one:1")).files);
    let image = store.import(&path, ImportOptions::default(), silent()).await.unwrap().remove(0);
    assert!(store.snapshot(&image).await.is_ok());
    store.gc(&HashSet::new()).await.unwrap();
    let lower = store.snapshot(&image).await.unwrap().lower_dirs;
    store.remove("one:1").await.unwrap();
    assert!(store.resolve(&image.id).is_none());
    assert!(matches!(store.remove("one:1").await, Err(StoreError::NotFound { .. })));
    // A container still runs from the lower layer.
    let freed = store.gc(&HashSet::from([lower[1].clone()])).await.unwrap();
    assert_eq!(freed.layers, 1);
    assert!(lower[1].is_dir() && !lower[0].exists());
    assert_eq!(store.gc(&HashSet::new()).await.unwrap().layers, 1);
    assert_eq!(fs::read_dir(folder.path().join("images/blobs/sha256")).unwrap().count(), 0);

    // By its id or digest, an image goes with all its names.
    for by in [|image: &Image| image.id.clone(), |image: &Image| image.digest.clone()] {
        let image = store.import(&path, ImportOptions::default(), silent()).await.unwrap().remove(0);
        store.remove(&by(&image)).await.unwrap();
        assert!(store.list().is_empty() && store.resolve("one:1").is_none());
        assert_eq!(store.gc(&HashSet::new()).await.unwrap().layers, 2);
    }
}

#[tokio::test]
async fn an_import_that_finds_no_room_leaves_nothing() {
    use nix::mount::{MntFlags, MsFlags, mount, umount2};
    struct Mounted(PathBuf);
    impl Drop for Mounted {
        fn drop(&mut self) {
            let _ = umount2(&self.0, MntFlags::MNT_DETACH);
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let disk = Mounted(folder.path().join("images"));
    fs::create_dir(&disk.0).unwrap();
    mount(Some("tmpfs"), &disk.0, Some("tmpfs"), MsFlags::empty(), Some("size=8m")).unwrap();
    let store = store(folder.path());
    let noise = |seed: u32| -> Vec<u8> {
        (0..3 << 18).flat_map(|n: u32| (n ^ seed).wrapping_mul(0x9e37_79b9).to_le_bytes()).collect()
    };
    let layer = |seed| {
        let plain = tar_of(&[file("large", &noise(seed))]);
        (plain.clone(), plain)
    };
    // The blobs fit, and the first layer once more, not the second.
    let path = archive(folder.path(), &layout(&[layer(1), layer(2)], Some("large:1")).files);
    let error = store.import(&path, ImportOptions::default(), silent()).await.unwrap_err().to_string();
    assert!(error.contains("No space left on device") && error.contains("the disk is full: "), "{error}");
    for left in ["blobs/sha256", "layers", "tmp"] {
        assert_eq!(fs::read_dir(disk.0.join(left)).unwrap().count(), 0, "{left}");
    }
    assert!(store.list().is_empty());
    let path = archive(folder.path(), &layout(&[layer(1)], Some("small:1")).files);
    assert_eq!(store.import(&path, ImportOptions::default(), silent()).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_machine_without_a_registry_learns_so_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let off = ImageConfig { pull_enabled: false, ..ImageConfig::default() };
    let closed = ImageStore::open(&folder.path().join("off"), off).unwrap();
    let error = closed.pull("python:3.11", &Auths::default(), silent()).await.unwrap_err();
    assert!(error.to_string().contains("kfbox image load"), "{error}");

    // A port that nobody listens on.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let insecure = ImageConfig { insecure: vec![address.to_string()], ..ImageConfig::default() };
    let store = ImageStore::open(&folder.path().join("on"), insecure).unwrap();
    let started = std::time::Instant::now();
    let error = store.pull(&format!("{address}/x:1"), &Auths::default(), silent()).await.unwrap_err();
    assert!(matches!(error, PullError::Unreachable { .. }), "{error:?}");
    assert!(started.elapsed() < std::time::Duration::from_secs(5));
    assert!(matches!(store.pull("Not A Name", &Auths::default(), silent()).await, Err(PullError::Name(_))));
}

/// A registry that speaks as much HTTP as a pull needs, breaks off a download once, serves one repository to those with a
/// password, and each layer of another when it is told to.
struct Registry {
    address: std::net::SocketAddr,
    gate: std::sync::mpsc::Sender<()>,
    requests: std::sync::Arc<parking_lot::Mutex<Vec<String>>>,
}

impl Registry {
    fn start(image: Layout) -> Self {
        use std::io::{BufRead, BufReader};
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let requests = std::sync::Arc::<parking_lot::Mutex<Vec<String>>>::default();
        let log = requests.clone();
        let (gate, opened) = std::sync::mpsc::channel();
        let mut blobs: std::collections::HashMap<String, Vec<u8>> =
            image.files.into_iter().map(|(path, bytes)| (path.replace("blobs/sha256/", "sha256:"), bytes)).collect();
        // An index of two platforms, of which one is ours.
        let index = serde_json::to_vec(&serde_json::json!({
            "schemaVersion": 2, "mediaType": config::INDEX_TYPES[0],
            "manifests": [
                {"mediaType": config::MANIFEST_TYPE, "digest": digest_of(b"other"), "size": 5, "platform": {"os": "linux", "architecture": "s390x"}},
                {"mediaType": config::MANIFEST_TYPE, "digest": image.manifest, "size": 5,
                 "platform": {"os": "linux", "architecture": config::architecture()}},
            ],
        }))
        .unwrap();
        blobs.insert("1".into(), index.clone());
        blobs.insert(digest_of(&index), index);
        std::thread::spawn(move || {
            let mut broken = false;
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                let (mut line, mut range, mut allowed) = (String::new(), 0, false);
                reader.read_line(&mut line).unwrap();
                let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
                loop {
                    let mut header = String::new();
                    if reader.read_line(&mut header).unwrap_or(0) <= 2 {
                        break;
                    }
                    let header = header.to_ascii_lowercase();
                    if let Some(from) = header.strip_prefix("range: bytes=") {
                        range = from.trim().split('-').next().unwrap().parse().unwrap();
                    }
                    // me:secret
                    allowed |= header.trim() == "authorization: basic bwu6c2vjcmv0";
                }
                log.lock().push(format!("{path} {range}"));
                let reply = |status: &str, more: &str, body: &[u8]| {
                    [
                        format!(
                            "HTTP/1.1 {status}\r\n{more}content-length: {}\r\nconnection: close\r\n\r\n",
                            body.len()
                        )
                        .as_bytes(),
                        body,
                    ]
                    .concat()
                };
                let last = path.rsplit('/').next().unwrap_or_default();
                if path.contains("/held/blobs/") && blobs.get(last).is_some_and(|blob| blob.starts_with(&[0x1f, 0x8b]))
                {
                    let _ = opened.recv();
                }
                let bytes = if path == "/v2/" {
                    reply("401 Unauthorized", "www-authenticate: Basic realm=\"lab\"\r\n", b"")
                } else if path.contains("/private/") && !allowed {
                    reply("401 Unauthorized", "", br#"{"errors":[{"code":"UNAUTHORIZED","message":"no"}]}"#)
                } else if let Some(blob) = blobs.get(last) {
                    let kind = if last == "1" || path.contains("manifests") {
                        "content-type: application/json\r\n"
                    } else {
                        ""
                    };
                    if path.contains("/blobs/") && blob.len() > 150 && !broken {
                        broken = true;
                        let mut half = reply("200 OK", kind, blob);
                        half.truncate(half.len() - 100);
                        half
                    } else if range > 0 {
                        reply(
                            "206 Partial Content",
                            &format!("content-range: bytes {range}-{}/{}\r\n", blob.len() - 1, blob.len()),
                            &blob[range..],
                        )
                    } else {
                        reply("200 OK", kind, blob)
                    }
                } else {
                    reply("404 Not Found", "", br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"no"}]}"#)
                };
                drop(stream.write_all(&bytes));
            }
        });
        Self { address, gate, requests }
    }
}

#[tokio::test]
async fn a_pull_goes_on_after_a_break_and_is_shared() {
    let folder = tempfile::tempdir().unwrap();
    let image = layout(&two_layers(), None);
    let manifest = image.manifest.clone();
    let registry = Registry::start(image);
    let host = registry.address.to_string();
    let config = ImageConfig {
        insecure: vec![host.clone()],
        aliases: [("alias:2".to_owned(), format!("{host}/public/x:1"))].into(),
        mirrors: [("docker.io".to_owned(), vec![format!("http://{host}/hub")])].into(),
        ..ImageConfig::default()
    };
    let store = ImageStore::open(&folder.path().join("images"), config).unwrap();
    let name = format!("{host}/public/x:1");
    let seen = Arc::<parking_lot::Mutex<Vec<Progress>>>::default();
    let told = seen.clone();
    let progress: OnProgress = Arc::new(move |what| told.lock().push(what));
    let none = Auths::default();
    let pulls = (0..5).map(|_| store.pull(&name, &none, progress.clone()));
    for image in futures::future::join_all(pulls).await {
        assert_eq!(image.unwrap().digest, manifest);
    }
    let requests = registry.requests.lock().clone();
    assert_eq!(requests.iter().filter(|r| r.contains("/manifests/1 ")).count(), 1, "{requests:#?}");
    assert!(requests.iter().any(|r| r.contains("/blobs/") && !r.ends_with(" 0")), "{requests:#?}");
    assert!(seen.lock().iter().any(|p| matches!(p, Progress::Done { .. })));

    let image = store.resolve(&name).unwrap();
    assert_eq!(store.resolve("alias:2").unwrap(), image);
    assert_eq!(image.repo_digests().count(), 2, "{:?}", image.names);
    let lower = store.snapshot(&image).await.unwrap().lower_dirs;
    assert_eq!(fs::read(lower[0].join("etc/name")).unwrap(), b"top");
    // By digest, by alias, and through a mirror: nothing but manifests is asked for again.
    let before = registry.requests.lock().len();
    for again in [format!("{host}/public/x@{manifest}"), "alias:2".into(), "library/tool:1".into()] {
        assert_eq!(store.pull(&again, &none, silent()).await.unwrap().digest, manifest, "{again}");
    }
    let requests = registry.requests.lock()[before..].to_vec();
    assert!(!requests.iter().any(|r| r.contains("/blobs/")), "{requests:#?}");
    assert!(requests.iter().any(|r| r.starts_with("/v2/hub/library/tool/manifests/")), "{requests:#?}");
}

#[tokio::test]
async fn garbage_is_collected_next_to_a_pull_whose_content_stays() {
    let folder = tempfile::tempdir().unwrap();
    let registry = Registry::start(layout(&two_layers(), None));
    let host = registry.address.to_string();
    let config = ImageConfig { insecure: vec![host.clone()], ..ImageConfig::default() };
    let store = ImageStore::open(&folder.path().join("images"), config).unwrap();
    let (name, none) = (format!("{host}/held/x:1"), Auths::default());
    let mut pull = std::pin::pin!(store.pull(&name, &none, silent()));
    let blobs = || fs::read_dir(folder.path().join("images/blobs/sha256")).unwrap().count();
    // Until the configuration is here; the layers are not served yet.
    while blobs() < 2 {
        tokio::select! {
            done = &mut pull => panic!("it has no layers: {done:?}"),
            () = tokio::time::sleep(std::time::Duration::from_millis(5)) => {}
        }
    }
    assert_eq!(store.gc(&HashSet::new()).await.unwrap().blobs, 0);
    registry.gate.send(()).unwrap();
    registry.gate.send(()).unwrap();
    registry.gate.send(()).unwrap();
    let image = pull.await.unwrap();
    assert_eq!(store.snapshot(&image).await.unwrap().lower_dirs.len(), 2);
    // With its last name gone and the pull over nothing holds it.
    store.remove(&name).await.unwrap();
    assert!(store.gc(&HashSet::new()).await.unwrap().blobs >= 4);
    assert_eq!(blobs(), 0);
}

#[tokio::test]
async fn refusals_of_a_registry_are_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let registry = Registry::start(layout(&two_layers(), None));
    let host = registry.address.to_string();
    let config = ImageConfig { insecure: vec![host.clone()], ..ImageConfig::default() };
    let store = ImageStore::open(&folder.path().join("images"), config).unwrap();
    let mut auths = Auths::default();
    let missing = store.pull(&format!("{host}/public/x:2"), &auths, silent()).await;
    assert!(matches!(missing, Err(PullError::NotFound { .. })), "{missing:?}");
    let private = format!("{host}/private/x:1");
    let refused = store.pull(&private, &auths, silent()).await;
    assert!(matches!(refused, Err(PullError::Unauthorized { .. })), "{refused:?}");
    auths.add(&host, RegistryAuth::Basic("me".into(), "secret".into()));
    let image = store.pull(&private, &auths, silent()).await.unwrap();
    // Whatever was refused left no name.
    assert_eq!(store.list().len(), 1);

    // That it is here gives it to nobody who could not have pulled it, also after a restart.
    let mut others = Auths::default();
    others.add(&host, RegistryAuth::Basic("you".into(), "guess".into()));
    let config = store.config().clone();
    for store in [store, ImageStore::open(&folder.path().join("images"), config).unwrap()] {
        assert!(store.may_use(&private, &image, &auths));
        assert!(!store.may_use(&private, &image, &Auths::default()) && !store.may_use(&private, &image, &others));
        assert!(!store.may_use(&image.id, &image, &auths), "an id says nothing of a registry");
    }
    let store = ImageStore::open(
        &folder.path().join("images"),
        ImageConfig { insecure: vec![host.clone()], ..ImageConfig::default() },
    )
    .unwrap();
    // The same image, given to everybody, is everybody's.
    store.pull(&format!("{host}/public/x:1"), &Auths::default(), silent()).await.unwrap();
    assert!(store.may_use(&private, &image, &others));
}

#[tokio::test]
async fn an_imported_image_is_everybodys() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let layout = layout(&two_layers(), Some("example.com/x:1"));
    let archive = archive(folder.path(), &layout.files);
    let image = store.import(&archive, ImportOptions::default(), silent()).await.unwrap().remove(0);
    assert!(store.may_use(&image.names[0], &image, &Auths::default()));
}

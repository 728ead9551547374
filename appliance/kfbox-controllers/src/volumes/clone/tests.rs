//! On file systems of the tests' own: XFS and btrfs clone, tmpfs does not.

use super::*;
use nix::mount::{MntFlags, umount2};
use std::{
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink},
    process::Command,
};

/// Gone, with its loop device, when dropped.
struct Disk {
    dir: tempfile::TempDir,
}

impl Disk {
    fn new(kind: &str, mebibytes: u64) -> Self {
        let disk = Self { dir: tempfile::tempdir().unwrap() };
        let image = disk.dir.path().join("image");
        fs::File::create(&image).unwrap().set_len(mebibytes << 20).unwrap();
        fs::create_dir(disk.path()).unwrap();
        let run = |program: &str, arguments: &[&OsStr]| {
            let done =
                Command::new(program).args(arguments).output().expect("apt-get install xfsprogs btrfs-progs mount");
            assert!(done.status.success(), "{program}: {}", String::from_utf8_lossy(&done.stderr));
        };
        run(&format!("mkfs.{kind}"), &["-q".as_ref(), image.as_os_str()]);
        run("mount", &["-o".as_ref(), "loop".as_ref(), image.as_os_str(), disk.path().as_os_str()]);
        disk
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("disk")
    }

    fn used(&self) -> u64 {
        settle(&self.path()).unwrap();
        let found = nix::sys::statvfs::statvfs(&self.path()).unwrap();
        (found.blocks() - found.blocks_free()) * found.fragment_size()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = umount2(&self.path(), MntFlags::MNT_DETACH);
    }
}

fn everything_is_kept_and_nothing_copied(kind: &str, mebibytes: u64) {
    let disk = Disk::new(kind, mebibytes);
    let (from, to) = (disk.path().join("from"), disk.path().join("to"));
    fs::create_dir_all(from.join("deep/er")).unwrap();
    fs::set_permissions(&from, fs::Permissions::from_mode(0o2775)).unwrap();
    std::os::unix::fs::chown(&from, Some(1000), Some(1001)).unwrap();
    fs::write(from.join("large"), vec![7; 64 << 20]).unwrap();
    fs::write(from.join("deep/er/script"), "echo").unwrap();
    std::os::unix::fs::chown(from.join("deep/er/script"), Some(1), Some(2)).unwrap();
    fs::set_permissions(from.join("deep/er/script"), fs::Permissions::from_mode(0o4751)).unwrap();
    fs::hard_link(from.join("deep/er/script"), from.join("same")).unwrap();
    symlink("/etc/passwd", from.join("link")).unwrap();
    nix::unistd::mkfifo(&from.join("pipe"), nix::sys::stat::Mode::S_IRUSR).unwrap();
    fs::File::create(from.join("holes")).unwrap().set_len(1 << 40).unwrap();
    let file = fs::File::open(from.join("large")).unwrap();
    fsetxattr(&file, c"user.note", b"kept", XattrFlags::empty()).unwrap();
    let before = disk.used();
    check(&disk.path()).unwrap();
    tree(&from, &to, &CancellationToken::new()).unwrap();
    assert!(disk.used() < before + (16 << 20), "{} after {before}", disk.used());

    let meta = |path: &str| fs::symlink_metadata(to.join(path)).unwrap();
    let of = |path: &str| {
        let meta = meta(path);
        (meta.uid(), meta.gid(), meta.mode() & 0o7777)
    };
    assert_eq!((of(""), of("deep/er/script")), ((1000, 1001, 0o2775), (1, 2, 0o4751)));
    assert_eq!(meta("same").ino(), meta("deep/er/script").ino());
    assert_eq!(fs::read_link(to.join("link")).unwrap(), Path::new("/etc/passwd"));
    assert!(meta("pipe").file_type().is_fifo());
    assert_eq!((meta("holes").len(), meta("holes").blocks()), (1 << 40, 0));
    assert_eq!(meta("large").mtime_nsec(), fs::metadata(from.join("large")).unwrap().mtime_nsec());
    let mut value = [0; 16];
    let length = fgetxattr(fs::File::open(to.join("large")).unwrap(), c"user.note", &mut value[..]).unwrap();
    assert_eq!(&value[..length], b"kept");
    // What is written into the one is not in the other.
    fs::write(from.join("large"), "new").unwrap();
    assert_eq!(fs::read(to.join("large")).unwrap(), vec![7; 64 << 20]);
}

#[test]
fn xfs_clones() {
    everything_is_kept_and_nothing_copied("xfs", 320);
}

#[test]
fn btrfs_clones() {
    everything_is_kept_and_nothing_copied("btrfs", 256);
}

#[test]
fn a_file_system_that_cannot_clone_is_named_with_what_to_do() {
    let dir = tempfile::Builder::new().tempdir_in("/dev/shm").unwrap();
    let error = check(dir.path()).unwrap_err().to_string();
    assert!(error.contains("tmpfs") && error.contains("btrfs, or on XFS"), "{error}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn what_a_pod_swaps_for_a_link_leads_nowhere_and_other_file_systems_are_refused() {
    let disk = Disk::new("xfs", 320);
    let (from, secret) = (disk.path().join("from"), disk.path().join("secret"));
    fs::create_dir_all(&secret).unwrap();
    fs::write(secret.join("key"), "secret").unwrap();
    fs::create_dir_all(from.join("a")).unwrap();
    fs::write(from.join("a/key"), "own").unwrap();
    // Another hand changes the folder into a link and back all the time.
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            symlink(&secret, from.join("l")).unwrap();
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let exchange = || {
                    let flags = rustix::fs::RenameFlags::EXCHANGE;
                    rustix::fs::renameat_with(rustix::fs::CWD, from.join("a"), rustix::fs::CWD, from.join("l"), flags)
                };
                exchange().unwrap();
            }
        });
        for n in 0..200 {
            let to = disk.path().join(format!("to{n}"));
            let _ = tree(&from, &to, &CancellationToken::new());
            for folder in ["a", "l"] {
                let meta = fs::symlink_metadata(to.join(folder));
                if meta.is_ok_and(|meta| meta.is_dir()) {
                    assert_ne!(fs::read_to_string(to.join(folder).join("key")).unwrap_or_default(), "secret");
                }
            }
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    let inner = from.join("mounted");
    fs::create_dir(&inner).unwrap();
    nix::mount::mount(Some("tmpfs"), &inner, Some("tmpfs"), nix::mount::MsFlags::empty(), None::<&str>).unwrap();
    let refused = tree(&from, &disk.path().join("crossing"), &CancellationToken::new());
    umount2(&inner, MntFlags::MNT_DETACH).unwrap();
    assert!(matches!(refused, Err(CloneError::Crossing(_))), "{refused:?}");

    // Stopped, or the volume went.
    let stopped = CancellationToken::new();
    stopped.cancel();
    assert!(matches!(tree(&from, &disk.path().join("stopped"), &stopped), Err(CloneError::Stopped)));
    let gone = tree(&disk.path().join("no"), &disk.path().join("gone"), &CancellationToken::new());
    assert!(matches!(gone, Err(CloneError::Gone)), "{gone:?}");
}

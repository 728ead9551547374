//! Volume snapshots through kubectl, in a box whose disk clones: XFS in a file, made by the test.

use kfbox_tests::{Space, TestBox, run, wait_until};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

/// A file system of the test's own; unmounted, and its file and loop device gone, when dropped.
struct Disk(PathBuf);

impl Disk {
    fn mount(at: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(at)?;
        let image = at.with_extension("xfs");
        fs::File::create(&image)?.set_len(2 << 30)?;
        run(Command::new("mkfs.xfs").args(["-q", "-m", "reflink=1"]).arg(&image))?.ok()?;
        run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(at))?.ok()?;
        fs::remove_file(&image)?;
        Ok(Self(at.to_owned()))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

/// A box on such a disk, with an image of busybox. The disk is to be dropped after the box.
fn start(disk: &mut Option<Disk>) -> anyhow::Result<TestBox> {
    let mut b = TestBox::prepare()?;
    *disk = Some(Disk::mount(b.data_dir())?);
    b.up(&[])?;
    let root = tempfile::tempdir()?;
    for folder in ["bin", "proc", "sys", "dev", "etc", "tmp"] {
        fs::create_dir(root.path().join(folder))?;
    }
    fs::copy("/bin/busybox", root.path().join("bin/busybox"))?;
    std::os::unix::fs::symlink("busybox", root.path().join("bin/sh"))?;
    std::os::unix::fs::symlink("busybox", root.path().join("bin/cat"))?;
    let archive = root.path().join("image.tar");
    run(Command::new("tar").arg("-C").arg(root.path()).arg("--exclude=image.tar").arg("-cf").arg(&archive).arg("."))?
        .ok()?;
    let archive = archive.to_str().unwrap_or_default();
    b.kfbox_ok(&["image", "load", archive, "--name", "test/busybox:1"])?;
    Ok(b)
}

fn claim(name: &str, size: &str, source: &str) -> String {
    format!(
        "
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{name: {name}}}
spec: {{accessModes: [ReadWriteOnce], resources: {{requests: {{storage: {size}}}}}{source}}}
---"
    )
}

fn pod(name: &str, claim: &str, script: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: test/busybox:1
    command: [/bin/sh, -c, '{script}']
    volumeMounts: [{{name: data, mountPath: /data}}]
  volumes: [{{name: data, persistentVolumeClaim: {{claimName: {claim}}}}}]
---"
    )
}

fn snapshot(name: &str, source: &str, class: &str) -> String {
    format!(
        "
apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshot
metadata: {{name: {name}}}
spec: {{source: {{{source}}}{class}}}
---"
    )
}

const RESTORED: &str = ", dataSource: {apiGroup: snapshot.storage.k8s.io, kind: VolumeSnapshot, name: before}";

fn done(s: &Space, pod: &str) -> anyhow::Result<String> {
    s.ok_with(&format!("wait pod/{pod} --timeout=60s --for"), &["jsonpath={.status.phase}=Succeeded"])?;
    s.ok(&format!("logs {pod}"))
}

fn ready(s: &Space, snapshot: &str) -> anyhow::Result<()> {
    s.ok_with(&format!("wait volumesnapshot/{snapshot} --timeout=60s --for"), &["jsonpath={.status.readyToUse}=true"])?;
    Ok(())
}

fn told(s: &Space, about: &str, text: &str) -> anyhow::Result<()> {
    wait_until(Duration::from_secs(60), text, || {
        let events = s.ok(&format!("events --for {about}"))?;
        Ok(events.contains(text).then_some(()))
    })
}

fn folders(b: &TestBox) -> anyhow::Result<Vec<String>> {
    let all = fs::read_dir(b.data_dir().join("volumes/.snapshots"))?;
    Ok(all.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
}

#[test]
fn a_snapshot_keeps_what_a_pod_overwrites_and_is_restored_by_a_claim() -> anyhow::Result<()> {
    let mut disk = None;
    let b = start(&mut disk)?;
    let s = Space::new(&b, "snapshots")?;
    s.apply(&(claim("data", "1Gi", "") + &pod("writer", "data", "echo old > /data/file")))?;
    done(&s, "writer")?;
    s.apply(&snapshot("before", "persistentVolumeClaimName: data", ""))?;
    ready(&s, "before")?;
    s.apply(&pod("again", "data", "echo new > /data/file"))?;
    done(&s, "again")?;

    let shown = s.ok("get volumesnapshot before")?;
    assert!(shown.starts_with("NAME     READYTOUSE   SOURCEPVC   SOURCESNAPSHOTCONTENT   RESTORESIZE"), "{shown}");
    assert!(shown.contains("true") && shown.contains("1Gi") && shown.contains("standard"), "{shown}");
    let content = s.value("volumesnapshot/before", "{.status.boundVolumeSnapshotContentName}")?;
    assert_eq!(
        s.value(&format!("vsc/{content}"), "{.status.restoreSize} {.spec.driver}")?,
        "1073741824 kfbox.dev/local-path"
    );

    // From the snapshot the old content, from the claim the new.
    let cloned = ", dataSourceRef: {kind: PersistentVolumeClaim, name: data}";
    s.apply(
        &(claim("restored", "2Gi", RESTORED) + &pod("reader", "restored", "cat /data/file; echo more >> /data/file")),
    )?;
    s.apply(&(claim("cloned", "1Gi", cloned) + &pod("copier", "cloned", "cat /data/file")))?;
    assert_eq!((done(&s, "reader")?, done(&s, "copier")?), ("old\n".into(), "new\n".into()));
    s.apply(&(claim("once-more", "1Gi", RESTORED) + &pod("second", "once-more", "cat /data/file")))?;
    assert_eq!(done(&s, "second")?, "old\n", "what the first restored claim's pod wrote is its own");

    // Too small, and an end that waits for who still wants it.
    s.apply(&(claim("small", "1Mi", RESTORED) + &pod("waits", "small", "cat /data/file")))?;
    told(
        &s,
        "pvc/small",
        "requested volume size 1048576 is less than the size 1073741824 for the source snapshot before",
    )?;
    s.ok("delete volumesnapshot before --wait=false")?;
    told(&s, "volumesnapshot/before", "Snapshot is being used to restore a PVC")?;
    assert_eq!(folders(&b)?, std::slice::from_ref(&content));
    s.ok("delete pod/waits pvc/small --grace-period=0")?;
    s.ok("wait volumesnapshot/before --for=delete --timeout=60s")?;
    s.ok(&format!("wait vsc/{content} --for=delete --timeout=60s"))?;
    assert!(folders(&b)?.is_empty());

    // Kept, and found again by its handle.
    let class = format!("keeps-{}", s.name);
    s.goes_too(format!("volumesnapshotclass/{class}"));
    s.apply(&format!(
        "{{apiVersion: snapshot.storage.k8s.io/v1, kind: VolumeSnapshotClass, metadata: {{name: {class}}}, driver: kfbox.dev/local-path, deletionPolicy: Retain}}"
    ))?;
    s.apply(&snapshot("kept", "persistentVolumeClaimName: data", &format!(", volumeSnapshotClassName: {class}")))?;
    ready(&s, "kept")?;
    let content = s.value("volumesnapshot/kept", "{.status.boundVolumeSnapshotContentName}")?;
    s.ok("delete volumesnapshot/kept --timeout=60s")?;
    s.ok(&format!("delete vsc/{content} --timeout=60s"))?;
    assert_eq!(folders(&b)?, std::slice::from_ref(&content));
    let found = format!("found-{}", s.name);
    s.goes_too(format!("vsc/{found}"));
    s.apply(&format!(
        "
apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshotContent
metadata: {{name: {found}}}
spec:
  deletionPolicy: Delete
  driver: kfbox.dev/local-path
  source: {{snapshotHandle: {content}}}
  volumeSnapshotRef: {{name: before, namespace: {}}}
---",
        s.name
    ))?;
    s.apply(&snapshot("before", &format!("volumeSnapshotContentName: {found}"), ""))?;
    ready(&s, "before")?;
    s.apply(&(claim("third", "1Gi", RESTORED) + &pod("third", "third", "cat /data/file")))?;
    assert_eq!(done(&s, "third")?, "new\n");
    s.ok("delete volumesnapshot/before --timeout=60s")?;
    wait_until(Duration::from_secs(60), "the kept data's end", || Ok(folders(&b)?.is_empty().then_some(())))?;
    drop(s);
    drop(b);
    Ok(())
}

#[test]
fn a_daemon_killed_while_it_takes_a_snapshot_shows_no_half_of_it() -> anyhow::Result<()> {
    const FILES: usize = 20_000;
    let mut disk = None;
    let mut b = start(&mut disk)?;
    let s = Space::new(&b, "killed")?;
    s.apply(&(claim("data", "1Gi", "") + &pod("writer", "data", "echo old > /data/file")))?;
    done(&s, "writer")?;
    let volume = b.data_dir().join("volumes").join(s.value("pvc/data", "{.spec.volumeName}")?);
    for n in 0..FILES {
        fs::write(volume.join(format!("{n}")), "content")?;
    }
    let folder = b.data_dir().join("volumes/.snapshots");
    s.apply(&snapshot("before", "persistentVolumeClaimName: data", ""))?;
    let half = wait_until(Duration::from_secs(60), "some of the copy", || {
        let making = fs::read_dir(&folder)
            .into_iter()
            .flatten()
            .flatten()
            .find(|e| e.file_name().to_string_lossy().starts_with(".making-"));
        let some = making
            .map(|entry| entry.path())
            .filter(|path| path.join("content/file").exists() || path.join("content/0").exists());
        Ok(some)
    })?;
    b.kill_daemon()?;
    assert!(half.exists(), "it was killed in the middle");
    b.up(&[])?;
    // It listens somewhere else now.
    b.kfbox_ok(&["kubeconfig", "--output", s.kubeconfig().to_str().unwrap_or_default()])?;
    s.ok(&format!("config set-context --current --namespace {}", s.name))?;
    ready(&s, "before")?;
    assert!(!half.exists());
    let [taken] = &folders(&b)?[..] else { panic!("{:?}", folders(&b)?) };
    assert_eq!(fs::read_dir(folder.join(taken).join("content"))?.count(), FILES + 1);
    drop(s);
    // The data directory is a mount of its own, which cannot be removed: it is emptied.
    b.reset()?.ok()?;
    assert_eq!(fs::read_dir(b.data_dir())?.count(), 0);
    drop(b);
    Ok(())
}

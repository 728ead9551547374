//! Which user, group and further groups a container's process has.
//!
//! Names come from the image's own `/etc/passwd` and `/etc/group`. Those files are the image's word, so they are read
//! without following any link: a link could lead to the host's.
//! Upstream: <https://kubernetes.io/docs/tasks/configure-pod-container/security-context/>

use k8s_openapi::api::core::v1::{PodSecurityContext, SecurityContext};
use nix::{
    fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2},
    sys::stat::{SFlag, fstat},
};
use std::{
    fs::File,
    io::Read,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

/// A passwd file longer than this is no passwd file.
const MAX_FILE: u64 = 1 << 20;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Identity {
    pub uid: u32,
    pub gid: u32,
    pub additional: Vec<u32>,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    #[error("unable to find user {0}: no matching entries in passwd file")]
    NoUser(String),
    #[error("unable to find group {0}: no matching entries in group file")]
    NoGroup(String),
    #[error("container has runAsNonRoot and image will run as root")]
    WouldRunAsRoot,
    #[error("container has runAsNonRoot and image has non-numeric user ({0}), cannot verify user is non-root")]
    Unverifiable(String),
    #[error("container's runAsUser breaks non-root policy")]
    BreaksPolicy,
}

/// The account files of an image.
#[derive(Debug, Clone, Default)]
pub struct Accounts {
    passwd: String,
    group: String,
}

impl Accounts {
    /// Reads from an image's layers, topmost first.
    pub fn read(layers: &[PathBuf]) -> Self {
        let find = |name: &str| layers.iter().find_map(|layer| read_file(layer, name)).flatten().unwrap_or_default();
        Self { passwd: find("etc/passwd"), group: find("etc/group") }
    }

    /// `(name, uid, gid)` of a user given by name or number.
    fn user(&self, wanted: &str) -> Option<(&str, u32, u32)> {
        let entry = |line: &'_ str| -> Option<(usize, u32, u32)> {
            let mut fields = line.split(':');
            let name = fields.next()?;
            let uid = fields.nth(1)?.parse().ok()?;
            let gid = fields.next()?.parse().ok()?;
            Some((name.len(), uid, gid))
        };
        let number: Option<u32> = wanted.parse().ok();
        let entries = || self.passwd.lines().filter_map(|line| entry(line).map(|(n, u, g)| (&line[..n], u, g)));
        entries().find(|(name, ..)| *name == wanted).or_else(|| entries().find(|(_, uid, _)| Some(*uid) == number))
    }

    fn group(&self, wanted: &str) -> Option<u32> {
        self.groups().find(|(name, ..)| *name == wanted).map(|(_, gid, _)| gid)
    }

    fn groups(&self) -> impl Iterator<Item = (&str, u32, &str)> {
        self.group.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            let gid = fields.nth(1)?.parse().ok()?;
            Some((name, gid, fields.next().unwrap_or_default()))
        })
    }
}

/// None: look further down. Some(None): a layer removed the file.
fn read_file(layer: &Path, name: &str) -> Option<Option<String>> {
    let how = |resolve| OpenHow::new().flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).resolve(resolve);
    let root: OwnedFd = openat2(AT_FDCWD, layer, OpenHow::new().flags(OFlag::O_PATH | OFlag::O_CLOEXEC)).ok()?;
    let inside = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    // A whiteout is a character device 0:0, which cannot be opened for reading.
    let path = openat2(&root, name, OpenHow::new().flags(OFlag::O_PATH | OFlag::O_CLOEXEC).resolve(inside)).ok()?;
    let kind = SFlag::from_bits_truncate(fstat(&path).ok()?.st_mode & SFlag::S_IFMT.bits());
    if kind == SFlag::S_IFCHR {
        return Some(None);
    }
    if kind != SFlag::S_IFREG {
        return None;
    }
    let file = openat2(&root, name, how(inside)).ok()?;
    let mut text = String::new();
    File::from(file).take(MAX_FILE).read_to_string(&mut text).ok()?;
    Some(Some(text))
}

/// `image_user` is the image's own setting: `user[:group]`, by name or number; empty is root.
pub fn identity(
    pod: Option<&PodSecurityContext>,
    container: Option<&SecurityContext>,
    image_user: &str,
    accounts: &Accounts,
) -> Result<Identity, IdentityError> {
    let run_as_user = container.and_then(|c| c.run_as_user).or_else(|| pod.and_then(|p| p.run_as_user));
    let run_as_group = container.and_then(|c| c.run_as_group).or_else(|| pod.and_then(|p| p.run_as_group));
    let non_root =
        container.and_then(|c| c.run_as_non_root).or_else(|| pod.and_then(|p| p.run_as_non_root)).unwrap_or(false);
    let (image_name, image_group) = image_user.split_once(':').unwrap_or((image_user, ""));

    let numeric = |id: i64| u32::try_from(id).ok();
    let wanted = match run_as_user.and_then(numeric) {
        Some(uid) if non_root && uid == 0 => return Err(IdentityError::BreaksPolicy),
        Some(uid) => uid.to_string(),
        None if image_name.is_empty() && non_root => return Err(IdentityError::WouldRunAsRoot),
        None if image_name.is_empty() => "0".to_owned(),
        None => {
            match image_name.parse::<u32>() {
                Ok(0) if non_root => return Err(IdentityError::WouldRunAsRoot),
                Err(_) if non_root => return Err(IdentityError::Unverifiable(image_name.into())),
                _ => {}
            }
            image_name.to_owned()
        }
    };
    let account = accounts.user(&wanted);
    let uid = match (account, wanted.parse()) {
        (_, Ok(uid)) => uid,
        (Some((_, uid, _)), Err(_)) => uid,
        (None, Err(_)) => return Err(IdentityError::NoUser(wanted)),
    };
    let gid = match run_as_group.and_then(numeric) {
        Some(gid) => gid,
        None if run_as_user.is_none() && !image_group.is_empty() => match image_group.parse() {
            Ok(gid) => gid,
            Err(_) => accounts.group(image_group).ok_or_else(|| IdentityError::NoGroup(image_group.into()))?,
        },
        None => account.map_or(0, |(_, _, gid)| gid),
    };

    let mut additional: Vec<u32> = Vec::new();
    let strict = pod.and_then(|p| p.supplemental_groups_policy.as_deref()) == Some("Strict");
    if let (Some((name, ..)), false) = (account, strict) {
        let member = |list: &str| list.split(',').any(|m| m == name);
        additional.extend(accounts.groups().filter(|(_, _, members)| member(members)).map(|(_, gid, _)| gid));
    }
    let declared = pod.and_then(|p| p.supplemental_groups.as_deref()).unwrap_or_default();
    additional.extend(declared.iter().copied().chain(pod.and_then(|p| p.fs_group)).filter_map(numeric));
    additional.sort_unstable();
    additional.dedup();
    additional.retain(|g| *g != gid);
    Ok(Identity { uid, gid, additional })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accounts() -> Accounts {
        Accounts {
            passwd: "root:x:0:0:root:/root:/bin/sh\njovyan:x:1000:100::/home/jovyan:/bin/sh\n".into(),
            group: "root:x:0:\nusers:x:100:\nstaff:x:50:jovyan,other\n".into(),
        }
    }

    fn context(user: Option<i64>, non_root: Option<bool>) -> SecurityContext {
        SecurityContext { run_as_user: user, run_as_non_root: non_root, ..SecurityContext::default() }
    }

    #[test]
    fn names_are_found_in_the_image() {
        let found = identity(None, None, "jovyan", &accounts()).unwrap();
        assert_eq!(found, Identity { uid: 1000, gid: 100, additional: vec![50] });
        assert_eq!(identity(None, None, "jovyan:staff", &accounts()).unwrap().gid, 50);
        assert_eq!(identity(None, None, "", &accounts()).unwrap(), Identity::default());
        assert_eq!(identity(None, None, "7:8", &accounts()).unwrap(), Identity { uid: 7, gid: 8, additional: vec![] });
        assert_eq!(identity(None, None, "nobody", &accounts()), Err(IdentityError::NoUser("nobody".into())));
    }

    #[test]
    fn the_security_context_wins() {
        let pod = PodSecurityContext {
            run_as_user: Some(5),
            run_as_group: Some(6),
            fs_group: Some(7),
            supplemental_groups: Some(vec![8, 6]),
            ..PodSecurityContext::default()
        };
        let found = identity(Some(&pod), Some(&context(Some(1000), None)), "root", &accounts()).unwrap();
        assert_eq!(found, Identity { uid: 1000, gid: 6, additional: vec![7, 8, 50] });
    }

    #[test]
    fn non_root_is_checked_before_anything_runs() {
        let check = |user, image| identity(None, Some(&context(user, Some(true))), image, &accounts());
        assert_eq!(check(None, ""), Err(IdentityError::WouldRunAsRoot));
        assert_eq!(check(None, "0:0"), Err(IdentityError::WouldRunAsRoot));
        assert_eq!(check(Some(0), "1000"), Err(IdentityError::BreaksPolicy));
        assert_eq!(check(None, "jovyan"), Err(IdentityError::Unverifiable("jovyan".into())));
        assert_eq!(check(None, "1000").unwrap().uid, 1000);
    }

    #[test]
    fn account_files_are_not_followed_out_of_the_image() {
        let dir = tempfile::tempdir().unwrap();
        let (top, base) = (dir.path().join("top"), dir.path().join("base"));
        std::fs::create_dir_all(top.join("etc")).unwrap();
        std::fs::create_dir_all(base.join("etc")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", top.join("etc/passwd")).unwrap();
        std::fs::write(base.join("etc/group"), "staff:x:50:a\n").unwrap();
        let read = Accounts::read(&[top, base]);
        assert_eq!(read.passwd, "");
        assert_eq!(read.group("staff"), Some(50));
    }
}

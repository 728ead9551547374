//! Which ids of the host a pod with a user namespace has: a block of [`IDS`] that no other pod has, kept in the pod's
//! folder for as long as anything of the pod is left.

use crate::oci::users::IDS;
use parking_lot::Mutex;
use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

/// In the pod's folder: the first id of its block.
const FILE: &str = "users";

/// The blocks of one node. Two boxes on a machine share them: an id says which pod of a box, not which box.
#[derive(Debug)]
pub struct Blocks {
    pods: PathBuf,
    first: u32,
    count: u32,
    taking: Mutex<()>,
}

impl Blocks {
    /// `pods` holds the pods' folders; `first` is the lowest id.
    pub fn new(pods: PathBuf, first: u32, count: u32) -> Self {
        Self { pods, first, count, taking: Mutex::default() }
    }

    /// The first id of the pod's block, which it keeps. Blocking.
    pub fn of(&self, uid: &str) -> io::Result<u32> {
        let _taking = self.taking.lock();
        let folder = self.pods.join(uid);
        if let Some(first) = read(&folder) {
            return Ok(first);
        }
        let taken: BTreeSet<u32> = fs::read_dir(&self.pods)?.flatten().filter_map(|pod| read(&pod.path())).collect();
        let free = (0..self.count)
            .filter_map(|n| self.first.checked_add(n.checked_mul(IDS)?))
            .find(|first| !taken.contains(first))
            .ok_or_else(|| io::Error::other("every block of user ids is some pod's"))?;
        let new = folder.join("users.new");
        fs::write(&new, free.to_string())?;
        fs::rename(new, folder.join(FILE))?;
        Ok(free)
    }
}

fn read(folder: &Path) -> Option<u32> {
    fs::read_to_string(folder.join(FILE)).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_one_pods_until_its_folder_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        for pod in ["a", "b", "c"] {
            fs::create_dir(dir.path().join(pod)).unwrap();
        }
        let blocks = Blocks::new(dir.path().into(), 1 << 20, 2);
        let a = blocks.of("a").unwrap();
        assert_eq!((a, blocks.of("b").unwrap()), (1 << 20, (1 << 20) + IDS));
        assert_eq!(Blocks::new(dir.path().into(), 1 << 20, 2).of("a").unwrap(), a, "also for the next daemon");
        assert!(blocks.of("c").is_err());
        fs::remove_dir_all(dir.path().join("a")).unwrap();
        assert_eq!(blocks.of("c").unwrap(), a);
    }
}

//! Which pod has which address: one file an address, holding the pod's uid, so that a daemon that starts again knows.
//! Invariant: an address belongs to at most one pod; the first addresses (network, gateway) and the last belong to none.

use ipnet::Ipv4Net;
use std::{
    collections::HashMap,
    fs, io,
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

#[derive(Debug, thiserror::Error)]
pub enum IpamError {
    #[error("all {size} addresses of {cidr} are taken")]
    Full { cidr: Ipv4Net, size: usize },
    #[error("{path}: {source}")]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

pub struct Ipam {
    folder: PathBuf,
    cidr: Ipv4Net,
    by_pod: HashMap<String, Ipv4Addr>,
    by_address: HashMap<Ipv4Addr, String>,
    /// Addresses are given out in turn, so that one just freed is not met again at once by those who remember it.
    last: u32,
}

impl Ipam {
    pub fn open(folder: &Path, cidr: Ipv4Net) -> Result<Self, IpamError> {
        let failed = |source| IpamError::Io { path: folder.to_owned(), source };
        fs::create_dir_all(folder).map_err(failed)?;
        let (mut by_pod, mut by_address) = (HashMap::new(), HashMap::new());
        for entry in fs::read_dir(folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let address: Option<Ipv4Addr> = entry.file_name().to_str().and_then(|name| name.parse().ok());
            let uid = fs::read_to_string(entry.path()).unwrap_or_default();
            match address {
                Some(address) if cidr.contains(&address) && !uid.is_empty() && !by_pod.contains_key(&uid) => {
                    by_pod.insert(uid.clone(), address);
                    by_address.insert(address, uid);
                }
                // Of another range, or cut short by a crash.
                _ => fs::remove_file(entry.path()).map_err(failed)?,
            }
        }
        let last = by_address.keys().copied().map(u32::from).max().unwrap_or_else(|| gateway(&cidr).into());
        Ok(Self { folder: folder.to_owned(), cidr, by_pod, by_address, last })
    }

    pub fn get(&self, uid: &str) -> Option<Ipv4Addr> {
        self.by_pod.get(uid).copied()
    }

    pub fn pods(&self) -> impl Iterator<Item = &str> {
        self.by_pod.keys().map(String::as_str)
    }

    /// The pod's address, the same as before if it has one.
    pub fn allocate(&mut self, uid: &str) -> Result<Ipv4Addr, IpamError> {
        if let Some(address) = self.get(uid) {
            return Ok(address);
        }
        let (first, end) = (u32::from(gateway(&self.cidr)) + 1, u32::from(self.cidr.broadcast()));
        let size = end.saturating_sub(first);
        let next = (1..=size)
            .map(|step| first + (self.last.max(first - 1) - (first - 1) + step - 1) % size)
            .map(Ipv4Addr::from)
            .find(|address| !self.by_address.contains_key(address))
            .ok_or(IpamError::Full { cidr: self.cidr, size: size as usize })?;
        let path = self.folder.join(next.to_string());
        fs::write(&path, uid).map_err(|source| IpamError::Io { path, source })?;
        self.last = next.into();
        self.by_pod.insert(uid.to_owned(), next);
        self.by_address.insert(next, uid.to_owned());
        Ok(next)
    }

    pub fn release(&mut self, uid: &str) -> Result<(), IpamError> {
        let Some(address) = self.by_pod.remove(uid) else { return Ok(()) };
        self.by_address.remove(&address);
        let path = self.folder.join(address.to_string());
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(IpamError::Io { path, source }),
            _ => Ok(()),
        }
    }
}

/// The first address of a range, which is the host's own.
pub fn gateway(cidr: &Ipv4Net) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(cidr.network()) + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_kept_over_a_restart_and_reused_last() {
        let folder = tempfile::tempdir().unwrap();
        let cidr: Ipv4Net = "10.9.8.0/29".parse().unwrap();
        let mut ipam = Ipam::open(folder.path(), cidr).unwrap();
        let of = |ipam: &mut Ipam, uid: &str| ipam.allocate(uid).map(|a| a.to_string());
        assert_eq!(of(&mut ipam, "a").unwrap(), "10.9.8.2");
        assert_eq!(of(&mut ipam, "b").unwrap(), "10.9.8.3");
        assert_eq!(of(&mut ipam, "a").unwrap(), "10.9.8.2");
        let mut ipam = Ipam::open(folder.path(), cidr).unwrap();
        assert_eq!(of(&mut ipam, "b").unwrap(), "10.9.8.3");
        ipam.release("a").unwrap();
        assert_eq!(of(&mut ipam, "c").unwrap(), "10.9.8.4");
        for uid in ["d", "e"] {
            of(&mut ipam, uid).unwrap();
        }
        assert_eq!(of(&mut ipam, "f").unwrap(), "10.9.8.2");
        assert!(matches!(of(&mut ipam, "g"), Err(IpamError::Full { size: 5, .. })));
        ipam.release("nobody").unwrap();
        ipam.release("e").unwrap();
        assert_eq!(of(&mut ipam, "g").unwrap(), "10.9.8.6");
    }

    #[test]
    fn what_a_crash_cut_short_is_dropped() {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in [("10.9.8.5", ""), ("noise", "x"), ("192.0.2.1", "other")] {
            fs::write(folder.path().join(name), content).unwrap();
        }
        let ipam = Ipam::open(folder.path(), "10.9.8.0/24".parse().unwrap()).unwrap();
        assert_eq!(ipam.pods().count(), 0);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}

//! What pulls under way have brought, or found, before any image names it.
//!
//! Guarantee: content is not garbage while a [`Pinned`] that names it lives, so garbage is collected next to a download of
//! hours, and no pod waits for either. A digest is pinned before it is looked for: whoever then finds its blob keeps it.

use parking_lot::Mutex;
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

/// How many pulls need each digest.
#[derive(Debug, Clone, Default)]
pub struct Pins(Arc<Mutex<HashMap<String, usize>>>);

/// What one pull needs, until it is dropped.
#[derive(Debug)]
pub struct Pinned {
    pins: Pins,
    digests: Mutex<HashSet<String>>,
}

impl Pins {
    pub fn hold(&self) -> Pinned {
        Pinned { pins: self.clone(), digests: Mutex::default() }
    }

    /// Does `work` if nobody needs the digest; who comes to need it meanwhile waits, and finds what is left.
    pub fn unless_pinned<T>(&self, digest: &str, work: impl FnOnce() -> T) -> Option<T> {
        let all = self.0.lock();
        (!all.contains_key(digest)).then(work)
    }
}

impl Pinned {
    pub fn pin(&self, digest: &str) {
        if self.digests.lock().insert(digest.to_owned()) {
            *self.pins.0.lock().entry(digest.to_owned()).or_default() += 1;
        }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let mut all = self.pins.0.lock();
        for digest in self.digests.get_mut().drain() {
            if let Some(count) = all.get_mut(&digest) {
                *count -= 1;
                if *count == 0 {
                    all.remove(&digest);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_pinned_until_the_last_that_needs_it_is_gone() {
        let pins = Pins::default();
        let (a, b) = (pins.hold(), pins.hold());
        a.pin("x");
        a.pin("x");
        b.pin("x");
        b.pin("y");
        drop(a);
        assert!(pins.unless_pinned("x", || ()).is_none());
        drop(b);
        assert!(pins.unless_pinned("x", || ()).is_some() && pins.unless_pinned("y", || ()).is_some());
    }
}

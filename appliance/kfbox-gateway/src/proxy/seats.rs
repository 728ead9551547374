//! Upgraded connections last as long as both sides like, so that they are counted: in all, and of one namespace, that one
//! person's pages cannot take the descriptors of everybody.

use parking_lot::Mutex;
use std::{collections::HashMap, sync::Arc};

/// Each holds two descriptors and some 10 KiB.
const IN_ALL: usize = 4096;
const OF_ONE: usize = 1024;

#[derive(Clone, Default)]
pub(crate) struct Seats(Arc<Mutex<HashMap<String, usize>>>);

/// Given back when dropped.
pub(crate) struct Seat {
    seats: Seats,
    namespace: String,
}

impl Seats {
    pub fn take(&self, namespace: &str) -> Option<Seat> {
        let mut taken = self.0.lock();
        let mine = taken.get(namespace).copied().unwrap_or(0);
        if mine >= OF_ONE || taken.values().sum::<usize>() >= IN_ALL {
            return None;
        }
        taken.insert(namespace.to_owned(), mine + 1);
        Some(Seat { seats: self.clone(), namespace: namespace.to_owned() })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.seats.0.lock();
        match taken.get_mut(&self.namespace) {
            Some(mine) if *mine > 1 => *mine -= 1,
            _ => drop(taken.remove(&self.namespace)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_namespace_leaves_room_for_others_and_seats_come_back() {
        let seats = Seats::default();
        let mine: Vec<Seat> = (0..OF_ONE).map(|_| seats.take("team-a").unwrap()).collect();
        assert!(seats.take("team-a").is_none());
        let theirs: Vec<Vec<Seat>> =
            (0..3).map(|n| (0..OF_ONE).map(|_| seats.take(&format!("team-{n}")).unwrap()).collect()).collect();
        assert!(seats.take("team-z").is_none(), "in all");
        drop((mine, theirs));
        assert!(seats.take("team-a").is_some());
        assert!(seats.0.lock().is_empty());
    }
}

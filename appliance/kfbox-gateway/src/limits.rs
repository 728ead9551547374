//! Brakes on guessing passwords: per account and per address, with a wait that doubles.
//!
//! Guarantee: an attempt is counted before the password is checked, so that many at once gain nothing. Accounts that do
//! not exist are braked like those that do. What was counted survives a restart: see `store::attempts`.

use crate::store::{attempts::Attempts as Kept, hash_secret, seconds, users::canonical_email};
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    hash::Hash,
    net::IpAddr,
    time::{Duration, Instant},
};

/// Attempts on one account before waits begin, and the longest wait. A person mistypes a few times; a guesser gets
/// twelve tries an hour.
const ACCOUNT: Rule = Rule { free: 5, longest: Duration::from_secs(300) };
/// The same for one address: higher, because a laboratory may share one.
const ADDRESS: Rule = Rule { free: 30, longest: Duration::from_secs(60) };
/// Failures are forgotten after this long without another.
pub const FORGET: Duration = Duration::from_secs(900);
/// Names remembered; bounds the memory that a flood of invented accounts takes.
const REMEMBERED: usize = 10_000;

#[derive(Clone, Copy)]
struct Rule {
    free: u32,
    longest: Duration,
}

#[derive(Clone, Copy)]
struct Attempts {
    failures: u32,
    last: Instant,
    blocked_until: Instant,
}

#[derive(Default)]
pub struct SignInLimits {
    accounts: Mutex<HashMap<String, Attempts>>,
    addresses: Mutex<HashMap<IpAddr, Attempts>>,
}

/// How long to wait before the next attempt.
#[derive(Debug, PartialEq, Eq)]
pub struct Wait(pub Duration);

impl SignInLimits {
    /// Goes on from what was kept. `wall` is the time of `now` in seconds since 1970.
    pub fn restored(kept: &[Kept], now: Instant, wall: i64) -> Self {
        let limits = Self::default();
        for Kept { who, failures, last, blocked_until } in kept {
            let ago = Duration::from_secs(wall.saturating_sub(*last).max(0).unsigned_abs());
            let ahead = Duration::from_secs(blocked_until.saturating_sub(wall).max(0).unsigned_abs());
            let attempts = Attempts {
                failures: *failures,
                last: now.checked_sub(ago).unwrap_or(now),
                // A clock that was set back must not lock anybody out for longer than the rules do.
                blocked_until: now + ahead.min(ACCOUNT.longest),
            };
            match who.split_once(' ') {
                Some(("account", name)) => drop(limits.accounts.lock().insert(name.to_owned(), attempts)),
                Some(("address", ip)) => {
                    if let Ok(ip) = ip.parse() {
                        limits.addresses.lock().insert(ip, attempts);
                    }
                }
                _ => {}
            }
        }
        limits
    }

    /// What is to be kept after an attempt, good or bad.
    pub fn kept(&self, account: &str, address: IpAddr, now: Instant, wall: i64) -> Vec<Kept> {
        let row = |who: String, found: Option<&Attempts>| Kept {
            who,
            failures: found.map_or(0, |a| a.failures),
            last: wall,
            // Whole seconds, rounded up: a restart must not shorten the wait.
            blocked_until: found.map_or(0, |a| {
                let wait = a.blocked_until.saturating_duration_since(now);
                wall.saturating_add(seconds(wait)).saturating_add(i64::from(wait.subsec_nanos() > 0))
            }),
        };
        let name = account.trim().to_lowercase();
        let mut rows = Vec::new();
        if canonical_email(account).is_ok() {
            rows.push(row(format!("account {name}"), self.accounts.lock().get(&name)));
        }
        rows.push(row(format!("address {address}"), self.addresses.lock().get(&address)));
        rows
    }

    /// Counts an attempt as failed and lets it through, or says how long to wait.
    pub fn admit(&self, account: &str, address: IpAddr, now: Instant) -> Result<(), Wait> {
        let account = account.trim().to_lowercase();
        let mut accounts = self.accounts.lock();
        let mut addresses = self.addresses.lock();
        if let Some(wait) = blocked(&accounts, &account, now).max(blocked(&addresses, &address, now)) {
            return Err(Wait(wait));
        }
        count(&mut accounts, account, now, ACCOUNT);
        count(&mut addresses, address, now, ADDRESS);
        Ok(())
    }

    /// The same for an account alone, when an attempt turns out to be on a second one.
    pub fn admit_account(&self, account: &str, now: Instant) -> Result<(), Wait> {
        let account = account.trim().to_lowercase();
        let mut accounts = self.accounts.lock();
        if let Some(wait) = blocked(&accounts, &account, now) {
            return Err(Wait(wait));
        }
        count(&mut accounts, account, now, ACCOUNT);
        Ok(())
    }

    /// The attempt told nothing of the password, neither to us nor to a guesser: it is as if it had not been.
    pub fn undo(&self, account: &str, second: Option<&str>, address: IpAddr) {
        let take = |attempts: &mut Attempts| {
            attempts.failures = attempts.failures.saturating_sub(1);
            attempts.blocked_until = attempts.last;
        };
        let mut accounts = self.accounts.lock();
        for name in [Some(account), second].into_iter().flatten() {
            accounts.get_mut(&name.trim().to_lowercase()).map(take);
        }
        self.addresses.lock().get_mut(&address).map(take);
    }

    pub fn forget_account(&self, account: &str) {
        self.accounts.lock().remove(&account.trim().to_lowercase());
    }

    /// The attempt was bad: the wait begins now, when the guesser learns of it. Checking a password takes its time.
    pub fn failed(&self, account: &str, address: IpAddr, now: Instant) {
        if let Some(attempts) = self.accounts.lock().get_mut(&account.trim().to_lowercase()) {
            attempts.blocked_until = attempts.blocked_until.max(now + wait(attempts.failures, ACCOUNT));
        }
        if let Some(attempts) = self.addresses.lock().get_mut(&address) {
            attempts.blocked_until = attempts.blocked_until.max(now + wait(attempts.failures, ADDRESS));
        }
    }

    /// The attempt was good: forgets the account's failures, and takes this one off the address.
    pub fn succeeded(&self, account: &str, address: IpAddr) {
        self.forget_account(account);
        if let Some(attempts) = self.addresses.lock().get_mut(&address) {
            attempts.failures = attempts.failures.saturating_sub(1);
            attempts.blocked_until = attempts.last;
        }
    }
}

/// The name of an account that another place knows: a digest, in an address's form so that it is kept as addresses are.
/// What is typed there is no address, and may be a password by mistake.
pub fn account_at(connector: &str, name: &str) -> String {
    let digest = hash_secret(&name.trim().to_lowercase());
    format!("{}@{connector}", hex::encode(&digest[..16]))
}

fn blocked<K: Hash + Eq>(map: &HashMap<K, Attempts>, key: &K, now: Instant) -> Option<Duration> {
    map.get(key).map(|a| a.blocked_until.saturating_duration_since(now)).filter(|d| !d.is_zero())
}

fn count<K: Hash + Eq + Clone>(map: &mut HashMap<K, Attempts>, key: K, now: Instant, rule: Rule) {
    if map.len() >= REMEMBERED && !map.contains_key(&key) {
        map.retain(|_, a| now.saturating_duration_since(a.last) < FORGET);
        if map.len() >= REMEMBERED
            && let Some(oldest) = map.iter().min_by_key(|(_, a)| a.last).map(|(k, _)| k.clone())
        {
            map.remove(&oldest);
        }
    }
    let attempts = map.entry(key).or_insert(Attempts { failures: 0, last: now, blocked_until: now });
    if now.saturating_duration_since(attempts.last) >= FORGET {
        attempts.failures = 0;
    }
    attempts.failures = attempts.failures.saturating_add(1);
    attempts.last = now;
    attempts.blocked_until = now + wait(attempts.failures, rule);
}

fn wait(failures: u32, rule: Rule) -> Duration {
    match failures.checked_sub(rule.free) {
        None => Duration::ZERO,
        Some(over) => Duration::from_secs(1 << over.min(20)).min(rule.longest),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    #[test]
    fn waits_begin_after_five_failures_double_and_end() {
        let (limits, start) = (SignInLimits::default(), Instant::now());
        for _ in 0..5 {
            limits.admit("a@x.org", HERE, start).unwrap();
        }
        let Wait(first) = limits.admit(" A@X.org", HERE, start).unwrap_err();
        assert_eq!(first, Duration::from_secs(1));
        limits.admit("b@x.org", HERE, start).unwrap();
        let later = start + first;
        limits.admit("a@x.org", HERE, later).unwrap();
        assert_eq!(limits.admit("a@x.org", HERE, later), Err(Wait(Duration::from_secs(2))));
        limits.succeeded("a@x.org", HERE);
        limits.admit("a@x.org", HERE, later).unwrap();
    }

    #[test]
    fn the_wait_is_bounded_and_failures_are_forgotten() {
        let limits = SignInLimits::default();
        let mut now = Instant::now();
        for _ in 0..40 {
            if let Err(Wait(wait)) = limits.admit("a@x.org", HERE, now) {
                assert!(wait <= ACCOUNT.longest);
                now += wait;
            }
        }
        now += FORGET + ACCOUNT.longest;
        for _ in 0..5 {
            limits.admit("a@x.org", HERE, now).unwrap();
        }
        assert!(limits.admit("a@x.org", HERE, now).is_err());
    }

    #[test]
    fn trouble_elsewhere_is_nobodys_attempt() {
        let (limits, now) = (SignInLimits::default(), Instant::now());
        let (typed, entry) = (account_at("corp", " Ann"), account_at("corp", "uid=ann"));
        assert_eq!(typed, account_at("corp", "ann"));
        assert_ne!(typed, account_at("lab", "ann"));
        for _ in 0..50 {
            limits.admit(&typed, HERE, now).unwrap();
            limits.admit_account(&entry, now).unwrap();
            limits.undo(&typed, Some(&entry), HERE);
        }
        assert_eq!(limits.kept(&typed, HERE, now, 1000)[0].failures, 0);
        // Other spellings of a name are one entry's.
        for n in 0..5 {
            limits.admit(&account_at("corp", &format!("ann{n}")), HERE, now).unwrap();
            limits.admit_account(&entry, now).unwrap();
        }
        assert!(limits.admit_account(&entry, now).is_err());
        assert_eq!(limits.kept(&entry, HERE, now, 1000).len(), 2, "kept over restarts");
    }

    #[test]
    fn one_address_trying_many_accounts_is_braked() {
        let (limits, now) = (SignInLimits::default(), Instant::now());
        let refused = (0..60).filter(|n| limits.admit(&format!("user{n}@x.org"), HERE, now).is_err()).count();
        assert_eq!(refused, 30);
    }

    #[test]
    fn what_is_kept_brakes_as_before_and_a_clock_set_back_locks_nobody_out() {
        let (limits, now) = (SignInLimits::default(), Instant::now());
        for _ in 0..5 {
            limits.admit(" A@x.org", HERE, now).unwrap();
        }
        let kept = limits.kept("A@x.org", HERE, now, 1000);
        assert_eq!(kept[0], Kept { who: "account a@x.org".into(), failures: 5, last: 1000, blocked_until: 1001 });
        assert_eq!((kept[1].who.as_str(), kept[1].failures), ("address 127.0.0.1", 5));
        let again = SignInLimits::restored(&kept, now, 1000);
        assert_eq!(again.admit("a@x.org", HERE, now), Err(Wait(Duration::from_secs(1))));
        again.admit("a@x.org", HERE, now + Duration::from_secs(1)).unwrap();
        assert_eq!(SignInLimits::restored(&kept, now, 1000 + 901).admit("a@x.org", HERE, now), Ok(()));
        let Err(Wait(wait)) = SignInLimits::restored(&kept, now, 10).admit("a@x.org", HERE, now) else { panic!() };
        assert!(wait <= ACCOUNT.longest);
        limits.succeeded("a@x.org", HERE);
        assert_eq!(limits.kept("a@x.org", HERE, now, 1000)[0].failures, 0);
        // What is no address is written nowhere.
        limits.admit("hunter2", HERE, now).unwrap();
        assert_eq!(limits.kept("hunter2", HERE, now, 1000).len(), 1);
    }

    #[test]
    fn memory_is_bounded() {
        let (limits, now) = (SignInLimits::default(), Instant::now());
        for n in 0..REMEMBERED + 50 {
            count(&mut limits.accounts.lock(), n.to_string(), now, ACCOUNT);
        }
        assert_eq!(limits.accounts.lock().len(), REMEMBERED);
    }
}

//! Who runs next: seats shared fairly between priority levels, and within a level between flows. Pure bookkeeping: no
//! time, no tasks. Guarantees: a level always gets the seats that it does not lend; of two flows that wait in one level
//! neither gets two turns while the other gets none (a turn costs as many seats as its request is wide).

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::Arc,
};

/// Flows remembered that have nothing to do; then they are forgotten, which costs them a turn at most.
const IDLE_FLOWS: usize = 1024;

/// A request takes at most this part of its level's seats, so that a few wide ones do not fill it: upstream's 15 %.
const WIDEST_PERCENT: usize = 15;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LevelConfig {
    pub shares: usize,
    /// Of its seats, how many others may use while it does not.
    pub lendable_percent: usize,
    /// How many seats of others it may use, in percent of its own; None: all there are.
    pub borrowing_percent: Option<usize>,
    /// None: what cannot run at once is refused.
    pub queue: Option<QueueConfig>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueConfig {
    /// Requests that wait in one flow, and in the level.
    pub per_flow: usize,
    pub in_all: usize,
}

/// One user's (or namespace's) requests of one schema.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowKey {
    pub schema: Arc<str>,
    pub distinguisher: String,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Entry {
    /// It runs, and takes this many seats.
    Runs(usize),
    /// It waits under this number.
    Waits(u64),
    Refused,
}

struct Waiter<T> {
    number: u64,
    width: usize,
    payload: T,
}

struct Flow<T> {
    /// When its next request is due, in seats handed out by the level to a flow that is always served.
    turn: u64,
    waiting: VecDeque<Waiter<T>>,
}

struct Level<T> {
    config: LevelConfig,
    nominal: usize,
    kept: usize,
    most: usize,
    used: usize,
    waiting: usize,
    /// The turn of the flow served last.
    clock: u64,
    /// When the level was last served.
    served: u64,
    flows: HashMap<FlowKey, Flow<T>>,
    /// Flows that wait, by turn.
    order: BTreeSet<(u64, FlowKey)>,
}

/// What a release or a change of configuration lets run.
pub struct Dispatch<T> {
    pub level: Arc<str>,
    pub width: usize,
    pub payload: T,
}

pub struct Scheduler<T> {
    seats: usize,
    used: usize,
    numbers: u64,
    served: u64,
    levels: BTreeMap<Arc<str>, Level<T>>,
}

impl<T> Scheduler<T> {
    pub fn new(seats: usize) -> Self {
        Self { seats: seats.max(1), used: 0, numbers: 0, served: 0, levels: BTreeMap::new() }
    }

    /// Levels that are no longer configured keep what runs and waits in them, without a share of their own.
    pub fn configure(&mut self, levels: &BTreeMap<Arc<str>, LevelConfig>) -> Vec<Dispatch<T>> {
        self.levels.retain(|name, level| levels.contains_key(name) || level.used + level.waiting > 0);
        for (name, level) in &mut self.levels {
            if !levels.contains_key(name) {
                level.config.shares = 0;
                level.config.lendable_percent = 100;
            }
        }
        for (name, config) in levels {
            let level = self.levels.entry(name.clone()).or_insert_with(|| Level {
                config: config.clone(),
                nominal: 0,
                kept: 0,
                most: 0,
                used: 0,
                waiting: 0,
                clock: 0,
                served: 0,
                flows: HashMap::new(),
                order: BTreeSet::new(),
            });
            level.config = config.clone();
        }
        let shares = self.levels.values().map(|l| l.config.shares).sum::<usize>().max(1);
        for level in self.levels.values_mut() {
            let own = self.seats * level.config.shares;
            level.nominal = own.div_ceil(shares).max(1);
            level.kept = own * (100 - level.config.lendable_percent.min(100)) / (shares * 100);
            level.most = match level.config.borrowing_percent {
                Some(percent) => level.nominal + level.nominal * percent / 100,
                None => self.seats,
            };
        }
        self.dispatch()
    }

    /// Asks for `width` seats.
    pub fn enter(&mut self, level: &Arc<str>, flow: &FlowKey, width: usize, payload: impl FnOnce() -> T) -> Entry {
        let Some(state) = self.levels.get(level) else { return Entry::Refused };
        let width = width.min(state.nominal * WIDEST_PERCENT / 100).max(1);
        let idle = state.waiting == 0;
        if idle && self.fits(level, width) {
            self.run(level, flow, width);
            return Entry::Runs(width);
        }
        self.numbers += 1;
        let number = self.numbers;
        let Some(state) = self.levels.get_mut(level) else { return Entry::Refused };
        let Some(queue) = state.config.queue else { return Entry::Refused };
        let clock = state.clock;
        if state.waiting >= queue.in_all {
            return Entry::Refused;
        }
        let entry = state.flows.entry(flow.clone()).or_insert_with(|| Flow { turn: clock, waiting: VecDeque::new() });
        if entry.waiting.len() >= queue.per_flow {
            return Entry::Refused;
        }
        if entry.waiting.is_empty() {
            // Who was away has saved nothing up.
            entry.turn = entry.turn.max(clock);
            state.order.insert((entry.turn, flow.clone()));
        }
        entry.waiting.push_back(Waiter { number, width, payload: payload() });
        state.waiting += 1;
        Entry::Waits(number)
    }

    /// A request that waited goes away; false when it runs already.
    pub fn leave(&mut self, level: &Arc<str>, flow: &FlowKey, number: u64) -> bool {
        let Some(state) = self.levels.get_mut(level) else { return false };
        let Some(entry) = state.flows.get_mut(flow) else { return false };
        let Some(at) = entry.waiting.iter().position(|w| w.number == number) else { return false };
        entry.waiting.remove(at);
        state.waiting -= 1;
        if entry.waiting.is_empty() {
            state.order.remove(&(entry.turn, flow.clone()));
        }
        true
    }

    /// Seats come back.
    pub fn release(&mut self, level: &Arc<str>, width: usize) -> Vec<Dispatch<T>> {
        self.used = self.used.saturating_sub(width);
        if let Some(state) = self.levels.get_mut(level) {
            state.used = state.used.saturating_sub(width);
        }
        self.dispatch()
    }

    #[cfg(test)]
    pub fn waiting(&self) -> usize {
        self.levels.values().map(|l| l.waiting).sum()
    }

    /// Whether a level may use so many seats more: all that others do not keep for themselves.
    fn fits(&self, level: &Arc<str>, width: usize) -> bool {
        let Some(state) = self.levels.get(level) else { return false };
        let reserved: usize =
            self.levels.iter().filter(|(name, _)| *name != level).map(|(_, l)| l.kept.saturating_sub(l.used)).sum();
        let within = state.used + width <= state.most || state.used == 0;
        within && (self.used + width + reserved <= self.seats || self.used == 0)
    }

    fn run(&mut self, level: &Arc<str>, flow: &FlowKey, width: usize) {
        self.used += width;
        self.served += 1;
        let Some(state) = self.levels.get_mut(level) else { return };
        state.used += width;
        state.served = self.served;
        let clock = state.clock;
        if state.flows.len() >= IDLE_FLOWS && !state.flows.contains_key(flow) {
            state.flows.retain(|_, f| !f.waiting.is_empty());
        }
        let entry = state.flows.entry(flow.clone()).or_insert_with(|| Flow { turn: clock, waiting: VecDeque::new() });
        let turn = entry.turn.max(clock);
        entry.turn = turn + width as u64;
        state.clock = turn;
    }

    fn dispatch(&mut self) -> Vec<Dispatch<T>> {
        let mut dispatched = Vec::new();
        while let Some(next) = self.next() {
            dispatched.push(next);
        }
        dispatched
    }

    /// The next request of the level that uses least of what is its own.
    fn next(&mut self) -> Option<Dispatch<T>> {
        let mut best: Option<(&Arc<str>, &Level<T>, &FlowKey)> = None;
        for (name, level) in &self.levels {
            let Some((_, flow)) = level.order.first() else { continue };
            let Some(width) = level.flows.get(flow).and_then(|f| f.waiting.front()).map(|w| w.width) else { continue };
            if !self.fits(name, width) {
                continue;
            }
            let better = best.is_none_or(|(_, other, _)| {
                let (mine, theirs) = (level.used * other.nominal, other.used * level.nominal);
                mine < theirs || (mine == theirs && level.served < other.served)
            });
            if better {
                best = Some((name, level, flow));
            }
        }
        let (level, _, flow) = best?;
        let (level, flow) = (level.clone(), flow.clone());
        let state = self.levels.get_mut(&level)?;
        let entry = state.flows.get_mut(&flow)?;
        state.order.remove(&(entry.turn, flow.clone()));
        let waiter = entry.waiting.pop_front()?;
        state.waiting -= 1;
        self.run(&level, &flow, waiter.width);
        let state = self.levels.get_mut(&level)?;
        if let Some(entry) = state.flows.get(&flow)
            && !entry.waiting.is_empty()
        {
            state.order.insert((entry.turn, flow));
        }
        Some(Dispatch { level, width: waiter.width, payload: waiter.payload })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn level(shares: usize, lendable_percent: usize) -> LevelConfig {
        let queue = Some(QueueConfig { per_flow: 300, in_all: 1000 });
        LevelConfig { shares, lendable_percent, borrowing_percent: None, queue }
    }

    fn scheduler(seats: usize, levels: &[(&str, LevelConfig)]) -> Scheduler<String> {
        let mut scheduler = Scheduler::new(seats);
        scheduler.configure(&levels.iter().map(|(n, l)| ((*n).into(), l.clone())).collect());
        scheduler
    }

    fn flow(name: &str) -> FlowKey {
        FlowKey { schema: "s".into(), distinguisher: name.into() }
    }

    /// What runs, in order, when each request ends as soon as it began.
    fn drain(scheduler: &mut Scheduler<String>, first: (&str, usize)) -> Vec<String> {
        let mut running = VecDeque::from([(Arc::<str>::from(first.0), first.1)]);
        let mut ran = Vec::new();
        while let Some((level, width)) = running.pop_front() {
            for next in scheduler.release(&level, width) {
                ran.push(next.payload);
                running.push_back((next.level, next.width));
            }
        }
        ran
    }

    #[test]
    fn of_two_flows_the_quiet_one_waits_for_one_request_of_the_noisy_one_and_no_more() {
        let mut s = scheduler(1, &[("low", level(10, 0))]);
        let low = Arc::from("low");
        assert_eq!(s.enter(&low, &flow("a"), 1, || unreachable!()), Entry::Runs(1));
        for n in 0..200 {
            assert!(matches!(s.enter(&low, &flow("a"), 1, || format!("a{n}")), Entry::Waits(_)));
        }
        for n in 0..3 {
            assert!(matches!(s.enter(&low, &flow("b"), 1, || format!("b{n}")), Entry::Waits(_)));
        }
        let ran = drain(&mut s, ("low", 1));
        assert_eq!(ran.len(), 203);
        let at = |name: &str| ran.iter().position(|r| r == name).unwrap();
        assert!(at("b0") <= 1 && at("b1") <= 3 && at("b2") <= 5, "{:?}", &ran[..8]);
        assert!(at("a198") < at("a199"), "a flow keeps its own order");
        assert_eq!((s.used, s.waiting()), (0, 0));
    }

    #[test]
    fn a_wide_request_costs_its_flow_as_many_turns() {
        let mut s = scheduler(100, &[("low", level(10, 0))]);
        let low = Arc::from("low");
        let mut holders = 0;
        while let Entry::Runs(width) = s.enter(&low, &flow("x"), 10, || "x".into()) {
            holders += width;
        }
        assert_eq!(holders, 100);
        for n in 0..4 {
            s.enter(&low, &flow("wide"), 10, || format!("wide{n}"));
        }
        for n in 0..20 {
            s.enter(&low, &flow("narrow"), 1, || format!("narrow{n}"));
        }
        let mut ran = Vec::new();
        for _ in 0..10 {
            ran.extend(s.release(&low, 10).into_iter().map(|d| d.payload));
        }
        let second = ran.iter().position(|r| r == "wide1").unwrap();
        let before = ran[..second].iter().filter(|r| r.starts_with("narrow")).count();
        assert!((8..=11).contains(&before), "{before} narrow ones between two of ten seats: {ran:?}");
    }

    #[test]
    fn a_level_lends_what_it_may_and_keeps_the_rest() {
        let mut s = scheduler(100, &[("high", level(50, 40)), ("low", level(50, 50))]);
        let (high, low) = (Arc::from("high"), Arc::from("low"));
        let mut running = 0;
        while let Entry::Runs(_) = s.enter(&low, &flow("noisy"), 1, || "low".into()) {
            running += 1;
        }
        // Its own 50, and 20 of the other's.
        assert_eq!(running, 70);
        for n in 0..30 {
            assert_eq!(s.enter(&high, &flow("quiet"), 1, || unreachable!()), Entry::Runs(1), "{n}");
        }
        assert!(matches!(s.enter(&high, &flow("quiet"), 1, || "high".into()), Entry::Waits(_)));
        // What comes back goes to the level that has less of its own.
        assert_eq!(s.release(&low, 1).pop().unwrap().payload, "high");
    }

    #[test]
    fn queues_end_and_a_level_without_one_refuses() {
        let narrow = LevelConfig { queue: Some(QueueConfig { per_flow: 2, in_all: 3 }), ..level(10, 0) };
        let mut s = scheduler(1, &[("low", narrow), ("none", LevelConfig { queue: None, ..level(10, 0) })]);
        let low = Arc::from("low");
        let enter = |s: &mut Scheduler<String>, who: &str| s.enter(&low, &flow(who), 1, || who.to_owned());
        assert_eq!(enter(&mut s, "a"), Entry::Runs(1));
        let Entry::Waits(number) = enter(&mut s, "a") else { panic!() };
        assert!(matches!(enter(&mut s, "a"), Entry::Waits(_)));
        assert_eq!(enter(&mut s, "a"), Entry::Refused);
        assert!(matches!(enter(&mut s, "b"), Entry::Waits(_)));
        assert_eq!(enter(&mut s, "c"), Entry::Refused);
        let low = Arc::from("low");
        assert!(s.leave(&low, &flow("a"), number) && !s.leave(&low, &flow("a"), number));
        assert!(matches!(s.enter(&low, &flow("c"), 1, || "c".into()), Entry::Waits(_)));
        assert_eq!(s.enter(&Arc::from("none"), &flow("d"), 1, || "d".into()), Entry::Refused);
        let mut ran = drain(&mut s, ("low", 1));
        ran.sort();
        assert_eq!(ran, ["a", "b", "c"]);
    }

    #[test]
    fn a_level_that_is_no_longer_configured_finishes_what_it_has() {
        let mut s = scheduler(1, &[("old", level(10, 0))]);
        let (old, new) = (Arc::<str>::from("old"), Arc::<str>::from("new"));
        s.enter(&old, &flow("a"), 1, || unreachable!());
        s.enter(&old, &flow("a"), 1, || "left".into());
        s.configure(&BTreeMap::from([(new.clone(), level(10, 0))]));
        assert!(matches!(s.enter(&new, &flow("a"), 1, || "new".into()), Entry::Waits(_)));
        let mut ran = drain(&mut s, ("old", 1));
        ran.sort();
        assert_eq!(ran, ["left", "new"]);
        s.configure(&BTreeMap::from([(new, level(10, 0))]));
        assert_eq!(s.levels.len(), 1);
    }
}

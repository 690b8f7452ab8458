//! What was acknowledged, by whom, and who led meanwhile? Threads write new keys through every server, many times a second,
//! and ask every server whether it leads. A write counts as acknowledged when the server has said so, never else.
//!
//! Gives what was acknowledged and what must not be: two leaders of one term, a server that is a cluster of its own, raft
//! peers that are nobody of ours. Two clusters that both take writes cannot both have kept them: that shows as a loss.

use crate::plan::SERVERS;
use crate::servers::Servers;
use crate::support::kubernetes::namespace::server;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::Scope;
use std::time::{Duration, Instant};

/// Between two writes through one server: 20 a second in all, when all answer at once.
const WRITES: Duration = Duration::from_millis(150);
/// Between two looks at one server.
const LOOKS: Duration = Duration::from_millis(200);

/// What was acknowledged and seen.
#[derive(Debug)]
pub struct Ledger {
    begun: Instant,
    numbers: AtomicU64,
    ended: AtomicBool,
    acknowledged: Mutex<Acknowledged>,
    /// Who led in which term.
    leaders: Mutex<BTreeMap<u64, usize>>,
    /// What must not be, and how long after the beginning it was seen first.
    wrong: Mutex<BTreeMap<String, Duration>>,
}

#[derive(Debug)]
struct Acknowledged {
    /// By key: through which server, and how long after the beginning.
    keys: BTreeMap<String, (usize, Duration)>,
    last: Instant,
    since: Since,
}

/// What was written since the last look at it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Since {
    /// The longest time without an acknowledged write.
    pub gap: Duration,
    /// So many writes were tried, and so many acknowledged.
    pub tried: u64,
    pub acknowledged: u64,
}

/// Ends the threads, also when the run fails.
pub struct End<'a>(&'a Ledger);

// === impl Ledger ===

impl Ledger {
    pub fn new() -> Self {
        let begun = Instant::now();
        let acknowledged = Acknowledged { keys: BTreeMap::new(), last: begun, since: Since::default() };
        Self {
            begun,
            numbers: AtomicU64::new(0),
            ended: AtomicBool::new(false),
            acknowledged: Mutex::new(acknowledged),
            leaders: Mutex::default(),
            wrong: Mutex::default(),
        }
    }

    /// Starts the threads; they end with the value.
    pub fn start<'scope, 'a: 'scope>(&'a self, scope: &'scope Scope<'scope, '_>, servers: &'a Servers) -> End<'a> {
        for asked in 0..SERVERS {
            scope.spawn(move || self.keep_on(WRITES, || _ = self.write(servers, asked)));
            scope.spawn(move || self.keep_on(LOOKS, || self.look(servers, asked)));
        }
        End(self)
    }

    fn keep_on(&self, pace: Duration, act: impl Fn()) {
        while !self.ended.load(Ordering::Relaxed) {
            let begun = Instant::now();
            act();
            std::thread::sleep(pace.saturating_sub(begun.elapsed()));
        }
    }

    /// Writes a new key through a server; whether that was acknowledged.
    pub fn write(&self, servers: &Servers, asked: usize) -> bool {
        let key = self.numbers.fetch_add(1, Ordering::Relaxed).to_string();
        let stored = servers.write(asked, &key);
        let mut all = lock(&self.acknowledged);
        all.since.tried += 1;
        if stored {
            all.since.acknowledged += 1;
            all.since.gap = all.since.gap.max(all.last.elapsed());
            all.last = Instant::now();
            all.keys.insert(key, (asked, self.begun.elapsed()));
        }
        stored
    }

    fn look(&self, servers: &Servers, asked: usize) {
        let peers = servers.peers(asked);
        let strangers = servers.strangers(&peers);
        if !strangers.is_empty() {
            self.is_wrong(format!("{} has {strangers:?} as raft peers", server(asked)));
        }
        // An empty server is removed before it comes back, and that leaves two.
        if peers.len() == 1 {
            self.is_wrong(format!("{} is a cluster of its own: {peers:?}", server(asked)));
        }
        let Some(term) = servers.leads_in(asked) else { return };
        let first = *lock(&self.leaders).entry(term).or_insert(asked);
        if first != asked {
            self.is_wrong(format!("{} and {} led in term {term}", server(first), server(asked)));
        }
    }

    fn is_wrong(&self, what: String) {
        lock(&self.wrong).entry(what).or_insert_with(|| self.begun.elapsed());
    }

    /// Fails when something was seen that must not be.
    #[track_caller]
    pub fn assert_right(&self) {
        let wrong = lock(&self.wrong);
        assert!(wrong.is_empty(), "two clusters, or two leaders: {wrong:#?}");
    }

    /// What was acknowledged until now.
    pub fn acknowledged(&self) -> BTreeSet<String> {
        lock(&self.acknowledged).keys.keys().cloned().collect()
    }

    /// How many writes were acknowledged until now.
    pub fn count(&self) -> usize {
        lock(&self.acknowledged).keys.len()
    }

    /// When and through whom keys were acknowledged, for a person.
    pub fn told(&self, keys: &[String]) -> Vec<String> {
        let all = lock(&self.acknowledged);
        let told = |key: &String| {
            let (through, at) = all.keys.get(key)?;
            Some(format!("{key}, acknowledged by {} after {:.2} s", server(*through), at.as_secs_f64()))
        };
        keys.iter().filter_map(told).collect()
    }

    /// What was written since the last call.
    pub fn since(&self) -> Since {
        let mut all = lock(&self.acknowledged);
        let since = std::mem::take(&mut all.since);
        Since { gap: since.gap.max(all.last.elapsed()), ..since }
    }
}

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.ended.store(true, Ordering::Relaxed);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

//! What does a client notice while something is done to the servers? One writes 20 keys a second through whichever server
//! accepts, another looks who votes and who is away.
//!
//! Takes the namespace and how many servers there are; gives the acknowledged keys, the longest time without one, the fewest
//! voters and the most servers that were away at once. A write without an answer is evidence of nothing.

use super::super::cluster::exchange;
use super::followed::Followed;
use super::namespace::{Namespace, SERVERS, is_ready, server};
use serde_json::Value;
use std::collections::BTreeSet;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const FOLDER: &str = "watched";
/// 20 a second.
const PACE: Duration = Duration::from_millis(50);
/// After this a client asks another server.
const PATIENCE: Duration = Duration::from_millis(600);
/// Between two looks at the configurations: a server that has lost its vote is without it for seconds.
const LOOK: Duration = Duration::from_millis(250);

/// What was seen.
#[derive(Debug)]
pub struct Seen {
    /// The keys that were acknowledged.
    pub keys: BTreeSet<String>,
    /// The longest time without an acknowledgement.
    pub gap: Duration,
    /// The fewest voters in any server's configuration.
    pub fewest_voters: usize,
    /// The most servers that were away at one moment: no Pod, one that is being deleted, or one that was never Ready yet.
    pub most_away: usize,
}

/// The way to the agents: the Pods' own addresses where this machine reaches them, as those of a cluster whose nodes all run on it. What goes
/// through the Kubernetes API takes a tenth of two cores from what is watched.
struct Way<'a> {
    namespace: &'a Namespace,
    followed: &'a Followed,
    direct: bool,
}

/// Ends the threads also when what is done meanwhile panics.
struct Ending<'a>(&'a AtomicBool);

/// Does something while the servers are watched, which are followed for it too.
pub fn while_watched<T>(namespace: &Namespace, count: usize, done: impl FnOnce(&Followed) -> T) -> (T, Seen) {
    let followed = namespace.follow(SERVERS);
    // Whom nobody has told of yet is not away.
    namespace.wait_for("the Pods to be told of", || followed.pods().len() == count);
    let over = AtomicBool::new(false);
    let way = Way::new(namespace, &followed, count);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| write(&way, count, &over));
        let looker = scope.spawn(|| look(&way, count, &over));
        let ending = Ending(&over);
        let done = done(&followed);
        drop(ending);
        let (keys, gap) = writer.join().unwrap();
        let (fewest_voters, most_away) = looker.join().unwrap();
        (done, Seen { keys, gap, fewest_voters, most_away })
    })
}

fn write(way: &Way<'_>, count: usize, over: &AtomicBool) -> (BTreeSet<String>, Duration) {
    static RUN: AtomicU64 = AtomicU64::new(0);
    let run = RUN.fetch_add(1, Ordering::Relaxed);
    let (mut keys, mut gap) = (BTreeSet::new(), Duration::ZERO);
    let (mut asked, mut last) = (0, Instant::now());
    for number in 0.. {
        if over.load(Ordering::SeqCst) {
            break;
        }
        let begun = Instant::now();
        let key = format!("{FOLDER}/{run}/{number}");
        let path = format!("/v1/kv/{key}");
        match way.ask(asked % count, "PUT", &path, "yes") {
            Some((200, answer)) if answer.trim() == "true" => {
                gap = gap.max(last.elapsed());
                last = Instant::now();
                keys.insert(key);
            }
            // Another one may know a leader.
            _ => asked += 1,
        }
        std::thread::sleep(PACE.saturating_sub(begun.elapsed()));
    }
    (keys, gap.max(last.elapsed()))
}

fn look(way: &Way<'_>, count: usize, over: &AtomicBool) -> (usize, usize) {
    let (mut fewest, mut away) = (count, 0);
    let mut once_ready = BTreeSet::new();
    let mut looked = None::<Instant>;
    while !over.load(Ordering::SeqCst) {
        if looked.is_none_or(|at| at.elapsed() >= LOOK) {
            looked = Some(Instant::now());
            fewest = fewest.min(fewest_voters(way, count));
        }
        // A moment without a leader on a busy machine takes nobody away.
        let pods = way.followed.changed(LOOK);
        let uid = |pod: &Value| pod["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
        once_ready.extend(pods.iter().filter(|pod| is_ready(pod)).map(uid));
        let there = |pod: &&Value| pod["metadata"]["deletionTimestamp"].is_null() && once_ready.contains(&uid(pod));
        away = away.max(count.saturating_sub(pods.iter().filter(there).count()));
    }
    (fewest, away)
}

/// As each one has it: the smallest configuration that anybody acts on.
fn fewest_voters(way: &Way<'_>, count: usize) -> usize {
    let voters = |ordinal| {
        let path = "/v1/operator/raft/configuration?stale";
        let (_, body) = way.ask(ordinal, "GET", path, "").filter(|(status, _)| *status == 200)?;
        let listed: Value = serde_json::from_str(&body).ok()?;
        let voters = listed["Servers"].as_array()?.iter().filter(|one| one["Voter"] == true).count();
        Some(voters).filter(|voters| *voters > 0)
    };
    (0..count).filter_map(voters).min().unwrap_or(count)
}

// === impl Way ===

impl<'a> Way<'a> {
    fn new(namespace: &'a Namespace, followed: &'a Followed, count: usize) -> Self {
        let direct = Self { namespace, followed, direct: true };
        let reached = |ordinal| direct.ask(ordinal, "GET", "/v1/status/leader", "").is_some();
        Self { direct: !namespace.secured().speaks_tls() && (0..count).all(reached), ..direct }
    }

    /// Asks an agent; `None` when nothing is answered.
    fn ask(&self, ordinal: usize, method: &str, path: &str, body: &str) -> Option<(u16, String)> {
        let pod = server(ordinal);
        if !self.direct {
            return self.namespace.agent_within(PATIENCE, &pod, method, path, body);
        }
        let stream = TcpStream::connect_timeout(&(self.followed.address(&pod)?, 8500).into(), PATIENCE).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        exchange(stream, &format!("Host: localhost\r\n{}", self.namespace.secured().headers()), method, path, body)
    }
}

// === impl Seen ===

impl Seen {
    /// Asserts that no acknowledged write is lost, whichever server is asked; gives how many there were.
    #[track_caller]
    pub fn is_kept(&self, namespace: &Namespace, count: usize) -> usize {
        for ordinal in 0..count {
            let listed = namespace.ask(&server(ordinal), &format!("/v1/kv/{FOLDER}/?keys&consistent"));
            let listed = listed.unwrap_or_else(|| panic!("{} does not read", server(ordinal)));
            let there: BTreeSet<&str> = listed.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            let lost: Vec<&String> = self.keys.iter().filter(|key| !there.contains(key.as_str())).collect();
            assert!(lost.is_empty(), "acknowledged, and lost: {lost:?}");
        }
        assert!(!self.keys.is_empty(), "nothing was acknowledged");
        self.keys.len()
    }
}

// === impl Ending ===

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

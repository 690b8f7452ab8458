//! How long does a formation take? Three real Consul servers, `raft_multiplier` 1, several runs of each case in turn, printed
//! as one table with its aims. Ends with 1 when an aim is missed; says so and ends with 0 when there is no Consul.
//!
//! Takes the release binary. The cases: all names known at once; names that appear 3 s late, counted from their appearance;
//! the leave of a follower; and plain Consul beside them, told all addresses, which is the floor. Then how long `check ready`
//! takes, as a probe is run: a process each time, asked of a follower under default-deny ACLs.

// It is test code in all but name.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../tests/support/mod.rs"]
mod support;

use nix::sys::signal::Signal;
use std::path::Path;
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};
use support::cluster::{Cluster, MANAGEMENT};
use support::consul::{VERSION, find};

const ALL: [u8; 3] = [0, 1, 2];
/// Of each case. An election's own time is random between 1 and 2 s, so fewer would say little.
const RUNS: usize = 10;
/// How late the late names appear.
const LATE: Duration = Duration::from_secs(3);
/// The aims, for the medians: a leader after the last start, and after the names' appearance.
const LEADER: Duration = Duration::from_millis(2500);
const AFTER_NAMES: Duration = Duration::from_secs(2);
/// Calls of each case of `check ready`, and the aim for their median: kubelet may run it every second.
const CHECKS: usize = 50;
const CHECK: Duration = Duration::from_millis(50);

fn main() -> ExitCode {
    let Some(binary) = std::env::args().nth(1) else {
        eprintln!("bench: the one argument is the release binary; `make bench` builds it and gives it");
        return ExitCode::FAILURE;
    };
    let consul = match find() {
        Ok(consul) => consul,
        Err(why) => {
            println!("formation was not measured: {why}");
            return ExitCode::SUCCESS;
        }
    };
    let (mut plain, mut at_once, mut late, mut leave) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..RUNS {
        plain.push(plain_consul(&consul));
        let (formed, left) = formation(&binary, &consul);
        at_once.push(formed);
        leave.push(left);
        late.push(late_names(&binary, &consul));
    }
    println!(
        "Consul {VERSION} (as looked for), raft_multiplier 1, three servers, {RUNS} runs each, in s: min, median, max"
    );
    row("plain Consul, all addresses given: leader after the last start", &mut plain, None);
    let mut met = vec![
        row("convene, names known: leader after the last start", &mut at_once, Some(LEADER)),
        row("convene, names 3 s late: leader after their appearance", &mut late, Some(AFTER_NAMES)),
        row("convene, --leave=always on a follower: TERM to exit", &mut leave, None),
    ];
    println!("check ready on a follower of three, default deny, {CHECKS} calls each, in s: min, median, max");
    for (what, mut times) in checks(&binary, &consul) {
        met.push(row(what, &mut times, Some(CHECK)));
    }
    if met.iter().all(|met| *met) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// One line; whether the median keeps the aim.
fn row(what: &str, times: &mut [Duration], aim: Option<Duration>) -> bool {
    times.sort();
    let seconds = |time: &Duration| format!("{:6.3}", time.as_secs_f64());
    let median = times[times.len() / 2];
    let met = aim.is_none_or(|aim| median <= aim);
    let judged = aim.map_or(String::new(), |aim| {
        format!("  {}: aim at most {}", if met { "met" } else { "MISSED" }, aim.as_secs_f64())
    });
    println!("{what:<64} {} {} {}{judged}", seconds(&times[0]), seconds(&median), seconds(&times[times.len() - 1]));
    met
}

fn leader_on_all(cluster: &Cluster) {
    cluster.wait_for("a leader", || ALL.iter().all(|ordinal| cluster.leader(*ordinal).is_some()));
}

fn formation(binary: &str, consul: &Path) -> (Duration, Duration) {
    let mut cluster = Cluster::new(binary, consul, 3);
    cluster.publish_all();
    cluster.start_all(&["--leave=always"]);
    let started = Instant::now();
    leader_on_all(&cluster);
    let formed = started.elapsed();
    cluster.wait_formed(&ALL);
    let leader = cluster.leading(0).unwrap();
    let follower = ALL.into_iter().find(|ordinal| *ordinal != leader).unwrap();
    let told = Instant::now();
    cluster.signal(follower, Signal::SIGTERM);
    assert!(cluster.wait(follower).success(), "{}", cluster.log(follower));
    (formed, told.elapsed())
}

fn late_names(binary: &str, consul: &Path) -> Duration {
    let mut cluster = Cluster::new(binary, consul, 3);
    cluster.start_all(&[]);
    std::thread::sleep(LATE);
    cluster.publish_all();
    let appeared = Instant::now();
    leader_on_all(&cluster);
    appeared.elapsed()
}

/// With a token both views are asked for; without one it takes the headers and the leader's own agent; an unknown one is asked
/// first in vain.
fn checks(binary: &str, consul: &Path) -> [(&'static str, Vec<Duration>); 3] {
    let mut cluster = Cluster::new(binary, consul, 3).denying();
    cluster.publish_all();
    cluster.start_all(&[]);
    cluster.wait_formed(&ALL);
    let follower = ALL.into_iter().find(|ordinal| Some(*ordinal) != cluster.leading(0)).unwrap();
    let check = |token: Option<&str>| {
        let mut command = cluster.convene(follower, &["check", "ready"]);
        command.envs(token.map(|token| ("CONSUL_HTTP_TOKEN", token))).stdout(Stdio::null());
        let begun = Instant::now();
        let ready = command.status().unwrap().success();
        (begun.elapsed(), ready)
    };
    let listed = Instant::now();
    while !check(None).1 {
        assert!(listed.elapsed() < Duration::from_secs(60), "{}", cluster.log(follower));
        std::thread::sleep(Duration::from_secs(1));
    }
    let all = |token: Option<&str>| -> Vec<Duration> {
        let answers = (0..CHECKS).map(|_| check(token));
        answers.map(|(took, ready)| if ready { took } else { panic!("it was ready before") }).collect()
    };
    let unknown = "7e57ab1e-0000-4000-8000-000000000000";
    [
        ("convene check ready, no token", all(None)),
        ("convene check ready, a token that may all", all(Some(MANAGEMENT))),
        ("convene check ready, an unknown token", all(Some(unknown))),
    ]
}

/// Consul by itself, told what convene would have found.
fn plain_consul(consul: &Path) -> Duration {
    let mut cluster = Cluster::new(consul, consul, 3);
    ALL.into_iter().for_each(|ordinal| cluster.start_plain(ordinal));
    let started = Instant::now();
    leader_on_all(&cluster);
    started.elapsed()
}

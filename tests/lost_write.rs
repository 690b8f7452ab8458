//! The acknowledged write that an empty disk loses, with real Consul: A and B acknowledge X while C is down, B loses its
//! disk, A goes down, C returns with its disk and B at its old address. Plain Consul elects C with B's vote, and X is gone,
//! on A too when it returns. Behind convene B does not start, nobody leads until A is back, and X is there.
//!
//! C is killed, not stopped: what A sends to a stopped process waits in its socket, and C often had X once it went on.
//! `CONVENE_REPEAT` says how many runs each test makes (1); `make lost-write` makes twenty and prints what came of them.

// A panic is how a test fails; clippy's own exception for tests covers `#[test]` functions only.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "support/mod.rs"]
mod support;

use std::net::SocketAddr;
use std::time::{Duration, Instant};
use support::cluster::{Cluster, request};
use support::skip::needs_consul;

const ALL: [u8; 3] = [0, 1, 2];

/// How long nobody may lead: at `raft_multiplier` 1 a follower becomes a candidate after 1 to 2 s without a leader.
const LEADERLESS: Duration = Duration::from_secs(5);

/// Autopilot would remove a server that it sees failed after some seconds, and there would be no schedule.
const KEEP_ALL: &str = "-hcl=autopilot { min_quorum = 3 }";

/// Who is who in the schedule.
struct Cast {
    a: u8,
    b: u8,
    c: u8,
}

/// Up to the moment at which B comes back: X was acknowledged, A is down, C is up.
fn until_b_returns(cluster: &mut Cluster, start: fn(&mut Cluster, u8)) -> Cast {
    ALL.into_iter().for_each(|ordinal| start(cluster, ordinal));
    cluster.wait_formed(&ALL);
    let a = cluster.leading(0).unwrap();
    let (b, c) = ((a + 1) % 3, (a + 2) % 3);
    cluster.kill(c);
    assert_eq!(cluster.put(a, "/v1/kv/x", "acknowledged"), Some(200));
    cluster.wipe(b);
    cluster.kill(a);
    start(cluster, c);
    cluster.wait_for("C", || cluster.peers(c).len() == 3);
    assert!(cluster.leader(c).is_none(), "C leads alone");
    Cast { a, b, c }
}

/// What the cluster says: a leader that was just elected answers only once it has applied its whole log.
const NOW: &str = "?consistent";

/// What the server's own data say.
const OWN: &str = "?stale";

/// Whether a server answers that X is there or that it is not; `None` while it cannot.
fn has_x(cluster: &Cluster, ordinal: u8, how: &str) -> Option<bool> {
    match request(SocketAddr::new(cluster.ip(ordinal), 8500), "GET", &format!("/v1/kv/x{how}"), "")?.0 {
        200 => Some(true),
        404 => Some(false),
        _ => None,
    }
}

fn by_itself(cluster: &mut Cluster, ordinal: u8) {
    cluster.start_plain(ordinal);
}

fn behind_convene(cluster: &mut Cluster, ordinal: u8) {
    cluster.start(ordinal, &[]);
}

/// Whether plain Consul has lost X when all three are back.
fn plain_loses(mut cluster: Cluster) -> bool {
    let Cast { a, b, c } = until_b_returns(&mut cluster, by_itself);
    let elections = |cluster: &Cluster| cluster.log(c).matches("election won").count();
    let earlier = elections(&cluster);
    by_itself(&mut cluster, b);
    // It may not lead for long: once it removes B's old node ID, only A and C are left to vote, and A is down.
    cluster.wait_for("C to be elected", || elections(&cluster) > earlier);
    by_itself(&mut cluster, a);
    settled(&cluster, a, c)
}

/// Whether X is lost, once A and C agree on it.
fn settled(cluster: &Cluster, a: u8, c: u8) -> bool {
    let both = |has: bool| [a, c].iter().all(|one| [NOW, OWN].iter().all(|how| has_x(cluster, *one, how) == Some(has)));
    cluster.wait_for("A and C to agree on X", || both(true) || both(false));
    both(false)
}

/// Whether X is lost behind convene when all three are back.
fn convene_loses(mut cluster: Cluster) -> bool {
    cluster.publish_all();
    let Cast { a, b, c } = until_b_returns(&mut cluster, behind_convene);
    behind_convene(&mut cluster, b);
    cluster.wait_for("B to wait", || cluster.log(b).contains("waiting: rule 5"));
    let begun = Instant::now();
    while begun.elapsed() < LEADERLESS {
        assert!(cluster.leader(c).is_none(), "C leads without X");
    }
    let tries = cluster.log(c).matches("pre-vote campaign failed").count();
    assert!(tries >= 2, "C has hardly tried to be elected: {tries} times\n{}", cluster.log(c));
    assert!(cluster.get(b, "/v1/agent/self").is_none(), "B runs with an empty disk");
    behind_convene(&mut cluster, a);
    let lost = settled(&cluster, a, c);
    // B has its predecessor removed, and gets all that it had lost.
    cluster.wait_for("B to have X", || has_x(&cluster, b, OWN) == Some(!lost));
    lost
}

/// In how many of how many runs X was lost.
fn lost(test: &str, program: &str, loses: fn(Cluster) -> bool) -> Option<(usize, usize)> {
    let consul = needs_consul(test)?;
    let runs = std::env::var("CONVENE_REPEAT").map_or(1, |runs| runs.parse().expect("CONVENE_REPEAT is a number"));
    let mut lost = 0;
    for run in 1..=runs {
        let begun = Instant::now();
        let one = loses(Cluster::new(env!("CARGO_BIN_EXE_convene"), &consul, 3).with(KEEP_ALL));
        lost += usize::from(one);
        let what = if one { "lost" } else { "kept" };
        println!("{program}, run {run}: X {what} ({:.1} s)", begun.elapsed().as_secs_f64());
    }
    println!("{program}: X was lost in {lost} of {runs} runs");
    Some((lost, runs))
}

#[test]
fn plain_consul_loses_an_acknowledged_write_to_an_empty_disk_at_a_known_address() {
    let name = "plain_consul_loses_an_acknowledged_write_to_an_empty_disk_at_a_known_address";
    let Some((lost, runs)) = lost(name, "plain Consul", plain_loses) else { return };
    assert_eq!(lost, runs, "the schedule that convene is tried with is not the one that loses");
}

#[test]
fn behind_convene_nobody_leads_until_the_holder_is_back_and_no_acknowledged_write_is_lost() {
    let name = "behind_convene_nobody_leads_until_the_holder_is_back_and_no_acknowledged_write_is_lost";
    let Some((lost, _)) = lost(name, "convene", convene_loses) else { return };
    assert_eq!(lost, 0);
}

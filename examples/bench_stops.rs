//! What do restarts, deletions and a sleep cost a running cluster? On a real Kubernetes, each disturbance several times, with a
//! client that writes 20 keys a second, the usual pattern beside it in the same run. Prints one table, keeps it in
//! `bench-stops.txt` in cargo's target folder, and ends with 1 when a bound is missed or an acknowledged write is lost.
//!
//! `make bench-cluster` builds the program and runs this after the formation. `CONVENE_BENCH_RUNS` sets the number of runs
//! (rolling restarts twice as many, the usual pattern once), `CONVENE_BENCH_ONLY` takes the rows with these words alone
//! (`convene, two Pods`), and `CONVENE_BENCH_NEIGHBOURS=yes` puts another Pod on each machine, as anybody's cluster has: beside one, nobody
//! answers for the address of a Pod that is gone.

// It is test code in all but name.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../tests/support/mod.rs"]
mod support;

use serde_json::json;
use std::collections::BTreeSet;
use std::fmt::Write;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use support::figures::{self, sorted};
use support::kubernetes::followed::Followed;
use support::kubernetes::namespace::{Namespace, SERVERS, is_ready, server};
use support::kubernetes::source::Source;
use support::kubernetes::watcher::{Seen, while_watched};
use support::kubernetes::{Given, nodes, restricted};

/// Of each disturbance, when nobody says otherwise.
const RUNS: usize = 5;
/// How often is asked whether all vote again, once all are Ready: before, the questions would take the time of two cores from what is
/// measured.
const ASK: Duration = Duration::from_millis(100);
/// A guard against hanging, no measure: the usual pattern needs more than a minute.
const HANG: Duration = Duration::from_secs(300);

/// What is done to the servers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Disturbance {
    RollingRestart,
    TwoDeleted,
    AllDeleted,
    AllKilled,
    Slept,
}

/// How it must go, each as a median but for the voters and the gaps of a rolling restart, which hold for every run.
#[derive(Clone, Copy)]
struct Bound {
    took: f64,
    gap: Option<f64>,
    voters: usize,
    away: usize,
}

/// A cluster, and what is done to it.
struct Variant {
    name: &'static str,
    source: Source,
    count: usize,
    rows: Vec<(Disturbance, Option<Bound>)>,
}

/// What one run showed.
struct Ran {
    took: Duration,
    seen: Seen,
}

const fn bound(took: f64, gap: Option<f64>, voters: usize, away: usize) -> Option<Bound> {
    Some(Bound { took, gap, voters, away })
}

fn variants(nodes: usize) -> Vec<Variant> {
    use Disturbance::{AllDeleted, AllKilled, RollingRestart, Slept, TwoDeleted};
    let three = |name, source, rows| Variant { name, source, count: 3, rows };
    let server = || Source::new("deploy/server");
    let mut all = vec![
        three(
            "convene",
            server(),
            vec![
                (RollingRestart, bound(18.0, Some(0.5), 3, 1)),
                (TwoDeleted, bound(10.0, Some(4.0), 3, 3)),
                (AllDeleted, bound(12.0, Some(4.0), 3, 3)),
                (AllKilled, bound(20.0, Some(5.0), 3, 3)),
                (Slept, bound(20.0, None, 3, 3)),
            ],
        ),
        three(
            "convene, server-init",
            Source::new("deploy/server-init"),
            vec![(RollingRestart, bound(20.0, Some(0.5), 3, 1))],
        ),
        three(
            "convene, Pod addresses",
            server().component("deploy/components/pod-address"),
            vec![(RollingRestart, bound(90.0, Some(1.0), 2, 1))],
        ),
        three(
            "the usual pattern",
            Source::new("examples/usual_pattern"),
            [RollingRestart, TwoDeleted, AllDeleted, AllKilled, Slept].map(|one| (one, None)).to_vec(),
        ),
    ];
    if nodes >= 5 {
        let rows = vec![(RollingRestart, bound(30.0, Some(0.5), 5, 1))];
        let source = Source::new("deploy/server-five");
        all.insert(1, Variant { name: "convene, five servers", source, count: 5, rows });
    }
    all
}

fn main() -> ExitCode {
    let given = Given::from_env();
    let runs = figures::runs(RUNS);
    let nodes = nodes().len();
    let mut all: Vec<(&'static str, Disturbance, Option<Bound>, Vec<Ran>)> = Vec::new();
    for mut variant in variants(nodes) {
        variant
            .rows
            .retain(|(disturbance, _)| figures::is_chosen(&format!("{}, {}", variant.name, disturbance.name())));
        if variant.rows.is_empty() {
            continue;
        }
        let namespace = Namespace::new("bench-stops");
        if std::env::var_os("CONVENE_BENCH_NEIGHBOURS").is_some() {
            settle_neighbours(&namespace);
        }
        namespace.apply(&variant.source);
        namespace.formed(variant.count);
        for (disturbance, bound) in &variant.rows {
            let times = match (bound, disturbance) {
                (None, _) => 1,
                (Some(_), Disturbance::RollingRestart) => 2 * runs,
                _ => runs,
            };
            let ran: Vec<Ran> = (0..times).map(|_| disturb(&namespace, *disturbance, variant.count)).collect();
            for one in &ran {
                eprintln!("{}, {}: {}", variant.name, disturbance.name(), one.tell());
            }
            all.push((variant.name, *disturbance, *bound, ran));
        }
        namespace.remove_wholly();
    }
    if nodes < 5 {
        eprintln!("not measured: the rolling restart of five, since this cluster has {nodes} nodes");
    }
    let (table, met) = table(&all);
    print!("{table}");
    std::fs::write(given.target.join("bench-stops.txt"), table).unwrap();
    if met { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// A Pod on each machine that does next to nothing.
fn settle_neighbours(namespace: &Namespace) {
    let labels = json!({"app": "neighbour"});
    let image = &namespace.images().consul;
    let (pod, container) = restricted();
    namespace.create_object(&json!({
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": "neighbour", "namespace": namespace.name()},
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    "automountServiceAccountToken": false,
                    "securityContext": pod,
                    "containers": [{
                        "name": "neighbour",
                        "image": format!("{}:{}", image.0, image.1),
                        "args": ["agent"],
                        "securityContext": container,
                    }],
                },
            },
        },
    }));
    let nodes = nodes().len();
    namespace.wait_for("a Pod on each machine", || namespace.all_ready("app=neighbour", nodes));
}

/// One run, from the order until all is well again.
fn disturb(namespace: &Namespace, disturbance: Disturbance, count: usize) -> Ran {
    figures::quiet();
    let (took, seen) = while_watched(namespace, count, |followed| {
        let before = followed.uids();
        if disturbance == Disturbance::Slept {
            namespace.kubectl(&["scale", "statefulset", "consul-server", "--replicas=0"]);
            namespace.wait_for("no Pods", || namespace.pods(SERVERS).is_empty());
        }
        let begun = Instant::now();
        order(namespace, disturbance);
        while !is_well(namespace, followed, disturbance, count, &before) {
            assert!(begun.elapsed() < HANG, "{} is not over", disturbance.name());
            followed.changed(ASK);
        }
        begun.elapsed()
    });
    seen.is_kept(namespace, count);
    Ran { took, seen }
}

fn order(namespace: &Namespace, disturbance: Disturbance) {
    let kubectl = |words: &[&str]| drop(namespace.kubectl(words));
    match disturbance {
        Disturbance::RollingRestart => kubectl(&["rollout", "restart", "statefulset", "consul-server"]),
        Disturbance::TwoDeleted => kubectl(&["delete", "pod", &server(0), &server(1), "--wait=false"]),
        Disturbance::AllDeleted => kubectl(&["delete", "pods", "-l", SERVERS, "--wait=false"]),
        Disturbance::AllKilled => kubectl(&["delete", "pods", "-l", SERVERS, "--grace-period=0", "--force"]),
        Disturbance::Slept => kubectl(&["scale", "statefulset", "consul-server", "--replicas=3"]),
    }
}

/// All that were to go are new, all are Ready, and all vote.
fn is_well(
    namespace: &Namespace,
    followed: &Followed,
    disturbance: Disturbance,
    count: usize,
    before: &BTreeSet<String>,
) -> bool {
    let new = followed.uids().difference(before).count();
    let wanted = if disturbance == Disturbance::TwoDeleted { 2 } else { count };
    let pods = followed.pods();
    new == wanted
        && pods.len() == count
        && pods.iter().all(is_ready)
        && (0..count).all(|ordinal| namespace.voters(&server(ordinal)).len() == count)
}

/// The table, and whether every bound is met.
fn table(all: &[(&'static str, Disturbance, Option<Bound>, Vec<Ran>)]) -> (String, bool) {
    let mut out = format!("{}\n", support::kubernetes::versions());
    let _ = writeln!(
        out,
        "{:<58} runs  took: min median    max   gap: median    max  fewest voters  most away",
        "disturbance, until all vote and are Ready again, in s"
    );
    let mut all_met = true;
    for (variant, disturbance, bound, ran) in all {
        let (took, gaps) = (sorted(ran, |one| one.took.as_secs_f64()), sorted(ran, |one| one.seen.gap.as_secs_f64()));
        let (median, last) = (ran.len() / 2, ran.len() - 1);
        let fewest = ran.iter().map(|one| one.seen.fewest_voters).min().unwrap();
        let away = ran.iter().map(|one| one.seen.most_away).max().unwrap();
        let judged = bound.map_or(String::new(), |bound| {
            let every = *disturbance == Disturbance::RollingRestart;
            let gap = if every { gaps[last] } else { gaps[median] };
            let met = took[median] <= bound.took
                && bound.gap.is_none_or(|most| gap <= most)
                && fewest >= bound.voters
                && away <= bound.away;
            all_met &= met;
            let gap = bound.gap.map_or(String::new(), |gap| format!(", gap {gap}"));
            format!("  {}: at most {}{gap}, voters {}", if met { "met" } else { "MISSED" }, bound.took, bound.voters)
        });
        let _ = writeln!(
            out,
            "{:<58} {:>4}  {:>9.2} {:>6.2} {:>6.2}  {:>11.2} {:>6.2}  {fewest:>13}  {away:>9}{judged}",
            format!("{}: {variant}", disturbance.name()),
            ran.len(),
            took[0],
            took[median],
            took[last],
            gaps[median],
            gaps[last],
        );
    }
    let written: usize = all.iter().flat_map(|(.., ran)| ran).map(|one| one.seen.keys.len()).sum();
    let _ = writeln!(out, "acknowledged writes: {written}, lost: 0");
    (out, all_met)
}

// === impl Disturbance ===

impl Disturbance {
    fn name(self) -> &'static str {
        match self {
            Self::RollingRestart => "rolling restart",
            Self::TwoDeleted => "two Pods deleted",
            Self::AllDeleted => "all Pods deleted",
            Self::AllKilled => "all Pods killed without grace",
            Self::Slept => "replicas 0 and back",
        }
    }
}

// === impl Ran ===

impl Ran {
    fn tell(&self) -> String {
        let Seen { gap, fewest_voters, most_away, keys, .. } = &self.seen;
        format!(
            "{:.1} s, gap {:.2} s, fewest voters {fewest_voters}, most away {most_away}, {} writes",
            self.took.as_secs_f64(),
            gap.as_secs_f64(),
            keys.len()
        )
    }
}

//! How long until every client can write again, when all of its servers are replaced at once? On a real Kubernetes, with three servers and ten
//! clients (one on each machine, the others sidecars), several times, the usual pattern beside it in the same run. Prints one table, keeps
//! it in `bench-clients.txt` in cargo's target folder, and ends with 1 when a bound is missed.
//!
//! A client can write again from its first write on after the last one that failed or was not answered within a second; one of which
//! none failed could at any time. Its longest pause stands beside it, failed or only slow.
//!
//! `make bench-cluster` builds the program and runs this last. `CONVENE_BENCH_RUNS` sets the number of runs (the usual pattern once).

// It is test code in all but name.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../tests/support/mod.rs"]
mod support;

use serde_json::{Value, json};
use std::fmt::Write;
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::{Duration, Instant};
use support::figures::{self, sorted};
use support::kubernetes::namespace::{Namespace, SERVERS, is_ready};
use support::kubernetes::source::{Source, json_patch, patch};
use support::kubernetes::{Given, nodes};

/// Of each variant, when nobody says otherwise.
const RUNS: usize = 5;
/// How many clients there are.
const CLIENTS: usize = 10;
/// How often a client writes.
const PACE: Duration = Duration::from_millis(100);
/// How long it waits for an answer.
const PATIENCE: Duration = Duration::from_secs(1);
/// Who has not written by then has lost its servers: it counts as this long.
const HANG: Duration = Duration::from_secs(300);

/// A cluster and its clients.
struct Variant {
    name: &'static str,
    servers: Source,
    clients: Vec<Source>,
    /// In seconds, for the slowest client of the median run; `None`: nothing is asked of it.
    bound: Option<f64>,
}

/// When one run was over, from the deletion on.
struct Ran {
    servers: Duration,
    clients: Vec<Wrote>,
}

/// How one client fared.
#[derive(Clone, Copy, Default)]
struct Wrote {
    /// The first write after the last that failed, from the deletion on; zero when none failed, [`HANG`] when it never wrote again.
    again: Duration,
    /// The longest time between two writes.
    pause: Duration,
}

fn variants() -> Vec<Variant> {
    let server = || Source::new("deploy/server");
    vec![
        Variant { name: "convene", servers: server(), clients: clients(), bound: Some(11.0) },
        Variant {
            name: "convene, Pod addresses",
            servers: server().component("deploy/components/pod-address"),
            clients: clients(),
            bound: Some(15.0),
        },
        Variant {
            name: "the usual pattern",
            servers: Source::new("examples/usual_pattern"),
            clients: vec![Source::new("examples/usual_pattern/clients").with(sidecars("app"))],
            bound: None,
        },
    ]
}

/// As in `deploy/`, but in the servers' own namespace, where no port of the machine may be taken, and asked from outside.
fn clients() -> Vec<Source> {
    let port = json!([{"op": "remove", "path": "/spec/template/spec/containers/0/ports/0/hostPort"}]);
    let heard =
        json!([{"op": "add", "path": "/spec/template/spec/initContainers/1/args/-", "value": "-client=0.0.0.0"}]);
    vec![
        Source::new("deploy/client").with(json_patch("DaemonSet", "consul-client", port)),
        Source::new("deploy/sidecar").with(json_patch("Deployment", "app", heard)).with(sidecars("app")),
    ]
}

fn sidecars(deployment: &str) -> Value {
    patch("Deployment", deployment, json!({"spec": {"replicas": CLIENTS - nodes().len()}}))
}

fn main() -> ExitCode {
    let given = Given::from_env();
    let runs = figures::runs(RUNS);
    let mut all: Vec<(&'static str, Option<f64>, Vec<Ran>)> = Vec::new();
    for variant in variants().into_iter().filter(|variant| figures::is_chosen(variant.name)) {
        let namespace = Namespace::new("bench-clients");
        namespace.apply(&variant.servers);
        namespace.formed(3);
        variant.clients.iter().for_each(|source| namespace.apply(source));
        namespace.wait_for("ten clients that write", || {
            let pods = clients_of(&namespace);
            pods.len() == CLIENTS && pods.iter().all(|pod| writes(&namespace, pod))
        });
        let times = if variant.bound.is_some() { runs } else { 1 };
        let ran: Vec<Ran> = (0..times).map(|_| replace(&namespace)).collect();
        for one in &ran {
            eprintln!(
                "{}: servers {:.1} s, all write again after {:.1} s, longest pause {:.1} s",
                variant.name,
                one.servers.as_secs_f64(),
                one.slowest(),
                one.pause()
            );
        }
        all.push((variant.name, variant.bound, ran));
        namespace.remove_wholly();
    }
    let (table, met) = table(&all);
    print!("{table}");
    std::fs::write(given.target.join("bench-clients.txt"), table).unwrap();
    if met { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The names of the Pods that are clients and run.
fn clients_of(namespace: &Namespace) -> Vec<String> {
    let listed = namespace.get("pods").unwrap_or_default();
    let pods = listed["items"].as_array().cloned().unwrap_or_default();
    let named = |pod: &Value| pod["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let all = pods.iter().filter(|pod| pod["status"]["phase"] == "Running").map(named);
    all.filter(|name| name.starts_with("consul-client-") || name.starts_with("app-")).collect()
}

fn writes(namespace: &Namespace, pod: &str) -> bool {
    let answer = namespace.agent_within(PATIENCE, pod, "PUT", &format!("/v1/kv/bench/{pod}"), "yes");
    answer.is_some_and(|(status, body)| status == 200 && body.trim() == "true")
}

/// Deletes all servers at once, and looks until they are back and every client has written since.
fn replace(namespace: &Namespace) -> Ran {
    let pods = clients_of(namespace);
    let before = namespace.lives(SERVERS);
    let returned: Mutex<Option<Instant>> = Mutex::new(None);
    let begun = Instant::now();
    namespace.kubectl(&["delete", "pods", "-l", SERVERS, "--wait=false"]);
    std::thread::scope(|scope| {
        let writers: Vec<_> = pods.iter().map(|pod| scope.spawn(|| fared(namespace, pod, begun, &returned))).collect();
        loop {
            let now = namespace.lives(SERVERS);
            let new = now.len() == 3 && now.iter().all(|(pod, life)| before[pod].0 != life.0);
            if new && namespace.pods(SERVERS).iter().all(is_ready) {
                *returned.lock().unwrap() = Some(Instant::now());
                break;
            }
            assert!(begun.elapsed() < HANG, "the servers are not back");
            std::thread::sleep(PACE);
        }
        let clients = writers.into_iter().map(|writer| writer.join().unwrap()).collect();
        Ran { servers: returned.lock().unwrap().unwrap() - begun, clients }
    })
}

/// Writes through one client until the servers are back and it has written since.
fn fared(namespace: &Namespace, pod: &str, begun: Instant, returned: &Mutex<Option<Instant>>) -> Wrote {
    let (mut last, mut failed) = (begun, false);
    let mut wrote = Wrote::default();
    loop {
        let asked = Instant::now();
        if writes(namespace, pod) {
            wrote.pause = wrote.pause.max(last.elapsed());
            last = Instant::now();
            if std::mem::take(&mut failed) {
                wrote.again = begun.elapsed();
            }
            if returned.lock().unwrap().is_some_and(|at| asked > at) {
                return wrote;
            }
        } else {
            failed = true;
        }
        // With the usual pattern some never do: that is a figure, too.
        if begun.elapsed() >= HANG {
            eprintln!("{pod} has not written again after {} s", HANG.as_secs());
            return Wrote { again: HANG, pause: last.elapsed() };
        }
        std::thread::sleep(PACE.saturating_sub(asked.elapsed()));
    }
}

/// The table, and whether every bound is met.
fn table(all: &[(&'static str, Option<f64>, Vec<Ran>)]) -> (String, bool) {
    let mut out = format!("{}\n", support::kubernetes::versions());
    let head = "all servers replaced at once, ten clients, in s";
    let _ = writeln!(
        out,
        "{head:<50} runs  servers Ready: median   slowest client: min median    max   longest pause: median    max"
    );
    let mut all_met = true;
    for (name, bound, ran) in all {
        let (servers, slowest) = (sorted(ran, |one| one.servers.as_secs_f64()), sorted(ran, Ran::slowest));
        let pauses = sorted(ran, Ran::pause);
        let (median, last) = (ran.len() / 2, ran.len() - 1);
        let judged = bound.map_or(String::new(), |bound| {
            let met = slowest[median] <= bound;
            all_met &= met;
            format!("  {}: at most {bound}", if met { "met" } else { "MISSED" })
        });
        let _ = writeln!(
            out,
            "{name:<50} {:>4}  {:>21.2}  {:>20.2} {:>6.2} {:>6.2}   {:>21.2} {:>6.2}{judged}",
            ran.len(),
            servers[median],
            slowest[0],
            slowest[median],
            slowest[last],
            pauses[median],
            pauses[last],
        );
    }
    (out, all_met)
}

// === impl Ran ===

impl Ran {
    /// When the last client could write again, in seconds.
    fn slowest(&self) -> f64 {
        self.clients.iter().map(|one| one.again).max().unwrap().as_secs_f64()
    }

    /// Of all clients, in seconds.
    fn pause(&self) -> f64 {
        self.clients.iter().map(|one| one.pause).max().unwrap().as_secs_f64()
    }
}

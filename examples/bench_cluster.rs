//! How long does it take from `kubectl apply` to three voters and three Ready Pods? On a real Kubernetes, several runs of each
//! variant in turn, each in a namespace of its own, the usual pattern beside them. Prints one table, keeps it in
//! `bench-cluster.txt` in cargo's target folder, and ends with 1 when a median is above its bound.
//!
//! `make bench-cluster` builds the program and runs this. `CONVENE_BENCH_RUNS` sets the number of runs, `CONVENE_BENCH_ONLY` takes the
//! variants with these words alone ("server, Kubernetes", several with a semicolon in between).

// It is test code in all but name.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::fmt::Write;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use support::figures;
use support::kubernetes::Given;
use support::kubernetes::namespace::{Namespace, SERVERS, is_ready, server};
use support::kubernetes::source::Source;

/// Of each variant, when nobody says otherwise.
const RUNS: usize = 5;
/// The aims, for the medians: with an address that stays, and with the Pods' addresses.
const BOUND: Duration = Duration::from_secs(6);
const BOUND_POD_ADDRESS: Duration = Duration::from_secs(8);
/// What `convene run` may keep resident once all is well, in kB.
const MEMORY: u64 = 5_000;
/// How often is asked who votes, once all are Ready: before, the questions would take the time of two cores from what is measured.
const ASK: Duration = Duration::from_millis(50);
/// A guard against hanging, no measure.
const HANG: Duration = Duration::from_secs(300);

/// What is applied, and how long its median may be.
struct Variant {
    name: &'static str,
    source: Source,
    bound: Option<Duration>,
}

/// What one run took, from the apply on.
#[derive(Clone, Copy)]
struct Took {
    ready: Duration,
    voters: Duration,
    /// Of the first process of the first server's container, in kB, where that is convene.
    resident: Option<u64>,
}

fn variants() -> Vec<Variant> {
    let of = |folder: &str, component: Option<&str>| {
        let source = Source::new(&format!("deploy/{folder}"));
        component.iter().fold(source, |source, one| source.component(&format!("deploy/components/{one}")))
    };
    let (dns, pod) = (Some("dns-only"), Some("pod-address"));
    vec![
        Variant { name: "server, Kubernetes API", source: of("server", None), bound: Some(BOUND) },
        Variant { name: "server, DNS alone", source: of("server", dns), bound: Some(BOUND) },
        Variant { name: "server-init, Kubernetes API", source: of("server-init", None), bound: Some(BOUND) },
        Variant { name: "server-init, DNS alone", source: of("server-init", dns), bound: Some(BOUND) },
        Variant { name: "server, Pod addresses", source: of("server", pod), bound: Some(BOUND_POD_ADDRESS) },
        Variant { name: "server-init, Pod addresses", source: of("server-init", pod), bound: Some(BOUND_POD_ADDRESS) },
        Variant { name: "the usual pattern", source: Source::new("examples/usual_pattern"), bound: None },
    ]
}

fn main() -> ExitCode {
    let given = Given::from_env();
    let runs = figures::runs(RUNS);
    let variants: Vec<Variant> = variants().into_iter().filter(|one| figures::is_chosen(one.name)).collect();
    assert!(!variants.is_empty(), "CONVENE_BENCH_ONLY: no variant has its words");
    let mut took: Vec<Vec<Took>> = variants.iter().map(|_| Vec::new()).collect();
    for number in 1..=runs {
        for (variant, took) in variants.iter().zip(&mut took) {
            let one = measure(&variant.source);
            eprintln!("run {number} of {runs}, {}: {:.2} s", variant.name, one.whole().as_secs_f64());
            took.push(one);
        }
    }
    let (table, met) = table(&variants, &took, runs);
    print!("{table}");
    std::fs::write(given.target.join("bench-cluster.txt"), table).unwrap();
    if met { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// One run. All is removed when it ends.
fn measure(source: &Source) -> Took {
    let namespace = Namespace::new("bench");
    let overlay = namespace.overlay(source);
    let followed = namespace.follow(SERVERS);
    figures::quiet();
    let begun = Instant::now();
    let mut apply = Namespace::start_apply(&overlay);
    let mut all_ready = None;
    let (ready, voters) = loop {
        let pods = followed.pods();
        if pods.len() == 3 && pods.iter().all(is_ready) {
            let ready = *all_ready.get_or_insert_with(|| begun.elapsed());
            if namespace.voters(&server(0)).len() == 3 {
                break (ready, begun.elapsed());
            }
            std::thread::sleep(ASK);
        } else {
            all_ready = None;
            followed.changed(ASK);
        }
        assert!(begun.elapsed() < HANG, "{source:?} has not come together");
        assert!(apply.try_wait().unwrap().is_none_or(|status| status.success()), "kubectl apply failed");
    };
    assert!(apply.wait().unwrap().success(), "kubectl apply failed");
    let resident = resident(&namespace);
    namespace.remove_wholly();
    Took { ready, voters, resident }
}

fn resident(namespace: &Namespace) -> Option<u64> {
    let read = "while read line; do case $line in Name:*|VmRSS:*) echo $line;; esac; done </proc/1/status";
    let status = namespace.exec(&server(0), &["sh", "-c", read]);
    let value =
        |key: &str| status.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default().trim().to_owned();
    (value("Name:") == "convene").then(|| value("VmRSS:").trim_end_matches(" kB").parse().unwrap())
}

/// The table, and whether every bound is met.
fn table(variants: &[Variant], took: &[Vec<Took>], runs: usize) -> (String, bool) {
    let mut out = format!("{}; {runs} runs each\n", support::kubernetes::versions());
    let _ = writeln!(out, "apply to three voters and three Ready, in s{:>24}    min median    max", "");
    let mut all_met = true;
    for (variant, took) in variants.iter().zip(took) {
        for (what, of) in [("", Took::whole as fn(&Took) -> Duration), ("  Ready alone", |one| one.ready)] {
            let mut times: Vec<Duration> = took.iter().map(of).collect();
            times.sort();
            let median = times[times.len() / 2];
            let figures = [times[0], median, times[times.len() - 1]].map(|time| format!("{:6.2}", time.as_secs_f64()));
            let judged = variant.bound.filter(|_| what.is_empty()).map_or(String::new(), |bound| {
                let met = median <= bound;
                all_met &= met;
                format!("  {}: at most {:.1}", if met { "met" } else { "MISSED" }, bound.as_secs_f64())
            });
            let name = if what.is_empty() { variant.name } else { what };
            let _ = writeln!(out, "{name:<66} {}{judged}", figures.join(" "));
        }
        let mut resident: Vec<u64> = took.iter().filter_map(|one| one.resident).collect();
        resident.sort_unstable();
        if let (Some(least), Some(most)) = (resident.first(), resident.last()) {
            let median = resident[resident.len() / 2];
            all_met &= median <= MEMORY;
            let figures = [*least, median, *most].map(|kb| format!("{:6.2}", kb as f64 / 1000.0)).join(" ");
            let judged = if median <= MEMORY { "met" } else { "MISSED" };
            let _ = writeln!(
                out,
                "{:<66} {figures}  {judged}: at most {:.1}",
                "  convene run resident, in MB",
                MEMORY as f64 / 1000.0
            );
        }
    }
    (out, all_met)
}

// === impl Took ===

impl Took {
    fn whole(&self) -> Duration {
        self.ready.max(self.voters)
    }
}

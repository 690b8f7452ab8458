//! Do three servers keep every acknowledged write, and stay one cluster, whatever happens to them? On a real Kubernetes, for so
//! many seconds, one disturbance after the other, each as soon as the servers are well again after the one before, while
//! writers note what was acknowledged. Half of the time in each folder, `deploy/server` and `deploy/server-init`.
//!
//! **Well again** means: every Pod is Ready (and another one, or restarted, where that was done to it); all servers name the
//! same leader and the same three voters, by address and by node ID (a new one only for a server that lost its disk); a write
//! through each of them is acknowledged; every write that was ever acknowledged is there, by a consistent read through each
//! and on each itself; the claim is the one that it was. A server that lost its disk takes longer: seven disturbances hit the
//! others meanwhile, then it is waited for.
//!
//! Prints the seed, a line a disturbance, and a table. Ends with 1 when there were fewer than one in 6 s of ten minutes, when a write was
//! lost, two led, or something did not become well; what the Pods logged is kept then. 69: no program that breaks the cluster.
//!
//! `make chaos` builds the program and runs this. `CONVENE_CHAOS_SECONDS` (600), `CONVENE_CHAOS_SEED` (from the clock; each
//! further folder takes the next one) and `CONVENE_CHAOS_FOLDERS` (`server server-init`) change it.

// It is test code in all but name.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../../tests/support/mod.rs"]
mod support;

mod disturb;
mod ledger;
mod plan;
mod report;
mod servers;
mod well;

use disturb::Stage;
use ledger::Ledger;
use plan::{Plan, SERVERS};
use report::{Report, Took};
use servers::{Servers, Wiped};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};
use support::kubernetes::namespace::{Namespace, SERVERS as LABEL, Voter};
use support::kubernetes::source::Source;
use support::skip::needs_cluster_tool;
use well::Changes;

/// The pace, a hundred disturbances in ten minutes, is judged in runs of so many seconds and more.
const JUDGED: u64 = 600;

fn main() -> ExitCode {
    if needs_cluster_tool("chaos").is_none() {
        return ExitCode::from(69);
    }
    let seconds: u64 = setting("CONVENE_CHAOS_SECONDS").unwrap_or(600);
    let seed: u64 = setting("CONVENE_CHAOS_SEED").unwrap_or_else(|| {
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis() as u64 % 1_000_000
    });
    let folders: String = setting("CONVENE_CHAOS_FOLDERS").unwrap_or_else(|| "server server-init".to_owned());
    let folders: Vec<&str> = folders.split_whitespace().collect();
    let again =
        format!("make chaos SECONDS={seconds} CONVENE_CHAOS_SEED={seed} CONVENE_CHAOS_FOLDERS='{}'", folders.join(" "));
    println!("seed {seed}, {seconds} s; the same again: {again}");
    let mut report = Report::default();
    let share = Duration::from_secs(seconds) / folders.len() as u32;
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        for (folder, seed) in folders.iter().zip(seed..) {
            disturb_one(folder, Plan::new(seed), share, &mut report);
        }
    }));
    print!("{}", report.table(seconds));
    // A short run is no measure of the pace.
    let (enough, judged) = (report.is_enough(seconds), seconds >= JUDGED);
    let said = match (&outcome, enough) {
        (Ok(()), true) => "nothing was lost, one cluster, well again each time",
        (Ok(()), false) if judged => "FAILED: nothing was lost, but the machine was too slow for so many disturbances",
        (Ok(()), false) => {
            "nothing was lost, one cluster, well again each time, though slower than ten minutes need it"
        }
        (Err(_), _) => "FAILED: see above",
    };
    println!("{said}; seed {seed}, the same again: {again}");
    if outcome.is_ok() && (enough || !judged) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn setting<T: std::str::FromStr>(name: &str) -> Option<T> {
    let given = std::env::var(name).ok().filter(|value| !value.is_empty())?;
    Some(given.parse().unwrap_or_else(|_| panic!("{name} is {given:?}")))
}

/// Forms a cluster from a folder, and disturbs it for so long.
fn disturb_one(folder: &str, plan: Plan, time: Duration, report: &mut Report) {
    let namespace = Namespace::alone(&format!("chaos_{}", folder.replace('-', "_"))).expect("it was looked for");
    println!("deploy/{folder}");
    namespace.apply(&Source::new(&format!("deploy/{folder}")));
    let voters = namespace.formed(SERVERS);
    let (servers, ledger) = (Servers::new(&voters), Ledger::new());
    std::thread::scope(|scope| {
        let _end = ledger.start(scope, &servers);
        let stage = Stage { namespace: &namespace, servers: &servers, ledger: &ledger, voters: &[], claim: "" };
        namespace.wait_for("the claim", || stage.claim().is_some_and(|(_, state)| state == "formed"));
        let claim = stage.claim().unwrap().0;
        disturb_all(Stage { claim: &claim, ..stage }, voters, plan, time, report);
    });
}

/// One disturbance after the other; ends when the time is over and no server is on its way back.
fn disturb_all(stage: Stage, mut voters: Vec<Voter>, plan: Plan, time: Duration, report: &mut Report) {
    let begun = Instant::now();
    let mut lost: Option<(usize, Instant)> = None;
    for step in plan {
        let stage = Stage { voters: &voters, ..stage };
        let (from, before) = (Instant::now(), stage.namespace.lives(LABEL));
        lost = step.what.wiped().map(|who| (who, from)).or(lost);
        report.begin(&step);
        stage.disturb(&step.what);
        let changes = Changes { before, replaced: step.what.replaced(), killed: step.what.killed() };
        stage.wait_until_well(&changes, step.returning.map_or(Wiped::Nobody, Wiped::Away));
        report.end(&step, Took { well: from.elapsed(), wrote: stage.ledger.since() });
        let over = begun.elapsed() >= time;
        if let Some((who, since)) = lost.filter(|_| step.then_whole || over) {
            stage.wait_until_well(&Changes::default(), Wiped::Back(who));
            report.is_back(who, since.elapsed());
            stage.namespace.empty_volumes();
            lost = None;
            let now = (0..SERVERS).find_map(|asked| stage.servers.voters(asked));
            voters = now.expect("all of them told it a moment ago");
        }
        if over {
            return;
        }
    }
}

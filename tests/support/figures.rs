//! What the benches on a cluster share: how many runs, a quiet machine before each, and figures in order. Takes the environment, what
//! the kernel says of its processors, and what ran; gives numbers.

use std::time::{Duration, Instant};

/// How long a machine must have little to do before something is measured, and how much of its processors' time that may be.
const QUIET: (Duration, f64) = (Duration::from_secs(1), 0.2);
/// Longer is not waited for that.
const NEVER_QUIET: Duration = Duration::from_secs(30);

/// How often each is run: `CONVENE_BENCH_RUNS`, else as given.
pub fn runs(otherwise: usize) -> usize {
    let runs = std::env::var("CONVENE_BENCH_RUNS").map_or(otherwise, |runs| runs.parse().expect("CONVENE_BENCH_RUNS"));
    assert!(runs > 0, "CONVENE_BENCH_RUNS is 0");
    runs
}

/// What has the words of `CONVENE_BENCH_ONLY` in its name, or those of one of several (`words;other words`); else all.
pub fn is_chosen(name: &str) -> bool {
    let only = std::env::var("CONVENE_BENCH_ONLY").unwrap_or_default();
    only.split(';').any(|words| name.contains(words))
}

/// Waits until what went before is over: what Kubernetes still removes of it would be measured with what comes. Each row of a table
/// begins alike so, whichever stands above it.
pub fn quiet() {
    let begun = Instant::now();
    let mut before = busy_and_all();
    while begun.elapsed() < NEVER_QUIET {
        std::thread::sleep(QUIET.0);
        let now = busy_and_all();
        if (now.0 - before.0) <= QUIET.1 * (now.1 - before.1) {
            return;
        }
        before = now;
    }
    eprintln!("this machine has been busy for {} s: measured all the same", NEVER_QUIET.as_secs());
}

/// What all processors did since the start: busy, and in all (proc_stat(5)).
fn busy_and_all() -> (f64, f64) {
    let told = std::fs::read_to_string("/proc/stat").unwrap();
    // user, nice, system, idle, iowait, irq, softirq, steal; guests are among the users.
    let all: Vec<f64> =
        told.lines().next().unwrap().split_whitespace().skip(1).take(8).map(|n| n.parse().unwrap()).collect();
    let whole = all.iter().sum::<f64>();
    (whole - all[3] - all[4], whole)
}

/// One figure of each run, the least first.
pub fn sorted<T>(ran: &[T], figure: impl Fn(&T) -> f64) -> Vec<f64> {
    let mut all: Vec<f64> = ran.iter().map(figure).collect();
    all.sort_by(f64::total_cmp);
    all
}

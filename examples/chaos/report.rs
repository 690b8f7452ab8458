//! What came of it: one line a disturbance while it runs, a table at the end. Takes figures; gives text and the verdict on
//! how many there were. It judges nothing else.

use crate::ledger::Since;
use crate::plan::Step;
use crate::support::kubernetes::namespace::server;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::time::Duration;

/// At least one disturbance in so many seconds.
const PACE: u64 = 6;

/// What was measured.
#[derive(Debug, Default)]
pub struct Report {
    kinds: BTreeMap<String, Vec<Took>>,
    /// How long a wiped server took until it voted again.
    returns: Vec<Duration>,
}

/// What one disturbance took, from its beginning.
#[derive(Debug, Clone, Copy)]
pub struct Took {
    /// Until those that have their disk were well.
    pub well: Duration,
    /// What was written until then, since the one before.
    pub wrote: Since,
}

// === impl Report ===

impl Report {
    /// How many disturbances there were.
    pub fn count(&self) -> usize {
        self.kinds.values().map(Vec::len).sum()
    }

    /// Says what begins.
    pub fn begin(&self, step: &Step) {
        let targets: Vec<String> = step.what.targets().iter().map(usize::to_string).collect();
        print!("{:>4}  {:<28} {:<8}", self.count() + 1, step.what.kind(), targets.join(" "));
        // When it fails, this is what failed.
        let _ = std::io::stdout().flush();
    }

    /// Says how it ended.
    pub fn end(&mut self, step: &Step, took: Took) {
        let (well, gap) = (took.well.as_secs_f64(), took.wrote.gap.as_secs_f64());
        println!("{well:6.1} s  writes paused for {gap:4.1} s");
        self.kinds.entry(step.what.kind()).or_default().push(took);
    }

    /// A server that lost its disk is a voter again; says so.
    pub fn is_back(&mut self, who: usize, took: Duration) {
        println!("      {} votes again, {:.1} s after it lost its disk", server(who), took.as_secs_f64());
        self.returns.push(took);
    }

    /// Whether there were enough for so many seconds.
    pub fn is_enough(&self, seconds: u64) -> bool {
        self.count() as u64 >= seconds / PACE
    }

    /// The table.
    pub fn table(&self, seconds: u64) -> String {
        let mut out = format!("{:<30}count   median      max   longest pause of writes, in s\n", "well again");
        let mut row = |name: &str, well: Vec<Duration>, gap: Option<Duration>| {
            let (Some(median), Some(most)) = (median(&well), well.iter().max()) else { return };
            let figures = [median, *most].map(|time| format!("{:8.1}", time.as_secs_f64())).join(" ");
            let gap = gap.map(|gap| format!("{:8.1}", gap.as_secs_f64())).unwrap_or_default();
            let _ = writeln!(out, "{name:<30}{:5} {figures} {gap}", well.len());
        };
        for (kind, took) in &self.kinds {
            row(kind, took.iter().map(|one| one.well).collect(), took.iter().map(|one| one.wrote.gap).max());
        }
        let all: Vec<Took> = self.kinds.values().flatten().copied().collect();
        row("all", all.iter().map(|one| one.well).collect(), all.iter().map(|one| one.wrote.gap).max());
        row("a wiped server votes again", self.returns.clone(), None);
        let (count, least) = (self.count(), seconds / PACE);
        let _ = writeln!(out, "{count} disturbances in {seconds} s, of at least {least}");
        let (tried, acknowledged) = all.iter().fold((0, 0), |(tried, acknowledged), one| {
            (tried + one.wrote.tried, acknowledged + one.wrote.acknowledged)
        });
        let _ = writeln!(out, "{tried} writes tried, {acknowledged} acknowledged");
        out
    }
}

fn median(times: &[Duration]) -> Option<Duration> {
    let mut times = times.to_vec();
    times.sort();
    times.get(times.len() / 2).copied()
}

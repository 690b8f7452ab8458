//! What the benches on a cluster share: how many runs, and figures in order. Takes the environment and what ran; gives numbers.

/// How often each is run: `CONVENE_BENCH_RUNS`, else as given.
pub fn runs(otherwise: usize) -> usize {
    let runs = std::env::var("CONVENE_BENCH_RUNS").map_or(otherwise, |runs| runs.parse().expect("CONVENE_BENCH_RUNS"));
    assert!(runs > 0, "CONVENE_BENCH_RUNS is 0");
    runs
}

/// Only what has these words in its name: `CONVENE_BENCH_ONLY`, else all.
pub fn only() -> String {
    std::env::var("CONVENE_BENCH_ONLY").unwrap_or_default()
}

/// One figure of each run, the least first.
pub fn sorted<T>(ran: &[T], figure: impl Fn(&T) -> f64) -> Vec<f64> {
    let mut all: Vec<f64> = ran.iter().map(figure).collect();
    all.sort_by(f64::total_cmp);
    all
}

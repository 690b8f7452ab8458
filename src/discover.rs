//! The survey as a person or a program reads it: a table, JSON, or bare addresses.
//!
//! Takes a survey, gives text for stdout and whether enough was seen. Bare addresses are go-netaddrs' form
//! (<https://github.com/hashicorp/go-netaddrs>): addresses on stdout and exit 0, else up to 1024 bytes on stderr.

use crate::exit::{Code, Failure};
use crate::survey::agents::Verdict;
use crate::survey::{Other, Survey};
use serde_json::{Value, json};
use std::fmt::Write;

/// How it is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs.
    Json,
    /// For Consul's `exec=`.
    Netaddrs,
}

/// The words for it.
pub const FORMATS: &[(&str, Format)] =
    &[("table", Format::Table), ("json", Format::Json), ("netaddrs", Format::Netaddrs)];

/// The most that go-netaddrs reads of stderr, in bytes.
pub const NETADDRS_ERROR: usize = 1024;

/// Shows the survey.
///
/// # Errors
/// [`Failure`] with 69: no source answered; for bare addresses also when no server was found.
pub fn show(survey: &Survey, format: Format) -> Result<String, Failure> {
    let failures: Vec<String> =
        survey.failures().map(|(source, why)| format!("source {source} failed: {why}")).collect();
    if survey.sources.iter().all(|report| report.outcome.is_err())
        && !survey.servers().any(|other| other.verdict.is_server())
    {
        return Err(unavailable(failures.join("; ")));
    }
    Ok(match format {
        Format::Table => table(survey),
        Format::Json => format!("{:#}\n", json(survey)),
        Format::Netaddrs => {
            let mut found: Vec<String> = survey
                .others
                .iter()
                // What only the leader lists is a server that was found already, at another address of it.
                .filter(|other| other.verdict.is_server() && !other.listed)
                .flat_map(|other| other.joined_at())
                .map(|ip| ip.to_string())
                .collect();
            found.sort();
            found.dedup();
            if found.is_empty() {
                let seen = survey.others.iter().map(|other| format!("{} is {}", other.name, other.verdict));
                return Err(unavailable(format!(
                    "no server was found; {}",
                    seen.chain(failures).collect::<Vec<_>>().join("; ")
                )));
            }
            found.join("\n") + "\n"
        }
    })
}

fn unavailable(mut message: String) -> Failure {
    let mut end = message.len().min(NETADDRS_ERROR - 100);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    message.truncate(end);
    Failure::new(Code::Unavailable, message)
}

fn addresses(other: &Other) -> String {
    let text = other.addresses().map(|ip| ip.to_string()).collect::<Vec<_>>().join(",");
    if text.is_empty() { "-".to_owned() } else { text }
}

fn table(survey: &Survey) -> String {
    let rows: Vec<(String, String, String)> =
        survey.others.iter().map(|other| (other.name.clone(), addresses(other), other.verdict.to_string())).collect();
    let width = |column: fn(&(String, String, String)) -> &String, head: &str| {
        rows.iter().map(|row| column(row).len()).chain([head.len()]).max().unwrap_or(0)
    };
    let (names, places) = (width(|row| &row.0, "SERVER"), width(|row| &row.1, "ADDRESSES"));
    let mut text = String::new();
    // INVARIANT: writing into a String does not fail, so the results carry nothing.
    let _ = writeln!(text, "{:names$}  {:places$}  VERDICT", "SERVER", "ADDRESSES");
    for (name, address, verdict) in &rows {
        let _ = writeln!(text, "{name:names$}  {address:places$}  {verdict}");
    }
    for report in survey.reports() {
        let _ = match &report.outcome {
            Ok(named) => writeln!(text, "source {}: {named} in {}", report.source, crate::time::text(report.took)),
            Err(why) => {
                writeln!(text, "source {}: failed after {}: {why}", report.source, crate::time::text(report.took))
            }
        };
    }
    text
}

fn json(survey: &Survey) -> Value {
    let servers: Vec<Value> = survey
        .others
        .iter()
        .map(|other| {
            let (verdict, leader, peers, why) = match &other.verdict {
                Verdict::Formed(reported) => ("formed", reported.leader, Some(&reported.peers), None),
                Verdict::NeverFormed => ("never formed", None, None, None),
                Verdict::Stranger(stranger) => {
                    let reported = stranger.reported();
                    let leader = reported.and_then(|reported| reported.leader);
                    ("stranger", leader, reported.map(|reported| &reported.peers), Some(stranger.to_string()))
                }
                Verdict::Absent(why) => ("absent", None, None, Some(why.clone())),
                Verdict::Unknown(why) => ("unknown", None, None, Some(why.clone())),
            };
            json!({"name": other.name, "addresses": other.addresses().collect::<Vec<_>>(), "verdict": verdict, "leader": leader, "peers": peers, "why": why})
        })
        .collect();
    let sources: Vec<Value> = survey
        .reports()
        .map(|report| {
            let took = crate::init::millis(report.took);
            json!({"source": report.source, "named": report.outcome.as_ref().ok(), "error": report.outcome.as_ref().err(), "took_ms": took})
        })
        .collect();
    json!({"servers": servers, "sources": sources})
}

//! What `doctor` found, and what it could not look at: as a person or a program reads it.
//!
//! Takes findings from the checks, gives a table or JSON in an order that depends on nothing but what was found, and the exit code.
//! A mend stands without indentation, since somebody copies it.

use crate::exit::Code;
use serde_json::json;
use std::fmt::Write;

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The check's name, which never changes: a script may look for it.
    pub check: &'static str,
    /// What it is about, such as `Service consul/consul-server-2` or `server consul-server-1`.
    pub subject: String,
    /// What is wrong, in one sentence.
    pub what: String,
    /// What comes of it.
    pub why: String,
    /// The command or the YAML that mends it, with the real names; it may have several lines.
    pub mend: String,
}

/// One thing that could not be looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unseen {
    /// What was to be looked at.
    pub what: &'static str,
    /// Why it was not.
    pub why: String,
}

/// All of it.
#[derive(Debug, Default)]
pub struct Report {
    /// What is wrong.
    pub findings: Vec<Finding>,
    /// What could not be looked at.
    pub unseen: Vec<Unseen>,
    /// The checks that were really made.
    pub looked: Vec<&'static str>,
}

/// How it is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Output {
    /// For people.
    #[default]
    Table,
    /// For programs.
    Json,
}

/// The words for it.
pub const OUTPUTS: &[(&str, Output)] = &[("table", Output::Table), ("json", Output::Json)];

// === impl Report ===

impl Report {
    /// The report as text, in the order of the checks. What is there twice is taken out.
    pub fn show(&mut self, output: Output) -> String {
        self.findings = unique(&mut self.findings);
        self.unseen = unique(&mut self.unseen);
        self.looked = unique(&mut self.looked);
        match output {
            Output::Table => self.table(),
            Output::Json => self.json(),
        }
    }

    /// 0, or 1 for findings. What could not be looked at changes neither.
    pub fn code(&self) -> u8 {
        if self.findings.is_empty() { 0 } else { Code::No as u8 }
    }

    fn table(&self) -> String {
        let mut text = String::new();
        // INVARIANT: writing into a String does not fail, so the results carry nothing.
        for Finding { check, subject, what, why, mend } in &self.findings {
            let _ = writeln!(text, "{check}: {subject}\n  what: {what}\n  why:  {why}\n  mend:\n{}\n", mend.trim_end());
        }
        for Unseen { what, why } in &self.unseen {
            let _ = writeln!(text, "not looked at: {what}: {why}");
        }
        let _ = match self.findings.len() {
            0 => writeln!(text, "nothing found by {} checks", self.looked.len()),
            found => writeln!(text, "found {found} by {} checks", self.looked.len()),
        };
        text
    }

    fn json(&self) -> String {
        let findings: Vec<_> = self
            .findings
            .iter()
            .map(|Finding { check, subject, what, why, mend }| {
                json!({"check": check, "subject": subject, "what": what, "why": why, "mend": mend})
            })
            .collect();
        let unseen: Vec<_> = self.unseen.iter().map(|Unseen { what, why }| json!({"what": what, "why": why})).collect();
        format!("{:#}\n", json!({"findings": findings, "not_looked_at": unseen, "looked": self.looked}))
    }
}

fn unique<T: PartialEq>(all: &mut Vec<T>) -> Vec<T> {
    let mut kept: Vec<T> = Vec::with_capacity(all.len());
    for one in all.drain(..) {
        if !kept.contains(&one) {
            kept.push(one);
        }
    }
    kept
}

//! What happened at a stop, for a person: one sentence for the log and for an Event.
//!
//! Takes the cause and each step with the time that it took, gives the sentence. Says what is waited for meanwhile, when that
//! is news. Decides nothing.

use super::cause::Known;
use crate::time::{self, SAY_EVERY};
use std::time::Duration;
use tokio::time::Instant;
use tracing::info;

/// What is noted on the way.
#[derive(Debug, Default)]
pub struct Steps {
    /// Why it stops, once that is known.
    pub cause: Option<Known>,
    done: Vec<String>,
}

/// A wait, and what it is for.
#[derive(Debug)]
pub struct Wait {
    begun: Instant,
    said: Option<(String, Instant)>,
    /// Its time was over before its reason was.
    pub in_vain: bool,
}

// === impl Steps ===

impl Steps {
    /// A step that is over.
    pub fn note(&mut self, step: String) {
        self.done.push(step);
    }

    /// The cause in a word or two.
    pub fn word(&self) -> String {
        self.cause.as_ref().map(|known| known.cause.to_string()).unwrap_or_default()
    }

    /// All of it in one sentence.
    pub fn tell(&self, took: Duration) -> String {
        let cause = match &self.cause {
            Some(Known { cause, how }) => format!("{cause} ({how})"),
            None => "stop".to_owned(),
        };
        let done = if self.done.is_empty() { "nothing was to be done".to_owned() } else { self.done.join("; ") };
        format!("{cause}: {done}; ready to end the agent after {}", time::text(took))
    }
}

// === impl Wait ===

impl Wait {
    /// It begins.
    pub fn begin() -> Self {
        Self { begun: Instant::now(), said: None, in_vain: false }
    }

    /// Says what is waited for, when that is news.
    pub fn say(&mut self, what: &str, line: String) {
        if self.said.as_ref().is_none_or(|(old, at)| *old != line || at.elapsed() >= SAY_EVERY) {
            info!("{what}: {line}");
            self.said = Some((line, Instant::now()));
        }
    }

    /// The step that it was: what was waited for last.
    pub fn tell(&self) -> String {
        let line = self.said.as_ref().map(|(line, _)| line.as_str()).unwrap_or_default();
        let in_vain = if self.in_vain { " in vain" } else { "" };
        format!("waited {}{in_vain} because {line}", time::text(self.begun.elapsed()))
    }
}

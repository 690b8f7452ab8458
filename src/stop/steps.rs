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
    /// A step that is over. One that a long wait repeats in the same words is told where it was last.
    pub fn note(&mut self, step: String) {
        self.done.retain(|done| *done != step);
        self.done.push(step);
    }

    /// The same of a step that takes another time each time: `kind` begins what is told of each.
    pub fn note_timed(&mut self, kind: &str, took: Duration) {
        self.done.retain(|done| !done.starts_with(kind));
        self.done.push(format!("{kind} after {}", time::text(took)));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_long_wait_repeats_is_told_once() {
        let mut steps = Steps::default();
        for took in [571, 562] {
            steps.note_timed("its Service leads nowhere", Duration::from_millis(took));
            steps.note("did not hand leadership over: no other voter is well".to_owned());
        }
        let told = "its Service leads nowhere after 562 ms; did not hand leadership over: no other voter is well";
        assert_eq!(steps.tell(Duration::from_secs(1)), format!("stop: {told}; ready to end the agent after 1.0 s"));
    }
}

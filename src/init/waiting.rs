//! A wait: told every 10 s, limited, and not too busy.
//!
//! Takes one sentence a turn, says it when it is news (in the log, and as an Event when it lasts), and pauses. Fails with 75
//! when `--wait` has run out.

use crate::events::Events;
use crate::exit::{Code, Failure};
use crate::time;
use std::time::Duration;
use tokio::time::Instant;
use tracing::warn;

/// How often a waiting convene says what it waits for.
pub const SAY_EVERY: Duration = Duration::from_secs(10);

/// How long to wait before looking again: short while a formation is likely, long when something is broken.
pub fn pause(elapsed: Duration) -> Duration {
    match elapsed.as_secs() {
        0..30 => Duration::from_millis(250),
        30..300 => Duration::from_secs(1),
        _ => Duration::from_secs(5),
    }
}

/// A wait that is told, limited, and not too busy.
pub(super) struct Waiting {
    /// Since when.
    pub(super) begun: Instant,
    /// For how long at most; `None`: without limit.
    pub(super) limit: Option<Duration>,
    /// What was said last, and when.
    pub(super) said: Option<(String, Instant)>,
    /// Tells it where it lasts.
    pub(super) events: Events,
    /// When the leader was last asked to remove our predecessor.
    pub(super) asked: Option<Instant>,
}

// === impl Waiting ===

impl Waiting {
    /// Whether it is time to ask the leader again.
    pub(super) fn may_ask(&mut self) -> bool {
        let may = self.asked.is_none_or(|at| at.elapsed() >= SAY_EVERY);
        if may {
            self.asked = Some(Instant::now());
        }
        may
    }

    /// Says why, when that is news, and pauses.
    ///
    /// # Errors
    /// [`Failure`] with 75: the limit is reached.
    pub(super) async fn once_more(&mut self, line: String) -> Result<(), Failure> {
        let elapsed = self.begun.elapsed();
        if let Some(limit) = self.limit
            && elapsed >= limit
        {
            return Err(Failure::new(Code::NotNow, format!("waited {} and gave up: {line}", time::text(limit))));
        }
        // What is over within a second is no news; what lasts is said when it changes, then every 10 s.
        let news = self.said.as_ref().is_none_or(|(old, at)| {
            (*old != line && at.elapsed() >= Duration::from_secs(1)) || at.elapsed() >= SAY_EVERY
        });
        if news && elapsed >= Duration::from_secs(1) {
            warn!(waited_s = elapsed.as_secs(), "waiting: {line}");
            // Every formation has its moments.
            if elapsed >= SAY_EVERY {
                self.events.tell_wait(&line);
            }
            self.said = Some((line, Instant::now()));
        }
        let pause = pause(elapsed);
        let left = self.limit.map_or(pause, |limit| limit.saturating_sub(elapsed).min(pause));
        tokio::time::sleep(left).await;
        Ok(())
    }
}

//! A wait: told every 10 s, limited, and not too busy.
//!
//! Takes one sentence a turn, says it when it is news (in the log, and as an Event when it lasts), and pauses. Fails with 75
//! when `--wait` has run out.

use crate::events::Events;
use crate::exit::{Code, Failure};
use crate::record::Volume;
use crate::time::{self, SAY_EVERY};
use std::time::Duration;
use tokio::time::Instant;
use tracing::warn;

/// How long a formation is likely.
pub const FORMS: Duration = Duration::from_secs(30);

/// How long to wait before looking again: short while a formation is likely, long when something is broken.
pub fn pause(elapsed: Duration) -> Duration {
    match elapsed.as_secs() {
        _ if elapsed < FORMS => Duration::from_millis(250),
        0..300 => Duration::from_secs(1),
        _ => Duration::from_secs(5),
    }
}

/// How often a hold is looked at.
const HELD: Duration = Duration::from_secs(1);

/// The same for one of many: longer, and not all at one moment.
fn pause_of_a_client(elapsed: Duration, place: f64) -> Duration {
    elapsed.div_f64(4.0).clamp(Duration::from_secs(1), Duration::from_secs(30)).mul_f64(0.5 + place)
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
    /// When the leader was last asked to remove our predecessor, and what came of it.
    pub(super) asked: Option<(Instant, String)>,
    /// A client: its place among all, 0 to 1.
    fleet: Option<f64>,
    /// Where a client notes what it waits for.
    pub(super) volume: Option<Volume>,
}

// === impl Waiting ===

impl Waiting {
    /// It begins.
    pub(super) fn new(limit: Option<Duration>, events: Events, fleet: Option<f64>) -> Self {
        Self { begun: Instant::now(), limit, said: None, events, asked: None, fleet, volume: None }
    }

    /// What came of the question to the leader, which is asked every [`SAY_EVERY`].
    pub(super) async fn asked(&mut self, ask: impl Future<Output = String>) -> &str {
        let latest = self.asked.take().filter(|(at, _)| at.elapsed() < SAY_EVERY);
        let latest = match latest {
            Some(latest) => latest,
            None => (Instant::now(), ask.await),
        };
        &self.asked.insert(latest).1
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
        self.say(line, elapsed, Duration::from_secs(1), SAY_EVERY);
        let pause = self.fleet.map_or_else(|| pause(elapsed), |place| pause_of_a_client(elapsed, place));
        let left = self.limit.map_or(pause, |limit| limit.saturating_sub(elapsed).min(pause));
        tokio::time::sleep(left).await;
        Ok(())
    }

    /// The same where a person is waited for: said at once, and looked at again each second.
    ///
    /// # Errors
    /// [`Failure`] with 75: the limit is reached.
    pub(super) async fn held(&mut self, line: String) -> Result<(), Failure> {
        let elapsed = self.begun.elapsed();
        if let Some(limit) = self.limit.filter(|limit| elapsed >= *limit) {
            return Err(Failure::new(Code::NotNow, format!("waited {} and gave up: {line}", time::text(limit))));
        }
        // Who asked for it was told by an Event.
        self.say(line, elapsed, Duration::ZERO, Duration::MAX);
        tokio::time::sleep(HELD).await;
        Ok(())
    }

    /// Says a line that is news: in the log once the wait has lasted for `log`, as an Event for `event`.
    fn say(&mut self, line: String, elapsed: Duration, log: Duration, event: Duration) {
        // What is over within a second is no news; what lasts is said when it changes, then every 10 s.
        let news = self.said.as_ref().is_none_or(|(old, at)| {
            (*old != line && at.elapsed() >= Duration::from_secs(1)) || at.elapsed() >= SAY_EVERY
        });
        if news && elapsed >= log {
            warn!(waited_s = elapsed.as_secs(), "waiting: {line}");
            if let Some(volume) = &self.volume {
                volume.note_not_joined(Some(&line));
            }
            // Every formation has its moments.
            if elapsed >= event {
                self.events.tell_wait(&line);
            }
            self.said = Some((line, Instant::now()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_came_of_a_question_is_told_until_it_is_asked_again() {
        let mut waiting = Waiting::new(None, Events::default(), None);
        assert_eq!(waiting.asked(async { "no".to_owned() }).await, "no");
        assert_eq!(waiting.asked(async { unreachable!("asked again at once") }).await, "no");
        waiting.asked = waiting.asked.map(|(at, what)| (at - SAY_EVERY, what));
        assert_eq!(waiting.asked(async { "yes".to_owned() }).await, "yes");
    }

    #[test]
    fn clients_that_wait_ask_less_and_less_often_and_not_together() {
        let pause = |seconds, place| pause_of_a_client(Duration::from_secs(seconds), place).as_secs_f64();
        assert_eq!((pause(0, 0.0), pause(0, 1.0)), (0.5, 1.5));
        assert_eq!(pause(40, 0.5), 10.0);
        assert_eq!((pause(3600, 0.0), pause(3600, 1.0)), (15.0, 45.0));
    }
}

//! How a stop goes: why it comes, whether to leave, whom to wait for, and by when it must be over.
//!
//! Takes the settings and the moment of the TERM (or the start of the hook). [`course`] does all that comes before the agent's
//! end, for the supervisor and for the hook alike; the others answer its questions.

pub mod cause;
pub mod course;
pub mod gates;
pub mod guard;
pub mod handover;
pub mod lag;
pub mod leave;
pub mod look;
pub mod steps;
mod turn;
pub mod voters;
pub mod withdraw;

use std::time::Duration;
use tokio::time::Instant;

/// What is kept back of the grace period, so that the last words are said before kubelet kills.
pub const RESERVE: Duration = Duration::from_secs(3);

/// How long an agent takes that is told to end, less in almost every case.
pub const ENDING: Duration = Duration::from_secs(1);

/// A hook that ended this long before a TERM belongs to the same stop: kubelet sends the one right after the other.
pub const AFTER_HOOK: Duration = Duration::from_secs(10);

/// When a stop that began at `begun` must be over.
pub fn deadline(begun: Instant, grace: Duration) -> Instant {
    begun + grace.saturating_sub(RESERVE).max(Duration::from_secs(1))
}

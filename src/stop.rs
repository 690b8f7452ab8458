//! How a stop goes: whether to leave, and by when it must be over.
//!
//! Takes the settings and the moment of the TERM (or the start of the hook), gives a deadline; [`leave`] does the leaving.

pub mod leave;

use std::time::Duration;
use tokio::time::Instant;

/// What is kept back of the grace period, so that the last words are said before kubelet kills.
pub const RESERVE: Duration = Duration::from_secs(3);

/// When a stop that began at `begun` must be over.
pub fn deadline(begun: Instant, grace: Duration) -> Instant {
    begun + grace.saturating_sub(RESERVE).max(Duration::from_secs(1))
}

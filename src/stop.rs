//! How a stop goes: whether to leave, and by when it must be over.
//!
//! Takes the settings and the moment of the TERM (or the start of the hook), gives a deadline; [`leave`] does the leaving.
//! Hook and supervisor hold one lock, [`Busy`], so that the second waits for the first.

pub mod leave;

use crate::record::{RecordError, Volume};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use std::fs::File;
use std::path::Path;
use std::time::Duration;
use thiserror::Error;
use tokio::time::Instant;

/// What is kept back of the grace period, so that the last words are said before kubelet kills.
pub const RESERVE: Duration = Duration::from_secs(3);

/// Says on the volume that convene waits or stops. Ends with the process, however it ends.
#[derive(Debug)]
pub struct Busy {
    _lock: Flock<File>,
}

/// Why the lock could not be had.
#[derive(Debug, Error)]
pub enum BusyError {
    /// The file could not be made.
    #[error(transparent)]
    Volume(#[from] RecordError),
    /// The lock failed for another reason than being held.
    #[error("could not lock: {0}")]
    Lock(Errno),
}

const LOCK: &str = "busy.lock";

// === impl Busy ===

impl Busy {
    /// Waits until nobody else holds the lock, then holds it.
    ///
    /// # Errors
    /// [`BusyError`].
    pub async fn hold(volume: &Volume) -> Result<Self, BusyError> {
        let mut file = volume.lock_file(LOCK)?;
        loop {
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => return Ok(Self { _lock: lock }),
                // Flock has no waiting that could be interrupted by a TERM.
                Err((back, Errno::EWOULDBLOCK)) => file = back,
                Err((_, errno)) => return Err(BusyError::Lock(errno)),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Whether some convene waits or stops on this data folder. A folder that cannot be read says no.
    pub fn is_held(data_dir: &Path) -> bool {
        let Ok(file) = File::open(data_dir.join(crate::record::FOLDER).join(LOCK)) else { return false };
        matches!(Flock::lock(file, FlockArg::LockSharedNonblock), Err((_, Errno::EWOULDBLOCK)))
    }
}

/// When a stop that began at `begun` must be over.
pub fn deadline(begun: Instant, grace: Duration) -> Instant {
    begun + grace.saturating_sub(RESERVE).max(Duration::from_secs(1))
}

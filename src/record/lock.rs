//! Who works on the volume: three locks in convene's folder, each gone with the process that holds it.
//!
//! Takes a volume, gives a [`Held`] or says that somebody else has it. Never waits: whoever waits says so itself, and stays
//! interruptible. Fails with [`RecordError`] when the file cannot be made or locked.

use super::{FOLDER, RecordError, Volume};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use std::fs::File;
use std::path::Path;

/// What is locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lock {
    /// Shared by whoever waits or prepares, so that `check live` knows.
    Waiting,
    /// The stop: a preStop hook and the supervisor do it one after the other.
    Stopping,
    /// The volume itself, from the first look at it to the end of the supervised agent: after a force delete the new Pod's
    /// convene waits for the old one.
    Agent,
}

/// A lock that is held until this is dropped or the process ends, however it ends.
#[derive(Debug)]
pub struct Held {
    _lock: Flock<File>,
}

// === impl Lock ===

impl Lock {
    fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting.lock",
            Self::Stopping => "stopping.lock",
            Self::Agent => "agent.lock",
        }
    }

    /// Whether somebody holds it. A folder that cannot be read says no.
    pub fn is_held(self, data_dir: &Path) -> bool {
        let Ok(file) = File::open(data_dir.join(FOLDER).join(self.name())) else { return false };
        matches!(Flock::lock(file, FlockArg::LockExclusiveNonblock), Err((_, Errno::EWOULDBLOCK)))
    }
}

impl Volume {
    /// Takes a lock; `None` when somebody else has it.
    ///
    /// # Errors
    /// [`RecordError::Io`].
    pub fn try_lock(&self, lock: Lock) -> Result<Option<Held>, RecordError> {
        let how = match lock {
            Lock::Waiting => FlockArg::LockSharedNonblock,
            Lock::Stopping | Lock::Agent => FlockArg::LockExclusiveNonblock,
        };
        match Flock::lock(self.lock_file(lock.name())?, how) {
            Ok(held) => Ok(Some(Held { _lock: held })),
            Err((_, Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, errno)) => {
                let path = self.folder().join(lock.name());
                Err(RecordError::Io { action: "lock", path, cause: errno.into() })
            }
        }
    }
}

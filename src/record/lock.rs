//! Who works on the volume: locks in convene's folder and the agent's own on its log, each gone with the process that holds it.
//!
//! Takes a volume, gives a [`Held`] or says that somebody else has it. Never waits: whoever waits says so itself, and stays
//! interruptible. Only the record's own lock and that of those that wait are waited for: nobody holds the one for longer than a write
//! takes, or the other alone for longer than a look. Fails with [`RecordError`] when the file cannot be made or locked.

use super::{FOLDER, RecordError, Volume};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::libc::dev_t;
use nix::sys::stat::{major, minor};
use nix::unistd::Pid;
use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// What Consul locks (flock) for as long as its raft log is open, by the kind of the log, in the data folder. An agent that starts
/// beside another one hangs at it without a word
/// (<https://github.com/etcd-io/bbolt/blob/main/bolt_unix.go>, of which both files are).
const AGENTS_OWN: [&str; 2] = ["raft/raft.db", "raft/wal/wal-meta.db"];

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

/// The record's own lock: a supervisor, a hook and a probe may all have something to note.
const RECORD: &str = "record.lock";

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
            // Who only looks has it alone for a moment.
            Lock::Waiting => FlockArg::LockShared,
            Lock::Stopping | Lock::Agent => FlockArg::LockExclusiveNonblock,
        };
        match Flock::lock(self.lock_file(lock.name())?, how) {
            Ok(held) => Ok(Some(Held { _lock: held })),
            Err((_, Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, errno)) => Err(self.not_locked(lock.name(), errno)),
        }
    }

    /// Takes the record's lock, once nobody else has it.
    pub(super) fn lock_record(&self) -> Result<Held, RecordError> {
        Flock::lock(self.lock_file(RECORD)?, FlockArg::LockExclusive)
            .map(|held| Held { _lock: held })
            .map_err(|(_, errno)| self.not_locked(RECORD, errno))
    }

    fn not_locked(&self, name: &str, errno: Errno) -> RecordError {
        RecordError::Io { action: "lock", path: self.folder().join(name), cause: errno.into() }
    }

    /// Whether a server's agent runs on this volume, whoever started it: convene's own lock ends with `init`, or with
    /// `run --exec`, and the agent goes on.
    ///
    /// # Errors
    /// [`RecordError::Io`].
    pub fn has_agent(&self) -> Result<bool, RecordError> {
        for path in AGENTS_OWN.map(|name| self.dir.join(name)) {
            let file = match File::open(&path) {
                Err(cause) if cause.kind() == ErrorKind::NotFound => continue,
                opened => opened.map_err(|cause| RecordError::Io { action: "read", path: path.clone(), cause })?,
            };
            // Ours is gone at once; an agent that just starts tries again.
            match Flock::lock(file, FlockArg::LockSharedNonblock) {
                Ok(_) => {}
                Err((_, Errno::EWOULDBLOCK)) => return Ok(true),
                Err((_, errno)) => return Err(RecordError::Io { action: "lock", path, cause: errno.into() }),
            }
        }
        Ok(false)
    }

    /// The agent on this volume, where it is a process of this container: the kernel shows who holds a lock only where that process
    /// can be seen (proc_locks(5)).
    pub fn agent_pid(&self) -> Option<Pid> {
        let locks = std::fs::read_to_string("/proc/locks").ok()?;
        let files = AGENTS_OWN.iter().filter_map(|name| self.dir.join(name).metadata().ok());
        files.map(|meta| (meta.dev(), meta.ino())).find_map(|(device, inode)| holder(&locks, device, inode))
    }
}

/// Who holds a lock on a file: `2: FLOCK  ADVISORY  WRITE 4711 08:01:131 0 EOF`, the device in hexadecimal.
fn holder(locks: &str, device: dev_t, inode: u64) -> Option<Pid> {
    let file = format!("{:02x}:{:02x}:{inode}", major(device), minor(device));
    let words = locks.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let mut pids = words.filter_map(|words| match words.as_slice() {
        [_, "FLOCK", _, "WRITE", pid, locked, ..] if *locked == file => pid.parse().ok(),
        _ => None,
    });
    pids.find(|pid: &i32| *pid > 0).map(Pid::from_raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_is_on_the_volume_for_as_long_as_its_log_of_either_kind_is_locked() {
        for log in AGENTS_OWN {
            let data = tempfile::tempdir().unwrap();
            let volume = Volume::open(data.path(), false).unwrap();
            assert!(!volume.has_agent().unwrap(), "an empty volume");
            let log = data.path().join(log);
            std::fs::create_dir_all(log.parent().unwrap()).unwrap();
            let running = Flock::lock(File::create(&log).unwrap(), FlockArg::LockExclusiveNonblock).unwrap();
            assert!(volume.has_agent().unwrap(), "{} is locked", log.display());
            assert_eq!(volume.agent_pid(), Some(Pid::this()), "{}", log.display());
            drop(running);
            assert_eq!(volume.agent_pid(), None, "{}", log.display());
            assert!(!volume.has_agent().unwrap(), "{} is not locked any more", log.display());
            // Nothing of ours stays on it.
            Flock::lock(File::open(&log).unwrap(), FlockArg::LockExclusiveNonblock).unwrap();
        }
    }
}

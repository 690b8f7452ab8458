//! What a stop needs to know of the moments before it: the last answer about our StatefulSet, for a silent Kubernetes API, and
//! when a stop was last done, since a hook's and the TERM after it are one. And why this agent has not joined, for the gate of
//! an application, which runs in a container of its own.
//!
//! Takes what was read or done, gives it with its age, which is the file's own time of change: an answer that says the same
//! again writes nothing but that. Without durability: after a crash of the machine nobody needs it. Every failure means that
//! nothing is remembered.

use super::{RecordError, Volume};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::time::{Duration, SystemTime};

const FILE: &str = "statefulset.json";
const STOPPED: &str = "stopped";
const NOT_JOINED: &str = "not-joined";
/// Of a reason no more is told, in bytes: kubelet keeps 4096 of a container's last words.
const REASON: u64 = 2048;

/// What is remembered of a StatefulSet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remembered {
    /// How many Pods it is to have.
    pub replicas: u32,
    /// Its first ordinal.
    pub start: u32,
}

impl Volume {
    /// Remembers an answer of this moment.
    ///
    /// # Errors
    /// [`RecordError::Io`].
    pub fn remember(&self, now: Remembered) -> Result<(), RecordError> {
        let path = self.folder().join(FILE);
        let changed = self.remembered().is_none_or(|(old, _)| old != now);
        let written = (|| {
            let mut file = File::options().write(true).create(true).truncate(changed).open(&path)?;
            self.give(&file)?;
            if changed {
                file.write_all(serde_json::to_string(&now)?.as_bytes())?;
            }
            file.set_modified(SystemTime::now())
        })();
        written.map_err(|cause| RecordError::Io { action: "write", path, cause })
    }

    /// What was remembered, and how long ago.
    pub fn remembered(&self) -> Option<(Remembered, Duration)> {
        let path = self.folder().join(FILE);
        let remembered = serde_json::from_slice(&std::fs::read(&path).ok()?).ok()?;
        Some((remembered, age(&path)?))
    }

    /// Forgets it: the StatefulSet is gone.
    pub fn forget_statefulset(&self) {
        let _ = std::fs::remove_file(self.folder().join(FILE));
    }

    /// Remembers that a stop was done at this moment.
    ///
    /// # Errors
    /// [`RecordError::Io`].
    pub fn note_stop(&self) -> Result<(), RecordError> {
        let path = self.folder().join(STOPPED);
        let written = (|| {
            let file = File::options().write(true).create(true).truncate(false).open(&path)?;
            self.give(&file)?;
            file.set_modified(SystemTime::now())
        })();
        written.map_err(|cause| RecordError::Io { action: "write", path, cause })
    }

    /// How long ago the last stop was done.
    pub fn stopped_ago(&self) -> Option<Duration> {
        age(&self.folder().join(STOPPED))
    }
}

impl Volume {
    /// Notes why this client has not joined, or that nothing keeps it from that. Where it cannot be noted, a gate says less.
    pub fn note_not_joined(&self, why: Option<&str>) {
        let path = self.folder().join(NOT_JOINED);
        match why {
            Some(why) => drop(self.write(&path, why.as_bytes())),
            None => drop(std::fs::remove_file(path)),
        }
    }
}

/// Why the client on this volume has not joined, as far as convene beside it knows.
pub fn not_joined(data_dir: &Path) -> Option<String> {
    let mut why = Vec::new();
    File::open(data_dir.join("convene").join(NOT_JOINED)).ok()?.take(REASON).read_to_end(&mut why).ok()?;
    Some(String::from_utf8_lossy(&why).into_owned()).filter(|why| !why.is_empty())
}

/// The time since a file was changed. One from the future has none: the clock was set back, and nobody knows by how much.
fn age(path: &Path) -> Option<Duration> {
    path.metadata().ok()?.modified().ok()?.elapsed().ok()
}

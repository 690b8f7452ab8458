//! What of a recovery stands on the volume: the note that one was begun, Consul's own peers.json, what raft's files tell of how
//! far this server came, and what is kept of them before anything changes.
//!
//! Takes the data folder, gives facts and writes as [`Volume`] does: as a whole or not at all, and what is there already is not
//! written again. Reads raft's own files only where their form is plain: the meta file of a snapshot, and the names of the log's
//! segments. Never opens a log, never changes one.

use super::{RecordError, Volume, sync_folder};
use crate::settings::recovering::Peer;
use nix::sys::statvfs::statvfs;
use serde_json::{Value, json};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// The note.
const PENDING: &str = "recovering.json";
/// Before the number of a recovery: what was there before it.
const KEPT: &str = "recovered-";
/// A file by which a person keeps the agent from starting.
pub const HOLD: &str = "hold";
/// Why convene keeps the agent from starting, for a probe in another container.
const HELD: &str = "held";

/// A recovery that was begun, and whose end nobody has seen yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pending {
    /// Which one it is on this volume, from 1: what was there before is kept in `recovered-<number>`.
    pub number: u32,
    /// The raft configuration from then on.
    pub peers: Vec<Peer>,
}

/// How far a server's log came. Ordered as raft compares them: the term, then the index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Last {
    /// The term of the last entry.
    pub term: u64,
    /// Its index.
    pub index: u64,
    /// The agent says so; else the log came at least as far.
    pub exact: bool,
}

/// What raft's files tell.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stored {
    /// How far the log came at least.
    pub last: Option<Last>,
    /// The raft peers as the newest snapshot has them.
    pub peers: Vec<SocketAddr>,
}

// === impl Last ===

impl Last {
    /// What raft compares.
    pub fn rank(self) -> (u64, u64) {
        (self.term, self.index)
    }
}

impl std::fmt::Display for Last {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let least = if self.exact { "" } else { "at least " };
        write!(f, "{least}{}/{}", self.term, self.index)
    }
}

impl Volume {
    /// A recovery that was begun here.
    ///
    /// # Errors
    /// [`RecordError`]: the note cannot be read.
    pub fn pending(&self) -> Result<Option<Pending>, RecordError> {
        let path = self.folder().join(PENDING);
        let Some(bytes) = self.bytes(&path)? else { return Ok(None) };
        let read = || {
            let value: Value = serde_json::from_slice(&bytes).ok()?;
            let number = value.get("number")?.as_u64()?.try_into().ok()?;
            Some(Pending { number, peers: Peer::from_json(value.get("peers")?)? })
        };
        match read() {
            Some(pending) => Ok(Some(pending)),
            None => Err(RecordError::Io {
                action: "read",
                path,
                cause: io::Error::new(
                    ErrorKind::InvalidData,
                    "it is none of convene's; remove it when no recovery is under way",
                ),
            }),
        }
    }

    /// Notes that a recovery is begun: the one that was begun already, when it is the same, else the next one.
    ///
    /// # Errors
    /// [`RecordError`].
    pub fn note_pending(&self, peers: &[Peer]) -> Result<Pending, RecordError> {
        if let Some(pending) = self.pending()?.filter(|pending| pending.peers == peers) {
            return Ok(pending);
        }
        let numbers = self.names(&self.folder())?;
        let highest = numbers.iter().filter_map(|name| name.strip_prefix(KEPT)?.parse::<u32>().ok()).max();
        let pending = Pending { number: highest.unwrap_or(0).saturating_add(1), peers: peers.to_vec() };
        let path = self.folder().join(PENDING);
        self.write(&path, &text(&json!({"number": pending.number, "peers": Peer::json(peers)})))?;
        Ok(pending)
    }

    /// Notes that none is under way any more.
    ///
    /// # Errors
    /// [`RecordError::Io`].
    pub fn forget_pending(&self) -> Result<(), RecordError> {
        let path = self.folder().join(PENDING);
        match fs::remove_file(&path).and_then(|()| sync_folder(&self.folder())) {
            Err(cause) if cause.kind() != ErrorKind::NotFound => Err(RecordError::Io { action: "write", path, cause }),
            _ => Ok(()),
        }
    }

    /// Consul's peers.json, which its next start takes and deletes.
    pub fn peers_file(&self) -> PathBuf {
        self.dir.join("raft/peers.json")
    }

    /// Consul's peers.info. Where it is missing Consul 1.22.6 deletes peers.json and recovers nothing.
    pub fn info_file(&self) -> PathBuf {
        self.dir.join("raft/peers.info")
    }

    /// Writes peers.json.
    ///
    /// # Errors
    /// [`RecordError::Io`].
    pub fn place_peers(&self, peers: &[Peer]) -> Result<(), RecordError> {
        self.write(&self.peers_file(), &text(&Peer::json(peers)))
    }

    /// Takes our own peers.json away, where no agent has taken it: there is a leader after all, beside whom this server would lead
    /// too. True: it was there. One that somebody else wrote is theirs.
    ///
    /// # Errors
    /// [`RecordError`].
    pub fn void_peers(&self) -> Result<bool, RecordError> {
        let Some(pending) = self.pending()? else { return Ok(false) };
        let (from, kept) = (self.peers_file(), Kept::of(self, &pending)?);
        match fs::rename(&from, kept.folder.join("peers.json.void")) {
            Err(cause) if cause.kind() == ErrorKind::NotFound => return Ok(false),
            done => done.map_err(|cause| failed(&from, cause))?,
        }
        let synced = sync_folder(&self.dir.join("raft")).and_then(|()| sync_folder(&kept.folder));
        synced.map_err(|cause| failed(&from, cause))?;
        Ok(true)
    }

    /// Whether peers.json waits for an agent's start and was written since `begun`: then that agent was ended for it.
    pub fn has_peers_since(&self, begun: SystemTime) -> bool {
        let written = self.peers_file().metadata().and_then(|meta| meta.modified());
        written.is_ok_and(|written| written >= begun)
    }

    /// What raft's files tell. A segment of the log is named by its first index, so all before it are there
    /// (hashicorp/raft-wal, segment/filer.go).
    ///
    /// # Errors
    /// [`RecordError::Io`].
    pub fn stored(&self) -> Result<Stored, RecordError> {
        let mut stored = Stored::default();
        let snapshots = self.dir.join("raft/snapshots");
        // hashicorp/raft, file_snapshot.go
        let of = |name: &String| -> Option<(Last, Value)> {
            let bytes = fs::read(snapshots.join(name).join("meta.json")).ok()?;
            // One that is being written is not complete.
            let meta: Value = serde_json::from_slice(&bytes).ok().filter(|_| !name.ends_with(".tmp"))?;
            let last = Last { term: meta.get("Term")?.as_u64()?, index: meta.get("Index")?.as_u64()?, exact: false };
            Some((last, meta))
        };
        let metas = self.names(&snapshots)?;
        if let Some((last, meta)) = metas.iter().filter_map(of).max_by_key(|(last, _)| last.rank()) {
            stored.last = Some(last);
            let servers = meta.pointer("/Configuration/Servers").and_then(Value::as_array).into_iter().flatten();
            stored.peers = servers.filter_map(|one| one.get("Address")?.as_str()?.parse().ok()).collect();
            stored.peers.sort();
        }
        let segments = self.names(&self.dir.join("raft/wal"))?;
        let first = |name: &String| name.strip_suffix(".wal")?.split_once('-')?.0.parse::<u64>().ok();
        if let Some(newest) = segments.iter().filter_map(first).max().filter(|newest| *newest > 1) {
            let last = stored.last.get_or_insert(Last { term: 0, index: 0, exact: false });
            last.index = last.index.max(newest - 1);
        }
        Ok(stored)
    }

    /// The names in a folder; none when it is not there.
    fn names(&self, folder: &Path) -> Result<Vec<String>, RecordError> {
        let io = |cause| RecordError::Io { action: "read", path: folder.to_owned(), cause };
        match fs::read_dir(folder) {
            Ok(entries) => {
                let named = entries.map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()));
                named.collect::<Result<_, _>>().map_err(io)
            }
            Err(cause) if cause.kind() == ErrorKind::NotFound => Ok(Vec::new()),
            Err(cause) => Err(io(cause)),
        }
    }
}

/// What was there before a recovery, as it is being kept.
#[derive(Debug, Clone)]
pub struct Kept {
    volume: Volume,
    /// Where.
    pub folder: PathBuf,
}

/// What came of a copy of raft's folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Copied {
    /// So many bytes; also when that was done before.
    Whole(u64),
    /// It has so many bytes, and the volume has no room for as many again.
    NoRoom(u64),
}

// === impl Kept ===

impl Kept {
    /// The folder of this recovery, made if it is not there.
    ///
    /// # Errors
    /// [`RecordError::Io`].
    pub fn of(volume: &Volume, pending: &Pending) -> Result<Self, RecordError> {
        let folder = volume.folder().join(format!("{KEPT}{}", pending.number));
        make(volume, &folder)?;
        sync_folder(&volume.folder()).map_err(|cause| failed(&folder, cause))?;
        Ok(Self { volume: volume.clone(), folder })
    }

    /// Whether it is kept already.
    pub fn has(&self, name: &str) -> bool {
        self.folder.join(name).exists()
    }

    /// Keeps a text, unless one of that name is kept already: the first look is the one before everything.
    ///
    /// # Errors
    /// [`RecordError::Io`].
    pub fn text(&self, name: &str, bytes: &[u8]) -> Result<(), RecordError> {
        if self.has(name) { Ok(()) } else { self.volume.write(&self.folder.join(name), bytes) }
    }

    /// Keeps a file of the agent's, where there is one.
    ///
    /// # Errors
    /// [`RecordError::Io`].
    pub fn file(&self, from: &Path) -> Result<(), RecordError> {
        match (self.volume.bytes(from)?, from.file_name()) {
            (Some(bytes), Some(name)) => self.text(&name.to_string_lossy(), &bytes),
            _ => Ok(()),
        }
    }

    /// A new file of mode 0600 that has its name only once it is whole: [`Self::finish`].
    ///
    /// # Errors
    /// [`RecordError::Io`].
    pub fn begin(&self, name: &str) -> Result<File, RecordError> {
        let path = self.folder.join(format!("{name}.tmp"));
        let opened = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path);
        opened.and_then(|file| self.volume.give(&file).map(|()| file)).map_err(|cause| failed(&path, cause))
    }

    /// Gives it its name.
    ///
    /// # Errors
    /// [`RecordError::Io`].
    pub fn finish(&self, name: &str, file: &File) -> Result<(), RecordError> {
        let path = self.folder.join(name);
        let done = file.sync_all().and_then(|()| fs::rename(self.folder.join(format!("{name}.tmp")), &path));
        done.and_then(|()| sync_folder(&self.folder)).map_err(|cause| failed(&path, cause))
    }

    /// Gives it up.
    pub fn give_up(&self, name: &str) {
        let _ = fs::remove_file(self.folder.join(format!("{name}.tmp")));
    }

    /// Copies raft's folder, where the volume has room for it.
    ///
    /// # Errors
    /// [`RecordError::Io`].
    pub fn raft(&self) -> Result<Copied, RecordError> {
        let (from, to) = (self.volume.dir.join("raft"), self.folder.join("raft"));
        let size = size(&from).map_err(|cause| failed(&from, cause))?;
        if to.exists() {
            return Ok(Copied::Whole(size));
        }
        // A copy that was broken off is made again.
        let temp = self.folder.join("raft.tmp");
        match fs::remove_dir_all(&temp) {
            Err(cause) if cause.kind() != ErrorKind::NotFound => return Err(failed(&temp, cause)),
            _ => {}
        }
        let room = statvfs(&self.volume.dir).map_err(|errno| failed(&self.volume.dir, errno.into()))?;
        let free = room.blocks_available().saturating_mul(room.fragment_size());
        // As much again stays: Consul's own recovery writes a snapshot of all its state.
        if free / 2 < size {
            return Ok(Copied::NoRoom(size));
        }
        self.copy(&from, &temp)?;
        let named = fs::rename(&temp, &to).and_then(|()| sync_folder(&self.folder));
        named.map_err(|cause| failed(&to, cause))?;
        Ok(Copied::Whole(size))
    }

    fn copy(&self, from: &Path, to: &Path) -> Result<(), RecordError> {
        make(&self.volume, to)?;
        let entries = fs::read_dir(from).map_err(|cause| failed(from, cause))?;
        for entry in entries {
            let entry = entry.map_err(|cause| failed(from, cause))?;
            let (source, target) = (entry.path(), to.join(entry.file_name()));
            if source.is_dir() {
                self.copy(&source, &target)?;
                continue;
            }
            let mut opened = match File::open(&source) {
                // A running agent took it away meanwhile.
                Err(cause) if cause.kind() == ErrorKind::NotFound => continue,
                opened => opened.map_err(|cause| failed(&source, cause))?,
            };
            let copied = (|| {
                let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&target)?;
                self.volume.give(&file)?;
                io::copy(&mut opened, &mut file)?;
                file.sync_all()
            })();
            copied.map_err(|cause| failed(&target, cause))?;
        }
        sync_folder(to).map_err(|cause| failed(to, cause))
    }
}

/// Makes a folder of ours, if it is not there.
fn make(volume: &Volume, folder: &Path) -> Result<(), RecordError> {
    volume.make_folder()?;
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(cause) if cause.kind() != ErrorKind::AlreadyExists => return Err(failed(folder, cause)),
        _ => {}
    }
    let given = File::open(folder).and_then(|opened| volume.give(&opened));
    given.map_err(|cause| failed(folder, cause))
}

fn size(folder: &Path) -> io::Result<u64> {
    let mut total: u64 = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let meta = entry.metadata()?;
        total = total.saturating_add(if meta.is_dir() { size(&entry.path())? } else { meta.len() });
    }
    Ok(total)
}

fn failed(path: &Path, cause: io::Error) -> RecordError {
    RecordError::Io { action: "write", path: path.to_owned(), cause }
}

fn text(value: &Value) -> Vec<u8> {
    format!("{value:#}\n").into_bytes()
}

// === hold ===

impl Volume {
    /// The file by which a person keeps the agent from starting.
    pub fn hold_file(&self) -> PathBuf {
        self.folder().join(HOLD)
    }

    /// Notes why the agent is kept from starting, or that nothing keeps it. Where it cannot be noted, a probe says less.
    pub fn note_held(&self, why: Option<&str>) {
        let path = self.folder().join(HELD);
        match why {
            Some(why) => drop(self.write(&path, why.as_bytes())),
            None => drop(fs::remove_file(path)),
        }
    }
}

/// Why the agent on this volume is kept from starting, as far as convene noted it.
pub fn held(data_dir: &Path) -> Option<String> {
    fs::read_to_string(data_dir.join(super::FOLDER).join(HELD)).ok().filter(|why| !why.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn volume() -> (tempfile::TempDir, Volume) {
        let data = tempfile::tempdir().unwrap();
        let volume = Volume::open(data.path(), false).unwrap();
        (data, volume)
    }

    fn peer(host: u8) -> Peer {
        Peer {
            id: format!("6b1d3a52-9c0e-4f57-8a34-2f0f6f1d9c{host:02}"),
            address: SocketAddr::from(([10, 0, 0, host], 8300)),
        }
    }

    #[test]
    fn a_recovery_that_was_begun_goes_on_under_its_number_and_another_one_has_the_next() {
        let (_data, volume) = volume();
        let first = volume.note_pending(&[peer(1)]).unwrap();
        Kept::of(&volume, &first).unwrap();
        assert_eq!(volume.note_pending(&[peer(1)]).unwrap(), first);
        let second = volume.note_pending(&[peer(2)]).unwrap();
        assert_eq!((first.number, second.number), (1, 2));
        volume.forget_pending().unwrap();
        volume.forget_pending().unwrap();
        assert_eq!(volume.pending().unwrap(), None);
        assert_eq!(volume.note_pending(&[peer(1)]).unwrap().number, 2, "the folder of the first one stays");
    }

    #[test]
    fn peers_json_is_as_consul_reads_it() {
        let (data, volume) = volume();
        fs::create_dir(data.path().join("raft")).unwrap();
        let before = SystemTime::now() - Duration::from_secs(5);
        assert!(!volume.has_peers_since(before));
        volume.place_peers(&[peer(1)]).unwrap();
        assert!(volume.has_peers_since(before));
        assert!(!volume.has_peers_since(SystemTime::now() + Duration::from_secs(5)), "an agent that began after it");
        let text = fs::read_to_string(data.path().join("raft/peers.json")).unwrap();
        let written: serde_json::Value = serde_json::from_str(&text).unwrap();
        let id = "6b1d3a52-9c0e-4f57-8a34-2f0f6f1d9c01";
        assert_eq!(written, serde_json::json!([{"id": id, "address": "10.0.0.1:8300", "non_voter": false}]));
    }

    #[test]
    fn how_far_the_log_came_at_least_is_read_from_snapshots_and_segments() {
        let (data, volume) = volume();
        assert_eq!(volume.stored().unwrap(), Stored::default());
        let raft = data.path().join("raft");
        fs::create_dir_all(raft.join("wal")).unwrap();
        for name in ["00000000000000000001-0000000000000001.wal", "wal-meta.db"] {
            fs::write(raft.join("wal").join(name), "").unwrap();
        }
        assert_eq!(volume.stored().unwrap().last, None, "the first segment may be empty");
        for (name, index) in [("2-90-1", 90), ("2-100-2", 100), ("2-200-3.tmp", 200)] {
            fs::create_dir_all(raft.join("snapshots").join(name)).unwrap();
            let servers = serde_json::json!([{"Suffrage": 0, "ID": "a", "Address": "10.0.0.1:8300"}]);
            let meta =
                serde_json::json!({"Version": 1, "Index": index, "Term": 2, "Configuration": {"Servers": servers}});
            fs::write(raft.join("snapshots").join(name).join("meta.json"), meta.to_string()).unwrap();
        }
        let stored = volume.stored().unwrap();
        assert_eq!(stored.last.unwrap().to_string(), "at least 2/100");
        assert_eq!(stored.peers, [SocketAddr::from(([10, 0, 0, 1], 8300))]);
        fs::write(raft.join("wal/00000000000000000301-0000000000000002.wal"), "").unwrap();
        assert_eq!(volume.stored().unwrap().last.unwrap().to_string(), "at least 2/300");
    }

    #[test]
    fn the_raft_folder_is_copied_once_and_a_copy_that_was_broken_off_is_made_again() {
        let (data, volume) = volume();
        fs::create_dir_all(data.path().join("raft/snapshots")).unwrap();
        fs::write(data.path().join("raft/raft.db"), "log").unwrap();
        fs::write(data.path().join("raft/snapshots/state.bin"), "state").unwrap();
        let kept = Kept::of(&volume, &volume.note_pending(&[peer(1)]).unwrap()).unwrap();
        fs::create_dir(kept.folder.join("raft.tmp")).unwrap();
        fs::write(kept.folder.join("raft.tmp/raft.db"), "l").unwrap();
        assert_eq!(kept.raft().unwrap(), Copied::Whole(8));
        assert_eq!(fs::read_to_string(kept.folder.join("raft/snapshots/state.bin")).unwrap(), "state");
        fs::write(data.path().join("raft/raft.db"), "changed").unwrap();
        kept.raft().unwrap();
        assert_eq!(fs::read_to_string(kept.folder.join("raft/raft.db")).unwrap(), "log", "as it was before");
    }
}

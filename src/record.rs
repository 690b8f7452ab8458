//! What is kept on the volume: the record, and Consul's own `node-id`.
//!
//! Takes the data folder, gives a [`Volume`]: what it holds, and writing that survives a kill between any two system calls
//! (temp file, fsync, rename, fsync of the folder). A valid node ID is never changed and never lost: it stands in two
//! files, and either one repairs the other. Never makes a missing data folder unless asked to. Fails with [`RecordError`]:
//! 73 when the volume cannot be used, 78 when a person must look.

pub mod keyring;
pub mod listed;
pub mod lock;
pub mod node_id;
pub mod recovering;
pub mod remembered;

use crate::decide::Disk;
use crate::exit::Code;
use crate::settings::Owner;
use crate::survey::Memory;
use lock::Held;
use nix::unistd::{Gid, Uid, fchown};
use node_id::NodeId;
use serde::{Deserialize, Serialize};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use thiserror::Error;

/// The version that this convene writes. A higher one is refused.
pub const VERSION: u32 = 1;
/// Our folder in the data folder.
pub const FOLDER: &str = "convene";
const RECORD: &str = "record.json";

/// Where the record is on a volume.
pub fn path(data_dir: &Path) -> PathBuf {
    data_dir.join(FOLDER).join(RECORD)
}
const NODE_ID: &str = "node-id";
const ASIDE: &str = "aside";
/// What Consul keeps of a cluster.
const AGENT_DATA: [&str; 3] = ["raft", "serf", "server_metadata.json"];

/// What convene remembers of this server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// [`VERSION`].
    pub version: u32,
    /// Whose volume this is.
    pub owner: Owner,
    /// The node ID, as in Consul's own file.
    pub node_id: String,
    /// The `bootstrap_expect` that was rendered once; it does not change any more.
    #[serde(default)]
    pub expect: Option<u32>,
    /// A leader was seen, with us among its raft peers.
    #[serde(default)]
    pub formed: bool,
    /// There is to be a claim on the cluster, and since this start nobody has seen it say "formed" and know our address.
    #[serde(default)]
    pub unclaimed: bool,
    /// We left the cluster.
    #[serde(default)]
    pub left: bool,
    /// The address that we advertise.
    #[serde(default)]
    pub advertise: Option<IpAddr>,
    /// That address is the Pod's own Service's, and outlives the Pod.
    #[serde(default)]
    pub stable: bool,
    /// Nobody has tried yet whether it leads back to this Pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub untried: Option<Untried>,
    /// Every address that we ever advertised.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
    /// The other servers that were known last.
    #[serde(default)]
    pub servers: Vec<IpAddr>,
    /// The ID of the cluster that the data belongs to, where it tells one.
    #[serde(default)]
    pub cluster: Option<String>,
    /// What a newer convene of the same version wrote beside these is kept.
    #[serde(flatten)]
    pub more: serde_json::Map<String, serde_json::Value>,
}

/// An address that is still to be tried, beside an agent that joins others at their Pods' addresses before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Untried {
    /// The rendered file.
    pub file: PathBuf,
    /// What its `retry_join` is to be.
    pub join: Vec<String>,
}

/// What was found on the volume.
#[derive(Debug, Clone)]
pub struct Holding {
    /// The record, if there is one.
    pub record: Option<Record>,
    /// An agent was started here as a server.
    pub raft_data: bool,
    /// The node ID, whichever file had it.
    pub node_id: Option<NodeId>,
    /// What was repaired, for the log.
    pub repaired: Vec<String>,
}

/// What is wrong with the volume.
#[derive(Debug, Error)]
pub enum RecordError {
    /// The data folder is not there.
    #[error(
        "could not use data folder {}: it does not exist, so probably its volume is not mounted; mount it, or give --create-data-dir on a machine without volumes",
        .path.display()
    )]
    Missing {
        /// The folder.
        path: PathBuf,
    },
    /// It is no folder.
    #[error("could not use data folder {}: it is a file; give --data-dir the folder that Consul keeps its data in", .path.display())]
    NotAFolder {
        /// What it is.
        path: PathBuf,
    },
    /// Reading or writing failed.
    #[error("could not {action} {}: {cause}{}", .path.display(), mend(.cause))]
    Io {
        /// `read`, `write`, `make`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// Consul's node-id file is not a node ID, and nothing else knows it.
    #[error(
        "could not use {}: {why}; Consul would refuse it too. Put the node's ID back (36 characters, from `consul members -detailed` on another server), or remove the file if this server may come back as a new one",
        .path.display()
    )]
    NodeId {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The two files disagree.
    #[error(
        "{} says {file} but {} says {record}: one of them was changed by hand. Put the ID that the other servers know into both, or remove the record",
        .path.display(), .record_path.display()
    )]
    NodeIdChanged {
        /// Consul's file.
        path: PathBuf,
        /// Its ID.
        file: String,
        /// Our file.
        record_path: PathBuf,
        /// Its ID.
        record: String,
    },
    /// Written by a newer convene.
    #[error("could not use {}: it has version {version} and this convene knows up to {VERSION}; use the newer convene again", .path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u64,
    },
    /// The record cannot be read, and the node ID is not known otherwise.
    #[error("could not read {}: {why}; and there is no valid node-id file to rebuild it from. Restore one of the two", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

/// The data folder.
#[derive(Debug, Clone)]
pub struct Volume {
    dir: PathBuf,
    /// Files are given to whom the data folder belongs: an init container may run as root and the agent not.
    owner: (u32, u32),
}

// === impl RecordError ===

impl RecordError {
    /// The exit code that tells this.
    pub fn code(&self) -> Code {
        match self {
            Self::Missing { .. } | Self::NotAFolder { .. } | Self::Io { .. } => Code::Write,
            Self::NodeId { .. } | Self::NodeIdChanged { .. } | Self::Newer { .. } | Self::Unreadable { .. } => {
                Code::Contradiction
            }
        }
    }
}

fn mend(cause: &io::Error) -> &'static str {
    match cause.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "; free space on the volume, or make it larger",
        ErrorKind::ReadOnlyFilesystem => "; mount the volume writable",
        ErrorKind::PermissionDenied => {
            "; the volume must belong to the user that runs convene and Consul (fsGroup, or chown)"
        }
        _ => "",
    }
}

// === impl Volume ===

impl Volume {
    /// Opens the data folder, which must be there unless `create`.
    ///
    /// # Errors
    /// [`RecordError`].
    pub fn open(dir: &Path, create: bool) -> Result<Self, RecordError> {
        let io = |action, cause| RecordError::Io { action, path: dir.to_owned(), cause };
        if create {
            match DirBuilder::new().recursive(true).mode(0o755).create(dir) {
                // A file in its place is told below.
                Err(cause) if cause.kind() == ErrorKind::AlreadyExists => {}
                made => made.map_err(|cause| io("make", cause))?,
            }
        }
        let meta = match fs::metadata(dir) {
            Err(cause) if cause.kind() == ErrorKind::NotFound => {
                return Err(RecordError::Missing { path: dir.to_owned() });
            }
            meta => meta.map_err(|cause| io("read", cause))?,
        };
        if !meta.is_dir() {
            return Err(RecordError::NotAFolder { path: dir.to_owned() });
        }
        Ok(Self { dir: dir.to_owned(), owner: (meta.uid(), meta.gid()) })
    }

    /// Our own folder in it.
    pub fn folder(&self) -> PathBuf {
        self.dir.join(FOLDER)
    }

    /// Whether the data folder lies on another file system than the root: one that does not dies with the container.
    pub fn is_mount(&self) -> bool {
        let device = |path: &Path| fs::metadata(path).map(|meta| meta.dev()).ok();
        device(&self.dir).zip(device(Path::new("/"))).is_none_or(|(ours, root)| ours != root)
    }

    /// Reads what is there, without changing anything.
    ///
    /// # Errors
    /// [`RecordError`]: files that contradict each other, or that only a person can mend.
    pub fn read(&self) -> Result<Holding, RecordError> {
        let (record_path, id_path) = (self.folder().join(RECORD), self.dir.join(NODE_ID));
        let raft_data = self.raft_data()?;
        let mut repaired = Vec::new();
        let file = self.bytes(&id_path)?.map(|bytes| NodeId::from_file(&bytes));
        let (record, unreadable) = match self.bytes(&record_path)?.map(|bytes| parse(&bytes, &record_path)) {
            None => (None, None),
            Some(Ok(record)) => (Some(record), None),
            Some(Err(error @ RecordError::Newer { .. })) => return Err(error),
            Some(Err(error)) => (None, Some(error)),
        };
        let recorded = record.as_ref().and_then(|record| NodeId::parse(&record.node_id));
        let node_id = match (file, recorded) {
            (Some(Ok(file)), Some(recorded)) if file != recorded => {
                return Err(RecordError::NodeIdChanged {
                    path: id_path,
                    file: file.to_string(),
                    record_path,
                    record: recorded.to_string(),
                });
            }
            (Some(Ok(file)), _) => Some(file),
            (Some(Err(why)), Some(recorded)) => {
                repaired.push(format!("node-id was unusable ({why}) and is written again from the record"));
                Some(recorded)
            }
            // An empty file where no agent ever ran: nobody knows an ID of this server yet.
            (Some(Err(node_id::Wrong::Empty)), None) if !raft_data && unreadable.is_none() => {
                repaired.push("node-id was empty on a volume that was never used, and gets a new ID".to_owned());
                None
            }
            (Some(Err(why)), None) => return Err(RecordError::NodeId { path: id_path, why: why.to_string() }),
            (None, Some(recorded)) => {
                repaired.push("node-id was missing and is written again from the record".to_owned());
                Some(recorded)
            }
            (None, None) => None,
        };
        match (&node_id, unreadable) {
            (_, None) => {}
            (None, Some(error)) => return Err(error),
            (Some(_), Some(error)) => repaired
                .push(format!("{error}; it is rebuilt from node-id, and the old one kept as {RECORD}.unreadable")),
        }
        Ok(Holding { record, raft_data, node_id, repaired })
    }

    /// Writes node-id, then the record. Nothing is written that is there already.
    ///
    /// # Errors
    /// [`RecordError::Io`].
    pub fn keep(&self, node_id: &NodeId, record: &Record) -> Result<(), RecordError> {
        self.make_folder()?;
        let id_path = self.dir.join(NODE_ID);
        let there = self.bytes(&id_path)?.and_then(|bytes| NodeId::from_file(&bytes).ok());
        if there.as_ref() != Some(node_id) {
            self.replace(&id_path, node_id.to_string().as_bytes())?;
        }
        let lock = self.lock_record()?;
        self.keep_record(record, &lock)
    }

    /// Writes the record, if it changed, under its lock. One that cannot be read is kept beside it.
    fn keep_record(&self, record: &Record, _lock: &Held) -> Result<(), RecordError> {
        let path = self.folder().join(RECORD);
        if let Some(old) = self.bytes(&path)?
            && parse(&old, &path).is_err()
        {
            self.replace(&self.folder().join(format!("{RECORD}.unreadable")), &old)?;
        }
        let io =
            |cause: serde_json::Error| RecordError::Io { action: "write", path: path.clone(), cause: cause.into() };
        let mut text = serde_json::to_vec_pretty(record).map_err(io)?;
        text.push(b'\n');
        self.write(&path, &text)
    }

    /// Moves an agent's data into our folder, where one generation is kept; with `identity` its node ID and our record too. What
    /// was moved already, before a kill, stays where it is.
    ///
    /// # Errors
    /// [`RecordError::Io`].
    pub fn set_aside(&self, identity: bool) -> Result<(), RecordError> {
        self.make_folder()?;
        let aside = self.folder().join(ASIDE);
        let io = |action, path: &Path| {
            let path = path.to_owned();
            move |cause| RecordError::Io { action, path, cause }
        };
        let record = self.folder().join(RECORD);
        let ids = [self.dir.join(NODE_ID), record];
        let data = AGENT_DATA.iter().map(|name| self.dir.join(name));
        let all: Vec<PathBuf> = data.chain(ids.into_iter().filter(|_| identity)).filter(|path| path.exists()).collect();
        // Only a whole generation takes the place of another one.
        if self.dir.join("raft").exists() && aside.exists() {
            fs::remove_dir_all(&aside).map_err(io("write", &aside))?;
        }
        match DirBuilder::new().mode(0o700).create(&aside) {
            Err(cause) if cause.kind() == ErrorKind::AlreadyExists => {}
            made => made.map_err(io("make", &aside))?,
        }
        for path in all {
            let Some(name) = path.file_name() else { continue };
            fs::rename(&path, aside.join(name)).map_err(io("write", &path))?;
        }
        sync_folder(&aside)
            .and_then(|()| sync_folder(&self.folder()))
            .and_then(|()| sync_folder(&self.dir))
            .map_err(io("write", &aside))
    }

    /// Changes the record as it stands now: others may have changed it meanwhile, and may do so at this moment. Without a record
    /// nothing is done, and what changes nothing needs neither the lock nor a volume that can be written.
    ///
    /// # Errors
    /// [`RecordError`].
    pub fn change_record(&self, change: impl Fn(&mut Record)) -> Result<(), RecordError> {
        let changed = || {
            let old = self.read()?.record;
            let mut new = old.clone();
            new.iter_mut().for_each(&change);
            Ok(new.filter(|new| old.as_ref() != Some(new)))
        };
        if changed()?.is_none() {
            return Ok(());
        }
        let lock = self.lock_record()?;
        match changed()? {
            Some(record) => self.keep_record(&record, &lock),
            None => Ok(()),
        }
    }

    /// Writes a file as a whole or not at all, unless it holds these bytes already. Mode 0600, owner of the data folder.
    ///
    /// # Errors
    /// [`RecordError::Io`].
    pub fn write(&self, path: &Path, bytes: &[u8]) -> Result<(), RecordError> {
        self.make_folder()?;
        if self.bytes(path)?.as_deref() == Some(bytes) {
            return Ok(());
        }
        self.replace(path, bytes)
    }

    fn replace(&self, path: &Path, bytes: &[u8]) -> Result<(), RecordError> {
        let io = |cause| RecordError::Io { action: "write", path: path.to_owned(), cause };
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        // One for each target, since somebody else may write another one at this moment; in the target's own folder unless that
        // is the data folder, whose other files are Consul's.
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(".tmp");
        let temp = if parent == self.dir { self.folder().join(name) } else { parent.join(name) };
        let written = (|| {
            let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temp)?;
            self.give(&file)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&temp, path)?;
            sync_folder(parent)
        })();
        written.map_err(|cause| {
            // The old file is untouched; a temp file that stays is overwritten by the next try.
            let _ = fs::remove_file(&temp);
            io(cause)
        })
    }

    fn make_folder(&self) -> Result<(), RecordError> {
        let folder = self.folder();
        let io = |cause| RecordError::Io { action: "make", path: folder.clone(), cause };
        match DirBuilder::new().mode(0o700).create(&folder) {
            Ok(()) => {}
            Err(cause) if cause.kind() == ErrorKind::AlreadyExists => {}
            Err(cause) => return Err(io(cause)),
        }
        // Again on every start: the one that made it may have been killed before this line.
        let opened = File::open(&folder).map_err(io)?;
        let meta = opened.metadata().map_err(io)?;
        if (meta.uid(), meta.gid()) != self.owner {
            self.give(&opened).map_err(io)?;
        }
        sync_folder(&self.dir).map_err(io)
    }

    /// Gives a file to whom the data folder belongs. Only root can, and only root has to.
    fn give(&self, file: &File) -> io::Result<()> {
        if !Uid::effective().is_root() || self.owner == (0, 0) {
            return Ok(());
        }
        fchown(file, Some(Uid::from_raw(self.owner.0)), Some(Gid::from_raw(self.owner.1))).map_err(io::Error::from)
    }

    fn bytes(&self, path: &Path) -> Result<Option<Vec<u8>>, RecordError> {
        match fs::read(path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(cause) if cause.kind() == ErrorKind::NotFound => Ok(None),
            Err(cause) => Err(RecordError::Io { action: "read", path: path.to_owned(), cause }),
        }
    }

    /// Whether an agent was started here as a server: raft.db (boltdb), wal/ (1.20 and newer), or a snapshot.
    fn raft_data(&self) -> Result<bool, RecordError> {
        let raft = self.dir.join("raft");
        if raft.join("raft.db").exists() || raft.join("wal").exists() {
            return Ok(true);
        }
        let snapshots = raft.join("snapshots");
        match fs::read_dir(&snapshots) {
            Ok(mut entries) => Ok(entries.next().is_some()),
            Err(cause) if cause.kind() == ErrorKind::NotFound => Ok(false),
            Err(cause) => Err(RecordError::Io { action: "read", path: snapshots, cause }),
        }
    }

    /// A file to lock in our folder, made if it is not there.
    fn lock_file(&self, name: &str) -> Result<File, RecordError> {
        self.make_folder()?;
        let path = self.folder().join(name);
        let io = |cause| RecordError::Io { action: "write", path: path.clone(), cause };
        let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = opened.map_err(io)?;
        self.give(&file).map_err(io)?;
        Ok(file)
    }
}

fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn parse(bytes: &[u8], path: &Path) -> Result<Record, RecordError> {
    let unreadable = |why: String| RecordError::Unreadable { path: path.to_owned(), why };
    let value: serde_json::Value = serde_json::from_slice(bytes).map_err(|error| unreadable(error.to_string()))?;
    match value.get("version").and_then(serde_json::Value::as_u64) {
        Some(version) if version > u64::from(VERSION) => {
            return Err(RecordError::Newer { path: path.to_owned(), version });
        }
        Some(_) => {}
        None => return Err(unreadable("it has no version".to_owned())),
    }
    let record: Record = serde_json::from_value(value).map_err(|error| unreadable(error.to_string()))?;
    match NodeId::parse(&record.node_id) {
        Some(_) => Ok(record),
        None => Err(unreadable("its node_id is not a UUID".to_owned())),
    }
}

// === impl Record ===

impl Record {
    /// Its own Service's address that this server keeps, since it has reached itself there.
    pub fn kept(&self) -> Option<IpAddr> {
        self.advertise.filter(|_| self.stable && self.untried.is_none())
    }

    /// What it tells of the cluster that the data belongs to.
    pub fn memory(&self) -> Memory {
        Memory { cluster: self.cluster.clone(), servers: self.servers.clone() }
    }
}

// === impl Holding ===

impl Holding {
    /// What the decision needs of it.
    pub fn disk(&self) -> Disk {
        let record = self.record.as_ref();
        Disk {
            raft_data: self.raft_data,
            recorded: record.is_some(),
            owner: record.map(|record| record.owner.clone()),
            left: record.is_some_and(|record| record.left),
            earlier_addresses: record.map(|record| record.addresses.iter().copied().collect()).unwrap_or_default(),
            frozen_expect: record.and_then(|record| record.expect),
            formed: record.is_some_and(|record| record.formed),
        }
    }
}

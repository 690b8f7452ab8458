//! Since when do the leader's raft peers list this server? They list voters and non-voters alike, and where no token may ask
//! which we are, only time can tell: autopilot makes a voter of who was well for 10 s.
//!
//! Each probe is a process of its own, so the first sight is kept in `listed.json`, under the kernel's own name of the agent's
//! life (`check::life`) and by the clock since boot: neither another life of the agent, nor another boot, nor a
//! clock that was set makes an old sight count. What a life has earned reaches the next one only if the survey just before
//! that start sees us still listed, which says that nobody removed us meanwhile; a crash that is followed by no survey, or a
//! server that was away for too long to be still listed, begins anew.
//!
//! [`judge`] and [`kept`] are pure. A file that is lost or damaged costs 25 s and nothing else.

use super::{FOLDER, RecordError, Volume};
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a server must have been listed to pass for a voter: autopilot promotes one that was healthy for 10 s
/// (`server_stabilization_time`) when it next looks, every 10 s (`reconcile_interval` of its promotion); measured: 16 s.
pub const LONG_ENOUGH: Duration = Duration::from_secs(25);
/// How soon after the survey before its start an agent must be seen first. It allows for a restore; after it, 25 s are counted.
pub const START: Duration = Duration::from_secs(120);

const FILE: &str = "listed.json";
const TEMP: &str = "listed.tmp";

/// What being listed is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Standing {
    /// Not yet anything.
    New,
    /// Listed for [`LONG_ENOUGH`] in this life.
    Lasting,
    /// It was so in an earlier life, and we were still listed just before this one began.
    Kept,
}

/// What is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// The agent's life in which this was seen; none: the next one.
    pub agent: Option<String>,
    /// The boot that the time belongs to.
    pub boot: String,
    /// When we were first seen listed, or when the survey before the start was, in milliseconds since boot.
    pub since_ms: u64,
    /// Our entry.
    pub address: SocketAddr,
    /// Whose list it was. Another leader's autopilot begins anew with its 10 s.
    pub leader: Option<SocketAddr>,
    /// What it is worth.
    pub standing: Standing,
}

/// A moment of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moment {
    /// The boot's ID.
    pub boot: String,
    /// Milliseconds since boot, of a clock that nobody can set.
    pub ms: u64,
}

/// What a probe sees: the leader lists us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sight<'a> {
    /// The agent's life.
    pub agent: &'a str,
    /// Our entry.
    pub address: SocketAddr,
    /// The leader.
    pub leader: SocketAddr,
}

// === impl Moment ===

impl Moment {
    /// Now.
    ///
    /// # Errors
    /// [`RecordError::Io`] where /proc does not show the boot's ID.
    pub fn now() -> Result<Self, RecordError> {
        let path = Path::new("/proc/sys/kernel/random/boot_id");
        let io = |cause| RecordError::Io { action: "read", path: path.to_owned(), cause };
        let boot = fs::read_to_string(path).map_err(io)?.trim().to_owned();
        let since = clock_gettime(ClockId::CLOCK_MONOTONIC).map_err(|errno| io(errno.into()))?;
        Ok(Self { boot, ms: u64::try_from(Duration::from(since).as_millis()).unwrap_or(u64::MAX) })
    }
}

/// What is to be kept after a sight, given what was kept before it.
pub fn judge(old: Option<&Listed>, now: &Moment, sight: Sight<'_>, long_enough: Duration) -> Listed {
    let first = Listed {
        agent: Some(sight.agent.to_owned()),
        boot: now.boot.clone(),
        since_ms: now.ms,
        address: sight.address,
        leader: Some(sight.leader),
        standing: Standing::New,
    };
    let Some(old) = old.filter(|old| old.boot == now.boot && old.address == sight.address) else { return first };
    let Some(passed) = now.ms.checked_sub(old.since_ms).map(Duration::from_millis) else { return first };
    match (&old.agent, old.standing) {
        (None, Standing::Kept) if passed <= START => {
            Listed { since_ms: old.since_ms, standing: Standing::Kept, ..first }
        }
        (Some(agent), Standing::Lasting | Standing::Kept) if agent == sight.agent => old.clone(),
        (Some(agent), Standing::New) if agent == sight.agent && old.leader == Some(sight.leader) => {
            let standing = if passed >= long_enough { Standing::Lasting } else { Standing::New };
            Listed { standing, ..old.clone() }
        }
        _ => first,
    }
}

/// What the next life of the agent is given, when the survey before its start has seen these lists of raft peers, each of a
/// server that knows a leader.
pub fn kept<'a>(
    old: Option<&Listed>,
    now: &Moment,
    lists: impl IntoIterator<Item = &'a [SocketAddr]>,
) -> Option<Listed> {
    let old = old.filter(|old| old.standing != Standing::New)?;
    let mut lists = lists.into_iter().peekable();
    let listed = lists.peek().is_some() && lists.all(|peers| peers.contains(&old.address));
    listed.then(|| Listed {
        agent: None,
        boot: now.boot.clone(),
        since_ms: now.ms,
        address: old.address,
        leader: None,
        standing: Standing::Kept,
    })
}

// === impl Listed ===

impl Listed {
    /// For how long by now.
    pub fn lasts(&self, now: &Moment) -> Duration {
        Duration::from_millis(now.ms.saturating_sub(self.since_ms))
    }
}

// === impl Volume ===

impl Volume {
    /// What is kept. What cannot be read counts as nothing.
    pub fn listed(&self) -> Option<Listed> {
        serde_json::from_slice(&fs::read(self.listed_file()).ok()?).ok()
    }

    /// Keeps it. Not flushed: after a power failure it counts for nothing, since the boot is another one.
    ///
    /// # Errors
    /// [`RecordError::Io`].
    pub fn keep_listed(&self, listed: &Listed) -> Result<(), RecordError> {
        let (path, temp) = (self.listed_file(), self.dir.join(FOLDER).join(TEMP));
        let io = |cause| RecordError::Io { action: "write", path: path.clone(), cause };
        if !self.folder().is_dir() {
            self.make_folder()?;
        }
        let text = serde_json::to_vec(listed).map_err(|error| io(error.into()))?;
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temp).map_err(io)?;
        self.give(&file).map_err(io)?;
        file.write_all(&text).and_then(|()| fs::rename(&temp, &path)).map_err(io)
    }

    /// Forgets it.
    ///
    /// # Errors
    /// [`RecordError::Io`].
    pub fn forget_listed(&self) -> Result<(), RecordError> {
        match fs::remove_file(self.listed_file()) {
            Err(cause) if cause.kind() != ErrorKind::NotFound => {
                Err(RecordError::Io { action: "remove", path: self.listed_file(), cause })
            }
            _ => Ok(()),
        }
    }

    /// Before an agent's start: hands on what its last life has earned, or forgets it.
    ///
    /// # Errors
    /// [`RecordError::Io`].
    pub fn hand_on_listed<'a>(&self, lists: impl IntoIterator<Item = &'a [SocketAddr]>) -> Result<(), RecordError> {
        let Some(old) = self.listed() else { return self.forget_listed() };
        match Moment::now().ok().and_then(|now| kept(Some(&old), &now, lists)) {
            Some(next) => self.keep_listed(&next),
            None => self.forget_listed(),
        }
    }

    fn listed_file(&self) -> PathBuf {
        self.folder().join(FILE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Moment {
        Moment { boot: "boot".to_owned(), ms: seconds * 1000 }
    }

    fn server(last: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, last], 8300))
    }

    const SIGHT: fn() -> Sight<'static> = || Sight { agent: "a", address: server(1), leader: server(2) };

    fn seen(old: Option<&Listed>, seconds: u64, sight: Sight<'_>) -> Listed {
        judge(old, &at(seconds), sight, LONG_ENOUGH)
    }

    #[test]
    fn a_server_passes_for_a_voter_once_it_was_listed_long_enough_in_one_life() {
        let first = seen(None, 100, SIGHT());
        assert_eq!((first.standing, first.since_ms), (Standing::New, 100_000));
        let soon = seen(Some(&first), 124, SIGHT());
        assert_eq!((soon.standing, soon.since_ms), (Standing::New, 100_000));
        let later = seen(Some(&soon), 125, SIGHT());
        assert_eq!(later.standing, Standing::Lasting);
        // Once it is one, another leader changes nothing.
        let led = seen(Some(&later), 126, Sight { leader: server(3), ..SIGHT() });
        assert_eq!(led, later);
    }

    #[test]
    fn another_life_boot_address_or_clock_begins_anew() {
        for standing in [Standing::New, Standing::Lasting, Standing::Kept] {
            let old = Listed { standing, ..seen(None, 100, SIGHT()) };
            let anew = |listed: Listed| assert_eq!((listed.standing, listed.since_ms), (Standing::New, 200_000));
            anew(seen(Some(&old), 200, Sight { agent: "b", ..SIGHT() }));
            anew(seen(Some(&old), 200, Sight { address: server(9), ..SIGHT() }));
            anew(seen(Some(&Listed { boot: "other".to_owned(), ..old.clone() }), 200, SIGHT()));
            anew(seen(Some(&Listed { since_ms: 200_001, ..old.clone() }), 200, SIGHT()));
            if standing == Standing::New {
                anew(seen(Some(&old), 200, Sight { leader: server(3), ..SIGHT() }));
            }
        }
    }

    #[test]
    fn what_a_life_has_earned_is_handed_on_only_while_every_list_has_us() {
        let (with, without) = ([server(1), server(2)], [server(2)]);
        let earned = Listed { standing: Standing::Lasting, ..seen(None, 100, SIGHT()) };
        let next = kept(Some(&earned), &at(500), [&with[..], &with[..]]).unwrap();
        assert_eq!((&next.agent, next.since_ms, next.standing), (&None, 500_000, Standing::Kept));
        assert_eq!(kept(Some(&earned), &at(500), [&with[..], &without[..]]), None);
        assert_eq!(kept(Some(&earned), &at(500), []), None, "nobody answered");
        assert_eq!(kept(None, &at(500), [&with[..]]), None);
        let new = seen(None, 100, SIGHT());
        assert_eq!(kept(Some(&new), &at(500), [&with[..]]), None, "a non-voter that restarts is still one");
        // The life that comes takes it over, and it alone.
        let taken = seen(Some(&next), 502, Sight { agent: "b", ..SIGHT() });
        assert_eq!((taken.agent.as_deref(), taken.standing), (Some("b"), Standing::Kept));
        assert_eq!(seen(Some(&taken), 600, Sight { agent: "b", ..SIGHT() }).standing, Standing::Kept);
        assert_eq!(seen(Some(&taken), 600, Sight { agent: "c", ..SIGHT() }).standing, Standing::New);
        // And it can be handed on again.
        assert!(kept(Some(&taken), &at(900), [&with[..]]).is_some());
        // One that nobody took in time is void.
        assert_eq!(seen(Some(&next), 500 + START.as_secs() + 1, SIGHT()).standing, Standing::New);
    }

    #[test]
    fn it_is_kept_on_the_volume_and_damage_counts_as_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let volume = Volume::open(folder.path(), false).unwrap();
        assert_eq!(volume.listed(), None);
        volume.forget_listed().unwrap();
        let listed = seen(None, 100, SIGHT());
        volume.keep_listed(&listed).unwrap();
        assert_eq!(volume.listed(), Some(listed));
        fs::write(volume.listed_file(), "{").unwrap();
        assert_eq!(volume.listed(), None);
        volume.hand_on_listed([&[server(1)][..]]).unwrap();
        assert!(!volume.listed_file().exists());
    }

    #[test]
    fn the_clock_goes_forward() {
        let (one, two) = (Moment::now().unwrap(), Moment::now().unwrap());
        assert!(one.boot == two.boot && one.ms <= two.ms && one.ms > 0);
    }
}

//! Is the data folder a place where a server can keep what it promised? Beside an agent, with its volume mounted.
//!
//! Takes the folder, gives [`Seen`] and judges it; the judgement is pure. Writes one temp file in convene's folder, for as long as it takes
//! to flush it some times, and removes it. A disk that hangs is a finding too: it is not waited for.

use super::finding::{Finding, Report};
use crate::record::{FOLDER, Volume};
use crate::settings::Local;
use nix::sys::statfs::{self, FsType};
use nix::sys::statvfs::statvfs;
use nix::unistd::{AccessFlags, Uid, access};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::time::timeout;

const FOLDER_CHECK: &str = "data-folder";
const SPACE: &str = "data-space";
const FSYNC: &str = "data-fsync";
const FILE_SYSTEM: &str = "data-file-system";
const PEERS_JSON: &str = "peers-json";

/// Each check's name and what it finds, as README's table has them.
pub const CHECKS: &[(&str, &str)] = &[
    (FOLDER_CHECK, "the data folder is missing, cannot be written, belongs to another user, or a strange agent has it"),
    (SPACE, "the volume has less than 1 GiB and less than a tenth of it free"),
    (FSYNC, "the disk takes more than 50 ms to keep 4 kB (the median of five)"),
    (FILE_SYSTEM, "in a Pod the data folder lies in memory, or on the container's own disk"),
    (PEERS_JSON, "a `raft/peers.json` is left, which the next start would act on"),
];

/// Less than this, and less than a tenth of the volume: Consul's snapshots and logs of a small cluster fit in some 100 MB, and a
/// large volume that is nearly full still has room for a day.
const LEAST_FREE: u64 = 1 << 30;
/// etcd, whose log is written in the same way, advises 10 ms for 99 of 100 (<https://etcd.io/docs/v3.5/faq/>). Five times that in the
/// middle is a disk on which each write waits, and a busy leader loses its followers.
const SLOW: Duration = Duration::from_millis(50);
/// How often the disk is asked to keep something.
const FLUSHES: usize = 5;
/// How long all of it may take.
const PATIENCE: Duration = Duration::from_millis(1500);

/// What was seen of the data folder.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// The server whose folder it is.
    pub name: String,
    /// The folder.
    pub dir: PathBuf,
    /// Why it cannot be used at all.
    pub unusable: Option<String>,
    /// Why a file could not be written.
    pub unwritable: Option<String>,
    /// What in it we may not read and write.
    pub foreign: Vec<PathBuf>,
    /// Our own user.
    pub uid: u32,
    /// Free and all bytes, as our user sees them.
    pub space: Option<(u64, u64)>,
    /// The times that the flushes took; none: they did not end in time.
    pub flushes: Vec<Duration>,
    /// The kind of its file system, if that forgets: `tmpfs`, `overlay`.
    pub forgets: Option<&'static str>,
    /// It lies on the same file system as the root.
    pub on_root: bool,
    /// We are in a Pod.
    pub in_pod: bool,
    /// `raft/peers.json` is there; whether `raft/peers.info`, without which Consul throws it away, is there too.
    pub peers_json: Option<bool>,
    /// An agent has its log open, and ours does not answer.
    pub strange_agent: bool,
}

/// Looks at the folder. `answers`: our agent does.
pub async fn look(local: &Local, answers: bool) -> Seen {
    let start = Seen {
        name: local.node_name.clone(),
        dir: local.data_dir.clone(),
        in_pod: local.pod_uid.is_some(),
        uid: Uid::effective().as_raw(),
        ..Seen::default()
    };
    let mut seen = start.clone();
    let looking = tokio::task::spawn_blocking(move || {
        seen.look(answers);
        seen
    });
    match timeout(PATIENCE, looking).await {
        Ok(Ok(seen)) => seen,
        _ => Seen {
            unwritable: Some(format!("the disk did not answer within {}", crate::time::text(PATIENCE))),
            ..start
        },
    }
}

// === impl Seen ===

impl Seen {
    fn look(&mut self, answers: bool) {
        let volume = match Volume::open(&self.dir, false) {
            Ok(volume) => volume,
            Err(error) => {
                self.unusable = Some(error.to_string());
                return;
            }
        };
        self.on_root = !volume.is_mount();
        self.strange_agent = !answers && volume.has_agent().unwrap_or(false);
        let parts = ["node-id", "raft", "serf", FOLDER, "convene/record.json"].map(|name| self.dir.join(name));
        let ours = |path: &PathBuf| access(path.as_path(), AccessFlags::R_OK | AccessFlags::W_OK).is_ok();
        self.foreign = parts.into_iter().filter(|path| path.exists() && !ours(path)).collect();
        self.space = statvfs(&self.dir).ok().map(|found| {
            let unit = found.fragment_size();
            (found.blocks_available() * unit, found.blocks() * unit)
        });
        self.forgets = statfs::statfs(&self.dir).ok().and_then(|found| forgetting(found.filesystem_type()));
        let raft = self.dir.join("raft");
        self.peers_json = raft.join("peers.json").exists().then(|| raft.join("peers.info").exists());
        let folder = volume.folder();
        // A new volume has no folder of ours yet, and none is made.
        let within = if folder.is_dir() { folder } else { self.dir.clone() };
        match flush(&within) {
            Ok(flushes) => self.flushes = flushes,
            Err(error) => self.unwritable = Some(format!("could not write into {}: {error}", within.display())),
        }
    }
}

fn forgetting(kind: FsType) -> Option<&'static str> {
    [(statfs::TMPFS_MAGIC, "tmpfs"), (statfs::OVERLAYFS_SUPER_MAGIC, "overlay")]
        .into_iter()
        .find_map(|(of, name)| (of == kind).then_some(name))
}

/// Has the disk keep 4 kB some times.
fn flush(folder: &Path) -> std::io::Result<Vec<Duration>> {
    let path = folder.join(format!("doctor.{}.tmp", std::process::id()));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
    let times = (0..FLUSHES).map(|_| flush_once(&mut file)).collect();
    fs::remove_file(&path)?;
    times
}

fn flush_once(file: &mut File) -> std::io::Result<Duration> {
    let begun = Instant::now();
    file.write_all(&[0; 4096])?;
    file.sync_data()?;
    Ok(begun.elapsed())
}

/// Judges what was seen.
pub fn check(seen: &Seen, report: &mut Report) {
    let subject = format!("server {}", seen.name);
    let dir = seen.dir.display();
    report.looked.push(FOLDER_CHECK);
    let mut found = |check, what: String, why: &str, mend: String| {
        report.findings.push(Finding { check, subject: subject.clone(), what, why: why.to_owned(), mend });
    };
    if let Some(what) = &seen.unusable {
        found(
            FOLDER_CHECK,
            what.clone(),
            "a server without its volume forgets what it promised",
            format!("volumeMounts: [{{name: data, mountPath: {dir}}}]"),
        );
        return;
    }
    if let Some(what) = &seen.unwritable {
        let mend = format!(
            "securityContext: {{runAsUser: {0}, fsGroup: 1000}}    # of the Pod; or free space, mount it writable, or see to the disk",
            seen.uid
        );
        found(FOLDER_CHECK, what.clone(), "Consul cannot keep its data there, and ends", mend);
    } else if !seen.foreign.is_empty() {
        let list = seen.foreign.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ");
        let what = format!("user {} may not read and write {list}", seen.uid);
        let mend = format!(
            "chown -R {} {dir}    # as root, in a Pod that mounts the volume; and one runAsUser for all containers",
            seen.uid
        );
        found(FOLDER_CHECK, what, "convene and Consul share these files, and must run as one user", mend);
    }
    if seen.strange_agent {
        let what = format!("an agent runs on {dir} (its log is locked), and none answers at this Pod's address");
        let mend = "kubectl exec NAME -- env | grep CONSUL_HTTP_ADDR    # where convene looks for it\nkubectl get pods -o wide                            # an old Pod that lives out its grace period has the volume still";
        found(
            FOLDER_CHECK,
            what,
            "no second agent can start on this volume, and nobody can ask the first",
            mend.replace("NAME", &seen.name),
        );
    }
    space(seen, report, &subject);
    fsync(seen, report, &subject);
    file_system(seen, report, &subject);
    peers_json(seen, report, &subject);
}

fn space(seen: &Seen, report: &mut Report, subject: &str) {
    let Some((free, all)) = seen.space.filter(|(_, all)| *all > 0) else { return };
    report.looked.push(SPACE);
    if free >= LEAST_FREE || free >= all / 10 {
        return;
    }
    report.findings.push(Finding {
        check: SPACE,
        subject: subject.to_owned(),
        what: format!("{} has {} MiB free of {} MiB", seen.dir.display(), free >> 20, all >> 20),
        why: "a full disk ends the agent, and on all servers at about the same time".to_owned(),
        mend: format!(
            "kubectl patch pvc data-{} --type=merge -p '{{\"spec\": {{\"resources\": {{\"requests\": {{\"storage\": \"{}Mi\"}}}}}}}}'",
            seen.name,
            (all >> 20) * 2
        ),
    });
}

fn fsync(seen: &Seen, report: &mut Report, subject: &str) {
    let mut times = seen.flushes.clone();
    times.sort();
    let Some(median) = times.get(times.len() / 2) else { return };
    report.looked.push(FSYNC);
    if *median <= SLOW {
        return;
    }
    report.findings.push(Finding {
        check: FSYNC,
        subject: subject.to_owned(),
        what: format!("the disk takes {} to keep 4 kB in {}", crate::time::text(*median), seen.dir.display()),
        why: "every write waits for that on a majority of the servers, and a leader that waits too long is voted out"
            .to_owned(),
        mend: "storageClassName: …    # of volumeClaimTemplates: a class of local or SSD disks, shared with nobody"
            .to_owned(),
    });
}

fn file_system(seen: &Seen, report: &mut Report, subject: &str) {
    if !seen.in_pod {
        return;
    }
    report.looked.push(FILE_SYSTEM);
    let what = match seen.forgets {
        Some(kind) => format!("{} is on {kind}", seen.dir.display()),
        None if seen.on_root => format!("{} is on the container's own disk", seen.dir.display()),
        None => return,
    };
    report.findings.push(Finding {
        check: FILE_SYSTEM,
        subject: subject.to_owned(),
        what,
        why: "the data goes with the Pod: each restart is a server that lost its disk, and with all of them the cluster's data is lost".to_owned(),
        mend: format!(
            "volumeClaimTemplates:\n  - metadata: {{name: data}}\n    spec: {{accessModes: [ReadWriteOnce], resources: {{requests: {{storage: 1Gi}}}}}}\n# and volumeMounts: [{{name: data, mountPath: {}}}]",
            seen.dir.display()
        ),
    });
}

fn peers_json(seen: &Seen, report: &mut Report, subject: &str) {
    report.looked.push(PEERS_JSON);
    let Some(counts) = seen.peers_json else { return };
    let file = seen.dir.join("raft/peers.json");
    let why = match counts {
        true => {
            "the next start of this agent makes its raft configuration from it: right for a recovery, and else a second cluster"
        }
        false => {
            "the next start of this agent throws it away without a word, since raft/peers.info is missing: nothing would be recovered"
        }
    };
    report.findings.push(Finding {
        check: PEERS_JSON,
        subject: subject.to_owned(),
        what: format!("{} is there", file.display()),
        why: why.to_owned(),
        mend: format!(
            "kubectl exec {0} -- cat {1}    # is it that of a recovery that is under way?\nkubectl exec {0} -- rm {1}     # when it is not",
            seen.name,
            file.display()
        ),
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn healthy() -> Seen {
        Seen {
            name: "consul-server-1".to_owned(),
            dir: "/consul/data".into(),
            uid: 100,
            space: Some((900 << 20, 1 << 30)),
            flushes: vec![Duration::from_millis(3); FLUSHES],
            in_pod: true,
            ..Seen::default()
        }
    }

    #[track_caller]
    fn gives(seen: Seen, wanted: &[(&str, &str)]) {
        let mut report = Report::default();
        check(&seen, &mut report);
        let found: Vec<(&str, &str)> = report.findings.iter().map(|found| (found.check, found.what.as_str())).collect();
        assert_eq!(found.len(), wanted.len(), "{found:?}");
        for ((check, what), (wanted, part)) in found.iter().zip(wanted) {
            assert!(check == wanted && what.contains(part), "{check}: {what}");
        }
        assert!(
            report.findings.iter().all(|found| found.subject == "server consul-server-1" && !found.mend.is_empty())
        );
    }

    #[test]
    fn a_healthy_folder_gives_no_finding_and_each_fault_gives_its_own() {
        gives(healthy(), &[]);
        for (seen, check, part) in [
            (Seen { unusable: Some("it does not exist".to_owned()), ..healthy() }, FOLDER_CHECK, "does not exist"),
            (
                Seen { unwritable: Some("could not write".to_owned()), flushes: vec![], ..healthy() },
                FOLDER_CHECK,
                "could not write",
            ),
            (
                Seen { foreign: vec!["/consul/data/raft".into()], ..healthy() },
                FOLDER_CHECK,
                "user 100 may not read and write /consul/data/raft",
            ),
            (Seen { strange_agent: true, ..healthy() }, FOLDER_CHECK, "an agent runs on /consul/data"),
            (Seen { space: Some((99 << 20, 1 << 30)), ..healthy() }, SPACE, "99 MiB free of 1024 MiB"),
            (Seen { flushes: [1, 60, 2, 70, 51].map(Duration::from_millis).to_vec(), ..healthy() }, FSYNC, "51 ms"),
            (Seen { forgets: Some("tmpfs"), ..healthy() }, FILE_SYSTEM, "is on tmpfs"),
            (Seen { on_root: true, ..healthy() }, FILE_SYSTEM, "the container's own disk"),
            (Seen { peers_json: Some(true), ..healthy() }, PEERS_JSON, "/consul/data/raft/peers.json is there"),
            (Seen { peers_json: Some(false), ..healthy() }, PEERS_JSON, "peers.json"),
        ] {
            gives(seen, &[(check, part)]);
        }
    }

    #[test]
    fn what_is_usual_is_no_finding() {
        gives(Seen { space: Some((2 << 30, 100 << 30)), ..healthy() }, &[]);
        gives(Seen { forgets: Some("overlay"), on_root: true, in_pod: false, ..healthy() }, &[]);
        gives(Seen { flushes: [1, 50, 60].map(Duration::from_millis).to_vec(), ..healthy() }, &[]);
    }

    #[test]
    fn a_real_folder_is_looked_at_and_left_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("raft")).unwrap();
        fs::write(folder.path().join("raft/peers.json"), "[]").unwrap();
        let mut seen = Seen { dir: folder.path().to_owned(), ..Seen::default() };
        seen.look(true);
        assert!(seen.unusable.is_none() && seen.unwritable.is_none() && seen.foreign.is_empty(), "{seen:?}");
        assert_eq!((seen.flushes.len(), seen.peers_json), (FLUSHES, Some(false)));
        assert!(seen.space.is_some_and(|(_, all)| all > 0));
        let left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["raft"]);
        let mut missing = Seen { dir: folder.path().join("gone"), ..Seen::default() };
        missing.look(true);
        assert!(missing.unusable.unwrap().contains("does not exist"));
    }

    #[test]
    fn an_agent_that_does_not_answer_is_told_by_its_locked_log() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("raft")).unwrap();
        let log = File::create(folder.path().join("raft/raft.db")).unwrap();
        let running = nix::fcntl::Flock::lock(log, nix::fcntl::FlockArg::LockExclusiveNonblock).unwrap();
        let looked = |answers| {
            let mut seen = Seen { dir: folder.path().to_owned(), ..Seen::default() };
            seen.look(answers);
            seen.strange_agent
        };
        assert!(looked(false) && !looked(true));
        drop(running);
        assert!(!looked(false));
    }
}

//! What is done once every gate is open, one step after the other. Each is done again without harm after a crash, and nothing of
//! raft's is touched but peers.json, which Consul's own start takes.
//!
//! Takes the facts and the new raft configuration, says each step as it is done. The notes come first, so that nobody else begins
//! another recovery; then what was there is kept; then peers.json; the agent's end is last, since it may end the container, and
//! this program in it. Never leaves, never touches raft's log, never deletes what it kept. Fails with [`RecoverError`], and the
//! next call goes on where this one ended.

use super::facts::Facts;
use super::{RecoverError, World};
use crate::claim::Step;
use crate::process::field;
use crate::record::recovering::{Copied, Kept, Pending};
use crate::settings::recovering::Peer;
use crate::time;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use std::io::Write;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// How long a snapshot may take: a cluster's state is some hundred MB at most.
const SNAPSHOT: Duration = Duration::from_secs(300);
/// What it is kept as.
const STATE: &str = "snapshot.gz";
/// How long an agent that was told to end may take: Consul 1.22.6 needs 0.01 to 0.2 s (110 runs without a leader), and hung once in
/// about 30 recoveries.
const ENDS: Duration = Duration::from_secs(3);
/// How long a leader may take after that: the agent's start and an election at `raft_multiplier` 5.
const LEADS: Duration = Duration::from_secs(60);
/// How often either is looked at.
const LOOK: Duration = Duration::from_millis(100);

/// Does all of it.
///
/// # Errors
/// [`RecoverError`].
pub(super) async fn steps(
    world: &World,
    facts: &Facts,
    list: &[Peer],
    say: &mut impl FnMut(&str),
) -> Result<(), RecoverError> {
    note_in_the_claim(world, list, say).await?;
    let pending = world.volume.note_pending(list)?;
    say(&format!("noted on the volume: recovery {}", pending.number));
    let kept = Kept::of(&world.volume, &pending)?;
    keep_state(world, facts, &kept, say).await?;
    keep_configuration(world, facts, &kept, &pending).await?;
    say(&format!("kept what was there in {}", kept.folder.display()));
    world.volume.place_peers(list)?;
    say(&format!("wrote {}: {}", world.volume.peers_file().display(), shown(list)));
    end(world, say).await
}

/// The list as it is said.
pub(super) fn shown(list: &[Peer]) -> String {
    list.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

async fn note_in_the_claim(world: &World, list: &[Peer], say: &mut impl FnMut(&str)) -> Result<(), RecoverError> {
    let Some(claims) = &world.claims else {
        say("not noted in the claim: none is kept, so nobody else sees this recovery");
        return Ok(());
    };
    let told = claims.statefulset().await.map_err(RecoverError::Claim)?;
    let step = Step::Recover { peers: list.iter().map(ToString::to_string).collect() };
    match claims.write(told.as_ref(), &step, None).await.map_err(RecoverError::Claim)? {
        true => say(&format!("noted in the claim {}", claims.name())),
        false => return Err(RecoverError::Overtaken { claim: claims.name() }),
    }
    Ok(())
}

/// Keeps the state: as a snapshot of the agent, else as a copy of raft's files, else says why not.
async fn keep_state(world: &World, facts: &Facts, kept: &Kept, say: &mut impl FnMut(&str)) -> Result<(), RecoverError> {
    if kept.has(STATE) {
        say("a snapshot was taken already");
        return Ok(());
    }
    let mut why = "no agent runs".to_owned();
    if facts.us.runs {
        let mut file = kept.begin(STATE)?;
        match world.agent.snapshot(SNAPSHOT, |piece| file.write_all(piece)).await {
            Ok(bytes) => {
                kept.finish(STATE, &file)?;
                say(&format!("took a snapshot: {} ({bytes} bytes)", kept.folder.join(STATE).display()));
                return Ok(());
            }
            Err(error) => {
                kept.give_up(STATE);
                let needs = if error.is_denied() { "; it needs a token with acl = \"write\"" } else { "" };
                why = format!("{error}{needs}");
            }
        }
    }
    // Without a leader nothing is appended to the log, so even a running agent's files hardly change.
    let running = if facts.us.runs { ", as they are while the agent runs" } else { "" };
    say(&match kept.raft()? {
        Copied::Whole(bytes) => format!("took no snapshot ({why}); copied raft's files ({bytes} bytes{running})"),
        Copied::NoRoom(bytes) => format!(
            "took no snapshot ({why}), nor a copy of raft's files: they have {bytes} bytes, and the volume has no room for twice as many"
        ),
    });
    Ok(())
}

/// Keeps the raft configuration, and the agent's own files about it.
async fn keep_configuration(world: &World, facts: &Facts, kept: &Kept, pending: &Pending) -> Result<(), RecoverError> {
    let told = if facts.us.runs { world.agent.own_raft_configuration().await.ok() } else { None };
    let known = || json!({"peers": facts.us.peers}).to_string().into_bytes();
    kept.text("configuration.json", &told.unwrap_or_else(known))?;
    kept.file(&world.volume.info_file())?;
    // One of an earlier hand; ours is not kept as if it had been there before.
    let ours = std::fs::read(world.volume.peers_file()).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
    if ours.and_then(|ours| Peer::from_json(&ours)).is_none_or(|ours| ours != pending.peers) {
        kept.file(&world.volume.peers_file())?;
    }
    Ok(())
}

/// Whether `convene run` started the agent, and starts it again; else its container ends with it, and this program.
fn is_supervised(agent: Pid) -> bool {
    let stat = std::fs::read(format!("/proc/{agent}/stat")).unwrap_or_default();
    let Some(parent) = field::<i32>(&stat, 4) else { return false };
    std::fs::read_to_string(format!("/proc/{parent}/comm")).is_ok_and(|name| name.trim_end() == "convene")
}

/// Ends the agent, so that it starts anew and takes peers.json.
async fn end(world: &World, say: &mut impl FnMut(&str)) -> Result<(), RecoverError> {
    let pod = &world.local.owner.pod;
    if !world.volume.has_agent()? {
        say(&format!(
            "its agent does not run, and takes the file when it starts: take the hold away (kubectl annotate pod {pod} \
             convene.dev/hold-), or start Pod {pod} again; once it leads, servers with empty disks join by themselves"
        ));
        return Ok(());
    }
    let Some(pid) = world.volume.agent_pid() else {
        return Err(RecoverError::NotEnded { pod: pod.clone(), why: "it is no process of this container".to_owned() });
    };
    let signal = |signal| {
        let why = |errno: Errno| RecoverError::NotEnded { pod: pod.clone(), why: errno.to_string() };
        match kill(pid, signal) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(errno) => Err(why(errno)),
        }
    };
    if !is_supervised(pid) {
        // With it this program ends too, so this is said before.
        say(
            "ending the agent, and with it this container, which Kubernetes starts again: see kubectl get pods; once it leads, \
             servers with empty disks join by themselves",
        );
        return signal(Signal::SIGTERM);
    }
    say(&format!("ending the agent (process {pid}), which starts again by itself"));
    signal(Signal::SIGTERM)?;
    let begun = Instant::now();
    while kill(pid, None).is_ok() {
        if begun.elapsed() > ENDS {
            // Nothing on its disk minds it, and its shutdown hangs now and then.
            signal(Signal::SIGKILL)?;
        }
        sleep(LOOK).await;
    }
    while begun.elapsed() < LEADS {
        if let Ok(Some(leader)) = world.agent.leader().await
            && !world.volume.peers_file().exists()
        {
            let took = time::text(begun.elapsed());
            say(&format!("recovered: leader {leader} after {took}; servers with empty disks join by themselves"));
            return Ok(());
        }
        sleep(LOOK).await;
    }
    let within = time::text(LEADS);
    say(&format!("no leader is known after {within}: see the agent's log, and call convene recover again"));
    Ok(())
}

//! Brings a cluster back that has lost its quorum: this server gets a raft configuration with which it can lead alone, or with those
//! of a list, by Consul's own peers.json (<https://developer.hashicorp.com/consul/tutorials/operate-consul/recovery-outage>).
//!
//! Takes the volume, the agent on it where one runs, the survey and the claim. Says what each server's volume and agent tell, who
//! came furthest, every gate ([`mod@gates`]) with its facts, and what would be done; does it only when told to, and only when all
//! gates are open. What is done once is not done again: a second call goes on where the first one ended. It works where the volume
//! is: in the Pod of the server, whether its agent runs, waits or is held, or in another Pod that mounts it. [`remove`] is for the
//! time after. Fails with [`RecoverError`].

pub mod facts;
pub mod gates;
mod others;
pub mod remove;
mod steps;

use crate::api::consul::{Agent, ApiError};
use crate::api::kube::KubeError;
use crate::claim::Claims;
use crate::exit::Code;
use crate::record::lock::Lock;
use crate::record::{RecordError, Volume};
use crate::settings::recovering::{Peer, Recovery};
use crate::settings::{Local, Survey as Settings};
use crate::survey::Surveyor;
use crate::survey::dns::Dns;
use facts::{Facts, Other, State, look};
use gates::{Shut, gates};
use remove::Kept;
use steps::{shown, steps};
use thiserror::Error;

/// What a recovery works with.
#[derive(Debug)]
pub struct World {
    /// Who we are.
    pub local: Local,
    /// Who is asked, and how.
    pub settings: Settings,
    /// The volume.
    pub volume: Volume,
    /// The agent on it, where one runs.
    pub agent: Agent,
    /// Looks for the others.
    pub surveyor: Surveyor,
    /// Resolves the own Service's name.
    pub dns: Dns,
    /// Where the claim is kept, if one is.
    pub claims: Option<Claims>,
}

/// Why nothing, or not all, was done.
#[derive(Debug, Error)]
pub enum RecoverError {
    /// A gate is shut.
    #[error("nothing was changed, since a gate is shut: {0}")]
    Shut(Shut),
    /// A gate of a removal is shut.
    #[error("nobody was removed, since a gate is shut: {0}")]
    Kept(Kept),
    /// Somebody changed the claim at the same moment.
    #[error(
        "nothing was changed: the claim {claim} was changed at this moment, perhaps by another recovery; call it again"
    )]
    Overtaken {
        /// Its name.
        claim: String,
    },
    /// The claim cannot be read or written.
    #[error("could not note the recovery: {0}; nothing was changed")]
    Claim(String),
    /// The volume cannot be used.
    #[error(transparent)]
    Volume(#[from] RecordError),
    /// The agent runs on.
    #[error(
        "peers.json is written, and could not end the agent: {why}; call convene recover in its own container, or delete the Pod: kubectl delete pod {pod}"
    )]
    NotEnded {
        /// The Pod.
        pod: String,
        /// Why.
        why: String,
    },
    /// Consul does not tell, or does not let us.
    #[error("could not {what}: {cause}{}", needs(.cause))]
    Consul {
        /// What was tried.
        what: String,
        /// What the agent said.
        #[source]
        cause: ApiError,
    },
    /// Kubernetes does not tell.
    #[error("could not tell whether the Pod is gone: {0}")]
    Kubernetes(#[from] KubeError),
    /// It is still there.
    #[error("could not remove {who}: the leader still lists it after {}", crate::time::text(*.waited))]
    StillThere {
        /// Who.
        who: String,
        /// For how long that was waited for.
        waited: std::time::Duration,
    },
}

fn needs(cause: &ApiError) -> &'static str {
    if cause.is_denied() { "; the token (CONSUL_HTTP_TOKEN_FILE) needs the policy operator = \"write\"" } else { "" }
}

// === impl RecoverError ===

impl RecoverError {
    /// The exit code.
    pub fn code(&self) -> Code {
        match self {
            Self::Shut(_) | Self::Kept(_) | Self::Overtaken { .. } => Code::NotNow,
            Self::Volume(error) => error.code(),
            Self::Claim(_)
            | Self::NotEnded { .. }
            | Self::Consul { .. }
            | Self::Kubernetes(_)
            | Self::StillThere { .. } => Code::Unavailable,
        }
    }
}

/// Says what is there and what would be done, and does it when told to.
///
/// # Errors
/// [`RecoverError`].
pub async fn recover(world: &mut World, recovery: &Recovery, say: &mut impl FnMut(&str)) -> Result<(), RecoverError> {
    let facts = look(world, recovery).await?;
    table(&facts, say);
    let list = match (&facts.us.peer, recovery.peers.as_slice()) {
        (Ok(us), []) => vec![us.clone()],
        (_, given) => given.to_vec(),
    };
    if is_done(world, &facts, &list)? {
        say(
            "already recovered: Consul has taken peers.json; once it leads, servers with empty disks join by themselves",
        );
        return Ok(());
    }
    let mut first = None;
    for (gate, answer) in (1..).zip(gates(&facts, &list)) {
        match answer {
            Ok(open) => say(&format!("gate {gate} ok: {open}")),
            Err(shut) => {
                say(&format!("REFUSED {shut}"));
                first = first.or(Some(shut));
            }
        }
    }
    if let Some(shut) = first {
        return Err(RecoverError::Shut(shut));
    }
    if recovery.yes {
        // From here on no agent may start on the volume, unless convene in its own Pod has it already.
        let _lock = world.volume.try_lock(Lock::Agent)?;
        return steps(world, &facts, &list, say).await;
    }
    plan(world, &facts, &list, say);
    Ok(())
}

/// Whether this very recovery has come to its end, but for what is noted of it.
fn is_done(world: &World, facts: &Facts, list: &[Peer]) -> Result<bool, RecordError> {
    let pending = world.volume.pending()?.filter(|pending| pending.peers == list);
    if pending.is_none() || !facts.us.runs || world.volume.peers_file().exists() {
        return Ok(false);
    }
    let mut peers: Vec<_> = list.iter().map(|peer| peer.address).collect();
    peers.sort();
    Ok(facts.us.peers == peers)
}

/// What would be done.
fn plan(world: &World, facts: &Facts, list: &[Peer], say: &mut impl FnMut(&str)) {
    let (volume, folder) = (&world.volume, world.volume.folder());
    say("would do, with --yes:");
    match &world.claims {
        Some(claims) => say(&format!("  note the recovery in the claim {} and on the volume", claims.name())),
        None => say("  note the recovery on the volume; no claim is kept, so nobody else sees it"),
    }
    let state =
        if facts.us.runs { "take a snapshot by the agent (else copy raft's files)" } else { "copy raft's files" };
    say(&format!("  {state}, and keep what is there of the raft configuration, in {}/recovered-…", folder.display()));
    say(&format!("  write {}: {}", volume.peers_file().display(), shown(list)));
    match (facts.us.runs, facts.us.pid) {
        (true, Some(pid)) => say(&format!("  end the agent (process {pid}), which starts again and takes the file")),
        (true, None) => {
            say("  not end the agent, which is no process of this container: call this in its own container")
        }
        (false, _) => say("  nothing more: the agent takes the file when it starts"),
    }
    say("nothing was changed; --yes does it");
}

/// What each server's volume and agent say.
fn table(facts: &Facts, say: &mut impl FnMut(&str)) {
    let us = &facts.us;
    let text = |peers: &[std::net::SocketAddr]| {
        let all = peers.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        if all.is_empty() { String::new() } else { format!("; raft peers {all}") }
    };
    let agent = match (us.runs, us.raft_data, us.leader) {
        (true, _, Some(leader)) => format!("its agent runs and knows leader {leader}"),
        (true, _, None) => "its agent runs and knows no leader".to_owned(),
        (false, true, _) => "raft data, and no agent runs".to_owned(),
        (false, false, _) => "no raft data".to_owned(),
    };
    let last = us.last.map(|last| format!("; log {last} (term/index)")).unwrap_or_default();
    let silent = us.silent.as_ref().map(|why| format!(" ({why})")).unwrap_or_default();
    let peer = us.peer.as_ref().map(|peer| format!("; --peer={peer}")).unwrap_or_default();
    say(&format!("{} (this server): {agent}{last}{silent}{}{peer}", us.name, text(&us.peers)));
    for other in &facts.others {
        let Other { name, node_id, state, last, peers, pod, mend: _ } = other;
        let state = match state {
            State::Stopped(why) => format!("stopped: {why}"),
            State::Empty => "its agent runs and is in no cluster".to_owned(),
            State::Isolated | State::Runs => "its agent runs and knows no leader".to_owned(),
            State::Led(leader) => format!("its agent knows leader {leader}"),
            State::Vouched(why) | State::Unknown(why) => format!("unknown: {why}"),
        };
        let last = match last {
            Some(Ok(last)) => format!("; log {last}"),
            Some(Err(why)) => format!("; log unknown ({why})"),
            None => String::new(),
        };
        let id = node_id.as_ref().map(|id| format!("; node ID {id}")).unwrap_or_default();
        let pod = if pod.is_empty() { String::new() } else { format!(" ({pod})") };
        say(&format!("{name}{pod}: {state}{last}{id}{}", text(peers)));
    }
    if let Some(survivor) = facts.survivor() {
        say(&format!("most data, of what can be read: {survivor}"));
    }
}

//! What do this server's volume and agent say, and what is known of every other server?
//!
//! Takes the volume, the agent on it, and the survey; gives [`Facts`]. Reads and asks, and changes nothing. What cannot be told is
//! a field of it: only an unreadable volume is an error. Every server that was ever one counts: the StatefulSet's ordinals and what
//! the sources name, and the addresses that this server's own raft configuration and record still have.

use super::others::others;
use super::{RecoverError, World};
use crate::api::consul::AgentSelf;
use crate::record::recovering::Last;
use crate::record::{Holding, RecordError};
use crate::settings::Stable;
use crate::settings::recovering::{Peer, Recovery};
use crate::settings::source::Source;
use crate::survey::own::service_address;
use crate::survey::statefulset::Shape;
use crate::survey::{self, Survey};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// How long an agent may take to describe itself, which has no leader.
pub(super) const PATIENT: Duration = Duration::from_secs(40);

/// All that is known before anything is done.
#[derive(Debug, Clone)]
pub struct Facts {
    /// This server.
    pub us: Us,
    /// The others, by name.
    pub others: Vec<Other>,
    /// Why there may be servers that nobody named.
    pub blind: Vec<String>,
    /// A recovery that was begun.
    pub pending: Noted,
}

/// This server.
#[derive(Debug, Clone)]
pub struct Us {
    /// Its Pod's name, else the node's.
    pub name: String,
    /// An agent was started here as a server.
    pub raft_data: bool,
    /// Where peers.info is.
    pub info_file: String,
    /// It is there.
    pub has_info: bool,
    /// The file that keeps an agent from starting, which is the same in each Pod.
    pub hold_file: String,
    /// Its node ID and its address as they are now, or why they are not known.
    pub peer: Result<Peer, String>,
    /// How far its log came.
    pub last: Option<Last>,
    /// Its raft peers.
    pub peers: Vec<SocketAddr>,
    /// The leader that its agent knows.
    pub leader: Option<SocketAddr>,
    /// Its agent runs on the volume.
    pub runs: bool,
    /// That process, where it is one of this container.
    pub pid: Option<Pid>,
    /// Its agent runs and does not say whether it knows a leader, and why.
    pub deaf: Option<String>,
    /// Its agent does not say how far its log came, and why.
    pub silent: Option<String>,
}

/// Another server.
#[derive(Debug, Clone)]
pub struct Other {
    /// Its name, else its address.
    pub name: String,
    /// Its node ID, where its agent tells it.
    pub node_id: Option<String>,
    /// How it is.
    pub state: State,
    /// How far its log came, or why its agent does not say; `None`: no agent with data runs there.
    pub last: Option<Result<Last, String>>,
    /// Its raft peers.
    pub peers: Vec<SocketAddr>,
    /// What Kubernetes says of its Pod.
    pub pod: String,
    /// What to do when it is not known to be stopped.
    pub mend: String,
}

/// How another server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// No agent runs, and why that is certain.
    Stopped(String),
    /// Its agent runs and is in no cluster.
    Empty,
    /// Its agent runs with data and knows no leader, and without us no majority can come together.
    Isolated,
    /// Its agent runs with data and knows no leader.
    Runs,
    /// Its agent knows this leader.
    Led(SocketAddr),
    /// It cannot be told, and why; a person says that it is stopped.
    Vouched(String),
    /// It cannot be told, and why.
    Unknown(String),
}

/// Which recovery was begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Noted {
    /// What the claim says.
    Claim {
        /// Its name.
        name: String,
        /// The raft configuration; none: no recovery is under way.
        peers: Vec<String>,
        /// When, and from where.
        begun: String,
    },
    /// No claim is kept, so this is what the volume says.
    Volume {
        /// The note.
        file: String,
        /// As above.
        peers: Vec<String>,
    },
    /// The claim cannot be read.
    Unreadable(String),
}

// === impl Facts ===

impl Facts {
    /// The server that came furthest, of those that can be read.
    pub fn survivor(&self) -> Option<&str> {
        let others = self.others.iter().filter_map(|other| Some((&other.name, other.last.as_ref()?.as_ref().ok()?)));
        let ours = self.us.last.as_ref().map(|last| (&self.us.name, last));
        // Of equals the last one: ourselves.
        others.chain(ours).max_by_key(|(_, last)| last.rank()).map(|(name, _)| name.as_str())
    }
}

/// Looks.
///
/// # Errors
/// [`RecoverError::Volume`].
pub(super) async fn look(world: &mut World, recovery: &Recovery) -> Result<Facts, RecoverError> {
    let holding = world.volume.read()?;
    let us = us(world, &holding).await?;
    let survey = world.surveyor.survey().await;
    let (pending, addresses) = pending(world, &survey).await?;
    let others = others(world, &us, recovery, &holding, &survey, addresses).await;
    let blind = blind(world, &survey);
    Ok(Facts { us, others, blind, pending })
}

async fn us(world: &World, holding: &Holding) -> Result<Us, RecordError> {
    let (volume, local) = (&world.volume, &world.local);
    let stored = volume.stored()?;
    let runs = volume.has_agent()?;
    let mut us = Us {
        name: local.owner.pod.clone(),
        raft_data: holding.raft_data,
        info_file: volume.info_file().display().to_string(),
        has_info: volume.info_file().exists(),
        hold_file: volume.hold_file().display().to_string(),
        peer: Err(String::new()),
        last: stored.last,
        peers: stored.peers,
        leader: None,
        runs,
        pid: volume.agent_pid(),
        deaf: None,
        silent: None,
    };
    if runs {
        let agent = &world.agent;
        let asked = tokio::try_join!(agent.leader(), agent.peers());
        match asked {
            Ok((leader, peers)) => (us.leader, us.peers) = (leader, peers),
            Err(error) => us.deaf = Some(error.to_string()),
        }
        match agent.describe_within(PATIENT).await {
            Ok(described) => us.last = last(&described).or(us.last),
            Err(error) => us.silent = Some(error.to_string()),
        }
    }
    us.peer = peer(world, holding, &us).await;
    Ok(us)
}

/// How far the agent says that its log came.
pub(super) fn last(described: &AgentSelf) -> Option<Last> {
    described.reach().map(|reach| Last { term: reach.term, index: reach.index, exact: true })
}

/// Our node ID and our address, as the next start of the agent has them.
async fn peer(world: &World, holding: &Holding, us: &Us) -> Result<Peer, String> {
    let (local, record) = (&world.local, holding.record.as_ref());
    let id = holding.node_id.as_ref().ok_or("there is no node-id on the volume: put the server's ID back")?;
    let recorded = record.and_then(|record| record.advertise);
    let by_service = local.stable != Stable::Never && record.is_none_or(|record| record.stable);
    let ip = if us.runs {
        recorded.or(local.advertise)
    } else if by_service {
        let kube = world.surveyor.kube().map(|(kube, _)| kube);
        match service_address(local, &world.settings, &world.dns, kube, recorded).await {
            Ok(Some(ip)) => Some(ip),
            Ok(None) if recorded.is_some() => {
                return Err(format!(
                    "Service {} is gone, whose address this server had: apply it again",
                    local.owner.pod
                ));
            }
            Ok(None) => local.advertise,
            Err(why) => recorded.or(local.advertise).ok_or(why).map(Some)?,
        }
    } else {
        local.advertise
    };
    let ip = ip.ok_or(
        "its address is not known: it has its Pod's, so call this in its own Pod (convene.dev/hold keeps the agent from \
         starting), or give --advertise ADDRESS",
    )?;
    let listed = us.peers.iter().find(|peer| peer.ip() == ip);
    let address = listed.copied().unwrap_or(SocketAddr::new(ip, local.peer.server));
    Ok(Peer::voter(&id.to_string(), address))
}

/// The recovery that was begun, and which addresses the claim has for Pods of ours.
async fn pending(world: &World, survey: &Survey) -> Result<(Noted, BTreeMap<IpAddr, String>), RecordError> {
    let Some(claims) = &world.claims else {
        let peers = world.volume.pending()?.map(|pending| pending.peers).unwrap_or_default();
        let file = world.volume.folder().join("recovering.json").display().to_string();
        let peers = peers.iter().map(ToString::to_string).collect();
        return Ok((Noted::Volume { file, peers }, BTreeMap::new()));
    };
    Ok(match claims.recovery(survey.statefulset.as_ref()).await {
        Ok(recovery) => {
            let noted = Noted::Claim { name: claims.name(), peers: recovery.peers, begun: recovery.begun };
            (noted, recovery.addresses)
        }
        Err(why) => (Noted::Unreadable(why), BTreeMap::new()),
    })
}

/// Why there may be servers that nobody named.
fn blind(world: &World, survey: &Survey) -> Vec<String> {
    let blind = survey.sources.iter().filter(|report| report.blind);
    let why = |report: &survey::SourceReport| report.outcome.as_ref().err().cloned().unwrap_or_default();
    let failed = blind.map(|report| format!("source {} failed, which names servers: {}", report.source, why(report)));
    let mut blind: Vec<String> = failed.collect();
    let shape = world.local.seat.as_ref().map(|seat| Shape::of(seat, &world.settings, survey.statefulset.as_ref()));
    let counted = survey.statefulset.is_some() || shape.is_some_and(|shape| shape.replicas > 0);
    if world.settings.sources.contains(&Source::StatefulSet) && !counted {
        blind.push("how many servers there are is not known: give --replicas N".to_owned());
    }
    blind
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn peer(ordinal: u8) -> Peer {
        let id = format!("6b1d3a52-9c0e-4f57-8a34-2f0f6f1d9c{ordinal:02}");
        Peer::voter(&id, SocketAddr::from(([10, 96, 0, ordinal], 8300)))
    }

    pub fn last(term: u64, index: u64) -> Last {
        Last { term, index, exact: true }
    }

    /// A server whose Pod waits with an empty disk.
    pub fn other(ordinal: u8) -> Other {
        Other {
            name: format!("consul-server-{ordinal}"),
            node_id: None,
            state: State::Stopped(format!("10.244.0.{ordinal} refuses the server port")),
            last: None,
            peers: Vec::new(),
            pod: "Pod Running".to_owned(),
            mend: "what to do".to_owned(),
        }
    }

    /// The first of three, whose others have lost their disks.
    pub fn facts() -> Facts {
        let us = Us {
            name: "consul-server-0".to_owned(),
            raft_data: true,
            info_file: "/data/raft/peers.info".to_owned(),
            has_info: true,
            hold_file: "/data/convene/hold".to_owned(),
            peer: Ok(peer(0)),
            last: Some(last(2, 100)),
            peers: (0..3).map(|ordinal| peer(ordinal).address).collect(),
            leader: None,
            runs: true,
            pid: Some(Pid::from_raw(8)),
            deaf: None,
            silent: None,
        };
        let pending =
            Noted::Claim { name: "consul-server-convene".to_owned(), peers: Vec::new(), begun: String::new() };
        Facts { us, others: vec![other(1), other(2)], blind: Vec::new(), pending }
    }

    #[test]
    fn the_survivor_is_who_came_furthest() {
        let mut facts = facts();
        assert_eq!(facts.survivor(), Some("consul-server-0"));
        facts.others[1].last = Some(Ok(last(2, 100)));
        assert_eq!(facts.survivor(), Some("consul-server-0"), "of equals this one");
        facts.others[1].last = Some(Ok(last(3, 1)));
        assert_eq!(facts.survivor(), Some("consul-server-2"));
    }
}

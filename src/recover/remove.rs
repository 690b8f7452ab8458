//! Takes a voter out that could not leave: its ordinal is outside the StatefulSet, or it never was one of its Pods, and it is gone.
//!
//! Takes an agent that knows a leader, and the Kubernetes API. Pure but for asking: [`kept`] says which gate is shut, with its
//! numbers, in this order:
//!
//! 1. a leader is known;
//! 2. the raft configuration has it;
//! 3. it is no server that is to be there: its ordinal is outside the StatefulSet, and no Pod has its name or its address;
//! 4. gossip does not have it for alive;
//! 5. without it, those that answer and follow the leader are a majority of the voters.
//!
//! The removal is Consul's force-leave, since a server that gossip still knows as failed would come back into the configuration,
//! then the raft peer itself where that was not enough. Over once the leader does not list it.

use super::{RecoverError, World};
use crate::api::consul::{Agent, ApiError, RaftServer};
use crate::api::kube::StatefulSet;
use crate::settings::Seat;
use crate::stop::voters::{Asker, View};
use crate::time;
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use thiserror::Error;
use tokio::time::{Instant, sleep};

/// How long gossip and the leader may need.
const CONFIRM: Duration = Duration::from_secs(10);
/// How often the leader is asked meanwhile.
const POLL: Duration = Duration::from_millis(200);

/// A gate of a removal that is shut.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Kept {
    /// Nobody could remove it.
    #[error("gate 1: no leader is known; convene recover without --remove is for that")]
    NoLeader,
    /// There is nothing to remove.
    #[error("gate 2: the raft configuration has no {who}: it has {has}")]
    Unknown {
        /// Who was named.
        who: String,
        /// Who is there.
        has: String,
    },
    /// It is to be there.
    #[error(
        "gate 3: {who} is a server of the StatefulSet ({replicas} replicas from ordinal {start}): it comes back, and one that lost its disk has its predecessor removed by itself"
    )]
    Belongs {
        /// Its name.
        who: String,
        /// How many there are.
        replicas: u32,
        /// The first ordinal.
        start: u32,
    },
    /// Its Pod is there.
    #[error("gate 3: Pod {pod} is there: wait for its end, or delete it")]
    HasPod {
        /// The Pod.
        pod: String,
    },
    /// It runs.
    #[error("gate 4: gossip has {who} for alive: stop it first, or let it leave (convene leave --leave=always)")]
    Alive {
        /// Its name.
        who: String,
    },
    /// Nobody can tell.
    #[error(
        "gate 4: whether {who} is alive cannot be told: the member list is empty; the token (CONSUL_HTTP_TOKEN_FILE) needs node_prefix \"\" {{ policy = \"read\" }}"
    )]
    Blind {
        /// Its name.
        who: String,
    },
    /// The cluster would have no leader.
    #[error("gate 5: without {who} {answering} of {voters} voters answer, which is no majority{away}")]
    NoMajority {
        /// Its name.
        who: String,
        /// How many answer.
        answering: usize,
        /// Of how many.
        voters: usize,
        /// Who does not, and why.
        away: String,
    },
}

/// What is known of a server that is to be removed.
#[derive(Debug, Clone)]
pub struct Case {
    /// As it was named.
    pub who: String,
    /// The raft configuration.
    pub raft: Vec<RaftServer>,
    /// Our StatefulSet's name and shape.
    pub seat: Option<(Seat, StatefulSet)>,
    /// The Pod that has its name or its address.
    pub pod: Option<String>,
    /// The servers in the member list that are alive, by name; `None`: it cannot be read.
    pub alive: Option<BTreeSet<String>>,
    /// The servers as they are now.
    pub view: View,
}

// === impl Case ===

impl Case {
    /// The server, where the configuration has it.
    fn server(&self) -> Option<&RaftServer> {
        self.raft.iter().find(|server| server.id.eq_ignore_ascii_case(&self.who) || server.node == self.who)
    }
}

/// The first gate that is shut; else the server to remove.
///
/// # Errors
/// [`Kept`].
pub fn kept(case: &Case) -> Result<&RaftServer, Kept> {
    if case.view.leader.is_none() {
        return Err(Kept::NoLeader);
    }
    let Some(server) = case.server() else {
        let has = case.raft.iter().map(|server| format!("{} ({})", server.node, server.id)).collect::<Vec<_>>();
        return Err(Kept::Unknown { who: case.who.clone(), has: has.join(", ") });
    };
    let who = server.node.clone();
    if let (Some((seat, told)), Some(theirs)) = (&case.seat, Seat::of_pod(&who)) {
        let within = theirs.ordinal.checked_sub(told.start).is_some_and(|place| place < told.replicas);
        if within && theirs.statefulset == seat.statefulset {
            return Err(Kept::Belongs { who, replicas: told.replicas, start: told.start });
        }
    }
    if let Some(pod) = &case.pod {
        return Err(Kept::HasPod { pod: pod.clone() });
    }
    match &case.alive {
        None => return Err(Kept::Blind { who }),
        Some(alive) if alive.contains(&who) => return Err(Kept::Alive { who }),
        Some(_) => {}
    }
    let address: Option<SocketAddr> = server.address.parse().ok();
    let others = || case.view.others.iter().filter(|other| Some(other.address) != address);
    let us = usize::from(case.view.we_vote() && case.view.us != address);
    let (voters, answering) = (others().count() + us, others().filter(|other| other.is_healthy()).count() + us);
    if answering * 2 <= voters {
        let away = others().filter_map(|other| Some(format!("; {} is away ({})", other.name(), other.away.as_ref()?)));
        return Err(Kept::NoMajority { who, answering, voters, away: away.collect() });
    }
    Ok(server)
}

/// Looks, says who would go, and removes it when told to.
///
/// # Errors
/// [`RecoverError`].
pub async fn remove(world: &World, who: &str, yes: bool, say: &mut impl FnMut(&str)) -> Result<(), RecoverError> {
    let case = look(world, who).await?;
    let server = kept(&case).map_err(RecoverError::Kept)?;
    let RaftServer { id, node, address, .. } = server;
    say(&format!("{node} ({id}, {address}) is a raft peer, its Pod is gone, and a majority is there without it"));
    if !yes {
        say("would be removed; nothing was changed; --yes does it");
        return Ok(());
    }
    let begun = Instant::now();
    take_out(&world.agent, server).await?;
    say(&format!("removed {node} in {}", time::text(begun.elapsed())));
    Ok(())
}

async fn look(world: &World, who: &str) -> Result<Case, RecoverError> {
    let (agent, local) = (&world.agent, &world.local);
    let failed = |cause: ApiError| RecoverError::Consul { what: "ask who votes".to_owned(), cause };
    if agent.leader().await.map_err(failed)?.is_none() {
        return Err(RecoverError::Kept(Kept::NoLeader));
    }
    let addresses = local.own_addresses.iter().copied().collect();
    let kube = world.surveyor.kube().cloned();
    let seat = local.seat.clone();
    let peers = world.surveyor.peers().clone();
    let mut asker = Asker::new(agent.clone(), peers, kube.clone(), seat.clone(), addresses);
    let view = asker.see().await.map_err(failed)?;
    let raft = agent.raft_configuration().await.map_err(failed)?;
    let members = agent.servers().await.map_err(failed)?;
    let alive = members.iter().filter(|member| member.is_alive()).map(|member| member.name.clone());
    let alive = Some(alive.collect::<BTreeSet<_>>()).filter(|_| !members.is_empty());
    let mut case = Case { who: who.to_owned(), raft, seat: None, pod: None, alive, view };
    let (Some((kube, namespace)), Some(seat)) = (kube, seat) else { return Ok(case) };
    case.pod = match case.server() {
        Some(server) => {
            let named = kube.pod(&namespace, &server.node).await?.filter(|pod| !pod.over).map(|pod| pod.name);
            let address = server.address.parse::<SocketAddr>().ok().map(|address| address.ip());
            match (named, address) {
                (None, Some(ip)) => has_address(&kube, &namespace, ip).await?,
                (named, _) => named,
            }
        }
        None => None,
    };
    let told = kube.statefulset(&namespace, &seat.statefulset).await?;
    case.seat = told.map(|told| (seat, told));
    Ok(case)
}

/// The Pod that has an address.
async fn has_address(
    kube: &crate::api::kube::Kube,
    namespace: &str,
    ip: IpAddr,
) -> Result<Option<String>, RecoverError> {
    let found = kube.pods(namespace, "", &format!("status.podIP={ip}")).await?;
    Ok(found.into_iter().find(|pod| !pod.over).map(|pod| pod.name))
}

/// Removes, and waits until the leader does not list it any more.
async fn take_out(agent: &Agent, server: &RaftServer) -> Result<(), RecoverError> {
    let failed = |cause| RecoverError::Consul { what: format!("remove {}", server.node), cause };
    let address = || server.address.parse().ok();
    match agent.force_leave(&server.node).await {
        Ok(()) => {}
        // Gossip has forgotten it, and only raft has it.
        Err(error) if error.is_unknown_node() => {
            if let Some(address) = address() {
                agent.remove_peer(address).await.map_err(failed)?;
            }
        }
        Err(error) => return Err(failed(error)),
    }
    let begun = Instant::now();
    let mut asked = false;
    loop {
        let raft = agent.raft_configuration().await.map_err(failed)?;
        if raft.iter().all(|other| other.id != server.id) {
            return Ok(());
        }
        if begun.elapsed() > CONFIRM {
            return Err(RecoverError::StillThere { who: server.node.clone(), waited: CONFIRM });
        }
        // What has left already is not removed by leaving again.
        if let Some(address) = address().filter(|_| !asked && begun.elapsed() > CONFIRM / 3) {
            asked = true;
            agent.remove_peer(address).await.map_err(failed)?;
        }
        sleep(POLL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stop::voters::tests::{at, view, voter};

    /// Five voters of a StatefulSet that has three now; the last two are gone.
    fn case() -> Case {
        let server = |ordinal: u32| RaftServer {
            id: format!("id-{ordinal}"),
            node: format!("consul-server-{ordinal}"),
            address: at(ordinal).to_string(),
            leader: ordinal == 1,
            voter: true,
        };
        let told = StatefulSet {
            replicas: 3,
            start: 0,
            service: "consul-server".to_owned(),
            ordered: false,
            uid: "u".to_owned(),
            deleting: false,
        };
        Case {
            who: "consul-server-4".to_owned(),
            raft: (0..5).map(server).collect(),
            seat: Some((Seat { statefulset: "consul-server".to_owned(), ordinal: 0 }, told)),
            pod: None,
            alive: Some((0..3).map(|ordinal| format!("consul-server-{ordinal}")).collect()),
            view: view(0, vec![voter(1), voter(2), voter(3).away(), voter(4).away()]),
        }
    }

    #[track_caller]
    fn refused(case: &Case, part: &str) {
        let said = kept(case).expect_err("a gate is shut").to_string();
        assert!(said.contains(part), "{part:?} is not in: {said}");
    }

    #[test]
    fn a_voter_whose_ordinal_is_gone_is_removed_by_its_name_or_its_id() {
        assert_eq!(kept(&case()).unwrap().id, "id-4");
        assert_eq!(kept(&Case { who: "ID-4".to_owned(), ..case() }).unwrap().node, "consul-server-4");
    }

    #[test]
    fn each_gate_keeps_it() {
        let led = case();
        refused(&Case { view: View { leader: None, ..led.view.clone() }, ..case() }, "gate 1: no leader");
        refused(
            &Case { who: "x".to_owned(), ..case() },
            "gate 2: the raft configuration has no x: it has consul-server-0 (id-0)",
        );
        refused(
            &Case { who: "consul-server-2".to_owned(), ..case() },
            "gate 3: consul-server-2 is a server of the StatefulSet",
        );
        refused(&Case { pod: Some("consul-server-4".to_owned()), ..case() }, "gate 3: Pod consul-server-4 is there");
        let alive = led.alive.clone().map(|alive| alive.into_iter().chain(["consul-server-4".to_owned()]).collect());
        refused(&Case { alive, ..case() }, "gate 4: gossip has consul-server-4 for alive");
        refused(&Case { alive: None, ..case() }, "gate 4: whether consul-server-4 is alive cannot be told");
        let weak = view(0, vec![voter(1), voter(2).away(), voter(3).away(), voter(4).away()]);
        refused(&Case { view: weak, ..case() }, "gate 5: without consul-server-4 2 of 4 voters answer");
    }

    #[test]
    fn a_server_of_another_name_is_no_ordinal_of_ours() {
        let mut other = case();
        other.raft[4].node = "old-server-1".to_owned();
        other.who = "old-server-1".to_owned();
        assert!(kept(&other).is_ok());
    }
}

//! Do the record and the claim say that the cluster has formed? Without the claim, wiped disks would found another one.
//!
//! Takes the own agent, the volume, and where the claim is kept. Writes "formed" into the record once the own agent knows a
//! leader and lists us among the raft peers, and into the claim once a majority of them follow that leader. [`Formation`] is for
//! who watches the agent, [`note_once`] for a probe or a hook beside an agent that nobody watches. Several may do so at one
//! moment: the record is changed under its lock, the claim by compare-and-swap. Fails with a sentence.

use crate::api::consul::{Agent, Peers};
use crate::api::kube::{Event, Kube, StatefulSet};
use crate::claim::{Claims, Seen, Step};
use crate::events::Events;
use crate::exit::chain;
use crate::record::Volume;
use crate::settings::{Local, Owner, Role};
use crate::stop::voters::Asker;
use crate::time;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use tokio::time::timeout;
use tracing::{info, warn};

/// Notes that one agent's cluster has formed.
#[derive(Debug)]
pub struct Formation {
    asker: Asker,
    advertise: Option<IpAddr>,
    volume: Volume,
    /// Where the claim is kept, if one is.
    claims: Option<Claims>,
    owner: Owner,
}

// === impl Formation ===

impl Formation {
    /// Prepares to note.
    pub fn new(local: &Local, agent: Agent, peers: Peers, volume: Volume, claims: Option<Claims>) -> Self {
        let addresses = local.own_addresses.iter().copied().collect();
        let asker = Asker::new(agent, peers, None, None, addresses);
        Self { asker, advertise: local.advertise, volume, claims, owner: local.owner.clone() }
    }

    /// The leader and the raft peers, as the own agent knows them; `None` while it knows no leader, or does not answer.
    pub async fn seen(&self) -> Option<(SocketAddr, Vec<SocketAddr>)> {
        let (leader, peers) = tokio::join!(self.asker.agent.leader(), self.asker.agent.peers());
        leader.ok().flatten().zip(peers.ok())
    }

    /// Whether we are among these raft peers. Where our address is Consul's own choice it cannot be told from another's, and any
    /// configuration must do.
    pub fn is_in(&self, peers: &[SocketAddr]) -> bool {
        let own = &self.asker.addresses;
        own.is_empty() && !peers.is_empty() || peers.iter().any(|peer| own.contains(&peer.ip()))
    }

    /// Has the record say "formed".
    ///
    /// # Errors
    /// Why it could not be written.
    pub fn record(&self) -> Result<(), String> {
        self.volume.change_record(|record| record.formed = true).map_err(|error| chain(&error))
    }

    /// Has the claim say "formed", and know our address; then the record says that it does. False: not yet, so look again soon.
    ///
    /// # Errors
    /// Why it could not be read or written.
    pub async fn claim(&self) -> Result<bool, String> {
        if !self.recovered().await? {
            return Ok(false);
        }
        let Some(claims) = &self.claims else { return Ok(true) };
        // Not an earlier answer: a claim of a StatefulSet that is gone would go with it.
        let Some(told) = claims.statefulset().await? else { return Ok(true) };
        let claimed = match claims.read(Some(&told)).await {
            Seen::Claimed(claim) => claim.formed && self.advertise.is_none_or(|own| claim.addresses.contains(&own)),
            _ => false,
        };
        if !claimed && !self.write_claim(claims, &told).await? {
            return Ok(false);
        }
        self.volume.change_record(|record| record.unclaimed = false).map_err(|error| chain(&error))?;
        Ok(true)
    }

    async fn write_claim(&self, claims: &Claims, told: &StatefulSet) -> Result<bool, String> {
        let Ok(view) = self.asker.view().await else { return Ok(false) };
        let following = view.others.iter().filter(|other| other.is_healthy()).count() + usize::from(view.us.is_some());
        if view.leader.is_none() || following * 2 <= view.count() {
            return Ok(false);
        }
        let voters = self.asker.agent.raft_configuration().await.unwrap_or_default();
        let nodes = voters.into_iter().filter(|server| server.voter).map(|server| server.id).collect();
        // False: another server wrote at the same moment.
        let written = claims.write(Some(told), &Step::Formed { nodes }, self.advertise).await?;
        if written {
            info!(claim = claims.name(), "claimed: the cluster has formed");
        }
        Ok(written)
    }
}

// === the end of a recovery ===

impl Formation {
    /// Sees a recovery that was begun here to its end: once a leader is known, the claim and the volume say that none is under way
    /// any more. Consul has taken peers.json then, or it is void. False: not yet.
    ///
    /// # Errors
    /// Why it could not be read or written.
    async fn recovered(&self) -> Result<bool, String> {
        let Some(pending) = self.volume.pending().map_err(|error| chain(&error))? else { return Ok(true) };
        let seen = self.seen().await.filter(|(_, peers)| self.is_in(peers));
        let Some((leader, _)) = seen else { return Ok(false) };
        let void = self.volume.void_peers().map_err(|error| chain(&error))?;
        if let Some(claims) = &self.claims
            && let Some(told) = claims.statefulset().await?
        {
            let voters = self.asker.agent.raft_configuration().await.unwrap_or_default();
            let nodes = voters.into_iter().filter(|server| server.voter).map(|server| server.id).collect();
            if !claims.write(Some(&told), &Step::Recovered { nodes, void }, self.advertise).await? {
                return Ok(false);
            }
            let (kube, namespace) = claims.place();
            let owner = Owner { namespace: Some(namespace.to_owned()), ..self.owner.clone() };
            let mut events = Events::on(Some(kube.clone()), &owner);
            let message = match void {
                false => {
                    format!("recovered: leader {leader} is known; servers that lost their disks join by themselves")
                }
                true => format!("leader {leader} is known without it, so the recovery that was begun is void"),
            };
            events.tell(Event { reason: if void { "RecoveryVoid" } else { "Recovered" }, warning: void, message });
            events.finish().await;
        }
        self.volume.forget_pending().map_err(|error| chain(&error))?;
        info!(%leader, number = pending.number, void, "a leader is known, and no recovery is pending any more");
        Ok(true)
    }
}

/// Notes what nobody has noted who watches the agent. Asks nobody anything once the record says all, and takes no longer than
/// `within`. What goes wrong is one line: whoever comes next tries again.
pub async fn note_once(local: &Local, agent: &Agent, kube: Option<Kube>, within: Duration) {
    match timeout(within, note(local, agent, kube)).await {
        Ok(Ok(())) => {}
        Ok(Err(why)) => warn!("could not note that the cluster has formed: {why}"),
        Err(_) => warn!("could not note within {} that the cluster has formed", time::text(within)),
    }
}

async fn note(local: &Local, agent: &Agent, kube: Option<Kube>) -> Result<(), String> {
    // Without a data folder or a record convene did not prepare this agent, or it is called elsewhere.
    let Ok(volume) = Volume::open(&local.data_dir, false) else { return Ok(()) };
    let Some(record) = volume.read().map_err(|error| chain(&error))?.record else { return Ok(()) };
    let mut local = local.clone();
    local.own_addresses.extend(record.advertise);
    local.advertise = record.advertise.or(local.advertise);
    // A server always knows an address of its own.
    let pending = volume.pending().map_err(|error| chain(&error))?.is_some();
    let settled = record.formed && !record.unclaimed && !pending;
    if settled || local.role == Some(Role::Client) || local.own_addresses.is_empty() {
        return Ok(());
    }
    let Owner { namespace, statefulset, pod } = record.owner;
    let claims = kube.zip(local.owner.namespace.clone().or(namespace)).zip(statefulset);
    let claims = claims.map(|((kube, namespace), statefulset)| Claims::new(kube, namespace, statefulset, pod));
    let peers = Peers::new(&local).map_err(|error| chain(&error))?;
    let formation = Formation::new(&local, agent.clone(), peers, volume, claims);
    if !formation.seen().await.is_some_and(|(_, peers)| formation.is_in(&peers)) {
        return Ok(());
    }
    // A record that cannot be written is no reason to leave the claim as it is.
    let recorded = formation.record();
    if record.unclaimed || pending {
        formation.claim().await?;
    }
    recorded
}

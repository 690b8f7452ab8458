//! What convene does beside a running server: joins peers that are found late, notes when the cluster has formed, and says
//! what it sees while no leader is known.
//!
//! Takes what was prepared and the own agent: in `run`, or in `convene watch` beside an agent that is PID 1 itself. While the
//! cluster has not formed it looks for servers and joins them through the agent, so that a name that appears late costs no
//! wait for Consul's own retry. Strangers are not joined; one whose gossip key differs only Consul can tell, and it is named when
//! Consul refuses it. Once a leader knows us it writes "formed" and, from then on, the servers and the cluster that are known.
//! Never stops the agent: [`Watch::watch`] ends with the reason when the agent must leave and be started again. Every other failure is a
//! log line.

use super::election::Election;
use super::overlooked::Overlooked;
use super::{NOTE_EVERY, note_servers};
use crate::api::consul::{Agent, ApiError, Member};
use crate::api::kube::StatefulSet;
use crate::claim::Claims;
use crate::decide::{RECOVER, Target};
use crate::exit::chain;
use crate::formed::Formation;
use crate::init::{millis, pause};
use crate::record::Volume;
use crate::record::lock::Held;
use crate::record::remembered::Remembered;
use crate::settings::Local;
use crate::survey::agents::Verdict;
use crate::survey::{Other, Survey, Surveyor};
use crate::time::SAY_EVERY;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{debug, info, warn};

/// How long an agent may need until its API answers; a restore takes longer, which `check live` allows.
const STARTING: Duration = Duration::from_secs(30);
/// How long an election may take before others are looked at again: Consul's raft begins one within 2 s (`raft_multiplier` 1).
const ELECTED: Duration = Duration::from_secs(2);
/// How often the leader is asked for meanwhile.
const LEADS: Duration = Duration::from_millis(50);
/// How often the claim is tried.
const CLAIM_EVERY: Duration = Duration::from_secs(1);
/// An address that was joined is not joined again before this is over: it needs a moment to show in the member list, which
/// cannot be read without `node:read`.
const JOIN_AGAIN: Duration = Duration::from_secs(5);
/// Nor one that Consul refuses as another cluster's: it takes a person to change that.
const FOREIGN_AGAIN: Duration = Duration::from_secs(60);

/// Watches one agent.
#[derive(Debug)]
pub struct Watch {
    agent: Agent,
    /// Serf's port where no source gives one.
    serf_port: Option<u16>,
    own: BTreeSet<IpAddr>,
    volume: Volume,
    surveyor: Surveyor,
    /// By address: before when it is not joined again.
    joined: BTreeMap<String, Instant>,
    joining: JoinSet<Joined>,
    /// Why the last join failed.
    refused: Option<String>,
    /// Notes that the cluster has formed.
    formation: Formation,
    /// The claim need not be looked at before the next note.
    claimed: bool,
    /// It was said that this server's agent holds services.
    warned: bool,
    young: Young,
}

/// What is looked for while the agent has no leader yet.
#[derive(Debug)]
pub struct Young {
    /// Whether the leader overlooks us.
    pub overlooked: Overlooked,
    /// Whether an election is due.
    pub election: Election,
}

/// Each server that is known answers, is alive in the member list, by any of its addresses, and knows no leader.
fn is_left_to_raft(survey: &Survey, alive: &BTreeSet<IpAddr>) -> bool {
    let waits = |other: &Other| {
        let leaderless = other.verdict.is_server() && other.verdict.leader().is_none();
        leaderless && other.addresses().any(|ip| alive.contains(&ip))
    };
    !survey.others.is_empty() && survey.others.iter().all(waits)
}

/// Why a good token is refused. Tried on 1.22.6: a server looks tokens up in its own raft data, and one that is in no cluster has
/// none; its recovery token is good for `/v1/agent/…` without any.
const NO_CLUSTER_YET: &str =
    "; a server that is in no cluster yet knows no token but its own acl.tokens.agent_recovery";

/// What came of a join.
#[derive(Debug)]
struct Joined {
    server: String,
    address: String,
    answer: Result<(), ApiError>,
}

// === impl Watch ===

impl Watch {
    /// Prepares to watch.
    pub fn new(
        local: &Local,
        agent: Agent,
        volume: Volume,
        surveyor: Surveyor,
        claims: Option<Claims>,
        young: Young,
    ) -> Self {
        let claimed = claims.is_none();
        let formation = Formation::new(local, agent.clone(), surveyor.peers().clone(), volume.clone(), claims);
        Self {
            agent,
            serf_port: local.peer.serf_of_a_target(),
            own: local.own_addresses.iter().copied().collect(),
            volume,
            surveyor,
            joined: BTreeMap::new(),
            joining: JoinSet::new(),
            refused: None,
            formation,
            claimed,
            warned: false,
            young,
        }
    }

    /// Watches for as long as it is polled, or until the agent must leave and be started again, and why. `waiting` is let go of once
    /// the agent's API answers.
    pub async fn watch(&mut self, waiting: Option<Held>) -> String {
        let begun = Instant::now();
        let mut said = begun;
        self.until_it_answers(begun).await;
        drop(waiting);
        self.young.election.mend(&self.agent, &self.volume).await;
        // Beside the surveys: one waits for agents that are just starting, and an election for nobody but a majority.
        let mut electing = JoinSet::new();
        electing.spawn(self.young.election.clone().hasten(
            self.agent.clone(),
            self.surveyor.peers().clone(),
            self.volume.clone(),
            self.own.clone(),
        ));
        while !self.formed(begun).await {
            let (survey, alive) = self.join_the_late().await;
            self.reap_joins();
            if let Some(leader) = self.young.overlooked.look(&survey, &alive, &self.own, Instant::now()) {
                return format!("leader {leader} is alive in the member list and does not take this server in");
            }
            if said.elapsed() >= SAY_EVERY {
                said = Instant::now();
                self.say(&survey, begun.elapsed()).await;
            }
            let pause = pause(begun.elapsed());
            self.led(pause, is_left_to_raft(&survey, &alive)).await;
        }
        // A leader that is lost later is raft's to replace.
        drop(electing);
        self.after_formation().await
    }

    /// Notes who is there, and says what is seen while there is no leader.
    async fn after_formation(&mut self) -> ! {
        let mut noted: Option<Instant> = None;
        let mut led = Instant::now();
        loop {
            if let Ok(Some(leader)) = self.agent.leader().await {
                led = Instant::now();
                let due = noted.is_none_or(|at| at.elapsed() >= NOTE_EVERY);
                // Also one that was begun while this agent ran.
                let recovering = self.volume.pending().is_ok_and(|pending| pending.is_some());
                if due || !self.claimed || recovering {
                    self.claim().await;
                }
                if due {
                    self.meet(leader.ip()).await;
                    self.remember().await;
                    note_servers(&self.agent, &self.own, &self.volume, &mut self.surveyor).await;
                    self.warn_of_services().await;
                    noted = Some(Instant::now());
                }
            } else if led.elapsed() >= SAY_EVERY {
                let survey = self.surveyor.survey().await;
                self.say(&survey, led.elapsed()).await;
                warn!("when more than half of the servers have lost their disks for good, none will be: {RECOVER}");
            }
            // A cluster that is not claimed yet could be founded a second time.
            tokio::time::sleep(if !self.claimed { CLAIM_EVERY } else { SAY_EVERY }).await;
        }
    }

    /// For so long, or until a leader is known that was not. Those who elect one are not kept busy with surveys.
    async fn led(&self, pause: Duration, elects: bool) {
        // One that does not take us in is no news.
        if self.knows_a_leader().await {
            return tokio::time::sleep(pause).await;
        }
        let begun = Instant::now();
        let within = if elects { pause + ELECTED } else { pause };
        while begun.elapsed() < within && !self.knows_a_leader().await {
            tokio::time::sleep(LEADS.min(within.saturating_sub(begun.elapsed()))).await;
        }
    }

    async fn knows_a_leader(&self) -> bool {
        matches!(self.agent.leader().await, Ok(Some(_)))
    }

    /// At most as long as an agent needs to start.
    async fn until_it_answers(&self, begun: Instant) {
        while begun.elapsed() < STARTING && self.agent.leader().await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Why there is no leader, as far as it can be seen from here.
    async fn say(&self, survey: &Survey, waited: Duration) {
        let refused = self.refused.iter().map(|why| format!("joining was refused: {why}"));
        let hints = self.surveyor.own_service_moved().await.into_iter().chain(self.surveyor.unnamed(survey));
        let seen = survey.told().chain(refused).chain(hints).collect::<Vec<_>>().join("; ");
        warn!(
            waited_s = waited.as_secs(),
            "no leader knows this agent: {}",
            if seen.is_empty() { "no other server is known" } else { &seen }
        );
    }

    /// Whether a leader knows us. Then the record says so.
    async fn formed(&mut self, begun: Instant) -> bool {
        let Some((leader, peers)) = self.formation.seen().await else { return false };
        if !self.formation.is_in(&peers) {
            return false;
        }
        info!(leader = %leader, peers = peers.len(), took_ms = millis(begun.elapsed()), "joined: a leader is known");
        if let Err(why) = self.formation.record() {
            warn!("{why}");
        }
        true
    }

    /// Sees to it that the claim says "formed" and knows our address: it is written once a leader and a majority of voters are
    /// seen, and again when somebody took it away.
    async fn claim(&mut self) {
        self.claimed = match self.formation.claim().await {
            Ok(claimed) => claimed,
            // Not once a second: a Role that lacks a rule will not change soon.
            Err(why) => {
                warn!("the claim is not settled, and is looked at again in {} s: {why}", NOTE_EVERY.as_secs());
                true
            }
        };
    }

    /// Joins a leader that raft knows and gossip does not: one that heartbeats us is of our cluster, wherever all names lead.
    /// Without `node:read` it cannot be told.
    async fn meet(&mut self, leader: IpAddr) {
        let members = self.agent.servers().await.unwrap_or_default();
        let knows = |member: &Member| member.addr.parse() == Ok(leader);
        if members.is_empty() || self.own.contains(&leader) || members.iter().any(knows) {
            return;
        }
        let address = Target::Address(leader, self.serf_port);
        match self.agent.join(&address.to_string()).await {
            Ok(()) => info!(%address, "joined the leader, which gossip did not know"),
            Err(error) => debug!(%address, "could not join the leader: {}", chain(&error)),
        }
    }

    /// Keeps what the API says of the StatefulSet, for a stop at which it is silent.
    async fn remember(&self) {
        match self.surveyor.statefulset().await {
            Ok(Some(StatefulSet { replicas, start, deleting: false, .. })) => {
                if let Err(error) = self.volume.remember(Remembered { replicas, start }) {
                    debug!("{}", chain(&error));
                }
            }
            Ok(_) => self.volume.forget_statefulset(),
            // The last answer grows old.
            Err(_) => {}
        }
    }

    /// Says once that services are registered at this server, where nobody removes them. Silent without `service:read`.
    async fn warn_of_services(&mut self) {
        if self.warned {
            return;
        }
        let held = self.agent.services().await.unwrap_or_default();
        if held.is_empty() {
            return;
        }
        self.warned = true;
        let names = held.into_iter().collect::<Vec<_>>().join(", ");
        warn!(
            "this server's agent holds services ({names}): they are critical while it restarts and stay when their \
             application is gone; register them at a client, which takes them along"
        );
    }

    /// Looks, and joins who answers as a server and is not alive in the member list; gives who is alive there.
    async fn join_the_late(&mut self) -> (Survey, BTreeSet<IpAddr>) {
        let survey = self.surveyor.survey().await;
        let members = match self.agent.servers().await {
            Ok(members) => members,
            // What the join itself is answered is told.
            Err(error) if error.is_denied() => Vec::new(),
            Err(_) => return (survey, BTreeSet::new()),
        };
        let alive: BTreeSet<IpAddr> =
            members.iter().filter(|member| member.is_alive()).filter_map(|member| member.addr.parse().ok()).collect();
        for (server, target) in self.late(&survey, &alive) {
            let address = target.to_string();
            debug!(server, address, "joining a peer that was found late");
            self.joined.insert(address.clone(), Instant::now() + JOIN_AGAIN);
            let agent = self.agent.clone();
            self.joining.spawn(async move {
                let answer = agent.join(&address).await;
                Joined { server, address, answer }
            });
        }
        (survey, alive)
    }

    fn late(&self, survey: &Survey, alive: &BTreeSet<IpAddr>) -> Vec<(String, Target)> {
        let answering = survey.others.iter().filter(|other| other.verdict.is_server());
        // It may be a member by any of its addresses.
        let absent = answering.filter(|other| !other.addresses().any(|ip| alive.contains(&ip)));
        let targets = absent.flat_map(|other| {
            let answers = |ip: &IpAddr| other.reports.get(ip).is_some_and(Verdict::is_server);
            other
                .joined_at()
                .into_iter()
                .filter(answers)
                .map(|ip| (other.name.clone(), ip, other.port))
                .collect::<Vec<_>>()
        });
        targets
            .map(|(server, ip, port)| (server, Target::Address(ip, port.or(self.serf_port))))
            .filter(|(_, target)| self.joined.get(&target.to_string()).is_none_or(|until| Instant::now() >= *until))
            .collect()
    }

    fn reap_joins(&mut self) {
        while let Some(done) = self.joining.try_join_next() {
            let Ok(Joined { server, address, answer }) = done else { continue };
            let Err(error) = answer else {
                info!(server, address, "joined a peer");
                continue;
            };
            let unknown = if error.is_unknown_token() { NO_CLUSTER_YET } else { "" };
            self.refused = Some(format!("{error}{unknown}"));
            let Some(foreign) = error.foreign() else {
                debug!(server, address, "could not join a peer: {}", chain(&error));
                continue;
            };
            warn!(
                server,
                address,
                "not joined: {}, or, when it is a server of another cluster, take it out of --discover; it is tried again in {} s ({error})",
                foreign.differs(),
                FOREIGN_AGAIN.as_secs()
            );
            self.joined.insert(address, Instant::now() + FOREIGN_AGAIN);
        }
    }
}

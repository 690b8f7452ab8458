//! What convene does beside the running agent: joins peers that are found late, notes when the cluster has formed, and says
//! what it sees while no leader is known.
//!
//! Takes what was prepared and the own agent: in `run`, or in `convene watch` beside an agent that is PID 1 itself. While the
//! cluster has not formed it looks for servers and joins them through the agent, so that a name that appears late costs no
//! wait for Consul's own retry. Once a leader knows us it writes "formed" and, from then on, the servers that are known. Never
//! ends, never stops the agent; every failure is a log line.

use crate::api::consul::Agent;
use crate::claim::{Claims, Seen, Step};
use crate::decide::Target;
use crate::exit::chain;
use crate::init::{SAY_EVERY, millis, pause};
use crate::record::lock::Held;
use crate::record::{Record, Volume};
use crate::settings::{Local, Role};
use crate::survey::agents::Verdict;
use crate::survey::{Survey, Surveyor};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{debug, info, warn};

/// How long an agent may need until its API answers; a restore takes longer, and is the startup probe's to allow.
const STARTING: Duration = Duration::from_secs(30);
/// How often the known servers are noted once the cluster has formed.
const NOTE_EVERY: Duration = Duration::from_secs(30);
/// How often the claim is tried.
const CLAIM_EVERY: Duration = Duration::from_secs(1);
/// An address that was joined is not joined again before this is over: it needs a moment to show in the member list, which
/// cannot be read without `node:read`.
const JOIN_AGAIN: Duration = Duration::from_secs(5);

/// Watches one agent.
#[derive(Debug)]
pub struct Watch {
    agent: Agent,
    role: Role,
    serf_port: u16,
    advertise: Option<IpAddr>,
    own: BTreeSet<IpAddr>,
    volume: Volume,
    surveyor: Surveyor,
    joined: BTreeMap<String, Instant>,
    joining: JoinSet<(String, Result<(), crate::api::consul::ApiError>)>,
    /// Why the last join failed.
    refused: Option<String>,
    /// Where the claim is kept.
    claims: Option<Claims>,
    /// It need not be looked at before the next note.
    claimed: bool,
}

// === impl Watch ===

impl Watch {
    /// Prepares to watch.
    pub fn new(
        local: &Local,
        role: Role,
        agent: Agent,
        volume: Volume,
        surveyor: Surveyor,
        claims: Option<Claims>,
    ) -> Self {
        Self {
            agent,
            role,
            serf_port: local.peer.serf,
            advertise: local.advertise,
            own: local.own_addresses.iter().copied().collect(),
            volume,
            surveyor,
            joined: BTreeMap::new(),
            joining: JoinSet::new(),
            refused: None,
            claims,
            claimed: false,
        }
    }

    /// Watches for as long as it is polled. `waiting` is let go of once the agent's API answers.
    pub async fn watch(mut self, waiting: Option<Held>) {
        let begun = Instant::now();
        let mut said = begun;
        self.until_it_answers(begun).await;
        drop(waiting);
        while !self.formed(begun).await {
            let survey = self.join_the_late().await;
            self.reap_joins();
            if said.elapsed() >= SAY_EVERY {
                said = Instant::now();
                self.say(&survey, begun.elapsed()).await;
            }
            tokio::time::sleep(pause(begun.elapsed())).await;
        }
        self.after_formation().await;
    }

    /// Notes who is there, and says what is seen while there is no leader.
    async fn after_formation(&mut self) {
        let mut noted: Option<Instant> = None;
        let mut led = Instant::now();
        loop {
            if matches!(self.agent.leader().await, Ok(Some(_))) {
                led = Instant::now();
                let due = noted.is_none_or(|at| at.elapsed() >= NOTE_EVERY);
                if due || !self.claimed {
                    self.claim().await;
                }
                if due {
                    self.note_servers().await;
                    noted = Some(Instant::now());
                }
            } else if led.elapsed() >= SAY_EVERY {
                let survey = self.surveyor.survey().await;
                self.say(&survey, led.elapsed()).await;
            }
            // A cluster that is not claimed yet could be founded a second time.
            tokio::time::sleep(if self.claims.is_some() && !self.claimed { CLAIM_EVERY } else { SAY_EVERY }).await;
        }
    }

    /// At most as long as an agent needs to start.
    async fn until_it_answers(&self, begun: Instant) {
        while begun.elapsed() < STARTING && self.agent.leader().await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Why there is no leader, as far as it can be seen from here.
    async fn say(&self, survey: &Survey, waited: Duration) {
        let others: Vec<String> =
            survey.others.iter().map(|other| format!("{} is {}", other.name, other.verdict)).collect();
        let failed = survey.failures().map(|(source, why)| format!("source {source} failed: {why}"));
        let refused = self.refused.iter().map(|why| format!("joining was refused: {why}"));
        let hints = self.surveyor.own_service_moved().await.into_iter().chain(self.surveyor.unnamed(survey));
        let seen = others.into_iter().chain(failed).chain(refused).chain(hints).collect::<Vec<_>>().join("; ");
        warn!(
            waited_s = waited.as_secs(),
            "no leader knows this agent: {}",
            if seen.is_empty() { "no other server is known" } else { &seen }
        );
    }

    /// Whether a leader knows us. Then the record says so.
    async fn formed(&mut self, begun: Instant) -> bool {
        let (Ok(Some(leader)), Ok(peers)) = tokio::join!(self.agent.leader(), self.agent.peers()) else { return false };
        if self.role == Role::Server && !self.is_in(&peers) {
            return false;
        }
        info!(leader = %leader, peers = peers.len(), took_ms = millis(begun.elapsed()), "joined: a leader is known");
        if self.role == Role::Server {
            self.note(|record| record.formed = true);
        }
        true
    }

    /// Sees to it that the claim says "formed" and knows our address: it is written once a leader and a majority of voters are
    /// seen, and again when somebody took it away.
    async fn claim(&mut self) {
        let Some(claims) = self.claims.clone() else { return };
        self.claimed = match self.claim_by(&claims).await {
            Ok(claimed) => claimed,
            // Not once a second: a Role that lacks a rule will not change soon.
            Err(why) => {
                warn!("the claim was not written, and is tried again in {} s: {why}", NOTE_EVERY.as_secs());
                true
            }
        };
    }

    async fn claim_by(&mut self, claims: &Claims) -> Result<bool, String> {
        // Not an earlier answer: a claim of a StatefulSet that is gone would go with it.
        let Some(told) = self.surveyor.statefulset().await? else { return Ok(true) };
        if let Seen::Claimed(claim) = claims.read(Some(&told)).await
            && claim.formed
            && self.advertise.is_none_or(|own| claim.addresses.contains(&own))
        {
            return Ok(true);
        }
        let (Ok(Some(leader)), Ok(peers)) = tokio::join!(self.agent.leader(), self.agent.peers()) else {
            return Ok(false);
        };
        let survey = self.surveyor.survey().await;
        let agrees = |peer: &&SocketAddr| {
            let mut reports = survey.others.iter().filter_map(|other| other.reports.get(&peer.ip())?.reported());
            self.own.contains(&peer.ip()) || reports.any(|reported| reported.leader == Some(leader))
        };
        if peers.iter().filter(agrees).count() * 2 <= peers.len() {
            return Ok(false);
        }
        let voters = self.agent.raft_configuration().await.unwrap_or_default();
        let nodes = voters.into_iter().filter(|server| server.voter).map(|server| server.id).collect();
        // False: another server wrote at the same moment.
        let written = claims.write(Some(&told), &Step::Formed { nodes }, self.advertise).await?;
        if written {
            info!(claim = claims.name(), "claimed: the cluster has formed");
        }
        Ok(written)
    }

    async fn note_servers(&mut self) {
        let Ok(peers) = self.agent.peers().await else { return };
        let servers: Vec<IpAddr> = peers.iter().map(SocketAddr::ip).filter(|ip| !self.own.contains(ip)).collect();
        if !servers.is_empty() {
            self.note(|record| record.servers = servers);
        }
    }

    /// Changes the record; nothing is written when that changes nothing.
    fn note(&self, change: impl FnOnce(&mut Record)) {
        if let Err(error) = self.volume.change_record(change) {
            warn!("{}", chain(&error));
        }
    }

    /// Looks, and joins who answers as a server and is not alive in the member list.
    async fn join_the_late(&mut self) -> Survey {
        let survey = self.surveyor.survey().await;
        let Ok(members) = self.agent.servers().await else { return survey };
        let alive: BTreeSet<IpAddr> =
            members.iter().filter(|member| member.is_alive()).filter_map(|member| member.addr.parse().ok()).collect();
        for target in self.late(&survey, &alive) {
            let address = target.to_string();
            debug!(address, "joining a peer that was found late");
            self.joined.insert(address.clone(), Instant::now());
            let agent = self.agent.clone();
            self.joining.spawn(async move {
                let answer = agent.join(&address).await;
                (address, answer)
            });
        }
        survey
    }

    fn late(&self, survey: &Survey, alive: &BTreeSet<IpAddr>) -> Vec<Target> {
        let answering = survey.others.iter().filter(|other| other.verdict.is_server());
        // It may be a member by any of its addresses.
        let absent = answering.filter(|other| !other.addresses().any(|ip| alive.contains(&ip)));
        let targets = absent.flat_map(|other| {
            let answers = |ip: &IpAddr| other.reports.get(ip).is_some_and(Verdict::is_server);
            other.joined_at().into_iter().filter(answers).map(|ip| (ip, other.port)).collect::<Vec<_>>()
        });
        targets
            .map(|(ip, port)| {
                Target::Address(ip, port.or((self.serf_port != crate::settings::SERF_PORT).then_some(self.serf_port)))
            })
            .filter(|target| self.joined.get(&target.to_string()).is_none_or(|at| at.elapsed() >= JOIN_AGAIN))
            .collect()
    }

    fn reap_joins(&mut self) {
        while let Some(done) = self.joining.try_join_next() {
            match done {
                Ok((address, Ok(()))) => info!(address, "joined a peer"),
                Ok((address, Err(error))) => {
                    debug!(address, "could not join a peer: {}", chain(&error));
                    self.refused = Some(error.to_string());
                }
                Err(_) => {}
            }
        }
    }

    fn is_in(&self, peers: &[SocketAddr]) -> bool {
        // Where the address is Consul's own choice it cannot be told from another's, and any configuration must do.
        self.own.is_empty() && !peers.is_empty() || peers.iter().any(|peer| self.own.contains(&peer.ip()))
    }
}

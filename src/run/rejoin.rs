//! Has this client lost its servers, and where are they now? Consul resolves `retry_join` at the start and never again
//! (hashicorp/consul#3902), so whoever moves all servers leaves their clients behind.
//!
//! Takes the own agent and the sources. When no leader is known through the agent for some seconds, it looks for servers again
//! and joins one through the agent, which tells it all others. A fleet that loses its servers at one moment shares a rate of
//! rounds: each client has its place among all members. Never stops the agent: [`Rejoin::watch`] ends with the reason when the
//! agent must be started again. Every other failure is a log line.

use super::{NOTE_EVERY, note_servers};
use crate::api::consul::{Agent, ApiError};
use crate::decide::Target;
use crate::exit::chain;
use crate::init::millis;
use crate::record::Volume;
use crate::record::lock::Held;
use crate::settings::Local;
use crate::survey::agents::Verdict;
use crate::survey::{Other, Survey, Surveyor};
use crate::time::{SAY_EVERY, text};
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use tokio::time::{Instant, sleep};
use tracing::{debug, info, warn};

/// How often the agent is asked: for its members, which it has in memory, and for the leader, which a server answers.
const LOOK: Duration = Duration::from_secs(3);
/// A leader that changes is away for a moment too.
const PATIENCE: Duration = Duration::from_secs(2);
/// An agent whose API is silent for as long hangs: what kubelet's liveness probe allows by the manifests.
const SILENT: Duration = Duration::from_secs(60);
/// An agent that is younger says of itself what it was before.
const SETTLED: Duration = Duration::from_secs(5);
/// How long after a join a server is in the member list, if nothing is in its way. One that returned under its name at another address
/// is not, for 30 s and more: memberlist takes nobody's name away (1.22.6: "Name conflict", `DeadNodeReclaimTime`), and only a new agent
/// has none to give back.
const CONFLICT: Duration = Duration::from_millis(500);
/// No agent is started again for that sooner.
const LIVES: Duration = Duration::from_secs(15);
/// Rounds a second of all clients together. A round is one question to each source (DNS: two), and a join of one server: the API
/// server or DNS gets at most 16 questions a second, and one server at most 8 joins.
const FLEET_RATE: f64 = 8.0;
/// What a fleet has whose members may not be counted, and are not in order.
const UNCOUNTED: usize = 400;
/// The least between two rounds of one client, and the most where no larger fleet asks for more.
const ROUNDS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(15));
/// After so many rounds the pauses grow: servers that move are back by then.
const SOON: u32 = 12;
const SHORTLY: Duration = Duration::from_millis(100);
/// How many servers are tried in one round. One that was just seen to answer as a server hardly refuses.
const TRIES: usize = 2;

/// Watches one client.
#[derive(Debug)]
pub struct Rejoin {
    agent: Agent,
    node: String,
    /// Serf's port where no source gives one.
    serf_port: Option<u16>,
    own: BTreeSet<IpAddr>,
    volume: Volume,
    surveyor: Surveyor,
}

/// What the agent showed.
enum Seen {
    /// A leader answers, and a server is alive.
    Joined(SocketAddr),
    /// Neither, and why.
    Alone(String),
    /// It says that it has left.
    Left,
    /// Its API does not answer.
    Silent(ApiError),
}

/// A loss that goes on.
struct Lost {
    since: Instant,
    said: Instant,
    fleet: Fleet,
    rounds: u32,
    next: Instant,
    /// When a server that knows a leader was joined.
    joined: Option<(Instant, IpAddr)>,
}

/// A server that answers.
struct Found {
    server: String,
    ip: IpAddr,
    target: Target,
    /// It knows a leader.
    leads: bool,
}

/// How many look for servers together, and which of them we are.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Fleet {
    size: usize,
    /// 0 to 1.
    place: f64,
}

// === impl Rejoin ===

impl Rejoin {
    /// Prepares to watch.
    pub fn new(local: &Local, agent: Agent, volume: Volume, surveyor: Surveyor) -> Self {
        let own = local.own_addresses.iter().copied().collect();
        let serf_port = local.peer.serf_of_a_target();
        Self { agent, node: local.node_name.clone(), serf_port, own, volume, surveyor }
    }

    /// Watches until the agent must be started again; gives the reason. `waiting` is let go of once the agent's API answers.
    pub async fn watch(&mut self, mut waiting: Option<Held>) -> String {
        let begun = Instant::now();
        let (mut answered, mut joined, mut noted) = (begun, false, None::<Instant>);
        let mut lost: Option<Lost> = None;
        loop {
            let seen = self.look().await;
            if !matches!(seen, Seen::Silent(_)) {
                answered = Instant::now();
                waiting = None;
            }
            match seen {
                Seen::Joined(leader) => {
                    let was_lost = lost.take();
                    let first = !std::mem::replace(&mut joined, true);
                    if first || was_lost.is_some() {
                        self.volume.note_not_joined(None);
                    }
                    if first {
                        info!(%leader, took_ms = millis(begun.elapsed()), "joined: a leader is known");
                    } else if let Some(lost) = was_lost {
                        info!(%leader, took_ms = millis(lost.since.elapsed()), "a leader is known again");
                    }
                    if noted.is_none_or(|at| at.elapsed() >= NOTE_EVERY) {
                        note_servers(&self.agent, &self.own, &self.volume, &mut self.surveyor).await;
                        noted = Some(Instant::now());
                    }
                }
                Seen::Alone(why) => match &mut lost {
                    Some(Lost { joined: Some((at, server)), .. })
                        if at.elapsed() >= CONFLICT && begun.elapsed() >= LIVES && self.lacks(*server).await =>
                    {
                        return format!(
                            "{server} was joined and is not in the member list, where its name has another address ({why})"
                        );
                    }
                    None => lost = Some(self.lose(&why).await),
                    Some(lost) if Instant::now() >= lost.next => self.round(lost, &why).await,
                    Some(_) => {}
                },
                Seen::Left if begun.elapsed() >= SETTLED => {
                    return "the agent says that it has left the cluster".to_owned();
                }
                Seen::Left => {}
                Seen::Silent(error) if answered.elapsed() >= SILENT => {
                    return format!("the agent's API gave no answer for {} ({error})", text(SILENT));
                }
                Seen::Silent(error) => debug!("{}", chain(&error)),
            }
            let next = match &lost {
                // An agent that is just being started.
                _ if waiting.is_some() => SHORTLY,
                Some(lost) => lost.next.saturating_duration_since(Instant::now()).clamp(SHORTLY, ROUNDS.0),
                None => LOOK,
            };
            sleep(next).await;
        }
    }

    async fn look(&self) -> Seen {
        // The agent has this in memory, so its silence is the agent's own.
        let members = match self.agent.servers().await {
            Ok(members) => members,
            Err(error) if error.is_no_answer() => return Seen::Silent(error),
            // A token that Consul does not know may not ask, but there is somebody who says so.
            Err(_) => Vec::new(),
        };
        if let Ok(Some(own)) = self.agent.member(&self.node).await
            && own.has_left()
        {
            return Seen::Left;
        }
        // Without node:read there are none at all.
        if !members.is_empty() && !members.iter().any(|member| member.is_alive()) {
            return Seen::Alone("no server is alive in the member list".to_owned());
        }
        match self.agent.leader().await {
            Ok(Some(leader)) => Seen::Joined(leader),
            Ok(None) => Seen::Alone("no leader is known".to_owned()),
            Err(error) => Seen::Alone(format!("no leader is known: {error}")),
        }
    }

    /// Whether a server is missing in the member list, as far as that can be read.
    async fn lacks(&self, server: IpAddr) -> bool {
        let members = self.agent.servers().await.unwrap_or_default();
        !members.is_empty() && !members.iter().any(|member| member.addr.parse() == Ok(server))
    }

    async fn lose(&self, why: &str) -> Lost {
        let members = self.agent.members().await.unwrap_or_default();
        let names: Vec<String> = members.into_iter().map(|member| member.name).collect();
        let fleet = Fleet::of(&names, &self.node);
        debug!(members = fleet.size, place = fleet.place, "lost: {why}");
        let now = Instant::now();
        Lost { since: now, said: now, fleet, rounds: 0, next: now + PATIENCE + fleet.first(), joined: None }
    }

    /// Looks for servers, and joins one.
    async fn round(&mut self, lost: &mut Lost, why: &str) {
        let survey = self.surveyor.survey().await;
        let servers = self.joinable(&survey);
        let refused = self.join_one(&servers, lost).await;
        let seen: Vec<String> = refused.into_iter().chain(survey.told()).collect();
        let seen = if seen.is_empty() { "no server is known".to_owned() } else { seen.join("; ") };
        self.volume.note_not_joined(Some(&seen));
        if lost.said.elapsed() >= SAY_EVERY || lost.rounds == 0 {
            lost.said = Instant::now();
            warn!(waited_s = lost.since.elapsed().as_secs(), "{why}: looking for the servers again: {seen}");
        }
        lost.rounds += 1;
        lost.next = Instant::now() + lost.fleet.pause(lost.rounds);
    }

    /// The servers that answered, each with the address to join it by.
    fn joinable(&self, survey: &Survey) -> Vec<Found> {
        let answers = |other: &Other, ip: &IpAddr| other.reports.get(ip).is_some_and(Verdict::is_server);
        survey
            .others
            .iter()
            .filter_map(|other| {
                let ip = other.joined_at().into_iter().find(|ip| answers(other, ip))?;
                let leads = other.verdict.leader().is_some();
                Some(Found {
                    server: other.name.clone(),
                    ip,
                    target: Target::Address(ip, other.port.or(self.serf_port)),
                    leads,
                })
            })
            .collect()
    }

    /// Joins the first that takes us, beginning at our own place, so that no server gets all of a fleet. Gives why none did.
    async fn join_one(&self, servers: &[Found], lost: &mut Lost) -> Option<String> {
        let mut refused = None;
        let begin = lost.fleet.begins_at(servers.len()) + lost.rounds as usize;
        for Found { server, ip, target, leads } in servers.iter().cycle().skip(begin).take(TRIES.min(servers.len())) {
            let address = target.to_string();
            match self.agent.join(&address).await {
                Ok(()) => {
                    info!(server, address, "joined a server");
                    lost.joined = lost.joined.or(leads.then(|| (Instant::now(), *ip)));
                    return None;
                }
                Err(error) => {
                    let differs = error.foreign().map(|foreign| format!("{}; ", foreign.differs())).unwrap_or_default();
                    refused = Some(format!("joining {server} was refused: {differs}{error}"));
                }
            }
        }
        refused
    }
}

// === impl Fleet ===

impl Fleet {
    /// Our place in the order of the members' names.
    fn of(members: &[String], node: &str) -> Self {
        let before = members.iter().filter(|name| name.as_str() < node).count();
        match members.len() {
            0 => Self { size: UNCOUNTED, place: crate::init::place(node) },
            size => Self { size, place: before as f64 / size as f64 },
        }
    }

    /// How long one round of all takes.
    fn window(self) -> Duration {
        Duration::from_secs_f64(self.size as f64 / FLEET_RATE).max(ROUNDS.0)
    }

    /// Until our first round.
    fn first(self) -> Duration {
        self.window().mul_f64(self.place)
    }

    /// Until the next one, after so many.
    fn pause(self, rounds: u32) -> Duration {
        let window = self.window();
        let grown = 2_u32.pow(rounds.saturating_sub(SOON).min(8));
        (window * grown).min(ROUNDS.1.max(window))
    }

    fn begins_at(self, servers: usize) -> usize {
        (self.place * 1e6) as usize % servers.max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(count: usize) -> Vec<String> {
        (0..count).map(|index| format!("client-{index:04}")).collect()
    }

    /// The rounds of a fleet that loses its servers within five seconds and finds none for ten minutes: when, and which server.
    fn rounds(size: usize, servers: usize) -> Vec<(Duration, usize)> {
        let members = names(size);
        let mut all = Vec::new();
        for (index, node) in members.iter().enumerate() {
            let fleet = Fleet::of(&members, node);
            // When this one notices.
            let mut at = PATIENCE + Duration::from_millis(index as u64 * 7919 % 5000) + fleet.first();
            let mut round = 0;
            while at < Duration::from_secs(600) {
                all.push((at, (fleet.begins_at(servers) + round as usize) % servers));
                round += 1;
                at += fleet.pause(round);
            }
        }
        all.sort();
        all
    }

    fn most_in_a_second<'a>(all: impl Iterator<Item = &'a (Duration, usize)> + Clone) -> usize {
        let within = |begin: Duration| {
            all.clone().filter(|one| one.0 >= begin && one.0 < begin + Duration::from_secs(1)).count()
        };
        all.clone().map(|one| within(one.0)).max().unwrap()
    }

    #[test]
    fn two_hundred_clients_that_lose_their_servers_together_are_no_storm() {
        for servers in [1, 3] {
            let all = rounds(200, servers);
            let most = most_in_a_second(all.iter());
            // With DNS a round is two questions.
            assert!(most * 2 <= 20, "{most} rounds within a second");
            for server in 0..servers {
                let joins = most_in_a_second(all.iter().filter(|one| one.1 == server).collect::<Vec<_>>().into_iter());
                assert!(joins <= 10, "{joins} joins of one server within a second");
            }
        }
    }

    #[test]
    fn a_small_fleet_looks_at_once_and_then_less_often() {
        let members = names(10);
        let fleet = Fleet::of(&members, "client-0005");
        assert_eq!(fleet, Fleet { size: 10, place: 0.5 });
        assert!(fleet.first() < Duration::from_secs(1));
        let pauses: Vec<u128> = (10..18).map(|round| fleet.pause(round).as_millis()).collect();
        assert_eq!(pauses, [1250, 1250, 1250, 2500, 5000, 10_000, 15_000, 15_000]);
    }

    #[test]
    fn a_fleet_that_cannot_be_counted_is_taken_for_a_large_one() {
        assert_eq!(Fleet::of(&[], "client").size, UNCOUNTED);
    }
}

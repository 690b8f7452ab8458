//! How is every other server: stopped, empty, isolated, or may it still vote?
//!
//! Takes the survey and what this server's own raft configuration and record still have, gives one [`Other`] each. Asks Kubernetes
//! and agents, and never takes silence for an end: only a person may say so ([`State::Vouched`]), and not of an address that
//! takes connections. Never fails: what cannot be told is a state.

use super::World;
use super::facts::{Other, State, Us, last};
use crate::api::consul::{Agent, AgentSelf};
use crate::api::kube::Pod;
use crate::record::Holding;
use crate::settings::Seat;
use crate::settings::recovering::Recovery;
use crate::survey::agents::{Heard, PREPARES, Verdict, ask};
use crate::survey::statefulset::Shape;
use crate::survey::{self, Survey};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long a dial may take that only asks whether anybody is there.
const DIAL: Duration = Duration::from_secs(1);

/// Judges them all, sorted by name. `addresses` are those that the claim has for Pods of ours.
pub(super) async fn others(
    world: &World,
    us: &Us,
    recovery: &Recovery,
    holding: &Holding,
    survey: &Survey,
    addresses: BTreeMap<IpAddr, String>,
) -> Vec<Other> {
    let mut looker = Looker { world, us, recovery, addresses, others: BTreeMap::new() };
    for other in &survey.others {
        looker.surveyed(other).await;
    }
    looker.other_ordinals(holding, survey).await;
    looker.raft_peers(holding, survey).await;
    looker.others.into_values().collect()
}

/// Judges the others one by one.
struct Looker<'a> {
    world: &'a World,
    us: &'a Us,
    recovery: &'a Recovery,
    /// Which Pods of ours had which addresses.
    addresses: BTreeMap<IpAddr, String>,
    others: BTreeMap<String, Other>,
}

// === impl Looker ===

impl Looker<'_> {
    /// One that the survey has.
    async fn surveyed(&mut self, other: &survey::Other) {
        if !other.certain && other.verdict.is_stranger() {
            return;
        }
        let answering = other.reports.iter().find(|(_, verdict)| **verdict == other.verdict).map(|(ip, _)| *ip);
        let all: Vec<IpAddr> = other.addresses().collect();
        self.add(&other.name, &other.verdict, answering, &all).await;
    }

    /// Pods of ordinals that the StatefulSet has not any more: one that is scaled to nothing still has them for a while.
    async fn other_ordinals(&mut self, holding: &Holding, survey: &Survey) {
        let (Some((kube, namespace)), Some(seat)) = (self.world.surveyor.kube(), self.world.local.seat.as_ref()) else {
            return;
        };
        let record = holding.record.as_ref();
        let known = record.map_or(0, |record| record.servers.len() + 1).max(self.us.peers.len());
        let expect = record.and_then(|record| record.expect).unwrap_or(0);
        let start = Shape::of(seat, &self.world.settings, survey.statefulset.as_ref()).start;
        let count = u32::try_from(known).unwrap_or(0).max(expect);
        for ordinal in start..start.saturating_add(count) {
            let pod = seat.pod(ordinal);
            if ordinal == seat.ordinal || self.others.contains_key(&pod) {
                continue;
            }
            let verdict = match kube.pod(namespace, &pod).await {
                Ok(None) => Verdict::Absent("there is no such Pod".to_owned()),
                Ok(Some(found)) if found.over => Verdict::Absent("its Pod has ended".to_owned()),
                Ok(Some(found)) if found.ips.is_empty() => Verdict::Absent("its Pod has no address yet".to_owned()),
                Ok(Some(found)) => self.heard(&found.ips).await,
                Err(error) => Verdict::Unknown(error.to_string()),
            };
            self.add(&pod, &verdict, None, &[]).await;
        }
    }

    /// Addresses that this server's own raft configuration or record has, and nobody else.
    async fn raft_peers(&mut self, holding: &Holding, survey: &Survey) {
        let record = holding.record.as_ref();
        let own: BTreeSet<IpAddr> = self.own(holding);
        let recorded = record.iter().flat_map(|record| record.servers.iter().copied());
        let mut addresses: BTreeSet<IpAddr> = self.us.peers.iter().map(SocketAddr::ip).chain(recorded).collect();
        addresses.retain(|ip| !own.contains(ip));
        let judged: BTreeSet<IpAddr> =
            survey.others.iter().flat_map(|other| other.addresses().chain(other.stable.iter().copied())).collect();
        addresses.retain(|ip| !judged.contains(ip));
        for ip in addresses {
            let verdict = self.heard(&[ip]).await;
            // An earlier address of a Pod that was judged by its name leads nowhere.
            let whose = self.addresses.get(&ip).filter(|pod| self.others.contains_key(*pod));
            let verdict = match (verdict, whose) {
                (Verdict::Unknown(why), Some(pod)) if !is_open(ip, self.world.local.peer.server).await => {
                    Verdict::Absent(format!("{why}, and it is an earlier address of {pod}"))
                }
                (verdict, _) => verdict,
            };
            self.add(&ip.to_string(), &verdict, Some(ip), &[ip]).await;
        }
    }

    fn own(&self, holding: &Holding) -> BTreeSet<IpAddr> {
        let recorded = holding.record.iter().flat_map(|record| &record.addresses).copied();
        let now = self.us.peer.as_ref().ok().map(|peer| peer.address.ip());
        self.world.local.own_addresses.iter().copied().chain(recorded).chain(now).collect()
    }

    /// What its addresses answer.
    async fn heard(&self, ips: &[IpAddr]) -> Verdict {
        let local = &self.world.local;
        let mut best = Verdict::Absent("its addresses refuse the server port".to_owned());
        for ip in ips {
            let heard =
                ask(*ip, local.peer, self.world.surveyor.peers(), local.datacenter.as_deref(), Duration::ZERO).await;
            let verdict = match heard {
                Heard::Server(verdict) => verdict,
                Heard::NoServer => Verdict::Absent(format!("{ip} refuses the server port")),
            };
            best = best.or_better(verdict);
        }
        best
    }

    /// Judges one by its verdict; `asked` is the address that gave it.
    async fn add(&mut self, name: &str, verdict: &Verdict, asked: Option<IpAddr>, all: &[IpAddr]) {
        let pod = self.pod(name).await;
        let mut other = Other {
            name: name.to_owned(),
            node_id: None,
            state: self.state(verdict),
            last: None,
            peers: Vec::new(),
            mend: mend(name, pod.is_some()),
            pod: pod.as_ref().map(told).unwrap_or_default(),
        };
        let held = pod.as_ref().is_some_and(|pod| pod.held == Some(true));
        match (&mut other.state, pod.and_then(|pod| pod.again)) {
            (State::Stopped(why), _) if held => why.push_str(", and it is held"),
            // With its data, perhaps: two that come back with the old configuration would be a second cluster.
            (State::Stopped(why), Some(again)) => {
                other.state = State::Unknown(format!("{why}, but it is to be started again ({again})"));
                other.mend = format!(
                    "when it has data, hold it (kubectl annotate pod {name} convene.dev/hold=recover) until this one leads; when \
                     its disk is lost: --stopped={name}"
                );
            }
            _ => {}
        }
        if let State::Unknown(why) = &other.state
            && self.is_vouched(name, all).await
        {
            other.state = State::Vouched(why.clone());
        }
        if let Some(reported) = verdict.reported() {
            other.peers.clone_from(&reported.peers);
            let described = match asked.map(|ip| self.world.surveyor.peers().at(ip)) {
                Some(Ok(agent)) => describe(&agent).await,
                Some(Err(error)) => Err(error.to_string()),
                None => Err("it was asked at several addresses".to_owned()),
            };
            let told = described.map(|described| (last(&described), described.config.node_id));
            other.node_id = told.as_ref().ok().map(|(_, id)| id.clone());
            other.last = Some(told.and_then(|(last, _)| last.ok_or("its agent does not tell".to_owned())));
        }
        self.others.insert(name.to_owned(), other);
    }

    fn state(&self, verdict: &Verdict) -> State {
        match verdict {
            Verdict::Absent(why) if why.starts_with(PREPARES) => State::Unknown(format!("{why}: ask again in 10 s")),
            Verdict::Absent(why) => State::Stopped(why.clone()),
            Verdict::NeverFormed => State::Empty,
            Verdict::Stranger(stranger) => State::Unknown(format!("a stranger answers there: {stranger}")),
            Verdict::Unknown(why) => State::Unknown(why.clone()),
            Verdict::Formed(reported) => match reported.leader {
                Some(leader) => State::Led(leader),
                None => {
                    let ours = |peer: &&SocketAddr| self.us.peer.as_ref().is_ok_and(|us| us.address.ip() == peer.ip());
                    let others = reported.peers.len() - reported.peers.iter().filter(ours).count();
                    // Even if all of them voted for it.
                    if others * 2 > reported.peers.len() { State::Runs } else { State::Isolated }
                }
            },
        }
    }

    /// A person says that it is stopped, and nobody takes a connection there.
    async fn is_vouched(&self, name: &str, all: &[IpAddr]) -> bool {
        let named = |one: &String| one == name || all.iter().any(|ip| one.parse() == Ok(*ip));
        if !self.recovery.stopped.iter().any(named) {
            return false;
        }
        for ip in all {
            if is_open(*ip, self.world.local.peer.server).await {
                return false;
            }
        }
        true
    }

    async fn pod(&self, name: &str) -> Option<Pod> {
        let (kube, namespace) = self.world.surveyor.kube()?;
        self.world.local.seat.as_ref().filter(|seat| seat.is_beside(name))?;
        kube.pod(namespace, name).await.ok().flatten()
    }
}

async fn describe(agent: &Agent) -> Result<AgentSelf, String> {
    agent.describe_within(super::facts::PATIENT).await.map_err(|error| error.to_string())
}

async fn is_open(ip: IpAddr, port: u16) -> bool {
    timeout(DIAL, TcpStream::connect((ip, port))).await.is_ok_and(|dialled| dialled.is_ok())
}

fn told(pod: &Pod) -> String {
    let state = match (pod.is_terminating(), pod.held == Some(true)) {
        (true, _) => ", being deleted",
        (false, true) => ", held",
        (false, false) => "",
    };
    format!("Pod {}{state}", pod.phase)
}

/// What to do about a server of which nobody knows whether it runs.
fn mend(name: &str, is_pod: bool) -> String {
    if is_pod {
        return format!(
            "when its machine is off for good: kubectl delete pod {name} --force; else wait until it answers, or is gone"
        );
    }
    match Seat::of_pod(name) {
        Some(_) => format!("when it is stopped for good: --stopped={name}, else stop it or scale the StatefulSet down"),
        None => format!("when it is stopped for good: --stopped={name}"),
    }
}

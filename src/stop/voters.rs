//! How are the other servers, at this moment?
//!
//! Takes the own agent and ways to ask the others, gives a [`View`]: who leads, and for each other voter whether it answers
//! and follows the same leader. Autopilot's word for it lags by 6 to 12 s, so everybody is asked anew each time. A server that
//! does not answer is away; a raft peer without a vote is left out where a token lets us tell it from a voter. Fails only when
//! the own agent does not answer.

use crate::api::consul::{Agent, ApiError, Member, Peers};
use crate::api::kube::{Kube, Pod};
use crate::dial::dial;
use crate::settings::Seat;
use crate::survey::own::is_preparing;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

/// How long another server may take: it has the answer in memory, and a stop has no time for the silent.
pub(super) const ASKED: Duration = Duration::from_millis(700);

/// And to be reached, of that: it takes no process to answer a dial. Whoever is not reached yet is dialled again all the sooner.
const REACHED: Duration = Duration::from_millis(250);

/// How soon the Kubernetes API is asked again of the same Pod: of many servers that wait each asks for all others.
const TOLD: Duration = Duration::from_millis(500);

/// How soon the names of Pods are asked for again when one is not known.
const LEARN: Duration = Duration::from_secs(2);

/// The servers as they are now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct View {
    /// The leader that our agent knows.
    pub leader: Option<SocketAddr>,
    /// Our own address among the raft peers.
    pub us: Option<SocketAddr>,
    /// We are a raft peer that has no vote, or none yet.
    pub voteless: bool,
    /// The other voters, sorted. A raft peer is one unless it is known to be none.
    pub others: Vec<Voter>,
}

/// Another voter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Voter {
    /// Where it is.
    pub address: SocketAddr,
    /// Its Pod's name, where that is known.
    pub pod: Option<String>,
    /// Its ordinal in our StatefulSet.
    pub ordinal: Option<u32>,
    /// Why it is away; `None`: it answers and follows the same leader.
    pub away: Option<String>,
    /// It answers, whomever it follows: in an election no two need agree.
    pub answers: bool,
    /// It did not answer in time, which a machine that is busy for a moment does not do either; nobody refused.
    pub late: bool,
    /// Its Pod is being deleted.
    pub terminating: bool,
    /// And it was taken out of its own Service, right before its end.
    pub withdrawn: bool,
    /// Its Pod is not being deleted, and has an address.
    pub placed: bool,
    /// The Kubernetes API was asked of its Pod and failed to tell, which it may do the next time.
    pub untold: bool,
    /// The revision of the StatefulSet that its Pod was made from.
    pub revision: Option<String>,
}

// === impl View ===

impl View {
    /// Whether we lead.
    pub fn we_lead(&self) -> bool {
        self.leader.is_some() && self.leader == self.us
    }

    /// Whether our stop costs a vote.
    pub fn we_vote(&self) -> bool {
        self.us.is_some() && !self.voteless
    }

    /// How many voters there are, we among them when we are one.
    pub fn count(&self) -> usize {
        self.others.len() + usize::from(self.we_vote())
    }

    /// How many others answer and follow the same leader.
    pub fn well(&self) -> usize {
        self.others.iter().filter(|voter| voter.is_healthy()).count()
    }
}

// === impl Voter ===

impl Voter {
    /// It answers and follows the same leader.
    pub fn is_healthy(&self) -> bool {
        self.away.is_none()
    }

    /// The ordinal in its Pod's name, whichever StatefulSet that is of.
    pub fn rank(&self) -> Option<u32> {
        self.pod.as_deref().and_then(Seat::of_pod).map(|seat| seat.ordinal)
    }

    /// As a person would call it.
    pub fn name(&self) -> String {
        self.pod.clone().unwrap_or_else(|| self.address.ip().to_string())
    }
}

/// Why another server cannot be counted on.
enum Away {
    /// It follows another leader than we, or none.
    Follows(Option<SocketAddr>),
    /// It does not answer, for this reason.
    Silent(String),
    /// It has not answered in time.
    Late(String),
}

impl std::fmt::Display for Away {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Follows(Some(leader)) => write!(f, "it follows {leader}"),
            Self::Follows(None) => f.write_str("it knows no leader"),
            Self::Silent(why) | Self::Late(why) => f.write_str(why),
        }
    }
}

/// Where a server answers, as far as the Kubernetes API tells of its Pod; else its address, and `None`: nowhere.
///
/// Nobody dials in vain an address that leads nowhere: the kernel says so to each of us only once a second (`icmp_ratelimit`), a dial that is
/// told nothing takes its time, and a raft leader's takes Consul's 10 s.
fn reached_at(address: SocketAddr, pod: Option<&Pod>) -> Option<SocketAddr> {
    match pod {
        Some(pod) if pod.is_withdrawn() => pod.ips.first().map(|ip| SocketAddr::new(*ip, address.port())),
        Some(pod) if !pod.is_terminating() && pod.ips.is_empty() => None,
        _ => Some(address),
    }
}

/// Asks the own agent, the others, and the Kubernetes API.
#[derive(Debug, Clone)]
pub struct Asker {
    /// The own agent.
    pub agent: Agent,
    /// Asks the others.
    pub peers: Peers,
    /// The Kubernetes API, and our namespace there.
    pub kube: Option<(Kube, String)>,
    /// Our place in the StatefulSet.
    pub seat: Option<Seat>,
    /// Our addresses.
    pub addresses: BTreeSet<IpAddr>,
    /// The other servers' Pods by their address, as far as they are known.
    pub pods: BTreeMap<IpAddr, String>,
    /// What the Kubernetes API said of the others' Pods, and when.
    told: Told,
    /// When the Pods' addresses were asked for last.
    learned: Option<Instant>,
}

/// What was said of each Pod, and when, unless it is to be asked again; shared by those that ask for one server each.
type Told = Arc<Mutex<BTreeMap<String, (Option<Pod>, Option<Instant>)>>>;

// === impl Asker ===

impl Asker {
    /// Who asks; nothing is known of the others yet.
    pub fn new(
        agent: Agent,
        peers: Peers,
        kube: Option<(Kube, String)>,
        seat: Option<Seat>,
        addresses: BTreeSet<IpAddr>,
    ) -> Self {
        Self { agent, peers, kube, seat, addresses, pods: BTreeMap::new(), told: Told::default(), learned: None }
    }

    /// Learns which Pod is at which address: by the member list (`node:read`), else by the Kubernetes API.
    async fn learn(&mut self) {
        self.learned = Some(Instant::now());
        let mut members = self.agent.servers().await.unwrap_or_default();
        // The address of one that is gone may be another's by now.
        members.sort_by_key(Member::is_alive);
        for member in members {
            if let Ok(ip) = member.addr.parse() {
                self.pods.insert(ip, member.name);
            }
        }
        let (Some((kube, namespace)), Some(seat)) = (self.kube.clone(), self.seat.clone()) else { return };
        // A node may have another name than its Pod.
        if self.pods.values().any(|name| seat.is_beside(name)) {
            return;
        }
        let peers = self.agent.peers().await.unwrap_or_default();
        let reach = u32::try_from(peers.len()).unwrap_or_default().saturating_add(1);
        let mut asking = JoinSet::new();
        for ordinal in seat.ordinal.saturating_sub(reach)..=seat.ordinal.saturating_add(reach) {
            let (kube, namespace, pod) = (kube.clone(), namespace.clone(), seat.pod(ordinal));
            asking.spawn(async move {
                let (service, found) = tokio::join!(kube.service(&namespace, &pod), kube.pod(&namespace, &pod));
                let stable = service.ok().flatten().map(|service| service.ips).unwrap_or_default();
                let own = found.ok().flatten().map(|pod| pod.ips).unwrap_or_default();
                (pod, stable.into_iter().chain(own))
            });
        }
        while let Some(done) = asking.join_next().await {
            if let Ok((pod, ips)) = done {
                self.pods.extend(ips.map(|ip| (ip, pod.clone())));
            }
        }
    }

    /// The servers as they are now.
    ///
    /// # Errors
    /// [`ApiError`]: the own agent does not tell.
    pub async fn view(&self) -> Result<View, ApiError> {
        let (leader, ours) = tokio::join!(self.agent.leader(), self.agent.peers());
        let (leader, ours) = (leader?, ours?);
        let (theirs, voteless) = tokio::join!(self.peers_of(leader), self.voteless(leader));
        let peers = theirs.unwrap_or(ours);
        let us = peers.iter().find(|peer| self.addresses.contains(&peer.ip())).copied();
        let mut asking = JoinSet::new();
        for peer in peers.into_iter().filter(|peer| Some(*peer) != us && !voteless.contains(peer)) {
            let asker = self.clone();
            asking.spawn(async move { asker.voter(peer, leader).await });
        }
        let mut others = Vec::new();
        while let Some(done) = asking.join_next().await {
            others.extend(done.ok());
        }
        others.sort_by_key(|one| (one.ordinal, one.address));
        Ok(View { leader, us, voteless: us.is_some_and(|us| voteless.contains(&us)), others })
    }

    /// The raft peers as the leader has them: nobody tells a server that was taken out. `None`: it does not answer, or is us.
    async fn peers_of(&self, leader: Option<SocketAddr>) -> Option<Vec<SocketAddr>> {
        let leader = leader.filter(|leader| !self.addresses.contains(&leader.ip()))?;
        let agent = self.peers.at(leader.ip()).ok()?;
        timeout(ASKED, agent.peers()).await.ok()?.ok().filter(|peers| !peers.is_empty())
    }

    /// The raft peers that do not vote, as far as a token lets us ask (`operator:read`).
    async fn voteless(&self, leader: Option<SocketAddr>) -> BTreeSet<SocketAddr> {
        // Without a leader the question would be held for 7 s.
        if leader.is_none() {
            return BTreeSet::new();
        }
        let asked = timeout(ASKED, self.agent.raft_configuration()).await;
        let servers = asked.ok().and_then(Result::ok).unwrap_or_default();
        let voteless = servers.iter().filter(|server| !server.voter);
        voteless.filter_map(|server| server.address.parse().ok()).collect()
    }

    async fn voter(&self, address: SocketAddr, leader: Option<SocketAddr>) -> Voter {
        let pod = self.pods.get(&address.ip()).cloned();
        let (told, untold) = self.told(pod.as_deref()).await;
        let away = match reached_at(address, told.as_ref().filter(|_| !untold)) {
            Some(address) => self.away(address, leader).await,
            None => Some(Away::Silent("its Pod has no address yet".to_owned())),
        };
        let beside = pod.as_deref().filter(|pod| self.seat.as_ref().is_some_and(|seat| seat.is_beside(pod)));
        Voter {
            address,
            ordinal: beside.and_then(Seat::of_pod).map(|seat| seat.ordinal),
            answers: !matches!(away, Some(Away::Silent(_) | Away::Late(_))),
            late: matches!(away, Some(Away::Late(_))),
            away: away.map(|away| away.to_string()),
            terminating: told.as_ref().is_some_and(Pod::is_terminating),
            withdrawn: told.as_ref().is_some_and(Pod::is_withdrawn),
            placed: told.as_ref().is_some_and(|pod| !pod.is_terminating() && !pod.ips.is_empty()),
            untold,
            revision: told.and_then(|pod| pod.revision),
            pod,
        }
    }

    /// Why a server cannot be counted on.
    async fn away(&self, address: SocketAddr, leader: Option<SocketAddr>) -> Option<Away> {
        let silent = |why: String| Some(Away::Silent(why));
        let late = || Some(Away::Late(format!("{address} is silent")));
        let asked = async {
            let mut open = match timeout(REACHED, dial(address)).await {
                Ok(Ok(open)) => open,
                Ok(Err(error)) => return silent(format!("{address}: {error}")),
                Err(_) => return late(),
            };
            let agent = match self.peers.at(address.ip()) {
                Ok(agent) => agent,
                Err(error) => return silent(error.to_string()),
            };
            match agent.leader().await {
                Ok(theirs) if theirs == leader => None,
                Ok(theirs) => Some(Away::Follows(theirs)),
                Err(ApiError::Refused { .. }) if is_preparing(&mut open).await => silent("it is starting".to_owned()),
                Err(error @ ApiError::Silent { .. }) => Some(Away::Late(error.to_string())),
                Err(error) => silent(error.to_string()),
            }
        };
        timeout(ASKED, asked).await.unwrap_or_else(|_| late())
    }

    /// Its Pod, as the Kubernetes API tells it, at a look or one shortly before, and whether it did not tell just now: then as it was told
    /// last, since who was about to go has not come back because nobody tells of it. `None`: there is none, or nobody to ask.
    async fn told(&self, pod: Option<&str>) -> (Option<Pod>, bool) {
        let Some(((kube, namespace), pod)) = self.kube.as_ref().zip(pod) else { return (None, false) };
        let (known, at) = self.told.lock().await.get(pod).cloned().unwrap_or_default();
        if at.is_some_and(|at| at.elapsed() < TOLD) {
            return (known, false);
        }
        match kube.pod(namespace, pod).await {
            Ok(told) => {
                self.told.lock().await.insert(pod.to_owned(), (told.clone(), Some(Instant::now())));
                (told, false)
            }
            Err(error) if error.is_refusal() => (None, false),
            Err(_) => (known, true),
        }
    }

    /// The servers as they are now, with the names of their Pods.
    ///
    /// # Errors
    /// [`ApiError`]: the own agent does not tell.
    pub async fn see(&mut self) -> Result<View, ApiError> {
        if self.learned.is_none() {
            self.learn().await;
        }
        let view = self.view().await?;
        // Whoever became a member since.
        let nameless = self.kube.is_some() && view.others.iter().any(|voter| voter.pod.is_none());
        if nameless && self.learned.is_none_or(|at| at.elapsed() >= LEARN) {
            self.learn().await;
            return self.view().await;
        }
        Ok(view)
    }

    /// Has the Kubernetes API asked again at the next look.
    pub async fn forget(&self) {
        self.told.lock().await.values_mut().for_each(|(_, at)| *at = None);
    }

    /// Whether a Pod of our StatefulSet runs; `None`: nobody tells.
    pub async fn runs(&self, ordinal: u32) -> Option<bool> {
        let ((kube, namespace), seat) = (self.kube.as_ref()?, self.seat.as_ref()?);
        let pod = kube.pod(namespace, &seat.pod(ordinal)).await.ok()?;
        Some(pod.is_some_and(|pod| !pod.over && !pod.ips.is_empty()))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The address of an ordinal.
    pub fn at(ordinal: u32) -> SocketAddr {
        SocketAddr::from(([10, 96, 0, u8::try_from(ordinal).unwrap_or(0)], 8300))
    }

    /// A healthy one.
    pub fn voter(ordinal: u32) -> Voter {
        Voter {
            address: at(ordinal),
            pod: Some(format!("consul-server-{ordinal}")),
            ordinal: Some(ordinal),
            away: None,
            answers: true,
            late: false,
            terminating: false,
            withdrawn: false,
            placed: true,
            untold: false,
            revision: None,
        }
    }

    /// The others as we see them; the first one leads.
    pub fn view(us: u32, others: Vec<Voter>) -> View {
        let leader = others.first().map_or(at(us), |first| first.address);
        View { leader: Some(leader), us: Some(at(us)), voteless: false, others }
    }

    impl Voter {
        /// One that does not answer.
        pub fn away(self) -> Self {
            Self { away: Some("it does not answer".to_owned()), answers: false, ..self }
        }

        /// One that has not answered in time.
        pub fn late(self) -> Self {
            Self { late: true, ..self.away() }
        }

        /// One that answers, and follows no leader or another.
        pub fn astray(self) -> Self {
            Self { away: Some("it knows no leader".to_owned()), ..self }
        }

        /// One whose Pod is being deleted.
        pub fn going(self) -> Self {
            Self { terminating: true, ..self }
        }

        /// And that was taken out of its Service.
        pub fn withdrawn(self) -> Self {
            Self { withdrawn: true, ..self.going() }
        }
    }
}

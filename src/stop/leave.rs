//! A graceful leave: ask the own agent to leave, and be done when another server agrees.
//!
//! Takes the own agent and our addresses, gives [`Left`] once another server's raft peers lack us (for a client: once the
//! agent says so). A signal is not a reliable way to leave, and Consul's own course goes on for seconds after the cluster has
//! let us go, so the answer of another server decides. "Already gone" is success. Never signals the agent.

use super::voters::ASKED;
use crate::api::consul::{Agent, ApiError, Member, Peers};
use crate::record::lock::{Held, Lock};
use crate::record::{RecordError, Volume};
use crate::settings::Role;
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use thiserror::Error;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};
use tracing::{info, warn};

/// How often the others are asked whether they have let us go.
const POLL: Duration = Duration::from_millis(100);
/// How long gossip may need until the others know; then they are told by API, as often. Consul's own course gives up after 5 s
/// of asking raft (1.22.6, `raftRemoveGracePeriod`), and a leader whom the news does not reach takes us for failed.
const GOSSIP: Duration = Duration::from_secs(2);
/// How long gossip needs at most until all clients know of a leave that somebody may still carry (0.2 to 0.4 s with three; 1.22.6).
/// A client that takes a server for failed does not take its name at another address for 30 s.
const SPREAD: Duration = Duration::from_secs(1);
/// After so long without a word from any other server nobody is going to confirm a leave.
const NOBODY: Duration = Duration::from_secs(10);
/// How long an agent that refuses the connection may be one that is just being started.
const STARTING: Duration = Duration::from_secs(5);

/// A leave that is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Left {
    /// How it is known.
    pub confirmed: String,
    /// How long it took.
    pub took: Duration,
}

/// Why a leave is not over.
#[derive(Debug, Error)]
pub enum LeaveError {
    /// The own agent could not be asked before anything was begun.
    #[error("could not leave: {0}; is the agent running, and is CONSUL_HTTP_ADDR its address?")]
    NoAgent(#[source] ApiError),
    /// We may not.
    #[error(
        "could not leave: the agent says we may not; the token (CONSUL_HTTP_TOKEN_FILE) needs the policy agent \"{node}\" {{ policy = \"write\" }}"
    )]
    Denied {
        /// The node's name.
        node: String,
        /// What the agent said.
        #[source]
        cause: ApiError,
    },
    /// Consul does not know us.
    #[error(
        "could not leave: Consul does not know our token (CONSUL_HTTP_TOKEN_FILE), which has expired or was deleted; one with the policy agent \"{node}\" {{ policy = \"write\" }} is needed"
    )]
    UnknownToken {
        /// The node's name.
        node: String,
        /// What the agent said.
        #[source]
        cause: ApiError,
    },
    /// The lock could not be had.
    #[error(transparent)]
    Lock(#[from] RecordError),
    /// Somebody else held the lock all the time.
    #[error("could not stop in good order: another convene stops on this volume, and did not end within {}", crate::time::text(*.waited))]
    Held {
        /// How long it was tried.
        waited: Duration,
    },
    /// Nobody knows which address is ours.
    #[error(
        "could not leave: this server's own address is not known; set POD_IP by the downward API, or give --advertise"
    )]
    NoAddress,
    /// The agent refused for another reason.
    #[error("could not leave: {0}")]
    Failed(#[source] ApiError),
    /// It would have cost the cluster its quorum, or no leader could take part in it.
    #[error("did not leave within {}, since {gate}; stopping without", crate::time::text(*.waited))]
    Shut {
        /// The gate, with its numbers.
        gate: String,
        /// How long it was tried.
        waited: Duration,
    },
    /// All others left meanwhile, so that what is left of the cluster is us.
    #[error("did not leave, since nobody else votes any more")]
    Alone,
    /// The others still list us.
    #[error("could not confirm the leave within {}: {last}", crate::time::text(*.waited))]
    Unconfirmed {
        /// What was seen last.
        last: String,
        /// How long it was tried.
        waited: Duration,
    },
}

/// Who leaves.
#[derive(Debug, Clone)]
pub struct Leaver {
    /// The own agent.
    pub agent: Agent,
    /// Asks the others.
    pub peers: Peers,
    /// Our name in Consul.
    pub node: String,
    /// Our addresses. Those that we had earlier may be another server's by now.
    pub addresses: BTreeSet<IpAddr>,
    /// Server or client.
    pub role: Role,
}

/// Leaves, and notes it on the volume.
///
/// # Errors
/// [`LeaveError`].
pub async fn leave(volume: &Volume, mut leaver: Leaver, deadline: Instant) -> Result<Left, LeaveError> {
    let record = volume.read()?.record;
    leaver.addresses.extend(record.as_ref().and_then(|record| record.advertise));
    if leaver.addresses.is_empty() && leaver.role == Role::Server {
        return Err(LeaveError::NoAddress);
    }
    let known = record.map(|record| record.servers).unwrap_or_default();
    let begun = Instant::now();
    let left = timeout_at(deadline, leaver.leave(&known, deadline)).await.unwrap_or_else(|_| {
        Err(LeaveError::Unconfirmed { last: "the own agent does not answer".to_owned(), waited: begun.elapsed() })
    })?;
    // A volume that cannot be written changes nothing about the leave.
    if let Err(error) = volume.change_record(|record| record.left = true) {
        warn!("{}", crate::exit::chain(&error));
    }
    Ok(left)
}

/// Leaves gossip alone: asks the agent to leave, and waits until all clients may know, so that its name is free at its next address.
/// Its data, and its place among the raft peers if the leader leaves it to it, are for its return.
///
/// # Errors
/// [`LeaveError`]: the agent refused.
pub async fn leave_gossip(leaver: &Leaver) -> Result<(), LeaveError> {
    tokio::select! {
        answer = leaver.agent.leave(SPREAD * 2) => leaver.answered(answer),
        () = sleep(SPREAD) => Ok(()),
    }
}

/// Waits until no other convene stops on this volume: a hook is not cut short by the TERM after it.
///
/// # Errors
/// [`LeaveError::Lock`], and [`LeaveError::Held`] when the deadline is over.
pub async fn stopping(volume: &Volume, deadline: Instant) -> Result<Held, LeaveError> {
    let (begun, mut said) = (Instant::now(), false);
    loop {
        if let Some(held) = volume.try_lock(Lock::Stopping)? {
            return Ok(held);
        }
        if Instant::now() >= deadline {
            return Err(LeaveError::Held { waited: begun.elapsed() });
        }
        if !std::mem::replace(&mut said, true) {
            info!("this stop is done by another convene on this volume: waiting for it");
        }
        tokio::time::sleep(POLL).await;
    }
}

// === impl Leaver ===

impl Leaver {
    /// Leaves. `known` are servers that were known earlier, for an agent that has ended already.
    ///
    /// # Errors
    /// [`LeaveError`].
    async fn leave(&self, known: &[IpAddr], deadline: Instant) -> Result<Left, LeaveError> {
        let begun = Instant::now();
        let done = |confirmed: String| Ok(Left { confirmed, took: begun.elapsed() });
        // A person may have done it.
        let own = self.agent.describe().await;
        if own.as_ref().is_ok_and(|own| own.member.as_ref().is_some_and(Member::has_left)) {
            return done("it had left already".to_owned());
        }
        let known: BTreeSet<IpAddr> = known.iter().copied().collect();
        if self.role == Role::Client {
            if let Err(error @ ApiError::Refused { .. }) = own {
                return Err(LeaveError::NoAgent(error));
            }
            return done(self.leave_as_client(&known, deadline).await?);
        }
        let mut said = false;
        loop {
            let error = match self.agent.peers().await {
                Ok(peers) => {
                    return self.leave_as_server(peers.iter().map(SocketAddr::ip).collect(), deadline, begun).await;
                }
                Err(error) => error,
            };
            // That is well when the others have let us go.
            if let View::Gone(server) = self.view(&known).await {
                return done(format!("the raft peers of {server} lack us already"));
            }
            if !matches!(error, ApiError::Refused { .. }) || begun.elapsed() >= STARTING {
                return Err(LeaveError::NoAgent(error));
            }
            if !std::mem::replace(&mut said, true) {
                info!("{error}: it may be starting, and is asked again");
            }
        }
    }

    /// Over as soon as a server sees us as left. Where none may be asked for its members, the agent's own answer must do, which
    /// comes seconds later.
    async fn leave_as_client(&self, known: &BTreeSet<IpAddr>, deadline: Instant) -> Result<String, LeaveError> {
        let asked = self.agent.leave(deadline.saturating_duration_since(Instant::now()));
        tokio::pin!(asked);
        loop {
            tokio::select! {
                answer = &mut asked => {
                    self.answered(answer)?;
                    return Ok("the agent answered that it has left".to_owned());
                }
                server = self.seen_as_left(known) => if let Some(server) = server {
                    return Ok(format!("{server} sees us as left"));
                }
            }
        }
    }

    /// Who sees this client as left.
    async fn seen_as_left(&self, known: &BTreeSet<IpAddr>) -> Option<IpAddr> {
        sleep(POLL).await;
        let mut asking = JoinSet::new();
        for (ip, agent) in known.iter().filter_map(|ip| Some((*ip, self.peers.at(*ip).ok()?))) {
            let node = self.node.clone();
            asking.spawn(async move { (ip, agent.member(&node).await) });
        }
        while let Some(answer) = asking.join_next().await {
            if let Ok((ip, Ok(Some(member)))) = answer
                && member.has_left()
            {
                return Some(ip);
            }
        }
        None
    }

    async fn leave_as_server(&self, peers: Vec<IpAddr>, deadline: Instant, begun: Instant) -> Result<Left, LeaveError> {
        let others: BTreeSet<IpAddr> = peers.iter().copied().filter(|ip| !self.addresses.contains(ip)).collect();
        let in_raft_peers = peers.len() > others.len();
        info!(others = others.len(), in_raft_peers, "leaving: asking the agent");
        let asked = self.agent.leave(deadline.saturating_duration_since(begun));
        let asked_at = Instant::now();
        tokio::pin!(asked);
        // Who is not among the raft peers, or is their only one, has nobody to confirm it but the agent.
        if !in_raft_peers || others.is_empty() {
            self.answered(asked.await)?;
            return Ok(Left { confirmed: "the agent answered that it has left".to_owned(), took: begun.elapsed() });
        }
        let (mut answered, mut helped) = (false, false);
        let mut heard = asked_at;
        let mut last = "no other server has answered".to_owned();
        let mut telling = JoinSet::new();
        let unheard = sleep(GOSSIP);
        tokio::pin!(unheard);
        loop {
            tokio::select! {
                answer = &mut asked, if !answered => {
                    // One that ends, or is slow, may still be gone: the others say.
                    match self.answered(answer) {
                        Err(LeaveError::Unconfirmed { .. }) | Ok(()) => answered = true,
                        Err(error) => return Err(error),
                    }
                }
                view = self.view(&others) => match view {
                    View::Gone(server) => {
                        let how = if helped { ", told by API since gossip was late" } else { "" };
                        return Ok(Left { confirmed: format!("the raft peers of {server} lack us{how}"), took: begun.elapsed() });
                    }
                    View::Listed { text, by_nobody } => {
                        last = text;
                        if !by_nobody {
                            heard = Instant::now();
                        }
                        if asked_at.elapsed() >= SPREAD {
                            match self.own_view().await {
                                // Consul would try for 15 s, and go on as the leader.
                                Some(Own::Alone) => return Err(LeaveError::Alone),
                                // All stop at once, and who could confirm it has ended. Consul itself asks for no more.
                                Some(Own::Out) if by_nobody => {
                                    let confirmed = "our own raft peers lack us, and no other server answers any more";
                                    return Ok(Left { confirmed: confirmed.to_owned(), took: begun.elapsed() });
                                }
                                _ => {}
                            }
                        }
                        if heard.elapsed() >= NOBODY {
                            return Err(LeaveError::Unconfirmed { last, waited: begun.elapsed() });
                        }
                    }
                },
                () = &mut unheard => {
                    self.tell(&others, &mut telling);
                    unheard.as_mut().reset(Instant::now() + GOSSIP);
                }
                Some(told) = telling.join_next() => helped |= told.is_ok_and(|told| told.is_ok()),
                () = sleep_until(deadline) => return Err(LeaveError::Unconfirmed { last, waited: begun.elapsed() }),
            }
        }
    }

    /// What our own agent's raft configuration says of us, where it says anything special.
    async fn own_view(&self) -> Option<Own> {
        let peers = self.agent.peers().await.ok().filter(|peers| !peers.is_empty())?;
        match peers.iter().filter(|peer| self.addresses.contains(&peer.ip())).count() {
            0 => Some(Own::Out),
            ours if ours == peers.len() => Some(Own::Alone),
            _ => None,
        }
    }

    /// Tells the others by API that we have left. Without operator:write none of them takes it, and gossip is waited for; an
    /// agent that has not left yet refutes it.
    fn tell(&self, others: &BTreeSet<IpAddr>, telling: &mut JoinSet<Result<(), ApiError>>) {
        for agent in others.iter().filter_map(|ip| self.peers.at(*ip).ok()) {
            let node = self.node.clone();
            telling.spawn(async move { agent.force_leave(&node).await });
        }
    }

    /// The agent's answer to the order. One that ended meanwhile has done what it was told.
    fn answered(&self, answer: Result<(), ApiError>) -> Result<(), LeaveError> {
        match answer {
            Ok(()) | Err(ApiError::Broken { .. } | ApiError::Refused { .. }) => Ok(()),
            Err(ApiError::Silent { url, waited }) => {
                Err(LeaveError::Unconfirmed { last: format!("{url} gave no answer"), waited })
            }
            Err(cause) if cause.is_unknown_token() => Err(LeaveError::UnknownToken { node: self.node.clone(), cause }),
            Err(cause) if cause.is_denied() => Err(LeaveError::Denied { node: self.node.clone(), cause }),
            Err(cause) => Err(LeaveError::Failed(cause)),
        }
    }

    /// What the others see of us, asked all at once; the first one that has let us go decides.
    async fn view(&self, others: &BTreeSet<IpAddr>) -> View {
        sleep(POLL).await;
        let mut asking = JoinSet::new();
        for ip in others.iter().copied() {
            let leaver = self.clone();
            // A Pod that is gone swallows what it is asked, and our own agent is looked at only in between.
            asking.spawn(async move { (ip, timeout(ASKED, leaver.view_of(ip)).await) });
        }
        let (mut text, mut by_nobody) = ("no other server has answered".to_owned(), true);
        while let Some(done) = asking.join_next().await {
            match done {
                Ok((ip, Ok(Ok(None)))) => return View::Gone(ip.to_string()),
                Ok((ip, Ok(Ok(Some(listed))))) => (text, by_nobody) = (format!("{ip} {listed}"), false),
                Ok((_, Ok(Err(error)))) if by_nobody => text = error.to_string(),
                Ok((ip, Err(_))) if by_nobody => text = format!("{ip} is silent"),
                _ => {}
            }
        }
        View::Listed { text, by_nobody }
    }

    /// How one other server still lists us; `None` when it has let us go.
    async fn view_of(&self, ip: IpAddr) -> Result<Option<String>, ApiError> {
        let agent = self.peers.at(ip)?;
        let peers = agent.peers().await?;
        if peers.iter().any(|peer| self.addresses.contains(&peer.ip())) {
            return Ok(Some("still lists us among its raft peers".to_owned()));
        }
        if peers.is_empty() {
            return Ok(Some("has no raft peers itself".to_owned()));
        }
        // Where we may read the members, the news must have come as "left", not as a failure. Without node:read the list is empty.
        let members = agent.servers().await.unwrap_or_default();
        let waiting = members.iter().any(|member| member.name == self.node && !member.has_left());
        Ok(waiting.then(|| "does not see us as left yet".to_owned()))
    }
}

/// What the others see of us.
enum View {
    /// One has let us go.
    Gone(String),
    /// None has, or nobody answers at all; what was seen last.
    Listed { text: String, by_nobody: bool },
}

/// What our own agent sees of us.
enum Own {
    /// Nobody else is in its raft configuration.
    Alone,
    /// We are not in it.
    Out,
}

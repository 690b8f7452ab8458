//! A graceful leave: ask the own agent to leave, and be done when another server agrees.
//!
//! Takes the own agent and our addresses, gives [`Left`] once another server's raft peers lack us (for a client: once the
//! agent says so). A signal is not a reliable way to leave, and Consul's own course goes on for seconds after the cluster has
//! let us go, so the answer of another server decides. "Already gone" is success. Never signals the agent.

use crate::api::consul::{Agent, ApiError, Peers};
use crate::api::kube::Event;
use crate::record::lock::{Held, Lock};
use crate::record::{RecordError, Volume};
use crate::settings::Role;
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use thiserror::Error;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

/// How often the others are asked whether they have let us go.
const POLL: Duration = Duration::from_millis(100);

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
    /// The lock could not be had.
    #[error(transparent)]
    Lock(#[from] RecordError),
    /// Somebody else held the lock all the time.
    #[error("could not leave: another convene stops on this volume, and did not end within {}", crate::time::text(*.waited))]
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

/// Leaves, after whoever else does it on this volume, and notes it.
///
/// # Errors
/// [`LeaveError`].
pub async fn leave_once(volume: &Volume, mut leaver: Leaver, deadline: Instant) -> Result<Left, LeaveError> {
    let _stopping = stopping(volume, deadline).await?;
    let record = volume.read()?.record;
    leaver.addresses.extend(record.as_ref().and_then(|record| record.advertise));
    if leaver.addresses.is_empty() && leaver.role == Role::Server {
        return Err(LeaveError::NoAddress);
    }
    let known = record.map(|record| record.servers).unwrap_or_default();
    let left = leaver.leave(&known, deadline).await?;
    info!(took_ms = crate::init::millis(left.took), "left the cluster: {}", left.confirmed);
    // A volume that cannot be written changes nothing about the leave.
    if let Err(error) = volume.change_record(|record| record.left = true) {
        warn!("{}", crate::exit::chain(&error));
    }
    Ok(left)
}

/// A leave as an Event.
pub fn told(result: &Result<Left, LeaveError>) -> Event {
    match result {
        Ok(left) => Event {
            reason: "Left",
            warning: false,
            message: format!("left the cluster in {}: {}", crate::time::text(left.took), left.confirmed),
        },
        Err(error) => Event { reason: "NotLeft", warning: true, message: crate::exit::chain(error) },
    }
}

/// Waits until no other convene stops on this volume: a hook is not cut short by the TERM after it.
async fn stopping(volume: &Volume, deadline: Instant) -> Result<Held, LeaveError> {
    let begun = Instant::now();
    loop {
        if let Some(held) = volume.try_lock(Lock::Stopping)? {
            return Ok(held);
        }
        if Instant::now() >= deadline {
            return Err(LeaveError::Held { waited: begun.elapsed() });
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
        // A hook before this TERM may have done it.
        if self.agent.describe().await.is_ok_and(|own| own.member.is_some_and(|member| member.has_left())) {
            return done("it had left already".to_owned());
        }
        if self.role == Role::Client {
            self.answered(self.agent.leave(deadline.saturating_duration_since(begun)).await)?;
            return done("the agent answered that it has left".to_owned());
        }
        let peers = match self.agent.peers().await {
            Ok(peers) => peers.iter().map(SocketAddr::ip).collect(),
            Err(error) => return self.gone_without_the_agent(known, error, begun).await,
        };
        self.leave_as_server(peers, deadline, begun).await
    }

    /// The agent does not answer: that is well when the others have let us go.
    async fn gone_without_the_agent(
        &self,
        known: &[IpAddr],
        error: ApiError,
        begun: Instant,
    ) -> Result<Left, LeaveError> {
        match self.view(&known.iter().copied().collect()).await {
            View::Gone(server) => {
                Ok(Left { confirmed: format!("the raft peers of {server} lack us already"), took: begun.elapsed() })
            }
            View::Listed(_) => Err(LeaveError::NoAgent(error)),
        }
    }

    async fn leave_as_server(&self, peers: Vec<IpAddr>, deadline: Instant, begun: Instant) -> Result<Left, LeaveError> {
        let others: BTreeSet<IpAddr> = peers.iter().copied().filter(|ip| !self.addresses.contains(ip)).collect();
        let in_raft_peers = peers.len() > others.len();
        info!(others = others.len(), in_raft_peers, "leaving: asking the agent");
        let asked = self.agent.leave(deadline.saturating_duration_since(begun));
        tokio::pin!(asked);
        // Who is not among the raft peers, or is their only one, has nobody to confirm it but the agent.
        if !in_raft_peers || others.is_empty() {
            self.answered(asked.await)?;
            return Ok(Left { confirmed: "the agent answered that it has left".to_owned(), took: begun.elapsed() });
        }
        let mut answered = false;
        let mut last = "no other server has answered".to_owned();
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
                        return Ok(Left { confirmed: format!("the raft peers of {server} lack us"), took: begun.elapsed() });
                    }
                    View::Listed(text) => last = text,
                },
                () = sleep_until(deadline) => return Err(LeaveError::Unconfirmed { last, waited: begun.elapsed() }),
            }
        }
    }

    /// The agent's answer to the order. One that ended meanwhile has done what it was told.
    fn answered(&self, answer: Result<(), ApiError>) -> Result<(), LeaveError> {
        match answer {
            Ok(()) | Err(ApiError::Broken { .. } | ApiError::Refused { .. }) => Ok(()),
            Err(ApiError::Silent { url, waited }) => {
                Err(LeaveError::Unconfirmed { last: format!("{url} gave no answer"), waited })
            }
            Err(cause) if cause.is_denied() => Err(LeaveError::Denied { node: self.node.clone(), cause }),
            Err(cause) => Err(LeaveError::Failed(cause)),
        }
    }

    /// What the others see of us, asked all at once; the first one that has let us go decides.
    async fn view(&self, others: &BTreeSet<IpAddr>) -> View {
        tokio::time::sleep(POLL).await;
        let mut asking = JoinSet::new();
        for ip in others.iter().copied() {
            let leaver = self.clone();
            asking.spawn(async move { (ip, leaver.view_of(ip).await) });
        }
        let mut last = "no other server has answered".to_owned();
        while let Some(done) = asking.join_next().await {
            match done {
                Ok((ip, Ok(None))) => return View::Gone(ip.to_string()),
                Ok((ip, Ok(Some(text)))) => last = format!("{ip} {text}"),
                Ok((_, Err(error))) if last.starts_with("no other") => last = error.to_string(),
                _ => {}
            }
        }
        View::Listed(last)
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

enum View {
    Gone(String),
    Listed(String),
}

//! A graceful leave: ask the own agent to leave, and be done when another server agrees.
//!
//! Takes the own agent and our addresses, gives [`Left`] once another server's raft peers lack us (for a client: once the
//! agent says so). A signal is not a reliable way to leave, and Consul's own course goes on for seconds after the cluster has
//! let us go, so the answer of another server decides. "Already gone" is success. Never signals the agent.

use crate::api::{Agent, ApiError, Peers};
use crate::record::Volume;
use crate::settings::Role;
use crate::stop::{Busy, BusyError};
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use thiserror::Error;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout_at};
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
    #[error("could not leave: {0}")]
    Lock(#[source] BusyError),
    /// Somebody else held the lock all the time.
    #[error("another convene starts or stops on this volume, and did not end within {}", crate::time::text(*.waited))]
    Held {
        /// How long it was tried.
        waited: Duration,
    },
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

/// Waits until no other convene starts or stops on this volume: a preStop hook is not cut short by the TERM after it.
///
/// # Errors
/// [`LeaveError::Lock`], [`LeaveError::Held`].
pub async fn waited_for(volume: &Volume, deadline: Instant) -> Result<Busy, LeaveError> {
    let begun = Instant::now();
    match timeout_at(deadline, Busy::hold(volume)).await {
        Ok(held) => held.map_err(LeaveError::Lock),
        Err(_) => Err(LeaveError::Held { waited: begun.elapsed() }),
    }
}

/// Leaves, unless the record says that this was done since the agent's start, and notes it. `None`: it was done already.
///
/// # Errors
/// [`LeaveError`].
pub async fn leave_once(volume: &Volume, leaver: &Leaver, deadline: Instant) -> Result<Option<Left>, LeaveError> {
    let _busy = waited_for(volume, deadline).await?;
    let record = volume.read().ok().and_then(|holding| holding.record);
    if record.is_some_and(|record| record.left) {
        info!("left the cluster already");
        return Ok(None);
    }
    let left = leaver.leave(deadline).await?;
    info!(took_ms = crate::init::millis(left.took), "left the cluster: {}", left.confirmed);
    // A volume that cannot be written changes nothing about the leave.
    if let Err(error) = volume.change_record(|record| record.left = true) {
        warn!("{}", crate::exit::chain(&error));
    }
    Ok(Some(left))
}

// === impl Leaver ===

impl Leaver {
    /// Leaves.
    ///
    /// # Errors
    /// [`LeaveError`].
    pub async fn leave(&self, deadline: Instant) -> Result<Left, LeaveError> {
        let begun = Instant::now();
        let peers: Vec<SocketAddr> = self
            .agent
            .peers()
            .await
            .map_err(LeaveError::NoAgent)?
            .iter()
            .filter_map(|peer| peer.parse().ok())
            .collect();
        let others: BTreeSet<IpAddr> =
            peers.iter().map(SocketAddr::ip).filter(|ip| !self.addresses.contains(ip)).collect();
        let voter = self.role == Role::Server && peers.len() > others.len();
        info!(others = others.len(), in_raft_peers = voter, "leaving: asking the agent");
        let within = deadline.saturating_duration_since(begun);
        let asked = self.agent.leave(within);
        tokio::pin!(asked);
        // Who is not among the raft peers, or is their only one, has nobody to confirm it but the agent.
        if !voter || others.is_empty() {
            self.answered(asked.await)?;
            return Ok(Left { confirmed: "the agent answered that it has left".to_owned(), took: begun.elapsed() });
        }
        let mut answered = false;
        let mut last = "no other server has answered".to_owned();
        loop {
            tokio::select! {
                answer = &mut asked, if !answered => {
                    self.answered(answer)?;
                    answered = true;
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
            Ok(()) | Err(ApiError::Broken { .. } | ApiError::Refused { .. } | ApiError::Silent { .. }) => Ok(()),
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
        let listed = peers
            .iter()
            .filter_map(|peer| peer.parse::<SocketAddr>().ok())
            .any(|peer| self.addresses.contains(&peer.ip()));
        if listed {
            return Ok(Some("still lists us among its raft peers".to_owned()));
        }
        if peers.is_empty() {
            return Ok(Some("has no raft peers itself".to_owned()));
        }
        // Where we may read the members, the news must have come as "left", not as a failure. Without node:read the list is empty.
        let members = agent.members().await.unwrap_or_default();
        let waiting = members.iter().any(|member| member.name == self.node && !member.has_left());
        Ok(waiting.then(|| "does not see us as left yet".to_owned()))
    }
}

enum View {
    Gone(String),
    Listed(String),
}

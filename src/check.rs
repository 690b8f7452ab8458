//! Is this node ready, alive, joined? A probe's question, answered by exit 0 or 1 and one line that says why.
//!
//! Takes the settings and asks the own agent, for `ready` also the leader. Says by which view it knows. No leader is never a
//! reason to call an agent dead. Writes nothing but `listed.json`, and that only where no token tells a voter; what a yes tells
//! about the cluster is noted by [`crate::formed`].

pub mod life;
mod own;
mod ready;

pub(crate) use own::go_duration;

use crate::api::consul::{Agent, AgentSelf, ApiError};
use crate::record;
use crate::record::lock::Lock;
use crate::record::recovering::held;
use crate::record::remembered::not_joined;
use crate::settings::Local;
use std::net::SocketAddr;
use std::time::Duration;

/// A voter that heard of its leader longer ago than this is not in touch. Consul's own heartbeat timeout is 1 s with
/// `raft_multiplier` 1 (hashicorp/raft, `HeartbeatTimeout`).
pub const LAST_CONTACT: Duration = Duration::from_secs(1);

/// How many entries a server may be behind and still count as caught up: Consul's own measure (autopilot's
/// `max_trailing_logs`).
pub const MAX_TRAILING_LOGS: u64 = 250;

/// How long after its container's start an agent may go without an API, in which it restores what it had: as long as a startupProbe
/// would give it. With one kubelet asks for readiness up to 2 s later (1.34: its next round, then the startup probe's, then its own again).
const STARTS: Duration = Duration::from_secs(900);

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// A server: a healthy voter. A client: joined.
    Ready,
    /// The agent answers, or convene waits or stops.
    Live,
    /// A server is alive in the member list, and a leader is known.
    Joined,
}

/// The words for it.
pub const WHATS: &[(&str, What)] = &[("ready", What::Ready), ("live", What::Live), ("joined", What::Joined)];

/// The answer: the line, and whether it is yes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Exit 0.
    pub yes: bool,
    /// It is a server's, which votes.
    pub votes: bool,
    /// Why.
    pub line: String,
}

/// Answers.
pub async fn check(what: What, local: &Local, agent: &Agent) -> Answer {
    let of_any = |line| Yes { line, votes: false };
    let answer = match what {
        What::Live => live(local, agent).await.map(of_any),
        What::Joined => joined(agent).await.map(of_any).map_err(|line| because_held(local, because(local, line))),
        What::Ready => ready::ready(local, agent).await.map_err(|line| because_held(local, line)),
    };
    match answer {
        Ok(Yes { line, votes }) => Answer { yes: true, votes, line },
        Err(line) => Answer { yes: false, votes: false, line },
    }
}

/// A yes: the line, and whether it is that of a server that votes.
struct Yes {
    line: String,
    votes: bool,
}

async fn live(local: &Local, agent: &Agent) -> Result<String, String> {
    if Lock::Waiting.is_held(&local.data_dir) || Lock::Stopping.is_held(&local.data_dir) {
        return Ok("live: convene waits or stops".to_owned());
    }
    // This endpoint answers without a leader and without an ACL: a token file that is away ends no agent.
    match agent.leader().await {
        Ok(_) | Err(ApiError::Status { .. }) => {}
        // It opens its API last. One that hangs has it open.
        Err(ApiError::Refused { .. }) if may_start(local, life::of_container()) => {
            return Ok("live: the agent starts, and has not opened its API yet".to_owned());
        }
        Err(error) => return Err(format!("not live: {error}")),
    }
    match agent.describe().await {
        Ok(AgentSelf { member: Some(member), .. }) if member.has_left() => {
            Err("not live: the agent has left the cluster".to_owned())
        }
        _ => Ok("live: the agent answers".to_owned()),
    }
}

/// A server of a StatefulSet whose volume convene has prepared, in a container of that age. A client restores nothing.
fn may_start(local: &Local, age: Option<Duration>) -> bool {
    local.seat.is_some() && record::path(&local.data_dir).is_file() && age.is_some_and(|age| age < STARTS)
}

/// With what convene beside the agent knows.
fn because(local: &Local, line: String) -> String {
    match not_joined(&local.data_dir) {
        Some(why) => format!("{line}; convene beside the agent: {why}"),
        None => line,
    }
}

/// An agent that a person keeps from starting is not ill.
fn because_held(local: &Local, line: String) -> String {
    match held(&local.data_dir).filter(|_| Lock::Waiting.is_held(&local.data_dir)) {
        Some(why) => format!("{}{why}", line.split_inclusive(": ").next().unwrap_or_default()),
        None => line,
    }
}

async fn leader(agent: &Agent) -> Result<SocketAddr, String> {
    match agent.leader().await {
        Ok(Some(leader)) => Ok(leader),
        Ok(None) => Err("no leader is known".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

async fn joined(agent: &Agent) -> Result<String, String> {
    let leader = leader(agent).await.map_err(|why| format!("not joined: {why}"))?;
    let members = agent.servers().await.map_err(|error| format!("not joined: {error}"))?;
    if members.is_empty() {
        return Ok(format!("joined: leader {leader} (members cannot be read without node:read)"));
    }
    let servers = members.iter().filter(|member| member.is_server() && member.is_alive()).count();
    match servers {
        0 => Err(format!("not joined: leader {leader} is known but no server is alive in the member list")),
        servers => Ok(format!("joined: leader {leader}, {servers} servers alive")),
    }
}

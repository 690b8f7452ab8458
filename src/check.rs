//! Is this node ready, alive, joined? A probe's question, answered by exit 0 or 1 and one line that says why.
//!
//! Takes the settings and asks the own agent, for `ready` also the leader through it. Says by which view it knows. No leader
//! is never a reason to call an agent dead. Writes nothing.

use crate::api::consul::{Agent, AgentSelf, ApiError};
use crate::record::lock::Lock;
use crate::settings::{Local, Role};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// A voter that heard of its leader longer ago than this is not in touch. Consul's own heartbeat timeout is 1 s with
/// `raft_multiplier` 1 (hashicorp/raft, `HeartbeatTimeout`).
pub const LAST_CONTACT: Duration = Duration::from_secs(1);

/// How many entries a server may be behind and still count as caught up: Consul's own measure (autopilot's
/// `max_trailing_logs`).
pub const MAX_TRAILING_LOGS: u64 = 250;

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
    /// Why.
    pub line: String,
}

/// Answers.
pub async fn check(what: What, local: &Local, agent: &Agent) -> Answer {
    let line = match what {
        What::Live => live(local, agent).await,
        What::Joined => joined(agent).await,
        What::Ready => ready(local, agent).await,
    };
    match line {
        Ok(line) => Answer { yes: true, line },
        Err(line) => Answer { yes: false, line },
    }
}

async fn live(local: &Local, agent: &Agent) -> Result<String, String> {
    if Lock::Waiting.is_held(&local.data_dir) || Lock::Stopping.is_held(&local.data_dir) {
        return Ok("live: convene waits or stops".to_owned());
    }
    // This endpoint answers without a leader and without an ACL.
    match agent.leader().await {
        Ok(_) | Err(ApiError::Status { .. }) => {}
        Err(error) => return Err(format!("not live: {error}")),
    }
    match agent.describe().await {
        Ok(AgentSelf { member: Some(member), .. }) if member.has_left() => {
            Err("not live: the agent has left the cluster".to_owned())
        }
        _ => Ok("live: the agent answers".to_owned()),
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

async fn ready(local: &Local, agent: &Agent) -> Result<String, String> {
    let not = |why: String| format!("not ready: {why}");
    let leader = leader(agent).await.map_err(not)?;
    let described = match agent.describe().await {
        Ok(described) => Some(described),
        Err(error) if error.is_denied() => None,
        Err(error) => return Err(not(error.to_string())),
    };
    let server =
        described.as_ref().map(|described| described.config.server).or(local.role.map(|role| role == Role::Server));
    if server == Some(false) {
        return joined(agent).await.map(|line| format!("ready, {line}")).map_err(not);
    }
    let own = described.as_ref().map(own_view).transpose().map_err(not)?.unwrap_or("own view: no agent:read");
    let theirs = leaders_view(local, agent, described.as_ref()).await.map_err(not)?;
    Ok(format!("ready: leader {leader}; {own}; {theirs}"))
}

/// What the agent says of its own raft: in touch with a leader, and caught up.
fn own_view(described: &AgentSelf) -> Result<&'static str, String> {
    let raft = described.stats.get("raft");
    let stat = |key: &str| raft.and_then(|raft| raft.get(key)).map(String::as_str).unwrap_or_default();
    match stat("state") {
        "Leader" => return Ok("own view: leads"),
        "Follower" => {}
        other => return Err(format!("raft state is {other:?}, neither leader nor follower")),
    }
    let contact = go_duration(stat("last_contact"))
        .ok_or_else(|| format!("the leader was never heard of (last contact {:?})", stat("last_contact")))?;
    if contact > LAST_CONTACT {
        return Err(format!(
            "the leader was last heard of {} ago, and at most {} is allowed",
            crate::time::text(contact),
            crate::time::text(LAST_CONTACT)
        ));
    }
    let index = |key: &str| stat(key).parse::<u64>().unwrap_or(0);
    let (applied, committed) = (index("applied_index"), index("commit_index"));
    if applied + MAX_TRAILING_LOGS < committed || committed == 0 {
        return Err(format!("not caught up: applied {applied} of {committed}"));
    }
    Ok("own view: follows and is caught up")
}

/// What the leader's configuration says of us: a voter at our address. The leader's view alone still shows our predecessor
/// for up to 2 s, which is why the own view is asked too.
async fn leaders_view(local: &Local, agent: &Agent, described: Option<&AgentSelf>) -> Result<&'static str, String> {
    let ours = |address: SocketAddr| local.own_addresses.contains(&address.ip());
    match agent.raft_configuration().await {
        Ok(servers) => {
            let us = servers.iter().find(|server| match described {
                Some(described) => server.id.eq_ignore_ascii_case(&described.config.node_id),
                None => server.address.parse().is_ok_and(ours),
            });
            match us {
                None => Err("the leader's raft configuration lacks us".to_owned()),
                Some(us) if !us.voter => Err("the leader's raft configuration has us as a non-voter".to_owned()),
                Some(us) if !address_fits(local, described, &us.address) => {
                    Err(format!("the leader's raft configuration has us at {}, our earlier address", us.address))
                }
                Some(_) => Ok("leader's view: a voter"),
            }
        }
        Err(error) if error.is_denied() => {
            let peers = agent.peers().await.map_err(|error| error.to_string())?;
            if peers.into_iter().any(ours) {
                return Ok("among the raft peers (no operator:read, so a voter cannot be told from a non-voter)");
            }
            Err("the raft peers lack us (no operator:read, so this is the own agent's list)".to_owned())
        }
        Err(error) => Err(error.to_string()),
    }
}

fn address_fits(local: &Local, described: Option<&AgentSelf>, address: &str) -> bool {
    let Ok(address) = address.parse::<SocketAddr>() else { return false };
    let advertised =
        described.and_then(|described| described.member.as_ref()).and_then(|member| member.addr.parse::<IpAddr>().ok());
    advertised.map_or_else(|| local.own_addresses.contains(&address.ip()), |advertised| advertised == address.ip())
}

/// Go's way to write a duration, as in raft's `last_contact`: `0`, `15.2ms`, `1.5s`, `1m2s`, `never`.
fn go_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut total = 0.0;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at_checked(digits)?;
        let units = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at_checked(units)?;
        let seconds = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "µs" | "us" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        total += number.parse::<f64>().ok()? * seconds;
        rest = after;
    }
    (!text.is_empty()).then(|| Duration::try_from_secs_f64(total).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gos_durations_are_read() {
        for (text, micros) in [
            ("0", 0),
            ("15.2ms", 15_200),
            ("1.5s", 1_500_000),
            ("1m2s", 62_000_000),
            ("80µs", 80),
            ("1h", 3_600_000_000),
        ] {
            assert_eq!(go_duration(text), Some(Duration::from_micros(micros)), "{text}");
        }
        for text in ["never", "", "5", "1x", "s"] {
            assert_eq!(go_duration(text), None, "{text}");
        }
    }
}

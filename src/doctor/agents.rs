//! What do the servers' agents say of the cluster, of each other and of themselves?
//!
//! Takes the ways to ask them, gives [`Seen`], and judges it: each check is pure, and stands in a module of its own. Asks in
//! parallel, each question with a deadline, and every server for its own view (`?stale`), since without a leader nobody answers
//! for the others. Only reads. What a token or the Kubernetes API does not let us see is named with the policy that it needs,
//! and is no finding.

pub mod beside;
mod members;
mod raft;
mod settings;
pub mod way;

use super::finding::{Finding, Report, Unseen};
use super::tls::Told;
use crate::api::consul::{Member, RaftServer};
use beside::Beside;
pub(super) use raft::ago;
use serde_json::Value;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant};
pub use way::{Answer, Lack, Way};

/// Each check's name and what it finds, as README's table has them.
pub const CHECKS: &[(&str, &str)] = &[
    (raft::LEADER, "no leader is known, and how many voters answer of those that are needed"),
    (raft::ONE_CLUSTER, "the servers are of two clusters, by its ID, its raft peers, its datacenter or its leader"),
    (raft::VOTERS, "fewer servers vote than there are, an even number, or one has no vote"),
    (
        raft::LAG,
        "a server's log is behind the leader's, or autopilot has it for unhealthy, still when doctor has waited for 6 s",
    ),
    (
        raft::STALE_PEER,
        "a raft peer is no server any more: outside of the StatefulSet, or with a node ID that nobody has",
    ),
    (raft::AUTOPILOT, "autopilot takes the vote of a server that restarts (`min_quorum`)"),
    (members::SILENT, "a server's agent does not answer"),
    (members::FAILED, "gossip has a server for failed, and since when"),
    (
        members::VERSION,
        "the servers run different versions of Consul, one that is too old, or another raft protocol than 3",
    ),
    (members::SERVICES, "services are registered at a server's agent"),
    (settings::SETTINGS, "an agent was told what fights with convene: by its own word, or by CMD and its files"),
    (
        settings::GOSSIP,
        "the gossip key is malformed, differs from the keyring on the volume, is not verified, or one server has none",
    ),
    (beside::HAIRPIN, "this Pod does not reach its own address"),
    (beside::PORTS, "another server's address does not answer on the server or the gossip port"),
    (
        beside::REJOIN_AGE,
        "a server has been away for more than half of `server_rejoin_age_max`, after which it refuses to start",
    ),
];

/// The servers as they should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The StatefulSet.
    pub statefulset: String,
    /// Its first ordinal.
    pub start: u32,
    /// How many there are.
    pub replicas: u32,
}

/// What one server says.
#[derive(Debug, Clone)]
pub struct Said {
    /// The leader that it knows.
    pub leader: Option<SocketAddr>,
    /// Its raft peers.
    pub peers: Vec<SocketAddr>,
    /// Its cluster's ID, where it tells one.
    pub cluster: Option<String>,
    /// Its datacenter, where it tells it.
    pub datacenter: Option<String>,
    /// `/v1/agent/self`.
    pub described: Answer<Value>,
    /// The servers among the members.
    pub members: Answer<Vec<Member>>,
    /// The raft configuration as it has it.
    pub raft: Answer<Vec<RaftServer>>,
    /// The services that are registered there, by ID.
    pub services: Answer<Vec<String>>,
}

/// A server that was asked.
#[derive(Debug, Clone)]
pub struct Server {
    /// Its name.
    pub name: String,
    /// What it says.
    pub said: Answer<Said>,
}

/// All that was seen.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Each server that was asked.
    pub servers: Vec<Server>,
    /// What there should be.
    pub wanted: Option<Wanted>,
    /// `/v1/operator/autopilot/state`.
    pub state: Answer<Value>,
    /// `/v1/operator/autopilot/configuration`.
    pub autopilot: Answer<Value>,
    /// What only this Pod can tell.
    pub beside: Option<Beside>,
    /// Our token may read services: who may not is told of none.
    pub sees_services: bool,
    /// Now, in seconds since 1970.
    pub now: i64,
}

/// A text in a JSON value.
fn text<'a>(value: &'a Value, pointer: &str) -> Option<&'a str> {
    value.pointer(pointer)?.as_str()
}

/// Asks all servers at once, and one of them for what the leader says. `beside`: what only this Pod can tell.
pub async fn look(servers: Vec<(String, Way)>, wanted: Option<Wanted>, beside: Option<Beside>) -> Seen {
    let asking: Vec<_> = servers
        .into_iter()
        .map(|(name, way)| {
            tokio::spawn(async move {
                let said = way.ask().await;
                (Server { name, said }, way)
            })
        })
        .collect();
    let mut asked = Vec::new();
    for one in asking {
        // Nobody panics or is aborted in there, which is all that could fail.
        asked.extend(one.await.ok());
    }
    let (mut state, mut autopilot) = (Err(Lack::Failed("no leader answers".to_owned())), Err(Lack::Denied));
    for (server, way) in &asked {
        if !server.said.as_ref().is_ok_and(|said| said.leader.is_some()) || state.is_ok() {
            continue;
        }
        (state, autopilot) = tokio::join!(settled(way), way.value("/v1/operator/autopilot/configuration"));
    }
    let now = crate::api::kube::Timestamp::now().as_second();
    let servers = asked.into_iter().map(|(server, _)| server).collect();
    Seen { servers, wanted, state, autopilot, beside, sees_services: false, now }
}

/// How long a server may be unhealthy before it is a finding: autopilot looks every 2 s (`ServerHealthInterval`), and has each
/// server for unhealthy that had not answered when it looked first, at the election. That is two of its looks, and one for a
/// machine with much to do.
const SETTLES: Duration = Duration::from_secs(6);

/// How long until it is asked again.
const AGAIN: Duration = Duration::from_millis(500);

/// Autopilot's state, once it has looked again at a server that has just become unhealthy; that server may have restarted.
async fn settled(way: &Way) -> Answer<Value> {
    let begun = Instant::now();
    loop {
        let state = way.value("/v1/operator/autopilot/state").await;
        let now = crate::api::kube::Timestamp::now();
        if begun.elapsed() >= SETTLES || !state.as_ref().is_ok_and(|state| raft::has_just_changed(state, now, SETTLES))
        {
            return state;
        }
        tokio::time::sleep(AGAIN).await;
    }
}

// === impl Seen ===

impl Seen {
    fn said(&self) -> impl Iterator<Item = (&str, &Said)> {
        self.servers.iter().filter_map(|server| Some((server.name.as_str(), server.said.as_ref().ok()?)))
    }

    /// The leader that most servers know.
    fn leader(&self) -> Option<SocketAddr> {
        let named: Vec<SocketAddr> = self.said().filter_map(|(_, said)| said.leader).collect();
        let votes = |leader: &SocketAddr| named.iter().filter(|other| *other == leader).count();
        named.iter().copied().max_by_key(votes)
    }

    /// Those that answer, the leader first: its view counts most.
    fn best(&self) -> impl Iterator<Item = &Said> {
        let leader = self.leader().map(|leader| leader.ip());
        let leads = move |said: &Said| leader.is_some() && said.address() == leader;
        let (first, rest): (Vec<&Said>, Vec<&Said>) = self.said().map(|(_, said)| said).partition(|said| leads(said));
        first.into_iter().chain(rest)
    }

    /// The servers among the members, in the best view.
    fn members(&self) -> &[Member] {
        self.best().find_map(|said| said.members.as_deref().ok()).unwrap_or_default()
    }

    /// The raft configuration in the best view.
    fn raft(&self) -> Option<&[RaftServer]> {
        self.best().find_map(|said| said.raft.as_deref().ok())
    }

    fn member(&self, name: &str) -> Option<&Member> {
        self.members().iter().find(|member| member.name.eq_ignore_ascii_case(name))
    }

    /// What the own agent says of its TLS.
    pub fn tls(&self) -> Told {
        let own = self.beside.as_ref().map(|beside| beside.name.as_str());
        let described =
            self.said().find(|(name, _)| Some(*name) == own).and_then(|(_, said)| said.described.as_ref().ok());
        let Some(tls) = described.and_then(|described| described.pointer("/DebugConfig/TLS")) else {
            return Told::default();
        };
        let parts = ["InternalRPC", "HTTPS", "GRPC"].into_iter().filter_map(|part| tls.get(part));
        let files =
            parts.flat_map(|part| ["/CAFile", "/CertFile"].into_iter().filter_map(move |file| text(part, file)));
        Told {
            verifies_names: tls.pointer("/InternalRPC/VerifyServerHostname").and_then(Value::as_bool) == Some(true),
            // In another container they are elsewhere.
            files: files.map(PathBuf::from).filter(|file| file.is_file()).collect(),
        }
    }

    /// How many servers there should be: the StatefulSet's replicas, else the voters.
    fn size(&self) -> Option<usize> {
        let voters = || self.raft().map(|raft| raft.iter().filter(|server| server.voter).count());
        self.wanted.as_ref().map(|wanted| wanted.replicas as usize).or_else(voters)
    }
}

/// How Consul names a raft peer that gossip does not know.
const UNKNOWN: &str = "(unknown)";

// === impl Said ===

impl Said {
    /// The address that it advertises, where it tells that.
    fn address(&self) -> Option<IpAddr> {
        let described = self.described.as_ref().ok()?;
        text(described, "/Member/Addr")?.parse().ok()
    }
}

/// Judges all of it.
pub fn check(seen: &Seen, report: &mut Report) {
    raft::check(seen, report);
    members::check(seen, report);
    settings::check(seen, report);
    if let Some(beside) = &seen.beside {
        beside::check(seen, beside, report);
    }
    unseen(seen, report);
}

/// What a token did not let us see, with the policy that it needs. One line each, however many servers there are.
fn unseen(seen: &Seen, report: &mut Report) {
    type Part = fn(&Said) -> Option<&Lack>;
    let parts: [(&'static str, &str, Part); 3] = [
        ("the raft configuration", "operator = \"read\"", |said| said.raft.as_ref().err()),
        ("the members", "node_prefix \"\" { policy = \"read\" }", |said| said.members.as_ref().err()),
        ("the agents' settings", "agent_prefix \"\" { policy = \"read\" }", |said| said.described.as_ref().err()),
    ];
    // The first two are the cluster's, and one server's answer is enough.
    for (at, (what, policy, part)) in parts.into_iter().enumerate() {
        let lacking: Vec<(&str, &Lack)> = seen.said().filter_map(|(name, said)| Some((name, part(said)?))).collect();
        if lacking.is_empty() || at < 2 && seen.said().any(|(_, said)| part(said).is_none()) {
            continue;
        }
        let names: Vec<&str> = lacking.iter().map(|(name, _)| *name).collect();
        let why = match lacking.first().map(|(_, lack)| *lack) {
            Some(Lack::Failed(why) | Lack::NoWay(why)) => format!("{}: {why}", names.join(", ")),
            _ => format!(
                "{} refused: the policy {policy} is needed; a token (CONSUL_HTTP_TOKEN_FILE) goes to this Pod's own agent, to others over \
                 verified TLS, and never through the Kubernetes API: run doctor in the servers' Pods (kubectl exec {} -- /convene/convene doctor)",
                names.join(", "),
                names.first().unwrap_or(&"consul-server-0")
            ),
        };
        report.unseen.push(Unseen { what, why });
    }
    if let Err(lack) = &seen.autopilot
        && seen.leader().is_some()
    {
        let why = match lack {
            Lack::Failed(why) | Lack::NoWay(why) => why.clone(),
            Lack::Denied | Lack::UnknownToken => "the policy operator = \"read\" is needed".to_owned(),
        };
        report.unseen.push(Unseen { what: "autopilot", why });
    }
}

/// A mend that shows what a server waits for. Whoever waits may do so in an init container, and what has not started has no log.
fn waits(name: &str, lines: u32) -> String {
    format!("kubectl logs {name} --all-containers --ignore-errors --tail={lines}")
}

/// A finding about one server.
fn about(check: &'static str, name: &str, what: String, why: &str, mend: String) -> Finding {
    Finding { check, subject: format!("server {name}"), what, why: why.to_owned(), mend }
}

/// A finding about the cluster as a whole.
fn about_all(check: &'static str, what: String, why: &str, mend: String) -> Finding {
    Finding { check, subject: "the servers".to_owned(), what, why: why.to_owned(), mend }
}

#[cfg(test)]
mod tests;

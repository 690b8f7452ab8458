//! Whose machine is gone? Pure: takes what was seen of everybody, gives one verdict for every agent that is neither alive nor has left.
//!
//! A client goes when all of this holds: it is none of the servers, neither by its role nor by its name, ID or address in raft;
//! gossip and the leader both have it for failed; its agent said by its node meta `k8s-node` on which machine it runs; and no Node
//! object has that name. Whatever is missing or contradicts keeps it. [`Brake`] says when the whole picture cannot be right.

use crate::api::consul::{CatalogNode, K8S_NODE, Member, RaftServer};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// What was seen.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// The members of the gossip pool.
    pub members: Vec<Member>,
    /// The catalog's nodes that have the meta `k8s-node`.
    pub catalog: Vec<CatalogNode>,
    /// The names of those that the leader has for failed.
    pub failed: BTreeSet<String>,
    /// The leader's raft configuration.
    pub raft: Vec<RaftServer>,
    /// The raft peers as the agent lists them, which may know of a change that is not committed.
    pub peers: Vec<SocketAddr>,
    /// The names of Kubernetes' Node objects.
    pub machines: BTreeSet<String>,
}

/// An agent that is neither alive nor has left, and what becomes of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Case {
    /// The node's name in Consul.
    pub node: String,
    /// Its machine; empty where it names none.
    pub machine: String,
    /// Whether it goes.
    pub verdict: Verdict,
}

/// Whether an agent goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Its machine is gone.
    Goes,
    /// It stays.
    Stays(Because),
}

/// Why an agent stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Because {
    /// It is a server.
    Server,
    /// Raft has its name, ID or address.
    InRaft,
    /// Gossip has not made up its mind.
    Undecided,
    /// It does not say on which machine it runs: one outside of Kubernetes, perhaps.
    NoMachine,
    /// It lacks the node meta that was asked for.
    NotAskedFor,
    /// The catalog has another agent under its name.
    Another,
    /// Its machine has a Node object.
    MachineIsThere,
    /// The leader does not have it for failed.
    LeaderDiffers,
    /// Only the catalog has it.
    Forgotten,
}

/// All verdicts, and what speaks against them as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judgement {
    /// Those that are neither alive nor have left, by name.
    pub cases: Vec<Case>,
    /// How many clients name a machine.
    pub clients: usize,
    /// Those of them that are alive although their machine has no Node object, with that machine.
    pub astray: BTreeMap<String, String>,
}

/// Why nobody should go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Brake {
    /// The Node objects are not those of these clients' machines.
    Astray {
        /// A client that is alive.
        node: String,
        /// Its machine.
        machine: String,
        /// How many there are.
        count: usize,
        /// How many clients name a machine.
        clients: usize,
    },
    /// More than half of the clients would go.
    Half {
        /// How many would go.
        going: usize,
        /// How many there are.
        clients: usize,
    },
}

/// Judges. With `meta` only clients that have this node meta are candidates.
pub fn judge(seen: &Seen, meta: Option<&(String, String)>) -> Judgement {
    let catalog: BTreeMap<String, &CatalogNode> = seen.catalog.iter().map(|node| (key(&node.node), node)).collect();
    let members: BTreeSet<String> = seen.members.iter().map(|member| key(&member.name)).collect();
    let mut judgement = Judgement { cases: Vec::new(), clients: 0, astray: BTreeMap::new() };
    // Who left is out of the catalog, and stays in this list for hours.
    for member in seen.members.iter().filter(|member| !member.has_left()) {
        let entry = catalog.get(&key(&member.name)).copied();
        let verdict = verdict(member, entry, seen, meta);
        let machine = entry.and_then(machine).unwrap_or_default().to_owned();
        if is_candidate(verdict) && !machine.is_empty() {
            judgement.clients += 1;
            if member.is_alive() && !seen.machines.contains(&machine) {
                judgement.astray.insert(member.name.clone(), machine.clone());
            }
        }
        if !member.is_alive() {
            judgement.cases.push(Case { node: member.name.clone(), machine, verdict });
        }
    }
    let failed: BTreeSet<String> = seen.failed.iter().map(|name| key(name)).collect();
    let forgotten = catalog.iter().filter(|(name, _)| !members.contains(*name) && failed.contains(*name));
    judgement.cases.extend(forgotten.map(|(_, entry)| Case {
        node: entry.node.clone(),
        machine: machine(entry).unwrap_or_default().to_owned(),
        verdict: Verdict::Stays(Because::Forgotten),
    }));
    judgement.cases.sort_by(|one, other| one.node.cmp(&other.node));
    judgement
}

/// The verdict on a member; one that is alive stays as one about whom gossip is undecided.
fn verdict(member: &Member, entry: Option<&CatalogNode>, seen: &Seen, meta: Option<&(String, String)>) -> Verdict {
    let id = member.tags.get("id").map(String::as_str).unwrap_or_default();
    if member.is_server() {
        return Verdict::Stays(Because::Server);
    }
    if seen.raft_has(&member.name, id, &member.addr) || entry.is_some_and(|entry| seen.raft_has_entry(entry)) {
        return Verdict::Stays(Because::InRaft);
    }
    let Some((entry, machine)) = entry.and_then(|entry| Some((entry, machine(entry)?))) else {
        return Verdict::Stays(Because::NoMachine);
    };
    if meta.is_some_and(|(key, value)| entry.meta.get(key) != Some(value)) {
        return Verdict::Stays(Because::NotAskedFor);
    }
    if !entry.id.eq_ignore_ascii_case(id) {
        return Verdict::Stays(Because::Another);
    }
    if !member.has_failed() {
        return Verdict::Stays(Because::Undecided);
    }
    if seen.machines.contains(machine) {
        return Verdict::Stays(Because::MachineIsThere);
    }
    if !seen.failed.iter().any(|name| key(name) == key(&member.name)) {
        return Verdict::Stays(Because::LeaderDiffers);
    }
    Verdict::Goes
}

/// Whether the agent is one of those that were asked for, and names its machine.
fn is_candidate(verdict: Verdict) -> bool {
    use Because::{Another, InRaft, NoMachine, NotAskedFor, Server};
    !matches!(verdict, Verdict::Stays(Server | InRaft | NoMachine | NotAskedFor | Another))
}

/// The machine that an agent names, if that can be a Node object's name (a DNS subdomain, RFC 1123).
fn machine(entry: &CatalogNode) -> Option<&str> {
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'.';
    let named = entry.meta.get(K8S_NODE).map(String::as_str)?;
    (!named.is_empty() && named.len() <= 253 && named.bytes().all(fits)).then_some(named)
}

/// Upper and lower case are one name, as for Consul.
fn key(name: &str) -> String {
    name.to_lowercase()
}

// === impl Seen ===

impl Seen {
    fn raft_has_entry(&self, entry: &CatalogNode) -> bool {
        self.raft_has(&entry.node, &entry.id, &entry.address)
    }

    fn raft_has(&self, name: &str, id: &str, address: &str) -> bool {
        let ip: Option<IpAddr> = address.parse().ok();
        let is_there = |peer: SocketAddr| Some(peer.ip()) == ip;
        self.peers.iter().copied().any(is_there)
            || self.raft.iter().any(|server| {
                key(&server.node) == key(name)
                    || (!id.is_empty() && server.id.eq_ignore_ascii_case(id))
                    || server.address.parse().is_ok_and(is_there)
            })
    }
}

// === impl Judgement ===

impl Judgement {
    /// Those that go.
    pub fn going(&self) -> impl Iterator<Item = &Case> {
        self.cases.iter().filter(|case| case.verdict == Verdict::Goes)
    }

    /// Why nobody should go, while somebody would.
    pub fn brake(&self) -> Option<Brake> {
        let (going, clients) = (self.going().count(), self.clients);
        if going == 0 {
            return None;
        }
        if let Some((node, machine)) = self.astray.first_key_value() {
            let (node, machine, count) = (node.clone(), machine.clone(), self.astray.len());
            return Some(Brake::Astray { node, machine, count, clients });
        }
        (going * 2 > clients).then_some(Brake::Half { going, clients })
    }
}

impl fmt::Display for Because {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Server => "it is a server",
            Self::InRaft => "raft has its name, ID or address",
            Self::Undecided => "gossip has not settled whether it failed",
            Self::NoMachine => "its node meta k8s-node names no machine, and so it may be none of Kubernetes'",
            Self::NotAskedFor => "it lacks the node meta that was asked for",
            Self::Another => "the catalog has another agent of its name, or none",
            Self::MachineIsThere => "failed, but its machine has a Node object",
            Self::LeaderDiffers => "failed in gossip, but not for the leader",
            Self::Forgotten => "gossip has forgotten it; Consul's leader takes it out of the catalog within a minute",
        })
    }
}

impl fmt::Display for Brake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Astray { node, machine, count, clients } => write!(
                f,
                "{count} of {clients} clients are alive on machines that have no Node object, such as {node} on {machine}"
            ),
            Self::Half { going, clients } => {
                write!(f, "{going} of {clients} clients would go, which is more than half of them")
            }
        }
    }
}

#[cfg(test)]
mod tests;

//! What is decided: a start, a wait or a refusal, each with its rule and its sentence.
//!
//! Types alone; [`super::decide`] makes them.

use crate::claim::Step;
use crate::exit::Code;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// The rule that decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// 1: a client joins the servers.
    Client = 1,
    /// 2: the volume belongs to another Pod.
    Owner = 2,
    /// 3: a server that left comes back as an empty one.
    Left = 3,
    /// 4: a server with raft data rejoins.
    Rejoin = 4,
    /// 5: an empty server joins the cluster that another one reports.
    Join = 5,
    /// 6: the claim says that there was a cluster.
    Claimed = 6,
    /// 7: the claim cannot be read.
    Unreadable = 7,
    /// 8: nobody reports a cluster, so one is founded.
    Found = 8,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Start the agent.
    Start(Start),
    /// Look again soon.
    Wait(Wait),
    /// Do not start: a person must change something first.
    Refuse(Refusal),
}

/// How the agent starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start {
    /// Which rule.
    pub rule: Rule,
    /// `bootstrap_expect`, when it is rendered at all.
    pub expect: Option<u32>,
    /// Whom to join, the best first.
    pub join: Vec<Target>,
    /// What must stand in the claim before the agent starts.
    pub claim: Option<Step>,
    /// The raft data on the volume is moved aside first, and with [`Fresh::AndUnknown`] the node ID too.
    pub fresh: Option<Fresh>,
    /// Why, in one sentence.
    pub why: String,
}

/// A start without the data that is on the volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fresh {
    /// As the same server.
    AsItself,
    /// As a server that nobody knows.
    AndUnknown,
}

/// Why nothing starts yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wait {
    /// Which rule.
    pub rule: Rule,
    /// What it waits for.
    pub why: String,
    /// What would end the wait, or what a person can do.
    pub cure: String,
    /// Our predecessor may be taken out of the cluster.
    pub remove: Option<Removal>,
}

/// What takes a predecessor out of the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Removal {
    /// Where the leader is asked for it.
    pub leader: IpAddr,
    /// The predecessor, as the raft peers list it.
    pub listed: SocketAddr,
}

/// Why nothing will start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Which rule.
    pub rule: Rule,
    /// The exit code.
    pub code: Code,
    /// What is wrong.
    pub why: String,
    /// What a person can do.
    pub cure: String,
}

/// Somebody to join: serf's address, or a name while there is no address.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Target {
    /// An address; the port where it is not serf's usual one.
    Address(IpAddr, Option<u16>),
    /// A name; the port where it is not serf's usual one.
    Name(String, Option<u16>),
}

// === impl Target ===

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(ip, Some(port)) => SocketAddr::new(*ip, *port).fmt(f),
            // Consul wants brackets around an IPv6 address, also without a port.
            Self::Address(IpAddr::V6(ip), None) => write!(f, "[{ip}]"),
            Self::Address(IpAddr::V4(ip), None) => ip.fmt(f),
            Self::Name(name, Some(port)) => write!(f, "{name}:{port}"),
            Self::Name(name, None) => f.write_str(name),
        }
    }
}

// === impl Rule ===

impl Rule {
    /// One word for what it does, as the reason of an Event.
    pub fn word(self) -> &'static str {
        match self {
            Self::Client | Self::Left | Self::Join => "Joining",
            Self::Owner => "Adopting",
            Self::Claimed | Self::Unreadable => "Waiting",
            Self::Rejoin => "Rejoining",
            Self::Found => "Founding",
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", *self as u8)
    }
}

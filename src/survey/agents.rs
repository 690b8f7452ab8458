//! What another server says of itself.
//!
//! Takes an address, gives a [`Verdict`]: its server port tells whether a server runs there, its HTTP API whether it belongs
//! to a cluster. Asks nothing but `/v1/status/leader` and `/v1/status/peers`, which need no ACL and no leader. An error is
//! never an empty list: what could not be asked is [`Verdict::Unknown`].

use super::own::is_preparing;
use crate::api::consul::{Agent, ApiError, Peers, QUICK};
use crate::exit::chain;
use crate::settings::PeerPorts;
use std::fmt;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use tokio::net::TcpStream;

/// What is known of one other server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It reports a leader or raft peers: a cluster exists.
    Formed(Reported),
    /// It runs and answers `[]`: never part of a cluster.
    NeverFormed,
    /// It runs not: no name, no address, or its server port refuses.
    Absent(String),
    /// It cannot be told: silence, a failure, or a server port that is open while HTTP is not.
    Unknown(String),
}

/// What a server that belongs to a cluster reports.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reported {
    /// The leader it knows.
    pub leader: Option<SocketAddr>,
    /// Its raft peers, sorted.
    pub peers: Vec<SocketAddr>,
}

// === impl Verdict ===

impl Verdict {
    /// It answered as a server does.
    pub fn is_server(&self) -> bool {
        matches!(self, Self::Formed(_) | Self::NeverFormed)
    }

    /// What a server that belongs to a cluster reports.
    pub fn reported(&self) -> Option<&Reported> {
        match self {
            Self::Formed(reported) => Some(reported),
            _ => None,
        }
    }

    /// Of two addresses of one server the one that says more counts; silence says more than a refusal, since it may hide anything.
    pub fn or_better(self, other: Self) -> Self {
        let rank = |verdict: &Self| match verdict {
            Self::Formed(_) => 3,
            Self::NeverFormed => 2,
            Self::Unknown(_) => 1,
            Self::Absent(_) => 0,
        };
        if rank(&other) > rank(&self) { other } else { self }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Formed(Reported { leader: Some(leader), peers }) => {
                write!(f, "formed: leader {leader}, {} raft peers", peers.len())
            }
            Self::Formed(Reported { leader: None, peers }) => {
                write!(f, "formed: no leader, {} raft peers", peers.len())
            }
            Self::NeverFormed => f.write_str("never formed"),
            Self::Absent(why) => write!(f, "absent: {why}"),
            Self::Unknown(why) => write!(f, "unknown: {why}"),
        }
    }
}

/// What an address answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// A verdict on the server there.
    Server(Verdict),
    /// The server port refuses.
    NoServer,
}

/// Asks the server at an address. Takes at most twice [`QUICK`].
pub async fn ask(ip: IpAddr, ports: PeerPorts, peers: &Peers) -> Heard {
    let raft = SocketAddr::new(ip, ports.server);
    let mut open = match tokio::time::timeout(QUICK, TcpStream::connect(raft)).await {
        Ok(Ok(open)) => open,
        Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => return Heard::NoServer,
        Ok(Err(error)) => return Heard::Server(Verdict::Unknown(format!("could not dial {raft}: {error}"))),
        Err(_) => return Heard::Server(Verdict::Unknown(format!("{raft} is silent"))),
    };
    let answer = match peers.at(ip) {
        Ok(agent) => report(&agent).await,
        Err(error) => Err(error),
    };
    // As good as a port that refuses: its agent does not run yet.
    if matches!(answer, Err(ApiError::Refused { .. })) && is_preparing(&mut open).await {
        return Heard::Server(Verdict::Absent(format!("convene prepares the start of {ip}")));
    }
    Heard::Server(match answer {
        Ok(Reported { leader: None, peers }) if peers.is_empty() => Verdict::NeverFormed,
        Ok(reported) => Verdict::Formed(reported),
        Err(error @ ApiError::Refused { .. }) => Verdict::Unknown(format!(
            "{raft} is open but {error}; its agent just starts, or its client_addr lets nobody ask"
        )),
        Err(error) => Verdict::Unknown(chain(&error)),
    })
}

async fn report(agent: &Agent) -> Result<Reported, ApiError> {
    // Both to their end, so that of two errors always the same one is told.
    let (leader, peers) = tokio::join!(agent.leader(), agent.peers());
    Ok(Reported { leader: leader?, peers: peers? })
}

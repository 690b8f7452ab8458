//! What another server says of itself.
//!
//! Takes an address, gives a [`Verdict`]: its server port tells whether a server runs there, its HTTP API whether it belongs
//! to a cluster, and to which. Asks nothing that needs an ACL, and whether it belongs to one nothing that needs a leader:
//! `/v1/status/leader` and `/v1/status/peers`. An error is never an empty list: what could not be asked is
//! [`Verdict::Unknown`].

use super::own::is_preparing;
use super::strangers::Stranger;
use crate::api::consul::{Agent, ApiError, Peers, QUICK};
use crate::dial::dial;
use crate::exit::chain;
use crate::settings::PeerPorts;
use std::fmt;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// How long a server that knows a leader may take to tell which cluster it belongs to.
const WHICH_CLUSTER: Duration = Duration::from_millis(500);
/// And one that has lost its leader.
const WITHOUT_LEADER: Duration = Duration::from_millis(100);
/// How long an agent may start whose server port is open and whose HTTP port is not yet: 30 ms, or a second more where it does not reach
/// itself (1.22.6). One that lets nobody ask takes this time, too.
pub const STARTS: Duration = Duration::from_millis(1200);
/// How often they are asked meanwhile.
const ASK_AGAIN: Duration = Duration::from_millis(50);

/// How the reason of an absence begins that is over in a moment.
pub const PREPARES: &str = "convene prepares the start of";

/// What is known of one other server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It reports a leader or raft peers: a cluster exists.
    Formed(Reported),
    /// It runs and answers `[]`: never part of a cluster.
    NeverFormed,
    /// It runs, and is none of ours.
    Stranger(Stranger),
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
    /// Which cluster that is.
    pub cluster: Cluster,
}

/// Which cluster a server belongs to, as far as it tells.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Cluster {
    /// It has known no leader since its start, or its cluster has no ID: the certificate authority is switched off.
    #[default]
    Unnamed,
    /// It knows a leader, and tells it soon.
    NotYet,
    /// The cluster's ID.
    Id(String),
}

// === impl Verdict ===

impl Verdict {
    /// It answered as a server of ours does.
    pub fn is_server(&self) -> bool {
        matches!(self, Self::Formed(_) | Self::NeverFormed)
    }

    /// A server runs there that is none of ours.
    pub fn is_stranger(&self) -> bool {
        matches!(self, Self::Stranger(_))
    }

    /// What a server that belongs to a cluster reports.
    pub fn reported(&self) -> Option<&Reported> {
        match self {
            Self::Formed(reported) => Some(reported),
            _ => None,
        }
    }

    /// The leader that it knows.
    pub fn leader(&self) -> Option<SocketAddr> {
        self.reported()?.leader
    }

    /// Of two addresses of one server the one that says more counts; silence says more than a refusal, since it may hide anything.
    pub fn or_better(self, other: Self) -> Self {
        let rank = |verdict: &Self| match verdict {
            Self::Formed(_) => 4,
            Self::NeverFormed => 3,
            Self::Unknown(_) => 2,
            Self::Stranger(_) => 1,
            Self::Absent(_) => 0,
        };
        if rank(&other) > rank(&self) { other } else { self }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Formed(reported) => write!(f, "formed: {reported}"),
            Self::NeverFormed => f.write_str("never formed"),
            Self::Stranger(stranger) => write!(f, "a stranger: {stranger}"),
            Self::Absent(why) => write!(f, "absent: {why}"),
            Self::Unknown(why) => write!(f, "unknown: {why}"),
        }
    }
}

// === impl Reported ===

impl Reported {
    /// It knows its leader or its cluster: what it says is not only an old list.
    pub fn is_settled(&self) -> bool {
        self.leader.is_some() || self.id().is_some()
    }

    /// The cluster's ID, if it tells one.
    pub fn id(&self) -> Option<&String> {
        match &self.cluster {
            Cluster::Id(id) => Some(id),
            Cluster::Unnamed | Cluster::NotYet => None,
        }
    }
}

impl fmt::Display for Reported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.leader {
            Some(leader) => write!(f, "leader {leader}, {} raft peers", self.peers.len()),
            None => write!(f, "no leader, {} raft peers", self.peers.len()),
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

/// Asks the server at an address; one of another datacenter than ours, where that is known, is a stranger. One that just starts
/// is waited for, for up to `patience`. Takes at most three times [`QUICK`] longer.
pub async fn ask(ip: IpAddr, ports: PeerPorts, peers: &Peers, datacenter: Option<&str>, patience: Duration) -> Heard {
    let raft = SocketAddr::new(ip, ports.server);
    let mut open = match timeout(QUICK, dial(raft)).await {
        Ok(Ok(open)) => open,
        Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => return Heard::NoServer,
        Ok(Err(error)) => return Heard::Server(Verdict::Unknown(format!("could not dial {raft}: {error}"))),
        Err(_) => return Heard::Server(Verdict::Unknown(format!("{raft} is silent"))),
    };
    let agent = match peers.at(ip) {
        Ok(agent) => agent,
        Err(error) => return Heard::Server(Verdict::Unknown(chain(&error))),
    };
    let told = async || tokio::join!(report(&agent), its_datacenter(&agent, datacenter.is_some()));
    let (mut answer, mut theirs) = told().await;
    let preparing = is_preparing(&mut open);
    tokio::pin!(preparing);
    let (begun, mut greeted) = (Instant::now(), false);
    while matches!(answer, Err(ApiError::Refused { .. })) && (begun.elapsed() < patience || !greeted) {
        tokio::select! {
            prepares = &mut preparing, if !greeted => {
                // As good as a port that refuses: its agent does not run yet.
                if prepares {
                    return Heard::Server(Verdict::Absent(format!("{PREPARES} {ip}")));
                }
                greeted = true;
            }
            () = sleep(ASK_AGAIN) => (answer, theirs) = told().await,
        }
    }
    if let (Ok(_), Some(ours), Some(theirs)) = (&answer, datacenter, theirs)
        && ours != theirs
    {
        return Heard::Server(Verdict::Stranger(Stranger::Datacenter { theirs, ours: ours.to_owned() }));
    }
    Heard::Server(match answer {
        Ok(Reported { leader: None, peers, .. }) if peers.is_empty() => Verdict::NeverFormed,
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
    let (leader, peers) = (leader?, peers?);
    let cluster = match leader {
        Some(_) => its_cluster(agent, WHICH_CLUSTER).await.unwrap_or(Cluster::NotYet),
        None if peers.is_empty() => Cluster::Unnamed,
        // It is silent when it has known none since its start, and a restart of all servers must not wait for that.
        None => its_cluster(agent, WITHOUT_LEADER).await.unwrap_or_default(),
    };
    Ok(Reported { leader, peers, cluster })
}

/// Asks until it tells: only milliseconds lie between a server's first leader and this. `None`: not within that time.
async fn its_cluster(agent: &Agent, within: Duration) -> Option<Cluster> {
    let told = async {
        loop {
            match agent.cluster().await {
                Ok(id) => return Cluster::Id(id),
                Err(error) if !error.may_pass() => return Cluster::Unnamed,
                Err(_) => sleep(ASK_AGAIN).await,
            }
        }
    };
    timeout(within, told).await.ok()
}

/// Its datacenter, where that is of use. One that is not told is no other one.
async fn its_datacenter(agent: &Agent, wanted: bool) -> Option<String> {
    if wanted { agent.datacenter().await.ok() } else { None }
}

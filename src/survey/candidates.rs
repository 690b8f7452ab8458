//! Who is to be asked: the questions to the sources, and the candidates for servers that their answers make.
//!
//! Takes a source's question and its answer, gives candidates; takes what the candidates answered, gives one verdict each. A
//! name's earlier addresses stay candidates, but count only when they answer as a server.

use super::Other;
use super::agents::{Heard, Verdict};
use super::dns::{Dns, LookupError};
use super::statefulset::Sibling;
use crate::settings::source::{Host, HostName};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

/// What one name has had.
#[derive(Debug, Clone, Default)]
pub(super) struct Known {
    /// Every address that it ever had.
    pub(super) ever: BTreeSet<IpAddr>,
    /// Those of its newest answer that had any.
    pub(super) newest: BTreeSet<IpAddr>,
}

/// Somebody to ask about, before it was asked.
#[derive(Debug, Clone)]
pub(super) struct Candidate {
    pub(super) name: String,
    pub(super) kind: Kind,
    pub(super) host: Option<String>,
    pub(super) port: Option<u16>,
    /// Those that count, whatever they answer.
    pub(super) newest: BTreeSet<IpAddr>,
    /// Those that count only when they answer as a server.
    pub(super) older: BTreeSet<IpAddr>,
    /// Why nothing is known, when that is not an empty answer.
    pub(super) problem: Option<String>,
}

/// What makes a candidate a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// An ordinal of our StatefulSet: a server whatever it answers, and never ourselves.
    Sibling,
    /// A name given by hand: a server whatever it answers, perhaps ourselves.
    Named,
    /// An address given by hand, or listed by a leader: the same, under no name of its own.
    Address,
    /// An address that a name had: a server only if it answers as one.
    Found,
}

/// One question to a source.
#[derive(Debug, Clone)]
pub(super) enum Asked {
    Sibling(Sibling),
    Name(String),
    Service(String),
    Fixed(Host),
}

// === impl Asked ===

impl Asked {
    pub(super) fn key(&self) -> String {
        match self {
            Self::Sibling(sibling) => sibling.host.clone(),
            Self::Name(name) => name.clone(),
            Self::Service(name) => format!("srv:{name}"),
            Self::Fixed(Host { name, .. }) => match name {
                HostName::Name(name) => name.clone(),
                HostName::Ip(ip) => ip.to_string(),
            },
        }
    }

    /// Whether the servers are unknown, not only their state, while this question has no answer.
    pub(super) fn names_servers(&self) -> bool {
        matches!(self, Self::Name(_) | Self::Service(_))
    }

    pub(super) async fn resolve(&self, dns: &Dns, deadline: Duration) -> Result<BTreeSet<IpAddr>, String> {
        let answer = async {
            Ok::<_, LookupError>(match self {
                Self::Sibling(sibling) => of_sibling(dns, sibling).await?,
                Self::Name(name) => dns.addresses(name).await?,
                Self::Service(name) => {
                    let mut found = Vec::new();
                    for target in dns.targets(name).await? {
                        found.extend(dns.addresses(&format!("{}.", target.trim_end_matches('.'))).await?);
                    }
                    found
                }
                Self::Fixed(Host { name: HostName::Ip(ip), .. }) => vec![*ip],
                Self::Fixed(Host { name: HostName::Name(name), .. }) => dns.addresses(name).await?,
            })
        };
        match tokio::time::timeout(deadline, answer).await {
            Ok(Ok(found)) => Ok(found.into_iter().collect()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!(
                "could not resolve {}: no answer within {}",
                self.key().trim_end_matches('.').trim_start_matches("srv:"),
                crate::time::text(deadline)
            )),
        }
    }

    /// How many servers or addresses this question stands for.
    pub(super) fn counted(&self, known: &Known) -> usize {
        match self {
            Self::Sibling(_) | Self::Fixed(_) => 1,
            Self::Name(_) | Self::Service(_) => known.newest.len(),
        }
    }

    pub(super) fn candidates(&self, known: &Known, problem: Option<String>) -> Vec<Candidate> {
        let older: BTreeSet<IpAddr> = known.ever.difference(&known.newest).copied().collect();
        let one = |name: &str, kind: Kind, host: Option<String>, port: Option<u16>| Candidate {
            name: name.to_owned(),
            kind,
            host,
            port,
            newest: known.newest.clone(),
            older: older.clone(),
            problem: problem.clone().filter(|_| known.ever.is_empty()),
        };
        match self {
            Self::Sibling(sibling) => one(&sibling.pod, Kind::Sibling, Some(sibling.name().to_owned()), None).split(),
            Self::Fixed(Host { name: HostName::Name(name), port }) => {
                one(name, Kind::Named, Some(name.trim_end_matches('.').to_owned()), *port).split()
            }
            Self::Fixed(host @ Host { name: HostName::Ip(ip), port }) => {
                vec![Candidate { name: host.to_string(), port: *port, ..Candidate::listed(*ip) }]
            }
            Self::Name(_) | Self::Service(_) => {
                let newest = known.newest.iter().map(|ip| Candidate { kind: Kind::Found, ..Candidate::listed(*ip) });
                let old = older.iter().map(|ip| Candidate {
                    kind: Kind::Found,
                    newest: BTreeSet::new(),
                    older: BTreeSet::from([*ip]),
                    ..Candidate::listed(*ip)
                });
                newest.chain(old).collect()
            }
        }
    }
}

/// Its own Service's address if there is one, else the Pod's.
async fn of_sibling(dns: &Dns, sibling: &Sibling) -> Result<Vec<IpAddr>, LookupError> {
    if let Some(service) = &sibling.service {
        let found = dns.addresses(&format!("{service}.")).await?;
        if !found.is_empty() {
            return Ok(found);
        }
    }
    dns.addresses(&format!("{}.", sibling.host)).await
}

// === impl Candidate ===

impl Candidate {
    /// A server that is known by its address alone.
    pub(super) fn listed(ip: IpAddr) -> Self {
        Self {
            name: ip.to_string(),
            kind: Kind::Address,
            host: None,
            port: None,
            newest: BTreeSet::from([ip]),
            older: BTreeSet::new(),
            problem: None,
        }
    }

    /// One server has one address of a family: a name with several of one stands for several servers.
    fn split(self) -> Vec<Self> {
        let sixes = self.newest.iter().filter(|ip| ip.is_ipv6()).count();
        if sixes <= 1 && self.newest.len() - sixes <= 1 {
            return vec![self];
        }
        let each = self.newest.iter().map(|ip| Self {
            name: format!("{} ({ip})", self.name),
            newest: BTreeSet::from([*ip]),
            older: BTreeSet::new(),
            ..self.clone()
        });
        each.collect()
    }

    /// Takes our own addresses out. `None`: it is ourselves. A sibling is never ourselves, so its name is out of date.
    pub(super) fn without(mut self, own: &BTreeSet<IpAddr>) -> Option<Self> {
        let had = self.newest.iter().find(|ip| own.contains(ip)).copied();
        self.newest.retain(|ip| !own.contains(ip));
        self.older.retain(|ip| !own.contains(ip));
        match had {
            Some(ours) if self.newest.is_empty() && self.kind == Kind::Sibling => {
                self.problem = Some(format!("its name still has our address {ours}"));
                Some(self)
            }
            Some(_) if self.newest.is_empty() => None,
            _ => Some(self),
        }
    }

    /// What it answered, address by address, and what follows for the server.
    pub(super) fn judged(self, asked: &BTreeMap<IpAddr, Heard>) -> Other {
        let heard = |ip: &IpAddr| match asked.get(ip) {
            Some(Heard::Server(heard)) => heard.clone(),
            Some(Heard::NoServer) => Verdict::Absent(format!("{ip} refuses the server port")),
            None => Verdict::Unknown(format!("{ip} was not asked")),
        };
        let mut reports: BTreeMap<IpAddr, Verdict> = self.newest.iter().map(|ip| (*ip, heard(ip))).collect();
        reports.extend(self.older.iter().map(|ip| (*ip, heard(ip))).filter(|(_, verdict)| verdict.is_server()));
        let nothing = match self.problem {
            Some(problem) => Verdict::Unknown(problem),
            None if self.older.is_empty() => Verdict::Absent("its name has no address".to_owned()),
            None => Verdict::Absent("its earlier address does not answer".to_owned()),
        };
        let verdict = reports.values().cloned().reduce(Verdict::or_better).unwrap_or(nothing);
        Other { name: self.name, certain: self.kind != Kind::Found, host: self.host, port: self.port, reports, verdict }
    }
}

/// One server may be named by several sources: an address without a name of its own belongs to whoever has it. Two names
/// are two servers, also while they share an address, since one of them is out of date.
pub(super) fn merged(mut candidates: Vec<Candidate>) -> Vec<Candidate> {
    let mut kept: Vec<Candidate> = Vec::new();
    candidates.sort_by_key(|one| one.kind);
    for one in candidates {
        let nameless = matches!(one.kind, Kind::Address | Kind::Found);
        let shares = |other: &Candidate| {
            one.newest.iter().chain(&one.older).any(|ip| other.newest.contains(ip) || other.older.contains(ip))
        };
        match kept.iter_mut().find(|other| other.name == one.name || (nameless && shares(other))) {
            Some(other) => {
                other.newest.extend(&one.newest);
                other.older.extend(one.older.difference(&other.newest).copied().collect::<Vec<_>>());
                other.host = other.host.take().or(one.host);
                other.port = other.port.or(one.port);
                if !other.newest.is_empty() {
                    other.problem = None;
                }
            }
            None => kept.push(one),
        }
    }
    kept
}

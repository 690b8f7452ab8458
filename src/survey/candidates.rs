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
    pub(super) certain: bool,
    pub(super) host: Option<String>,
    pub(super) port: Option<u16>,
    /// Those that count, whatever they answer.
    pub(super) newest: BTreeSet<IpAddr>,
    /// Those that count only when they answer as a server.
    pub(super) older: BTreeSet<IpAddr>,
    /// Why nothing is known, when that is not an empty answer.
    pub(super) problem: Option<String>,
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
                Self::Sibling(sibling) => dns.addresses(&format!("{}.", sibling.host)).await?,
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
        let older = || known.ever.difference(&known.newest).copied().collect::<BTreeSet<_>>();
        let certain = |name: &str, host: Option<String>, port: Option<u16>| {
            vec![Candidate {
                name: name.to_owned(),
                certain: true,
                host,
                port,
                newest: known.newest.clone(),
                older: older(),
                problem: problem.clone().filter(|_| known.ever.is_empty()),
            }]
        };
        match self {
            Self::Sibling(sibling) => certain(&sibling.pod, Some(sibling.host.clone()), None),
            Self::Fixed(Host { name: HostName::Name(name), port }) => {
                certain(name, Some(name.trim_end_matches('.').to_owned()), *port)
            }
            Self::Fixed(host @ Host { name: HostName::Ip(ip), port }) => {
                let one = Candidate::listed(*ip);
                vec![Candidate { name: host.to_string(), certain: true, port: *port, ..one }]
            }
            Self::Name(_) | Self::Service(_) => {
                let newest = known.newest.iter().map(|ip| Candidate { certain: false, ..Candidate::listed(*ip) });
                let old = older().into_iter().map(|ip| Candidate {
                    certain: false,
                    newest: BTreeSet::new(),
                    older: BTreeSet::from([ip]),
                    ..Candidate::listed(ip)
                });
                newest.chain(old).collect()
            }
        }
    }
}

// === impl Candidate ===

impl Candidate {
    /// A server that is known by its address alone.
    pub(super) fn listed(ip: IpAddr) -> Self {
        Self {
            name: ip.to_string(),
            certain: true,
            host: None,
            port: None,
            newest: BTreeSet::from([ip]),
            older: BTreeSet::new(),
            problem: None,
        }
    }

    pub(super) fn judged(self, asked: &BTreeMap<IpAddr, Heard>) -> Other {
        let mut verdict = match self.problem {
            Some(problem) => Verdict::Unknown(problem),
            None if self.newest.is_empty() && self.older.is_empty() => {
                Verdict::Absent("its name has no address".to_owned())
            }
            None => Verdict::Absent("its earlier address does not answer".to_owned()),
        };
        for ip in &self.newest {
            verdict = match asked.get(ip) {
                Some(Heard::Server(heard)) => verdict.or_better(heard.clone()),
                Some(Heard::NoServer) => match verdict {
                    Verdict::Absent(_) => Verdict::Absent(format!("{ip} refuses the server port")),
                    better => better,
                },
                None => verdict.or_better(Verdict::Unknown(format!("{ip} was not asked"))),
            };
        }
        for ip in &self.older {
            if let Some(Heard::Server(heard)) = asked.get(ip)
                && heard.is_server()
            {
                verdict = verdict.or_better(heard.clone());
            }
        }
        let addresses = self.newest.union(&self.older).copied().collect();
        Other { name: self.name, certain: self.certain, host: self.host, port: self.port, addresses, verdict }
    }
}

/// One server may be named by several sources: whoever shares an address is one, and the certain name is kept.
pub(super) fn merged(candidates: Vec<Candidate>) -> Vec<Candidate> {
    let mut kept: Vec<Candidate> = Vec::new();
    let (certain, rest): (Vec<_>, Vec<_>) = candidates.into_iter().partition(|one| one.certain);
    for one in certain.into_iter().chain(rest) {
        let same = |other: &&mut Candidate| {
            other.name == one.name
                || one.newest.iter().chain(&one.older).any(|ip| other.newest.contains(ip) || other.older.contains(ip))
        };
        match kept.iter_mut().find(same) {
            Some(other) => {
                other.newest.extend(&one.newest);
                other.older.extend(&one.older);
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

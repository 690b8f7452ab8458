//! Who is to be asked: the questions to the sources, and the candidates for servers that their answers make.
//!
//! Takes a source's question and its answer, gives candidates; takes what the candidates answered, gives one verdict each. A
//! name's earlier addresses stay candidates of their own: they are asked and never joined, and count only when they answer as
//! a server.

use super::Other;
use super::agents::{Heard, Verdict};
use super::dns::{Dns, LookupError};
use super::kube::{Pods, by_api};
use super::statefulset::Sibling;
use super::strangers::Stranger;
use crate::api::kube::Kube;
use crate::settings::source::{Host, HostName};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;
use tokio::time::Instant;

/// What one name has had.
#[derive(Debug, Clone, Default)]
pub(super) struct Known {
    /// Every address that it ever had, and when it was last told.
    pub(super) ever: BTreeMap<IpAddr, Instant>,
    /// Those of its newest answer that had any.
    pub(super) newest: BTreeSet<IpAddr>,
    /// Those that outlive the Pod, and are joined instead of the others.
    pub(super) stable: BTreeSet<IpAddr>,
    /// Whose address it is, and serf's port there, where the answer tells.
    pub(super) names: BTreeMap<IpAddr, (String, Option<u16>)>,
    /// Whose Pods have these addresses, where that is another StatefulSet than ours.
    pub(super) strangers: BTreeMap<IpAddr, String>,
    /// Why there is no address, where the answer tells.
    pub(super) absent: Option<String>,
    /// As [`Answer::exact`], of the newest answer.
    pub(super) exact: bool,
}

/// What a source answered to one question.
#[derive(Debug, Default)]
pub(super) struct Answer {
    /// The addresses to ask.
    pub(super) found: BTreeSet<IpAddr>,
    /// As [`Known::stable`].
    pub(super) stable: BTreeSet<IpAddr>,
    /// As [`Known::names`].
    pub(super) names: BTreeMap<IpAddr, (String, Option<u16>)>,
    /// As [`Known::strangers`].
    pub(super) strangers: BTreeMap<IpAddr, String>,
    /// As [`Known::absent`].
    pub(super) absent: Option<String>,
    /// What is not in it does not exist: true of the Kubernetes API, not of DNS, whose empty answers may be old.
    pub(super) exact: bool,
}

// === impl Known ===

impl Known {
    /// Takes an answer in. No error and no empty answer but an exact one makes it forget anything, and even then it is asked on for a while.
    pub(super) fn learn(&mut self, answer: Answer) {
        self.ever.extend(answer.found.iter().map(|ip| (*ip, Instant::now())));
        if answer.exact || !answer.found.is_empty() {
            self.newest = answer.found;
        }
        if answer.exact || !answer.stable.is_empty() {
            self.stable = answer.stable;
        }
        self.names.extend(answer.names);
        self.strangers = answer.strangers;
        self.absent = answer.absent;
        self.exact = answer.exact;
    }
}

/// An earlier address is asked for this long after its name was last said to have it: caches of DNS, which may tell old and new ones
/// in turn, are over by then, and whoever has it is none of ours.
const FORGOTTEN: Duration = Duration::from_secs(120);

/// Somebody to ask about, before it was asked.
#[derive(Debug, Clone)]
pub(super) struct Candidate {
    pub(super) name: String,
    pub(super) kind: Kind,
    pub(super) host: Option<String>,
    pub(super) port: Option<u16>,
    /// Those that count, whatever they answer.
    pub(super) newest: BTreeSet<IpAddr>,
    /// Those that it had earlier in this run. They count only when they answer as a server, and then as one of its own.
    pub(super) older: BTreeSet<IpAddr>,
    /// The newest ones are its own, for certain: the Kubernetes API says so, or they were given by hand.
    pub(super) sure: bool,
    /// Why it is none of ours, where that is known before it is asked.
    pub(super) stranger: Option<Stranger>,
    /// It is joined: a source names it, or it has shown that it is of our cluster.
    pub(super) joined: bool,
    /// Those to join instead.
    pub(super) stable: BTreeSet<IpAddr>,
    /// Why it has no address, where that is known.
    pub(super) absent: Option<String>,
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
    /// An address that a name has: a server only if it answers as one.
    Found,
    /// A server that this one knew last: asked while nobody names any, and joined only when it is of our cluster still.
    Remembered,
}

/// One question to a source.
#[derive(Debug, Clone)]
pub(super) enum Asked {
    Sibling(Sibling),
    Name(String),
    Service(String),
    Fixed(Host),
    Pods(Pods),
}

// === impl Asked ===

impl Asked {
    pub(super) fn key(&self) -> String {
        match self {
            Self::Sibling(sibling) => sibling.host.clone(),
            Self::Name(name) => name.clone(),
            Self::Service(name) => format!("srv:{name}"),
            Self::Pods(pods) => pods.selector.to_string(),
            Self::Fixed(Host { name, .. }) => match name {
                HostName::Name(name) => name.clone(),
                HostName::Ip(ip) => ip.to_string(),
            },
        }
    }

    /// Whether the servers are unknown, not only their state, while this question has no answer.
    pub(super) fn names_servers(&self) -> bool {
        matches!(self, Self::Name(_) | Self::Service(_) | Self::Pods(_))
    }

    /// Asks. The Kubernetes API comes first where it can be asked: DNS may say for half a minute that a new name does not
    /// exist, because somebody asked for it a moment too early.
    pub(super) async fn resolve(
        &self,
        dns: &Dns,
        kube: Option<&(Kube, String)>,
        deadline: Duration,
    ) -> Result<Answer, String> {
        match (self, kube) {
            (Self::Pods(pods), _) => return pods.resolve().await.map_err(|error| error.to_string()),
            (Self::Sibling(sibling), Some((kube, namespace))) => {
                // What the API says to why it cannot be asked is told once, where the StatefulSet is read.
                if let Ok(answer) = by_api(kube, namespace, sibling, dns).await {
                    return Ok(answer);
                }
            }
            _ => {}
        }
        match tokio::time::timeout(deadline, self.by_dns(dns)).await {
            Ok(answer) => answer.map_err(|error| error.to_string()),
            Err(_) => Err(format!(
                "could not resolve {}: no answer within {}",
                self.key().trim_end_matches('.').trim_start_matches("srv:"),
                crate::time::text(deadline)
            )),
        }
    }

    async fn by_dns(&self, dns: &Dns) -> Result<Answer, LookupError> {
        let found = match self {
            Self::Sibling(sibling) => return of_sibling(dns, sibling).await,
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
            // Only the API knows them.
            Self::Pods(_) => Vec::new(),
        };
        Ok(Answer { found: found.into_iter().collect(), ..Answer::default() })
    }

    /// How many servers or addresses this question stands for.
    pub(super) fn counted(&self, known: &Known) -> usize {
        match self {
            Self::Sibling(_) | Self::Fixed(_) => 1,
            Self::Name(_) | Self::Service(_) | Self::Pods(_) => known.newest.len(),
        }
    }

    pub(super) fn candidates(&self, known: &Known, problem: Option<String>) -> Vec<Candidate> {
        let asked = |(ip, told): &(&IpAddr, &Instant)| !known.newest.contains(ip) && told.elapsed() < FORGOTTEN;
        let older: BTreeSet<IpAddr> = known.ever.iter().filter(asked).map(|(ip, _)| *ip).collect();
        let one = |name: &str, kind: Kind, host: Option<String>, port: Option<u16>| Candidate {
            name: name.to_owned(),
            kind,
            host,
            port,
            newest: known.newest.clone(),
            older: older.clone(),
            sure: known.exact || kind == Kind::Named,
            stranger: None,
            joined: true,
            stable: known.stable.clone(),
            absent: known.absent.clone(),
            problem: problem.clone().filter(|_| known.ever.is_empty()),
        };
        match self {
            Self::Sibling(sibling) => one(&sibling.pod, Kind::Sibling, Some(sibling.name().to_owned()), None).split(),
            Self::Fixed(Host { name: HostName::Name(name), port }) => {
                one(name, Kind::Named, Some(name.trim_end_matches('.').to_owned()), *port).split()
            }
            Self::Fixed(host @ Host { name: HostName::Ip(ip), port }) => {
                let named = Candidate { name: host.to_string(), port: *port, ..Candidate::listed(*ip) };
                vec![Candidate { sure: true, joined: true, ..named }]
            }
            Self::Name(_) | Self::Service(_) | Self::Pods(_) => {
                let found = |ip: &IpAddr| {
                    let (name, port) = known.names.get(ip).map_or((ip.to_string(), None), |(pod, port)| {
                        // Not the bare name: a Pod of another namespace may have a sibling's.
                        (format!("{pod} ({ip})"), *port)
                    });
                    let stranger = known.strangers.get(ip).cloned().map(Stranger::Pod);
                    Candidate { kind: Kind::Found, name, port, stranger, joined: true, ..Candidate::listed(*ip) }
                };
                let newest = known.newest.iter().map(found);
                let old = older.iter().map(|ip| Candidate {
                    newest: BTreeSet::new(),
                    older: BTreeSet::from([*ip]),
                    ..found(ip)
                });
                newest.chain(old).collect()
            }
        }
    }
}

/// Its own Service's address if there is one, else the Pod's.
async fn of_sibling(dns: &Dns, sibling: &Sibling) -> Result<Answer, LookupError> {
    let stable = stable_by_dns(dns, sibling).await?;
    let found = if stable.is_empty() {
        dns.addresses(&format!("{}.", sibling.host)).await?.into_iter().collect()
    } else {
        stable.clone()
    };
    Ok(Answer { found, stable, ..Answer::default() })
}

/// The address of a sibling's own Service.
pub(super) async fn stable_by_dns(dns: &Dns, sibling: &Sibling) -> Result<BTreeSet<IpAddr>, LookupError> {
    match &sibling.service {
        Some(service) => Ok(dns.addresses(&format!("{service}.")).await?.into_iter().collect()),
        None => Ok(BTreeSet::new()),
    }
}

// === impl Candidate ===

impl Candidate {
    /// One of the servers that were known last.
    pub(super) fn last(ip: IpAddr) -> Self {
        Self { name: format!("{ip}, known last"), kind: Kind::Remembered, ..Self::listed(ip) }
    }

    /// A server that is known by its address alone.
    pub(super) fn listed(ip: IpAddr) -> Self {
        Self {
            name: ip.to_string(),
            kind: Kind::Address,
            host: None,
            port: None,
            newest: BTreeSet::from([ip]),
            older: BTreeSet::new(),
            sure: false,
            stranger: None,
            joined: false,
            stable: BTreeSet::new(),
            absent: None,
            problem: None,
        }
    }

    /// The addresses at which it is asked.
    pub(super) fn asked_at(&self) -> impl Iterator<Item = IpAddr> {
        self.newest.iter().chain(&self.older).copied().filter(|_| self.stranger.is_none())
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
        self.stable.retain(|ip| !own.contains(ip));
        match had {
            Some(ours) if self.newest.is_empty() && self.kind == Kind::Sibling => {
                self.problem = Some(format!("its name still has our address {ours}"));
                Some(self)
            }
            Some(_) if self.newest.is_empty() => None,
            _ => Some(self),
        }
    }

    /// What it answered, address by address, and what follows for the server; and who answers where it was earlier.
    pub(super) fn judged(self, asked: &BTreeMap<IpAddr, Heard>) -> Vec<Other> {
        let heard = |ip: &IpAddr| match (asked.get(ip), &self.stranger) {
            (_, Some(stranger)) => Verdict::Stranger(stranger.clone()),
            (Some(Heard::Server(heard)), _) => heard.clone(),
            (Some(Heard::NoServer), _) => Verdict::Absent(format!("{ip} refuses the server port")),
            (None, _) => Verdict::Unknown(format!("{ip} was not asked")),
        };
        let older = self.older.iter().filter(|ip| !self.stable.contains(ip)).map(|ip| (*ip, heard(ip)));
        let earlier = older.filter(|(_, verdict)| verdict.is_server()).map(|(ip, verdict)| Other {
            name: format!("{}, earlier at {ip}", self.name),
            certain: false,
            listed: true,
            sure: false,
            host: None,
            awaited: false,
            port: None,
            reports: BTreeMap::from([(ip, verdict.clone())]),
            stable: BTreeSet::new(),
            verdict,
        });
        let mut others: Vec<Other> = earlier.collect();
        if self.kind == Kind::Found && self.newest.is_empty() && !others.is_empty() {
            return others;
        }
        let mut reports: BTreeMap<IpAddr, Verdict> = self.newest.iter().map(|ip| (*ip, heard(ip))).collect();
        let awaited = self.absent.is_some() && self.stable.is_empty();
        let nothing = match (self.problem, self.absent) {
            (Some(problem), _) => Verdict::Unknown(problem),
            (None, Some(why)) => Verdict::Absent(why),
            (None, None) if self.older.is_empty() => Verdict::Absent("its name has no address".to_owned()),
            (None, None) => Verdict::Absent("its earlier address does not answer".to_owned()),
        };
        let best = reports.values().cloned().reduce(Verdict::or_better);
        if let Some(best) = &best {
            // Behind its Service is the same server, which was asked at its Pod's address.
            for ip in &self.stable {
                reports.entry(*ip).or_insert_with(|| best.clone());
            }
        }
        others.push(Other {
            name: self.name,
            certain: !matches!(self.kind, Kind::Found | Kind::Remembered),
            listed: !self.joined,
            sure: self.sure,
            host: self.host,
            awaited,
            port: self.port,
            reports,
            stable: self.stable,
            verdict: best.unwrap_or(nothing),
        });
        others
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
                other.stable.extend(&one.stable);
                other.sure |= one.sure;
                if other.kind == Kind::Found {
                    other.stranger = other.stranger.take().or(one.stranger);
                }
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

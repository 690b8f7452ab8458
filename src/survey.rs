//! What was seen: every other server with a verdict, and every source with what it gave or why it failed.
//!
//! Takes the settings, gives a [`Survey`]. It never fails as a whole: a source that failed is a field of it, and only
//! [`crate::decide`] judges whether too little was seen. Within one run what is known never shrinks: an address that a name
//! once had is still asked when the name's next answer is an error or empty, and two minutes longer when it is another one.
//! Self is never among the others.

pub mod agents;
mod candidates;
pub mod dns;
mod kube;
pub mod own;
pub mod statefulset;
pub mod strangers;

use self::kube::Pods;
use crate::api::consul::{ApiError, Peers};
use crate::api::kube::{Access, Kube, StatefulSet};
use crate::settings::source::{Host, HostName, Selector, Source};
use crate::settings::{Local, PeerPorts, Role, Survey as Settings};
use agents::{Heard, Reported, STARTS, Verdict, ask};
use candidates::{Answer, Asked, Candidate, Kind, Known, merged};
use dns::Dns;
use statefulset::Shape;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;
use strangers::Ours;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// What was seen at one moment.
#[derive(Debug, Clone, Default)]
pub struct Survey {
    /// In the order of the settings.
    pub sources: Vec<SourceReport>,
    /// How our StatefulSet was read, where the Kubernetes API is asked.
    pub reading: Option<SourceReport>,
    /// Sorted by name.
    pub others: Vec<Other>,
    /// Our StatefulSet, as the Kubernetes API last described it; `None` also when it is gone.
    pub statefulset: Option<StatefulSet>,
}

/// What one source gave.
#[derive(Debug, Clone)]
pub struct SourceReport {
    /// The source as it is written.
    pub source: String,
    /// How many servers or addresses it named, or why it failed.
    pub outcome: Result<usize, String>,
    /// It failed and never gave anything in this run, so that nobody knows which servers it would have named.
    pub blind: bool,
    /// How long it took.
    pub took: Duration,
}

/// One other server, or an address that might be one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Other {
    /// Its Pod's name, its host, or its address.
    pub name: String,
    /// Whether it is a server whatever it answers: an ordinal of our StatefulSet, or given by hand.
    pub certain: bool,
    /// No source names it: only a leader lists it, or a name had its address earlier in this run. Whose the address is by now
    /// nobody knows, so what it answers is evidence, but it is not joined.
    pub listed: bool,
    /// Its addresses are its own for certain: the Kubernetes API says so, or they were given by hand.
    pub sure: bool,
    /// A name that Consul can join when no address is known yet.
    pub host: Option<String>,
    /// The API says that it has no address yet: somebody who asks DNS for its name now keeps it unknown for a while.
    pub awaited: bool,
    /// Serf's port, where it was given.
    pub port: Option<u16>,
    /// What each of its addresses answered. One that it had earlier in this run is among them only if it answered as a server.
    pub reports: BTreeMap<IpAddr, Verdict>,
    /// Those that outlive its Pod.
    pub stable: BTreeSet<IpAddr>,
    /// What follows from them all, or why nothing can be told.
    pub verdict: Verdict,
}

// === impl Other ===

impl Other {
    /// Its addresses.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.reports.keys().copied()
    }

    /// Those at which it is joined: the ones that outlive its Pod, where it has such. None at which a stranger is, and none that
    /// nobody names.
    pub fn joined_at(&self) -> Vec<IpAddr> {
        let all: BTreeSet<IpAddr> =
            if self.stable.is_empty() { self.addresses().collect() } else { self.stable.clone() };
        let ours = |ip: &IpAddr| !self.listed && !self.reports.get(ip).is_some_and(Verdict::is_stranger);
        all.into_iter().filter(ours).collect()
    }
}

/// What this server learned of its cluster before this run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Memory {
    /// The ID of the cluster that its data belongs to.
    pub cluster: Option<String>,
    /// The other servers. Their addresses may be anybody's by now.
    pub servers: Vec<IpAddr>,
}

/// Looks, and remembers within one run.
#[derive(Debug)]
pub struct Surveyor {
    local: Local,
    settings: Settings,
    dns: Dns,
    peers: Peers,
    /// The Kubernetes API, and our namespace there.
    kube: Option<(Kube, String)>,
    statefulset: Option<StatefulSet>,
    known: BTreeMap<String, Known>,
    memory: Memory,
}

// === impl Survey ===

impl Survey {
    /// The others that are servers, or must be taken for servers until the contrary is known.
    pub fn servers(&self) -> impl Iterator<Item = &Other> {
        let may_be = |other: &Other| !matches!(other.verdict, Verdict::Absent(_) | Verdict::Stranger(_));
        self.others.iter().filter(move |other| other.certain || may_be(other))
    }

    /// Every source that was asked, and the reading of the StatefulSet before them.
    pub fn reports(&self) -> impl Iterator<Item = &SourceReport> {
        self.reading.iter().chain(&self.sources)
    }

    /// All of it in words: what each other is, then which source failed and why.
    pub fn told(&self) -> impl Iterator<Item = String> {
        let others = self.others.iter().map(|other| format!("{} is {}", other.name, other.verdict));
        others.chain(self.failures().map(|(source, why)| format!("source {source} failed: {why}")))
    }

    /// Those that failed, each with why.
    pub fn failures(&self) -> impl Iterator<Item = (&str, &str)> {
        self.reports()
            .filter_map(|report| report.outcome.as_ref().err().map(|why| (report.source.as_str(), why.as_str())))
    }
}

// === impl SourceReport ===

impl SourceReport {
    fn empty(source: String) -> Self {
        Self { source, outcome: Ok(0), blind: false, took: Duration::ZERO }
    }

    /// Adds one of the source's questions; a problem with any of them is the source's.
    fn add(&mut self, asked: &Asked, known: &Known, problem: Option<&str>, took: Duration) {
        self.took = self.took.max(took);
        match (problem, &mut self.outcome) {
            (Some(problem), outcome) => {
                *outcome = Err(problem.to_owned());
                self.blind |= asked.names_servers() && known.ever.is_empty();
            }
            (None, Ok(named)) => *named += asked.counted(known),
            (None, Err(_)) => {}
        }
    }
}

// === impl Surveyor ===

impl Surveyor {
    /// Prepares to look.
    ///
    /// # Errors
    /// [`ApiError`]: the TLS settings do not work.
    pub fn new(local: &Local, settings: &Settings, dns: Dns, kube: Option<Kube>) -> Result<Self, ApiError> {
        Ok(Self {
            dns,
            peers: Peers::new(local)?,
            kube: kube.map(|kube| (kube, settings.namespace().to_owned())),
            statefulset: None,
            local: local.clone(),
            settings: settings.clone(),
            known: BTreeMap::new(),
            memory: Memory::default(),
        })
    }

    /// Takes what an earlier run learned, or the agent says.
    pub fn remember(&mut self, memory: Memory) {
        self.memory = memory;
    }

    /// Asks other servers, with the same settings.
    pub fn peers(&self) -> &Peers {
        &self.peers
    }

    /// The Kubernetes API, and our namespace there.
    pub fn kube(&self) -> Option<&(Kube, String)> {
        self.kube.as_ref()
    }

    /// Looks at who is there. Only our addresses of today count as ours: an earlier one may be another server's by now.
    pub async fn survey(&mut self) -> Survey {
        let (reading, statefulset) = self.read_statefulset().await.unzip();
        let (sources, candidates) = self.find().await;
        let own: BTreeSet<IpAddr> = self.local.own_addresses.iter().copied().collect();
        let mut candidates: Vec<Candidate> = candidates.into_iter().filter_map(|one| one.without(&own)).collect();
        if candidates.iter().all(|one| one.newest.is_empty() && one.stable.is_empty()) {
            candidates.extend(self.memory.servers.iter().filter(|ip| !own.contains(ip)).map(|ip| Candidate::last(*ip)));
        }
        let mut asked = self.ask_all(candidates.iter().flat_map(Candidate::asked_at).collect()).await;
        let ours = Ours::of(self.memory.cluster.as_ref(), reports_at(&asked, candidates.iter().filter(|one| one.sure)));
        tell_apart(&ours, &mut asked);
        for last in candidates.iter_mut().filter(|one| one.kind == Kind::Remembered) {
            let ours = reports_at(&asked, [&*last]).any(|(_, reported)| ours.have(&reported, |ip| own.contains(ip)));
            last.joined = ours;
        }
        let mut others: Vec<Other> = candidates.into_iter().flat_map(|one| one.judged(&asked)).collect();
        // The leader's list counts too: servers that no source named are asked as well.
        let known = |ip: &IpAddr| others.iter().any(|other| other.reports.contains_key(ip));
        let listed = listed(&others);
        let unasked: BTreeSet<IpAddr> =
            listed.into_iter().filter(|ip| !asked.contains_key(ip) && !known(ip) && !own.contains(ip)).collect();
        asked.extend(self.ask_all(unasked.clone()).await);
        tell_apart(&ours, &mut asked);
        others.extend(unasked.into_iter().flat_map(|ip| Candidate::listed(ip).judged(&asked)));
        others.sort_by(|a, b| a.name.cmp(&b.name));
        Survey { sources, reading, others, statefulset: statefulset.flatten() }
    }

    /// Whether our own Service has another address by now than the one that is advertised: the sentence that says so.
    pub async fn own_service_moved(&self) -> Option<String> {
        own::moved(&self.local, &self.settings, &self.dns, self.kube.as_ref().map(|(kube, _)| kube)).await
    }

    /// What probably hides the names of the siblings that DNS does not know.
    pub fn unnamed(&self, survey: &Survey) -> Option<String> {
        let seat = self.local.seat.as_ref()?;
        let hidden =
            |other: &&Other| other.certain && !other.awaited && other.host.is_some() && other.reports.is_empty();
        survey.others.iter().find(hidden)?;
        let service = Shape::of(seat, &self.settings, self.statefulset.as_ref()).service;
        Some(format!(
            "a Pod's name needs a headless Service {service} with publishNotReadyAddresses: true that selects the Pods and that \
             the StatefulSet names as its serviceName (--service here)"
        ))
    }

    /// Our StatefulSet as it is now; `None` when it is gone, or nobody can be asked.
    ///
    /// # Errors
    /// Why the Kubernetes API did not tell.
    pub async fn statefulset(&self) -> Result<Option<StatefulSet>, String> {
        let (Some((kube, namespace)), Some(seat)) = (&self.kube, &self.local.seat) else { return Ok(None) };
        kube.statefulset(namespace, &seat.statefulset).await.map_err(|error| error.to_string())
    }

    /// Reads our StatefulSet anew, since a person may scale it while we wait; gives what it is now, or was last when the API does
    /// not tell. The ordinals stay those that were known last.
    async fn read_statefulset(&mut self) -> Option<(SourceReport, Option<StatefulSet>)> {
        let ((_, namespace), seat) = (self.kube.as_ref()?, self.local.seat.as_ref()?);
        if self.local.role == Some(Role::Client) {
            return None;
        }
        let begun = Instant::now();
        let (outcome, now) = match self.statefulset().await {
            Ok(Some(found)) => (Ok(found.replicas as usize), Some(found)),
            Ok(None) => (Err(format!("there is no StatefulSet {} in namespace {namespace}", seat.statefulset)), None),
            Err(why) => (Err(why), self.statefulset.clone()),
        };
        if let Some(found) = &now {
            self.statefulset = Some(found.clone());
        }
        let report = SourceReport { source: "kubernetes".to_owned(), outcome, blind: false, took: begun.elapsed() };
        Some((report, now))
    }

    /// Asks every source at once; each has its own deadline.
    async fn find(&mut self) -> (Vec<SourceReport>, Vec<Candidate>) {
        let mut lookups = JoinSet::new();
        let sources = self.settings.sources.clone();
        for (index, asked) in sources
            .iter()
            .enumerate()
            .flat_map(|(index, source)| self.questions(source).into_iter().map(move |asked| (index, asked)))
        {
            let (dns, kube, deadline) = (self.dns.clone(), self.kube.clone(), self.settings.timeout);
            lookups.spawn(async move {
                let begun = Instant::now();
                let answer = asked.resolve(&dns, kube.as_ref(), deadline).await;
                Answered { index, asked, answer, took: begun.elapsed() }
            });
        }
        // INVARIANT: no lookup panics or is aborted, which is all that join_all could fail of.
        let mut answers = lookups.join_all().await;
        // In the order of the questions, so that the same world gives the same survey.
        answers.sort_by_key(|answered| (answered.index, answered.asked.key()));
        let mut reports: Vec<SourceReport> =
            sources.iter().map(|source| SourceReport::empty(source.to_string())).collect();
        let mut candidates = Vec::new();
        for answered in answers {
            let (index, asked, took) = (answered.index, answered.asked, answered.took);
            let problem = self.learn(&asked.key(), answered.answer);
            let known = self.known.get(&asked.key()).cloned().unwrap_or_default();
            if let Some(report) = reports.get_mut(index) {
                report.add(&asked, &known, problem.as_deref(), took);
            }
            candidates.extend(asked.candidates(&known, problem));
        }
        (reports, merged(candidates))
    }

    /// Takes an answer into what is known; gives why there was none.
    fn learn(&mut self, key: &str, answer: Result<Answer, String>) -> Option<String> {
        let known = self.known.entry(key.to_owned()).or_default();
        answer.map(|answer| known.learn(answer)).err()
    }

    fn questions(&self, source: &Source) -> Vec<Asked> {
        match source {
            Source::StatefulSet => self
                .local
                .seat
                .iter()
                .flat_map(|seat| {
                    let shape = Shape::of(seat, &self.settings, self.statefulset.as_ref());
                    statefulset::siblings(seat, &self.settings, &shape)
                })
                .map(Asked::Sibling)
                .collect(),
            Source::Kubernetes(selector) => self.pods(selector).map(Asked::Pods).into_iter().collect(),
            Source::Dns(name) => vec![Asked::Name(name.clone())],
            Source::Srv(name) => vec![Asked::Service(name.clone())],
            Source::Static(hosts) => {
                hosts.iter().filter(|host| !self.is_own_name(host)).cloned().map(Asked::Fixed).collect()
            }
        }
    }

    fn pods(&self, selector: &Selector) -> Option<Pods> {
        let own = self.kube.as_ref();
        let kube = match &selector.kubeconfig {
            Some(file) => Kube::new(Access::Kubeconfig(Some(file.clone())), self.settings.timeout),
            None => own.map(|(kube, _)| kube.clone())?,
        };
        let namespace = selector.namespace.as_deref().unwrap_or(self.settings.namespace()).to_owned();
        let seat = self.local.seat.as_ref().filter(|_| self.local.role != Some(Role::Client));
        let ours = seat.map(|seat| (self.settings.namespace().to_owned(), seat.statefulset.clone()));
        Some(Pods { kube, namespace, selector: selector.clone(), ours })
    }

    /// A list given by hand usually has our own name too: the node's, or the Pod's behind its Service.
    fn is_own_name(&self, host: &Host) -> bool {
        let HostName::Name(name) = &host.name else { return false };
        let name = name.trim_end_matches('.');
        let is_pod = || self.local.seat.is_some() && name.split('.').next() == Some(self.local.owner.pod.as_str());
        name == self.local.node_name || is_pod()
    }

    async fn ask_all(&self, addresses: BTreeSet<IpAddr>) -> BTreeMap<IpAddr, Heard> {
        let mut asking = JoinSet::new();
        // Who belongs to a cluster starts whatever the others say.
        let patience = if self.memory.servers.is_empty() { STARTS } else { Duration::ZERO };
        for ip in addresses {
            let (ports, peers): (PeerPorts, Peers) = (self.local.peer, self.peers.clone());
            let datacenter = self.local.datacenter.clone();
            asking.spawn(async move { (ip, ask(ip, ports, &peers, datacenter.as_deref(), patience).await) });
        }
        let mut heard = BTreeMap::new();
        while let Some(done) = asking.join_next().await {
            heard.extend(done.ok());
        }
        heard
    }
}

/// A question and what came of it.
struct Answered {
    /// Which source.
    index: usize,
    asked: Asked,
    answer: Result<Answer, String>,
    took: Duration,
}

/// What the servers of some candidates report, at their newest addresses.
fn reports_at<'a>(
    asked: &BTreeMap<IpAddr, Heard>,
    of: impl IntoIterator<Item = &'a Candidate>,
) -> impl Iterator<Item = (IpAddr, Reported)> {
    let addresses = of.into_iter().flat_map(|one| &one.newest);
    addresses.filter_map(|ip| match asked.get(ip) {
        Some(Heard::Server(verdict)) => Some((*ip, verdict.reported()?.clone())),
        _ => None,
    })
}

/// Calls those strangers that belong to another cluster.
fn tell_apart(ours: &Ours, asked: &mut BTreeMap<IpAddr, Heard>) {
    for (ip, heard) in asked {
        if let Heard::Server(verdict) = heard
            && let Some(reported) = verdict.reported()
            && let Some(stranger) = ours.lack(*ip, reported)
        {
            *verdict = Verdict::Stranger(stranger);
        }
    }
}

/// Every address in anybody's raft peers, and every leader's.
fn listed(others: &[Other]) -> BTreeSet<IpAddr> {
    let reported = others.iter().flat_map(|other| other.reports.values()).filter_map(Verdict::reported);
    reported.flat_map(|reported| reported.peers.iter().chain(&reported.leader).map(|address| address.ip())).collect()
}

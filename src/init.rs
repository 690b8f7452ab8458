//! From the settings to a volume on which the agent may start: survey, decide, record, render.
//!
//! Takes the settings, gives [`Prepared`]. Looks again until the decision is not "wait", says every 10 s what it waits for,
//! and writes only when all is decided: the record before the rendered file. A second run on the same world writes the same
//! bytes. Never starts an agent, never sets a signal handler: the caller races this against TERM.

mod hold;
mod waiting;

use crate::api::consul::ApiError;
use crate::api::kube::{Event, Kube, StatefulSet};
use crate::claim::{Claims, Seen};
use crate::decide::{Decision, Fresh, Removal, Rule, Start, Target, Us, decide, is_another};
use crate::events::Events;
use crate::exit::{Code, Failure};
use crate::record::lock::{Held, Lock};
use crate::record::node_id::NodeId;
use crate::record::{Holding, Record, RecordError, Untried, VERSION, Volume};
use crate::render::{How, joins, render};
use crate::settings::gossip::GossipKey;
use crate::settings::{Adopt, DEFAULT_DATACENTER, Local, Node, Role, Seat, Survey as Settings};
use crate::survey::agents::Verdict;
use crate::survey::dns::Dns;
use crate::survey::statefulset::Shape;
use crate::survey::{Memory, Other, Survey, Surveyor, own};
use hold::Hold;
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use tokio::time::Instant;
use tracing::{info, warn};
use waiting::Waiting;

pub use waiting::{FORMS, pause};

/// What was prepared.
#[derive(Debug)]
pub struct Prepared {
    /// The settings with our own address as it was found.
    pub node: Node,
    /// The volume, for what is learned later.
    pub volume: Volume,
    /// Remembers what was seen.
    pub surveyor: Surveyor,
    /// Held until the agent's API answers: `check live` is content meanwhile.
    pub waiting: Option<Held>,
    /// Held for as long as the agent is supervised.
    pub agent_lock: Held,
    /// Tells a person.
    pub events: Events,
}

/// Surveys and decides until the agent may start, then writes the record and the rendered file.
///
/// # Errors
/// [`Failure`]: 73 and 78 of the volume, 64 of a decision that refuses, 75 when `--wait` ran out.
pub async fn prepare(node: &Node, how: How) -> Result<Prepared, Failure> {
    let kube = node.survey.kube();
    // A fleet of clients would write more Events than anybody reads.
    let events = kube.clone().filter(|_| node.role == Role::Server);
    let owner = node.local.owner.clone().or_in(node.survey.namespace.as_ref());
    let events = Events::on(events, &owner);
    let place = place(&node.local.owner.pod);
    put_off(node.jitter.mul_f64(place)).await;
    let mut waiting = Waiting::new(node.wait, events, Some(place).filter(|_| node.role == Role::Client));
    match settled(node, how, kube, &mut waiting).await {
        Ok((node, volume, surveyor, held, agent_lock)) => {
            Ok(Prepared { node, volume, surveyor, waiting: held, agent_lock, events: waiting.events })
        }
        Err(failure) => {
            let message = failure.to_string();
            waiting.events.tell(Event { reason: "Refused", warning: true, message });
            waiting.events.finish().await;
            Err(failure)
        }
    }
}

/// Our place among all, 0 to 1: even for a fleet, and for one Pod always the same.
pub fn place(pod: &str) -> f64 {
    let hash = uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_DNS, pod.as_bytes()).as_u128();
    (hash >> 96) as f64 / f64::from(u32::MAX)
}

async fn put_off(pause: Duration) {
    if !pause.is_zero() {
        info!(pause_ms = millis(pause), "the start is put off (--jitter)");
        tokio::time::sleep(pause).await;
    }
}

/// All that was prepared, but for the Events.
type Settled = (Node, Volume, Surveyor, Option<Held>, Held);

async fn settled(node: &Node, how: How, kube: Option<Kube>, waiting: &mut Waiting) -> Result<Settled, Failure> {
    let volume = Volume::open(&node.local.data_dir, node.create_data_dir).map_err(|error| volume_failure(&error))?;
    let told_waiting = volume.try_lock(Lock::Waiting).map_err(|error| volume_failure(&error))?;
    waiting.volume = Some(volume.clone()).filter(|_| node.role == Role::Client);
    // Only then is it read: whoever had the volume may have changed what is on it.
    let agent_lock = lock(&volume, waiting).await?;
    let holding = volume.read().map_err(|error| volume_failure(&error))?;
    hello(node, &volume, &holding);
    let mut hold = Hold::new(node, kube.as_ref(), &volume);
    hold.wait(waiting).await?;
    // A key that Consul is going to refuse is told before anybody waits for a survey.
    let standing = |key: &GossipKey| volume.standing(key).map_err(|error| Failure::from_error(Code::Usage, &error));
    node.gossip_key.as_ref().map(standing).transpose()?;
    let dns = Dns::new(&node.survey);
    let (node, untried) = at_own_address(node, &dns, kube.as_ref(), &holding, how.tried_later, waiting).await?;
    let mut surveyor = Surveyor::new(&node.local, &node.survey, dns, kube).map_err(|error| settings_failure(&error))?;
    surveyor.remember(memory(&node, &holding));
    let (start, survey) = loop {
        let settled = settle(&node, how.supervised, &mut surveyor, &holding, waiting).await?;
        // What was decided before a hold is old after it.
        if !hold.wait_again(waiting).await? {
            break settled;
        }
    };
    void_recovery(&volume, &survey)?;
    let holding = match start.fresh {
        Some(fresh) => {
            let unknown = fresh == Fresh::AndUnknown;
            volume.set_aside(unknown).map_err(|error| volume_failure(&error))?;
            warn!(folder = %volume.folder().join("aside").display(), "moved the data of an earlier life aside");
            Holding {
                raft_data: false,
                node_id: holding.node_id.filter(|_| !unknown),
                record: holding.record.filter(|_| !unknown),
                ..holding
            }
        }
        None => holding,
    };
    // Not before: the keyring may just have been moved aside.
    if let Some(key) = &node.gossip_key {
        standing(key)?.tell(&key.place);
    }
    let node_id = holding.node_id.clone().unwrap_or_else(|| new_id(&node));
    let first = if untried { first_joins(&node, &survey, &start) } else { start.clone() };
    let untried = untried.then(|| Untried { file: node.config_out.clone(), join: joins(&start) });
    let record = Record { untried, ..record(&node, &holding, &node_id, &start) };
    volume.keep(&node_id, &record).map_err(|error| volume_failure(&error))?;
    volume.hand_on_listed(lists(&survey)).map_err(|error| volume_failure(&error))?;
    volume.write(&node.config_out, render(&node, &first, how).as_bytes()).map_err(|error| volume_failure(&error))?;
    volume.note_not_joined(None);
    // Beside a leader nobody waits for this server's vote. After an init container `run --prepared` waits, beside a leader or not.
    let leads = survey.others.iter().any(|other| other.verdict.leader().is_some());
    if how.supervised
        && node.survey.stable
        && leads
        && let Some(ip) = node.local.advertise
    {
        own::reached(ip, node.local.peer.server).await;
    }
    info!(file = %node.config_out.display(), node_id = %node_id, took_ms = millis(waiting.begun.elapsed()), "ready to start the agent");
    Ok((node, volume, surveyor, told_waiting, agent_lock))
}

/// Whom an agent joins that is started before its own Service leads to it: where a cluster is being founded, those behind the headless
/// Service, at their Pods' own addresses. Theirs begin to lead to them at the same time, and what Consul dials in just that moment is
/// lost for 10 s (seen, 1.22.6: a formation of 18 s).
fn first_joins(node: &Node, survey: &Survey, start: &Start) -> Start {
    let Some(seat) = node.local.seat.as_ref().filter(|_| start.rule == Rule::Found) else { return start.clone() };
    let headless = Shape::of(seat, &node.survey, survey.statefulset.as_ref()).service;
    let name = own::service_host(&headless, &node.survey);
    Start { join: vec![Target::Name(name, node.local.peer.serf_of_a_target())], ..start.clone() }
}

/// A recovery that was broken off is void once the others have a leader: a peers.json that stayed would make a second cluster.
fn void_recovery(volume: &Volume, survey: &Survey) -> Result<(), Failure> {
    let leader = survey.others.iter().flat_map(|other| other.reports.values()).find_map(Verdict::leader);
    if let Some(leader) = leader
        && volume.void_peers().map_err(|error| volume_failure(&error))?
    {
        warn!(%leader, "the recovery that was begun here is void, since there is a leader: took raft/peers.json away");
    }
    Ok(())
}

/// The ID of a node that has none yet.
fn new_id(node: &Node) -> NodeId {
    match node.role {
        Role::Server => NodeId::random(),
        Role::Client => {
            let datacenter = node.local.datacenter.as_deref().unwrap_or(DEFAULT_DATACENTER);
            NodeId::of_client(datacenter, node.survey.namespace(), &node.local.node_name)
        }
    }
}

/// The settings with the address that we advertise: the stable one, if there is one; and whether it is still to be tried.
async fn at_own_address(
    node: &Node,
    dns: &Dns,
    kube: Option<&Kube>,
    holding: &Holding,
    later: bool,
    waiting: &mut Waiting,
) -> Result<(Node, bool), Failure> {
    let stable = loop {
        match own::find(&node.local, &node.survey, dns, kube, holding.record.as_ref(), later).await {
            Ok(stable) => break stable,
            Err(line) => waiting.once_more(line).await?,
        }
    };
    let mut node = node.clone();
    node.survey.stable = stable.is_some();
    if let Some(own::Lasting { ip, .. }) = stable {
        info!(advertise = %ip, service = node.local.owner.pod, "advertising the address of the Pod's own Service");
        node.local.advertise = Some(ip);
        node.local.own_addresses.push(ip);
    }
    Ok((node, stable.is_some_and(|stable| stable.untried)))
}

/// What an earlier start learned of the cluster that the data on the volume belongs to; nothing where that data is not ours, or is
/// not there.
fn memory(node: &Node, holding: &Holding) -> Memory {
    let keeps = node.role == Role::Client || holding.raft_data;
    let ours =
        |record: &&Record| keeps && (node.adopt == Some(Adopt::Keep) || !is_another(&record.owner, &node.local.owner));
    holding.record.as_ref().filter(ours).map(Record::memory).unwrap_or_default()
}

/// Waits for the volume: until no other convene has it, and no agent runs on it that outlived its convene.
async fn lock(volume: &Volume, waiting: &mut Waiting) -> Result<Held, Failure> {
    loop {
        let held = volume.try_lock(Lock::Agent).map_err(|error| volume_failure(&error))?;
        let who = match held {
            None => "another convene has this volume, with its agent",
            Some(_) if volume.has_agent().map_err(|error| volume_failure(&error))? => "an agent runs on this volume",
            Some(held) => return Ok(held),
        };
        let ends = "this ends when: that one ends (after a force delete its Pod may live out its grace period)";
        waiting.once_more(format!("{who}; {ends}")).await?;
    }
}

/// What a failure of the volume ends in.
pub fn volume_failure(error: &RecordError) -> Failure {
    Failure::from_error(error.code(), error)
}

/// What a failure to prepare TLS ends in.
pub fn settings_failure(error: &ApiError) -> Failure {
    Failure::from_error(Code::Usage, error)
}

fn hello(node: &Node, volume: &Volume, holding: &Holding) {
    info!(
        role = %node.role,
        node = node.local.node_name,
        pod = node.local.owner.pod,
        advertise = node.local.advertise.map(|ip| ip.to_string()).unwrap_or_else(|| "left to Consul".to_owned()),
        expect = node.survey.expect,
        sources = node.survey.sources.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "),
        version = env!("CARGO_PKG_VERSION"),
        "convene starts"
    );
    info!(
        data_dir = %node.local.data_dir.display(),
        node_id = holding.node_id.as_ref().map(ToString::to_string),
        raft_data = holding.raft_data,
        formed = holding.record.as_ref().is_some_and(|record| record.formed),
        "read the volume"
    );
    for repaired in &holding.repaired {
        warn!("{repaired}");
    }
    if node.local.seat.is_some() && !volume.is_mount() {
        warn!(data_dir = %node.local.data_dir.display(), "the data folder is not a mount: its data ends with this Pod, and a server that returns is an empty one");
    }
}

/// Looks and decides until there is something to do.
async fn settle(
    node: &Node,
    joins_later: bool,
    surveyor: &mut Surveyor,
    holding: &Holding,
    waiting: &mut Waiting,
) -> Result<(Start, Survey), Failure> {
    let disk = holding.disk();
    let claims = claims(&node.local, &node.survey, surveyor.kube());
    loop {
        let survey = surveyor.survey().await;
        let told = survey.statefulset.as_ref();
        if let (Role::Server, Some(told)) = (node.role, told) {
            refuse_one_by_one(told, &node.local)?;
        }
        // A volume with data starts whatever the claim says.
        let claim = match &claims {
            Some(claims) if !disk.raft_data => claims.read(told).await,
            _ => Seen::Unused,
        };
        match decide(&us(node, joins_later, told), &survey, &disk, &claim) {
            Decision::Start(start) => {
                if let (Some(step), Some(claims)) = (&start.claim, &claims) {
                    match claims.write(told, step, node.local.advertise).await {
                        Ok(true) => info!(claim = claims.name(), "claimed: a cluster is being founded"),
                        // Another server was quicker: what it wrote counts.
                        Ok(false) => continue,
                        Err(why) => {
                            waiting
                                .once_more(format!("rule 7: {why}; this ends when: the claim can be written"))
                                .await?;
                            continue;
                        }
                    }
                }
                tell(&survey, &start, waiting.begun);
                waiting.events.tell(Event { reason: start.rule.word(), warning: false, message: start.why.clone() });
                return Ok((start, survey));
            }
            Decision::Refuse(refusal) => {
                return Err(Failure::new(
                    refusal.code,
                    format!("rule {}: {}; {}", refusal.rule, refusal.why, refusal.cure),
                ));
            }
            Decision::Wait(wait) => {
                let asked = match wait.remove {
                    Some(removal) => waiting.asked(remove(node, surveyor, removal)).await,
                    None => "",
                };
                let line = format!("rule {}: {}{asked}; this ends when: {}", wait.rule, wait.why, wait.cure);
                waiting.once_more(line).await?;
            }
        }
    }
}

/// What the removal of a predecessor needs, so that a person can give it at any time.
const NEEDED: &str =
    "a token with the policy operator = \"write\" is needed, which goes to other servers over verified TLS only";

/// Asks the leader to take our predecessor out, whose disk is gone; gives what to say of it.
async fn remove(node: &Node, surveyor: &Surveyor, Removal { leader, listed }: Removal) -> String {
    let asked = match surveyor.peers().at(leader) {
        Ok(agent) => match agent.force_leave(&node.local.node_name).await {
            // Others that were started again without it have never heard of it, and nobody else would ever remove it.
            Err(error) if error.is_unknown_node() => agent.remove_peer(listed).await,
            asked => asked,
        },
        Err(error) => Err(error),
    };
    match asked {
        Ok(()) => {
            info!(server = %leader, node = node.local.node_name, "asked the leader to remove our predecessor");
            format!("; {leader} was asked to remove it")
        }
        Err(error) if error.is_denied() => format!("; {leader} may not remove it for us: {NEEDED}"),
        // The token's own; certificates were read to see the leader at all.
        Err(error @ ApiError::File { .. }) => format!("; {leader} was not asked to remove it, since {NEEDED}: {error}"),
        Err(error) => format!("; {leader} did not remove it: {error}"),
    }
}

/// Where our claim is kept, when one is.
pub fn claims(local: &Local, survey: &Settings, kube: Option<&(Kube, String)>) -> Option<Claims> {
    let ((kube, namespace), statefulset) = (kube?, local.owner.statefulset.clone()?);
    survey.claims.then(|| Claims::new(kube.clone(), namespace.clone(), statefulset, local.owner.pod.clone()))
}

/// The raft peers that each server lists which knows a leader.
fn lists(survey: &Survey) -> impl Iterator<Item = &[SocketAddr]> {
    let reports = survey.others.iter().flat_map(|other| &other.reports).filter_map(|(_, verdict)| verdict.reported());
    reports.filter(|reported| reported.leader.is_some()).map(|reported| reported.peers.as_slice())
}

/// What was seen and decided.
fn tell(survey: &Survey, start: &Start, begun: Instant) {
    for report in survey.reports() {
        match &report.outcome {
            Ok(named) => info!(source = report.source, named, took_ms = millis(report.took), "asked"),
            Err(why) => warn!(source = report.source, took_ms = millis(report.took), "failed: {why}"),
        }
    }
    for other in &survey.others {
        if other.verdict.is_stranger() {
            warn!(server = other.name, addresses = addresses(other), "not joined: {}", other.verdict);
        } else {
            info!(server = other.name, addresses = addresses(other), "{}", other.verdict);
        }
    }
    let joins = start.join.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    info!(rule = %start.rule, expect = start.expect, retry_join = joins, took_ms = millis(begun.elapsed()), "decided: {}", start.why);
}

/// Pods that start one after the other wait for the first one to be ready, and that one waits for a leader.
fn refuse_one_by_one(told: &StatefulSet, local: &Local) -> Result<(), Failure> {
    if !told.ordered || told.replicas < 2 {
        return Ok(());
    }
    let name = local.owner.statefulset.as_deref().unwrap_or_default();
    Err(Failure::new(
        Code::Usage,
        format!(
            "StatefulSet {name} has podManagementPolicy OrderedReady, with which {} servers never become ready: the first one \
             waits for a leader, the others for the first one; the policy cannot be changed: kubectl delete statefulset {name} \
             --cascade=orphan, and apply it with podManagementPolicy: Parallel",
            told.replicas
        ),
    ))
}

fn us(node: &Node, joins_later: bool, told: Option<&StatefulSet>) -> Us {
    let (survey, replicas) = (&node.survey, told.map(|told| told.replicas));
    let position = |seat: &Seat| seat.ordinal.checked_sub(Shape::of(seat, survey, told).start);
    Us {
        role: node.role,
        expect: survey.expect.or(replicas),
        replicas,
        position: node.local.seat.as_ref().and_then(position),
        addresses: node.local.own_addresses.iter().copied().collect(),
        joins_later,
        owner: node.local.owner.clone(),
        adopt: node.adopt,
        force: node.force.clone(),
    }
}

/// What the record says from now on. An expect that was rendered once stays; a start takes "left" back.
fn record(node: &Node, holding: &Holding, node_id: &NodeId, start: &Start) -> Record {
    let old = holding.record.as_ref();
    // Before an agent was started nobody has seen an expect, and another one may still be given.
    let frozen = old.filter(|_| holding.raft_data).and_then(|record| record.expect);
    let mut addresses: BTreeSet<IpAddr> = old.iter().flat_map(|record| record.addresses.iter().copied()).collect();
    addresses.extend(node.local.advertise);
    Record {
        version: VERSION,
        owner: node.local.owner.clone(),
        node_id: node_id.to_string(),
        expect: frozen.or(start.expect),
        formed: old.is_some_and(|record| record.formed),
        unclaimed: node.survey.claims,
        left: false,
        advertise: node.local.advertise,
        stable: node.survey.stable,
        untried: None,
        addresses: addresses.into_iter().collect(),
        servers: old.map(|record| record.servers.clone()).unwrap_or_default(),
        // Without its data a server may join another one, or found it.
        cluster: old
            .filter(|_| holding.raft_data || node.role == Role::Client)
            .and_then(|record| record.cluster.clone()),
        more: old.map(|record| record.more.clone()).unwrap_or_default(),
    }
}

fn addresses(other: &Other) -> String {
    other.addresses().map(|ip| ip.to_string()).collect::<Vec<_>>().join(", ")
}

/// Whole milliseconds, for a log field.
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

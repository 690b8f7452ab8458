//! What this node must do, decided once.
//!
//! Takes the facts (settings, survey, what the volume holds), gives a [`Decision`]. Pure: no clock, no I/O. The rules are
//! numbered as in the design and in every message; the first one that fits decides. Ourselves never count as evidence, and
//! an error never counts as an empty answer.

mod decision;
mod foreign;

use crate::claim::{Claim, Seen, Step};
use crate::exit::Code;
use crate::settings::{Adopt, Owner, Role};
use crate::survey::agents::{Reported, Verdict};
use crate::survey::strangers::are_one;
use crate::survey::{Other, Survey};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

pub use decision::{Decision, Fresh, Refusal, Removal, Rule, Start, Target, Wait};

/// Who decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Us {
    /// Server or client.
    pub role: Role,
    /// `--expect`, else the StatefulSet's replicas.
    pub expect: Option<u32>,
    /// The StatefulSet's replicas, where the Kubernetes API says them.
    pub replicas: Option<u32>,
    /// Our ordinal, counted from the StatefulSet's first one.
    pub position: Option<u32>,
    /// Our addresses of today.
    pub addresses: BTreeSet<IpAddr>,
    /// Whether somebody joins servers that are found after the start: `run` does, an init container is gone by then.
    pub joins_later: bool,
    /// Who we are.
    pub owner: Owner,
    /// What is done with a volume of somebody else.
    pub adopt: Option<Adopt>,
    /// The ID of a claim that may be given up for a new cluster.
    pub force: Option<String>,
}

/// What the volume holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Disk {
    /// An agent was started on this volume as a server: raft.db, wal/ or a snapshot is there.
    pub raft_data: bool,
    /// There is a record.
    pub recorded: bool,
    /// Whose volume the record says it is.
    pub owner: Option<Owner>,
    /// The record says that we left.
    pub left: bool,
    /// The addresses that an earlier start had. By now they may be another server's.
    pub earlier_addresses: BTreeSet<IpAddr>,
    /// The expect that an earlier start rendered.
    pub frozen_expect: Option<u32>,
    /// The record says that the cluster was seen whole.
    pub formed: bool,
}

/// What a message says where no leader can come any more.
pub const RECOVER: &str = "convene recover, on a server that has its data, says what to do";

/// Decides.
pub fn decide(us: &Us, survey: &Survey, disk: &Disk, claim: &Seen) -> Decision {
    if us.role == Role::Client {
        return client(survey);
    }
    let formed = survey.others.iter().any(|other| matches!(other.verdict, Verdict::Formed(_)));
    if let Some(owner) = disk.owner.as_ref().filter(|owner| is_another(owner, &us.owner)) {
        match us.adopt {
            None => return Decision::Refuse(foreign(owner, &us.owner)),
            Some(Adopt::Keep) => {}
            Some(Adopt::Fresh) if formed => {
                return fresh(join(us, survey, disk, claim), Fresh::AndUnknown, Rule::Owner);
            }
            Some(Adopt::Fresh) => {
                return wait(
                    Rule::Owner,
                    "--adopt-volume=fresh moves this volume's data aside, and no other server reports a cluster to join".to_owned(),
                    "a server of the cluster answers; to found a new one use an empty volume",
                );
            }
        }
    }
    if disk.raft_data {
        if disk.left
            && let Decision::Start(start) = join(us, survey, disk, claim)
        {
            return fresh(Decision::Start(start), Fresh::AsItself, Rule::Left);
        }
        return rejoin(us, survey, disk);
    }
    if formed {
        return join(us, survey, disk, claim);
    }
    match claim {
        Seen::Claimed(Claim { formed: true, id, .. }) if us.force.as_ref() != Some(id) => claimed(id),
        Seen::Unreadable(why) => wait(
            Rule::Unreadable,
            format!(
                "our disk is empty, no server reports a cluster, and whether there was one cannot be told: {why}{}",
                failures(survey)
            ),
            "the claim can be read; or give --claim=off, and wiped disks found a new cluster",
        ),
        _ => found(us, survey, claim),
    }
}

/// Whether a record's owner is not us. What one of both does not know is no difference.
pub(crate) fn is_another(recorded: &Owner, us: &Owner) -> bool {
    let differ = |one: &Option<String>, other: &Option<String>| one.is_some() && other.is_some() && one != other;
    recorded.pod != us.pod
        || differ(&recorded.namespace, &us.namespace)
        || differ(&recorded.statefulset, &us.statefulset)
}

/// Rule 2.
fn foreign(recorded: &Owner, us: &Owner) -> Refusal {
    let of = |owner: &Owner| match &owner.namespace {
        Some(namespace) => format!("Pod {} in namespace {namespace}", owner.pod),
        None => owner.pod.clone(),
    };
    Refusal {
        rule: Rule::Owner,
        code: Code::Contradiction,
        why: format!("this volume belongs to {}, and we are {}", of(recorded), of(us)),
        cure: "mount the right volume; when it was restored or renamed for all servers alike give --adopt-volume=keep, and to \
               start without its data --adopt-volume=fresh"
            .to_owned(),
    }
}

/// Rules 2 and 3: joins as an empty server, with the data moved aside.
fn fresh(decision: Decision, fresh: Fresh, rule: Rule) -> Decision {
    match decision {
        Decision::Start(start) => Decision::Start(Start {
            rule,
            fresh: Some(fresh),
            why: format!(
                "{} and {}",
                if fresh == Fresh::AsItself {
                    "this server had left, so its data is moved aside"
                } else {
                    "the data of another server is moved aside"
                },
                start.why.trim_start_matches("the disk is empty and ")
            ),
            ..start
        }),
        other => other,
    }
}

/// Rule 6.
fn claimed(id: &str) -> Decision {
    wait(
        Rule::Claimed,
        "our disk is empty and no server reports a cluster, but the claim says that there was one".to_owned(),
        &format!(
            "a server that has its data comes back (when too few do for a leader: {RECOVER}); when all data is lost for good, give \
             --new-cluster=force:{id} to one server, which founds anew, once"
        ),
    )
}

/// Rule 1.
fn client(survey: &Survey) -> Decision {
    let join = targets(survey);
    if join.is_empty() {
        return wait(
            Rule::Client,
            format!("no server is known{}", failures(survey)),
            "a server that any source of --discover names",
        );
    }
    let why = format!("a client joins the servers: {}", count(join.len(), "address or name", "addresses or names"));
    Decision::Start(Start { rule: Rule::Client, expect: None, join, claim: None, fresh: None, why })
}

/// Rule 4: starts even if everybody is silent.
fn rejoin(us: &Us, survey: &Survey, disk: &Disk) -> Decision {
    // A record without an expect is that of a server that joined. Without any record the cluster was made without convene,
    // and Consul drops the expect by itself once its log has an entry.
    let expect = if disk.recorded { disk.frozen_expect } else { us.expect.filter(|_| us.within_expect()) };
    // One that would elect itself beside others goes without, because a server with data starts in any case.
    let expect = expect.filter(|expect| !disk.formed && lone_founder(*expect, survey).is_none());
    let why = match expect {
        None => "the volume holds raft data: rejoin".to_owned(),
        Some(expect) => format!(
            "the volume holds raft data and no leader was ever seen: rejoin, and keep bootstrap_expect {expect} until the formation ends"
        ),
    };
    let join = targets(survey);
    Decision::Start(Start { rule: Rule::Rejoin, expect, join, claim: None, fresh: None, why })
}

/// Rule 5: an empty server at an address that the cluster still lists would grant any vote, and acknowledged writes can be
/// lost that way. One list is not enough, because it shows the latest configuration, also an uncommitted one: every server
/// that the leader lists must itself have answered, know that leader and lack us.
fn join(us: &Us, survey: &Survey, disk: &Disk, claim: &Seen) -> Decision {
    let formed: BTreeMap<IpAddr, (&Other, &Reported)> = survey
        .others
        .iter()
        .flat_map(|other| other.reports.iter().map(move |(ip, verdict)| (*ip, other, verdict)))
        .filter_map(|(ip, other, verdict)| Some((ip, (other, verdict.reported()?))))
        .collect();
    if let Some(wait) = foreign::two_clusters(&formed) {
        return wait;
    }
    let all = formed;
    let formed = foreign::of_the_named(&all);
    let unlinked = foreign::unlinked(survey, &formed, us);
    // An earlier address of ours at which another server answers is that server's now.
    let answers = |ip: &IpAddr| survey.others.iter().any(|other| other.reports.get(ip).is_some_and(Verdict::is_server));
    let claimed = |ip: &IpAddr| matches!(claim, Seen::Claimed(claim) if claim.addresses.contains(ip));
    let earlier = |ip: &IpAddr| disk.earlier_addresses.contains(ip) || claimed(ip);
    let ours = |ip: &IpAddr| us.addresses.contains(ip) || (earlier(ip) && !answers(ip));
    for (other, reported) in all.values() {
        if let Some(listed) = reported.peers.iter().find(|peer| ours(&peer.ip())) {
            return Decision::Wait(Wait {
                rule: Rule::Join,
                why: format!(
                    "our disk is empty, and {} still lists our address {listed} among its raft peers: an empty server there could vote for a leader that lacks acknowledged writes",
                    other.name
                ),
                cure: predecessor_removed(all.values().map(|(_, reported)| *reported)),
                // Not of another cluster, which may have a server of our name.
                remove: unlinked
                    .is_none()
                    .then(|| healthy_leader(&formed, &ours))
                    .flatten()
                    .map(|leader| Removal { leader, listed: *listed }),
            });
        }
    }
    let Some((leader, reported)) = formed.iter().find_map(|(ip, (_, reported))| {
        reported.leader.filter(|leader| leader.ip() == *ip).map(|leader| (leader, *reported))
    }) else {
        return wait(
            Rule::Join,
            format!(
                "a cluster exists ({}) but its leader has not answered",
                names(formed.values().map(|(other, _)| other.name.as_str()))
            ),
            &format!(
                "a leader is elected and answers; when more than half of the disks are lost for good there will be none: {RECOVER}"
            ),
        );
    };
    if let Some(wait) = unlinked {
        return wait;
    }
    for peer in &reported.peers {
        let why = match formed.get(&peer.ip()) {
            None => "has not answered",
            Some((_, theirs)) if theirs.leader != Some(leader) => "knows another leader or none",
            Some(_) => continue,
        };
        return wait(
            Rule::Join,
            format!("our disk is empty, and server {peer}, which leader {leader} lists, {why}{}", detail(survey, peer)),
            "every server that the leader lists answers, or the leader removes the one that is gone (consul operator raft remove-peer)",
        );
    }
    let why = format!(
        "the disk is empty and leader {leader} has {}, none of them ours: join it",
        count(reported.peers.len(), "raft peer", "raft peers")
    );
    // Whoever is not of this cluster has at best an old list of it, and is at worst another cluster's.
    let strange = |ip: &IpAddr| all.get(ip).is_some_and(|(_, theirs)| !are_one((leader.ip(), reported), (*ip, theirs)));
    let mut join = targets(survey);
    join.retain(|target| !matches!(target, Target::Address(ip, _) if strange(ip)));
    Decision::Start(Start { rule: Rule::Join, expect: None, join, claim: None, fresh: None, why })
}

/// What ends the wait of a server whose predecessor is still a raft peer.
fn predecessor_removed<'a>(mut reported: impl Iterator<Item = &'a Reported>) -> String {
    let cure =
        "a leader removes the predecessor: consul operator raft remove-peer, or autopilot once it is seen as failed";
    match reported.any(|reported| reported.leader.is_some()) {
        true => cure.to_owned(),
        false => {
            format!("{cure}; when more than half of the disks are lost for good there will be no leader: {RECOVER}")
        }
    }
}

/// The leader's address, when every server that it lists but ourselves has answered and knows it, and they are a majority: then
/// the removal of our predecessor costs the cluster nothing.
fn healthy_leader(formed: &BTreeMap<IpAddr, (&Other, &Reported)>, ours: &impl Fn(&IpAddr) -> bool) -> Option<IpAddr> {
    formed.iter().find_map(|(ip, (_, reported))| {
        let leader = reported.leader.filter(|leader| leader.ip() == *ip)?;
        let others = || reported.peers.iter().filter(|peer| !ours(&peer.ip()));
        let agrees =
            |peer: &&SocketAddr| formed.get(&peer.ip()).is_some_and(|(_, theirs)| theirs.leader == Some(leader));
        let healthy = others().all(|peer| agrees(&peer)) && others().count() * 2 > reported.peers.len();
        healthy.then_some(*ip)
    })
}

/// Rule 8: every other server is absent or never formed.
fn found(us: &Us, survey: &Survey, claim: &Seen) -> Decision {
    if let Some(other) = survey.others.iter().find(|other| matches!(other.verdict, Verdict::Unknown(_))) {
        return wait(
            Rule::Found,
            format!("{} is {}", other.name, other.verdict),
            "it answers, or is gone: only then it is certain that no cluster exists",
        );
    }
    if let Some(wait) = foreign::in_anothers_place(survey) {
        return wait;
    }
    if let Some(report) = survey.sources.iter().find(|report| report.blind) {
        let why = report.outcome.as_ref().err().map(String::as_str).unwrap_or_default();
        return wait(
            Rule::Found,
            format!("source {} failed: {why}", report.source),
            "the source answers: an error is not an empty answer",
        );
    }
    // What the first server claimed counts for all, whatever their manifests say by now.
    let (expect, claim) = match claim {
        Seen::Claimed(claim) if !claim.formed && claim.expect.is_some() => (claim.expect, None),
        Seen::Claimed(claim) => (us.expect, Some(Some(claim.id.clone()))),
        Seen::Absent => (us.expect, Some(None)),
        Seen::Unused | Seen::Unreadable(_) => (us.expect, None),
    };
    let Some(expect) = expect else {
        return wait(
            Rule::Found,
            format!("no server reports a cluster, and without --expect this one founds none{}", failures(survey)),
            "give --expect N with the number of servers, let the Kubernetes API tell the StatefulSet's replicas, or start a cluster that it can join",
        );
    };
    if let Some(refusal) = lone_founder(expect, survey).or_else(|| half_founder(expect, us.replicas)) {
        return Decision::Refuse(refusal);
    }
    if let Some(replicas) = us.replicas.filter(|replicas| expect > *replicas) {
        return wait(
            Rule::Found,
            format!(
                "expect is {expect} but the StatefulSet has {replicas} replicas: that many servers will never come"
            ),
            "give --expect=auto, or scale the StatefulSet",
        );
    }
    let claim = claim.map(|over| Step::Found { expect, over });
    let us = &Us { expect: Some(expect), ..us.clone() };
    let join = targets(survey);
    let needed = if us.within_expect() { (expect as usize).saturating_sub(1) } else { 1 };
    let named = survey.servers().filter(|other| !other.awaited).count().min(join.len());
    if !us.joins_later && named < needed {
        return wait(
            Rule::Found,
            format!(
                "{named} of {needed} other servers can be named to Consul, and nobody joins the rest after the start"
            ),
            "the sources of --discover name them; convene run as entrypoint does not wait for this",
        );
    }
    if !us.within_expect() {
        let why = format!(
            "nobody reports a cluster: wait for the first {expect} servers to found it, as a server beyond them"
        );
        return Decision::Start(Start { rule: Rule::Found, expect: None, join, claim, fresh: None, why });
    }
    let why = format!(
        "the disk is empty and nobody reports a cluster: found one of {}",
        count(expect as usize, "server", "servers")
    );
    Decision::Start(Start { rule: Rule::Found, expect: Some(expect), join, claim, fresh: None, why })
}

/// bootstrap_expect 1 elects itself without asking anybody, so it is for a cluster of one.
fn lone_founder(expect: u32, survey: &Survey) -> Option<Refusal> {
    let others = survey.servers().count();
    (expect == 1 && others > 0).then(|| Refusal {
        rule: Rule::Found,
        code: Code::Usage,
        why: format!(
            "expect is 1, which founds a cluster alone, but there {} ({})",
            if others == 1 { "is another server" } else { "are other servers" },
            names(survey.servers().map(|other| other.name.as_str()))
        ),
        cure: format!("give --expect {}, the number of servers", others + 1),
    })
}

/// Both sides of a cut through the StatefulSet could reach such an expect.
fn half_founder(expect: u32, replicas: Option<u32>) -> Option<Refusal> {
    let replicas = replicas.filter(|replicas| expect * 2 <= *replicas)?;
    Some(Refusal {
        rule: Rule::Found,
        code: Code::Usage,
        why: format!(
            "expect is {expect} and the StatefulSet has {replicas} replicas: both sides of a cut could found a cluster"
        ),
        cure: format!("give --expect=auto, or a number from {} to {replicas}", replicas / 2 + 1),
    })
}

/// Whom to join: those that answered first, then other addresses, then names that have no address yet. No strangers, nor the
/// names that lead to them.
fn targets(survey: &Survey) -> Vec<Target> {
    let mut answered = Vec::new();
    let mut silent = Vec::new();
    let mut named = Vec::new();
    for other in survey.servers() {
        let list = if other.verdict.is_server() { &mut answered } else { &mut silent };
        let addresses = other.joined_at();
        if other.reports.is_empty() && other.stable.is_empty() {
            named.extend(other.host.iter().map(|host| Target::Name(host.clone(), other.port)));
        }
        list.extend(addresses.into_iter().map(|ip| Target::Address(ip, other.port)));
    }
    let mut seen = BTreeSet::new();
    answered.into_iter().chain(silent).chain(named).filter(|target| seen.insert(target.to_string())).collect()
}

fn wait(rule: Rule, why: String, cure: &str) -> Decision {
    Decision::Wait(Wait { rule, why, cure: cure.to_owned(), remove: None })
}

fn failures(survey: &Survey) -> String {
    survey.failures().map(|(source, why)| format!("; source {source} failed: {why}")).collect()
}

fn detail(survey: &Survey, peer: &SocketAddr) -> String {
    let known = survey.others.iter().find(|other| other.reports.contains_key(&peer.ip()));
    known.map(|other| format!(" ({} is {})", other.name, other.verdict)).unwrap_or_default()
}

fn names<'a>(all: impl Iterator<Item = &'a str>) -> String {
    all.collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>().join(", ")
}

fn count(number: usize, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

// === impl Us ===

impl Us {
    /// An ordinal beyond the expect renders none: the first ones found.
    fn within_expect(&self) -> bool {
        match (self.position, self.expect) {
            (Some(position), Some(expect)) => position < expect,
            _ => true,
        }
    }
}

#[cfg(test)]
mod tests;

//! What an empty server does beside servers that may belong to another cluster: it waits, and names them.
//!
//! Takes what was seen, gives a wait or nothing. The survey has told those apart that are strangers for certain; here are the
//! doubtful cases, in which nothing tells whose an address is. In doubt nothing is joined and nothing is founded.

use super::{Decision, Reported, Rule, Us, count, wait};
use crate::survey::agents::Verdict;
use crate::survey::strangers::are_one;
use crate::survey::{Other, Survey};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// The servers that report a cluster, by address.
pub(super) type Formed<'a> = BTreeMap<IpAddr, (&'a Other, &'a Reported)>;

/// Those that know their leader or their cluster.
fn settled<'a>(formed: &Formed<'a>) -> impl Iterator<Item = (IpAddr, &'a Other, &'a Reported)> {
    let all = formed.iter().map(|(ip, (other, reported))| (*ip, *other, *reported));
    all.filter(|(_, _, reported)| reported.is_settled())
}

/// Those of them that a source names.
fn named<'a>(formed: &Formed<'a>) -> impl Iterator<Item = (IpAddr, &'a Other, &'a Reported)> {
    settled(formed).filter(|(_, other, _)| !other.listed)
}

/// Two clusters are reported by servers that our sources name, and nothing tells which one is ours.
pub(super) fn two_clusters(formed: &Formed<'_>) -> Option<Decision> {
    let mut named = named(formed);
    let (ip, first, reported) = named.next()?;
    let (_, second, theirs) = named.find(|(other, _, theirs)| !are_one((ip, reported), (*other, theirs)))?;
    Some(wait(
        Rule::Join,
        format!(
            "two clusters are reported and nothing tells which one is ours: {} says {reported}, and {} says {theirs}",
            first.name, second.name
        ),
        "an outdated name forgets the other cluster's server (DNS keeps one for about 30 s), the Kubernetes API may be asked, or \
         --discover names servers of one cluster only",
    ))
}

/// Without those of another cluster than the one that our sources name: an address that a name had earlier may be its by now.
pub(super) fn of_the_named<'a>(formed: &Formed<'a>) -> Formed<'a> {
    let first = named(formed).next();
    let ours = |ip: IpAddr, reported: &Reported| {
        first.is_none_or(|(other, _, named)| !reported.is_settled() || are_one((other, named), (ip, reported)))
    };
    formed.iter().filter(|(ip, (_, reported))| ours(**ip, reported)).map(|(ip, told)| (*ip, *told)).collect()
}

/// A cluster at addresses that only DNS gives, or a selector, may be another one that has one of them by now: then at most one name
/// leads to it. One of a single server cannot be told.
pub(super) fn unlinked(survey: &Survey, formed: &Formed<'_>, us: &Us) -> Option<Decision> {
    if formed.values().any(|(other, _)| other.sure) {
        return None;
    }
    let (ip, first, reported) = named(formed).next().or_else(|| settled(formed).next())?;
    let is_of_it = |other: &&Other| {
        let lists = |ip: IpAddr| reported.peers.iter().any(|peer| peer.ip() == ip);
        let mut reports = other.reports.iter().filter_map(|(ip, verdict)| Some((*ip, verdict.reported()?)));
        !other.listed && (other.addresses().any(lists) || reports.any(|theirs| are_one((ip, reported), theirs)))
    };
    let peers = reported.peers.iter().filter(|peer| !us.addresses.contains(&peer.ip())).count();
    if survey.others.iter().filter(is_of_it).count() >= peers.clamp(1, 2) {
        return None;
    }
    Some(wait(
        Rule::Join,
        format!(
            "{} says that there is a cluster ({reported}), but our sources name at most one of its servers: it may be another \
             cluster that has this address by now",
            first.name
        ),
        "an outdated name forgets it (DNS keeps one for about 30 s), the other servers' names are known, the Kubernetes API may be \
         asked, or --discover=static: gives a server by hand",
    ))
}

/// A stranger where one of our servers is expected: that one may be anywhere, and know a cluster. So may our own cluster, when what
/// we know of it is out of date. Others beside our own servers do not count.
pub(super) fn in_anothers_place(survey: &Survey) -> Option<Decision> {
    let strange = |other: &&Other| match &other.verdict {
        Verdict::Stranger(stranger) => other.certain || !stranger.is_certain(),
        _ => false,
    };
    let strange: Vec<&Other> = survey.others.iter().filter(strange).collect();
    let first = strange.first()?;
    let more = match strange.len() - 1 {
        0 => String::new(),
        more => format!(" (and {} more)", count(more, "stranger", "strangers")),
    };
    Some(wait(
        Rule::Found,
        format!("{} is {}{more}", first.name, first.verdict),
        "its name leads to our own server again (DNS keeps an old address for about 30 s), or it is taken out of --discover",
    ))
}

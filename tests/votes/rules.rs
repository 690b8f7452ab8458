//! Whether a server with an empty disk may start: convene's own decision, given what the others have said, and weaker rules
//! beside it, which show that the model can fail.

use convene::claim::{Claim, Seen};
use convene::decide::{Decision, Disk, Us, decide};
use convene::settings::{Owner, Role};
use convene::survey::agents::{Cluster, Reported, Verdict};
use convene::survey::{Other, Survey};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rules {
    /// Convene's rules, with a claim: a cluster exists in every schedule, and the claim says so.
    Real,
    /// Convene without a claim: beside others that are all down an empty server founds (rule 8).
    RealWithoutClaim,
    /// It starts once one server's list lacks it.
    OneList,
    /// It starts once every list that was told lacks it, also where a listed server has not answered.
    EveryListTold,
    /// It starts at once, as Consul by itself.
    None,
}

/// The address of a server.
fn ip(server: usize) -> IpAddr {
    IpAddr::from([10, 0, 0, u8::try_from(server).unwrap()])
}

fn raft(server: usize) -> SocketAddr {
    SocketAddr::new(ip(server), 8300)
}

/// What a server says of its cluster.
pub fn reported(leader: Option<usize>, peers: impl Iterator<Item = usize>) -> Reported {
    Reported { leader: leader.map(raft), peers: peers.map(raft).collect(), cluster: Cluster::Unnamed }
}

// === impl Rules ===

impl Rules {
    /// Whether a server with an empty disk starts, given what every other one has said.
    pub fn let_start(self, who: usize, seen: BTreeMap<usize, Verdict>) -> bool {
        let mut lists = seen.values().filter_map(Verdict::reported);
        let lacks = |one: &Reported| !one.peers.contains(&raft(who));
        let claim = if self == Self::RealWithoutClaim { Seen::Unused } else { formed() };
        match (self, decided(who, &seen, &claim)) {
            (Self::Real | Self::RealWithoutClaim, Decision::Start(_)) | (Self::None, _) => true,
            (Self::OneList, _) => lists.any(lacks),
            (Self::EveryListTold, _) => lists.clone().count() > 0 && lists.all(lacks),
            _ => false,
        }
    }
}

/// The claim of a cluster that has formed.
fn formed() -> Seen {
    Seen::Claimed(Claim { id: "c1".to_owned(), formed: true, expect: None, addresses: BTreeSet::new() })
}

/// The product's own decision, of a server of a StatefulSet whose others are all known by name.
fn decided(who: usize, seen: &BTreeMap<usize, Verdict>, claim: &Seen) -> Decision {
    let size = u32::try_from(seen.len() + 1).unwrap();
    let us = Us {
        role: Role::Server,
        expect: Some(size),
        replicas: Some(size),
        position: u32::try_from(who).ok(),
        addresses: BTreeSet::from([ip(who)]),
        joins_later: true,
        owner: Owner::default(),
        adopt: None,
        force: None,
    };
    let others = seen.iter().map(|(server, verdict)| Other {
        name: format!("s{server}"),
        certain: true,
        listed: false,
        sure: true,
        host: Some(format!("s{server}.consul")),
        awaited: false,
        port: None,
        reports: BTreeMap::from([(ip(*server), verdict.clone())]),
        stable: BTreeSet::new(),
        verdict: verdict.clone(),
    });
    decide(&us, &Survey { others: others.collect(), ..Survey::default() }, &Disk::default(), claim)
}

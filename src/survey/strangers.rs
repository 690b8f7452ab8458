//! Which servers are not of our cluster: an address may lead to another cluster's server by now.
//!
//! Takes what the servers report and what is known of our own cluster, tells which of them is a [`Stranger`]. Pure. A cluster
//! is known by the ID of its certificate authority, which Consul makes once and tells anybody; where the authority is switched
//! off, by servers that name each other or the same leader. A server that has known no leader since its start is never called a
//! stranger for its cluster, since it cannot tell it.

use super::agents::{Cluster, Reported};
use std::fmt;
use std::net::IpAddr;

/// Why a server is not one of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stranger {
    /// Its datacenter is another one.
    Datacenter {
        /// Its own.
        theirs: String,
        /// Ours.
        ours: String,
    },
    /// Its Pod belongs to another StatefulSet, which is given here.
    Pod(String),
    /// It belongs to another cluster than the one that we know.
    Cluster(Reported),
    /// It does not tell yet which one it belongs to.
    Untold(Reported),
}

impl Stranger {
    /// What it reports, where that is what makes it one.
    pub fn reported(&self) -> Option<&Reported> {
        match self {
            Self::Cluster(reported) | Self::Untold(reported) => Some(reported),
            _ => None,
        }
    }

    /// Whether that holds whatever we know of our own cluster, which may be out of date.
    pub fn is_certain(&self) -> bool {
        matches!(self, Self::Datacenter { .. } | Self::Pod(_))
    }
}

impl fmt::Display for Stranger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Datacenter { theirs, ours } => write!(f, "its datacenter is {theirs}, and ours is {ours}"),
            Self::Pod(owner) => write!(f, "its Pod belongs to {owner}"),
            Self::Cluster(reported) => write!(f, "it belongs to another cluster ({reported})"),
            Self::Untold(reported) => write!(f, "it does not tell yet which cluster it belongs to ({reported})"),
        }
    }
}

/// What is known of our own cluster.
#[derive(Debug, Default)]
pub(super) struct Ours {
    /// Its ID.
    cluster: Option<String>,
    /// What servers of it report.
    reports: Vec<(IpAddr, Reported)>,
}

// === impl Ours ===

impl Ours {
    /// The cluster that this server's data belongs to, when that is known; else the one that the servers belong to whose
    /// addresses are theirs for certain, when it is one.
    pub(super) fn of(known: Option<&String>, certain: impl Iterator<Item = (IpAddr, Reported)>) -> Self {
        let mut led: Vec<(IpAddr, Reported)> = certain.filter(|(_, reported)| reported.is_settled()).collect();
        if let Some(known) = known {
            led.retain(|(_, reported)| reported.id() == Some(known));
            return Self { cluster: Some(known.clone()), reports: led };
        }
        if let Some(first) = led.first().cloned()
            && !led.iter().all(|other| are_one(as_ref(&first), as_ref(other)))
        {
            return Self::default();
        }
        let cluster = led.iter().find_map(|(_, reported)| reported.id().cloned());
        Self { cluster, reports: led }
    }

    /// Why the server at this address is a stranger, if it is.
    pub(super) fn lack(&self, ip: IpAddr, reported: &Reported) -> Option<Stranger> {
        let is_linked = || self.reports.iter().any(|one| are_one(as_ref(one), (ip, reported)));
        let another = || Some(Stranger::Cluster(reported.clone()));
        match (&self.cluster, &reported.cluster) {
            (Some(ours), Cluster::Id(theirs)) if ours == theirs => None,
            (Some(_), Cluster::Id(_)) => another(),
            _ if !reported.is_settled() => None,
            _ if is_linked() => None,
            (Some(_), Cluster::NotYet) => Some(Stranger::Untold(reported.clone())),
            _ if self.reports.is_empty() => None,
            _ => another(),
        }
    }

    /// Whether the server at this address belongs to it without doubt; `own` are our addresses of today.
    pub(super) fn have(&self, reported: &Reported, own: impl Fn(&IpAddr) -> bool) -> bool {
        match (&self.cluster, reported.id()) {
            (Some(ours), Some(theirs)) => ours == theirs,
            _ => reported.peers.iter().any(|peer| own(&peer.ip())),
        }
    }
}

fn as_ref((ip, reported): &(IpAddr, Reported)) -> (IpAddr, &Reported) {
    (*ip, reported)
}

/// Whether two servers belong to one cluster: by its ID, else when they know the same leader or list each other. That one lists
/// the other says nothing: an address in an old list may be anybody's by now.
pub fn are_one((ip, one): (IpAddr, &Reported), (other_ip, other): (IpAddr, &Reported)) -> bool {
    let lists = |reported: &Reported, ip: IpAddr| reported.peers.iter().any(|peer| peer.ip() == ip);
    match (one.id(), other.id()) {
        (Some(one), Some(other)) => one == other,
        _ => one.leader.is_some() && one.leader == other.leader || lists(one, other_ip) && lists(other, ip),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;

    fn ip(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    fn raft(last: u8) -> SocketAddr {
        SocketAddr::new(ip(last), 8300)
    }

    fn of(cluster: Option<&str>, leader: Option<u8>, peers: &[u8]) -> Reported {
        let peers = peers.iter().copied().map(raft).collect();
        let cluster = cluster.map_or(Cluster::Unnamed, |id| Cluster::Id(id.to_owned()));
        Reported { leader: leader.map(raft), peers, cluster }
    }

    fn lacks(ours: &Ours, last: u8, reported: &Reported) -> bool {
        ours.lack(ip(last), reported).is_some()
    }

    fn known(cluster: &str) -> Ours {
        Ours::of(Some(&cluster.to_owned()), std::iter::empty())
    }

    #[test]
    fn another_id_is_another_cluster_although_the_lists_share_addresses() {
        assert!(lacks(&known("a"), 2, &of(Some("b"), Some(2), &[1, 2, 3])));
        assert!(!lacks(&known("a"), 2, &of(Some("a"), Some(7), &[7, 8])));
    }

    #[test]
    fn who_knows_no_leader_or_tells_no_id_is_no_stranger_while_nobody_else_is_certain() {
        assert!(!lacks(&known("a"), 2, &of(None, None, &[2, 3])));
        assert!(lacks(&known("a"), 2, &of(Some("b"), None, &[2, 3])), "it has lost its leader");
        assert!(!lacks(&known("a"), 2, &of(None, Some(2), &[2, 3])));
        assert!(!lacks(&Ours::default(), 2, &of(Some("b"), Some(2), &[2, 3])));
    }

    #[test]
    fn who_knows_a_leader_and_does_not_tell_its_cluster_yet_is_not_joined_by_a_server_that_knows_its_own() {
        let untold = |leader| Reported { cluster: Cluster::NotYet, ..of(None, Some(leader), &[leader, 3]) };
        assert_eq!(known("a").lack(ip(2), &untold(2)), Some(Stranger::Untold(untold(2))));
        assert!(!lacks(&Ours::default(), 2, &untold(2)));
        // Nor is one whose leader is a server of ours.
        let certain = Ours::of(Some(&"a".to_owned()), [(ip(2), of(Some("a"), Some(2), &[2, 3]))].into_iter());
        assert!(!lacks(&certain, 3, &untold(2)));
    }

    #[test]
    fn servers_at_certain_addresses_tell_which_cluster_is_ours() {
        let certain = [(ip(2), of(Some("a"), Some(2), &[2, 3])), (ip(9), of(None, None, &[9]))];
        let ours = Ours::of(None, certain.into_iter());
        assert!(lacks(&ours, 5, &of(Some("b"), Some(5), &[5])));
        assert!(!lacks(&ours, 3, &of(Some("a"), Some(3), &[2, 3])));
        let two = [(ip(2), of(Some("a"), Some(2), &[2])), (ip(5), of(Some("b"), Some(5), &[5]))];
        assert!(!lacks(&Ours::of(None, two.into_iter()), 5, &of(Some("b"), Some(5), &[5])), "nothing tells which");
    }

    #[test]
    fn without_an_id_servers_are_one_that_know_one_leader_or_list_each_other() {
        let one = of(None, Some(2), &[2, 3]);
        assert!(are_one((ip(2), &one), (ip(3), &of(None, Some(2), &[2, 3, 4]))));
        assert!(are_one((ip(2), &one), (ip(3), &of(None, Some(3), &[2, 3]))), "in an election");
        // 3 and 4 were our servers' addresses and are the other cluster's by now.
        let (old, other) = (of(None, Some(2), &[2, 3, 4]), of(None, Some(3), &[3, 4, 5]));
        assert!(!are_one((ip(2), &old), (ip(3), &other)));
        let ours = Ours::of(None, [(ip(2), old)].into_iter());
        assert!(lacks(&ours, 3, &other));
    }

    #[test]
    fn a_server_known_last_is_ours_when_its_cluster_is_or_when_it_lists_our_address_of_today() {
        let own = |one: &IpAddr| *one == ip(1);
        assert!(known("a").have(&of(Some("a"), Some(2), &[2, 3]), own));
        assert!(!known("a").have(&of(Some("b"), Some(2), &[1, 2, 3]), own));
        assert!(known("a").have(&of(None, None, &[1, 2, 3]), own));
        assert!(!known("a").have(&of(None, None, &[2, 3]), own));
    }
}

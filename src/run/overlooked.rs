//! Does the leader overlook this server? Gossip of both knows the other, and the leader does not take us in among the raft peers.
//!
//! A leader that learned from other members that we had left, before it met us at our return, is told our join with the status
//! "leaving" (serf.go of 0.10, `handleNodeJoin` and `recentIntents`), which Consul's leader passes over, and serf says nothing when
//! that status turns to alive. So nobody acts until the leader's next reconciliation, up to 60 s later (1.22.6: `ReconcileInterval`).
//! A leave and a new start tell it of us once more; they cost no vote, since we have none.
//!
//! Takes what was seen of the others and of gossip, gives the leader. Pure; asks nobody.

use crate::survey::Survey;
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use tokio::time::Instant;

/// A leader takes in whom it sees within a second, and what is joined at one server has reached all others by then.
const PATIENCE: Duration = Duration::from_secs(6);

/// For how long we have been overlooked, and by whom.
#[derive(Debug, Default)]
pub struct Overlooked {
    by: Option<(SocketAddr, Instant)>,
    told: bool,
}

// === impl Overlooked ===

impl Overlooked {
    /// One who has been told of it before is not told again: a leader that does not take us in then has another reason.
    pub fn told_before() -> Self {
        Self { by: None, told: true }
    }

    /// The leader that has overlooked us for long enough; once. `alive` are the servers that are alive in our member list, `own` our
    /// addresses.
    pub fn look(
        &mut self,
        survey: &Survey,
        alive: &BTreeSet<IpAddr>,
        own: &BTreeSet<IpAddr>,
        now: Instant,
    ) -> Option<SocketAddr> {
        let leader = overlooking(survey, alive, own);
        if self.by.map(|(leader, _)| leader) != leader {
            self.by = leader.map(|leader| (leader, now));
        }
        let long = self.by.is_some_and(|(_, since)| now.duration_since(since) >= PATIENCE);
        if !long || std::mem::replace(&mut self.told, true) {
            return None;
        }
        leader
    }
}

/// The leader that all name who know one, if gossip knows it and nobody of them lists us.
fn overlooking(survey: &Survey, alive: &BTreeSet<IpAddr>, own: &BTreeSet<IpAddr>) -> Option<SocketAddr> {
    let reports = survey.others.iter().filter_map(|other| other.verdict.reported());
    let led: Vec<_> = reports.filter_map(|reported| reported.leader.zip(Some(&reported.peers))).collect();
    let (leader, _) = *led.first()?;
    let agreed = led.iter().all(|(other, peers)| {
        *other == leader && !peers.is_empty() && !peers.iter().any(|peer| own.contains(&peer.ip()))
    });
    (agreed && !own.is_empty() && alive.contains(&leader.ip())).then_some(leader)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::survey::Other;
    use crate::survey::agents::{Reported, Verdict};
    use std::collections::BTreeMap;

    fn ip(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    /// Servers that know a leader, each with its raft peers.
    fn survey(led: &[(u8, &[u8])]) -> Survey {
        let at = |last: u8| SocketAddr::new(ip(last), 8300);
        let others = led.iter().map(|(leader, peers)| {
            let peers = peers.iter().map(|peer| at(*peer)).collect();
            let reported = Reported { leader: (*leader > 0).then(|| at(*leader)), peers, ..Reported::default() };
            Other {
                name: "consul-server-1".to_owned(),
                certain: true,
                listed: false,
                sure: true,
                host: None,
                awaited: false,
                port: None,
                reports: BTreeMap::new(),
                stable: BTreeSet::new(),
                verdict: Verdict::Formed(reported),
            }
        });
        Survey { others: others.collect(), ..Survey::default() }
    }

    fn own() -> BTreeSet<IpAddr> {
        BTreeSet::from([ip(9)])
    }

    #[test]
    fn who_is_among_the_raft_peers_or_unknown_to_gossip_is_not_overlooked() {
        let alive = BTreeSet::from([ip(1), ip(2)]);
        let by = |led: &[(u8, &[u8])], alive: &BTreeSet<IpAddr>| {
            overlooking(&survey(led), alive, &own()).map(|leader| leader.ip())
        };
        assert_eq!(by(&[(1, &[1, 2]), (1, &[1, 2])], &alive), Some(ip(1)));
        assert_eq!(by(&[(1, &[1, 2]), (0, &[1, 2, 9])], &alive), Some(ip(1)), "an old list without a leader");
        assert_eq!(by(&[(1, &[1, 2]), (1, &[1, 2, 9])], &alive), None, "one of them lists us");
        assert_eq!(by(&[(1, &[1, 2]), (2, &[1, 2])], &alive), None, "two leaders");
        assert_eq!(by(&[(1, &[1, 2]), (1, &[])], &alive), None, "one knows no peers");
        assert_eq!(by(&[(0, &[1, 2])], &alive), None, "no leader");
        assert_eq!(by(&[(1, &[1, 2])], &BTreeSet::from([ip(2)])), None, "gossip does not know the leader");
        assert_eq!(overlooking(&survey(&[(1, &[1, 2])]), &alive, &BTreeSet::new()), None, "no address of our own");
    }

    #[test]
    fn it_is_told_once_after_six_seconds_of_one_leader() {
        let alive = BTreeSet::from([ip(1), ip(2)]);
        let (first, second) = (survey(&[(1, &[1, 2])]), survey(&[(2, &[1, 2])]));
        let begun = Instant::now();
        let look = |overlooked: &mut Overlooked, survey: &Survey, after: u64| {
            let now = begun + Duration::from_millis(after);
            overlooked.look(survey, &alive, &own(), now).map(|leader| leader.ip())
        };
        let mut new = Overlooked::default();
        assert_eq!(look(&mut new, &first, 0), None);
        assert_eq!(look(&mut new, &first, 5_999), None);
        assert_eq!(look(&mut new, &second, 6_000), None, "another leader has its own time");
        assert_eq!(look(&mut new, &second, 12_000), Some(ip(2)));
        assert_eq!(look(&mut new, &second, 18_000), None, "once");
        let mut before = Overlooked::told_before();
        assert_eq!(look(&mut before, &first, 0), None);
        assert_eq!(look(&mut before, &first, 6_000), None);
    }
}

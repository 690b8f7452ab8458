//! May a server that will return stop now, or is another one on its way back?
//!
//! Takes the servers as they are and as they were when our TERM came, gives whether to wait and for whom. Pure. The end of the
//! wait is the caller's: at most half of the grace period.

use super::voters::{View, Voter};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

/// How long a server is waited for that was away already when our TERM came.
pub const DEAD: Duration = Duration::from_secs(5);

/// For whom to wait; `None`: nobody. `dead` are those that were away when our TERM came, `waited` is how long ago that was.
pub fn waits_for(view: &View, ordinal: Option<u32>, dead: &BTreeSet<SocketAddr>, waited: Duration) -> Option<String> {
    if !view.we_vote() {
        return None;
    }
    // A quorum that is lost anyway is back sooner when nobody waits.
    if majority_goes(view) {
        return None;
    }
    // It is lost already, with us and without.
    if (view.others.iter().filter(|voter| voter.is_healthy()).count() + 1) * 2 <= view.count() {
        return None;
    }
    let higher = view.others.iter().find(|voter| is_going(voter) && comes_first(voter, view, ordinal));
    if let Some(voter) = higher {
        return Some(format!("{} stops too, and the higher ordinal goes first", voter.name()));
    }
    view.others.iter().find_map(|voter| {
        let why = voter.away.as_ref()?;
        (!dead.contains(&voter.address) || waited < DEAD).then(|| format!("{} is away ({why})", voter.name()))
    })
}

/// Whether a majority of the voters stops at once: others do, and we too.
pub fn majority_goes(view: &View) -> bool {
    let others = view.others.iter().filter(|voter| is_going(voter)).count();
    others > 0 && (others + 1) * 2 > view.count()
}

/// It is being deleted, and has not ended yet.
fn is_going(voter: &Voter) -> bool {
    voter.terminating && voter.is_healthy()
}

/// The higher ordinal, as a StatefulSet itself goes; without ordinals the higher address.
fn comes_first(other: &Voter, view: &View, ordinal: Option<u32>) -> bool {
    match (other.ordinal, ordinal) {
        (Some(theirs), Some(ours)) => theirs > ours,
        _ => view.us.is_some_and(|us| other.address > us),
    }
}

#[cfg(test)]
mod tests {
    use super::super::voters::tests::{at, view, voter};
    use super::*;

    const NOW: Duration = Duration::ZERO;

    fn waits(view: &View, dead: &[u32], waited: Duration) -> Option<String> {
        waits_for(view, Some(1), &dead.iter().map(|ordinal| at(*ordinal)).collect(), waited)
    }

    #[test]
    fn nobody_is_waited_for_when_all_are_well() {
        assert_eq!(waits(&view(1, vec![voter(0), voter(2)]), &[], NOW), None);
    }

    #[test]
    fn a_server_on_its_way_back_is_waited_for() {
        let one_is_away = view(1, vec![voter(0), voter(2).away()]);
        let long = Duration::from_secs(3600);
        assert!(waits(&one_is_away, &[], long).unwrap().contains("consul-server-2 is away"));
    }

    #[test]
    fn a_server_that_was_dead_already_is_waited_for_a_moment_only() {
        let one_is_dead = view(1, vec![voter(0), voter(2).away()]);
        assert!(waits(&one_is_dead, &[2], DEAD - Duration::from_millis(1)).is_some());
        assert_eq!(waits(&one_is_dead, &[2], DEAD), None);
    }

    #[test]
    fn of_two_that_stop_together_the_higher_ordinal_goes_first() {
        let five = |going: [u32; 2]| {
            let others = [0, 2, 3, 4].map(|n| if going.contains(&n) { voter(n).going() } else { voter(n) });
            view(1, others.to_vec())
        };
        assert!(waits(&five([3, 3]), &[], NOW).unwrap().contains("consul-server-3 stops too"));
        assert_eq!(waits(&five([0, 0]), &[], NOW), None, "the lower one waits for us");
    }

    #[test]
    fn nobody_waits_when_a_majority_goes_anyway() {
        assert_eq!(waits(&view(1, vec![voter(0), voter(2).going()]), &[], NOW), None);
        assert_eq!(waits(&view(1, vec![voter(0).going(), voter(2).going()]), &[], NOW), None);
        let three_of_five = view(1, vec![voter(0), voter(2), voter(3).going(), voter(4).going()]);
        assert_eq!(waits(&three_of_five, &[], NOW), None);
    }

    #[test]
    fn nobody_waits_when_the_quorum_is_lost_already() {
        assert_eq!(waits(&view(1, vec![voter(0).away(), voter(2).away()]), &[], NOW), None);
        assert_eq!(waits(&view(1, vec![voter(0).away(), voter(2).away(), voter(3).away(), voter(4)]), &[], NOW), None);
        let two_of_four = view(1, vec![voter(0).away(), voter(2).away(), voter(3), voter(4)]);
        assert!(waits(&two_of_four, &[], NOW).is_some());
    }

    #[test]
    fn who_has_no_vote_waits_for_nobody() {
        let well = || view(1, vec![voter(0), voter(2).away(), voter(3), voter(4).going()]);
        assert!(waits(&well(), &[], NOW).is_some());
        assert_eq!(waits(&View { us: None, ..well() }, &[], NOW), None);
        assert_eq!(waits(&View { voteless: true, ..well() }, &[], NOW), None);
    }

    #[test]
    fn without_ordinals_the_higher_address_goes_first() {
        let nameless = |n: u32| Voter { ordinal: None, pod: None, ..voter(n) };
        let five = |going: u32| {
            view(2, [0, 1, 3, 4].map(|n| if n == going { nameless(n).going() } else { nameless(n) }).to_vec())
        };
        assert!(waits_for(&five(3), None, &BTreeSet::new(), NOW).is_some());
        assert_eq!(waits_for(&five(1), None, &BTreeSet::new(), NOW), None);
    }
}

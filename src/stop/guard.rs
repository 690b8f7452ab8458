//! May a server that will return stop now, or is another one on its way back?
//!
//! Takes the servers as they are and what was seen of them since our TERM came, gives whether to wait and for whom. Pure. The end of the
//! wait is the caller's: at most half of the grace period.

use super::voters::{View, Voter};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

/// How long a server is waited for that was away already when our TERM came.
pub const DEAD: Duration = Duration::from_secs(5);

/// What was seen of the others since our TERM came.
#[derive(Debug, Default)]
pub struct Seen {
    /// Those that were away already at the first look.
    dead: Option<BTreeSet<SocketAddr>>,
    /// Those whose Pods were being deleted at any look.
    going: BTreeSet<SocketAddr>,
}

// === impl Seen ===

impl Seen {
    /// Looks once more.
    pub fn look(&mut self, view: &View) {
        let addresses =
            |which: fn(&Voter) -> bool| view.others.iter().filter(move |voter| which(voter)).map(|voter| voter.address);
        self.dead.get_or_insert_with(|| addresses(|voter| !voter.is_healthy()).collect());
        self.going.extend(addresses(|voter| voter.terminating));
    }

    /// Every other voter was seen to stop, as we do.
    fn all_go(&self, view: &View) -> bool {
        !view.others.is_empty() && view.others.iter().all(|voter| self.going.contains(&voter.address))
    }

    fn is_dead(&self, voter: &Voter) -> bool {
        self.dead.as_ref().is_some_and(|dead| dead.contains(&voter.address))
    }
}

/// For whom to wait; `None`: nobody. `waited` is how long ago our TERM came.
///
/// Of those that stop at once one goes after the other, so that no quorum is lost. Where all do nobody waits: it is back sooner,
/// and that is what was asked for.
pub fn waits_for(view: &View, ordinal: Option<u32>, seen: &Seen, waited: Duration) -> Option<String> {
    if !view.we_vote() || seen.all_go(view) {
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
        (!seen.is_dead(voter) || waited < DEAD).then(|| format!("{} is away ({why})", voter.name()))
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
        let dead = Some(dead.iter().map(|ordinal| at(*ordinal)).collect());
        waits_for(view, Some(1), &Seen { dead, ..Seen::default() }, waited)
    }

    /// What the ordinal waits for at the last of several looks.
    fn looks(ordinal: u32, looks: &[View]) -> Option<String> {
        let mut seen = Seen::default();
        looks.iter().for_each(|view| seen.look(view));
        waits_for(looks.last().unwrap(), Some(ordinal), &seen, NOW)
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
    fn of_a_majority_that_stops_one_goes_after_the_other_too() {
        let two_go = || view(1, vec![voter(0), voter(2).going()]);
        assert!(looks(1, &[two_go()]).unwrap().contains("consul-server-2 stops too"));
        assert!(
            looks(1, &[two_go(), view(1, vec![voter(0), voter(2).away()])])
                .unwrap()
                .contains("consul-server-2 is away")
        );
        assert_eq!(looks(1, &[two_go(), view(1, vec![voter(0), voter(2)])]), None);
        let three_of_five = |us: u32, others: [u32; 4]| {
            view(us, others.map(|n| if n > 1 { voter(n).going() } else { voter(n) }).to_vec())
        };
        assert!(looks(2, &[three_of_five(2, [0, 1, 3, 4])]).is_some());
        let fourth_is_back = view(2, vec![voter(0), voter(1), voter(3).going(), voter(4)]);
        assert!(
            looks(2, &[three_of_five(2, [0, 1, 3, 4]), fourth_is_back]).unwrap().contains("consul-server-3 stops too")
        );
        assert_eq!(looks(4, &[three_of_five(4, [0, 1, 2, 3])]), None);
    }

    #[test]
    fn nobody_waits_when_all_go() {
        let all_go = || view(0, vec![voter(1).going(), voter(2).going()]);
        assert_eq!(looks(0, &[all_go()]), None);
        assert_eq!(looks(0, &[all_go(), view(0, vec![voter(1).going(), voter(2).away()])]), None);
        let not_seen_yet = view(0, vec![voter(1).going(), voter(2)]);
        assert!(looks(0, std::slice::from_ref(&not_seen_yet)).unwrap().contains("consul-server-1 stops too"));
        assert_eq!(looks(0, &[not_seen_yet, all_go()]), None);
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
        assert!(waits_for(&five(3), None, &Seen::default(), NOW).is_some());
        assert_eq!(waits_for(&five(1), None, &Seen::default(), NOW), None);
    }
}

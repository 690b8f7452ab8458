//! May a server that will return stop now, or is another one on its way back?
//!
//! Takes the servers as they are and what was seen of them since our TERM came, gives whether to wait and for whom. Pure. The end of the
//! wait is the caller's: at most half of the grace period.

use super::voters::{View, Voter};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

/// How long a server is waited for that was away already when our TERM came.
pub const DEAD: Duration = Duration::from_secs(5);

/// And one whose Pod was being deleted: it is back by then, or its machine is lost, which keeps a Pod so for ever.
const GOING: Duration = Duration::from_secs(20);

/// What was seen of the others since our TERM came.
#[derive(Debug, Default)]
pub struct Seen {
    /// Our own Pod has the label that a stop takes away, and so theirs have it until they are about to stop.
    labelled: bool,
    /// Those that were away already at the first look, and how long each is waited for.
    dead: Option<BTreeMap<SocketAddr, Duration>>,
}

// === impl Seen ===

impl Seen {
    /// Nothing yet, by a server whose own Pod has the label or not.
    pub fn of(labelled: bool) -> Self {
        Self { labelled, dead: None }
    }

    /// Looks once more.
    pub fn look(&mut self, view: &View) {
        let away = view.others.iter().filter(|voter| !voter.is_healthy());
        let patience = |voter: &Voter| if voter.terminating { GOING } else { DEAD };
        self.dead.get_or_insert_with(|| away.map(|voter| (voter.address, patience(voter))).collect());
    }

    fn is_dead(&self, voter: &Voter, waited: Duration) -> bool {
        self.dead.as_ref().and_then(|dead| dead.get(&voter.address)).is_some_and(|patience| waited >= *patience)
    }
}

/// For whom to wait; `None`: nobody. `waited` is how long ago our TERM came.
///
/// Of those that stop at once one goes after the other, so that no quorum is lost, although all of them go: first who has withdrawn
/// from its Service, then the higher ordinal.
pub fn waits_for(view: &View, ordinal: Option<u32>, seen: &Seen, waited: Duration) -> Option<String> {
    if !view.we_vote() {
        return None;
    }
    if let Some(voter) = about_to_stop(view, seen, waited) {
        return Some(format!("{} is about to stop", voter.name()));
    }
    // It is lost already, with us and without.
    if (view.others.iter().filter(|voter| voter.is_healthy()).count() + 1) * 2 <= view.count() {
        return None;
    }
    let higher = view.others.iter().find(|voter| is_going(voter) && comes_first(voter, view, ordinal));
    if let Some(voter) = higher {
        return Some(format!("{} stops too, and the higher ordinal goes first", voter.name()));
    }
    view.others
        .iter()
        .filter(|voter| !seen.is_dead(voter, waited))
        .find_map(|voter| Some(format!("{} is away ({})", voter.name(), voter.away.as_ref()?)))
}

/// Who has withdrawn from its Service, and is not away for so long that its machine is lost.
pub fn about_to_stop<'a>(view: &'a View, seen: &Seen, waited: Duration) -> Option<&'a Voter> {
    view.others.iter().find(|voter| seen.labelled && voter.withdrawn && !seen.is_dead(voter, waited))
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
        let dead = Some(dead.iter().map(|ordinal| (at(*ordinal), DEAD)).collect());
        waits_for(view, Some(1), &Seen { labelled: true, dead }, waited)
    }

    /// What the ordinal waits for at the last of several looks.
    fn looks(ordinal: u32, looks: &[View]) -> Option<String> {
        let mut seen = Seen::of(true);
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
    fn of_all_one_goes_after_the_other() {
        let all_go = |us: u32, others: [u32; 2]| view(us, others.map(|n| voter(n).going()).to_vec());
        assert_eq!(looks(2, &[all_go(2, [0, 1])]), None);
        assert!(looks(1, &[all_go(1, [0, 2])]).unwrap().contains("consul-server-2 stops too"));
        assert!(looks(0, &[all_go(0, [1, 2])]).unwrap().contains("consul-server-1 stops too"));
        let first_is_away = view(1, vec![voter(0).going(), voter(2).going().away()]);
        assert!(looks(1, &[first_is_away]).unwrap().contains("consul-server-2 is away"));
        let first_is_back = view(1, vec![voter(0).going(), voter(2)]);
        assert_eq!(looks(1, &[first_is_back]), None);
    }

    #[test]
    fn who_has_withdrawn_goes_before_a_higher_ordinal() {
        let lowest_goes = |us: u32, other: u32| view(us, vec![voter(0).withdrawn(), voter(other).going()]);
        for (us, other) in [(1, 2), (2, 1)] {
            assert!(looks(us, &[lowest_goes(us, other)]).unwrap().contains("consul-server-0 is about to stop"));
        }
        // Its Service refuses for everybody, and it was no dead one before.
        let gone = || view(2, vec![voter(0).withdrawn().away(), voter(1)]);
        let starting = || view(2, vec![voter(0).away(), voter(1)]);
        let mut seen = Seen::of(true);
        seen.look(&gone());
        assert!(waits_for(&gone(), Some(2), &seen, DEAD).is_some());
        assert!(waits_for(&starting(), Some(2), &seen, DEAD).unwrap().contains("consul-server-0 is away"));
        assert_eq!(waits_for(&gone(), Some(2), &seen, GOING), None, "its machine is lost");
        assert!(about_to_stop(&gone(), &seen, DEAD).is_some());
        assert_eq!(about_to_stop(&gone(), &seen, GOING), None, "and nobody goes back for it");
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

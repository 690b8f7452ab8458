//! May a server that will return stop now, or is another one on its way back?
//!
//! Takes the servers as they are and what was seen of them since our TERM came, gives whether to wait and for whom. Pure. The end of the
//! wait is the caller's, between half of the grace period and its end.

use super::voters::{View, Voter};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::time::Instant;

/// How long a server is waited for that was away already at the first look.
pub const DEAD: Duration = Duration::from_secs(5);

/// And one whose Pod was being deleted, for as long as that is so: a machine that is lost keeps a Pod so for ever.
const GOING: Duration = Duration::from_secs(20);

/// And until those have what the leader's log has whom it does not copy to, since a dial of Consul's got lost that lasts 10 s.
pub const BEHIND: Duration = Duration::from_secs(15);

/// Who asks.
#[derive(Debug, Clone, Copy, Default)]
pub struct Us {
    /// Our ordinal, if our Pod is one of a StatefulSet.
    pub ordinal: Option<u32>,
    /// We have withdrawn from our Service, which the others see: so it is our turn, unless another one has done so too.
    pub withdrawn: bool,
}

/// What was seen of the others since our TERM came.
#[derive(Debug, Default)]
pub struct Seen {
    /// Those that are away since the first look, and whether their Pods were being deleted.
    dead: Option<BTreeMap<SocketAddr, bool>>,
    /// Those that were to go before us, whether they have or not.
    before: BTreeSet<SocketAddr>,
    /// Those whose Pods were being deleted, and that are not back.
    gone: BTreeSet<SocketAddr>,
    /// Since when no majority answers, as long after the first look.
    lost: Option<Duration>,
}

// === impl Seen ===

impl Seen {
    /// Looks once more, so long after the first look.
    pub fn look(&mut self, view: &View, us: Us, waited: Duration) {
        self.lost = is_lost(view, |voter| voter.answers).then(|| self.lost.unwrap_or(waited));
        let away = || view.others.iter().filter(|voter| !voter.is_healthy());
        let dead = self.dead.get_or_insert_with(|| away().map(|voter| (voter.address, false)).collect());
        // One that is well again, or that comes back in a new Pod, is no dead one.
        dead.retain(|address, going| {
            let Some(voter) = away().find(|voter| voter.address == *address) else { return false };
            let anew = *going && !voter.terminating && !voter.untold;
            *going |= voter.terminating;
            !anew
        });
        let back = view.others.iter().filter(|voter| voter.is_healthy() && !voter.terminating);
        back.for_each(|voter| _ = self.gone.remove(&voter.address));
        self.gone.extend(view.others.iter().filter(|voter| voter.terminating).map(|voter| voter.address));
        let first = |voter: &&Voter| goes_first(voter, view, us);
        // Whoever is well and is not to go first any more is none of them.
        let well = view.others.iter().filter(|voter| voter.is_healthy() && !first(voter)).map(|voter| voter.address);
        well.for_each(|address| _ = self.before.remove(&address));
        self.before.extend(view.others.iter().filter(first).map(|voter| voter.address));
    }

    /// When nobody is waited for any longer, between two moments: the later, the more are to go before us. So those that wait in vain
    /// for the same server do not go all at once.
    pub fn until(&self, view: &View, first: Instant, last: Instant) -> Instant {
        let others = u32::try_from(view.others.len()).unwrap_or(u32::MAX);
        let before = u32::try_from(self.before.len()).unwrap_or(u32::MAX).min(others);
        first + last.saturating_duration_since(first) / others.saturating_add(1) * before
    }

    fn is_dead(&self, voter: &Voter, waited: Duration) -> bool {
        let going = self.dead.as_ref().and_then(|dead| dead.get(&voter.address));
        going.is_some_and(|going| waited >= if *going { GOING } else { DEAD })
    }
}

/// For whom to wait; `None`: nobody. `waited` is how long ago the first look was.
///
/// Of those that stop at once one goes after the other, so that no quorum is lost, although all of them go: first who has withdrawn
/// from its Service, then the higher ordinal. Who has withdrawn looks once more: of two that did so at one moment each sees the other.
pub fn waits_for(view: &View, us: Us, seen: &Seen, waited: Duration) -> Option<String> {
    if !view.we_vote() {
        return None;
    }
    let lives = |voter: &&Voter| !seen.is_dead(voter, waited);
    if let Some(voter) = view.others.iter().filter(lives).find(|voter| voter.withdrawn) {
        return Some(format!("{} is about to stop", voter.name()));
    }
    // It is lost already, with us and without. A machine that has no time for a moment, ours too, makes all of them late at once.
    let endures = seen.lost.is_some_and(|since| waited.saturating_sub(since) >= DEAD);
    if endures || is_lost(view, |voter| voter.answers || voter.late) {
        return None;
    }
    let first = |voter: &&Voter| !us.withdrawn && is_going(voter) && comes_first(voter, view, us);
    if let Some(voter) = view.others.iter().find(first) {
        return Some(format!("{} stops too, and the higher ordinal goes first", voter.name()));
    }
    let mut awaited = view.others.iter().filter(lives);
    awaited.find_map(|voter| Some(format!("{} is away ({})", voter.name(), voter.away.as_ref()?)))
}

/// Whether it is our turn as soon as those are well again that have just ended, or come back in new Pods: nobody else is away, and nobody
/// goes before us.
pub fn is_next(view: &View, us: Us, seen: &Seen, waited: Duration) -> bool {
    // Who has withdrawn and is away has ended, and looks no more whether another one withdraws.
    let returns = |voter: &Voter| (!voter.terminating || voter.withdrawn) && seen.gone.contains(&voter.address);
    let living = view.others.iter().filter(|voter| !seen.is_dead(voter, waited));
    let (well, away): (Vec<_>, Vec<_>) = living.partition(|voter| voter.is_healthy());
    view.we_vote()
        && !away.is_empty()
        && away.into_iter().all(returns)
        && !well.into_iter().any(|voter| goes_first(voter, view, us))
}

/// For whom to wait of those that are behind the leader's log ([`super::lag`]); `None`: without us a majority has it.
pub fn lacks(view: &View, behind: &BTreeSet<SocketAddr>) -> Option<String> {
    let able = view.others.iter().filter(|voter| voter.is_healthy() && !behind.contains(&voter.address)).count();
    let voter = view.others.iter().find(|voter| behind.contains(&voter.address))?;
    (able * 2 <= view.count())
        .then(|| format!("{} lacks what the leader's log has, and without us no majority has it", voter.name()))
}

/// Whether those that are here, we among them, are no majority.
fn is_lost(view: &View, is_here: impl Fn(&Voter) -> bool) -> bool {
    (view.others.iter().filter(|voter| is_here(voter)).count() + 1) * 2 <= view.count()
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

/// It is to go before us, whether or not we have withdrawn.
fn goes_first(voter: &Voter, view: &View, us: Us) -> bool {
    voter.withdrawn || is_going(voter) && comes_first(voter, view, us)
}

/// The higher ordinal, as a StatefulSet itself goes, and of two StatefulSets the higher address; where any Pod has no ordinal the address
/// decides for all, since everybody must come to the same order.
fn comes_first(other: &Voter, view: &View, us: Us) -> bool {
    let Some(address) = view.us else { return false };
    let ranked = us.ordinal.is_some() && view.others.iter().all(|voter| voter.rank().is_some());
    let rank = |rank: Option<u32>| rank.filter(|_| ranked);
    (rank(other.rank()), other.address) > (rank(us.ordinal), address)
}

#[cfg(test)]
mod tests {
    use super::super::voters::tests::{at, view, voter};
    use super::*;

    const NOW: Duration = Duration::ZERO;

    fn us(ordinal: u32) -> Us {
        Us { ordinal: Some(ordinal), withdrawn: false }
    }

    fn waits(view: &View, dead: &[u32], waited: Duration) -> Option<String> {
        let dead = Some(dead.iter().map(|ordinal| (at(*ordinal), false)).collect());
        waits_for(view, us(1), &Seen { dead, ..Seen::default() }, waited)
    }

    /// What the ordinal waits for at the last of several looks.
    fn looks(ordinal: u32, looks: &[View]) -> Option<String> {
        waits_for(looks.last().unwrap(), us(ordinal), &seen_by(ordinal, looks), NOW)
    }

    fn seen_by(ordinal: u32, looks: &[View]) -> Seen {
        let mut seen = Seen::default();
        looks.iter().for_each(|view| seen.look(view, us(ordinal), NOW));
        seen
    }

    #[test]
    fn who_lacks_the_leaders_log_is_waited_for_when_nothing_could_be_written_without_us() {
        let three = view(1, vec![voter(0), voter(2)]);
        let behind = |ordinals: &[u32]| ordinals.iter().map(|ordinal| at(*ordinal)).collect::<BTreeSet<_>>();
        assert!(lacks(&three, &behind(&[2])).unwrap().contains("consul-server-2 lacks"));
        assert_eq!(lacks(&three, &behind(&[])), None);
        let five = |others: Vec<Voter>| view(1, others);
        let well = || vec![voter(0), voter(2), voter(3), voter(4)];
        assert_eq!(lacks(&five(well()), &behind(&[2])), None, "three of five have it");
        assert!(lacks(&five(well()), &behind(&[2, 3])).is_some());
        let mut one_is_away = well();
        one_is_away[3] = voter(4).away();
        assert!(lacks(&five(one_is_away), &behind(&[2])).is_some());
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
    fn whose_turn_it_is_next_is_known_once_the_one_before_it_has_ended() {
        let all_go = |us: u32, others: [u32; 2]| view(us, others.map(|n| voter(n).going()).to_vec());
        let is_next =
            |ordinal: u32, looks: &[View]| is_next(looks.last().unwrap(), us(ordinal), &seen_by(ordinal, looks), NOW);
        assert!(!is_next(1, &[all_go(1, [0, 2])]), "the highest goes first");
        let ending = || view(1, vec![voter(0).going(), voter(2).going().away()]);
        assert!(!is_next(1, &[all_go(1, [0, 2]), ending()]), "its Pod is still there");
        let ended = |two: Voter| [all_go(1, [0, 2]), view(1, vec![voter(0).going(), two])];
        assert!(is_next(1, &ended(voter(2).withdrawn().away())), "it has withdrawn and ended");
        assert!(!is_next(1, &ended(voter(2).withdrawn())), "it looks once more whether another one withdraws");
        let starting = |us: u32, other: u32| view(us, vec![voter(other).going(), voter(2).away()]);
        assert!(is_next(1, &[all_go(1, [0, 2]), ending(), starting(1, 0)]));
        assert!(!is_next(0, &[all_go(0, [1, 2]), starting(0, 1)]), "the middle one goes before the lowest");
        let with_another = view(1, vec![voter(0).withdrawn(), voter(2).away()]);
        assert!(!is_next(1, &[all_go(1, [0, 2]), with_another]), "who has withdrawn goes first");
        let back = view(1, vec![voter(0).going(), voter(2)]);
        assert!(!is_next(1, &[all_go(1, [0, 2]), back]), "it is our turn");
        let crashed = view(1, vec![voter(0), voter(2).away()]);
        assert!(!is_next(1, &[crashed]), "nobody knows when it comes back");
        let was_back = [all_go(1, [0, 2]), view(1, vec![voter(0).going(), voter(2)]), starting(1, 0)];
        assert!(!is_next(1, &was_back), "it has crashed since");
        let voteless = View { voteless: true, ..starting(1, 0) };
        assert!(!is_next(1, &[all_go(1, [0, 2]), voteless]));
    }

    #[test]
    fn who_has_withdrawn_goes_before_a_higher_ordinal() {
        let lowest_goes = |us: u32, other: u32| view(us, vec![voter(0).withdrawn(), voter(other).going()]);
        for (us, other) in [(1, 2), (2, 1)] {
            assert!(looks(us, &[lowest_goes(us, other)]).unwrap().contains("consul-server-0 is about to stop"));
        }
        let voteless = |us: u32, other: u32| View { voteless: true, ..lowest_goes(us, other) };
        assert_eq!(looks(1, &[voteless(1, 2)]), None, "we cost no vote");
    }

    #[test]
    fn who_has_withdrawn_waits_for_no_higher_ordinal_but_for_another_that_has() {
        let withdrawn = Us { withdrawn: true, ..us(1) };
        let waits = |others: Vec<Voter>| waits_for(&view(1, others), withdrawn, &Seen::default(), NOW);
        assert_eq!(waits(vec![voter(0), voter(2).going()]), None);
        assert!(waits(vec![voter(0).withdrawn(), voter(2)]).unwrap().contains("consul-server-0 is about to stop"));
        assert!(waits(vec![voter(0), voter(2).away()]).unwrap().contains("consul-server-2 is away"));
    }

    #[test]
    fn a_server_whose_pod_was_being_deleted_is_waited_for_longer_and_when_it_comes_back_like_any_other() {
        let gone = || view(2, vec![voter(0).withdrawn().away(), voter(1)]);
        let starting = || view(2, vec![voter(0).away(), voter(1)]);
        let seen = seen_by(2, &[gone()]);
        assert!(
            waits_for(&gone(), us(2), &seen, GOING - Duration::from_millis(1)).unwrap().contains("is about to stop")
        );
        assert_eq!(waits_for(&gone(), us(2), &seen, GOING), None, "its machine is lost");
        let seen = seen_by(2, &[gone(), starting()]);
        assert!(waits_for(&starting(), us(2), &seen, GOING).unwrap().contains("consul-server-0 is away"));
    }

    #[test]
    fn a_dead_server_that_is_well_again_and_goes_away_once_more_is_waited_for() {
        let (away, well) = (|| view(1, vec![voter(0), voter(2).away()]), || view(1, vec![voter(0), voter(2)]));
        assert_eq!(waits_for(&away(), us(1), &seen_by(1, &[away()]), DEAD), None);
        assert!(waits_for(&away(), us(1), &seen_by(1, &[away(), well(), away()]), DEAD).is_some());
    }

    #[test]
    fn who_waits_in_vain_gives_up_after_those_that_go_before_it() {
        let (first, last) = (Instant::now(), Instant::now() + Duration::from_secs(60));
        let all_go = |us: u32, others: [u32; 2]| view(us, others.map(|n| voter(n).going()).to_vec());
        let until = |us: u32, looks: &[View]| seen_by(us, looks).until(looks.last().unwrap(), first, last);
        let [highest, middle, lowest] =
            [until(2, &[all_go(2, [0, 1])]), until(1, &[all_go(1, [0, 2])]), until(0, &[all_go(0, [1, 2])])];
        assert_eq!(highest, first);
        assert!(highest < middle && middle < lowest && lowest < last);
        let first_is_away = view(1, vec![voter(0).going(), voter(2).away()]);
        assert_eq!(until(1, &[all_go(1, [0, 2]), first_is_away]), middle, "it is remembered");
        let [withdrawn, back] = [voter(0).withdrawn(), voter(0).going()].map(|low| view(1, vec![low, voter(2).away()]));
        assert_eq!(until(1, &[withdrawn, back]), first, "one that went back goes after us");
    }

    #[test]
    fn nobody_waits_when_the_quorum_is_lost_already() {
        assert_eq!(waits(&view(1, vec![voter(0).away(), voter(2).away()]), &[], NOW), None);
        assert_eq!(waits(&view(1, vec![voter(0).away(), voter(2).away(), voter(3).away(), voter(4)]), &[], NOW), None);
        let two_of_four = view(1, vec![voter(0).away(), voter(2).away(), voter(3), voter(4)]);
        assert!(waits(&two_of_four, &[], NOW).is_some());
        let an_election = view(1, vec![voter(0).astray(), voter(2).away()]);
        assert!(waits(&an_election, &[], NOW).is_some(), "two of three are there");
    }

    #[test]
    fn a_quorum_whose_servers_are_only_late_is_waited_for_a_moment_and_one_that_refuses_is_lost() {
        let both_late = || view(1, vec![voter(0).late(), voter(2).late()]);
        let well = || view(1, vec![voter(0), voter(2)]);
        let mut seen = Seen::default();
        let mut after = |view: &View, waited: Duration| {
            seen.look(view, us(1), waited);
            waits_for(view, us(1), &seen, waited)
        };
        let long = DEAD * 3;
        assert_eq!(after(&well(), NOW), None);
        assert!(after(&both_late(), long).unwrap().contains("consul-server-0 is away"), "since then only");
        assert!(after(&both_late(), long + DEAD - Duration::from_millis(1)).is_some());
        assert_eq!(after(&both_late(), long + DEAD), None, "it endures");
        assert_eq!(after(&well(), long * 2), None);
        assert!(after(&both_late(), long * 2).is_some(), "late anew");
        assert!(
            after(&view(1, vec![voter(0).away(), voter(2).late()]), long * 2).is_some(),
            "two of three may be there"
        );
        assert_eq!(after(&view(1, vec![voter(0).away(), voter(2).away()]), long * 2), None);
    }

    #[test]
    fn a_server_that_is_heard_later_to_be_deleted_is_waited_for_longer() {
        let untold = || view(1, vec![voter(0), Voter { untold: true, ..voter(2).away() }]);
        let going = || view(1, vec![voter(0), voter(2).going().away()]);
        assert_eq!(waits_for(&untold(), us(1), &seen_by(1, &[untold()]), DEAD), None);
        let seen = seen_by(1, &[untold(), going(), untold()]);
        assert!(waits_for(&untold(), us(1), &seen, DEAD).is_some());
        assert_eq!(waits_for(&untold(), us(1), &seen, GOING), None);
    }

    #[test]
    fn servers_of_several_statefulsets_have_one_order() {
        let of = |(set, ordinal, address): (&str, u32, u32)| Voter {
            pod: Some(format!("{set}-{ordinal}")),
            ordinal: None,
            address: at(address),
            ..voter(0).going()
        };
        let all = [("a", 2, 1), ("a", 1, 3), ("b", 0, 2)];
        let waits = all.map(|one| {
            let others = all.into_iter().filter(|other| *other != one).map(of).collect();
            looks(one.1, &[view(one.2, others)]).is_some()
        });
        assert_eq!(waits, [false, true, true]);
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
        assert!(waits_for(&five(3), Us::default(), &Seen::default(), NOW).is_some());
        assert_eq!(waits_for(&five(1), Us::default(), &Seen::default(), NOW), None);
    }
}

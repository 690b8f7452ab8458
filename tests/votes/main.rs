//! Does an empty disk ever cost an acknowledged write? A small model of Raft's votes and membership ([`raft`]), in which a
//! server with an empty disk starts only when convene's real [`decide`](convene::decide::decide) lets it ([`rules`]), is put
//! through schedules of elections, writes, cuts, kills, lost disks and changes of the peers.
//!
//! Two properties. No leader ever lacks an acknowledged write. And when everybody returns there is a leader, with all of
//! them as voters. The first one holds however many disks are lost. The second one needs a bound: at most a minority is lost
//! at a time, where a server counts as lost from its wipe, or from its removal as a peer, until it holds all that is committed
//! and votes in the configuration of every server that is left. Beyond that the rest is no majority, and nobody may lead.
//! (In the configuration of every one, since hashicorp/raft refuses candidates that the voter's own configuration lacks: one
//! server that has an uncommitted removal of another, with a third one wiped, would stand still for ever.)
//!
//! More happens here than with hashicorp/raft: votes are granted although a leader is known, there is no pre-vote, a leader
//! never gives up by itself, a cut or a survey lasts as long as it likes. Less: a question and its answer are one step (but a
//! candidate may win and a leader may commit long after the last answer), snapshots and the transfer of leadership are left
//! out, a server is its address, and a leader lets only those vote whom it saw caught up since they were added.
//!
//! Every search is the same each time, and prints the shrunken schedule of what it found.

// A panic is how a test fails; clippy's own exception for tests covers `#[test]` functions only.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod raft;
mod rules;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner};
use raft::{Event, World};
use rules::Rules;
use std::cell::Cell;

/// All entries that are lacking.
const ALL: usize = 1000;

/// A kind of happening, two servers, and a set of servers. Beyond the last server the first one is the newest leader.
type Draw = (u8, usize, usize, u8);

/// What usually happens together.
fn happening(world: &World, (kind, a, b, some): Draw) -> Vec<Event> {
    let size = world.size();
    let leader = if a < size { a } else { world.leader().unwrap_or(a % size) };
    let a = a % size;
    let everybody = (0..size).collect();
    let some: Vec<usize> = (0..size).filter(|who| some & (1 << who) != 0).collect();
    match kind {
        0..18 => elected(a, &some),
        18..20 => vec![Event::Stand(a), Event::Ask(a, some)],
        20..22 => vec![Event::Ask(a, some), Event::Win(a)],
        22..36 => written(leader, &some),
        36..50 => vec![Event::Send(leader, b, ALL), Event::Commit(leader)],
        50..54 => vec![Event::Send(leader, b, some.len())],
        54..56 => vec![Event::Commit(leader)],
        56..58 => vec![Event::Remove(leader, b)],
        58..62 => vec![Event::Wipe(b), Event::Remove(leader, b), Event::Look(b, everybody), Event::Start(b)],
        62..67 => vec![Event::Add(leader, b), Event::Send(leader, b, ALL), Event::Commit(leader)],
        67..71 => vec![Event::Promote(leader, b)],
        71..74 => vec![Event::Cut(a, b)],
        74..77 => vec![Event::Heal(a, b)],
        77..82 => vec![Event::Kill(a)],
        82..87 => vec![Event::Wipe(a)],
        87..90 => vec![Event::Look(a, some)],
        90..94 => vec![Event::Start(a)],
        _ => vec![Event::Look(a, everybody), Event::Start(a)],
    }
}

fn elected(who: usize, by: &[usize]) -> Vec<Event> {
    vec![Event::Stand(who), Event::Ask(who, by.to_vec()), Event::Win(who)]
}

/// Written and acknowledged, if those are a majority.
fn written(at: usize, to: &[usize]) -> Vec<Event> {
    let sends = to.iter().map(|to| Event::Send(at, *to, ALL));
    [Event::Write(at)].into_iter().chain(sends).chain([Event::Commit(at)]).collect()
}

/// What is looked for.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Search {
    /// A leader that lacks an acknowledged write.
    Loss,
    /// That, or no leader with all servers and all that was acknowledged when everybody has returned.
    LossOrNoReturn,
}

/// Lets what was drawn happen, and notes it.
fn try_out(mut world: World, draws: &[Draw], search: Search) -> (Vec<Event>, Result<(), String>) {
    let mut happened = Vec::new();
    for draw in draws {
        for event in happening(&world, *draw) {
            let outcome = world.happen(&event);
            happened.push(event);
            if outcome.is_err() {
                return (happened, outcome);
            }
        }
    }
    (happened, if search == Search::LossOrNoReturn { everybody_returns(&mut world) } else { Ok(()) })
}

/// Heals and starts all; leaders are elected, remove whom they see down, add and let vote whom they see up.
fn everybody_returns(world: &mut World) -> Result<(), String> {
    let all: Vec<usize> = (0..world.size()).collect();
    let pairs = all.iter().flat_map(|a| all.iter().map(move |b| (*a, *b)));
    pairs.clone().try_for_each(|(a, b)| world.happen(&Event::Heal(a, b)))?;
    for round in 0..10 * world.size() {
        for who in &all {
            [Event::Look(*who, all.clone()), Event::Start(*who)].iter().try_for_each(|event| world.happen(event))?;
        }
        // Another one begins each time, so that an old log does not stand in the way for ever.
        for who in all.iter().cycle().skip(round % all.len()).take(all.len()) {
            if world.leader().is_none() {
                elected(*who, &all).iter().try_for_each(|event| world.happen(event))?;
            }
        }
        let Some(at) = world.leader() else { continue };
        if all.iter().all(|who| world.follows(at, *who)) && world.holds_all(at) {
            return Ok(());
        }
        for who in &all {
            let changes = if world.running(*who) {
                vec![Event::Add(at, *who), Event::Promote(at, *who)]
            } else {
                vec![Event::Remove(at, *who)]
            };
            for change in changes {
                let sends = all.iter().map(|to| Event::Send(at, *to, ALL));
                let told: Vec<Event> = sends.chain([Event::Commit(at), change]).collect();
                told.iter().try_for_each(|event| world.happen(event))?;
            }
        }
    }
    let leader = world.leader();
    Err(format!("all have returned, but with leader {leader:?} they are not all voters with all that was acknowledged"))
}

/// How many schedules were fine before one was not; what came of it, and of which, shrunken.
type Found = (u32, String, Vec<Event>);

/// Tries so many schedules, the same ones each time.
fn search(cases: u32, world: &World, search: Search) -> Option<Found> {
    let size = world.size();
    let draws = vec((0u8..100, 0..2 * size, 0..size, any::<u8>()), 1..90);
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let (fine, failed) = (Cell::new(0), Cell::new(false));
    let tried = runner.run(&draws, |draws| {
        let (_, outcome) = try_out(world.clone(), &draws, search);
        failed.set(failed.get() || outcome.is_err());
        fine.set(fine.get() + u32::from(!failed.get()));
        outcome.map_err(TestCaseError::fail)
    });
    match tried {
        Ok(()) => None,
        Err(TestError::Fail(what, draws)) => {
            Some((fine.get(), what.message().to_owned(), try_out(world.clone(), &draws, search).0))
        }
        Err(TestError::Abort(why)) => panic!("{why}"),
    }
}

#[test]
fn an_empty_server_that_starts_by_convenes_rule_costs_no_acknowledged_write() {
    for (size, losses, cases) in [(3, 1, 4000), (5, 2, 3000)] {
        let found = search(cases, &World::formed(size, Rules::Real, losses), Search::LossOrNoReturn);
        assert!(found.is_none(), "{found:?}");
    }
}

#[test]
fn however_many_disks_are_lost_no_leader_lacks_an_acknowledged_write() {
    for size in [3, 5] {
        let found = search(5000, &World::formed(size, Rules::Real, size), Search::Loss);
        assert!(found.is_none(), "{found:?}");
    }
}

#[test]
fn when_more_than_a_minority_of_the_disks_is_lost_nobody_may_lead_any_more() {
    for (size, losses) in [(3, 2), (5, 3)] {
        let found = search(1000, &World::formed(size, Rules::Real, losses), Search::LossOrNoReturn);
        let (_, what, _) = found.expect("the bound is not needed");
        assert!(what.starts_with("all have returned, but with leader None"), "{what}");
    }
}

#[test]
fn an_empty_server_that_starts_at_once_costs_an_acknowledged_write() {
    for (size, losses) in [(3, 1), (5, 2)] {
        let found = search(8000, &World::formed(size, Rules::None, losses), Search::Loss);
        let (fine, what, schedule) = found.expect("the model cannot fail");
        println!("{size} servers: {fine} schedules lost nothing, then {what}: {schedule:?}");
    }
}

/// Three servers: the first one leads, as both others know; X is acknowledged with the second one, which then loses its disk.
fn until_b_is_wiped(more: impl IntoIterator<Item = Event>) -> Vec<Event> {
    let begun = [elected(0, &[1]), vec![Event::Send(0, 2, ALL)], written(0, &[1]), vec![Event::Wipe(1)]].concat();
    begun.into_iter().chain(more).collect()
}

/// A schedule that loses X under a weaker rule, and under convene's not, when all is well again at last.
#[track_caller]
fn loses_only_under(rules: Rules, schedule: &[Event]) {
    let under = |rules| {
        let mut world = World::formed(3, rules, 1);
        schedule.iter().try_for_each(|event| world.happen(event)).map(|()| world)
    };
    let lost = under(rules).map(drop).expect_err("nothing is lost");
    assert!(lost.contains("without the acknowledged [1]"), "{lost}");
    let mut world = under(Rules::Real).unwrap();
    assert!(!world.running(1), "an empty server runs");
    everybody_returns(&mut world).unwrap();
}

#[test]
fn the_list_of_a_leader_whose_removal_of_us_nobody_else_has_is_not_enough() {
    let removed =
        [Event::Remove(0, 1), Event::Look(1, vec![0, 2]), Event::Start(1), Event::Cut(0, 1), Event::Cut(0, 2)];
    loses_only_under(Rules::OneList, &until_b_is_wiped(removed.into_iter().chain(elected(2, &[1]))));
}

#[test]
fn a_listed_server_that_has_not_answered_may_still_list_us() {
    let silent = [Event::Cut(1, 2), Event::Remove(0, 1), Event::Look(1, vec![0, 2]), Event::Start(1)];
    let gone = [Event::Kill(0), Event::Heal(1, 2)];
    loses_only_under(Rules::EveryListTold, &until_b_is_wiped(silent.into_iter().chain(gone).chain(elected(2, &[1]))));
}

#[test]
fn others_that_are_all_down_are_no_reason_to_found_where_a_cluster_was_formed() {
    let down = [Event::Kill(0), Event::Kill(2), Event::Look(1, vec![0, 2]), Event::Start(1), Event::Start(2)];
    loses_only_under(Rules::RealWithoutClaim, &until_b_is_wiped(down.into_iter().chain(elected(2, &[1]))));
}

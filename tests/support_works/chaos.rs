//! The plan of `make chaos`: it can be had again, and it asks nothing that convene does not promise.

#[path = "../../examples/chaos/plan.rs"]
#[allow(dead_code)]
mod plan;

use plan::{Disturbance, Plan, Step};
use std::collections::BTreeSet;

/// Long enough for several decks.
const STEPS: usize = 200;

fn plans() -> impl Iterator<Item = Vec<Step>> {
    (0..200).map(|seed| Plan::new(seed).take(STEPS).collect())
}

#[test]
fn a_seed_gives_the_same_plan_again_and_another_seed_another_one() {
    let plan = |seed| Plan::new(seed).take(STEPS).collect::<Vec<_>>();
    assert_eq!(plan(7), plan(7));
    assert_ne!(plan(7), plan(8));
}

#[test]
fn no_disk_is_lost_and_no_server_without_one_is_killed_before_the_last_one_is_back() {
    for plan in plans() {
        let mut lost = None;
        for step in plan {
            if let Some(wiped) = step.what.wiped() {
                assert_eq!(lost, None, "{step:?}");
                lost = Some(wiped);
            } else if let Some(lost) = lost {
                let hit: BTreeSet<usize> = step.what.killed().union(&step.what.replaced()).copied().collect();
                assert!(!hit.contains(&lost), "{step:?}");
            }
            assert_eq!(step.returning, lost, "{step:?}");
            lost = lost.filter(|_| !step.then_whole);
        }
    }
}

#[test]
fn no_container_is_killed_twice_before_its_pod_was_replaced() {
    for plan in plans() {
        let mut killed = BTreeSet::new();
        for step in plan {
            for server in step.what.killed() {
                assert!(killed.insert(server), "server {server} again: {step:?}");
            }
            killed.retain(|server| !step.what.replaced().contains(server));
        }
    }
}

#[test]
fn every_kind_comes_in_every_plan_and_each_server_loses_its_disk() {
    let kinds = |plan: &[Step]| plan.iter().map(|step| step.what.kind()).collect::<BTreeSet<_>>();
    let all: BTreeSet<String> = plans().flat_map(|plan| kinds(&plan)).collect();
    assert_eq!(all.len(), 21, "{all:?}");
    for plan in plans() {
        assert!(kinds(&plan).is_superset(&all), "{:?}", kinds(&plan));
    }
    let wiped: BTreeSet<usize> = plans().flatten().filter_map(|step| step.what.wiped()).collect();
    assert_eq!(wiped, BTreeSet::from([0, 1, 2]));
    let outvoted = |step: &Step| matches!(step.what, Disturbance::Outvote { wiped, behind } if wiped != behind);
    assert!(plans().flatten().any(|step| outvoted(&step)));
}

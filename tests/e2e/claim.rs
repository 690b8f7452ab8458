//! Disks that are lost: one of them, or all, with and without the StatefulSet. No second cluster, and nobody votes with an
//! empty disk.

use crate::servers;
use crate::support::kubernetes::namespace::{Namespace, SERVERS, Source, Voter, patch, server};
use serde_json::{Value, json};
use std::collections::BTreeMap;

const CLAIM: &str = "configmaps/consul-server-convene";

fn claim(namespace: &Namespace) -> BTreeMap<String, String> {
    let data = namespace.get(CLAIM).unwrap_or_default()["data"].clone();
    serde_json::from_value(data).unwrap_or_default()
}

/// Three servers whose cluster is claimed, with something in it.
fn claimed(test: &str) -> (Namespace, Vec<Voter>) {
    let namespace = Namespace::new(test);
    namespace.apply(&servers());
    let voters = namespace.formed(3);
    namespace.put(&server(0), "kept", "yes");
    namespace.wait_for("the claim", || claim(&namespace).get("state").is_some_and(|state| state == "formed"));
    (namespace, voters)
}

/// All Pods are stopped, and all disks are lost; the StatefulSet stays.
fn lose_all_disks(namespace: &Namespace) {
    namespace.kubectl(&["scale", "statefulset", "consul-server", "--replicas=0"]);
    namespace.wait_for("no Pods", || namespace.pods(SERVERS).is_empty());
    namespace.kubectl(&["delete", "persistentvolumeclaims", "--all"]);
    namespace.empty_volumes();
    namespace.kubectl(&["scale", "statefulset", "consul-server", "--replicas=3"]);
}

fn forced(id: &str) -> Source {
    let env = json!([{"name": "CONVENE_NEW_CLUSTER", "value": format!("force:{id}")}]);
    let container = json!({"name": "consul", "env": env});
    servers().with(patch(
        "StatefulSet",
        "consul-server",
        json!({"spec": {"template": {"spec": {"containers": [container]}}}}),
    ))
}

#[test]
fn a_cluster_is_claimed_with_its_expect_and_its_voters() {
    let (namespace, voters) = claimed("a_cluster_is_claimed_with_its_expect_and_its_voters");
    let claim = claim(&namespace);
    assert_eq!(claim["expect"], "3");
    for voter in voters {
        assert!(claim["nodes"].contains(&voter.id), "{claim:?}");
    }
    let owner = namespace.get(CLAIM).unwrap()["metadata"]["ownerReferences"][0]["uid"].clone();
    let statefulset = namespace.kubectl(&["get", "statefulset", "consul-server", "-o", "jsonpath={.metadata.uid}"]);
    assert_eq!(owner, Value::from(statefulset));
}

#[test]
fn a_server_that_lost_its_disk_has_its_predecessor_removed_and_votes_again() {
    let (namespace, voters) = claimed("a_server_that_lost_its_disk_has_its_predecessor_removed_and_votes_again");
    let before = namespace.lives(SERVERS);
    namespace.kubectl(&["delete", "persistentvolumeclaim", "data-consul-server-1", "--wait=false"]);
    namespace.kubectl(&["delete", "pod", &server(1), "--wait=false"]);
    namespace.wait_for("another Pod in its place", || {
        namespace.lives(SERVERS).get(&server(1)).is_some_and(|life| life.0 != before[&server(1)].0)
    });
    namespace.line(&server(1), "consul", &["asked the leader to remove our predecessor"]);
    namespace.line(&server(1), "consul", &["decided", "\"rule\":\"5\""]);
    let ids = |voters: &[Voter]| voters.iter().map(|one| one.id.clone()).collect::<Vec<_>>();
    namespace.wait_for("another server in its place", || {
        let now = namespace.voters(&server(0));
        now.len() == 3 && ids(&now) != ids(&voters)
    });
    assert_eq!(namespace.formed(3).len(), 3);
    assert_eq!(namespace.value(&server(1), "kept").as_deref(), Some("yes"));
}

#[test]
fn wiped_disks_found_nothing_until_it_is_forced_and_by_force_once() {
    let (namespace, voters) = claimed("wiped_disks_found_nothing_until_it_is_forced_and_by_force_once");
    let id = claim(&namespace)["id"].clone();
    lose_all_disks(&namespace);
    for ordinal in 0..3 {
        namespace.line(&server(ordinal), "consul", &["waiting: rule 6", &format!("--new-cluster=force:{id}")]);
    }
    namespace.apply(&forced(&id));
    namespace.kubectl(&["delete", "pods", "-l", SERVERS]);
    let after = namespace.formed(3);
    assert!(after.iter().all(|one| voters.iter().all(|old| old.id != one.id)), "{after:?}");
    let now = claim(&namespace);
    assert!(now["forced"].contains(&id) && now["id"] != id, "{now:?}");
    assert_eq!(namespace.value(&server(0), "kept"), None);
    // The flag is still in the template.
    namespace.wait_for("the claim", || claim(&namespace)["state"] == "formed");
    lose_all_disks(&namespace);
    namespace.line(&server(0), "consul", &["waiting: rule 6"]);
}

#[test]
fn a_statefulset_that_is_deleted_with_its_volumes_and_applied_again_founds_anew() {
    let (namespace, voters) = claimed("a_statefulset_that_is_deleted_with_its_volumes_and_applied_again_founds_anew");
    namespace.delete(&servers());
    namespace.wait_for("no Pods", || namespace.pods(SERVERS).is_empty());
    namespace.kubectl(&["delete", "persistentvolumeclaims", "--all"]);
    namespace.empty_volumes();
    namespace.apply(&servers());
    let after = namespace.formed(3);
    assert!(after.iter().all(|one| voters.iter().all(|old| old.id != one.id)), "{after:?}");
}

#[test]
fn a_claim_outlives_a_statefulset_that_is_deleted_without_its_pods() {
    let (namespace, voters) = claimed("a_claim_outlives_a_statefulset_that_is_deleted_without_its_pods");
    let id = claim(&namespace)["id"].clone();
    namespace.kubectl(&["delete", "statefulset", "consul-server", "--cascade=orphan"]);
    namespace.apply(&servers());
    assert_eq!(namespace.formed(3), voters);
    lose_all_disks(&namespace);
    namespace.line(&server(0), "consul", &["waiting: rule 6", &id]);
}

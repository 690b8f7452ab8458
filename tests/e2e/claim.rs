//! Disks that are lost: one of them, or all, with and without the StatefulSet. No second cluster, and nobody votes with an
//! empty disk.

use crate::support::kubernetes::namespace::{Namespace, SERVERS, Voter, server};
use crate::support::kubernetes::secured::{ACLS, TLS};
use crate::support::kubernetes::source::Source;
use crate::support::kubernetes::watcher::while_watched;
use crate::{Folder, servers};
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::Instant;

const CLAIM: &str = "configmaps/consul-server-convene";

pub fn claim(namespace: &Namespace) -> BTreeMap<String, String> {
    let data = namespace.get(CLAIM).unwrap_or_default()["data"].clone();
    serde_json::from_value(data).unwrap_or_default()
}

/// Three servers whose cluster is claimed, with something in it.
pub fn claimed(test: &str, source: &Source) -> (Namespace, Vec<Voter>) {
    let namespace = Namespace::new(test);
    namespace.apply(source);
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

in_both_folders!(
    a_server_that_lost_its_disk_has_its_predecessor_removed_and_votes_again,
    wiped_disks_found_nothing_until_it_is_forced_and_by_force_once,
    a_statefulset_that_is_deleted_with_its_volumes_and_applied_again_founds_anew,
);

#[test]
fn a_cluster_is_claimed_with_its_expect_and_its_voters() {
    let (namespace, voters) = claimed("a_cluster_is_claimed_with_its_expect_and_its_voters", &servers());
    assert_eq!(claim(&namespace)["expect"], "3");
    // Without a token, which comes after the leader, nobody tells who votes. Who notes last is the last that can read them.
    if !namespace.secured().has(ACLS) {
        let named = || voters.iter().all(|voter| claim(&namespace)["nodes"].contains(&voter.id));
        namespace.wait_for("a claim that names the voters", named);
    }
    let owner = namespace.get(CLAIM).unwrap()["metadata"]["ownerReferences"][0]["uid"].clone();
    let statefulset = namespace.kubectl(&["get", "statefulset", "consul-server", "-o", "jsonpath={.metadata.uid}"]);
    assert_eq!(owner, Value::from(statefulset));
}

fn a_server_that_lost_its_disk_has_its_predecessor_removed_and_votes_again(test: &str, folder: Folder) {
    let (namespace, voters) = claimed(test, &folder.source());
    let before = namespace.lives(SERVERS);
    let (took, written) = while_watched(&namespace, 3, |_| {
        let begun = Instant::now();
        namespace.kubectl(&["delete", "persistentvolumeclaim", "data-consul-server-1", "--wait=false"]);
        namespace.kubectl(&["delete", "pod", &server(1), "--wait=false"]);
        namespace.wait_for("another Pod in its place", || {
            namespace.lives(SERVERS).get(&server(1)).is_some_and(|life| life.0 != before[&server(1)].0)
        });
        if namespace.secured().has(ACLS) && !namespace.secured().has(TLS) {
            // A token goes to other servers over verified TLS only: a person removes it.
            namespace.line(&server(1), folder.decides, &["may not remove it for us", "over verified TLS only"]);
            namespace.agent(&server(0), "PUT", "/v1/agent/force-leave/consul-server-1", "");
        } else {
            namespace.line(&server(1), folder.decides, &["asked the leader to remove our predecessor"]);
        }
        namespace.line(&server(1), folder.decides, &["decided", "\"rule\":\"5\""]);
        namespace.wait_for("another server in its place", || {
            let now = namespace.voters(&server(0));
            now.len() == 3 && now.iter().any(|one| voters.iter().all(|old| old.id != one.id))
        });
        begun.elapsed()
    });
    namespace.formed(3);
    let count = written.is_kept(&namespace, 3);
    let (took, gap) = (took.as_secs_f64(), written.gap.as_secs_f64());
    println!("{took:.1} s until it votes again; {count} writes were acknowledged, the longest gap was {gap:.1} s");
    assert_eq!(namespace.value(&server(1), "kept").as_deref(), Some("yes"));
}

fn wiped_disks_found_nothing_until_it_is_forced_and_by_force_once(test: &str, folder: Folder) {
    let (namespace, voters) = claimed(test, &folder.source());
    let id = claim(&namespace)["id"].clone();
    lose_all_disks(&namespace);
    for ordinal in 0..3 {
        let parts = ["waiting: rule 6", &format!("--new-cluster=force:{id}")];
        namespace.line(&server(ordinal), folder.decides, &parts);
    }
    namespace.apply(&folder.source().setting("CONVENE_NEW_CLUSTER", &format!("force:{id}")));
    namespace.delete_pods(&["-l", SERVERS]);
    founded_anew(&namespace, &voters);
    let now = claim(&namespace);
    assert!(now["forced"].contains(&id) && now["id"] != id, "{now:?}");
    // The flag is still in the manifest.
    namespace.wait_for("the claim", || claim(&namespace)["state"] == "formed");
    lose_all_disks(&namespace);
    namespace.line(&server(0), folder.decides, &["waiting: rule 6"]);
}

fn a_statefulset_that_is_deleted_with_its_volumes_and_applied_again_founds_anew(test: &str, folder: Folder) {
    let (namespace, voters) = claimed(test, &folder.source());
    namespace.delete(&folder.source());
    namespace.wait_for("no Pods", || namespace.pods(SERVERS).is_empty());
    namespace.kubectl(&["delete", "persistentvolumeclaims", "--all"]);
    namespace.empty_volumes();
    namespace.apply(&folder.source());
    founded_anew(&namespace, &voters);
    for ordinal in 0..3 {
        let log = namespace.logs(&server(ordinal), folder.decides);
        assert!(!log.contains("waiting: rule 6"), "{log}");
    }
}

/// Three other servers, and nothing of what the earlier ones had.
fn founded_anew(namespace: &Namespace, earlier: &[Voter]) {
    let now = namespace.formed(3);
    assert!(now.iter().all(|one| earlier.iter().all(|old| old.id != one.id)), "{now:?}");
    assert_eq!(namespace.value(&server(0), "kept"), None);
}

#[test]
fn a_claim_outlives_a_statefulset_that_is_deleted_without_its_pods() {
    let (namespace, voters) = claimed("a_claim_outlives_a_statefulset_that_is_deleted_without_its_pods", &servers());
    let id = claim(&namespace)["id"].clone();
    namespace.kubectl(&["delete", "statefulset", "consul-server", "--cascade=orphan"]);
    namespace.apply(&servers());
    assert_eq!(namespace.formed(3), voters);
    lose_all_disks(&namespace);
    namespace.line(&server(0), "consul", &["waiting: rule 6", &id]);
}

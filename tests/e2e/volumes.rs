//! Volumes that are kept: what starts on them. Nobody starts on another server's.

use crate::Folder;
use crate::claim::claimed;
use crate::support::kubernetes::Given;
use crate::support::kubernetes::namespace::{Namespace, SERVERS, Voter, server};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

in_both_folders!(
    what_is_deleted_leaves_the_claims_and_what_is_applied_again_finds_its_data,
    servers_that_were_scaled_to_none_for_a_while_return_with_their_data,
    a_volume_of_another_server_or_namespace_is_refused,
);

fn what_is_deleted_leaves_the_claims_and_what_is_applied_again_finds_its_data(test: &str, folder: Folder) {
    let (namespace, voters) = claimed(test, &folder.source());
    namespace.delete(&folder.source());
    namespace.wait_for("no Pods", || namespace.pods(SERVERS).is_empty());
    let claims = namespace.get("persistentvolumeclaims").unwrap();
    assert_eq!(claims["items"].as_array().unwrap().len(), 3);
    let begun = Instant::now();
    namespace.apply(&folder.source());
    let after = namespace.formed(3);
    println!("{:.1} s from apply to three voters", begun.elapsed().as_secs_f64());
    assert_eq!(ids(&after), ids(&voters), "their Services are new ones, and so are their addresses");
    assert_eq!(namespace.value(&server(1), "kept").as_deref(), Some("yes"));
}

fn servers_that_were_scaled_to_none_for_a_while_return_with_their_data(test: &str, folder: Folder) {
    let (namespace, voters) = claimed(test, &folder.source());
    namespace.scale(0);
    // What is tested is a time.
    std::thread::sleep(Duration::from_secs(20));
    let begun = Instant::now();
    namespace.scale(3);
    namespace.put(&server(0), "after", "yes");
    println!("{:.1} s from scaling to a write", begun.elapsed().as_secs_f64());
    assert_eq!(namespace.formed(3), voters, "the same names, node IDs and addresses");
    assert_eq!(namespace.value(&server(2), "kept").as_deref(), Some("yes"));
}

fn a_volume_of_another_server_or_namespace_is_refused(test: &str, folder: Folder) {
    let mut namespace = Namespace::new(test);
    let beside = namespace.beside();
    namespace.apply(&folder.source());
    namespace.formed(3);
    namespace.scale(0);
    namespace.kubectl(&["delete", "persistentvolumeclaim", "data-consul-server-1"]);
    give(&namespace, "data-consul-server-2", namespace.name(), "data-consul-server-1");
    give(&namespace, "data-consul-server-0", &beside, "data-consul-server-0");
    namespace.scale(3);
    namespace.apply_in(&beside, &folder.source());
    let home = namespace.name();
    for (at, ordinal, owner) in [(home, 1, 2), (&beside, 0, 0)] {
        let pod = format!("pods/{}", server(ordinal));
        let refused = || ended(&namespace.get_in(at, &pod).unwrap_or_default(), folder.decides);
        namespace.wait_for("a refusal", || refused().is_some());
        let (code, message) = refused().unwrap();
        assert_eq!(code, 78, "{message}");
        let told = format!(
            "rule 2: this volume belongs to Pod {} in namespace {home}, and we are Pod {} in namespace {at};",
            server(owner),
            server(ordinal),
        );
        assert!(message.contains(&told) && message.lines().count() == 1, "{message}");
    }
}

/// Names and node IDs.
fn ids(voters: &[Voter]) -> BTreeMap<&str, &str> {
    voters.iter().map(|one| (one.name.as_str(), one.id.as_str())).collect()
}

/// How a container ended, now or before its restart: its exit code and the line that it left.
fn ended(pod: &Value, container: &str) -> Option<(i64, String)> {
    let kinds = ["initContainerStatuses", "containerStatuses"].into_iter();
    let mut all = kinds.filter_map(|kind| pod["status"][kind].as_array()).flatten();
    let status = all.find(|status| status["name"] == container)?;
    let ended =
        ["state", "lastState"].into_iter().map(|when| &status[when]["terminated"]).find(|ended| ended.is_object())?;
    Some((ended["exitCode"].as_i64()?, ended["message"].as_str().unwrap_or_default().trim().to_owned()))
}

/// Binds the volume of a claim to another claim, as a person does who mixes them up.
fn give(namespace: &Namespace, claim: &str, to: &str, as_claim: &str) {
    let volume = namespace.kubectl(&["get", "persistentvolumeclaim", claim, "-o", "jsonpath={.spec.volumeName}"]);
    let about =
        |path: &str| namespace.kubectl(&["get", "persistentvolume", &volume, "-o", &format!("jsonpath={{{path}}}")]);
    let change = |spec: Value| {
        namespace.kubectl(&["patch", "persistentvolume", &volume, "-p", &json!({"spec": spec}).to_string()]);
    };
    let (class, policy) = (about(".spec.storageClassName"), about(".spec.persistentVolumeReclaimPolicy"));
    // For a moment it is nobody's.
    let kept = Given::keep_volumes();
    change(json!({"persistentVolumeReclaimPolicy": "Retain"}));
    namespace.kubectl(&["delete", "persistentvolumeclaim", claim]);
    namespace.wait_for("a volume without a claim", || about(".status.phase") == "Released");
    change(json!({"claimRef": {"namespace": to, "name": as_claim, "uid": null, "resourceVersion": null}}));
    namespace.create_object(&json!({
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": as_claim, "namespace": to},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}},
            "storageClassName": class,
            "volumeName": volume,
        },
    }));
    namespace.wait_for("the claim's volume", || about(".status.phase") == "Bound");
    drop(kept);
    change(json!({"persistentVolumeReclaimPolicy": policy}));
}

//! More than half of the disks are lost: nobody votes, and by `convene recover` on the survivor the cluster is whole again.

use crate::claim::claim;
use crate::support::kubernetes::namespace::{Namespace, SERVERS, server};
use crate::support::kubernetes::secured::{ACLS, GOSSIP_KEY, TLS};
use crate::support::kubernetes::source::Source;
use crate::{Folder, servers};
use serde_json::Value;
use std::time::Instant;

/// How many keys are to be there afterwards.
const KEYS: usize = 20;

in_both_folders!(
    a_survivor_of_three_leads_again_and_every_key_is_there,
    so_it_does_with_encryption_tls_and_acls,
    a_server_that_is_held_starts_when_its_annotation_is_taken_away,
);

fn a_survivor_of_three_leads_again_and_every_key_is_there(test: &str, folder: Folder) {
    comes_back(&Namespace::new(test), folder);
}

fn so_it_does_with_encryption_tls_and_acls(test: &str, folder: Folder) {
    comes_back(&Namespace::secured_by(test, &[GOSSIP_KEY, TLS, ACLS]), folder);
}

/// Two servers lose their disks in one moment.
fn lose_two_disks(namespace: &Namespace) {
    let before = namespace.lives(SERVERS);
    let lost = [server(1), server(2)];
    for pod in &lost {
        namespace.kubectl(&["delete", "persistentvolumeclaim", &format!("data-{pod}"), "--wait=false"]);
    }
    namespace.kubectl(&["delete", "pods", &lost[0], &lost[1], "--grace-period=1", "--wait=false"]);
    namespace.wait_for("two other Pods", || {
        let now = namespace.lives(SERVERS);
        lost.iter().all(|pod| now.get(pod).is_some_and(|life| life.0 != before[pod].0))
    });
}

fn comes_back(namespace: &Namespace, folder: Folder) {
    namespace.apply(&folder.source());
    namespace.formed(3);
    (0..KEYS).for_each(|key| namespace.put(&server(0), &format!("kept/{key}"), "yes"));
    namespace.wait_for("the claim", || claim(namespace).get("state").is_some_and(|state| state == "formed"));
    lose_two_disks(namespace);
    for ordinal in [1, 2] {
        namespace.line(&server(ordinal), folder.decides, &["waiting: rule 5", "convene recover"]);
    }
    namespace.line(&server(0), folder.watches, &["no leader knows this agent"]);
    // On a server without data it names who has some, and does nothing.
    let refused = namespace.try_kubectl(&["exec", &server(1), "-c", folder.decides, "--", folder.convene(), "recover"]);
    assert!(refused.as_ref().is_err_and(|why| why.contains("gate 1: consul-server-1 has no raft data")), "{refused:?}");
    let recover = |words: &[&str]| {
        namespace
            .try_kubectl(&[&["exec", &server(0), "-c", "consul", "--", "/convene/convene", "recover"], words].concat())
    };
    let dry = recover(&[]).unwrap();
    assert!(
        dry.contains("would do, with --yes") && dry.contains("most data, of what can be read: consul-server-0"),
        "{dry}"
    );
    let begun = Instant::now();
    // Where Consul is PID 1 the call ends with its container, and perhaps before its end is heard.
    match recover(&["--yes"]) {
        Ok(said) => {
            println!("{said}");
            let acls = namespace.secured().has(ACLS);
            assert!(acls || said.contains("took a snapshot: "), "{said}");
            assert!(!acls || said.contains("it needs a token with acl"), "{said}");
        }
        Err(why) => assert!(folder.watches == "watch", "{why}"),
    }
    let leads = || namespace.ask(&server(0), "/v1/status/leader").is_some_and(|leader| leader != "");
    namespace.wait_for("a leader", leads);
    let leader = begun.elapsed().as_secs_f64();
    namespace.wait_for("three voters", || namespace.voters(&server(0)).len() == 3);
    let voters = begun.elapsed().as_secs_f64();
    println!("{}: a leader after {leader:.1} s, three voters after {voters:.1} s", namespace.name());
    namespace.formed(3);
    for ordinal in 0..3 {
        let keys = || {
            let told = namespace.ask(&server(ordinal), "/v1/kv/kept/?keys&stale").unwrap_or_default();
            told.as_array().map_or(0, Vec::len)
        };
        namespace.wait_for("every key", || keys() == KEYS);
    }
    namespace.wait_for("the end of the recovery", || {
        let now = claim(namespace);
        !now.contains_key("recovery") && now.contains_key("recovered") && now["state"] == "formed"
    });
    namespace.wait_for("its Event", || {
        let events = namespace.get("events").unwrap_or_default();
        let all = events["items"].as_array().cloned().unwrap_or_default();
        all.iter().any(|event: &Value| event["reason"] == "Recovered")
    });
}

#[test]
fn a_volume_without_its_server_is_looked_at_by_a_pod_of_its_own() {
    let namespace = Namespace::new("a_volume_without_its_server_is_looked_at_by_a_pod_of_its_own");
    namespace.apply(&servers());
    namespace.formed(3);
    namespace.wait_for("the claim", || claim(&namespace).get("state").is_some_and(|state| state == "formed"));
    namespace.scale(0);
    namespace.apply(&Source::new("deploy/recover"));
    let service = namespace.cluster_ip(&server(0)).unwrap();
    namespace.line(
        "convene-recover",
        "convene",
        &["(this server): raft data, and no agent runs", &format!("@{service}:8300")],
    );
    namespace.line("convene-recover", "convene", &["gate 6 ok"]);
    namespace.line("convene-recover", "convene", &["nothing was changed; --yes does it"]);
}

fn a_server_that_is_held_starts_when_its_annotation_is_taken_away(test: &str, folder: Folder) {
    let namespace = Namespace::new(test);
    namespace.apply(&folder.source());
    let voters = namespace.formed(3);
    // By the file, since another Pod has not the annotation of this one.
    namespace.exec(&server(2), &["sh", "-c", ": >/consul/data/convene/hold"]);
    namespace.delete_pods(&[&server(2)]);
    namespace.line(&server(2), folder.decides, &["waiting: held", "convene.dev/hold=false"]);
    namespace.wait_for("its Event", || {
        namespace.try_kubectl(&["describe", "pod", &server(2)]).is_ok_and(|said| said.contains("Held"))
    });
    assert!(namespace.ask(&server(2), "/v1/agent/self").is_none(), "it runs");
    namespace.kubectl(&["annotate", "pod", &server(2), "convene.dev/hold=true"]);
    namespace.line(&server(2), folder.decides, &["waiting: held", "the annotation"]);
    namespace.kubectl(&["annotate", "--overwrite", "pod", &server(2), "convene.dev/hold=false"]);
    namespace.line(&server(2), folder.decides, &["not held any more"]);
    assert_eq!(namespace.formed(3), voters);
}

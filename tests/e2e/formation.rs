//! First starts that something comes between: a kill, a Pod that is late, another number of servers. One cluster comes of it,
//! with all its servers.

use crate::claim::claim;
use crate::support::kubernetes::namespace::{Namespace, SERVERS, server};
use crate::support::kubernetes::source::patch;
use crate::{Folder, anywhere, five_services};
use serde_json::json;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

in_both_folders!(
    two_of_three_that_are_killed_while_the_first_one_bootstraps_still_form_with_it,
    servers_that_are_scaled_to_five_while_they_form_are_five_voters,
    an_expect_that_is_changed_before_the_second_start_keeps_nobody_from_forming,
    a_pod_that_cannot_be_scheduled_for_60_s_is_waited_for_and_named,
);

fn two_of_three_that_are_killed_while_the_first_one_bootstraps_still_form_with_it(test: &str, folder: Folder) {
    let namespace = Namespace::new(test);
    namespace.apply(&folder.source());
    let has_peers = |ordinal: &usize| {
        let peers = namespace.ask(&server(*ordinal), "/v1/status/peers").unwrap_or_default();
        peers.as_array().is_some_and(|peers| !peers.is_empty())
    };
    namespace.wait_for("a server that bootstraps", || (0..3).any(|ordinal| has_peers(&ordinal)));
    let begun = Instant::now();
    let first = (0..3).find(has_peers).unwrap();
    // All that runs in the container but its first process, which then ends too.
    let kill = |ordinal| namespace.exec(&server(ordinal), &["sh", "-c", "kill -9 -1"]);
    std::thread::scope(|scope| {
        for ordinal in (0..3).filter(|ordinal| *ordinal != first) {
            scope.spawn(move || kill(ordinal));
        }
    });
    println!("killed within {:.1} s", begun.elapsed().as_secs_f64());
    namespace.wait_for("their restarts", || {
        namespace.lives(SERVERS).iter().filter(|(name, life)| **name != server(first) && life.1 > 0).count() == 2
    });
    let voters = namespace.formed(3);
    println!("three voters {:.1} s after it", begun.elapsed().as_secs_f64());
    for voter in &voters {
        assert_eq!(namespace.node_id(&voter.name).as_ref(), Some(&voter.id));
        assert_eq!(namespace.voters(&voter.name), voters, "as {} sees it", voter.name);
    }
    assert_eq!(namespace.lives(SERVERS)[&server(first)].1, 0, "the first one was not restarted");
}

fn servers_that_are_scaled_to_five_while_they_form_are_five_voters(test: &str, folder: Folder) {
    let namespace = Namespace::new(test);
    namespace.apply(&folder.source().with(anywhere()));
    five_services(&namespace);
    namespace.wait_for("Pods that have an address", || namespace.addresses(SERVERS).len() == 3);
    namespace.kubectl(&["scale", "statefulset", "consul-server", "--replicas=5"]);
    let begun = Instant::now();
    let voters = namespace.formed(5);
    println!("five voters {:.1} s after scaling", begun.elapsed().as_secs_f64());
    for ordinal in 0..5 {
        assert_eq!(namespace.voters(&server(ordinal)), voters, "as server {ordinal} sees it");
    }
}

fn an_expect_that_is_changed_before_the_second_start_keeps_nobody_from_forming(test: &str, folder: Folder) {
    let source = folder.source().with(anywhere());
    let namespace = Namespace::new(test);
    // Two of three do not form, so that the first start has not ended when the second one comes.
    hold_back(&namespace);
    namespace.apply(&source.clone().setting("CONVENE_EXPECT", "3"));
    for ordinal in 0..2 {
        namespace.line(&server(ordinal), folder.decides, &["decided: ", "\"expect\":3"]);
        // Who it is, it would not say before there is a cluster that knows a token.
        namespace.wait_for("an agent", || namespace.ask(&server(ordinal), "/v1/status/leader").is_some());
    }
    five_services(&namespace);
    let five = patch("StatefulSet", "consul-server", json!({"spec": {"replicas": 5}}));
    namespace.apply(&source.with(five).setting("CONVENE_EXPECT", "5"));
    let begun = Instant::now();
    let_go(&namespace);
    namespace.delete_pods(&["-l", SERVERS]);
    namespace.formed(5);
    println!("five voters {:.1} s after the second start", begun.elapsed().as_secs_f64());
    assert_eq!(claim(&namespace)["expect"], "3", "what was claimed first counts for all");
}

fn a_pod_that_cannot_be_scheduled_for_60_s_is_waited_for_and_named(test: &str, folder: Folder) {
    let namespace = Namespace::new(test);
    hold_back(&namespace);
    namespace.apply(&folder.source());
    let begun = Instant::now();
    for ordinal in 0..2 {
        namespace.line(&server(ordinal), folder.watches, &["no leader knows this agent", "consul-server-2 is absent"]);
    }
    // What is tested is a time.
    std::thread::sleep(Duration::from_secs(60).saturating_sub(begun.elapsed()));
    for ordinal in 0..2 {
        assert_eq!(namespace.ask(&server(ordinal), "/v1/status/leader"), Some(json!("")), "two of three found nothing");
        let log = namespace.logs(&server(ordinal), folder.watches);
        let last = log.lines().rfind(|line| line.contains("\"level\":\"WARN\"")).unwrap();
        assert!(last.contains("no leader knows this agent") && last.contains("consul-server-2 is absent"), "{last}");
        for container in BTreeSet::from([folder.decides, folder.watches]) {
            let log = namespace.logs(&server(ordinal), container);
            let error = log.lines().find(|line| line.contains("\"level\":\"ERROR\""));
            assert_eq!(error, None, "nothing is wrong with server {ordinal}");
        }
    }
    let_go(&namespace);
    let scheduled = Instant::now();
    namespace.delete_pods(&[&server(2)]);
    namespace.formed(3);
    println!("three voters {:.1} s after the third Pod could be scheduled", scheduled.elapsed().as_secs_f64());
    for (name, (_, restarts)) in namespace.lives(SERVERS) {
        assert_eq!(restarts, 0, "{name}");
    }
}

/// The third server's Pod cannot be scheduled, since its volume will not come.
fn hold_back(namespace: &Namespace) {
    namespace.create_object(&json!({
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "data-consul-server-2", "namespace": namespace.name()},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}},
            "storageClassName": "there-is-none",
        },
    }));
}

/// A Pod that is made from now on gets a volume.
fn let_go(namespace: &Namespace) {
    let uid =
        || namespace.get("persistentvolumeclaims/data-consul-server-2").map(|claim| claim["metadata"]["uid"].clone());
    let held = uid();
    // kubectl's own waiting has hung where the StatefulSet made another one at once.
    namespace.kubectl(&["delete", "persistentvolumeclaim", "data-consul-server-2", "--wait=false"]);
    namespace.wait_for("the end of the claim", || uid() != held);
}

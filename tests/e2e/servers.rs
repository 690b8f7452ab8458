//! Three servers: how they come together, and what is left when one or all of them go.

use crate::support::kubernetes::namespace::{Namespace, SERVERS, Voter, server};
use crate::support::kubernetes::source::patch;
use crate::{Folder, anywhere, by_dns, five_services, servers};
use serde_json::json;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

in_both_folders!(servers_whose_services_got_other_addresses_return_there_with_their_data);

#[test]
fn three_servers_come_together_by_one_apply() {
    let namespace = Namespace::new("three_servers_come_together_by_one_apply");
    namespace.apply(&servers());
    let voters = namespace.formed(3);
    let names: Vec<_> = voters.iter().map(|voter| voter.name.clone()).collect();
    assert_eq!(names, [server(0), server(1), server(2)]);
    for voter in &voters {
        assert_eq!(namespace.cluster_ip(&voter.name), Some(voter.ip), "{} advertises its Service", voter.name);
    }
    for (name, (_, restarts)) in namespace.lives(SERVERS) {
        assert_eq!(restarts, 0, "{name}");
    }
}

#[test]
fn a_server_deleted_by_force_returns_as_itself() {
    let namespace = Namespace::new("a_server_deleted_by_force_returns_as_itself");
    namespace.apply(&servers());
    let voters = namespace.formed(3);
    namespace.put(&server(0), "kept", "yes");
    let before = namespace.lives(SERVERS);
    namespace.delete_pods(&[&server(1), "--force", "--grace-period=0"]);
    namespace.wait_for("another Pod in its place", || {
        namespace.lives(SERVERS).get(&server(1)).is_some_and(|life| life.0 != before[&server(1)].0)
    });
    assert_eq!(namespace.formed(3), voters, "the same names, node IDs and addresses");
    assert_eq!(namespace.node_id(&server(1)), voters.into_iter().find(|one| one.name == server(1)).map(|one| one.id));
    assert_eq!(namespace.value(&server(1), "kept").as_deref(), Some("yes"));
    let after = namespace.lives(SERVERS);
    assert_eq!((&after[&server(0)], &after[&server(2)]), (&before[&server(0)], &before[&server(2)]));
}

#[test]
fn all_pods_deleted_at_once_return_with_their_data() {
    let namespace = Namespace::new("all_pods_deleted_at_once_return_with_their_data");
    namespace.apply(&servers());
    let voters = namespace.formed(3);
    namespace.put(&server(0), "kept", "yes");
    let before = namespace.lives(SERVERS);
    namespace.kubectl(&["delete", "pods", "-l", SERVERS, "--wait=false"]);
    namespace.wait_for("three other Pods", || are_others(&before, &namespace.lives(SERVERS)));
    assert_eq!(namespace.formed(3), voters, "the same names, node IDs and addresses");
    assert_eq!(namespace.value(&server(2), "kept").as_deref(), Some("yes"));
}

fn servers_whose_services_got_other_addresses_return_there_with_their_data(test: &str, folder: Folder) {
    let namespace = Namespace::new(test);
    namespace.apply(&folder.source());
    let voters = namespace.formed(3);
    namespace.put(&server(0), "kept", "yes");
    let (old, before) = (own_services(&namespace), namespace.lives(SERVERS));
    namespace.kubectl(&["delete", "services", "--all"]);
    namespace.apply(&folder.source());
    let new = own_services(&namespace);
    assert!(new.values().all(|ip| !old.values().any(|other| other == ip)), "{new:?} are not other than {old:?}");
    namespace.wait_for("DNS to have forgotten the old addresses", || {
        new.iter().all(|(name, ip)| {
            let source = format!("--discover=dns:{name}.{}.svc", namespace.name());
            let asked = ["exec", &server(0), "--", "/convene/convene", "discover", &source, "--format=json"];
            namespace.try_kubectl(&asked).is_ok_and(|seen| seen.contains(&format!("\"{ip}\"")))
        })
    });
    namespace.kubectl(&["delete", "pods", "-l", SERVERS, "--wait=false"]);
    namespace.wait_for("three other Pods", || are_others(&before, &namespace.lives(SERVERS)));
    let after = namespace.formed(3);
    assert_eq!(ids(&after), ids(&voters));
    assert_eq!(after.into_iter().map(|one| (one.name, one.ip)).collect::<BTreeMap<_, _>>(), new);
    assert_eq!(namespace.value(&server(2), "kept").as_deref(), Some("yes"));
}

#[test]
fn servers_deleted_and_applied_again_keep_their_data_although_dns_gives_old_addresses() {
    let namespace =
        Namespace::new("servers_deleted_and_applied_again_keep_their_data_although_dns_gives_old_addresses");
    namespace.apply(&by_dns());
    let voters = namespace.formed(3);
    namespace.put(&server(0), "kept", "yes");
    let (old, before) = (own_services(&namespace), namespace.lives(SERVERS));
    namespace.delete(&by_dns());
    namespace.apply(&by_dns());
    // CoreDNS still gives the old ones, for as long as its cache keeps them.
    let new = own_services(&namespace);
    assert!(new.values().all(|ip| !old.values().any(|other| other == ip)), "{new:?} are not other than {old:?}");
    namespace.wait_for("three other Pods", || are_others(&before, &namespace.lives(SERVERS)));
    let after = namespace.formed(3);
    assert_eq!(ids(&after), ids(&voters));
    assert_eq!(after.into_iter().map(|one| (one.name, one.ip)).collect::<BTreeMap<_, _>>(), new);
    assert_eq!(namespace.value(&server(2), "kept").as_deref(), Some("yes"));
}

#[test]
fn a_server_that_returns_unready_for_three_minutes_fails_for_nobody() {
    let namespace = Namespace::new("a_server_that_returns_unready_for_three_minutes_fails_for_nobody");
    let probe = "[ ! -s /consul/data/unready ] && exec /convene/convene check ready";
    let probe = json!({"exec": {"command": ["sh", "-c", probe]}});
    let template = json!({"spec": {"containers": [{"name": "consul", "readinessProbe": probe}]}});
    namespace.apply(&servers().with(patch("StatefulSet", "consul-server", json!({"spec": {"template": template}}))));
    let voters = namespace.formed(3);
    let before = namespace.lives(SERVERS);
    let unready =
        |yes: &str| namespace.exec(&server(1), &["sh", "-c", &format!("printf '{yes}' >/consul/data/unready")]);
    let is_ready = || namespace.all_ready("statefulset.kubernetes.io/pod-name=consul-server-1", 1);
    let alive: BTreeMap<String, u64> = voters.iter().map(|voter| (voter.name.clone(), 1)).collect();
    unready("yes");
    namespace.wait_for("it to be unready", || !is_ready());
    let begun = Instant::now();
    // What is tested is a time: longer than any period of gossip, raft and autopilot.
    while begun.elapsed() < Duration::from_secs(180) {
        for asked in 0..3 {
            assert_eq!(namespace.members(&server(asked)), alive, "as server {asked} sees them");
        }
        assert!(!is_ready());
        std::thread::sleep(Duration::from_secs(1));
    }
    heard_over_udp(&namespace);

    // Another Pod, because connections that stand need no endpoint. Its UDP is lost until it is Ready, since kube-proxy forgets
    // the old Pod's flows only for an endpoint that is "serving" (CleanStaleEntries). Consul asks over TCP meanwhile, and one
    // answer that is late on a busy machine cannot be taken back: gossip may see it fail for a moment, raft does not.
    namespace.delete_pods(&[&server(1)]);
    let in_touch = || (0..3).all(|asked| namespace.members(&server(asked)) == alive);
    namespace.wait_for("its return", || namespace.node_id(&server(1)).is_some() && in_touch());
    let now = namespace.lives(SERVERS);
    assert_ne!(now[&server(1)], before[&server(1)]);
    assert!(!is_ready());
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(30) {
        // An election is no change of them.
        let now = namespace.voters(&server(0));
        assert!(now.is_empty() || now == voters, "{now:?}");
        std::thread::sleep(Duration::from_secs(1));
    }
    unready("");
    assert_eq!(namespace.formed(3), voters);
    assert_eq!(namespace.lives(SERVERS), now, "nobody was restarted");
    heard_over_udp(&namespace);
}

/// Waits until no server has had to ask another one over TCP for 10 s.
fn heard_over_udp(namespace: &Namespace) {
    namespace.wait_for("gossip over UDP", || {
        (0..3).all(|ordinal| {
            let recent = ["logs", &server(ordinal), "-c", "consul", "--since=10s"];
            namespace.try_kubectl(&recent).is_ok_and(|log| !log.contains("UDP probes failed"))
        })
    });
}

#[test]
fn three_servers_grow_to_five_and_the_older_ones_are_not_restarted() {
    let namespace = Namespace::new("three_servers_grow_to_five_and_the_older_ones_are_not_restarted");
    namespace.apply(&servers().with(anywhere()));
    let voters = namespace.formed(3);
    let before = namespace.lives(SERVERS);
    five_services(&namespace);
    namespace.kubectl(&["scale", "statefulset", "consul-server", "--replicas=5"]);
    let after = namespace.formed(5);
    assert!(voters.iter().all(|voter| after.contains(voter)), "{voters:?} are not all in {after:?}");
    for voter in &after {
        assert_eq!(namespace.cluster_ip(&voter.name), Some(voter.ip), "{} advertises its Service", voter.name);
        let log = namespace.logs(&voter.name, "consul");
        let lost = log.lines().find(|line| line.contains("[ERROR]") && line.contains("expect"));
        assert_eq!(lost, None, "{}", voter.name);
    }
    let mut now = namespace.lives(SERVERS);
    now.retain(|name, _| before.contains_key(name));
    assert_eq!(now, before, "the older ones were restarted");
}

/// Names and node IDs.
fn ids(voters: &[Voter]) -> Vec<(&str, &str)> {
    voters.iter().map(|one| (one.name.as_str(), one.id.as_str())).collect()
}

/// The address of each server's own Service.
fn own_services(namespace: &Namespace) -> BTreeMap<String, IpAddr> {
    (0..3).map(server).map(|name| (name.clone(), namespace.cluster_ip(&name).unwrap())).collect()
}

/// Whether none of the Pods is as it was, and as many are there.
pub fn are_others(before: &BTreeMap<String, (String, u64)>, now: &BTreeMap<String, (String, u64)>) -> bool {
    now.len() == before.len() && now.iter().all(|(name, life)| before.get(name).is_none_or(|old| old.0 != life.0))
}

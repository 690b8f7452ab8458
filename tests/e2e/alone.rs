//! What all tests share is broken: a node, the network, DNS, the API server. Each of these has the cluster to itself, and they
//! stand in one module so that they run one after the other, before the rest.

use crate::servers::are_others;
use crate::stops::watched;
use crate::support::kubernetes::breaking::{Broken, Cordoned, node_of};
use crate::support::kubernetes::machine::{Process, processes};
use crate::support::kubernetes::namespace::{Namespace, SERVERS, server};
use crate::support::kubernetes::run;
use crate::{Folder, anywhere, servers};
use nix::sys::signal::{Signal, kill};
use serde_json::json;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

in_both_folders!(
    a_cut_through_the_first_start_makes_no_second_cluster,
    a_server_deleted_by_force_starts_when_its_old_agent_has_ended,
);

fn a_cut_through_the_first_start_makes_no_second_cluster(test: &str, folder: Folder) {
    let Some(namespace) = Namespace::alone(test) else { return };
    namespace.apply(&folder.source());
    namespace.wait_for("Pods that have an address", || namespace.addresses(SERVERS).len() == 3);
    let at: Vec<usize> = (0..3).map(|ordinal| node_of(&namespace, &server(ordinal))).collect();
    let cuts = [Broken::cut(&namespace, at[2], at[0]), Broken::cut(&namespace, at[2], at[1])];
    let (begun, mut acknowledged) = (Instant::now(), BTreeSet::new());
    // What is tested is a time: longer than a formation, and than any election.
    for number in 0.. {
        for ordinal in 0..3 {
            let key = format!("cut/{number}/{ordinal}");
            if let Some((200, _)) = namespace.agent(&server(ordinal), "PUT", &format!("/v1/kv/{key}"), "yes") {
                assert_ne!(ordinal, 2, "both sides of the cut accept writes");
                acknowledged.insert(key);
            }
        }
        if begun.elapsed() > Duration::from_secs(20) {
            break;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    drop(cuts);
    let healed = Instant::now();
    let voters = namespace.formed(3);
    let (took, count) = (healed.elapsed().as_secs_f64(), acknowledged.len());
    println!("{count} writes were acknowledged by the two during the cut; three voters {took:.1} s after it");
    let seen: BTreeSet<_> = (0..3).map(|ordinal| namespace.voters(&server(ordinal))).collect();
    assert_eq!(seen, BTreeSet::from([voters]), "all see the same cluster");
    let listed = namespace.ask(&server(2), "/v1/kv/cut/?keys&consistent").unwrap_or_default();
    let there: BTreeSet<String> = serde_json::from_value(listed).unwrap_or_default();
    assert!(there.is_superset(&acknowledged), "acknowledged, and lost: {:?}", acknowledged.difference(&there));
}

fn a_server_deleted_by_force_starts_when_its_old_agent_has_ended(test: &str, folder: Folder) {
    let Some(namespace) = Namespace::alone(test) else { return };
    namespace.apply(&folder.source().with(anywhere()));
    let voters = namespace.formed(3);
    namespace.put(&server(0), "kept", "yes");
    // One that has closed its log is done with the volume, and may still wait for those who ask it something.
    let works = |process: &Process| process.is_agent_of(&server(1)) && process.has_open("raft");
    let agents = || processes(namespace.name(), works);
    let old = agents();
    assert_eq!(old.len(), 1, "{old:?}");
    // What a force delete is for, and is dangerous for: a machine that nobody hears from. The new Pod starts on another one.
    let node = node_of(&namespace, &server(1));
    let silent = Broken::stop(&namespace, &format!("kubelet{node}"));
    let elsewhere = Cordoned::new(&silent, node);
    namespace.delete_pods(&[&server(1), "--force", "--grace-period=0"]);
    let waits = "after a force delete its Pod may live out its grace period";
    namespace.line(&server(1), folder.decides, &["waiting: ", waits]);
    assert_eq!(agents(), old, "the old one runs, and no other");
    let begun = Instant::now();
    std::thread::scope(|scope| {
        // Its kubelet sees that the Pod is gone, and ends it.
        scope.spawn(|| silent.mend());
        namespace.wait_for("another agent", || {
            let now = agents();
            assert!(now.len() < 2, "two agents on one volume: {now:?}");
            !now.is_empty() && now != old
        });
    });
    drop(elsewhere);
    assert_eq!(namespace.formed(3), voters, "the same names, node IDs and addresses");
    println!("{:.1} s from the node's return to three voters", begun.elapsed().as_secs_f64());
    assert_eq!(namespace.value(&server(1), "kept").as_deref(), Some("yes"));
}

#[test]
fn an_api_server_that_is_away_for_30_s_during_the_start_keeps_nobody_from_forming() {
    let test = "an_api_server_that_is_away_for_30_s_during_the_start_keeps_nobody_from_forming";
    let Some(namespace) = Namespace::alone(test) else { return };
    namespace.apply(&servers());
    namespace.wait_for("Pods that have an address", || namespace.addresses(SERVERS).len() == 3);
    let down = Broken::stop(&namespace, "apiserver");
    let begun = Instant::now();
    // What is tested is a time.
    std::thread::sleep(Duration::from_secs(30).saturating_sub(begun.elapsed()));
    down.mend();
    namespace.formed(3);
}

#[test]
fn servers_with_data_return_although_dns_is_down() {
    let test = "servers_with_data_return_although_dns_is_down";
    let Some(namespace) = Namespace::alone(test) else { return };
    namespace.apply(&servers());
    let voters = namespace.formed(3);
    let before = namespace.lives(SERVERS);
    let _down = Broken::stop(&namespace, "coredns");
    namespace.kubectl(&["delete", "pods", "-l", SERVERS, "--wait=false"]);
    namespace.wait_for("three other Pods", || are_others(&before, &namespace.lives(SERVERS)));
    assert_eq!(namespace.formed(3), voters, "the same names, node IDs and addresses");
}

#[test]
fn servers_with_data_find_a_leader_although_the_api_and_dns_are_away() {
    let test = "servers_with_data_find_a_leader_although_the_api_and_dns_are_away";
    let Some(namespace) = Namespace::alone(test) else { return };
    namespace.apply(&servers());
    let voters = namespace.formed(3);
    namespace.put(&server(0), "kept", "yes");
    let agents = namespace.addresses(SERVERS);
    assert_eq!(agents.len(), 3);
    let _dns = Broken::stop(&namespace, "coredns");
    let api = Broken::stop(&namespace, "apiserver");
    let killed = processes(namespace.name(), Process::is_first);
    assert_eq!(killed.len(), 3, "{killed:?}");
    for pid in killed {
        kill(pid, Signal::SIGKILL).unwrap();
    }
    // The Pods keep their addresses, and kubelet starts the containers again without anybody's help.
    let leader = |agent: &IpAddr| {
        let mut asking = namespace.secured().consul(*agent);
        run(asking.args(["kv", "get", "kept"])).is_ok_and(|value| value.trim() == "yes")
    };
    let begun = Instant::now();
    while !agents.iter().all(leader) {
        assert!(begun.elapsed() < Duration::from_secs(300), "no leader without the API and DNS");
        std::thread::sleep(Duration::from_millis(100));
    }
    println!("{:.1} s from the kill to a consistent read at all three", begun.elapsed().as_secs_f64());
    api.mend();
    namespace.wait_for("the API again", || !namespace.pods(SERVERS).is_empty());
    assert_eq!(namespace.formed(3), voters);
}

#[test]
fn a_leader_whose_machine_is_lost_while_another_server_restarts_has_a_successor() {
    let test = "a_leader_whose_machine_is_lost_while_another_server_restarts_has_a_successor";
    let Some(namespace) = Namespace::alone(test) else { return };
    namespace.apply(&servers());
    namespace.formed(3);
    namespace.put(&server(0), "kept", "yes");
    let leader = leader(&namespace);
    let follower = (0..3).find(|ordinal| *ordinal != leader).unwrap();
    let before = namespace.lives(SERVERS)[&server(follower)].0.clone();
    namespace.kubectl(&["delete", "pod", &server(follower), "--wait=false"]);
    namespace
        .wait_for("its end", || namespace.lives(SERVERS).get(&server(follower)).is_none_or(|life| life.0 != before));
    let lost = Broken::kill_node(&namespace, node_of(&namespace, &server(leader)));
    let begun = Instant::now();
    let third = 3 - leader - follower;
    namespace.wait_for("another leader", || {
        let told = namespace.ask(&server(third), "/v1/status/leader");
        let own = namespace.cluster_ip(&server(leader)).map(|ip| format!("{ip}:8300"));
        told.and_then(|told| told.as_str().map(str::to_owned)).is_some_and(|told| !told.is_empty() && Some(told) != own)
    });
    namespace.put(&server(third), "after", "yes");
    println!("{:.1} s from the loss to a write", begun.elapsed().as_secs_f64());
    lost.mend();
    namespace.formed(3);
    assert_eq!(namespace.value(&server(leader), "kept").as_deref(), Some("yes"));
}

#[test]
fn a_stop_while_the_api_server_is_away_goes_by_what_it_said_last_and_does_not_leave() {
    let test = "a_stop_while_the_api_server_is_away_goes_by_what_it_said_last_and_does_not_leave";
    let Some(namespace) = Namespace::alone(test) else { return };
    namespace.apply(&servers());
    let voters = namespace.formed(3);
    let remembered = ["sh", "-c", "read line </consul/data/convene/statefulset.json; echo $line"];
    namespace.wait_for("a memory", || {
        let mut words = vec!["exec", "consul-server-1", "--"];
        words.extend(remembered);
        namespace.try_kubectl(&words).is_ok_and(|said| said.contains("replicas"))
    });
    let first = processes(namespace.name(), |process| process.is_first() && process.has("POD_NAME", &server(1)));
    assert_eq!(first.len(), 1, "{first:?}");
    let away = Broken::stop(&namespace, "apiserver");
    kill(first[0], Signal::SIGTERM).unwrap();
    let begun = Instant::now();
    // By its end the decision was made; the Kubernetes API cannot be asked about it.
    while kill(first[0], None).is_ok() {
        assert!(begun.elapsed().as_secs() < 120, "it does not stop");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    println!("{:.1} s from TERM to its end", begun.elapsed().as_secs_f64());
    away.mend();
    namespace.wait_for("a restart", || namespace.lives(SERVERS).get(&server(1)).is_some_and(|life| life.1 == 1));
    assert_eq!(namespace.formed(3), voters);
    let log = namespace.kubectl(&["logs", &server(1), "-c", "consul", "--previous"]);
    assert!(log.contains("restart (") && log.contains("s ago)"), "{log}");
}

#[test]
fn a_drain_of_each_machine_in_turn_costs_one_server_at_a_time() {
    let test = "a_drain_of_each_machine_in_turn_costs_one_server_at_a_time";
    let Some(namespace) = Namespace::alone(test) else { return };
    namespace.apply(&servers());
    let voters = namespace.formed(3);
    let seen = watched(&namespace, 3, || {
        for ordinal in 0..3 {
            let node = namespace.get(&format!("pods/{}", server(ordinal))).unwrap()["spec"]["nodeName"].clone();
            let node = node.as_str().unwrap().to_owned();
            let selector = format!("--pod-selector={SERVERS}");
            namespace.kubectl(&["drain", &node, "--ignore-daemonsets", "--delete-emptydir-data", &selector]);
            namespace.kubectl(&["uncordon", &node]);
            namespace.formed(3);
        }
    });
    assert_eq!((seen.fewest_voters, seen.most_away), (3, 1), "{seen:?}");
    assert_eq!(namespace.formed(3), voters);
}

fn leader(namespace: &Namespace) -> usize {
    let leads = |ordinal: &usize| {
        let own = namespace.cluster_ip(&server(*ordinal)).map(|ip| json!(format!("{ip}:8300")));
        own.is_some() && namespace.ask(&server(0), "/v1/status/leader") == own
    };
    (0..3).find(leads).expect("a leader")
}

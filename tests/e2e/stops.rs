//! Restarts, scaling, orders and losses: who leaves, who only stops, and what a client that writes meanwhile notices. Each prints
//! its figures; the bounds are `make bench-cluster`'s.

use crate::support::kubernetes::kubectl;
use crate::support::kubernetes::machine::processes;
use crate::support::kubernetes::namespace::{Namespace, SERVERS, is_ready, server};
use crate::support::kubernetes::source::{Source, json_patch, patch};
use crate::support::kubernetes::watcher::{Seen, while_watched};
use crate::{Folder, anywhere, servers};
use nix::sys::signal::{Signal, kill};
use serde_json::json;
use std::process::{Child, Stdio};
use std::time::Instant;

in_both_folders!(
    a_rolling_restart_keeps_three_voters_and_moves_leadership_twice_at_most,
    a_server_that_is_scaled_away_leaves_and_one_that_is_scaled_back_votes_again,
    an_annotation_and_a_flag_order_a_leave,
    a_namespace_that_is_deleted_is_gone_without_a_leave,
);

fn a_rolling_restart_keeps_three_voters_and_moves_leadership_twice_at_most(test: &str, folder: Folder) {
    let namespace = Namespace::new(test);
    namespace.apply(&folder.source());
    let voters = namespace.formed(3);
    let seen = watched(&namespace, 3, || restart(&namespace, 3));
    assert_eq!(seen.fewest_voters, 3, "{seen:?}");
    assert_eq!(seen.most_away, 1, "no two servers at once");
    assert_eq!(namespace.formed(3), voters, "the same names, node IDs and addresses");
    let stops: Vec<String> = (0..3).flat_map(|ordinal| told(&namespace, &server(ordinal), "Stopping")).collect();
    assert_eq!(stops.len(), 3, "one Event a stop: {stops:?}");
    assert!(stops.iter().all(|stop| stop.starts_with("restart (")), "{stops:?}");
    assert!(stops.iter().all(|stop| stop.contains("its Service leads nowhere")), "{stops:?}");
    let moves = stops.iter().filter(|stop| stop.contains("handed leadership over")).count();
    println!("leadership was handed over {moves} times");
    assert!(moves <= 2, "{stops:?}");
}

#[test]
fn at_the_pods_addresses_a_restart_leaves_and_two_vote_all_the_time() {
    let namespace = Namespace::new("at_the_pods_addresses_a_restart_leaves_and_two_vote_all_the_time");
    namespace.apply(&servers().component("deploy/components/pod-address"));
    namespace.formed(3);
    let seen = watched(&namespace, 3, || restart(&namespace, 3));
    assert_eq!((seen.fewest_voters, seen.most_away), (2, 1), "{seen:?}");
    for ordinal in 0..3 {
        let left = told(&namespace, &server(ordinal), "Left");
        assert!(left.iter().any(|left| left.starts_with("restart (")), "{left:?}");
    }
}

#[test]
fn servers_that_were_made_without_the_label_are_brought_over_once_their_pods_have_it() {
    let namespace = Namespace::new("servers_that_were_made_without_the_label_are_brought_over_once_their_pods_have_it");
    let without = |folder: &str| json!([{"op": "remove", "path": format!("{folder}/convene.dev~1reachable")}]);
    let set = json_patch("StatefulSet", "consul-server", without("/spec/template/metadata/labels"));
    let before = (0..3)
        .map(server)
        .fold(servers().with(set), |source, name| source.with(json_patch("Service", &name, without("/spec/selector"))));
    namespace.apply(&before);
    let voters = namespace.formed(3);
    let seen = watched(&namespace, 3, || {
        namespace.kubectl(&["label", "pods", "-l", SERVERS, "convene.dev/reachable=true"]);
        namespace.apply(&servers());
        rolled_out(&namespace, 3);
    });
    assert_eq!((seen.fewest_voters, seen.most_away), (3, 1), "{seen:?}");
    assert_eq!(namespace.formed(3), voters, "the same names, node IDs and addresses");
}

#[test]
fn five_restart_one_after_the_other() {
    let namespace = Namespace::new("five_restart_one_after_the_other");
    five(&namespace);
    let seen = watched(&namespace, 5, || restart(&namespace, 5));
    assert_eq!((seen.fewest_voters, seen.most_away), (5, 1), "{seen:?}");
}

#[test]
fn all_pods_that_are_deleted_or_killed_at_once_return_with_their_data() {
    let namespace = Namespace::new("all_pods_that_are_deleted_or_killed_at_once_return_with_their_data");
    namespace.apply(&servers());
    let voters = namespace.formed(3);
    for words in [&["--wait=false"][..], &["--wait=false", "--grace-period=0", "--force"]] {
        let before = namespace.lives(SERVERS);
        watched(&namespace, 3, || {
            namespace.kubectl(&[&["delete", "pods", "-l", SERVERS], words].concat());
            namespace.wait_for("three new Pods", || {
                let now = namespace.lives(SERVERS);
                now.len() == 3 && now.iter().all(|(pod, life)| before[pod].0 != life.0)
            });
            namespace.formed(3);
        });
        assert_eq!(namespace.formed(3), voters);
    }
}

fn a_server_that_is_scaled_away_leaves_and_one_that_is_scaled_back_votes_again(test: &str, folder: Folder) {
    let namespace = Namespace::new(test);
    namespace.apply(&folder.source());
    namespace.formed(3);
    namespace.put(&server(0), "kept", "yes");
    namespace.scale(1);
    namespace.wait_for("one voter", || namespace.voters(&server(0)).len() == 1);
    for ordinal in [1, 2] {
        let left = told(&namespace, &server(ordinal), "Left");
        assert!(left.len() == 1 && left[0].starts_with("scale-down (the StatefulSet has 1 replicas"), "{left:?}");
    }
    let members = namespace.members(&server(0));
    assert!([1, 2].iter().all(|ordinal| members[&server(*ordinal)] == 3), "left, none failed: {members:?}");
    namespace.put(&server(0), "alone", "yes");
    namespace.scale(3);
    namespace.formed(3);
    assert_eq!(namespace.value(&server(2), "kept").as_deref(), Some("yes"));
    assert_eq!(namespace.value(&server(1), "alone").as_deref(), Some("yes"));
}

#[test]
fn two_of_five_leave_although_one_of_the_others_is_dead_and_a_third_is_gone_already() {
    let namespace = Namespace::new("two_of_five_leave_although_one_of_the_others_is_dead_and_a_third_is_gone_already");
    five(&namespace);
    let dead = freeze(&namespace, 1);
    namespace.scale(3);
    let staying = [0, 2].map(server);
    namespace.wait_for("three voters", || staying.iter().all(|pod| namespace.voters(pod).len() == 3));
    for ordinal in [3, 4] {
        let left = told(&namespace, &server(ordinal), "Left");
        assert_eq!(left.len(), 1, "{left:?}");
    }
    kill(dead, Signal::SIGCONT).unwrap();
    namespace.formed(3);
}

#[test]
fn a_leave_that_would_cost_the_quorum_is_refused_with_its_numbers() {
    let namespace = Namespace::new("a_leave_that_would_cost_the_quorum_is_refused_with_its_numbers");
    let short = json!({"spec": {"template": {"spec": {"terminationGracePeriodSeconds": 30}}}});
    let source = five_servers().with(patch("StatefulSet", "consul-server", short));
    namespace.apply(&source.setting("CONVENE_GRACE_PERIOD", "30s"));
    namespace.formed(5);
    let dead = [1, 2].map(|ordinal| freeze(&namespace, ordinal));
    namespace.kubectl(&["scale", "statefulset", "consul-server", "--replicas=3"]);
    // Of five with two dead all others are needed: at the last look one of them may lack a leader for a moment.
    namespace.line(&server(4), "consul", &["gate 3: 2 of the 4 voters without us answer, which is no majority"]);
    let refused = || told(&namespace, &server(4), "NotLeft");
    namespace.wait_for("a refusal", || !refused().is_empty());
    let refused = refused();
    assert!(refused[0].contains("did not leave within") && refused[0].contains("since gate "), "{refused:?}");
    dead.into_iter().for_each(|agent| kill(agent, Signal::SIGCONT).unwrap());
}

fn an_annotation_and_a_flag_order_a_leave(test: &str, folder: Folder) {
    let namespace = Namespace::new(test);
    namespace.apply(&folder.source());
    namespace.formed(3);
    namespace.kubectl(&["annotate", "pod", &server(1), "convene.dev/leave=always"]);
    replaced(&namespace, 1);
    let left = told(&namespace, &server(1), "Left");
    assert!(left.len() == 1 && left[0].contains("convene.dev/leave says always"), "{left:?}");
    namespace.line(&server(1), folder.decides, &["moved the data of an earlier life aside"]);
    namespace.apply(&folder.source().setting("CONVENE_LEAVE", "always"));
    // The rollout's stops still follow the manifest before.
    rolled_out(&namespace, 3);
    replaced(&namespace, 2);
    let left = told(&namespace, &server(2), "Left");
    assert!(left.len() == 1 && left[0].contains("--leave says always"), "{left:?}");
    namespace.formed(3);
}

#[test]
fn a_killed_agent_and_one_that_left_by_hand_come_back_in_their_container() {
    let namespace = Namespace::new("a_killed_agent_and_one_that_left_by_hand_come_back_in_their_container");
    namespace.apply(&servers());
    let voters = namespace.formed(3);
    let agents = processes(namespace.name(), |process| process.is_agent_of(&server(1)));
    assert_eq!(agents.len(), 1);
    kill(agents[0], Signal::SIGKILL).unwrap();
    namespace.wait_for("a restart", || namespace.lives(SERVERS)[&server(1)].1 == 1);
    assert_eq!(namespace.formed(3), voters, "nobody left");
    namespace.exec(&server(1), &["consul", "leave"]);
    namespace.wait_for("a second restart", || namespace.lives(SERVERS)[&server(1)].1 == 2);
    namespace.formed(3);
}

fn a_namespace_that_is_deleted_is_gone_without_a_leave(test: &str, folder: Folder) {
    gone_with_its_namespace(test, &folder.source());
}

#[test]
fn at_the_pods_addresses_a_namespace_that_is_deleted_is_gone_without_a_leave() {
    let source = servers().component("deploy/components/pod-address");
    let test = "at_the_pods_addresses_a_namespace_that_is_deleted_is_gone_without_a_leave";
    for log in gone_with_its_namespace(test, &source) {
        assert!(log.contains("the namespace is being deleted") && log.contains("teardown"), "{log}");
    }
}

/// Deletes the namespace of three servers, none of which leaves; what their containers logged until the end.
fn gone_with_its_namespace(test: &str, source: &Source) -> Vec<String> {
    let mut namespace = Namespace::new(test);
    let beside = namespace.beside();
    namespace.apply_in(&beside, source);
    let ready = || {
        let pods = namespace.get_in(&beside, "pods").unwrap_or_default();
        pods["items"].as_array().is_some_and(|pods| pods.len() == 3 && pods.iter().all(is_ready))
    };
    namespace.wait_for("three that are Ready", ready);
    let follow = |ordinal: usize| {
        let mut follow = kubectl(["-n", &beside, "logs", "--follow", &server(ordinal), "-c", "consul"]);
        follow.stdout(Stdio::piped()).spawn().unwrap()
    };
    let following: Vec<Child> = (0..3).map(follow).collect();
    let begun = Instant::now();
    namespace.kubectl(&["delete", "namespace", &beside, "--timeout=100s"]);
    println!("{:.1} s until all was gone, of 120 s of grace", begun.elapsed().as_secs_f64());
    let ended = |follow: Child| String::from_utf8_lossy(&follow.wait_with_output().unwrap().stdout).into_owned();
    let logs: Vec<String> = following.into_iter().map(ended).collect();
    for log in &logs {
        assert!(log.contains("Consul agent running!") && !log.contains("server starting leave"), "{log}");
    }
    logs
}

/// Does something while a client writes; prints what it noticed, and nothing that was acknowledged may be lost.
pub fn watched(namespace: &Namespace, count: usize, done: impl FnOnce()) -> Seen {
    let begun = Instant::now();
    let (took, seen) = while_watched(namespace, count, |_| {
        done();
        begun.elapsed()
    });
    let written = seen.is_kept(namespace, count);
    let (took, gap) = (took.as_secs_f64(), seen.gap.as_secs_f64());
    println!("{took:.1} s; longest gap {gap:.2} s; {} voters at least; {written} writes", seen.fewest_voters);
    seen
}

fn restart(namespace: &Namespace, count: usize) {
    namespace.kubectl(&["rollout", "restart", "statefulset", "consul-server"]);
    rolled_out(namespace, count);
}

fn rolled_out(namespace: &Namespace, count: usize) {
    namespace.kubectl(&["rollout", "status", "statefulset", "consul-server", "--timeout=250s"]);
    namespace.formed(count);
}

/// Deletes a Pod, and waits for the next one to be Ready.
fn replaced(namespace: &Namespace, ordinal: usize) {
    let before = namespace.lives(SERVERS)[&server(ordinal)].0.clone();
    namespace.kubectl(&["delete", "pod", &server(ordinal), "--wait=false"]);
    namespace.wait_for("its successor", || {
        namespace.lives(SERVERS).get(&server(ordinal)).is_some_and(|life| life.0 != before)
    });
    namespace.formed(3);
}

fn five(namespace: &Namespace) {
    namespace.apply(&five_servers());
    namespace.formed(5);
}

/// On fewer than five machines. Autopilot removes none of the five while they are away (min_quorum).
fn five_servers() -> Source {
    Source::new("deploy/server-five").with(anywhere())
}

/// Nobody hears of this agent any more, nor does it end.
fn freeze(namespace: &Namespace, ordinal: usize) -> nix::unistd::Pid {
    let agents = processes(namespace.name(), |process| process.is_agent_of(&server(ordinal)));
    assert_eq!(agents.len(), 1, "{agents:?}");
    kill(agents[0], Signal::SIGSTOP).unwrap();
    agents[0]
}

/// The messages of a Pod's Events of one reason.
fn told(namespace: &Namespace, pod: &str, reason: &str) -> Vec<String> {
    let events = namespace.get("events").unwrap_or_default();
    let fits = |event: &&serde_json::Value| event["involvedObject"]["name"] == pod && event["reason"] == reason;
    let convene = |event: &&serde_json::Value| event["source"]["component"] == "convene";
    let all = events["items"].as_array().into_iter().flatten().filter(fits).filter(convene);
    all.filter_map(|event| event["message"].as_str().map(str::to_owned)).collect()
}

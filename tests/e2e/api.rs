//! The Kubernetes API as a source: what it takes, what is said when it may not be asked, and what happens while it is away.

use crate::servers;
use crate::support::cluster::request;
use crate::support::kubernetes::breaking::Broken;
use crate::support::kubernetes::namespace::{Namespace, SERVERS, Source, json_patch, patch, server};
use crate::support::skip::needs_cluster_tool;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// The number of servers given, and no claim.
fn alone() -> Value {
    let env = json!([{"name": "CONVENE_EXPECT", "value": "3"}, {"name": "CONVENE_CLAIM", "value": "off"}]);
    let container = json!({"name": "consul", "env": env});
    patch("StatefulSet", "consul-server", json!({"spec": {"template": {"spec": {"containers": [container]}}}}))
}

/// Without the Role and its binding; the token is mounted all the same.
fn without_role(source: Source) -> Source {
    source.with(patch("Role", "consul-server", json!({"$patch": "delete"}))).with(patch(
        "RoleBinding",
        "consul-server",
        json!({"$patch": "delete"}),
    ))
}

#[test]
fn a_missing_role_is_named_and_the_number_of_servers_is_asked_for() {
    let namespace = Namespace::new("a_missing_role_is_named_and_the_number_of_servers_is_asked_for");
    namespace.apply(&without_role(servers()));
    let denied = "may not get statefulsets";
    namespace.line(&server(0), "consul", &["waiting", "--claim=off", denied, "verbs: [get]"]);
    // What a person may do instead: give the number, and do without a claim. Everything else is found by DNS.
    namespace.apply(&without_role(servers()).with(alone()));
    // A rollout waits for the first new Pod to be Ready, which cannot be before the others are new too.
    namespace.kubectl(&["delete", "pods", "-l", SERVERS]);
    namespace.formed(3);
    namespace.line(&server(0), "consul", &[denied, "deploy/server/access.yaml"]);
}

#[test]
fn a_role_that_may_only_get_and_list_pods_is_enough_when_the_number_is_given() {
    let namespace = Namespace::new("a_role_that_may_only_get_and_list_pods_is_enough_when_the_number_is_given");
    let rules = json!([{"op": "replace", "path": "/rules", "value": [
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"]},
    ]}]);
    let source = servers().with(json_patch("Role", "consul-server", rules)).with(alone());
    namespace.apply(&source);
    for voter in namespace.formed(3) {
        assert_eq!(namespace.cluster_ip(&voter.name), Some(voter.ip), "{}", voter.name);
    }
    namespace.line(&server(0), "consul", &["may not get services", "DNS is asked instead"]);
}

#[test]
fn ordered_ready_is_refused_where_describe_shows_it() {
    let namespace = Namespace::new("ordered_ready_is_refused_where_describe_shows_it");
    let policy = json!({"spec": {"podManagementPolicy": "OrderedReady"}});
    namespace.apply(&servers().with(patch("StatefulSet", "consul-server", policy)));
    let told = || {
        let described = namespace.try_kubectl(&["describe", "pod", &server(0)]).unwrap_or_default();
        let message = described.split("Message:").skip(1).any(|rest| {
            rest.split("Exit Code:").next().is_some_and(|message| message.contains("podManagementPolicy OrderedReady"))
        });
        message && described.contains("Exit Code:    64") && described.contains("Refused")
    };
    namespace.wait_for("the last error in the Pod's description", told);
}

#[test]
fn what_was_decided_is_an_event_on_the_pod() {
    let namespace = Namespace::new("what_was_decided_is_an_event_on_the_pod");
    namespace.apply(&servers());
    namespace.formed(3);
    for ordinal in 0..3 {
        let described = namespace.kubectl(&["describe", "pod", &server(ordinal)]);
        let told = described.lines().find(|line| line.contains("convene") && line.contains("Founding"));
        assert!(told.is_some_and(|line| line.contains("found one of 3 servers")), "{described}");
    }
}

#[test]
fn an_application_of_another_namespace_finds_the_servers_by_their_label_with_a_role_there() {
    let mut namespace =
        Namespace::new("an_application_of_another_namespace_finds_the_servers_by_their_label_with_a_role_there");
    let beside = namespace.beside();
    namespace.apply(&servers());
    namespace.formed(3);
    let there = |kind: &str, more: Value| {
        let mut object = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind,
            "metadata": {"name": "finds-servers", "namespace": namespace.name()}});
        object.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        object
    };
    namespace.create_object(&there(
        "Role",
        json!({"rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}]}),
    ));
    namespace.create_object(&there(
        "RoleBinding",
        json!({
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "finds-servers"},
            "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": beside}],
        }),
    ));
    let labels = "app.kubernetes.io/name=consul,app.kubernetes.io/component=server";
    let source = format!("--discover=provider=k8s label_selector=\"{labels}\" namespace={}", namespace.name());
    let image = &namespace.images().convene;
    namespace.create_object(&json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "app", "namespace": beside},
        "spec": {
            "restartPolicy": "Never",
            "securityContext": {"runAsNonRoot": true, "runAsUser": 100, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{
                "name": "app",
                "image": format!("{}:{}", image.0, image.1),
                "args": ["discover", source, "--format=netaddrs"],
                "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
            }],
        },
    }));
    let state = || namespace.get_in(&beside, "pods/app").unwrap_or_default()["status"]["phase"].clone();
    namespace.wait_for("the application's end", || state() == "Succeeded" || state() == "Failed");
    let log = namespace.logs_in(&beside, "app", "app");
    assert_eq!(state(), "Succeeded", "{log}");
    let found: BTreeSet<IpAddr> = log.lines().filter_map(|line| line.parse().ok()).collect();
    assert!(found.is_superset(&namespace.addresses(SERVERS)), "{log}");
}

#[test]
fn an_api_server_that_is_away_for_30_s_during_the_start_keeps_nobody_from_forming() {
    let test = "an_api_server_that_is_away_for_30_s_during_the_start_keeps_nobody_from_forming";
    let Some(breaking) = needs_cluster_tool(test) else { return };
    let namespace = Namespace::new(test);
    namespace.apply(&servers());
    namespace.wait_for("Pods that have an address", || namespace.addresses(SERVERS).len() == 3);
    let down = Broken::stop(&breaking, "apiserver");
    let begun = Instant::now();
    // What is tested is a time.
    std::thread::sleep(Duration::from_secs(30).saturating_sub(begun.elapsed()));
    down.mend();
    namespace.formed(3);
}

#[test]
fn servers_with_data_find_a_leader_although_the_api_and_dns_are_away() {
    let test = "servers_with_data_find_a_leader_although_the_api_and_dns_are_away";
    let Some(breaking) = needs_cluster_tool(test) else { return };
    let namespace = Namespace::new(test);
    namespace.apply(&servers());
    let voters = namespace.formed(3);
    namespace.put(&server(0), "kept", "yes");
    let agents: Vec<SocketAddr> =
        namespace.addresses(SERVERS).into_iter().map(|ip| SocketAddr::new(ip, 8500)).collect();
    assert_eq!(agents.len(), 3);
    let _dns = Broken::stop(&breaking, "coredns");
    let api = Broken::stop(&breaking, "apiserver");
    let killed = first_processes(namespace.name());
    assert_eq!(killed.len(), 3, "{killed:?}");
    for pid in killed {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    }
    // The Pods keep their addresses, and kubelet starts the containers again without anybody's help.
    let leader = |agent: &SocketAddr| {
        let answer = request(*agent, "GET", "/v1/kv/kept?raw&consistent", "");
        answer.is_some_and(|(status, body)| status == 200 && body == "yes")
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

/// The first processes of the containers of a namespace's Pods, all of which run on this machine.
fn first_processes(namespace: &str) -> Vec<i32> {
    let all = std::fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let wanted = format!("POD_NAMESPACE={namespace}");
    let is_first = |pid: &i32| {
        let read = |file: &str| std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        let (environ, status) = (read("environ"), String::from_utf8_lossy(&read("status")).into_owned());
        let inside = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
        environ.split(|byte| *byte == 0).any(|one| one == wanted.as_bytes())
            && inside.split_whitespace().nth(1) == Some("1")
    };
    all.filter(is_first).collect()
}

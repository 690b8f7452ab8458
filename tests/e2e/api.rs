//! The Kubernetes API as a source: what it takes, and what is said when it may not be asked.

use crate::servers;
use crate::support::kubernetes::namespace::{Namespace, SERVERS, server};
use crate::support::kubernetes::restricted;
use crate::support::kubernetes::source::{Source, json_patch, patch};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::IpAddr;

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
    namespace.delete_pods(&["-l", SERVERS]);
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
    let (pod, container) = restricted();
    namespace.create_object(&namespace.secured().asking(json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "app", "namespace": beside},
        "spec": {
            "restartPolicy": "Never",
            "securityContext": pod,
            "containers": [{
                "name": "app",
                "image": format!("{}:{}", image.0, image.1),
                "args": ["discover", source, "--format=netaddrs"],
                "securityContext": container,
            }],
        },
    })));
    let state = || namespace.get_in(&beside, "pods/app").unwrap_or_default()["status"]["phase"].clone();
    namespace.wait_for("the application's end", || state() == "Succeeded" || state() == "Failed");
    let log = namespace.logs_in(&beside, "app", "app");
    assert_eq!(state(), "Succeeded", "{log}");
    let found: BTreeSet<IpAddr> = log.lines().filter_map(|line| line.parse().ok()).collect();
    assert!(found.is_superset(&namespace.addresses(SERVERS)), "{log}");
}

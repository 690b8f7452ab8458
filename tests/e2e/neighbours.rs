//! Who lives beside the servers: clients, and applications of other namespaces.

use crate::support::kubernetes::namespace::{Namespace, SERVERS, server};
use crate::support::kubernetes::restricted;
use crate::support::kubernetes::source::json_patch;
use crate::{anywhere, servers};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::IpAddr;

fn addresses(text: &str) -> BTreeSet<IpAddr> {
    text.lines().map(|line| line.parse().unwrap_or_else(|_| panic!("{line:?} is no address"))).collect()
}

#[test]
fn clients_that_carry_the_servers_labels_are_never_taken_for_servers() {
    let namespace = Namespace::new("clients_that_carry_the_servers_labels_are_never_taken_for_servers");
    let (pod, container) = restricted();
    let labels = json!({"app.kubernetes.io/name": "consul", "app.kubernetes.io/component": "server", "role": "client"});
    let image = &namespace.images().consul;
    namespace.create_object(&json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "clients", "namespace": namespace.name()},
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    "automountServiceAccountToken": false,
                    "securityContext": pod,
                    "containers": [{
                        "name": "consul",
                        "image": format!("{}:{}", image.0, image.1),
                        "args": ["agent", "-client=0.0.0.0", "-retry-join=consul-server", "-retry-interval=1s"],
                        "securityContext": container,
                    }],
                },
            },
        },
    }));
    namespace.wait_for("two clients", || namespace.all_ready("role=client", 2));
    let clients = namespace.addresses("role=client");

    // The Service's name has the clients' addresses too, and so they are found beside the StatefulSet's names.
    let command = "/spec/template/spec/containers/0/command/2";
    let found_by_name = json!([
        {"op": "add", "path": command, "value": "--discover=statefulset"},
        {"op": "add", "path": command, "value": "--discover=dns:consul-server"},
    ]);
    namespace.apply(&servers().with(anywhere()).with(json_patch("StatefulSet", "consul-server", found_by_name)));
    let only = format!("{SERVERS},role!=client");
    namespace.wait_for("three servers that are Ready", || namespace.all_ready(&only, 3));
    namespace.wait_for("three voters", || namespace.voters(&server(0)).len() == 3);
    for ordinal in 0..3 {
        let decided = namespace.line(&server(ordinal), "consul", &["decided: "]);
        let decided: Value = serde_json::from_str(&decided).unwrap();
        let joined = decided["retry_join"].as_str().unwrap_or_else(|| panic!("{decided}"));
        for client in &clients {
            assert!(!joined.split(", ").any(|one| one == client.to_string()), "{client} is in {joined}");
        }
        let asked = ["exec", &server(ordinal), "--", "/convene/convene", "discover", "--discover=dns:consul-server"];
        let ask = || namespace.try_kubectl(&[&asked[..], &["--format=netaddrs"]].concat());
        // The clients asked for the name before it was there, and DNS remembers that for a while.
        namespace.wait_for("DNS to know the name", || ask().is_ok());
        let found = ask().unwrap();
        assert!(addresses(&found).is_disjoint(&clients), "{clients:?} are in {found}");
        assert!(!addresses(&found).is_empty());
    }
}

#[test]
fn an_application_of_another_namespace_finds_the_servers_by_dns_without_any_right() {
    let mut namespace =
        Namespace::new("an_application_of_another_namespace_finds_the_servers_by_dns_without_any_right");
    let beside = namespace.beside();
    namespace.apply(&servers());
    namespace.formed(3);
    let (pod, container) = restricted();
    let image = &namespace.images().convene;
    let source = format!("--discover=dns:consul-server.{}.svc", namespace.name());
    namespace.create_object(&namespace.secured().asking(json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "app", "namespace": beside},
        "spec": {
            "automountServiceAccountToken": false,
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
    // A server that is known has two: its Pod's, by which it was found, and its Service's, which the leader lists.
    let mut servers = 0;
    for pod in namespace.pods(SERVERS) {
        let own: IpAddr = pod["status"]["podIP"].as_str().unwrap().parse().unwrap();
        let stable = namespace.cluster_ip(pod["metadata"]["name"].as_str().unwrap()).unwrap();
        assert!(found.contains(&own) || found.contains(&stable), "neither {own} nor {stable} is in {log}");
        servers += usize::from(found.contains(&own)) + usize::from(found.contains(&stable));
    }
    assert_eq!(found.len(), servers, "somebody else is in {log}");
}

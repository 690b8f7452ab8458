//! A machine is lost and its Node object removed: what `deploy/reap` makes of the client that ran on it, and of the server.

use crate::servers;
use crate::support::kubernetes::breaking::{Broken, node_of};
use crate::support::kubernetes::namespace::{Namespace, SERVERS, is_ready, server};
use crate::support::kubernetes::source::Source;
use crate::support::kubernetes::{kubectl, nodes, run};
use serde_json::{Value, json};

/// What is of no namespace does not go with one.
struct Reap<'a>(&'a Namespace, Source);

impl<'a> Reap<'a> {
    /// As it stands, but for its schedule: it runs when it is told to.
    fn applied(namespace: &'a Namespace) -> Self {
        let reap = Self(namespace, Source::new("deploy/reap"));
        namespace.apply(&reap.1);
        namespace.kubectl(&["patch", "cronjob", "consul-reap", "-p", r#"{"spec": {"suspend": true}}"#]);
        reap
    }

    /// Runs it once; its log.
    fn once(&self, name: &str) -> String {
        self.0.kubectl(&["create", "job", name, "--from=cronjob/consul-reap"]);
        let job = format!("job-name={name}");
        let pod = || self.0.pods(&job).into_iter().next();
        let over = |pod: Value| ["Succeeded", "Failed"].iter().any(|phase| pod["status"]["phase"] == *phase);
        self.0.wait_for("the end of reap", || pod().is_some_and(over));
        self.0.logs(pod().unwrap()["metadata"]["name"].as_str().unwrap(), "reap")
    }
}

impl Drop for Reap<'_> {
    fn drop(&mut self) {
        let folder = self.0.overlay(&self.1);
        if let Err(why) = run(kubectl(["delete", "--ignore-not-found", "-k"]).arg(folder)) {
            eprintln!("could not remove deploy/reap: {why}");
        }
    }
}

/// An agent that says on which machine it runs.
fn client(namespace: &Namespace, node: &str) -> Value {
    let image = &namespace.images().consul;
    let args =
        ["agent", "-client=0.0.0.0", "-data-dir=/consul/data", "-retry-join=consul-server", "-retry-interval=1s"];
    let own =
        [format!("-node=client-{node}"), format!("-node-meta=k8s-node:{node}"), "-advertise=$(POD_IP)".to_owned()];
    let args: Vec<String> = args.into_iter().map(str::to_owned).chain(own).collect();
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": format!("client-{node}"), "namespace": namespace.name()},
        "spec": {
            "nodeName": node,
            "terminationGracePeriodSeconds": 5,
            "securityContext": {
                "runAsNonRoot": true, "runAsUser": 100, "runAsGroup": 1000, "fsGroup": 1000,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [{
                "name": "consul",
                "image": format!("{}:{}", image.0, image.1),
                "args": args,
                "env": [{"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
                "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
                "volumeMounts": [{"name": "data", "mountPath": "/consul/data"}],
            }],
            "volumes": [{"name": "data", "emptyDir": {}}],
        },
    })
}

/// The names of the catalog's nodes as a server tells them.
fn catalog(namespace: &Namespace) -> Vec<String> {
    let nodes = namespace.ask(&server(0), "/v1/catalog/nodes").unwrap_or_default();
    let mut names: Vec<String> =
        nodes.as_array().into_iter().flatten().filter_map(|node| node["Node"].as_str().map(str::to_owned)).collect();
    names.sort();
    names
}

#[test]
fn a_client_is_reaped_with_its_node_and_a_server_in_the_raft_peers_is_not() {
    let Some(namespace) = Namespace::alone("a_client_is_reaped_with_its_node_and_a_server_in_the_raft_peers_is_not")
    else {
        return;
    };
    namespace.apply(&servers());
    let voters = namespace.formed(3);
    let machines = nodes();
    for machine in &machines {
        namespace.create_object(&client(&namespace, machine));
    }
    // What gossip says of them comes first, and what they say of themselves after it.
    let named = || {
        let listed = namespace.ask(&server(0), "/v1/catalog/nodes").unwrap_or_default();
        let nodes = listed.as_array().into_iter().flatten();
        nodes.filter(|node| node["Meta"]["k8s-node"].is_string()).count()
    };
    namespace.wait_for("all in the catalog", || named() == machines.len());
    let reap = Reap::applied(&namespace);
    let log = reap.once("all-are-well");
    assert!(log.contains(&format!("{} clients name their machine; 0 removed", machines.len())), "{log}");

    let lost = node_of(&namespace, &server(2));
    let machine = &machines[lost - 1];
    let broken = Broken::kill_node(&namespace, lost);
    let client = format!("client-{machine}");
    let failed = || [&client, &server(2)].iter().all(|name| namespace.members(&server(0)).get(*name) == Some(&4));
    namespace.wait_for("both as failed", failed);
    // The Service that reap asks must have found out too.
    let two = || namespace.pods(SERVERS).iter().filter(|pod| is_ready(pod)).count() == 2;
    namespace.wait_for("two servers that are Ready", two);
    let log = reap.once("its-node-is-there");
    assert!(log.contains("stays: failed, but its machine has a Node object"), "{log}");

    namespace.kubectl(&["delete", "node", machine]);
    let log = reap.once("its-node-is-gone");
    println!("{log}");
    assert!(
        log.contains("removed in ")
            && log.contains(&format!("{} clients name their machine; 1 removed", machines.len())),
        "{log}"
    );
    let others = machines.iter().filter(|other| *other != machine).map(|other| format!("client-{other}"));
    let left: Vec<String> = others.chain((0..3).map(server)).collect();
    assert_eq!(catalog(&namespace), left, "the client is out of the catalog, and nobody else");
    assert_eq!(namespace.voters(&server(0)), voters, "the server is among the raft peers");
    assert_eq!(namespace.members(&server(0)).get(&client), Some(&3), "it has left");

    broken.mend();
    assert_eq!(namespace.formed(3), voters);
    drop(reap);
}

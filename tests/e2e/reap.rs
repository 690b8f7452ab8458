//! A machine is lost and its Node object removed: what `deploy/reap` makes of the client that ran on it, and of the server.

use crate::clients::{catalog, clients};
use crate::servers;
use crate::support::kubernetes::breaking::{Broken, node_of};
use crate::support::kubernetes::namespace::{Namespace, SERVERS, is_ready, server};
use crate::support::kubernetes::source::Source;
use crate::support::kubernetes::{kubectl, nodes, run};
use serde_json::Value;
use std::collections::BTreeSet;

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

#[test]
fn a_client_is_reaped_with_its_node_and_a_server_in_the_raft_peers_is_not() {
    let Some(mut namespace) =
        Namespace::alone("a_client_is_reaped_with_its_node_and_a_server_in_the_raft_peers_is_not")
    else {
        return;
    };
    namespace.apply(&servers());
    let voters = namespace.formed(3);
    let machines = nodes();
    let beside = namespace.beside_at("privileged");
    namespace.apply_in(&beside, &clients(&namespace));
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
    let failed = || [machine, &server(2)].iter().all(|name| namespace.members(&server(0)).get(*name) == Some(&4));
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
    let others = machines.iter().filter(|other| *other != machine).cloned();
    let left: BTreeSet<String> = others.chain((0..3).map(server)).collect();
    assert_eq!(
        catalog(&namespace).into_keys().collect::<BTreeSet<_>>(),
        left,
        "the client is out of the catalog, and nobody else"
    );
    assert_eq!(namespace.voters(&server(0)), voters, "the server is among the raft peers");
    assert_eq!(namespace.members(&server(0)).get(machine), Some(&3), "it has left");

    broken.mend();
    assert_eq!(namespace.formed(3), voters);
    drop(reap);
}

//! Do servers of HashiCorp's chart, of Bitnami's and of a StatefulSet that somebody wrote go on as those of `deploy/server`, by the
//! steps of docs/migrating.md? With what they are before in the folders beside this file.

use crate::servers::are_others;
use crate::support::kubernetes::namespace::{Namespace, SERVERS, Voter};
use crate::support::kubernetes::source::Source;
use serde_json::Value;
use std::cell::Cell;
use std::collections::BTreeMap;

/// Where servers come from.
struct Old {
    /// The folder in `migrating` here and in `deploy`.
    path: &'static str,
    /// The StatefulSet's name.
    set: &'static str,
    /// Its Pods.
    selector: &'static str,
    /// Services whose name is that of another one in `deploy/server`.
    in_the_way: &'static [&'static str],
}

// === impl Old ===

impl Old {
    fn pod(&self, ordinal: usize) -> String {
        format!("{}-{ordinal}", self.set)
    }

    fn voters(&self, namespace: &Namespace) -> Vec<Voter> {
        let seen = |ordinal| namespace.voters(&self.pod(ordinal));
        namespace.wait_for("three voters", || (0..3).all(|ordinal| seen(ordinal).len() == 3));
        seen(0)
    }

    /// The steps, and what must be as it was.
    fn goes_on(&self, test: &str) {
        let namespace = Namespace::new(test);
        namespace.apply(&Source::new(&format!("tests/e2e/migrating/{}", self.path)));
        let before = self.voters(&namespace);
        namespace.wait_for("three that are Ready", || namespace.all_ready(self.selector, 3));
        namespace.put(&self.pod(0), "kept", "yes");
        let (volumes, pods) = (claims(&namespace), namespace.lives(self.selector));
        let cluster = trust_domain(&namespace, &self.pod(0));

        let ours =
            ["app.kubernetes.io/name=consul", "app.kubernetes.io/component=server", "convene.dev/reachable=true"];
        namespace.kubectl(&[&["label", "pods", "-l", self.selector, "--overwrite"], &ours[..]].concat());
        namespace.kubectl(&["delete", "statefulset", self.set, "--cascade=orphan"]);
        for service in self.in_the_way {
            namespace.kubectl(&["delete", "service", service]);
        }
        namespace.apply(&Source::new(&format!("deploy/migrating/{}", self.path)));
        // One at a time, and never fewer than two that vote.
        let fewest = Cell::new(3);
        namespace.wait_for("three other Pods that are Ready", || {
            // None are told while there is no leader.
            let seen = (0..3).map(|ordinal| namespace.voters(&self.pod(ordinal)).len()).filter(|voters| *voters > 0);
            fewest.set(fewest.get().min(seen.max().unwrap_or(3)));
            are_others(&pods, &namespace.lives(SERVERS)) && namespace.all_ready(SERVERS, 3)
        });
        assert!(fewest.get() >= 2, "{} voters", fewest.get());
        let after = self.voters(&namespace);
        assert_eq!(ids(&after), ids(&before), "the same names and node IDs");
        assert_eq!(claims(&namespace), volumes, "the same volumes");
        assert_eq!(trust_domain(&namespace, &self.pod(0)), cluster, "the same cluster");
        for voter in &after {
            assert_eq!(namespace.cluster_ip(&voter.name), Some(voter.ip), "{} advertises its Service", voter.name);
        }
        assert_eq!(namespace.value(&self.pod(2), "kept").as_deref(), Some("yes"));
        namespace.put(&self.pod(1), "after", "yes");
    }
}

/// Names and node IDs.
fn ids(voters: &[Voter]) -> Vec<(&str, &str)> {
    voters.iter().map(|one| (one.name.as_str(), one.id.as_str())).collect()
}

/// The volume of each claim.
fn claims(namespace: &Namespace) -> BTreeMap<String, String> {
    let found = namespace.get("persistentvolumeclaims").unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let claim = |one: &Value| (text(&one["metadata"]["name"]), text(&one["spec"]["volumeName"]));
    found["items"].as_array().unwrap().iter().map(claim).collect()
}

/// Which cluster it is.
fn trust_domain(namespace: &Namespace, pod: &str) -> String {
    let told = || {
        namespace.ask(pod, "/v1/connect/ca/roots").and_then(|roots| roots["TrustDomain"].as_str().map(str::to_owned))
    };
    namespace.wait_for("the cluster's ID", || told().is_some());
    told().unwrap()
}

#[test]
fn servers_of_hashicorps_chart_go_on_with_their_volumes() {
    let selector = "app=consul,release=consul,component=server";
    // The headless Service: what selects the old Pods would stay in its selector.
    let old = Old { path: "hashicorp", set: "consul-server", selector, in_the_way: &["consul-server"] };
    old.goes_on("servers_of_hashicorps_chart_go_on_with_their_volumes");
}

#[test]
fn servers_of_bitnamis_chart_go_on_with_their_volumes() {
    let selector = "app.kubernetes.io/instance=consul,app.kubernetes.io/name=consul";
    let old = Old { path: "bitnami", set: "consul", selector, in_the_way: &[] };
    old.goes_on("servers_of_bitnamis_chart_go_on_with_their_volumes");
}

#[test]
fn servers_of_a_handmade_statefulset_go_on_with_their_volumes() {
    // Headless, and in deploy/server one that has an address.
    let old = Old { path: "handmade", set: "consul", selector: "app=consul", in_the_way: &["consul"] };
    old.goes_on("servers_of_a_handmade_statefulset_go_on_with_their_volumes");
}

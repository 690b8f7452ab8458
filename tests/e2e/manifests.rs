//! Manifests that differ from `deploy/server` in one thing that people get wrong: the servers come together all the same, or
//! one line says what is wrong.

use crate::support::kubernetes::namespace::{Namespace, Source, json_patch, patch, server};
use crate::{by_dns, servers};
use serde_json::{Value, json};

/// The Services of the Pods, one each.
const OWN: &str = "consul-server-[0-9]+";

fn remove(kind: &str, name: &str, path: &str) -> Value {
    json_patch(kind, name, json!([{"op": "remove", "path": path}]))
}

/// Takes objects out.
fn without(kind: &str, name: &str) -> Value {
    patch(kind, name, json!({"$patch": "delete"}))
}

#[test]
fn a_headless_service_that_hides_who_is_not_ready_keeps_nobody_from_forming() {
    let namespace = Namespace::new("a_headless_service_that_hides_who_is_not_ready_keeps_nobody_from_forming");
    namespace.apply(&servers().with(remove("Service", "consul-server", "/spec/publishNotReadyAddresses")));
    namespace.formed(3);
}

#[test]
fn services_of_their_own_that_hide_who_is_not_ready_are_named() {
    let namespace = Namespace::new("services_of_their_own_that_hide_who_is_not_ready_are_named");
    namespace.apply(&servers().with(remove("Service", OWN, "/spec/publishNotReadyAddresses")));
    for ordinal in 0..3 {
        let service = namespace.cluster_ip(&server(ordinal)).unwrap().to_string();
        let cause = "needs publishNotReadyAddresses: true";
        namespace.line(&server(ordinal), "consul", &["does not reach its own Service address", &service, cause]);
    }
    let voters = namespace.formed(3);
    for voter in voters {
        assert_ne!(namespace.cluster_ip(&voter.name), Some(voter.ip), "{} advertises its Pod's address", voter.name);
    }
}

#[test]
fn a_service_that_is_missing_for_one_server_keeps_nobody_from_forming() {
    let namespace = Namespace::new("a_service_that_is_missing_for_one_server_keeps_nobody_from_forming");
    namespace.apply(&servers().with(without("Service", "consul-server-2")));
    let voters = namespace.formed(3);
    for voter in voters {
        let stable = namespace.cluster_ip(&voter.name);
        assert_eq!(stable, (voter.name != server(2)).then_some(voter.ip), "{}", voter.name);
    }
}

#[test]
fn a_service_name_that_names_no_service_matters_to_nobody_who_has_a_service_of_its_own() {
    let namespace = Namespace::new("a_service_name_that_names_no_service_matters_to_nobody_who_has_one");
    namespace.apply(&servers().with(patch("StatefulSet", "consul-server", json!({"spec": {"serviceName": "nobody"}}))));
    namespace.formed(3);
}

#[test]
fn a_service_name_that_names_no_service_matters_to_nobody_whom_the_api_finds() {
    let namespace = Namespace::new("a_service_name_that_names_no_service_matters_to_nobody_whom_the_api_finds");
    namespace.apply(&nameless(servers()));
    namespace.formed(3);
}

#[test]
fn a_service_name_that_names_no_service_is_told_where_nothing_else_names_the_pods() {
    let namespace = Namespace::new("a_service_name_that_names_no_service_is_told_where_nothing_else_names_the_pods");
    namespace.apply(&nameless(by_dns()));
    for ordinal in 0..3 {
        let other = server((ordinal + 1) % 3);
        let parts = ["no leader knows this agent", &other, "its name has no address", "needs a headless Service"];
        namespace.line(&server(ordinal), "consul", &parts);
    }
}

/// No headless Service, and no Service for any Pod.
fn nameless(source: Source) -> Source {
    source
        .with(patch("StatefulSet", "consul-server", json!({"spec": {"serviceName": "nobody"}})))
        .with(without("Service", OWN))
}

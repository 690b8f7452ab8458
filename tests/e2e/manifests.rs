//! Manifests that differ from `deploy/server` in one thing that people get wrong: the servers come together all the same, or
//! one line says what is wrong.

use crate::clients::by_label;
use crate::support::kubernetes::image::Images;
use crate::support::kubernetes::namespace::{Namespace, server};
use crate::support::kubernetes::secured::GOSSIP_KEY;
use crate::support::kubernetes::source::{Source, json_patch, patch};
use crate::support::kubernetes::{Given, kubectl, run};
use crate::{Folder, by_dns, servers};
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

#[test]
fn a_rolebinding_that_a_client_lacks_is_named() {
    let mut namespace = Namespace::new("a_rolebinding_that_a_client_lacks_is_named");
    let beside = namespace.beside();
    namespace.apply(&servers());
    namespace.apply_in(&beside, &by_label(&namespace));
    let of_app =
        |pod: &Value| pod["metadata"]["name"].as_str().filter(|name| name.starts_with("app-")).map(str::to_owned);
    let apps = || {
        let pods = namespace.get_in(&beside, "pods").unwrap_or_default();
        pods["items"].as_array().into_iter().flatten().filter_map(of_app).collect::<Vec<_>>()
    };
    let told = |pod: &String| {
        let log = namespace.logs_in(&beside, pod, "consul-agent");
        log.lines().any(|line| line.contains("may not list pods") && line.contains(namespace.name()))
    };
    namespace.wait_for("the missing right", || apps().len() == 2 && apps().iter().all(told));
}

in_both_folders!(a_gossip_key_that_is_none_is_named_before_the_start);

fn a_gossip_key_that_is_none_is_named_before_the_start(test: &str, folder: Folder) {
    let namespace = Namespace::secured_by(test, &[GOSSIP_KEY]);
    namespace.kubectl(&["delete", "secret", "consul-gossip-key"]);
    // Encoded twice, as when `data` is filled by hand.
    let twice = "WjAxWWEwcDRWSGd4YWxOR1dXSklkMEkzV1RsNWNrZFFRazFUVW1RMlNVbFNiRTkyVDBJd2RIRlJTVDA9";
    namespace.create_object(&json!({"apiVersion": "v1", "kind": "Secret",
        "metadata": {"name": "consul-gossip-key", "namespace": namespace.name()},
        "stringData": {"gossip.json": json!({"encrypt": twice}).to_string()}}));
    namespace.apply(&folder.source());
    let named =
        || namespace.try_kubectl(&["describe", "pod", &server(0)]).is_ok_and(|said| said.contains("is no gossip key"));
    namespace.wait_for("the mistake in the Pod's description", named);
}

#[test]
fn every_component_composes_with_every_folder_that_it_is_for() {
    let secured = ["gossip-key", "tls", "acls"];
    let all = secured.into_iter().map(|one| vec![one]).chain([secured.to_vec()]);
    for components in all {
        for (folder, more) in [
            ("server", &[][..]),
            ("server", &["dns-only", "found-by-label"]),
            ("server", &["pod-address"]),
            ("server-init", &[]),
            ("server-five", &[]),
            ("server-one", &[]),
            ("client", &[]),
            ("client", &["find-by-label"]),
            ("sidecar", &[]),
            ("sidecar", &["find-by-label"]),
        ] {
            let named: Vec<&str> = more.iter().chain(&components).copied().collect();
            let built = built(folder, &named);
            let agents = built.matches("name: consul-tuning\n        projected:").count();
            assert_eq!(agents, if folder == "sidecar" { 2 } else { 1 }, "{built}");
            for (component, source, of) in [
                ("gossip-key", "- secret:\n              name: consul-gossip-key", true),
                ("tls", "- configMap:\n              name: consul-ca", true),
                ("tls", "- secret:\n              name: consul-server-tls", folder.starts_with("server")),
                ("acls", "- secret:\n              name: consul-server-acl", folder.starts_with("server")),
                ("acls", "- secret:\n              name: consul-client-acl", !folder.starts_with("server")),
            ] {
                let wanted = if of && components.contains(&component) { agents } else { 0 };
                let found = built.matches(source).count();
                assert_eq!(found, wanted, "{folder} with {named:?}: {source}");
            }
        }
    }
}

/// What a kustomization gives that names a folder and components of `deploy/`.
fn built(folder: &str, components: &[&str]) -> String {
    let given = Given::from_env();
    let overlay = given.scratch("built-");
    let source = Source::new(&format!("deploy/{folder}"));
    let source = components.iter().fold(source, |source, one| source.component(&format!("deploy/components/{one}")));
    let text = source.overlay(overlay.path(), "ns", Images::of(&given)).to_string();
    std::fs::write(overlay.path().join("kustomization.yaml"), text).unwrap();
    run(kubectl(["kustomize"]).arg(overlay.path())).unwrap_or_else(|why| panic!("{folder} with {components:?}: {why}"))
}

/// No headless Service, and no Service for any Pod.
fn nameless(source: Source) -> Source {
    source
        .with(patch("StatefulSet", "consul-server", json!({"spec": {"serviceName": "nobody"}})))
        .with(without("Service", OWN))
}

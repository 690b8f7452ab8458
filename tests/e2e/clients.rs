//! Clients: one on every machine, and one beside each application. They find the servers out of another namespace, and no
//! application starts before its agent has joined.

use crate::servers;
use crate::stops::watched;
use crate::support::kubernetes::namespace::{Namespace, is_ready, server};
use crate::support::kubernetes::nodes;
use crate::support::kubernetes::secured::{ACLS, CLIENT, GOSSIP_KEY, TLS};
use crate::support::kubernetes::source::{Source, json_patch, patch};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// Not 8500, which other programs of the machine may have that the nodes of a test cluster share.
const HOST_PORT: u16 = 28500;

/// `deploy/client` for another namespace than the servers'.
pub fn clients(namespace: &Namespace) -> Source {
    let port =
        json!([{"op": "replace", "path": "/spec/template/spec/containers/0/ports/0/hostPort", "value": HOST_PORT}]);
    let source = Source::new("deploy/client").setting("CONVENE_DISCOVER", &by_dns(namespace));
    source.with(json_patch("DaemonSet", "consul-client", port))
}

/// `deploy/sidecar` likewise.
fn sidecars(namespace: &Namespace) -> Source {
    Source::new("deploy/sidecar").setting("CONVENE_DISCOVER", &by_dns(namespace))
}

fn by_dns(namespace: &Namespace) -> String {
    format!("dns:consul-server.{}.svc", namespace.name())
}

/// The Pods there that are not on their way out, whose names begin so.
fn pods(namespace: &Namespace, there: &str, begins: &str) -> Vec<Value> {
    let listed = namespace.get_in(there, "pods").unwrap_or_default();
    let mut pods = listed["items"].as_array().cloned().unwrap_or_default();
    pods.retain(|pod| name(pod).starts_with(begins) && pod["metadata"]["deletionTimestamp"].is_null());
    pods
}

fn name(pod: &Value) -> &str {
    pod["metadata"]["name"].as_str().unwrap()
}

/// Waits for so many Pods that are Ready, and no others.
#[track_caller]
fn ready(namespace: &Namespace, there: &str, begins: &str, count: usize) {
    namespace.wait_for(&format!("{count} {begins} Pods that are Ready"), || {
        let pods = pods(namespace, there, begins);
        pods.len() == count && pods.iter().all(is_ready)
    });
}

/// The node IDs in the catalog, by name.
pub fn catalog(namespace: &Namespace) -> BTreeMap<String, String> {
    let listed = namespace.ask(&server(0), "/v1/catalog/nodes").unwrap_or_default();
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let node = |one: &Value| Some((text(&one["Node"])?, text(&one["ID"])?));
    listed.as_array().into_iter().flatten().filter_map(node).collect()
}

/// Asserts of every application's Pod that it began after its gate, which ended well, and that it never failed: its first question
/// is one that needs a server.
fn began_after_the_gate(namespace: &Namespace, there: &str) {
    for pod in pods(namespace, there, "app-") {
        let status = |kind: &str, name: &str| {
            let all = pod["status"][kind].as_array().cloned().unwrap_or_default();
            all.into_iter().find(|status| status["name"] == name).unwrap_or_else(|| panic!("{pod:#}"))
        };
        let gate = status("initContainerStatuses", "consul-joined")["state"]["terminated"].clone();
        let app = status("containerStatuses", "app");
        assert_eq!(gate["exitCode"], 0, "{gate}");
        let began = app["state"]["running"]["startedAt"].as_str().unwrap_or_else(|| panic!("{app}"));
        assert!(gate["finishedAt"].as_str().unwrap() <= began, "{gate} {app}");
        assert_eq!(app["restartCount"], 0, "{app}");
    }
}

#[test]
fn clients_on_every_machine_are_alive_and_answer_at_its_port_and_return_as_the_same_nodes() {
    let mut namespace =
        Namespace::new("clients_on_every_machine_are_alive_and_answer_at_its_port_and_return_as_the_same_nodes");
    let beside = namespace.beside_at("privileged");
    namespace.apply(&servers());
    namespace.formed(3);
    namespace.apply_in(&beside, &clients(&namespace));
    let machines = nodes();
    let alive = || {
        ready(&namespace, &beside, "consul-client-", machines.len());
        let joined = |machine: &String| namespace.members(&server(0)).get(machine) == Some(&1);
        namespace.wait_for("clients that are alive", || machines.iter().all(joined));
        let known = || {
            let catalog = catalog(&namespace);
            machines.iter().filter_map(|machine| Some((machine.clone(), catalog.get(machine)?.clone()))).collect()
        };
        namespace.wait_for("clients in the catalog", || {
            let known: BTreeMap<String, String> = known();
            known.len() == machines.len()
        });
        known()
    };
    let first: BTreeMap<String, String> = alive();
    let ids: BTreeSet<&String> = first.values().collect();
    assert_eq!(ids.len(), machines.len(), "no two agents share an ID: {first:?}");
    for pod in pods(&namespace, &beside, "consul-client-") {
        let scheme = if namespace.secured().has(TLS) { "https" } else { "http" };
        let machine = pod["status"]["hostIP"].as_str().unwrap();
        // Its certificate is of the authority that Consul itself is.
        let ask = format!(
            "CONSUL_HTTP_SSL_VERIFY=false consul catalog datacenters -http-addr={scheme}://{machine}:{HOST_PORT}"
        );
        assert_eq!(namespace.exec(&server(0), &["sh", "-c", &ask]).trim(), "dc1");
    }
    namespace.delete_pods_in(&beside, &["--all"]);
    assert_eq!(alive(), first, "without a volume, and at other addresses");
}

#[test]
fn an_app_of_another_namespace_starts_only_after_its_agent_has_joined() {
    let mut namespace = Namespace::new("an_app_of_another_namespace_starts_only_after_its_agent_has_joined");
    let beside = namespace.beside();
    // Before there is any server.
    namespace.apply_in(&beside, &sidecars(&namespace));
    namespace.wait_for("agents that wait", || {
        let pods = pods(&namespace, &beside, "app-");
        let waits = |pod| namespace.logs_in(&beside, name(pod), "consul-agent").contains("rule 1: no server is known");
        pods.len() == 2 && pods.iter().all(waits)
    });
    for pod in pods(&namespace, &beside, "app-") {
        let app = &pod["status"]["containerStatuses"][0];
        assert_eq!(app["state"]["waiting"]["reason"], "PodInitializing", "{app}");
    }
    namespace.apply(&servers());
    namespace.formed(3);
    ready(&namespace, &beside, "app-", 2);
    began_after_the_gate(&namespace, &beside);
    let rollouts = std::env::var("CONVENE_REPEAT").ok().and_then(|times| times.parse().ok()).unwrap_or(3);
    for rollout in 1..=rollouts {
        namespace.kubectl(&["-n", &beside, "rollout", "restart", "deployment", "app"]);
        namespace.kubectl(&["-n", &beside, "rollout", "status", "deployment", "app", "--timeout=250s"]);
        ready(&namespace, &beside, "app-", 2);
        began_after_the_gate(&namespace, &beside);
        println!("rollout {rollout} of {rollouts}");
    }
}

#[test]
fn a_job_ends_although_its_agent_is_a_sidecar_and_that_one_leaves() {
    let mut namespace = Namespace::new("a_job_ends_although_its_agent_is_a_sidecar_and_that_one_leaves");
    let beside = namespace.beside();
    namespace.apply(&servers());
    namespace.formed(3);
    namespace.apply_in(&beside, &sidecars(&namespace));
    namespace.kubectl(&["-n", &beside, "wait", "--for=condition=complete", "job/job", "--timeout=250s"]);
    let pods = pods(&namespace, &beside, "job-");
    assert_eq!(pods.len(), 1, "it did not fail before");
    let node = name(&pods[0]).to_owned();
    namespace.wait_for("its leave", || namespace.members(&server(0)).get(&node) == Some(&3));
    namespace.wait_for("no node of it", || !catalog(&namespace).contains_key(&node));
}

#[test]
fn an_app_finds_the_servers_by_their_label_with_a_rolebinding_there() {
    let mut namespace = Namespace::new("an_app_finds_the_servers_by_their_label_with_a_rolebinding_there");
    let beside = namespace.beside();
    let group =
        json!([{"op": "replace", "path": "/subjects/0/name", "value": format!("system:serviceaccounts:{beside}")}]);
    let found = servers().component("deploy/components/found-by-label");
    namespace.apply(&found.with(json_patch("RoleBinding", "consul-server-found", group)));
    namespace.formed(3);
    namespace.apply_in(&beside, &by_label(&namespace));
    ready(&namespace, &beside, "app-", 2);
    began_after_the_gate(&namespace, &beside);
}

/// `deploy/sidecar` by the servers' label instead of DNS.
pub fn by_label(namespace: &Namespace) -> Source {
    let labels = "app.kubernetes.io/name=consul,app.kubernetes.io/component=server";
    let selector = format!("provider=k8s label_selector=\"{labels}\" namespace={}", namespace.name());
    let discover = patch("ConfigMap", "consul-client-convene", json!({"data": {"CONVENE_DISCOVER": selector}}));
    Source::new("deploy/sidecar").component("deploy/components/find-by-label").with(discover)
}

#[test]
fn a_wrong_gossip_key_halts_the_rollout_with_the_reason_in_the_pods_description() {
    let test = "a_wrong_gossip_key_halts_the_rollout_with_the_reason_in_the_pods_description";
    let mut namespace = Namespace::secured_by(test, &[GOSSIP_KEY]);
    let beside = namespace.beside();
    namespace.apply(&servers());
    namespace.formed(3);
    // Shorter than the manifest's, and longer than a start.
    let deadline = patch("Deployment", "app", json!({"spec": {"progressDeadlineSeconds": 45}}));
    let wait = json!([{"op": "replace", "path": "/spec/template/spec/initContainers/2/args/2", "value": "--wait=15s"}]);
    let source = sidecars(&namespace).with(deadline).with(json_patch("Deployment", "app", wait));
    namespace.apply_in(&beside, &source);
    ready(&namespace, &beside, "app-", 2);
    let before: BTreeSet<String> = pods(&namespace, &beside, "app-").iter().map(|pod| name(pod).to_owned()).collect();

    namespace.kubectl(&["-n", &beside, "delete", "secret", "consul-gossip-key"]);
    let other = json!({"encrypt": "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="}).to_string();
    namespace.create_object(&json!({"apiVersion": "v1", "kind": "Secret", "stringData": {"gossip.json": other},
        "metadata": {"name": "consul-gossip-key", "namespace": beside}}));
    namespace.kubectl(&["-n", &beside, "rollout", "restart", "deployment", "app"]);
    let status = namespace.try_kubectl(&["-n", &beside, "rollout", "status", "deployment", "app", "--timeout=250s"]);
    assert!(status.as_ref().is_err_and(|why| why.contains("exceeded its progress deadline")), "{status:?}");

    let (old, new): (Vec<Value>, Vec<Value>) =
        pods(&namespace, &beside, "app-").into_iter().partition(|pod| before.contains(name(pod)));
    assert!(old.len() == 2 && old.iter().all(is_ready), "those that run go on");
    assert_eq!(new.len(), 1);
    let described = || namespace.kubectl(&["-n", &beside, "describe", "pod", name(&new[0])]);
    namespace.wait_for("the reason", || described().contains("gossip key differs"));
    assert_eq!(new[0]["status"]["containerStatuses"][0]["state"]["waiting"]["reason"], "PodInitializing");
}

macro_rules! secured {
    ($($test:ident: $folder:expr, [$($component:expr),+];)+) => {$(
        #[test]
        fn $test() {
            form_and_restart(stringify!($test), $folder, &[$($component),+]);
        }
    )+};
}

secured! {
    servers_with_a_gossip_key_form_and_restart_one_by_one: crate::SERVER, [GOSSIP_KEY];
    servers_over_tls_form_and_restart_one_by_one: crate::SERVER, [TLS];
    servers_with_acls_form_and_restart_one_by_one: crate::SERVER, [ACLS];
    servers_with_key_tls_and_acls_form_and_restart_one_by_one: crate::SERVER, [GOSSIP_KEY, TLS, ACLS];
    servers_with_key_tls_and_acls_beside_consul_as_pid_1_form_and_restart_one_by_one: crate::SERVER_INIT, [GOSSIP_KEY, TLS, ACLS];
}

fn form_and_restart(test: &str, folder: crate::Folder, components: &[&'static str]) {
    let namespace = Namespace::secured_by(test, components);
    namespace.apply(&folder.source());
    let voters = namespace.formed(3);
    for ordinal in 0..3 {
        let plain = namespace.get(&format!("pods/{}:8500/proxy/v1/status/leader", server(ordinal)));
        assert_eq!(plain.is_none(), components.contains(&TLS), "server {ordinal} answers plain HTTP: {plain:?}");
        let own = namespace.ask(&server(ordinal), "/v1/agent/self").unwrap();
        let encrypted = own["Stats"]["serf_lan"]["encrypted"] == "true";
        assert_eq!(encrypted, components.contains(&GOSSIP_KEY), "server {ordinal}: {}", own["Stats"]["serf_lan"]);
        let stranger = namespace.try_kubectl(&[
            "exec",
            &server(ordinal),
            "--",
            "sh",
            "-c",
            "CONSUL_HTTP_TOKEN_FILE= consul kv put stranger yes",
        ]);
        assert_eq!(stranger.is_err(), components.contains(&ACLS), "server {ordinal}: {stranger:?}");
        namespace.wait_for("a view by the token", || {
            let checked = namespace.exec(&server(ordinal), &["/convene/convene", "check", "ready"]);
            checked.contains("voter") && !checked.contains("unknown")
        });
    }
    let seen = watched(&namespace, 3, || {
        namespace.kubectl(&["rollout", "restart", "statefulset", "consul-server"]);
        namespace.kubectl(&["rollout", "status", "statefulset", "consul-server", "--timeout=250s"]);
        namespace.formed(3);
    });
    assert_eq!((seen.fewest_voters, seen.most_away), (3, 1), "{seen:?}");
    assert_eq!(namespace.formed(3), voters, "the same names, node IDs and addresses");
    let events = namespace.get("events").unwrap_or_default();
    // On a busy machine an election may be quicker, which is told as well; what the tokens lack is told in these words.
    let denied = |event: &&Value| {
        let said = event["message"].as_str().unwrap_or_default();
        said.contains("did not hand leadership over: the token may not")
            || said.contains("Consul does not know our token")
    };
    assert_eq!(events["items"].as_array().into_iter().flatten().find(denied), None);
}

#[test]
fn clients_and_apps_join_servers_with_key_tls_and_acls_and_may_do_nothing_to_these() {
    let test = "clients_and_apps_join_servers_with_key_tls_and_acls_and_may_do_nothing_to_these";
    let mut namespace = Namespace::secured_by(test, &[GOSSIP_KEY, TLS, ACLS]);
    let beside = namespace.beside_at("privileged");
    namespace.apply(&servers());
    let voters = namespace.formed(3);
    namespace.apply_in(&beside, &clients(&namespace));
    namespace.apply_in(&beside, &sidecars(&namespace));
    ready(&namespace, &beside, "consul-client-", nodes().len());
    ready(&namespace, &beside, "app-", 2);
    began_after_the_gate(&namespace, &beside);
    for pod in pods(&namespace, &beside, "consul-client-") {
        let words = ["-n", &beside, "exec", name(&pod), "-c", "consul", "--", "/convene/convene", "discover"];
        let seen = namespace.kubectl(&words);
        assert!(seen.contains(" formed: ") && !seen.contains(" unknown: "), "over verified TLS: {seen}");
    }
    let known = |pod: &Value| catalog(&namespace).contains_key(name(pod));
    namespace.wait_for("them in the catalog", || pods(&namespace, &beside, "app-").iter().all(known));
    for word in [&["consul", "leave"][..], &["consul", "force-leave", "consul-server-1"]] {
        let token = format!("-token={CLIENT}");
        let mut words = vec!["exec", "consul-server-0", "--"];
        words.extend(&word[..2]);
        words.push(&token);
        words.extend(&word[2..]);
        let refused = namespace.try_kubectl(&words);
        assert!(refused.as_ref().is_err_and(|why| why.contains("Permission denied")), "{refused:?}");
    }
    let app = name(&pods(&namespace, &beside, "app-")[0]).to_owned();
    namespace.delete_pods_in(&beside, &[&app]);
    namespace.wait_for("its leave", || namespace.members(&server(0)).get(&app) == Some(&3));
    assert_eq!(namespace.formed(3), voters);
}

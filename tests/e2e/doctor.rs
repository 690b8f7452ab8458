//! `convene doctor` on a real Kubernetes: nothing is found in what `deploy/` makes, and each mend mends when a shell gets it as
//! it is printed.

use crate::support::kubernetes::Given;
use crate::support::kubernetes::namespace::{Namespace, server};
use crate::support::kubernetes::source::{Source, json_patch, patch};
use crate::{SERVER, SERVER_INIT, anywhere, by_dns, servers};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::process::Command;
use std::time::Instant;

/// What it says from outside, as JSON, and the exit code.
fn outside(namespace: &Namespace) -> (Value, Option<i32>) {
    let mut doctor = Command::new(Given::from_env().binary);
    let begun = Instant::now();
    let output = doctor.args(["doctor", "--output=json", "--namespace", namespace.name()]).output().unwrap();
    println!("doctor from outside took {} ms", begun.elapsed().as_millis());
    let report = serde_json::from_slice(&output.stdout);
    (report.unwrap_or_else(|_| panic!("{output:?}")), output.status.code())
}

fn checks(report: &Value) -> BTreeSet<String> {
    let findings = report["findings"].as_array().into_iter().flatten();
    findings.map(|finding| finding["check"].as_str().unwrap().to_owned()).collect()
}

fn clean_outside(namespace: &Namespace) {
    let (report, code) = outside(namespace);
    assert_eq!((&report["findings"], code), (&json!([]), Some(0)), "{report:#}");
    for check in ["budget-missing", "headless-missing", "pod-not-ready"] {
        assert!(report["looked"].as_array().unwrap().contains(&json!(check)), "{check}: {report:#}");
    }
}

fn clean_inside(namespace: &Namespace) {
    let begun = Instant::now();
    let words = ["exec", &server(0), "-c", "consul", "--", "/convene/convene", "doctor", "--output=json"];
    let said = namespace.kubectl(&words);
    println!("doctor from inside took {} ms with kubectl exec", begun.elapsed().as_millis());
    let report: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(report["findings"], json!([]), "{report:#}");
    assert!(report["looked"].as_array().unwrap().contains(&json!("role")), "{report:#}");
    let budget = report["not_looked_at"].as_array().unwrap().iter().any(|one| one["what"] == "the PodDisruptionBudget");
    assert!(budget, "the servers' Role has no right to it: {report:#}");
}

fn is_clean(test: &str, source: &Source, count: usize) {
    let namespace = Namespace::new(test);
    namespace.apply(&source.clone().requesting());
    namespace.formed(count);
    clean_outside(&namespace);
    clean_inside(&namespace);
}

#[test]
fn three_servers_are_clean() {
    is_clean("three_servers_are_clean", &SERVER.source().component("deploy/components/found-by-label"), 3);
}

#[test]
fn servers_with_consul_as_pid_1_are_clean() {
    is_clean("servers_with_consul_as_pid_1_are_clean", &SERVER_INIT.source(), 3);
}

#[test]
fn one_server_is_clean() {
    is_clean("one_server_is_clean", &Source::new("deploy/server-one"), 1);
}

#[test]
fn servers_at_their_pods_addresses_are_clean() {
    let source = servers().component("deploy/components/pod-address");
    is_clean("servers_at_their_pods_addresses_are_clean", &source, 3);
}

#[test]
fn servers_without_the_kubernetes_api_are_clean() {
    let namespace = Namespace::new("servers_without_the_kubernetes_api_are_clean");
    namespace.apply(&by_dns().requesting());
    namespace.formed(3);
    clean_outside(&namespace);
}

#[test]
fn of_five_servers_on_too_few_machines_nothing_else_is_found() {
    let namespace = Namespace::new("of_five_servers_on_too_few_machines_nothing_else_is_found");
    namespace.apply(&Source::new("deploy/server-five").with(anywhere()).requesting());
    namespace.formed(5);
    let (report, code) = outside(&namespace);
    // Where they are is the scheduler's to choose.
    let found: BTreeSet<String> = checks(&report).into_iter().filter(|check| check != "same-machine").collect();
    assert_eq!((found, code), (BTreeSet::from(["anti-affinity".to_owned()]), Some(1)), "{report:#}");
}

/// Wrong in nearly all that can be: each of these is a manifest that somebody has written.
fn all_wrong() -> Source {
    let remove = |path: &str| json!({"op": "remove", "path": path});
    let replace = |path: &str, value: Value| json!({"op": "add", "path": path, "value": value});
    let agent = |path: &str| format!("/spec/template/spec/containers/0/{path}");
    let set = json!([
        replace("/spec/podManagementPolicy", json!("OrderedReady")),
        replace("/spec/persistentVolumeClaimRetentionPolicy", json!({"whenScaled": "Delete", "whenDeleted": "Retain"})),
        replace("/spec/template/spec/terminationGracePeriodSeconds", json!(10)),
        remove("/spec/template/spec/affinity"),
        replace(
            &agent("startupProbe"),
            json!({"exec": {"command": ["/convene/convene", "check", "live"]}, "timeoutSeconds": 5})
        ),
        replace(&agent("livenessProbe/exec/command/2"), json!("ready")),
        replace(&agent("readinessProbe/exec/command/2"), json!("joined")),
        replace(&agent("readinessProbe/timeoutSeconds"), json!(1)),
        replace(&agent("resources"), json!({"limits": {"cpu": "400m"}})),
    ]);
    let ports =
        json!([{"name": "server", "port": 8300}, {"name": "serf-lan", "port": 8301}, {"name": "http", "port": 8500}]);
    let every = json!({"app.kubernetes.io/component": "server"});
    servers()
        .with(json_patch("StatefulSet", "consul-server", set))
        .with(patch("Service", "consul-server-0", json!({"$patch": "delete"})))
        .with(json_patch("Service", "consul-server-1", json!([replace("/spec/selector", every)])))
        .with(json_patch(
            "Service",
            "consul-server-2",
            json!([
                replace("/spec/ports", ports),
                remove("/spec/publishNotReadyAddresses"),
                remove("/spec/selector/convene.dev~1reachable")
            ]),
        ))
        .with(json_patch(
            "Service",
            "consul-server",
            json!([remove("/spec/clusterIP"), remove("/spec/publishNotReadyAddresses")]),
        ))
        .with(json_patch(
            "PodDisruptionBudget",
            "consul-server",
            json!([replace("/spec/maxUnavailable", json!(2)), remove("/spec/unhealthyPodEvictionPolicy")]),
        ))
        .with(json_patch("Role", "consul-server", json!([remove("/rules/4"), remove("/rules/1"), remove("/rules/0")])))
}

#[test]
fn every_mend_mends_as_it_is_printed() {
    let namespace = Namespace::new("every_mend_mends_as_it_is_printed");
    namespace.apply(&all_wrong());
    let wanted: BTreeSet<String> = [
        "anti-affinity",
        "budget-loose",
        "budget-unhealthy",
        "claims-deleted",
        "cpu-limit",
        "grace-period",
        "headless-address",
        "liveness-probe",
        "memory-request",
        "ordered-start",
        "probe-timeout",
        "readiness-probe",
        "role",
        "service-label",
        "service-missing",
        "service-not-ready",
        "service-ports",
        "service-selector",
        "startup-probe",
    ]
    .map(str::to_owned)
    .into();
    let (report, code) = outside(&namespace);
    assert!(wanted.is_subset(&checks(&report)) && code == Some(1), "{report:#}");
    // As a person does: all of them in a row, each by the shell; some of them only look.
    let scratch = Given::from_env().scratch("mends-");
    for finding in report["findings"].as_array().unwrap() {
        let mend = finding["mend"].as_str().unwrap();
        let output = Command::new("sh").args(["-ec", mend]).current_dir(scratch.path()).output().unwrap();
        // At a Pod that just starts, or is gone by an earlier mend.
        let check = finding["check"].as_str().unwrap();
        let looks = check.starts_with("pod-") || check == "agent-silent";
        assert!(looks || output.status.success(), "{finding:#}\n{output:?}");
    }
    // What an agent that just returned tells of is over in a moment: that it lags, or that a leader has yet to hear of it.
    namespace.formed(3);
    namespace.wait_for("nothing to be found, and all looked at", || {
        let (report, code) = outside(&namespace);
        code == Some(0) && report["looked"].as_array().unwrap().contains(&json!("pod-not-ready"))
    });
}

//! Does `doctor` beside an agent find what is wrong with real Consul servers, and nothing with healthy ones?

// A panic is how a test fails; clippy's own exception for tests covers `#[test]` functions only.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "support/mod.rs"]
mod support;

use convene::doctor::finding::Report;
use convene::doctor::tls::{self, Filed, Seen, Shown};
use nix::sys::signal::Signal;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::{Value, json};
use std::fs;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};
use support::cluster::{Cluster, request};
use support::config_map::status;
use support::http::{Call, Reply, ScriptedHttp};
use support::program::Ended;
use support::skip::needs_consul;

const ALL: [u8; 3] = [0, 1, 2];
/// Consul's own default would remove who is away, and it need not look at a new server for 10 s.
const AUTOPILOT: &str = "-hcl=autopilot { min_quorum = 3 server_stabilization_time = \"200ms\" }";
const KEY: &str = "+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/s=";
const OTHER: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
/// What is found is about the machine that the test runs on.
const OF_THIS_MACHINE: [&str; 2] = ["data-space", "data-fsync"];

/// What `doctor` said.
#[derive(Debug)]
struct Doctor {
    findings: Vec<Value>,
    report: Value,
}

impl Doctor {
    fn called(mut call: Command) -> Self {
        let ended = Ended::of(call.output().unwrap());
        let report: Value = serde_json::from_str(&ended.stdout).unwrap_or_else(|_| panic!("{ended:?}"));
        let findings = report["findings"].as_array().unwrap().clone();
        assert_eq!(ended.code, i32::from(!findings.is_empty()), "{ended:?}");
        let findings =
            findings.into_iter().filter(|found| !OF_THIS_MACHINE.iter().any(|check| found["check"] == *check));
        Self { findings: findings.collect(), report }
    }

    fn beside(cluster: &Cluster, ordinal: u8) -> Self {
        Self::called(call(cluster, ordinal))
    }

    fn checks(&self) -> Vec<&str> {
        self.findings.iter().map(|found| found["check"].as_str().unwrap()).collect()
    }

    /// The only finding is this one.
    #[track_caller]
    fn finds(&self, check: &str, subject: &str, part: &str) {
        assert_eq!(self.checks(), [check], "{self:#?}");
        let found = &self.findings[0];
        assert!(found["subject"] == subject && found["what"].as_str().unwrap().contains(part), "{found:#}");
    }

    #[track_caller]
    fn looked_at(&self, checks: &[&str]) {
        let looked: Vec<&str> =
            self.report["looked"].as_array().unwrap().iter().map(|one| one.as_str().unwrap()).collect();
        for check in checks {
            assert!(looked.contains(check), "{check} is not in {looked:?}");
        }
    }
}

fn call(cluster: &Cluster, ordinal: u8) -> Command {
    cluster.surveying(ordinal, &["doctor", "--output=json", "--replicas=3"])
}

fn started(cluster: Cluster) -> Cluster {
    let mut cluster = cluster.with(AUTOPILOT);
    cluster.publish_all();
    cluster.start_all(&[]);
    cluster.wait_formed(&ALL);
    cluster
}

fn three(test: &str) -> Option<Cluster> {
    Some(Cluster::new(env!("CARGO_BIN_EXE_convene"), needs_consul(test)?, 3))
}

#[test]
fn healthy_servers_have_no_finding_and_a_dead_voter_is_one() {
    let Some(cluster) = three("healthy_servers_have_no_finding_and_a_dead_voter_is_one") else { return };
    let key = cluster.folder().join("gossip.json");
    fs::write(&key, json!({"encrypt": KEY}).to_string()).unwrap();
    let mut cluster = started(cluster.with(&format!("-config-file={}", key.display())));
    for ordinal in ALL {
        let doctor = Doctor::beside(&cluster, ordinal);
        assert!(doctor.findings.is_empty(), "{doctor:#?}");
        doctor.looked_at(&OF_AGENTS);
        doctor.looked_at(&[
            "hairpin",
            "server-ports",
            "rejoin-age",
            "token-rights",
            "data-folder",
            "data-space",
            "data-fsync",
            "peers-json",
        ]);
    }
    // What is wrong with one server is told by its name.
    let service = json!({"Name": "web", "ID": "web-1"}).to_string();
    assert_eq!(cluster.put(1, "/v1/agent/service/register", &service), Some(200));
    Doctor::beside(&cluster, 0).finds("services-at-servers", "server consul-server-1", "web-1");
    assert_eq!(cluster.put(1, "/v1/agent/service/deregister/web-1", ""), Some(200));
    let raft = cluster.data(1).join("raft");
    fs::write(raft.join("peers.json"), "[]").unwrap();
    Doctor::beside(&cluster, 1).finds("peers-json", "server consul-server-1", "peers.json is there");
    fs::remove_file(raft.join("peers.json")).unwrap();
    let quorum = json!({"CleanupDeadServers": true, "MinQuorum": 0, "LastContactThreshold": "200ms", "MaxTrailingLogs": 250, "ServerStabilizationTime": "200ms"});
    assert_eq!(cluster.put(0, "/v1/operator/autopilot/configuration", &quorum.to_string()), Some(200));
    Doctor::beside(&cluster, 2).finds("autopilot-min-quorum", "the servers", "while 0 others stay");
    let mut back = quorum;
    back["MinQuorum"] = json!(3);
    assert_eq!(cluster.put(0, "/v1/operator/autopilot/configuration", &back.to_string()), Some(200));
    let leader = cluster.leading(0).unwrap();
    let dead = ALL.into_iter().find(|ordinal| *ordinal != leader).unwrap();
    cluster.kill(dead);
    cluster.wait_for("its failure", || cluster.member(leader, dead) == Some(4));
    let unhealthy = || {
        let state = cluster.get(leader, "/v1/operator/autopilot/state").unwrap_or_default();
        let servers = state["Servers"].as_object().cloned().unwrap_or_default();
        servers.values().any(|server| server["Name"] == format!("consul-server-{dead}") && server["Healthy"] == false)
    };
    cluster.wait_for("autopilot's view of it", unhealthy);
    let name = format!("server consul-server-{dead}");
    Doctor::beside(&cluster, leader).finds("failed-servers", &name, "does not answer, and it is a voter");
}

#[test]
fn a_token_without_operator_read_is_told_with_the_calls_that_fail() {
    let Some(cluster) = three("a_token_without_operator_read_is_told_with_the_calls_that_fail") else { return };
    let cluster = started(cluster.denying());
    let (weak, whole) = ("7e57ab1e-0000-4000-8000-0000000000b1", "7e57ab1e-0000-4000-8000-0000000000b2");
    cluster.grant(
        weak,
        "weak",
        "agent_prefix \"consul-server-\" { policy = \"write\" } node_prefix \"\" { policy = \"read\" }",
    );
    let rules = fs::read_to_string(format!("{}/deploy/policies/server.hcl", env!("CARGO_MANIFEST_DIR"))).unwrap();
    cluster.grant(whole, "server", &rules);
    let with = |token: Option<&str>| {
        let mut call = call(&cluster, 1);
        call.envs(token.map(|token| ("CONSUL_HTTP_TOKEN", token)));
        Doctor::called(call)
    };
    let lacking = "lacks operator:read and operator:write: GET /v1/operator/raft/configuration";
    with(Some(weak)).finds("token-rights", "server consul-server-1", lacking);
    assert!(with(Some(weak)).report["not_looked_at"].to_string().contains("operator = \\\"read\\\""));
    // The server's own policy is enough.
    let doctor = with(Some(whole));
    assert!(doctor.findings.is_empty(), "{doctor:#?}");
    doctor.looked_at(&["token-rights", "raft-lag", "raft-stale-peer", "agent-settings"]);
    with(Some("7e57ab1e-0000-4000-8000-0000000000bb")).finds(
        "token-rights",
        "server consul-server-1",
        "does not know the token",
    );
    // Without any nothing is wrong, and what everybody may ask for is looked at.
    let doctor = with(None);
    assert!(doctor.findings.is_empty(), "{doctor:#?}");
    doctor.looked_at(&["raft-leader", "one-cluster", "raft-voters", "hairpin", "data-folder"]);
    let unseen = doctor.report["not_looked_at"].to_string();
    assert!(unseen.contains("what needs a token") && unseen.contains("the raft configuration"), "{unseen}");
    assert!(!doctor.report.to_string().contains(whole));
}

#[test]
fn a_certificate_that_ends_soon_or_has_another_name_is_told() {
    let Some(cluster) = three("a_certificate_that_ends_soon_or_has_another_name_is_told") else { return };
    let cluster = started(cluster.over_tls().with("-hcl=tls { internal_rpc { verify_server_hostname = true } }"));
    let doctor = Doctor::beside(&cluster, 0);
    assert!(doctor.findings.is_empty(), "{doctor:#?}");
    doctor.looked_at(&["tls-names", "tls-expiry", "raft-lag"]);
    let mut elsewhere = call(&cluster, 0);
    elsewhere.env("CONVENE_DATACENTER", "dc9");
    let doctor = Doctor::called(elsewhere);
    let names = |found: &&Value| found["check"] == "tls-names";
    // Two other servers, each at its API and at its server port.
    assert_eq!(doctor.findings.iter().filter(names).count(), 4, "{doctor:#?}");
    let what = doctor.findings.iter().find(names).unwrap()["what"].as_str().unwrap();
    assert!(
        what.contains("has not the name server.dc9.consul (it has ") && what.contains("server.dc1.consul"),
        "{what}"
    );
    // A new certificate, which is good for a day: each server shows it after a reload.
    let mut make = Command::new(needs_consul("a certificate").unwrap());
    make.args(["tls", "cert", "create", "-server", "-days=1"]).current_dir(cluster.folder());
    assert!(make.output().unwrap().status.success());
    for part in ["", "-key"] {
        let file = |number: u8| cluster.folder().join(format!("dc1-server-consul-{number}{part}.pem"));
        fs::copy(file(1), file(0)).unwrap();
    }
    ALL.into_iter().for_each(|ordinal| cluster.signal(ordinal, Signal::SIGHUP));
    let shown = || {
        let doctor = Doctor::beside(&cluster, 0);
        doctor.findings.iter().filter(|found| found["what"].as_str().unwrap().contains("it shows at")).count() == 5
    };
    cluster.wait_for("the new certificates", shown);
    let doctor = Doctor::beside(&cluster, 0);
    assert!(doctor.checks().iter().all(|check| *check == "tls-expiry"), "{doctor:#?}");
    let what: String = doctor.findings.iter().map(|found| found["what"].as_str().unwrap()).collect();
    assert!(what.contains("Z, in 2") && what.contains("a certificate in "), "{what}");
}

#[test]
fn a_certificate_is_judged_by_its_days_and_its_names() {
    const DAY: u64 = 24 * 3600;
    let Some(consul) = needs_consul("a_certificate_is_judged_by_its_days_and_its_names") else { return };
    let folder = tempfile::tempdir().unwrap();
    for words in [&["ca", "create", "-days=400"][..], &["cert", "create", "-server", "-days=100"]] {
        let made = Command::new(&consul).arg("tls").args(words).current_dir(folder.path()).output().unwrap();
        assert!(made.status.success(), "{made:?}");
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let path = folder.path().join("dc1-server-consul-0.pem");
    let certificate = CertificateDer::from_pem_file(&path).unwrap();
    let judged = |now: u64, asked_for: &str| {
        let address = "10.0.0.1:8501".parse().unwrap();
        let shown = Shown {
            name: "consul-server-1".to_owned(),
            address,
            asked_for: Some(asked_for.to_owned()),
            certificate: Ok(certificate.clone()),
        };
        let filed = [&path, &folder.path().join("consul-agent-ca.pem")].map(|path| Filed {
            path: path.clone(),
            certificates: Ok(vec![CertificateDer::from_pem_file(path).unwrap()]),
        });
        let seen = Seen { shown: vec![shown], filed: filed.into(), name: "consul-server-0".to_owned(), now };
        let mut report = Report::default();
        tls::check(&seen, &mut report);
        let all = report.findings.into_iter();
        all.map(|found| format!("{}: {}: {}", found.check, found.subject, found.what)).collect::<Vec<_>>()
    };
    let name = "server.dc1.consul";
    for (at, asked_for, parts) in [
        (now + DAY, name, &[][..]),
        (now + DAY, "127.0.0.1", &[]),
        (now + 69 * DAY, name, &[]),
        (
            now + 71 * DAY,
            name,
            &[
                "consul-server-1: the certificate that it shows at 10.0.0.1:8501 expires on ",
                "dc1-server-consul-0.pem expires on 20",
            ],
        ),
        (now + 101 * DAY, name, &["it shows at 10.0.0.1:8501 expired on ", "server-consul-0.pem expired on "]),
        (now + 401 * DAY, name, &["expired on ", "expired on ", "consul-agent-ca.pem expired on "]),
        (now - DAY, name, &["is a clock wrong?", "is a clock wrong?", "is a clock wrong?"]),
        (
            now + DAY,
            "server.dc2.consul",
            &[
                "tls-names: server consul-server-1: the certificate that it shows at 10.0.0.1:8501 has not the name server.dc2.consul",
            ],
        ),
        (now + DAY, "10.0.0.1", &["tls-names"]),
    ] {
        let found = judged(at, asked_for);
        assert_eq!(found.len(), parts.len(), "{found:#?}");
        for (found, part) in found.iter().zip(parts) {
            assert!(found.contains(part), "{part:?} is not in {found:?}");
        }
    }
}

#[test]
fn a_keyring_that_differs_from_the_given_key_is_told() {
    let test = "a_keyring_that_differs_from_the_given_key_is_told";
    let Some(consul) = needs_consul(test) else { return };
    let mut cluster = Cluster::new(env!("CARGO_BIN_EXE_convene"), consul, 1);
    let file = cluster.folder().join("gossip.json");
    fs::write(&file, json!({"encrypt": KEY}).to_string()).unwrap();
    cluster = cluster.with(&format!("-config-file={}", file.display()));
    cluster.publish_all();
    let doctor = |cluster: &Cluster| Doctor::called(cluster.surveying(0, &["doctor", "--output=json", "--replicas=1"]));
    for (key, check) in [(KEY, None), (OTHER, Some("gossip-key"))] {
        fs::write(&file, json!({"encrypt": key}).to_string()).unwrap();
        cluster.start(0, &[]);
        cluster.wait_formed(&[0]);
        let doctor = doctor(&cluster);
        match check {
            None => assert!(doctor.findings.is_empty(), "{doctor:#?}"),
            Some(check) => doctor.finds(check, "server consul-server-0", "serf/local.keyring"),
        }
        assert!(!doctor.report.to_string().contains(&key[..8]));
        cluster.signal(0, Signal::SIGTERM);
        cluster.wait(0);
    }
    // Nobody runs any more.
    let doctor = doctor(&cluster);
    assert!(doctor.checks().contains(&"agent-silent"), "{doctor:#?}");
}

#[test]
fn what_cmd_says_and_how_long_a_volume_saw_no_agent_is_told() {
    let test = "what_cmd_says_and_how_long_a_volume_saw_no_agent_is_told";
    let Some(consul) = needs_consul(test) else { return };
    let mut cluster = Cluster::new(env!("CARGO_BIN_EXE_convene"), consul, 1).with("-hcl=rejoin_after_leave = false");
    let doctor = |cluster: &Cluster| Doctor::called(cluster.surveying(0, &["doctor", "--output=json", "--replicas=1"]));
    // An agent that nobody started by convene, as one beside `init` may be.
    cluster.start_plain(0);
    cluster.wait_formed(&[0]);
    doctor(&cluster).finds("agent-settings", "server consul-server-0", "-bootstrap-expect is 1, but convene decides");
    let old = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() - 8 * 24 * 3600;
    fs::write(cluster.data(0).join("server_metadata.json"), json!({"last_seen_unix": old}).to_string()).unwrap();
    doctor(&cluster).finds("agent-settings", "server consul-server-0", "-bootstrap-expect");
    cluster.kill(0);
    let gone = doctor(&cluster);
    assert_eq!(gone.checks(), ["agent-silent", "rejoin-age"], "{gone:#?}");
    let what = gone.findings[1]["what"].as_str().unwrap();
    assert!(what.contains("away for 8 days, and Consul refuses to start a server that was away for 7 days"), "{what}");
}

#[test]
fn from_outside_the_agents_are_asked_through_the_api_server_and_without_a_token() {
    let test = "from_outside_the_agents_are_asked_through_the_api_server_and_without_a_token";
    let Some(cluster) = three(test) else { return };
    let mut cluster = started(cluster);
    let api = ScriptedHttp::start();
    let prod = |path: &str| format!("{path}/namespaces/demo");
    let statefulset = json!({"metadata": {"name": "consul-server"}, "spec": {"replicas": 3}});
    api.always(Call::get(
        &(prod("/apis/apps/v1") + "/statefulsets/consul-server"),
        Reply::ok(&statefulset.to_string()),
    ));
    // Nothing else is there, and nothing else may be looked at.
    for path in [
        "/services/consul-server",
        "/services/consul-server-0",
        "/services/consul-server-1",
        "/services/consul-server-2",
    ] {
        api.always(Call::get(&(prod("/api/v1") + path), status(403)));
    }
    api.always(Call::get("/api/v1/namespaces/kube-system/configmaps/coredns", status(403)));
    api.always(Call::get(&(prod("/apis/policy/v1") + "/poddisruptionbudgets"), status(403)));
    api.always(Call::post(&(prod("/apis/authorization.k8s.io/v1") + "/localsubjectaccessreviews"), status(403)));
    let young = Arc::new(AtomicUsize::new(0));
    for ordinal in ALL {
        let pod = format!("{}/pods/consul-server-{ordinal}", prod("/api/v1"));
        api.always(Call::get(&pod, Reply::ok("{}")));
        // What the API server hands on goes to the real agent.
        let agent = SocketAddr::new(cluster.ip(ordinal), 8500);
        let proxied = format!("{pod}:8500/proxy");
        for path in PROXIED {
            let (begin, young) = (proxied.clone(), Arc::clone(&young));
            api.always(Call::get(
                &format!("{proxied}{path}"),
                Reply::by(move |asked| {
                    assert_eq!(asked.header("x-consul-token"), None);
                    let path = asked.target.strip_prefix(&begin).unwrap();
                    let Some((status_code, body)) = request(agent, "GET", path, "") else { return status(503) };
                    let fresh = path == AUTOPILOT_STATE
                        && young.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
                    Reply::Json(status_code, if fresh { with_one_just_unhealthy(&body) } else { body })
                }),
            ));
        }
    }
    let kubeconfig = cluster.folder().join("kubeconfig");
    fs::write(&kubeconfig, api.kubeconfig(&json!({"token": "t"}))).unwrap();
    let doctor = || {
        let mut call = Command::new(env!("CARGO_BIN_EXE_convene"));
        call.args(["doctor", "--namespace=demo", "--stateful-set=consul-server", "--output=json"]).env_clear();
        call.env("KUBECONFIG", &kubeconfig).env("CONSUL_HTTP_TOKEN", "7e57ab1e-0000-4000-8000-0000000000b2");
        let mut doctor = Doctor::called(call);
        // Nearly nothing else of Kubernetes is there.
        doctor.findings.retain(|found| OF_AGENTS.iter().any(|check| found["check"] == *check));
        doctor
    };
    let healthy = doctor();
    assert!(healthy.findings.is_empty(), "{healthy:#?}");
    healthy.looked_at(&OF_AGENTS);
    // What autopilot says at an election, and takes back when it looks again.
    young.store(2, Ordering::SeqCst);
    let elected = doctor();
    assert!(elected.findings.is_empty(), "{elected:#?}");
    assert_eq!(young.load(Ordering::SeqCst), 0, "it did not ask again");
    let leader = cluster.leading(0).unwrap();
    let dead = ALL.into_iter().find(|ordinal| *ordinal != leader).unwrap();
    cluster.kill(dead);
    cluster.wait_for("its failure", || ALL.iter().all(|one| *one == dead || cluster.member(*one, dead) == Some(4)));
    doctor().finds("failed-servers", &format!("server consul-server-{dead}"), "does not answer, and it is a voter");
}

const AUTOPILOT_STATE: &str = "/v1/operator/autopilot/state";

/// The state as it is at an election, before a server has answered autopilot.
fn with_one_just_unhealthy(state: &str) -> String {
    let mut state: Value = serde_json::from_str(state).unwrap();
    let one =
        state["Servers"].as_object_mut().unwrap().values_mut().find(|one| one["Name"] == "consul-server-1").unwrap();
    one["Healthy"] = json!(false);
    one["StableSince"] = json!(convene::api::kube::Timestamp::now().to_string());
    state.to_string()
}

/// All that a server is asked.
const PROXIED: [&str; 10] = [
    "/v1/status/leader",
    "/v1/status/peers",
    "/v1/agent/self",
    "/v1/agent/members",
    "/v1/agent/services",
    "/v1/operator/raft/configuration",
    AUTOPILOT_STATE,
    "/v1/operator/autopilot/configuration",
    "/v1/catalog/datacenters",
    "/v1/connect/ca/roots",
];

/// What can be looked at from outside.
const OF_AGENTS: [&str; 12] = [
    "raft-leader",
    "one-cluster",
    "raft-voters",
    "raft-lag",
    "raft-stale-peer",
    "autopilot-min-quorum",
    "agent-silent",
    "failed-servers",
    "consul-version",
    "services-at-servers",
    "agent-settings",
    "gossip-key",
];

//! The Kubernetes API as a source, against an API server on a real socket that answers well, badly, or not at all. The real
//! one is asked by `make e2e`.

// A panic is how a test fails; clippy's own exception for tests covers `#[test]` functions only.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "support/mod.rs"]
mod support;

use hickory_proto::rr::RecordType;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use support::cluster::wait_until;
use support::config_map::{KeptConfigMap, status};
use support::dns::{Answer, ScriptedDns};
use support::http::{Call, Reply, Request, ScriptedHttp};
use support::net::{LoopbackBlock, loopback_block};
use support::port::OpenPort;
use support::program::{Convene, Ended};
use support::traced::killed_when;

const PODS: &str = "/api/v1/namespaces/prod/pods";
const SERVICES: &str = "/api/v1/namespaces/prod/services";
const EVENTS: &str = "/api/v1/namespaces/prod/events";
const CONFIG_MAPS: &str = "/api/v1/namespaces/prod/configmaps";
const CLAIM: &str = "/api/v1/namespaces/prod/configmaps/consul-server-convene";
const STATEFULSET: &str = "/apis/apps/v1/namespaces/prod/statefulsets/consul-server";

/// An API server, a DNS server that knows nothing, and a volume. Our Pod is consul-server-0 at `block.1`.
struct World {
    block: LoopbackBlock,
    api: ScriptedHttp,
    dns: ScriptedDns,
    files: tempfile::TempDir,
    port: u16,
}

impl World {
    /// A StatefulSet of three; no Service but the headless one; Events are taken.
    fn new() -> Self {
        let (block, files) = (loopback_block(), tempfile::tempdir().unwrap());
        let [_, second, third, _] = block.ip(0).octets();
        // As nobody else has the block, nobody has the port; below those that the kernel gives to outgoing connections.
        let port = 10_000 + u16::from(second % 64) * 256 + u16::from(third);
        let world = Self { block, api: ScriptedHttp::start(), dns: ScriptedDns::zone(), files, port };
        std::fs::write(world.path("kubeconfig"), world.api.kubeconfig(&json!({"tokenFile": world.path("token")})))
            .unwrap();
        world.token("one");
        std::fs::create_dir(world.path("data")).unwrap();
        world.statefulset(json!({"replicas": 3, "serviceName": "consul-server", "podManagementPolicy": "Parallel"}));
        for ordinal in 0..5 {
            world.no(&format!("{SERVICES}/consul-server-{ordinal}"));
        }
        world.pod("consul-server-0", "Running", 1);
        world.api.always(Call::post(EVENTS, Reply::Json(201, "{}".to_owned())));
        world.no(CLAIM);
        world.api.always(Call::post(CONFIG_MAPS, Reply::Json(201, "{}".to_owned())));
        world.api.always(Call::put(CLAIM, Reply::ok("{}")));
        world
    }

    fn path(&self, name: &str) -> String {
        self.files.path().join(name).display().to_string()
    }

    /// All of it at once, as kubelet does.
    fn token(&self, token: &str) {
        std::fs::write(self.path("token.new"), token).unwrap();
        std::fs::rename(self.path("token.new"), self.path("token")).unwrap();
    }

    fn answers(&self, path: &str, answer: &Value) {
        self.api.always(Call::get(path, Reply::ok(&answer.to_string())));
    }

    fn says(&self, path: &str, code: u16) {
        self.api.always(Call::get(path, status(code)));
    }

    fn no(&self, path: &str) {
        self.says(path, 404);
    }

    fn statefulset(&self, spec: Value) {
        self.answers(STATEFULSET, &json!({"metadata": {"name": "consul-server", "uid": "u"}, "spec": spec}));
    }

    fn pod(&self, name: &str, phase: &str, host: u8) {
        self.answers(&format!("{PODS}/{name}"), &self.pod_json(name, phase, &[host]));
    }

    fn pod_json(&self, name: &str, phase: &str, hosts: &[u8]) -> Value {
        let ips: Vec<Value> = hosts.iter().map(|host| json!({"ip": self.block.ip(*host)})).collect();
        let first = ips.first().map(|first| first["ip"].clone());
        json!({"metadata": {"name": name, "uid": format!("uid-of-{name}")}, "spec": {"containers": []},
            "status": {"phase": phase, "podIP": first, "podIPs": ips}})
    }

    fn service(&self, ordinal: u8, host: u8) {
        self.service_at(ordinal, &self.block.ip(host).to_string());
    }

    fn service_at(&self, ordinal: u8, ip: &str) {
        let spec = json!({"clusterIP": ip, "publishNotReadyAddresses": true, "ports": [{"port": self.port}]});
        self.answers(&format!("{SERVICES}/consul-server-{ordinal}"), &json!({"metadata": {"name": "s"}, "spec": spec}));
    }

    fn convene(&self, words: &[&str]) -> Convene {
        Convene::new(words)
            .words(["--resolv-conf=/does/not/exist"])
            .envs("CONVENE_DISCOVER_TIMEOUT=10s")
            .words([format!("--nameserver={}", self.dns.addr()), format!("--server-port={}", self.port)])
            .words([format!("--data-dir={}", self.path("data"))])
            .envs("POD_NAME=consul-server-0 POD_NAMESPACE=prod")
            .env("POD_IP", self.block.ip(1).to_string())
            .env("KUBECONFIG", self.path("kubeconfig"))
    }

    fn init(&self, words: &[&str]) -> Ended {
        self.convene(&["init", "--role=server", "--wait=0s"]).words(words).run()
    }

    fn discover(&self, words: &[&str]) -> Value {
        let ended = self.convene(&["discover", "--format=json"]).words(words).run();
        assert_eq!(ended.code, 0, "{}", ended.stderr);
        serde_json::from_str(&ended.stdout).unwrap()
    }

    fn rendered(&self) -> Value {
        serde_json::from_str(&std::fs::read_to_string(self.path("data/convene/agent.json")).unwrap()).unwrap()
    }

    fn record(&self) -> Value {
        serde_json::from_str(&std::fs::read_to_string(self.path("data/convene/record.json")).unwrap()).unwrap()
    }

    /// The Events that were written, by reason and message.
    fn events(&self) -> Vec<(String, String)> {
        let requests = self.api.requests();
        let bodies = requests.iter().filter(|request| request.method == "POST" && request.target.starts_with(EVENTS));
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        bodies
            .map(|request| {
                let event: Value = serde_json::from_str(&request.body).unwrap();
                assert_eq!(event["involvedObject"]["uid"], "uid-of-consul-server-0");
                (text(&event["reason"]), text(&event["message"]))
            })
            .collect()
    }

    /// A claim that is there, of the StatefulSet with this UID.
    fn claimed(&self, owner: Option<&str>, data: Value) {
        let owners: Vec<Value> = owner.iter().map(|uid| json!({"uid": uid, "kind": "StatefulSet"})).collect();
        let meta = json!({"name": "consul-server-convene", "resourceVersion": "7", "ownerReferences": owners});
        self.answers(CLAIM, &json!({"metadata": meta, "data": data}));
    }

    /// The claims that were written: the method, and the ConfigMap.
    fn written(&self) -> Vec<(String, Value)> {
        let requests = self.api.requests();
        let of = requests.iter().filter(|request| request.method != "GET" && request.target.starts_with(CONFIG_MAPS));
        of.map(|request| (request.method.clone(), serde_json::from_str(&request.body).unwrap())).collect()
    }

    /// Two siblings that have no Pod yet, and every server with a Service of its own.
    fn empty_siblings(&self) {
        self.service(0, 10);
        for ordinal in 1..3 {
            self.service(ordinal, 10 + ordinal);
            self.no(&format!("{PODS}/consul-server-{ordinal}"));
        }
    }

    /// A server that belongs to no cluster, at `block.<host>`.
    fn never_formed(&self, host: u8) -> (OpenPort, ScriptedHttp) {
        let http = ScriptedHttp::at(&self.block.at(host, 8500));
        http.always(Call::get("/v1/status/leader", Reply::ok("\"\"")));
        http.always(Call::get("/v1/status/peers", Reply::ok("[]")));
        http.always(Call::get("/v1/connect/ca/roots", Reply::Json(500, "Connect must be enabled".to_owned())));
        (OpenPort::at(&self.block.at(host, self.port)), http)
    }
}

/// The exit code, and what must stand anywhere in the log.
#[track_caller]
fn tells(ended: &Ended, code: i32, parts: &[&str]) {
    assert_eq!(ended.code, code, "{}", ended.stderr);
    for part in parts {
        assert!(ended.stderr.contains(part), "{part:?} is not in: {}", ended.stderr);
    }
}

/// Name, verdict, and why, of every other server.
fn verdicts(seen: &Value) -> Vec<String> {
    let servers = seen["servers"].as_array().unwrap();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    servers
        .iter()
        .map(|server| format!("{} {} {}", text(&server["name"]), text(&server["verdict"]), text(&server["why"])))
        .collect()
}

#[test]
fn the_ordinals_are_those_of_the_statefulset_and_their_pods_are_asked_at_their_own_addresses() {
    let world = World::new();
    world.statefulset(
        json!({"replicas": 4, "ordinals": {"start": 0}, "serviceName": "other", "podManagementPolicy": "Parallel"}),
    );
    world.pod("consul-server-1", "Pending", 2);
    world.no(&format!("{PODS}/consul-server-2"));
    world.pod("consul-server-3", "Failed", 4);
    let _two = world.never_formed(2);
    let seen = world.discover(&[]);
    assert_eq!(
        verdicts(&seen),
        [
            "consul-server-1 never formed ",
            "consul-server-2 absent there is no such Pod",
            "consul-server-3 absent its Pod has ended"
        ]
    );
    assert_eq!(
        seen["sources"][0],
        json!({"source": "kubernetes", "named": 4, "error": null, "took_ms": seen["sources"][0]["took_ms"]})
    );
    assert!(
        world.dns.asked("consul-server-1.other.prod.svc.cluster.local.", RecordType::A, support::dns::Transport::Udp)
            == 0
    );
}

#[test]
fn a_terminating_sibling_is_still_asked_since_it_may_hold_a_cluster_together() {
    let world = World::new();
    let mut pod = world.pod_json("consul-server-1", "Running", &[2]);
    pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    world.answers(&format!("{PODS}/consul-server-1"), &pod);
    world.no(&format!("{PODS}/consul-server-2"));
    let _two = world.never_formed(2);
    assert_eq!(verdicts(&world.discover(&[]))[0], "consul-server-1 never formed ");
}

#[test]
fn expect_auto_is_the_replicas_and_each_sibling_is_joined_at_its_own_service() {
    let world = World::new();
    for (ordinal, host) in [(0, 10), (1, 11), (2, 12)] {
        world.service(ordinal, host);
    }
    world.pod("consul-server-1", "Pending", 2);
    world.answers(&format!("{PODS}/consul-server-2"), &world.pod_json("consul-server-2", "Pending", &[]));
    tells(&world.init(&["--expect=auto"]), 0, &["found one of 3 servers"]);
    let agent = world.rendered();
    assert_eq!(agent["bootstrap_expect"], 3);
    assert_eq!(agent["advertise_addr"], world.block.ip(10).to_string());
    assert_eq!(agent["retry_join"], json!([world.block.ip(11), world.block.ip(12)]));
    assert_eq!(world.events()[0].0, "Founding");
}

#[test]
fn without_services_of_their_own_the_pods_are_joined_at_their_addresses() {
    let world = World::new();
    world.pod("consul-server-1", "Pending", 2);
    world.pod("consul-server-2", "Running", 3);
    world.init(&[]).ends(0, &[]);
    let agent = world.rendered();
    assert_eq!(agent["advertise_addr"], world.block.ip(1).to_string());
    assert_eq!(agent["retry_join"], json!([world.block.ip(2), world.block.ip(3)]));
}

#[test]
fn an_ipv6_pod_is_joined_in_brackets() {
    let world = World::new();
    world.statefulset(json!({"replicas": 2, "serviceName": "consul-server", "podManagementPolicy": "Parallel"}));
    let mut pod = world.pod_json("consul-server-1", "Running", &[]);
    pod["status"]["podIP"] = json!("::1");
    pod["status"]["podIPs"] = json!([{"ip": "::1"}]);
    world.answers(&format!("{PODS}/consul-server-1"), &pod);
    world.init(&[]).ends(0, &[]);
    assert_eq!(world.rendered()["retry_join"], json!(["[::1]"]));
}

#[test]
fn a_selector_gives_its_pods_but_none_that_is_over_or_going_and_no_client_under_the_servers_label() {
    let world = World::new();
    let mut going = world.pod_json("going", "Running", &[6]);
    going["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    let items = [
        world.pod_json("server", "Pending", &[2, 9]),
        world.pod_json("client", "Running", &[3]),
        world.pod_json("done", "Succeeded", &[4]),
        world.pod_json("failed", "Failed", &[5]),
        world.pod_json("new", "Pending", &[]),
        going,
    ];
    world.answers(PODS, &json!({"metadata": {}, "items": items}));
    let _server = world.never_formed(2);
    let seen = world.discover(&["--discover=k8s:app=consul"]);
    let server = format!("server ({}) never formed ", world.block.ip(2));
    let client = format!("client ({}) absent {} refuses the server port", world.block.ip(3), world.block.ip(3));
    assert_eq!(verdicts(&seen), [client, server]);
    let long = world.discover(&["--discover=provider=k8s label_selector=\"app=consul\""]);
    assert_eq!(seen["servers"], long["servers"]);
    let asked =
        world.api.requests().iter().filter(|request| request.target.contains("labelSelector=app%3Dconsul")).count();
    assert_eq!(asked, 2);
    let bare = world.convene(&["discover", "--format=netaddrs", "--discover=k8s:app=consul"]).run();
    assert_eq!(bare.stdout, format!("{}\n", world.block.ip(2)));
}

#[test]
fn a_selector_of_another_namespace_asks_there_and_a_pods_annotation_gives_serfs_port() {
    let world = World::new();
    let mut pod = world.pod_json("consul-server-1", "Running", &[2]);
    pod["metadata"]["annotations"] = json!({"consul.hashicorp.com/auto-join-port": "serf"});
    pod["spec"]["containers"] = json!([{"ports": [{"name": "serf", "containerPort": 8401}]}]);
    world.answers("/api/v1/namespaces/consul/pods", &json!({"metadata": {}, "items": [pod]}));
    let _server = world.never_formed(2);
    let source = "--discover=provider=k8s label_selector=app=consul namespace=consul";
    world.convene(&["init", "--role=client", "--wait=0s", source]).run().ends(0, &[]);
    assert_eq!(world.rendered()["retry_join"], json!([format!("{}:8401", world.block.ip(2))]));
}

#[test]
fn a_selector_that_matches_a_fleet_is_no_selector_of_servers() {
    let world = World::new();
    world.answers(PODS, &json!({"metadata": {"continue": "more"}, "items": []}));
    let ended = world.convene(&["discover", "--discover=k8s:app=web"]).run();
    ended.ends(69, &["more than 256 Pods"]);
}

#[test]
fn a_refusal_names_the_verb_the_resource_and_the_rule_and_dns_is_asked_instead() {
    let world = World::new();
    world.says(STATEFULSET, 403);
    world.says(&format!("{SERVICES}/consul-server-0"), 403);
    for ordinal in 1..3 {
        world.says(&format!("{PODS}/consul-server-{ordinal}"), 403);
        world.dns.set(
            &format!("consul-server-{ordinal}.consul-server.prod.svc.cluster.local."),
            RecordType::A,
            Answer::Addresses(vec![IpAddr::from(world.block.ip(ordinal + 1))]),
        );
        let sixth = format!("consul-server-{ordinal}.consul-server.prod.svc.cluster.local.");
        world.dns.set(&sixth, RecordType::AAAA, Answer::NoData);
    }
    let ended = world.init(&["--expect=3", "--advertise=auto", "--claim=off"]);
    tells(
        &ended,
        0,
        &[
            "may not get statefulsets in namespace prod",
            "{apiGroups: [\"apps\"], resources: [statefulsets], verbs: [get]}",
            "may not get services in namespace prod",
        ],
    );
    assert_eq!(world.rendered()["retry_join"], json!([world.block.ip(2), world.block.ip(3)]));
    let blind = world.convene(&["discover", "--discover=k8s:app=consul"]);
    world.says(PODS, 403);
    blind.run().ends(69, &["may not list pods", "{apiGroups: [\"\"], resources: [pods], verbs: [list]}"]);
}

#[test]
fn without_a_number_from_anybody_nothing_is_founded_and_the_reason_is_told() {
    let world = World::new();
    world.says(STATEFULSET, 403);
    world.init(&["--expect=auto"]).ends(75, &["rule 7", "may not get statefulsets", "--claim=off"]);
    let off = world.init(&["--expect=auto", "--claim=off"]);
    off.ends(75, &["without --expect this one founds none", "may not get statefulsets"]);
}

#[test]
fn a_role_that_may_only_get_and_list_pods_is_enough_when_the_number_is_given() {
    let world = World::new();
    world.says(STATEFULSET, 403);
    world.api.always(Call::post(EVENTS, status(403)));
    for ordinal in 0..3 {
        world.says(&format!("{SERVICES}/consul-server-{ordinal}"), 403);
        let name = format!("consul-server-{ordinal}.prod.svc.cluster.local.");
        world.dns.set(&name, RecordType::A, Answer::Addresses(vec![IpAddr::from(world.block.ip(10 + ordinal))]));
        world.dns.set(&name, RecordType::AAAA, Answer::NoData);
    }
    world.pod("consul-server-1", "Pending", 2);
    world.pod("consul-server-2", "Pending", 3);
    tells(&world.init(&["--expect=3", "--claim=off"]), 0, &["may not create events"]);
    let agent = world.rendered();
    assert_eq!(agent["advertise_addr"], world.block.ip(10).to_string());
    assert_eq!(agent["retry_join"], json!([world.block.ip(11), world.block.ip(12)]));
}

#[test]
fn a_refused_token_is_read_again_at_once() {
    let world = World::new();
    let of = |token: &str, reply: Reply| {
        Call::get(STATEFULSET, reply).with_header("authorization", &format!("Bearer {token}"))
    };
    let found = json!({"spec": {"replicas": 1, "serviceName": "consul-server", "podManagementPolicy": "Parallel"}});
    world.api.always(of("one", status(401)));
    world.api.always(of("two", Reply::ok(&found.to_string())));
    let waiting = world.convene(&["init", "--role=server"]).spawn();
    world.api.wait_for(STATEFULSET, 3);
    world.token("two");
    assert_eq!(Ended::of(waiting.wait_with_output().unwrap()).code, 0);
    assert_eq!(world.rendered()["bootstrap_expect"], 1);
}

#[test]
fn a_token_that_nobody_accepts_is_told_as_such() {
    let world = World::new();
    world.says(STATEFULSET, 401);
    world.init(&[]).ends(75, &["answered 401", "delete the Pod"]);
}

#[test]
fn an_error_of_the_api_is_not_a_missing_service() {
    let world = World::new();
    world.says(&format!("{SERVICES}/consul-server-0"), 500);
    world.init(&[]).ends(75, &["whether Service consul-server-0 exists cannot be told", "answered 500"]);
    world.service(0, 10);
    for ordinal in 1..3 {
        world.no(&format!("{PODS}/consul-server-{ordinal}"));
        world.service(ordinal, 10 + ordinal);
    }
    world.init(&[]).ends(0, &[]);
    world.says(&format!("{SERVICES}/consul-server-0"), 500);
    tells(&world.init(&[]), 0, &["the recorded address"]);
    assert_eq!(world.rendered()["advertise_addr"], world.block.ip(10).to_string());
    world.no(&format!("{SERVICES}/consul-server-0"));
    world.init(&[]).ends(75, &["Service consul-server-0 is gone"]);
}

#[test]
fn a_server_with_data_starts_although_the_api_and_dns_are_silent() {
    let world = World::new();
    std::fs::create_dir_all(world.files.path().join("data/raft/wal")).unwrap();
    for path in [STATEFULSET, &format!("{SERVICES}/consul-server-0")] {
        world.api.always(Call::get(path, Reply::Nothing));
    }
    for ordinal in 1..3 {
        world.dns.set_all(&format!("consul-server-{ordinal}.consul-server.prod.svc.cluster.local."), &Answer::Silence);
    }
    tells(
        &world.init(&["--advertise=pod", "--discover-timeout=500ms"]),
        0,
        &["rejoin", "did not answer within 500 ms"],
    );
    assert_eq!(world.events(), []);
}

#[test]
fn ordered_ready_is_refused_with_the_mend_and_an_event() {
    let world = World::new();
    world.statefulset(json!({"replicas": 3, "serviceName": "consul-server", "podManagementPolicy": "OrderedReady"}));
    world.no(&format!("{PODS}/consul-server-1"));
    world.no(&format!("{PODS}/consul-server-2"));
    world.init(&[]).ends(64, &["OrderedReady", "--cascade=orphan"]);
    let events = world.events();
    assert_eq!(events[0].0, "Refused");
    assert!(events[0].1.contains("OrderedReady"), "{events:?}");
}

#[test]
fn a_service_that_hides_pods_that_are_not_ready_is_named() {
    let world = World::new();
    world.service(0, 10);
    // A broadcast address: nobody can be reached there, and it never leaves the machine.
    let spec = json!({"clusterIP": "127.255.255.255", "ports": [{"port": world.port}]});
    world.answers(&format!("{SERVICES}/consul-server-0"), &json!({"metadata": {"name": "s"}, "spec": spec}));
    for ordinal in 1..3 {
        world.no(&format!("{PODS}/consul-server-{ordinal}"));
    }
    let ended = world.init(&["--advertise=service"]);
    ended.ends(75, &["does not reach its own Service address", "needs publishNotReadyAddresses: true"]);
}

/// A server whose first start has left its own address to be tried, and the watch beside its agent.
struct Untried {
    world: World,
    agent: ScriptedHttp,
}

impl Untried {
    /// Its Service has this address.
    fn at(ip: &str) -> Self {
        let world = World::new();
        world.empty_siblings();
        world.service_at(0, ip);
        world.init(&["--hairpin=beside"]).ends(0, &[]);
        assert_eq!(world.rendered()["advertise_addr"], ip);
        let agent = ScriptedHttp::start();
        agent.always(Call::get("/v1/status/leader", Reply::ok("\"\"")));
        agent.always(Call::get("/v1/status/peers", Reply::ok("[]")));
        agent.always(Call::get("/v1/agent/members", Reply::ok("[]")));
        let untried = Self { world, agent };
        assert_eq!(untried.world.record()["untried"]["file"], untried.world.path("data/convene/agent.json"));
        let behind_the_headless_service = "consul-server.prod.svc.cluster.local";
        assert_eq!(untried.world.rendered()["retry_join"], json!([behind_the_headless_service]));
        untried
    }

    /// An address that leads nowhere: a broadcast, which never leaves the machine.
    fn nowhere() -> Self {
        Self::at("127.255.255.255")
    }

    fn watch(&self) -> Convene {
        self.world.convene(&["watch", "--role=server"]).env("CONSUL_HTTP_ADDR", self.agent.addr().to_string())
    }

    /// The watch goes on until this is so.
    fn watches_until(&self, what: &str, done: impl Fn() -> bool) {
        let file = self.world.files.path().join("log");
        let mut watch = self.watch().spawn_into(&file);
        wait_until(what, || done().then_some(()), || std::fs::read_to_string(&file).unwrap_or_default());
        watch.kill().unwrap();
        watch.wait().unwrap();
    }

    fn not_reached(&self) -> Vec<String> {
        let events = self.world.events().into_iter();
        events.filter(|(reason, _)| reason == "NotReached").map(|(_, message)| message).collect()
    }
}

#[test]
fn an_address_that_init_has_not_tried_is_tried_by_the_watch() {
    let block = loopback_block();
    let untried = Untried::at(&block.ip(10).to_string());
    let _port = OpenPort::at(&block.at(10, untried.world.port));
    untried.watches_until("the record", || untried.world.record().get("untried").is_none());
    assert_eq!(
        (&untried.world.record()["advertise"], &untried.world.record()["stable"]),
        (&json!(block.ip(10)), &json!(true))
    );
    assert_eq!(untried.not_reached(), [""; 0]);
    let others = [11, 12].map(|host| untried.world.block.ip(host));
    assert_eq!(untried.world.rendered()["retry_join"], json!(others));
}

#[test]
fn an_address_that_leads_nowhere_is_changed_for_the_pods_and_the_agent_leaves_to_start_there() {
    let untried = Untried::nowhere();
    untried.agent.expect(Call::put("/v1/agent/leave", Reply::ok("{}")));
    let pod = untried.world.block.ip(1);
    untried.watch().run().ends(75, &["the agent starts again at another address"]);
    assert_eq!(untried.world.rendered()["advertise_addr"], pod.to_string());
    let record = untried.world.record();
    assert_eq!((&record["advertise"], &record["stable"], record.get("untried")), (&json!(pod), &json!(false), None));
    let told = untried.not_reached();
    assert!(told.len() == 1 && told[0].ends_with(&format!("starts again at the Pod's own address {pod}")), "{told:?}");
}

#[test]
fn where_the_agent_may_not_leave_to_change_its_address_the_mend_is_told() {
    let untried = Untried::nowhere();
    untried.agent.expect(Call::put("/v1/agent/leave", Reply::Json(403, "Permission denied".to_owned())));
    untried.watch().run().ends(75, &[]);
    assert_eq!(untried.world.rendered()["advertise_addr"], untried.world.block.ip(1).to_string());
    assert!(untried.not_reached()[0].contains("kubectl delete pod consul-server-0"), "{:?}", untried.not_reached());
}

#[test]
fn the_way_to_the_api_is_missing_in_one_line() {
    let seen =
        |words: &[&str]| Convene::new(words).envs("POD_NAME=consul-server-0 POD_NAMESPACE=prod POD_IP=127.0.0.1").run();
    seen(&["discover", "--discover=k8s:app=consul"]).ends(64, &["the way to the Kubernetes API", "KUBECONFIG"]);
    seen(&["init", "--role=server", "--expect=auto"]).ends(64, &["--expect=auto asks the Kubernetes API", "token"]);
    seen(&["init", "--role=server", "--advertise=host"]).ends(64, &["HOST_IP"]);
    let lost = seen(&["discover", "--discover=provider=k8s label_selector=a=b kubeconfig=/does/not/exist"]);
    lost.ends(69, &["/does/not/exist"]);
}

#[test]
fn the_machines_address_is_advertised_when_it_is_asked_for() {
    let world = World::new();
    for ordinal in 1..3 {
        world.no(&format!("{PODS}/consul-server-{ordinal}"));
    }
    let ended =
        world.convene(&["init", "--role=server", "--wait=0s", "--advertise=host"]).env("HOST_IP", "127.0.0.77").run();
    // Two siblings without any address cannot be named by an init container.
    ended.ends(75, &["can be named to Consul"]);
    world.pod("consul-server-1", "Running", 2);
    world.pod("consul-server-2", "Running", 3);
    let ended =
        world.convene(&["init", "--role=server", "--wait=0s", "--advertise=host"]).env("HOST_IP", "127.0.0.77").run();
    ended.ends(0, &[]);
    assert_eq!(world.rendered()["advertise_addr"], "127.0.0.77");
}

#[test]
fn a_founding_is_claimed_with_its_expect_before_anything_is_rendered() {
    let world = World::new();
    world.empty_siblings();
    world.api.always(Call::post(CONFIG_MAPS, status(403)));
    world.init(&[]).ends(75, &["rule 7", "may not create configmaps", "verbs: [create]"]);
    assert!(!world.files.path().join("data/convene/agent.json").exists());
    world.api.always(Call::post(CONFIG_MAPS, Reply::Json(201, "{}".to_owned())));
    world.init(&[]).ends(0, &[]);
    let (method, claim) = world.written().pop().unwrap();
    assert_eq!(method, "POST");
    assert_eq!(
        claim["metadata"]["ownerReferences"][0],
        json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "consul-server", "uid": "u"})
    );
    assert_eq!((&claim["data"]["state"], &claim["data"]["expect"]), (&json!("founding"), &json!("3")));
    assert_eq!(claim["data"]["addresses.consul-server-0"], world.block.ip(10).to_string());
}

#[test]
fn a_claim_that_another_server_wrote_counts_with_its_expect() {
    let world = World::new();
    world.empty_siblings();
    world.claimed(Some("u"), json!({"state": "founding", "id": "c1", "expect": "2"}));
    world.init(&["--expect=3"]).ends(0, &[]);
    assert_eq!(world.rendered()["bootstrap_expect"], 2);
    assert_eq!(world.written(), []);
}

#[test]
fn who_loses_the_race_for_the_claim_takes_the_winners() {
    let world = World::new();
    world.empty_siblings();
    world.api.always(Call::post(CONFIG_MAPS, status(409)));
    let losing = world.convene(&["init", "--role=server", "--expect=3"]).spawn();
    world.api.wait_for(CONFIG_MAPS, 1);
    world.claimed(Some("u"), json!({"state": "founding", "id": "c1", "expect": "2"}));
    assert_eq!(Ended::of(losing.wait_with_output().unwrap()).code, 0);
    assert_eq!(world.rendered()["bootstrap_expect"], 2);
}

#[test]
fn wiped_disks_found_nothing_while_the_claim_says_formed_and_by_force_only_once() {
    let world = World::new();
    world.empty_siblings();
    world.claimed(Some("u"), json!({"state": "formed", "id": "c1", "expect": "3"}));
    world.init(&[]).ends(75, &["rule 6", "--new-cluster=force:c1"]);
    world.init(&["--new-cluster=force:c0"]).ends(75, &["rule 6"]);
    world.init(&["--new-cluster=again"]).ends(64, &["force:ID"]);
    assert_eq!(world.written(), []);
    world.init(&["--new-cluster=force:c1"]).ends(0, &[]);
    let (method, claim) = world.written().pop().unwrap();
    assert_eq!((method.as_str(), &claim["metadata"]["resourceVersion"]), ("PUT", &json!("7")));
    let forced = claim["data"]["forced"].as_str().unwrap();
    assert!(forced.contains("by consul-server-0 over the claim c1"), "{forced}");
    assert_ne!(claim["data"]["id"], "c1", "the same flag does nothing a second time");
}

#[test]
fn a_claim_of_a_statefulset_that_is_gone_counts_as_none_and_one_without_owner_is_taken_over() {
    let world = World::new();
    world.empty_siblings();
    world.claimed(Some("of-the-old-one"), json!({"state": "formed", "id": "c1"}));
    world.init(&[]).ends(0, &[]);
    let (method, claim) = world.written().pop().unwrap();
    assert_eq!((method.as_str(), &claim["data"]["state"]), ("PUT", &json!("founding")));
    assert_eq!(claim["metadata"]["ownerReferences"][0]["uid"], "u");
    let orphaned = World::new();
    orphaned.empty_siblings();
    orphaned.claimed(None, json!({"state": "formed", "id": "c1"}));
    orphaned.init(&[]).ends(75, &["rule 6"]);
}

#[test]
fn a_claim_that_cannot_be_read_is_waited_for_by_an_empty_server_and_asked_by_no_other() {
    let world = World::new();
    world.empty_siblings();
    world.says(CLAIM, 500);
    world.init(&[]).ends(75, &["rule 7", "answered 500", "--claim=off"]);
    world.says(CLAIM, 403);
    world.init(&[]).ends(75, &["rule 7", "may not get configmaps"]);
    let asked = || world.api.requests().iter().filter(|request| request.target.starts_with(CLAIM)).count();
    let before = asked();
    std::fs::create_dir_all(world.files.path().join("data/raft/wal")).unwrap();
    tells(&world.init(&[]), 0, &["rejoin"]);
    assert_eq!(asked(), before);
}

#[test]
fn a_volume_of_another_pod_is_refused_with_78_or_adopted() {
    let world = World::new();
    world.empty_siblings();
    world.init(&[]).ends(0, &[]);
    let as_another = |words: &[&str]| {
        let words = [&["init", "--role=server", "--wait=0s"][..], words].concat();
        world.convene(&words).envs("POD_NAMESPACE=test").run()
    };
    for path in [
        "services/consul-server-0",
        "pods/consul-server-0",
        "pods/consul-server-1",
        "pods/consul-server-2",
        "services/consul-server-1",
        "services/consul-server-2",
    ] {
        world.no(&format!("/api/v1/namespaces/test/{path}"));
    }
    world.no("/apis/apps/v1/namespaces/test/statefulsets/consul-server");
    world.api.always(Call::post("/api/v1/namespaces/test/events", Reply::Json(201, "{}".to_owned())));
    as_another(&["--expect=3", "--advertise=pod"])
        .ends(78, &["belongs to Pod consul-server-0 in namespace prod", "in namespace test", "--adopt-volume=keep"]);
    std::fs::create_dir_all(world.files.path().join("data/raft/wal")).unwrap();
    as_another(&["--expect=3", "--advertise=pod", "--adopt-volume=fresh"])
        .ends(75, &["rule 2", "no other server reports a cluster"]);
    as_another(&["--expect=3", "--advertise=pod", "--adopt-volume=keep"]).ends(0, &[]);
    as_another(&["--expect=3", "--advertise=pod"]).ends(0, &[]);
}

#[test]
fn a_watch_claims_the_cluster_once_it_sees_a_leader_and_a_majority() {
    let world = World::new();
    world.statefulset(json!({"replicas": 2, "serviceName": "consul-server", "podManagementPolicy": "Parallel"}));
    world.pod("consul-server-1", "Running", 2);
    world.init(&["--advertise=pod"]).ends(0, &[]);
    world.claimed(Some("u"), json!({"state": "founding", "id": "c1", "expect": "2"}));
    let (own, other) = (world.block.at(1, world.port), world.block.at(2, world.port));
    let peers = json!([own, other]).to_string();
    let agent = ScriptedHttp::start();
    agent.always(Call::get("/v1/status/leader", Reply::ok(&json!(own).to_string())));
    agent.always(Call::get("/v1/status/peers", Reply::ok(&peers)));
    agent.always(Call::get("/v1/agent/members", Reply::ok("[]")));
    agent.always(Call::get("/v1/agent/services", Reply::ok("{}")));
    let voter =
        |id: &str, address: &str| json!({"ID": id, "Node": "n", "Address": address, "Leader": false, "Voter": true});
    let configuration = json!({"Servers": [voter("id-0", &own), voter("id-1", &other)]});
    agent.always(Call::get("/v1/operator/raft/configuration", Reply::ok(&configuration.to_string())));
    agent.always(Call::get("/v1/connect/ca/roots", Reply::ok(r#"{"TrustDomain":"c1.consul"}"#)));
    let mut watch = world
        .convene(&["watch", "--role=server", "--advertise=pod"])
        .env("CONSUL_HTTP_ADDR", agent.addr().to_string())
        .spawn();
    // One of two is no majority: the other one knows no leader yet.
    let (port, http) = world.never_formed(2);
    http.wait_for("/v1/status/leader", 2);
    assert!(world.written().iter().all(|(method, _)| method == "POST"), "{:?}", world.written());
    http.always(Call::get("/v1/status/leader", Reply::ok(&json!(own).to_string())));
    http.always(Call::get("/v1/status/peers", Reply::ok(&peers)));
    let claim = loop {
        match world.written().pop() {
            Some((method, claim)) if method == "PUT" => break claim,
            _ => std::thread::sleep(std::time::Duration::from_millis(20)),
        }
    };
    watch.kill().unwrap();
    watch.wait().unwrap();
    drop(port);
    let data = &claim["data"];
    assert_eq!((&data["state"], &data["id"], &data["nodes"]), (&json!("formed"), &json!("c1"), &json!("id-0 id-1")));
    assert!(data["formed"].as_str().unwrap().contains("seen by consul-server-0"));
}

/// Two servers that found, each prepared by `init`, beside agents that nobody watches: ours leads, the other's says whom it follows.
struct Unwatched {
    world: World,
    claim: KeptConfigMap,
    own: ScriptedHttp,
    other: ScriptedHttp,
    _ports: [OpenPort; 2],
}

impl Unwatched {
    fn new() -> Self {
        let world = World::new();
        world.statefulset(json!({"replicas": 2, "serviceName": "s", "podManagementPolicy": "Parallel"}));
        world.pod("consul-server-1", "Running", 2);
        let claim = KeptConfigMap::at(&world.api, CONFIG_MAPS, "consul-server-convene");
        world.init(&["--advertise=pod"]).ends(0, &[]);
        let (other_port, other) = world.never_formed(2);
        let own = ScriptedHttp::at(&world.block.at(1, 8500));
        let addresses = [world.block.at(1, world.port), world.block.at(2, world.port)];
        let id = std::fs::read_to_string(world.path("data/node-id")).unwrap();
        let voter = |id: &str, address: &str| json!({"ID": id, "Node": "n", "Address": address, "Leader": false, "Voter": true});
        let answers = [
            ("/v1/status/leader", json!(addresses[0])),
            ("/v1/status/peers", json!(addresses)),
            (
                "/v1/operator/raft/configuration",
                json!({"Servers": [voter(&id, &addresses[0]), voter("id-1", &addresses[1])]}),
            ),
            (
                "/v1/agent/self",
                json!({"Config": {"NodeName": "consul-server-0", "NodeID": id, "Server": true},
                "Member": null, "Stats": {"raft": {"state": "Leader"}}}),
            ),
            ("/v1/operator/autopilot/state", json!({"Servers": {}})),
        ];
        for (path, answer) in answers {
            own.always(Call::get(path, Reply::ok(&answer.to_string())));
        }
        let ports = [OpenPort::at(&addresses[0]), other_port];
        Self { world, claim, own, other, _ports: ports }
    }

    /// Both follow the first one, or the second.
    fn follow(&self, leader: u8) {
        let leader = json!(self.world.block.at(leader, self.world.port)).to_string();
        for agent in [&self.own, &self.other] {
            agent.always(Call::get("/v1/status/leader", Reply::ok(&leader)));
        }
    }

    fn call(&self, words: &[&str]) -> Ended {
        let data = format!("--data-dir={}", self.world.path("data"));
        let pod = [
            ("POD_NAME", "consul-server-0"),
            ("POD_NAMESPACE", "prod"),
            ("CONSUL_HTTP_ADDR", &self.world.block.at(1, 8500)),
        ];
        let call = Convene::new(words).words([data]).env("KUBECONFIG", self.world.path("kubeconfig"));
        let call = call.env("POD_IP", self.world.block.ip(1).to_string());
        pod.into_iter().fold(call, |call, (name, value)| call.env(name, value)).run()
    }

    /// `check ready` says yes, whatever else it says.
    #[track_caller]
    fn is_ready(&self) -> Ended {
        let ended = self.call(&["check", "ready"]);
        assert_eq!(ended.code, 0, "{ended:?}");
        assert!(ended.stdout.starts_with("ready: leader"), "{ended:?}");
        ended
    }

    /// Until it has noted, and said, what it should: on a slow machine its time may be over before.
    #[track_caller]
    fn is_ready_until(&self, done: impl Fn(&Ended) -> bool) {
        let told = || format!("{:?}", self.is_ready());
        wait_until("it to be noted", || Some(self.is_ready()).filter(&done), told);
    }

    #[track_caller]
    fn notes(&self, formed: bool, unclaimed: bool, state: &str) {
        self.is_ready_until(|_| (self.noted(), self.state()) == ((formed, unclaimed), json!(state)));
    }

    /// What the record says: formed, and still to be claimed.
    fn noted(&self) -> (bool, bool) {
        let record = self.world.record();
        (record["formed"] == true, record["unclaimed"] == true)
    }

    fn state(&self) -> Value {
        self.claim.now().unwrap()["data"]["state"].clone()
    }
}

#[test]
fn beside_an_agent_that_nobody_watches_a_probe_notes_and_claims_and_then_asks_the_api_no_more() {
    let unwatched = Unwatched::new();
    assert_eq!((unwatched.noted(), unwatched.state()), ((false, true), json!("founding")));
    // One of two is no majority: a claim would come too early, the record does not.
    unwatched.notes(true, true, "founding");
    unwatched.follow(1);
    unwatched.notes(true, false, "formed");
    // A probe of a leader that may read all needs no list of peers for its own answer.
    let noting = |request: &Request| request.target == "/v1/status/peers";
    let asked = || (unwatched.world.api.requests().len(), unwatched.own.requests().into_iter().filter(noting).count());
    let before = asked();
    assert_eq!(unwatched.is_ready().stderr, "");
    assert_eq!(asked(), before);
    // After another start it is looked at again: somebody may have taken the claim away.
    std::fs::create_dir_all(unwatched.world.path("data/raft/wal")).unwrap();
    unwatched.world.init(&["--advertise=pod"]).ends(0, &[]);
    assert_eq!(unwatched.noted(), (true, true));
    unwatched.notes(true, false, "formed");
    assert_eq!(unwatched.claim.accepted().len(), 2);
}

#[test]
fn a_leave_hook_notes_and_claims_what_nobody_did_before_it() {
    let unwatched = Unwatched::new();
    unwatched.follow(2);
    unwatched.own.always(Call::get("/v1/agent/members", Reply::ok("[]")));
    // How far the leader's log reaches is asked, and not told without a token.
    unwatched.other.always(Call::get("/v1/agent/self", Reply::Json(403, "Permission denied".to_owned())));
    // Who the other raft peers are is asked of every ordinal around.
    for ordinal in 2..5 {
        unwatched.world.no(&format!("{PODS}/consul-server-{ordinal}"));
    }
    let hook = unwatched.call(&["leave", "--leave=never", "--role=server"]);
    assert_eq!(hook.code, 0, "{}", hook.stderr);
    assert_eq!((unwatched.noted(), unwatched.state()), ((true, false), json!("formed")));
}

#[test]
fn a_probe_that_can_note_nothing_says_yes_all_the_same_and_why_in_one_line() {
    let unwatched = Unwatched::new();
    unwatched.follow(1);
    let says = |part: &str| {
        unwatched.is_ready_until(|ended| {
            let complaints: Vec<&str> = ended.stderr.lines().filter(|line| !line.contains(" INFO ")).collect();
            assert_eq!(complaints.len(), 1, "{}", ended.stderr);
            complaints[0].contains(part)
        });
    };
    unwatched.world.api.always(Call::get(STATEFULSET, Reply::Nothing));
    says("could not note within ");
    unwatched.world.says(STATEFULSET, 403);
    says("may not get statefulsets");
    // What stands in the way stops root too.
    let (record, lock) =
        (unwatched.world.path("data/convene/record.json"), unwatched.world.path("data/convene/record.lock"));
    let formed = std::fs::read_to_string(&record).unwrap();
    std::fs::write(&record, formed.replace("\"formed\": true", "\"formed\": false")).unwrap();
    std::fs::remove_file(&lock).unwrap();
    std::fs::create_dir(&lock).unwrap();
    unwatched.world.statefulset(json!({"replicas": 2, "serviceName": "s"}));
    says("record.lock");
    assert_eq!(unwatched.state(), "formed", "the claim does not depend on the volume");
    std::fs::remove_file(&record).unwrap();
    std::fs::create_dir(&record).unwrap();
    says("could not read");
}

/// What a start is told: convene's words, and how many replicas the StatefulSet has.
struct Manifest {
    words: &'static [&'static str],
    replicas: u32,
}

/// Every file that one start leaves behind and the next one finds.
const STEPS: [&str; 4] = ["node-id", "convene/record.json", "convene/listed.json", "convene/agent.json"];

/// A founding that is killed, and the start after it.
struct Founding {
    world: World,
    claim: KeptConfigMap,
}

impl Founding {
    /// The first server of several; all Pods have their addresses, and no agent runs.
    fn new() -> Self {
        let world = World::new();
        for ordinal in 1..5 {
            world.pod(&format!("consul-server-{ordinal}"), "Pending", ordinal + 1);
        }
        let claim = KeptConfigMap::at(&world.api, CONFIG_MAPS, "consul-server-convene");
        // An agent that has started and has nothing to do.
        std::os::unix::fs::symlink("/bin/true", world.path("consul")).unwrap();
        Self { world, claim }
    }

    /// An empty disk, but for what an earlier life may have left, and no claim.
    fn begin(&self) {
        self.claim.forget();
        let data = self.world.path("data");
        std::fs::remove_dir_all(&data).unwrap();
        std::fs::create_dir_all(format!("{data}/convene")).unwrap();
        std::fs::write(format!("{data}/convene/listed.json"), "{}").unwrap();
    }

    fn start(&self, manifest: &Manifest) -> Convene {
        let spec = json!({"replicas": manifest.replicas, "serviceName": "s", "podManagementPolicy": "Parallel"});
        self.world.statefulset(spec);
        let convene = self.world.convene(manifest.words).words(["--advertise=pod", "--wait=0s"]);
        if manifest.words[0] == "init" {
            return convene.words(["--role=server"]);
        }
        let agent = [self.world.path("consul"), format!("-data-dir={}", self.world.path("data"))];
        convene.words(["--", &agent[0], "agent", "-server", "-client=0.0.0.0", &agent[1]])
    }

    /// What starts that nothing disturbs end in: the expect that is claimed, and the rendered file.
    fn undisturbed(&self, manifests: &[&Manifest]) -> (String, String) {
        self.begin();
        for manifest in manifests {
            tells(&self.start(manifest).run(), 0, &[]);
        }
        (self.claimed().to_string(), self.file("convene/agent.json").unwrap())
    }

    fn file(&self, name: &str) -> Option<String> {
        std::fs::read_to_string(self.world.files.path().join("data").join(name)).ok()
    }

    fn json(&self, name: &str) -> Option<Value> {
        self.file(name).map(|text| serde_json::from_str(&text).unwrap())
    }

    /// What is there: the claim, then the files.
    fn steps(&self) -> Vec<&'static str> {
        let claim = self.claim.now().map(|_| "claim");
        claim.into_iter().chain(STEPS.into_iter().filter(|step| self.file(step).is_some())).collect()
    }

    /// The expect of the claim.
    fn claimed(&self) -> Value {
        self.claim.now().unwrap()["data"]["expect"].as_str().unwrap().parse::<u32>().unwrap().into()
    }

    /// Whatever is left of a start: the start after it ends where undisturbed ones do; gives the expect that it founds with.
    fn starts_again(&self, manifest: &Manifest, ends: &BTreeMap<String, String>) -> String {
        let (node_id, rendered) = (self.file("node-id"), self.json("convene/agent.json"));
        tells(&self.start(manifest).run(), 0, &[]);
        let expect = self.claimed();
        assert_eq!(self.file("convene/agent.json").as_ref(), ends.get(&expect.to_string()));
        let record = self.json("convene/record.json").unwrap();
        assert_eq!((record["node_id"].as_str(), &record["expect"]), (self.file("node-id").as_deref(), &expect));
        assert_eq!(node_id.or(self.file("node-id")), self.file("node-id"), "one that was written stays");
        let first = rendered.map_or(expect.clone(), |first| first["bootstrap_expect"].clone());
        assert_eq!(first, expect, "two foundings that differ");
        assert_eq!(self.claim.accepted().len(), 1, "one claim, with one ID: {:?}", self.claim.accepted());
        assert!(self.file("convene/listed.json").is_none());
        expect.to_string()
    }
}

/// Kills a founding at every step, and starts again.
fn killed_at_every_step(first: &Manifest, second: &Manifest) {
    let founding = Founding::new();
    let ends = BTreeMap::from([founding.undisturbed(&[second]), founding.undisturbed(&[first, second])]);
    let (mut left, mut expects) = (Vec::new(), BTreeSet::new());
    for deeds in 0.. {
        founding.begin();
        let mut done = 0;
        let ended = killed_when(founding.start(first), |moment| {
            done += usize::from(moment.is_of_a_deed());
            done > deeds
        });
        let steps = founding.steps();
        if left.last() != Some(&steps) {
            left.push(steps);
        }
        expects.insert(founding.starts_again(second, &ends));
        if ended {
            break;
        }
    }
    let [node_id, record, listed, rendered] = STEPS;
    let steps = [
        vec![listed],
        vec!["claim", listed],
        vec!["claim", node_id, listed],
        vec!["claim", node_id, record, listed],
        vec!["claim", node_id, record],
        vec!["claim", node_id, record, rendered],
    ];
    assert_eq!(left, steps, "each of them was the last one before a kill");
    assert!(expects.iter().eq(ends.keys()), "{expects:?}");
}

#[test]
fn killed_at_any_step_of_a_founding_the_next_start_ends_where_one_start_would_have() {
    let same = Manifest { words: &["init"], replicas: 3 };
    killed_at_every_step(&same, &same);
}

#[test]
fn killed_at_any_step_of_a_founding_a_start_by_a_larger_manifest_founds_with_the_claims_expect() {
    killed_at_every_step(&Manifest { words: &["init"], replicas: 3 }, &Manifest { words: &["init"], replicas: 5 });
}

#[test]
fn killed_at_any_step_up_to_the_agents_start_the_next_one_ends_where_one_start_would_have() {
    let first = Manifest { words: &["run", "--exec", "--expect=3"], replicas: 3 };
    killed_at_every_step(&first, &Manifest { words: &["run", "--exec", "--expect=5"], replicas: 5 });
}

#[test]
fn a_server_joins_no_pod_of_another_statefulset_but_by_hand_and_a_client_any() {
    let world = World::new();
    let owned = |name: &str, host: u8, owner: &str| {
        let mut pod = world.pod_json(name, "Running", &[host]);
        let replica_set = json!({"kind": "ReplicaSet", "name": "older", "uid": "r", "controller": false});
        pod["metadata"]["ownerReferences"] =
            json!([replica_set, {"kind": "StatefulSet", "name": owner, "uid": "s", "controller": true}]);
        pod
    };
    let bare = world.pod_json("bare", "Running", &[4]);
    let items = [owned("ours", 2, "consul-server"), owned("theirs", 3, "vault-consul"), bare];
    world.answers(PODS, &json!({"metadata": {}, "items": items}));
    let _servers = [2, 3, 4].map(|host| world.never_formed(host));
    let source = "--discover=k8s:app=consul";
    let server = world.init(&["--claim=off", source]);
    server.ends(0, &[]);
    let theirs = "not joined: a stranger: its Pod belongs to StatefulSet vault-consul in namespace prod";
    assert!(server.stderr.contains(theirs), "{}", server.stderr);
    let ip = |host| world.block.ip(host).to_string();
    assert_eq!(world.rendered()["retry_join"], json!([ip(4), ip(2)]));
    let by_hand = format!("--discover=static:{}", ip(3));
    world.init(&["--claim=off", source, &by_hand]).ends(0, &[]);
    assert!(world.rendered()["retry_join"].as_array().unwrap().contains(&json!(ip(3))));
    world.convene(&["init", "--role=client", "--wait=0s", source]).run().ends(0, &[]);
    assert!(world.rendered()["retry_join"].as_array().unwrap().contains(&json!(ip(3))));
}

//! How a stop goes: why it comes, what is done about it, and what it costs the others. By `run` at a TERM and by the preStop
//! hook `leave`, with a Kubernetes API and agents that are servers on real sockets, and with real Consul where Raft decides.

// A panic is how a test fails; clippy's own exception for tests covers `#[test]` functions only.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "support/mod.rs"]
mod support;

use convene::api::kube::Timestamp;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, SystemTime};
use support::cluster::{Cluster, MANAGEMENT, wait_until};
use support::dns::ScriptedDns;
use support::http::{Call, Reply, ScriptedHttp};
use support::net::{LoopbackBlock, loopback_block};
use support::port::OpenPort;
use support::program::Convene;
use support::skip::needs_consul;
use tempfile::TempDir;

const PODS: &str = "/api/v1/namespaces/demo/pods";
const EVENTS: &str = "/api/v1/namespaces/demo/events";
const STATEFULSET: &str = "/apis/apps/v1/namespaces/demo/statefulsets/consul-server";
const LEAVE: &str = "/v1/agent/leave";

fn pod_name(ordinal: u8) -> String {
    format!("consul-server-{ordinal}")
}

// === the Kubernetes API ===

/// An API server that knows some Pods of StatefulSet consul-server and takes Events.
struct Kubernetes {
    api: ScriptedHttp,
    files: TempDir,
}

impl Kubernetes {
    /// `size` Pods that run, ordinal 0 first, and as many replicas.
    fn new(size: u8, ip: impl Fn(u8) -> IpAddr) -> Self {
        let world = Self { api: ScriptedHttp::start(), files: tempfile::tempdir().unwrap() };
        std::fs::write(world.kubeconfig(), world.api.kubeconfig(&json!({"token": "t"}))).unwrap();
        for ordinal in 0..12 {
            world.says(&format!("{PODS}/{}", pod_name(ordinal)), 404);
            // Neither there nor not: the address on the volume is used.
            world.says(&format!("/api/v1/namespaces/demo/services/{}", pod_name(ordinal)), 500);
        }
        (0..size).for_each(|ordinal| world.pod(ordinal, &running(ordinal, ip(ordinal))));
        world.replicas(size);
        world.api.always(Call::post(EVENTS, Reply::Json(201, "{}".to_owned())));
        world
    }

    fn kubeconfig(&self) -> PathBuf {
        self.files.path().join("kubeconfig")
    }

    /// The answers of the API server 1.34 when the namespace is deleted, while the Pods end: all is there, and nothing new is taken.
    fn namespace_is_deleted(&self) {
        let said = "unable to create new content in namespace demo because it is being terminated";
        let cause = json!({"reason": "NamespaceTerminating", "message": "namespace demo is being terminated", "field": "metadata.namespace"});
        let body = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": said,
            "reason": "Forbidden", "details": {"kind": "events", "causes": [cause]}, "code": 403});
        self.api.always(Call::post(EVENTS, Reply::Json(403, body.to_string())));
    }

    fn says(&self, path: &str, status: u16) {
        self.api.always(Call::get(path, failure(status)));
    }

    fn pod(&self, ordinal: u8, pod: &Value) {
        self.api.always(Call::get(&format!("{PODS}/{}", pod_name(ordinal)), Reply::ok(&pod.to_string())));
    }

    fn no_pod(&self, ordinal: u8) {
        self.says(&format!("{PODS}/{}", pod_name(ordinal)), 404);
    }

    fn replicas(&self, replicas: u8) {
        self.statefulset(
            &json!({"metadata": {"uid": "u"}, "spec": {"replicas": replicas, "podManagementPolicy": "Parallel"}}),
        );
    }

    fn statefulset(&self, set: &Value) {
        self.api.always(Call::get(STATEFULSET, Reply::ok(&set.to_string())));
    }

    /// Nothing is answered any more, but connections are taken.
    fn silent(&self, ordinal: u8) {
        self.api.always(Call::get(STATEFULSET, Reply::Nothing));
        self.api.always(Call::get(&format!("{PODS}/{}", pod_name(ordinal)), Reply::Nothing));
    }

    /// Reason and message of each Event on a Pod about its stop.
    fn events(&self, ordinal: u8) -> Vec<(String, String)> {
        let all = self.all_events(ordinal).into_iter();
        all.filter(|(reason, _)| ["Stopping", "Left", "NotLeft"].contains(&reason.as_str())).collect()
    }

    /// Of each Event on a Pod.
    fn all_events(&self, ordinal: u8) -> Vec<(String, String)> {
        let requests = self.api.requests();
        let posted = requests.iter().filter(|request| request.method == "POST");
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let all = posted.map(|request| serde_json::from_str::<Value>(&request.body).unwrap());
        all.filter(|event| event["involvedObject"]["name"] == pod_name(ordinal))
            .map(|event| (text(&event["reason"]), text(&event["message"])))
            .collect()
    }
}

/// What the API server says instead of an answer.
fn failure(status: u16) -> Reply {
    let body = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": "no", "code": status});
    Reply::Json(status, body.to_string())
}

fn running(ordinal: u8, ip: IpAddr) -> Value {
    json!({"metadata": {"name": pod_name(ordinal), "uid": uid(ordinal)}, "spec": {"containers": []},
        "status": {"phase": "Running", "podIP": ip}})
}

fn uid(ordinal: u8) -> String {
    format!("uid-{ordinal}")
}

/// A Pod whose deletion was asked for, gone in so many seconds.
fn deleted(mut pod: Value, seconds: i64, grace: u64) -> Value {
    let by = Timestamp::now().as_second() + seconds;
    pod["metadata"]["deletionTimestamp"] = json!(Timestamp::from_second(by).unwrap().to_string());
    pod["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
    pod
}

fn annotated(mut pod: Value, order: &str) -> Value {
    pod["metadata"]["annotations"]["convene.dev/leave"] = json!(order);
    pod
}

/// What a volume holds whose server has run before: at an address that outlives its Pod, or not.
fn write_record(data: &Path, ordinal: u8, ip: IpAddr, stable: bool) {
    std::fs::create_dir_all(data.join("convene")).unwrap();
    let record = json!({
        "version": 1, "node_id": format!("00000000-0000-4000-8000-00000000000{ordinal}"),
        "owner": {"namespace": "demo", "statefulset": "consul-server", "pod": pod_name(ordinal)},
        "advertise": ip, "addresses": [ip], "stable": stable,
    });
    std::fs::write(data.join("convene/record.json"), record.to_string()).unwrap();
}

fn has_left(data: &Path) -> bool {
    let record: Value = serde_json::from_slice(&std::fs::read(data.join("convene/record.json")).unwrap()).unwrap();
    record["left"] == true
}

// === agents that say what a test wants ===

/// A server, and others, of a cluster that is played: each has an HTTP API and an open server port at an address of its own.
struct Scene {
    block: LoopbackBlock,
    kubernetes: Kubernetes,
    agents: BTreeMap<u8, (ScriptedHttp, OpenPort)>,
    dns: ScriptedDns,
    files: TempDir,
    us: u8,
    size: u8,
}

/// What convene did.
struct Stopped {
    code: i32,
    log: String,
}

impl Scene {
    /// `size` servers that are well, led by ordinal 0; we are the highest.
    fn new(size: u8) -> Self {
        Self::of(size - 1, size)
    }

    /// The same, where we are another ordinal.
    fn of(us: u8, size: u8) -> Self {
        let block = loopback_block();
        let kubernetes = Kubernetes::new(size, |ordinal| block.ip(ordinal + 2).into());
        let (dns, files) = (ScriptedDns::zone(), tempfile::tempdir().unwrap());
        let mut scene = Self { block, kubernetes, agents: BTreeMap::new(), dns, files, us, size };
        (0..size).for_each(|ordinal| scene.start(ordinal));
        scene.records(true);
        scene.us().always(Call::get("/v1/agent/members", Reply::ok(&scene.members())));
        scene.configuration(&[]);
        scene
    }

    fn ip(&self, ordinal: u8) -> Ipv4Addr {
        self.block.ip(ordinal + 2)
    }

    /// An agent that follows ordinal 0 and lists all.
    fn start(&mut self, ordinal: u8) {
        let agent = ScriptedHttp::at(&self.block.at(ordinal + 2, 8500));
        self.agents.insert(ordinal, (agent, OpenPort::at(&self.block.at(ordinal + 2, 8300))));
        self.follows(ordinal, Some(0));
        self.lists(ordinal, &(0..self.size).collect::<Vec<_>>());
        // Nobody has a token for another server.
        self.agent(ordinal).always(Call::get("/v1/agent/members", Reply::ok("[]")));
        self.agent(ordinal).always(Call::get("/v1/agent/services", Reply::ok("{}")));
        self.has_copied(ordinal, 100);
        // Which cluster it is matters to nobody here.
        let roots = "/v1/connect/ca/roots?stale";
        self.agent(ordinal).always(Call::get(roots, Reply::Json(500, "Connect is disabled".to_owned())));
    }

    /// How far a server's log reaches, as its agent tells.
    fn has_copied(&self, ordinal: u8, index: u64) {
        let told = json!({"Config": {"NodeName": pod_name(ordinal), "NodeID": "", "Server": true},
            "Stats": {"raft": {"last_log_term": "2", "last_log_index": index.to_string()}}});
        self.agent(ordinal).always(Call::get("/v1/agent/self", Reply::ok(&told.to_string())));
    }

    /// Its Pod is being deleted.
    fn goes(&self, ordinal: u8) {
        self.kubernetes.pod(ordinal, &deleted(running(ordinal, self.ip(ordinal).into()), 600, 600));
    }

    /// It is not there.
    fn end(&mut self, ordinal: u8) {
        self.agents.remove(&ordinal).unwrap().0.finish();
    }

    fn agent(&self, ordinal: u8) -> &ScriptedHttp {
        &self.agents[&ordinal].0
    }

    fn us(&self) -> &ScriptedHttp {
        self.agent(self.us)
    }

    fn follows(&self, ordinal: u8, leader: Option<u8>) {
        let leader = leader.map(|leader| self.block.at(leader + 2, 8300)).unwrap_or_default();
        self.agent(ordinal).always(Call::get("/v1/status/leader", Reply::ok(&json!(leader).to_string())));
    }

    fn lists(&self, ordinal: u8, peers: &[u8]) {
        let peers: Vec<String> = peers.iter().map(|peer| self.block.at(peer + 2, 8300)).collect();
        self.agent(ordinal).always(Call::get("/v1/status/peers", Reply::ok(&json!(peers).to_string())));
    }

    fn members(&self) -> String {
        let member = |ordinal: u8| json!({"Name": pod_name(ordinal), "Addr": self.ip(ordinal), "Status": 1, "Tags": {"role": "consul"}});
        Value::from_iter((0..self.size).map(member)).to_string()
    }

    /// The leader's configuration, in which these do not vote.
    fn configuration(&self, non_voters: &[u8]) {
        let server = |ordinal: u8| {
            json!({"ID": format!("id-{ordinal}"), "Node": pod_name(ordinal),
            "Address": self.block.at(ordinal + 2, 8300), "Leader": ordinal == 0, "Voter": !non_voters.contains(&ordinal)})
        };
        let servers = json!({"Servers": Value::from_iter((0..self.size).map(server))});
        self.us().always(Call::get("/v1/operator/raft/configuration", Reply::ok(&servers.to_string())));
    }

    /// How far the logs reach that the leader has heard of.
    fn autopilot(&self, indices: &[(u8, u64)]) {
        let server = |(ordinal, index): &(u8, u64)| {
            let address = self.block.at(ordinal + 2, 8300);
            let id = format!("id-{ordinal}");
            (id.clone(), json!({"ID": id, "Address": address, "LastTerm": 2, "LastIndex": index}))
        };
        let state = json!({"Servers": Value::from_iter(indices.iter().map(server))});
        self.us().always(Call::get("/v1/operator/autopilot/state", Reply::ok(&state.to_string())));
    }

    /// The agent takes a leave, once, and a server that does not lead knows of it.
    fn takes_a_leave(&self) {
        self.us().expect(Call::put(LEAVE, Reply::ok("{}")));
        self.lists(1, &(0..self.us).collect::<Vec<_>>());
    }

    /// Our Pod as it runs.
    fn pod(&self) -> Value {
        running(self.us, self.ip(self.us).into())
    }

    fn our_pod(&self, pod: &Value) {
        self.kubernetes.pod(self.us, pod);
    }

    fn our_pod_is_deleted(&self) {
        self.our_pod(&deleted(self.pod(), 600, 600));
    }

    fn data(&self) -> PathBuf {
        self.files.path().join("data")
    }

    fn records(&self, stable: bool) {
        write_record(&self.data(), self.us, self.ip(self.us).into(), stable);
        std::fs::create_dir_all(self.data().join("raft")).unwrap();
        std::fs::write(self.data().join("raft/raft.db"), "").unwrap();
    }

    fn remembered(&self) -> PathBuf {
        self.data().join("convene/statefulset.json")
    }

    fn convene(&self, words: &[&str], grace: &str) -> Convene {
        self.convene_here(words).words([format!("--grace-period={grace}")])
    }

    /// Any command.
    fn convene_here(&self, words: &[&str]) -> Convene {
        Convene::new(words)
            .words(["--role=server", &format!("--data-dir={}", self.data().display())])
            .env("POD_NAME", pod_name(self.us))
            .env("POD_NAMESPACE", "demo")
            .env("POD_UID", uid(self.us))
            .env("POD_IP", self.ip(self.us).to_string())
            .env("KUBECONFIG", self.kubernetes.kubeconfig())
            .env("CONSUL_HTTP_ADDR", self.block.at(self.us + 2, 8500))
    }

    /// The hook, to its end.
    fn leave(&self, words: &[&str], grace: &str) -> Stopped {
        let ended = self.convene(&["leave"], grace).words(words).run();
        Stopped { code: ended.code, log: ended.stderr }
    }

    /// `run` with a CMD that ends at a TERM, up to the moment when it watches and remembers.
    fn run(&self, words: &[&str], grace: &str) -> Running {
        self.run_cmd(&["sleep", "1000"], words, grace)
    }

    /// The same with another CMD.
    fn run_cmd(&self, cmd: &[&str], words: &[&str], grace: &str) -> Running {
        let running = self.start_run(cmd, words, grace);
        running.says("joined: a leader is known");
        wait_until("the StatefulSet to be remembered", || self.remembered().exists().then_some(()), || running.log());
        running
    }

    /// The same from its start on.
    fn start_run(&self, cmd: &[&str], words: &[&str], grace: &str) -> Running {
        let file = self.files.path().join("log");
        let run = self.convene(&["run"], grace).words(words).words([
            "--claim=off",
            "--expect=3",
            "--resolv-conf=/does/not/exist",
        ]);
        let run = run.words([format!("--nameserver={}", self.dns.addr()), "--".to_owned()]).words(cmd);
        Running { child: run.spawn_into(&file), file }
    }

    /// The same while it goes on.
    fn start_leave(&self, words: &[&str], grace: &str) -> Running {
        let file = self.files.path().join("log");
        Running { child: self.convene(&["leave"], grace).words(words).spawn_into(&file), file }
    }

    fn events(&self) -> Vec<(String, String)> {
        self.kubernetes.events(self.us)
    }
}

/// A `run` or a hook that goes on.
struct Running {
    child: Child,
    file: PathBuf,
}

impl Running {
    fn log(&self) -> String {
        std::fs::read_to_string(&self.file).unwrap_or_default()
    }

    fn says(&self, part: &str) {
        wait_until(part, || self.log().contains(part).then_some(()), || self.log());
    }

    fn term(&self) {
        kill(pid(&self.child), Signal::SIGTERM).unwrap();
    }

    fn ended(mut self) -> Stopped {
        let file = self.file.clone();
        let log = || std::fs::read_to_string(&file).unwrap_or_default();
        let status = wait_until("its end", || self.child.try_wait().unwrap(), log);
        Stopped { code: status.code().unwrap_or(-1), log: self.log() }
    }
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(child.id().try_into().unwrap())
}

/// What `run` started.
fn agent_of(run: Pid) -> Pid {
    Pid::from_raw(children(run).parse().unwrap())
}

fn children(run: Pid) -> String {
    std::fs::read_to_string(format!("/proc/{run}/task/{run}/children")).unwrap().trim().to_owned()
}

impl Drop for Running {
    fn drop(&mut self) {
        // CMD ends with a TERM; nothing is left of it.
        if let Ok(None) = self.child.try_wait() {
            self.term();
            let _ = self.child.wait();
        }
    }
}

impl Stopped {
    #[track_caller]
    fn ends(&self, code: i32, parts: &[&str]) -> &Self {
        assert_eq!(self.code, code, "{}", self.log);
        for part in parts {
            assert!(self.log.contains(part), "{part:?} is not in: {}", self.log);
        }
        self
    }

    #[track_caller]
    fn never_says(&self, part: &str) -> &Self {
        assert!(!self.log.contains(part), "{part:?} is in: {}", self.log);
        self
    }
}

// === causes ===

/// A cause, how it comes about, and what is done.
struct Row {
    /// Words for `--leave`.
    words: &'static [&'static str],
    /// What has happened when the stop comes.
    happens: fn(&Scene),
    says: &'static str,
    leaves: bool,
}

const ROWS: &[Row] = &[
    Row {
        words: &["--leave=always"],
        happens: |_| {},
        says: "order to leave: always (--leave says always)",
        leaves: true,
    },
    Row {
        words: &["--leave=never"],
        happens: |scene| scene.our_pod(&annotated(scene.pod(), "always")),
        says: "order to leave: always (the annotation convene.dev/leave says always)",
        leaves: true,
    },
    Row {
        words: &["--leave=never"],
        happens: |scene| {
            scene.our_pod_is_deleted();
            scene.kubernetes.replicas(2);
        },
        says: "order to leave: never (--leave says never)",
        leaves: false,
    },
    Row {
        words: &[],
        happens: |scene| {
            scene.our_pod(&annotated(deleted(scene.pod(), 600, 600), "never"));
            scene.kubernetes.replicas(2);
        },
        says: "order to leave: never (the annotation convene.dev/leave says never)",
        leaves: false,
    },
    Row {
        words: &[],
        happens: |scene| {
            let mut pod = annotated(scene.pod(), "always");
            pod["metadata"]["uid"] = json!("uid-of-another");
            scene.our_pod(&pod);
        },
        says: "replaced (another Pod has our name already)",
        leaves: false,
    },
    Row {
        words: &[],
        happens: |scene| scene.kubernetes.no_pod(scene.us),
        says: "replaced (our Pod is gone from the Kubernetes API)",
        leaves: false,
    },
    Row {
        words: &[],
        happens: |scene| scene.our_pod(&annotated(scene.pod(), "sometimes")),
        says: "container restart (our Pod is not being deleted)",
        leaves: false,
    },
    Row {
        words: &[],
        happens: |scene| {
            scene.our_pod_is_deleted();
            scene.kubernetes.says(STATEFULSET, 404);
        },
        says: "teardown (the StatefulSet is gone or being deleted)",
        leaves: false,
    },
    Row {
        words: &[],
        happens: |scene| {
            scene.our_pod_is_deleted();
            let meta = json!({"uid": "u", "deletionTimestamp": "2026-01-01T00:00:00Z"});
            scene.kubernetes.statefulset(&json!({"metadata": meta, "spec": {"replicas": 0}}));
        },
        says: "teardown (the StatefulSet is gone or being deleted)",
        leaves: false,
    },
    Row {
        words: &[],
        happens: |scene| {
            scene.our_pod_is_deleted();
            scene.kubernetes.namespace_is_deleted();
        },
        says: "teardown (the namespace is being deleted)",
        leaves: false,
    },
    Row {
        words: &[],
        happens: |scene| {
            scene.our_pod_is_deleted();
            scene.kubernetes.replicas(0);
        },
        says: "hibernate (the StatefulSet has 0 replicas)",
        leaves: false,
    },
    Row {
        words: &[],
        happens: |scene| {
            scene.our_pod_is_deleted();
            scene.kubernetes.replicas(2);
        },
        says: "scale-down (the StatefulSet has 2 replicas from ordinal 0 on, and ours is 2)",
        leaves: true,
    },
    Row {
        words: &[],
        happens: Scene::our_pod_is_deleted,
        says: "restart (our Pod is being deleted, and the StatefulSet has 3 replicas)",
        leaves: false,
    },
    Row {
        words: &[],
        happens: |scene| {
            scene.our_pod_is_deleted();
            scene.kubernetes.says(STATEFULSET, 403);
            let _ = std::fs::remove_file(scene.remembered());
        },
        says: "unknown (the Kubernetes API answered 403",
        leaves: false,
    },
];

/// Each row, stopped by this; then the record and the one Event must agree with what was done.
fn each_cause(stop: impl Fn(&Scene, &Row) -> Stopped) {
    for row in ROWS {
        let scene = Scene::new(3);
        if row.leaves {
            scene.takes_a_leave();
        }
        let stopped = stop(&scene, row);
        stopped.ends(0, &[row.says]);
        assert_eq!(has_left(&scene.data()), row.leaves, "{}", row.says);
        let events = scene.events();
        assert_eq!(events.len(), 1, "{}: {events:?}", row.says);
        assert_eq!(events[0].0, if row.leaves { "Left" } else { "Stopping" });
        assert!(events[0].1.starts_with(row.says), "{}", events[0].1);
        let done = if row.leaves { "the raft peers of 127." } else { "nothing was to be done" };
        assert!(events[0].1.contains(done), "{}", events[0].1);
        assert_eq!(stopped.log.matches("ready to end the agent after").count(), 1, "{}", stopped.log);
    }
}

#[test]
fn a_hook_finds_each_cause_and_leaves_for_an_order_or_a_removal_only() {
    each_cause(|scene, row| {
        (row.happens)(scene);
        scene.leave(row.words, "20s")
    });
}

#[test]
fn a_term_finds_each_cause_and_leaves_for_an_order_or_a_removal_only() {
    each_cause(|scene, row| {
        let running = scene.run(row.words, "20s");
        (row.happens)(scene);
        running.term();
        running.ended()
    });
}

#[test]
fn an_annotation_that_says_another_word_orders_nothing_and_is_told() {
    let scene = Scene::new(3);
    scene.our_pod(&annotated(scene.pod(), "sometimes"));
    scene.leave(&[], "20s").ends(0, &["says \"sometimes\", which is neither always nor never", "container restart"]);
}

#[test]
fn a_silent_api_leaves_the_cause_to_an_answer_of_the_last_minute() {
    let scene = Scene::new(3);
    scene.takes_a_leave();
    let running = scene.run(&[], "20s");
    // Scaled down, and seen by the watch; then nobody answers any more.
    std::fs::write(scene.remembered(), r#"{"replicas":2,"start":0}"#).unwrap();
    scene.kubernetes.silent(scene.us);
    running.term();
    running.ended().ends(0, &["scale-down (the StatefulSet has 2 replicas (", " s ago)", "left in"]);
    assert!(has_left(&scene.data()));
}

#[test]
fn an_older_answer_decides_nothing_and_an_unknown_cause_never_leaves() {
    let scene = Scene::new(3);
    std::fs::write(scene.remembered(), r#"{"replicas":2,"start":0}"#).unwrap();
    let file = std::fs::File::options().write(true).open(scene.remembered()).unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(61)).unwrap();
    scene.kubernetes.silent(scene.us);
    scene
        .leave(&[], "20s")
        .ends(0, &["unknown (the Kubernetes API did not answer within 2.0 s", "nothing was to be done"]);
    // Nor does one from the future: nobody knows how old it is.
    file.set_modified(SystemTime::now() + Duration::from_secs(3600)).unwrap();
    scene.leave(&[], "20s").ends(0, &["unknown ("]);
    assert!(!has_left(&scene.data()));
}

#[test]
fn without_a_stable_address_a_restart_leaves() {
    let scene = Scene::new(3);
    scene.records(false);
    scene.our_pod_is_deleted();
    scene.takes_a_leave();
    scene.leave(&[], "20s").ends(0, &["restart (our Pod is being deleted", "left in"]);
    assert!(has_left(&scene.data()));
}

#[test]
fn without_a_stable_address_the_only_voter_restarts_without_a_leave_and_waits_for_nobody() {
    let scene = Scene::new(1);
    scene.records(false);
    scene.our_pod_is_deleted();
    scene.leave(&[], "600s").ends(0, &["did not leave, since nobody else votes"]);
}

// === gates ===

/// A scale-down whose gates stay shut, to the end of a short grace period.
#[track_caller]
fn refused(scene: &Scene, gate: &str) {
    scene.our_pod_is_deleted();
    let refused = scene.leave(&[], "6s");
    refused.ends(69, &[gate, "stopping without", "a grace period of 6.0 s is too short"]);
    assert!(!has_left(&scene.data()));
    let events = scene.events();
    assert!(events.len() == 1 && events[0].0 == "NotLeft" && events[0].1.contains(gate), "{events:?}");
}

#[test]
fn each_gate_refuses_with_its_numbers_and_the_server_stops_without_leaving() {
    let doomed = |size: u8, replicas: u8| {
        let scene = Scene::new(size);
        scene.kubernetes.replicas(replicas);
        scene
    };
    let no_leader = doomed(3, 2);
    (0..3).for_each(|ordinal| no_leader.follows(ordinal, None));
    let not_listed = doomed(3, 2);
    // Nobody told us: our own agent still lists us.
    not_listed.lists(0, &[0, 1]);
    let mut two_dead = doomed(5, 3);
    two_dead.end(1);
    two_dead.end(2);
    let mut one_votes = doomed(5, 3);
    one_votes.configuration(&[2, 3]);
    one_votes.end(1);
    let silent = format!("consul-server-1 is away ({}:8300: Connection refused", two_dead.ip(1));
    thread::scope(|scope| {
        scope.spawn(|| refused(&no_leader, "gate 1: no leader is known"));
        scope.spawn(|| refused(&not_listed, "gate 2: we are not among the 2 raft peers"));
        scope.spawn(|| {
            refused(&two_dead, "gate 3: 2 of the 4 voters without us answer, which is no majority");
            assert!(two_dead.events()[0].1.contains(&silent), "{}", two_dead.events()[0].1);
        });
        // Two that have no vote yet make no majority.
        scope.spawn(|| refused(&one_votes, "gate 3: 1 of the 2 voters without us answer, which is no majority"));
    });
}

#[test]
fn a_lower_ordinal_leaves_once_the_higher_one_is_out() {
    let scene = Scene::of(3, 5);
    scene.kubernetes.replicas(3);
    scene.our_pod_is_deleted();
    let hook = scene.start_leave(&[], "60s");
    hook.says("the leave waits: gate 4: consul-server-4 has a higher ordinal, goes too, and has not left yet");
    scene.us().expect(Call::put(LEAVE, Reply::ok("{}")));
    scene.lists(1, &[0, 1, 2]);
    (0..4).filter(|ordinal| *ordinal != 1).for_each(|ordinal| scene.lists(ordinal, &[0, 1, 2, 3]));
    hook.ended().ends(0, &["waited", "because gate 4: consul-server-4", "left in"]);
}

#[test]
fn a_higher_ordinal_that_is_dead_is_not_waited_for_whatever_its_pod_says() {
    let mut scene = Scene::of(3, 5);
    scene.kubernetes.replicas(3);
    scene.our_pod_is_deleted();
    scene.end(4);
    scene.us().expect(Call::put(LEAVE, Reply::ok("{}")));
    scene.lists(1, &[0, 1, 2, 4]);
    scene.leave(&[], "600s").ends(0, &["gate 4: consul-server-4", "left in"]);
}

#[test]
fn one_whose_pod_does_not_run_is_not_waited_for_at_all() {
    let scene = Scene::of(3, 5);
    scene.kubernetes.replicas(3);
    scene.our_pod_is_deleted();
    scene.kubernetes.no_pod(4);
    scene.us().expect(Call::put(LEAVE, Reply::ok("{}")));
    scene.lists(1, &[0, 1, 2, 4]);
    scene.leave(&[], "600s").ends(0, &["left in"]).never_says("gate 4");
}

#[test]
fn a_higher_ordinal_that_stays_is_not_waited_for() {
    // The first ordinal moved up: 0 goes, 1 and 2 stay.
    let scene = Scene::of(0, 3);
    (0..3).for_each(|ordinal| scene.follows(ordinal, Some(2)));
    scene.kubernetes.statefulset(&json!({"metadata": {}, "spec": {"replicas": 2, "ordinals": {"start": 1}}}));
    scene.our_pod_is_deleted();
    scene.us().expect(Call::put(LEAVE, Reply::ok("{}")));
    scene.lists(1, &[1, 2]);
    scene
        .leave(&[], "600s")
        .ends(0, &["scale-down (the StatefulSet has 2 replicas from ordinal 1 on, and ours is 0)", "left in"])
        .never_says("gate 4");
}

#[test]
fn a_leave_ends_without_one_when_all_others_have_left_meanwhile() {
    let scene = Scene::new(3);
    scene.records(false);
    scene.our_pod_is_deleted();
    scene.us().expect(Call::put(LEAVE, Reply::Nothing));
    let force = format!("/v1/agent/force-leave/{}", pod_name(2));
    for other in [0, 1] {
        scene.agent(other).always(Call::put(&force, Reply::Json(403, "Permission denied".to_owned())));
    }
    let hook = scene.start_leave(&[], "600s");
    scene.us().wait_for(LEAVE, 1);
    scene.lists(2, &[2]);
    hook.ended().ends(0, &["did not leave, since nobody else votes any more"]);
    assert!(!has_left(&scene.data()));
}

#[test]
fn without_stable_addresses_servers_that_all_stop_at_once_leave_gossip_and_keep_their_data() {
    for lead in [0, 2] {
        let scene = Scene::new(3);
        scene.records(false);
        (0..3).for_each(|ordinal| scene.follows(ordinal, Some(lead)));
        scene.our_pod_is_deleted();
        scene.goes(1);
        scene.us().expect(Call::put(LEAVE, Reply::Nothing));
        scene
            .leave(&[], "600s")
            .ends(0, &["restart", "left gossip and keeps its data, since a majority stops at once"]);
        assert!(!has_left(&scene.data()));
    }
}

#[test]
fn whoever_is_silent_keeps_nobody_from_seeing_that_it_is_alone() {
    let scene = Scene::new(3);
    scene.records(false);
    scene.our_pod_is_deleted();
    scene.us().expect(Call::put(LEAVE, Reply::Nothing));
    let force = format!("/v1/agent/force-leave/{}", pod_name(2));
    let hook = scene.start_leave(&[], "600s");
    scene.us().wait_for(LEAVE, 1);
    // Pods that are gone: what they are asked is swallowed.
    for other in [0, 1] {
        scene.agent(other).always(Call::get("/v1/status/peers", Reply::Nothing));
        scene.agent(other).always(Call::put(&force, Reply::Nothing));
    }
    scene.lists(2, &[2]);
    hook.ended().ends(0, &["did not leave, since nobody else votes any more"]);
    assert!(!has_left(&scene.data()));
}

#[test]
fn of_servers_that_all_leave_at_once_the_last_one_needs_nobody_to_confirm_it() {
    let mut scene = Scene::new(3);
    scene.records(false);
    scene.our_pod_is_deleted();
    scene.us().expect(Call::put(LEAVE, Reply::Nothing));
    let hook = scene.start_leave(&[], "600s");
    scene.us().wait_for(LEAVE, 1);
    // The one that led has let us go, which only our own agent has heard; then both ended.
    scene.lists(2, &[0]);
    [0, 1].into_iter().for_each(|other| scene.end(other));
    hook.ended().ends(0, &["left in", "our own raft peers lack us, and no other server answers any more"]);
    assert!(has_left(&scene.data()));
}

#[test]
fn a_leave_that_gossip_does_not_carry_is_told_to_the_others_by_api() {
    let scene = Scene::new(3);
    scene.kubernetes.replicas(2);
    scene.our_pod_is_deleted();
    scene.us().expect(Call::put(LEAVE, Reply::ok("{}")));
    // Who has no operator:write is refused by the one; the other takes it.
    let force = format!("/v1/agent/force-leave/{}", pod_name(2));
    scene.agent(0).always(Call::put(&force, Reply::Json(403, "Permission denied".to_owned())));
    scene.agent(1).always(Call::put(&force, Reply::ok("")));
    let hook = scene.start_leave(&[], "600s");
    scene.agent(1).wait_for(&force, 1);
    scene.lists(1, &[0, 1]);
    hook.ended().ends(0, &["left in", "lack us, told by API since gossip was late"]);
    assert!(has_left(&scene.data()));
}

// === the time there is ===

#[test]
fn the_deletion_s_own_end_counts_when_it_is_earlier_than_the_grace_period() {
    let scene = Scene::new(3);
    scene.kubernetes.replicas(2);
    (0..3).for_each(|ordinal| scene.follows(ordinal, None));
    // The last second of what is left is the agent's.
    scene.our_pod(&deleted(scene.pod(), 7, 3600));
    scene.leave(&[], "3600s").ends(69, &["gate 1", "stopping without"]);
    // The clock of the API server is an hour ahead, and its grace period is counted by ours.
    scene.our_pod(&deleted(scene.pod(), 3600, 6));
    scene.leave(&[], "3600s").ends(69, &["gate 1", "a grace period of 6.0 s is too short"]);
}

#[test]
fn a_clock_of_the_api_server_that_is_behind_takes_no_time_away() {
    let scene = Scene::new(3);
    scene.kubernetes.replicas(2);
    scene.our_pod(&deleted(scene.pod(), -3600, 120));
    scene.takes_a_leave();
    scene.leave(&[], "120s").ends(0, &["the API server's clock and this machine's differ", "left in"]);
}

// === who is waited for ===

#[test]
fn a_server_that_was_dead_before_is_waited_for_a_moment_and_then_the_stop_goes_on() {
    let mut scene = Scene::new(3);
    scene.end(1);
    scene.our_pod_is_deleted();
    let stopped = scene.leave(&[], "120s");
    stopped.ends(0, &["the stop waits: consul-server-1 is away", ": waited ", "because consul-server-1 is away"]);
    stopped.never_says("in vain");
}

#[test]
fn others_that_are_all_late_are_waited_for_and_others_that_all_refuse_are_not() {
    let mut scene = Scene::new(3);
    scene.our_pod_is_deleted();
    for other in [0, 1] {
        scene.agent(other).always(Call::get("/v1/status/leader", Reply::Nothing));
    }
    let hook = scene.start_leave(&[], "120s");
    hook.says("the stop waits: consul-server-0 is away");
    [0, 1].into_iter().for_each(|other| scene.follows(other, Some(0)));
    hook.ended().ends(0, &["restart", ": waited ", "is silent"]).never_says("in vain");
    [0, 1].into_iter().for_each(|other| scene.end(other));
    scene.leave(&[], "120s").ends(0, &["restart"]).never_says("waits");
}

#[test]
fn a_raft_peer_without_a_vote_is_not_waited_for_and_waits_for_nobody() {
    let mut scene = Scene::new(3);
    scene.configuration(&[1]);
    scene.end(1);
    scene.our_pod_is_deleted();
    scene.leave(&[], "120s").ends(0, &["nothing was to be done"]).never_says("waits");
    scene.configuration(&[2]);
    scene.leave(&[], "120s").ends(0, &["nothing was to be done"]).never_says("waits");
}

#[test]
fn of_two_that_stop_together_the_higher_one_goes_first_and_is_waited_for_until_it_is_back() {
    let mut scene = Scene::of(3, 5);
    scene.our_pod_is_deleted();
    scene.goes(4);
    let hook = scene.start_leave(&[], "600s");
    hook.says("the stop waits: consul-server-4 stops too, and the higher ordinal goes first");
    scene.end(4);
    scene.kubernetes.no_pod(4);
    hook.says("the stop waits: consul-server-4 is away");
    scene.start(4);
    hook.ended().ends(0, &["waited"]).never_says("in vain");
}

#[test]
fn of_two_of_three_or_of_all_that_stop_together_one_goes_after_the_other() {
    the_middle_one_waits_for_the_highest(&[2]);
    the_middle_one_waits_for_the_highest(&[0, 2]);
}

/// These stop beside it.
#[track_caller]
fn the_middle_one_waits_for_the_highest(going: &[u8]) {
    let mut scene = Scene::of(1, 3);
    scene.our_pod_is_deleted();
    going.iter().for_each(|ordinal| scene.goes(*ordinal));
    let hook = scene.start_leave(&[], "600s");
    hook.says("the stop waits: consul-server-2 stops too, and the higher ordinal goes first");
    scene.end(2);
    scene.kubernetes.pod(2, &running(2, scene.ip(2).into()));
    hook.says("the stop waits: consul-server-2 is away");
    scene.start(2);
    hook.ended().ends(0, &["restart"]).never_says("in vain");
}

/// The middle one of three waits, since the highest stops too.
fn waiting_for_the_highest() -> (Scene, Running) {
    let scene = Scene::of(1, 3);
    scene.our_pod_is_deleted();
    scene.goes(2);
    let hook = scene.start_leave(&[], "600s");
    hook.says("the stop waits: consul-server-2 stops too, and the higher ordinal goes first");
    (scene, hook)
}

#[test]
fn who_was_to_go_first_is_waited_for_while_nobody_tells_of_it() {
    let (scene, hook) = waiting_for_the_highest();
    let path = format!("{PODS}/{}", pod_name(2));
    scene.kubernetes.says(&path, 500);
    scene.kubernetes.api.wait_for_more(&path, 4);
    scene.kubernetes.pod(2, &running(2, scene.ip(2).into()));
    hook.ended().ends(0, &["because consul-server-2 stops too"]).never_says("in vain");
}

#[test]
fn one_question_that_fails_ends_no_wait() {
    let (scene, hook) = waiting_for_the_highest();
    scene.us().expect(Call::get("/v1/status/leader", failure(500)));
    scene.us().wait_for_more("/v1/status/leader", 4);
    scene.kubernetes.pod(2, &running(2, scene.ip(2).into()));
    hook.ended().ends(0, &["because consul-server-2 stops too"]).never_says("nobody is waited for");
}

#[test]
fn a_wait_in_vain_ends_at_half_of_the_grace_period() {
    let scene = Scene::of(3, 5);
    scene.our_pod_is_deleted();
    scene.goes(4);
    scene.leave(&[], "8s").ends(0, &["in vain because consul-server-4 stops too"]).never_says("no time");
}

// === the own Service ===

/// A Pod that its own Service finds by the label.
fn labelled(mut pod: Value) -> Value {
    pod["metadata"]["labels"]["convene.dev/reachable"] = json!("true");
    pod
}

impl Scene {
    /// Our Pod, found by its Service by the label, is being deleted; it may be changed.
    fn our_labelled_pod_is_deleted(&self) {
        self.our_pod(&labelled(deleted(self.pod(), 600, 600)));
        self.our_label_can_be_changed();
    }

    fn our_label_can_be_changed(&self) {
        self.our_label_is_changed(Reply::ok("{}"));
    }

    fn our_label_cannot_be_changed(&self, status: u16) {
        self.our_label_is_changed(failure(status));
    }

    fn the_next_two_changes_of_our_label_fail(&self) {
        let path = format!("{PODS}/{}", pod_name(self.us));
        (0..2).for_each(|_| self.kubernetes.api.expect(Call::patch(&path, failure(500))));
    }

    fn our_label_is_changed(&self, reply: Reply) {
        let changed = Call::patch(&format!("{PODS}/{}", pod_name(self.us)), reply);
        self.kubernetes.api.always(changed.with_header("content-type", "application/merge-patch+json"));
    }

    /// Its Pod is being deleted, and was taken out of its Service.
    fn withdraws(&self, ordinal: u8) {
        let mut pod = labelled(deleted(running(ordinal, self.ip(ordinal).into()), 600, 600));
        pod["metadata"]["labels"]["convene.dev/reachable"] = json!("false");
        self.kubernetes.pod(ordinal, &pod);
    }

    /// What our Pod's label was made, each time.
    fn labels_given(&self) -> Vec<String> {
        let requests = self.kubernetes.api.requests();
        let patches = requests.iter().filter(|request| request.method == "PATCH");
        let bodies = patches.map(|request| serde_json::from_str::<Value>(&request.body).unwrap());
        bodies
            .inspect(|body| assert_eq!(body["metadata"]["uid"], uid(self.us), "and of no other Pod of that name"))
            .map(|body| body["metadata"]["labels"]["convene.dev/reachable"].as_str().unwrap().to_owned())
            .collect()
    }

    fn wait_for_labels(&self, given: &[&str], hook: &Running) {
        wait_until("a changed label", || (self.labels_given() == given).then_some(()), || hook.log());
    }

    /// kube-proxy has heard of it: nobody is reached at the server port.
    fn our_service_leads_nowhere(&mut self) {
        self.listen_at(8399);
    }

    fn our_service_leads_here(&mut self) {
        self.listen_at(8300);
    }

    fn listen_at(&mut self, port: u16) {
        let port = OpenPort::at(&self.block.at(self.us + 2, port));
        self.agents.get_mut(&self.us).unwrap().1 = port;
    }
}

/// What the label is made.
const OUT: &str = "false";
const BACK: &str = "true";

#[test]
fn a_restart_takes_its_pod_out_of_its_service_and_ends_when_that_refuses() {
    let mut scene = Scene::new(3);
    scene.our_labelled_pod_is_deleted();
    let hook = scene.start_leave(&[], "600s");
    scene.wait_for_labels(&[OUT], &hook);
    scene.our_service_leads_nowhere();
    hook.ended().ends(0, &["its Service leads nowhere after"]).never_says("waits");
    assert_eq!(scene.labels_given(), [OUT], "and its Pod is gone next");
}

#[test]
fn who_may_not_change_its_pod_names_the_right_and_stops_all_the_same() {
    let scene = Scene::new(3);
    scene.our_labelled_pod_is_deleted();
    scene.our_label_cannot_be_changed(403);
    scene.leave(&[], "600s").ends(0, &["patch pods", "nothing was to be done"]);
}

#[test]
fn a_pod_that_is_not_deleted_or_has_no_such_label_or_no_stable_address_is_not_changed() {
    let without_label = Scene::new(3);
    without_label.our_pod_is_deleted();
    let not_deleted = Scene::new(3);
    not_deleted.our_pod(&labelled(not_deleted.pod()));
    let alone = Scene::new(1);
    alone.our_labelled_pod_is_deleted();
    alone.autopilot(&[]);
    for scene in [without_label, not_deleted, alone] {
        scene.leave(&[], "600s").ends(0, &[]);
        assert_eq!(scene.labels_given(), [""; 0]);
    }
    let at_its_pods_address = Scene::new(3);
    at_its_pods_address.records(false);
    at_its_pods_address.our_labelled_pod_is_deleted();
    at_its_pods_address.takes_a_leave();
    at_its_pods_address.leave(&[], "600s").ends(0, &["left in"]);
    assert_eq!(at_its_pods_address.labels_given(), [""; 0]);
}

/// The middle one of three has withdrawn, when the lowest, of whose stop nothing was to be seen before, turns out to have done so too.
fn two_have_withdrawn() -> (Scene, Running) {
    let scene = Scene::of(1, 3);
    scene.our_labelled_pod_is_deleted();
    // At the first look, and not at the one after it.
    let path = format!("{PODS}/{}", pod_name(0));
    scene.kubernetes.api.expect(Call::get(&path, Reply::ok(&running(0, scene.ip(0).into()).to_string())));
    scene.withdraws(0);
    let hook = scene.start_leave(&[], "600s");
    scene.wait_for_labels(&[OUT], &hook);
    (scene, hook)
}

#[test]
fn of_two_that_withdraw_at_one_moment_one_goes_back_and_waits_for_the_other() {
    let (mut scene, hook) = two_have_withdrawn();
    scene.our_service_leads_nowhere();
    scene.wait_for_labels(&[OUT, BACK], &hook);
    scene.our_service_leads_here();
    hook.says("the stop waits: consul-server-0 is about to stop");
    scene.kubernetes.pod(0, &running(0, scene.ip(0).into()));
    scene.wait_for_labels(&[OUT, BACK, OUT], &hook);
    scene.our_service_leads_nowhere();
    hook.ended().ends(0, &["because consul-server-0 is about to stop"]).never_says("in vain");
}

#[test]
fn who_cannot_go_back_tries_again_and_does_not_go_beside_another() {
    let (mut scene, hook) = two_have_withdrawn();
    scene.the_next_two_changes_of_our_label_fail();
    scene.our_service_leads_nowhere();
    scene.wait_for_labels(&[OUT, BACK, BACK, BACK], &hook);
    hook.says("the own Service leads nowhere while the stop waits");
    hook.says("the stop waits: consul-server-0 is about to stop");
    scene.kubernetes.pod(0, &running(0, scene.ip(0).into()));
    scene.wait_for_labels(&[OUT, BACK, BACK, BACK, OUT], &hook);
    hook.ended().ends(0, &["because consul-server-0 is about to stop"]).never_says("in vain");
}

#[test]
fn who_is_not_told_whether_it_is_out_of_its_service_tries_again() {
    let mut scene = Scene::new(3);
    scene.our_labelled_pod_is_deleted();
    scene.the_next_two_changes_of_our_label_fail();
    let hook = scene.start_leave(&[], "600s");
    scene.wait_for_labels(&[OUT, OUT, OUT], &hook);
    scene.our_service_leads_nowhere();
    hook.ended().ends(0, &["the own Service may lead to nobody", "its Service leads nowhere after"]);
}

#[test]
fn a_stop_that_finds_its_pod_out_of_its_service_puts_it_back_while_it_waits() {
    let mut scene = Scene::of(1, 3);
    scene.our_labelled_pod_is_deleted();
    scene.withdraws(1);
    scene.withdraws(0);
    let hook = scene.start_leave(&[], "600s");
    scene.wait_for_labels(&[BACK], &hook);
    scene.kubernetes.pod(0, &running(0, scene.ip(0).into()));
    scene.wait_for_labels(&[BACK, OUT], &hook);
    scene.our_service_leads_nowhere();
    hook.ended().ends(0, &["because consul-server-0 is about to stop"]).never_says("in vain");
}

#[test]
fn of_two_that_withdraw_and_both_go_back_the_higher_ordinal_goes() {
    let (mut scene, hook) = two_have_withdrawn();
    scene.our_service_leads_nowhere();
    scene.wait_for_labels(&[OUT, BACK], &hook);
    scene.kubernetes.pod(0, &labelled(deleted(running(0, scene.ip(0).into()), 600, 600)));
    scene.wait_for_labels(&[OUT, BACK, OUT], &hook);
    hook.ended().ends(0, &[]).never_says("in vain");
}

#[test]
fn a_pod_that_never_had_the_label_is_not_about_to_stop() {
    let mut scene = Scene::of(1, 3);
    scene.our_labelled_pod_is_deleted();
    scene.goes(0);
    let hook = scene.start_leave(&[], "600s");
    scene.wait_for_labels(&[OUT], &hook);
    scene.our_service_leads_nowhere();
    hook.ended().ends(0, &[]).never_says("waits");
}

#[test]
fn a_server_without_a_vote_withdraws_and_waits_for_nobody() {
    let mut scene = Scene::of(1, 3);
    scene.our_labelled_pod_is_deleted();
    scene.configuration(&[1]);
    scene.withdraws(0);
    let hook = scene.start_leave(&[], "600s");
    scene.wait_for_labels(&[OUT], &hook);
    scene.our_service_leads_nowhere();
    hook.ended().ends(0, &["its Service leads nowhere after"]).never_says("waits");
    assert_eq!(scene.labels_given(), [OUT]);
}

/// The middle one of three has withdrawn already, while the highest, which went before it, comes back.
fn next_to_go() -> (Scene, Running) {
    let mut scene = Scene::of(1, 3);
    scene.our_labelled_pod_is_deleted();
    scene.goes(2);
    let hook = scene.start_leave(&[], "600s");
    hook.says("the stop waits: consul-server-2 stops too, and the higher ordinal goes first");
    scene.end(2);
    hook.says("the stop waits: consul-server-2 is away");
    assert_eq!(scene.labels_given(), [""; 0], "its Pod is still there");
    scene.kubernetes.pod(2, &running(2, scene.ip(2).into()));
    scene.wait_for_labels(&[OUT], &hook);
    scene.our_service_leads_nowhere();
    (scene, hook)
}

#[test]
fn whose_turn_is_next_withdraws_once_the_one_before_it_has_withdrawn_and_ended() {
    let mut scene = Scene::of(1, 3);
    scene.our_labelled_pod_is_deleted();
    scene.goes(2);
    let hook = scene.start_leave(&[], "600s");
    hook.says("the stop waits: consul-server-2 stops too, and the higher ordinal goes first");
    scene.withdraws(2);
    hook.says("the stop waits: consul-server-2 is about to stop");
    assert_eq!(scene.labels_given(), [""; 0], "it looks once more whether another one withdraws");
    scene.end(2);
    scene.wait_for_labels(&[OUT], &hook);
    scene.our_service_leads_nowhere();
    scene.kubernetes.pod(2, &running(2, scene.ip(2).into()));
    scene.start(2);
    hook.ended().ends(0, &["its Service leads nowhere after"]);
    assert_eq!(scene.labels_given(), [OUT], "once");
}

#[test]
fn whose_turn_is_next_withdraws_already_while_the_one_before_it_comes_back() {
    let (mut scene, hook) = next_to_go();
    scene.start(2);
    hook.ended().ends(0, &["because consul-server-2 is away", "its Service leads nowhere after"]);
    assert_eq!(scene.labels_given(), [OUT], "once");
}

#[test]
fn whose_turn_is_next_goes_back_when_another_one_withdraws_or_the_one_before_it_does_not_return() {
    let (scene, hook) = next_to_go();
    scene.withdraws(0);
    scene.wait_for_labels(&[OUT, BACK], &hook);
    let (mut scene, hook) = next_to_go();
    scene.wait_for_labels(&[OUT, BACK], &hook);
    scene.start(2);
    scene.wait_for_labels(&[OUT, BACK, OUT], &hook);
    hook.ended().ends(0, &["because consul-server-2 is away"]).never_says("in vain");
}

// === a leader that overlooks this server ===

impl Scene {
    /// The others lead without us, and gossip knows us all.
    fn overlooked() -> Self {
        let scene = Self::new(3);
        scene.follows(2, None);
        (0..3).for_each(|ordinal| scene.lists(ordinal, &[0, 1]));
        scene
    }

    /// The leaves that were asked for.
    fn leaves(&self) -> usize {
        self.us().requests().iter().filter(|request| request.target == LEAVE).count()
    }

    /// Reasons and messages of Events that tell of it.
    fn told_as_overlooked(&self) -> Vec<String> {
        let all = self.kubernetes.all_events(self.us).into_iter();
        all.filter(|(reason, _)| reason == "Overlooked").map(|(_, message)| message).collect()
    }
}

#[test]
fn an_overlooked_server_that_may_not_leave_goes_on_and_waits_for_its_leader() {
    let scene = Scene::overlooked();
    scene.us().always(Call::put(LEAVE, Reply::Json(403, "Permission denied".to_owned())));
    let run = scene.start_run(&["sleep", "1000"], &[], "600s");
    run.says("started the agent");
    let agent = agent_of(pid(&run.child));
    run.says("it may not leave, so it waits for the leader to reconcile");
    scene.follows(2, Some(0));
    (0..3).for_each(|ordinal| scene.lists(ordinal, &[0, 1, 2]));
    run.says("joined: a leader is known");
    assert_eq!(agent_of(pid(&run.child)), agent, "it is not started again for nothing");
    assert_eq!(scene.leaves(), 1);
    wait_until("its Event", || (scene.told_as_overlooked().len() == 1).then_some(()), || run.log());
    assert!(
        scene.told_as_overlooked()[0].contains("and it may not leave to join anew"),
        "{:?}",
        scene.told_as_overlooked()
    );
    run.term();
    run.ended().ends(0, &[]);
}

#[test]
fn a_watch_tells_of_an_overlooked_server_too() {
    let scene = Scene::overlooked();
    scene.us().always(Call::put(LEAVE, Reply::ok("{}")));
    let watch = scene.start_watch();
    watch.says("does not take this server in: it leaves, and joins anew");
    wait_until("its Event", || (scene.told_as_overlooked().len() == 1).then_some(()), || watch.log());
    assert_eq!(scene.leaves(), 1);
}

// === an election that is due ===

/// What was rendered for our agent.
const RENDERED: &str = "{\n  \"server\": true\n}\n";

/// Three servers with data, of which nobody knows a leader; we come first, and this is rendered for us. Each reload has this answer, by how
/// many there were before. Gives what the file said at each.
fn leaderless(
    rendered: &str,
    answer: impl Fn(usize) -> Reply + Send + Sync + 'static,
) -> (Scene, Arc<Mutex<Vec<String>>>) {
    let scene = Scene::of(0, 3);
    (0..3).for_each(|ordinal| scene.follows(ordinal, None));
    std::fs::write(scene.rendered(), rendered).unwrap();
    let (reloads, file) = (Arc::<Mutex<Vec<String>>>::default(), scene.rendered());
    let seen = reloads.clone();
    let reload = Reply::by(move |_| {
        let mut seen = seen.lock().unwrap();
        seen.push(std::fs::read_to_string(&file).unwrap());
        answer(seen.len() - 1)
    });
    scene.us().always(Call::put("/v1/agent/reload", reload));
    (scene, reloads)
}

impl Scene {
    fn rendered(&self) -> PathBuf {
        self.data().join("convene/agent.json")
    }

    fn start_watch(&self) -> Running {
        let file = self.files.path().join("log");
        let words = [format!("--nameserver={}", self.dns.addr()), "--resolv-conf=/does/not/exist".to_owned()];
        let watch = self.convene_here(&["watch", "--expect=3", "--claim=off"]).words(words).spawn_into(&file);
        Running { child: watch, file }
    }

    /// The next leader is known, and the watch goes on to other things.
    fn is_led(&self, watch: &Running) {
        (0..3).for_each(|ordinal| self.follows(ordinal, Some(0)));
        watch.says("joined: a leader is known");
    }
}

#[test]
fn who_comes_first_has_an_election_begin_by_two_reloads_of_which_the_second_must_not_fail() {
    let answer = |before| if before == 1 { failure(500) } else { Reply::ok("{}") };
    let (scene, reloads) = leaderless(RENDERED, answer);
    let watch = scene.start_watch();
    watch.says("a majority of the raft peers is here: had the election begin");
    scene.is_led(&watch);
    let reloads = reloads.lock().unwrap();
    assert!(reloads[0].contains("\"raft_multiplier\": 10") && reloads[0].contains("\"server\": true"), "{reloads:?}");
    assert_eq!(reloads[1..], [RENDERED, RENDERED], "once");
    assert_eq!(std::fs::read_to_string(scene.rendered()).unwrap(), RENDERED);
}

#[test]
fn who_may_not_have_its_agent_reload_leaves_the_election_to_raft() {
    let (scene, reloads) = leaderless(RENDERED, |_| Reply::Json(403, "Permission denied".to_owned()));
    let watch = scene.start_watch();
    wait_until("a try", || (reloads.lock().unwrap().len() == 1).then_some(()), || watch.log());
    scene.is_led(&watch);
    assert!(!watch.log().contains("had the election begin"), "{}", watch.log());
    assert_eq!(std::fs::read_to_string(scene.rendered()).unwrap(), RENDERED);
    assert_eq!(reloads.lock().unwrap().len(), 1, "nobody asks for ever");
}

#[test]
fn what_a_watch_left_in_the_rendered_file_that_was_killed_the_next_one_takes_out() {
    let left = "{\n  \"performance\": {\n    \"raft_multiplier\": 10\n  },\n  \"server\": true\n}\n";
    let (scene, reloads) = leaderless(left, |_| Reply::ok("{}"));
    (0..3).for_each(|ordinal| scene.follows(ordinal, Some(0)));
    scene.start_watch().says("joined: a leader is known");
    assert_eq!(*reloads.lock().unwrap(), [RENDERED]);
    assert_eq!(std::fs::read_to_string(scene.rendered()).unwrap(), RENDERED);
}

// === leadership ===

/// We lead three, and are asked to stop for a while.
fn leading() -> Scene {
    leading_of(3)
}

fn leading_of(size: u8) -> Scene {
    let scene = Scene::of(0, size);
    scene.our_pod_is_deleted();
    scene.autopilot(&[]);
    scene
}

impl Scene {
    /// A Pod as it runs, made from this revision of the StatefulSet.
    fn pod_of(&self, ordinal: u8, revision: &str) -> Value {
        let mut pod = running(ordinal, self.ip(ordinal).into());
        pod["metadata"]["labels"]["controller-revision-hash"] = json!(revision);
        pod
    }

    fn is_asked_to_lead(&self, ordinal: u8, reply: Reply) {
        self.us().expect(Call::post(&format!("/v1/operator/raft/transfer-leader?id=id-{ordinal}"), reply));
    }

    /// How often somebody was.
    fn asked_to_lead(&self) -> usize {
        self.us().requests().iter().filter(|request| request.target.contains("transfer-leader")).count()
    }

    /// All follow the new leader once so many have been asked.
    fn is_taken_by(&self, leader: u8, asked: usize) {
        self.us().wait_for("/v1/operator/raft/transfer-leader", asked);
        self.agents.keys().for_each(|ordinal| self.follows(*ordinal, Some(leader)));
    }

    /// The same, and the stop says so.
    fn hands_over_to(&self, leader: u8, asked: usize, hook: Running) -> Stopped {
        self.is_taken_by(leader, asked);
        let stopped = hook.ended();
        stopped.ends(0, &[&format!("handed leadership over to consul-server-{leader} in")]);
        stopped
    }
}

#[test]
fn the_one_of_the_old_revision_is_asked_to_lead_although_the_other_is_ahead() {
    let scene = leading();
    scene.our_pod(&deleted(scene.pod_of(0, "old"), 600, 600));
    scene.kubernetes.pod(1, &scene.pod_of(1, "new"));
    scene.kubernetes.pod(2, &scene.pod_of(2, "old"));
    scene.autopilot(&[(1, 9), (2, 5)]);
    scene.is_asked_to_lead(2, Reply::ok("{\"Success\":true}"));
    scene.hands_over_to(2, 1, scene.start_leave(&[], "600s"));
}

#[test]
fn a_server_that_the_leader_copies_nothing_to_is_waited_for_when_nothing_could_be_written_without_us() {
    let scene = leading();
    scene.has_copied(2, 99);
    scene.is_asked_to_lead(1, Reply::ok("{\"Success\":true}"));
    let hook = scene.start_leave(&[], "600s");
    hook.says("the stop waits: consul-server-2 lacks what the leader's log has, and without us no majority has it");
    scene.has_copied(2, 100);
    scene.hands_over_to(1, 1, hook);
}

#[test]
fn a_follower_waits_for_who_lacks_what_the_leaders_log_has_too() {
    let scene = Scene::new(3);
    scene.our_pod_is_deleted();
    scene.has_copied(1, 99);
    let hook = scene.start_leave(&[], "600s");
    hook.says("the stop waits: consul-server-1 lacks what the leader's log has, and without us no majority has it");
    scene.has_copied(1, 100);
    hook.ended().ends(0, &[]).never_says("hand leadership over");
}

#[test]
fn at_the_pods_own_address_a_leave_waits_for_who_lacks_what_the_leaders_log_has() {
    let scene = Scene::new(3);
    scene.records(false);
    scene.our_pod_is_deleted();
    scene.has_copied(1, 99);
    let hook = scene.start_leave(&[], "600s");
    hook.says("the leave waits: consul-server-1 lacks what the leader's log has, and without us no majority has it");
    assert_eq!(scene.leaves(), 0);
    scene.takes_a_leave();
    scene.has_copied(1, 100);
    hook.ended().ends(0, &["left in"]);
}

#[test]
fn a_leader_whose_dial_is_lost_hands_leadership_over_before_it_waits() {
    let scene = leading();
    scene.has_copied(2, 99);
    scene.is_asked_to_lead(1, Reply::ok("{\"Success\":true}"));
    let hook = scene.start_leave(&[], "600s");
    scene.is_taken_by(1, 1);
    scene.has_copied(2, 100);
    hook.ended().ends(0, &["handed leadership over to consul-server-1 in"]);
}

#[test]
fn a_leader_that_waits_for_its_turn_hands_leadership_to_one_that_stays_and_to_no_other() {
    let mut scene = leading();
    scene.goes(1);
    let hook = scene.start_leave(&[], "600s");
    hook.says("the stop waits: consul-server-1 stops too, and the higher ordinal goes first");
    scene.end(1);
    hook.says("the stop waits: consul-server-1 is away");
    scene.us().wait_for_more("/v1/status/leader", 6);
    // Only who is about to listen is dialled anew in time.
    assert_eq!(scene.asked_to_lead(), 0);
    scene.is_asked_to_lead(2, Reply::ok("{\"Success\":true}"));
    scene.kubernetes.pod(1, &running(1, scene.ip(1).into()));
    scene.is_taken_by(2, 1);
    scene.start(1);
    scene.follows(1, Some(2));
    hook.ended().ends(0, &["handed leadership over to consul-server-2 in", "because consul-server-1"]);

    let (scene, _hook) = leading_and_last_to_go();
    scene.us().wait_for_more("/v1/status/leader", 6);
    assert_eq!(scene.asked_to_lead(), 0);
}

/// We lead and wait until both others have stopped.
fn leading_and_last_to_go() -> (Scene, Running) {
    let scene = leading();
    [1, 2].into_iter().for_each(|other| scene.goes(other));
    let hook = scene.start_leave(&[], "600s");
    hook.says("the stop waits: consul-server-1 stops too, and the higher ordinal goes first");
    (scene, hook)
}

/// The same, and one is back that something ails, until the other one leads, which stays by then.
fn another_leads_when(ails: fn(&Scene), mended: fn(&Scene)) {
    let (mut scene, hook) = leading_and_last_to_go();
    scene.is_asked_to_lead(2, Reply::ok("{\"Success\":true}"));
    scene.end(1);
    scene.kubernetes.pod(1, &running(1, scene.ip(1).into()));
    scene.start(1);
    ails(&scene);
    scene.is_taken_by(2, 1);
    mended(&scene);
    scene.kubernetes.pod(2, &running(2, scene.ip(2).into()));
    hook.ended().ends(0, &["handed leadership over to consul-server-2 in"]);
}

#[test]
fn a_leader_whose_dial_of_one_that_is_back_is_lost_hands_over_to_one_that_dials_anew() {
    another_leads_when(|scene| scene.follows(1, None), |scene| scene.follows(1, Some(2)));
}

#[test]
fn a_leader_that_waits_for_others_hands_over_when_one_that_is_back_is_not_copied_to() {
    another_leads_when(|scene| scene.has_copied(1, 99), |scene| scene.has_copied(1, 100));
}

#[test]
fn where_the_others_may_not_be_asked_the_leaders_autopilot_tells_who_lacks_its_log() {
    let scene = leading();
    let denied = Reply::Json(403, "Permission denied".to_owned());
    for other in [1, 2] {
        scene.agent(other).always(Call::get("/v1/agent/self", denied.clone()));
    }
    scene.autopilot(&[(0, 100), (1, 99), (2, 60)]);
    scene.is_asked_to_lead(1, Reply::ok("{\"Success\":true}"));
    let hook = scene.start_leave(&[], "600s");
    // From now on somebody else says how far its log reaches, and may not be asked either.
    scene.is_taken_by(1, 1);
    scene.autopilot(&[(0, 160), (1, 160), (2, 60)]);
    hook.says("the stop waits: consul-server-2 lacks what the leader's log has, and without us no majority has it");
    scene.autopilot(&[(0, 260), (1, 260), (2, 200)]);
    hook.ended().ends(0, &[]);
}

#[test]
fn who_does_not_say_how_far_its_log_reaches_is_not_waited_for() {
    for reply in [Reply::Json(500, "no".to_owned()), Reply::Html, Reply::Nothing] {
        let scene = leading();
        scene.agent(2).always(Call::get("/v1/agent/self", reply));
        scene.is_asked_to_lead(1, Reply::ok("{\"Success\":true}"));
        scene.hands_over_to(1, 1, scene.start_leave(&[], "600s")).never_says("waits");
    }
}

#[test]
fn one_of_the_old_revision_is_asked_first_although_it_is_behind() {
    let scene = leading_of(5);
    scene.our_pod(&deleted(scene.pod_of(0, "old"), 600, 600));
    scene.kubernetes.pod(1, &scene.pod_of(1, "old"));
    (2..5).for_each(|other| scene.kubernetes.pod(other, &scene.pod_of(other, "new")));
    scene.has_copied(1, 99);
    scene.is_asked_to_lead(1, Reply::ok("{\"Success\":true}"));
    scene.hands_over_to(1, 1, scene.start_leave(&[], "600s"));
}

#[test]
fn a_transfer_that_failed_by_its_answer_and_took_place_is_one_that_took_place() {
    let scene = Arc::new(leading());
    let follow = scene.clone();
    let reply = Reply::by(move |_| {
        (0..3).for_each(|ordinal| follow.follows(ordinal, Some(1)));
        Reply::Json(500, "leadership transfer timeout".to_owned())
    });
    scene.is_asked_to_lead(1, reply);
    scene.leave(&[], "600s").ends(0, &["handed leadership over to consul-server-1 in"]);
}

#[test]
fn after_a_transfer_without_an_answer_nobody_else_is_asked() {
    let scene = leading();
    scene.is_asked_to_lead(1, Reply::Nothing);
    scene.leave(&[], "600s").ends(0, &["did not hand leadership over: consul-server-1 could not take it: "]);
}

#[test]
fn who_lacks_what_the_leaders_log_has_is_asked_last_to_lead() {
    let scene = leading_of(5);
    scene.has_copied(1, 99);
    scene.is_asked_to_lead(2, Reply::ok("{\"Success\":true}"));
    scene.hands_over_to(2, 1, scene.start_leave(&[], "600s"));
}

#[test]
fn when_one_cannot_take_leadership_the_next_one_is_asked_and_who_is_behind_too() {
    let scene = leading_of(5);
    scene.has_copied(1, 99);
    for ordinal in 2..5 {
        scene.is_asked_to_lead(ordinal, Reply::Json(500, "leadership transfer timeout".to_owned()));
    }
    scene.is_asked_to_lead(1, Reply::ok("{\"Success\":true}"));
    scene.hands_over_to(1, 4, scene.start_leave(&[], "600s"));
}

#[test]
fn leadership_that_nobody_can_take_stays_and_the_stop_says_why() {
    let scene = leading();
    scene.is_asked_to_lead(1, Reply::Json(500, "leadership transfer timeout".to_owned()));
    scene.is_asked_to_lead(2, Reply::Json(500, "cannot find peer".to_owned()));
    scene
        .leave(&[], "600s")
        .ends(0, &["did not hand leadership over: consul-server-2 could not take it: ", "cannot find peer"]);
}

#[test]
fn a_transfer_that_is_not_allowed_is_told_once_with_the_policy_and_the_stop_goes_on() {
    for (said, told) in [
        ("Permission denied", "the token may not: the policy operator = \"write\" is needed"),
        ("ACL not found", "Consul does not know our token: it has expired, or was deleted"),
    ] {
        let scene = leading();
        scene.is_asked_to_lead(1, Reply::Json(403, said.to_owned()));
        let stopped = scene.leave(&[], "600s");
        stopped.ends(0, &[told]);
        assert_eq!(stopped.log.matches(told).count(), 1, "{}", stopped.log);
    }
}

// === one stop ===

/// Ordinal 3 of five that become three, waiting for ordinal 4; and how its gate opens.
fn waiting_for_the_higher_one() -> Scene {
    let scene = Scene::of(3, 5);
    scene.kubernetes.replicas(3);
    scene.our_pod_is_deleted();
    scene
}

impl Scene {
    /// Ordinal 4 is out. We are to leave, once, and ordinal 1 knows of it.
    fn the_higher_one_has_left(&self) {
        self.us().expect(Call::put(LEAVE, Reply::ok("{}")));
        self.lists(1, &[0, 1, 2]);
        self.lists(0, &[0, 1, 2, 3]);
    }

    fn start_hook(&self) -> Running {
        let file = self.files.path().join("hook.log");
        Running { child: self.convene(&["leave"], "60s").spawn_into(&file), file }
    }
}

const GATE: &str = "the leave waits: gate 4: consul-server-4";

#[test]
fn a_term_during_the_hook_and_another_one_are_the_hook_s_stop() {
    let scene = waiting_for_the_higher_one();
    let run = scene.run(&[], "60s");
    let hook = scene.start_hook();
    hook.says(GATE);
    run.term();
    run.says("TERM: stopping");
    run.term();
    run.says("TERM again: the stop is under way already");
    scene.the_higher_one_has_left();
    hook.ended().ends(0, &["left in"]);
    run.ended().ends(0, &["this stop was done already"]);
    assert_eq!(scene.events().len(), 1, "{:?}", scene.events());
}

#[test]
fn a_hook_during_the_supervisor_s_stop_has_nothing_more_to_do() {
    let scene = waiting_for_the_higher_one();
    let run = scene.run(&[], "60s");
    run.term();
    run.says(GATE);
    let hook = scene.start_hook();
    // It has begun before that stop ends.
    hook.says("this stop is done by another convene on this volume: waiting for it");
    scene.the_higher_one_has_left();
    run.ended().ends(0, &["left in"]);
    hook.ended().ends(0, &["this stop was done already"]);
    assert_eq!(scene.events().len(), 1, "{:?}", scene.events());
}

#[test]
fn a_second_stop_of_the_same_agent_is_one_of_its_own() {
    let scene = Scene::new(3);
    scene.leave(&[], "20s").ends(0, &["container restart"]);
    scene.leave(&[], "20s").ends(0, &["container restart"]).never_says("done already");
    // The hook's stop was an earlier life's: this agent was started after it.
    let run = scene.run(&[], "20s");
    run.term();
    run.ended().ends(0, &["container restart"]).never_says("done already");
    assert_eq!(scene.events().len(), 3);
}

#[test]
fn who_cannot_have_the_stop_to_itself_says_so_and_ends_the_agent() {
    let scene = waiting_for_the_higher_one();
    let run = scene.run(&[], "6s");
    let hook = scene.start_hook();
    hook.says(GATE);
    run.term();
    run.ended().ends(75, &["another convene stops on this volume, and did not end within 2.", "the agent ended"]);
    scene.the_higher_one_has_left();
    hook.ended().ends(0, &["left in"]);
}

#[test]
fn an_agent_that_ends_by_itself_ends_the_wait_for_a_gate() {
    let scene = waiting_for_the_higher_one();
    let run = scene.run(&[], "600s");
    run.term();
    run.says(GATE);
    kill(agent_of(pid(&run.child)), Signal::SIGKILL).unwrap();
    let why = "the agent ended by itself before the stop was through";
    run.ended().ends(69, &[why]);
    assert!(!has_left(&scene.data()));
    assert_eq!(scene.events(), [("NotLeft".to_owned(), why.to_owned())]);
}

#[test]
fn an_agent_that_left_and_ended_is_still_confirmed_by_a_leader_that_is_late() {
    let scene = Scene::new(3);
    scene.kubernetes.replicas(2);
    scene.our_pod_is_deleted();
    scene.us().expect(Call::put(LEAVE, Reply::ok("{}")));
    let force = format!("/v1/agent/force-leave/{}", pod_name(2));
    (0..2).for_each(|other| scene.agent(other).always(Call::put(&force, Reply::ok(""))));
    // An agent that ends with 0 when the test says so.
    let mut life = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
    let run = scene.run_cmd(&["tail", &format!("--pid={}", life.id()), "-f", "/dev/null"], &[], "600s");
    run.term();
    scene.us().wait_for(LEAVE, 1);
    life.kill().unwrap();
    life.wait().unwrap();
    wait_until("its end", || children(pid(&run.child)).is_empty().then_some(()), || run.log());
    // They are told every 2 s: for longer than a stop goes on without an agent that crashed.
    scene.agent(1).wait_for(&force, 5);
    scene.lists(1, &[0, 1]);
    run.ended().ends(0, &["left in", "told by API"]);
    assert!(has_left(&scene.data()));
}

#[test]
fn an_agent_that_is_just_being_started_is_asked_to_leave_once_it_answers() {
    let mut scene = Scene::new(3);
    scene.end(2);
    let hook = scene.start_leave(&["--leave=always"], "60s");
    hook.says("refuses the connection: it may be starting");
    scene.start(2);
    scene.us().always(Call::get("/v1/agent/self", Reply::Json(403, "Permission denied".to_owned())));
    scene.takes_a_leave();
    hook.ended().ends(0, &["left in"]);
}

#[test]
fn a_leave_that_the_token_does_not_allow_names_the_policy() {
    for (said, told) in [
        ("Permission denied", "needs the policy agent \"consul-server-2\" { policy = \"write\" }"),
        ("ACL not found", "Consul does not know our token (CONSUL_HTTP_TOKEN_FILE), which has expired or was deleted"),
    ] {
        let scene = Scene::new(3);
        scene.our_pod_is_deleted();
        scene.kubernetes.replicas(2);
        scene.us().expect(Call::put(LEAVE, Reply::Json(403, said.to_owned())));
        scene.leave(&[], "600s").ends(69, &[told]);
        assert!(!has_left(&scene.data()));
        assert_eq!(scene.events()[0].0, "NotLeft");
    }
}

// === real Consul ===

/// Servers that `run` started as Pods of one StatefulSet, their volumes used before.
struct Servers {
    cluster: Cluster,
    kubernetes: Kubernetes,
    size: u8,
}

impl Servers {
    fn formed(test: &str, size: u8, denying: bool, words: &[&str]) -> Option<Self> {
        let cluster = Cluster::new(env!("CARGO_BIN_EXE_convene"), needs_consul(test)?, size);
        let cluster = if denying { cluster.denying() } else { cluster };
        let kubernetes = Kubernetes::new(size, |ordinal| cluster.ip(ordinal));
        let mut servers = Self { cluster, kubernetes, size };
        for ordinal in 0..size {
            write_record(&servers.cluster.data(ordinal), ordinal, servers.cluster.ip(ordinal), true);
            servers.start(ordinal, words);
        }
        servers.cluster.wait_formed(&(0..size).collect::<Vec<_>>());
        Some(servers)
    }

    fn start(&mut self, ordinal: u8, words: &[&str]) {
        let mut run = self.cluster.surveying(ordinal, &["run", "--claim=off"]);
        run.env("CONVENE_GRACE_PERIOD", "60s");
        run.arg(format!("--expect={}", self.size)).args(words).arg("--").args(self.cluster.agent(ordinal));
        let run = self.as_pod(ordinal, run);
        self.cluster.spawn(ordinal, run);
    }

    fn as_pod(&self, ordinal: u8, mut command: Command) -> Command {
        command.env("KUBECONFIG", self.kubernetes.kubeconfig()).env("POD_UID", uid(ordinal));
        command
    }

    fn hook(&self, ordinal: u8, token: Option<&str>) -> Stopped {
        let mut hook = self.as_pod(ordinal, self.cluster.convene(ordinal, &["leave", "--role=server"]));
        let output = hook.envs(token.map(|token| ("CONSUL_HTTP_TOKEN", token))).output().unwrap();
        Stopped { code: output.status.code().unwrap(), log: String::from_utf8_lossy(&output.stderr).into_owned() }
    }

    fn is_deleted(&self, ordinal: u8, revision: &str) {
        self.kubernetes.pod(ordinal, &deleted(self.pod(ordinal, revision), 600, 600));
    }

    fn pod(&self, ordinal: u8, revision: &str) -> Value {
        let mut pod = running(ordinal, self.cluster.ip(ordinal));
        pod["metadata"]["labels"]["controller-revision-hash"] = json!(revision);
        pod
    }

    #[track_caller]
    fn ends(&mut self, ordinal: u8, code: i32) {
        let status = self.cluster.wait(ordinal);
        assert_eq!(status.code(), Some(code), "{}", self.cluster.log(ordinal));
    }
}

/// What somebody saw, each change once, while something else was done.
fn changes<T: PartialEq>(done: &AtomicBool, look: impl Fn() -> T) -> Vec<T> {
    let mut seen = vec![look()];
    while !done.load(Ordering::SeqCst) {
        let now = look();
        if seen.last() != Some(&now) {
            seen.push(now);
        }
        thread::sleep(Duration::from_millis(5));
    }
    seen
}

#[test]
fn a_leader_that_stops_hands_leadership_over_by_name_and_no_follower_misses_a_heartbeat() {
    let test = "a_leader_that_stops_hands_leadership_over_by_name_and_no_follower_misses_a_heartbeat";
    let Some(mut servers) = Servers::formed(test, 3, false, &[]) else { return };
    let spec = json!({"replicas": 3, "podManagementPolicy": "Parallel"});
    let rollout = json!({"metadata": {}, "spec": spec, "status": {"updateRevision": "new"}});
    servers.kubernetes.statefulset(&rollout);
    (0..3).for_each(|ordinal| servers.kubernetes.pod(ordinal, &servers.pod(ordinal, "old")));
    let leader = servers.cluster.leading(0).unwrap();
    let others: Vec<u8> = (0..3).filter(|ordinal| *ordinal != leader).collect();
    let (first, last) = (others[0], others[1]);
    servers.is_deleted(leader, "old");
    let (done, cluster) = (AtomicBool::new(false), &servers.cluster);
    let missed = |ordinal: &u8| cluster.log(*ordinal).matches("heartbeat timeout reached").count();
    let before: Vec<usize> = others.iter().map(missed).collect();
    let (seen, written) = thread::scope(|scope| {
        let seen =
            others.iter().map(|other| scope.spawn(|| changes(&done, || cluster.leader(*other)))).collect::<Vec<_>>();
        let writing = scope.spawn(|| changes(&done, || cluster.put(last, "/v1/kv/key", "value")));
        cluster.signal(leader, Signal::SIGTERM);
        cluster.wait_for("its agent's end", || cluster.log(leader).contains("the agent ended code="));
        cluster.wait_for("a write after it", || cluster.put(first, "/v1/kv/after", "1") == Some(200));
        done.store(true, Ordering::SeqCst);
        (seen.into_iter().map(|one| one.join().unwrap()).collect::<Vec<_>>(), writing.join().unwrap())
    });
    // For the moment of the vote itself a follower knows no leader.
    let led = seen.into_iter().map(|one| one.into_iter().flatten().collect::<Vec<_>>()).collect::<Vec<_>>();
    let both = vec![cluster.ip(leader), cluster.ip(first)];
    assert_eq!(led, [both.clone(), both], "{}", cluster.log(leader));
    assert_eq!(others.iter().map(missed).collect::<Vec<_>>(), before, "nobody had to notice that a leader is gone");
    // A write that comes at that moment is refused or taken, and the next one is taken.
    assert!(matches!(&written[..], [Some(200)] | [Some(200), Some(500), Some(200)]), "{written:?}");
    assert_eq!(cluster.peers(first).len(), 3);
    servers.ends(leader, 0);
    let events = servers.kubernetes.events(leader);
    let told = "restart (our Pod is being deleted, and the StatefulSet has 3 replicas): handed leadership over to";
    assert!(events.len() == 1 && events[0].1.starts_with(told), "{events:?}");
    // Back again, it follows; and whoever does not lead asks nobody to.
    servers.kubernetes.pod(leader, &servers.pod(leader, "new"));
    servers.start(leader, &[]);
    servers.cluster.wait_formed(&[0, 1, 2]);
    servers.is_deleted(last, "old");
    servers.cluster.signal(last, Signal::SIGTERM);
    servers.ends(last, 0);
    assert_eq!(servers.cluster.leading(first), Some(first));
    let told = servers.kubernetes.events(last);
    assert!(told.len() == 1 && !told[0].1.contains("leadership"), "{told:?}");
}

#[test]
fn two_that_are_scaled_away_leave_one_after_the_other_and_the_third_goes_on() {
    let test = "two_that_are_scaled_away_leave_one_after_the_other_and_the_third_goes_on";
    let Some(mut servers) = Servers::formed(test, 3, false, &[]) else { return };
    servers.kubernetes.replicas(1);
    [1, 2].iter().for_each(|ordinal| servers.is_deleted(*ordinal, "old"));
    servers.cluster.signal(1, Signal::SIGTERM);
    servers.cluster.wait_for("the lower one to wait", || servers.cluster.log(1).contains("gate 4: consul-server-2"));
    servers.cluster.signal(2, Signal::SIGTERM);
    for ordinal in [2, 1] {
        servers.ends(ordinal, 0);
        assert!(has_left(&servers.cluster.data(ordinal)));
        let events = servers.kubernetes.events(ordinal);
        assert!(events.len() == 1 && events[0].0 == "Left", "{events:?}");
        assert!(events[0].1.starts_with("scale-down (the StatefulSet has 1 replicas from ordinal 0 on, and ours is"));
    }
    let cluster = &servers.cluster;
    cluster.wait_for("one that is alone", || cluster.peers(0) == [cluster.ip(0)] && cluster.leading(0) == Some(0));
    cluster.wait_for("the others to have left", || [1, 2].iter().all(|gone| cluster.member(0, *gone) == Some(3)));
    cluster.wait_for("a write", || cluster.put(0, "/v1/kv/after", "1") == Some(200));
}

#[test]
fn under_default_deny_a_stop_does_what_it_may_and_names_what_it_lacks() {
    let test = "under_default_deny_a_stop_does_what_it_may_and_names_what_it_lacks";
    let Some(servers) = Servers::formed(test, 3, true, &[]) else { return };
    let leader = servers.cluster.leading(0).unwrap();
    let expired = "7e57ab1e-0000-4000-8000-000000000000";
    servers.is_deleted(leader, "old");
    servers
        .hook(leader, None)
        .ends(0, &["did not hand leadership over: the token may not: the policy operator = \"write\""]);
    servers.hook(leader, Some(expired)).ends(0, &["did not hand leadership over: Consul does not know our token"]);
    assert_eq!(servers.cluster.leading(0), Some(leader));
    servers.kubernetes.replicas(2);
    servers.is_deleted(2, "old");
    servers.hook(2, None).ends(69, &["needs the policy agent \"consul-server-2\" { policy = \"write\" }"]);
    servers.hook(2, Some(expired)).ends(69, &["Consul does not know our token"]);
    assert_eq!(servers.cluster.peers(0).len(), 3);
    servers.hook(2, Some(MANAGEMENT)).ends(0, &["left in"]);
    let cluster = &servers.cluster;
    cluster.wait_for("its removal", || cluster.peers(0) == [cluster.ip(0), cluster.ip(1)]);
}

#[test]
fn an_agent_that_hangs_during_its_leave_is_killed_at_the_deadline() {
    let test = "an_agent_that_hangs_during_its_leave_is_killed_at_the_deadline";
    let words = ["--leave=always", "--grace-period=6s"];
    let Some(mut servers) = Servers::formed(test, 1, false, &words) else { return };
    servers.cluster.signal(0, Signal::SIGTERM);
    servers.cluster.wait_for("the leave", || servers.cluster.log(0).contains("leaving: asking the agent"));
    kill(agent_of(servers.cluster.pid(0)), Signal::SIGSTOP).unwrap();
    servers.ends(0, 69);
    let log = servers.cluster.log(0);
    assert!(log.contains("could not confirm the leave") && log.contains("of its signal: killing it"), "{log}");
    assert!(!has_left(&servers.cluster.data(0)));
}

#[test]
fn an_agent_that_does_not_end_is_killed_long_before_the_grace_period_is_over() {
    let test = "an_agent_that_does_not_end_is_killed_long_before_the_grace_period_is_over";
    let Some(mut servers) = Servers::formed(test, 1, false, &["--leave=never", "--grace-period=3600s"]) else { return };
    kill(agent_of(servers.cluster.pid(0)), Signal::SIGSTOP).unwrap();
    servers.cluster.signal(0, Signal::SIGTERM);
    servers.ends(0, 128 + 9);
    let log = servers.cluster.log(0);
    assert!(log.contains("the agent has not ended within 10.0 s of its signal: killing it"), "{log}");
}

/// Consul's API answers as long as its raft waits for a dial that was lost (seen, 1.22.6).
#[test]
fn an_agent_that_hangs_and_answers_meanwhile_is_killed_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let consul = folder.path().join("consul");
    std::fs::write(&consul, "#!/bin/sh\ntrap '' TERM\ntouch \"$0.runs\"\nwhile :; do sleep 0.1; done\n").unwrap();
    std::fs::set_permissions(&consul, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let agent = ScriptedHttp::start();
    agent.always(Call::get("/v1/status/leader", Reply::ok("\"\"")));
    agent.always(Call::get("/v1/status/peers", Reply::ok("[]")));
    agent.always(Call::get("/v1/agent/members", Reply::ok("[]")));
    let data = format!("--data-dir={}", folder.path().display());
    let server = ["--role=server", "--node-name=s1", "--advertise=127.0.0.1", "--server-port=1", "--expect=2"];
    let run = Convene::new(["run", "--leave=never", "--grace-period=3600s", "--discover=static:127.255.255.253"]);
    let run = run.words(server).words([data]).env("CONSUL_HTTP_ADDR", agent.addr().to_string());
    let log = folder.path().join("log");
    let told = || std::fs::read_to_string(&log).unwrap_or_default();
    let mut run = run.words(["--", consul.to_str().unwrap(), "agent", "-server"]).spawn_into(&log);
    let runs = folder.path().join("consul.runs");
    wait_until("its start", || runs.exists().then_some(()), told);
    kill(Pid::from_raw(run.id().cast_signed()), Signal::SIGTERM).unwrap();
    assert_eq!(run.wait().unwrap().code(), Some(128 + 9), "{}", told());
    assert!(told().contains("of its signal: killing it") && !told().contains("TERM again"), "{}", told());
}

#[test]
fn a_term_while_the_agent_starts_ends_it_without_a_leave() {
    let test = "a_term_while_the_agent_starts_ends_it_without_a_leave";
    let Some(mut servers) = Servers::formed(test, 1, false, &[]) else { return };
    servers.cluster.kill(0);
    servers.is_deleted(0, "old");
    let started = |log: &str| log.matches("started the agent").count();
    servers.start(0, &[]);
    servers.cluster.wait_for("its start", || started(&servers.cluster.log(0)) == 2);
    servers.cluster.signal(0, Signal::SIGTERM);
    servers.ends(0, 0);
    assert!(servers.cluster.log(0).contains("restart (our Pod is being deleted"), "{}", servers.cluster.log(0));
}

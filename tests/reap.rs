//! Which clients `convene reap` removes, whom it never touches, and what keeps it from removing anybody: with a Kubernetes API and
//! an agent that are servers on real sockets, and with real Consul for the removal itself. The truth table of who goes stands
//! beside the code (src/reap/judge/tests.rs).

// A panic is how a test fails; clippy's own exception for tests covers `#[test]` functions only.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "support/mod.rs"]
mod support;

use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use support::cluster::Cluster;
use support::config_map::status;
use support::http::{Call, Reply, Request, ScriptedHttp};
use support::program::{Convene, Ended};
use support::skip::needs_consul;
use tempfile::TempDir;

const NODES: &str = "/api/v1/nodes";

/// A Kubernetes API that knows some machines.
struct Kubernetes {
    api: ScriptedHttp,
    files: TempDir,
}

impl Kubernetes {
    fn new() -> Self {
        let world = Self { api: ScriptedHttp::start(), files: tempfile::tempdir().unwrap() };
        std::fs::write(world.kubeconfig(), world.api.kubeconfig(&json!({"token": "t"}))).unwrap();
        world
    }

    fn kubeconfig(&self) -> PathBuf {
        self.files.path().join("kubeconfig")
    }

    /// It has these machines, and `gone` not.
    fn machines(&self, there: &[String], gone: &[String]) {
        self.api.always(Call::get(NODES, Reply::ok(&page(there, ""))));
        for name in there {
            self.api.always(Call::get(&format!("{NODES}/{name}"), Reply::ok(&machine(name).to_string())));
        }
        for name in gone {
            self.api.always(Call::get(&format!("{NODES}/{name}"), status(404)));
        }
    }
}

fn machine(name: &str) -> Value {
    json!({"metadata": {"name": name}})
}

/// A page of a list of Nodes, and the token of the next one.
fn page(names: &[String], next: &str) -> String {
    let items: Vec<Value> = names.iter().map(|name| machine(name)).collect();
    json!({"kind": "PartialObjectMetadataList", "metadata": {"continue": next}, "items": items}).to_string()
}

/// The same, and an agent: of a cluster of one server, with a client `c…` on each machine `m…`.
struct World {
    kubernetes: Kubernetes,
    agent: ScriptedHttp,
    forced: Arc<Mutex<Vec<String>>>,
}

impl World {
    /// So many clients that are alive, and so many that failed with their machines.
    fn new(alive: u8, gone: u8) -> Self {
        let world = Self { kubernetes: Kubernetes::new(), agent: ScriptedHttp::start(), forced: Arc::default() };
        let machines = |of: std::ops::Range<u8>| of.map(|number| format!("m{number}")).collect::<Vec<_>>();
        world.kubernetes.machines(&machines(0..alive), &machines(alive..alive + gone));
        let says = |path: &str, answer: Value| world.says(path, Reply::ok(&answer.to_string()));
        says("/v1/status/leader", json!("10.0.0.1:8300"));
        says("/v1/status/peers", json!(["10.0.0.1:8300"]));
        let server = json!({"ID": "s", "Node": "server", "Address": "10.0.0.1:8300", "Leader": true, "Voter": true});
        says("/v1/operator/raft/configuration", json!({"Servers": [server]}));
        let failed = |number: u8| number >= alive;
        let member = |number: u8| {
            json!({"Name": client(number), "Addr": ip(number), "Status": if failed(number) { 4 } else { 1 },
                "Tags": {"role": "node", "id": id(number)}})
        };
        let server = json!({"Name": "server", "Addr": "10.0.0.1", "Status": 1, "Tags": {"role": "consul", "id": "s"}});
        let all = 0..alive + gone;
        says("/v1/agent/members", all.clone().map(member).chain([server]).collect());
        let entry = |number: u8| {
            json!({"ID": id(number), "Node": client(number), "Address": ip(number),
                "Meta": {"k8s-node": format!("m{number}")}})
        };
        says("/v1/catalog/nodes", all.clone().map(entry).collect());
        says(
            "/v1/health/state/critical",
            all.clone().filter(|one| failed(*one)).map(|one| health(one, true)).collect(),
        );
        for number in all.filter(|one| failed(*one)) {
            world.can_be_removed(number);
        }
        world
    }

    fn says(&self, path: &str, reply: Reply) {
        self.agent.always(Call::get(path, reply));
    }

    /// As Consul does it: once it is told to leave, the leader knows it no more.
    fn can_be_removed(&self, number: u8) {
        let (forced, asked) = (Arc::clone(&self.forced), Arc::clone(&self.forced));
        let path = format!("/v1/agent/force-leave/{}", client(number));
        let force = move |_: &Request| {
            forced.lock().unwrap().push(client(number));
            Reply::ok("")
        };
        self.agent.always(Call::put(&path, Reply::by(force)));
        let checks = move |_: &Request| match asked.lock().unwrap().contains(&client(number)) {
            true => Reply::ok("[]"),
            false => Reply::ok(&json!([health(number, true)]).to_string()),
        };
        self.says(&format!("/v1/health/node/{}", client(number)), Reply::by(checks));
    }

    fn reap(&self, words: &[&str]) -> Ended {
        self.convene(words).run()
    }

    fn convene(&self, words: &[&str]) -> Convene {
        let convene = Convene::new(["reap"]).words(words).env("KUBECONFIG", self.kubernetes.kubeconfig());
        convene.env("CONSUL_HTTP_ADDR", self.agent.addr().to_string())
    }

    fn removed(&self) -> Vec<String> {
        self.forced.lock().unwrap().clone()
    }

    /// How often an agent was asked to forget somebody, whatever came of it.
    fn asked_to_remove(&self) -> usize {
        self.agent.requests().iter().filter(|request| request.method == "PUT").count()
    }
}

fn client(number: u8) -> String {
    format!("c{number}")
}

fn id(number: u8) -> String {
    format!("id-{number}")
}

fn ip(number: u8) -> String {
    format!("10.1.0.{number}")
}

fn health(number: u8, failed: bool) -> Value {
    json!({"Node": client(number), "CheckID": "serfHealth", "Status": if failed { "critical" } else { "passing" }})
}

fn denied() -> Reply {
    Reply::WithHeaders(403, Vec::new(), "Permission denied: token lacks permission".to_owned())
}

#[track_caller]
fn says(ended: &Ended, code: i32, parts: &[&str]) {
    assert_eq!(ended.code, code, "{}{}", ended.stdout, ended.stderr);
    for part in parts {
        assert!(ended.stdout.contains(part), "{part:?} is not in: {}", ended.stdout);
    }
}

#[test]
fn a_dry_run_says_whom_it_would_remove_and_removes_nobody() {
    let world = World::new(2, 1);
    let gone = "c2      m2       would be removed: failed, and its machine has no Node object\n";
    let all = "3 clients name their machine; 1 would be removed; --yes removes them\n";
    says(&world.reap(&[]), 0, &["CLIENT  MACHINE  WHAT\n", gone, all]);
    assert_eq!(world.asked_to_remove(), 0);
}

#[test]
fn with_yes_it_is_removed_once_the_leader_confirms_it() {
    let world = World::new(2, 1);
    let ended = world.reap(&["--yes"]);
    says(&ended, 0, &["c2      m2       removed in ", "3 clients name their machine; 1 removed\n"]);
    assert_eq!(world.removed(), ["c2"]);
    assert!(!ended.stdout.contains("c0") && !ended.stdout.contains("c1"), "who is well is no line: {}", ended.stdout);
}

#[test]
fn yes_may_stand_in_the_environment() {
    let world = World::new(2, 1);
    says(&world.convene(&[]).env("CONVENE_YES", "true").run(), 0, &["1 removed"]);
    assert_eq!(world.removed(), ["c2"]);
}

#[test]
fn where_all_are_well_there_is_nothing_to_do() {
    let world = World::new(2, 0);
    let ended = world.reap(&["--yes"]);
    assert_eq!((ended.code, ended.stdout.as_str()), (0, "2 clients name their machine; 0 removed\n"));
}

#[test]
fn who_stays_is_a_line_with_its_reason() {
    let world = World::new(3, 0);
    let member = |name: &str, role: &str, status: u8, ip: &str| json!({"Name": name, "Addr": ip, "Status": status, "Tags": {"role": role, "id": format!("id-{name}")}});
    let all = json!([
        member("server", "consul", 4, "10.0.0.1"),
        member("old-server", "consul", 4, "10.0.0.9"),
        member("beside-the-server", "node", 4, "10.0.0.1"),
        member("vm", "node", 4, "10.7.0.1"),
        member("c0", "node", 3, "10.1.0.0"),
    ]);
    world.says("/v1/agent/members", Reply::ok(&all.to_string()));
    let ended = world.reap(&["--yes"]);
    says(&ended, 0, &["beside-the-server  -        stays: raft has its name, ID or address\n", "; 0 removed"]);
    for (name, why) in [("server", "it is a server"), ("old-server", "it is a server"), ("vm", "none of Kubernetes'")] {
        let line = ended.stdout.lines().find(|line| line.split_whitespace().next() == Some(name)).unwrap();
        assert!(line.contains(why), "{line}");
    }
}

/// What could not be asked is no "gone", whichever question it was.
#[test]
fn an_error_is_69_and_nobody_is_removed() {
    type Change = fn(&World);
    let table: &[(Change, &[&str])] = &[
        (
            |world| world.kubernetes.api.always(Call::get(NODES, status(403))),
            &[
                "may not list nodes; its ClusterRole needs the rule",
                "verbs: [list]",
                "(deploy/reap/access.yaml has it)",
            ],
        ),
        (|world| world.kubernetes.api.always(Call::get(NODES, status(401))), &["answered 401", "delete the Pod"]),
        (|world| world.kubernetes.api.always(Call::get(NODES, status(500))), &["answered 500 (list nodes)"]),
        (|world| world.kubernetes.api.always(Call::get(NODES, Reply::Html)), &["something unexpected (list nodes)"]),
        (|world| world.kubernetes.api.always(Call::get(NODES, Reply::Close)), &["could not reach the Kubernetes API"]),
        (
            |world| {
                let first = page(&["m0".to_owned(), "m1".to_owned()], "next");
                let pages = move |request: &Request| match request.target.contains("continue=next") {
                    true => status(500),
                    false => Reply::ok(&first),
                };
                world.kubernetes.api.always(Call::get(NODES, Reply::by(pages)));
            },
            &["answered 500 (list nodes)"],
        ),
        (
            |world| world.kubernetes.api.always(Call::get(&format!("{NODES}/m2"), status(403))),
            &["may not get nodes", "verbs: [get]"],
        ),
        (|world| world.says("/v1/status/leader", Reply::ok("\"\"")), &["the cluster has no leader"]),
        (|world| world.says("/v1/status/peers", Reply::Html), &["not Consul's"]),
        (
            |world| world.says("/v1/agent/members", Reply::ok("[]")),
            &["the policy node_prefix \"\" { policy = \"read\" }"],
        ),
        (|world| world.says("/v1/operator/raft/configuration", denied()), &["the policy operator = \"read\"", "403"]),
        (|world| world.says("/v1/operator/raft/configuration", status(500)), &["answered 500"]),
        (|world| world.says("/v1/catalog/nodes", Reply::CutShort("[]".to_owned())), &["/v1/catalog/nodes"]),
        (|world| world.says("/v1/health/state/critical", Reply::Html), &["not Consul's"]),
        (|world| world.says("/v1/health/node/c2", status(500)), &["answered 500"]),
    ];
    for (change, parts) in table {
        let world = World::new(2, 1);
        change(&world);
        world.reap(&["--yes"]).ends(69, &[&["could not tell which "], *parts].concat());
        assert_eq!(world.asked_to_remove(), 0, "{parts:?}");
    }
}

/// Behind the Service's address stands a server that was lost with its machine: the next one answers.
#[test]
fn a_question_that_nobody_answers_is_asked_again() {
    for path in ["/v1/status/leader", "/v1/catalog/nodes", "/v1/health/node/c2"] {
        let world = World::new(2, 1);
        world.agent.expect(Call::get(path, Reply::Close));
        world.agent.expect(Call::get(path, Reply::Close));
        says(&world.reap(&["--yes"]), 0, &["1 removed"]);
        assert_eq!(world.removed(), ["c2"]);
    }
    let world = World::new(2, 1);
    world.says("/v1/status/leader", Reply::Close);
    world.reap(&["--yes"]).ends(69, &["could not tell which clients are gone: ", "/v1/status/leader"]);
    let asked = world.agent.requests().len();
    assert_eq!(asked, 10, "it ends, and asks nothing else");
}

#[test]
fn a_kubernetes_api_that_is_silent_is_no_answer() {
    let world = World::new(2, 1);
    world.kubernetes.api.always(Call::get(NODES, Reply::Nothing));
    world.reap(&["--yes"]).ends(69, &["did not answer within 10.0 s (list nodes)"]);
    assert_eq!(world.asked_to_remove(), 0);
}

#[test]
fn a_list_of_machines_is_read_to_its_last_page() {
    let world = World::new(2, 1);
    let pages = |request: &Request| match request.target.contains("continue=next") {
        true => Reply::ok(&page(&["m1".to_owned(), "m2".to_owned()], "")),
        false => Reply::ok(&page(&["m0".to_owned()], "next")),
    };
    world.kubernetes.api.always(Call::get(NODES, Reply::by(pages)));
    says(&world.reap(&["--yes"]), 0, &["c2      m2       stays: failed, but its machine has a Node object\n"]);
    let asked = world.kubernetes.api.requests();
    let names_alone =
        |request: &Request| request.header("accept").is_some_and(|it| it.contains("PartialObjectMetadata"));
    assert!(asked.iter().all(names_alone), "{asked:?}");
}

#[test]
fn what_has_changed_since_the_look_keeps_a_client() {
    let world = World::new(2, 1);
    world.kubernetes.api.always(Call::get(&format!("{NODES}/m2"), Reply::ok(&machine("m2").to_string())));
    says(&world.reap(&["--yes"]), 0, &["stays: its machine has a Node object again", "; 0 removed"]);
    let world = World::new(2, 1);
    world.says("/v1/health/node/c2", Reply::ok(&json!([health(2, false)]).to_string()));
    says(&world.reap(&["--yes"]), 0, &["stays: it is alive again", "; 0 removed"]);
    assert_eq!(world.asked_to_remove(), 0);
}

#[test]
fn the_machines_of_another_cluster_brake_with_75() {
    let world = World::new(5, 1);
    // As a wrong kubeconfig gives them: not one of the machines is known.
    world.kubernetes.machines(&["other".to_owned()], &["m5".to_owned()]);
    let ended = world.reap(&["--yes"]);
    ended.ends(75, &["nobody is removed: 5 of 6 clients are alive on machines that have no Node object", "c0 on m0"]);
    says(&ended, 75, &["c5      m5       stays by the brake: failed, and its machine has no Node object\n"]);
    world.reap(&[]).ends(75, &["KUBECONFIG", "--force", "--node-meta"]);
    assert_eq!(world.asked_to_remove(), 0);
    says(&world.reap(&["--yes", "--force"]), 0, &["c5      m5       removed in "]);
    assert_eq!(world.removed(), ["c5"]);
}

#[test]
fn more_than_half_of_the_clients_brake_with_75() {
    let world = World::new(2, 3);
    world.reap(&["--yes"]).ends(75, &["3 of 5 clients would go, which is more than half of them"]);
    assert_eq!(world.asked_to_remove(), 0);
    says(&world.reap(&["--yes", "--force"]), 0, &["5 clients name their machine; 3 removed"]);
    assert_eq!(world.removed(), ["c2", "c3", "c4"]);
}

#[test]
fn one_run_removes_so_many_and_no_more() {
    let world = World::new(5, 3);
    let ended = world.reap(&["--yes", "--at-most=2"]);
    says(&ended, 0, &["c7      m7       stays for the next run (--at-most=2)", "; 2 removed\n"]);
    assert_eq!(world.removed(), ["c5", "c6"]);
}

#[test]
fn only_clients_with_the_meta_that_was_asked_for_go() {
    let world = World::new(2, 1);
    let ended = world.reap(&["--yes", "--node-meta=k8s-cluster=east"]);
    says(&ended, 0, &["stays: it lacks the node meta that was asked for", "0 clients name their machine; 0 removed"]);
    says(&world.reap(&["--yes", "--node-meta=k8s-node=m2"]), 75, &[]);
    assert_eq!(world.asked_to_remove(), 0);
    says(
        &world.reap(&["--yes", "--force", "--node-meta=k8s-node=m2"]),
        0,
        &["1 clients name their machine; 1 removed"],
    );
}

#[test]
fn a_token_that_may_not_remove_is_told_once_and_stops_the_run() {
    let world = World::new(5, 2);
    world.agent.always(Call::put("/v1/agent/force-leave/c5", denied()));
    world.reap(&["--yes"]).ends(69, &["could not remove c5", "the policy operator = \"write\"", "403"]);
    assert_eq!(world.asked_to_remove(), 1);
}

#[test]
fn one_that_stays_in_the_catalog_is_69_and_the_others_go_all_the_same() {
    let world = World::new(5, 2);
    world.agent.always(Call::put("/v1/agent/force-leave/c5", Reply::ok("")));
    let ended = world.reap(&["--yes"]);
    ended.ends(69, &["could not remove 1 of 2 clients; c5: it is still in the catalog after 10.0 s"]);
    says(&ended, 69, &["c5      m5       not removed: it is still", "c6      m6       removed in "]);
}

#[test]
fn gossip_that_lost_the_message_is_told_again() {
    let world = World::new(2, 1);
    world.agent.expect(Call::put("/v1/agent/force-leave/c2", Reply::ok("")));
    says(&world.reap(&["--yes"]), 0, &["c2      m2       removed in ", "1 removed"]);
    assert_eq!(world.asked_to_remove(), 2);
}

#[test]
fn a_client_that_gossip_has_forgotten_already_is_done_when_the_leader_has() {
    let world = World::new(2, 1);
    let unknown = "agent: No node found with name 'c2'".to_owned();
    world.agent.always(Call::put("/v1/agent/force-leave/c2", Reply::WithHeaders(500, Vec::new(), unknown)));
    world.agent.expect(Call::get("/v1/health/node/c2", Reply::ok(&json!([health(2, true)]).to_string())));
    world.says("/v1/health/node/c2", Reply::ok("[]"));
    says(&world.reap(&["--yes"]), 0, &["removed in "]);
}

#[test]
fn the_token_comes_from_a_file_and_is_never_shown() {
    let world = World::new(2, 1);
    let file = world.kubernetes.files.path().join("token");
    std::fs::write(&file, "b1gs3cret\n").unwrap();
    let ended = world.convene(&["--yes", "--log-level=trace"]).env("CONSUL_HTTP_TOKEN_FILE", &file).run();
    says(&ended, 0, &["1 removed"]);
    assert!(!format!("{}{}", ended.stdout, ended.stderr).contains("b1gs3cret"));
    for request in world.agent.requests().iter().filter(|request| !request.target.starts_with("/v1/status/")) {
        assert_eq!(request.header("X-Consul-Token").map(String::as_str), Some("b1gs3cret"), "{}", request.target);
    }
}

#[test]
fn wrong_settings_are_64() {
    for (words, parts) in [
        (["--at-most=0"], ["--at-most: \"0\"", "from 1 to 1000"]),
        (["--node-meta=east"], ["--node-meta: \"east\"", "KEY=VALUE"]),
        (["--yes=maybe"], ["--yes: \"maybe\"", "true, false"]),
        (["--force=perhaps"], ["--force: \"perhaps\"", "true, false"]),
    ] {
        Convene::new(["reap"]).words(words).run().ends(64, &parts);
    }
    Convene::new(["reap"]).run().ends(64, &["the way to the Kubernetes API is not known", "KUBECONFIG"]);
}

// === real Consul ===

/// A client agent of its own, started without convene.
struct Client {
    name: &'static str,
    host: u8,
    machine: Option<&'static str>,
    words: Vec<String>,
    process: Option<Child>,
}

impl Client {
    /// On a machine, if it is one of Kubernetes.
    fn new(name: &'static str, host: u8, machine: Option<&'static str>) -> Self {
        let words = machine.map(|machine| format!("-node-meta=k8s-node:{machine}")).into_iter().collect();
        Self { name, host, machine, words, process: None }
    }

    fn start(&mut self, consul: &std::path::Path, cluster: &Cluster) {
        let (ip, data) = (cluster.ip(self.host), cluster.folder().join(self.name));
        let mut command = Command::new(consul);
        command.args(["agent", "-retry-interval=1s", "-hcl=disable_update_check = true ports { grpc = -1 }"]);
        command.args([format!("-node={}", self.name), format!("-bind={ip}"), format!("-client={ip}")]);
        command.args([format!("-data-dir={}", data.display())]);
        // Whichever of them are there.
        command.args([0, 1, 2].map(|server| format!("-retry-join={}", cluster.ip(server))));
        let log = std::fs::File::create(cluster.folder().join(format!("{}.log", self.name))).unwrap();
        command.args(&self.words).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.process = Some(command.spawn().unwrap());
    }

    /// As a lost machine does.
    fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            process.wait().unwrap();
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The names of the catalog's nodes.
fn catalog(cluster: &Cluster, asked: u8) -> BTreeSet<String> {
    let nodes = cluster.get(asked, "/v1/catalog/nodes").unwrap_or_default();
    nodes.as_array().into_iter().flatten().filter_map(|node| node["Node"].as_str().map(str::to_owned)).collect()
}

/// Gossip's status of each member.
fn gossip(cluster: &Cluster, asked: u8, name: &str) -> Option<u64> {
    let members = cluster.get(asked, "/v1/agent/members")?;
    members.as_array()?.iter().find(|member| member["Name"] == name)?["Status"].as_u64()
}

/// Waits until the catalog has what an agent says of itself, which comes after what gossip says of it.
fn known(cluster: &Cluster, asked: u8, name: &str, machine: Option<&str>) {
    cluster.wait_for(&format!("{name} in the catalog"), || {
        let node = cluster.get(asked, &format!("/v1/catalog/node/{name}")).unwrap_or_default();
        node["Node"].is_object() && machine.is_none_or(|machine| node["Node"]["Meta"]["k8s-node"] == machine)
    });
}

fn failed(cluster: &Cluster, asked: u8, name: &str) {
    cluster.wait_for(&format!("the failure of {name}"), || {
        let checks = cluster.get(asked, &format!("/v1/health/node/{name}")).unwrap_or_default();
        checks[0]["Status"] == "critical" && gossip(cluster, asked, name) == Some(4)
    });
}

fn reap(cluster: &Cluster, asked: u8, kubernetes: &Kubernetes, words: &[&str]) -> Ended {
    let mut command = cluster.convene(asked, &["reap"]);
    Ended::of(command.args(words).env("KUBECONFIG", kubernetes.kubeconfig()).output().unwrap())
}

#[test]
fn a_client_that_died_with_its_machine_is_out_of_the_catalog_and_a_server_in_the_raft_peers_is_not() {
    let test = "a_client_that_died_with_its_machine_is_out_of_the_catalog_and_a_server_in_the_raft_peers_is_not";
    let Some(consul) = needs_consul(test) else { return };
    // Autopilot keeps a dead server among the peers, and the servers say of themselves what clients do.
    let mut cluster = Cluster::new(env!("CARGO_BIN_EXE_convene"), &consul, 3)
        .with("-hcl=autopilot { min_quorum = 3 }")
        .with("-node-meta=k8s-node:gone");
    cluster.publish_all();
    cluster.start_all(&[]);
    cluster.wait_formed(&[0, 1, 2]);
    let mut clients = [
        Client::new("db", 20, Some("m0")),
        Client::new("mq", 21, Some("m1")),
        Client::new("web", 22, Some("gone")),
        Client::new("vm", 23, None),
    ];
    for client in &mut clients {
        client.start(&consul, &cluster);
    }
    let leader = cluster.leading(0).unwrap();
    let dead = (leader + 1) % 3;
    known(&cluster, leader, &format!("consul-server-{dead}"), Some("gone"));
    clients.iter().for_each(|client| known(&cluster, leader, client.name, client.machine));
    let service = json!({"Name": "shop", "Check": {"TTL": "1h", "Status": "passing"}}).to_string();
    let registered = || {
        let agent = std::net::SocketAddr::new(cluster.ip(22), 8500);
        support::cluster::request(agent, "PUT", "/v1/agent/service/register", &service).map(|(status, _)| status)
    };
    assert_eq!(registered(), Some(200));
    let instances =
        |cluster: &Cluster| cluster.get(leader, "/v1/catalog/service/shop").map(|all| all.as_array().unwrap().len());
    cluster.wait_for("the service", || instances(&cluster) == Some(1));

    clients[2].kill();
    clients[3].kill();
    cluster.kill(dead);
    let dead = format!("consul-server-{dead}");
    for name in ["web", "vm", &dead] {
        failed(&cluster, leader, name);
    }
    let kubernetes = Kubernetes::new();
    kubernetes.machines(&["m0".to_owned(), "m1".to_owned()], &["gone".to_owned()]);
    let before = catalog(&cluster, leader);
    says(
        &reap(&cluster, leader, &kubernetes, &[]),
        0,
        &["web", "would be removed", "3 clients name their machine; 1 would"],
    );
    assert_eq!(catalog(&cluster, leader), before);

    let ended = reap(&cluster, leader, &kubernetes, &["--yes"]);
    says(
        &ended,
        0,
        &["removed in ", &format!("{dead}  gone     stays: it is a server\n"), "none of Kubernetes'", "; 1 removed"],
    );
    println!("{}", ended.stdout);
    let after: BTreeSet<String> = before.into_iter().filter(|name| name != "web").collect();
    assert_eq!(catalog(&cluster, leader), after, "web and nobody else");
    assert_eq!(instances(&cluster), Some(0), "its services are gone with it");
    assert_eq!(gossip(&cluster, leader, "web"), Some(3), "it has left");
    assert_eq!((gossip(&cluster, leader, "vm"), gossip(&cluster, leader, &dead)), (Some(4), Some(4)));
    assert_eq!((cluster.peers(leader).len(), cluster.voters(leader)), (3, 3));
    let again = reap(&cluster, leader, &kubernetes, &["--yes"]);
    says(&again, 0, &["2 clients name their machine; 0 removed"]);
    assert!(!again.stdout.contains("web"), "{}", again.stdout);

    // A machine that comes back brings its client back.
    clients[2].start(&consul, &cluster);
    cluster.wait_for("its return", || gossip(&cluster, leader, "web") == Some(1));
    known(&cluster, leader, "web", Some("gone"));
}

#[test]
fn over_tls_the_token_needs_to_read_nodes_and_to_write_operator_and_nothing_else() {
    let test = "over_tls_the_token_needs_to_read_nodes_and_to_write_operator_and_nothing_else";
    let Some(consul) = needs_consul(test) else { return };
    let mut cluster = Cluster::new(env!("CARGO_BIN_EXE_convene"), &consul, 1).denying().over_tls();
    cluster.publish_all();
    cluster.start_all(&[]);
    cluster.wait_formed(&[0]);
    let token = |secret: &str, rules: &str| cluster.grant(secret, &format!("p{}", &secret[..8]), rules);
    let [agents, reads, reader, writer] =
        [1, 2, 3, 4].map(|number| format!("{number}0000000-0000-4000-8000-000000000000"));
    token(&agents, "node_prefix \"\" { policy = \"write\" }");
    token(&reads, "operator = \"write\"");
    token(&reader, "operator = \"read\" node_prefix \"\" { policy = \"read\" }");
    token(&writer, "operator = \"write\" node_prefix \"\" { policy = \"read\" }");
    let file = |name: &str| cluster.folder().join(name);
    let tls = format!(
        "-hcl=tls {{ defaults {{ ca_file = {:?} cert_file = {:?} key_file = {:?} verify_outgoing = true }} }}",
        file("consul-agent-ca.pem"),
        file("dc1-client-consul-0.pem"),
        file("dc1-client-consul-0-key.pem")
    );
    let acl = format!("-hcl=acl {{ enabled = true default_policy = \"deny\" tokens {{ agent = {agents:?} }} }}");
    let mut clients = [Client::new("db", 20, Some("m0")), Client::new("web", 21, Some("gone"))];
    for client in &mut clients {
        client.words.extend([tls.clone(), acl.clone()]);
        client.start(&consul, &cluster);
    }
    clients.iter().for_each(|client| known(&cluster, 0, client.name, client.machine));
    clients[1].kill();
    failed(&cluster, 0, "web");
    let kubernetes = Kubernetes::new();
    kubernetes.machines(&["m0".to_owned()], &["gone".to_owned()]);
    let reap = |token: Option<&str>| {
        let mut command = cluster.convene(0, &["reap", "--yes"]);
        command.env("KUBECONFIG", kubernetes.kubeconfig());
        if let Some(token) = token {
            std::fs::write(file("token"), token).unwrap();
            command.env("CONSUL_HTTP_TOKEN_FILE", file("token"));
        }
        Ended::of(command.output().unwrap())
    };
    reap(None).ends(69, &["the policy operator = \"read\""]);
    reap(Some("7e57ab1e-0000-4000-8000-000000000000")).ends(69, &["ACL not found"]);
    reap(Some(&reads)).ends(69, &["the policy node_prefix \"\" { policy = \"read\" }"]);
    reap(Some(&reader)).ends(69, &["could not remove web", "the policy operator = \"write\""]);
    assert_eq!(catalog(&cluster, 0).len(), 3);
    says(&reap(Some(&writer)), 0, &["removed in ", "2 clients name their machine; 1 removed"]);
    assert_eq!(catalog(&cluster, 0), BTreeSet::from(["consul-server-0".to_owned(), "db".to_owned()]));
}

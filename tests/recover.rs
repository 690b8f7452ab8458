//! A quorum that is lost, and comes back by `convene recover`: real Consul servers, of which two lose their disks.

// A panic is how a test fails; clippy's own exception for tests covers `#[test]` functions only.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "support/mod.rs"]
mod support;

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;
use support::cluster::{Cluster, MANAGEMENT};
use support::config_map::{KeptConfigMap, status};
use support::http::{Call, Reply, ScriptedHttp};
use support::net::{LoopbackBlock, loopback_block};
use support::port::OpenPort;
use support::program::{Convene, Ended};
use support::skip::needs_consul;
use support::traced::killed_when;

const ALL: [u8; 3] = [0, 1, 2];

/// How many keys are to be there afterwards.
const KEYS: usize = 50;

/// Autopilot would remove a server that it sees failed after some seconds, and the quorum would never be lost.
const KEEP_ALL: &str = "-hcl=autopilot { min_quorum = 3 }";

fn three(consul: &Path) -> Cluster {
    Cluster::new(env!("CARGO_BIN_EXE_convene"), consul, 3).with(KEEP_ALL)
}

/// `convene recover` as that server's Pod would call it.
fn recover(cluster: &Cluster, ordinal: u8, words: &[&str]) -> Ended {
    let mut call = cluster.surveying(ordinal, &["recover", "--expect=3"]);
    if cluster.is_denying() {
        call.env("CONSUL_HTTP_TOKEN", MANAGEMENT);
    }
    Ended::of(call.args(words).output().unwrap())
}

/// Three servers with keys, and what each answers.
fn formed(cluster: &mut Cluster) {
    cluster.publish_all();
    cluster.start_all(&[]);
    cluster.wait_formed(&ALL);
    for key in 0..KEYS {
        assert_eq!(cluster.put(0, &format!("/v1/kv/key-{key}"), "kept"), Some(200));
    }
}

/// All but one lose their disks, and come back with empty ones.
fn lose_all_but(cluster: &mut Cluster, survivor: u8) {
    let others: Vec<u8> = ALL.into_iter().filter(|one| *one != survivor).collect();
    others.iter().for_each(|one| cluster.wipe(*one));
    for one in others {
        cluster.start(one, &[]);
        cluster.wait_for("a wait that names the command", || {
            let log = cluster.log(one);
            log.lines().any(|line| line.contains("waiting: rule 5") && line.contains("convene recover"))
        });
    }
    assert!(cluster.leader(survivor).is_none());
}

/// Every key is there, as each server has it.
fn has_all_keys(cluster: &Cluster) {
    for ordinal in ALL {
        let keys = || cluster.get(ordinal, "/v1/kv/key-?keys&stale").and_then(|keys| Some(keys.as_array()?.len()));
        cluster.wait_for("every key", || keys() == Some(KEYS));
    }
}

/// Every file below a folder with its bytes, but those that a running agent or convene itself changes.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            all.extend(files(&path));
        } else {
            all.insert(path.clone(), fs::read(path).unwrap_or_default());
        }
    }
    all
}

fn comes_back(mut cluster: Cluster) {
    formed(&mut cluster);
    lose_all_but(&mut cluster, 0);
    let before: Vec<PathBuf> = files(&cluster.data(0)).into_keys().collect();
    let dry = recover(&cluster, 0, &[]);
    assert_eq!(dry.code, 0, "{}{}", dry.stdout, dry.stderr);
    for part in
        ["most data, of what can be read: consul-server-0", "gate 6 ok", "would do, with --yes", "--yes does it"]
    {
        assert!(dry.stdout.contains(part), "{part:?} is not in: {}", dry.stdout);
    }
    assert_eq!(files(&cluster.data(0)).into_keys().collect::<Vec<_>>(), before, "a dry run writes nothing");
    let begun = Instant::now();
    let done = recover(&cluster, 0, &["--yes"]);
    assert_eq!(done.code, 0, "{}{}", done.stdout, done.stderr);
    println!("{}", done.stdout);
    for part in ["took a snapshot", "ending the agent", "recovered: leader"] {
        assert!(done.stdout.contains(part), "{part:?} is not in: {}", done.stdout);
    }
    println!("a leader after {:.1} s", begun.elapsed().as_secs_f64());
    cluster.wait_formed(&ALL);
    println!("three voters after {:.1} s", begun.elapsed().as_secs_f64());
    has_all_keys(&cluster);
    // Nobody is told of it any more, and what was there is kept.
    let ours = cluster.data(0).join("convene");
    cluster.wait_for("the end of the recovery", || !ours.join("recovering.json").exists());
    let kept = |name: &str| fs::metadata(ours.join("recovered-1").join(name)).map(|meta| meta.len());
    assert!(kept("snapshot.gz").unwrap() > 0);
    assert!(kept("configuration.json").unwrap() > 0 && kept("peers.info").unwrap() > 0);
    assert!(!cluster.data(0).join("raft/peers.json").exists());
    recover(&cluster, 0, &["--yes"]).ends(75, &["gate 2", "knows leader"]);
}

#[test]
fn a_survivor_of_three_leads_again_and_the_wiped_servers_join_by_themselves() {
    let name = "a_survivor_of_three_leads_again_and_the_wiped_servers_join_by_themselves";
    let Some(consul) = needs_consul(name) else { return };
    comes_back(three(&consul));
}

#[test]
fn so_it_does_with_acls_and_tls() {
    let Some(consul) = needs_consul("so_it_does_with_acls_and_tls") else { return };
    comes_back(three(&consul).denying().over_tls());
}

/// Copies a folder with all that is in it.
fn copy(from: &Path, to: &Path) {
    for (path, bytes) in files(from) {
        let target = to.join(path.strip_prefix(from).unwrap());
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::write(target, bytes).unwrap();
    }
}

/// The machine's disaster: every server has its data, and another address than the others know.
#[test]
fn servers_that_all_have_new_addresses_come_back_by_one_list_on_each() {
    let name = "servers_that_all_have_new_addresses_come_back_by_one_list_on_each";
    let Some(consul) = needs_consul(name) else { return };
    let mut earlier = three(&consul);
    formed(&mut earlier);
    ALL.into_iter().for_each(|one| earlier.kill(one));
    let mut cluster = three(&consul);
    ALL.into_iter().for_each(|one| copy(&earlier.data(one), &cluster.data(one)));
    cluster.publish_all();
    let shown = |ordinal: u8| {
        let said = recover(&cluster, ordinal, &[]).stdout;
        let word = said.split_whitespace().find(|word| word.starts_with("--peer=")).map(str::to_owned);
        word.unwrap_or_else(|| panic!("no --peer is in: {said}"))
    };
    let list: Vec<String> = ALL.into_iter().map(shown).collect();
    let words: Vec<&str> = ["--yes"].into_iter().chain(list.iter().map(String::as_str)).collect();
    for ordinal in ALL {
        let done = recover(&cluster, ordinal, &words);
        assert_eq!(done.code, 0, "{}{}", done.stdout, done.stderr);
        assert!(done.stdout.contains("copied raft's files"), "{}", done.stdout);
        // Not another one after the first.
        recover(&cluster, ordinal, &["--yes"]).ends(75, &["gate 4", "another recovery is under way"]);
    }
    cluster.start_all(&[]);
    cluster.wait_formed(&ALL);
    has_all_keys(&cluster);
    let addresses = |ordinal: u8| cluster.peers(ordinal);
    let new: Vec<_> = ALL.into_iter().map(|one| cluster.ip(one)).collect();
    assert!(ALL.into_iter().all(|one| addresses(one) == new));
}

/// A recovery that was begun and broken off, and then the others came back by themselves.
#[test]
fn a_recovery_that_was_broken_off_is_void_once_the_others_have_a_leader() {
    let name = "a_recovery_that_was_broken_off_is_void_once_the_others_have_a_leader";
    let Some(consul) = needs_consul(name) else { return };
    let mut cluster = three(&consul);
    formed(&mut cluster);
    ALL.into_iter().for_each(|one| cluster.kill(one));
    let begun = recover(&cluster, 0, &["--yes"]);
    assert!(
        begun.code == 0 && begun.stdout.contains("takes the file when it starts"),
        "{}{}",
        begun.stdout,
        begun.stderr
    );
    [1, 2].into_iter().for_each(|one| cluster.start(one, &[]));
    cluster.wait_for("a leader", || cluster.leader(1).is_some());
    cluster.start(0, &[]);
    cluster.wait_formed(&ALL);
    assert!(cluster.log(0).contains("the recovery that was begun here is void"), "{}", cluster.log(0));
    has_all_keys(&cluster);
    let ours = cluster.data(0).join("convene");
    cluster.wait_for("the end of the recovery", || !ours.join("recovering.json").exists());
    assert!(ours.join("recovered-1/peers.json.void").exists());
}

/// A StatefulSet that was scaled down while its last server was away, as its API says.
#[test]
fn a_voter_that_could_not_leave_is_removed_once_its_pod_is_gone() {
    let name = "a_voter_that_could_not_leave_is_removed_once_its_pod_is_gone";
    let Some(consul) = needs_consul(name) else { return };
    let mut cluster = three(&consul);
    formed(&mut cluster);
    let api = ScriptedHttp::start();
    let kubeconfig = cluster.folder().join("kubeconfig");
    fs::write(&kubeconfig, api.kubeconfig(&json!({}))).unwrap();
    let answers = |path: &str, answer: Value| api.always(Call::get(path, Reply::ok(&answer.to_string())));
    let statefulset = |replicas: u32| {
        let spec = json!({"replicas": replicas, "serviceName": "consul-server", "podManagementPolicy": "Parallel"});
        let path = "/apis/apps/v1/namespaces/demo/statefulsets/consul-server";
        answers(path, json!({"metadata": {"name": "consul-server", "uid": "u"}, "spec": spec}));
    };
    answers("/api/v1/namespaces/demo/pods", json!({"items": []}));
    for ordinal in ALL {
        let status = json!({"phase": "Running", "podIP": cluster.ip(ordinal)});
        let pod = json!({"metadata": {"name": format!("consul-server-{ordinal}")}, "status": status});
        answers(&format!("/api/v1/namespaces/demo/pods/consul-server-{ordinal}"), pod);
    }
    statefulset(3);
    let remove = |cluster: &Cluster, words: &[&str]| {
        let mut call = cluster.surveying(0, &["recover", "--expect=3"]);
        Ended::of(call.env("KUBECONFIG", &kubeconfig).args(words).output().unwrap())
    };
    let third = ["--remove=consul-server-2"];
    remove(&cluster, &["--remove=nobody"]).ends(75, &["gate 2", "has no nobody"]);
    remove(&cluster, &third).ends(75, &["gate 3", "is a server of the StatefulSet (3 replicas from ordinal 0)"]);
    statefulset(2);
    remove(&cluster, &third).ends(75, &["gate 3: Pod consul-server-2 is there"]);
    api.always(Call::get("/api/v1/namespaces/demo/pods/consul-server-2", status(404)));
    remove(&cluster, &third).ends(75, &["gate 4: gossip has consul-server-2 for alive"]);
    assert_eq!(cluster.voters(0), 3);
    cluster.kill(2);
    cluster.wait_for("its failure", || cluster.member(0, 2) == Some(4));
    let dry = remove(&cluster, &third);
    assert!(dry.code == 0 && dry.stdout.contains("would be removed"), "{}{}", dry.stdout, dry.stderr);
    assert_eq!(cluster.voters(0), 3, "a dry run removes nobody");
    let done = remove(&cluster, &["--yes", third[0]]);
    assert!(done.code == 0 && done.stdout.contains("removed consul-server-2 in"), "{}{}", done.stdout, done.stderr);
    assert_eq!(cluster.voters(0), 2);
    assert_eq!(cluster.member(0, 2), Some(3), "gossip has it as left");
}

/// A volume on which an agent was started, and other servers at addresses of its own.
struct World {
    block: LoopbackBlock,
    data: tempfile::TempDir,
}

const NODE_ID: &str = "6b1d3a52-9c0e-4f57-8a34-2f0f6f1d9c11";

impl World {
    fn new() -> Self {
        let (block, data) = (loopback_block(), tempfile::tempdir().unwrap());
        fs::create_dir(data.path().join("raft")).unwrap();
        for (name, text) in [("raft/raft.db", "log"), ("raft/peers.info", "how"), ("node-id", NODE_ID)] {
            fs::write(data.path().join(name), text).unwrap();
        }
        Self { block, data }
    }

    /// One other server is named, at `block.3`.
    fn recover(&self, words: &[&str]) -> Convene {
        Convene::new(["recover", "--yes"])
            .words([format!("--advertise={}", self.block.ip(2)), format!("--discover=static:{}", self.block.ip(3))])
            .words([format!("--data-dir={}", self.data.path().display())])
            .envs("CONVENE_NODE_NAME=s1 CONVENE_RESOLV_CONF=/does/not/exist")
            .env("CONSUL_HTTP_ADDR", format!("{}:8500", self.block.ip(2)))
            .words(words)
    }

    /// A Kubernetes API that has a StatefulSet of so many servers, and answers [`Self::recover_in_its_pod`].
    fn kubernetes(&self, replicas: u32) -> ScriptedHttp {
        let api = ScriptedHttp::start();
        fs::write(self.kubeconfig(), api.kubeconfig(&json!({}))).unwrap();
        let spec = json!({"replicas": replicas, "serviceName": "consul-server", "podManagementPolicy": "Parallel"});
        let statefulset = json!({"metadata": {"name": "consul-server", "uid": "u"}, "spec": spec});
        let path = "/apis/apps/v1/namespaces/demo/statefulsets/consul-server";
        api.always(Call::get(path, Reply::ok(&statefulset.to_string())));
        api
    }

    fn kubeconfig(&self) -> PathBuf {
        self.data.path().join("kubeconfig")
    }

    fn recover_in_its_pod(&self, words: &[&str]) -> Ended {
        let pod = format!("POD_NAME=consul-server-0 POD_NAMESPACE=demo POD_IP={}", self.block.ip(2));
        self.recover(words).envs(&pod).env("KUBECONFIG", self.kubeconfig()).run()
    }

    fn us(&self) -> String {
        format!("{NODE_ID}@{}:8300", self.block.ip(2))
    }

    /// That server runs, and tells this of its leader, its peers and its log.
    fn other(&self, leader: &str, peers: &Value, index: u64) -> (OpenPort, ScriptedHttp) {
        let http = ScriptedHttp::at(&self.block.at(3, 8500));
        http.always(Call::get("/v1/status/leader", Reply::ok(&json!(leader).to_string())));
        http.always(Call::get("/v1/status/peers", Reply::ok(&peers.to_string())));
        http.always(Call::get("/v1/connect/ca/roots", Reply::Json(500, "Connect must be enabled".to_owned())));
        let raft = json!({"last_log_term": "2", "last_log_index": index.to_string()});
        let config = json!({"NodeName": "s2", "NodeID": "0", "Server": true});
        let told = json!({"Config": config, "Stats": {"raft": raft}});
        http.always(Call::get("/v1/agent/self", Reply::ok(&told.to_string())));
        (OpenPort::at(&self.block.at(3, 8300)), http)
    }

    /// That gate is shut, and nothing was written.
    #[track_caller]
    fn refuses(&self, words: &[&str], parts: &[&str]) {
        let before = files(self.data.path());
        self.recover(words).run().ends(75, &[&["nothing was changed", "gate"], parts].concat());
        assert_eq!(files(self.data.path()), before, "{parts:?}");
    }
}

#[test]
fn each_gate_refuses_with_its_facts_and_nothing_is_written() {
    let world = World::new();
    let raft = world.data.path().join("raft");
    let (us, them) = (format!("{}:8300", world.block.ip(2)), format!("{}:8300", world.block.ip(3)));
    fs::remove_file(raft.join("peers.info")).unwrap();
    world.refuses(&[], &["gate 1: there is no", "peers.info"]);
    fs::write(raft.join("peers.info"), "how").unwrap();
    let leads = world.other(&them, &json!([us, them]), 9);
    world.refuses(&[], &["gate 2", &format!("knows leader {them}")]);
    drop(leads);
    let three = json!([us, them, "127.0.0.9:8300"]);
    let runs = world.other("", &three, 9);
    world.refuses(&[], &["gate 3", "could get a majority of its peers", "convene/hold"]);
    drop(runs);
    let silent = OpenPort::at(&world.block.at(3, 8300));
    world.refuses(&[], &["gate 3", "may run", "8300 is open"]);
    let vouched = format!("--stopped={}", world.block.ip(3));
    world.refuses(&[&vouched], &["gate 3", "8300 is open"]);
    drop(silent);
    let isolated = world.other("", &json!([us, them]), 9);
    world.refuses(&[], &["gate 5", "has 2/9 (term/index)"]);
    drop(isolated);
    let other = format!("--peer=7b1d3a52-9c0e-4f57-8a34-2f0f6f1d9c11@{us}");
    world.refuses(&[&other], &["gate 6: this server is", &world.us()]);
    fs::create_dir(world.data.path().join("convene")).unwrap();
    let pending = json!({"number": 1, "peers": [{"id": "x", "address": them, "non_voter": false}]});
    fs::write(world.data.path().join("convene/recovering.json"), pending.to_string()).unwrap();
    world.refuses(&[], &["gate 4", "recovering.json", &format!("x@{them}")]);
    fs::remove_file(world.data.path().join("convene/recovering.json")).unwrap();
    fs::remove_file(raft.join("raft.db")).unwrap();
    world.refuses(&[], &["gate 1", "has no raft data"]);
}

/// What is noted in Kubernetes, where a claim is kept: nobody else begins another recovery, and the same one goes on.
#[test]
fn the_claim_has_one_recovery_at_a_time() {
    let world = World::new();
    let api = world.kubernetes(1);
    let maps = "/api/v1/namespaces/demo/configmaps";
    let claim = KeptConfigMap::at(&api, maps, "consul-server-convene");
    let recover = |words: &[&str]| world.recover_in_its_pod(words);
    let done = recover(&[]);
    assert_eq!(done.code, 0, "{}{}", done.stdout, done.stderr);
    let noted = claim.now().unwrap()["data"].clone();
    assert_eq!((&noted["recovery"], &noted["state"]), (&json!(world.us()), &json!("formed")), "{noted}");
    // The same one again changes nothing; another server's is another one.
    assert_eq!(recover(&[]).code, 0);
    assert_eq!(claim.accepted().len(), 1);
    fs::write(world.data.path().join("node-id"), NODE_ID.replace("6b1d", "7b1d")).unwrap();
    let before = files(world.data.path());
    recover(&[])
        .ends(75, &["gate 4: the claim consul-server-convene", "by consul-server-0", "kubectl patch configmap"]);
    assert_eq!(files(world.data.path()), before);
    assert_eq!(claim.accepted().len(), 1);
    api.always(Call::get(&format!("{maps}/consul-server-convene"), status(403)));
    recover(&[]).ends(75, &["gate 4: whether another recovery is under way cannot be told", "--claim=off"]);
}

/// Two servers whose containers fail again and again may both have their data, and be a second cluster once they are mended.
#[test]
fn a_server_whose_container_is_to_be_started_again_is_not_stopped_until_it_is_held() {
    const WORDS: [&str; 2] = ["--discover=statefulset", "--claim=off"];
    let world = World::new();
    let api = world.kubernetes(2);
    let pod = |annotations: Value| {
        let fails = json!([{"name": "consul", "state": {"waiting": {"reason": "CrashLoopBackOff"}}}]);
        json!({
            "metadata": {"name": "consul-server-1", "annotations": annotations},
            "status": {"phase": "Running", "podIP": world.block.ip(3), "containerStatuses": fails},
        })
    };
    let path = "/api/v1/namespaces/demo/pods/consul-server-1";
    let answers = |pod: Value| api.always(Call::get(path, Reply::ok(&pod.to_string())));
    let recover = |words: &[&str]| world.recover_in_its_pod(words);
    answers(pod(json!({})));
    let before = files(world.data.path());
    let again = "it is to be started again (container consul: CrashLoopBackOff)";
    recover(&WORDS).ends(75, &["gate 3: consul-server-1", again, "convene.dev/hold=recover"]);
    assert_eq!(files(world.data.path()), before);
    answers(pod(json!({"convene.dev/hold": "recover"})));
    let held = recover(&WORDS);
    assert_eq!(held.code, 0, "{}{}", held.stdout, held.stderr);
}

#[test]
fn a_list_that_cannot_be_is_64() {
    let world = World::new();
    let id = format!("--peer={NODE_ID}@10.0.0.1");
    world.recover(&["--peer=s1@10.0.0.1"]).run().ends(64, &["--peer: \"s1@10.0.0.1\"", "ID@ADDRESS"]);
    world.recover(&[&id, &format!("{id}:8301")]).run().ends(64, &["an ID or an address twice"]);
    world.recover(&[&id, "--remove=s2"]).run().ends(64, &["--remove and --peer contradict each other"]);
}

#[test]
fn a_recovery_killed_at_any_write_and_called_again_ends_as_an_undisturbed_one() {
    let undisturbed = |world: &World| {
        let done = world.recover(&[]).run();
        assert_eq!(done.code, 0, "{}{}", done.stdout, done.stderr);
        let all = files(world.data.path());
        let name = |path: &Path| path.strip_prefix(world.data.path()).unwrap().display().to_string();
        let addresses = |bytes: &[u8]| String::from_utf8_lossy(bytes).replace(&world.block.ip(2).to_string(), "US");
        // The file of a copy that was broken off may stay until the next one.
        all.iter().map(|(path, bytes)| (name(path), addresses(bytes))).collect::<BTreeMap<_, _>>()
    };
    let whole = undisturbed(&World::new());
    for name in ["raft/peers.json", "convene/recovering.json", "convene/recovered-1/raft/raft.db"] {
        assert!(whole.contains_key(name), "{name} is not in: {:?}", whole.keys());
    }
    let mut killed = 0;
    loop {
        let world = World::new();
        let mut done = 0;
        let ended = killed_when(world.recover(&[]), |moment| {
            done += usize::from(moment.is_of_a_write());
            moment.is_of_a_write() && done > killed
        });
        // Whatever is there is whole.
        if let Ok(text) = fs::read(world.data.path().join("raft/peers.json")) {
            serde_json::from_slice::<Value>(&text).unwrap();
            assert!(world.data.path().join("convene/recovering.json").exists(), "write {killed}: noted before");
            assert!(world.data.path().join("convene/recovered-1/raft/raft.db").exists(), "write {killed}: kept before");
        }
        assert_eq!(undisturbed(&world), whole, "write {killed}");
        if ended {
            break;
        }
        killed += 1;
    }
    assert!(killed > 30, "{killed} writes cannot have been all");
}

//! Clients of real Consul servers, each started by `convene run`: they find their servers, find them again, keep their identity
//! without a volume, and leave.

// A panic is how a test fails; clippy's own exception for tests covers `#[test]` functions only.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "support/mod.rs"]
mod support;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::fs;
use support::cluster::{Cluster, wait_until};
use support::dns::Answer;
use support::http::{Call, Reply, ScriptedHttp};
use support::net::loopback_block;
use support::program::Convene;
use support::skip::needs_consul;

use hickory_proto::rr::RecordType;

/// One server, which has formed, and a client that has joined it.
fn joined(test: &str, words: &[&str]) -> Option<Cluster> {
    let mut cluster = Cluster::new(env!("CARGO_BIN_EXE_convene"), needs_consul(test)?, 1).and_clients(2);
    cluster.publish_all();
    cluster.start(0, &[]);
    cluster.wait_formed(&[0]);
    cluster.start_client(1, words);
    cluster.wait_for("the client", || cluster.log(1).contains("joined: a leader is known"));
    cluster.wait_for("the client in the catalog", || node_id(&cluster, 1).is_some());
    Some(cluster)
}

/// The node ID of a client in the catalog.
fn node_id(cluster: &Cluster, ordinal: u8) -> Option<String> {
    let nodes = cluster.get(0, "/v1/catalog/nodes")?;
    let name = Cluster::client(ordinal);
    nodes.as_array()?.iter().find(|node| node["Node"] == name.as_str())?["ID"].as_str().map(str::to_owned)
}

#[test]
fn a_client_that_is_killed_again_and_again_without_a_volume_is_one_node_and_never_refused() {
    let Some(mut cluster) =
        joined("a_client_that_is_killed_again_and_again_without_a_volume_is_one_node_and_never_refused", &[])
    else {
        return;
    };
    let id = node_id(&cluster, 1).unwrap();
    for life in 2..=21 {
        cluster.wipe(1);
        cluster.start_client(1, &[]);
        let lives = || cluster.log(1).matches("joined: a leader is known").count();
        cluster.wait_for("its next life", || lives() == life);
        assert_eq!(node_id(&cluster, 1).as_ref(), Some(&id));
    }
    let nodes = cluster.get(0, "/v1/catalog/nodes").unwrap();
    assert_eq!(nodes.as_array().unwrap().len(), 2, "{nodes}");
    assert!(!cluster.log(0).contains("reserved") && !cluster.log(1).contains("reserved"));
    // Another one on the same machine is another node.
    cluster.start_client(2, &[]);
    cluster.wait_for("a second client", || node_id(&cluster, 2).is_some_and(|other| other != id));
}

#[test]
fn a_client_whose_servers_moved_finds_them_again() {
    let Some(mut cluster) = joined("a_client_whose_servers_moved_finds_them_again", &[]) else { return };
    cluster.kill(0);
    // The server comes back with its data elsewhere, and does not know whom to call.
    let _ = fs::remove_file(cluster.data(0).join("serf/local.snapshot"));
    let elsewhere = loopback_block();
    let mut run = cluster.surveying(0, &["run", "--expect=1", "--"]);
    let moved = |word: std::ffi::OsString| {
        word.to_str().unwrap().replace(&cluster.ip(0).to_string(), &elsewhere.ip(9).to_string())
    };
    run.env("POD_IP", elsewhere.ip(9).to_string())
        .env("CONSUL_HTTP_ADDR", elsewhere.at(9, 8500))
        .args(cluster.agent(0).into_iter().map(moved));
    cluster.dns().set(cluster.service(), RecordType::A, Answer::Addresses(vec![elsewhere.ip(9).into()]));
    cluster.dns().set(&cluster.host(0), RecordType::A, Answer::Addresses(vec![elsewhere.ip(9).into()]));
    cluster.spawn(0, run);
    cluster.wait_for("the client to find it", || cluster.leader(1) == Some(elsewhere.ip(9).into()));
    let log = cluster.log(1);
    assert!(log.contains("looking for the servers again") && log.contains("joined a server"), "{log}");
    // Its old agent would keep the server's name at the old address for a while.
    assert!(log.contains("was joined and is not in the member list"), "{log}");
}

#[test]
fn a_gate_says_what_keeps_its_agent_from_joining() {
    const KEYS: [&str; 2] =
        ["gMXkJxTx1jSFYbHwB7Y9yrGPBMSRd6IIRlOvOB0tqQI=", "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="];
    let Some(consul) = needs_consul("a_gate_says_what_keeps_its_agent_from_joining") else { return };
    let cluster = Cluster::new(env!("CARGO_BIN_EXE_convene"), consul, 1).and_clients(1);
    let mut cluster = cluster.with(&format!("-encrypt={}", KEYS[0]));
    let gate = |cluster: &Cluster| {
        let output = cluster.convene(1, &["check", "joined"]).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let with_key = |cluster: &Cluster, key: &str| {
        let mut run = cluster.surveying(1, &["run", "--role=client", "--leave=never"]);
        run.env("POD_NAME", Cluster::client(1)).arg(format!("--discover=dns:{}", cluster.service())).arg("--");
        let words = cluster.agent(1).into_iter().filter(|word| word != "-server");
        run.args(words.map(|word| word.to_str().unwrap().replace(KEYS[0], key)));
        run
    };
    let run = with_key(&cluster, KEYS[1]);
    cluster.spawn(1, run);
    cluster.wait_for("what convene waits for", || {
        gate(&cluster).1.contains("convene beside the agent: rule 1: no server is known")
    });
    cluster.publish_all();
    cluster.start(0, &[]);
    cluster.wait_formed(&[0]);
    cluster.wait_for("what the server answered", || {
        let (code, line) = gate(&cluster);
        let told = "was refused: its gossip key differs from this agent's: give both the same encrypt key";
        code == Some(1) && line.starts_with("not joined: ") && line.contains(told)
    });
    cluster.wipe(1);
    let run = with_key(&cluster, KEYS[0]);
    cluster.spawn(1, run);
    cluster.wait_for("the right key", || gate(&cluster).0 == Some(0));
    cluster.wait_for("no reason any more", || !cluster.data(1).join("convene/not-joined").exists());
}

#[test]
fn a_client_leaves_at_term_and_a_server_says_so() {
    let Some(mut cluster) = joined("a_client_leaves_at_term_and_a_server_says_so", &[]) else { return };
    let noted = || {
        let record = fs::read_to_string(cluster.data(1).join("convene/record.json")).unwrap_or_default();
        serde_json::from_str::<Value>(&record).is_ok_and(|record| !record["servers"].as_array().unwrap().is_empty())
    };
    cluster.wait_for("the servers in its record", noted);
    cluster.signal(1, Signal::SIGTERM);
    assert_eq!(cluster.wait(1).code(), Some(0), "{}", cluster.log(1));
    let log = cluster.log(1);
    assert!(log.contains(&format!("{} sees us as left", cluster.ip(0))), "{log}");
    assert_eq!(cluster.member_named(0, &Cluster::client(1)), Some(3));
    cluster.wait_for("its end in the catalog", || node_id(&cluster, 1).is_none());
}

#[test]
fn a_client_that_may_not_ask_for_a_leave_leaves_by_consuls_own_course() {
    let Some(consul) = needs_consul("a_client_that_may_not_ask_for_a_leave_leaves_by_consuls_own_course") else {
        return;
    };
    let mut cluster = Cluster::new(env!("CARGO_BIN_EXE_convene"), consul, 1).and_clients(1).denying();
    cluster.publish_all();
    cluster.start(0, &[]);
    cluster.wait_formed(&[0]);
    cluster.start_client(1, &[]);
    cluster.wait_for("the client", || cluster.member_named(0, &Cluster::client(1)) == Some(1));
    cluster.wait_for("its leader", || cluster.log(1).contains("joined: a leader is known"));
    cluster.signal(1, Signal::SIGTERM);
    assert_eq!(cluster.wait(1).code(), Some(0), "{}", cluster.log(1));
    let log = cluster.log(1);
    assert!(log.contains("the agent leaves by itself at TERM, which nobody confirms"), "{log}");
    cluster.wait_for("it to be seen as left", || cluster.member_named(0, &Cluster::client(1)) == Some(3));
}

#[test]
fn a_client_that_is_dead_and_one_that_left_are_forgotten_as_soon_as_they_were_told_to_be() {
    let test = "a_client_that_is_dead_and_one_that_left_are_forgotten_as_soon_as_they_were_told_to_be";
    let Some(mut cluster) = joined(test, &["--reconnect-timeout=1s"]) else { return };
    cluster.start_client(2, &["--reconnect-timeout=1s"]);
    cluster.wait_for("the second client", || cluster.log(2).contains("joined: a leader is known"));
    cluster.kill(1);
    cluster.signal(2, Signal::SIGTERM);
    cluster.wait(2);
    let status = |ordinal| cluster.member_named(0, &Cluster::client(ordinal));
    cluster.wait_for("both to be forgotten", || status(1).is_none() && status(2).is_none());
}

#[test]
fn an_agent_that_has_left_is_started_again() {
    let (block, data) = (loopback_block(), tempfile::tempdir().unwrap());
    let agent = ScriptedHttp::at(&block.at(2, 8500));
    let member = json!([{"Name": "app-1", "Addr": block.ip(2), "Status": 3, "Tags": {"role": "node"}}]);
    agent.always(Call::get("/v1/agent/members?filter=Name%20%3D%3D%20%22app-1%22", Reply::ok(&member.to_string())));
    agent.always(Call::get("/v1/agent/members?filter=Tags.role%20%3D%3D%20consul", Reply::ok("[]")));
    agent.always(Call::get("/v1/agent/self", Reply::Json(403, "Permission denied".to_owned())));
    agent.always(Call::put("/v1/agent/leave", Reply::ok("{}")));
    let log = data.path().join("log");
    let run = Convene::new(["run", "--role=client", "--node-name=app-1", "--discover=static:127.255.255.253"])
        .words([format!("--data-dir={}", data.path().display())])
        .words(["--resolv-conf=/does/not/exist", "--", "sleep", "1000"])
        .env("CONSUL_HTTP_ADDR", block.at(2, 8500));
    let mut run = run.spawn_into(&log);
    let said = || fs::read_to_string(&log).unwrap_or_default();
    let lives = || said().matches("started the agent").count();
    wait_until("a second life", || (lives() == 2).then_some(()), said);
    assert!(said().contains("the agent says that it has left the cluster: the agent is ended, and started again"));
    // A TERM is for good.
    kill(Pid::from_raw(run.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
    let ended = wait_until("its end", || run.try_wait().unwrap(), said);
    assert_eq!((ended.code(), lives()), (Some(0), 2), "{}", said());
}

#[test]
fn a_gate_waits_until_the_agent_has_joined_and_says_why_it_has_not() {
    let block = loopback_block();
    let gate = |wait: &str| Convene::new(["check", "joined", wait]).env("CONSUL_HTTP_ADDR", block.at(2, 8500));
    let refused = gate("--wait=0s").run();
    refused.ends(1, &[]);
    assert!(refused.stdout.contains("not joined: http://") && refused.stdout.contains("refuses the connection"));
    let told = tempfile::NamedTempFile::new().unwrap();
    let told_in = format!("--termination-log={}", told.path().display());
    gate("--wait=1ms").words([told_in]).run().ends(1, &["waited 1 ms and gave up: not joined: http://"]);
    assert!(fs::read_to_string(told.path()).unwrap().starts_with("convene: waited 1 ms and gave up: not joined"));
    let waiting = gate("--wait=60s").spawn();
    let agent = ScriptedHttp::at(&block.at(2, 8500));
    agent.always(Call::get("/v1/status/leader", Reply::ok("\"\"")));
    agent.wait_for("/v1/status/leader", 2);
    agent.always(Call::get("/v1/status/leader", Reply::ok("\"127.0.0.9:8300\"")));
    agent.always(Call::get("/v1/agent/members?filter=Tags.role%20%3D%3D%20consul", Reply::ok("[]")));
    let ended = support::program::Ended::of(waiting.wait_with_output().unwrap());
    ended.ends(0, &[]);
    assert!(ended.stdout.contains("joined: leader 127.0.0.9:8300"), "{}", ended.stdout);
}

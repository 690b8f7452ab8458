//! `check ready` and `check live` against agents that answer what a real Consul cannot be made to answer.

// A panic is how a test fails; clippy's own exception for tests covers `#[test]` functions only.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "support/mod.rs"]
mod support;

use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use support::http::{Call, Reply, ScriptedHttp};
use support::net::{LoopbackBlock, loopback_block};
use support::port::OpenPort;
use support::program::{Convene, Ended};
use tempfile::TempDir;

const STALE: &str = "/v1/session/info/00000000-0000-0000-0000-000000000000?stale";
const UNKNOWN: &str = "7e57ab1e-0000-4000-8000-000000000000";

/// A follower at `.2` with its agent and its volume, and the leader's agent at `.3`.
struct World {
    block: LoopbackBlock,
    data: TempDir,
    own: ScriptedHttp,
    leaders: Option<ScriptedHttp>,
    raft: Option<OpenPort>,
}

impl World {
    /// Default deny: the agent answers strangers what Consul 1.22.6 does, and all is well.
    fn denying() -> Self {
        let block = loopback_block();
        let own = ScriptedHttp::at(&block.at(2, 8500));
        let leaders = ScriptedHttp::at(&block.at(3, 8500));
        let peers = format!("[\"{}\",\"{}\"]", block.at(2, 8300), block.at(3, 8300));
        own.always(Call::get("/v1/status/leader", Reply::ok(&format!("\"{}\"", block.at(3, 8300)))));
        for agent in [&own, &leaders] {
            agent.always(Call::get("/v1/status/peers", Reply::ok(&peers)));
        }
        for denied in ["/v1/agent/self", "/v1/operator/raft/configuration"] {
            own.always(Call::get(denied, says(403, "Permission denied: anonymous token lacks permission")));
        }
        own.always(Call::get(STALE, contact("true", "17")));
        let raft = Some(OpenPort::at(&block.at(2, 8300)));
        Self { block, data: tempfile::tempdir().unwrap(), own, leaders: Some(leaders), raft }
    }

    fn call(&self, what: &str) -> Convene {
        Convene::new(["check", what])
            .env("CONSUL_HTTP_ADDR", self.block.at(2, 8500))
            .env("CONVENE_DATA_DIR", self.data.path())
            .env("POD_IP", self.block.ip(2).to_string())
    }

    fn check(&self, what: &str, token: Option<&str>) -> (i32, String) {
        let call = self.call(what);
        let ended = token.into_iter().fold(call, |call, token| call.env("CONSUL_HTTP_TOKEN", token)).run();
        (ended.code, ended.stdout.trim().to_owned())
    }

    /// `check ready` as nobody in particular.
    fn ready(&self) -> (i32, String) {
        self.check("ready", None)
    }

    #[track_caller]
    fn is_ready(&self, part: &str) {
        let (code, line) = self.ready();
        assert!(code == 0 && line.starts_with("ready: ") && line.contains(part), "{line}");
    }

    #[track_caller]
    fn is_not_ready(&self, part: &str) {
        let (code, line) = self.ready();
        assert!(code == 1 && line.starts_with("not ready: ") && line.contains(part), "{line}");
    }

    fn file(&self) -> PathBuf {
        self.data.path().join("convene/listed.json")
    }

    /// What is kept, as if it had first been seen `ms` earlier.
    fn earlier(&self, ms: u64) {
        let mut listed: Value = serde_json::from_slice(&fs::read(self.file()).unwrap()).unwrap();
        listed["since_ms"] = (listed["since_ms"].as_u64().unwrap() - ms).into();
        fs::write(self.file(), listed.to_string()).unwrap();
    }

    /// Listed for long enough.
    fn established() -> Self {
        let world = Self::denying();
        world.is_not_ready(BEGINS);
        world.earlier(25_000);
        world.is_ready(LASTS);
        world
    }
}

const BEGINS: &str = "among the leader's raft peers for ";
const LASTS: &str = "among the leader's raft peers for more than 25.0 s";

fn says(status: u16, text: &str) -> Reply {
    Reply::WithHeaders(status, Vec::new(), text.to_owned())
}

fn contact(known: &str, last: &str) -> Reply {
    let headers = [("X-Consul-Knownleader", known), ("X-Consul-Lastcontact", last)];
    let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    Reply::WithHeaders(200, headers, "[]".to_owned())
}

#[test]
fn without_a_token_a_server_is_ready_once_it_was_listed_for_25_s() {
    let world = World::denying();
    world.is_not_ready("of the 25.0 s");
    world.earlier(20_000);
    world.is_not_ready("for 20.");
    world.earlier(5_000);
    world.is_ready(LASTS);
    let written = fs::metadata(world.file()).unwrap();
    assert_eq!(written.permissions().mode() & 0o777, 0o600);
    world.is_ready("heard of the leader 17 ms ago (a stale read; no agent:read)");
    assert_eq!(fs::metadata(world.file()).unwrap().modified().unwrap(), written.modified().unwrap(), "written once");
}

#[test]
fn a_probe_that_waits_says_yes_as_soon_as_it_is_and_a_no_is_nobodys_last_word() {
    let world = World::established();
    let leader = "/v1/status/leader";
    let leads = Reply::ok(&format!("\"{}\"", world.block.at(3, 8300)));
    world.own.always(Call::get(leader, Reply::ok("\"\"")));
    let told = world.data.path().join("last-words");
    fs::write(&told, "").unwrap();
    let probe =
        |wait: &str| world.call("ready").words([wait.to_owned(), format!("--termination-log={}", told.display())]);
    let no = probe("--wait=1ms").run();
    no.ends(1, &[]);
    assert!(no.stdout.starts_with("not ready: no leader is known") && no.stderr.is_empty(), "{no:?}");
    assert_eq!(fs::read_to_string(&told).unwrap(), "");
    let asked = world.own.requests().iter().filter(|request| request.target == leader).count();
    let waiting = probe("--wait=60s").spawn();
    world.own.wait_for(leader, asked + 2);
    world.own.always(Call::get(leader, leads));
    let yes = Ended::of(waiting.wait_with_output().unwrap());
    yes.ends(0, &[]);
    assert!(yes.stdout.starts_with("ready: "), "{yes:?}");
}

#[test]
fn another_life_of_the_agent_begins_anew() {
    let mut world = World::established();
    drop(world.raft.take());
    world.raft = Some(OpenPort::at(&world.block.at(2, 8300)));
    world.is_not_ready(BEGINS);
}

#[test]
fn a_server_that_the_leader_lacks_is_not_ready_and_begins_anew_when_it_is_back() {
    let world = World::established();
    let (leaders, with) = (world.leaders.as_ref().unwrap(), [world.block.at(2, 8300), world.block.at(3, 8300)]);
    leaders.always(Call::get("/v1/status/peers", Reply::ok(&json!([with[1]]).to_string())));
    // The own list has it still: the leader's counts.
    world.is_not_ready("not among the leader's raft peers");
    leaders.always(Call::get("/v1/status/peers", Reply::ok(&json!(with).to_string())));
    world.is_not_ready(BEGINS);
}

#[test]
fn who_is_out_of_touch_is_not_ready_and_does_not_go_on_counting() {
    let world = World::denying();
    for (reply, part) in [
        (contact("true", "1001"), "last heard of 1.0 s ago, and at most 1.0 s"),
        (contact("true", "9223372036854"), "the leader was last heard of"),
        (contact("false", "0"), "no leader is known (a stale read"),
        (contact("", ""), "X-Consul-KnownLeader"),
        (says(200, "[]"), "X-Consul-KnownLeader"),
        (says(403, "Permission denied"), "answered 403"),
    ] {
        world.own.always(Call::get(STALE, contact("true", "0")));
        world.is_not_ready(BEGINS);
        world.earlier(25_000);
        world.own.always(Call::get(STALE, reply));
        world.is_not_ready(part);
        assert!(!world.file().exists(), "{part}");
    }
    world.own.always(Call::get(STALE, contact("true", "0")));
    world.is_not_ready(BEGINS);
    let leader = Reply::ok(&format!("\"{}\"", world.block.at(3, 8300)));
    world.own.always(Call::get("/v1/status/leader", Reply::ok("\"\"")));
    world.is_not_ready("no leader is known");
    assert!(!world.file().exists());
    world.own.always(Call::get("/v1/status/leader", leader));
    // One that votes already does not lose its vote by that.
    world.own.always(Call::get(STALE, contact("true", "0")));
    world.is_not_ready(BEGINS);
    world.earlier(25_000);
    world.is_ready(LASTS);
    world.own.always(Call::get(STALE, contact("true", "5000")));
    world.is_not_ready("last heard of 5.0 s ago");
    world.own.always(Call::get(STALE, contact("true", "0")));
    world.is_ready(LASTS);
}

#[test]
fn a_leader_whose_agent_cannot_be_asked_makes_nobody_unready() {
    let mut world = World::established();
    let leaders = world.leaders.as_ref().unwrap();
    leaders.always(Call::get("/v1/status/peers", Reply::Nothing));
    world.is_ready("among the own agent's raft peers (the leader's agent did not answer within 500 ms)");
    leaders.always(Call::get("/v1/status/peers", says(500, "no")));
    world.is_ready("among the own agent's raft peers (");
    world.leaders = None;
    world.is_ready("refuses the connection)");
    // Who is not in the own list either is out.
    world.own.always(Call::get("/v1/status/peers", Reply::ok("[]")));
    world.is_not_ready("not among the own agent's raft peers");
}

#[test]
fn a_leader_is_a_voter() {
    let world = World::denying();
    world.own.always(Call::get("/v1/status/leader", Reply::ok(&format!("\"{}\"", world.block.at(2, 8300)))));
    world.own.always(Call::get(STALE, contact("true", "0")));
    world.is_ready("own view: leads; among the leader's raft peers");
    assert!(world.leaders.as_ref().unwrap().requests().is_empty() && !world.file().exists());
}

#[test]
fn an_unknown_token_counts_as_none() {
    let world = World::established();
    let unknown = says(403, "ACL not found");
    for path in ["/v1/agent/self", "/v1/operator/raft/configuration", STALE] {
        world.own.always(Call::get(path, unknown.clone()).with_header("X-Consul-Token", UNKNOWN));
    }
    let (code, line) = world.check("ready", Some(UNKNOWN));
    assert!(code == 0 && line.ends_with("the token is unknown to Consul and counts as none"), "{line}");
    let with_token = |request: &support::http::Request| request.header("X-Consul-Token").is_some();
    assert!(!world.leaders.as_ref().unwrap().requests().iter().any(with_token));
    let of_everybody = |request: &&support::http::Request| request.target.starts_with("/v1/status/");
    assert!(
        !world.own.requests().iter().filter(of_everybody).any(with_token),
        "a token is sent only where one is asked for"
    );
}

#[test]
fn with_agent_read_the_own_configuration_tells_who_votes() {
    let world = World::denying();
    let describe = |suffrage: &str| {
        let configuration = format!("[{{Suffrage:{suffrage} ID:a-1 Address:{}}}]", world.block.at(2, 8300));
        let raft = json!({"state": "Follower", "last_contact": "12.5ms", "applied_index": "9", "commit_index": "9",
            "latest_configuration": configuration});
        let described = json!({"Config": {"NodeName": "s", "NodeID": "a-1", "Server": true}, "Member": null,
            "Stats": {"raft": raft}});
        world.own.always(Call::get("/v1/agent/self", Reply::ok(&described.to_string())));
    };
    describe("Voter");
    world.is_ready("own view: follows, is caught up and votes; among the leader's raft peers");
    describe("Nonvoter");
    world.is_not_ready("the own raft configuration has us as a non-voter");
    assert!(!world.file().exists());
}

#[test]
fn a_volume_that_cannot_be_written_is_told() {
    let world = World::denying();
    // A file in the way stops root too.
    fs::write(world.data.path().join("convene"), "").unwrap();
    world.is_not_ready("nor since when it is listed: could not");
    fs::remove_file(world.data.path().join("convene")).unwrap();
    fs::remove_dir(world.data.path()).unwrap();
    world.is_not_ready("it does not exist");
    fs::create_dir(world.data.path()).unwrap();
}

#[test]
fn no_leader_and_an_unreadable_token_leave_an_agent_alive() {
    let world = World::denying();
    world.own.always(Call::get("/v1/agent/self", Reply::Nothing));
    for reply in [Reply::ok("\"\""), says(500, "No cluster leader")] {
        world.own.always(Call::get("/v1/status/leader", reply));
        assert_eq!(world.check("live", None), (0, "live: the agent answers".to_owned()));
    }
    let live = Convene::new(["check", "live"])
        .env("CONSUL_HTTP_ADDR", world.block.at(2, 8500))
        .env("CONVENE_DATA_DIR", world.data.path())
        .env("CONSUL_HTTP_TOKEN_FILE", "/does/not/exist")
        .run();
    assert_eq!((live.code, live.stdout.as_str()), (0, "live: the agent answers\n"));
    world.own.always(Call::get("/v1/status/leader", Reply::ok("\"\"")));
    world.own.always(Call::get("/v1/agent/self", says(403, "Permission denied")));
    world.is_not_ready("no leader is known");
}

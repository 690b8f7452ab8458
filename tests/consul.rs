//! The whole way with real Consul servers on this machine.

// A panic is how a test fails; clippy's own exception for tests covers `#[test]` functions only.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "support/mod.rs"]
mod support;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Output, Stdio};
use support::cluster::{Cluster, MANAGEMENT};
use support::skip::needs_consul;

const ALL: [u8; 3] = [0, 1, 2];

fn cluster(test: &str) -> Option<Cluster> {
    needs_consul(test).map(|consul| Cluster::new(env!("CARGO_BIN_EXE_convene"), consul, 3))
}

/// Three servers that have formed.
fn formed(test: &str, words: &[&str]) -> Option<Cluster> {
    let mut cluster = cluster(test)?;
    cluster.publish_all();
    cluster.start_all(words);
    cluster.wait_formed(&ALL);
    Some(cluster)
}

fn node_id(cluster: &Cluster, ordinal: u8) -> String {
    fs::read_to_string(cluster.data(ordinal).join("node-id")).unwrap()
}

fn record(cluster: &Cluster, ordinal: u8) -> Value {
    serde_json::from_slice(&fs::read(cluster.data(ordinal).join("convene/record.json")).unwrap()).unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// A follower and the leader.
fn roles(cluster: &Cluster) -> (u8, u8) {
    let leader = cluster.leading(0).unwrap();
    (ALL.into_iter().find(|ordinal| *ordinal != leader).unwrap(), leader)
}

#[test]
fn three_servers_come_together_and_remember_it() {
    let Some(cluster) = formed("three_servers_come_together_and_remember_it", &[]) else { return };
    for ordinal in ALL {
        cluster.wait_for("the record", || {
            record(&cluster, ordinal)["formed"] == true
                && record(&cluster, ordinal)["servers"].as_array().is_some_and(|servers| servers.len() == 2)
        });
        let own = cluster.get(ordinal, "/v1/agent/self").unwrap();
        assert_eq!(own["Config"]["NodeID"], node_id(&cluster, ordinal), "Consul uses the node ID that convene wrote");
    }
    let seen = cluster.surveying(0, &["discover", "--expect=3", "--format=json"]).output().unwrap();
    let seen: Value = serde_json::from_slice(&seen.stdout).unwrap();
    assert!(
        seen["servers"]
            .as_array()
            .unwrap()
            .iter()
            .all(|server| server["verdict"] == "formed" && server["peers"].as_array().unwrap().len() == 3)
    );
}

#[test]
fn an_election_begins_when_the_servers_are_there_and_their_timeouts_stay_as_they_were() {
    let test = "an_election_begins_when_the_servers_are_there_and_their_timeouts_stay_as_they_were";
    let Some(cluster) = cluster(test) else { return };
    // By itself raft would elect nobody for 9 s after their start.
    let mut cluster =
        cluster.tuned("performance { raft_multiplier = 9 } ports { serf_wan = -1 } disable_update_check = true");
    cluster.publish_all();
    for start in ["with empty disks", "with their data"] {
        cluster.start_all(&[]);
        cluster.wait_formed(&ALL);
        let hastened = |ordinal: &u8| cluster.log(*ordinal).contains("is here: had the election begin");
        cluster.wait_for(start, || ALL.iter().any(hastened));
        for ordinal in ALL {
            let file = std::fs::read_to_string(rendered(&cluster, ordinal)).unwrap();
            assert!(!file.contains("raft_multiplier"), "{file}");
            let own = cluster.get(ordinal, "/v1/agent/self").unwrap();
            assert_eq!(own["DebugConfig"]["ConsulRaftHeartbeatTimeout"], "9s", "{start}");
        }
        ALL.into_iter().for_each(|ordinal| cluster.kill(ordinal));
    }
}

#[test]
fn what_is_rendered_is_what_the_agent_runs_with() {
    let Some(cluster) = formed("what_is_rendered_is_what_the_agent_runs_with", &[]) else { return };
    let rendered: Value =
        serde_json::from_slice(&fs::read(cluster.data(1).join("convene/agent.json")).unwrap()).unwrap();
    let own = cluster.get(1, "/v1/agent/self").unwrap();
    let debug = &own["DebugConfig"];
    assert_eq!(debug["ServerMode"], rendered["server"]);
    assert_eq!(debug["NodeName"], rendered["node_name"]);
    assert_eq!(debug["AdvertiseAddrLAN"], rendered["advertise_addr"]);
    assert_eq!(debug["RetryJoinLAN"], rendered["retry_join"]);
    assert_eq!(debug["RetryJoinIntervalLAN"], rendered["retry_interval"]);
    assert_eq!(debug["LeaveOnTerm"], rendered["leave_on_terminate"]);
    assert_eq!(debug["SkipLeaveOnInt"], rendered["skip_leave_on_interrupt"]);
    assert_eq!(debug["RejoinAfterLeave"], rendered["rejoin_after_leave"]);
    assert_eq!(debug["BootstrapExpect"], rendered["bootstrap_expect"]);
    let keys = [
        "advertise_addr",
        "bootstrap_expect",
        "leave_on_terminate",
        "node_name",
        "rejoin_after_leave",
        "retry_interval",
        "retry_join",
        "server",
        "skip_leave_on_interrupt",
    ];
    assert_eq!(rendered.as_object().unwrap().keys().collect::<Vec<_>>(), keys, "every rendered key is checked above");
}

#[test]
fn names_that_appear_late_are_joined_by_convene() {
    let Some(mut cluster) = cluster("names_that_appear_late_are_joined_by_convene") else { return };
    cluster.start_all(&[]);
    // Each agent runs alone: Consul itself cannot resolve these names at all, now or later.
    cluster.wait_for("three lonely agents", || {
        ALL.iter().all(|ordinal| {
            cluster.get(*ordinal, "/v1/agent/members").is_some_and(|all| all.as_array().unwrap().len() == 1)
        })
    });
    assert!(ALL.iter().all(|ordinal| cluster.leader(*ordinal).is_none()));
    cluster.publish_all();
    cluster.wait_formed(&ALL);
}

#[test]
fn a_server_whose_agent_holds_services_is_named() {
    let Some(consul) = needs_consul("a_server_whose_agent_holds_services_is_named") else { return };
    let service = "-hcl=services { name = \"shop\" } services { name = \"bank\" }";
    let mut cluster = Cluster::new(env!("CARGO_BIN_EXE_convene"), consul, 1).with(service);
    cluster.publish_all();
    cluster.start_all(&[]);
    cluster.wait_for("a warning", || cluster.log(0).contains("this server's agent holds services (bank, shop)"));
}

/// Starts an agent that `init` has prepared.
fn start_by_init(cluster: &mut Cluster, ordinal: u8) {
    let init = cluster.surveying(ordinal, &["init", "--role=server", "--expect=3"]).output().unwrap();
    assert_eq!(init.status.code(), Some(0), "{}", text(&init));
    start_agent(cluster, ordinal);
}

/// Starts an agent with the rendered file that is there.
fn start_agent(cluster: &mut Cluster, ordinal: u8) {
    let mut words = cluster.agent(ordinal).into_iter();
    let mut agent = Command::new(words.next().unwrap());
    agent.args(words).arg(format!("-config-file={}", rendered(cluster, ordinal)));
    cluster.spawn(ordinal, agent);
}

/// A watch beside an agent, ended when the test is.
struct Beside(Child);

impl Drop for Beside {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_watch_does_beside_an_agent_that_init_prepared_what_run_does_beside_its_own() {
    let name = "a_watch_does_beside_an_agent_that_init_prepared_what_run_does_beside_its_own";
    let Some(mut cluster) = cluster(name) else { return };
    let early = cluster.surveying(0, &["watch", "--role=server", "--expect=3"]).output().unwrap();
    assert_eq!(early.status.code(), Some(75), "{}", text(&early));
    assert!(text(&early).contains("convene init must run before it"), "{}", text(&early));
    ALL.into_iter().for_each(|ordinal| start_by_init(&mut cluster, ordinal));
    let mut watches: Vec<Beside> = ALL
        .iter()
        .map(|ordinal| {
            let mut watch = cluster.surveying(*ordinal, &["watch", "--role=server", "--expect=3"]);
            Beside(watch.stderr(Stdio::null()).spawn().unwrap())
        })
        .collect();
    cluster.wait_for("three lonely agents", || {
        ALL.iter().all(|ordinal| {
            cluster.get(*ordinal, "/v1/agent/members").is_some_and(|all| all.as_array().unwrap().len() == 1)
        })
    });
    // Consul itself cannot resolve these names.
    cluster.publish_all();
    cluster.wait_formed(&ALL);
    cluster.wait_for("the record", || ALL.iter().all(|ordinal| record(&cluster, *ordinal)["formed"] == true));
    for watch in &mut watches {
        kill(Pid::from_raw(watch.0.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
        assert_eq!(watch.0.wait().unwrap().code(), Some(0));
    }
}

#[test]
fn a_probe_or_a_hook_notes_the_formation_beside_an_agent_that_nobody_watches() {
    let name = "a_probe_or_a_hook_notes_the_formation_beside_an_agent_that_nobody_watches";
    let Some(mut cluster) = cluster(name) else { return };
    cluster.publish_all();
    ALL.into_iter().for_each(|ordinal| start_by_init(&mut cluster, ordinal));
    cluster.wait_formed(&ALL);
    let formed = |ordinal: u8| record(&cluster, ordinal)["formed"] == true;
    assert!(!ALL.into_iter().any(formed));
    // A probe's time may be over before it has noted anything.
    cluster.wait_for("the probe to note it", || ready(&cluster, 0, None).0 == 0 && formed(0));
    let hook = cluster.convene(1, &["leave", "--leave=never", "--role=server"]).output().unwrap();
    assert_eq!(hook.status.code(), Some(0), "{}", text(&hook));
    assert!(formed(1) && !formed(2));
}

#[test]
fn the_command_line_that_people_have_today_works_behind_convene_run() {
    let Some(mut cluster) = cluster("the_command_line_that_people_have_today_works_behind_convene_run") else { return };
    cluster.publish_all();
    for ordinal in ALL {
        let mut command = cluster.surveying(ordinal, &["run", "--"]);
        command
            .args(cluster.agent(ordinal))
            .args(["-bootstrap-expect=3", "-retry-join", cluster.service()])
            .arg(format!("-advertise={}", cluster.ip(ordinal)));
        // Without the Pod's name there is no StatefulSet, and the name in -retry-join is all that is known.
        command.env_remove("POD_NAME").args(["-node", &format!("consul-server-{ordinal}")]);
        cluster.spawn(ordinal, command);
    }
    cluster.wait_formed(&ALL);
}

#[test]
fn a_killed_server_returns_as_itself() {
    let Some(mut cluster) = formed("a_killed_server_returns_as_itself", &[]) else { return };
    let (follower, leader) = roles(&cluster);
    let id = node_id(&cluster, follower);
    assert_eq!(cluster.put(leader, "/v1/kv/a", "1"), Some(200));
    cluster.wait_for("the record", || record(&cluster, follower)["formed"] == true);
    cluster.kill(follower);
    assert_eq!(cluster.put(leader, "/v1/kv/b", "2"), Some(200));
    cluster.start(follower, &[]);
    cluster.wait_formed(&ALL);
    assert_eq!(node_id(&cluster, follower), id);
    assert!(cluster.log(follower).contains("rule=4"), "{}", cluster.log(follower));
    cluster.wait_for("the data", || cluster.get(follower, "/v1/kv/b?stale").is_some());
}

#[test]
fn a_wiped_server_asks_for_the_removal_of_its_predecessor_and_then_joins() {
    let Some(mut cluster) = formed("a_wiped_server_asks_for_the_removal_of_its_predecessor_and_then_joins", &[]) else {
        return;
    };
    let (follower, leader) = roles(&cluster);
    let before = node_id(&cluster, follower);
    cluster.wipe(follower);
    cluster.start(follower, &[]);
    cluster.wait_for("its start", || cluster.log(follower).contains("rule=5"));
    let log = cluster.log(follower);
    assert!(log.contains("asked the leader to remove our predecessor"), "{log}");
    cluster
        .wait_for("a member again", || cluster.member(leader, follower) == Some(1) && cluster.peers(leader).len() == 3);
    assert_ne!(node_id(&cluster, follower), before);
}

#[test]
fn a_wiped_server_whose_predecessor_gossip_has_forgotten_has_it_removed_and_joins() {
    let test = "a_wiped_server_whose_predecessor_gossip_has_forgotten_has_it_removed_and_joins";
    let Some(cluster) = cluster(test) else { return };
    // Else autopilot removes it before the others are started again.
    let mut cluster = cluster.with("-hcl=autopilot { min_quorum = 3 }");
    cluster.publish_all();
    cluster.start_all(&[]);
    cluster.wait_formed(&ALL);
    let (wiped, leader) = roles(&cluster);
    let other = 3 - wiped - leader;
    cluster.wipe(wiped);
    cluster.wait_for("a failed member", || [leader, other].iter().all(|who| cluster.member(*who, wiped) == Some(4)));
    for server in [leader, other] {
        cluster.kill(server);
    }
    for server in [leader, other] {
        cluster.start(server, &[]);
    }
    cluster.wait_for("a leader", || cluster.leader(other).is_some() && cluster.leader(leader).is_some());
    assert_eq!(cluster.member(leader, wiped), None, "gossip has forgotten it");
    assert_eq!(cluster.peers(leader).len(), 3, "raft has not");
    cluster.start(wiped, &[]);
    cluster.wait_for("a member again", || cluster.member(leader, wiped) == Some(1) && cluster.peers(leader).len() == 3);
}

#[test]
fn a_wiped_server_that_may_ask_for_nothing_names_the_policy_and_waits() {
    let test = "a_wiped_server_that_may_ask_for_nothing_names_the_policy_and_waits";
    let Some(cluster) = cluster(test) else { return };
    let mut cluster = cluster.denying();
    cluster.publish_all();
    cluster.start_all(&[]);
    cluster.wait_formed(&ALL);
    let (follower, leader) = roles(&cluster);
    cluster.wipe(follower);
    let gave_up = cluster.surveying(follower, &["init", "--role=server", "--expect=3", "--wait=0s"]).output().unwrap();
    assert_eq!(gave_up.status.code(), Some(75), "{}", text(&gave_up));
    for part in ["still lists our address", "operator = \"write\""] {
        assert!(text(&gave_up).contains(part), "{part}: {}", text(&gave_up));
    }
    assert!(!cluster.data(follower).join("node-id").exists());
    cluster.start(follower, &[]);
    cluster.wait_for("the wait to be told", || cluster.log(follower).contains("waiting: rule 5"));
    // What a person does.
    let address = format!("{}:8300", cluster.ip(follower));
    assert_eq!(cluster.delete(leader, &format!("/v1/operator/raft/peer?address={address}")), Some(200));
    cluster
        .wait_for("a member again", || cluster.member(leader, follower) == Some(1) && cluster.peers(leader).len() == 3);
}

#[test]
fn a_wiped_server_goes_on_by_itself_once_its_token_file_holds_a_token_for_the_removal() {
    let test = "a_wiped_server_goes_on_by_itself_once_its_token_file_holds_a_token_for_the_removal";
    let Some(cluster) = cluster(test) else { return };
    // Autopilot would remove a server that it sees failed after some seconds; and it need not look at the new one for 10 s.
    let autopilot = "-hcl=autopilot { min_quorum = 3 server_stabilization_time = \"200ms\" }";
    let mut cluster = cluster.denying().over_tls().with(autopilot);
    cluster.publish_all();
    cluster.start_all(&[]);
    cluster.wait_formed(&ALL);
    let (follower, _) = roles(&cluster);
    let before = node_id(&cluster, follower);
    cluster.wipe(follower);
    // A Secret that nobody has filled yet.
    let file = cluster.folder().join("token");
    let mut start = cluster.surveying(follower, &["run", "--expect=3", "--"]);
    start.args(cluster.agent(follower)).env("CONSUL_HTTP_TOKEN_FILE", &file);
    cluster.spawn(follower, start);
    let parts = ["waiting: rule 5", "still lists our address", "operator = \"write\"", &file.display().to_string()];
    let told = |line: &str| parts.iter().all(|part| line.contains(part));
    cluster.wait_for("the policy to be named", || cluster.log(follower).lines().any(told));
    assert!(!cluster.data(follower).join("node-id").exists());
    // What the token may is this and nothing else.
    let token = "7e57ab1e-0000-4000-8000-000000000001";
    cluster.grant(token, "removal", "operator = \"write\"");
    fs::write(&file, format!("{token}\n")).unwrap();
    cluster.wait_for("its start", || cluster.log(follower).contains("rule=5"));
    assert!(cluster.log(follower).contains("asked the leader to remove our predecessor"), "{}", cluster.log(follower));
    cluster.wait_formed(&ALL);
    assert_ne!(node_id(&cluster, follower), before);
}

#[test]
fn a_server_that_left_comes_back_as_an_empty_one() {
    let Some(mut cluster) = formed("a_server_that_left_comes_back_as_an_empty_one", &["--leave=always"]) else {
        return;
    };
    let (follower, leader) = roles(&cluster);
    let before = node_id(&cluster, follower);
    cluster.signal(follower, Signal::SIGTERM);
    assert_eq!(cluster.wait(follower).code(), Some(0));
    assert_eq!(record(&cluster, follower)["left"], true);
    cluster.start(follower, &["--leave=always"]);
    cluster
        .wait_for("a member again", || cluster.member(leader, follower) == Some(1) && cluster.peers(leader).len() == 3);
    assert!(cluster.log(follower).contains("rule=3"), "{}", cluster.log(follower));
    assert_eq!(node_id(&cluster, follower), before, "as itself");
    assert!(cluster.data(follower).join("convene/aside/raft").exists());
    assert_eq!(record(&cluster, follower)["left"], false);
}

#[test]
fn term_with_leave_always_leaves_gracefully_a_follower_and_the_leader() {
    let Some(mut cluster) =
        formed("term_with_leave_always_leaves_gracefully_a_follower_and_the_leader", &["--leave=always"])
    else {
        return;
    };
    let (follower, leader) = roles(&cluster);
    leave_and_see(&mut cluster, follower, leader, |cluster, ordinal| {
        cluster.signal(ordinal, Signal::SIGTERM);
        assert_eq!(cluster.wait(ordinal).code(), Some(0), "{}", cluster.log(ordinal));
    });
}

/// Has a follower leave, then it returns, then the leader leaves; each time two go on.
fn leave_and_see(cluster: &mut Cluster, follower: u8, leader: u8, leave: impl Fn(&mut Cluster, u8)) {
    leave(cluster, follower);
    assert_gone(cluster, follower);
    assert_eq!(record(cluster, follower)["left"], true);
    cluster.start(follower, &["--leave=always"]);
    cluster.wait_formed(&ALL);
    assert_eq!(record(cluster, follower)["left"], false);
    leave(cluster, leader);
    assert_gone(cluster, leader);
}

/// `left` in the members, gone from the others' raft peers, and the two that stay go on.
fn assert_gone(cluster: &Cluster, gone: u8) {
    let stay: Vec<u8> = ALL.into_iter().filter(|ordinal| *ordinal != gone).collect();
    // One other server has confirmed it; the news reaches the second one soon.
    cluster.wait_for("the others to know", || {
        stay.iter().all(|ordinal| {
            cluster.member(*ordinal, gone) == Some(3)
                && !cluster.peers(*ordinal).contains(&cluster.ip(gone))
                && cluster.leader(*ordinal).is_some()
        })
    });
    cluster.wait_for("a write", || cluster.put(stay[0], "/v1/kv/after", "1") == Some(200));
}

#[test]
fn the_leave_hook_leaves_gracefully_beside_an_exec_a_follower_and_the_leader() {
    let Some(mut cluster) =
        formed("the_leave_hook_leaves_gracefully_beside_an_exec_a_follower_and_the_leader", &["--exec"])
    else {
        return;
    };
    let (follower, leader) = roles(&cluster);
    for gone in [follower, leader] {
        let hook = cluster.convene(gone, &["leave", "--leave=always", "--role=server"]).output().unwrap();
        assert_eq!(hook.status.code(), Some(0), "{}", text(&hook));
        assert_gone(&cluster, gone);
        assert_eq!(record(&cluster, gone)["left"], true);
        // What kubelet does when the hook has ended.
        cluster.signal(gone, Signal::SIGTERM);
        cluster.wait(gone);
        if gone == follower {
            cluster.start(gone, &["--exec"]);
            cluster.wait_formed(&ALL);
        }
    }
}

#[test]
fn a_term_after_the_leave_hook_does_not_leave_again() {
    let Some(mut cluster) = formed("a_term_after_the_leave_hook_does_not_leave_again", &["--leave=always"]) else {
        return;
    };
    let (follower, _) = roles(&cluster);
    let hook = cluster.convene(follower, &["leave", "--leave=always", "--role=server"]).output().unwrap();
    assert_eq!(hook.status.code(), Some(0), "{}", text(&hook));
    cluster.signal(follower, Signal::SIGTERM);
    assert_eq!(cluster.wait(follower).code(), Some(0), "{}", cluster.log(follower));
    assert!(cluster.log(follower).contains("this stop was done already"), "{}", cluster.log(follower));
    assert_eq!(record(&cluster, follower)["left"], true);
    assert_gone(&cluster, follower);
}

#[test]
fn an_exec_is_the_agent_itself() {
    let Some(mut cluster) = formed("an_exec_is_the_agent_itself", &["--exec"]) else { return };
    let name = fs::read_to_string(format!("/proc/{}/comm", cluster.pid(0))).unwrap();
    assert_eq!(name.trim(), "consul");
    // It is not deaf: the signals that convene had blocked reach it.
    cluster.signal(0, Signal::SIGTERM);
    assert_eq!(cluster.wait(0).code(), Some(1), "Consul's own code for a stop without a leave");
}

#[test]
fn a_start_waits_for_an_agent_that_goes_on_without_its_convene() {
    for log in ["wal", "boltdb"] {
        let Some(cluster) = cluster("a_start_waits_for_an_agent_that_goes_on_without_its_convene") else { return };
        let mut cluster = cluster.with(&format!("-hcl=raft_logstore {{ backend = {log:?} }}"));
        cluster.publish_all();
        cluster.start(0, &["--exec"]);
        cluster.wait_for("an agent", || cluster.get(0, "/v1/status/leader").is_some());
        let init = || cluster.surveying(0, &["init", "--role=server", "--expect=3", "--wait=1s"]).output().unwrap();
        let beside = init();
        assert_eq!(beside.status.code(), Some(75), "{log}: {}", text(&beside));
        assert!(text(&beside).contains("an agent runs on this volume"), "{log}: {}", text(&beside));
        cluster.signal(0, Signal::SIGKILL);
        cluster.wait_for("its end", || cluster.get(0, "/v1/status/leader").is_none());
        let after = init();
        assert_eq!(after.status.code(), Some(0), "{log}: {}", text(&after));
    }
}

#[test]
fn term_without_a_leave_changes_no_membership_and_is_0() {
    for words in [&["--leave=never"][..], &[]] {
        let Some(mut cluster) = formed("term_without_a_leave_changes_no_membership_and_is_0", words) else { return };
        let (follower, leader) = roles(&cluster);
        cluster.signal(follower, Signal::SIGTERM);
        assert_eq!(cluster.wait(follower).code(), Some(0), "{}", cluster.log(follower));
        assert_eq!(cluster.peers(leader).len(), 3);
        assert_ne!(cluster.member(leader, follower), Some(3));
        assert_eq!(record(&cluster, follower)["left"], false);
        // While one is away, the hook waits for it, and autopilot may remove it.
        cluster.start(follower, words);
        cluster.wait_formed(&ALL);
        let hook = cluster.convene(leader, &["leave", words.first().unwrap_or(&"--leave=never")]).output().unwrap();
        assert_eq!(hook.status.code(), Some(0), "{}", text(&hook));
        assert_eq!(cluster.peers(leader).len(), 3);
    }
}

#[test]
fn a_leave_that_nobody_confirms_is_69_and_the_agent_ends_all_the_same() {
    let Some(mut cluster) = formed(
        "a_leave_that_nobody_confirms_is_69_and_the_agent_ends_all_the_same",
        &["--leave=always", "--grace-period=5s"],
    ) else {
        return;
    };
    cluster.kill(1);
    cluster.kill(2);
    cluster.signal(0, Signal::SIGTERM);
    assert_eq!(cluster.wait(0).code(), Some(69), "{}", cluster.log(0));
    assert!(cluster.log(0).contains("could not confirm the leave"), "{}", cluster.log(0));
}

#[test]
fn an_agent_that_ends_by_itself_gives_its_own_code() {
    let Some(mut cluster) = formed("an_agent_that_ends_by_itself_gives_its_own_code", &[]) else { return };
    let agent = fs::read_to_string(format!("/proc/{0}/task/{0}/children", cluster.pid(1))).unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(agent.trim().parse().unwrap()), Signal::SIGKILL).unwrap();
    let status = cluster.wait(1);
    assert_eq!((status.code(), status.signal()), (Some(137), None));
}

#[test]
fn the_checks_tell_a_voter_from_one_that_is_none() {
    let Some(mut cluster) = cluster("the_checks_tell_a_voter_from_one_that_is_none") else { return };
    let check = |cluster: &Cluster, ordinal: u8, what: &str| {
        let output = cluster.convene(ordinal, &["check", what]).output().unwrap();
        (output.status.code().unwrap(), String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let (code, line) = check(&cluster, 0, "live");
    assert_eq!(code, 1, "{line}");
    cluster.start(0, &[]);
    cluster.wait_for("an agent", || cluster.get(0, "/v1/agent/self").is_some());
    // Alone it is alive, and neither joined nor ready.
    cluster.wait_for("it to be live by itself", || check(&cluster, 0, "live").1 == "live: the agent answers");
    assert_eq!(check(&cluster, 0, "joined").0, 1);
    let (code, line) = check(&cluster, 0, "ready");
    assert_eq!((code, line.as_str()), (1, "not ready: no leader is known"));
    cluster.publish_all();
    cluster.start(1, &[]);
    cluster.start(2, &[]);
    cluster.wait_formed(&ALL);
    for ordinal in ALL {
        cluster.wait_for("readiness", || check(&cluster, ordinal, "ready").0 == 0);
        assert!(check(&cluster, ordinal, "ready").1.contains("leader's view: a voter"));
        let (code, line) = check(&cluster, ordinal, "joined");
        assert_eq!(code, 0, "{line}");
        assert!(line.contains("3 servers alive"), "{line}");
    }
    // A server in the configuration as a non-voter is not ready: one that returns with an empty disk is that at first.
    let (follower, leader) = roles(&cluster);
    cluster.kill(follower);
    assert_eq!(
        cluster.delete(leader, &format!("/v1/operator/raft/peer?address={}:8300", cluster.ip(follower))),
        Some(200)
    );
    fs::remove_dir_all(cluster.data(follower)).unwrap();
    fs::create_dir(cluster.data(follower)).unwrap();
    cluster.start(follower, &[]);
    cluster.wait_for("a non-voter", || cluster.peers(leader).len() == 3);
    let (code, line) = check(&cluster, follower, "ready");
    assert_eq!(code, 1, "{line}");
}

/// `check ready` with a token or without: the exit code and the line.
fn ready(cluster: &Cluster, ordinal: u8, token: Option<&str>) -> (i32, String) {
    let mut command = cluster.convene(ordinal, &["check", "ready"]);
    command.envs(token.map(|token| ("CONSUL_HTTP_TOKEN", token)));
    let output = command.output().unwrap();
    (output.status.code().unwrap(), String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// What `check ready` keeps, as if it had first seen the server listed 25 s earlier.
fn let_25_s_pass(cluster: &Cluster, ordinal: u8) {
    let path = cluster.data(ordinal).join("convene/listed.json");
    let mut listed: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    listed["since_ms"] = (listed["since_ms"].as_u64().unwrap() - 25_000).into();
    fs::write(&path, listed.to_string()).unwrap();
}

#[test]
fn under_default_deny_time_tells_a_voter_who_has_no_token() {
    let Some(consul) = needs_consul("under_default_deny_time_tells_a_voter_who_has_no_token") else { return };
    let mut cluster = Cluster::new(env!("CARGO_BIN_EXE_convene"), consul, 3).denying();
    cluster.publish_all();
    cluster.start_all(&[]);
    cluster.wait_formed(&ALL);
    let (follower, leader) = roles(&cluster);
    // A leader votes. A follower must have been listed for a while.
    let (code, line) = ready(&cluster, leader, None);
    assert!(code == 0 && line.contains("own view: leads; among the leader's raft peers"), "{line}");
    let begins = |line: &str| line.contains("among the leader's raft peers for ") && line.contains("of the 25.0 s");
    cluster.wait_for("a first sight", || begins(&ready(&cluster, follower, None).1));
    let_25_s_pass(&cluster, follower);
    let (code, line) = ready(&cluster, follower, None);
    assert!(code == 0 && line.contains("a stale read") && line.contains("for more than 25.0 s"), "{line}");
    // A token that Consul does not know is none; one that it knows shows both views.
    let (code, line) = ready(&cluster, follower, Some("7e57ab1e-0000-4000-8000-000000000000"));
    assert!(code == 0 && line.contains("for more than") && line.ends_with("counts as none"), "{line}");
    let (code, line) = ready(&cluster, follower, Some(MANAGEMENT));
    assert!(code == 0 && line.contains("follows, is caught up and votes; leader's view: a voter"), "{line}");
    // It restarts: the survey before the start sees it listed, and it is ready as soon as it is in touch.
    cluster.kill(follower);
    cluster.start(follower, &[]);
    cluster.wait_for("readiness", || ready(&cluster, follower, None).0 == 0);
    assert!(ready(&cluster, follower, None).1.contains("as before this agent's start"));
    // An agent that restarts without a survey has to wait again, whatever an earlier life of it was.
    cluster.kill(follower);
    start_agent(&mut cluster, follower);
    cluster.wait_for("another life", || begins(&ready(&cluster, follower, None).1));
    // One that lost its disk comes back as a non-voter, which both views say to whom may ask.
    cluster.kill(follower);
    let address = format!("{}:8300", cluster.ip(follower));
    assert_eq!(cluster.delete(leader, &format!("/v1/operator/raft/peer?address={address}")), Some(200));
    fs::remove_dir_all(cluster.data(follower)).unwrap();
    fs::create_dir(cluster.data(follower)).unwrap();
    cluster.start(follower, &[]);
    cluster.wait_for("a non-voter", || begins(&ready(&cluster, follower, None).1));
    let non_voter = |(code, line): (i32, String)| code == 1 && line.contains("has us as a non-voter");
    cluster.wait_for("it to be told", || non_voter(ready(&cluster, follower, Some(MANAGEMENT))));
}

fn rendered(cluster: &Cluster, ordinal: u8) -> String {
    cluster.data(ordinal).join("convene/agent.json").display().to_string()
}

#[test]
fn a_follower_without_a_quorum_is_alive_and_not_ready() {
    let Some(consul) = needs_consul("a_follower_without_a_quorum_is_alive_and_not_ready") else { return };
    let mut cluster = Cluster::new(env!("CARGO_BIN_EXE_convene"), consul, 3).denying();
    cluster.publish_all();
    cluster.start_all(&[]);
    cluster.wait_formed(&ALL);
    let (follower, _) = roles(&cluster);
    ALL.into_iter().filter(|ordinal| *ordinal != follower).for_each(|ordinal| cluster.kill(ordinal));
    cluster.wait_for("no leader", || cluster.leader(follower).is_none());
    assert_eq!(ready(&cluster, follower, None), (1, "not ready: no leader is known".to_owned()));
    let live = cluster.convene(follower, &["check", "live"]).output().unwrap();
    assert_eq!(text(&live), "live: the agent answers\n");
}

#[test]
fn a_server_that_speaks_tls_only_is_asked_by_the_servers_name_in_its_certificate() {
    let Some(consul) = needs_consul("a_server_that_speaks_tls_only_is_asked_by_the_servers_name_in_its_certificate")
    else {
        return;
    };
    let mut cluster = Cluster::new(env!("CARGO_BIN_EXE_convene"), &consul, 1).over_tls().with("-http-port=-1");
    let mut run = cluster.surveying(0, &["run", "--expect=1", "--"]);
    run.args(cluster.agent(0));
    let ready = cluster.convene(0, &["check", "ready"]);
    let seen = format!("--discover=static:{}", cluster.ip(0));
    let asked = cluster.convene(0, &["discover", &seen]);
    let mut stranger = cluster.convene(0, &["discover", &seen]);
    stranger.env_remove("CONSUL_CLIENT_CERT").env_remove("CONSUL_CLIENT_KEY");
    cluster.spawn(0, run);
    let commands = [ready, asked, stranger].map(std::cell::RefCell::new);
    let say = |at: usize| text(&commands[at].borrow_mut().output().unwrap());
    cluster.wait_for("readiness over TLS", || say(0).starts_with("ready: "));
    // Seen from elsewhere: POD_IP or the volume would make this server ourselves.
    for command in &commands {
        command.borrow_mut().env("POD_IP", "127.0.0.1").env_remove("POD_NAME").env_remove("CONVENE_DATA_DIR");
    }
    assert!(say(1).contains("formed: leader"), "{}", say(1));
    assert!(say(2).contains("CertificateRequired"), "{}", say(2));
}

/// Two servers that lead without the third, and a client that told them that it has left before they meet it again: a leader of Consul's
/// passes over the join of such a server (1.22.6).
fn two_that_will_overlook_the_third(test: &str) -> Option<Cluster> {
    two_that_will_overlook_the_third_with(test, &[])
}

/// The same whose agents have these words too.
fn two_that_will_overlook_the_third_with(test: &str, words: &[&str]) -> Option<Cluster> {
    let consul = needs_consul(test)?;
    let mut cluster = Cluster::new(env!("CARGO_BIN_EXE_convene"), consul, 3).and_clients(1);
    for word in words {
        cluster = cluster.with(word);
    }
    cluster.publish_all();
    cluster.start_all(&["--leave=always"]);
    cluster.wait_formed(&ALL);
    let (others, client) = ([0, 1], 3);
    cluster.start_client(client, &[]);
    cluster.wait_for("a client", || cluster.leader(client).is_some());
    cluster.signal(2, Signal::SIGTERM);
    assert_eq!(cluster.wait(2).code(), Some(0), "{}", cluster.log(2));
    cluster.wait_for("its leave at the client", || cluster.member(client, 2) == Some(3));
    others.into_iter().for_each(|other| cluster.kill(other));
    others.into_iter().for_each(|other| cluster.start(other, &[]));
    let join = format!("/v1/agent/join/{}", cluster.ip(client));
    for other in others {
        cluster.wait_for("what the client knows", || cluster.put(other, &join, "") == Some(200));
    }
    let led = |other: u8| cluster.leader(other).is_some() && cluster.peers(other).len() == 2;
    cluster.wait_for("a leader of two", || others.into_iter().all(led));
    assert_eq!(others.map(|other| cluster.member(other, 2)), [None, None], "they have not met it");
    Some(cluster)
}

const ANEW: &str = "is alive in the member list and does not take this server in: it leaves, and joins anew";

#[test]
fn a_server_that_its_leader_overlooks_leaves_and_joins_anew() {
    let Some(mut cluster) =
        two_that_will_overlook_the_third("a_server_that_its_leader_overlooks_leaves_and_joins_anew")
    else {
        return;
    };
    cluster.start(2, &[]);
    cluster.wait_for("its place", || cluster.log(2).contains(ANEW) && cluster.peers(0).len() == 3);
    cluster.wait_for("the record", || record(&cluster, 2)["formed"] == true);
    assert_eq!(cluster.log(2).matches(ANEW).count(), 1, "once");
    // Its own stop is no part of that.
    cluster.signal(2, Signal::SIGTERM);
    assert_eq!(cluster.wait(2).code(), Some(0));
}

#[test]
fn a_term_while_an_overlooked_server_leaves_is_its_stop() {
    let test = "a_term_while_an_overlooked_server_leaves_is_its_stop";
    // So that the TERM comes in time.
    let slowly = "-hcl=performance { leave_drain_time = \"3s\" }";
    let Some(mut cluster) = two_that_will_overlook_the_third_with(test, &[slowly]) else { return };
    let lives = |cluster: &Cluster| cluster.log(2).matches("started the agent").count();
    let before = lives(&cluster);
    cluster.start(2, &["--leave=always"]);
    cluster.wait_for("its leave", || cluster.log(2).contains(ANEW));
    cluster.signal(2, Signal::SIGTERM);
    assert_eq!(cluster.wait(2).code(), Some(0), "{}", cluster.log(2));
    let log = cluster.log(2);
    assert!(log.contains("the agent leaves already, to join anew; now it leaves for good"), "{log}");
    assert_eq!(lives(&cluster), before + 1, "it has no other life: {log}");
    cluster.wait_for("its leave", || cluster.member(0, 2) == Some(3));
}

#[test]
fn beside_a_watch_an_overlooked_server_joins_anew_when_its_container_is_started_again() {
    let name = "beside_a_watch_an_overlooked_server_joins_anew_when_its_container_is_started_again";
    let Some(mut cluster) = two_that_will_overlook_the_third(name) else { return };
    start_by_init(&mut cluster, 2);
    let mut watch = cluster.surveying(2, &["watch", "--role=server", "--expect=3"]);
    let mut watch = Beside(watch.stderr(Stdio::piped()).spawn().unwrap());
    // As kubelet does.
    assert_eq!(cluster.wait(2).code(), Some(0), "{}", cluster.log(2));
    start_agent(&mut cluster, 2);
    cluster.wait_for("its place", || cluster.peers(0).len() == 3);
    cluster.wait_for("the record", || record(&cluster, 2)["formed"] == true);
    kill(Pid::from_raw(watch.0.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
    let mut said = String::new();
    std::io::Read::read_to_string(&mut watch.0.stderr.take().unwrap(), &mut said).unwrap();
    assert!(said.contains(ANEW), "{said}");
}

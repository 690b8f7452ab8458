//! Each fault gives its own finding and no other; a healthy cluster gives none.

use super::beside::{Beside, Dialled};
use super::*;
use crate::settings::command::{Contradiction, Place};
use serde_json::json;
use std::time::Duration;

/// 2026-11-21T00:00:00Z.
const NOW: i64 = 1_795_219_200;

fn ip(ordinal: usize) -> String {
    format!("10.0.0.{ordinal}")
}

fn id(ordinal: usize) -> String {
    format!("00000000-0000-4000-8000-00000000000{ordinal}")
}

fn name(ordinal: usize) -> String {
    format!("consul-server-{ordinal}")
}

fn member(ordinal: usize) -> Member {
    let tags = [("role", "consul"), ("build", "1.22.6:5a3c"), ("raft_vsn", "3"), ("dc", "dc1"), ("id", &id(ordinal))];
    let tags = tags.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    Member { name: name(ordinal), addr: ip(ordinal), status: 1, tags }
}

fn peer(ordinal: usize) -> RaftServer {
    let (node, address) = (name(ordinal), format!("{}:8300", ip(ordinal)));
    RaftServer { id: id(ordinal), node, address, leader: ordinal == 0, voter: true }
}

fn piloted(ordinal: usize) -> Value {
    json!({"ID": id(ordinal), "Name": name(ordinal), "LastIndex": 5000, "Healthy": true, "StableSince": "2026-11-20T22:00:00Z"})
}

fn described(ordinal: usize) -> Value {
    json!({
        "Config": {"NodeName": name(ordinal), "NodeID": id(ordinal), "Server": true, "Version": "1.22.6"},
        "Member": {"Addr": ip(ordinal)},
        "Stats": {"serf_lan": {"encrypted": "true"}},
        "DebugConfig": {
            "LeaveOnTerm": false, "SkipLeaveOnInt": true, "Bootstrap": false, "ConsulRaftHeartbeatTimeout": "1s",
            "StaticRuntimeConfig": {"EncryptVerifyIncoming": true, "EncryptVerifyOutgoing": true}, "ServerRejoinAgeMax": "168h0m0s"
        }
    })
}

fn healthy() -> Seen {
    let peers: Vec<RaftServer> = (0..3).map(peer).collect();
    let addresses: Vec<SocketAddr> = peers.iter().map(|peer| peer.address.parse().unwrap()).collect();
    let said = |ordinal| Said {
        leader: addresses.first().copied(),
        peers: addresses.clone(),
        cluster: Some("11111111.consul".to_owned()),
        datacenter: Some("dc1".to_owned()),
        described: Ok(described(ordinal)),
        members: Ok((0..3).map(member).collect()),
        raft: Ok(peers.clone()),
        services: Ok(Vec::new()),
    };
    let servers: serde_json::Map<String, Value> = (0..3).map(|ordinal| (id(ordinal), piloted(ordinal))).collect();
    Seen {
        servers: (0..3).map(|ordinal| Server { name: name(ordinal), said: Ok(said(ordinal)) }).collect(),
        wanted: Some(Wanted { statefulset: "consul-server".to_owned(), start: 0, replicas: 3 }),
        state: Ok(json!({"Leader": id(0), "Servers": servers})),
        autopilot: Ok(json!({"CleanupDeadServers": true, "MinQuorum": 3})),
        beside: Some(Beside {
            name: name(1),
            contradictions: Some(Vec::new()),
            dialled: vec![dialled(1, true), dialled(2, false)],
            last_seen: Some(NOW - 60),
            runs: true,
            ..Beside::default()
        }),
        sees_services: true,
        now: NOW,
    }
}

fn dialled(ordinal: usize, own: bool) -> Dialled {
    let address = format!("{}:8300", ip(ordinal)).parse().unwrap();
    Dialled { name: name(ordinal), address, own, failed: None }
}

fn judged(seen: &Seen) -> Report {
    let mut report = Report::default();
    check(seen, &mut report);
    report
}

/// Gives exactly one finding, which has all that a person needs.
#[track_caller]
fn gives(seen: &Seen, check: &str, subject: &str, part: &str) {
    let report = judged(seen);
    let [found] = &report.findings[..] else { panic!("{:#?}", report.findings) };
    assert_eq!((found.check, found.subject.as_str()), (check, subject), "{found:?}");
    assert!(found.what.contains(part), "{part:?} is not in {:?}", found.what);
    assert!(!found.why.is_empty() && !found.mend.is_empty() && !found.mend.contains("\n "), "{found:?}");
    assert!(report.looked.contains(&found.check), "{check} was not looked at");
}

fn each(seen: &mut Seen, change: impl FnMut(&mut Said)) {
    seen.servers.iter_mut().filter_map(|server| server.said.as_mut().ok()).for_each(change);
}

/// A change of what server 1 says of itself.
fn tells(pointer: &str, value: Value) -> Seen {
    let mut seen = healthy();
    let said = seen.servers[1].said.as_mut().unwrap();
    *said.described.as_mut().unwrap().pointer_mut(pointer).unwrap() = value;
    seen
}

fn members(change: impl Fn(&mut Vec<Member>)) -> Seen {
    let mut seen = healthy();
    each(&mut seen, |said| change(said.members.as_mut().unwrap()));
    seen
}

fn raft(change: impl Fn(&mut Vec<RaftServer>)) -> Seen {
    let mut seen = healthy();
    each(&mut seen, |said| change(said.raft.as_mut().unwrap()));
    seen
}

const ALL: &str = "the servers";
const ONE: &str = "server consul-server-1";
const TWO: &str = "server consul-server-2";

#[test]
fn a_healthy_cluster_gives_no_finding_and_every_check_is_made() {
    let report = judged(&healthy());
    assert!(report.findings.is_empty() && report.unseen.is_empty(), "{report:#?}");
    for (name, _) in CHECKS {
        assert!(report.looked.contains(name), "{name}");
    }
}

#[test]
fn a_cluster_without_a_leader_is_told_by_how_many_answer() {
    let leaderless = |answering: usize| {
        let mut seen = healthy();
        each(&mut seen, |said| said.leader = None);
        seen.state = Err(Lack::Failed("no leader answers".to_owned()));
        seen.autopilot = Err(Lack::Failed("no leader answers".to_owned()));
        seen.beside = None;
        for ordinal in answering..3 {
            seen.servers[ordinal].said = Err(Lack::Failed("refused".to_owned()));
        }
        seen
    };
    gives(&leaderless(3), raft::LEADER, ALL, "although 3 of 3 voters answer");
    let report = judged(&leaderless(1));
    let told: Vec<&Finding> = report.findings.iter().filter(|found| found.check == raft::LEADER).collect();
    assert!(told.len() == 1 && told[0].what.contains("1 of 3 voters answer, and 2 are needed"), "{told:?}");
    assert!(told[0].mend.contains("convene recover"), "{told:?}");
    let silent: Vec<&Finding> = report.findings.iter().filter(|found| found.check == members::SILENT).collect();
    assert_eq!((silent.len(), report.findings.len()), (2, 3), "{report:#?}");
    let mut new = leaderless(3);
    each(&mut new, |said| {
        said.peers.clear();
        said.raft = Err(Lack::Failed("in no cluster".to_owned()));
    });
    gives(&new, raft::LEADER, ALL, "none of them was ever in a cluster");
}

#[test]
fn two_clusters_are_told_by_their_id_peers_datacenter_or_leader() {
    let other = |change: fn(&mut Said)| {
        let mut seen = healthy();
        change(seen.servers[2].said.as_mut().unwrap());
        seen
    };
    gives(
        &other(|said| said.cluster = Some("2.consul".to_owned())),
        raft::ONE_CLUSTER,
        ALL,
        "consul-server-2: 2.consul",
    );
    gives(
        &other(|said| said.peers = vec!["10.0.9.9:8300".parse().unwrap()]),
        raft::ONE_CLUSTER,
        ALL,
        "no raft peer in common",
    );
    gives(&other(|said| said.datacenter = Some("dc2".to_owned())), raft::ONE_CLUSTER, ALL, "consul-server-2: dc2");
    gives(&other(|said| said.leader = "10.0.0.2:8300".parse().ok()), raft::ONE_CLUSTER, ALL, "different leaders");
}

#[test]
fn voters_that_lack_or_are_even_and_non_voters_are_told() {
    gives(&raft(|raft| raft[2].voter = false), raft::VOTERS, TWO, "has no vote (of 2 voters)");
    let mut two = members(|members| drop(members.pop()));
    each(&mut two, |said| {
        said.raft.as_mut().unwrap().pop();
        said.peers.pop();
    });
    gives(&two, raft::VOTERS, ALL, "2 of 3 servers vote");
    let logs = "kubectl logs consul-server-2 --all-containers --ignore-errors --tail=5";
    assert!(judged(&two).findings[0].mend.contains(logs));
    two.wanted.as_mut().unwrap().replicas = 2;
    gives(&two, raft::VOTERS, ALL, "the number of voters is even: 2");
    // Who may not read the configuration goes by the peers.
    each(&mut two, |said| said.raft = Err(Lack::Denied));
    gives(&two, raft::VOTERS, ALL, "the number of voters is even: 2");
}

#[test]
fn a_peer_that_is_no_server_any_more_is_told_with_its_removal() {
    let mut smaller = members(|members| {
        let mut gone = member(3);
        gone.status = 4;
        members.push(gone);
    });
    each(&mut smaller, |said| said.raft.as_mut().unwrap().push(peer(3)));
    gives(&smaller, raft::STALE_PEER, "server consul-server-3", "the StatefulSet consul-server has 3 servers");
    assert!(judged(&smaller).findings[0].mend.starts_with("convene recover --remove consul-server-3"));
    let wiped = raft(|raft| {
        let mut old = peer(1);
        old.id = id(9);
        old.node = UNKNOWN.to_owned();
        old.address = "10.0.0.9:8300".to_owned();
        raft.push(old);
    });
    gives(&wiped, raft::STALE_PEER, "server 10.0.0.9:8300", &id(9));
    // One that runs is none, whatever the StatefulSet says: it may be on its way out.
    let mut shrinking = healthy();
    shrinking.wanted.as_mut().unwrap().replicas = 2;
    assert!(judged(&shrinking).findings.iter().all(|found| found.check != raft::STALE_PEER));
}

#[test]
fn a_server_that_is_behind_or_unhealthy_is_told() {
    let piloted = |key: &str, value: Value| {
        let mut seen = healthy();
        seen.state.as_mut().unwrap()["Servers"][id(2)][key] = value;
        seen
    };
    gives(&piloted("LastIndex", json!(4000)), raft::LAG, TWO, "1000 entries behind");
    gives(&piloted("Healthy", json!(false)), raft::LAG, TWO, "unhealthy since 2026-11-20T22:00:00Z (2 h)");
    assert!(judged(&piloted("LastIndex", json!(4800))).findings.is_empty(), "autopilot's own measure");
}

#[test]
fn only_a_server_that_has_just_become_unhealthy_is_waited_for() {
    let now = crate::api::kube::Timestamp::from_second(NOW).unwrap();
    let waited_for = |well: bool, since: &str| {
        let server = json!({"ID": id(2), "Healthy": well, "StableSince": since});
        raft::has_just_changed(&json!({"Servers": {id(0): piloted(0), id(2): server}}), now, Duration::from_secs(6))
    };
    assert!(waited_for(false, "2026-11-20T23:59:55.437Z"));
    assert!(!waited_for(false, "2026-11-20T23:59:53Z"));
    assert!(!waited_for(true, "2026-11-20T23:59:55Z"));
    assert!(waited_for(false, "2026-11-21T00:00:02Z"), "the leader's clock is ahead");
    assert!(!waited_for(false, "2026-11-21T00:10:00Z"));
    assert!(!waited_for(false, "never"));
}

#[test]
fn autopilot_that_removes_who_restarts_is_told() {
    let configured = |value: Value| Seen { autopilot: Ok(value), ..healthy() };
    gives(
        &configured(json!({"CleanupDeadServers": true, "MinQuorum": 0})),
        raft::AUTOPILOT,
        ALL,
        "while 0 others stay",
    );
    assert!(judged(&configured(json!({"CleanupDeadServers": false, "MinQuorum": 0}))).findings.is_empty());
}

#[test]
fn a_dead_voter_is_one_finding_however_many_see_it() {
    let mut seen = members(|members| members[2].status = 4);
    seen.servers[2].said = Err(Lack::Failed("refused".to_owned()));
    let state = seen.state.as_mut().unwrap();
    state["Servers"][id(2)]["Healthy"] = json!(false);
    seen.beside.as_mut().unwrap().dialled[1].failed = Some("Connection refused".to_owned());
    gives(
        &seen,
        members::FAILED,
        TWO,
        "for failed since 2026-11-20T22:00:00Z (2 h): 10.0.0.2 does not answer, and it is a voter",
    );
}

#[test]
fn a_silent_agent_is_told_unless_nobody_can_ask_it() {
    let silent = |lack: Lack| {
        let mut seen = healthy();
        seen.servers[2].said = Err(lack);
        seen
    };
    gives(&silent(Lack::Failed("refused".to_owned())), members::SILENT, TWO, "does not answer: refused");
    let report = judged(&silent(Lack::NoWay("pods/proxy".to_owned())));
    assert!(report.findings.is_empty() && report.unseen[0].why == "consul-server-2: pods/proxy", "{report:#?}");
    let mut all = healthy();
    all.servers.iter_mut().for_each(|server| server.said = Err(Lack::NoWay("pods/proxy".to_owned())));
    let report = judged(&all);
    assert!(report.findings.is_empty() && report.unseen.len() == 1, "{report:#?}");
    assert_eq!(report.unseen[0].why, "consul-server-0, consul-server-1, consul-server-2: pods/proxy");
}

#[test]
fn versions_that_differ_or_are_too_old_are_told() {
    let builds = |build: &'static str, only: Option<usize>| {
        members(move |members| {
            for (_, member) in members.iter_mut().enumerate().filter(|(at, _)| only.is_none_or(|only| only == *at)) {
                member.tags.insert("build".to_owned(), build.to_owned());
            }
        })
    };
    gives(&builds("1.21.0:aa", Some(2)), members::VERSION, ALL, "consul-server-2 1.21.0");
    let report = judged(&builds("1.9.17:aa", None));
    assert_eq!(report.findings.len(), 3);
    assert!(report.findings[0].what.contains("Consul 1.9.17, and convene supports 1.15"), "{report:#?}");
    assert!(judged(&builds("1.15.0+ent:aa", None)).findings.is_empty());
    let old = members(|members| drop(members[0].tags.insert("raft_vsn".to_owned(), "2".to_owned())));
    gives(&old, members::VERSION, "server consul-server-0", "raft protocol 2");
}

#[test]
fn services_at_a_server_are_told_with_their_ids() {
    let mut seen = healthy();
    seen.servers[1].said.as_mut().unwrap().services = Ok(vec!["web-1".to_owned()]);
    gives(&seen, members::SERVICES, ONE, "web-1");
    assert!(judged(&seen).findings[0].mend.contains("consul services deregister -id=web-1"));
    // Who may not read services is told of none, and that says nothing.
    let mut blind = healthy();
    blind.sees_services = false;
    let report = judged(&blind);
    assert!(report.findings.is_empty() && !report.looked.contains(&members::SERVICES), "{report:#?}");
    assert_eq!(report.unseen[0].what, "services at servers");
}

#[test]
fn settings_that_fight_with_convene_are_told() {
    gives(&tells("/DebugConfig/LeaveOnTerm", json!(true)), settings::SETTINGS, ONE, "leave_on_terminate");
    gives(&tells("/DebugConfig/SkipLeaveOnInt", json!(false)), settings::SETTINGS, ONE, "skip_leave_on_interrupt");
    gives(&tells("/DebugConfig/Bootstrap", json!(true)), settings::SETTINGS, ONE, "founds a cluster alone");
    let slow = tells("/DebugConfig/ConsulRaftHeartbeatTimeout", json!("5s"));
    gives(&slow, settings::SETTINGS, ONE, "raft_multiplier is 5");
    assert!(judged(&tells("/DebugConfig/ConsulRaftHeartbeatTimeout", json!("4s"))).findings.is_empty());
    // What was ordered is no fight, and who is alone may found alone.
    let mut ordered = tells("/DebugConfig/LeaveOnTerm", json!(true));
    ordered.beside.as_mut().unwrap().leaves_by_signal = true;
    assert!(judged(&ordered).findings.is_empty());
    // CMD's place is told once, and not again as what the agent goes by.
    let mut by_cmd = tells("/DebugConfig/LeaveOnTerm", json!(true));
    by_cmd.beside.as_mut().unwrap().contradictions = Some(vec![Contradiction {
        place: Place::File { path: "/consul/tuning/own.hcl".into(), key: "leave_on_terminate" },
        value: "true".to_owned(),
        why: "only convene leaves".to_owned(),
        mend: "remove it".to_owned(),
    }]);
    gives(
        &by_cmd,
        settings::SETTINGS,
        ONE,
        "leave_on_terminate in /consul/tuning/own.hcl is true, but only convene leaves",
    );
}

#[test]
fn a_gossip_key_that_lacks_is_not_verified_or_differs_is_told() {
    gives(
        &tells("/DebugConfig/StaticRuntimeConfig/EncryptVerifyIncoming", json!(false)),
        settings::GOSSIP,
        ONE,
        "encrypt_verify_incoming is false",
    );
    gives(
        &tells("/DebugConfig/StaticRuntimeConfig/EncryptVerifyOutgoing", json!(false)),
        settings::GOSSIP,
        ONE,
        "encrypt_verify_outgoing is false",
    );
    gives(
        &tells("/Stats/serf_lan/encrypted", json!("false")),
        settings::GOSSIP,
        ALL,
        "consul-server-1 has no gossip key",
    );
    let mut differs = healthy();
    differs.beside.as_mut().unwrap().gossip =
        vec!["the gossip key of encrypt in /f is not in /k: give the first".to_owned()];
    gives(&differs, settings::GOSSIP, ONE, "the gossip key of encrypt in /f is not in /k");
}

#[test]
fn an_address_that_does_not_answer_is_told_by_whose_it_is() {
    for (at, check, subject) in [(0, beside::HAIRPIN, ONE), (1, beside::PORTS, TWO)] {
        let mut seen = healthy();
        seen.beside.as_mut().unwrap().dialled[at].failed = Some("no answer".to_owned());
        gives(&seen, check, subject, ":8300");
    }
}

#[test]
fn who_was_away_for_more_than_half_of_what_consul_allows_is_told() {
    let away = |days: i64, runs: bool| {
        let mut seen = healthy();
        let beside = seen.beside.as_mut().unwrap();
        (beside.last_seen, beside.runs) = (Some(NOW - days * 86_400), runs);
        seen
    };
    assert!(judged(&away(3, false)).findings.is_empty());
    assert!(judged(&away(8, true)).findings.is_empty(), "an agent that runs writes it once an hour");
    gives(
        &away(4, false),
        beside::REJOIN_AGE,
        ONE,
        "away for 4 days, and Consul will refuse to start a server that was away for 7 days",
    );
    gives(&away(8, false), beside::REJOIN_AGE, ONE, "and Consul refuses");
    let mut longer = away(8, false);
    longer.beside.as_mut().unwrap().rejoin_age = Some(Duration::from_secs(8760 * 3600));
    assert!(judged(&longer).findings.is_empty());
    // One that is gone, by autopilot's own clock.
    let mut failed = members(|members| members[2].status = 4);
    failed.state.as_mut().unwrap()["Servers"][id(2)]["StableSince"] = json!("2026-11-15T00:00:00Z");
    let report = judged(&failed);
    let checks: Vec<&str> = report.findings.iter().map(|found| found.check).collect();
    assert_eq!(checks, [members::FAILED, beside::REJOIN_AGE], "{report:#?}");
}

#[test]
fn what_a_token_may_not_see_is_named_with_its_policy_and_is_no_finding() {
    let mut seen = healthy();
    each(&mut seen, |said| {
        said.described = Err(Lack::Denied);
        said.members = Err(Lack::Denied);
        said.raft = Err(Lack::Denied);
        said.services = Err(Lack::Denied);
    });
    (seen.state, seen.autopilot) = (Err(Lack::Denied), Err(Lack::Denied));
    let report = judged(&seen);
    assert!(report.findings.is_empty(), "{:#?}", report.findings);
    let unseen: Vec<&str> = report.unseen.iter().map(|unseen| unseen.what).collect();
    let wanted = ["the raft configuration", "the members", "the agents' settings", "autopilot"];
    assert_eq!(unseen, wanted);
    assert!(report.unseen[0].why.contains("operator = \"read\""), "{:#?}", report.unseen);
    assert!(report.looked.contains(&raft::LEADER), "what everybody may ask for");
    // One server that tells the cluster's part is enough, and each tells only its own settings.
    let mut own = healthy();
    own.servers[2].said.as_mut().unwrap().raft = Err(Lack::Denied);
    own.servers[2].said.as_mut().unwrap().described = Err(Lack::Denied);
    let report = judged(&own);
    assert!(
        report.unseen.len() == 1 && report.unseen[0].why.starts_with("consul-server-2 refused"),
        "{:#?}",
        report.unseen
    );
}

//! Servers of other clusters beside ours, with real Consul servers on this machine: addresses that were ours lead to them.

// A panic is how a test fails; clippy's own exception for tests covers `#[test]` functions only.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "support/mod.rs"]
mod support;

use hickory_proto::rr::RecordType;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use support::cluster::Cluster;
use support::dns::Answer;
use support::skip::needs_consul;

const ALL: [u8; 3] = [0, 1, 2];

/// Two clusters of three in one datacenter without a gossip key: nothing but convene keeps them apart.
fn two_clusters(test: &str) -> Option<(Cluster, Cluster)> {
    let consul = needs_consul(test)?;
    let formed = || {
        let mut cluster = Cluster::new(env!("CARGO_BIN_EXE_convene"), consul.clone(), 3);
        cluster.publish_all();
        cluster.start_all(&[]);
        cluster.wait_formed(&ALL);
        cluster
    };
    Some((formed(), formed()))
}

/// Lets the name of a server of ours lead to a server of theirs.
fn mislead(ours: &Cluster, ordinal: u8, theirs: &Cluster) {
    ours.dns().set(&ours.host(ordinal), RecordType::A, Answer::Addresses(vec![theirs.ip(ordinal)]));
}

fn record(cluster: &Cluster, ordinal: u8) -> Value {
    serde_json::from_slice(&fs::read(cluster.data(ordinal).join("convene/record.json")).unwrap()).unwrap()
}

fn rendered(cluster: &Cluster, ordinal: u8) -> String {
    fs::read_to_string(cluster.data(ordinal).join("convene/agent.json")).unwrap()
}

/// The addresses of the members that a server sees.
fn members(cluster: &Cluster, asked: u8) -> BTreeSet<IpAddr> {
    let members = cluster.get(asked, "/v1/agent/members").unwrap_or_default();
    members.as_array().into_iter().flatten().map(|one| one["Addr"].as_str().unwrap().parse().unwrap()).collect()
}

fn addresses(cluster: &Cluster) -> BTreeSet<IpAddr> {
    ALL.iter().map(|ordinal| cluster.ip(*ordinal)).collect()
}

#[test]
fn a_server_with_data_whose_names_lead_to_another_cluster_joins_its_own() {
    let name = "a_server_with_data_whose_names_lead_to_another_cluster_joins_its_own";
    let Some((mut ours, theirs)) = two_clusters(name) else { return };
    ours.wait_for("the record", || record(&ours, 0)["cluster"].is_string());
    assert_ne!(record(&ours, 0)["cluster"], record(&theirs, 0)["cluster"]);
    ours.kill(0);
    // All that the volume knew leads to them: what convene and Consul's own gossip remember is gone or theirs.
    fs::remove_dir_all(ours.data(0).join("serf")).unwrap();
    let mut kept = record(&ours, 0);
    kept["servers"] = serde_json::json!([theirs.ip(1), theirs.ip(2)]);
    fs::write(ours.data(0).join("convene/record.json"), kept.to_string()).unwrap();
    mislead(&ours, 1, &theirs);
    mislead(&ours, 2, &theirs);
    ours.start(0, &[]);
    ours.wait_for("its start", || ours.log(0).contains("rule=4"));
    for server in 1..3 {
        let named =
            format!("not joined: a stranger: it belongs to another cluster (leader {}", theirs.leader(0).unwrap());
        assert!(ours.log(0).contains(&named), "{}", ours.log(0));
        assert!(!rendered(&ours, 0).contains(&theirs.ip(server).to_string()), "{}", rendered(&ours, 0));
    }
    // Their leader's servers never hear of it; its own ones come back by gossip or by its own names.
    ours.publish_all();
    ours.wait_formed(&ALL);
    for ordinal in ALL {
        assert_eq!(members(&ours, ordinal), addresses(&ours));
        assert_eq!(members(&theirs, ordinal), addresses(&theirs));
        assert_eq!(theirs.peers(ordinal), addresses(&theirs).into_iter().collect::<Vec<_>>());
    }
}

#[test]
fn an_empty_server_between_two_clusters_waits_until_its_names_lead_to_one() {
    let name = "an_empty_server_between_two_clusters_waits_until_its_names_lead_to_one";
    let Some((mut ours, theirs)) = two_clusters(name) else { return };
    let wiped = ALL.into_iter().find(|one| Some(*one) != ours.leading(0)).unwrap();
    let others: Vec<u8> = ALL.into_iter().filter(|one| *one != wiped).collect();
    ours.wipe(wiped);
    mislead(&ours, others[0], &theirs);
    ours.start(wiped, &[]);
    ours.wait_for("the wait", || ours.log(wiped).contains("two clusters are reported"));
    let log = ours.log(wiped);
    assert!(others.iter().all(|one| log.contains(&format!("consul-server-{one} says leader"))), "{log}");
    assert!(!log.contains("asked the leader"), "nothing is asked of a cluster that may be another one: {log}");
    ours.publish_all();
    ours.wait_formed(&ALL);
    assert_eq!(members(&ours, wiped), addresses(&ours));
    assert_eq!(members(&theirs, 0), addresses(&theirs));
}

#[test]
fn a_server_of_another_datacenter_is_named_and_nothing_is_founded_with_it() {
    let Some(consul) = needs_consul("a_server_of_another_datacenter_is_named_and_nothing_is_founded_with_it") else {
        return;
    };
    let mut cluster = Cluster::new(env!("CARGO_BIN_EXE_convene"), consul, 3).denying();
    cluster.publish_all();
    let mut odd = cluster.surveying(2, &["run", "--expect=3", "--"]);
    odd.args(cluster.agent(2)).arg("-datacenter=dc2");
    cluster.spawn(2, odd);
    cluster.wait_for("an agent", || cluster.get(2, "/v1/status/peers").is_some());
    cluster.start(0, &[]);
    let named = "rule 8: consul-server-2 is a stranger: its datacenter is dc2, and ours is dc1";
    cluster.wait_for("its name", || cluster.log(0).contains(named));
    assert!(!cluster.data(0).join("node-id").exists(), "{}", cluster.log(0));
}

#[test]
fn a_server_with_another_gossip_key_is_named_and_the_others_are_joined() {
    let Some(consul) = needs_consul("a_server_with_another_gossip_key_is_named_and_the_others_are_joined") else {
        return;
    };
    let mut cluster = Cluster::new(env!("CARGO_BIN_EXE_convene"), consul, 3);
    // Nobody's name is known at the start, so that convene joins them and not Consul, and waits for nobody.
    let keys =
        ["-encrypt=AAAAAAAAAAAAAAAAAAAAAA==", "-encrypt=AAAAAAAAAAAAAAAAAAAAAA==", "-encrypt=AQEBAQEBAQEBAQEBAQEBAQ=="];
    for (ordinal, key) in ALL.into_iter().zip(keys) {
        let mut run = cluster.surveying(ordinal, &["run", "--expect=3", "--"]);
        run.args(cluster.agent(ordinal)).arg(key);
        cluster.spawn(ordinal, run);
    }
    cluster.wait_for("three agents", || ALL.iter().all(|ordinal| cluster.get(*ordinal, "/v1/status/peers").is_some()));
    cluster.publish_all();
    let says = |ordinal: u8, of: u8| {
        let refused = |line: &str| {
            line.contains("not joined: its gossip key differs") && line.contains(&cluster.ip(of).to_string())
        };
        cluster.log(ordinal).lines().filter(|line| refused(line)).count()
    };
    cluster.wait_for("their names", || says(0, 2) > 0 && says(1, 2) > 0 && says(2, 0) > 0 && says(2, 1) > 0);
    let two = BTreeSet::from([cluster.ip(0), cluster.ip(1)]);
    cluster.wait_for("the two to be joined", || members(&cluster, 0) == two && members(&cluster, 1) == two);
    assert_eq!(members(&cluster, 2), BTreeSet::from([cluster.ip(2)]));
    // It is not tried again and again: ten seconds later each is named once still.
    cluster.wait_for("a line about the state", || cluster.log(2).contains("no leader knows this agent"));
    assert_eq!((says(2, 0), says(2, 1)), (1, 1), "{}", cluster.log(2));
}

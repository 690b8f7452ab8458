//! What was the agent told that fights with convene? Pure: takes what each agent says of its settings (`agent:read`), and what CMD with
//! its files says where we are beside it.
//!
//! Only what costs something is a finding. `disable_host_node_id`, `rejoin_after_leave`, `reconnect_timeout` and `cleanup_dead_servers`
//! are not: the node ID stands in Consul's own file before Consul looks, `retry_join` brings a server back, and a server is not
//! forgotten while `min_quorum` holds it, which is looked at ([`super::raft`]).

use super::{Seen, about, about_all, text};
use crate::check::{LAST_CONTACT, go_duration};
use crate::doctor::finding::Report;
use serde_json::Value;
use std::time::Duration;

pub(super) const SETTINGS: &str = "agent-settings";
pub(super) const GOSSIP: &str = "gossip-key";

pub(super) fn check(seen: &Seen, report: &mut Report) {
    for (name, described) in seen.said().filter_map(|(name, said)| Some((name, said.described.as_ref().ok()?))) {
        report.looked.extend([SETTINGS, GOSSIP]);
        if flag(described, "/Config/Server") != Some(true) {
            continue;
        }
        for (what, why, mend) in effective(seen, name, described) {
            report.findings.push(about(SETTINGS, name, what, why, mend.to_owned()));
        }
        if is_encrypted(described) == Some(true) {
            unverified(name, described, report);
        }
    }
    one_without(seen, report);
    let Some(beside) = &seen.beside else { return };
    if let Some(contradictions) = &beside.contradictions {
        report.looked.extend([SETTINGS, GOSSIP]);
        for said in contradictions {
            let what = format!("{} is {}, but {}", said.place, said.value, said.why);
            let why = "what CMD and its files say wins over what convene decided and rendered";
            report.findings.push(about(SETTINGS, &beside.name, what, why, format!("# {}", said.mend)));
        }
    }
    for told in &beside.gossip {
        let (what, mend) = told.split_once(": ").unwrap_or((told, "give what `consul keygen` prints"));
        let why = "an agent with another key than the others' joins nobody, and is joined by nobody";
        report.findings.push(about(GOSSIP, &beside.name, what.to_owned(), why, format!("# {mend}")));
    }
}

fn flag(described: &Value, pointer: &str) -> Option<bool> {
    described.pointer(pointer)?.as_bool()
}

fn is_encrypted(described: &Value) -> Option<bool> {
    Some(text(described, "/Stats/serf_lan/encrypted")? == "true")
}

/// What the agent goes by, whoever told it so: what, why, mend.
fn effective(seen: &Seen, name: &str, described: &Value) -> Vec<(String, &'static str, &'static str)> {
    let mut found = Vec::new();
    let ordered = seen.beside.as_ref().is_some_and(|beside| beside.name == name && beside.leaves_by_signal);
    // What CMD says is told with its place.
    let told = |key: &str| {
        let contradictions = seen.beside.as_ref().filter(|beside| beside.name == name);
        let mut all = contradictions.iter().flat_map(|beside| beside.contradictions.iter().flatten());
        all.any(|said| said.place.to_string().contains(key))
    };
    let leaves = "a restart takes the server out of the cluster and brings it back without a vote";
    let remove = "leave_on_terminate = false    # or remove it: for servers that is Consul's default, and convene leaves when a leave is due";
    if flag(described, "/DebugConfig/LeaveOnTerm") == Some(true) && !ordered && !told("leave_on_terminate") {
        found.push(("it leaves the cluster at every TERM (leave_on_terminate)".to_owned(), leaves, remove));
    }
    if flag(described, "/DebugConfig/SkipLeaveOnInt") == Some(false) && !ordered && !told("skip_leave_on_interrupt") {
        let remove = "skip_leave_on_interrupt = true    # or remove it: for servers that is Consul's default";
        found.push((
            "it leaves the cluster at every INT (skip_leave_on_interrupt is false)".to_owned(),
            leaves,
            remove,
        ));
    }
    if flag(described, "/DebugConfig/Bootstrap") == Some(true)
        && seen.size().is_some_and(|size| size > 1)
        && !told("bootstrap")
    {
        let why = "with an empty disk such a server elects itself without asking anyone: a second cluster";
        let mend = "# remove bootstrap, and bootstrap_expect = 1; give convene --expect=auto";
        found.push(("it founds a cluster alone (bootstrap)".to_owned(), why, mend));
    }
    // A leader heartbeats at random between a tenth and a fifth of the heartbeat timeout (hashicorp/raft 1.7, replication.go).
    let heartbeat = text(described, "/DebugConfig/ConsulRaftHeartbeatTimeout").and_then(go_duration);
    if let Some(heartbeat) = heartbeat.filter(|heartbeat| *heartbeat / 5 >= LAST_CONTACT) {
        let what = format!(
            "its raft_multiplier is {}: a lost leader is noticed after {}",
            heartbeat.as_secs() / Duration::from_secs(1).as_secs(),
            crate::time::text(heartbeat)
        );
        let why = "writes wait for as long and longer, and `check ready`, which wants a word of the leader within 1 s, gets one about every second";
        found.push((what, why, "performance { raft_multiplier = 1 }    # in the configuration of all servers, as in deploy/server/tuning.hcl"));
    }
    found
}

fn unverified(name: &str, described: &Value, report: &mut Report) {
    for (pointer, key) in [
        ("/DebugConfig/StaticRuntimeConfig/EncryptVerifyIncoming", "encrypt_verify_incoming"),
        ("/DebugConfig/StaticRuntimeConfig/EncryptVerifyOutgoing", "encrypt_verify_outgoing"),
    ] {
        if flag(described, pointer) == Some(false) {
            let what = format!("it has a gossip key, and {key} is false");
            let why = "gossip without a key is still taken or sent: right while encryption is being introduced, and no longer";
            report.findings.push(about(
                GOSSIP,
                name,
                what,
                why,
                format!("{key} = true    # once every agent has the key"),
            ));
        }
    }
}

fn one_without(seen: &Seen, report: &mut Report) {
    let told: Vec<(&str, bool)> =
        seen.said().filter_map(|(name, said)| Some((name, is_encrypted(said.described.as_ref().ok()?)?))).collect();
    let without: Vec<&str> = told.iter().filter(|(_, encrypted)| !encrypted).map(|(name, _)| *name).collect();
    if without.is_empty() || without.len() == told.len() {
        return;
    }
    let what = format!("{} has no gossip key, and the others have one", without.join(", "));
    let why = "it can neither join the others nor be joined";
    report.findings.push(about_all(
        GOSSIP,
        what,
        why,
        "# give it the others' key (encrypt), from the same Secret".to_owned(),
    ));
}

//! Does the cluster have a leader, the voters that it should have, and nobody else? Pure: takes what the servers say, gives findings.
//!
//! The raft configuration and autopilot need `operator:read`; without it the raft peers that everybody may ask for stand in, where
//! they can.

use super::{Seen, UNKNOWN, about, about_all, text, waits};
use crate::api::consul::RaftServer;
use crate::api::kube::Timestamp;
use crate::check::MAX_TRAILING_LOGS;
use crate::doctor::finding::Report;
use crate::settings::Seat;
use serde_json::Value;
use std::net::SocketAddr;
use std::time::Duration;

pub(super) const LEADER: &str = "raft-leader";
pub(super) const ONE_CLUSTER: &str = "one-cluster";
pub(super) const VOTERS: &str = "raft-voters";
pub(super) const LAG: &str = "raft-lag";
pub(super) const STALE_PEER: &str = "raft-stale-peer";
pub(super) const AUTOPILOT: &str = "autopilot-min-quorum";

pub(super) fn check(seen: &Seen, report: &mut Report) {
    if seen.said().next().is_none() {
        return;
    }
    report.looked.extend([LEADER, ONE_CLUSTER, VOTERS]);
    leader(seen, report);
    one_cluster(seen, report);
    voters(seen, report);
    if let Some(raft) = seen.raft()
        && !seen.members().is_empty()
    {
        report.looked.push(STALE_PEER);
        let stale = raft.iter().filter_map(|server| Some((server, stale(seen, server)?)));
        report.findings.extend(stale.map(|(server, what)| {
            let name = named(server);
            let why =
                "it counts for the quorum and never answers: with it, fewer servers may be away than there seem to be";
            let mend = format!("convene recover --remove {name}    # shows what it would do; --yes does it");
            about(STALE_PEER, name, what, why, mend)
        }));
    }
    if let Ok(state) = &seen.state {
        report.looked.push(LAG);
        lag(seen, state, report);
    }
    if let Ok(configuration) = &seen.autopilot {
        report.looked.push(AUTOPILOT);
        min_quorum(seen, configuration, report);
    }
}

/// The name of a raft peer, or its address where nobody knows its name.
pub(super) fn named(server: &RaftServer) -> &str {
    if server.node == UNKNOWN { &server.address } else { &server.node }
}

fn leader(seen: &Seen, report: &mut Report) {
    if seen.leader().is_some() {
        return;
    }
    let peers = seen.said().map(|(_, said)| said.peers.len()).max().unwrap_or_default();
    let voters = seen.raft().map_or(peers, |raft| raft.iter().filter(|server| server.voter).count());
    let answering = seen.said().filter(|(_, said)| !said.peers.is_empty()).count();
    let why = "nothing can be written, and nothing read that must be up to date";
    let logs = |say: &str| {
        let names: Vec<&str> = seen.servers.iter().map(|server| server.name.as_str()).collect();
        names.iter().map(|name| format!("{}    # {say}\n", waits(name, 5))).collect::<String>()
    };
    let (what, mend) = if voters == 0 {
        ("no server knows a leader, and none of them was ever in a cluster".to_owned(), logs("says what it waits for"))
    } else if answering <= voters / 2 {
        (
            format!(
                "no server knows a leader: {answering} of {voters} voters answer, and {} are needed",
                voters / 2 + 1
            ),
            "kubectl get pods -o wide    # start the servers that are away: their volumes have the data\n\
             convene recover             # only when their disks are lost for good; shows what it would do"
                .to_owned(),
        )
    } else {
        (
            format!(
                "no server knows a leader, although {answering} of {voters} voters answer: they are electing one, or do not reach each other"
            ),
            format!(
                "convene doctor              # again in 10 s: an election takes no longer\n{}",
                logs("says whom it cannot reach")
            ),
        )
    };
    report.findings.push(about_all(LEADER, what, why, mend));
}

fn one_cluster(seen: &Seen, report: &mut Report) {
    let in_one: Vec<_> = seen.said().filter(|(_, said)| !said.peers.is_empty()).collect();
    let listed = |of: fn(&super::Said) -> Option<String>| {
        let told: Vec<(&str, String)> = in_one.iter().filter_map(|(name, said)| Some((*name, of(said)?))).collect();
        let differ = told.windows(2).any(|pair| matches!(pair, [(_, one), (_, other)] if one != other));
        let all = told.iter().map(|(name, value)| format!("{name}: {value}")).collect::<Vec<_>>().join(", ");
        differ.then_some(all)
    };
    let disjoint = |one: &[SocketAddr], other: &[SocketAddr]| !one.iter().any(|peer| other.contains(peer));
    let apart = in_one.iter().any(|(_, one)| in_one.iter().any(|(_, other)| disjoint(&one.peers, &other.peers)));
    let separate = "two clusters under one name: each takes writes that the other never sees";
    let mend = "convene discover            # in each Pod: which servers know each other\n\
                # keep the cluster that has your data; of each server of the other one the volume must be made empty:\n\
                # scale it away, delete its volume claim (kubectl delete pvc data-NAME), and scale back";
    let (what, why, mend) = if let Some(all) = listed(|said| said.datacenter.clone()) {
        let mend = "# give all servers the same datacenter (-datacenter), and take other datacenters' servers out of --discover";
        (
            format!("the servers are of different datacenters ({all})"),
            "gossip keeps them apart, so they never become one cluster",
            mend,
        )
    } else if let Some(all) = listed(|said| said.cluster.clone()) {
        (format!("the servers are of different clusters, each with an ID of its own ({all})"), separate, mend)
    } else if apart {
        let all = in_one.iter().map(|(name, said)| format!("{name}: {:?}", said.peers)).collect::<Vec<_>>().join(", ");
        (format!("the servers have no raft peer in common ({all})"), separate, mend)
    } else if let Some(all) = listed(|said| said.leader.map(|leader| leader.to_string())) {
        let mend = "convene doctor              # again in 10 s: an election takes no longer; if it stays, see their logs for whom they cannot reach";
        (
            format!("the servers know different leaders ({all})"),
            "an election is under way, or a cut divides the servers",
            mend,
        )
    } else {
        return;
    };
    report.findings.push(about_all(ONE_CLUSTER, what, why, mend.to_owned()));
}

fn voters(seen: &Seen, report: &mut Report) {
    if seen.leader().is_none() {
        return;
    }
    let wanted = seen.wanted.as_ref().map(|wanted| wanted.replicas as usize);
    let raft = seen.raft();
    let count = |voter: bool| raft.map(|raft| raft.iter().filter(|server| server.voter == voter).count());
    // Everybody may ask for the peers, which are voters and others alike.
    let voters = count(true).or_else(|| seen.said().map(|(_, said)| said.peers.len()).max()).unwrap_or_default();
    for server in raft.into_iter().flatten().filter(|server| !server.voter) {
        let what = format!("it is a raft peer and has no vote (of {voters} voters)");
        let why = "without its vote the cluster survives the loss of fewer servers";
        let mend = "consul operator raft list-peers     # autopilot gives it the vote once it was well for 10 s\n\
                    consul operator autopilot state     # says why it does not";
        report.findings.push(about(VOTERS, named(server), what, why, mend.to_owned()));
    }
    let name = seen.wanted.as_ref().map_or("consul-server", |wanted| wanted.statefulset.as_str());
    let outside = raft.into_iter().flatten().filter(|server| stale(seen, server).is_some()).count();
    // The same of the manifest.
    let told = report.findings.iter().any(|found| found.check == "replicas-even");
    if let Some(wanted) = wanted.filter(|wanted| voters + count(false).unwrap_or(0) < *wanted) {
        let what = format!("{voters} of {wanted} servers vote");
        let why = format!(
            "the others hold no copy that counts, and of those that vote {} may be away",
            (voters.max(1) - 1) / 2
        );
        let logs = missing(seen).map(|name| format!("{}    # says what it waits for\n", waits(&name, 5)));
        let mend = format!("kubectl get pods -o wide\n{}", logs.collect::<String>());
        report.findings.push(about_all(VOTERS, what, &why, mend));
    } else if voters % 2 == 0 && voters > 0 && count(false).unwrap_or(0) == 0 && outside == 0 && !told {
        let what = format!("the number of voters is even: {voters}");
        let why = format!("as many may be away as of {}, and it is one more that can fail", voters - 1);
        let mend = format!("kubectl scale statefulset {name} --replicas={}", voters + 1);
        report.findings.push(about_all(VOTERS, what, &why, mend));
    }
}

/// The servers of the StatefulSet that raft does not know; all of them where nobody says whom it knows.
fn missing(seen: &Seen) -> impl Iterator<Item = String> + '_ {
    let raft = seen.raft().unwrap_or_default();
    let wanted = seen.wanted.iter();
    let names = wanted.flat_map(|wanted| {
        let seat = Seat { statefulset: wanted.statefulset.clone(), ordinal: 0 };
        (wanted.start..wanted.start.saturating_add(wanted.replicas)).map(move |ordinal| seat.pod(ordinal))
    });
    names.filter(move |name| !raft.iter().any(|server| server.node == *name))
}

/// Why a raft peer is no server any more. One that gossip has for alive is none of these, whatever its name.
pub(super) fn stale(seen: &Seen, server: &RaftServer) -> Option<String> {
    let of_id = |member: &&crate::api::consul::Member| {
        member.tags.get("id").is_some_and(|id| id.eq_ignore_ascii_case(&server.id))
    };
    let member = seen.members().iter().find(of_id);
    if member.is_some_and(crate::api::consul::Member::is_alive) {
        return None;
    }
    let vote = if server.voter { "votes" } else { "is a raft peer" };
    if let (Some(wanted), Some(seat)) = (&seen.wanted, Seat::of_pod(&server.node))
        && seat.statefulset == wanted.statefulset
        && !(wanted.start..wanted.start.saturating_add(wanted.replicas)).contains(&seat.ordinal)
    {
        return Some(format!(
            "it {vote}, and is gone: the StatefulSet {} has {} servers",
            wanted.statefulset, wanted.replicas
        ));
    }
    member.is_none().then(|| {
        format!(
            "it {vote} at {} with the node ID {}, which no server has: it lost its disk, or was made anew",
            server.address, server.id
        )
    })
}

/// The servers in autopilot's state.
fn piloted(state: &Value) -> impl Iterator<Item = &Value> {
    state.get("Servers").and_then(Value::as_object).into_iter().flat_map(|servers| servers.values())
}

fn is_unhealthy(server: &Value) -> bool {
    server.get("Healthy").and_then(Value::as_bool) == Some(false)
}

/// Autopilot asks all servers in one round, so that their indexes can be compared.
fn lag(seen: &Seen, state: &Value, report: &mut Report) {
    let index = |server: &Value| server.get("LastIndex").and_then(Value::as_u64).unwrap_or_default();
    let leads = |server: &&Value| text(state, "/Leader").is_some_and(|leader| text(server, "/ID") == Some(leader));
    let Some(leader) = piloted(state).find(leads).map(index) else { return };
    for server in piloted(state) {
        let name = text(server, "/Name").unwrap_or_default();
        let alive = seen.member(name).is_none_or(crate::api::consul::Member::is_alive);
        let behind = leader.saturating_sub(index(server));
        let mend = format!(
            "kubectl logs {name} --tail=20        # a slow disk or network, or a restore\nkubectl exec {name} -- /convene/convene doctor    # looks at its data folder"
        );
        if !alive {
            continue;
        } else if behind > MAX_TRAILING_LOGS {
            let what =
                format!("its log is {behind} entries behind the leader's, and up to {MAX_TRAILING_LOGS} are usual");
            let why = "while it is behind it cannot lead, and counts for little when another server fails";
            report.findings.push(about(LAG, name, what, why, mend));
        } else if is_unhealthy(server) {
            let what = format!("autopilot has it for unhealthy{}", since(seen, server));
            let why = "it cannot take the leader's place";
            report.findings.push(about(LAG, name, what, why, mend));
        }
    }
}

/// Autopilot has a server for unhealthy, and had it for healthy, or did not know it, less than `within` ago.
pub(super) fn has_just_changed(state: &Value, now: Timestamp, within: Duration) -> bool {
    piloted(state).filter(|server| is_unhealthy(server)).any(|server| {
        let since = text(server, "/StableSince").and_then(|at| at.parse::<Timestamp>().ok());
        // The leader's clock may be ahead of ours.
        since.is_some_and(|since| now.duration_since(since).unsigned_abs() < within)
    })
}

/// Since when autopilot sees a server as it is: ` since 2026-11-21T22:00:00Z (40 s)`; nothing where it does not say.
pub(super) fn since(seen: &Seen, server: &Value) -> String {
    let Some(at) = text(server, "/StableSince") else { return String::new() };
    match at.parse::<Timestamp>() {
        Ok(time) => format!(" since {at} ({})", ago(seen.now - time.as_second())),
        Err(_) => String::new(),
    }
}

/// Seconds as people read them.
pub(in crate::doctor) fn ago(seconds: i64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

fn min_quorum(seen: &Seen, configuration: &Value, report: &mut Report) {
    let cleans = configuration.get("CleanupDeadServers").and_then(Value::as_bool) == Some(true);
    let least = configuration.get("MinQuorum").and_then(Value::as_u64).unwrap_or_default();
    let Some(size) = seen.size().filter(|size| cleans && *size > 1 && least < *size as u64) else { return };
    let what =
        format!("autopilot removes a server that is away while {least} others stay (min_quorum), and there are {size}");
    let why =
        "a server that restarts loses its vote, comes back as a non-voter, and the cluster has fewer voters meanwhile";
    let mend = format!(
        "consul operator autopilot set-config -min-quorum={size}    # and min_quorum = {size} in the servers' configuration"
    );
    report.findings.push(about_all(AUTOPILOT, what, why, mend));
}

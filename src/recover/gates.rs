//! May this server be recovered, or would that lose data or make a second cluster?
//!
//! Takes the facts and the raft configuration that is to be, gives one answer for each gate: open, with the facts behind it, or the
//! [`Shut`] that says what is wrong and what to do. Pure. In this order, and the first that is shut ends it:
//!
//! 1. this server has raft data, a node ID, an address, and peers.info: without the last Consul deletes peers.json and recovers
//!    nothing;
//! 2. nobody who answers knows a leader: a cluster that has one needs no recovery, and would be two;
//! 3. every other server is stopped, empty or isolated. Isolated is who answers, knows no leader, and could not get a majority of
//!    the peers that it lists even if all of them but us voted for it: an empty server grants any vote, and those that join us
//!    later are empty for a moment. Raft itself refuses votes to a candidate that is not in a server's configuration, so ours is
//!    never one of them. Whoever else runs with data must be held first, also who fails and is to be started again, and silence
//!    is neither;
//! 4. no other recovery is under way;
//! 5. no other server that can be read came further than this one, by term and then by index: what only it has would be lost.
//!    Those that are in the new configuration need not be compared, since raft elects the one that came furthest;
//! 6. with `--peer`: this server is in the list, as it is now.

use super::facts::{Facts, Noted, State};
use crate::record::recovering::Last;
use crate::settings::recovering::Peer;
use std::net::SocketAddr;
use thiserror::Error;

/// A gate that is shut.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Shut {
    /// Nothing can be recovered from here.
    #[error("gate 1: {who} has no raft data: {}", whom(.survivor.as_deref()))]
    NoData {
        /// This server.
        who: String,
        /// The server that came furthest, of those that can be read.
        survivor: Option<String>,
    },
    /// Consul would not take peers.json.
    #[error(
        "gate 1: there is no {file}, without which Consul deletes peers.json and recovers nothing: start the agent once (it writes the file), then try again"
    )]
    NoInfo {
        /// The file.
        file: String,
    },
    /// Who we would be is not known.
    #[error("gate 1: {0}")]
    NotKnown(String),
    /// There is a cluster.
    #[error(
        "gate 2: {who} knows leader {leader}: a cluster that has one needs no recovery; if that is over, ask again in 10 s"
    )]
    Led {
        /// Who says so.
        who: String,
        /// The leader.
        leader: SocketAddr,
    },
    /// There may be one.
    #[error(
        "gate 2: the agent of {who} runs and does not say whether it knows a leader ({why}): wait until it answers, set CONSUL_HTTP_ADDR, or stop it (convene.dev/hold)"
    )]
    Deaf {
        /// This server.
        who: String,
        /// What it answered.
        why: String,
    },
    /// Somebody may still vote, or write.
    #[error("gate 3: {}", .0.join("; "))]
    NotStopped(
        /// Each of them, with what to do.
        Vec<String>,
    ),
    /// Two recoveries would be two clusters.
    #[error(
        "gate 4: {where_} says that another recovery is under way ({begun}): {peers}; finish that one, or, when nothing was started by it, remove raft/peers.json there and {undo}"
    )]
    Pending {
        /// The claim, or the volume.
        where_: String,
        /// When it was begun, and from where.
        begun: String,
        /// Its raft configuration.
        peers: String,
        /// How the note is taken away.
        undo: String,
    },
    /// Nobody knows whether one is under way.
    #[error(
        "gate 4: whether another recovery is under way cannot be told: {0}; mend that, or give --claim=off when you know that there is none"
    )]
    Unreadable(String),
    /// Acknowledged writes would be lost.
    #[error(
        "gate 5: {who} has {theirs} (term/index) and this server {ours}: recover {who}, or make sure that nobody needs what only it has and hold it"
    )]
    Behind {
        /// Who came further.
        who: String,
        /// How far.
        theirs: Last,
        /// How far we came.
        ours: String,
    },
    /// It answers, and does not say how far it came.
    #[error("gate 5: how far {who} came cannot be told ({why}): give a token with agent:read (CONSUL_HTTP_TOKEN_FILE)")]
    Untold {
        /// Who.
        who: String,
        /// What it answered.
        why: String,
    },
    /// Consul would take the list, and this server never lead nor follow.
    #[error(
        "gate 6: this server is {ours}, which is not in the list ({list}): give the same list on every server, each as convene recover shows it there"
    )]
    NotListed {
        /// As it is now.
        ours: String,
        /// What was given.
        list: String,
    },
}

fn whom(name: Option<&str>) -> String {
    match name {
        Some(name) => format!("recover {name}, which came furthest of those that can be read"),
        None => "call this on the server that has its data".to_owned(),
    }
}

/// Every gate in its order.
pub fn gates(facts: &Facts, list: &[Peer]) -> Vec<Result<String, Shut>> {
    vec![
        data(facts),
        leaderless(facts),
        alone(facts),
        only_one(facts, list),
        furthest(facts, list),
        listed(facts, list),
    ]
}

fn data(facts: &Facts) -> Result<String, Shut> {
    let us = &facts.us;
    if !us.raft_data {
        return Err(Shut::NoData { who: us.name.clone(), survivor: facts.survivor().map(str::to_owned) });
    }
    if !us.has_info {
        return Err(Shut::NoInfo { file: us.info_file.clone() });
    }
    let peer = us.peer.as_ref().map_err(|why| Shut::NotKnown(why.clone()))?;
    Ok(format!("raft data, peers.info, {peer}"))
}

fn leaderless(facts: &Facts) -> Result<String, Shut> {
    let own = facts.us.leader.map(|leader| (&facts.us.name, leader));
    let others = facts.others.iter().filter_map(|other| match other.state {
        State::Led(leader) => Some((&other.name, leader)),
        _ => None,
    });
    match (own.into_iter().chain(others).next(), &facts.us.deaf) {
        (Some((who, leader)), _) => Err(Shut::Led { who: who.clone(), leader }),
        (None, Some(why)) => Err(Shut::Deaf { who: facts.us.name.clone(), why: why.clone() }),
        (None, None) => Ok("nobody who answers knows a leader".to_owned()),
    }
}

fn alone(facts: &Facts) -> Result<String, Shut> {
    let mut open = Vec::new();
    let mut shut = facts.blind.clone();
    for other in &facts.others {
        let name = &other.name;
        match &other.state {
            State::Stopped(why) => open.push(format!("{name} is stopped: {why}")),
            State::Empty => open.push(format!("{name} runs and is in no cluster")),
            State::Isolated => open.push(format!("{name} cannot get a majority without us")),
            State::Vouched(why) => open.push(format!("{name} is stopped (--stopped): {why}")),
            State::Led(_) => {}
            State::Runs => shut.push(format!(
                "{name} runs with raft data and could get a majority of its peers: hold it until this server leads: kubectl exec \
                 {name} -- touch {}, then kubectl delete pod {name}",
                facts.us.hold_file
            )),
            State::Unknown(why) => shut.push(format!("{name} may run: {why}; {}", other.mend)),
        }
    }
    if !shut.is_empty() {
        return Err(Shut::NotStopped(shut));
    }
    Ok(if open.is_empty() { "there is no other server".to_owned() } else { open.join("; ") })
}

fn only_one(facts: &Facts, list: &[Peer]) -> Result<String, Shut> {
    let (noted, where_, undo) = match &facts.pending {
        Noted::Unreadable(why) => return Err(Shut::Unreadable(why.clone())),
        Noted::Claim { name, peers, begun } => {
            let patch = r#"'[{"op": "remove", "path": "/data/recovery"}]'"#;
            let undo = format!("kubectl patch configmap {name} --type=json -p {patch}");
            ((peers, begun.clone()), format!("the claim {name}"), undo)
        }
        Noted::Volume { file, peers } => {
            ((peers, "from this volume".to_owned()), file.clone(), format!("remove {file}"))
        }
    };
    let (peers, begun) = noted;
    let ours: Vec<String> = list.iter().map(ToString::to_string).collect();
    if !peers.is_empty() && *peers != ours {
        return Err(Shut::Pending { where_, begun, peers: peers.join(" "), undo });
    }
    Ok(match (peers.is_empty(), &facts.pending) {
        (false, _) => format!("{where_}: this recovery was begun already"),
        (true, Noted::Volume { .. }) => "none on this volume, and without the claim nobody knows more".to_owned(),
        (true, _) => format!("none in {where_}"),
    })
}

fn furthest(facts: &Facts, list: &[Peer]) -> Result<String, Shut> {
    let ours = facts.us.last;
    let compared = facts.others.iter().filter(|other| {
        let listed = |id: &String| list.iter().any(|peer| peer.id.eq_ignore_ascii_case(id));
        !other.node_id.as_ref().is_some_and(listed)
    });
    for other in compared {
        match &other.last {
            Some(Ok(theirs)) if ours.is_none_or(|ours| theirs.rank() > ours.rank()) => {
                let ours = ours.map_or_else(|| "none that can be read".to_owned(), |ours| ours.to_string());
                return Err(Shut::Behind { who: other.name.clone(), theirs: *theirs, ours });
            }
            Some(Err(why)) => return Err(Shut::Untold { who: other.name.clone(), why: why.clone() }),
            _ => {}
        }
    }
    Ok(match ours {
        Some(ours) => format!("this server has {ours} (term/index), and no other that can be read has more"),
        None => "no other server that can be read has data".to_owned(),
    })
}

fn listed(facts: &Facts, list: &[Peer]) -> Result<String, Shut> {
    match &facts.us.peer {
        Ok(us) if list.contains(us) => Ok(match list.len() {
            1 => "this server alone".to_owned(),
            count => format!("this server is one of {count}"),
        }),
        Ok(us) => Err(Shut::NotListed {
            ours: us.to_string(),
            list: list.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
        }),
        Err(_) => Ok("not looked at, since gate 1 is shut".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::facts::tests::{facts, last, other, peer};
    use super::*;

    /// The first gate that is shut.
    fn shut(facts: &Facts) -> Option<String> {
        first(facts, &[peer(0)])
    }

    fn first(facts: &Facts, list: &[Peer]) -> Option<String> {
        gates(facts, list).into_iter().find_map(Result::err).map(|shut| shut.to_string())
    }

    #[track_caller]
    fn refused(facts: &Facts, parts: &[&str]) {
        let said = shut(facts).expect("a gate is shut");
        for part in parts {
            assert!(said.contains(part), "{part:?} is not in: {said}");
        }
    }

    #[test]
    fn a_survivor_of_empty_and_stopped_servers_is_recovered() {
        assert_eq!(shut(&facts()), None);
    }

    #[test]
    fn without_raft_data_the_survivor_is_named() {
        let mut facts = facts();
        (facts.us.raft_data, facts.us.last) = (false, None);
        refused(&facts, &["gate 1: consul-server-0 has no raft data", "call this on the server that has its data"]);
        facts.others[0].state = State::Runs;
        facts.others[0].last = Some(Ok(last(2, 90)));
        refused(&facts, &["gate 1", "recover consul-server-1, which came furthest"]);
    }

    #[test]
    fn without_peers_info_or_an_address_nothing_is_done() {
        let mut facts = facts();
        facts.us.has_info = false;
        refused(&facts, &["gate 1: there is no /data/raft/peers.info"]);
        facts.us.has_info = true;
        facts.us.peer = Err("its address is not known".to_owned());
        refused(&facts, &["gate 1: its address is not known"]);
    }

    #[test]
    fn a_leader_that_anybody_knows_is_enough() {
        let leader = SocketAddr::from(([10, 96, 0, 9], 8300));
        let mut own = facts();
        own.us.leader = Some(leader);
        refused(&own, &["gate 2: consul-server-0 knows leader 10.96.0.9:8300"]);
        let mut others = facts();
        others.others[1].state = State::Led(leader);
        refused(&others, &["gate 2: consul-server-2 knows leader 10.96.0.9:8300"]);
        let mut deaf = facts();
        deaf.us.deaf = Some("it did not answer".to_owned());
        refused(&deaf, &["gate 2: the agent of consul-server-0 runs and does not say", "it did not answer"]);
    }

    #[test]
    fn who_runs_with_data_or_is_silent_is_named_with_what_to_do() {
        let mut facts = facts();
        facts.others[0].state = State::Runs;
        facts.others[1].state = State::Unknown("10.96.0.2:8300 is silent".to_owned());
        facts.blind.push("source dns:x failed: no answer".to_owned());
        refused(
            &facts,
            &[
                "gate 3: source dns:x failed",
                "kubectl exec consul-server-1 -- touch /data/convene/hold, then kubectl delete pod consul-server-1",
                "consul-server-2 may run: 10.96.0.2:8300 is silent; what to do",
            ],
        );
        facts.blind.clear();
        facts.others[0].state = State::Isolated;
        facts.others[1].state = State::Vouched("10.96.0.2:8300 is silent".to_owned());
        assert_eq!(shut(&facts), None);
    }

    #[test]
    fn a_recovery_of_another_configuration_is_not_joined_and_the_same_one_goes_on() {
        let mut facts = facts();
        let claim = |peers: Vec<String>| Noted::Claim {
            name: "consul-server-convene".to_owned(),
            peers,
            begun: "yesterday by consul-server-1".to_owned(),
        };
        facts.pending = claim(vec![peer(1).to_string()]);
        refused(&facts, &["gate 4: the claim consul-server-convene", "yesterday by consul-server-1", "kubectl patch"]);
        facts.pending = claim(vec![peer(0).to_string()]);
        assert_eq!(shut(&facts), None);
        facts.pending = Noted::Unreadable("the API is silent".to_owned());
        refused(&facts, &["gate 4", "the API is silent", "--claim=off"]);
        facts.pending =
            Noted::Volume { file: "/data/convene/recovering.json".to_owned(), peers: vec![peer(1).to_string()] };
        refused(&facts, &["gate 4: /data/convene/recovering.json"]);
    }

    #[test]
    fn who_came_further_must_be_recovered_instead_by_term_and_then_by_index() {
        for (theirs, is_further) in [((3, 1), true), ((2, 101), true), ((2, 100), false), ((1, 500), false)] {
            let mut facts = facts();
            facts.others[0].state = State::Isolated;
            facts.others[0].last = Some(Ok(last(theirs.0, theirs.1)));
            let said = shut(&facts);
            assert_eq!(said.is_some(), is_further, "{theirs:?}: {said:?}");
            assert!(said.is_none_or(|said| said.starts_with("gate 5: consul-server-1 has ")), "{theirs:?}");
        }
        let mut facts = facts();
        facts.others[0].state = State::Isolated;
        facts.others[0].last = Some(Err("it answered 403".to_owned()));
        refused(&facts, &["gate 5: how far consul-server-1 came cannot be told (it answered 403)", "agent:read"]);
    }

    #[test]
    fn of_a_list_this_server_is_one_as_it_is_now_and_the_others_need_not_be_behind() {
        let mut facts = facts();
        facts.others = vec![other(1)];
        facts.others[0].last = Some(Ok(last(9, 9)));
        facts.others[0].node_id = Some(peer(1).id);
        assert_eq!(first(&facts, &[peer(0), peer(1)]), None);
        let said = first(&facts, &[peer(1), peer(2)]).unwrap();
        assert!(said.starts_with(&format!("gate 6: this server is {}, which is not in the list", peer(0))), "{said}");
    }

    #[test]
    fn the_first_gate_that_is_shut_is_the_one_that_is_told() {
        let mut facts = facts();
        facts.us.has_info = false;
        facts.us.leader = Some(SocketAddr::from(([10, 96, 0, 9], 8300)));
        facts.others[0].state = State::Runs;
        refused(&facts, &["gate 1"]);
        facts.us.has_info = true;
        refused(&facts, &["gate 2"]);
        facts.us.leader = None;
        refused(&facts, &["gate 3"]);
    }
}

//! May a server leave now, or would that cost the cluster its quorum?
//!
//! Takes the servers as they are, gives the first gate that is shut, with its numbers. Pure. A server that goes for good can
//! leave or vanish, and vanishing costs more: a vote that nobody gives any more. So the gates ask for no more than that those
//! who stay can go on alone:
//!
//! 1. a leader is known;
//! 2. we are among its raft peers;
//! 3. those that stay and answer are a majority of the voters without us;
//! 4. a server of a higher ordinal that goes too is out already, or its Pod does not run.

use super::voters::View;

/// The first gate that is shut; `None`: all are open. `higher` are the Pods of higher ordinals that go too and run.
pub fn shut(view: &View, higher: &[String]) -> Option<String> {
    if view.leader.is_none() {
        return Some("gate 1: no leader is known".to_owned());
    }
    if view.us.is_none() {
        return Some(format!("gate 2: we are not among the {} raft peers", view.others.len()));
    }
    let voters = view.others.len();
    let answering = view.well();
    // Nobody else votes: a leave would end the cluster.
    if answering * 2 <= voters || voters == 0 {
        let silent: Vec<String> = view
            .others
            .iter()
            .filter_map(|voter| Some(format!("{} is away ({})", voter.name(), voter.away.as_ref()?)))
            .collect();
        let silent = if silent.is_empty() { String::new() } else { format!(": {}", silent.join("; ")) };
        return Some(format!(
            "gate 3: {answering} of the {voters} voters without us answer, which is no majority{silent}"
        ));
    }
    let first = view.others.iter().find_map(|voter| voter.pod.clone().filter(|pod| higher.contains(pod)));
    first.map(|pod| format!("gate 4: {pod} has a higher ordinal, goes too, and has not left yet"))
}

#[cfg(test)]
mod tests {
    use super::super::voters::tests::{view, voter};
    use super::*;

    fn gate(view: &View, higher: &[u32]) -> Option<String> {
        shut(view, &higher.iter().map(|ordinal| format!("consul-server-{ordinal}")).collect::<Vec<_>>())
    }

    #[test]
    fn a_healthy_cluster_lets_one_go() {
        assert_eq!(gate(&view(2, vec![voter(0), voter(1)]), &[]), None);
        assert_eq!(gate(&view(1, vec![voter(0)]), &[]), None);
    }

    #[test]
    fn without_a_leader_nobody_leaves() {
        let leaderless = View { leader: None, ..view(2, vec![voter(0), voter(1)]) };
        assert_eq!(gate(&leaderless, &[]).as_deref(), Some("gate 1: no leader is known"));
    }

    #[test]
    fn who_is_no_raft_peer_has_nothing_to_leave() {
        let out = View { us: None, ..view(2, vec![voter(0), voter(1)]) };
        assert_eq!(gate(&out, &[]).as_deref(), Some("gate 2: we are not among the 2 raft peers"));
    }

    #[test]
    fn those_that_stay_must_be_a_majority_without_us() {
        // Five to three with one of the remaining three dead: the quorum is safer after it.
        assert_eq!(gate(&view(4, vec![voter(0), voter(1), voter(2).away(), voter(3)]), &[]), None);
        assert_eq!(gate(&view(3, vec![voter(0), voter(1), voter(2).away()]), &[]), None);
        // With two of them dead.
        let shut = gate(&view(4, vec![voter(0), voter(1).away(), voter(2).away(), voter(3)]), &[]).unwrap();
        assert!(
            shut.starts_with("gate 3: 2 of the 4 voters without us answer, which is no majority: consul-server-1"),
            "{shut}"
        );
    }

    #[test]
    fn the_last_voter_does_not_leave() {
        assert_eq!(
            gate(&view(0, Vec::new()), &[]).unwrap(),
            "gate 3: 0 of the 0 voters without us answer, which is no majority"
        );
    }

    #[test]
    fn a_lower_ordinal_waits_for_the_higher_one_that_goes_too() {
        let four = view(3, vec![voter(0), voter(1), voter(2), voter(4)]);
        assert_eq!(
            gate(&four, &[4]).as_deref(),
            Some("gate 4: consul-server-4 has a higher ordinal, goes too, and has not left yet")
        );
        assert_eq!(gate(&view(3, vec![voter(0), voter(1), voter(2)]), &[4]), None, "it is out already");
        assert_eq!(gate(&four, &[]), None, "its Pod does not run");
    }
}

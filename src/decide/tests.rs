use super::*;
use crate::survey::SourceReport;
use proptest::prelude::*;
use std::time::Duration;

fn ip(last: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, last])
}

fn raft(last: u8) -> SocketAddr {
    SocketAddr::new(ip(last), 8300)
}

fn formed(leader: Option<u8>, peers: &[u8]) -> Verdict {
    Verdict::Formed(Reported { leader: leader.map(raft), peers: peers.iter().copied().map(raft).collect() })
}

fn absent() -> Verdict {
    Verdict::Absent("its name has no address".to_owned())
}

fn unknown() -> Verdict {
    Verdict::Unknown("silent".to_owned())
}

/// Another server, `s2` at 10.0.0.2 and so on.
fn other(last: u8, verdict: Verdict) -> Other {
    Other {
        name: format!("s{last}"),
        certain: true,
        listed: false,
        host: Some(format!("s{last}.consul")),
        awaited: false,
        port: None,
        reports: if matches!(verdict, Verdict::Absent(_)) {
            BTreeMap::new()
        } else {
            BTreeMap::from([(ip(last), verdict.clone())])
        },
        stable: BTreeSet::new(),
        verdict,
    }
}

fn survey(others: impl IntoIterator<Item = Other>) -> Survey {
    Survey { others: others.into_iter().collect(), ..Survey::default() }
}

/// Server s1 at 10.0.0.1, the first of three.
fn us() -> Us {
    Us {
        role: Role::Server,
        expect: Some(3),
        replicas: None,
        position: Some(0),
        addresses: BTreeSet::from([ip(1)]),
        joins_later: true,
    }
}

fn empty() -> Disk {
    Disk::default()
}

fn data() -> Disk {
    Disk { raft_data: true, ..Disk::default() }
}

fn start(decision: Decision) -> Start {
    match decision {
        Decision::Start(start) => start,
        other => panic!("a start was expected: {other:?}"),
    }
}

fn waits(decision: Decision) -> Wait {
    match decision {
        Decision::Wait(wait) => wait,
        other => panic!("a wait was expected: {other:?}"),
    }
}

fn refuses(decision: Decision) -> Refusal {
    match decision {
        Decision::Refuse(refusal) => refusal,
        other => panic!("a refusal was expected: {other:?}"),
    }
}

fn joins(start: &Start) -> Vec<String> {
    start.join.iter().map(ToString::to_string).collect()
}

#[test]
fn rule_1_a_client_joins_who_is_known_and_never_expects() {
    let client = Us { role: Role::Client, ..us() };
    let start = start(decide(&client, &survey([other(2, formed(Some(2), &[2, 3])), other(3, absent())]), &empty()));
    assert_eq!((start.rule, start.expect), (Rule::Client, None));
    assert_eq!(joins(&start), ["10.0.0.2", "s3.consul"]);
    assert_eq!(waits(decide(&client, &survey([]), &empty())).rule, Rule::Client);
}

#[test]
fn rule_4_a_server_with_data_starts_although_everybody_is_silent() {
    let all_silent = survey([other(2, unknown()), other(3, unknown())]);
    let begun = start(decide(&us(), &all_silent, &Disk { frozen_expect: Some(3), ..data() }));
    assert_eq!(
        (begun.rule, begun.expect),
        (Rule::Rejoin, Some(3)),
        "an interrupted formation could not end without it"
    );
    let begun =
        start(decide(&us(), &all_silent, &Disk { recorded: true, formed: true, frozen_expect: Some(3), ..data() }));
    assert_eq!((begun.rule, begun.expect), (Rule::Rejoin, None));
}

#[test]
fn rule_4_the_frozen_expect_wins_over_a_changed_one() {
    let changed = Us { expect: Some(5), ..us() };
    let recorded = Disk { recorded: true, ..data() };
    let begun =
        start(decide(&changed, &survey([other(2, unknown())]), &Disk { frozen_expect: Some(3), ..recorded.clone() }));
    assert_eq!(begun.expect, Some(3));
    let begun = start(decide(&changed, &survey([other(2, unknown())]), &recorded));
    assert_eq!(begun.expect, None, "a server that joined has no expect, and gets none");
}

#[test]
fn rule_4_data_without_a_record_was_made_without_convene() {
    let begun = start(decide(&us(), &survey([other(2, unknown())]), &data()));
    assert_eq!(begun.expect, Some(3), "Consul drops it once its log has an entry");
}

#[test]
fn rule_4_joins_the_servers_known_last_when_nobody_is_found() {
    let disk = Disk { formed: true, last_servers: vec![ip(2), ip(3)], ..data() };
    assert_eq!(joins(&start(decide(&us(), &survey([]), &disk))), ["10.0.0.2", "10.0.0.3"]);
    assert_eq!(joins(&start(decide(&us(), &survey([other(4, unknown())]), &disk))), ["10.0.0.4"]);
}

#[test]
fn rule_5_an_empty_server_joins_a_cluster_that_lacks_it() {
    let world = survey([other(2, formed(Some(2), &[2, 3])), other(3, formed(Some(2), &[2, 3]))]);
    let begun = start(decide(&us(), &world, &empty()));
    assert_eq!((begun.rule, begun.expect), (Rule::Join, None));
    assert_eq!(joins(&begun), ["10.0.0.2", "10.0.0.3"]);
}

#[test]
fn rule_5_waits_while_any_server_still_lists_an_address_of_ours() {
    for world in [
        survey([other(2, formed(Some(2), &[1, 2, 3])), other(3, formed(Some(2), &[1, 2, 3]))]),
        survey([other(2, formed(Some(2), &[2, 3])), other(3, formed(Some(2), &[1, 2, 3]))]),
        survey([other(3, formed(None, &[1, 2, 3]))]),
    ] {
        assert!(waits(decide(&us(), &world, &empty())).why.contains("still lists our address 10.0.0.1:8300"));
    }
}

#[test]
fn rule_5_an_earlier_address_of_ours_counts_unless_another_server_answers_there() {
    let disk = Disk { recorded: true, earlier_addresses: BTreeSet::from([ip(9), ip(2)]), ..empty() };
    let gone = survey([other(2, formed(Some(2), &[2, 9])), other(9, unknown())]);
    assert!(waits(decide(&us(), &gone, &disk)).why.contains("10.0.0.9:8300"));
    let taken = survey([other(2, formed(Some(2), &[2, 3])), other(3, formed(Some(2), &[2, 3]))]);
    assert_eq!(start(decide(&us(), &taken, &disk)).rule, Rule::Join, "10.0.0.2 is the leader's by now");
}

#[test]
fn rule_5_a_verdict_counts_for_the_address_that_gave_it_and_for_no_other() {
    let mut two = other(2, formed(Some(2), &[2, 3]));
    two.reports.insert(ip(3), unknown());
    assert!(waits(decide(&us(), &survey([two]), &empty())).why.contains("server 10.0.0.3:8300"));
}

#[test]
fn rule_5_waits_for_every_server_that_the_leader_lists() {
    let silent = survey([other(2, formed(Some(2), &[2, 3])), other(3, unknown())]);
    let wait = waits(decide(&us(), &silent, &empty()));
    assert!(
        wait.why.contains("10.0.0.3:8300") && wait.why.contains("has not answered") && wait.why.contains("silent"),
        "{wait:?}"
    );
    let never_asked = survey([other(2, formed(Some(2), &[2, 3]))]);
    assert!(waits(decide(&us(), &never_asked, &empty())).why.contains("has not answered"));
    let elsewhere = survey([other(2, formed(Some(2), &[2, 3])), other(3, formed(None, &[2, 3]))]);
    assert!(waits(decide(&us(), &elsewhere, &empty())).why.contains("knows another leader or none"));
    let headless = survey([other(2, formed(None, &[2, 3])), other(3, formed(None, &[2, 3]))]);
    assert!(waits(decide(&us(), &headless, &empty())).why.contains("its leader has not answered"));
}

#[test]
fn rule_8_founds_when_the_others_are_absent_or_never_formed() {
    for world in [
        survey([]),
        survey([other(2, absent()), other(3, absent())]),
        survey([other(2, Verdict::NeverFormed), other(3, absent())]),
    ] {
        let begun = start(decide(&us(), &world, &empty()));
        assert_eq!((begun.rule, begun.expect), (Rule::Found, Some(3)));
    }
}

#[test]
fn rule_8_joins_those_that_answered_first_and_names_that_have_no_address_last() {
    let world = survey([other(2, absent()), other(3, Verdict::NeverFormed)]);
    assert_eq!(joins(&start(decide(&us(), &world, &empty()))), ["10.0.0.3", "s2.consul"]);
}

#[test]
fn rule_8_joins_a_server_where_it_stays_and_not_where_its_pod_is() {
    let mut second = other(2, Verdict::NeverFormed);
    second.stable = BTreeSet::from([ip(22)]);
    let mut third = other(3, absent());
    third.stable = BTreeSet::from([ip(33)]);
    assert_eq!(joins(&start(decide(&us(), &survey([second, third]), &empty()))), ["10.0.0.22", "10.0.0.33"]);
}

#[test]
fn rule_8_an_expect_must_fit_the_statefulset_that_the_api_describes() {
    let world = survey([other(2, absent())]);
    let of = |expect, replicas| Us { expect: Some(expect), replicas: Some(replicas), ..us() };
    assert!(refuses(decide(&of(3, 7), &world, &empty())).cure.contains("from 4 to 7"));
    assert!(refuses(decide(&of(2, 4), &world, &empty())).why.contains("both sides of a cut"));
    assert!(waits(decide(&of(5, 3), &world, &empty())).why.contains("never come"));
    assert_eq!(start(decide(&of(3, 5), &world, &empty())).expect, Some(3));
    assert_eq!(start(decide(&of(2, 7), &world, &data())).rule, Rule::Rejoin, "a server with data always starts");
}

#[test]
fn rule_8_waits_while_anything_is_unknown() {
    assert!(
        waits(decide(&us(), &survey([other(2, unknown()), other(3, absent())]), &empty()))
            .why
            .contains("s2 is unknown")
    );
    let report = SourceReport {
        source: "dns:consul".to_owned(),
        outcome: Err("SERVFAIL".to_owned()),
        blind: true,
        took: Duration::ZERO,
    };
    let blind = Survey { sources: vec![report], ..Survey::default() };
    assert!(waits(decide(&us(), &blind, &empty())).why.contains("source dns:consul failed: SERVFAIL"));
}

#[test]
fn rule_8_without_an_expect_founds_nothing() {
    let told_nothing = Us { expect: None, ..us() };
    assert!(waits(decide(&told_nothing, &survey([other(2, absent())]), &empty())).cure.contains("--expect"));
}

#[test]
fn rule_8_an_ordinal_beyond_the_expect_renders_none() {
    let fourth = Us { position: Some(3), ..us() };
    let begun = start(decide(&fourth, &survey([other(2, absent())]), &empty()));
    assert_eq!((begun.rule, begun.expect), (Rule::Found, None));
    let third = Us { position: Some(2), ..fourth };
    assert_eq!(start(decide(&third, &survey([other(2, absent())]), &empty())).expect, Some(3));
}

#[test]
fn rule_8_an_expect_that_no_agent_has_seen_may_be_corrected() {
    let changed = Us { expect: Some(5), ..us() };
    let disk = Disk { recorded: true, frozen_expect: Some(3), ..empty() };
    assert_eq!(start(decide(&changed, &survey([other(2, absent())]), &disk)).expect, Some(5));
}

#[test]
fn rule_8_waits_for_names_when_nobody_joins_later() {
    let init = Us { joins_later: false, ..us() };
    assert!(waits(decide(&init, &survey([]), &empty())).why.contains("0 of 2 other servers"));
    assert!(waits(decide(&init, &survey([other(2, Verdict::NeverFormed)]), &empty())).why.contains("1 of 2"));
    assert_eq!(
        joins(&start(decide(&init, &survey([other(2, Verdict::NeverFormed), other(3, absent())]), &empty()))).len(),
        2
    );
    assert_eq!(start(decide(&us(), &survey([]), &empty())).join, [], "run joins them itself");
}

#[test]
fn expect_1_is_refused_when_there_is_another_server() {
    let alone = Us { expect: Some(1), ..us() };
    assert_eq!(start(decide(&alone, &survey([]), &empty())).expect, Some(1));
    let refusal = refuses(decide(&alone, &survey([other(2, absent())]), &empty()));
    assert!(refusal.why.contains("s2") && refusal.cure.contains("--expect 2"), "{refusal:?}");
    let begun = start(decide(&alone, &survey([other(2, absent())]), &data()));
    assert_eq!((begun.rule, begun.expect), (Rule::Rejoin, None), "a node with data starts, but does not elect itself");
}

#[test]
fn an_ipv6_address_is_joined_in_brackets() {
    let six: IpAddr = "fd00::1".parse().unwrap();
    assert_eq!(Target::Address(six, None).to_string(), "[fd00::1]");
    assert_eq!(Target::Address(six, Some(8301)).to_string(), "[fd00::1]:8301");
}

fn verdicts() -> impl Strategy<Value = Verdict> {
    let peers = proptest::collection::btree_set(1u8..7, 0..6);
    prop_oneof![
        Just(absent()),
        Just(unknown()),
        Just(Verdict::NeverFormed),
        (proptest::option::of(1u8..7), peers).prop_map(|(leader, peers)| {
            let peers: Vec<u8> = peers.into_iter().collect();
            if leader.is_none() && peers.is_empty() { Verdict::NeverFormed } else { formed(leader, &peers) }
        }),
    ]
}

fn worlds() -> impl Strategy<Value = (Us, Survey, Disk)> {
    let others = proptest::collection::vec((any::<bool>(), verdicts()), 0..6);
    let disks = (any::<bool>(), proptest::option::of(1u32..6), any::<bool>());
    let settings = (proptest::option::of(1u32..6), proptest::option::of(0u32..6), any::<bool>());
    (others, disks, settings, any::<bool>()).prop_map(
        |(others, (raft_data, frozen_expect, formed), (expect, position, server), blind)| {
            let others = others
                .into_iter()
                .zip(2u8..)
                .map(|((certain, verdict), last)| Other { certain, ..other(last, verdict) });
            let outcome = if blind { Err("SERVFAIL".to_owned()) } else { Ok(1) };
            let sources = vec![SourceReport { source: "dns:consul".to_owned(), outcome, blind, took: Duration::ZERO }];
            let us = Us { role: if server { Role::Server } else { Role::Client }, expect, position, ..us() };
            let recorded = frozen_expect.is_some() || formed;
            let earlier_addresses = BTreeSet::from([ip(1), ip(6)]);
            let disk = Disk {
                raft_data,
                recorded,
                frozen_expect,
                formed: formed && raft_data,
                earlier_addresses,
                last_servers: Vec::new(),
            };
            (us, Survey { sources, others: others.collect(), ..Survey::default() }, disk)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4096, ..ProptestConfig::default() })]

    /// Founding is only for a world in which nobody reports a cluster and nobody is unknown.
    #[test]
    fn invariant_nothing_is_founded_while_a_cluster_is_reported_or_anything_is_unknown((us, survey, disk) in worlds()) {
        if let Decision::Start(Start { rule: Rule::Found, .. }) = decide(&us, &survey, &disk) {
            let calm = |other: &Other| matches!(other.verdict, Verdict::Absent(_) | Verdict::NeverFormed);
            prop_assert!(survey.others.iter().all(calm) && !survey.sources.iter().any(|report| report.blind) && !disk.raft_data);
        }
    }

    /// An empty disk never starts while an address of ours is in anybody's raft peers.
    #[test]
    fn invariant_an_empty_disk_never_votes_at_a_known_address((us, survey, disk) in worlds()) {
        let listed = survey.others.iter().any(|other| match &other.verdict {
            Verdict::Formed(reported) => reported.peers.iter().any(|peer| us.addresses.contains(&peer.ip())),
            _ => false,
        });
        if us.role == Role::Server && !disk.raft_data && listed {
            prop_assert!(!matches!(decide(&us, &survey, &disk), Decision::Start(_)));
        }
    }

    /// A start by rule 5 has heard every server that the leader lists, and each knows that leader.
    #[test]
    fn invariant_a_join_has_heard_every_listed_server((us, survey, disk) in worlds()) {
        if let Decision::Start(Start { rule: Rule::Join, .. }) = decide(&us, &survey, &disk) {
            let reported = |at: IpAddr| survey.others.iter().find_map(|other| match &other.verdict {
                Verdict::Formed(reported) if other.reports.contains_key(&at) => Some(reported),
                _ => None,
            });
            let led = survey.others.iter().any(|other| match &other.verdict {
                Verdict::Formed(one) => one.leader.is_some_and(|leader| other.reports.contains_key(&leader.ip())
                    && one.peers.iter().all(|peer| reported(peer.ip()).is_some_and(|theirs| theirs.leader == Some(leader)))),
                _ => false,
            });
            prop_assert!(led);
        }
    }

    /// A server with data starts whatever it sees.
    #[test]
    fn invariant_a_node_with_data_starts((us, survey, disk) in worlds()) {
        let us = Us { role: Role::Server, ..us };
        let disk = Disk { raft_data: true, ..disk };
        prop_assert_eq!(start(decide(&us, &survey, &disk)).rule, Rule::Rejoin);
    }

    /// Nobody joins itself, and nobody twice: Consul takes a join of itself for success and stops trying.
    #[test]
    fn invariant_self_is_never_joined_and_nobody_twice((us, survey, disk) in worlds()) {
        if let Decision::Start(start) = decide(&us, &survey, &disk) {
            let all = joins(&start);
            prop_assert!(!all.contains(&ip(1).to_string()));
            prop_assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
        }
    }

    /// An expect of 1 is rendered only when no other server is known; a client never has one.
    #[test]
    fn invariant_nobody_elects_itself_beside_others((us, survey, disk) in worlds()) {
        if let Decision::Start(start) = decide(&us, &survey, &disk) {
            prop_assert!(start.expect != Some(1) || survey.servers().count() == 0);
            prop_assert!(start.expect.is_none() || us.role == Role::Server);
        }
    }

    /// Once an agent was started the expect never changes.
    #[test]
    fn invariant_a_frozen_expect_is_the_only_one_rendered((us, survey, disk) in worlds()) {
        if let (Decision::Start(start), Some(frozen), true) = (decide(&us, &survey, &disk), disk.frozen_expect, disk.raft_data) {
            prop_assert!(start.expect.is_none_or(|expect| expect == frozen));
        }
    }
}

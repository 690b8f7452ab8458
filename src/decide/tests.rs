use super::*;
use crate::survey::SourceReport;
use crate::survey::agents::Cluster;
use crate::survey::strangers::Stranger;
use proptest::prelude::*;
use std::time::Duration;

fn ip(last: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, last])
}

fn raft(last: u8) -> SocketAddr {
    SocketAddr::new(ip(last), 8300)
}

fn formed(leader: Option<u8>, peers: &[u8]) -> Verdict {
    Verdict::Formed(Reported {
        leader: leader.map(raft),
        peers: peers.iter().copied().map(raft).collect(),
        cluster: Cluster::Unnamed,
    })
}

/// A member of a cluster that tells its ID.
fn of(cluster: &str, leader: u8, peers: &[u8]) -> Verdict {
    let Verdict::Formed(reported) = formed(Some(leader), peers) else { unreachable!() };
    Verdict::Formed(Reported { cluster: Cluster::Id(cluster.to_owned()), ..reported })
}

fn stranger(why: Stranger) -> Verdict {
    Verdict::Stranger(why)
}

fn of_dc2() -> Stranger {
    Stranger::Datacenter { theirs: "dc2".to_owned(), ours: "dc1".to_owned() }
}

fn of_another_cluster() -> Stranger {
    Stranger::Cluster(Reported { leader: Some(raft(2)), peers: vec![raft(2)], cluster: Cluster::Unnamed })
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
        sure: true,
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

fn owner(pod: &str) -> Owner {
    Owner { namespace: Some("prod".to_owned()), statefulset: Some("consul-server".to_owned()), pod: pod.to_owned() }
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
        owner: owner("consul-server-0"),
        adopt: None,
        force: None,
    }
}

/// Without a claim.
fn decide(us: &Us, survey: &Survey, disk: &Disk) -> Decision {
    super::decide(us, survey, disk, &Seen::Unused)
}

/// With one.
fn decide_by(claim: &Seen, us: &Us, survey: &Survey, disk: &Disk) -> Decision {
    super::decide(us, survey, disk, claim)
}

fn claim(formed: bool, expect: u32) -> Seen {
    Seen::Claimed(Claim { id: "c1".to_owned(), formed, expect: Some(expect), addresses: BTreeSet::new() })
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
        1 => Just(absent()),
        1 => Just(unknown()),
        1 => Just(Verdict::NeverFormed),
        1 => Just(stranger(of_dc2())),
        1 => Just(stranger(Stranger::Pod("StatefulSet other".to_owned()))),
        1 => Just(stranger(of_another_cluster())),
        3 => (proptest::option::of(1u8..7), peers, proptest::option::of("[ab]")).prop_map(|(leader, peers, cluster)| {
            let peers: Vec<u8> = peers.into_iter().collect();
            match formed(leader, &peers) {
                Verdict::Formed(reported) if leader.is_some() => Verdict::Formed(Reported { cluster: cluster.map_or(Cluster::NotYet, Cluster::Id), ..reported }),
                _ if peers.is_empty() => Verdict::NeverFormed,
                formed => formed,
            }
        }),
    ]
}

fn worlds() -> impl Strategy<Value = (Us, Survey, Disk)> {
    let standings = prop_oneof![Just((true, false)), Just((false, false)), Just((false, true))];
    let others = proptest::collection::vec((standings, any::<bool>(), verdicts()), 0..6);
    let disks = (any::<bool>(), proptest::option::of(1u32..6), any::<bool>(), any::<bool>());
    let settings = (proptest::option::of(1u32..6), proptest::option::of(0u32..6), any::<bool>());
    (others, disks, settings, any::<bool>()).prop_map(
        |(others, (raft_data, frozen_expect, formed, left), (expect, position, server), blind)| {
            let others = others.into_iter().zip(2u8..).map(|(((certain, listed), sure, verdict), last)| Other {
                certain,
                listed,
                sure,
                ..other(last, verdict)
            });
            let outcome = if blind { Err("SERVFAIL".to_owned()) } else { Ok(1) };
            let sources = vec![SourceReport { source: "dns:consul".to_owned(), outcome, blind, took: Duration::ZERO }];
            let us = Us { role: if server { Role::Server } else { Role::Client }, expect, position, ..us() };
            let recorded = frozen_expect.is_some() || formed;
            let earlier_addresses = BTreeSet::from([ip(1), ip(6)]);
            let disk = Disk {
                raft_data,
                recorded,
                owner: None,
                left,
                frozen_expect,
                formed: formed && raft_data,
                earlier_addresses,
            };
            (us, Survey { sources, others: others.collect(), ..Survey::default() }, disk)
        },
    )
}

fn claims() -> impl Strategy<Value = Seen> {
    prop_oneof![
        Just(Seen::Unused),
        Just(Seen::Absent),
        Just(Seen::Unreadable("503".to_owned())),
        ("c[01]", any::<bool>(), 1u32..6).prop_map(|(id, formed, expect)| Seen::Claimed(Claim {
            id,
            formed,
            expect: Some(expect),
            addresses: BTreeSet::new()
        })),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4096, ..ProptestConfig::default() })]

    /// Founding is only for a world in which nobody reports a cluster and nobody is unknown.
    #[test]
    fn invariant_nothing_is_founded_while_a_cluster_is_reported_or_anything_is_unknown((us, survey, disk) in worlds()) {
        if let Decision::Start(Start { rule: Rule::Found, .. }) = decide(&us, &survey, &disk) {
            let calm = |other: &Other| match &other.verdict {
                Verdict::Absent(_) | Verdict::NeverFormed => true,
                Verdict::Stranger(stranger) => !other.certain && stranger.is_certain(),
                Verdict::Formed(_) | Verdict::Unknown(_) => false,
            };
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
        prop_assert!(matches!(start(decide(&us, &survey, &disk)).rule, Rule::Rejoin | Rule::Left));
    }

    /// The data of a server is moved aside only where a cluster answers that lacks it, whole.
    #[test]
    fn invariant_data_is_moved_aside_only_beside_a_cluster_that_lacks_us((us, survey, disk) in worlds()) {
        if let Decision::Start(Start { fresh: Some(_), .. }) = decide(&us, &survey, &disk) {
            let without = Disk { raft_data: false, ..disk };
            prop_assert_eq!(start(decide(&us, &survey, &without)).rule, Rule::Join);
        }
    }

    /// Nothing is founded over a claim that says "formed" or that cannot be read, unless its ID was given; and all that found
    /// under one claim have its expect.
    #[test]
    fn invariant_one_claim_one_cluster((us, survey, disk) in worlds(), claim in claims(), force in proptest::option::of("c[01]")) {
        let us = Us { force, ..us };
        if let Decision::Start(begun @ Start { rule: Rule::Found, .. }) = decide_by(&claim, &us, &survey, &disk) {
            match &claim {
                Seen::Unused => prop_assert_eq!(begun.claim, None),
                Seen::Absent => {
                    let first = matches!(begun.claim, Some(Step::Found { over: None, .. }));
                    prop_assert!(first);
                }
                Seen::Unreadable(_) => prop_assert!(false, "unreadable"),
                Seen::Claimed(claim) if claim.formed => {
                    prop_assert_eq!(us.force.as_ref(), Some(&claim.id));
                    let forced = matches!(begun.claim, Some(Step::Found { over: Some(over), .. }) if over == claim.id);
                    prop_assert!(forced);
                }
                Seen::Claimed(claim) => {
                    prop_assert_eq!(begun.claim, None);
                    prop_assert!(begun.expect.is_none() || begun.expect == claim.expect);
                }
            }
        }
    }

    /// A stranger is never joined, neither at its address nor by the name that leads to it, nor who is only listed.
    #[test]
    fn invariant_no_stranger_is_joined_and_nobody_that_is_only_listed((us, survey, disk) in worlds()) {
        if let Decision::Start(start) = decide(&us, &survey, &disk) {
            let all = joins(&start);
            for other in survey.others.iter().filter(|other| other.verdict.is_stranger() || other.listed) {
                prop_assert!(other.addresses().all(|ip| !all.contains(&ip.to_string())));
                prop_assert!(other.reports.is_empty() || !all.contains(other.host.as_ref().unwrap()));
            }
        }
    }

    /// Of two clusters that are well an empty server joins none, or the only one that its sources name.
    #[test]
    fn invariant_of_two_clusters_none_is_joined_by_an_empty_disk(
        servers in proptest::collection::vec((0usize..3, any::<bool>()), 1..6), ids in any::<bool>()
    ) {
        let of_cluster = |which: usize| -> Vec<u8> {
            servers.iter().zip(2u8..).filter(|((one, _), _)| *one == which).map(|(_, last)| last).collect()
        };
        let others = servers.iter().zip(2u8..).map(|(&(which, listed), last)| {
            let peers = of_cluster(which);
            let verdict = match (which, ids) {
                (0, _) => absent(),
                (_, true) => of(&format!("c{which}"), peers[0], &peers),
                (_, false) => formed(Some(peers[0]), &peers),
            };
            Other { certain: !listed, listed, sure: false, ..other(last, verdict) }
        });
        let survey = survey(others);
        let named: BTreeSet<usize> = servers.iter().filter(|(which, listed)| *which > 0 && !listed).map(|one| one.0).collect();
        if let Decision::Start(start) = decide(&us(), &survey, &empty()) {
            let clusters = servers.iter().any(|(which, _)| *which > 0);
            prop_assert_eq!(named.len(), usize::from(clusters));
            prop_assert_eq!(start.rule, if clusters { Rule::Join } else { Rule::Found });
        }
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

// === rules 2, 3, 6 and 7 ===

#[test]
fn rule_2_a_volume_of_another_pod_is_refused_with_78_also_with_data() {
    let theirs = Disk { owner: Some(owner("consul-server-1")), recorded: true, ..data() };
    let refusal = refuses(decide(&us(), &survey([other(2, formed(Some(2), &[2, 3]))]), &theirs));
    assert_eq!((refusal.rule, refusal.code), (Rule::Owner, Code::Contradiction));
    assert!(refusal.why.contains("Pod consul-server-1 in namespace prod"), "{}", refusal.why);
    let moved = Owner { namespace: Some("test".to_owned()), ..owner("consul-server-0") };
    assert_eq!(refuses(decide(&us(), &survey([]), &Disk { owner: Some(moved), ..data() })).rule, Rule::Owner);
    // A namespace that one of both does not know is no difference.
    let unknown = Owner { namespace: None, ..owner("consul-server-0") };
    assert_eq!(start(decide(&us(), &survey([]), &Disk { owner: Some(unknown), ..data() })).rule, Rule::Rejoin);
}

#[test]
fn rule_2_is_overridden_by_keeping_the_data_or_by_starting_without_it() {
    let theirs = Disk { owner: Some(owner("consul-server-1")), recorded: true, ..data() };
    let keep = Us { adopt: Some(Adopt::Keep), ..us() };
    assert_eq!(start(decide(&keep, &survey([other(2, unknown())]), &theirs)).rule, Rule::Rejoin);
    let fresh = Us { adopt: Some(Adopt::Fresh), ..us() };
    let begun = start(decide(&fresh, &survey([other(2, formed(Some(2), &[2])), other(3, absent())]), &theirs));
    assert_eq!((begun.rule, begun.fresh, begun.expect), (Rule::Owner, Some(Fresh::AndUnknown), None));
    assert_eq!(waits(decide(&fresh, &survey([other(2, absent())]), &theirs)).rule, Rule::Owner, "nobody to join");
}

#[test]
fn rule_3_a_server_that_left_comes_back_as_an_empty_one_once_the_cluster_lacks_it() {
    let left = Disk { left: true, recorded: true, ..data() };
    let gone = survey([other(2, formed(Some(2), &[2, 3])), other(3, formed(Some(2), &[2, 3]))]);
    let begun = start(decide(&us(), &gone, &left));
    assert_eq!((begun.rule, begun.fresh), (Rule::Left, Some(Fresh::AsItself)));
    // In doubt a server with data starts with it.
    for world in [survey([other(2, unknown())]), survey([other(2, formed(Some(2), &[1, 2]))]), survey([])] {
        assert_eq!(start(decide(&us(), &world, &left)).rule, Rule::Rejoin, "{world:?}");
    }
}

#[test]
fn rule_5_an_address_that_the_claim_remembers_is_ours_too() {
    let world = survey([other(2, formed(Some(2), &[2, 3, 9])), other(3, formed(Some(2), &[2, 3, 9]))]);
    let mut remembered = claim(true, 3);
    let Seen::Claimed(inner) = &mut remembered else { unreachable!() };
    inner.addresses.insert(ip(9));
    let wait = waits(decide_by(&remembered, &us(), &world, &empty()));
    assert_eq!((wait.rule, wait.remove), (Rule::Join, Some(Removal { leader: ip(2), listed: raft(9) })));
}

#[test]
fn rule_5_a_removal_is_asked_for_only_while_all_others_agree_and_are_a_majority() {
    let agree = survey([other(2, formed(Some(2), &[1, 2, 3])), other(3, formed(Some(2), &[1, 2, 3]))]);
    let removal = Removal { leader: ip(2), listed: raft(1) };
    assert_eq!(waits(decide(&us(), &agree, &empty())).remove, Some(removal));
    let one_is_away = survey([other(2, formed(Some(2), &[1, 2, 3])), other(3, unknown())]);
    assert_eq!(waits(decide(&us(), &one_is_away, &empty())).remove, None);
    let no_leader = survey([other(2, formed(None, &[1, 2, 3])), other(3, formed(None, &[1, 2, 3]))]);
    assert_eq!(waits(decide(&us(), &no_leader, &empty())).remove, None);
    let two = survey([other(2, formed(Some(2), &[1, 2]))]);
    assert_eq!(waits(decide(&us(), &two, &empty())).remove, None, "one of two is no majority");
}

#[test]
fn rule_6_wiped_disks_found_nothing_while_the_claim_says_formed_unless_it_is_forced_by_its_id() {
    let nobody = survey([other(2, absent()), other(3, Verdict::NeverFormed)]);
    let wait = waits(decide_by(&claim(true, 3), &us(), &nobody, &empty()));
    assert_eq!(wait.rule, Rule::Claimed);
    assert!(wait.cure.contains("--new-cluster=force:c1"), "{}", wait.cure);
    let force = Us { force: Some("c1".to_owned()), ..us() };
    let begun = start(decide_by(&claim(true, 3), &force, &nobody, &empty()));
    assert_eq!(begun.claim, Some(Step::Found { expect: 3, over: Some("c1".to_owned()) }));
    // In a template that was not taken out it does nothing once the claim has another ID.
    let again = Us { force: Some("c0".to_owned()), ..us() };
    assert_eq!(waits(decide_by(&claim(true, 3), &again, &nobody, &empty())).rule, Rule::Claimed);
}

#[test]
fn rule_7_an_unreadable_claim_is_not_a_missing_one() {
    let unreadable = Seen::Unreadable("503".to_owned());
    assert_eq!(waits(decide_by(&unreadable, &us(), &survey([other(2, absent())]), &empty())).rule, Rule::Unreadable);
    assert_eq!(start(decide_by(&unreadable, &us(), &survey([other(2, absent())]), &data())).rule, Rule::Rejoin);
    let formed = survey([other(2, formed(Some(2), &[2, 3])), other(3, formed(Some(2), &[2, 3]))]);
    assert_eq!(
        start(decide_by(&unreadable, &us(), &formed, &empty())).rule,
        Rule::Join,
        "a cluster that answers needs none"
    );
}

#[test]
fn rule_8_the_first_claim_counts_for_all_whatever_their_manifests_say() {
    let nobody = survey([other(2, absent()), other(3, absent())]);
    let first = start(decide_by(&Seen::Absent, &us(), &nobody, &empty()));
    assert_eq!(first.claim, Some(Step::Found { expect: 3, over: None }));
    let five = Us { expect: Some(5), ..us() };
    let second = start(decide_by(&claim(false, 3), &five, &nobody, &empty()));
    assert_eq!((second.expect, second.claim), (Some(3), None));
    let told_nothing = Us { expect: None, ..us() };
    assert_eq!(start(decide_by(&claim(false, 3), &told_nothing, &nobody, &empty())).expect, Some(3));
    let fourth = Us { position: Some(3), expect: Some(5), ..us() };
    assert_eq!(start(decide_by(&claim(false, 3), &fourth, &nobody, &empty())).expect, None, "beyond what was claimed");
}

// === strangers ===

#[test]
fn rule_4_a_server_with_data_starts_beside_strangers_and_joins_none_of_them() {
    let mut second = other(2, stranger(of_another_cluster()));
    second.stable = BTreeSet::from([ip(2)]);
    let world = survey([second, other(3, stranger(of_dc2())), other(4, unknown())]);
    assert_eq!(joins(&start(decide(&us(), &world, &data()))), ["10.0.0.4"]);
}

#[test]
fn who_is_only_listed_is_evidence_and_is_not_joined() {
    let listed = Other { listed: true, certain: false, ..other(3, formed(Some(2), &[2, 3])) };
    let world = survey([other(2, formed(Some(2), &[2, 3])), listed.clone()]);
    assert_eq!(joins(&start(decide(&us(), &world, &empty()))), ["10.0.0.2"]);
    assert_eq!(waits(decide(&us(), &survey([listed, other(2, absent())]), &empty())).rule, Rule::Join);
}

#[test]
fn rule_5_waits_between_two_clusters_and_names_both() {
    let one = |last, cluster: &str| other(last, of(cluster, last, &[last]));
    let wait = waits(decide(&us(), &survey([one(2, "a"), one(3, "b")]), &empty()));
    assert_eq!(wait.rule, Rule::Join);
    for part in ["two clusters", "s2 says leader 10.0.0.2:8300", "s3 says leader 10.0.0.3:8300"] {
        assert!(wait.why.contains(part), "{part}: {}", wait.why);
    }
    // An address that no source names any more is no second cluster's.
    let left = Other { listed: true, certain: false, ..one(2, "b") };
    assert_eq!(joins(&start(decide(&us(), &survey([left, one(3, "a")]), &empty()))), ["10.0.0.3"]);
    // A leader that was cut off still claims itself: it is no second cluster.
    let cut = survey([other(2, of("a", 2, &[2, 3])), other(3, of("a", 3, &[2, 3]))]);
    assert!(waits(decide(&us(), &cut, &empty())).why.contains("knows another leader"));
}

#[test]
fn rule_5_joins_nobody_who_is_not_of_the_leaders_cluster() {
    let world = |odd: Verdict| survey([other(2, of("a", 2, &[2, 3])), other(3, of("a", 2, &[2, 3])), other(4, odd)]);
    // It has lost its leader and tells its cluster, or it has not known any.
    let Verdict::Formed(reported) = of("b", 4, &[4, 5]) else { unreachable!() };
    let lost = Verdict::Formed(Reported { leader: None, ..reported });
    assert!(waits(decide(&us(), &world(lost), &empty())).why.contains("two clusters"));
    let begun = start(decide(&us(), &world(formed(None, &[2, 3, 4])), &empty()));
    assert_eq!(joins(&begun), ["10.0.0.2", "10.0.0.3"], "4 may be anybody's, and gossip spreads it");
}

#[test]
fn rule_5_a_cluster_that_one_doubtful_name_leads_to_is_not_joined() {
    let doubtful = |last, verdict| Other { sure: false, ..other(last, verdict) };
    let listed = |last| Other { listed: true, certain: false, ..doubtful(last, formed(Some(2), &[2, 7, 8])) };
    let alone = || vec![doubtful(2, formed(Some(2), &[2, 7, 8])), doubtful(3, absent()), listed(7), listed(8)];
    let wait = waits(decide(&us(), &survey(alone()), &empty()));
    assert!(wait.why.contains("our sources name at most one of its servers"), "{}", wait.why);
    let mut two = alone();
    two[1] = doubtful(3, formed(Some(2), &[2, 7, 8]));
    assert_eq!(start(decide(&us(), &survey(two), &empty())).rule, Rule::Join, "a second name leads to it");
    let mut sure = alone();
    sure[0].sure = true;
    assert_eq!(start(decide(&us(), &survey(sure), &empty())).rule, Rule::Join, "the API says whose address it is");
}

#[test]
fn rule_5_no_removal_is_asked_of_a_cluster_that_may_be_another_one() {
    let doubtful = |listed, last| Other { sure: false, listed, ..other(last, formed(Some(2), &[1, 2, 7])) };
    let wait = waits(decide(&us(), &survey([doubtful(false, 2), doubtful(true, 7)]), &empty()));
    assert!(wait.why.contains("still lists our address"), "{}", wait.why);
    assert_eq!(wait.remove, None, "it may have a server of our name");
    let wait = waits(decide(&us(), &survey([doubtful(false, 2), doubtful(false, 7)]), &empty()));
    assert_eq!(wait.remove.map(|removal| removal.leader), Some(ip(2)));
}

#[test]
fn rule_8_a_stranger_in_the_place_of_one_of_our_servers_is_waited_for_and_others_are_not() {
    let found = |why| Other { certain: false, ..other(2, stranger(why)) };
    for (beside, founds) in [
        (other(2, stranger(of_dc2())), false),
        (other(2, stranger(of_another_cluster())), false),
        (found(of_another_cluster()), false),
        (found(of_dc2()), true),
        (found(Stranger::Pod("StatefulSet other".to_owned())), true),
    ] {
        let decision = decide(&us(), &survey([beside.clone(), other(3, absent())]), &empty());
        if founds {
            assert_eq!(joins(&start(decision)), ["s3.consul"], "{beside:?}");
        } else {
            assert!(waits(decision).why.contains("s2 is a stranger"), "{beside:?}");
        }
    }
}

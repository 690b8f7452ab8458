//! The truth table: one healthy picture in which exactly one client goes, and every single fact that keeps it.

use super::*;
use proptest::prelude::*;

const MACHINE: &str = "worker-7";

fn member(name: &str, status: u8, role: &str, address: &str) -> Member {
    let tags = [("role", role), ("id", &format!("id-{name}"))].map(|(key, value)| (key.to_owned(), value.to_owned()));
    Member { name: name.to_owned(), addr: address.to_owned(), status, tags: tags.into() }
}

fn entry(name: &str, machine: &str, address: &str) -> CatalogNode {
    let meta = BTreeMap::from([(K8S_NODE.to_owned(), machine.to_owned()), ("cluster".to_owned(), "a".to_owned())]);
    CatalogNode { id: format!("id-{name}"), node: name.to_owned(), address: address.to_owned(), meta }
}

fn server(name: &str, address: &str) -> RaftServer {
    let (id, address) = (format!("id-{name}"), format!("{address}:8300"));
    RaftServer { id, node: name.to_owned(), address, leader: false, voter: true }
}

/// Three servers, two clients that are alive, and `web`, which failed on a machine that is gone.
fn seen() -> Seen {
    let servers = ["10.0.0.1", "10.0.0.2", "10.0.0.3"].map(|ip| (format!("server-{ip}"), ip));
    let mut seen = Seen {
        members: servers.iter().map(|(name, ip)| member(name, 1, "consul", ip)).collect(),
        raft: servers.iter().map(|(name, ip)| server(name, ip)).collect(),
        peers: servers.iter().map(|(_, ip)| format!("{ip}:8300").parse().unwrap()).collect(),
        ..Seen::default()
    };
    for (name, machine, address) in [("db", "worker-5", "10.1.0.5"), ("mq", "worker-6", "10.1.0.6")] {
        seen.members.push(member(name, 1, "node", address));
        seen.catalog.push(entry(name, machine, address));
        seen.machines.insert(machine.to_owned());
    }
    seen.members.push(member("web", 4, "node", "10.1.0.7"));
    seen.catalog.push(entry("web", MACHINE, "10.1.0.7"));
    seen.failed.insert("web".to_owned());
    seen
}

fn of_web(seen: &Seen, meta: Option<&(String, String)>) -> Option<Verdict> {
    judge(seen, meta).cases.into_iter().find(|case| case.node == "web").map(|case| case.verdict)
}

fn web(seen: &mut Seen) -> &mut Member {
    seen.members.last_mut().unwrap()
}

#[test]
fn a_client_that_failed_with_its_machine_goes() {
    let judgement = judge(&seen(), None);
    let goes = Case { node: "web".to_owned(), machine: MACHINE.to_owned(), verdict: Verdict::Goes };
    assert_eq!(judgement, Judgement { cases: vec![goes], clients: 3, astray: BTreeMap::new() });
    assert_eq!(judgement.brake(), None);
}

#[test]
fn every_single_fact_that_differs_keeps_it() {
    type Change = fn(&mut Seen);
    let table: &[(&str, Change, Because)] = &[
        ("its role is a server's", |seen| drop(web(seen).tags.insert("role".into(), "consul".into())), Because::Server),
        (
            "raft has its name",
            |seen| seen.raft.push(RaftServer { id: "other".into(), ..server("WEB", "10.9.9.9") }),
            Because::InRaft,
        ),
        (
            "raft has its ID",
            |seen| seen.raft.push(RaftServer { id: "ID-WEB".into(), ..server("(unknown)", "10.9.9.9") }),
            Because::InRaft,
        ),
        ("raft has its address", |seen| seen.raft.push(server("(unknown)", "10.1.0.7")), Because::InRaft),
        ("the agent's raft peers have its address", |seen| seen.peers.push(at("10.1.0.7")), Because::InRaft),
        (
            "they have the catalog's address of it",
            |seen| {
                seen.peers.push(at("10.9.9.9"));
                last(seen).address = "10.9.9.9".to_owned();
            },
            Because::InRaft,
        ),
        ("it is leaving", |seen| web(seen).status = 2, Because::Undecided),
        ("its status is unheard of", |seen| web(seen).status = 9, Because::Undecided),
        ("it has no such meta", |seen| drop(seen.catalog.pop()), Because::NoMachine),
        (
            "its machine has no name",
            |seen| drop(last(seen).meta.insert(K8S_NODE.into(), String::new())),
            Because::NoMachine,
        ),
        (
            "its machine's name is none",
            |seen| drop(last(seen).meta.insert(K8S_NODE.into(), "../pods".into())),
            Because::NoMachine,
        ),
        ("the catalog has another ID", |seen| last(seen).id = "other".to_owned(), Because::Another),
        ("the catalog's was registered by hand", |seen| last(seen).id.clear(), Because::Another),
        ("its machine is there", |seen| seen.machines.extend([MACHINE.to_owned()]), Because::MachineIsThere),
        ("the leader has it for alive", |seen| seen.failed.clear(), Because::LeaderDiffers),
    ];
    for (what, change, because) in table {
        let mut seen = seen();
        change(&mut seen);
        assert_eq!(of_web(&seen, None), Some(Verdict::Stays(*because)), "{what}");
        assert_eq!(judge(&seen, None).brake(), None, "{what}: nobody goes");
    }
}

fn last(seen: &mut Seen) -> &mut CatalogNode {
    seen.catalog.last_mut().unwrap()
}

fn at(ip: &str) -> SocketAddr {
    SocketAddr::new(ip.parse().unwrap(), 8300)
}

#[test]
fn a_client_that_is_alive_or_has_left_is_no_case_wherever_its_machine_is() {
    for (status, clients) in [(1, 3), (3, 2)] {
        let mut seen = seen();
        web(&mut seen).status = status;
        let judgement = judge(&seen, None);
        assert_eq!((judgement.cases, judgement.clients), (Vec::new(), clients), "status {status}");
    }
}

#[test]
fn the_meta_that_was_asked_for_selects_the_clients() {
    let asked = |value: &str| ("cluster".to_owned(), value.to_owned());
    assert_eq!(of_web(&seen(), Some(&asked("a"))), Some(Verdict::Goes));
    assert_eq!(of_web(&seen(), Some(&asked("b"))), Some(Verdict::Stays(Because::NotAskedFor)));
    assert_eq!(judge(&seen(), Some(&asked("b"))).clients, 0, "the others are none of ours either");
}

#[test]
fn names_are_one_in_upper_and_lower_case() {
    let mut seen = seen();
    last(&mut seen).node = "Web".to_owned();
    seen.failed = BTreeSet::from(["WEB".to_owned()]);
    assert_eq!(of_web(&seen, None), Some(Verdict::Goes));
}

#[test]
fn what_only_the_catalog_has_is_left_to_consul() {
    let mut seen = seen();
    seen.members.pop();
    assert_eq!(of_web(&seen, None), Some(Verdict::Stays(Because::Forgotten)));
    seen.failed.clear();
    assert_eq!(of_web(&seen, None), None, "what was registered without an agent is nobody's business");
}

#[test]
fn a_client_that_is_alive_without_its_machine_brakes() {
    let mut seen = seen();
    seen.machines.remove("worker-5");
    let brake = judge(&seen, None).brake();
    let (node, machine) = ("db".to_owned(), "worker-5".to_owned());
    assert_eq!(brake, Some(Brake::Astray { node, machine, count: 1, clients: 3 }));
    web(&mut seen).status = 1;
    assert_eq!(judge(&seen, None).brake(), None, "nobody goes");
    let mut other = seen;
    last(&mut other).meta.insert("cluster".to_owned(), "b".to_owned());
    other.catalog[0].meta.insert("cluster".to_owned(), "b".to_owned());
    web(&mut other).status = 4;
    assert_eq!(judge(&other, Some(&("cluster".to_owned(), "a".to_owned()))).brake(), None, "none of ours");
}

#[test]
fn more_than_half_of_the_clients_brake_and_half_of_them_do_not() {
    let of = |alive: u8, gone: u8| {
        let mut seen = seen();
        seen.members.truncate(3);
        seen.catalog.clear();
        for number in 0..alive + gone {
            let (name, machine, ip) = (format!("c{number}"), format!("m{number}"), format!("10.2.0.{number}"));
            let failed = number >= alive;
            seen.members.push(member(&name, if failed { 4 } else { 1 }, "node", &ip));
            seen.catalog.push(entry(&name, &machine, &ip));
            if failed {
                seen.failed.insert(name)
            } else {
                seen.machines.insert(machine)
            };
        }
        judge(&seen, None).brake()
    };
    for (alive, gone) in [(1, 1), (2, 1), (5, 5), (3, 0)] {
        assert_eq!(of(alive, gone), None, "{gone} of {}", alive + gone);
    }
    for (alive, gone) in [(0, 1), (1, 2), (4, 5)] {
        let (going, clients) = (usize::from(gone), usize::from(alive + gone));
        assert_eq!(of(alive, gone), Some(Brake::Half { going, clients }), "{gone} of {clients}");
    }
}

proptest! {
    #[test]
    fn invariant_those_go_of_whom_all_is_so_and_no_others(
        facts in proptest::collection::vec(
            (0u8..5, any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>()), 1..12,
        ),
    ) {
        let (mut seen, mut expected) = (Seen::default(), Vec::new());
        for (number, (status, is_server, in_raft, there, named, failed)) in facts.into_iter().enumerate() {
            let (name, machine, ip) = (format!("n{number:02}"), format!("m{number}"), format!("10.3.0.{number}"));
            seen.members.push(member(&name, status, if is_server { "consul" } else { "node" }, &ip));
            if status == 4 && !is_server && !in_raft && !there && named && failed { expected.push(name.clone()) }
            if in_raft { seen.raft.push(server(&name, &ip)) }
            if there { seen.machines.insert(machine.clone()); }
            if named { seen.catalog.push(entry(&name, &machine, &ip)) }
            if failed { seen.failed.insert(name); }
        }
        let going: Vec<String> = judge(&seen, None).going().map(|case| case.node.clone()).collect();
        prop_assert_eq!(going, expected);
    }
}

//! Looking at who is there, against DNS and HTTP servers on real sockets that answer well, badly, or not at all.

// A panic is how a test fails; clippy's own exception for tests covers `#[test]` functions only.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "support/mod.rs"]
mod support;

use hickory_proto::rr::RecordType;
use serde_json::Value;
use std::net::IpAddr;
use std::time::Duration;
use support::cluster::wait_until;
use support::dns::{Answer, ScriptedDns};
use support::http::{Call, Reply, ScriptedHttp};
use support::net::{LoopbackBlock, loopback_block};
use support::port::OpenPort;
use support::program::{Convene, Ended};

/// A server's agent at `block.2`, `.3`, …: its server port is open, its HTTP API is scripted.
struct Server {
    _port: OpenPort,
    http: ScriptedHttp,
}

impl Server {
    fn at(block: &LoopbackBlock, host: u8) -> Self {
        Self { _port: OpenPort::at(&block.at(host, 8300)), http: ScriptedHttp::at(&block.at(host, 8500)) }
    }

    fn reporting(block: &LoopbackBlock, host: u8, leader: &str, peers: &str) -> Self {
        let server = Self::at(block, host);
        server.http.always(Call::get("/v1/status/leader", Reply::ok(leader)));
        server.http.always(Call::get("/v1/status/peers", Reply::ok(peers)));
        server.http.always(Call::get("/v1/connect/ca/roots", Reply::Json(500, "Connect must be enabled".to_owned())));
        server
    }

    fn never_formed(block: &LoopbackBlock, host: u8) -> Self {
        Self::reporting(block, host, "\"\"", "[]")
    }
}

fn ips(block: &LoopbackBlock, hosts: &[u8]) -> Vec<IpAddr> {
    hosts.iter().map(|host| block.ip(*host).into()).collect()
}

fn discover(dns: &ScriptedDns, source: &str, more: &[&str]) -> Ended {
    Convene::new(["discover", "--format=json", "--discover-timeout=500ms", "--discover", source])
        .words([format!("--nameserver={}", dns.addr())])
        .words(["--resolv-conf=/does/not/exist"])
        .words(more)
        .run()
}

fn json(ended: &Ended) -> Value {
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    serde_json::from_str(&ended.stdout).unwrap()
}

/// Name and verdict of every other server.
fn verdicts(ended: &Ended) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    json(ended)["servers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|server| (text(&server["name"]), text(&server["verdict"])))
        .collect()
}

const NAME: &str = "consul.prod.svc.cluster.local.";

#[test]
fn a_headless_name_gives_every_server_behind_it_by_a_and_aaaa() {
    let (block, dns) = (loopback_block(), ScriptedDns::zone());
    dns.set(NAME, RecordType::A, Answer::Addresses(ips(&block, &[2, 3])));
    dns.set(NAME, RecordType::AAAA, Answer::Addresses(vec!["::1".parse().unwrap()]));
    let (_two, _three) = (Server::never_formed(&block, 2), Server::never_formed(&block, 3));
    let seen = discover(&dns, "dns:consul.prod.svc", &[]);
    let addresses = [block.ip(2).to_string(), block.ip(3).to_string()];
    let never_formed = || "never formed".to_owned();
    let [two, three] = addresses;
    assert_eq!(
        verdicts(&seen),
        [(two, never_formed()), (three, never_formed()), ("::1".to_owned(), "absent".to_owned())]
    );
    assert_eq!(json(&seen)["sources"][0]["named"], 3);
}

#[test]
fn a_truncated_answer_is_asked_again_by_tcp() {
    let (block, dns) = (loopback_block(), ScriptedDns::zone());
    dns.set(NAME, RecordType::A, Answer::Truncated(Box::new(Answer::Addresses(ips(&block, &[2])))));
    dns.set(NAME, RecordType::AAAA, Answer::NoData);
    let _two = Server::never_formed(&block, 2);
    assert_eq!(verdicts(&discover(&dns, &format!("dns:{NAME}"), &[])).len(), 1);
    assert!(dns.asked(NAME, RecordType::A, support::dns::Transport::Tcp) > 0);
}

#[test]
fn srv_records_give_their_targets_addresses() {
    let (block, dns) = (loopback_block(), ScriptedDns::zone());
    dns.set(
        "_serf._tcp.consul.",
        RecordType::SRV,
        Answer::Srv(vec![("a.consul.".to_owned(), 8301), ("b.consul.".to_owned(), 8301)]),
    );
    for (name, host) in [("a.consul.", 2), ("b.consul.", 3)] {
        dns.set(name, RecordType::A, Answer::Addresses(ips(&block, &[host])));
        dns.set(name, RecordType::AAAA, Answer::NoData);
    }
    let (_two, _three) = (Server::never_formed(&block, 2), Server::never_formed(&block, 3));
    assert_eq!(verdicts(&discover(&dns, "srv:_serf._tcp.consul.", &[])).len(), 2);
}

#[test]
fn a_short_name_is_completed_from_resolv_conf_as_a_pods_resolver_would() {
    let (block, dns) = (loopback_block(), ScriptedDns::zone());
    dns.set("consul.prod.svc.k8s.example.", RecordType::A, Answer::Addresses(ips(&block, &[2])));
    dns.set("consul.prod.svc.k8s.example.", RecordType::AAAA, Answer::NoData);
    let _two = Server::never_formed(&block, 2);
    let folder = tempfile::tempdir().unwrap();
    let conf = folder.path().join("resolv.conf");
    std::fs::write(&conf, "search prod.svc.k8s.example svc.k8s.example k8s.example\nnameserver 127.255.255.252\n")
        .unwrap();
    let seen = Convene::new(["discover", "--format=netaddrs", "--discover=dns:consul"])
        .words([format!("--nameserver={}", dns.addr()), format!("--resolv-conf={}", conf.display())])
        .run();
    assert_eq!((seen.code, seen.stdout), (0, format!("{}\n", block.ip(2))));
}

#[test]
fn the_others_of_a_statefulset_are_computed_and_asked_by_absolute_names() {
    let (block, dns) = (loopback_block(), ScriptedDns::zone());
    for (ordinal, host) in [(1, 3), (2, 4)] {
        let name = format!("consul-server-{ordinal}.consul-server.prod.svc.cluster.local.");
        dns.set(&name, RecordType::A, Answer::Addresses(ips(&block, &[host])));
        dns.set(&name, RecordType::AAAA, Answer::NoData);
    }
    let _three = Server::never_formed(&block, 3);
    let seen = Convene::new(["discover", "--format=json", "--expect=3", "--resolv-conf=/does/not/exist"])
        .words([format!("--nameserver={}", dns.addr())])
        .envs("POD_NAME=consul-server-0 POD_NAMESPACE=prod POD_IP=127.0.0.1")
        .run();
    assert_eq!(
        verdicts(&seen),
        [
            ("consul-server-1".to_owned(), "never formed".to_owned()),
            ("consul-server-2".to_owned(), "absent".to_owned())
        ]
    );
    assert!(
        dns.log()
            .iter()
            .all(|asked| asked.name.ends_with("svc.cluster.local.") || asked.name.ends_with("svc.cluster.local")),
        "no search list"
    );
}

#[test]
fn self_is_never_among_the_others() {
    let (block, dns) = (loopback_block(), ScriptedDns::zone());
    dns.set(NAME, RecordType::A, Answer::Addresses(ips(&block, &[2, 3])));
    dns.set(NAME, RecordType::AAAA, Answer::NoData);
    let (_two, _three) = (Server::never_formed(&block, 2), Server::never_formed(&block, 3));
    let seen = discover(&dns, &format!("dns:{NAME}"), &["--advertise", &block.ip(2).to_string()]);
    assert_eq!(verdicts(&seen), [(block.ip(3).to_string(), "never formed".to_owned())]);
    let by_hand =
        discover(&dns, &format!("static:{},{}", block.ip(2), block.ip(3)), &["--advertise", &block.ip(2).to_string()]);
    assert_eq!(verdicts(&by_hand).len(), 1);
}

#[test]
fn servers_that_only_the_raft_peers_name_are_asked_too() {
    let (block, dns) = (loopback_block(), ScriptedDns::zone());
    let (two, three) = (block.at(2, 8300), block.at(3, 8300));
    let peers = format!("[\"{two}\",\"{three}\"]");
    let _both = [2, 3].map(|host| Server::reporting(&block, host, &format!("\"{two}\""), &peers));
    let seen = discover(&dns, &format!("static:{}", block.ip(2)), &[]);
    let formed = || "formed".to_owned();
    assert_eq!(verdicts(&seen), [(block.ip(2).to_string(), formed()), (block.ip(3).to_string(), formed())]);
    assert_eq!(json(&seen)["servers"][1]["leader"], two.as_str());
}

#[test]
fn an_address_without_a_server_port_is_no_server() {
    let (block, dns) = (loopback_block(), ScriptedDns::zone());
    let client = ScriptedHttp::at(&block.at(2, 8500));
    dns.set(NAME, RecordType::A, Answer::Addresses(ips(&block, &[2])));
    dns.set(NAME, RecordType::AAAA, Answer::NoData);
    let seen = Convene::new(["discover", "--format=netaddrs", "--discover", &format!("dns:{NAME}")])
        .words([format!("--nameserver={}", dns.addr())])
        .run();
    seen.ends(69, &["no server was found", "absent", "refuses the server port"]);
    assert!(seen.stderr.len() <= 1024);
    client.finish();
}

#[test]
fn an_agent_that_answers_nonsense_is_unknown_with_the_reason() {
    for (reply, part) in [
        (Reply::Html, "something that is not Consul's"),
        (Reply::Redirect("http://127.0.0.1:1/".to_owned()), "redirect to http://127.0.0.1:1/"),
        (Reply::Endless, "more than 1 MiB"),
        (Reply::Close, "could not ask"),
        (Reply::CutShort("\"\"".to_owned()), "could not ask"),
        (Reply::Json(500, "rpc error".to_owned()), "answered 500: rpc error"),
        (Reply::ok("\"nowhere\""), "addresses of at most 99 servers were expected"),
        (Reply::ok("{}"), "something that is not Consul's"),
        (Reply::Json(403, "Permission denied".to_owned()), "answered 403: Permission denied"),
        (Reply::Nothing, "did not answer within 2000 ms"),
    ] {
        let (block, dns) = (loopback_block(), ScriptedDns::zone());
        let server = Server::at(&block, 2);
        server.http.always(Call::get("/v1/status/leader", reply));
        server.http.always(Call::get("/v1/status/peers", Reply::ok("[]")));
        let seen = discover(&dns, &format!("static:{}", block.ip(2)), &[]);
        let why = json(&seen)["servers"][0].clone();
        assert_eq!(why["verdict"], "unknown", "{part}");
        assert!(why["why"].as_str().unwrap().contains(part), "{part} is not in {why}");
        assert!(server.http.streamed() < 100 << 20, "it must hang up");
    }
}

#[test]
fn an_agent_whose_api_cannot_be_reached_is_unknown_and_the_cure_is_named() {
    let (block, dns) = (loopback_block(), ScriptedDns::zone());
    let _open = OpenPort::at(&block.at(2, 8300));
    let seen = discover(&dns, &format!("static:{}", block.ip(2)), &[]);
    let why = json(&seen)["servers"][0]["why"].as_str().unwrap().to_owned();
    assert!(why.contains("refuses the connection") && why.contains("client_addr"), "{why}");
}

#[test]
fn an_agent_that_just_starts_is_asked_until_it_answers() {
    let (block, dns) = (loopback_block(), ScriptedDns::zone());
    let open = OpenPort::at(&block.at(2, 8300));
    let seen = std::thread::scope(|scope| {
        let asked = scope.spawn(|| discover(&dns, &format!("static:{}", block.ip(2)), &[]));
        wait_until("the server port", || (open.accepted() > 0).then_some(()), String::new);
        // Its refusal cannot be seen from here; if this is too short for it, nothing is tested, and nothing fails.
        std::thread::sleep(Duration::from_millis(150));
        let http = ScriptedHttp::at(&block.at(2, 8500));
        http.always(Call::get("/v1/status/leader", Reply::ok("\"\"")));
        http.always(Call::get("/v1/status/peers", Reply::ok("[]")));
        asked.join().unwrap()
    });
    assert_eq!(json(&seen)["servers"][0]["verdict"], "never formed", "{}", seen.stdout);
}

#[test]
fn an_error_is_not_an_empty_answer() {
    for (answer, part) in [
        (Answer::ServFail, "answered Server Failure"),
        (Answer::Refused, "answered Query Refused"),
        (Answer::Silence, "no answer"),
        (Answer::GarbageAfterId(vec![0xff; 40]), "could not resolve"),
        (Answer::Garbage(vec![0xff; 40]), "could not resolve"),
    ] {
        let dns = ScriptedDns::zone();
        dns.set_all(NAME, &answer);
        let seen = discover(&dns, &format!("dns:{NAME}"), &[]);
        assert_eq!(seen.code, 69, "{answer:?}: {}", seen.stdout);
        seen.ends(69, &[&format!("source dns:{NAME} failed"), part]);
    }
    let looping = ScriptedDns::zone();
    looping.set(NAME, RecordType::CNAME, Answer::CnameLoop);
    discover(&looping, &format!("dns:{NAME}"), &[]).ends(69, &["it is an alias that leads to no address"]);
    let dns = ScriptedDns::zone();
    assert_eq!(
        verdicts(&discover(&dns, &format!("dns:{NAME}"), &[])),
        [],
        "a name that does not exist is an empty answer"
    );
}

#[test]
fn a_name_of_thousands_of_addresses_is_refused() {
    let dns = ScriptedDns::zone();
    let four = (0..3000u32).map(|n| IpAddr::from((0x0a00_0000 + n).to_be_bytes())).collect();
    let six = (0..2000u128).map(|n| IpAddr::from((0xfd00 << 112 | n).to_be_bytes())).collect();
    dns.set(NAME, RecordType::A, Answer::Truncated(Box::new(Answer::Addresses(four))));
    dns.set(NAME, RecordType::AAAA, Answer::Truncated(Box::new(Answer::Addresses(six))));
    let seen = discover(&dns, &format!("dns:{NAME}"), &["--discover-timeout=5s"]);
    assert_eq!(seen.code, 64, "a flag is given once");
    let seen = Convene::new(["discover", "--discover", &format!("dns:{NAME}")])
        .words([format!("--nameserver={}", dns.addr())])
        .run();
    seen.ends(69, &["has 5000 addresses", "at most 256", "no headless Service"]);
}

#[test]
fn every_nameserver_is_asked_before_a_name_counts_as_unknown() {
    let (block, knows, knows_not) = (loopback_block(), ScriptedDns::zone(), ScriptedDns::zone());
    knows.set(NAME, RecordType::A, Answer::Addresses(ips(&block, &[2])));
    knows.set(NAME, RecordType::AAAA, Answer::NoData);
    knows_not.set_all("broken.", &Answer::ServFail);
    let _two = Server::never_formed(&block, 2);
    let seen = Convene::new(["discover", "--format=netaddrs", "--discover", &format!("dns:{NAME}")])
        .words([format!("--nameserver={},{}", knows_not.addr(), knows.addr())])
        .run();
    assert_eq!((seen.code, seen.stdout), (0, format!("{}\n", block.ip(2))));
}

#[test]
fn without_a_nameserver_the_source_fails_and_says_what_to_give() {
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().join("resolv.conf");
    std::fs::write(&empty, "").unwrap();
    let ask = |conf: &str| Convene::new(["discover", "--discover=dns:consul.example.", "--resolv-conf", conf]).run();
    ask("/does/not/exist").ends(69, &["could not read /does/not/exist", "give --nameserver ADDR:PORT"]);
    ask(empty.to_str().unwrap()).ends(69, &["names no nameserver", "give --nameserver ADDR:PORT"]);
}

#[test]
fn one_source_may_fail_alone() {
    let (block, dns) = (loopback_block(), ScriptedDns::zone());
    dns.set_all(NAME, &Answer::ServFail);
    let _two = Server::never_formed(&block, 2);
    let seen = json(&discover(&dns, &format!("dns:{NAME};static:{}", block.ip(2)), &[]));
    assert!(seen["sources"][0]["error"].as_str().unwrap().contains("Server Failure"));
    assert_eq!((&seen["sources"][1]["named"], &seen["servers"][0]["verdict"]), (&1.into(), &"never formed".into()));
}

#[test]
fn the_table_shows_servers_and_sources() {
    let (block, dns) = (loopback_block(), ScriptedDns::zone());
    let _two = Server::never_formed(&block, 2);
    let seen = Convene::new(["discover", "--discover", &format!("static:{},{}", block.ip(2), block.ip(3))])
        .words([format!("--nameserver={}", dns.addr())])
        .run();
    let lines: Vec<&str> = seen.stdout.lines().collect();
    assert!(
        lines[0].starts_with("SERVER ")
            && lines[1].ends_with("never formed")
            && lines[2].contains("absent: ")
            && lines[3].starts_with("source static:"),
        "{}",
        seen.stdout
    );
}

/// A start with an empty disk: what it ends in, given what DNS and the agents answer.
fn start(data: &std::path::Path, dns: &ScriptedDns, source: &str, own: &str, more: &[&str]) -> Ended {
    Convene::new([
        "init",
        "--role=server",
        "--node-name=s1",
        "--expect=3",
        "--discover-timeout=300ms",
        "--wait=0s",
        "--resolv-conf=/does/not/exist",
        "--discover",
        source,
        "--advertise",
        own,
    ])
    .words([format!("--nameserver={}", dns.addr()), format!("--data-dir={}", data.display())])
    .words(more)
    .run()
}

fn rendered(data: &std::path::Path) -> Value {
    serde_json::from_slice(&std::fs::read(data.join("convene/agent.json")).unwrap()).unwrap()
}

/// Golden: users merge this file with their own, so its keys and their form are an interface.
#[test]
fn the_rendered_file_is_this_text() {
    let render = |words: &[&str], envs: &str| {
        let data = tempfile::tempdir().unwrap();
        let call =
            Convene::new(["init", "--server-port=1", "--resolv-conf=/does/not/exist", "--discover-timeout=100ms"]);
        let ended = call.words(words).words([format!("--data-dir={}", data.path().display())]).envs(envs).run();
        assert_eq!(ended.code, 0, "{}", ended.stderr);
        std::fs::read_to_string(data.path().join("convene/agent.json")).unwrap()
    };
    let six = render(
        &["--role=server", "--expect=2", "--discover=static:[::1]:8401"],
        "POD_NAME=consul-server-0 POD_IP=fd00::7",
    );
    assert_eq!(
        six,
        r#"{
  "advertise_addr": "fd00::7",
  "bind_addr": "::",
  "bootstrap_expect": 2,
  "leave_on_terminate": false,
  "node_name": "consul-server-0",
  "rejoin_after_leave": true,
  "retry_interval": "1s",
  "retry_join": [
    "[::1]:8401"
  ],
  "server": true,
  "skip_leave_on_interrupt": true
}
"#
    );
    let client = render(&["--role=client", "--discover=static:127.255.255.253"], "NODE_NAME=worker-1");
    assert_eq!(
        client,
        r#"{
  "advertise_reconnect_timeout": "14400s",
  "node_meta": {
    "k8s-node": "worker-1"
  },
  "node_name": "worker-1",
  "rejoin_after_leave": true,
  "retry_interval": "1s",
  "retry_join": [
    "127.255.255.253"
  ],
  "server": false
}
"#
    );
}

#[test]
fn nothing_is_founded_while_a_source_fails() {
    let (block, dns, data) = (loopback_block(), ScriptedDns::zone(), tempfile::tempdir().unwrap());
    dns.set_all(NAME, &Answer::ServFail);
    let ended = start(data.path(), &dns, &format!("dns:{NAME}"), &block.ip(1).to_string(), &[]);
    ended.ends(75, &["rule 8", "an error is not an empty answer"]);
    assert!(!data.path().join("node-id").exists(), "nothing is written before it is decided");
}

#[test]
fn an_empty_server_joins_a_formed_cluster_without_an_expect_and_waits_while_it_is_listed() {
    let (block, dns, data) = (loopback_block(), ScriptedDns::zone(), tempfile::tempdir().unwrap());
    let leader = format!("\"{}\"", block.at(2, 8300));
    let own = block.ip(1).to_string();
    {
        let listed = format!("[\"{}\",\"{}\"]", block.at(1, 8300), block.at(2, 8300));
        let _two = Server::reporting(&block, 2, &leader, &listed);
        start(data.path(), &dns, &format!("static:{}", block.ip(2)), &own, &[])
            .ends(75, &["rule 5", "still lists our address", "remove-peer"]);
    }
    let _two = Server::reporting(&block, 2, &leader, &format!("[\"{}\"]", block.at(2, 8300)));
    start(data.path(), &dns, &format!("static:{}", block.ip(2)), &own, &[]).ends(0, &[]);
    let agent = rendered(data.path());
    assert_eq!(
        (agent.get("bootstrap_expect"), &agent["retry_join"]),
        (None, &serde_json::json!([block.ip(2).to_string()]))
    );
}

#[test]
fn a_server_with_data_starts_although_dns_and_all_peers_are_silent() {
    let (block, dns, data) = (loopback_block(), ScriptedDns::zone(), tempfile::tempdir().unwrap());
    dns.set_all(NAME, &Answer::Silence);
    std::fs::create_dir_all(data.path().join("raft/wal")).unwrap();
    let ended = start(data.path(), &dns, &format!("dns:{NAME}"), &block.ip(1).to_string(), &[]);
    ended.ends(0, &[]);
    assert!(ended.stderr.contains("rule=4"), "{}", ended.stderr);
    assert_eq!(rendered(data.path())["bootstrap_expect"], 3, "the formation may have been interrupted");
}

#[test]
fn a_flapping_answer_never_shrinks_what_is_known() {
    let (block, data) = (loopback_block(), tempfile::tempdir().unwrap());
    let dns = ScriptedDns::zone();
    dns.set(NAME, RecordType::A, Answer::Addresses(ips(&block, &[2])));
    dns.set(NAME, RecordType::AAAA, Answer::NoData);
    // The name's address answers as a formed server that still lists us, so convene waits and looks again and again.
    let listed = format!("[\"{}\",\"{}\"]", block.at(1, 8300), block.at(2, 8300));
    let server = Server::reporting(&block, 2, &format!("\"{}\"", block.at(2, 8300)), &listed);
    let waiting = Convene::new([
        "init",
        "--role=server",
        "--node-name=s1",
        "--expect=3",
        "--discover-timeout=300ms",
        "--wait=60s",
        "--resolv-conf=/does/not/exist",
    ])
    .words([format!("--discover=dns:{NAME}"), format!("--advertise={}", block.ip(1))])
    .words([format!("--nameserver={}", dns.addr()), format!("--data-dir={}", data.path().display())])
    .spawn();
    server.http.wait_for("/v1/status/peers", 1);
    for answer in [Answer::NxDomain, Answer::Refused, Answer::Silence, Answer::ServFail, Answer::NoData] {
        let peers = |request: &&support::http::Request| request.target == "/v1/status/peers";
        let asked = server.http.requests().iter().filter(peers).count();
        dns.set(NAME, RecordType::A, answer);
        // Two surveys more, one of them begun after the change.
        server.http.wait_for("/v1/status/peers", asked + 3);
    }
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(waiting.id().try_into().unwrap()),
        nix::sys::signal::Signal::SIGTERM,
    )
    .unwrap();
    let ended = Ended::of(waiting.wait_with_output().unwrap());
    assert_eq!(ended.code, 143, "{}", ended.stderr);
    assert!(!ended.stderr.contains("rule=8"), "{}", ended.stderr);
}

#[test]
fn a_term_while_waiting_ends_at_once_with_143_and_nothing_written() {
    let (block, dns, data) = (loopback_block(), ScriptedDns::zone(), tempfile::tempdir().unwrap());
    dns.set_all(NAME, &Answer::Silence);
    let waiting = Convene::new([
        "run",
        "--node-name=s1",
        "--discover-timeout=60s",
        "--resolv-conf=/does/not/exist",
        "--expect=3",
    ])
    .words([
        format!("--discover=dns:{NAME}"),
        format!("--advertise={}", block.ip(1)),
        format!("--nameserver={}", dns.addr()),
    ])
    .words([format!("--data-dir={}", data.path().display())])
    .words(["--", "consul", "agent", "-server"])
    .spawn();
    dns.wait_for(NAME, RecordType::A, 1);
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(waiting.id().try_into().unwrap()),
        nix::sys::signal::Signal::SIGTERM,
    )
    .unwrap();
    let ended = Ended::of(waiting.wait_with_output().unwrap());
    assert_eq!(ended.code, 143, "{}", ended.stderr);
    assert!(!data.path().join("node-id").exists());
}

#[test]
fn an_agent_that_reports_thousands_of_peers_is_not_believed() {
    let (block, dns) = (loopback_block(), ScriptedDns::zone());
    let many: Vec<String> = (0..3000).map(|n| format!("\"127.200.{}.{}:8300\"", n / 250, n % 250 + 1)).collect();
    let _two = Server::reporting(&block, 2, "\"\"", &format!("[{}]", many.join(",")));
    let seen = json(&discover(&dns, &format!("static:{}", block.ip(2)), &[]));
    assert_eq!(seen["servers"].as_array().unwrap().len(), 1);
    assert!(seen["servers"][0]["why"].as_str().unwrap().contains("3000 raft peers"), "{seen}");
}

#[test]
fn a_name_given_by_hand_with_two_addresses_is_two_servers() {
    let (block, dns, data) = (loopback_block(), ScriptedDns::zone(), tempfile::tempdir().unwrap());
    dns.set(NAME, RecordType::A, Answer::Addresses(ips(&block, &[2, 3])));
    dns.set(NAME, RecordType::AAAA, Answer::NoData);
    let _two = Server::never_formed(&block, 2);
    let _three = OpenPort::at(&block.at(3, 8300));
    let ended = start(data.path(), &dns, &format!("static:{NAME}"), &block.ip(1).to_string(), &[]);
    ended.ends(75, &["rule 8", &format!("({}) is unknown", block.ip(3))]);
}

#[test]
fn names_that_only_look_like_ours_are_others() {
    let dns = ScriptedDns::zone();
    let seen = discover(&dns, "static:consul.a.example,consul.b.example", &["--node-name=consul"]);
    assert_eq!(verdicts(&seen).len(), 2, "{}", seen.stdout);
}

#[test]
fn a_second_convene_waits_for_the_volume_and_says_so() {
    let (block, dns, data) = (loopback_block(), ScriptedDns::zone(), tempfile::tempdir().unwrap());
    dns.set_all(NAME, &Answer::Silence);
    let own = block.ip(1).to_string();
    let first = Convene::new([
        "init",
        "--role=server",
        "--node-name=s1",
        "--expect=3",
        "--discover-timeout=60s",
        "--resolv-conf=/does/not/exist",
    ])
    .words([format!("--discover=dns:{NAME}"), format!("--advertise={own}")])
    .words([format!("--nameserver={}", dns.addr()), format!("--data-dir={}", data.path().display())])
    .spawn();
    dns.wait_for(NAME, RecordType::A, 1);
    let second = start(data.path(), &dns, &format!("static:{}", block.ip(2)), &own, &[]);
    second.ends(75, &["another convene has this volume"]);
    assert!(!data.path().join("node-id").exists());
    let live = Convene::new(["check", "live", "--data-dir"])
        .words([data.path()])
        .env("CONSUL_HTTP_ADDR", block.at(1, 8500))
        .run();
    assert_eq!((live.code, live.stdout.as_str()), (0, "live: convene waits or stops\n"));
    term(&first);
    assert_eq!(Ended::of(first.wait_with_output().unwrap()).code, 143);
    let live = Convene::new(["check", "live", "--data-dir"])
        .words([data.path()])
        .env("CONSUL_HTTP_ADDR", block.at(1, 8500))
        .run();
    assert_eq!(live.code, 1, "{}", live.stdout);
}

fn term(child: &std::process::Child) {
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(child.id().try_into().unwrap()),
        nix::sys::signal::Signal::SIGTERM,
    )
    .unwrap();
}

#[test]
fn a_term_ends_discover_as_it_ends_any_program() {
    let dns = ScriptedDns::zone();
    dns.set_all(NAME, &Answer::Silence);
    let asking = Convene::new(["discover", "--discover-timeout=60s", "--discover", &format!("dns:{NAME}")])
        .words([format!("--nameserver={}", dns.addr())])
        .spawn();
    dns.wait_for(NAME, RecordType::A, 1);
    term(&asking);
    assert_eq!(Ended::of(asking.wait_with_output().unwrap()).code, 143);
}

#[test]
fn a_server_with_data_starts_although_its_own_agents_name_cannot_be_resolved() {
    let (block, data) = (loopback_block(), tempfile::tempdir().unwrap());
    std::fs::create_dir_all(data.path().join("raft/wal")).unwrap();
    let ended = Convene::new(["run", "--role=server", "--node-name=s1", "--expect=3", "--resolv-conf=/does/not/exist"])
        .words([
            format!("--discover=static:{}", block.ip(2)),
            format!("--advertise={}", block.ip(1)),
            format!("--data-dir={}", data.path().display()),
        ])
        .env("CONSUL_HTTP_ADDR", "http://consul.invalid:8500")
        .words(["--", "sh", "started.sh"])
        .within(data.path())
        .run();
    // The script is not there: what counts is that it was begun.
    assert!(ended.stderr.contains("started the agent"), "{}", ended.stderr);
}

/// The own agent, scripted, and the hook that asks it to leave.
fn leave(agent: &ScriptedHttp, words: &[&str]) -> Ended {
    let data = tempfile::tempdir().unwrap();
    Convene::new(["leave", "--leave=always", "--node-name=s1", "--grace-period=5s"])
        .words([format!("--data-dir={}", data.path().display())])
        .words(words)
        .env("CONSUL_HTTP_ADDR", agent.addr().to_string())
        .run()
}

#[test]
fn a_client_leaves_by_its_agents_word_although_no_server_is_there() {
    let agent = ScriptedHttp::start();
    agent.expect(Call::get("/v1/agent/self", Reply::Json(403, "Permission denied".to_owned())));
    agent.expect(Call::put("/v1/agent/leave", Reply::ok("")));
    leave(&agent, &["--role=client"]).ends(0, &["the agent answered that it has left"]);
    agent.finish();
}

/// The agent of a cluster's only server, and what it answers to the order to leave.
fn only_server(to_leave: Reply) -> ScriptedHttp {
    let agent = ScriptedHttp::start();
    agent.always(Call::get("/v1/agent/self", Reply::Json(403, "Permission denied".to_owned())));
    agent.always(Call::get("/v1/status/peers", Reply::ok("[\"127.0.0.1:8300\"]")));
    agent.expect(Call::put("/v1/agent/leave", to_leave));
    agent
}

#[test]
fn a_leave_that_is_not_allowed_names_the_policy() {
    let agent = only_server(Reply::Json(403, "Permission denied".to_owned()));
    leave(&agent, &["--role=server", "--advertise=127.0.0.1"])
        .ends(69, &["agent \"s1\" { policy = \"write\" }", "Permission denied"]);
    agent.finish();
}

#[test]
fn a_leave_that_the_agent_never_answers_is_not_taken_for_done() {
    let agent = only_server(Reply::Nothing);
    leave(&agent, &["--role=server", "--advertise=127.0.0.1"]).ends(69, &["could not confirm the leave within"]);
    agent.finish();
}

#[test]
fn a_token_goes_to_the_own_agent_and_to_no_other_over_plain_http() {
    let (block, dns) = (loopback_block(), ScriptedDns::zone());
    let agent = ScriptedHttp::start();
    agent.expect(
        Call::get("/v1/agent/self", Reply::Json(403, "Permission denied".to_owned()))
            .with_header("x-consul-token", "b1gs3cret"),
    );
    agent.expect(Call::put("/v1/agent/leave", Reply::ok("")).with_header("x-consul-token", "b1gs3cret"));
    let data = tempfile::tempdir().unwrap();
    let token = data.path().join("token");
    std::fs::write(&token, "b1gs3cret\n").unwrap();
    let left = Convene::new(["leave", "--leave=always", "--role=client", "--node-name=s1"])
        .words([format!("--data-dir={}", data.path().display())])
        .env("CONSUL_HTTP_ADDR", agent.addr().to_string())
        .env("CONSUL_HTTP_TOKEN_FILE", &token)
        .run();
    assert_eq!(left.code, 0, "{}", left.stderr);
    assert!(!left.stderr.contains("b1gs3cret"));
    agent.finish();
    let two = Server::never_formed(&block, 2);
    let seen = Convene::new(["discover", "--discover", &format!("static:{}", block.ip(2))])
        .words([format!("--nameserver={}", dns.addr())])
        .env("CONSUL_HTTP_TOKEN_FILE", &token)
        .run();
    assert_eq!(seen.code, 0);
    assert!(two.http.requests().iter().all(|request| request.header("x-consul-token").is_none()));
}

/// A Pod of a StatefulSet of two whose own Service has the address `.9`, which leads back to it, and whose sibling's is `.8`.
struct Seated {
    block: LoopbackBlock,
    dns: ScriptedDns,
    data: tempfile::TempDir,
    port: u16,
}

impl Seated {
    fn new() -> Self {
        let (block, dns, data) = (loopback_block(), ScriptedDns::zone(), tempfile::tempdir().unwrap());
        // The hairpin is tried on every address of the machine: a port that nobody else has, as nobody else has the block.
        let [_, second, third, _] = block.ip(0).octets();
        let port = 10_000 + u16::from(second % 64) * 256 + u16::from(third);
        let seated = Self { block, dns, data, port };
        seated.service(0, Answer::Addresses(ips(&seated.block, &[9])));
        seated.service(1, Answer::Addresses(ips(&seated.block, &[8])));
        seated
    }

    fn service(&self, ordinal: u8, answer: Answer) {
        let name = format!("consul-server-{ordinal}.prod.svc.cluster.local.");
        self.dns.set(&name, RecordType::A, answer);
        self.dns.set(&name, RecordType::AAAA, Answer::NoData);
    }

    /// Our own Service has an address that leads nowhere; gives it.
    fn leads_nowhere(&self) -> IpAddr {
        // A broadcast address: nobody can be reached there, and it never leaves the machine.
        let nowhere = "127.255.255.255".parse().unwrap();
        self.service(0, Answer::Addresses(vec![nowhere]));
        nowhere
    }

    fn init(&self, words: &[&str]) -> Ended {
        self.call(words).run()
    }

    fn call(&self, words: &[&str]) -> Convene {
        Convene::new([
            "init",
            "--role=server",
            "--expect=2",
            "--wait=0s",
            "--discover-timeout=300ms",
            "--resolv-conf=/does/not/exist",
        ])
        .words([format!("--nameserver={}", self.dns.addr()), format!("--server-port={}", self.port)])
        .words([format!("--data-dir={}", self.data.path().display())])
        .words(words)
        .envs("POD_NAME=consul-server-0 POD_NAMESPACE=prod")
        .env("POD_IP", self.block.ip(1).to_string())
    }

    fn rendered(&self) -> (String, Value) {
        let agent = rendered(self.data.path());
        (agent["advertise_addr"].as_str().unwrap().to_owned(), agent["retry_join"].clone())
    }
}

#[test]
fn the_address_of_the_pods_own_service_is_advertised_and_the_others_are_joined_at_theirs() {
    let seated = Seated::new();
    seated.init(&[]).ends(0, &[]);
    assert_eq!(
        seated.rendered(),
        (seated.block.ip(9).to_string(), serde_json::json!([seated.block.ip(8).to_string()]))
    );
    let record = std::fs::read_to_string(seated.data.path().join("convene/record.json")).unwrap();
    assert!(record.contains("\"stable\": true"), "{record}");
}

#[test]
fn by_dns_alone_that_address_may_be_tried_beside_the_agent_too() {
    let seated = Seated::new();
    let nowhere = seated.leads_nowhere();
    seated.init(&["--hairpin=beside"]).ends(0, &[]);
    let behind_the_headless_service = serde_json::json!(["consul-server.prod.svc.cluster.local"]);
    assert_eq!(seated.rendered(), (nowhere.to_string(), behind_the_headless_service));
    let record = std::fs::read_to_string(seated.data.path().join("convene/record.json")).unwrap();
    assert!(record.contains("\"untried\": {"), "{record}");
}

#[test]
fn what_init_has_prepared_is_started_once_the_pod_reaches_its_own_service_or_a_second_later() {
    let start = |seated: &Seated, words: &[&str]| {
        Convene::new(["run"])
            .words(words)
            .words([format!("--data-dir={}", seated.data.path().display()), format!("--server-port={}", seated.port)])
            .words(["--", "echo", "the agent"])
            .envs("POD_NAME=consul-server-0 POD_NAMESPACE=prod POD_IP=127.0.0.1")
            .run()
    };
    let seated = Seated::new();
    start(&seated, &["--exec", "--prepared"]).ends(75, &["record.json", "convene init must run before it"]);
    start(&seated, &["--prepared"]).ends(64, &["--prepared needs --exec"]);
    let started = |seated: &Seated, reached: &str| {
        let ended = start(seated, &["--exec", "--prepared"]);
        assert_eq!((ended.code, ended.stdout.as_str()), (0, "the agent\n"), "{}", ended.stderr);
        assert!(ended.stderr.contains(reached), "{}", ended.stderr);
    };
    seated.init(&[]).ends(0, &[]);
    started(&seated, "reached=true");
    let seated = Seated::new();
    seated.leads_nowhere();
    seated.init(&["--hairpin=beside"]).ends(0, &[]);
    started(&seated, "reached=false");
}

#[test]
fn a_term_before_a_prepared_start_ends_it_with_143() {
    let seated = Seated::new();
    seated.init(&[]).ends(0, &[]);
    let script = "kill -TERM $$; exec \"$@\"";
    let mut call = std::process::Command::new("env");
    call.args([
        "--block-signal=TERM",
        "sh",
        "-c",
        script,
        "sh",
        env!("CARGO_BIN_EXE_convene"),
        "run",
        "--exec",
        "--prepared",
    ]);
    call.arg(format!("--data-dir={}", seated.data.path().display()));
    call.args([&format!("--server-port={}", seated.port), "--", "echo", "the agent"]);
    let ended = call.env("POD_NAME", "consul-server-0").env("POD_IP", "127.0.0.1").output().unwrap();
    assert_eq!((ended.status.code(), ended.stdout.as_slice()), (Some(143), &[][..]));
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert!(said.contains("stopped before the agent was started"), "it waited until then: {said}");
}

#[test]
fn without_such_a_service_the_pods_own_address_is_advertised() {
    let seated = Seated::new();
    seated.service(0, Answer::NxDomain);
    seated.init(&["--advertise=service"]).ends(75, &["there is no Service consul-server-0", "--advertise=pod"]);
    seated.init(&[]).ends(0, &[]);
    assert_eq!(seated.rendered().0, seated.block.ip(1).to_string());
    let ordered = Seated::new();
    ordered.init(&["--advertise=pod"]).ends(0, &[]);
    assert_eq!(ordered.rendered().0, ordered.block.ip(1).to_string());
}

#[test]
fn an_error_means_the_recorded_address_and_only_a_missing_name_that_the_service_is_gone() {
    let seated = Seated::new();
    seated.service(0, Answer::ServFail);
    seated.init(&[]).ends(75, &["whether Service consul-server-0 exists cannot be told", "Server Failure"]);
    seated.service(0, Answer::Addresses(ips(&seated.block, &[9])));
    seated.init(&[]).ends(0, &[]);
    for answer in [Answer::ServFail, Answer::Refused, Answer::Silence] {
        seated.service(0, answer);
        seated.init(&[]).ends(0, &[]);
        assert_eq!(seated.rendered().0, seated.block.ip(9).to_string());
    }
    seated.service(0, Answer::NxDomain);
    seated.init(&[]).ends(75, &["Service consul-server-0 is gone", &seated.block.ip(9).to_string(), "--advertise=pod"]);
    seated.service(0, Answer::Addresses(ips(&seated.block, &[7])));
    seated.init(&[]).ends(0, &[]);
    assert_eq!(seated.rendered().0, seated.block.ip(7).to_string(), "a Service that was made anew has another address");
}

/// A broadcast address, which nobody can be reached at, and which never leaves the machine.
const NOBODYS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(127, 255, 255, 255));

#[test]
fn an_address_that_dns_still_gives_for_a_service_made_anew_is_not_taken_for_good() {
    let seated = Seated::new();
    seated.init(&[]).ends(0, &[]);
    seated.service(0, Answer::Addresses(vec![NOBODYS]));
    let starting = seated.call(&[]).spawn();
    let name = "consul-server-0.prod.svc.cluster.local.";
    let asked = seated.dns.asked(name, RecordType::A, support::dns::Transport::Udp);
    seated.dns.wait_for(name, RecordType::A, asked + 2);
    seated.service(0, Answer::Addresses(ips(&seated.block, &[7])));
    Ended::of(starting.wait_with_output().unwrap()).ends(0, &[]);
    assert_eq!(seated.rendered().0, seated.block.ip(7).to_string());
}

#[test]
fn a_name_of_one_label_is_not_asked_at_the_root() {
    let dns = ScriptedDns::zone();
    dns.set("consul.prod.svc.cluster.local.", RecordType::A, Answer::NxDomain);
    let folder = tempfile::tempdir().unwrap();
    let resolv = folder.path().join("resolv.conf");
    std::fs::write(&resolv, "search prod.svc.cluster.local\nnameserver 127.0.0.1\n").unwrap();
    let seen = Convene::new(["discover", "--format=json", "--discover=dns:consul"])
        .words([format!("--nameserver={}", dns.addr()), format!("--resolv-conf={}", resolv.display())])
        .run();
    assert_eq!(json(&seen)["sources"][0]["named"], 0);
    assert!(dns.log().iter().all(|asked| asked.name != "consul."), "{:?}", dns.log());
}

#[test]
fn a_convene_that_tries_its_own_address_on_the_server_port_is_not_taken_for_a_server() {
    let (block, dns) = (loopback_block(), ScriptedDns::zone());
    let listener = support::accept::listen(&block.at(2, 8300));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let _ = std::io::Write::write_all(&mut stream.unwrap(), b"convene\n12345678");
        }
    });
    let _silent = OpenPort::at(&block.at(3, 8300));
    let seen = discover(&dns, &format!("static:{},{}", block.ip(2), block.ip(3)), &[]);
    let verdicts: Vec<String> = verdicts(&seen).into_iter().map(|(_, verdict)| verdict).collect();
    assert_eq!(verdicts, ["absent", "unknown"], "who does not say so may be a server whose HTTP API cannot be asked");
}

// === strangers ===

/// A server of a cluster that tells its ID.
fn of_cluster(block: &LoopbackBlock, host: u8, cluster: &str, leader: u8, peers: &[u8]) -> Server {
    let peers: Vec<String> = peers.iter().map(|peer| format!("\"{}\"", block.at(*peer, 8300))).collect();
    let leader = format!("\"{}\"", block.at(leader, 8300));
    let server = Server::reporting(block, host, &leader, &format!("[{}]", peers.join(",")));
    let roots = format!("{{\"ActiveRootID\":\"a1\",\"TrustDomain\":\"{cluster}.consul\",\"Roots\":[]}}");
    server.http.always(Call::get("/v1/connect/ca/roots", Reply::ok(&roots)));
    server
}

/// A name that has these addresses.
fn publish(dns: &ScriptedDns, name: &str, addresses: &[IpAddr]) {
    dns.set(name, RecordType::A, Answer::Addresses(addresses.to_vec()));
    dns.set(name, RecordType::AAAA, Answer::NoData);
}

/// A volume with raft data of the cluster `ours`, whose servers were these.
fn with_data(data: &std::path::Path, own: IpAddr, servers: &[IpAddr]) {
    std::fs::create_dir_all(data.join("raft/wal")).unwrap();
    std::fs::create_dir_all(data.join("convene")).unwrap();
    let record = serde_json::json!({
        "version": 1, "owner": {"namespace": null, "statefulset": null, "pod": "s1"},
        "node_id": "6b1d3a52-9c0e-4f57-8a34-2f0f6f1d9c11", "formed": true, "advertise": own, "addresses": [own],
        "servers": servers, "cluster": "ours.consul",
    });
    std::fs::write(data.join("convene/record.json"), record.to_string()).unwrap();
}

#[test]
fn a_server_of_another_datacenter_is_named_and_not_joined() {
    let (block, dns, data) = (loopback_block(), ScriptedDns::zone(), tempfile::tempdir().unwrap());
    let [two, three, four] = [2, 3, 4].map(|host| Server::never_formed(&block, host));
    // Each names its own one first.
    two.http.always(Call::get("/v1/catalog/datacenters", Reply::ok("[\"dc2\",\"dc1\"]")));
    three.http.always(Call::get("/v1/catalog/datacenters", Reply::ok("[\"dc1\",\"dc2\"]")));
    // Who does not tell is of no other one.
    four.http.always(Call::get("/v1/catalog/datacenters", Reply::Json(403, "blocked".to_owned())));
    publish(&dns, NAME, &ips(&block, &[2, 3, 4]));
    let own = block.ip(1).to_string();
    let by_hand = format!("static:{},{}", block.ip(2), block.ip(3));
    let part = "a stranger: its datacenter is dc2, and ours is dc1";
    start(data.path(), &dns, &by_hand, &own, &["--datacenter=DC1"]).ends(75, &["rule 8", part]);
    let found = start(data.path(), &dns, &format!("dns:{NAME}"), &own, &["--datacenter=dc1"]);
    found.ends(0, &[]);
    assert!(found.stderr.contains(&format!("not joined: {part}")), "{}", found.stderr);
    assert_eq!(rendered(data.path())["retry_join"], serde_json::json!([block.ip(3), block.ip(4)]));
    let shown = discover(&dns, &format!("dns:{NAME}"), &["--datacenter=dc1"]);
    assert_eq!(verdicts(&shown)[0].1, "stranger");
    let unknown = discover(&dns, &format!("dns:{NAME}"), &[]);
    assert_eq!(verdicts(&unknown)[0].1, "never formed", "ours is not known");
    let bare =
        Convene::new(["discover", "--format=netaddrs", "--datacenter=dc1", "--discover", &format!("dns:{NAME}")])
            .words([format!("--nameserver={}", dns.addr())])
            .run();
    assert_eq!(bare.stdout, format!("{}\n{}\n", block.ip(3), block.ip(4)));
}

#[test]
fn a_server_with_data_joins_no_server_of_another_cluster_wherever_its_address_comes_from() {
    let (block, dns, data) = (loopback_block(), ScriptedDns::zone(), tempfile::tempdir().unwrap());
    with_data(data.path(), block.ip(1).into(), &ips(&block, &[2, 3]));
    // Both addresses of our old servers are another cluster's by now, and it lists them both.
    let _theirs = [2, 3].map(|host| of_cluster(&block, host, "theirs", 2, &[2, 3]));
    publish(&dns, NAME, &ips(&block, &[2, 3]));
    for source in [format!("dns:{NAME}"), format!("static:{},{}", block.ip(2), block.ip(3))] {
        let ended = start(data.path(), &dns, &source, &block.ip(1).to_string(), &[]);
        ended.ends(0, &[]);
        let named = format!("not joined: a stranger: it belongs to another cluster (leader {}", block.at(2, 8300));
        assert!(ended.stderr.contains("rule=4") && ended.stderr.contains(&named), "{}", ended.stderr);
        assert_eq!(rendered(data.path())["retry_join"], serde_json::json!([]));
    }
    let shown = json(&discover(&dns, &format!("dns:{NAME}"), &["--data-dir", data.path().to_str().unwrap()]));
    assert_eq!(
        (&shown["servers"][0]["verdict"], &shown["servers"][0]["leader"]),
        (&"stranger".into(), &block.at(2, 8300).into())
    );
}

#[test]
fn the_servers_known_last_are_joined_only_when_they_show_that_they_are_of_our_cluster() {
    let (block, dns) = (loopback_block(), ScriptedDns::zone());
    dns.set_all(NAME, &Answer::ServFail);
    let own = block.ip(1);
    let joined = |servers: &[u8]| {
        let data = tempfile::tempdir().unwrap();
        with_data(data.path(), own.into(), &ips(&block, servers));
        start(data.path(), &dns, &format!("dns:{NAME}"), &own.to_string(), &[]).ends(0, &[]);
        let joined = rendered(data.path())["retry_join"].clone();
        joined.as_array().unwrap().iter().map(|ip| ip.as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let _ours = of_cluster(&block, 2, "ours", 2, &[1, 2]);
    let _theirs = of_cluster(&block, 3, "theirs", 3, &[3]);
    // Without a leader a server cannot say which cluster it is of: that it lists us tells.
    let _lists_us =
        Server::reporting(&block, 4, "\"\"", &format!("[\"{}\",\"{}\"]", block.at(1, 8300), block.at(4, 8300)));
    let _lists_others =
        Server::reporting(&block, 5, "\"\"", &format!("[\"{}\",\"{}\"]", block.at(5, 8300), block.at(6, 8300)));
    let _empty = Server::never_formed(&block, 7);
    assert_eq!(joined(&[2, 3, 4, 5, 7, 8]), [block.ip(2), block.ip(4)].map(|ip| ip.to_string()));
}

#[test]
fn a_server_that_only_the_leader_lists_is_asked_and_not_joined() {
    let (block, dns, data) = (loopback_block(), ScriptedDns::zone(), tempfile::tempdir().unwrap());
    let _both = [2, 3].map(|host| of_cluster(&block, host, "ours", 2, &[2, 3]));
    start(data.path(), &dns, &format!("static:{}", block.ip(2)), &block.ip(1).to_string(), &[]).ends(0, &[]);
    assert_eq!(rendered(data.path())["retry_join"], serde_json::json!([block.ip(2)]), "gossip spreads the other one");
}

#[test]
fn an_empty_server_waits_where_an_outdated_name_leads_to_another_cluster() {
    let (block, dns, data) = (loopback_block(), ScriptedDns::zone(), tempfile::tempdir().unwrap());
    let own = block.ip(1).to_string();
    let sibling = |ordinal: u8| format!("consul-server-{ordinal}.consul-server.prod.svc.cluster.local.");
    let init = || {
        Convene::new(["init", "--role=server", "--expect=3", "--wait=0s", "--resolv-conf=/does/not/exist"])
            .words([format!("--nameserver={}", dns.addr()), format!("--data-dir={}", data.path().display())])
            .words(["--advertise", &own])
            .envs("POD_NAME=consul-server-0 POD_NAMESPACE=prod")
            .env("POD_IP", &own)
            .run()
    };
    let _theirs = [2, 3, 4].map(|host| of_cluster(&block, host, "theirs", 2, &[2, 3, 4]));
    publish(&dns, &sibling(1), &ips(&block, &[2]));
    init().ends(75, &["rule 5", "our sources name at most one of its servers"]);
    let _ours = of_cluster(&block, 5, "ours", 5, &[5, 6]);
    let _other = of_cluster(&block, 6, "ours", 5, &[5, 6]);
    publish(&dns, &sibling(2), &ips(&block, &[5]));
    init().ends(75, &["rule 5", "two clusters are reported", "consul-server-1 says", "consul-server-2 says"]);
    publish(&dns, &sibling(1), &ips(&block, &[6]));
    init().ends(0, &[]);
    assert_eq!(rendered(data.path())["retry_join"], serde_json::json!([block.ip(6), block.ip(5)]));
}

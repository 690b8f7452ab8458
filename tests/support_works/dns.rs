//! Does the scripted nameserver answer what it is told, and does a script fail when it must? Asks it with raw messages
//! over UDP and TCP.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::str::FromStr;
use std::time::Duration;

use hickory_proto::op::{Edns, Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RData};

use crate::support::dns::{Answer, Asked, RecordType, ScriptedDns, Step, TTL, Transport};
use crate::support::net::loopback_block;

/// A guard against hanging; every answer takes a millisecond.
const HANG: Duration = Duration::from_secs(30);

fn query(name: &str, kind: RecordType, payload: Option<u16>) -> Message {
    let mut message = Message::query();
    message.add_query(Query::query(Name::from_str(name).unwrap(), kind));
    if let Some(payload) = payload {
        let mut edns = Edns::new();
        edns.set_max_payload(payload);
        message.set_edns(edns);
    }
    message
}

fn send_udp(dns: SocketAddr, message: &Message) -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(HANG)).unwrap();
    socket.connect(dns).unwrap();
    socket.send(&message.to_vec().unwrap()).unwrap();
    socket
}

fn receive(socket: &UdpSocket) -> Vec<u8> {
    let mut buffer = vec![0; 65_535];
    let length = socket.recv(&mut buffer).unwrap();
    buffer.truncate(length);
    buffer
}

fn udp(dns: &ScriptedDns, name: &str, kind: RecordType) -> Message {
    let query = query(name, kind, None);
    let answer = Message::from_vec(&receive(&send_udp(dns.addr(), &query))).unwrap();
    assert_eq!(answer.metadata.id, query.metadata.id);
    assert_eq!(answer.queries, query.queries, "the question is repeated as it was asked");
    answer
}

fn tcp_bytes(stream: &mut TcpStream, query: &Message) -> Vec<u8> {
    let query = query.to_vec().unwrap();
    stream.set_read_timeout(Some(HANG)).unwrap();
    stream.write_all(&[&(query.len() as u16).to_be_bytes()[..], &query].concat()).unwrap();
    let mut length = [0; 2];
    stream.read_exact(&mut length).unwrap();
    let mut bytes = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

fn tcp(dns: &ScriptedDns, name: &str, kind: RecordType) -> Message {
    let mut stream = TcpStream::connect(dns.addr()).unwrap();
    Message::from_vec(&tcp_bytes(&mut stream, &query(name, kind, None))).unwrap()
}

fn ips(message: &Message) -> Vec<IpAddr> {
    message.answers.iter().filter_map(|record| record.data.ip_addr()).collect()
}

fn one(ip: &str) -> Answer {
    Answer::Addresses(vec![ip.parse().unwrap()])
}

/// The text of the panic that `finish` ends with.
fn refusal(dns: ScriptedDns) -> String {
    let refused = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| dns.finish())).unwrap_err();
    refused.downcast_ref::<String>().unwrap().clone()
}

// === zone ===

#[test]
fn a_zone_gives_each_type_its_own_addresses() {
    let dns = ScriptedDns::zone();
    let both = Answer::Addresses(vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()]);
    dns.set_all("consul-server.default.svc.cluster.local", &both);
    let name = "consul-server.default.svc.cluster.local.";
    let four = udp(&dns, name, RecordType::A);
    assert_eq!(ips(&four), ["10.0.0.1".parse::<IpAddr>().unwrap()]);
    assert_eq!(four.answers[0].ttl, TTL);
    assert_eq!(four.answers[0].name, Name::from_str(name).unwrap());
    assert_eq!(ips(&udp(&dns, name, RecordType::AAAA)), ["fd00::1".parse::<IpAddr>().unwrap()]);
    assert_eq!(ips(&tcp(&dns, name, RecordType::A)), ["10.0.0.1".parse::<IpAddr>().unwrap()]);
}

#[test]
fn the_case_of_a_name_and_the_dot_at_its_end_do_not_count() {
    let dns = ScriptedDns::zone();
    dns.set("Consul.Example.", RecordType::A, one("10.0.0.1"));
    assert_eq!(ips(&udp(&dns, "cONSUL.exAMPLE.", RecordType::A)).len(), 1);
    assert_eq!(dns.asked("CONSUL.example", RecordType::A, Transport::Udp), 1);
}

#[test]
fn a_zone_says_nxdomain_of_an_unknown_name_and_no_data_of_an_unknown_type() {
    let dns = ScriptedDns::zone();
    dns.set("a.example", RecordType::A, one("10.0.0.1"));
    let unknown = udp(&dns, "b.example.", RecordType::A);
    assert_eq!(unknown.metadata.response_code, ResponseCode::NXDomain);
    assert_eq!(unknown.authorities[0].record_type(), RecordType::SOA);
    let other = udp(&dns, "a.example.", RecordType::AAAA);
    assert_eq!(other.metadata.response_code, ResponseCode::NoError);
    assert!(other.answers.is_empty());
    assert_eq!(other.authorities[0].record_type(), RecordType::SOA);
}

#[test]
fn a_zone_changes_while_it_runs() {
    let dns = ScriptedDns::zone();
    let code = |dns: &ScriptedDns| udp(dns, "a.example.", RecordType::A).metadata.response_code;
    assert_eq!(code(&dns), ResponseCode::NXDomain);
    dns.set("a.example", RecordType::A, one("10.0.0.1"));
    assert_eq!(code(&dns), ResponseCode::NoError);
    dns.set("a.example", RecordType::A, Answer::ServFail);
    assert_eq!(code(&dns), ResponseCode::ServFail);
    dns.set("a.example", RecordType::A, Answer::Refused);
    assert_eq!(code(&dns), ResponseCode::Refused);
    dns.remove("a.example", RecordType::A);
    assert_eq!(code(&dns), ResponseCode::NXDomain);
    let asked = Asked { name: "a.example".into(), kind: RecordType::A, transport: Transport::Udp };
    assert_eq!(dns.log(), vec![asked; 5]);
}

#[test]
fn an_srv_answer_carries_targets_and_ports() {
    let dns = ScriptedDns::zone();
    let targets = vec![("a.example".to_owned(), 8300), ("B.example.".to_owned(), 8301)];
    dns.set("_consul._tcp.example", RecordType::SRV, Answer::Srv(targets));
    let answer = udp(&dns, "_consul._tcp.example.", RecordType::SRV);
    let had: Vec<(String, u16)> = answer
        .answers
        .iter()
        .map(|r| match &r.data {
            RData::SRV(srv) => (srv.target.to_ascii(), srv.port),
            other => panic!("{other:?} is no SRV"),
        })
        .collect();
    assert_eq!(had, [("a.example.".to_owned(), 8300), ("b.example.".to_owned(), 8301)]);
}

#[test]
fn an_alias_is_followed_to_its_addresses() {
    let dns = ScriptedDns::zone();
    dns.set("a.example", RecordType::CNAME, Answer::Cname("b.example".into()));
    dns.set("b.example", RecordType::A, one("10.0.0.1"));
    let answer = udp(&dns, "a.example.", RecordType::A);
    assert_eq!(
        answer.answers[0].data,
        RData::CNAME(hickory_proto::rr::rdata::CNAME(Name::from_str("b.example.").unwrap()))
    );
    assert_eq!(answer.answers[1].name, Name::from_str("b.example.").unwrap());
    assert_eq!(ips(&answer), ["10.0.0.1".parse::<IpAddr>().unwrap()]);
}

#[test]
fn an_alias_that_leads_nowhere_is_nxdomain_with_the_alias() {
    let dns = ScriptedDns::zone();
    dns.set("a.example", RecordType::CNAME, Answer::Cname("b.example".into()));
    let answer = udp(&dns, "a.example.", RecordType::A);
    assert_eq!((answer.metadata.response_code, answer.answers.len()), (ResponseCode::NXDomain, 1));
}

#[test]
fn a_loop_of_aliases_goes_round_from_either_end() {
    let dns = ScriptedDns::zone();
    dns.set("a.example", RecordType::A, Answer::CnameLoop);
    for name in ["a.example.", "loop.a.example."] {
        let answer = udp(&dns, name, RecordType::A);
        let owners: HashSet<String> = answer.answers.iter().map(|r| r.name.to_ascii()).collect();
        assert_eq!(owners, HashSet::from(["a.example.".to_owned(), "loop.a.example.".to_owned()]));
        assert!(answer.answers.iter().all(|r| r.record_type() == RecordType::CNAME));
    }
}

#[test]
fn a_truncated_answer_is_empty_by_udp_and_whole_by_tcp() {
    let dns = ScriptedDns::zone();
    dns.set("a.example", RecordType::A, Answer::Truncated(Box::new(one("10.0.0.1"))));
    let cut = udp(&dns, "a.example.", RecordType::A);
    assert!(cut.metadata.truncation && cut.answers.is_empty());
    let whole = tcp(&dns, "a.example.", RecordType::A);
    assert!(!whole.metadata.truncation);
    assert_eq!(ips(&whole).len(), 1);
    assert_eq!(dns.asked("a.example", RecordType::A, Transport::Udp), 1);
    assert_eq!(dns.asked("a.example", RecordType::A, Transport::Tcp), 1);
}

#[test]
fn three_thousand_and_two_thousand_addresses_come_whole_by_tcp() {
    let name = format!("{}.default.svc.cluster.local", "consul-server".repeat(4));
    let four: Vec<IpAddr> = (0..3000).map(|n| Ipv4Addr::from_bits(0x0a00_0000 + n).into()).collect();
    let six: Vec<IpAddr> = (0..2000).map(|n| Ipv6Addr::from_bits((0xfd << 120) + n).into()).collect();
    let dns = ScriptedDns::zone();
    dns.set_all(&name, &Answer::Addresses([four.clone(), six.clone()].concat()));
    dns.set("alias.example", RecordType::CNAME, Answer::Cname(name.clone()));
    for asked in [format!("{name}."), "alias.example.".to_owned()] {
        for (kind, all) in [(RecordType::A, &four), (RecordType::AAAA, &six)] {
            let cut = udp(&dns, &asked, kind);
            assert!(cut.metadata.truncation && cut.answers.len() < 40);
            let whole = tcp(&dns, &asked, kind);
            assert!(!whole.metadata.truncation);
            assert_eq!(ips(&whole), *all);
            let last = whole.answers.last().unwrap();
            assert_eq!(last.name, Name::from_str(&format!("{name}.")).unwrap());
        }
    }
}

#[test]
fn an_answer_by_udp_is_as_long_as_the_query_allows() {
    let dns = ScriptedDns::zone();
    let all = (0..100).map(|n| Ipv4Addr::new(10, 0, 0, n).into()).collect();
    dns.set("a.example", RecordType::A, Answer::Addresses(all));
    let answer = receive(&send_udp(dns.addr(), &query("a.example.", RecordType::A, Some(4096))));
    let answer = Message::from_vec(&answer).unwrap();
    assert!(!answer.metadata.truncation && answer.edns.is_some());
    assert_eq!(ips(&answer).len(), 100);
    let short = receive(&send_udp(dns.addr(), &query("a.example.", RecordType::A, None)));
    assert!(short.len() <= 512 && Message::from_vec(&short).unwrap().metadata.truncation);
}

#[test]
fn garbage_is_sent_as_it_stands() {
    let dns = ScriptedDns::zone();
    dns.set("a.example", RecordType::A, Answer::Garbage(b"garbage".to_vec()));
    dns.set("b.example", RecordType::A, Answer::GarbageAfterId(b"garbage".to_vec()));
    let plain = query("a.example.", RecordType::A, None);
    assert_eq!(receive(&send_udp(dns.addr(), &plain)), b"garbage");
    let mut stream = TcpStream::connect(dns.addr()).unwrap();
    assert_eq!(tcp_bytes(&mut stream, &plain), b"garbage");
    let with_id = query("b.example.", RecordType::A, None);
    let had = receive(&send_udp(dns.addr(), &with_id));
    assert_eq!(had, [&with_id.metadata.id.to_be_bytes()[..], b"garbage"].concat());
}

#[test]
fn silence_is_the_only_question_without_an_answer() {
    let dns = ScriptedDns::zone();
    dns.set("silent.example", RecordType::A, Answer::Silence);
    let socket = send_udp(dns.addr(), &query("silent.example.", RecordType::A, None));
    dns.wait_for("silent.example", RecordType::A, 1);
    // The server answers in order, so an answer to the first question would be the first to come.
    let second = query("other.example.", RecordType::A, None);
    socket.send(&second.to_vec().unwrap()).unwrap();
    assert_eq!(Message::from_vec(&receive(&socket)).unwrap().metadata.id, second.metadata.id);
    let mut stream = TcpStream::connect(dns.addr()).unwrap();
    let silent = query("silent.example.", RecordType::A, None).to_vec().unwrap();
    stream.write_all(&[&(silent.len() as u16).to_be_bytes()[..], &silent].concat()).unwrap();
    let third = query("other.example.", RecordType::A, None);
    let answer = Message::from_vec(&tcp_bytes(&mut stream, &third)).unwrap();
    assert_eq!(answer.metadata.id, third.metadata.id);
}

#[test]
fn a_server_ends_although_clients_are_still_connected() {
    // An address of our own: on a shared one somebody else may have the port by the time that it is tried again.
    let block = loopback_block();
    let dns = ScriptedDns::zone_at(&block.at(2, 5353));
    let addr = dns.addr();
    let mut stream = TcpStream::connect(addr).unwrap();
    tcp_bytes(&mut stream, &query("a.example.", RecordType::A, None));
    drop(dns);
    assert_eq!(stream.read(&mut [0; 1]).unwrap_or(0), 0);
    assert!(TcpStream::connect(addr).is_err());
}

// === script ===

#[test]
fn a_script_gives_each_question_its_next_answer() {
    let step = |answer| Step::once("a.example", RecordType::A, answer);
    let dns = ScriptedDns::in_order(vec![
        step(one("10.0.0.1")),
        step(Answer::NxDomain),
        step(Answer::ServFail),
        step(Answer::Refused),
        step(Answer::NoData),
    ]);
    let codes: Vec<ResponseCode> =
        (0..5).map(|_| udp(&dns, "A.example.", RecordType::A).metadata.response_code).collect();
    use ResponseCode::{NXDomain, NoError, Refused, ServFail};
    assert_eq!(codes, [NoError, NXDomain, ServFail, Refused, NoError]);
    dns.finish();
}

#[test]
fn a_script_fails_on_a_step_that_nobody_asked_for() {
    let step = |name| Step::once(name, RecordType::A, Answer::NxDomain);
    for dns in [
        ScriptedDns::in_order(vec![step("a.example"), step("b.example")]),
        ScriptedDns::per_name(vec![step("a.example"), step("b.example")]),
    ] {
        udp(&dns, "a.example.", RecordType::A);
        let text = refusal(dns);
        assert!(text.contains("missing: b.example A"), "{text}");
        assert!(!text.contains("a.example A"), "{text}");
    }
}

#[test]
fn a_script_fails_on_a_query_that_no_step_expects_and_refuses_it() {
    let dns = ScriptedDns::per_name(vec![Step::once("a.example", RecordType::A, one("10.0.0.1"))]);
    udp(&dns, "a.example.", RecordType::A);
    assert_eq!(udp(&dns, "a.example.", RecordType::A).metadata.response_code, ResponseCode::Refused);
    assert_eq!(udp(&dns, "a.example.", RecordType::AAAA).metadata.response_code, ResponseCode::Refused);
    let text = refusal(dns);
    assert!(text.contains("extra: a.example A by Udp") && text.contains("extra: a.example AAAA by Udp"), "{text}");
}

#[test]
fn an_order_fails_when_the_questions_come_in_another_one() {
    let step = |name| Step::once(name, RecordType::A, Answer::NxDomain);
    let dns = ScriptedDns::in_order(vec![step("a.example"), step("b.example")]);
    udp(&dns, "b.example.", RecordType::A);
    let text = refusal(dns);
    assert!(text.contains("extra: b.example") && text.contains("missing: a.example"), "{text}");
}

#[test]
fn a_script_per_name_does_not_mind_the_order_of_names() {
    let step = |name, answer| Step::once(name, RecordType::A, answer);
    let dns = ScriptedDns::per_name(vec![
        step("a.example", Answer::ServFail),
        step("a.example", Answer::NoData),
        step("b.example", Answer::NxDomain),
    ]);
    assert_eq!(udp(&dns, "b.example.", RecordType::A).metadata.response_code, ResponseCode::NXDomain);
    assert_eq!(udp(&dns, "a.example.", RecordType::A).metadata.response_code, ResponseCode::ServFail);
    assert_eq!(udp(&dns, "a.example.", RecordType::A).metadata.response_code, ResponseCode::NoError);
    dns.finish();
}

#[test]
fn a_step_that_may_come_again_must_come_once() {
    let steps = || vec![Step::at_least_once("a.example", RecordType::A, Answer::NxDomain)];
    let dns = ScriptedDns::per_name(steps());
    udp(&dns, "a.example.", RecordType::A);
    udp(&dns, "a.example.", RecordType::A);
    dns.finish();
    let text = refusal(ScriptedDns::per_name(steps()));
    assert!(text.contains("missing: a.example A"), "{text}");
}

#[test]
fn a_script_expects_the_same_question_by_tcp_after_a_cut_answer() {
    let many = Answer::Addresses((0..100).map(|n| Ipv4Addr::new(10, 0, 0, n).into()).collect());
    for (answer, whole) in [(Answer::Truncated(Box::new(one("10.0.0.1"))), 1), (many, 100)] {
        let steps = || vec![Step::once("a.example", RecordType::A, answer.clone())];
        let dns = ScriptedDns::in_order(steps());
        assert!(udp(&dns, "a.example.", RecordType::A).metadata.truncation);
        assert_eq!(ips(&tcp(&dns, "a.example.", RecordType::A)).len(), whole);
        dns.finish();
        let dns = ScriptedDns::in_order(steps());
        udp(&dns, "a.example.", RecordType::A);
        let text = refusal(dns);
        assert!(text.contains("missing: a.example A again by Tcp"), "{text}");
    }
}

#[test]
fn bytes_that_are_no_query_fail_a_script() {
    let dns = ScriptedDns::in_order(vec![Step::once("a.example", RecordType::A, Answer::NxDomain)]);
    let mut stream = TcpStream::connect(dns.addr()).unwrap();
    stream.write_all(b"\0\x03abc").unwrap();
    // The connection is read in order, so the first message is noted when the second one is answered.
    tcp_bytes(&mut stream, &query("a.example.", RecordType::A, None));
    let text = refusal(dns);
    assert!(text.contains("3 bytes by Tcp that are no query"), "{text}");
}

#[test]
fn dropping_a_script_checks_it_too() {
    let dns = ScriptedDns::in_order(vec![Step::once("a.example", RecordType::A, Answer::NxDomain)]);
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(dns))).is_err());
}

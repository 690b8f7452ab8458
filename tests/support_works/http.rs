//! Does the scripted HTTP server reply what it is told, and does it fail when it must? Asks it with raw requests.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::support::cluster::request;
use crate::support::config_map::KeptConfigMap;
use crate::support::http::{Call, Reply, ScriptedHttp};
use crate::support::port::OpenPort;

/// A guard against hanging; every reply takes a millisecond.
const HANG: Duration = Duration::from_secs(30);

fn open(http: &ScriptedHttp, method: &str, target: &str, headers: &str) -> TcpStream {
    let mut stream = TcpStream::connect(http.addr()).unwrap();
    stream.set_read_timeout(Some(HANG)).unwrap();
    stream.write_all(format!("{method} {target} HTTP/1.1\r\nHost: test\r\n{headers}\r\n").as_bytes()).unwrap();
    stream
}

fn get_with(http: &ScriptedHttp, target: &str, headers: &str) -> String {
    let mut text = String::new();
    open(http, "GET", target, headers).read_to_string(&mut text).unwrap();
    text
}

fn get(http: &ScriptedHttp, target: &str) -> String {
    get_with(http, target, "")
}

fn refusal(http: ScriptedHttp) -> String {
    let refused = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| http.finish())).unwrap_err();
    refused.downcast_ref::<String>().unwrap().clone()
}

#[test]
fn an_expected_call_gets_its_reply_and_is_written_down() {
    let http = ScriptedHttp::start();
    http.expect(Call::get("/v1/status/leader", Reply::ok("\"10.0.0.1:8300\"")));
    let text = get_with(&http, "/v1/status/leader?stale", "X-Consul-Token: secret\r\n");
    assert!(text.starts_with("HTTP/1.1 200 ") && text.ends_with("\r\n\r\n\"10.0.0.1:8300\""), "{text}");
    assert!(text.contains("Content-Length: 15\r\n"), "{text}");
    let requests = http.requests();
    assert_eq!((requests[0].method.as_str(), requests[0].target.as_str()), ("GET", "/v1/status/leader?stale"));
    assert_eq!(requests[0].header("x-consul-token").unwrap(), "secret");
    http.finish();
}

#[test]
fn a_missing_call_fails() {
    let http = ScriptedHttp::start();
    http.expect(Call::get("/v1/status/leader", Reply::ok("1")));
    http.expect(Call::put("/v1/agent/leave", Reply::ok("2")));
    get(&http, "/v1/status/leader");
    let text = refusal(http);
    assert!(text.contains("missing: PUT /v1/agent/leave") && !text.contains("status"), "{text}");
}

#[test]
fn an_extra_call_fails_and_gets_404() {
    let http = ScriptedHttp::start();
    http.expect(Call::get("/v1/status/leader", Reply::ok("1")));
    get(&http, "/v1/status/leader");
    assert!(get(&http, "/v1/status/leader").starts_with("HTTP/1.1 404 "));
    let text = refusal(http);
    assert!(text.contains("extra: GET /v1/status/leader"), "{text}");
}

#[test]
fn dropping_the_server_checks_it_too() {
    let http = ScriptedHttp::start();
    http.expect(Call::get("/", Reply::Html));
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(http))).is_err());
}

#[test]
fn a_call_of_another_method_or_with_a_longer_path_is_extra() {
    let http = ScriptedHttp::start();
    http.always(Call::put("/v1/agent/join", Reply::ok("null")));
    get(&http, "/v1/agent/join");
    drop(open(&http, "PUT", "/v1/agent/join/10.0.0.1", ""));
    http.wait_for("/v1/agent/join/10.0.0.1", 1);
    let text = refusal(http);
    assert!(text.contains("extra: GET /v1/agent/join ") && text.contains("extra: PUT /v1/agent/join/10"), "{text}");
}

#[test]
fn a_query_in_the_announced_call_is_the_beginning_of_the_one_that_comes() {
    let http = ScriptedHttp::start();
    http.expect(Call::get("/v1/agent/self?a=1", Reply::ok("1")));
    assert!(get(&http, "/v1/agent/self?b=1").starts_with("HTTP/1.1 404 "));
    assert!(get(&http, "/v1/agent/self?a=1&b=1").starts_with("HTTP/1.1 200 "));
    assert_eq!(http.problems().len(), 1);
    assert!(refusal(http).contains("extra: GET /v1/agent/self?b=1"));
}

#[test]
fn a_call_without_the_header_that_it_needs_is_extra() {
    let http = ScriptedHttp::start();
    http.expect(Call::get("/", Reply::Html).with_header("X-Consul-Token", "secret"));
    get_with(&http, "/", "X-Consul-Token: other\r\n");
    let text = refusal(http);
    assert!(text.contains("missing: GET / with X-Consul-Token: secret") && text.contains("extra: GET /"), "{text}");
    let http = ScriptedHttp::start();
    http.expect(Call::get("/", Reply::Html).with_header("X-Consul-Token", "secret"));
    get_with(&http, "/", "x-consul-token: secret\r\n");
    http.finish();
}

#[test]
fn calls_in_order_fail_in_another_order_only() {
    let announce = |http: &ScriptedHttp| {
        http.expect(Call::get("/a", Reply::ok("1")));
        http.expect(Call::get("/b", Reply::ok("2")));
    };
    let http = ScriptedHttp::start();
    announce(&http);
    assert!(get(&http, "/b").ends_with('2') && get(&http, "/a").ends_with('1'));
    http.finish();
    let http = ScriptedHttp::start().in_order();
    announce(&http);
    get(&http, "/b");
    let text = refusal(http);
    assert!(text.contains("extra: GET /b") && text.contains("missing: GET /a"), "{text}");
}

#[test]
fn a_polling_client_gets_the_answer_that_was_announced_last() {
    let http = ScriptedHttp::start();
    http.always(Call::get("/", Reply::ok("1")));
    assert!(get(&http, "/").ends_with('1') && get(&http, "/").ends_with('1'));
    http.always(Call::get("/", Reply::ok("2")));
    http.expect(Call::get("/", Reply::ok("once")));
    assert!(get(&http, "/").ends_with("once"));
    assert!(get(&http, "/").ends_with('2'));
    http.wait_for("/", 4);
    http.finish();
}

#[test]
fn bad_replies_are_as_bad_as_they_say() {
    let http = ScriptedHttp::start();
    http.expect(Call::get("/html", Reply::Html));
    http.expect(Call::get("/redirect", Reply::Redirect("http://127.0.0.9/".into())));
    http.expect(Call::get("/close", Reply::Close));
    http.expect(Call::get("/cut", Reply::CutShort("[1".into())));
    let headers = vec![("X-Consul-KnownLeader".to_owned(), "true".to_owned())];
    http.expect(Call::get("/headers", Reply::WithHeaders(500, headers, "No cluster leader".into())));
    let html = get(&http, "/html");
    assert!(html.contains("Content-Type: text/html\r\n") && html.ends_with("</html>"), "{html}");
    let redirect = get(&http, "/redirect");
    assert!(redirect.starts_with("HTTP/1.1 302 ") && redirect.contains("Location: http://127.0.0.9/\r\n"));
    assert_eq!(get(&http, "/close"), "");
    let cut = get(&http, "/cut");
    assert!(cut.ends_with("\r\n\r\n[1") && cut.contains("Content-Length: 12\r\n"), "{cut}");
    let failed = get(&http, "/headers");
    assert!(failed.starts_with("HTTP/1.1 500 ") && failed.contains("X-Consul-KnownLeader: true\r\n"));
    http.finish();
}

#[test]
fn an_endless_reply_ends_when_the_client_hangs_up() {
    let http = ScriptedHttp::start();
    http.expect(Call::get("/", Reply::Endless));
    let mut stream = open(&http, "GET", "/", "");
    let mut first = vec![0; 2 << 20];
    stream.read_exact(&mut first).unwrap();
    let text = String::from_utf8_lossy(&first);
    assert!(text.starts_with("HTTP/1.1 200 ") && text.contains("\r\n\r\n\"aaaa") && !text.contains("Content-Length"));
    drop(stream);
    let sent = http.wait_for_hang_up();
    assert!((1 << 20..1 << 30).contains(&sent), "{sent} bytes went out");
    http.finish();
}

#[test]
fn a_server_ends_although_clients_wait_for_nothing_or_do_not_read() {
    let http = ScriptedHttp::start();
    http.expect(Call::get("/nothing", Reply::Nothing));
    http.expect(Call::get("/endless", Reply::Endless));
    let mut nothing = open(&http, "GET", "/nothing", "");
    let _endless = open(&http, "GET", "/endless", "");
    http.wait_for("/nothing", 1);
    http.wait_for("/endless", 1);
    nothing.set_nonblocking(true).unwrap();
    let waits = nothing.read(&mut [0; 1]).unwrap_err();
    assert_eq!(waits.kind(), ErrorKind::WouldBlock, "nothing was said and nobody hung up");
    nothing.set_nonblocking(false).unwrap();
    http.finish();
    assert_eq!(nothing.read(&mut [0; 1]).unwrap_or(0), 0);
}

#[test]
fn the_body_of_a_put_is_read() {
    let http = ScriptedHttp::start();
    http.expect(Call::put("/", Reply::ok("true")));
    let mut stream = open(&http, "PUT", "/", "Content-Length: 4\r\n");
    stream.write_all(b"body").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert!(text.ends_with("true"));
    assert_eq!(http.requests()[0].body, "body");
    http.finish();
}

#[test]
fn an_open_port_accepts_and_says_nothing_until_it_is_closed() {
    let port = OpenPort::at("127.0.0.1:0");
    let addr = port.addr();
    let mut stream = TcpStream::connect(addr).unwrap();
    stream.write_all(b"hello?").unwrap();
    stream.set_nonblocking(true).unwrap();
    assert_eq!(stream.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::WouldBlock);
    stream.set_nonblocking(false).unwrap();
    drop(port);
    assert_eq!(stream.read(&mut [0; 1]).unwrap_or(0), 0);
    assert!(TcpStream::connect(addr).is_err());
}

#[test]
fn a_config_map_is_made_once_and_replaced_only_by_who_has_read_the_newest() {
    let http = ScriptedHttp::start();
    let kept = KeptConfigMap::at(&http, "/maps", "one");
    let ask = |method: &str, target: &str, version: &str| {
        let body = format!("{{\"metadata\": {{\"resourceVersion\": {version}}}}}");
        request(http.addr(), method, target, &body).unwrap().0
    };
    assert_eq!((ask("GET", "/maps/one", "null"), ask("PUT", "/maps/one", "\"1\"")), (404, 409));
    assert_eq!((ask("POST", "/maps", "null"), ask("POST", "/maps", "null")), (201, 409));
    assert_eq!((ask("PUT", "/maps/one", "\"1\""), ask("PUT", "/maps/one", "\"1\"")), (201, 409));
    assert_eq!((ask("GET", "/maps/one", "null"), kept.accepted().len()), (200, 2));
}

//! What would an agent say? An HTTP server on a real TCP socket. It takes calls that must come and calls that may come,
//! each with its reply, good or bad; it gives its address and a record of every request. It never answers a call that
//! nobody announced with anything but 404, and it fails the test (`finish`, or the drop) on a call that is missing and
//! on one too many. One request a connection; no TLS.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use super::accept::{Accepting, listen, lock};

/// How much an endless reply sends when nobody hangs up, in bytes: 1 GiB.
const ENDLESS: u64 = 1 << 30;

/// The longest request that is read, in bytes.
const LONGEST_REQUEST: u64 = 1 << 20;

/// How long a test waits for a request before it counts as hung.
const HANG: Duration = Duration::from_secs(60);

/// What one request gets.
#[derive(Clone, Debug)]
pub enum Reply {
    /// A status and a JSON text.
    Json(u16, String),
    /// 200 and a page, as a proxy or a wrong port gives.
    Html,
    /// 302 to another address.
    Redirect(String),
    /// 200 and a JSON string that goes on for 1 GiB or until the client hangs up.
    Endless,
    /// Nothing; the connection stays open until the client ends it.
    Nothing,
    /// Nothing, and the connection is closed.
    Close,
    /// A status, headers and a body.
    WithHeaders(u16, Vec<(String, String)>, String),
    /// 200 and a file.
    Bytes(Vec<u8>),
    /// 200 and a length that the body does not reach before the connection is closed.
    CutShort(String),
    /// What is worked out from the request, for a server that keeps something.
    By(Working),
}

/// Gives a request's reply.
#[derive(Clone)]
pub struct Working(Arc<dyn Fn(&Request) -> Reply + Send + Sync>);

impl std::fmt::Debug for Working {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Working")
    }
}

impl Reply {
    /// 200 and a JSON text.
    pub fn ok(json: &str) -> Self {
        Self::Json(200, json.to_owned())
    }

    /// What a function makes of each request.
    pub fn by(work: impl Fn(&Request) -> Self + Send + Sync + 'static) -> Self {
        Self::By(Working(Arc::new(work)))
    }
}

/// A request that is announced, and its reply.
#[derive(Clone, Debug)]
pub struct Call {
    method: String,
    target: String,
    header: Option<(String, String)>,
    reply: Reply,
}

impl Call {
    /// A GET. With a `?`, `target` is the beginning of path and query; without, it is the path, whatever the query.
    pub fn get(target: &str, reply: Reply) -> Self {
        Self { method: "GET".to_owned(), target: target.to_owned(), header: None, reply }
    }

    /// A PUT.
    pub fn put(target: &str, reply: Reply) -> Self {
        Self { method: "PUT".to_owned(), ..Self::get(target, reply) }
    }

    /// A POST.
    pub fn post(target: &str, reply: Reply) -> Self {
        Self { method: "POST".to_owned(), ..Self::get(target, reply) }
    }

    /// A PATCH.
    pub fn patch(target: &str, reply: Reply) -> Self {
        Self { method: "PATCH".to_owned(), ..Self::get(target, reply) }
    }

    /// Only with this header and value.
    pub fn with_header(self, name: &str, value: &str) -> Self {
        Self { header: Some((name.to_owned(), value.to_owned())), ..self }
    }

    fn is(&self, request: &Request) -> bool {
        let target = if self.target.contains('?') {
            request.target.starts_with(&self.target)
        } else {
            request.target.split('?').next() == Some(&self.target)
        };
        let header = self.header.as_ref().is_none_or(|(name, value)| request.header(name) == Some(value));
        self.method == request.method && target && header
    }
}

/// A request that came in.
#[derive(Clone, Debug)]
pub struct Request {
    /// `GET`, `PUT`.
    pub method: String,
    /// Path and query.
    pub target: String,
    /// As they were sent.
    pub headers: Vec<(String, String)>,
    /// Empty when there was none.
    pub body: String,
}

impl Request {
    /// The value of a header, whatever the case of its name.
    pub fn header(&self, name: &str) -> Option<&String> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }
}

/// The server. Its threads end when it is dropped.
pub struct ScriptedHttp {
    state: Arc<State>,
    accepting: Accepting,
    checked: bool,
}

#[derive(Default)]
struct State {
    book: Mutex<Book>,
    changed: Condvar,
}

#[derive(Default)]
struct Book {
    ordered: bool,
    expected: VecDeque<Call>,
    always: Vec<Call>,
    requests: Vec<Request>,
    extra: Vec<String>,
    streamed: u64,
}

// === impl ScriptedHttp ===

impl ScriptedHttp {
    /// On a free port of 127.0.0.1; nothing is announced yet.
    pub fn start() -> Self {
        Self::at("127.0.0.1:0")
    }

    /// At `addr`, for example `127.3.0.2:8500`. Panics when the address is taken.
    pub fn at(addr: &str) -> Self {
        let listener = listen(addr);
        let state = Arc::new(State::default());
        let serving = Arc::clone(&state);
        let accepting = Accepting::start(listener, move |stream| {
            // An error is the client's hanging up, which several replies are made for.
            let _ = serve(stream, &serving);
        });
        Self { state, accepting, checked: false }
    }

    /// From now on the expected calls must come in the order in which they were announced.
    pub fn in_order(self) -> Self {
        lock(&self.state.book).ordered = true;
        self
    }

    /// This call must come, once. Several equal calls get their replies in the order in which they were announced.
    pub fn expect(&self, call: Call) {
        lock(&self.state.book).expected.push_back(call);
    }

    /// This call may come any number of times; the one announced last wins, so that an answer can change under a client
    /// that polls.
    pub fn always(&self, call: Call) {
        lock(&self.state.book).always.insert(0, call);
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.accepting.addr()
    }

    /// The address as a URL, without a path.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr())
    }

    /// A kubeconfig for a Kubernetes API that this server plays; `user` is how one shows who one is.
    pub fn kubeconfig(&self, user: &serde_json::Value) -> String {
        let config = serde_json::json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": self.url()}}],
            "users": [{"name": "c", "user": user}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
        });
        config.to_string()
    }

    /// Every request so far.
    pub fn requests(&self) -> Vec<Request> {
        lock(&self.state.book).requests.clone()
    }

    /// How many bytes the endless replies sent that are over.
    pub fn streamed(&self) -> u64 {
        lock(&self.state.book).streamed
    }

    /// Blocks until `times` requests for this path came in. Panics when that takes a minute.
    pub fn wait_for(&self, path: &str, times: usize) {
        self.wait_until(&format!("{times} requests for {path}"), |book| book.came(path) >= times);
    }

    /// The same, counted from now on.
    pub fn wait_for_more(&self, path: &str, times: usize) {
        let before = lock(&self.state.book).came(path);
        self.wait_for(path, before + times);
    }

    /// Blocks until an endless reply is over, and tells how many bytes went out.
    pub fn wait_for_hang_up(&self) -> u64 {
        self.wait_until("the end of an endless reply", |book| book.streamed > 0);
        self.streamed()
    }

    fn wait_until(&self, what: &str, done: impl Fn(&Book) -> bool) {
        let book = lock(&self.state.book);
        let (book, late) = self.state.changed.wait_timeout_while(book, HANG, |book| !done(book)).unwrap();
        assert!(!late.timed_out(), "waited for {what}, came so far: {:?}", book.requests);
    }

    /// What is wrong so far: expected calls that did not come, and calls that nobody announced.
    pub fn problems(&self) -> Vec<String> {
        let book = lock(&self.state.book);
        let missing = book.expected.iter().map(|call| {
            let header = call.header.as_ref().map(|(name, value)| format!(" with {name}: {value}"));
            format!("missing: {} {}{}", call.method, call.target, header.unwrap_or_default())
        });
        book.extra.iter().cloned().chain(missing).collect()
    }

    /// Ends the server and fails the test when a call is missing or was one too many. Dropping does the same.
    pub fn finish(mut self) {
        self.check();
    }

    fn check(&mut self) {
        self.checked = true;
        let problems = self.problems();
        assert!(problems.is_empty(), "the calls were not as announced:\n  {}", problems.join("\n  "));
    }
}

impl Drop for ScriptedHttp {
    fn drop(&mut self) {
        if !self.checked && !std::thread::panicking() {
            self.check();
        }
    }
}

impl Book {
    /// How many requests for this path came in.
    fn came(&self, path: &str) -> usize {
        self.requests.iter().filter(|request| request.target.split('?').next() == Some(path)).count()
    }

    /// The reply that is due; the request is written down.
    fn reply(&mut self, request: &Request) -> Reply {
        self.requests.push(request.clone());
        let reach = if self.ordered { 1 } else { self.expected.len() };
        if let Some(at) = self.expected.iter().take(reach).position(|call| call.is(request))
            && let Some(call) = self.expected.remove(at)
        {
            return call.reply;
        }
        if let Some(call) = self.always.iter().find(|call| call.is(request)) {
            return call.reply.clone();
        }
        self.extra.push(format!("extra: {} {} with {:?}", request.method, request.target, request.headers));
        Reply::WithHeaders(404, Vec::new(), "nobody announced this call".to_owned())
    }
}

// === one connection ===

fn serve(stream: &TcpStream, state: &State) -> std::io::Result<()> {
    let Some(request) = read(stream)? else { return Ok(()) };
    let reply = lock(&state.book).reply(&request);
    state.changed.notify_all();
    answer(stream, state, &request, reply)
}

fn answer(stream: &TcpStream, state: &State, request: &Request, reply: Reply) -> std::io::Result<()> {
    let json = |body: &str| vec![content("application/json"), length(body)];
    match reply {
        Reply::Json(status, body) => send(stream, status, &json(&body), &body),
        Reply::Html => {
            let page = "<!DOCTYPE html><html><body><h1>It works!</h1></body></html>";
            send(stream, 200, &[content("text/html"), length(page)], page)
        }
        Reply::Redirect(to) => send(stream, 302, &[("Location".to_owned(), to), length("")], ""),
        Reply::WithHeaders(status, mut headers, body) => {
            headers.push(length(&body));
            send(stream, status, &headers, &body)
        }
        Reply::Bytes(body) => send(stream, 200, &[("Content-Length".to_owned(), body.len().to_string())], body),
        Reply::CutShort(body) => send(stream, 200, &json(&format!("{body}, and more")), body),
        Reply::By(Working(work)) => answer(stream, state, request, work(request)),
        Reply::Close => Ok(()),
        Reply::Nothing => BufReader::new(stream).read_until(0, &mut Vec::new()).map(|_| ()),
        Reply::Endless => {
            let sent = send_endless(stream);
            lock(&state.book).streamed += sent;
            state.changed.notify_all();
            Ok(())
        }
    }
}

fn content(kind: &str) -> (String, String) {
    ("Content-Type".to_owned(), kind.to_owned())
}

fn length(body: &str) -> (String, String) {
    ("Content-Length".to_owned(), body.len().to_string())
}

/// None when the client connected and left, as a probe of the port does.
fn read(stream: &TcpStream) -> std::io::Result<Option<Request>> {
    let mut reader = BufReader::new(stream.take(LONGEST_REQUEST));
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace().map(str::to_owned);
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut request = Request { method, target, headers: Vec::new(), body: String::new() };
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let Some((name, value)) = line.split_once(':') else { break };
        request.headers.push((name.trim().to_owned(), value.trim().to_owned()));
    }
    let length = request.header("content-length").and_then(|l| l.parse().ok()).unwrap_or(0);
    reader.take(length).read_to_string(&mut request.body)?;
    Ok(Some(request))
}

fn send(
    mut stream: &TcpStream,
    status: u16,
    headers: &[(String, String)],
    body: impl AsRef<[u8]>,
) -> std::io::Result<()> {
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let reason = if status < 400 { "Fine" } else { "Not Fine" };
    let text = format!("HTTP/1.1 {status} {reason}\r\nConnection: close\r\n{headers}\r\n");
    // One write: a client that sees the head alone may hang up before the body is out.
    stream.write_all(&[text.as_bytes(), body.as_ref()].concat())
}

/// How many bytes of body went out.
fn send_endless(mut stream: &TcpStream) -> u64 {
    if send(stream, 200, &[content("application/json")], "\"").is_err() {
        return 1;
    }
    let chunk = [b'a'; 64 * 1024];
    let mut sent = 1;
    while sent < ENDLESS && stream.write_all(&chunk).is_ok() {
        sent += chunk.len() as u64;
    }
    sent
}

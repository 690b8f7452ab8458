//! What would a nameserver say? A DNS server on a real UDP and TCP socket of loopback. It takes a table that may change
//! while it runs (*zone*), or a list of steps (*script*); it gives its address and a log of what it was asked. It never
//! forwards a question. A script fails the test (`finish`, or the drop) on a step that nobody asked for and on a query
//! that no step expects.

mod message;
mod plan;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use hickory_proto::op::Message;
pub use hickory_proto::rr::RecordType;

use super::accept::{Accepting, lock};
use plan::{Outcome, Plan};

/// The TTL of every record and of every negative answer, in seconds: what the cluster of `design.md` has (CoreDNS with
/// `ttl 30`), so that a client which keeps an answer for as long as it is allowed to is caught by a table that changes.
pub const TTL: u32 = 30;

/// How long a test waits for a query before it counts as hung.
const HANG: Duration = Duration::from_secs(60);

/// What one question gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Addresses; a question for A gets the IPv4 ones, a question for AAAA the IPv6 ones.
    Addresses(Vec<IpAddr>),
    /// Targets and ports, for questions for SRV.
    Srv(Vec<(String, u16)>),
    /// Another name. A zone follows it as far as it knows the way.
    Cname(String),
    /// A name that points to `loop.<name>`, which points back.
    CnameLoop,
    /// There is no such name.
    NxDomain,
    /// The name is there, the type is not.
    NoData,
    /// "I could not find out."
    ServFail,
    /// "I will not tell you."
    Refused,
    /// No answer at all.
    Silence,
    /// These bytes instead of a message.
    Garbage(Vec<u8>),
    /// The ID of the query, then these bytes: a client cannot throw it away as somebody else's.
    GarbageAfterId(Vec<u8>),
    /// By UDP an empty answer that says "truncated", by TCP this one.
    Truncated(Box<Answer>),
}

/// How a question came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// One datagram.
    Udp,
    /// A connection.
    Tcp,
}

/// One question that came in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// In lower case, without the dot at its end.
    pub name: String,
    /// The type asked for.
    pub kind: RecordType,
    /// How it came in.
    pub transport: Transport,
}

/// One question of a script and what it gets.
#[derive(Clone, Debug)]
pub struct Step {
    name: String,
    kind: RecordType,
    answer: Answer,
    again: bool,
    came: bool,
}

impl Step {
    /// The question must come once.
    pub fn once(name: &str, kind: RecordType, answer: Answer) -> Self {
        Self { name: plan::key(name), kind, answer, again: false, came: false }
    }

    /// The question must come, and may come again: the last step of its name and type in a script without order.
    pub fn at_least_once(name: &str, kind: RecordType, answer: Answer) -> Self {
        Self { again: true, ..Self::once(name, kind, answer) }
    }
}

/// The server. Its threads end when it is dropped.
pub struct ScriptedDns {
    state: Arc<State>,
    udp: Arc<UdpSocket>,
    udp_thread: Option<JoinHandle<()>>,
    _tcp: Accepting,
    checked: bool,
}

struct State {
    plan: Mutex<Plan>,
    changed: Condvar,
    stopping: AtomicBool,
}

// === impl ScriptedDns ===

impl ScriptedDns {
    /// A table, empty at first, on a free port of 127.0.0.1.
    pub fn zone() -> Self {
        Self::zone_at("127.0.0.1:0")
    }

    /// A table, empty at first, at `addr`. Panics when the address is taken.
    pub fn zone_at(addr: &str) -> Self {
        Self::start(addr, Plan::zone())
    }

    /// Steps that must come in this order, on a free port of 127.0.0.1.
    pub fn in_order(steps: Vec<Step>) -> Self {
        Self::start("127.0.0.1:0", Plan::in_order(steps))
    }

    /// Steps whose order counts among those of the same name and type only, on a free port of 127.0.0.1.
    pub fn per_name(steps: Vec<Step>) -> Self {
        Self::start("127.0.0.1:0", Plan::per_name(steps))
    }

    fn start(addr: &str, plan: Plan) -> Self {
        let (udp, tcp) = bind(addr);
        let udp = Arc::new(udp);
        let state = Arc::new(State { plan: Mutex::new(plan), changed: Condvar::new(), stopping: false.into() });
        let (socket, answering) = (Arc::clone(&udp), Arc::clone(&state));
        let udp_thread = std::thread::spawn(move || serve_udp(&socket, &answering));
        let answering = Arc::clone(&state);
        let tcp = Accepting::start(tcp, move |stream| serve_tcp(stream, &answering));
        Self { state, udp, udp_thread: Some(udp_thread), _tcp: tcp, checked: false }
    }

    /// Where it listens, by UDP and TCP.
    pub fn addr(&self) -> SocketAddr {
        self.udp.local_addr().expect("a bound socket has an address")
    }

    /// From now on a zone gives `answer` to this name and type. An alias holds for every type when it is set for CNAME.
    /// Panics on a script.
    pub fn set(&self, name: &str, kind: RecordType, answer: Answer) {
        lock(&self.state.plan).set(name, kind, Some(answer));
    }

    /// The same for A, AAAA and SRV at once, for example to make a name fail in every way of asking.
    pub fn set_all(&self, name: &str, answer: &Answer) {
        for kind in [RecordType::A, RecordType::AAAA, RecordType::SRV] {
            self.set(name, kind, answer.clone());
        }
    }

    /// A zone forgets the name and type.
    pub fn remove(&self, name: &str, kind: RecordType) {
        lock(&self.state.plan).set(name, kind, None);
    }

    /// Every question so far, in the order it came in.
    pub fn log(&self) -> Vec<Asked> {
        lock(&self.state.plan).log.clone()
    }

    /// How often this name and type was asked for this way.
    pub fn asked(&self, name: &str, kind: RecordType, transport: Transport) -> usize {
        let asked = Asked { name: plan::key(name), kind, transport };
        lock(&self.state.plan).log.iter().filter(|a| **a == asked).count()
    }

    /// Blocks until this name and type was asked for `times` times by UDP. Panics when that takes a minute.
    pub fn wait_for(&self, name: &str, kind: RecordType, times: usize) {
        let asked = Asked { name: plan::key(name), kind, transport: Transport::Udp };
        let few = |plan: &mut Plan| plan.log.iter().filter(|a| **a == asked).count() < times;
        let (plan, late) = self.state.changed.wait_timeout_while(lock(&self.state.plan), HANG, few).unwrap();
        assert!(!late.timed_out(), "waited for {times} of {asked:?}, came so far: {:?}", plan.log);
    }

    /// What is wrong so far: steps that nobody asked for, queries that no step expects.
    pub fn problems(&self) -> Vec<String> {
        lock(&self.state.plan).problems()
    }

    /// Ends the server and fails the test when the script was not followed. Dropping does the same.
    pub fn finish(mut self) {
        self.check();
    }

    fn check(&mut self) {
        self.checked = true;
        let problems = self.problems();
        assert!(problems.is_empty(), "the DNS script was not followed:\n  {}", problems.join("\n  "));
    }
}

impl Drop for ScriptedDns {
    fn drop(&mut self) {
        self.state.stopping.store(true, Ordering::SeqCst);
        // An empty datagram wakes the thread that sits in recv; when it cannot be sent there is nobody to join.
        if self.udp.send_to(&[], self.addr()).is_ok()
            && let Some(thread) = self.udp_thread.take()
        {
            let _ = thread.join();
        }
        if !self.checked && !std::thread::panicking() {
            self.check();
        }
    }
}

// === the sockets ===

/// One port for both transports. A port that is free for TCP may be taken for UDP: then another one, when any will do.
fn bind(addr: &str) -> (UdpSocket, TcpListener) {
    for attempt in 0.. {
        let tcp = TcpListener::bind(addr).unwrap_or_else(|e| panic!("could not listen on {addr}/tcp: {e}"));
        let both = tcp.local_addr().expect("a listener has an address");
        match UdpSocket::bind(both) {
            Ok(udp) => return (udp, tcp),
            Err(_) if addr.ends_with(":0") && attempt < 20 => {}
            Err(e) => panic!("could not listen on {both}/udp: {e}"),
        }
    }
    unreachable!("the loop ends with a socket or a panic")
}

fn serve_udp(socket: &UdpSocket, state: &State) {
    let mut buffer = [0; 4096];
    while !state.stopping.load(Ordering::SeqCst) {
        // An error is an earlier answer's: the client had hung up.
        let Ok((length, client)) = socket.recv_from(&mut buffer) else { continue };
        if let Some(bytes) = reply(&buffer[..length], Transport::Udp, state) {
            let _ = socket.send_to(&bytes, client);
        }
    }
}

fn serve_tcp(mut stream: &TcpStream, state: &State) {
    let mut length = [0; 2];
    while stream.read_exact(&mut length).is_ok() {
        let mut query = vec![0; usize::from(u16::from_be_bytes(length))];
        if stream.read_exact(&mut query).is_err() {
            return;
        }
        let Some(bytes) = reply(&query, Transport::Tcp, state) else { continue };
        let prefix = u16::try_from(bytes.len()).expect("an answer by TCP fits 64 KiB").to_be_bytes();
        if stream.write_all(&[&prefix[..], &bytes].concat()).is_err() {
            return;
        }
    }
}

/// The bytes to send for a query, or none for silence.
fn reply(bytes: &[u8], transport: Transport, state: &State) -> Option<Vec<u8>> {
    if bytes.is_empty() {
        return None;
    }
    let mut plan = lock(&state.plan);
    let query = match Message::from_vec(bytes) {
        Ok(query) if query.queries.len() == 1 => query,
        _ => {
            plan.unexpected.push(format!("{} bytes by {transport:?} that are no query", bytes.len()));
            return None;
        }
    };
    let question = &query.queries[0];
    let asked = Asked { name: plan::key(&question.name().to_ascii()), kind: question.query_type(), transport };
    let outcome = plan.answer(&asked);
    let sent = match outcome {
        Outcome::Silence => None,
        Outcome::Raw(bytes) => Some(bytes),
        Outcome::RawAfterId(bytes) => Some([&query.metadata.id.to_be_bytes()[..], &bytes].concat()),
        Outcome::Records { code, records, truncated } => {
            let limit = match transport {
                Transport::Udp => usize::from(query.max_payload().max(512)),
                Transport::Tcp => usize::from(u16::MAX),
            };
            let (bytes, cut) = message::encode(&query, code, &records, limit, truncated);
            if cut && transport == Transport::Udp {
                plan.expect_by_tcp(&asked);
            }
            Some(bytes)
        }
    };
    plan.log.push(asked);
    state.changed.notify_all();
    sent
}

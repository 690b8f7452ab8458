//! Which answer is due? Takes a question, gives what to send. A zone looks into its table; a script takes the step whose
//! turn it is, and keeps what was asked beside it. It never touches a socket.

use std::collections::{HashMap, VecDeque};

use hickory_proto::op::ResponseCode;

use super::{Answer, Asked, RecordType, Step, Transport};

/// How many aliases a zone follows; a real server's bound is of this size.
const LONGEST_CHAIN: usize = 16;

/// What to send.
pub enum Outcome {
    /// A message.
    Records { code: ResponseCode, records: Vec<Record>, truncated: bool },
    /// These bytes.
    Raw(Vec<u8>),
    /// The ID of the query and these bytes.
    RawAfterId(Vec<u8>),
    /// Nothing.
    Silence,
}

/// One record of an answer.
pub struct Record {
    /// Lower case, without the dot at its end.
    pub owner: String,
    pub data: Data,
}

pub enum Data {
    Address(std::net::IpAddr),
    Srv(String, u16),
    Cname(String),
}

type Question = (String, RecordType);

/// The state of a server.
pub struct Plan {
    mode: Mode,
    /// Every question so far.
    pub log: Vec<Asked>,
    /// What came in and should not have.
    pub unexpected: Vec<String>,
    /// Answers of a script that were cut by UDP: the client must come back for them by TCP.
    by_tcp: HashMap<Question, Answer>,
    /// The answer of the script that went out last.
    last: Option<Answer>,
}

enum Mode {
    Zone(HashMap<Question, Answer>),
    InOrder(VecDeque<Step>),
    PerName(HashMap<Question, VecDeque<Step>>),
}

/// A name as it is compared: lower case, no dot at its end.
pub fn key(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase()
}

impl Plan {
    pub fn zone() -> Self {
        Self::new(Mode::Zone(HashMap::new()))
    }

    pub fn in_order(steps: Vec<Step>) -> Self {
        assert!(steps.iter().all(|s| !s.again), "at_least_once has no place in a script with an order");
        Self::new(Mode::InOrder(steps.into()))
    }

    pub fn per_name(steps: Vec<Step>) -> Self {
        let mut table: HashMap<Question, VecDeque<Step>> = HashMap::new();
        for step in steps {
            let list = table.entry((step.name.clone(), step.kind)).or_default();
            assert!(list.back().is_none_or(|s| !s.again), "no step can follow at_least_once: {step:?}");
            list.push_back(step);
        }
        Self::new(Mode::PerName(table))
    }

    fn new(mode: Mode) -> Self {
        Self { mode, log: Vec::new(), unexpected: Vec::new(), by_tcp: HashMap::new(), last: None }
    }

    pub fn set(&mut self, name: &str, kind: RecordType, answer: Option<Answer>) {
        let Mode::Zone(table) = &mut self.mode else { panic!("a script cannot be changed while it runs") };
        match answer {
            Some(answer) => table.insert((key(name), kind), answer),
            None => table.remove(&(key(name), kind)),
        };
    }

    /// What this question gets now.
    pub fn answer(&mut self, asked: &Asked) -> Outcome {
        if let Mode::Zone(table) = &self.mode {
            return from_zone(table, asked);
        }
        let Some(answer) = self.step(asked) else {
            self.unexpected.push(format!("extra: {} {} by {:?}", asked.name, asked.kind, asked.transport));
            return plain(&asked.name, asked.kind, &Answer::Refused);
        };
        self.last = Some(answer.clone());
        match (answer, asked.transport) {
            (Answer::Truncated(_), Transport::Udp) => truncated(),
            (Answer::Truncated(inner), Transport::Tcp) => plain(&asked.name, asked.kind, &inner),
            (answer, _) => plain(&asked.name, asked.kind, &answer),
        }
    }

    /// The answer that just went out by UDP was cut: a script now expects the same question by TCP.
    pub fn expect_by_tcp(&mut self, asked: &Asked) {
        if let Some(answer) = self.last.clone() {
            self.by_tcp.insert((asked.name.clone(), asked.kind), answer);
        }
    }

    /// Takes the step whose turn it is.
    fn step(&mut self, asked: &Asked) -> Option<Answer> {
        let question = (asked.name.clone(), asked.kind);
        if asked.transport == Transport::Tcp
            && let Some(answer) = self.by_tcp.remove(&question)
        {
            return Some(answer);
        }
        let steps = match &mut self.mode {
            Mode::Zone(_) => return None,
            Mode::InOrder(steps) => steps,
            Mode::PerName(table) => table.get_mut(&question)?,
        };
        let step = steps.front_mut().filter(|s| (&s.name, s.kind) == (&asked.name, asked.kind))?;
        step.came = true;
        let answer = step.answer.clone();
        if !step.again {
            steps.pop_front();
        }
        Some(answer)
    }

    /// What is wrong so far, a line each. A zone has nothing to complain about.
    pub fn problems(&self) -> Vec<String> {
        let steps: Vec<&Step> = match &self.mode {
            Mode::Zone(_) => return Vec::new(),
            Mode::InOrder(steps) => steps.iter().collect(),
            Mode::PerName(table) => table.values().flatten().collect(),
        };
        let missing = steps.into_iter().filter(|s| !s.came);
        let missing = missing.map(|s| format!("missing: {} {} for {:?}", s.name, s.kind, s.answer));
        let not_fetched = self.by_tcp.keys().map(|(name, kind)| format!("missing: {name} {kind} again by Tcp"));
        self.unexpected.iter().cloned().chain(missing).chain(not_fetched).collect()
    }
}

// === a zone's answers ===

fn from_zone(table: &HashMap<Question, Answer>, asked: &Asked) -> Outcome {
    let mut aliases = Vec::new();
    let mut owner = asked.name.clone();
    while aliases.len() < LONGEST_CHAIN {
        let entry = table.get(&(owner.clone(), asked.kind)).or_else(|| table.get(&(owner.clone(), RecordType::CNAME)));
        let entry = match (entry, asked.transport) {
            (Some(Answer::Truncated(_)), Transport::Udp) => return truncated(),
            (Some(Answer::Truncated(inner)), Transport::Tcp) => Some(inner.as_ref()),
            (entry, _) => entry,
        };
        let last = match entry {
            Some(Answer::Cname(target)) => {
                aliases.push(Record { owner, data: Data::Cname(key(target)) });
                owner = key(target);
                continue;
            }
            Some(answer) => plain(&owner, asked.kind, answer),
            None => match owner.strip_prefix("loop.").map(|looping| is_loop(table, looping, asked.kind)) {
                Some(true) => circle(&owner, &owner["loop.".len()..]),
                _ if exists(table, &owner) => plain(&owner, asked.kind, &Answer::NoData),
                _ => plain(&owner, asked.kind, &Answer::NxDomain),
            },
        };
        return match last {
            Outcome::Records { code, records, truncated } => {
                aliases.extend(records);
                Outcome::Records { code, records: aliases, truncated }
            }
            other => other,
        };
    }
    Outcome::Records { code: ResponseCode::NoError, records: aliases, truncated: false }
}

/// Whether a name has a record of any type, so that a question for another type is no NXDOMAIN.
fn exists(table: &HashMap<Question, Answer>, name: &str) -> bool {
    table.iter().any(|((owner, _), answer)| owner == name && *answer != Answer::NxDomain)
}

fn is_loop(table: &HashMap<Question, Answer>, name: &str, kind: RecordType) -> bool {
    [kind, RecordType::CNAME].into_iter().any(|k| table.get(&(name.to_owned(), k)) == Some(&Answer::CnameLoop))
}

// === one answer ===

/// What an answer is by itself, without following an alias.
fn plain(owner: &str, kind: RecordType, answer: &Answer) -> Outcome {
    let record = |data| Record { owner: owner.to_owned(), data };
    let records = match answer {
        Answer::Addresses(addresses) => {
            let fits =
                |a: &&std::net::IpAddr| if a.is_ipv4() { kind == RecordType::A } else { kind == RecordType::AAAA };
            addresses.iter().filter(fits).map(|a| record(Data::Address(*a))).collect()
        }
        Answer::Srv(targets) if kind == RecordType::SRV => {
            targets.iter().map(|(target, port)| record(Data::Srv(key(target), *port))).collect()
        }
        Answer::Srv(_) | Answer::NoData => Vec::new(),
        Answer::Cname(target) => vec![record(Data::Cname(key(target)))],
        Answer::CnameLoop => return circle(owner, &format!("loop.{owner}")),
        Answer::NxDomain => return failed(ResponseCode::NXDomain),
        Answer::ServFail => return failed(ResponseCode::ServFail),
        Answer::Refused => return failed(ResponseCode::Refused),
        Answer::Silence => return Outcome::Silence,
        Answer::Garbage(bytes) => return Outcome::Raw(bytes.clone()),
        Answer::GarbageAfterId(bytes) => return Outcome::RawAfterId(bytes.clone()),
        Answer::Truncated(_) => return truncated(),
    };
    Outcome::Records { code: ResponseCode::NoError, records, truncated: false }
}

fn circle(owner: &str, other: &str) -> Outcome {
    let alias = |from: &str, to: &str| Record { owner: from.to_owned(), data: Data::Cname(to.to_owned()) };
    let records = vec![alias(owner, other), alias(other, owner)];
    Outcome::Records { code: ResponseCode::NoError, records, truncated: false }
}

fn failed(code: ResponseCode) -> Outcome {
    Outcome::Records { code, records: Vec::new(), truncated: false }
}

fn truncated() -> Outcome {
    Outcome::Records { code: ResponseCode::NoError, records: Vec::new(), truncated: true }
}

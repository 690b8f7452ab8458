//! How does an answer look on the wire? Takes the query and the records, gives bytes that fit a limit. hickory writes the
//! header and the question; the records are written here, because hickory compresses only the first 120 names of a
//! message, and 3,000 addresses would then not fit 64 KiB (RFC 1035, section 4.1). It never decides anything.

use std::collections::HashMap;

use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};

use super::TTL;
use super::plan::{Data, Record, key};

const CNAME: u16 = 5;
const SOA: u16 = 6;
const A: u16 = 1;
const AAAA: u16 = 28;
const SRV: u16 = 33;
const OPT: u16 = 41;
const CLASS_IN: u16 = 1;

/// Where the name of the question stands: behind the header.
const QUESTION: usize = 12;

/// A pointer has 14 bits, so a name beyond this cannot be pointed to.
const FARTHEST: usize = 0x3fff;

/// The payload by UDP that we claim to take, in bytes.
const OUR_PAYLOAD: u16 = 1232;

/// The message of at most `limit` bytes, and whether it says "truncated": as asked for, or because not all of it fitted.
pub fn encode(query: &Message, code: ResponseCode, records: &[Record], limit: usize, cut: bool) -> (Vec<u8>, bool) {
    let question = query.queries[0].clone();
    let name = key(&question.name().to_ascii());
    let mut head = Message::new(query.metadata.id, MessageType::Response, OpCode::Query);
    head.metadata.authoritative = true;
    head.metadata.recursion_desired = query.metadata.recursion_desired;
    head.metadata.recursion_available = true;
    head.metadata.response_code = code;
    head.add_query(question);
    let mut bytes = head.to_vec().expect("a header and a question fit");

    let mut tail = Vec::new();
    let negative = code == ResponseCode::NXDomain || (code == ResponseCode::NoError && records.is_empty() && !cut);
    if negative {
        tail.extend(start_of_authority(&name));
    }
    if query.edns.is_some() {
        tail.extend([[0].as_slice(), &OPT.to_be_bytes(), &OUR_PAYLOAD.to_be_bytes(), &[0; 6]].concat());
    }

    let mut count: u16 = 0;
    let mut cut = cut;
    // Where each owner stands that was written so far.
    let mut places = HashMap::from([(name.as_str(), QUESTION)]);
    for record in records {
        let here = bytes.len();
        let record = wire(record, *places.entry(&record.owner).or_insert(here), here);
        if here + record.len() + tail.len() > limit {
            cut = true;
            break;
        }
        bytes.extend(record);
        count += 1;
    }
    bytes.extend(tail);
    bytes[2] |= if cut { 0b10 } else { 0 };
    bytes[6..8].copy_from_slice(&count.to_be_bytes());
    bytes[8..10].copy_from_slice(&u16::from(negative).to_be_bytes());
    bytes[10..12].copy_from_slice(&u16::from(query.edns.is_some()).to_be_bytes());
    (bytes, cut)
}

/// The bytes of a record that begins `here` and whose owner stands at `place` for the first time.
fn wire(record: &Record, place: usize, here: usize) -> Vec<u8> {
    let pointer = u16::try_from(place).ok().filter(|_| place < here && place <= FARTHEST);
    let owner = pointer.map_or_else(|| labels(&record.owner), |place| (0xc000 | place).to_be_bytes().to_vec());
    let (kind, data) = match &record.data {
        Data::Address(std::net::IpAddr::V4(a)) => (A, a.octets().to_vec()),
        Data::Address(std::net::IpAddr::V6(a)) => (AAAA, a.octets().to_vec()),
        Data::Cname(target) => (CNAME, labels(target)),
        // Priority 0, weight 1.
        Data::Srv(target, port) => (SRV, [&[0, 0, 0, 1], port.to_be_bytes().as_slice(), &labels(target)].concat()),
    };
    with_header(owner, kind, &data)
}

/// Who may be asked for how long a negative answer holds (RFC 2308); the zone is the last label of the name.
fn start_of_authority(name: &str) -> Vec<u8> {
    let zone = labels(name.rsplit('.').next().unwrap_or_default());
    let times: Vec<u8> = [1, 7200, 1800, 86400, TTL].into_iter().flat_map(u32::to_be_bytes).collect();
    with_header(zone.clone(), SOA, &[zone.clone(), zone, times].concat())
}

fn with_header(owner: Vec<u8>, kind: u16, data: &[u8]) -> Vec<u8> {
    let length = u16::try_from(data.len()).expect("one record is small");
    let head = [kind.to_be_bytes(), CLASS_IN.to_be_bytes()].concat();
    [&owner, &head, TTL.to_be_bytes().as_slice(), &length.to_be_bytes(), data].concat()
}

/// A name without compression.
fn labels(name: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(name.len() + 2);
    for label in name.split('.').filter(|l| !l.is_empty()) {
        assert!(label.len() < 64, "the label {label} is too long for DNS");
        bytes.push(label.len() as u8);
        bytes.extend(label.as_bytes());
    }
    bytes.push(0);
    bytes
}

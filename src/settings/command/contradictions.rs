//! What in CMD contradicts what convene decided? Takes the facts that stay in CMD and what convene wants, gives one
//! line for each contradiction: place, value, reason, mend.
//!
//! It is pure and never fails. A go-sockaddr template is left alone, since only Consul knows its value.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use super::facts::{Facts, Place, Said, shown};
use super::sayings::Key;

/// What convene decided, to be compared with CMD.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// Whether this node is to be a server.
    pub server: bool,
    /// The node ID in the data folder.
    pub node_id: Option<&'a str>,
    /// The address to advertise, when convene chose one.
    pub advertise: Option<IpAddr>,
    /// The data folder.
    pub data_dir: &'a Path,
    /// The node name, when convene chose one.
    pub node_name: Option<&'a str>,
    /// The file that convene renders: what it says is never a contradiction.
    pub rendered: &'a Path,
}

/// A place in CMD that says something else than convene decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contradiction {
    /// Where it is said.
    pub place: Place,
    /// What is said there, without secrets.
    pub value: String,
    /// Why that cannot be.
    pub why: String,
    /// What to do about it.
    pub mend: String,
}

impl fmt::Display for Contradiction {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { place, value, why, mend } = self;
        write!(out, "{place} is {value}, but {why}: {mend}")
    }
}

/// Compares `facts`, which must lack the flags that are taken out of CMD and the rendered file, with `wanted`.
pub(super) fn find(facts: &Facts, wanted: &Wanted<'_>) -> Vec<Contradiction> {
    let mut found = Vec::new();
    founding(facts, &mut found);
    joining(facts, &mut found);
    identity(facts, wanted, &mut found);
    if wanted.server {
        leaving(facts, &mut found);
        found.extend(unreachable(facts, wanted));
    }
    found
}

/// A contradiction, written as it is read: place and value, why, mend.
fn against<T>(
    said: &Said<T>,
    value: impl fmt::Display,
    why: impl Into<String>,
    mend: impl Into<String>,
) -> Contradiction {
    Contradiction { place: said.place.clone(), value: value.to_string(), why: why.into(), mend: mend.into() }
}

fn is_true(said: &Option<Said<bool>>) -> Option<&Said<bool>> {
    said.as_ref().filter(|said| said.value)
}

fn founding(facts: &Facts, found: &mut Vec<Contradiction>) {
    if let Some(said) = is_true(&facts.bootstrap) {
        let why = "such a server elects itself without asking anyone";
        found.push(against(said, true, why, "remove it, and give --expect 1 where there is one server only"));
    }
    if let Some(said) = &facts.bootstrap_expect
        && said.value != 0
    {
        let why = "convene decides whether this server may found, and cannot take it out of there";
        found.push(against(said, said.value, why, format!("remove it there and give --expect {}", said.value)));
    }
    if let Some(said) = is_true(&facts.dev) {
        let why = "a development agent keeps nothing and is a cluster of its own";
        found.push(against(said, true, why, "remove it"));
    }
}

/// One line a place, however many entries it has.
fn joining(facts: &Facts, found: &mut Vec<Contradiction>) {
    let mut entries: Vec<&Said<String>> = Vec::new();
    for entry in facts.retry_join.iter().chain(&facts.start_join) {
        if !entries.iter().any(|seen| seen.place == entry.place) {
            entries.push(entry);
        }
    }
    for first in entries {
        let all = facts.retry_join.iter().chain(&facts.start_join).filter(|entry| entry.place == first.place);
        let shown_all: Vec<String> = all.map(|entry| shown(&entry.value)).collect();
        let sources: Vec<String> = shown_all.iter().map(|entry| source(entry)).collect();
        let why = "convene finds the servers itself, and cannot take it out of there";
        let mend = format!("remove it there and give --discover {}", sources.join(" --discover "));
        found.push(against(first, format!("\"{}\"", shown_all.join("\", \"")), why, mend));
    }
}

/// The source that means the same as an entry of `retry_join`.
fn source(entry: &str) -> String {
    if entry.starts_with("provider=") {
        return format!("'{entry}'");
    }
    let host = entry.trim_start_matches('[').split(']').next().unwrap_or(entry);
    let is_address = entry.parse::<std::net::SocketAddr>().is_ok() || host.parse::<IpAddr>().is_ok();
    format!("{}:{entry}", if is_address { "static" } else { "dns" })
}

fn identity(facts: &Facts, wanted: &Wanted<'_>, found: &mut Vec<Contradiction>) {
    if let Some(said) = &facts.server
        && said.value != wanted.server
    {
        let (role, other) = if wanted.server { ("a server", "client") } else { ("a client", "server") };
        let why = format!("convene was told that this node is {role}");
        found.push(against(said, said.value, why, format!("remove it, or give --role {other}")));
    }
    if let Some(said) = &facts.node_id
        && !wanted.node_id.is_some_and(|id| said.value.eq_ignore_ascii_case(id))
    {
        let why = match wanted.node_id {
            Some(id) => format!("this node's ID is {id}"),
            None => "this node's ID is convene's to keep".to_owned(),
        };
        let mend = format!("remove it; the ID stands in {}", wanted.data_dir.join("node-id").display());
        found.push(against(said, &said.value, why, mend));
    }
    if let Some(said) = &facts.data_dir
        && said.value != wanted.data_dir
    {
        let why = format!("convene was told {}", wanted.data_dir.display());
        found.push(against(said, said.value.display(), why, "give the same folder to both, or to CMD alone"));
    }
    if let (Some(Said { value: Some(address), place }), Some(advertise)) = (&facts.advertise_addr, wanted.advertise)
        && *address != advertise
    {
        let said = Said { value: (), place: place.clone() };
        let why = format!("convene advertises {advertise}");
        found.push(against(&said, address, why, "remove it, or give convene the same address"));
    }
    if let (Some(said), Some(name)) = (&facts.node_name, wanted.node_name)
        && said.value != name
    {
        let why = format!("convene names this node {name}");
        found.push(against(said, &said.value, why, "remove it, or give convene the same name"));
    }
}

fn leaving(facts: &Facts, found: &mut Vec<Contradiction>) {
    let why = "no signal may take this node out of the cluster, only convene leaves";
    let mend = "remove it, and give --leave=always if every stop shall be a leave (--leave=signal if Consul itself shall do it)";
    if let Some(said) = is_true(&facts.leave_on_terminate) {
        found.push(against(said, true, why, mend));
    }
    // In a file the rendered one, which comes later, wins over it.
    if let Some(said) = facts.skip_leave_on_interrupt.as_ref().filter(|said| !said.value)
        && matches!(said.place, Place::Fragment(_))
    {
        found.push(against(said, false, why, mend));
    }
}

/// Whether the other servers cannot ask this one over HTTP or HTTPS, though it advertises an address for them.
fn unreachable(facts: &Facts, wanted: &Wanted<'_>) -> Option<Contradiction> {
    let own = |said: &Option<Said<Option<IpAddr>>>| said.as_ref().and_then(|said| said.value);
    let advertised = wanted.advertise.or(own(&facts.advertise_addr)).or(own(&facts.bind_addr));
    if advertised.is_some_and(|address| address.is_loopback()) {
        return None;
    }
    let default = Said { value: Ipv4Addr::LOCALHOST.to_string(), place: Place::Default(Key::ClientAddr.name()) };
    let client = facts.client_addr.as_ref().unwrap_or(&default);
    // Consul's defaults: HTTP on 8500, HTTPS off.
    let http = facts.ports.http.as_ref().is_none_or(|port| port.value > 0);
    let https = facts.ports.https.as_ref().is_some_and(|port| port.value > 0);
    let listeners = [(http, &facts.http_addr), (https, &facts.https_addr)];
    let said: Vec<&Said<String>> =
        listeners.iter().filter(|(on, _)| *on).map(|(_, address)| address.as_ref().unwrap_or(client)).collect();
    let first = said.first().filter(|_| said.iter().all(|said| is_local(&said.value)))?;
    let all = if advertised.is_some_and(|address| address.is_ipv6()) { "::" } else { "0.0.0.0" };
    let mend = match first.place {
        Place::Flag(_) | Place::Entrypoint(_) | Place::Default(_) => {
            format!("give CMD -client={all}")
        }
        _ => format!("set it to {all}"),
    };
    Some(against(first, &first.value, "the other servers must be able to ask this one", mend))
}

/// Whether every address is loopback or a socket file. A template and what is no address count as not.
fn is_local(addresses: &str) -> bool {
    !addresses.contains("{{")
        && addresses.split_whitespace().all(|address| {
            address.starts_with("unix://")
                || address.starts_with('/')
                || address.parse().is_ok_and(|address: IpAddr| address.is_loopback())
        })
}

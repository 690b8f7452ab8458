//! The three servers as a client of Consul sees them: asked one by one at the addresses of their Services, which outlive the
//! Pods and need no Kubernetes API. Takes the voters that formed; gives answers, and what keeps the servers from being one
//! cluster of them. A server that does not answer is no failure here.

use crate::plan::SERVERS;
use crate::support::cluster::exchange;
use crate::support::kubernetes::namespace::{Voter, server};
use serde_json::Value;
use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// To connect: packets to a Pod that is gone are lost, so that a connection would be tried for long.
const CONNECT: Duration = Duration::from_millis(500);
/// For an answer: a server that knows no leader holds a question for 7 s, and another one may answer meanwhile.
pub const ANSWER: Duration = Duration::from_secs(1);
/// For all keys of a long run, on a small machine.
const LISTING: Duration = Duration::from_secs(10);
/// Where the writer's keys are.
pub const KEYS: &str = "chaos/";

/// Where the servers are, by ordinal.
#[derive(Debug)]
pub struct Servers {
    addresses: Vec<SocketAddr>,
}

/// What is asked of [`Servers::united`], beside a leader and the voters as they were.
#[derive(Debug, Clone, Copy)]
pub enum Wiped {
    /// Nobody lost its disk.
    Nobody,
    /// This one need not be back.
    Away(usize),
    /// This one must be back, as another node.
    Back(usize),
}

// === impl Servers ===

impl Servers {
    /// Of the voters that formed, by name, whose addresses are those of their Services.
    pub fn new(voters: &[Voter]) -> Self {
        Self { addresses: voters.iter().map(|voter| SocketAddr::new(voter.ip, 8500)).collect() }
    }

    /// One request; `None` when nothing is answered in time.
    pub fn request(&self, asked: usize, method: &str, path: &str, patience: Duration) -> Option<(u16, String)> {
        let stream = TcpStream::connect_timeout(&self.addresses[asked], CONNECT).ok()?;
        stream.set_read_timeout(Some(patience)).ok()?;
        exchange(stream, "Host: consul\r\n", method, path, "")
    }

    /// GETs; `None` when nothing or an error is answered.
    pub fn get(&self, asked: usize, path: &str) -> Option<Value> {
        let (status, body) = self.request(asked, "GET", path, ANSWER)?;
        (status == 200).then(|| serde_json::from_str(&body).ok()).flatten()
    }

    /// Whether a server says that it stored a key.
    pub fn write(&self, asked: usize, key: &str) -> bool {
        let answer = self.request(asked, "PUT", &format!("/v1/kv/{KEYS}{key}"), ANSWER);
        answer.is_some_and(|(status, body)| status == 200 && body.trim() == "true")
    }

    /// All keys of the writer, as the leader has them or as this server itself does.
    pub fn keys(&self, asked: usize, consistent: bool) -> Option<BTreeSet<String>> {
        let how = if consistent { "consistent" } else { "stale" };
        let (status, body) = self.request(asked, "GET", &format!("/v1/kv/{KEYS}?keys&{how}"), LISTING)?;
        let listed: Vec<String> = match status {
            200 => serde_json::from_str(&body).ok()?,
            404 => Vec::new(),
            _ => return None,
        };
        Some(listed.iter().filter_map(|key| key.strip_prefix(KEYS)).map(str::to_owned).collect())
    }

    /// Who a server says leads, or that it does not say so.
    pub fn leader(&self, asked: usize) -> Result<usize, String> {
        let said = self.get(asked, "/v1/status/leader").ok_or_else(|| format!("{} does not answer", server(asked)))?;
        let leader = said.as_str().and_then(|leader| leader.parse::<SocketAddr>().ok());
        let known = self.addresses.iter().position(|address| Some(address.ip()) == leader.map(|leader| leader.ip()));
        known.ok_or_else(|| format!("{} knows no leader", server(asked)))
    }

    /// The addresses of a server's raft peers; none while it has no configuration, or does not answer.
    pub fn peers(&self, asked: usize) -> Vec<String> {
        let listed = self.get(asked, "/v1/status/peers").unwrap_or_default();
        listed.as_array().into_iter().flatten().filter_map(|peer| Some(peer.as_str()?.to_owned())).collect()
    }

    /// Those of these addresses that are no server's.
    pub fn strangers<'a>(&self, peers: &'a [String]) -> Vec<&'a String> {
        let is_ours = |peer: SocketAddr| self.addresses.iter().any(|address| address.ip() == peer.ip());
        peers.iter().filter(|peer| !peer.parse().is_ok_and(is_ours)).collect()
    }

    /// The term in which a server says that it leads.
    pub fn leads_in(&self, asked: usize) -> Option<u64> {
        let raft = self.get(asked, "/v1/agent/self")?["Stats"]["raft"].take();
        (raft["state"] == "Leader").then(|| raft["term"].as_str()?.parse().ok()).flatten()
    }

    /// Hands leadership over to a voter, if it does not lead already.
    pub fn transfer(&self, to: usize, id: &str) {
        if self.leader(to) != Ok(to) {
            let _ = self.request(to, "POST", &format!("/v1/operator/raft/transfer-leader?id={id}"), LISTING);
        }
    }

    /// What keeps the servers from being one cluster of these voters, by ordinal, with one leader.
    pub fn united(&self, voters: &[Voter], wiped: Wiped) -> Result<(), String> {
        let mut leaders = BTreeSet::new();
        for asked in (0..SERVERS).filter(|asked| !matches!(wiped, Wiped::Away(away) if away == *asked)) {
            let name = server(asked);
            leaders.insert(self.leader(asked)?);
            let now = self.voters(asked).ok_or_else(|| format!("{name} does not tell its raft configuration"))?;
            for (ordinal, voter) in voters.iter().enumerate() {
                let found: Vec<&Voter> = now.iter().filter(|one| one.ip == voter.ip).collect();
                let is_right = match (wiped, &found[..]) {
                    (Wiped::Away(away), _) if away == ordinal => true,
                    (Wiped::Back(back), [one]) if back == ordinal => one.name == voter.name && one.id != voter.id,
                    (_, [one]) => *one == voter,
                    _ => false,
                };
                if !is_right {
                    return Err(format!("{name} has {found:?} as voters at the address of {voter:?}"));
                }
            }
        }
        if leaders.len() == 1 { Ok(()) } else { Err(format!("they name the leaders {leaders:?}")) }
    }

    /// The voters of a server's own configuration, sorted by name.
    pub fn voters(&self, asked: usize) -> Option<Vec<Voter>> {
        let configuration = self.get(asked, "/v1/operator/raft/configuration?stale")?;
        let voter = |one: &Value| {
            let address: SocketAddr = one["Address"].as_str()?.parse().ok()?;
            let text = |value: &Value| value.as_str().map(str::to_owned);
            Some(Voter { name: text(&one["Node"])?, id: text(&one["ID"])?, ip: address.ip() })
        };
        let listed = configuration["Servers"].as_array()?.iter().filter(|one| one["Voter"] == true);
        let mut voters: Vec<Voter> = listed.filter_map(voter).collect();
        voters.sort();
        Some(voters)
    }
}

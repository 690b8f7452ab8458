//! The only HTTP: what convene asks Consul's agents.
//!
//! Takes an endpoint, gives typed answers. Every call has a deadline, follows no redirect and reads at most 1 MiB. A token
//! goes to the own agent, and to another server only over verified TLS, and nowhere with what is told to everybody. Fails with [`ApiError`], which tells a refused
//! connection from silence, and both from an answer that is none of Consul's.

mod catalog;
mod rights;

use super::client::{beginning, built, client, client_at, failed, plain_client, token_header};
use crate::settings::http::{Endpoint, Http, Secret, Token};
use crate::settings::{Local, MAX_SERVERS};
use catalog::escaped;
pub use catalog::{CatalogNode, K8S_NODE};
use reqwest::header::HeaderMap;
use reqwest::{Client, Method, Response, StatusCode};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;
use thiserror::Error;

/// The most that is read of an answer, in bytes: a cluster's peers are a few hundred.
pub const MAX_ANSWER: usize = 1 << 20;
/// What lies below needs no ACL: Consul 1.22.6 answers it with no token, an unknown one, and any other.
const OPEN: &str = "/v1/status/";
/// How long an agent may take for an answer that it has in memory.
pub const QUICK: Duration = Duration::from_secs(2);

/// Why an agent gave no answer.
#[derive(Debug, Error)]
pub enum ApiError {
    /// Nobody listens there.
    #[error("{url} refuses the connection")]
    Refused {
        /// What was asked.
        url: String,
    },
    /// No answer within the deadline.
    #[error("{url} did not answer within {} ms", .waited.as_millis())]
    Silent {
        /// What was asked.
        url: String,
        /// The deadline.
        waited: Duration,
    },
    /// No connection, or one that broke.
    #[error("could not ask {url}: {reason}")]
    Broken {
        /// What was asked.
        url: String,
        /// The innermost cause.
        reason: String,
    },
    /// An answer that says no.
    #[error("{url} answered {status}: {said}")]
    Status {
        /// What was asked.
        url: String,
        /// The HTTP status.
        status: u16,
        /// The first line of the answer.
        said: String,
    },
    /// A redirect, which is not followed.
    #[error("{url} answered with a redirect to {to}; convene follows none: give the agent's own address")]
    Redirect {
        /// What was asked.
        url: String,
        /// Where to.
        to: String,
    },
    /// More than [`MAX_ANSWER`], or than a list of many nodes may have.
    #[error("{url} answered more than {} MiB, which no Consul agent does", .most >> 20)]
    TooLarge {
        /// What was asked.
        url: String,
        /// How much would have been read, in bytes.
        most: usize,
    },
    /// Not what Consul answers.
    #[error("{url} answered something that is not Consul's ({reason}): {begins:?}")]
    Strange {
        /// What was asked.
        url: String,
        /// What was wrong with it.
        reason: String,
        /// How it begins.
        begins: String,
    },
    /// The client could not be made: a certificate or a token file.
    #[error("could not read {}: {reason}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The TLS settings do not work.
    #[error("could not prepare TLS: {reason}")]
    Tls {
        /// Why.
        reason: String,
    },
}

/// Why Consul does not join a server that is another cluster's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Foreign {
    /// Only one of both encrypts its gossip, or they have no key in common.
    GossipKey,
    /// It is of another datacenter.
    Datacenter,
}

/// How Consul 1.22.6 says so, after "Failed to join": the first three are memberlist's (net.go), the last one is Consul's own
/// (agent/consul/merge.go).
const FOREIGN: &[(&str, Foreign)] = &[
    ("No installed keys could decrypt the message", Foreign::GossipKey),
    ("Encryption is configured but remote state is not encrypted", Foreign::GossipKey),
    ("Remote state is encrypted and encryption is not configured", Foreign::GossipKey),
    ("part of wrong datacenter", Foreign::Datacenter),
];

/// One agent.
#[derive(Debug, Clone)]
pub struct Agent {
    client: Client,
    base: String,
    token: Option<Token>,
    basic: Option<Secret>,
}

/// A member of the gossip pool, as `/v1/agent/members` lists it.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Member {
    /// The node's name.
    pub name: String,
    /// Its address.
    pub addr: String,
    /// Serf's status: 1 alive, 2 leaving, 3 left, 4 failed (serf/serf.go, `MemberStatus`).
    pub status: u8,
    /// `role` is `consul` for servers.
    #[serde(default)]
    pub tags: std::collections::BTreeMap<String, String>,
}

/// A server in the raft configuration, as `/v1/operator/raft/configuration` lists it.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct RaftServer {
    /// The node ID.
    #[serde(rename = "ID")]
    pub id: String,
    /// The node's name, `(unknown)` when serf does not know it.
    pub node: String,
    /// Address and server port.
    pub address: String,
    /// Whether it leads.
    pub leader: bool,
    /// Whether it votes.
    pub voter: bool,
}

/// A server as `/v1/operator/autopilot/state` lists it.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct PilotedServer {
    /// The node ID.
    #[serde(rename = "ID")]
    pub id: String,
    /// Where its server port is.
    pub address: String,
    /// The last entry of its log, as the leader heard of it some seconds ago.
    pub last_index: u64,
    /// And that entry's term.
    pub last_term: u64,
}

/// How far a log reaches: whichever has the later term knows more, however long the other is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reach {
    /// The term of its last entry.
    pub term: u64,
    /// The index of its last entry.
    pub index: u64,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct AutopilotState {
    servers: std::collections::BTreeMap<String, PilotedServer>,
}

/// The part of `/v1/connect/ca/roots` that convene reads.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Roots {
    trust_domain: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RaftConfiguration {
    servers: Vec<RaftServer>,
}

/// How well a server is in touch with its leader, as the headers of a read say that it answers by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Contact {
    /// `X-Consul-KnownLeader`.
    pub leader_known: bool,
    /// `X-Consul-LastContact`: when it last heard of the leader; 0 on the leader.
    pub ago: Duration,
}

/// The parts of `/v1/agent/self` that convene reads.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct AgentSelf {
    /// The node's name, ID and role.
    pub config: AgentConfig,
    /// Ourselves as serf sees us.
    pub member: Option<Member>,
    /// Counters; `raft` holds state, last contact and suffrage.
    #[serde(default)]
    pub stats: std::collections::BTreeMap<String, std::collections::BTreeMap<String, String>>,
}

/// `Config` of `/v1/agent/self`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct AgentConfig {
    /// The node's name.
    pub node_name: String,
    /// The node ID.
    #[serde(rename = "NodeID")]
    pub node_id: String,
    /// Whether it is a server.
    pub server: bool,
}

// === impl AgentSelf ===

impl AgentSelf {
    /// How far a server's log reaches, or its snapshot, which may be all that it has: it is sent one that lacks too much.
    pub fn reach(&self) -> Option<Reach> {
        let raft = self.stats.get("raft")?;
        let number = |key: &str| raft.get(key)?.parse().ok();
        let of = |term, index| Some(Reach { term: number(term)?, index: number(index)? });
        of("last_log_term", "last_log_index").max(of("last_snapshot_term", "last_snapshot_index"))
    }
}

// === impl PilotedServer ===

impl PilotedServer {
    /// How far its log reaches.
    pub fn reach(&self) -> Reach {
        Reach { term: self.last_term, index: self.last_index }
    }
}

// === impl Foreign ===

impl Foreign {
    /// What differs, and what to do.
    pub fn differs(self) -> &'static str {
        match self {
            Self::GossipKey => "its gossip key differs from this agent's: give both the same encrypt key",
            Self::Datacenter => "its datacenter differs from this agent's: give both the same datacenter",
        }
    }
}

// === impl ApiError ===

impl ApiError {
    /// The agent said that we may not.
    pub fn is_denied(&self) -> bool {
        matches!(self, Self::Status { status: 401 | 403, .. })
    }

    /// Nobody answered; another agent behind the same address might.
    pub fn is_no_answer(&self) -> bool {
        matches!(self, Self::Refused { .. } | Self::Silent { .. } | Self::Broken { .. })
    }

    /// It may answer soon, unlike one that says that it will not.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Status { status, said, .. } => *status >= 500 && !said.contains("Connect must be enabled"),
            _ => true,
        }
    }

    /// Consul refuses to join a server, as another cluster's.
    pub fn foreign(&self) -> Option<Foreign> {
        let Self::Status { said, .. } = self else { return None };
        FOREIGN.iter().find(|(part, _)| said.contains(part)).map(|(_, foreign)| *foreign)
    }

    /// Consul does not know the token, and refuses what it would answer to nobody in particular (1.22.6: 403 "ACL not found").
    pub fn is_unknown_token(&self) -> bool {
        matches!(self, Self::Status { status: 403, said, .. } if said.contains("ACL not found"))
    }

    /// The agent has no ACLs that it could ask (1.22.6: 401 "ACL support disabled").
    pub fn has_no_acls(&self) -> bool {
        matches!(self, Self::Status { status: 401, said, .. } if said.contains("ACL support disabled"))
    }

    /// Gossip has no such node (1.22.6: 500 "agent: No node found with name 'x'").
    pub fn is_unknown_node(&self) -> bool {
        matches!(self, Self::Status { status: 500, said, .. } if said.contains("No node found with name"))
    }
}

// === impl Member ===

impl Member {
    /// Serf's status "alive".
    pub fn is_alive(&self) -> bool {
        self.status == 1
    }

    /// Serf's status "failed".
    pub fn has_failed(&self) -> bool {
        self.status == 4
    }

    /// Serf's status "left".
    pub fn has_left(&self) -> bool {
        self.status == 3
    }

    /// Whether it is a server.
    pub fn is_server(&self) -> bool {
        self.tags.get("role").is_some_and(|role| role == "consul")
    }
}

// === impl Agent ===

impl Agent {
    /// The own agent, with our token.
    ///
    /// # Errors
    /// [`ApiError::File`], [`ApiError::Tls`].
    pub fn own(http: &Http) -> Result<Self, ApiError> {
        let (builder, base) = match &http.own {
            Endpoint::Unix(path) => {
                (client(&http.tls, false)?.unix_socket(path.as_path()), "http://127.0.0.1".to_owned())
            }
            Endpoint::Tcp { tls: true, host, port, prefix } => {
                match (&http.tls.server_name, host.trim_matches(['[', ']']).parse::<IpAddr>()) {
                    // The certificate's name stands in the URL, the address or the name to look up is given beside it.
                    (Some(name), Ok(ip)) => (
                        client(&http.tls, true)?.resolve(name, SocketAddr::new(ip, *port)),
                        format!("https://{name}:{port}{prefix}"),
                    ),
                    (Some(name), Err(_)) => (client_at(&http.tls, host)?, format!("https://{name}:{port}{prefix}")),
                    (None, _) => (client(&http.tls, true)?, format!("https://{host}:{port}{prefix}")),
                }
            }
            plain => {
                let (client, base) = (plain_client()?, plain.to_string());
                return Ok(Self { client, base, token: http.token.clone(), basic: http.basic.clone() });
            }
        };
        Ok(Self { client: built(builder)?, base, token: http.token.clone(), basic: http.basic.clone() })
    }

    /// The same agent, asked as nobody in particular.
    pub fn without_token(&self) -> Self {
        Self { token: None, ..self.clone() }
    }

    /// `/v1/status/leader`: the leader's address, `None` when none is known. Needs no ACL.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn leader(&self) -> Result<Option<SocketAddr>, ApiError> {
        let leader: String = self.get("/v1/status/leader", QUICK).await?;
        if leader.is_empty() { Ok(None) } else { self.server_address(&leader).map(Some) }
    }

    /// `/v1/status/peers`: the raft peers, sorted, `[]` when the agent was never part of a cluster. Local, needs no ACL, lists
    /// non-voters too, and shows the latest configuration, committed or not.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn peers(&self) -> Result<Vec<SocketAddr>, ApiError> {
        let peers: Vec<String> = self.get("/v1/status/peers", QUICK).await?;
        if peers.len() > MAX_SERVERS as usize {
            return Err(self.no_servers(&format!("{} raft peers", peers.len())));
        }
        let mut peers = peers.iter().map(|peer| self.server_address(peer)).collect::<Result<Vec<_>, _>>()?;
        peers.sort();
        Ok(peers)
    }

    fn server_address(&self, text: &str) -> Result<SocketAddr, ApiError> {
        text.parse().map_err(|_| self.no_servers(text))
    }

    fn no_servers(&self, text: &str) -> ApiError {
        ApiError::Strange {
            url: self.base.clone(),
            reason: format!("addresses of at most {MAX_SERVERS} servers were expected"),
            begins: text.chars().take(100).collect(),
        }
    }

    /// The agent's own datacenter: the first of `/v1/catalog/datacenters`. Needs no ACL and no leader.
    ///
    /// They are sorted by distance, and Consul takes the distance to its own one for zero (agent/router/router.go,
    /// `GetDatacentersByDistance`). Tried on 1.22.6: four datacenters joined over the WAN, each names itself first, from its
    /// first second on; also before any leader, without a WAN pool, and with `default_policy = "deny"`.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn datacenter(&self) -> Result<String, ApiError> {
        let path = "/v1/catalog/datacenters";
        let known: Vec<String> = self.get(path, QUICK).await?;
        known.into_iter().next().ok_or_else(|| ApiError::Strange {
            url: format!("{}{path}", self.base),
            reason: "its own datacenter was expected".to_owned(),
            begins: "[]".to_owned(),
        })
    }

    /// The cluster's ID: the trust domain of its certificate authority, a UUID that the first leader makes and that stays.
    /// Needs no ACL.
    ///
    /// Tried on 1.22.6: every server of a cluster tells the same one some milliseconds after it knows a leader, followers and
    /// `default_policy = "deny"` included, and still when the leader is lost. Until then it answers 500, "CA has not finished
    /// initializing"; a server that has known no leader since its start is silent; with `connect { enabled = false }` it answers
    /// 500, "Connect must be enabled". A secondary datacenter has its primary's.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn cluster(&self) -> Result<String, ApiError> {
        let roots: Roots = self.get("/v1/connect/ca/roots?stale", QUICK).await?;
        Ok(roots.trust_domain)
    }

    /// The servers in `/v1/agent/members`: empty without `node:read`. Filtered by the agent, because thousands of clients
    /// would make a long answer.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn servers(&self) -> Result<Vec<Member>, ApiError> {
        let mut members: Vec<Member> = self.get("/v1/agent/members?filter=Tags.role%20%3D%3D%20consul", QUICK).await?;
        members.retain(Member::is_server);
        Ok(members)
    }

    /// One member by its name; `None` when there is none, or without `node:read`.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn member(&self, name: &str) -> Result<Option<Member>, ApiError> {
        // A filter's strings have no escapes, and no name of Consul's needs one.
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if !name.chars().all(plain) {
            return Ok(None);
        }
        let path = format!("/v1/agent/members?filter={}", escaped(&format!("Name == \"{name}\"")));
        Ok(self.get::<Vec<Member>>(&path, QUICK).await?.pop())
    }

    /// `/v1/agent/self`: needs `agent:read`.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn describe(&self) -> Result<AgentSelf, ApiError> {
        self.describe_within(QUICK).await
    }

    /// The same for who is in no hurry: without a leader it waits behind the agent's own tries to register itself, each of which lasts
    /// for 7 s (1.22.6, anti-entropy holds the lock of the local state; silent for more than 8 s, seen).
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn describe_within(&self, within: Duration) -> Result<AgentSelf, ApiError> {
        self.get("/v1/agent/self", within).await
    }

    /// `/v1/operator/raft/configuration`, the leader's view: needs `operator:read`.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn raft_configuration(&self) -> Result<Vec<RaftServer>, ApiError> {
        let configuration: RaftConfiguration = self.get("/v1/operator/raft/configuration", QUICK).await?;
        Ok(configuration.servers)
    }

    /// The servers in a raft configuration, as the agent answers it.
    ///
    /// # Errors
    /// What serde_json says of another answer.
    pub fn raft_servers(answer: &[u8]) -> Result<Vec<RaftServer>, serde_json::Error> {
        serde_json::from_slice(answer).map(|configuration: RaftConfiguration| configuration.servers)
    }

    /// The same configuration as this server has it, without a leader too, as it was told: needs `operator:read`.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn own_raft_configuration(&self) -> Result<Vec<u8>, ApiError> {
        self.ask(Method::GET, "/v1/operator/raft/configuration?stale", QUICK).await
    }

    /// `/v1/snapshot?stale`: all state as this server has it, for `consul snapshot restore`, handed on piece by piece; gives its
    /// bytes. Needs `acl:write`, and no leader (1.22.6).
    ///
    /// # Errors
    /// [`ApiError`]; [`ApiError::Broken`] also where a piece could not be kept.
    pub async fn snapshot(
        &self,
        within: Duration,
        mut keep: impl FnMut(&[u8]) -> std::io::Result<()>,
    ) -> Result<u64, ApiError> {
        let (mut response, _) = self.open(Method::GET, "/v1/snapshot?stale", Vec::new(), within).await?;
        let url = format!("{}/v1/snapshot?stale", self.base);
        let status = response.status();
        let (mut said, mut bytes) = (Vec::new(), 0_u64);
        while let Some(chunk) = response.chunk().await.map_err(|error| failed(&url, within, &error))? {
            bytes += chunk.len() as u64;
            if status == StatusCode::OK {
                keep(&chunk).map_err(|error| ApiError::Broken { url: url.clone(), reason: error.to_string() })?;
            } else if said.len() < 1000 {
                said.extend_from_slice(&chunk);
            }
        }
        if status != StatusCode::OK {
            return Err(ApiError::Status { url, status: status.as_u16(), said: beginning(&said) });
        }
        Ok(bytes)
    }

    /// `/v1/operator/autopilot/state`, the leader's view: needs `operator:read`. Since Consul 1.9.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn piloted(&self) -> Result<Vec<PilotedServer>, ApiError> {
        let state: AutopilotState = self.get("/v1/operator/autopilot/state", QUICK).await?;
        Ok(state.servers.into_values().collect())
    }

    /// `POST /v1/operator/raft/transfer-leader?id=<node ID>`: makes that server the leader; answers when it was told to stand. Any
    /// server passes it on to the leader, so only the leader may ask for it. Needs `operator:write`. Since Consul 1.15.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn transfer_leader(&self, id: &str) -> Result<(), ApiError> {
        self.ask(Method::POST, &format!("/v1/operator/raft/transfer-leader?id={id}"), QUICK).await.map(drop)
    }

    /// How well the agent is in touch with its leader: the headers of a stale read, which a server answers by itself.
    ///
    /// Tried on Consul 1.22.6 with `default_policy = "deny"` and no token: reads that only filter what they list (sessions, nodes,
    /// services, checks, coordinates, prepared queries) answer 200 with both headers, on a follower too, in about 1 ms; what
    /// needs a permission (kv, operator, agent) answers 403 without; `/v1/catalog/datacenters` has no such headers. Of the
    /// former a session that cannot exist has the smallest answer with any token. Without a quorum it still answers at once,
    /// `X-Consul-KnownLeader: false`; before the first bootstrap it is silent for seconds, when no leader is known either.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn contact(&self) -> Result<Contact, ApiError> {
        let path = "/v1/session/info/00000000-0000-0000-0000-000000000000?stale";
        let (headers, _) = self.answer(Method::GET, path, QUICK, MAX_ANSWER).await?;
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let (known, last) = (header("x-consul-knownleader"), header("x-consul-lastcontact"));
        match (known.parse(), last.parse()) {
            (Ok(leader_known), Ok(millis)) => Ok(Contact { leader_known, ago: Duration::from_millis(millis) }),
            _ => Err(ApiError::Strange {
                url: format!("{}{path}", self.base),
                reason: "its headers X-Consul-KnownLeader and X-Consul-LastContact were expected".to_owned(),
                begins: format!("{known}, {last}").chars().take(100).collect(),
            }),
        }
    }

    /// `PUT /v1/agent/join/<address>`: needs `agent:write`.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn join(&self, address: &str) -> Result<(), ApiError> {
        // Serf's TCP dial times out after 10 s; more than that is another fault.
        self.ask(Method::PUT, &format!("/v1/agent/join/{address}"), Duration::from_secs(12)).await.map(drop)
    }

    /// `PUT /v1/agent/force-leave/<name>`: takes an agent that is gone out of the cluster, for good; of a server a removal from raft
    /// alone would not while gossip still knows it. The leader takes it out of the catalog. One that is alive refutes it and loses
    /// nothing; with `?prune` it is thrown out, and was not back after 40 s (1.22.6). Needs `operator:write`, and nothing else.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn force_leave(&self, node: &str) -> Result<(), ApiError> {
        self.ask(Method::PUT, &format!("/v1/agent/force-leave/{}", escaped(node)), QUICK).await.map(drop)
    }

    /// `DELETE /v1/operator/raft/peer?address=<address>`: takes a server out of the raft configuration. One that gossip still knows
    /// would come back. Needs `operator:write`.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn remove_peer(&self, address: SocketAddr) -> Result<(), ApiError> {
        self.ask(Method::DELETE, &format!("/v1/operator/raft/peer?address={address}"), QUICK).await.map(drop)
    }

    /// `PUT /v1/agent/leave`: answers when the agent has left; needs `agent:write`.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn leave(&self, within: Duration) -> Result<(), ApiError> {
        self.ask(Method::PUT, "/v1/agent/leave", within).await.map(drop)
    }

    /// `PUT /v1/agent/reload`: the agent reads its configuration again, as at a HUP; answers when it has. Needs `agent:write`.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn reload(&self) -> Result<(), ApiError> {
        self.ask(Method::PUT, "/v1/agent/reload", QUICK).await.map(drop)
    }

    async fn get<T: DeserializeOwned>(&self, path: &str, within: Duration) -> Result<T, ApiError> {
        self.get_of(path, within, MAX_ANSWER).await
    }

    /// The same for an answer of at most so many bytes.
    async fn get_of<T: DeserializeOwned>(&self, path: &str, within: Duration, most: usize) -> Result<T, ApiError> {
        let (_, body) = self.answer(Method::GET, path, within, most).await?;
        serde_json::from_slice(&body).map_err(|error| ApiError::Strange {
            url: format!("{}{path}", self.base),
            reason: error.to_string(),
            begins: beginning(&body),
        })
    }

    async fn ask(&self, method: Method, path: &str, within: Duration) -> Result<Vec<u8>, ApiError> {
        self.answer(method, path, within, MAX_ANSWER).await.map(|(_, body)| body)
    }

    async fn answer(
        &self,
        method: Method,
        path: &str,
        within: Duration,
        most: usize,
    ) -> Result<(HeaderMap, Vec<u8>), ApiError> {
        self.answer_to(method, path, Vec::new(), within, most).await
    }

    /// The same to a question that has a body, which may be empty.
    async fn answer_to(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
        within: Duration,
        most: usize,
    ) -> Result<(HeaderMap, Vec<u8>), ApiError> {
        let url = format!("{}{path}", self.base);
        let (mut response, headers) = self.open(method, path, body, within).await?;
        let status = response.status();
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| failed(&url, within, &error))? {
            if body.len() + chunk.len() > most {
                return Err(ApiError::TooLarge { url, most });
            }
            body.extend_from_slice(&chunk);
        }
        if status != StatusCode::OK {
            return Err(ApiError::Status { url, status: status.as_u16(), said: beginning(&body) });
        }
        Ok((headers, body))
    }

    /// The answer before its body, which is still to be read.
    async fn open(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
        within: Duration,
    ) -> Result<(Response, HeaderMap), ApiError> {
        let url = format!("{}{path}", self.base);
        let mut request = self.client.request(method, &url).timeout(within);
        if !body.is_empty() {
            request = request.body(body);
        }
        // What is told to everybody must not depend on a token's file, nor on Consul's knowing the token.
        let token = self.token.as_ref().filter(|_| !path.starts_with(OPEN));
        if let Some(token) = token {
            request = request.header("X-Consul-Token", token_header(token)?);
        }
        if let Some(basic) = &self.basic {
            let (user, password) = basic.reveal().split_once(':').unwrap_or((basic.reveal(), ""));
            request = request.basic_auth(user, Some(password));
        }
        let mut response = request.send().await.map_err(|error| failed(&url, within, &error))?;
        let headers = std::mem::take(response.headers_mut());
        if response.status().is_redirection() {
            let to = headers.get("location").and_then(|to| to.to_str().ok()).unwrap_or("nowhere");
            return Err(ApiError::Redirect { url: url.clone(), to: to.chars().take(200).collect() });
        }
        Ok((response, headers))
    }
}

/// Makes agents for the other servers.
#[derive(Debug, Clone)]
pub struct Peers {
    plain: Client,
    http: Http,
    port: u16,
    tls_name: String,
}

// === impl Peers ===

impl Peers {
    /// For the servers of one cluster.
    ///
    /// # Errors
    /// [`ApiError::File`], [`ApiError::Tls`].
    pub fn new(local: &Local) -> Result<Self, ApiError> {
        Ok(Self {
            plain: plain_client()?,
            http: local.http.clone(),
            port: local.peer.http,
            tls_name: local.server_tls_name.clone(),
        })
    }

    /// The agent at another server's address. Over TLS its certificate must have the servers' name.
    ///
    /// # Errors
    /// [`ApiError::File`], [`ApiError::Tls`].
    pub fn at(&self, ip: IpAddr) -> Result<Agent, ApiError> {
        let address = SocketAddr::new(ip, self.port);
        if !self.http.peers_tls {
            return Ok(Agent {
                client: self.plain.clone(),
                base: format!("http://{address}"),
                token: None,
                basic: None,
            });
        }
        let builder = client(&self.http.tls, true)?.resolve(&self.tls_name, address);
        let token = if self.http.tls.unverified { None } else { self.http.token.clone() };
        Ok(Agent {
            client: built(builder)?,
            base: format!("https://{}:{}", self.tls_name, self.port),
            token,
            basic: None,
        })
    }
}

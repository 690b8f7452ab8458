//! The only HTTP: what convene asks Consul's agents.
//!
//! Takes an endpoint, gives typed answers. Every call has a deadline, follows no redirect and reads at most 1 MiB. A token
//! goes to the own agent, and to another server only over verified TLS. Fails with [`ApiError`], which tells a refused
//! connection from silence, and both from an answer that is none of Consul's.

use super::client::{beginning, built, client, failed, plain_client, token_header};
use crate::settings::http::{Endpoint, Http, Secret, Token};
use crate::settings::{Local, MAX_SERVERS};
use reqwest::header::HeaderMap;
use reqwest::{Client, Method, StatusCode};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;
use thiserror::Error;

/// The most that is read of any answer, in bytes: a cluster's peers are a few hundred.
pub const MAX_ANSWER: usize = 1 << 20;
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
    /// More than [`MAX_ANSWER`].
    #[error("{url} answered more than 1 MiB, which no Consul agent does")]
    TooLarge {
        /// What was asked.
        url: String,
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

// === impl ApiError ===

impl ApiError {
    /// The agent said that we may not.
    pub fn is_denied(&self) -> bool {
        matches!(self, Self::Status { status: 401 | 403, .. })
    }

    /// Consul does not know the token, and refuses what it would answer to nobody in particular (1.22.6: 403 "ACL not found").
    pub fn is_unknown_token(&self) -> bool {
        matches!(self, Self::Status { status: 403, said, .. } if said.contains("ACL not found"))
    }
}

// === impl Member ===

impl Member {
    /// Serf's status "alive".
    pub fn is_alive(&self) -> bool {
        self.status == 1
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
                    // The certificate's name stands in the URL, the address is given beside it.
                    (Some(name), Ok(ip)) => (
                        client(&http.tls, true)?.resolve(name, SocketAddr::new(ip, *port)),
                        format!("https://{name}:{port}{prefix}"),
                    ),
                    _ => (client(&http.tls, true)?, format!("https://{host}:{port}{prefix}")),
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
        let leader: String = self.get("/v1/status/leader").await?;
        if leader.is_empty() { Ok(None) } else { self.server_address(&leader).map(Some) }
    }

    /// `/v1/status/peers`: the raft peers, sorted, `[]` when the agent was never part of a cluster. Local, needs no ACL, lists
    /// non-voters too, and shows the latest configuration, committed or not.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn peers(&self) -> Result<Vec<SocketAddr>, ApiError> {
        let peers: Vec<String> = self.get("/v1/status/peers").await?;
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

    /// The servers in `/v1/agent/members`: empty without `node:read`. Filtered by the agent, because thousands of clients
    /// would make a long answer.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn servers(&self) -> Result<Vec<Member>, ApiError> {
        let mut members: Vec<Member> = self.get("/v1/agent/members?filter=Tags.role%20%3D%3D%20consul").await?;
        members.retain(Member::is_server);
        Ok(members)
    }

    /// `/v1/agent/self`: needs `agent:read`.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn describe(&self) -> Result<AgentSelf, ApiError> {
        self.get("/v1/agent/self").await
    }

    /// `/v1/operator/raft/configuration`, the leader's view: needs `operator:read`.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn raft_configuration(&self) -> Result<Vec<RaftServer>, ApiError> {
        let configuration: RaftConfiguration = self.get("/v1/operator/raft/configuration").await?;
        Ok(configuration.servers)
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
        let (headers, _) = self.answer(Method::GET, path, QUICK).await?;
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

    /// `PUT /v1/agent/force-leave/<name>`: takes a server that is gone out of the cluster, for good, which a removal from raft alone
    /// would not while gossip still knows it. Needs `operator:write`.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn force_leave(&self, node: &str) -> Result<(), ApiError> {
        self.ask(Method::PUT, &format!("/v1/agent/force-leave/{node}"), QUICK).await.map(drop)
    }

    /// `PUT /v1/agent/leave`: answers when the agent has left; needs `agent:write`.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn leave(&self, within: Duration) -> Result<(), ApiError> {
        self.ask(Method::PUT, "/v1/agent/leave", within).await.map(drop)
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ApiError> {
        let body = self.ask(Method::GET, path, QUICK).await?;
        serde_json::from_slice(&body).map_err(|error| ApiError::Strange {
            url: format!("{}{path}", self.base),
            reason: error.to_string(),
            begins: beginning(&body),
        })
    }

    async fn ask(&self, method: Method, path: &str, within: Duration) -> Result<Vec<u8>, ApiError> {
        self.answer(method, path, within).await.map(|(_, body)| body)
    }

    async fn answer(&self, method: Method, path: &str, within: Duration) -> Result<(HeaderMap, Vec<u8>), ApiError> {
        let url = format!("{}{path}", self.base);
        let mut request = self.client.request(method, &url).timeout(within);
        if let Some(token) = &self.token {
            request = request.header("X-Consul-Token", token_header(token)?);
        }
        if let Some(basic) = &self.basic {
            let (user, password) = basic.reveal().split_once(':').unwrap_or((basic.reveal(), ""));
            request = request.basic_auth(user, Some(password));
        }
        let failed = |error: reqwest::Error| failed(&url, within, &error);
        let mut response = request.send().await.map_err(failed)?;
        let status = response.status();
        let headers = std::mem::take(response.headers_mut());
        if status.is_redirection() {
            let to = headers.get("location").and_then(|to| to.to_str().ok()).unwrap_or("nowhere");
            return Err(ApiError::Redirect { url: url.clone(), to: to.chars().take(200).collect() });
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            if body.len() + chunk.len() > MAX_ANSWER {
                return Err(ApiError::TooLarge { url });
            }
            body.extend_from_slice(&chunk);
        }
        if status != StatusCode::OK {
            return Err(ApiError::Status { url, status: status.as_u16(), said: beginning(&body) });
        }
        Ok((headers, body))
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
        if !self.http.over_tls() {
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

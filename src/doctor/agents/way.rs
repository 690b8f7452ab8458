//! How is a server's agent asked, and what is it asked? Directly, or through the Kubernetes API.
//!
//! Takes an agent or a Pod, gives [`Said`], each part of it with its own failure, or why it says nothing at all. Each question has a
//! deadline. A token goes where [`Agent`] lets it go, and never through the Kubernetes API.

use super::{Said, text};
use crate::api::consul::{Agent, ApiError, Member, RaftServer};
use crate::api::kube::raw::ThroughPod;
use crate::api::kube::{Kube, KubeError};
use crate::doctor::objects::why_unseen;
use crate::exit::chain;
use serde_json::Value;
use std::time::Duration;
use tokio::time::timeout;

/// How long an agent may take for one answer: it has all of them in memory.
pub(super) const ANSWER: Duration = Duration::from_millis(1200);

/// How an agent is asked.
#[derive(Debug, Clone)]
pub enum Way {
    /// Directly, with our token where it may go there.
    Direct(Agent),
    /// Through the Kubernetes API, as nobody in particular: behind it the request may travel without TLS.
    Pod {
        /// The Kubernetes API.
        kube: Kube,
        /// The Pod's namespace.
        namespace: String,
        /// The Pod.
        pod: String,
        /// The port of the agent's API.
        port: u16,
        /// Whether it speaks TLS.
        tls: bool,
    },
}

/// Why something was not said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lack {
    /// The token may not, or there is none.
    Denied,
    /// Consul does not know the token.
    UnknownToken,
    /// We cannot ask: the Kubernetes API does not let us, or TLS does not work.
    NoWay(String),
    /// No answer, or one that says nothing.
    Failed(String),
}

/// An answer, or why there is none.
pub type Answer<T> = Result<T, Lack>;

// === impl Lack ===

impl Lack {
    /// Sorts an agent's failure.
    pub fn of(error: &ApiError) -> Self {
        match error {
            error if error.is_unknown_token() => Self::UnknownToken,
            error if error.is_denied() => Self::Denied,
            ApiError::File { .. } | ApiError::Tls { .. } => Self::NoWay(chain(error)),
            // The certificate is a finding of its own.
            ApiError::Broken { reason, .. } if reason.contains("certificate") => Self::NoWay(chain(error)),
            error => Self::Failed(chain(error)),
        }
    }
}

// === impl Way ===

impl Way {
    /// GETs a path.
    ///
    /// # Errors
    /// [`Lack`].
    pub async fn get(&self, path: &str) -> Answer<Vec<u8>> {
        let (kube, namespace, pod, port, tls) = match self {
            Self::Direct(agent) => return agent.read(path, ANSWER).await.map_err(|error| Lack::of(&error)),
            Self::Pod { kube, namespace, pod, port, tls } => (kube, namespace, pod, *port, *tls),
        };
        let call = ThroughPod { namespace, pod, port, tls, path, token: None };
        match timeout(ANSWER, kube.through_pod(call)).await {
            Ok(Ok(answer)) => match answer.status {
                200 => Ok(answer.body),
                401 | 403 => Err(Lack::Denied),
                status => Err(Lack::Failed(format!("{path} answered {status}"))),
            },
            Ok(Err(error @ (KubeError::Status { .. } | KubeError::Silent { .. }))) => {
                Err(Lack::Failed(error.to_string()))
            }
            Ok(Err(error)) => Err(Lack::NoWay(why_unseen(&error))),
            Err(_) => Err(Lack::Failed(format!("{path} did not answer within {} ms", ANSWER.as_millis()))),
        }
    }

    pub(super) async fn value(&self, path: &str) -> Answer<Value> {
        parsed(&self.get(path).await?)
    }

    /// All that a server is asked.
    pub(super) async fn ask(&self) -> Answer<Said> {
        // What every agent answers to everybody, by itself and at once. The rest is not waited for where that fails.
        let (leader, peers) = tokio::try_join!(self.get("/v1/status/leader"), self.get("/v1/status/peers"))?;
        let leader: String = parsed(&leader)?;
        let peers: Vec<String> = parsed(&peers)?;
        let (described, members, raft, services, roots, datacenters) = tokio::join!(
            self.value("/v1/agent/self"),
            self.get("/v1/agent/members?filter=Tags.role%20%3D%3D%20consul"),
            // A server that was never in a cluster is silent here for seconds.
            async { if peers.is_empty() { Err(Lack::Failed("in no cluster".to_owned())) } else { self.raft().await } },
            self.value("/v1/agent/services"),
            async {
                if leader.is_empty() {
                    Err(Lack::Failed(String::new()))
                } else {
                    self.value("/v1/connect/ca/roots?stale").await
                }
            },
            self.value("/v1/catalog/datacenters"),
        );
        let mut members = members.and_then(|body| parsed::<Vec<Member>>(&body));
        // Who may not read nodes is told of none.
        if members.as_ref().is_ok_and(Vec::is_empty) {
            members = Err(Lack::Denied);
        }
        Ok(Said {
            leader: leader.parse().ok(),
            peers: peers.iter().filter_map(|peer| peer.parse().ok()).collect(),
            cluster: roots.ok().as_ref().and_then(|roots| text(roots, "/TrustDomain")).map(str::to_owned),
            datacenter: datacenters.ok().as_ref().and_then(|all| text(all, "/0")).map(str::to_owned),
            described,
            members,
            raft,
            services: services.map(|all| all.as_object().map(|all| all.keys().cloned().collect()).unwrap_or_default()),
        })
    }

    async fn raft(&self) -> Answer<Vec<RaftServer>> {
        let answer = self.get("/v1/operator/raft/configuration?stale").await?;
        Agent::raft_servers(&answer).map_err(|error| Lack::Failed(error.to_string()))
    }
}

fn parsed<T: serde::de::DeserializeOwned>(body: &[u8]) -> Answer<T> {
    serde_json::from_slice(body).map_err(|error| Lack::Failed(format!("an answer that is not Consul's: {error}")))
}

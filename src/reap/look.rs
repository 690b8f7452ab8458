//! What Consul says of its agents, and Kubernetes of its machines. Takes one agent and the API, gives [`Seen`], all of it or an
//! error; "nothing" is believed of neither.

use super::ReapError;
use super::judge::Seen;
use crate::api::consul::{Agent, ApiError};
use crate::api::kube::Kube;
use std::time::Duration;
use tokio::time::sleep;

/// How often a question is asked that gets no answer: behind a Service's address each is a chance of another server, and one that
/// was lost with its machine stands behind it for 40 s and more.
const TRIES: u8 = 10;
/// How long between two of them.
const PAUSE: Duration = Duration::from_millis(200);

/// Looks. Consul first: a machine whose client is a member by then has its Node object.
pub(super) async fn look(kube: &Kube, agent: &Agent) -> Result<Seen, ReapError> {
    answered(|| agent.leader()).await.map_err(ReapError::Consul)?.ok_or(ReapError::NoLeader)?;
    let seen = tokio::try_join!(
        answered(|| agent.members()),
        answered(|| agent.kubernetes_nodes()),
        answered(|| agent.failed_nodes()),
        answered(|| agent.raft_configuration()),
        answered(|| agent.peers())
    );
    let (members, catalog, failed, raft, peers) = seen.map_err(|cause| {
        if cause.is_denied() {
            ReapError::Blind { policy: "operator = \"read\"", cause: Some(cause) }
        } else {
            ReapError::Consul(cause)
        }
    })?;
    // An agent is at least its own member.
    if members.is_empty() {
        return Err(ReapError::Blind { policy: "node_prefix \"\" { policy = \"read\" }", cause: None });
    }
    let machines = kube.nodes().await.map_err(ReapError::Kubernetes)?;
    Ok(Seen { members, catalog, failed, raft, peers, machines })
}

/// Asks until somebody answers, whatever it is.
///
/// # Errors
/// The last one.
pub(super) async fn answered<T>(ask: impl AsyncFn() -> Result<T, ApiError>) -> Result<T, ApiError> {
    for _ in 1..TRIES {
        match ask().await {
            Err(error) if error.is_no_answer() => sleep(PAUSE).await,
            answer => return answer,
        }
    }
    ask().await
}

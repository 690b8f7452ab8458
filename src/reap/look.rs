//! What Consul says of its agents, and Kubernetes of its machines. Takes one agent and the API, gives [`Seen`], all of it or an
//! error; "nothing" is believed of neither.

use super::ReapError;
use super::judge::Seen;
use crate::api::consul::Agent;
use crate::api::kube::Kube;

/// Looks. Consul first: a machine whose client is a member by then has its Node object.
pub(super) async fn look(kube: &Kube, agent: &Agent) -> Result<Seen, ReapError> {
    agent.leader().await.map_err(ReapError::Consul)?.ok_or(ReapError::NoLeader)?;
    let seen = tokio::try_join!(
        agent.members(),
        agent.kubernetes_nodes(),
        agent.failed_nodes(),
        agent.raft_configuration(),
        agent.peers()
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

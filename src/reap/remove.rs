//! Takes one client out of the cluster: looks at it once more, tells gossip that it has left, and waits until the leader has taken it
//! out of the catalog with its services.
//!
//! Never prunes: gossip forgets who left by itself, in hours, and an agent that came back in this very moment would be thrown out
//! ([`Agent::force_leave`]). Never deregisters in the catalog: what gossip has no more the leader takes out within a minute (Consul
//! 1.22.6, `reconcileReaped`; tried).

use super::ReapError;
use super::judge::Case;
use super::look::answered;
use crate::api::consul::{Agent, ApiError};
use crate::api::kube::Kube;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// How long the leader may need: gossip carries it within a second or two.
const CONFIRM: Duration = Duration::from_secs(10);
/// How often it is asked meanwhile.
const POLL: Duration = Duration::from_millis(100);
/// How soon gossip is told again. It sends a message four times among so few, to some that are dead too, and where all miss the
/// leader only the next full exchange brings it there, after 30 s at most (serf 0.10.2; seen: 18 s).
const TELL_AGAIN: Duration = Duration::from_secs(2);

/// What came of it.
#[derive(Debug)]
pub(super) enum Removal {
    /// It is out of the catalog; after so long.
    Removed(Duration),
    /// It stays, since something has changed.
    Back(&'static str),
    /// It is still there.
    Failed(String),
}

/// Removes. What will be so for the next one too is an error.
///
/// # Errors
/// [`ReapError::Kubernetes`], [`ReapError::Consul`], [`ReapError::Denied`].
pub(super) async fn remove(kube: &Kube, agent: &Agent, case: &Case) -> Result<Removal, ReapError> {
    let (node, begun) = (&case.node, Instant::now());
    // Minutes may have passed since the look.
    if kube.has_node(&case.machine).await.map_err(ReapError::Kubernetes)? {
        return Ok(Removal::Back("its machine has a Node object again"));
    }
    if answered(|| agent.has_failed(node)).await.map_err(ReapError::Consul)? == Some(false) {
        return Ok(Removal::Back("it is alive again"));
    }
    match answered(|| agent.force_leave(node)).await {
        // Gossip may be slow to carry it; the leader tells.
        Ok(()) | Err(ApiError::Silent { .. }) => {}
        // Gossip had forgotten it already.
        Err(error) if error.is_unknown_node() => {}
        Err(cause) if cause.is_denied() => return Err(ReapError::Denied { node: node.clone(), cause }),
        Err(error) => return Ok(Removal::Failed(error.to_string())),
    }
    let mut told = Instant::now();
    loop {
        match agent.has_failed(node).await {
            Ok(None) => return Ok(Removal::Removed(begun.elapsed())),
            Ok(Some(false)) => return Ok(Removal::Back("it is alive again")),
            Ok(Some(true)) if told.elapsed() >= TELL_AGAIN && begun.elapsed() < CONFIRM => {
                told = Instant::now();
                // The leader tells what came of it.
                let _ = agent.force_leave(node).await;
            }
            Ok(Some(true)) | Err(_) if begun.elapsed() < CONFIRM => sleep(POLL).await,
            Ok(Some(true)) => {
                let waited = crate::time::text(CONFIRM);
                return Ok(Removal::Failed(format!("it is still in the catalog after {waited}")));
            }
            Err(error) => return Ok(Removal::Failed(error.to_string())),
        }
    }
}

//! What is known of all nodes, clients too: for `reap`.
//!
//! Takes the agent, gives its members, the catalog's nodes of Kubernetes, and whom the leader has for failed. Lists of all nodes
//! may have [`MAX_LIST`] bytes. A token that may not read a node (`node:read`) does not see it: an empty list is no error.

use super::{Agent, ApiError, Member, QUICK};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::time::Duration;

/// The node meta by which a client says on which machine it runs: the name of its Node object.
pub const K8S_NODE: &str = "k8s-node";
/// The most that is read of a list of all nodes, in bytes: each has less than 1 kB, and ten thousand agents are a large fleet.
const MAX_LIST: usize = 16 << 20;
/// How long such a list may take.
const LISTING: Duration = Duration::from_secs(10);

/// A node as `/v1/catalog/nodes` lists it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct CatalogNode {
    /// The node ID; empty for one that was registered by hand.
    #[serde(default, rename = "ID")]
    pub id: String,
    /// Its name.
    pub node: String,
    /// Its address.
    pub address: String,
    /// What its agent says of itself.
    #[serde(default)]
    pub meta: BTreeMap<String, String>,
}

/// A check as the `/v1/health` endpoints list it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Check {
    node: String,
    #[serde(rename = "CheckID")]
    check_id: String,
    status: String,
}

/// A service as `/v1/agent/services` lists it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Service {
    service: String,
}

/// The check by which the leader says what gossip told it of a node.
const SERF_HEALTH: &str = "serfHealth";

// === impl Agent ===

impl Agent {
    /// `/v1/agent/members`: all of them, servers and clients.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn members(&self) -> Result<Vec<Member>, ApiError> {
        self.get_of("/v1/agent/members", LISTING, MAX_LIST).await
    }

    /// The catalog's nodes that have the meta [`K8S_NODE`].
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn kubernetes_nodes(&self) -> Result<Vec<CatalogNode>, ApiError> {
        let path = format!("/v1/catalog/nodes?filter={}", escaped(&format!("\"{K8S_NODE}\" in Meta")));
        self.get_of(&path, LISTING, MAX_LIST).await
    }

    /// The names of the nodes that the leader has for failed.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn failed_nodes(&self) -> Result<BTreeSet<String>, ApiError> {
        let path = format!("/v1/health/state/critical?filter={}", escaped(&format!("CheckID == \"{SERF_HEALTH}\"")));
        let checks: Vec<Check> = self.get_of(&path, LISTING, MAX_LIST).await?;
        Ok(checks.into_iter().map(|check| check.node).collect())
    }

    /// Whether the leader has a node for failed; `None`: it knows no agent of that name any more.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn has_failed(&self, node: &str) -> Result<Option<bool>, ApiError> {
        let checks: Vec<Check> = self.get(&format!("/v1/health/node/{}", escaped(node)), QUICK).await?;
        let health = checks.into_iter().find(|check| check.check_id == SERF_HEALTH);
        Ok(health.map(|check| check.status == "critical"))
    }

    /// The names of the services in `/v1/agent/services`: those registered at this very agent. None without `service:read`.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn services(&self) -> Result<BTreeSet<String>, ApiError> {
        let services: BTreeMap<String, Service> = self.get("/v1/agent/services", QUICK).await?;
        Ok(services.into_values().map(|service| service.service).collect())
    }
}

/// As it may stand in a path or a query (RFC 3986): a node's name may hold anything.
pub(super) fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            // INVARIANT: writing into a String does not fail, so the result carries nothing.
            let _ = write!(escaped, "%{byte:02X}");
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_holds_anything_stays_one_part_of_a_path() {
        for (name, path) in [("web-0.a_b~", "web-0.a_b~"), ("a b/c?d#e%", "a%20b%2Fc%3Fd%23e%25"), ("ö", "%C3%B6")] {
            assert_eq!(escaped(name), path);
        }
    }
}

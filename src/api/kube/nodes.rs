//! Which machines does Kubernetes know? Its Node objects, which are of no namespace.
//!
//! Gives names alone: a whole Node is tens of kB, most of it the images that it holds. A list is whole or an error, never a part
//! of it.

use super::{Asking, Call, Kube, KubeError, answers};
use kube::core::params::ListParams;
use serde::de::IgnoredAny;
use std::collections::BTreeSet;

/// How many are asked for at once. Even without spec and status each is a few kB.
const PAGE: u32 = 500;

// === impl Kube ===

impl Kube {
    /// The names of all Nodes.
    ///
    /// # Errors
    /// [`KubeError`].
    pub async fn nodes(&self) -> Result<BTreeSet<String>, KubeError> {
        let asking = Asking { verb: "list", resource: "nodes", group: "", namespace: None, which: "" };
        let mut names = BTreeSet::new();
        let mut params = ListParams::default().limit(PAGE);
        loop {
            let page: answers::List<answers::Named> = self.ask(asking, &Call::ListNames(params.clone())).await?;
            names.extend(page.items.into_iter().map(|node| node.metadata.name));
            match page.metadata.r#continue.filter(|more| !more.is_empty()) {
                Some(more) => params = params.continue_token(&more),
                None => return Ok(names),
            }
        }
    }

    /// Whether there is a Node of that name.
    ///
    /// # Errors
    /// [`KubeError`].
    pub async fn has_node(&self, name: &str) -> Result<bool, KubeError> {
        let asking = Asking { verb: "get", resource: "nodes", group: "", namespace: None, which: name };
        let found: Option<IgnoredAny> = self.get(asking).await?;
        Ok(found.is_some())
    }
}

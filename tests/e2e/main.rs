//! Does it hold on a real Kubernetes? Every test applies a folder of `deploy/` into a namespace of its own, as a user would,
//! and asks Kubernetes and Consul what came of it. `make e2e` builds the program and runs this; tests/e2e/with-cluster says
//! which cluster it needs.

// Clippy's own exception for tests covers `#[test]` functions only.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../support/mod.rs"]
mod support;

mod api;
mod claim;
mod folders;
mod manifests;
mod neighbours;
mod servers;

use serde_json::{Value, json};
use support::kubernetes::namespace::{Source, json_patch};

/// What most tests apply.
fn servers() -> Source {
    Source::new("deploy/server")
}

/// The same without any access to the Kubernetes API.
fn by_dns() -> Source {
    servers().component("deploy/components/dns-only")
}

/// Several servers may run on one node, where a test needs more Pods than a small cluster has nodes.
fn anywhere() -> Value {
    json_patch("StatefulSet", "consul-server", json!([{"op": "remove", "path": "/spec/template/spec/affinity"}]))
}

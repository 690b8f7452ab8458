//! Does it hold on a real Kubernetes? Every test applies a folder of `deploy/` into a namespace of its own, as a user would,
//! and asks Kubernetes and Consul what came of it. `make e2e` builds the program and runs this; tests/e2e/with-cluster says
//! which cluster it needs.

// Clippy's own exception for tests covers `#[test]` functions only.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../support/mod.rs"]
mod support;

mod servers;

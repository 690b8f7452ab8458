//! What the tests and the demo share: servers on real sockets that play DNS, Consul's HTTP and Consul's RPC port, a
//! Consul binary, address blocks that nobody else uses, and a list of what this machine could not run.
//!
//! It takes what a test wants answered and gives a running server. Nothing in here is part of the product, and nothing
//! in here talks to anything but loopback, apart from the download in [`consul`] and the cluster of `kubernetes`, which
//! the feature `e2e` adds. It fails by panicking, as a test does.

// Every test binary and the demo takes only a part of this.
#![allow(dead_code)]
// A panic is how the support code fails a test; clippy's own exception for tests covers `#[test]` functions only.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

pub mod accept;
pub mod cluster;
pub mod config_map;
pub mod consul;
pub mod dns;
#[cfg(feature = "e2e")]
pub mod figures;
pub mod http;
#[cfg(feature = "e2e")]
pub mod kubernetes;
pub mod net;
pub mod port;
#[cfg(test)]
pub mod program;
pub mod skip;
#[cfg(test)]
pub mod traced;

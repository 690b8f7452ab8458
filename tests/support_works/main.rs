//! Does the support code of the tests do what it says? Every fake must fail on a missing and on an extra call, or the
//! tests that stand on it show nothing. Takes nothing from outside but curl; every socket is on loopback.

// A test fails by panicking; clippy's own exception covers `#[test]` functions, not those that they share.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../support/mod.rs"]
mod support;

mod chaos;
mod consul;
mod dns;
mod http;
mod machine;

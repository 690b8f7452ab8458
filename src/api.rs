//! The only HTTP. Consul's agents are asked by [`consul`].

mod client;
pub mod consul;

//! The only HTTP. Consul's agents are asked by [`consul`].

pub mod consul;

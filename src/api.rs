//! The only HTTP. Consul's agents are asked by [`consul`], the Kubernetes API by [`kube`].

mod client;
pub mod consul;
pub mod kube;

//! Does it hold on a real Kubernetes? Every test applies a folder of `deploy/` into a namespace of its own, as a user would,
//! and asks Kubernetes and Consul what came of it. `make e2e` builds the program and runs this; tests/e2e/with-cluster says
//! which cluster it needs.

// Clippy's own exception for tests covers `#[test]` functions only.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../support/mod.rs"]
mod support;

/// Makes two tests of each body, which takes the test's name and the folder: `a_body::server`, `a_body::server_init`.
macro_rules! in_both_folders {
    ($($body:ident),+ $(,)?) => {$(
        mod $body {
            #[test]
            fn server() {
                super::$body(concat!(stringify!($body), "_server"), crate::SERVER);
            }

            #[test]
            fn server_init() {
                super::$body(concat!(stringify!($body), "_server_init"), crate::SERVER_INIT);
            }
        }
    )+};
}

mod alone;
mod api;
mod claim;
mod clients;
mod doctor;
mod folders;
mod formation;
mod manifests;
mod migrating;
mod neighbours;
mod reap;
mod recover;
mod servers;
mod stops;
mod volumes;

use serde_json::{Value, json};
use support::kubernetes::namespace::{Namespace, server};
use support::kubernetes::source::{Source, json_patch};

/// The two folders that differ in who is PID 1: convene with the agent under it, or the agent, with convene in containers of
/// its own before and beside it.
#[derive(Debug, Clone, Copy)]
struct Folder {
    path: &'static str,
    /// The container that looks and decides.
    decides: &'static str,
    /// The container that watches beside the agent.
    watches: &'static str,
}

const SERVER: Folder = Folder { path: "deploy/server", decides: "consul", watches: "consul" };
const SERVER_INIT: Folder = Folder { path: "deploy/server-init", decides: "convene", watches: "watch" };

// === impl Folder ===

impl Folder {
    /// What is applied.
    fn source(self) -> Source {
        Source::new(self.path)
    }

    /// The program, in the container that decides.
    fn convene(self) -> &'static str {
        if self.decides == "convene" { "/convene" } else { "/convene/convene" }
    }
}

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

/// The Services of two more servers, as `deploy/server-five` has them.
fn five_services(namespace: &Namespace) {
    for ordinal in [3, 4] {
        let mut service = namespace.get(&format!("services/{}", server(0))).unwrap();
        let name = server(ordinal);
        service["metadata"] =
            json!({"name": name, "namespace": namespace.name(), "labels": service["metadata"]["labels"]});
        service["spec"]["selector"] = json!({"statefulset.kubernetes.io/pod-name": name});
        for given in ["clusterIP", "clusterIPs"] {
            service["spec"].as_object_mut().unwrap().remove(given);
        }
        namespace.create_object(&service);
    }
}

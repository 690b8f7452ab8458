//! Which of `deploy/components`' encryption, TLS and ACLs do the servers of a test run with? Those of `CONVENE_E2E_COMPONENTS` (all
//! tests), or those that one test names.
//!
//! Gives the components to apply, the Secrets that they need in each namespace, how an agent is asked then, and what an
//! administrator does once there is a leader: policies and tokens. Key, certificates and tokens are made for one process, or are
//! fixed, and guard nothing.

use super::super::consul;
use super::{repository, run};
use serde_json::{Value, json};
use std::fs;
use std::net::IpAddr;
use std::process::Command;
use std::sync::OnceLock;

/// The components, as `deploy/components` names them.
pub const GOSSIP_KEY: &str = "gossip-key";
pub const TLS: &str = "tls";
pub const ACLS: &str = "acls";

/// The administrator's token, which the test asks with.
pub const MANAGEMENT: &str = "5f2f7a3e-1e0b-4c1c-9d53-0b9f5d1c7a11";
/// The servers' token, which Consul knows only once [`Secured::requests`] were made.
const SERVER: &str = "0d9f3c52-6d0c-4f3e-8f0e-6c4f9f3a7b21";
/// The clients', likewise.
pub const CLIENT: &str = "9a1b2c3d-4e5f-4a6b-8c7d-0e1f2a3b4c31";

/// What the servers of a test are secured by.
#[derive(Debug, Clone, Default)]
pub struct Secured {
    by: Vec<&'static str>,
}

/// What the Secrets hold.
struct Made {
    authority: String,
    certificate: String,
    key: String,
    gossip_key: String,
}

// === impl Secured ===

impl Secured {
    /// By what `CONVENE_E2E_COMPONENTS` names.
    pub fn from_env() -> Self {
        let names = std::env::var("CONVENE_E2E_COMPONENTS").unwrap_or_default();
        let known = |name: &str| {
            let found = [GOSSIP_KEY, TLS, ACLS].into_iter().find(|known| *known == name);
            found.unwrap_or_else(|| panic!("CONVENE_E2E_COMPONENTS: {name:?} is none of {GOSSIP_KEY}, {TLS}, {ACLS}"))
        };
        Self { by: names.split_whitespace().map(known).collect() }
    }

    /// By these, and by those of all tests.
    pub fn and_by(mut self, names: &[&'static str]) -> Self {
        for name in names {
            if !self.has(name) {
                self.by.push(name);
            }
        }
        self
    }

    /// Whether a component is among them.
    pub fn has(&self, name: &str) -> bool {
        self.by.contains(&name)
    }

    /// The components' folders.
    pub fn folders(&self) -> impl Iterator<Item = String> {
        self.by.iter().map(|name| format!("deploy/components/{name}"))
    }

    /// The Secrets that servers and clients of a namespace need.
    pub fn objects(&self, namespace: &str) -> Vec<Value> {
        let object = |kind: &str, name: &str, more: Value| {
            let mut object =
                json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": name, "namespace": namespace}});
            object.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            object
        };
        let mut objects = Vec::new();
        if self.has(GOSSIP_KEY) {
            let data = json!({"stringData": {"gossip.json": json!({"encrypt": made().gossip_key}).to_string()}});
            objects.push(object("Secret", "consul-gossip-key", data));
        }
        if self.has(TLS) {
            let data = json!({"tls.crt": made().certificate, "tls.key": made().key});
            objects.push(object(
                "Secret",
                "consul-server-tls",
                json!({"type": "kubernetes.io/tls", "stringData": data}),
            ));
            objects.push(object("ConfigMap", "consul-ca", json!({"data": {"ca.pem": made().authority}})));
        }
        if self.has(ACLS) {
            let acl = |tokens: Value| json!({"acl": {"tokens": tokens}}).to_string();
            for (name, token, agent) in [
                ("consul-server-acl", SERVER, acl(json!({"agent": SERVER, "initial_management": MANAGEMENT}))),
                ("consul-client-acl", CLIENT, acl(json!({"agent": CLIENT}))),
            ] {
                objects.push(object("Secret", name, json!({"stringData": {"token": token, "agent.json": agent}})));
            }
        }
        objects
    }

    /// A server's API as the Kubernetes API's proxy names it.
    pub fn api(&self, pod: &str) -> String {
        if self.speaks_tls() { format!("https:{pod}:8501") } else { format!("{pod}:8500") }
    }

    /// Whether the agents' HTTP API is served over TLS alone.
    pub fn speaks_tls(&self) -> bool {
        self.has(TLS)
    }

    /// A Pod whose first container asks the servers, and knows how.
    pub fn asking(&self, mut pod: Value) -> Value {
        if self.has(TLS) {
            pod["spec"]["volumes"] = json!([{"name": "ca", "configMap": {"name": "consul-ca"}}]);
            let container = &mut pod["spec"]["containers"][0];
            container["volumeMounts"] = json!([{"name": "ca", "mountPath": "/ca"}]);
            container["env"] = json!([
                {"name": "CONVENE_PEER_TLS", "value": "true"},
                {"name": "CONSUL_CACERT", "value": "/ca/ca.pem"},
            ]);
        }
        pod
    }

    /// Consul's command line, which asks a server from here.
    pub fn consul(&self, server: IpAddr) -> Command {
        let mut command = Command::new(consul::find().unwrap_or_else(|why| panic!("{why}")));
        if self.has(TLS) {
            command.env("CONSUL_HTTP_ADDR", format!("https://{server}:8501")).env("CONSUL_HTTP_SSL_VERIFY", "false");
        } else {
            command.env("CONSUL_HTTP_ADDR", format!("http://{server}:8500"));
        }
        if self.has(ACLS) {
            command.env("CONSUL_HTTP_TOKEN", MANAGEMENT);
        }
        command
    }

    /// The headers that each question has, each with its line's end.
    pub fn headers(&self) -> String {
        if self.has(ACLS) { format!("X-Consul-Token: {MANAGEMENT}\r\n") } else { String::new() }
    }

    /// What an administrator asks of Consul, path and body to PUT: the policies of `deploy/`, and a token for each.
    pub fn requests(&self) -> Vec<(&'static str, String)> {
        if !self.has(ACLS) {
            return Vec::new();
        }
        let of = |role: &str, token: &str| {
            let rules = repository().join(format!("deploy/policies/{role}.hcl"));
            let name = format!("convene-{role}");
            let policy = json!({"Name": name, "Rules": fs::read_to_string(rules).unwrap()});
            let token = json!({"SecretID": token, "Description": name, "Policies": [{"Name": name}]});
            [("/v1/acl/policy", policy.to_string()), ("/v1/acl/token", token.to_string())]
        };
        [of("server", SERVER), of("client", CLIENT)].concat()
    }
}

/// Made once a process, as README says.
fn made() -> &'static Made {
    static MADE: OnceLock<Made> = OnceLock::new();
    MADE.get_or_init(|| {
        let consul = consul::find().unwrap_or_else(|why| panic!("{why}"));
        let folder = tempfile::tempdir().unwrap();
        let consul = |words: &[&str]| {
            run(Command::new(&consul).args(words).current_dir(&folder)).unwrap_or_else(|why| panic!("{why}"))
        };
        consul(&["tls", "ca", "create"]);
        consul(&["tls", "cert", "create", "-server"]);
        let read = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
        Made {
            authority: read("consul-agent-ca.pem"),
            certificate: read("dc1-server-consul-0.pem"),
            key: read("dc1-server-consul-0-key.pem"),
            gossip_key: consul(&["keygen"]).trim().to_owned(),
        }
    })
}

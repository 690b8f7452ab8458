//! The agent's configuration, as far as convene computed it.
//!
//! Takes the settings and the decision, gives one JSON text, the same bytes for the same input. Never holds a secret, nor
//! Consul's tuning, which is the user's. The node ID is not in it: it stands in Consul's own file.

use crate::api::consul::K8S_NODE;
use crate::decide::Start;
use crate::settings::{Leave, Node, Role};
use serde_json::{Value, json};
use std::net::IpAddr;

/// How often Consul tries again to join. Its default of 30 s is what makes formations slow.
pub const RETRY_INTERVAL: &str = "1s";

/// What beside the settings and the decision makes a difference.
#[derive(Debug, Clone, Copy)]
pub struct How {
    /// CMD binds an address itself.
    pub binds: bool,
    /// convene stays beside the agent: it joins servers that are found after the start, and does the stopping.
    pub supervised: bool,
    /// What the user ordered about leaving.
    pub leave: Option<Leave>,
    /// The address that we advertise is tried beside the agent, where it was never known before.
    pub tried_later: bool,
}

/// Renders.
pub fn render(node: &Node, start: &Start, how: How) -> String {
    let mut all = serde_json::Map::new();
    let mut set = |key: &str, value: Value| {
        all.insert(key.to_owned(), value);
    };
    set("server", json!(node.role == Role::Server));
    set("node_name", json!(node.local.node_name));
    if let Some(advertise) = node.local.advertise {
        set("advertise_addr", json!(advertise));
    }
    if let Some(expect) = start.expect {
        set("bootstrap_expect", json!(expect));
    }
    set("retry_join", joins(start).into());
    set("retry_interval", json!(RETRY_INTERVAL));
    set("rejoin_after_leave", json!(true));
    match (node.role, how.leave) {
        // Consul's own: it leaves at TERM. `run` ends it by INT when it is to stay.
        (Role::Client, None) if how.supervised => set("skip_leave_on_interrupt", json!(true)),
        (Role::Client, None) => {}
        // No signal may remove a voter behind our back, unless that was ordered.
        (role, leave) => {
            let by_signal = leave == Some(Leave::Signal);
            let at_term = by_signal || role == Role::Client && leave == Some(Leave::Always);
            set("leave_on_terminate", json!(at_term));
            set("skip_leave_on_interrupt", json!(!by_signal));
        }
    }
    if node.role == Role::Client {
        set("advertise_reconnect_timeout", json!(format!("{}s", node.reconnect_timeout.as_secs())));
        // Whoever cleans up behind a machine that is gone goes by this.
        if let Some(machine) = &node.local.machine {
            set("node_meta", json!({ K8S_NODE: machine }));
        }
    }
    // Consul's 0.0.0.0 listens on IPv4 only.
    let own = &node.local.own_addresses;
    if !how.binds && !own.is_empty() && own.iter().all(IpAddr::is_ipv6) {
        set("bind_addr", json!("::"));
    }
    text(all)
}

/// Whom the agent is to join.
pub fn joins(start: &Start) -> Vec<String> {
    start.join.iter().map(ToString::to_string).collect()
}

/// The text of such a file.
pub fn text(all: serde_json::Map<String, Value>) -> String {
    format!("{:#}\n", Value::Object(all))
}

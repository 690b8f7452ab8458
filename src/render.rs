//! The agent's configuration, as far as convene computed it.
//!
//! Takes the settings and the decision, gives one JSON text, the same bytes for the same input. Never holds a secret, nor
//! Consul's tuning, which is the user's. The node ID is not in it: it stands in Consul's own file.

use crate::decide::Start;
use crate::settings::{Leave, Node, Role};
use serde_json::{Value, json};
use std::net::IpAddr;

/// How often Consul tries again to join. Its default of 30 s is what makes formations slow.
pub const RETRY_INTERVAL: &str = "1s";

/// Renders. `bind` is whether the user's own settings bind an address already; `leave` is what the user ordered, if anything.
pub fn render(node: &Node, start: &Start, binds: bool, leave: Option<Leave>) -> String {
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
    set("retry_join", start.join.iter().map(ToString::to_string).collect());
    set("retry_interval", json!(RETRY_INTERVAL));
    set("rejoin_after_leave", json!(true));
    // No signal may remove a voter behind our back. A client keeps Consul's own default unless it was ordered otherwise.
    if node.role == Role::Server || leave.is_some() {
        set("leave_on_terminate", json!(false));
        set("skip_leave_on_interrupt", json!(true));
    }
    // Consul's 0.0.0.0 listens on IPv4 only.
    let own = &node.local.own_addresses;
    if !binds && !own.is_empty() && own.iter().all(IpAddr::is_ipv6) {
        set("bind_addr", json!("::"));
    }
    format!("{:#}\n", Value::Object(all))
}

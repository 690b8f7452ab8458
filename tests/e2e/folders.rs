//! Every folder and component of `deploy/`: it comes together as it stands, and what it shows of itself.

use crate::support::kubernetes::namespace::{Namespace, SERVERS, server};
use crate::support::kubernetes::source::Source;
use crate::{anywhere, by_dns, servers};

fn init() -> Source {
    Source::new("deploy/server-init")
}

/// Applies, and asserts that every server advertises its Service (or else its Pod's address).
fn come_together(test: &str, source: &Source, count: usize, at_services: bool) -> Namespace {
    let namespace = Namespace::new(test);
    namespace.apply(source);
    for voter in namespace.formed(count) {
        let stable = namespace.cluster_ip(&voter.name);
        assert_eq!(stable, at_services.then_some(voter.ip), "{}", voter.name);
    }
    for (name, (_, restarts)) in namespace.lives(SERVERS) {
        assert_eq!(restarts, 0, "{name}");
    }
    namespace
}

#[test]
fn servers_come_together_by_dns_alone() {
    come_together("servers_come_together_by_dns_alone", &by_dns(), 3, true);
}

#[test]
fn servers_with_consul_as_pid_1_come_together_and_watch_notes_it() {
    let test = "servers_with_consul_as_pid_1_come_together_and_watch_notes_it";
    let namespace = come_together(test, &init(), 3, true);
    for ordinal in 0..3 {
        namespace.line(&server(ordinal), "watch", &["joined: a leader is known"]);
        let name = namespace.exec(&server(ordinal), &["sh", "-c", "read name </proc/1/comm; echo $name"]);
        assert_ne!(name.trim(), "convene", "PID 1 is the image's own entrypoint");
    }
    // A stop, and what kubelet does around it.
    let before = namespace.formed(3);
    namespace.delete_pods(&[&server(2)]);
    namespace.wait_for("another Pod in its place", || namespace.all_ready(SERVERS, 3));
    assert_eq!(namespace.formed(3), before, "the same names, node IDs and addresses");
}

#[test]
fn servers_with_consul_as_pid_1_come_together_by_dns_alone() {
    let source = init().component("deploy/components/dns-only");
    come_together("servers_with_consul_as_pid_1_come_together_by_dns_alone", &source, 3, true);
}

#[test]
fn servers_without_services_of_their_own_come_together_at_their_pods_addresses() {
    let test = "servers_without_services_of_their_own_come_together_at_their_pods_addresses";
    come_together(test, &servers().component("deploy/components/pod-address"), 3, false);
}

#[test]
fn servers_with_consul_as_pid_1_come_together_at_their_pods_addresses() {
    let source = init().component("deploy/components/pod-address");
    come_together("servers_with_consul_as_pid_1_come_together_at_their_pods_addresses", &source, 3, false);
}

#[test]
fn five_servers_come_together() {
    let source = Source::new("deploy/server-five").with(anywhere());
    come_together("five_servers_come_together", &source, 5, true);
}

#[test]
fn one_server_is_a_cluster() {
    come_together("one_server_is_a_cluster", &Source::new("deploy/server-one"), 1, true);
}

//! Three servers: how they come together, and what is left when one or all of them go.

use crate::support::kubernetes::namespace::{Namespace, SERVERS, Source, server};

fn servers() -> Source {
    Source::new("deploy/server")
}

#[test]
fn three_servers_come_together_by_one_apply() {
    let namespace = Namespace::new("three_servers_come_together_by_one_apply");
    namespace.apply(&servers());
    let voters = namespace.formed(3);
    let names: Vec<_> = voters.iter().map(|voter| voter.name.clone()).collect();
    assert_eq!(names, [server(0), server(1), server(2)]);
    for voter in &voters {
        assert_eq!(namespace.cluster_ip(&voter.name), Some(voter.ip), "{} advertises its Service", voter.name);
    }
    for (name, (_, restarts)) in namespace.lives(SERVERS) {
        assert_eq!(restarts, 0, "{name}");
    }
}

#[test]
fn a_server_deleted_by_force_returns_as_itself() {
    let namespace = Namespace::new("a_server_deleted_by_force_returns_as_itself");
    namespace.apply(&servers());
    let voters = namespace.formed(3);
    namespace.put(&server(0), "kept", "yes");
    let before = namespace.lives(SERVERS);
    namespace.kubectl(&["delete", "pod", &server(1), "--force", "--grace-period=0"]);
    namespace.wait_for("another Pod in its place", || {
        namespace.lives(SERVERS).get(&server(1)).is_some_and(|life| life.0 != before[&server(1)].0)
    });
    assert_eq!(namespace.formed(3), voters, "the same names, node IDs and addresses");
    assert_eq!(namespace.node_id(&server(1)), voters.into_iter().find(|one| one.name == server(1)).map(|one| one.id));
    assert_eq!(namespace.value(&server(1), "kept").as_deref(), Some("yes"));
    let after = namespace.lives(SERVERS);
    assert_eq!((&after[&server(0)], &after[&server(2)]), (&before[&server(0)], &before[&server(2)]));
}

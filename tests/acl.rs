//! Is each policy of `deploy/policies` enough for the commands that it is for, over verified TLS alone and under default deny,
//! and does a command without it say what it lacks? With real Consul.

// A panic is how a test fails; clippy's own exception for tests covers `#[test]` functions only.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "support/mod.rs"]
mod support;

use nix::sys::signal::Signal;
use serde_json::Value;
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command};
use support::cluster::{Cluster, MANAGEMENT};
use support::program::Ended;
use support::skip::needs_consul;

const ALL: [u8; 3] = [0, 1, 2];
/// The place of a client among the cluster's processes.
const CLIENT_AT: u8 = 3;

/// A file of `deploy/policies`, and the token that has this policy and no other.
type Policy = (&'static str, &'static str);
const SERVER: Policy = ("server", "7e57ab1e-0000-4000-8000-0000000000a1");
const CLIENT: Policy = ("client", "7e57ab1e-0000-4000-8000-0000000000a2");
const PROBE: Policy = ("probe", "7e57ab1e-0000-4000-8000-0000000000a3");

/// What an agent takes for its own API although it is in no cluster.
const RECOVERY: &str = "7e57ab1e-0000-4000-8000-0000000000aa";

/// Servers that know nobody without a certificate and a token, and room for a client.
fn strict(test: &str) -> Option<Cluster> {
    // Autopilot would remove a server that it sees failed; and it need not look at a new one for 10 s.
    let autopilot = "-hcl=autopilot { min_quorum = 3 server_stabilization_time = \"200ms\" }";
    let cluster = Cluster::new(env!("CARGO_BIN_EXE_convene"), needs_consul(test)?, 4).denying().only_over_tls();
    let recovery = format!("-hcl=acl {{ tokens {{ agent_recovery = {RECOVERY:?} }} }}");
    let cluster = cluster.with(autopilot).with(&recovery).with(&agent_token(SERVER));
    ALL.into_iter().for_each(|ordinal| cluster.publish(ordinal));
    Some(cluster)
}

/// Consul's agent may what convene beside it may.
fn agent_token((_, token): Policy) -> String {
    format!("-hcl=acl {{ tokens {{ agent = {token:?} }} }}")
}

/// Makes the policy and its token, as a person would once there is a cluster.
fn grant(cluster: &Cluster, (name, token): Policy) {
    let file = format!("{}/deploy/policies/{name}.hcl", env!("CARGO_MANIFEST_DIR"));
    cluster.grant(token, name, &fs::read_to_string(file).unwrap());
}

/// The token as a Secret's file.
fn file(cluster: &Cluster, (name, token): Policy) -> PathBuf {
    let file = cluster.folder().join(name);
    fs::write(&file, format!("{token}\n")).unwrap();
    file
}

/// The call, with the token of a policy or with none.
fn having(cluster: &Cluster, mut call: Command, policy: Option<Policy>) -> Command {
    call.envs(policy.map(|policy| ("CONSUL_HTTP_TOKEN_FILE", file(cluster, policy))));
    call
}

fn ended(cluster: &Cluster, ordinal: u8, words: &[&str], policy: Option<Policy>) -> Ended {
    Ended::of(having(cluster, cluster.surveying(ordinal, words), policy).output().unwrap())
}

fn start(cluster: &mut Cluster, ordinal: u8, policy: Option<Policy>) {
    let mut run =
        having(cluster, cluster.surveying(ordinal, &["run", "--expect=3", "--grace-period=60s", "--"]), policy);
    run.args(cluster.agent(ordinal));
    cluster.spawn(ordinal, run);
}

fn formed(test: &str, policy: Option<Policy>) -> Option<Cluster> {
    let mut cluster = strict(test)?;
    ALL.into_iter().for_each(|ordinal| start(&mut cluster, ordinal, policy));
    cluster.wait_formed(&ALL);
    Some(cluster)
}

fn follower(cluster: &Cluster) -> u8 {
    let leader = cluster.leading(0).unwrap();
    ALL.into_iter().find(|ordinal| *ordinal != leader).unwrap()
}

/// Says yes with this in its line, sooner or later.
#[track_caller]
fn says(cluster: &Cluster, ordinal: u8, what: &str, policy: Policy, part: &str) {
    let yes = |ended: Ended| ended.code == 0 && ended.stdout.contains(part);
    cluster.wait_for(part, || yes(ended(cluster, ordinal, &["check", what], Some(policy))));
}

/// Whether a node's own agent has brought itself into the catalog: the leader, which adds it, knows no tagged address.
fn is_registered(cluster: &Cluster, node: &str) -> bool {
    let seen = cluster.get(0, &format!("/v1/catalog/node/{node}")).unwrap_or_default();
    seen["Node"]["TaggedAddresses"]["lan"].is_string()
}

/// `convene watch` beside an agent, ended with the test.
struct Watching(Child);

impl Drop for Watching {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A server that is out of the cluster starts behind `init` without its rendered file, so that nobody but `watch` can bring it
/// back.
fn start_alone(cluster: &mut Cluster, ordinal: u8) {
    let init = ended(cluster, ordinal, &["init", "--role=server", "--expect=3", "--wait=30s"], None);
    assert_eq!(init.code, 0, "{}", init.stderr);
    let words = cluster.agent(ordinal);
    let mut agent = Command::new(&words[0]);
    agent.args(&words[1..]).arg(format!("-node=consul-server-{ordinal}"));
    cluster.spawn(ordinal, agent);
}

/// `watch` beside it, until its log has a line with each part.
fn watch_until(cluster: &Cluster, ordinal: u8, token: Option<&str>, parts: &[&str]) {
    let log = cluster.folder().join("watch.log");
    let mut watch = cluster.surveying(ordinal, &["watch", "--role=server", "--expect=3"]);
    watch.envs(token.map(|token| ("CONSUL_HTTP_TOKEN", token))).stderr(fs::File::create(&log).unwrap());
    let _watching = Watching(watch.spawn().unwrap());
    let told = |line: &str| parts.iter().all(|part| line.contains(part));
    cluster.wait_for(parts[0], || fs::read_to_string(&log).unwrap().lines().any(told));
}

#[test]
fn the_servers_policy_is_enough_for_all_that_a_server_does() {
    let test = "the_servers_policy_is_enough_for_all_that_a_server_does";
    let Some(mut cluster) = formed(test, Some(SERVER)) else { return };
    grant(&cluster, SERVER);
    for ordinal in ALL {
        cluster.wait_for("its registration", || is_registered(&cluster, &format!("consul-server-{ordinal}")));
        says(&cluster, ordinal, "ready", SERVER, "leader's view: a voter");
        says(&cluster, ordinal, "joined", SERVER, "3 servers alive");
    }
    // A leader hands leadership over.
    let leader = cluster.leading(0).unwrap();
    cluster.signal(leader, Signal::SIGTERM);
    assert_eq!(cluster.wait(leader).code(), Some(0), "{}", cluster.log(leader));
    assert!(cluster.log(leader).contains("handed leadership over to consul-server-"), "{}", cluster.log(leader));
    start(&mut cluster, leader, Some(SERVER));
    cluster.wait_formed(&ALL);
    // A server that lost its disk has its predecessor removed.
    let wiped = follower(&cluster);
    cluster.wipe(wiped);
    start(&mut cluster, wiped, Some(SERVER));
    cluster.wait_for("the removal", || cluster.log(wiped).contains("asked the leader to remove our predecessor"));
    cluster.wait_formed(&ALL);
    // A server leaves by the hook.
    let gone = follower(&cluster);
    let leave =
        ended(&cluster, gone, &["leave", "--role=server", "--leave=always", "--grace-period=60s"], Some(SERVER));
    leave.ends(0, &["left in"]);
    cluster.wait(gone);
    // Back again, nobody but `watch` joins it, and there it knows no token but one.
    start_alone(&mut cluster, gone);
    let knows_none = ["joining was refused: ", "knows no token but its own acl.tokens.agent_recovery"];
    watch_until(&cluster, gone, Some(SERVER.1), &knows_none);
    watch_until(&cluster, gone, Some(RECOVERY), &["joined: a leader is known"]);
    cluster.wait_formed(&ALL);
}

#[test]
fn a_probes_policy_tells_all_and_changes_nothing() {
    let Some(cluster) = formed("a_probes_policy_tells_all_and_changes_nothing", Some(SERVER)) else { return };
    [SERVER, PROBE].into_iter().for_each(|policy| grant(&cluster, policy));
    let follower = follower(&cluster);
    says(&cluster, follower, "ready", PROBE, "own view: follows, is caught up and votes; leader's view: a voter");
    says(&cluster, follower, "joined", PROBE, "3 servers alive");
    says(&cluster, follower, "live", PROBE, "live: the agent answers");
    let leave = ended(&cluster, follower, &["leave", "--role=server", "--leave=always"], Some(PROBE));
    leave.ends(69, &[&format!("needs the policy agent \"consul-server-{follower}\" {{ policy = \"write\" }}")]);
    assert_eq!(cluster.peers(follower).len(), 3);
}

#[test]
fn the_clients_policy_is_enough_for_all_that_a_client_does() {
    let test = "the_clients_policy_is_enough_for_all_that_a_client_does";
    let Some(mut cluster) = formed(test, Some(SERVER)) else { return };
    [SERVER, CLIENT, PROBE].into_iter().for_each(|policy| grant(&cluster, policy));
    let mut run = cluster.surveying(CLIENT_AT, &["run", "--discover=dns:consul-server.demo.svc.cluster.local", "--"]);
    run.args(cluster.agent(CLIENT_AT).iter().filter(|word| *word != "-server")).arg(agent_token(CLIENT));
    let run = as_client(having(&cluster, run, Some(CLIENT)));
    cluster.spawn(CLIENT_AT, run);
    cluster.wait_for("its registration", || is_registered(&cluster, "web-1"));
    for policy in [CLIENT, PROBE] {
        let check = having(&cluster, cluster.convene(CLIENT_AT, &["check", "ready"]), Some(policy));
        let ready = Ended::of(as_client(check).output().unwrap());
        assert!(ready.code == 0 && ready.stdout.contains("3 servers alive"), "{ready:?}");
    }
    cluster.signal(CLIENT_AT, Signal::SIGTERM);
    assert_eq!(cluster.wait(CLIENT_AT).code(), Some(0), "{}", cluster.log(CLIENT_AT));
    let left = |member: &Value| member["Name"] == "web-1" && member["Status"] == 3;
    let members = || cluster.get(0, "/v1/agent/members").unwrap_or_default();
    cluster.wait_for("its leave", || members().as_array().is_some_and(|all| all.iter().any(left)));
}

/// Called in a Pod that is in no StatefulSet.
fn as_client(mut call: Command) -> Command {
    call.env("POD_NAME", "web-1");
    call
}

#[test]
fn without_a_token_each_command_does_what_it_may_and_names_what_it_lacks() {
    let test = "without_a_token_each_command_does_what_it_may_and_names_what_it_lacks";
    let Some(mut cluster) = formed(test, None) else { return };
    let leader = cluster.leading(0).unwrap();
    let (follower, gone) = match ALL.into_iter().filter(|ordinal| *ordinal != leader).collect::<Vec<_>>()[..] {
        [first, second] => (first, second),
        _ => unreachable!(),
    };
    let ready = ended(&cluster, follower, &["check", "ready"], None);
    assert!(
        ready.code == 1 && ready.stdout.contains("without a token that has agent:read or operator:read"),
        "{ready:?}"
    );
    let joined = ended(&cluster, follower, &["check", "joined"], None);
    assert!(joined.code == 0 && joined.stdout.contains("without node:read"), "{joined:?}");
    let seen = ended(&cluster, follower, &["discover", "--expect=3"], None);
    assert!(seen.code == 0 && seen.stdout.contains("formed: leader"), "{seen:?}");
    let leave = ended(&cluster, gone, &["leave", "--role=server", "--leave=always"], None);
    leave.ends(69, &[&format!("needs the policy agent \"consul-server-{gone}\" {{ policy = \"write\" }}")]);
    // Somebody with all rights takes it out, and nobody brings it back.
    let mut leave = cluster.convene(gone, &["leave", "--role=server", "--leave=always", "--grace-period=60s"]);
    Ended::of(leave.env("CONSUL_HTTP_TOKEN", MANAGEMENT).output().unwrap()).ends(0, &["left in"]);
    cluster.wait(gone);
    start_alone(&mut cluster, gone);
    watch_until(&cluster, gone, None, &["joining was refused: ", "'agent:write'"]);
    cluster.signal(leader, Signal::SIGTERM);
    cluster.wait(leader);
    let policy = "did not hand leadership over: the token may not: the policy operator = \"write\" is needed";
    assert!(cluster.log(leader).contains(policy), "{}", cluster.log(leader));
}

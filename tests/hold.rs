//! A person keeps an agent from starting: by a file on the volume, or by the Pod's annotation, for servers and clients.

// A panic is how a test fails; clippy's own exception for tests covers `#[test]` functions only.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "support/mod.rs"]
mod support;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;
use std::process::Child;
use support::cluster::wait_until;
use support::config_map::status;
use support::http::{Call, Reply, ScriptedHttp};
use support::program::{Convene, Ended};

const POD: &str = "/api/v1/namespaces/demo/pods/consul-server-0";

/// A volume, and a server that may found a cluster at once, or a client that may join.
struct World {
    data: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let data = tempfile::tempdir().unwrap();
        fs::create_dir(data.path().join("convene")).unwrap();
        Self { data }
    }

    fn hold(&self) -> PathBuf {
        self.data.path().join("convene/hold")
    }

    fn rendered(&self) -> bool {
        self.data.path().join("convene/agent.json").exists()
    }

    fn convene(&self, words: &[&str]) -> Convene {
        Convene::new(words).words([format!("--data-dir={}", self.data.path().display())])
    }

    fn server(&self, words: &[&str]) -> Convene {
        let server = ["--role=server", "--node-name=s1", "--advertise=127.0.0.1", "--server-port=1", "--expect=2"];
        self.convene(words).words(server).words(["--discover=static:127.255.255.253"])
    }

    fn client(&self, words: &[&str]) -> Convene {
        self.convene(words).words(["--role=client", "--node-name=c1", "--discover=static:127.255.255.253"])
    }

    /// `run` of a CMD that says that it started, with its log.
    fn run(&self) -> (Child, PathBuf) {
        let log = self.data.path().join("log");
        let started = self.data.path().join("started");
        let cmd = ["--".to_owned(), "touch".to_owned(), started.display().to_string()];
        (self.server(&["run"]).words(cmd).spawn_into(&log), log)
    }

    fn check(&self, what: &str) -> Ended {
        self.convene(&["check", what]).envs("CONSUL_HTTP_ADDR=127.0.0.1:1").run()
    }
}

#[track_caller]
fn is_held(ended: &Ended, by: &str) {
    ended.ends(75, &["held: ", by, "to go on: "]);
}

#[test]
fn a_file_holds_servers_and_clients_and_nothing_is_rendered() {
    let world = World::new();
    fs::write(world.hold(), "").unwrap();
    is_held(&world.server(&["init", "--wait=0s"]).run(), "convene/hold keeps the agent from starting");
    is_held(&world.client(&["init", "--wait=0s"]).run(), "convene/hold keeps the agent from starting");
    assert!(!world.rendered());
    fs::remove_file(world.hold()).unwrap();
    world.server(&["init", "--wait=0s"]).run().ends(0, &[]);
    assert!(world.rendered());
}

#[test]
fn a_hold_is_said_and_live_and_ends_when_the_file_is_removed() {
    let world = World::new();
    fs::write(world.hold(), "").unwrap();
    let (mut running, log) = world.run();
    let said = || fs::read_to_string(&log).unwrap_or_default();
    wait_until("the hold", || said().contains("waiting: held: ").then_some(()), said);
    assert_eq!(world.check("live").code, 0);
    let ready = world.check("ready");
    assert!(ready.code == 1 && ready.stdout.starts_with("not ready: held: "), "{}", ready.stdout);
    assert!(!world.data.path().join("started").exists());
    fs::remove_file(world.hold()).unwrap();
    let ended = wait_until("the end of CMD", || running.try_wait().unwrap(), said);
    assert!(ended.success() && said().contains("not held any more"), "{}", said());
    assert!(world.data.path().join("started").exists());
    let ready = world.check("ready");
    assert!(!ready.stdout.contains("held"), "{}", ready.stdout);
}

#[test]
fn a_term_during_a_hold_ends_with_143() {
    let world = World::new();
    fs::write(world.hold(), "").unwrap();
    let (mut running, log) = world.run();
    let said = || fs::read_to_string(&log).unwrap_or_default();
    wait_until("the hold", || said().contains("waiting: held: ").then_some(()), said);
    kill(Pid::from_raw(running.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
    let ended = wait_until("the end", || running.try_wait().unwrap(), said);
    assert_eq!(ended.code(), Some(143), "{}", said());
    assert!(!world.rendered());
}

/// An API server that has our Pod with this annotation.
fn api(world: &World, annotations: &Value) -> ScriptedHttp {
    let api = ScriptedHttp::start();
    fs::write(world.data.path().join("kubeconfig"), api.kubeconfig(&json!({}))).unwrap();
    let pod = json!({"metadata": {"name": "consul-server-0", "uid": "u", "annotations": annotations}});
    api.always(Call::get(POD, Reply::ok(&pod.to_string())));
    api.always(Call::post("/api/v1/namespaces/demo/events", Reply::Json(201, "{}".to_owned())));
    api
}

/// The same calls in a Pod; `--claim=off` and a fixed source ask the API nothing else but who we are.
fn in_a_pod(world: &World, convene: Convene) -> Ended {
    let statefulset = "POD_NAME=consul-server-0 POD_NAMESPACE=demo POD_IP=127.0.0.1";
    convene.envs(statefulset).env("KUBECONFIG", world.data.path().join("kubeconfig")).words(["--wait=0s"]).run()
}

fn no_statefulset(api: &ScriptedHttp) {
    api.always(Call::get("/apis/apps/v1/namespaces/demo/statefulsets/consul-server", status(404)));
}

#[test]
fn an_annotation_holds_and_is_told_by_one_event() {
    let world = World::new();
    let server = api(&world, &json!({"convene.dev/hold": ""}));
    is_held(
        &in_a_pod(&world, world.server(&["init", "--claim=off"])),
        "annotation convene.dev/hold of Pod consul-server-0",
    );
    let told =
        server.requests().iter().filter(|one| one.method == "POST").map(|one| one.body.clone()).collect::<Vec<_>>();
    let held = told.iter().filter(|body| body.contains("\"reason\":\"Held\"")).count();
    assert_eq!(held, 1, "{told:?}");
    is_held(&in_a_pod(&world, world.client(&["init"])), "annotation convene.dev/hold of Pod consul-server-0");
    assert!(!world.rendered());
}

#[test]
fn an_annotation_that_says_false_counts_more_than_the_file() {
    let world = World::new();
    let api = api(&world, &json!({"convene.dev/hold": "false"}));
    no_statefulset(&api);
    fs::write(world.hold(), "").unwrap();
    in_a_pod(&world, world.server(&["init", "--claim=off"])).ends(0, &[]);
}

#[test]
fn an_api_that_may_not_be_asked_holds_nobody_and_is_no_complaint() {
    let world = World::new();
    let api = api(&world, &json!({}));
    no_statefulset(&api);
    api.always(Call::get(POD, status(403)));
    let ended = in_a_pod(&world, world.server(&["init", "--claim=off"]));
    assert!(ended.code == 0 && !ended.stderr.contains("hold"), "{}", ended.stderr);
    fs::write(world.hold(), "").unwrap();
    is_held(&in_a_pod(&world, world.server(&["init", "--claim=off"])), "convene/hold keeps the agent from starting");
}

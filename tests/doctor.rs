//! What `convene doctor` finds in Kubernetes objects: each check is broken once in the manifests of `deploy/`, and gives that one
//! finding; as they stand they give none. The Kubernetes API is a server on a real socket. The mends are carried out on a real cluster by
//! `make e2e`.

// A panic is how a test fails; clippy's own exception for tests covers `#[test]` functions only.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "support/mod.rs"]
mod support;

use convene::api::kube::raw::ThroughPod;
use convene::api::kube::{Access, Kube, KubeError, Timestamp};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;
use support::config_map::status;
use support::http::{Call, Reply, Request, ScriptedHttp};
use support::program::{Convene, Ended};
use support::skip::needs_program;

const COREFILE: &str = ".:53 {\n    kubernetes cluster.local {\n        ttl 30\n    }\n    cache 30\n}\n";

/// What the manifests hold, by kind and name.
type Objects = BTreeMap<(String, String), Value>;

/// A folder of `deploy/`, with components, as JSON: kubectl renders it, and reads it without a cluster.
fn rendered(folder: &str, components: &[&str]) -> Objects {
    let root = env!("CARGO_MANIFEST_DIR");
    let overlay = tempfile::Builder::new().prefix("overlay-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let here = overlay.path().canonicalize().unwrap();
    // Kustomize refuses an absolute path.
    let up = "../".repeat(here.components().count() - 1);
    let found = |folder: &str| format!("{up}{}/deploy/{folder}", root.trim_start_matches('/'));
    let kustomization = json!({
        "apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization", "namespace": "prod",
        "resources": [found(folder)],
        "components": components.iter().map(|one| found(&format!("components/{one}"))).collect::<Vec<_>>(),
    });
    std::fs::write(overlay.path().join("kustomization.yaml"), kustomization.to_string()).unwrap();
    let mut kustomize = Command::new("kubectl");
    let mut kustomize = kustomize.arg("kustomize").arg(&here).stdout(Stdio::piped()).spawn().unwrap();
    let mut read = Command::new("kubectl");
    read.args(["annotate", "--local", "-f", "-", "-o", "json", "read-by=doctor"]).env("KUBECONFIG", "/dev/null");
    let output = read.stdin(kustomize.stdout.take().unwrap()).output().unwrap();
    assert!(kustomize.wait().unwrap().success() && output.status.success(), "{output:?}");
    let read = serde_json::Deserializer::from_slice(&output.stdout).into_iter::<Value>();
    let named = |object: Value| {
        let text = |place: &str| object.pointer(place).unwrap().as_str().unwrap().to_owned();
        ((text("/kind"), text("/metadata/name")), object)
    };
    read.map(|object| named(object.unwrap())).collect()
}

/// A Kubernetes API that has what was applied, and what the controllers make of it.
struct World {
    objects: Objects,
    /// What may not be asked: the path's beginning.
    forbidden: Vec<String>,
    /// Verbs and resources that the servers' account lacks.
    lacking: Vec<(&'static str, &'static str)>,
    token: bool,
}

impl World {
    fn new() -> Self {
        static SERVER: OnceLock<Objects> = OnceLock::new();
        Self::of(SERVER.get_or_init(|| rendered("server", &[])).clone())
    }

    fn of(mut objects: Objects) -> Self {
        let statefulset = objects[&key("StatefulSet", "consul-server")].clone();
        let template = statefulset["spec"]["template"].clone();
        let token = template["spec"]["automountServiceAccountToken"] != json!(false);
        for (number, (_, service)) in objects.iter_mut().filter(|((kind, _), _)| kind == "Service").enumerate() {
            let spec = service["spec"].as_object_mut().unwrap();
            spec.entry("clusterIP").or_insert_with(|| json!(format!("10.96.0.{}", number + 1)));
        }
        for ordinal in 0..statefulset["spec"]["replicas"].as_u64().unwrap() {
            let name = format!("consul-server-{ordinal}");
            objects.insert(key("Pod", &name), pod(&name, &template, ordinal, token));
        }
        let core_dns = json!({"metadata": {"name": "coredns"}, "data": {"Corefile": COREFILE}});
        objects.insert(key("ConfigMap", "coredns"), core_dns);
        Self { objects, forbidden: Vec::new(), lacking: Vec::new(), token }
    }

    fn object(&mut self, kind: &str, name: &str) -> &mut Value {
        self.objects.get_mut(&key(kind, name)).unwrap_or_else(|| panic!("there is no {kind} {name}"))
    }

    fn service(&mut self, name: &str) -> &mut Value {
        &mut self.object("Service", name)["spec"]
    }

    fn spec(&mut self) -> &mut Value {
        &mut self.object("StatefulSet", "consul-server")["spec"]
    }

    fn template(&mut self) -> &mut Value {
        &mut self.spec()["template"]["spec"]
    }

    fn agent(&mut self) -> &mut Value {
        &mut self.template()["containers"][0]
    }

    fn budget(&mut self) -> &mut Value {
        &mut self.object("PodDisruptionBudget", "consul-server")["spec"]
    }

    fn pod(&mut self, ordinal: u64) -> &mut Value {
        self.object("Pod", &format!("consul-server-{ordinal}"))
    }

    fn setting(&mut self, variable: &str, value: &str) {
        let map = self.objects.iter_mut().find(|((_, name), _)| name.starts_with("consul-server-convene"));
        map.unwrap().1["data"][variable] = json!(value);
    }

    fn without(&mut self, kind: &str, name: &str) {
        self.objects.remove(&key(kind, name)).unwrap();
    }

    /// Plays the API, and asks doctor from outside.
    fn doctor(&self, words: &[&str]) -> Ended {
        let api = ScriptedHttp::start();
        let files = tempfile::tempdir().unwrap();
        let kubeconfig = files.path().join("kubeconfig");
        std::fs::write(&kubeconfig, api.kubeconfig(&json!({"token": "t"}))).unwrap();
        self.play(&api);
        Convene::new(["doctor"]).words(words).env("KUBECONFIG", &kubeconfig).run()
    }

    fn play(&self, api: &ScriptedHttp) {
        let answer = |path: String, answer: Option<&Value>| {
            let forbidden = self.forbidden.iter().any(|beginning| path.starts_with(beginning));
            let found = answer.map_or_else(|| status(404), |answer| Reply::ok(&answer.to_string()));
            api.always(Call::get(&path, if forbidden { status(403) } else { found }));
        };
        let of = |kind: &str| {
            let found: Vec<Value> =
                self.objects.iter().filter(|((one, _), _)| one == kind).map(|(_, object)| object.clone()).collect();
            json!({"items": found})
        };
        let prod = |path: &str| format!("{path}/namespaces/prod");
        let (apps, core, policy) = (prod("/apis/apps/v1"), prod("/api/v1"), prod("/apis/policy/v1"));
        answer(format!("{apps}/statefulsets"), Some(&of("StatefulSet")));
        answer(format!("{policy}/poddisruptionbudgets"), Some(&of("PodDisruptionBudget")));
        answer(format!("{apps}/statefulsets/nobody"), None);
        for (folder, kind, names) in [
            (format!("{apps}/statefulsets"), "StatefulSet", &["consul-server"][..]),
            (format!("{core}/services"), "Service", &["consul-server", "consul"]),
        ] {
            for name in names {
                answer(format!("{folder}/{name}"), self.objects.get(&key(kind, name)));
            }
        }
        for ordinal in 0..9 {
            let name = format!("consul-server-{ordinal}");
            answer(format!("{core}/pods/{name}"), self.objects.get(&key("Pod", &name)));
            answer(format!("{core}/services/{name}"), self.objects.get(&key("Service", &name)));
            // Nobody may ask the agents.
            for agent in [format!("{name}:8500"), format!("https:{name}:8501")] {
                for path in ["leader", "peers"] {
                    api.always(Call::get(&format!("{core}/pods/{agent}/proxy/v1/status/{path}"), status(403)));
                }
            }
        }
        for ((kind, name), object) in self.objects.iter().filter(|((kind, _), _)| kind == "ConfigMap") {
            assert_eq!(kind, "ConfigMap");
            answer(format!("{core}/configmaps/{name}"), Some(object));
        }
        let core_dns = self.objects.get(&key("ConfigMap", "coredns"));
        answer("/api/v1/namespaces/kube-system/configmaps/coredns".to_owned(), core_dns);
        let lacking = self.lacking.clone();
        let replicas =
            self.objects.get(&key("StatefulSet", "consul-server")).and_then(|set| set["spec"]["replicas"].as_u64());
        let highest = replicas.unwrap_or(3).checked_sub(1).map(|highest| format!("consul-server-{highest}"));
        let review = move |request: &Request| {
            let asked: Value = serde_json::from_str(&request.body).unwrap();
            let right = &asked["spec"]["resourceAttributes"];
            assert_eq!(asked["spec"]["user"], "system:serviceaccount:prod:consul-server");
            // Of the Pods only the servers' own may be changed, and a Role for fewer servers than there are names the lower ones.
            let named = if right["verb"] == "patch" { json!(highest) } else { Value::Null };
            assert_eq!(right["name"], named);
            let lacks = lacking.iter().any(|(verb, of)| right["verb"] == *verb && right["resource"] == *of);
            Reply::Json(201, json!({"status": {"allowed": !lacks}}).to_string())
        };
        let reviews = prod("/apis/authorization.k8s.io/v1") + "/localsubjectaccessreviews";
        let forbidden = self.forbidden.contains(&reviews);
        api.always(Call::post(&reviews, if forbidden { status(403) } else { Reply::by(review) }));
    }

    /// What it finds, as JSON, and the exit code.
    fn report(&self) -> (Value, i32) {
        let ended = self.doctor(&["--namespace=prod", "--output=json"]);
        let mut report: Value = serde_json::from_str(&ended.stdout).unwrap_or_else(|_| panic!("{ended:?}"));
        // These are looked at in tests/doctor_agents.rs.
        report["not_looked_at"].as_array_mut().unwrap().retain(|one| one["what"] != "the agents");
        (report, ended.code)
    }
}

fn key(kind: &str, name: &str) -> (String, String) {
    (kind.to_owned(), name.to_owned())
}

/// A server's Pod as the controllers and kubelet make it, Ready.
fn pod(name: &str, template: &Value, ordinal: u64, token: bool) -> Value {
    let mut pod = template.clone();
    pod["metadata"]["name"] = json!(name);
    pod["spec"]["nodeName"] = json!(format!("machine-{ordinal}"));
    if token {
        let mount = json!({"name": "token", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"});
        pod["spec"]["containers"][0]["volumeMounts"].as_array_mut().unwrap().push(mount);
    }
    pod["status"] = json!({"phase": "Running", "podIP": format!("10.0.0.{}", ordinal + 1), "conditions": [
        {"type": "PodScheduled", "status": "True"},
        {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"},
    ]});
    pod
}

fn kubectl_is_here(test: &str) -> bool {
    needs_program(test, "kubectl")
}

/// The change gives that one finding, about that object, with these parts in what it says and how it is mended.
#[track_caller]
fn finds(check: &str, subject: &str, parts: &[&str], change: impl FnOnce(&mut World)) {
    if kubectl_is_here(check) {
        let mut world = World::new();
        change(&mut world);
        found_by(&world, check, subject, parts);
    }
}

#[track_caller]
fn found_by(world: &World, check: &str, subject: &str, parts: &[&str]) {
    let (report, code) = world.report();
    let findings = report["findings"].as_array().unwrap();
    let [finding] = findings.as_slice() else { panic!("not one finding: {report:#}") };
    assert_eq!((finding["check"].as_str(), finding["subject"].as_str()), (Some(check), Some(subject)), "{finding:#}");
    assert_eq!(code, 1);
    let said = [&finding["what"], &finding["mend"]].map(|text| text.as_str().unwrap()).join("\n");
    for part in parts {
        assert!(said.contains(part), "{part:?} is not in {said}");
    }
    // What a shell would not even read mends nothing.
    let mend = finding["mend"].as_str().unwrap();
    let read = Command::new("sh").args(["-n", "-c", mend]).output().unwrap();
    assert!(read.status.success(), "{mend}: {read:?}");
    assert!(report["looked"].as_array().unwrap().contains(&json!(check)), "{report:#}");
}

fn checks_of(report: &Value) -> Vec<&str> {
    report["findings"].as_array().unwrap().iter().map(|finding| finding["check"].as_str().unwrap()).collect()
}

const SET: &str = "StatefulSet prod/consul-server";
const AGENT: &str = "StatefulSet prod/consul-server, container consul";
const SECOND: &str = "Service prod/consul-server-2";

// === as it stands ===

#[test]
fn every_folder_of_deploy_with_servers_is_clean() {
    if !kubectl_is_here("every_folder_of_deploy_with_servers_is_clean") {
        return;
    }
    for (folder, components) in [
        ("server", &[][..]),
        ("server-init", &[]),
        ("server-five", &[]),
        ("server-one", &[]),
        ("server", &["dns-only"]),
        ("server-init", &["dns-only"]),
        ("server", &["pod-address"]),
        ("server-init", &["pod-address"]),
        ("server-five", &["pod-address"]),
        ("server-one", &["pod-address"]),
        ("server", &["found-by-label"]),
        ("server", &["gossip-key", "tls", "acls"]),
        ("server-init", &["gossip-key", "tls", "acls"]),
    ] {
        let world = World::of(rendered(folder, components));
        let (report, code) = world.report();
        assert_eq!((checks_of(&report), code), (vec![], 0), "{folder} with {components:?}: {report:#}");
        assert_eq!(report["not_looked_at"], json!([]), "{folder} with {components:?}");
        let looked: BTreeSet<&str> =
            report["looked"].as_array().unwrap().iter().map(|one| one.as_str().unwrap()).collect();
        assert_eq!(looked.contains("role"), world.token, "without a token no right is needed");
        assert_eq!(looked.contains("service-missing"), !components.contains(&"pod-address"));
        assert_eq!(looked.contains("dns-cache"), !world.token);
        // With the Pods' addresses no check looks for what may be left over.
        let of_a_server = |(kind, name): &&(String, String)| {
            let ordinal = name.strip_prefix("consul-server-").unwrap_or_default();
            kind == "Service" && ordinal.parse::<u32>().is_ok()
        };
        let services = world.objects.keys().filter(of_a_server).count();
        assert_eq!(services == 0, components.contains(&"pod-address"), "{folder} with {components:?}: {services}");
    }
}

#[test]
fn all_checks_of_readme_are_those_of_the_program() {
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    let section = readme.split("\n## ").find(|section| section.starts_with("Doctor")).expect("a section on doctor");
    let rows: Vec<&str> = section.lines().filter(|line| line.starts_with("| `")).collect();
    let checks: Vec<String> =
        convene::doctor::checks().iter().map(|(check, what)| format!("| `{check}` | {what} |")).collect();
    assert_eq!(rows, checks);
    let names: BTreeSet<&str> = convene::doctor::checks().into_iter().map(|(check, _)| check).collect();
    assert_eq!(names.len(), checks.len(), "each name once");
}

// === Services ===

#[test]
fn a_server_without_a_service_of_its_own_is_found() {
    finds(
        "service-missing",
        SECOND,
        &["kubectl -n prod apply -f -", "name: consul-server-2", "8301", "UDP"],
        |world| {
            world.without("Service", "consul-server-2");
        },
    );
}

#[test]
fn a_service_without_an_address_is_found() {
    finds("service-address", SECOND, &["delete service consul-server-2", "selector:", "rollout restart"], |world| {
        world.service("consul-server-2")["clusterIP"] = json!("None");
    });
}

#[test]
fn a_service_that_leads_to_another_server_or_to_all_is_found() {
    let mended = r#""value":{"convene.dev/reachable":"true","statefulset.kubernetes.io/pod-name":"consul-server-2"}"#;
    finds("service-selector", SECOND, &["leads to consul-server-1, and not", mended], |world| {
        world.service("consul-server-2")["selector"] = json!({"statefulset.kubernetes.io/pod-name": "consul-server-1"});
    });
    finds("service-selector", SECOND, &["leads to consul-server-0, consul-server-1, consul-server-2,"], |world| {
        world.service("consul-server-2")["selector"] = json!({"app.kubernetes.io/component": "server"});
    });
    finds("service-selector", SECOND, &["leads to no server"], |world| {
        world.service("consul-server-2")["selector"] = Value::Null;
    });
}

const LABEL: &str = "/metadata/labels/convene.dev~1reachable";

fn label<'a>(object: &'a mut Value, within: &str) -> &'a mut Value {
    object.pointer_mut(&format!("{within}{LABEL}")).unwrap()
}

#[test]
fn a_pod_without_the_label_that_its_service_asks_for_is_found_and_one_that_stops_is_not() {
    let mend = "kubectl -n prod label pod consul-server-2 --overwrite convene.dev/reachable=true";
    finds("service-label", POD, &["which it lacks", mend], |world| *label(world.pod(2), "") = Value::Null);
    // Else the mend would take it out of its Service.
    finds("service-label", SECOND, &[&format!("{mend}\nkubectl -n prod patch service")], |world| {
        *label(world.pod(2), "") = Value::Null;
        world.service("consul-server-2")["selector"].as_object_mut().unwrap().remove("convene.dev/reachable");
    });
    finds("service-selector", SECOND, &[&format!("{mend}\nkubectl -n prod patch service")], |world| {
        *label(world.pod(2), "") = Value::Null;
        world.service("consul-server-2")["selector"] = Value::Null;
    });
    if kubectl_is_here("a_pod_without_the_label_that_its_service_asks_for_is_found_and_one_that_stops_is_not") {
        let mut world = World::new();
        *label(world.pod(2), "") = json!("false");
        world.pod(2)["metadata"]["deletionTimestamp"] = json!("2099-01-01T00:00:00Z");
        assert_eq!(checks_of(&world.report().0), [""; 0]);
    }
}

#[test]
fn a_service_that_lacks_the_label_of_its_pod_is_found() {
    let parts = ["lacks convene.dev/reachable", r#""convene.dev/reachable":"true""#];
    finds("service-label", SECOND, &parts, |world| {
        world.service("consul-server-2")["selector"].as_object_mut().unwrap().remove("convene.dev/reachable");
    });
}

#[test]
fn without_the_label_on_pods_and_services_neither_it_nor_a_right_to_it_is_missed() {
    if kubectl_is_here("without_the_label_on_pods_and_services_neither_it_nor_a_right_to_it_is_missed") {
        let mut world = World::new();
        world.lacking = vec![("patch", "pods")];
        assert_eq!(checks_of(&world.report().0), ["role"]);
        *label(world.object("StatefulSet", "consul-server"), "/spec/template") = Value::Null;
        for ordinal in 0..3 {
            *label(world.pod(ordinal), "") = Value::Null;
            let name = format!("consul-server-{ordinal}");
            world.service(&name)["selector"] = json!({"statefulset.kubernetes.io/pod-name": name});
        }
        assert_eq!(checks_of(&world.report().0), [""; 0]);
    }
}

#[test]
fn the_pods_index_selects_as_well_as_its_name() {
    if kubectl_is_here("the_pods_index_selects_as_well_as_its_name") {
        let mut world = World::new();
        world.service("consul-server-2")["selector"] =
            json!({"convene.dev/reachable": "true", "apps.kubernetes.io/pod-index": "2"});
        assert_eq!(checks_of(&world.report().0), [""; 0]);
    }
}

#[test]
fn a_service_that_lacks_a_port_or_leads_it_elsewhere_is_found() {
    finds("service-ports", SECOND, &["8301/UDP", r#""port":8301,"protocol":"UDP"}"#, "grpc-tls"], |world| {
        let ports = world.service("consul-server-2")["ports"].as_array_mut().unwrap();
        ports.retain(|port| port["port"] != 8301 || port["protocol"] != "UDP");
    });
    finds("service-ports", SECOND, &["8300/TCP"], |world| {
        world.service("consul-server-2")["ports"][0]["targetPort"] = json!(8500);
    });
    finds("service-ports", SECOND, &["8500/TCP"], |world| {
        let ports = world.service("consul-server-2")["ports"].as_array_mut().unwrap();
        ports.retain(|port| port["port"] != 8500 && port["port"] != 8501);
    });
}

#[test]
fn a_service_that_hides_who_is_not_ready_is_found() {
    finds("service-not-ready", SECOND, &["patch service consul-server-2", "publishNotReadyAddresses"], |world| {
        world.service("consul-server-2")["publishNotReadyAddresses"] = json!(false);
    });
}

#[test]
fn where_pod_addresses_are_advertised_no_service_of_ones_own_is_missed() {
    if kubectl_is_here("where_pod_addresses_are_advertised_no_service_of_ones_own_is_missed") {
        let mut world = World::new();
        world.setting("CONVENE_ADVERTISE", "pod");
        world.without("Service", "consul-server-2");
        assert_eq!(checks_of(&world.report().0), [""; 0]);
        world.setting("CONVENE_ADVERTISE", "service");
        assert_eq!(checks_of(&world.report().0), ["service-missing"]);
    }
}

#[test]
fn a_headless_service_that_is_missing_or_wrong_is_found() {
    let subject = "Service prod/consul-server";
    finds("headless-missing", subject, &["serviceName consul-server", "clusterIP: None"], |world| {
        world.without("Service", "consul-server");
    });
    finds("headless-address", subject, &["10.96.0.9", "delete service consul-server\n"], |world| {
        world.service("consul-server")["clusterIP"] = json!("10.96.0.9");
    });
    finds("headless-selector", subject, &["does not fit", "/spec/selector"], |world| {
        world.service("consul-server")["selector"]["app.kubernetes.io/component"] = json!("servers");
    });
    finds("headless-not-ready", subject, &["patch service consul-server -p"], |world| {
        world.service("consul-server").as_object_mut().unwrap().remove("publishNotReadyAddresses");
    });
}

// === the StatefulSet ===

#[test]
fn pods_that_start_one_after_the_other_are_found() {
    let parts = ["OrderedReady", "kubectl -n prod delete statefulset consul-server --cascade=orphan"];
    finds("ordered-start", SET, &parts, |world| {
        world.spec().as_object_mut().unwrap().remove("podManagementPolicy");
    });
}

#[test]
fn a_grace_period_that_is_too_short_or_not_what_convene_was_told_is_found() {
    finds(
        "grace-period",
        SET,
        &["terminationGracePeriodSeconds is 30", "{\"terminationGracePeriodSeconds\":120}"],
        |world| {
            world.template().as_object_mut().unwrap().remove("terminationGracePeriodSeconds");
        },
    );
    finds("grace-period", SET, &["told a grace period of 120 s", "is 60"], |world| {
        world.template()["terminationGracePeriodSeconds"] = json!(60);
    });
    finds(
        "grace-period",
        SET,
        &["was told 30 s", "set env statefulset/consul-server CONVENE_GRACE_PERIOD=120s"],
        |world| {
            world.setting("CONVENE_GRACE_PERIOD", "30s");
        },
    );
}

#[test]
fn a_rollout_that_takes_the_quorum_is_found() {
    for most in [json!(2), json!("50%")] {
        finds("rollout-takes-several", SET, &["2 of 3", "\"maxUnavailable\":1"], |world| {
            world.spec()["updateStrategy"] =
                json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": most}});
        });
    }
}

#[test]
fn an_even_number_of_servers_is_found() {
    finds("replicas-even", SET, &["2 replicas", "scale statefulset consul-server --replicas=3"], |world| {
        world.spec()["replicas"] = json!(2);
    });
}

#[test]
fn an_expect_that_never_comes_or_comes_twice_is_found() {
    finds("expect", SET, &["expect is 5", "3 replicas", "CONVENE_EXPECT=3"], |world| {
        world.setting("CONVENE_EXPECT", "5");
    });
    finds("expect", SET, &["expect is 1", "no majority"], |world| {
        world.setting("CONVENE_EXPECT", "auto");
        world.agent()["args"].as_array_mut().unwrap().push(json!("--expect=1"));
    });
    finds("expect", SET, &["expect is 1", "no majority"], |world| {
        let map = world.objects.iter_mut().find(|((_, name), _)| name.starts_with("consul-server-convene"));
        map.unwrap().1["data"].as_object_mut().unwrap().remove("CONVENE_EXPECT");
        world.agent()["args"].as_array_mut().unwrap().extend([json!("-bootstrap-expect"), json!("1")]);
    });
}

#[test]
fn volumes_that_are_deleted_with_the_pods_are_found() {
    finds("claims-deleted", SET, &["whenScaled", "Retain"], |world| {
        world.spec()["persistentVolumeClaimRetentionPolicy"] = json!({"whenScaled": "Delete", "whenDeleted": "Retain"});
    });
}

#[test]
fn a_data_folder_that_is_not_kept_or_is_shared_is_found() {
    let volume = |world: &mut World, source: Value| {
        world.spec()["volumeClaimTemplates"] = json!([]);
        let mut volume = json!({"name": "data"});
        volume.as_object_mut().unwrap().extend(source.as_object().unwrap().clone());
        world.template()["volumes"].as_array_mut().unwrap().push(volume);
    };
    finds("data-volume", SET, &["/consul/data is on an emptyDir (data)", "snapshot save"], |world| {
        volume(world, json!({"emptyDir": {}}));
    });
    finds("data-volume", SET, &["on one volume (data) for all servers"], |world| {
        volume(world, json!({"persistentVolumeClaim": {"claimName": "all"}}));
    });
    finds("data-volume", SET, &["/consul/data is on no volume"], |world| {
        world.agent()["volumeMounts"].as_array_mut().unwrap().retain(|mount| mount["name"] != "data");
    });
    finds("data-volume", SET, &["ReadWriteMany"], |world| {
        world.spec()["volumeClaimTemplates"][0]["spec"]["accessModes"] = json!(["ReadWriteMany"]);
    });
}

// === the agent's container, and its machine ===

#[test]
fn probes_that_end_or_pass_a_server_wrongly_are_found() {
    finds("startup-probe", AGENT, &["no startupProbe", "after 60 s", "\"failureThreshold\":900"], |world| {
        world.agent()["livenessProbe"]["exec"] = Value::Null;
        world.agent()["livenessProbe"]["tcpSocket"] = json!({"port": 8500});
    });
    finds("startup-probe", AGENT, &["gives up after 30 s"], |world| {
        let mut startup = world.agent()["livenessProbe"].clone();
        startup["periodSeconds"] = json!(1);
        startup["failureThreshold"] = json!(30);
        world.agent()["startupProbe"] = startup;
    });
    finds("liveness-probe", AGENT, &["check ready", r#"["/convene/convene","check","live"]"#], |world| {
        world.agent()["livenessProbe"]["exec"]["command"][2] = json!("ready");
    });
    finds("liveness-probe", AGENT, &["consul members"], |world| {
        world.agent()["livenessProbe"]["exec"]["command"] = json!(["consul", "members"]);
    });
    finds(
        "readiness-probe",
        AGENT,
        &["no readinessProbe", r#"["/convene/convene","check","ready","--wait=1900ms"]"#],
        |world| {
            world.agent().as_object_mut().unwrap().remove("readinessProbe");
        },
    );
    finds("readiness-probe", AGENT, &["not convene check ready"], |world| {
        world.agent()["readinessProbe"]["exec"]["command"][2] = json!("joined");
    });
    finds(
        "probe-timeout",
        AGENT,
        &["readinessProbe, livenessProbe", r#""livenessProbe":{"timeoutSeconds":5}"#],
        |world| {
            world.agent()["livenessProbe"]["timeoutSeconds"] = json!(1);
            world.agent()["readinessProbe"].as_object_mut().unwrap().remove("timeoutSeconds");
        },
    );
}

#[test]
fn an_agent_without_memory_or_with_too_little_cpu_is_found() {
    finds("memory-request", AGENT, &["requests no memory", r#""memory":"256Mi""#], |world| {
        world.agent().as_object_mut().unwrap().remove("resources");
    });
    for (limit, said) in [(json!("200m"), "is 200m"), (json!("0.2"), "is 0.2"), (json!(0.2), "is 0.2")] {
        finds("cpu-limit", AGENT, &[said, "/spec/template/spec/containers/0/resources/limits/cpu"], |world| {
            world.agent()["resources"]["limits"]["cpu"] = limit;
        });
    }
}

#[test]
fn servers_that_may_be_or_are_on_one_machine_are_found() {
    finds(
        "anti-affinity",
        SET,
        &["requiredDuringSchedulingIgnoredDuringExecution", "kubernetes.io/hostname"],
        |world| {
            world.template().as_object_mut().unwrap().remove("affinity");
        },
    );
    finds("same-machine", "Node machine-0", &["2 of 3", "consul-server-0, consul-server-2"], |world| {
        world.pod(2)["spec"]["nodeName"] = json!("machine-0");
    });
}

// === the budget ===

#[test]
fn a_budget_that_is_missing_too_wide_or_closed_is_found() {
    let budget = "PodDisruptionBudget prod/consul-server";
    finds("budget-missing", SET, &["kind: PodDisruptionBudget", "maxUnavailable: 1"], |world| {
        world.without("PodDisruptionBudget", "consul-server");
    });
    finds("budget-missing", SET, &["no PodDisruptionBudget selects"], |world| {
        world.budget()["selector"]["matchLabels"]["app.kubernetes.io/component"] = json!("servers");
    });
    finds("budget-loose", budget, &["2 of 3", "no majority", r#""maxUnavailable":1"#], |world| {
        world.budget()["maxUnavailable"] = json!("50%");
    });
    finds("budget-loose", budget, &["minAvailable is 1"], |world| {
        world.budget().as_object_mut().unwrap().remove("maxUnavailable");
        world.budget()["minAvailable"] = json!(1);
    });
    finds("budget-closed", budget, &["minAvailable is 100%", r#""minAvailable":null"#], |world| {
        world.budget().as_object_mut().unwrap().remove("maxUnavailable");
        world.budget()["minAvailable"] = json!("100%");
    });
    finds("budget-unhealthy", budget, &["AlwaysAllow"], |world| {
        world.budget().as_object_mut().unwrap().remove("unhealthyPodEvictionPolicy");
    });
    finds("budget-several", SET, &["other", "delete poddisruptionbudget other"], |world| {
        let mut other = world.objects[&key("PodDisruptionBudget", "consul-server")].clone();
        other["metadata"]["name"] = json!("other");
        world.objects.insert(key("PodDisruptionBudget", "other"), other);
    });
}

// === rights ===

#[test]
fn a_right_that_the_account_lacks_is_found_with_what_lacks_without_it() {
    let account = "ServiceAccount prod/consul-server";
    finds("role", account, &["may not create configmaps", "kind: Role\n", "name: consul-server-convene"], |world| {
        world.lacking = vec![("create", "configmaps")];
    });
    let patch = "resources: [pods], verbs: [patch], resourceNames: [consul-server-0, consul-server-1, consul-server-2]";
    finds("role", account, &["may not patch pods", patch], |world| {
        world.lacking = vec![("patch", "pods")];
    });
    finds("role", account, &["may not get pods, get services"], |world| {
        world.lacking = vec![("get", "services"), ("get", "pods")];
    });
}

#[test]
fn of_a_statefulset_that_sleeps_nobody_is_asked_whether_its_pods_may_be_changed() {
    if kubectl_is_here("of_a_statefulset_that_sleeps_nobody_is_asked_whether_its_pods_may_be_changed") {
        let mut world = World::new();
        world.spec()["replicas"] = json!(0);
        (0..3).for_each(|ordinal| world.without("Pod", &format!("consul-server-{ordinal}")));
        world.lacking = vec![("patch", "pods")];
        assert!(!checks_of(&world.report().0).contains(&"role"));
    }
}

#[test]
fn without_a_claim_no_right_to_configmaps_is_needed() {
    if kubectl_is_here("without_a_claim_no_right_to_configmaps_is_needed") {
        let mut world = World::new();
        world.lacking = vec![("create", "configmaps"), ("update", "configmaps"), ("get", "configmaps")];
        assert_eq!(checks_of(&world.report().0), ["role"]);
        world.setting("CONVENE_CLAIM", "off");
        assert_eq!(checks_of(&world.report().0), [""; 0]);
    }
}

// === Pods ===

const POD: &str = "Pod prod/consul-server-2";

#[test]
fn a_pod_that_is_not_there_or_not_on_a_machine_is_found() {
    finds("pod-missing", POD, &["describe statefulset consul-server"], |world| world.without("Pod", "consul-server-2"));
    finds("pod-unscheduled", POD, &["0/3 nodes are available", "describe pod consul-server-2"], |world| {
        world.pod(2)["status"]["conditions"] = json!([{"type": "PodScheduled", "status": "False", "reason": "Unschedulable",
            "message": "0/3 nodes are available"}]);
    });
}

#[test]
fn a_container_that_does_not_start_is_found_with_its_last_words() {
    finds(
        "pod-not-started",
        POD,
        &["ended 7 times", "convene: rule 2: this volume belongs to", "--previous"],
        |world| {
            world.pod(2)["status"]["conditions"][1]["status"] = json!("False");
            world.pod(2)["status"]["containerStatuses"] = json!([{"name": "consul", "restartCount": 7,
            "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 5m0s"}},
            "lastState": {"terminated": {"exitCode": 78, "message": "convene: rule 2: this volume belongs to …\n"}}}]);
        },
    );
    finds("pod-not-started", POD, &["install does not start: ImagePullBackOff: not found"], |world| {
        world.pod(2)["status"]["initContainerStatuses"] =
            json!([{"name": "install", "state": {"waiting": {"reason": "ImagePullBackOff", "message": "not found"}}}]);
    });
}

#[test]
fn a_pod_that_is_not_ready_for_long_is_found_and_one_that_just_starts_is_not() {
    let unready = |world: &mut World, since: &str| {
        world.pod(2)["status"]["conditions"][1] =
            json!({"type": "Ready", "status": "False", "lastTransitionTime": since});
    };
    finds("pod-not-ready", POD, &["(container consul)", "logs consul-server-2 -c consul --tail=20"], |world| {
        unready(world, "2026-01-01T00:00:00Z");
    });
    finds("pod-not-ready", POD, &["logs consul-server-2 -c convene"], |world| {
        unready(world, "2026-01-01T00:00:00Z");
        world.pod(2)["status"]["initContainerStatuses"] = json!([{"name": "convene", "started": false,
            "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}}]);
    });
    if kubectl_is_here("a_pod_that_is_not_ready_for_long_is_found_and_one_that_just_starts_is_not") {
        let mut world = World::new();
        unready(&mut world, &Timestamp::now().to_string());
        assert_eq!(checks_of(&world.report().0), [""; 0]);
    }
}

#[test]
fn a_pod_that_does_not_go_is_found() {
    finds("pod-terminating", POD, &["should have been gone", "--force"], |world| {
        world.pod(2)["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    });
}

#[test]
fn pods_with_different_images_are_found() {
    finds("image-skew", AGENT, &["consul:1.21.0 in consul-server-2", "rollout status"], |world| {
        world.pod(2)["spec"]["containers"][0]["image"] = json!("hashicorp/consul:1.21.0");
    });
}

// === names ===

#[test]
fn a_nameserver_that_keeps_its_answers_is_found_where_dns_alone_tells_who_is_there() {
    if !kubectl_is_here("a_nameserver_that_keeps_its_answers_is_found_where_dns_alone_tells_who_is_there") {
        return;
    }
    let slow = json!({"data": {"Corefile": COREFILE.replace("ttl 30", "ttl 300").replace("cache 30", "cache 120")}});
    let mut world = World::of(rendered("server", &["dns-only"]));
    world.objects.insert(key("ConfigMap", "coredns"), slow.clone());
    found_by(&world, "dns-cache", "ConfigMap kube-system/coredns", &["120 s", "edit configmap coredns"]);
    let mut world = World::new();
    world.objects.insert(key("ConfigMap", "coredns"), slow);
    assert_eq!(checks_of(&world.report().0), [""; 0], "whom the Kubernetes API tells waits for no nameserver");
}

// === by way of the API server ===

#[test]
fn a_pods_own_refusal_is_an_answer_and_the_api_servers_is_none() {
    let api = ScriptedHttp::start();
    let files = tempfile::tempdir().unwrap();
    let kubeconfig = files.path().join("kubeconfig");
    std::fs::write(&kubeconfig, api.kubeconfig(&json!({"token": "t"}))).unwrap();
    let kube = Kube::new(Access::Kubeconfig(Some(kubeconfig)), Duration::from_secs(60)).asking_once();
    let pods = "/api/v1/namespaces/prod/pods";
    let plain = format!("{pods}/consul-server-0:8500/proxy/v1/agent/self");
    let over_tls = format!("{pods}/https:consul-server-0:8501/proxy/v1/agent/metrics?format=prometheus");
    let refused = Reply::WithHeaders(403, Vec::new(), "Permission denied".to_owned());
    api.expect(Call::get(&plain, refused).with_header("x-consul-token", "s3cret"));
    api.expect(Call::get(
        &over_tls,
        Reply::WithHeaders(200, vec![("X-Consul-KnownLeader".into(), "true".into())], "x".into()),
    ));
    let of_kubernetes =
        |code: u16| Reply::Json(code, json!({"kind": "Status", "code": code, "message": "no way"}).to_string());
    [401, 403, 503].into_iter().for_each(|code| api.expect(Call::get(&plain, of_kubernetes(code))));
    let call = ThroughPod {
        namespace: "prod",
        pod: "consul-server-0",
        port: 8500,
        tls: false,
        path: "/v1/agent/self",
        token: Some("s3cret"),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let ask = |call| runtime.block_on(kube.through_pod(call));
    let answer = ask(call).unwrap();
    assert_eq!((answer.status, answer.body.as_slice()), (403, &b"Permission denied"[..]), "Consul's own");
    let path = "/v1/agent/metrics?format=prometheus";
    let answer = ask(ThroughPod { port: 8501, tls: true, path, token: None, ..call }).unwrap();
    assert!(answer.headers.contains(&("x-consul-knownleader".to_owned(), "true".to_owned())), "{answer:?}");
    assert!(matches!(ask(call), Err(KubeError::Unknown { resource: "pods/proxy", .. })));
    assert!(matches!(ask(call), Err(KubeError::Denied { verb: "get", resource: "pods/proxy", .. })));
    assert!(matches!(ask(call), Err(KubeError::Status { status: 503, .. })));
    api.finish();
}

// === the command ===

#[test]
fn what_may_not_be_looked_at_is_named_and_changes_no_exit_code() {
    if !kubectl_is_here("what_may_not_be_looked_at_is_named_and_changes_no_exit_code") {
        return;
    }
    let mut world = World::new();
    let reviews = "/apis/authorization.k8s.io/v1/namespaces/prod/localsubjectaccessreviews";
    world.forbidden = vec!["/apis/policy/v1/namespaces/prod/poddisruptionbudgets".to_owned(), reviews.to_owned()];
    let (report, code) = world.report();
    assert_eq!((checks_of(&report), code), (vec![], 0));
    let unseen = json!([
        {"what": "the PodDisruptionBudget", "why": "needs the right to list poddisruptionbudgets.policy in namespace prod"},
        {"what": "the rights of the servers' service account",
            "why": "needs the right to create localsubjectaccessreviews.authorization.k8s.io in namespace prod"},
    ]);
    assert_eq!(report["not_looked_at"], unseen);
    let text = world.doctor(&["--namespace=prod"]).stdout;
    assert!(text.contains("not looked at: the PodDisruptionBudget: needs the right to list"), "{text}");
}

#[test]
fn settings_that_may_not_be_read_are_named_and_not_guessed() {
    if !kubectl_is_here("settings_that_may_not_be_read_are_named_and_not_guessed") {
        return;
    }
    let mut world = World::of(rendered("server", &["pod-address"]));
    world.forbidden = vec!["/api/v1/namespaces/prod/configmaps".to_owned()];
    let (report, code) = world.report();
    assert_eq!((checks_of(&report), code), (vec![], 0), "{report:#}");
    let why = "needs the right to get configmaps in namespace prod";
    assert_eq!(report["not_looked_at"], json!([{"what": "the containers' settings", "why": why}]));
}

#[test]
fn nothing_to_look_at_ends_with_69_and_the_cause() {
    if !kubectl_is_here("nothing_to_look_at_ends_with_69_and_the_cause") {
        return;
    }
    let mut world = World::new();
    world.doctor(&["--namespace=prod", "--stateful-set=nobody"]).ends(69, &["no StatefulSet nobody in namespace prod"]);
    world.forbidden = vec!["/apis/apps/v1/namespaces/prod/statefulsets".to_owned()];
    world.doctor(&["--namespace=prod"]).ends(69, &["needs the right to list statefulsets.apps in namespace prod"]);
    Convene::new(["doctor"]).run().ends(69, &["no service account token is mounted, and KUBECONFIG is not set"]);
    let silent = tempfile::tempdir().unwrap();
    let kubeconfig = silent.path().join("kubeconfig");
    let api = ScriptedHttp::start();
    std::fs::write(&kubeconfig, api.kubeconfig(&json!({"token": "t"}))).unwrap();
    drop(api);
    Convene::new(["doctor"]).env("KUBECONFIG", &kubeconfig).run().ends(69, &["could not reach the Kubernetes API"]);
}

#[test]
fn of_several_stateful_sets_one_must_be_named_and_only_those_with_servers_count() {
    if !kubectl_is_here("of_several_stateful_sets_one_must_be_named_and_only_those_with_servers_count") {
        return;
    }
    let mut world = World::new();
    let spec = json!({"template": {"spec": {"containers": [{"name": "db", "image": "postgres:17"}]}}});
    let db = json!({"metadata": {"name": "db"}, "spec": spec});
    world.objects.insert(key("StatefulSet", "db"), db);
    assert_eq!(world.report().1, 0, "a database is nobody's server");
    let mut other = world.objects[&key("StatefulSet", "consul-server")].clone();
    other["metadata"]["name"] = json!("other");
    world.objects.insert(key("StatefulSet", "other"), other);
    world.doctor(&["--namespace=prod"]).ends(64, &["(consul-server, other)", "--stateful-set"]);
    assert_eq!(world.doctor(&["--namespace=prod", "--stateful-set=consul-server"]).code, 0);
}

#[test]
fn the_table_has_each_mend_as_it_can_be_copied_and_is_always_the_same() {
    if !kubectl_is_here("the_table_has_each_mend_as_it_can_be_copied_and_is_always_the_same") {
        return;
    }
    let mut world = World::new();
    world.without("PodDisruptionBudget", "consul-server");
    world.service("consul-server-1")["publishNotReadyAddresses"] = json!(false);
    let ended = world.doctor(&["--namespace=prod", "--stateful-set=consul-server"]);
    assert_eq!(ended.code, 1, "{ended:?}");
    let text = &ended.stdout;
    assert!(text.starts_with("service-not-ready: Service prod/consul-server-1\n  what: "), "{text}");
    assert!(
        text.contains("\nbudget-missing: StatefulSet prod/consul-server\n  what: "),
        "in the order of README's table: {text}"
    );
    let mend = "\n  mend:\nkubectl -n prod patch service consul-server-1 -p '{\"spec\":{\"publishNotReadyAddresses\":true}}'\n";
    assert!(text.contains(mend), "{text}");
    assert!(text.contains("\nfound 2 by "), "{text}");
    assert_eq!(&world.doctor(&["--namespace=prod"]).stdout, text);
}

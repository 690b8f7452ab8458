//! A test's own namespace: made for it, at the restricted Pod Security level, and removed with all that is in it.
//!
//! Takes what to apply: a folder of the repository, changed by patches, as a user's own kustomization would. Gives questions
//! to Kubernetes, and to the agents through its API. When the test fails, what the Pods logged is kept before all is removed.

use super::super::skip::needs_cluster_tool;
use super::followed::Followed;
use super::image::Images;
use super::proxy::{ANSWER, Proxy};
use super::secured::Secured;
use super::source::Source;
use super::turn::Turn;
use super::{Given, kubectl, run};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::net::{IpAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// A guard against hanging, no measure: Kubernetes' and CoreDNS' own periods of up to a minute fit in it several times.
const HANG: Duration = Duration::from_secs(300);
/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(200);

/// The servers of `deploy/` in a label selector.
pub const SERVERS: &str = "app.kubernetes.io/component=server";

/// A namespace of one test.
pub struct Namespace {
    given: Given,
    test: String,
    name: String,
    beside: Vec<String>,
    proxy: Proxy,
    folder: tempfile::TempDir,
    overlays: Mutex<usize>,
    breaking: Option<PathBuf>,
    secured: Secured,
    _turn: Turn,
}

/// A raft peer as the leader's configuration has it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Voter {
    /// The node's name.
    pub name: String,
    /// The node's ID.
    pub id: String,
    /// Its address.
    pub ip: IpAddr,
}

// === impl Namespace ===

impl Namespace {
    /// Makes one beside those of other tests.
    pub fn new(test: &str) -> Self {
        Self::make(test, Turn::beside(), None, Secured::from_env())
    }

    /// The same with more of `deploy/components` than all tests have.
    pub fn secured_by(test: &str, components: &[&'static str]) -> Self {
        Self::make(test, Turn::beside(), None, Secured::from_env().and_by(components))
    }

    /// Makes the only one, for a test that breaks what all share; none where nothing can be broken, and that is noted.
    pub fn alone(test: &str) -> Option<Self> {
        let breaking = needs_cluster_tool(test)?;
        Some(Self::make(test, Turn::alone(), Some(breaking), Secured::from_env()))
    }

    fn make(test: &str, turn: Turn, breaking: Option<PathBuf>, secured: Secured) -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::SeqCst);
        let given = Given::from_env();
        Images::of(&given);
        let folder = given.scratch("work-");
        let short: String = test.chars().take(40).map(|c| if c == '_' { '-' } else { c }).collect();
        let namespace = Self {
            proxy: Proxy::start(folder.path(), &secured.headers()),
            // Another one may begin alike.
            name: format!("e2e-{}-{}-{number}", short.trim_matches('-'), std::process::id()),
            test: test.to_owned(),
            beside: Vec::new(),
            overlays: Mutex::new(0),
            given,
            folder,
            breaking,
            secured,
            _turn: turn,
        };
        // What an earlier run left would be taken for this one's.
        let _ = fs::remove_dir_all(namespace.kept());
        namespace.create(&namespace.name, "restricted");
        namespace
    }

    /// Makes another one beside it, which goes with it.
    pub fn beside(&mut self) -> String {
        self.beside_at("restricted")
    }

    /// The same at another Pod Security level.
    pub fn beside_at(&mut self, level: &str) -> String {
        let name = format!("{}-beside", self.name);
        self.create(&name, level);
        self.beside.push(name.clone());
        name
    }

    fn create(&self, name: &str, level: &str) {
        let labels = json!({"pod-security.kubernetes.io/enforce": level, "convene-e2e": "true"});
        self.create_object(
            &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}),
        );
        self.secured.objects(name).iter().for_each(|object| self.create_object(object));
    }

    /// What the servers are secured by.
    pub fn secured(&self) -> &Secured {
        &self.secured
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The program that breaks parts of the cluster.
    pub fn breaking(&self) -> &Path {
        self.breaking.as_deref().expect("a test that breaks the cluster is alone in it")
    }

    /// The images that are run.
    pub fn images(&self) -> &'static Images {
        Images::of(&self.given)
    }

    /// Writes a kustomization with our namespace, our images and the changes; gives its folder.
    pub fn overlay(&self, source: &Source) -> PathBuf {
        self.overlay_in(&self.name, source)
    }

    fn overlay_in(&self, namespace: &str, source: &Source) -> PathBuf {
        let mut count = self.overlays.lock().unwrap();
        *count += 1;
        let folder = self.folder.path().join(count.to_string());
        fs::create_dir(&folder).unwrap();
        let source = self.secured.folders().fold(source.clone(), |source, component| source.component(&component));
        let overlay = source.overlay(&folder, namespace, self.images());
        fs::write(folder.join("kustomization.yaml"), format!("{overlay:#}")).unwrap();
        folder
    }

    /// `kubectl apply -k`.
    pub fn apply(&self, source: &Source) {
        let folder = self.overlay(source);
        run(kubectl(["apply", "-k"]).arg(folder)).unwrap_or_else(|why| panic!("{why}"));
    }

    /// The same in a namespace beside this one.
    pub fn apply_in(&self, namespace: &str, source: &Source) {
        let folder = self.overlay_in(namespace, source);
        run(kubectl(["apply", "-k"]).arg(folder)).unwrap_or_else(|why| panic!("{why}"));
    }

    /// `kubectl delete -k`: claims stay.
    pub fn delete(&self, source: &Source) {
        let folder = self.overlay(source);
        run(kubectl(["delete", "-k"]).arg(folder)).unwrap_or_else(|why| panic!("{why}"));
    }

    /// Empties the volumes whose claim is gone, where the cluster does not do so.
    pub fn empty_volumes(&self) {
        self.given.empty_volumes().unwrap_or_else(|why| panic!("{why}"));
    }

    /// [`Self::apply`] without waiting for its end, for who measures.
    pub fn start_apply(overlay: &Path) -> Child {
        kubectl(["apply", "-k"]).arg(overlay).stdout(std::process::Stdio::null()).spawn().expect("kubectl starts")
    }

    /// Creates one object, in whichever namespace it names.
    pub fn create_object(&self, object: &Value) {
        self.try_create(object).unwrap_or_else(|why| panic!("{why}"));
    }

    fn try_create(&self, object: &Value) -> Result<(), String> {
        let file = self.folder.path().join("object.json");
        fs::write(&file, object.to_string()).map_err(|why| why.to_string())?;
        run(kubectl(["create", "-f"]).arg(file)).map(drop)
    }

    /// `kubectl` in this namespace; what it printed, or what went wrong.
    pub fn try_kubectl(&self, words: &[&str]) -> Result<String, String> {
        run(kubectl(["-n", &self.name]).args(words))
    }

    /// The same, and it must succeed.
    #[track_caller]
    pub fn kubectl(&self, words: &[&str]) -> String {
        self.try_kubectl(words).unwrap_or_else(|why| panic!("{why}"))
    }

    /// Deletes Pods by kubectl's words for them, and waits until these are gone.
    #[track_caller]
    pub fn delete_pods(&self, words: &[&str]) {
        self.delete_pods_in(&self.name, words);
    }

    /// The same in a namespace beside it. kubectl's own wait now and then misses the end, and lasts for ever.
    #[track_caller]
    pub fn delete_pods_in(&self, there: &str, words: &[&str]) {
        let lives = || -> Option<BTreeMap<String, String>> {
            let listed = self.get_in(there, "pods")?;
            let text = |pod: &Value, key: &str| pod["metadata"][key].as_str().unwrap_or_default().to_owned();
            let pods = listed["items"].as_array().into_iter().flatten();
            Some(pods.map(|pod| (text(pod, "name"), text(pod, "uid"))).collect())
        };
        let before = lives().unwrap_or_else(|| panic!("the Pods of {there} are not told"));
        let told = self.kubectl(&[&["-n", there, "delete", "pods", "--wait=false", "-o", "name"], words].concat());
        let names: Vec<&str> = told.lines().filter_map(|line| line.strip_prefix("pod/")).collect();
        assert!(!names.is_empty(), "no Pods are {words:?}");
        self.wait_for("the end of the deleted Pods", || {
            // An API server that does not answer ends nobody.
            let gone =
                |name: &&str, now: &BTreeMap<_, _>| before.get(*name).is_none_or(|uid| now.get(*name) != Some(uid));
            lives().is_some_and(|now| names.iter().all(|name| gone(name, &now)))
        });
    }

    /// Runs words in a Pod's first container.
    #[track_caller]
    pub fn exec(&self, pod: &str, words: &[&str]) -> String {
        self.kubectl(&[&["exec", pod, "--"], words].concat())
    }

    /// The log of a container.
    pub fn logs(&self, pod: &str, container: &str) -> String {
        self.logs_in(&self.name, pod, container)
    }

    /// The same in a namespace beside this one.
    pub fn logs_in(&self, namespace: &str, pod: &str, container: &str) -> String {
        run(&mut kubectl(["-n", namespace, "logs", pod, "-c", container])).unwrap_or_else(|why| why)
    }

    /// GETs an object of the core API in this namespace: `pods/consul-server-0`, `services`.
    pub fn get(&self, path: &str) -> Option<Value> {
        self.get_in(&self.name, path)
    }

    /// The same in a namespace beside this one.
    pub fn get_in(&self, namespace: &str, path: &str) -> Option<Value> {
        self.proxy.get(&format!("/api/v1/namespaces/{namespace}/{path}"))
    }

    /// The Pods that a label selector names.
    pub fn pods(&self, selector: &str) -> Vec<Value> {
        let selector = selector.replace('=', "%3D").replace('/', "%2F").replace(',', "%2C").replace('!', "%21");
        let found = self.get(&format!("pods?labelSelector={selector}"));
        found.and_then(|found| found["items"].as_array().cloned()).unwrap_or_default()
    }

    /// The same as they change.
    pub fn follow(&self, selector: &str) -> Followed {
        Followed::new(&self.name, selector)
    }

    /// Each such Pod's UID and restarts, by its name.
    pub fn lives(&self, selector: &str) -> BTreeMap<String, (String, u64)> {
        let life = |pod: &Value| {
            let restarts = pod["status"]["containerStatuses"][0]["restartCount"].as_u64().unwrap_or(0);
            Some((text(&pod["metadata"]["name"])?, (text(&pod["metadata"]["uid"])?, restarts)))
        };
        self.pods(selector).iter().filter_map(life).collect()
    }

    /// The addresses of such Pods.
    pub fn addresses(&self, selector: &str) -> BTreeSet<IpAddr> {
        self.pods(selector).iter().filter_map(|pod| pod["status"]["podIP"].as_str()?.parse().ok()).collect()
    }

    /// The ClusterIP of a Service.
    pub fn cluster_ip(&self, service: &str) -> Option<IpAddr> {
        self.get(&format!("services/{service}"))?["spec"]["clusterIP"].as_str()?.parse().ok()
    }

    /// Has the servers be so many, and waits until as many Pods are there.
    pub fn scale(&self, replicas: usize) {
        self.kubectl(&["scale", "statefulset", "consul-server", &format!("--replicas={replicas}")]);
        self.wait_for("as many Pods", || self.pods(SERVERS).len() == replicas);
    }

    /// Asks an agent, through Kubernetes' API.
    pub fn agent(&self, pod: &str, method: &str, path: &str, body: &str) -> Option<(u16, String)> {
        self.agent_within(ANSWER, pod, method, path, body)
    }

    /// The same for whoever has less patience.
    pub fn agent_within(
        &self,
        patience: Duration,
        pod: &str,
        method: &str,
        path: &str,
        body: &str,
    ) -> Option<(u16, String)> {
        let path = format!("/api/v1/namespaces/{}/pods/{}/proxy{path}", self.name, self.secured.api(pod));
        self.proxy.request_within(patience, method, &path, body)
    }

    /// GETs from an agent; `None` when nothing or an error is answered.
    pub fn ask(&self, pod: &str, path: &str) -> Option<Value> {
        let (status, body) = self.agent(pod, "GET", path, "")?;
        (status == 200).then(|| serde_json::from_str(&body).ok()).flatten()
    }

    /// Stores a value; it must be accepted.
    pub fn put(&self, pod: &str, key: &str, value: &str) {
        let stored =
            || self.agent(pod, "PUT", &format!("/v1/kv/{key}"), value).is_some_and(|(status, _)| status == 200);
        self.wait_for("a write", stored);
    }

    /// The value of a key as the leader has it.
    pub fn value(&self, pod: &str, key: &str) -> Option<String> {
        let (status, body) = self.agent(pod, "GET", &format!("/v1/kv/{key}?raw"), "")?;
        (status == 200).then_some(body)
    }

    /// The node ID that an agent has.
    pub fn node_id(&self, pod: &str) -> Option<String> {
        text(&self.ask(pod, "/v1/agent/self")?["Config"]["NodeID"])
    }

    /// Serf's status of every member as an agent sees it, by name: 1 alive, 3 left, 4 failed.
    pub fn members(&self, pod: &str) -> BTreeMap<String, u64> {
        let listed = self.ask(pod, "/v1/agent/members").unwrap_or_default();
        let member = |one: &Value| Some((text(&one["Name"])?, one["Status"].as_u64()?));
        listed.as_array().into_iter().flatten().filter_map(member).collect()
    }

    /// The voters of the leader's configuration as this Pod tells it; none while it knows no leader.
    pub fn voters(&self, pod: &str) -> Vec<Voter> {
        // Without a leader the next question is held for 7 s.
        if self.ask(pod, "/v1/status/leader").is_none_or(|leader| leader.as_str().is_none_or(str::is_empty)) {
            return Vec::new();
        }
        let configuration = self.ask(pod, "/v1/operator/raft/configuration").unwrap_or_default();
        let voter = |one: &Value| {
            let address: std::net::SocketAddr = one["Address"].as_str()?.parse().ok()?;
            Some(Voter { name: text(&one["Node"])?, id: text(&one["ID"])?, ip: address.ip() })
        };
        let mut voters: Vec<Voter> = configuration["Servers"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|one| one["Voter"] == true)
            .filter_map(voter)
            .collect();
        voters.sort();
        voters
    }

    /// Whether so many Pods of a selector are there and all are Ready.
    pub fn all_ready(&self, selector: &str, count: usize) -> bool {
        let pods = self.pods(selector);
        pods.len() == count && pods.iter().all(is_ready)
    }

    /// Waits until the servers are so many, all Ready, and each knows as many voters; gives these.
    #[track_caller]
    pub fn formed(&self, count: usize) -> Vec<Voter> {
        self.wait_for(&format!("{count} servers that are Ready"), || self.all_ready(SERVERS, count));
        // What was seen then: on a busy machine a leader may be gone a moment later.
        let mut seen = Vec::new();
        self.wait_for(&format!("{count} voters"), || {
            let mut all = (0..count).map(|ordinal| self.voters(&server(ordinal)));
            seen = all.next().unwrap_or_default();
            seen.len() == count && all.all(|voters| voters.len() == count)
        });
        self.make_tokens();
        seen
    }

    /// What an administrator does once there is a leader. What was done before is done.
    fn make_tokens(&self) {
        for (path, body) in self.secured.requests() {
            let made = || {
                let (status, said) = self.agent(&server(0), "PUT", path, &body).unwrap_or_default();
                status == 200 || said.contains("already")
            };
            self.wait_for(path, made);
        }
    }

    /// Waits for a condition; the Pods' states are told when it does not come.
    #[track_caller]
    pub fn wait_for(&self, what: &str, done: impl FnMut() -> bool) {
        assert!(
            comes(done),
            "waited for {what}\n{}",
            self.try_kubectl(&["get", "pods", "-o", "wide"]).unwrap_or_else(|why| why)
        );
    }

    /// Waits for a line of a container's log that has each part, and gives it.
    #[track_caller]
    pub fn line(&self, pod: &str, container: &str, parts: &[&str]) -> String {
        let found = || {
            let log = self.logs(pod, container);
            log.lines().find(|line| parts.iter().all(|part| line.contains(part))).map(str::to_owned)
        };
        self.wait_for(&format!("a line of {pod}'s {container} with {parts:?}"), || found().is_some());
        found().unwrap()
    }

    fn kept(&self) -> PathBuf {
        self.given.target.join("e2e").join(&self.test)
    }

    /// Keeps every container's log, and what Kubernetes says of the Pods, where the test's name says.
    fn keep(&self) -> PathBuf {
        let folder = self.kept();
        fs::create_dir_all(&folder).unwrap();
        for name in [&self.name].into_iter().chain(&self.beside) {
            let said = |words: &[&str]| run(kubectl(["-n", name]).args(words)).unwrap_or_else(|why| why);
            let mut about = String::new();
            for words in [
                &["get", "all,pvc,endpointslices", "-o", "wide"][..],
                &["get", "events", "--sort-by=.lastTimestamp"],
                &["describe", "pods"],
            ] {
                let _ = writeln!(about, "=== kubectl {}\n{}", words.join(" "), said(words));
            }
            let _ = fs::write(folder.join(format!("{name}.txt")), about);
            let pods = self.get_in(name, "pods").unwrap_or_default();
            for pod in pods["items"].as_array().into_iter().flatten() {
                let pod_name = text(&pod["metadata"]["name"]).unwrap();
                let containers =
                    ["initContainers", "containers"].into_iter().flat_map(|kind| pod["spec"][kind].as_array());
                for container in containers.flatten().filter_map(|container| text(&container["name"])) {
                    let log = |file: &str, words: &[&str]| {
                        if let Ok(log) = run(kubectl(["-n", name, "logs", &pod_name, "-c", &container]).args(words)) {
                            let _ = fs::write(folder.join(format!("{pod_name}.{container}.{file}")), log);
                        }
                    };
                    log("log", &[]);
                    log("previous.log", &["--previous"]);
                }
            }
        }
        folder
    }

    /// Begins its removal. Nobody waits for the end of it but who measures next: with-cluster does so once, at the end.
    fn remove(&self) -> Result<(), String> {
        let names = [&self.name].into_iter().chain(&self.beside);
        run(kubectl(["delete", "namespace", "--wait=false", "--ignore-not-found"]).args(names))?;
        // Those of earlier namespaces are free by now.
        self.given.empty_volumes()
    }

    /// Removes it and waits for the end of it, so that nothing of it is left to do beside what is measured next.
    pub fn remove_wholly(self) {
        self.remove().unwrap_or_else(|why| panic!("{why}"));
        self.wait_until_gone().unwrap_or_else(|why| panic!("{why}"));
    }

    /// Waits until the controllers and kube-proxy hear the API server again, for which they take up to a minute each after it was away:
    /// a Service leads somewhere that did not before.
    fn wait_until_whole(&self) -> Result<(), String> {
        let port = 10250;
        let machines = self.proxy.get("/api/v1/nodes").unwrap_or_default();
        let addresses = machines["items"][0]["status"]["addresses"].as_array().cloned().unwrap_or_default();
        let kubelet = addresses.into_iter().find(|one| one["type"] == "InternalIP").unwrap_or_default();
        let named = json!({"name": "leads", "namespace": self.name});
        let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": named,
            "spec": {"ports": [{"port": port}]}});
        let behind = json!({"apiVersion": "v1", "kind": "Endpoints", "metadata": named,
            "subsets": [{"addresses": [{"ip": kubelet["address"]}], "ports": [{"port": port}]}]});
        self.try_create(&json!({"apiVersion": "v1", "kind": "List", "items": [service, behind]}))?;
        let leads = || {
            let ip = self.cluster_ip("leads")?;
            TcpStream::connect_timeout(&(ip, port).into(), Duration::from_secs(1)).ok()
        };
        let whole = comes(|| leads().is_some());
        whole.then_some(()).ok_or_else(|| "the cluster that was broken does not become whole".to_owned())
    }

    fn wait_until_gone(&self) -> Result<(), String> {
        let names = || [&self.name].into_iter().chain(&self.beside);
        let gone = |name: &String| {
            self.proxy
                .request("GET", &format!("/api/v1/namespaces/{name}"), "")
                .is_some_and(|(status, _)| status == 404)
        };
        if !comes(|| names().all(gone)) {
            return Err(format!("namespace {} does not go away", self.name));
        }
        self.given.empty_volumes()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let failed = std::thread::panicking();
        if failed {
            eprintln!("{}: logs and events are kept in {}", self.test, self.keep().display());
        }
        // The next test is to find it as it should be.
        let whole = if self.breaking.is_some() { self.wait_until_whole() } else { Ok(()) };
        match self.remove().and(whole) {
            Ok(()) => {}
            Err(why) if failed => eprintln!("{}: could not clean up: {why}", self.test),
            Err(why) => panic!("{}: could not clean up: {why}", self.test),
        }
    }
}

/// Looks until it is so; whether it was in time.
fn comes(mut done: impl FnMut() -> bool) -> bool {
    let begun = Instant::now();
    while !done() {
        if begun.elapsed() >= HANG {
            return false;
        }
        std::thread::sleep(LOOK);
    }
    true
}

/// The name of a server's Pod.
pub fn server(ordinal: usize) -> String {
    format!("consul-server-{ordinal}")
}

/// Whether a Pod is Ready and not on its way out.
pub fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
    let ready = conditions.into_iter().any(|one| one["type"] == "Ready" && one["status"] == "True");
    ready && pod["metadata"]["deletionTimestamp"].is_null()
}

fn text(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

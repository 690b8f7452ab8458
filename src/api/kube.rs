//! What convene asks the Kubernetes API, and the Events that it writes there.
//!
//! Takes a namespace and a name or a selector, gives the few facts that the survey needs. "Not found" is an answer (`None`),
//! everything else that is no answer is a [`KubeError`]; a refusal names the verb, the resource and the rule that a Role
//! needs. Every call has a deadline. A server that was silent is not asked again for some seconds, so that a start does not
//! wait for it once a question. The token is read again when it rotates, and at once when it is refused.

mod answers;
mod nodes;
pub mod raw;

use crate::exit::{chain, innermost};
pub use k8s_openapi::jiff::Timestamp;
use kube::client::ClientBuilder;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::Request;
use kube::core::Status;
use kube::core::params::{GetParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Client, Config};
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

/// Who was silent is not asked again for this long.
const AFTER_SILENCE: Duration = Duration::from_secs(5);
/// The most Pods that a selector may match: those of Consul's servers are a handful.
pub const MAX_PODS: u32 = 256;
/// The annotation by which a Pod tells serf's port to go-discover.
pub const JOIN_PORT: &str = "consul.hashicorp.com/auto-join-port";

/// The annotation by which a person orders one Pod to leave at its stop, or not to: `always` or `never`.
pub const LEAVE: &str = "convene.dev/leave";

/// The annotation by which a person keeps a Pod's agent from starting: any value but `false`, which lets it start whatever else
/// holds it.
pub const HOLD: &str = "convene.dev/hold";
/// The label by which a server's own Service finds its Pod, besides the Pod's name: unless it says `true` the Service leads nowhere.
pub const REACHABLE: &str = "convene.dev/reachable";

/// How the API is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Access {
    /// By the service account that is mounted into the Pod.
    InCluster,
    /// By a kubeconfig; `None` is the one in the home folder.
    Kubeconfig(Option<PathBuf>),
}

/// Why the API gave no answer.
#[derive(Debug, Clone, Error, PartialEq, Eq)]
pub enum KubeError {
    /// There is no way to it.
    #[error("could not prepare to ask the Kubernetes API: {reason}")]
    NoAccess {
        /// Why.
        reason: String,
    },
    /// It does not let us.
    #[error(
        "the Kubernetes API answered {status}: this service account may not {verb} {resource}{}; \
         its {} needs the rule {{apiGroups: [\"{group}\"], resources: [{resource}], verbs: [{verb}]}} ({} has it)",
        within(.namespace.as_deref()),
        role(.namespace.as_deref()).0,
        role(.namespace.as_deref()).1
    )]
    Denied {
        /// 403.
        status: u16,
        /// What was tried.
        verb: &'static str,
        /// On what.
        resource: &'static str,
        /// The resource's API group; the core group has no name.
        group: &'static str,
        /// Where; `None`: it is of no namespace.
        namespace: Option<String>,
    },
    /// Nothing new is taken there any more.
    #[error("namespace {namespace} is being deleted, and takes no {resource} any more")]
    Ending {
        /// What was tried.
        resource: &'static str,
        /// Where.
        namespace: String,
    },
    /// It does not know us.
    #[error(
        "the Kubernetes API answered 401: it does not accept this token, and so lets nobody {verb} {resource}{}; \
         the service account was deleted or made anew (delete the Pod, so that it gets a new token), or this Pod was deleted by force",
        within(.namespace.as_deref())
    )]
    Unknown {
        /// What was tried.
        verb: &'static str,
        /// On what.
        resource: &'static str,
        /// Where; `None`: it is of no namespace.
        namespace: Option<String>,
    },
    /// No answer in time.
    #[error("the Kubernetes API did not answer within {} ({what})", crate::time::text(*.waited))]
    Silent {
        /// What was asked.
        what: String,
        /// The deadline.
        waited: Duration,
    },
    /// No connection, or one that broke.
    #[error("could not reach the Kubernetes API ({what}): {reason}")]
    Unreachable {
        /// What was asked.
        what: String,
        /// Why.
        reason: String,
    },
    /// An answer that says no.
    #[error("the Kubernetes API answered {status} ({what}): {said}")]
    Status {
        /// What was asked.
        what: String,
        /// The HTTP status.
        status: u16,
        /// Its message.
        said: String,
    },
    /// Not what the API answers.
    #[error("the Kubernetes API answered something unexpected ({what}): {reason}")]
    Strange {
        /// What was asked.
        what: String,
        /// What was wrong with it.
        reason: String,
    },
    /// A selector that matches too much.
    #[error("{what} has more than {MAX_PODS} Pods, and these are no Consul servers")]
    TooMany {
        /// What was asked.
        what: String,
    },
}

/// A Pod, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// Its addresses, once it has some: while its init containers run it is Pending and has them.
    pub ips: Vec<IpAddr>,
    /// Its machine's address.
    pub host_ip: Option<IpAddr>,
    /// It has ended, well or not, and none of its containers will run again.
    pub over: bool,
    /// When it is to be gone, if it is being deleted: its grace period is in this already.
    pub deleted_by: Option<Timestamp>,
    /// The StatefulSet that controls it.
    pub statefulset: Option<String>,
    /// The grace period that its deletion gives. It counts from the start of the stop, by the machine's own clock.
    pub grace: Option<Duration>,
    /// Serf's port, where its annotation tells one.
    pub join_port: Option<u16>,
    /// What [`LEAVE`] says.
    pub leave: Option<String>,
    /// Whether [`HOLD`] says that its agent is not to start; `None`: it says nothing.
    pub held: Option<bool>,
    /// Which container has ended and is to be started again, and why: "container consul: CrashLoopBackOff".
    pub again: Option<String>,
    /// As `kubectl get pods` shows it: Pending while its init containers run.
    pub phase: String,
    /// The revision of its StatefulSet that it was made from.
    pub revision: Option<String>,
    /// What its label [`REACHABLE`] says; `None`: it has none, and no stop changes it.
    pub reachable: Option<bool>,
}

// === impl Pod ===

impl Pod {
    /// Whether it is being deleted.
    pub fn is_terminating(&self) -> bool {
        self.deleted_by.is_some()
    }

    /// Whether a stop took it out of its own Service.
    pub fn is_withdrawn(&self) -> bool {
        self.is_terminating() && self.reachable == Some(false)
    }
}

/// A StatefulSet, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatefulSet {
    /// How many Pods it is to have.
    pub replicas: u32,
    /// Its first ordinal.
    pub start: u32,
    /// Its headless Service.
    pub service: String,
    /// Its Pods start one after the other.
    pub ordered: bool,
    /// Its UID: one of the same name that was made anew has another.
    pub uid: String,
    /// It is being deleted.
    pub deleting: bool,
}

/// A Service, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Its cluster addresses; none when it is headless.
    pub ips: Vec<IpAddr>,
    /// Whether Pods that are not ready are behind it too.
    pub not_ready_too: bool,
    /// The TCP ports that it takes.
    pub tcp_ports: Vec<u16>,
}

/// A ConfigMap.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConfigMap {
    /// Its name.
    pub name: String,
    /// What is replaced only while it is still this; empty: there is none yet.
    pub version: String,
    /// With whom it goes: the UID of its owner.
    pub owner: Option<String>,
    /// What it holds.
    pub data: BTreeMap<String, String>,
}

/// An Event on a Pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// One word in CamelCase.
    pub reason: &'static str,
    /// A warning, or nothing unusual.
    pub warning: bool,
    /// The sentence.
    pub message: String,
}

/// The longest message of an Event, in characters: the API refuses one of more than 1 kB.
const MAX_MESSAGE: usize = 1000;

/// What is asked, for the request and for the message when it fails.
#[derive(Debug, Clone, Copy)]
struct Asking<'a> {
    verb: &'static str,
    resource: &'static str,
    group: &'static str,
    /// `None`: the resource is of no namespace.
    namespace: Option<&'a str>,
    /// The name or the selector.
    which: &'a str,
}

/// How it is asked.
enum Call {
    /// JSON Merge Patch (RFC 7396).
    Merge(Value),
    Get,
    List(ListParams),
    /// Without what else the objects hold.
    ListNames(ListParams),
    Create(Vec<u8>),
    /// What would come of it, and nothing does.
    TryCreate(Vec<u8>),
    Replace(Vec<u8>),
}

/// Asks the Kubernetes API.
#[derive(Debug, Clone)]
pub struct Kube {
    access: Access,
    deadline: Duration,
    /// Within the deadline kube asks again whom it got 429, 503 or 504 from.
    again: bool,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    client: Option<Client>,
    /// Why it was silent, and when.
    silent: Option<(KubeError, Instant)>,
}

// === impl Kube ===

impl Kube {
    /// Prepares to ask; `deadline` is for each call. Nothing is read or opened before the first one.
    pub fn new(access: Access, deadline: Duration) -> Self {
        Self { access, deadline, again: true, state: Arc::default() }
    }

    /// The same, and each answer counts: 503 is what the API server says of a Pod that it does not reach.
    pub fn asking_once(self) -> Self {
        Self { again: false, ..self }
    }

    /// A Pod by its name.
    ///
    /// # Errors
    /// [`KubeError`].
    pub async fn pod(&self, namespace: &str, name: &str) -> Result<Option<Pod>, KubeError> {
        let asking = Asking { verb: "get", resource: "pods", group: "", namespace: Some(namespace), which: name };
        let found: Option<answers::Pod> = self.get(asking).await?;
        Ok(found.map(Pod::from))
    }

    /// The Pods that match a label selector and a field selector, either of which may be empty.
    ///
    /// # Errors
    /// [`KubeError`].
    pub async fn pods(&self, namespace: &str, labels: &str, fields: &str) -> Result<Vec<Pod>, KubeError> {
        let asking = Asking { verb: "list", resource: "pods", group: "", namespace: Some(namespace), which: labels };
        let params = ListParams::default().labels(labels).fields(fields).limit(MAX_PODS);
        let found: answers::List<answers::Pod> = self.ask(asking, &Call::List(params)).await?;
        if found.metadata.r#continue.is_some_and(|more| !more.is_empty()) {
            return Err(KubeError::TooMany { what: asking.to_string() });
        }
        Ok(found.items.into_iter().map(Pod::from).collect())
    }

    /// A StatefulSet by its name.
    ///
    /// # Errors
    /// [`KubeError`].
    pub async fn statefulset(&self, namespace: &str, name: &str) -> Result<Option<StatefulSet>, KubeError> {
        let asking =
            Asking { verb: "get", resource: "statefulsets", group: "apps", namespace: Some(namespace), which: name };
        let found: Option<answers::StatefulSet> = self.get(asking).await?;
        Ok(found.map(StatefulSet::from))
    }

    /// A Service by its name.
    ///
    /// # Errors
    /// [`KubeError`].
    pub async fn service(&self, namespace: &str, name: &str) -> Result<Option<Service>, KubeError> {
        let asking = Asking { verb: "get", resource: "services", group: "", namespace: Some(namespace), which: name };
        let found: Option<answers::Service> = self.get(asking).await?;
        Ok(found.map(Service::from))
    }

    /// A ConfigMap by its name.
    ///
    /// # Errors
    /// [`KubeError`].
    pub async fn config_map(&self, namespace: &str, name: &str) -> Result<Option<ConfigMap>, KubeError> {
        let asking = Asking { verb: "get", resource: "configmaps", group: "", namespace: Some(namespace), which: name };
        let found: Option<answers::ConfigMap> = self.get(asking).await?;
        Ok(found.map(ConfigMap::from))
    }

    /// Makes a ConfigMap, or replaces the one that was read. It goes with the StatefulSet `owner`. False: somebody else was
    /// quicker, and it must be read again.
    ///
    /// # Errors
    /// [`KubeError`].
    pub async fn keep_config_map(&self, namespace: &str, map: &ConfigMap, owner: &str) -> Result<bool, KubeError> {
        let reference =
            |uid: &String| json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "name": owner, "uid": uid});
        let owners: Vec<_> = map.owner.iter().map(reference).collect();
        let version = Some(&map.version).filter(|version| !version.is_empty());
        let meta =
            json!({"name": map.name, "namespace": namespace, "resourceVersion": version, "ownerReferences": owners});
        let body = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": map.data});
        let body = body.to_string().into_bytes();
        let asking =
            |verb| Asking { verb, resource: "configmaps", group: "", namespace: Some(namespace), which: &map.name };
        let answer: Result<IgnoredAny, KubeError> = match version {
            None => self.ask(asking("create"), &Call::Create(body)).await,
            Some(_) => self.ask(asking("update"), &Call::Replace(body)).await,
        };
        match answer {
            Ok(_) => Ok(true),
            // Made, changed or deleted meanwhile.
            Err(KubeError::Status { status: 404 | 409, .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Makes a Pod's label [`REACHABLE`] say so, if it still is the Pod of this UID.
    ///
    /// # Errors
    /// [`KubeError`].
    pub async fn set_reachable(&self, namespace: &str, pod: &str, uid: &str, reachable: bool) -> Result<(), KubeError> {
        let asking = Asking { verb: "patch", resource: "pods", group: "", namespace: Some(namespace), which: pod };
        let change = json!({"metadata": {"uid": uid, "labels": {REACHABLE: reachable.to_string()}}});
        self.ask(asking, &Call::Merge(change)).await.map(|_: IgnoredAny| ())
    }

    /// Writes an Event on a Pod, which `kubectl describe pod` shows.
    ///
    /// # Errors
    /// [`KubeError`].
    pub async fn event(&self, namespace: &str, pod: &str, uid: &str, event: &Event) -> Result<(), KubeError> {
        self.write_event(namespace, pod, uid, event, Call::Create).await
    }

    /// Whether the namespace is being deleted: then it takes no new object (NamespaceLifecycle), and a namespace itself may not
    /// be read by who has only a Role. Since Kubernetes 1.33 its Pods go first, and their StatefulSet is there until they are gone
    /// (OrderedNamespaceDeletion). Who may not create Events, or is not answered, is not told.
    pub async fn is_ending(&self, namespace: &str, pod: &str, uid: &str) -> bool {
        let event = Event { reason: "Trying", message: String::new(), warning: false };
        let tried = self.write_event(namespace, pod, uid, &event, Call::TryCreate).await;
        matches!(tried, Err(KubeError::Ending { .. }))
    }

    async fn write_event(
        &self,
        namespace: &str,
        pod: &str,
        uid: &str,
        event: &Event,
        call: fn(Vec<u8>) -> Call,
    ) -> Result<(), KubeError> {
        let asking = Asking { verb: "create", resource: "events", group: "", namespace: Some(namespace), which: pod };
        let now = k8s_openapi::jiff::Timestamp::now().to_string();
        let body = json!({
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"generateName": format!("{pod}."), "namespace": namespace},
            "involvedObject": {"apiVersion": "v1", "kind": "Pod", "namespace": namespace, "name": pod, "uid": uid},
            "reason": event.reason,
            "message": event.message.chars().take(MAX_MESSAGE).collect::<String>(),
            "type": if event.warning { "Warning" } else { "Normal" },
            "source": {"component": "convene"},
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        });
        let body = body.to_string().into_bytes();
        self.ask(asking, &call(body)).await.map(|_: IgnoredAny| ())
    }

    /// By name; `None` when there is none of that name.
    async fn get<T: DeserializeOwned>(&self, asking: Asking<'_>) -> Result<Option<T>, KubeError> {
        match self.ask(asking, &Call::Get).await {
            Ok(found) => Ok(Some(found)),
            Err(KubeError::Status { status: 404, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn ask<T: DeserializeOwned>(&self, asking: Asking<'_>, call: &Call) -> Result<T, KubeError> {
        let answer = self.answer(asking, call).await?;
        serde_json::from_str(&answer).map_err(|error| asking.failed(kube::Error::SerdeError(error)))
    }

    /// One call, and once more with a fresh token when this one is refused. Its answer is text, whatever is read out of it: a call
    /// for each type would be code for each.
    async fn answer(&self, asking: Asking<'_>, call: &Call) -> Result<String, KubeError> {
        match self.once(asking, call).await {
            Err(KubeError::Unknown { .. }) => {
                self.state.lock().await.client = None;
                self.once(asking, call).await
            }
            answer => answer,
        }
    }

    async fn once(&self, asking: Asking<'_>, call: &Call) -> Result<String, KubeError> {
        let client = self.client().await?;
        let request = Request::new(asking.path());
        let built = match call {
            Call::Get => request.get(asking.which, &GetParams::default()),
            Call::List(params) => request.list(params),
            Call::ListNames(params) => request.list_metadata(params),
            Call::Replace(body) => request.replace(asking.which, &PostParams::default(), body.clone()),
            Call::Merge(change) => request.patch(asking.which, &PatchParams::default(), &Patch::Merge(change)),
            Call::Create(body) => request.create(&PostParams::default(), body.clone()),
            Call::TryCreate(body) => {
                request.create(&PostParams { dry_run: true, ..PostParams::default() }, body.clone())
            }
        };
        let built =
            built.map_err(|error| KubeError::Strange { what: asking.to_string(), reason: error.to_string() })?;
        match timeout(self.deadline, client.request_text(built)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(asking.failed(error)),
            Err(_) => {
                let silent = KubeError::Silent { what: asking.to_string(), waited: self.deadline };
                self.state.lock().await.silent = Some((silent.clone(), Instant::now()));
                Err(silent)
            }
        }
    }

    /// The client, made anew when there is none.
    async fn client(&self) -> Result<Client, KubeError> {
        let mut state = self.state.lock().await;
        match &state.silent {
            Some((error, at)) if at.elapsed() < AFTER_SILENCE => return Err(error.clone()),
            _ => state.silent = None,
        }
        if let Some(client) = &state.client {
            return Ok(client.clone());
        }
        let client = self.access.client(self.again).await?;
        state.client = Some(client.clone());
        Ok(client)
    }
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State").field("silent", &self.silent).finish_non_exhaustive()
    }
}

// === impl Access ===

impl Access {
    async fn client(&self, again: bool) -> Result<Client, KubeError> {
        // A second call is refused and changes nothing.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut config = match self {
            Self::InCluster => Config::incluster().map_err(|error| no_access(&error))?,
            Self::Kubeconfig(file) => {
                let kubeconfig = match file {
                    Some(file) => Kubeconfig::read_from(file),
                    None => Kubeconfig::read(),
                };
                let kubeconfig = kubeconfig.map_err(|error| no_access(&error))?;
                Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
                    .await
                    .map_err(|error| no_access(&error))?
            }
        };
        config.default_retry = again;
        Ok(ClientBuilder::try_from(config).map_err(|error| no_access(&error))?.build())
    }
}

fn within(namespace: Option<&str>) -> String {
    namespace.map(|namespace| format!(" in namespace {namespace}")).unwrap_or_default()
}

/// What grants a rule, and the file of ours that has it.
fn role(namespace: Option<&str>) -> (&'static str, &'static str) {
    match namespace {
        Some(_) => ("Role", "deploy/server/access.yaml"),
        None => ("ClusterRole", "deploy/reap/access.yaml"),
    }
}

/// The reason that the API server gives in an answer to a creation (k8s.io/api/core/v1, `NamespaceTerminatingCause`).
fn is_ending(status: &Status) -> bool {
    let causes = status.details.iter().flat_map(|details| &details.causes);
    causes.into_iter().any(|cause| cause.reason == "NamespaceTerminating")
}

fn no_access(error: &(dyn std::error::Error + 'static)) -> KubeError {
    KubeError::NoAccess { reason: chain(error) }
}

// === impl KubeError ===

impl KubeError {
    /// The API knows us and does not let us: it will not change its mind while we wait.
    pub fn is_denied(&self) -> bool {
        matches!(self, Self::Denied { .. } | Self::Ending { .. })
    }

    /// It answers, and does not let us, whether it knows us or not.
    pub fn is_refusal(&self) -> bool {
        self.is_denied() || matches!(self, Self::Unknown { .. })
    }
}

// === impl Asking ===

impl Asking<'_> {
    fn path(&self) -> String {
        let group = if self.group.is_empty() { "/api/v1".to_owned() } else { format!("/apis/{}/v1", self.group) };
        match self.namespace {
            Some(namespace) => format!("{group}/namespaces/{namespace}/{}", self.resource),
            None => format!("{group}/{}", self.resource),
        }
    }

    fn failed(&self, error: kube::Error) -> KubeError {
        let (what, namespace) = (self.to_string(), self.namespace.map(str::to_owned));
        match error {
            kube::Error::Api(status) => match status.code {
                401 => KubeError::Unknown { verb: self.verb, resource: self.resource, namespace },
                403 if is_ending(&status) => {
                    KubeError::Ending { resource: self.resource, namespace: namespace.unwrap_or_default() }
                }
                403 => KubeError::Denied {
                    status: 403,
                    verb: self.verb,
                    resource: self.resource,
                    group: self.group,
                    namespace,
                },
                code => KubeError::Status { what, status: code, said: status.message },
            },
            kube::Error::SerdeError(error) => KubeError::Strange { what, reason: error.to_string() },
            error @ kube::Error::FromUtf8(_) => KubeError::Strange { what, reason: chain(&error) },
            error => KubeError::Unreachable { what, reason: innermost(&error) },
        }
    }
}

impl fmt::Display for Asking<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.verb, self.resource)?;
        if !self.which.is_empty() {
            write!(f, " {}", self.which)?;
        }
        f.write_str(&within(self.namespace))
    }
}

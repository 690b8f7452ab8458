//! What does the Kubernetes API say of the servers' StatefulSet, and of all that belongs to it?
//!
//! Takes the API, and which StatefulSet is meant; gives [`Objects`], raw as the API answers them, each with its own failure. Asks
//! for all of them at once, after the StatefulSet itself. Judges nothing.

mod fields;
mod rights;

use crate::api::kube::raw::{Resource, Who};
use crate::api::kube::{Kube, KubeError, Timestamp};
use crate::settings::doctoring::Doctoring;
use crate::settings::{Local, Seat};
use fields::image_name;
pub use fields::{containers, flag_of, is_convene, list, number, text, words};
pub use rights::{CHANGE_POD, RIGHTS, Right, Rights};
use serde_json::Value;
use std::net::IpAddr;
use tokio::task::JoinSet;

/// An object: there, not there, or not to be seen.
pub type Look = Result<Option<Value>, KubeError>;

/// The objects that are looked at.
const STATEFULSETS: Resource = Resource("apps", "statefulsets");
const PODS: Resource = Resource("", "pods");
const SERVICES: Resource = Resource("", "services");
const CONFIG_MAPS: Resource = Resource("", "configmaps");
const BUDGETS: Resource = Resource("policy", "poddisruptionbudgets");

/// Where the cluster's own nameserver has its settings (<https://kubernetes.io/docs/tasks/administer-cluster/dns-custom-nameservers/>).
const CORE_DNS: (&str, &str) = ("kube-system", "coredns");

/// Why there is no StatefulSet to look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// It could not be seen.
    Unseen(String),
    /// There are several.
    Ambiguous(String),
}

/// One server, whether its Pod is there or not.
#[derive(Debug, Clone)]
pub struct Server {
    /// The Pod's name, which is the Service's and usually the node's.
    pub name: String,
    /// Its ordinal.
    pub ordinal: u32,
    /// Its Pod.
    pub pod: Look,
    /// The Service named as its Pod.
    pub service: Look,
}

/// What was seen.
#[derive(Debug)]
pub struct Objects {
    /// The namespace.
    pub namespace: String,
    /// The StatefulSet's name.
    pub name: String,
    /// The StatefulSet.
    pub statefulset: Result<Value, KubeError>,
    /// The servers by ordinal.
    pub servers: Vec<Server>,
    /// The headless Service that the StatefulSet names, by its name.
    pub headless: (String, Look),
    /// The PodDisruptionBudgets of the namespace.
    pub budgets: Result<Vec<Value>, KubeError>,
    /// The ConfigMaps that give the containers their environment.
    pub config_maps: Vec<(String, Look)>,
    /// CoreDNS's settings.
    pub core_dns: Look,
    /// When they were looked at.
    pub seen_at: Timestamp,
    /// What the servers' service account may do; `None`: no token is mounted.
    pub rights: Option<Rights>,
}

// === impl Objects ===

impl Objects {
    /// Looks at all of them.
    ///
    /// # Errors
    /// [`Target`]: it is not known which StatefulSet is meant, or it could not be seen.
    pub async fn look(kube: &Kube, doctoring: &Doctoring, local: &Local) -> Result<Self, Target> {
        let unseen = |error: &KubeError| Target::Unseen(why_unseen(error));
        let namespace = match &doctoring.namespace {
            Some(namespace) => namespace.clone(),
            None => kube.default_namespace().await.map_err(|error| unseen(&error))?,
        };
        let (name, statefulset) = match &doctoring.stateful_set {
            Some(name) => (name.clone(), kube.object(STATEFULSETS, &namespace, name).await),
            None => {
                let found = kube.objects(STATEFULSETS, &namespace, "").await.map_err(|error| unseen(&error))?;
                let one = only(found, &namespace)?;
                (text(&one, "/metadata/name").to_owned(), Ok(Some(one)))
            }
        };
        let statefulset = match statefulset {
            Ok(None) => {
                return Err(Target::Unseen(format!("there is no StatefulSet {name} in namespace {namespace}")));
            }
            Ok(Some(found)) => Ok(found),
            // What else is refused is still worth looking at.
            Err(error) if error.is_denied() => Err(error),
            Err(error) => return Err(unseen(&error)),
        };
        Ok(Self::of(kube, doctoring, local, namespace, name, statefulset).await)
    }

    async fn of(
        kube: &Kube,
        doctoring: &Doctoring,
        local: &Local,
        namespace: String,
        name: String,
        statefulset: Result<Value, KubeError>,
    ) -> Self {
        let spec = statefulset.as_ref().ok();
        let pods = pod_names(kube, &namespace, &name, spec, local.seat.as_ref().filter(|_| doctoring.inside)).await;
        let headless = spec.map(|spec| text(spec, "/spec/serviceName")).filter(|name| !name.is_empty());
        let headless = headless.unwrap_or(&name).to_owned();
        let maps = spec.map(environment_maps).unwrap_or_default();
        let ours = |of, name: &String| (of, namespace.clone(), name.clone());
        let wanted = pods
            .iter()
            .flat_map(|(_, pod)| [ours(PODS, pod), ours(SERVICES, pod)])
            .chain([ours(SERVICES, &headless)])
            // A server's own account is not to look there.
            .chain((!doctoring.inside).then(|| (CONFIG_MAPS, CORE_DNS.0.to_owned(), CORE_DNS.1.to_owned())))
            .chain(maps.iter().map(|map| ours(CONFIG_MAPS, map)))
            .collect();
        let account = spec.and_then(|spec| spec.pointer("/spec/template/spec/serviceAccountName")?.as_str());
        let account = account.unwrap_or("default").to_owned();
        let who = if doctoring.inside { Who::Ourselves } else { Who::ServiceAccount(&account) };
        let (mut seen, budgets, rights) = tokio::join!(
            looked_up(kube, wanted),
            kube.objects(BUDGETS, &namespace, ""),
            rights::ask(kube, who, &namespace, pods.iter().max().map(|(_, name)| name.as_str()))
        );
        let mut take = |of: Resource, name: &str| {
            let at = seen.iter().position(|(kind, one, _)| *kind == of.1 && one == name);
            at.map_or(Ok(None), |at| seen.swap_remove(at).2)
        };
        let headless = (headless.clone(), take(SERVICES, &headless));
        let servers = pods
            .into_iter()
            .map(|(ordinal, name)| Server { ordinal, pod: take(PODS, &name), service: take(SERVICES, &name), name })
            .collect();
        let config_maps = maps
            .into_iter()
            .map(|map| {
                let seen = take(CONFIG_MAPS, &map);
                (map, seen)
            })
            .collect();
        let core_dns = take(CONFIG_MAPS, CORE_DNS.1);
        let mut objects = Self {
            namespace,
            name,
            statefulset,
            servers,
            headless,
            budgets,
            config_maps,
            core_dns,
            rights: None,
            seen_at: Timestamp::now(),
        };
        objects.rights = objects.token_is_mounted().then_some(Rights { account, answers: rights });
        objects
    }

    /// A setting of the containers: a flag in their words, convene's or Consul's, else a variable given by value or by ConfigMap.
    pub fn setting(&self, flag: &str, variable: &str) -> Option<String> {
        let template = self.template()?;
        let of_flag = containers(template).find_map(|container| flag_of(container, flag));
        let by_value = || {
            containers(template)
                .flat_map(|container| list(container, "/env"))
                .find_map(|env| (text(env, "/name") == variable).then(|| env.get("value")?.as_str())?)
        };
        let by_map = || {
            self.config_maps
                .iter()
                .find_map(|(_, map)| map.as_ref().ok()?.as_ref()?.pointer("/data")?.get(variable)?.as_str())
        };
        of_flag.or_else(by_value).or_else(by_map).map(str::to_owned)
    }

    /// Why not all settings of the containers could be seen, if so: what nobody said may have been said there.
    pub fn unseen_settings(&self) -> Option<&KubeError> {
        self.config_maps.iter().find_map(|(_, map)| map.as_ref().err())
    }

    /// The Pods' specification in the StatefulSet.
    pub fn template(&self) -> Option<&Value> {
        self.statefulset.as_ref().ok()?.pointer("/spec/template/spec")
    }

    /// The container that runs the agent.
    pub fn agent(&self) -> Option<&Value> {
        let is_agent = |container: &&Value| words(container).any(|word| word == "agent");
        let named: Option<&Value> = list(self.template()?, "/containers").find(is_agent);
        named.or_else(|| list(self.template()?, "/containers").find(|one| image_name(one) == "consul"))
    }

    /// How many servers there are to be.
    pub fn replicas(&self) -> u64 {
        self.statefulset.as_ref().ok().and_then(|spec| number(spec, "/spec/replicas")).unwrap_or(1)
    }

    /// Whether convene runs in the Pods.
    pub fn has_convene(&self) -> bool {
        self.template().is_some_and(|template| containers(template).any(is_convene))
    }

    /// The Pods of the servers, as far as they are there and could be seen.
    pub fn pods(&self) -> impl Iterator<Item = (&Server, &Value)> {
        self.servers.iter().filter_map(|server| Some((server, server.pod.as_ref().ok()?.as_ref()?)))
    }

    /// Whether the servers' Pods have a token for the Kubernetes API: kubelet mounts it at a fixed path.
    fn token_is_mounted(&self) -> bool {
        const MOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
        let mounts = |pod: &Value| {
            pod.pointer("/spec")
                .into_iter()
                .flat_map(containers)
                .any(|container| list(container, "/volumeMounts").any(|mount| text(mount, "/mountPath") == MOUNT))
        };
        let mut pods = self.pods().peekable();
        match pods.peek() {
            Some(_) => pods.any(|(_, pod)| mounts(pod)),
            None => {
                self.template().and_then(|spec| spec.get("automountServiceAccountToken")?.as_bool()).unwrap_or(true)
            }
        }
    }
}

// === impl Server ===

impl Server {
    /// Its Pod's address, once it has one.
    pub fn pod_ip(&self) -> Option<IpAddr> {
        self.pod.as_ref().ok()?.as_ref()?.pointer("/status/podIP")?.as_str()?.parse().ok()
    }

    /// Its own Service's address.
    pub fn service_ip(&self) -> Option<IpAddr> {
        // "None" of a headless one is no address.
        self.service.as_ref().ok()?.as_ref()?.pointer("/spec/clusterIP")?.as_str()?.parse().ok()
    }

    /// Whether its Pod is Ready.
    pub fn is_ready(&self) -> bool {
        let Ok(Some(pod)) = &self.pod else { return false };
        list(pod, "/status/conditions").any(|one| text(one, "/type") == "Ready" && text(one, "/status") == "True")
    }
}

/// The only StatefulSet whose Pods run convene or Consul as servers.
fn only(found: Vec<Value>, namespace: &str) -> Result<Value, Target> {
    let mut candidates: Vec<Value> = found.into_iter().filter(runs_servers).collect();
    match (candidates.pop(), candidates.is_empty()) {
        (Some(one), true) => Ok(one),
        (None, _) => Err(Target::Unseen(format!(
            "no StatefulSet in namespace {namespace} runs Consul servers; give --namespace, and --stateful-set"
        ))),
        (Some(last), false) => {
            candidates.push(last);
            let names: Vec<&str> = candidates.iter().map(|one| text(one, "/metadata/name")).collect();
            Err(Target::Ambiguous(format!(
                "several StatefulSets in namespace {namespace} run convene or Consul ({}); give --stateful-set",
                names.join(", ")
            )))
        }
    }
}

fn runs_servers(statefulset: &Value) -> bool {
    let labelled = |value: &Value| matches!(text(value, "/metadata/labels/convene.dev~1agent"), "sidecar" | "client");
    let Some(template) = statefulset.pointer("/spec/template") else { return false };
    let agent = |container: &Value| is_convene(container) || image_name(container) == "consul";
    !labelled(statefulset)
        && !labelled(template)
        && template.get("spec").is_some_and(|spec| containers(spec).any(agent))
}

/// The names of all servers by ordinal: as the StatefulSet has them, else those of the Pods that are there, and our own.
async fn pod_names(
    kube: &Kube,
    namespace: &str,
    name: &str,
    statefulset: Option<&Value>,
    own: Option<&Seat>,
) -> Vec<(u32, String)> {
    let seat = |ordinal| Seat { statefulset: name.to_owned(), ordinal };
    let named = |ordinal: u32| (ordinal, seat(ordinal).pod(ordinal));
    if let Some(statefulset) = statefulset {
        let start = number(statefulset, "/spec/ordinals/start").unwrap_or(0);
        let replicas = number(statefulset, "/spec/replicas").unwrap_or(1).min(u64::from(crate::settings::MAX_SERVERS));
        return (start..start.saturating_add(replicas)).filter_map(|one| u32::try_from(one).ok()).map(named).collect();
    }
    let found = kube.objects(PODS, namespace, "").await.unwrap_or_default();
    let seats = found.iter().filter_map(|pod| Seat::of_pod(text(pod, "/metadata/name")));
    let mut ordinals: Vec<u32> =
        seats.chain(own.cloned()).filter(|seat| seat.statefulset == name).map(|seat| seat.ordinal).collect();
    ordinals.sort_unstable();
    ordinals.dedup();
    ordinals.into_iter().map(named).collect()
}

/// The ConfigMaps that the containers have their environment of.
fn environment_maps(statefulset: &Value) -> Vec<String> {
    let template = statefulset.pointer("/spec/template/spec");
    let sources = template.into_iter().flat_map(containers).flat_map(|container| list(container, "/envFrom"));
    let mut names: Vec<String> = Vec::new();
    for name in sources.map(|from| text(from, "/configMapRef/name")).filter(|name| !name.is_empty()) {
        if !names.iter().any(|known| known == name) {
            names.push(name.to_owned());
        }
    }
    names
}

async fn looked_up(kube: &Kube, wanted: Vec<(Resource, String, String)>) -> Vec<(&'static str, String, Look)> {
    let mut asking = JoinSet::new();
    for (of, namespace, name) in wanted {
        let kube = kube.clone();
        asking.spawn(async move {
            let seen = kube.object(of, &namespace, &name).await;
            (of.1, name, seen)
        });
    }
    // INVARIANT: a task that panicked would have ended the process (panic = "abort").
    let mut seen = Vec::new();
    while let Some(done) = asking.join_next().await {
        seen.extend(done.ok());
    }
    seen
}

/// Why something was not looked at, for a person who may give the right.
pub fn why_unseen(error: &KubeError) -> String {
    match error {
        KubeError::Denied { verb, resource, group, namespace, .. } => {
            let group = if group.is_empty() { String::new() } else { format!(".{group}") };
            let within = namespace.as_ref().map(|name| format!(" in namespace {name}")).unwrap_or_default();
            format!("needs the right to {verb} {resource}{group}{within}")
        }
        error => error.to_string(),
    }
}

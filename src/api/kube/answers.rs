//! What the Kubernetes API answers, as far as it is read: the full types would be a hundred times as large.
//!
//! Takes JSON, gives [`super::Pod`], [`super::StatefulSet`] and [`super::Service`].

use serde::Deserialize;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

/// The label that tells from which revision of its StatefulSet a Pod was made
/// (<https://kubernetes.io/docs/reference/labels-annotations-taints/#controller-revision-hash>).
const REVISION: &str = "controller-revision-hash";

#[derive(Deserialize)]
pub(super) struct List<T> {
    #[serde(default)]
    pub(super) metadata: ListMeta,
    pub(super) items: Vec<T>,
}

#[derive(Default, Deserialize)]
pub(super) struct ListMeta {
    pub(super) r#continue: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Meta {
    #[serde(default)]
    pub(super) name: String,
    #[serde(default)]
    pub(super) uid: String,
    pub(super) deletion_timestamp: Option<super::Timestamp>,
    pub(super) deletion_grace_period_seconds: Option<u64>,
    #[serde(default)]
    pub(super) resource_version: String,
    #[serde(default)]
    pub(super) owner_references: Vec<Owner>,
    #[serde(default)]
    pub(super) annotations: BTreeMap<String, String>,
    #[serde(default)]
    pub(super) labels: BTreeMap<String, String>,
}

#[derive(Deserialize)]
pub(super) struct Named {
    pub(super) metadata: Meta,
}

#[derive(Deserialize)]
pub(super) struct Pod {
    pub(super) metadata: Meta,
    #[serde(default)]
    pub(super) spec: PodSpec,
    #[serde(default)]
    pub(super) status: PodStatus,
}

#[derive(Default, Deserialize)]
pub(super) struct PodSpec {
    #[serde(default)]
    pub(super) containers: Vec<Container>,
}

#[derive(Deserialize)]
pub(super) struct Container {
    #[serde(default)]
    pub(super) ports: Vec<Port>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Port {
    pub(super) name: Option<String>,
    pub(super) container_port: u16,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PodStatus {
    #[serde(default)]
    pub(super) phase: String,
    #[serde(rename = "podIP")]
    pub(super) pod_ip: Option<IpAddr>,
    #[serde(default, rename = "podIPs")]
    pub(super) pod_ips: Vec<PodIp>,
    #[serde(rename = "hostIP")]
    pub(super) host_ip: Option<IpAddr>,
    #[serde(default)]
    pub(super) init_container_statuses: Vec<ContainerStatus>,
    #[serde(default)]
    pub(super) container_statuses: Vec<ContainerStatus>,
}

#[derive(Deserialize)]
pub(super) struct ContainerStatus {
    #[serde(default)]
    pub(super) name: String,
    #[serde(default)]
    pub(super) state: ContainerState,
}

#[derive(Default, Deserialize)]
pub(super) struct ContainerState {
    pub(super) waiting: Option<Told>,
    pub(super) terminated: Option<Told>,
}

/// Why a container waits, or how it ended.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Told {
    #[serde(default)]
    pub(super) reason: String,
    #[serde(default)]
    pub(super) exit_code: i32,
}

#[derive(Deserialize)]
pub(super) struct PodIp {
    pub(super) ip: IpAddr,
}

#[derive(Deserialize)]
pub(super) struct ConfigMap {
    pub(super) metadata: Meta,
    #[serde(default)]
    pub(super) data: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Owner {
    pub(super) uid: String,
    #[serde(default)]
    pub(super) kind: String,
    #[serde(default)]
    pub(super) name: String,
    #[serde(default)]
    pub(super) controller: bool,
}

#[derive(Deserialize)]
pub(super) struct StatefulSet {
    #[serde(default)]
    pub(super) metadata: Meta,
    pub(super) spec: StatefulSetSpec,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct StatefulSetSpec {
    pub(super) replicas: Option<u32>,
    #[serde(default)]
    pub(super) ordinals: Ordinals,
    #[serde(default)]
    pub(super) service_name: String,
    #[serde(default)]
    pub(super) pod_management_policy: String,
}

#[derive(Default, Deserialize)]
pub(super) struct Ordinals {
    #[serde(default)]
    pub(super) start: u32,
}

#[derive(Deserialize)]
pub(super) struct Service {
    pub(super) spec: ServiceSpec,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ServiceSpec {
    #[serde(rename = "clusterIP", default)]
    pub(super) cluster_ip: String,
    #[serde(rename = "clusterIPs", default)]
    pub(super) cluster_ips: Vec<String>,
    #[serde(default)]
    pub(super) publish_not_ready_addresses: bool,
    #[serde(default)]
    pub(super) ports: Vec<ServicePort>,
}

#[derive(Deserialize)]
pub(super) struct ServicePort {
    pub(super) port: u16,
    #[serde(default)]
    pub(super) protocol: String,
}

// === the answers as they are used ===

impl PodStatus {
    /// The container that has ended and is to be started again, and why. An init container that ended well is not one.
    fn again(&self) -> Option<String> {
        let inits = self.init_container_statuses.iter().map(|one| (one, true));
        inits.chain(self.container_statuses.iter().map(|one| (one, false))).find_map(|(one, is_init)| {
            let waits = one.state.waiting.as_ref().filter(|told| told.reason.ends_with("BackOff"));
            let ended = one.state.terminated.as_ref().filter(|told| !is_init || told.exit_code != 0);
            waits.or(ended).map(|told| format!("container {}: {}", one.name, told.reason))
        })
    }
}

impl From<Pod> for super::Pod {
    fn from(raw: Pod) -> Self {
        let join_port = raw.metadata.annotations.get(super::JOIN_PORT).and_then(|port| {
            let mut named = raw.spec.containers.iter().flat_map(|container| &container.ports);
            let named = named.find(|one| one.name.as_ref() == Some(port)).map(|one| one.container_port);
            named.or_else(|| port.parse().ok())
        });
        let again = raw.status.again();
        let mut ips: Vec<IpAddr> =
            raw.status.pod_ip.into_iter().chain(raw.status.pod_ips.into_iter().map(|one| one.ip)).collect();
        ips.sort();
        ips.dedup();
        let mut owners = raw.metadata.owner_references.into_iter();
        let controller = owners.find(|owner| owner.controller && owner.kind == "StatefulSet");
        Self {
            statefulset: controller.map(|owner| owner.name),
            name: raw.metadata.name,
            uid: raw.metadata.uid,
            ips,
            host_ip: raw.status.host_ip,
            over: matches!(raw.status.phase.as_str(), "Succeeded" | "Failed"),
            deleted_by: raw.metadata.deletion_timestamp,
            grace: raw.metadata.deletion_grace_period_seconds.map(Duration::from_secs),
            join_port,
            leave: raw.metadata.annotations.get(super::LEAVE).cloned(),
            held: raw.metadata.annotations.get(super::HOLD).map(|value| value != "false"),
            again,
            phase: raw.status.phase,
            revision: raw.metadata.labels.get(REVISION).cloned(),
            reachable: raw.metadata.labels.get(super::REACHABLE).map(|said| said == "true"),
        }
    }
}

impl From<ConfigMap> for super::ConfigMap {
    fn from(raw: ConfigMap) -> Self {
        Self {
            name: raw.metadata.name,
            version: raw.metadata.resource_version,
            owner: raw.metadata.owner_references.into_iter().next().map(|owner| owner.uid),
            data: raw.data,
        }
    }
}

impl From<StatefulSet> for super::StatefulSet {
    fn from(raw: StatefulSet) -> Self {
        Self {
            // The API server fills in 1.
            replicas: raw.spec.replicas.unwrap_or(1),
            start: raw.spec.ordinals.start,
            service: raw.spec.service_name,
            ordered: raw.spec.pod_management_policy != "Parallel",
            uid: raw.metadata.uid,
            deleting: raw.metadata.deletion_timestamp.is_some(),
        }
    }
}

impl From<Service> for super::Service {
    fn from(raw: Service) -> Self {
        let spec = raw.spec;
        let texts = std::iter::once(&spec.cluster_ip).chain(&spec.cluster_ips);
        // "None" of a headless one is no address.
        let mut ips: Vec<IpAddr> = texts.filter_map(|text| text.parse().ok()).collect();
        ips.sort();
        ips.dedup();
        let tcp = |port: &&ServicePort| matches!(port.protocol.as_str(), "" | "TCP");
        Self {
            ips,
            not_ready_too: spec.publish_not_ready_addresses,
            tcp_ports: spec.ports.iter().filter(tcp).map(|port| port.port).collect(),
        }
    }
}

//! What the Kubernetes API says of the other servers' Pods and Services.
//!
//! Takes a sibling or a selector, gives its addresses. A Pod that is Pending counts as soon as it has an address, because
//! its init containers run then; one that has ended does not. Exact: a Pod that the API does not know does not exist.

use super::candidates::{Answer, stable_by_dns};
use super::dns::Dns;
use super::statefulset::Sibling;
use crate::api::kube::{Kube, KubeError, Pod};
use crate::settings::source::Selector;
use std::collections::BTreeSet;
use std::net::IpAddr;

/// The Pods that a selector matches, and whom to ask for them.
#[derive(Debug, Clone)]
pub(super) struct Pods {
    pub(super) kube: Kube,
    pub(super) namespace: String,
    pub(super) selector: Selector,
    /// Our namespace and StatefulSet, when we are a server in one: Pods of another one are strangers.
    pub(super) ours: Option<(String, String)>,
}

// === impl Pods ===

impl Pods {
    /// Their addresses: the first one of each, as go-discover gives it. Pods that are going away are no servers to join.
    pub(super) async fn resolve(&self) -> Result<Answer, KubeError> {
        let Selector { labels, fields, host_network, .. } = &self.selector;
        let pods = self.kube.pods(&self.namespace, labels, fields).await?;
        let address = |pod: &Pod| if *host_network { pod.host_ip } else { pod.ips.first().copied() };
        let mut answer = Answer { exact: true, ..Answer::default() };
        for pod in pods.into_iter().filter(|pod| !pod.over && !pod.is_terminating()) {
            let Some(ip) = address(&pod) else { continue };
            answer.strangers.extend(self.owned_by_another(&pod).map(|owner| (ip, owner)));
            answer.names.insert(ip, (pod.name, pod.join_port));
        }
        answer.found = answer.names.keys().copied().collect();
        Ok(answer)
    }

    /// The other StatefulSet that a Pod belongs to, for people.
    fn owned_by_another(&self, pod: &Pod) -> Option<String> {
        let (namespace, statefulset) = self.ours.as_ref()?;
        let owner = pod.statefulset.as_ref()?;
        let ours = owner == statefulset && self.namespace == *namespace;
        (!ours).then(|| format!("StatefulSet {owner} in namespace {}", self.namespace))
    }
}

/// A sibling's Pod, and its own Service. A Role without `services get` leaves the Service to DNS, which says the same.
pub(super) async fn by_api(kube: &Kube, namespace: &str, sibling: &Sibling, dns: &Dns) -> Result<Answer, KubeError> {
    let (pod, stable) = tokio::join!(kube.pod(namespace, &sibling.pod), stable(kube, namespace, sibling, dns));
    let pod = pod?;
    let absent = match &pod {
        None => Some("there is no such Pod"),
        Some(pod) if pod.over => Some("its Pod has ended"),
        Some(pod) if pod.ips.is_empty() => Some("its Pod has no address yet"),
        Some(_) => None,
    };
    let found = match pod {
        // A terminating one may still hold the cluster together.
        Some(pod) if !pod.over => pod.ips.into_iter().collect(),
        _ => BTreeSet::new(),
    };
    Ok(Answer { found, stable, absent: absent.map(str::to_owned), exact: true, ..Answer::default() })
}

async fn stable(kube: &Kube, namespace: &str, sibling: &Sibling, dns: &Dns) -> BTreeSet<IpAddr> {
    if sibling.service.is_none() {
        return BTreeSet::new();
    }
    match kube.service(namespace, &sibling.pod).await {
        Ok(service) => service.map(|service| service.ips.into_iter().collect()).unwrap_or_default(),
        Err(_) => stable_by_dns(dns, sibling).await.unwrap_or_default(),
    }
}

//! The other servers of our own StatefulSet, by computed names.
//!
//! Takes our own place and the StatefulSet's shape, gives each other ordinal's Pod name and DNS name. Pure: computing needs
//! neither the API nor DNS.

use super::own::service_host;
use crate::api::kube::StatefulSet;
use crate::settings::{Seat, Survey};

/// One other ordinal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sibling {
    /// Its Pod's name.
    pub pod: String,
    /// Its absolute name behind the headless Service, without the dot at its end
    /// (<https://kubernetes.io/docs/concepts/workloads/controllers/statefulset/#stable-network-id>).
    pub host: String,
    /// The name of its own Service, whose address outlives the Pod.
    pub service: Option<String>,
}

// === impl Sibling ===

impl Sibling {
    /// The name that Consul may join while no address is known.
    pub fn name(&self) -> &str {
        self.service.as_deref().unwrap_or(&self.host)
    }
}

/// The StatefulSet's shape: what the Kubernetes API says of it wins over what was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    /// How many servers there are; 0 when nobody says.
    pub replicas: u32,
    /// The first ordinal.
    pub start: u32,
    /// The headless Service.
    pub service: String,
}

// === impl Shape ===

impl Shape {
    /// As far as it is known.
    pub fn of(seat: &Seat, settings: &Survey, told: Option<&StatefulSet>) -> Self {
        let given = settings.replicas.or(settings.expect);
        let service = told.map(|told| &told.service).filter(|service| !service.is_empty());
        Self {
            replicas: told.map(|told| told.replicas).or(given).unwrap_or(0),
            start: told.map(|told| told.start).or(settings.ordinals_start).unwrap_or(0),
            service: service.or(settings.service.as_ref()).unwrap_or(&seat.statefulset).clone(),
        }
    }
}

/// Every ordinal of the StatefulSet but ours.
pub fn siblings(seat: &Seat, settings: &Survey, shape: &Shape) -> Vec<Sibling> {
    let ordinals = shape.start..shape.start.saturating_add(shape.replicas);
    ordinals.filter(|ordinal| *ordinal != seat.ordinal).map(|ordinal| sibling(seat, settings, shape, ordinal)).collect()
}

fn sibling(seat: &Seat, settings: &Survey, shape: &Shape, ordinal: u32) -> Sibling {
    let pod = seat.pod(ordinal);
    let host = service_host(&format!("{pod}.{}", shape.service), settings);
    let service = settings.stable.then(|| service_host(&pod, settings));
    Sibling { pod, host, service }
}

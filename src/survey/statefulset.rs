//! The other servers of our own StatefulSet, by computed names.
//!
//! Takes our own place and the number of servers, gives each other ordinal's Pod name and DNS name. Pure: computing needs
//! neither the API nor DNS.

use super::own::service_host;
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

/// Every ordinal of the StatefulSet but ours.
pub fn siblings(seat: &Seat, settings: &Survey) -> Vec<Sibling> {
    let replicas = settings.replicas.unwrap_or(0);
    let ordinals = settings.ordinals_start..settings.ordinals_start.saturating_add(replicas);
    ordinals.filter(|ordinal| *ordinal != seat.ordinal).map(|ordinal| sibling(seat, settings, ordinal)).collect()
}

fn sibling(seat: &Seat, settings: &Survey, ordinal: u32) -> Sibling {
    let pod = seat.pod(ordinal);
    let service = settings.service.as_deref().unwrap_or(&seat.statefulset);
    let host = service_host(&format!("{pod}.{service}"), settings);
    let service = settings.stable.then(|| service_host(&pod, settings));
    Sibling { pod, host, service }
}

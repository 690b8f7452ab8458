//! The other servers of our own StatefulSet, by computed names.
//!
//! Takes our own place and the number of servers, gives each other ordinal's Pod name and DNS name. Pure: computing needs
//! neither the API nor DNS.

use crate::settings::{Seat, Survey};

/// One other ordinal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sibling {
    /// Its Pod's name.
    pub pod: String,
    /// Its absolute name behind the headless Service, without the dot at its end
    /// (<https://kubernetes.io/docs/concepts/workloads/controllers/statefulset/#stable-network-id>).
    pub host: String,
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
    let namespace = settings.namespace.as_deref().unwrap_or("default");
    let host = format!("{pod}.{service}.{namespace}.svc.{}", settings.cluster_domain);
    Sibling { pod, host }
}

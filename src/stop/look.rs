//! What do the Kubernetes API, and the memory of an earlier answer, say of our Pod and our StatefulSet?
//!
//! Takes our names and our Pod's UID, gives [`Facts`]. Each call has 2 s. A silent API leaves what was read of the StatefulSet
//! within the last minute, which `run` and `watch` keep on the volume.

use super::cause::{Cause, Facts, Own, Set};
use crate::api::kube::{Kube, KubeError, LEAVE, Pod, StatefulSet, Timestamp};
use crate::record::Volume;
use crate::record::remembered::Remembered;
use crate::settings::{Leave, Owner, Seat};
use std::time::Duration;
use tracing::warn;

/// How long one call to the API may take at a stop.
pub const CALL: Duration = Duration::from_secs(2);
/// An answer that is older than this decides nothing.
const FRESH: Duration = Duration::from_secs(60);

/// Asks for the cause.
#[derive(Debug, Clone)]
pub struct Looker {
    /// The Kubernetes API, and our namespace there.
    pub kube: Option<(Kube, String)>,
    /// Our Pod's name.
    pub owner: Owner,
    /// Our Pod's UID, where the downward API gives it.
    pub uid: Option<String>,
    /// Our place in the StatefulSet.
    pub seat: Option<Seat>,
    /// Our own Pod, as it was read last.
    pod: Option<Pod>,
}

// === impl Looker ===

impl Looker {
    /// Prepares to ask.
    pub fn new(kube: Option<(Kube, String)>, owner: Owner, uid: Option<String>, seat: Option<Seat>) -> Self {
        Self { kube, owner, uid, seat, pod: None }
    }

    /// The revision that our own Pod was made from, as the last look found it.
    pub fn revision(&self) -> Option<&str> {
        self.pod.as_ref()?.revision.as_deref()
    }

    /// Whether our own Pod, being deleted, was out of its Service already at the last look, by a stop that did not come to its end.
    pub fn is_withdrawn(&self) -> bool {
        self.pod.as_ref().is_some_and(Pod::is_withdrawn)
    }

    /// Takes our own Pod out of its Service, or puts it there again. `None`: no Service finds it by the label for that, or it is not
    /// being deleted.
    pub async fn set_reachable(&self, reachable: bool) -> Option<Result<(), KubeError>> {
        let (kube, namespace) = self.kube.as_ref()?;
        let pod = self.pod.as_ref().filter(|pod| pod.reachable.is_some() && pod.is_terminating())?;
        Some(kube.set_reachable(namespace, &pod.name, &pod.uid, reachable).await)
    }

    /// Asks for both at once. `order` is what a flag says; an annotation on the Pod says more, since it is nearer.
    pub async fn look(&mut self, volume: &Volume, order: Option<Leave>) -> Facts {
        let order = order.map(|leave| (leave, "--leave"));
        let ordinal = self.seat.as_ref().map(|seat| seat.ordinal);
        let Some((kube, namespace)) = &self.kube else {
            let nobody = "only the Kubernetes API would tell, and it is not asked without a service account's token and POD_NAMESPACE";
            let nobody = nobody.to_owned();
            return Facts { order, own: Own::Unknown(nobody.clone()), set: Set::Unknown(nobody), grace: None, ordinal };
        };
        let seat = self.seat.as_ref();
        let set = async {
            match seat {
                Some(seat) => kube.statefulset(namespace, &seat.statefulset).await,
                None => Ok(None),
            }
        };
        let (pod, told) = tokio::join!(kube.pod(namespace, &self.owner.pod), set);
        self.pod = pod.as_ref().ok().cloned().flatten();
        let set = set_of(told, volume);
        let facts = |own| Facts { order, own, set: set.clone(), grace: None, ordinal };
        match pod {
            Ok(None) => facts(Own::Gone),
            Ok(Some(pod)) if self.uid.as_ref().is_some_and(|uid| *uid != pod.uid) => facts(Own::Another),
            Ok(Some(pod)) => {
                let here = Facts {
                    order: ordered(&pod).or(order),
                    grace: pod.grace,
                    ..facts(Own::Here { deleted_by: pod.deleted_by })
                };
                if here.cause().cause == Cause::Restart && kube.is_ending(namespace, &pod.name, &pod.uid).await {
                    return Facts { set: Set::Ending, ..here };
                }
                here
            }
            Err(error) => facts(Own::Unknown(error.to_string())),
        }
    }
}

/// What a person wrote on the Pod. Another word is no order.
fn ordered(pod: &Pod) -> Option<(Leave, &'static str)> {
    match pod.leave.as_deref()? {
        "always" => Some((Leave::Always, ANNOTATION)),
        "never" => Some((Leave::Never, ANNOTATION)),
        other => {
            warn!("the annotation {LEAVE} says {other:?}, which is neither always nor never: it orders nothing");
            None
        }
    }
}

/// Where an order stands that is none of a flag's.
const ANNOTATION: &str = "the annotation convene.dev/leave";

fn set_of(told: Result<Option<StatefulSet>, KubeError>, volume: &Volume) -> Set {
    match told {
        Ok(Some(told)) if !told.deleting => Set::Here { replicas: told.replicas, start: told.start, ago: None },
        Ok(_) => Set::Gone,
        Err(error) => match volume.remembered() {
            Some((_, ago)) if ago < FRESH && error.is_refusal() => Set::Withdrawn(error.to_string()),
            Some((Remembered { replicas, start }, ago)) if ago < FRESH => Set::Here { replicas, start, ago: Some(ago) },
            _ => Set::Unknown(error.to_string()),
        },
    }
}

// === impl Facts ===

impl Facts {
    /// When our Pod is to be gone.
    pub fn deleted_by(&self) -> Option<Timestamp> {
        match self.own {
            Own::Here { deleted_by } => deleted_by,
            _ => None,
        }
    }
}

//! Which rights does convene need in its namespace, and which of them does the servers' service account have?
//!
//! Takes the account, gives an answer for each right, or why there is none. What follows from it is judged by
//! [`crate::doctor::manifests`].

use super::{CONFIG_MAPS, PODS, SERVICES, STATEFULSETS};
use crate::api::kube::raw::{Resource, Who};
use crate::api::kube::{Kube, KubeError};

/// A right that convene needs in its namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Right {
    /// On what.
    pub resource: Resource,
    /// What.
    pub verb: &'static str,
    /// What lacks without it.
    pub without: &'static str,
}

/// All rights of README's table that a server needs.
pub const RIGHTS: [Right; 8] = [
    Right {
        resource: PODS,
        verb: "get",
        without: "the other servers are found by DNS alone, which is later, and the cause of a stop is unknown: a scale-down does not leave",
    },
    CHANGE_POD,
    Right {
        resource: STATEFULSETS,
        verb: "get",
        without: "nobody knows how many servers there are to be, nor the cause of a stop: a scale-down does not leave",
    },
    Right { resource: SERVICES, verb: "get", without: "the address that outlives the Pod is found by DNS alone" },
    Right {
        resource: CONFIG_MAPS,
        verb: "get",
        without: "an empty server waits for ever (rule 7), since nobody knows whether there was a cluster",
    },
    Right {
        resource: CONFIG_MAPS,
        verb: "create",
        without: "no new cluster is founded (rule 7), since the claim cannot be written",
    },
    Right {
        resource: CONFIG_MAPS,
        verb: "update",
        without: "that the cluster has formed is not noted, and wiped disks may found a second one",
    },
    Right {
        resource: Resource("", "events"),
        verb: "create",
        without: "kubectl describe pod does not show what was decided",
    },
];

/// That a server may take its own Pod out of its Service; needed where the Pods have the label for it.
pub const CHANGE_POD: Right = Right {
    resource: PODS,
    verb: "patch",
    without: "a server that stops stays in its own Service until it is gone, and the others hear of its return after 10 s instead of at once",
};

/// What a service account may do.
#[derive(Debug)]
pub struct Rights {
    /// Its name.
    pub account: String,
    /// Each right, and whether it has it.
    pub answers: Vec<(Right, Result<bool, KubeError>)>,
}

/// Asks for all of them at once. `pod` is the server of the highest ordinal, whose Pod a Role for fewer servers does not name.
pub(super) async fn ask(
    kube: &Kube,
    who: Who<'_>,
    namespace: &str,
    pod: Option<&str>,
) -> Vec<(Right, Result<bool, KubeError>)> {
    let ask = |right: Right| async move {
        let name = pod.filter(|_| right == CHANGE_POD);
        (right, kube.may(who, right.verb, right.resource, namespace, name).await)
    };
    let [a, b, c, d, e, f, g, h] = RIGHTS.map(ask);
    <[_; RIGHTS.len()]>::from(tokio::join!(a, b, c, d, e, f, g, h)).into()
}

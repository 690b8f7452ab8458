//! Do the servers' Kubernetes objects fit what convene and Consul need?
//!
//! Takes [`Objects`], gives findings, and says what could not be looked at. Pure: asks nobody, reads no clock. Silent about taste: each
//! check stands for something that has cost a cluster its quorum, its data or a night.

mod budget;
mod mend;
mod names;
mod pods;
mod probes;
mod rights;
mod services;
mod statefulset;
mod template;

use super::finding::{Report, Unseen};
use super::objects::{Objects, why_unseen};

/// Each check's name and what it finds, as README's table has them.
pub const CHECKS: &[(&str, &str)] = &[
    ("service-missing", "a server has no Service named as its Pod, whose address would outlive the Pod"),
    ("service-address", "a server's own Service is headless, and has no address to advertise"),
    ("service-selector", "a server's own Service leads to other Pods, or to none"),
    (
        "service-label",
        "a server's own Service does not find it by `convene.dev/reachable`: the Pod lacks what the Service asks for, or the other way round",
    ),
    ("service-ports", "a server's own Service lacks a port that the other servers need"),
    ("service-not-ready", "a server's own Service hides the server until it is Ready"),
    ("headless-missing", "the Service that the StatefulSet names (serviceName) is not there"),
    ("headless-address", "it is not headless, so that its name is not the servers' addresses"),
    ("headless-selector", "it does not select the servers' Pods"),
    ("headless-not-ready", "it hides servers that are not Ready"),
    ("ordered-start", "the Pods start one after the other (podManagementPolicy)"),
    ("grace-period", "a wait or a leave does not fit into the grace period, or convene was told a longer one"),
    ("rollout-takes-several", "a rollout may stop so many servers at once that the quorum is lost"),
    ("replicas-even", "an even number of servers bears no more losses than one server less"),
    ("expect", "the expect can never be reached, or by both sides of a cut"),
    ("claims-deleted", "Kubernetes deletes the volumes when the StatefulSet sleeps or is deleted"),
    ("data-volume", "the data folder is no volume of the server's own that outlives the Pod"),
    (
        "startup-probe",
        "liveness counts before a start, a wait or a restore can be over (`check live` as liveness needs no startupProbe)",
    ),
    ("liveness-probe", "liveness depends on a leader, or on others"),
    ("readiness-probe", "Ready does not mean a healthy voter, so that a rollout does not wait for one"),
    ("probe-timeout", "a probe has 1 s for its answer, Kubernetes' default"),
    ("memory-request", "the agent has no memory of its own by right, and is the first to be evicted"),
    ("cpu-limit", "the agent is throttled, which ends in elections"),
    ("anti-affinity", "nothing keeps the servers from one and the same machine"),
    ("same-machine", "one machine holds so many servers that its loss is that of the quorum"),
    ("budget-missing", "no PodDisruptionBudget, so that a drain of several machines may take the quorum"),
    ("budget-several", "several budgets match, and Kubernetes evicts nobody then"),
    ("budget-loose", "the budget lets so many go that no reserve or no quorum is left"),
    ("budget-closed", "the budget lets nobody go, so that no machine can be drained"),
    ("budget-unhealthy", "a server that is not Ready keeps its machine from being drained"),
    ("role", "the servers' service account lacks a right that convene needs"),
    ("image-skew", "the Pods run different images"),
    ("pod-missing", "a server has no Pod"),
    ("pod-unscheduled", "a Pod waits for a machine, and why"),
    ("pod-not-started", "a container does not start or ends again and again, and its last words"),
    ("pod-not-ready", "a Pod is not Ready for longer than 2 minutes"),
    ("pod-terminating", "a Pod should be gone, and its place cannot be taken"),
    ("dns-cache", "CoreDNS keeps an answer for more than 30 s, where the servers find each other by DNS alone"),
];

/// Makes all checks.
pub fn check(objects: &Objects, report: &mut Report) {
    if let Err(error) = &objects.statefulset {
        report.unseen.push(Unseen { what: "the StatefulSet", why: why_unseen(error) });
    }
    if let Some(error) = objects.unseen_settings() {
        report.unseen.push(Unseen { what: "the containers' settings", why: why_unseen(error) });
    }
    services::check(objects, report);
    statefulset::check(objects, report);
    template::check(objects, report);
    probes::check(objects, report);
    budget::check(objects, report);
    rights::check(objects, report);
    pods::check(objects, report);
    names::check(objects, report);
}

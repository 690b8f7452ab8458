//! What is wrong with this Consul cluster, and how is it mended? One look, for a person at night or a pipeline.
//!
//! Takes what the Kubernetes API, the agents and the volume say, each as far as it may be asked, and gives a [`Report`]: what is
//! wrong, why it matters, and the command or YAML that mends it. Looks first and then judges, without a clock or a call. Changes
//! nothing anywhere. What could not be looked at is named, and is no finding; when nothing at all could be looked at, that is
//! a failure (69).

pub mod agents;
pub mod finding;
pub mod manifests;
pub mod objects;
pub mod tls;
pub mod tokens;
pub mod volume;

use crate::api::kube::Kube;
use crate::exit::{Code, Failure};
use crate::settings::doctoring::Doctoring;
use crate::settings::http::{Endpoint, HTTP_PORT};
use crate::settings::{Local, Survey};
use agents::{Wanted, Way, beside};
use finding::{Finding, Report, Unseen};
use objects::{Objects, Target};
use std::time::Duration;

/// How long one call to the Kubernetes API may take.
pub const CALL: Duration = Duration::from_secs(3);

/// Every check's name and what it looks at, as README's table has them.
pub fn checks() -> Vec<(&'static str, &'static str)> {
    [manifests::CHECKS, agents::CHECKS, tokens::CHECKS, tls::CHECKS, volume::CHECKS].concat()
}

/// Looks at everything and judges it.
///
/// # Errors
/// [`Failure`] with 69 when nothing could be looked at; with 64 when nobody said which StatefulSet is meant.
pub async fn run(doctoring: &Doctoring, local: &Local) -> Result<Report, Failure> {
    let mut report = Report::default();
    let kube = doctoring.access.clone().map(|access| Kube::new(access, CALL).asking_once());
    let objects = match &kube {
        Some(kube) => Objects::look(kube, doctoring, local).await,
        None => Err(Target::Unseen("no service account token is mounted, and KUBECONFIG is not set".to_owned())),
    };
    match &objects {
        Ok(objects) => manifests::check(objects, &mut report),
        Err(Target::Ambiguous(why)) => return Err(Failure::new(Code::Usage, why)),
        Err(Target::Unseen(why)) => {
            report.unseen.push(Unseen { what: "the StatefulSet and its objects", why: why.clone() });
        }
    }
    let wanted = wanted(objects.as_ref().ok(), doctoring, local);
    let of_objects = report.findings.len();
    match (&kube, &objects) {
        _ if doctoring.inside => within(doctoring, local, wanted, &mut report).await,
        (Some(kube), Ok(objects)) => {
            let seen = agents::look(through(kube, objects), wanted, None).await;
            agents::check(&seen, &mut report);
        }
        _ => {}
    }
    let namespace = objects.as_ref().ok().map(|objects| &objects.namespace).or(local.owner.namespace.as_ref());
    for found in report.findings.iter_mut().skip(of_objects) {
        in_namespace(found, namespace);
    }
    if report.looked.is_empty() && report.findings.is_empty() {
        let why: Vec<String> = report.unseen.iter().map(|Unseen { what, why }| format!("{what}: {why}")).collect();
        return Err(Failure::new(Code::Unavailable, format!("could not look at anything: {}", why.join("; "))));
    }
    Ok(report)
}

/// How many servers there should be: what Kubernetes says, else the settings.
fn wanted(objects: Option<&Objects>, doctoring: &Doctoring, local: &Local) -> Option<Wanted> {
    let small = |number: u64| u32::try_from(number).ok();
    if let Some((objects, spec)) = objects.and_then(|objects| Some((objects, objects.statefulset.as_ref().ok()?))) {
        return Some(Wanted {
            statefulset: objects.name.clone(),
            start: objects::number(spec, "/spec/ordinals/start").and_then(small).unwrap_or(0),
            replicas: objects::number(spec, "/spec/replicas").and_then(small).unwrap_or(1),
        });
    }
    let Survey { replicas, expect, ordinals_start, .. } = doctoring.survey.as_ref()?;
    Some(Wanted {
        statefulset: local.seat.as_ref()?.statefulset.clone(),
        start: ordinals_start.unwrap_or(0),
        replicas: replicas.or(*expect)?,
    })
}

/// In a server's own Pod: all agents, and what only this Pod can tell.
async fn within(doctoring: &Doctoring, local: &Local, wanted: Option<Wanted>, report: &mut Report) {
    let (servers, beside) = match beside::look(local, &doctoring.rendered).await {
        Ok(looked) => looked,
        Err(error) => {
            report.unseen.push(Unseen { what: "the agents", why: error.to_string() });
            (Vec::new(), None)
        }
    };
    let answers = beside.as_ref().is_some_and(|beside| beside.runs);
    let others = beside.as_ref().map(|beside| beside.others.clone()).unwrap_or_default();
    let (mut seen, token, volume) =
        tokio::join!(agents::look(servers, wanted, beside), tokens::look(local), volume::look(local, answers));
    seen.sees_services = token.sees_services();
    let tls = tls::look(local, &others, seen.tls()).await;
    agents::check(&seen, report);
    tokens::check(&token, report);
    volume::check(&volume, report);
    tls::check(&tls, report);
}

/// The agents do not know their namespace, and a person's kubectl may be in another one.
fn in_namespace(found: &mut Finding, namespace: Option<&String>) {
    if let Some(namespace) = namespace {
        found.mend = found.mend.replace("kubectl ", &format!("kubectl -n {namespace} "));
    }
}

/// From outside: each agent whose Pod is there, by way of the API server.
fn through(kube: &Kube, objects: &Objects) -> Vec<(String, Way)> {
    // Where convene finds the agent in its Pod is where the agent listens; there is no such flag.
    let address = objects.setting("consul-http-addr", "CONSUL_HTTP_ADDR");
    let peers = objects.setting("peer-http-port", "CONVENE_PEER_HTTP_PORT").and_then(|port| port.parse().ok());
    let (port, tls) = match address.and_then(|address| Endpoint::parse("CONSUL_HTTP_ADDR", &address, false).ok()) {
        Some(Endpoint::Tcp { port, tls, .. }) => (port, tls),
        _ => (peers.unwrap_or(HTTP_PORT), false),
    };
    let way = |pod: &str| Way::Pod {
        kube: kube.clone(),
        namespace: objects.namespace.clone(),
        pod: pod.to_owned(),
        port,
        tls,
    };
    objects.pods().map(|(server, _)| (server.name.clone(), way(&server.name))).collect()
}

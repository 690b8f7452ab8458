//! Does every server have a Service of its own that leads to it alone, and do they all have a headless one?
//!
//! Where Pod addresses are advertised (`CONVENE_ADVERTISE=pod`) the own Services do not matter, and where convene does not run nobody
//! advertises them.

use super::super::finding::{Finding, Report, Unseen};
use super::super::objects::{Objects, Server, containers, flag_of, list, number, text, why_unseen};
use super::mend::selects;
use crate::api::kube::REACHABLE;
use crate::settings::{SERF_PORT, SERVER_PORT};
use serde_json::{Value, json};

/// The label that the StatefulSet's controller gives each Pod: its name.
const POD_NAME: &str = "statefulset.kubernetes.io/pod-name";
const NOT_READY_TOO: &str = r#"{"spec":{"publishNotReadyAddresses":true}}"#;

pub(super) fn check(objects: &Objects, report: &mut Report) {
    headless(objects, report);
    if objects.template().is_none() || !objects.has_convene() {
        return;
    }
    // By default a server advertises its own Service.
    let wanted = match objects.setting("advertise", "CONVENE_ADVERTISE") {
        Some(said) => matches!(said.as_str(), "auto" | "service"),
        None => objects.unseen_settings().is_none(),
    };
    if !wanted {
        return;
    }
    for server in &objects.servers {
        match &server.service {
            Ok(service) => {
                report.looked.extend(["service-missing", "service-address", "service-selector"]);
                report.looked.extend(["service-label", "service-ports", "service-not-ready"]);
                match service {
                    Some(service) => own(objects, server, service, report),
                    None => report.findings.push(missing(objects, server)),
                }
            }
            Err(error) => report.unseen.push(Unseen { what: "the servers' own Services", why: why_unseen(error) }),
        }
    }
}

fn own(objects: &Objects, server: &Server, service: &Value, report: &mut Report) {
    let subject = objects.subject("Service", &server.name);
    if text(service, "/spec/clusterIP") == "None" || text(service, "/spec/type") == "ExternalName" {
        report.findings.push(Finding {
            check: "service-address",
            subject: subject.clone(),
            what: "it has no ClusterIP".to_owned(),
            why: format!("{} advertises its Pod's address then, which changes at each restart", server.name),
            mend: format!(
                "{}\n{}\n{}",
                objects.kubectl(&format!("delete service {}", server.name)),
                service_of(objects, server),
                restarted(objects)
            ),
        });
    }
    let selector = service.pointer("/spec/selector").unwrap_or(&Value::Null);
    let reached: Vec<&str> = objects
        .servers
        .iter()
        .filter(|one| selects(selector, &labels_of(objects, one)))
        .map(|one| one.name.as_str())
        .collect();
    if reached != [server.name.as_str()] {
        let leads = if reached.is_empty() { "no server".to_owned() } else { reached.join(", ") };
        report.findings.push(Finding {
            check: "service-selector",
            subject: subject.clone(),
            what: format!("its selector {selector} leads to {leads}, and not to {} alone", server.name),
            why: "servers would speak to another one than they mean, and raft never settles".to_owned(),
            mend: selected(objects, server),
        });
    } else {
        report.findings.extend(label(objects, server, selector));
    }
    let lacking: Vec<String> =
        wanted_ports(objects).iter().filter(|one| !one.is_taken(objects, service)).map(Port::to_string).collect();
    if !lacking.is_empty() {
        report.findings.push(Finding {
            check: "service-ports",
            subject: subject.clone(),
            what: format!("it does not lead to {}", lacking.join(", ")),
            why: "8300 carries raft, 8301 gossip over TCP and UDP, and by HTTP convene asks what a server knows: without one of them \
                  servers do not join, or are taken for failed, or wait for each other"
                .to_owned(),
            mend: objects.replace("service", &server.name, "/spec/ports", &mended_ports(objects, service).to_string()),
        });
    }
    if service.pointer("/spec/publishNotReadyAddresses") != Some(&Value::Bool(true)) {
        report.findings.push(Finding {
            check: "service-not-ready",
            subject,
            what: "publishNotReadyAddresses is not true".to_owned(),
            why: "a server is reached there only once it is Ready, and to become Ready it must be reached".to_owned(),
            mend: objects.patch("service", &server.name, NOT_READY_TOO),
        });
    }
}

fn missing(objects: &Objects, server: &Server) -> Finding {
    Finding {
        check: "service-missing",
        subject: objects.subject("Service", &server.name),
        what: format!("there is no Service named as the Pod {}", server.name),
        why: "the server advertises its Pod's address then: each restart leaves the cluster and comes back as a non-voter at another \
              address, and is found later. If that is wanted, say so: CONVENE_ADVERTISE=pod"
            .to_owned(),
        mend: format!("{}\n{}", service_of(objects, server), restarted(objects)),
    }
}

/// A server takes another address at its start only. One server at a time, however often this is copied.
fn restarted(objects: &Objects) -> String {
    objects.kubectl(&format!("rollout restart statefulset {}", objects.name))
}

/// The Service that a server should have.
fn service_of(objects: &Objects, server: &Server) -> String {
    let name = &server.name;
    let mut yaml = format!(
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\n  labels: {}\nspec:\n  publishNotReadyAddresses: true\n  \
         selector: {}\n  ports:\n",
        objects.labels(),
        selector_of(objects, server)
    );
    for port in mended_ports(objects, &Value::Null).as_array().into_iter().flatten() {
        yaml.push_str(&format!("    - {port}\n"));
    }
    once_labelled(objects, server, objects.apply(&yaml))
}

/// By which its own Service should find a server.
fn selector_of(objects: &Objects, server: &Server) -> Value {
    let mut selector = json!({POD_NAME: server.name});
    if objects.has_reachable()
        && let Some(selector) = selector.as_object_mut()
    {
        selector.insert(REACHABLE.to_owned(), json!("true"));
    }
    selector
}

/// Has its own Service find a server.
fn selected(objects: &Objects, server: &Server) -> String {
    let replaced =
        objects.replace("service", &server.name, "/spec/selector", &selector_of(objects, server).to_string());
    once_labelled(objects, server, replaced)
}

/// A change by which its Service finds a server by the label, behind what gives its Pod the label.
fn once_labelled(objects: &Objects, server: &Server, change: String) -> String {
    match labelled(objects, server) {
        Some(labelled) => format!("{labelled}\n{change}"),
        None => change,
    }
}

/// How a Pod gets the label, where it lacks it and should have it. One that is being deleted goes without.
fn labelled(objects: &Objects, server: &Server) -> Option<String> {
    let pod = server.pod.as_ref().ok()?.as_ref()?;
    let stays = text(pod, "/metadata/deletionTimestamp").is_empty();
    let has_it =
        pod.pointer("/metadata/labels").and_then(|labels| labels.get(REACHABLE)).is_some_and(|said| said == "true");
    (stays && !has_it)
        .then(|| objects.kubectl(&format!("label pod {} --overwrite {REACHABLE}=true", server.name)))
        .filter(|_| objects.has_reachable() || is_asked(server))
}

/// Whether its own Service finds a server by the label.
fn is_asked(server: &Server) -> bool {
    let service = server.service.as_ref().ok().and_then(Option::as_ref);
    service.and_then(|service| service.pointer("/spec/selector")?.get(REACHABLE)).is_some()
}

/// What is wrong about the label by which a server that stops takes itself out of its Service, whose selector fits otherwise.
fn label(objects: &Objects, server: &Server, selector: &Value) -> Option<Finding> {
    let (name, selects_by_it) = (&server.name, selector.get(REACHABLE).is_some());
    if !selects_by_it && objects.has_reachable() {
        return Some(Finding {
            check: "service-label",
            subject: objects.subject("Service", name),
            what: format!("its selector lacks {REACHABLE}, which the Pods have"),
            why: "a server that stops waits 2 s in vain for its Service to refuse, and the others hear of its return late".to_owned(),
            mend: selected(objects, server),
        });
    }
    let mend = labelled(objects, server).filter(|_| selects_by_it)?;
    Some(Finding {
        check: "service-label",
        subject: objects.subject("Pod", name),
        what: format!(
            "its own Service finds it by the label {REACHABLE}, which it lacks: it was made before that, or the label was changed"
        ),
        why: "the address that it advertises leads nowhere: the others can dial it no more".to_owned(),
        mend,
    })
}

/// The labels of a server's Pod, with those that the controller adds (pod-index since Kubernetes 1.28).
fn labels_of(objects: &Objects, server: &Server) -> Value {
    let mut labels = objects.labels();
    if let Some(labels) = labels.as_object_mut() {
        labels.insert(POD_NAME.to_owned(), json!(server.name));
        labels.insert("apps.kubernetes.io/pod-index".to_owned(), json!(server.ordinal.to_string()));
    }
    labels
}

/// A port that the others need.
struct Port {
    name: &'static str,
    number: u64,
    protocol: &'static str,
    /// Another one will do.
    or: Option<u64>,
}

// === impl Port ===

impl Port {
    fn is_taken(&self, objects: &Objects, service: &Value) -> bool {
        let numbers = [Some(self.number), self.or];
        list(service, "/spec/ports").any(|port| {
            let number = number(port, "/port");
            number.is_some() && numbers.contains(&number) && protocol(port) == self.protocol && leads(objects, port)
        })
    }
}

impl std::fmt::Display for Port {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.number, self.protocol)
    }
}

fn protocol(port: &Value) -> &str {
    Some(text(port, "/protocol")).filter(|said| !said.is_empty()).unwrap_or("TCP")
}

/// Whether a port of a Service leads to the same port of the Pod, by number or by a container's name for it.
fn leads(objects: &Objects, port: &Value) -> bool {
    let wanted = number(port, "/port");
    match port.get("targetPort") {
        None | Some(Value::Null) => true,
        Some(Value::String(name)) => objects.template().into_iter().flat_map(containers).any(|container| {
            list(container, "/ports").any(|one| text(one, "/name") == name && number(one, "/containerPort") == wanted)
        }),
        Some(target) => target.as_u64() == wanted,
    }
}

fn wanted_ports(objects: &Objects) -> [Port; 4] {
    let said = |flag: &str, variable: &str| objects.setting(flag, variable).and_then(|port| port.parse().ok());
    let serf = objects.agent().and_then(|agent| flag_of(agent, "serf-lan-port")?.parse().ok());
    let serf = serf.unwrap_or(u64::from(SERF_PORT));
    let http = said("peer-http-port", "CONVENE_PEER_HTTP_PORT").or_else(|| said("http-port", ""));
    let tcp = |name, number, or| Port { name, number, protocol: "TCP", or };
    [
        tcp("server", said("server-port", "CONVENE_SERVER_PORT").unwrap_or(u64::from(SERVER_PORT)), None),
        tcp("serf-lan", serf, None),
        Port { protocol: "UDP", ..tcp("serf-lan-udp", serf, None) },
        // Plain or over TLS.
        tcp("http", http.unwrap_or(8500), Some(http.unwrap_or(8501))),
    ]
}

/// What a Service takes already and is right, and what it should; named, since several ports need names.
fn mended_ports(objects: &Objects, service: &Value) -> Value {
    let wanted = wanted_ports(objects);
    let mut ports: Vec<Value> = list(service, "/spec/ports")
        .filter(|port| {
            let same = |one: &&Port| number(port, "/port") == Some(one.number) && protocol(port) == one.protocol;
            leads(objects, port) || !wanted.iter().any(|one| same(&one))
        })
        .cloned()
        .collect();
    for port in &mut ports {
        let name = format!("port-{}-{}", number(port, "/port").unwrap_or(0), protocol(port).to_lowercase());
        if let Some(port) = port.as_object_mut() {
            port.entry("name").or_insert_with(|| json!(name));
        }
    }
    for one in wanted.iter().filter(|one| !one.is_taken(objects, service)) {
        let taken = ports.iter().any(|port| text(port, "/name") == one.name);
        let name = if taken { format!("{}-{}", one.name, one.number) } else { one.name.to_owned() };
        ports.push(json!({"name": name, "port": one.number, "protocol": one.protocol}));
    }
    Value::Array(ports)
}

fn headless(objects: &Objects, report: &mut Report) {
    if objects.template().is_none() {
        return;
    }
    let (name, seen) = &objects.headless;
    let subject = objects.subject("Service", name);
    let service = match seen {
        Ok(service) => service,
        Err(error) => {
            return report.unseen.push(Unseen { what: "the headless Service", why: why_unseen(error) });
        }
    };
    report.looked.extend(["headless-missing", "headless-address", "headless-selector", "headless-not-ready"]);
    let Some(service) = service else {
        return report.findings.push(Finding {
            check: "headless-missing",
            subject,
            what: format!("StatefulSet {} has serviceName {name}, and there is no such Service", objects.name),
            why:
                "the Pods have no names in DNS, by which servers and clients find each other without the Kubernetes API"
                    .to_owned(),
            mend: headless_of(objects, name),
        });
    };
    if text(service, "/spec/clusterIP") != "None" {
        report.findings.push(Finding {
            check: "headless-address",
            subject: subject.clone(),
            what: format!("it has the ClusterIP {}", text(service, "/spec/clusterIP")),
            why: "the Pods have no names in DNS, and its name is one address behind which another server may answer each time"
                .to_owned(),
            // A ClusterIP cannot be taken away.
            mend: format!("{}\n{}", objects.kubectl(&format!("delete service {name}")), headless_of(objects, name)),
        });
    }
    let selector = service.pointer("/spec/selector").unwrap_or(&Value::Null);
    if !selects(selector, &objects.labels()) {
        report.findings.push(Finding {
            check: "headless-selector",
            subject: subject.clone(),
            what: format!("its selector {selector} does not fit the Pods' labels {}", objects.labels()),
            why: "its name and the Pods' names have no address".to_owned(),
            mend: objects.replace("service", name, "/spec/selector", &objects.selector().to_string()),
        });
    }
    if service.pointer("/spec/publishNotReadyAddresses") != Some(&Value::Bool(true)) {
        report.findings.push(Finding {
            check: "headless-not-ready",
            subject,
            what: "publishNotReadyAddresses is not true".to_owned(),
            why: "a server's name has no address until it is Ready, and servers must find each other before that: by DNS alone no cluster \
                  forms"
                .to_owned(),
            mend: objects.patch("service", name, NOT_READY_TOO),
        });
    }
}

fn headless_of(objects: &Objects, name: &str) -> String {
    let [server, serf, _, http] = wanted_ports(objects).map(|port| port.number);
    objects.apply(&format!(
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\n  labels: {}\nspec:\n  clusterIP: None\n  \
         publishNotReadyAddresses: true\n  selector: {}\n  ports:\n    - {{name: server, port: {server}}}\n    \
         - {{name: serf-lan, port: {serf}}}\n    - {{name: http, port: {http}}}",
        objects.labels(),
        objects.selector()
    ))
}

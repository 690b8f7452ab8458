//! At which address can the others reach us for good? The ClusterIP of a Service that is named as our Pod outlives the Pod.
//!
//! Takes the settings and what was recorded, gives the stable address, or that there is none, or why that cannot be told yet.
//! Only "no such name" means that there is no such Service: an error means the recorded address. A stable address is of use
//! only if a Pod reaches its own one (hairpin), since Consul asks itself at it too; that is tried before it is chosen.

use super::dns::{Dns, LookupError};
use crate::api::kube::{Kube, REACHABLE, Service};
use crate::dial::dial;
use crate::record::Record;
use crate::settings::{Local, Stable, Survey};
use crate::time::SAY_EVERY;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep, timeout};
use tracing::warn;
use uuid::Uuid;

/// How long the own ClusterIP may take to lead to us: endpoints are programmed some seconds after the Pod has its address.
pub const HAIRPIN: Duration = Duration::from_secs(10);
/// How long a start waits until it reaches itself: kube-proxy makes one change a second.
const PROGRAMMED: Duration = Duration::from_secs(1);
/// How long DNS may go on giving the address of a Service that was deleted: CoreDNS caches for 30 s.
const STALE: Duration = Duration::from_secs(45);
/// How soon the own address is dialled again.
const DIAL_AGAIN: Duration = Duration::from_millis(25);
/// How often the address is asked for again meanwhile.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// The absolute name of a Service in our namespace, or of a Pod behind one, without the dot at its end.
pub fn service_host(name: &str, settings: &Survey) -> String {
    format!("{name}.{}.svc.{}", settings.namespace(), settings.cluster_domain)
}

/// An address that outlives the Pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lasting {
    /// It.
    pub ip: IpAddr,
    /// Whether it leads back to us is still to be tried.
    pub untried: bool,
}

/// Finds the stable address; `None`: there is none, and the Pod's own is advertised. With `later` one that nobody used before is not tried
/// here, unless the API describes it as one that cannot lead to us.
///
/// # Errors
/// Why it cannot be told yet, and what would end the wait.
pub async fn find(
    local: &Local,
    settings: &Survey,
    dns: &Dns,
    kube: Option<&Kube>,
    record: Option<&Record>,
    later: bool,
) -> Result<Option<Lasting>, String> {
    if local.stable == Stable::Never {
        return Ok(None);
    }
    let lasting = |ip| Ok(Some(Lasting { ip, untried: false }));
    let recorded = record.and_then(Record::kept);
    // Once only: whoever was not reached there, or has not had the time, tries it first.
    let later = later && record.is_none() && local.advertise.is_some() && local.stable == Stable::IfThere;
    let begun = Instant::now();
    let mut said = begun;
    let patience = if recorded.is_some() { STALE } else { HAIRPIN };
    loop {
        let found = match look(local, settings, dns, kube).await {
            Ok(found) => found,
            Err(error) => return not_known(local, &error, recorded, record.is_some())?.map_or(Ok(None), lasting),
        };
        let Some(ip) = found.stable(local, recorded) else { return missing(local, recorded).map(|()| None) };
        // What the API says is true now; DNS may give the address that an earlier Service of this name had.
        if recorded.is_some() && found.described.is_some() {
            return lasting(ip);
        }
        if later && found.may_lead_here(local.peer.server) {
            return Ok(Some(Lasting { ip, untried: true }));
        }
        let left = patience.saturating_sub(begun.elapsed());
        if hairpin(ip, local.peer.server, left.min(LOOK_AGAIN)).await {
            return lasting(ip);
        }
        if begun.elapsed() < patience {
            if said.elapsed() >= SAY_EVERY {
                said = Instant::now();
                warn!(
                    waited_s = begun.elapsed().as_secs(),
                    "waiting: {ip}, which DNS gives for Service {}, does not lead to this Pod; it may be that of an earlier Service, \
                     and DNS forget it soon",
                    local.owner.pod
                );
            }
            continue;
        }
        let why = format!(
            "this Pod does not reach its own Service address {ip} within {} s (hairpin), without which Consul does not form: {}",
            patience.as_secs(),
            found.fault(&local.owner.pod, local.peer.server)
        );
        if recorded.is_some() {
            // A server with data starts in any case, and where the others know it.
            warn!(
                "{why}; it is advertised all the same, since this server advertised {} before",
                recorded.unwrap_or(ip)
            );
            return lasting(ip);
        }
        if local.stable == Stable::Always {
            return Err(format!("{why}; this ends when: that is mended, or --advertise=pod is given"));
        }
        warn!("{why}; the Pod's own address is advertised");
        return Ok(None);
    }
}

/// Waits for a second at most until we reach ourselves at `ip`; says whether we do. An agent that does not when it starts pauses for a second
/// (1.22.6, raft-autopilot's first look at all servers), whatever comes meanwhile.
pub async fn reached(ip: IpAddr, port: u16) -> bool {
    hairpin(ip, port, PROGRAMMED).await
}

/// The stable address that a start would find now, without trying it (hairpin), since an agent may have the port; `None`: there
/// is none.
///
/// # Errors
/// Why it cannot be told.
pub async fn service_address(
    local: &Local,
    settings: &Survey,
    dns: &Dns,
    kube: Option<&Kube>,
    recorded: Option<IpAddr>,
) -> Result<Option<IpAddr>, String> {
    let found = look(local, settings, dns, kube).await.map_err(|error| error.to_string())?;
    // Who is called beside an agent has its recorded address among its own.
    let mut local = local.clone();
    local.own_addresses.retain(|own| Some(*own) != recorded);
    Ok(found.stable(&local, recorded))
}

/// Neither the API nor DNS tells.
fn not_known(
    local: &Local,
    error: &NotKnown,
    recorded: Option<IpAddr>,
    has_record: bool,
) -> Result<Option<IpAddr>, String> {
    match recorded {
        Some(recorded) => {
            warn!("{error}; the recorded address {recorded} is used");
            Ok(Some(recorded))
        }
        // Recorded with the Pod's address; or nobody to ask, now and later.
        None if has_record || (error.nobody_to_ask && local.stable == Stable::IfThere) => Ok(None),
        None => Err(format!(
            "whether Service {} exists cannot be told: {error}; this ends when: the Kubernetes API or DNS answers",
            local.owner.pod
        )),
    }
}

/// Whether our Service has another address by now than the one that the agent advertises: the sentence that says so.
pub(super) async fn moved(local: &Local, settings: &Survey, dns: &Dns, kube: Option<&Kube>) -> Option<String> {
    let (pod, advertised) = (&local.owner.pod, local.advertise.filter(|_| settings.stable)?);
    let found = look(local, settings, dns, kube).await.ok()?.ips;
    let now = match found.first() {
        _ if found.contains(&advertised) => return None,
        Some(ip) => format!("has the address {ip} now"),
        None => "is gone".to_owned(),
    };
    Some(format!(
        "this agent advertises {advertised}, but Service {pod} {now}: the others cannot reach it; once the Service is there, \
         delete the Pod (kubectl delete pod {pod}), and it starts at the new address with its data"
    ))
}

/// What is known of the Service that is named as our Pod.
struct Found {
    /// Its addresses; none: there is no such Service, or it is headless.
    ips: Vec<IpAddr>,
    /// As the API describes it.
    described: Option<Service>,
}

/// Why nothing is known of it.
struct NotKnown {
    text: String,
    nobody_to_ask: bool,
}

/// Asks the API where it can be asked, else DNS. An empty answer of DNS counts only when the API does not let us ask it.
async fn look(local: &Local, settings: &Survey, dns: &Dns, kube: Option<&Kube>) -> Result<Found, NotKnown> {
    let pod = &local.owner.pod;
    let failed = match kube {
        None => None,
        Some(kube) => match kube.service(settings.namespace(), pod).await {
            Ok(described) => {
                let ips = described.as_ref().map(|service| service.ips.clone()).unwrap_or_default();
                return Ok(Found { ips, described });
            }
            Err(error) => {
                warn!("{error}; DNS is asked instead");
                Some(error)
            }
        },
    };
    let by_dns = dns.addresses(&format!("{}.", service_host(pod, settings))).await;
    match (by_dns, failed) {
        (Ok(ips), Some(error)) if ips.is_empty() && !error.is_denied() => {
            Err(NotKnown { text: error.to_string(), nobody_to_ask: false })
        }
        (Ok(ips), _) => Ok(Found { ips, described: None }),
        (Err(error), failed) => Err(NotKnown {
            nobody_to_ask: failed.is_none() && matches!(error, LookupError::NoNameserver { .. }),
            text: error.to_string(),
        }),
    }
}

// === impl Found ===

impl Found {
    /// The address that outlives the Pod; the recorded one where there are several, else one of our own family.
    fn stable(&self, local: &Local, recorded: Option<IpAddr>) -> Option<IpAddr> {
        // A headless Service of that name gives the Pod's own address, which is not stable.
        let stable: Vec<IpAddr> = self.ips.iter().filter(|ip| !local.own_addresses.contains(ip)).copied().collect();
        let same = |ip: &&IpAddr| local.own_addresses.iter().any(|own| own.is_ipv4() == ip.is_ipv4());
        let first = stable.iter().find(|ip| recorded == Some(**ip)).or_else(|| stable.iter().find(same));
        first.or(stable.first()).copied()
    }

    /// For all that the API says it leads to our Pod from its first moment on. DNS says no more than that it is there.
    fn may_lead_here(&self, port: u16) -> bool {
        self.described.as_ref().is_none_or(|service| service.not_ready_too && service.tcp_ports.contains(&port))
    }

    /// What probably keeps it from leading to our Pod.
    fn fault(&self, pod: &str, port: u16) -> String {
        match &self.described {
            Some(service) if !service.not_ready_too => {
                format!("Service {pod} needs publishNotReadyAddresses: true")
            }
            Some(service) if !service.tcp_ports.contains(&port) => {
                format!(
                    "Service {pod} lacks port {port} (it needs 8300 to 8302 and 8500 to 8503, as in deploy/server/services.yaml)"
                )
            }
            _ => format!(
                "does Service {pod} have publishNotReadyAddresses: true, port {port}, and the selector statefulset.kubernetes.io/pod-name: {pod}, \
                 and where it selects {REACHABLE} too, has the Pod that label? \
                 Else the cluster's proxy or network plug-in does not lead a Pod back to itself"
            ),
        }
    }
}

impl fmt::Display for NotKnown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn missing(local: &Local, recorded: Option<IpAddr>) -> Result<(), String> {
    let pod = &local.owner.pod;
    let cure = format!(
        "this ends when: Service {pod} is applied (again), or --advertise=pod is given, which changes this server's address"
    );
    match (recorded, local.stable) {
        (Some(recorded), _) => {
            Err(format!("Service {pod} is gone, whose address {recorded} this server advertised; {cure}"))
        }
        (None, Stable::Always) => Err(format!("there is no Service {pod} with an address of its own; {cure}")),
        (None, _) => Ok(()),
    }
}

/// Whether our own Service address leads back to us: we listen on the server port for a moment, and dial.
async fn hairpin(ip: IpAddr, port: u16, within: Duration) -> bool {
    let any: IpAddr = if ip.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    let Ok(listener) = TcpListener::bind(SocketAddr::new(any, port)).await else {
        // Somebody has the port: an agent that is about to end, or one that is none of ours.
        sleep(within).await;
        return false;
    };
    let word = greeting();
    let greet = async {
        loop {
            if let Ok((mut stream, _)) = listener.accept().await {
                // Whoever else dials meanwhile hears it too, and hangs up.
                let _ = stream.write_all(&word).await;
            }
        }
    };
    let dial = async {
        while !timeout(Duration::from_millis(500), heard(ip, port)).await.is_ok_and(|heard| heard == Some(word)) {
            sleep(DIAL_AGAIN).await;
        }
    };
    tokio::select! {
        () = greet => false,
        reached = timeout(within, dial) => reached.is_ok(),
    }
}

/// What a convene that tries its hairpin says to whoever dials the server port, before its agent listens there: who it is, and
/// eight bytes that nobody else says.
fn greeting() -> [u8; 16] {
    let mut word = Uuid::new_v4().into_bytes();
    for (byte, magic) in word.iter_mut().zip(MAGIC) {
        *byte = *magic;
    }
    word
}

/// How it begins. Consul's own server port waits for the caller to speak first.
const MAGIC: &[u8; 8] = b"convene\n";

/// Whether who answers on a server port is a convene that prepares the start of its agent.
pub async fn is_preparing(stream: &mut TcpStream) -> bool {
    let mut word = [0; 16];
    timeout(GREETED, stream.read_exact(&mut word)).await.is_ok_and(|read| read.is_ok()) && word.starts_with(MAGIC)
}

/// How long the greeting may take once the connection stands: it is sent at once.
const GREETED: Duration = Duration::from_millis(200);

async fn heard(ip: IpAddr, port: u16) -> Option<[u8; 16]> {
    let mut stream = dial(SocketAddr::new(ip, port)).await.ok()?;
    let mut word = [0; 16];
    stream.read_exact(&mut word).await.ok()?;
    Some(word)
}

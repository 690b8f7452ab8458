//! Do the certificates have the names that they are asked for, and for how long are they good? Beside an agent: through the Kubernetes
//! API nobody sees them.
//!
//! Takes the settings and the servers' addresses, gives [`Seen`] and judges it. A handshake is made with whatever certificate is shown,
//! and nothing is said in it; judging is rustls' own, at this moment and at one in 30 days. Never shows a key, and reads none.

use super::agents::ago;
use super::finding::{Finding, Report, Unseen};
use crate::api::kube::Timestamp;
use crate::settings::Local;
use crate::settings::http::Endpoint;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct, RootCertStore, SignatureScheme};
use std::io::Write;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::spawn_blocking;

const NAMES: &str = "tls-names";
const EXPIRY: &str = "tls-expiry";

/// Each check's name and what it finds, as README's table has them.
pub const CHECKS: &[(&str, &str)] = &[
    (
        NAMES,
        "a server's certificate lacks the name that it is asked for: `server.<datacenter>.<domain>`, or the own agent's host",
    ),
    (EXPIRY, "a certificate that a server shows, or one in a file, has expired or does within 30 days"),
];

/// How long a certificate must be good for: a person sees to it within some weeks.
const SOON: Duration = Duration::from_secs(30 * 24 * 3600);
/// How long a handshake may take within one cluster.
const HANDSHAKE: Duration = Duration::from_millis(700);
/// The byte by which a connection to a server's port asks for TLS (agent/pool/conn.go, `RPCTLS`).
const RPC_TLS: u8 = 3;

/// A certificate that was shown, or why there was none.
#[derive(Debug, Clone)]
pub struct Shown {
    /// Whose it is.
    pub name: String,
    /// Where.
    pub address: SocketAddr,
    /// The name that it is asked for; `None`: nobody verifies it.
    pub asked_for: Option<String>,
    /// The server's own certificate.
    pub certificate: Result<CertificateDer<'static>, String>,
}

/// The certificates in a file.
#[derive(Debug, Clone)]
pub struct Filed {
    /// The file.
    pub path: PathBuf,
    /// What it says; why it could not be read.
    pub certificates: Result<Vec<CertificateDer<'static>>, String>,
}

/// All that was seen.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// What servers show.
    pub shown: Vec<Shown>,
    /// What files hold.
    pub filed: Vec<Filed>,
    /// The server whose files these are.
    pub name: String,
    /// Now, in seconds since 1970.
    pub now: u64,
}

/// What Consul says of its own TLS.
#[derive(Debug, Clone, Default)]
pub struct Told {
    /// Servers verify each other's name (`verify_server_hostname`).
    pub verifies_names: bool,
    /// The files of certificates that the own agent was given.
    pub files: Vec<PathBuf>,
}

/// Looks at what the servers show at their API and, where they verify names, at their server port; and at all files of
/// certificates that convene and the own agent were given.
pub async fn look(local: &Local, others: &[(String, IpAddr)], told: Told) -> Seen {
    let tls = &local.http.tls;
    let mut asked: Vec<(String, SocketAddr, Option<String>, bool)> = Vec::new();
    if let Endpoint::Tcp { tls: true, host, port, .. } = &local.http.own
        && let Ok(ip) = host.trim_matches(['[', ']']).parse::<IpAddr>()
    {
        let name = tls.server_name.clone().unwrap_or_else(|| ip.to_string());
        asked.push((local.node_name.clone(), SocketAddr::new(ip, *port), Some(name), false));
    }
    for (name, ip) in others {
        if local.http.peers_tls {
            asked.push((
                name.clone(),
                SocketAddr::new(*ip, local.peer.http),
                Some(local.server_tls_name.clone()),
                false,
            ));
        }
        if told.verifies_names {
            asked.push((
                name.clone(),
                SocketAddr::new(*ip, local.peer.server),
                Some(local.server_tls_name.clone()),
                true,
            ));
        }
    }
    let shaking: Vec<_> = asked
        .into_iter()
        .map(|(name, address, asked_for, rpc)| {
            // CONSUL_HTTP_SSL_VERIFY=false is about the API only.
            let asked_for = asked_for.filter(|_| rpc || !tls.unverified);
            spawn_blocking(move || Shown { name, address, asked_for, certificate: shown(address, rpc) })
        })
        .collect();
    let mut shown = Vec::new();
    for one in shaking {
        // Nobody panics or is aborted in there, which is all that could fail.
        shown.extend(one.await.ok());
    }
    let in_folder = tls.ca_path.iter().filter_map(|folder| std::fs::read_dir(folder).ok()).flatten().flatten();
    let given = tls.ca_file.iter().chain(tls.identity.iter().map(|(certificate, _)| certificate)).cloned();
    let mut files: Vec<PathBuf> = given.chain(in_folder.map(|entry| entry.path())).chain(told.files).collect();
    let again = std::mem::take(&mut files);
    again.into_iter().for_each(|file| {
        if !files.contains(&file) {
            files.push(file)
        }
    });
    let now = u64::try_from(Timestamp::now().as_second()).unwrap_or_default();
    Seen { shown, filed: files.into_iter().map(Filed::read).collect(), name: local.node_name.clone(), now }
}

// === impl Filed ===

impl Filed {
    fn read(path: PathBuf) -> Self {
        let certificates =
            CertificateDer::pem_file_iter(&path).and_then(Iterator::collect).map_err(|error| error.to_string());
        Self { path, certificates }
    }
}

/// The certificate that is shown at an address.
fn shown(address: SocketAddr, rpc: bool) -> Result<CertificateDer<'static>, String> {
    let io = |error: std::io::Error| error.to_string();
    let tls = |error: rustls::Error| error.to_string();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(tls)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Whatever(provider)))
        .with_no_client_auth();
    let mut connection = ClientConnection::new(Arc::new(config), ServerName::from(address.ip())).map_err(tls)?;
    let mut stream = TcpStream::connect_timeout(&address, HANDSHAKE).map_err(io)?;
    stream.set_read_timeout(Some(HANDSHAKE)).and_then(|()| stream.set_write_timeout(Some(HANDSHAKE))).map_err(io)?;
    if rpc {
        stream.write_all(&[RPC_TLS]).map_err(io)?;
    }
    // A server that wants a certificate of ours refuses after it has shown its own.
    let shaken = connection.complete_io(&mut stream);
    let first = connection.peer_certificates().and_then(|all| all.first()).map(|first| first.clone().into_owned());
    first.ok_or_else(|| shaken.err().map_or("it shows no certificate".to_owned(), io))
}

/// Takes any certificate, since nothing is said to whom it belongs.
#[derive(Debug)]
struct Whatever(Arc<CryptoProvider>);

impl ServerCertVerifier for Whatever {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Judges what was seen.
pub fn check(seen: &Seen, report: &mut Report) {
    for one in &seen.shown {
        let subject = format!("server {}", one.name);
        let certificate = match &one.certificate {
            Ok(certificate) => certificate,
            Err(why) => {
                let why = format!("{} at {}: {why}", one.name, one.address);
                report.unseen.push(Unseen { what: "a certificate", why });
                continue;
            }
        };
        report.looked.extend([NAMES, EXPIRY]);
        let renew = format!(
            "consul tls cert create -server -days=365    # beside the authority's key; put it into the Secret (kubectl create secret tls)\n\
             kubectl exec {} -- consul reload            # an agent shows the new one only then",
            one.name
        );
        let at = format!("the certificate that it shows at {}", one.address);
        report.findings.extend(expiry(seen.now, &subject, &at, certificate, &renew));
        if let Some(name) = &one.asked_for {
            report.findings.extend(names(&subject, &at, name, certificate, &renew));
        }
    }
    for Filed { path, certificates } in &seen.filed {
        let certificates = match certificates {
            Ok(certificates) => certificates,
            Err(why) => {
                report
                    .unseen
                    .push(Unseen { what: "a file of certificates", why: format!("{}: {why}", path.display()) });
                continue;
            }
        };
        report.looked.push(EXPIRY);
        let renew = format!(
            "openssl x509 -in {} -noout -subject -enddate    # which one; renew it, and the Secret or ConfigMap that it is from",
            path.display()
        );
        let at = format!("a certificate in {}", path.display());
        // One line a file, however many it holds.
        let subject = format!("server {}", seen.name);
        report.findings.extend(certificates.iter().find_map(|one| expiry(seen.now, &subject, &at, one, &renew)));
    }
}

fn day(time: UnixTime) -> String {
    let time = i64::try_from(time.as_secs()).ok().and_then(|seconds| Timestamp::from_second(seconds).ok());
    time.map(|time| time.to_string()).unwrap_or_default()
}

/// Whether a certificate has expired, does so soon, or is not good yet.
fn expiry(now: u64, subject: &str, at: &str, certificate: &CertificateDer<'_>, mend: &str) -> Option<Finding> {
    let parsed = ParsedCertificate::try_from(certificate).ok()?;
    let algorithms = rustls::crypto::ring::default_provider().signature_verification_algorithms.all;
    // The times are judged before the authority, which is none here.
    let judged = |second: u64| {
        let time = UnixTime::since_unix_epoch(Duration::from_secs(second));
        verify_server_cert_signed_by_trust_anchor(&parsed, &RootCertStore::empty(), &[], time, algorithms)
    };
    let expired = |result| match result {
        Err(rustls::Error::InvalidCertificate(CertificateError::ExpiredContext { not_after, .. })) => Some(not_after),
        _ => None,
    };
    let what = if let Some(end) = expired(judged(now)) {
        format!("{at} expired on {}", day(end))
    } else if let Some(end) = expired(judged(now + SOON.as_secs())) {
        let left = i64::try_from(end.as_secs().saturating_sub(now)).unwrap_or_default();
        format!("{at} expires on {}, in {}", day(end), ago(left))
    } else if let Err(rustls::Error::InvalidCertificate(CertificateError::NotValidYetContext { not_before, .. })) =
        judged(now)
    {
        format!("{at} is good from {} on only: is a clock wrong?", day(not_before))
    } else {
        return None;
    };
    let why = "after that servers refuse each other, and no client and no probe gets an answer over TLS";
    Some(Finding { check: EXPIRY, subject: subject.to_owned(), what, why: why.to_owned(), mend: mend.to_owned() })
}

fn names(subject: &str, at: &str, name: &str, certificate: &CertificateDer<'_>, mend: &str) -> Option<Finding> {
    let parsed = ParsedCertificate::try_from(certificate).ok()?;
    let wanted = ServerName::try_from(name).ok()?;
    let has = match verify_server_name(&parsed, &wanted) {
        Err(rustls::Error::InvalidCertificate(CertificateError::NotValidForNameContext { presented, .. })) => presented,
        _ => return None,
    };
    let what = format!(
        "{at} has not the name {name} (it has {})",
        if has.is_empty() { "none".to_owned() } else { has.join(", ") }
    );
    let why = "whoever verifies names takes it for somebody else: convene cannot ask it, and with verify_server_hostname no server can";
    let extra = format!(
        "{mend}\n# give consul tls cert create what it lacks: -dc, -domain, -additional-dnsname or -additional-ipaddress"
    );
    Some(Finding { check: NAMES, subject: subject.to_owned(), what, why: why.to_owned(), mend: extra })
}

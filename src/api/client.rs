//! The HTTP client beneath [`super::consul`]: its TLS, its names, its token's header, and what went wrong with a request.
//!
//! Takes the TLS settings, gives a [`Client`] that follows no redirect and asks no proxy. Reads certificates and a token's file
//! when they are used, because they may be rotated. Fails with [`ApiError`].

use super::consul::ApiError;
use crate::exit::innermost;
use crate::settings::http::{Tls, Token};
use crate::survey::dns::Dns;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::{Certificate, Client, Identity, redirect};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Resolves a name in `CONSUL_HTTP_ADDR` by our own resolver, at each request.
#[derive(Default)]
struct Names {
    /// The name that is looked up, where the one that is asked for is only that of a certificate.
    host: Option<String>,
}

impl Resolve for Names {
    fn resolve(&self, name: Name) -> Resolving {
        let name = self.host.clone().unwrap_or_else(|| name.as_str().to_owned());
        Box::pin(async move {
            let found = Dns::of_system().addresses(&name).await?;
            if found.is_empty() {
                return Err(format!("the name {name} has no address").into());
            }
            // The port is the URL's.
            let addresses: Addrs = Box::new(found.into_iter().map(|ip| SocketAddr::new(ip, 0)));
            Ok(addresses)
        })
    }
}

pub(super) fn client(tls: &Tls, over_tls: bool) -> Result<reqwest::ClientBuilder, ApiError> {
    // A second call is refused and changes nothing.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut builder = Client::builder()
        .redirect(redirect::Policy::none())
        .no_proxy()
        .pool_max_idle_per_host(0)
        .dns_resolver(Arc::new(Names::default()));
    // Without roots of its own reqwest asks the platform for them, which fails in an empty image, even for http.
    let mut roots = Vec::new();
    if over_tls {
        if let Some(file) = &tls.ca_file {
            roots.extend(certificates(file)?);
        }
        if let Some(folder) = &tls.ca_path {
            let entries = std::fs::read_dir(folder)
                .map_err(|error| ApiError::File { path: folder.clone(), reason: error.to_string() })?;
            for entry in entries.flatten().filter(|entry| entry.path().is_file()) {
                roots.extend(certificates(&entry.path())?);
            }
        }
        if let Some((cert, key)) = &tls.identity {
            let mut pem = read(cert)?;
            pem.push(b'\n');
            pem.extend(read(key)?);
            let identity = Identity::from_pem(&pem)
                .map_err(|error| ApiError::File { path: cert.clone(), reason: innermost(&error) })?;
            builder = builder.identity(identity);
        }
        builder = builder.tls_danger_accept_invalid_certs(tls.unverified);
        if roots.is_empty() && !tls.unverified {
            // The system's authorities, as Consul's CLI does it.
            return Ok(builder);
        }
    }
    Ok(builder.tls_certs_only(roots))
}

/// The client for the agent behind a name that its certificate does not have: whatever is asked for is looked for there.
pub(super) fn client_at(tls: &Tls, host: &str) -> Result<reqwest::ClientBuilder, ApiError> {
    Ok(client(tls, true)?.dns_resolver(Arc::new(Names { host: Some(host.to_owned()) })))
}

/// The client for plain HTTP: one for all agents, since each that is built costs memory (it prepares TLS all the same).
pub(super) fn plain_client() -> Result<Client, ApiError> {
    static PLAIN: OnceLock<Client> = OnceLock::new();
    match PLAIN.get() {
        Some(client) => Ok(client.clone()),
        None => {
            let made = built(client(&Tls::default(), false)?)?;
            Ok(PLAIN.get_or_init(|| made).clone())
        }
    }
}

pub(super) fn built(builder: reqwest::ClientBuilder) -> Result<Client, ApiError> {
    builder.build().map_err(|error| ApiError::Tls { reason: innermost(&error) })
}

fn read(path: &Path) -> Result<Vec<u8>, ApiError> {
    std::fs::read(path).map_err(|error| ApiError::File { path: path.to_owned(), reason: error.to_string() })
}

fn certificates(path: &Path) -> Result<Vec<Certificate>, ApiError> {
    let wrong = |reason: String| ApiError::File { path: path.to_owned(), reason };
    let found = Certificate::from_pem_bundle(&read(path)?).map_err(|error| wrong(innermost(&error)))?;
    if found.is_empty() {
        return Err(wrong("it holds no PEM certificate".to_owned()));
    }
    Ok(found)
}

pub(super) fn token_header(token: &Token) -> Result<reqwest::header::HeaderValue, ApiError> {
    let (text, path) = match token {
        Token::Given(secret) => (secret.reveal().to_owned(), PathBuf::from("CONSUL_HTTP_TOKEN")),
        Token::File(path) => (String::from_utf8_lossy(&read(path)?).into_owned(), path.clone()),
    };
    let wrong = |_| ApiError::File { path, reason: "it holds no token that fits into a header".to_owned() };
    let mut value = reqwest::header::HeaderValue::from_str(text.trim()).map_err(wrong)?;
    value.set_sensitive(true);
    Ok(value)
}

pub(super) fn failed(url: &str, waited: Duration, error: &reqwest::Error) -> ApiError {
    let url = url.to_owned();
    if error.is_timeout() {
        return ApiError::Silent { url, waited };
    }
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(next) = cause {
        if let Some(io) = next.downcast_ref::<std::io::Error>()
            && io.kind() == std::io::ErrorKind::ConnectionRefused
        {
            return ApiError::Refused { url };
        }
        cause = next.source();
    }
    ApiError::Broken { url, reason: innermost(error) }
}

pub(super) fn beginning(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body.get(..200).unwrap_or(body)).into_owned();
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let first = lines.next().unwrap_or_default();
    // Consul begins a list of errors with their number.
    let error = lines.next().filter(|_| first.ends_with("occurred:"));
    error.map_or(first, |error| error.trim_start_matches("* ")).to_owned()
}

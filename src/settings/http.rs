//! How agents are asked: Consul's own `CONSUL_HTTP_*` variables, which mean here what they mean to Consul's CLI
//! (<https://developer.hashicorp.com/consul/commands#environment-variables>).
//!
//! Takes the environment and what CMD says, gives [`Http`]. Reads no file: a token or certificate is read when it is used,
//! because it may be rotated. Never shows a token.

use super::read::{BOOLEANS, Env, SettingsError, choice, nearest};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

/// How the own agent and the others' agents are asked.
#[derive(Debug, Clone)]
pub struct Http {
    /// The own agent.
    pub own: Endpoint,
    /// For TLS to any agent.
    pub tls: Tls,
    /// Whether the others' agents are asked over TLS; as the own one, unless that was said.
    pub peers_tls: bool,
    /// Who we are to the agent.
    pub token: Option<Token>,
    /// User and password of a proxy before the agent.
    pub basic: Option<Secret>,
}

/// Where an agent's HTTP API listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// A socket in the file system.
    Unix(PathBuf),
    /// A TCP port.
    Tcp {
        /// Whether TLS is spoken.
        tls: bool,
        /// A name or an address.
        host: String,
        /// The port.
        port: u16,
        /// A path before `/v1`, without a slash at its end.
        prefix: String,
    },
}

/// Where the certificates are.
#[derive(Debug, Clone, Default)]
pub struct Tls {
    /// `CONSUL_CACERT`: the authority's certificate.
    pub ca_file: Option<PathBuf>,
    /// `CONSUL_CAPATH`: a folder of them.
    pub ca_path: Option<PathBuf>,
    /// `CONSUL_CLIENT_CERT` and `CONSUL_CLIENT_KEY`.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// `CONSUL_TLS_SERVER_NAME`: the name in the own agent's certificate.
    pub server_name: Option<String>,
    /// `CONSUL_HTTP_SSL_VERIFY=false`: do not verify. A token then goes to the own agent only.
    pub unverified: bool,
}

/// A token, or the file that holds it.
#[derive(Debug, Clone)]
pub enum Token {
    /// From the environment.
    Given(Secret),
    /// From a file, read at each use.
    File(PathBuf),
}

/// Text that no message shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

/// The port of Consul's HTTP API.
pub const HTTP_PORT: u16 = 8500;
/// The usual port of Consul's API over TLS.
pub const HTTPS_PORT: u16 = 8501;

// === impl Secret ===

impl Secret {
    /// Hides a text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself, for a request's header or to be decoded.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

// === impl Http ===

impl Http {
    /// Reads the variables. `listening` is where CMD makes the own agent listen; it counts when `CONSUL_HTTP_ADDR` is not set.
    ///
    /// # Errors
    /// [`SettingsError`]: an address that is none, an unknown scheme, a certificate without its key.
    pub fn read(env: &Env, listening: Option<Endpoint>) -> Result<Self, SettingsError> {
        let ssl = boolean(env, "CONSUL_HTTP_SSL")?.unwrap_or(false);
        let own = match env.get("CONSUL_HTTP_ADDR") {
            Some(text) => Endpoint::parse("CONSUL_HTTP_ADDR", text, ssl)?,
            None => listening.unwrap_or_else(|| {
                Endpoint::tcp(ssl, IpAddr::from([127, 0, 0, 1]), if ssl { HTTPS_PORT } else { HTTP_PORT })
            }),
        };
        let token = match (env.get("CONSUL_HTTP_TOKEN_FILE"), env.get("CONSUL_HTTP_TOKEN")) {
            (Some(file), _) => Some(Token::File(file.into())),
            (None, Some(token)) => Some(Token::Given(Secret::new(token))),
            (None, None) => None,
        };
        Ok(Self {
            peers_tls: matches!(own, Endpoint::Tcp { tls: true, .. }),
            own,
            tls: Tls::read(env)?,
            token,
            basic: env.get("CONSUL_HTTP_AUTH").map(Secret::new),
        })
    }
}

// === impl Tls ===

impl Tls {
    fn read(env: &Env) -> Result<Self, SettingsError> {
        let identity = match (env.get("CONSUL_CLIENT_CERT"), env.get("CONSUL_CLIENT_KEY")) {
            (Some(cert), Some(key)) => Some((cert.into(), key.into())),
            (None, None) => None,
            _ => {
                return Err(SettingsError::Conflict {
                    what: "only one of CONSUL_CLIENT_CERT and CONSUL_CLIENT_KEY is set".to_owned(),
                    mend: "set both or none".to_owned(),
                });
            }
        };
        Ok(Self {
            ca_file: env.get("CONSUL_CACERT").map(PathBuf::from),
            ca_path: env.get("CONSUL_CAPATH").map(PathBuf::from),
            identity,
            server_name: env.get("CONSUL_TLS_SERVER_NAME").map(str::to_owned),
            unverified: boolean(env, "CONSUL_HTTP_SSL_VERIFY")? == Some(false),
        })
    }
}

// === impl Endpoint ===

impl Endpoint {
    /// An agent at an address.
    pub fn tcp(tls: bool, ip: IpAddr, port: u16) -> Self {
        let host = if ip.is_ipv6() { format!("[{ip}]") } else { ip.to_string() };
        Self::Tcp { tls, host, port, prefix: String::new() }
    }

    /// Reads `host:port`, `http://…`, `https://…` or `unix://…`. Without a port it is the scheme's (80 or 443), as for
    /// Consul's CLI. `localhost` becomes 127.0.0.1, because an image without /etc/hosts does not know the name.
    ///
    /// # Errors
    /// [`SettingsError::Value`].
    pub fn parse(place: &str, text: &str, ssl: bool) -> Result<Self, SettingsError> {
        let wrong = |nearest: String| SettingsError::Value {
            place: place.to_owned(),
            // What stands before an @ may be a password.
            value: text.rsplit('@').next().unwrap_or_default().to_owned(),
            allowed: "HOST:PORT, http://HOST:PORT, https://HOST:PORT or unix:///PATH".to_owned(),
            nearest,
        };
        let (scheme, rest) = text.split_once("://").unwrap_or((if ssl { "https" } else { "http" }, text));
        let tls = match scheme {
            "http" => false,
            "https" => true,
            "unix" if rest.starts_with('/') => return Ok(Self::Unix(rest.into())),
            _ => return Err(wrong(nearest(scheme, ["http", "https", "unix"]))),
        };
        let (authority, prefix) = rest.find('/').and_then(|at| rest.split_at_checked(at)).unwrap_or((rest, ""));
        let (host, port) = match authority.parse::<SocketAddr>() {
            Ok(address) => return Ok(Self::tcp(tls, address.ip(), address.port()).below(prefix).checked()),
            Err(_) if authority.ends_with(']') => (authority, None),
            Err(_) => match authority.rsplit_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (authority, None),
            },
        };
        let port = match port {
            Some(port) => port.parse().ok().filter(|port| *port > 0).ok_or_else(|| wrong(String::new()))?,
            None if tls => 443,
            None => 80,
        };
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        if bare.parse::<IpAddr>().is_err() {
            super::source::dns_name(place, text, host).map_err(|_| wrong(String::new()))?;
        }
        let host = if host.eq_ignore_ascii_case("localhost") { "127.0.0.1" } else { host };
        Ok(Self::Tcp { tls, host: host.to_owned(), port, prefix: prefix.trim_end_matches('/').to_owned() }.checked())
    }

    fn below(mut self, path: &str) -> Self {
        if let Self::Tcp { prefix, .. } = &mut self {
            *prefix = path.trim_end_matches('/').to_owned();
        }
        self
    }

    /// An address that means "every address" is asked on loopback.
    fn checked(self) -> Self {
        match self {
            Self::Tcp { tls, host, port, prefix } => {
                let host = match host.as_str() {
                    "0.0.0.0" => "127.0.0.1".to_owned(),
                    "[::]" => "[::1]".to_owned(),
                    _ => host,
                };
                Self::Tcp { tls, host, port, prefix }
            }
            unix => unix,
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp { tls, host, port, prefix } => {
                write!(f, "{}://{host}:{port}{prefix}", if *tls { "https" } else { "http" })
            }
        }
    }
}

fn boolean(env: &Env, key: &str) -> Result<Option<bool>, SettingsError> {
    env.get(key).map(|text| choice(key, text, BOOLEANS)).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read<const N: usize>(pairs: [(&str, &str); N]) -> Result<Http, String> {
        Http::read(&Env::from(pairs), None).map_err(|error| error.to_string())
    }

    #[test]
    fn an_address_means_what_it_means_to_consuls_cli() {
        for (text, url) in [
            ("10.0.0.1:8500", "http://10.0.0.1:8500"),
            ("localhost:8500", "http://127.0.0.1:8500"),
            ("0.0.0.0:8500", "http://127.0.0.1:8500"),
            ("https://consul.example:8501/", "https://consul.example:8501"),
            ("http://proxy/consul/", "http://proxy:80/consul"),
            ("[fd00::1]:8500", "http://[fd00::1]:8500"),
            ("https://[fd00::1]", "https://[fd00::1]:443"),
            ("unix:///run/consul.sock", "unix:///run/consul.sock"),
        ] {
            assert_eq!(read([("CONSUL_HTTP_ADDR", text)]).unwrap().own.to_string(), url, "{text}");
        }
        assert_eq!(read([]).unwrap().own.to_string(), "http://127.0.0.1:8500");
        assert_eq!(read([("CONSUL_HTTP_SSL", "true")]).unwrap().own.to_string(), "https://127.0.0.1:8501");
        assert_eq!(
            read([("CONSUL_HTTP_SSL", "1"), ("CONSUL_HTTP_ADDR", "a:1")]).unwrap().own.to_string(),
            "https://a:1"
        );
    }

    #[test]
    fn a_wrong_address_is_refused_without_showing_a_password() {
        for text in ["tcp://a:1", "htps://a", "unix://relative", "a:0", "a:x", "two words:1", ""] {
            if text.is_empty() {
                assert!(read([("CONSUL_HTTP_ADDR", text)]).is_ok(), "an empty variable counts as none");
            } else {
                assert!(read([("CONSUL_HTTP_ADDR", text)]).unwrap_err().starts_with("CONSUL_HTTP_ADDR: "), "{text}");
            }
        }
        let error = read([("CONSUL_HTTP_ADDR", "http://me:hunter2@a b")]).unwrap_err();
        assert!(!error.contains("hunter2"), "{error}");
        assert!(
            read([("CONSUL_HTTP_ADDR", "htps://a")]).unwrap_err().contains("did you mean \"http\"")
                || read([("CONSUL_HTTP_ADDR", "htps://a")]).unwrap_err().contains("did you mean \"https\"")
        );
    }

    #[test]
    fn a_token_is_never_shown() {
        let http = read([("CONSUL_HTTP_TOKEN", "b1gs3cret"), ("CONSUL_HTTP_AUTH", "me:hunter2")]).unwrap();
        let shown = format!("{http:?}");
        assert!(!shown.contains("b1gs3cret") && !shown.contains("hunter2"), "{shown}");
        assert!(matches!(
            read([("CONSUL_HTTP_TOKEN", "x"), ("CONSUL_HTTP_TOKEN_FILE", "/t")]).unwrap().token,
            Some(Token::File(_))
        ));
    }

    #[test]
    fn a_certificate_needs_its_key() {
        assert!(read([("CONSUL_CLIENT_CERT", "/c")]).unwrap_err().contains("set both or none"));
        assert!(read([("CONSUL_HTTP_SSL_VERIFY", "no")]).unwrap_err().starts_with("CONSUL_HTTP_SSL_VERIFY: "));
    }
}

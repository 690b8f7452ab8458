//! Real Consul servers on this machine, each started by `convene run` as a Pod of a StatefulSet would be: an address of its
//! own on loopback, a data folder of its own, and a name behind a headless Service that the tests' DNS server answers.
//!
//! Ends every process that it started when it goes out of scope, and leaves nothing behind.

use super::dns::{Answer, ScriptedDns};
use super::net::{LoopbackBlock, loopback_block};
use hickory_proto::rr::RecordType;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::ffi::OsString;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Consul's tuning, the user's own: quick elections, and a leave without a WAN pool and without a long drain.
pub const TUNING: &str =
    "performance { raft_multiplier = 1 leave_drain_time = \"1s\" } ports { serf_wan = -1 } disable_update_check = true";

/// A guard against hanging, no measure.
const HANG: Duration = Duration::from_secs(60);

/// How long an agent may take for an answer.
const ANSWER: Duration = Duration::from_secs(10);

/// Servers of one cluster.
pub struct Cluster {
    program: PathBuf,
    consul: PathBuf,
    block: LoopbackBlock,
    folder: TempDir,
    dns: ScriptedDns,
    running: Vec<Option<Child>>,
    size: u8,
    token: Option<&'static str>,
    tls: bool,
    /// The test's own questions go to a socket in the file system, since no agent has a plain port.
    sockets: bool,
    more: Vec<OsString>,
}

/// The token of [`Cluster::denying`]: it may all.
pub const MANAGEMENT: &str = "5f2f7a3e-1e0b-4c1c-9d53-0b9f5d1c7a11";

// === impl Cluster ===

impl Cluster {
    /// A cluster of `size` servers, of which none runs yet and no name is known yet.
    pub fn new(program: impl Into<PathBuf>, consul: impl Into<PathBuf>, size: u8) -> Self {
        Self::at(loopback_block(), program, consul, size)
    }

    /// The same at given addresses.
    pub fn at(block: LoopbackBlock, program: impl Into<PathBuf>, consul: impl Into<PathBuf>, size: u8) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for ordinal in 0..size {
            std::fs::create_dir(folder.path().join(ordinal.to_string())).unwrap();
        }
        std::fs::write(folder.path().join("tuning.hcl"), TUNING).unwrap();
        Self {
            program: program.into(),
            consul: consul.into(),
            block,
            folder,
            dns: ScriptedDns::zone(),
            running: (0..size).map(|_| None).collect(),
            size,
            token: None,
            tls: false,
            sockets: false,
            more: Vec::new(),
        }
    }

    /// With ACLs that deny by default. Nobody has a token but the test's own questions, which have [`MANAGEMENT`].
    pub fn denying(mut self) -> Self {
        let tokens = format!("tokens {{ initial_management = {MANAGEMENT:?} }}");
        self.more.push(format!("-hcl=acl {{ enabled = true default_policy = \"deny\" {tokens} }}").into());
        self.token = Some(MANAGEMENT);
        self
    }

    /// With TLS between all of them, and for `convene` too, which has a client's certificate. The test's own questions still go to
    /// the plain port.
    pub fn over_tls(mut self) -> Self {
        for words in [&["ca", "create"][..], &["cert", "create", "-server"], &["cert", "create", "-client"]] {
            let made = Command::new(&self.consul).arg("tls").args(words).current_dir(self.folder()).output().unwrap();
            assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        }
        let [authority, certificate, key] =
            ["consul-agent-ca.pem", "dc1-server-consul-0.pem", "dc1-server-consul-0-key.pem"]
                .map(|name| self.folder().join(name));
        let files = format!("ca_file = {authority:?} cert_file = {certificate:?} key_file = {key:?}");
        let verified = "verify_incoming = true verify_outgoing = true";
        self.tls = true;
        self.with("-https-port=8501").with(&format!("-hcl=tls {{ defaults {{ {files} {verified} }} }}"))
    }

    /// With TLS and no plain port at all.
    pub fn only_over_tls(self) -> Self {
        let mut cluster = self.over_tls();
        cluster.sockets = true;
        cluster
    }

    /// Whether ACLs deny by default.
    pub fn is_denying(&self) -> bool {
        self.token.is_some()
    }

    fn socket(&self, ordinal: u8) -> PathBuf {
        self.folder.path().join(format!("{ordinal}.sock"))
    }

    /// With one more word for every agent.
    pub fn with(mut self, word: &str) -> Self {
        self.more.push(word.into());
        self
    }

    /// With this tuning instead of [`TUNING`].
    pub fn tuned(self, hcl: &str) -> Self {
        std::fs::write(self.folder.path().join("tuning.hcl"), hcl).unwrap();
        self
    }

    /// With room for so many clients beside the servers: the ordinals after theirs.
    pub fn and_clients(mut self, count: u8) -> Self {
        for _ in 0..count {
            std::fs::create_dir(self.folder.path().join(self.running.len().to_string())).unwrap();
            self.running.push(None);
        }
        self
    }

    /// The server's address.
    pub fn ip(&self, ordinal: u8) -> IpAddr {
        self.block.ip(ordinal + 2).into()
    }

    /// The server's data folder.
    pub fn data(&self, ordinal: u8) -> PathBuf {
        self.folder.path().join(ordinal.to_string())
    }

    /// The DNS server.
    pub fn dns(&self) -> &ScriptedDns {
        &self.dns
    }

    /// The server's name behind the headless Service.
    pub fn host(&self, ordinal: u8) -> String {
        format!("consul-server-{ordinal}.consul-server.demo.svc.cluster.local.")
    }

    /// The headless Service's name.
    pub fn service(&self) -> &'static str {
        "consul-server.demo.svc.cluster.local."
    }

    /// Makes a server's name known, by itself and among those of the Service.
    pub fn publish(&self, ordinal: u8) {
        self.dns.set(&self.host(ordinal), RecordType::A, Answer::Addresses(vec![self.ip(ordinal)]));
        self.dns.set(&self.host(ordinal), RecordType::AAAA, Answer::NoData);
        let all = (0..self.size).filter(|one| *one <= ordinal).map(|one| self.ip(one)).collect();
        self.dns.set(self.service(), RecordType::A, Answer::Addresses(all));
        self.dns.set(self.service(), RecordType::AAAA, Answer::NoData);
    }

    /// Makes all names known.
    pub fn publish_all(&self) {
        (0..self.size).for_each(|ordinal| self.publish(ordinal));
    }

    /// A call of `convene` as this server's Pod would make it.
    pub fn convene(&self, ordinal: u8, words: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(words).env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).stdin(Stdio::null());
        command
            .env("POD_NAME", format!("consul-server-{ordinal}"))
            .env("POD_NAMESPACE", "demo")
            .env("POD_IP", self.ip(ordinal).to_string());
        command.env("CONVENE_DATA_DIR", self.data(ordinal)).env("CONVENE_LOG_FORMAT", "plain");
        command.env("CONSUL_HTTP_ADDR", format!("{}:8500", self.ip(ordinal)));
        if self.tls {
            let file = |name: &str| self.folder().join(name);
            command.env("CONSUL_HTTP_ADDR", format!("https://{}:8501", self.ip(ordinal)));
            command
                .env("CONSUL_CACERT", file("consul-agent-ca.pem"))
                .env("CONSUL_TLS_SERVER_NAME", "server.dc1.consul");
            command.env("CONSUL_CLIENT_CERT", file("dc1-client-consul-0.pem"));
            command.env("CONSUL_CLIENT_KEY", file("dc1-client-consul-0-key.pem"));
        }
        command
    }

    /// The same, for a command that looks for the others.
    pub fn surveying(&self, ordinal: u8, words: &[&str]) -> Command {
        let mut command = self.convene(ordinal, words);
        command.env("CONVENE_NAMESERVER", self.dns.addr().to_string()).env("CONVENE_RESOLV_CONF", "/does/not/exist");
        command
    }

    /// Consul's own command line for this server.
    pub fn agent(&self, ordinal: u8) -> Vec<OsString> {
        let ip = self.ip(ordinal);
        let mut words: Vec<OsString> = vec![self.consul.clone().into(), "agent".into(), "-server".into()];
        // A file, as people have it: what CMD itself says no reload changes.
        let tuning = format!("-config-file={}", self.folder.path().join("tuning.hcl").display());
        words.extend([format!("-bind={ip}"), format!("-client={ip}"), tuning].map(OsString::from));
        words.push(format!("-data-dir={}", self.data(ordinal).display()).into());
        words.extend(self.more.iter().cloned());
        if self.sockets {
            words.push(format!("-hcl=addresses {{ http = \"unix://{}\" }}", self.socket(ordinal).display()).into());
        }
        words
    }

    /// Starts a server with words for `convene run` before its command line.
    pub fn start(&mut self, ordinal: u8, words: &[&str]) {
        let mut command = self.surveying(ordinal, &["run"]);
        let size = format!("--expect={}", self.size);
        command.arg(size).args(words).arg("--").args(self.agent(ordinal));
        self.spawn(ordinal, command);
    }

    /// Starts a server without convene, told all that convene would have found.
    pub fn start_plain(&mut self, ordinal: u8) {
        let mut command = Command::new(&self.consul);
        command.args(&self.agent(ordinal)[1..]).stdin(Stdio::null());
        command.args([format!("-bootstrap-expect={}", self.size), format!("-node=consul-server-{ordinal}")]);
        for other in (0..self.size).filter(|other| *other != ordinal) {
            command.arg(format!("-retry-join={}", self.ip(other)));
        }
        self.spawn(ordinal, command);
    }

    /// Starts a client in a Pod of its own, which finds the servers by their headless Service.
    pub fn start_client(&mut self, ordinal: u8, words: &[&str]) {
        let mut command = self.surveying(ordinal, &["run"]);
        command.env("POD_NAME", Self::client(ordinal)).env("NODE_NAME", "machine-1");
        command.arg(format!("--discover=dns:{}", self.service())).args(words).arg("--");
        command.args(self.agent(ordinal).into_iter().filter(|word| word != "-server"));
        self.spawn(ordinal, command);
    }

    /// A client's name in Consul.
    pub fn client(ordinal: u8) -> String {
        format!("app-{ordinal}")
    }

    /// Starts all servers.
    pub fn start_all(&mut self, words: &[&str]) {
        (0..self.size).for_each(|ordinal| self.start(ordinal, words));
    }

    /// Starts a call as this server's process; what it writes goes into its log.
    pub fn spawn(&mut self, ordinal: u8, mut command: Command) {
        let log = std::fs::File::options().create(true).append(true).open(self.log_file(ordinal)).unwrap();
        command.stdout(log.try_clone().unwrap()).stderr(log);
        let child =
            command.spawn().unwrap_or_else(|error| panic!("could not start {}: {error}", self.program.display()));
        self.running[usize::from(ordinal)] = Some(child);
    }

    fn log_file(&self, ordinal: u8) -> PathBuf {
        self.folder.path().join(format!("{ordinal}.log"))
    }

    /// What the server's process has written.
    pub fn log(&self, ordinal: u8) -> String {
        std::fs::read_to_string(self.log_file(ordinal)).unwrap_or_default()
    }

    /// The process that was started for this server.
    pub fn pid(&self, ordinal: u8) -> Pid {
        pid(self.running[usize::from(ordinal)].as_ref().unwrap())
    }

    /// Signals it.
    pub fn signal(&self, ordinal: u8, signal: Signal) {
        kill(self.pid(ordinal), signal).unwrap();
    }

    /// Kills it and its agent, as a lost machine would.
    pub fn kill(&mut self, ordinal: u8) {
        let agents = children(self.pid(ordinal));
        for agent in &agents {
            let _ = kill(*agent, Signal::SIGKILL);
        }
        let mut child = self.running[usize::from(ordinal)].take().unwrap();
        let _ = child.kill();
        child.wait().unwrap();
        // Nobody here is its parent, and until its end it has its locks.
        self.wait_for("the agent's end", || agents.iter().all(has_ended));
    }

    /// Kills it, and everything on its disk is gone.
    pub fn wipe(&mut self, ordinal: u8) {
        self.kill(ordinal);
        std::fs::remove_dir_all(self.data(ordinal)).unwrap();
        std::fs::create_dir(self.data(ordinal)).unwrap();
    }

    /// Waits for its end.
    pub fn wait(&mut self, ordinal: u8) -> ExitStatus {
        let mut child = self.running[usize::from(ordinal)].take().unwrap();
        wait_until(&format!("the end of server {ordinal}"), || child.try_wait().unwrap(), || self.log(ordinal))
    }

    /// GETs from a server's agent; `None` when nothing or an error is answered.
    pub fn get(&self, ordinal: u8, path: &str) -> Option<Value> {
        let (status, body) = self.request(ordinal, "GET", path, "")?;
        (status == 200).then(|| serde_json::from_str(&body).ok()).flatten()
    }

    /// PUTs to a server's agent; the status.
    pub fn put(&self, ordinal: u8, path: &str, body: &str) -> Option<u16> {
        self.request(ordinal, "PUT", path, body).map(|(status, _)| status)
    }

    /// DELETEs at a server's agent; the status.
    pub fn delete(&self, ordinal: u8, path: &str) -> Option<u16> {
        self.request(ordinal, "DELETE", path, "").map(|(status, _)| status)
    }

    /// Asks a server's agent for anything: the status and the answer; `None` when nobody answers.
    pub fn request(&self, ordinal: u8, method: &str, path: &str, body: &str) -> Option<(u16, String)> {
        if self.sockets {
            let stream = UnixStream::connect(self.socket(ordinal)).ok()?;
            stream.set_read_timeout(Some(ANSWER)).ok()?;
            return exchange(stream, &format!("Host: consul\r\n{}", header(self.token)), method, path, body);
        }
        request_as(self.token, SocketAddr::new(self.ip(ordinal), 8500), method, path, body)
    }

    /// Makes a policy and a token for it, as a person would once there is a cluster. It is over when every server that answers
    /// knows the token: each of them looks it up in its own copy of the state, which a follower gets a moment later.
    pub fn grant(&self, token: &str, name: &str, rules: &str) {
        let leader = (0..self.size).find_map(|ordinal| self.leading(ordinal)).unwrap();
        let policy = json!({"Name": name, "Rules": rules}).to_string();
        assert_eq!(self.put(leader, "/v1/acl/policy", &policy), Some(200), "{name}: {rules}");
        let granted = json!({"SecretID": token, "Policies": [{"Name": name}]}).to_string();
        assert_eq!(self.put(leader, "/v1/acl/token", &granted), Some(200), "{name}");
        let knows = |(_, listed): (u16, String)| listed.contains(token);
        let known = |ordinal| self.request(ordinal, "GET", "/v1/acl/tokens?stale", "").is_none_or(knows);
        self.wait_for(&format!("the token of {name}"), || (0..self.size).all(known));
    }

    /// The leader that a server knows.
    pub fn leader(&self, ordinal: u8) -> Option<IpAddr> {
        self.get(ordinal, "/v1/status/leader")?.as_str()?.parse::<SocketAddr>().ok().map(|leader| leader.ip())
    }

    /// The ordinal of that leader.
    pub fn leading(&self, asked: u8) -> Option<u8> {
        let leader = self.leader(asked)?;
        (0..self.size).find(|ordinal| self.ip(*ordinal) == leader)
    }

    /// The raft peers that a server knows, sorted.
    pub fn peers(&self, ordinal: u8) -> Vec<IpAddr> {
        let listed = self.get(ordinal, "/v1/status/peers").unwrap_or_default();
        let mut peers: Vec<IpAddr> = listed
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|peer| peer.as_str()?.parse::<SocketAddr>().ok())
            .map(|peer| peer.ip())
            .collect();
        peers.sort();
        peers
    }

    /// How many voters the leader's configuration has, as a server tells it.
    pub fn voters(&self, ordinal: u8) -> usize {
        let configuration = self.get(ordinal, "/v1/operator/raft/configuration").unwrap_or_default();
        configuration["Servers"].as_array().into_iter().flatten().filter(|server| server["Voter"] == true).count()
    }

    /// Serf's status of a server, as another server sees it: 1 alive, 3 left, 4 failed.
    pub fn member(&self, asked: u8, of: u8) -> Option<u64> {
        self.member_named(asked, &format!("consul-server-{of}"))
    }

    /// The same of any member.
    pub fn member_named(&self, asked: u8, name: &str) -> Option<u64> {
        let members = self.get(asked, "/v1/agent/members")?;
        members.as_array()?.iter().find(|member| member["Name"] == name).and_then(|member| member["Status"].as_u64())
    }

    /// Waits until every server of `of` knows a leader and as many voters as there are in `of`.
    pub fn wait_formed(&self, of: &[u8]) {
        let formed = |ordinal: &u8| self.leader(*ordinal).is_some() && self.voters(*ordinal) == of.len();
        self.wait_for(&format!("{} voters", of.len()), || of.iter().all(formed));
    }

    /// Waits for a condition; the servers' logs are told when it does not come.
    pub fn wait_for(&self, what: &str, done: impl Fn() -> bool) {
        let logs =
            || (0..self.running.len() as u8).map(|one| format!("--- {one}\n{}", self.log(one))).collect::<String>();
        wait_until(what, || done().then_some(()), logs);
    }

    /// The folder of this cluster.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let running: Vec<Child> = self.running.iter_mut().filter_map(Option::take).collect();
        for mut child in running {
            for agent in children(pid(&child)) {
                let _ = kill(agent, Signal::SIGKILL);
            }
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(child.id().try_into().unwrap())
}

fn children(of: Pid) -> Vec<Pid> {
    let listed = std::fs::read_to_string(format!("/proc/{of}/task/{of}/children")).unwrap_or_default();
    listed.split_whitespace().map(|pid| Pid::from_raw(pid.parse().unwrap())).collect()
}

/// Whether a process is over, its files and locks too; one that nobody has waited for yet stays as a zombie. Its first thread
/// is one as soon as that has ended: what is open belongs to all of its threads, and lasts until the last one's end.
fn has_ended(process: &Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    let threads = std::fs::read_dir(format!("/proc/{process}/task")).map_or(0, Iterator::count);
    threads <= 1 && stat.rsplit_once(") ").is_none_or(|(_, state)| state.starts_with(['Z', 'X']))
}

/// Polls for something, and panics with `told` when it does not come.
pub fn wait_until<T>(what: &str, mut done: impl FnMut() -> Option<T>, told: impl Fn() -> String) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = done() {
            return found;
        }
        assert!(begun.elapsed() < HANG, "waited for {what}\n{}", told());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// One request over HTTP/1.0; `None` when nobody answers.
pub fn request(addr: SocketAddr, method: &str, path: &str, body: &str) -> Option<(u16, String)> {
    request_as(None, addr, method, path, body)
}

fn request_as(token: Option<&str>, addr: SocketAddr, method: &str, path: &str, body: &str) -> Option<(u16, String)> {
    let stream = TcpStream::connect_timeout(&addr, Duration::from_secs(1)).ok()?;
    stream.set_read_timeout(Some(ANSWER)).ok()?;
    exchange(stream, &format!("Host: {addr}\r\n{}", header(token)), method, path, body)
}

fn header(token: Option<&str>) -> String {
    token.map(|token| format!("X-Consul-Token: {token}\r\n")).unwrap_or_default()
}

/// The same over a connection that stands; each header ends its line.
pub fn exchange(
    mut stream: impl Read + Write,
    headers: &str,
    method: &str,
    path: &str,
    body: &str,
) -> Option<(u16, String)> {
    write!(stream, "{method} {path} HTTP/1.0\r\n{headers}Content-Length: {}\r\n\r\n{body}", body.len()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let status = answer.split(' ').nth(1)?.parse().ok()?;
    Some((status, answer.split_once("\r\n\r\n")?.1.to_owned()))
}

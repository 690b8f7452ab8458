//! Is convene exactly as strict about a gossip key as Consul, does a wrong one end the start with its reason, and is a keyring on
//! the volume that differs from the given key named? With real Consul.

// A panic is how a test fails; clippy's own exception for tests covers `#[test]` functions only.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "support/mod.rs"]
mod support;

use convene::settings::gossip::GossipKey;
use nix::sys::signal::Signal;
use serde_json::json;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use support::cluster::{Cluster, wait_until};
use support::net::loopback_block;
use support::program::{Convene, Ended};
use support::skip::needs_consul;

const KEY: &str = "+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/s=";
const OTHER: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
const TWICE: &str = "Ky92NysvdjcrL3Y3Ky92NysvdjcrL3Y3Ky92NysvdjcrL3Y3Ky92Nysvcz0=";

/// A Secret with Consul's configuration, mounted as kubelet does it: by a link to a link.
fn mounted(folder: &Path, key: &str) -> PathBuf {
    let secret = folder.join("..2026_11_21");
    fs::create_dir_all(&secret).unwrap();
    fs::write(secret.join("gossip.json"), json!({"encrypt": key}).to_string()).unwrap();
    let (data, file) = (folder.join("..data"), folder.join("gossip.json"));
    if !file.exists() {
        symlink("..2026_11_21", data).unwrap();
        symlink("..data/gossip.json", &file).unwrap();
    }
    file
}

/// Whether a real agent starts with this configuration, which it then is ended with, or what it said last.
fn consul_takes(consul: &Path, file: &Path) -> Result<(), String> {
    let (block, data) = (loopback_block(), tempfile::tempdir().unwrap());
    let log = data.path().join("log");
    let mut agent = Command::new(consul);
    agent
        .args(["agent", "-node=n", "-log-level=error"])
        .arg("-data-dir")
        .arg(data.path())
        .arg("-config-file")
        .arg(file);
    agent.args([format!("-bind={}", block.ip(2)), format!("-client={}", block.ip(2))]);
    let out = fs::File::create(&log).unwrap();
    let mut agent = agent.stdin(Stdio::null()).stdout(out.try_clone().unwrap()).stderr(out).spawn().unwrap();
    let said = || fs::read_to_string(&log).unwrap();
    let answers = || std::net::TcpStream::connect((block.ip(2), 8500)).is_ok();
    let taken = wait_until(
        "the agent's start or end",
        || {
            let ended = agent.try_wait().unwrap().is_some();
            if ended { Some(false) } else { answers().then_some(true) }
        },
        said,
    );
    let _ = agent.kill();
    agent.wait().unwrap();
    if taken { Ok(()) } else { Err(said().trim().lines().last().unwrap_or_default().to_owned()) }
}

#[test]
fn a_gossip_key_is_refused_exactly_when_consul_refuses_it() {
    let Some(consul) = needs_consul("a_gossip_key_is_refused_exactly_when_consul_refuses_it") else { return };
    let folder = tempfile::tempdir().unwrap();
    for (key, taken) in [
        (KEY, true),
        ("+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7", true),
        ("+/v7+/v7+/v7+/v7+/v7+w==", true),
        // Bits that are left over.
        ("+/v7+/v7+/v7+/v7+/v7+/==", true),
        ("+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/s=\n", true),
        ("\r\n+/v7+/v7+/v7+/v7+/v7+/v7\n+/v7+/v7+/v7+/v7+/s=", true),
        // Hexadecimal digits, and a short key that was encoded twice: both are base64 of 24 bytes.
        ("fbfbfbfbfbfbfbfbfbfbfbfbfbfbfbfb", true),
        ("Ky92NysvdjcrL3Y3Ky92Nysvdjcrdz09", true),
        (TWICE, false),
        ("Ky92NysvdjcrL3Y3Ky92NysvdjcrL3Y3Ky92NysvdjcrL3Y3Ky92Nysvcz0K", false),
        (" +/v7+/v7+/v7+/v7+/v7+w==", false),
        ("+/v7+/v7+/v7+/v7+/v7+w== ", false),
        ("+/v7+/v7+/v7+/v7+/v7+w==\t", false),
        ("\"+/v7+/v7+/v7+/v7+/v7+w==\"", false),
        ("+/v7+/v7+/v7+/v7+/v7+w", false),
        ("+/v7+/v7+/v7+/v7+/v7+w=", false),
        ("-_v7-_v7-_v7-_v7-_v7-w==", false),
        ("fbfbfbfbfbfbfbfbfbfbfbfbfbfbfbfbfbfbfbfbfbfbfbfbfbfbfbfbfbfbfbfb", false),
        ("$(GOSSIP_KEY)", false),
        ("c2VjcmV0", false),
        ("====", false),
        ("\n", false),
    ] {
        let file = mounted(folder.path(), key);
        let ours =
            GossipKey::in_file("--gossip-key-file", file.to_str().unwrap()).and_then(|key| key.of_right_length());
        let theirs = consul_takes(&consul, &file);
        assert_eq!((ours.is_ok(), theirs.is_ok()), (taken, taken), "{key:?}: {ours:?}, {theirs:?}");
    }
    // As a template makes it of a Secret that was written by `echo`.
    let file = folder.path().join("raw.json");
    fs::write(&file, format!("{{\"encrypt\": \"{KEY}\n\"}}")).unwrap();
    let ours = GossipKey::in_file("--gossip-key-file", file.to_str().unwrap()).unwrap_err().to_string();
    assert!(ours.contains("line 1, as JSON: a string has a line end in it"), "{ours}");
    let theirs = consul_takes(&consul, &file).unwrap_err();
    assert!(theirs.contains("invalid character"), "{theirs}");
}

#[test]
fn a_wrong_gossip_key_ends_the_start_with_its_reason_in_the_termination_log() {
    let folder = tempfile::tempdir().unwrap();
    let secret = mounted(folder.path(), TWICE);
    let (data, last_words) = (folder.path().join("data"), folder.path().join("termination-log"));
    fs::create_dir(&data).unwrap();
    let start = |words: &[&str]| {
        fs::write(&last_words, "").unwrap();
        let common = ["--role=server", "--expect=1", "--discover=static:127.0.0.1", "--advertise=127.0.0.1"];
        let call = Convene::new(words.iter().take(1).chain(&common).chain(&words[1..]));
        call.env("CONVENE_TERMINATION_LOG", &last_words).env("CONVENE_DATA_DIR", &data).run()
    };
    let ends = |ended: Ended, place: &str, mistake: &str| {
        let line = format!("{place} is no gossip key, which is base64 of 16, 24 or 32 bytes: {mistake}");
        ended.ends(64, &[&line]);
        assert!(fs::read_to_string(&last_words).unwrap().contains(&line));
        assert!(!ended.stderr.contains(&TWICE[..8]) && !ended.stderr.contains(&KEY[..8]), "{}", ended.stderr);
        assert!(!data.join("convene/agent.json").exists());
    };
    let (file, twice) = (secret.display(), "it was encoded twice: give the key as `consul keygen` prints it");
    let in_file = format!("encrypt in {file}");
    let flag = format!("--gossip-key-file={file}");
    ends(start(&["init", &flag]), &in_file, twice);
    let config = format!("-config-file={file}");
    ends(start(&["run", "--", "consul", "agent", "-server", "-client=0.0.0.0", &config]), &in_file, twice);
    let config = format!("-config-dir={}", folder.path().display());
    ends(start(&["run", "--", "consul", "agent", "-server", "-client=0.0.0.0", &config]), &in_file, twice);
    let key = format!("-encrypt={KEY} ");
    ends(start(&["run", "--", "consul", "agent", "-server", "-client=0.0.0.0", &key]), "-encrypt", "there is a space");
    let alone = folder.path().join("alone");
    fs::write(&alone, &KEY[1..]).unwrap();
    let flag = format!("--gossip-key-file={}", alone.display());
    ends(start(&["init", &flag]), &alone.display().to_string(), "it is not base64");
}

/// One server whose gossip key comes from a Secret.
struct Server {
    cluster: Cluster,
    secret: PathBuf,
    read: usize,
}

impl Server {
    fn formed(test: &str) -> Option<Self> {
        let cluster = Cluster::new(env!("CARGO_BIN_EXE_convene"), needs_consul(test)?, 1);
        let secret = cluster.folder().join("secret");
        fs::create_dir(&secret).unwrap();
        let file = mounted(&secret, KEY);
        let cluster = cluster.with(&format!("-config-file={}", file.display()));
        cluster.publish_all();
        let mut server = Self { cluster, secret, read: 0 };
        server.start();
        Some(server)
    }

    /// Starts it, and gives what it and its agent said until there was a leader.
    fn start(&mut self) -> String {
        self.cluster.start(0, &[]);
        self.cluster.wait_formed(&[0]);
        self.cluster.log(0).split_off(std::mem::replace(&mut self.read, self.cluster.log(0).len()))
    }

    fn stop(&mut self) {
        self.cluster.signal(0, Signal::SIGTERM);
        self.cluster.wait(0);
        self.read = self.cluster.log(0).len();
    }

    fn restart(&mut self, key: &str) -> String {
        self.stop();
        mounted(&self.secret, key);
        self.start()
    }

    fn keyring(&self, method: &str, key: &str) {
        let answer = self.cluster.request(0, method, "/v1/operator/keyring", &json!({"Key": key}).to_string());
        assert_eq!(answer.map(|(status, _)| status), Some(200), "{method}");
    }
}

const OURS: &str = "the gossip key of encrypt in ";
const THEIRS: &str = "keyring doesn't include key provided with -encrypt, using keyring";

#[test]
fn a_keyring_on_the_volume_that_differs_from_the_given_key_is_named() {
    let Some(mut server) = Server::formed("a_keyring_on_the_volume_that_differs_from_the_given_key_is_named") else {
        return;
    };
    assert!(!server.restart(KEY).contains(OURS), "the keyring holds what was given");
    server.keyring("POST", OTHER);
    server.keyring("PUT", OTHER);
    let log = server.restart(KEY);
    assert!(log.contains(" is known to this agent, but it sends by another one") && !log.contains(THEIRS), "{log}");
    server.keyring("DELETE", KEY);
    let keyring = server.cluster.data(0).join("serf/local.keyring");
    let ignored = format!(" is not in {}, and Consul uses the keys of that file only", keyring.display());
    let log = server.restart(KEY);
    assert!(log.contains(&ignored) && log.contains(THEIRS), "{log}");
    assert!(!server.restart(OTHER).contains(OURS), "the mend helps");
    // Consul does not look at the length of a key that it does not use.
    let log = server.restart("c2VjcmV0");
    assert!(log.contains(&ignored) && log.contains(THEIRS), "{log}");
    // The other mend: without its keyring Consul takes the given key.
    server.stop();
    fs::rename(server.cluster.data(0).join("serf"), server.cluster.folder().join("aside")).unwrap();
    mounted(&server.secret, KEY);
    assert!(!server.start().contains(OURS));
    assert!(fs::read_to_string(&keyring).unwrap().contains(KEY));
    assert!(!server.cluster.log(0).contains(&KEY[..8]) && !server.cluster.log(0).contains(&OTHER[..8]));
}

#[test]
fn who_keeps_no_keyring_uses_the_given_key_whatever_is_on_the_volume() {
    let test = "who_keeps_no_keyring_uses_the_given_key_whatever_is_on_the_volume";
    let Some(mut server) = Server::formed(test) else { return };
    server.cluster = server.cluster.with("-disable-keyring-file");
    assert!(!server.restart(OTHER).contains(OURS));
    let keys = server.cluster.get(0, "/v1/operator/keyring").unwrap();
    assert!(keys[0]["PrimaryKeys"].to_string().contains(OTHER), "{keys}");
}

#[test]
fn a_keyring_that_nobody_can_read_is_named_as_what_consul_refuses() {
    let Some(mut server) = Server::formed("a_keyring_that_nobody_can_read_is_named_as_what_consul_refuses") else {
        return;
    };
    let keyring = server.cluster.data(0).join("serf/local.keyring");
    for (text, why) in [("[\"s3cret\"", "it is not a JSON list of texts"), ("[]", "it holds no key")] {
        server.stop();
        fs::write(&keyring, text).unwrap();
        server.cluster.start(0, &[]);
        assert_eq!(server.cluster.wait(0).code(), Some(1), "Consul refuses it");
        let log = server.cluster.log(0);
        assert!(log.contains(&format!("could not read {}: {why}; Consul will refuse it", keyring.display())), "{log}");
        fs::remove_file(&keyring).unwrap();
        server.start();
    }
}

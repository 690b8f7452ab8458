//! Is Consul looked for where it should be, in that order, and is a download kept only when it is the right one? The
//! archive is a server on loopback; what is "Consul" here is a file with a line of text.

use std::fs;
use std::io::{Cursor, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};
use tempfile::TempDir;
use zip::write::SimpleFileOptions;

use crate::support::consul::{Search, find, on_path};
use crate::support::http::{Call, Reply, ScriptedHttp};
use crate::support::skip;

const SUMS: &str = "/consul/9.9.9/consul_9.9.9_SHA256SUMS";
const ZIP: &str = "/consul/9.9.9/consul_9.9.9_linux_amd64.zip";
const FILE: &str = "consul_9.9.9_linux_amd64.zip";

/// A machine without any Consul: each test adds those that it is about.
struct Machine {
    root: TempDir,
    search: Search,
}

impl Machine {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let search = Search {
            consul: None,
            path: root.path().join("bin").into_os_string(),
            cache: Some(root.path().join("cache")),
            archive: String::new(),
            version: "9.9.9".to_owned(),
            arch: Some("amd64"),
        };
        Self { root, search }
    }

    /// One with an archive and with the real curl; none, and noted, where there is no curl.
    fn with_archive(test: &str) -> Option<(Self, ScriptedHttp)> {
        if !skip::needs_program(test, "curl") {
            return None;
        }
        let (mut machine, archive) = (Self::new(), ScriptedHttp::start().in_order());
        let curl = on_path(&std::env::var_os("PATH").unwrap(), "curl").unwrap();
        fs::create_dir(machine.root.path().join("bin")).unwrap();
        std::os::unix::fs::symlink(curl, machine.root.path().join("bin/curl")).unwrap();
        machine.search.archive = archive.url();
        Some((machine, archive))
    }

    fn add(&self, path: &str) -> PathBuf {
        let path = self.root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "a Consul").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    fn found(&self) -> PathBuf {
        self.search.find().unwrap()
    }

    /// The sentence of a search without success; nothing may lie in the cache then.
    fn refused(&self) -> String {
        let refused = self.search.find().unwrap_err();
        let folder = self.root.path().join("cache/convene");
        let left: Vec<_> = fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path()).collect();
        assert!(left.is_empty(), "{left:?} was left behind: {refused}");
        assert!(refused.contains("$CONSUL"), "{refused}");
        refused
    }
}

fn zipped(entry: &str) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for (name, content) in [("LICENSE.txt", "a license"), (entry, "a downloaded Consul")] {
        zip.start_file(name, SimpleFileOptions::default()).unwrap();
        zip.write_all(content.as_bytes()).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

fn sums(file: &str, content: &[u8]) -> Reply {
    let hex: String = Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect();
    let other = "0".repeat(64);
    Reply::Bytes(format!("{other}  consul_9.9.9_linux_arm.zip\n{hex}  {file}\n").into_bytes())
}

// === the order ===

#[test]
fn the_variable_comes_before_everything() {
    let mut machine = Machine::new();
    let mine = machine.add("mine/consul-1.15");
    machine.add("bin/consul");
    machine.add("cache/convene/consul-9.9.9/consul");
    machine.search.consul = Some(mine.clone().into_os_string());
    assert_eq!(machine.found(), mine);
}

#[test]
fn a_variable_that_names_no_executable_is_refused_although_others_are_there() {
    let mut machine = Machine::new();
    machine.add("bin/consul");
    let text = machine.add("mine/text");
    fs::set_permissions(&text, fs::Permissions::from_mode(0o644)).unwrap();
    for wrong in [text, machine.root.path().join("absent"), machine.root.path().to_owned()] {
        machine.search.consul = Some(wrong.clone().into_os_string());
        let refused = machine.refused();
        assert!(refused.contains(wrong.to_str().unwrap()) && refused.contains("no executable file"), "{refused}");
    }
}

#[test]
fn path_comes_before_the_cache() {
    let machine = Machine::new();
    let consul = machine.add("bin/consul");
    machine.add("cache/convene/consul-9.9.9/consul");
    assert_eq!(machine.found(), consul);
}

#[test]
fn a_file_on_path_that_cannot_be_run_is_passed_over() {
    let machine = Machine::new();
    let text = machine.add("bin/consul");
    fs::set_permissions(text, fs::Permissions::from_mode(0o644)).unwrap();
    let kept = machine.add("cache/convene/consul-9.9.9/consul");
    assert_eq!(machine.found(), kept);
}

#[test]
fn an_earlier_download_comes_before_a_build() {
    let machine = Machine::new();
    let kept = machine.add("cache/convene/consul-9.9.9/consul");
    machine.add("cache/convene-cluster/bin/consul");
    assert_eq!(machine.found(), kept);
}

#[test]
fn a_build_is_found_and_the_download_of_another_version_is_not() {
    let machine = Machine::new();
    machine.add("cache/convene/consul-9.9.8/consul");
    let built = machine.add("cache/convene-cluster/bin/consul");
    assert_eq!(machine.found(), built);
}

#[test]
fn the_environment_says_where_to_look() {
    let machine = Machine::new();
    let root = machine.root.path();
    let child = |set: &[(&str, &Path)]| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "consul::prints_what_it_finds", "--nocapture"]).env_clear().env("CONVENE_CHILD", "1");
        command.env("CONVENE_CONSUL_ARCHIVE", "").envs(set.iter().copied());
        let output = command.output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let nothing = child(&[("HOME", root)]);
    assert!(nothing.contains("Err(\"there is no Consul") && nothing.contains("CONVENE_CONSUL_ARCHIVE"), "{nothing}");
    let found = |path: &Path| format!("Ok({path:?})");
    let mut set = vec![("HOME", root)];
    let at_home = machine.add(".cache/convene-cluster/bin/consul");
    assert!(child(&set).contains(&found(&at_home)));
    let (cache, in_cache) = (root.join("cache"), machine.add("cache/convene-cluster/bin/consul"));
    set.push(("XDG_CACHE_HOME", &cache));
    assert!(child(&set).contains(&found(&in_cache)));
    let (bin, on_path) = (root.join("bin"), machine.add("bin/consul"));
    set.push(("PATH", &bin));
    assert!(child(&set).contains(&found(&on_path)));
    let mine = machine.add("mine/consul");
    set.push(("CONSUL", &mine));
    assert!(child(&set).contains(&found(&mine)));
}

/// Only the other half of the_environment_says_where_to_look, which starts it.
#[test]
fn prints_what_it_finds() {
    if std::env::var_os("CONVENE_CHILD").is_none() {
        return;
    }
    println!("{:?}", find());
}

// === the download ===

#[test]
fn a_download_with_the_right_checksum_is_kept_and_used_again() {
    let Some((machine, archive)) = Machine::with_archive("a_download_with_the_right_checksum_is_kept") else { return };
    let zip = zipped("consul");
    archive.expect(Call::get(SUMS, sums(FILE, &zip)));
    archive.expect(Call::get(ZIP, Reply::Bytes(zip)));
    let consul = machine.found();
    assert_eq!(consul, machine.root.path().join("cache/convene/consul-9.9.9/consul"));
    assert_eq!(fs::read_to_string(&consul).unwrap(), "a downloaded Consul");
    assert_eq!(fs::metadata(&consul).unwrap().permissions().mode() & 0o777, 0o755);
    let kept: Vec<_> = fs::read_dir(machine.root.path().join("cache/convene")).unwrap().collect();
    assert_eq!(kept.len(), 1, "only the binary's own folder is left: {kept:?}");
    assert_eq!(machine.found(), consul, "the second time it comes from the cache");
    archive.finish();
}

#[test]
fn a_wrong_checksum_refuses_and_leaves_nothing_behind() {
    let Some((machine, archive)) = Machine::with_archive("a_wrong_checksum_refuses") else { return };
    archive.expect(Call::get(SUMS, sums(FILE, b"another file")));
    archive.expect(Call::get(ZIP, Reply::Bytes(zipped("consul"))));
    let refused = machine.refused();
    assert!(refused.contains("the SHA-256 of ") && refused.contains("should be"), "{refused}");
    archive.finish();
}

#[test]
fn a_file_without_a_checksum_is_not_even_fetched() {
    let Some((machine, archive)) = Machine::with_archive("a_file_without_a_checksum_is_not_even_fetched") else {
        return;
    };
    archive.expect(Call::get(SUMS, sums("consul_9.9.9_linux_arm64.zip", b"")));
    let refused = machine.refused();
    assert!(refused.contains(&format!("no checksum for {FILE}")), "{refused}");
    archive.finish();
}

#[test]
fn a_release_that_the_archive_does_not_have_is_named() {
    let Some((machine, archive)) = Machine::with_archive("a_release_that_the_archive_does_not_have") else { return };
    let missing = || Reply::WithHeaders(404, Vec::new(), "no such release".to_owned());
    archive.expect(Call::get(SUMS, missing()));
    let refused = machine.refused();
    assert!(refused.contains(SUMS) && refused.contains("404"), "{refused}");
    archive.expect(Call::get(SUMS, sums(FILE, b"")));
    archive.expect(Call::get(ZIP, missing()));
    let refused = machine.refused();
    assert!(refused.contains(ZIP) && refused.contains("404"), "{refused}");
    archive.finish();
}

#[test]
fn a_download_that_is_cut_short_or_no_archive_of_consul_leaves_nothing_behind() {
    let Some((machine, archive)) = Machine::with_archive("a_download_that_is_cut_short") else { return };
    archive.expect(Call::get(SUMS, sums(FILE, b"x")));
    archive.expect(Call::get(ZIP, Reply::CutShort("x".to_owned())));
    assert!(machine.refused().contains("could not download"));
    for bytes in [b"no zip".to_vec(), zipped("nomad")] {
        archive.expect(Call::get(SUMS, sums(FILE, &bytes)));
        archive.expect(Call::get(ZIP, Reply::Bytes(bytes)));
        let refused = machine.refused();
        assert!(refused.contains("could not unpack"), "{refused}");
    }
    archive.finish();
}

#[test]
fn an_archive_that_is_not_there_is_named() {
    let Some((mut machine, archive)) = Machine::with_archive("an_archive_that_is_not_there_is_named") else { return };
    machine.search.archive = archive.url();
    archive.finish();
    let refused = machine.refused();
    assert!(refused.contains("could not download") && refused.contains(SUMS), "{refused}");
}

#[test]
fn without_curl_nothing_is_fetched_and_the_sentence_says_so() {
    let mut machine = Machine::new();
    let archive = ScriptedHttp::start();
    machine.search.archive = archive.url();
    machine.search.path = "".into();
    let refused = machine.refused();
    assert!(refused.contains("no `curl` on PATH"), "{refused}");
    assert!(refused.contains("Install Consul 9.9.9 or set $CONSUL"), "{refused}");
    archive.finish();
}

#[test]
fn a_machine_that_the_archive_has_nothing_for_or_without_a_home_asks_nobody() {
    let Some((machine, archive)) = Machine::with_archive("a_machine_that_the_archive_has_nothing_for") else { return };
    let other = Machine { search: Search { arch: None, ..machine.search.clone() }, root: machine.root };
    assert!(other.refused().contains("not asked for a machine like this one"));
    let homeless = Machine { search: Search { cache: None, ..machine.search }, root: other.root };
    assert!(homeless.refused().contains("where a download can be kept"));
    archive.finish();
}

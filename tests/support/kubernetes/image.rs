//! The two images that every test runs: convene's own, and one shaped like Consul's. Built without Docker and without root.
//!
//! Takes the static binary, a Consul, and this machine's sh, sleep and dumb-init; gives names that the nodes know. A tag is the
//! checksum of what the image holds, so a stale image is never run and an equal one is kept once.

use super::super::consul;
use super::{Given, run, shell};
use serde_json::json;
use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use tar::{EntryType, Header};

/// User and group consul of Consul's own image.
const CONSUL: (u64, u64) = (100, 1000);
const ROOT: (u64, u64) = (0, 0);

/// What Consul's own entrypoint does for `agent`, flags alone, and everything else, without the change of user, which a
/// restricted Pod has done already (<https://github.com/hashicorp/consul/blob/main/.release/docker/docker-entrypoint.sh>).
const ENTRYPOINT: &str = r#"#!/usr/bin/dumb-init /bin/sh
set -e
case "$1" in -*) set -- agent "$@" ;; esac
case "$1" in
  agent) shift; set -- consul agent -data-dir=/consul/data -config-dir=/consul/config "$@" ;;
  version | members | operator | validate | kv) set -- consul "$@" ;;
esac
exec "$@"
"#;

/// The names of the images as the nodes know them, each with its tag.
#[derive(Debug, Clone)]
pub struct Images {
    /// convene's own.
    pub convene: (String, String),
    /// The one like Consul's.
    pub consul: (String, String),
}

// === impl Images ===

impl Images {
    /// Built and loaded once in a process.
    pub fn of(given: &Given) -> &'static Self {
        static LOADED: OnceLock<Images> = OnceLock::new();
        LOADED.get_or_init(|| Self { convene: convene(given).load(given), consul: consuls(given).load(given) })
    }
}

fn convene(given: &Given) -> Image {
    let mut layer = Layer::new(given);
    layer.file(&given.binary, "convene", 0o755);
    layer.image("localhost/convene", "/convene", "100:1000")
}

fn consuls(given: &Given) -> Image {
    let consul = consul::find().unwrap_or_else(|why| panic!("{why}"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = |program| consul::on_path(&path, program).unwrap_or_else(|| panic!("there is no {program} on PATH"));
    let (sh, init, sleep) = (found("sh"), found("dumb-init"), found("sleep"));
    let mut layer = Layer::new(given);
    layer.text("etc/passwd", "root:x:0:0::/root:/bin/sh\nconsul:x:100:1000::/consul:/bin/sh\n", 0o644);
    layer.text("etc/group", "root:x:0:\nconsul:x:1000:\n", 0o644);
    layer.file(&consul, "bin/consul", 0o755);
    layer.file(&sh, "bin/sh", 0o755);
    layer.file(&init, "usr/bin/dumb-init", 0o755);
    layer.file(&sleep, "bin/sleep", 0o755);
    let used: BTreeSet<PathBuf> = [&sh, &init, &sleep].into_iter().flat_map(|program| libraries(program)).collect();
    for library in &used {
        layer.file(library, library.to_str().unwrap().trim_start_matches('/'), 0o755);
    }
    layer.text("usr/local/bin/docker-entrypoint.sh", ENTRYPOINT, 0o755);
    for folder in ["tmp", "consul", "consul/data", "consul/config"] {
        layer.folder(folder, CONSUL);
    }
    layer.image("localhost/consul", "docker-entrypoint.sh", "")
}

/// The shared libraries of a program, as its own linker names them; none for a static one.
fn libraries(program: &Path) -> BTreeSet<PathBuf> {
    let listed = Command::new("ldd").arg(program).output().expect("ldd starts");
    String::from_utf8_lossy(&listed.stdout)
        .lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
        .map(PathBuf::from)
        .collect()
}

/// The one layer of an image while it is written.
struct Layer {
    folder: tempfile::TempDir,
    tar: tar::Builder<File>,
    folders: BTreeSet<PathBuf>,
}

/// An image in a file.
struct Image {
    name: String,
    tag: String,
    archive: PathBuf,
    _folder: tempfile::TempDir,
}

// === impl Layer ===

impl Layer {
    fn new(given: &Given) -> Self {
        let folder = given.scratch("image-");
        let file = File::create(folder.path().join("layer.tar")).unwrap();
        Self { tar: tar::Builder::new(file), folder, folders: BTreeSet::new() }
    }

    fn folder(&mut self, path: &str, owner: (u64, u64)) {
        self.parents(Path::new(path));
        if self.folders.insert(path.into()) {
            self.add(&format!("{path}/"), EntryType::Directory, 0, 0o755, owner, io::empty());
        }
    }

    fn text(&mut self, path: &str, text: &str, mode: u32) {
        self.parents(Path::new(path));
        self.add(path, EntryType::Regular, text.len() as u64, mode, ROOT, text.as_bytes());
    }

    fn file(&mut self, from: &Path, path: &str, mode: u32) {
        self.parents(Path::new(path));
        let file = File::open(from).unwrap_or_else(|error| panic!("could not open {}: {error}", from.display()));
        let length = file.metadata().unwrap().len();
        self.add(path, EntryType::Regular, length, mode, ROOT, file);
    }

    fn parents(&mut self, path: &Path) {
        let parent = path.parent().unwrap().to_str().unwrap().to_owned();
        if !parent.is_empty() {
            self.folder(&parent, ROOT);
        }
    }

    fn add(&mut self, path: &str, kind: EntryType, size: u64, mode: u32, owner: (u64, u64), data: impl io::Read) {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(mode);
        header.set_uid(owner.0);
        header.set_gid(owner.1);
        // One time for all, so that equal contents have an equal checksum.
        header.set_mtime(0);
        self.tar.append_data(&mut header, path, data).unwrap();
    }

    /// Writes the archive, as `docker save` would.
    fn image(self, name: &str, entrypoint: &str, user: &str) -> Image {
        self.tar.into_inner().unwrap();
        let written = self.folder.path().join("layer.tar");
        let layer = consul::sha256(File::open(&written).unwrap()).unwrap();
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        let config = json!({
            "architecture": architecture,
            "os": "linux",
            "config": {"Entrypoint": [entrypoint], "Env": [path], "User": user},
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{layer}")]},
        })
        .to_string();
        let sum = consul::sha256(config.as_bytes()).unwrap();
        let tag = sum[..12].to_owned();
        let (config_file, layer_file) = (format!("{sum}.json"), format!("{layer}/layer.tar"));
        let manifest = json!([{"Config": config_file, "RepoTags": [format!("{name}:{tag}")], "Layers": [layer_file]}]);

        let archive = self.folder.path().join("image.tar");
        let mut tar = tar::Builder::new(File::create(&archive).unwrap());
        let mut add = |path: &str, size: u64, data: &mut dyn io::Read| {
            let mut header = Header::new_gnu();
            header.set_size(size);
            header.set_mode(0o644);
            tar.append_data(&mut header, path, data).unwrap();
        };
        add(&config_file, config.len() as u64, &mut config.as_bytes());
        let mut layer = File::open(&written).unwrap();
        add(&layer_file, layer.metadata().unwrap().len(), &mut layer);
        let manifest = manifest.to_string();
        add("manifest.json", manifest.len() as u64, &mut manifest.as_bytes());
        tar.finish().unwrap();
        Image { name: name.to_owned(), tag, archive, _folder: self.folder }
    }
}

// === impl Image ===

impl Image {
    /// Makes it available on every node.
    fn load(self, given: &Given) -> (String, String) {
        let mut command = shell(&given.load);
        command.env("REF", format!("{}:{}", self.name, self.tag)).env("ARCHIVE", &self.archive);
        run(&mut command).unwrap_or_else(|why| panic!("CONVENE_E2E_LOAD: {why}"));
        (self.name, self.tag)
    }
}

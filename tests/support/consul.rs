//! Which Consul do the tests and the demo run? Looked for in `$CONSUL`, on PATH, in the user's cache, then in HashiCorp's
//! release archive, whose file is kept in the cache once its SHA-256 is right. Takes the environment (or a [`Search`]),
//! gives the path of the binary, else one plain sentence that says what to do. It never runs what it found, never
//! unpacks what it did not verify, and leaves nothing in the cache when it fails.
//!
//! The checksum comes from the same server as the file: it shows damage and mix-ups; who the server is, TLS shows.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use sha2::{Digest, Sha256};

/// The Consul that the project is tested with.
pub const VERSION: &str = "1.22.6";

/// Where HashiCorp's releases are; the folders below it are `consul/<version>/`.
pub const ARCHIVE: &str = "https://releases.hashicorp.com";

/// The longest connect and the longest download, in seconds. The file has about 60 MB.
const CONNECT: &str = "10";
const DOWNLOAD: &str = "300";

/// The largest binary that is unpacked, in bytes; 1.22 has 180 MB.
const LARGEST: u64 = 1 << 30;

/// Where to look. Every field is what the environment says, and a test's own in tests.
#[derive(Clone, Debug)]
pub struct Search {
    /// `$CONSUL`. When set it is this one or none.
    pub consul: Option<OsString>,
    /// `$PATH`, for `consul` and for `curl`.
    pub path: OsString,
    /// `$XDG_CACHE_HOME`, or `.cache` in the home; none when there is no home.
    pub cache: Option<PathBuf>,
    /// `$CONVENE_CONSUL_ARCHIVE`, or [`ARCHIVE`]. Empty: nothing is downloaded.
    pub archive: String,
    /// The release to download.
    pub version: String,
    /// `amd64` or `arm64`, as the archive names them; none on other machines.
    pub arch: Option<&'static str>,
}

/// The Consul of this environment, looked for once in a process.
pub fn find() -> Result<PathBuf, String> {
    static FOUND: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    FOUND.get_or_init(|| Search::from_env().find()).clone()
}

/// The first executable file called `program` in a PATH.
pub fn on_path(path: &OsStr, program: &str) -> Option<PathBuf> {
    std::env::split_paths(path).filter(|dir| dir.is_absolute()).map(|d| d.join(program)).find(|p| is_executable(p))
}

fn is_executable(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

impl Search {
    /// What the environment of this process says.
    pub fn from_env() -> Self {
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let home = set("HOME").map(|home| PathBuf::from(home).join(".cache"));
        let archive = std::env::var("CONVENE_CONSUL_ARCHIVE").unwrap_or_else(|_| ARCHIVE.to_owned());
        let arch = match std::env::consts::ARCH {
            "x86_64" => Some("amd64"),
            "aarch64" => Some("arm64"),
            _ => None,
        };
        Self {
            consul: set("CONSUL"),
            path: set("PATH").unwrap_or_default(),
            cache: set("XDG_CACHE_HOME").map(PathBuf::from).filter(|p| p.is_absolute()).or(home),
            archive,
            version: VERSION.to_owned(),
            arch,
        }
    }

    /// The path of a Consul binary, or what to do to have one.
    pub fn find(&self) -> Result<PathBuf, String> {
        if let Some(consul) = &self.consul {
            let consul = PathBuf::from(consul);
            let refused = format!("$CONSUL is {}, which is no executable file: correct or unset it", consul.display());
            return if is_executable(&consul) { Ok(consul) } else { Err(refused) };
        }
        if let Some(consul) = on_path(&self.path, "consul").or_else(|| self.cached()) {
            return Ok(consul);
        }
        self.download().map_err(|why| {
            format!(
                "there is no Consul: $CONSUL is not set, none is on PATH or in the cache, and {why}. \
                 Install Consul {} or set $CONSUL to the path of its binary",
                self.version
            )
        })
    }

    fn cached(&self) -> Option<PathBuf> {
        let cache = self.cache.as_ref()?;
        let built = cache.join("convene-cluster/bin/consul");
        [self.kept(cache), built].into_iter().find(|p| is_executable(p))
    }

    /// Where a download is kept.
    fn kept(&self, cache: &Path) -> PathBuf {
        cache.join("convene").join(format!("consul-{}", self.version)).join("consul")
    }

    /// Fetches, verifies, unpacks, and only then moves the binary to its place.
    fn download(&self) -> Result<PathBuf, String> {
        let base = self.archive.trim_end_matches('/');
        if base.is_empty() {
            return Err("CONVENE_CONSUL_ARCHIVE is empty, so none was downloaded".to_owned());
        }
        let Some(arch) = self.arch else {
            return Err(format!("the archive is not asked for a machine like this one ({})", std::env::consts::ARCH));
        };
        let cache = self.cache.as_ref().ok_or("neither $XDG_CACHE_HOME nor $HOME says where a download can be kept")?;
        let curl = on_path(&self.path, "curl").ok_or("there is no `curl` on PATH to download one")?;
        let kept = self.kept(cache);
        let folder = cache.join("convene");
        let failed =
            |what: &str, e: &dyn std::fmt::Display| format!("could not {what} below {}: {e}", folder.display());

        std::fs::create_dir_all(&folder).map_err(|e| failed("make a folder", &e))?;
        // In the cache, so that the last step is a rename on one file system; it goes away with the value.
        let work = tempfile::Builder::new().prefix("download-").tempdir_in(&folder);
        let work = work.map_err(|e| failed("make a folder", &e))?;
        let file = format!("consul_{}_linux_{arch}.zip", self.version);
        let release = format!("{base}/consul/{}", self.version);
        let sums = work.path().join("sums");
        let zip = work.path().join("zip");
        fetch(&curl, &format!("{release}/consul_{}_SHA256SUMS", self.version), &sums)?;
        let sums = std::fs::read_to_string(&sums).map_err(|e| failed("read the checksums", &e))?;
        let wanted = checksum(&sums, &file).ok_or_else(|| format!("{release} has no checksum for {file}"))?;
        fetch(&curl, &format!("{release}/{file}"), &zip)?;
        let had = File::open(&zip).and_then(sha256).map_err(|e| failed("read the download", &e))?;
        if had != wanted {
            return Err(format!("the SHA-256 of {release}/{file} is {had} and should be {wanted}"));
        }
        let unpacked = work.path().join("consul");
        unpack(&zip, &unpacked).map_err(|e| format!("could not unpack {release}/{file}: {e}"))?;
        let home = kept.parent().ok_or("the cache has no such folder")?;
        std::fs::create_dir_all(home).map_err(|e| failed("make a folder", &e))?;
        std::fs::rename(&unpacked, &kept).map_err(|e| failed("keep the download", &e))?;
        Ok(kept)
    }
}

fn fetch(curl: &Path, url: &str, to: &Path) -> Result<(), String> {
    let mut command = Command::new(curl);
    // A redirect may not lead from TLS to plain text; plain text is for a mirror that was named as such.
    let plain = url.starts_with("http://");
    command.args(["--proto", if plain { "=http,https" } else { "=https" }]);
    if url.starts_with("http://127.") {
        // A proxy cannot reach this machine's loopback.
        command.args(["--noproxy", "*"]);
    }
    command.args(["--fail", "--silent", "--show-error", "--location", "--max-redirs", "5"]);
    command.args(["--connect-timeout", CONNECT, "--max-time", DOWNLOAD, "--output"]).arg(to).arg(url);
    let output =
        command.stdin(Stdio::null()).output().map_err(|e| format!("could not start {}: {e}", curl.display()))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("could not download {url}: {}", said.trim()))
}

/// The checksum of a file in lower-case hex: a line of SHA256SUMS reads `<hex>  <file>`.
fn checksum(sums: &str, file: &str) -> Option<String> {
    let words = sums.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let mut of_file = words.filter(|words| matches!(words[..], [_, name] if name.trim_start_matches('*') == file));
    of_file.next().map(|words| words[0].to_ascii_lowercase())
}

/// The SHA-256 of what can be read, in lower-case hex.
pub fn sha256(mut from: impl Read) -> std::io::Result<String> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match from.read(&mut buffer)? {
            0 => break,
            length => hash.update(&buffer[..length]),
        }
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Only the entry `consul` is taken out of the archive.
fn unpack(zip: &Path, to: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let mut archive = zip::ZipArchive::new(File::open(zip)?)?;
    let mut entry = archive.by_name("consul")?.take(LARGEST);
    let mut file = File::create_new(to)?;
    std::io::copy(&mut entry, &mut file)?;
    file.set_permissions(std::fs::Permissions::from_mode(0o755))?;
    file.sync_all()?;
    Ok(())
}

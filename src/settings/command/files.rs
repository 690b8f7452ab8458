//! What do the files say that CMD names? Takes a path from `-config-file` or `-config-dir`, gives what each file in it
//! says, in Consul's order.
//!
//! It reads regular files only (a pipe could be read just once, and Consul wants it). It never fails for a file that
//! is missing or cannot be read: that is a warning, because Consul judges the same file itself. It fails only for a
//! value, or a line end in a string of JSON, that Consul would refuse as well. A file's text is dropped at once: it may hold keys and tokens.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::facts::Place;
use super::sayings::Saying;
use super::{CommandError, Warning, hcl};

/// No configuration comes near this; a limit, so that a wrong path cannot fill the memory.
const LARGEST_FILE: u64 = 4 * 1024 * 1024;

/// A format that Consul reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Json,
    Hcl,
}

impl Format {
    /// By the ending, as Consul does it.
    fn of(path: &Path) -> Option<Self> {
        let name = path.as_os_str().as_encoded_bytes();
        if name.ends_with(b".json") {
            Some(Self::Json)
        } else if name.ends_with(b".hcl") {
            Some(Self::Hcl)
        } else {
            None
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Json => "JSON",
            Self::Hcl => "HCL",
        }
    }
}

/// `$CONSUL_LOCAL_CONFIG`, which `docker-entrypoint.sh` writes to `local.json` in this folder before Consul starts.
pub(super) struct LocalConfig {
    pub(super) folder: PathBuf,
    pub(super) text: String,
}

/// Reads files and remembers what it could not read.
pub(super) struct Files {
    /// `-config-format`: it counts for every file, whatever its ending.
    pub(super) format: Option<Format>,
    pub(super) local: Option<LocalConfig>,
    pub(super) sayings: Vec<Saying>,
    pub(super) warnings: Vec<Warning>,
}

impl Files {
    /// Reads a file, or the files of a folder by the order of their names. Consul treats `-config-file` and
    /// `-config-dir` alike: what the path is decides.
    pub(super) fn read(&mut self, path: &Path) -> Result<(), CommandError> {
        if let Some(local) = self.local.take_if(|local| local.folder == path) {
            let result = self.folder(path, Some(&local.text));
            self.local = Some(local);
            return result;
        }
        match fs::metadata(path) {
            Ok(found) if found.is_dir() => self.folder(path, None),
            _ => self.file(path, path),
        }
    }

    fn folder(&mut self, folder: &Path, local: Option<&str>) -> Result<(), CommandError> {
        let mut names =
            match fs::read_dir(folder).and_then(|entries| entries.map(|entry| Ok(entry?.file_name())).collect()) {
                Ok(names) => names,
                Err(error) => {
                    self.warn(folder, format!("could not open {}: {error}", folder.display()));
                    Vec::new()
                }
            };
        if local.is_some() && !names.iter().any(|name| name == "local.json") {
            names.push("local.json".into());
        }
        names.sort();
        for name in names {
            let path = folder.join(&name);
            if let Some(text) = local.filter(|_| name == "local.json") {
                self.text(Path::new("$CONSUL_LOCAL_CONFIG"), text, Format::Json, Place::LocalConfig)?;
                continue;
            }
            // Consul looks at the ending of a symbolic link's target, and goes into no folder below this one.
            let target = fs::canonicalize(&path).unwrap_or_else(|_| path.clone());
            if !target.is_dir() && (self.format.is_some() || Format::of(&target).is_some()) {
                self.file(&path, &target)?;
            }
        }
        Ok(())
    }

    /// Reads the file `path`, whose ending is that of `target`.
    fn file(&mut self, path: &Path, target: &Path) -> Result<(), CommandError> {
        let Some(format) = self.format.or_else(|| Format::of(target)) else {
            self.warn(
                path,
                format!(
                    "could not read {}: Consul wants a name that ends in .json or .hcl, or -config-format",
                    path.display()
                ),
            );
            return Ok(());
        };
        match contents(path) {
            Ok(text) => self.text(path, &text, format, |key| Place::File { path: path.to_owned(), key }),
            Err(fact) => {
                self.warn(path, format!("could not open {}: {fact}", path.display()));
                Ok(())
            }
        }
    }

    /// Reads a text that came from `path`.
    fn text(
        &mut self,
        path: &Path,
        text: &str,
        format: Format,
        place: impl Fn(&'static str) -> Place,
    ) -> Result<(), CommandError> {
        // Consul skips an empty file.
        if text.is_empty() {
            return Ok(());
        }
        let tree = match format {
            Format::Json => hcl::json(text),
            Format::Hcl => hcl::read(text),
        };
        match tree {
            Ok(root) => self.sayings.extend(Saying::of_tree(&root, place)?),
            Err(hcl::Unreadable { line, what }) if format == Format::Json && what == hcl::LINE_END => {
                return Err(CommandError::LineEnd { path: path.to_owned(), line });
            }
            Err(hcl::Unreadable { line, what }) => {
                self.warn(
                    path,
                    format!("could not read {}, line {line}, as {}: {what}", path.display(), format.name()),
                );
            }
        }
        Ok(())
    }

    /// Reads a `-hcl` fragment.
    pub(super) fn fragment(&mut self, text: &str) -> Result<(), CommandError> {
        self.text(Path::new("-hcl"), text, Format::Hcl, Place::Fragment)
    }

    fn warn(&mut self, path: &Path, text: String) {
        self.warnings.push(Warning { path: Some(path.to_owned()), text: format!("{text}; convene judges without it") });
    }
}

/// The text of a regular file.
fn contents(path: &Path) -> Result<String, String> {
    let failed = |error: std::io::Error| error.to_string();
    // Asked before it is opened: opening a pipe would wait for its writer.
    if !fs::metadata(path).map_err(failed)?.is_file() {
        return Err("it is not a file".to_owned());
    }
    let mut bytes = Vec::new();
    fs::File::open(path).map_err(failed)?.take(LARGEST_FILE + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > LARGEST_FILE {
        return Err(format!("it is larger than {LARGEST_FILE} bytes"));
    }
    String::from_utf8(bytes).map_err(|_| "it is not UTF-8".to_owned())
}

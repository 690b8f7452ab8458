//! Copies this program into a folder that another container shares: the image is empty and has no cp.
//!
//! Takes a folder, leaves `convene` in it, mode 0755, as a whole or not at all. Never makes the folder. Fails with 73.

use crate::exit::{Code, Failure};
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// The program's name in the folder.
pub const NAME: &str = "convene";

/// Installs; gives where.
///
/// # Errors
/// [`Failure`] with 73: the folder is missing, is a file, or cannot be written.
pub fn install(folder: &Path) -> Result<PathBuf, Failure> {
    let failed =
        |what: String| Failure::new(Code::Write, format!("could not install into {}: {what}", folder.display()));
    match fs::metadata(folder) {
        Ok(meta) if meta.is_dir() => {}
        Ok(_) => return Err(failed("it is not a folder; give the folder that both containers mount".to_owned())),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Err(failed("it does not exist; mount the shared volume there".to_owned()));
        }
        Err(error) => return Err(failed(error.to_string())),
    }
    let target = folder.join(NAME);
    // Beside its final name, since a running program's file cannot be written over.
    let temp = folder.join(format!(".{NAME}.new"));
    copy(&temp).and_then(|()| fs::rename(&temp, &target)).map_err(|error| {
        let _ = fs::remove_file(&temp);
        failed(error.to_string())
    })?;
    Ok(target)
}

fn copy(temp: &Path) -> io::Result<()> {
    let mut from = File::open("/proc/self/exe")?;
    let mut to = OpenOptions::new().write(true).create(true).truncate(true).mode(0o755).open(temp)?;
    io::copy(&mut from, &mut to)?;
    // The umask may have taken bits away. No fsync: after a crash of the machine the init container runs again.
    to.set_permissions(Permissions::from_mode(0o755))
}

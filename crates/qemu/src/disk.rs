//! A vm's disk: a thin qcow2 file over its image, which stays unchanged.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use tokio::process::Command;

/// `qemu-img` under this name is looked for in `PATH`.
pub const QEMU_IMG_BINARY: &str = "qemu-img";

#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    #[error("cannot start {QEMU_IMG_BINARY}: install Debian's qemu-utils")]
    NotInstalled { source: io::Error },
    #[error("cannot make the disk {} over {}: {message}", path.display(), backing.display())]
    Create { path: PathBuf, backing: PathBuf, message: String },
    #[error("cannot put the disk in place at {}: check that its directory exists and the disk is not full", path.display())]
    Place { path: PathBuf, source: io::Error },
}

/// Makes `path`, a qcow2 file over the qcow2 file `backing`, both absolute. A disk that exists already is
/// left as it is: it may hold a vm's data. Interrupted, it leaves a `.partial` file that the next call replaces.
pub async fn create_disk(backing: &Path, path: &Path) -> Result<(), DiskError> {
    let placing = |source| DiskError::Place { path: path.to_owned(), source };
    if tokio::fs::try_exists(path).await.map_err(placing)? {
        return Ok(());
    }
    let mut partial = OsString::from(path);
    partial.push(".partial");
    let output = Command::new(QEMU_IMG_BINARY)
        .args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"])
        .arg(backing)
        .arg(&partial)
        .stdin(Stdio::null())
        .output()
        .await
        .map_err(|source| DiskError::NotInstalled { source })?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(DiskError::Create { path: path.to_owned(), backing: backing.to_owned(), message });
    }
    tokio::fs::rename(&partial, path).await.map_err(placing)
}

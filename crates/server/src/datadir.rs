//! The server's directories: made, locked against a second server and proven writable before anything else starts.

use crate::config::ServerConfig;
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// Written and synced at start: a disk this full would fail soon anyway.
const PROBE_BYTES: usize = 256 << 10;

#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    #[error("{key} {path} can't be made; make it, or name another in the configuration")]
    Make { key: &'static str, path: PathBuf, source: std::io::Error },
    #[error("{key} {path} is not writable for this user; change its owner or name another in the configuration")]
    NotWritable { key: &'static str, path: PathBuf, source: std::io::Error },
    #[error("the file system of {key} {path} is full; free some space and start again")]
    Full { key: &'static str, path: PathBuf },
    #[error("shared_dir {path} does not exist; mount or make it (every host must see it under this path)")]
    SharedMissing { path: PathBuf },
    #[error("another server runs on data_dir {path}; stop it first, or give this one its own data_dir")]
    Locked { path: PathBuf },
    #[error("{path} can't be written")]
    Write { path: PathBuf, source: std::io::Error },
}

/// Held for the server's life; the kernel lets go of it when the process ends, however it ends.
#[derive(Debug)]
pub struct DataDir {
    root: PathBuf,
    shared: PathBuf,
    _lock: File,
}

impl DataDir {
    pub fn open(config: &ServerConfig) -> Result<Self, DataDirError> {
        let root = config.data_dir.clone();
        make_dir("data_dir", &root, 0o700)?;
        let lock_path = root.join("lock");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&lock_path)
            .map_err(|source| not_writable("data_dir", &root, source))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(DataDirError::Locked { path: root }),
            Err(TryLockError::Error(source)) => return Err(not_writable("data_dir", &root, source)),
        }
        probe("data_dir", &root)?;
        make_dir("data_dir", &root.join("pki"), 0o700)?;

        let shared = config.shared_dir.clone();
        if !shared.is_dir() {
            return Err(DataDirError::SharedMissing { path: shared });
        }
        for dir in ["images", "images/.staging", "disks"] {
            make_dir("shared_dir", &shared.join(dir), 0o755)?;
        }
        probe("shared_dir", &shared)?;
        Ok(Self { root, shared, _lock: lock })
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn store(&self) -> PathBuf {
        self.root.join("store.sqlite")
    }

    pub fn pki(&self) -> PathBuf {
        self.root.join("pki")
    }

    pub fn images(&self) -> PathBuf {
        self.shared.join("images")
    }

    /// Uploads land here until an image is made of them; no image can have this name.
    pub fn staging(&self) -> PathBuf {
        self.images().join(".staging")
    }
}

fn make_dir(key: &'static str, path: &Path, mode: u32) -> Result<(), DataDirError> {
    DirBuilder::new().recursive(true).mode(mode).create(path).map_err(|source| match source.kind() {
        std::io::ErrorKind::StorageFull => DataDirError::Full { key, path: path.to_owned() },
        _ => DataDirError::Make { key, path: path.to_owned(), source },
    })
}

fn not_writable(key: &'static str, path: &Path, source: std::io::Error) -> DataDirError {
    match source.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
            DataDirError::Full { key, path: path.to_owned() }
        }
        _ => DataDirError::NotWritable { key, path: path.to_owned(), source },
    }
}

fn probe(key: &'static str, dir: &Path) -> Result<(), DataDirError> {
    let path = dir.join(".probe");
    let written = File::create(&path)
        .and_then(|mut file| file.write_all(&vec![0; PROBE_BYTES]).and_then(|()| file.sync_all()))
        .map_err(|source| not_writable(key, dir, source));
    let removed = std::fs::remove_file(&path);
    written?;
    removed.map_err(|source| not_writable(key, dir, source))
}

/// Replaces a file as a whole and durably: after a crash it is the old one or the new one.
pub fn write_whole(path: &Path, content: &[u8], mode: u32) -> Result<(), DataDirError> {
    let fail = |source| DataDirError::Write { path: path.to_owned(), source };
    let temporary = path.with_added_extension("new");
    match std::fs::remove_file(&temporary) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(fail(error)),
        _ => {}
    }
    let mut file = OpenOptions::new().create_new(true).write(true).mode(mode).open(&temporary).map_err(fail)?;
    file.write_all(content).and_then(|()| file.sync_all()).map_err(fail)?;
    std::fs::rename(&temporary, path).map_err(fail)?;
    let parent = path.parent().unwrap_or(Path::new("/"));
    File::open(parent).and_then(|dir| dir.sync_all()).map_err(fail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn config(dir: &Path) -> ServerConfig {
        std::fs::create_dir_all(dir.join("shared")).unwrap();
        let text = format!("data_dir = {:?}\nshared_dir = {:?}", dir.join("data"), dir.join("shared"));
        ServerConfig::parse(Path::new("test"), &text).unwrap()
    }

    #[test]
    fn a_second_server_on_the_same_directory_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path());
        let first = DataDir::open(&config).unwrap();
        let error = DataDir::open(&config).unwrap_err();
        assert!(matches!(error, DataDirError::Locked { .. }), "{error}");
        drop(first);
        DataDir::open(&config).unwrap();
    }

    #[test]
    fn a_missing_shared_directory_is_said_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(dir.path());
        config.shared_dir = dir.path().join("nowhere");
        let error = DataDir::open(&config).unwrap_err().to_string();
        assert!(error.contains("shared_dir") && error.contains("nowhere"), "{error}");
    }

    #[test]
    fn a_data_dir_that_is_a_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path());
        std::fs::write(&config.data_dir, "x").unwrap();
        let error = DataDir::open(&config).unwrap_err();
        assert!(matches!(error, DataDirError::Make { .. }), "{error}");
    }

    #[test]
    fn a_secret_file_is_replaced_whole_and_readable_by_its_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        write_whole(&path, b"one", 0o600).unwrap();
        write_whole(&path, b"two", 0o600).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}

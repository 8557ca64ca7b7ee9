//! The files a vm is made of, all of them on the storage that hosts share: its image's and its own disk.
//!
//! ```text
//! <shared_dir>/images/<image>/{kernel,initrd,disk}
//!              disks/<vm>.qcow2                      over its image's disk
//! ```

use drover_model::command::VmRun;
use drover_qemu::disk;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    #[error("the image {image} has no {file} in {}: add the image again", dir.display())]
    Missing { image: String, file: &'static str, dir: PathBuf },
    #[error("the vm's disk {} is not there: check that shared_dir is the same storage on all hosts", .0.display())]
    NoDisk(PathBuf),
    #[error("{} can't be opened here: check the shared storage and its permissions on this host", path.display())]
    Unreadable {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} is not {expected}: add the image again, or restore the file", path.display())]
    OtherKind { path: PathBuf, expected: &'static str },
    #[error("can't make the vm's disk")]
    MakeDisk(#[source] disk::DiskError),
    #[error("can't make the directory {}", path.display())]
    DiskDir {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("can't remove the disk {}", path.display())]
    RemoveDisk {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Where a vm's files are; `None` for those it does without.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmFiles {
    pub kernel: Option<PathBuf>,
    pub initrd: Option<PathBuf>,
    /// Its own.
    pub disk: Option<PathBuf>,
    /// The image's, which its own lies over.
    backing: Option<PathBuf>,
}

/// What a file begins with, by which QEMU knows it, too.
struct Kind {
    name: &'static str,
    /// Place and bytes; any one of them will do.
    marks: &'static [(u64, &'static [u8])],
}

/// Linux's boot protocol (Documentation/arch/x86/boot.rst) or an ELF file with a PVH entry.
const KERNEL: Kind = Kind { name: "a kernel QEMU can boot", marks: &[(0x202, b"HdrS"), (0, b"\x7fELF")] };
/// QEMU's docs/interop/qcow2.txt.
const QCOW2: Kind = Kind { name: "a qcow2 disk", marks: &[(0, b"QFI\xfb")] };
/// Linux takes several formats, and an initrd may hold several of them one after the other.
const INITRD: Kind = Kind { name: "an initrd, it is empty", marks: &[] };

impl VmFiles {
    /// Finds the image's files.
    pub fn find(shared_dir: &Path, run: &VmRun) -> Result<Self, FilesError> {
        let dir = shared_dir.join("images").join(run.image.as_str());
        let file = |wanted: bool, file: &'static str| {
            let path = dir.join(file);
            if !wanted {
                return Ok(None);
            }
            if path.is_file() {
                return Ok(Some(path));
            }
            Err(FilesError::Missing { image: run.image.to_string(), file, dir: dir.clone() })
        };
        Ok(Self {
            kernel: file(run.kernel, "kernel")?,
            initrd: file(run.initrd, "initrd")?,
            backing: file(run.disk, "disk")?,
            disk: run.disk.then(|| disk_path(shared_dir, run.vm.as_str())),
        })
    }

    /// Whether a vm that runs elsewhere can run with them here: they can be opened, and are what they should be. Nothing
    /// is locked, nothing is changed.
    pub fn check(&self) -> Result<(), FilesError> {
        if let Some(disk) = &self.disk {
            if !disk.is_file() {
                return Err(FilesError::NoDisk(disk.clone()));
            }
            let writable = File::options().append(true).open(disk);
            writable.map_err(|source| FilesError::Unreadable { path: disk.clone(), source })?;
        }
        let files = [(&self.kernel, KERNEL), (&self.initrd, INITRD), (&self.backing, QCOW2), (&self.disk, QCOW2)];
        files.into_iter().filter_map(|(path, kind)| Some((path.as_ref()?, kind))).try_for_each(|(path, kind)| {
            let is = kind.is(path).map_err(|source| FilesError::Unreadable { path: path.clone(), source })?;
            if is { Ok(()) } else { Err(FilesError::OtherKind { path: path.clone(), expected: kind.name }) }
        })
    }

    /// Makes the vm's own disk over its image's, once.
    pub async fn make_disk(&self) -> Result<(), FilesError> {
        let (Some(path), Some(backing)) = (&self.disk, &self.backing) else { return Ok(()) };
        if let Some(dir) = path.parent() {
            let made = tokio::fs::create_dir_all(dir).await;
            made.map_err(|source| FilesError::DiskDir { path: dir.to_owned(), source })?;
        }
        disk::create_disk(backing, path).await.map_err(FilesError::MakeDisk)
    }
}

impl Kind {
    fn is(&self, path: &Path) -> io::Result<bool> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        for (at, mark) in self.marks {
            if length < at + mark.len() as u64 {
                continue;
            }
            let mut found = vec![0; mark.len()];
            file.seek(SeekFrom::Start(*at))?;
            file.read_exact(&mut found)?;
            if found == *mark {
                return Ok(true);
            }
        }
        Ok(self.marks.is_empty() && length > 0)
    }
}

fn disk_path(shared_dir: &Path, vm: &str) -> PathBuf {
    shared_dir.join("disks").join(format!("{vm}.qcow2"))
}

/// Removes the vm's own disk, if it has one.
pub fn remove_disk(shared_dir: &Path, vm: &str) -> Result<(), FilesError> {
    let path = disk_path(shared_dir, vm);
    match fs::remove_file(&path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(FilesError::RemoveDisk { path, source }),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use drover_model::Bytes;

    fn run() -> VmRun {
        VmRun {
            vm: "vm-a".parse().unwrap(),
            label: "t-a".to_owned(),
            image: "img".parse().unwrap(),
            kernel: true,
            initrd: true,
            disk: true,
            cmdline: String::new(),
            vcpus: 1,
            memory: Bytes::mib(64),
            nic: None,
        }
    }

    #[test]
    fn what_is_wrong_with_a_file_is_said_by_name() {
        let shared = tempfile::tempdir().unwrap();
        let (image, disks) = (shared.path().join("images/img"), shared.path().join("disks"));
        for dir in [&image, &disks] {
            fs::create_dir_all(dir).unwrap();
        }
        let mut kernel = vec![0; 0x202];
        kernel.extend(b"HdrS");
        let good: [(PathBuf, &[u8]); 4] = [
            (image.join("kernel"), &kernel),
            (image.join("initrd"), b"07070"),
            (image.join("disk"), b"QFI\xfb.."),
            (disks.join("vm-a.qcow2"), b"QFI\xfb.."),
        ];
        let complaint = || {
            let checked = VmFiles::find(shared.path(), &run()).and_then(|files| files.check());
            checked.err().map(|error| error.to_string())
        };
        for (path, content) in &good {
            fs::write(path, content).unwrap();
        }
        assert_eq!(complaint(), None);
        for (path, content) in &good {
            for bad in [None, Some("")] {
                match bad {
                    None => fs::remove_file(path).unwrap(),
                    Some(text) => fs::write(path, text).unwrap(),
                }
                let said = complaint().unwrap_or_else(|| panic!("{} may be {bad:?}", path.display()));
                let name = path.file_name().unwrap().to_str().unwrap();
                assert!(said.contains(name), "{said}");
            }
            fs::write(path, content).unwrap();
        }
        // The kernel does without its disk.
        let diskless = VmRun { disk: false, ..run() };
        fs::remove_file(&good[3].0).unwrap();
        assert!(VmFiles::find(shared.path(), &diskless).unwrap().check().is_ok());
    }
}

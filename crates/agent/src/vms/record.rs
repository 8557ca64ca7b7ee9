//! What this host must remember of each vm, on disk before anything is done about it.
//!
//! ```text
//! <state_dir>/vms/<vm>/record.json   this record
//!                      qemu.pid      written and locked by QEMU itself: the truth about the process
//!                      qmp.sock  serial.sock  serial.log  qemu.log
//! ```
//!
//! A record is replaced whole: temporary file, fsync, rename, fsync of the directory. A crash leaves the old one or
//! the new one; a torn temporary file is never read.

use drover_model::command::{MigrationTarget, VmRun};
use drover_model::migration::Strategy;
use drover_model::policy::MigrationPolicy;
use drover_model::{Generation, HostId, MigrationId, Millis, VmId};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

const RECORD: &str = "record.json";
const RECORD_TEMPORARY: &str = "record.json.tmp";

/// Raised when an older agent could not read the record. This one reads the older ones.
const FORMAT: u32 = 2;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    pub format: u32,
    pub run: VmRun,
    pub generation: Generation,
    pub role: Role,
    /// The migration that brought the vm here, if one did.
    #[serde(default)]
    pub arrived_by: Option<MigrationId>,
}

/// What this host was last told to be for the vm, or saw it become.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "role")]
pub enum Role {
    Run,
    /// Powering down; an agent that restarts meanwhile gives the guest the whole grace again.
    Stop {
        grace: Millis,
    },
    Receive {
        migration: MigrationId,
        /// Whose certificate alone is let in.
        from: HostId,
        strategy: Strategy,
    },
    Send {
        migration: MigrationId,
        target: MigrationTarget,
        limits: MigrationPolicy,
        strategy: Strategy,
        step: SendStep,
    },
    /// There is no process, and this is how it ended.
    Ended(Ended),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SendStep {
    /// Before the commit: unwinds.
    Copying,
    /// The commit was received: the guest must not be resumed by this agent's own decision.
    Committed,
    /// The guest ran at the destination before all of its memory was sent: what is here will never be whole again.
    PostCopied,
    HandedOver,
}

impl SendStep {
    /// Whether the right to run has left this host.
    pub fn is_committed(self) -> bool {
        match self {
            Self::Copying => false,
            Self::Committed | Self::PostCopied | Self::HandedOver => true,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "end")]
pub enum Ended {
    Stopped,
    Failed { why: String },
    IncomingFailed { migration: MigrationId, why: String },
}

#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    #[error("can't write {}: check the space and permissions of the state directory", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("can't read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "{} is not a vm record this agent understands: restore it, or move its directory away if the vm is known to be gone",
        path.display()
    )]
    Damaged {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("{} has format {found}, this agent understands {FORMAT}: run a newer agent", path.display())]
    Format { path: PathBuf, found: u32 },
}

impl Record {
    pub fn new(run: VmRun, generation: Generation, role: Role) -> Self {
        Self { format: FORMAT, run, generation, role, arrived_by: None }
    }
}

/// Where a vm's files lie on this host.
#[derive(Debug, Clone)]
pub struct VmDir {
    path: PathBuf,
}

impl VmDir {
    pub fn new(state_dir: &Path, vm: &VmId) -> Self {
        Self { path: vms_dir(state_dir).join(vm.as_str()) }
    }

    pub fn pid_file(&self) -> PathBuf {
        self.path.join("qemu.pid")
    }

    pub fn qmp_socket(&self) -> PathBuf {
        self.path.join("qmp.sock")
    }

    pub fn serial_socket(&self) -> PathBuf {
        self.path.join("serial.sock")
    }

    pub fn serial_log(&self) -> PathBuf {
        self.path.join("serial.log")
    }

    pub fn qemu_log(&self) -> PathBuf {
        self.path.join("qemu.log")
    }

    /// Durable once it returns.
    pub fn save(&self, record: &Record) -> Result<(), RecordError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| RecordError::Write { path, source }
        };
        if !self.path.is_dir() {
            fs::create_dir_all(&self.path).map_err(failed(&self.path))?;
            if let Some(parent) = self.path.parent() {
                sync_dir(parent).map_err(failed(parent))?;
            }
        }
        let text = serde_json::to_vec(record).expect("a record has string keys only, which always serialize");
        replace_file(&self.path, RECORD, RECORD_TEMPORARY, &text, 0o600).map_err(failed(&self.path.join(RECORD)))
    }

    /// Removes the record first, so that a half-removed directory is never taken for a vm.
    pub fn remove(&self) -> Result<(), RecordError> {
        let failed = |source| RecordError::Write { path: self.path.clone(), source };
        match fs::remove_file(self.path.join(RECORD)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            Ok(()) | Err(_) => {}
        }
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(error)),
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

/// Replaces `dir/name` in one step that survives a power cut.
pub fn replace_file(dir: &Path, name: &str, temporary: &str, content: &[u8], mode: u32) -> io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let temporary = dir.join(temporary);
    let mut file = File::options().write(true).create(true).truncate(true).mode(mode).open(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&temporary, dir.join(name))?;
    sync_dir(dir)
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

fn vms_dir(state_dir: &Path) -> PathBuf {
    state_dir.join("vms")
}

/// Of a record, whatever else is in it.
#[derive(Deserialize)]
struct Format {
    format: u32,
}

/// Every record of this host. One that can't be read is an error: ignoring it could run its vm twice.
pub fn load_all(state_dir: &Path) -> Result<Vec<Record>, RecordError> {
    let dir = vms_dir(state_dir);
    fs::create_dir_all(&dir).map_err(|source| RecordError::Write { path: dir.clone(), source })?;
    let unreadable = |path: &Path| {
        let path = path.to_owned();
        move |source| RecordError::Read { path, source }
    };
    let mut records = Vec::new();
    for entry in fs::read_dir(&dir).map_err(unreadable(&dir))? {
        let path = entry.map_err(unreadable(&dir))?.path().join(RECORD);
        let text = match fs::read(&path) {
            Ok(text) => text,
            // Created and not yet written, or half removed: nothing was started under it, or everything ended.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(source) => return Err(RecordError::Read { path, source }),
        };
        let damaged = |source| RecordError::Damaged { path: path.clone(), source };
        let Format { format } = serde_json::from_slice(&text).map_err(damaged)?;
        if format > FORMAT {
            return Err(RecordError::Format { path, found: format });
        }
        let record: Record = serde_json::from_slice(&text).map_err(damaged)?;
        records.push(Record { format: FORMAT, ..record });
    }
    records.sort_by(|a, b| a.run.vm.cmp(&b.run.vm));
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::*;
    use drover_model::Bytes;

    fn record(vm: &str, generation: u64) -> Record {
        let run = VmRun {
            vm: vm.parse().unwrap(),
            label: "t-a".to_owned(),
            image: "img".parse().unwrap(),
            kernel: false,
            initrd: false,
            disk: true,
            cmdline: String::new(),
            vcpus: 1,
            memory: Bytes::mib(64),
            nic: None,
        };
        Record::new(run, Generation(generation), Role::Run)
    }

    #[test]
    fn records_survive_a_restart_whole_or_not_at_all() {
        let state = tempfile::tempdir().unwrap();
        let (a, b) = (record("vm-a", 1), record("vm-b", 4));
        for record in [&a, &b] {
            VmDir::new(state.path(), &record.run.vm).save(record).unwrap();
        }
        // The crash: a newer record of vm-a was half written, and vm-c's directory just made.
        fs::write(state.path().join("vms/vm-a").join(RECORD_TEMPORARY), b"{\"format\":1,\"run\":").unwrap();
        fs::create_dir(state.path().join("vms/vm-c")).unwrap();
        fs::write(state.path().join("vms/vm-c").join(RECORD_TEMPORARY), b"{").unwrap();
        assert_eq!(load_all(state.path()).unwrap(), [a.clone(), b]);
        let newer = Record { role: Role::Ended(Ended::Stopped), ..record("vm-a", 2) };
        VmDir::new(state.path(), &newer.run.vm).save(&newer).unwrap();
        assert_eq!(load_all(state.path()).unwrap()[0], newer);
    }

    #[test]
    fn a_damaged_record_is_said_and_not_skipped() {
        let state = tempfile::tempdir().unwrap();
        VmDir::new(state.path(), &"vm-a".parse().unwrap()).save(&record("vm-a", 1)).unwrap();
        let path = state.path().join("vms/vm-a").join(RECORD);
        fs::write(&path, b"{}").unwrap();
        assert!(matches!(load_all(state.path()), Err(RecordError::Damaged { path: said, .. }) if said == path));
        let text = serde_json::to_string(&Record { format: 9, ..record("vm-a", 1) }).unwrap();
        fs::write(&path, text).unwrap();
        assert!(matches!(load_all(state.path()), Err(RecordError::Format { found: 9, .. })));
    }

    #[test]
    fn removing_twice_is_the_same_as_once() {
        let state = tempfile::tempdir().unwrap();
        let dir = VmDir::new(state.path(), &"vm-a".parse().unwrap());
        dir.save(&record("vm-a", 1)).unwrap();
        dir.remove().unwrap();
        dir.remove().unwrap();
        assert_eq!(load_all(state.path()).unwrap(), []);
    }

    #[test]
    fn every_role_reads_back() {
        let (host, strategy): (HostId, _) = ("h2".parse().unwrap(), Strategy::PRE_COPY);
        let limits = MigrationPolicy { downtime_max: Millis(300), ..MigrationPolicy::default() };
        let relay = Some([10, 0, 0, 2].into());
        let target = MigrationTarget { host: host.clone(), address: [127, 0, 0, 1].into(), port: 1, relay };
        let migration = MigrationId(3);
        for role in [
            Role::Run,
            Role::Stop { grace: Millis(5) },
            Role::Receive { migration, from: host, strategy },
            Role::Send { migration, target, limits, strategy, step: SendStep::PostCopied },
            Role::Ended(Ended::Stopped),
            Role::Ended(Ended::Failed { why: "x".to_owned() }),
            Role::Ended(Ended::IncomingFailed { migration, why: "x".to_owned() }),
        ] {
            let text = serde_json::to_string(&role).unwrap();
            assert_eq!(serde_json::from_str::<Role>(&text).unwrap(), role, "{text}");
        }
    }
}

//! Who may write to the file.
//!
//! ```text
//!            ┌────── renewed by every commit, or by itself after a third of the term ──────┐
//!            ▼                                                                             │
//!  free ─▶ held (epoch n) ────────────────────────────────────────────────────────────────┘
//!   ▲        │ released, or its process is gone: free at once
//!   └────────┤ expired (its process hangs): another takes it, epoch n + 1
//!            └────────────────────────────────────────────────────────────▶ LeaseLost at its next write
//! ```
//! The row with the epoch is what fences: every writing transaction demands that the epoch is still its own, so a
//! step of the clock can make somebody lose the lease, but never let two write. Beside it, the holder of epoch n
//! locks byte n of a file next to the database (an open file description lock, fcntl(2)): the kernel lets go of it when
//! the process ends, however it ends, so a restart after a crash waits for nothing. SQLite in WAL mode is for
//! processes of one machine (<https://sqlite.org/wal.html>), and so is the lock.

use super::{StoreError, failure};
use drover_model::Millis;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use sqlx::sqlite::SqliteConnection;
use sqlx::{Connection as _, Row as _};
use std::fs::File;
use std::path::Path;

/// How long a holder that says nothing keeps the lease.
pub(super) const TERM: Millis = Millis::secs(15);
const NAME: &str = "leader";

/// Milliseconds since 1970-01-01 UTC, by the database's clock; a macro, so that statements stay literals.
macro_rules! database_now {
    () => {
        "CAST(unixepoch('subsec') * 1000 AS INTEGER)"
    };
}

#[derive(Debug)]
pub(super) struct Lease {
    pub epoch: i64,
    /// Open for as long as the lease is held: closing it gives up the lock.
    _lock: File,
}

/// Whether byte `epoch` of the file could be locked; it stays locked until `file` is closed.
fn lock(file: &File, epoch: i64) -> std::io::Result<bool> {
    let range = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: epoch,
        l_len: 1,
        l_pid: 0,
    };
    match fcntl(file, FcntlArg::F_OFD_SETLK(&range)) {
        Ok(_) => Ok(true),
        Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EACCES) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Takes the lease, or says who holds it.
pub(super) async fn take(
    connection: &mut SqliteConnection,
    path: &str,
    lock_path: &Path,
    holder: &str,
) -> Result<Lease, StoreError> {
    let fail = |error| failure(path, error);
    let fail_lock = |source| StoreError::Lock { path: lock_path.display().to_string(), source };
    let file =
        File::options().create(true).truncate(false).read(true).write(true).open(lock_path).map_err(fail_lock)?;
    let mut tx = connection.begin_with("BEGIN IMMEDIATE").await.map_err(fail)?;
    let row = sqlx::query(concat!(
        "SELECT holder, epoch, expires_at - ",
        database_now!(),
        " AS left FROM leases WHERE name = ?"
    ))
    .bind(NAME)
    .fetch_optional(&mut *tx)
    .await
    .map_err(fail)?;
    let mut epoch = 1;
    if let Some(row) = row {
        let left: i64 = row.try_get("left").map_err(fail)?;
        epoch = row.try_get::<i64, _>("epoch").map_err(fail)? + 1;
        let alive = !lock(&file, epoch - 1).map_err(fail_lock)?;
        if alive && left > 0 {
            let holder = row.try_get("holder").map_err(fail)?;
            return Err(StoreError::LeaseHeld { path: path.to_owned(), holder, expires_in: Millis(left as u64) });
        }
    }
    if !lock(&file, epoch).map_err(fail_lock)? {
        // Only a process that opened this file by another lock file's name, or a restored backup, gets here.
        let holder = "a process that this file does not know".to_owned();
        return Err(StoreError::LeaseHeld { path: path.to_owned(), holder, expires_in: TERM });
    }
    sqlx::query(concat!(
        "INSERT INTO leases (name, holder, epoch, expires_at) VALUES (?1, ?2, ?3, ",
        database_now!(),
        " + ?4) ON CONFLICT (name) DO UPDATE SET holder = ?2, epoch = ?3, expires_at = excluded.expires_at"
    ))
    .bind(NAME)
    .bind(holder)
    .bind(epoch)
    .bind(TERM.0 as i64)
    .execute(&mut *tx)
    .await
    .map_err(fail)?;
    tx.commit().await.map_err(fail)?;
    Ok(Lease { epoch, _lock: file })
}

/// Within a transaction: demands that the lease is still this one, and prolongs it.
pub(super) async fn renew(tx: &mut SqliteConnection, path: &str, epoch: i64) -> Result<(), StoreError> {
    let renewed =
        sqlx::query(concat!("UPDATE leases SET expires_at = ", database_now!(), " + ? WHERE name = ? AND epoch = ?"))
            .bind(TERM.0 as i64)
            .bind(NAME)
            .bind(epoch)
            .execute(&mut *tx)
            .await
            .map_err(|error| failure(path, error))?;
    if renewed.rows_affected() == 1 { Ok(()) } else { Err(lost(tx, path).await?) }
}

/// Within a transaction: anybody may take it from now on.
pub(super) async fn release(tx: &mut SqliteConnection, path: &str, epoch: i64) -> Result<(), StoreError> {
    let released = sqlx::query("UPDATE leases SET expires_at = 0, epoch = epoch + 1 WHERE name = ? AND epoch = ?")
        .bind(NAME)
        .bind(epoch)
        .execute(&mut *tx)
        .await
        .map_err(|error| failure(path, error))?;
    if released.rows_affected() == 1 { Ok(()) } else { Err(lost(tx, path).await?) }
}

async fn lost(tx: &mut SqliteConnection, path: &str) -> Result<StoreError, StoreError> {
    let holder: Option<String> = sqlx::query_scalar("SELECT holder FROM leases WHERE name = ?")
        .bind(NAME)
        .fetch_optional(tx)
        .await
        .map_err(|error| failure(path, error))?;
    let holder = holder.unwrap_or_else(|| "nobody (its row in the table leases is gone)".to_owned());
    Ok(StoreError::LeaseLost { path: path.to_owned(), holder })
}

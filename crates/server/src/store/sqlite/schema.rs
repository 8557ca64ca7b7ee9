//! The schema's versions, as migrations of sqlx (`crates/server/migrations`).
//!
//! Versions of drover before migration 3 numbered the schema in a table of their own, `schema_version`: 1 and 2 are
//! the first two migrations, and a file that has them is taken over as it is.

use super::{StoreError, failure};
use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};
use sqlx::sqlite::SqliteConnection;
use sqlx::{SqlSafeStr as _, query_scalar};

/// `schema_version` of a file whose migrations are sqlx's.
const HANDED_OVER: i64 = 3;

macro_rules! migration {
    ($version:literal, $name:literal) => {
        Migration::new(
            $version,
            $name.into(),
            MigrationType::Simple,
            include_str!(concat!("../../../migrations/", $name, ".sql")).into_sql_str(),
            false,
        )
    };
}

/// A migration is never changed once released: sqlx keeps a checksum of each.
fn migrator() -> Migrator {
    Migrator::with_migrations(vec![
        migration!(1, "0001_objects_and_events"),
        migration!(2, "0002_patterns"),
        migration!(3, "0003_records_changes_lease"),
        migration!(4, "0004_idempotency"),
    ])
}

/// What a file is before anything is done to it.
pub(super) struct Found {
    /// The number that an older version of drover has left.
    before_sqlx: Option<i64>,
    /// Whether there is a lease to be taken before the schema is touched.
    pub has_lease: bool,
}

async fn has_table(connection: &mut SqliteConnection, name: &str) -> Result<bool, sqlx::Error> {
    query_scalar("SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = ?)")
        .bind(name)
        .fetch_one(connection)
        .await
}

/// Looks, and refuses a file of a newer version.
pub(super) async fn look(connection: &mut SqliteConnection, path: &str) -> Result<Found, StoreError> {
    let fail = |error| failure(path, error);
    let known = migrator().iter().map(|migration| migration.version).max().unwrap_or(0);
    let refuse = |found| Err(StoreError::Schema { path: path.to_owned(), found, known });
    let before_sqlx: Option<i64> = match has_table(connection, "schema_version").await.map_err(fail)? {
        true => {
            query_scalar("SELECT version FROM schema_version").fetch_optional(&mut *connection).await.map_err(fail)?
        }
        false => None,
    };
    let applied: Option<i64> = match has_table(connection, "_sqlx_migrations").await.map_err(fail)? {
        true => {
            query_scalar("SELECT max(version) FROM _sqlx_migrations").fetch_one(&mut *connection).await.map_err(fail)?
        }
        false => None,
    };
    match (applied, before_sqlx) {
        (Some(applied), _) if applied > known => return refuse(applied),
        (_, Some(number)) if number > HANDED_OVER => return refuse(number),
        (Some(_) | None, Some(_) | None) => {}
    }
    Ok(Found { before_sqlx, has_lease: has_table(connection, "leases").await.map_err(fail)? })
}

/// Brings the schema up to date.
pub(super) async fn migrate(connection: &mut SqliteConnection, path: &str, found: &Found) -> Result<(), StoreError> {
    let migrator = migrator();
    let fail = |source: MigrateError| match source {
        MigrateError::Execute(source) | MigrateError::ExecuteMigration(source, _) => failure(path, source),
        source => StoreError::Migration { path: path.to_owned(), source },
    };
    // Noted one by one, and again should it have ended in between.
    if let Some(number) = found.before_sqlx.filter(|number| (1..HANDED_OVER).contains(number)) {
        migrator.skip(&mut *connection, Some(number)).await.map_err(fail)?;
    }
    migrator.run(&mut *connection).await.map_err(fail)
}

//! TLS on the migration channels: QEMU's objects for it, made anew for each migration so that renewed certificates count.
//!
//! The source checks that the destination's certificate is the cluster's and valid for its name; the destination
//! admits the certificate of the one source it waits for, by its distinguished name.

use super::Tls;
use crate::machine::Machine;
use crate::qmp::QmpError;
use serde_json::{Value, json};

const CREDENTIALS: &str = "migration-tls";
const ADMITTED: &str = "migration-peer";

type Parameters = Vec<(&'static str, Value)>;

pub(super) async fn set_up_source(machine: &Machine, tls: Option<&Tls>) -> Result<Parameters, QmpError> {
    let Some(tls) = tls else { return Ok(plain()) };
    add_credentials(machine, tls, "client").await?;
    Ok(vec![("tls-creds", json!(CREDENTIALS)), ("tls-hostname", json!(tls.peer)), ("tls-authz", json!(""))])
}

pub(super) async fn set_up_destination(machine: &Machine, tls: Option<&Tls>) -> Result<Parameters, QmpError> {
    let Some(tls) = tls else { return Ok(plain()) };
    add_credentials(machine, tls, "server").await?;
    // As GnuTLS spells a subject that has a common name only (RFC 4514).
    let identity = format!("CN={}", tls.peer);
    add(machine, json!({ "qom-type": "authz-simple", "id": ADMITTED, "identity": identity })).await?;
    Ok(vec![("tls-creds", json!(CREDENTIALS)), ("tls-authz", json!(ADMITTED)), ("tls-hostname", json!(""))])
}

/// The empty word takes back what an earlier migration of the same QEMU had set.
fn plain() -> Parameters {
    vec![("tls-creds", json!("")), ("tls-authz", json!("")), ("tls-hostname", json!(""))]
}

async fn add_credentials(machine: &Machine, tls: &Tls, endpoint: &str) -> Result<(), QmpError> {
    let dir = tls.directory.to_string_lossy();
    let object = json!({
        "qom-type": "tls-creds-x509", "id": CREDENTIALS, "dir": dir, "endpoint": endpoint, "verify-peer": true,
    });
    add(machine, object).await
}

/// Replaces an object of the same name, which keeps the certificates that it read when it was made.
async fn add(machine: &Machine, object: Value) -> Result<(), QmpError> {
    match machine.qmp().execute("object-del", json!({ "id": object["id"] })).await {
        // Not there, as at the first time.
        Ok(_) | Err(QmpError::Command { .. }) => {}
        Err(error) => return Err(error),
    }
    machine.qmp().execute("object-add", object).await.map(drop)
}

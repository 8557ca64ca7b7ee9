//! Past the commit of a post-copy a source that was resumed is stopped, against a scripted QEMU: later versions do it
//! by themselves after a write error, 7.2 can't be made to.

use drover_qemu::migration::{Adopted, Limits, Method, PostCopyBroken, SourceGuest, Strategy, adopt};
use drover_qemu::{Machine, RunStatus};
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixListener;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(30);

struct State {
    migration: &'static str,
    guest: &'static str,
    stops: u32,
}

/// Answers as a source would.
async fn qemu(listener: UnixListener, state: Arc<Mutex<State>>) {
    let (stream, _) = listener.accept().await.unwrap();
    let (read, mut write) = stream.into_split();
    let version = json!({ "qemu": { "micro": 2, "minor": 0, "major": 10 }, "package": "x" });
    let greeting = json!({ "QMP": { "version": version, "capabilities": [] } });
    write.write_all(format!("{greeting}\n").as_bytes()).await.unwrap();
    let mut lines = BufReader::new(read).lines();
    while let Some(line) = lines.next_line().await.unwrap() {
        let message: Value = serde_json::from_str(&line).unwrap();
        let answer = {
            let mut state = state.lock().unwrap();
            match message["execute"].as_str().unwrap() {
                "query-migrate" => json!({ "status": state.migration, "ram": { "total": 1 << 25, "transferred": 1 } }),
                "query-status" => json!({ "status": state.guest }),
                "stop" => {
                    state.stops += 1;
                    state.guest = "paused";
                    json!({})
                }
                _ => json!({}),
            }
        };
        let answer = json!({ "return": answer, "id": message["id"] });
        write.write_all(format!("{answer}\n").as_bytes()).await.unwrap();
    }
}

#[tokio::test]
async fn a_source_that_was_resumed_past_the_commit_of_a_post_copy_is_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("qmp");
    let state = Arc::new(Mutex::new(State { migration: "postcopy-active", guest: "running", stops: 0 }));
    let server = tokio::spawn(qemu(UnixListener::bind(&path).unwrap(), state.clone()));
    let machine = Machine::attach(&path).await.unwrap();
    let strategy = Strategy { method: Method::PostCopy, ..Strategy::PRE_COPY };
    let limits = Limits { downtime_max: PATIENCE, total_max: PATIENCE, commit_wait_max: PATIENCE, resident: None };

    // By the adoption, and again while it is driven, and at its failure.
    let Ok(Adopted::PostCopy(post_copy)) = adopt(&machine, strategy, limits).await else { panic!("no post-copy") };
    assert_eq!(state.lock().unwrap().stops, 1);
    *state.lock().unwrap() = State { migration: "failed", guest: "running", stops: 0 };
    let broken = timeout(PATIENCE, post_copy.run(|_| {})).await.expect("an end").expect_err("a failure");
    let PostCopyBroken::Failed(failed) = broken else { panic!("{broken}") };
    assert_eq!(failed.guest, SourceGuest::StandsStill(RunStatus::Paused));
    assert_eq!(state.lock().unwrap().stops, 1);
    server.abort();
}

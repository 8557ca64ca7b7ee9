//! The protocol client against a scripted server: what QEMU may do, and what it must not.

use drover_qemu::{Qmp, QmpError, QmpEvent};
use serde_json::{Value, json};
use std::time::{Duration, UNIX_EPOCH};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};

const GREETING: &str = r#"{"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": "x"}, "capabilities": ["oob", "new"]}}"#;

struct Server {
    lines: tokio::io::Lines<BufReader<OwnedReadHalf>>,
    write: OwnedWriteHalf,
}

impl Server {
    async fn say(&mut self, message: impl ToString) {
        self.write.write_all(format!("{}\r\n", message.to_string()).as_bytes()).await.unwrap();
    }

    /// The next command's name and id.
    async fn hear(&mut self) -> (String, Value) {
        let line = self.lines.next_line().await.unwrap().expect("a command");
        let message: Value = serde_json::from_str(&line).unwrap();
        (message["execute"].as_str().unwrap().to_owned(), message["id"].clone())
    }

    async fn answer(&mut self, id: Value, value: Value) {
        self.say(json!({ "return": value, "id": id })).await;
    }
}

/// A client that is connected, and the server it is connected to.
async fn connected() -> (TempDir, Qmp, Server) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("qmp");
    let listener = UnixListener::bind(&path).unwrap();
    let accept = async {
        let (stream, _) = listener.accept().await.unwrap();
        let (read, write) = UnixStream::into_split(stream);
        let mut server = Server { lines: BufReader::new(read).lines(), write };
        server.say(GREETING).await;
        let (command, id) = server.hear().await;
        assert_eq!(command, "qmp_capabilities");
        server.answer(id, json!({})).await;
        server
    };
    let (qmp, server) = tokio::join!(Qmp::connect(&path), accept);
    (dir, qmp.unwrap(), server)
}

#[tokio::test]
async fn overlapping_calls_get_their_own_answers_in_any_order() {
    let (_dir, qmp, mut server) = connected().await;
    assert_eq!(qmp.version().to_string(), "10.0.2");
    let serve = async {
        let (one, one_id) = server.hear().await;
        let (two, two_id) = server.hear().await;
        server.answer(two_id, json!(two)).await;
        server.answer(one_id, json!(one)).await;
    };
    let (a, b, ()) = tokio::join!(qmp.execute("a", Value::Null), qmp.execute("b", json!({ "x": 1 })), serve);
    assert_eq!((a.unwrap(), b.unwrap()), (json!("a"), json!("b")));
}

#[tokio::test]
async fn a_dropped_call_harms_no_other() {
    let (_dir, qmp, mut server) = connected().await;
    let dropped = tokio::spawn({
        let qmp = qmp.clone();
        async move { qmp.execute("dropped", Value::Null).await }
    });
    let (command, dropped_id) = server.hear().await;
    assert_eq!(command, "dropped");
    dropped.abort();
    assert!(dropped.await.unwrap_err().is_cancelled());
    let serve = async {
        let (_, id) = server.hear().await;
        server.answer(dropped_id, json!("too late")).await;
        server.answer(id, json!("in time")).await;
    };
    let (answer, ()) = tokio::join!(qmp.execute("next", Value::Null), serve);
    assert_eq!(answer.unwrap(), json!("in time"));
}

#[tokio::test]
async fn unknown_events_and_fields_pass_and_come_before_the_answer_that_follows_them() {
    let (_dir, qmp, mut server) = connected().await;
    let mut events = qmp.events();
    let serve = async {
        let (_, id) = server.hear().await;
        let at = json!({ "seconds": 1_700_000_000, "microseconds": 250_000 });
        server.say(json!({ "event": "FROM_THE_FUTURE", "data": { "x": 1 }, "timestamp": at, "extra": [] })).await;
        server.say(json!({ "event": "STOP", "timestamp": { "seconds": -1, "microseconds": -1 } })).await;
        server.say(json!({ "unknown": "message" })).await;
        server.say(json!({ "return": { "status": "running", "extra": 1 }, "id": id, "extra": 1 })).await;
    };
    let (answer, ()) = tokio::join!(qmp.execute("query-status", Value::Null), serve);
    assert_eq!(answer.unwrap()["status"], "running");
    let at = UNIX_EPOCH + Duration::from_millis(1_700_000_000_250);
    let first = QmpEvent { name: "FROM_THE_FUTURE".to_owned(), data: json!({ "x": 1 }), at };
    assert_eq!(events.try_recv().unwrap(), first);
    assert_eq!(events.try_recv().unwrap().name, "STOP");
}

#[tokio::test]
async fn a_refusal_carries_qemus_words() {
    let (_dir, qmp, mut server) = connected().await;
    let serve = async {
        let (_, id) = server.hear().await;
        server.say(json!({ "error": { "class": "CommandNotFound", "desc": "no such command" }, "id": id })).await;
    };
    let (answer, ()) = tokio::join!(qmp.execute("nonsense", Value::Null), serve);
    let error = answer.unwrap_err();
    assert_eq!(error.to_string(), "QEMU refused nonsense: no such command");
    assert!(matches!(error, QmpError::Command { class, .. } if class == "CommandNotFound"));
}

#[tokio::test]
async fn an_answer_of_another_shape_names_the_command() {
    let (_dir, qmp, mut server) = connected().await;
    let serve = async {
        let (_, id) = server.hear().await;
        server.answer(id, json!("text")).await;
    };
    let (answer, ()) = tokio::join!(qmp.query::<u64>("query-number", Value::Null), serve);
    assert!(matches!(answer, Err(QmpError::Protocol { command, .. }) if command == "query-number"));
}

#[tokio::test]
async fn a_closed_socket_ends_waiting_calls_later_calls_and_event_receivers() {
    let (_dir, qmp, mut server) = connected().await;
    let mut events = qmp.events();
    let close = async {
        server.hear().await;
        drop(server);
    };
    let (answer, ()) = tokio::join!(qmp.execute("quit", Value::Null), close);
    assert!(matches!(answer, Err(QmpError::Closed { .. })));
    qmp.closed().await;
    assert!(qmp.is_closed());
    assert!(matches!(qmp.execute("again", Value::Null).await, Err(QmpError::Closed { .. })));
    assert!(events.recv().await.is_err());
    assert!(qmp.events().recv().await.is_err());
}

#[tokio::test]
async fn what_is_no_message_is_skipped() {
    let (_dir, qmp, mut server) = connected().await;
    let serve = async {
        let (_, id) = server.hear().await;
        server.say("not json").await;
        server.say(json!({ "event": "LONG", "data": "x".repeat(9 << 20) })).await;
        server.answer(id, json!("done")).await;
    };
    let mut events = qmp.events();
    let (answer, ()) = tokio::join!(qmp.execute("x", Value::Null), serve);
    assert_eq!(answer.unwrap(), json!("done"));
    assert!(events.try_recv().is_err(), "the long event is gone");
}

#[tokio::test]
async fn a_receiver_that_lags_loses_old_events_and_nothing_else() {
    let (_dir, qmp, mut server) = connected().await;
    let mut events = qmp.events();
    let serve = async {
        let (_, id) = server.hear().await;
        for number in 0..1000 {
            server.say(json!({ "event": "TICK", "data": number })).await;
        }
        server.answer(id, json!("done")).await;
    };
    let (answer, ()) = tokio::join!(qmp.execute("x", Value::Null), serve);
    assert_eq!(answer.unwrap(), json!("done"));
    assert!(matches!(events.recv().await, Err(tokio::sync::broadcast::error::RecvError::Lagged(_))));
    let mut last = Value::Null;
    while let Ok(event) = events.try_recv() {
        last = event.data;
    }
    assert_eq!(last, json!(999));
}

#[tokio::test]
async fn the_last_clone_closes_the_socket() {
    let (_dir, qmp, mut server) = connected().await;
    let clone = qmp.clone();
    drop(qmp);
    assert!(!clone.is_closed());
    drop(clone);
    assert!(server.lines.next_line().await.unwrap().is_none());
}

#[tokio::test]
async fn a_monitor_that_is_not_there_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let error = Qmp::connect(&dir.path().join("nothing.qmp")).await.unwrap_err();
    assert!(matches!(error, QmpError::Connect { .. }));
    assert!(error.to_string().contains("nothing.qmp"), "{error}");
}

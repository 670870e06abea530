//! What a line means, and conversations with the far end of a connection.

use proptest::prelude::*;
use tokio::sync::mpsc;

use super::*;

const GREETING: &str = concat!(
    r#"{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "x"}, "#,
    r#""capabilities": ["oob"]}}"#
);

#[test]
fn every_kind_of_line_is_told_apart() {
    let event = QmpEvent { name: "STOP".into(), data: Value::Null };
    let table = [
        (GREETING, QmpMessage::Greeting("7.2.22".into())),
        (r#"{"event": "STOP", "timestamp": {}}"#, QmpMessage::Event(event)),
        (r#"{"return": 3, "id": 7}"#, QmpMessage::Reply(7, Ok(json!(3)))),
        (
            r#"{"id": 8, "error": {"class": "GenericError", "desc": "no"}}"#,
            QmpMessage::Reply(8, Err("no".into())),
        ),
        (r#"{"return": {}}"#, QmpMessage::Garbage),
        (r#"{"id": 9}"#, QmpMessage::Garbage),
        (r#"{"QMP": {}}"#, QmpMessage::Garbage),
        ("[1, 2]", QmpMessage::Garbage),
        ("", QmpMessage::Garbage),
    ];
    for (line, expected) in table {
        assert_eq!(parse(line.as_bytes()), expected, "{line}");
    }
}

proptest! {
    #[test]
    fn no_line_makes_the_parser_panic(line in proptest::collection::vec(any::<u8>(), 0..200)) {
        parse(&line);
    }

    #[test]
    fn no_nearly_right_line_does_either(id in ".{0,9}", body in "[\\[\\]{}:,\"a-z0-9]{0,30}") {
        parse(format!(r#"{{"id": {id}, "return": {body}}}"#).as_bytes());
        parse(format!(r#"{{"QMP": {body}, "event": {id}}}"#).as_bytes());
    }
}

/// The far end of a connection: reads requests, writes what the test wants.
#[derive(Debug)]
struct Far {
    lines: tokio::io::Lines<BufReader<OwnedReadHalf>>,
    writer: OwnedWriteHalf,
}

impl Far {
    async fn request(&mut self) -> Value {
        serde_json::from_str(&self.lines.next_line().await.unwrap().unwrap()).unwrap()
    }

    async fn say(&mut self, text: &str) {
        self.writer.write_all(format!("{text}\n").as_bytes()).await.unwrap();
    }
}

async fn connected() -> (Qmp, Far, mpsc::UnboundedReceiver<QmpEvent>) {
    let (near, far) = UnixStream::pair().unwrap();
    let (reader, writer) = far.into_split();
    let lines = BufReader::new(reader).lines();
    let mut far = Far { lines, writer };
    let (sender, events) = mpsc::unbounded_channel();
    far.say(GREETING).await;
    let opening = tokio::spawn(Qmp::open(near, COMMAND_TIMEOUT, move |e| sender.send(e).unwrap()));
    assert_eq!(far.request().await["execute"], "qmp_capabilities");
    far.say(r#"{"return": {}, "id": 1}"#).await;
    (opening.await.unwrap().unwrap(), far, events)
}

#[tokio::test]
async fn replies_find_their_commands_in_any_order_and_amid_noise() {
    let (qmp, mut far, mut events) = connected().await;
    let (first, second) = (qmp.execute("a", json!({})), qmp.execute("b", json!({})));
    let far_end = async {
        let (a, b) = (far.request().await, far.request().await);
        far.say(&format!(r#"{{"return": "B", "id": {}}}"#, b["id"])).await;
        far.say("} noise {").await;
        far.say(r#"{"event": "RESET", "data": {"guest": true}}"#).await;
        far.say(&format!(r#"{{"error": {{"desc": "no A"}}, "id": {}}}"#, a["id"])).await;
    };
    let (first, second, ()) = tokio::join!(first, second, far_end);
    assert_eq!(second.unwrap(), "B");
    let refused = first.unwrap_err().to_string();
    assert_eq!(refused, "QEMU refused a: no A");
    assert_eq!(events.recv().await.unwrap().data["guest"], true);
}

#[tokio::test]
async fn a_closed_connection_fails_what_waits_and_what_comes_later() {
    let (qmp, far, _events) = connected().await;
    let waiting = qmp.execute("a", json!({}));
    let (result, ()) = tokio::join!(waiting, async { drop(far) });
    assert_eq!(result.unwrap_err(), closed());
    qmp.closed().await;
    let late = qmp.execute("b", json!({})).await;
    assert_eq!(late.unwrap_err(), closed());
}

#[tokio::test]
async fn a_silent_qemu_is_given_up_after_the_timeout() {
    let (near, _far) = UnixStream::pair().unwrap();
    let limit = Duration::from_millis(20);
    let error = Qmp::open(near, limit, |_| ()).await.unwrap_err();
    assert_eq!(error, timed_out("greeting", limit));
    let (qmp, _far, _events) = connected().await;
    let limit = Duration::from_millis(20);
    let error = qmp.execute_within("stop", json!({}), limit).await;
    assert_eq!(error.unwrap_err(), timed_out("stop", limit));
    assert!(qmp.pending.lock().as_ref().unwrap().is_empty());
}

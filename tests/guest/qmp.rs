//! Conversations in QEMU's own protocol, with a real QEMU.
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::time::{Duration, Instant};

use crate::common::{Mounted, assert_errno, eventually};
use serde_json::{Value, json};

/// A conversation by a client that knows nothing of aqfs.
struct Client {
    lines: BufReader<File>,
    file: File,
}

impl Client {
    fn open(aq: &Mounted) -> Self {
        let file = File::options().read(true).write(true).open(aq.path("vm1/qmp")).unwrap();
        let mut client = Self { lines: BufReader::new(file.try_clone().unwrap()), file };
        assert!(client.next()["QMP"]["version"]["qemu"]["major"].is_u64());
        client
    }

    fn say(&self, text: &str) {
        (&self.file).write_all(text.as_bytes()).unwrap();
    }

    /// Returns the next line, `null` at the end.
    fn next(&mut self) -> Value {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        if line.is_empty() { Value::Null } else { serde_json::from_str(&line).unwrap() }
    }

    /// Returns the next line that is not an event.
    fn answer(&mut self) -> Value {
        std::iter::repeat_with(|| self.next()).find(|line| line.get("event").is_none()).unwrap()
    }
}

fn paused() -> Mounted {
    let aq = Mounted::with_image();
    aq.sh("mkdir vm1 && echo 'start paused' > vm1/ctl && cat vm1/wait").ok();
    aq
}

#[test]
fn each_conversation_gets_its_own_answers_with_its_own_ids() {
    let aq = paused();
    let (mut one, mut two) = (Client::open(&aq), Client::open(&aq));
    one.say("{\"execute\": \"qmp_capabilities\", \"id\": \"hello\"}\r\n");
    assert_eq!(one.next(), json!({"return": {}, "id": "hello"}));
    for round in 0..50 {
        one.say("{\"execute\": \"query-name\", \"id\": {\"a\": [1, null]}}\n");
        two.say(&format!("{{\"execute\": \"query-status\", \"id\": {round}}}\n"));
        assert_eq!(one.answer(), json!({"return": {"name": "vm1"}, "id": {"a": [1, null]}}));
        let answer = two.answer();
        assert_eq!((&answer["id"], &answer["return"]["running"]), (&json!(round), &json!(false)));
    }
    // Without an id there is none in the answer; two commands of one write are answered in turn.
    two.say("{\"execute\": \"query-name\"}\n{\"execute\": \"query-");
    two.say("uuid\"}\n");
    assert_eq!(two.answer(), json!({"return": {"name": "vm1"}}));
    assert_eq!(two.answer()["return"]["UUID"], aq.info("vm1", "uuid"));
}

#[test]
fn mistakes_are_answered_as_qemu_does() {
    let aq = paused();
    let mut client = Client::open(&aq);
    let table = [
        ("nonsense", "GenericError", "JSON parse error"),
        ("[1]", "GenericError", "must be a JSON object"),
        (
            r#"{"execute": "qmp_capabilities", "arguments": {"enable": ["oob"]}}"#,
            "GenericError",
            "",
        ),
        (r#"{"execute": "no-such-thing"}"#, "CommandNotFound", "no-such-thing"),
        (
            r#"{"execute": "query-name", "arguments": {"x": 1}}"#,
            "GenericError",
            "'x' is unexpected",
        ),
        (r#"{"exec": "query-name"}"#, "GenericError", "'exec' is unexpected"),
        (r#"{}"#, "GenericError", "'execute'"),
    ];
    for (line, class, text) in table {
        client.say(&format!("{line}\n"));
        let error = client.answer()["error"].clone();
        assert_eq!(error["class"], class, "{line}: {error}");
        assert!(error["desc"].as_str().unwrap().contains(text), "{line}: {error}");
    }
    client.say("\n\r\n{\"execute\": \"qmp_capabilities\"}\n{\"execute\": \"qmp_capabilities\"}\n");
    assert_eq!(client.answer(), json!({"return": {}}));
    assert_eq!(client.answer()["error"]["class"], "CommandNotFound");
    assert_errno((&client.file).write(&[b' '; 70_000]), libc::EFBIG);
    client.say("{\"execute\": \"query-name\"}\n");
    assert_eq!(client.answer()["return"]["name"], "vm1");
}

#[test]
fn the_status_follows_what_is_done_here_and_everybody_hears_of_it() {
    let aq = paused();
    let mut watcher = BufReader::new(File::open(aq.path("vm1/qmp")).unwrap());
    let mut heard = |name: &str| {
        let mut line = String::new();
        while !line.contains(name) {
            line.clear();
            assert_ne!(watcher.read_line(&mut line).unwrap(), 0, "no {name}");
        }
    };
    // Without a last newline, and closed at once.
    aq.sh("printf '{\"execute\": \"cont\"}' > vm1/qmp").ok();
    heard("RESUME");
    eventually("running", Duration::from_secs(10), || aq.read("vm1/status") != "paused");
    let mut client = Client::open(&aq);
    client.say("{\"execute\": \"stop\"}\n");
    assert_eq!(client.next()["event"], "STOP");
    assert_eq!(client.next(), json!({"return": {}}));
    aq.wait_for_status("vm1", "paused");
    assert_eq!(aq.sh("echo resume > vm1/ctl && cat vm1/error").ok(), "ok");
    client.say("{\"execute\": \"quit\"}\n");
    heard("SHUTDOWN");
    let rest: Vec<Value> =
        std::iter::repeat_with(|| client.next()).take_while(|l| !l.is_null()).collect();
    assert!(rest.contains(&json!({"return": {}})), "{rest:?}");
    aq.wait_for_status("vm1", "stopped");
    assert_errno((&client.file).write(b"{}\n"), libc::EHOSTUNREACH);
    assert_errno(File::open(aq.path("vm1/qmp")), libc::EHOSTDOWN);
    assert!(aq.read("vm1/error").contains("qmp: stopped"), "{}", aq.read("vm1/error"));
}

#[test]
fn a_client_that_does_not_read_delays_no_other() {
    let aq = paused();
    let deaf = Client::open(&aq);
    let schema = b"{\"execute\": \"query-qmp-schema\"}\n";
    // The answers have 0.2 MiB each: at some point no further command is taken, and says so.
    let began = Instant::now();
    let refused = std::iter::repeat_with(|| (&deaf.file).write(schema)).take(100);
    let refused = refused.take_while(|w| w.is_ok()).count();
    assert!(refused < 40 && began.elapsed() < Duration::from_secs(20), "{refused}");
    let mut other = Client::open(&aq);
    other.say("{\"execute\": \"query-name\"}\n");
    assert_eq!(other.answer()["return"]["name"], "vm1");
    assert_eq!(
        aq.sh("echo resume > vm1/ctl && echo pause > vm1/ctl && cat vm1/status").ok(),
        "paused"
    );
    // What was taken is answered all the same.
    let mut lines = deaf.lines;
    for _ in 0..refused {
        let mut line = Vec::new();
        while !line.ends_with(b"\n") || line.starts_with(b"{\"timestamp") {
            line.clear();
            lines.read_until(b'\n', &mut line).unwrap();
        }
        assert!(line.starts_with(b"{\"return\": ["), "{}", String::from_utf8_lossy(&line[..80]));
    }
}

#[test]
fn shells_and_socat_talk_to_it() {
    let aq = paused();
    let script = r#"
        exec 3<>vm1/qmp; read -r greeting <&3
        echo '{"execute": "query-name"}' >&3; read -r answer <&3; echo "$answer"
        exec 3>&-
        echo '{"execute": "query-name", "id": 7}' | socat -t 2 - GOPEN:vm1/qmp | sed 1d
        cp -r vm1/qmp $SCRATCH/copy && grep -c QMP $SCRATCH/copy
        timeout 5 head -n 1 vm1/qmp | jq -r '.QMP.capabilities[0]'"#;
    let said = aq.sh(script).ok().replace('\r', "");
    let name = "{\"return\": {\"name\": \"vm1\"}";
    assert_eq!(said, format!("{name}}}\n{name}, \"id\": 7}}\n1\noob"));
    let mut nothing = String::new();
    File::options().write(true).open(aq.path("vm1/qmp")).unwrap();
    File::open(aq.path("vm1/error")).unwrap().read_to_string(&mut nothing).unwrap();
    assert_eq!(nothing, "ok\n");
}

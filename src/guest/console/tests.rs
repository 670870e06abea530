//! The serial line against a socket that behaves as QEMU's does.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::guest::console::SerialConsole;
use crate::store::layout::{VmDir, names};
use crate::vm::backend::Console;
use crate::vm::stream::{Stream, StreamAccess};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::Handle;
use tokio::time::timeout;

const SOON: Duration = Duration::from_secs(10);

/// A VM's directory, deeper than an address of a socket may be long.
struct Fixture {
    _root: tempfile::TempDir,
    dir: VmDir,
    console: SerialConsole,
}

impl Fixture {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let dir: PathBuf = root.path().join("deep/".repeat(30));
        std::fs::create_dir_all(&dir).unwrap();
        let console = SerialConsole::new(dir.clone(), Handle::current());
        Self { _root: root, dir: VmDir(dir), console }
    }

    fn listen(&self) -> UnixListener {
        let dir = File::open(&self.dir.0).unwrap();
        drop(std::fs::remove_file(self.dir.0.join(names::SERIAL)));
        UnixListener::bind(VmDir::socket(dir.as_raw_fd(), names::SERIAL)).unwrap()
    }

    fn log(&self, bytes: &[u8]) {
        let log = OpenOptions::new().create(true).append(true).open(self.dir.console_log());
        log.unwrap().write_all(bytes).unwrap();
    }

    /// Starts the machine: a listener, and our connection to it.
    async fn start(&self) -> UnixStream {
        let listener = self.listen();
        self.console.attach();
        accept(&listener).await
    }

    fn open(&self, access: StreamAccess) -> Arc<dyn Stream> {
        self.console.open(access)
    }
}

async fn accept(listener: &UnixListener) -> UnixStream {
    timeout(SOON, listener.accept()).await.expect("a connection").unwrap().0
}

/// Parks as the kernel's side does; empty at the end.
async fn read(stream: &dyn Stream, max: usize) -> Vec<u8> {
    let parked = async {
        loop {
            let mut bell = stream.listen();
            if let Some(answer) = stream.try_read(max) {
                return answer.unwrap();
            }
            assert!(!stream.readiness().readable);
            bell.rung().await;
        }
    };
    timeout(SOON, parked).await.expect("bytes or the end")
}

async fn expect(stream: &dyn Stream, wanted: &[u8]) {
    let mut got = Vec::new();
    while got.len() < wanted.len() {
        let bytes = read(stream, wanted.len() - got.len()).await;
        assert!(!bytes.is_empty(), "end after {:?}", String::from_utf8_lossy(&got));
        got.extend(bytes);
    }
    assert_eq!(String::from_utf8_lossy(&got), String::from_utf8_lossy(wanted));
}

#[tokio::test]
async fn every_reader_has_its_own_cursor() {
    let fixture = Fixture::new();
    fixture.log(b"booting\n");
    let early = fixture.open(StreamAccess::Converse);
    let mut qemu = fixture.start().await;
    let watch = fixture.open(StreamAccess::Read);
    expect(&*watch, b"booting\n").await;
    qemu.write_all(b"login: ").await.unwrap();
    expect(&*watch, b"log").await;
    expect(&*watch, b"in: ").await;
    expect(&*early, b"login: ").await;
    let talk = fixture.open(StreamAccess::Converse);
    assert!(talk.try_read(10).is_none(), "from now");
    let late = fixture.open(StreamAccess::Read);
    expect(&*late, b"booting\nlogin: ").await;
    let peek = fixture.open(StreamAccess::Peek);
    expect(&*peek, b"booting\nlogin: ").await;
    assert!(peek.readiness().readable);
    assert_eq!(read(&*peek, 10).await, b"");
    talk.try_write(b"root\n").unwrap().unwrap();
    let mut typed = [0; 5];
    timeout(SOON, qemu.read_exact(&mut typed)).await.unwrap().unwrap();
    assert_eq!(&typed, b"root\n");
}

#[tokio::test]
async fn the_seam_of_log_and_socket_shows_every_byte_once() {
    let fixture = Fixture::new();
    fixture.log(b"[0.1] one\n[0.2] two\n");
    let listener = fixture.listen();
    fixture.console.attach();
    let watch = fixture.open(StreamAccess::Read);
    expect(&*watch, b"[0.1] one\n[0.2] two\n").await;
    // It has read the log; what follows is missed until QEMU accepts.
    fixture.log(b"[0.3] three\n");
    let mut qemu = accept(&listener).await;
    fixture.log(b"[0.4] four\n");
    qemu.write_all(b"[0.4] four\n").await.unwrap();
    expect(&*watch, b"[0.3] three\n[0.4] four\n").await;
    // The connection is lost while QEMU lives.
    drop(qemu);
    fixture.log(b"[0.5] five\n");
    let mut qemu = accept(&listener).await;
    expect(&*watch, b"[0.5] five\n").await;
    fixture.log(b"[0.6] six\n");
    qemu.write_all(b"[0.5] five\n[0.6] six\n").await.unwrap();
    expect(&*watch, b"[0.6] six\n").await;
}

#[tokio::test]
async fn streams_end_with_their_run_and_new_ones_see_the_next() {
    let fixture = Fixture::new();
    let mut qemu = fixture.start().await;
    let first = fixture.open(StreamAccess::Read);
    fixture.log(b"first run\n");
    qemu.write_all(b"first run\n").await.unwrap();
    expect(&*first, b"first").await;
    drop(qemu);
    fixture.console.detach();
    expect(&*first, b" run\n").await;
    assert_eq!(read(&*first, 10).await, b"");
    assert!(first.readiness().hung_up);
    assert!(first.try_write(b"x").unwrap().is_err());
    let waiting = fixture.open(StreamAccess::Read);
    assert!(waiting.try_read(10).is_none());
    let mut qemu = fixture.start().await;
    fixture.log(b"second run\n");
    qemu.write_all(b"second run\n").await.unwrap();
    expect(&*waiting, b"first run\nsecond run\n").await;
    assert_eq!(read(&*first, 10).await, b"");
    // Without a machine, detaching ends those who wait for one.
    drop(qemu);
    fixture.console.detach();
    let waiting = fixture.open(StreamAccess::Read);
    fixture.console.detach();
    assert_eq!(read(&*waiting, 10).await, b"");
}

#[tokio::test]
async fn a_slow_reader_loses_the_oldest_bytes_and_they_are_counted() {
    let fixture = Fixture::new();
    let mut qemu = fixture.start().await;
    let (slow, quick) =
        (fixture.open(StreamAccess::Converse), fixture.open(StreamAccess::Converse));
    let total = (1 << 20) + 300_000;
    let bytes: Vec<u8> = (0..=250u8).cycle().take(total).collect();
    let sent = bytes.clone();
    let write = tokio::spawn(async move {
        qemu.write_all(&sent).await.unwrap();
        qemu
    });
    let mut got = Vec::new();
    while got.len() < total {
        got.extend(read(&*quick, 64 << 10).await);
    }
    assert!(got == bytes, "the quick one has them all");
    assert_eq!(fixture.console.lost(), 300_000);
    assert!(slow.try_read(usize::MAX).unwrap().unwrap() == bytes[300_000..]);
    drop(write.await.unwrap());
}

#[tokio::test]
async fn a_guest_that_does_not_read_holds_writers_back() {
    let fixture = Fixture::new();
    let mut qemu = fixture.start().await;
    let send = fixture.open(StreamAccess::Write);
    assert_eq!(send.try_read(10).unwrap().unwrap(), b"");
    let (mut written, mut idle) = (0, 0);
    // Full for good once the socket is full too: nothing is taken for some turns of the task.
    while idle < 50 {
        match send.try_write(&[b'x'; 5000]) {
            Some(taken) => (written, idle) = (written + taken.unwrap(), 0),
            None => {
                assert!(!send.readiness().writable);
                idle += 1;
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    }
    let mut bell = send.listen();
    let mut got = vec![0; written];
    timeout(SOON, qemu.read_exact(&mut got)).await.unwrap().unwrap();
    timeout(SOON, bell.rung()).await.expect("room is announced");
    assert!(send.readiness().writable);
    let nothing = qemu.try_read(&mut [0; 10]).unwrap_err();
    assert_eq!(nothing.kind(), ErrorKind::WouldBlock);
}

/// Opens a terminal as `picocom` does: not as the process's own.
fn open_terminal(path: &Path) -> File {
    let mut options = File::options();
    options.read(true).write(true).custom_flags(libc::O_NOCTTY).open(path).unwrap()
}

/// Reads a terminal until it has given as many bytes, off the runtime's thread.
async fn shown(terminal: &File, len: usize) -> String {
    let mut terminal = terminal.try_clone().unwrap();
    let read = tokio::task::spawn_blocking(move || {
        let mut bytes = vec![0; len];
        terminal.read_exact(&mut bytes).map(|()| bytes)
    });
    let bytes = timeout(SOON, read).await.expect("bytes").unwrap().unwrap();
    String::from_utf8(bytes).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_shows_what_is_printed_from_now_on_and_passes_on_what_is_typed() {
    let fixture = Fixture::new();
    let mut qemu = fixture.start().await;
    let watch = fixture.open(StreamAccess::Read);
    qemu.write_all(b"Welcome\r\nvm1 login: ").await.unwrap();
    expect(&*watch, b"Welcome\r\nvm1 login: ").await;
    let path = fixture.console.terminal().unwrap();
    let terminal = open_terminal(&path);
    (&terminal).write_all(b"root\r").unwrap();
    let mut typed = [0; 5];
    timeout(SOON, qemu.read_exact(&mut typed)).await.unwrap().unwrap();
    assert_eq!(&typed, b"root\r", "raw");
    qemu.write_all(b"root\r\n~ # ").await.unwrap();
    assert_eq!(shown(&terminal, 10).await, "root\r\n~ # ");
    expect(&*watch, b"root\r\n~ # ").await;
    // Written and closed at once, as `echo` does.
    drop(terminal);
    open_terminal(&path).write_all(b"id\r").unwrap();
    let mut typed = [0; 3];
    timeout(SOON, qemu.read_exact(&mut typed)).await.unwrap().unwrap();
    assert_eq!(&typed, b"id\r");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_user_has_a_terminal_and_a_path_is_used_again_once_it_is_closed() {
    let fixture = Fixture::new();
    let mut qemu = fixture.start().await;
    let watch = fixture.open(StreamAccess::Read);
    let path = fixture.console.terminal().unwrap();
    assert_eq!(fixture.console.terminal().unwrap(), path, "no program has opened it");
    let first = open_terminal(&path);
    let other = fixture.console.terminal().unwrap();
    assert_ne!(other, path);
    let second = open_terminal(&other);
    qemu.write_all(b"to all").await.unwrap();
    for terminal in [&first, &second] {
        assert_eq!(shown(terminal, 6).await, "to all");
    }
    drop(second);
    qemu.write_all(b"to whom?\n").await.unwrap();
    assert_eq!(shown(&first, 9).await, "to whom?\n");
    expect(&*watch, b"to allto whom?\n").await;
    // What it has missed is not shown to its next user.
    assert_eq!(fixture.console.terminal().unwrap(), other);
    let second = open_terminal(&other);
    qemu.write_all(b"again").await.unwrap();
    assert_eq!(shown(&second, 5).await, "again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_that_is_not_read_holds_up_nobody_and_loses_the_oldest() {
    let fixture = Fixture::new();
    let mut qemu = fixture.start().await;
    let watch = fixture.open(StreamAccess::Read);
    let terminal = open_terminal(&fixture.console.terminal().unwrap());
    let line = [b'x'; 1023].iter().chain(b"\n").copied().collect::<Vec<_>>();
    let mut seen = 0;
    for _ in 0..3000 {
        timeout(SOON, qemu.write_all(&line)).await.expect("the line is not held up").unwrap();
        while let Some(bytes) = watch.try_read(64 << 10) {
            seen += bytes.unwrap().len();
        }
    }
    while seen < 3000 * 1024 {
        seen += read(&*watch, 64 << 10).await.len();
    }
    qemu.write_all(b"the end").await.unwrap();
    let left = tokio::task::spawn_blocking(move || read_until(&terminal, b"the end"));
    let left = timeout(SOON, left).await.expect("what is left").unwrap();
    assert!(left > 1 << 20 && left < (1 << 20) + (256 << 10), "{left}");
    assert!(fixture.console.lost() > 1 << 20);
}

/// Reads a terminal until it shows `end` last, and says how much that was.
fn read_until(mut terminal: &File, end: &[u8]) -> usize {
    let mut bytes = Vec::new();
    while !bytes.ends_with(end) {
        let mut chunk = [0; 4096];
        let len = terminal.read(&mut chunk).unwrap();
        bytes.extend_from_slice(&chunk[..len]);
    }
    bytes.len()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_hangs_up_after_the_machines_last_words_and_the_next_run_has_another() {
    let fixture = Fixture::new();
    let mut qemu = fixture.start().await;
    let terminal = open_terminal(&fixture.console.terminal().unwrap());
    qemu.write_all(b"Power down\n").await.unwrap();
    drop(qemu);
    fixture.console.detach();
    assert_eq!(shown(&terminal, 11).await, "Power down\n");
    let hung_up = tokio::task::spawn_blocking(move || (&terminal).read(&mut [0; 10]));
    let end = timeout(SOON, hung_up).await.expect("a hang-up").unwrap();
    assert!(matches!(end, Ok(0)) || end.is_err(), "{end:?}");
    let mut qemu = fixture.start().await;
    let terminal = open_terminal(&fixture.console.terminal().unwrap());
    qemu.write_all(b"hello").await.unwrap();
    assert_eq!(shown(&terminal, 5).await, "hello");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_that_a_program_took_for_itself_is_given_up_once_it_is_closed() {
    let fixture = Fixture::new();
    let mut qemu = fixture.start().await;
    let path = fixture.console.terminal().unwrap();
    let terminal = open_terminal(&path);
    rustix::termios::ioctl_tiocexcl(&terminal).unwrap();
    drop(terminal);
    // Root may open it all the same.
    let next = fixture.console.terminal().unwrap();
    assert_eq!(next == path, rustix::process::geteuid().is_root());
    let terminal = open_terminal(&next);
    qemu.write_all(b"hello").await.unwrap();
    assert_eq!(shown(&terminal, 5).await, "hello");
}

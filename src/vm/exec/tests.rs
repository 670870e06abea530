//! The `exec` file over a guest that answers what its commands say.

use async_trait::async_trait;
use tokio::sync::Notify;

use super::*;
use crate::vm::backend::{
    ExecOptions, FilePort, FileServer, GuestNic, JobIo, NicOutcome, NicPlace, OpenPort, OutputKind,
    OutputSink, PortServer, ProbeAnswer,
};
use crate::vm::caller::ProcessId;
use crate::vm::job::MAX_COMMAND;
use crate::vm::probe::Probe;

/// `wait` runs until the gate opens, `die` loses the connection after some output, `big N` says N
/// bytes; every other command says itself.
#[derive(Debug, Default)]
struct Fake {
    gate: Notify,
    ran: Mutex<Vec<(Vec<u8>, Vec<u8>)>>,
    hung_up: Arc<Mutex<usize>>,
}

struct CountDrop(Arc<Mutex<usize>>);

impl Drop for CountDrop {
    fn drop(&mut self) {
        *self.0.lock() += 1;
    }
}

#[async_trait]
impl GuestSession for Fake {
    async fn exec(
        &self,
        command: &[u8],
        stdin: &[u8],
        output: &dyn OutputSink,
    ) -> Result<Exit, BackendError> {
        self.ran.lock().push((command.to_vec(), stdin.to_vec()));
        let text = String::from_utf8_lossy(command).trim_end().to_owned();
        if let Some(len) = text.strip_prefix("big ") {
            let len: usize = len.parse().unwrap();
            for chunk in vec![b'x'; len].chunks(32 << 10) {
                output.accept(OutputKind::Stdout, chunk).await;
            }
            return Ok(Exit::Code(0));
        }
        output.accept(OutputKind::Stdout, format!("[{text}]").as_bytes()).await;
        match text.as_str() {
            "wait" => {
                let guard = CountDrop(Arc::clone(&self.hung_up));
                self.gate.notified().await;
                std::mem::forget(guard);
                Ok(Exit::Signal("TERM".into()))
            }
            "die" => Err(BackendError::Unreachable { reason: "connection lost".into() }),
            _ => Ok(Exit::Code(3)),
        }
    }

    async fn run(
        &self,
        command: &[u8],
        _options: &ExecOptions,
        io: &dyn JobIo,
    ) -> Result<Exit, BackendError> {
        let mut stdin = Vec::new();
        while let Some(bytes) = io.input().await {
            stdin.extend(bytes);
        }
        self.exec(command, &stdin, io).await
    }

    async fn probe(&self, probe: &Probe) -> Result<ProbeAnswer, BackendError> {
        Ok(ProbeAnswer::Yes(probe.to_string()))
    }

    async fn files(
        &self,
    ) -> Result<Arc<dyn crate::vm::backend::GuestFiles>, crate::vm::backend::NoFiles> {
        unreachable!("no test here has files")
    }

    async fn serve_files(
        &self,
        _server: Arc<dyn FileServer>,
    ) -> Result<Box<dyn FilePort>, BackendError> {
        unimplemented!("no test of commands has files")
    }

    fn set_environment(&self, _variables: Vec<(String, String)>) {}

    async fn set_nets(
        &self,
        _nics: &[GuestNic],
        _idle: &[NicPlace],
        _hosts: &str,
        _wait: Duration,
    ) -> Result<Vec<NicOutcome>, BackendError> {
        Ok(Vec::new())
    }

    async fn serve_web(
        &self,
        _proxy: Arc<dyn PortServer>,
    ) -> Result<Box<dyn OpenPort>, BackendError> {
        unimplemented!("no test with fakes has a proxy")
    }

    async fn closed(&self) {
        std::future::pending::<()>().await;
    }
}

struct Fixture {
    _dir: tempfile::TempDir,
    link: watch::Sender<Link>,
    exec: Exec,
    guest: Arc<Fake>,
}

fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let guest = Arc::new(Fake::default());
    let (link, receiver) = watch::channel(Link::Up(Arc::clone(&guest) as _));
    let (usage, ended) = (Usage::new(None), Box::new(|| ()));
    let exec = Exec::new(dir.path().to_owned(), receiver, usage, Handle::current(), ended);
    Fixture { _dir: dir, link, exec, guest }
}

/// A process, its parent and so on; the last is the session's leader.
fn process(pids: &[u32]) -> Caller {
    let lineage = pids.iter().map(|&pid| ProcessId { pid, start: 1 });
    Caller { uid: 0, lineage: lineage.collect(), session: *pids.last().unwrap() }
}

/// Parks as the kernel's side does.
async fn read(stream: &dyn Stream, max: usize) -> Result<Vec<u8>, VmError> {
    let parked = async {
        loop {
            let mut bell = stream.listen();
            if let Some(answer) = stream.try_read(max) {
                return answer;
            }
            assert!(!stream.readiness().readable, "readable, and nothing to read");
            bell.rung().await;
        }
    };
    timeout(Duration::from_secs(300), parked).await.expect("an answer")
}

async fn read_all(stream: &dyn Stream) -> Result<String, VmError> {
    let mut all = Vec::new();
    loop {
        let bytes = read(stream, 64 << 10).await?;
        if bytes.is_empty() {
            return Ok(String::from_utf8(all).unwrap());
        }
        all.extend(bytes);
    }
}

impl Fixture {
    fn open(&self, pids: &[u32], access: StreamAccess) -> Arc<dyn Stream> {
        self.exec.open(process(pids), access).unwrap()
    }

    /// `echo TEXT > exec`, without the release.
    fn echo(&self, pids: &[u32], text: &str) -> Arc<dyn Stream> {
        let stream = self.open(pids, StreamAccess::Write);
        stream.flush();
        assert_eq!(stream.try_write(text.as_bytes()).unwrap().unwrap(), text.len());
        stream.flush();
        stream
    }

    async fn cat(&self, pids: &[u32]) -> Result<String, VmError> {
        read_all(&*self.open(pids, StreamAccess::Read)).await
    }
}

#[tokio::test]
async fn twice_gives_it_twice_and_a_late_release_starts_nothing_again() {
    let fixture = fixture();
    assert_eq!(fixture.cat(&[9, 1]).await.unwrap(), "", "no command yet");
    let writer = fixture.echo(&[1], "uname -a\n");
    assert_eq!(fixture.cat(&[2, 1]).await.unwrap(), "[uname -a]");
    drop(writer);
    assert_eq!(fixture.cat(&[3, 1]).await.unwrap(), "[uname -a]");
    assert_eq!(fixture.guest.ran.lock().len(), 1);
    assert_eq!(fixture.exec.last_job(&process(&[4, 1])).unwrap().status_line(), "exit 3");
    drop(fixture.echo(&[1], "id\n"));
    assert_eq!(fixture.cat(&[5, 1]).await.unwrap(), "[id]", "the newest among equals");
}

#[tokio::test]
async fn parallel_subshells_and_terminals_never_mix() {
    let fixture = fixture();
    let shells: Vec<[u32; 2]> = (10..14).map(|pid| [pid, 1]).collect();
    let writers: Vec<_> = shells.iter().map(|s| fixture.echo(s, &format!("c{}", s[0]))).collect();
    for shell in shells.iter().rev() {
        let cat = [shell[0] + 100, shell[0], 1];
        assert_eq!(fixture.cat(&cat).await.unwrap(), format!("[c{}]", shell[0]));
    }
    drop(writers);
    assert_eq!(fixture.cat(&[60, 50]).await.unwrap(), "", "another terminal");
}

#[tokio::test]
async fn a_flush_in_the_middle_starts_nothing_and_an_unflushed_text_is_waited_for() {
    let fixture = fixture();
    let group = fixture.echo(&[1], "echo a\n");
    tokio::task::yield_now().await;
    assert!(fixture.guest.ran.lock().is_empty());
    group.try_write(b"echo b\n").unwrap().unwrap();
    let reader = fixture.open(&[2, 1], StreamAccess::Read);
    assert!(reader.try_read(10).is_none() && !reader.readiness().readable);
    assert!(fixture.open(&[3, 1], StreamAccess::Peek).try_read(10).unwrap().unwrap().is_empty());
    drop(group);
    assert_eq!(read_all(&*reader).await.unwrap(), "[echo a\necho b]");
    let own = fixture.open(&[1], StreamAccess::Write);
    own.try_write(b"id").unwrap().unwrap();
    assert_eq!(fixture.cat(&[1]).await.unwrap(), "[id]", "nobody waits for itself");
    own.try_write(b"date").unwrap().unwrap();
    drop(own);
    assert_eq!(fixture.cat(&[1]).await.unwrap(), "[date]", "what follows is the next command");
    drop(fixture.open(&[1], StreamAccess::Write));
    assert_eq!(fixture.cat(&[1]).await.unwrap(), "[date]", "nothing written, no command");
}

#[tokio::test]
async fn bad_and_long_texts() {
    let fixture = fixture();
    let writer = fixture.open(&[1], StreamAccess::Write);
    writer.try_write(&vec![b'x'; MAX_COMMAND]).unwrap().unwrap();
    assert!(matches!(writer.try_write(b"y"), Some(Err(VmError::TooLong { .. }))));
    assert!(matches!(writer.try_write(b"rm -rf /"), Some(Err(VmError::TooLong { .. }))));
    drop(writer);
    assert!(matches!(fixture.cat(&[2, 1]).await, Err(VmError::TooLong { .. })));
    let writer = fixture.open(&[1], StreamAccess::Write);
    assert!(matches!(writer.try_write(b"a\0b"), Some(Err(VmError::Nul))));
    drop(writer);
    assert!(fixture.guest.ran.lock().is_empty());
    let script = "x".repeat(MAX_ARGUMENT + 1);
    drop(fixture.echo(&[1], &script));
    assert_eq!(fixture.cat(&[2, 1]).await.unwrap(), "[sh -s]");
    assert_eq!(fixture.guest.ran.lock()[0].1.len(), script.len());
}

#[tokio::test]
async fn a_conversation_ends_each_answer_with_one_empty_read() {
    let fixture = fixture();
    let talk = fixture.open(&[1], StreamAccess::Converse);
    assert!(talk.try_read(10).is_none());
    talk.try_write(b"id\nda").unwrap().unwrap();
    talk.try_write(b"te\ndie\n").unwrap().unwrap();
    assert_eq!(read(&*talk, 100).await.unwrap(), b"[id]");
    assert_eq!(read(&*talk, 100).await.unwrap(), b"");
    assert_eq!(read_all(&*talk).await.unwrap(), "[date]");
    assert_eq!(read(&*talk, 100).await.unwrap(), b"[die]");
    assert!(read(&*talk, 100).await.is_err());
    assert!(talk.try_read(10).is_none() && talk.readiness().writable);
    assert!(matches!(talk.try_write(b"\0"), Some(Err(VmError::Nul))));
    assert_eq!(fixture.cat(&[1]).await.unwrap(), "", "it is private");
    talk.try_write(b"wait\n").unwrap().unwrap();
    assert_eq!(read(&*talk, 100).await.unwrap(), b"[wait]");
    drop(talk);
    while *fixture.guest.hung_up.lock() == 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_conversation_ends_with_the_vm() {
    let fixture = fixture();
    let talk = fixture.open(&[1], StreamAccess::Converse);
    fixture.link.send_replace(Link::Off);
    assert_eq!(read(&*talk, 10).await.unwrap(), b"");
    assert!(talk.readiness().hung_up);
    assert!(matches!(talk.try_write(b"id\n"), Some(Err(VmError::Refused(_)))));
}

#[tokio::test(start_paused = true)]
async fn a_command_waits_for_a_guest_that_comes_up_but_not_for_ever() {
    let fixture = fixture();
    let up = fixture.link.send_replace(Link::Coming);
    drop(fixture.echo(&[1], "id"));
    let reader = fixture.open(&[2, 1], StreamAccess::Read);
    tokio::time::sleep(READY_TIMEOUT / 2).await;
    assert!(reader.try_read(10).is_none());
    fixture.link.send_replace(up);
    assert_eq!(read_all(&*reader).await.unwrap(), "[id]");
    fixture.link.send_replace(Link::Coming);
    drop(fixture.echo(&[1], "late"));
    let error = fixture.cat(&[2, 1]).await.unwrap_err();
    assert!(matches!(error, VmError::Backend(BackendError::GuestTimeout { seconds: 120 })));
    let status = fixture.exec.last_job(&process(&[1])).unwrap().status_line();
    assert!(status.starts_with("lost: the guest did not answer"), "{status}");
}

#[tokio::test(start_paused = true)]
async fn a_vm_that_is_off_refuses_and_loses_what_runs() {
    let fixture = fixture();
    drop(fixture.echo(&[1], "wait"));
    let reader = fixture.open(&[2, 1], StreamAccess::Read);
    assert_eq!(read(&*reader, 100).await.unwrap(), b"[wait]");
    fixture.link.send_replace(Link::Off);
    assert!(matches!(read(&*reader, 100).await, Err(VmError::Lost(_))));
    assert!(reader.readiness().hung_up);
    assert_eq!(*fixture.guest.hung_up.lock(), 1);
    for access in [StreamAccess::Write, StreamAccess::Converse] {
        let refused = fixture.exec.open(process(&[1]), access);
        assert!(matches!(refused, Err(VmError::Refused(Refusal::Off(Asked { verb: "exec", .. })))));
    }
    assert!(fixture.exec.open(process(&[7]), StreamAccess::Read).is_err());
    assert!(fixture.exec.open(process(&[7]), StreamAccess::Peek).is_ok());
    assert!(fixture.cat(&[3, 1]).await.is_err(), "what it left is still there");
}

#[tokio::test]
async fn a_lost_command_gives_its_output_and_then_the_error() {
    let fixture = fixture();
    drop(fixture.echo(&[1], "die"));
    let reader = fixture.open(&[2, 1], StreamAccess::Read);
    assert_eq!(read(&*reader, 100).await.unwrap(), b"[die]");
    assert!(matches!(read(&*reader, 100).await, Err(VmError::Backend(_))));
    let status = fixture.exec.last_job(&process(&[1])).unwrap().status_line();
    assert_eq!(status, "lost: guest unreachable: connection lost");
}

#[tokio::test]
async fn output_beyond_what_is_kept_waits_for_its_reader() {
    let fixture = fixture();
    let len = 70 << 20;
    drop(fixture.echo(&[1], &format!("big {len}")));
    let job = fixture.exec.last_job(&process(&[1])).unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(job.status_line(), "running");
    let reader = fixture.open(&[2, 1], StreamAccess::Read);
    let mut got = 0;
    loop {
        match read(&*reader, 128 << 10).await.unwrap().len() {
            0 => break,
            n => got += n,
        }
    }
    assert_eq!((got, job.status_line().as_str()), (len, "exit 0"));
}

#[tokio::test]
async fn finished_jobs_are_kept_up_to_a_bound() {
    let fixture = fixture();
    drop(fixture.echo(&[1], "wait"));
    for n in 0..100 {
        drop(fixture.echo(&[1], &format!("c{n}")));
        assert_eq!(fixture.cat(&[2, 1]).await.unwrap(), format!("[c{n}]"));
    }
    tokio::task::yield_now().await;
    assert_eq!(fixture.exec.0.jobs.len(), super::roster::KEPT + 1, "and the one that runs");
}

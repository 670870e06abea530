//! Guests that answer at once, and the ways to them.

use super::*;
use crate::vm::backend::{FilePort, FileServer, Mount, OpenPort, PortServer};
use crate::vm::probe::Probe;

#[async_trait]
impl Guests for Fake {
    async fn prepare(&self, _plan: &LaunchPlan) -> Result<(), BackendError> {
        Ok(())
    }

    async fn connect(&self, _at: &GuestAddress) -> Result<Arc<dyn GuestSession>, BackendError> {
        if *self.0.mute.lock() {
            return Err(BackendError::Unreachable { reason: "fake".into() });
        }
        Ok(Arc::new(FakeSession(Arc::clone(&self.0))))
    }

    async fn identity(&self, _dir: &Path) -> Result<Box<dyn IdentityPort>, BackendError> {
        Ok(Box::new(FakePort(Arc::clone(&self.0))))
    }

    fn client_config(&self, host: &ClientHost) -> String {
        format!("{host:?}\n")
    }

    fn console(&self, _dir: PathBuf) -> Arc<dyn Console> {
        Arc::new(FakeConsole)
    }
}

#[derive(Debug)]
struct FakePort(Arc<Script>);

#[async_trait]
impl IdentityPort for FakePort {
    async fn arm(&mut self, _session: &dyn GuestSession) -> Result<(), BackendError> {
        self.0.calls.lock().push("arm");
        Ok(())
    }

    async fn personalize(&mut self, _plan: &LaunchPlan) -> Result<(), BackendError> {
        self.0.calls.lock().push("personalize");
        self.0.personalize_error.lock().take().map_or(Ok(()), Err)
    }

    async fn dismiss(&mut self) {
        self.0.calls.lock().push("dismiss");
    }
}

#[derive(Debug)]
pub(super) struct FakeSession(pub(super) Arc<Script>);

#[async_trait]
impl GuestSession for FakeSession {
    async fn exec(
        &self,
        command: &[u8],
        _stdin: &[u8],
        output: &dyn OutputSink,
    ) -> Result<Exit, BackendError> {
        self.0.calls.lock().push("exec");
        output.accept(OutputKind::Stdout, command).await;
        Ok(Exit::Code(0))
    }

    /// Says its text and what comes in, until that ends or a signal comes.
    async fn run(
        &self,
        command: &[u8],
        _options: &ExecOptions,
        io: &dyn JobIo,
    ) -> Result<Exit, BackendError> {
        self.0.calls.lock().push("run");
        io.accept(OutputKind::Stdout, command).await;
        io.accept(OutputKind::Stderr, b"err\n").await;
        loop {
            tokio::select! {
                bytes = io.input() => match bytes {
                    Some(bytes) => io.accept(OutputKind::Stdout, &bytes).await,
                    None => return Ok(Exit::Code(3)),
                },
                control = io.control() => if let JobControl::Signal(name) = control {
                    return Ok(Exit::Signal(name));
                },
            }
        }
    }

    async fn probe(&self, probe: &Probe) -> Result<ProbeAnswer, BackendError> {
        Ok(ProbeAnswer::Yes(probe.to_string()))
    }

    async fn files(&self) -> Result<Arc<dyn GuestFiles>, NoFiles> {
        Err(NoFiles::NoServer { reason: "fake".into() })
    }

    async fn serve_files(
        &self,
        server: Arc<dyn FileServer>,
    ) -> Result<Box<dyn FilePort>, BackendError> {
        self.0.calls.lock().push("serve_files");
        server.set_guest_user(0, 0);
        Ok(Box::new(FakePortOfFiles(Arc::clone(&self.0))))
    }

    fn set_environment(&self, _variables: Vec<(String, String)>) {}

    async fn serve_web(
        &self,
        _proxy: Arc<dyn PortServer>,
    ) -> Result<Box<dyn OpenPort>, BackendError> {
        unimplemented!("no test with fakes has a proxy")
    }

    async fn set_nets(
        &self,
        nics: &[GuestNic],
        idle: &[NicPlace],
        hosts: &str,
        _wait: Duration,
    ) -> Result<Vec<NicOutcome>, BackendError> {
        let address = |nic: &GuestNic| format!("{}/{}", nic.address, nic.prefix);
        let addresses: Vec<_> = nics.iter().map(address).collect();
        let said = format!("guest {addresses:?} idle {} {hosts}", idle.len());
        self.0.changes.lock().push(said);
        Ok(vec![NicOutcome::Set; nics.len()])
    }

    async fn closed(&self) {
        std::future::pending::<()>().await;
    }
}

/// Notes what is mounted.
#[derive(Debug)]
struct FakePortOfFiles(Arc<Script>);

#[async_trait]
impl FilePort for FakePortOfFiles {
    async fn mount(&self, mounts: &[Mount]) -> Result<Vec<Result<(), String>>, BackendError> {
        *self.0.mounted.lock() = mounts.to_vec();
        Ok(mounts.iter().map(|_| Ok(())).collect())
    }

    async fn look_again(&self, _paths: &[String]) -> Result<(), BackendError> {
        Ok(())
    }

    async fn closed(&self) {
        std::future::pending::<()>().await;
    }
}

#[derive(Debug)]
struct FakeConsole;

impl Console for FakeConsole {
    fn attach(&self) {}

    fn detach(&self) {}

    fn open(&self, _access: StreamAccess) -> Arc<dyn Stream> {
        Arc::new(Silence(Bell::default()))
    }

    fn terminal(&self) -> Result<PathBuf, BackendError> {
        Ok("/dev/pts/fake".into())
    }

    fn has_terminal_open(&self) -> bool {
        false
    }

    fn lost(&self) -> u64 {
        0
    }
}

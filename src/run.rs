//! The composition root: the only file that sees every layer. It puts them together, mounts, and
//! takes them down. No behaviour of VMs here.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::arch::Arch;
use crate::cli::{self, Cli};
use crate::commands::{self, Failure};
use crate::config::{Mode, MountConfig, default_mount, default_store};
use crate::daemon::{self, DaemonError, MOUNTED};
use crate::files::GuestFileSystem;
use crate::fuse::mountpoint::{self, MountError};
use crate::fuse::{Mounted, files, touch};
use crate::guest::SshGuests;
use crate::image::ImageStore;
use crate::qemu::Qemu;
use crate::qemu::switch::VdeSwitches;
use crate::registry::{Registry, RegistryError};
use crate::store::failure_log::FailureLog;
use crate::store::layout::Layout;
use crate::store::lock::{LockError, Owner, StoreLock};
use crate::store::rolling::Rolling;
use crate::store::{file, quarantine};
use crate::tree::Tree;
use crate::vm::Backends;
use crate::vm::backend::BackendError;
use crate::vm::defaults::Defaults;
use crate::vm::limits::Limits;
use crate::vm::memory::Ledger;
use crate::vm::nets::Nets;
use crate::vm::spec::is_object_name;
use crate::{doctor, man, sys};

/// What is logged. fuser calls it an error that a reader was killed before it was answered, and warns of each request
/// that a mount leaves to the kernel, as extended attributes and ioctl.
const LOGGED: &str = "info,fuser=error,fuser::mnt=info,fuser::session=info,fuser::reply=off";
/// Threads for tasks. They wait nearly all the time.
const WORKERS: usize = 2;

/// Why a command of `aq` failed.
#[expect(missing_docs, reason = "each error's sentence says it")]
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Mount(#[from] MountError),
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error(transparent)]
    Backend(#[from] BackendError),
    #[error(transparent)]
    Daemon(#[from] DaemonError),
    #[error(transparent)]
    Command(#[from] Failure),
    #[error("--image {0}: not the name of an image")]
    BadImage(String),
    #[error("{what}: {error}")]
    Io { what: String, error: io::Error },
}

impl RunError {
    /// Says whether the user has read the reason already, from the daemon that met it.
    pub fn is_reported(&self) -> bool {
        matches!(self, Self::Daemon(error) if error.is_reported())
            || matches!(self, Self::Command(failure) if failure.is_reported())
    }

    /// Returns the exit status.
    pub fn code(&self) -> u8 {
        let Self::Command(failure) = self else { return 1 };
        failure.code()
    }
}

fn failed(what: impl Into<String>) -> impl FnOnce(io::Error) -> RunError {
    let what = what.into();
    move |error| RunError::Io { what, error }
}

/// Carries out a command line and returns the exit status.
///
/// # Errors
/// A sentence with the cause and, where there is one, the remedy.
#[expect(clippy::wildcard_enum_match_arm, reason = "`commands::run` names all others")]
pub fn run(cli: Cli) -> Result<u8, RunError> {
    match cli.command {
        cli::Command::Mount(args) => mount(&mount_config(args)?)?,
        cli::Command::Umount(args) => umount(args.dir)?,
        cli::Command::Doctor(args) => {
            return Ok(u8::from(!doctor::run(args.json).map_err(Failure::Output)?));
        }
        cli::Command::Completion(args) => commands::complete::print(args.shell)?,
        cli::Command::Man(args) => {
            man::write(&args.dir).map_err(failed(args.dir.display().to_string()))?;
        }
        cli::Command::Connect(args) => commands::connect::run(&args.vm)?,
        cli::Command::TouchStatus(args) => {
            touch::serve(&args.mount, io::stdin().lock()).map_err(failed("standard input"))?;
        }
        command => return Ok(commands::run(&command)?),
    }
    Ok(0)
}

fn umount(dir: Option<PathBuf>) -> Result<(), RunError> {
    let dir = dir.or_else(daemon::find).or_else(default_mount).ok_or(DaemonError::NoMount)?;
    Ok(daemon::end(&dir)?)
}

fn mount_config(args: cli::Mount) -> Result<MountConfig, RunError> {
    let mode = args.mode();
    let store = args.store.or_else(default_store).ok_or(DaemonError::NoStore)?;
    let store = std::path::absolute(&store).map_err(failed("--store"))?;
    let dir = args.dir.or_else(default_mount).ok_or(DaemonError::NoMount)?;
    if let Some(image) = args.image.as_ref().filter(|i| !is_object_name(i)) {
        return Err(RunError::BadImage(image.clone()));
    }
    Ok(MountConfig { dir, store, image: args.image, mode })
}

fn mount(config: &MountConfig) -> Result<(), RunError> {
    match config.mode {
        Mode::Background => Ok(daemon::start(config)?),
        Mode::Foreground | Mode::Detached => serve(config),
    }
}

// ----- the daemon ------------------------------------------------------------------------------

fn serve(config: &MountConfig) -> Result<(), RunError> {
    let dir = mountpoint::prepare(&config.dir)?;
    let layout = Layout::new(&config.store);
    file::private_dir(layout.root()).map_err(failed(layout.root().display().to_string()))?;
    let owner = Owner { pid: std::process::id(), mount: dir.clone() };
    let _lock = StoreLock::take(&layout.lock(), &owner)?;
    let failures = Arc::<FailureLog>::default();
    let log = start_log(&layout, config.mode, &failures)?;
    // A daemon whose working directory lies in its own mount would wait for itself.
    std::env::set_current_dir("/").map_err(failed("/"))?;
    sys::allow_many_files();
    let runtime = runtime()?;
    let registry = runtime.block_on(registry(&layout, config, Arc::clone(&failures)))?;
    let backends = registry.backends();
    if let Some(missing) = backends.missing(&backends.defaults.spec()) {
        warn_user(config.mode, &format!("no VM can start: {missing}"));
    }
    if let Some(obstacle) = mountpoint::unmount_obstacle() {
        warn_user(config.mode, obstacle);
    }
    let events = Arc::clone(&backends.events);
    let tree = Tree::new(Arc::clone(&registry));
    let _guest_files = mount_guest_files(config.mode, &registry, &tree, &runtime);
    // Before the mount appears: a program that sees it may send a signal to end it.
    let ends = ends(&runtime)?;
    let mounted = Mounted::mount(tree, &dir, runtime.handle().clone());
    let mounted = mounted.map_err(failed(format!("cannot mount {}", dir.display())))?;
    mounted.follow_names(&registry);
    tracing::info!(dir = %dir.display(), store = %layout.root().display(), "mounted");
    runtime.spawn(touch::follow(events, dir.clone()));
    runtime.spawn(touch::follow_ends(Arc::clone(&registry), dir.clone()));
    runtime.spawn(touch::follow_expiries(Arc::clone(&registry), dir.clone()));
    runtime.spawn(unmount_at_the_end(ends, dir, layout.guest_files()));
    runtime.spawn(Arc::clone(&registry).autostart());
    runtime.spawn(Arc::clone(&registry).keep_trash());
    runtime.spawn(Arc::clone(&registry.backends().limits).keep());
    if let Some(log) = log {
        report_failures(&failures);
        report_mounted(&log)?;
    }
    notify_systemd();
    let served = mounted.serve().map_err(failed("serving the mount"));
    // VMs continue; tasks that wait for them end.
    runtime.shutdown_background();
    served
}

/// The mount of the guests' files, as long as the daemon serves.
struct GuestFilesMount(PathBuf);

impl Drop for GuestFilesMount {
    fn drop(&mut self) {
        if let Err(error) = mountpoint::detach(&self.0) {
            tracing::warn!(%error, "the guests' files stay in the table of mounts");
        }
    }
}

/// Mounts the guests' files. VMs work without.
fn mount_guest_files(
    mode: Mode,
    registry: &Arc<Registry>,
    tree: &Arc<Tree>,
    runtime: &Runtime,
) -> Option<GuestFilesMount> {
    let dir = registry.layout().guest_files();
    let mounted = prepare_guest_files(&dir).and_then(|dir| {
        let owner = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let files = GuestFileSystem::new(Arc::clone(registry), owner);
        let mounted = files::mount(&files, Arc::clone(tree), &dir, runtime.handle().clone());
        mounted.map_err(failed(dir.display().to_string()))?;
        Ok(GuestFilesMount(dir))
    });
    let warn = |error| warn_user(mode, &format!("the link `fs` of VMs leads nowhere: {error}"));
    mounted.map_err(warn).ok()
}

/// Makes the directory, and clears away what a killed daemon has left on it.
fn prepare_guest_files(dir: &Path) -> Result<PathBuf, RunError> {
    if matches!(mountpoint::prepare(dir), Err(MountError::Absent(_))) {
        file::private_dir(dir).map_err(failed(dir.display().to_string()))?;
    }
    Ok(mountpoint::prepare(dir)?)
}

/// Warns the user who mounts, and writes to the log. In the foreground both are the terminal.
fn warn_user(mode: Mode, sentence: &str) {
    tracing::warn!("{sentence}");
    if mode == Mode::Detached {
        // The parent may be gone.
        drop(writeln!(io::stderr(), "aq: {sentence}"));
    }
}

fn runtime() -> Result<Runtime, RunError> {
    let mut builder = Builder::new_multi_thread();
    builder.worker_threads(WORKERS).thread_name("aq").enable_all();
    builder.build().map_err(failed("cannot start threads"))
}

async fn registry(
    layout: &Layout,
    config: &MountConfig,
    failures: Arc<FailureLog>,
) -> Result<Arc<Registry>, RunError> {
    let images = Arc::new(ImageStore::open(layout.clone(), &failures)?);
    let qemu = Qemu::new(layout.clone(), images.clone());
    // Its version is for `.host`. Without QEMU nothing starts, and the VMs that run stay usable.
    if let Err(error) = qemu.installation(Arch::HOST).await {
        tracing::warn!(%error, "QEMU cannot be asked");
    }
    let guests = SshGuests::new(layout, tokio::runtime::Handle::current());
    let hypervisor = Arc::new(qemu);
    let nets = Nets::open(layout, Arc::new(VdeSwitches), &failures);
    let limits = Limits::open(layout, hypervisor.clone(), &failures);
    limits.begin().await;
    let backends = Backends {
        nets,
        memory: Ledger::new(hypervisor.clone(), Arc::clone(&limits)),
        limits,
        hypervisor,
        guests: Arc::new(guests),
        images,
        events: Arc::default(),
        defaults: Arc::new(Defaults::open(layout.defaults(), config.image.clone(), &failures)),
        file_changes: Arc::default(),
        own_dirs: own_dirs(layout, config),
        failures,
    };
    Ok(Arc::new(Registry::open(layout.clone(), backends).await?))
}

/// Returns what no guest gets: the mounts and the store, by their real paths.
fn own_dirs(layout: &Layout, config: &MountConfig) -> Arc<[PathBuf]> {
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    Arc::from([real(&config.dir), real(layout.root()), real(&layout.guest_files())])
}

/// The terminal is the parent's, and the log is in the store.
fn report_failures(failures: &FailureLog) {
    for failure in failures.list() {
        // The parent may be gone.
        drop(writeln!(io::stderr(), "aq: {}", failure.text));
    }
}

/// A daemon in the background keeps its log in the store, and returns it; the terminal is its
/// parent's.
fn start_log(
    layout: &Layout,
    mode: Mode,
    failures: &FailureLog,
) -> Result<Option<Arc<Rolling>>, RunError> {
    let filter = EnvFilter::try_from_env("AQ_LOG").unwrap_or_else(|_| EnvFilter::new(LOGGED));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false);
    // What cannot be written, on a full disk, is lost: to report it on standard error, which is the
    // same file, would end the task that has something to say.
    let log = log.log_internal_errors(false);
    match mode {
        Mode::Detached => {
            let file = Arc::new(usable_log(layout, failures)?);
            log.with_writer(Arc::clone(&file)).init();
            Ok(Some(file))
        }
        Mode::Foreground | Mode::Background => {
            log.with_writer(io::stderr).init();
            Ok(None)
        }
    }
}

/// A log that cannot be written is put aside.
fn usable_log(layout: &Layout, failures: &FailureLog) -> Result<Rolling, RunError> {
    if let Err(RunError::Io { error, .. }) = open_log(layout) {
        quarantine::quarantine(&layout.daemon_log(), &error, failures);
    }
    open_log(layout)
}

fn open_log(layout: &Layout) -> Result<Rolling, RunError> {
    let path = layout.daemon_log();
    let what = path.display().to_string();
    Rolling::open(path).map_err(failed(what))
}

/// Notifies systemd that it is mounted, as a service of type `notify` must; elsewhere it does
/// nothing.
fn notify_systemd() {
    if let Err(error) = sd_notify::notify(false, &[sd_notify::NotifyState::Ready]) {
        tracing::warn!(%error, "cannot notify systemd");
    }
}

/// The signals that end a daemon. From here on they are kept until they are read.
fn ends(runtime: &Runtime) -> Result<[Signal; 2], RunError> {
    let _tokio = runtime.enter();
    let kept = |kind| signal(kind).map_err(failed("cannot wait for signals"));
    Ok([kept(SignalKind::terminate())?, kept(SignalKind::interrupt())?])
}

/// Unmounts when a signal asks for it; the session then ends by itself. A tree that is in use is
/// taken out of sight: a program that has a file of it open gets an error, not a hang.
async fn unmount_at_the_end([mut term, mut int]: [Signal; 2], dir: PathBuf, guest_files: PathBuf) {
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    if mountpoint::unmount(&dir).is_err() {
        drop(mountpoint::detach(&dir));
        drop(GuestFilesMount(guest_files));
        leave();
    }
}

#[allow(clippy::exit)]
fn leave() {
    // The session would wait for the last open file.
    std::process::exit(0);
}

/// Tells the parent, and turns the standard streams to the log.
fn report_mounted(log: &Rolling) -> Result<(), RunError> {
    let null = File::options().read(true).write(true).open("/dev/null");
    let null = null.map_err(failed("/dev/null"))?;
    let mut out = io::stdout();
    // The parent may be gone.
    let _told = writeln!(out, "{MOUNTED}").and_then(|()| out.flush());
    rustix::stdio::dup2_stdout(&null).map_err(|e| failed("/dev/null")(e.into()))?;
    let take_stderr = |log: &File| Ok(rustix::stdio::dup2_stderr(log)?);
    log.share(take_stderr).map_err(failed("the log"))
}

//! A real mount over fakes whose runtime does not run: no caller may be held by that.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tokio::runtime::{Builder, Runtime};

use super::{Mounted, mountpoint};
use crate::registry::Registry;
use crate::store::layout::Layout;
use crate::tree::Tree;
use crate::vm::fake::{Script, backends};

const WORKERS: usize = 2;

/// A mount and the runtime behind it.
struct Daemon {
    root: tempfile::TempDir,
    script: Arc<Script>,
    runtime: Option<Runtime>,
    serving: Option<std::thread::JoinHandle<()>>,
}

impl Daemon {
    fn new() -> Self {
        let root = tempfile::Builder::new().prefix("aqfs-test-").tempdir().unwrap();
        let runtime = Builder::new_multi_thread().worker_threads(WORKERS).enable_all().build();
        let runtime = runtime.unwrap();
        let (at, store) = (root.path().join("mnt"), root.path().join("store"));
        std::fs::create_dir(&at).unwrap();
        std::fs::create_dir(&store).unwrap();
        let script = Arc::<Script>::default();
        let registry = Registry::open(Layout::new(store), backends(&script));
        let tree = Tree::new(Arc::new(runtime.block_on(registry).unwrap()));
        let mounted = Mounted::mount(tree, &at, runtime.handle().clone()).unwrap();
        let serving = std::thread::spawn(move || mounted.serve().unwrap());
        Self { root, script, runtime: Some(runtime), serving: Some(serving) }
    }

    fn at(&self) -> std::path::PathBuf {
        self.root.path().join("mnt")
    }

    /// Blocks every worker until the barrier is met once more. One after the other: a worker that takes
    /// two tasks at once and blocks in the first one may keep the second from every other worker.
    fn block(&self) -> Arc<Barrier> {
        let end = Arc::new(Barrier::new(WORKERS + 1));
        for _ in 0..WORKERS {
            let (begun, has_begun) = std::sync::mpsc::channel();
            let end = Arc::clone(&end);
            self.runtime.as_ref().unwrap().spawn(async move {
                begun.send(()).unwrap();
                end.wait();
            });
            has_begun.recv_timeout(Duration::from_secs(10)).expect("a worker takes it");
        }
        end
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        mountpoint::unmount(&self.at()).unwrap();
        self.serving.take().unwrap().join().unwrap();
        self.runtime.take().unwrap().shutdown_background();
    }
}

fn start(program: &str, args: &[&str], dir: &Path) -> Child {
    let mut command = Command::new(program);
    command.args(args).current_dir(dir).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().unwrap()
}

/// Kills a process that waits in the mount and returns how long it took to die.
fn time_to_die(mut child: Child, what: &str) -> Duration {
    std::thread::sleep(Duration::from_millis(300));
    assert!(child.try_wait().unwrap().is_none(), "{what} did not wait");
    let began = Instant::now();
    kill_process(Pid::from_child(&child), Signal::KILL).unwrap();
    while began.elapsed() < Duration::from_secs(5) {
        if let Some(status) = child.try_wait().unwrap() {
            assert_eq!(status.signal(), Some(9), "{what}");
            return began.elapsed();
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    panic!("{what} outlives SIGKILL");
}

#[test]
fn no_caller_outlives_sigkill_while_the_runtime_does_not_run() {
    let daemon = Daemon::new();
    let at = daemon.at();
    std::fs::create_dir(at.join("vm1")).unwrap();
    let end = daemon.block();
    for (program, args) in [
        ("mkdir", &["vm2"][..]),
        ("rmdir", &["vm1"]),
        ("mv", &["vm1", "vm3"]),
        ("cat", &[".events"]),
        ("sh", &["-c", "echo start > vm1/ctl"]),
        ("sh", &["-c", "echo 2 > vm1/config/cpus"]),
    ] {
        let what = format!("{program} {args:?}");
        let took = time_to_die(start(program, args, &at), &what);
        assert!(took < Duration::from_millis(200), "{what}: {took:?}");
    }
    end.wait();
    // What was interrupted before it began has not been done.
    let names: Vec<_> = std::fs::read_dir(&at).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names.iter().filter(|n| !n.as_encoded_bytes().starts_with(b".")).count(), 1);
    std::fs::create_dir(at.join("vm2")).expect("it serves again");
}

#[test]
fn a_runtime_that_does_not_run_is_reported() {
    let daemon = Daemon::new();
    let at = daemon.at();
    std::fs::create_dir(at.join("vm0")).unwrap();
    let end = daemon.block();
    let waiting = start("cat", &[".events"], &at);
    let began = Instant::now();
    let failures = || std::fs::read_to_string(at.join(".error")).unwrap();
    while !failures().contains("worker threads have not run") {
        assert!(began.elapsed() < Duration::from_secs(30), "nothing is reported");
        std::thread::sleep(Duration::from_millis(100));
    }
    // The kernel holds a directory for the sake of a name operation: it may not wait.
    let made = std::fs::create_dir(at.join("vm1")).expect_err("the runtime does not run");
    assert_eq!(made.raw_os_error(), Some(libc::ETIMEDOUT));
    end.wait();
    while std::fs::create_dir(at.join("vm1")).is_err() {
        assert!(began.elapsed() < Duration::from_secs(60), "it serves again");
    }
    time_to_die(waiting, "cat .events");
}

#[test]
fn what_hangs_in_the_making_of_a_value_holds_nobody_else() {
    let daemon = Daemon::new();
    let at = daemon.at();
    std::fs::create_dir(at.join("vm1")).unwrap();
    let hangs = daemon.script.disk_hangs.lock();
    // It hangs in the look at the size already.
    let cat = start("cat", &[".host"], &at);
    let list = start("ls", &["-l"], &at);
    std::thread::sleep(Duration::from_millis(300));
    let (done, was_done) = std::sync::mpsc::channel();
    let status = at.join("vm1/status");
    std::thread::spawn(move || done.send(std::fs::read_to_string(status).unwrap()).ok());
    let status = was_done.recv_timeout(Duration::from_secs(5));
    let (ended, has_ended) = std::sync::mpsc::channel();
    std::thread::spawn(move || ended.send(list.wait_with_output().unwrap().status.success()).ok());
    // A listing with attributes makes no value.
    let listed = has_ended.recv_timeout(Duration::from_secs(5));
    drop(hangs);
    assert!(cat.wait_with_output().unwrap().status.success());
    assert_eq!((status.as_deref(), listed), (Ok("stopped\n"), Ok(true)));
}

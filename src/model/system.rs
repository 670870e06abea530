//! The system: a tree over fakes, driven as the kernel would drive it, and its comparison with the
//! model.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::FutureExt;
use proptest_state_machine::StateMachineTest;
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};

use super::reference::{Event, Model, Op, Value};
use crate::fuse::errno;
use crate::registry::Registry;
use crate::store::layout::Layout;
use crate::tree::handle::{Access, IoMode, OpenRequest};
use crate::tree::node::Kind;
use crate::tree::number::NodeId;
use crate::tree::{Answer, Requester, Tree, TreeError};
use crate::vm::backend::{BackendError, ExitReport, MachineEvent};
use crate::vm::caller::{Caller, ProcessId};
use crate::vm::fake::{Script, backends, clean_exit};

pub(super) struct TreeTest;

/// A store, the machines of its VMs, and the daemon of the moment.
pub(super) struct System {
    store: TempDir,
    script: Arc<Script>,
    daemon: Daemon,
}

/// What ends with the daemon. The runtime comes last: it is what the others run on.
struct Daemon {
    registry: Arc<Registry>,
    tree: Arc<Tree>,
    runtime: Runtime,
}

impl Daemon {
    fn begin(store: &Path, script: &Arc<Script>) -> Self {
        let runtime = Builder::new_current_thread().enable_all().start_paused(true).build();
        let runtime = runtime.expect("a runtime");
        let opened = Registry::open(Layout::new(store), backends(script));
        let registry = Arc::new(runtime.block_on(opened).expect("the store"));
        Self { tree: Tree::new(Arc::clone(&registry)), registry, runtime }
    }
}

impl System {
    /// Does something and lets what follows from it come to rest.
    fn run<T>(&self, work: impl Future<Output = T>) -> T {
        self.daemon.runtime.block_on(async {
            let result = work.await;
            // Time is still: it passes when nothing else is left to be done.
            tokio::time::sleep(Duration::from_millis(1)).await;
            result
        })
    }

    fn perform(&mut self, op: &Op) -> Result<(), i32> {
        match op {
            Op::Interrupted(op) => {
                if let Answer::Later(future) = self.naming(op) {
                    self.run(async { drop(future.now_or_never()) });
                }
                Ok(())
            }
            Op::Minute => {
                self.run(async { tokio::time::sleep(Duration::from_secs(61)).await });
                Ok(())
            }
            Op::Take(vm, _) | Op::Drop(vm, ..) | Op::RenameSnapshot(vm, ..)
                if self.find(&[vm]).is_err() =>
            {
                Err(libc::ENOENT)
            }
            Op::Mkdir(_)
            | Op::Rmdir(..)
            | Op::Undo(_)
            | Op::Take(..)
            | Op::Drop(..)
            | Op::RenameSnapshot(..)
            | Op::Rename(..) => {
                let answer = self.naming(op);
                self.run(answered(answer))
            }
            Op::RemovePart(vm, part) => {
                let removed = self.find(&[vm]).and_then(|vm| self.tree().remove_part(vm, part));
                removed.map_err(|e| errno::number(&e))
            }
            Op::Ctl(vm, lines) => self.ctl(vm, &lines.join("\n")),
            Op::Set(vm, value) => self.set(vm, value),
            Op::Exec(vm) => self.exec(vm),
            Op::Console(vm) => self.with(&[vm, "console"], (Access::Read, false), async |_| Ok(())),
            Op::Event(vm, event) => {
                self.event(vm, *event);
                Ok(())
            }
            Op::NextLaunchFails => {
                let (status, stderr) = ("exit 1".into(), "no".into());
                *self.script.launch_error.lock() = Some(BackendError::QemuDied { status, stderr });
                Ok(())
            }
            Op::Restart => {
                self.daemon = Daemon::begin(self.store.path(), &self.script);
                self.run(async {});
                Ok(())
            }
        }
    }

    fn tree(&self) -> &Arc<Tree> {
        &self.daemon.tree
    }

    fn find(&self, path: &[&str]) -> Result<NodeId, TreeError> {
        path.iter().try_fold(NodeId::ROOT, |at, name| Ok(self.tree().lookup(at, name)?.attr.id))
    }

    fn naming(&self, op: &Op) -> Answer<()> {
        let _inside = self.daemon.runtime.enter();
        match op {
            Op::Mkdir(name) => match self.tree().make_directory(NodeId::ROOT, name) {
                Answer::Now(made) => Answer::Now(made.map(drop)),
                Answer::Later(made) => Answer::Later(Box::pin(made.map(|m| m.map(drop)))),
            },
            Op::Rmdir(name, by) => remove(self.tree(), NodeId::ROOT, name, *by),
            Op::Take(vm, tag) => self.in_snapshots(vm, |tree, dir| {
                let Answer::Later(made) = tree.make_directory(dir, tag) else {
                    panic!("a snapshot at once");
                };
                Answer::Later(Box::pin(made.map(|m| m.map(drop))))
            }),
            Op::Drop(vm, tag, by) => self.in_snapshots(vm, |tree, dir| remove(tree, dir, tag, *by)),
            Op::RenameSnapshot(vm, from, to) => {
                self.in_snapshots(vm, |tree, dir| tree.rename((dir, from), (dir, to)))
            }
            Op::Undo(name) => self.undo(name),
            Op::Rename(from, to) => self.tree().rename((NodeId::ROOT, from), (NodeId::ROOT, to)),
            other @ (Op::RemovePart(..)
            | Op::Ctl(..)
            | Op::Set(..)
            | Op::Exec(_)
            | Op::Console(_)
            | Op::Event(..)
            | Op::NextLaunchFails
            | Op::Restart
            | Op::Interrupted(_)
            | Op::Minute) => panic!("{other:?} is no name operation"),
        }
    }

    fn in_snapshots(&self, vm: &str, work: impl FnOnce(&Tree, NodeId) -> Answer<()>) -> Answer<()> {
        match self.find(&[vm, "snapshots"]) {
            Ok(dir) => work(self.tree(), dir),
            Err(error) => Answer::Now(Err(error)),
        }
    }

    fn undo(&self, name: &str) -> Answer<()> {
        let trash = self.find(&[".trash"]).expect("the trash");
        let removed = self.names(trash);
        let of_name = |n: &&String| n.split('@').next() == Some(name);
        let found: Vec<&String> = removed.iter().filter(of_name).collect();
        match found[..] {
            [only] => self.tree().rename((trash, only), (NodeId::ROOT, name)),
            _ => Answer::Now(Err(TreeError::NotFound)),
        }
    }

    /// Opens a file, does something with it, and releases it.
    fn with<T>(
        &self,
        path: &[&str],
        (access, append): (Access, bool),
        work: impl AsyncFnOnce(&crate::tree::handle::Open) -> Result<T, i32>,
    ) -> Result<T, i32> {
        let caller = || Caller::default();
        let id = self.find(path).map_err(|e| errno::number(&e))?;
        self.run(async {
            let request = OpenRequest { access, append, crawler: false, caller: &caller };
            let opened = self.tree().open(id, &request).map_err(|e| errno::number(&e))?;
            let open = self.tree().handle(opened.handle).expect("it was just opened");
            let result = work(&open).await;
            drop(open);
            self.tree().release(opened.handle);
            result
        })
    }

    fn write(&self, path: &[&str], text: &str, append: bool) -> Result<(), i32> {
        self.with(path, (Access::Write, append), async |open| {
            let written = answered(open.write(text.as_bytes(), IoMode::Blocking)).await?;
            answered(open.flush()).await?;
            assert_eq!(written, text.len());
            Ok(())
        })
    }

    fn read(&self, path: &[&str]) -> Result<String, i32> {
        self.with(path, (Access::Read, false), async |open| {
            let mut bytes = Vec::new();
            loop {
                let more = open.read(bytes.len() as u64, 4096, IoMode::Blocking);
                match answered(more).await? {
                    more if more.is_empty() => return Ok(String::from_utf8(bytes).expect("text")),
                    more => bytes.extend(more),
                }
            }
        })
    }

    fn set(&self, vm: &str, value: &Value) -> Result<(), i32> {
        self.write(&[vm, "config", value.key], value.text, value.append)
    }

    /// Writes verbs; after a failure the same descriptor takes none until it was read.
    fn ctl(&self, vm: &str, text: &str) -> Result<(), i32> {
        self.with(&[vm, "ctl"], (Access::ReadWrite, false), async |open| {
            let first = answered(open.write(text.as_bytes(), IoMode::Blocking)).await;
            if first.is_err() {
                let second = answered(open.write(b"# again", IoMode::Blocking)).await;
                assert_eq!(second, Err(libc::ECANCELED));
                let results = answered(open.read(0, 4096, IoMode::Blocking)).await?;
                let results = String::from_utf8(results).expect("text");
                assert!(
                    results.lines().last().is_some_and(|l| l.starts_with("error: ")),
                    "{results}"
                );
            }
            first.map(drop)
        })
    }

    fn exec(&self, vm: &str) -> Result<(), i32> {
        self.write(&[vm, "exec"], "hello\n", false)?;
        // The fake guest answers with the command.
        assert_eq!(self.read(&[vm, "exec"])?, "hello\n");
        Ok(())
    }

    fn event(&self, vm: &str, event: Event) {
        let Some(vm) = self.daemon.registry.get(vm) else { return };
        if !self.script.runs(vm.uuid()) {
            return;
        }
        let events = match event {
            Event::Resets => vec![MachineEvent::Reset],
            Event::PowersOff => vec![MachineEvent::ShutDown { by_guest: true }, clean_exit()],
            Event::Crashes => vec![MachineEvent::Exited(ExitReport {
                clean: false,
                status: "signal SEGV".into(),
                stderr: String::new(),
                unusable: None,
            })],
        };
        self.run(async {
            for event in events {
                self.script.report_of(vm.uuid(), event).await;
            }
        });
    }

    // ----- comparison --------------------------------------------------------------------------

    fn names(&self, id: NodeId) -> Vec<String> {
        let handle = self.tree().open_directory(id).expect("a directory");
        let listing = self.tree().listing(handle.handle).expect("it is open");
        self.tree().release_directory(handle.handle);
        for entry in listing.entries.iter() {
            let found = self.tree().lookup(id, &entry.name).expect("what is listed is there");
            assert_eq!((found.attr.id, found.attr.kind), (entry.id, entry.kind), "{}", entry.name);
        }
        listing.entries.iter().map(|e| e.name.clone()).collect()
    }

    fn compare(&self, model: &Model) {
        let names = self.names(NodeId::ROOT);
        let (ours, vms): (Vec<_>, Vec<_>) = names.into_iter().partition(|n| n.starts_with('.'));
        assert!(vms.iter().eq(model.vms.keys()), "{vms:?}");
        let links = self.tree().attr(NodeId::ROOT).expect("the root").links as usize;
        let directories = ours.iter().filter(|n| self.kind(&[n]) == Kind::Directory).count();
        assert_eq!(links, 2 + directories + vms.len());
        for (name, vm) in &model.vms {
            self.compare_vm(name, vm);
        }
        self.compare_store(model);
    }

    fn kind(&self, path: &[&str]) -> Kind {
        let id = self.find(path).expect("it is listed");
        self.tree().attr(id).expect("it is listed").kind
    }

    fn compare_vm(&self, name: &str, vm: &super::reference::Vm) {
        let status = self.read(&[name, "status"]).expect("a status");
        let word = status.trim_end().split(':').next().unwrap_or_default();
        assert_eq!(word, format!("{:?}", vm.life).to_lowercase(), "{name}: {status}");
        assert_eq!(self.read(&[name, "wait"]).expect("at rest"), status);
        let error = self.read(&[name, "error"]).expect("an error");
        assert_eq!((error != "ok\n", error.lines().count()), (vm.failed, 1), "{name}: {error}");
        for (key, value) in &vm.settings {
            let read = self.read(&[name, "config", key]).expect("a setting");
            assert_eq!(read.trim_end_matches('\n'), value, "{name}: {key}");
        }
        self.compare_sizes(&[name]);
        self.compare_sizes(&[name, "config"]);
        self.compare_snapshots(name, vm);
    }

    /// Those that are listed, and those that are in the disk.
    fn compare_snapshots(&self, name: &str, model: &super::reference::Vm) {
        let listed = self.names(self.find(&[name, "snapshots"]).expect("a directory"));
        assert!(listed.iter().eq(model.snapshots.keys()), "{name}: {listed:?}");
        let vm = self.daemon.registry.get(name).expect("it is listed");
        let there = self.daemon.registry.backends().hypervisor.snapshots(&vm.dir().0);
        let there: BTreeSet<(&str, bool)> =
            there.iter().map(|s| (s.tag.as_str(), s.memory > 0)).collect();
        let listed = model.snapshots.iter().map(|(tag, memory)| (*tag, *memory));
        let dropped = model.dropped.iter().map(|(tag, memory, _)| (*tag, *memory));
        let saved = model.suspended.then_some((".suspended", true));
        assert_eq!(there, listed.chain(dropped).chain(saved).collect(), "{name}");
        let info = self.read(&[name, "info"]).expect("facts");
        let row = if model.suspended { "suspended yes" } else { "suspended no" };
        assert!(info.lines().any(|line| line == row), "{name}: {info}");
    }

    /// A value's size is the length of what it reads as.
    fn compare_sizes(&self, dir: &[&str]) {
        for name in self.names(self.find(dir).expect("a directory")) {
            let path = [dir, &[name.as_str()]].concat();
            let attr = self.tree().attr(self.find(&path).expect("it is listed")).expect("it is");
            // The figures of a process in `info` change between two reads.
            if matches!(attr.kind, Kind::Value | Kind::Setting) && name != "info" {
                let content = self.read(&path).expect("a value");
                assert_eq!(content.len() as u64, attr.size, "{path:?}");
            }
        }
    }

    /// What lies on disk is what the tree shows, so that the next daemon shows it too.
    fn compare_store(&self, model: &Model) {
        let layout = Layout::new(self.store.path());
        let vms = std::fs::read_dir(layout.vms()).expect("the VMs").flatten();
        let name = |path: &Path| std::fs::read_to_string(path.join("name")).expect("a name");
        let stored: Vec<String> = vms.map(|e| name(&e.path()).trim_end().to_owned()).collect();
        let unique: BTreeSet<&str> = stored.iter().map(String::as_str).collect();
        assert_eq!(unique.len(), stored.len(), "{stored:?}");
        assert!(unique.into_iter().eq(model.vms.keys().copied()), "{stored:?}");
    }
}

/// A caller, which is not the kernel's: of several processes, the one with this number.
fn process(pid: u32) -> Caller {
    Caller { lineage: vec![ProcessId { pid, start: 1 }], ..Caller::default() }
}

fn remove(tree: &Tree, dir: NodeId, name: &str, pid: u32) -> Answer<()> {
    let by = Requester { caller: &|| process(pid), now: SystemTime::now() };
    tree.remove_directory(dir, name, &by)
}

async fn answered<T>(answer: Answer<T>) -> Result<T, i32> {
    let result = match answer {
        Answer::Now(result) => result,
        Answer::Later(future) => {
            let bounded = tokio::time::timeout(Duration::from_secs(60), future);
            bounded.await.expect("an answer within a minute")
        }
    };
    result.map_err(|e| errno::number(&e))
}

impl StateMachineTest for TreeTest {
    type SystemUnderTest = System;
    type Reference = Model;

    fn init_test(_: &Model) -> System {
        // Memory is quicker to sync than a disk.
        let memory = Path::new("/dev/shm");
        let place = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let store = tempfile::Builder::new().prefix("aqfs-test-").tempdir_in(place);
        let (store, script) = (store.expect("a directory"), Arc::default());
        let daemon = Daemon::begin(store.path(), &script);
        System { store, script, daemon }
    }

    fn apply(mut system: System, model: &Model, op: Op) -> System {
        let outcome = system.perform(&op);
        if let Some(expected) = &model.outcome {
            assert_eq!(&outcome, expected, "{op:?}");
        }
        system
    }

    fn check_invariants(system: &System, model: &Model) {
        system.compare(model);
    }
}

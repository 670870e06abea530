//! A store and a mount of its own for one test, served by a daemon in its own process: a reader
//! parked in a file system that its own process serves could not be killed.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use aqfs::commands::environment::VARIABLES;
use aqfs::store::layout::{Layout, VmDir};
use aqfs::store::lock;
use rustix::process::Signal;
use tempfile::TempDir;

use super::shell::{self, Output};
use super::{BOOT, eventually, image, proc};

/// The program under test.
pub(crate) const AQ: &str = env!("CARGO_BIN_EXE_aq");
/// Everything that a test makes under the temporary directory starts so; `tools/leftovers` looks.
pub(crate) const PREFIX: &str = "aqfs-test-";
/// Mounting, unmounting and what answers at once, on a busy machine.
pub(crate) const SHORT: Duration = Duration::from_secs(30);

/// Where the user's distributions are, below the root of a test's own files.
const DISTRIBUTIONS: &str = "home/.config/aq/images.toml";

fn set_distributions(root: &Path, lines: &str) {
    let path = root.join(DISTRIBUTIONS);
    std::fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
    std::fs::write(path, lines).expect("a file");
}

/// A mounted aqfs. Dropping it unmounts, ends the guests, removes everything, and fails the test
/// if the daemon has left something behind.
#[derive(Debug)]
pub(crate) struct Mounted {
    root: TempDir,
    store: Layout,
}

impl Mounted {
    /// Mounts an empty store: enough for what needs no guest.
    pub(crate) fn new() -> Self {
        let root = scratch();
        let store = root.path().join("store");
        Self::serve(root, store)
    }

    /// Mounts a store that holds the tiny image.
    pub(crate) fn with_image() -> Self {
        let root = scratch();
        let store = root.path().join("store");
        image::install(&store);
        Self::serve(root, store)
    }

    /// Mounts a store that holds the tiny image, with a VM `vm1` whose guest answers.
    #[track_caller]
    pub(crate) fn booted() -> Self {
        let mounted = Self::with_image();
        mounted.boot("vm1");
        mounted
    }

    /// Mounts a store that holds the tiny image, with these lines in the user's `images.toml`.
    pub(crate) fn with_image_and_distributions(lines: &str) -> Self {
        let root = scratch();
        let store = root.path().join("store");
        image::install(&store);
        set_distributions(root.path(), lines);
        Self::serve(root, store)
    }

    /// Mounts an empty store, with these lines in the user's `images.toml`.
    pub(crate) fn with_distributions(lines: &str) -> Self {
        let root = scratch();
        let store = root.path().join("store");
        set_distributions(root.path(), lines);
        Self::serve(root, store)
    }

    /// Mounts a store that lies elsewhere and stays.
    pub(crate) fn on(store: PathBuf) -> Self {
        Self::serve(scratch(), store)
    }

    fn serve(root: TempDir, store: PathBuf) -> Self {
        let mounted = Self { root, store: Layout::new(store) };
        for name in ["mnt", "home", "run", "tmp"] {
            aqfs::store::file::private_dir(&mounted.root.path().join(name)).expect("a directory");
        }
        if !mounted.root.path().join(DISTRIBUTIONS).exists() {
            // A test lists what it makes itself.
            set_distributions(mounted.root.path(), "list = false\n");
        }
        mounted.mount();
        mounted
    }

    /// Starts a daemon for this store.
    #[track_caller]
    pub(crate) fn mount(&self) {
        self.try_mount().ok();
        assert!(proc::is_mounted(&self.dir()), "aq mount returned before it was mounted");
    }

    /// Runs `aq mount` for this store and directory and returns what it said.
    #[track_caller]
    pub(crate) fn try_mount(&self) -> Output {
        let mut aq = self.aq();
        aq.arg("mount").arg(self.dir()).arg("--store").arg(self.store.root());
        shell::finish(&mut aq, SHORT)
    }

    /// Returns the program with an environment that is the test's own.
    pub(crate) fn aq(&self) -> Command {
        let mut command = Command::new(AQ);
        self.set_environment(&mut command);
        command
    }

    fn set_environment(&self, command: &mut Command) {
        let at = |name| self.root.path().join(name);
        command.env("HOME", at("home")).env("XDG_RUNTIME_DIR", at("run")).env("TMPDIR", at("tmp"));
        for name in ["XDG_DATA_HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME"] {
            command.env_remove(name);
        }
        for name in VARIABLES.iter().flat_map(|variable| variable.name.split(", ")) {
            command.env_remove(name);
        }
        command.env("AQ_MOUNT", self.dir());
        command.env("AQ", AQ).env("SCRATCH", self.root.path()).current_dir("/");
    }

    /// Returns the mount point.
    pub(crate) fn dir(&self) -> PathBuf {
        self.root.path().join("mnt")
    }

    /// Returns a directory for the test's own files, outside the mount (`$SCRATCH` in scripts).
    pub(crate) fn scratch(&self) -> &Path {
        self.root.path()
    }

    /// Returns the names in the store.
    pub(crate) fn store(&self) -> &Layout {
        &self.store
    }

    /// Returns a VM's directory in the store.
    #[track_caller]
    pub(crate) fn vm_dir(&self, vm: &str) -> VmDir {
        self.store.vm(self.info(vm, "uuid").parse().expect("a UUID"))
    }

    /// Returns the path of a file in the mount.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }

    /// Runs a bash script in the mount, bounded for what answers at once or boots one guest.
    #[track_caller]
    pub(crate) fn sh(&self, script: &str) -> Output {
        self.sh_within(script, BOOT)
    }

    /// Runs a bash script in the mount, bounded.
    #[track_caller]
    pub(crate) fn sh_within(&self, script: &str, bound: Duration) -> Output {
        let mut command = Command::new("bash");
        self.set_environment(&mut command);
        shell::finish(command.arg("-c").arg(script).current_dir(self.dir()), bound)
    }

    /// Runs a bash script in which `aq` is the program under test, outside of the mount.
    #[track_caller]
    pub(crate) fn cli(&self, script: &str) -> Output {
        self.cli_within(script, BOOT)
    }

    /// Runs such a script, bounded.
    #[track_caller]
    pub(crate) fn cli_within(&self, script: &str, bound: Duration) -> Output {
        let mut command = Command::new("bash");
        self.set_environment(&mut command);
        let script = format!("PATH=${{AQ%/*}}:$PATH\n{script}");
        shell::finish(command.arg("-c").arg(script).current_dir(self.scratch()), bound)
    }

    /// Does what `printf %s TEXT > FILE` does: one open, one write.
    pub(crate) fn write(&self, name: &str, text: &str) -> io::Result<()> {
        let mut options = fs::OpenOptions::new();
        let mut file =
            options.write(true).create(true).truncate(true).mode(0o666).open(self.path(name))?;
        let written = file.write(text.as_bytes())?;
        assert_eq!(written, text.len(), "{name} took a part only");
        Ok(())
    }

    /// Reads a file that does not park, without its last newline.
    #[track_caller]
    pub(crate) fn read(&self, name: &str) -> String {
        let text = fs::read_to_string(self.path(name));
        let text = text.unwrap_or_else(|e| panic!("cannot read {name}: {e}"));
        text.trim_end_matches('\n').to_owned()
    }

    /// Returns a value of a VM's `info`.
    #[track_caller]
    pub(crate) fn info(&self, vm: &str, key: &str) -> String {
        let table = self.read(&format!("{vm}/info"));
        let row = table.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(' '));
        row.unwrap_or_else(|| panic!("no {key} in {table}")).trim().to_owned()
    }

    /// Creates and starts a VM and waits until its guest answers.
    #[track_caller]
    pub(crate) fn boot(&self, vm: &str) {
        self.sh(&format!("mkdir {vm}")).ok();
        self.boot_existing(vm);
    }

    /// Starts a VM and waits until its guest answers.
    #[track_caller]
    pub(crate) fn boot_existing(&self, vm: &str) {
        self.sh(&format!("echo start > {vm}/ctl")).ok();
        self.wait_for_ready(vm);
    }

    /// Shuts a VM down and waits until it is off.
    #[track_caller]
    pub(crate) fn stop(&self, vm: &str) {
        self.sh(&format!("echo stop > {vm}/ctl; cat {vm}/wait")).ok();
    }

    /// Creates a VM that is off and has a disk, and whose guest has never run.
    #[track_caller]
    pub(crate) fn make_off(&self, vm: &str) {
        let script = format!("mkdir {vm}; echo 'start paused' > {vm}/ctl; echo kill > {vm}/ctl");
        self.sh(&format!("{script}; cat {vm}/wait")).ok();
    }

    /// Stops every process in a guest but its first, so that it answers no request.
    #[track_caller]
    pub(crate) fn deafen(&self, vm: &str) {
        // The SSH server is stopped too: the answer never comes.
        let script = format!("echo 'kill -STOP -1' > {vm}/exec; timeout 2 cat {vm}/exec");
        let said = self.sh(&script);
        assert_eq!(said.code, 124, "the guest still answers: {said:?}");
    }

    /// Waits until a VM's guest answers.
    #[track_caller]
    pub(crate) fn wait_for_ready(&self, vm: &str) {
        let said = self.sh(&format!("cat {vm}/ready || cat {vm}/error {vm}/status >&2")).ok();
        assert!(
            said.starts_with("ready "),
            "{vm}/ready said {said:?}: {}",
            self.read(&format!("{vm}/error"))
        );
    }

    /// Waits until a VM's status line starts with `word`.
    #[track_caller]
    pub(crate) fn wait_for_status(&self, vm: &str, word: &str) {
        let status = format!("{vm}/status");
        eventually(&format!("{vm} {word}"), BOOT, || self.read(&status).starts_with(word));
    }

    /// Runs a command in a guest and returns its output.
    #[track_caller]
    pub(crate) fn exec(&self, vm: &str, command: &str) -> String {
        self.sh(&format!("cat > {vm}/exec <<'END'\n{command}\nEND\ncat {vm}/exec")).ok()
    }

    /// Reads a file of events in the background while `script` runs, which sets `last` to the event
    /// that ends the reading, and returns what it said, without times.
    #[track_caller]
    pub(crate) fn events_of(&self, file: &str, script: &str) -> String {
        let script = format!(
            r#"
            exec 9<{file}; timeout 90 cat <&9 > "$SCRATCH/said" & reader=$!
            {script}
            # The reader has all that there was once it has seen the last event.
            until grep -q "$last" "$SCRATCH/said"; do sleep 0.02; done
            kill $reader; wait $reader 2>/dev/null
            cut -d' ' -f2- "$SCRATCH/said""#
        );
        self.sh(&script).ok()
    }

    /// Returns the daemon's process number.
    #[track_caller]
    pub(crate) fn daemon(&self) -> u32 {
        lock::owner(&self.store.lock()).expect("the lock names the daemon").pid
    }

    /// Kills the daemon as `kill -9` does and waits until it is gone.
    #[track_caller]
    pub(crate) fn kill_daemon(&self) {
        let pid = self.daemon();
        proc::kill(pid, Signal::KILL);
        eventually("the daemon gone after SIGKILL", SHORT, || !proc::alive(pid));
    }

    /// Lists the QEMU processes of this store.
    pub(crate) fn qemus(&self) -> Vec<u32> {
        proc::qemus(self.store.root())
    }

    /// Lists the switches of this store's nets.
    pub(crate) fn switches(&self) -> Vec<u32> {
        proc::of_store(self.store.root(), "vde_switch")
    }

    /// Lists the `qemu-img` processes of this store.
    pub(crate) fn qemu_imgs(&self) -> Vec<u32> {
        proc::of_store(self.store.root(), "qemu-img")
    }

    /// Unmounts and lists what the daemon has left behind.
    fn leave(&self) -> Vec<String> {
        let daemon = lock::owner(&self.store.lock()).map(|o| o.pid).filter(|&p| serves(p));
        let mut left = Vec::from_iter(self.unmount());
        left.extend(daemon.and_then(|pid| self.outlasts(pid)));
        let files = self.store.guest_files();
        if proc::is_mounted(&files) {
            let _lazily = Command::new("fusermount3").arg("-uz").arg(&files).output();
            left.push(format!("the mount of guests' files {}", files.display()));
        }
        left.extend(entries(self.root.path(), "run"));
        left.extend(entries(self.root.path(), "tmp"));
        left
    }

    fn unmount(&self) -> Option<String> {
        if !proc::is_mounted(&self.dir()) && !proc::is_mounted(&self.store.guest_files()) {
            return None;
        }
        // A reader that was killed a moment ago may still be on its way out.
        let mut said = shell::finish(self.aq().arg("umount").arg(self.dir()), SHORT);
        for _ in 0..10 {
            if said.code == 0 && !proc::is_mounted(&self.dir()) {
                return None;
            }
            std::thread::sleep(Duration::from_millis(100));
            said = shell::finish(self.aq().arg("umount").arg(self.dir()), SHORT);
        }
        let _lazily = Command::new("fusermount3").arg("-uz").arg(self.dir()).output();
        Some(format!("the mount, after aq umount: {said:?}"))
    }

    fn outlasts(&self, daemon: u32) -> Option<String> {
        let gone = std::panic::catch_unwind(|| {
            eventually("the daemon gone", SHORT, || !serves(daemon));
        });
        proc::kill(daemon, Signal::KILL);
        gone.err().map(|_| format!("the daemon, process {daemon}"))
    }

    #[expect(clippy::print_stderr, reason = "nextest shows it with the failed test")]
    fn show_log(&self) {
        let log = fs::read_to_string(self.store.daemon_log()).unwrap_or_default();
        eprintln!("the daemon's log:\n{log}");
    }

    fn end_guests(&self) {
        // Switches outlive a daemon as QEMU does.
        let all = [self.qemus(), self.switches()].concat();
        all.iter().for_each(|&pid| proc::kill(pid, Signal::KILL));
        eventually("QEMU gone after SIGKILL", SHORT, || !all.iter().any(|&p| proc::alive(p)));
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let left = self.leave();
        self.end_guests();
        if std::thread::panicking() {
            self.show_log();
        } else {
            assert!(left.is_empty(), "left behind: {left:?}");
        }
    }
}

/// Makes a directory that [`PREFIX`] marks as a test's.
pub(crate) fn scratch() -> TempDir {
    tempfile::Builder::new().prefix(PREFIX).tempdir().expect("a temporary directory")
}

/// Says whether `pid` is a living aq: the lock file outlives its daemon, and numbers are reused.
fn serves(pid: u32) -> bool {
    proc::process(pid).is_some_and(|p| p.name == "aq" && p.state != 'Z')
}

fn entries(root: &Path, name: &str) -> Vec<String> {
    let entries = fs::read_dir(root.join(name)).into_iter().flatten().flatten();
    entries.map(|e| e.path().display().to_string()).collect()
}

//! The first minute on a machine: `tools/setup` beside packages that are there already, what the
//! daemon says of programs that are not installed, and fusermount3 without `/etc/mtab`.
//!
//! Not here: the same on whole systems (`tools/fresh`).

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::mounted::{AQ, PREFIX, SHORT};
use crate::common::{Mounted, Output, proc, shell};

const SETUP: &str = include_str!("../../tools/setup");
const APT: &str = include_str!("../fakes/apt");
/// The programs of the made-up machine beside those that `tools/setup` installs.
const TOOLS: &[&str] = &[
    "sh", "bash", "sed", "awk", "cut", "grep", "head", "sort", "paste", "tail", "stat", "id",
    "uname", "dirname", "env", "ln", "rm", "cat",
];

/// A made-up Debian: `tests/fakes/apt` says what it has.
struct Machine(tempfile::TempDir);

impl Machine {
    /// Makes one with QEMU's packages as given and these suites in apt's sources.
    fn new(versions: &str, suites: &str) -> Self {
        let machine = Self(tempfile::Builder::new().prefix(PREFIX).tempdir().expect("a directory"));
        fs::create_dir(machine.path("bin")).expect("a directory");
        for (name, text) in
            [("versions", versions), ("suites", suites), ("broken", ""), ("log", "")]
        {
            fs::write(machine.path(name), text).expect("a file");
        }
        machine.script("apt", APT);
        for name in ["apt-get", "apt-cache", "dpkg-query"] {
            symlink("apt", machine.path("bin").join(name)).expect("a link");
        }
        machine.script("sudo", "#!/bin/sh\nexec \"$@\"\n");
        machine.script("setup", SETUP);
        for name in TOOLS {
            let found = ["/bin", "/usr/bin"].map(|dir| Path::new(dir).join(name));
            let found = found.iter().find(|path| path.exists()).expect("a usual program");
            symlink(found, machine.path("bin").join(name)).expect("a link");
        }
        symlink("/bin/true", machine.path("bin/mke2fs")).expect("a link");
        if versions.contains("qemu-utils") {
            symlink("/bin/true", machine.path("bin/qemu-img")).expect("a link");
        }
        machine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn script(&self, name: &str, text: &str) {
        let path = self.path("bin").join(name);
        fs::write(&path, text).expect("a script");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("executable");
    }

    fn set_up(&self) -> Output {
        let mut setup = Command::new("/bin/sh");
        setup.arg(self.path("bin/setup")).arg("run");
        setup.env("PATH", self.path("bin")).env("MACHINE", self.0.path());
        shell::finish(&mut setup, SHORT)
    }

    fn has(&self, program: &str) -> bool {
        self.path("bin").join(program).exists()
    }

    fn versions(&self) -> String {
        let text = fs::read_to_string(self.path("versions")).expect("a file");
        let mut lines: Vec<_> = text.lines().collect();
        lines.sort_unstable();
        lines.join("\n")
    }

    /// Asserts that every program of a run is there and that apt was never allowed to remove any.
    #[track_caller]
    fn assert_complete(&self) {
        let missing: Vec<_> =
            ["qemu-system-x86_64", "qemu-img", "fusermount3", "vde_switch", "ssh"]
                .into_iter()
                .filter(|program| !self.has(program))
                .collect();
        assert!(missing.is_empty(), "missing after the set-up: {missing:?}");
        let log = fs::read_to_string(self.path("log")).expect("a file");
        let installs = log.lines().filter(|l| l.starts_with("apt-get") && l.contains(" install "));
        assert!(installs.clone().count() > 0, "{log}");
        assert!(installs.clone().all(|l| l.contains("--no-remove")), "{log}");
    }
}

const UTILS_7: &str = "qemu-utils 1:7.2+dfsg-7+b3\n";
const UTILS_10: &str = "qemu-utils 1:10.0.2+ds-2~bpo\n";

#[test]
fn set_up_keeps_the_suite_that_qemu_is_installed_from() {
    let machine = Machine::new(UTILS_10, "stable\nbackports\n");
    let said = machine.set_up().ok();
    machine.assert_complete();
    assert_eq!(machine.versions(), format!("qemu-system-x86 1:10.0.2+ds-2~bpo\n{UTILS_10}").trim());
    assert!(said.contains("from backports"), "{said}");
}

#[test]
fn set_up_says_that_it_changes_the_version_of_what_is_installed() {
    let machine = Machine::new(UTILS_10, "stable\n");
    let said = machine.set_up().ok();
    machine.assert_complete();
    assert_eq!(machine.versions(), format!("qemu-system-x86 1:7.2+dfsg-7+b3\n{UTILS_7}").trim());
    assert!(said.contains("qemu-utils=1:7.2+dfsg-7+b3") && said.contains("To keep it"), "{said}");
}

#[test]
fn set_up_of_a_machine_without_qemu_takes_what_apt_offers() {
    for versions in ["", UTILS_7] {
        let machine = Machine::new(versions, "stable\nbackports\n");
        let said = machine.set_up().ok();
        machine.assert_complete();
        assert!(!said.contains("To keep it"), "{said}");
    }
}

#[test]
fn set_up_says_what_is_still_missing_and_one_package_does_not_keep_others_away() {
    let machine = Machine::new("", "stable\n");
    fs::write(machine.path("broken"), "openssh-client\n").expect("a file");
    let said = machine.set_up().failed();
    assert!(machine.has("qemu-img") && machine.has("fusermount3"), "{said}");
    let last = said.lines().last().expect("a sentence");
    assert!(last.starts_with("setup: still missing: openssh-client"), "{said}");
    assert!(said.contains("Unable to locate package openssh-client"), "{said}");
    // The packages that do not fit are not installed, and what is there stays.
    let machine = Machine::new(UTILS_10, "stable\n");
    fs::write(machine.path("broken"), "qemu-utils\n").expect("a file");
    let said = machine.set_up().failed();
    assert!(machine.has("qemu-img") && machine.has("fusermount3"), "{said}");
    assert!(said.contains("still missing: qemu-system-x86 (runs the guests)"), "{said}");
}

/// A directory for `PATH` in which only fusermount3 is.
const ONLY_FUSERMOUNT: &str = "mkdir $SCRATCH/bin; ln -s $(command -v fusermount3) $SCRATCH/bin";
const MOUNT: &str = "PATH=$SCRATCH/bin $AQ mount $AQ_MOUNT --store $SCRATCH/store";

#[test]
fn what_is_not_installed_is_reported_at_the_mount_and_before_any_work() {
    let aq = Mounted::new();
    let said = aq.cli(&format!("aq umount; {ONLY_FUSERMOUNT}; {MOUNT}"));
    let words = "qemu-system-x86_64, qemu-img";
    let remedy = "`apt install qemu-system-x86 qemu-utils";
    assert_eq!(said.code, 0, "{said:?}");
    assert!(said.stderr.contains(words) && said.stderr.contains(remedy), "{said:?}");
    let host = aq.read(".host");
    let row = host.lines().find(|l| l.starts_with("missing ")).expect("a row");
    assert!(row.contains(words) && row.contains(remedy), "{host}");
    let script = "mkdir vm1; echo start > vm1/ctl; cat vm1/status .images/tiny/status vm1/error";
    let said = aq.sh(script);
    assert!(said.stderr.contains("Package not installed"), "{said:?}");
    assert!(said.stdout.starts_with("stopped\nabsent\nqemu-system-x86_64, qemu-img"), "{said:?}");
}

/// A fusermount3 that mounts, and unmounts as the real one does without `/etc/mtab`.
const WITHOUT_MTAB: &str = r#"mkdir $SCRATCH/bin; cat > $SCRATCH/bin/fusermount3 <<'END'
#!/bin/sh
case $1 in
-u*) echo "fusermount3: failed to open /etc/mtab: No such file or directory" >&2; exit 1 ;;
esac
exec /usr/bin/fusermount3 "$@"
END
chmod +x $SCRATCH/bin/fusermount3; export PATH=$SCRATCH/bin:$PATH"#;

#[test]
fn umount_ends_the_daemon_where_fusermount3_gives_up() {
    if rustix::process::getuid().is_root() {
        return; // root unmounts without it
    }
    let aq = Mounted::new();
    aq.cli(&format!("aq umount; {WITHOUT_MTAB}; $AQ mount $AQ_MOUNT --store $SCRATCH/store")).ok();
    let daemon = aq.daemon();
    let said = aq.cli("PATH=$SCRATCH/bin:$PATH; aq umount").failed();
    assert!(said.contains("the daemon has ended") && said.contains("ln -sf"), "{said}");
    assert!(!proc::alive(daemon), "it runs");
    // A second mount there says the same; with an mtab all is as it was.
    let said =
        aq.cli("PATH=$SCRATCH/bin:$PATH; aq mount $AQ_MOUNT --store $SCRATCH/store").failed();
    assert!(said.contains("/etc/mtab") && said.contains("ln -sf"), "{said}");
    aq.mount();
}

const DEMO: &str = include_str!("../../tools/demo");

/// A checkout in which nothing has to be installed or built, and `aq` is the program under test.
fn demo(aq: &Mounted, variables: &str) -> Output {
    let repo = aq.scratch().join("repo");
    for dir in ["tools", "target/release", "bin"] {
        fs::create_dir_all(repo.join(dir)).expect("a directory");
    }
    let scripts = [
        ("tools/demo", DEMO),
        ("tools/setup", "#!/bin/sh\n"),
        ("bin/cargo", "#!/bin/sh\necho built\n"),
    ];
    for (name, text) in scripts {
        fs::write(repo.join(name), text).expect("a script");
        fs::set_permissions(repo.join(name), fs::Permissions::from_mode(0o755)).expect("a mode");
    }
    drop(symlink(AQ, repo.join("target/release/aq")));
    let programs =
        "cat cut dirname env ls mkdir mktemp rm sed sleep tail tee timeout fusermount3 bash";
    let links = format!("for p in {programs}; do ln -sf $(command -v $p) ~/../repo/bin; done");
    let run = format!(
        "{links}; PATH=$HOME/../repo/bin CARGO_TARGET_DIR= {variables} ~/../repo/tools/demo"
    );
    aq.cli(&run)
}

#[test]
fn the_demo_says_what_is_in_the_way_before_it_builds() {
    let aq = Mounted::new();
    let said = demo(&aq, "AQ_DIR=$HOME/..");
    assert!(said.code != 0 && said.stderr.contains("it is not empty; AQ_DIR=DIR"), "{said:?}");
    assert!(!said.stdout.contains("built"), "{said:?}");
}

#[test]
fn the_demo_that_fails_shows_status_and_error() {
    let aq = Mounted::new();
    let said = demo(&aq, "AQ_DIR=$HOME/demo AQ_STORE=$HOME/store");
    let unmounted = aq.cli("aq umount ~/demo");
    assert!(said.code != 0 && said.stdout.contains("built"), "{said:?}");
    for words in ["status: stopped", "error: qemu-system-x86_64, qemu-img", "missing: "] {
        assert!(said.stderr.contains(words), "no {words}: {said:?}");
    }
    unmounted.ok();
}

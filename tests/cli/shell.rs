//! The command line around the commands: which mount it takes, completion in real shells, `doctor`,
//! what `make install` puts where.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::common::mounted::AQ;
use crate::common::terminal::Terminal;
use crate::common::{Mounted, eventually, shell};

const SOON: Duration = Duration::from_secs(20);

/// A home of its own, in which nothing is mounted. Dropping it unmounts.
struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Self {
        let prefix = crate::common::mounted::PREFIX;
        Self(tempfile::Builder::new().prefix(prefix).tempdir().expect("a directory"))
    }

    fn dir(&self) -> &Path {
        self.0.path()
    }

    fn cli(&self, script: &str) -> shell::Output {
        let mut bash = Command::new("bash");
        for name in ["XDG_DATA_HOME", "AQ_STORE", "AQ_MOUNT"] {
            bash.env_remove(name);
        }
        bash.env("HOME", self.dir()).env("AQ", AQ).current_dir("/");
        let script = format!("PATH=${{AQ%/*}}:$PATH\n{script}");
        shell::finish(bash.arg("-c").arg(script), Duration::from_secs(60))
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let _not_mounted = self.cli("aq umount; aq umount ~/elsewhere");
    }
}

#[test]
fn the_first_command_mounts_the_tree_and_later_ones_find_it() {
    let home = Home::new();
    assert_eq!(home.cli("aq new vm1; ls ~/aq").ok(), "vm1\nvm1");
    let daemon = home.cli("cat ~/aq/.version").ok();
    assert_eq!(home.cli("aq ls | wc -l; cat ~/aq/.version").ok(), format!("1\n{daemon}"));
    // One that is mounted elsewhere is found as well; one of another store is not taken for it.
    let script = "aq umount; mkdir ~/elsewhere ~/other; aq mount ~/elsewhere
        AQ_STORE=~/store2 aq mount ~/other; aq info vm1 name; ls ~/aq ~/elsewhere
        AQ_MOUNT=~/other aq ls; AQ_STORE=~/store2 aq new vm2 2>/dev/null; ls ~/other
        (cd ~/other/vm2; aq info vm2 name; AQ_STORE=~/.local/share/aqfs aq info vm1 name)
        aq umount ~/other";
    let said = home.cli(script).ok();
    let dir = home.dir().display();
    assert_eq!(said, format!("vm1\n{dir}/aq:\n\n{dir}/elsewhere:\nvm1\nvm2\nvm2\nvm2\nvm1"));
    // A killed daemon is replaced.
    let script = "kill -9 $(cut -d' ' -f4 ~/elsewhere/.version); sleep 0.2; aq ls; ls ~/aq";
    assert!(home.cli(script).ok().starts_with("vm1 "));
}

#[test]
fn commands_that_come_at_once_share_one_daemon() {
    let home = Home::new();
    let said = home.cli("for i in 1 2 3 4 5 6; do aq new vm$i & done; wait; aq ls | wc -l");
    assert_eq!(said.stdout.lines().last(), Some("6"), "{said:?}");
    assert!(!said.stderr.contains("daemon"), "{said:?}");
}

#[test]
fn a_daemon_that_cannot_be_started_says_why() {
    let home = Home::new();
    let said = home.cli("mkdir ~/aq; touch ~/aq/file; aq ls");
    assert_eq!(said.code, 1);
    assert!(said.stderr.contains("is not empty") && said.stderr.lines().count() == 1, "{said:?}");
}

/// Types a line into a new shell and waits until `text` is on the screen.
#[track_caller]
fn offers(aq: &Mounted, program: &str, set_up: &str, [line, text, not]: [&str; 3]) {
    let shell = Terminal::open(aq.scratch().join(format!("t{}", line.len())), aq.scratch());
    let dir = AQ.rsplit_once('/').map_or("", |(dir, _)| dir);
    shell.enter(&format!("export PATH={dir}:$PATH AQ_MOUNT={}", aq.dir().display()));
    shell.enter(program);
    shell.enter(&format!("{set_up}; clear; echo rea''dy"));
    eventually("a shell", SOON, || shell.screen().trim_start().starts_with("ready"));
    shell.keys(line);
    shell.press("Tab");
    shell.press("Tab");
    eventually(&format!("{line:?} offers {text:?}"), SOON, || shell.screen().contains(text));
    assert!(!shell.screen().contains(not), "{not}:\n{}", shell.screen());
}

#[test]
fn bash_completes_names() {
    let aq = Mounted::new();
    aq.sh("mkdir vm-one vm-two .images/web-1").ok();
    for line in [
        ["aq start vm-", "vm-two", "web-1"],
        ["aq new --from-snapshot w", "web-1", "vm-two"],
        ["aq sna", "aq snapshot", "vm-two"],
        ["aq stop --for", "aq stop --force", "vm-two"],
    ] {
        offers(&aq, "", "source <(aq completion bash)", line);
    }
    // Those that are off are not offered where one is needed that runs.
    let asked = |command: &str| {
        let request = "COMPLETE=bash _CLAP_IFS=' ' _CLAP_COMPLETE_INDEX=2";
        aq.cli(&format!("{request} aq -- aq {command} vm-")).ok()
    };
    assert_eq!(asked("start"), "vm-one vm-two");
    assert_eq!((asked("exec"), asked("stop")), (String::new(), String::new()));
}

#[test]
fn zsh_completes_names() {
    let aq = Mounted::new();
    aq.sh("mkdir vm-one vm-two .images/web-1").ok();
    let set_up = "autoload -U compinit; compinit -u -D; source <(aq completion zsh)";
    for line in
        [["aq start vm-", "vm-two", "web-1"], ["aq new --from-snapshot w", "web-1", "vm-two"]]
    {
        offers(&aq, "zsh -f", set_up, line);
    }
}

#[test]
fn fish_completes_names() {
    let aq = Mounted::new();
    aq.sh("mkdir vm-one vm-two").ok();
    let script = "fish -c 'aq completion fish | source; complete -C \"aq start vm-\"'";
    assert_eq!(aq.cli(script).ok(), "vm-one\nvm-two");
}

#[test]
fn doctor_says_what_is_missing_and_whether_that_is_fatal() {
    let aq = Mounted::new();
    let said = aq.cli("aq doctor");
    assert_eq!(said.code, 0, "{said:?}");
    let at = |text: &str| said.stdout.find(text).unwrap_or_else(|| panic!("no {text}: {said:?}"));
    assert!(at("What works") < at("FUSE: trees can be mounted") && at("QEMU ") > 0);
    if !said.stdout.contains("KVM: a Linux kernel has booted") {
        let titles =
            ["What works", "What does not", "Why KVM is not used", "What to do", "VMs can run."];
        assert!(titles.windows(2).all(|t| at(t[0]) < at(t[1])), "{said:?}");
    }
    // Without QEMU, and without a mount.
    let home = Home::new();
    let script = "mkdir ~/bin; ln -s $(command -v fusermount3) ~/bin; PATH=~/bin $AQ doctor";
    let said = home.cli(script);
    assert_eq!(said.code, 1);
    let words =
        ["qemu-img is not installed", "apt install qemu-system-x86", "not mounted", "cannot run"];
    assert!(words.iter().all(|w| said.stdout.contains(w)), "{said:?}");
    assert!(!home.dir().join("aq").exists(), "doctor changes nothing");
    let said = home.cli("AQ_STORE=/proc/store aq doctor");
    assert!(said.code == 1 && said.stdout.contains("cannot be written"), "{said:?}");
}

/// The files of the repository that are installed, as this user can read them.
static TOOLS: include_dir::Dir<'_> = include_dir::include_dir!("$CARGO_MANIFEST_DIR/tools");
static DIST: include_dir::Dir<'_> = include_dir::include_dir!("$CARGO_MANIFEST_DIR/dist");

fn installed(home: &Home) -> PathBuf {
    let (repo, prefix) = (home.dir().join("repo"), home.dir().join("prefix"));
    for (name, dir) in [("tools", &TOOLS), ("dist", &DIST)] {
        fs::create_dir_all(repo.join(name)).expect("a directory");
        dir.extract(repo.join(name)).expect("the files");
    }
    home.cli("sh ~/repo/tools/install ~/prefix").ok();
    prefix
}

#[test]
fn what_is_installed_works_and_goes_again() {
    let home = Home::new();
    let prefix = installed(&home);
    assert_eq!(
        home.cli("~/prefix/bin/aq --version").ok(),
        format!("aq {}", env!("CARGO_PKG_VERSION"))
    );
    let unit = prefix.join("share/systemd/user/aqfs.service");
    let text = fs::read_to_string(&unit).expect("the unit");
    assert!(text.contains(&format!("ExecStart={}/bin/aq mount", prefix.display())), "{text}");
    let verify = "XDG_RUNTIME_DIR=$HOME systemd-analyze verify --user --man=no \
        ~/prefix/share/systemd/user/aqfs.service";
    if home.cli("command -v systemd-analyze").code == 0 {
        let said = home.cli(verify);
        assert_eq!((said.code, &*said.stdout, &*said.stderr), (0, "", ""));
    }
    for page in ["man1/aq.1", "man1/aq-snapshot-create.1", "man5/aqfs.5"] {
        let script =
            format!("man --warnings -E UTF-8 -l -Tutf8 -Z ~/prefix/share/man/{page} > /dev/null");
        let said = home.cli(&script);
        assert_eq!((said.code, &*said.stderr), (0, ""), "{page}");
    }
    let script = "cd ~/prefix/share; PATH=~/prefix/bin:$PATH
        source bash-completion/completions/aq && complete -p aq | grep -c aq
        zsh -fc 'fpath=(zsh/site-functions $fpath); autoload -U compinit; compinit -u -D; echo $_comps[aq]'
        sh ~/repo/tools/install --remove ~/prefix; find ~/prefix -type f";
    assert_eq!(home.cli(script).ok(), "1\n_aq");
}

#[test]
fn the_service_notifies_systemd_when_it_is_mounted_and_ends_on_sigterm() {
    let home = Home::new();
    let script = r#"mkdir ~/aq; export NOTIFY_SOCKET=$HOME/notify
        socat -u UNIX-RECV:$NOTIFY_SOCKET CREATE:$HOME/notified & S=$!
        until [ -S $NOTIFY_SOCKET ]; do sleep 0.05; done
        aq mount --foreground ~/aq 2> ~/log & P=$!
        until grep -qs READY=1 ~/notified; do sleep 0.05; done; ls -A ~/aq | grep -c version
        kill -TERM $P; wait $P; echo $?; ls -A ~/aq | wc -l; kill $S"#;
    assert_eq!(home.cli(script).ok(), "1\n0\n0");
}

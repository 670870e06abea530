//! What a clone saves of its memory is loaded by any QEMU, also what an earlier version saved.

use crate::common::Mounted;

/// A clone of `tiny` that has run for a while: a process, a file in memory, a file on its disk.
struct Clone {
    aq: Mounted,
    pid: String,
}

impl Clone {
    fn new() -> Self {
        let aq = Mounted::with_image();
        aq.sh("echo warm > .images/tiny/ctl; cat .images/tiny/wait").ok();
        start_clone(&aq, "a");
        let pid = aq.exec("a", "sleep 100000 > /dev/null 2>&1 & echo $!");
        let clone = Self { aq, pid };
        clone.write("a", "one");
        clone
    }

    fn write(&self, vm: &str, word: &str) {
        self.aq.exec(vm, &format!("echo {word} > /tmp/x; echo {word} > /root/x; sync"));
    }

    /// Asserts that the process of then runs, and that memory and disk hold `word`.
    #[track_caller]
    fn holds(&self, vm: &str, word: &str) {
        let held = self.aq.exec(vm, &format!("kill -0 {} && cat /tmp/x /root/x", self.pid));
        assert_eq!(held, format!("{word}\n{word}"));
    }

    #[track_caller]
    fn sh(&self, script: &str) -> String {
        self.aq.sh(script).ok()
    }

    #[track_caller]
    fn restore(&self, vm: &str, tag: &str) {
        self.sh(&format!("echo 'restore {tag}' > {vm}/ctl; cat {vm}/wait"));
        self.aq.wait_for_ready(vm);
    }

    /// Ends QEMU and starts another one.
    #[track_caller]
    fn start_anew(&self, vm: &str) {
        self.sh(&format!("echo stop > {vm}/ctl; cat {vm}/wait"));
        self.aq.boot_existing(vm);
    }

    /// Says one thing to QEMU and returns its answer.
    #[track_caller]
    fn qmp(&self, vm: &str, line: &str) -> String {
        let answer = r#"timeout 20 grep -m1 -E '"(return|error)"' <&3 | tr -d '\r'"#;
        self.sh(&format!("exec 3<> {vm}/qmp; echo '{line}' >&3; {answer}"))
    }

    /// Leaves QEMU as earlier versions left a clone's.
    fn set_ignore_shared(&self, vm: &str) {
        let on = r#"{"execute": "migrate-set-capabilities", "arguments": {"capabilities":
            [{"capability": "x-ignore-shared", "state": true}]}}"#;
        assert_eq!(self.qmp(vm, &on.replace('\n', " ")), r#"{"return": {}}"#);
    }

    /// Saves memory and disk as earlier versions did, and as users of QEMU's own commands do.
    fn save_over_qmp(&self, vm: &str, tag: &str) {
        let save =
            r#"{"execute": "human-monitor-command", "arguments": {"command-line": "savevm TAG"}}"#;
        assert_eq!(self.qmp(vm, &save.replace("TAG", tag)), r#"{"return": ""}"#);
    }

    #[track_caller]
    fn capabilities(&self, vm: &str) -> String {
        self.qmp(vm, r#"{"execute": "query-migrate-capabilities"}"#)
    }
}

fn start_clone(aq: &Mounted, vm: &str) {
    aq.sh(&format!("mkdir -p {vm}")).ok();
    aq.boot_existing(vm);
    assert_eq!(aq.info(vm, "warm"), "yes");
}

const ON: &str = r#""state": true"#;

#[test]
fn a_clone_is_suspended_and_goes_back_as_any_other_vm() {
    let clone = Clone::new();
    clone.sh("mkdir a/snapshots/live; cat a/wait");
    clone.write("a", "two");
    // In the QEMU that has saved it, and in another one.
    clone.restore("a", "live");
    clone.holds("a", "one");
    clone.write("a", "three");
    clone.sh("echo suspend > a/ctl; cat a/wait");
    clone.aq.boot_existing("a");
    clone.holds("a", "three");
    clone.restore("a", "live");
    clone.holds("a", "one");
    clone.sh("echo stop > a/ctl; cat a/wait; mv a/snapshots/live a/snapshots/then");
    clone.aq.boot_existing("a");
    clone.restore("a", "then");
    clone.holds("a", "one");
    // Again, from a memory that was loaded.
    clone.write("a", "four");
    clone.sh("echo suspend > a/ctl; cat a/wait");
    clone.aq.kill_daemon();
    clone.aq.mount();
    clone.aq.boot_existing("a");
    clone.holds("a", "four");
}

#[test]
fn a_clone_of_a_clone_and_a_captured_vm_save_what_can_be_loaded() {
    let clone = Clone::new();
    // Captured as it runs, then suspended itself: it was the source of a migration.
    clone.sh("mkdir .images/b; echo a > .images/b/source; cat .images/b/wait a/wait");
    assert!(!clone.capabilities("a").contains(ON), "{}", clone.capabilities("a"));
    clone.sh("mkdir b; echo b > b/config/image");
    start_clone(&clone.aq, "b");
    clone.holds("b", "one");
    for vm in ["a", "b"] {
        clone.write(vm, vm);
        clone.sh(&format!("echo suspend > {vm}/ctl; cat {vm}/wait"));
        clone.aq.boot_existing(vm);
        clone.holds(vm, vm);
    }
    // An image of what was loaded.
    clone.sh("mkdir .images/c; echo b > .images/c/source; cat .images/c/wait b/wait");
    clone.sh("mkdir c; echo c > c/config/image");
    start_clone(&clone.aq, "c");
    clone.holds("c", "b");
    clone.sh("echo suspend > c/ctl; cat c/wait");
    clone.aq.boot_existing("c");
    clone.holds("c", "b");
}

#[test]
fn what_earlier_versions_saved_of_a_clone_is_loaded() {
    let clone = Clone::new();
    clone.set_ignore_shared("a");
    clone.save_over_qmp("a", "old");
    clone.write("a", "two");
    clone.restore("a", "old");
    clone.holds("a", "one");
    assert!(!clone.capabilities("a").contains(ON), "{}", clone.capabilities("a"));
    clone.sh("echo 'resize 3G' > a/ctl");
    clone.start_anew("a");
    clone.restore("a", "old");
    clone.holds("a", "one");
    // What is saved of it now is as what others save.
    clone.write("a", "three");
    clone.sh("mkdir a/snapshots/new; cat a/wait");
    clone.write("a", "four");
    for (tag, word) in [("new", "three"), ("old", "one"), ("new", "three")] {
        clone.restore("a", tag);
        clone.holds("a", word);
    }
    // What was suspended.
    clone.set_ignore_shared("a");
    clone.save_over_qmp("a", ".suspended");
    clone.sh("echo kill > a/ctl; cat a/wait");
    clone.aq.boot_existing("a");
    clone.holds("a", "three");
    assert_eq!(clone.sh("echo $(ls a/snapshots)"), "new old");
}

#[test]
fn a_clone_that_an_earlier_version_started_saves_what_can_be_loaded() {
    let clone = Clone::new();
    clone.set_ignore_shared("a");
    clone.aq.kill_daemon();
    clone.aq.mount();
    clone.aq.wait_for_ready("a");
    assert!(!clone.capabilities("a").contains(ON), "{}", clone.capabilities("a"));
    // And whoever has set it meanwhile.
    clone.set_ignore_shared("a");
    clone.sh("echo suspend > a/ctl; cat a/wait");
    clone.aq.boot_existing("a");
    clone.holds("a", "one");
}

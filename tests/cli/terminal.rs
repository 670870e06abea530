//! `aq console`, `attach` and `top` in a real terminal: resized, left, killed; the terminal is then
//! as it was.

use std::time::Duration;

use crate::common::mounted::AQ;
use crate::common::terminal::Terminal;
use crate::common::{Mounted, eventually};

const SOON: Duration = Duration::from_secs(20);

/// A terminal in which `aq` is the program under test.
fn terminal(aq: &Mounted, name: &str) -> Terminal {
    let terminal = Terminal::open(aq.scratch().join(name), aq.scratch());
    let dir = AQ.rsplit_once('/').map_or("", |(dir, _)| dir);
    let home = aq.scratch().join("home");
    terminal.enter(&format!(
        "export PATH={dir}:$PATH AQ_MOUNT={} HOME={}; stty -a | sed 1d > before; clear",
        aq.dir().display(),
        home.display()
    ));
    eventually("the terminal's settings", SOON, || {
        std::fs::read_to_string(aq.scratch().join("before")).is_ok_and(|t| t.contains("cs8"))
    });
    terminal
}

/// The terminal must be as it was before, on its first screen, with a cursor that is seen.
#[track_caller]
fn until_restored(terminal: &Terminal) {
    terminal.until_foreground("bash");
    terminal.resize(120, 40);
    terminal.enter("clear; stty -a | sed 1d | diff before - && echo as-be''fore");
    terminal.until_shown("as-before");
    assert_eq!(terminal.display("#{alternate_on} #{cursor_flag}"), "0 1");
}

#[test]
fn console_is_a_shell_whose_window_follows() {
    let aq = Mounted::booted();
    let window = terminal(&aq, "t");
    window.enter("aq console vm1");
    window.until_shown("vm1:~#");
    window.resize(90, 30);
    window.enter("clear; stty size; echo $((40 + 2))-typed");
    window.until_shown("30 90");
    window.until_shown("42-typed");
    window.enter("exit 3");
    window.until_foreground("bash");
    window.enter("echo status-$?");
    window.until_shown("status-3");
    until_restored(&window);
    window.enter("clear; aq console vm1");
    window.until_shown("vm1:~#");
    // It is ssh by now, in the same process.
    aq.sh("pkill -TERM -f \"^ssh -F $PWD/vm1/ssh_config\"").ok();
    until_restored(&window);
}

#[test]
fn attach_is_the_serial_line() {
    let aq = Mounted::booted();
    let window = terminal(&aq, "t");
    window.enter("aq attach vm1");
    window.until_shown("Ctrl-] leaves");
    window.press("Enter");
    window.until_shown("vm1:~#");
    window.enter("clear; echo serial-$((40 + 2)); tty");
    window.until_shown("serial-42");
    window.until_shown("/dev/ttyS0");
    // Ctrl-C is the guest's.
    window.enter("sleep 300");
    let sleeps = || aq.exec("vm1", "ps | grep -c '[s]leep 300' || :") == "1";
    eventually("the guest sleeps", SOON, sleeps);
    window.press("C-c");
    eventually("the guest is awake", SOON, || !sleeps());
    window.enter("echo inter''rupted");
    window.until_shown("interrupted");
    window.press("C-]");
    window.until_shown("[left vm1]");
    until_restored(&window);
    for end in ["pkill -TERM -f '^aq attach vm1'", "echo kill > vm1/ctl"] {
        window.enter("clear; aq attach vm1");
        window.until_shown("Ctrl-] leaves");
        window.press("Enter");
        aq.sh(end).ok();
        until_restored(&window);
    }
}

#[test]
fn top_shows_what_happens_and_leaves_the_terminal_as_it_was() {
    let aq = Mounted::booted();
    aq.sh("mkdir vm2").ok();
    let window = terminal(&aq, "t");
    for leave in ["q", "Escape", "C-c", "TERM"] {
        window.enter("clear; aq top");
        window.until_shown("2 VMs, 1 on");
        window.until_shown("vm2                              stopped");
        assert_eq!(window.display("#{alternate_on} #{cursor_flag}"), "1 0");
        window.resize(60, 10);
        window.until_shown("q leaves");
        eventually("a table that fits", SOON, || {
            window.screen().lines().all(|l| l.chars().count() <= 60)
        });
        match leave {
            "TERM" => drop(aq.sh("pkill -TERM -f '^aq top'").ok()),
            key => window.press(key),
        }
        until_restored(&window);
    }
    window.enter("clear; aq top");
    window.until_shown("vm1                              ready");
    aq.sh("echo kill > vm1/ctl; cat vm1/wait").ok();
    window.until_shown("vm1                              stopped");
    window.press("q");
    until_restored(&window);
    // Into a pipe it is one table.
    let said = aq.cli("aq top | cat");
    assert!(said.stdout.starts_with("2 VMs, 0 on") && !said.stdout.contains('\x1b'), "{said:?}");
}

#[test]
fn what_takes_longer_than_a_second_is_shown_on_a_terminal_alone() {
    let aq = Mounted::with_image();
    aq.sh("mkdir vm1 vm2").ok();
    let window = terminal(&aq, "t");
    window.enter("clear; aq start vm1");
    window.until_shown("vm1: booting");
    window.until_shown("Started vm1");
    eventually("nothing but the result", SOON, || !window.screen().contains("booting"));
    until_restored(&window);
    assert_eq!(aq.cli("aq start vm2").stderr, "Started vm2\n");
}

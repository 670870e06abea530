//! The serial line in terminal programs, with a real guest.

use std::time::Duration;

use crate::common::terminal::Terminal;
use crate::common::{Mounted, eventually};

const SOON: Duration = Duration::from_secs(20);

/// A terminal in the mount, where screen finds a place for its sockets.
fn terminal(aq: &Mounted, name: &str) -> Terminal {
    let terminal = Terminal::open(aq.scratch().join(name), &aq.dir());
    let sockets = aq.scratch().join("screen");
    aqfs::store::file::private_dir(&sockets).expect("a directory");
    terminal.enter(&format!("export SCREENDIR={}; clear", sockets.display()));
    terminal
}

/// Presses Return and waits for the guest's prompt: the tiny image logs root in.
#[track_caller]
fn until_prompt(terminal: &Terminal) {
    terminal.press("Enter");
    terminal.until_shown("vm1:~#");
}

/// Ends screen, which would otherwise live on in the mount.
#[track_caller]
fn leave_screen(terminal: &Terminal) {
    for key in ["C-a", "k", "y"] {
        terminal.press(key);
    }
    terminal.until_foreground("bash");
}

/// Edits a file in the guest with vi, in a window whose size the guest knows.
#[track_caller]
fn edit(aq: &Mounted, terminal: &Terminal, text: &str) {
    terminal.enter("stty rows 30 cols 90; vi /root/note");
    terminal.until_shown("/root/note");
    terminal.enter(&format!("i{text}"));
    terminal.until_shown(text);
    terminal.until_shown("I /root/note");
    // vi waits after Escape, as a key's own sequence may follow: its status line shows when that is over.
    terminal.press("Escape");
    terminal.until_shown("- /root/note");
    terminal.enter(":wq");
    eventually("the file saved", SOON, || aq.exec("vm1", "cat /root/note; :").contains(text));
    assert_eq!(aq.exec("vm1", "stty -F /dev/ttyS0 size"), "30 90");
}

#[test]
fn screen_and_picocom_work_beside_a_reader_of_console() {
    let aq = Mounted::booted();
    let reader = terminal(&aq, "t0");
    reader.enter("cat vm1/console");
    reader.until_foreground("cat");
    let window = terminal(&aq, "t1");
    window.enter("screen vm1/tty");
    window.until_foreground("screen");
    until_prompt(&window);
    edit(&aq, &window, "typed in screen");
    window.resize(70, 20);
    window.enter("echo af''ter");
    window.until_shown("after");
    reader.until_shown("after");
    leave_screen(&window);
    aq.exec("vm1", "rm /root/note");
    // The one that screen took for itself is not given to anybody again.
    window.enter("clear; picocom -q vm1/tty");
    window.until_foreground("picocom");
    until_prompt(&window);
    edit(&aq, &window, "typed in picocom");
    window.resize(120, 40);
    window.press("C-a");
    window.press("C-x");
    window.until_foreground("bash");
    window.enter("clear; printf 'echo all-$((40 + 2))\\r' > vm1/tty");
    reader.until_shown("all-42");
}

#[test]
fn two_programs_at_once_share_the_line_and_end_with_the_machine() {
    let aq = Mounted::booted();
    let (one, two, three) = (terminal(&aq, "t1"), terminal(&aq, "t2"), terminal(&aq, "t3"));
    for (window, program) in [(&one, "screen"), (&two, "picocom"), (&three, "tio")] {
        window.enter(&format!("clear; {program} vm1/tty"));
        window.until_foreground(program);
    }
    until_prompt(&one);
    two.enter("echo from-$((40 + 2))");
    for window in [&one, &two, &three] {
        window.until_shown("from-42");
    }
    assert_eq!(aq.sh("readlink vm1/tty | cut -d/ -f-3").ok(), "/dev/pts");
    assert_eq!(aq.sh("echo kill > vm1/ctl && cat vm1/wait").ok(), "stopped");
    one.until_foreground("bash");
    two.until_foreground("bash");
    // tio waits for its device to come back, and says so.
    three.until_shown("Disconnected");
    three.press("C-t");
    three.press("q");
    three.until_foreground("bash");
    let off = aq.sh("readlink vm1/tty; ls -l vm1; picocom vm1/tty");
    assert!(off.stdout.contains("tty -> console"), "{off:?}");
    assert!(off.stderr.contains("Host is down") || off.stdout.contains("Host is down"), "{off:?}");
    aq.boot_existing("vm1");
    one.enter("clear; screen vm1/tty");
    one.until_foreground("screen");
    until_prompt(&one);
    one.enter("echo next-$((40 + 2))");
    one.until_shown("next-42");
    leave_screen(&one);
}

#[test]
fn scripts_use_it_as_any_serial_device() {
    let aq = Mounted::booted();
    let script = r#"
        T=$(readlink vm1/tty) && test -c "$T" && test -c vm1/tty
        stty -F "$T" raw -echo && exec 3<>"$T"
        printf 'echo serial-$((40 + 2))\r' >&3
        while read -r -t 20 line <&3; do case $line in *serial-42*) echo found; break;; esac; done
        qemu-img info -U --output=json "$(readlink vm1/disk)" | jq -r .format"#;
    assert_eq!(aq.sh(script).ok(), "found\nqcow2");
}

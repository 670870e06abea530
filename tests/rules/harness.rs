//! The tests' own tools, tested: a bound that does not bind would make every other test worthless.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::common::terminal::Terminal;
use crate::common::{proc, scratch, shell};
use rustix::process::Signal;

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_script_gives_its_outputs_and_its_status() {
    let output = shell::run("/bin/sh", "echo a; echo b >&2; exit 3", Path::new("/"), SECOND * 10);
    assert_eq!((output.stdout.as_str(), output.stderr.as_str(), output.code), ("a\n", "b\n", 3));
    let killed = shell::run("/bin/sh", "kill -TERM $$", Path::new("/"), SECOND * 10);
    assert_eq!(killed.code, 128 + 15);
}

#[test]
fn a_script_over_its_bound_is_killed_with_its_children_and_described() {
    let began = Instant::now();
    let panic = std::panic::catch_unwind(|| {
        shell::run("/bin/sh", "echo begun; sleep 613 & sleep 614", Path::new("/"), SECOND)
    });
    let text = *panic.unwrap_err().downcast::<String>().unwrap();
    assert!(began.elapsed() < SECOND * 10);
    assert!(text.contains("sleep in state S") && text.contains("begun"), "{text}");
    let asleep = || {
        let found = Command::new("pgrep").args(["-f", "^sleep 61[34]$"]).output().unwrap();
        !found.stdout.is_empty()
    };
    crate::common::eventually("the children are gone", SECOND * 10, || !asleep());
}

#[test]
fn a_process_left_in_the_background_does_not_keep_a_script_waiting() {
    let began = Instant::now();
    shell::run("/bin/sh", "sleep 2 & echo done", Path::new("/"), SECOND * 10).ok();
    assert!(began.elapsed() < SECOND * 3 / 2);
}

#[test]
fn stat_is_parsed_whatever_the_process_is_called() {
    let parsed = proc::parse_stat("812 (a) b (c) D 1 700 600 0 -1").unwrap();
    assert_eq!((parsed.pid, parsed.state, parsed.group), (812, 'D', 700));
    assert_eq!(parsed.name, "a) b (c");
}

#[test]
fn mount_points_are_unescaped() {
    let table = "36 35 0:45 / /home/u/my\\040aq rw - fuse.aqfs aqfs rw";
    assert_eq!(proc::mount_points(table).collect::<Vec<_>>(), [Path::new("/home/u/my aq")]);
    assert!(proc::is_mounted(Path::new("/proc")) && !proc::is_mounted(Path::new("/proc/self")));
}

#[test]
fn linked_trees_are_equal() {
    let dir = scratch();
    let (from, to) = (dir.path().join("from"), dir.path().join("a/to"));
    std::fs::create_dir_all(from.join("sub")).unwrap();
    std::fs::write(from.join("sub/file"), "x").unwrap();
    crate::common::image::link_tree(&from, &to).unwrap();
    assert_eq!(std::fs::read_to_string(to.join("sub/file")).unwrap(), "x");
}

#[test]
fn a_terminal_takes_lines_and_keys() {
    let dir = scratch();
    let terminal = Terminal::open(dir.path().join("tmux"), dir.path());
    terminal.enter("echo 'typed; here' > said; sleep 615");
    terminal.until_foreground("sleep");
    terminal.press("C-c");
    terminal.until_foreground("bash");
    assert_eq!(std::fs::read_to_string(dir.path().join("said")).unwrap(), "typed; here\n");
}

#[test]
fn a_qemu_is_found_by_the_directory_that_it_runs_in() {
    let dir = scratch();
    let qemu = format!("qemu-system-{}", std::env::consts::ARCH);
    let mut qemu = Command::new(qemu);
    qemu.args(["-M", "none", "-nodefaults", "-display", "none", "-S"]);
    let mut qemu = qemu.current_dir(dir.path()).spawn().unwrap();
    crate::common::eventually("QEMU is found", SECOND * 10, || {
        proc::qemus(dir.path()) == [qemu.id()]
    });
    assert_eq!(proc::qemus(Path::new("/nonexistent")), [0; 0]);
    proc::kill(qemu.id(), Signal::KILL);
    qemu.wait().unwrap();
    assert_eq!(proc::qemus(dir.path()), [0; 0]);
}

//! Commands as directories: `jobs/`.

use std::time::{Duration, Instant};

use crate::common::{BOOT, Mounted, assert_errno, eventually};

/// Runs a script in the VM's directory.
#[track_caller]
fn sh(aq: &Mounted, script: &str) -> String {
    aq.sh(&format!("cd vm1; {script}")).ok()
}

#[test]
fn outputs_apart_and_the_exit_status() {
    let aq = Mounted::booted();
    let script = "mkdir jobs/b && echo 'echo out; echo err >&2; exit 3' > jobs/b/cmd &&
            cat jobs/b/stdout && cat jobs/b/stderr && cat jobs/b/wait
            cat jobs/b/cmd jobs/b/status jobs/last/status";
    let said = "out\nerr\nexit 3\necho out; echo err >&2; exit 3\nexit 3\nexit 3";
    assert_eq!(sh(&aq, script), said);
    assert_errno(aq.write("vm1/jobs/b/cmd", "true\n"), libc::EBUSY);
    assert_errno(aq.write("vm1/jobs/b/ctl", "env A=b\n"), libc::EBUSY);
    assert_errno(aq.write("vm1/jobs/b/stdin", "x"), libc::EPIPE);
    let script = "mkdir jobs/s; printf 'f() {\\n echo a $1\\n}\\n' > $SCRATCH/s; echo 'f 1; f 2' >> $SCRATCH/s
            cat $SCRATCH/s > jobs/s/cmd; cat jobs/s/stdout";
    assert_eq!(sh(&aq, script), "a 1\na 2");
    // Longer than a command line may be.
    let script = "mkdir jobs/l; { printf ': '; head -c 20000 /dev/zero | tr '\\0' x; printf '\\ncat; exit 4'; } > jobs/l/cmd
            echo input > jobs/l/stdin; cat jobs/l/stdout jobs/l/wait";
    assert_eq!(sh(&aq, script), "input\nexit 4");
    let script = "{ printf ': '; head -c 20000 /dev/zero | tr '\\0' x; printf '\\necho whole'; } > exec; cat exec";
    assert_eq!(sh(&aq, script), "whole");
}

#[test]
fn input_until_its_last_closing() {
    let aq = Mounted::booted();
    let script =
        "mkdir jobs/b; exec 3>jobs/b/stdin; echo 'cat' > jobs/b/cmd; echo hi >&3; exec 3>&-
            cat jobs/b/stdout";
    assert_eq!(sh(&aq, script), "hi");
    let script = "mkdir jobs/c; head -c 3000000 /dev/urandom > $SCRATCH/big
            (cat $SCRATCH/big > jobs/c/stdin) & echo sha256sum > jobs/c/cmd
            cat jobs/c/stdout | cmp - <(sha256sum < $SCRATCH/big) && echo same";
    assert_eq!(sh(&aq, script), "same");
    let script = "mkdir jobs/d; echo a > jobs/d/stdin; echo b > jobs/d/stdin; echo cat > jobs/d/cmd
            cat jobs/d/stdout; mkdir jobs/e; echo 'cat; echo end' > jobs/e/cmd; cat jobs/e/stdout";
    assert_eq!(sh(&aq, script), "a\nb\nend");
}

#[test]
fn signals_reach_every_process_of_the_job() {
    let aq = Mounted::booted();
    let script = "mkdir jobs/b; echo 'echo up; sleep 1234 & sleep 1235' > jobs/b/cmd
            head -n1 jobs/b/stdout; cat jobs/b/status; echo 'signal TERM' > jobs/b/ctl
            cat jobs/b/wait; ls jobs/b | wc -l";
    assert_eq!(sh(&aq, script), "up\nrunning\nsignal TERM\n7");
    assert_eq!(aq.exec("vm1", "ps | grep -c '[s]leep 123' || :"), "0");
    let script = "mkdir jobs/i; echo 'trap \"echo caught; exit 9\" INT; echo up; while :; do sleep 0.1; done' > jobs/i/cmd
            head -n1 jobs/i/stdout; echo 'signal 2' > jobs/i/ctl; cat jobs/i/wait jobs/i/stdout";
    assert_eq!(sh(&aq, script), "up\nexit 9\nup\ncaught");
    // A reader that has stalled the output holds no signal up.
    let script = "mkdir jobs/y; echo 'cat /dev/zero' > jobs/y/cmd; head -c 1 jobs/y/stdout | wc -c
            sleep 3; echo 'signal KILL' > jobs/y/ctl; cat jobs/y/stdout > /dev/null; cat jobs/y/wait";
    assert_eq!(sh(&aq, script), "1\nsignal KILL");
}

#[test]
fn a_parked_wait_dies_of_sigterm_at_once() {
    let aq = Mounted::booted();
    let began = Instant::now();
    let script = "mkdir jobs/b; echo 'sleep 300' > jobs/b/cmd; timeout 0.5 cat jobs/b/wait; echo $?; rmdir jobs/b";
    assert_eq!(sh(&aq, script), "124");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[test]
fn removal_kills_what_runs() {
    let aq = Mounted::booted();
    let script =
        "mkdir jobs/b; echo 'echo up; sleep 1236 & sleep 1237' > jobs/b/cmd; head -n1 jobs/b/stdout
            cat jobs/b/wait & sleep 0.3; rmdir jobs/b; wait; ls jobs";
    assert_eq!(sh(&aq, script), "up\nlost: removed\nlast");
    eventually("the processes gone", BOOT, || {
        aq.exec("vm1", "ps | grep -c '[s]leep 123' || :") == "0"
    });
}

#[test]
fn a_terminal_with_its_size() {
    let aq = Mounted::booted();
    let script = "mkdir jobs/p; echo 'pty 80x24' > jobs/p/ctl
            echo 'stty size; echo err >&2; trap \"stty size; exit\" WINCH; echo up; while :; do sleep 0.1; done' > jobs/p/cmd
            head -n3 jobs/p/stdout | tr -d '\\r'; echo 'winsize 100x30' > jobs/p/ctl
            tail -n1 jobs/p/stdout | tr -d '\\r'; cat jobs/p/stderr jobs/p/wait
            mkdir jobs/q; echo 'winsize 1x1' > jobs/q/ctl || cat error";
    let said = sh(&aq, script);
    assert_eq!(said, "24 80\nerr\nup\n30 100\nexit 0\nthe command does not run: new");
}

#[test]
fn variables_and_any_directory() {
    let aq = Mounted::booted();
    aq.exec("vm1", r#"mkdir -p "/tmp/it's a \"dir\" \$HOME""#);
    let script = r#"mkdir jobs/b; cat > jobs/b/ctl <<'END'
env K=a  b'c "d" $HOME \
cwd /tmp/it's a "dir" $HOME
END
            echo 'pwd; echo "$K"; echo "$b$g"' > jobs/b/cmd; cat jobs/b/stdout
            mkdir jobs/c; echo 'cwd /none' > jobs/c/ctl; echo 'echo here' > jobs/c/cmd; cat jobs/c/stdout; cat jobs/c/wait"#;
    let said = sh(&aq, script);
    let (said, wait) = said.rsplit_once('\n').expect("lines");
    assert_eq!(said, "/tmp/it's a \"dir\" $HOME\na  b'c \"d\" $HOME \\\n");
    assert!(wait.starts_with("exit ") && wait != "exit 0", "{wait}");
}

#[test]
fn jobs_in_parallel_and_the_last_of_each_subshell() {
    let aq = Mounted::booted();
    let script = "mkdir jobs/a jobs/b; echo 'cat; echo a' > jobs/a/cmd & (echo 'echo b' > jobs/b/cmd)
            exec 3>jobs/a/stdin; wait; cat jobs/b/stdout; exec 3>&-; cat jobs/a/stdout
            for n in 3 4; do (echo \"sleep 0.3; exit $n\" > exec; cat exec; echo \"$n $(cat jobs/last/status)\") & done | sort; wait
            rmdir jobs/a jobs/b";
    assert_eq!(sh(&aq, script), "b\na\n3 exit 3\n4 exit 4");
}

#[test]
fn a_vm_that_goes_off_loses_its_jobs() {
    let aq = Mounted::booted();
    let script =
        "mkdir jobs/b jobs/n; echo 'echo up; sleep 300' > jobs/b/cmd; head -n1 jobs/b/stdout
            echo kill > ctl; cut -c1-5 jobs/b/wait; cat wait jobs/n/status; cd ..; rm -r vm1; ls";
    assert_eq!(sh(&aq, script), "up\nlost:\nstopped\nnew");
}

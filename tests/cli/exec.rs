//! `aq exec` and `aq scp`: a command in the guest is as one here.

use crate::common::{BOOT, Mounted};

/// No job of ours may be left in the VM.
#[track_caller]
fn no_jobs(aq: &Mounted) {
    assert_eq!(aq.sh("ls vm1/jobs").ok(), "last");
}

#[test]
fn words_are_kept_and_the_exit_status_is_the_commands() {
    let aq = Mounted::booted();
    let table = [
        (r#"aq exec vm1 sh -c 'echo "a b"; exit 5'"#, "a b\n", 5),
        ("aq exec vm1 'echo a; echo b'", "a\nb\n", 0),
        ("aq exec vm1 printf '%s|' 'x  y' '' '$HOME' \"it's\" '*'", "x  y||$HOME|it's|*|", 0),
        ("aq exec vm1 'echo $HOME'", "/root\n", 0),
        ("aq exec vm1 ls -d /root", "/root\n", 0),
        ("aq exec vm1 ''", "", 0),
        ("aq exec vm1 'exit 200'", "", 200),
        ("aq exec vm1 'kill -TERM $$'", "", 143),
        ("echo 'echo from-stdin; exit 3' | aq exec vm1", "from-stdin\n", 3),
        ("aq exec vm1 <<'SH'\nf() {\n  echo \"$1 $2\"\n}\nf 'a b' c\nSH", "a b c\n", 0),
        ("echo input | aq exec vm1 cat", "input\n", 0),
        ("aq exec vm1 cat < /dev/null", "", 0),
        ("aq exec vm1 nosuch 2>/dev/null", "", 127),
        ("aq exec nosuch true 2>/dev/null", "", 1),
    ];
    for (line, stdout, code) in table {
        let said = aq.cli(line);
        assert_eq!((said.stdout.as_str(), said.code), (stdout, code), "{line}: {said:?}");
    }
    let apart = aq.cli("aq exec vm1 'echo out; echo err >&2'");
    assert_eq!((&*apart.stdout, &*apart.stderr), ("out\n", "err\n"));
    no_jobs(&aq);
}

#[test]
fn outputs_come_as_they_are_written() {
    let aq = Mounted::booted();
    // Standard error is there while the command still runs.
    let script = "aq exec vm1 'echo now >&2; sleep 300' 2> err & P=$!
        for i in {1..200}; do grep -q now err && echo seen && break; sleep 0.05; done
        kill -INT $P; wait $P; echo $?";
    assert_eq!(aq.cli(script).ok(), "seen\n130");
    no_jobs(&aq);
}

#[test]
fn bytes_pass_untouched_both_ways() {
    let aq = Mounted::booted();
    let script = "head -c 5000000 /dev/urandom > big
        aq exec vm1 cat < big | cmp - big && aq exec vm1 'cat > /tmp/big' < big &&
        aq exec vm1 cat /tmp/big | cmp - big && echo same";
    assert_eq!(aq.cli_within(script, BOOT * 2).ok(), "same");
    no_jobs(&aq);
}

#[test]
fn signals_reach_the_command_and_a_second_one_ends_it_for_good() {
    let aq = Mounted::booted();
    let script = "aq exec vm1 'trap \"echo caught; exit 9\" TERM; echo up; while :; do sleep 0.1; done' > out & P=$!
        until grep -qs up out; do sleep 0.05; done; kill -TERM $P; wait $P; echo $? $(cat out)";
    assert_eq!(aq.cli(script).ok(), "9 up caught");
    let script = "aq exec vm1 'trap : INT; echo up; while :; do sleep 0.1; done' > two & P=$!
        until grep -qs up two; do sleep 0.05; done; kill -INT $P; sleep 0.5; kill -INT $P; wait $P; echo $?";
    assert_eq!(aq.cli(script).ok(), "130");
    no_jobs(&aq);
    // The same with a pipe whose reader has gone.
    let said = aq.cli("aq exec vm1 yes | head -n1; echo ${PIPESTATUS[0]}");
    assert_eq!((said.stdout.as_str(), said.stderr.as_str()), ("y\n141\n", ""));
    no_jobs(&aq);
    assert_eq!(aq.exec("vm1", "ps | grep -c '[y]es$' || :"), "0");
}

#[test]
fn a_guest_that_goes_off_is_reported() {
    let aq = Mounted::booted();
    let said = aq.cli(
        "aq exec vm1 'echo up; sleep 300' > out & P=$!
        until grep -qs up out; do sleep 0.05; done; aq stop -f vm1; wait $P; echo $?",
    );
    assert!(said.stdout == "255\n" && said.stderr.contains("aq: vm1: "), "{said:?}");
}

#[test]
fn a_command_waits_for_a_guest_that_is_starting() {
    let aq = Mounted::with_image();
    aq.sh("mkdir vm1; echo start > vm1/ctl").ok();
    assert_eq!(aq.cli("aq exec vm1 echo hello").ok(), "hello");
}

#[test]
fn files_are_copied_both_ways_with_blanks_in_their_names() {
    let aq = Mounted::booted();
    let script = "mkdir 'a dir'; echo one > 'a dir/a file'; echo two > two
        aq scp 'a dir/a file' two 'vm1:/tmp/' && aq exec vm1 cat '/tmp/a file' /tmp/two
        aq scp -r -p 'a dir' 'vm1:/tmp/its dir' && aq exec vm1 ls '/tmp/its dir'
        mkdir back; aq scp 'vm1:/tmp/a file' :/tmp/two back && cat 'back/a file' back/two";
    assert_eq!(aq.cli(script).ok(), "one\ntwo\na file\none\ntwo");
    let table = [
        ("aq scp two", "source and destination"),
        ("aq scp two nosuch:", "VM 'nosuch' does not exist"),
        ("aq scp vm1:a vm2:b .", "Inconsistent VM names"),
        ("aq scp vm1:/nosuch .", "No such file"),
    ];
    for (line, words) in table {
        let said = aq.cli(line);
        assert!(said.code == 1 && said.stderr.contains(words), "{line}: {said:?}");
    }
}

//! Commands in a guest through `exec`: everyone gets the answer to their own question.

use std::fs;

use crate::common::terminal::Terminal;
use crate::common::{BOOT, Mounted, eventually};

#[test]
fn stdout_and_stderr_come_in_order_and_can_be_read_twice() {
    let aq = Mounted::booted();
    let script = "echo 'echo one; sleep 1; echo two >&2; sleep 1; echo three' > vm1/exec; cat vm1/exec vm1/exec";
    assert_eq!(aq.sh(script).ok(), "one\ntwo\nthree\none\ntwo\nthree");
}

#[test]
fn parallel_subshells_of_one_script_each_get_their_own_answer() {
    let aq = Mounted::booted();
    let script = r#"
            for n in 1 2 3 4; do
                (for i in 1 2 3 4 5; do
                    echo "echo answer $n $i" > vm1/exec
                    got=$(cat vm1/exec)
                    [ "$got" = "answer $n $i" ] || echo "subshell $n, round $i got: $got"
                done) &
            done
            wait"#;
    assert_eq!(aq.sh(script).ok(), "");
}

#[test]
fn two_terminals_never_mix() {
    let aq = Mounted::booted();
    let open = |n: u32| Terminal::open(aq.scratch().join(format!("tmux{n}")), &aq.dir());
    let terminals = [open(1), open(2)];
    for (n, terminal) in terminals.iter().enumerate() {
        terminal.enter(&format!(
            "for i in 1 2 3 4 5; do echo 'echo terminal {n}' > vm1/exec; cat vm1/exec; done \
                 > {0}/part{n}; mv {0}/part{n} {0}/said{n}",
            aq.scratch().display()
        ));
    }
    for n in 0..terminals.len() {
        let said = aq.scratch().join(format!("said{n}"));
        eventually("the terminals are done", BOOT, || said.exists());
        assert_eq!(fs::read_to_string(said).unwrap(), format!("terminal {n}\n").repeat(5));
    }
}

#[test]
fn a_descriptor_open_for_both_is_a_conversation() {
    let aq = Mounted::booted();
    let script = r#"
            exec 3<>vm1/exec
            echo 'echo one' >&3; cat <&3
            echo 'echo two; exit 3' >&3; cat <&3
            printf 'echo three\necho four\n' >&3; cat <&3; cat <&3
            exec 3>&-"#;
    assert_eq!(aq.sh(script).ok(), "one\ntwo\nthree\nfour");
}

#[test]
fn a_script_of_many_lines_runs_as_one() {
    let aq = Mounted::booted();
    let script = "
            cat > $SCRATCH/script.sh <<'END'
            greet() {
                echo \"hello $1\"
            }
            name='a b  c'
            for n in 1 2; do
                greet \"$name $n\"
            done
            cat <<'INNER'
            $untouched `text` \\n
INNER
END
            cat $SCRATCH/script.sh > vm1/exec; cat vm1/exec";
    let said = aq.sh(script).ok();
    let lines: Vec<&str> = said.lines().map(str::trim).collect();
    assert_eq!(lines, ["hello a b  c 1", "hello a b  c 2", "$untouched `text` \\n"]);
}

#[test]
fn bytes_pass_untouched_both_ways() {
    let aq = Mounted::booted();
    let script = r#"
            all() { i=0; while [ $i -lt 256 ]; do printf "\\$(printf %03o $i)"; i=$((i+1)); done; }
            all > $SCRATCH/sent
            { declare -f all; echo all; } > vm1/exec; cat vm1/exec > $SCRATCH/got
            cmp $SCRATCH/sent $SCRATCH/got || exit 1
            # No NUL and no quote; the command itself holds bytes that are no UTF-8.
            { printf "printf %%s '"; tail -c +2 $SCRATCH/sent | tr -d "'"; printf "'"; } > vm1/exec
            cat vm1/exec > $SCRATCH/got
            tail -c +2 $SCRATCH/sent | tr -d "'" | cmp - $SCRATCH/got"#;
    aq.sh(script).ok();
}

#[test]
fn large_output_arrives_whole() {
    let aq = Mounted::booted();
    let size = 20 << 20;
    let sum =
        aq.exec("vm1", &format!("head -c {size} /dev/urandom > /tmp/big; sha256sum < /tmp/big"));
    let script = "echo 'cat /tmp/big' > vm1/exec; cat vm1/exec | sha256sum";
    assert_eq!(aq.sh_within(script, BOOT * 2).ok(), sum);
}

#[test]
fn a_command_reads_an_empty_stdin() {
    let aq = Mounted::booted();
    assert_eq!(aq.exec("vm1", "cat; echo done"), "done");
}

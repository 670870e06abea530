//! `aq new`, `start`, `stop`, `ls`, `rm` and the commands that look at VMs: the words and exit codes
//! that scripts know, and what those scripts had to suffer from.

use crate::common::Mounted;

#[test]
fn new_prints_the_name_on_standard_output_and_ls_has_its_three_columns() {
    let aq = Mounted::new();
    let made = aq.cli("aq new --size=3G --memory=512M --cpus 2 -p 8080:80 -p 2222 vm1");
    assert_eq!((made.stdout.as_str(), made.stderr.as_str()), ("vm1\n", "Created:\n"));
    assert_eq!(aq.read("vm1/config/memory"), "512M");
    assert_eq!(aq.read("vm1/config/disk"), "3G");
    assert_eq!(aq.read("vm1/config/cpus"), "2");
    // The same ports as ever, but for this host alone.
    let ports = "tcp:127.0.0.1:8080:80\ntcp:127.0.0.1:2222:2222";
    assert_eq!(aq.read("vm1/config/ports"), ports);
    assert_eq!(aq.cli("aq ls").ok().trim_end(), "vm1                  Off");
    assert_eq!(aq.cli("aq new --from-snapshot=tiny --count=3 s").ok(), "s-0\ns-1\ns-2");
    let named = aq.cli("aq new").ok();
    assert!(named.split('-').count() == 2 && aq.path(&named).is_dir(), "{named}");
}

#[test]
fn what_is_refused_leaves_nothing_behind() {
    let aq = Mounted::new();
    let table = [
        ("aq new UPPER", "host name|VM's name"),
        ("aq new ../x", "aq: '../x' is not a name"),
        ("aq new ''", "aq: '' is not a name"),
        ("aq new -p 99999:1 a", "aq: a: ports: "),
        ("aq new --memory=1Q a", "memory: \"1Q\" is not a size"),
        ("aq new --size=8X --count 2 a", "disk: "),
        ("aq new --from-snapshot=none a", "snapshot or alias 'none' does not exist. `"),
        ("aq new --image tinny a", "'tinny' does not exist. Did you mean 'tiny'?"),
        ("aq new --from-snapshot=../../etc a", "does not exist"),
    ];
    for (line, words) in table {
        let said = aq.cli(line);
        assert_eq!((said.code, said.stdout.as_str()), (1, ""), "{line}: {said:?}");
        assert!(words.split('|').any(|w| said.stderr.contains(w)), "{line}: {said:?}");
    }
    aq.cli("aq new b-1").ok();
    let said = aq.cli("aq new --count 3 b");
    assert!(said.code == 1 && said.stderr.contains("'b-1' already exists"), "{said:?}");
    let interrupted = "aq new --count 4000 i > /dev/null & until [ -d $AQ_MOUNT/i-2 ]; do :; done
        kill -INT $!; wait $!; echo $?";
    assert_eq!(aq.cli(interrupted).ok(), "130");
    assert_eq!(aq.sh("ls").ok(), "b-1");
    assert_eq!(aq.cli("aq new --count 0 x").code, 2);
}

#[test]
fn no_name_leads_out_of_the_tree() {
    let aq = Mounted::new();
    aq.sh("mkdir $SCRATCH/victim").ok();
    for command in ["rm", "rm --erase", "stop", "start", "info", "logs"] {
        for name in ["../victim", "../../victim", "/etc", ".images", ".", "''"] {
            let said = aq.cli(&format!("aq {command} {name}"));
            assert_eq!(said.code, 1, "{command} {name}: {said:?}");
            assert!(said.stderr.contains("does not exist"), "{command} {name}: {said:?}");
        }
    }
    assert!(aq.scratch().join("victim").is_dir() && aq.path(".images").is_dir());
}

#[test]
fn a_stopped_vm_is_reported_at_once() {
    let aq = Mounted::new();
    aq.cli("aq new vm1; touch f").ok();
    let commands =
        ["exec vm1 true", "console vm1", "scp f vm1:", "scp vm1:f .", "attach vm1", "exec vm1 < f"];
    for command in commands {
        let said = aq.cli(&format!("time aq {command}"));
        let words = "aq: VM 'vm1' is not running. Start it with: aq start vm1";
        assert!(said.code == 1 && said.stderr.contains(words), "{command}: {said:?}");
        assert!(said.stderr.contains("real\t0m0."), "{command}: {said:?}");
    }
    assert_eq!(aq.cli("aq stop vm1").code, 0);
    assert_eq!(aq.cli("aq wait vm1").ok(), "stopped");
    let typo = aq.cli("aq exec vm11 true").stderr;
    assert_eq!(typo, "aq: VM 'vm11' does not exist. Did you mean 'vm1'?\n");
    let late = aq.cli("aq wait vm1 ready --timeout 1");
    assert!(late.code == 1 && late.stderr.contains("is still stopped"), "{late:?}");
}

#[test]
fn rm_is_refused_where_rmdir_is_and_several_are_removed_at_once() {
    let aq = Mounted::new();
    aq.cli("aq new a; aq new b; aq new c").ok();
    aq.sh("echo 1 > b/config/protect").ok();
    let said = aq.cli("aq rm a b c nosuch");
    assert_eq!(said.code, 1);
    let words = ["Removed a", "b: is protected", "Removed c", "'nosuch' does not exist"];
    assert!(words.iter().all(|w| said.stderr.contains(w)), "{said:?}");
    assert_eq!(aq.sh("ls").ok(), "b");
}

#[test]
fn events_are_lines_or_objects() {
    let aq = Mounted::new();
    aq.cli("aq new a").ok();
    // The stream is open when the change is made: the first line is of it.
    let first = |command: &str, follow: &str| {
        let change = "for i in $(seq 100); do echo $((i % 2 + 1)) >a/config/cpus; sleep 0.05; done";
        aq.cli(&format!("cd $AQ_MOUNT; ({change}) & {command} | head -n 1 {follow}; kill $!")).ok()
    };
    let object = first("aq events --json", "| jq -r '.vm + \" \" + .event + \" \" + .text'");
    assert_eq!(object, "a config cpus");
    let of_one = first("aq events a --json", "| jq -r '.vm + \" \" + .event + \" \" + .text'");
    assert_eq!(of_one, "a config cpus");
    assert!(first("aq events", "").ends_with(" a config cpus"));
    assert!(aq.cli("aq events nosuch").stderr.contains("does not exist"));
}

#[test]
fn facts_as_json_and_by_key() {
    let aq = Mounted::new();
    aq.cli("aq new a; aq new b").ok();
    assert_eq!(aq.cli("aq ls --json | jq -r '.[] | .name + .status'").ok(), "astopped\nbstopped");
    assert_eq!(aq.cli("aq info --json a | jq .cpus").ok(), "1");
    assert_eq!(aq.cli("aq info a image").ok(), "tiny");
    let said = aq.cli("aq info a pid");
    assert!(said.code == 1 && said.stderr.contains("has no pid now"), "{said:?}");
    assert_eq!(aq.cli("aq ls --json nosuch").code, 1);
    assert_eq!(aq.cli("aq snapshot ls --json | jq -c").ok(), "[]");
    assert_eq!(aq.cli("aq doctor --json | jq -r '.works | type'").ok(), "array");
    assert!(aq.cli("aq ls -l | head -n1").ok().starts_with("NAME "));
    // A reader that has seen enough ends the program as it would any other.
    let script =
        "for i in {1..300}; do aq new v$i; done >/dev/null 2>&1; aq ls | head -n1 >/dev/null
        echo ${PIPESTATUS[0]} | grep -x -e 0 -e 141";
    let said = aq.cli(script);
    assert!(said.code == 0 && said.stderr.is_empty(), "{said:?}");
}

#[test]
fn colours_are_for_terminals_only() {
    let aq = Mounted::new();
    aq.cli("aq new a").ok();
    assert!(!aq.cli("aq ls; aq ls -l; aq doctor").stdout.contains('\x1b'));
    let on_terminal = |before: &str| {
        let line = format!("{before} script -qec \"$AQ ls -l\" /dev/null");
        aq.cli(&line).stdout.contains("\x1b[")
    };
    assert!(on_terminal("TERM=xterm-256color"));
    assert!(!on_terminal("TERM=xterm-256color NO_COLOR=1"));
}

#[test]
fn edit_writes_what_was_changed() {
    let aq = Mounted::new();
    aq.cli("aq new -p 8080:80 a").ok();
    let edit = |script: &str| {
        let text = format!(
            "cat > ed <<'END'\n#!/bin/sh\n{script}\nEND\nchmod +x ed; EDITOR=$PWD/ed aq edit a"
        );
        aq.cli(&text)
    };
    let said = edit(
        "sed -i -e 's/^memory = .*/memory = 1G/' -e '/^cpus/d' -e 's/^ports.*/&\\nports = 9090:90/' \"$1\"",
    );
    assert_eq!(said.code, 0, "{said:?}");
    assert_eq!(said.stderr.lines().count(), 3, "{said:?}");
    assert_eq!(aq.read("a/config/memory"), "1G");
    let ports = "tcp:127.0.0.1:8080:80\ntcp:127.0.0.1:9090:90";
    assert_eq!(aq.read("a/config/ports"), ports);
    assert_eq!(edit(":").stderr, "");
    let said = edit("sed -i 's/^memory = .*/memory = 1Q/; s/^cpus.*/cpus = 3/' \"$1\"");
    assert!(said.code == 1 && said.stderr.contains("memory: \"1Q\""), "{said:?}");
    assert_eq!(aq.read("a/config/cpus"), "3");
    let said = edit("echo 'nosuch = 1' >> \"$1\"");
    assert!(said.code == 1 && said.stderr.contains("no setting nosuch"), "{said:?}");
    let said = edit("exit 3");
    assert!(said.code == 1 && said.stderr.contains("nothing was changed"), "{said:?}");
}

#[cfg(feature = "qemu_tests")]
mod with_a_guest {
    use super::*;

    #[test]
    fn a_life_in_the_words_of_old_scripts() {
        let aq = Mounted::with_image();
        aq.cli("aq new vm1").ok();
        let script = "aq wait vm1 ready --timeout 100 > waited & aq start vm1; wait; cat waited";
        let started = aq.cli(script);
        assert_eq!((started.code, started.stdout.as_str()), (0, "ready\n"));
        assert_eq!(started.stderr, "Started vm1\n");
        assert_eq!(aq.read("vm1/status"), "ready");
        let port = aq.info("vm1", "ssh_port");
        assert_eq!(aq.cli("aq ls").ok(), format!("vm1                  On   :{port}"));
        assert_eq!(aq.cli("aq ls | awk '{print $1, $2, $3}'").ok(), format!("vm1 On :{port}"));
        let again = aq.cli("aq start vm1");
        assert!(again.code == 1 && again.stderr.contains("is already running"), "{again:?}");
        assert_eq!(aq.cli("aq exec vm1 echo hello").ok(), "hello");
        assert_eq!(aq.cli("echo 'echo from-stdin' | aq exec vm1").ok(), "from-stdin");
        assert_eq!(aq.cli("aq wait vm1 running --timeout 5").ok(), "ready");
        // The guest shuts down by itself: what it had not written yet is on the disk.
        aq.cli("aq exec vm1 'echo kept > /root/f'").ok();
        let stopped = aq.cli("aq stop vm1; aq stop vm1");
        assert_eq!((stopped.code, &*stopped.stdout, &*stopped.stderr), (0, "", ""));
        assert!(aq.read("vm1/console.log").contains("reboot: Power down"));
        assert_eq!(aq.cli("aq start vm1 && aq exec vm1 cat /root/f").ok(), "kept");
        assert!(aq.cli("aq logs vm1 | grep -c 'Power down'").ok() == "1");
        let followed = aq.cli("timeout 3 aq logs -f vm1 > out & sleep 1; aq exec vm1 'echo said > /dev/console'; wait; grep -o said out");
        assert_eq!(followed.ok(), "said");
        assert_eq!(aq.cli("aq rm vm1").stderr, "Removed vm1\n");
        assert_eq!(aq.sh("ls").ok(), "");
        // What was removed by mistake is a rename away, or gone for good.
        let kept = aq.sh("ls .trash").ok();
        assert!(kept.starts_with("vm1@"), "{kept}");
        aq.sh(&format!("mv .trash/{kept} back")).ok();
        aq.cli("aq rm --erase back").ok();
        assert_eq!(aq.sh("ls .trash").ok(), "");
    }

    #[test]
    fn a_taken_port_is_reported_at_once_and_ports_are_this_hosts_alone() {
        let aq = Mounted::with_image();
        let script = r#"
            python3 -c 'import socket,time
s=socket.socket(); s.bind(("127.0.0.1",0)); s.listen()
print(s.getsockname()[1],flush=True); time.sleep(60)' > port & P=$!
            until [ -s port ]; do sleep 0.1; done
            aq new -p $(cat port):80 vm1; time aq start vm1; echo "exit $?"; kill $P"#;
        let said = aq.cli(script);
        assert!(said.stdout.contains("exit 1"), "{said:?}");
        assert!(said.stderr.contains("port") && said.stderr.contains("real\t0m"), "{said:?}");
        assert!(!said.stderr.contains("Started"), "{said:?}");
        aq.cli("aq new -p 0:80 vm2 && aq start vm2").ok();
        let pid = aq.info("vm2", "pid");
        let listens = aq.sh(&format!("ss -Hltnp | grep pid={pid}, | awk '{{print $4}}'")).ok();
        let local = |l: &str| l.starts_with("127.0.0.1:");
        assert!(listens.lines().count() == 2 && listens.lines().all(local), "{listens}");
    }

    #[test]
    fn a_failed_start_says_why() {
        let aq = Mounted::with_image();
        aq.cli("aq new vm1").ok();
        aq.sh("echo -nonsense > vm1/config/qemu_args").ok();
        let said = aq.cli("aq start vm1");
        assert!(said.code == 1 && said.stderr.contains("nonsense"), "{said:?}");
        // A disk that does not boot: QEMU runs, and the guest never answers.
        aq.sh("truncate -s 32M $SCRATCH/x.raw; mkdir .images/x; echo $SCRATCH/x.raw > .images/x/source").ok();
        aq.cli("aq new --from-snapshot x vm2").ok();
        let said = aq.cli("aq start --timeout 3 vm2");
        let words = ["aq: vm2: runs, but", "within 3 s", "aq logs vm2"];
        assert!(said.code == 1 && words.iter().all(|w| said.stderr.contains(w)), "{said:?}");
    }
}

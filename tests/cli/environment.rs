//! The bash tool's variables of the environment: they become settings, or are refused by name before
//! anything is made.

use crate::common::Mounted;

#[test]
fn they_become_settings_of_what_is_made_and_of_what_is_started() {
    let aq = Mounted::new();
    aq.sh("printf '%s\\n' -S -nodefaults > .defaults/qemu_args").ok();
    let script = r#"export AQ_CPU=max AQ_MACHINE_OVERRIDE=pc-q35-7.2,hpet=off AQ_QEMU_LOG_FILE=qemu.log
        export AQ_QEMU_EXTRA_ARGS='-fw_cfg "name=opt/x,string=a b"' AQ_KERNEL_APPEND_EXTRA='a=1 b'
        ssh-keygen -q -t ed25519 -N '' -f key; export AQ_HOST_KEY=key
        aq new vm1"#;
    aq.cli(script).ok();
    assert_eq!(aq.read("vm1/config/machine"), "pc-q35-7.2");
    assert_eq!(aq.read("vm1/config/cmdline"), "a=1 b");
    let key = std::fs::read_to_string(aq.scratch().join("key.pub")).unwrap();
    assert_eq!(aq.read("vm1/config/ssh_key"), key.trim());
    let log = aq.scratch().join("qemu.log");
    let args = format!(
        "-S\n-nodefaults\n-cpu\nmax\n-machine\nhpet=off\n-fw_cfg\nname=opt/x,string=a b\n-D\n{}",
        log.display()
    );
    assert_eq!(aq.read("vm1/config/qemu_args"), args);
    // What is started gets them as well, and once; its image has no source, so it does not run.
    aq.cli("mkdir $AQ_MOUNT/.images/none && aq new --image none vm2").ok();
    let script = "export AQ_CPU=qemu64 AQ_KERNEL_APPEND_EXTRA=c; aq start vm2; aq start vm2";
    assert_eq!(aq.cli(script).code, 1);
    assert_eq!(aq.read("vm2/config/qemu_args"), "-S\n-nodefaults\n-cpu\nqemu64");
    assert_eq!(aq.read("vm2/config/cmdline"), "c");
    // Those of the bash tool that have nothing to act on here are no mistake.
    let others =
        "AQ_MEMORY_SNAPSHOT=raw AQ_SSH_PROBE_INTERVAL=0.1 AQ_DRIVE_EXTRA=cache=none AQ_CPU=";
    assert_eq!(aq.cli(&format!("{others} aq new vm3")).ok(), "vm3");
    assert_eq!(aq.read("vm3/config/qemu_args"), "-S\n-nodefaults");
}

#[test]
fn an_invalid_value_is_reported_by_the_name_of_its_variable() {
    let aq = Mounted::new();
    let table = [
        ("AQ_HOST_KEY=/nosuch/key", "/nosuch/key: No such file"),
        ("AQ_HOST_KEY=key.pub", "key.pub is the public key"),
        ("AQ_HOST_KEY=/etc", "/etc is not the file of a private key"),
        ("AQ_CPU='a b'", "\"a b\" is not a processor model"),
        ("AQ_CPU=$'\\x01'", "characters that are not text"),
        ("AQ_MACHINE_OVERRIDE=microvm", "\"microvm\" is not q35"),
        ("AQ_QEMU_EXTRA_ARGS=\"-name 'x\"", "a quotation mark has no second one"),
        ("AQ_KERNEL_APPEND_EXTRA=\"$(printf %2000s)\"", "has 2000 bytes"),
        ("AQ_QEMU_LOG_FILE=/nosuch/log", "there is no directory for /nosuch/log"),
    ];
    for (variable, words) in table {
        let (name, _) = variable.split_once('=').unwrap();
        for command in ["new vm1", "start nosuch", "fanout tiny 2 true"] {
            let said = aq.cli(&format!("{variable} aq {command}"));
            let sentence = said.stderr.strip_prefix(&format!("aq: {name}: ")).unwrap_or_default();
            assert!(said.code == 1 && sentence.contains(words), "{variable} {command}: {said:?}");
        }
    }
    assert_eq!(aq.sh("ls").ok(), "");
}

#[cfg(feature = "qemu_tests")]
#[test]
fn a_vm_has_what_they_say_and_the_users_key_opens_it() {
    let aq = Mounted::with_image();
    let script = r#"ssh-keygen -q -t ed25519 -N '' -C users-key -f 'my key'; export AQ_HOST_KEY='my key'
        export AQ_CPU=qemu64 AQ_MACHINE_OVERRIDE=q35,hpet=off AQ_KERNEL_APPEND_EXTRA=aq.test=1
        export AQ_QEMU_LOG_FILE=qemu.log AQ_QEMU_EXTRA_ARGS='-d cpu_reset' AQ_TIMING=1
        aq new vm1 && aq start vm1"#;
    let started = aq.cli(script).stderr;
    let timing = started.lines().last().unwrap_or_default();
    let is_number = |word: &str| word.parse::<u32>().is_ok_and(|ms| ms > 0);
    let words: Vec<_> = timing.split([' ', ',']).filter(|w| !is_number(w)).collect();
    let wanted = ["vm1:", "qemu_launch", "ms", "", "wait_ssh", "ms", "", "total", "ms"];
    assert_eq!(words, wanted, "{started}");
    assert!(aq.exec("vm1", "cat /proc/cmdline").ends_with(" aq.test=1"));
    assert!(aq.exec("vm1", "grep -m1 model.name /proc/cpuinfo").contains("QEMU Virtual CPU"));
    assert!(std::fs::metadata(aq.scratch().join("qemu.log")).is_ok_and(|log| log.len() > 0));
    // No other key opens it any more, ours included.
    aq.exec("vm1", "cd /root/.ssh; grep users-key authorized_keys > x; cat x > authorized_keys");
    let script = "echo one > f; aq scp f vm1:/tmp/ 2>/dev/null; echo $?
        export AQ_HOST_KEY='my key'; aq scp f vm1:/tmp/g && echo 'cat /tmp/g' | aq console vm1";
    let said = aq.cli(script);
    assert!(said.stdout.ends_with("one\n") && !said.stdout.starts_with("0\n"), "{said:?}");
}

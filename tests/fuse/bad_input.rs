//! What a user gets wrong: an errno, a sentence in `error`, and nothing changed.

use crate::common::{Mounted, assert_errno};
use libc::{EALREADY, EHOSTDOWN, EINVAL, ERANGE};

/// Writes what is wrong; the sentence in `error` must name `word` and the status must stay.
#[track_caller]
fn refused(aq: &Mounted, file: &str, text: &str, errno: i32, word: &str) {
    let before = aq.read("vm1/status");
    assert_errno(aq.write(&format!("vm1/{file}"), text), errno);
    let error = aq.read("vm1/error");
    assert!(error.contains(word) && error.lines().count() == 1, "{file} {text:?}: {error:?}");
    assert_eq!(aq.read("vm1/status"), before, "{file} {text:?}");
}

fn defined() -> Mounted {
    let aq = Mounted::new();
    aq.sh("mkdir vm1").ok();
    assert_eq!(aq.read("vm1/error"), "ok");
    aq
}

#[test]
fn verbs() {
    let aq = defined();
    let table = [
        ("frobnicate", EINVAL, "frobnicate"),
        ("START", EINVAL, "START"),
        ("start now", EINVAL, "now"),
        ("stop soon", EINVAL, "soon"),
        ("stop -1", EINVAL, "-1"),
        ("stop 1 2", EINVAL, "stop"),
        ("kill 9", EINVAL, "kill"),
        ("pause", EHOSTDOWN, "stopped"),
        ("resume", EHOSTDOWN, "stopped"),
        ("reset", EHOSTDOWN, "stopped"),
        ("stop", EALREADY, "stopped"),
        ("kill\n", EALREADY, "stopped"),
        ("resize", EINVAL, "resize"),
        ("resize 1.5G", EINVAL, "1.5G"),
        ("resize 1K", ERANGE, "1K"),
        ("port add", EINVAL, "port"),
        ("port add 80", EINVAL, "80"),
        ("port del 8080:80", libc::ENOENT, "8080"),
        ("key", EINVAL, "key"),
        ("key a", EHOSTDOWN, "stopped"),
    ];
    for (verb, errno, word) in table {
        refused(&aq, "ctl", verb, errno, word);
    }
    aq.sh("printf '# a remark\n\n' > vm1/ctl").ok();
}

#[test]
fn a_write_to_ctl_has_a_limit() {
    let aq = defined();
    refused(&aq, "ctl", &"#".repeat(4097), libc::E2BIG, "4096");
    aq.write("vm1/ctl", &"#".repeat(4096)).expect("4096 bytes are allowed");
}

#[test]
fn values() {
    let aq = defined();
    let table = [
        ("cpus", "many", EINVAL),
        ("cpus", "0", ERANGE),
        ("cpus", "256", ERANGE),
        ("memory", "lots", EINVAL),
        ("memory", "1M", ERANGE),
        ("memory", "-1G", EINVAL),
        ("disk", "1.5G", EINVAL),
        ("disk", "1K", ERANGE),
        ("hostname", "two words", EINVAL),
        ("accel", "warp", EINVAL),
        ("protect", "2", EINVAL),
        ("image", "../tiny", EINVAL),
        ("ssh_user", "-l", EINVAL),
        ("mac", "01:00:5e:00:00:01", EINVAL),
        ("ports", "80", EINVAL),
        ("ports", "1:1\n1:2", libc::EEXIST),
        ("ssh_key", "-----BEGIN OPENSSH PRIVATE KEY-----", EINVAL),
        ("kernel", "vmlinuz", EINVAL),
        ("cdrom", "http://example.org/a.iso", EINVAL),
        ("machine", "microvm", EINVAL),
        ("cmdline", &"x".repeat(1025), ERANGE),
        ("ephemeral", "maybe", EINVAL),
        ("autostart", "2", EINVAL),
        ("autoremove", "2", EINVAL),
        ("idle", "1.5h", EINVAL),
        ("cpu_limit", "50%", EINVAL),
        ("cpu_limit", "0", ERANGE),
        ("memory_high", "1K", ERANGE),
        ("memory_max", "much", EINVAL),
        ("io_limit", "fast", EINVAL),
        ("io_limit", "1K", ERANGE),
        ("expire", "soon", EINVAL),
        ("expire", "0", ERANGE),
        ("expire", "3651d", ERANGE),
        ("net", "none", EINVAL),
        ("allow", "http://x/", EINVAL),
    ];
    for (key, value, errno) in table {
        let before = aq.read(&format!("vm1/config/{key}"));
        refused(&aq, &format!("config/{key}"), value, errno, key);
        assert_eq!(aq.read(&format!("vm1/config/{key}")), before, "{key}");
    }
}

#[test]
fn values_read_back_in_their_canonical_form_and_an_empty_write_changes_nothing() {
    let aq = defined();
    let script = "cd vm1/config; echo 2048M > memory; cat memory; : > memory; cat memory;
        echo default > memory; cat memory; printf 3 > cpus; cat cpus";
    assert_eq!(aq.sh(script).ok(), "2G\n2G\n256M\n3");
}

#[test]
fn names() {
    let aq = defined();
    let long = "a".repeat(33);
    for name in ["A", "a_b", "a.b", "-a", ".hidden", "ä", &long] {
        assert_errno(std::fs::create_dir(aq.path(name)), EINVAL);
        assert_errno(std::fs::metadata(aq.path(name)), libc::ENOENT);
    }
    assert!(aq.sh("ls .git").failed().contains("No such file or directory"));
    assert_errno(std::fs::create_dir(aq.path("vm1")), libc::EEXIST);
    assert_errno(std::fs::remove_dir(aq.path("nosuch")), libc::ENOENT);
    assert_eq!(aq.sh("ls").ok(), "vm1");
}

#[test]
fn files_of_ones_own_have_no_place_here() {
    let aq = defined();
    let forbidden = [
        "touch new",
        "touch vm1/new",
        "echo x > vm1/config/new",
        "mknod vm1/pipe p",
        "ln vm1/status vm1/hard",
        "ln -s status vm1/soft",
        "mkdir vm1/sub",
        "mv vm1/status vm1/other",
    ];
    for command in forbidden {
        let said = aq.sh(command).failed();
        let denied = [
            "Permission denied",
            "Operation not permitted",
            // mv's words for EINVAL
            "subdirectory of itself",
            "cross-device",
        ];
        assert!(denied.iter().any(|d| said.contains(d)), "{command}: {said}");
    }
    assert!(aq.sh("echo x > vm1/status").failed().contains("Permission denied"));
    assert_eq!(
        aq.sh("ls -A vm1 | grep -c -e new -e pipe -e hard -e soft -e sub -e other").stdout,
        "0\n"
    );
}

#[test]
fn a_failed_line_holds_back_those_after_it() {
    let aq = defined();
    let script =
        "exec 3<>vm1/ctl; echo pause >&3; echo start >&3; cat vm1/status; cat <&3; echo stop >&3";
    let said = aq.sh(script);
    let errors: Vec<&str> = said.stderr.lines().filter_map(|l| l.rsplit(": ").next()).collect();
    // The results were read in between, so that the last line is judged by itself again.
    let expected = ["Host is down", "Operation canceled", "Operation already in progress"];
    assert_eq!(errors, expected, "{said:?}");
    assert!(said.stdout.starts_with("stopped\n") && said.stdout.contains("pause"), "{said:?}");
}

#[test]
fn a_protected_vm_cannot_be_removed() {
    let aq = defined();
    aq.sh("echo 1 > vm1/config/protect").ok();
    assert_errno(std::fs::remove_dir(aq.path("vm1")), libc::EPERM);
    assert!(aq.sh("rm -r vm1").failed().contains("Operation not permitted"));
    assert!(aq.read("vm1/error").contains("protect"), "{}", aq.read("vm1/error"));
    aq.sh("echo 0 > vm1/config/protect && rm -r vm1").ok();
}

#[test]
fn an_image_that_does_not_exist() {
    let aq = defined();
    aq.write("vm1/config/image", "nosuch").expect("it may come later");
    refused(&aq, "ctl", "start", libc::ENOENT, "nosuch");
}

//! How programs learn that something has happened: `events`, `.error`, `.metrics`, POLLPRI and
//! inotify.

use crate::common::Mounted;

#[test]
fn readers_of_events_see_the_life_of_a_vm() {
    let aq = Mounted::new();
    let said = aq.events_of(
        ".events",
        "last='vm2 removed'
        mkdir vm1; echo 2 > vm1/config/cpus; echo stop > vm1/ctl; mv vm1 vm2; rmdir vm2",
    );
    let expected = "vm1 created\n\
        vm1 config cpus\n\
        vm1 error stop: already stopped\n\
        vm1 renamed vm2\n\
        vm2 removed";
    assert_eq!(said, expected);
}

#[test]
fn one_vms_file_has_the_events_of_that_vm_alone() {
    let aq = Mounted::new();
    aq.sh("mkdir vm1 vm2").ok();
    let said = aq.events_of(
        "vm1/events",
        "last='config memory'
        echo 2 > vm2/config/cpus; echo 1G > vm1/config/memory",
    );
    assert_eq!(said, "config memory");
}

#[test]
fn failures_anywhere_are_listed_with_path_and_reason() {
    let aq = Mounted::new();
    let said = aq
        .sh("mkdir vm1; echo nonsense > vm1/ctl; echo 0 > vm1/config/cpus; echo x > vm1/new
        cut -d' ' -f3- .error");
    let lines: Vec<&str> = said.stdout.lines().collect();
    assert!(lines[0].starts_with("/vm1/ctl 22 unknown verb \"nonsense\""), "{lines:?}");
    assert!(lines[1].starts_with("/vm1/config/cpus 34 cpus: 0 is out of range"), "{lines:?}");
    assert!(lines[2].starts_with("/vm1 13 files cannot be created here"), "{lines:?}");
    assert_eq!(lines.len(), 3);
}

#[test]
fn metrics_are_of_prometheus_form() {
    let aq = Mounted::new();
    aq.sh("mkdir vm1 vm2").ok();
    let text = aq.read(".metrics");
    assert!(text.contains("aqfs_vms{state=\"stopped\"} 2\n"), "{text}");
    let mut typed = Vec::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("a name and a type");
            assert!(kind == "gauge" || (kind == "counter" && name.ends_with("_total")), "{line}");
            assert!(!typed.contains(&name), "{name} twice");
            typed.push(name);
        } else if !line.starts_with("# HELP ") {
            let name = line.split(['{', ' ']).next().expect("a name");
            assert_eq!(typed.last(), Some(&name), "a sample outside its group: {line}");
            let value = line.rsplit(' ').next().expect("a value");
            assert!(value.parse::<f64>().is_ok(), "{line}");
        }
    }
}

#[test]
fn a_value_that_is_kept_open_reports_by_poll_that_it_has_changed() {
    let aq = Mounted::new();
    let script = r#"
import os, select
f = os.open("vm1/config/cpus", os.O_RDONLY)
p = select.poll(); p.register(f, select.POLLPRI)
print(os.read(f, 9), p.poll(0))
os.system("(sleep 0.2; echo 3 > vm1/config/cpus) &")
print(p.poll(5000) == [(f, select.POLLPRI | select.POLLERR)], os.pread(f, 9, 0), p.poll(0))
"#;
    let said = aq.sh(&format!("mkdir vm1; python3 -c '{script}'")).ok();
    assert_eq!(said, "b'1\\n' []\nTrue b'3\\n' []");
}

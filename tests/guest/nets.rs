//! `.nets`: several VMs on one subnet.

use std::fs;

use libc::{EBUSY, EEXIST, EINVAL, ENOENT, ENOSPC};

use crate::common::{BOOT, Mounted, assert_errno, eventually};

/// Has a guest reach members by name, over the net alone.
#[track_caller]
fn reaches(aq: &Mounted, from: &str, names: &[&str]) {
    for name in names {
        let resolved = format!("grep -w {name} /etc/hosts; cat /etc/hosts >&2");
        let ping = format!("ping -c 1 -W 10 {name} || {{ {resolved}; ip addr; }}");
        let said = aq.exec(from, &ping);
        assert!(said.contains(" bytes from 10."), "{from} to {name}: {said}");
    }
}

/// Waits until a guest knows these members, and no others.
#[track_caller]
fn knows(aq: &Mounted, vm: &str, names: &[&str]) {
    let look = "sed -n '/^# aqfs: the/,/^# aqfs: end/s/^[0-9.]* \\([^ ]*\\) .*/\\1/p' /etc/hosts";
    let mut expected = names.to_vec();
    expected.sort_unstable();
    eventually(&format!("{vm} knows {names:?}"), BOOT, || {
        let said = aq.exec(vm, look);
        let mut said: Vec<&str> = said.lines().collect();
        said.sort_unstable();
        said == expected
    });
}

/// Returns a member's address.
fn address(aq: &Mounted, net: &str, vm: &str) -> String {
    let members = aq.read(&format!(".nets/{net}/members"));
    let line = members.lines().find_map(|line| line.strip_prefix(vm)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("{vm} is not in {members}")).to_owned()
}

fn boot_all(aq: &Mounted, names: &[&str]) {
    for name in names {
        aq.sh(&format!("echo start > {name}/ctl")).ok();
    }
    names.iter().for_each(|name| aq.wait_for_ready(name));
}

#[test]
fn members_reach_each_other_by_name_whatever_became_of_them() {
    let aq = Mounted::with_image();
    aq.sh(
        "mkdir .nets/lab; for vm in a b c; do mkdir $vm; echo lab > $vm/config/nets; done; mkdir d",
    )
    .ok();
    assert_errno(fs::remove_dir(aq.path(".nets/lab")), EBUSY);
    boot_all(&aq, &["a", "b", "c", "d"]);
    for from in ["a", "b", "c"] {
        reaches(&aq, from, &["a", "b", "c.lab"]);
    }
    // One that is no member connects to nobody there.
    let ssh = format!("echo | timeout 5 nc {} 22 | head -c 3", address(&aq, "lab", "a"));
    assert_eq!((aq.exec("b", &ssh).as_str(), aq.exec("d", &ssh).as_str()), ("SSH", ""));
    let before = ["a", "b", "c"].map(|vm| address(&aq, "lab", vm));
    // Restarted, and renamed.
    aq.stop("a");
    aq.boot_existing("a");
    reaches(&aq, "a", &["b"]);
    reaches(&aq, "b", &["a"]);
    aq.sh("mkdir c/snapshots/s; cat c/wait; mv b e").ok();
    for vm in ["a", "c", "e"] {
        knows(&aq, vm, &["a", "c", "e"]);
    }
    reaches(&aq, "a", &["e"]);
    // Restored, from when another name was known; suspended and started.
    aq.sh("echo restore s > c/ctl; cat c/wait c/ready").ok();
    knows(&aq, "c", &["a", "c", "e"]);
    reaches(&aq, "c", &["e", "a"]);
    aq.sh("echo suspend > e/ctl; cat e/wait; echo start > e/ctl; cat e/ready").ok();
    reaches(&aq, "e", &["a", "c"]);
    reaches(&aq, "c", &["e"]);
    assert_eq!(["a", "e", "c"].map(|vm| address(&aq, "lab", vm)), before);
    // The daemon is killed: the switch runs on.
    let switches = aq.switches();
    assert_eq!(switches.len(), 1);
    aq.kill_daemon();
    aq.mount();
    for vm in ["a", "c", "e"] {
        aq.wait_for_ready(vm);
    }
    assert_eq!(aq.switches(), switches);
    reaches(&aq, "a", &["c", "e"]);
    // The switch is killed: another one takes over.
    let kill = format!("last='e net lab .* another'; kill -KILL {}", switches[0]);
    let said = aq.events_of(".events", &kill);
    eventually("another switch", BOOT, || aq.switches().len() == 1 && aq.switches() != switches);
    assert!(said.contains("net lab 10."), "{said}");
    for vm in ["a", "c"] {
        eventually("the link is back", BOOT, || {
            aq.exec(vm, "ping -c 1 -W 5 e").contains(" bytes from 10.")
        });
    }
    // The last member takes the switch along.
    for vm in ["a", "c", "e"] {
        aq.stop(vm);
    }
    eventually("no switch", BOOT, || aq.switches().is_empty());
}

#[test]
fn a_vm_joins_and_leaves_while_it_runs_and_so_do_its_copies_and_its_past() {
    let aq = Mounted::with_image();
    aq.sh("echo warm > .images/tiny/ctl; cat .images/tiny/wait; mkdir .nets/lab .nets/db a b").ok();
    // A clone of a warm image resumes, and joins.
    aq.sh("echo 'lab db' > a/config/nets; echo offline > a/config/net").ok();
    boot_all(&aq, &["a", "b"]);
    assert_eq!(aq.info("a", "warm"), "yes");
    assert_eq!(aq.info("a", "nets").matches("10.").count(), 2);
    aq.sh("mkdir b/snapshots/before; cat b/wait").ok();
    aq.events_of("b/events", "last='net lab 10'; echo lab > b/config/nets");
    reaches(&aq, "b", &["a"]);
    reaches(&aq, "a", &["b.lab", "a.db"]);
    aq.sh("mkdir b/snapshots/after; cat b/wait").ok();
    // The memory of before knows of no device, and that of after has one.
    for tag in ["before", "after"] {
        aq.sh(&format!("echo restore {tag} > b/ctl; cat b/wait b/ready")).ok();
        reaches(&aq, "b", &["a"]);
        reaches(&aq, "a", &["b"]);
    }
    // A fork is a member too, and neither takes the other's address.
    aq.sh_within("echo fork f > b/ctl; cat b/wait", BOOT).ok();
    aq.wait_for_ready("f");
    assert_ne!(address(&aq, "lab", "f"), address(&aq, "lab", "b"));
    for vm in ["a", "b", "f"] {
        knows_lab(&aq, vm);
    }
    reaches(&aq, "f", &["a", "b"]);
    reaches(&aq, "b", &["f", "a"]);
    // Who leaves is gone from the others, and knows nobody; its address is free.
    let free = address(&aq, "lab", "b");
    aq.events_of("b/events", "last='net lab left'; echo none > b/config/nets");
    knows(&aq, "b", &[]);
    assert_eq!(aq.exec("b", "ip -4 addr show dev eth1 | grep -c inet; true"), "0");
    aq.sh("mkdir g; echo lab > g/config/nets").ok();
    assert_eq!(address(&aq, "lab", "g"), free);
    aq.sh("rmdir g; echo lab > b/config/nets").ok();
    // A machine that has none of them takes the memory that has one.
    aq.sh("echo kill > b/ctl; cat b/wait; echo none > b/config/nets").ok();
    aq.boot_existing("b");
    aq.sh("echo restore after > b/ctl; cat b/wait b/ready").ok();
    knows(&aq, "b", &[]);
    aq.events_of("b/events", "last='net lab 10'; echo lab > b/config/nets");
    reaches(&aq, "b", &["a"]);
}

#[track_caller]
fn knows_lab(aq: &Mounted, vm: &str) {
    let look = "grep -c '\\.lab$' /etc/hosts; true";
    eventually(&format!("{vm} knows three"), BOOT, || aq.exec(vm, look) == "3");
}

#[test]
fn what_is_not_accepted_is_told() {
    let aq = Mounted::new();
    aq.sh("mkdir .nets/lab vm1 vm2 vm3").ok();
    assert_errno(fs::create_dir(aq.path(".nets/lab")), EEXIST);
    assert_errno(fs::create_dir(aq.path(".nets/Lab")), EINVAL);
    assert_errno(fs::rename(aq.path(".nets/lab"), aq.path(".nets/x")), EINVAL);
    assert_errno(aq.write("vm1/config/nets", "nowhere\n"), ENOENT);
    assert_eq!(aq.read("vm1/error"), "no net named nowhere; `mkdir .nets/nowhere` makes it");
    assert_errno(aq.write("vm1/config/nets", "lab lab\n"), EEXIST);
    for subnet in ["8.8.8.0/24", "10.0.2.0/24", "10.9.0.0/31", "10.0.0.0/8", "10.9.0.1/24", "x"] {
        assert_errno(aq.write(".nets/lab/subnet", &format!("{subnet}\n")), EINVAL);
    }
    aq.write(".nets/lab/subnet", "172.20.0.0/30\n").expect("a subnet");
    aq.sh("mkdir .nets/db").ok();
    assert_errno(aq.write(".nets/db/subnet", "172.16.0.0/12\n"), EINVAL);
    for vm in ["vm1", "vm2"] {
        aq.write(&format!("{vm}/config/nets"), "lab\n").expect("a member");
    }
    assert_errno(aq.write("vm3/config/nets", "lab\n"), ENOSPC);
    assert_eq!(aq.read(".nets/lab/members"), "vm1 172.20.0.1\nvm2 172.20.0.2");
    assert_errno(aq.write(".nets/lab/subnet", "10.9.0.0/24\n"), EBUSY);
    assert_errno(fs::remove_dir(aq.path(".nets/lab")), EBUSY);
    // It is kept by the store.
    aq.kill_daemon();
    aq.mount();
    assert_eq!(aq.read(".nets/lab/hosts"), "172.20.0.1 vm1 vm1.lab\n172.20.0.2 vm2 vm2.lab");
    aq.sh("rmdir vm1; echo none > vm2/config/nets; rmdir .nets/lab .nets/db").ok();
    assert_errno(fs::remove_dir(aq.path(".nets/lab")), ENOENT);
}

//! `probes/`: what a read says of services in the guest that are there, and of those that are not.

use std::time::{Duration, Instant};

use crate::common::Mounted;

/// A read's line without its time.
fn probed(aq: &Mounted, name: &str) -> String {
    let line = aq.read(&format!("vm1/probes/{name}"));
    match line.strip_suffix("ms").and_then(|line| line.rsplit_once(' ')) {
        Some((said, time)) if time.bytes().all(|b| b.is_ascii_digit()) => said.to_owned(),
        _ => line,
    }
}

#[test]
fn each_answers_ok_or_why_not() {
    let aq = Mounted::with_image();
    aq.sh("mkdir vm1").ok();
    assert!(aq.sh("cat vm1/probes/tcp/22").failed().contains("Host is down"));
    assert_eq!(aq.sh("ls vm1/probes; ls vm1/probes/*").ok().lines().next(), Some("http"));
    aq.sh("echo start > vm1/ctl; until grep -q ^ok vm1/probes/tcp/22; do sleep 0.1; done").ok();
    let serve = "mkdir -p /www/api; echo hello | tee /www/x >/www/api/v1
        busybox httpd -p 80 -h /www
        busybox httpd -f -p 81 -h /www >/dev/null 2>&1 </dev/null & echo $! >/run/silent.pid
        mkdir -p /etc/init.d; printf '#!/bin/sh\\n[ -e /run/web ]\\n' >/etc/init.d/web
        chmod +x /etc/init.d/web";
    aq.exec("vm1", serve);
    aq.sh("until grep -q ^ok vm1/probes/tcp/81; do sleep 0.1; done").ok();
    // Its kernel still accepts, and nothing answers.
    aq.exec("vm1", "kill -STOP $(cat /run/silent.pid)");
    let table = [
        ("tcp/80", "ok"),
        ("tcp/82", "refused"),
        ("http/80/x", "ok 200"),
        ("http/80/api%2Fv1", "ok 200"),
        ("http/80/nothing", "HTTP 404"),
        ("http/82/x", "refused"),
        ("unit/web", "not running"),
    ];
    for (name, expected) in table {
        assert_eq!(probed(&aq, name), expected, "{name}");
    }
    aq.exec("vm1", ": >/run/web");
    assert_eq!(probed(&aq, "unit/web"), "ok running");
    let said = probed(&aq, "unit/nothing");
    assert!(said.starts_with("no service named nothing: the guest has no systemd"), "{said}");
    // What was read is listed, and can be read again by a pattern.
    let listed = aq.sh("cd vm1/probes; ls tcp http unit http/80 | xargs").ok();
    let wanted = "http: 80 82 http/80: api%2Fv1 nothing x tcp: 22 80 81 82 unit: nothing web";
    assert_eq!(listed, wanted);
    let again = "cat vm1/probes/tcp/8[02] | sed 's/ .*//' | xargs; cp -r vm1/probes $SCRATCH/copy";
    assert_eq!(aq.sh(again).ok(), "ok refused");
    // A service that takes the connection and says nothing.
    let begun = Instant::now();
    assert_eq!(probed(&aq, "http/81/x"), "no answer within 5s");
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    let begun = Instant::now();
    assert_eq!(aq.sh("timeout -s KILL 1 cat vm1/probes/http/81/x").code, 137);
    assert!(begun.elapsed() < Duration::from_millis(1500), "{:?}", begun.elapsed());
    assert_eq!(aq.read("vm1/error"), "ok");
    for name in ["tcp/0", "tcp/080", "tcp/x", "http/80/.git", "http/x", "unit/.x", "unit/a;b"] {
        assert!(aq.sh(&format!("cat 'vm1/probes/{name}'")).failed().contains("No such file"));
    }
    aq.sh("echo pause > vm1/ctl").ok();
    assert!(aq.sh("cat vm1/probes/tcp/80").failed().contains("No route to host"));
    assert!(aq.sh("rm -r vm1").failed().contains("busy"));
    aq.sh("echo kill > vm1/ctl; cat vm1/wait; rm -r vm1").ok();
}

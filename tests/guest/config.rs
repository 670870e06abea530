//! Settings as a guest and its host see them: what is stored, what changes while it runs.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use crate::common::{BOOT, Mounted, assert_errno, eventually, free_port};

/// Asks the web server behind a port of the host, as long as it does not answer.
fn fetch(port: u16) -> String {
    let mut said = String::new();
    eventually("an answer from the guest", BOOT, || {
        said.clear();
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else { return false };
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a bound");
        let asked = stream.write_all(b"GET /x HTTP/1.0\r\n\r\n");
        asked.and_then(|()| stream.read_to_string(&mut said)).is_ok() && said.contains("hello")
    });
    said
}

fn serve_in(aq: &Mounted, vm: &str, port: u16) {
    let command =
        format!("mkdir -p /www && echo hello > /www/x && busybox httpd -p {port} -h /www");
    aq.exec(vm, &command);
}

#[test]
fn a_fifo_as_a_setting_is_refused_at_once_and_delays_no_one() {
    let aq = Mounted::with_image();
    aq.sh("mkfifo $SCRATCH/fifo; mkdir vm1 vm2 vm3").ok();
    for key in ["kernel", "initrd", "firmware", "cdrom"] {
        for vm in ["vm1", "vm2", "vm3"] {
            aq.sh(&format!("echo $SCRATCH/fifo > {vm}/config/{key}")).ok();
            assert_errno(aq.write(&format!("{vm}/ctl"), "start"), libc::EINVAL);
            let said = aq.read(&format!("{vm}/error"));
            assert!(said.contains(&format!("config/{key}")), "{said}");
            assert!(said.contains("not a regular file"), "{said}");
            aq.sh(&format!("echo none > {vm}/config/{key}")).ok();
        }
    }
    let said = aq.sh("mkdir .images/x; echo $SCRATCH/fifo > .images/x/source").failed();
    assert!(said.contains("Invalid argument"), "{said}");
    aq.sh("rm $SCRATCH/fifo").ok();
}

#[test]
fn ports_lead_into_the_guest_and_come_and_go_while_it_runs() {
    let aq = Mounted::with_image();
    let (first, second) = (free_port(), free_port());
    aq.sh("mkdir vm1").ok();
    aq.write("vm1/config/ports", &format!("{first}:80")).expect("a forward");
    aq.boot_existing("vm1");
    serve_in(&aq, "vm1", 80);
    fetch(first);
    aq.write("vm1/ctl", &format!("port add {second}:80")).expect("another one, live");
    fetch(second);
    let bound = format!("tcp:127.0.0.1:{first}:80 tcp:127.0.0.1:{second}:80");
    assert_eq!(aq.info("vm1", "ports"), bound);
    aq.write("vm1/ctl", &format!("port del {first}:80")).expect("gone again");
    assert!(TcpStream::connect(("127.0.0.1", first)).is_err());
    let listed = format!("tcp:127.0.0.1:{second}:80");
    assert_eq!(aq.read("vm1/config/ports"), listed);
    assert_errno(aq.write("vm1/ctl", &format!("port add {second}:81")), libc::EEXIST);
    assert_errno(aq.write("vm1/ctl", &format!("port del {first}:80")), libc::ENOENT);

    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("its number").port();
    assert_errno(aq.write("vm1/config/ports", &format!("{port}:80")), libc::EADDRINUSE);
    let error = aq.read("vm1/error");
    assert!(error.contains(&format!("{port}:80 is taken")), "{error}");
    assert_eq!(aq.read("vm1/config/ports"), listed);
    fetch(second);

    aq.write("vm1/ctl", "port add 0:80").expect("a port that the kernel picks");
    let ports = aq.info("vm1", "ports");
    let picked = ports.rsplit(' ').next().and_then(|p| p.split(':').nth(2));
    fetch(picked.and_then(|p| p.parse().ok()).expect("its number"));
}

#[test]
fn forwards_are_known_to_a_later_daemon() {
    let aq = Mounted::with_image();
    let port = free_port();
    aq.boot("vm1");
    aq.write("vm1/ctl", &format!("port add {port}:80\nport add 0:22")).expect("forwards");
    let (ports, ssh) = (aq.info("vm1", "ports"), aq.info("vm1", "ssh_port"));
    aq.sh("echo 1G > vm1/config/memory").ok();
    aq.kill_daemon();
    aq.mount();
    assert_eq!((aq.info("vm1", "ports"), aq.info("vm1", "ssh_port")), (ports, ssh));
    assert_eq!(aq.info("vm1", "pending"), "memory");
    aq.write("vm1/ctl", "port del 0:22").expect("the port that was picked");
    assert_eq!(aq.info("vm1", "ports"), format!("tcp:127.0.0.1:{port}:80"));
    assert_eq!(aq.exec("vm1", "echo alive"), "alive");
}

#[test]
fn a_port_that_is_taken_fails_the_start_with_its_name() {
    let aq = Mounted::with_image();
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("its number").port();
    aq.sh("mkdir vm1").ok();
    aq.write("vm1/config/ports", &format!("{port}:80"))
        .expect("no guest has to agree while it is off");
    assert_errno(aq.write("vm1/ctl", "start"), libc::EADDRINUSE);
    let error = aq.read("vm1/error");
    assert!(error.starts_with(&format!("host port tcp:127.0.0.1:{port}:80 is taken")), "{error}");
    assert!(aq.qemus().is_empty());
    drop(taken);
    aq.boot_existing("vm1");
}

/// The guest's memory in KiB, as `free` has it.
fn total(aq: &Mounted) -> u64 {
    let said = aq.exec("vm1", "awk '/MemTotal/ {print $2}' /proc/meminfo");
    said.parse().unwrap_or_else(|_| panic!("a number: {said}"))
}

#[test]
fn processors_are_added_at_once_and_what_is_saved_then_has_them() {
    let aq = Mounted::with_image();
    aq.boot("vm1");
    let count = |vm: &str| aq.exec(vm, "nproc; cat /dev/shm/kept 2>/dev/null");
    // Under TCG, Linux 6.9 and later do not take processors that are added.
    let rejects = "dmesg | grep -q 'CPU topo: Allowing .* plus 0 hotplug CPUs' && echo yes || true";
    let takes = aq.exec("vm1", rejects) != "yes";
    let grown = |count: u32| format!("{}\nkept", if takes { count } else { 1 });
    let pending = || aq.sh("sed -n 's/^pending //p' vm1/info").ok();
    aq.exec("vm1", "echo kept > /dev/shm/kept");
    aq.sh("mkdir vm1/snapshots/one; cat vm1/wait; echo 3 > vm1/config/cpus").ok();
    assert_eq!((count("vm1"), pending()), (grown(3), String::new()));
    // A memory that was saved with fewer does not fit any more.
    let refused = aq.sh("echo 'restore one' > vm1/ctl; cat vm1/error").stdout;
    assert!(refused.contains("cpus is 3, the snapshot's is 1"), "{refused}");
    aq.sh("mkdir vm1/snapshots/three; cat vm1/wait; echo suspend > vm1/ctl; cat vm1/wait").ok();
    aq.boot_existing("vm1");
    assert_eq!(count("vm1"), grown(3), "suspended and started");
    aq.sh("echo 4 > vm1/config/cpus").ok();
    aq.kill_daemon();
    aq.mount();
    aq.wait_for_ready("vm1");
    assert_eq!(count("vm1"), grown(4), "found by another daemon");
    aq.sh("echo 'fork f' > vm1/ctl; cat f/ready").ok();
    assert_eq!(count("f"), grown(4), "a fork");
    aq.sh("echo 5 > f/config/cpus").ok();
    assert_eq!(count("f"), grown(5));
    aq.sh("mkdir .images/grown && echo f > .images/grown/source; cat .images/grown/wait").ok();
    aq.sh("mkdir c; echo grown > c/config/image; echo start > c/ctl; cat c/ready").ok();
    assert_eq!((count("c"), aq.info("c", "warm")), (grown(5), "yes".to_owned()));
    // Fewer, and more than there is room for, wait.
    for wanted in ["2", "9"] {
        aq.sh(&format!("echo {wanted} > vm1/config/cpus")).ok();
        assert_eq!((count("vm1"), pending()), (grown(4), "cpus".to_owned()));
    }
    aq.sh("echo 2 > vm1/config/cpus; echo stop > vm1/ctl; cat vm1/wait").ok();
    aq.boot_existing("vm1");
    assert_eq!(count("vm1"), "2");
    aq.sh("echo stop > vm1/ctl; cat vm1/wait; echo 3 > vm1/config/cpus").ok();
    aq.boot_existing("vm1");
    aq.sh("echo 'restore three' > vm1/ctl; cat vm1/ready").ok();
    assert_eq!(count("vm1"), grown(3), "started with as many as the snapshot's machine grew to");
}

#[test]
fn memory_shrinks_at_once_and_grows_back() {
    let aq = Mounted::booted();
    let whole = total(&aq);
    aq.sh("echo 160M > vm1/config/memory").ok();
    eventually("96 MiB less", BOOT, || total(&aq) < whole - (90 << 10));
    aq.sh("echo 1G > vm1/config/memory").ok();
    eventually("all of it again", BOOT, || total(&aq) == whole);
    assert_eq!(aq.info("vm1", "pending"), "memory");
}

#[test]
fn a_disk_grows_while_it_runs_and_the_file_system_at_the_next_boot() {
    let aq = Mounted::booted();
    let sectors = "cat /sys/class/block/vda/size";
    let blocks = "df -k / | awk 'END {print $2}'";
    let before: u64 = aq.exec("vm1", blocks).parse().expect("a number");
    assert_eq!(aq.exec("vm1", sectors), (2u64 << 21).to_string());
    aq.sh("echo 'resize 3G' > vm1/ctl").ok();
    assert_eq!(aq.read("vm1/config/disk"), "3G");
    assert_eq!(aq.exec("vm1", sectors), (3u64 << 21).to_string());
    assert_errno(aq.write("vm1/config/disk", "1G"), libc::EINVAL);
    assert!(aq.read("vm1/error").contains("smaller than the disk"), "{}", aq.read("vm1/error"));
    aq.sh("echo stop > vm1/ctl && cat vm1/wait && echo 4G > vm1/config/disk").ok();
    aq.boot_existing("vm1");
    assert_eq!(aq.exec("vm1", sectors), (4u64 << 21).to_string());
    let after: u64 = aq.exec("vm1", blocks).parse().expect("a number");
    assert!(after > before + (1 << 20), "{before} to {after} KiB");
}

#[test]
fn an_ephemeral_guest_is_not_suspended_and_a_suspended_one_does_not_start_so() {
    let aq = Mounted::with_image();
    aq.sh("mkdir vm1 && echo 1 > vm1/config/ephemeral").ok();
    aq.boot_existing("vm1");
    aq.exec("vm1", "echo kept > /tmp/x");
    assert_errno(aq.write("vm1/ctl", "suspend\n"), libc::EINVAL);
    assert_eq!(
        (aq.read("vm1/status"), aq.exec("vm1", "cat /tmp/x")),
        ("ready".into(), "kept".into())
    );
    aq.sh("echo kill > vm1/ctl; cat vm1/wait; echo 0 > vm1/config/ephemeral").ok();
    aq.boot_existing("vm1");
    aq.exec("vm1", "echo saved > /tmp/x");
    aq.sh("echo suspend > vm1/ctl; cat vm1/wait; echo 1 > vm1/config/ephemeral").ok();
    assert_errno(aq.write("vm1/ctl", "start\n"), libc::EINVAL);
    assert_eq!(
        (aq.read("vm1/status"), aq.info("vm1", "suspended")),
        ("stopped".into(), "yes".into())
    );
    aq.sh("echo 0 > vm1/config/ephemeral").ok();
    aq.boot_existing("vm1");
    assert_eq!(aq.exec("vm1", "cat /tmp/x"), "saved");
}

#[test]
fn an_ephemeral_guest_forgets() {
    let aq = Mounted::booted();
    aq.exec("vm1", "echo old > /root/note && sync");
    aq.sh("echo stop > vm1/ctl && cat vm1/wait && echo 1 > vm1/config/ephemeral").ok();
    aq.boot_existing("vm1");
    assert_eq!(aq.exec("vm1", "cat /root/note; echo new > /root/note; sync"), "old");
    let files = aq.sh("find $SCRATCH/store -name 'temporary*'").ok();
    assert_eq!(files, "", "it has a name only until QEMU has opened it");
    assert_errno(std::fs::create_dir(aq.path("vm1/snapshots/lost")), libc::EINVAL);
    aq.sh("echo stop > vm1/ctl && cat vm1/wait").ok();
    aq.boot_existing("vm1");
    assert_eq!(aq.exec("vm1", "cat /root/note"), "old");
}

#[test]
fn the_guest_sees_its_address_its_command_line_and_its_keys() {
    let aq = Mounted::with_image();
    let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJd6JkwZ me@host";
    let script = format!(
        "mkdir vm1 vm2 && cd vm1/config && echo 52:54:00:12:34:56 > mac &&
        echo 'one=1 two' > cmdline && echo '{key}' > ssh_key && echo q35-7.2 > machine &&
        echo 300M > memory && cp * ../../vm2/config/ && cd ../.. && echo vm3 > vm2/config/hostname"
    );
    aq.sh(&script).ok();
    let differ = aq.sh("diff -r vm1/config vm2/config").stdout;
    assert_eq!(differ.lines().filter(|l| l.starts_with("diff")).count(), 1, "{differ}");
    aq.boot_existing("vm2");
    let said = aq.exec(
        "vm2",
        "hostname; cat /sys/class/net/e*/address /proc/cmdline; grep -c me@host .ssh/authorized_keys",
    );
    let lines: Vec<_> = said.lines().collect();
    assert_eq!((lines[0], lines[1], lines[3]), ("vm3", "52:54:00:12:34:56", "1"), "{said}");
    assert!(lines[2].ends_with(" one=1 two"), "{said}");
    assert_eq!(aq.info("vm2", "machine"), "pc-q35-7.2");
    assert_eq!(aq.info("vm2", "mac"), "52:54:00:12:34:56");
}

#[test]
fn keys_are_pressed_on_the_guests_keyboard() {
    let aq = Mounted::booted();
    let boot = aq.exec("vm1", "cat /proc/sys/kernel/random/boot_id");
    assert_errno(aq.write("vm1/ctl", "key ctrl-nosuch"), libc::EINVAL);
    assert!(aq.read("vm1/error").starts_with("no key named nosuch"), "{}", aq.read("vm1/error"));
    aq.sh("echo 'key a b ctrl-alt-del' > vm1/ctl").ok();
    eventually("the guest restarted", BOOT, || {
        let said = aq.sh("cat vm1/ready && echo 'cat /proc/sys/kernel/random/boot_id' > vm1/exec \
            && timeout 10 cat vm1/exec");
        said.code == 0 && !said.stdout.contains(&boot)
    });
    aq.sh("echo kill > vm1/ctl && cat vm1/wait").ok();
    assert_errno(aq.write("vm1/ctl", "key a"), libc::EHOSTDOWN);
}

#[test]
fn a_disc_is_changed_while_the_guest_runs() {
    let aq = Mounted::with_image();
    let (first, second) = (aq.scratch().join("1.iso"), aq.scratch().join("2, \"b\".iso"));
    for (path, size) in [(&first, 1), (&second, 3)] {
        let file = std::fs::File::create(path).expect("a disc");
        file.set_len(size << 20).expect("its size");
    }
    aq.sh("mkdir vm1").ok();
    aq.write("vm1/config/cdrom", "/nowhere.iso").expect("looked for at the start");
    assert_errno(aq.write("vm1/ctl", "start"), libc::ENOENT);
    assert!(aq.read("vm1/error").contains("/nowhere.iso"), "{}", aq.read("vm1/error"));
    aq.write("vm1/config/cdrom", &first.display().to_string()).expect("a path");
    aq.boot_existing("vm1");
    assert_errno(aq.write("vm1/config/cdrom", "/nowhere.iso"), libc::ENOENT);
    assert_eq!(aq.read("vm1/config/cdrom"), first.display().to_string());
    for disc in [second.display().to_string(), "none".to_owned(), first.display().to_string()] {
        aq.write("vm1/config/cdrom", &disc).expect("another disc");
        assert_eq!(aq.read("vm1/config/cdrom"), disc);
    }
    assert!(!aq.read("vm1/info").contains("pending"), "{}", aq.read("vm1/info"));
    assert_eq!(aq.exec("vm1", "echo alive"), "alive");
}

#[test]
fn what_wants_it_is_started_with_the_mount() {
    let aq = Mounted::with_image();
    aq.sh("mkdir a b c && echo 1 | tee a/config/autostart b/config/autostart").ok();
    aq.write("a/config/kernel", "/nowhere/vmlinuz").expect("looked for at the start");
    aq.sh_within("cd / && $AQ umount $SCRATCH/mnt", Duration::from_secs(30)).ok();
    aq.mount();
    eventually("b starts", BOOT, || aq.read("b/status") != "stopped");
    aq.wait_for_ready("b");
    assert!(aq.read("a/error").contains("/nowhere/vmlinuz"), "{}", aq.read("a/error"));
    assert_eq!(aq.read("c/status"), "stopped");
}

#[test]
fn new_vms_start_from_the_defaults() {
    let aq = Mounted::with_image();
    aq.sh("cd .defaults && echo 2 > cpus && echo 8080:80 > ports && echo quiet > cmdline").ok();
    aq.sh("mkdir vm1 && cat vm1/config/cpus vm1/config/ports vm1/config/cmdline > $SCRATCH/x").ok();
    assert_eq!(aq.sh("cat $SCRATCH/x").ok(), "2\ntcp:127.0.0.1:8080:80\nquiet");
    assert_eq!(aq.sh("echo 4 > vm1/config/cpus; cd vm1/config; cat cpus").ok(), "4");
    assert_eq!(aq.sh("cd vm1/config; echo default > cpus; cat cpus").ok(), "2");
    assert_eq!(aq.sh("cd vm1/config; echo none > ports; cat ports").ok(), "");
    assert_errno(aq.write(".defaults/cpus", "0"), libc::ERANGE);
    aq.sh_within("cd / && $AQ umount $SCRATCH/mnt", Duration::from_secs(30)).ok();
    let mut mount = aq.aq();
    mount.arg("mount").arg(aq.dir()).arg("--store").arg(aq.store().root());
    crate::common::shell::finish(mount.args(["--image", "other"]), Duration::from_secs(30)).ok();
    assert_eq!(aq.sh("cat .defaults/cpus .defaults/image").ok(), "2\nother");
    assert_eq!(aq.sh("mkdir vm2; cat vm2/config/image").ok(), "other");
    assert_eq!(
        aq.sh("echo default > .defaults/cpus; cat .defaults/cpus vm1/config/cpus").ok(),
        "1\n2"
    );
}

/// Returns a number of `.host`.
fn host(aq: &Mounted, key: &str) -> u64 {
    let table = aq.read(".host");
    let row = table.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(' '));
    row.and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("no {key} in {table}"))
}

#[test]
fn a_guest_that_the_host_cannot_hold_is_refused_at_once() {
    let aq = Mounted::with_image();
    aq.boot("small");
    let promised = host(&aq, "memory_promised");
    assert!(promised > 64 << 20, "{promised}");
    aq.sh("mkdir vm1 && echo 4T > vm1/config/memory").ok();
    assert_errno(aq.write("vm1/ctl", "start"), libc::ENOMEM);
    assert_eq!(aq.read("vm1/status"), "stopped");
    let reported = aq.read("vm1/error");
    assert!(
        reported.contains("4194304 for the guest") && reported.contains("stop small, "),
        "{reported}"
    );
    // `overcommit` skips the check: QEMU's own error is reported.
    aq.write("vm1/config/overcommit", "1").expect("a setting");
    assert_errno(aq.write("vm1/ctl", "start"), libc::ENOMEM);
    assert!(
        aq.read("vm1/error").contains("cannot set up guest memory"),
        "{}",
        aq.read("vm1/error")
    );
    // The next daemon promises the same to what it finds running.
    aq.kill_daemon();
    aq.mount();
    let again = host(&aq, "memory_promised");
    assert!(again.abs_diff(promised) < 64 << 20, "{promised}, then {again}");
    aq.sh("echo kill > small/ctl; cat small/wait").ok();
    assert_eq!(host(&aq, "memory_promised"), 0);
}

/// A listener of the host's loopback that says hello to each who connects.
fn greet() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let port = listener.local_addr().expect("its address").port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let _gone = stream.and_then(|mut stream| stream.write_all(b"hello\n"));
        }
    });
    port
}

#[test]
fn an_offline_guest_reaches_nothing_and_is_reached() {
    let (aq, port, forwarded) = (Mounted::with_image(), greet(), free_port());
    aq.boot("vm1");
    let ask = format!("busybox nc -w 3 10.0.2.2 {port} < /dev/null 2> /dev/null; echo $?");
    assert_eq!(aq.exec("vm1", &ask), "hello\n0");
    aq.exec("vm1", "echo kept > /run/kept");
    aq.sh("echo offline > vm1/config/net; grep '^pending' vm1/info | grep net").ok();
    aq.write("vm1/config/ports", &format!("{forwarded}:80")).expect("a forward");
    aq.sh("echo suspend > vm1/ctl; cat vm1/wait; echo start > vm1/ctl; cat vm1/ready").ok();
    assert_eq!(aq.exec("vm1", "cat /run/kept"), "kept");
    assert_eq!(aq.exec("vm1", &ask), "1");
    let name = "busybox nslookup localhost 10.0.2.3 > /dev/null 2>&1; echo $?";
    assert_eq!(aq.exec("vm1", name), "1", "no DNS");
    serve_in(&aq, "vm1", 80);
    fetch(forwarded);
    assert_eq!(aq.sh("cat vm1/fs/run/kept").ok(), "kept");
    aq.sh("echo user > vm1/config/net; echo suspend > vm1/ctl; cat vm1/wait; echo start > vm1/ctl; cat vm1/ready").ok();
    assert_eq!(aq.exec("vm1", &ask), "hello\n0");
}

/// A web server of the host's loopback with one page.
fn page() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let port = listener.local_addr().expect("its address").port();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _asked = stream.read(&mut [0; 4096]);
            let answer = "HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello";
            let _gone = stream.write_all(answer.as_bytes());
        }
    });
    port
}

#[test]
fn a_guest_reaches_what_is_allowed_by_the_proxy_and_nothing_else() {
    let (aq, port, other) = (Mounted::with_image(), page(), page());
    aq.sh(&format!(
        "mkdir vm1; echo allow > vm1/config/net; echo 10.0.2.2:{port} > vm1/config/allow"
    ))
    .ok();
    aq.boot_existing("vm1");
    let get =
        |port: u16| format!("busybox wget -q -O - http://10.0.2.2:{port}/ 2>&1; echo \" $?\"");
    assert_eq!(aq.exec("vm1", &get(port)), "hello 0");
    let seen =
        aq.events_of("vm1/events", &format!("echo '{}' > vm1/exec; cat vm1/exec", get(other)));
    assert!(seen.contains(&format!("refused 10.0.2.2:{other}")), "{seen}");
    let direct = format!("busybox nc -w 3 10.0.2.2 {port} < /dev/null 2> /dev/null; echo $?");
    assert_eq!(aq.exec("vm1", &direct), "1", "not by the proxy");
    // A change counts at once; a job has the variables too.
    aq.sh(&format!("echo 10.0.2.2:{other} >> vm1/config/allow")).ok();
    assert_eq!(aq.cli(&format!("aq exec vm1 '{}'", get(other))).ok(), "hello 0");
    aq.sh("echo none > vm1/config/allow").ok();
    assert!(aq.exec("vm1", &get(port)).contains("403"));
    aq.sh(&format!("echo 10.0.2.2:{port} > vm1/config/allow; mkdir vm1/snapshots/a; cat vm1/wait"))
        .ok();
    // The same proxy for what comes back: from the past, from sleep, to another daemon.
    aq.sh("echo 'restore a' > vm1/ctl; cat vm1/ready").ok();
    assert_eq!(aq.exec("vm1", &get(port)), "hello 0", "restored");
    aq.sh("echo suspend > vm1/ctl; cat vm1/wait; echo start > vm1/ctl; cat vm1/ready").ok();
    assert_eq!(aq.exec("vm1", &get(port)), "hello 0", "resumed");
    aq.kill_daemon();
    aq.mount();
    aq.sh("cat vm1/ready").ok();
    assert_eq!(aq.exec("vm1", &get(port)), "hello 0", "adopted");
    assert_eq!(aq.sh("cat vm1/error").ok(), "ok");
}

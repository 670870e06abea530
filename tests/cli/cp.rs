//! `aq cp`: into guests, out of them, between them, and what a guest may try with it.

use std::time::Duration;

use crate::common::Mounted;

/// A directory with what there is to copy, and its list with kinds, modes, sizes, times and links.
const MAKE: &str = r#"
    mkdir -p 'a dir/sub/deep' && cd 'a dir' && echo one > one && printf x > 'a name' && : > empty
    chmod 600 one; chmod 755 'a name'; ln -s one link; ln -s /etc/passwd absolute; ln -s ../none sub/dangling
    head -c 3000000 /dev/urandom > sub/big; mkdir hollow; chmod 750 sub/deep; touch -d 2020-01-02 one sub/deep sub
    truncate -s 5M holes; printf end >> holes; for i in $(seq 30); do echo $i > sub/deep/$i; done; cd .."#;
const LIST: &str =
    r"find . -mindepth 1 -printf '%P %y %m %s %l\n' | sed 's/ d \([0-7]*\) [0-9]*/ d \1/' | sort";

#[test]
fn a_directory_comes_back_as_it_went() {
    let aq = Mounted::booted();
    let script = format!(
        r#"{MAKE}
        list() {{ (cd "$1" && {LIST} && cat one sub/big holes sub/deep/* | sha256sum && stat -c %Y one sub/deep sub); }}
        aq cp 'a dir' vm1: && aq cp -a vm1:'a dir' back && aq cp -r 'vm1:a dir/.' other && list 'a dir' > 1
        list back | diff 1 - && list other | diff 1 - && aq cp vm1:'a dir' back && list 'back/a dir' | diff 1 -
        aq cp vm1:'a dir/' 'vm1:/tmp/its copy' && aq cp 'vm1:/tmp/its copy' here && list here | diff 1 -
        [ $(stat -c %b here/holes) -lt 100 ] && echo sparse; ls -A | tr '\n' ' '"#
    );
    let said = aq.cli_within(&script, Duration::from_secs(120)).ok();
    assert!(said.starts_with("sparse\n1 a dir back here"), "{said}");
    let list = "cd '/root/a dir'; for l in absolute link sub/dangling; do readlink $l; done; find . -name '.aq*'; cat one";
    assert_eq!(aq.exec("vm1", list), "/etc/passwd\none\n../none\none");
}

#[test]
fn names_go_where_users_of_cp_and_scp_expect_them() {
    let aq = Mounted::booted();
    let table = [
        // One file: to a name, into a directory, over a file, to the home.
        ("aq cp f vm1:/tmp/g", "ls /tmp/g"),
        ("aq cp f vm1:/tmp", "ls /tmp/f"),
        ("aq cp f vm1:/tmp/ && aq cp f vm1:/tmp/f", "cat /tmp/f"),
        ("aq cp f vm1:", "ls /root/f"),
        ("aq cp f vm1:~/h && aq cp f vm1:i", "ls /root/h /root/i"),
        // Several: into a directory.
        ("aq cp f d vm1:/srv", "ls /srv/f /srv/d/x"),
        ("aq cp ./d/. vm1:/srv/new && aq cp d vm1:/srv/new", "ls /srv/new/x /srv/new/d/x"),
        // A source that is a link is followed, one in a directory is not.
        ("aq cp l vm1:/tmp/l", "[ -f /tmp/l ] && ! [ -h /tmp/l ]"),
        (
            "mkdir d/e; cd d/e; aq cp .. vm1:/tmp/up && cd .. && rmdir e && aq cp . vm1:/tmp/dot",
            "ls /tmp/dot/x /tmp/up/x",
        ),
    ];
    aq.cli("echo f > f; mkdir d; echo x > d/x; ln -s f l").ok();
    for (line, look) in table {
        aq.exec("vm1", "rm -rf /tmp/* /srv /root/[fhi]; mkdir /srv");
        let said = aq.cli(&format!("{line} && aq exec vm1 '{look}'"));
        assert_eq!((said.code, &*said.stderr), (0, ""), "{line}: {said:?}");
    }
    let refused = [
        ("aq cp f d", 1, "no VM is named"),
        ("aq cp f vm1:/nosuch/x", 1, "aq: vm1:/nosuch/x: No such file or directory"),
        ("aq cp f vm1:/nosuch/", 1, "aq: vm1:/nosuch/: No such file or directory"),
        ("aq cp f d vm1:/etc/passwd", 1, "Not a directory"),
        ("aq cp d vm1:/etc/passwd", 1, "Not a directory"),
        ("aq cp f vm1:/proc/x", 1, "aq: vm1:/proc/x"),
        ("aq cp nosuch f vm1:/tmp; aq exec vm1 cat /tmp/f", 0, "aq: nosuch: No such file"),
        ("aq cp vm1:/nosuch vm1:/etc/hostname .; cat hostname", 0, "aq: vm1:/nosuch: No such file"),
        ("aq cp f vm2:", 1, "VM 'vm2' does not exist"),
        ("aq cp f", 2, "Usage"),
        ("aq cp vm1:/dev/null .", 1, "aq: vm1:/dev/null: "),
        ("aq cp vm1:/srv vm1:/srv/d", 1, "not copied into itself"),
        ("mkfifo d/fifo; aq cp d vm1:/tmp/q || aq exec vm1 ls /tmp/q/x", 0, "d/fifo: left out"),
    ];
    for (line, code, words) in refused {
        let said = aq.cli(line);
        assert!(said.code == code && said.stderr.contains(words), "{line}: {said:?}");
    }
}

#[test]
fn a_guest_does_not_lead_a_copy_out_of_its_destination() {
    let aq = Mounted::booted();
    // First the link, then a directory of that name, and something in it.
    let script = r#"
        mkdir out in victim; echo mine > victim/x; at() { aq exec vm1 "$1"; }
        at 'mkdir -p /root/d; ln -s ../victim /root/d/sub; ln -s ../victim/x /root/d/file'
        aq cp vm1:d/. in && readlink in/sub in/file
        at 'cd /root/d; rm sub file; mkdir sub; echo theirs | tee sub/x > file'
        aq cp vm1:d/. in 2>&1; cat victim/x in/file; ls victim
        at 'chmod 7777 /root/d/file; ln -s /etc/shadow /root/d/abs'
        rm in/sub; aq cp vm1:d/. in && stat -c %a in/file; readlink in/abs
        printf 'x\n' > 'in/two'; at "printf 1 > '/root/d/$(printf 'e\033[31mvil')'; mkfifo '/root/$(printf 'p\033[31m')'"
        aq cp vm1:d in && ls in/d | grep -c vil; aq cp vm1:/root/. in 2>&1 | grep -c "$(printf '\033')""#;
    let said = aq.cli(script).stdout;
    let wanted = "../victim\n../victim/x\naq: in/sub: it is a symbolic link, which is not followed here\nmine\ntheirs\nx\n777\n/etc/shadow\n1\n0\n";
    assert_eq!(said, wanted);
}

#[test]
fn an_interrupted_copy_leaves_nothing_half_done() {
    let aq = Mounted::booted();
    let script = r#"head -c 40M /dev/zero | tr '\0' y > big
        begun() { for i in $(seq 200); do "$@" 2>/dev/null | grep -q aq- && return; done; }
        for i in 1 2 3; do aq cp big vm1: & begun aq exec vm1 'ls -A'; kill -INT $!; wait $!; echo $?; done
        aq exec vm1 'ls -A /root | grep -e aq- -e big; head -c 40000000 /dev/zero > zeros'
        aq cp vm1:zeros back & begun ls -A; kill -TERM $!; wait $!; echo $?; ls -A | grep -e aq- -e back"#;
    let said = aq.cli_within(script, Duration::from_secs(300));
    assert_eq!(said.stdout, "130\n130\n130\n143\n", "{said:?}");
    // Of a guest that does not answer as well.
    aq.deafen("vm1");
    let said = aq.cli("time timeout -s INT 1 aq cp vm1:/etc/hostname . ; echo $?");
    assert!(said.stdout == "124\n" && said.stderr.contains("real\t0m1."), "{said:?}");
}

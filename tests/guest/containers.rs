//! Container images and root file systems' archives as VMs, and `aq run`.

use std::fs;
use std::time::Instant;

use crate::common::registry::{Registry, gzip, layer, layer_of};
use crate::common::terminal::Terminal;
use crate::common::{BOOT, Mounted, eventually};
use serde_json::json;

/// A program that needs nothing: it says what it sees, and exits with the number of its arguments.
const SHELL_LESS: &str = r#"
mkdir -p ../build; cat >../build/hello.c <<'END'
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include <sys/utsname.h>
int main(int argc, char **argv) {
    struct utsname name;
    char dir[100];
    uname(&name);
    printf("%s uid %d gid %d in %s K=%s", name.sysname, getuid(), getgid(), getcwd(dir, 100), getenv("K"));
    for (int i = 1; i < argc; i++) printf(" %s", argv[i]);
    puts("");
    return argc - 1;
}
END
cc -static -o hello ../build/hello.c"#;

/// The host's shell and tools with their libraries.
const GLIBC: &str = r#"
mkdir -p bin etc root tmp; cp -L /bin/sh /bin/uname /usr/bin/sha256sum /usr/bin/id /usr/bin/tty /bin/cat /bin/ls /bin/sleep bin/
for file in $(ldd bin/* | grep -o '/[^ ]*\.so[^ ]*' | sort -u); do
    mkdir -p ".${file%/*}"; cp -L "$file" ".$file"
done
echo 'root:x:0:0:root:/root:/bin/sh' >etc/passwd; echo 'app:x:1000:1000::/srv:/bin/sh' >>etc/passwd
echo 'wheel:x:10:app' >etc/group; echo old >etc/old; echo 3.22.9 >etc/alpine-release"#;

fn run(aq: &Mounted, words: &str) -> String {
    aq.cli(&format!("aq run --rm {words}")).ok()
}

#[test]
fn containers_run_what_their_image_says_whatever_is_in_them() {
    let (aq, registry) = (Mounted::with_image(), Registry::start());
    let upper = layer(&[
        ("etc/.wh.old", 0o644, b""),
        ("entry", 0o755, b"#!/bin/sh\nid -un; pwd; echo $A; exit 7\n"),
    ]);
    let process = json!({"Entrypoint": ["/entry"], "Env": ["A=it's", "PATH=/bin"],
        "WorkingDir": "/new/dir", "User": "app"});
    let lower = layer_of(&aq.scratch().join("glibc"), GLIBC);
    let manifest = registry.image("glibc", &process, vec![lower, gzip(&upper)]);
    registry.list("glibc", &manifest, &["riscv64", "amd64", "arm64"]);
    let bare = layer_of(&aq.scratch().join("bare"), SHELL_LESS);
    let process = json!({"Entrypoint": ["/hello", "a b"], "User": "33:44", "WorkingDir": "/w"});
    registry.image("bare", &process, vec![bare]);
    let (glibc, bare) = (registry.source("glibc"), registry.source("bare"));
    let first = Instant::now();
    let said = aq.cli(&format!("aq run --rm {glibc}"));
    assert_eq!((said.stdout.as_str(), said.code), ("app\n/new/dir\nit's\n", 7), "{said:?}");
    let first = first.elapsed();
    // One without a shell, without users, with ours.
    let said = aq.cli(&format!("aq run --rm -e K=v {bare}"));
    let wanted = "Linux uid 33 gid 44 in /w K=v a b\n";
    assert_eq!((said.stdout.as_str(), said.code), (wanted, 1), "{said:?}");
    assert_eq!(
        run(&aq, &format!("-u 0 --entrypoint /hello {bare}")),
        "Linux uid 0 gid 0 in /w K=(null)"
    );
    // The daemon has warmed it meanwhile.
    assert_eq!(aq.sh("cat .images/glibc/wait").ok(), "ready");
    assert!(aq.read(".images/glibc/warm").starts_with("yes: "));
    let second = Instant::now();
    assert_eq!(run(&aq, &format!("--entrypoint uname {glibc} -s")), "Linux");
    assert!(second.elapsed() < first / 2, "{:?} after {first:?}", second.elapsed());
    let pipe = format!(
        "head -c 3000000 /dev/urandom >big; aq run --rm -i -u root --entrypoint sha256sum {glibc} <big
         sha256sum <big"
    );
    let sums = aq.cli(&pipe).ok();
    let sums: Vec<_> = sums.lines().collect();
    assert!(sums.len() == 2 && sums[0] == sums[1], "{sums:?}");
    let said = aq.cli(&format!("aq run --rm --entrypoint nosuch {glibc}"));
    assert_eq!(said.code, 127, "{said:?}");
    assert!(
        aq.cli(&format!("aq run --rm --entrypoint sh {glibc} -c '[ ! -e /etc/old ]'")).code == 0
    );
    assert_eq!(aq.sh("ls; ls .trash").ok(), "", "nothing is left");
    // The second image of the same layers fetches none.
    let fetched = registry.blobs_fetched();
    aq.sh(&format!(
        "mkdir .images/again && echo {glibc} > .images/again/source; cat .images/again/status"
    ))
    .ok();
    aq.sh("echo pull > .images/again/ctl; cat .images/again/wait").ok();
    assert_eq!(
        (aq.read(".images/again/status"), registry.blobs_fetched()),
        ("ready".into(), fetched)
    );
}

#[test]
fn a_command_has_this_terminal_and_this_terminals_signals() {
    let aq = Mounted::with_image();
    let tar = layer_of(&aq.scratch().join("glibc"), GLIBC);
    fs::write(aq.scratch().join("root.tar"), tar).expect("the archive");
    assert_eq!(run(&aq, "./root.tar cat /etc/alpine-release"), "3.22.9");
    assert_eq!(aq.sh("cat .images/root/{wait,kind}").ok(), "ready\nrootfs");
    let terminal = Terminal::open(aq.scratch().join("tmux"), aq.scratch());
    terminal.enter(&format!(
        "export AQ_MOUNT={} PATH={}:$PATH",
        aq.dir().display(),
        crate::common::mounted::AQ.rsplit_once('/').expect("a path").0
    ));
    terminal
        .enter("aq run --rm -it root sh -c 'tty; read -r x; echo got $x; exit 5'; echo status $?");
    terminal.until_shown("/dev/pts/0");
    terminal.enter("word");
    terminal.until_shown("got word");
    terminal.until_shown("status 5");
    terminal.enter("aq run --rm --name t root sh -c 'echo be\"\"gun; sleep 1000'; echo status $?");
    terminal.until_shown("begun");
    terminal.press("C-c");
    terminal.until_shown("status 130");
    // A program that handles the signal has its own exit status.
    terminal.enter(
        "aq run --rm root sh -c 'trap \"exit 4\" INT; echo up\"\"on; while :; do sleep 1; done'; echo status $?",
    );
    terminal.until_shown("upon");
    terminal.press("C-c");
    terminal.until_shown("status 4");
    eventually("nothing is left", BOOT, || aq.sh("ls; ls .trash").ok().is_empty());
}

#[test]
fn a_container_is_a_vm_like_any_other() {
    let aq = Mounted::with_image();
    let tar = layer_of(&aq.scratch().join("glibc"), GLIBC);
    fs::write(aq.scratch().join("root.tar"), tar).expect("the archive");
    aq.sh("mkdir .images/c; echo $SCRATCH/root.tar > .images/c/source; cat .images/c/wait").ok();
    aq.sh(
        "mkdir vm1; echo c > vm1/config/image; echo '{\"Env\":[\"A=1\"]}' > vm1/config/container",
    )
    .ok();
    aq.boot_existing("vm1");
    assert_eq!(aq.exec("vm1", "echo $A $HOME; cat /etc/hostname; pwd"), "1 /root\nvm1\n/root");
    aq.sh("mkdir vm1/snapshots/clean; cat vm1/wait").ok();
    aq.exec("vm1", "echo x > /new");
    aq.sh("echo 'restore clean' > vm1/ctl; cat vm1/wait").ok();
    aq.wait_for_ready("vm1");
    assert_eq!(aq.exec("vm1", "ls /new 2>/dev/null; echo kept > /root/file"), "");
    aq.sh("echo suspend > vm1/ctl; cat vm1/wait").ok();
    aq.boot_existing("vm1");
    // An image of it while it runs: with its memory, its files and its variables.
    aq.sh("mkdir .images/of; echo vm1 > .images/of/source; cat .images/of/wait").ok();
    for name in ["two", "three"] {
        aq.sh(&format!("mkdir {name}; echo of > {name}/config/image")).ok();
        aq.boot_existing(name);
        assert_eq!(aq.info(name, "warm"), "yes");
        let said = aq.exec(name, "cat /etc/hostname /root/file; echo $A; cat /etc/hosts");
        assert_eq!(
            said,
            format!("{name}\nkept\n1\n127.0.0.1 localhost\n::1 localhost\n127.0.1.1 {name}")
        );
    }
    let random = "cat /proc/sys/kernel/random/uuid";
    assert_ne!(aq.exec("two", random), aq.exec("three", random));
    let copy = "cd $SCRATCH && echo over > f && aq scp f two:/root/f && aq exec two cat /root/f";
    assert_eq!(aq.cli(copy).ok(), "over");
    aq.stop("two");
    aq.boot_existing("two");
    assert_eq!(aq.exec("two", "cat /root/f"), "over", "from its own disk");
}

#[test]
fn a_container_is_made_again_beside_the_one_that_its_vms_have() {
    let aq = Mounted::with_image();
    let release = |version: &[u8]| {
        let files: &[(&str, u32, &[u8])] = &[("root/", 0o700, b""), ("version", 0o644, version)];
        fs::write(aq.scratch().join("root.tar"), layer(files)).expect("the archive");
    };
    let version = |vm: &str| aq.exec(vm, "/dev/aqfs/bin/cat /version");
    release(b"1");
    aq.sh("mkdir .images/c; echo $SCRATCH/root.tar > .images/c/source; cat .images/c/wait").ok();
    aq.sh("mkdir old; echo c > old/config/image").ok();
    aq.boot_existing("old");
    let refresh = "echo refresh > .images/c/ctl; cat .images/c/wait .images/c/progress";
    assert_eq!(aq.sh(refresh).ok(), "ready\nnothing has changed since it was made");
    release(b"2");
    assert_eq!(aq.sh(refresh).ok(), "ready");
    aq.sh("mkdir new; echo c > new/config/image").ok();
    aq.boot_existing("new");
    aq.stop("old");
    aq.boot_existing("old");
    assert_eq!((version("old"), version("new")), ("1".into(), "2".into()));
    // What cannot be made leaves what there is.
    fs::write(aq.scratch().join("root.tar"), b"no archive").expect("a file");
    let said = aq.sh(refresh).ok();
    assert!(said.starts_with("ready\nrefresh failed: "), "{said}");
}

#[test]
fn a_detached_vm_is_removed_when_its_command_ends() {
    let aq = Mounted::with_image();
    let wait = "until [ -e /go ]; do sleep 0.1; done";
    let name = aq.cli(&format!("aq run -d --rm tiny sh -c '{wait}'")).ok();
    assert_eq!(aq.sh("ls; ls .trash; cat .images/tiny/wait").ok(), format!("{name}\nready"));
    assert_eq!(aq.read(&format!("{name}/config/autoremove")), "1");
    aq.exec(&name, ": > /go");
    eventually("it is gone for good", BOOT, || aq.sh("ls; ls .trash").ok().is_empty());
    // One that is suspended or has failed stays; one that ends without a daemon goes at the next mount.
    aq.sh("mkdir vm1; echo 1 > vm1/config/autoremove").ok();
    aq.boot_existing("vm1");
    aq.sh("echo suspend > vm1/ctl; cat vm1/wait").ok();
    aq.boot_existing("vm1");
    aq.sh("kill -KILL $(sed -n 's/^pid //p' vm1/info)").ok();
    aq.wait_for_status("vm1", "failed");
    aq.boot_existing("vm1");
    aq.exec("vm1", "(sleep 3; poweroff) > /dev/null 2>&1 &");
    aq.kill_daemon();
    eventually("the guest is off", BOOT, || aq.qemus().is_empty());
    aq.mount();
    eventually("it is gone for good", BOOT, || aq.sh("ls; ls .trash").ok().is_empty());
}

#[test]
fn images_that_are_not_what_they_should_be_are_refused_in_one_sentence() {
    let (aq, registry) = (Mounted::with_image(), Registry::start());
    let fine = || layer(&[("a", 0o644, &[7; 5000])]);
    let other = layer(&[("a", 0o644, &[8; 5000])]);
    let manifest = registry.image("list", &json!({}), vec![fine()]);
    registry.list("list", &manifest, &["s390x", "riscv64"]);
    registry.image("private/x", &json!({}), vec![fine()]);
    registry.image("up", &json!({}), vec![fine(), layer(&[("../../up", 0o644, b"x")])]);
    let manifest = registry.image("flipped", &json!({}), vec![other]);
    registry.damage(manifest["layers"][0]["digest"].as_str().expect("a digest"));
    registry.image("cut", &json!({}), vec![gzip(&fine())[..40].to_vec()]);
    fs::write(aq.scratch().join("cut.tar"), &fine()[..1000]).expect("a file");
    fs::write(aq.scratch().join("empty.tar"), [0; 1024]).expect("a file");
    fs::write(aq.scratch().join("text.tar.gz"), b"not a tar file").expect("a file");
    let here = |name: &str| format!("oci-archive:{}/{name}", aq.scratch().display());
    let table = [
        (registry.source("private/x"), "docker login"),
        (registry.source("absent"), "has no image"),
        (registry.source("list"), "only for linux/s390x, linux/riscv64"),
        (registry.source("up"), "which leads out of the image"),
        (registry.source("flipped"), "not what was asked for"),
        (registry.source("cut"), "cut off or damaged"),
        (here("cut.tar"), "no whole tar file"),
        (format!("{}/cut.tar", aq.scratch().display()), "cut off or damaged"),
        (format!("{}/text.tar.gz", aq.scratch().display()), "cut off or damaged"),
        (format!("{}/empty.tar", aq.scratch().display()), "no files"),
        ("oci:127.0.0.1:1/x".to_owned(), "cannot be reached"),
    ];
    for (source, sentence) in table {
        aq.sh(&format!("mkdir .images/x && echo {source} > .images/x/source")).ok();
        let status = aq.sh("echo pull > .images/x/ctl; cat .images/x/wait; rmdir .images/x").ok();
        assert!(status.starts_with("failed: ") && status.contains(sentence), "{source}: {status}");
        assert_eq!(status.lines().count(), 1, "{status}");
    }
    assert!(!aq.scratch().join("up").exists() && !aq.store().root().join("up").exists());
    let said = aq.cli(&format!("aq run --rm {}", registry.source("absent"))).failed();
    assert!(said.contains("has no image"), "{said}");
    assert_eq!(aq.sh("ls; ls .images .trash").ok(), ".images:\ntiny\n\n.trash:", "nothing is left");
    // With the login that docker keeps.
    let keep = "mkdir -p $HOME/.docker; auth=$(printf user:secret | base64)
        echo '{\"auths\":{\"127.0.0.1:PORT\":{\"auth\":\"'$auth'\"}}}' > $HOME/.docker/config.json";
    aq.cli(&keep.replace("PORT", &registry.port.to_string())).ok();
    aq.sh(&format!("mkdir .images/x && echo {} > .images/x/source", registry.source("private/x")))
        .ok();
    assert_eq!(aq.sh("echo pull > .images/x/ctl; cat .images/x/wait").ok(), "ready");
}

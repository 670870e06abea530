//! `aq snapshot`, `aq fanout`, `aq prune`, and the aliases of `.images`.

use crate::common::{Mounted, assert_errno};

#[test]
fn aliases_are_links_that_users_make() {
    let aq = Mounted::new();
    let script = "cd .images; mkdir web; ln -s web stable; readlink stable; ls; cat stable/status
        ln -sT web tiny; ln -s nosuch x; ln -s web .hidden; mkdir stable; rmdir stable; mv stable other; mv other stable; mv web x; readlink stable
        ln -sfn tiny stable; readlink stable; rm stable; ls; ln -s web again; rmdir web; ls";
    let said = aq.sh(script);
    let wanted = "web\nstable\ntiny\nweb\nabsent\nweb\ntiny\ntiny\nweb\ntiny\n";
    assert_eq!(said.stdout, wanted, "{said:?}");
    for words in [
        "tiny': File exists",
        "x': No such file",
        ".hidden': Invalid",
        "Not a directory",
        "itself, 'x'",
    ] {
        assert!(said.stderr.contains(words), "{words}: {said:?}");
    }
    // Links are made nowhere else.
    assert_errno(std::os::unix::fs::symlink("a", aq.path("b")), libc::EPERM);
    aq.sh("mkdir .images/web && ln -s web .images/stable").ok();
    aq.cli("aq umount").ok();
    aq.mount();
    assert_eq!(aq.sh("readlink .images/stable; ls -l .images | grep -c stable").ok(), "web\n1");
    let said = aq.cli("aq snapshot tag stable next && aq snapshot tag tiny stable");
    assert!(said.stderr.contains("Tag 'next' -> snapshot 'web'"), "{said:?}");
    assert_eq!(aq.sh("readlink .images/next .images/stable").ok(), "web\ntiny");
    assert!(aq.cli("aq snapshot tag nosuch x").stderr.contains("does not exist"));
}

#[test]
fn an_alias_stands_for_the_image_that_it_leads_to_when_it_is_used() {
    let aq = Mounted::new();
    let script = "mkdir vm1 .images/web-1 .images/web-2; ln -s web-1 .images/stable
        echo stable > vm1/config/image; echo stable > .defaults/image; mkdir vm2
        ln -sfn web-2 .images/stable; mkdir vm3; cat vm?/config/image .defaults/image
        echo default > vm1/config/image; cp .defaults/image vm3/config/image
        cat .images/web-1/refs; printf stable >> vm1/config/image; cat vm1/config/image";
    assert_eq!(aq.sh(script).ok(), "web-1\nweb-1\nweb-1\nweb-1\n3\nweb-2");
    aq.cli("aq new --from-snapshot stable vm4").ok();
    assert_eq!(aq.read("vm4/config/image"), "web-2");
    // For as long as a mount lasts, the same.
    aq.cli("aq umount; aq mount $AQ_MOUNT --store $SCRATCH/store --image stable").ok();
    assert_eq!(aq.sh("mkdir vm5; cat vm5/config/image .defaults/image").ok(), "web-2\nweb-2");
}

#[test]
fn what_cannot_be_made_is_not_there() {
    let aq = Mounted::new();
    aq.cli("aq new vm1").ok();
    let said = aq.cli("aq snapshot create vm1 s1");
    assert!(said.code == 1 && said.stderr.contains("snapshot 's1': "), "{said:?}");
    assert_eq!(aq.cli("aq snapshot create nosuch s1").code, 1);
    for (tag, words) in
        [("../s1", "'../s1' is not a name"), ("'s 1'", "snapshot 's 1': \"s 1\" cannot")]
    {
        let said = aq.cli(&format!("aq snapshot create vm1 {tag}"));
        assert!(said.code == 1 && said.stderr.contains(words), "{tag}: {said:?}");
    }
    assert!(aq.cli("aq snapshot create vm1 tiny").stderr.contains("already exists"));
    assert_eq!(aq.sh("ls .images").ok(), "tiny");
    let head = "TAG                            PARENT               REFS    SIZE   CREATED              SOURCE_VM";
    assert_eq!(aq.cli("aq snapshot ls").ok(), head);
    assert!(aq.cli("aq snapshot rm nosuch").stderr.contains("does not exist"));
    assert!(aq.cli("aq fanout nosuch 2 true").stderr.contains("does not exist"));
    assert_eq!(aq.cli("aq fanout tiny 0 true").code, 2);
    aq.cli("aq new p-1").ok();
    let said = aq.cli("aq fanout tiny 2 --prefix p true");
    assert!(said.code == 1 && said.stderr.contains("'p-1' already exists"), "{said:?}");
    assert_eq!(aq.sh("ls").ok(), "p-1\nvm1");
}

#[cfg(feature = "qemu_tests")]
mod with_guests {
    use super::*;
    use crate::common::{BOOT, eventually};

    /// No VM may be there, removed ones included, and no QEMU.
    #[track_caller]
    fn nothing_left(aq: &Mounted) {
        assert_eq!(aq.sh("ls; ls .trash").ok(), "");
        assert!(aq.qemus().is_empty(), "{:?}", aq.qemus());
    }

    /// The third column of a tag's line, as scripts cut it out.
    fn refs(aq: &Mounted, tag: &str) -> String {
        aq.cli(&format!("aq snapshot ls | awk -v t={tag} '$1 == t {{ print $3 }}'")).ok()
    }

    #[test]
    fn snapshots_outlive_their_vm_and_count_who_uses_them() {
        let aq = Mounted::with_image();
        let script = "aq new src; aq start src; aq exec src 'echo marker > /root/m'; aq stop src
            aq snapshot create src tag1 && aq rm src && aq snapshot tag tag1 stable";
        let said = aq.cli(script);
        assert!(said.stderr.contains("Snapshot created: tag1 (parent: tiny)"), "{said:?}");
        assert_eq!(refs(&aq, "tag1"), "0");
        let script = "aq new --from-snapshot=stable dst && aq start dst && aq exec dst cat /root/m";
        assert_eq!(aq.cli(script).ok(), "dst\nmarker");
        assert_eq!(aq.cli("aq exec dst hostname").ok(), "dst");
        assert_eq!(refs(&aq, "tag1"), "1");
        let used = aq.cli("aq snapshot rm tag1");
        assert!(used.code == 1 && used.stderr.contains("1 reference(s): dst"), "{used:?}");
        assert_eq!(aq.cli("aq snapshot rm --force tag1").code, 1, "a VM needs it");
        aq.cli("aq stop dst; aq snapshot create dst tag2").ok();
        let tree = aq.cli("aq snapshot tree").ok();
        let names: Vec<_> = tree.lines().map(|l| l.split("   [").next().unwrap()).collect();
        assert_eq!(names, ["base (tiny)", "    └── tag1", "        └── tag2"], "{tree}");
        assert_eq!(aq.cli("aq snapshot tree tag2").ok().lines().count(), 1);
        aq.cli("aq rm dst").ok();
        assert_eq!(refs(&aq, "tag1"), "0");
        let said = aq.cli("aq snapshot rm stable");
        assert!(said.code == 0 && said.stderr.contains("Snapshot removed: tag1"), "{said:?}");
        assert_eq!(aq.sh("ls .images").ok(), "tag2\ntiny");
        assert!(aq.cli("aq prune --images -n").ok().contains(".images/tag2"));
        aq.cli("aq prune --images").ok();
        assert_eq!(aq.sh("ls .images").ok(), "tiny");
        nothing_left(&aq);
    }

    #[test]
    fn every_shard_has_its_index_and_the_worst_status_counts() {
        let aq = Mounted::with_image();
        let script =
            "aq fanout tiny 4 --prefix=s -- 'echo $AQ_SHARD_INDEX; exit $AQ_SHARD_INDEX' > out
            echo $?; sort out";
        let said = aq.cli_within(script, BOOT * 3);
        let lines: Vec<String> = (0..4).map(|i| format!("[s-{i}] {i}")).collect();
        assert_eq!(said.stdout, format!("3\n{}\n", lines.join("\n")), "{said:?}");
        nothing_left(&aq);
        let script = "aq fanout tiny 3 --jobs 1 sh -c 'echo \"$AQ_SHARD_INDEX  of $AQ_SHARD_TOTAL\" >&2; printf x'";
        let said = aq.cli_within(script, BOOT * 3);
        let shard = |i: u32| said.stdout.lines().filter(|l| l.contains(&format!("-{i}] "))).count();
        assert!(said.code == 0 && said.stdout.contains("-2] 2  of 3\n"), "{said:?}");
        assert_eq!((shard(0), shard(1), shard(2)), (2, 2, 2), "{said:?}");
        nothing_left(&aq);
    }

    #[test]
    fn every_shard_resumes_the_snapshot_of_a_running_vm() {
        let aq = Mounted::with_image();
        aq.cli("aq new src; aq start src; aq exec src 'echo provisioned > /run/state'").ok();
        let said = aq.cli("aq snapshot create src live && aq rm -f --erase src");
        assert!(said.stderr.contains("live (parent: tiny, with memory)"), "{said:?}");
        let script =
            "aq fanout live 3 --prefix=s -- 'echo \"I am $AQ_SHARD_INDEX of $AQ_SHARD_TOTAL\"
            cat /run/state; hostname' > out; echo $?; sort out";
        let said = aq.cli(script);
        let shard = |i| format!("[s-{i}] I am {i} of 3\n[s-{i}] provisioned\n[s-{i}] s-{i}\n");
        assert_eq!(said.stdout, format!("0\n{}{}{}", shard(0), shard(1), shard(2)), "{said:?}");
        aq.cli("aq snapshot rm live").ok();
        nothing_left(&aq);
        // Copies of a VM that runs.
        aq.cli("aq new src; aq start src; aq exec src 'echo provisioned > /run/state'").ok();
        let said = aq.cli(&script.replace("fanout live", "fanout src"));
        assert_eq!(said.stdout, format!("0\n{}{}{}", shard(0), shard(1), shard(2)), "{said:?}");
        aq.cli("aq rm -f --erase src").ok();
        nothing_left(&aq);
    }

    #[test]
    fn a_shard_that_the_host_has_no_memory_for_waits_until_another_has_ended() {
        let aq = Mounted::with_image();
        let host = aq.read(".host");
        let free = host.lines().find_map(|l| l.strip_prefix("memory_free ")?.parse::<u64>().ok());
        // Two fit, and no third.
        let each = (free.expect("what is free") >> 20) * 2 / 5;
        aq.sh(&format!("echo {each}M > .defaults/memory")).ok();
        let script =
            "aq fanout tiny 3 --prefix s -- 'echo $AQ_SHARD_INDEX' > out; echo $?; sort out";
        let said = aq.cli_within(script, BOOT * 2);
        assert_eq!(said.stdout, "0\n[s-0] 0\n[s-1] 1\n[s-2] 2\n", "{said:?}");
        assert!(aq.read(".error").contains("not enough memory"), "{}", aq.read(".error"));
        // Where there is no shard to wait for, it is reported.
        aq.sh("echo 4T > .defaults/memory").ok();
        let said = aq.cli("aq fanout tiny 1 true");
        assert!(said.code == 1 && said.stderr.contains("not enough memory"), "{said:?}");
        nothing_left(&aq);
    }

    #[test]
    fn interrupted_in_the_middle_it_leaves_nothing_behind() {
        let aq = Mounted::with_image();
        for (signal, code, wait) in [
            ("INT", "130", "until grep -qs up out; do sleep 0.1; done"),
            (
                "TERM",
                "143",
                "until pgrep -f $SCRATCH/store/.*qemu >/dev/null || ls $AQ_MOUNT/s-0; do :; done",
            ),
        ] {
            let script = format!(
                "aq fanout tiny 3 --prefix s -- 'echo up; sleep 300' > out 2> err & P=$!
                {wait}; kill -{signal} $P; wait $P; echo $?"
            );
            let said = aq.cli(&script);
            assert!(said.stdout.ends_with(&format!("{code}\n")), "{signal}: {said:?}");
            eventually("no QEMU", BOOT, || aq.qemus().is_empty());
            nothing_left(&aq);
        }
        // Nor with a reader that has seen enough.
        let script = "aq fanout tiny 2 -- 'while :; do echo x; sleep 0.1; done' | head -n1 | grep -o x; echo ${PIPESTATUS[0]}";
        assert_eq!(aq.cli(script).ok(), "x\n141");
        nothing_left(&aq);
    }

    #[test]
    fn kept_shards_run_on() {
        let aq = Mounted::with_image();
        aq.cli("aq fanout tiny 2 --keep --prefix k -- hostname").ok();
        assert_eq!(aq.cli("aq ls | awk '{print $1, $2}'").ok(), "k-0 On\nk-1 On");
        aq.cli("aq rm -f --erase k-0 k-1").ok();
        nothing_left(&aq);
    }
}

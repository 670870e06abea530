//! `aq sync`: a directory in a guest, what has changed there, taking it, and what a guest may try with it.

use std::time::Duration;

use crate::common::{Mounted, Output};

/// A project with a repository, as users have them.
const MAKE: &str = r#"
    mkdir -p project/src/deep && cd project && git init -q . && git config user.name a && git config user.email a@b
    printf 'one\ntwo\nthree\n' > src/a; echo b > src/b; echo c > 'src/deep/a name'; ln -s src/a link; ln -s /etc/hostname abs
    head -c 300000 /dev/urandom > binary; chmod 755 src/b; mkdir empty; git add . && git commit -qm one; cd .."#;
const LIST: &str = r"find . -mindepth 1 -printf '%P %y %m %l\n' | sort; find . -type f | sort | xargs -d '\n' sha256sum";

fn run(aq: &Mounted, script: &str) -> Output {
    aq.cli_within(script, Duration::from_secs(200))
}

#[test]
fn work_in_a_guest_is_seen_and_taken() {
    let aq = Mounted::booted();
    let script = format!(
        r#"{MAKE}
        list() {{ (cd "$1"; {LIST}); }}; at() {{ aq exec vm1 "cd project; $1"; }}
        aq sync project vm1:project && aq sync project vm1:project && aq sync -d project vm1:project && echo same
        aq cp vm1:project copy && list project > 1 && list copy | diff 1 - && rm -r copy
        at 'sed -i s/two/2/ src/a; echo new > src/new; rm -r src/deep; chmod 700 src/b; mkdir made; echo x > made/x
            echo x >> binary; rm link; ln -s src/b link; ln -s /etc/passwd there; mkfifo pipe; touch -d 2020-01-01 src/b'
        aq sync --diff project vm1:project > diff 2> notes; echo $?; grep -v ^index diff; cat notes
        cp -a project patched; (cd patched; grep -v -e ^Binary -e 'b/binary$' ../diff | git apply -) && list patched > 2
        aq sync project vm1:project; aq sync --accept project vm1:project; echo $?
        aq sync --diff project vm1:project 2> /dev/null; echo $?
        aq exec vm1 'rm project/pipe'; aq cp vm1:project copy && list project > 3 && list copy | diff 3 - && echo taken
        diff 2 3 | grep '^[<>]' | grep -v -e binary -e 'deep d'; git -C project status --short"#
    );
    let said = run(&aq, &script);
    assert_eq!(said.stdout, SEEN, "{said:?}");
    let told = [
        "vm1:project: nothing to send",
        "10 changes there have not been accepted (binary, link, made, …); `--diff` shows them",
        "vm1:project: 10 taken, 0 refused",
    ];
    assert!(told.iter().all(|words| said.stderr.contains(words)), "{said:?}");
}

/// What `--diff` prints, and what comes of it.
const SEEN: &str = r#"same
1
diff --git a/binary b/binary
Binary files a/binary and b/binary differ
diff --git a/link b/link
--- a/link
+++ b/link
@@ -1 +1 @@
-src/a
\ No newline at end of file
+src/b
\ No newline at end of file
new directory made/ mode 755
diff --git a/made/x b/made/x
new file mode 100644
--- /dev/null
+++ b/made/x
@@ -0,0 +1 @@
+x
diff --git a/src/a b/src/a
--- a/src/a
+++ b/src/a
@@ -1,3 +1,3 @@
 one
-two
+2
 three
# src/b had the permissions 755 and has 700
deleted directory src/deep/ mode 755
diff --git a/src/deep/a name b/src/deep/a name
deleted file mode 100644
--- a/src/deep/a name
+++ /dev/null
@@ -1 +0,0 @@
-c
diff --git a/src/new b/src/new
new file mode 100644
--- /dev/null
+++ b/src/new
@@ -0,0 +1 @@
+new
diff --git a/there b/there
new file mode 120000
--- /dev/null
+++ b/there
@@ -0,0 +1 @@
+/etc/passwd
\ No newline at end of file
aq: pipe: left out: it is neither a file nor a directory nor a link
0
0
taken
< src/b f 755 
> src/b f 700 
 M binary
 M link
 M src/a
 D "src/deep/a name"
?? made/
?? src/new
?? there
"#;

#[test]
fn what_changed_on_both_sides_is_left_and_told() {
    let aq = Mounted::booted();
    let script = r#"
        mkdir -p p/d && echo 1 > p/both && echo 1 > p/theirs && echo 1 > p/mine && echo 1 > p/d/gone && echo 1 > p/same
        ! aq sync --diff p vm1:p; ! aq sync p vm1:; ! aq sync p vm1:/; ! aq sync p vm1:../x; aq sync p vm1:p
        at() { aq exec vm1 "cd p; $1"; }; at 'echo 2 > both; echo 2 > theirs; rm -r d; echo 3 > same; echo n > new'
        echo 22 > p/both; echo 2 > p/mine; echo 22 > p/d/gone; echo 3 > p/same; echo nn > p/new
        aq sync p vm1:p; echo $?
        aq sync --diff p vm1:p | grep -A1 ^#; aq sync --accept p vm1:p theirs nosuch; echo $?; cat p/theirs
        aq sync p vm1:p --accept; echo $?; cat p/*; cat p/d/gone
        aq sync --force p vm1:p; echo $?; at 'cat both mine d/gone new'; aq sync -d p vm1:p; echo $?
        # One that was there already, and one that is gone.
        aq exec vm1 'mkdir q; echo q > q/q; rm -r p'; aq sync p vm1:q; aq sync -f p vm1:q; aq exec vm1 'cat q/both; ls q'
        aq sync p vm1:p 2> /dev/null; echo $?; aq sync -f p vm1:p; at 'cat both'; aq sync -d nosuch vm1:p; echo $?"#;
    let said = run(&aq, script);
    let words = |lines: &str| lines.split_whitespace().collect::<Vec<_>>().join(" ");
    let shown = said.stdout.lines().filter(|line| !line.starts_with(['#', 'd', '-']));
    let shown = words(&shown.collect::<Vec<_>>().join(" "));
    assert_eq!(
        shown, "1 1 2 1 22 2 nn 3 2 22 0 22 2 22 nn 0 22 both mine new same theirs 1 22 2",
        "{said:?}"
    );
    let changed_too = said.stdout.lines().filter(|line| line.starts_with("# "));
    assert_eq!(changed_too.count(), 3, "{said:?}");
    let told = [
        "aq: vm1:p: it was not sent by aq sync; `aq sync DIR VM:DIR` first",
        "aq: vm1:: that is the user's home, or contains it",
        "aq: vm1:/: that is the user's home, or contains it",
        "aq: vm1:../x: a path with `..` is not taken",
        "aq: vm1:p: 6 changes there have not been accepted (both, d, d/gone, …)",
        "aq: nosuch: nothing has changed there",
        "aq: p/d/gone: it has changed here too since the sync",
        "aq: p/both: it has changed here too since the sync",
        "aq: p/new: it has changed here too since the sync",
        "vm1:p: 1 taken, 4 refused",
        "aq: vm1:q: it is there already and was not sent by aq sync; `--force` replaces",
        "vm1:q: 7 sent, 1 removed",
        "aq: nosuch: No such file or directory",
    ];
    told.iter().for_each(|words| assert!(said.stderr.contains(words), "{words}: {said:?}"));
}

#[test]
fn what_was_sent_goes_along_with_snapshots_and_clones() {
    let aq = Mounted::booted();
    let script = r#"
        mkdir p; seq 100 > p/a; aq sync p vm1:p; cd $AQ_MOUNT; mkdir vm1/snapshots/s; cat vm1/wait > /dev/null
        until grep -q ok vm1/snapshots/s/status; do sleep 0.1; done
        aq exec vm1 'echo changed > p/a'; aq sync -d $SCRATCH/p vm1:p > /dev/null; echo $?
        echo 'restore s' > vm1/ctl; cat vm1/wait vm1/ready > /dev/null; aq sync -d $SCRATCH/p vm1:p; echo $?
        aq exec vm1 'echo again >> p/a; sync'; aq snapshot create vm1 image > /dev/null && aq new --from-snapshot=image vm2 && aq start vm2
        aq exec vm2 'echo clone > p/b'; aq sync -d $SCRATCH/p vm2:p | grep ^[-+]; aq sync -a $SCRATCH/p vm2:p; cat $SCRATCH/p/b
        aq sync -d $SCRATCH/p vm1:p | grep '^[#+]'"#;
    let said = run(&aq, script);
    let wanted = "1\n0\nvm2\n--- a/a\n+++ b/a\n+again\n--- /dev/null\n+++ b/b\n+clone\nclone\n\
        # a has changed on the host too since the sync: this is the difference to it\n";
    assert_eq!(said.stdout, wanted, "{said:?}");
}

#[test]
fn a_guest_gains_nothing_by_what_it_writes() {
    let aq = Mounted::booted();
    let script = r##"
        mkdir p victim; echo mine > victim/x; echo 1 > p/a; mkdir p/d; echo 1 > p/d/x; aq sync p vm1:p
        at() { aq exec vm1 "cd p; $1"; }
        # A directory here became a link, and the guest has something for it.
        rm -r p/d; ln -s ../victim p/d; at 'echo theirs > d/x; echo theirs > d/y'
        aq sync -a p vm1:p; echo $?; cat victim/*; rm p/d; aq sync -f p vm1:p
        # A link of the guest's, and afterwards a directory of its name.
        at 'ln -s ../victim l'; aq sync -a p vm1:p; at 'rm l; mkdir l; echo theirs > l/x'
        aq sync -a p vm1:p; echo $?; cat victim/x p/l/x
        # Modes, names, special files.
        at 'cp a s; chmod 6755 s; mkfifo f; mknod n c 1 3; printf x > "$(printf "e\033[31m")"'
        aq sync -a p vm1:p; echo $?; stat -c %a p/s; ls p | grep -c -e ^f -e ^n
        # The same size in the same second.
        echo 1 > p/quick; aq sync -f p vm1:p; at 'echo 2 > quick; touch -r quick quick'; at 'T=$(stat -c %Y a); echo 3 > quick'
        aq sync -d p vm1:p | grep ^+
        # What it says was sent.
        M=/root/.local/state/aqfs/sync; aq exec vm1 "sed -i 's#\"path\":\"a\"#\"path\":\"../victim/x\"#' $M/p-*"
        aq sync -a p vm1:p; echo $?; aq sync -d p vm1:p; echo $?; aq exec vm1 "echo x > $(aq exec vm1 "ls $M/p-*")"; aq sync p vm1:p; echo $?
        aq sync --force p vm1:p; echo $?; cat victim/x"##;
    let said = run(&aq, script);
    let wanted = "1\nmine\n0\nmine\ntheirs\n0\n755\n0\n+++ b/quick\n+3\n1\n2\n1\n0\nmine\n";
    assert_eq!(said.stdout, wanted, "{said:?}");
    for words in [
        "p/d/y: it is a symbolic link, which is not followed here",
        "f: left out",
        "a path that is none",
    ] {
        assert!(said.stderr.contains(words), "{words}: {said:?}");
    }
}

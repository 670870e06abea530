//! A host's disk that hangs in fsync(2) delays changes of the store, and no reads.
//!
//! A library in the daemon's `LD_PRELOAD` replaces fsync(2).

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::common::mounted::SHORT;
use crate::common::{Mounted, eventually, shell};

/// fsync(2) waits while the file `$HANGS` exists, and creates `$HANGS.reached` before it does.
const LIBRARY: &str = r#"
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

int fsync(int fd) {
    const char *hangs = getenv("HANGS");
    if (hangs && access(hangs, F_OK) == 0) {
        char reached[4096];
        snprintf(reached, sizeof reached, "%s.reached", hangs);
        close(open(reached, O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
        while (access(hangs, F_OK) == 0) usleep(10000);
    }
    return (int)syscall(SYS_fsync, fd);
}
"#;

/// The disk hangs while this lives.
struct Hanging(PathBuf);

impl Hanging {
    fn begin(aq: &Mounted) -> Self {
        let path = aq.scratch().join("hangs");
        drop(fs::remove_file(path.with_extension("reached")));
        File::create(&path).expect("a file");
        Self(path)
    }

    fn is_reached(&self) -> bool {
        self.0.with_extension("reached").exists()
    }
}

impl Drop for Hanging {
    fn drop(&mut self) {
        drop(fs::remove_file(&self.0));
    }
}

/// A daemon whose disk can be made to hang.
fn mounted() -> Mounted {
    let aq = Mounted::new();
    fs::write(aq.scratch().join("hang.c"), LIBRARY).expect("a file");
    aq.cli("cc -shared -fPIC -o hang.so hang.c").ok();
    let variables = "HANGS=$SCRATCH/hangs LD_PRELOAD=$SCRATCH/hang.so";
    aq.cli(&format!("aq umount; {variables} aq mount $AQ_MOUNT --store $SCRATCH/store")).ok();
    aq
}

fn begin(aq: &Mounted, script: &str) -> Child {
    let mut command = Command::new("sh");
    command.args(["-c", script]).current_dir(aq.dir()).stderr(Stdio::null());
    command.spawn().expect("a shell")
}

/// Open directories: an image, the defaults, a VM. The kernel locks the directory of a change until it is
/// answered, and every lookup in it waits; `/proc/PID/fd/N` reaches these without a lookup.
struct Pinned([File; 3]);

impl Pinned {
    fn open(aq: &Mounted) -> Self {
        let names = [".images/tiny", ".defaults", "vm1"];
        Self(names.map(|name| File::open(aq.path(name)).expect("a directory")))
    }

    /// Returns a script that reads everything, by more processes than the daemon has FUSE threads.
    fn reads(&self) -> String {
        let path = |dir: &File| format!("/proc/{}/fd/{}", std::process::id(), dir.as_raw_fd());
        let [tiny, defaults, vm1] = self.0.each_ref().map(path);
        format!(
            "for n in 1 2 3; do
                cat {tiny}/status {tiny}/refs {defaults}/memory > /dev/null & all=\"$all $!\"
                cat {vm1}/status {vm1}/config/image {vm1}/config/memory {vm1}/info > /dev/null & all=\"$all $!\"
                ls -l {tiny}/ {defaults}/ {vm1}/ {vm1}/config/ > /dev/null & all=\"$all $!\"
            done
            for one in $all; do wait $one || exit; done"
        )
    }
}

#[test]
fn a_disk_that_hangs_delays_changes_and_no_reads() {
    let aq = mounted();
    aq.sh("mkdir vm1 vm2; mkdir .images/y; cp /bin/sh ../none.raw").ok();
    let pinned = Pinned::open(&aq);
    for change in [
        "mkdir .images/x",
        "ln -s tiny .images/third",
        "mv .images/third .images/fourth",
        "rm .images/fourth",
        "echo $PWD/../none.raw > .images/y/source",
        "echo 512M > .defaults/memory",
        "echo 512M > vm2/config/memory",
        "mkdir vm3",
        "mv vm3 vm4",
    ] {
        let hanging = Hanging::begin(&aq);
        let mut changing = begin(&aq, change);
        eventually(&format!("`{change}` waits"), SHORT, || hanging.is_reached());
        let reads = shell::run("bash", pinned.reads(), aq.scratch(), Duration::from_secs(10));
        assert_eq!(reads.code, 0, "beside `{change}`: {reads:?}");
        assert!(changing.try_wait().expect("a process").is_none(), "`{change}` has not waited");
        drop(hanging);
        assert!(changing.wait().expect("its end").success(), "{change}");
    }
}

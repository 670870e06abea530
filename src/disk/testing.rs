//! Disks for tests.

use std::path::Path;
use std::process::Command;

/// Runs `qemu-img` in `dir` and returns what it prints.
pub(crate) fn qemu_img(dir: &Path, args: &[&str]) -> String {
    let done = Command::new("qemu-img").args(args).current_dir(dir).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap()
}

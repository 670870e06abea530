//! The programs of the system that VMs need: in which package each comes, whether it is installed, and
//! what it says when it fails.
//!
//! Not here: running them (`qemu`, `disk`, `image`), and what the command line alone needs (`doctor`).

use std::io;
use std::path::{Path, PathBuf};

/// Where administrators' programs are: on Debian not in an ordinary user's `PATH`.
const ADMINISTRATORS: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// How much of a line is kept.
const LINE_LIMIT: usize = 400;

/// A program and the Debian package that it comes in.
#[derive(Debug, PartialEq, Eq)]
pub struct Program {
    /// Its file name.
    pub name: &'static str,
    /// The package.
    pub package: &'static str,
}

/// Makes and changes disks.
pub const QEMU_IMG: Program = Program { name: "qemu-img", package: "qemu-utils" };
/// The switch of a net.
pub const VDE_SWITCH: Program = Program { name: "vde_switch", package: "vde2" };
/// What the tiny image is made with.
pub const BUILDERS: [&Program; 1] = [&Program { name: "mke2fs", package: "e2fsprogs" }];

impl Program {
    /// Says whether it is there, in `PATH` or where administrators' programs are.
    pub fn is_installed(&self) -> bool {
        let is_there = |dir: &str| Path::new(dir).join(self.name).is_file();
        find(self.name).is_some() || ADMINISTRATORS.into_iter().any(is_there)
    }
}

/// Finds a program by `PATH`.
pub fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|p| p.is_file())
}

/// Says whether a program could not be started because it is not there. A directory of PATH that may
/// not be entered hides what is not elsewhere.
pub fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied)
}

/// Returns those that are not installed.
pub fn missing(programs: &[&'static Program]) -> Vec<&'static Program> {
    programs.iter().copied().filter(|program| !program.is_installed()).collect()
}

/// Returns the last line of a program's output that says something, as far as people read it.
pub fn last_line(output: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(output);
    let line = text.lines().rev().map(str::trim).find(|l| !l.is_empty())?;
    Some(line.chars().take(LINE_LIMIT).collect())
}

/// Lists names: `qemu-img, mke2fs`.
pub fn names(programs: &[&Program]) -> String {
    programs.iter().map(|p| p.name).collect::<Vec<_>>().join(", ")
}

/// Returns the command that installs them.
pub fn remedy(programs: &[&Program]) -> String {
    let packages = programs.iter().map(|p| p.package).collect::<Vec<_>>().join(" ");
    let own = if programs.len() == 1 { "package of it" } else { "packages of them" };
    format!("`apt install {packages}` or your system's {own}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: Program = Program { name: "no-such-program-here", package: "none" };
    const OTHER: Program = Program { name: "nor-such-a-one", package: "other" };
    const SHELL: Program = Program { name: "sh", package: "dash" };

    #[test]
    fn what_is_missing_is_named_with_the_command_that_installs_it() {
        let found = missing(&[&NONE, &SHELL, &OTHER]);
        assert_eq!(names(&found), "no-such-program-here, nor-such-a-one");
        assert!(remedy(&found).starts_with("`apt install none other`"), "{}", remedy(&found));
        assert!(remedy(&[&NONE]).ends_with("`apt install none` or your system's package of it"));
        assert!(missing(&[&SHELL]).is_empty());
    }
}

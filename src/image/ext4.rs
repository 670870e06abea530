//! Writes a [`FileTree`] as an ext4 file system in which everything belongs to root, as an
//! ordinary user and with the same bytes every time: `mke2fs` makes it empty, `debugfs` fills it.
//! (`mke2fs -d` would copy the builder's own uid, and take names in the order of the host's
//! directory.)

use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use super::command::Tool;
use super::file_tree::{FileBody, FileNode, FileTree};
use super::source::{BuildError, Result};
use crate::programs::last_line;

const REMEDY: &str = "install the package e2fsprogs";
const MKE2FS: Tool = tool("mke2fs");
const DEBUGFS: Tool = tool("debugfs");
const E2FSCK: Tool = tool("e2fsck");

const fn tool(name: &'static str) -> Tool {
    Tool { name, remedy: REMEDY }
}

/// What the kernels of all supported distributions know, spelled out so that the host's
/// `mke2fs.conf` has no say.
const FEATURES: &str = "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,\
    flex_bg,sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum";
/// The file with debugfs's commands.
pub(super) const SCRIPT: &str = "script";
/// A file system has an inode for each of these.
pub(super) const BYTES_PER_INODE: u64 = 16384;
/// Any constant would do: a VM's overlay has the same one, and nothing mounts by UUID.
const UUID: &str = "61716673-0000-4000-8000-74696e790001";

/// Makes `disk`, of `size` bytes, from `tree`; `time` is in seconds since 1970. Uses `scratch`,
/// a directory that it creates and removes.
pub(super) fn make(
    tree: &FileTree,
    disk: &Path,
    size: u64,
    time: u32,
    scratch: &Path,
) -> Result<()> {
    fs::create_dir(scratch).map_err(BuildError::at(scratch))?;
    let script = scratch.join(SCRIPT);
    fs::write(&script, write_script(tree, time, scratch)?).map_err(BuildError::at(&script))?;
    make_by_script(disk, Shape { size, inodes: size / BYTES_PER_INODE }, time, scratch)?;
    fs::remove_dir_all(scratch).map_err(BuildError::at(scratch))
}

/// How large a file system is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    /// Bytes.
    pub(super) size: u64,
    /// How many files it may have.
    pub(super) inodes: u64,
}

/// Makes `disk` by the commands in the file [`SCRIPT`] of the directory `scratch`.
pub(super) fn make_by_script(disk: &Path, shape: Shape, time: u32, scratch: &Path) -> Result<()> {
    let file = File::create(disk).map_err(BuildError::at(disk))?;
    file.set_len(shape.size).map_err(BuildError::at(disk))?;
    MKE2FS.run(&mut mke2fs(disk, shape.inodes, time))?;
    fill(disk, time, scratch)?;
    let checked = E2FSCK.run(at_time(E2FSCK.command(), time).arg("-fn").arg(disk));
    checked.map(drop)
}

fn mke2fs(disk: &Path, inodes: u64, time: u32) -> Command {
    let mut command = at_time(MKE2FS.command(), time);
    command
        .env("MKE2FS_CONFIG", "/dev/null")
        .args(["-q", "-F", "-t", "ext4", "-O", FEATURES])
        .args(["-b", "4096", "-I", "256", "-m", "0", "-N", &inodes.to_string()])
        .args(["-J", "size=8", "-L", "root", "-U", UUID, "-E"])
        .arg(format!("hash_seed={UUID},lazy_itable_init=0,lazy_journal_init=0,nodiscard"))
        .arg(disk);
    command
}

/// Sets the time for e2fsprogs, in the two ways that its versions know.
fn at_time(mut command: Command, time: u32) -> Command {
    let time = time.to_string();
    command.env("E2FSPROGS_FAKE_TIME", &time);
    command.env("SOURCE_DATE_EPOCH", &time);
    command
}

fn fill(disk: &Path, time: u32, scratch: &Path) -> Result<()> {
    let mut command = at_time(DEBUGFS.command(), time);
    command.current_dir(scratch).args(["-w", "-f", SCRIPT]).arg(disk);
    let output = DEBUGFS.run_loud(&mut command)?;
    // It ends with status 0 whatever happens; its banner is the only thing that is no error.
    let errors: Vec<u8> = output
        .stderr
        .split_inclusive(|b| *b == b'\n')
        .filter(|line| !line.starts_with(b"debugfs 1."))
        .flatten()
        .copied()
        .collect();
    match last_line(&errors) {
        Some(said) => Err(BuildError::Tool { tool: DEBUGFS.name, said }),
        None => Ok(()),
    }
}

/// Writes the commands that make the tree, and the contents beside it as numbered files.
fn write_script(tree: &FileTree, time: u32, scratch: &Path) -> Result<String> {
    let mut script = String::new();
    for (number, (path, node)) in tree.iter().enumerate() {
        let name = safe_name(path)?;
        let dir = path.rsplit_once('/').map_or("", |(dir, _)| dir);
        let _infallible = writeln!(script, "cd /{dir}");
        let _infallible = match &node.body {
            FileBody::Directory => writeln!(script, "mkdir {name}"),
            FileBody::Symlink(target) => {
                safe_name(target)?;
                writeln!(script, "symlink {name} {target}")
            }
            FileBody::File(bytes) => {
                let content = scratch.join(number.to_string());
                fs::write(&content, bytes).map_err(BuildError::at(&content))?;
                writeln!(script, "write {number} {name}")
            }
        };
        own(&mut script, name, node, time);
    }
    Ok(script)
}

/// Adds the commands that give a file to root.
fn own(script: &mut String, name: &str, node: &FileNode, time: u32) {
    let kind = match node.body {
        FileBody::Directory => 0o040_000,
        FileBody::File(_) => 0o100_000,
        FileBody::Symlink(_) => 0o120_000,
    };
    let mode = kind | u32::from(node.mode);
    let _infallible = writeln!(script, "sif {name} mode 0{mode:o}");
    for field in ["uid", "gid"] {
        let _infallible = writeln!(script, "sif {name} {field} 0");
    }
    for field in ["atime", "ctime", "mtime", "crtime"] {
        let _infallible = writeln!(script, "sif {name} {field} @{time}");
    }
}

/// Returns the last part of a path that needs no quoting in debugfs's language.
fn safe_name(path: &str) -> Result<&str> {
    let safe = |c: char| c.is_ascii_alphanumeric() || "._+-/[".contains(c);
    if path.is_empty() || path.starts_with('-') || !path.chars().all(safe) {
        return Err(BuildError::malformed(
            format!("file name {path:?}"),
            "only letters, digits and ._+-[ can be used",
        ));
    }
    Ok(path.rsplit_once('/').map_or(path, |(_, name)| name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> FileTree {
        let mut tree = FileTree::default();
        tree.directory("root", 0o700);
        tree.file("usr/bin/busybox", 0o755, vec![7; 100_000]);
        tree.symlink("usr/bin/[", "busybox");
        tree
    }

    #[test]
    fn everything_belongs_to_root_and_the_bytes_are_the_same_twice() {
        let dir = tempfile::tempdir().unwrap();
        let disks = ["a", "b"].map(|name| {
            let disk = dir.path().join(name);
            make(&tree(), &disk, 32 << 20, 1_700_000_000, &dir.path().join("s")).unwrap();
            disk
        });
        assert!(fs::read(&disks[0]).unwrap() == fs::read(&disks[1]).unwrap());
        let mut command = DEBUGFS.command();
        command.args(["-R", "stat /usr/bin/busybox"]).arg(&disks[0]);
        let text = String::from_utf8(DEBUGFS.run(&mut command).unwrap()).unwrap();
        assert!(text.contains("Mode:  0755"), "{text}");
        assert!(text.contains("User:     0   Group:     0"), "{text}");
    }

    #[test]
    fn a_name_cannot_become_a_command() {
        for name in ["a b", "a\nquit", "a\"b", "-f", ""] {
            assert!(safe_name(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let mut tree = FileTree::default();
        tree.file("big", 0o644, vec![1; 32 << 20]);
        let result = make(&tree, &dir.path().join("d"), 16 << 20, 0, &dir.path().join("s"));
        assert!(matches!(result, Err(BuildError::Tool { .. })), "{result:?}");
    }
}

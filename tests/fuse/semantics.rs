//! What each system call does on each kind of file: the lines of `doc/SEMANTICS.md` that need no guest
//! and that no other test checks.
//!
//! Not here: what single files mean (their own tests), and what whole programs do (`programs`).

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::common::{Mounted, assert_errno};
use libc::{EACCES, EINVAL, EISDIR, ENODEV, ENOTTY, EOPNOTSUPP, EPERM, ESPIPE};
use rustix::fs::RenameFlags;

/// A file of each kind that is not a link or a directory.
const VALUES: &[&str] = &["vm1/status", "vm1/info", "vm1/log", ".host", ".docs/ctl.md"];
const SETTINGS: &[&str] = &["vm1/config/cpus", ".defaults/cpus", ".images/x/source"];
const CONTROLS: &[&str] = &["vm1/ctl", ".images/x/ctl", "vm1/jobs/b/ctl"];
const STREAMS: &[&str] = &["vm1/wait", "vm1/events", ".events", "vm1/jobs/b/stdout"];

/// A mount with a VM that is off, a job of it and an image without a source.
fn mounted() -> Mounted {
    let aq = Mounted::new();
    aq.sh("mkdir vm1 vm1/jobs/b .images/x").ok();
    aq
}

fn open_with(path: &Path, flags: i32) -> io::Result<File> {
    let mut options = OpenOptions::new();
    match flags & libc::O_ACCMODE {
        libc::O_WRONLY => options.write(true),
        libc::O_RDWR => options.read(true).write(true),
        _ => options.read(true),
    };
    options.custom_flags(flags & !libc::O_ACCMODE).open(path)
}

fn open(aq: &Mounted, name: &str, flags: i32) -> File {
    open_with(&aq.path(name), flags).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// Reads once, from where the descriptor stands.
fn read_once(mut file: &File) -> io::Result<String> {
    let mut bytes = [0; 1000];
    let count = file.read(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes[..count]).into_owned())
}

/// Reads once, from an offset.
fn read_at(file: &File, offset: u64) -> String {
    let mut bytes = [0; 1000];
    let count = file.read_at(&mut bytes, offset).expect("a read");
    String::from_utf8_lossy(&bytes[..count]).into_owned()
}

fn truncate(path: &Path) -> io::Result<()> {
    let path = std::ffi::CString::new(path.as_os_str().as_bytes()).expect("no NUL");
    let done = rustix::fs::openat(
        rustix::fs::CWD,
        path.as_c_str(),
        rustix::fs::OFlags::WRONLY,
        rustix::fs::Mode::empty(),
    );
    Ok(rustix::fs::ftruncate(done?, 0)?)
}

mod every_kind {
    use super::*;

    #[test]
    fn size_is_exact_for_values_and_zero_for_controls_and_streams() {
        let aq = mounted();
        for name in VALUES.iter().chain(SETTINGS) {
            let size = fs::metadata(aq.path(name)).expect(name).len();
            // What changes from look to look is as long as it was.
            assert_eq!(size, fs::read(aq.path(name)).expect(name).len() as u64, "{name}");
        }
        for name in CONTROLS.iter().chain(STREAMS) {
            assert_eq!(fs::metadata(aq.path(name)).expect(name).len(), 0, "{name}");
        }
    }

    #[test]
    fn everything_belongs_to_the_user_of_the_daemon_with_one_link_and_no_blocks() {
        let aq = mounted();
        let user = rustix::process::geteuid().as_raw();
        for name in [VALUES, SETTINGS, CONTROLS, STREAMS].concat() {
            let meta = fs::metadata(aq.path(name)).expect(name);
            assert_eq!((meta.uid(), meta.nlink(), meta.blocks()), (user, 1, 0), "{name}");
        }
    }

    #[test]
    fn mode_owner_and_times_cannot_be_changed() {
        let aq = mounted();
        for name in ["vm1/status", "vm1/config/cpus", "vm1/ctl", "vm1/wait", "vm1"] {
            let path = aq.path(name);
            let before = fs::metadata(&path).expect(name);
            let mode = before.permissions().mode() & 0o7777;
            assert_errno(fs::set_permissions(&path, Permissions::from_mode(0o123)), EPERM);
            fs::set_permissions(&path, Permissions::from_mode(mode)).expect("the same mode");
            std::os::unix::fs::chown(&path, Some(before.uid()), None).expect("the same owner");
            aq.sh(&format!("touch -d @1 {name}")).ok();
            let after = fs::metadata(&path).expect(name);
            assert_eq!((before.mode(), before.mtime()), (after.mode(), after.mtime()), "{name}");
        }
    }

    #[test]
    fn extended_attributes_fallocate_and_ioctl_are_not_supported() {
        let aq = mounted();
        let set = rustix::fs::XattrFlags::empty();
        for name in ["vm1/config/cpus", "vm1/ctl", "vm1"] {
            let path = aq.path(name);
            let mut buffer = [0u8; 10];
            let (get, list) = (
                rustix::fs::getxattr(&path, c"user.x", &mut buffer),
                rustix::fs::listxattr(&path, &mut [0u8; 10]),
            );
            assert_errno(get.map_err(io::Error::from), EOPNOTSUPP);
            assert_errno(list.map_err(io::Error::from), EOPNOTSUPP);
            let set = rustix::fs::setxattr(&path, c"user.x", b"1", set);
            assert_errno(set.map_err(io::Error::from), EOPNOTSUPP);
        }
        let setting = open(&aq, "vm1/config/cpus", libc::O_WRONLY);
        let flags = rustix::fs::FallocateFlags::empty();
        let done = rustix::fs::fallocate(&setting, flags, 0, 10);
        assert_errno(done.map_err(io::Error::from), EOPNOTSUPP);
        let terminal = rustix::termios::tcgetattr(&setting);
        assert_errno(terminal.map(|_| ()).map_err(io::Error::from), ENOTTY);
    }

    #[test]
    fn mmap_is_private_and_for_values_and_settings() {
        let aq = mounted();
        let script = "import mmap, sys\nf = open(sys.argv[1], 'rb')\n\
            flags = getattr(mmap, sys.argv[2])\n\
            print(mmap.mmap(f.fileno(), 1, flags, mmap.PROT_READ)[0:1])";
        let map = |name: &str, kind: &str| aq.sh(&format!("python3 -c \"{script}\" {name} {kind}"));
        assert_eq!(map("vm1/status", "MAP_PRIVATE").ok(), "b's'");
        assert_eq!(map("vm1/config/cpus", "MAP_PRIVATE").ok(), "b'1'");
        let refused = format!("[Errno {ENODEV}]");
        assert!(map("vm1/status", "MAP_SHARED").failed().contains(&refused));
    }

    #[test]
    fn an_unlink_has_no_effect_and_answers_as_rmdir_of_the_vm_would() {
        let aq = mounted();
        let files = ["vm1/status", "vm1/config/cpus", "vm1/ctl", "vm1/wait", "vm1/disk"];
        for name in files {
            fs::remove_file(aq.path(name)).expect(name);
            assert!(aq.path(name).symlink_metadata().is_ok(), "{name}");
        }
        aq.sh("echo 1 > vm1/config/protect").ok();
        for name in files {
            assert_errno(fs::remove_file(aq.path(name)), EPERM);
        }
        for name in [".host", ".docs/ctl.md", ".defaults/cpus"] {
            let errno = fs::remove_file(aq.path(name)).expect_err(name).raw_os_error();
            assert!(errno == Some(EPERM) || errno == Some(EACCES), "{name}: {errno:?}");
        }
    }

    #[test]
    fn a_file_is_not_renamed() {
        let aq = mounted();
        for name in ["vm1/status", "vm1/config/cpus", "vm1/ctl", "vm1/wait", "vm1/disk"] {
            let other = aq.path(name).with_file_name("other");
            assert_errno(fs::rename(aq.path(name), other), EINVAL);
        }
        let outside = aq.scratch().join("status");
        assert_errno(fs::rename(aq.path("vm1/status"), outside), libc::EXDEV);
    }

    #[test]
    fn no_file_is_executed_and_locks_are_the_kernels() {
        let aq = mounted();
        let said = aq.sh("./vm1/status").failed();
        assert!(said.contains("Permission denied"), "{said}");
        let script = "exec 3<vm1/config/cpus; flock 3; flock -n vm1/config/cpus true; echo $?
            flock -u 3; flock -n vm1/config/cpus true; echo $?";
        assert_eq!(aq.sh(script).ok(), "1\n0");
    }

    #[test]
    fn the_mount_is_its_users_alone_and_so_is_the_store() {
        let aq = mounted();
        let mounts = fs::read_to_string("/proc/self/mounts").expect("mounts");
        let at = format!(" {} ", aq.dir().display());
        let line = mounts.lines().find(|line| line.contains(&at)).expect("the mount").to_owned();
        for option in ["nosuid", "nodev", "noexec", "default_permissions"] {
            assert!(line.contains(option), "{line}");
        }
        assert!(!line.contains("allow_other") && !line.contains("allow_root"), "{line}");
        let mut open_to_others = Vec::new();
        closed(aq.store().root(), &mut open_to_others);
        assert!(open_to_others.is_empty(), "{open_to_others:?}");
    }

    /// Finds what others may enter: a directory that is closed closes what is in it.
    fn closed(path: &Path, open: &mut Vec<PathBuf>) {
        if fs::metadata(path).is_ok_and(|meta| meta.permissions().mode() & 0o077 != 0) {
            open.push(path.to_owned());
        }
    }
}

mod value {
    use super::*;

    #[test]
    fn it_is_opened_for_reading_alone() {
        let aq = mounted();
        for name in VALUES {
            for flags in [libc::O_WRONLY, libc::O_RDWR, libc::O_WRONLY | libc::O_APPEND] {
                assert_errno(open_with(&aq.path(name), flags), EACCES);
            }
            assert_errno(truncate(&aq.path(name)), EACCES);
            open(&aq, name, libc::O_NONBLOCK);
        }
    }

    #[test]
    fn its_content_is_of_the_open_and_made_anew_when_it_is_read_from_the_start_again() {
        let aq = mounted();
        let mut error = open(&aq, "vm1/error", libc::O_RDONLY);
        assert_eq!(read_at(&error, 0), "ok\n");
        aq.write("vm1/ctl", "nonsense").expect_err("no verb");
        assert_eq!(read_at(&error, 1), "k\n", "the content of the open");
        assert_eq!(error.seek(SeekFrom::Start(1)).expect("a seek"), 1);
        assert_eq!(read_once(&error).expect("a read"), "k\n");
        assert!(read_at(&error, 0).starts_with("unknown verb \"nonsense\""));
        assert!(read_at(&error, 1).starts_with("nknown verb"), "the content of the last start");
    }

    #[test]
    fn the_end_of_a_log_grows_while_it_is_open() {
        let aq = mounted();
        assert_eq!(fs::read(aq.path("vm1/console.log")).expect("no log yet"), b"");
        let disk = fs::read_link(aq.path("vm1/disk")).expect("a link");
        let log = disk.with_file_name("console.log");
        fs::write(&log, "one\n").expect("a log");
        let mut reader = open(&aq, "vm1/console.log", libc::O_RDONLY);
        assert_eq!(read_once(&reader).expect("a read"), "one\n");
        assert_eq!(read_once(&reader).expect("the end"), "");
        let mut writer = OpenOptions::new().append(true).open(&log).expect("the log");
        writer.write_all(b"two\n").expect("a line");
        assert_eq!(read_once(&reader).expect("what was added"), "two\n");
        assert_eq!(reader.seek(SeekFrom::End(0)).expect("a seek"), 8);
    }
}

mod setting {
    use super::*;

    #[test]
    fn a_text_is_what_one_open_file_was_given() {
        let aq = mounted();
        let script = r#"
            mkdir vm2; f=vm1/config/user_data; t=$SCRATCH/t
            { echo '#cloud-config'; echo 'runcmd:'
              for i in $(seq 900); do echo "  - echo $i 'é'"; done; } > $t
            for how in 'cp $t $f' 'cat $t > $f' 'cat < $t | tee $f > /dev/null' \
                'dd if=$t of=$f bs=512 status=none' 'dd if=$t of=$f bs=8k status=none' \
                '{ head -n 5; cat; } < $t > $f' 'head -n 9 $t > $f; tail -n +10 $t >> $f' \
                'vim -u NONE -es $t "+w! $f" +q'; do
                echo none > $f
                eval "$how" && cmp $t $f || echo "failed: $how"
            done
            cp vm1/config/* vm2/config/ && cmp $t vm2/config/user_data
            { echo '#cloud-config'; printf 'a: "%0600d' 0; } | head -c 512 > $t.cut
            dd if=$t.cut of=$f bs=512 status=none 2>/dev/null && echo 'a cut text was taken'
            cmp $t $f; grep -o '^user_data: line' vm1/error; grep -c 'config/user_data.*user_data: line' .error
            { echo '#cloud-config'; printf '#%0495d\n- a: [' 0; } > $t.cut
            dd if=$t.cut of=$f bs=512 status=none 2>/dev/null && echo 'a text with a bad end was taken'
            cmp $t $f
            head -c 512 $t.cut > $t.whole; cp $t.whole $f && cmp $t.whole $f
            echo '#cloud-config' > $f; : > $f; cat $f; echo default > $f; cat $f"#;
        let said = aq.sh(script).ok();
        assert_eq!(said, "user_data: line\n1\n#cloud-config\nnone");
        for (bad, errno) in [("packages: x", EINVAL), ("#cloud-config\na: [\n", EINVAL)] {
            assert_errno(aq.write("vm1/config/user_data", bad), errno);
        }
        let long = format!("#!/bin/sh\n{}", "x".repeat(70_000));
        assert_errno(aq.write("vm1/config/user_data", &long), libc::E2BIG);
        assert_errno(aq.write("vm1/config/network_data", "version: 3"), EINVAL);
        assert_errno(aq.write("vm1/config/credentials", "x"), EINVAL);
    }

    #[test]
    fn each_write_is_a_whole_value_at_any_offset() {
        let aq = mounted();
        let file = open(&aq, "vm1/config/cpus", libc::O_RDWR);
        assert_eq!(read_at(&file, 0), "1\n");
        assert_eq!(file.write_at(b"3\n", 100).expect("a write"), 2);
        assert_eq!(read_at(&file, 0), "3\n", "read from the start again");
        file.write_at(b"many", 0).expect_err("no number");
        assert_eq!(read_at(&file, 0), "3\n", "as it was");
    }

    #[test]
    fn truncation_and_an_empty_write_change_nothing() {
        let aq = mounted();
        aq.write("vm1/config/cpus", "3").expect("a value");
        open(&aq, "vm1/config/cpus", libc::O_WRONLY | libc::O_TRUNC);
        truncate(&aq.path("vm1/config/cpus")).expect("without effect");
        aq.sh("echo > vm1/config/cpus").ok();
        assert_eq!(aq.read("vm1/config/cpus"), "3");
    }

    #[test]
    fn a_list_is_replaced_or_added_to_and_a_single_value_is_replaced() {
        let aq = mounted();
        let script = "cd vm1/config; echo -a > qemu_args; echo -b >> qemu_args; cat qemu_args
            (echo -c; echo -d) > qemu_args; cat qemu_args; echo 2 > cpus; echo 3 >> cpus; cat cpus";
        assert_eq!(aq.sh(script).ok(), "-a\n-b\n-c\n-d\n3");
    }

    #[test]
    fn a_write_is_text_of_4096_bytes_at_the_most() {
        let aq = mounted();
        for name in SETTINGS {
            let file = open(&aq, name, libc::O_WRONLY);
            assert_errno(file.write_at(&[b' '; 4097], 0), libc::E2BIG);
            assert_errno(file.write_at(b"\xff", 0), EINVAL);
        }
    }
}

mod control {
    use super::*;

    #[test]
    fn a_read_gives_the_results_of_this_descriptor() {
        let aq = mounted();
        for name in CONTROLS {
            assert_eq!(fs::read(aq.path(name)).expect(name), b"", "{name}");
        }
        let (first, second) =
            (open(&aq, "vm1/ctl", libc::O_RDWR), open(&aq, "vm1/ctl", libc::O_RDWR));
        assert_errno((&first).write(b"nonsense"), EINVAL);
        assert_errno((&first).write(b"stop"), libc::ECANCELED);
        assert_errno((&second).write(b"stop"), libc::EALREADY);
        assert!(read_once(&first).expect("results").starts_with("error: unknown verb"));
        assert_errno((&first).write(b"stop"), libc::EALREADY);
        assert_eq!(read_once(&second).expect("results"), "error: stop: already stopped\n");
        assert_eq!(read_once(&second).expect("the end"), "");
    }

    #[test]
    fn lines_before_a_bad_one_are_carried_out_and_none_after_it() {
        let aq = mounted();
        let file = open(&aq, "vm1/ctl", libc::O_RDWR);
        let lines = b"port add 8080:80\nport add nonsense\nport add 8081:81\n";
        assert_errno((&file).write(lines), EINVAL);
        let results = read_once(&file).expect("results");
        assert!(results.starts_with("ok\nerror: ") && results.lines().count() == 2, "{results}");
        assert_eq!(aq.read("vm1/config/ports"), "tcp:127.0.0.1:8080:80");
    }

    #[test]
    fn it_has_no_offset_and_neither_truncation_nor_append_means_anything() {
        let aq = mounted();
        for name in CONTROLS {
            let mut file = open(&aq, name, libc::O_RDWR | libc::O_TRUNC | libc::O_APPEND);
            assert_errno(file.seek(SeekFrom::Start(0)), ESPIPE);
            assert_errno(file.read_at(&mut [0], 0), ESPIPE);
            truncate(&aq.path(name)).expect("without effect");
        }
    }
}

mod stream {
    use super::*;

    #[test]
    fn it_has_no_offset() {
        let aq = mounted();
        for name in STREAMS {
            let mut file = open(&aq, name, libc::O_RDONLY);
            assert_errno(file.seek(SeekFrom::Start(0)), ESPIPE);
            assert_errno(file.read_at(&mut [0], 0), ESPIPE);
        }
    }

    #[test]
    fn with_o_nonblock_a_read_is_eagain_and_with_o_nofollow_the_end() {
        let aq = mounted();
        for name in ["vm1/events", ".events"] {
            assert_errno(read_once(&open(&aq, name, libc::O_NONBLOCK)), libc::EAGAIN);
            assert_eq!(read_once(&open(&aq, name, libc::O_NOFOLLOW)).expect("the end"), "");
        }
    }

    #[test]
    fn each_open_is_a_reader_of_its_own() {
        let aq = mounted();
        let readers = [(); 2].map(|()| open(&aq, "vm1/events", libc::O_NONBLOCK));
        aq.write("vm1/config/cpus", "2").expect("a value");
        for reader in &readers {
            assert!(read_once(reader).expect("an event").ends_with(" config cpus\n"));
            assert_errno(read_once(reader), libc::EAGAIN);
        }
    }

    #[test]
    fn those_of_a_machine_are_ehostdown_while_the_vm_is_off() {
        let aq = mounted();
        for name in ["vm1/console", "vm1/ready", "vm1/qmp"] {
            assert_errno(open_with(&aq.path(name), libc::O_RDONLY), libc::EHOSTDOWN);
        }
        assert_errno(aq.write("vm1/exec", "true"), libc::EHOSTDOWN);
        assert_eq!(aq.read("vm1/wait"), "stopped");
    }

    #[test]
    fn one_for_reading_cannot_be_written_and_truncation_has_no_effect() {
        let aq = mounted();
        for name in STREAMS {
            assert_errno(open_with(&aq.path(name), libc::O_WRONLY), EACCES);
            assert_errno(truncate(&aq.path(name)), EACCES);
        }
        open(&aq, "vm1/jobs/b/stdin", libc::O_WRONLY | libc::O_TRUNC);
        assert_eq!(aq.read("vm1/jobs/b/status"), "new");
    }
}

mod link {
    use super::*;

    #[test]
    fn it_is_followed_and_its_target_may_be_absent() {
        let aq = mounted();
        let disk = fs::read_link(aq.path("vm1/disk")).expect("a link");
        assert!(disk.is_absolute() && disk.ends_with("disk.qcow2"), "{disk:?}");
        assert_errno(File::open(aq.path("vm1/disk")), libc::ENOENT);
        assert_errno(open_with(&aq.path("vm1/disk"), libc::O_NOFOLLOW), libc::ELOOP);
        assert_eq!(fs::read_link(aq.path("vm1/tty")).expect("a link"), Path::new("console"));
        assert_errno(File::open(aq.path("vm1/tty")), libc::EHOSTDOWN);
        let meta = fs::symlink_metadata(aq.path("vm1/disk")).expect("a link");
        assert!(meta.file_type().is_symlink() && meta.permissions().mode() & 0o777 == 0o777);
    }

    #[test]
    fn users_make_them_in_images_alone() {
        let aq = mounted();
        let link = |name: &str| std::os::unix::fs::symlink("x", aq.path(name));
        assert_errno(link("x"), EPERM);
        assert_errno(link("vm1/x"), EPERM);
        link(".images/y").expect("an alias");
        assert_eq!(fs::read_link(aq.path(".images/y")).expect("a link"), Path::new("x"));
        fs::rename(aq.path(".images/y"), aq.path(".images/z")).expect("another name");
        fs::remove_file(aq.path(".images/z")).expect("an unlink");
        assert!(aq.path(".images/x").exists(), "the image stays");
    }
}

mod directory {
    use super::*;

    #[test]
    fn mkdir_is_for_those_that_users_fill() {
        let aq = mounted();
        let make = |name: &str| fs::create_dir(aq.path(name));
        for name in ["vm2", ".images/y", "vm1/jobs/c"] {
            make(name).expect(name);
            assert_errno(make(name), libc::EEXIST);
        }
        for name in ["vm1/sub", "vm1/config/sub", ".trash/vm3", ".defaults/sub"] {
            assert_errno(make(name), EPERM);
        }
        // The kernel's answer, or ours to a user whom modes do not bind.
        let errno = make(".docs/sub").expect_err("a page's directory").raw_os_error();
        assert!(errno == Some(EACCES) || errno == Some(EPERM), "{errno:?}");
        assert_errno(make(".images/.x"), EINVAL);
        assert_errno(make("vm1/jobs/.x"), EINVAL);
    }

    #[test]
    fn rmdir_removes_what_users_made_and_has_no_effect_on_a_part_of_a_vm() {
        let aq = mounted();
        let remove = |name: &str| fs::remove_dir(aq.path(name));
        for name in ["vm1/config", "vm1/snapshots", "vm1/jobs"] {
            remove(name).expect(name);
            assert!(aq.path(name).is_dir(), "{name}");
        }
        for name in ["vm1/jobs/b", ".images/x", "vm1"] {
            remove(name).expect(name);
            assert!(!aq.path(name).exists(), "{name}");
            assert_errno(remove(name), libc::ENOENT);
        }
        for name in [".images", ".nets", ".trash", ".docs", ".defaults"] {
            assert_errno(remove(name), EPERM);
        }
        assert_errno(remove(".host"), libc::ENOTDIR);
    }

    #[test]
    fn rename_is_for_what_users_made_and_stays_in_the_directory() {
        let aq = mounted();
        let rename = |from: &str, to: &str| fs::rename(aq.path(from), aq.path(to));
        rename("vm1", "vm2").expect("a VM");
        rename("vm2/jobs/b", "vm2/jobs/c").expect("a job");
        fs::create_dir(aq.path("vm3")).expect("a VM");
        assert_errno(rename("vm2", "vm3"), libc::EEXIST);
        assert_errno(rename("vm2", "vm3/vm2"), EINVAL);
        assert_errno(rename("vm2", ".trash/vm2"), EINVAL);
        assert_errno(rename("vm2/config", "vm2/other"), EINVAL);
        assert_errno(rename("vm2", "VM"), EINVAL);
        let with = |to: &str, flags| {
            let here = rustix::fs::CWD;
            let done = rustix::fs::renameat_with(here, aq.path("vm2"), here, aq.path(to), flags);
            done.map_err(io::Error::from)
        };
        assert_errno(with("vm3", RenameFlags::EXCHANGE), EINVAL);
        with("vm4", RenameFlags::NOREPLACE).expect("a free name");
    }

    #[test]
    fn a_listing_is_of_its_open_and_counts_sub_directories_as_links() {
        let aq = mounted();
        let mut listing = fs::read_dir(aq.dir()).expect("a listing");
        let first = listing.next().expect("a name").expect("a name");
        fs::create_dir(aq.path("vm2")).expect("a VM");
        let names: Vec<_> = listing.map(|entry| entry.expect("a name").file_name()).collect();
        assert!(first.file_name() != *"vm2" && !names.iter().any(|name| name == OsStr::new("vm2")));
        assert!(
            fs::read_dir(aq.dir())
                .expect("a listing")
                .any(|e| e.expect("a name").file_name() == *"vm2")
        );
        // config, disks, jobs, probes, shares, snapshots
        assert_eq!(fs::metadata(aq.path("vm1")).expect("a VM").nlink(), 8);
        assert_errno(open_with(&aq.path("vm1"), libc::O_WRONLY), EISDIR);
    }

    #[test]
    fn the_file_system_has_no_size() {
        let aq = mounted();
        let stat = rustix::fs::statvfs(aq.dir()).expect("statvfs");
        assert_eq!((stat.f_blocks, stat.f_bfree, stat.f_files), (0, 0, 0));
    }
}

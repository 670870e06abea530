//! A launch as QEMU's command line: pure, no I/O and no look at the host.
//!
//! QEMU runs in the VM's directory, so the VM's own files are named relatively. A string that is
//! not ours appears only where QEMU does not parse commas: as a whole argument, or in JSON.

use std::ffi::OsString;
use std::path::Path;
use std::{fs, io};

use serde_json::{Value, json};
use uuid::Uuid;

use crate::store::layout::names;
use crate::vm::backend::{Accel, AccelKind, BackendError, DiskFormat, LaunchPlan};
use crate::vm::spec::VmSpec;
use crate::vm::spec::net::{Forward, Mac};

/// The name of the virtio-serial port on which the guest announces its SSH server, and its id in
/// QMP's events.
pub const READY_PORT: &str = "org.aqfs.ready";
/// The id of that port's device and character device.
pub const READY_ID: &str = "ready";
/// The node that takes what the guest writes to its disk.
pub const DISK_NODE: &str = "disk";
/// The network's id.
pub const NET_ID: &str = "net";
/// The CD-ROM drive's id.
pub const DRIVE_ID: &str = "cdrom0";
/// The nodes of discs: the next one is opened while the last is still in the drive.
pub const DISC_NODES: [&str; 2] = ["disc", "disc-2"];
/// Where the guest finds its seed in fw_cfg.
const SEED_KEY: &str = "opt/org.aqfs/seed";

/// What a launch needs beside its plan.
#[derive(Clone, Debug)]
pub struct Facts<'a> {
    /// The machine type with its version: `pc-q35-7.2`.
    pub machine: &'a str,
    /// A fresh generation: a guest that sees a new one reseeds its random numbers.
    pub generation: Uuid,
    /// Whether the VM's directory holds a seed.
    pub seed: Seed,
}

/// Whether a VM has a seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seed {
    /// It is handed over in fw_cfg.
    FwCfg,
    /// It is a disk of its own.
    Nocloud,
    /// There is none.
    Absent,
}

/// Composes QEMU's arguments.
///
/// # Errors
/// A path of the image that is not UTF-8, which JSON cannot carry; settings that do not fit it.
pub fn arguments(plan: &LaunchPlan, facts: &Facts<'_>) -> Result<Vec<OsString>, BackendError> {
    let mut args = Args::default();
    identity(&mut args, plan);
    machine(&mut args, plan, facts);
    kernel(&mut args, plan)?;
    disk(&mut args, plan)?;
    if facts.seed == Seed::Nocloud {
        cidata(&mut args);
    }
    drive(&mut args, plan)?;
    devices(&mut args, plan, facts);
    channels(&mut args, facts);
    confinement(&mut args);
    if plan.paused {
        args.flag("-S");
    }
    args.0.extend(plan.spec.qemu_args.iter().map(OsString::from));
    Ok(args.0)
}

#[derive(Default)]
struct Args(Vec<OsString>);

impl Args {
    fn flag(&mut self, flag: &str) {
        self.0.push(flag.into());
    }

    fn pair(&mut self, option: &str, value: impl Into<OsString>) {
        self.0.extend([option.into(), value.into()]);
    }
}

fn identity(args: &mut Args, plan: &LaunchPlan) {
    for flag in ["-nodefaults", "-no-user-config"] {
        args.flag(flag);
    }
    args.pair("-display", "none");
    let name = plan.name.replace(',', ",,");
    args.pair("-name", format!("guest={name},debug-threads=on"));
    args.pair("-uuid", plan.uuid.to_string());
}

/// Without USB, SATA and SMBus: nothing hangs on them, and a guest would spend its boot probing.
fn machine(args: &mut Args, plan: &LaunchPlan, facts: &Facts<'_>) {
    let version = facts.machine;
    let off = "usb=off,vmport=off,smbus=off,sata=off";
    args.pair("-machine", format!("{version},{off},memory-backend=ram"));
    args.pair("-accel", accelerator(&plan.accel, plan.spec.cpus, plan.spec.memory));
    args.pair("-cpu", plan.accel.cpu.clone());
    args.pair("-smp", plan.spec.cpus.to_string());
    let mebibytes = plan.spec.memory >> 20;
    args.pair("-m", format!("{mebibytes}M"));
    let ram = json!({"qom-type": "memory-backend-ram", "id": "ram", "size": mebibytes << 20});
    args.pair("-object", ram.to_string());
    args.pair("-rtc", "base=utc");
    if let Some(firmware) = &plan.spec.firmware {
        args.pair("-bios", firmware);
    }
}

/// Returns the MiB in which TCG keeps what it has translated. By default it is up to 1 GiB, more
/// than most guests have. 64 MiB boot a small guest in the same processor time; one with more memory
/// runs larger programs, so it gets a quarter of that, up to half of the default.
pub fn translation_cache(memory: u64) -> u64 {
    (memory >> 22).clamp(64, 512)
}

/// Returns the value of `-accel`. For a single processor, the translator with threads takes 5 to
/// 10 % more time than the one without.
pub fn accelerator(accel: &Accel, cpus: u32, memory: u64) -> String {
    match accel.kind {
        AccelKind::Kvm => "kvm".to_owned(),
        AccelKind::Tcg => {
            let thread = if cpus == 1 { "single" } else { "multi" };
            let cache = translation_cache(memory);
            format!("tcg,thread={thread},tb-size={cache}")
        }
    }
}

fn kernel(args: &mut Args, plan: &LaunchPlan) -> Result<(), BackendError> {
    let (spec, image) = (&plan.spec, &plan.image);
    let Some(kernel) = spec.kernel.as_ref().or(image.kernel.as_ref()) else {
        return refuse_without_kernel(spec);
    };
    args.pair("-kernel", kernel);
    // The image's own holds the modules of the image's kernel, which no other one can use.
    let own = image.initrd.as_ref().filter(|_| spec.kernel.is_none());
    if let Some(initrd) = spec.initrd.as_ref().or(own) {
        args.pair("-initrd", initrd);
    }
    let words = [image.cmdline.as_str(), spec.cmdline.as_deref().unwrap_or_default()];
    let words: Vec<&str> = words.into_iter().filter(|w| !w.is_empty()).collect();
    if !words.is_empty() {
        args.pair("-append", words.join(" "));
    }
    Ok(())
}

/// The boot loader on the disk would not hear of them.
fn refuse_without_kernel(spec: &VmSpec) -> Result<(), BackendError> {
    let given = [("initrd", spec.initrd.is_some()), ("cmdline", spec.cmdline.is_some())];
    match given.into_iter().find(|(_, given)| *given) {
        None => Ok(()),
        Some((key, _)) => Err(BackendError::Unfit {
            key,
            reason: "the image boots from its own disk; set config/kernel too, or \
                `echo none` into this"
                .to_owned(),
        }),
    }
}

/// Looks for the files that settings name.
///
/// # Errors
/// `NoFile`, naming the setting.
pub fn check_files(spec: &VmSpec) -> Result<(), BackendError> {
    let files = [
        ("kernel", &spec.kernel),
        ("initrd", &spec.initrd),
        ("firmware", &spec.firmware),
        ("cdrom", &spec.cdrom),
    ];
    files.into_iter().try_for_each(|(key, path)| check_file(key, path.as_deref()))
}

/// Looks for the file that a setting names.
///
/// # Errors
/// `NoFile`
pub fn check_file(key: &'static str, path: Option<&Path>) -> Result<(), BackendError> {
    let Some(path) = path else { return Ok(()) };
    let is_file = |meta: fs::Metadata| match meta.is_file() {
        true => Ok(()),
        false => Err(io::Error::other("not a file")),
    };
    // Opened, because what may not be read is as good as absent.
    fs::File::open(path).and_then(|f| f.metadata()).and_then(is_file).map_err(|e| {
        BackendError::NoFile { key, path: path.display().to_string(), reason: e.to_string() }
    })
}

/// Every node is spelled out down to the base: QEMU then takes no backing file from an image's own
/// header, which might name any file of the host.
fn disk(args: &mut Args, plan: &LaunchPlan) -> Result<(), BackendError> {
    let base = base(&plan.image.disk, plan.image.format)?;
    let node = match plan.spec.ephemeral {
        false => written(names::DISK, &base),
        true => {
            let file = json!({"driver": "file", "filename": names::DISK, "read-only": true});
            let kept = json!({
                "driver": "qcow2",
                "node-name": "kept",
                "read-only": true,
                "file": file,
                "backing": base,
            });
            written(names::TEMPORARY_DISK, &kept)
        }
    };
    args.pair("-blockdev", node.to_string());
    // A full disk of the host pauses the guest, which goes on when there is room again.
    let policy = "werror=enospc,rerror=report";
    args.pair("-device", format!("virtio-blk-pci,drive=disk,id=disk0,{policy}"));
    Ok(())
}

/// Read-only, and after the disk, from which firmware then boots.
fn cidata(args: &mut Args) {
    let file = json!({"driver": "file", "filename": names::CIDATA, "read-only": true});
    let node = json!({"driver": "raw", "node-name": "cidata", "read-only": true, "file": file});
    args.pair("-blockdev", node.to_string());
    args.pair("-device", "virtio-blk-pci,drive=cidata,id=cidata0");
}

/// The node that takes what the guest writes.
fn written(filename: &str, backing: &Value) -> Value {
    json!({
        "driver": "qcow2",
        "node-name": DISK_NODE,
        "discard": "unmap",
        "file": {"driver": "file", "filename": filename, "discard": "unmap"},
        "backing": backing,
    })
}

/// A drive only where a disc is wanted at the start: every guest would spend its boot probing the
/// controller.
fn drive(args: &mut Args, plan: &LaunchPlan) -> Result<(), BackendError> {
    let Some(path) = &plan.spec.cdrom else { return Ok(()) };
    let [node, ..] = DISC_NODES;
    args.pair("-blockdev", disc(path, node)?.to_string());
    args.pair("-device", "ich9-ahci,id=ahci");
    args.pair("-device", format!("ide-cd,bus=ahci.0,drive={node},id={DRIVE_ID}"));
    Ok(())
}

/// Returns the node of a disc, as `-blockdev` and QMP's `blockdev-add` take it.
///
/// # Errors
/// A path that is not UTF-8.
pub fn disc(path: &Path, node: &str) -> Result<Value, BackendError> {
    let file = json!({"driver": "file", "filename": utf8(path)?, "read-only": true});
    Ok(json!({"driver": "raw", "node-name": node, "read-only": true, "file": file}))
}

fn utf8(path: &Path) -> Result<&str, BackendError> {
    path.to_str().ok_or_else(|| BackendError::Io {
        what: format!("the file {}", path.display()),
        error: "QEMU cannot be told a path that is not UTF-8; move the store".to_owned(),
        errno: libc::EINVAL,
    })
}

fn base(path: &Path, format: DiskFormat) -> Result<Value, BackendError> {
    let filename = utf8(path)?;
    let file = json!({"driver": "file", "filename": filename, "read-only": true});
    let mut node = json!({"driver": format, "node-name": "base", "read-only": true, "file": file});
    if format == DiskFormat::Qcow2 {
        node["backing"] = Value::Null;
    }
    Ok(node)
}

fn devices(args: &mut Args, plan: &LaunchPlan, facts: &Facts<'_>) {
    // Port 0: the kernel picks a free one, which is read back over QMP.
    let mut net = format!("user,id={NET_ID},hostfwd=tcp:127.0.0.1:0-:22");
    for forward in &plan.spec.ports {
        net.push_str(",hostfwd=");
        net.push_str(&rule(forward));
    }
    args.pair("-netdev", net);
    let mac = plan.spec.mac.unwrap_or_else(|| Mac::of(plan.uuid));
    let generation = facts.generation;
    for device in [
        format!("virtio-net-pci,netdev=net,id=net0,mac={mac},romfile="),
        "virtio-rng-pci".to_owned(),
        "virtio-balloon-pci,free-page-reporting=on".to_owned(),
        format!("vmgenid,guid={generation}"),
    ] {
        args.pair("-device", device);
    }
}

/// Returns a forward as QEMU's option and its monitor take it.
pub fn rule(forward: &Forward) -> String {
    let Forward { protocol, address, host, guest } = forward;
    format!("{}:{address}:{host}-:{guest}", protocol.word())
}

/// The serial line, QMP, the ready port (its data goes nowhere: that the guest opens it is the
/// news) and the seed.
fn channels(args: &mut Args, facts: &Facts<'_>) {
    let (serial, log, qmp) = (names::SERIAL, names::CONSOLE_LOG, names::QMP);
    let server = "server=on,wait=off";
    args.pair(
        "-chardev",
        format!("socket,id=serial,path={serial},{server},logfile={log},logappend=on"),
    );
    args.pair("-serial", "chardev:serial");
    args.pair("-chardev", format!("socket,id=qmp,path={qmp},{server}"));
    args.pair("-mon", "chardev=qmp,mode=control");
    args.pair("-chardev", format!("null,id={READY_ID}"));
    args.pair("-device", "virtio-serial-pci");
    args.pair(
        "-device",
        format!("virtserialport,chardev={READY_ID},name={READY_PORT},id={READY_ID}"),
    );
    if facts.seed == Seed::FwCfg {
        let seed = names::SEED;
        args.pair("-fw_cfg", format!("name={SEED_KEY},file={seed}"));
    }
}

/// No new processes, no other user, no scheduling of others: whoever breaks out of the guest has
/// our files and nothing more to start.
fn confinement(args: &mut Args) {
    let denied = "obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";
    args.pair("-sandbox", format!("on,{denied}"));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::vm::backend::{BootImage, SeedKind};
    use crate::vm::spec::VmSpec;

    fn plan(kind: AccelKind, cpu: &str) -> LaunchPlan {
        LaunchPlan {
            uuid: Uuid::from_u128(0x1234_5678_9abc_4def_8123_4567_89ab_cdef),
            name: "vm1".into(),
            dir: "/store/vms/x".into(),
            spec: VmSpec::default(),
            image: BootImage {
                name: "tiny".into(),
                digest: "sha256:0".into(),
                disk: "/store/images/tiny/disk, \"1\".raw".into(),
                format: DiskFormat::Raw,
                disk_size: 64 << 20,
                kernel: Some("/store/images/tiny/vmlinuz".into()),
                initrd: Some("/store/images/tiny/initrd".into()),
                cmdline: "console=ttyS0 root=/dev/vda, rw".into(),
                announces: true,
                seed: SeedKind::FwCfg,
            },
            accel: Accel { kind, cpu: cpu.into(), reason: String::new() },
            paused: false,
        }
    }

    fn facts(seed: Seed) -> Facts<'static> {
        Facts { machine: "pc-q35-7.2", generation: Uuid::from_u128(1), seed }
    }

    /// One option with its value a line.
    fn lines(plan: &LaunchPlan, seed: Seed) -> String {
        let args = arguments(plan, &facts(seed)).unwrap();
        let words: Vec<_> = args.iter().map(|a| a.to_string_lossy()).collect();
        let mut text = words.join(" ");
        for option in words.iter().filter(|w| w.starts_with('-')).skip(1) {
            text = text.replacen(&format!(" {option} "), &format!("\n{option} "), 1);
        }
        text
    }

    #[test]
    fn a_directly_booted_guest_under_tcg() {
        insta::assert_snapshot!(lines(&plan(AccelKind::Tcg, "max"), Seed::FwCfg), @r#"
        -nodefaults
        -no-user-config
        -display none
        -name guest=vm1,debug-threads=on
        -uuid 12345678-9abc-4def-8123-456789abcdef
        -machine pc-q35-7.2,usb=off,vmport=off,smbus=off,sata=off,memory-backend=ram
        -accel tcg,thread=single,tb-size=64
        -cpu max
        -smp 1
        -m 256M
        -object {"id":"ram","qom-type":"memory-backend-ram","size":268435456}
        -rtc base=utc
        -kernel /store/images/tiny/vmlinuz
        -initrd /store/images/tiny/initrd
        -append console=ttyS0 root=/dev/vda, rw
        -blockdev {"backing":{"driver":"raw","file":{"driver":"file","filename":"/store/images/tiny/disk, \"1\".raw","read-only":true},"node-name":"base","read-only":true},"discard":"unmap","driver":"qcow2","file":{"discard":"unmap","driver":"file","filename":"disk.qcow2"},"node-name":"disk"}
        -device virtio-blk-pci,drive=disk,id=disk0,werror=enospc,rerror=report
        -netdev user,id=net,hostfwd=tcp:127.0.0.1:0-:22
        -device virtio-net-pci,netdev=net,id=net0,mac=52:54:00:ab:cd:ef,romfile=
        -device virtio-rng-pci
        -device virtio-balloon-pci,free-page-reporting=on
        -device vmgenid,guid=00000000-0000-0000-0000-000000000001
        -chardev socket,id=serial,path=serial,server=on,wait=off,logfile=console.log,logappend=on
        -serial chardev:serial
        -chardev socket,id=qmp,path=qmp,server=on,wait=off
        -mon chardev=qmp,mode=control
        -chardev null,id=ready
        -device virtio-serial-pci
        -device virtserialport,chardev=ready,name=org.aqfs.ready,id=ready
        -fw_cfg name=opt/org.aqfs/seed,file=seed.tar
        -sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny
        "#);
    }

    #[test]
    fn a_disk_booted_guest_under_kvm() {
        let mut plan = plan(AccelKind::Kvm, "host,-arch-capabilities");
        plan.image.kernel = None;
        plan.image.format = DiskFormat::Qcow2;
        plan.spec.cpus = 4;
        plan.spec.memory = 2 << 30;
        plan.spec.qemu_args = vec!["-device".into(), "pcie-root-port,id=x".into()];
        plan.paused = true;
        insta::assert_snapshot!(lines(&plan, Seed::Absent), @r#"
        -nodefaults
        -no-user-config
        -display none
        -name guest=vm1,debug-threads=on
        -uuid 12345678-9abc-4def-8123-456789abcdef
        -machine pc-q35-7.2,usb=off,vmport=off,smbus=off,sata=off,memory-backend=ram
        -accel kvm
        -cpu host,-arch-capabilities
        -smp 4
        -m 2048M
        -object {"id":"ram","qom-type":"memory-backend-ram","size":2147483648}
        -rtc base=utc
        -blockdev {"backing":{"backing":null,"driver":"qcow2","file":{"driver":"file","filename":"/store/images/tiny/disk, \"1\".raw","read-only":true},"node-name":"base","read-only":true},"discard":"unmap","driver":"qcow2","file":{"discard":"unmap","driver":"file","filename":"disk.qcow2"},"node-name":"disk"}
        -device virtio-blk-pci,drive=disk,id=disk0,werror=enospc,rerror=report
        -netdev user,id=net,hostfwd=tcp:127.0.0.1:0-:22
        -device virtio-net-pci,netdev=net,id=net0,mac=52:54:00:ab:cd:ef,romfile=
        -device virtio-rng-pci
        -device virtio-balloon-pci,free-page-reporting=on
        -device vmgenid,guid=00000000-0000-0000-0000-000000000001
        -chardev socket,id=serial,path=serial,server=on,wait=off,logfile=console.log,logappend=on
        -serial chardev:serial
        -chardev socket,id=qmp,path=qmp,server=on,wait=off
        -mon chardev=qmp,mode=control
        -chardev null,id=ready
        -device virtio-serial-pci
        -device virtserialport,chardev=ready,name=org.aqfs.ready,id=ready
        -sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny
        -S
        -device pcie-root-port,id=x
        "#);
    }

    /// The values of an option, in order.
    fn values(args: &[OsString], option: &str) -> Vec<String> {
        let after = args.iter().zip(args.iter().skip(1)).filter(|(o, _)| *o == option);
        after.map(|(_, value)| value.to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn every_setting_has_its_place() {
        let mut plan = plan(AccelKind::Tcg, "max");
        plan.spec.kernel = Some("/boot/my kernel".into());
        plan.spec.cmdline = Some("quiet a,b".into());
        plan.spec.firmware = Some("/fw/OVMF, 4M.fd".into());
        plan.spec.cdrom = Some("/isos/a, \"b\".iso".into());
        plan.spec.ephemeral = true;
        plan.spec.mac = Some("52:54:00:00:00:01".parse().unwrap());
        plan.spec.ports = vec!["8080:80".parse().unwrap(), "udp:0.0.0.0:0:53".parse().unwrap()];
        let args = arguments(&plan, &facts(Seed::Absent)).unwrap();
        let of = |option: &str| values(&args, option);
        assert_eq!(of("-kernel"), ["/boot/my kernel"]);
        assert_eq!(of("-initrd"), Vec::<String>::new());
        assert_eq!(of("-append"), ["console=ttyS0 root=/dev/vda, rw quiet a,b"]);
        assert_eq!(of("-bios"), ["/fw/OVMF, 4M.fd"]);
        let net = "user,id=net,hostfwd=tcp:127.0.0.1:0-:22,hostfwd=tcp:127.0.0.1:8080-:80,\
            hostfwd=udp:0.0.0.0:0-:53";
        assert_eq!(of("-netdev"), [net]);
        insta::assert_snapshot!(of("-blockdev").join("\n"), @r#"
        {"backing":{"backing":{"driver":"raw","file":{"driver":"file","filename":"/store/images/tiny/disk, \"1\".raw","read-only":true},"node-name":"base","read-only":true},"driver":"qcow2","file":{"driver":"file","filename":"disk.qcow2","read-only":true},"node-name":"kept","read-only":true},"discard":"unmap","driver":"qcow2","file":{"discard":"unmap","driver":"file","filename":"temporary.qcow2"},"node-name":"disk"}
        {"driver":"raw","file":{"driver":"file","filename":"/isos/a, \"b\".iso","read-only":true},"node-name":"disc","read-only":true}
        "#);
        let devices = of("-device");
        assert!(devices.iter().any(|d| d.contains("mac=52:54:00:00:00:01,")), "{devices:?}");
        let drive = "ide-cd,bus=ahci.0,drive=disc,id=cdrom0".to_owned();
        assert!(devices.contains(&drive), "{devices:?}");
        plan.spec.initrd = Some("/boot/initrd".into());
        let args = arguments(&plan, &facts(Seed::Absent)).unwrap();
        assert_eq!(values(&args, "-initrd"), ["/boot/initrd"]);
    }

    #[test]
    fn a_cloud_image_has_its_seed_as_a_second_disk() {
        let mut plan = plan(AccelKind::Tcg, "max");
        plan.image.kernel = None;
        let args = arguments(&plan, &facts(Seed::Nocloud)).unwrap();
        let disks: Vec<_> = values(&args, "-device")
            .into_iter()
            .filter_map(|d| {
                Some(d.strip_prefix("virtio-blk-pci,drive=")?.split(',').next()?.to_owned())
            })
            .collect();
        assert_eq!(disks, ["disk", "cidata"]);
        assert!(
            values(&args, "-blockdev")[1].contains(r#""filename":"cidata.img","read-only":true"#)
        );
        assert_eq!(values(&args, "-fw_cfg"), Vec::<String>::new());
    }

    #[test]
    fn a_command_line_needs_a_kernel_to_take_it() {
        let mut plan = plan(AccelKind::Tcg, "max");
        plan.image.kernel = None;
        plan.spec.cmdline = Some("quiet".into());
        let error = arguments(&plan, &facts(Seed::Absent)).unwrap_err();
        assert!(matches!(error, BackendError::Unfit { key: "cmdline", .. }), "{error}");
        plan.spec.kernel = Some("/boot/vmlinuz".into());
        assert!(arguments(&plan, &facts(Seed::Absent)).is_ok());
    }

    #[test]
    fn a_file_that_is_absent_is_named_with_its_setting() {
        let spec = VmSpec { cdrom: Some("/nowhere/x.iso".into()), ..VmSpec::default() };
        let error = check_files(&spec).unwrap_err();
        assert!(error.to_string().starts_with("config/cdrom: /nowhere/x.iso: No such"), "{error}");
        assert!(check_file("kernel", Some(Path::new("/"))).is_err());
    }

    #[test]
    fn the_translators_cache_follows_the_guests_memory_within_bounds() {
        let tcg = plan(AccelKind::Tcg, "max").accel;
        let table = [
            (1, 32 << 20, "tcg,thread=single,tb-size=64"),
            (2, 1 << 30, "tcg,thread=multi,tb-size=256"),
            (8, 64 << 30, "tcg,thread=multi,tb-size=512"),
        ];
        for (cpus, memory, expected) in table {
            assert_eq!(accelerator(&tcg, cpus, memory), expected);
        }
    }

    #[test]
    fn a_path_that_is_not_utf8_is_refused_with_its_reason() {
        use std::os::unix::ffi::OsStringExt;
        let mut plan = plan(AccelKind::Tcg, "max");
        plan.image.disk = OsString::from_vec(b"/images/\xff.raw".to_vec()).into();
        let error = arguments(&plan, &facts(Seed::Absent)).unwrap_err();
        assert!(error.to_string().contains("not UTF-8"), "{error}");
    }

    proptest! {
        /// Strings from outside stay within their own argument and never become a QEMU option.
        #[test]
        fn no_string_leaves_its_place(path in "/\\PC{0,40}", cmdline in "\\PC{1,40}", name in "\\PC{0,20}") {
            let mut plan = plan(AccelKind::Tcg, "max");
            let usual = arguments(&plan, &facts(Seed::Absent)).unwrap();
            plan.image.disk = (&path).into();
            plan.image.cmdline.clone_from(&cmdline);
            plan.name.clone_from(&name);
            let args = arguments(&plan, &facts(Seed::Absent)).unwrap();
            let changed: Vec<_> = (0..args.len()).filter(|i| args[*i] != usual[*i]).collect();
            prop_assert_eq!(args.len(), usual.len());
            for i in changed {
                let text = args[i].to_str().unwrap();
                match args[i - 1].to_str().unwrap() {
                    "-name" => {
                        let bare = text.replace(",,", "");
                        prop_assert_eq!(bare.matches(',').count(), 1);
                    }
                    "-append" => prop_assert_eq!(text, &cmdline),
                    "-blockdev" => {
                        let node: Value = serde_json::from_str(text).unwrap();
                        prop_assert_eq!(&node["backing"]["file"]["filename"], &json!(path));
                    }
                    other => prop_assert!(false, "{}", other),
                }
            }
        }
    }
}

//! Command lines, whole where they matter.

use proptest::prelude::*;

use super::*;
use crate::arch::Arch;
use crate::vm::backend::DiskFormat;
use crate::vm::backend::{BootImage, Lifetime, SeedKind};
use crate::vm::spec::VmSpec;
use crate::vm::template::{Saved, Shape, Template};

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
            kernel: Some("/store/images/tiny/vmlinux".into()),
            efi_kernel: Some("/store/images/tiny/vmlinuz".into()),
            initrd: Some("/store/images/tiny/initrd".into()),
            cmdline: "console=ttyS0 root=/dev/vda, rw".into(),
            announces: true,
            seed: SeedKind::FwCfg,
            nvram: None,
        },
        accel: Accel { kind, cpu: cpu.into(), reason: String::new() },
        hardware: Hardware::NEWEST,
        paused: false,
        base: vec![Layer {
            path: "/store/images/tiny/disk, \"1\".raw".into(),
            format: DiskFormat::Raw,
        }],
        nics: Vec::new(),
        disks: Vec::new(),
        memory: Memory::Own,
        cold: None,
        lifetime: Lifetime::Own,
    }
}

/// A plan for tests of what reads one.
pub(in crate::qemu) fn plan_on(base: Vec<Layer>) -> LaunchPlan {
    LaunchPlan { base, ..plan(AccelKind::Tcg, "max") }
}

fn facts(seed: SeedMedium) -> LaunchDetails<'static> {
    let generation = Uuid::from_u128(1);
    LaunchDetails { machine: "pc-q35-7.2", generation, seed, ram: Some(9), code: None }
}

/// One option with its value a line.
fn lines(plan: &LaunchPlan, seed: SeedMedium) -> String {
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
    insta::assert_snapshot!(lines(&plan(AccelKind::Tcg, "max"), SeedMedium::FwCfg), @r#"
    -nodefaults
    -no-user-config
    -display none
    -name guest=vm1,debug-threads=on
    -uuid 12345678-9abc-4def-8123-456789abcdef
    -machine pc-q35-7.2,usb=off,vmport=off,smbus=off,sata=off,memory-backend=ram
    -accel tcg,thread=single,tb-size=64
    -cpu max
    -smp 1,maxcpus=8
    -m 256M
    -object {"id":"ram","qom-type":"memory-backend-ram","size":268435456}
    -rtc base=utc
    -kernel /store/images/tiny/vmlinux
    -initrd /store/images/tiny/initrd
    -append console=ttyS0 root=/dev/vda, rw
    -blockdev {"backing":{"driver":"raw","file":{"driver":"file","filename":"/store/images/tiny/disk, \"1\".raw","read-only":true},"node-name":"base","read-only":true},"discard":"unmap","driver":"qcow2","file":{"discard":"unmap","driver":"file","filename":"disk.qcow2"},"node-name":"disk"}
    -device virtio-blk-pci,drive=disk,id=disk0,werror=enospc,rerror=report,num-queues=1
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
    -chardev socket,id=identity,path=identity,server=on,wait=off
    -device virtserialport,chardev=identity,name=org.aqfs.identity,id=identity
    -fw_cfg name=opt/org.aqfs/seed,file=seed.tar
    -device pcie-root-port,id=spare0,addr=0x1c.0,chassis=100,slot=1,multifunction=on
    -device pcie-root-port,id=spare1,addr=0x1c.1,chassis=100,slot=2
    -device pcie-root-port,id=spare2,addr=0x1c.2,chassis=100,slot=3
    -device pcie-root-port,id=spare3,addr=0x1c.3,chassis=100,slot=4
    -sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny
    "#);
}

#[test]
fn a_disk_booted_guest_under_kvm() {
    let mut plan = plan(AccelKind::Kvm, "host,-arch-capabilities");
    plan.image.kernel = None;
    plan.base[0].format = DiskFormat::Qcow2;
    plan.spec.cpus = 4;
    plan.spec.memory = 2 << 30;
    plan.spec.qemu_args = vec!["-device".into(), "pcie-root-port,id=x".into()];
    plan.paused = true;
    insta::assert_snapshot!(lines(&plan, SeedMedium::Absent), @r#"
    -nodefaults
    -no-user-config
    -display none
    -name guest=vm1,debug-threads=on
    -uuid 12345678-9abc-4def-8123-456789abcdef
    -machine pc-q35-7.2,usb=off,vmport=off,smbus=off,sata=off,memory-backend=ram
    -accel kvm
    -cpu host,-arch-capabilities
    -smp 4,maxcpus=8
    -m 2048M
    -object {"id":"ram","qom-type":"memory-backend-ram","size":2147483648}
    -rtc base=utc
    -blockdev {"backing":{"backing":null,"driver":"qcow2","file":{"driver":"file","filename":"/store/images/tiny/disk, \"1\".raw","read-only":true},"node-name":"base","read-only":true},"discard":"unmap","driver":"qcow2","file":{"discard":"unmap","driver":"file","filename":"disk.qcow2"},"node-name":"disk"}
    -device virtio-blk-pci,drive=disk,id=disk0,werror=enospc,rerror=report,num-queues=1
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
    -chardev socket,id=identity,path=identity,server=on,wait=off
    -device virtserialport,chardev=identity,name=org.aqfs.identity,id=identity
    -device pcie-root-port,id=spare0,addr=0x1c.0,chassis=100,slot=1,multifunction=on
    -device pcie-root-port,id=spare1,addr=0x1c.1,chassis=100,slot=2
    -device pcie-root-port,id=spare2,addr=0x1c.2,chassis=100,slot=3
    -device pcie-root-port,id=spare3,addr=0x1c.3,chassis=100,slot=4
    -sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny
    -S
    -device pcie-root-port,id=x
    "#);
}

#[test]
fn an_arm_guest_has_its_machine_without_vmgenid_and_spare_processors() {
    let mut plan = plan(AccelKind::Tcg, "max,pauth-impdef=on");
    plan.spec.arch = Arch::Aarch64;
    let machine = LaunchDetails { machine: "virt-7.2", ..facts(SeedMedium::FwCfg) };
    let args = arguments(&plan, &machine).unwrap();
    assert_eq!(values(&args, "-machine"), ["virt-7.2,gic-version=max,memory-backend=ram"]);
    assert_eq!(values(&args, "-smp"), ["1,maxcpus=1"]);
    let devices = values(&args, "-device");
    assert!(devices.iter().all(|device| !device.starts_with("vmgenid")), "{devices:?}");
    assert!(devices.iter().any(|device| device.starts_with("pcie-root-port")), "{devices:?}");
}

#[test]
fn the_newest_hardware_is_the_first_with_room_behind_everything_else() {
    let newest = LaunchPlan {
        spec: VmSpec { cpus: 12, ..VmSpec::default() },
        ..plan(AccelKind::Tcg, "max")
    };
    let first = LaunchPlan { hardware: Hardware::FIRST, ..newest.clone() };
    let [newest, first] = [newest, first].map(|plan| lines(&plan, SeedMedium::FwCfg));
    let room: Vec<_> = newest.lines().filter(|l| l.contains("pcie-root-port")).collect();
    assert_eq!(room.len(), SPARE_PORTS as usize);
    let without = newest.lines().filter(|line| !room.contains(line)).collect::<Vec<_>>().join("\n");
    let without = without.replace("-smp 12,maxcpus=12", "-smp 12");
    assert_eq!(without.replace(",num-queues=1", ""), first);
    assert!(newest.find("pcie-root-port") > newest.rfind("virtserialport"));
    let of = |lines: &str| hardware_of(&lines.lines().map(str::to_owned).collect::<Vec<_>>());
    assert_eq!((of(&newest), of(&first)), (Hardware::NEWEST, Hardware::FIRST));
    assert_eq!(of("-smp 12,maxcpus=12"), Hardware::WITH_ROOM);
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
    plan.spec.firmware = Some(Firmware::File("/fw/OVMF, 4M.fd".into()));
    plan.spec.cdrom = Some("/isos/a, \"b\".iso".into());
    plan.spec.ephemeral = true;
    plan.spec.mac = Some("52:54:00:00:00:01".parse().unwrap());
    plan.spec.net = Network::Offline;
    plan.spec.ports = vec!["8080:80".parse().unwrap(), "udp:0.0.0.0:0:53".parse().unwrap()];
    let args = arguments(&plan, &facts(SeedMedium::Absent)).unwrap();
    let of = |option: &str| values(&args, option);
    assert_eq!(of("-kernel"), ["/boot/my kernel"]);
    assert_eq!(of("-initrd"), Vec::<String>::new());
    assert_eq!(of("-append"), ["console=ttyS0 root=/dev/vda, rw quiet a,b"]);
    assert_eq!(of("-bios"), ["/fw/OVMF, 4M.fd"]);
    let net = "user,id=net,hostfwd=tcp:127.0.0.1:0-:22,hostfwd=tcp:127.0.0.1:8080-:80,\
        hostfwd=udp:0.0.0.0:0-:53,restrict=on";
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
    let args = arguments(&plan, &facts(SeedMedium::Absent)).unwrap();
    assert_eq!(values(&args, "-initrd"), ["/boot/initrd"]);
}

#[test]
fn uefi_is_flash_memory_and_starts_its_own_kernel() {
    let mut plan = plan(AccelKind::Tcg, "max");
    plan.spec.firmware = Some(Firmware::Uefi);
    let code = Layer { path: "/fw/CODE, 4M.fd".into(), format: DiskFormat::Raw };
    let details = LaunchDetails { code: Some(&code), ..facts(SeedMedium::FwCfg) };
    let args = arguments(&plan, &details).unwrap();
    let of = |option: &str| values(&args, option);
    assert!(of("-machine")[0].ends_with(",pflash0=code,pflash1=nvram"));
    assert_eq!(of("-kernel"), ["/store/images/tiny/vmlinuz"]);
    assert!(of("-bios").is_empty() && !of("-device")[0].contains("bootindex"));
    insta::assert_snapshot!(of("-blockdev")[..2].join("\n"), @r#"
    {"driver":"raw","file":{"driver":"file","filename":"/fw/CODE, 4M.fd","read-only":true},"node-name":"code","read-only":true}
    {"backing":null,"discard":"unmap","driver":"qcow2","file":{"discard":"unmap","driver":"file","filename":"nvram.qcow2"},"node-name":"nvram"}
    "#);
    assert_eq!(devices_in_words(&plan), "fwcfg uefi");
    plan.spec.ephemeral = true;
    let args = arguments(&plan, &details).unwrap();
    assert!(values(&args, "-blockdev")[1].contains("temporary-nvram.qcow2"));
    plan.image.efi_kernel = None;
    let error = arguments(&plan, &details).unwrap_err();
    assert!(error.to_string().contains("echo refresh > .images/tiny/ctl"), "{error}");
}

#[test]
fn a_cloud_image_has_its_seed_as_a_second_disk() {
    let mut plan = plan(AccelKind::Tcg, "max");
    plan.image.kernel = None;
    let args = arguments(&plan, &facts(SeedMedium::Nocloud)).unwrap();
    let disks: Vec<_> = values(&args, "-device")
        .into_iter()
        .filter_map(|d| {
            Some(d.strip_prefix("virtio-blk-pci,drive=")?.split(',').next()?.to_owned())
        })
        .collect();
    assert_eq!(disks, ["disk", "cidata"]);
    assert!(values(&args, "-blockdev")[1].contains(r#""filename":"cidata.img","read-only":true"#));
    assert_eq!(values(&args, "-fw_cfg"), Vec::<String>::new());
}

#[test]
fn what_is_read_at_boot_is_handed_over_by_files() {
    let mut plan = plan(AccelKind::Tcg, "max");
    plan.spec.ignition = Some("{\"ignition\": {\"version\": \"3.4.0\"}}".into());
    plan.spec.credentials = vec!["a=b,c".into(), "d=e".into()];
    let args = arguments(&plan, &facts(SeedMedium::Absent)).unwrap();
    assert_eq!(values(&args, "-fw_cfg"), ["name=opt/com.coreos/config,file=ignition.json"]);
    let files = ["type=11,path=credentials/0", "type=11,path=credentials/1"];
    assert_eq!(values(&args, "-smbios"), files);
    plan.memory = Memory::CaptureTarget { ram: Some("/ram".into()), prepared: false };
    let args = arguments(&plan, &facts(SeedMedium::Absent)).unwrap();
    assert!(values(&args, "-smbios").is_empty() && values(&args, "-fw_cfg").is_empty());
}

#[test]
fn a_disk_that_boots_comes_before_the_disc() {
    let mut plan = plan(AccelKind::Tcg, "max");
    (plan.image.kernel, plan.spec.cdrom) = (None, Some("/isos/a.iso".into()));
    let args = arguments(&plan, &facts(SeedMedium::Absent)).unwrap();
    let devices = values(&args, "-device");
    let ends = |end: &str| devices.iter().filter(|d| d.ends_with(end)).count();
    assert_eq!((ends(",bootindex=0"), ends("id=cdrom0,bootindex=1")), (1, 1), "{devices:?}");
}

#[test]
fn a_command_line_needs_a_kernel_to_take_it() {
    let mut plan = plan(AccelKind::Tcg, "max");
    plan.image.kernel = None;
    plan.spec.cmdline = Some("quiet".into());
    let error = arguments(&plan, &facts(SeedMedium::Absent)).unwrap_err();
    assert!(matches!(error, BackendError::Unfit { key: "cmdline", .. }), "{error}");
    plan.spec.kernel = Some("/boot/vmlinuz".into());
    assert!(arguments(&plan, &facts(SeedMedium::Absent)).is_ok());
}

#[test]
fn a_file_that_is_absent_is_named_with_its_setting() {
    let spec = VmSpec { cdrom: Some("/nowhere/x.iso".into()), ..VmSpec::default() };
    let error = check_files(&spec).unwrap_err();
    assert!(error.to_string().starts_with("config/cdrom: /nowhere/x.iso: No such"), "{error}");
    assert!(check_file("kernel", Some(Path::new("/"))).is_err());
}

#[test]
fn a_fifo_is_no_file_of_a_setting_and_nobody_waits_for_its_writer() {
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("fifo");
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RUSR).unwrap();
    for key in ["kernel", "initrd", "firmware", "cdrom"] {
        let error = check_file(key, Some(&fifo)).unwrap_err().to_string();
        assert!(error.contains(&format!("config/{key}")) && error.contains("not a regular file"));
    }
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
    plan.base[0].path = OsString::from_vec(b"/images/\xff.raw".to_vec()).into();
    let error = arguments(&plan, &facts(SeedMedium::Absent)).unwrap_err();
    assert!(error.to_string().contains("not UTF-8"), "{error}");
}

proptest! {
    /// Strings from outside stay within their own argument and never become a QEMU option.
    #[test]
    fn no_string_leaves_its_place(path in "/\\PC{0,40}", cmdline in "\\PC{1,40}", name in "\\PC{0,20}") {
        let mut plan = plan(AccelKind::Tcg, "max");
        let usual = arguments(&plan, &facts(SeedMedium::Absent)).unwrap();
        plan.base[0].path = (&path).into();
        plan.image.cmdline.clone_from(&cmdline);
        plan.name.clone_from(&name);
        let args = arguments(&plan, &facts(SeedMedium::Absent)).unwrap();
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

#[test]
fn a_clone_maps_a_templates_memory_and_waits_for_its_state() {
    let mut plan = plan(AccelKind::Tcg, "max");
    let warm = Layer { path: "/store/warm/disk.qcow2".into(), format: DiskFormat::Qcow2 };
    plan.base.insert(0, warm);
    plan.memory = Memory::Clone(Template {
        id: "1".into(),
        saved: Saved::in_dir("/store/warm".as_ref()),
        base: plan.base.clone(),
        shape: Shape::sample(),
    });
    let of = |plan: &LaunchPlan, ram, option: &str| {
        let args = arguments(plan, &LaunchDetails { ram, ..facts(SeedMedium::FwCfg) }).unwrap();
        values(&args, option).remove(0)
    };
    let ram = |plan: &LaunchPlan, fd| -> Value {
        serde_json::from_str(&of(plan, fd, "-object")).unwrap()
    };
    let (sealed, own) = (ram(&plan, Some(9)), ram(&plan, None));
    let fields = |v: &Value| ["mem-path", "share", "readonly", "rom"].map(|f| v[f].clone());
    let none = Value::Null;
    assert_eq!(fields(&sealed), [json!("/proc/self/fd/9"), json!(false), none.clone(), none]);
    let path = json!("/store/warm/ram");
    assert_eq!(fields(&own), [path, json!(false), json!(true), json!("off")]);
    assert_eq!(of(&plan, None, "-incoming"), "defer");
    let args = arguments(&plan, &facts(SeedMedium::FwCfg)).unwrap();
    assert!(!args.contains(&"-S".into()), "its vCPUs are paused as they were captured");
    let disk: Value = serde_json::from_str(&of(&plan, None, "-blockdev")).unwrap();
    assert_eq!(disk["backing"]["file"]["filename"], "/store/warm/disk.qcow2");
    assert_eq!(disk["backing"]["backing"]["driver"], "raw");
    assert!(!args.iter().any(|a| a.to_string_lossy().contains("free-page-reporting")));
    for (prepared, prealloc) in [(true, json!(true)), (false, Value::Null)] {
        plan.memory = Memory::CaptureTarget { ram: Some("/store/target/ram".into()), prepared };
        let target = ram(&plan, None);
        assert_eq!(
            (&target["share"], &target["mem-path"]),
            (&json!(true), &json!("/store/target/ram"))
        );
        assert_eq!(target["prealloc"], prealloc);
    }
}

use crate::arch::Arch;
use proptest::prelude::*;

use super::*;
use crate::vm::WriteMode;

const KEY_LINE: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJd6 me@host";

fn key(name: &str) -> &'static Key {
    KEYS.iter().find(|k| k.name == name).unwrap()
}

fn assigned(name: &str, text: &str) -> Result<String, SpecError> {
    let mut spec = VmSpec::default();
    key(name).assign(&mut spec, text, WriteMode::Replace, &VmSpec::default())?;
    Ok((key(name).render)(&spec))
}

/// Settings of which none is the default.
fn unusual() -> VmSpec {
    VmSpec {
        image: "debian".into(),
        cpus: 3,
        memory: 3 << 30,
        disk: 5 << 30,
        hostname: Some("web".into()),
        mac: Some("52:54:00:12:34:56".parse().unwrap()),
        ports: vec!["8080:80".parse().unwrap(), "udp:0.0.0.0:53:53".parse().unwrap()],
        arch: if Arch::HOST == Arch::X86_64 { Arch::Aarch64 } else { Arch::X86_64 },
        net: Network::Offline,
        allow: vec!["*.example.org:443".parse().unwrap()],
        nets: vec!["lab".into(), "db".into()],
        accel: AccelChoice::Tcg,
        ssh_user: "me".into(),
        ssh_key: vec![KEY_LINE.into()],
        kernel: Some("/boot/vmlinuz, 1".into()),
        initrd: Some("/boot/initrd".into()),
        cmdline: Some("loglevel=7 x=\"a b\"".into()),
        firmware: Some(Firmware::File("/usr/share/OVMF.fd".into())),
        machine: Some("pc-q35-7.1".into()),
        hardware: Some(Hardware::FIRST),
        container: ContainerProcess::parse(r#"{"Cmd":["a b","c"],"User":"app"}"#),
        cdrom: Some("/isos/a.iso".into()),
        ephemeral: true,
        user_data: Some("#cloud-config\npackages:\n  - vim\n\nruncmd: [\"a b\"]".into()),
        network_data: Some("version: 2\nethernets: {}".into()),
        ignition: Some("{\"ignition\": {\"version\": \"3.4.0\"}}".into()),
        credentials: vec!["a.b=c d".into(), "x=".into()],
        overcommit: true,
        autostart: true,
        autoremove: true,
        expire: Some(Duration::from_secs(3600)),
        idle: Some(Duration::from_secs(600)),
        cpu_limit: CpuLimit::parse("cpu_limit", "0.5").unwrap(),
        memory_high: Some(512 << 20),
        memory_max: Some(1 << 30),
        io_limit: Some(IoLimit { bytes: 20 << 20, operations: 500 }),
        protect: true,
        qemu_args: vec!["-device".into(), "virtio-rng-pci".into()],
    }
}

#[test]
fn firmware_is_uefi_a_file_or_none() {
    for text in ["uefi", "/fw/OVMF.fd", "none"] {
        assert_eq!(assigned("firmware", text).unwrap(), text);
    }
    assert!(assigned("firmware", "efi").unwrap_err().to_string().contains("uefi, the absolute"));
    let stored = r#"{"firmware":"/fw/OVMF.fd"}"#;
    let read: VmSpec = serde_json::from_str(stored).unwrap();
    assert_eq!(read.firmware, Some(Firmware::File("/fw/OVMF.fd".into())));
}

#[test]
fn sizes_read_back_in_canonical_form() {
    let table = [("2048M", "2G"), ("2g", "2G"), ("1536MiB", "1536M"), ("1T", "1T"), ("512", "512")];
    for (written, read) in table {
        assert_eq!(render_size(parse_size(written).unwrap()), read, "{written}");
    }
    for bad in ["", "G", "-1G", "1.5G", "1 G", "99999999999T", "1X"] {
        assert_eq!(parse_size(bad), None, "{bad}");
    }
}

#[test]
fn names_follow_the_grammar() {
    for good in ["vm1", "a", "0-x", &"a".repeat(32)] {
        assert!(is_vm_name(good), "{good}");
    }
    for bad in ["", "-a", "A", "a.b", "a_b", ".git", "a/b", "ä", &"a".repeat(33)] {
        assert!(!is_vm_name(bad), "{bad}");
    }
    assert!(is_object_name("Alpine-3.22_x") && !is_object_name(".x") && !is_object_name(""));
}

#[test]
fn every_key_writes_back_what_it_prints_and_touches_nothing_else() {
    let (spec, plain) = (unusual(), VmSpec::default());
    for key in KEYS {
        let text = (key.render)(&spec);
        assert_ne!(text, (key.render)(&plain), "{}: not unusual", key.name);
        let mut copy = spec.clone();
        (key.reset)(&mut copy, &plain);
        key.assign(&mut copy, &text, WriteMode::Replace, &plain).unwrap();
        assert_eq!(copy, spec, "{}", key.name);
        // The other way, as `cp vm1/config/* vm2/config/` does it.
        copy.arch = plain.arch;
        let usual = (key.render)(&plain);
        key.assign(&mut copy, &usual, WriteMode::Replace, &plain).unwrap();
        let expected = if usual.is_empty() { &text } else { &usual };
        assert_eq!(&(key.render)(&copy), expected, "{}", key.name);
    }
}

#[test]
fn default_is_what_the_defaults_say_and_none_empties_a_list() {
    let (defaults, mut spec) = (unusual(), VmSpec::default());
    for key in KEYS {
        key.assign(&mut spec, "default\n", WriteMode::Replace, &defaults).unwrap();
    }
    assert_eq!(spec, defaults);
    for key in KEYS.iter().filter(|k| k.form == Form::List) {
        key.assign(&mut spec, "none", WriteMode::Append, &defaults).unwrap();
        assert_eq!((key.render)(&spec), "", "{}", key.name);
    }
}

#[test]
fn a_list_is_replaced_or_added_to_and_takes_nothing_twice() {
    let (plain, mut spec) = (VmSpec::default(), VmSpec::default());
    let mut write = |text: &str, mode| {
        let result = key("ports").assign(&mut spec, text, mode, &plain);
        result.map(|()| (key("ports").render)(&spec))
    };
    write("1:1\n2:2\n", WriteMode::Replace).unwrap();
    assert_eq!(write("3:3", WriteMode::Replace).unwrap(), "tcp:127.0.0.1:3:3");
    write("4:4", WriteMode::Append).unwrap();
    let error = write("tcp:127.0.0.1:3:9", WriteMode::Append).unwrap_err();
    assert_eq!(error.to_string(), "ports: tcp:127.0.0.1:3:3 is there already");
    assert!(assigned("ports", "5:5\n5:5").is_err());
    assert!(assigned("ssh_key", &format!("{KEY_LINE}\n{KEY_LINE}")).is_err());
}

#[test]
fn a_machine_type_reads_as_that_of_the_architecture() {
    let mut spec = VmSpec { arch: Arch::Aarch64, ..VmSpec::default() };
    let machine = Key::named("machine").unwrap();
    for (written, read) in [("virt-7.2", "virt-7.2"), ("virt", "virt"), ("q35", "virt")] {
        (machine.parse)(&mut spec, written).unwrap();
        assert_eq!((machine.render)(&spec), read);
    }
}

#[test]
fn values_have_a_form_and_a_canonical_one() {
    let good = [
        ("mac", "52-54-00-AA-BB-CC", "52:54:00:aa:bb:cc"),
        ("mac", "default", "default"),
        ("machine", "q35", "q35"),
        ("machine", "q35-7.2", "pc-q35-7.2"),
        ("arch", "aarch64", "aarch64"),
        ("arch", "arm64", "aarch64"),
        ("arch", "amd64", "x86_64"),
        ("hardware", "1", "1"),
        ("hardware", "2", "2"),
        ("hardware", "newest", "newest"),
        ("machine", "pc-q35-4.0.1", "pc-q35-4.0.1"),
        ("kernel", "/boot/vmlinuz", "/boot/vmlinuz"),
        ("container", r#"{ "Cmd": ["a b"], "Labels": {} }"#, r#"{"Cmd":["a b"]}"#),
        ("container", "none", "none"),
        ("cdrom", "none", "none"),
        ("cmdline", "  quiet  ", "quiet"),
        ("ephemeral", "on", "1"),
        ("autostart", "0", "0"),
        ("overcommit", "1", "1"),
        ("ssh_key", KEY_LINE, KEY_LINE),
    ];
    for (name, written, read) in good {
        assert_eq!(assigned(name, written).unwrap(), read, "{name} {written}");
    }
    let bad = [
        ("mac", "ff:ff:ff:ff:ff:ff"),
        ("machine", "microvm"),
        ("machine", "pc-virt-7.2"),
        ("arch", "riscv64"),
        ("machine", "pc-q35-7.2,usb=on"),
        ("machine", "q35-7"),
        ("kernel", "vmlinuz"),
        ("initrd", "~/initrd"),
        ("container", "/bin/sh"),
        ("cdrom", "http://x/y.iso"),
        ("cmdline", "a\u{7}b"),
        ("cmdline", "one\ntwo"),
        ("ephemeral", "2"),
        ("ssh_key", "ssh-ed25519 nonsense!"),
        ("ssh_key", "command=\"x\" ssh-ed25519 AAAA me"),
        ("ssh_key", "-----BEGIN OPENSSH PRIVATE KEY-----"),
    ];
    for (name, written) in bad {
        let error = assigned(name, written).unwrap_err();
        assert!(matches!(error, SpecError::Malformed { .. }), "{name} {written}: {error}");
    }
    let error = assigned("cmdline", &"a".repeat(1025)).unwrap_err();
    assert!(matches!(error, SpecError::OutOfRange { .. }), "{error}");
}

proptest! {
    #[test]
    fn no_value_makes_a_parser_panic_and_what_it_takes_reads_back(value in ".{0,80}") {
        for key in KEYS {
            let mut spec = VmSpec::default();
            if (key.parse)(&mut spec, value.trim()).is_err() || value.trim().is_empty() {
                continue;
            }
            let mut copy = VmSpec::default();
            let text = (key.render)(&spec);
            key.assign(&mut copy, &text, WriteMode::Replace, &VmSpec::default()).unwrap();
            prop_assert_eq!(&copy, &spec, "{}", key.name);
        }
    }

    #[test]
    fn a_rendered_size_parses_to_itself(bytes in 0u64..(1 << 50)) {
        prop_assert_eq!(parse_size(&render_size(bytes)), Some(bytes));
    }
}

use super::*;
use crate::vm::spec::net::Network;

fn key(name: &str) -> &'static Key {
    Key::named(name).unwrap()
}

fn write(name: &str, text: &str) -> Edit {
    Edit::Write(key(name), text.to_owned(), WriteMode::Replace)
}

const HOST: &str = if cfg!(target_arch = "aarch64") { "aarch64" } else { "x86_64" };

/// Four values of each key that images carry, none twice where there are four: of the VM, its image, `.defaults`, and the
/// built-in one (written as `cat config/KEY` prints it).
const VALUES: &[(&str, [&str; 4])] = &[
    ("cpus", ["2", "3", "4", "1"]),
    ("memory", ["512M", "1G", "2G", "256M"]),
    ("disk", ["3G", "4G", "5G", "2G"]),
    ("arch", ["aarch64", "x86_64", "aarch64", HOST]),
    ("accel", ["kvm", "tcg", "kvm", "auto"]),
    ("machine", ["pc-q35-7.2", "pc-q35-7.1", "pc-q35-7.0", "q35"]),
    ("kernel", ["/own", "/image", "/defaults", "none"]),
    ("initrd", ["/own", "/image", "/defaults", "none"]),
    ("cmdline", ["own", "image", "defaults", "none"]),
    ("firmware", ["/own", "/image", "/defaults", "none"]),
    ("container", [r#"{"User":"own"}"#, r#"{"User":"image"}"#, r#"{"User":"defaults"}"#, "none"]),
    ("cdrom", ["/own", "/image", "/defaults", "none"]),
    ("ssh_user", ["own", "image", "defaults", "root"]),
    ("user_data", ["#cloud-config\na: [x]", "#!/bin/sh\ntrue", "#include\nhttps://x", "none"]),
    ("network_data", ["version: 1", "version: 2", "{version: 2}", "none"]),
    ("ignition", [IGNITION[0], IGNITION[1], IGNITION[2], "none"]),
    ("credentials", ["a=own", "a=image", "a=defaults", ""]),
    ("qemu_args", ["-own", "-image", "-defaults", ""]),
];

const IGNITION: [&str; 3] = [
    r#"{"ignition": {"version": "3.2.0"}}"#,
    r#"{"ignition": {"version": "3.3.0"}}"#,
    r#"{"ignition": {"version": "3.4.0"}}"#,
];

#[test]
fn the_vms_value_holds_else_the_images_else_the_defaults_else_the_built_in_one() {
    let carried = KEYS.iter().filter(|k| k.carried != Carried::Never).map(|k| k.name);
    let mut listed: Vec<_> = VALUES.iter().map(|(name, _)| *name).collect();
    listed.sort_unstable();
    let mut all: Vec<_> = carried.collect();
    all.sort_unstable();
    assert_eq!(listed, all, "a row for each key that images carry");
    for (name, [own, image, default, built_in]) in VALUES {
        for present in 0..8 {
            let (has_own, has_image, has_default) =
                (present & 4 != 0, present & 2 != 0, present & 1 != 0);
            let plain = VmSpec::default();
            let mut defaults = plain.clone();
            if has_default {
                key(name).assign(&mut defaults, default, WriteMode::Replace, &plain).unwrap();
            }
            let carried: ImageSettings = match has_image {
                true => BTreeMap::from([((*name).to_owned(), (*image).to_owned())]).into(),
                false => ImageSettings::default(),
            };
            let mut settings = VmSettings::new(defaults.clone());
            if has_own {
                settings = settings.edited(&write(name, own), &carried, &defaults).unwrap();
            }
            let expected = match (has_own, has_image, has_default) {
                (true, _, _) => own,
                (false, true, _) => image,
                (false, false, true) => default,
                (false, false, false) => built_in,
            };
            let holds = (key(name).render)(&settings.resolve(&carried));
            assert_eq!(&holds, expected, "{name} {present:03b}");
            // Without its own value it has the next one.
            let again = settings.edited(&write(name, "default"), &carried, &defaults).unwrap();
            assert_eq!(again, VmSettings::new(defaults), "{name} {present:03b}");
        }
    }
}

#[test]
fn what_a_vm_has_for_itself_is_carried_by_no_image() {
    let spec = VmSpec {
        hostname: Some("web".into()),
        ports: vec!["80:80".parse().unwrap()],
        protect: true,
        ephemeral: true,
        memory: 1 << 30,
        ..VmSpec::default()
    };
    let resolved = VmSettings::new(VmSpec::default()).resolve(&ImageSettings::of_machine(&spec));
    assert_eq!(resolved, VmSpec { memory: 1 << 30, ..VmSpec::default() });
    // Whatever an image's file says.
    let forged = BTreeMap::from([("protect", "1"), ("cpus", "many"), ("color", "red")]);
    let forged: BTreeMap<_, _> =
        forged.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
    let resolved = VmSettings::new(VmSpec::default()).resolve(&forged.into());
    assert_eq!(resolved, VmSpec::default());
}

#[test]
fn a_disk_alone_carries_less_than_a_machine() {
    let spec = VmSpec { accel: super::super::AccelChoice::Tcg, cpus: 2, ..VmSpec::default() };
    let (disk, machine) = (ImageSettings::of_disk(&spec), ImageSettings::of_machine(&spec));
    assert_eq!(machine.without_machine(), disk);
    assert!(machine.table().contains("accel tcg\n") && !disk.table().contains("accel"));
    assert!(
        disk.table()
            .starts_with(&format!("arch {HOST}\ncmdline none\ncontainer none\ncpus 2\ndisk 2G\n")),
        "{}",
        disk.table()
    );
}

#[test]
fn a_change_is_one_of_what_holds_and_of_one_key() {
    let carried = ImageSettings::of_shape(4, 1 << 30, 4 << 30);
    let plain = VmSpec::default();
    let settings = VmSettings::new(plain.clone());
    let grown = settings.edited(&Edit::Disk(8 << 30), &carried, &plain).unwrap();
    let expected = VmSpec { cpus: 4, memory: 1 << 30, disk: 8 << 30, ..plain.clone() };
    assert_eq!(grown.resolve(&carried), expected);
    // Another image changes what the user has not set.
    let other = ImageSettings::of_shape(1, 2 << 30, 2 << 30);
    assert_eq!(grown.resolve(&other), VmSpec { memory: 2 << 30, disk: 8 << 30, ..plain.clone() });
    assert_eq!(grown.edited(&write("cpus", " \n"), &carried, &plain).unwrap(), grown);
    assert!(grown.edited(&write("cpus", "many"), &carried, &plain).is_err());
}

#[test]
fn a_list_is_added_to_as_it_holds() {
    let args = BTreeMap::from([("qemu_args".to_owned(), "-a\n-b".to_owned())]);
    let (carried, plain) = (ImageSettings::from(args), VmSpec::default());
    let add = Edit::Write(key("qemu_args"), "-c".into(), WriteMode::Append);
    let settings = VmSettings::new(plain.clone()).edited(&add, &carried, &plain).unwrap();
    assert_eq!(settings.resolve(&carried).qemu_args, ["-a", "-b", "-c"]);
    assert_eq!(carried.table(), "qemu_args -a\nqemu_args -b\n");
}

#[test]
fn copying_all_settings_copies_what_holds() {
    let (carried, plain) = (ImageSettings::of_shape(4, 1 << 30, 4 << 30), VmSpec::default());
    let one = VmSettings::new(plain.clone()).resolve(&carried);
    let mut two = VmSettings::new(VmSpec { memory: 512 << 20, ..plain.clone() });
    for key in KEYS {
        let text = (key.render)(&one);
        let none = ImageSettings::default();
        two = two.edited(&write(key.name, &text), &none, &plain).unwrap();
    }
    assert_eq!(two.resolve(&ImageSettings::default()), one);
}

#[test]
fn a_fork_has_what_is_in_its_parents_memory_and_ports_of_its_own() {
    let forward = |text: &str| text.parse().unwrap();
    let values = VmSpec {
        image: "web".into(),
        memory: 512 << 20,
        ports: vec![forward("8080:80"), forward("8081:80"), forward("udp:0:53")],
        ssh_key: vec!["ssh-ed25519 x".into()],
        hostname: Some("other".into()),
        net: Network::Offline,
        protect: true,
        ..VmSpec::default()
    };
    let own = ["image", "memory", "ports", "ssh_key", "hostname", "protect"].map(str::to_owned);
    let parent = VmSettings { values, own: own.into() };
    let fork = VmSettings::of_fork(&parent, &VmSpec { cpus: 2, ..VmSpec::default() });
    let expected = VmSpec {
        image: "web".into(),
        ports: vec![forward("0:80"), forward("udp:0:53")],
        ssh_key: vec!["ssh-ed25519 x".into()],
        // Nobody has set it: it is that of `.defaults` when the parent was made.
        net: Network::Offline,
        cpus: 2,
        ..VmSpec::default()
    };
    assert_eq!(fork.values, expected);
    assert_eq!(fork.own, ["image", "ports", "ssh_key"].map(str::to_owned).into());
}

//! A launch as QEMU's command line: pure, no I/O and no look at the host.
//!
//! QEMU runs in the VM's directory, so the VM's own files are named relatively. A string that is
//! not ours appears only where QEMU does not parse commas: as a whole argument, or in JSON.
//!
//! Block devices are in [`blocks`], data disks in [`data_disks`], network devices on nets in [`nics`].

mod blocks;
pub mod data_disks;
pub mod nics;

use std::ffi::OsString;
use std::io::ErrorKind;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use uuid::Uuid;

pub use self::blocks::disc;
use self::blocks::{cidata, disk, drive, flash, utf8};
use crate::store::file::open_regular;
use crate::store::layout::names;
use crate::vm::backend::{
    Accel, AccelKind, BackendError, BootImage, LaunchPlan, Result, SPARE_PORTS,
};
use crate::vm::hardware::Hardware;
use crate::vm::spec::net::{Forward, Mac, Network};
use crate::vm::spec::{Firmware, VmSpec};
use crate::vm::template::{Layer, Memory, Saved, Template};

/// The name of the virtio-serial port on which the guest announces its SSH server, and its id in
/// QMP's events.
pub const READY_PORT: &str = "org.aqfs.ready";
/// The id of that port's device and character device.
pub const READY_ID: &str = "ready";
/// The name of the virtio-serial port over which a clone is personalized.
pub const IDENTITY_PORT: &str = "org.aqfs.identity";
/// The node that takes what the guest writes to its disk.
pub const DISK_NODE: &str = "disk";
/// The node of the UEFI variables.
pub const NVRAM_NODE: &str = "nvram";
/// The node of the UEFI firmware's program.
const CODE_NODE: &str = "code";
/// The part of the disk's device that uses that node.
pub const DISK_BACKEND: &str = "/machine/peripheral/disk0/virtio-backend";
/// The network's id.
pub const NET_ID: &str = "net";
/// The CD-ROM drive's id.
pub const DRIVE_ID: &str = "cdrom0";
/// The nodes of discs: the next one is opened while the last is still in the drive.
pub const DISC_NODES: [&str; 2] = ["disc", "disc-2"];
/// Where the guest finds its seed in fw_cfg.
const SEED_KEY: &str = "opt/org.aqfs/seed";

/// Where Ignition looks in fw_cfg.
const IGNITION_KEY: &str = "opt/com.coreos/config";

/// What a launch needs beside its plan.
#[derive(Clone, Debug)]
pub struct LaunchDetails<'a> {
    /// The machine type with its version: `pc-q35-7.2`.
    pub machine: &'a str,
    /// A fresh generation: a guest that sees a new one reseeds its random numbers.
    pub generation: Uuid,
    /// Whether the VM's directory holds a seed.
    pub seed: SeedMedium,
    /// The descriptor under which a clone finds a sealed copy of its template's memory; without one
    /// it maps the file itself, which it must not be able to write.
    pub ram: Option<RawFd>,
    /// The program of the UEFI firmware, for a machine that has UEFI.
    pub code: Option<&'a Layer>,
}

/// Whether a VM has a seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SeedMedium {
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
pub fn arguments(plan: &LaunchPlan, facts: &LaunchDetails<'_>) -> Result<Vec<OsString>> {
    let mut args = Args::default();
    identity(&mut args, plan);
    machine(&mut args, plan, facts)?;
    kernel(&mut args, plan)?;
    disk(&mut args, plan)?;
    if facts.seed == SeedMedium::Nocloud {
        cidata(&mut args, plan);
    }
    drive(&mut args, plan)?;
    devices(&mut args, plan, facts);
    channels(&mut args, facts);
    first_boot(&mut args, plan);
    if plan.hardware >= Hardware::WITH_ROOM {
        spare_ports(&mut args);
        nics::nics(&mut args, plan);
        data_disks::data_disks(&mut args, plan)?;
    }
    confinement(&mut args);
    if plan.memory != Memory::Own {
        args.pair("-incoming", "defer");
    }
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

fn machine(args: &mut Args, plan: &LaunchPlan, facts: &LaunchDetails<'_>) -> Result<()> {
    let version = facts.machine;
    let options = plan.spec.arch.platform().machine_options;
    let flashes = match facts.code {
        Some(_) => format!(",pflash0={CODE_NODE},pflash1={NVRAM_NODE}"),
        None => String::new(),
    };
    args.pair("-machine", format!("{version},{options},memory-backend=ram{flashes}"));
    args.pair("-accel", accelerator(&plan.accel, plan.spec.cpus, plan.spec.memory));
    args.pair("-cpu", plan.accel.cpu.clone());
    args.pair("-smp", processors(plan));
    let mebibytes = plan.spec.memory >> 20;
    args.pair("-m", format!("{mebibytes}M"));
    args.pair("-object", ram(plan, facts)?.to_string());
    args.pair("-rtc", "base=utc");
    if let Some(firmware) = plan.spec.firmware.as_ref().and_then(Firmware::file) {
        args.pair("-bios", firmware);
    }
    facts.code.map_or(Ok(()), |code| flash(args, plan, code))
}

/// From the version with room on, processors can be added up to this number, whatever the host has.
/// `doc/adr/0019-hardware-versions.md` has what each costs the guest.
const MOST_CPUS: u32 = 8;
const MAXCPUS: &str = "maxcpus=";

fn processors(plan: &LaunchPlan) -> String {
    match plan.hardware >= Hardware::WITH_ROOM {
        true => format!("{},{MAXCPUS}{}", plan.spec.cpus, room(plan)),
        false => plan.spec.cpus.to_string(),
    }
}

fn room(plan: &LaunchPlan) -> u32 {
    let most = if plan.spec.arch.platform().has_spare_cpus { MOST_CPUS } else { 0 };
    plan.spec.cpus.max(most)
}

/// Returns how many processors the machine of a plan may have while it runs. In earlier hardware what is saved
/// of one that has grown would fit no other.
pub fn most_processors(plan: &LaunchPlan) -> u32 {
    if plan.hardware >= Hardware::ONE_QUEUE { room(plan) } else { plan.spec.cpus }
}

/// Returns the version of the hardware of a machine that was started with these arguments.
pub fn hardware_of(arguments: &[String]) -> Hardware {
    let disk = |a: &String| a.contains("drive=disk,") && a.contains(blocks::ONE_QUEUE);
    let has_room = arguments.iter().any(|a| a.contains(MAXCPUS));
    match (arguments.iter().any(disk), has_room) {
        (true, _) => Hardware::ONE_QUEUE,
        (false, true) => Hardware::WITH_ROOM,
        (false, false) => Hardware::FIRST,
    }
}

/// The memory. Of a template's, a machine changes its own copy only.
fn ram(plan: &LaunchPlan, facts: &LaunchDetails<'_>) -> Result<Value> {
    let size = (plan.spec.memory >> 20) << 20;
    let (file, shared) = match &plan.memory {
        Memory::Own => {
            return Ok(json!({"qom-type": "memory-backend-ram", "id": "ram", "size": size}));
        }
        Memory::CaptureTarget { ram, .. } => (ram.as_ref(), true),
        Memory::Clone(Template { saved: Saved::Files { ram, .. }, .. }) => (Some(ram), false),
        Memory::Clone(Template { saved: Saved::Nameless(_), .. }) => (None, false),
    };
    let mut ram = json!({"qom-type": "memory-backend-file", "id": "ram", "size": size});
    ram["share"] = json!(shared);
    match (facts.ram, file) {
        (Some(fd), _) => ram["mem-path"] = json!(format!("/proc/self/fd/{fd}")),
        (None, Some(file)) => ram["mem-path"] = json!(utf8(file)?),
        (None, None) => return Err(no_memory()),
    }
    if let Memory::CaptureTarget { prepared: true, .. } = plan.memory {
        ram["prealloc"] = json!(true);
    }
    if let (Memory::Clone(_), None) = (&plan.memory, facts.ram) {
        (ram["readonly"], ram["rom"]) = (json!(true), json!("off"));
    }
    Ok(ram)
}

fn no_memory() -> BackendError {
    BackendError::fact("the memory of a fork", "nothing holds it any more", libc::ESTALE)
}

/// Returns the MiB in which TCG keeps what it has translated. By default it is up to 1 GiB, more
/// than most guests have. 64 MiB boot a small guest in the same processor time; one with more
/// memory runs larger programs, so it gets a quarter of that, up to half of the default.
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

fn kernel(args: &mut Args, plan: &LaunchPlan) -> Result<()> {
    let (spec, image) = (&plan.spec, &plan.image);
    let own = if spec.has_uefi() { efi_kernel(image)? } else { image.kernel.as_ref() };
    let Some(kernel) = spec.kernel.as_ref().or(own) else {
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

/// Returns the image's kernel for UEFI, which starts none that has to be entered as PVH.
fn efi_kernel(image: &BootImage) -> Result<Option<&PathBuf>> {
    let name = &image.name;
    let refused = || BackendError::Unfit {
        key: "firmware",
        reason: format!(
            "UEFI cannot start the kernel of image {name}, which an earlier aqfs has made; \
             `echo refresh > .images/{name}/ctl` makes it anew, `echo none` into this does without UEFI"
        ),
    };
    match (&image.kernel, &image.efi_kernel) {
        (Some(_), None) => Err(refused()),
        (_, kernel) => Ok(kernel.as_ref()),
    }
}

/// A boot loader on the disk would ignore them.
fn refuse_without_kernel(spec: &VmSpec) -> Result<()> {
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

/// Looks for the files that settings name. They are on any file system, so no worker of the runtime
/// does this.
///
/// # Errors
/// `NoFile` or `NotAFile`, naming the setting.
pub fn check_files(spec: &VmSpec) -> Result<()> {
    let files = [
        ("kernel", spec.kernel.as_deref()),
        ("initrd", spec.initrd.as_deref()),
        ("firmware", spec.firmware.as_ref().and_then(Firmware::file)),
        ("cdrom", spec.cdrom.as_deref()),
    ];
    files.into_iter().try_for_each(|(key, path)| check_file(key, path))
}

/// Looks for the file that a setting names.
///
/// # Errors
/// `NoFile`, or `NotAFile`.
pub fn check_file(key: &'static str, path: Option<&Path>) -> Result<()> {
    let Some(path) = path else { return Ok(()) };
    // Opened, because what may not be read is as good as absent.
    let Err(error) = open_regular(path) else { return Ok(()) };
    let path = path.display().to_string();
    Err(match error.kind() == ErrorKind::InvalidInput {
        true => BackendError::NotAFile { key, path },
        false => BackendError::NoFile { key, path, reason: error.to_string() },
    })
}

/// Says what a guest sees beside processors, memory, disk and the hardware that every machine of
/// its version has. A machine resumes only from the state of one that had the same: a change of
/// [`arguments`] that a guest can see needs a new version of [`Hardware`].
pub fn devices_in_words(plan: &LaunchPlan) -> String {
    let mut words = vec![format!("{:?}", plan.image.seed).to_lowercase()];
    if plan.spec.has_uefi() {
        words.push("uefi".to_owned());
    }
    if plan.spec.cdrom.is_some() {
        words.push("cdrom".to_owned());
    }
    words.extend(plan.spec.qemu_args.iter().cloned());
    words.join(" ")
}

fn devices(args: &mut Args, plan: &LaunchPlan, facts: &LaunchDetails<'_>) {
    // Port 0: the kernel picks a free one, which is read back over QMP.
    let mut net = format!("user,id={NET_ID},hostfwd=tcp:127.0.0.1:0-:22");
    for forward in &plan.spec.ports {
        net.push_str(",hostfwd=");
        net.push_str(&rule(forward));
    }
    match plan.spec.net {
        Network::User => {}
        Network::Offline | Network::Allow => net.push_str(",restrict=on"),
    }
    args.pair("-netdev", net);
    let mac = plan.spec.mac.unwrap_or_else(|| Mac::of(plan.uuid));
    let generation = format!("vmgenid,guid={}", facts.generation);
    // What a guest gives back of a file's memory is cut out of the file, also where the file is
    // mapped privately and others map it too.
    let reporting = if plan.memory == Memory::Own { ",free-page-reporting=on" } else { "" };
    let devices = [
        format!("virtio-net-pci,netdev=net,id=net0,mac={mac},romfile="),
        "virtio-rng-pci".to_owned(),
        format!("virtio-balloon-pci{reporting}"),
    ];
    let generation = plan.spec.arch.platform().has_vmgenid.then_some(generation);
    for device in devices.into_iter().chain(generation) {
        args.pair("-device", device);
    }
}

/// Returns a forward as QEMU's option and its monitor take it.
pub fn rule(forward: &Forward) -> String {
    let Forward { protocol, address, host, guest } = forward;
    format!("{}:{address}:{host}-:{guest}", protocol.word())
}

/// The serial line, QMP, the ready port (its data goes nowhere: that the guest opens it is the
/// news), the identity port and the seed.
fn channels(args: &mut Args, facts: &LaunchDetails<'_>) {
    let (serial, log, qmp) = (names::SERIAL, names::CONSOLE_LOG, names::QMP);
    let server = "server=on,wait=off";
    let logged = format!("{server},logfile={log},logappend=on");
    args.pair("-chardev", format!("socket,id=serial,path={serial},{logged}"));
    args.pair("-serial", "chardev:serial");
    args.pair("-chardev", format!("socket,id=qmp,path={qmp},{server}"));
    args.pair("-mon", "chardev=qmp,mode=control");
    args.pair("-chardev", format!("null,id={READY_ID}"));
    args.pair("-device", "virtio-serial-pci");
    let ready = format!("chardev={READY_ID},name={READY_PORT},id={READY_ID}");
    args.pair("-device", format!("virtserialport,{ready}"));
    let identity = names::IDENTITY;
    args.pair("-chardev", format!("socket,id=identity,path={identity},{server}"));
    let identity = format!("chardev=identity,name={IDENTITY_PORT},id=identity");
    args.pair("-device", format!("virtserialport,{identity}"));
    if facts.seed == SeedMedium::FwCfg {
        let seed = names::SEED;
        args.pair("-fw_cfg", format!("name={SEED_KEY},file={seed}"));
    }
}

/// What Ignition and systemd read at boot, by files: the texts are the user's. A capture target never
/// boots, and has no such files.
fn first_boot(args: &mut Args, plan: &LaunchPlan) {
    if let Memory::CaptureTarget { .. } = plan.memory {
        return;
    }
    if plan.spec.ignition.is_some() {
        let file = names::IGNITION;
        args.pair("-fw_cfg", format!("name={IGNITION_KEY},file={file}"));
    }
    for number in 0..plan.spec.credentials.len() {
        let directory = names::CREDENTIALS;
        args.pair("-smbios", format!("type=11,path={directory}/{number}"));
    }
}

/// Ports of PCI Express into which devices are plugged while the guest runs: the root bus itself
/// takes none. They are the functions of one slot, which no device gets by itself, so all other
/// devices are where they would be without.
fn spare_ports(args: &mut Args) {
    for number in 0..SPARE_PORTS {
        let first = if number == 0 { ",multifunction=on" } else { "" };
        let place = format!("addr={SPARE_SLOT}.{number},chassis={SPARE_CHASSIS}");
        let slot = number + 1;
        args.pair("-device", format!("pcie-root-port,id=spare{number},{place},slot={slot}{first}"));
    }
}

/// Where they are, and a chassis that no user's own port is likely to have.
const SPARE_SLOT: &str = "0x1c";
const SPARE_CHASSIS: u32 = 100;

/// No new processes, no other user, no scheduling of others: whoever breaks out of the guest has
/// our files and nothing more to start.
fn confinement(args: &mut Args) {
    let denied = "obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";
    args.pair("-sandbox", format!("on,{denied}"));
}

#[cfg(test)]
pub(super) mod tests;

//! `aq doctor`: what works on this host, what does not, why KVM is not used, and what to do. It
//! needs neither a mount nor QEMU; its checks are those that the daemon itself goes by.
//!
//! Nothing is changed here. The only thing that is run is QEMU: to ask its version and, where no
//! daemon has, to probe KVM.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use console::style;
use serde::Serialize;
use tokio::runtime::Builder;

use crate::arch::Arch;
use crate::daemon;
use crate::fuse::mountpoint;
use crate::image;
use crate::programs::{self, BUILDERS, Program, QEMU_IMG, VDE_SWITCH};
use crate::qemu::accel::{self, KvmVerdict};
use crate::qemu::install::Installation;
use crate::store::layout::Layout;
use crate::vm::backend::Recipes;

/// A store with less than this free is about to pause its guests.
const LITTLE: u64 = 1 << 30;
const SSH: Program = Program { name: "ssh", package: "openssh-client" };

#[derive(Debug, Default, PartialEq, Eq, Serialize)]
struct Findings {
    works: Vec<String>,
    fails: Vec<String>,
    /// What to do, in the order of what it brings.
    advice: Vec<String>,
    /// Without KVM: why.
    kvm: Option<String>,
    /// VMs cannot run as it is.
    fatal: bool,
}

impl Findings {
    fn works(&mut self, what: impl Into<String>) {
        self.works.push(what.into());
    }

    /// Adds what does not work, and VMs can do without.
    fn fails(&mut self, what: impl Into<String>, advice: impl Into<String>) {
        self.fails.push(what.into());
        self.advice.push(advice.into());
    }

    /// Adds what VMs cannot do without.
    fn lacks(&mut self, what: impl Into<String>, advice: impl Into<String>) {
        self.fails(what, advice);
        self.fatal = true;
    }
}

/// Prints the findings, for people or as JSON; returns whether VMs can run.
///
/// # Errors
/// Nobody reads it.
pub fn run(as_json: bool) -> io::Result<bool> {
    let (findings, mut out) = (examine(), io::stdout().lock());
    match as_json {
        true => writeln!(out, "{}", serde_json::to_string_pretty(&findings)?)?,
        false => print(&findings, &mut out)?,
    }
    Ok(!findings.fatal)
}

fn examine() -> Findings {
    let mut findings = Findings::default();
    mounting(&mut findings);
    let store = daemon::wanted_store().map(Layout::new);
    match &store {
        Ok(layout) => storing(&mut findings, layout),
        Err(error) => findings.lacks("there is no place for VMs", error.to_string()),
    }
    let qemu = emulator(&mut findings);
    let layout = store.unwrap_or_else(|_| Layout::new("/"));
    images(&mut findings, &layout);
    clients(&mut findings);
    switches(&mut findings);
    if let Some(qemu) = qemu {
        acceleration(&mut findings, &layout, &qemu);
    }
    findings
}

fn mounting(findings: &mut Findings) {
    match mountpoint::check_host() {
        Ok(()) => findings.works("FUSE: trees can be mounted"),
        Err(error) => {
            // The sentence names the remedy behind a colon.
            let text = error.to_string();
            let (what, remedy) = text.rsplit_once(": ").unwrap_or((&text, &text));
            findings.lacks(format!("FUSE: {what}"), remedy);
        }
    }
    if let Some(obstacle) = mountpoint::unmount_obstacle() {
        let (what, remedy) = obstacle.split_once("; ").unwrap_or((obstacle, ""));
        findings.fails(format!("FUSE: {what}"), remedy);
    }
    match daemon::find() {
        Some(dir) => findings.works(format!("the tree is mounted on {}", dir.display())),
        None => findings.works("the tree is not mounted; the first command mounts it"),
    }
}

fn storing(findings: &mut Findings, layout: &Layout) {
    let root = layout.root();
    // Before the first mount there is none yet, but its place.
    let there = root.ancestors().find(|dir| dir.is_dir()).unwrap_or(Path::new("/"));
    let shown = root.display();
    let writable = rustix::fs::access(there, rustix::fs::Access::WRITE_OK);
    if let Err(error) = writable {
        let (what, dir) = (format!("store: {shown} cannot be written: {error}"), there.display());
        return findings
            .lacks(what, format!("give yourself {dir}, or set AQ_STORE to a place that is yours"));
    }
    let free = rustix::fs::statvfs(there).map_or(0, |s| s.f_bavail.saturating_mul(s.f_frsize));
    let gib = free >> 30;
    if free < LITTLE {
        let what = format!("store: {shown} has only {} MiB free", free >> 20);
        findings.fails(what, "make room there; `aq prune` erases removed VMs");
    } else {
        findings.works(format!("store: {shown}, {gib} GiB free"));
    }
}

fn emulator(findings: &mut Findings) -> Option<Installation> {
    if !QEMU_IMG.is_installed() {
        findings.lacks("qemu-img is not installed", programs::remedy(&[&QEMU_IMG]));
    }
    let runtime = Builder::new_current_thread().enable_all().build().ok()?;
    match runtime.block_on(Installation::probe(Arch::HOST)) {
        Ok(qemu) => {
            findings.works(format!("QEMU {} with machine {}", qemu.version, qemu.machine));
            Some(qemu)
        }
        Err(error) => {
            let emulator = &Arch::HOST.platform().emulator;
            findings.lacks(format!("QEMU: {error}"), programs::remedy(&[emulator]));
            None
        }
    }
}

fn images(findings: &mut Findings, layout: &Layout) {
    let made = image::kernel_of(layout, "tiny").is_some();
    let missing = programs::missing(&BUILDERS);
    let outdated = image::recipe_of_tiny(layout).filter(|r| made && r.made_by != r.present);
    if let Some(Recipes { made_by, present }) = outdated {
        findings.fails(
            format!("the image tiny was made by recipe {made_by}, this aqfs has {present}"),
            "`echo refresh > ~/aq/.images/tiny/ctl` makes it again; VMs that have a disk keep the old one",
        );
    } else if made {
        findings.works("the image tiny is made");
    } else if missing.is_empty() {
        findings.works("the image tiny can be made; the first start does it");
    } else {
        findings.fails(
            format!("the image tiny cannot be made: no {}", programs::names(&missing)),
            format!(
                "{}, or use another image (`cat ~/aq/.docs/images.md`)",
                programs::remedy(&missing)
            ),
        );
    }
}

fn clients(findings: &mut Findings) {
    if programs::find("ssh").is_some() && programs::find("scp").is_some() {
        findings.works("OpenSSH's client, for `aq console` and `aq scp`");
    } else {
        let what = "no OpenSSH client: `aq console` and `aq scp` cannot be used";
        findings.fails(what, programs::remedy(&[&SSH]));
    }
}

fn switches(findings: &mut Findings) {
    match VDE_SWITCH.is_installed() {
        true => findings.works("vde_switch: VMs can be on nets of their own (.nets)"),
        false => {
            let what = "vde_switch is not installed: VMs cannot be on nets (.nets)";
            findings.fails(what, programs::remedy(&[&VDE_SWITCH]));
        }
    }
}

fn acceleration(findings: &mut Findings, layout: &Layout, qemu: &Installation) {
    let kernel = image::kernel_of(layout, "tiny").or_else(host_kernel);
    let Ok(runtime) = Builder::new_current_thread().enable_all().build() else { return };
    let verdict = runtime.block_on(accel::examine(layout, qemu, kernel.as_deref()));
    let (reason, advice) = match verdict {
        KvmVerdict::Works => {
            return findings.works("KVM: a Linux kernel has booted under it here");
        }
        KvmVerdict::Untried => {
            return findings.works("KVM: not known yet; the first start probes it");
        }
        KvmVerdict::Closed(reason) if reason.contains("usermod") => {
            let (reason, advice) = reason.split_once(": ").unwrap_or((&reason, ""));
            (reason.to_owned(), advice.to_owned())
        }
        KvmVerdict::Closed(reason) => (reason, LOAD.to_owned()),
        KvmVerdict::Hidden(reason) | KvmVerdict::Fails(reason) => {
            (format!("/dev/kvm opens, but {reason}"), NESTED.to_owned())
        }
    };
    findings.works("TCG, QEMU's translator: VMs run without KVM, slower");
    findings.fails.push(format!("KVM: {reason}"));
    findings.advice.push(advice);
    findings.kvm = Some(reason);
}

const LOAD: &str = "for KVM: enable virtualization (VT-x, AMD-V) in the firmware, then `sudo modprobe \
    kvm_intel` or `kvm_amd`; in a container pass --device /dev/kvm";
const NESTED: &str = "for KVM: this looks like a VM itself. Use a host that gives its guests working \
    nested virtualization (QEMU: -cpu host; clouds: an instance type that offers it), or bare metal; \
    `echo kvm > VM/config/accel` insists on KVM all the same";

/// The running kernel of the host, where users may read it.
fn host_kernel() -> Option<PathBuf> {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let kernel = PathBuf::from(format!("/boot/vmlinuz-{release}"));
    std::fs::File::open(&kernel).ok().map(|_| kernel)
}

fn print(findings: &Findings, out: &mut impl Write) -> io::Result<()> {
    section(out, "What works", &format!("{} ", style("+").green()), &findings.works)?;
    section(out, "What does not", &format!("{} ", style("-").red()), &findings.fails)?;
    let why = |reason| format!("{reason}. Guests run under TCG, which is no security boundary.");
    let why: Vec<String> = findings.kvm.iter().map(why).collect();
    section(out, "Why KVM is not used", "", &why)?;
    section(out, "What to do", "", &findings.advice)?;
    let verdict = match (findings.fatal, findings.advice.is_empty()) {
        (true, _) => style("VMs cannot run as it is.").red(),
        (false, true) => style("All is well.").green(),
        (false, false) => style("VMs can run.").green(),
    };
    writeln!(out, "{verdict}")
}

fn section(out: &mut impl Write, title: &str, mark: &str, lines: &[String]) -> io::Result<()> {
    if lines.is_empty() {
        return Ok(());
    }
    writeln!(out, "{}", style(title).bold())?;
    lines.iter().try_for_each(|line| writeln!(out, "  {mark}{line}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(findings: &Findings) -> String {
        let mut out = Vec::new();
        print(findings, &mut out).unwrap();
        console::strip_ansi_codes(&String::from_utf8(out).unwrap()).into_owned()
    }

    #[test]
    fn the_order_is_what_works_what_does_not_why_and_what_to_do() {
        let mut findings = Findings::default();
        findings.works("QEMU");
        findings.fails("KVM: slow", "buy another");
        findings.kvm = Some("slow".to_owned());
        assert_eq!(
            text(&findings),
            "What works\n  + QEMU\nWhat does not\n  - KVM: slow\nWhy KVM is not used\n  slow. Guests \
             run under TCG, which is no security boundary.\nWhat to do\n  buy another\nVMs can run.\n"
        );
    }

    #[test]
    fn only_what_vms_need_is_fatal() {
        let mut findings = Findings::default();
        assert_eq!(text(&findings), "All is well.\n");
        findings.fails("no ssh", "install it");
        assert!(!findings.fatal && text(&findings).ends_with("VMs can run.\n"));
        findings.lacks("no QEMU", "install it");
        assert!(findings.fatal && text(&findings).ends_with("VMs cannot run as it is.\n"));
    }
}

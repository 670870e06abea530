//! Which accelerator runs guests: by hints, then by a probe, whose result holds until the host
//! reboots.
//!
//! A `/dev/kvm` that opens proves nothing: there are hosts whose KVM takes minutes to the first
//! line of an ordinary kernel, or on which `-cpu host` aborts QEMU. So a kernel has to boot
//! (`kvm_probe`).

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::OnceCell;

use super::install::Installation;
use super::kvm_probe::{ProbeResult, probe};
use super::process::boot_id;
use crate::arch::Arch;
use crate::store::file;
use crate::store::layout::Layout;
use crate::vm::backend::{Accel, AccelKind, BackendError, Images, Result};
use crate::vm::spec::{AccelChoice, VmSpec, render_accel};

/// What can be seen without running anything.
#[derive(Clone, Debug, PartialEq, Eq)]
struct KvmHints {
    /// Why `/dev/kvm` cannot be used, if so.
    unusable: Option<String>,
    /// The processor's flags have vmx or svm, or there are no flags.
    virtualizes: bool,
}

/// The accelerator for a choice, or why it is refused.
type Decision = Result<Accel, String>;

/// Decides by hints; `None` if only a probe can. An explicit `kvm` is probed even without vmx or svm:
/// some hypervisors hide the flags.
fn by_hints(choice: AccelChoice, hints: &KvmHints) -> Option<Decision> {
    match (choice, &hints.unusable) {
        (AccelChoice::Tcg, _) => Some(Ok(tcg("asked for in config/accel"))),
        (AccelChoice::Auto, Some(reason)) => Some(Ok(tcg(reason))),
        (AccelChoice::Kvm, Some(reason)) => Some(Err(reason.clone())),
        (AccelChoice::Auto, None) if !hints.virtualizes => {
            Some(Ok(tcg("the host's processor shows neither vmx nor svm")))
        }
        (AccelChoice::Auto | AccelChoice::Kvm, None) => None,
    }
}

/// Decides by the probe.
fn by_verdict(choice: AccelChoice, verdict: ProbeResult) -> Decision {
    match verdict {
        ProbeResult::Works { cpu } => {
            let reason = "a Linux kernel has booted under KVM here".to_owned();
            Ok(Accel { kind: AccelKind::Kvm, cpu, reason })
        }
        ProbeResult::Fails { reason } if choice == AccelChoice::Kvm => Err(reason),
        ProbeResult::Fails { reason } => Ok(tcg(&reason)),
    }
}

fn tcg(reason: &str) -> Accel {
    tcg_of(Arch::HOST, reason)
}

fn tcg_of(arch: Arch, reason: &str) -> Accel {
    let cpu = arch.platform().tcg_cpu.to_owned();
    Accel { kind: AccelKind::Tcg, cpu, reason: reason.to_owned() }
}

/// Decides for guests of another architecture than the host's.
fn translated(choice: AccelChoice, arch: Arch) -> Decision {
    let reason = format!("the guest's processor is {arch}, the host's {}", std::env::consts::ARCH);
    match choice {
        AccelChoice::Kvm => Err(reason),
        AccelChoice::Tcg | AccelChoice::Auto => Ok(tcg_of(arch, &reason)),
    }
}

fn look() -> KvmHints {
    let opened = File::options().read(true).write(true).open("/dev/kvm");
    let unusable = opened.err().map(|error| why_closed(&error));
    // Without it there is no hint, and the probe decides.
    KvmHints { unusable, virtualizes: virtualizes(&crate::proc::cpuinfo()) }
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "all other kinds are reported in the system's words"
)]
fn why_closed(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "there is no /dev/kvm".to_owned(),
        io::ErrorKind::PermissionDenied => {
            "no permission for /dev/kvm: join its group with `sudo usermod -aG kvm $USER` and log \
             in again"
                .to_owned()
        }
        _ => format!("/dev/kvm does not open: {error}"),
    }
}

/// Looks at the processor's flags, which x86 has; without flags there is no hint.
fn virtualizes(cpuinfo: &str) -> bool {
    let flags = cpuinfo.lines().find(|l| l.starts_with("flags"));
    flags.is_none_or(|l| l.split_ascii_whitespace().any(|f| f == "vmx" || f == "svm"))
}

/// What the result of a probe depends on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct HostFingerprint {
    boot_id: String,
    qemu_version: String,
    kernel: String,
}

/// The result of a probe as it is stored.
#[derive(Debug, Serialize, Deserialize)]
struct StoredProbe {
    host_fingerprint: HostFingerprint,
    verdict: ProbeResult,
}

/// Chooses accelerators. KVM is probed once, for all callers.
#[derive(Debug)]
pub struct AccelChooser {
    layout: Layout,
    images: Arc<dyn Images>,
    verdict: OnceCell<ProbeResult>,
}

impl AccelChooser {
    /// Makes one that takes its kernel from `images` and stores the result of its probe under
    /// `layout`.
    pub fn new(layout: Layout, images: Arc<dyn Images>) -> Self {
        Self { layout, images, verdict: OnceCell::new() }
    }

    /// Picks an accelerator.
    ///
    /// # Errors
    /// `NoAccelerator` when KVM is demanded and does not work.
    pub async fn choose(
        &self,
        choice: AccelChoice,
        arch: Arch,
        qemu: &Installation,
    ) -> Result<Accel> {
        let decision = match by_hints(choice, &look()) {
            _ if !arch.is_native() => translated(choice, arch),
            Some(decision) => decision,
            None => by_verdict(choice, self.verdict(qemu).await),
        };
        let wanted = || render_accel(choice).to_owned();
        decision.map_err(|reason| BackendError::NoAccelerator { wanted: wanted(), reason })
    }

    /// Decides as far as is known without a probe.
    fn foreseen(&self, choice: AccelChoice) -> Option<Decision> {
        let by_verdict = || Some(by_verdict(choice, self.verdict.get()?.clone()));
        by_hints(choice, &look()).or_else(by_verdict)
    }

    /// Returns the accelerator of a choice, TCG where that is not known yet.
    pub fn likely(&self, choice: AccelChoice, arch: Arch) -> AccelKind {
        match self.foreseen(choice) {
            Some(Ok(accel)) if arch.is_native() => accel.kind,
            Some(Ok(_) | Err(_)) | None => AccelKind::Tcg,
        }
    }

    /// Says in one line what `auto` means here, as far as that is known without a probe.
    pub fn known(&self) -> String {
        match self.foreseen(AccelChoice::Auto) {
            Some(Ok(Accel { kind: AccelKind::Kvm, reason, .. })) => format!("kvm: {reason}"),
            Some(Ok(Accel { kind: AccelKind::Tcg, reason, .. })) => {
                format!("tcg: {reason} (slower, and no security boundary)")
            }
            Some(Err(reason)) => reason,
            None => "not known yet: the first start probes KVM".to_owned(),
        }
    }

    /// Returns the result of the probe. A failure to probe is not kept: the next start tries again.
    async fn verdict(&self, qemu: &Installation) -> ProbeResult {
        let probed = self.verdict.get_or_try_init(|| self.recall_or_probe(qemu));
        match probed.await {
            Ok(verdict) => verdict.clone(),
            Err(error) => ProbeResult::Fails { reason: format!("KVM could not be tried: {error}") },
        }
    }

    async fn recall_or_probe(&self, qemu: &Installation) -> Result<ProbeResult> {
        let image = self.images.ensure(&VmSpec::default().image).await?;
        let host_fingerprint = HostFingerprint {
            boot_id: boot_id().map_err(BackendError::at("the host's boot id"))?,
            qemu_version: qemu.version.clone(),
            kernel: image.digest.clone(),
        };
        let path = self.layout.accel_verdict();
        if let Ok(kept) = file::read_json::<StoredProbe>(&path)
            && kept.host_fingerprint == host_fingerprint
        {
            return Ok(kept.verdict);
        }
        let kernel = image.kernel.ok_or_else(|| BackendError::ImageFailed {
            name: image.name,
            reason: "it has no kernel of its own to try".to_owned(),
        })?;
        let verdict = probe(&kernel).await;
        tracing::info!(?verdict, "KVM was probed");
        let kept = StoredProbe { host_fingerprint, verdict };
        let stored = file::private_dir(&self.layout.cache());
        if let Err(error) = stored.and_then(|()| file::replace_json(&path, &kept)) {
            // The next daemon has to probe again.
            tracing::warn!(path = %path.display(), %error, "cannot store the result of the probe of KVM");
        }
        Ok(kept.verdict)
    }
}

/// Whether KVM works on this host, as far as that is known without a daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KvmVerdict {
    /// It runs guests.
    Works,
    /// `/dev/kvm` is not there or does not open, for this reason.
    Closed(String),
    /// The device opens, but the processor shows no sign of virtualization, for this reason.
    Hidden(String),
    /// The probe failed.
    Fails(String),
    /// There is no kernel to try it with.
    Untried,
}

/// Says whether KVM works: by hints, by the result that a daemon has stored, or by booting
/// `kernel`.
pub async fn examine(layout: &Layout, qemu: &Installation, kernel: Option<&Path>) -> KvmVerdict {
    let hints = look();
    let decision = by_hints(AccelChoice::Auto, &hints);
    match (hints.unusable, decision) {
        (Some(reason), _) => KvmVerdict::Closed(reason),
        (None, Some(Ok(accel))) => KvmVerdict::Hidden(accel.reason),
        (None, _) => match (kept(layout, qemu), kernel) {
            (Some(verdict), _) => kvm_verdict(verdict),
            (None, Some(kernel)) => kvm_verdict(probe(kernel).await),
            (None, None) => KvmVerdict::Untried,
        },
    }
}

fn kvm_verdict(verdict: ProbeResult) -> KvmVerdict {
    match verdict {
        ProbeResult::Works { .. } => KvmVerdict::Works,
        ProbeResult::Fails { reason } => KvmVerdict::Fails(reason),
    }
}

/// Returns the stored result of this boot of the host and this QEMU, whichever kernel was booted.
fn kept(layout: &Layout, qemu: &Installation) -> Option<ProbeResult> {
    let kept = file::read_json::<StoredProbe>(&layout.accel_verdict()).ok()?;
    let same = boot_id().is_ok_and(|id| id == kept.host_fingerprint.boot_id)
        && kept.host_fingerprint.qemu_version == qemu.version;
    same.then_some(kept.verdict)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hints(unusable: Option<String>, virtualizes: bool) -> KvmHints {
        KvmHints { unusable, virtualizes }
    }

    #[test]
    fn hints_decide_what_they_can() {
        let closed = || Some("there is no /dev/kvm".to_owned());
        let none = "the host's processor shows neither vmx nor svm";
        let table = [
            (AccelChoice::Tcg, hints(None, true), Some(Ok(tcg("asked for in config/accel")))),
            (AccelChoice::Auto, hints(closed(), true), Some(Ok(tcg("there is no /dev/kvm")))),
            (AccelChoice::Kvm, hints(closed(), true), Some(Err("there is no /dev/kvm".into()))),
            (AccelChoice::Auto, hints(None, false), Some(Ok(tcg(none)))),
            (AccelChoice::Kvm, hints(None, false), None),
            (AccelChoice::Auto, hints(None, true), None),
            (AccelChoice::Kvm, hints(None, true), None),
        ];
        for (choice, hints, expected) in table {
            assert_eq!(by_hints(choice, &hints), expected, "{choice:?} {hints:?}");
        }
    }

    #[test]
    fn a_guest_of_another_architecture_is_translated() {
        let other = Arch::ALL.into_iter().find(|arch| !arch.is_native()).unwrap();
        let accel = translated(AccelChoice::Auto, other).unwrap();
        assert_eq!((accel.kind, &*accel.cpu), (AccelKind::Tcg, other.platform().tcg_cpu));
        let reason = translated(AccelChoice::Kvm, other).unwrap_err();
        assert!(reason.starts_with(&format!("the guest's processor is {other}")), "{reason}");
    }

    #[test]
    fn a_failed_probe_is_a_reason_for_tcg_and_a_refusal_of_kvm() {
        let fails = || ProbeResult::Fails { reason: "slow".into() };
        assert_eq!(by_verdict(AccelChoice::Auto, fails()), Ok(tcg("slow")));
        assert_eq!(by_verdict(AccelChoice::Kvm, fails()), Err("slow".into()));
        let works = ProbeResult::Works { cpu: "host".into() };
        let accel = by_verdict(AccelChoice::Auto, works).expect("KVM works and is not used");
        assert_eq!((accel.kind, accel.cpu.as_str()), (AccelKind::Kvm, "host"));
    }

    #[test]
    fn processor_flags_are_a_hint_only_where_there_are_any() {
        let table = [
            ("processor : 0\nflags\t\t: fpu vmx sse\n", true),
            ("flags : fpu svm\n", true),
            ("flags : fpu vmx_like\n", false),
            ("Features : fp asimd\n", true),
            ("", true),
        ];
        for (cpuinfo, expected) in table {
            assert_eq!(virtualizes(cpuinfo), expected, "{cpuinfo:?}");
        }
    }

    #[test]
    fn a_device_that_is_there_but_not_ours_names_the_group() {
        let denied = io::Error::from(io::ErrorKind::PermissionDenied);
        assert!(why_closed(&denied).contains("usermod -aG kvm"));
    }
}

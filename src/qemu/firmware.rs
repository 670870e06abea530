//! UEFI firmware that the host has, as its distribution describes it: JSON files in the form of QEMU's
//! `docs/interop/firmware.json`. Of several files with one name the first directory's counts, and an
//! empty file hides the others; the first name that fits is taken.
//!
//! Not here: the variables of a VM (`nvram`).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::arch::Arch;
use crate::disk::{DiskFormat, Layer, qcow2};
use crate::vm::backend::{BackendError, Result};
use crate::vm::spec::render_size;

/// What guests are.
const ARCHITECTURE: &str = "x86_64";
/// Where descriptions are, those of the administrator before those of packages.
const DIRECTORIES: [&str; 2] = ["/etc/qemu/firmware", "/usr/share/qemu/firmware"];
/// What firmware may need that our machines do not have, or does to disks that are not signed.
const UNFIT: [&str; 2] = ["requires-smm", "enrolled-keys"];
/// Where packages without a description keep code and variables.
const PLAIN: [(&str, &str); 4] = [
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
    ("/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"),
    ("/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"),
    ("/usr/share/qemu/ovmf-x86_64-4m-code.bin", "/usr/share/qemu/ovmf-x86_64-4m-vars.bin"),
];

/// A firmware in two parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Uefi {
    /// Its program, which is never written.
    pub(super) code: Layer,
    /// What a VM's variables are at first.
    pub(super) template: Layer,
}

/// Finds the firmware for a machine type, whose variables take so many bytes if the VM has some.
///
/// # Errors
/// `Missing` if there is none, `Unfit` if those that there are have other variables.
pub(super) fn find(machine: &str, variables: Option<u64>) -> Result<Uefi> {
    if !machine.starts_with(Arch::X86_64.platform().machine_prefix) {
        let reason = "UEFI is for x86_64 guests only, so far; `echo none` into this".to_owned();
        return Err(BackendError::Unfit { key: "firmware", reason });
    }
    let mut dirs = vec![user_dir()];
    dirs.extend(DIRECTORIES.map(|dir| Some(dir.into())));
    let dirs: Vec<PathBuf> = dirs.into_iter().flatten().collect();
    choose(described(&dirs, machine).chain(plain()), variables)
}

fn user_dir() -> Option<PathBuf> {
    let config = std::env::var_os("XDG_CONFIG_HOME").filter(|dir| !dir.is_empty());
    let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".config"));
    Some(config.map(PathBuf::from).or_else(home)?.join("qemu/firmware"))
}

fn choose(found: impl Iterator<Item = Uefi>, variables: Option<u64>) -> Result<Uefi> {
    let mut found = found.filter_map(|uefi| Some((uefi.size_of_variables()?, uefi))).peekable();
    if found.peek().is_none() {
        return Err(BackendError::Missing {
            program: "UEFI firmware (OVMF)".to_owned(),
            remedy: "`apt install ovmf` or your system's package of it".to_owned(),
        });
    }
    let Some(wanted) = variables else {
        return found.next().map(|(_, uefi)| uefi).ok_or_else(|| unfit(0));
    };
    found.find(|(size, _)| *size == wanted).map(|(_, uefi)| uefi).ok_or_else(|| unfit(wanted))
}

fn unfit(size: u64) -> BackendError {
    let size = render_size(size);
    BackendError::Unfit {
        key: "firmware",
        reason: format!(
            "the UEFI variables of this VM take {size}, and no firmware of this host has as many; install \
             the one that they were made with, or `echo none` into this"
        ),
    }
}

impl Uefi {
    /// Returns how many bytes its variables take; `None` if it is not there.
    fn size_of_variables(&self) -> Option<u64> {
        fs::metadata(&self.code.path).ok().filter(fs::Metadata::is_file)?;
        size_of(&self.template)
    }
}

/// Returns the bytes that a guest sees of a file; `None` if it cannot be read.
pub(super) fn size_of(layer: &Layer) -> Option<u64> {
    match layer.format {
        DiskFormat::Raw => fs::metadata(&layer.path).ok().map(|m| m.len()),
        DiskFormat::Qcow2 => qcow2::virtual_size(&layer.path).ok().flatten(),
    }
}

fn plain() -> impl Iterator<Item = Uefi> {
    let raw = |path: &str| Layer { path: path.into(), format: DiskFormat::Raw };
    PLAIN.into_iter().map(move |(code, template)| Uefi { code: raw(code), template: raw(template) })
}

fn described(dirs: &[PathBuf], machine: &str) -> impl Iterator<Item = Uefi> {
    let mut files = BTreeMap::new();
    for entry in dirs.iter().rev().filter_map(|dir| fs::read_dir(dir).ok()).flatten().flatten() {
        if entry.path().extension().is_some_and(|ending| ending == "json") {
            files.insert(entry.file_name(), entry.path());
        }
    }
    let machine = machine.to_owned();
    files.into_values().filter_map(move |path| read(&path)?.uefi_for(&machine))
}

/// A description that is not understood is of something else.
fn read(path: &Path) -> Option<Description> {
    let bytes = fs::read(path).ok().filter(|bytes| !bytes.is_empty())?;
    let read = serde_json::from_slice(&bytes);
    read.inspect_err(|error| tracing::debug!(path = %path.display(), %error, "not used")).ok()
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Description {
    interface_types: Vec<String>,
    mapping: Mapping,
    targets: Vec<Target>,
    #[serde(default)]
    features: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Mapping {
    device: String,
    /// How flash is used: `split` if it is not said.
    #[serde(default)]
    mode: Option<String>,
    executable: Option<Part>,
    nvram_template: Option<Part>,
}

#[derive(Debug, Deserialize)]
struct Part {
    filename: PathBuf,
    format: DiskFormat,
}

#[derive(Debug, Deserialize)]
struct Target {
    architecture: String,
    machines: Vec<String>,
}

impl Description {
    fn uefi_for(self, machine: &str) -> Option<Uefi> {
        let is_uefi = self.interface_types.iter().any(|kind| kind == "uefi");
        let is_split = self.mapping.mode.as_deref().is_none_or(|mode| mode == "split");
        let is_fit = !self.features.iter().any(|feature| UNFIT.contains(&feature.as_str()));
        let is_flash = self.mapping.device == "flash" && is_split;
        if !(is_uefi && is_fit && is_flash && self.targets.iter().any(|t| t.is(machine))) {
            return None;
        }
        let layer = |Part { filename, format }| Layer { path: filename, format };
        let Mapping { executable, nvram_template, .. } = self.mapping;
        Some(Uefi { code: layer(executable?), template: layer(nvram_template?) })
    }
}

impl Target {
    fn is(&self, machine: &str) -> bool {
        let fits = |pattern: &String| match pattern.strip_suffix('*') {
            Some(start) => machine.starts_with(start),
            None => machine == pattern,
        };
        self.architecture == ARCHITECTURE && self.machines.iter().any(fits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Describes a firmware of `dir`, whose variables take `size` bytes.
    fn describe(dir: &Path, name: &str, size: usize, features: &str) {
        let (code, vars) = (dir.join(format!("{name}.code")), dir.join(format!("{name}.vars")));
        fs::write(&code, "code").unwrap();
        fs::write(&vars, vec![0; size]).unwrap();
        let text = format!(
            r#"{{"description": "x", "interface-types": ["uefi"], "tags": [], "features": [{features}],
                "mapping": {{"device": "flash",
                    "executable": {{"filename": {code:?}, "format": "raw"}},
                    "nvram-template": {{"filename": {vars:?}, "format": "raw"}}}},
                "targets": [{{"architecture": "x86_64", "machines": ["pc-i440fx-*", "pc-q35-*"]}}]}}"#
        );
        fs::write(dir.join(format!("{name}.json")), text).unwrap();
    }

    fn found(dirs: &[&Path], variables: Option<u64>) -> Result<Uefi> {
        let dirs: Vec<_> = dirs.iter().map(|dir| dir.to_path_buf()).collect();
        choose(described(&dirs, "pc-q35-7.2"), variables)
    }

    #[test]
    fn the_first_description_that_fits_is_taken() {
        let (dir, user) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (dir, user) = (dir.path(), user.path());
        describe(dir, "40-secure", 16, r#""requires-smm""#);
        describe(dir, "50-four", 4096, r#""acpi-s3""#);
        describe(dir, "60-two", 2048, "");
        fs::write(dir.join("10-broken.json"), "{").unwrap();
        assert_eq!(found(&[dir], None).unwrap().code.path, dir.join("50-four.code"));
        assert_eq!(found(&[dir], Some(2048)).unwrap().code.path, dir.join("60-two.code"));
        fs::write(user.join("50-four.json"), "").unwrap();
        assert_eq!(found(&[user, dir], None).unwrap().code.path, dir.join("60-two.code"));
        assert_eq!(choose(described(&[dir.into()], "virt"), None).unwrap_err(), missing());
    }

    fn missing() -> BackendError {
        choose(std::iter::empty(), None).unwrap_err()
    }

    #[test]
    fn what_is_missing_is_told() {
        let dir = tempfile::tempdir().unwrap();
        describe(dir.path(), "50-four", 4096, "");
        let error = found(&[dir.path()], Some(2048)).unwrap_err();
        assert!(error.to_string().contains("take 2K"), "{error}");
        fs::remove_file(dir.path().join("50-four.code")).unwrap();
        assert_eq!(found(&[dir.path()], None).unwrap_err(), missing());
        assert!(missing().to_string().contains("apt install ovmf"), "{}", missing());
    }
}

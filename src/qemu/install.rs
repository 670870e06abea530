//! Which QEMU is installed: its version and the machine type that we use. Asked once.

use std::io;
use std::process::{Output, Stdio};
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

use crate::arch::{Arch, Platform};
use crate::programs::{self, Program};
use crate::vm::backend::{BackendError, Result};

/// How long QEMU may take to describe itself: it needs some 50 ms, more when it must come from a
/// busy disk first.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);

/// The QEMU of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installation {
    /// `7.2.22`.
    pub version: String,
    /// What `q35` or `virt` means to it: `pc-q35-7.2`. A machine pinned to it stays the same for as
    /// long as it runs and wherever its memory is loaded again.
    pub machine: String,
}

impl Installation {
    /// Says whether it can map a file's memory copy-on-write without being able to write the file.
    /// Older ones take `readonly=on` for ROM (QEMU 8.2 has `rom=off`).
    pub fn keeps_templates(&self) -> bool {
        let mut numbers = self.version.split('.').map_while(|n| n.parse::<u32>().ok());
        (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (8, 2)
    }

    /// Asks the QEMU of an architecture.
    pub async fn probe(arch: Arch) -> Result<Self> {
        let Platform { emulator, machine, .. } = arch.platform();
        let (version, machines) =
            tokio::join!(ask(emulator, &["--version"]), ask(emulator, &["-machine", "help"]));
        let (version, machines) = (version?, machines?);
        let odd = |question, answer: &str| odd(emulator, question, answer);
        Ok(Self {
            version: parse_version(&version).ok_or_else(|| odd("--version", &version))?,
            machine: parse_machine(&machines, machine)
                .ok_or_else(|| odd("-machine help", &machines))?,
        })
    }
}

async fn ask(emulator: &'static Program, args: &[&str]) -> Result<String> {
    let mut command = Command::new(emulator.name);
    command.args(args).stdin(Stdio::null()).kill_on_drop(true);
    match timeout(PROBE_TIMEOUT, command.output()).await {
        Ok(Ok(Output { stdout, .. })) => Ok(String::from_utf8_lossy(&stdout).into_owned()),
        Ok(Err(error)) => Err(not_started(emulator, &error)),
        Err(_) => Err(odd(emulator, &args.join(" "), "nothing in time")),
    }
}

/// Says why QEMU could not be started.
pub fn not_started(emulator: &'static Program, error: &io::Error) -> BackendError {
    let (program, remedy) = (emulator.name.to_owned(), programs::remedy(&[emulator]));
    match programs::is_absent(error) {
        true => BackendError::Missing { program, remedy },
        false => BackendError::io(format!("start {program}"), error),
    }
}

fn odd(emulator: &Program, question: &str, answer: &str) -> BackendError {
    let fact = format!("cannot make sense of its answer: {}", answer.trim());
    BackendError::fact(format!("{} {question}", emulator.name), fact, 0)
}

fn parse_version(text: &str) -> Option<String> {
    let rest = text.split_once("version ")?.1;
    let version: String = rest.chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect();
    (!version.is_empty()).then_some(version)
}

fn parse_machine(text: &str, machine: &str) -> Option<String> {
    let line = text.lines().find(|l| l.split(' ').next() == Some(machine))?;
    let alias = line.split_once("(alias of ")?.1.split_once(')')?.0;
    Some(alias.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_qemu_can_do_follows_from_its_version() {
        let of = |version: &str| Installation { version: version.into(), machine: String::new() };
        let table = [("7.2.22", false), ("8.1.5", false), ("8.2.0", true), ("10.0.2", true)];
        for (version, expected) in table {
            assert_eq!(of(version).keeps_templates(), expected, "{version}");
        }
    }

    #[test]
    fn the_answers_of_several_qemus_are_understood() {
        let debian = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)\nCopyright (c)\n";
        assert_eq!(parse_version(debian).as_deref(), Some("7.2.22"));
        let own = "QEMU emulator version 10.0.2\n";
        assert_eq!(parse_version(own).as_deref(), Some("10.0.2"));
        assert_eq!(parse_version("nonsense"), None);
        let machines = "Supported machines are:\n\
            pc                   Standard PC (i440FX) (alias of pc-i440fx-7.2)\n\
            q35                  Standard PC (Q35 + ICH9, 2009) (alias of pc-q35-7.2)\n\
            pc-q35-7.2           Standard PC (Q35 + ICH9, 2009)\n";
        assert_eq!(parse_machine(machines, "q35").as_deref(), Some("pc-q35-7.2"));
        assert_eq!(parse_machine("q35  odd\n", "q35"), None);
        let machines = "virt-7.2   QEMU 7.2 ARM Virtual Machine\n\
            virt                 QEMU 7.2 ARM Virtual Machine (alias of virt-7.2)\n";
        assert_eq!(parse_machine(machines, "virt").as_deref(), Some("virt-7.2"));
    }
}

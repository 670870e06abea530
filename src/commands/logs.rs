//! `aq logs`: what the serial line has said, or QEMU.

use std::fs::File;
use std::io::{self, Read, Write};
use std::thread;

use super::Failure;
use super::files::{LOOK, Tree};
use crate::cli::machines::Logs;

pub(super) fn run(tree: &Tree, args: &Logs) -> Result<(), Failure> {
    let vm = tree.vm(&args.vm)?;
    let name = if args.qemu { "log" } else { "console.log" };
    let mut file = tree.explained(&*vm.name, File::open(vm.path(name)))?;
    let mut buffer = vec![0; 64 << 10];
    loop {
        match tree.explained(&*vm.name, file.read(&mut buffer))? {
            0 if !args.follow => return Ok(()),
            // The file grows without an event: QEMU writes it by itself.
            0 => thread::sleep(LOOK),
            n => print(&buffer[..n])?,
        }
    }
}

fn print(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = io::stdout();
    out.write_all(bytes).and_then(|()| out.flush()).map_err(Failure::Output)
}

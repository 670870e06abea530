//! `aq connect MOUNT/VM`: a connection to a guest's SSH server on standard input and output. `ssh_config` of a VM with
//! `config/idle` names it: such a VM may be suspended, and this brings it back first.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::thread;

use super::files::{Tree, Vm};
use super::{Failure, local, ssh};

/// How much is copied at once.
const PIECE: usize = 64 << 10;

/// Connects, and returns when the guest has closed the connection.
///
/// # Errors
/// Why there is no connection.
pub fn run(vm: &Path) -> Result<(), Failure> {
    let name = vm.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let vm = Tree::at(vm.parent().unwrap_or(vm).to_owned()).vm(&name)?;
    ssh::wait_for_ssh(&vm)?;
    let connect = || {
        let stream = TcpStream::connect(("127.0.0.1", port(&vm).unwrap_or_default()))?;
        copy(&stream)
    };
    connect().map_err(local(name))
}

fn port(vm: &Vm) -> Option<u16> {
    let facts = vm.facts().ok()?;
    facts.iter().find(|(key, _)| key == "ssh_port")?.1.parse().ok()
}

fn copy(stream: &TcpStream) -> io::Result<()> {
    let (mut from, mut to) = (stream.try_clone()?, stream.try_clone()?);
    let mut input = File::from(rustix::stdio::stdin().try_clone_to_owned()?);
    let mut output = File::from(rustix::stdio::stdout().try_clone_to_owned()?);
    thread::spawn(move || {
        // Its end is the end of what the user says.
        drop(copy_pieces(&mut input, &mut to));
        drop(to.shutdown(Shutdown::Write));
    });
    copy_pieces(&mut from, &mut output)
}

/// Copies each piece as it comes. `io::copy` has the kernel move pages between a pipe and a socket, which may hold
/// back a last piece that no other follows.
fn copy_pieces(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut buffer = vec![0; PIECE];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => to.write_all(&buffer[..length])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

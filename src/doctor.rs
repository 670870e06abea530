//! stub
use std::io;
/// x
pub fn run() -> io::Result<()> {
    Ok(())
}

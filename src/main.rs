//! `aq`: parse, run, print the error, exit code. No logic here.

use std::process::ExitCode;

use aqfs::cli::Cli;
use aqfs::{commands, run};
use clap::Parser;

#[allow(clippy::print_stderr)]
fn main() -> ExitCode {
    commands::complete::complete();
    match run::run(Cli::parse()) {
        Ok(code) => code.into(),
        Err(error) => {
            if !error.is_reported() {
                eprintln!("aq: {error}");
            }
            error.code().into()
        }
    }
}

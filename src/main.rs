//! `aq`: parse, run, print the error, exit code. No logic here.

use std::process::ExitCode;

use aqfs::cli::Cli;
use aqfs::run;
use clap::Parser;

#[allow(clippy::print_stderr)]
fn main() -> ExitCode {
    match run::run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if !error.is_told() {
                eprintln!("aq: {error}");
            }
            ExitCode::FAILURE
        }
    }
}

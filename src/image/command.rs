//! Runs the distribution's programs: arguments as words, never through a shell, and a failure
//! says the program's own last words.

use std::ffi::OsString;
use std::io;
use std::process::{Command, Output, Stdio};

use super::source::{BuildError, Result};
use crate::programs::{self, last_line};
use crate::vm::backend::BackendError;

/// A program, and what to do when it is not there.
#[derive(Debug)]
pub(super) struct Tool {
    /// Its name, looked up in `PATH` and where administrators' programs are.
    pub(super) name: &'static str,
    pub(super) remedy: &'static str,
}

impl Tool {
    /// Makes a call with a fixed locale and without input. `mke2fs` and its kin are not in an
    /// ordinary user's `PATH` on Debian.
    pub(super) fn command(&self) -> Command {
        let mut command = Command::new(self.name);
        let mut path = std::env::var_os("PATH").unwrap_or_default();
        path.push(OsString::from(":/usr/local/sbin:/usr/sbin:/sbin"));
        command.env("PATH", path).env("LC_ALL", "C");
        command.stdin(Stdio::null());
        command
    }

    /// Runs a call to its end and returns its standard output.
    pub(super) fn run(&self, command: &mut Command) -> Result<Vec<u8>> {
        self.run_loud(command).map(|output| output.stdout)
    }

    /// Runs a call to its end and returns all that it said; that it fails is an error too.
    pub(super) fn run_loud(&self, command: &mut Command) -> Result<Output> {
        let output = command.output().map_err(|e| self.not_started(&e))?;
        self.checked(output)
    }

    fn checked(&self, output: Output) -> Result<Output> {
        if output.status.success() {
            return Ok(output);
        }
        let said = last_line(&output.stderr).unwrap_or_else(|| output.status.to_string());
        Err(BuildError::Tool { tool: self.name, said })
    }

    fn not_started(&self, error: &io::Error) -> BuildError {
        let (program, remedy) = (self.name.to_owned(), self.remedy.to_owned());
        match programs::is_absent(error) {
            true => BackendError::Missing { program, remedy }.into(),
            false => BackendError::io(program, error).into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_is_not_installed_comes_with_the_remedy() {
        let tool = Tool { name: "no-such-program-here", remedy: "install it" };
        let error = tool.run(&mut tool.command()).unwrap_err();
        assert!(
            matches!(error, BuildError::Backend(BackendError::Missing { remedy, .. }) if remedy == "install it")
        );
    }

    #[test]
    fn a_failure_says_the_last_line_of_stderr() {
        let tool = Tool { name: "ls", remedy: "" };
        let error = tool.run(tool.command().arg("/no/such/file")).unwrap_err().to_string();
        assert!(error.contains("No such file"), "{error}");
    }
}

//! Runs the distribution's programs: arguments as words, never through a shell, and a failure
//! says the program's own last words.

use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use super::source::BuildError;
use crate::programs::last_line;

/// A program, and what to do when it is not there.
#[derive(Debug)]
pub(super) struct Tool {
    /// Its name, looked up in `PATH` and where administrators' programs are.
    pub(super) name: &'static str,
    /// What to do when it is not installed.
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
    pub(super) fn run(&self, command: &mut Command) -> Result<Vec<u8>, BuildError> {
        self.run_loud(command).map(|output| output.stdout)
    }

    /// Runs a call to its end and returns all that it said; that it fails is an error too.
    pub(super) fn run_loud(&self, command: &mut Command) -> Result<Output, BuildError> {
        let output = command.output().map_err(|e| self.not_started(&e))?;
        if output.status.success() {
            return Ok(output);
        }
        Err(failure(self.name, &output))
    }

    /// Starts a call whose standard output is read while it runs.
    pub(super) fn stream(&self, command: &mut Command) -> Result<RunningTool, BuildError> {
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| self.not_started(&e))?;
        let stdout = child.stdout.take();
        Ok(RunningTool { tool: self.name, child, stdout })
    }

    fn not_started(&self, error: &io::Error) -> BuildError {
        // A directory of PATH that may not be entered hides what is not elsewhere.
        if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) {
            BuildError::Missing { program: self.name, remedy: self.remedy }
        } else {
            BuildError::io(Path::new(self.name), error)
        }
    }
}

/// A call that runs.
#[derive(Debug)]
pub(super) struct RunningTool {
    tool: &'static str,
    child: Child,
    stdout: Option<ChildStdout>,
}

impl RunningTool {
    /// Takes its standard output.
    pub(super) fn stdout(&mut self) -> Option<ChildStdout> {
        self.stdout.take()
    }

    /// Waits for its end.
    pub(super) fn finish(self) -> Result<(), BuildError> {
        let output =
            self.child.wait_with_output().map_err(|e| BuildError::io(Path::new(self.tool), &e))?;
        if output.status.success() {
            return Ok(());
        }
        Err(failure(self.tool, &output))
    }
}

fn failure(tool: &'static str, output: &Output) -> BuildError {
    BuildError::Tool {
        tool,
        said: last_line(&output.stderr).unwrap_or_else(|| output.status.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_is_not_installed_comes_with_the_remedy() {
        let tool = Tool { name: "no-such-program-here", remedy: "install it" };
        let error = tool.run(&mut tool.command()).unwrap_err();
        assert!(matches!(error, BuildError::Missing { remedy: "install it", .. }));
    }

    #[test]
    fn a_failure_says_the_last_line_of_stderr() {
        let tool = Tool { name: "ls", remedy: "" };
        let error = tool.run(tool.command().arg("/no/such/file")).unwrap_err().to_string();
        assert!(error.contains("No such file"), "{error}");
    }
}

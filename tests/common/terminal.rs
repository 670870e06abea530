//! A terminal of its own for a test: a tmux server on a private socket.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::eventually;
use super::shell::finish;

const BOUND: Duration = Duration::from_secs(20);

/// A tmux server with one window, in which bash runs. Dropping it ends both.
#[derive(Debug)]
pub(crate) struct Terminal {
    socket: PathBuf,
}

impl Terminal {
    /// Opens a terminal in `dir`. `socket` is a path for tmux's socket, in a directory of the test.
    pub(crate) fn open(socket: PathBuf, dir: &Path) -> Self {
        let terminal = Self { socket };
        let mut start = terminal.tmux();
        start.args(["new-session", "-d", "-x", "120", "-y", "40", "-c"]).arg(dir);
        finish(start.args(["bash", "--norc", "--noprofile"]), BOUND).ok();
        terminal.until_foreground("bash");
        terminal
    }

    /// Types a line and presses Return.
    pub(crate) fn enter(&self, line: &str) {
        self.keys(line);
        self.press("Enter");
    }

    /// Types.
    pub(crate) fn keys(&self, text: &str) {
        finish(self.tmux().args(["send-keys", "-l", text]), BOUND).ok();
    }

    /// Presses a key, named as tmux names it: `C-c`.
    pub(crate) fn press(&self, key: &str) {
        finish(self.tmux().args(["send-keys", key]), BOUND).ok();
    }

    /// Waits until `program` is in the foreground.
    #[track_caller]
    pub(crate) fn until_foreground(&self, program: &str) {
        eventually(&format!("{program} in the foreground"), BOUND, || self.foreground() == program);
    }

    /// Gives the window another size.
    pub(crate) fn resize(&self, columns: u16, rows: u16) {
        let (x, y) = (columns.to_string(), rows.to_string());
        finish(self.tmux().args(["resize-window", "-x", &x, "-y", &y]), BOUND).ok();
    }

    /// Returns what is on the screen.
    pub(crate) fn screen(&self) -> String {
        finish(self.tmux().args(["capture-pane", "-p"]), BOUND).ok()
    }

    /// Waits until `text` is on the screen.
    #[track_caller]
    pub(crate) fn until_shown(&self, text: &str) {
        let shown = catch_unwind(AssertUnwindSafe(|| {
            eventually(text, BOUND, || self.screen().contains(text));
        }));
        assert!(shown.is_ok(), "no {text:?} on\n{}", self.screen());
    }

    fn foreground(&self) -> String {
        self.display("#{pane_current_command}")
    }

    /// Returns what tmux knows of the window.
    pub(crate) fn display(&self, format: &str) -> String {
        finish(self.tmux().args(["display-message", "-p", format]), BOUND).ok()
    }

    fn tmux(&self) -> Command {
        let mut command = Command::new("tmux");
        command.env_remove("TMUX").args(["-f", "/dev/null", "-S"]).arg(&self.socket);
        command
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _already_gone = self.tmux().arg("kill-server").output();
    }
}

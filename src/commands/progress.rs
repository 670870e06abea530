//! What is shown while something takes longer than a second, on a terminal: what is being done and,
//! where that is known, how far it is.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// What is over within this time is not worth a line.
const SHOWN_AFTER: Duration = Duration::from_secs(1);

/// A line on standard error that comes after a second and goes with its owner. Nothing is shown
/// where standard error is no terminal.
pub(super) struct Progress {
    due: Option<Instant>,
    bar: Option<ProgressBar>,
}

impl Progress {
    pub(super) fn new() -> Self {
        Self { due: Some(Instant::now() + SHOWN_AFTER), bar: None }
    }

    /// One that never shows anything: for one of many at once.
    pub(super) fn hidden() -> Self {
        Self { due: None, bar: None }
    }

    /// Shows what is being done. A text that ends in `42 %` is shown as a bar.
    pub(super) fn show(&mut self, text: impl FnOnce() -> String) {
        if self.due.is_none_or(|due| Instant::now() < due) {
            return;
        }
        let bar = self.bar.get_or_insert_with(|| ProgressBar::new(100));
        let text = text();
        match percent(&text) {
            Some((what, done)) => {
                bar.set_style(style("{spinner} {msg} [{bar:30}] {pos} % {elapsed}"));
                bar.set_position(done);
                bar.set_message(what);
            }
            None => {
                bar.set_style(style("{spinner} {msg} {elapsed}"));
                bar.set_message(text);
            }
        }
        bar.tick();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner())
}

fn percent(text: &str) -> Option<(String, u64)> {
    let (what, number) = text.strip_suffix('%')?.trim_end().rsplit_once(' ')?;
    Some((what.to_owned(), number.parse().ok().filter(|n| *n <= 100)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentage_at_the_end_is_a_bar() {
        assert_eq!(percent("copying 42 %"), Some(("copying".to_owned(), 42)));
        for text in ["copying", "copying 420 %", "50 %", "%"] {
            assert_eq!(percent(text), None, "{text}");
        }
    }

    #[test]
    fn the_templates_are_well_formed() {
        for template in
            ["{spinner} {msg} [{bar:30}] {pos} % {elapsed}", "{spinner} {msg} {elapsed}"]
        {
            ProgressStyle::with_template(template).unwrap();
        }
    }
}

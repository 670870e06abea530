//! `aq top`: all VMs in a table that is kept up to date on the terminal.

use std::collections::HashMap;
use std::io::{self, IsTerminal, Write};
use std::sync::mpsc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use crossterm::terminal::{self, Clear, ClearType, EnterAlternateScreen, LeaveAlternateScreen};
use crossterm::{cursor, execute, queue};

use super::files::{KeyValues, LOOK, Tree, fact};
use super::ls::coloured;
use super::text::{line, size};
use super::{Failure, local, signals};
use crate::cli::machines::Top;

const HEAD: &str =
    "NAME                             STATUS       CPU%    RSS MEMORY   DISK PORT   UPTIME   IMAGE";

struct Look {
    at: Instant,
    vms: Vec<KeyValues>,
    /// Processor time of each VM, in milliseconds, by its UUID.
    cpu: HashMap<String, u64>,
}

pub(super) fn run(tree: &Tree, args: &Top) -> Result<(), Failure> {
    let delay = Duration::try_from_secs_f64(args.delay.max(0.1));
    let delay = delay.map_err(|e| Failure::Usage(format!("--delay: {e}")))?;
    if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        let look = look(tree)?;
        return table(tree, &look, &look).iter().try_for_each(line);
    }
    let (sender, receiver) = mpsc::channel();
    signals::forward(sender, std::convert::identity)?;
    let screen = Screen::enter().map_err(local("the terminal"))?;
    let done = watch(tree, delay, &receiver);
    drop(screen);
    done
}

/// Draws until the user leaves.
fn watch(tree: &Tree, delay: Duration, receiver: &mpsc::Receiver<i32>) -> Result<(), Failure> {
    let (mut before, mut top) = (look(tree)?, 0);
    let mut lines = table(tree, &before, &before);
    let mut next = Instant::now() + delay;
    loop {
        top = draw(&lines, top).map_err(Failure::Output)?;
        match key(next, receiver).map_err(local("the terminal"))? {
            Heard::Leave => return Ok(()),
            Heard::Signal(signal) => return Err(Failure::Reported(signals::exit_code(signal))),
            Heard::Scroll(by) => top = top.saturating_add_signed(by),
            Heard::Resized => {}
            Heard::Nothing => {
                let now = look(tree)?;
                lines = table(tree, &before, &now);
                (before, next) = (now, Instant::now() + delay);
            }
        }
    }
}

fn look(tree: &Tree) -> Result<Look, Failure> {
    // One that is removed at this moment is not shown.
    let vms: Vec<KeyValues> = tree.vms()?.iter().filter_map(|vm| vm.facts().ok()).collect();
    let used = |f: &KeyValues| (fact(f, "uuid").to_owned(), fact(f, "cpu_ms").parse().unwrap_or(0));
    let cpu = vms.iter().map(used).collect();
    Ok(Look { at: Instant::now(), vms, cpu })
}

// ----- the table -------------------------------------------------------------------------------

fn table(tree: &Tree, before: &Look, now: &Look) -> Vec<String> {
    let on = now.vms.iter().filter(|f| !fact(f, "pid").is_empty()).count();
    let host = tree.read_or_nothing(".host");
    let host = |key: &str| {
        let value = host.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(' '));
        value.unwrap_or_default().to_owned()
    };
    let bytes = |key: &str| size(host(key).parse().unwrap_or_default());
    let accel = host("accel");
    let head = format!(
        "{} VMs, {on} on; {} of {} memory free; {}",
        now.vms.len(),
        bytes("memory_available"),
        bytes("memory_total"),
        accel.split(':').next().unwrap_or_default()
    );
    let rows = now.vms.iter().map(|f| row(f, share(f, before, now)));
    [head, String::new(), HEAD.to_owned()].into_iter().chain(rows).collect()
}

/// Returns the processor time used between two looks, in percent of one processor.
fn share(facts: &KeyValues, before: &Look, now: &Look) -> f64 {
    let uuid = fact(facts, "uuid");
    let used = |look: &Look| look.cpu.get(uuid).copied().unwrap_or_default();
    let passed = now.at.duration_since(before.at).as_secs_f64();
    if passed <= 0.0 || used(before) > used(now) {
        return 0.0;
    }
    Duration::from_millis(used(now) - used(before)).as_secs_f64() / passed * 100.0
}

fn row(facts: &KeyValues, cpu: f64) -> String {
    let bytes = |key: &str| fact(facts, key).parse().map(size).unwrap_or_default();
    let is_on = !fact(facts, "pid").is_empty();
    let cpu = if is_on { format!("{cpu:.1}") } else { String::new() };
    let up = if is_on { since(fact(facts, "since")) } else { String::new() };
    let text = format!(
        "{:<32} {} {cpu:>6} {:>6} {:>6} {:>6} {:<6} {up:<8} {}",
        fact(facts, "name"),
        coloured(fact(facts, "status")),
        bytes("rss"),
        fact(facts, "memory"),
        bytes("disk_bytes"),
        fact(facts, "ssh_port"),
        fact(facts, "image")
    );
    text.trim_end().to_owned()
}

/// Prints how long ago a time in seconds since 1970 was: `42s`, `7m`, `3h12m`, `5d`.
fn since(seconds: &str) -> String {
    let then = Duration::from_secs(seconds.parse().unwrap_or_default());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    age(now.saturating_sub(then).as_secs())
}

fn age(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86_400 => format!("{}h{:02}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d", seconds / 86_400),
    }
}

// ----- the terminal ----------------------------------------------------------------------------

enum Heard {
    Leave,
    Signal(i32),
    Scroll(isize),
    Resized,
    /// It is time to look again.
    Nothing,
}

/// Waits for a key until `next`.
fn key(next: Instant, receiver: &mpsc::Receiver<i32>) -> io::Result<Heard> {
    loop {
        if let Ok(signal) = receiver.try_recv() {
            return Ok(Heard::Signal(signal));
        }
        let left = next.saturating_duration_since(Instant::now());
        if event::poll(left.min(LOOK))?
            && let Some(heard) = meaning(&event::read()?)
        {
            return Ok(heard);
        }
        if left.is_zero() {
            return Ok(Heard::Nothing);
        }
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "most keys mean nothing here")]
fn meaning(event: &Event) -> Option<Heard> {
    let Event::Key(KeyEvent { code, modifiers, kind: KeyEventKind::Press, .. }) = event else {
        return matches!(event, Event::Resize(..)).then_some(Heard::Resized);
    };
    let control = modifiers.contains(KeyModifiers::CONTROL);
    Some(match code {
        KeyCode::Char('c') if control => Heard::Leave,
        KeyCode::Char('q') | KeyCode::Esc => Heard::Leave,
        KeyCode::Down | KeyCode::Char('j') => Heard::Scroll(1),
        KeyCode::Up | KeyCode::Char('k') => Heard::Scroll(-1),
        KeyCode::PageDown | KeyCode::Char(' ') => Heard::Scroll(10),
        KeyCode::PageUp => Heard::Scroll(-10),
        _ => return None,
    })
}

/// Draws the lines, with as many of the VMs, from number `top` on, as there is room for. Returns
/// `top` as far as it makes sense.
fn draw(lines: &[String], top: usize) -> io::Result<usize> {
    let (columns, rows) = terminal::size()?;
    let (head, vms) = lines.split_at(3.min(lines.len()));
    let room = usize::from(rows).saturating_sub(head.len() + 1);
    let top = top.min(vms.len().saturating_sub(room));
    let hint = "q leaves, j and k scroll".to_owned();
    let shown = head.iter().chain(vms.iter().skip(top).take(room)).chain([&hint]);
    let mut out = io::stdout().lock();
    for (at, text) in (0..rows).zip(shown) {
        let text = console::truncate_str(text, columns.into(), "");
        queue!(out, cursor::MoveTo(0, at))?;
        write!(out, "{text}")?;
        queue!(out, Clear(ClearType::UntilNewLine))?;
    }
    queue!(out, Clear(ClearType::FromCursorDown))?;
    out.flush()?;
    Ok(top)
}

/// The terminal's other screen. Dropping it brings the first one back.
struct Screen;

impl Screen {
    fn enter() -> io::Result<Self> {
        terminal::enable_raw_mode()?;
        let screen = Self;
        execute!(io::stdout(), EnterAlternateScreen, cursor::Hide)?;
        Ok(screen)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // A terminal that is gone needs nothing.
        drop(execute!(io::stdout(), cursor::Show, LeaveAlternateScreen));
        drop(terminal::disable_raw_mode());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_short() {
        let table = [(5, "5s"), (600, "10m"), (3_720, "1h02m"), (200_000, "2d")];
        for (seconds, text) in table {
            assert_eq!(age(seconds), text);
        }
    }

    #[test]
    fn processor_time_is_counted_between_looks_and_never_negative() {
        let look = |at: Instant, ms: u64| Look {
            at,
            vms: vec![],
            cpu: HashMap::from([("u".to_owned(), ms)]),
        };
        let facts = vec![("uuid".to_owned(), "u".to_owned())];
        let begun = Instant::now();
        let later = begun + Duration::from_secs(2);
        let half = share(&facts, &look(begun, 1000), &look(later, 2000));
        assert!((half - 50.0).abs() < 0.1, "{half}");
        assert!(share(&facts, &look(begun, 2000), &look(later, 10)).abs() < 0.1);
    }
}

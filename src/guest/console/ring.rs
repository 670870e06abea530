//! The bytes of a serial line that a reader may want: the scrollback, and what slow readers
//! have not read, each byte at its offset since the line began.
//!
//! Pure; no locks here.

use std::collections::{BTreeMap, VecDeque};

use super::Start;

/// What a new reader is shown of the past.
pub(super) const SCROLLBACK: usize = 64 << 10;
/// How far a reader may fall behind before it loses the oldest bytes.
pub(super) const BACKLOG: usize = 1 << 20;

/// The bytes, and where each reader is.
#[derive(Debug, Default)]
pub(super) struct Ring {
    bytes: VecDeque<u8>,
    /// Offset behind the last byte.
    end: u64,
    cursors: BTreeMap<u64, Cursor>,
    next_reader: u64,
}

#[derive(Debug)]
struct Cursor {
    at: u64,
    start: Start,
}

impl Ring {
    /// Adds bytes and returns how many slow readers have lost by that, summed up.
    pub(super) fn push(&mut self, bytes: &[u8]) -> u64 {
        self.bytes.extend(bytes);
        self.end += bytes.len() as u64;
        self.trim()
    }

    /// Adds bytes from the past: those who read from now on do not see them.
    pub(super) fn seed(&mut self, bytes: &[u8]) -> u64 {
        let end = self.end + bytes.len() as u64;
        let live = self.cursors.values_mut().filter(|c| c.start == Start::Now);
        live.filter(|c| c.at == self.end).for_each(|c| c.at = end);
        self.push(bytes)
    }

    pub(super) fn join(&mut self, start: Start) -> u64 {
        let past = match start {
            Start::Scrollback => self.bytes.len().min(SCROLLBACK) as u64,
            Start::Now => 0,
        };
        let at = self.end - past;
        let id = self.next_reader;
        self.next_reader += 1;
        self.cursors.insert(id, Cursor { at, start });
        id
    }

    pub(super) fn leave(&mut self, id: u64) {
        self.cursors.remove(&id);
        self.trim();
    }

    pub(super) fn read(&mut self, id: u64, max: usize) -> Vec<u8> {
        let behind = self.behind(id);
        let from = self.bytes.len() - behind;
        let bytes: Vec<u8> = self.bytes.range(from..).take(max).copied().collect();
        if let Some(cursor) = self.cursors.get_mut(&id) {
            cursor.at += bytes.len() as u64;
        }
        self.trim();
        bytes
    }

    pub(super) fn behind(&self, id: u64) -> usize {
        let at = self.cursors.get(&id).map_or(self.end, |cursor| cursor.at);
        distance(at, self.end)
    }

    /// Keeps the scrollback and what the slowest reader needs, up to the bound.
    fn trim(&mut self) -> u64 {
        let slowest = self.cursors.values().map(|cursor| cursor.at).min();
        let slowest = slowest.unwrap_or(self.end);
        let wanted = distance(slowest, self.end).clamp(SCROLLBACK, BACKLOG);
        let surplus = self.bytes.len().saturating_sub(wanted);
        // In steps, as taking a few bytes off and giving memory back has its price.
        if surplus < SCROLLBACK / 4 && self.bytes.len() <= BACKLOG {
            return 0;
        }
        self.bytes.drain(..surplus);
        if self.bytes.capacity() > 4 * self.bytes.len().max(SCROLLBACK / 4) {
            self.bytes.shrink_to(2 * self.bytes.len());
        }
        self.drop_behind(self.end - self.bytes.len() as u64)
    }

    fn drop_behind(&mut self, start: u64) -> u64 {
        let late = self.cursors.values_mut().filter(|cursor| cursor.at < start);
        late.map(|cursor| start - std::mem::replace(&mut cursor.at, start)).sum()
    }
}

fn distance(from: u64, to: u64) -> usize {
    usize::try_from(to - from).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_beyond_the_backlog_loses_the_oldest_bytes_and_no_other_does() {
        let mut ring = Ring::default();
        let (slow, quick) = (ring.join(Start::Scrollback), ring.join(Start::Scrollback));
        let chunk: Vec<u8> = (0..=255).cycle().take(4096).collect();
        let mut lost = 0;
        for _ in 0..300 {
            lost += ring.push(&chunk);
            assert_eq!(ring.read(quick, usize::MAX), chunk);
        }
        assert_eq!(lost, 300 * 4096 - BACKLOG as u64);
        assert_eq!(ring.behind(slow), BACKLOG);
        let rest = ring.read(slow, usize::MAX);
        assert_eq!((rest.len(), rest[0]), (BACKLOG, 0));
        assert_eq!(ring.behind(slow), 0);
    }

    #[test]
    fn what_nobody_waits_for_is_not_kept() {
        let mut ring = Ring::default();
        let slow = ring.join(Start::Now);
        ring.push(&vec![b'x'; BACKLOG]);
        assert!(ring.bytes.capacity() >= BACKLOG);
        ring.leave(slow);
        assert!(ring.bytes.capacity() <= 2 * SCROLLBACK + SCROLLBACK / 2);
        let late = ring.join(Start::Scrollback);
        assert_eq!(ring.read(late, usize::MAX).len(), SCROLLBACK);
    }

    #[test]
    fn an_idle_line_costs_nothing() {
        let mut ring = Ring::default();
        for _ in 0..1000 {
            ring.join(Start::Scrollback);
        }
        assert_eq!(ring.bytes.capacity(), 0);
        ring.push(b"login: ");
        assert!(ring.bytes.capacity() < 64);
    }
}

// SPDX-License-Identifier: GPL-2.0-only

//! Progress on stderr: a bar in one line that is rewritten on a terminal, a line now and then elsewhere.

use std::{
    io::{
        stderr,
        IsTerminal,
        Write, //
    },
    time::{
        Duration,
        Instant, //
    },
};

/// Time between two lines on a terminal.
const TERMINAL_INTERVAL: Duration = Duration::from_millis(200);
/// Time between two lines in a log.
const LOG_INTERVAL: Duration = Duration::from_secs(5);

/// Characters of the bar.
const BAR: u32 = 20;

/// Progress of one run.
#[derive(Debug)]
pub struct Progress {
    what: String,
    total: u32,
    start: Instant,
    last: Instant,
    terminal: bool,
}

impl Progress {
    /// Progress of `what`, which has `total` cycles; prints nothing yet.
    pub fn new(what: String, total: u32) -> Self {
        let now = Instant::now();
        Self {
            what,
            total,
            start: now,
            last: now,
            terminal: stderr().is_terminal(),
        }
    }

    /// The run begins.
    pub fn begin(&self) {
        self.print(0);
    }

    /// `done` cycles are done.
    pub fn update(&mut self, done: u32) {
        let interval = if self.terminal {
            TERMINAL_INTERVAL
        } else {
            LOG_INTERVAL
        };
        // The last line is `finish()`'s.
        if done < self.total && self.last.elapsed() >= interval {
            self.last = Instant::now();
            self.print(done);
        }
    }

    /// The run has ended, after `done` cycles.
    pub fn finish(self, done: u32) {
        self.print(done);
        if self.terminal {
            // Nothing depends on stderr, here and below.
            let _ = writeln!(stderr());
        }
    }

    fn print(&self, done: u32) {
        let Self { what, total, .. } = self;
        let seconds = self.start.elapsed().as_secs_f32();
        let numbers = format!("{done}/{total}, {seconds:.1} s");
        let _ = if self.terminal {
            // Without wrapping a narrow terminal shows the beginning.
            let bar = bar(done, *total);
            write!(stderr(), "\r\x1b[?7l{what} [{bar}] {numbers}\x1b[K\x1b[?7h")
        } else {
            writeln!(stderr(), "{what}: {numbers}")
        };
    }
}

fn bar(done: u32, total: u32) -> String {
    let part = u64::from(done) * u64::from(BAR) / u64::from(total.max(1));
    // CAST: At most the bar's length.
    let full = part.min(u64::from(BAR)) as usize;
    format!("{:.<1$}", "#".repeat(full), BAR as usize)
}

#[cfg(test)]
mod tests {
    use super::bar;

    #[test]
    fn a_bar_is_full_when_all_is_done() {
        assert_eq!(bar(0, 7), "....................");
        assert_eq!(bar(3, 12), "#####...............");
        assert_eq!(bar(7, 7), "####################");
        assert_eq!(bar(u32::MAX, u32::MAX), bar(1, 1));
        assert_eq!(bar(0, 0), bar(0, 1));
    }
}

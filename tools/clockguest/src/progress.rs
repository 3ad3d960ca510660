// SPDX-License-Identifier: GPL-2.0-only

//! Progress on stderr: a bar on a terminal, otherwise a line every few seconds.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::time::{Duration, Instant};

/// Time between two lines.
const LOG_INTERVAL: Duration = Duration::from_secs(5);

/// The format of the bar.
const TEMPLATE: &str = "{prefix} [{bar:20}] {pos}/{len}, {elapsed_precise}";

/// Progress of one run.
#[derive(Debug)]
pub struct Progress {
    what: String,
    total: u32,
    start: Instant,
    last: Instant,
    /// Hidden if stderr is not a terminal.
    bar: ProgressBar,
}

impl Progress {
    /// The progress of `what`, which has `total` cycles; it prints nothing yet.
    pub fn new(what: String, total: u32) -> Self {
        Self::on(ProgressDrawTarget::stderr(), what, total)
    }

    fn on(target: ProgressDrawTarget, what: String, total: u32) -> Self {
        let now = Instant::now();
        let style = ProgressStyle::with_template(TEMPLATE).expect("the template is sound");
        let bar = ProgressBar::with_draw_target(Some(total.into()), target)
            .with_style(style.progress_chars("##."))
            .with_prefix(what.clone());
        Self {
            what,
            total,
            start: now,
            last: now,
            bar,
        }
    }

    /// Shows that the run begins.
    pub fn begin(&self) {
        self.bar.tick();
        self.log(0);
    }

    /// Shows that `done` cycles are done.
    pub fn update(&mut self, done: u32) {
        self.bar.set_position(done.into());
        // `finish()` prints the last line.
        if done < self.total && self.last.elapsed() >= LOG_INTERVAL {
            self.last = Instant::now();
            self.log(done);
        }
    }

    /// Shows that the run has ended after `done` cycles.
    pub fn finish(self, done: u32) {
        self.bar.set_position(done.into());
        self.bar.abandon();
        self.log(done);
    }

    fn log(&self, done: u32) {
        if self.bar.is_hidden() {
            let Self { what, total, .. } = self;
            let seconds = self.start.elapsed().as_secs_f32();
            eprintln!("{what}: {done}/{total}, {seconds:.1} s");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Progress;
    use indicatif::{InMemoryTerm, ProgressDrawTarget};

    /// The contents of a 60-column terminal after a run with `done` of `total` cycles.
    fn shown(done: u32, total: u32) -> String {
        let terminal = InMemoryTerm::new(4, 60);
        let target = ProgressDrawTarget::term_like(Box::new(terminal.clone()));
        let progress = Progress::on(target, "pause".to_owned(), total);
        progress.begin();
        progress.finish(done);
        terminal.contents()
    }

    #[test]
    fn bar_shows_the_done_part() {
        let none = shown(0, 7);
        assert!(
            none.starts_with("pause [....................] 0/7, 00:00:0"),
            "{none}"
        );
        let part = shown(3, 12);
        assert!(part.starts_with("pause [#####"), "{part}");
        assert!(part.contains("..............] 3/12, "), "{part}");
        let all = shown(7, 7);
        assert!(
            all.starts_with("pause [####################] 7/7, "),
            "{all}"
        );
    }
}

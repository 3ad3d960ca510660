// SPDX-License-Identifier: GPL-2.0-only

//! A command that connects to the other host, such as `ssh host clockguest serve --stdio`.

use crate::stream;
use anyhow::{Context, Error, Result};
use std::{
    io::Read,
    os::fd::OwnedFd,
    process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio},
    thread::{sleep, spawn, JoinHandle},
    time::{Duration, Instant},
};

/// How long the command may take to end once the connection has ended.
const PATIENCE: Duration = Duration::from_secs(2);
/// What is kept of its stderr, bytes.
const KEPT: usize = 1000;

/// A running command; drop ends it.
#[derive(Debug)]
pub(super) struct Via {
    text: String,
    child: Child,
    /// Collects the end of its stderr.
    stderr: Option<JoinHandle<Vec<u8>>>,
}

impl Via {
    /// Runs `text` with `sh -c`; also returns the connection: its stdout and its stdin.
    pub(super) fn run(text: &str) -> Result<(Self, OwnedFd, OwnedFd)> {
        let mut child = Command::new("sh")
            .args(["-c", text])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot run sh")?;
        let stdin: Option<ChildStdin> = child.stdin.take();
        let stdout: Option<ChildStdout> = child.stdout.take();
        let stderr = child.stderr.take();
        let via = Self {
            text: text.to_owned(),
            child,
            stderr: stderr.map(|stderr| spawn(|| last_of(stderr))),
        };
        let (stdout, stdin) = stdout.zip(stdin).context("the command has no pipes")?;
        Ok((via, stdout.into(), stdin.into()))
    }

    /// Adds to an error of the connection how the command ended, and what it printed.
    pub(super) fn explain(&mut self, error: Error) -> Error {
        let found = match error.downcast_ref::<stream::Error>() {
            // The beginning of a stream has another error than the end of one.
            Some(stream::Error::Magic(begin)) => format!(
                "the command '{}' is not `clockguest serve --stdio`: its output begins with '{}'",
                self.text,
                begin.escape_ascii()
            ),
            Some(_) => match self.ended() {
                Some(status) => format!("the command '{}' ended with {status}", self.text),
                None => format!("the command '{}' still runs", self.text),
            },
            // Not an error of the connection.
            None => return error,
        };
        let printed = self.printed();
        if printed.is_empty() {
            error.context(found)
        } else {
            error.context(format!("{found}, and printed: {printed}"))
        }
    }

    /// Its exit status, if it ends soon.
    fn ended(&mut self) -> Option<ExitStatus> {
        let began = Instant::now();
        loop {
            match self.child.try_wait() {
                Ok(None) if began.elapsed() < PATIENCE => sleep(Duration::from_millis(10)),
                ended => return ended.ok().flatten(),
            }
        }
    }

    /// The end of its stderr on one line; kills the command if it still runs.
    fn printed(&mut self) -> String {
        self.end();
        let began = Instant::now();
        // A child of the command may still hold the pipe.
        let Some(stderr) = self.stderr.take_if(|stderr| {
            while !stderr.is_finished() && began.elapsed() < PATIENCE {
                sleep(Duration::from_millis(10));
            }
            stderr.is_finished()
        }) else {
            return String::new();
        };
        let bytes = stderr.join().unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        text.trim().replace('\n', "; ")
    }

    fn end(&mut self) {
        if self.ended().is_none() {
            // It may end by itself meanwhile.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

impl Drop for Via {
    fn drop(&mut self) {
        self.end();
    }
}

/// The last bytes of `input`.
fn last_of(mut input: impl Read) -> Vec<u8> {
    let (mut kept, mut buffer) = (Vec::new(), [0; KEPT]);
    while let Ok(read @ 1..) = input.read(&mut buffer) {
        kept.extend_from_slice(&buffer[..read]);
        kept.drain(..kept.len().saturating_sub(KEPT));
    }
    kept
}

// SPDX-License-Identifier: GPL-2.0-only

//! Both directions of a connection, as file descriptors, with time limits.
//!
//! Sockets and pipes alike: only `poll()` has a time limit for both.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsRawFd, OwnedFd},
    time::{Duration, Instant},
};

/// What `poll()` reports as writable takes this many bytes without blocking.
const WRITE: usize = libc::PIPE_BUF;

/// How long a connection may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Without a byte that arrives or leaves.
    pub(super) idle: Duration,
    /// In total, and when it began.
    pub(super) total: Option<(Duration, Instant)>,
}

/// The direction from the peer.
#[derive(Debug)]
pub(super) struct Input(Half);

/// The direction to the peer.
#[derive(Debug)]
pub(super) struct Output(Half);

#[derive(Debug)]
struct Half {
    file: File,
    limits: Limits,
}

impl Limits {
    /// At most `idle` between two bytes, and from now on at most `total`.
    pub(super) fn new(idle: Duration, total: Option<Duration>) -> Self {
        Self {
            idle,
            total: total.map(|total| (total, Instant::now())),
        }
    }

    /// What is left of the total.
    fn left(&self) -> io::Result<Duration> {
        let Some((total, began)) = self.total else {
            return Ok(Duration::MAX);
        };
        match total.checked_sub(began.elapsed()) {
            Some(left) if !left.is_zero() => Ok(left),
            _ => Err(timed_out(format!(
                "the connection took longer than {total:?}"
            ))),
        }
    }
}

impl Input {
    pub(super) fn new(fd: OwnedFd, limits: Limits) -> Self {
        Self(Half::new(fd, limits))
    }
}

impl Output {
    pub(super) fn new(fd: OwnedFd, limits: Limits) -> Self {
        Self(Half::new(fd, limits))
    }

    /// Replaces the time limits.
    pub(super) fn limit(&mut self, limits: Limits) {
        self.0.limits = limits;
    }
}

impl Half {
    fn new(fd: OwnedFd, limits: Limits) -> Self {
        Self {
            file: fd.into(),
            limits,
        }
    }

    /// Waits until the descriptor is ready for `events`, or has failed; `why` says what is missing.
    fn wait(&self, events: libc::c_short, why: &str) -> io::Result<()> {
        let (began, idle) = (Instant::now(), self.limits.idle);
        loop {
            let left = self.limits.left()?;
            let Some(silent) = idle.checked_sub(began.elapsed()) else {
                return Err(timed_out(format!("{why} for {idle:?}")));
            };
            let mut poll = libc::pollfd {
                fd: self.file.as_raw_fd(),
                events,
                revents: 0,
            };
            // Rounded up, so that it does not spin.
            let ms = left.min(silent).as_millis().saturating_add(1);
            let ms = libc::c_int::try_from(ms).unwrap_or(libc::c_int::MAX);
            // SAFETY: `poll` is valid for reads and writes, and the count is 1.
            match unsafe { libc::poll(&mut poll, 1, ms) } {
                1.. => return Ok(()),
                0 => {}
                _ => {
                    let error = io::Error::last_os_error();
                    if error.kind() != io::ErrorKind::Interrupted {
                        return Err(error);
                    }
                }
            }
        }
    }
}

fn timed_out(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, why)
}

impl Read for Input {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.wait(libc::POLLIN, "the other end sends nothing")?;
        self.0.file.read(buffer)
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.wait(libc::POLLOUT, "the other end takes nothing")?;
        self.0.file.write(&bytes[..bytes.len().min(WRITE)])
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        os::unix::net::UnixStream,
        thread::{sleep, spawn},
    };

    const MS: Duration = Duration::from_millis(1);

    fn end(limits: Limits) -> (UnixStream, Input, Output) {
        let (other, this) = UnixStream::pair().unwrap();
        let clone = this.try_clone().unwrap();
        let input = Input::new(this.into(), limits);
        (other, input, Output::new(clone.into(), limits))
    }

    /// How reading fails.
    fn failure(mut input: Input) -> String {
        let error = input.read_to_end(&mut Vec::new()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        error.to_string()
    }

    #[test]
    fn silence_is_cut_off() {
        let (_other, input, _) = end(Limits::new(50 * MS, None));
        assert_eq!(failure(input), "the other end sends nothing for 50ms");
    }

    #[test]
    fn a_byte_now_and_then_is_cut_off() {
        let (mut other, input, output) = end(Limits::new(10_000 * MS, Some(500 * MS)));
        drop(output);
        // Until the other end is gone.
        let writer = spawn(move || {
            for _ in 0..300 {
                if other.write_all(&[0]).is_err() {
                    break;
                }
                sleep(10 * MS);
            }
        });
        assert_eq!(failure(input), "the connection took longer than 500ms");
        writer.join().unwrap();
    }

    #[test]
    fn a_reader_that_does_not_read_is_cut_off() {
        let (_other, _input, mut output) = end(Limits::new(50 * MS, None));
        let error = output.write_all(&vec![0; 16 << 20]).unwrap_err();
        assert_eq!(error.to_string(), "the other end takes nothing for 50ms");
    }

    #[test]
    fn the_end_is_no_failure() {
        let (mut other, mut input, _) = end(Limits::new(10_000 * MS, Some(10_000 * MS)));
        other.write_all(b"done").unwrap();
        drop(other);
        let mut bytes = Vec::new();
        input.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, b"done");
    }
}

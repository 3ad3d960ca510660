// SPDX-License-Identifier: GPL-2.0-only

//! A silent kernel console during faults: messages about injected faults are suppressed, so that no
//! reader of the console takes them for a problem; all others are printed later.

use kvm_clock_guest_selftests::prelude::*;
use std::{
    fs::{self, File, OpenOptions},
    io::{ErrorKind, Read, Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt,
};

const KMSG: &str = "/dev/kmsg";
const RATE_LIMIT: &str = "/proc/sys/kernel/printk_devkmsg";
const LEVEL: &str = "/proc/sys/kernel/printk";
/// More than any message is long, bytes.
const LONGEST: usize = 8192;

/// The console, silent until this is dropped.
pub(crate) struct Muted {
    messages: File,
    expected: fn(&str) -> bool,
    former_level: String,
    former_limit: String,
}

impl Muted {
    /// Holds back all messages, and drops those that are `expected`.
    pub(crate) fn new(expected: fn(&str) -> bool) -> Result<Self> {
        let mut messages = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(KMSG)
            .context(KMSG)?;
        messages.seek(SeekFrom::End(0)).context(KMSG)?;
        let muted = Self {
            messages,
            expected,
            former_level: fs::read_to_string(LEVEL).context(LEVEL)?,
            former_limit: fs::read_to_string(RATE_LIMIT).context(RATE_LIMIT)?,
        };
        muted.limit("on\n")?;
        fs::write(LEVEL, "1").context(LEVEL)?;
        Ok(muted)
    }

    /// No message that is printed later may be lost. The command line may have set this limit.
    fn limit(&self, limit: &str) -> Result<()> {
        if self.former_limit != "on\n" {
            fs::write(RATE_LIMIT, limit).context(RATE_LIMIT)?;
        }
        Ok(())
    }

    /// Prints the messages that were not expected.
    fn reprint(&mut self) -> Result<()> {
        let mut record = [0; LONGEST];
        let mut unexpected = Vec::new();
        loop {
            let text = match self.messages.read(&mut record) {
                Ok(len) => String::from_utf8_lossy(&record[..len]).into_owned(),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                // The kernel's buffer overflowed.
                Err(error) if error.kind() == ErrorKind::BrokenPipe => {
                    "WARNING: messages were lost".into()
                }
                Err(error) => return Err(error).context(KMSG),
            };
            // Level and time, a semicolon, and the message; further lines are about the device.
            let message = text.split_once(';').map_or(&*text, |(_, message)| message);
            let line = message.lines().next().unwrap_or_default();
            if !(self.expected)(line) {
                unexpected.push(line.to_owned());
            }
        }
        for line in unexpected {
            writeln!(self.messages, "<4>{line}").context(KMSG)?;
        }
        Ok(())
    }
}

impl Drop for Muted {
    fn drop(&mut self) {
        let level = self.former_level.split_whitespace().next();
        let restored = fs::write(LEVEL, level.unwrap_or("7")).context("the console stays silent");
        let printed = self.reprint();
        let limited = self.limit(&self.former_limit);
        if let Err(error) = restored.and(printed).and(limited) {
            eprintln!("{error:#}");
        }
    }
}

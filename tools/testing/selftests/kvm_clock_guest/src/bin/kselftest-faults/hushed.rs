// SPDX-License-Identifier: GPL-2.0-only

//! The kernel's console while it is made to fail: what it says of that is no sign of trouble, but
//! would look like one to who reads the console. All else comes there a little later.

use anyhow::{Context, Result};
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
pub(crate) struct Hushed {
    messages: File,
    expected: fn(&str) -> bool,
    former_level: String,
    former_limit: String,
}

impl Hushed {
    /// Holds back all messages, for good if they are `expected`.
    ///
    /// # Errors
    ///
    /// Those of `/dev/kmsg` and procfs.
    pub(crate) fn new(expected: fn(&str) -> bool) -> Result<Self> {
        let mut messages = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(KMSG)
            .context(KMSG)?;
        messages.seek(SeekFrom::End(0)).context(KMSG)?;
        let hushed = Self {
            messages,
            expected,
            former_level: fs::read_to_string(LEVEL).context(LEVEL)?,
            former_limit: fs::read_to_string(RATE_LIMIT).context(RATE_LIMIT)?,
        };
        hushed.limit("on\n")?;
        fs::write(LEVEL, "1").context(LEVEL)?;
        Ok(hushed)
    }

    /// Nothing that is said again may be lost. The command line may have decided that.
    fn limit(&self, limit: &str) -> Result<()> {
        if self.former_limit != "on\n" {
            fs::write(RATE_LIMIT, limit).context(RATE_LIMIT)?;
        }
        Ok(())
    }

    /// Says again what was not expected.
    fn say_again(&mut self) -> Result<()> {
        let mut record = [0; LONGEST];
        let mut unexpected = Vec::new();
        loop {
            let text = match self.messages.read(&mut record) {
                Ok(len) => String::from_utf8_lossy(&record[..len]).into_owned(),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                // The kernel's buffer ran over meanwhile.
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

impl Drop for Hushed {
    fn drop(&mut self) {
        let level = self.former_level.split_whitespace().next();
        let restored = fs::write(LEVEL, level.unwrap_or("7")).context("the console stays silent");
        let said = self.say_again();
        let limited = self.limit(&self.former_limit);
        if let Err(error) = restored.and(said).and(limited) {
            eprintln!("{error:#}");
        }
    }
}

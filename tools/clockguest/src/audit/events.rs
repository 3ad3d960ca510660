// SPDX-License-Identifier: GPL-2.0-only

//! What KVM traces about clocks, from a trace buffer of our own.

use super::Unavailable;
use crate::{
    host::{tracefs_with, TRACEFS},
    trace::{self, Instance},
};
use anyhow::{Context, Result};
use pvclock::{
    abi::ClockGuest,
    counter::{GuestTsc, HostTsc, TscOffset},
};
use std::{
    fs::{File, OpenOptions},
    io::{ErrorKind, Read},
    os::unix::fs::OpenOptionsExt,
};

/// KVM's tracepoints about clocks; the first has to exist.
const TRACEPOINTS: [&str; 4] = [
    "kvm_pvclock_update",
    "kvm_write_tsc_offset",
    "kvm_update_master_clock",
    "kvm_track_tsc",
];

/// The trace since it was started.
#[derive(Debug)]
pub(super) struct Trace {
    /// Declared first: the buffer can go when its files are closed.
    pipe: File,
    _instance: Instance,
    /// The beginning of a line.
    rest: Vec<u8>,
}

/// A line of the trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Traced {
    Event(Event),
    /// So many events did not fit into the buffer.
    Lost(u64),
}

/// An event, at a host TSC, of a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Event {
    pub(super) thread: u32,
    pub(super) at: HostTsc,
    pub(super) what: What,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// KVM wrote a record to a guest's page.
    Record { vcpu: u32, record: ClockGuest },
    /// KVM wrote a vCPU's L1 TSC offset.
    Offset {
        vcpu: u32,
        from: TscOffset,
        to: TscOffset,
    },
    /// KVM updated a VM's master clock, and whether it has one now.
    MasterClock(bool),
    /// KVM compared a vCPU's TSC with the others, in a VM with a master clock or without.
    Compared { master_clock: bool },
}

impl What {
    /// The vCPU that it is about.
    pub(super) fn vcpu(&self) -> Option<u32> {
        match *self {
            Self::Record { vcpu, .. } | Self::Offset { vcpu, .. } => Some(vcpu),
            Self::MasterClock(_) | Self::Compared { .. } => None,
        }
    }
}

impl Trace {
    /// Starts it.
    pub(super) fn new() -> Result<Self> {
        let events = |name| format!("events/kvm/{name}/enable");
        let tracefs = tracefs_with(&events(TRACEPOINTS[0])).ok_or(Unavailable::NoTracefs)?;
        let instance = Instance::new(tracefs).map_err(|error| match error.kind() {
            ErrorKind::PermissionDenied => {
                Unavailable::Permission(format!("{}/instances: {error}", tracefs.display()))
            }
            _ => Unavailable::NoInstance(tracefs.display().to_string(), error),
        })?;
        instance.write("trace_clock", "x86-tsc")?;
        for name in TRACEPOINTS {
            if instance.file(&events(name)).exists() {
                instance.write(&events(name), "1")?;
            }
        }
        let path = instance.file("trace_pipe");
        let pipe = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(&path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        Ok(Self {
            pipe,
            _instance: instance,
            rest: Vec::new(),
        })
    }

    /// What has been traced since the last call.
    pub(super) fn read(&mut self) -> Result<Vec<Traced>> {
        let mut buffer = [0; 1 << 16];
        loop {
            match self.pipe.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => self.rest.extend_from_slice(&buffer[..read]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("trace_pipe"),
            }
        }
        let whole = self.rest.iter().rposition(|&byte| byte == b'\n');
        let lines: Vec<_> = self.rest.drain(..whole.map_or(0, |end| end + 1)).collect();
        let lines = String::from_utf8_lossy(&lines);
        Ok(lines.lines().filter_map(parse).collect())
    }
}

impl Unavailable {
    pub(super) fn tracefs() -> String {
        TRACEFS.join(" or ")
    }
}

fn parse(line: &str) -> Option<Traced> {
    if let Some((_, lost)) = line.split_once("[LOST ") {
        return Some(Traced::Lost(lost.split(' ').next()?.parse().ok()?));
    }
    let event = trace::Event::parse(line)?;
    let text = event.text.as_str();
    let what = match event.name.as_str() {
        "kvm_pvclock_update" => What::Record {
            vcpu: value(text, "vcpu_id ")?.parse().ok()?,
            record: ClockGuest {
                tsc_timestamp: GuestTsc(hex(text, "tsc_timestamp ")?),
                system_time: hex(text, "system_time ")?,
                tsc_to_system_mul: hex(text, "tsc_to_system_mul ")?.try_into().ok()?,
                tsc_shift: value(text, "tsc_shift ")?.parse().ok()?,
                flags: hex(text, "flags ")?.try_into().ok()?,
                ..ClockGuest::default()
            },
        },
        "kvm_write_tsc_offset" => What::Offset {
            vcpu: value(text, "vcpu=")?.parse().ok()?,
            from: TscOffset(value(text, "prev=")?.parse().ok()?),
            to: TscOffset(value(text, "next=")?.parse().ok()?),
        },
        "kvm_update_master_clock" => What::MasterClock(value(text, "masterclock ")? == "1"),
        "kvm_track_tsc" => What::Compared {
            master_clock: value(text, "masterclock ")? == "1",
        },
        _ => return None,
    };
    Some(Traced::Event(Event {
        thread: event.thread.try_into().ok()?,
        at: HostTsc(event.time.parse().ok()?),
        what,
    }))
}

/// The word behind `key`.
fn value<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(key)?;
    rest.split([' ', ',']).next()
}

fn hex(text: &str, key: &str) -> Option<u64> {
    u64::from_str_radix(value(text, key)?.strip_prefix("0x")?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Linux 7.3 prints them.
    #[test]
    fn events_are_parsed() {
        let record = "       CPU 0/KVM-97      [001] ..... 81234567890: kvm_pvclock_update: vcpu_id 3, pvclock { version \
                      4, tsc_timestamp 0x3b9aca00, system_time 0x77359400, tsc_to_system_mul 0xc5a1cac1, tsc_shift \
                      -1, flags 0x1 }";
        let expected = ClockGuest {
            tsc_timestamp: GuestTsc(1_000_000_000),
            system_time: 2_000_000_000,
            tsc_to_system_mul: 0xc5a1_cac1,
            tsc_shift: -1,
            flags: 1,
            ..ClockGuest::default()
        };
        let event = |thread, what| {
            Some(Traced::Event(Event {
                thread,
                at: HostTsc(81_234_567_890),
                what,
            }))
        };
        let what = What::Record {
            vcpu: 3,
            record: expected,
        };
        assert_eq!(parse(record), event(97, what));

        let offset =
            " qemu-system-x86-96 [000] ..... 81234567890: kvm_write_tsc_offset: vcpu=1 prev=0 \
                      next=18446744073709551609";
        let what = What::Offset {
            vcpu: 1,
            from: TscOffset(0),
            to: TscOffset(7u64.wrapping_neg()),
        };
        assert_eq!(parse(offset), event(96, what));

        let update = " fc_vcpu 0-98 [000] ..... 81234567890: kvm_update_master_clock: masterclock 1 hostclock tsc \
                      offsetmatched 1";
        assert_eq!(parse(update), event(98, What::MasterClock(true)));
        let compared = " fc_vcpu 0-98 [000] ..... 81234567890: kvm_track_tsc: vcpu_id 0 masterclock 0 offsetmatched 0 \
                        nr_online 1 hostclock none";
        let what = What::Compared {
            master_clock: false,
        };
        assert_eq!(parse(compared), event(98, what));

        assert_eq!(parse("CPU:1 [LOST 12 EVENTS]"), Some(Traced::Lost(12)));
        assert_eq!(parse("# tracer: nop"), None);
    }
}

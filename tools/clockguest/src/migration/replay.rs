// SPDX-License-Identifier: GPL-2.0-only

//! Replays a stream of messages without KVM, for `tools/fuzz`.

use super::{
    attribution::{restore_error_ticks, Anchor},
    exchange::{self, Exchange},
    message::{
        ClockShift, Clocks, Go, Hello, Message, Offer, Ping, Pong, Prepared, Refused, Restored,
        Running,
    },
    restore,
};
use crate::{
    measure::{compare, Reading},
    method::Saved,
    stream::{Frame, Kind, Reader, Writer},
    vmm::{self, state::VmState},
};
use std::io::Read;

/// A time of this host, ns.
const NOW_NS: i64 = 1_900_000_000_000_000_000;

/// The relevant messages so far.
#[derive(Default)]
struct Replay {
    hello: Option<Hello>,
    pings: Vec<Exchange>,
    shift: Option<ClockShift>,
    clocks: Option<Clocks>,
}

/// Reads the messages of the stream `input` until one is refused, processes each like a host, and
/// writes them to a new stream of `session`.
pub fn replay(input: impl Read, session: u64) -> Vec<u8> {
    let mut out = Vec::new();
    let mut writer = Writer::new(&mut out, session);
    let mut reader = Reader::new(input, None);
    let mut replay = Replay::default();
    while let Ok(frame) = reader.next_frame() {
        if replay.message(frame, &mut reader, &mut writer).is_err() {
            break;
        }
    }
    out
}

impl Replay {
    fn message(
        &mut self,
        frame: Frame,
        reader: &mut Reader<impl Read>,
        writer: &mut Writer<&mut Vec<u8>>,
    ) -> vmm::Result<()> {
        macro_rules! messages {
            ($($name:ident => $use:expr,)*) => {
                $(if frame.is($name::KIND) {
                    let message: $name = frame.message($name::KIND)?;
                    writer.write($name::KIND, &message)?;
                    #[allow(clippy::redundant_closure_call)]
                    ($use)(self, message);
                    return Ok(());
                })*
            };
        }
        messages! {
            Hello => |replay: &mut Self, hello| replay.hello = Some(hello),
            Pong => Self::pong,
            Restored => Self::restored,
            Reading => Self::reading,
            Offer => |_: &mut Self, _| (),
            Prepared => |_: &mut Self, _| (),
            Ping => |_: &mut Self, _| (),
            Refused => |_: &mut Self, _| (),
            Go => |_: &mut Self, _| (),
            Running => |_: &mut Self, _| (),
        }
        if frame.is(Kind::State) {
            let (state, clocks): (_, Clocks) = VmState::receive(frame, reader)?;
            state.send(&clocks, writer)?;
            self.clocks(&clocks);
            self.clocks = Some(clocks);
        }
        Ok(())
    }

    fn pong(&mut self, pong: Pong) {
        let sent_ns = NOW_NS + self.pings.len() as i64;
        self.pings.push(Exchange::new(sent_ns, &pong, sent_ns + 1));
        self.shift = exchange::difference(&self.pings, NOW_NS).ok();
    }

    /// Processes the clocks like a destination, except for the ioctls.
    fn clocks(&self, clocks: &Clocks) {
        let _ = clocks.downtime_ns(NOW_NS);
        match &clocks.saved {
            Saved::Atomic(saved) => {
                let _ = restore::policy(clocks);
                let _ = saved.0.clock();
            }
            Saved::LegacyOffset(saved) => {
                if let (Some(shift), Some(here)) = (clocks.shift, &self.hello) {
                    let (offset_s, there_s) = (clocks.tai_offset_s, here.tai_offset_s);
                    saved
                        .clone()
                        .shift_realtime(shift.tai_ns, offset_s, there_s);
                }
            }
            Saved::LegacyMsr(_) | Saved::LuoMsr(_) => (),
        }
    }

    /// Processes the answer like a source. All values are untrusted.
    fn restored(&mut self, restored: Restored) {
        let (Some(clocks), Some(at)) = (&self.clocks, restored.set_at) else {
            return;
        };
        let Some(vcpu) = clocks.reading.vcpus.first() else {
            return;
        };
        if let (Saved::Atomic(saved), Some(mode)) = (&clocks.saved, restored.mode) {
            let clock = saved.0.clock().ok();
            let _ = clock.map(|clock| restore_error_ticks(&clock, mode, self.shift, at, vcpu.tsc));
        }
        if let Some(anchor) = Anchor::of(&clocks.saved, clocks.tai_offset_s) {
            let _ = anchor.clock_sync_error_ticks(clocks.shift, at, at.host_tsc, vcpu.tsc);
        }
    }

    fn reading(&mut self, reading: Reading) {
        let _ = reading.is_scaled();
        if let Some(clocks) = &self.clocks {
            let _ = compare(&clocks.reading, &reading);
            let _ = reading.backwards() - clocks.reading.backwards();
        }
    }
}

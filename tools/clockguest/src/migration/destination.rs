// SPDX-License-Identifier: GPL-2.0-only

//! The destination of a guest.

use super::{
    clock_trace::ClockTrace,
    connection::Peer,
    exchange,
    message::{Clocks, Go, Hello, Offer, Prepared, Restored, Running},
    restore::restore,
    source::{Guest, Moved},
};
use crate::{
    host::{tai_ns, tsc_tolerance_ppm},
    stream::Kind,
    vmm::Vm,
};
use anyhow::{bail, Context, Result};
use kvm_ioctls::Kvm;
use pvclock::{rate::GuestRate, tsc::Scale};

/// A source needs some dozens of pings for a guest.
const MAX_PINGS: u32 = 1_000;

/// A host that receives guests.
#[derive(Debug)]
pub(super) struct Host<'a> {
    pub(super) kvm: &'a Kvm,
    pub(super) hello: Hello,
    pub(super) trace: Option<&'a ClockTrace>,
}

/// A guest's arrival.
#[derive(Debug)]
pub(super) struct Arrival {
    /// As received.
    pub(super) clocks: Clocks,
    pub(super) restored: Restored,
    /// From saving the clocks to running the guest, in this host's time, ns.
    pub(super) downtime_ns: i64,
}

impl Arrival {
    /// The move of this guest.
    pub(super) fn into_moved(self) -> Moved {
        Moved {
            before: self.clocks.reading,
            saved: self.clocks.saved,
            shift: self.clocks.shift,
            restored: self.restored,
            tai_offset_s: self.clocks.tai_offset_s,
            downtime_ns: self.downtime_ns,
        }
    }
}

/// Receives the guest that the peer offers. Once the peer has sent Go, the guest belongs to this
/// host, even if the connection fails.
///
/// # Errors
///
/// On an error, the peer gets the reason, and the guest's VM here is destroyed. If the peer ends
/// the connection instead of sending an offer, see [`Peer::is_closed`].
pub(super) fn receive_guest(peer: &mut Peer, host: &Host<'_>) -> Result<(Guest, Arrival)> {
    let taken = peer
        .receive()
        .and_then(|offer| receive_offered(peer, host, &offer));
    if let Err(error) = &taken {
        peer.refuse(error);
    }
    taken
}

fn receive_offered(peer: &mut Peer, host: &Host<'_>, offer: &Offer) -> Result<(Guest, Arrival)> {
    let vm = prepare(host, offer)?;
    peer.send(&Prepared {})?;

    let mut pings = 0;
    let frame = loop {
        let frame = peer.next_frame()?;
        if !frame.is(Kind::Ping) {
            break frame;
        }
        pings += 1;
        if pings > MAX_PINGS {
            bail!("more than {MAX_PINGS} pings for a guest");
        }
        exchange::pong(peer)?;
    };
    let (state, clocks): (_, Clocks) = peer.receive_state(frame)?;
    vm.load(&state)?;
    let restored = restore(&vm, &clocks, &host.hello, host.trace)?;
    peer.send(&restored)?;

    let Go {} = peer.receive()?;
    let downtime_ns = clocks.downtime_ns(tai_ns()?);
    let guest = Guest::run(vm)?;
    // If this message is lost, the next receive fails.
    let _ = peer.send(&Running { downtime_ns });
    let arrival = Arrival {
        clocks,
        restored,
        downtime_ns,
    };
    Ok((guest, arrival))
}

/// Creates the guest's VM, at its TSC rate if this host supports or tolerates that rate.
fn prepare(host: &Host<'_>, offer: &Offer) -> Result<Vm> {
    let unscaled = |host_khz| GuestRate {
        host_khz,
        scale: Scale::IDENTITY,
    };
    let is_close =
        unscaled(host.hello.tsc_khz).is_close_to(unscaled(offer.tsc_khz), tsc_tolerance_ppm());
    if host.hello.can_scale || is_close {
        return Vm::empty_at_rate(host.kvm, offer.vcpus, offer.tsc_khz)
            .with_context(|| format!("a VM with a TSC of {} kHz", offer.tsc_khz));
    }
    // KVM would emulate a faster TSC by catching up, and refuse a slower one.
    // KVM_SET_VM_CLOCK_GUEST reports how much the rates differ.
    Ok(Vm::empty(host.kvm, offer.vcpus)?)
}

// SPDX-License-Identifier: GPL-2.0-only

//! Takes a guest over.

use super::{
    clock_trace::ClockTrace,
    connection::Peer,
    exchange,
    message::{Clocks, Go, Hello, Offer, Prepared, Restored, Running},
    restore::restore,
    source::Guest,
};
use crate::{
    host::{tai_ns, tsc_tolerance_ppm},
    stream::Kind,
    vmm::Vm,
};
use anyhow::{Context, Result};
use kvm_ioctls::Kvm;
use pvclock::{rate::GuestRate, tsc::Scale};

/// What a destination has.
#[derive(Debug)]
pub(super) struct Host<'a> {
    pub(super) kvm: &'a Kvm,
    pub(super) hello: Hello,
    pub(super) trace: Option<&'a ClockTrace>,
}

/// How a guest came that runs here now.
#[derive(Debug)]
pub(super) struct Arrival {
    /// As they came.
    pub(super) clocks: Clocks,
    pub(super) restored: Restored,
    /// From saved clocks to a running guest, by this host's clock, ns.
    pub(super) downtime_ns: i64,
}

/// Takes the guest over that the peer offers. Once the peer said Go it is this host's, even if the peer
/// cannot be told any more.
///
/// # Errors
///
/// The peer is told what goes wrong, and nothing is left of the guest here. If the peer ended the
/// connection instead of an offer, see [`Peer::is_closed`].
pub(super) fn take_over(peer: &mut Peer, host: &Host<'_>) -> Result<(Guest, Arrival)> {
    let taken = peer
        .receive()
        .and_then(|offer| take_offered(peer, host, &offer));
    if let Err(error) = &taken {
        peer.refuse(error);
    }
    taken
}

fn take_offered(peer: &mut Peer, host: &Host<'_>, offer: &Offer) -> Result<(Guest, Arrival)> {
    let vm = prepare(host, offer)?;
    peer.send(&Prepared {})?;

    let frame = loop {
        let frame = peer.next_frame()?;
        if !frame.is(Kind::Ping) {
            break frame;
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
    // If this is lost, so is what follows it.
    let _ = peer.send(&Running { downtime_ns });
    let arrival = Arrival {
        clocks,
        restored,
        downtime_ns,
    };
    Ok((guest, arrival))
}

/// A VM for the guest, at its TSC rate if this host can do that rate, or takes it for its own.
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
    // KVM would imitate a faster TSC, and refuse a slower one. KVM_SET_VM_CLOCK_GUEST reports by how
    // much the rates differ.
    Ok(Vm::empty(host.kvm, offer.vcpus)?)
}

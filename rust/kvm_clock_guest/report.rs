// SPDX-License-Identifier: GPL-2.0-only

//! What GET and SET return about a VM's clocks.

use crate::{
    kvm::{
        State,
        VmClock, //
    },
    pvclock::abi,
};
use kernel::prelude::*;

/// `STATUS_*` of `state`.
pub(crate) fn status(state: &State) -> u32 {
    let pinned = if state.clock == VmClock::Pinned {
        abi::STATUS_PINNED
    } else {
        0
    };
    let stable = if state.is_host_tsc_stable {
        abi::STATUS_HOST_TSC_STABLE
    } else {
        0
    };
    pinned | stable
}

/// How far the record of `state`, or the host's clocks, may be from what they were at the anchor,
/// ns; 0 = the record is what KVM gives the guest, and all was read as one.
///
/// # Errors
///
/// `ENODATA` if kvmclock is no function of the TSC, and `fallback` is not set.
pub(crate) fn precision_ns(state: &State, fallback: bool) -> Result<u32> {
    let pairing_ns = state.now.precision_ns(state.rate.host_khz);
    match state.clock {
        VmClock::Pinned | VmClock::Derived => Ok(pairing_ns),
        // As good a point to derive the record from as the one that KVM will choose.
        VmClock::New => Ok(0),
        // KVM's sum of base and offset counts whole ns.
        // TODO[DRIFT]: Include the drift of each vCPU's own record.
        VmClock::Absent if fallback => Ok(pairing_ns.saturating_add(1)),
        VmClock::Absent => Err(ENODATA),
    }
}

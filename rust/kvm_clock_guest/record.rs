// SPDX-License-Identifier: GPL-2.0-only

//! What a vCPU's pvclock record is, as GET tells it.

use crate::{
    kvm::{
        ClocksGuard,
        VmGuard, //
    },
    pvclock::{
        abi::{
            ClockGuest,
            PVCLOCK_TSC_STABLE, //
        },
        rate::Factor, //
    },
    state::State,
};
use kernel::prelude::*;

/// A record, and how good it is.
pub(crate) struct Record {
    /// The record of [`State::reference`].
    pub(crate) record: ClockGuest,
    /// How far it, or the host's clocks, may be from what they were at the anchor, ns; 0 = the
    /// record is what KVM hands the guest, and all was read as one.
    pub(crate) precision_ns: u32,
}

impl Record {
    /// The record of the reference vCPU: the one that is kept, or else what KVM would hand it.
    ///
    /// # Errors
    ///
    /// - `ENODATA` if KVM has neither a kept record nor a master clock, and `fallback` is not set,
    /// - `EBUSY` if the TSC rate is too low to be one.
    pub(crate) fn of(
        guard: &VmGuard<'_>,
        clocks: &ClocksGuard<'_>,
        state: &State<'_>,
        fallback: bool,
    ) -> Result<Self> {
        let now = &state.now;
        let pairing_ns = now.precision_ns(state.rate.host_khz);
        let master_clock = clocks.master_clock();
        let all_matched = clocks.all_matched();
        let is_stable = master_clock.is_some() && all_matched;
        if let Some(kept) = clocks.kept() {
            if kept.relation.scale == state.relation.scale {
                let offset_diff = state.relation.offset.wrapping_sub(kept.relation.offset);
                let mut record = kept.record.shifted_by(offset_diff);
                record.flags = flags(is_stable);
                return Ok(Self {
                    record,
                    precision_ns: pairing_ns,
                });
            }
        }

        // KVM takes a master clock up at the first KVM_RUN only. Until then the anchor is as good a
        // point to derive the record from as the one it will choose. A VM that ran and has none
        // lost it, and its vCPUs were each handed a record of their own.
        let is_new = master_clock.is_none()
            && all_matched
            && clocks.master_clock_possible()
            && now.is_host_tsc_stable()
            && guard
                .try_for_each_vcpu(|vcpu| clocks.factor(vcpu).map_or(Ok(()), Err))
                .is_ok();
        let (host_tsc, base_ns, precision_ns) = match master_clock {
            Some(master) => (master.host_tsc, master.base_ns, pairing_ns),
            None if is_new => (now.host_tsc, now.kvmclock_base_ns(), 0),
            None if fallback => {
                // KVM's sum of base and offset counts whole ns.
                let precision_ns = pairing_ns.saturating_add(1);
                (now.host_tsc, now.kvmclock_base_ns(), precision_ns)
            }
            None => return Err(ENODATA),
        };
        let factor = match clocks.factor(state.reference) {
            Some(factor) => factor,
            None => Factor::of_khz(state.rate.khz()).ok_or(EBUSY)?,
        };
        Ok(Self {
            record: ClockGuest {
                tsc_timestamp: state.relation.guest_tsc(host_tsc),
                system_time: base_ns.wrapping_add_signed(clocks.kvmclock_offset()),
                tsc_to_system_mul: factor.mul,
                tsc_shift: factor.shift,
                flags: flags(is_new || is_stable),
                ..Default::default()
            },
            precision_ns,
        })
    }
}

/// pvclock's flags of a record whose readings are comparable between vCPUs, or are not.
fn flags(stable: bool) -> u8 {
    if stable {
        PVCLOCK_TSC_STABLE
    } else {
        0
    }
}

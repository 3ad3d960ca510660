// SPDX-License-Identifier: GPL-2.0-only

//! The clocks of a VM and of its host at one instant, as KVM reports them.

use super::bindings;
use crate::pvclock::{
    abi::ClockGuest,
    counter::{
        GuestTsc,
        HostTsc,
        TscOffset, //
    },
    plan::ClockSnapshot,
    rate::GuestRate,
    tsc::{
        Scale,
        TscTransform, //
    },
};
use kernel::prelude::*;

/// What a VM's kvmclock is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum VmClock {
    /// A function of the TSC that SET made.
    Pinned,
    /// A function of the TSC that KVM derived from the VM's master clock.
    Derived,
    /// KVM takes up a master clock when the VM first runs; the record is derived as of now.
    New,
    /// No function of the TSC; the record is derived as of now, and another one later.
    Absent,
}

/// The clocks of a VM and of its host at one instant.
pub(crate) struct State {
    /// The host's clocks.
    pub(crate) now: ClockSnapshot,
    /// KVM's predicate: the host keeps time by a TSC that it trusts.
    pub(crate) is_host_tsc_stable: bool,
    /// Rate of the guest's TSC, which all vCPUs share.
    pub(crate) rate: GuestRate,
    /// Valid scaling ratios are below it; 0 if the hardware cannot scale.
    pub(crate) max_tsc_ratio: u64,
    /// Up to which difference KVM takes two TSC rates for one, parts per million.
    pub(crate) tolerance_ppm: u32,
    /// The vCPU that the transform and the record are for.
    pub(crate) ref_vcpu_id: u32,
    /// Its TSC as a function of the host's.
    pub(crate) transform: TscTransform,
    /// Its record.
    pub(crate) record: ClockGuest,
    /// Where the record comes from.
    pub(crate) clock: VmClock,
    /// A vCPU is inside an ioctl, e.g. in `KVM_RUN`.
    pub(crate) is_busy: bool,
}

/// The clocks of a VM and of its host at one instant, in KVM's form.
pub(crate) struct RawState(pub(super) bindings::kvm_clock_guest_state);

impl State {
    /// What KVM reports, if these are clocks that one record can serve.
    ///
    /// # Errors
    ///
    /// - `EOPNOTSUPP` if the guest's TSC is protected from the host,
    /// - `ENODATA` if the vCPUs' TSCs do not run at one hardware rate; or if the host does not keep
    ///   time by a stable TSC, and `fallback` is not set,
    /// - `EBUSY` if the host's TSC rate is not known at the moment.
    pub(crate) fn new(RawState(raw): &RawState, fallback: bool) -> Result<Self> {
        let has = |flag: u32| raw.flags & flag != 0;

        if has(bindings::KVM_CLOCK_GUEST_STATE_PROTECTED) {
            return Err(EOPNOTSUPP);
        }
        let is_host_tsc_stable = has(bindings::KVM_CLOCK_GUEST_STATE_HOST_TSC_STABLE);
        // TODO[RATE]: Serve different rates with a record and a ratio per vCPU.
        if has(bindings::KVM_CLOCK_GUEST_STATE_CATCHUP)
            || has(bindings::KVM_CLOCK_GUEST_STATE_RATES_DIFFER)
            || !is_host_tsc_stable && !fallback
        {
            return Err(ENODATA);
        }
        if raw.host_tsc_khz == 0 {
            return Err(EBUSY);
        }
        // Without hardware scaling both are 0.
        let scale = Scale::new(raw.tsc_ratio, raw.tsc_frac_bits).unwrap_or(Scale::IDENTITY);

        Ok(Self {
            now: ClockSnapshot {
                host_tsc: HostTsc(raw.host_tsc),
                tai_ns: raw.tai_ns,
                tai_offset_s: raw.tai_offset_s,
                monotonic_raw_ns: raw.monotonic_raw_ns,
                read_window: raw.read_window,
            },
            is_host_tsc_stable,
            rate: GuestRate {
                host_khz: raw.host_tsc_khz,
                scale,
            },
            max_tsc_ratio: raw.max_tsc_ratio,
            tolerance_ppm: raw.tsc_tolerance_ppm,
            ref_vcpu_id: raw.ref_vcpu_id,
            transform: TscTransform {
                scale,
                offset: TscOffset(raw.tsc_offset),
            },
            record: ClockGuest {
                tsc_timestamp: GuestTsc(raw.record.tsc_timestamp),
                system_time: raw.record.system_time,
                tsc_to_system_mul: raw.record.tsc_to_system_mul,
                tsc_shift: raw.record.tsc_shift,
                flags: raw.record.flags,
                ..Default::default()
            },
            clock: if has(bindings::KVM_CLOCK_GUEST_STATE_PINNED) {
                VmClock::Pinned
            } else if has(bindings::KVM_CLOCK_GUEST_STATE_VM_CLOCK) {
                VmClock::Derived
            } else if has(bindings::KVM_CLOCK_GUEST_STATE_NEW) {
                VmClock::New
            } else {
                VmClock::Absent
            },
            is_busy: has(bindings::KVM_CLOCK_GUEST_STATE_BUSY),
        })
    }

    /// Whether this host's hardware can scale a guest's TSC by `scale`.
    pub(crate) fn is_valid_scale(&self, scale: Scale) -> bool {
        scale == Scale::IDENTITY || scale.ratio() < self.max_tsc_ratio
    }
}

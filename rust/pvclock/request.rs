// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 OR BSD-3-Clause

//! From ioctl bytes to a validated request: everything that can be refused without looking at the
//! host's clock.

use super::{
    abi::{
        self,
        ClockGuest,
        ClockGuestVcpu,
        VmClockGuest, //
    },
    counter::TscOffset,
    rate::GuestRate,
    tsc::{
        Scale,
        TscTransform, //
    },
};

/// The smallest `tsc_to_system_mul` that KVM makes.
const MIN_MUL: u32 = 1 << 31;

/// Largest steal time, ns.
const MAX_STEAL_NS: u64 = i64::MAX as u64;

/// Why a request is malformed; each is `EINVAL` to the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Invalid {
    /// A flag or status bit this build does not know.
    UnknownFlag,
    /// `mode` is none of `MODE_*`, or not 0 where it has no meaning.
    UnknownMode,
    /// Padding is not 0.
    Padding,
    /// `tsc_to_system_mul` is below 2^31, as in no record of KVM's: it shifts the ticks so far that
    /// the multiplier has all of its 32 bits.
    NotNormalised,
    /// `tsc_shift` is outside -31..=31.
    ShiftRange,
    /// (`tsc_ratio`, `tsc_frac_bits`) is no scaling ratio, or a rate is 0.
    NoRate,
    /// `guest_tsc` or `kvmclock_ns` is not what the offset and the record say at `host_tsc`.
    Inconsistent,
    /// `tsc_timestamp` lies ahead of the guest's TSC, so that the guest cannot read the record yet.
    RecordAhead,
    /// The array does not name every vCPU of the VM once and nothing else, or `ref_vcpu_id` is none
    /// of them.
    Vcpus,
    /// `paused_ns`, a vCPU's `steal_ns`, or the sum of both exceeds `i64::MAX`.
    Steal,
}

/// How SET carries the clocks over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Same host TSC domain: bit for bit.
    Exact,
    /// Another domain: continue by elapsed TAI.
    Advance,
    /// Continue, now, from the value at the anchor.
    Freeze,
}

impl Mode {
    fn from_abi(mode: u32) -> Option<Self> {
        match mode {
            abi::MODE_EXACT => Some(Self::Exact),
            abi::MODE_ADVANCE => Some(Self::Advance),
            abi::MODE_FREEZE => Some(Self::Freeze),
            _ => None,
        }
    }
}

/// A GET request that makes sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GetRequest {
    /// [`abi::FLAG_FALLBACK`] is set.
    pub fallback: bool,
}

impl GetRequest {
    /// Validates the header of a GET.
    ///
    /// # Errors
    ///
    /// A flag other than [`abi::FLAG_FALLBACK`], or a mode, which GET does not have.
    pub fn new(header: &VmClockGuest) -> Result<Self, Invalid> {
        if header.flags & !abi::FLAG_FALLBACK != 0 {
            return Err(Invalid::UnknownFlag);
        }
        if header.mode != 0 {
            return Err(Invalid::UnknownMode);
        }
        Ok(Self {
            fallback: header.flags & abi::FLAG_FALLBACK != 0,
        })
    }
}

/// Validates a record, and returns it as SET pins it: the host counts its own versions, so
/// `version` is cleared; of `flags`, [`abi::PVCLOCK_TSC_STABLE`] alone stays.
///
/// # Errors
///
/// [`Invalid::Padding`], [`Invalid::NotNormalised`], [`Invalid::ShiftRange`].
pub fn check_record(record: &ClockGuest) -> Result<ClockGuest, Invalid> {
    if record.pad0 != 0 || record.pad != [0; 2] {
        return Err(Invalid::Padding);
    }
    if record.tsc_to_system_mul < MIN_MUL {
        return Err(Invalid::NotNormalised);
    }
    if !(-31..=31).contains(&record.tsc_shift) {
        return Err(Invalid::ShiftRange);
    }
    Ok(ClockGuest {
        version: 0,
        flags: record.flags & abi::PVCLOCK_TSC_STABLE,
        ..*record
    })
}

/// A SET request whose header makes sense.
#[derive(Clone, Copy, Debug)]
pub struct SetRequest {
    /// How to carry the clocks over.
    pub mode: Mode,
    /// [`abi::FLAG_ALLOW_BACKWARDS`] is set.
    pub allow_backwards: bool,
    /// [`abi::FLAG_ALLOW_RATE_MISMATCH`] is set.
    pub allow_rate_mismatch: bool,
    /// [`abi::FLAG_FALLBACK`] is set.
    pub fallback: bool,
    /// [`abi::FLAG_RESLOPE`] is set.
    pub reslope: bool,
    /// TSC rate of the guest where it was saved.
    pub rate: GuestRate,
    /// The header as it came, but for the record, which is as [`check_record`] returns it.
    pub saved: VmClockGuest,
}

impl SetRequest {
    /// Validates the header of a SET.
    ///
    /// # Errors
    ///
    /// All of [`Invalid`] but those that [`match_vcpus`](Self::match_vcpus) finds.
    #[inline]
    pub fn new(mut header: VmClockGuest) -> Result<Self, Invalid> {
        let mode = Mode::from_abi(header.mode).ok_or(Invalid::UnknownMode)?;
        if header.flags & !abi::FLAGS_KNOWN != 0 || header.status & !abi::STATUS_KNOWN != 0 {
            return Err(Invalid::UnknownFlag);
        }
        header.record = check_record(&header.record)?;
        if header.paused_ns > MAX_STEAL_NS {
            return Err(Invalid::Steal);
        }

        let scale = Scale::new(header.tsc_ratio, header.tsc_frac_bits).ok_or(Invalid::NoRate)?;
        let rate = GuestRate {
            host_khz: header.host_tsc_khz,
            scale,
        };
        if rate.hz() == 0 {
            return Err(Invalid::NoRate);
        }
        Ok(Self {
            mode,
            allow_backwards: header.flags & abi::FLAG_ALLOW_BACKWARDS != 0,
            allow_rate_mismatch: header.flags & abi::FLAG_ALLOW_RATE_MISMATCH != 0,
            fallback: header.flags & abi::FLAG_FALLBACK != 0,
            reslope: header.flags & abi::FLAG_RESLOPE != 0,
            rate,
            saved: header,
        })
    }

    /// Brings `entries` into the order of `present`, the VM's vCPUs, of which the ids alone matter;
    /// adds `paused_ns` to the `steal_ns` of each unless the mode is [`Mode::Freeze`]; and returns
    /// the saved offset of the reference vCPU.
    ///
    /// Compares each id once if the order is right already.
    ///
    /// # Errors
    ///
    /// - [`Invalid::Vcpus`] unless `entries` names every one of `present` once and nothing else,
    ///   the reference vCPU among them,
    /// - [`Invalid::Padding`], [`Invalid::Steal`],
    /// - [`Invalid::Inconsistent`] unless `guest_tsc` and `kvmclock_ns` are what the offset and the
    ///   record say at the anchor,
    /// - [`Invalid::RecordAhead`] if the record lies ahead.
    ///
    /// `entries` may be changed in part then.
    pub fn match_vcpus(
        &self,
        present: &[ClockGuestVcpu],
        entries: &mut [ClockGuestVcpu],
    ) -> Result<TscOffset, Invalid> {
        if present.len() != entries.len() {
            return Err(Invalid::Vcpus);
        }
        let paused_ns = match self.mode {
            Mode::Exact | Mode::Advance => self.saved.paused_ns,
            Mode::Freeze => 0,
        };
        let mut ref_offset = None;
        let mut rest = &mut *entries;
        for vcpu in present {
            // GET lists vCPUs in the VM's order, so the first is nearly always the one.
            if rest.first().map(|entry| entry.vcpu_id) != Some(vcpu.vcpu_id) {
                let found = rest.iter().position(|entry| entry.vcpu_id == vcpu.vcpu_id);
                rest.swap(0, found.ok_or(Invalid::Vcpus)?);
            }
            let (entry, others) = rest.split_first_mut().ok_or(Invalid::Vcpus)?;
            if entry.pad != 0 {
                return Err(Invalid::Padding);
            }
            entry.steal_ns = entry
                .steal_ns
                .checked_add(paused_ns)
                .filter(|&steal_ns| steal_ns <= MAX_STEAL_NS)
                .ok_or(Invalid::Steal)?;
            if entry.vcpu_id == self.saved.ref_vcpu_id {
                ref_offset = Some(entry.tsc_offset);
            }
            rest = others;
        }
        let offset = ref_offset.ok_or(Invalid::Vcpus)?;
        self.check_reference(offset)?;
        Ok(offset)
    }

    /// Checks the clocks at the anchor against the reference vCPU's saved offset.
    ///
    /// # Errors
    ///
    /// [`Invalid::Inconsistent`] unless `guest_tsc` and `kvmclock_ns` are what the offset and the
    /// record say at the anchor, [`Invalid::RecordAhead`] if the record lies ahead.
    fn check_reference(&self, offset: TscOffset) -> Result<(), Invalid> {
        let transform = TscTransform {
            scale: self.rate.scale,
            offset,
        };
        let guest_tsc = transform.guest_tsc(self.saved.host_tsc);
        if guest_tsc != self.saved.guest_tsc
            || self.saved.record.kvmclock_ns(guest_tsc) != self.saved.kvmclock_ns
        {
            return Err(Invalid::Inconsistent);
        }
        if self.saved.record.tsc_timestamp.is_ahead_of(guest_tsc) {
            return Err(Invalid::RecordAhead);
        }
        Ok(())
    }
}

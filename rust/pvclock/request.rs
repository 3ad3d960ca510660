// SPDX-License-Identifier: GPL-2.0-only

//! From ioctl bytes to a validated request: everything that can be refused without looking at the
//! host's clock.

use super::{
    abi::{
        self,
        ClockGuest,
        ClockGuestVcpu,
        VmClockGuest, //
    },
    rate::GuestRate,
    tsc::{
        is_ahead,
        TscTransform,
        Scale, //
    },
};

/// Why a request is malformed; each is `EINVAL` to the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Invalid {
    /// A flag or status bit this build does not know.
    UnknownFlag,
    /// `mode` is none of `MODE_*`, or not 0 where it has no meaning.
    UnknownMode,
    /// Padding is not 0.
    Padding,
    /// `tsc_to_system_mul` is 0: the clock would stand still.
    ZeroMul,
    /// `tsc_shift` is outside -31..=31.
    ShiftRange,
    /// (`tsc_ratio`, `tsc_frac_bits`) is no scaling ratio, or a rate is 0.
    NoRate,
    /// `guest_tsc` or `kvmclock_ns` is not what the offset and the record say at `host_tsc`.
    Inconsistent,
    /// `tsc_timestamp` lies ahead of the guest's TSC, so that the guest cannot read the record yet.
    RecordAhead,
    /// A vCPU id appears twice.
    DuplicateVcpu,
    /// A vCPU id that the VM does not have; or `ref_vcpu_id` is not in the array.
    UnknownVcpu,
    /// A vCPU of the VM is not in the array.
    MissingVcpu,
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

/// A vCPU of the VM, in the VM's order, and what SET asks for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vcpu {
    /// vCPU id.
    pub id: u32,
    /// Saved L1 TSC offset, once [`SetRequest::match_vcpus`] found it, ticks.
    pub saved: Option<u64>,
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

/// Validates a record, and returns it as SET keeps it: the host in charge vouches for its own
/// record, and counts its versions, so `version` and `flags` are cleared.
///
/// # Errors
///
/// [`Invalid::Padding`], [`Invalid::ZeroMul`], [`Invalid::ShiftRange`].
pub fn check_record(record: &ClockGuest) -> Result<ClockGuest, Invalid> {
    if record.pad0 != 0 || record.pad != [0; 2] {
        return Err(Invalid::Padding);
    }
    if record.tsc_to_system_mul == 0 {
        return Err(Invalid::ZeroMul);
    }
    if !(-31..=31).contains(&record.tsc_shift) {
        return Err(Invalid::ShiftRange);
    }
    Ok(ClockGuest {
        version: 0,
        flags: 0,
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
    /// TSC rate of the guest where it was saved.
    pub rate: GuestRate,
    /// The header as it came; its record's `version` and `flags` are cleared.
    pub saved: VmClockGuest,
}

impl SetRequest {
    /// Validates the header of a SET.
    ///
    /// # Errors
    ///
    /// All of [`Invalid`] but those that [`match_vcpus`](Self::match_vcpus) finds.
    pub fn new(mut header: VmClockGuest) -> Result<Self, Invalid> {
        let mode = Mode::from_abi(header.mode).ok_or(Invalid::UnknownMode)?;
        if header.flags & !abi::FLAGS_KNOWN != 0 || header.status & !abi::STATUS_KNOWN != 0 {
            return Err(Invalid::UnknownFlag);
        }
        header.record = check_record(&header.record)?;

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
            rate,
            saved: header,
        })
    }

    /// Finds the saved offset of every vCPU of the VM, and returns that of the reference vCPU
    /// (ticks).
    ///
    /// # Errors
    ///
    /// Unless `entries` names every one of `vcpus` exactly once and nothing else, with zero
    /// padding, the reference vCPU among them; unless `guest_tsc` and `kvmclock_ns` are what the
    /// reference vCPU's offset and the record say at the anchor; and if the record lies ahead.
    pub fn match_vcpus(
        &self,
        vcpus: &mut [Vcpu],
        entries: &[ClockGuestVcpu],
    ) -> Result<u64, Invalid> {
        let mut ref_offset = None;
        for (index, entry) in entries.iter().enumerate() {
            if entry.pad != 0 {
                return Err(Invalid::Padding);
            }
            // GET lists vCPUs in the VM's order, so the first guess is nearly always right.
            let vcpu = match vcpus.get_mut(index) {
                Some(vcpu) if vcpu.id == entry.vcpu_id => vcpu,
                _ => vcpus
                    .iter_mut()
                    .find(|vcpu| vcpu.id == entry.vcpu_id)
                    .ok_or(Invalid::UnknownVcpu)?,
            };
            if vcpu.saved.replace(entry.tsc_offset).is_some() {
                return Err(Invalid::DuplicateVcpu);
            }
            if entry.vcpu_id == self.saved.ref_vcpu_id {
                ref_offset = Some(entry.tsc_offset);
            }
        }
        if vcpus.iter().any(|vcpu| vcpu.saved.is_none()) {
            return Err(Invalid::MissingVcpu);
        }
        let offset = ref_offset.ok_or(Invalid::UnknownVcpu)?;
        self.check_reference(offset)?;
        Ok(offset)
    }

    /// Checks the clocks at the anchor against the reference vCPU's saved offset (ticks).
    ///
    /// # Errors
    ///
    /// [`Invalid::Inconsistent`] unless `guest_tsc` and `kvmclock_ns` are what the offset and the
    /// record say at the anchor, [`Invalid::RecordAhead`] if the record lies ahead.
    pub fn check_reference(&self, offset: u64) -> Result<(), Invalid> {
        let relation = TscTransform {
            scale: self.rate.scale,
            offset,
        };
        let guest_tsc = relation.guest_tsc(self.saved.host_tsc);
        if guest_tsc != self.saved.guest_tsc
            || self.saved.record.kvmclock_ns(guest_tsc) != self.saved.kvmclock_ns
        {
            return Err(Invalid::Inconsistent);
        }
        if is_ahead(self.saved.record.tsc_timestamp, guest_tsc) {
            return Err(Invalid::RecordAhead);
        }
        Ok(())
    }
}

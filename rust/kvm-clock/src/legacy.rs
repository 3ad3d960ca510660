// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Clocks without the kernel module: the module's plan, carried out with the older ioctls.
//!
//! All values are computed for one instant, as the module does. What the older ioctls lack: KVM
//! derives a new record, whose value `KVM_SET_CLOCK` can choose only to the time between KVM's
//! reading of two clocks, and the vCPUs are written one after another.

use crate::{
    abi::{
        ClockGuest, ClockGuestVcpu, VmClockGuest, FLAG_FALLBACK, FLAG_RESLOPE, PVCLOCK_TSC_STABLE,
    },
    check_extension,
    counter::{HostTsc, TscOffset},
    error::Error,
    get_clock, guest_tsc,
    host::{now, rdtsc},
    set_clock, set_tsc_offset, tsc_khz, tsc_offset, tsc_scale, ClockData, Vcpu, VmClock,
    KVM_CLOCK_HOST_TSC, KVM_CLOCK_REALTIME,
};
use pvclock::{
    plan::{plan, ClockSnapshot, Plan, PlanError},
    rate::GuestRate,
    request::{Invalid, SetRequest},
    tsc::{Scale, TscTransform},
};
use std::os::fd::AsRawFd;

/// Largest difference between a record that [`get`] rebuilds and the guest's own, ns: neither
/// `KVM_GET_CLOCK`'s value nor a record's `system_time` has fractions of a ns.
pub(crate) const REBUILT_RECORD_NS: u32 = 2;

/// KVM's default for the module parameter `tsc_tolerance_ppm`, which a VMM may be unable to read.
pub(crate) const TOLERANCE_PPM: u32 = 250;

/// Corrections of kvmclock by its measured error.
const CORRECTIONS: u32 = 3;

const NSEC_PER_SEC: i64 = 1_000_000_000;

/// What the module would return for `vm`, whose vCPUs have a TSC of `khz` kHz.
pub(crate) fn get<V: AsRawFd>(
    vm: &impl AsRawFd,
    vcpus: &[Vcpu<'_, V>],
    khz: u32,
) -> Result<VmClock, Error> {
    let first = vcpus.first().ok_or(Error::NoVcpus)?;
    let scale = scale_of(first.fd)?;
    let entries = vcpus.iter().map(|vcpu| {
        Ok(ClockGuestVcpu {
            vcpu_id: vcpu.id,
            tsc_offset: offset_of(vcpu.fd)?,
            ..ClockGuestVcpu::default()
        })
    });
    let entries = entries.collect::<Result<Vec<_>, Error>>()?;
    let (here, data) = (now(), clock_of(vm)?);
    rebuild(&data, &here, entries, rate_of(khz, scale)).ok_or(Error::Invalid(Invalid::NoRate))
}

/// The values of the module at the instant of `data`, if it has one, or else of `here`, which was
/// read just before; `None` without a vCPU or a rate.
fn rebuild(
    data: &ClockData,
    here: &ClockSnapshot,
    vcpus: Vec<ClockGuestVcpu>,
    rate: GuestRate,
) -> Option<VmClock> {
    let first = *vcpus.first()?;
    let transform = TscTransform {
        scale: rate.scale,
        offset: first.tsc_offset,
    };
    let paired = KVM_CLOCK_HOST_TSC | KVM_CLOCK_REALTIME;
    let is_paired = data.flags & paired == paired;
    let (host_tsc, tai_ns, precision_ns) = if is_paired {
        // CAST: KVM's type for a time after 1970.
        let tai_offset_ns = i64::from(here.tai_offset_s) * NSEC_PER_SEC;
        let tai_ns = (data.realtime as i64).wrapping_add(tai_offset_ns);
        (HostTsc(data.host_tsc), tai_ns, 0)
    } else {
        (here.host_tsc, here.tai_ns, here.precision_ns(rate.host_khz))
    };
    // CAST: The sign of the wrapped difference.
    let later_ticks = host_tsc.since(here.host_tsc) as i64;
    let later_ns = i128::from(later_ticks) * 1_000_000 / i128::from(rate.host_khz.max(1));
    let guest_tsc = transform.guest_tsc(host_tsc);
    let factor = rate.factor()?;
    // As in KVM: with a master clock, while all TSCs are equal.
    let is_stable = data.flags & KVM_CLOCK_HOST_TSC != 0
        && vcpus.iter().all(|vcpu| vcpu.tsc_offset == first.tsc_offset);
    let header = VmClockGuest {
        ref_vcpu_id: first.vcpu_id,
        host_tsc,
        guest_tsc,
        kvmclock_ns: data.clock,
        tai_ns,
        // CAST: Microseconds.
        monotonic_raw_ns: here.monotonic_raw_ns.wrapping_add(later_ns as i64),
        tai_offset_s: here.tai_offset_s,
        host_tsc_khz: rate.host_khz,
        tsc_ratio: rate.scale.ratio(),
        tsc_frac_bits: rate.scale.frac_bits(),
        precision_ns: precision_ns + REBUILT_RECORD_NS,
        record: ClockGuest {
            tsc_timestamp: guest_tsc,
            system_time: data.clock,
            tsc_to_system_mul: factor.mul,
            tsc_shift: factor.shift,
            flags: if is_stable { PVCLOCK_TSC_STABLE } else { 0 },
            ..ClockGuest::default()
        },
        ..VmClockGuest::default()
    };
    Some(VmClock { header, vcpus })
}

/// Why the clocks were not set; nothing was changed.
pub(crate) enum NotSet {
    /// There is no plan for them on this host; with the difference of the rates, Hz.
    Plan(PlanError, i64),
    Error(Error),
}

impl From<Error> for NotSet {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

/// What [`set`] did.
pub(crate) struct Done {
    /// How far kvmclock is off by the measurement after it, ns.
    pub(crate) kvmclock_ns: u32,
    /// How far both clocks are from what was requested beside that, ns.
    pub(crate) precision_ns: u32,
    pub(crate) rate_diff_hz: i64,
}

/// Sets the clocks as the module does, as well as the older ioctls allow.
pub(crate) fn set<V: AsRawFd>(
    vm: &impl AsRawFd,
    vcpus: &[Vcpu<'_, V>],
    mut clock: VmClock,
) -> Result<Done, NotSet> {
    let first = vcpus.first().ok_or(Error::NoVcpus)?;
    let khz = tsc_khz(first.fd).map_err(Error::of("KVM_GET_TSC_KHZ"))?;
    let here = rate_of(khz, scale_of(first.fd)?);

    // The slope is KVM's own in any case, and a host without a stable TSC is as good as another.
    clock.header.flags |= FLAG_RESLOPE | FLAG_FALLBACK;
    let request = SetRequest::new(clock.header).map_err(Error::Invalid)?;
    let reference = request
        .match_vcpus(&clock.vcpus.clone(), &mut clock.vcpus)
        .map_err(Error::Invalid)?;
    let rate_diff_hz = here.diff_hz(request.rate);
    let instant = now();
    let plan = plan(&request, reference, &instant, here, TOLERANCE_PPM)
        .map_err(|error| NotSet::Plan(error, rate_diff_hz))?;
    if plan.scale != here.scale && !(plan.scale.is_identity() && here.scale.is_identity()) {
        // KVM has computed another ratio, after another calibration: it cannot be chosen.
        return Err(NotSet::Plan(PlanError::RateMismatch, rate_diff_hz));
    }

    set_offsets(vcpus, &clock.vcpus, &plan)?;
    let transform = TscTransform {
        scale: here.scale,
        offset: reference.wrapping_add(plan.offset_shift),
    };
    let kvmclock_ns = set_kvmclock(vm, &plan.record, transform, here.host_khz)?;
    Ok(Done {
        kvmclock_ns,
        precision_ns: plan.precision_ns,
        rate_diff_hz,
    })
}

/// Writes the TSC offsets of all vCPUs, or of none.
fn set_offsets<V: AsRawFd>(
    vcpus: &[Vcpu<'_, V>],
    saved: &[ClockGuestVcpu],
    plan: &Plan,
) -> Result<(), Error> {
    let former = vcpus.iter().map(|vcpu| offset_of(vcpu.fd));
    let former = former.collect::<Result<Vec<_>, _>>()?;
    for (index, vcpu) in vcpus.iter().enumerate() {
        let saved = saved.iter().find(|saved| saved.vcpu_id == vcpu.id);
        let offset = saved.ok_or(Error::VcpuAdded(vcpu.id))?.tsc_offset;
        let offset = offset.wrapping_add(plan.offset_shift);
        if let Err(errno) = set_tsc_offset(vcpu.fd, offset) {
            for (vcpu, &offset) in vcpus[..index].iter().zip(&former) {
                // It succeeded a moment ago.
                let _ = set_tsc_offset(vcpu.fd, offset);
            }
            return Err(Error::of("KVM_VCPU_TSC_OFFSET")(errno));
        }
    }
    Ok(())
}

/// Sets kvmclock to what `record` yields for a TSC of `transform`; returns by how much KVM's clock
/// differs afterwards, ns.
fn set_kvmclock(
    vm: &impl AsRawFd,
    record: &ClockGuest,
    transform: TscTransform,
    host_khz: u32,
) -> Result<u32, Error> {
    const KVM_CAP_ADJUST_CLOCK: u32 = 39;

    let known = check_extension(vm, KVM_CAP_ADJUST_CLOCK);
    let set = |host_tsc, realtime, late_by_ns: i64| {
        let clock = record.kvmclock_ns(transform.guest_tsc(host_tsc));
        let data = ClockData {
            clock: clock.wrapping_add_signed(late_by_ns),
            realtime,
            flags: KVM_CLOCK_REALTIME & known,
            ..ClockData::default()
        };
        set_clock(vm, &data).map_err(Error::of("KVM_SET_CLOCK"))
    };
    let error_ns = |data: &ClockData, host_tsc| {
        let expected = record.kvmclock_ns(transform.guest_tsc(host_tsc));
        // CAST: The sign of the wrapped difference.
        data.clock.wrapping_sub(expected) as i64
    };
    let instant = now();
    let tai_offset_ns = i64::from(instant.tai_offset_s) * NSEC_PER_SEC;
    // CAST: After 1970.
    let realtime = (instant.tai_ns - tai_offset_ns) as u64;
    set(instant.host_tsc, realtime, 0)?;

    // That made KVM use a master clock, if it can. Then KVM reads all its clocks as one, so that
    // the error is known exactly, and most of it is the same each time.
    let paired = KVM_CLOCK_HOST_TSC | KVM_CLOCK_REALTIME;
    let mut late_by_ns = 0;
    for _ in 0..CORRECTIONS {
        let data = clock_of(vm)?;
        let error_ns = error_ns(&data, HostTsc(data.host_tsc));
        if data.flags & paired != paired || error_ns == 0 {
            break;
        }
        late_by_ns -= error_ns;
        set(HostTsc(data.host_tsc), data.realtime, late_by_ns)?;
    }

    let before = rdtsc();
    let data = clock_of(vm)?;
    let window = rdtsc().since(before);
    let (host_tsc, read_window) = if data.flags & KVM_CLOCK_HOST_TSC != 0 {
        (HostTsc(data.host_tsc), 0)
    } else {
        (before.wrapping_add(window / 2), window)
    };
    let read = ClockSnapshot {
        read_window,
        ..ClockSnapshot::default()
    };
    let off_by_ns = error_ns(&data, host_tsc).unsigned_abs();
    let off_by_ns = u32::try_from(off_by_ns).unwrap_or(u32::MAX);
    Ok(off_by_ns
        .saturating_add(read.precision_ns(host_khz))
        .saturating_add(record.rounding_ns()))
}

/// The scaling ratio of a vCPU.
///
/// # Errors
///
/// [`Error::ScaledTsc`] if there is one, and the kernel does not report it.
fn scale_of(vcpu: &impl AsRawFd) -> Result<Scale, Error> {
    if let Ok(scale) = tsc_scale(vcpu) {
        // CAST: At most 63.
        let known = Scale::new(scale.tsc_ratio, scale.tsc_frac_bits as u32);
        return known.ok_or(Error::ScaledTsc);
    }
    // Either the hardware cannot scale, or this KVM does not have the attribute. Without scaling,
    // TSC and offset give a host TSC of just now.
    let offset = offset_of(vcpu)?;
    let before = rdtsc();
    let guest_tsc = guest_tsc(vcpu).map_err(Error::of("KVM_GET_MSRS of MSR_IA32_TSC"))?;
    let after = rdtsc();
    if HostTsc(guest_tsc.wrapping_sub(offset.0).0).is_between(before, after) {
        Ok(Scale::IDENTITY)
    } else {
        Err(Error::ScaledTsc)
    }
}

/// The rate of a guest whose TSC has `khz` kHz with the ratio `scale`.
fn rate_of(khz: u32, scale: Scale) -> GuestRate {
    let host_khz = if scale.is_identity() {
        khz.into()
    } else {
        (u128::from(khz) << scale.frac_bits()).div_ceil(scale.ratio().into())
    };
    GuestRate {
        host_khz: u32::try_from(host_khz).unwrap_or(u32::MAX),
        scale,
    }
}

fn offset_of(vcpu: &impl AsRawFd) -> Result<TscOffset, Error> {
    tsc_offset(vcpu).map_err(Error::of("KVM_VCPU_TSC_OFFSET"))
}

fn clock_of(vm: &impl AsRawFd) -> Result<ClockData, Error> {
    get_clock(vm).map_err(Error::of("KVM_GET_CLOCK"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counter::GuestTsc;

    const PAIRED: u32 = KVM_CLOCK_REALTIME | KVM_CLOCK_HOST_TSC;
    const RATE: GuestRate = GuestRate {
        host_khz: 2_600_000,
        scale: Scale::IDENTITY,
    };

    fn rebuilt(offsets: &[u64], flags: u32) -> Option<VmClock> {
        let data = ClockData {
            clock: 77,
            realtime: 1_900_000_000_000_000_000,
            host_tsc: 5_000,
            flags,
            ..ClockData::default()
        };
        let here = ClockSnapshot {
            host_tsc: HostTsc(5_000 - 2_600),
            tai_ns: 1_900_000_036_999_999_000,
            tai_offset_s: 37,
            monotonic_raw_ns: 10_000,
            read_window: 5_200,
        };
        let vcpus = offsets
            .iter()
            .zip(0..)
            .map(|(&offset, vcpu_id)| ClockGuestVcpu {
                vcpu_id,
                tsc_offset: TscOffset(offset),
                ..ClockGuestVcpu::default()
            });
        rebuild(&data, &here, vcpus.collect(), RATE)
    }

    #[test]
    fn the_record_gives_the_saved_clock() {
        let header = rebuilt(&[3u64.wrapping_neg(), 9], PAIRED).unwrap().header;
        assert_eq!(header.guest_tsc, GuestTsc(4_997));
        assert_eq!(header.record.kvmclock_ns(header.guest_tsc), 77);
        // One second later, to the rounding of the factor.
        let later = header.guest_tsc.wrapping_add(2_600_000_000);
        let later = header.record.kvmclock_ns(later);
        assert!(later.abs_diff(77 + 1_000_000_000) <= 1, "{later}");
        assert_eq!(header.precision_ns, REBUILT_RECORD_NS);
    }

    #[test]
    fn all_clocks_are_of_kvms_instant_or_of_ours() {
        let header = rebuilt(&[0], PAIRED).unwrap().header;
        assert_eq!(header.tai_ns, 1_900_000_037_000_000_000);
        assert_eq!(header.monotonic_raw_ns, 10_000 + 1_000);
        let header = rebuilt(&[0], 0).unwrap().header;
        assert_eq!(header.host_tsc, HostTsc(2_400));
        assert_eq!(header.tai_ns, 1_900_000_036_999_999_000);
        assert_eq!(header.monotonic_raw_ns, 10_000);
        assert_eq!(header.precision_ns, REBUILT_RECORD_NS + 1_000);
    }

    #[test]
    fn the_record_is_stable_if_all_tscs_are_equal() {
        let flags = |offsets: &[u64], flags| rebuilt(offsets, flags).unwrap().header.record.flags;
        assert_eq!(flags(&[7, 7], PAIRED), PVCLOCK_TSC_STABLE);
        assert_eq!(flags(&[7, 8], PAIRED), 0);
        assert_eq!(flags(&[7, 7], KVM_CLOCK_REALTIME), 0);
        assert!(rebuilt(&[], PAIRED).is_none());
    }

    #[test]
    fn a_scaled_rate_has_the_hosts() {
        // A guest of 2.5 GHz on a host of 2 GHz, by SVM's 32 fraction bits.
        let scale = Scale::new((5 << 32) / 4, 32).unwrap();
        assert_eq!(rate_of(2_500_000, scale).host_khz, 2_000_000);
        assert_eq!(rate_of(2_500_000, scale).khz(), 2_500_000);
        assert_eq!(
            rate_of(2_500_000, Scale::IDENTITY),
            GuestRate {
                host_khz: 2_500_000,
                scale: Scale::IDENTITY
            }
        );
    }
}

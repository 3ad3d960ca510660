// SPDX-License-Identifier: GPL-2.0-only

//! A vCPU's TSC as a function of the host's, by the reference's arithmetic, from interfaces other
//! than the ioctls under test.

use clockguest::measure::Reading;
use kvm_clock::tsc_scale;
use kvm_clock_guest_selftests::{expect::rate, prelude::*};
use pvclock::tsc::Scale;
use pvclock_reference::arithmetic::guest_tsc;

/// `((host TSC * ratio) >> frac_bits) + offset`, mod 2^64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tsc {
    pub(crate) scale: Scale,
    pub(crate) offset: TscOffset,
}

impl Tsc {
    /// That of vCPU `index` of the stopped `vm`, by `KVM_VCPU_TSC_SCALE` and `KVM_VCPU_TSC_OFFSET`.
    pub(crate) fn of(vm: &Vm, index: usize) -> Result<Self> {
        let fd = vm.vcpus()[index].fd();
        let scale = tsc_scale(&fd).context("KVM_VCPU_TSC_SCALE")?;
        Ok(Self {
            scale: Scale::new(scale.tsc_ratio, u32::try_from(scale.tsc_frac_bits)?)
                .context("KVM_VCPU_TSC_SCALE is no ratio")?,
            offset: tsc_offset(&fd).context("KVM_VCPU_TSC_OFFSET")?,
        })
    }

    /// The vCPU's TSC at host TSC `host_tsc`.
    pub(crate) fn at(&self, host_tsc: HostTsc) -> GuestTsc {
        guest_tsc(self.scale, self.offset, host_tsc)
    }

    /// Whether the vCPU's TSC is `guest_tsc`, to the tick, at some host TSC in `window`. With a
    /// ratio above 1 it skips values.
    pub(crate) fn is_at_some_time(&self, guest_tsc: GuestTsc, window: [HostTsc; 2]) -> bool {
        let distance = guest_tsc.since(self.at(window[0]));
        // The window is short, so a large distance is one backwards.
        let ticks =
            (u128::from(distance) << self.scale.frac_bits()) / u128::from(self.scale.ratio());
        let Ok(ticks) = u64::try_from(ticks) else {
            return false;
        };
        // The division and `at()` round down.
        (ticks.saturating_sub(2)..=ticks.saturating_add(2)).any(|ticks| {
            let host_tsc = window[0].0.saturating_add(ticks);
            host_tsc <= window[1].0 && self.at(HostTsc(host_tsc)) == guest_tsc
        })
    }

    /// Whether it runs at the host's rate.
    pub(crate) fn is_unscaled(&self) -> bool {
        self.scale.ratio() == 1 << self.scale.frac_bits()
    }
}

/// As `fixture::move_to_domain()`, by the reference's arithmetic.
pub(crate) fn move_to_domain(clock: &mut VmClock, host_tsc: HostTsc) {
    let header = &mut clock.header;
    let tsc = Tsc {
        scale: rate(header).scale,
        offset: TscOffset(0),
    };
    let shift = tsc.at(header.host_tsc).since(tsc.at(host_tsc));
    header.host_tsc = host_tsc;
    for vcpu in &mut clock.vcpus {
        vcpu.tsc_offset = vcpu.tsc_offset.wrapping_add(shift);
    }
}

/// Fails unless every RDTSC that the guest of the stopped `vm` executed lies on its TSC's function
/// of the host's: between the values for the host TSCs before and after.
pub(crate) fn ensure_on_function(vm: &Vm, reading: &Reading) -> Result<()> {
    for (index, vcpu) in reading.vcpus.iter().enumerate() {
        let tsc = Tsc::of(vm, index)?;
        ensure!(!vcpu.samples.is_empty(), "vCPU {index} made no reading");
        for bracketed in &vcpu.samples {
            let (low, high) = (tsc.at(bracketed.host_before), tsc.at(bracketed.host_after));
            let read = bracketed.sample.tsc;
            ensure!(
                read.since(low) <= high.since(low),
                "vCPU {index} read TSC {read}, which was between {low} and {high} by {tsc:x?}"
            );
        }
    }
    Ok(())
}

/// Whether the readings `first` and `last` of vCPU 0 are impossible for a TSC that runs at the
/// host's rate.
pub(crate) fn excludes_host_rate(first: &Reading, last: &Reading) -> Option<bool> {
    let (first, last) = (
        first.vcpus[0].samples.first()?,
        last.vcpus[0].samples.last()?,
    );
    let guest_ticks = last.sample.tsc.since(first.sample.tsc);
    let least = last.host_before.0.saturating_sub(first.host_after.0);
    let most = last.host_after.0.saturating_sub(first.host_before.0);
    Some(!(least..=most).contains(&guest_ticks))
}

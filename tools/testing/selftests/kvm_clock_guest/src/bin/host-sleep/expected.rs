// SPDX-License-Identifier: GPL-2.0-only

//! What a suspension of the host is to leave of a guest's clocks.

use anyhow::{ensure, Context, Result};
use clockguest::{host::rdtsc_ordered, measure::Reading, observe, vmm::Vm};
use kvm_clock::VmClock;
use kvm_clock_guest_selftests::{
    clocks::{function, Clocks},
    expect,
    flat_out::Progress,
};
use pvclock::abi::ClockGuest;

/// pvclock flag that tells the guest it was stopped: KVM sets it when the host goes to sleep.
const PVCLOCK_GUEST_STOPPED: u8 = 1 << 1;

/// The clocks of a stopped VM before the host slept, and what its guest had read by then.
pub(crate) struct Before {
    pub(crate) clocks: Clocks,
    pub(crate) progress: Progress,
}

impl Before {
    pub(crate) fn of(vm: &Vm) -> Result<Self> {
        Ok(Self {
            clocks: Clocks::of(vm)?,
            progress: Progress::of(vm),
        })
    }

    /// The same clocks, but that KVM told the guest of the pause.
    pub(crate) fn told_of_pause(&self) -> Clocks {
        Clocks {
            pages: with_flags(&self.clocks.pages, |flags| flags | PVCLOCK_GUEST_STOPPED),
            ..self.clocks.clone()
        }
    }

    /// Fails unless the stopped `vm`, whose guest made `reading`, kept its clocks to the bit over a
    /// sleep during which the host TSC counted on.
    pub(crate) fn ensure_pinned(&self, vm: &Vm, reading: &Reading) -> Result<()> {
        let expected = self.told_of_pause();
        expected.ensure_is(&Clocks::of(vm)?, "after the sleep")?;
        expected.ensure_reads(reading)?;
        self.progress.ensure_none_went_back(vm, true)
    }

    /// Fails unless the stopped `vm`, whose clock is pinned and whose guest made `reading`, has all
    /// its offsets raised alike since, and its record, a function of its TSC, unchanged to the bit.
    pub(crate) fn ensure_raised(&self, vm: &Vm, reading: &Reading) -> Result<()> {
        self.ensure_raised_to_within(vm, reading, 0)
    }

    /// The same, but the record may be `off` ticks off.
    pub(crate) fn ensure_raised_to_within(
        &self,
        vm: &Vm,
        reading: &Reading,
        off: u64,
    ) -> Result<()> {
        let now = Clocks::of(vm)?;
        let raised: Vec<_> = now
            .offsets
            .iter()
            .zip(&self.clocks.offsets)
            .map(|(now, then)| now.wrapping_sub(*then))
            .collect();
        // CAST: The sign of a difference mod 2^64 is the order.
        ensure!(
            raised.iter().all(|ticks| *ticks == raised[0]) && raised[0] as i64 > 0,
            "TSC offsets were raised by {raised:x?}"
        );
        // KVM has no master clock for this VM any more, but that is no part of the function.
        let was = function(self.clocks.record);
        let shift = now.record.tsc_timestamp.wrapping_sub(was.tsc_timestamp);
        let record = ClockGuest {
            tsc_timestamp: was.tsc_timestamp.wrapping_add(shift),
            ..was
        };
        ensure!(
            now.pinned && function(now.record) == record && shift.wrapping_add(off) <= 2 * off,
            "the record is {:x?}, pinned {}, was {was:x?}",
            now.record,
            now.pinned
        );
        for (index, page) in now.pages.iter().enumerate() {
            ensure!(
                function(*page) == record,
                "vCPU {index} reads the record {page:x?}, GET tells {record:x?}"
            );
        }
        expect::ensure_reads(reading, &record, now.offsets[0])?;
        self.progress.ensure_none_went_back(vm, true)
    }
}

/// Fails unless ADVANCE took the guest's TSC from `saved` to `now`, to the tick, as far as the
/// whole ns of either tell.
pub(crate) fn ensure_advanced(saved: &VmClock, now: &VmClock) -> Result<()> {
    let off = expect::error_ticks(&saved.header, now, &now.header)?;
    let open = expect::ticks(&saved.header, 2) + 2;
    ensure!(
        i128::from(off).abs() <= open,
        "the guest TSC is {off} ticks off, {open} are open"
    );
    Ok(())
}

/// Lets `vm`, which may be running, make fresh readings, and stops it.
pub(crate) fn read_and_stop(vm: &Vm) -> Result<Reading> {
    let run = observe::run(vm)?;
    vm.stop()?;
    Ok(run.finish(vm, rdtsc_ordered())?)
}

fn with_flags(records: &[ClockGuest], flags: impl Fn(u8) -> u8) -> Vec<ClockGuest> {
    let changed = records.iter().map(|record| ClockGuest {
        flags: flags(record.flags),
        ..*record
    });
    changed.collect()
}

/// What `of` makes of each of `vms`.
pub(crate) fn all_of<T>(vms: &[Vm], of: impl Fn(&Vm) -> Result<T>) -> Result<Vec<T>> {
    vms.iter().map(of).collect()
}

/// Steps back that each vCPU saw of its own TSC and kvmclock.
pub(crate) fn own_steps_back(vm: &Vm) -> Vec<[u64; 2]> {
    (0..vm.vcpus().len())
        .map(|index| vm.view(index).backwards())
        .map(|seen| [seen.own_tsc, seen.own_kvmclock])
        .collect()
}

/// Checks each of `vms` with what belongs to it.
pub(crate) fn for_each<T>(
    vms: &[Vm],
    of: &[T],
    check: impl Fn(&Vm, &T) -> Result<()>,
) -> Result<()> {
    vms.iter()
        .zip(of)
        .enumerate()
        .try_for_each(|(index, (vm, of))| {
            check(vm, of).with_context(|| format!("the guest of rate {index}"))
        })
}

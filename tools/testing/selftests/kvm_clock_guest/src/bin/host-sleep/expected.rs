// SPDX-License-Identifier: GPL-2.0-only

//! The expected clocks of a guest after the host was suspended.

use clockguest::measure::Reading;
use kvm_clock_guest_selftests::{
    clocks::PVCLOCK_GUEST_STOPPED, expect, prelude::*, progress::Progress,
};

/// The clocks of a stopped VM before the host slept, and its guest's readings up to then.
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

    /// The same clocks, with the flag that KVM sets when the host goes to sleep.
    pub(crate) fn with_stopped_flag(&self) -> Clocks {
        Clocks {
            pages: with_flags(&self.clocks.pages, |flags| flags | PVCLOCK_GUEST_STOPPED),
            ..self.clocks.clone()
        }
    }

    /// Fails unless the stopped `vm`, whose guest made `reading`, has bit-identical clocks after a
    /// sleep during which the host TSC kept counting.
    pub(crate) fn ensure_pinned(&self, vm: &Vm, reading: &Reading) -> Result<()> {
        let expected = self.with_stopped_flag();
        expected.ensure_is(&Clocks::of(vm)?, "after the sleep")?;
        expected.ensure_reads(reading)?;
        self.progress.ensure_none_went_back(vm, true)
    }

    /// Fails unless the stopped `vm`, whose clock is pinned and whose guest made `reading`, has all
    /// its offsets raised alike since, and its record, a function of its TSC, unchanged to the bit.
    pub(crate) fn ensure_raised(&self, vm: &Vm, reading: &Reading) -> Result<()> {
        self.ensure_raised_to_within(vm, reading, 0)
    }

    /// The same with an error of the record of up to `error` ticks.
    pub(crate) fn ensure_raised_to_within(
        &self,
        vm: &Vm,
        reading: &Reading,
        error: u64,
    ) -> Result<()> {
        let now = Clocks::of(vm)?;
        let raised: Vec<_> = now
            .offsets
            .iter()
            .zip(&self.clocks.offsets)
            .map(|(now, then)| now.since(*then))
            .collect();
        // CAST: The sign of a difference mod 2^64 is the order.
        ensure!(
            raised.iter().all(|ticks| *ticks == raised[0]) && raised[0] as i64 > 0,
            "TSC offsets were raised by {raised:x?}"
        );
        // KVM no longer has a master clock for this VM, but the function is the same.
        let was = function(self.clocks.record);
        let shift = now.record.tsc_timestamp.since(was.tsc_timestamp);
        let record = ClockGuest {
            tsc_timestamp: was.tsc_timestamp.wrapping_add(shift),
            ..was
        };
        ensure!(
            now.pinned && function(now.record) == record && shift.wrapping_add(error) <= 2 * error,
            "the record is {:x?}, pinned {}, was {was:x?}",
            now.record,
            now.pinned
        );
        for (index, page) in now.pages.iter().enumerate() {
            ensure_eq_hex!(function(*page), record, "vCPU {index}'s record");
        }
        expect::ensure_reads(reading, &record, now.offsets[0])?;
        self.progress.ensure_none_went_back(vm, true)
    }
}

/// Fails unless ADVANCE moved the guest's TSC from `saved` to `now`, to the tick, within the
/// uncertainty of their whole ns.
pub(crate) fn ensure_advanced(saved: &VmClock, now: &VmClock) -> Result<()> {
    let error = expect::error_ticks(&saved.header, now, &now.header)?;
    let uncertainty = expect::ticks(&saved.header, 2) + 2;
    ensure!(
        i128::from(error).abs() <= uncertainty,
        "the error of the guest TSC is {error} ticks, uncertainty {uncertainty}"
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

/// `of` of each of `vms`.
pub(crate) fn all_of<T>(vms: &[Vm], of: impl Fn(&Vm) -> Result<T>) -> Result<Vec<T>> {
    vms.iter().map(of).collect()
}

/// Steps back of each vCPU's own TSC and kvmclock.
pub(crate) fn own_steps_back(vm: &Vm) -> Vec<[u64; 2]> {
    (0..vm.vcpus().len())
        .map(|index| vm.view(index).backwards())
        .map(|seen| [seen.own_tsc, seen.own_kvmclock])
        .collect()
}

/// Checks each of `vms` with its element of `of`.
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

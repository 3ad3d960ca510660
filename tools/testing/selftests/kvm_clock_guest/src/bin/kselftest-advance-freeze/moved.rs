// SPDX-License-Identifier: GPL-2.0-only

//! What holds after any SET that moves a guest's TSC: all vCPUs moved by as much, and kvmclock is
//! the function of the TSC that it was, for whoever asks.

use anyhow::{ensure, Result};
use clockguest::vmm::Vm;
use kvm_clock::VmClock;
use kvm_clock_guest_selftests::{
    clocks::Clocks,
    expect::{elapsed_ns, ensure_kvm_tells, ensure_reads, error_ticks, not_ahead_of, ticks},
    fixture::{get, reference_offset, reference_transform, run_a_little, set},
    ktap::note,
};
use pvclock::abi::{ClockGuest, MODE_ADVANCE};

/// A VM about to be SET.
pub(crate) struct Moved<'a> {
    vm: &'a Vm,
    clocks: Clocks,
    before: VmClock,
}

impl<'a> Moved<'a> {
    /// Looks at the stopped `vm`.
    pub(crate) fn new(vm: &'a Vm) -> Result<Self> {
        Ok(Self {
            vm,
            clocks: Clocks::of(vm)?,
            before: get(vm)?,
        })
    }

    /// Fails unless the SET of `saved`, made since, did what it should to kvmclock; returns what
    /// GET says right after it.
    pub(crate) fn ensure_one_clock(&self, saved: &VmClock) -> Result<VmClock> {
        let after = get(self.vm)?;
        let transform = reference_transform(&after)?;
        // SET does not tell its instant. It lies between these two, and as a rule both call for the
        // same record: steps of the lattice are long against a call.
        let window = [&self.before, &after].map(|at| transform.guest_tsc(at.header.host_tsc));
        let candidates = window.map(|guest_tsc| not_ahead_of(&saved.header.record, guest_tsc));
        let expected = match candidates {
            [_, late] if after.header.record == late => late,
            [early, _] => early,
        };

        ensure_kvm_tells(self.vm, &after, &saved.header.record)?;
        let reading = run_a_little(self.vm)?;
        let now = Clocks::of(self.vm)?;
        self.moved_as_one(&now, expected)
            .ensure_is(&now, "after SET")?;
        ensure_reads(&reading, &saved.header.record, reference_offset(&after))?;
        Ok(after)
    }

    /// All offsets of before, moved by as much as the first of `now`; `record` for everybody.
    fn moved_as_one(&self, now: &Clocks, record: ClockGuest) -> Clocks {
        let shift = now.offsets[0].wrapping_sub(self.clocks.offsets[0]);
        let offsets = self.clocks.offsets.iter();
        Clocks {
            offsets: offsets.map(|offset| offset.wrapping_add(shift)).collect(),
            pages: vec![record; self.clocks.pages.len()],
            record,
            pinned: true,
            clock_diff_ns: Some(0),
        }
    }
}

/// SET in mode advance puts the guest TSC where elapsed TAI does; returns what GET says right
/// after.
///
/// SET does not tell its instant, but it is between the anchors of a GET before and after. At each
/// of them the error is the same, but for drift between TAI and TSC and the granularity of a ns.
pub(crate) fn ensure_advances(vm: &Vm, saved: &mut VmClock) -> Result<VmClock> {
    let moved = Moved::new(vm)?;
    set(vm, saved, MODE_ADVANCE)?;
    let after = moved.ensure_one_clock(saved)?;

    let before = &moved.before;
    let errors = [
        error_ticks(&saved.header, &after, &before.header)?,
        error_ticks(&saved.header, &after, &after.header)?,
    ];
    let [least, most] = [errors[0].min(errors[1]), errors[0].max(errors[1])];
    let tolerance = 1 + i64::try_from(ticks(&saved.header, 1))? + 1;
    let drift = i64::try_from(ticks(
        &saved.header,
        elapsed_ns(&before.header, &after.header),
    ))? / 1_000_000;
    note(&format!("error {errors:?} ticks, tolerance {tolerance}"));
    ensure!(
        least <= tolerance && most >= -tolerance && most - least <= 2 * tolerance + drift,
        "guest TSC is {least} to {most} ticks off saved + elapsed TAI * rate, tolerance {tolerance}"
    );
    Ok(after)
}

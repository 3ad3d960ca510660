// SPDX-License-Identifier: GPL-2.0-only

//! The expected clocks after a SET that moves a guest's TSC: all vCPUs' TSCs moved alike, and
//! kvmclock is the same function of the TSC in every interface.

use kvm_clock_guest_selftests::{
    expect::{elapsed_ns, ensure_kvm_agrees, ensure_reads, error_ticks, ticks},
    prelude::*,
};
use pvclock_reference::arithmetic::not_ahead_of;

/// The clocks of a VM before SET.
pub(crate) struct Moved<'a> {
    vm: &'a Vm,
    clocks: Clocks,
    before: VmClock,
}

impl<'a> Moved<'a> {
    /// Those of the stopped `vm`.
    pub(crate) fn new(vm: &'a Vm) -> Result<Self> {
        Ok(Self {
            vm,
            clocks: Clocks::of(vm)?,
            before: get(vm)?,
        })
    }

    /// Fails unless the SET of `saved`, made since, left the expected kvmclock; returns the clocks
    /// that GET reports after it.
    pub(crate) fn ensure_one_clock(&self, saved: &VmClock) -> Result<VmClock> {
        let after = get(self.vm)?;
        let transform = reference_transform(&after)?;
        // SET does not report its instant. It lies between these two, which usually require the
        // same record: exact steps are long compared with a call.
        let window = [&self.before, &after].map(|at| transform.guest_tsc(at.header.host_tsc));
        let candidates = window.map(|guest_tsc| not_ahead_of(&saved.header.record, guest_tsc));
        let expected = match candidates {
            [_, late] if after.header.record == late => late,
            [early, _] => early,
        };

        ensure_kvm_agrees(self.vm, &after, &saved.header.record)?;
        let reading = run_a_little(self.vm)?;
        let now = Clocks::of(self.vm)?;
        self.clocks
            .moved_to(&now, expected)
            .ensure_is(&now, "after SET")?;
        ensure_reads(&reading, &saved.header.record, reference_offset(&after))?;
        Ok(after)
    }
}

/// Fails unless SET in mode advance moves the guest TSC by the elapsed TAI; returns the clocks that
/// GET reports after it.
///
/// SET does not report its instant, but it is between the anchors of a GET before and after. The
/// error is the same at both, except for the drift between TAI and TSC and the granularity of a ns.
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
    note!("error {errors:?} ticks, tolerance {tolerance}");
    ensure!(
        least <= tolerance && most >= -tolerance && most - least <= 2 * tolerance + drift,
        "guest TSC is {least} to {most} ticks off saved + elapsed TAI * rate, tolerance {tolerance}"
    );
    Ok(after)
}

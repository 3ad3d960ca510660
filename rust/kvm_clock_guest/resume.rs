// SPDX-License-Identifier: GPL-2.0-only

//! SET, mode exact, in a VM whose clocks are what is asked for: it was stopped, and goes on.
//!
//! Nothing has to be written then, so no vCPU has to be held out of the guest.

use crate::{
    kvm::VmGuard,
    pvclock::{
        abi::ClockGuestVcpu,
        plan,
        request::{
            Mode,
            SetRequest, //
        },
    },
    state::{
        self,
        State, //
    },
    user, //
};
use kernel::{
    prelude::*,
    uaccess::UserPtr, //
};

/// Whether all clocks of the VM are what is asked for already, no vCPU is in an ioctl, and SET's
/// answer was written.
///
/// If not, whatever the cause, SET has to go through it step by step, and tells which.
pub(crate) fn is_in_place(
    guard: &VmGuard<'_>,
    request: &SetRequest,
    entries: &[ClockGuestVcpu],
    arg: UserPtr,
) -> bool {
    look(guard, request, entries, arg).is_some()
}

fn look(
    guard: &VmGuard<'_>,
    request: &SetRequest,
    entries: &[ClockGuestVcpu],
    arg: UserPtr,
) -> Option<()> {
    if request.mode != Mode::Exact {
        return None;
    }
    let (state, kept, status) = {
        let clocks = guard.clocks();
        let reference = guard.first_vcpu()?;
        let mut rest = entries.iter();
        // Also in the VM's order, as GET tells them.
        let state = State::new(guard, &clocks, reference, request.fallback, |vcpu| {
            let is_same = rest.next().is_some_and(|entry| {
                entry.tsc_offset == clocks.tsc_offset(vcpu)
                    && entry.vcpu_id == vcpu.id()
                    && entry.pad == 0
                    && !vcpu.is_busy()
            });
            is_same.then_some(()).ok_or(EAGAIN)
        })
        .ok()?;
        if !clocks.all_matched() || !state.now.is_host_tsc_stable() {
            return None;
        }
        let status = state::status(&clocks, &state.now, state.rate.scale);
        (state, clocks.kept()?, status)
    };
    let id = request.saved.ref_vcpu_id;
    let offset = entries.iter().find(|entry| entry.vcpu_id == id)?.tsc_offset;
    request.check_reference(offset).ok()?;
    let plan = plan::plan(request, offset, &state.now, state.rate).ok()?;
    let record = kept
        .record
        .shifted_by(offset.wrapping_sub(kept.relation.offset));
    if plan.offset_shift != 0
        || plan.scale != state.rate.scale
        || plan.scale != kept.relation.scale
        || plan.record != record
    {
        return None;
    }
    user::write_rate_diff(arg, plan::rate_diff_hz(request, state.rate)).ok()?;
    user::write_outcome(arg, status, plan.precision_ns).ok()
}

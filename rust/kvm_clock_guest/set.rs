// SPDX-License-Identifier: GPL-2.0-only

//! `KVM_SET_VM_CLOCK_GUEST`: writes all clocks of a VM, or none.

use crate::{
    kvm::{
        State,
        Vm,
        VmClock,
        VmGuard, //
    },
    pvclock::{
        abi::{
            self,
            ClockGuestVcpu,
            VmClockGuest, //
        },
        counter::TscOffset,
        plan::{
            self,
            Plan,
            PlanError, //
        },
        request::{
            Mode,
            SetRequest, //
        },
        tsc::TscTransform, //
    },
    report,
    user,
    vcpus::{
        Few,
        Vcpus, //
    }, //
};
use kernel::{
    prelude::*,
    uaccess::UserPtr, //
};

/// Serves the ioctl.
///
/// # Errors
///
/// `EINVAL`, `E2BIG`, `EFAULT` for the payload, those of [`write`], `ENOMEM`.
pub(crate) fn set(vm: &Vm, arg: UserPtr) -> Result {
    let mut header = user::read_header(arg)?;
    let request = SetRequest::new(header).map_err(|_| EINVAL)?;
    check_nr_vcpus(vm, &header)?;
    let mut few = Few::default();
    let mut entries = Vcpus::new(&mut few, header.nr_vcpus)?;
    user::read_vcpus(&header, &mut entries)?;
    write(vm, &request, &mut header, &mut entries, |header| {
        user::write_header(arg, header)
    })
}

/// Checks that `clock` has as many vCPUs as `vm`.
///
/// # Errors
///
/// `EINVAL`.
pub(crate) fn check_nr_vcpus(vm: &Vm, clock: &VmClockGuest) -> Result {
    // More entries than vCPUs means duplicates or unknown ones; fewer, that some are missing.
    if clock.nr_vcpus == 0 || clock.nr_vcpus != vm.nr_vcpus() {
        return Err(EINVAL);
    }
    Ok(())
}

/// Writes all clocks of a VM, or none: those of `request`, which was made from `header`, and of the
/// vCPUs in `entries`. Gives its output in `header` to `write_back`: before the commit, so that a
/// fault there changes nothing, and again if the commit does not pin the clock.
///
/// # Errors
///
/// `EINVAL` for the vCPUs, `EBUSY` while a vCPU runs, those of [`VmGuard::read`] and
/// [`State::new`], `ERANGE`, `ESTALE`, `ETIME` for what the request asks, those of
/// `write_back`, `EINTR`, `ENOMEM`. Nothing is changed then, except that `rate_diff_hz` was written
/// back if it was known.
pub(crate) fn write(
    vm: &Vm,
    request: &SetRequest,
    header: &mut VmClockGuest,
    entries: &mut [ClockGuestVcpu],
    mut write_back: impl FnMut(&VmClockGuest) -> Result,
) -> Result {
    let guard = vm.lock()?;
    let mut few = Few::default();
    let mut present = Vcpus::new(&mut few, guard.nr_vcpus())?;
    // Without locked vCPUs, as nothing may have to be written.
    let raw = guard.read(0, Some(&mut present), true)?;
    let ref_offset = request.match_vcpus(&present, entries).map_err(|_| EINVAL)?;
    if let Ok(state) = State::new(&raw, request.fallback) {
        if let Some(plan) = plan_in_place(request, ref_offset, &state, &present, entries) {
            header.rate_diff_hz = plan::rate_diff_hz(request, state.rate);
            header.precision_ns = plan.precision_ns;
            header.status = report::status(&state);
            return write_back(header);
        }
    }

    let locked = guard.trylock_all_vcpus()?;
    let state = State::new(&guard.read(0, None, false)?, request.fallback)?;
    header.rate_diff_hz = plan::rate_diff_hz(request, state.rate);
    let plan = match plan(request, ref_offset, &state) {
        Ok(plan) => plan,
        Err(error) => {
            write_back(header)?;
            return Err(error);
        }
    };
    header.precision_ns = plan.precision_ns;
    header.status = abi::STATUS_PINNED | abi::STATUS_HOST_TSC_STABLE;
    write_back(header)?;

    // The commit: no vCPU runs before it is done.
    let transform = TscTransform {
        scale: plan.scale,
        offset: ref_offset.wrapping_add(plan.offset_shift),
    };
    let is_pinned = locked.commit(&plan.record, transform, entries, plan.offset_shift)?;
    drop(locked);

    if !is_pinned {
        (header.status, header.precision_ns) = outcome_unpinned(&guard, transform, &plan);
        // The caller could write there a moment ago. If it cannot any more, it does not learn this.
        let _ = write_back(header);
    }
    Ok(())
}

/// What is to be written in a VM in `state`.
///
/// # Errors
///
/// `ERANGE`, `ESTALE`, `ETIME`, `EINVAL`, see [`PlanError`].
fn plan(request: &SetRequest, ref_offset: TscOffset, state: &State) -> Result<Plan> {
    let tolerance_ppm = state.tolerance_ppm;
    let plan = plan::plan(request, ref_offset, &state.now, state.rate, tolerance_ppm);
    let plan = plan.map_err(|error| match error {
        PlanError::RateMismatch | PlanError::RecordRate => ERANGE,
        PlanError::Stale => ESTALE,
        PlanError::Backwards => ETIME,
        PlanError::Unrepresentable => EINVAL,
    })?;
    if !state.is_valid_scale(plan.scale) {
        return Err(ERANGE);
    }
    Ok(plan)
}

/// The plan, if the VM already has the clocks that it asks for, as after a mere stop.
/// Otherwise, or if a vCPU is in an ioctl, SET has to lock the vCPUs and report what is wrong.
fn plan_in_place(
    request: &SetRequest,
    ref_offset: TscOffset,
    state: &State,
    present: &[ClockGuestVcpu],
    entries: &[ClockGuestVcpu],
) -> Option<Plan> {
    if request.mode != Mode::Exact
        || state.clock != VmClock::Pinned
        || state.is_busy
        || !state.is_host_tsc_stable
        || present != entries
    {
        return None;
    }
    let plan = plan(request, ref_offset, state).ok()?;
    let offset_diff = state.transform.offset.since(ref_offset);
    let is_same = plan.offset_shift == 0
        && plan.scale == state.transform.scale
        && plan.record.shifted_by(offset_diff) == state.record;
    is_same.then_some(plan)
}

/// `STATUS_*` after a commit to a host whose TSC cannot carry the clock, and how far the clocks may
/// be from what was asked for, ns.
fn outcome_unpinned(guard: &VmGuard<'_>, transform: TscTransform, plan: &Plan) -> (u32, u32) {
    let state = guard.read(0, None, false);
    let Ok(state) = state.and_then(|raw| State::new(&raw, true)) else {
        return (0, u32::MAX);
    };
    let guest_tsc = state.transform.guest_tsc(state.now.host_tsc);
    let actual_ns = state.record.kvmclock_ns(guest_tsc);
    let host_khz = state.rate.host_khz;
    let precision_ns = plan.precision_unpinned_ns(transform, &state.now, actual_ns, host_khz);
    (report::status(&state), precision_ns)
}

// SPDX-License-Identifier: GPL-2.0-only

//! `KVM_SET_VM_CLOCK_GUEST`: writes all clocks of a VM, or none.

use crate::{
    kvm::{
        self,
        HeldVcpus,
        Vcpu,
        Vm,
        VmGuard, //
    },
    pvclock::{
        plan::{
            self,
            Plan,
            Refusal, //
        },
        request::{
            self,
            SetRequest, //
        },
        tsc::Relation, //
    },
    resume,
    state::{
        self,
        State, //
    },
    user, //
};
use core::convert::Infallible;
use kernel::{
    prelude::*,
    uaccess::UserPtr, //
};

/// Serves the ioctl.
///
/// # Errors
///
/// `EINVAL`, `E2BIG`, `EFAULT` for the payload, `EBUSY` while a vCPU runs, those of [`State::new`],
/// `ENODATA` without vCPU, `ERANGE`, `ESTALE`, `ETIME` for what the request asks, `EINTR`,
/// `ENOMEM`. Nothing is changed then, except that `rate_diff_hz` was written if it was known.
pub(crate) fn set(vm: &Vm, arg: UserPtr) -> Result {
    let header = user::read_header(arg)?;
    let request = SetRequest::new(header).map_err(|_| EINVAL)?;
    // More entries than vCPUs means duplicates or strangers; fewer, that some are missing.
    if header.nr_vcpus != vm.nr_vcpus() {
        return Err(EINVAL);
    }
    let entries = user::read_vcpus(&header)?;

    let guard = vm.lock()?;
    if resume::is_in_place(&guard, &request, &entries, arg) {
        return Ok(());
    }
    let mut vcpus = KVVec::with_capacity(entries.len(), GFP_KERNEL_ACCOUNT | __GFP_NOWARN)?;
    guard.try_for_each_vcpu(|vcpu| {
        let vcpu = request::Vcpu {
            id: vcpu.id(),
            saved: None,
        };
        vcpus.push(vcpu, GFP_KERNEL_ACCOUNT | __GFP_NOWARN)
    })?;
    let ref_offset = request
        .match_vcpus(&mut vcpus, &entries)
        .map_err(|_| EINVAL)?;

    let held = guard.try_hold_vcpus()?;
    let (state, all_matched, status) = {
        let clocks = guard.clocks();
        let reference = guard.first_vcpu().ok_or(ENODATA)?;
        let state = State::new(&guard, &clocks, reference, request.fallback, |_| Ok(()))?;
        let status = state::status(&clocks, &state.now, state.rate.scale);
        (state, clocks.all_matched(), status)
    };
    // Before the commit, so that a fault here changes nothing.
    user::write_rate_diff(arg, plan::rate_diff_hz(&request, state.rate))?;
    let plan = plan::plan(&request, ref_offset, &state.now, state.rate).map_err(errno_of)?;
    if !kvm::is_valid_scale(plan.scale) {
        return Err(ERANGE);
    }
    user::write_outcome(arg, status, plan.precision_ns)?;

    // The commit: no step can fail, and no vCPU runs before the last is done.
    let relation = Relation {
        scale: plan.scale,
        offset: ref_offset.wrapping_add(plan.offset_shift),
    };
    let is_in_place = all_matched
        && plan.scale == state.rate.scale
        && are_in_place(&guard, &held, &vcpus, plan.offset_shift);
    if !is_in_place {
        // KVM counts vCPUs as matched that were written the same offset in a row: even one that has
        // its offset already must take part.
        let Ok(()) = try_for_each_target(&guard, &vcpus, plan.offset_shift, |vcpu, offset| {
            held.set_tsc(vcpu, Relation { offset, ..relation });
            Ok::<_, Infallible>(())
        });
    }
    guard.keep(state.reference, relation, &plan.record);

    let (status, precision_ns) = outcome(&guard, &state, relation, &plan);
    // It could be written a moment ago. Who took the memory away since does not get to know.
    let _ = user::write_outcome(arg, status, precision_ns);
    Ok(())
}

/// Shows all vCPUs to `each` with the TSC offset (ticks) that they are to have, until it fails.
fn try_for_each_target<E>(
    guard: &VmGuard<'_>,
    vcpus: &[request::Vcpu],
    offset_shift: u64,
    mut each: impl FnMut(&Vcpu, u64) -> Result<(), E>,
) -> Result<(), E> {
    let mut vcpus = vcpus.iter();
    guard.try_for_each_vcpu(|vcpu| {
        // One for each, as the set of vCPUs stands still.
        let saved = vcpus.next().and_then(|vcpu| vcpu.saved).unwrap_or_default();
        each(vcpu, saved.wrapping_add(offset_shift))
    })
}

fn are_in_place(
    guard: &VmGuard<'_>,
    held: &HeldVcpus<'_>,
    vcpus: &[request::Vcpu],
    offset_shift: u64,
) -> bool {
    try_for_each_target(guard, vcpus, offset_shift, |vcpu, offset| {
        (held.tsc_offset(vcpu) == offset).then_some(()).ok_or(())
    })
    .is_ok()
}

/// `STATUS_*` after the commit, and how far the clocks may be from what was asked for, ns.
fn outcome(guard: &VmGuard<'_>, state: &State<'_>, relation: Relation, plan: &Plan) -> (u32, u32) {
    let now = &state.now;
    let clocks = guard.clocks();
    let status = state::status(&clocks, now, relation.scale);
    if clocks.kept().is_some() {
        return (status, plan.precision_ns);
    }
    // The host's TSC cannot carry the record, so KVM's own clock went on from it.
    let told_ns = now
        .kvmclock_base_ns()
        .wrapping_add_signed(clocks.kvmclock_offset());
    let precision_ns = plan.precision_unkept_ns(relation, now, told_ns, state.rate.host_khz);
    (status, precision_ns)
}

fn errno_of(refusal: Refusal) -> Error {
    match refusal {
        Refusal::RateMismatch => ERANGE,
        Refusal::Stale => ESTALE,
        Refusal::Backwards => ETIME,
        Refusal::Unrepresentable => EINVAL,
    }
}

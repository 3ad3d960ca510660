// SPDX-License-Identifier: GPL-2.0-only

//! `KVM_SET_VM_CLOCK_GUEST`: writes all clocks of a VM, or none.

use crate::{
    kvm::{
        HeldVcpus,
        Vm,
        VmGuard, //
    },
    pvclock::{
        plan::{
            self,
            Refusal, //
        },
        request::{
            self,
            SetRequest, //
        },
    },
    state::State,
    user, //
};
use kernel::{
    prelude::*,
    uaccess::UserPtr, //
};

/// Serves the ioctl.
///
/// # Errors
///
/// `EINVAL`, `E2BIG`, `EFAULT` for the payload, `EBUSY` while a vCPU runs, those of [`State::new`],
/// `ERANGE`, `ESTALE`, `ETIME` for what the request asks, `EINTR`, `ENOMEM`. Nothing is changed
/// then, except that `rate_diff_hz` was written if it was known.
pub(crate) fn set(vm: &Vm, arg: UserPtr) -> Result {
    let header = user::read_header(arg)?;
    let request = SetRequest::new(header).map_err(|_| EINVAL)?;
    // More entries than vCPUs means duplicates or strangers; fewer, that some are missing.
    if header.nr_vcpus != vm.nr_vcpus() {
        return Err(EINVAL);
    }
    let entries = user::read_vcpus(&header)?;

    let guard = vm.lock()?;
    let mut vcpus = KVVec::with_capacity(entries.len(), GFP_KERNEL_ACCOUNT)?;
    for vcpu in guard.vcpus() {
        let vcpu = request::Vcpu {
            id: vcpu.id(),
            saved: None,
        };
        vcpus.push(vcpu, GFP_KERNEL_ACCOUNT)?;
    }
    let ref_offset = request
        .match_vcpus(&mut vcpus, &entries)
        .map_err(|_| EINVAL)?;

    let held = guard.try_hold_vcpus()?;
    let (state, all_matched) = {
        let clocks = guard.clocks();
        (State::new(&guard, &clocks)?, clocks.all_matched())
    };
    // Before the commit, so that a fault here changes nothing.
    user::write_rate_diff(arg, plan::rate_diff_hz(&request, state.rate))?;
    let shift =
        plan::offset_shift(&request, ref_offset, &state.now, state.rate).map_err(errno_of)?;

    commit(&guard, &held, &request, &vcpus, all_matched, shift);
    Ok(())
}

/// Writes what was planned. No step can fail, and no vCPU runs before the last is done.
fn commit(
    guard: &VmGuard<'_>,
    held: &HeldVcpus<'_>,
    request: &SetRequest,
    vcpus: &[request::Vcpu],
    all_matched: bool,
    shift: u64,
) {
    let targets = || {
        let offsets = vcpus
            .iter()
            .map(|vcpu| vcpu.saved.unwrap_or_default().wrapping_add(shift));
        guard.vcpus().zip(offsets)
    };
    let is_in_place = targets().all(|(vcpu, offset)| held.tsc_offset(vcpu) == offset);
    // KVM counts vCPUs as matched that were written the same offset in a row: even one that has its
    // offset already must take part.
    if !(is_in_place && all_matched) {
        for (vcpu, offset) in targets() {
            held.set_tsc_offset(vcpu, offset);
        }
    }
    for (vcpu, offset) in targets() {
        if vcpu.id() == request.saved.ref_vcpu_id {
            held.keep(vcpu, offset, &request.saved.record);
        }
    }
}

fn errno_of(refusal: Refusal) -> Error {
    match refusal {
        Refusal::RateMismatch => ERANGE,
        Refusal::Stale => ESTALE,
        Refusal::Backwards => ETIME,
        Refusal::Unrepresentable => EINVAL,
    }
}

// SPDX-License-Identifier: GPL-2.0-only

//! `KVM_GET_CLOCK_GUEST` and `KVM_SET_CLOCK_GUEST`: the record alone, through one vCPU, as proposed
//! on the kernel list.
//!
//! Neither waits for the vCPU to leave KVM_RUN.

use crate::{
    kvm::{
        State,
        Vm, //
    },
    pvclock::{
        abi::{
            ClockGuest,
            PVCLOCK_TSC_STABLE, //
        },
        request, //
    },
    report,
    user, //
};
use kernel::{
    prelude::*,
    uaccess::UserPtr, //
};

/// How far the rate that a record implies may be from the vCPU's, kHz.
const TOLERANCE_KHZ: u64 = 1;

/// Serves `KVM_GET_CLOCK_GUEST` of vCPU number `index`.
///
/// # Errors
///
/// `EFAULT`, those of [`VmGuard::read`](crate::kvm::VmGuard), [`State::new`] and
/// [`report::precision_ns`], `EINTR`.
pub(crate) fn get(vm: &Vm, index: u32, arg: UserPtr) -> Result {
    let state = State::new(&vm.lock()?.read(index, None, false)?, false)?;
    report::precision_ns(&state, false)?;
    user::write_record(arg, &state.record)
}

/// Serves `KVM_SET_CLOCK_GUEST` of vCPU number `index`.
///
/// # Errors
///
/// - `EFAULT`,
/// - `EINVAL` for a malformed record, or one that lies ahead of the vCPU's TSC,
/// - `ERANGE` if it is for another rate than the vCPU's TSC runs at,
/// - those of [`VmGuard::read`](crate::kvm::VmGuard) and [`State::new`], `EINTR`.
///
/// Nothing is changed then.
pub(crate) fn set(vm: &Vm, index: u32, arg: UserPtr) -> Result {
    let record = request::check_record(&user::read_record(arg)?).map_err(|_| EINVAL)?;
    let guard = vm.lock()?;
    let state = State::new(&guard.read(index, None, false)?, false)?;
    let implied_khz = record.factor().khz().unwrap_or(u64::MAX);
    if implied_khz.abs_diff(state.rate.khz()) > TOLERANCE_KHZ {
        return Err(ERANGE);
    }
    let guest_tsc = state.transform.guest_tsc(state.now.host_tsc);
    if record.tsc_timestamp.is_ahead_of(guest_tsc) {
        return Err(EINVAL);
    }
    // As in the list's proposal, whether the TSCs are the same is for KVM to find out.
    let record = ClockGuest {
        flags: PVCLOCK_TSC_STABLE,
        ..record
    };
    // TODO[XENT]: Restart the Xen timers of vCPUs that run.
    guard.pin(&record, state.transform);
    Ok(())
}

// SPDX-License-Identifier: GPL-2.0-only

//! `KVM_GET_CLOCK_GUEST` and `KVM_SET_CLOCK_GUEST`: the record alone, through one vCPU, as proposed
//! on the kernel list.
//!
//! Neither waits for the vCPU to leave KVM_RUN.

use crate::{
    kvm::Vcpu,
    pvclock::{
        rate::Factor,
        request,
        tsc::is_ahead, //
    },
    record::Record,
    state::State,
    user, //
};
use kernel::{
    prelude::*,
    uaccess::UserPtr, //
};

/// How far the rate that a record implies may be from the vCPU's, kHz.
const TOLERANCE_KHZ: u64 = 1;

/// Serves `KVM_GET_CLOCK_GUEST`.
///
/// # Errors
///
/// `EFAULT`, those of [`State::new`] and [`Record::of`], `EINTR`.
pub(crate) fn get(vcpu: &Vcpu, arg: UserPtr) -> Result {
    let record = {
        let guard = vcpu.vm().lock()?;
        let clocks = guard.clocks();
        let state = State::new(&guard, &clocks, vcpu, false, |_| Ok(()))?;
        Record::of(&guard, &clocks, &state, false)?.record
    };
    user::write_record(arg, &record)
}

/// Serves `KVM_SET_CLOCK_GUEST`.
///
/// # Errors
///
/// - `EFAULT`,
/// - `EINVAL` for a malformed record, or one that lies ahead of the vCPU's TSC,
/// - `ERANGE` if it is for another rate than the vCPU's TSC runs at,
/// - those of [`State::new`], `EINTR`.
///
/// Nothing is changed then.
pub(crate) fn set(vcpu: &Vcpu, arg: UserPtr) -> Result {
    let record = request::check_record(&user::read_record(arg)?).map_err(|_| EINVAL)?;
    let guard = vcpu.vm().lock()?;
    let relation = {
        let clocks = guard.clocks();
        let state = State::new(&guard, &clocks, vcpu, false, |_| Ok(()))?;
        let factor = Factor {
            mul: record.tsc_to_system_mul,
            shift: record.tsc_shift,
        };
        let implied_khz = factor.khz().unwrap_or(u64::MAX);
        if implied_khz.abs_diff(state.rate.khz()) > TOLERANCE_KHZ {
            return Err(ERANGE);
        }
        let guest_tsc = state.relation.guest_tsc(state.now.host_tsc);
        if is_ahead(record.tsc_timestamp, guest_tsc) {
            return Err(EINVAL);
        }
        state.relation
    };
    guard.keep(vcpu, relation, &record);
    Ok(())
}

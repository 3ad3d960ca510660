// SPDX-License-Identifier: GPL-2.0-only

//! Restores the clocks of a guest from another host, as exactly as this host can.

use super::{
    clock_trace::ClockTrace,
    message::{Clocks, Hello, Restored, SetAt},
};
use crate::{
    method::{atomic, legacy_offset, Saved, SavedClocks},
    vmm::Vm,
};
use anyhow::Result;
use kvm_clock::{get_vm_clock_guest, ModeChoice, OtherRate, Otherwise, Policy, Procedure};

/// Restores `clocks` in the stopped `vm` on the host `here`.
pub(super) fn restore(
    vm: &Vm,
    clocks: &Clocks,
    here: &Hello,
    trace: Option<&ClockTrace>,
) -> Result<Restored> {
    match &clocks.saved {
        Saved::Atomic(saved) => {
            let policy = policy(clocks);
            let has_module = here.clock_guest_cap & kvm_clock::Mode::from(clocks.mode).cap() != 0;
            set(vm, saved, &policy, trace.filter(|_| has_module))
        }
        Saved::LegacyOffset(saved) => set_legacy_offset(vm, saved, clocks, here),
        Saved::LegacyMsr(saved) => {
            saved.restore(vm)?;
            Ok(by("MSR_IA32_TSC, KVM_SET_CLOCK"))
        }
        Saved::LuoMsr(saved) => {
            saved.restore(vm)?;
            Ok(by("MSR_IA32_TSC, KVM_SET_CLOCK with KVM_CLOCK_REALTIME"))
        }
    }
}

/// What a destination may do: a guest that does not arrive as requested goes on at its source.
pub(super) fn policy(clocks: &Clocks) -> Policy {
    Policy {
        mode: ModeChoice::Always(clocks.mode.into()),
        other_rate: OtherRate::Refuse,
        behind: Otherwise::Refuse,
        max_advance: None,
        clock_ahead_ns: clocks.shift.map(|shift| shift.tai_ns),
        ..Policy::default()
    }
}

fn set(
    vm: &Vm,
    saved: &atomic::Saved,
    policy: &Policy,
    trace: Option<&ClockTrace>,
) -> Result<Restored> {
    let set = || saved.set_by(vm, policy);
    let (result, set_at) = match trace {
        None => (set(), None),
        Some(trace) => trace.trace_set(set, || get_vm_clock_guest(vm.fd()))?,
    };
    let outcome = result?;
    let is_module = outcome.procedure == Procedure::Module;
    Ok(Restored {
        mode: is_module.then(|| outcome.mode.into()),
        precision_ns: Some(outcome.precision_ns),
        rate_diff_hz: Some(outcome.rate_diff_hz),
        lost: outcome.lost(),
        set_at: set_at.or_else(|| if is_module { None } else { instant(vm) }),
        ..by(format!("{}, {}", outcome.procedure, outcome.mode.name()))
    })
}

/// Restores the clocks with the documented procedure.
fn set_legacy_offset(
    vm: &Vm,
    saved: &legacy_offset::Saved,
    clocks: &Clocks,
    here: &Hello,
) -> Result<Restored> {
    let mut saved = saved.clone();
    if let Some(shift) = clocks.shift {
        saved.shift_realtime(shift.tai_ns, clocks.tai_offset_s, here.tai_offset_s);
    }
    saved.restore(vm)?;
    Ok(Restored {
        set_at: instant(vm),
        ..by("KVM_SET_CLOCK with KVM_CLOCK_REALTIME, KVM_VCPU_TSC_OFFSET")
    })
}

/// An instant of this host, if the module is present to provide one.
fn instant(vm: &Vm) -> Option<SetAt> {
    get_vm_clock_guest(vm.fd()).ok().map(|clock| SetAt {
        host_tsc: clock.header.host_tsc,
        tai_ns: clock.header.tai_ns,
        tai_offset_s: clock.header.tai_offset_s,
    })
}

fn by(procedure: impl Into<String>) -> Restored {
    Restored {
        procedure: procedure.into(),
        mode: None,
        precision_ns: None,
        rate_diff_hz: None,
        lost: None,
        set_at: None,
    }
}

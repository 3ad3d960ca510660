// SPDX-License-Identifier: GPL-2.0-only

//! Puts the clocks of a guest that came from another host back, by the best that this one can do.

use super::{
    clock_trace::ClockTrace,
    message::{Clocks, Hello, Restored, SetAt},
};
use crate::{
    method::{
        atomic,
        convert::{self, REMADE_RECORD_NS},
        legacy_offset, Method, Mode, Saved, SavedClocks,
    },
    vmm::Vm,
};
use anyhow::{anyhow, bail, Context, Result};
use kvm_clock::{get_vm_clock_guest, set_vm_clock_guest, VmClock};
use pvclock::abi::{
    CAP_ADVANCE,
    CAP_EXACT,
    CAP_FREEZE, //
    FLAG_FALLBACK,
};
use vmm_sys_util::errno;

/// Restores `clocks` in the stopped `vm`, on the host that `here` describes.
pub(super) fn restore(
    vm: &Vm,
    clocks: &Clocks,
    here: &Hello,
    trace: Option<&ClockTrace>,
) -> Result<Restored> {
    let cap = here.clock_guest_cap;
    let mode_bit = match clocks.mode {
        Mode::Exact => CAP_EXACT,
        Mode::Advance => CAP_ADVANCE,
        Mode::Freeze => CAP_FREEZE,
    };
    let has_module = cap & mode_bit != 0;
    match &clocks.saved {
        Saved::Atomic(saved) if has_module => set(vm, saved, clocks, here, trace),
        Saved::Atomic(_) if clocks.mode == Mode::Freeze => bail!(
            "KVM_CAP_VM_CLOCK_GUEST is {cap:#x} here, and nothing else can hide the pause from a guest"
        ),
        Saved::Atomic(saved) => Ok(Restored {
            lost: Some(
                "the destination has no kvm_clock_guest: KVM derives a record of its own there, \
                 so kvmclock is set against the TSC by as much as KVM_SET_CLOCK is imprecise"
                    .into(),
            ),
            ..set_legacy_offset(vm, &convert::to_legacy_offset(saved), clocks, here)?
        }),
        Saved::LegacyOffset(saved)
            if clocks.method == Method::Atomic && has_module && !clocks.scaled =>
        {
            let saved = convert::to_atomic(saved, clocks.tai_offset_s)
                .context("the saved clocks have no vCPU, or no rate")?;
            Ok(Restored {
                lost: Some(format!(
                    "the source has no kvm_clock_guest: the record was made anew of \
                     KVM_GET_CLOCK's value, to {REMADE_RECORD_NS} ns"
                )),
                ..set(vm, &saved, clocks, here, trace)?
            })
        }
        Saved::LegacyOffset(saved) => Ok(Restored {
            lost: (clocks.method == Method::Atomic).then(|| {
                "the source has no kvm_clock_guest, and the destination has none either, or the \
                 guest's TSC is scaled: KVM derives a record of its own there"
                    .into()
            }),
            ..set_legacy_offset(vm, saved, clocks, here)?
        }),
        Saved::LegacyMsr(saved) => {
            saved.restore(vm)?;
            Ok(by("MSR_IA32_TSC, KVM_SET_CLOCK"))
        }
    }
}

/// The argument of `KVM_SET_VM_CLOCK_GUEST` on the host that `here` describes.
pub(super) fn request(saved: &atomic::Saved, clocks: &Clocks, here: &Hello) -> VmClock {
    let mut clock = saved.0.clone();
    (clock.header.mode, clock.header.flags) = (clocks.mode.to_abi(), FLAG_FALLBACK);
    if let Some(shift) = clocks.shift {
        // By what the other host says; the kernel judges the sum.
        clock.header.tai_ns = clock.header.tai_ns.saturating_add(shift.tai_ns);
        clock.header.tai_offset_s = here.tai_offset_s;
    }
    clock
}

/// The clocks by `KVM_SET_VM_CLOCK_GUEST`.
fn set(
    vm: &Vm,
    saved: &atomic::Saved,
    clocks: &Clocks,
    here: &Hello,
    trace: Option<&ClockTrace>,
) -> Result<Restored> {
    let mut clock = request(saved, clocks, here);
    let (result, set_at) = match trace {
        None => (set_vm_clock_guest(vm.fd(), &mut clock), None),
        Some(trace) => {
            let set = || set_vm_clock_guest(vm.fd(), &mut clock);
            trace.around(set, || get_vm_clock_guest(vm.fd()))?
        }
    };
    result.map_err(|error| refusal(error, &clock))?;
    Ok(Restored {
        mode: Some(clocks.mode),
        precision_ns: Some(clock.header.precision_ns),
        rate_diff_hz: Some(clock.header.rate_diff_hz),
        set_at,
        ..by(format!("KVM_SET_VM_CLOCK_GUEST, {}", clocks.mode.name()))
    })
}

/// What the errnos say that a user can do something about.
fn refusal(error: errno::Error, clock: &VmClock) -> anyhow::Error {
    let meaning = match error.errno() {
        libc::ERANGE => format!(
            ": the guest's TSC would run {} Hz {} here, and this host cannot scale it; or its \
             kvmclock is for another rate than that",
            clock.header.rate_diff_hz.unsigned_abs(),
            if clock.header.rate_diff_hz < 0 {
                "slower"
            } else {
                "faster"
            },
        ),
        libc::ESTALE => {
            ": mode exact, but this host's TSC has not got as far as the saved one: it is \
                         another host, or was reset"
                .into()
        }
        libc::ETIME => ": by this host's clock the guest was saved in the future".into(),
        libc::ENODATA => ": this host does not keep its time by a stable TSC".into(),
        _ => String::new(),
    };
    anyhow!("KVM_SET_VM_CLOCK_GUEST: {error}{meaning}")
}

/// The clocks by the documented procedure.
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
    // An instant of this host, if it has a module to tell one.
    let set_at = get_vm_clock_guest(vm.fd()).ok().map(|clock| SetAt {
        host_tsc: clock.header.host_tsc,
        tai_ns: clock.header.tai_ns,
        tai_offset_s: clock.header.tai_offset_s,
    });
    Ok(Restored {
        set_at,
        ..by("KVM_SET_CLOCK with KVM_CLOCK_REALTIME, KVM_VCPU_TSC_OFFSET")
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

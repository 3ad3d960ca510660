// SPDX-License-Identifier: GPL-2.0-only

//! Restores the clocks of a guest from another host, as exactly as this host can.

use super::{
    clock_trace::ClockTrace,
    message::{Clocks, Hello, Restored, SetAt},
};
use crate::{
    method::{
        atomic,
        convert::{self, REBUILT_RECORD_NS},
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

/// Restores `clocks` in the stopped `vm` on the host `here`.
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
                "the destination has no kvm_clock_guest: KVM derives a new record there, which shifts \
                 kvmclock against the TSC by the error of KVM_SET_CLOCK"
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
                    "the source has no kvm_clock_guest: the record is rebuilt from KVM_GET_CLOCK's \
                     value, to {REBUILT_RECORD_NS} ns"
                )),
                ..set(vm, &saved, clocks, here, trace)?
            })
        }
        Saved::LegacyOffset(saved) => Ok(Restored {
            lost: (clocks.method == Method::Atomic).then(|| {
                "the source has no kvm_clock_guest, and the destination has none either, or the \
                 guest's TSC is scaled: KVM derives a new record there"
                    .into()
            }),
            ..set_legacy_offset(vm, saved, clocks, here)?
        }),
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

/// The argument of `KVM_SET_VM_CLOCK_GUEST` on the host `here`.
pub(super) fn request(saved: &atomic::Saved, clocks: &Clocks, here: &Hello) -> VmClock {
    let mut clock = saved.0.clone();
    (clock.header.mode, clock.header.flags) = (clocks.mode.to_abi(), FLAG_FALLBACK);
    if let Some(shift) = clocks.shift {
        // The shift is untrusted; the kernel validates the sum.
        clock.header.tai_ns = clock.header.tai_ns.saturating_add(shift.tai_ns);
        clock.header.tai_offset_s = here.tai_offset_s;
    }
    clock
}

/// Restores the clocks with `KVM_SET_VM_CLOCK_GUEST`.
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
            trace.trace_set(set, || get_vm_clock_guest(vm.fd()))?
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

/// Explains the errnos that a user can act on.
fn refusal(error: errno::Error, clock: &VmClock) -> anyhow::Error {
    let meaning = match error.errno() {
        libc::ERANGE => format!(
            ": the guest's TSC would run {} Hz {} here, and this host cannot scale it; or its \
             kvmclock has another rate than its TSC",
            clock.header.rate_diff_hz.unsigned_abs(),
            if clock.header.rate_diff_hz < 0 {
                "slower"
            } else {
                "faster"
            },
        ),
        libc::ESTALE => {
            ": mode exact, but this host's TSC is behind the saved one: it is another host, or \
             its TSC was reset"
                .into()
        }
        libc::ETIME => ": the guest was saved in the future of this host's clock".into(),
        libc::ENODATA => ": this host's TSC is not stable".into(),
        _ => String::new(),
    };
    anyhow!("KVM_SET_VM_CLOCK_GUEST: {error}{meaning}")
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
    // The module, if present, provides an instant of this host.
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

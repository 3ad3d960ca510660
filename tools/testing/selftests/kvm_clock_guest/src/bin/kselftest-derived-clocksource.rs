// SPDX-License-Identifier: GPL-2.0-only

//! A host whose clocksource is computed from its TSC, as kvm-clock is where the host is a guest
//! itself: its time comes with a TSC value, but KVM keeps no master clock by it. `ENODATA`, or with
//! FALLBACK the best that is possible, and how good that is.
//!
//! Switches the host's clocksource to that of `modules/derived_clocksource.c`, which needs root, and
//! puts it back. `--clocksource=hpet` runs the cases on any other, of which the same is true.

use anyhow::{ensure, Context, Result};
use clockguest::vmm::Vm;
use kvm_bindings::KVM_CLOCK_TSC_STABLE;
use kvm_clock::{
    get_clock_guest, get_vm_clock_guest, get_vm_clock_guest_or_fall_back, set_clock_guest,
    set_vm_clock_guest, VmClock,
};
use kvm_clock_guest_selftests::{
    clocks::{pages, Clocks},
    clocksource::{self, run_until_noticed, Derived, WithoutTsc},
    continued::{kvm_ahead_of_raw, Continued, Function, Paired},
    fixture::{
        an_hour_ahead, derived, get, pinned, reference_transform, run_a_little, set, unlike,
    },
    ktap::{self, note, Case},
    refusal::ensure_errno,
    require,
};
use kvm_ioctls::Kvm;
use pvclock::{
    abi::{
        FLAG_FALLBACK, MODE_ADVANCE, MODE_EXACT, MODE_FREEZE, STATUS_HOST_TSC_STABLE, STATUS_PINNED,
    },
    tsc::TscTransform,
};
use std::process::ExitCode;
use vmm_sys_util::errno;

const VCPUS: u32 = 2;
const MODES: [u32; 3] = [MODE_EXACT, MODE_ADVANCE, MODE_FREEZE];

struct Host {
    kvm: Kvm,
    clocksource: String,
    _loaded: Derived,
}

impl Host {
    fn new() -> Result<Self> {
        let kvm = require::clock_guest()?;
        let _loaded = Derived::load()?;
        let clocksource = ktap::option("clocksource", Derived::NAME.to_owned())?;
        // There is no way back to any but the TSC.
        clocksource::other()?;
        Ok(Self {
            kvm,
            clocksource,
            _loaded,
        })
    }

    fn without_tsc(&self) -> Result<WithoutTsc> {
        WithoutTsc::switch(&self.clocksource)
    }

    /// A stopped VM with clocks pinned an hour ahead, and what they are.
    fn pinned(&self) -> Result<(Vm, VmClock)> {
        let vm = pinned(&self.kvm, VCPUS)?;
        let mut clock = an_hour_ahead(get(&vm)?);
        set(&vm, &mut clock, MODE_EXACT)?;
        run_a_little(&vm)?;
        Ok((vm, clock))
    }
}

fn main() -> ExitCode {
    let mut cases = vec![
        Case::new("GET is ENODATA and changes nothing", gets_refused),
        Case::new("vCPU GET and SET are ENODATA and change nothing", vcpus),
    ];
    for (name, mode) in ["exact", "advance", "freeze"].into_iter().zip(MODES) {
        cases.push(Case::new(
            format!("SET {name} is ENODATA and changes nothing"),
            move |host: &Host| sets_refused(host, mode),
        ));
        cases.push(Case::new(
            format!("SET {name} with FALLBACK pins nothing, reports its precision"),
            move |host: &Host| sets(host, mode),
        ));
    }
    cases.extend([
        Case::new("GET with FALLBACK reports its precision", gets),
        Case::new("a new VM on such a host", new_vm),
        Case::new("with the TSC back, SET exact pins to the bit", back_again),
    ]);
    ktap::main(Host::new, cases)
}

fn get_or_fall_back(vm: &Vm) -> Result<VmClock> {
    get_vm_clock_guest_or_fall_back(vm.fd()).context("KVM_GET_VM_CLOCK_GUEST with FALLBACK")
}

/// Fails unless `call` gives `ENODATA` and changes nothing that is to be seen of the stopped `vm`.
fn ensure_no_data(vm: &Vm, call: impl FnOnce(&Vm) -> errno::Result<()>) -> Result<()> {
    /// Short against the hour by which a clock that was SET is off.
    const TOLERANCE_NS: i64 = 100_000_000;

    let seen = || Ok::<_, anyhow::Error>((vm.tsc_offsets()?, pages(vm)));
    let (before, ahead) = (seen()?, kvm_ahead_of_raw(vm)?);
    ensure_errno(libc::ENODATA, call(vm))?;
    let (after, ahead_now) = (seen()?, kvm_ahead_of_raw(vm)?);
    ensure!(
        before == after,
        "offsets and records were {before:x?}, are {after:x?}"
    );
    ensure!(
        ahead.hull(ahead_now).width() < TOLERANCE_NS,
        "KVM_GET_CLOCK was {ahead:?} ns ahead of the raw clock, is {ahead_now:?}"
    );
    Ok(())
}

/// Has `check` look at a VM that KVM's master clock was for, and at a pinned one, each at once and
/// when KVM has noticed.
fn for_each(host: &Host, check: impl Fn(&Vm, &VmClock) -> Result<()>) -> Result<()> {
    let vm = derived(&host.kvm, VCPUS)?;
    let clock = get(&vm)?;
    for (vm, clock) in [(vm, clock), host.pinned()?] {
        let _until_checked = host.without_tsc()?;
        check(&vm, &clock).context("at once")?;
        run_until_noticed(&vm, &clock.header.record)?;
        check(&vm, &clock).context("when KVM has noticed")?;
    }
    Ok(())
}

fn gets_refused(host: &Host) -> Result<()> {
    for_each(host, |vm, _| {
        ensure_no_data(vm, |vm| get_vm_clock_guest(vm.fd()).map(drop))
    })
}

fn sets_refused(host: &Host, mode: u32) -> Result<()> {
    for_each(host, |vm, clock| {
        for clock in [clock.clone(), unlike(clock.clone())] {
            let mut clock = clock;
            clock.header.mode = mode;
            ensure_no_data(vm, |vm| set_vm_clock_guest(vm.fd(), &mut clock))?;
        }
        Ok(())
    })
}

fn vcpus(host: &Host) -> Result<()> {
    for_each(host, |vm, clock| {
        for vcpu in vm.vcpus() {
            ensure_no_data(vm, |_| get_clock_guest(&vcpu.fd()).map(drop)).context("GET")?;
            ensure_no_data(vm, |_| set_clock_guest(&vcpu.fd(), &clock.header.record))
                .context("SET")?;
        }
        Ok(())
    })
}

/// Fails unless nobody says that the clocks of `vm` are pinned, or of one instant.
fn ensure_not_stable(vm: &Vm) -> Result<VmClock> {
    let clock = get_or_fall_back(vm)?;
    let (status, precision_ns) = (clock.header.status, clock.header.precision_ns);
    ensure!(
        status & (STATUS_PINNED | STATUS_HOST_TSC_STABLE) == 0 && precision_ns != 0,
        "GET with FALLBACK reports status {status:#x} and precision {precision_ns} ns"
    );
    let flags = vm.fd().get_clock().context("KVM_GET_CLOCK")?.flags;
    ensure!(
        flags & KVM_CLOCK_TSC_STABLE == 0,
        "KVM_GET_CLOCK reports flags {flags:#x}: a stable clock"
    );
    Ok(clock)
}

fn gets(host: &Host) -> Result<()> {
    let (vm, saved) = host.pinned()?;
    let _until_checked = host.without_tsc()?;
    let header = get_or_fall_back(&vm)?.header;
    ensure!(
        header.status & STATUS_HOST_TSC_STABLE == 0 && header.precision_ns != 0,
        "at once, GET with FALLBACK reports status {:#x} and precision {} ns",
        header.status,
        header.precision_ns
    );
    run_until_noticed(&vm, &saved.header.record)?;
    let clock = ensure_not_stable(&vm)?;
    let function = Function {
        record: clock.header.record,
        transform: reference_transform(&clock)?,
    };
    let raw = Paired::now(libc::CLOCK_MONOTONIC_RAW)?;
    Continued::since(function, raw, clock.header.precision_ns)?.ensure_told_by_kvm(&vm)
}

/// kvmclock has the saved function's value when SET is done, and follows the raw clock from then on.
fn sets(host: &Host, mode: u32) -> Result<()> {
    const SAVED_NS: u32 = 12_345;

    let (vm, saved) = host.pinned()?;
    let mut clock = unlike(saved);
    clock.header.precision_ns = SAVED_NS;
    let _until_checked = host.without_tsc()?;
    let mut asked = clock.clone();
    (asked.header.mode, asked.header.flags) = (mode, FLAG_FALLBACK);
    let raw = Paired::now(libc::CLOCK_MONOTONIC_RAW)?;
    set_vm_clock_guest(vm.fd(), &mut asked).context("SET with FALLBACK")?;
    let (status, precision_ns) = (asked.header.status, asked.header.precision_ns);
    ensure!(
        status & (STATUS_PINNED | STATUS_HOST_TSC_STABLE) == 0 && precision_ns > SAVED_NS,
        "SET reports status {status:#x} and precision {precision_ns} ns, {SAVED_NS} ns of it saved"
    );

    let transform = TscTransform {
        offset: vm.tsc_offsets()?[0],
        ..reference_transform(&clock)?
    };
    let function = Function {
        record: clock.header.record,
        transform,
    };
    let continued = Continued::since(function, raw, precision_ns - SAVED_NS)?;
    note(&format!(
        "mode {mode}: SET adds {} ns; the clocks leave {} ns open",
        precision_ns - SAVED_NS,
        continued.open_ns()
    ));
    ensure_not_stable(&vm)?;
    continued.ensure_told_by_kvm(&vm)?;
    continued.ensure_read_by_guest(|| run_a_little(&vm))?;
    continued.ensure_told_by_kvm(&vm)?;
    ensure_not_stable(&vm).map(drop)
}

fn new_vm(host: &Host) -> Result<()> {
    let _until_checked = host.without_tsc()?;
    let vm = Vm::new(&host.kvm, VCPUS)?;
    for when in ["before it runs", "when it ran"] {
        ensure_no_data(&vm, |vm| get_vm_clock_guest(vm.fd()).map(drop)).context(when)?;
        let mut clock = ensure_not_stable(&vm).context(when)?;
        clock.header.mode = MODE_EXACT;
        ensure_no_data(&vm, |vm| set_vm_clock_guest(vm.fd(), &mut clock)).context(when)?;
        run_a_little(&vm)?;
    }
    Ok(())
}

fn back_again(host: &Host) -> Result<()> {
    let (vm, mut saved) = host.pinned()?;
    let before = Clocks::of(&vm)?;
    let without_tsc = host.without_tsc()?;
    run_until_noticed(&vm, &saved.header.record)?;
    let mut asked = saved.clone();
    (asked.header.mode, asked.header.flags) = (MODE_EXACT, FLAG_FALLBACK);
    set_vm_clock_guest(vm.fd(), &mut asked).context("SET with FALLBACK")?;
    ensure_not_stable(&vm)?;
    without_tsc.end()?;
    run_a_little(&vm)?;

    set(&vm, &mut saved, MODE_EXACT)?;
    let (status, precision_ns) = (saved.header.status, saved.header.precision_ns);
    ensure!(
        status == STATUS_PINNED | STATUS_HOST_TSC_STABLE && precision_ns == 0,
        "SET reports status {status:#x} and precision {precision_ns} ns"
    );
    run_a_little(&vm)?;
    before.ensure_is(&Clocks::of(&vm)?, "after SET")
}

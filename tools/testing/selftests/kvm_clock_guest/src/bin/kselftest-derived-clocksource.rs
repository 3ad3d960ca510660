// SPDX-License-Identifier: GPL-2.0-only

//! A host whose clocksource is computed from its TSC, as kvm-clock is on a host that is a guest
//! itself: its time comes with a TSC value, but KVM has no master clock. `ENODATA`, or with
//! FALLBACK the best possible result, and its precision.
//!
//! Switches the host's clocksource to that of `modules/derived_clocksource.c`, which needs root,
//! and restores it. `--clocksource=hpet` runs the cases on another, with the same results.

use kvm_bindings::KVM_CLOCK_TSC_STABLE;
use kvm_clock_guest_selftests::{
    clocksource::{self, run_until_noticed, Derived, WithoutTsc},
    continued::{kvm_ahead_of_raw, Continued, Function},
    fixture::unlike,
    host_clock::clock_and_tsc,
    prelude::*,
};
use pvclock::abi::FLAG_FALLBACK;

const VCPUS: u32 = 2;

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
        // The present clocksource must be the TSC, which is restored.
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

    /// A stopped VM whose clock is pinned an hour ahead, and that clock.
    fn pinned(&self) -> Result<(Vm, VmClock)> {
        pinned_an_hour_ahead(&self.kvm, VCPUS)
    }
}

fn main() -> ExitCode {
    let mut cases = vec![
        Case::new("GET is ENODATA and changes nothing", gets_refused),
        Case::new("vCPU GET and SET are ENODATA and change nothing", vcpus),
    ];
    for (name, mode) in MODES {
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
        Case::new("a new VM has no stable clock", new_vm),
        Case::new(
            "after the TSC is back, SET exact restores all bits",
            back_again,
        ),
    ]);
    ktap::main(Host::new, cases)
}

/// Fails unless `call` fails with `ENODATA` and changes nothing visible of the stopped `vm`.
fn ensure_no_data(vm: &Vm, call: impl FnOnce(&Vm) -> kvm_clock::Result<()>) -> Result<()> {
    /// Short compared with the hour by which a clock that was SET differs.
    const TOLERANCE_NS: i64 = 100_000_000;

    let visible = || Ok::<_, anyhow::Error>((vm.tsc_offsets()?, pages(vm)));
    let (before, ahead) = (visible()?, kvm_ahead_of_raw(vm)?);
    ensure_errno(libc::ENODATA, call(vm))?;
    let (after, ahead_now) = (visible()?, kvm_ahead_of_raw(vm)?);
    ensure_eq_hex!(after, before, "offsets and records");
    ensure!(
        ahead.hull(ahead_now).width() < TOLERANCE_NS,
        "KVM_GET_CLOCK was {ahead:?} ns ahead of the raw clock, is {ahead_now:?}"
    );
    Ok(())
}

/// Calls `check` for a VM with a derived clock and for one with a pinned clock, each immediately
/// and after KVM has noticed.
fn for_each(host: &Host, check: impl Fn(&Vm, &VmClock) -> Result<()>) -> Result<()> {
    let vm = derived(&host.kvm, VCPUS)?;
    let clock = get(&vm)?;
    for (vm, clock) in [(vm, clock), host.pinned()?] {
        let _until_checked = host.without_tsc()?;
        check(&vm, &clock).context("immediately")?;
        run_until_noticed(&vm, &clock.header.record)?;
        check(&vm, &clock).context("after KVM has noticed")?;
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

/// Fails unless no interface reports the clocks of `vm` as pinned, or as of one instant.
fn ensure_not_stable(vm: &Vm) -> Result<VmClock> {
    let clock = get_or_fall_back(vm)?;
    let (status, precision_ns) = (clock.header.status, clock.header.precision_ns);
    ensure!(
        status & (STATUS_PINNED | STATUS_HOST_TSC_STABLE) == 0 && precision_ns != 0,
        "GET with FALLBACK reports status {status:#x} and precision {precision_ns} ns"
    );
    let flags = get_clock(vm)?.flags;
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
        "immediately, GET with FALLBACK reports status {:#x} and precision {} ns",
        header.status,
        header.precision_ns
    );
    run_until_noticed(&vm, &saved.header.record)?;
    let clock = ensure_not_stable(&vm)?;
    let function = Function::of(&clock)?;
    let raw = clock_and_tsc(libc::CLOCK_MONOTONIC_RAW)?;
    Continued::since(function, raw, clock.header.precision_ns)?.ensure_in_kvm(&vm)
}

/// kvmclock has the saved function's value after SET, and follows the raw clock from then on.
fn sets(host: &Host, mode: u32) -> Result<()> {
    const SAVED_NS: u32 = 12_345;

    let (vm, saved) = host.pinned()?;
    let mut clock = unlike(saved);
    clock.header.precision_ns = SAVED_NS;
    let _until_checked = host.without_tsc()?;
    let mut request = clock.clone();
    (request.header.mode, request.header.flags) = (mode, FLAG_FALLBACK);
    let raw = clock_and_tsc(libc::CLOCK_MONOTONIC_RAW)?;
    set_vm_clock_guest(vm.fd(), &mut request).context("SET with FALLBACK")?;
    let (status, precision_ns) = (request.header.status, request.header.precision_ns);
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
    note!(
        "mode {mode}: SET adds {} ns; the uncertainty is {} ns",
        precision_ns - SAVED_NS,
        continued.open_ns()
    );
    ensure_not_stable(&vm)?;
    continued.ensure_in_kvm(&vm)?;
    continued.ensure_read_by_guest(|| run_a_little(&vm))?;
    continued.ensure_in_kvm(&vm)?;
    ensure_not_stable(&vm).map(drop)
}

fn new_vm(host: &Host) -> Result<()> {
    let _until_checked = host.without_tsc()?;
    let vm = Vm::new(&host.kvm, VCPUS)?;
    for when in ["before it runs", "after it ran"] {
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
    let mut request = saved.clone();
    (request.header.mode, request.header.flags) = (MODE_EXACT, FLAG_FALLBACK);
    set_vm_clock_guest(vm.fd(), &mut request).context("SET with FALLBACK")?;
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

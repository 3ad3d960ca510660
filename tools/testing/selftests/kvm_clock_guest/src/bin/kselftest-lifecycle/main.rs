// SPDX-License-Identifier: GPL-2.0-only

//! Loads and unloads the module and KVM's modules; needs root, and leaves all of them loaded.
//!
//! `--rounds=N`: number of unloads and loads during ioctls.

mod kunit;
mod load;
mod order;
mod other_layout;
mod running;

use kvm_clock_guest_selftests::{module::Host, prelude::*, snippet};

/// Fails at once if the module cannot be unloaded and loaded again.
fn host() -> Result<Host> {
    let host = Host::new()?;
    host.module.unload()?.load()?;
    Ok(host)
}

fn main() -> ExitCode {
    let mut cases = vec![
        Case::new("absent: capability 0, ENOTTY on VM and vCPU fd", absent),
        Case::new("a pinned record outlives the module", pinned_record),
        Case::new(
            "a VM created without the module can use it later",
            loaded_later,
        ),
    ];
    cases.extend(running::cases());
    cases.extend(load::cases());
    cases.extend(order::cases());
    cases.extend(other_layout::cases());
    ktap::main(host, cases)
}

fn absent(host: &Host) -> Result<()> {
    let kvm = host.kvm()?;
    let vm = derived(&kvm, 1)?;
    let before = require::capability(&kvm);
    let mut clock = get(&vm)?;
    clock.header.mode = MODE_EXACT;

    let unloaded = host.module.unload()?;
    let cap = require::capability(&kvm);
    ensure_eq_hex!(cap, 0, "KVM_CAP_VM_CLOCK_GUEST without the module");
    ensure_errno(libc::ENOTTY, get_vm_clock_guest(vm.fd()).map(drop)).context("GET, VM fd")?;
    ensure_errno(libc::ENOTTY, set_vm_clock_guest(vm.fd(), &mut clock)).context("SET, VM fd")?;
    let (vcpu, record) = (&vm.vcpus()[0], clock.header.record);
    ensure_errno(libc::ENOTTY, set_clock_guest(&vcpu.fd(), &record)).context("SET, vCPU fd")?;
    ensure_errno(libc::ENOTTY, get_clock_guest(&vcpu.fd()).map(drop)).context("GET, vCPU fd")?;
    unloaded.load()?;

    let after = require::capability(&kvm);
    ensure_eq_hex!(after, before, "KVM_CAP_VM_CLOCK_GUEST");
    Ok(())
}

/// KVM keeps the record, not the module.
fn pinned_record(host: &Host) -> Result<()> {
    let kvm = host.kvm()?;
    let vm = pinned(&kvm, 2)?;
    let before = Clocks::of(&vm)?;

    let unloaded = host.module.unload()?;
    run_a_little(&vm)?;
    // Makes KVM update the clocks of all vCPUs.
    let mut added = snippet::add_vcpu(&vm)?;
    snippet::halt_in_real_mode(&vm, &mut added)?;
    run_a_little(&vm)?;
    let observed = pages(&vm);
    ensure_eq_hex!(
        observed,
        before.pages,
        "the guest's records without the module"
    );
    unloaded.load()?;

    before.ensure_unchanged(&vm)?;
    set(&vm, &mut get(&vm)?, MODE_EXACT)?;
    before.ensure_unchanged(&vm)
}

fn loaded_later(host: &Host) -> Result<()> {
    let kvm = host.kvm()?;
    let unloaded = host.module.unload()?;
    let vm = derived(&kvm, 1)?;
    unloaded.load()?;
    let before = Clocks::of(&vm)?;
    set(&vm, &mut get(&vm)?, MODE_EXACT)?;
    before.as_pinned().ensure_unchanged(&vm)
}

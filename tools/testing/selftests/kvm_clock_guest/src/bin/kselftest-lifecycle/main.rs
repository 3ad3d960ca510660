// SPDX-License-Identifier: GPL-2.0-only

//! The module comes and goes, and so do KVM's; needs root, and leaves all of them loaded.
//!
//! `--rounds=N`: unloads and loads while ioctls are made.

mod kunit;
mod load;
mod module;
mod order;
mod other_layout;
mod running;

use anyhow::{ensure, Context, Result};
use kvm_clock::{get_clock_guest, get_vm_clock_guest, set_clock_guest, set_vm_clock_guest};
use kvm_clock_guest_selftests::{
    clocks::{pages, Clocks},
    fixture::{derived, get, pinned, run_a_little, set},
    halting,
    ktap::{self, Case},
    refusal::ensure_errno,
    require,
};
use kvm_ioctls::Kvm;
use module::Module;
use pvclock::abi::MODE_EXACT;
use std::process::ExitCode;

struct Host {
    module: Module,
}

impl Host {
    fn new() -> Result<Self> {
        require::clock_guest()?;
        let module = Module::under_test()?;
        module.unload()?.load()?;
        Ok(Self { module })
    }

    /// Each case's own, as an open `/dev/kvm` keeps KVM's modules from going.
    fn kvm(&self) -> Result<Kvm> {
        require::clock_guest()
    }
}

fn main() -> ExitCode {
    let mut cases = vec![
        Case::new("absent: capability 0, ENOTTY on VM and vCPU fd", absent),
        Case::new("a pinned record outlives the module", pinned_record),
        Case::new("a VM that saw no module can use it", loaded_later),
    ];
    cases.extend(running::cases());
    cases.extend(load::cases());
    cases.extend(order::cases());
    cases.extend(other_layout::cases());
    ktap::main(Host::new, cases)
}

fn absent(host: &Host) -> Result<()> {
    let kvm = host.kvm()?;
    let vm = derived(&kvm, 1)?;
    let before = require::capability(&kvm);
    let mut clock = get(&vm)?;
    clock.header.mode = MODE_EXACT;

    let unloaded = host.module.unload()?;
    let cap = require::capability(&kvm);
    ensure!(
        cap == 0,
        "KVM_CAP_VM_CLOCK_GUEST is {cap:#x} without the module"
    );
    ensure_errno(libc::ENOTTY, get_vm_clock_guest(vm.fd()).map(|_| ())).context("GET, VM fd")?;
    ensure_errno(libc::ENOTTY, set_vm_clock_guest(vm.fd(), &mut clock)).context("SET, VM fd")?;
    let (vcpu, record) = (&vm.vcpus()[0], clock.header.record);
    ensure_errno(libc::ENOTTY, set_clock_guest(&vcpu.fd(), &record)).context("SET, vCPU fd")?;
    ensure_errno(libc::ENOTTY, get_clock_guest(&vcpu.fd()).map(|_| ())).context("GET, vCPU fd")?;
    unloaded.load()?;

    let after = require::capability(&kvm);
    ensure!(
        after == before,
        "KVM_CAP_VM_CLOCK_GUEST was {before:#x}, is {after:#x}"
    );
    Ok(())
}

/// KVM keeps it, not the module.
fn pinned_record(host: &Host) -> Result<()> {
    let kvm = host.kvm()?;
    let vm = pinned(&kvm, 2)?;
    let before = Clocks::of(&vm)?;

    let unloaded = host.module.unload()?;
    run_a_little(&vm)?;
    // Makes KVM update the clocks of all vCPUs.
    let mut added = halting::add_vcpu(&kvm, &vm)?;
    halting::run(&vm, &mut added)?;
    run_a_little(&vm)?;
    let observed = pages(&vm);
    ensure!(
        observed == before.pages,
        "without the module the guest reads {observed:x?}, before {:x?}",
        before.pages
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
    Clocks {
        pinned: true,
        ..before
    }
    .ensure_unchanged(&vm)
}

// SPDX-License-Identifier: GPL-2.0-only

//! Unloads and loads KVM's modules in every order that the kernel allows, and in no other.
//!
//! `kvm_clock_guest` only needs `kvm`; without the vendor's module it cannot be called.

use crate::Host;
use kvm_clock_guest_selftests::{
    module::Module,
    prelude::*,
    references::{self, is_loaded, References},
};
use std::path::Path;

const DEVICE: &str = "/dev/kvm";
/// devtmpfs makes the node immediately; udev may set its mode later.
const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) fn cases() -> Vec<Case<Host>> {
    vec![
        Case::new("kvm cannot be unloaded while the module is loaded", needed),
        Case::new(
            "KVM's modules cannot be unloaded while a VM exists",
            vm_exists,
        ),
        Case::new(
            "the vendor's module is unloaded and loaded while the module stays",
            vendor_alone,
        ),
        Case::new("all modules are unloaded, and loaded in order", all),
        Case::new(
            "all modules are unloaded, and the vendor's module is loaded last",
            vendor_last,
        ),
    ]
}

/// KVM's modules; only they and the module under test may use each other.
fn modules() -> Result<(Module, Module)> {
    let (kvm, vendor) = (Module::kvm()?, Module::vendor()?);
    let count = references::count(vendor.name())?;
    ensure!(count == 0, "{} has {count} references", vendor.name());
    Ok((kvm, vendor))
}

/// Fails unless a VM has clocks that the module under test saves and restores.
fn ensure_works(host: &Host) -> Result<()> {
    let start = Instant::now();
    while !Path::new(DEVICE).exists() && start.elapsed() < PATIENCE {
        sleep(Duration::from_millis(1));
    }
    let before = References::now()?;
    let kvm = host.kvm()?;
    let vm = pinned(&kvm, 2)?;
    let clocks = Clocks::of(&vm)?;
    set(&vm, &mut get(&vm)?, MODE_EXACT)?;
    clocks.ensure_unchanged(&vm)?;
    drop((vm, kvm));
    before.wait_until_back()
}

fn ensure_gone(name: &str) -> Result<()> {
    ensure!(!is_loaded(name), "{name} is still loaded");
    Ok(())
}

fn needed(host: &Host) -> Result<()> {
    let (kvm, vendor) = modules()?;
    kvm.ensure_in_use()?;
    ensure_works(host)?;
    let _vendor = vendor.unload()?;
    // Now only the module under test uses it.
    kvm.ensure_in_use()
}

fn vm_exists(host: &Host) -> Result<()> {
    let (kvm, vendor) = modules()?;
    let vm = derived(&host.kvm()?, 1)?;
    let before = Clocks::of(&vm)?;
    kvm.ensure_in_use()?;
    vendor.ensure_in_use()?;
    {
        let _module = host.module.unload()?;
        kvm.ensure_in_use()?;
        vendor.ensure_in_use()?;
    }
    before.ensure_unchanged(&vm)
}

fn vendor_alone(host: &Host) -> Result<()> {
    let (_, vendor) = modules()?;
    let unloaded = vendor.unload()?;
    ensure_gone(vendor.name())?;
    ensure!(!Path::new(DEVICE).exists(), "{DEVICE} is still there");
    {
        // The module loads without support for guests.
        let unloaded = host.module.unload()?;
        unloaded.load().context("without the vendor's module")?;
    }
    unloaded.load()?;
    ensure_works(host)
}

fn all(host: &Host) -> Result<()> {
    let (kvm, vendor) = modules()?;
    let unloaded = (host.module.unload()?, vendor.unload()?, kvm.unload()?);
    for module in [&kvm, &vendor, &host.module] {
        ensure_gone(module.name())?;
    }
    unloaded.2.load()?;
    unloaded.1.load()?;
    unloaded.0.load()?;
    ensure_works(host)
}

fn vendor_last(host: &Host) -> Result<()> {
    let (kvm, vendor) = modules()?;
    let unloaded = (host.module.unload()?, vendor.unload()?, kvm.unload()?);
    unloaded.2.load()?;
    unloaded.0.load()?;
    unloaded.1.load()?;
    ensure_works(host)
}

// SPDX-License-Identifier: GPL-2.0-only

//! The module comes and goes while VMs exist; needs root, and leaves it loaded.

mod module;

use anyhow::{
    anyhow,
    bail,
    ensure,
    Context,
    Result, //
};
use clockguest::vmm::Vm;
use kvm_clock_guest_selftests::{
    clocks::{
        pages,
        Clocks, //
    },
    fixture::{
        derived,
        get,
        kept,
        run_a_little,
        set, //
    },
    halting,
    ktap::{
        self,
        note,
        Case, //
    },
    refusal::ensure_errno,
    require, //
};
use kvm_clock_ioctls::{
    get_vm_clock_guest,
    set_vm_clock_guest,
    VmClock, //
};
use kvm_ioctls::Kvm;
use module::Module;
use pvclock::abi::MODE_EXACT;
use std::{
    process::ExitCode,
    sync::atomic::{
        AtomicBool,
        AtomicU64,
        Ordering, //
    },
    thread::{
        scope,
        sleep, //
    },
    time::{
        Duration,
        Instant, //
    },
};
use vmm_sys_util::{
    errno,
    ioctl::ioctl_with_mut_ref, //
};

const ROUNDS: u32 = 20;
const PATIENCE: Duration = Duration::from_secs(20);

/// The vCPU ioctls whose numbers the hook hands to the module.
mod nr {
    use pvclock::abi::ClockGuest;
    use vmm_sys_util::{
        ioctl_ior_nr,
        ioctl_iow_nr, //
    };

    const KVMIO: u32 = 0xae;

    ioctl_iow_nr!(KVM_SET_CLOCK_GUEST, KVMIO, 0xd6, ClockGuest);
    ioctl_ior_nr!(KVM_GET_CLOCK_GUEST, KVMIO, 0xd7, ClockGuest);
}

struct Host {
    kvm: Kvm,
    module: Module,
}

impl Host {
    fn new() -> Result<Self> {
        let (kvm, module) = (require::clock_guest()?, Module::find()?);
        module.unload()?.load()?;
        Ok(Self { kvm, module })
    }
}

fn main() -> ExitCode {
    let cases = vec![
        Case::new("absent: capability 0, ENOTTY on VM and vCPU fd", absent),
        Case::new("a kept record outlives the module", kept_record),
        Case::new("a VM that saw no module can use it", loaded_later),
        Case::new(
            format!("{ROUNDS} unloads and loads while ioctls are made"),
            under_load,
        ),
    ];
    ktap::main(Host::new, cases)
}

fn absent(host: &Host) -> Result<()> {
    let vm = derived(&host.kvm, 1)?;
    let before = require::capability(&host.kvm);
    let mut clock = get(&vm)?;
    clock.header.mode = MODE_EXACT;

    let unloaded = host.module.unload()?;
    let cap = require::capability(&host.kvm);
    ensure!(
        cap == 0,
        "KVM_CAP_CLOCK_GUEST is {cap:#x} without the module"
    );
    ensure_errno(libc::ENOTTY, get_vm_clock_guest(vm.fd()).map(|_| ())).context("GET, VM fd")?;
    ensure_errno(libc::ENOTTY, set_vm_clock_guest(vm.fd(), &mut clock)).context("SET, VM fd")?;
    for (name, request) in [
        ("SET, vCPU fd", nr::KVM_SET_CLOCK_GUEST()),
        ("GET, vCPU fd", nr::KVM_GET_CLOCK_GUEST()),
    ] {
        let mut record = clock.header.record;
        // SAFETY: Either request reads or writes one record, mutably borrowed here.
        let ret = unsafe { ioctl_with_mut_ref(&*vm.vcpus()[0].fd(), request, &mut record) };
        let result = if ret < 0 {
            errno::errno_result()
        } else {
            Ok(())
        };
        ensure_errno(libc::ENOTTY, result).context(name)?;
    }
    unloaded.load()?;

    let after = require::capability(&host.kvm);
    ensure!(
        after == before,
        "KVM_CAP_CLOCK_GUEST was {before:#x}, is {after:#x}"
    );
    Ok(())
}

/// KVM keeps it, not the module.
fn kept_record(host: &Host) -> Result<()> {
    let vm = kept(&host.kvm, 2)?;
    let before = Clocks::of(&vm)?;

    let unloaded = host.module.unload()?;
    run_a_little(&vm)?;
    // Makes KVM update the clocks of all vCPUs.
    let mut added = halting::add_vcpu(&host.kvm, &vm)?;
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
    let unloaded = host.module.unload()?;
    let vm = derived(&host.kvm, 1)?;
    unloaded.load()?;
    let before = Clocks::of(&vm)?;
    set(&vm, &mut get(&vm)?, MODE_EXACT)?;
    Clocks {
        kept: true,
        ..before
    }
    .ensure_unchanged(&vm)
}

/// What callers in a tight loop saw.
#[derive(Default)]
struct Seen {
    served: AtomicU64,
    absent: AtomicU64,
    stop: AtomicBool,
}

impl Seen {
    /// Counts `result`, or says why it must not be.
    fn count(&self, call: &str, result: errno::Result<()>) -> Result<()> {
        match result {
            Ok(()) => self.served.fetch_add(1, Ordering::Relaxed),
            Err(e) if e.errno() == libc::ENOTTY => self.absent.fetch_add(1, Ordering::Relaxed),
            Err(e) => bail!("{call} failed with {e}, expected success or ENOTTY"),
        };
        Ok(())
    }

    /// Calls until told to stop.
    fn call(&self, vm: &Vm, mut clock: VmClock) -> Result<()> {
        while !self.stop.load(Ordering::Relaxed) {
            self.count("GET", get_vm_clock_guest(vm.fd()).map(|_| ()))?;
            self.count("SET", set_vm_clock_guest(vm.fd(), &mut clock))?;
        }
        Ok(())
    }
}

fn under_load(host: &Host) -> Result<()> {
    let vm = kept(&host.kvm, 2)?;
    let before = Clocks::of(&vm)?;
    let mut clock = get(&vm)?;
    clock.header.mode = MODE_EXACT;

    let seen = Seen::default();
    scope(|scope| {
        let caller = scope.spawn(|| seen.call(&vm, clock));
        let wait = |count: &AtomicU64, what: &str| {
            let (from, start) = (count.load(Ordering::Relaxed), Instant::now());
            while count.load(Ordering::Relaxed) == from && !caller.is_finished() {
                ensure!(start.elapsed() < PATIENCE, "no {what} call in {PATIENCE:?}");
                sleep(Duration::from_micros(100));
            }
            Ok(())
        };
        let rounds = || {
            for _ in 0..ROUNDS {
                wait(&seen.served, "served")?;
                let unloaded = host.module.unload()?;
                wait(&seen.absent, "unserved")?;
                unloaded.load()?;
            }
            wait(&seen.served, "served")
        };
        let result = rounds();
        seen.stop.store(true, Ordering::Relaxed);
        let called = caller
            .join()
            .map_err(|_| anyhow!("the calling thread panicked"))?;
        called.and(result)
    })?;
    note(&format!(
        "{} calls served, {} met no module",
        seen.served.into_inner(),
        seen.absent.into_inner()
    ));
    before.ensure_unchanged(&vm)
}

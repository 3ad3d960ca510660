// SPDX-License-Identifier: GPL-2.0-only

//! Everything at once: vCPUs that come and go and are created, SETs and GETs, descriptors that are
//! duplicated and closed.

use crate::{
    looks::{Looks, Stop},
    states::States,
    tally::Tally,
};
use anyhow::{ensure, Context, Result};
use clockguest::vmm::Vm;
use kvm_clock::set_vm_clock_guest;
use kvm_clock_guest_selftests::{
    clocks::Clocks,
    descriptors,
    fixture::{get, pinned, run_a_little},
    flat_out::Progress,
    threads,
};
use kvm_ioctls::{Kvm, VcpuFd};
use std::{
    thread::{scope, sleep},
    time::{Duration, Instant},
};

/// vCPUs that run.
const VCPUS: u32 = 4;
/// vCPUs that are created meanwhile, and do not.
const MORE: usize = 12;
/// GETs of the VM by its descriptor, and by one of their own.
const GETTERS: usize = 6;
const CLOSERS: usize = 2;
const SETTERS: usize = 2;
/// SETs that are done while no vCPU runs, and more if vCPUs are late to.
const SETS: u64 = 8;
/// For others to get their turn.
const PAUSE: Duration = Duration::from_micros(200);
/// How long vCPUs stay in KVM_RUN, or out of it, if no SET comes meanwhile.
const LONGEST: Duration = Duration::from_millis(50);

/// A VM in which all that goes on.
pub(crate) struct Storm<'a> {
    kvm: &'a Kvm,
    vm: Vm,
    vcpus: Vec<VcpuFd>,
    states: States,
    tally: Tally,
    stop: Stop,
}

impl<'a> Storm<'a> {
    pub(crate) fn new(kvm: &'a Kvm) -> Result<Self> {
        let vm = pinned(kvm, VCPUS)?;
        let states = States::two(&vm)?;
        set_vm_clock_guest(vm.fd(), &mut states.request(0, VCPUS as usize))
            .context("the first SET")?;
        // So that the guest's readings and pages are of that state.
        run_a_little(&vm)?;
        while vm
            .view(0)
            .ring()
            .iter()
            .any(|sample| states.which_record(sample.record, 0).is_err())
        {
            run_a_little(&vm)?;
        }
        Ok(Self {
            kvm,
            vcpus: descriptors::of_vcpus(&vm)?,
            tally: Tally::new(states.len()),
            stop: Stop::default(),
            states,
            vm,
        })
    }

    pub(crate) fn vm(&self) -> &Vm {
        &self.vm
    }

    /// One of its vCPUs.
    pub(crate) fn vcpu(&self) -> &VcpuFd {
        &self.vcpus[0]
    }

    pub(crate) fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Lets it rage until `end` returns, beside it.
    ///
    /// # Errors
    ///
    /// The first one of any thread.
    pub(crate) fn rage(&self, end: impl FnOnce(&Stop) -> Result<()>) -> Result<()> {
        let looks = Looks {
            vm: &self.vm,
            vcpus: &self.vcpus,
            states: &self.states,
            tally: &self.tally,
            stop: &self.stop,
        };
        scope(|scope| {
            let mut threads = Vec::new();
            let stop = &self.stop;
            for _ in 0..GETTERS {
                threads.push(scope.spawn(move || stop.until(|| looks.get())));
            }
            for _ in 0..CLOSERS {
                threads.push(scope.spawn(move || stop.until(|| looks.get_and_close(self.kvm))));
            }
            threads.push(scope.spawn(move || stop.until(|| looks.get_of_vcpus())));
            threads.push(scope.spawn(move || stop.until(|| looks.watch())));
            for number in 0..SETTERS {
                threads.push(scope.spawn(move || self.set_often(number)));
            }
            threads.push(scope.spawn(move || {
                let mut more = Vec::new();
                stop.until(|| self.create_vcpu(&mut more))
            }));
            threads.push(scope.spawn(move || stop.until(|| self.come_and_go())));

            let ended = end(stop);
            stop.now();
            threads::join(threads, ended)
        })
    }

    /// Fails unless one SET more leaves the VM, which is stopped, in that state.
    pub(crate) fn ensure_calm(&self) -> Result<()> {
        self.vm.stop()?;
        let count = get(&self.vm)?.vcpus.len();
        let mut clock = self.states.request(0, count);
        set_vm_clock_guest(self.vm.fd(), &mut clock).context("the last SET")?;
        let now = get(&self.vm)?;
        ensure!(
            now.vcpus == clock.vcpus,
            "offsets are {:x?}, SET were {:x?}",
            now.vcpus,
            clock.vcpus
        );
        run_a_little(&self.vm)?;
        Clocks::of(&self.vm)?.ensure_unchanged(&self.vm)
    }

    /// SETs one state after the other.
    fn set_often(&self, first: usize) -> Result<()> {
        let mut which = first;
        self.stop.until(|| {
            let count = self.nr_vcpus();
            let mut clock = self.states.request(which, count);
            match set_vm_clock_guest(self.vm.fd(), &mut clock) {
                Ok(()) => {
                    self.tally.sets[which].add();
                    which = (which + 1) % self.states.len();
                    return Ok(());
                }
                Err(e) if e.errno() == libc::EBUSY => self.tally.busy.add(),
                // It does not name them all.
                Err(e) if e.errno() == libc::EINVAL && get(&self.vm)?.vcpus.len() > count => {
                    self.tally.outdated.add();
                }
                Err(e) => return Err(e).context("KVM_SET_VM_CLOCK_GUEST"),
            }
            sleep(PAUSE);
            Ok(())
        })
    }

    /// vCPUs that were created for certain.
    fn nr_vcpus(&self) -> usize {
        // CAST: A few.
        self.vcpus.len() + self.tally.created.get() as usize
    }

    fn create_vcpu(&self, more: &mut Vec<VcpuFd>) -> Result<()> {
        if more.len() < MORE {
            let id = self.nr_vcpus() as u64;
            more.push(self.vm.fd().create_vcpu(id).context("KVM_CREATE_VCPU")?);
            self.tally.created.add();
        }
        sleep(10 * PAUSE);
        Ok(())
    }

    /// Lets all vCPUs run until a SET was refused, and stops them until some were done.
    fn come_and_go(&self) -> Result<()> {
        let progress = Progress::of(&self.vm);
        let busy = || self.tally.busy.get();
        let done = || self.tally.sets.iter().map(|count| count.get()).sum();
        self.vm.run()?;
        progress.wait_for(&self.vm, 1, 2)?;
        self.wait_for(1, &busy);
        self.vm.stop()?;
        self.wait_for(SETS, &done);
        Ok(())
    }

    fn wait_for(&self, more: u64, count: &dyn Fn() -> u64) {
        let (enough, start) = (count() + more, Instant::now());
        while count() < enough && start.elapsed() < LONGEST && !self.stop.is_now() {
            sleep(PAUSE);
        }
    }
}

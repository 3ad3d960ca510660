// SPDX-License-Identifier: GPL-2.0-only

//! Everything concurrently: vCPUs start, stop and are created, SETs and GETs, descriptors are
//! duplicated and closed.

use crate::{
    counts::Counts,
    observers::{Observers, Stop},
    states::States,
};
use kvm_clock_guest_selftests::{descriptors, prelude::*, progress::Progress, threads};
use std::thread::scope;

/// vCPUs that run.
const VCPUS: u32 = 4;
/// vCPUs that are created meanwhile, and do not run.
const MORE: usize = 12;
/// Threads that GET with the VM's descriptor, and with second ones.
const GETTERS: usize = 6;
const CLOSERS: usize = 2;
const SETTERS: usize = 2;
/// How many SETs must succeed while no vCPU runs.
const SETS: u64 = 8;
/// A pause so that other threads can run.
const PAUSE: Duration = Duration::from_micros(200);
/// How long vCPUs stay in KVM_RUN, or out of it, without a SET.
const LONGEST: Duration = Duration::from_millis(50);

/// A VM under stress.
pub(crate) struct Stress<'a> {
    kvm: &'a Kvm,
    vm: Vm,
    vcpus: Vec<VcpuFd>,
    states: States,
    counts: Counts,
    stop: Stop,
}

impl<'a> Stress<'a> {
    pub(crate) fn new(kvm: &'a Kvm) -> Result<Self> {
        let vm = pinned(kvm, VCPUS)?;
        let states = States::two(&vm)?;
        set_vm_clock_guest(vm.fd(), &mut states.request(0, VCPUS as usize))
            .context("the first SET")?;
        states.run_until_read(&vm)?;
        Ok(Self {
            kvm,
            vcpus: descriptors::of_vcpus(&vm)?,
            counts: Counts::new(states.len()),
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

    pub(crate) fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Runs all threads until `end` returns.
    pub(crate) fn run(&self, end: impl FnOnce(&Stop) -> Result<()>) -> Result<()> {
        let observers = Observers {
            vm: &self.vm,
            vcpus: &self.vcpus,
            states: &self.states,
            counts: &self.counts,
            stop: &self.stop,
        };
        scope(|scope| {
            let mut threads = Vec::new();
            let stop = &self.stop;
            for _ in 0..GETTERS {
                threads.push(scope.spawn(move || stop.until(|| observers.get())));
            }
            for _ in 0..CLOSERS {
                threads.push(scope.spawn(move || stop.until(|| observers.get_and_close(self.kvm))));
            }
            threads.push(scope.spawn(move || stop.until(|| observers.get_of_vcpus())));
            threads.push(scope.spawn(move || stop.until(|| observers.watch())));
            for number in 0..SETTERS {
                threads.push(scope.spawn(move || self.set_often(number)));
            }
            threads.push(scope.spawn(move || {
                let mut more = Vec::new();
                stop.until(|| self.create_vcpu(&mut more))
            }));
            threads.push(scope.spawn(move || stop.until(|| self.start_and_stop())));

            let ended = end(stop);
            stop.now();
            threads::join(threads, ended)
        })
    }

    /// Stops the VM; fails unless another SET gives it that state.
    pub(crate) fn ensure_consistent(&self) -> Result<()> {
        self.vm.stop()?;
        let count = get(&self.vm)?.vcpus.len();
        let mut clock = self.states.request(0, count);
        set_vm_clock_guest(self.vm.fd(), &mut clock).context("the last SET")?;
        let now = get(&self.vm)?;
        ensure_eq_hex!(now.vcpus, clock.vcpus, "vCPUs after the last SET");
        run_a_little(&self.vm)?;
        Clocks::of(&self.vm)?.ensure_unchanged(&self.vm)
    }

    /// SETs the states in turn.
    fn set_often(&self, first: usize) -> Result<()> {
        let mut which = first;
        self.stop.until(|| {
            let count = self.nr_vcpus();
            let mut clock = self.states.request(which, count);
            match set_vm_clock_guest(self.vm.fd(), &mut clock) {
                Ok(()) => {
                    self.counts.sets[which].add();
                    which = (which + 1) % self.states.len();
                    return Ok(());
                }
                Err(e) if e.errno() == libc::EBUSY => self.counts.busy.add(),
                // Its array lacks a new vCPU.
                Err(e) if e.errno() == libc::EINVAL && get(&self.vm)?.vcpus.len() > count => {
                    self.counts.outdated.add();
                }
                Err(e) => return Err(e).context("KVM_SET_VM_CLOCK_GUEST"),
            }
            sleep(PAUSE);
            Ok(())
        })
    }

    /// vCPUs whose creation is complete.
    fn nr_vcpus(&self) -> usize {
        // CAST: A few.
        self.vcpus.len() + self.counts.created.get() as usize
    }

    fn create_vcpu(&self, more: &mut Vec<VcpuFd>) -> Result<()> {
        if more.len() < MORE {
            let id = self.nr_vcpus() as u64;
            more.push(self.vm.fd().create_vcpu(id).context("KVM_CREATE_VCPU")?);
            self.counts.created.add();
        }
        sleep(10 * PAUSE);
        Ok(())
    }

    /// Lets all vCPUs run until a SET failed, and stops them until some succeeded.
    fn start_and_stop(&self) -> Result<()> {
        let progress = Progress::of(&self.vm);
        let busy = || self.counts.busy.get();
        let done = || self.counts.sets.iter().map(|count| count.get()).sum();
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

// SPDX-License-Identifier: GPL-2.0-only

//! Threads that observe the clocks in loops while others SET: they only see complete states.

use crate::{counts::Counts, states::States};
use kvm_clock_guest_selftests::{descriptors, prelude::*};
use std::sync::atomic::{AtomicBool, Ordering};

/// Sleep between two checks of the guest's readings.
const POLL: Duration = Duration::from_millis(1);
/// Sleep between two GETs, so that SETs can run.
const PAUSE: Duration = Duration::from_micros(100);

/// Makes all threads end.
#[derive(Default)]
pub(crate) struct Stop {
    now: AtomicBool,
    hurry: AtomicBool,
}

impl Stop {
    pub(crate) fn now(&self) {
        self.now.store(true, Ordering::SeqCst);
    }

    pub(crate) fn is_now(&self) -> bool {
        self.now.load(Ordering::SeqCst)
    }

    /// From now on, observers do not pause.
    pub(crate) fn hurry(&self) {
        self.hurry.store(true, Ordering::SeqCst);
    }

    fn pause(&self) {
        if !self.hurry.load(Ordering::SeqCst) {
            sleep(PAUSE);
        }
    }

    /// Repeats `step` until all threads must end, which an error of `step` also causes.
    pub(crate) fn until(&self, mut step: impl FnMut() -> Result<()>) -> Result<()> {
        while !self.is_now() {
            step().inspect_err(|_| self.now())?;
        }
        Ok(())
    }
}

/// What observers need.
#[derive(Clone, Copy)]
pub(crate) struct Observers<'a> {
    pub(crate) vm: &'a Vm,
    /// A descriptor of each of its vCPUs, except those added since.
    pub(crate) vcpus: &'a [VcpuFd],
    pub(crate) states: &'a States,
    pub(crate) counts: &'a Counts,
    pub(crate) stop: &'a Stop,
}

impl Observers<'_> {
    /// KVM_GET_VM_CLOCK_GUEST.
    pub(crate) fn get(self) -> Result<()> {
        self.get_through(self.vm.fd())
    }

    /// The same with a second descriptor, which is then closed.
    pub(crate) fn get_and_close(self, kvm: &Kvm) -> Result<()> {
        let fd = descriptors::of_vm(kvm, self.vm.fd())?;
        self.get_through(&fd)?;
        drop(fd);
        self.counts.closed.add();
        self.stop.pause();
        Ok(())
    }

    fn get_through(self, fd: &VmFd) -> Result<()> {
        let before = rdtsc_ordered();
        let clock = get_vm_clock_guest(fd).context("KVM_GET_VM_CLOCK_GUEST")?;
        let which = self.states.which(&clock, (before, rdtsc_ordered()))?;
        self.counts.gets[which].add();
        Ok(())
    }

    /// KVM_GET_CLOCK_GUEST, of every vCPU in turn.
    pub(crate) fn get_of_vcpus(self) -> Result<()> {
        for (id, vcpu) in (0..).zip(self.vcpus) {
            let record = get_clock_guest(vcpu).context("KVM_GET_CLOCK_GUEST")?;
            let which = self.states.which_record(record, id)?;
            self.counts.vcpu_gets[which].add();
        }
        self.stop.pause();
        Ok(())
    }

    /// The guest's readings, and the record in its page.
    pub(crate) fn watch(self) -> Result<()> {
        for (id, vcpu) in (0..).zip(self.vm.vcpus()) {
            let view = self.vm.view(vcpu.index());
            let (samples, page) = (view.ring(), view.pvclock());
            let after = rdtsc_ordered();
            self.states.which_record(without_version(page), id)?;
            for sample in &samples {
                let which = self.states.which_sample(sample, id, after)?;
                self.counts.readings[which].add();
            }
        }
        sleep(POLL);
        Ok(())
    }
}

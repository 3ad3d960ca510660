// SPDX-License-Identifier: GPL-2.0-only

//! Threads that look on while others SET, each in a loop: whatever they see is one whole state.

use crate::{states::States, tally::Tally};
use anyhow::{Context, Result};
use clockguest::{host::rdtsc_ordered, vmm::Vm};
use kvm_clock::{get_clock_guest, get_vm_clock_guest};
use kvm_clock_guest_selftests::{clocks::without_version, descriptors};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread::sleep,
    time::Duration,
};

/// Sleep between two looks at the guest's readings.
const POLL: Duration = Duration::from_millis(1);
/// Sleep between two GETs: for SETs to get their turn.
const PAUSE: Duration = Duration::from_micros(100);

/// Tells all threads to end.
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

    /// From now on those who look on do so without a pause.
    pub(crate) fn hurry(&self) {
        self.hurry.store(true, Ordering::SeqCst);
    }

    fn pause(&self) {
        if !self.hurry.load(Ordering::SeqCst) {
            sleep(PAUSE);
        }
    }

    /// Repeats `step` until told to end; if it fails, all do.
    pub(crate) fn until(&self, mut step: impl FnMut() -> Result<()>) -> Result<()> {
        while !self.is_now() {
            step().inspect_err(|_| self.now())?;
        }
        Ok(())
    }
}

/// What those who look on need.
#[derive(Clone, Copy)]
pub(crate) struct Looks<'a> {
    pub(crate) vm: &'a Vm,
    /// Of each of its vCPUs, but for those added since.
    pub(crate) vcpus: &'a [VcpuFd],
    pub(crate) states: &'a States,
    pub(crate) tally: &'a Tally,
    pub(crate) stop: &'a Stop,
}

impl Looks<'_> {
    /// KVM_GET_VM_CLOCK_GUEST.
    pub(crate) fn get(self) -> Result<()> {
        self.get_by(self.vm.fd())
    }

    /// The same by a descriptor of its own, which is closed at once.
    pub(crate) fn get_and_close(self, kvm: &Kvm) -> Result<()> {
        let fd = descriptors::of_vm(kvm, self.vm.fd())?;
        self.get_by(&fd)?;
        drop(fd);
        self.tally.closed.add();
        self.stop.pause();
        Ok(())
    }

    fn get_by(self, fd: &VmFd) -> Result<()> {
        let before = rdtsc_ordered();
        let clock = get_vm_clock_guest(fd).context("KVM_GET_VM_CLOCK_GUEST")?;
        let which = self.states.which(&clock, (before, rdtsc_ordered()))?;
        self.tally.gets[which].add();
        Ok(())
    }

    /// KVM_GET_CLOCK_GUEST, of every vCPU in turn.
    pub(crate) fn get_of_vcpus(self) -> Result<()> {
        for (id, vcpu) in (0..).zip(self.vcpus) {
            let record = get_clock_guest(vcpu).context("KVM_GET_CLOCK_GUEST")?;
            let which = self.states.which_record(record, id)?;
            self.tally.vcpu_gets[which].add();
        }
        self.stop.pause();
        Ok(())
    }

    /// What the guest read, and the record in its page.
    pub(crate) fn watch(self) -> Result<()> {
        for (id, vcpu) in (0..).zip(self.vm.vcpus()) {
            let view = self.vm.view(vcpu.index());
            let (samples, page) = (view.ring(), view.pvclock());
            let after = rdtsc_ordered();
            self.states.which_record(without_version(page), id)?;
            for sample in &samples {
                let which = self.states.which_sample(sample, id, after)?;
                self.tally.readings[which].add();
            }
        }
        sleep(POLL);
        Ok(())
    }
}

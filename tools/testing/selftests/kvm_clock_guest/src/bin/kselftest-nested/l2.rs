// SPDX-License-Identifier: GPL-2.0-only

//! A VM whose vCPUs run L2, and what the two TSCs of each must be.

use crate::{
    guest::{code, l2_entry, Nested},
    svm::{self, MSR_VM_HSAVE_PA},
};
use anyhow::{bail, ensure, Context, Result};
use clockguest::host::rdtsc_ordered;
use kvm_bindings::KVM_STATE_NESTED_GUEST_MODE;
use kvm_clock::VmClock;
use kvm_clock_guest_selftests::{
    ktap::note,
    machine::{copy_vcpu, Machine},
};
use kvm_ioctls::{Kvm, KvmNestedStateBuffer};
use pvclock::tsc::{is_ahead, TscTransform};
use std::{
    thread::sleep,
    time::{Duration, Instant},
};

/// How long the guest may take for anything.
const PATIENCE: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_micros(100);
/// Readings of L2 that are compared, before and after L1 had its turn.
const READINGS: usize = 10;

/// The VM.
pub(crate) struct Running {
    pub(crate) machine: Machine,
    l2_offsets: Vec<u64>,
}

impl Running {
    /// As many vCPUs as `l2_offsets` has entries, all in L2, running.
    pub(crate) fn new(kvm: &Kvm, l2_offsets: &[u64]) -> Result<Self> {
        // CAST: a few.
        let machine = Machine::new(kvm, l2_offsets.len() as u32, code())?;
        for (vcpu, &tsc_offset) in l2_offsets.iter().enumerate() {
            svm::prepare(&machine, vcpu, l2_entry(), tsc_offset)?;
            let nested = Nested {
                machine: &machine,
                vcpu,
            };
            nested.prepare(svm::vmcb(vcpu));
        }
        machine.run()?;
        let running = Self {
            machine,
            l2_offsets: l2_offsets.to_vec(),
        };
        for nested in running.vcpus() {
            running.wait_until("read L2's TSC", || nested.l2_count() > 0)?;
        }
        Ok(running)
    }

    /// The same guest, which is stopped, in another VM.
    pub(crate) fn into_new_vm(self, kvm: &Kvm) -> Result<Self> {
        // CAST: a few.
        let machine = Machine::new(kvm, self.l2_offsets.len() as u32, &[])?;
        machine.memory().write(0, &self.machine.memory().to_vec());
        for (from, to) in self.machine.vcpus().iter().zip(machine.vcpus()) {
            let (from, to) = (from.fd(), to.fd());
            copy_vcpu(&from, &to, &[MSR_VM_HSAVE_PA])?;
            let mut state = KvmNestedStateBuffer::empty();
            from.nested_state(&mut state)
                .context("KVM_GET_NESTED_STATE")?;
            to.set_nested_state(&state)
                .context("KVM_SET_NESTED_STATE")?;
        }
        Ok(Self { machine, ..self })
    }

    fn vcpus(&self) -> impl Iterator<Item = Nested<'_>> {
        (0..self.l2_offsets.len()).map(|vcpu| Nested {
            machine: &self.machine,
            vcpu,
        })
    }

    /// Stops all vCPUs inside L2, and returns the clocks then.
    pub(crate) fn stop_in_l2(&self) -> Result<VmClock> {
        self.machine.stop()?;
        self.ensure_in_l2()?;
        self.machine.clock()
    }

    /// Fails unless all vCPUs, which are stopped, are in L2: L1 is there for some instructions
    /// only.
    pub(crate) fn ensure_in_l2(&self) -> Result<()> {
        for vcpu in self.machine.vcpus() {
            let mut state = KvmNestedStateBuffer::empty();
            vcpu.fd()
                .nested_state(&mut state)
                .context("KVM_GET_NESTED_STATE")?;
            ensure!(
                u32::from(state.flags) & KVM_STATE_NESTED_GUEST_MODE != 0,
                "vCPU {} is not in L2: flags of its nested state {:#x}",
                vcpu.index(),
                state.flags
            );
        }
        Ok(())
    }

    /// L1's TSC offset of every vCPU, ticks.
    pub(crate) fn l1_offsets(&self) -> Result<Vec<u64>> {
        self.vcpus()
            .map(|nested| Ok(self.machine.transform(nested.vcpu)?.offset))
            .collect()
    }

    /// Lets the stopped vCPUs go on in L2, pass through L1, and go on in L2; fails unless both TSCs
    /// are what they should be all the time, and L2's never stepped back.
    pub(crate) fn ensure_tscs(&self) -> Result<()> {
        let transforms: Vec<_> = self
            .vcpus()
            .map(|nested| self.machine.transform(nested.vcpu))
            .collect::<Result<_>>()?;
        self.machine.run()?;
        for (nested, l1) in self.vcpus().zip(transforms) {
            let l2 = TscTransform {
                offset: l1.offset.wrapping_add(self.l2_offsets[nested.vcpu]),
                ..l1
            };
            self.ensure_l2(&nested, l2)
                .context("before L1 had its turn")?;
            self.ensure_l1(&nested, l1)?;
            self.ensure_l2(&nested, l2)
                .context("after L1 had its turn")?;
        }
        self.machine.stop()?;
        for nested in self.vcpus() {
            let steps = nested.l2_backwards();
            ensure!(
                steps == 0,
                "L2's TSC stepped back {steps} times on vCPU {}",
                nested.vcpu
            );
        }
        Ok(())
    }

    fn ensure_l2(&self, nested: &Nested<'_>, l2: TscTransform) -> Result<()> {
        // An error of L2's offset is in every reading, hence within all of the bounds.
        let (mut least, mut most) = (i64::MIN, i64::MAX);
        for _ in 0..READINGS {
            let before = l2.guest_tsc(rdtsc_ordered());
            // The next reading may have been begun before that; the one after it was not.
            let fresh = nested.l2_count() + 2;
            self.wait_until("read L2's TSC", || nested.l2_count() >= fresh)?;
            let tsc = nested.l2_tsc().context("no reading of L2")?;
            let after = l2.guest_tsc(rdtsc_ordered());
            ensure_between("L2", nested.vcpu, before, tsc, after)?;
            // CAST: the signed differences of values mod 2^64.
            least = least.max(tsc.wrapping_sub(after) as i64);
            most = most.min(tsc.wrapping_sub(before) as i64);
        }
        note(&format!(
            "vCPU {}: by {READINGS} readings, L2's TSC is {least} to {most} ticks off",
            nested.vcpu
        ));
        Ok(())
    }

    fn ensure_l1(&self, nested: &Nested<'_>, l1: TscTransform) -> Result<()> {
        let before = l1.guest_tsc(rdtsc_ordered());
        let (entries, _) = nested.l1_entry();
        nested.call_l1();
        self.wait_until("call L1", || nested.l1_entry().0 > entries)?;
        let (_, tsc) = nested.l1_entry();
        let after = l1.guest_tsc(rdtsc_ordered());
        ensure_between("L1", nested.vcpu, before, tsc, after)
    }

    fn wait_until(&self, what: &str, done: impl Fn() -> bool) -> Result<()> {
        let start = Instant::now();
        while !done() {
            self.machine.check()?;
            if start.elapsed() > PATIENCE {
                bail!("the guest did not {what} within {PATIENCE:?}");
            }
            sleep(POLL);
        }
        Ok(())
    }
}

fn ensure_between(who: &str, vcpu: usize, before: u64, tsc: u64, after: u64) -> Result<()> {
    ensure!(
        !is_ahead(before, tsc) && !is_ahead(tsc, after),
        "{who} of vCPU {vcpu} read {tsc:#x}, its TSC was {before:#x} to {after:#x} meanwhile"
    );
    Ok(())
}

// SPDX-License-Identifier: GPL-2.0-only

//! A VM whose vCPUs run L2, and the expected TSCs of L1 and L2.

use crate::{
    guest::{code, l2_entry, Nested},
    svm::{self, MSR_VM_HSAVE_PA},
};
use clockguest::vmm::{Guest, VmBuilder};
use kvm_bindings::KVM_STATE_NESTED_GUEST_MODE;
use kvm_clock_guest_selftests::{
    copy::{into_new_vm, nested_state, set_nested_state},
    prelude::*,
    wait::wait_for_guest,
};

/// How long the guest may take for anything.
const PATIENCE: Duration = Duration::from_secs(20);
/// Readings of L2 that are compared, before and after L1 runs.
const READINGS: usize = 10;

/// The VM.
pub(crate) struct Running {
    pub(crate) vm: Vm,
    l2_offsets: Vec<u64>,
}

impl Running {
    /// As many vCPUs as `l2_offsets` has entries, all in L2, running.
    pub(crate) fn new(kvm: &Kvm, l2_offsets: &[u64]) -> Result<Self> {
        // CAST: a few.
        let vm = VmBuilder::new(kvm, l2_offsets.len() as u32)
            .guest(Guest::Code(code()))
            .build()?;
        for (vcpu, &tsc_offset) in l2_offsets.iter().enumerate() {
            svm::prepare(&vm, vcpu, l2_entry(), tsc_offset)?;
            Nested { vm: &vm, vcpu }.prepare(svm::vmcb(vcpu));
        }
        vm.run()?;
        let running = Self {
            vm,
            l2_offsets: l2_offsets.to_vec(),
        };
        for nested in running.vcpus() {
            running.wait_until("reads L2's TSC", || nested.l2_count() > 0)?;
        }
        Ok(running)
    }

    /// The same guest, which is stopped, in another VM.
    pub(crate) fn into_new_vm(self, kvm: &Kvm) -> Result<Self> {
        let vm = into_new_vm(kvm, &self.vm, &[MSR_VM_HSAVE_PA])?;
        for vcpu in 0..self.l2_offsets.len() {
            set_nested_state(&vm, vcpu, &nested_state(&self.vm, vcpu)?)?;
        }
        Ok(Self { vm, ..self })
    }

    fn vcpus(&self) -> impl Iterator<Item = Nested<'_>> {
        (0..self.l2_offsets.len()).map(|vcpu| Nested { vm: &self.vm, vcpu })
    }

    /// Stops all vCPUs inside L2, and returns the clocks then.
    pub(crate) fn stop_in_l2(&self) -> Result<VmClock> {
        self.vm.stop()?;
        self.ensure_in_l2()?;
        get(&self.vm)
    }

    /// Fails unless all stopped vCPUs are in L2: L1 executes only a few instructions.
    pub(crate) fn ensure_in_l2(&self) -> Result<()> {
        for vcpu in 0..self.l2_offsets.len() {
            let flags = u32::from(nested_state(&self.vm, vcpu)?.flags);
            ensure!(
                flags & KVM_STATE_NESTED_GUEST_MODE != 0,
                "vCPU {vcpu} is not in L2: flags of its nested state {flags:#x}"
            );
        }
        Ok(())
    }

    /// L1's TSC offset of every vCPU.
    pub(crate) fn l1_offsets(&self) -> Result<Vec<TscOffset>> {
        Ok(self.vm.tsc_offsets()?)
    }

    /// Lets the stopped vCPUs continue in L2, pass through L1, and continue in L2; fails unless
    /// both TSCs are as expected all the time, and L2's never steps back.
    pub(crate) fn ensure_tscs(&self) -> Result<()> {
        let transforms: Vec<_> = self
            .vcpus()
            .map(|nested| vcpu_transform(&self.vm.vcpus()[nested.vcpu].fd()))
            .collect::<Result<_>>()?;
        self.vm.run()?;
        for (nested, l1) in self.vcpus().zip(transforms) {
            let l2 = TscTransform {
                offset: l1.offset.wrapping_add(self.l2_offsets[nested.vcpu]),
                ..l1
            };
            self.ensure_l2(&nested, l2).context("before L1 ran")?;
            self.ensure_l1(&nested, l1)?;
            self.ensure_l2(&nested, l2).context("after L1 ran")?;
        }
        self.vm.stop()?;
        for nested in self.vcpus() {
            let steps = nested.l2_backwards();
            ensure_eq!(steps, 0, "L2's steps back on vCPU {}", nested.vcpu);
        }
        Ok(())
    }

    fn ensure_l2(&self, nested: &Nested<'_>, l2: TscTransform) -> Result<()> {
        // An error of L2's offset is in every reading, hence within all bounds.
        let (mut least, mut most) = (i64::MIN, i64::MAX);
        for _ in 0..READINGS {
            let before = l2.guest_tsc(rdtsc_ordered());
            // The next reading may have begun before that.
            let fresh = nested.l2_count() + 2;
            self.wait_until("reads L2's TSC", || nested.l2_count() >= fresh)?;
            let tsc = nested.l2_tsc().context("no reading of L2")?;
            let after = l2.guest_tsc(rdtsc_ordered());
            ensure_between("L2", nested.vcpu, before, tsc, after)?;
            // CAST: the signed differences of values mod 2^64.
            least = least.max(tsc.since(after) as i64);
            most = most.min(tsc.since(before) as i64);
        }
        note!(
            "vCPU {}: L2's TSC is {least} to {most} ticks off, from {READINGS} readings",
            nested.vcpu
        );
        Ok(())
    }

    fn ensure_l1(&self, nested: &Nested<'_>, l1: TscTransform) -> Result<()> {
        let before = l1.guest_tsc(rdtsc_ordered());
        let (entries, _) = nested.l1_entry();
        nested.call_l1();
        self.wait_until("calls L1", || nested.l1_entry().0 > entries)?;
        let (_, tsc) = nested.l1_entry();
        let after = l1.guest_tsc(rdtsc_ordered());
        ensure_between("L1", nested.vcpu, before, tsc, after)
    }

    fn wait_until(&self, what: &str, done: impl Fn() -> bool) -> Result<()> {
        wait_for_guest(&self.vm, &format!("the guest {what}"), PATIENCE, done)
    }
}

fn ensure_between(
    level: &str,
    vcpu: usize,
    before: GuestTsc,
    tsc: GuestTsc,
    after: GuestTsc,
) -> Result<()> {
    ensure!(
        tsc.is_between(before, after),
        "{level} of vCPU {vcpu} read {tsc:#x}, its TSC was {before:#x} to {after:#x} meanwhile"
    );
    Ok(())
}

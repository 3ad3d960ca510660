// SPDX-License-Identifier: GPL-2.0-only

//! Saves and restores a guest: the parts of its state, and the order in which to restore them.

use crate::vm::{Reading, Vm, MEMORY, MSR_IA32_TSC_DEADLINE, MSR_KVM_SYSTEM_TIME_NEW};
use anyhow::{ensure, Context, Result};
use kvm_bindings::{kvm_lapic_state, kvm_msr_entry, kvm_regs, kvm_sregs, Msrs};
use kvm_clock::{HostId, Outcome, Policy, SavedClocks, Vcpu};
use kvm_ioctls::VcpuFd;
use serde::{Deserialize, Serialize};
use std::sync::atomic::Ordering;

/// MSR_IA32_TSC_ADJUST and kvmclock's MSR. Other guests need all of KVM_GET_MSR_INDEX_LIST, without
/// MSR_IA32_TSC_DEADLINE, which follows the clocks, and MSR_IA32_TSC, which belongs to the clocks.
const MSRS: &[u32] = &[0x3b, MSR_KVM_SYSTEM_TIME_NEW];

#[derive(Serialize, Deserialize)]
pub(crate) struct Snapshot {
    pub(crate) clocks: SavedClocks,
    memory: Vec<u64>,
    vcpus: Vec<VcpuState>,
    /// The guest's last readings, to compare with.
    pub(crate) readings: Vec<Reading>,
}

/// All that this sample's guest has. Other guests have more: CPUID, which this VMM does not save
/// but makes anew, as if every host were alike; FPU, XCRs, debug registers, pending events, halted
/// vCPUs; and, of the VM, interrupt controllers, PIT and devices.
#[derive(Serialize, Deserialize)]
struct VcpuState {
    regs: kvm_regs,
    sregs: kvm_sregs,
    msrs: Vec<kvm_msr_entry>,
    tsc_deadline: Vec<kvm_msr_entry>,
    lapic: kvm_lapic_state,
}

impl VcpuState {
    fn save(vcpu: &VcpuFd) -> Result<Self> {
        Ok(Self {
            regs: vcpu.get_regs()?,
            sregs: vcpu.get_sregs()?,
            msrs: get_msrs(vcpu, MSRS)?,
            // Before the LAPIC, so that a timer that fires now is saved at least once.
            tsc_deadline: get_msrs(vcpu, &[MSR_IA32_TSC_DEADLINE])?,
            lapic: vcpu.get_lapic()?,
        })
    }
}

impl Snapshot {
    /// Saves a VM whose vCPUs are all stopped.
    pub(crate) fn save(vm: &Vm, readings: Vec<Reading>) -> Result<Self> {
        let words = MEMORY.0.iter().map(|word| word.load(Ordering::Relaxed));
        Ok(Self {
            // All values are as of one host TSC, so it does not matter how long after the stop.
            clocks: SavedClocks::save(&vm.fd, &Vcpu::numbered(&vm.vcpus), &HostId::read()?)?,
            memory: words.collect(),
            vcpus: vm
                .vcpus
                .iter()
                .map(VcpuState::save)
                .collect::<Result<_>>()?,
            readings,
        })
    }

    /// Creates a VM that is ready to run.
    pub(crate) fn restore(&self) -> Result<(Vm, Outcome)> {
        // 1. Create a VM with the guest's TSC rate, and vCPUs with the saved IDs.
        let vm = Vm::new(Some(&self.clocks))?;
        // 2. Restore memory, registers and MSRs. Memory first: an MSR makes KVM write records to
        // it.
        let words = MEMORY.0.iter().zip(&self.memory);
        words.for_each(|(word, &saved)| word.store(saved, Ordering::Relaxed));
        for (vcpu, saved) in vm.vcpus.iter().zip(&self.vcpus) {
            vcpu.set_sregs(&saved.sregs)?;
            vcpu.set_regs(&saved.regs)?;
            set_msrs(vcpu, &saved.msrs)?;
        }
        // 3. Restore the clocks, after all calls that change them.
        let vcpus = Vcpu::numbered(&vm.vcpus);
        let outcome = self.clocks.restore(&vm.fd, &vcpus, &Policy::default())?;
        for (vcpu, saved) in vm.vcpus.iter().zip(&self.vcpus) {
            // 4. Restore timers, which KVM compares with the guest's TSC. The LAPIC first: KVM
            //    ignores a deadline while its timer is not in TSC-deadline mode.
            vcpu.set_lapic(&saved.lapic)?;
            set_msrs(vcpu, &saved.tsc_deadline)?;
            // 5. Keep the guest's watchdogs from reporting the pause as a lockup.
            vcpu.kvmclock_ctrl().context("KVM_KVMCLOCK_CTRL")?;
        }
        Ok((vm, outcome))
    }
}

fn get_msrs(vcpu: &VcpuFd, indices: &[u32]) -> Result<Vec<kvm_msr_entry>> {
    let mut msrs = Msrs::new(indices.len())?;
    let entries = msrs.as_mut_slice().iter_mut().zip(indices);
    entries.for_each(|(msr, &index)| msr.index = index);
    ensure!(
        vcpu.get_msrs(&mut msrs)? == indices.len(),
        "KVM_GET_MSRS of {indices:x?}"
    );
    Ok(msrs.as_slice().to_vec())
}

fn set_msrs(vcpu: &VcpuFd, msrs: &[kvm_msr_entry]) -> Result<()> {
    let set = vcpu.set_msrs(&Msrs::from_entries(msrs)?)?;
    ensure!(set == msrs.len(), "KVM_SET_MSRS of {msrs:x?}");
    Ok(())
}

// SPDX-License-Identifier: GPL-2.0-only

//! Saves and restores a guest: the parts of its state, and the order in which to restore them.

use crate::vm::{Reading, Vm, MEMORY, MSR_IA32_TSC_DEADLINE, MSR_KVM_SYSTEM_TIME_NEW};
use anyhow::{ensure, Context, Result};
use kvm_bindings::{kvm_lapic_state, kvm_msr_entry, kvm_regs, kvm_sregs, Msrs};
use kvm_clock::abi::{FLAG_FALLBACK, MODE_ADVANCE, MODE_EXACT};
use kvm_clock::{get_vm_clock_guest_or_fall_back, set_vm_clock_guest, VmClock};
use kvm_ioctls::VcpuFd;
use serde::{Deserialize, Serialize};
use std::{fs, sync::atomic::Ordering};

/// MSR_IA32_TSC_ADJUST and kvmclock's MSR. Other guests need all of KVM_GET_MSR_INDEX_LIST, without
/// MSR_IA32_TSC_DEADLINE, which follows the clocks, and MSR_IA32_TSC, which belongs to the clocks.
const MSRS: &[u32] = &[0x3b, MSR_KVM_SYSTEM_TIME_NEW];

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

#[derive(Serialize, Deserialize)]
pub(crate) struct Snapshot {
    /// ID of the host's boot that saved it.
    boot_id: String,
    pub(crate) tsc_khz: u32,
    clock: VmClock,
    memory: Vec<u64>,
    vcpus: Vec<Vcpu>,
    /// The guest's last readings, to compare with.
    pub(crate) readings: Vec<Reading>,
}

/// Other guests have more state, e.g. FPU, pending events, halted vCPUs: restore it with the
/// registers.
#[derive(Serialize, Deserialize)]
struct Vcpu {
    regs: kvm_regs,
    sregs: kvm_sregs,
    msrs: Vec<kvm_msr_entry>,
    tsc_deadline: Vec<kvm_msr_entry>,
    lapic: kvm_lapic_state,
}

impl Vcpu {
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
            boot_id: fs::read_to_string(BOOT_ID)?,
            tsc_khz: vm.vcpus[0].get_tsc_khz()?,
            // One call for all vCPUs. All values are as of one host TSC, which they include, so it
            // does not matter how long after the stop this is called. If the host TSC is not
            // stable, it reports the precision of the values.
            clock: get_vm_clock_guest_or_fall_back(&vm.fd).context("KVM_GET_VM_CLOCK_GUEST")?,
            memory: words.collect(),
            vcpus: vm.vcpus.iter().map(Vcpu::save).collect::<Result<_>>()?,
            readings,
        })
    }

    /// The precision of its clocks, ns; 0 if they are exact.
    pub(crate) fn precision_ns(&self) -> u32 {
        self.clock.header.precision_ns
    }

    /// Creates a VM that is ready to run; also returns the precision of its clocks, ns.
    pub(crate) fn restore(&self) -> Result<(Vm, u32)> {
        // 1. Create a VM with the guest's TSC rate, and vCPUs with the saved IDs.
        let vm = Vm::new(Some(self.tsc_khz))?;

        // 2. Restore memory, registers and MSRs. Memory first: an MSR makes KVM write records to
        //    it.
        let words = MEMORY.0.iter().zip(&self.memory);
        words.for_each(|(word, &saved)| word.store(saved, Ordering::Relaxed));
        for (vcpu, saved) in vm.vcpus.iter().zip(&self.vcpus) {
            vcpu.set_sregs(&saved.sregs)?;
            vcpu.set_regs(&saved.regs)?;
            set_msrs(vcpu, &saved.msrs)?;
        }

        // 3. Restore the clocks, after all calls that change them: KVM_SET_TSC_KHZ, MSR_IA32_TSC,
        //    KVM_VCPU_TSC_OFFSET, KVM_SET_CLOCK. If the host's TSC has counted since the save, mode
        //    exact restores offsets and record bit for bit. On another host, mode advance continues
        //    the TSC by the elapsed time of the two hosts' clocks. (A TSC also counts over a kexec,
        //    which changes the boot ID: a VMM may use mode exact if it knows that.)
        let same_boot = fs::read_to_string(BOOT_ID)? == self.boot_id;
        let mut clock = self.clock.clone();
        clock.header.mode = [MODE_ADVANCE, MODE_EXACT][usize::from(same_boot)];
        clock.header.flags = FLAG_FALLBACK;
        println!("same boot of the host: {same_boot}");
        set_vm_clock_guest(&vm.fd, &mut clock).context("KVM_SET_VM_CLOCK_GUEST")?;

        for (vcpu, saved) in vm.vcpus.iter().zip(&self.vcpus) {
            // 4. Restore timers, which KVM compares with the guest's TSC. The LAPIC first: KVM
            //    ignores a deadline while its timer is not in TSC-deadline mode.
            vcpu.set_lapic(&saved.lapic)?;
            set_msrs(vcpu, &saved.tsc_deadline)?;
            // 5. Keep the guest's watchdogs from reporting the pause as a lockup.
            vcpu.kvmclock_ctrl().context("KVM_KVMCLOCK_CTRL")?;
        }
        Ok((vm, clock.header.precision_ns))
    }
}

fn get_msrs(vcpu: &VcpuFd, indices: &[u32]) -> Result<Vec<kvm_msr_entry>> {
    let mut msrs = Msrs::new(indices.len())?;
    let entries = msrs.as_mut_slice().iter_mut().zip(indices);
    entries.for_each(|(msr, &index)| msr.index = index);
    let got = vcpu.get_msrs(&mut msrs)?;
    ensure!(got == indices.len(), "KVM_GET_MSRS of {indices:x?}");
    Ok(msrs.as_slice().to_vec())
}

fn set_msrs(vcpu: &VcpuFd, msrs: &[kvm_msr_entry]) -> Result<()> {
    let set = vcpu.set_msrs(&Msrs::from_entries(msrs)?)?;
    ensure!(set == msrs.len(), "KVM_SET_MSRS of {msrs:x?}");
    Ok(())
}

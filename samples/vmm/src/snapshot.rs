// SPDX-License-Identifier: GPL-2.0-only

//! Save and restore: what belongs to a guest, and in which order it goes back.

use crate::vm::{Reading, Vm, MEMORY, MSR_IA32_TSC_DEADLINE, MSR_KVM_SYSTEM_TIME_NEW};
use anyhow::{ensure, Context, Result};
use kvm_bindings::{kvm_lapic_state, kvm_msr_entry, kvm_regs, kvm_sregs, Msrs};
use kvm_clock::abi::{FLAG_FALLBACK, MODE_ADVANCE, MODE_EXACT};
use kvm_clock::{get_vm_clock_guest_or_fall_back, set_vm_clock_guest, VmClock};
use kvm_ioctls::VcpuFd;
use serde::{Deserialize, Serialize};
use std::{fs, sync::atomic::Ordering};

/// MSR_IA32_TSC_ADJUST and kvmclock's. For other guests it is all of KVM_GET_MSR_INDEX_LIST, but
/// neither the deadline, which has to wait for the clocks, nor MSR_IA32_TSC: the clocks have it.
const MSRS: &[u32] = &[0x3b, MSR_KVM_SYSTEM_TIME_NEW];

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

#[derive(Serialize, Deserialize)]
pub(crate) struct Snapshot {
    /// Which boot of which host it is from.
    boot_id: String,
    pub(crate) tsc_khz: u32,
    clock: VmClock,
    memory: Vec<u64>,
    vcpus: Vec<Vcpu>,
    /// What the guest read last, to compare with.
    pub(crate) readings: Vec<Reading>,
}

/// Other guests have more, e.g. an FPU, pending events, a halted vCPU: restored with the registers.
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
            // Before the LAPIC: a timer that fires now is then in both, rather than in none.
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
            // Once, for all vCPUs. It is true at one host TSC, which is in it: how long after they
            // stopped this is called does not matter. A host that does not keep its time by a stable
            // TSC has no clocks of one instant: KVM reports how good what it has is.
            clock: get_vm_clock_guest_or_fall_back(&vm.fd).context("KVM_GET_VM_CLOCK_GUEST")?,
            memory: words.collect(),
            vcpus: vm.vcpus.iter().map(Vcpu::save).collect::<Result<_>>()?,
            readings,
        })
    }

    /// What its clocks are precise to, ns; 0 if they are exact.
    pub(crate) fn precision_ns(&self) -> u32 {
        self.clock.header.precision_ns
    }

    /// Makes a VM of it, about to run; and says what its clocks are precise to, ns.
    pub(crate) fn restore(&self) -> Result<(Vm, u32)> {
        // 1. A VM of the TSC rate that the guest knows, and vCPUs with the ids they had.
        let vm = Vm::new(Some(self.tsc_khz))?;

        // 2. Memory, registers and MSRs. Memory before the MSR that has KVM write records there.
        let words = MEMORY.0.iter().zip(&self.memory);
        words.for_each(|(word, &saved)| word.store(saved, Ordering::Relaxed));
        for (vcpu, saved) in vm.vcpus.iter().zip(&self.vcpus) {
            vcpu.set_sregs(&saved.sregs)?;
            vcpu.set_regs(&saved.regs)?;
            set_msrs(vcpu, &saved.msrs)?;
        }

        // 3. The clocks, after all that would move them: KVM_SET_TSC_KHZ, MSR_IA32_TSC,
        //    KVM_VCPU_TSC_OFFSET, KVM_SET_CLOCK. If this host's TSC has counted on since, the
        //    guest's offsets and record are right to the bit. On another host, its TSC has to go on
        //    from where it was, by the time that passed between the two hosts' clocks. (A TSC counts
        //    on over a kexec too, which makes another boot id: that is for the VMM to know.)
        let same_boot = fs::read_to_string(BOOT_ID)? == self.boot_id;
        let mut clock = self.clock.clone();
        clock.header.mode = [MODE_ADVANCE, MODE_EXACT][usize::from(same_boot)];
        clock.header.flags = FLAG_FALLBACK;
        println!("same boot of the host: {same_boot}");
        set_vm_clock_guest(&vm.fd, &mut clock).context("KVM_SET_VM_CLOCK_GUEST")?;

        for (vcpu, saved) in vm.vcpus.iter().zip(&self.vcpus) {
            // 4. Points in the guest's time, which KVM judges by its TSC. The LAPIC first: KVM ignores
            //    a deadline while its timer is not in TSC-deadline mode.
            vcpu.set_lapic(&saved.lapic)?;
            set_msrs(vcpu, &saved.tsc_deadline)?;
            // 5. The guest's watchdogs are not to take the pause for a lockup.
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

// SPDX-License-Identifier: GPL-2.0-only

//! A VM whose vCPUs have a local APIC, for guest code of a program's own: a page of
//! position-independent 64-bit instructions.
//!
//! ```text
//! 0x1000  PML4, 0x2000 PDPT, 0x3000 PD: one 2 MiB page at 0
//! 0x4000  code, at whose first byte every vCPU starts
//! 0x5000  GDT, 0x6000 IDT
//! 0x8000  per vCPU: a page whose address it finds in RDI, with its stack at the end
//! 0x100000 up to 0x200000: free
//! ```

use crate::fixture::vcpu_transform;
use anyhow::{Context, Result};
use clockguest::{
    guest::layout::{CODE, PAGE_SIZE, PD, PDPT, PML4},
    vmm::{
        memory::GuestMemory,
        vcpu::Vcpu,
        vm::{get_msr, set_msr},
    },
};
use kvm_bindings::{
    kvm_dtable, kvm_enable_cap, kvm_mp_state, kvm_regs, kvm_segment, kvm_userspace_memory_region,
    CpuId, KVM_CAP_SPLIT_IRQCHIP, KVM_MAX_CPUID_ENTRIES, KVM_MP_STATE_RUNNABLE,
};
use kvm_clock::{get_vm_clock_guest, set_vm_clock_guest, VmClock};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use pvclock::tsc::TscTransform;
use std::sync::atomic::{AtomicU64, Ordering};

const GDT: u64 = 0x5000;
const IDT: u64 = 0x6000;
const AREAS: u64 = 0x8000;
/// Guest physical address of 1 MiB that the guest code's own structures may be in.
pub const FREE: u64 = 0x10_0000;
const MEMORY: u64 = 2 << 20;
/// The three pages above 3 GiB that VMX without unrestricted guest would need.
const TSS_ADDRESS: usize = 0xfffb_d000;

// Page table entries: present and writable; and the page is a large one.
const PTE_PRESENT_WRITE: u64 = 0x3;
const PTE_LARGE: u64 = 0x80;

// Long mode: protection, numeric errors, paging; PAE; long mode enabled and active.
/// CR0 that vCPUs start with.
pub const CR0_PE_MP_ET_NE_PG: u64 = 0x8000_0033;
/// CR4 that vCPUs start with.
pub const CR4_PAE: u64 = 0x20;
/// EFER that vCPUs start with.
pub const EFER_LME_LMA: u64 = 0x500;
/// `IA32_APIC_BASE`: the APIC is enabled, and accessed by MSRs.
const APIC_BASE_X2APIC: u64 = 0xc00;

/// Selects 64-bit code: the GDT's second entry.
pub const CODE_SELECTOR: u16 = 8;
const CODE_DESCRIPTOR: u64 = 0x00af_9b00_0000_ffff;
/// In an IDT entry: present, an interrupt gate.
const INTERRUPT_GATE: u64 = 0x8e00;
const IDT_ENTRY_SIZE: u64 = 16;
const VECTORS: u64 = 256;

const CPUID_FEATURES: u32 = 1;
const CPUID_ECX_TSC_DEADLINE: u32 = 1 << 24;

/// The VM; its vCPUs are stopped at first.
// Field order is drop order: threads leave KVM_RUN before the VM goes, and the VM before its
// memory.
#[derive(Debug)]
pub struct Machine {
    vcpus: Vec<Vcpu>,
    fd: VmFd,
    memory: GuestMemory,
}

impl Machine {
    /// A VM of `nr_vcpus` vCPUs, ids from 0, about to execute `code`.
    ///
    /// # Errors
    ///
    /// Those of KVM.
    ///
    /// # Panics
    ///
    /// If `code` has more than a page.
    pub fn new(kvm: &Kvm, nr_vcpus: u32, code: &[u8]) -> Result<Self> {
        assert!(code.len() as u64 <= PAGE_SIZE, "{} bytes", code.len());
        let fd = kvm.create_vm().context("KVM_CREATE_VM")?;
        fd.set_tss_address(TSS_ADDRESS)
            .context("KVM_SET_TSS_ADDR")?;
        // The local APICs alone are KVM's: a kernel need not have the rest of the chips.
        fd.enable_cap(&kvm_enable_cap {
            cap: KVM_CAP_SPLIT_IRQCHIP,
            ..kvm_enable_cap::default()
        })
        .context("KVM_CAP_SPLIT_IRQCHIP")?;
        let memory = GuestMemory::new(MEMORY)?;
        let region = kvm_userspace_memory_region {
            memory_size: memory.size(),
            userspace_addr: memory.host_address(),
            ..kvm_userspace_memory_region::default()
        };
        // SAFETY: The region is the mapping of `memory`, which outlives the VM's descriptors.
        unsafe { fd.set_user_memory_region(region) }.context("KVM_SET_USER_MEMORY_REGION")?;

        let store = |gpa, value| memory.word(gpa).store(value, Ordering::Relaxed);
        store(PML4, PDPT | PTE_PRESENT_WRITE);
        store(PDPT, PD | PTE_PRESENT_WRITE);
        store(PD, PTE_LARGE | PTE_PRESENT_WRITE);
        store(GDT + u64::from(CODE_SELECTOR), CODE_DESCRIPTOR);
        memory.write(CODE, code);

        let cpuid = cpuid(kvm)?;
        let mut vcpus = Vec::new();
        for index in 0..nr_vcpus as usize {
            let vcpu = fd.create_vcpu(index as u64).context("KVM_CREATE_VCPU")?;
            vcpu.set_cpuid2(&cpuid).context("KVM_SET_CPUID2")?;
            enter_long_mode(&vcpu, index)?;
            vcpus.push(Vcpu::new(index, vcpu)?);
        }
        Ok(Self { vcpus, fd, memory })
    }

    /// The VM's descriptor.
    pub fn fd(&self) -> &VmFd {
        &self.fd
    }

    /// Its vCPUs, in order of id.
    pub fn vcpus(&self) -> &[Vcpu] {
        &self.vcpus
    }

    /// Guest memory.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// The word at `offset` of a vCPU's own page.
    pub fn area_word(&self, vcpu: usize, offset: usize) -> &AtomicU64 {
        self.memory.word(area(vcpu) + offset as u64)
    }

    /// Has interrupt `vector` served by the instruction at `offset` of the code.
    pub fn handle_interrupt(&self, vector: u8, offset: usize) {
        let handler = CODE + offset as u64;
        let low = handler & 0xffff | u64::from(CODE_SELECTOR) << 16 | INTERRUPT_GATE << 32;
        let gate = IDT + u64::from(vector) * IDT_ENTRY_SIZE;
        // The handler's address is below 2^16: its upper bits are 0.
        self.memory.word(gate).store(low, Ordering::Relaxed);
    }

    /// Lets all vCPUs run.
    ///
    /// # Errors
    ///
    /// If one left KVM_RUN by itself.
    pub fn run(&self) -> Result<()> {
        self.vcpus.iter().for_each(Vcpu::request_run);
        Ok(self.vcpus.iter().try_for_each(Vcpu::wait_running)?)
    }

    /// Stops all vCPUs; returns when all are outside KVM_RUN.
    ///
    /// # Errors
    ///
    /// If one had left KVM_RUN by itself.
    pub fn stop(&self) -> Result<()> {
        self.vcpus.iter().for_each(Vcpu::request_stop);
        Ok(self.vcpus.iter().try_for_each(Vcpu::wait_stopped)?)
    }

    /// Fails if a vCPU left KVM_RUN by itself.
    ///
    /// # Errors
    ///
    /// Says why it did.
    pub fn check(&self) -> Result<()> {
        Ok(self.vcpus.iter().try_for_each(Vcpu::check)?)
    }

    /// `KVM_GET_VM_CLOCK_GUEST`.
    ///
    /// # Errors
    ///
    /// Those of the ioctl.
    pub fn clock(&self) -> Result<VmClock> {
        get_vm_clock_guest(&self.fd).context("KVM_GET_VM_CLOCK_GUEST")
    }

    /// `KVM_SET_VM_CLOCK_GUEST` with `mode`.
    ///
    /// # Errors
    ///
    /// Those of the ioctl.
    pub fn set_clock(&self, clock: &mut VmClock, mode: u32) -> Result<()> {
        clock.header.mode = mode;
        set_vm_clock_guest(&self.fd, clock)
            .with_context(|| format!("KVM_SET_VM_CLOCK_GUEST, mode {mode}"))
    }

    /// The L1 TSC of a stopped vCPU as a function of the host's.
    ///
    /// # Errors
    ///
    /// Those of the ioctls.
    pub fn transform(&self, vcpu: usize) -> Result<TscTransform> {
        vcpu_transform(&self.vcpus[vcpu].fd())
    }
}

/// Makes a vCPU go on where another one, of a VM with the same memory, is: registers, local APIC,
/// and the `msrs`, whose meaning may depend on those. The vCPUs are stopped.
///
/// # Errors
///
/// Those of the ioctls.
pub fn copy_vcpu(from: &VcpuFd, to: &VcpuFd, msrs: &[u32]) -> Result<()> {
    to.set_sregs(&from.get_sregs().context("KVM_GET_SREGS")?)
        .context("KVM_SET_SREGS")?;
    to.set_regs(&from.get_regs().context("KVM_GET_REGS")?)
        .context("KVM_SET_REGS")?;
    to.set_lapic(&from.get_lapic().context("KVM_GET_LAPIC")?)
        .context("KVM_SET_LAPIC")?;
    to.set_mp_state(from.get_mp_state().context("KVM_GET_MP_STATE")?)
        .context("KVM_SET_MP_STATE")?;
    for &index in msrs {
        set_msr(to, index, get_msr(from, index)?)?;
    }
    Ok(())
}

/// Guest physical address of a vCPU's own page.
pub fn area(vcpu: usize) -> u64 {
    AREAS + vcpu as u64 * PAGE_SIZE
}

/// All that KVM supports, and its TSC-deadline timer, which it always does.
fn cpuid(kvm: &Kvm) -> Result<CpuId> {
    let mut cpuid = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .context("KVM_GET_SUPPORTED_CPUID")?;
    for entry in cpuid.as_mut_slice() {
        if entry.function == CPUID_FEATURES {
            entry.ecx |= CPUID_ECX_TSC_DEADLINE;
        }
    }
    Ok(cpuid)
}

fn enter_long_mode(fd: &VcpuFd, index: usize) -> Result<()> {
    let segment = |selector: u16, type_: u8, long: u8| kvm_segment {
        selector,
        limit: u32::MAX,
        type_,
        present: 1,
        db: 1 - long,
        s: 1,
        l: long,
        g: 1,
        ..kvm_segment::default()
    };
    // Execute/read/accessed, and read/write/accessed.
    let (code, data) = (segment(CODE_SELECTOR, 11, 1), segment(0, 3, 0));
    let table = |base: u64, bytes: u64| kvm_dtable {
        base,
        // CAST: less than a page.
        limit: (bytes - 1) as u16,
        ..kvm_dtable::default()
    };

    let mut sregs = fd.get_sregs().context("KVM_GET_SREGS")?;
    sregs.cs = code;
    (sregs.ds, sregs.es, sregs.fs) = (data, data, data);
    (sregs.gs, sregs.ss) = (data, data);
    sregs.gdt = table(GDT, u64::from(CODE_SELECTOR) + 8);
    sregs.idt = table(IDT, VECTORS * IDT_ENTRY_SIZE);
    sregs.cr0 = CR0_PE_MP_ET_NE_PG;
    sregs.cr3 = PML4;
    sregs.cr4 = CR4_PAE;
    sregs.efer = EFER_LME_LMA;
    sregs.apic_base |= APIC_BASE_X2APIC;
    fd.set_sregs(&sregs).context("KVM_SET_SREGS")?;

    let regs = kvm_regs {
        rip: CODE,
        rsp: area(index) + PAGE_SIZE,
        rdi: area(index),
        // Bit 1 is always set.
        rflags: 2,
        ..kvm_regs::default()
    };
    fd.set_regs(&regs).context("KVM_SET_REGS")?;

    // All but the first would wait for a SIPI.
    fd.set_mp_state(kvm_mp_state {
        mp_state: KVM_MP_STATE_RUNNABLE,
    })
    .context("KVM_SET_MP_STATE")
}

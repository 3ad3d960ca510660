// SPDX-License-Identifier: GPL-2.0-only

//! A VM and its guest: a page of code (`guest.S`), and a page per vCPU for its clock readings.

use anyhow::{ensure, Context, Result};
use kvm_bindings::{kvm_mp_state, kvm_regs, kvm_userspace_memory_region, KVM_MAX_CPUID_ENTRIES};
use kvm_clock::{abi::ClockGuest, bits, counter::GuestTsc, SavedClocks};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicU64, Ordering};
use std::{arch::global_asm, ops::Range, time::SystemTime};

pub(crate) const MSR_KVM_SYSTEM_TIME_NEW: u32 = 0x4b56_4d01;
pub(crate) const MSR_IA32_TSC_DEADLINE: u32 = 0x6e0;
const VCPUS: usize = 2;
const PAGE_WORDS: usize = 4096 / 8;

/// Guest-physical memory from address 0. The guest may change it at any time, hence the atomics.
#[repr(align(4096))]
pub(crate) struct Memory(pub(crate) [AtomicU64; PAGE_WORDS * (1 + VCPUS)]);
pub(crate) static MEMORY: Memory = Memory([const { AtomicU64::new(0) }; PAGE_WORDS * (1 + VCPUS)]);

global_asm!(include_str!("guest.S"));
extern "C" {
    #[link_name = "vmm_sample_guest"]
    static CODE: [u64; PAGE_WORDS];
}

/// A vCPU's reading of its clocks and its timer: the deadline, and whether it has fired.
#[derive(Serialize, Deserialize)]
pub(crate) struct Reading {
    pub(crate) tsc: GuestTsc,
    #[serde(with = "bits")]
    pub(crate) record: ClockGuest,
    pub(crate) deadline: GuestTsc,
    pub(crate) fired: bool,
    /// The time of the reading by the host's wall clock.
    pub(crate) when: Range<SystemTime>,
}

pub(crate) struct Vm {
    pub(crate) fd: VmFd,
    pub(crate) vcpus: Vec<VcpuFd>,
}

impl Vm {
    /// Creates a VM with vCPUs in reset state, for `clocks` if any.
    pub(crate) fn new(clocks: Option<&SavedClocks>) -> Result<Self> {
        let kvm = Kvm::new().context("/dev/kvm")?;
        let fd = kvm.create_vm()?;
        let region = kvm_userspace_memory_region {
            memory_size: size_of_val(&MEMORY) as u64,
            userspace_addr: (&raw const MEMORY).addr() as u64,
            ..Default::default()
        };
        // SAFETY: The memory is static, and consists of atomics.
        unsafe { fd.set_user_memory_region(region) }?;
        // This gives vCPUs local APICs with a TSC-deadline timer.
        fd.create_irq_chip()?;
        // Before the VM has vCPUs, so that none starts with another TSC.
        clocks.map(|clocks| clocks.prepare(&fd)).transpose()?;
        let mut cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
        let mut leaves = cpuid.as_mut_slice().iter_mut();
        let leaf = leaves.find(|leaf| leaf.function == 1).context("CPUID")?;
        leaf.ecx |= 1 << 24; // The TSC-deadline timer, which KVM supports but may not list.
        let vcpus = (0..VCPUS as u64).map(|id| fd.create_vcpu(id));
        let vcpus: Vec<_> = vcpus.collect::<Result<_, _>>()?;
        for vcpu in &vcpus {
            vcpu.set_cpuid2(&cpuid)?;
            vcpu.set_mp_state(kvm_mp_state::default())?; // Runnable; by default only the first one is.
        }
        Ok(Self { fd, vcpus })
    }

    /// Loads the code, and the registers for its first instruction: 32-bit mode without paging.
    pub(crate) fn boot(&self) -> Result<()> {
        // SAFETY: guest.S defines a whole page at this symbol, which nobody writes.
        let code = unsafe { &CODE }.iter().zip(&MEMORY.0);
        code.for_each(|(&code, word)| word.store(code, Ordering::Relaxed));
        for (id, vcpu) in self.vcpus.iter().enumerate() {
            let mut sregs = vcpu.get_sregs()?;
            (sregs.cs.base, sregs.cs.selector, sregs.cs.db) = (0, 8, 1);
            sregs.cr0 |= 1;
            sregs.apic_base |= 0xc00; // The guest accesses its local APIC through MSRs.
            vcpu.set_sregs(&sregs)?;
            let mut regs = kvm_regs::default();
            (regs.rbx, regs.rflags) = (4096 * (1 + id as u64), 2); // EBX is its page.
            vcpu.set_regs(&regs)?;
        }
        Ok(())
    }

    /// Runs one vCPU after the other until it has read its clocks; all are stopped before and
    /// after.
    pub(crate) fn read_clocks(&mut self) -> Result<Vec<Reading>> {
        let read = |(page, vcpu): (&[AtomicU64], &mut VcpuFd)| {
            let entered = SystemTime::now();
            let exit = vcpu.run()?;
            ensure!(matches!(exit, VcpuExit::IoOut(0, _)), "{exit:?}");
            // KVM completes the OUT, which updates the registers, when KVM_RUN is entered again;
            // with this flag it then returns at once.
            vcpu.set_kvm_immediate_exit(1);
            let stopped = vcpu.run().is_err_and(|e| e.errno() == libc::EINTR);
            ensure!(stopped, "the vCPU does not stop");
            vcpu.set_kvm_immediate_exit(0);
            // The layout of guest.S.
            let word = |at: usize| page[at].load(Ordering::Relaxed);
            Ok(Reading {
                record: zerocopy::transmute!([4, 5, 6, 7].map(word)),
                tsc: GuestTsc(word(8)),
                deadline: GuestTsc(word(9)),
                fired: word(10) != 0,
                when: entered..SystemTime::now(),
            })
        };
        let pages = MEMORY.0.chunks(PAGE_WORDS).skip(1);
        pages.zip(&mut self.vcpus).map(read).collect()
    }
}

// SPDX-License-Identifier: GPL-2.0-only

//! Creates VMs.

use super::{
    code_guest,
    error::{Context, Error, Result},
    halt, long_mode,
    memory::GuestMemory,
    vm::Vm,
};
use crate::guest::layout;
use kvm_bindings::{
    kvm_enable_cap, kvm_userspace_memory_region, CpuId, KVM_CAP_SPLIT_IRQCHIP,
    KVM_MAX_CPUID_ENTRIES,
};
use kvm_clock::set_tsc_khz;
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use std::fs::File;

/// The three pages above 3 GiB that VMX without unrestricted guest needs.
const TSS_ADDRESS: usize = 0xfffb_d000;
/// Memory of a VM whose guest needs none.
const MIN_MEMORY: u64 = layout::PAGE_SIZE;

const CPUID_FEATURES: u32 = 1;
const CPUID_ECX_TSC_DEADLINE: u32 = 1 << 24;

/// What memory and vCPUs of a new VM contain.
#[derive(Clone, Copy, Debug)]
pub enum Guest<'a> {
    /// The built-in guest, which reads its clocks in a loop.
    Reader,
    /// Nothing yet, but room for a saved [`Reader`](Self::Reader): see [`Vm::load`].
    Empty,
    /// A page of the caller's code; vCPUs have local APICs with a TSC-deadline timer. See
    /// [`code_guest`].
    Code(&'a [u8]),
    /// vCPUs that enabled kvmclock and execute HLT in a loop. See [`halt`].
    Halting,
    /// vCPUs as KVM creates them, which cannot run.
    Bare,
}

/// A VM to be created.
#[derive(Clone, Copy, Debug)]
pub struct VmBuilder<'a> {
    kvm: &'a Kvm,
    nr_vcpus: u32,
    tsc_khz: Option<u32>,
    guest: Guest<'a>,
    memfd: Option<&'a File>,
}

/// A VM whose vCPUs have no threads.
// Field order is drop order: the VM goes before its memory.
#[derive(Debug)]
pub struct VmFds {
    /// The vCPUs, in order of id.
    pub vcpus: Vec<VcpuFd>,
    /// The VM.
    pub fd: VmFd,
    /// Guest memory.
    pub memory: GuestMemory,
    /// CPUID of the vCPUs.
    pub(super) cpuid: CpuId,
}

impl<'a> VmBuilder<'a> {
    /// A VM of the built-in guest with `nr_vcpus` vCPUs, ids from 0.
    pub fn new(kvm: &'a Kvm, nr_vcpus: u32) -> Self {
        Self {
            kvm,
            nr_vcpus,
            tsc_khz: None,
            guest: Guest::Reader,
            memfd: None,
        }
    }

    /// The rate of the guest's TSC, kHz; the host's by default.
    pub fn tsc_khz(self, khz: u32) -> Self {
        Self {
            tsc_khz: Some(khz),
            ..self
        }
    }

    /// Another guest.
    pub fn guest(self, guest: Guest<'a>) -> Self {
        Self { guest, ..self }
    }

    /// A [`Reader`](Guest::Reader)'s memory in `memfd`, which is as large as that needs.
    pub fn memfd(self, memfd: &'a File) -> Self {
        Self {
            memfd: Some(memfd),
            ..self
        }
    }

    /// Creates the VM and a thread per vCPU. The vCPUs are stopped.
    ///
    /// # Errors
    ///
    /// As [`build_fds`](Self::build_fds), and those of the threads.
    pub fn build(self) -> Result<Vm> {
        let is_reader = matches!(self.guest, Guest::Reader | Guest::Empty);
        Vm::with_threads(self.build_fds()?, is_reader)
    }

    /// Creates the VM without threads.
    ///
    /// # Errors
    ///
    /// Those of KVM; `EINVAL` if KVM or the CPU cannot do the TSC rate; [`Error::VcpuCount`].
    pub fn build_fds(self) -> Result<VmFds> {
        let cpuid = self.cpuid()?;
        let fd = self.kvm.create_vm().context("KVM_CREATE_VM")?;
        fd.set_tss_address(TSS_ADDRESS)
            .context("KVM_SET_TSS_ADDR")?;
        if let Some(khz) = self.tsc_khz {
            set_tsc_khz(&fd, khz).context("KVM_SET_TSC_KHZ")?;
        }
        if let Guest::Code(_) = self.guest {
            // KVM emulates the local APICs alone: a kernel need not have the other chips.
            let cap = kvm_enable_cap {
                cap: KVM_CAP_SPLIT_IRQCHIP,
                ..kvm_enable_cap::default()
            };
            fd.enable_cap(&cap).context("KVM_CAP_SPLIT_IRQCHIP")?;
        }
        let memory = self.memory()?;
        let region = kvm_userspace_memory_region {
            memory_size: memory.size(),
            userspace_addr: memory.host_address(),
            ..kvm_userspace_memory_region::default()
        };
        // SAFETY: The region is the mapping of `memory`, which outlives the VM's descriptors.
        unsafe { fd.set_user_memory_region(region) }.context("KVM_SET_USER_MEMORY_REGION")?;
        let vcpus = (0..self.nr_vcpus as usize).map(|index| self.vcpu(&fd, &cpuid, index));
        Ok(VmFds {
            vcpus: vcpus.collect::<Result<_>>()?,
            fd,
            memory,
            cpuid,
        })
    }

    /// All that KVM supports, and what the guest needs beside that.
    fn cpuid(&self) -> Result<CpuId> {
        let mut cpuid = self
            .kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .context("KVM_GET_SUPPORTED_CPUID")?;
        if let Guest::Code(_) = self.guest {
            for entry in cpuid.as_mut_slice() {
                if entry.function == CPUID_FEATURES {
                    // KVM always emulates it for a local APIC of its own.
                    entry.ecx |= CPUID_ECX_TSC_DEADLINE;
                }
            }
        }
        Ok(cpuid)
    }

    fn memory(&self) -> Result<GuestMemory> {
        let nr_vcpus = self.nr_vcpus;
        match self.guest {
            Guest::Reader | Guest::Empty => {
                if !(1..=layout::MAX_VCPUS).contains(&nr_vcpus) {
                    return Err(Error::VcpuCount(nr_vcpus));
                }
                let size = layout::memory_size(nr_vcpus);
                let memory = match self.memfd {
                    None => GuestMemory::new(size),
                    Some(memfd) => GuestMemory::of_memfd(memfd, size),
                }?;
                if let Guest::Reader = self.guest {
                    long_mode::write_reader(&memory);
                }
                Ok(memory)
            }
            Guest::Code(code) => code_guest::memory(code, nr_vcpus),
            Guest::Halting => halt::memory(nr_vcpus),
            Guest::Bare => GuestMemory::new(MIN_MEMORY),
        }
    }

    fn vcpu(&self, vm: &VmFd, cpuid: &CpuId, index: usize) -> Result<VcpuFd> {
        let fd = vm.create_vcpu(index as u64).context("KVM_CREATE_VCPU")?;
        if let Guest::Bare = self.guest {
            return Ok(fd);
        }
        fd.set_cpuid2(cpuid).context("KVM_SET_CPUID2")?;
        match self.guest {
            Guest::Reader => long_mode::enter_reader(&fd, index)?,
            Guest::Code(_) => code_guest::enter(&fd, index)?,
            Guest::Halting => halt::enter(&fd, index)?,
            Guest::Empty | Guest::Bare => (),
        }
        Ok(fd)
    }
}

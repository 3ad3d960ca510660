// SPDX-License-Identifier: GPL-2.0-only

//! A VM: created with a new guest, run and stopped as a whole, saved and loaded.

use super::{
    error::{Context, Error, Result},
    exit,
    memory::GuestMemory,
    state::{VcpuState, VmState},
    vcpu::Vcpu,
};
use crate::guest::{
    code::{self, MSR_KVM_SYSTEM_TIME_NEW},
    layout,
    view::VcpuView,
};
use kvm_bindings::{
    kvm_msr_entry, kvm_regs, kvm_segment, kvm_userspace_memory_region, CpuId, Msrs,
    KVM_MAX_CPUID_ENTRIES,
};
use kvm_clock::{set_tsc_khz, tsc_offset};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};

/// `IA32_TIME_STAMP_COUNTER`.
pub const MSR_IA32_TSC: u32 = 0x10;

// Long mode: protection, numeric errors, paging; PAE; long mode enabled and active.
const CR0_PE_MP_ET_NE_PG: u64 = 0x8000_0033;
const CR4_PAE: u64 = 0x20;
const EFER_LME_LMA: u64 = 0x500;
/// Bit 1 is always set. Interrupts are enabled, although the guest gets none: in Bochs 2.7, host
/// interrupts do not exit a guest that disables interrupts.
const RFLAGS: u64 = 0x202;

/// The three pages above 3 GiB that VMX without unrestricted guest needs.
const TSS_ADDRESS: usize = 0xfffb_d000;

/// A VM that runs the built-in guest; its vCPUs are initially stopped.
// Field order is drop order: first the threads leave KVM_RUN, then the VM goes, then its memory.
#[derive(Debug)]
pub struct Vm {
    vcpus: Vec<Vcpu>,
    fd: VmFd,
    memory: GuestMemory,
}

impl Vm {
    /// Creates a VM with `nr_vcpus` vCPUs, IDs from 0, and a guest that is ready to run.
    ///
    /// # Errors
    ///
    /// Those of KVM; [`Error::VcpuCount`].
    pub fn new(kvm: &Kvm, nr_vcpus: u32) -> Result<Self> {
        Self::empty(kvm, nr_vcpus)?.with_guest()
    }

    /// As [`new`](Self::new), but the guest's TSC runs at `tsc_khz` kHz from the creation of the vCPUs.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new); `EINVAL` if KVM or the CPU does not support that rate.
    pub fn at_rate(kvm: &Kvm, nr_vcpus: u32, tsc_khz: u32) -> Result<Self> {
        Self::empty_at_rate(kvm, nr_vcpus, tsc_khz)?.with_guest()
    }

    /// Loads a guest that is ready to run.
    fn with_guest(self) -> Result<Self> {
        for (gpa, entry) in layout::PAGE_TABLES {
            self.memory.write(gpa, &entry.to_le_bytes());
        }
        self.memory.write(layout::CODE, code::bytes());
        for vcpu in &self.vcpus {
            enter_long_mode(&vcpu.fd(), vcpu.index())?;
        }
        Ok(self)
    }

    /// Creates a VM with `nr_vcpus` vCPUs, whose memory and registers [`load`](Self::load) fills.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn empty(kvm: &Kvm, nr_vcpus: u32) -> Result<Self> {
        Self::create(kvm, nr_vcpus, None)
    }

    /// As [`empty`](Self::empty), with a TSC of `tsc_khz` kHz.
    ///
    /// # Errors
    ///
    /// As [`at_rate`](Self::at_rate).
    pub fn empty_at_rate(kvm: &Kvm, nr_vcpus: u32, tsc_khz: u32) -> Result<Self> {
        Self::create(kvm, nr_vcpus, Some(tsc_khz))
    }

    /// `tsc_khz` is `None` for the host's rate.
    fn create(kvm: &Kvm, nr_vcpus: u32, tsc_khz: Option<u32>) -> Result<Self> {
        if !(1..=layout::MAX_VCPUS).contains(&nr_vcpus) {
            return Err(Error::VcpuCount(nr_vcpus));
        }
        let cpuid = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .context("KVM_GET_SUPPORTED_CPUID")?;
        let fd = kvm.create_vm().context("KVM_CREATE_VM")?;
        fd.set_tss_address(TSS_ADDRESS)
            .context("KVM_SET_TSS_ADDR")?;
        if let Some(tsc_khz) = tsc_khz {
            set_tsc_khz(&fd, tsc_khz).context("KVM_SET_TSC_KHZ")?;
        }

        let memory = GuestMemory::new(layout::memory_size(nr_vcpus))?;
        let region = kvm_userspace_memory_region {
            memory_size: memory.size(),
            userspace_addr: memory.host_address(),
            ..kvm_userspace_memory_region::default()
        };
        // SAFETY: The region is the mapping of `memory`, which outlives the VM's descriptors.
        unsafe { fd.set_user_memory_region(region) }.context("KVM_SET_USER_MEMORY_REGION")?;

        let mut vm = Self {
            vcpus: Vec::new(),
            fd,
            memory,
        };
        for index in 0..nr_vcpus as usize {
            let vcpu = vm.create_vcpu(index, &cpuid)?;
            vm.vcpus.push(vcpu);
        }
        Ok(vm)
    }

    fn create_vcpu(&self, index: usize, cpuid: &CpuId) -> Result<Vcpu> {
        let fd = self
            .fd
            .create_vcpu(index as u64)
            .context("KVM_CREATE_VCPU")?;
        fd.set_cpuid2(cpuid).context("KVM_SET_CPUID2")?;
        Vcpu::new(index, fd)
    }

    /// The VM's descriptor.
    pub fn fd(&self) -> &VmFd {
        &self.fd
    }

    /// Its vCPUs, in order of ID.
    pub fn vcpus(&self) -> &[Vcpu] {
        &self.vcpus
    }

    /// Guest memory.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// The samples that vCPU `index` publishes.
    pub fn view(&self, index: usize) -> VcpuView<'_> {
        VcpuView::new(&self.memory, index)
    }

    /// Runs all vCPUs; returns when all are about to enter KVM_RUN.
    ///
    /// # Errors
    ///
    /// [`Error::Exit`] if one left KVM_RUN by itself, [`Error::Timeout`].
    pub fn run(&self) -> Result<()> {
        self.vcpus.iter().for_each(Vcpu::request_run);
        let running = self.vcpus.iter().try_for_each(Vcpu::wait_running);
        running.map_err(|error| self.with_guest_state(error))
    }

    /// Stops all vCPUs; returns when all are outside KVM_RUN.
    ///
    /// # Errors
    ///
    /// [`Error::Exit`] if one left KVM_RUN by itself, [`Error::Timeout`].
    pub fn stop(&self) -> Result<()> {
        self.vcpus.iter().for_each(Vcpu::request_stop);
        let stopped = self.vcpus.iter().try_for_each(Vcpu::wait_stopped);
        stopped.map_err(|error| self.with_guest_state(error))
    }

    /// Checks that no vCPU has left KVM_RUN by itself.
    ///
    /// # Errors
    ///
    /// [`Error::Exit`].
    pub fn check(&self) -> Result<()> {
        let running = self.vcpus.iter().try_for_each(Vcpu::check);
        running.map_err(|error| self.with_guest_state(error))
    }

    fn with_guest_state(&self, mut error: Error) -> Error {
        if let Error::Exit { index, exit } = &mut error {
            *exit += &format!("; {}", exit::describe_guest(&self.memory, *index));
        }
        error
    }

    /// Guest TSC rate, kHz: `KVM_GET_TSC_KHZ`. The vCPUs are stopped.
    ///
    /// # Errors
    ///
    /// That of the ioctl.
    pub fn tsc_khz(&self) -> Result<u32> {
        self.vcpus[0].fd().get_tsc_khz().context("KVM_GET_TSC_KHZ")
    }

    /// TSC offset (ticks, mod 2^64) of every vCPU. The vCPUs are stopped.
    ///
    /// # Errors
    ///
    /// That of the ioctl.
    pub fn tsc_offsets(&self) -> Result<Vec<u64>> {
        self.vcpus
            .iter()
            .map(|vcpu| tsc_offset(&vcpu.fd()).context("KVM_VCPU_TSC_OFFSET"))
            .collect()
    }

    /// Saves memory and registers. The vCPUs are stopped.
    ///
    /// # Errors
    ///
    /// Those of the ioctls.
    pub fn save(&self) -> Result<VmState> {
        let vcpus = self.vcpus.iter().map(|vcpu| {
            let fd = vcpu.fd();
            Ok(VcpuState {
                regs: fd.get_regs().context("KVM_GET_REGS")?,
                sregs: fd.get_sregs().context("KVM_GET_SREGS")?,
                system_time_msr: get_msr(&fd, MSR_KVM_SYSTEM_TIME_NEW)?,
            })
        });
        Ok(VmState {
            vcpus: vcpus.collect::<Result<_>>()?,
            memory: self.memory.to_vec(),
        })
    }

    /// Restores a state of [`save`](Self::save). The vCPUs are stopped.
    ///
    /// # Errors
    ///
    /// [`Error::State`] if it does not match this VM; those of the ioctls.
    pub fn load(&self, state: &VmState) -> Result<()> {
        if state.vcpus.len() != self.vcpus.len() || state.memory.len() as u64 != self.memory.size()
        {
            return Err(Error::State(format!(
                "{} vCPUs and {} bytes of memory; this VM has {} and {}",
                state.vcpus.len(),
                state.memory.len(),
                self.vcpus.len(),
                self.memory.size()
            )));
        }
        self.memory.write(0, &state.memory);
        for (vcpu, saved) in self.vcpus.iter().zip(&state.vcpus) {
            let fd = vcpu.fd();
            fd.set_sregs(&saved.sregs).context("KVM_SET_SREGS")?;
            fd.set_regs(&saved.regs).context("KVM_SET_REGS")?;
            set_msr(&fd, MSR_KVM_SYSTEM_TIME_NEW, saved.system_time_msr)?;
        }
        Ok(())
    }
}

/// Reads an MSR of a stopped vCPU.
///
/// # Errors
///
/// That of `KVM_GET_MSRS`; [`Error::Missing`] if KVM does not know `index`.
pub fn get_msr(fd: &VcpuFd, index: u32) -> Result<u64> {
    let mut msrs = one_msr(index, 0);
    match fd.get_msrs(&mut msrs).context("KVM_GET_MSRS")? {
        0 => Err(Error::Missing(format!(
            "KVM_GET_MSRS does not have MSR {index:#x}"
        ))),
        _ => Ok(msrs.as_slice()[0].data),
    }
}

/// Writes an MSR of a stopped vCPU.
///
/// # Errors
///
/// That of `KVM_SET_MSRS`; [`Error::Missing`] if KVM refuses the value.
pub fn set_msr(fd: &VcpuFd, index: u32, data: u64) -> Result<()> {
    match fd.set_msrs(&one_msr(index, data)).context("KVM_SET_MSRS")? {
        0 => Err(Error::Missing(format!(
            "KVM_SET_MSRS refuses {data:#x} in MSR {index:#x}"
        ))),
        _ => Ok(()),
    }
}

fn one_msr(index: u32, data: u64) -> Msrs {
    let entry = kvm_msr_entry {
        index,
        data,
        ..kvm_msr_entry::default()
    };
    Msrs::from_entries(&[entry]).expect("one entry is not too many")
}

/// Sets 64-bit mode with the guest's page tables, at the guest's first instruction.
fn enter_long_mode(fd: &VcpuFd, index: usize) -> Result<()> {
    let segment = |type_: u8, long: u8| kvm_segment {
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
    let (code, data) = (segment(11, 1), segment(3, 0));

    let mut sregs = fd.get_sregs().context("KVM_GET_SREGS")?;
    sregs.cs = code;
    (sregs.ds, sregs.es, sregs.fs) = (data, data, data);
    (sregs.gs, sregs.ss) = (data, data);
    sregs.cr0 = CR0_PE_MP_ET_NE_PG;
    sregs.cr3 = layout::PML4;
    sregs.cr4 = CR4_PAE;
    sregs.efer = EFER_LME_LMA;
    fd.set_sregs(&sregs).context("KVM_SET_SREGS")?;

    let regs = kvm_regs {
        rip: layout::CODE,
        rsp: layout::sample_area(index) + layout::PAGE_SIZE,
        rdi: layout::sample_area(index),
        rsi: layout::pvclock_page(index),
        r15: layout::SHARED,
        rflags: RFLAGS,
        ..kvm_regs::default()
    };
    fd.set_regs(&regs).context("KVM_SET_REGS")
}

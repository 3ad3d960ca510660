// SPDX-License-Identifier: GPL-2.0-only

//! A VM with many vCPUs that only halt: none runs during a measurement.

use anyhow::{bail, Context, Result};
use clockguest::{
    guest::code::MSR_KVM_SYSTEM_TIME_NEW,
    vmm::{memory::GuestMemory, vm::set_msr},
};
use kvm_bindings::{kvm_regs, kvm_userspace_memory_region, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use std::io;

/// `hlt`, and a jump back to it.
const CODE: [u8; 3] = [0xf4, 0xeb, 0xfd];
/// Guest physical address of the code.
const CODE_AT: u64 = 0;
/// Guest physical address of the pvclock records, which are contiguous.
const RECORDS_AT: u64 = 0x1000;
/// Size of a record, bytes.
const RECORD: u64 = 32;
const PAGE: u64 = 4096;
/// Files of the process besides vCPUs.
const SPARE_FILES: u64 = 64;

/// The VM.
// Field order is drop order: the VM goes before its memory.
pub(crate) struct Vm {
    pub(crate) vcpus: Vec<VcpuFd>,
    pub(crate) fd: VmFd,
    _memory: GuestMemory,
}

impl Vm {
    /// Creates a VM with `count` vCPUs, IDs from 0; each has kvmclock, has run, and is stopped.
    pub(crate) fn new(kvm: &Kvm, count: u32) -> Result<Self> {
        let cpuid = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .context("KVM_GET_SUPPORTED_CPUID")?;
        let fd = kvm.create_vm().context("KVM_CREATE_VM")?;
        let size = RECORDS_AT + (u64::from(count) * RECORD).next_multiple_of(PAGE);
        let memory = GuestMemory::new(size)?;
        memory.write(CODE_AT, &CODE);
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: size,
            userspace_addr: memory.host_address(),
        };
        // SAFETY: `memory` outlives the VM, and has no other user.
        unsafe { fd.set_user_memory_region(region) }.context("KVM_SET_USER_MEMORY_REGION")?;
        allow_files(u64::from(count) + SPARE_FILES)?;
        let mut vcpus = Vec::new();
        for index in 0..u64::from(count) {
            let vcpu = fd.create_vcpu(index).context("KVM_CREATE_VCPU")?;
            vcpu.set_cpuid2(&cpuid).context("KVM_SET_CPUID2")?;
            let mut sregs = vcpu.get_sregs().context("KVM_GET_SREGS")?;
            (sregs.cs.base, sregs.cs.selector) = (0, 0);
            vcpu.set_sregs(&sregs).context("KVM_SET_SREGS")?;
            let regs = kvm_regs {
                rip: CODE_AT,
                // Bit 1 is always set.
                rflags: 2,
                ..kvm_regs::default()
            };
            vcpu.set_regs(&regs).context("KVM_SET_REGS")?;
            let record = RECORDS_AT + index * RECORD;
            set_msr(&vcpu, MSR_KVM_SYSTEM_TIME_NEW, record | 1)?;
            vcpus.push(vcpu);
        }
        let mut vm = Self {
            vcpus,
            fd,
            _memory: memory,
        };
        // The first run of the last vCPU may update the clocks of all vCPUs once more.
        vm.run()?;
        vm.run()?;
        Ok(vm)
    }

    /// Runs each vCPU until it halts.
    pub(crate) fn run(&mut self) -> Result<()> {
        for vcpu in &mut self.vcpus {
            run(vcpu)?;
        }
        Ok(())
    }
}

/// Allows this process to open `count` files.
fn allow_files(count: u64) -> Result<()> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: The call writes only `limit`.
    ensure_ok(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) }).context("getrlimit")?;
    if limit.rlim_cur >= count {
        return Ok(());
    }
    limit.rlim_cur = count;
    limit.rlim_max = limit.rlim_max.max(count);
    // SAFETY: The call only reads `limit`.
    ensure_ok(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) })
        .with_context(|| format!("cannot open {count} files"))
}

fn ensure_ok(ret: libc::c_int) -> io::Result<()> {
    match ret {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Runs `vcpu` until it halts.
pub(crate) fn run(vcpu: &mut VcpuFd) -> Result<()> {
    match vcpu.run().context("KVM_RUN")? {
        VcpuExit::Hlt => Ok(()),
        exit => bail!("KVM_RUN of a guest that halts returned {exit:?}"),
    }
}

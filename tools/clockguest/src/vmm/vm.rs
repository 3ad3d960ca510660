// SPDX-License-Identifier: GPL-2.0-only

//! A VM with a thread per vCPU: it runs, stops, is saved and loaded as a whole.

use super::{
    builder::{Guest, VmBuilder, VmFds},
    error::{Context, Error, Result},
    exit,
    memory::GuestMemory,
    state::{VcpuState, VmState},
    vcpu::Vcpu,
};
use crate::guest::{code::MSR_KVM_SYSTEM_TIME_NEW, view::VcpuView};
use kvm_bindings::{kvm_msr_entry, CpuId, Msrs};
use kvm_clock::{set_tsc_offset, tsc_offset};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use pvclock::counter::TscOffset;

/// `IA32_TIME_STAMP_COUNTER`.
pub const MSR_IA32_TSC: u32 = 0x10;

/// A VM; its vCPUs are initially stopped.
// Field order is drop order: first the threads leave KVM_RUN, then the VM goes, then its memory.
#[derive(Debug)]
pub struct Vm {
    vcpus: Vec<Vcpu>,
    fd: VmFd,
    memory: GuestMemory,
    /// CPUID of the vCPUs.
    cpuid: CpuId,
    /// It runs the built-in guest.
    is_reader: bool,
}

impl Vm {
    /// A VM of the built-in guest with `nr_vcpus` vCPUs, ids from 0.
    ///
    /// # Errors
    ///
    /// As [`VmBuilder::build`].
    pub fn new(kvm: &Kvm, nr_vcpus: u32) -> Result<Self> {
        VmBuilder::new(kvm, nr_vcpus).build()
    }

    /// As [`new`](Self::new), with a guest TSC of `tsc_khz` kHz.
    ///
    /// # Errors
    ///
    /// As [`VmBuilder::build`].
    pub fn at_rate(kvm: &Kvm, nr_vcpus: u32, tsc_khz: u32) -> Result<Self> {
        VmBuilder::new(kvm, nr_vcpus).tsc_khz(tsc_khz).build()
    }

    /// Creates a VM without a guest, for [`load`](Self::load).
    ///
    /// # Errors
    ///
    /// As [`VmBuilder::build`].
    pub fn empty(kvm: &Kvm, nr_vcpus: u32) -> Result<Self> {
        VmBuilder::new(kvm, nr_vcpus).guest(Guest::Empty).build()
    }

    /// As [`empty`](Self::empty), with a guest TSC of `tsc_khz` kHz.
    ///
    /// # Errors
    ///
    /// As [`VmBuilder::build`].
    pub fn empty_at_rate(kvm: &Kvm, nr_vcpus: u32, tsc_khz: u32) -> Result<Self> {
        VmBuilder::new(kvm, nr_vcpus)
            .tsc_khz(tsc_khz)
            .guest(Guest::Empty)
            .build()
    }

    /// Starts a thread for each vCPU of `fds`.
    pub(super) fn with_threads(fds: VmFds, is_reader: bool) -> Result<Self> {
        let vcpus = fds.vcpus.into_iter().enumerate();
        Ok(Self {
            vcpus: vcpus
                .map(|(index, fd)| Vcpu::new(index, fd))
                .collect::<Result<_>>()?,
            fd: fds.fd,
            memory: fds.memory,
            cpuid: fds.cpuid,
            is_reader,
        })
    }

    /// Creates a vCPU with another `id`, which has no thread.
    ///
    /// # Errors
    ///
    /// Those of the ioctls.
    pub fn add_vcpu(&self, id: u64) -> Result<VcpuFd> {
        let fd = self.fd.create_vcpu(id).context("KVM_CREATE_VCPU")?;
        fd.set_cpuid2(&self.cpuid).context("KVM_SET_CPUID2")?;
        Ok(fd)
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
        if let (Error::Exit { index, exit }, true) = (&mut error, self.is_reader) {
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

    /// TSC offset of every vCPU. The vCPUs are stopped.
    ///
    /// # Errors
    ///
    /// That of the ioctl.
    pub fn tsc_offsets(&self) -> Result<Vec<TscOffset>> {
        self.vcpus
            .iter()
            .map(|vcpu| tsc_offset(&vcpu.fd()).context("KVM_VCPU_TSC_OFFSET"))
            .collect()
    }

    /// Sets the TSC offset of vCPU `index`, which is stopped.
    ///
    /// # Errors
    ///
    /// That of the ioctl.
    pub fn set_tsc_offset(&self, index: usize, offset: TscOffset) -> Result<()> {
        set_tsc_offset(&self.vcpus[index].fd(), offset).context("KVM_VCPU_TSC_OFFSET")
    }

    /// Saves memory and registers. The vCPUs are stopped.
    ///
    /// # Errors
    ///
    /// Those of the ioctls.
    pub fn save(&self) -> Result<VmState> {
        Ok(VmState {
            vcpus: self.save_vcpus()?,
            memory: self.memory.to_vec(),
        })
    }

    /// Saves the registers of all vCPUs, which are stopped.
    ///
    /// # Errors
    ///
    /// Those of the ioctls.
    pub fn save_vcpus(&self) -> Result<Vec<VcpuState>> {
        let vcpus = self.vcpus.iter().map(|vcpu| {
            let fd = vcpu.fd();
            Ok(VcpuState {
                regs: fd.get_regs().context("KVM_GET_REGS")?,
                sregs: fd.get_sregs().context("KVM_GET_SREGS")?,
                system_time_msr: get_msr(&fd, MSR_KVM_SYSTEM_TIME_NEW)?,
            })
        });
        vcpus.collect()
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
        self.load_vcpus(&state.vcpus)
    }

    /// Restores the registers of all vCPUs, which are stopped; there are as many in `states`.
    ///
    /// # Errors
    ///
    /// Those of the ioctls.
    pub fn load_vcpus(&self, states: &[VcpuState]) -> Result<()> {
        for (vcpu, saved) in self.vcpus.iter().zip(states) {
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

// SPDX-License-Identifier: GPL-2.0-only

//! The VM that the calls are for.

use crate::extremes::{any64, one_in, Rng};
use anyhow::{ensure, Context, Result};
use clockguest::vmm::{vm::set_msr, Vm};
use kvm_clock::{set_tsc_offset, tsc_offset};
use kvm_clock_guest_selftests::{
    fixture::{derived, pinned, run_a_little, wait_in_guest},
    halting::add_vcpu,
};
use kvm_ioctls::{Kvm, VcpuFd};
use rand::Rng as _;
use std::{
    io,
    os::fd::{AsRawFd, RawFd},
};

/// `MSR_KVM_STEAL_TIME`: the address of `struct kvm_steal_time`, and whether there is one.
const MSR_KVM_STEAL_TIME: u32 = 0x4b56_4d03;
const STEAL_TIME_ENABLED: u64 = 1;
/// A page that `clockguest::guest::layout` leaves free.
const STEAL_TIMES: u64 = 0x6000;
/// A structure for each vCPU, aligned as KVM asks.
const STEAL_TIME_SIZE: u64 = 64;

/// vCPUs that may be added to a VM.
const MOST_ADDED: usize = 2;

/// A VM of one to four vCPUs, and up to two more that were added and never run.
pub(crate) struct Subject {
    // Before the VM, whose memory they might use.
    added: Vec<VcpuFd>,
    vm: Vm,
    /// Which vCPUs are in KVM_RUN.
    running: Vec<bool>,
    /// Which vCPUs have their steal clocks enabled.
    accounts: Vec<bool>,
    fds: Vec<RawFd>,
}

impl Subject {
    /// A stopped VM: new, or with clocks by KVM, with a pinned record, or with different TSC offsets.
    pub(crate) fn new(kvm: &Kvm, rng: &mut Rng) -> Result<Self> {
        let vcpus = rng.random_range(1..=4);
        let vm = match rng.random_range(0..8) {
            0 => Vm::new(kvm, vcpus)?,
            1 | 2 => derived(kvm, vcpus)?,
            3 => {
                let vm = derived(kvm, vcpus)?;
                for vcpu in vm.vcpus() {
                    set_tsc_offset(&vcpu.fd(), any64(rng)).context("KVM_VCPU_TSC_OFFSET")?;
                }
                vm
            }
            _ => pinned(kvm, vcpus)?,
        };
        Ok(Self::of(vm))
    }

    /// A stopped VM whose clock is pinned.
    pub(crate) fn pinned(kvm: &Kvm, rng: &mut Rng) -> Result<Self> {
        Ok(Self::of(pinned(kvm, rng.random_range(1..=4))?))
    }

    fn of(vm: Vm) -> Self {
        let fds: Vec<_> = vm
            .vcpus()
            .iter()
            .map(|vcpu| vcpu.fd().as_raw_fd())
            .collect();
        Self {
            added: Vec::new(),
            running: vec![false; fds.len()],
            accounts: vec![false; fds.len()],
            fds,
            vm,
        }
    }

    /// The VM; none of the added vCPUs is in its list.
    pub(crate) fn vm(&self) -> &Vm {
        &self.vm
    }

    /// Descriptors of all vCPUs, whose ids count from 0.
    pub(crate) fn fds(&self) -> &[RawFd] {
        &self.fds
    }

    /// How many vCPUs the VM has; their ids count from 0.
    pub(crate) fn vcpus(&self) -> usize {
        self.fds.len()
    }

    /// Whether vCPU `index` is in KVM_RUN.
    pub(crate) fn is_running(&self, index: usize) -> bool {
        self.running.get(index) == Some(&true)
    }

    /// Whether vCPU `index` has its steal clock enabled.
    pub(crate) fn accounts_steal(&self, index: usize) -> bool {
        self.accounts.get(index) == Some(&true)
    }

    /// Enables or disables the steal clock of vCPU `index`, which was not added.
    pub(crate) fn account_steal(&mut self, index: usize, is_enabled: bool) -> Result<()> {
        let address = STEAL_TIMES + index as u64 * STEAL_TIME_SIZE;
        let value = match is_enabled {
            true => address | STEAL_TIME_ENABLED,
            false => 0,
        };
        set_msr(&self.vm.vcpus()[index].fd(), MSR_KVM_STEAL_TIME, value)?;
        self.accounts[index] = is_enabled;
        Ok(())
    }

    /// Whether any vCPU is in KVM_RUN.
    pub(crate) fn is_any_running(&self) -> bool {
        self.running.contains(&true)
    }

    /// TSC offset (ticks) of every vCPU. None of them runs.
    pub(crate) fn offsets(&self) -> Result<Vec<u64>> {
        let mut offsets = self.vm.tsc_offsets()?;
        for fd in &self.added {
            offsets.push(tsc_offset(fd).context("KVM_VCPU_TSC_OFFSET")?);
        }
        Ok(offsets)
    }

    /// Adds a vCPU, if there are not too many.
    pub(crate) fn add_vcpu(&mut self, kvm: &Kvm) -> Result<()> {
        // `halting::add_vcpu()` knows one id only.
        if self.added.is_empty() {
            let fd = add_vcpu(kvm, &self.vm)?;
            self.fds.push(fd.as_raw_fd());
            self.added.push(fd);
        } else if self.added.len() < MOST_ADDED {
            let fd = self.vm.fd().create_vcpu(self.fds.len() as u64);
            let fd = fd.context("KVM_CREATE_VCPU")?;
            self.fds.push(fd.as_raw_fd());
            self.added.push(fd);
        }
        Ok(())
    }

    /// Lets some vCPUs run, at least one, and returns when they execute guest instructions.
    pub(crate) fn run_some(&mut self, rng: &mut Rng) -> Result<()> {
        let vcpus = self.vm.vcpus();
        let least = rng.random_range(0..vcpus.len());
        for vcpu in vcpus {
            if vcpu.index() == least || !one_in(rng, 3) {
                vcpu.request_run();
                self.running[vcpu.index()] = true;
            }
        }
        for vcpu in vcpus {
            if self.running[vcpu.index()] {
                vcpu.wait_running()?;
                wait_in_guest(&self.vm, vcpu.index())?;
            }
        }
        Ok(())
    }

    /// Stops all vCPUs.
    pub(crate) fn stop(&mut self) -> Result<()> {
        self.vm.stop()?;
        self.running.fill(false);
        Ok(())
    }

    /// Lets all vCPUs make readings, and stops them.
    pub(crate) fn read(&self) -> Result<clockguest::measure::Reading> {
        ensure!(!self.is_any_running(), "the guest runs already");
        run_a_little(&self.vm)
    }
}

/// The system call; gives the errno if it failed.
pub(crate) fn ioctl(fd: RawFd, request: u32, argument: u64) -> Result<i32, i32> {
    // SAFETY: Whoever chose the argument sees to it that all that the kernel may write there is
    // made up of atomic bytes, or is not accessible at all: see `Arena`.
    let ret = unsafe { libc::ioctl(fd, request.into(), argument) };
    if ret < 0 {
        return Err(io::Error::last_os_error().raw_os_error().unwrap_or(0));
    }
    Ok(ret)
}

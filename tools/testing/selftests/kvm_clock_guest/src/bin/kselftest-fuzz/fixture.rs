// SPDX-License-Identifier: GPL-2.0-only

//! The VM that the calls are for.

use crate::extremes::{any64, one_in, Rng};
use kvm_clock_guest_selftests::{prelude::*, steal};
use rand::Rng as _;
use std::{
    io,
    os::fd::{AsRawFd, RawFd},
};

/// The most vCPUs that are added to a VM.
const MOST_ADDED: usize = 2;

/// A VM of one to four vCPUs, and up to two added ones that never run.
pub(crate) struct Fixture {
    // Before the VM, whose memory they might use.
    added: Vec<VcpuFd>,
    vm: Vm,
    /// Whether each vCPU is in KVM_RUN.
    running: Vec<bool>,
    /// Whether the steal clock of each vCPU is enabled.
    accounts: Vec<bool>,
    fds: Vec<RawFd>,
}

impl Fixture {
    /// A stopped VM: a new one, or with a derived clock, a pinned one, or different TSC offsets.
    pub(crate) fn new(kvm: &Kvm, rng: &mut Rng) -> Result<Self> {
        let vcpus = rng.random_range(1..=4);
        let vm = match rng.random_range(0..8) {
            0 => Vm::new(kvm, vcpus)?,
            1 | 2 => derived(kvm, vcpus)?,
            3 => {
                let vm = derived(kvm, vcpus)?;
                for vcpu in vm.vcpus() {
                    vm.set_tsc_offset(vcpu.index(), TscOffset(any64(rng)))?;
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

    /// The VM, without the added vCPUs.
    pub(crate) fn vm(&self) -> &Vm {
        &self.vm
    }

    /// Descriptors of all vCPUs, whose ids count from 0.
    pub(crate) fn fds(&self) -> &[RawFd] {
        &self.fds
    }

    /// The number of vCPUs; their ids count from 0.
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
        steal::enable(&self.vm, index, is_enabled)?;
        self.accounts[index] = is_enabled;
        Ok(())
    }

    /// Whether any vCPU is in KVM_RUN.
    pub(crate) fn is_any_running(&self) -> bool {
        self.running.contains(&true)
    }

    /// TSC offset of every vCPU; none may run.
    pub(crate) fn offsets(&self) -> Result<Vec<TscOffset>> {
        let mut offsets = self.vm.tsc_offsets()?;
        for fd in &self.added {
            offsets.push(tsc_offset(fd).context("KVM_VCPU_TSC_OFFSET")?);
        }
        Ok(offsets)
    }

    /// Adds a vCPU, up to [`MOST_ADDED`].
    pub(crate) fn add_vcpu(&mut self) -> Result<()> {
        if self.added.len() < MOST_ADDED {
            let fd = self.vm.add_vcpu(self.fds.len() as u64)?;
            self.fds.push(fd.as_raw_fd());
            self.added.push(fd);
        }
        Ok(())
    }

    /// Runs some vCPUs, at least one, and returns when they execute guest instructions.
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

    /// Runs all vCPUs until they have made readings, and stops them.
    pub(crate) fn read(&self) -> Result<clockguest::measure::Reading> {
        ensure!(!self.is_any_running(), "the guest runs already");
        run_a_little(&self.vm)
    }
}

/// The system call; returns the errno if it failed.
pub(crate) fn ioctl(fd: RawFd, request: u32, argument: u64) -> Result<i32, i32> {
    // SAFETY: The callers only pass addresses where the kernel can write to nothing but the atomic
    // bytes of an
    // `Arena`.
    let ret = unsafe { libc::ioctl(fd, request.into(), argument) };
    if ret < 0 {
        return Err(io::Error::last_os_error().raw_os_error().unwrap_or(0));
    }
    Ok(ret)
}

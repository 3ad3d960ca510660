// SPDX-License-Identifier: GPL-2.0-only

//! A VM of many halted vCPUs: no guest code runs while it is measured.

use anyhow::{Context, Result};
use clockguest::vmm::{halt, Guest, VmBuilder};
use kvm_ioctls::{Kvm, VcpuFd};
use std::io;

pub(crate) use clockguest::vmm::VmFds as Vm;

/// Files that the process opens beside the vCPUs.
const SPARE_FILES: u64 = 64;

/// A VM with `count` vCPUs, each of which has enabled kvmclock, has run and is stopped.
pub(crate) fn new(kvm: &Kvm, count: u32) -> Result<Vm> {
    allow_files(u64::from(count) + SPARE_FILES)?;
    let mut vm = VmBuilder::new(kvm, count)
        .guest(Guest::Halting)
        .build_fds()?;
    // The first run of the last vCPU may make KVM update the clocks of all once more.
    run_all(&mut vm)?;
    run_all(&mut vm)?;
    Ok(vm)
}

/// Runs each vCPU until it halts.
fn run_all(vm: &mut Vm) -> Result<()> {
    vm.vcpus.iter_mut().try_for_each(run)
}

/// Runs `vcpu` until it halts.
pub(crate) fn run(vcpu: &mut VcpuFd) -> Result<()> {
    Ok(halt::run(vcpu)?)
}

/// Raises the limit of open files to `count`.
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

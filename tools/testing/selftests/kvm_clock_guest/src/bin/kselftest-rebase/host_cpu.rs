// SPDX-License-Identifier: GPL-2.0-only

//! Where vCPUs run.

use anyhow::{bail, Context, Result};
use clockguest::vmm::Vm;
use kvm_clock_guest_selftests::{fixture::run_a_little, ktap::Skip};
use std::{fs, io, mem::MaybeUninit};

/// Runs every vCPU on one host CPU and then on another.
pub(crate) fn change_cpu(vm: &Vm) -> Result<()> {
    let allowed = affinity().context("sched_getaffinity")?;
    // SAFETY: The index is below the set's size.
    let is_set = |&cpu: &usize| unsafe { libc::CPU_ISSET(cpu, &allowed) };
    let cpus: Vec<_> = (0..libc::CPU_SETSIZE as usize)
        .filter(is_set)
        .take(2)
        .collect();
    if cpus.len() < 2 {
        bail!(Skip("this host has one CPU".into()));
    }
    let changed = cpus.iter().try_for_each(|&cpu| {
        let mut one = no_cpu();
        // SAFETY: The index is below the set's size.
        unsafe { libc::CPU_SET(cpu, &mut one) };
        pin_vcpus(vm.vcpus().len(), &one).context("sched_setaffinity")?;
        run_a_little(vm).map(|_| ())
    });
    pin_vcpus(vm.vcpus().len(), &allowed).context("sched_setaffinity")?;
    changed
}

fn no_cpu() -> libc::cpu_set_t {
    // SAFETY: It is a set of bits, and may be empty.
    unsafe { MaybeUninit::zeroed().assume_init() }
}

fn affinity() -> io::Result<libc::cpu_set_t> {
    let mut set = no_cpu();
    // SAFETY: `set` may be written, and has that size.
    match unsafe { libc::sched_getaffinity(0, size_of_val(&set), &mut set) } {
        0 => Ok(set),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Has the vCPU threads of this process, which are no fewer than `least`, run on CPUs of `set`.
fn pin_vcpus(least: usize, set: &libc::cpu_set_t) -> io::Result<()> {
    let mut pinned = 0;
    for entry in fs::read_dir("/proc/self/task")? {
        let path = entry?.path();
        // A thread of a VM of before may be about to vanish.
        let name = fs::read_to_string(path.join("comm")).unwrap_or_default();
        let id = path.file_name().and_then(|id| id.to_str()?.parse().ok());
        let Some(id) = id.filter(|_| name.starts_with("vcpu")) else {
            continue;
        };
        // SAFETY: `set` may be read, and has that size.
        if unsafe { libc::sched_setaffinity(id, size_of_val(set), set) } == 0 {
            pinned += 1;
            continue;
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::ESRCH) {
            return Err(error);
        }
    }
    if pinned < least {
        return Err(io::Error::other(format!(
            "pinned {pinned} threads of {least} vCPUs"
        )));
    }
    Ok(())
}

// SPDX-License-Identifier: GPL-2.0-only

//! The host CPUs that threads may use.

use crate::{fixture::run_a_little, ktap::Skip};
use anyhow::{bail, Context, Result};
use clockguest::vmm::Vm;
use std::{fs, io, mem::MaybeUninit};

/// Restricts this thread, and threads that it starts, to one CPU; restores its CPUs when dropped.
///
/// KVM updates a vCPU's clocks when the vCPU changes its CPU, which hides an update that KVM fails
/// to request.
#[derive(Debug)]
pub struct SingleCpu {
    before: libc::cpu_set_t,
}

impl SingleCpu {
    /// Moves this thread to the first CPU that it may use.
    pub fn hold() -> Result<Self> {
        let before = affinity()?;
        let Some(cpu) = cpus(&before).next() else {
            bail!("this thread has no CPU");
        };
        set_affinity(0, &one(cpu)).context("sched_setaffinity")?;
        Ok(Self { before })
    }
}

impl Drop for SingleCpu {
    fn drop(&mut self) {
        if let Err(error) = set_affinity(0, &self.before) {
            eprintln!("this thread stays on one CPU: {error}");
        }
    }
}

/// Runs every vCPU of the stopped `vm` on one host CPU and then on another.
pub fn change_cpu(vm: &Vm) -> Result<()> {
    let allowed = affinity()?;
    let cpus: Vec<_> = cpus(&allowed).take(2).collect();
    if cpus.len() < 2 {
        bail!(Skip("this host has one CPU".into()));
    }
    let changed = cpus.iter().try_for_each(|&cpu| {
        move_vcpus(vm.vcpus().len(), &one(cpu)).context("sched_setaffinity")?;
        run_a_little(vm).map(drop)
    });
    move_vcpus(vm.vcpus().len(), &allowed).context("sched_setaffinity")?;
    changed
}

/// Restricts the vCPU threads of this process, at least `least`, to the CPUs of `set`.
fn move_vcpus(least: usize, set: &libc::cpu_set_t) -> io::Result<()> {
    let mut moved = 0;
    for entry in fs::read_dir("/proc/self/task")? {
        let path = entry?.path();
        // A thread of an earlier VM may be about to end.
        let name = fs::read_to_string(path.join("comm")).unwrap_or_default();
        let id = path.file_name().and_then(|id| id.to_str()?.parse().ok());
        let Some(id) = id.filter(|_| name.starts_with("vcpu")) else {
            continue;
        };
        match set_affinity(id, set) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => (),
            result => {
                result?;
                moved += 1;
            }
        }
    }
    if moved < least {
        let text = format!("moved {moved} threads of {least} vCPUs");
        return Err(io::Error::other(text));
    }
    Ok(())
}

fn empty() -> libc::cpu_set_t {
    // SAFETY: It is a set of bits, and may be empty.
    unsafe { MaybeUninit::zeroed().assume_init() }
}

fn one(cpu: usize) -> libc::cpu_set_t {
    let mut set = empty();
    // SAFETY: `cpus()` returns indices below the set's size.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    set
}

fn cpus(set: &libc::cpu_set_t) -> impl Iterator<Item = usize> + '_ {
    // SAFETY: The index is below the set's size.
    (0..libc::CPU_SETSIZE as usize).filter(|&cpu| unsafe { libc::CPU_ISSET(cpu, set) })
}

fn affinity() -> Result<libc::cpu_set_t> {
    let mut set = empty();
    // SAFETY: `set` may be written, and has that size.
    match unsafe { libc::sched_getaffinity(0, size_of_val(&set), &mut set) } {
        0 => Ok(set),
        _ => Err(io::Error::last_os_error()).context("sched_getaffinity"),
    }
}

fn set_affinity(thread: libc::pid_t, set: &libc::cpu_set_t) -> io::Result<()> {
    // SAFETY: `set` may be read, and has that size.
    match unsafe { libc::sched_setaffinity(thread, size_of_val(set), set) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

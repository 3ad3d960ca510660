// SPDX-License-Identifier: GPL-2.0-only

//! One CPU of the host for a whole process: KVM updates a vCPU's clocks when the vCPU changes its
//! CPU, which hides an update that KVM fails to request.

use anyhow::{bail, Context, Result};
use std::{io, mem::MaybeUninit};

/// Keeps this thread, and those that it starts from now on, on one CPU; dropping it gives this
/// thread its CPUs back.
#[derive(Debug)]
pub struct SingleCpu {
    before: libc::cpu_set_t,
}

impl SingleCpu {
    /// Moves this thread to the first CPU that it may use.
    ///
    /// # Errors
    ///
    /// Those of the system calls.
    pub fn hold() -> Result<Self> {
        let mut before = no_cpu();
        // SAFETY: `before` may be written, and has that size.
        if unsafe { libc::sched_getaffinity(0, size_of_val(&before), &mut before) } != 0 {
            return Err(io::Error::last_os_error()).context("sched_getaffinity");
        }
        // SAFETY: The index is below the set's size.
        let is_set = |&cpu: &usize| unsafe { libc::CPU_ISSET(cpu, &before) };
        let Some(cpu) = (0..libc::CPU_SETSIZE as usize).find(is_set) else {
            bail!("this thread has no CPU");
        };
        let mut one = no_cpu();
        // SAFETY: The index is below the set's size.
        unsafe { libc::CPU_SET(cpu, &mut one) };
        use_cpus(&one).context("sched_setaffinity")?;
        Ok(Self { before })
    }
}

impl Drop for SingleCpu {
    fn drop(&mut self) {
        if let Err(error) = use_cpus(&self.before) {
            eprintln!("this thread stays on one CPU: {error}");
        }
    }
}

fn no_cpu() -> libc::cpu_set_t {
    // SAFETY: It is a set of bits, and may be empty.
    unsafe { MaybeUninit::zeroed().assume_init() }
}

fn use_cpus(set: &libc::cpu_set_t) -> io::Result<()> {
    // SAFETY: `set` may be read, and has that size.
    match unsafe { libc::sched_setaffinity(0, size_of_val(set), set) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

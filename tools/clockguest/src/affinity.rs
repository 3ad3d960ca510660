// SPDX-License-Identifier: GPL-2.0-only

//! The host CPUs that threads may use.

use std::{fs, io, mem::MaybeUninit};

/// A set of host CPUs.
#[derive(Clone, Copy, Debug)]
pub struct CpuSet(libc::cpu_set_t);

impl CpuSet {
    fn empty() -> Self {
        // SAFETY: It is a set of bits, and may be empty.
        Self(unsafe { MaybeUninit::zeroed().assume_init() })
    }

    /// The CPUs that this thread may use.
    ///
    /// # Errors
    ///
    /// That of `sched_getaffinity()`, on a host with more than 1,024 CPUs.
    pub fn of_this_thread() -> io::Result<Self> {
        let mut set = Self::empty();
        // SAFETY: `set` may be written, and has that size.
        match unsafe { libc::sched_getaffinity(0, size_of_val(&set.0), &mut set.0) } {
            0 => Ok(set),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// The set of one CPU of another set.
    pub fn one(cpu: usize) -> Self {
        let mut set = Self::empty();
        assert!(cpu < libc::CPU_SETSIZE as usize, "{cpu} is in no set");
        // SAFETY: The index is below the set's size.
        unsafe { libc::CPU_SET(cpu, &mut set.0) };
        set
    }

    /// Its CPUs, in order.
    pub fn cpus(&self) -> impl Iterator<Item = usize> + '_ {
        // SAFETY: The index is below the set's size.
        (0..libc::CPU_SETSIZE as usize).filter(|&cpu| unsafe { libc::CPU_ISSET(cpu, &self.0) })
    }

    /// Restricts `thread` to it; 0 is this thread, with the threads that it starts later.
    ///
    /// # Errors
    ///
    /// That of `sched_setaffinity()`: `ESRCH` if the thread has ended.
    pub fn restrict(&self, thread: libc::pid_t) -> io::Result<()> {
        // SAFETY: `set` may be read, and has that size.
        match unsafe { libc::sched_setaffinity(thread, size_of_val(&self.0), &self.0) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// Restricts the vCPU threads of this process, at least `least`, each to the CPUs of `set` for the
/// vCPU's index.
///
/// # Errors
///
/// Those of `/proc` and of [`CpuSet::restrict`]; if there are fewer threads.
pub fn move_vcpus(least: usize, set: impl Fn(usize) -> CpuSet) -> io::Result<()> {
    let mut moved = 0;
    for entry in fs::read_dir("/proc/self/task")? {
        let path = entry?.path();
        // A thread of an earlier VM may be about to end.
        let name = fs::read_to_string(path.join("comm")).unwrap_or_default();
        let index = name.trim().strip_prefix("vcpu");
        let index = index.and_then(|index| index.parse().ok());
        let id = path.file_name().and_then(|id| id.to_str()?.parse().ok());
        let Some((id, index)) = id.zip(index) else {
            continue;
        };
        match set(index).restrict(id) {
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

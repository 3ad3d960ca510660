// SPDX-License-Identifier: GPL-2.0-only

//! Kernel modules that a test loads and unloads; among them those of `modules/`, which do something
//! to the host.

use anyhow::{Context, Result};
use std::{env, ffi::CString, fs::File, io, os::fd::AsRawFd, path::Path};

/// Where they are, seen from a `kvm_clock_guest.ko` that was built with them.
const FOLDER: &str = "tools/testing/selftests/kvm_clock_guest/modules";

/// The file of module `name`, opened.
///
/// # Errors
///
/// If it is neither where it was built with `$CLOCK_GUEST_MODULE`, nor in `modules/` beside the
/// program.
pub fn open(name: &str) -> Result<File> {
    let with_own = env::var_os("CLOCK_GUEST_MODULE")
        .map(|own| Path::new(&own).with_file_name(FOLDER))
        .filter(|folder| folder.is_dir());
    let folder = match with_own {
        Some(folder) => folder,
        None => env::current_exe()?.with_file_name("modules"),
    };
    let path = folder.join(format!("{name}.ko"));
    File::open(&path).with_context(|| path.display().to_string())
}

/// Loads a module with `parameters`.
///
/// # Errors
///
/// That of `finit_module()`.
pub fn load(module: &File, parameters: &str) -> io::Result<()> {
    let parameters = CString::new(parameters)?;
    // SAFETY: The parameters are a C string, and the kernel only reads it.
    let ret = unsafe {
        libc::syscall(
            libc::SYS_finit_module,
            module.as_raw_fd(),
            parameters.as_ptr(),
            0,
        )
    };
    match ret {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Unloads module `name`.
///
/// # Errors
///
/// That of `delete_module()`: `EAGAIN` (or `EWOULDBLOCK`, the same number) while something uses it.
pub fn unload(name: &str) -> io::Result<()> {
    let name = CString::new(name)?;
    // SAFETY: The name is a C string, and the kernel only reads it.
    let ret = unsafe { libc::syscall(libc::SYS_delete_module, name.as_ptr(), libc::O_NONBLOCK) };
    match ret {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

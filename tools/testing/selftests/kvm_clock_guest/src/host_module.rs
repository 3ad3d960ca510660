// SPDX-License-Identifier: GPL-2.0-only

//! Kernel modules that a test loads and unloads; among them those of `modules/`, which do something
//! to the host and are built beside `kvm_clock_guest.ko`.

use anyhow::{
    Context,
    Result, //
};
use std::{
    env,
    ffi::CString,
    fs::File,
    io,
    os::fd::AsRawFd,
    path::{
        Path,
        PathBuf, //
    },
};

/// Where they are, seen from `kvm_clock_guest.ko`.
const FOLDER: &str = "tools/testing/selftests/kvm_clock_guest/modules";

/// The file of module `name`, opened.
///
/// # Errors
///
/// If `$CLOCK_GUEST_MODULE` does not name `kvm_clock_guest.ko`, or the module is not there.
pub fn open(name: &str) -> Result<File> {
    let own = env::var_os("CLOCK_GUEST_MODULE")
        .context("CLOCK_GUEST_MODULE is to name kvm_clock_guest.ko")?;
    let path: PathBuf = Path::new(&own)
        .with_file_name(FOLDER)
        .join(format!("{name}.ko"));
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

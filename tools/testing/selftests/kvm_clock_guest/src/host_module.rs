// SPDX-License-Identifier: GPL-2.0-only

//! Kernel modules that a test loads and unloads, e.g. those of `modules/`, which change the host.

use anyhow::{bail, Context, Result};
use clockguest::vmm::Vm;
use pvclock::counter::HostTsc;
use std::{
    env,
    ffi::CString,
    fs::File,
    io,
    ops::Range,
    os::fd::{AsRawFd, RawFd},
    path::Path,
};

/// Where they are, relative to a `kvm_clock_guest.ko` that was built with them.
const FOLDER: &str = "tools/testing/selftests/kvm_clock_guest/modules";

/// Opens the file of module `name`: it was built with `$CLOCK_GUEST_MODULE`, or is in `modules/`
/// beside the program.
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

/// Loads a module of `modules/` that acts when it is loaded, and does not stay.
fn load_once(name: &str, parameters: &str) -> Result<()> {
    match load(&open(name)?, parameters) {
        Err(error) if error.raw_os_error() == Some(libc::ECANCELED) => Ok(()),
        Err(error) => Err(error).context(name.to_owned()),
        Ok(()) => bail!("{name} stays loaded"),
    }
}

/// Sets whether KVM treats a stopped vCPU's TSC as `protected` from the host.
pub fn protect_guest_tsc(vm: &Vm, vcpu: usize, protected: bool) -> Result<()> {
    let fd = vm.vcpus()[vcpu].fd().as_raw_fd();
    let parameters = format!("vcpu_fd={fd} protected={protected}");
    load_once("protect_guest_tsc", &parameters)
}

/// Has code in the kernel save the clocks of the VM with vCPU `from`, and make them those of the VM
/// with vCPU `to`, with `fault` in between: parameters of `modules/hand_over_clocks.c`.
///
/// # Errors
///
/// The source is that of KVM's functions.
pub fn hand_over_clocks(from: RawFd, to: RawFd, fault: &str) -> Result<()> {
    let parameters = format!("vcpu_fd={from} to_vcpu_fd={to} {fault}");
    load_once("hand_over_clocks", &parameters)
}

/// Sets the host TSC that KVM recorded when it last loaded these `vcpus` of the stopped `vm`. Every
/// ioctl of a vCPU overwrites it.
pub fn set_last_host_tsc(vm: &Vm, vcpus: Range<usize>, host_tsc: HostTsc) -> Result<()> {
    for vcpu in &vm.vcpus()[vcpus] {
        let fd = vcpu.fd().as_raw_fd();
        let parameters = format!("vcpu_fd={fd} ticks={host_tsc}");
        load_once("set_last_host_tsc", &parameters)?;
    }
    Ok(())
}

/// Loads a module with `parameters`.
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

/// Unloads module `name`; fails with `EAGAIN` while something uses it.
pub fn unload(name: &str) -> io::Result<()> {
    let name = CString::new(name)?;
    // SAFETY: The name is a C string, and the kernel only reads it.
    let ret = unsafe { libc::syscall(libc::SYS_delete_module, name.as_ptr(), libc::O_NONBLOCK) };
    match ret {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

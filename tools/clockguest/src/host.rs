// SPDX-License-Identifier: GPL-2.0-only

//! The host: which KVM it has, and its TSC.

use kvm_ioctls::Kvm;
use pvclock::abi;
use std::{
    arch::x86_64::{_mm_lfence, _rdtsc},
    fs, io,
    path::Path,
};
use thiserror::Error;

/// What this host lacks; the command line exits with status 4 on it.
#[derive(Debug, Error)]
pub enum Unavailable {
    /// `/dev/kvm` cannot be opened.
    #[error(
        "cannot open /dev/kvm ({0}): load kvm_amd or kvm_intel, or run in the test host (make vm)"
    )]
    NoKvm(kvm_ioctls::Error),
    /// `/dev/kvm` is there, but not by kvm_amd or kvm_intel.
    #[error(
        "/dev/kvm is here, but neither kvm_amd nor kvm_intel is loaded, so it is not hardware KVM \
         and may not have TSC offsets: run in the test host (make vm), or pass --any-kvm"
    )]
    NotVendorKvm,
    /// The capability of the module is absent.
    #[error(
        "KVM_CAP_VM_CLOCK_GUEST is {0:#x} here, method atomic needs bit {need:#x}: load the \
         kvm_clock_guest module into a kernel that has its KVM hook series",
        need = abi::CAP_EXACT
    )]
    NoClockGuest(u32),
}

/// The KVM module of the CPU's vendor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vendor {
    /// `kvm_amd`: SVM.
    Amd,
    /// `kvm_intel`: VMX.
    Intel,
}

impl Vendor {
    /// The one that is loaded.
    pub fn loaded() -> Option<Self> {
        if module_loaded("kvm_amd") {
            Some(Self::Amd)
        } else if module_loaded("kvm_intel") {
            Some(Self::Intel)
        } else {
            None
        }
    }

    /// The module's name.
    pub fn module(self) -> &'static str {
        match self {
            Self::Amd => "kvm_amd",
            Self::Intel => "kvm_intel",
        }
    }

    /// Fraction bits of this vendor's TSC scaling ratio.
    pub fn tsc_frac_bits(self) -> u32 {
        match self {
            Self::Amd => 32,
            Self::Intel => 48,
        }
    }
}

/// Whether the kernel module `name` is loaded or built in.
pub fn module_loaded(name: &str) -> bool {
    Path::new("/sys/module").join(name).is_dir()
}

/// Opens `/dev/kvm`; unless `any`, only if the CPU vendor's module is behind it.
///
/// # Errors
///
/// [`Unavailable`]: what is missing.
pub fn open_kvm(any: bool) -> Result<Kvm, Unavailable> {
    let kvm = Kvm::new().map_err(Unavailable::NoKvm)?;
    if !any && Vendor::loaded().is_none() {
        return Err(Unavailable::NotVendorKvm);
    }
    Ok(kvm)
}

/// The host TSC (ticks), read after everything before it and before everything after it.
pub fn rdtsc_ordered() -> u64 {
    // SAFETY: Both instructions are part of x86-64, and have no operands in memory.
    unsafe {
        _mm_lfence();
        let tsc = _rdtsc();
        _mm_lfence();
        tsc
    }
}

/// KVM's module parameter `tsc_tolerance_ppm`, parts per million, or its default: up to so far from the
/// host's, KVM does not scale a guest's TSC rate.
pub fn tsc_tolerance_ppm() -> u32 {
    fs::read_to_string("/sys/module/kvm/parameters/tsc_tolerance_ppm")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(250)
}

/// What Linux calls this boot.
///
/// # Errors
///
/// That of the file in `/proc`.
pub fn boot_id() -> io::Result<String> {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    Ok(id.trim().to_owned())
}

/// Where tracefs may be.
pub const TRACEFS: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];

/// The tracefs that has `file`, which is there to this user.
pub fn tracefs_with(file: &str) -> Option<&'static Path> {
    TRACEFS
        .into_iter()
        .map(Path::new)
        .find(|path| path.join(file).exists())
}

/// `CLOCK_TAI`, ns.
///
/// # Errors
///
/// That of `clock_gettime()`.
pub fn tai_ns() -> io::Result<i64> {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `now` is valid for writes.
    if unsafe { libc::clock_gettime(libc::CLOCK_TAI, &mut now) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(now.tv_sec * 1_000_000_000 + now.tv_nsec)
}

/// TAI - UTC, s, as the host's kernel knows it; 0 if it does not.
///
/// # Errors
///
/// That of `adjtimex()`.
pub fn tai_offset_s() -> io::Result<i32> {
    // SAFETY: All zeros are a valid `timex`, which reads and sets nothing.
    let mut timex: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: `timex` is valid for writes.
    if unsafe { libc::adjtimex(&mut timex) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(timex.tai)
}

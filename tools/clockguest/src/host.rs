// SPDX-License-Identifier: GPL-2.0-only

//! The host's KVM, TSC and clocks.

use kvm_ioctls::Kvm;
use pvclock::{abi, counter::HostTsc};
use std::{
    arch::x86_64::{_mm_lfence, _rdtsc},
    fs, io,
    path::Path,
};
use thiserror::Error;

/// A feature that this host lacks; the command line exits with status 4.
#[derive(Debug, Error)]
pub enum Unavailable {
    /// `/dev/kvm` cannot be opened.
    #[error(
        "cannot open /dev/kvm ({0}): load kvm_amd or kvm_intel, or run in the test host (make vm)"
    )]
    NoKvm(kvm_ioctls::Error),
    /// `/dev/kvm` exists without kvm_amd or kvm_intel.
    #[error(
        "/dev/kvm exists, but neither kvm_amd nor kvm_intel is loaded, so it is not hardware KVM \
         and may not have TSC offsets: run in the test host (make vm), or pass --any-kvm"
    )]
    NotVendorKvm,
    /// KVM does not have the module's capability.
    #[error(
        "KVM_CAP_VM_CLOCK_GUEST is {0:#x}, but method atomic needs bit {need:#x}: load the \
         kvm_clock_guest module into a kernel that has its KVM hook series",
        need = abi::CAP_EXACT
    )]
    NoClockGuest(u32),
    /// There is no Live Update Orchestrator.
    #[error(
        "cannot open /dev/liveupdate ({0}): it needs a kernel with CONFIG_LIVEUPDATE_MEMFD, \
         started with kho=on liveupdate=on"
    )]
    NoLiveUpdate(io::Error),
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
    /// The vendor whose module is loaded.
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

    /// The number of fraction bits in this vendor's TSC scaling ratio.
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

/// Opens `/dev/kvm`; unless `any` is set, only if a CPU vendor's module is loaded.
///
/// # Errors
///
/// [`Unavailable`].
pub fn open_kvm(any: bool) -> Result<Kvm, Unavailable> {
    let kvm = Kvm::new().map_err(Unavailable::NoKvm)?;
    if !any && Vendor::loaded().is_none() {
        return Err(Unavailable::NotVendorKvm);
    }
    Ok(kvm)
}

/// The host TSC, ordered against all instructions before and after it.
pub fn rdtsc_ordered() -> HostTsc {
    // SAFETY: Both instructions are part of x86-64 and access no memory.
    unsafe {
        _mm_lfence();
        let tsc = _rdtsc();
        _mm_lfence();
        HostTsc(tsc)
    }
}

/// KVM's module parameter `tsc_tolerance_ppm` (parts per million), or its default: KVM does not
/// scale a guest's TSC whose rate is this close to the host's.
pub fn tsc_tolerance_ppm() -> u32 {
    fs::read_to_string("/sys/module/kvm/parameters/tsc_tolerance_ppm")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(250)
}

/// Possible mount points of tracefs.
pub const TRACEFS: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];

/// The tracefs that has `file`, accessible to this user.
pub fn tracefs_with(file: &str) -> Option<&'static Path> {
    TRACEFS
        .into_iter()
        .map(Path::new)
        .find(|path| path.join(file).exists())
}

/// The host's clock `id`, ns.
///
/// # Errors
///
/// That of `clock_gettime()`.
pub fn clock_ns(id: libc::clockid_t) -> io::Result<i64> {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `now` is valid for writes.
    if unsafe { libc::clock_gettime(id, &mut now) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(now.tv_sec * 1_000_000_000 + now.tv_nsec)
}

/// `CLOCK_TAI`, ns.
///
/// # Errors
///
/// As [`clock_ns()`].
pub fn tai_ns() -> io::Result<i64> {
    clock_ns(libc::CLOCK_TAI)
}

/// A reading of one of the host's clocks, and the host TSC before and after it.
#[derive(Clone, Copy, Debug)]
pub struct ClockAndTsc {
    /// The clock, ns.
    pub ns: i64,
    /// Host TSC before and after.
    pub host_tsc: [HostTsc; 2],
}

impl ClockAndTsc {
    /// Reads the host's clock `id` so many `times`, and returns the reading that took the fewest
    /// ticks.
    ///
    /// # Errors
    ///
    /// As [`clock_ns()`].
    pub fn tightest(id: libc::clockid_t, times: u32) -> io::Result<Self> {
        let mut best = Self::read(id)?;
        for _ in 1..times {
            let other = Self::read(id)?;
            if other.ticks() < best.ticks() {
                best = other;
            }
        }
        Ok(best)
    }

    fn read(id: libc::clockid_t) -> io::Result<Self> {
        let before = rdtsc_ordered();
        let ns = clock_ns(id)?;
        let host_tsc = [before, rdtsc_ordered()];
        Ok(Self { ns, host_tsc })
    }

    /// How long the reading took, host ticks.
    pub fn ticks(self) -> u64 {
        let [before, after] = self.host_tsc;
        after.since(before)
    }

    /// Host TSC in the middle of the reading.
    pub fn middle(self) -> HostTsc {
        self.host_tsc[0].wrapping_add(self.ticks() / 2)
    }
}

/// TAI - UTC of the host's kernel, s; 0 if it is not set.
///
/// # Errors
///
/// That of `adjtimex()`.
pub fn tai_offset_s() -> io::Result<i32> {
    // SAFETY: An all-zero `timex` is valid; it requests a read.
    let mut timex: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: `timex` is valid for writes.
    if unsafe { libc::adjtimex(&mut timex) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(timex.tai)
}

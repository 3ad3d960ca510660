// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Why clocks cannot be saved or restored.

use crate::errno::Errno;
use pvclock::request::Invalid;
use std::{fmt, io, time::Duration};

/// Why clocks cannot be saved or restored. The VM's clocks are as before.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// An ioctl failed.
    Ioctl {
        /// Its name.
        call: &'static str,
        /// Its errno.
        errno: Errno,
    },
    /// The ID of this host's boot cannot be read; see [`HostId`](crate::HostId).
    HostId(io::Error),
    /// The data is not that of [`SavedClocks`](crate::SavedClocks): it has no version.
    Foreign,
    /// The data has another version of the format, which this crate does not know.
    Version(u32),
    /// A part of the data is shorter than in any version.
    Truncated {
        /// The part.
        part: &'static str,
        /// Its length, bytes.
        len: usize,
        /// Its length in the first version, bytes.
        least: usize,
    },
    /// No KVM makes such values.
    Invalid(Invalid),
    /// The TSC offsets do not yield the saved TSC and kvmclock: they are those of another VM.
    OtherVm,
    /// There is no vCPU.
    NoVcpus,
    /// This vCPU was saved, but the VM does not have it.
    VcpuMissing(u32),
    /// The VM has this vCPU, but it was not saved.
    VcpuAdded(u32),
    /// This vCPU occurs twice.
    VcpuTwice(u32),
    /// The kernel module is absent, or does not have the mode; the policy does not allow the older
    /// ioctls.
    NoModule {
        /// `KVM_CAP_VM_CLOCK_GUEST`.
        cap: u32,
    },
    /// The guest's TSC is scaled by a ratio that this kernel does not report, and the module, which
    /// knows it, is absent.
    ScaledTsc,
    /// The guest's TSC would run at another rate, or its kvmclock has another rate than its TSC,
    /// and the policy does not allow that.
    OtherRate {
        /// The rate of the guest's TSC here minus the saved one, Hz.
        diff_hz: i64,
    },
    /// Mode exact, but this host's TSC has not come as far as the saved one.
    Stale,
    /// This host's clock is behind the time of the save, and the policy does not allow to hide
    /// that.
    Behind {
        /// By how much.
        by: Duration,
    },
    /// More time has passed than the policy allows.
    BeyondLimit {
        /// The time that has passed by the two hosts' clocks.
        elapsed: Duration,
        /// The policy's limit.
        limit: Duration,
    },
    /// The host does not keep time with a stable TSC, and the policy does not allow that.
    NotStable,
}

impl Error {
    /// Adds the name of the call to an errno.
    pub(crate) fn of(call: &'static str) -> impl Fn(Errno) -> Self {
        move |errno| Self::Ioctl { call, errno }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ioctl { call, errno } => write!(f, "{call}: {errno}"),
            Self::HostId(error) => write!(f, "cannot read the ID of this host's boot: {error}"),
            Self::Foreign => f.write_str("the data has no version: it is not that of saved clocks"),
            Self::Version(version) => write!(
                f,
                "saved clocks of format {version}; this program knows {}",
                crate::SavedClocks::VERSION
            ),
            Self::Truncated { part, len, least } => {
                write!(
                    f,
                    "saved clocks are truncated: {part} has {len} bytes, not {least}"
                )
            }
            Self::Invalid(invalid) => write!(f, "saved clocks are invalid: {invalid:?}"),
            Self::OtherVm => f.write_str(
                "the saved TSC offsets do not yield the saved TSC and kvmclock: they are those of \
                 another VM",
            ),
            Self::NoVcpus => f.write_str("there is no vCPU"),
            Self::VcpuMissing(id) => write!(f, "vCPU {id} was saved, but the VM does not have it"),
            Self::VcpuAdded(id) => write!(f, "the VM has vCPU {id}, which was not saved"),
            Self::VcpuTwice(id) => write!(f, "vCPU {id} occurs twice"),
            Self::NoModule { cap } => write!(
                f,
                "KVM_CAP_VM_CLOCK_GUEST is {cap:#x}: the kernel module kvm_clock_guest is absent \
                 or too old, and the policy does not allow to do without"
            ),
            Self::ScaledTsc => f.write_str(
                "the guest's TSC is scaled, and without kvm_clock_guest this kernel does not \
                 report by which ratio",
            ),
            Self::OtherRate { diff_hz: 0 } => {
                f.write_str("the guest's kvmclock has another rate than its TSC has here")
            }
            Self::OtherRate { diff_hz } => write!(
                f,
                "the guest's TSC would run {} Hz {} here, and this host cannot scale it",
                diff_hz.unsigned_abs(),
                if *diff_hz < 0 { "slower" } else { "faster" }
            ),
            Self::Stale => f.write_str(
                "mode exact, but this host's TSC is behind the saved one: it is another host, or \
                 its TSC was reset",
            ),
            Self::Behind { by } => write!(
                f,
                "the guest was saved in the future: this host's clock is {by:?} behind"
            ),
            Self::BeyondLimit { elapsed, limit } => write!(
                f,
                "{elapsed:?} have passed since the save by the hosts' clocks; the limit is \
                 {limit:?}"
            ),
            Self::NotStable => f.write_str("this host does not keep time with a stable TSC"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Ioctl { errno, .. } => Some(errno),
            Self::HostId(error) => Some(error),
            _ => None,
        }
    }
}

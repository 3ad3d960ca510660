// SPDX-License-Identifier: GPL-2.0-only

//! What can go wrong with a VM.

use crate::{guest::layout::MAX_VCPUS, stream};
use std::{io, time::Duration};
use thiserror::Error;

/// Result of the VMM's functions.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a VM cannot be made, run, saved or restored.
#[derive(Debug, Error)]
pub enum Error {
    /// An ioctl or a mapping failed.
    #[error("{what}: {errno}")]
    Sys {
        /// The call, by its name in KVM's API.
        what: &'static str,
        /// Its errno.
        errno: vmm_sys_util::errno::Error,
    },
    /// A vCPU left KVM_RUN for a reason this guest does not give.
    #[error("vCPU {index} left KVM_RUN unexpectedly: {exit}")]
    Exit {
        /// Index of the vCPU.
        index: usize,
        /// The exit or the errno, the exit's own data, registers, and the state of the built-in guest.
        exit: String,
    },
    /// A vCPU thread did not react in time.
    #[error("vCPU {index} did not {what} within {after:?}")]
    Timeout {
        /// Index of the vCPU.
        index: usize,
        /// What it was told to do.
        what: &'static str,
        /// How long was waited.
        after: Duration,
    },
    /// More vCPUs than the guest has room for.
    #[error("{0} vCPUs asked for; the guest has room for 1 to {MAX_VCPUS}")]
    VcpuCount(u32),
    /// A saved state that does not fit the VM, or is no saved state.
    #[error("saved state: {0}")]
    State(String),
    /// Reading or writing a saved state failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A saved state in a stream that is refused.
    #[error(transparent)]
    Stream(#[from] stream::Error),
    /// `KVM_GET_CLOCK` or `KVM_GET_MSRS` did not return what was asked for.
    #[error("{0}")]
    Missing(String),
}

/// Names the call in an errno.
pub(crate) trait Context<T> {
    /// `what` is the call.
    fn context(self, what: &'static str) -> Result<T>;
}

impl<T> Context<T> for std::result::Result<T, vmm_sys_util::errno::Error> {
    fn context(self, what: &'static str) -> Result<T> {
        self.map_err(|errno| Error::Sys { what, errno })
    }
}

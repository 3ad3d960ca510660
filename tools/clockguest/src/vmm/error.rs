// SPDX-License-Identifier: GPL-2.0-only

//! Errors of a VM.

use crate::{guest::layout::MAX_VCPUS, stream};
use std::{io, time::Duration};
use thiserror::Error;

/// Result of the VMM's functions.
pub type Result<T> = std::result::Result<T, Error>;

/// The reason why a VM cannot be created, run, saved or restored.
#[derive(Debug, Error)]
pub enum Error {
    /// An ioctl or a mapping failed.
    #[error("{what}: {errno}")]
    Sys {
        /// The call, by its name in KVM's API.
        what: &'static str,
        /// Its errno.
        errno: io::Error,
    },
    /// A vCPU left KVM_RUN with an exit that the guest never causes, or with an error.
    #[error("vCPU {index} left KVM_RUN unexpectedly: {exit}")]
    Exit {
        /// Index of the vCPU.
        index: usize,
        /// The exit or the errno, the exit's own data, registers, and the state of the built-in
        /// guest.
        exit: String,
    },
    /// A vCPU left KVM_RUN, but did not halt.
    #[error("the guest's HLT ended in {0}")]
    NoHalt(String),
    /// A vCPU thread did not react in time.
    #[error("vCPU {index} did not {what} within {after:?}")]
    Timeout {
        /// Index of the vCPU.
        index: usize,
        /// The requested action.
        what: &'static str,
        /// The time limit.
        after: Duration,
    },
    /// More vCPUs than the guest supports.
    #[error("the guest supports 1 to {MAX_VCPUS} vCPUs, not {0}")]
    VcpuCount(u32),
    /// A saved state that is invalid or does not match the VM.
    #[error("saved state: {0}")]
    State(String),
    /// Clocks could not be saved or restored.
    #[error(transparent)]
    Clocks(#[from] kvm_clock::Error),
    /// Reading or writing a saved state failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A saved state's stream is refused.
    #[error(transparent)]
    Stream(#[from] stream::Error),
    /// KVM did not return or accept a value.
    #[error("{0}")]
    Missing(String),
}

/// Adds the name of the call to an errno.
pub(crate) trait Context<T> {
    /// `what` is the name of the call.
    fn context(self, what: &'static str) -> Result<T>;
}

impl<T, E: Into<io::Error>> Context<T> for std::result::Result<T, E> {
    fn context(self, what: &'static str) -> Result<T> {
        self.map_err(|errno| Error::Sys {
            what,
            errno: errno.into(),
        })
    }
}

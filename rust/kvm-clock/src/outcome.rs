// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a restore did.

use crate::{host::HostCheck, policy::Mode};
use std::fmt;

/// The calls that restored the clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "kebab-case")
)]
pub enum Procedure {
    /// `KVM_SET_VM_CLOCK_GUEST`.
    Module,
    /// `KVM_VCPU_TSC_OFFSET` and `KVM_SET_CLOCK`.
    Legacy,
}

impl fmt::Display for Procedure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Module => "KVM_SET_VM_CLOCK_GUEST",
            Self::Legacy => "KVM_SET_CLOCK, KVM_VCPU_TSC_OFFSET",
        })
    }
}

/// Something that the guest has lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "kebab-case")
)]
#[non_exhaustive]
pub enum Loss {
    /// The guest's clocks continue from their saved values, as this host's clock is behind by this
    /// many ns.
    Behind(u64),
    /// The same, as this many ns have passed, which is more than the limit.
    BeyondLimit(u64),
    /// kvmclock has this host's slope, not its own.
    Resloped,
    /// The guest's TSC runs faster by this many Hz.
    OtherRate(i64),
    /// The module was absent where the clocks were saved: the record is rebuilt, with this error,
    /// ns.
    NoModuleThere(u32),
    /// The module is absent here: KVM derives a new record, which is this many ns off now.
    NoModuleHere(u32),
    /// The host does not keep time with a stable TSC: kvmclock is not pinned, and is up to this
    /// many ns off now.
    NotPinned(u32),
    /// The guest's steal time does not count the pause.
    StealTime,
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Behind(ns) => write!(
                f,
                "the pause is hidden: this host's clock is {ns} ns behind the time of the save"
            ),
            Self::BeyondLimit(ns) => write!(
                f,
                "the pause is hidden: by the hosts' clocks it took {ns} ns, more than the limit"
            ),
            Self::Resloped => f.write_str("kvmclock continues with the slope of this host's TSC"),
            Self::OtherRate(hz) => write!(f, "the guest's TSC runs at another rate: {hz:+} Hz"),
            Self::NoModuleThere(ns) => write!(
                f,
                "the source has no kvm_clock_guest: the record is rebuilt from KVM_GET_CLOCK's \
                 value, to {ns} ns"
            ),
            Self::NoModuleHere(ns) => write!(
                f,
                "the destination has no kvm_clock_guest: KVM derives a new record there, which \
                 shifts kvmclock against the TSC, by {ns} ns now"
            ),
            Self::NotPinned(ns) => write!(
                f,
                "the host does not keep time with a stable TSC: kvmclock is not pinned, and up to \
                 {ns} ns off now"
            ),
            Self::StealTime => f.write_str("the guest's steal time does not count the pause"),
        }
    }
}

/// What a restore did.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Outcome {
    /// The calls.
    pub procedure: Procedure,
    /// The mode.
    pub mode: Mode,
    /// What the comparison with the host that saved the clocks showed.
    pub host: HostCheck,
    /// How far mode advance moved the clocks, ns, by the hosts' clocks; 0 in other modes.
    pub advanced_ns: u64,
    /// How far guest TSC or kvmclock may be from what was requested, ns; 0 is exact. The error of
    /// the hosts' clocks is not included.
    pub precision_ns: u32,
    /// The rate of the guest's TSC here minus the saved one, Hz.
    pub rate_diff_hz: i64,
    /// What the guest has lost; empty if nothing.
    pub lost: Vec<Loss>,
}

impl Outcome {
    /// What the guest has lost, as one text; `None` if nothing.
    ///
    /// # Example
    ///
    /// ```no_run
    /// # fn f(outcome: kvm_clock::Outcome) {
    /// if let Some(lost) = outcome.lost() {
    ///     eprintln!("guest clocks: {lost}");
    /// }
    /// # }
    /// ```
    pub fn lost(&self) -> Option<String> {
        let lost: Vec<_> = self.lost.iter().map(Loss::to_string).collect();
        (!lost.is_empty()).then(|| lost.join("; "))
    }
}

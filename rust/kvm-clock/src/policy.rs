// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a restore may do.

use crate::{abi, host::HostId};
use std::time::Duration;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// How the clocks of a guest continue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "kebab-case")
)]
pub enum Mode {
    /// Same host TSC: offsets and record are restored bit for bit.
    Exact,
    /// Another host: the guest's TSC advances by the elapsed TAI.
    Advance,
    /// The guest's TSC continues from its saved value: the pause is hidden.
    Freeze,
}

impl Mode {
    /// The ioctl's `MODE_*`.
    pub const fn to_abi(self) -> u32 {
        match self {
            Self::Exact => abi::MODE_EXACT,
            Self::Advance => abi::MODE_ADVANCE,
            Self::Freeze => abi::MODE_FREEZE,
        }
    }

    /// The bit of `KVM_CAP_VM_CLOCK_GUEST` that the mode needs.
    pub const fn cap(self) -> u32 {
        match self {
            Self::Exact => abi::CAP_EXACT,
            Self::Advance => abi::CAP_ADVANCE,
            Self::Freeze => abi::CAP_FREEZE,
        }
    }

    /// Its name: `exact`, `advance` or `freeze`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Advance => "advance",
            Self::Freeze => "freeze",
        }
    }
}

/// How the mode is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "kebab-case")
)]
pub enum ModeChoice {
    /// Exact on the same boot of the same host, if its TSC has counted on; advance elsewhere.
    #[default]
    Auto,
    /// This one. [`Mode::Exact`] is for a VMM that knows that the host's TSC has counted on, e.g.
    /// after a kexec.
    Always(Mode),
}

/// What to do if the guest's rates do not fit this host (`ERANGE`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "kebab-case")
)]
pub enum OtherRate {
    /// [`Error::OtherRate`](crate::Error::OtherRate).
    Refuse,
    /// If only the record's slope does not fit, kvmclock continues with the slope of this host's
    /// TSC.
    #[default]
    Reslope,
    /// Also let the guest's TSC run at another rate, which is right only for guests that do not use
    /// it as their clock.
    Accept,
}

/// What to do instead of advancing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "kebab-case")
)]
pub enum Otherwise {
    /// An error.
    Refuse,
    /// [`Mode::Freeze`]: the guest's clocks continue from their saved values.
    Freeze,
}

/// What to do if the kernel module is absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "kebab-case")
)]
pub enum NoModule {
    /// [`Error::NoModule`](crate::Error::NoModule).
    Refuse,
    /// Use the older ioctls, as well as they allow: `KVM_VCPU_TSC_OFFSET` and `KVM_SET_CLOCK`.
    #[default]
    Legacy,
}

/// What a restore may do.
///
/// # Example
///
/// ```
/// use kvm_clock::{Otherwise, Policy};
/// use std::time::Duration;
///
/// // A live migration takes seconds: a clock that is a minute ahead is wrong.
/// let policy = Policy {
///     max_advance: Some(Duration::from_secs(60)),
///     beyond_limit: Otherwise::Refuse,
///     ..Policy::default()
/// };
/// # let _ = policy;
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(default)
)]
pub struct Policy {
    /// How the mode is chosen; by default [`ModeChoice::Auto`].
    pub mode: ModeChoice,
    /// This host, for [`ModeChoice::Auto`]; by default `None`: it is read from `/proc`.
    pub host: Option<HostId>,
    /// If the rates do not fit (`ERANGE`); by default [`OtherRate::Reslope`].
    pub other_rate: OtherRate,
    /// If the guest was saved in the future of this host's clock (`ETIME`); by default
    /// [`Otherwise::Freeze`].
    pub behind: Otherwise,
    /// How far mode advance may move the guest's clocks; by default 366 days, which are more than
    /// between most snapshots and their restore, and less than the error of a clock that was never
    /// set. `None` is no limit.
    pub max_advance: Option<Duration>,
    /// If more time has passed than that; by default [`Otherwise::Refuse`].
    pub beyond_limit: Otherwise,
    /// If the kernel module is absent; by default [`NoModule::Legacy`].
    pub no_module: NoModule,
    /// Whether a host that does not keep time with a stable TSC may restore the guest, whose
    /// kvmclock is not pinned there; by default `true`.
    pub fallback: bool,
    /// Whether the guest's steal time counts the pause, unless the pause is hidden; by default
    /// `true`.
    pub steal_time: bool,
    /// How far this host's `CLOCK_TAI` is ahead of that of the host that saved the guest, ns, if
    /// somebody has measured it; by default `None`: the two agree.
    pub clock_ahead_ns: Option<i64>,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            mode: ModeChoice::Auto,
            host: None,
            other_rate: OtherRate::Reslope,
            behind: Otherwise::Freeze,
            max_advance: Some(366 * DAY),
            beyond_limit: Otherwise::Refuse,
            no_module: NoModule::Legacy,
            fallback: true,
            steal_time: true,
            clock_ahead_ns: None,
        }
    }
}

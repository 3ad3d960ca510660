// SPDX-License-Identifier: GPL-2.0-only

//! The messages between the two hosts.

use crate::{
    host,
    measure::Reading,
    method::{Method, Mode, Saved},
    stream::Kind,
    vmm::Vm,
};
use anyhow::Result;
use kvm_bindings::{KVM_CAP_TSC_CONTROL, KVM_CAP_VM_TSC_CONTROL};
use kvm_clock::HostId;
use kvm_ioctls::Kvm;
use pvclock::counter::HostTsc;
use serde::{de::DeserializeOwned, Deserialize, Serialize};

/// A JSON message with its own kind of frame.
pub(super) trait Message: Serialize + DeserializeOwned {
    const KIND: Kind;
}

macro_rules! message {
    ($($name:ident)*) => {
        $(impl Message for $name {
            const KIND: Kind = Kind::$name;
        })*
    };
}

message!(Hello Offer Prepared Ping Pong Restored Refused Go Running);

/// Describes a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Hello {
    /// ID of its kernel's boot.
    pub(super) boot_id: HostId,
    /// The default TSC rate of a guest, kHz.
    pub(super) tsc_khz: u32,
    /// `KVM_CAP_VM_CLOCK_GUEST`.
    pub(super) clock_guest_cap: u32,
    /// Whether it can scale a guest's TSC.
    pub(super) can_scale: bool,
    /// TAI - UTC of its kernel, s.
    pub(super) tai_offset_s: i32,
}

impl Hello {
    /// This host.
    pub(super) fn of(kvm: &Kvm) -> Result<Self> {
        let vm = Vm::empty(kvm, 1)?;
        let needed = [KVM_CAP_TSC_CONTROL, KVM_CAP_VM_TSC_CONTROL];
        Ok(Self {
            boot_id: HostId::read()?,
            tsc_khz: vm.tsc_khz()?,
            clock_guest_cap: kvm_clock::clock_guest_cap(vm.fd()),
            can_scale: needed
                .iter()
                .all(|&cap| kvm.check_extension_raw(cap.into()) > 0),
            tai_offset_s: host::tai_offset_s()?,
        })
    }
}

/// Offers a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Offer {
    /// Its vCPUs.
    pub(super) vcpus: u32,
    /// Its TSC rate, kHz.
    pub(super) tsc_khz: u32,
}

/// The guest's VM exists.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Prepared {}

/// Asks for a [`Pong`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Ping {}

/// The answering host's `CLOCK_TAI`, ns.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Pong {
    /// On receipt of the ping.
    pub(super) received_ns: i64,
    /// Right before sending the answer.
    pub(super) sent_ns: i64,
}

/// The difference between two hosts' `CLOCK_TAI`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockShift {
    /// Destination minus source when the clocks were saved, ns.
    pub tai_ns: i64,
    /// The largest error of `tai_ns`, ns, unless a host's clock drifts faster than Linux
    /// disciplines it.
    pub uncertainty_ns: u64,
}

/// The clocks of a guest's state.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Clocks {
    /// The saved clocks, in the source's time.
    pub(super) saved: Saved,
    /// The method.
    pub(super) method: Method,
    /// The requested mode.
    pub(super) mode: Mode,
    /// The source's `CLOCK_TAI` when they were saved, ns.
    pub(super) saved_at_ns: i64,
    /// The difference between the hosts' clocks; `None` if they are assumed to be equal.
    pub(super) shift: Option<ClockShift>,
    /// The source's TAI - UTC, s.
    pub(super) tai_offset_s: i32,
    /// The guest's readings until it stopped.
    pub(super) reading: Reading,
    /// Whether the destination sends the guest back.
    pub(super) returns: bool,
}

impl Clocks {
    /// The guest's downtime at destination time `now_ns`, ns, saturating.
    pub(super) fn downtime_ns(&self, now_ns: i64) -> i64 {
        now_ns
            .saturating_sub(self.saved_at_ns)
            .saturating_sub(self.shift.map_or(0, |shift| shift.tai_ns))
    }
}

/// Describes how the clocks were restored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Restored {
    /// The system calls.
    pub(super) procedure: String,
    /// The mode of `KVM_SET_VM_CLOCK_GUEST`, if it was used.
    pub(super) mode: Option<Mode>,
    /// The precision that the kernel reports, ns, if any; the difference of the hosts' clocks is
    /// not included.
    pub(super) precision_ns: Option<u32>,
    /// The guest TSC rate here minus the saved one, Hz, if the kernel reports it.
    pub(super) rate_diff_hz: Option<i64>,
    /// What is lost because the requested method could not be used.
    pub(super) lost: Option<String>,
    /// The kernel's clock snapshot, if traced; with other methods, an instant after them.
    pub(super) set_at: Option<SetAt>,
}

/// An instant at the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SetAt {
    /// Host TSC.
    pub(super) host_tsc: HostTsc,
    /// `CLOCK_TAI`, ns.
    pub(super) tai_ns: i64,
    /// TAI - UTC of the host's kernel, s.
    pub(super) tai_offset_s: i32,
}

/// The host aborts the migration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Refused {
    /// The reason, for the user.
    pub(super) why: String,
}

/// The guest belongs to the receiver from now on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Go {}

/// The guest runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Running {
    /// Its downtime since its clocks were saved, in the destination's time, ns.
    pub(super) downtime_ns: i64,
}

impl Message for Reading {
    const KIND: Kind = Kind::Reading;
}

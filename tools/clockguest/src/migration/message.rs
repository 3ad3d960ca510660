// SPDX-License-Identifier: GPL-2.0-only

//! What the two hosts tell each other.

use crate::{
    host,
    measure::Reading,
    method::{Method, Mode, Saved},
    stream::Kind,
    vmm::Vm,
};
use anyhow::{Context, Result};
use kvm_bindings::{KVM_CAP_TSC_CONTROL, KVM_CAP_VM_TSC_CONTROL};
use kvm_ioctls::Kvm;
use serde::{de::DeserializeOwned, Deserialize, Serialize};

/// A JSON message: its frame has a kind of its own.
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

/// What a host is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Hello {
    /// Of its kernel's boot.
    pub(super) boot_id: String,
    /// TSC rate of a guest that asks for none, kHz.
    pub(super) tsc_khz: u32,
    /// `KVM_CAP_VM_CLOCK_GUEST`.
    pub(super) clock_guest_cap: u32,
    /// Whether it can scale a guest's TSC.
    pub(super) can_scale: bool,
    /// TAI - UTC, s, as it knows it.
    pub(super) tai_offset_s: i32,
}

impl Hello {
    /// This host.
    pub(super) fn of(kvm: &Kvm) -> Result<Self> {
        let vm = Vm::empty(kvm, 1)?;
        let needed = [KVM_CAP_TSC_CONTROL, KVM_CAP_VM_TSC_CONTROL];
        Ok(Self {
            boot_id: host::boot_id().context("cannot read this boot's id")?,
            tsc_khz: vm.tsc_khz()?,
            clock_guest_cap: kvm_clock::clock_guest_cap(vm.fd()),
            can_scale: needed
                .iter()
                .all(|&cap| kvm.check_extension_raw(cap.into()) > 0),
            tai_offset_s: host::tai_offset_s()?,
        })
    }
}

/// A guest that is to come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Offer {
    /// Its vCPUs.
    pub(super) vcpus: u32,
    /// Its TSC rate, kHz.
    pub(super) tsc_khz: u32,
}

/// A VM for it is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Prepared {}

/// The sender keeps to itself when it sent it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Ping {}

/// `CLOCK_TAI` of the host that answers, ns.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Pong {
    /// When the ping had come.
    pub(super) received_ns: i64,
    /// When this was about to be sent.
    pub(super) sent_ns: i64,
}

/// How the source's `CLOCK_TAI` becomes the destination's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockShift {
    /// Destination minus source at the moment the clocks were saved, ns.
    pub tai_ns: i64,
    /// The truth is no further from it, ns, unless a host's clock runs faster or slower than any that
    /// is disciplined.
    pub uncertainty_ns: u64,
}

/// The clocks part of a guest's state.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Clocks {
    /// As they were saved, by the source's own clock.
    pub(super) saved: Saved,
    /// The method that the user asked for; `saved` is by another one if the source's host cannot do it.
    pub(super) method: Method,
    /// How to put them back.
    pub(super) mode: Mode,
    /// The source's `CLOCK_TAI` when they were saved, ns.
    pub(super) saved_at_ns: i64,
    /// How the source's time of day becomes the destination's; `None` if both are taken for one.
    pub(super) shift: Option<ClockShift>,
    /// The source's TAI - UTC, s.
    pub(super) tai_offset_s: i32,
    /// Whether the source's hardware scales the guest's TSC.
    pub(super) scaled: bool,
    /// What the guest read until it was stopped.
    pub(super) reading: Reading,
    /// Whether the guest is to come back.
    pub(super) returns: bool,
}

impl Clocks {
    /// How long the guest stood still when the destination's clock reads `now_ns`, ns, saturating.
    pub(super) fn downtime_ns(&self, now_ns: i64) -> i64 {
        now_ns
            .saturating_sub(self.saved_at_ns)
            .saturating_sub(self.shift.map_or(0, |shift| shift.tai_ns))
    }
}

/// What it took to put the clocks back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Restored {
    /// What was done.
    pub(super) procedure: String,
    /// The mode of `KVM_SET_VM_CLOCK_GUEST`, if it was that.
    pub(super) mode: Option<Mode>,
    /// How far the guest's clocks may be from what was asked for, ns, if that is known; the
    /// difference of the hosts' clocks comes on top.
    pub(super) precision_ns: Option<u32>,
    /// Guest TSC rate here minus the saved one, Hz, if the kernel told it.
    pub(super) rate_diff_hz: Option<i64>,
    /// What was lost, if the method that was asked for could not be used.
    pub(super) lost: Option<String>,
    /// What the kernel took for now, if that was traced; of the other methods, an instant after them.
    pub(super) set_at: Option<SetAt>,
}

/// An instant of the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SetAt {
    /// Host TSC, ticks.
    pub(super) host_tsc: u64,
    /// `CLOCK_TAI`, ns.
    pub(super) tai_ns: i64,
    /// TAI - UTC, s, as the host knows it.
    pub(super) tai_offset_s: i32,
}

/// Why a host does not take the guest, or goes no further.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Refused {
    /// For a human.
    pub(super) why: String,
}

/// The guest is the receiver's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Go {}

/// It runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Running {
    /// Since its clocks were saved, by the destination's clock, ns.
    pub(super) downtime_ns: i64,
}

impl Message for Reading {
    const KIND: Kind = Kind::Reading;
}

// SPDX-License-Identifier: GPL-2.0-only

//! All that can be seen of a VM's clocks with two ioctls, to compare before and after a call.

use crate::subject::Subject;
use anyhow::{ensure, Context, Result};
use kvm_bindings::KVM_CLOCK_HOST_TSC;
use kvm_clock::{get_vm_clock_guest_or_fall_back, VmClock};
use kvm_clock_guest_selftests::{clocks::function, fixture::reference_transform};
use pvclock::abi::{ClockGuest, ClockGuestVcpu, VmClockGuest, STATUS_PINNED};

/// The clocks of a VM at one instant.
#[derive(Clone, Debug)]
pub(crate) struct State {
    /// What GET with `FALLBACK` says; `None` if it says `ENODATA`, as one record cannot serve all
    /// vCPUs.
    pub(crate) clock: Option<VmClock>,
    /// TSC offset of every vCPU, ticks.
    pub(crate) offsets: Vec<u64>,
    /// The record of every vCPU as the guest has it, version and all; none if vCPUs run.
    pages: Vec<ClockGuest>,
    /// `KVM_GET_CLOCK` minus what the record says at the same host TSC, ns, where that can be told.
    clock_diff_ns: Option<i64>,
}

/// The part of [`State`] that does not change with time.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Still {
    status: u32,
    rate: (u32, u64, u32),
    precision_ns: u32,
    ref_vcpu_id: u32,
    record: ClockGuest,
    vcpus: Vec<ClockGuestVcpu>,
}

impl Still {
    /// Of what GET wrote.
    pub(crate) fn of(header: &VmClockGuest, vcpus: &[ClockGuestVcpu]) -> Self {
        let mut record = header.record;
        if header.status & STATUS_PINNED == 0 && record.tsc_timestamp == header.guest_tsc {
            // KVM has no point from which it derives its clock, so GET took the anchor for it: the
            // raw clock is what stands still then.
            record.tsc_timestamp = 0;
            // CAST: mod 2^64.
            let raw_ns = header.monotonic_raw_ns as u64;
            record.system_time = record.system_time.wrapping_sub(raw_ns);
        }
        Self {
            status: header.status,
            rate: (header.host_tsc_khz, header.tsc_ratio, header.tsc_frac_bits),
            precision_ns: header.precision_ns,
            ref_vcpu_id: header.ref_vcpu_id,
            record,
            vcpus: vcpus.to_vec(),
        }
    }
}

impl State {
    /// Looks at a VM.
    pub(crate) fn of(subject: &Subject) -> Result<Self> {
        let vm = subject.vm();
        let clock = match get_vm_clock_guest_or_fall_back(vm.fd()) {
            Ok(clock) => clock,
            Err(error) if error.errno() == libc::ENODATA => return Self::without_clock(subject),
            Err(error) => return Err(error).context("KVM_GET_VM_CLOCK_GUEST"),
        };
        let data = vm.fd().get_clock().context("KVM_GET_CLOCK")?;
        let transform = reference_transform(&clock)?;
        let is_pinned = clock.header.status & STATUS_PINNED != 0;
        let knows_tsc = data.flags & KVM_CLOCK_HOST_TSC != 0;
        let clock_diff_ns =
            (knows_tsc && (is_pinned || transform.scale.is_identity())).then(|| {
                let guest_tsc = transform.guest_tsc(data.host_tsc);
                // CAST: The signed difference of values mod 2^64.
                data.clock
                    .wrapping_sub(clock.header.record.kvmclock_ns(guest_tsc)) as i64
            });
        ensure!(
            !is_pinned || clock_diff_ns == Some(0),
            "KVM_GET_CLOCK minus the pinned record is {clock_diff_ns:?} ns"
        );
        Ok(Self {
            offsets: clock.vcpus.iter().map(|vcpu| vcpu.tsc_offset).collect(),
            clock: Some(clock),
            pages: pages(subject),
            clock_diff_ns,
        })
    }

    fn without_clock(subject: &Subject) -> Result<Self> {
        Ok(Self {
            clock: None,
            offsets: subject.offsets()?,
            pages: pages(subject),
            clock_diff_ns: None,
        })
    }

    fn still(&self) -> Option<Still> {
        let clock = self.clock.as_ref()?;
        Some(Still::of(&clock.header, &clock.vcpus))
    }

    /// Whether a record is pinned.
    pub(crate) fn is_pinned(&self) -> bool {
        self.has_status(STATUS_PINNED)
    }

    fn has_status(&self, status: u32) -> bool {
        let clock = self.clock.as_ref();
        clock.is_some_and(|clock| clock.header.status & status != 0)
    }

    /// The record that vCPU `index` is handed by what GET says.
    pub(crate) fn record(&self, index: usize) -> ClockGuest {
        let record = self.clock.as_ref().map(|clock| clock.header.record);
        let by = self.offsets[index].wrapping_sub(self.offsets[0]);
        record.unwrap_or_default().shifted_by(by)
    }

    /// Whether the record is one that GET derives at its own anchor.
    pub(crate) fn is_derived(&self) -> bool {
        let clock = self.clock.as_ref().map(|clock| &clock.header);
        !self.is_pinned() && clock.is_some_and(|at| at.record.tsc_timestamp == at.guest_tsc)
    }

    /// Whether `record` is of the same rate.
    pub(crate) fn is_like(&self, record: &ClockGuest) -> bool {
        let clock = self.clock.as_ref();
        clock.is_some_and(|clock| {
            let of = clock.header.record;
            let moved = ClockGuest {
                tsc_timestamp: record.tsc_timestamp,
                system_time: record.system_time,
                ..of
            };
            moved == *record
        })
    }

    /// The ratio that all vCPUs share.
    pub(crate) fn ratio(&self) -> Option<(u64, u32)> {
        let clock = self.clock.as_ref();
        clock.map(|clock| (clock.header.tsc_ratio, clock.header.tsc_frac_bits))
    }

    /// The pinned record as a function of the host's TSC, if the ratio is what it was; of that,
    /// nothing but KVM_SET_CLOCK and a SET may change a bit.
    pub(crate) fn pinned_function(&self) -> Option<(ClockGuest, u64)> {
        let clock = self.clock.as_ref().filter(|_| self.is_pinned())?;
        let record = function(clock.header.record).shifted_by(self.offsets[0].wrapping_neg());
        Some((record, clock.header.tsc_ratio))
    }

    /// Fails unless `after` is the same but for the time that passed.
    pub(crate) fn ensure_unchanged(&self, after: &Self) -> Result<()> {
        let (was, is) = (self.still(), after.still());
        ensure!(was == is, "clocks were {was:x?}\nand are {is:x?}");
        ensure!(
            self.offsets == after.offsets,
            "TSC offsets were {:x?}, are {:x?}",
            self.offsets,
            after.offsets
        );
        ensure!(
            self.clock_diff_ns == after.clock_diff_ns,
            "KVM_GET_CLOCK minus the record was {:?} ns, is {:?} ns",
            self.clock_diff_ns,
            after.clock_diff_ns
        );
        ensure!(
            self.pages == after.pages,
            "the guest's records were {:x?}, are {:x?}",
            self.pages,
            after.pages
        );
        Ok(())
    }
}

fn pages(subject: &Subject) -> Vec<ClockGuest> {
    if subject.is_any_running() {
        return Vec::new();
    }
    let vcpus = subject.vm().vcpus().iter();
    vcpus
        .map(|vcpu| subject.vm().view(vcpu.index()).pvclock())
        .collect()
}

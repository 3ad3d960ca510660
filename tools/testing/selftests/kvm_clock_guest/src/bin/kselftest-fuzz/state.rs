// SPDX-License-Identifier: GPL-2.0-only

//! A VM's clocks as two ioctls report them, to compare before and after a call.

use crate::fixture::Fixture;
use kvm_bindings::KVM_CLOCK_HOST_TSC;
use kvm_clock::get_vm_clock_guest_or_fall_back;
use kvm_clock_guest_selftests::prelude::*;

/// The clocks of a VM at one instant.
#[derive(Clone, Debug)]
pub(crate) struct State {
    /// The result of GET with `FALLBACK`; `None` for `ENODATA`, because one record cannot serve all
    /// vCPUs.
    pub(crate) clock: Option<VmClock>,
    /// TSC offset of every vCPU.
    pub(crate) offsets: Vec<TscOffset>,
    /// The record in each vCPU's page, including its version; empty if vCPUs run.
    pages: Vec<ClockGuest>,
    /// `KVM_GET_CLOCK` minus kvmclock by the record at the same host TSC, ns, if known.
    clock_diff_ns: Option<i64>,
}

/// The part of [`State`] that does not change with time.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Unchanging {
    status: u32,
    rate: (u32, u64, u32),
    precision_ns: u32,
    ref_vcpu_id: u32,
    record: ClockGuest,
    vcpus: Vec<ClockGuestVcpu>,
}

impl Unchanging {
    /// Of GET's result.
    pub(crate) fn of(header: &VmClockGuest, vcpus: &[ClockGuestVcpu]) -> Self {
        let mut record = header.record;
        if header.status & STATUS_PINNED == 0 && record.tsc_timestamp == header.guest_tsc {
            // KVM has no fixed point from which it derives this clock, and GET used the anchor:
            // only the difference to the raw clock is constant.
            record.tsc_timestamp = GuestTsc(0);
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
    /// Observes a VM.
    pub(crate) fn of(fixture: &Fixture) -> Result<Self> {
        let vm = fixture.vm();
        let clock = match get_vm_clock_guest_or_fall_back(vm.fd()) {
            Ok(clock) => clock,
            Err(error) if error.errno() == libc::ENODATA => return Self::without_clock(fixture),
            Err(error) => return Err(error).context("KVM_GET_VM_CLOCK_GUEST"),
        };
        let data = get_clock(vm)?;
        let transform = reference_transform(&clock)?;
        let is_pinned = clock.header.status & STATUS_PINNED != 0;
        let has_tsc = data.flags & KVM_CLOCK_HOST_TSC != 0;
        let clock_diff_ns = (has_tsc && (is_pinned || transform.scale.is_identity())).then(|| {
            let guest_tsc = transform.guest_tsc(HostTsc(data.host_tsc));
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
            pages: pages(fixture),
            clock_diff_ns,
        })
    }

    fn without_clock(fixture: &Fixture) -> Result<Self> {
        Ok(Self {
            clock: None,
            offsets: fixture.offsets()?,
            pages: pages(fixture),
            clock_diff_ns: None,
        })
    }

    fn unchanging(&self) -> Option<Unchanging> {
        let clock = self.clock.as_ref()?;
        Some(Unchanging::of(&clock.header, &clock.vcpus))
    }

    /// Whether a record is pinned.
    pub(crate) fn is_pinned(&self) -> bool {
        self.has_status(STATUS_PINNED)
    }

    fn has_status(&self, status: u32) -> bool {
        let clock = self.clock.as_ref();
        clock.is_some_and(|clock| clock.header.status & status != 0)
    }

    /// The record of vCPU `index`, from GET's result.
    pub(crate) fn record(&self, index: usize) -> ClockGuest {
        let record = self.clock.as_ref().map(|clock| clock.header.record);
        let by = self.offsets[index].since(self.offsets[0]);
        record.unwrap_or_default().shifted_by(by)
    }

    /// Whether GET derived the record at its own anchor.
    pub(crate) fn is_derived(&self) -> bool {
        let clock = self.clock.as_ref().map(|clock| &clock.header);
        !self.is_pinned() && clock.is_some_and(|at| at.record.tsc_timestamp == at.guest_tsc)
    }

    /// Whether `record` has the same rate.
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

    /// The pinned record as a function of the host's TSC, and the ratio. Only KVM_SET_CLOCK and SET
    /// may change them.
    pub(crate) fn pinned_function(&self) -> Option<(ClockGuest, u64)> {
        let clock = self.clock.as_ref().filter(|_| self.is_pinned())?;
        let record = function(clock.header.record).shifted_by(TscOffset(0).since(self.offsets[0]));
        Some((record, clock.header.tsc_ratio))
    }

    /// Fails unless `after` only differs by the time that passed.
    pub(crate) fn ensure_unchanged(&self, after: &Self) -> Result<()> {
        let (was, is) = (self.unchanging(), after.unchanging());
        ensure_eq_hex!(is, was, "the clocks");
        ensure_eq_hex!(after.offsets, self.offsets, "TSC offsets");
        ensure_eq!(
            after.clock_diff_ns,
            self.clock_diff_ns,
            "KVM_GET_CLOCK minus the record, ns"
        );
        ensure_eq_hex!(after.pages, self.pages, "the guest's records");
        Ok(())
    }
}

fn pages(fixture: &Fixture) -> Vec<ClockGuest> {
    if fixture.is_any_running() {
        return Vec::new();
    }
    let vcpus = fixture.vm().vcpus().iter();
    vcpus
        .map(|vcpu| fixture.vm().view(vcpu.index()).pvclock())
        .collect()
}

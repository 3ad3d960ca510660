// SPDX-License-Identifier: GPL-2.0-only

//! Complete states of a VM's clocks that differ in every part.

use clockguest::guest::Sample;
use kvm_clock_guest_selftests::{fixture::at_another_rate, prelude::*};
use pvclock::tsc::Scale;

/// How far a vCPU's TSC is ahead of the previous vCPU's, ticks: no two vCPUs have the same offset.
const STRIDE: u64 = 1_000_003;
/// How far the TSCs of one state are ahead of the other's, ticks: no reading of a guest, however
/// old, can be mistaken for one of the other state.
const LEAP: u64 = 1 << 50;
/// How far kvmclock of one state is ahead of the previous one's, ns.
const STEP_NS: u64 = 7_000_000_000;

/// TSC offset and record of every vCPU, as functions of its id.
struct State {
    /// With the offset and the record of vCPU 0.
    header: VmClockGuest,
    scale: Scale,
    offset: TscOffset,
    stride: u64,
}

impl State {
    fn new(mut clock: VmClock, stride: u64) -> Result<Self> {
        make_consistent(&mut clock);
        Ok(Self {
            header: VmClockGuest {
                mode: MODE_EXACT,
                ..clock.header
            },
            scale: reference_transform(&clock)?.scale,
            offset: reference_offset(&clock),
            stride,
        })
    }

    fn ahead(&self, id: u32) -> u64 {
        self.stride.wrapping_mul(id.into())
    }

    fn transform(&self, id: u32) -> TscTransform {
        TscTransform {
            scale: self.scale,
            offset: self.offset.wrapping_add(self.ahead(id)),
        }
    }

    fn record(&self, id: u32) -> ClockGuest {
        function(self.header.record.shifted_by(self.ahead(id)))
    }

    /// Whether every vCPU has this state's offset. A vCPU with an id of at least `ours` may have
    /// any vCPU's: it was added since the last SET, and KVM gave it the offset that was written
    /// last.
    fn has_offsets(&self, vcpus: &[ClockGuestVcpu], ours: u32) -> bool {
        vcpus.iter().enumerate().all(|(index, vcpu)| {
            // CAST: A few.
            let (id, count) = (index as u32, vcpus.len() as u32);
            let may_be = if id < ours { id..id + 1 } else { 0..count };
            let mut offsets = may_be.map(|id| self.transform(id).offset);
            vcpu.vcpu_id == id && offsets.any(|offset| offset == vcpu.tsc_offset)
        })
    }
}

/// The states that SETs of a VM alternate between.
pub(crate) struct States {
    states: Vec<State>,
    /// The VM's initial vCPUs; others may be added.
    vcpus: u32,
}

impl States {
    /// Two that differ in everything, for `vm`.
    pub(crate) fn two(vm: &Vm) -> Result<Self> {
        let one = get(vm)?;
        let mut other = at_another_rate(one.clone());
        for vcpu in &mut other.vcpus {
            vcpu.tsc_offset = vcpu.tsc_offset.wrapping_add(LEAP);
        }
        other.header.record = other.header.record.shifted_by(LEAP);
        Ok(Self {
            states: vec![
                State::new(one, STRIDE)?,
                State::new(other, STRIDE.wrapping_neg())?,
            ],
            // CAST: A few.
            vcpus: vm.vcpus().len() as u32,
        })
    }

    /// `count` states for `vm` that only differ in the record, so that KVM_SET_CLOCK_GUEST can
    /// write them.
    pub(crate) fn records(vm: &Vm, count: usize) -> Result<Self> {
        let mut clock = get(vm)?;
        let states = (0..count).map(|_| {
            clock.header.record.system_time += STEP_NS;
            State::new(clock.clone(), STRIDE)
        });
        Ok(Self {
            states: states.collect::<Result<_>>()?,
            // CAST: A few.
            vcpus: vm.vcpus().len() as u32,
        })
    }

    /// Lets the guest of the stopped `vm`, which is in one of these states, run until its readings
    /// are of it.
    pub(crate) fn run_until_read(&self, vm: &Vm) -> Result<()> {
        loop {
            run_a_little(vm)?;
            let mut samples = vm.view(0).ring().into_iter();
            if samples.all(|sample| self.which_record(sample.record, 0).is_ok()) {
                return Ok(());
            }
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.states.len()
    }

    /// A SET of state `which` in a VM with `count` vCPUs.
    pub(crate) fn request(&self, which: usize, count: usize) -> VmClock {
        let state = &self.states[which];
        // CAST: A few.
        let vcpus = (0..count as u32).map(|vcpu_id| ClockGuestVcpu {
            vcpu_id,
            pad: 0,
            tsc_offset: state.transform(vcpu_id).offset,
            steal_ns: 0,
        });
        VmClock {
            header: state.header,
            vcpus: vcpus.collect(),
        }
    }

    /// The record of vCPU `id` in state `which`.
    pub(crate) fn record(&self, which: usize, id: u32) -> ClockGuest {
        self.states[which].record(id)
    }

    /// The state of `clock`, which GET reported between host TSCs `before` and `after`.
    pub(crate) fn which(
        &self,
        clock: &VmClock,
        (before, after): (HostTsc, HostTsc),
    ) -> Result<usize> {
        let header = &clock.header;
        let is = |state: &State| {
            let guest_tsc = state.transform(0).guest_tsc(header.host_tsc);
            state.has_offsets(&clock.vcpus, self.vcpus)
                && function(header.record) == state.record(0)
                && header.guest_tsc == guest_tsc
                && header.kvmclock_ns == header.record.kvmclock_ns(guest_tsc)
                && header.ref_vcpu_id == 0
                && (header.tsc_ratio, header.tsc_frac_bits)
                    == (state.scale.ratio(), state.scale.frac_bits())
        };
        ensure!(
            header.host_tsc.is_between(before, after)
                && header.status == STATUS_PINNED | STATUS_HOST_TSC_STABLE
                && header.precision_ns == 0
                && header.nr_vcpus as usize == clock.vcpus.len(),
            "between host TSC {before} and {after} GET reports {clock:x?}"
        );
        match self.states.iter().position(is) {
            Some(which) => Ok(which),
            None => bail!(
                "GET reports no complete state: {clock:x?}; {}",
                self.expected()
            ),
        }
    }

    /// The state whose kvmclock is `kvmclock_ns` at `host_tsc`.
    pub(crate) fn which_kvmclock(&self, host_tsc: HostTsc, kvmclock_ns: u64) -> Result<usize> {
        let value = |state: &State| {
            let guest_tsc = state.transform(0).guest_tsc(host_tsc);
            state.record(0).kvmclock_ns(guest_tsc)
        };
        match self
            .states
            .iter()
            .position(|state| value(state) == kvmclock_ns)
        {
            Some(which) => Ok(which),
            None => bail!(
                "kvmclock is {kvmclock_ns} ns at host TSC {host_tsc}; in the states it is {:?}, {}",
                self.states.iter().map(value).collect::<Vec<_>>(),
                self.expected()
            ),
        }
    }

    /// The state in which vCPU `id` has `record`.
    pub(crate) fn which_record(&self, record: ClockGuest, id: u32) -> Result<usize> {
        let mut states = self.states.iter();
        match states.position(|state| state.record(id) == function(record)) {
            Some(which) => Ok(which),
            None => bail!("vCPU {id} has {record:x?}; {}", self.expected()),
        }
    }

    /// The state of a reading that vCPU `id` made before host TSC `after`: of its TSC, its record,
    /// and its kvmclock.
    pub(crate) fn which_sample(&self, sample: &Sample, id: u32, after: HostTsc) -> Result<usize> {
        let which = self.which_record(sample.record, id)?;
        let now = self.states[which].transform(id).guest_tsc(after);
        ensure!(
            now.since(sample.tsc) < LEAP / 2,
            "vCPU {id} read {sample:x?} with the record of state {which}, where its TSC is {now:#x}"
        );
        let expected = sample.record.kvmclock_ns(sample.tsc);
        ensure_eq!(
            sample.kvmclock_ns,
            expected,
            "vCPU {id}'s kvmclock by its record, ns"
        );
        Ok(which)
    }

    fn expected(&self) -> String {
        let states = self.states.iter().map(|state| {
            let (record, offset) = (state.record(0), state.offset);
            format!(
                "offset {offset:#x} and {:#x} a vCPU, {record:x?}",
                state.stride
            )
        });
        format!("the states are {:#?}", states.collect::<Vec<_>>())
    }
}

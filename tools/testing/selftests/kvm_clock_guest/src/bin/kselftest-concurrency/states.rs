// SPDX-License-Identifier: GPL-2.0-only

//! Whole states of a VM's clocks, no part of one of which is in another one.

use anyhow::{bail, ensure, Result};
use clockguest::{guest::Sample, vmm::Vm};
use kvm_clock::VmClock;
use kvm_clock_guest_selftests::{
    clocks::function,
    fixture::{at_another_rate, get, make_consistent, reference_offset, reference_transform},
};
use pvclock::{
    abi::{
        ClockGuest, ClockGuestVcpu, VmClockGuest, MODE_EXACT, STATUS_HOST_TSC_STABLE, STATUS_PINNED,
    },
    tsc::{Scale, TscTransform},
};

/// How far a vCPU's TSC is ahead of the vCPU's before it, ticks: no vCPU has another one's offset.
const STRIDE: u64 = 1_000_003;
/// How far the TSCs of one state are ahead of those of the other: no reading of a guest, however
/// late it is looked at, is taken for one of the other state.
const LEAP: u64 = 1 << 50;
/// How far kvmclock of one state is ahead of the one before, ns.
const STEP_NS: u64 = 7_000_000_000;

/// TSC offset and record of every vCPU, as functions of its id.
struct State {
    /// With the offset and the record of vCPU 0.
    header: VmClockGuest,
    scale: Scale,
    offset: u64,
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

    /// Whether every vCPU of `clock` has this state's offset. One with an id from `ours` on may
    /// have any vCPU's: it was added since the last SET, and KVM gave it the offset that was
    /// written last.
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
    /// vCPUs that the VM had at first; others may be added.
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

    /// So many that differ in the record alone, in a way that KVM_SET_CLOCK_GUEST can write, for
    /// `vm`.
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

    pub(crate) fn len(&self) -> usize {
        self.states.len()
    }

    /// The SET of state `which` in a VM that has `count` vCPUs by now.
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

    /// The one state that `clock` is, which was GET between host TSCs `before` and `after`.
    ///
    /// # Errors
    ///
    /// If it is none, in whatever field.
    pub(crate) fn which(&self, clock: &VmClock, (before, after): (u64, u64)) -> Result<usize> {
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
            (before..=after).contains(&header.host_tsc)
                && header.status == STATUS_PINNED | STATUS_HOST_TSC_STABLE
                && header.precision_ns == 0
                && header.nr_vcpus as usize == clock.vcpus.len(),
            "between host TSC {before} and {after} GET says {clock:x?}"
        );
        match self.states.iter().position(is) {
            Some(which) => Ok(which),
            None => bail!("GET is no whole state: {clock:x?}; {}", self.expected()),
        }
    }

    /// The state by which kvmclock is `kvmclock_ns` at `host_tsc`.
    ///
    /// # Errors
    ///
    /// If it is none of them.
    pub(crate) fn which_kvmclock(&self, host_tsc: u64, kvmclock_ns: u64) -> Result<usize> {
        let due = |state: &State| {
            let guest_tsc = state.transform(0).guest_tsc(host_tsc);
            state.record(0).kvmclock_ns(guest_tsc)
        };
        match self
            .states
            .iter()
            .position(|state| due(state) == kvmclock_ns)
        {
            Some(which) => Ok(which),
            None => bail!(
                "kvmclock is {kvmclock_ns} ns at host TSC {host_tsc}; by the states it is {:?}, {}",
                self.states.iter().map(due).collect::<Vec<_>>(),
                self.expected()
            ),
        }
    }

    /// The state that vCPU `id` has `record` in.
    ///
    /// # Errors
    ///
    /// If it is none of them.
    pub(crate) fn which_record(&self, record: ClockGuest, id: u32) -> Result<usize> {
        let mut states = self.states.iter();
        match states.position(|state| state.record(id) == function(record)) {
            Some(which) => Ok(which),
            None => bail!("vCPU {id} has {record:x?}; {}", self.expected()),
        }
    }

    /// The one state in which vCPU `id` made a reading, which was there at host TSC `after`: its
    /// TSC, its record, and the kvmclock that it computed.
    ///
    /// # Errors
    ///
    /// If they are of none, or not of one.
    pub(crate) fn which_sample(&self, sample: &Sample, id: u32, after: u64) -> Result<usize> {
        let which = self.which_record(sample.record, id)?;
        let now = self.states[which].transform(id).guest_tsc(after);
        ensure!(
            now.wrapping_sub(sample.tsc) < LEAP / 2,
            "vCPU {id} read {sample:x?} with the record of state {which}, where its TSC is {now:#x}"
        );
        let expected = sample.record.kvmclock_ns(sample.tsc);
        ensure!(
            sample.kvmclock_ns == expected,
            "vCPU {id} read {sample:x?}: its record says {expected:#x} ns"
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

// SPDX-License-Identifier: GPL-2.0-only

//! The host's view of the samples that the guest publishes.

use super::layout;
use crate::vmm::memory::GuestMemory;
use pvclock::{abi::ClockGuest, counter::GuestTsc};
use serde::{Deserialize, Serialize};
use std::{
    ops::{Add, Sub},
    sync::atomic::Ordering,
};

/// A vCPU's reading of its clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// Number of the sample, from 0, for the life of the guest.
    pub number: u64,
    /// RDTSC.
    pub tsc: GuestTsc,
    /// kvmclock at that TSC, as the guest computed it, ns.
    pub kvmclock_ns: u64,
    /// The record of that computation, as the guest read it.
    #[serde(with = "kvm_clock::bits")]
    pub record: ClockGuest,
}

/// A step back of a vCPU's own kvmclock.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// The reading before, ns.
    pub from_ns: u64,
    /// The reading after, ns.
    pub to_ns: u64,
    /// TSC of the latter.
    pub tsc: GuestTsc,
}

/// Numbers of steps back that the guest saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backwards {
    /// The TSC was below the vCPU's own previous reading.
    pub own_tsc: u64,
    /// kvmclock was below the vCPU's own previous reading.
    pub own_kvmclock: u64,
    /// The TSC was below an earlier reading of another vCPU.
    pub cross_tsc: u64,
    /// kvmclock was below an earlier reading of another vCPU.
    pub cross_kvmclock: u64,
}

impl Backwards {
    /// The sum of all kinds.
    pub fn total(self) -> u64 {
        self.own_tsc + self.own_kvmclock + self.cross_tsc + self.cross_kvmclock
    }

    fn combine(self, other: Self, combine: fn(u64, u64) -> u64) -> Self {
        Self {
            own_tsc: combine(self.own_tsc, other.own_tsc),
            own_kvmclock: combine(self.own_kvmclock, other.own_kvmclock),
            cross_tsc: combine(self.cross_tsc, other.cross_tsc),
            cross_kvmclock: combine(self.cross_kvmclock, other.cross_kvmclock),
        }
    }
}

impl Add for Backwards {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        self.combine(other, u64::saturating_add)
    }
}

impl Sub for Backwards {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        self.combine(earlier, u64::saturating_sub)
    }
}

/// The samples that vCPU `index` publishes in `memory`.
#[derive(Clone, Copy, Debug)]
pub struct VcpuView<'a> {
    memory: &'a GuestMemory,
    index: usize,
}

impl<'a> VcpuView<'a> {
    /// The view of vCPU `index`.
    ///
    /// # Panics
    ///
    /// The methods panic if `memory` belongs to a guest with fewer vCPUs.
    pub fn new(memory: &'a GuestMemory, index: usize) -> Self {
        Self { memory, index }
    }

    fn area(&self, offset: usize, order: Ordering) -> u64 {
        let gpa = layout::sample_area(self.index) + offset as u64;
        self.memory.word(gpa).load(order)
    }

    /// The number of samples so far.
    pub fn count(&self) -> u64 {
        self.area(layout::AREA_COUNT, Ordering::Acquire)
    }

    /// The steps back so far.
    pub fn backwards(&self) -> Backwards {
        let counter = |offset| self.area(offset, Ordering::Relaxed);
        Backwards {
            own_tsc: counter(layout::AREA_OWN_TSC),
            own_kvmclock: counter(layout::AREA_OWN_NS),
            cross_tsc: counter(layout::AREA_CROSS_TSC),
            cross_kvmclock: counter(layout::AREA_CROSS_NS),
        }
    }

    /// The last step back of the vCPU's own kvmclock, if any; the vCPU must be stopped.
    pub fn last_step(&self) -> Option<Step> {
        let word = |index: usize| self.area(layout::AREA_STEP + 8 * index, Ordering::Relaxed);
        (self.backwards().own_kvmclock != 0).then(|| Step {
            from_ns: word(0),
            to_ns: word(1),
            tsc: GuestTsc(word(2)),
        })
    }

    /// The latest sample; `None` before the first.
    ///
    /// It is consistent even while the vCPU runs: the count serves as a sequence counter.
    pub fn latest(&self) -> Option<Sample> {
        loop {
            let count = self.count();
            let sample = self.slot(count.checked_sub(1)?);
            std::sync::atomic::fence(Ordering::Acquire);
            if self.is_intact(count - 1) {
                return Some(sample);
            }
        }
    }

    /// The samples in the ring, oldest first. While the vCPU runs, samples that it overwrites
    /// meanwhile are left out.
    pub fn ring(&self) -> Vec<Sample> {
        let count = self.count();
        let oldest = count.saturating_sub(layout::RING_LEN as u64);
        let mut samples: Vec<_> = (oldest..count).map(|number| self.slot(number)).collect();
        std::sync::atomic::fence(Ordering::Acquire);
        let kept = (oldest..count)
            .filter(|&number| self.is_intact(number))
            .count();
        // The guest overwrites the oldest first.
        samples.split_off(samples.len() - kept)
    }

    /// Whether the guest has not begun to overwrite sample `number`.
    fn is_intact(&self, number: u64) -> bool {
        self.count() < number + layout::RING_LEN as u64
    }

    fn slot(&self, number: u64) -> Sample {
        // CAST: below RING_LEN.
        let index = (number % layout::RING_LEN as u64) as usize;
        let slot = layout::AREA_RING + (index << layout::SLOT_SHIFT);
        let word = |offset| self.area(slot + offset, Ordering::Relaxed);
        Sample {
            number: word(layout::SLOT_NUMBER),
            tsc: GuestTsc(word(layout::SLOT_TSC)),
            kvmclock_ns: word(layout::SLOT_NS),
            record: record_of([0, 8, 16, 24].map(|offset| word(layout::SLOT_RECORD + offset))),
        }
    }

    /// The record in the vCPU's pvclock page, read as a guest reads it; all 0 before KVM writes it.
    pub fn pvclock(&self) -> ClockGuest {
        let gpa = layout::pvclock_page(self.index);
        let word = |offset| self.memory.word(gpa + offset).load(Ordering::Acquire);
        loop {
            let record = record_of([0, 8, 16, 24].map(word));
            let again = record_of([word(0), 0, 0, 0]);
            if record.version == again.version && record.version & 1 == 0 {
                return record;
            }
        }
    }
}

fn record_of(words: [u64; 4]) -> ClockGuest {
    zerocopy::transmute!(words)
}

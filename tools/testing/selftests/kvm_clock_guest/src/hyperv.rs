// SPDX-License-Identifier: GPL-2.0-only

//! The clock of a Hyper-V guest: a reference counter of 100 ns units, as an MSR and as a function
//! of the TSC in a page that the guest can read.

use crate::{
    fixture::run_a_little,
    msr::{get_msr, set_msr, ENABLE},
};
use anyhow::{ensure, Context, Result};
use clockguest::{host::rdtsc_ordered, vmm::Vm};
use kvm_bindings::{kvm_enable_cap, KVM_CAP_HYPERV_SYNIC};
use kvm_ioctls::VcpuFd;
use pvclock::{
    abi::ClockGuest,
    counter::{GuestTsc, HostTsc},
    tsc::TscTransform,
};
use std::{ops::RangeInclusive, sync::atomic::Ordering};

/// The reference counter's unit, ns.
pub const UNIT_NS: u64 = 100;
/// How often a comparison is made.
const COMPARISONS: usize = 100;

const HV_X64_MSR_GUEST_OS_ID: u32 = 0x4000_0000;
const HV_X64_MSR_TIME_REF_COUNT: u32 = 0x4000_0020;
const HV_X64_MSR_REFERENCE_TSC: u32 = 0x4000_0021;
const HV_X64_MSR_STIMER0_CONFIG: u32 = 0x4000_00b0;
const HV_X64_MSR_STIMER0_COUNT: u32 = 0x4000_00b1;
// A synthetic timer's configuration: it is enabled, periodic, raises an interrupt of the local APIC
// without a message, and the interrupt's vector.
const STIMER_ENABLE: u64 = 1 << 0;
const STIMER_PERIODIC: u64 = 1 << 1;
const STIMER_DIRECT_MODE: u64 = 1 << 12;
const STIMER_VECTOR_SHIFT: u32 = 4;
/// An open source system (bit 63), Linux; KVM only requires a value other than 0.
const GUEST_OS_ID: u64 = 0x8100 << 48;

/// Makes the guest one of Hyper-V's.
pub fn enable(vcpu: &VcpuFd) -> Result<()> {
    Ok(set_msr(vcpu, HV_X64_MSR_GUEST_OS_ID, GUEST_OS_ID)?)
}

/// Enables the TSC page at `gpa`; KVM writes it when the vCPU next runs.
pub fn enable_tsc_page(vcpu: &VcpuFd, gpa: u64) -> Result<()> {
    Ok(set_msr(vcpu, HV_X64_MSR_REFERENCE_TSC, gpa | ENABLE)?)
}

/// Enables the TSC page at `gpa` of the stopped `vm`, and makes KVM write it.
pub fn enable_valid_tsc_page(vm: &Vm, gpa: u64) -> Result<()> {
    enable_tsc_page(&vm.vcpus()[0].fd(), gpa)?;
    run_a_little(vm)?;
    let page = TscPage::of(vm, gpa);
    ensure!(page.sequence != 0, "KVM wrote no TSC page: {page:x?}");
    Ok(())
}

/// The reference counter, units of 100 ns.
pub fn reference_count(vcpu: &VcpuFd) -> Result<u64> {
    Ok(get_msr(vcpu, HV_X64_MSR_TIME_REF_COUNT)?)
}

/// What the reference counter may be while kvmclock is `ns`, units of 100 ns.
///
/// The page counts from TSC 0 with its own factor, and rounds three times, each time by less than a
/// unit: down, down, and up. kvmclock drops less than 2 ns.
fn counts(ns: u64) -> RangeInclusive<u64> {
    (ns / UNIT_NS).saturating_sub(2)..=(ns + 2) / UNIT_NS + 1
}

/// Fails unless the reference counter of a stopped vCPU is between the values of `kvmclock_ns`
/// before and after it is read.
pub fn ensure_counter(vcpu: &VcpuFd, kvmclock_ns: impl Fn(HostTsc) -> u64) -> Result<()> {
    for _ in 0..COMPARISONS {
        let before = rdtsc_ordered();
        let count = reference_count(vcpu)?;
        let after = rdtsc_ordered();
        let [least, most] = [before, after].map(|host_tsc| counts(kvmclock_ns(host_tsc)));
        let expected = *least.start()..=*most.end();
        ensure!(
            expected.contains(&count),
            "the reference counter is {count}, expected {expected:?} from the record"
        );
    }
    Ok(())
}

/// Enables the synthetic interrupt controller of a vCPU with a local APIC, which synthetic timers
/// need.
pub fn enable_synthetic_interrupts(vcpu: &VcpuFd) -> Result<()> {
    let cap = kvm_enable_cap {
        cap: KVM_CAP_HYPERV_SYNIC,
        ..kvm_enable_cap::default()
    };
    vcpu.enable_cap(&cap).context("KVM_CAP_HYPERV_SYNIC")
}

/// When a synthetic timer fires, units of 100 ns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stimer {
    /// Once, at that count of the reference counter.
    At(u64),
    /// Periodically, with that period from now on.
    Every(u64),
}

/// Arms the vCPU's first synthetic timer, which raises interrupt `vector`.
pub fn arm_stimer(vcpu: &VcpuFd, timer: Stimer, vector: u8) -> Result<()> {
    let (count, mode) = match timer {
        Stimer::At(count) => (count, 0),
        Stimer::Every(period) => (period, STIMER_PERIODIC),
    };
    // Writing the count before the configuration does not arm it yet.
    set_msr(vcpu, HV_X64_MSR_STIMER0_COUNT, count)?;
    let vector = u64::from(vector) << STIMER_VECTOR_SHIFT;
    let config = STIMER_ENABLE | STIMER_DIRECT_MODE | mode | vector;
    Ok(set_msr(vcpu, HV_X64_MSR_STIMER0_CONFIG, config)?)
}

/// `struct ms_hyperv_tsc_page`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TscPage {
    /// Changes with every update; 0: the guest must use the MSR.
    pub sequence: u32,
    /// Units of 100 ns per tick, in units of 2^-64.
    pub scale: u64,
    /// Count at TSC 0, units of 100 ns, mod 2^64.
    pub offset: u64,
}

impl TscPage {
    /// The page at `gpa` of the stopped `vm`.
    pub fn of(vm: &Vm, gpa: u64) -> Self {
        let word = |offset| vm.memory().word(gpa + offset).load(Ordering::Acquire);
        Self {
            // CAST: The word's lower half; the rest is reserved.
            sequence: word(0) as u32,
            scale: word(8),
            offset: word(16),
        }
    }

    /// The reference counter at guest TSC `guest_tsc`, as a guest computes it, units of 100 ns.
    pub fn reference_count(self, guest_tsc: GuestTsc) -> u64 {
        let product = u128::from(guest_tsc.0) * u128::from(self.scale);
        // CAST: the upper half of the product.
        ((product >> 64) as u64).wrapping_add(self.offset)
    }
    /// Fails unless the page is valid and agrees with `record`, at the present TSC and later ones.
    pub fn ensure_agrees(self, record: &ClockGuest, transform: TscTransform) -> Result<()> {
        /// Guest ticks from now on, up to some years.
        const LATER: [u64; 5] = [0, 1, 1_000_000_007, 1 << 42, 1 << 57];

        ensure!(self.sequence != 0, "the TSC page is invalid: {self:x?}");
        for _ in 0..COMPARISONS {
            let now = transform.guest_tsc(rdtsc_ordered());
            for guest_tsc in LATER.map(|later| now.wrapping_add(later)) {
                let count = self.reference_count(guest_tsc);
                let ns = record.kvmclock_ns(guest_tsc);
                ensure!(
                    counts(ns).contains(&count),
                    "at TSC {guest_tsc} the TSC page gives {count}, the record {ns} ns"
                );
            }
        }
        Ok(())
    }
}

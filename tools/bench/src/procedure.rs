// SPDX-License-Identifier: GPL-2.0-only

//! The procedures to save and restore the clocks of a VM, each as efficient as a VMM can make it:
//! all descriptors and buffers exist before.

use crate::vm::Vm;
use anyhow::{Context, Result};
use clockguest::{method::legacy_offset, vmm::vm::MSR_IA32_TSC};
use kvm_bindings::{kvm_clock_data, kvm_msr_entry, Msrs, KVM_CLOCK_REALTIME};
use kvm_clock::{
    abi::{ClockGuest, ClockGuestVcpu, VmClockGuest, MODE_EXACT},
    counter::{GuestTsc, TscOffset},
    get_clock_guest, raw, set_clock_guest, set_tsc_offset, tsc_offset,
};
use serde::Serialize;

/// A procedure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Procedure {
    /// KVM_GET_VM_CLOCK_GUEST and KVM_SET_VM_CLOCK_GUEST.
    Atomic,
    /// The same per vCPU, as proposed on the kernel list: KVM_VCPU_TSC_OFFSET, and
    /// KVM_GET_CLOCK_GUEST or KVM_SET_CLOCK_GUEST.
    PerVcpu,
    /// The kernel's documented procedure.
    Documented,
    /// QEMU's procedure.
    Qemu,
}

impl Procedure {
    pub(crate) const ALL: [Self; 4] = [Self::Atomic, Self::PerVcpu, Self::Documented, Self::Qemu];

    /// Its name in the table.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Atomic => "atomic",
            Self::PerVcpu => "per-vcpu",
            Self::Documented => "documented",
            Self::Qemu => "qemu",
        }
    }
}

/// Buffers with saved clocks.
pub(crate) struct Saved {
    /// System calls since this was last set to 0.
    pub(crate) calls: u64,
    header: VmClockGuest,
    entries: Vec<ClockGuestVcpu>,
    records: Vec<ClockGuest>,
    clock: legacy_offset::Saved,
    msrs: Msrs,
    tsc: Vec<GuestTsc>,
}

impl Saved {
    /// Creates buffers for `vm`.
    pub(crate) fn new(vm: &Vm) -> Result<Self> {
        let count = vm.vcpus.len();
        let tsc = kvm_msr_entry {
            index: MSR_IA32_TSC,
            ..kvm_msr_entry::default()
        };
        Ok(Self {
            calls: 0,
            header: VmClockGuest::default(),
            entries: vec![ClockGuestVcpu::default(); count],
            records: vec![ClockGuest::default(); count],
            clock: legacy_offset::Saved {
                clock: kvm_clock_data::default(),
                offsets: vec![TscOffset::default(); count],
                tsc_khz: 0,
            },
            msrs: Msrs::from_entries(&[tsc])?,
            tsc: vec![GuestTsc::default(); count],
        })
    }

    /// Saves the clocks of `vm`.
    pub(crate) fn save(&mut self, by: Procedure, vm: &Vm) -> Result<()> {
        match by {
            Procedure::Atomic => self.get(vm),
            Procedure::PerVcpu => self.get_each(vm),
            Procedure::Documented => self.read_offsets(vm),
            Procedure::Qemu => self.read_msrs(vm),
        }
    }

    /// Restores them in the same VM; `moved` if that simulates another VM.
    pub(crate) fn restore(&mut self, by: Procedure, vm: &Vm, moved: bool) -> Result<()> {
        match by {
            Procedure::Atomic => self.set(vm),
            Procedure::PerVcpu => self.set_each(vm),
            Procedure::Documented => self.write_offsets(vm),
            Procedure::Qemu => self.write_msrs(vm, moved),
        }
    }

    fn get(&mut self, vm: &Vm) -> Result<()> {
        self.describe_buffer();
        self.calls += 1;
        // SAFETY: The header has its size, and describes the mutably borrowed `entries`.
        unsafe { raw::get(&vm.fd, (&raw mut self.header).cast()) }.context("KVM_GET_VM_CLOCK_GUEST")
    }

    fn set(&mut self, vm: &Vm) -> Result<()> {
        self.header.mode = MODE_EXACT;
        self.calls += 1;
        // SAFETY: As in `get()`, which precedes this.
        unsafe { raw::set(&vm.fd, (&raw mut self.header).cast()) }.context("KVM_SET_VM_CLOCK_GUEST")
    }

    fn describe_buffer(&mut self) {
        self.header = VmClockGuest {
            // CAST: The structure has some hundred bytes.
            size: size_of::<VmClockGuest>() as u32,
            // CAST: KVM has far fewer than 2^32 vCPUs.
            nr_vcpus: self.entries.len() as u32,
            vcpus: self.entries.as_mut_ptr().addr() as u64,
            ..VmClockGuest::default()
        };
    }

    fn get_each(&mut self, vm: &Vm) -> Result<()> {
        let offsets = self.clock.offsets.iter_mut().zip(&mut self.records);
        for (vcpu, (offset, record)) in vm.vcpus.iter().zip(offsets) {
            *offset = tsc_offset(vcpu).context("KVM_VCPU_TSC_OFFSET")?;
            *record = get_clock_guest(vcpu).context("KVM_GET_CLOCK_GUEST")?;
            self.calls += 2;
        }
        Ok(())
    }

    fn set_each(&mut self, vm: &Vm) -> Result<()> {
        let offsets = self.clock.offsets.iter().zip(&self.records);
        for (vcpu, (offset, record)) in vm.vcpus.iter().zip(offsets) {
            set_tsc_offset(vcpu, *offset).context("KVM_VCPU_TSC_OFFSET")?;
            set_clock_guest(vcpu, record).context("KVM_SET_CLOCK_GUEST")?;
            self.calls += 2;
        }
        Ok(())
    }

    // The steps of `Documentation/virt/kvm/devices/vcpu.rst`, group KVM_VCPU_TSC_CTRL.

    fn read_offsets(&mut self, vm: &Vm) -> Result<()> {
        self.clock.clock = vm.fd.get_clock().context("KVM_GET_CLOCK")?;
        for (vcpu, offset) in vm.vcpus.iter().zip(&mut self.clock.offsets) {
            *offset = tsc_offset(vcpu).context("KVM_VCPU_TSC_OFFSET")?;
            self.calls += 1;
        }
        self.clock.tsc_khz = vm.vcpus[0].get_tsc_khz().context("KVM_GET_TSC_KHZ")?;
        self.calls += 2;
        Ok(())
    }

    fn write_offsets(&mut self, vm: &Vm) -> Result<()> {
        let clock = kvm_clock_data {
            clock: self.clock.clock.clock,
            realtime: self.clock.clock.realtime,
            flags: KVM_CLOCK_REALTIME,
            ..kvm_clock_data::default()
        };
        vm.fd.set_clock(&clock).context("KVM_SET_CLOCK")?;
        let here = vm.fd.get_clock().context("KVM_GET_CLOCK")?;
        let shift = self.clock.offset_shift(&here);
        for (vcpu, offset) in vm.vcpus.iter().zip(&self.clock.offsets) {
            set_tsc_offset(vcpu, offset.wrapping_add(shift)).context("KVM_VCPU_TSC_OFFSET")?;
            self.calls += 1;
        }
        self.calls += 2;
        Ok(())
    }

    fn read_msrs(&mut self, vm: &Vm) -> Result<()> {
        for (vcpu, tsc) in vm.vcpus.iter().zip(&mut self.tsc) {
            vcpu.get_msrs(&mut self.msrs).context("KVM_GET_MSRS")?;
            *tsc = GuestTsc(self.msrs.as_slice()[0].data);
            self.calls += 1;
        }
        self.clock.clock = vm.fd.get_clock().context("KVM_GET_CLOCK")?;
        self.calls += 1;
        Ok(())
    }

    /// Writes the values that QEMU writes to a VM that resumes, or to a new one (`moved`).
    fn write_msrs(&mut self, vm: &Vm, moved: bool) -> Result<()> {
        if moved {
            for (vcpu, tsc) in vm.vcpus.iter().zip(&self.tsc) {
                self.msrs.as_mut_slice()[0].data = tsc.0;
                vcpu.set_msrs(&self.msrs).context("KVM_SET_MSRS")?;
                self.calls += 1;
            }
        }
        let clock = kvm_clock_data {
            clock: self.clock.clock.clock,
            ..kvm_clock_data::default()
        };
        vm.fd.set_clock(&clock).context("KVM_SET_CLOCK")?;
        for vcpu in &vm.vcpus {
            vcpu.kvmclock_ctrl().context("KVM_KVMCLOCK_CTRL")?;
            self.calls += 1;
        }
        self.calls += 1;
        Ok(())
    }
}

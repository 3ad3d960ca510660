// SPDX-License-Identifier: GPL-2.0-only

//! Guests whose TSC the hardware scales: the same promises at ratios below and above 1, of round
//! and of unround numbers. Needs such hardware: `make check-scaling` has it emulated.

mod attribute;
mod calibration;
mod exact;
mod migration;
mod moved;
mod tsc;

use anyhow::{bail, ensure, Result};
use clockguest::vmm::Vm;
use kvm_bindings::{KVM_CAP_TSC_CONTROL, KVM_CAP_VM_TSC_CONTROL};
use kvm_clock_guest_selftests::{
    fixture::{get, run_a_little, set},
    ktap::{self, Skip},
    require,
};
use kvm_ioctls::Kvm;
use pvclock::abi::MODE_EXACT;
use std::process::ExitCode;

/// vCPUs of the VMs.
const VCPUS: u32 = 2;

/// What the cases need.
pub(crate) struct Host {
    pub(crate) kvm: Kvm,
    /// Host TSC rate as KVM has it, kHz.
    pub(crate) khz: u32,
}

/// A guest's TSC rate.
#[derive(Clone, Copy)]
pub(crate) struct Rate {
    pub(crate) name: &'static str,
    /// kHz, from the host's.
    of_host: fn(u32) -> u32,
}

pub(crate) const RATES: &[Rate] = &[
    Rate {
        name: "half the host's rate",
        of_host: |khz| khz / 2,
    },
    Rate {
        name: "the host's rate",
        of_host: |khz| khz,
    },
    Rate {
        name: "1.5 GHz",
        of_host: |_| 1_500_000,
    },
    Rate {
        name: "7/5 of the host's rate",
        of_host: |khz| (u64::from(khz) * 7 / 5) as u32, // CAST: far below 2^32.
    },
    Rate {
        name: "twice the host's rate",
        of_host: |khz| khz * 2,
    },
];

impl Rate {
    /// kHz on `host`.
    pub(crate) fn khz(&self, host: &Host) -> u32 {
        (self.of_host)(host.khz)
    }

    /// A VM that has run at this rate and is stopped, its clocks derived by KVM.
    pub(crate) fn derived(&self, host: &Host) -> Result<Vm> {
        let vm = Vm::at_rate(&host.kvm, VCPUS, self.khz(host))?;
        // As `fixture::derived()`.
        run_a_little(&vm)?;
        run_a_little(&vm)?;
        ensure!(
            vm.tsc_khz()? == self.khz(host),
            "the guest's TSC rate is {} kHz, {} was asked for",
            vm.tsc_khz()?,
            self.khz(host)
        );
        Ok(vm)
    }

    /// The same with a pinned record.
    pub(crate) fn pinned(&self, host: &Host) -> Result<Vm> {
        let vm = self.derived(host)?;
        set(&vm, &mut get(&vm)?, MODE_EXACT)?;
        run_a_little(&vm)?;
        Ok(vm)
    }
}

fn main() -> ExitCode {
    let mut cases = attribute::cases();
    cases.extend(exact::cases());
    cases.extend(calibration::cases());
    cases.extend(moved::cases());
    cases.extend(migration::cases());
    ktap::main(requirements, cases)
}

fn requirements() -> Result<Host> {
    let kvm = require::clock_guest()?;
    let needed = [KVM_CAP_TSC_CONTROL, KVM_CAP_VM_TSC_CONTROL];
    if needed
        .iter()
        .any(|&cap| kvm.check_extension_raw(cap.into()) <= 0)
    {
        bail!(Skip(
            "the hardware cannot scale a guest's TSC (make check-scaling has it emulated)".into()
        ));
    }
    let khz = Vm::empty(&kvm, 1)?.tsc_khz()?;
    Ok(Host { kvm, khz })
}

// SPDX-License-Identifier: GPL-2.0-only

//! Guests whose TSC the hardware scales: the same promises at ratios below and above 1, of round
//! and other numbers. Needs such hardware, which `make check-scaling` emulates.

mod attribute;
mod calibration;
mod exact;
mod migration;
mod moved;
mod tsc;

use kvm_bindings::{KVM_CAP_TSC_CONTROL, KVM_CAP_VM_TSC_CONTROL};
use kvm_clock_guest_selftests::prelude::*;

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
        let vm = derived_at_rate(&host.kvm, VCPUS, self.khz(host))?;
        ensure_eq!(vm.tsc_khz()?, self.khz(host), "the guest's TSC rate, kHz");
        Ok(vm)
    }

    /// The same with a pinned record.
    pub(crate) fn pinned(&self, host: &Host) -> Result<Vm> {
        let vm = self.derived(host)?;
        pin(&vm, |clock| clock)?;
        Ok(vm)
    }
}

fn main() -> ExitCode {
    let cases = [
        attribute::cases(),
        exact::cases(),
        calibration::cases(),
        moved::cases(),
        migration::cases(),
    ];
    ktap::main(requirements, ktap::all(cases))
}

fn requirements() -> Result<Host> {
    let kvm = require::clock_guest()?;
    let needed = [KVM_CAP_TSC_CONTROL, KVM_CAP_VM_TSC_CONTROL];
    if needed
        .iter()
        .any(|&cap| kvm.check_extension_raw(cap.into()) <= 0)
    {
        bail!(Skip(
            "the hardware cannot scale a guest's TSC (make check-scaling emulates that)".into()
        ));
    }
    let khz = Vm::empty(&kvm, 1)?.tsc_khz()?;
    Ok(Host { kvm, khz })
}

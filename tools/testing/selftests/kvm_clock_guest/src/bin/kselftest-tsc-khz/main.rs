// SPDX-License-Identifier: GPL-2.0-only

//! KVM_SET_TSC_KHZ of a vCPU whose VM has a pinned clock: EBUSY for another rate than the vCPU has,
//! and nothing changes; the vCPU's own rate succeeds, and nothing changes either. So the guest's
//! clock makes no step, at no later time, and KVM_GET_CLOCK is the same function. It works again
//! when KVM_SET_CLOCK has unpinned the clock.

mod refused;
mod step;
mod works;

use anyhow::Result;
use clockguest::vmm::Vm;
use kvm_clock_guest_selftests::{
    fixture::{get, set, settle},
    ktap::{self, note},
    require,
};
use kvm_ioctls::Kvm;
use pvclock::abi::MODE_EXACT;
use std::process::ExitCode;

const VCPUS: u32 = 2;

/// A rate as a fraction of the vCPU's.
#[derive(Clone, Copy)]
pub(crate) struct Rate {
    pub(crate) name: &'static str,
    pub(crate) num: u32,
    pub(crate) den: u32,
}

impl Rate {
    /// In kHz, of a vCPU that has `khz`.
    pub(crate) fn of(self, khz: u32) -> Result<u32> {
        let product = u64::from(khz) * u64::from(self.num);
        Ok(u32::try_from(product / u64::from(self.den))?)
    }
}

const HOST: Rate = Rate {
    name: "the host's rate",
    num: 1,
    den: 1,
};
const SCALED: Rate = Rate {
    name: "7/10 of the host's rate",
    num: 7,
    den: 10,
};

/// Rates that every host takes: within the tolerance it leaves the TSC alone, and for a faster one
/// it catches up by software, or scales.
const FASTER: [Rate; 2] = [
    Rate {
        name: "200 ppm faster",
        num: 1_000_200,
        den: 1_000_000,
    },
    Rate {
        name: "7/5 as fast",
        num: 7,
        den: 5,
    },
];
/// Rates that need hardware which scales.
const SLOWER: [Rate; 2] = [
    Rate {
        name: "300 ppm slower",
        num: 999_700,
        den: 1_000_000,
    },
    Rate {
        name: "half as fast",
        num: 1,
        den: 2,
    },
];

fn main() -> ExitCode {
    let scales = require::vendor_kvm().is_ok_and(|kvm| require::scales(&kvm));
    let mut starts = vec![HOST];
    let mut others = FASTER.to_vec();
    if scales {
        starts.push(SCALED);
        others.extend(SLOWER);
    }
    let mut cases = Vec::new();
    for &start in &starts {
        cases.extend(refused::cases(start, &others));
        cases.extend(step::cases(start, &others));
        cases.extend(works::cases(start, &others));
    }
    let requirements = || {
        let kvm = require::clock_guest()?;
        if !scales {
            note("this host does not scale a guest's TSC: rates that need it are left out");
        }
        Ok(kvm)
    };
    ktap::main(requirements, cases)
}

/// A stopped VM at `start`, which has not run, with a pinned clock.
pub(crate) fn pinned_before_run(kvm: &Kvm, start: Rate) -> Result<Vm> {
    let khz = Vm::empty(kvm, 1)?.tsc_khz()?;
    let vm = match start.of(khz)? {
        scaled if scaled != khz => Vm::at_rate(kvm, VCPUS, scaled)?,
        _ => Vm::new(kvm, VCPUS)?,
    };
    set(&vm, &mut get(&vm)?, MODE_EXACT)?;
    Ok(vm)
}

/// The same after it ran.
pub(crate) fn pinned(kvm: &Kvm, start: Rate) -> Result<Vm> {
    let vm = pinned_before_run(kvm, start)?;
    settle(&vm)?;
    Ok(vm)
}

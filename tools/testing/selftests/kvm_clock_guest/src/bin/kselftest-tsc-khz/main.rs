// SPDX-License-Identifier: GPL-2.0-only

//! KVM_SET_TSC_KHZ of a vCPU whose VM has a pinned clock: another rate fails with EBUSY, the vCPU's
//! own rate succeeds, and neither changes anything. So the guest's clock makes no step, immediately
//! or later, and KVM_GET_CLOCK stays the same function. After KVM_SET_CLOCK unpinned the clock,
//! KVM_SET_TSC_KHZ works.

mod refused;
mod step;
mod works;

use kvm_clock_guest_selftests::prelude::*;

const VCPUS: u32 = 2;

/// A rate as a fraction of the vCPU's.
#[derive(Clone, Copy)]
pub(crate) struct Rate {
    pub(crate) name: &'static str,
    pub(crate) num: u32,
    pub(crate) den: u32,
}

impl Rate {
    /// The rate (kHz) for a vCPU at `khz`.
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

/// Rates that every host accepts: KVM ignores a difference within the tolerance, and imitates a
/// faster rate in software or scales the TSC.
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
/// Rates that need hardware scaling.
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
    let scales = require::host_scales();
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
    ktap::main(require::clock_guest_of_any_rate, cases)
}

/// A stopped VM at rate `start` with a pinned clock, which has not run yet.
pub(crate) fn pinned_before_run(kvm: &Kvm, start: Rate) -> Result<Vm> {
    let khz = Vm::empty(kvm, 1)?.tsc_khz()?;
    let vm = match start.of(khz)? {
        scaled if scaled != khz => Vm::at_rate(kvm, VCPUS, scaled)?,
        _ => Vm::new(kvm, VCPUS)?,
    };
    set(&vm, &mut get(&vm)?, MODE_EXACT)?;
    Ok(vm)
}

/// A stopped VM at rate `start` with a pinned clock, which has run.
pub(crate) fn pinned(kvm: &Kvm, start: Rate) -> Result<Vm> {
    let vm = pinned_before_run(kvm, start)?;
    settle(&vm)?;
    Ok(vm)
}

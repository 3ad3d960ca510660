// SPDX-License-Identifier: GPL-2.0-only

//! Random calls of all ioctls, most of them sound or nearly so, with every extreme. After each
//! call:
//!
//! - it failed with an errno that `clock-guest.rst` has for what was passed (see `model`), or
//!   succeeded if there is no cause to fail,
//! - if it failed, nothing is changed: TSC offsets, record, `KVM_GET_CLOCK`, the guest's pages, nor
//!   any byte of the argument but those documented,
//! - if it succeeded, GET returns what was SET (see `outcome`).
//!
//! Every so often the guest runs, and reads just that.
//!
//! `--calls=N` is the number of calls, `--seed=S` makes them others; the same seed makes the same
//! choices. With `--look=N` all the VM's clocks are looked at after one in N of those calls that
//! have to change nothing: on a kernel with much debugging these looks take most of the time. What
//! once failed is in the table of `fixed`, and comes first.

mod arena;
mod arithmetic;
mod bend;
mod changing;
mod draft;
mod expected;
mod extremes;
mod fixed;
mod foreign;
mod fuzz;
mod guest;
mod meddle;
mod model;
mod outcome;
mod plan;
mod records;
mod running;
mod state;
mod stopped;
mod subject;
mod vcpu_calls;
mod vm_calls;

use anyhow::{ensure, Result};
use extremes::Rng;
use fuzz::Fuzz;
use kvm_clock_guest_selftests::{
    ktap::{self, note, option, Case},
    require,
};
use kvm_ioctls::Kvm;
use rand_chacha::rand_core::SeedableRng;
use std::process::ExitCode;

/// Calls of all cases together, unless told otherwise.
const CALLS: u64 = 20_000;
const SEED: u64 = 1;

struct Host {
    kvm: Kvm,
    calls: u64,
    seed: u64,
    look: u32,
}

impl Host {
    fn new() -> Result<Self> {
        let host = Self {
            kvm: require::clock_guest()?,
            calls: option("calls", CALLS)?,
            seed: option("seed", SEED)?,
            look: option("look", 1)?,
        };
        ensure!(host.look > 0, "--look=0 would never look");
        note(&host.options());
        Ok(host)
    }

    /// The random sequence of a case.
    fn rng(&self, case: u64) -> Rng {
        let mut rng = Rng::seed_from_u64(self.seed);
        rng.set_stream(case);
        rng
    }

    fn options(&self) -> String {
        format!(
            "--calls={} --seed={} --look={}",
            self.calls, self.seed, self.look
        )
    }

    /// How to see a failure again.
    fn replay(&self, fuzz: &Fuzz<'_>) -> String {
        format!("call {} with {}", fuzz.tally.calls(), self.options())
    }
}

fn main() -> ExitCode {
    let mut cases = fixed::cases();
    // Of a hundred calls.
    for (name, percent, run) in [
        (
            "two VMs with vCPUs stopped",
            55,
            stopped::calls as fn(&Host, u64) -> Result<()>,
        ),
        ("vCPUs running", 35, running::calls),
        ("memory being changed", 10, changing::calls),
    ] {
        cases.push(Case::new(
            format!("random calls, {name}"),
            move |host: &Host| run(host, host.calls * percent / 100),
        ));
    }
    ktap::main(Host::new, cases)
}

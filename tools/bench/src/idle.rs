// SPDX-License-Identifier: GPL-2.0-only

//! What a guest pays that uses none of it.

use crate::{
    count::least,
    vm::{run, Vm},
};
use anyhow::{Context, Result};
use kvm_ioctls::Kvm;
use serde::Serialize;

/// Instructions of the host, guest included, which has two.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Idle {
    /// KVM_RUN, until the guest halts.
    run: u64,
    /// The same with an update of the guest's clock on entry.
    run_and_update: u64,
}

impl Idle {
    /// Counts.
    pub(crate) fn measure(kvm: &Kvm, repeat: u32) -> Result<Self> {
        let mut vm = Vm::new(kvm, 1)?;
        let vcpu = &mut vm.vcpus[0];
        // Faults and branches of the first times are no part of it.
        let repeat = repeat.max(100);
        Ok(Self {
            run: least(repeat, vcpu, run, run)?,
            run_and_update: least(
                repeat,
                vcpu,
                // It asks for an update.
                |vcpu| vcpu.kvmclock_ctrl().context("KVM_KVMCLOCK_CTRL"),
                run,
            )?,
        })
    }

    /// A line for each.
    pub(crate) fn to_text(&self) -> String {
        format!(
            "KVM_RUN until the guest halts        {:>8} instructions\n\
             with an update of the guest's clock  {:>8}\n",
            self.run, self.run_and_update
        )
    }
}

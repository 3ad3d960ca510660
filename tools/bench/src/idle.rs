// SPDX-License-Identifier: GPL-2.0-only

//! The cost for a guest that does not use the interface.

use crate::{
    count::minimum,
    vm::{self, run},
};
use anyhow::{Context, Result};
use kvm_ioctls::Kvm;
use serde::Serialize;

/// Instructions of the host, including two of the guest.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Idle {
    /// KVM_RUN until the guest halts.
    run: u64,
    /// KVM_RUN with an update of the guest's clock on entry.
    run_and_update: u64,
}

impl Idle {
    /// Counts both.
    pub(crate) fn measure(kvm: &Kvm, repeat: u32) -> Result<Self> {
        let mut vm = vm::new(kvm, 1)?;
        let vcpu = &mut vm.vcpus[0];
        // Exclude the first runs with their faults and mispredictions.
        let repeat = repeat.max(100);
        Ok(Self {
            run: minimum(repeat, vcpu, run, run)?,
            run_and_update: minimum(
                repeat,
                vcpu,
                // This requests an update.
                |vcpu| vcpu.kvmclock_ctrl().context("KVM_KVMCLOCK_CTRL"),
                run,
            )?,
        })
    }

    /// A text for the user.
    pub(crate) fn to_text(&self) -> String {
        format!(
            "KVM_RUN until the guest halts        {:>8} instructions\n\
             with an update of the guest's clock  {:>8}\n",
            self.run, self.run_and_update
        )
    }
}

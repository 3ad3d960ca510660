// SPDX-License-Identifier: GPL-2.0-only

//! VMs that were SET in every way.

use anyhow::{ensure, Context, Result};
use clockguest::vmm::Vm;
use kvm_clock::set_tsc_offset;
use kvm_clock_guest_selftests::{
    fixture::{at_another_rate, get, move_to_domain, reference_transform, run_a_little, set},
    time::HOUR_NS,
};
use kvm_ioctls::Kvm;
use pvclock::{
    abi::{ClockGuest, MODE_ADVANCE, MODE_EXACT, MODE_FREEZE},
    tsc::TscTransform,
};
use std::{thread::sleep, time::Duration};

/// A host TSC of another domain, far ahead of any of here.
const OTHER_DOMAIN: u64 = 1 << 60;
/// A guest TSC far from 0, ticks.
const START_TSC: u64 = 1 << 44;
/// Long against a call: a clock that ignored the record is off by about as much.
const A_WHILE: Duration = Duration::from_millis(20);

const MODES: &[(&str, u32)] = &[
    ("exact", MODE_EXACT),
    ("advance", MODE_ADVANCE),
    ("freeze", MODE_FREEZE),
];

/// How far each vCPU's TSC is ahead of the first one's, ticks.
type Layout = (&'static str, &'static [i64]);
const AGREE: Layout = ("vCPUs agree", &[0, 0]);
const APART: Layout = ("vCPUs apart", &[0, 1_000_000_007]);

/// Layouts, and guest TSC rates as fractions of the host's.
const VMS: &[(Layout, (u32, u32))] = &[
    (AGREE, (1, 1)),
    (APART, (1, 1)),
    (AGREE, (5, 7)),
    (APART, (7, 5)),
];

/// A way to have the clocks of a VM SET.
#[derive(Clone, Copy)]
pub(crate) struct State {
    mode: (&'static str, u32),
    layout: Layout,
    /// Guest TSC rate as a fraction of the host's; 1 without scaling.
    rate: (u32, u32),
}

/// What SET pinned.
pub(crate) struct Pinned {
    /// The record of the first vCPU.
    pub(crate) record: ClockGuest,
    /// The TSC of the first vCPU.
    pub(crate) transform: TscTransform,
    /// How far each vCPU's TSC is ahead of the first one's, ticks.
    pub(crate) ahead: &'static [i64],
}

impl Pinned {
    /// kvmclock at `host_tsc` (ticks), ns.
    pub(crate) fn ns(&self, host_tsc: u64) -> u64 {
        self.record.kvmclock_ns(self.transform.guest_tsc(host_tsc))
    }
}

impl State {
    /// All of them; those with other TSC rates only if the host `scales`.
    pub(crate) fn all(scales: bool) -> Vec<Self> {
        let vms = VMS.iter().filter(|(_, (num, den))| scales || num == den);
        vms.flat_map(|&(layout, rate)| MODES.iter().map(move |&mode| Self { mode, layout, rate }))
            .collect()
    }

    /// What makes it differ from the others.
    pub(crate) fn name(&self) -> String {
        let (mode, layout) = (self.mode.0, self.layout.0);
        match self.rate {
            (1, 1) => format!("{mode}, {layout}"),
            (num, den) => format!("{mode}, {layout}, TSC at {num}/{den} of the host's rate"),
        }
    }

    /// A stopped VM whose clock is pinned, whose vCPUs have this rate, and agree.
    pub(crate) fn vm(&self, kvm: &Kvm) -> Result<Vm> {
        // CAST: a few.
        let vm = Vm::new(kvm, self.layout.1.len() as u32)?;
        let (num, den) = self.rate;
        if num != den {
            let khz = u64::from(vm.tsc_khz()?) * u64::from(num) / u64::from(den);
            for vcpu in vm.vcpus() {
                vcpu.fd()
                    .set_tsc_khz(u32::try_from(khz)?)
                    .context("KVM_SET_TSC_KHZ")?;
            }
            // The rate moved the TSCs, perhaps below 0, where Hyper-V's page does not follow.
            let now = get(&vm)?.header;
            let shift = START_TSC.wrapping_sub(now.guest_tsc);
            for (vcpu, offset) in vm.vcpus().iter().zip(vm.tsc_offsets()?) {
                set_tsc_offset(&vcpu.fd(), offset.wrapping_add(shift))
                    .context("KVM_VCPU_TSC_OFFSET")?;
            }
        }
        run_a_little(&vm)?;
        set(&vm, &mut get(&vm)?, MODE_EXACT)?;
        Ok(vm)
    }

    /// Pulls the vCPUs of `vm` apart, and has the mode pin a record of another rate, which no clock
    /// of KVM's own making is mistaken for.
    pub(crate) fn set(&self, vm: &Vm) -> Result<Pinned> {
        let ahead = self.layout.1;
        if ahead.iter().any(|&ahead| ahead != 0) {
            let first = vm.tsc_offsets()?[0];
            for (vcpu, &ahead) in vm.vcpus().iter().zip(ahead) {
                set_tsc_offset(&vcpu.fd(), first.wrapping_add_signed(ahead))
                    .context("KVM_VCPU_TSC_OFFSET")?;
            }
            run_a_little(vm)?;
        }

        let mut clock = at_another_rate(get(vm)?);
        let record = clock.header.record;
        let (_, mode) = self.mode;
        if mode != MODE_EXACT {
            move_to_domain(&mut clock, OTHER_DOMAIN);
            clock.header.tai_ns -= HOUR_NS;
        }
        set(vm, &mut clock, mode)?;
        sleep(A_WHILE);

        let observed = get(vm)?;
        ensure!(
            observed.header.ref_vcpu_id == 0,
            "vCPU {} is the reference, not the first",
            observed.header.ref_vcpu_id
        );
        Ok(Pinned {
            record,
            transform: reference_transform(&observed)?,
            ahead,
        })
    }
}

// SPDX-License-Identifier: GPL-2.0-only

//! VMs in all states that SET can leave.

use kvm_clock_guest_selftests::{apart::pull_apart, fixture::at_another_rate, prelude::*};

/// A guest TSC far from 0.
const START_TSC: GuestTsc = GuestTsc(1 << 44);
/// Long compared with a call: the error of a clock that ignores the record.
const A_WHILE: Duration = Duration::from_millis(20);

/// How far each vCPU's TSC is ahead of the first one's, ticks.
type Layout = (&'static str, &'static [i64]);
const AGREE: Layout = ("equal TSCs", &[0, 0]);
const APART: Layout = ("different TSCs", &[0, 1_000_000_007]);

/// Layouts, and guest TSC rates as fractions of the host's.
const VMS: &[(Layout, (u32, u32))] = &[
    (AGREE, (1, 1)),
    (APART, (1, 1)),
    (AGREE, (5, 7)),
    (APART, (7, 5)),
];

/// How the clocks of a VM are SET.
#[derive(Clone, Copy)]
pub(crate) struct State {
    mode: (&'static str, u32),
    layout: Layout,
    /// Guest TSC rate as a fraction of the host's; 1 without scaling.
    rate: (u32, u32),
}

/// The clock that SET pinned.
pub(crate) struct Pinned {
    /// The record of the first vCPU.
    pub(crate) record: ClockGuest,
    /// The TSC of the first vCPU.
    pub(crate) transform: TscTransform,
    /// How far each vCPU's TSC is ahead of the first one's, ticks.
    pub(crate) ahead: &'static [i64],
}

impl Pinned {
    /// kvmclock at `host_tsc`, ns.
    pub(crate) fn ns(&self, host_tsc: HostTsc) -> u64 {
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

    /// How it differs from the others.
    pub(crate) fn name(&self) -> String {
        let (mode, layout) = (self.mode.0, self.layout.0);
        match self.rate {
            (1, 1) => format!("{mode}, {layout}"),
            (num, den) => format!("{mode}, {layout}, TSC at {num}/{den} of the host's rate"),
        }
    }

    /// A stopped VM whose clock is pinned, and whose vCPUs have this rate and equal TSCs.
    pub(crate) fn vm(&self, kvm: &Kvm) -> Result<Vm> {
        // CAST: a few.
        let vm = Vm::new(kvm, self.layout.1.len() as u32)?;
        let (num, den) = self.rate;
        if num != den {
            let khz = u64::from(vm.tsc_khz()?) * u64::from(num) / u64::from(den);
            set_tsc_khz(&vm, 0, u32::try_from(khz)?)?;
            // The rate moved the TSCs, perhaps below 0, where Hyper-V's page is invalid.
            let now = get(&vm)?.header;
            let shift = START_TSC.since(now.guest_tsc);
            for (vcpu, offset) in vm.vcpus().iter().zip(vm.tsc_offsets()?) {
                vm.set_tsc_offset(vcpu.index(), offset.wrapping_add(shift))?;
            }
        }
        run_a_little(&vm)?;
        set(&vm, &mut get(&vm)?, MODE_EXACT)?;
        Ok(vm)
    }

    /// Moves the TSCs of `vm` apart, and pins a record of another rate, which KVM never derives.
    pub(crate) fn set(&self, vm: &Vm) -> Result<Pinned> {
        let ahead = self.layout.1;
        if ahead.iter().any(|&ahead| ahead != 0) {
            pull_apart(vm, ahead)?;
        }

        let mut clock = at_another_rate(get(vm)?);
        let record = clock.header.record;
        let (_, mode) = self.mode;
        if mode != MODE_EXACT {
            move_to_other_host(&mut clock);
        }
        set(vm, &mut clock, mode)?;
        sleep(A_WHILE);

        let observed = get(vm)?;
        ensure_eq!(observed.header.ref_vcpu_id, 0, "the reference vCPU");
        Ok(Pinned {
            record,
            transform: reference_transform(&observed)?,
            ahead,
        })
    }
}

// SPDX-License-Identifier: GPL-2.0-only

//! SET while a guest runs a guest of its own under the VMX preemption timer (Intel): L2 leaves when
//! L1's TSC is at the deadline, at once if it has passed, whatever SET made of that TSC, and whether
//! the nested state is restored before SET or after it.

// TODO[VMXT]: Run this where VMLAUNCH works; Bochs hangs at it.

mod guest;
mod vmx;

use anyhow::{bail, ensure, Context, Result};
use clockguest::{
    host::{rdtsc_ordered, Vendor},
    vmm::vm::set_msr,
};
use guest::Nested;
use kvm_bindings::{KVM_STATE_NESTED_GUEST_MODE, KVM_STATE_VMX_PREEMPTION_TIMER_DEADLINE};
use kvm_clock_guest_selftests::{
    ktap::{self, note, Case, Skip},
    machine::{copy_vcpu, Machine},
    require,
    time::SECOND_NS,
};
use kvm_ioctls::{Cap, Kvm, KvmNestedStateBuffer};
use pvclock::{
    abi::{MODE_ADVANCE, MODE_EXACT, MODE_FREEZE},
    tsc::is_ahead,
};
use std::{
    process::ExitCode,
    thread::sleep,
    time::{Duration, Instant},
};
use vmx::{EXIT_PREEMPTION_TIMER, MSR_FEATURE_CONTROL, TIMER_SHIFT};

const MSR_IA32_TSC: u32 = 0x10;
/// L1's TSC at first, ticks: minutes ahead of that of a new VM.
const TSC: u64 = 1 << 38;
/// How long the guest may take to enter L2, and to leave it when that is due.
const PATIENCE: Duration = Duration::from_secs(1);

/// Deadlines, s from when L1 enters L2, and what passes while the VM is stopped.
const LATER: f64 = 0.5;
const SOON: f64 = 0.1;
const PAUSE: Duration = Duration::from_millis(150);

fn main() -> ExitCode {
    let mut cases = vec![
        Case::new("no SET", |kvm: &Kvm| same_vm(kvm, LATER, None)),
        Case::new("no SET, the deadline passes while stopped", |kvm: &Kvm| {
            same_vm(kvm, SOON, None)
        }),
    ];
    for (name, seconds, mode, advance_ns) in [
        ("exact", LATER, MODE_EXACT, 0),
        ("exact, the deadline passed", SOON, MODE_EXACT, 0),
        ("advance", LATER, MODE_ADVANCE, 0),
        ("advance by 0.2 s more", LATER, MODE_ADVANCE, SECOND_NS / 5),
        (
            "advance past the deadline",
            LATER,
            MODE_ADVANCE,
            20 * SECOND_NS,
        ),
        ("freeze", LATER, MODE_FREEZE, 0),
        (
            "freeze, the deadline passes while stopped",
            SOON,
            MODE_FREEZE,
            0,
        ),
    ] {
        cases.push(Case::new(format!("same VM, {name}"), move |kvm: &Kvm| {
            same_vm(kvm, seconds, Some((mode, advance_ns)))
        }));
    }
    for (order, nested_first) in [("after", false), ("before", true)] {
        for (name, seconds) in [("", LATER), (", the deadline passed", SOON)] {
            cases.push(Case::new(
                format!("new VM, nested state {order} SET{name}"),
                move |kvm: &Kvm| new_vm(kvm, seconds, nested_first),
            ));
        }
    }
    ktap::main(requirements, cases)
}

fn requirements() -> Result<Kvm> {
    let kvm = require::clock_guest()?;
    if Vendor::loaded() != Some(Vendor::Intel) {
        bail!(Skip("the nested guest is for VMX: kvm_intel".into()));
    }
    if !kvm.check_extension(Cap::NestedState) {
        bail!(Skip(
            "no KVM_CAP_NESTED_STATE: kvm_intel without nested=1".into()
        ));
    }
    Ok(kvm)
}

/// A vCPU that is stopped in L2.
struct InL2 {
    machine: Machine,
    khz: u64,
    /// L1's TSC (ticks) when L2 is to leave.
    deadline: u64,
}

impl InL2 {
    /// L2 is to leave `seconds` after L1 enters it.
    fn new(kvm: &Kvm, seconds: f64) -> Result<Self> {
        let machine = Machine::new(kvm, 1, guest::code())?;
        let khz = {
            let fd = machine.vcpus()[0].fd();
            set_msr(&fd, MSR_IA32_TSC, TSC)?;
            u64::from(fd.get_tsc_khz().context("KVM_GET_TSC_KHZ")?)
        };
        // CAST: some seconds.
        let ticks = (seconds * 1000.0) as u64 * khz;
        vmx::prepare(&machine, ticks)?;
        machine.run()?;
        let (nested, start) = (Nested(&machine), Instant::now());
        while nested.l2_rounds() == 0 {
            machine
                .check()
                .with_context(|| format!("L1 wrote up to VMCS field {:#x}", nested.last_field()))?;
            ensure!(start.elapsed() < PATIENCE, "L2 does not run");
            sleep(Duration::from_millis(1));
        }
        machine.stop()?;
        let deadline = deadline(&machine)?;
        note(&format!("L2 made {} rounds", nested.l2_rounds()));
        let late = deadline.wrapping_sub(nested.entry_tsc() + ticks);
        // Some 0.1 s of what L1 and KVM need to enter L2, and the timer's unit.
        // CAST: The sign of a difference mod 2^64 is the order.
        ensure!(
            (-64..=100 * khz as i64).contains(&(late as i64)),
            "KVM's deadline is {} ticks late",
            late as i64
        );
        Ok(Self {
            machine,
            khz,
            deadline,
        })
    }

    /// L1's TSC now, ticks.
    fn tsc(&self) -> Result<u64> {
        Ok(self.machine.transform(0)?.guest_tsc(rdtsc_ordered()))
    }

    /// Lets the vCPU run; fails unless L2 leaves at the deadline, or at once.
    fn ensure_leaves(&self) -> Result<()> {
        const LATE_MS: u64 = 50;

        let nested = Nested(&self.machine);
        let begin = self.tsc()?;
        let due = if is_ahead(begin, self.deadline) {
            begin
        } else {
            self.deadline
        };
        let ms = |ticks: u64| (ticks as i64) / self.khz as i64;
        let patience = Duration::from_millis((due - begin) / self.khz) + PATIENCE;
        let start = Instant::now();
        self.machine.run()?;
        let (tsc, reason) = loop {
            if let Some(exit) = nested.exit() {
                break exit;
            }
            self.machine.check()?;
            ensure!(
                start.elapsed() < patience,
                "L2 did not leave for {patience:?}, due was after {} ms; the deadline was {} ms \
                 ahead",
                ms(due.wrapping_sub(begin)),
                ms(self.deadline.wrapping_sub(begin))
            );
            sleep(Duration::from_millis(1));
        };
        self.machine.stop()?;
        ensure!(
            reason == EXIT_PREEMPTION_TIMER,
            "L2 left for reason {reason:#x}"
        );
        // CAST: The sign of a difference mod 2^64 is the order.
        let late = tsc.wrapping_sub(due) as i64;
        let text = format!(
            "L2 left {late} ticks late: {} ms",
            ms(tsc.wrapping_sub(due))
        );
        note(&text);
        ensure!((0..=(LATE_MS * self.khz) as i64).contains(&late), "{text}");
        Ok(())
    }
}

fn nested_state(machine: &Machine) -> Result<KvmNestedStateBuffer> {
    let mut state = KvmNestedStateBuffer::empty();
    let vcpu = machine.vcpus()[0].fd();
    vcpu.nested_state(&mut state)
        .context("KVM_GET_NESTED_STATE")?;
    Ok(state)
}

/// L1's TSC (ticks) at which KVM says that L2, in which the vCPU is stopped, is to leave.
fn deadline(machine: &Machine) -> Result<u64> {
    let state = nested_state(machine)?;
    // SAFETY: The kernel filled in the header of VMX, and any bits are valid for it.
    let header = unsafe { state.hdr.vmx };
    ensure!(
        u32::from(state.flags) & KVM_STATE_NESTED_GUEST_MODE != 0
            && header.flags & KVM_STATE_VMX_PREEMPTION_TIMER_DEADLINE != 0,
        "the vCPU is not in L2 under a timer: flags {:#x} and {:#x}",
        state.flags,
        header.flags
    );
    Ok(header.preemption_timer_deadline << TIMER_SHIFT)
}

/// `set`: a mode, and what passes of TAI beside the pause, ns.
fn same_vm(kvm: &Kvm, seconds: f64, set: Option<(u32, i64)>) -> Result<()> {
    let l2 = InL2::new(kvm, seconds)?;
    let mut clock = l2.machine.clock()?;
    sleep(PAUSE);
    if let Some((mode, advance_ns)) = set {
        clock.header.tai_ns -= advance_ns;
        l2.machine.set_clock(&mut clock, mode)?;
    }
    l2.ensure_leaves()
}

fn new_vm(kvm: &Kvm, seconds: f64, nested_first: bool) -> Result<()> {
    let saved = InL2::new(kvm, seconds)?;
    let mut clock = saved.machine.clock()?;
    let state = nested_state(&saved.machine)?;
    sleep(PAUSE);

    let machine = Machine::new(kvm, 1, &[])?;
    machine.memory().write(0, &saved.machine.memory().to_vec());
    copy_vcpu(
        &saved.machine.vcpus()[0].fd(),
        &machine.vcpus()[0].fd(),
        &[MSR_FEATURE_CONTROL],
    )?;
    let restore = || {
        let vcpu = machine.vcpus()[0].fd();
        vcpu.set_nested_state(&state)
            .context("KVM_SET_NESTED_STATE")
    };
    if nested_first {
        restore()?;
    }
    machine.set_clock(&mut clock, MODE_EXACT)?;
    if !nested_first {
        restore()?;
    }
    let (khz, deadline) = (saved.khz, saved.deadline);
    drop(saved);
    InL2 {
        machine,
        khz,
        deadline,
    }
    .ensure_leaves()
}

// SPDX-License-Identifier: GPL-2.0-only

//! SET while a guest runs a guest of its own under the VMX preemption timer (Intel): L2 exits when
//! L1's TSC, as changed by SET, is at the deadline, or immediately if that has passed, whether the
//! nested state is restored before SET or after it.

mod guest;
mod vmx;

use clockguest::{
    host::Vendor,
    vmm::{Guest, VmBuilder},
};
use guest::Nested;
use kvm_bindings::{KVM_STATE_NESTED_GUEST_MODE, KVM_STATE_VMX_PREEMPTION_TIMER_DEADLINE};
use kvm_clock_guest_selftests::{
    copy::{into_new_vm, nested_state, set_nested_state},
    msr::{set_msr, MSR_IA32_TSC},
    prelude::*,
    tsc_writes,
    wait::wait_for_guest,
};
use kvm_ioctls::Cap;
use vmx::{EXIT_PREEMPTION_TIMER, MSR_FEATURE_CONTROL, TIMER_SHIFT};

/// L1's initial TSC: minutes ahead of a new VM's.
const TSC: GuestTsc = GuestTsc(1 << 38);
/// How long the guest may take to enter L2, and to leave it at the deadline.
const PATIENCE: Duration = Duration::from_secs(1);

/// Deadlines, s after L1 enters L2, and how long the VM is stopped.
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
    vm: Vm,
    khz: u64,
    /// L1's TSC at which L2 must exit.
    deadline: GuestTsc,
}

impl InL2 {
    /// L2 must exit `seconds` after L1 enters it.
    fn new(kvm: &Kvm, seconds: f64) -> Result<Self> {
        let vm = VmBuilder::new(kvm, 1)
            .guest(Guest::Code(guest::code()))
            .build()?;
        set_msr(&vm.vcpus()[0].fd(), MSR_IA32_TSC, TSC.0)?;
        let khz = u64::from(vm.tsc_khz()?);
        // CAST: some seconds.
        let ticks = (seconds * 1000.0) as u64 * khz;
        vmx::prepare(&vm, ticks)?;
        vm.run()?;
        let nested = Nested(&vm);
        wait_for_guest(&vm, "L2 runs", PATIENCE, || nested.l2_rounds() != 0)
            .with_context(|| format!("L1 wrote up to VMCS field {:#x}", nested.last_field()))?;
        vm.stop()?;
        let deadline = deadline(&vm)?;
        note!("L2 made {} rounds", nested.l2_rounds());
        let late = deadline.since(nested.entry_tsc().wrapping_add(ticks));
        // L1 and KVM need about 0.1 s to enter L2; and the timer's unit.
        // CAST: The sign of a difference mod 2^64 is the order.
        ensure!(
            (-64..=100 * khz as i64).contains(&(late as i64)),
            "KVM's deadline is {} ticks late",
            late as i64
        );
        Ok(Self { vm, khz, deadline })
    }

    /// Lets the vCPU run; fails unless L2 exits at the deadline, or immediately if that has passed.
    fn ensure_exits(&self) -> Result<()> {
        const LATE_MS: u64 = 50;

        let nested = Nested(&self.vm);
        let begin = tsc_writes::now(&self.vm, 0)?;
        let expected = if begin.is_ahead_of(self.deadline) {
            begin
        } else {
            self.deadline
        };
        let ms = |ticks: u64| (ticks as i64) / self.khz as i64;
        let patience = Duration::from_millis(expected.since(begin) / self.khz) + PATIENCE;
        self.vm.run()?;
        let exited = wait_for_guest(&self.vm, "L2 exits", patience, || nested.exit().is_some());
        exited.with_context(|| {
            format!(
                "expected after {} ms; the deadline was {} ms ahead",
                ms(expected.since(begin)),
                ms(self.deadline.since(begin))
            )
        })?;
        let (tsc, reason) = nested.exit().context("no exit")?;
        self.vm.stop()?;
        ensure_eq_hex!(reason, EXIT_PREEMPTION_TIMER, "L2's exit reason");
        // CAST: The sign of a difference mod 2^64 is the order.
        let late = tsc.since(expected) as i64;
        let text = format!(
            "L2 exited {late} ticks late: {} ms",
            ms(tsc.since(expected))
        );
        note!("{text}");
        ensure!((0..=(LATE_MS * self.khz) as i64).contains(&late), "{text}");
        Ok(())
    }
}

/// KVM's deadline, of L1's TSC, for L2, in which the vCPU is stopped.
fn deadline(vm: &Vm) -> Result<GuestTsc> {
    let state = nested_state(vm, 0)?;
    // SAFETY: The kernel filled in the header of VMX, and any bits are valid for it.
    let header = unsafe { state.hdr.vmx };
    ensure!(
        u32::from(state.flags) & KVM_STATE_NESTED_GUEST_MODE != 0
            && header.flags & KVM_STATE_VMX_PREEMPTION_TIMER_DEADLINE != 0,
        "the vCPU is not in L2 under a timer: flags {:#x} and {:#x}",
        state.flags,
        header.flags
    );
    Ok(GuestTsc(header.preemption_timer_deadline << TIMER_SHIFT))
}

/// `mode_and_ns`: the mode of SET, and how much TAI passes in addition to the pause, ns.
fn same_vm(kvm: &Kvm, seconds: f64, mode_and_ns: Option<(u32, i64)>) -> Result<()> {
    let l2 = InL2::new(kvm, seconds)?;
    let mut clock = get(&l2.vm)?;
    sleep(PAUSE);
    if let Some((mode, advance_ns)) = mode_and_ns {
        clock.header.tai_ns -= advance_ns;
        set(&l2.vm, &mut clock, mode)?;
    }
    l2.ensure_exits()
}

fn new_vm(kvm: &Kvm, seconds: f64, nested_first: bool) -> Result<()> {
    let saved = InL2::new(kvm, seconds)?;
    let mut clock = get(&saved.vm)?;
    let state = nested_state(&saved.vm, 0)?;
    sleep(PAUSE);

    let vm = into_new_vm(kvm, &saved.vm, &[MSR_FEATURE_CONTROL])?;
    if nested_first {
        set_nested_state(&vm, 0, &state)?;
    }
    set(&vm, &mut clock, MODE_EXACT)?;
    if !nested_first {
        set_nested_state(&vm, 0, &state)?;
    }
    let (khz, deadline) = (saved.khz, saved.deadline);
    drop(saved);
    InL2 { vm, khz, deadline }.ensure_exits()
}

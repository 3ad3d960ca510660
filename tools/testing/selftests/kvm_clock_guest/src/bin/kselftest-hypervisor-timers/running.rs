// SPDX-License-Identifier: GPL-2.0-only

//! KVM_SET_CLOCK_GUEST while the guest runs. It does not restart the Xen timer of a vCPU that
//! runs, and says so; once the vCPU is stopped, a second call with the same record does.

use crate::{
    acts::{FAR_NS, LEFT_NS},
    armed::{Armed, PATIENCE},
    timer::Timer,
};
use kvm_bindings::{kvm_mp_state, KVM_MP_STATE_RUNNABLE};
use kvm_clock_guest_selftests::{
    descriptors,
    prelude::*,
    timer_guest::{self, timers, Wait},
};

pub(crate) fn cases() -> Vec<Case<Kvm>> {
    vec![Case::new(
        "Xen's timer, KVM_SET_CLOCK_GUEST while its vCPU runs, and again when it is stopped",
        xen,
    )]
}

fn xen(kvm: &Kvm) -> Result<()> {
    let mut armed = Armed::new(kvm, Timer::Xen, true)?;
    armed.arm(FAR_NS)?;
    let mut record = armed.saved.header.record;
    record.system_time += FAR_NS - LEFT_NS;
    let fds = descriptors::of_vcpus(&armed.vm)?;
    spin(&armed.vm)?;
    set_clock_guest(&fds[0], &record).context("KVM_SET_CLOCK_GUEST")?;
    // By the new clock the timers expire in the middle.
    sleep(Duration::from_nanos(2 * LEFT_NS));
    armed.vm.stop()?;
    for timer in timers(&armed.vm) {
        let vcpu = timer.vcpu;
        ensure_eq!(timer.count(), 0, "interrupts of vCPU {vcpu}, which ran");
    }
    set_clock_guest(&fds[0], &record).context("KVM_SET_CLOCK_GUEST again")?;
    armed.ensure_fires()
}

/// Lets the halted guest run, and returns when each vCPU executes instructions and so is inside
/// KVM_RUN, where it stays.
fn spin(vm: &Vm) -> Result<()> {
    for (timer, vcpu) in timers(vm).zip(vm.vcpus()) {
        timer.prepare(0, Wait::Spinning);
        let runnable = kvm_mp_state {
            mp_state: KVM_MP_STATE_RUNNABLE,
        };
        vcpu.fd()
            .set_mp_state(runnable)
            .context("KVM_SET_MP_STATE")?;
    }
    let before: Vec<_> = timers(vm).map(|timer| timer.rounds()).collect();
    vm.run()?;
    timer_guest::wait(vm, "spins", PATIENCE, || {
        timers(vm)
            .zip(&before)
            .all(|(timer, before)| timer.rounds() > before + 1)
    })
}

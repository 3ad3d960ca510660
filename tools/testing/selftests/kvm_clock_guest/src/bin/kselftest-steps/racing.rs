// SPDX-License-Identifier: GPL-2.0-only

//! SET while vCPUs leave and enter KVM_RUN at any time: it fails, or it is complete before the
//! first vCPU continues.

use crate::SETS;
use kvm_clock_guest_selftests::{prelude::*, progress::Progress};
use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

const VCPUS: u32 = 4;
/// The distance by which each SET moves the guest forward, ns: the next readings of the other vCPUs
/// would reveal a vCPU that SET left behind.
const LEAP_NS: i64 = 1_000_000;
/// The least number of successful SETs, and of refused ones, for a meaningful result.
const LEAST: u32 = SETS / 10;
/// Time limit once [`LEAST`] is reached.
const LIMIT: Duration = Duration::from_secs(5);
/// Time limit to reach [`LEAST`].
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn cases() -> Vec<Case<Kvm>> {
    vec![Case::new(
        "SETs while vCPUs enter and leave KVM_RUN",
        enter_and_leave,
    )]
}

/// Numbers of the SETs' results.
#[derive(Debug, Default)]
struct Outcomes {
    done: u32,
    busy: u32,
}

fn enter_and_leave(kvm: &Kvm) -> Result<()> {
    let vm = pinned(kvm, VCPUS)?;
    let record = get(&vm)?.header.record;
    let first = Progress::of(&vm);
    let enough = AtomicBool::new(false);
    let outcomes = thread::scope(|scope| {
        let setter = scope.spawn(|| {
            let outcomes = set_often(&vm);
            enough.store(true, Ordering::Relaxed);
            outcomes
        });
        let controlled = start_and_stop(&vm, &enough);
        // The thread of the SETs ends by itself.
        let outcomes = setter.join().expect("the thread of the SETs panicked");
        controlled.and(outcomes)
    })?;
    let read = Progress::of(&vm).since(&first);
    note!("SETs: {outcomes:?}; readings by vCPU: {read:?}");
    first.ensure_none_went_back(&vm, true)?;
    ensure!(
        outcomes.done >= LEAST && outcomes.busy >= LEAST,
        "{outcomes:?} in {PATIENCE:?}, expected at least {LEAST} of each"
    );
    let now = get(&vm)?;
    ensure_eq_hex!(now.header.record, record, "the record");
    let offset = now.vcpus[0].tsc_offset;
    ensure!(
        now.vcpus.iter().all(|vcpu| vcpu.tsc_offset == offset),
        "vCPUs' offsets differ: {:x?}",
        now.vcpus
    );
    Ok(())
}

/// Calls SET continuously, each time with the present clocks and a leap forward.
fn set_often(vm: &Vm) -> Result<Outcomes> {
    let start = Instant::now();
    let mut outcomes = Outcomes::default();
    loop {
        let limit = match outcomes.done.min(outcomes.busy) {
            SETS.. => return Ok(outcomes),
            LEAST.. => LIMIT,
            _ => PATIENCE,
        };
        if start.elapsed() > limit {
            return Ok(outcomes);
        }
        let mut clock = get(vm)?;
        clock.header.mode = MODE_ADVANCE;
        clock.header.tai_ns -= LEAP_NS;
        match set_vm_clock_guest(vm.fd(), &mut clock) {
            Ok(()) => outcomes.done += 1,
            Err(e) if e.errno() == libc::EBUSY => outcomes.busy += 1,
            Err(e) => return Err(e).context("KVM_SET_VM_CLOCK_GUEST"),
        }
    }
}

/// Stops the vCPUs, so that a SET can succeed, and runs them until each made readings.
fn start_and_stop(vm: &Vm, enough: &AtomicBool) -> Result<()> {
    while !enough.load(Ordering::Relaxed) {
        let progress = Progress::of(vm);
        vm.run()?;
        progress.wait(vm, 2)?;
        vm.stop()?;
    }
    Ok(())
}

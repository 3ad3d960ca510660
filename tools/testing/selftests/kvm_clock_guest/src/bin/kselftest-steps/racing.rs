// SPDX-License-Identifier: GPL-2.0-only

//! SET against vCPUs that leave and enter KVM_RUN as they please: it is refused, or it is done
//! before the first of them gets on.

use crate::SETS;
use anyhow::{ensure, Context, Result};
use clockguest::vmm::Vm;
use kvm_clock::set_vm_clock_guest;
use kvm_clock_guest_selftests::{
    fixture::{get, pinned},
    flat_out::Progress,
    ktap::{note, Case},
};
use kvm_ioctls::Kvm;
use pvclock::abi::MODE_ADVANCE;
use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

const VCPUS: u32 = 4;
/// How far each SET moves the guest forward, ns: a vCPU left behind would be caught by the others'
/// next readings.
const LEAP_NS: i64 = 1_000_000;
/// As many SETs must have been done, and as many refused, to say anything.
const LEAST: u32 = SETS / 10;
/// Time for more than that.
const LIMIT: Duration = Duration::from_secs(5);
/// Time for that.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn cases() -> Vec<Case<Kvm>> {
    vec![Case::new("SETs while vCPUs come and go", come_and_go)]
}

/// What became of the SETs.
#[derive(Debug, Default)]
struct Outcomes {
    done: u32,
    busy: u32,
}

fn come_and_go(kvm: &Kvm) -> Result<()> {
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
        // It ends by itself, whatever happened here.
        let outcomes = setter.join().expect("the thread of the SETs panicked");
        controlled.and(outcomes)
    })?;
    let read = Progress::of(&vm).since(&first);
    note(&format!("SETs: {outcomes:?}; readings by vCPU: {read:?}"));
    first.ensure_none_went_back(&vm, true)?;
    ensure!(
        outcomes.done >= LEAST && outcomes.busy >= LEAST,
        "{outcomes:?} in {PATIENCE:?}: at least {LEAST} of each are needed"
    );
    let now = get(&vm)?;
    ensure!(
        now.header.record == record,
        "record was {record:x?}, is {:x?}",
        now.header.record
    );
    let offset = now.vcpus[0].tsc_offset;
    ensure!(
        now.vcpus.iter().all(|vcpu| vcpu.tsc_offset == offset),
        "vCPUs' offsets differ: {:x?}",
        now.vcpus
    );
    Ok(())
}

/// Calls SET without a pause, each time with the present clocks and a leap forward.
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

/// Stops the vCPUs, which lets a SET in, and lets them run until each has read.
fn start_and_stop(vm: &Vm, enough: &AtomicBool) -> Result<()> {
    while !enough.load(Ordering::Relaxed) {
        let progress = Progress::of(vm);
        vm.run()?;
        progress.wait(vm, 2)?;
        vm.stop()?;
    }
    Ok(())
}

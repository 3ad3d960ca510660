// SPDX-License-Identifier: GPL-2.0-only

//! SET while vCPUs enter and leave KVM_RUN and another thread calls GET: all or nothing, at any
//! time.

use crate::{request, Host, VCPUS};
use kvm_clock_guest_selftests::{prelude::*, threads};
use std::{
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    thread,
};

/// How often everything must happen.
const ENOUGH: u32 = 20;
/// How long that may take.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn cases() -> Vec<Case<Host>> {
    vec![Case::new(
        "GET reports one SET or the other while vCPUs start and stop",
        race,
    )]
}

/// All that SET writes.
fn written(clock: &VmClock) -> (Vec<ClockGuestVcpu>, ClockGuest) {
    (clock.vcpus.clone(), function(clock.header.record))
}

fn race(host: &Host) -> Result<()> {
    let vm = pinned(&host.kvm, VCPUS)?;
    let mut one = get(&vm)?;
    one.header.mode = MODE_EXACT;
    let mut clocks = [one, request(&vm, MODE_EXACT)?];
    let expected = clocks.each_ref().map(written);
    let (stop, seen) = (AtomicBool::new(false), Seen::default());
    thread::scope(|scope| {
        let runs = scope.spawn(|| start_and_stop(&vm, &stop));
        let observer = scope.spawn(|| observe(&vm, &expected, &seen, &stop));
        let sets = set_both(&vm, &mut clocks, &seen);
        stop.store(true, Ordering::Relaxed);
        threads::join([observer, runs], sets)
    })
}

/// How often GET returned each of the two.
type Seen = [AtomicU32; 2];

/// SETs one or the other, until everything happened often enough.
fn set_both(vm: &Vm, clocks: &mut [VmClock; 2], seen: &Seen) -> Result<()> {
    let (mut done, mut refused, start) = ([0; 2], 0, Instant::now());
    for which in [0, 1].into_iter().cycle() {
        match set_vm_clock_guest(vm.fd(), &mut clocks[which]) {
            Ok(()) => done[which] += 1,
            Err(error) if error.errno() == libc::EBUSY => refused += 1,
            Err(error) => return Err(error).context("KVM_SET_VM_CLOCK_GUEST"),
        }
        let seen = seen.each_ref().map(|count| count.load(Ordering::Relaxed));
        let text =
            format!("SET succeeded {done:?} times, failed {refused} times; GET reported {seen:?}");
        if done.iter().chain(&seen).all(|&count| count >= ENOUGH) && refused >= ENOUGH {
            note!("{text}");
            break;
        }
        ensure!(start.elapsed() < PATIENCE, "in {PATIENCE:?} {text}");
        // Lets the other threads run.
        thread::sleep(Duration::from_micros(100));
    }
    Ok(())
}

/// vCPUs run one by one for a moment.
fn start_and_stop(vm: &Vm, stop: &AtomicBool) -> Result<()> {
    for vcpu in vm.vcpus().iter().cycle() {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        vcpu.request_run();
        vcpu.wait_running()?;
        thread::sleep(Duration::from_millis(1));
        vcpu.request_stop();
        vcpu.wait_stopped()?;
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Fails unless GET returns one of the two.
fn observe(
    vm: &Vm,
    expected: &[(Vec<ClockGuestVcpu>, ClockGuest); 2],
    seen: &Seen,
    stop: &AtomicBool,
) -> Result<()> {
    while !stop.load(Ordering::Relaxed) {
        let clock = written(&get(vm)?);
        match expected.iter().position(|expected| *expected == clock) {
            Some(index) => seen[index].fetch_add(1, Ordering::Relaxed),
            None => bail!("GET reports {clock:x?}, SET were {expected:x?}"),
        };
    }
    Ok(())
}

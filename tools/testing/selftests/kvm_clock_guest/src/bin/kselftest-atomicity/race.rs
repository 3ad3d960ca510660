// SPDX-License-Identifier: GPL-2.0-only

//! SET while vCPUs enter and leave KVM_RUN and others look on: all or nothing, at any time.

use crate::{request, Host, VCPUS};
use anyhow::{bail, ensure, Context, Result};
use clockguest::vmm::Vm;
use kvm_clock::{set_vm_clock_guest, VmClock};
use kvm_clock_guest_selftests::{
    clocks::function,
    fixture::{get, pinned},
    ktap::{note, Case},
    threads,
};
use pvclock::abi::{ClockGuest, ClockGuestVcpu, MODE_EXACT};
use std::{
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

/// How often everything has to have happened.
const ENOUGH: u32 = 20;
/// And how long that may take.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn cases() -> Vec<Case<Host>> {
    vec![Case::new(
        "GET sees one SET or the other while vCPUs come and go",
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
        let comings = scope.spawn(|| come_and_go(&vm, &stop));
        let looks = scope.spawn(|| look_on(&vm, &expected, &seen, &stop));
        let sets = set_both(&vm, &mut clocks, &seen);
        stop.store(true, Ordering::Relaxed);
        threads::join([looks, comings], sets)
    })
}

/// How often GET returned each of the two.
type Seen = [AtomicU32; 2];

/// SETs one or the other, until all was had often enough.
fn set_both(vm: &Vm, clocks: &mut [VmClock; 2], seen: &Seen) -> Result<()> {
    let (mut done, mut refused, start) = ([0; 2], 0, Instant::now());
    for which in [0, 1].into_iter().cycle() {
        match set_vm_clock_guest(vm.fd(), &mut clocks[which]) {
            Ok(()) => done[which] += 1,
            Err(error) if error.errno() == libc::EBUSY => refused += 1,
            Err(error) => return Err(error).context("KVM_SET_VM_CLOCK_GUEST"),
        }
        let seen = seen.each_ref().map(|count| count.load(Ordering::Relaxed));
        let text = format!("SET was done {done:?} times, refused {refused} times; seen {seen:?}");
        if done.iter().chain(&seen).all(|&count| count >= ENOUGH) && refused >= ENOUGH {
            note(&text);
            break;
        }
        ensure!(start.elapsed() < PATIENCE, "in {PATIENCE:?} {text}");
        // For those who look on.
        thread::sleep(Duration::from_micros(100));
    }
    Ok(())
}

/// One vCPU after the other runs for a moment.
fn come_and_go(vm: &Vm, stop: &AtomicBool) -> Result<()> {
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
fn look_on(
    vm: &Vm,
    expected: &[(Vec<ClockGuestVcpu>, ClockGuest); 2],
    seen: &Seen,
    stop: &AtomicBool,
) -> Result<()> {
    while !stop.load(Ordering::Relaxed) {
        let clock = written(&get(vm)?);
        match expected.iter().position(|expected| *expected == clock) {
            Some(index) => seen[index].fetch_add(1, Ordering::Relaxed),
            None => bail!("GET says {clock:x?}, SET were {expected:x?}"),
        };
    }
    Ok(())
}

// SPDX-License-Identifier: GPL-2.0-only

//! Unloads and loads while threads make all calls in loops: each call succeeds, or finds no module.

use crate::{kunit::WithoutTests, Host};
use kvm_clock_guest_selftests::{descriptors, prelude::*, threads};
use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread::scope,
};

/// Unloads and loads, by default: `--rounds=N`.
const ROUNDS: u32 = 20;
const PATIENCE: Duration = Duration::from_secs(60);
/// Sleep between two checks of the callers, and between two calls of a caller.
const POLL: Duration = Duration::from_micros(100);
/// The calls, each made by its own thread.
const CALLS: [&str; 5] = [
    "GET of the VM",
    "SET of the VM",
    "GET of a vCPU",
    "SET of a vCPU",
    "KVM_CHECK_EXTENSION",
];

pub(crate) fn cases() -> Vec<Case<Host>> {
    vec![Case::new(
        "unloads and loads while all ioctls are made",
        under_load,
    )]
}

/// The results of one caller.
#[derive(Default)]
struct Seen {
    served: AtomicU64,
    absent: AtomicU64,
}

impl Seen {
    /// Counts `result`; fails if it is unexpected.
    fn count(&self, result: kvm_clock::Result<()>) -> Result<()> {
        match result {
            Ok(()) => self.served.fetch_add(1, Ordering::Relaxed),
            Err(e) if e.errno() == libc::ENOTTY => self.absent.fetch_add(1, Ordering::Relaxed),
            Err(e) => bail!("the call failed with {e}, expected success or ENOTTY"),
        };
        Ok(())
    }
}

/// All callers.
#[derive(Default)]
struct Callers {
    seen: [Seen; CALLS.len()],
    stop: AtomicBool,
}

impl Callers {
    /// Makes call `index` until all stop; an unexpected result stops all.
    fn repeat(&self, index: usize, mut call: impl FnMut() -> kvm_clock::Result<()>) -> Result<()> {
        while !self.stop.load(Ordering::Relaxed) {
            self.seen[index]
                .count(call())
                .inspect_err(|_| self.stop.store(true, Ordering::Relaxed))
                .context(CALLS[index])?;
            // The module can only be unloaded while no call is in progress.
            sleep(POLL);
        }
        Ok(())
    }

    /// Returns when every caller's count `which` has grown, or all stop.
    fn wait(&self, which: impl Fn(&Seen) -> &AtomicU64, what: &str) -> Result<()> {
        let now = || {
            self.seen
                .each_ref()
                .map(|seen| which(seen).load(Ordering::Relaxed))
        };
        let (from, start) = (now(), Instant::now());
        while now().iter().zip(from).any(|(now, from)| *now == from)
            && !self.stop.load(Ordering::Relaxed)
        {
            ensure!(
                start.elapsed() < PATIENCE,
                "{what} calls in {PATIENCE:?}: from {from:?} to {:?}",
                now()
            );
            sleep(POLL);
        }
        Ok(())
    }
}

fn under_load(host: &Host) -> Result<()> {
    let rounds = option("rounds", ROUNDS)?;
    let kvm = host.kvm()?;
    let vm = pinned(&kvm, 2)?;
    let before = Clocks::of(&vm)?;
    let callers = Callers::default();
    let (start, _without_tests) = (Instant::now(), WithoutTests::new()?);
    call_during(&kvm, &vm, &callers, || {
        for _ in 0..rounds {
            callers.wait(|seen| &seen.served, "served")?;
            let unloaded = host.module.unload()?;
            callers.wait(|seen| &seen.absent, "unserved")?;
            unloaded.load()?;
        }
        callers.wait(|seen| &seen.served, "served")
    })?;
    note!(
        "{rounds} rounds in {:.1?}; calls (served, without the module):",
        start.elapsed()
    );
    for (name, seen) in CALLS.iter().zip(callers.seen) {
        let (served, absent) = (seen.served.into_inner(), seen.absent.into_inner());
        note!("{name}: {served}, {absent}");
    }
    before.ensure_unchanged(&vm)
}

/// Makes all calls while `rounds` runs.
fn call_during(
    kvm: &Kvm,
    vm: &Vm,
    callers: &Callers,
    rounds: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let capability = require::capability(kvm);
    let vcpus = descriptors::of_vcpus(vm)?;
    let mut clock = get(vm)?;
    clock.header.mode = MODE_EXACT;
    let record = clock.header.record;
    scope(|scope| {
        let (first, second) = (&vcpus[0], &vcpus[1]);
        let threads = [
            scope.spawn(|| callers.repeat(0, || get_vm_clock_guest(vm.fd()).map(drop))),
            scope.spawn(move || callers.repeat(1, || set_vm_clock_guest(vm.fd(), &mut clock))),
            scope.spawn(|| callers.repeat(2, || get_clock_guest(second).map(drop))),
            scope.spawn(|| callers.repeat(3, || set_clock_guest(first, &record))),
            scope.spawn(|| {
                callers.repeat(4, || match require::capability(kvm) {
                    0 => Err(kvm_clock::Errno(libc::ENOTTY)),
                    now if now == capability => Ok(()),
                    _ => Err(kvm_clock::Errno(libc::EPROTO)),
                })
            }),
        ];
        let result = rounds();
        callers.stop.store(true, Ordering::Relaxed);
        threads::join(threads, result)
    })
}

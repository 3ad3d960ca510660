// SPDX-License-Identifier: GPL-2.0-only

//! How long the host's interrupts are off during GET and SET: no longer for a VM of 513 vCPUs than
//! for one of 2.
//!
//! A timer of this thread expires at each moment of the call in turn; the kernel's tracepoints show
//! how late its interrupt comes. It needs a host whose time is the number of its instructions, as
//! other work would show: `tools/vm/host run --icount`. Needs root.

use clockguest::vmm::{Guest, VmBuilder};
use kvm_clock_guest_selftests::{prelude::*, trace::Buffer};
use std::{
    collections::HashMap,
    fs, io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    ptr,
};

const FEW: u32 = 2;
const MANY: u32 = 513;
/// Moments of a call at which the timer expires.
const MOMENTS: u32 = 400;
/// Other delays, ns: e.g. the scheduler disables interrupts.
const TOLERANCE_NS: i64 = 10_000;
const EVENTS: [&str; 2] = ["hrtimer_expire_entry", "hrtimer_start"];

fn main() -> ExitCode {
    let cases = vec![
        Case::new("GET", |kvm: &Kvm| {
            compare(kvm, |vm, _| get_vm_clock_guest(vm).map(drop).context("GET"))
        }),
        Case::new("SET that leaves the offsets", |kvm: &Kvm| compare(kvm, set)),
        Case::new("SET that writes all offsets", |kvm: &Kvm| {
            compare(kvm, |vm, clock| {
                let header = &mut clock.header;
                header.guest_tsc = header.guest_tsc.wrapping_sub(1);
                header.record.tsc_timestamp = header.record.tsc_timestamp.wrapping_sub(1);
                for vcpu in &mut clock.vcpus {
                    vcpu.tsc_offset = vcpu.tsc_offset.wrapping_sub(1);
                }
                set(vm, clock)
            })
        }),
    ];
    ktap::main(requirements, cases)
}

fn requirements() -> Result<Kvm> {
    let online = fs::read_to_string("/sys/devices/system/cpu/online")?;
    if online.trim() != "0" {
        bail!(Skip(format!(
            "CPUs {} are online: tools/vm/host run --icount",
            online.trim()
        )));
    }
    require::clock_guest()
}

fn set(vm: &VmFd, clock: &mut VmClock) -> Result<()> {
    clock.header.mode = MODE_EXACT;
    set_vm_clock_guest(vm, clock).context("SET")
}

/// Lateness of interrupts during `call` of a VM of many vCPUs, against one of few.
fn compare(kvm: &Kvm, call: impl Fn(&VmFd, &mut VmClock) -> Result<()>) -> Result<()> {
    let mut latest = [0; 2];
    for (latest, vcpus) in latest.iter_mut().zip([FEW, MANY]) {
        let vm = VmBuilder::new(kvm, vcpus).guest(Guest::Bare).build_fds()?;
        let mut clock = get_vm_clock_guest(&vm.fd).context("GET")?;
        // The first SET pins the clock.
        set(&vm.fd, &mut clock)?;
        *latest = latest_interrupt_ns(|| call(&vm.fd, &mut clock))?;
    }
    let text = format!("{latest:?} ns at most with {FEW} and {MANY} vCPUs");
    note!("{text}");
    ensure!(
        latest[1] <= latest[0] + TOLERANCE_NS,
        "interrupts are off for {text}"
    );
    Ok(())
}

/// The longest delay, ns, of the interrupt of a timer that expired during `call`.
fn latest_interrupt_ns(mut call: impl FnMut() -> Result<()>) -> Result<i64> {
    // The shortest duration of the call.
    let mut took = u128::MAX;
    for _ in 0..10 {
        let start = Instant::now();
        call()?;
        took = took.min(start.elapsed().as_nanos());
    }
    let timer = Timer::new()?;
    let trace = Buffer::new("timer", &EVENTS, Some(8192))?;
    for moment in 1..=MOMENTS {
        // CAST: below a second.
        timer.expire_in_ns((took * u128::from(moment) / u128::from(MOMENTS)) as i64 + 1)?;
        call()?;
    }
    latest_ns(&trace)
}

/// A timer without a waiter.
struct Timer(OwnedFd);

impl Timer {
    fn new() -> io::Result<Self> {
        // SAFETY: No requirements.
        match unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_CLOEXEC) } {
            -1 => Err(io::Error::last_os_error()),
            // SAFETY: It is open, and nothing else owns it.
            fd => Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) })),
        }
    }

    fn expire_in_ns(&self, ns: i64) -> io::Result<()> {
        let zero = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let when = libc::itimerspec {
            it_interval: zero,
            it_value: libc::timespec {
                tv_nsec: ns,
                ..zero
            },
        };
        // SAFETY: `when` may be read.
        match unsafe { libc::timerfd_settime(self.0.as_raw_fd(), 0, &when, ptr::null_mut()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// The longest delay of a timerfd's interrupt.
fn latest_ns(trace: &Buffer) -> Result<i64> {
    for event in EVENTS {
        trace.write(&format!("events/timer/{event}/enable"), "0")?;
    }
    let text = trace.take()?;
    let (mut expires, mut latest, mut count) = (HashMap::new(), 0, 0);
    for line in text.lines().filter(|line| line.contains("timerfd")) {
        let field = |name: &str| {
            let word = line.split(' ').find_map(|word| word.strip_prefix(name));
            word.context(line.to_owned())
        };
        let timer = field("hrtimer=")?.to_owned();
        if line.contains("hrtimer_start:") {
            expires.insert(timer, field("expires=")?.parse::<i64>()?);
        } else if let Some(expires) = expires.remove(&timer) {
            latest = latest.max(field("now=")?.parse::<i64>()? - expires);
            count += 1;
        }
    }
    ensure!(
        count > MOMENTS / 2,
        "{count} timers expired of {MOMENTS} in {} lines",
        text.lines().count()
    );
    Ok(latest)
}

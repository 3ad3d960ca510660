// SPDX-License-Identifier: GPL-2.0-only

//! How long the host's interrupts are off during GET and SET: no longer for a VM of 513 vCPUs than
//! for one of 2.
//!
//! A timer of this thread expires at one moment of the call after the other; how late its interrupt
//! comes is read off the kernel's tracepoints. It needs a host whose time is the number of its
//! instructions, or others' work shows: `tools/vm/run --icount`. Needs root.

use anyhow::{bail, ensure, Context, Result};
use clockguest::host::{tracefs_with, TRACEFS};
use kvm_clock::{get_vm_clock_guest, set_vm_clock_guest, VmClock};
use kvm_clock_guest_selftests::{
    ktap::{self, note, Case, Skip},
    require,
};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use pvclock::abi::MODE_EXACT;
use std::{
    collections::HashMap,
    fs, io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    path::PathBuf,
    process::ExitCode,
    ptr,
    time::Instant,
};

const FEW: u64 = 2;
const MANY: u64 = 513;
/// Moments of a call at which the timer expires.
const MOMENTS: u32 = 400;
/// What may come in between anyway, ns: interrupts off in the scheduler, say.
const TOLERANCE_NS: i64 = 10_000;

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
            "CPUs {} are online: tools/vm/run --icount",
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
        let (vm, _vcpus) = new_vm(kvm, vcpus)?;
        let mut clock = get_vm_clock_guest(&vm).context("GET")?;
        // The first pins it.
        set(&vm, &mut clock)?;
        *latest = latest_interrupt_ns(|| call(&vm, &mut clock))?;
    }
    let text = format!("{latest:?} ns at most with {FEW} and {MANY} vCPUs");
    note(&text);
    ensure!(
        latest[1] <= latest[0] + TOLERANCE_NS,
        "interrupts are off for {text}"
    );
    Ok(())
}

fn new_vm(kvm: &Kvm, vcpus: u64) -> Result<(VmFd, Vec<VcpuFd>)> {
    let vm = kvm.create_vm().context("KVM_CREATE_VM")?;
    let vcpus = (0..vcpus).map(|id| vm.create_vcpu(id).context("KVM_CREATE_VCPU"));
    let vcpus = vcpus.collect::<Result<_>>()?;
    Ok((vm, vcpus))
}

/// How late, ns, the interrupt of a timer was at most that expired during `call`.
fn latest_interrupt_ns(mut call: impl FnMut() -> Result<()>) -> Result<i64> {
    // As long as it takes at least.
    let mut took = u128::MAX;
    for _ in 0..10 {
        let start = Instant::now();
        call()?;
        took = took.min(start.elapsed().as_nanos());
    }
    let timer = Timer::new()?;
    let trace = Trace::new()?;
    for moment in 1..=MOMENTS {
        // CAST: below a second.
        timer.expire_in_ns((took * u128::from(moment) / u128::from(MOMENTS)) as i64 + 1)?;
        call()?;
    }
    trace.latest_ns()
}

/// A timer that nobody waits for.
struct Timer(OwnedFd);

impl Timer {
    fn new() -> io::Result<Self> {
        // SAFETY: No requirements.
        match unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_CLOEXEC) } {
            -1 => Err(io::Error::last_os_error()),
            // SAFETY: It is open, and nobody else's.
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

/// What timers do, in a buffer of our own.
struct Trace(PathBuf);

impl Trace {
    const EVENTS: [&str; 2] = ["hrtimer_start", "hrtimer_expire_entry"];

    fn new() -> Result<Self> {
        let Some(tracefs) = tracefs_with("events/timer/hrtimer_expire_entry") else {
            bail!(Skip(format!("no timer events in tracefs at {TRACEFS:?}")));
        };
        let instance = tracefs.join(format!("instances/irqs-off-{}", std::process::id()));
        fs::create_dir(&instance).with_context(|| format!("mkdir {}", instance.display()))?;
        let this = Self(instance);
        fs::write(this.0.join("buffer_size_kb"), "8192")?;
        for event in Self::EVENTS {
            let events = this.0.join("events/timer").join(event);
            fs::write(events.join("enable"), "1").context(event)?;
        }
        Ok(this)
    }

    /// How late the latest interrupt of a timerfd was.
    fn latest_ns(&self) -> Result<i64> {
        for event in Self::EVENTS {
            fs::write(self.0.join("events/timer").join(event).join("enable"), "0")?;
        }
        let text = fs::read_to_string(self.0.join("trace"))?;
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
}

impl Drop for Trace {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.0) {
            eprintln!("cannot remove {}: {error}", self.0.display());
        }
    }
}

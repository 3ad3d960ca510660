// SPDX-License-Identifier: GPL-2.0-only

//! A process that is killed during all calls leaves nothing behind and KVM working, even if another
//! process still has its descriptors.

use crate::{
    closed,
    other_process::{socket, Foreign, Process},
    stress::Stress,
};
use kvm_clock_guest_selftests::{prelude::*, references::References};
use pvclock::abi::{
    KVM_GET_CLOCK_GUEST, KVM_GET_VM_CLOCK_GUEST, KVM_SET_CLOCK_GUEST, KVM_SET_VM_CLOCK_GUEST,
};
use std::{fs, os::unix::process::ExitStatusExt, process::ExitStatus};

const KILLS: u32 = 3;
/// Each process lives this much longer than the previous one, and after so many as long as the
/// first.
const LONGER: Duration = Duration::from_millis(3);
const CYCLE: u32 = 16;
/// How often all threads of the process must have seen every state before it may be killed.
const UNDER_WAY: u64 = 1;
/// Observers at a process before it is killed: most of the time some thread waits for another one's
/// ioctl.
const OBSERVATIONS: u32 = 100;
/// Our ioctls.
const OURS: [u32; 4] = [
    KVM_GET_VM_CLOCK_GUEST,
    KVM_SET_VM_CLOCK_GUEST,
    KVM_GET_CLOCK_GUEST,
    KVM_SET_CLOCK_GUEST,
];

pub(crate) fn cases() -> Vec<Case<Kvm>> {
    vec![Case::new("SIGKILL during all these calls", killed)]
}

fn killed(kvm: &Kvm) -> Result<()> {
    let kills = option("kills", KILLS)?;
    let before = References::now()?;
    let (mut inside, mut hit, mut refused) = (0, 0, 0);
    for kill in 0..kills {
        let one = kill_one(kill).with_context(|| format!("process {kill}"))?;
        inside += one.inside;
        hit += u32::from(one.inside > 0);
        refused += one.refused;
        before
            .wait_until_back()
            .with_context(|| format!("after process {kill} was killed"))?;
        ensure_works(kvm).with_context(|| format!("after process {kill} was killed"))?;
        before.wait_until_back()?;
    }
    note!(
        "{kills} processes killed, {hit} of them with threads seen inside our ioctls, {inside} in \
         all; {refused} calls by another process refused; {before:?} before and after"
    );
    ensure!(hit > 0, "no process was killed inside our ioctls");
    Ok(())
}

/// Observations of a process that was killed.
struct Killed {
    /// Threads that were inside our ioctls just before.
    inside: u32,
    /// Failed calls of another process that had its descriptors, before and after.
    refused: u64,
}

fn kill_one(number: u32) -> Result<Killed> {
    let mut process = Process::start("victim")?;
    let foreign = match Foreign::receive(process.socket()) {
        Ok(foreign) => foreign,
        // It printed the reason.
        Err(error) => bail!("{error:#}; it ended with {:?}", process.child().try_wait()),
    };
    let mut refused = foreign.ensure_refused()?;
    sleep(LONGER * (number % CYCLE));
    let inside = wait_until_inside(process.child().id())?;
    process.child().kill()?;
    let status: ExitStatus = process.child().wait()?;
    ensure!(
        status.signal() == Some(libc::SIGKILL),
        "it was not killed, but ended with {status}"
    );
    // The VM still exists, because its descriptors do.
    refused += foreign.ensure_refused()?;
    Ok(Killed { inside, refused })
}

/// Returns the number of threads of process `pid` inside our ioctls as soon as there are some; 0
/// after
/// [`OBSERVATIONS`] without one.
fn wait_until_inside(pid: u32) -> Result<u32> {
    for _ in 0..OBSERVATIONS {
        let inside = threads_inside(pid)?;
        if inside > 0 {
            return Ok(inside);
        }
    }
    Ok(0)
}

/// How many threads of process `pid` wait inside our ioctls; running ones are not visible.
fn threads_inside(pid: u32) -> Result<u32> {
    let is_inside = |text: &str| {
        // Its number and arguments: `16 0x4 0xc0b0aed8 ...`, or `running`.
        let mut words = text.split(' ');
        let number = words.next().and_then(|word| word.parse().ok());
        let request = words.nth(1).and_then(|word| word.strip_prefix("0x"));
        let request = request.and_then(|word| u32::from_str_radix(word, 16).ok());
        number == Some(libc::SYS_ioctl) && request.is_some_and(|request| OURS.contains(&request))
    };
    let threads = fs::read_dir(format!("/proc/{pid}/task"))?.flatten();
    // A thread may end meanwhile.
    let texts = threads.filter_map(|thread| fs::read_to_string(thread.path().join("syscall")).ok());
    Ok(texts.map(|text| u32::from(is_inside(&text))).sum())
}

/// Fails unless a new VM has clocks that can be saved and restored.
fn ensure_works(kvm: &Kvm) -> Result<()> {
    let vm = pinned(kvm, 1)?;
    let before = Clocks::of(&vm)?;
    set(&vm, &mut get(&vm)?, MODE_EXACT)?;
    before.ensure_unchanged(&vm)
}

/// The process that is killed.
pub(crate) fn main() -> ExitCode {
    match run_until_killed() {
        Ok(()) => eprintln!("# the process was not killed"),
        Err(error) => eprintln!("# {error:#}"),
    }
    ExitCode::FAILURE
}

fn run_until_killed() -> Result<()> {
    let (kvm, socket) = (require::clock_guest()?, socket()?);
    let stress = Stress::new(&kvm)?;
    stress.run(|stop| {
        let counts = stress.counts();
        while !(stop.is_now() || counts.has_seen(UNDER_WAY) && counts.created.get() > 0) {
            sleep(Duration::from_millis(1));
        }
        Foreign::send(&socket, stress.vm().fd(), stress.vcpu())?;
        stop.hurry();
        stop.until(|| closed::round(&kvm, 0).map(drop))
    })
}

// SPDX-License-Identifier: GPL-2.0-only

//! A process that is killed in the middle of everything leaves nothing behind, and KVM as it was;
//! another process still has its descriptors then.

use crate::{
    closed,
    storm::Storm,
    stranger::{socket, Foreign, Process},
};
use anyhow::{bail, ensure, Context, Result};
use kvm_clock_guest_selftests::{
    clocks::Clocks,
    fixture::{get, pinned, set},
    ktap::{note, option, Case},
    references::References,
    require,
};
use kvm_ioctls::Kvm;
use pvclock::abi::{
    KVM_GET_CLOCK_GUEST, KVM_GET_VM_CLOCK_GUEST, KVM_SET_CLOCK_GUEST, KVM_SET_VM_CLOCK_GUEST,
    MODE_EXACT,
};
use std::{
    fs,
    os::unix::process::ExitStatusExt,
    process::{ExitCode, ExitStatus},
    thread::sleep,
    time::Duration,
};

const KILLS: u32 = 3;
/// Each process has this much longer than the one before, and after so many the first one's time
/// again.
const LONGER: Duration = Duration::from_millis(3);
const CYCLE: u32 = 16;
/// How often everybody in the process has seen every state before it may be killed.
const UNDER_WAY: u64 = 1;
/// Looks at a process before it is killed: most of the time some thread waits for another one's
/// ioctl.
const LOOKS: u32 = 100;
/// Our ioctls.
const OURS: [u32; 4] = [
    KVM_GET_VM_CLOCK_GUEST,
    KVM_SET_VM_CLOCK_GUEST,
    KVM_GET_CLOCK_GUEST,
    KVM_SET_CLOCK_GUEST,
];

pub(crate) fn cases() -> Vec<Case<Kvm>> {
    vec![Case::new("SIGKILL in the middle of all that", killed)]
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
    note(&format!(
        "{kills} processes killed, {hit} of them with threads seen inside our ioctls, {inside} in \
         all; {refused} calls by another process refused; {before:?} before and after"
    ));
    ensure!(hit > 0, "no process was killed inside our ioctls");
    Ok(())
}

/// What was seen of a process that was killed.
struct Killed {
    /// Threads that were inside our ioctls a moment before.
    inside: u32,
    /// Calls refused to another process that had its descriptors, before and after.
    refused: u64,
}

fn kill_one(number: u32) -> Result<Killed> {
    let mut process = Process::start("victim")?;
    let foreign = match Foreign::receive(process.socket()) {
        Ok(foreign) => foreign,
        // It said why.
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
    // The VM still exists, as its descriptors do.
    refused += foreign.ensure_refused()?;
    Ok(Killed { inside, refused })
}

/// Returns as soon as threads of process `pid` are seen inside our ioctls, and how many; 0 if none
/// is in so many looks.
fn wait_until_inside(pid: u32) -> Result<u32> {
    for _ in 0..LOOKS {
        let inside = threads_inside(pid)?;
        if inside > 0 {
            return Ok(inside);
        }
    }
    Ok(0)
}

/// How many threads of process `pid` wait inside our ioctls; those that compute there are not seen.
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
    match suffer() {
        Ok(()) => eprintln!("# the process was not killed"),
        Err(error) => eprintln!("# {error:#}"),
    }
    ExitCode::FAILURE
}

fn suffer() -> Result<()> {
    let (kvm, socket) = (require::clock_guest()?, socket()?);
    let storm = Storm::new(&kvm)?;
    storm.rage(|stop| {
        let tally = storm.tally();
        while !(stop.is_now() || tally.has_seen(UNDER_WAY) && tally.created.get() > 0) {
            sleep(Duration::from_millis(1));
        }
        Foreign::send(&socket, storm.vm().fd(), storm.vcpu())?;
        stop.hurry();
        stop.until(|| closed::round(&kvm, 0).map(|_| ()))
    })
}

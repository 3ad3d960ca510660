// SPDX-License-Identifier: GPL-2.0-only

//! Descriptors that are closed, by number, while other threads are inside ioctls on them: the
//! ioctls finish, and the VM is destroyed with the last of them.

use kvm_clock_guest_selftests::{prelude::*, references::References, threads};
use pvclock::abi::{KVM_GET_CLOCK_GUEST, KVM_SET_CLOCK_GUEST};
use std::{
    io,
    mem::ManuallyDrop,
    os::fd::{AsRawFd, RawFd},
    sync::atomic::{AtomicU64, Ordering},
    thread::scope,
};
use vmm_sys_util::{errno, ioctl::ioctl_with_mut_ref};

const CLOSES: u32 = 20;
/// How many of 100 VMs must have had a call in progress when they were closed.
const LEAST: u32 = 10;
/// Each round lasts this much longer than the previous one, and after so many as long as the first.
const LONGER: Duration = Duration::from_micros(100);
const CYCLE: u32 = 16;
/// Descriptor numbers that nothing else uses meanwhile.
const NUMBERS: RawFd = 500;

pub(crate) fn cases() -> Vec<Case<Kvm>> {
    vec![Case::new(
        "descriptors closed while ioctls on them are in progress",
        closes,
    )]
}

fn closes(kvm: &Kvm) -> Result<()> {
    let rounds = option("closes", CLOSES)?;
    let before = References::now()?;
    let (mut calls, mut hit) = (0, 0);
    for number in 0..rounds {
        let round = round(kvm, number).with_context(|| format!("round {number}"))?;
        calls += round.calls;
        hit += u32::from(round.in_progress > 0);
        before
            .wait_until_back()
            .with_context(|| format!("after round {number}"))?;
    }
    note!(
        "{rounds} VMs, {hit} of them closed while calls were in progress that succeeded; {calls} \
         calls"
    );
    ensure!(
        hit * 100 >= LEAST * rounds,
        "{hit} of {rounds} VMs were closed while a call was in progress"
    );
    Ok(())
}

/// The calls of a round.
pub(crate) struct Round {
    /// Those that succeeded.
    calls: u64,
    /// Those of them that were in progress when their descriptor was closed.
    in_progress: u64,
}

/// A descriptor that another thread may close.
struct Number(RawFd);

impl Number {
    /// A copy of `fd` under a number from `least` on.
    fn of(fd: &impl AsRawFd, least: RawFd) -> Result<Self> {
        // SAFETY: It affects no other descriptor.
        match unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, least) } {
            number @ 0.. => Ok(Self(number)),
            _ => Err(io::Error::last_os_error()).context("F_DUPFD_CLOEXEC"),
        }
    }

    fn close(&self) {
        // SAFETY: No owner of a descriptor has this number.
        unsafe { libc::close(self.0) };
    }
}

impl AsRawFd for Number {
    fn as_raw_fd(&self) -> RawFd {
        self.0
    }
}

/// Closes the descriptors of a VM and of its vCPU while threads use them, in one order or the
/// other.
pub(crate) fn round(kvm: &Kvm, number: u32) -> Result<Round> {
    let (vm, vcpu, mut clock) = numbers(kvm)?;
    clock.header.mode = MODE_EXACT;
    // SAFETY: It is a descriptor of a VM; it is not closed by being dropped.
    let by_number = ManuallyDrop::new(unsafe { kvm.create_vmfd_from_rawfd(vm.0) }?);
    let by_number: &VmFd = &by_number;
    let mut record = clock.header.record;
    let mut same_record = record;
    let (vm_calls, vcpu_calls) = (AtomicU64::new(0), AtomicU64::new(0));
    scope(|scope| {
        let threads = [
            scope.spawn(|| {
                until_closed(&vm_calls, || get_vm_clock_guest(by_number).map(drop)).context("GET")
            }),
            scope.spawn(|| {
                let call = || set_vm_clock_guest(by_number, &mut clock);
                until_closed(&vm_calls, call).context("SET")
            }),
            scope.spawn(|| {
                let call = || of_vcpu(&vcpu, KVM_GET_CLOCK_GUEST, &mut record);
                until_closed(&vcpu_calls, call).context("GET, vCPU")
            }),
            scope.spawn(|| {
                let call = || of_vcpu(&vcpu, KVM_SET_CLOCK_GUEST, &mut same_record);
                until_closed(&vcpu_calls, call).context("SET, vCPU")
            }),
        ];
        sleep(LONGER * (number % CYCLE));
        let mut after_close = 0;
        let mut ends = [(&vm, &vm_calls), (&vcpu, &vcpu_calls)];
        if number % 2 == 1 {
            ends.reverse();
        }
        for (number, calls) in ends {
            number.close();
            after_close += calls.load(Ordering::SeqCst);
        }
        threads::join(threads, Ok(()))?;
        let calls = vm_calls.load(Ordering::SeqCst) + vcpu_calls.load(Ordering::SeqCst);
        Ok(Round {
            calls,
            in_progress: calls - after_close,
        })
    })
}

/// The only descriptors of a new VM and of its vCPU, and its clocks.
fn numbers(kvm: &Kvm) -> Result<(Number, Number, VmClock)> {
    let vm = kvm.create_vm().context("KVM_CREATE_VM")?;
    let vcpu: VcpuFd = vm.create_vcpu(0).context("KVM_CREATE_VCPU")?;
    let clock = get_vm_clock_guest(&vm).context("KVM_GET_VM_CLOCK_GUEST")?;
    Ok((
        Number::of(&vm, NUMBERS)?,
        Number::of(&vcpu, NUMBERS)?,
        clock,
    ))
}

/// Repeats `call` until its descriptor is closed, and counts those that succeeded.
fn until_closed(calls: &AtomicU64, mut call: impl FnMut() -> kvm_clock::Result<()>) -> Result<()> {
    loop {
        match call() {
            Ok(()) => calls.fetch_add(1, Ordering::SeqCst),
            Err(e) if e.errno() == libc::EBADF => return Ok(()),
            Err(e) => bail!("the call failed with {e}, expected success or EBADF"),
        };
    }
}

fn of_vcpu(vcpu: &Number, request: u32, record: &mut ClockGuest) -> kvm_clock::Result<()> {
    // SAFETY: Either request reads or writes one record, mutably borrowed here.
    let ret = unsafe { ioctl_with_mut_ref(vcpu, request.into(), record) };
    if ret < 0 {
        return Err(kvm_clock::Errno(errno::Error::last().errno()));
    }
    Ok(())
}

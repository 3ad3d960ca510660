// SPDX-License-Identifier: GPL-2.0-only

//! Calls through a wrong descriptor, unknown calls, and the capability.

use crate::{
    arena::{ARRAY, HEADER},
    expected::Expected,
    extremes::{any64, one_in, pick},
    fixture::ioctl,
    fuzz::Fuzz,
    generate::Argument,
};
use kvm_clock_guest_selftests::prelude::*;
use pvclock::abi::{
    CAP_ADVANCE, CAP_EXACT, CAP_FALLBACK, CAP_FREEZE, CAP_RESLOPE, CAP_STEAL, CAP_VCPU,
    KVM_CAP_VM_CLOCK_GUEST, KVM_GET_CLOCK_GUEST, KVM_GET_VM_CLOCK_GUEST, KVM_SET_CLOCK_GUEST,
    KVM_SET_VM_CLOCK_GUEST,
};
use rand::Rng as _;
use std::os::fd::AsRawFd;

const KVM_CHECK_EXTENSION: u32 = 0xae03;
const CAPABILITIES: u32 =
    CAP_EXACT | CAP_ADVANCE | CAP_FREEZE | CAP_FALLBACK | CAP_VCPU | CAP_RESLOPE | CAP_STEAL;

const OF_VM: [u32; 2] = [KVM_GET_VM_CLOCK_GUEST, KVM_SET_VM_CLOCK_GUEST];
const OF_VCPU: [u32; 2] = [KVM_GET_CLOCK_GUEST, KVM_SET_CLOCK_GUEST];

/// A call with a valid argument and a wrong number or descriptor, which must do nothing.
pub(crate) fn refused(fuzz: &mut Fuzz<'_>) -> Result<()> {
    let mut argument = match one_in(&mut fuzz.rng, 2) {
        true => Argument::get(&mut fuzz.rng, &fuzz.arena, &fuzz.state),
        false => Argument::set(&mut fuzz.rng, &fuzz.arena, &fuzz.state),
    };
    argument.put(&fuzz.arena);
    let rng = &mut fuzz.rng;
    let (vm, vcpu) = (pick(rng, &OF_VM), pick(rng, &OF_VCPU));
    // Of another size or direction, or of neither.
    let mut unknown = pick(rng, &[vm, vcpu]) ^ pick(rng, &[1 << 16, 1 << 20, 1 << 30, 1 << 31]);
    if one_in(rng, 4) {
        unknown &= 0xffff;
    }
    let stopped: Vec<_> = (0..fuzz.fixture.vcpus())
        .filter(|&index| !fuzz.fixture.is_running(index))
        .collect();
    let (fd, request, errno) = match rng.random_range(0..8) {
        0 => (fuzz.fixture.vm().fd().as_raw_fd(), vcpu, libc::ENOTTY),
        1 => (fuzz.fixture.vm().fd().as_raw_fd(), unknown, libc::ENOTTY),
        // KVM waits for a vCPU to leave KVM_RUN before it checks the number.
        2 | 3 if !stopped.is_empty() => {
            let index = pick(rng, &stopped);
            let request = pick(rng, &[vm, unknown]);
            (fuzz.fixture.fds()[index], request, libc::EINVAL)
        }
        4 => (
            fuzz.kvm.as_raw_fd(),
            pick(rng, &[vm, vcpu, unknown]),
            libc::EINVAL,
        ),
        5 => (-1, pick(rng, &[vm, vcpu]), libc::EBADF),
        _ => (
            fuzz.arena.file(),
            pick(rng, &[vm, vcpu, unknown]),
            libc::ENOTTY,
        ),
    };
    let mut expected = Expected::default();
    expected.must(errno, true);
    let before = [HEADER, ARRAY].map(|offset| fuzz.arena.read(offset, 2 * 4096));
    let result = ioctl(fd, request, argument.header_at);
    fuzz.count("unknown call or wrong descriptor", result);
    let context = || format!("request {request:#x}");
    expected.check(result).with_context(context)?;
    fuzz.ensure_unchanged().with_context(context)?;
    let after = [HEADER, ARRAY].map(|offset| fuzz.arena.read(offset, 2 * 4096));
    ensure!(
        before == after,
        "request {request:#x} wrote to its argument"
    );
    Ok(())
}

/// The capability, and numbers near it.
pub(crate) fn capability(fuzz: &mut Fuzz<'_>) -> Result<()> {
    let rng = &mut fuzz.rng;
    let capability = u64::from(KVM_CAP_VM_CLOCK_GUEST);
    let requested = match rng.random_range(0..4) {
        0 => capability ^ 1 << rng.random_range(0..64),
        1 => capability | any64(rng) << 32,
        _ => capability,
    };
    let fds = [fuzz.kvm.as_raw_fd(), fuzz.fixture.vm().fd().as_raw_fd()];
    let result = ioctl(pick(rng, &fds), KVM_CHECK_EXTENSION, requested);
    fuzz.count("KVM_CHECK_EXTENSION", result);
    let expected = if requested == capability {
        CAPABILITIES
    } else {
        0
    };
    ensure!(
        // CAST: a few low bits.
        result == Ok(expected as i32),
        "capability {requested:#x} is {result:?}, expected {expected:#x}"
    );
    Ok(())
}

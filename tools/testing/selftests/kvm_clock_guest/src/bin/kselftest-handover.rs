// SPDX-License-Identifier: GPL-2.0-only

//! Code in the kernel saves the clocks of a VM and pins them in another one, as a live update that
//! preserves VMs does: `modules/hand_over_clocks.c` is that code.

use kvm_clock_guest_selftests::{host_module, prelude::*};
use std::{
    env,
    fs::File,
    io,
    os::fd::{AsRawFd, RawFd},
};

/// Bytes before the vCPUs, and of each: `pvclock::handover`.
const HEADER: usize = 168;
const VCPU: usize = 24;

fn main() -> ExitCode {
    let mut cases = Vec::new();
    for vcpus in [1, 4, 9] {
        cases.push(Case::new(
            format!("the other VM's clocks are the same bits, {vcpus} vCPUs"),
            move |kvm| same_bits(kvm, vcpus),
        ));
    }
    cases.extend([
        Case::new(
            "every flipped byte is refused, and changes nothing",
            flipped,
        ),
        Case::new("another version is refused as such", other_version),
        Case::new("less than all is refused", cut),
        Case::new("a VM with other vCPUs is refused", other_vcpus),
        Case::new("a running VM is read, and not written", running),
        Case::new("without the module it is not supported", without_module),
    ]);
    ktap::main(require::clock_guest, cases)
}

/// A VM that has run, with clocks unlike any that KVM derives, and one that has not run yet.
fn two(kvm: &Kvm, vcpus: u32) -> Result<(Vm, Vm)> {
    let (from, _) = pinned_an_hour_ahead(kvm, vcpus)?;
    Ok((from, derived(kvm, vcpus)?))
}

/// The descriptor of the first vCPU, which also a running VM keeps.
fn vcpu_fd(vm: &Vm) -> RawFd {
    vm.vcpus()[0].fd().as_raw_fd()
}

/// Hands the clocks of one stopped VM over to another.
fn hand_over_clocks(from: &Vm, to: &Vm, fault: &str) -> Result<()> {
    host_module::hand_over_clocks(vcpu_fd(from), vcpu_fd(to), fault)
}

/// Fails unless `result` is `errno`.
fn ensure_failed(result: Result<()>, errno: i32, what: &str) -> Result<()> {
    match result {
        Ok(()) => bail!("{what}: it was accepted"),
        Err(error) => {
            let found = error
                .downcast_ref::<io::Error>()
                .and_then(io::Error::raw_os_error);
            ensure_eq!(found, Some(errno), "errno, {what}");
            Ok(())
        }
    }
}

fn same_bits(kvm: &Kvm, vcpus: u32) -> Result<()> {
    let (from, to) = two(kvm, vcpus)?;
    let before = get(&from)?;
    ensure!(
        get(&to)?.header.record != before.header.record,
        "they are the same before"
    );
    hand_over_clocks(&from, &to, "")?;
    let after = get(&to)?;
    ensure_eq!(after.header.record, before.header.record, "record");
    ensure_eq!(after.header.status & STATUS_PINNED, STATUS_PINNED, "pinned");
    ensure_eq_hex!(offsets(&after), offsets(&before), "TSC offsets");
    // The guest reads them.
    for (index, page) in pages_after_run(&to)?.into_iter().enumerate() {
        ensure_eq!(page, before.header.record, "record that vCPU {index} reads");
    }
    Ok(())
}

fn pages_after_run(vm: &Vm) -> Result<Vec<ClockGuest>> {
    run_a_little(vm)?;
    Ok(pages(vm))
}

/// Fails unless the hand-over with `fault` fails with `errno`, and changes nothing.
fn refused(from: &Vm, to: &Vm, fault: &str, errno: i32) -> Result<()> {
    let before = Clocks::of(to)?;
    ensure_failed(hand_over_clocks(from, to, fault), errno, fault)?;
    before.ensure_unchanged(to)
}

fn flipped(kvm: &Kvm) -> Result<()> {
    let (from, to) = two(kvm, 2)?;
    // But for the version's. In every field there is one; the arithmetic's own tests flip them all.
    for byte in (0..8).chain(12..HEADER + 2 * VCPU).step_by(4) {
        refused(
            &from,
            &to,
            &format!("flip={}", byte * 8 + byte % 8),
            libc::EBADMSG,
        )?;
    }
    Ok(())
}

fn other_version(kvm: &Kvm) -> Result<()> {
    let (from, to) = two(kvm, 1)?;
    for bit in [0, 1, 31] {
        refused(&from, &to, &format!("flip={}", 64 + bit), libc::EOPNOTSUPP)?;
    }
    Ok(())
}

fn cut(kvm: &Kvm) -> Result<()> {
    let (from, to) = two(kvm, 2)?;
    for bytes in [1, VCPU, 2 * VCPU, HEADER, HEADER + 2 * VCPU] {
        refused(&from, &to, &format!("cut={bytes}"), libc::EBADMSG)?;
    }
    Ok(())
}

fn other_vcpus(kvm: &Kvm) -> Result<()> {
    let from = derived(kvm, 2)?;
    for vcpus in [1, 3] {
        refused(&from, &derived(kvm, vcpus)?, "", libc::EINVAL)?;
    }
    Ok(())
}

fn running(kvm: &Kvm) -> Result<()> {
    let (from, to) = two(kvm, 1)?;
    let (from_fd, to_fd) = (vcpu_fd(&from), vcpu_fd(&to));
    from.run()?;
    wait_in_guest(&from, 0)?;
    host_module::hand_over_clocks(from_fd, to_fd, "")?;
    to.run()?;
    wait_in_guest(&to, 0)?;
    let result = host_module::hand_over_clocks(from_fd, to_fd, "");
    ensure_failed(result, libc::EBUSY, "a vCPU runs")
}

fn without_module(kvm: &Kvm) -> Result<()> {
    let path = env::var("CLOCK_GUEST_MODULE").context("CLOCK_GUEST_MODULE must name its file")?;
    let (from, to) = two(kvm, 1)?;
    let own = File::open(path)?;
    host_module::unload("kvm_clock_guest")?;
    let result = hand_over_clocks(&from, &to, "");
    host_module::load(&own, "")?;
    ensure_failed(result, libc::EOPNOTSUPP, "no module")
}

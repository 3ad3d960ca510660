// SPDX-License-Identifier: GPL-2.0-only

//! Valid requests that fail because of the state of the VM or of the host's clock.

use crate::{Host, VCPUS};
use kvm_clock_guest_selftests::prelude::*;

pub(crate) fn cases() -> Vec<Case<Host>> {
    let mut cases = vec![
        Case::new("EBUSY SET: all vCPUs in KVM_RUN", |host| busy(host, 0)),
        Case::new("EBUSY SET: last vCPU in KVM_RUN", |host| {
            busy(host, VCPUS as usize - 1)
        }),
        Case::new("ENODATA GET: VM without vCPUs", no_vcpus),
        Case::new(
            "ENODATA GET: different offsets, so no master clock",
            no_master_clock,
        ),
        Case::new("ERANGE SET exact: another scaling ratio", other_ratio),
        Case::new(
            "ESTALE SET exact: anchor 1 s ahead of the host TSC",
            |host| stale(host, 1_000),
        ),
        Case::new(
            "ESTALE SET exact: anchor 1 h ahead of the host TSC",
            |host| stale(host, 3_600_000),
        ),
        Case::new(
            "ETIME SET advance: anchor 1 h ahead in time",
            from_the_future,
        ),
    ];
    for (name, mode) in [("advance", MODE_ADVANCE), ("freeze", MODE_FREEZE)] {
        for ppm in [-300, 300, 10_000] {
            cases.push(Case::new(
                format!("ERANGE SET {name}: rate {ppm} ppm off"),
                move |host| other_rate(host, mode, ppm),
            ));
        }
    }
    cases
}

/// The vCPUs from `first` on are inside KVM_RUN.
fn busy(host: &Host, first: usize) -> Result<()> {
    for vm in &host.vms {
        let before = Clocks::of(vm)?;
        let mut clock = request(vm, MODE_EXACT)?;
        let running = &vm.vcpus()[first..];
        running.iter().for_each(|vcpu| vcpu.request_run());
        let refused = running
            .iter()
            .try_for_each(|vcpu| wait_in_guest(vm, vcpu.index()))
            .and_then(|()| ensure_errno(libc::EBUSY, set_vm_clock_guest(vm.fd(), &mut clock)));
        vm.stop()?;
        refused?;
        before.ensure_unchanged(vm)?;
    }
    Ok(())
}

fn no_vcpus(host: &Host) -> Result<()> {
    let vm = host.kvm.create_vm()?;
    ensure_errno(libc::ENODATA, get_vm_clock_guest(&vm).map(drop))
}

/// After equal offsets are written, KVM uses a master clock again.
fn no_master_clock(host: &Host) -> Result<()> {
    let vm = derived(&host.kvm, VCPUS)?;
    let fd = |index: usize| vm.vcpus()[index].fd();
    let offset = tsc_offset(&fd(0))?;
    set_tsc_offset(&fd(1), offset.wrapping_add(1_000_000))?;
    run_a_little(&vm)?;
    ensure_errno(libc::ENODATA, get_vm_clock_guest(vm.fd()).map(drop))?;

    for index in 0..VCPUS as usize {
        set_tsc_offset(&fd(index), offset)?;
    }
    run_a_little(&vm)?;
    get(&vm).context("with equal offsets again").map(drop)
}

fn other_ratio(host: &Host) -> Result<()> {
    for vm in &host.vms {
        let mut clock = request(vm, MODE_EXACT)?;
        // Half the rate.
        (clock.header.tsc_ratio, clock.header.tsc_frac_bits) = (1 << 31, 32);
        make_consistent(&mut clock);
        // Now the guest's TSC is far behind the record.
        clock.header.record.tsc_timestamp = clock.header.guest_tsc;
        make_consistent(&mut clock);
        ensure_refused(vm, libc::ERANGE, |fd| set_vm_clock_guest(fd, &mut clock))?;
    }
    Ok(())
}

/// The difference is reported.
fn other_rate(host: &Host, mode: u32, ppm: i64) -> Result<()> {
    for vm in &host.vms {
        let mut clock = request(vm, mode)?;
        let here = i64::from(clock.header.host_tsc_khz);
        let saved = here + here * ppm / 1_000_000;
        clock.header.host_tsc_khz = u32::try_from(saved)?;
        ensure_refused(vm, libc::ERANGE, |fd| set_vm_clock_guest(fd, &mut clock))?;
        let (expected, observed) = ((here - saved) * 1000, clock.header.rate_diff_hz);
        ensure_eq!(observed, expected, "rate_diff_hz");
    }
    Ok(())
}

fn stale(host: &Host, ahead_ms: u64) -> Result<()> {
    for vm in &host.vms {
        let now = get(vm)?.header.host_tsc;
        let mut clock = request(vm, MODE_EXACT)?;
        let ahead = u64::from(clock.header.host_tsc_khz) * ahead_ms;
        clock.header.host_tsc = now.wrapping_add(ahead);
        make_consistent(&mut clock);
        ensure_refused(vm, libc::ESTALE, |fd| set_vm_clock_guest(fd, &mut clock))?;
    }
    Ok(())
}

fn from_the_future(host: &Host) -> Result<()> {
    for vm in &host.vms {
        let tai_ns = get(vm)?.header.tai_ns;
        let mut clock = request(vm, MODE_ADVANCE)?;
        clock.header.tai_ns = tai_ns + 3600 * SECOND_NS;
        ensure_refused(vm, libc::ETIME, |fd| set_vm_clock_guest(fd, &mut clock))?;
    }
    Ok(())
}

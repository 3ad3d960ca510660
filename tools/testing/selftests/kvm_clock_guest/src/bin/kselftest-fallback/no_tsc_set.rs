// SPDX-License-Identifier: GPL-2.0-only

//! The host does not keep its time by its TSC: SET with FALLBACK writes the offsets all the same,
//! and kvmclock goes on from the saved function, by the host's raw clock.

use crate::{ensure_no_data, get_or_fall_back, set_exact, set_or_fall_back, Host, VCPUS};
use anyhow::{ensure, Context, Result};
use clockguest::{host::rdtsc_ordered, vmm::Vm};
use kvm_bindings::kvm_clock_data;
use kvm_clock::{set_tsc_offset, VmClock};
use kvm_clock_guest_selftests::{
    clocksource::WithoutTsc,
    continued::{Continued, Function, Paired},
    fixture::{
        an_hour_ahead, get, make_consistent, move_to_domain, pinned, reference_transform,
        run_a_little,
    },
    ktap::{note, Case},
    time::HOUR_NS,
};
use pvclock::{
    abi::{MODE_ADVANCE, MODE_EXACT, MODE_FREEZE, STATUS_HOST_TSC_STABLE, STATUS_PINNED},
    tsc::TscTransform,
};

/// Precisions (ns) that may have been saved.
const SAVED_NS: [u32; 2] = [0, 1_000_000];

pub(crate) fn cases() -> Vec<Case<Host>> {
    vec![
        Case::new("no TSC: SET exact with FALLBACK", |host| sets(host, exact)),
        Case::new("no TSC: SET advance with FALLBACK", |host| {
            sets(host, advance)
        }),
        Case::new("no TSC: SET freeze with FALLBACK", |host| {
            sets(host, freeze)
        }),
        Case::new("no TSC: the precision reported saturates", saturates),
    ]
}

/// What is asked for, and what should become of it.
struct Asked {
    clock: VmClock,
    mode: u32,
    check: fn(&VmClock, TscTransform, &Around) -> Result<()>,
}

/// Host TSC before and after SET, and TAI by then.
struct Around {
    host_tsc: [u64; 2],
    tai: [Paired; 2],
    precision_ns: u32,
}

/// Offsets bit for bit: others than the present ones.
fn exact(mut clock: VmClock) -> Asked {
    for (vcpu, ticks) in clock.vcpus.iter_mut().zip([1 << 40, 12_345]) {
        vcpu.tsc_offset = vcpu.tsc_offset.wrapping_sub(ticks);
    }
    clock.header.record.tsc_timestamp -= 1 << 40;
    make_consistent(&mut clock);
    let check = |clock: &VmClock, transform: TscTransform, _: &Around| {
        let expected = reference_transform(clock)?;
        ensure!(
            transform == expected,
            "the reference vCPU has {transform:x?}, expected {expected:x?}"
        );
        Ok(())
    };
    Asked {
        clock,
        mode: MODE_EXACT,
        check,
    }
}

/// From another host, an hour ago.
fn advance(mut clock: VmClock) -> Asked {
    move_to_domain(&mut clock, 1 << 60);
    clock.header.tai_ns -= HOUR_NS;
    // Elapsed TAI at the saved rate, to the precision.
    let check = |clock: &VmClock, transform: TscTransform, around: &Around| {
        let khz = i128::from(clock.header.host_tsc_khz);
        let precision = i128::from(around.precision_ns) * khz / 1_000_000 + 2;
        // How far the guest TSC is from where it should be at each of the two instants: they may be
        // a drift of the clocks apart.
        let off_by = around.tai.map(|tai| {
            let elapsed = i128::from(tai.ns) - i128::from(clock.header.tai_ns);
            let due = clock
                .header
                .guest_tsc
                .wrapping_add((elapsed * khz / 1_000_000) as u64);
            // CAST: the signed differences of values mod 2^64.
            tai.host_tsc
                .map(|host_tsc| i128::from(transform.guest_tsc(host_tsc).wrapping_sub(due) as i64))
        });
        let least = off_by[0][0].min(off_by[1][0]);
        let most = off_by[0][1].max(off_by[1][1]);
        ensure!(
            most >= -precision && least <= precision,
            "the guest TSC is {least} to {most} ticks from where it should be, precision \
             {precision}"
        );
        Ok(())
    };
    Asked {
        clock,
        mode: MODE_ADVANCE,
        check,
    }
}

/// From another host, whenever.
fn freeze(mut clock: VmClock) -> Asked {
    move_to_domain(&mut clock, 1 << 60);
    // The saved value at some instant of the call.
    let check = |clock: &VmClock, transform: TscTransform, around: &Around| {
        let [before, after] = around
            .host_tsc
            .map(|host_tsc| transform.guest_tsc(host_tsc));
        let since = clock.header.guest_tsc.wrapping_sub(before);
        ensure!(
            since <= after.wrapping_sub(before),
            "the guest TSC was {before} before SET and {after} after, saved was {}",
            clock.header.guest_tsc
        );
        Ok(())
    };
    Asked {
        clock,
        mode: MODE_FREEZE,
        check,
    }
}

fn sets(host: &Host, ask: fn(VmClock) -> Asked) -> Result<()> {
    for saved_ns in SAVED_NS {
        let vm = pinned(&host.kvm, VCPUS)?;
        let mut saved = an_hour_ahead(get(&vm)?);
        saved.header.precision_ns = saved_ns;
        let asked = ask(saved);
        let without_tsc = WithoutTsc::switch(&host.other_clocksource)?;
        disturb(&vm)?;
        ensure_no_data(&vm, "SET", |vm| set_exact(vm, &asked.clock))?;
        ensure_set(&vm, asked)?;
        drop(without_tsc);
    }
    Ok(())
}

/// Leaves no clock as it was.
fn disturb(vm: &Vm) -> Result<()> {
    for (vcpu, offset) in vm.vcpus().iter().zip(vm.tsc_offsets()?) {
        set_tsc_offset(&vcpu.fd(), offset.wrapping_add(1 << 50)).context("KVM_VCPU_TSC_OFFSET")?;
    }
    let clock = kvm_clock_data {
        clock: 12 * HOUR_NS.unsigned_abs(),
        ..kvm_clock_data::default()
    };
    vm.fd().set_clock(&clock).context("KVM_SET_CLOCK")?;
    run_a_little(vm).map(|_| ())
}

fn ensure_set(vm: &Vm, asked: Asked) -> Result<()> {
    let Asked { clock, mode, check } = asked;
    let mut set = clock.clone();
    let tai_before = Paired::now(libc::CLOCK_TAI)?;
    // The function is known when SET has chosen the offsets, hence the second reckoning.
    let before = rdtsc_ordered();
    let raw_before = Paired::now(libc::CLOCK_MONOTONIC_RAW)?;
    let begin = rdtsc_ordered();
    set_or_fall_back(vm, &mut set, mode).context("SET with FALLBACK")?;
    let end = rdtsc_ordered();
    let offsets = vm.tsc_offsets()?;
    let transform = TscTransform {
        offset: offsets[0],
        ..reference_transform(&clock)?
    };
    let around = Around {
        host_tsc: [before, end],
        tai: [tai_before, Paired::now(libc::CLOCK_TAI)?],
        precision_ns: set.header.precision_ns,
    };
    check(&clock, transform, &around)?;

    let apart: Vec<_> = clock.vcpus.iter().map(|vcpu| vcpu.tsc_offset).collect();
    let apart: Vec<_> = apart
        .iter()
        .map(|offset| offset.wrapping_sub(apart[0]))
        .collect();
    let observed: Vec<_> = offsets
        .iter()
        .map(|offset| offset.wrapping_sub(offsets[0]))
        .collect();
    ensure!(
        observed == apart,
        "offsets are {observed:x?} apart, expected {apart:x?}"
    );

    let status = set.header.status;
    ensure!(
        status & (STATUS_PINNED | STATUS_HOST_TSC_STABLE) == 0,
        "SET reports status {status:#x}, expected 0"
    );
    let precision_ns = i64::from(set.header.precision_ns);
    let own_ns = precision_ns - i64::from(clock.header.precision_ns);
    let took_ns = (end - begin) * 1_000_000 / u64::from(clock.header.host_tsc_khz) + 1;
    let took_ns = i64::try_from(took_ns)?;
    ensure!(
        (1..=2 * took_ns).contains(&own_ns),
        "SET reports {precision_ns} ns, {} ns of it saved, and took {took_ns} ns",
        clock.header.precision_ns
    );

    let function = Function {
        record: clock.header.record,
        transform,
    };
    // What was saved may be off by the saved precision; what SET was given it is to add `own_ns`
    // to.
    let continued = Continued::since(function, raw_before, u32::try_from(own_ns)?)?;
    note(&format!(
        "mode {mode}: SET adds {own_ns} ns, took {took_ns} ns; the clocks leave {} ns open",
        continued.open_ns()
    ));
    continued.ensure_told_by_kvm(vm)?;
    continued.ensure_read_by_guest(|| run_a_little(vm))?;
    continued.ensure_told_by_kvm(vm)?;
    let offsets_now = vm.tsc_offsets()?;
    ensure!(
        offsets_now == offsets,
        "offsets were {offsets:x?}, are {offsets_now:x?} after the guest ran"
    );
    let told = get_or_fall_back(vm)?.header.status;
    ensure!(told == 0, "GET tells status {told:#x}, expected 0");
    Ok(())
}

fn saturates(host: &Host) -> Result<()> {
    let vm = pinned(&host.kvm, VCPUS)?;
    let mut clock = get(&vm)?;
    let _until_checked = WithoutTsc::switch(&host.other_clocksource)?;
    for mode in [MODE_EXACT, MODE_FREEZE, MODE_ADVANCE] {
        clock.header.precision_ns = u32::MAX;
        set_or_fall_back(&vm, &mut clock, mode).context("SET with FALLBACK")?;
        ensure!(
            clock.header.precision_ns == u32::MAX,
            "mode {mode}: precision {} ns, expected the maximum",
            clock.header.precision_ns
        );
        make_consistent(&mut clock);
    }
    Ok(())
}

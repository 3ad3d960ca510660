// SPDX-License-Identifier: GPL-2.0-only

//! The host's clocksource is not the TSC: SET with FALLBACK writes the offsets nevertheless, and
//! kvmclock continues from the saved function, with the host's raw clock.

use crate::{ensure_no_data, set_exact, set_or_fall_back, Host, VCPUS};
use clockguest::host::ClockAndTsc;
use kvm_clock_guest_selftests::{
    clocksource::WithoutTsc,
    continued::{Continued, Function},
    fixture,
    host_clock::clock_and_tsc,
    prelude::*,
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

/// A SET and the check of its result.
struct Request {
    clock: VmClock,
    mode: u32,
    check: fn(&VmClock, TscTransform, &Around) -> Result<()>,
}

/// Host TSC and TAI before and after SET.
struct Around {
    host_tsc: [HostTsc; 2],
    tai: [ClockAndTsc; 2],
    precision_ns: u32,
}

/// Other offsets than the present ones, bit for bit.
fn exact(mut clock: VmClock) -> Request {
    for (vcpu, ticks) in clock.vcpus.iter_mut().zip([1 << 40, 12_345]) {
        vcpu.tsc_offset = vcpu.tsc_offset.wrapping_sub(ticks);
    }
    clock.header.record = clock.header.record.shifted_by((1u64 << 40).wrapping_neg());
    make_consistent(&mut clock);
    let check = |clock: &VmClock, transform: TscTransform, _: &Around| {
        let expected = reference_transform(clock)?;
        ensure_eq_hex!(transform, expected, "the reference vCPU's TSC");
        Ok(())
    };
    Request {
        clock,
        mode: MODE_EXACT,
        check,
    }
}

/// From another host, an hour ago.
fn advance(mut clock: VmClock) -> Request {
    move_to_domain(&mut clock, HostTsc(1 << 60));
    clock.header.tai_ns -= HOUR_NS;
    // The TSC grows by the elapsed TAI at the saved rate, within the precision.
    let check = |clock: &VmClock, transform: TscTransform, around: &Around| {
        let khz = i128::from(clock.header.host_tsc_khz);
        let precision = i128::from(around.precision_ns) * khz / 1_000_000 + 2;
        // The error of the guest TSC at each of the two instants, which may differ by a drift.
        let error = around.tai.map(|tai| {
            let elapsed = i128::from(tai.ns) - i128::from(clock.header.tai_ns);
            let expected = clock
                .header
                .guest_tsc
                .wrapping_add((elapsed * khz / 1_000_000) as u64);
            // CAST: the signed differences of values mod 2^64.
            tai.host_tsc
                .map(|host_tsc| i128::from(transform.guest_tsc(host_tsc).since(expected) as i64))
        });
        let least = error[0][0].min(error[1][0]);
        let most = error[0][1].max(error[1][1]);
        ensure!(
            most >= -precision && least <= precision,
            "the error of the guest TSC is {least} to {most} ticks, precision {precision}"
        );
        Ok(())
    };
    Request {
        clock,
        mode: MODE_ADVANCE,
        check,
    }
}

/// From another host, at any time.
fn freeze(mut clock: VmClock) -> Request {
    move_to_domain(&mut clock, HostTsc(1 << 60));
    // The TSC is the saved value at some instant of the call.
    let check = |clock: &VmClock, transform: TscTransform, around: &Around| {
        let [before, after] = around
            .host_tsc
            .map(|host_tsc| transform.guest_tsc(host_tsc));
        let since = clock.header.guest_tsc.since(before);
        ensure!(
            since <= after.since(before),
            "the guest TSC was {before} before SET and {after} after, saved was {}",
            clock.header.guest_tsc
        );
        Ok(())
    };
    Request {
        clock,
        mode: MODE_FREEZE,
        check,
    }
}

fn sets(host: &Host, ask: fn(VmClock) -> Request) -> Result<()> {
    for saved_ns in SAVED_NS {
        let vm = pinned(&host.kvm, VCPUS)?;
        let mut saved = an_hour_ahead(get(&vm)?);
        saved.header.precision_ns = saved_ns;
        let request = ask(saved);
        let without_tsc = WithoutTsc::switch(&host.other_clocksource)?;
        change_all(&vm)?;
        ensure_no_data(&vm, "SET", |vm| set_exact(vm, &request.clock))?;
        ensure_set(&vm, request)?;
        drop(without_tsc);
    }
    Ok(())
}

/// Changes all clocks.
fn change_all(vm: &Vm) -> Result<()> {
    for (index, offset) in vm.tsc_offsets()?.into_iter().enumerate() {
        vm.set_tsc_offset(index, offset.wrapping_add(1 << 50))?;
    }
    set_clock(vm, 12 * HOUR_NS.unsigned_abs())?;
    run_a_little(vm).map(drop)
}

fn ensure_set(vm: &Vm, request: Request) -> Result<()> {
    let Request { clock, mode, check } = request;
    let mut set = clock.clone();
    let tai_before = clock_and_tsc(libc::CLOCK_TAI)?;
    // The function is only known after SET has chosen the offsets.
    let before = rdtsc_ordered();
    let raw_before = clock_and_tsc(libc::CLOCK_MONOTONIC_RAW)?;
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
        tai: [tai_before, clock_and_tsc(libc::CLOCK_TAI)?],
        precision_ns: set.header.precision_ns,
    };
    check(&clock, transform, &around)?;

    let differences = |offsets: &[TscOffset]| -> Vec<u64> {
        let differences = offsets.iter().map(|offset| offset.since(offsets[0]));
        differences.collect()
    };
    let observed = differences(&offsets);
    let saved = differences(&fixture::offsets(&clock));
    ensure_eq_hex!(observed, saved, "differences of TSC offsets");

    let status = set.header.status;
    ensure!(
        status & (STATUS_PINNED | STATUS_HOST_TSC_STABLE) == 0,
        "SET reports status {status:#x}, expected 0"
    );
    let precision_ns = i64::from(set.header.precision_ns);
    let own_ns = precision_ns - i64::from(clock.header.precision_ns);
    let took_ns = end.since(begin) * 1_000_000 / u64::from(clock.header.host_tsc_khz) + 1;
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
    // The saved clock has the saved precision, to which SET adds `own_ns`.
    let continued = Continued::since(function, raw_before, u32::try_from(own_ns)?)?;
    note!(
        "mode {mode}: SET adds {own_ns} ns, took {took_ns} ns; the uncertainty is {} ns",
        continued.open_ns()
    );
    continued.ensure_in_kvm(vm)?;
    continued.ensure_read_by_guest(|| run_a_little(vm))?;
    continued.ensure_in_kvm(vm)?;
    let offsets_now = vm.tsc_offsets()?;
    ensure_eq_hex!(offsets_now, offsets, "TSC offsets after the guest ran");
    let reported = get_or_fall_back(vm)?.header.status;
    ensure_eq_hex!(reported, 0, "GET's status");
    Ok(())
}

fn saturates(host: &Host) -> Result<()> {
    let vm = pinned(&host.kvm, VCPUS)?;
    let mut clock = get(&vm)?;
    let _until_checked = WithoutTsc::switch(&host.other_clocksource)?;
    for mode in [MODE_EXACT, MODE_FREEZE, MODE_ADVANCE] {
        clock.header.precision_ns = u32::MAX;
        set_or_fall_back(&vm, &mut clock, mode).context("SET with FALLBACK")?;
        ensure_eq!(
            clock.header.precision_ns,
            u32::MAX,
            "mode {mode}: precision, ns"
        );
        make_consistent(&mut clock);
    }
    Ok(())
}

// SPDX-License-Identifier: GPL-2.0-only

//! The effect of calls that succeeded.

use crate::{
    model::{Given, KNOWN},
    plan::sets,
    state::{State, Unchanging},
};
use kvm_clock_guest_selftests::{
    expect::{elapsed_ns, rate},
    prelude::*,
};
use pvclock::rate::Factor;
use pvclock_reference::arithmetic::{
    self, exact_step, extended_kvmclock_ns, guest_tsc, hz, is_ahead, rounding_ns, scaled,
    signed_ticks,
};

/// Fails unless GET with the header `request` reported `state`, observed a little earlier or later.
pub(crate) fn ensure_got(
    request: &VmClockGuest,
    got: &VmClockGuest,
    vcpus: Option<&[ClockGuestVcpu]>,
    state: &State,
    host_tsc: [HostTsc; 2],
) -> Result<()> {
    let was = state.clock.as_ref();
    let was = was.context("GET succeeded, but GET with FALLBACK failed")?;
    ensure!(
        !is_ahead(host_tsc[0].since(got.host_tsc)) && !is_ahead(got.host_tsc.since(host_tsc[1])),
        "the anchor is {:#x}, the host TSC was {host_tsc:x?} before and after",
        got.host_tsc
    );
    let since = |of: fn(&VmClockGuest) -> i64| of(got).cmp(&of(&was.header));
    let order = got.host_tsc.0.cmp(&was.header.host_tsc.0);
    ensure!(
        since(|at| at.tai_ns) == order && since(|at| at.monotonic_raw_ns) == order,
        "the host's clocks are {got:x?}\nand {:x?}",
        was.header
    );
    let transform = guest_tsc(rate(got).scale, state.offsets[0], got.host_tsc);
    ensure_eq_hex!(got.guest_tsc, transform, "guest_tsc by offset and ratio");
    let kvmclock_ns = arithmetic::kvmclock_ns(&got.record, got.guest_tsc);
    ensure_eq!(got.kvmclock_ns, kvmclock_ns, "kvmclock_ns by the record");
    let expected = Unchanging::of(&was.header, &was.vcpus);
    let observed = Unchanging::of(got, vcpus.unwrap_or(&was.vcpus));
    ensure_eq_hex!(observed, expected, "GET's unchanging fields");
    // All other fields.
    let header = VmClockGuest {
        // CAST: some hundred bytes.
        size: KNOWN as u32,
        // CAST: a few.
        nr_vcpus: state.offsets.len() as u32,
        vcpus: request.vcpus,
        host_tsc: got.host_tsc,
        guest_tsc: got.guest_tsc,
        kvmclock_ns,
        tai_ns: got.tai_ns,
        monotonic_raw_ns: got.monotonic_raw_ns,
        record: got.record,
        rate_diff_hz: 0,
        ..was.header
    };
    ensure_eq_hex!(*got, header, "GET's header");
    let reserved = (got.record.version, got.record.pad0, got.record.pad);
    ensure_eq_hex!(
        reserved,
        (0, 0, [0; 2]),
        "version and padding of GET's record"
    );
    Ok(())
}

/// The header that SET writes back; `after` are the clocks after it, if it succeeded.
pub(crate) fn written_back(
    given: &Given,
    before: &State,
    after: Option<&State>,
) -> Result<VmClockGuest> {
    let here = before
        .clock
        .as_ref()
        .context("SET succeeded without clocks")?;
    let [is, was] = [&here.header, &given.header].map(|header| i128::from(hz(rate(header))));
    let diff = is - was;
    let is_resloped = || {
        sets(&given.header, [&here.header; 2])[0]
            .other_factor()
            .is_some()
    };
    let rounding_ns = if after.is_some() && is_resloped() {
        rounding_ns(&given.header.record)
    } else {
        0
    };
    Ok(VmClockGuest {
        precision_ns: given.header.precision_ns.saturating_add(rounding_ns),
        status: STATUS_PINNED | STATUS_HOST_TSC_STABLE,
        // CAST: clamped.
        rate_diff_hz: diff.clamp(-i128::from(i64::MAX), i64::MAX.into()) as i64,
        ..given.header
    })
}

/// Fails unless SET, made between the two states, had the effect that it documents.
pub(crate) fn ensure_set(given: &Given, [before, after]: [&State; 2]) -> Result<()> {
    let saved = &given.header;
    let (Some(was), Some(is)) = (&before.clock, &after.clock) else {
        bail!("SET succeeded without clocks");
    };
    ensure!(after.is_pinned(), "no record is pinned");
    let here = [&was.header, &is.header];
    let sets = sets(saved, here);
    let scale = rate(&is.header).scale;
    ensure_eq_hex!(Some(scale), sets[0].scale(), "the ratio");

    let offset = |id: u32| after.offsets.get(id as usize).copied().unwrap_or_default();
    let by = |entry: &ClockGuestVcpu| offset(entry.vcpu_id).since(entry.tsc_offset);
    let reference = given
        .entries
        .iter()
        .find(|entry| entry.vcpu_id == saved.ref_vcpu_id)
        .context("SET succeeded without reference vCPU")?;
    let shift = by(reference);
    ensure!(
        given.entries.iter().all(|entry| by(entry) == shift),
        "SET were offsets {:x?}, offsets are {:x?}",
        given.entries,
        after.offsets
    );
    ensure!(
        saved.mode != MODE_EXACT || shift == 0,
        "the error of the offsets is {shift:#x}"
    );

    ensure_steal(given, &is.vcpus)?;

    // The offsets expected by the clocks before the call and after it.
    let expected = sets.map(|set| {
        let guest_tsc = set.guest_tsc()?;
        let scaled = scaled(scale, set.now.host_tsc.0);
        Some(TscOffset(guest_tsc.0.wrapping_sub(scaled)))
    });
    let offset = offset(saved.ref_vcpu_id);
    if let (true, [Some(first), Some(last)]) = (saved.mode != MODE_EXACT, expected) {
        ensure_between(saved, here, [first, last], offset)?;
    }

    let record = after.record(saved.ref_vcpu_id as usize);
    if let Some(factor) = sets[0].other_factor() {
        return ensure_resloped(saved, &record, factor, here, offset);
    }
    if saved.mode == MODE_ADVANCE && elapsed_ns(saved, &was.header) < 0 {
        let at = here.map(|at| guest_tsc(scale, offset, at.host_tsc));
        return ensure_not_ahead(&saved.record, &record, at);
    }
    ensure_same_function(&saved.record, &record)
}

/// Fails unless GET reports for each vCPU exactly the steal time that was SET.
fn ensure_steal(given: &Given, vcpus: &[ClockGuestVcpu]) -> Result<()> {
    let paused_ns = match given.header.mode {
        MODE_FREEZE => 0,
        _ => given.header.paused_ns,
    };
    for entry in &given.entries {
        let reported = vcpus.iter().find(|vcpu| vcpu.vcpu_id == entry.vcpu_id);
        let reported = reported.map(|vcpu| vcpu.steal_ns);
        let expected = entry.steal_ns + paused_ns;
        ensure_eq!(
            reported,
            Some(expected),
            "steal_ns of vCPU {}",
            entry.vcpu_id
        );
    }
    Ok(())
}

/// Fails unless `record` continues kvmclock of `saved` with `factor`. The guest's TSC offset is now
/// `offset`; `here` are the clocks before and after the call.
fn ensure_resloped(
    saved: &VmClockGuest,
    record: &ClockGuest,
    factor: Factor,
    here: [&VmClockGuest; 2],
    offset: TscOffset,
) -> Result<()> {
    let elapsed_ns = match saved.mode {
        MODE_ADVANCE => {
            let [least, most] = here.map(|at| elapsed_ns(saved, at));
            let added = record.system_time.wrapping_sub(saved.kvmclock_ns);
            // CAST: kvmclock is mod 2^64.
            let ns = least + i128::from(added.wrapping_sub(least as u64));
            ensure!(
                (least..=most).contains(&ns),
                "kvmclock went on by {ns} ns, expected {least} to {most} ns"
            );
            ns
        }
        _ => 0,
    };
    let guest_tsc = match (saved.mode, signed_ticks(rate(saved), elapsed_ns)) {
        (MODE_EXACT, _) => guest_tsc(rate(here[1]).scale, offset, saved.host_tsc),
        // CAST: mod 2^64.
        (_, Some(ticks)) => saved.guest_tsc.wrapping_add(ticks as u64),
        _ => bail!("SET succeeded with {elapsed_ns} ns"),
    };
    let expected = ClockGuest {
        tsc_timestamp: guest_tsc,
        // CAST: mod 2^64.
        system_time: saved.kvmclock_ns.wrapping_add(elapsed_ns as u64),
        tsc_to_system_mul: factor.mul,
        tsc_shift: factor.shift,
        ..saved.record
    };
    ensure_same_function(&expected, record)
}

/// Fails unless the two records are the same function, bit for bit.
pub(crate) fn ensure_same_function(expected: &ClockGuest, observed: &ClockGuest) -> Result<()> {
    let (expected, observed) = (function(*expected), function(*observed));
    ensure_eq_hex!(observed, expected, "the record");
    Ok(())
}

/// Fails unless `offset` lies between `first` and `last`, expected by the clocks before and after
/// the call; for FREEZE these differ by the whole duration of the call.
fn ensure_between(
    saved: &VmClockGuest,
    here: [&VmClockGuest; 2],
    [first, last]: [TscOffset; 2],
    offset: TscOffset,
) -> Result<()> {
    // ADVANCE: the host's clock counts whole ns, and NTP may steer it.
    let slack = match saved.mode {
        MODE_ADVANCE => {
            let ns = hz(rate(saved)).max(hz(rate(here[0]))) / 1_000_000_000 + 2;
            let took = here[1].host_tsc.since(here[0].host_tsc);
            2 * ns + (took >> 20)
        }
        _ => 1,
    };
    let (low, high) = match is_ahead(first.since(last)) {
        true => (last, first),
        false => (first, last),
    };
    let (low, high) = (low.wrapping_sub(slack), high.wrapping_add(slack));
    ensure!(
        !is_ahead(low.since(offset)) && !is_ahead(offset.since(high)),
        "the reference vCPU's offset is {offset:#x}, expected {low:#x} to {high:#x}"
    );
    Ok(())
}

/// Fails unless `is` is the record `saved`, or if that lies ahead of the guest's TSC, the same
/// function from the last point that does not. The guest's TSC is between the two values of
/// `guest_tsc` during the call.
fn ensure_not_ahead(saved: &ClockGuest, is: &ClockGuest, guest_tsc: [GuestTsc; 2]) -> Result<()> {
    let ahead = guest_tsc.map(|tsc| is_ahead(saved.tsc_timestamp.since(tsc)));
    if !ahead[0] || !ahead[1] && function(*saved) == function(*is) {
        return ensure_same_function(saved, is);
    }
    let step = exact_step(saved);
    let moved = ClockGuest {
        tsc_timestamp: is.tsc_timestamp,
        system_time: extended_kvmclock_ns(saved, is.tsc_timestamp),
        ..*saved
    };
    ensure_same_function(&moved, is)?;
    let by = saved.tsc_timestamp.since(is.tsc_timestamp);
    let next = is.tsc_timestamp.wrapping_add(step);
    let is_last = step >= 1 << 62 || is_ahead(next.since(guest_tsc[0]));
    // Half the ring behind the first value is ahead of the last one.
    let is_reached = guest_tsc
        .iter()
        .any(|&tsc| !is_ahead(is.tsc_timestamp.since(tsc)));
    ensure!(
        by % step == 0 && is_last && is_reached,
        "the record {saved:x?} was moved to {:#x}, by steps of {step:#x}; TSC is {guest_tsc:x?}",
        is.tsc_timestamp
    );
    Ok(())
}

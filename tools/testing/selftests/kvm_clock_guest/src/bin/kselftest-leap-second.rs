// SPDX-License-Identifier: GPL-2.0-only

//! A leap second between GET and SET: REALTIME jumps, TAI does not, nor does the guest.
//!
//! The kernel takes a real one, at the end of a day that the host's clock is set to.

use anyhow::{ensure, Result};
use clockguest::vmm::Vm;
use kvm_clock::VmClock;
use kvm_clock_guest_selftests::{
    clocks::pages,
    expect::{ensure_reads, error_ticks, ticks},
    fixture::{
        derived, get, move_to_domain, reference_offset, reference_transform, run_a_little, set,
    },
    host_clock::{now_ns, Leap, TaiOffset, WallClock},
    ktap::{self, note, Case},
    require,
    time::SECOND_NS,
};
use kvm_ioctls::Kvm;
use pvclock::abi::MODE_ADVANCE;
use std::{
    process::ExitCode,
    thread::sleep,
    time::{Duration, Instant},
};

/// What the clock is set to before the end of the day: time for the kernel to prepare.
const BEFORE: Duration = Duration::from_millis(2_500);
/// How long the leap second may take to come.
const PATIENCE: Duration = Duration::from_secs(30);
/// TAI - UTC before, s.
const TAI_S: i32 = 37;
/// Anchor in another host TSC domain.
const DOMAIN: u64 = 1 << 63;

fn main() -> ExitCode {
    ktap::main(
        require::clock_guest,
        vec![
            Case::new("23:59:60 is inserted", |kvm| leap_second(kvm, Leap::Insert)),
            Case::new("23:59:59 is left out", |kvm| leap_second(kvm, Leap::Delete)),
        ],
    )
}

fn leap_second(kvm: &Kvm, leap: Leap) -> Result<()> {
    let grows_s = match leap {
        Leap::Insert => 1,
        Leap::Delete => -1,
    };
    let vm = derived(kvm, 2)?;
    let wall_clock = WallClock::hold()?;
    wall_clock.set_before(BEFORE, leap)?;
    let _tai_offset = TaiOffset::set(TAI_S)?;
    let saved = Saved::of(&vm)?;
    let ahead_ns = utc_ahead_ns();
    // TAI - UTC as clock_adjtime() tells it changes at once, the clock at the next tick.
    wait_until("the leap second is taken", || {
        (utc_ahead_ns() - ahead_ns).abs() > SECOND_NS / 2
    })?;
    saved.ensure_continues(&vm, grows_s)?;

    // Saved in 23:59:60, which UTC shows as 23:59:59 once more; or past the gap.
    let saved = Saved::of(&vm)?;
    let midnight = |ns: i64| ns.rem_euclid(24 * 3600 * SECOND_NS) < 3600 * SECOND_NS;
    wait_until("midnight", || midnight(now_ns(libc::CLOCK_REALTIME)))?;
    saved.ensure_continues(&vm, 0)
}

/// `CLOCK_REALTIME` - `CLOCK_MONOTONIC`, ns.
fn utc_ahead_ns() -> i64 {
    now_ns(libc::CLOCK_REALTIME) - now_ns(libc::CLOCK_MONOTONIC)
}

fn wait_until(what: &str, done: impl Fn() -> bool) -> Result<()> {
    let start = Instant::now();
    while !done() {
        ensure!(start.elapsed() < PATIENCE, "{what}: not in {PATIENCE:?}");
        sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// A VM's clocks, and what the host's were then.
struct Saved {
    home: VmClock,
    utc_ns: i64,
    monotonic_ns: i64,
}

impl Saved {
    fn of(vm: &Vm) -> Result<Self> {
        Ok(Self {
            home: get(vm)?,
            utc_ns: now_ns(libc::CLOCK_REALTIME),
            monotonic_ns: now_ns(libc::CLOCK_MONOTONIC),
        })
    }

    /// Restores as on another host, after TAI - UTC grew by `grows_s`: the guest is where it would
    /// be had nobody touched it.
    fn ensure_continues(self, vm: &Vm, grows_s: i32) -> Result<()> {
        let home = self.home;
        let mut saved = home.clone();
        move_to_domain(&mut saved, DOMAIN);
        let before_set = get(vm)?;
        set(vm, &mut saved, MODE_ADVANCE)?;
        let after = get(vm)?;
        let utc_ns = now_ns(libc::CLOCK_REALTIME) - self.utc_ns;
        let monotonic_ns = now_ns(libc::CLOCK_MONOTONIC) - self.monotonic_ns;

        // The case is what it says: UTC lost as many seconds as TAI - UTC gained.
        let grew_s = after.header.tai_offset_s - home.header.tai_offset_s;
        let beyond_ns = monotonic_ns - utc_ns - i64::from(grows_s) * SECOND_NS;
        ensure!(
            grew_s == grows_s && beyond_ns.abs() < SECOND_NS / 4,
            "TAI - UTC grew by {grew_s} s, expected {grows_s} s; UTC by {utc_ns} ns in \
             {monotonic_ns} ns"
        );

        // All host clocks but UTC are one but for a drift.
        let here = |ns: i64| i64::try_from(ticks(&home.header, ns.into()));
        let tolerance = here(monotonic_ns)? / 10_000;
        let transforms = [reference_transform(&home)?, reference_transform(&after)?];
        let [expected, observed] =
            transforms.map(|transform| transform.guest_tsc(after.header.host_tsc));
        // CAST: the signed difference of values mod 2^64.
        let off = observed.wrapping_sub(expected) as i64;
        let by_tai = error_ticks(&saved.header, &after, &after.header)?;
        // The host's TSC drifts against its TAI, also from SET to GET.
        let since_set_ns = after.header.tai_ns - before_set.header.tai_ns;
        let drift = i128::from(off) * i128::from(since_set_ns) / i128::from(monotonic_ns.max(1));
        let rounding = here(1)? + 2 + i64::try_from(drift.abs())?;
        note(&format!(
            "after {monotonic_ns} ns, of which UTC counted {utc_ns}, guest TSC is {off} ticks from \
             where it would be untouched, and {by_tai} from where elapsed TAI puts it"
        ));
        ensure!(
            off.abs() <= tolerance,
            "guest TSC is {off} ticks from where it would be untouched: tolerance {tolerance}"
        );
        ensure!(
            by_tai.abs() <= rounding,
            "guest TSC is {by_tai} ticks from where elapsed TAI puts it: tolerance {rounding}"
        );

        let record = saved.header.record;
        let reading = run_a_little(vm)?;
        ensure_reads(&reading, &record, reference_offset(&after))?;
        ensure!(
            pages(vm).iter().all(|page| *page == record),
            "record was {record:x?}, is {:x?}",
            pages(vm)
        );
        Ok(())
    }
}

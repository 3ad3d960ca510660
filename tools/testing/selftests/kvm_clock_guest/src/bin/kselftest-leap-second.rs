// SPDX-License-Identifier: GPL-2.0-only

//! A leap second between GET and SET: REALTIME jumps, TAI and the guest do not.
//!
//! The kernel executes a real one, at the end of a day to which the host's clock is set.

use kvm_clock_guest_selftests::{
    expect::{ensure_reads, error_ticks, ticks},
    host_clock::{now_ns, Leap, TaiOffset, WallClock},
    prelude::*,
};

/// How long before the end of the day the clock is set: time for the kernel to prepare.
const BEFORE: Duration = Duration::from_millis(2_500);
/// How long the leap second may take to come.
const PATIENCE: Duration = Duration::from_secs(30);
/// TAI - UTC before, s.
const TAI_S: i32 = 37;
/// Anchor in another host TSC domain.
const DOMAIN: HostTsc = HostTsc(1 << 63);

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
    // TAI - UTC of clock_adjtime() changes immediately, the clock at the next tick.
    wait_until("the leap second happens", PATIENCE, || {
        Ok((utc_ahead_ns() - ahead_ns).abs() > SECOND_NS / 2)
    })?;
    saved.ensure_continues(&vm, grows_s)?;

    // Saved in 23:59:60, which UTC shows as 23:59:59 once more; or past the gap.
    let saved = Saved::of(&vm)?;
    let midnight = |ns: i64| ns.rem_euclid(24 * 3600 * SECOND_NS) < 3600 * SECOND_NS;
    wait_until("midnight", PATIENCE, || {
        Ok(midnight(now_ns(libc::CLOCK_REALTIME)))
    })?;
    saved.ensure_continues(&vm, 0)
}

/// `CLOCK_REALTIME` - `CLOCK_MONOTONIC`, ns.
fn utc_ahead_ns() -> i64 {
    now_ns(libc::CLOCK_REALTIME) - now_ns(libc::CLOCK_MONOTONIC)
}

/// A VM's clocks, and the host's at that moment.
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

    /// Restores the clocks as on another host, after TAI - UTC grew by `grows_s`. Fails unless the
    /// guest is where it would be without the restore.
    fn ensure_continues(self, vm: &Vm, grows_s: i32) -> Result<()> {
        let home = self.home;
        let mut saved = home.clone();
        move_to_domain(&mut saved, DOMAIN);
        let before_set = get(vm)?;
        set(vm, &mut saved, MODE_ADVANCE)?;
        let after = get(vm)?;
        let utc_ns = now_ns(libc::CLOCK_REALTIME) - self.utc_ns;
        let monotonic_ns = now_ns(libc::CLOCK_MONOTONIC) - self.monotonic_ns;

        // There was a leap second: UTC lost as many seconds as TAI - UTC gained.
        let grew_s = after.header.tai_offset_s - home.header.tai_offset_s;
        let beyond_ns = monotonic_ns - utc_ns - i64::from(grows_s) * SECOND_NS;
        ensure!(
            grew_s == grows_s && beyond_ns.abs() < SECOND_NS / 4,
            "TAI - UTC grew by {grew_s} s, expected {grows_s} s; UTC by {utc_ns} ns in \
             {monotonic_ns} ns"
        );

        // All host clocks except UTC differ only by a drift.
        let here = |ns: i64| i64::try_from(ticks(&home.header, ns.into()));
        let tolerance = here(monotonic_ns)? / 10_000;
        let transforms = [reference_transform(&home)?, reference_transform(&after)?];
        let [expected, observed] =
            transforms.map(|transform| transform.guest_tsc(after.header.host_tsc));
        // CAST: the signed difference of values mod 2^64.
        let error = observed.since(expected) as i64;
        let by_tai = error_ticks(&saved.header, &after, &after.header)?;
        // The host's TSC drifts against its TAI, also from SET to GET.
        let since_set_ns = after.header.tai_ns - before_set.header.tai_ns;
        let drift = i128::from(error) * i128::from(since_set_ns) / i128::from(monotonic_ns.max(1));
        let rounding = here(1)? + 2 + i64::try_from(drift.abs())?;
        note!(
            "after {monotonic_ns} ns, of which UTC counted {utc_ns}, guest TSC is {error} ticks \
             from where it would be untouched, and {by_tai} from where elapsed TAI puts it"
        );
        ensure!(
            error.abs() <= tolerance,
            "guest TSC is {error} ticks from where it would be untouched: tolerance {tolerance}"
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

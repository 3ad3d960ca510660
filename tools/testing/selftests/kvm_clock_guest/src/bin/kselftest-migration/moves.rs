// SPDX-License-Identifier: GPL-2.0-only

//! Guests that arrive.

use crate::{run, send, Destination};
use anyhow::{ensure, Context, Result};
use clockguest::{
    method::Method,
    migration::{ClockSource, MigrateConfig, ModeChoice, Summary},
};
use kvm_clock_guest_selftests::ktap::{note, Case};

const ROUND_TRIPS: u32 = 2;

/// Own part of an advance's error, ticks: its product is floored, as is the TSC.
const OWN_TICKS: f64 = 1.0;

pub(crate) fn cases() -> Vec<Case<Destination>> {
    vec![
        Case::new("there and back on one host is exact", exact),
        Case::new(
            "advance is off by the hosts' clocks and 1 tick at most",
            |destination: &Destination| advance(destination, ClockSource::Exchange),
        ),
        Case::new("advance by the hosts' own clocks", |destination| {
            advance(destination, ClockSource::Hosts)
        }),
        Case::new("freeze hides the downtime", freeze),
        Case::new("the old methods' errors are measured", legacy),
    ]
}

/// Moves a guest there and back, all of which must succeed.
fn round_trips(
    destination: &Destination,
    change: impl FnOnce(&mut MigrateConfig),
) -> Result<Summary> {
    let mut config = MigrateConfig {
        round_trips: ROUND_TRIPS,
        trace_clock: true,
        ..send(destination.address)
    };
    change(&mut config);
    let summary = run(&config)?;
    note(&summary.to_text(true));
    if let Some(error) = &summary.first_error {
        anyhow::bail!("{error}");
    }
    ensure!(
        summary.moves_done == 2 * ROUND_TRIPS,
        "{} moves",
        summary.moves_done
    );
    Ok(summary)
}

fn exact(destination: &Destination) -> Result<()> {
    let summary = round_trips(destination, |_| ())?;
    ensure!(
        summary.per_move.iter().all(|one| one.offsets_bit_identical),
        "an offset changed"
    );
    ensure!(summary.record_bit_identical, "the record changed");
    ensure!(
        summary.tsc_error_ticks_max == Some(0) && summary.kvmclock_error_ns_max == Some(0),
        "not exact"
    );
    Ok(())
}

fn advance(destination: &Destination, sync: ClockSource) -> Result<()> {
    let summary = round_trips(destination, |config| {
        config.mode = ModeChoice::Advance;
        config.sync = sync;
    })?;
    ensure!(summary.record_bit_identical, "the record changed");
    ensure!(
        summary.tsc_kvmclock_skew_ns_max == 0,
        "kvmclock was set against the TSC by {} ns",
        summary.tsc_kvmclock_skew_ns_max
    );
    let own = summary.own_error_ticks_max.context("SET was not traced")?;
    ensure!(own <= OWN_TICKS, "SET was off by {own} ticks");
    for one in &summary.per_move {
        let (error, difference) = (one.tsc_error_ticks, one.clock_difference);
        let ticks = error.context("no error")?.unsigned_abs();
        let uncertainty_ns = difference.map_or(0, |difference| difference.uncertainty_ns);
        // On one host both clocks are the same clock, which counts at the guest's rate to 1 tick in
        // a ns, and to the slewing of a few ppm.
        let khz = u64::from(summary.tsc_khz);
        let slewed_ns = one.downtime_ns.unsigned_abs() / 100_000;
        let bound = (uncertainty_ns + slewed_ns + 2) * khz / 1_000_000;
        ensure!(ticks <= bound, "TSC off by {ticks} ticks, {bound} expected");
    }
    Ok(())
}

fn freeze(destination: &Destination) -> Result<()> {
    let summary = round_trips(destination, |config| config.mode = ModeChoice::Freeze)?;
    for one in &summary.per_move {
        let lost = -one.tsc_error_ticks.context("no error")?;
        let down = one.downtime_ns * i64::from(summary.tsc_khz) / 1_000_000;
        // SET comes after the clocks were saved, and before the guest runs.
        ensure!(
            lost > 0 && lost <= down,
            "the guest lost {lost} ticks of {down} that it was down"
        );
        ensure!(
            one.tsc_kvmclock_skew_ns == 0,
            "the two clocks were set apart"
        );
    }
    Ok(())
}

fn legacy(destination: &Destination) -> Result<()> {
    for method in [Method::LegacyOffset, Method::LegacyMsr] {
        let summary = round_trips(destination, |config| config.method = method)?;
        ensure!(
            summary
                .per_move
                .iter()
                .all(|one| one.tsc_error_ticks.is_some()),
            "{} was not measured",
            method.name()
        );
        ensure!(
            !summary.record_bit_identical,
            "{} pinned a record: this is not the method",
            method.name()
        );
    }
    Ok(())
}

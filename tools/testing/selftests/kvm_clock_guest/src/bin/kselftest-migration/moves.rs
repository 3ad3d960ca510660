// SPDX-License-Identifier: GPL-2.0-only

//! Successful migrations.

use crate::{run, send, Server};
use clockguest::{
    method::Method,
    migration::{ClockSource, MigrateConfig, ModeChoice, Summary},
};
use kvm_clock_guest_selftests::prelude::*;

const ROUND_TRIPS: u32 = 2;

/// The part of ADVANCE's error that SET adds, ticks: its product is rounded down, and so is the
/// TSC.
const SET_TICKS: f64 = 1.0;

pub(crate) fn cases() -> Vec<Case<Server>> {
    vec![
        Case::new("there and back on one host is exact", exact),
        Case::new(
            "advance: the error is at most that of the hosts' clocks and 1 tick",
            |destination: &Server| advance(destination, ClockSource::Exchange),
        ),
        Case::new("advance with the hosts' own clocks", |destination| {
            advance(destination, ClockSource::Hosts)
        }),
        Case::new("freeze hides the downtime", freeze),
        Case::new("the old methods' errors are measured", legacy),
    ]
}

/// Moves a guest there and back; all moves must succeed.
fn round_trips(destination: &Server, change: impl FnOnce(&mut MigrateConfig)) -> Result<Summary> {
    let mut config = MigrateConfig {
        round_trips: ROUND_TRIPS,
        trace_clock: true,
        ..send(destination.address)
    };
    change(&mut config);
    let summary = run(&config)?;
    note!("{}", summary.to_text(true));
    if let Some(error) = &summary.first_error {
        anyhow::bail!("{error}");
    }
    ensure_eq!(summary.moves_done, 2 * ROUND_TRIPS, "moves");
    Ok(summary)
}

fn exact(destination: &Server) -> Result<()> {
    let summary = round_trips(destination, |_| ())?;
    ensure!(
        summary.per_move.iter().all(|one| one.offsets_bit_identical),
        "an offset changed"
    );
    ensure!(summary.record_bit_identical, "the record changed");
    ensure!(
        summary.tsc_error_ticks_max == Some(0) && summary.kvmclock_error_ns_max == Some(0),
        "the clocks are not exact"
    );
    Ok(())
}

fn advance(destination: &Server, sync: ClockSource) -> Result<()> {
    let summary = round_trips(destination, |config| {
        config.mode = ModeChoice::Advance;
        config.sync = sync;
    })?;
    ensure!(summary.record_bit_identical, "the record changed");
    ensure_eq!(
        summary.tsc_kvmclock_skew_ns_max,
        0,
        "skew of kvmclock against the TSC, ns"
    );
    let ticks = summary
        .restore_error_ticks_max
        .context("SET was not traced")?;
    ensure!(ticks <= SET_TICKS, "SET was off by {ticks} ticks");
    for one in &summary.per_move {
        let (error, difference) = (one.tsc_error_ticks, one.clock_difference);
        let ticks = error.context("no error")?.unsigned_abs();
        let uncertainty_ns = difference.map_or(0, |difference| difference.uncertainty_ns);
        // On one host both clocks are the same clock. It counts at the guest's rate to within 1
        // tick in a ns, and a slew of a few ppm.
        let khz = u64::from(summary.tsc_khz);
        let slewed_ns = one.downtime_ns.unsigned_abs() / 100_000;
        let bound = (uncertainty_ns + slewed_ns + 2) * khz / 1_000_000;
        ensure!(
            ticks <= bound,
            "the error of the TSC is {ticks} ticks, expected at most {bound}"
        );
    }
    Ok(())
}

fn freeze(destination: &Server) -> Result<()> {
    let summary = round_trips(destination, |config| config.mode = ModeChoice::Freeze)?;
    for one in &summary.per_move {
        let lost = -one.tsc_error_ticks.context("no error")?;
        let down = one.downtime_ns * i64::from(summary.tsc_khz) / 1_000_000;
        // SET is between the save of the clocks and the guest's next run.
        ensure!(
            lost > 0 && lost <= down,
            "the guest lost {lost} ticks of {down} that it was down"
        );
        ensure_eq!(
            one.tsc_kvmclock_skew_ns,
            0,
            "skew of kvmclock against the TSC, ns"
        );
    }
    Ok(())
}

fn legacy(destination: &Server) -> Result<()> {
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
            "{} pinned a record, which the old methods do not",
            method.name()
        );
    }
    Ok(())
}

// SPDX-License-Identifier: GPL-2.0-only

//! A guest's clocks move between two hosts whose TSCs run at nearly the same rate, and back. With
//! RESLOPE, kvmclock then runs at the rate of the new host's raw clock. Without it, SET reports by
//! how much it does not.
//!
//! Host B runs `near-rates --serve=yes`, host A `near-rates --to=ADDRESS`, which writes the
//! results.

mod peer;
mod watch;

use kvm_clock_guest_selftests::prelude::*;
use peer::Peer;
use pvclock::abi::FLAG_RESLOPE;
use std::net::Ipv4Addr;
use watch::{saved, watch, Outcome};

/// By how much the rate of host B's TSC is above that of host A's, ppm, and how much two kernels'
/// calibrations of one rate may differ.
const APART_PPM: f64 = 100.0;
const CALIBRATION_PPM: f64 = 40.0;
/// How far a kvmclock may be from the raw clock's rate, or from what SET reports, ppm.
const MOST_PPM: f64 = 1.0;

/// This host, and the other one.
struct Hosts {
    kvm: Kvm,
    peer: Peer,
}

fn main() -> ExitCode {
    let cases = vec![
        Case::new("to a host 100 ppm faster", |hosts: &Hosts| {
            let clocks = requests(&saved(&hosts.kvm)?);
            ensure_rates(APART_PPM, &hosts.peer.watch(clocks)?)
        }),
        Case::new("to a host 100 ppm slower", |hosts: &Hosts| {
            let clocks = requests(&hosts.peer.saved()?);
            ensure_rates(-APART_PPM, &watch(&hosts.kvm, clocks)?)
        }),
    ];
    match ktap::option("serve", "no".to_owned()).as_deref() {
        Ok("yes") => match require::clock_guest().and_then(|kvm| peer::serve(&kvm)) {
            Ok(never) => match never {},
            Err(error) => {
                eprintln!("near-rates: {error:#}");
                ExitCode::FAILURE
            }
        },
        _ => ktap::main(hosts, cases),
    }
}

fn hosts() -> Result<Hosts> {
    let address = ktap::option("to", Ipv4Addr::UNSPECIFIED)?;
    if address.is_unspecified() {
        return Err(Skip("no second host: --to=ADDRESS".into()).into());
    }
    Ok(Hosts {
        kvm: require::clock_guest()?,
        peer: Peer::connect(address)?,
    })
}

/// What SET takes on the other host: without RESLOPE, and with it.
fn requests(saved: &VmClock) -> [VmClock; 2] {
    [0, FLAG_RESLOPE].map(|flag| {
        let mut clock = saved.clone();
        clock.header.mode = MODE_ADVANCE;
        // The hosts' clocks differ by some s.
        clock.header.flags = FLAG_ALLOW_BACKWARDS | flag;
        clock
    })
}

/// Fails unless these are the outcomes of [`requests`] on a host whose TSC is `ppm` faster than the
/// one before.
fn ensure_rates(ppm: f64, [kept, resloped]: &[Outcome; 2]) -> Result<()> {
    for (name, outcome) in [("without", kept), ("with", resloped)] {
        note!(
            "{name} RESLOPE: rates differ by {:.3} ppm, kvmclock gains {:.3} ppm, {outcome:?}",
            outcome.differs_ppm(),
            outcome.gains_ppm()
        );
        ensure!(
            (outcome.differs_ppm() - ppm).abs() < CALIBRATION_PPM,
            "{name} RESLOPE SET reports that the rates differ by {} ppm",
            outcome.differs_ppm()
        );
    }
    ensure!(
        (kept.gains_ppm() - kept.differs_ppm()).abs() <= MOST_PPM,
        "without RESLOPE, kvmclock gains {} ppm on the raw clock, and SET reports {} ppm",
        kept.gains_ppm(),
        kept.differs_ppm()
    );
    ensure!(
        resloped.gains_ppm().abs() <= MOST_PPM,
        "with RESLOPE, kvmclock gains {} ppm on the raw clock",
        resloped.gains_ppm()
    );
    let [kept, resloped] = [kept.precision_ns, resloped.precision_ns];
    ensure!(
        kept == 0 && (1..=2).contains(&resloped),
        "precision_ns is {kept} without RESLOPE, {resloped} with it"
    );
    Ok(())
}

// SPDX-License-Identifier: GPL-2.0-only

//! How the `CLOCK_TAI` of two hosts differs, measured by pings over the connection.
//!
//! A ping leaves the source at `t1` by its clock, comes at `t2` and is answered at `t3` by the
//! destination's, and the answer comes at `t4` by the source's. No message arrives before it was sent,
//! so the destination's clock minus the source's lies between `t3 - t4` and `t2 - t1`. Each ping gives
//! such a pair of bounds, whatever delayed it on the way; the truth lies between the highest lower and
//! the lowest upper one. The result is the middle, and half the distance is its uncertainty: a bound,
//! not an estimate.
//!
//! A ping's bounds hold when it was made. Until the moment in question the two clocks drift by no more
//! than [`DRIFT_PPM`], by which the bounds are widened.

use super::{
    connection::Peer,
    message::{ClockShift, Ping, Pong},
};
use crate::host::tai_ns;
use anyhow::{bail, Result};

/// Parts per million by which the rates of two clocks may differ: Linux disciplines a clock by up to
/// 500 ppm (`MAXFREQ` of `include/linux/timex.h`), here one faster and the other slower.
pub(super) const DRIFT_PPM: u128 = 1000;

/// One ping, ns.
#[derive(Clone, Copy, Debug)]
pub(super) struct Exchange {
    /// By the source's clock.
    t1: i64,
    /// By the destination's clock.
    t2: i64,
    /// By the destination's clock.
    t3: i64,
    /// By the source's clock.
    t4: i64,
}

impl Exchange {
    /// The ping that was sent at `t1` and whose answer came at `t4`.
    pub(super) fn new(t1: i64, pong: &Pong, t4: i64) -> Self {
        Self {
            t1,
            t2: pong.received_ns,
            t3: pong.sent_ns,
            t4,
        }
    }
}

/// Makes `count` pings.
pub(super) fn ping(peer: &mut Peer, count: usize) -> Result<Vec<Exchange>> {
    let mut exchanges = Vec::with_capacity(count);
    for _ in 0..count {
        let t1 = tai_ns()?;
        peer.send(&Ping {})?;
        let pong: Pong = peer.receive()?;
        exchanges.push(Exchange::new(t1, &pong, tai_ns()?));
    }
    Ok(exchanges)
}

/// Answers a ping that was received right before.
pub(super) fn pong(peer: &mut Peer) -> Result<()> {
    let received_ns = tai_ns()?;
    let sent_ns = tai_ns()?;
    peer.send(&Pong {
        received_ns,
        sent_ns,
    })
}

/// Destination's clock minus the source's when the source's read `at_ns`.
///
/// # Errors
///
/// If no difference explains all pings: a clock was set meanwhile.
pub(super) fn difference(exchanges: &[Exchange], at_ns: i64) -> Result<ClockShift> {
    let mut bounds = (i128::MIN, i128::MAX);
    for exchange in exchanges {
        let [t1, t2, t3, t4] = [exchange.t1, exchange.t2, exchange.t3, exchange.t4].map(i128::from);
        let at = i128::from(at_ns);
        let age = (t1 - at).unsigned_abs().max((t4 - at).unsigned_abs());
        // CAST: An age has 65 bits.
        let drift = (age * DRIFT_PPM).div_ceil(1_000_000) as i128;
        bounds.0 = bounds.0.max(t3 - t4 - drift);
        bounds.1 = bounds.1.min(t2 - t1 + drift);
    }
    let (low, high) = bounds;
    if exchanges.is_empty() || low > high {
        bail!(
            "{} pings, and no difference of the hosts' clocks explains them all: one was set \
             meanwhile, or went wrong by more than {DRIFT_PPM} ppm",
            exchanges.len()
        );
    }
    // CAST: Differences of 64-bit clocks that were both read in this century; wraps otherwise.
    Ok(ClockShift {
        tai_ns: ((low + high) / 2) as i64,
        uncertainty_ns: (high - low).unsigned_abs().div_ceil(2) as u64,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A ping at source time `t1`, `there` and `back` ns on the way, to a clock `ahead` ns ahead.
    fn exchange(t1: i64, ahead: i64, there: i64, back: i64) -> Exchange {
        let t2 = t1 + there + ahead;
        let t3 = t2 + 10;
        Exchange {
            t1,
            t2,
            t3,
            t4: t3 - ahead + back,
        }
    }

    proptest! {
        #[test]
        fn truth_lies_within_the_uncertainty(
            ahead in -1i64 << 60..1 << 60,
            drift_ppm in -1000i64..=1000,
            pings in proptest::collection::vec((0i64..100_000_000, 0i64..5_000_000, 0i64..5_000_000), 1..30),
            at in 0i64..100_000_000,
        ) {
            let exchanges: Vec<_> = pings
                .into_iter()
                .map(|(t1, there, back)| {
                    // The difference when it arrives there; drift counts from `at`.
                    let ahead = ahead + (t1 + there - at) * drift_ppm / 1_000_000;
                    exchange(t1, ahead, there, back)
                })
                .collect();
            let found = difference(&exchanges, at).unwrap();
            let off = i128::from(found.tai_ns) - i128::from(ahead);
            // Rounding of the test's own drift: a ns.
            prop_assert!(off.unsigned_abs() <= u128::from(found.uncertainty_ns) + 2, "{:?} {}", found, off);
        }
    }

    #[test]
    fn the_fastest_way_each_counts() {
        // One ping is fast there, the other back: together they leave 20 ns + what they answer in.
        let exchanges = [
            exchange(0, 5_000, 10, 90_000),
            exchange(0, 5_000, 90_000, 10),
        ];
        let found = difference(&exchanges, 0).unwrap();
        assert!(found.uncertainty_ns <= 10 + 100, "{found:?}");
        assert!((found.tai_ns - 5_000).abs() <= 100, "{found:?}");
    }

    #[test]
    fn a_clock_that_was_set_is_found() {
        let exchanges = [
            exchange(0, 0, 100, 100),
            exchange(1_000, 1_000_000, 100, 100),
        ];
        assert!(difference(&exchanges, 0).is_err());
        assert!(difference(&[], 0).is_err());
    }
}

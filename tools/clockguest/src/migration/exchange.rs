// SPDX-License-Identifier: GPL-2.0-only

//! Measures the difference between the `CLOCK_TAI` of two hosts with pings over the connection.
//!
//! The source sends a ping at `t1` of its clock. The destination receives it at `t2` and answers at
//! `t3` of its clock, and the source receives the answer at `t4`. No message arrives before it is
//! sent, so the destination's clock minus the source's lies between `t3 - t4` and `t2 - t1`,
//! whatever the delay of the messages. The difference lies between the highest lower and the lowest
//! upper bound of all pings. The result is the middle, and its uncertainty, half the distance, is a
//! bound, not an estimate.
//!
//! A ping's bounds hold at the time of the ping. The two clocks drift by up to [`DRIFT_PPM`] until
//! the requested time, so the bounds are widened accordingly.

use super::{
    connection::Peer,
    message::{ClockShift, Ping, Pong},
};
use crate::host::tai_ns;
use anyhow::{bail, Result};

/// The largest difference between the rates of two clocks, parts per million: Linux disciplines a
/// clock by up to 500 ppm (`MAXFREQ` of `include/linux/timex.h`), here one faster and the other
/// slower.
pub(super) const DRIFT_PPM: u128 = 1000;

/// The times of a ping, ns.
#[derive(Clone, Copy, Debug)]
pub(super) struct Exchange {
    /// In the source's time.
    t1: i64,
    /// In the destination's time.
    t2: i64,
    /// In the destination's time.
    t3: i64,
    /// In the source's time.
    t4: i64,
}

impl Exchange {
    /// The ping sent at `t1` and answered at `t4`.
    pub(super) fn new(t1: i64, pong: &Pong, t4: i64) -> Self {
        Self {
            t1,
            t2: pong.received_ns,
            t3: pong.sent_ns,
            t4,
        }
    }
}

/// Sends `count` pings.
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

/// Answers a ping; call it right after its receipt.
pub(super) fn pong(peer: &mut Peer) -> Result<()> {
    let received_ns = tai_ns()?;
    let sent_ns = tai_ns()?;
    peer.send(&Pong {
        received_ns,
        sent_ns,
    })
}

/// The destination's clock minus the source's, at source time `at_ns`.
///
/// # Errors
///
/// If no difference explains all pings: somebody has set a clock meanwhile.
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
            "no difference of the hosts' clocks explains all {} pings: a clock was set meanwhile, or \
             drifted by more than {DRIFT_PPM} ppm",
            exchanges.len()
        );
    }
    // CAST: Differences of 64-bit clocks in this century; wraps otherwise.
    Ok(ClockShift {
        tai_ns: ((low + high) / 2) as i64,
        uncertainty_ns: (high - low).unsigned_abs().div_ceil(2) as u64,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A ping at source time `t1` that takes `there` and `back` ns, to a clock `ahead` ns ahead.
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
        fn difference_lies_within_the_uncertainty(
            ahead in -1i64 << 60..1 << 60,
            drift_ppm in -1000i64..=1000,
            pings in proptest::collection::vec((0i64..100_000_000, 0i64..5_000_000, 0i64..5_000_000), 1..30),
            at in 0i64..100_000_000,
        ) {
            let exchanges: Vec<_> = pings
                .into_iter()
                .map(|(t1, there, back)| {
                    // The difference on arrival; drift counts from `at`.
                    let ahead = ahead + (t1 + there - at) * drift_ppm / 1_000_000;
                    exchange(t1, ahead, there, back)
                })
                .collect();
            let found = difference(&exchanges, at).unwrap();
            let off = i128::from(found.tai_ns) - i128::from(ahead);
            // The test's own drift is rounded to a ns.
            prop_assert!(off.unsigned_abs() <= u128::from(found.uncertainty_ns) + 2, "{:?} {}", found, off);
        }
    }

    #[test]
    fn fastest_message_of_each_direction_counts() {
        // One ping is fast there, the other back: the uncertainty is 20 ns and the time to answer.
        let exchanges = [
            exchange(0, 5_000, 10, 90_000),
            exchange(0, 5_000, 90_000, 10),
        ];
        let found = difference(&exchanges, 0).unwrap();
        assert!(found.uncertainty_ns <= 10 + 100, "{found:?}");
        assert!((found.tai_ns - 5_000).abs() <= 100, "{found:?}");
    }

    #[test]
    fn a_clock_that_is_set_is_detected() {
        let exchanges = [
            exchange(0, 0, 100, 100),
            exchange(1_000, 1_000_000, 100, 100),
        ];
        assert!(difference(&exchanges, 0).is_err());
        assert!(difference(&[], 0).is_err());
    }
}

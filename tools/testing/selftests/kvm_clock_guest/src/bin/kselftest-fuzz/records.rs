// SPDX-License-Identifier: GPL-2.0-only

//! Random records.

use crate::{
    arithmetic::{
        khz,
        ratio,
        scaled, //
    },
    extremes::{
        any32,
        any64,
        magnitude,
        Rng, //
    },
    state::State,
};
use pvclock::{
    abi::ClockGuest,
    rate::Factor, //
};
use rand::Rng as _;

/// Any record; `is_back` if it has to be able to go back by some distance.
pub(crate) fn record(rng: &mut Rng, is_back: bool) -> ClockGuest {
    ClockGuest {
        version: any32(rng),
        system_time: any64(rng),
        tsc_to_system_mul: any32(rng).max(1),
        tsc_shift: match is_back {
            true => rng.random_range(-31..=0),
            false => rng.random_range(-31..=31),
        },
        // CAST: any bits.
        flags: any32(rng) as u8,
        ..ClockGuest::default()
    }
}

/// A record that KVM_SET_CLOCK_GUEST should take for vCPU `index`: of its rate, and not ahead of
/// its TSC.
pub(crate) fn record_for(rng: &mut Rng, state: &State, index: usize) -> ClockGuest {
    let here = state.clock.clone().unwrap_or_default().header;
    // Any will do where there is no rate.
    let factor = Factor::of_hz(khz(&here) * 1000).unwrap_or(Factor { mul: 1, shift: 0 });
    // A factor of fewer bits is that of the same rate to within 1 kHz still.
    let fewer = rng.random_range(0..=4);
    let guest_tsc = scaled(ratio(&here), here.host_tsc).wrapping_add(state.offsets[index]);
    ClockGuest {
        tsc_timestamp: guest_tsc.wrapping_sub(magnitude(rng, 62)),
        tsc_to_system_mul: factor.mul >> fewer,
        tsc_shift: factor.shift + fewer,
        ..record(rng, false)
    }
}

// SPDX-License-Identifier: GPL-2.0-only

//! Random records.

use crate::{
    extremes::{any32, any64, magnitude, pick, Rng},
    state::State,
};
use kvm_clock_guest_selftests::prelude::*;
use pvclock::{rate::Factor, tsc::Scale};
use pvclock_reference::{
    arithmetic::{self, guest_tsc},
    rules,
};
use rand::Rng as _;

/// Any record; with `is_back` one that can move back.
pub(crate) fn record(rng: &mut Rng, is_back: bool) -> ClockGuest {
    ClockGuest {
        version: any32(rng),
        system_time: any64(rng),
        tsc_to_system_mul: any32(rng) | 1 << 31,
        tsc_shift: match is_back {
            true => rng.random_range(-31..=0),
            false => rng.random_range(-31..=31),
        },
        // CAST: any bits.
        flags: any32(rng) as u8,
        ..ClockGuest::default()
    }
}

/// The factor that KVM gives a guest whose TSC has the rate of `header`; any one if that is no
/// rate.
fn own_factor(header: &VmClockGuest) -> Factor {
    let own = rules::rate(header).and_then(arithmetic::own_factor);
    own.unwrap_or(Factor {
        mul: 1 << 31,
        shift: 0,
    })
}

/// A factor for the TSC rate of `here`, well within the tolerance.
pub(crate) fn near_factor(rng: &mut Rng, here: &VmClockGuest) -> Factor {
    let own = own_factor(here);
    let ppm = pick(rng, &[0, 0, -200, -1, 1, 200]);
    let mul = i64::from(own.mul) + i64::from(own.mul) * ppm / 1_000_000;
    let mul = u32::try_from(mul).ok().filter(|mul| mul >> 31 == 1);
    Factor {
        mul: mul.unwrap_or(own.mul),
        ..own
    }
}

/// A record that KVM_SET_CLOCK_GUEST should accept for vCPU `index`: of its rate, and not ahead of
/// its TSC.
pub(crate) fn record_for(rng: &mut Rng, state: &State, index: usize) -> ClockGuest {
    let here = state.clock.clone().unwrap_or_default().header;
    let factor = own_factor(&here);
    let scale = rules::rate(&here).map_or(Scale::IDENTITY, |rate| rate.scale);
    let guest_tsc = guest_tsc(scale, state.offsets[index], here.host_tsc);
    ClockGuest {
        tsc_timestamp: guest_tsc.wrapping_sub(magnitude(rng, 62)),
        tsc_to_system_mul: factor.mul,
        tsc_shift: factor.shift,
        ..record(rng, false)
    }
}

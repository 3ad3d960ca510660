# SPDX-License-Identifier: GPL-2.0-only
"""The arithmetic of rust/pvclock with Python's integers and fractions: no width, no shift, and no mask but a final mod
2^64. Written from the ABI's definitions, not from the Rust source."""

from fractions import Fraction
from math import ceil, floor

U64 = 2**64


def signed(value, bits=64):
    """`value` mod 2^bits as a signed number."""
    value %= 2**bits
    return value - 2**bits if value >= 2 ** (bits - 1) else value


def scaled(ratio, frac_bits, ticks):
    """Guest ticks of host ticks; ratio 0 is no scaling."""
    return floor(ticks * Fraction(ratio, 2**frac_bits)) % U64 if ratio else ticks


def kvmclock_ns(tsc_timestamp, system_time, mul, shift, guest_tsc):
    """K(g); the shifted ticks are a 64-bit number, as in every guest."""
    ticks = floor(((guest_tsc - tsc_timestamp) % U64) * Fraction(2) ** shift) % U64
    return (system_time + floor(Fraction(ticks * mul, 2**32))) % U64


def exact_step(mul, shift):
    """The fewest ticks, of those that are a power of 2, after which K is a whole number of ns and the shift loses
    nothing: tried one after the other."""
    step = 1
    while True:
        ticks = step * Fraction(2) ** shift
        if ticks.denominator == 1 and (ticks * mul / 2**32).denominator == 1:
            return step
        step *= 2


def not_ahead_of(tsc_timestamp, system_time, mul, shift, guest_tsc):
    """(tsc_timestamp, system_time) of the record that is moved back to where the guest can read it, or None."""
    ahead = signed(tsc_timestamp - guest_tsc)
    if ahead <= 0:
        return tsc_timestamp, system_time
    step = exact_step(mul, shift)
    ticks = ceil(Fraction(ahead, step)) * step
    # One bit of the ticks' 64 must stay free after a left shift.
    if shift > 0 and ticks * 2**shift >= 2**63:
        return None
    ns = ticks * Fraction(2) ** shift * mul / 2**32
    assert ns.denominator == 1
    return (tsc_timestamp - ticks) % U64, (system_time - ns.numerator) % U64


def rate_hz(khz, ratio, frac_bits):
    """A guest's rate, exactly."""
    return khz * 1000 * Fraction(ratio or 1, 2**frac_bits)


def ticks(khz, ratio, frac_bits, ns):
    """Whole guest ticks in ns nanoseconds, or None beyond 64 bits."""
    count = floor(rate_hz(khz, ratio, frac_bits) * ns / 10**9)
    return count if count < U64 else None


def factor_of_hz(hz):
    """(mul, shift) that KVM gives a guest of hz Hz, or None: kvm_get_time_scale(10^9, hz)."""
    if hz == 0:
        return None
    # Shift the rate into (10^9, 2 * 10^9], a bit at a time as KVM does: each loses the lowest one.
    shift = 0
    while hz > 2 * 10**9:
        hz, shift = hz // 2, shift - 1
    while hz <= 10**9:
        hz, shift = hz * 2, shift + 1
    return 10**9 * 2**32 // hz, shift


def whole_hz(khz, ratio, frac_bits):
    """A guest's rate in whole Hz, at most 2^64 - 1."""
    return min(floor(rate_hz(khz, ratio, frac_bits)), U64 - 1)


def own_factor(khz, ratio, frac_bits):
    """(mul, shift) that KVM gives a guest of this rate: that of whole kHz mod 2^64, at least 1. None from 2^64 Hz on."""
    hz = max(scaled(ratio, frac_bits, khz), 1) * 1000
    return factor_of_hz(hz) if hz < U64 else None


def hz_of_factor(mul, shift):
    """The rate that a factor is for, exactly: a tick lasts mul * 2^shift / 2^32 ns."""
    return 10**9 / (mul * Fraction(2) ** shift / 2**32)


def khz_of_factor(mul, shift):
    """The rate that a factor is for, in whole kHz, or None beyond 64 bits or for mul 0."""
    if mul == 0:
        return None
    khz = floor(hz_of_factor(mul, shift) / 1000)
    return khz if khz < U64 else None


def is_close(mul, shift, hz, ppm):
    """Whether the rate that a factor is for is within ppm parts per million of hz; no other shift is a record's."""
    return mul != 0 and abs(shift) <= 31 and abs(hz_of_factor(mul, shift) - hz) <= Fraction(hz * ppm, 10**6)


def accepts(khz, ratio, frac_bits, factor, ppm):
    """Whether a record with this factor is for a TSC of this rate."""
    return factor == own_factor(khz, ratio, frac_bits) or is_close(*factor, whole_hz(khz, ratio, frac_bits), ppm)


def precision_ns(read_window, khz):
    """Half the read_window, in ns, rounded up to whole ticks first; at most 2^32 - 1."""
    return min(ceil(Fraction(ceil(Fraction(read_window, 2)) * 10**6, max(khz, 1))), 2**32 - 1)


def elapsed_ns(saved_tai, saved_offset, now_tai, now_offset):
    """Elapsed time; in UTC, if only one side knows TAI - UTC."""
    if (saved_offset < 10) == (now_offset < 10):
        return now_tai - saved_tai
    return (now_tai - now_offset * 10**9) - (saved_tai - saved_offset * 10**9)


def advance_ticks(saved_tai, saved_offset, now_tai, now_offset, khz, ratio, frac_bits):
    """Guest ticks mod 2^64 that advance adds, or None from 2^63 on."""
    elapsed = elapsed_ns(saved_tai, saved_offset, now_tai, now_offset)
    count = ticks(khz, ratio, frac_bits, abs(elapsed)) if abs(elapsed) < U64 else None
    if count is None or count >= 2**63:
        return None
    return (count if elapsed >= 0 else -count) % U64


EXACT, ADVANCE, FREEZE = 1, 2, 3


def resloped(mode, khz_there, khz_here, ratio, frac_bits, factor, guest_tsc, kvmclock_ns, elapsed):
    """(tsc_timestamp, system_time, mul, shift) of the record that continues kvmclock with the slope of the TSC here; the
    saved one was made at the anchor. None if the rate here has no factor, or its whole kHz have none."""
    own, exact = own_factor(khz_here, ratio, frac_bits), factor_of_hz(whole_hz(khz_here, ratio, frac_bits))
    if own is None or exact is None:
        return None
    if mode != ADVANCE:
        elapsed = 0
    count = ticks(khz_there, ratio, frac_bits, abs(elapsed))
    tsc_timestamp = (guest_tsc + (count if elapsed >= 0 else -count)) % U64
    if factor in (own, exact):
        return *not_ahead_of(guest_tsc, kvmclock_ns, *factor, tsc_timestamp), *factor
    return tsc_timestamp, (kvmclock_ns + elapsed) % U64, *exact

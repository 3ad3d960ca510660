# SPDX-License-Identifier: GPL-2.0-only
"""The arithmetic of rust/pvclock for z3, written line by line from the Rust source.

Bit vectors where Rust has fixed widths that matter; integers (z3.Int) where a division makes bit vectors hopeless: then
every result has the obligation to fit its type. Operations that would panic in Rust with overflow checks, which the
kernel has, add an obligation; wrapping ones do not.

The methods have the Rust functions' names. `make prove` evaluates them on the vectors that the Rust code is tested
with, so that a difference of model and source is found.
"""

from typing import NamedTuple

import z3
from z3 import UGE, UGT, ULE, ULT, And, BitVecVal, Concat, Extract, If, Implies, LShR, Not, Or, ZeroExt

NSEC_PER_SEC = 10**9
NSEC_PER_MSEC = 10**6
PPM = 10**6
DIGITS = 6
BASE = 1 << 32


class Scale(NamedTuple):
    """tsc.rs: Scale."""

    ratio: object  # u64
    frac_bits: object  # u32


class Record(NamedTuple):
    """abi.rs: ClockGuest, without flags and padding."""

    tsc_timestamp: object  # u64
    system_time: object  # u64
    mul: object  # u32
    shift: object  # i8


class Factor(NamedTuple):
    """rate.rs: Factor."""

    mul: object  # u32
    shift: object  # i8

    def is_same(self, other):
        return And(self.mul == other.mul, self.shift == other.shift)


def trailing_zeros(value):
    """u32::trailing_zeros, as 32 bits."""
    result = BitVecVal(32, 32)
    for bit in reversed(range(32)):
        result = If(Extract(bit, bit, value) == 1, BitVecVal(bit, 32), result)
    return result


def leading_zeros(value):
    """u64::leading_zeros, as 32 bits."""
    result = BitVecVal(64, 32)
    for bit in range(64):
        result = If(Extract(bit, bit, value) == 1, BitVecVal(63 - bit, 32), result)
    return result


def unsigned_abs(shift):
    """i8::unsigned_abs, as 32 bits."""
    return ZeroExt(24, If(shift < 0, -shift, shift))


def saturating_add(total, more):
    """u32::saturating_add"""
    return If(z3.BVAddNoOverflow(total, more, False), total + more, BitVecVal(BASE - 1, 32))


class Source:
    """The source as it is. A break is a subclass with one method that is wrong."""

    def __init__(self, mul):
        self.mul = mul
        self.obligations = []

    def must(self, condition, path=True):
        """On `path`, Rust's overflow checks demand `condition`."""
        self.obligations.append(condition if path is True else Implies(path, condition))

    # tsc.rs

    def is_scale(self, scale):
        """Scale::new(...).is_some()"""
        ratio, frac = scale
        none = Or(And(ratio == 0, frac != 0), And(ratio != 0, Or(frac == 0, UGE(frac, 64))))
        return Not(none)

    def is_identity(self, scale):
        """Scale::is_identity"""
        self.must(ULT(scale.frac_bits, 64))
        return Or(scale.ratio == BitVecVal(1, 64) << ZeroExt(32, scale.frac_bits), scale.ratio == 0)

    def apply(self, scale, ticks):
        """Scale::apply"""
        shifted = LShR(self.mul(ticks, scale.ratio), ZeroExt(96, scale.frac_bits))
        return If(self.is_identity(scale), ticks, Extract(63, 0, shifted))

    def guest_tsc(self, scale, offset, host_tsc):
        """TscTransform::guest_tsc"""
        return self.apply(scale, host_tsc) + offset

    def through(self, scale, host_tsc, guest_tsc):
        """TscTransform::through: the offset"""
        return guest_tsc - self.apply(scale, host_tsc)

    def is_ahead(self, a, b):
        """is_ahead_of"""
        return a - b > 0

    # record.rs

    def shifted(self, record, ticks):
        """ClockGuest::kvmclock_ns: the ticks, shifted"""
        shift = ZeroExt(32, unsigned_abs(record.shift))
        beyond = UGT(shift, 63)
        self.must(ULT(shift, 64), Not(beyond))
        return If(beyond, BitVecVal(0, 64), If(record.shift < 0, LShR(ticks, shift), ticks << shift))

    def kvmclock_ns(self, record, guest_tsc):
        """ClockGuest::kvmclock_ns"""
        ticks = guest_tsc - record.tsc_timestamp
        ns = Extract(95, 32, self.mul(self.shifted(record, ticks), record.mul))
        return record.system_time + ns

    def rounding_ns(self, record):
        """ClockGuest::rounding_ns"""
        return If(record.shift < 0, BitVecVal(2, 32), BitVecVal(1, 32))

    def exact_step_log2(self, record):
        """ClockGuest::exact_step_log2"""
        zero = BitVecVal(0, 32)
        right = If(record.shift < 0, unsigned_abs(record.shift), zero)
        left = If(record.shift > 0, unsigned_abs(record.shift), zero)
        cleared = trailing_zeros(record.mul) + left
        kept = If(ULE(cleared, 32), 32 - cleared, zero)
        self.must(UGE(cleared, left))
        self.must(UGE(right + kept, right))
        return right + kept

    def not_ahead_of(self, record, guest_tsc):
        """ClockGuest::not_ahead_of: (is some, the record)"""
        is_ahead = self.is_ahead(record.tsc_timestamp, guest_tsc)
        ahead = record.tsc_timestamp - guest_tsc
        bits = self.exact_step_log2(record)
        has_step = ULT(bits, 64)
        step = BitVecVal(1, 64) << ZeroExt(32, bits)
        path = And(is_ahead, has_step)
        self.must(UGE(step, 1), path)
        self.must(UGE(ahead + (step - 1), ahead), path)
        ticks = (ahead + (step - 1)) & ~(step - 1)
        moved = record._replace(tsc_timestamp=record.tsc_timestamp - ticks)
        has_room = Not(And(record.shift > 0, ULE(leading_zeros(ticks), unsigned_abs(record.shift))))
        ns = self.kvmclock_ns(moved, record.tsc_timestamp) - record.system_time
        some = Or(Not(is_ahead), And(has_step, has_room))
        return some, Record(
            If(is_ahead, moved.tsc_timestamp, record.tsc_timestamp),
            If(is_ahead, record.system_time - ns, record.system_time),
            record.mul,
            record.shift,
        )

    def shifted_by(self, record, offset_diff):
        """ClockGuest::shifted_by"""
        return record._replace(tsc_timestamp=record.tsc_timestamp + offset_diff)

    # wide.rs

    def mul_192(self, wide, factor):
        """mul_192: the digits, lowest first"""
        low = self.mul(Extract(63, 0, wide), factor)
        high = self.mul(Extract(127, 64, wide), factor)
        carry = LShR(low, 64)
        self.must(UGE(high + carry, high))
        high = high + carry
        return [
            Extract(31, 0, low),
            Extract(63, 32, low),
            Extract(31, 0, high),
            Extract(63, 32, high),
            Extract(95, 64, high),
            Extract(127, 96, high),
        ]

    def low_mask(self, bits):
        """low_mask, of a known number of bits"""
        return BitVecVal((1 << bits) - 1 if bits < 32 else BASE - 1, 32)

    def shr(self, digits, shift):
        """shr, by a known number of bits"""
        digits = list(digits)
        carry = BitVecVal(0, 32)
        for step in (shift // 2, shift - shift // 2):
            for index in reversed(range(DIGITS)):
                digit = digits[index]
                wide = LShR(Concat(carry, digit), step)
                carry = digit & self.low_mask(step)
                # A cast, not an addition; but nothing may be cut off.
                self.must(Extract(63, 32, wide) == 0)
                digits[index] = Extract(31, 0, wide)
            carry = BitVecVal(0, 32)
        return digits

    def div_step(self, rest, digit, divisor):
        """div: one turn of the loop, on integers: (digit of the quotient, rest)"""
        wide = rest * BASE + digit
        self.must(And(0 <= rest, rest < BASE))
        quotient = wide / divisor
        self.must(And(0 <= quotient, quotient < BASE))
        return quotient, wide % divisor

    def div(self, digits, divisor):
        """div, on integers: (digits of the quotient, rest)"""
        digits, rest = list(digits), z3.IntVal(0)
        for index in reversed(range(DIGITS)):
            digits[index], rest = self.div_step(rest, digits[index], divisor)
        return digits, rest

    # rate.rs, on integers; mul_mul_shr_div is what theorems/wide.py proves it to be

    def mul_mul_shr_div(self, a, b, factor, shift, divisor):
        """mul_mul_shr_div, by a known number of bits: (is some, the value)"""
        value = (a * b * factor) / (2**shift * divisor)
        return value < 2**64, value

    def ticks(self, host_khz, ratio, frac_bits, ns):
        """GuestRate::ticks: (is some, the value)"""
        self.must(host_khz * 1000 < 2**64)
        return self.mul_mul_shr_div(ns, host_khz * 1000, ratio, frac_bits, NSEC_PER_SEC)

    def rate_hz(self, host_khz, ratio, frac_bits):
        """GuestRate::hz, for a known number of fraction bits; no scaling is a ratio of 1 without any"""
        some, ticks = self.ticks(host_khz, ratio, frac_bits, z3.IntVal(NSEC_PER_SEC))
        return If(ratio == 2**frac_bits, host_khz * 1000, If(some, ticks, 2**64 - 1))

    def rate_khz(self, host_khz, ratio, frac_bits):
        """GuestRate::khz, likewise"""
        return If(ratio == 2**frac_bits, host_khz, host_khz * ratio / 2**frac_bits % 2**64)

    def own_hz(self, khz):
        """GuestRate::factor: (is some, the Hz that it is the factor of)"""
        hz = If(khz == 0, 1, khz) * 1000
        return hz < 2**64, hz

    def accepts(self, is_own, is_close):
        """GuestRate::accepts, of its two comparisons"""
        return Or(is_own, is_close)

    def factor_khz(self, mul, shift):
        """Factor::khz for a known shift: (is some, the value)"""
        bits = abs(shift)
        up, down = (bits, 0) if shift < 0 else (0, bits)
        self.must(z3.BoolVal(up < 64))
        some, value = self.mul_mul_shr_div(NSEC_PER_MSEC << 32, z3.IntVal(1 << up), 1, down, mul)
        return And(mul != 0, some), value

    def is_close_to(self, mul, shift, hz, ppm):
        """Factor::is_close_to for a known shift, on integers"""
        if not -31 <= shift <= 31:
            return z3.BoolVal(False)

        def u128(value):
            self.must(And(0 <= value, value < 2**128))
            return value

        implied = u128(NSEC_PER_SEC << 32 - shift)
        rate = u128(hz * mul)
        return u128(u128(z3.Abs(implied - rate)) * PPM) <= u128(rate * ppm)

    def halve_ticks(self, ticks, scaled):
        """Factor::of_hz: the first loop's condition"""
        self.must(ULT(scaled, 1 << 63))
        return Or(UGT(ticks, scaled * 2), LShR(ticks, 32) != 0)

    def of_hz_loops(self, hz):
        """Factor::of_hz: (scaled, ticks, shift) after both loops, and whether both have ended"""
        scaled, ticks, shift = BitVecVal(NSEC_PER_SEC, 64), hz, BitVecVal(0, 8)
        for _ in range(34):
            again = self.halve_ticks(ticks, scaled)
            self.must(shift - 1 < shift, again)
            ticks, shift = If(again, LShR(ticks, 1), ticks), If(again, shift - 1, shift)
        ended = Not(self.halve_ticks(ticks, scaled))
        for _ in range(30):
            again = ULE(ticks, scaled)
            halve = ticks & 0x8000_0000 != 0
            self.must(shift + 1 > shift, again)
            scaled = If(And(again, halve), LShR(scaled, 1), scaled)
            ticks = If(And(again, Not(halve)), ticks << 1, ticks)
            shift = If(again, shift + 1, shift)
        return scaled, ticks, shift, And(ended, UGT(ticks, scaled))

    def of_hz_mul(self, scaled, ticks):
        """Factor::of_hz: the quotient, on integers"""
        self.must(scaled * BASE < 2**64)
        mul = scaled * BASE / ticks
        self.must(And(0 <= mul, mul < BASE))
        return mul

    # plan.rs

    def precision_ns(self, read_window, host_khz):
        """ClockSnapshot::precision_ns, on integers"""
        ticks = (read_window + 1) / 2
        khz = If(host_khz < 1, 1, host_khz)
        product = If(ticks * NSEC_PER_MSEC < 2**64, ticks * NSEC_PER_MSEC, 2**64 - 1)
        ns = (product + khz - 1) / khz
        return If(ns < BASE, ns, BASE - 1)

    def precision_unpinned_ns(self, expected_ns, actual_ns, now_precision_ns, plan_precision_ns):
        """Plan::precision_unpinned_ns, of what its calls return"""
        diff = actual_ns - expected_ns
        total = If(diff < 0, -diff, diff)  # unsigned_abs
        total = If(UGT(total, BASE - 1), BitVecVal(BASE - 1, 32), Extract(31, 0, total))
        return saturating_add(saturating_add(total, now_precision_ns), plan_precision_ns)

    def knows_tai(self, tai_offset_s):
        """knows_tai"""
        return tai_offset_s >= 10

    def elapsed_ns(self, saved_tai_ns, saved_offset_s, now_tai_ns, now_offset_s):
        """elapsed_ticks: elapsed TAI, on integers"""

        def i128(value):
            self.must(And(-(2**127) <= value, value < 2**127))
            return value

        elapsed = i128(now_tai_ns - saved_tai_ns)
        offset_diff = i128(now_offset_s - saved_offset_s)
        utc = i128(elapsed - i128(offset_diff * NSEC_PER_SEC))
        return If(self.knows_tai(now_offset_s) != self.knows_tai(saved_offset_s), utc, elapsed)

    def is_beyond_reach(self, elapsed_ticks, tsc_timestamp, guest_tsc):
        """plan: whether the guest would go on too far from its record"""
        return And(elapsed_ticks > 0, self.is_ahead(tsc_timestamp, guest_tsc))

    def signed_ticks(self, elapsed, ticks):
        """elapsed_ticks: the sign put back on"""
        return If(elapsed < 0, -ticks, ticks)

    def offset_shift(self, scale, now_host_tsc, guest_tsc, ref_offset):
        """plan: Plan::offset_shift"""
        return self.through(scale, now_host_tsc, guest_tsc) - ref_offset

    def other_factor(self, is_asked, factor, of_khz, of_hz, is_close):
        """other_factor: (is Ok, is Ok(Some), the factor there); `of_khz` and `of_hz` are (is some, factor), `is_close` is
        Factor::is_close_to of the TSC's rate here"""
        (has_khz, of_khz), (has_hz, of_hz) = of_khz, of_hz
        is_own = And(has_khz, factor.is_same(of_khz))
        is_ok = If(is_asked, And(has_khz, has_hz), self.accepts(is_own, is_close))
        return is_ok, And(is_asked, is_ok, Not(factor.is_same(of_khz)), Not(factor.is_same(of_hz))), of_hz

    def plan_precision_ns(self, saved_ns, pairing_ns, is_resloped, record):
        """plan: Plan::precision_ns; `record` is the saved one"""
        rounding_ns = If(is_resloped, self.rounding_ns(record), BitVecVal(0, 32))
        return saturating_add(saturating_add(saved_ns, pairing_ns), rounding_ns)

    def resloped(self, record, guest_tsc, kvmclock_ns, elapsed_ns, mul, shift):
        """plan: the record with another factor; `elapsed_ns` is mod 2^64"""
        return record._replace(tsc_timestamp=guest_tsc, system_time=kvmclock_ns + elapsed_ns, mul=mul, shift=shift)

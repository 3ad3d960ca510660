# SPDX-License-Identifier: GPL-2.0-only
"""A record with the slope of the TSC here, and a record's rate against the TSC's: rust/pvclock/plan.rs, rate.rs."""

import z3
from z3 import UGE, ULE, ULT, And, BitVecVal, Extract, If, Implies, IntVal, Not, Or, ZeroExt

from engine import Break, theorem
from models import BASE, NSEC_PER_SEC, Factor, Source, unsigned_abs

from .rate import HalfScaled
from .record import SHIFTS, any_record


class RefusesOwn(Source):
    def accepts(self, is_own, is_close):
        return is_close


class TakesWholeKhz(Source):
    def other_factor(self, is_asked, factor, of_khz, of_hz, is_close):
        is_ok, is_some, _ = super().other_factor(is_asked, factor, of_khz, of_hz, is_close)
        return is_ok, is_some, of_khz[1]


class ReplacesOwn(Source):
    def other_factor(self, is_asked, factor, of_khz, of_hz, is_close):
        is_ok, _, other = super().other_factor(is_asked, factor, of_khz, of_hz, is_close)
        return is_ok, And(is_asked, is_ok, Not(factor.is_same(other))), other


class KeepsClose(Source):
    def other_factor(self, is_asked, factor, of_khz, of_hz, is_close):
        is_ok, is_some, other = super().other_factor(is_asked, factor, of_khz, of_hz, is_close)
        return is_ok, And(is_some, Not(is_close)), other


class NeverRefuses(Source):
    def other_factor(self, is_asked, factor, of_khz, of_hz, is_close):
        _, is_some, other = super().other_factor(is_asked, factor, of_khz, of_hz, is_close)
        return z3.BoolVal(True), is_some, other


@theorem(
    source="plan.rs:other_factor, rate.rs:GuestRate::accepts",
    inputs="any factor of the record, of the TSC's whole kHz and of its Hz, or no factor of the latter; close or not",
    breaks=[
        Break("KVM's own factor needs to be close", RefusesOwn),
        Break("the factor of whole kHz replaces the record's", TakesWholeKhz),
        Break("KVM's own factor is replaced", ReplacesOwn),
        Break("a close factor stays", KeepsClose),
        Break("any record is accepted", NeverRefuses),
    ],
)
def record_has_the_rate_of_the_tsc(p):
    """With RESLOPE the record gets the factor of the TSC's rate in Hz, unless it has that or KVM's own; SET fails exactly
    if the rate lacks either. Without it no record changes, and SET fails exactly if the factor is neither KVM's own nor
    within the tolerance."""
    record, khz, hz = (Factor(p.bits(f"{name}.mul", 32), p.bits(f"{name}.shift", 8)) for name in ("record", "khz", "hz"))
    asked, close, has_khz, has_hz = (p.bits(name, 1) == 1 for name in ("is_asked", "is_close", "has_khz", "has_hz"))
    is_ok, is_resloped, other = p.model.other_factor(asked, record, (has_khz, khz), (has_hz, hz), close)
    p.claim(is_ok == And(has_khz, has_hz), given=[asked], label="refused with RESLOPE")
    is_same = Or(record.is_same(khz), record.is_same(hz))
    p.claim(is_resloped == Not(is_same), given=[asked, is_ok], label="replaced")
    p.claim(other.is_same(hz), given=[is_resloped], label="by the rate in Hz")
    p.claim(is_ok == Or(And(has_khz, record.is_same(khz)), close), given=[Not(asked)], label="refused without")
    p.claim(Implies(is_resloped, And(asked, is_ok)), label="unless asked, unchanged")


def is_possible(step, shift, least, most):
    """Whether a rate of a multiple of `step` Hz, up to 2^64 Hz, has least..=most ticks when it is shifted."""
    up, down = 2 ** max(shift, 0), 2 ** max(-shift, 0)
    low, high = -(-least * down // up), ((most + 1) * down - 1) // up
    return -(-low // step) * step <= min(high, 2**64 - 1)


@theorem(
    source="rate.rs:GuestRate::hz, GuestRate::factor, Factor::of_hz",
    inputs="every rate from 1 Hz to 2^64 Hz in units of 2^-63 Hz, which is what a ratio leaves; by shift; integers",
    breaks=[
        Break("the rate in whole kHz", None, {"rate": 2_596_100_999 << 63}, {"hz_step": 1000}),
        Break("KVM's own factor of an even number of kHz", None, {"rate": 2_596_101_999 << 63}, {"khz_step": 2000}),
        Break("twice the ns", HalfScaled, {"rate": 2_596_100_000 << 63}),
    ],
)
def slope_is_that_of_the_tsc(p, hz_step=1, khz_step=1000):
    """In the ticks of one second, at the TSC's exact rate, a resloped record counts at most 1/2 ns too few; and too many by
    less than 1 ns (2 ns where of_hz overshoots), or than what 1 Hz is of the rate if that is more. KVM's own factor is of
    whole kHz, so with that it is what 1 kHz is of the rate."""
    for unit, step in ((1, hz_step), (1000, khz_step)):
        for shift in range(-34, 31):
            up, down = 2 ** max(shift, 0), 2 ** max(-shift, 0)
            rate = p.whole("rate", 2**63, 2**127 - 1)
            shifted = rate / 2**63 / step * step * up / down
            # What factor_loops_end proves of ticks: the shifted rate, or 2 * 10^9 where that is 1 more.
            for least, most, ticks in ((NSEC_PER_SEC + 1, 2 * NSEC_PER_SEC, shifted),
                                       (2 * NSEC_PER_SEC + 1, 2 * NSEC_PER_SEC + 1, shifted - 1)):
                overshot = ticks is not shifted
                if overshot and shift > 0 or not is_possible(step, shift, least, most):
                    continue
                mul = p.model.of_hz_mul(IntVal(NSEC_PER_SEC), ticks)
                p.model.obligations.clear()
                # In units of 2^-95 ns, times `down`.
                counted, second = mul * rate * up, (NSEC_PER_SEC << 95) * down
                too_many = max(unit * up, down + unit - 1) + overshot * down
                bounds = And(2 * counted >= 2 * second - (down << 95), counted < second + (too_many << 95))
                label = f"in {unit} Hz, shift {shift}" + ", overshot" * overshot
                p.claim(bounds, given=[least <= shifted, shifted <= most], label=label)


class ForgetsRounding(Source):
    def plan_precision_ns(self, saved_ns, pairing_ns, is_resloped, record):
        return super().plan_precision_ns(saved_ns, pairing_ns, z3.BoolVal(False), record)


class ForgetsTicks(Source):
    def rounding_ns(self, record):
        return BitVecVal(1, 32)


class SumWraps(Source):
    def plan_precision_ns(self, saved_ns, pairing_ns, is_resloped, record):
        return saved_ns + pairing_ns + If(is_resloped, self.rounding_ns(record), BitVecVal(0, 32))


class ReadsNext(Source):
    """The ns are rounded up."""

    def kvmclock_ns(self, record, guest_tsc):
        return super().kvmclock_ns(record, guest_tsc) + 1


@theorem(
    source="plan.rs:plan (Plan::precision_ns), record.rs:ClockGuest::kvmclock_ns, ClockGuest::rounding_ns",
    inputs="every record of any bit pattern and guest TSC, all precisions of 32 bits",
    breaks=[
        Break("another slope adds nothing", ForgetsRounding, {"mul": 1 << 31, "shift": 1}),
        Break("ticks that are shifted out add nothing", ForgetsTicks, {"mul": 1 << 31, "shift": 0xff}),
        Break("the sum wraps", SumWraps, {"mul": 1 << 31, "shift": 1}),
        Break("rounded up", ReadsNext, {"mul": 1 << 31, "shift": 1}),
    ],
)
def reslope_rounding_is_in_the_precision(p):
    """kvmclock at the anchor drops less than 1 ns of the product there, and before that, if the shift is to the right, less
    than one shifted tick, which lasts mul / 2^32 ns. The precision is what SET was given, plus that of the clock snapshot,
    plus the sum of these two in whole ns if the record is resloped; or u32::MAX where that is more."""
    m, record, guest_tsc = p.model, any_record(p), p.bits("guest_tsc", 64)
    product = p.mul(m.shifted(record, guest_tsc - record.tsc_timestamp), record.mul)
    whole = ZeroExt(32, m.kvmclock_ns(record, guest_tsc) - record.system_time) << 32
    p.claim(And(ULE(whole, product), ULT(product - whole, BitVecVal(BASE, 96))), label="less than 1 ns")
    # Beyond 63 all ticks are shifted out, which are less than one shifted tick.
    ticks, shifted = guest_tsc - record.tsc_timestamp, m.shifted(record, guest_tsc - record.tsc_timestamp)
    right = ZeroExt(32, unsigned_abs(record.shift))
    p.claim(ULT(ticks - (shifted << right), BitVecVal(1, 64) << right), given=[record.shift < 0, record.shift >= -63],
            label="less than one shifted tick")
    rounding = m.rounding_ns(record)
    dropped = BitVecVal(BASE, 64) + If(record.shift < 0, ZeroExt(32, record.mul), BitVecVal(0, 64))
    p.claim(UGE(ZeroExt(32, rounding) << 32, dropped), label="in whole ns")
    saved, pairing, resloped = p.bits("saved", 32), p.bits("pairing", 32), p.bits("is_resloped", 1)
    total = ZeroExt(2, saved) + ZeroExt(2, pairing) + If(resloped == 1, ZeroExt(2, rounding), BitVecVal(0, 34))
    sum_ns = If(ULT(total, BASE), Extract(31, 0, total), BitVecVal(BASE - 1, 32))
    p.claim(m.plan_precision_ns(saved, pairing, resloped == 1, record) == sum_ns, label="sum")


@theorem(
    source="plan.rs:plan (reslope), record.rs:ClockGuest::kvmclock_ns",
    inputs="every mul, each shift in -31..=31, all ticks before and after the anchor whose left shift does not wrap; integers",
    breaks=[
        Break("at most 1 ns", where={"mul": BASE - 1, "before": 3, "after": 3}, parameters={"right": 1}),
        Break("not without a right shift", where={"mul": BASE - 1, "before": 1, "after": 1}, parameters={"left": 0}),
    ],
)
def continued_record_is_hardly_behind(p, left=1, right=2):
    """A record that begins anew at the anchor, with the same slope, reads at every later TSC what it would have read, or
    1 ns less; or 2 ns less where the record shifts right, as the ticks are rounded there as well. Never more."""
    mul, before, after = p.whole("mul", 0, BASE - 1), p.whole("before", 0, 2**64 - 1), p.whole("after", 0, 2**64 - 1)
    # Their products with mul, after the shift.
    one, two = p.whole("one", 0, 2**96 - 1), p.whole("two", 0, 2**96 - 1)
    for shift in SHIFTS:

        def shifted(ticks):
            return ticks * 2**shift if shift >= 0 else ticks / 2**-shift

        lost = shifted(before + after) - shifted(before) - shifted(after)
        p.claim(And(0 <= lost, lost <= (shift < 0)), label=f"shift {shift}")
        products = [one == shifted(before) * mul, two == shifted(after) * mul] if p.attack else []
        for more in range(1 + (shift < 0)):
            behind = (one + two + more * mul) / BASE - one / BASE - two / BASE
            most = right if shift < 0 else left
            p.claim(And(0 <= behind, behind <= most), given=[*products, lost == more], label=f"shift {shift}, {more} lost")


class KeepsTimestamp(Source):
    def resloped(self, record, guest_tsc, kvmclock_ns, elapsed_ns, mul, shift):
        return record._replace(system_time=kvmclock_ns + elapsed_ns, mul=mul, shift=shift)


class KeepsSystemTime(Source):
    def resloped(self, record, guest_tsc, kvmclock_ns, elapsed_ns, mul, shift):
        return record._replace(tsc_timestamp=guest_tsc, mul=mul, shift=shift)


class LosesElapsedTime(Source):
    def resloped(self, record, guest_tsc, kvmclock_ns, elapsed_ns, mul, shift):
        return super().resloped(record, guest_tsc, kvmclock_ns, BitVecVal(0, 64), mul, shift)


@theorem(
    source="plan.rs:plan (reslope)",
    inputs="every record and factor of any bit pattern, guest TSC, kvmclock and elapsed time, mod 2^64",
    breaks=[
        Break("the timestamp stays", KeepsTimestamp, {"mul": 1 << 31, "shift": 1}),
        Break("system_time stays", KeepsSystemTime, {"mul": 1 << 31, "shift": 1}),
        Break("elapsed time is lost", LosesElapsedTime, {"mul": 1 << 31, "shift": 1}),
    ],
)
def reslope_continues_kvmclock(p):
    """A resloped record reads, at its timestamp, the saved kvmclock plus elapsed time, with no rounding; it has the
    factor that it is given, and is never ahead of the guest's TSC."""
    m, record = p.model, any_record(p)
    guest_tsc, kvmclock, elapsed = p.bits("guest_tsc", 64), p.bits("kvmclock_ns", 64), p.bits("elapsed_ns", 64)
    mul, shift = p.bits("own_mul", 32), p.bits("own_shift", 8)
    moved = m.resloped(record, guest_tsc, kvmclock, elapsed, mul, shift)
    ns = m.kvmclock_ns(moved, guest_tsc)
    p.claim(m.shifted(moved, guest_tsc - moved.tsc_timestamp) == 0, label="no ticks have passed")
    p.claim(ns == kvmclock + elapsed, facts=[p.mul(BitVecVal(0, 64), mul) == 0], label="continues")
    p.claim(And(moved.mul == mul, moved.shift == shift), label="slope")
    p.claim(Not(m.is_ahead(moved.tsc_timestamp, guest_tsc)), label="not ahead")

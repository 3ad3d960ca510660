# SPDX-License-Identifier: GPL-2.0-only
"""TSC rates and pvclock factors: rust/pvclock/rate.rs."""

import z3
from z3 import UGT, ULE, And, LShR, ZeroExt

from engine import Break, theorem
from models import BASE, NSEC_PER_SEC, PPM, Source

# The fraction widths of hardware: SVM, VMX; 0 stands for no scaling.
FRACTIONS = (0, 32, 48)


class RoundsUpTicks(Source):
    def mul_mul_shr_div(self, a, b, factor, shift, divisor):
        some, value = super().mul_mul_shr_div(a, b, factor, shift, divisor)
        return some, value + 1


class RoundsHzFirst(Source):
    """A rate kept as a number of Hz loses a tick per second of downtime."""

    def ticks(self, host_khz, ratio, frac_bits, ns):
        super().ticks(host_khz, ratio, frac_bits, ns)
        hz = host_khz * 1000 * ratio / 2**frac_bits
        return self.mul_mul_shr_div(ns, hz, z3.IntVal(1), 0, NSEC_PER_SEC)


@theorem(
    source="rate.rs:GuestRate::ticks",
    inputs="every kHz of 32 bits, ns of 64 bits and ratio, with 32, 48 or no fraction bits, as integers",
    breaks=[
        Break("one tick too many", RoundsUpTicks, {"ns": 1, "ratio": 1}),
        Break("Hz rounded first", RoundsHzFirst, {"ns": 2**40, "ratio": 3 * 2**31 + 1}),
    ],
)
def ticks_are_within_one(p):
    """ticks is below the exact, rational number of ticks by less than 1, and never above it."""
    m = p.model
    khz, ns = p.whole("khz", 0, BASE - 1), p.whole("ns", 0, 2**64 - 1)
    ratio = p.whole("ratio", 1, 2**64 - 1)
    for frac in FRACTIONS:
        given = [] if frac else [ratio == 1]
        _, ticks = m.ticks(khz, ratio, frac, ns)
        # Both sides times 2^frac * 10^9, so that all are integers.
        unit = 2**frac * NSEC_PER_SEC
        exact = ns * (khz * 1000) * ratio
        p.claim_no_overflow(given=given)
        # The quotient's own definition, of one unknown: z3 need not look into the product.
        product = p.whole("product", 0, 2**192 - 1)
        p.claim(
            And(ticks * unit <= product, product < (ticks + 1) * unit),
            given=[*given, product == exact],
            label=f"{frac} fraction bits",
        )


class HalvesOnce(Source):
    def halve_ticks(self, ticks, scaled):
        return UGT(ticks, scaled * 4)


@theorem(
    source="rate.rs:Factor::of_hz",
    inputs="every rate in Hz of 64 bits, but 0; loops unrolled to their proved bound",
    breaks=[Break("the first loop stops early", HalvesOnce), Break("33 halvings", parameters={"least": -33})],
)
def factor_loops_end(p, least=-34):
    """of_hz's loops end, with 10^9 < ticks <= 2 * 10^9, shift in -34..=30, and ticks the rate in Hz, shifted (or 1
    less, if that is 2 * 10^9 + 1); the branch that halves `scaled` is never taken; nothing overflows."""
    m, hz = p.model, p.bits("hz", 64)
    p.given(hz != 0)
    scaled, ticks, shift, ended = m.of_hz_loops(hz)
    p.claim_no_overflow()
    p.claim(ended, label="ended")
    p.claim(scaled == NSEC_PER_SEC, label="scaled")
    p.claim(And(UGT(ticks, NSEC_PER_SEC), ULE(ticks, 2 * NSEC_PER_SEC)), label="ticks")
    p.claim(And(shift >= least, shift <= 30), label="shift")
    # What SET accepts: all rates below 4.29 * 10^18 Hz.
    p.claim(shift >= -31, given=[ULE(hz, NSEC_PER_SEC << 32)], label="shift of a real rate")
    wide = ZeroExt(56, shift)
    right = LShR(hz, ZeroExt(56, -shift))  # For shifts up to 0.
    # There the first loop halves once too often, and the second takes it back.
    overshot = And(shift <= 0, right == 2 * NSEC_PER_SEC + 1, ticks == 2 * NSEC_PER_SEC)
    p.claim(z3.Or(overshot, ticks == z3.If(shift < 0, right, hz << wide)), label="shifted")
    # A left shift loses nothing: it can be undone.
    p.claim(LShR(hz << wide, wide) == hz, given=[shift >= 0], label="lossless")


class HalfScaled(Source):
    def of_hz_mul(self, scaled, ticks):
        return super().of_hz_mul(scaled + scaled, ticks)


@theorem(
    source="rate.rs:Factor::of_hz",
    inputs="every ticks in 10^9 < ticks <= 2 * 10^9, as factor_loops_end has it; integers",
    breaks=[Break("twice the ns", HalfScaled), Break("30 bits", parameters={"bits": 30})],
)
def factor_has_32_bits(p, bits=31):
    """mul fits 32 bits and has the highest of them set, so a factor is good to 2^-31; the dividend fits 64 bits."""
    m, ticks = p.model, p.whole("ticks", NSEC_PER_SEC + 1, 2 * NSEC_PER_SEC)
    mul = m.of_hz_mul(z3.IntVal(NSEC_PER_SEC), ticks)
    p.claim_no_overflow()
    p.claim(And(2**31 <= mul, mul < 2 ** (bits + 1)), label="top bit")


class KhzRoundsUp(Source):
    def factor_khz(self, mul, shift):
        some, khz = super().factor_khz(mul, shift)
        return some, khz + 1


@theorem(
    source="rate.rs:Factor::khz, Factor::of_hz",
    inputs="every rate of 1..=16,000,000 kHz (16 GHz; there a right shift by 3 still divides 1000 kHz evenly), by shift",
    breaks=[
        Break("rounded up", KhzRoundsUp),
        Break("above 16 GHz", where={"khz": 16_000_001}, parameters={"most": 16_000_001, "least_shift": -4}),
    ],
)
def khz_undoes_of_hz(p, most=16_000_000, least_shift=-3):
    """khz(of_hz(1000 * k)) is k: what KVM derives from a rate implies that rate."""
    khz = p.whole("khz", 1, most)
    for shift in range(least_shift, 21):
        ticks = shifted_hz(khz, shift)
        implied = implied_khz(p, ticks, shift)
        p.claim(implied == khz, given=is_ticks(ticks), label=f"shift {shift}")
        p.claim(ticks != 2 * NSEC_PER_SEC + 1, label=f"shift {shift} does not overshoot")


@theorem(
    source="rate.rs:Factor::khz, Factor::of_hz",
    inputs="every rate of 32 bits of kHz, by shift",
    breaks=[
        Break("never below", parameters={"below": 0}),
        Break("never above", where={"khz": 4_294_960_042}, parameters={"above": 0}),
    ],
)
def khz_nearly_undoes_of_hz(p, below=7, above=2):
    """khz(of_hz(1000 * k)) is k - 7 to k + 2 for any 32-bit k: above 16 GHz low bits are lost to right shifts."""
    khz = p.whole("khz", 1, BASE - 1)
    for shift in range(-12, 21):
        ticks = shifted_hz(khz, shift)
        implied = implied_khz(p, ticks, shift)
        near = And(khz - below <= implied, implied <= khz + above)
        p.claim(near, given=is_ticks(ticks), label=f"shift {shift}")
        if -11 <= shift <= -9:
            overshot = 2 * NSEC_PER_SEC
            implied = implied_khz(p, z3.IntVal(overshot), shift)
            near = And(khz - below <= implied, implied <= khz + above)
            p.claim(near, given=[ticks == overshot + 1], label=f"shift {shift}, overshot")
        else:
            p.claim(ticks != 2 * NSEC_PER_SEC + 1, label=f"shift {shift} does not overshoot")


def shifted_hz(khz, shift):
    return khz * 1000 / 2**-shift if shift < 0 else khz * 1000 * 2**shift


def is_ticks(ticks):
    """What `factor_loops_end` proves of ticks."""
    return [ticks > NSEC_PER_SEC, ticks <= 2 * NSEC_PER_SEC]


def implied_khz(p, ticks, shift):
    """Factor::khz of the factor that of_hz makes of `ticks`."""
    mul = p.model.of_hz_mul(z3.IntVal(NSEC_PER_SEC), ticks)
    _, implied = p.model.factor_khz(mul, shift)
    p.model.obligations.clear()
    return implied


@theorem(
    source="rate.rs:GuestRate::is_close_to, diff_hz; Factor::khz",
    inputs="all rates in Hz of 64 bits; every shift of a valid factor",
    breaks=[Break("64-bit products", parameters={"width": 64})],
)
def rate_products_fit(p, width=128):
    """GuestRate::is_close_to's products fit 128 bits; khz's constants fit 64; diff_hz's negation cannot overflow."""
    a, b = p.whole("a", 0, 2**64 - 1), p.whole("b", 0, 2**64 - 1)
    p.claim(z3.Abs(a - b) * 1_000_000 < 2**width)
    p.claim(a * (BASE - 1) < 2**width)
    magnitude = z3.If(z3.Abs(a - b) > 2**63 - 1, 2**63 - 1, z3.Abs(a - b))
    p.claim(And(-(2**63) <= -magnitude, magnitude < 2**63))
    for shift in range(-31, 32):
        p.model.factor_khz(z3.IntVal(1), shift)
    p.claim_no_overflow()
    p.claim(z3.BoolVal(10**6 << 32 < 2**64))


class ComparesKhz(Source):
    """The implied rate in whole kHz first."""

    def is_close_to(self, mul, shift, hz, ppm):
        super().is_close_to(mul, shift, hz, ppm)
        _, khz = self.factor_khz(mul, shift)
        return z3.Abs(khz * 1000 - hz) * PPM <= hz * ppm


class OfTheRecordsRate(Source):
    """Parts per million of the implied rate."""

    def is_close_to(self, mul, shift, hz, ppm):
        super().is_close_to(mul, shift, hz, ppm)
        implied = NSEC_PER_SEC << 32 - shift
        return z3.Abs(implied - hz * mul) * PPM <= implied * ppm


class ShiftsOtherWay(Source):
    def is_close_to(self, mul, shift, hz, ppm):
        return super().is_close_to(mul, -shift, hz, ppm)


class ComparesBelow(Source):
    def is_close_to(self, mul, shift, hz, ppm):
        super().is_close_to(mul, shift, hz, ppm)
        implied, rate = NSEC_PER_SEC << 32 - shift, hz * mul
        return z3.Abs(implied - rate) * PPM < rate * ppm


@theorem(
    source="rate.rs:Factor::is_close_to",
    inputs="every mul of 32 bits, rate in Hz of 64 bits and ppm of 32 bits, each shift in -31..=31; integers",
    breaks=[
        Break("whole kHz", ComparesKhz, {"mul": 3_308_784_173, "hz": 2_596_100_000, "ppm": 0}),
        Break("of the record's rate", OfTheRecordsRate, {"mul": 2**31, "hz": 2_000_500_125, "ppm": 250}),
        Break("left is right", ShiftsOtherWay, {"mul": 2**31, "hz": 10**9, "ppm": 0}),
        Break("the edge is out", ComparesBelow, {"mul": 2**31, "hz": 2 * 10**9, "ppm": 0}),
    ],
)
def rates_are_compared_exactly(p):
    """is_close_to is the comparison of rational numbers |10^9 * 2^32 / (mul * 2^shift) - hz| <= hz * ppm / 10^6, false for
    a mul or a rate of 0; all of its steps fit 128 bits."""
    mul, hz, ppm = p.whole("mul", 0, BASE - 1), p.whole("hz", 0, 2**64 - 1), p.whole("ppm", 0, BASE - 1)
    rate = p.whole("rate", 0, 2**96 - 1)
    p.claim(hz * mul < 2**96, label="a rate times mul")
    p.claim(rate * ppm < 2**128, label="that times ppm")
    bounds = [hz * mul < 2**96, hz * mul * ppm < 2**128]
    for shift in range(-31, 32):
        close = p.model.is_close_to(mul, shift, hz, ppm)
        p.claim_no_overflow(facts=bounds)
        # The inequality, times mul * 2^shift * 10^6; 2^shift is up / down.
        up, down = 2 ** max(shift, 0), 2 ** max(-shift, 0)
        exact = z3.Abs((NSEC_PER_SEC << 32) * down - hz * mul * up) * PPM <= hz * mul * up * ppm
        p.claim(close == exact, label=f"shift {shift}")
        p.claim(z3.Not(close), given=[z3.Or(mul == 0, hz == 0)], label=f"shift {shift}, 0")

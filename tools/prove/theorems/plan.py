# SPDX-License-Identifier: GPL-2.0-only
"""From a request to offsets: rust/pvclock/plan.rs."""

import z3
from z3 import And, BitVecVal, If, Not, ZeroExt

from engine import Break, theorem
from models import BASE, NSEC_PER_MSEC, NSEC_PER_SEC, Source

from .tsc import any_scale


class ForgetsRefOffset(Source):
    def offset_shift(self, scale, now_host_tsc, guest_tsc, ref_offset):
        return self.through(scale, now_host_tsc, guest_tsc)


class KeepsSign(Source):
    def signed_ticks(self, elapsed, ticks):
        return ticks


@theorem(
    source="plan.rs:plan, elapsed_ticks",
    inputs="every scale, host TSC, saved guest TSC, elapsed time and its ticks, pair of saved offsets",
    breaks=[Break("the saved offset is forgotten", ForgetsRefOffset), Break("the sign is lost", KeepsSign)],
)
def plan_continues_the_guest(p):
    """The planned shift gives the reference vCPU saved TSC + elapsed ticks at `now`, forwards or backwards, and every
    other vCPU its saved difference to it. Freeze is this with 0 ticks."""
    m, scale = p.model, any_scale(p)
    now_tsc, target = p.bits("now.host_tsc", 64), p.bits("target", 64)
    ref_offset, offset = p.bits("ref_offset", 64), p.bits("offset", 64)
    shift = m.offset_shift(scale, now_tsc, target, ref_offset)
    reference = m.guest_tsc(scale, ref_offset + shift, now_tsc)
    p.claim(reference == target, label="reference")
    p.claim(m.guest_tsc(scale, offset + shift, now_tsc) - reference == offset - ref_offset, label="others")
    # The target is the saved TSC plus these:
    ticks, elapsed = p.bits("ticks", 64), p.whole("elapsed", -(2**127), 2**127 - 1)
    signed = m.signed_ticks(elapsed, ticks)
    p.claim(signed + ticks == 0, given=[elapsed < 0], label="backwards")
    p.claim(signed == ticks, given=[elapsed >= 0], label="forwards")


class Truncates(Source):
    """The difference in 64 bits."""

    def elapsed_ns(self, saved_tai_ns, saved_offset_s, now_tai_ns, now_offset_s):
        elapsed = super().elapsed_ns(saved_tai_ns, saved_offset_s, now_tai_ns, now_offset_s)
        return (elapsed + 2**63) % 2**64 - 2**63


class AlwaysComparesUtc(Source):
    def elapsed_ns(self, saved_tai_ns, saved_offset_s, now_tai_ns, now_offset_s):
        super().elapsed_ns(saved_tai_ns, saved_offset_s, now_tai_ns, now_offset_s)
        return now_tai_ns - saved_tai_ns - (now_offset_s - saved_offset_s) * NSEC_PER_SEC


@theorem(
    source="plan.rs:elapsed_ticks",
    inputs="all TAI readings of 64 bits and all TAI - UTC of 32 bits, of either sign, as integers",
    breaks=[
        Break("64-bit difference", Truncates),
        Break("UTC compared although both know TAI", AlwaysComparesUtc),
    ],
)
def elapsed_is_exact(p):
    """Elapsed time is the exact difference of TAI where both sides know it or neither does, else of UTC; i128 holds
    every step of it."""
    saved, now = p.whole("saved_tai", -(2**63), 2**63 - 1), p.whole("now_tai", -(2**63), 2**63 - 1)
    saved_s, now_s = p.whole("saved_offset", -(2**31), 2**31 - 1), p.whole("now_offset", -(2**31), 2**31 - 1)
    elapsed = p.model.elapsed_ns(saved, saved_s, now, now_s)
    p.claim_no_overflow()
    utc = (now - now_s * NSEC_PER_SEC) - (saved - saved_s * NSEC_PER_SEC)
    p.claim(elapsed == now - saved, given=[saved_s >= 10, now_s >= 10], label="both know TAI")
    p.claim(elapsed == now - saved, given=[saved_s < 10, now_s < 10], label="neither knows TAI")
    p.claim(elapsed == utc, given=[z3.Xor(saved_s < 10, now_s < 10)], label="one knows TAI")


@theorem(
    source="plan.rs:plan (advance), rate.rs:GuestRate::ticks",
    inputs="every exact number of ticks as a fraction of any denominator, positive or negative; integers",
    breaks=[Break("within half a tick", where={"unit": 3}, parameters={"halves": 1})],
)
def advance_is_within_a_tick(p, halves=2):
    """Floor of the magnitude, then the sign: the guest TSC is less than 1 tick from saved + elapsed * rate, and never
    beyond it, in either direction."""
    unit, product = p.whole("unit", 1, 2**94), p.whole("product", 0, 2**192 - 1)
    ticks = p.whole("ticks", 0, 2**192 - 1)
    p.given(ticks * unit <= product, product < (ticks + 1) * unit)
    for sign in (1, -1):
        # (planned - exact) * unit
        error = sign * ticks * unit - sign * product
        p.claim(And(-halves * unit < 2 * error, 2 * error < halves * unit), label=f"sign {sign}")
        p.claim(error * sign <= 0, label=f"sign {sign}, not beyond")


class ReachesAnywhere(Source):
    def is_beyond_reach(self, elapsed_ticks, tsc_timestamp, guest_tsc):
        return z3.BoolVal(False)


@theorem(
    source="plan.rs:plan (advance)",
    inputs="every record not ahead of the saved guest TSC, every number of ticks from 1 to 2^63 - 1",
    breaks=[Break("no limit", ReachesAnywhere)],
)
def advance_stays_in_reach(p):
    """A guest that goes on is refused exactly if it gets more than 2^63 ticks from its record; so none that went on is
    taken for one that went back, and its record stays as it is."""
    m, timestamp = p.model, p.bits("tsc_timestamp", 64)
    age, elapsed = p.bits("age", 64), p.bits("elapsed_ticks", 64)
    p.given(Not(m.is_ahead(timestamp, timestamp + age)), elapsed > 0)
    refused = m.is_beyond_reach(elapsed, timestamp, timestamp + age + elapsed)
    distance = ZeroExt(1, age) + ZeroExt(1, elapsed)
    p.claim(refused == z3.UGT(distance, BitVecVal(2**63, 65)))


class RoundsDownNs(Source):
    def precision_ns(self, read_window, host_khz):
        ticks = (read_window + 1) / 2
        ns = ticks * NSEC_PER_MSEC / If(host_khz < 1, 1, host_khz)
        return If(ns < BASE, ns, BASE - 1)


class RoundsDownTicks(Source):
    def precision_ns(self, read_window, host_khz):
        return super().precision_ns(read_window - read_window % 2, host_khz)


class SaturatesLow(Source):
    def precision_ns(self, read_window, host_khz):
        return super().precision_ns(If(read_window > 2**45, 2**45, read_window), host_khz)


@theorem(
    source="plan.rs:ClockSnapshot::precision_ns",
    inputs="every read_window of 64 bits and kHz of 32 bits but 0, as integers",
    breaks=[
        Break("ns rounded down", RoundsDownNs, {"khz": 3}),
        Break("ticks rounded down", RoundsDownTicks, {"khz": 3}),
        Break("saturates too low", SaturatesLow, {"khz": 2**32 - 1}),
    ],
)
def precision_is_no_less(p):
    """The precision covers half the read_window: it is the smallest whole number of ns not below ceil(read_window / 2) ticks, or
    u32::MAX where that is more."""
    m, read_window, khz = p.model, p.whole("read_window", 0, 2**64 - 1), p.whole("khz", 1, BASE - 1)
    ns = m.precision_ns(read_window, khz)
    ticks = (read_window + 1) / 2
    saturated = ns == BASE - 1
    p.claim(z3.Or(saturated, 2 * ns * khz >= read_window * NSEC_PER_MSEC), label="covers half the read_window")
    p.claim(z3.Or(ns == 0, (ns - 1) * khz < ticks * NSEC_PER_MSEC), label="no more than needed")
    p.claim(z3.Or(Not(saturated), ticks * NSEC_PER_MSEC > (BASE - 2) * khz), label="saturates only if it must")
    p.claim(And(0 <= ns, ns < BASE), label="fits")
    p.claim(z3.Implies(read_window == 0, ns == 0), label="0 is exact")


class TakesDifferenceUnsigned(Source):
    def precision_unpinned_ns(self, expected_ns, actual_ns, now_precision_ns, plan_precision_ns):
        less = z3.If(z3.UGT(actual_ns, expected_ns), expected_ns, actual_ns)
        return super().precision_unpinned_ns(less, actual_ns, now_precision_ns, plan_precision_ns)


@theorem(
    source="plan.rs:Plan::precision_unpinned_ns",
    inputs="all ns of 64 bits that the clock is and should be, all precisions of 32 bits",
    breaks=[Break("a clock that is late counts for nothing", TakesDifferenceUnsigned)],
)
def unpinned_precision_adds_up(p):
    """The precision is the distance of the two clocks, either way around the ring, plus both precisions; or u32::MAX
    where that is more."""
    m, expected, actual = p.model, p.bits("expected_ns", 64), p.bits("actual_ns", 64)
    now, plan = p.bits("now_precision", 32), p.bits("plan_precision", 32)
    late, early = expected - actual, actual - expected
    distance = If(z3.ULT(late, early), late, early)
    total = ZeroExt(6, distance) + ZeroExt(38, now) + ZeroExt(38, plan)
    sum_ns = If(z3.ULT(total, BASE), z3.Extract(31, 0, total), BitVecVal(BASE - 1, 32))
    p.claim(m.precision_unpinned_ns(expected, actual, now, plan) == sum_ns)

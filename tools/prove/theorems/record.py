# SPDX-License-Identifier: GPL-2.0-only
"""kvmclock as a function of guest TSC: rust/pvclock/record.rs."""

import z3
from z3 import ULE, ULT, And, BitVecVal, Extract, If, Implies, LShR, Not, ZeroExt

from engine import Break, theorem
from models import Record, Source, trailing_zeros

from .products import distributes, has_zeros, monotonic

SHIFTS = range(-31, 32)


def any_record(p, shift=None):
    """A record of any bits, or of a known shift."""
    shift = p.bits("shift", 8) if shift is None else BitVecVal(shift, 8)
    return Record(p.bits("tsc_timestamp", 64), p.bits("system_time", 64), p.bits("mul", 32), shift)


class ShiftWraps(Source):
    """What x86's shift instructions do with a count above 63."""

    def shifted(self, record, ticks):
        shift = ZeroExt(56, If(record.shift < 0, -record.shift, record.shift)) & 63
        return If(record.shift < 0, LShR(ticks, shift), ticks << shift)


class ShiftsRightOnly(Source):
    def shifted(self, record, ticks):
        return super().shifted(record._replace(shift=If(record.shift > 0, -record.shift, record.shift)), ticks)


@theorem(
    source="record.rs:ClockGuest::kvmclock_ns",
    inputs="every record of any bit pattern, and every guest TSC",
    breaks=[Break("a shift wraps at 64", ShiftWraps), Break("left is right", ShiftsRightOnly)],
)
def record_shifts_step_by_step(p):
    """The shift is what so many single steps would be, for all 256 shifts; no operation overflows."""
    m, ticks = p.model, p.bits("ticks", 64)
    for shift in range(-128, 128):
        stepped = ticks
        for _ in range(abs(shift)):
            stepped = LShR(stepped, 1) if shift < 0 else stepped << 1
        record = Record(None, None, None, BitVecVal(shift, 8))
        p.claim(m.shifted(record, ticks) == z3.simplify(stepped), label=f"shift {shift}")
        if m.obligations:
            p.claim_no_overflow()


class ShiftsSystemTime(Source):
    def shifted_by(self, record, offset_diff):
        return record._replace(
            tsc_timestamp=record.tsc_timestamp + offset_diff, system_time=record.system_time + offset_diff
        )


class ShiftsOtherWay(Source):
    def shifted_by(self, record, offset_diff):
        return record._replace(tsc_timestamp=record.tsc_timestamp - offset_diff)


@theorem(
    source="record.rs:ClockGuest::shifted_by",
    inputs="every record of any bit pattern, scale, pair of offsets and host TSC",
    breaks=[
        Break("the other way", ShiftsOtherWay, {"mul": 1 << 31, "shift": 1}),
        Break("ns shifted as well", ShiftsSystemTime, {"mul": 1 << 31, "shift": 1}),
    ],
)
def shifted_record_reads_the_same(p):
    """A vCPU whose offset is d above reads, by the record shifted by d, the same ns at the same host TSC."""
    m, record, d = p.model, any_record(p), p.bits("d", 64)
    host_ticks, offset = p.bits("host_ticks", 64), p.bits("offset", 64)
    # The scaled host TSC is the same for both, whatever the scale made of it.
    one, two = host_ticks + offset, host_ticks + (offset + d)
    p.claim(m.kvmclock_ns(m.shifted_by(record, d), two) == m.kvmclock_ns(record, one))
    p.claim_no_overflow()


@theorem(
    source="record.rs:ClockGuest::kvmclock_ns",
    inputs="mul of any value, shift in -31..=31, every pair of ticks whose left shift does not wrap",
    breaks=[Break("the left shift may wrap", where={"mul": 1 << 31}, parameters={"wraps": True})],
)
def record_never_goes_back(p, wraps=False):
    """From tsc_timestamp on, a later guest TSC reads no less, until (ticks << shift) reaches 2^64."""
    m, a, b = p.model, p.bits("a", 64), p.bits("b", 64)
    for shift in SHIFTS:
        record = any_record(p, shift)._replace(system_time=BitVecVal(0, 64))
        origin = record.tsc_timestamp
        given = [ULE(a, b)]
        if shift > 0 and not wraps:
            given += [LShR(b, 64 - shift) == 0]
        one, two = m.shifted(record, a), m.shifted(record, b)
        p.claim(
            ULE(m.kvmclock_ns(record, origin + a), m.kvmclock_ns(record, origin + b)),
            given=given,
            facts=[monotonic(p, one, two, record.mul)],
            label=f"shift {shift}",
        )


class HalfStep(Source):
    def exact_step_log2(self, record):
        bits = super().exact_step_log2(record)
        return If(bits == 0, bits, bits - 1)


class IgnoresShift(Source):
    def exact_step_log2(self, record):
        return 32 - trailing_zeros(record.mul)


class IgnoresMul(Source):
    def exact_step_log2(self, record):
        return super().exact_step_log2(record._replace(mul=BitVecVal(2, 32)))


class RoundsDown(Source):
    """Moves by the exact step before, not after."""

    def not_ahead_of(self, record, guest_tsc):
        step = BitVecVal(1, 64) << ZeroExt(32, self.exact_step_log2(record))
        return super().not_ahead_of(record, guest_tsc + (step - 1))


class KeepsNs(Source):
    def not_ahead_of(self, record, guest_tsc):
        some, moved = super().not_ahead_of(record, guest_tsc)
        return some, moved._replace(system_time=record.system_time)


class NoRoomCheck(Source):
    def not_ahead_of(self, record, guest_tsc):
        some, moved = super().not_ahead_of(record, guest_tsc)
        bits = self.exact_step_log2(record)
        return z3.Or(some, ULT(bits, 64)), moved


@theorem(
    source="record.rs:ClockGuest::exact_step_log2",
    inputs="every mul but 0, every shift in -31..=31",
    breaks=[Break("62 bits would do", parameters={"most": 62})],
)
def exact_step_fits_a_tsc(p, most=63):
    """The exact step is at most 2^63 ticks; for any bit pattern the number of bits is computed without overflow."""
    m, record = p.model, any_record(p)
    bits = m.exact_step_log2(record)
    p.claim_no_overflow()
    valid = [record.mul != 0, record.shift >= -31, record.shift <= 31]
    p.claim(ULE(bits, most), given=valid)


def no_wrap(x, moved, shift):
    """(x + moved) << shift is below 2^64."""
    total = x + moved
    fits = [z3.BVAddNoOverflow(x, moved, False)]
    if shift > 0:
        fits.append(LShR(total, 64 - shift) == 0)
    return fits


@theorem(
    source="record.rs:ClockGuest::kvmclock_ns",
    inputs="each shift in -31..=31, all ticks x and t whose shifted sum stays below 2^64, t a multiple of 2^-shift",
    breaks=[
        Break("any t", parameters={"aligned": False}),
        Break("the sum may wrap", parameters={"bounded": False}),
    ],
)
def shifts_add(p, aligned=True, bounded=True):
    """Shifting adds up: shifted(x + t) is shifted(x) + shifted(t), which does not wrap."""
    x, t = p.bits("x", 64), p.bits("t", 64)
    for shift in SHIFTS:
        premise, conclusion = sum_of_shifted(p.model, Record(None, None, None, BitVecVal(shift, 8)), shift, x, t)
        given = (premise["bounded"] if bounded else []) + (premise["aligned"] if aligned else [])
        p.claim(conclusion, given=given, label=f"shift {shift}")


def sum_of_shifted(model, record, shift, x, t):
    """The parts of `shifts_add`, for its proof and for its instances."""
    total, one, two = (model.shifted(record, ticks) for ticks in (x + t, x, t))
    aligned = [t & (2**-shift - 1) == 0] if shift < 0 else []
    conclusion = And(total == one + two, z3.BVAddNoOverflow(one, two, False))
    return {"bounded": no_wrap(x, t, shift), "aligned": aligned}, conclusion


@theorem(
    source="record.rs:ClockGuest::not_ahead_of, exact_step_log2, kvmclock_ns",
    inputs="every record with mul not 0 and each shift in -31..=31, every guest TSC; later TSCs tsc_timestamp + x as "
    "long as (x + moved) << shift stays below 2^64, where the unmoved record wraps as well, a moment later",
    breaks=[
        Break("half the exact step", HalfStep, {"mul": 3, "guest_tsc": 0}),
        Break("the exact step ignores the shift", IgnoresShift, {"mul": 3, "guest_tsc": 0}),
        Break("the exact step ignores mul", IgnoresMul, {"mul": 3, "guest_tsc": 0}),
        Break("system_time stays", KeepsNs, {"mul": 3, "guest_tsc": 0}),
        Break("any later TSC", None, {"mul": 1 << 31, "guest_tsc": 0, "tsc_timestamp": 1}, {"bounded": False}),
    ],
)
def moved_record_reads_the_same(p, bounded=True):
    """not_ahead_of changes no reading at any TSC from the old tsc_timestamp on."""
    m, x, guest_tsc = p.model, p.bits("x", 64), p.bits("guest_tsc", 64)
    for shift in SHIFTS:
        record = any_record(p, shift)
        later = record.tsc_timestamp + x
        some, moved_record = m.not_ahead_of(record, guest_tsc)
        moved = record.tsc_timestamp - moved_record.tsc_timestamp
        valid = [record.mul != 0, some]
        if bounded:
            valid += no_wrap(x, moved, shift)
        parts = [m.shifted(record, ticks) for ticks in (x + moved, x, moved)]
        premise, conclusion = sum_of_shifted(m, record, shift, x, moved)
        facts = [
            Implies(And(*premise["bounded"], *premise["aligned"]), conclusion),
            distributes(p, *parts, record.mul),
            has_zeros(p, parts[2], record.mul, trailing_zeros(record.mul)),
        ]
        p.claim(
            m.kvmclock_ns(moved_record, later) == m.kvmclock_ns(record, later),
            given=valid,
            facts=facts,
            label=f"shift {shift}",
        )


@theorem(
    source="record.rs:ClockGuest::not_ahead_of",
    inputs="every record of any bit pattern, every guest TSC",
    breaks=[
        Break("rounded down", RoundsDown, {"mul": 1}),
        Break("no check for room", NoRoomCheck, {"mul": 1}),
    ],
)
def moved_record_is_not_ahead(p):
    """What not_ahead_of returns is not ahead of the guest, and went back by less than an exact step more than needed;
    with a positive shift its ticks up to the old timestamp do not wrap; nothing overflows."""
    m, record, guest_tsc = p.model, any_record(p), p.bits("guest_tsc", 64)
    some, moved = m.not_ahead_of(record, guest_tsc)
    p.claim_no_overflow()
    p.claim(Not(m.is_ahead(moved.tsc_timestamp, guest_tsc)), given=[some])
    step = BitVecVal(1, 64) << ZeroExt(32, m.exact_step_log2(record))
    was_ahead = m.is_ahead(record.tsc_timestamp, guest_tsc)
    p.claim(ULT(guest_tsc - moved.tsc_timestamp, step), given=[some, was_ahead])
    went = record.tsc_timestamp - moved.tsc_timestamp
    shift = ZeroExt(56, record.shift)
    room = LShR(went << shift, shift) == went
    p.claim(room, given=[some, was_ahead, record.shift > 0])
    # A record that is not ahead stays as it is.
    same = And(some, moved.tsc_timestamp == record.tsc_timestamp, moved.system_time == record.system_time)
    p.claim(same, given=[Not(was_ahead)])


@theorem(
    source="record.rs:ClockGuest::exact_step_log2",
    inputs="every mul but 0 and every shift in -31..=31 whose step is above 1 tick; ns by the trailing zeros of mul",
    breaks=[Break("a whole step", parameters={"halves": 2}), Break("half the exact step", HalfStep)],
)
def exact_step_is_minimal(p, halves=1):
    """Half an exact step does lose: some later TSC reads differently, for every mul and shift."""
    m, record = p.model, any_record(p)
    p.given(record.mul != 0, record.shift >= -31, record.shift <= 31)
    # Half a step, shifted, is 2^(31 - trailing zeros), whatever the shift ...
    bits = ZeroExt(32, m.exact_step_log2(record))
    zeros = ZeroExt(32, trailing_zeros(record.mul))
    one = BitVecVal(1, 64)
    half = m.shifted(record, one << (bits - 1)) == one << (31 - zeros)
    whole = m.shifted(record, one << bits) == one << (32 - zeros)
    p.claim(And(half, whole), given=[bits != 0], label="shifted")
    # ... and that times mul leaves half a ns, so that twice its ns is less than the ns of twice as much.
    odd = p.bits("odd", 32)
    for zeros in range(32):
        mul = (odd | 1) << zeros
        moved, later = (ns_of(ticks, mul) for ticks in (halves << (31 - zeros), halves << (32 - zeros)))
        p.claim(later != moved + moved, label=f"{zeros} zeros")


def ns_of(ticks, mul):
    """The ns of a known number of shifted ticks: a true product, as one by a constant is easy."""
    return Extract(95, 32, BitVecVal(ticks, 96) * ZeroExt(64, mul))

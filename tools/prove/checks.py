# SPDX-License-Identifier: GPL-2.0-only
"""The checks that tie models and source together: both must give the results of the vectors."""

import z3
from z3 import BitVecVal, IntVal

import reference
import vectors
from engine import full_product
from models import NSEC_PER_SEC, Factor, Record, Scale, Source


def vectors_are_checked_in():
    """The vectors of the Rust tests are those that the generator prints."""
    same = vectors.FILE.exists() and vectors.FILE.read_text() == vectors.render()
    return same, vectors.FILE.name if same else f"{vectors.FILE} is out of date: run tools/prove/vectors.py --write"


def number(value):
    """The value of a term of constants."""
    value = z3.simplify(value)
    if z3.is_bool(value):
        return z3.is_true(value)
    return value.as_long()


def option(some, value):
    return number(value) if number(some) else None


def u64(value):
    return BitVecVal(value, 64)


def record_of(tsc_timestamp, system_time, mul, shift):
    return Record(u64(tsc_timestamp), u64(system_time), BitVecVal(mul, 32), BitVecVal(shift, 8))


def kvmclock(m, *row):
    return number(m.kvmclock_ns(record_of(*row[:4]), u64(row[4]))) == row[5]


def not_ahead(m, *row):
    some, moved = m.not_ahead_of(record_of(*row[:4]), u64(row[4]))
    result = (number(moved.tsc_timestamp), number(moved.system_time)) if number(some) else None
    return result == row[5]


def transform(m, ratio, frac_bits, host, guest, offset, other, guest_at_other):
    scale = Scale(u64(ratio), BitVecVal(frac_bits, 32))
    through = m.through(scale, u64(host), u64(guest))
    return (number(through), number(m.guest_tsc(scale, through, u64(other)))) == (offset, guest_at_other)


def ticks(m, khz, ratio, frac_bits, ns, expected):
    factor = ratio or 1
    some, value = m.ticks(IntVal(khz), IntVal(factor), frac_bits, IntVal(ns))
    # The same by digits, as wide.rs does it.
    digits = m.mul_192(BitVecVal(ns * khz * 1000, 128), u64(factor))
    shifted = m.shr(digits, frac_bits)
    quotient, _ = m.div([IntVal(number(digit)) for digit in shifted], IntVal(NSEC_PER_SEC))
    low, high, *rest = map(number, quotient)
    by_digits = None if any(rest) else high << 32 | low
    return option(some, value) == expected == by_digits


def factor_of(m, hz):
    """Factor::of_hz: (mul, shift), or None"""
    if hz == 0:
        return None
    # Term by term, so that no loop's terms grow.
    scaled, ticks, shift, ended = map(z3.simplify, m.of_hz_loops(u64(hz)))
    assert number(ended)
    return number(m.of_hz_mul(IntVal(number(scaled)), IntVal(number(ticks)))), shift.as_signed_long()


def factor(m, hz, expected, implied):
    found = factor_of(m, hz)
    return found == expected and (found is None or implies(m, *found, implied))


def implies(m, mul, shift, expected):
    if mul == 0:
        return expected is None
    return option(*m.factor_khz(IntVal(mul), shift)) == expected


def close(m, mul, shift, hz, ppm, expected):
    return number(m.is_close_to(IntVal(mul), shift, IntVal(hz), IntVal(ppm))) == expected


def factors_of(m, khz, ratio, frac_bits):
    """Of a rate: (Hz, KVM's own factor, that of the rate in Hz)."""
    hz = number(m.rate_hz(IntVal(khz), IntVal(ratio or 1), frac_bits))
    some, own_hz = m.own_hz(m.rate_khz(IntVal(khz), IntVal(ratio or 1), frac_bits))
    return hz, factor_of(m, number(own_hz)) if number(some) else None, factor_of(m, hz)


def rate(m, khz, ratio, frac_bits, expected_hz, expected_factor):
    hz, own, _ = factors_of(m, khz, ratio, frac_bits)
    return (hz, own) == (expected_hz, expected_factor)


def accepted(m, khz, ratio, frac_bits, factor, ppm, expected):
    hz, own, _ = factors_of(m, khz, ratio, frac_bits)
    is_close = m.is_close_to(IntVal(factor[0]), factor[1], IntVal(hz), IntVal(ppm))
    return number(m.accepts(z3.BoolVal(own == factor), is_close)) == expected


def reslope(m, mode, khz_there, khz_here, ratio, frac_bits, factor, guest_tsc, kvmclock_ns, elapsed, expected):
    """By the parts of the plan."""

    def bits(factor):
        mul, shift = factor or (0, 0)
        return z3.BoolVal(factor is not None), Factor(BitVecVal(mul, 32), BitVecVal(shift, 8))

    _, own, exact = factors_of(m, khz_here, ratio, frac_bits)
    asked, unused = z3.BoolVal(True), z3.BoolVal(False)
    is_ok, is_resloped, other = m.other_factor(asked, bits(factor)[1], bits(own), bits(exact), unused)
    if not number(is_ok):
        return expected is None
    elapsed = elapsed if mode == reference.ADVANCE else 0
    some, count = m.ticks(IntVal(khz_there), IntVal(ratio or 1), frac_bits, IntVal(abs(elapsed)))
    tsc = z3.simplify(u64(guest_tsc) + m.signed_ticks(IntVal(elapsed), u64(number(count))))
    record = record_of(guest_tsc, kvmclock_ns, *factor)
    if number(is_resloped):
        record = m.resloped(record, tsc, u64(kvmclock_ns), u64(elapsed), *other)
    else:
        has_room, record = m.not_ahead_of(record, tsc)
        some = z3.And(some, has_room)
    shift = z3.simplify(record.shift).as_signed_long()
    return number(some) and (*map(number, record[:3]), shift) == expected


def advance(m, saved, saved_offset, now, now_offset, khz, ratio, frac_bits, expected):
    elapsed = m.elapsed_ns(IntVal(saved), IntVal(saved_offset), IntVal(now), IntVal(now_offset))
    ns = abs(number(elapsed))
    count = option(*m.ticks(IntVal(khz), IntVal(ratio or 1), frac_bits, IntVal(ns))) if ns < 2**64 else None
    return expected == (None if count is None or count >= 2**63 else number(m.signed_ticks(elapsed, u64(count))))


def precision(m, read_window, khz, expected):
    return number(m.precision_ns(IntVal(read_window), IntVal(khz))) == expected


EVALUATORS = {
    "KVMCLOCK": kvmclock, "NOT_AHEAD": not_ahead, "TRANSFORM": transform, "TICKS": ticks, "FACTOR": factor,
    "IMPLIED": implies, "CLOSE": close, "ADVANCE": advance, "RATE": rate, "ACCEPTED": accepted, "RESLOPE": reslope,
    "PRECISION": precision,
}


def models_agree_with_vectors(model=Source):
    """Every model gives the results of the vectors, and meets its obligations there."""
    count = 0
    for name, rows in vectors.generate().items():
        for row in rows:
            m = model(full_product)
            if not EVALUATORS[name](m, *row):
                return False, f"{name}: the model differs at {row}"
            if not all(number(z3.simplify(must)) for must in m.obligations):
                return False, f"{name}: an operation overflows at {row}"
            count += 1
    return True, f"{count} rows"


CHECKS = [vectors_are_checked_in, models_agree_with_vectors]

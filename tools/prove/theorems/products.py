# SPDX-License-Identifier: GPL-2.0-only
"""Facts about products that the other proofs use without looking inside a multiplication."""

import z3
from z3 import And, BitVecVal, Extract, Implies, LShR, Or, ULE, ZeroExt

from engine import Break, theorem


def trailing_zeros_at_least(value, bits):
    return Extract(bits - 1, 0, value) == 0 if bits else z3.BoolVal(True)


@theorem(
    source="record.rs:kvmclock_ns, wide.rs:mul_mul_shr_div",
    inputs="all factors of 64 x 32 bits and of 64 x 64 bits, as integers",
    breaks=[Break("95 bits would do", parameters={"bits": 95})],
)
def product_fits(p, bits=96):
    """A product of 64 x 32 bits needs no more than 96 bits, of 64 x 64 bits no more than 128: nothing is lost."""
    a = p.whole("a", 0, 2**64 - 1)
    m = p.whole("m", 0, 2**32 - 1)
    f = p.whole("f", 0, 2**64 - 1)
    p.claim(a * m < 2**bits, label="64 x 32")
    p.claim(a * f < 2**128, label="64 x 64")
    # Room for the carry of wide.rs:mul_192.
    p.claim(a * f + 2**64 - 1 < 2**128, label="64 x 64 and a carry")


@theorem(
    source="record.rs:kvmclock_ns",
    inputs="all sums of 64 bits and factors of 32, as bit vectors of 96 bits",
    breaks=[Break("the sum may wrap", where={"a": 2**63, "b": 2**63, "m": 1}, parameters={"wraps": True})],
)
def product_distributes(p, wraps=False):
    """(a + b) * m is a * m + b * m in 96 bits, provided that a + b does not wrap in its 64 bits."""
    a, b, m = p.bits("a", 64), p.bits("b", 64), p.bits("m", 32)
    fits = [] if wraps else [z3.BVAddNoOverflow(a, b, False)]
    p.claim(ZeroExt(32, a + b) == ZeroExt(32, a) + ZeroExt(32, b), given=fits, label="the sum widens")
    # With that, a ring's distributive law.
    x, y, w = p.bits("x", 96), p.bits("y", 96), p.bits("w", 96)
    p.claim((x + y) * w == x * w + y * w, label="96-bit factors distribute")


@theorem(
    source="record.rs:exact_step_log2",
    inputs="all factors of 64 x 32 bits, by their trailing zeros",
    breaks=[Break("31 zeros would do", where={"b": 2**31, "m": 1}, parameters={"zeros": 31})],
)
def product_has_zeros(p, zeros=32):
    """If b has (32 - trailing zeros of m) trailing zeros, then b * m has 32: ns without a fraction."""
    b, m = p.bits("b", 64), p.bits("m", 32)
    for t in range(32):
        given = [trailing_zeros_at_least(m, t), trailing_zeros_at_least(b, max(zeros - t, 0))]
        low = Extract(31, 0, b) * m
        p.claim(low == 0, given=given, label=f"{t} zeros in m")


@theorem(
    source="wide.rs:mul_192",
    inputs="all factors of 128 x 64 bits",
    breaks=[Break("halves of 63 bits", where={"low": 1, "high": 1, "f": 1}, parameters={"half": 63})],
)
def product_splits(p, half=64):
    """A 128-bit factor's product is its halves' products, shifted into place."""
    low, high, f = p.bits("low", 192), p.bits("high", 192), p.bits("f", 192)
    p.claim((low + high * 2**64) * f == low * f + high * f * 2**half)
    # And no wider than 192 bits.
    wide, factor = p.whole("wide", 0, 2**128 - 1), p.whole("factor", 0, 2**64 - 1)
    p.claim(wide * factor < 2**192)


@theorem(
    source="record.rs:kvmclock_ns",
    inputs="all ticks a <= b and multipliers, as integers",
    breaks=[Break("b may be one less than a", parameters={"slack": 1})],
)
def product_is_monotonic(p, slack=0):
    """More ticks are no fewer ns: floor(a * m / 2^32) <= floor(b * m / 2^32) if a <= b."""
    a, b, m = p.whole("a", 0, 2**64 - 1), p.whole("b", 0, 2**64 - 1), p.whole("m", 0, 2**32 - 1)
    p.given(a <= b + slack)
    p.claim(a * m / 2**32 <= b * m / 2**32)


def distributes(p, total, a, b, m):
    """Instance of `product_distributes`."""
    premise = And(z3.BVAddNoOverflow(a, b, False), total == a + b)
    return Implies(premise, p.mul(total, m) == p.mul(a, m) + p.mul(b, m))


def has_zeros(p, b, m, trailing_zeros_of_m):
    """Instance of `product_has_zeros`."""
    needed = BitVecVal(32, 64) - ZeroExt(32, trailing_zeros_of_m)
    mask = (BitVecVal(1, 64) << needed) - 1
    premise = Or(ULE(32, trailing_zeros_of_m), b & mask == 0)
    return Implies(premise, Extract(31, 0, p.mul(b, m)) == 0)


def bounded(p, a, b):
    """Instance of `product_fits`: the largest product of full width leaves room for a carry."""
    largest = (2 ** a.size() - 1) * (2 ** b.size() - 1)
    return ULE(p.mul(a, b), BitVecVal(largest, a.size() + b.size()))


def monotonic(p, a, b, m):
    """Instance of `product_is_monotonic`."""
    return Implies(ULE(a, b), ULE(LShR(p.mul(a, m), 32), LShR(p.mul(b, m), 32)))

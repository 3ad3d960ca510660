# SPDX-License-Identifier: GPL-2.0-only
"""Guest TSC as a function of host TSC: rust/pvclock/tsc.rs."""

import z3
from z3 import ULT, And, BitVecVal, Extract, LShR, Not, ZeroExt

from engine import Break, theorem
from models import Scale, Source


def any_scale(p, name="scale"):
    scale = Scale(p.bits(f"{name}.ratio", 64), p.bits(f"{name}.frac_bits", 32))
    p.given(p.model.is_scale(scale))
    return scale


class AddsApply(Source):
    def through(self, scale, host_tsc, guest_tsc):
        return guest_tsc + self.apply(scale, host_tsc)


class IgnoresRatio(Source):
    def through(self, scale, host_tsc, guest_tsc):
        return guest_tsc - host_tsc


@theorem(
    source="tsc.rs:TscTransform::through, TscTransform::guest_tsc",
    inputs="every ratio, fraction width 1..=63 or no scaling, host TSC and guest TSC",
    breaks=[Break("the offset is added", AddsApply), Break("the ratio is ignored", IgnoresRatio)],
)
def through_meets_the_anchor(p):
    """The transform through an anchor has exactly the asked guest TSC there."""
    m = p.model
    scale, host_tsc, guest_tsc = any_scale(p), p.bits("host_tsc", 64), p.bits("guest_tsc", 64)
    offset = m.through(scale, host_tsc, guest_tsc)
    p.claim(m.guest_tsc(scale, offset, host_tsc) == guest_tsc)
    p.claim_no_overflow()


@theorem(
    source="tsc.rs:TscTransform, plan.rs:plan",
    inputs="every scale, host TSC, shift and pair of offsets",
    breaks=[Break("the second vCPU is shifted by one more", parameters={"more": 1})],
)
def equal_shifts_keep_differences(p, more=0):
    """Offsets that are shifted by the same keep the vCPUs' difference, at every host TSC, mod 2^64."""
    m = p.model
    scale, host_tsc, shift = any_scale(p), p.bits("host_tsc", 64), p.bits("shift", 64)
    one, two = p.bits("one", 64), p.bits("two", 64)
    before = m.guest_tsc(scale, two, host_tsc) - m.guest_tsc(scale, one, host_tsc)
    after = m.guest_tsc(scale, two + shift + more, host_tsc) - m.guest_tsc(scale, one + shift, host_tsc)
    p.claim(after == before)
    p.claim(after == two - one)


class IdentityIsHalf(Source):
    def is_identity(self, scale):
        return scale.ratio == BitVecVal(1, 64) << ZeroExt(32, scale.frac_bits - 1)


@theorem(
    source="tsc.rs:Scale::apply, Scale::is_identity",
    inputs="every fraction width and host TSC",
    breaks=[Break("a ratio of one half counts as identity", IdentityIsHalf, {"ticks": 1})],
)
def identity_is_no_exception(p):
    """A ratio of 1.0 needs no multiplication: the formula would give the same ticks."""
    m, ticks = p.model, p.bits("ticks", 64)
    for frac in range(1, 64):
        scale = Scale(p.bits("ratio", 64), BitVecVal(frac, 32))
        is_identity = [m.is_identity(scale), scale.ratio != 0]
        # With that ratio, the true product by a power of 2:
        formula = Extract(63, 0, LShR(ZeroExt(64, ticks) * BitVecVal(1 << frac, 128), frac))
        p.claim(And(scale.ratio == 1 << frac, formula == ticks), given=is_identity, label=f"{frac} fraction bits")


class ComparesUnsigned(Source):
    def is_ahead(self, a, b):
        return z3.UGT(a, b)


@theorem(
    source="counter.rs:is_ahead_of",
    inputs="all TSC values; transitivity for those within half the ring",
    breaks=[
        Break("compared as plain integers", ComparesUnsigned),
        Break("all of the ring counts", parameters={"half": 2**64 - 1}),
    ],
)
def ahead_is_an_order(p, half=2**63):
    """is_ahead_of is a strict total order of TSC values within half the ring, and does not depend on where 0 is."""
    ahead = p.model.is_ahead
    a, b, c, shift = (p.bits(name, 64) for name in ("a", "b", "c", "shift"))
    p.claim(Not(ahead(a, a)), label="irreflexive")
    p.claim(Not(And(ahead(a, b), ahead(b, a))), label="asymmetric")
    p.claim(z3.Or(a == b, a - b == 2**63, ahead(a, b), ahead(b, a)), label="total")
    p.claim(ahead(a + shift, b + shift) == ahead(a, b), label="translates")
    p.claim(ahead(a + 1, a), label="a tick later is ahead")
    within = [ULT(a - c, half), ahead(a, b), ahead(b, c)]
    p.claim(ahead(a, c), given=within, label="transitive")


@theorem(
    source="tsc.rs:Scale::apply",
    inputs="fraction widths 32 and 48 (SVM, VMX), every ratio and host TSC, as integers: before mod 2^64",
    breaks=[Break("ratios below 1 too", where={"h": 0, "ratio": 1}, parameters={"least": 0})],
)
def scaling_up_is_injective(p, least=1):
    """With a ratio of at least 1, two host TSCs never share a guest TSC; but mod 2^64 they can, and values are
    missed."""
    h, k, ratio = p.whole("h", 0, 2**64 - 1), p.whole("k", 0, 2**64 - 1), p.whole("ratio", 1, 2**64 - 1)
    for frac in (32, 48):
        given = [ratio >= least * 2**frac, h < k]
        p.claim(h * ratio / 2**frac < k * ratio / 2**frac, given=given, label=f"{frac} fraction bits")
    if p.attack:
        return
    # Why nothing in the module inverts the scaling: with 1.5 no host TSC gives a guest TSC of 2 ...
    p.claim(h * 3 / 2 != 2, label="1.5 is not surjective")
    # ... and mod 2^64 two host TSCs give the same one.
    witness = (2**65 + 2) // 3
    p.claim(z3.BoolVal(0 < witness < 2**64 and witness * 3 // 2 % 2**64 == 0), label="1.5 is not injective mod 2^64")


@theorem(
    source="tsc.rs:Scale::apply",
    inputs="fraction widths 32 and 48, every ratio up to 1 and guest TSC, as integers",
    breaks=[Break("rounded down", where={"g": 1, "ratio": 3}, parameters={"round_up": 0})],
)
def scaling_down_has_an_inverse(p, round_up=1):
    """With a ratio of at most 1 every guest TSC g is reached, first at host TSC ceil(g * 2^frac / ratio)."""
    g, ratio = p.whole("g", 0, 2**64 - 1), p.whole("ratio", 1, 2**48)
    for frac in (32, 48):
        one = 2**frac
        h = (g * one + round_up * (ratio - 1)) / ratio
        p.claim(h * ratio / one == g, given=[ratio <= one], label=f"{frac} fraction bits")
        p.claim((h - 1) * ratio / one < g, given=[ratio <= one], label=f"{frac} fraction bits, first")

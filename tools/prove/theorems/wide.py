# SPDX-License-Identifier: GPL-2.0-only
"""Products of 192 bits and their quotients: rust/pvclock/wide.rs."""

import z3
from z3 import And, BitVecVal, Concat, Extract, Int, IntVal, LShR, ZeroExt

from engine import Break, theorem
from models import BASE, DIGITS, Source

from .products import bounded


def number(digits):
    """The number that bit-vector digits, lowest first, spell."""
    return Concat(*reversed(digits))


def number_int(digits):
    return sum(digit * BASE**index for index, digit in enumerate(digits))


class DropsCarry(Source):
    def mul_192(self, wide, factor):
        digits = super().mul_192(wide, factor)
        high = self.mul(Extract(127, 64, wide), factor)
        return digits[:2] + [Extract(bit + 31, bit, high) for bit in range(0, 128, 32)]


@theorem(
    source="wide.rs:mul_192",
    inputs="every 128-bit and 64-bit factor; the two inner products by their bound and product_splits",
    breaks=[Break("the carry is dropped", DropsCarry, {"wide": 2**64 - 1, "factor": 2**64 - 1})],
)
def digits_are_the_product(p):
    """mul_192's digits spell the product of 192 bits, and no sum overflows on the way."""
    m, wide, factor = p.model, p.bits("wide", 128), p.bits("factor", 64)
    low, high = Extract(63, 0, wide), Extract(127, 64, wide)
    exact = p.mul(wide, factor)
    split = exact == ZeroExt(64, p.mul(low, factor)) + (ZeroExt(64, p.mul(high, factor)) << 64)
    digits = m.mul_192(wide, factor)
    p.claim_no_overflow(facts=[bounded(p, high, factor)])
    p.claim(number(digits) == exact, facts=[split, bounded(p, high, factor)])


class LosesCarry(Source):
    """checked_shl(32) taken for a shift by 0, as CPUs have it."""

    def low_mask(self, bits):
        return BitVecVal((1 << bits % 32) - 1, 32)


@theorem(
    source="wide.rs:shr, low_mask",
    inputs="all 192-bit numbers, by every shift in 0..64",
    breaks=[Break("a mask of 32 bits is empty", LosesCarry)],
)
def digits_shift_right(p):
    """shr is the shift of the whole number, for steps of 32 bits too, and no digit is cut off."""
    m = p.model
    digits = [p.bits(f"digit{index}", 32) for index in range(DIGITS)]
    for shift in range(64):
        shifted = m.shr(digits, shift)
        p.claim(number(shifted) == LShR(number(digits), shift), label=f"shift {shift}")
        p.claim_no_overflow()


class RestIsLost(Source):
    def div_step(self, rest, digit, divisor):
        quotient, rest = super().div_step(rest, digit, divisor)
        return quotient, rest * 0


class DividesByOneMore(Source):
    def div_step(self, rest, digit, divisor):
        return super().div_step(rest, digit, divisor + 1)


@theorem(
    source="wide.rs:div",
    inputs="every digit, every rest below the divisor, every divisor but 0, as integers",
    breaks=[Break("divisor + 1", DividesByOneMore, {"divisor": 3})],
)
def division_step_is_exact(p):
    """One turn of div: the digit and the new rest fit, and are quotient and remainder; so the rest stays below the
    divisor for all turns."""
    m = p.model
    digit, divisor, rest = p.whole("digit", 0, BASE - 1), p.whole("divisor", 1, BASE - 1), p.whole("rest", 0, BASE - 1)
    p.given(rest < divisor)
    quotient, new_rest = m.div_step(rest, digit, divisor)
    p.claim_no_overflow()
    p.claim(And(0 <= new_rest, new_rest < divisor), label="rest")
    p.claim(quotient * divisor + new_rest == rest * BASE + digit, label="exact")


@theorem(
    source="wide.rs:div",
    inputs="all 192-bit numbers, every divisor but 0, as integers; each turn by division_step_is_exact",
    breaks=[
        Break("the rest is lost", RestIsLost, {"divisor": 3, "digit5": 1, "digit4": 0}),
        Break("divisor + 1", DividesByOneMore, {"divisor": 3, "digit5": 4}),
    ],
)
def digits_divide(p):
    """div's digits spell the floor of the exact quotient."""
    m, divisor = p.model, p.whole("divisor", 1, BASE - 1)
    digits = [p.whole(f"digit{index}", 0, BASE - 1) for index in range(DIGITS)]
    if p.attack:
        quotients, rest = m.div(digits, divisor)
    else:
        quotients, rest = [None] * DIGITS, IntVal(0)
        for index in reversed(range(DIGITS)):
            quotient, new_rest = Int(f"quotient{index}"), Int(f"rest{index}")
            p.given(quotient * divisor + new_rest == rest * BASE + digits[index], 0 <= new_rest, new_rest < divisor)
            quotients[index], rest = quotient, new_rest
    # 0 <= rest < divisor: the only such quotient is the floor.
    p.claim(And(number_int(quotients) * divisor + rest == number_int(digits), 0 <= rest, rest < divisor))


@theorem(
    source="wide.rs:mul_mul_shr_div",
    inputs="all numbers below 2^192, every divisor but 0, each shift in 0..64, as integers",
    breaks=[Break("rounded up after the shift", where={"value": 1, "divisor": 1}, parameters={"round_up": 1})],
)
def two_floors_are_one(p, round_up=0):
    """floor(floor(x / 2^s) / d) is floor(x / (2^s * d)): shifting first loses nothing. The result is less than 1 below
    the exact quotient."""
    value, divisor = p.whole("value", 0, 2**192 - 1), p.whole("divisor", 1, BASE - 1)
    for shift in range(64):
        one = 2**shift
        shifted = (value + round_up * (one - 1)) / one
        p.claim(shifted / divisor == value / (one * divisor), label=f"shift {shift}")
        rest = value - (value / (one * divisor)) * (one * divisor)
        p.claim(And(0 <= rest, rest < one * divisor), label=f"less than 1, shift {shift}")


@theorem(
    source="wide.rs:mul_mul_shr_div",
    inputs="all digits of a quotient",
    breaks=[Break("the fourth digit is not looked at", parameters={"zeros": (2, 4, 5)})],
)
def some_is_what_fits(p, zeros=(2, 3, 4, 5)):
    """The digits match [lo, hi, 0, 0, 0, 0] exactly if the quotient is below 2^64, and then hi and lo are it."""
    digits = [p.bits(f"digit{index}", 32) for index in range(DIGITS)]
    quotient = number(digits)
    some = And(*(digits[index] == 0 for index in zeros))
    p.claim(some == z3.ULT(quotient, BitVecVal(2**64, 192)))
    value = (ZeroExt(32, digits[1]) << 32) | ZeroExt(32, digits[0])
    p.claim(ZeroExt(128, value) == quotient, given=[some])

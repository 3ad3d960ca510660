#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-only
"""Inputs with the results that rust/pvclock must give, for its host tests and its KUnit tests.

The results come from Python's integers (reference.py). `tools/prove/vectors.py --write` writes the Rust file;
`make prove` fails if what is checked in is something else, and evaluates the z3 models on the same rows.
"""

import pathlib
import random
import sys
import textwrap
from fractions import Fraction
from math import floor

sys.dont_write_bytecode = True

import reference  # noqa: E402

FILE = pathlib.Path(__file__).resolve().parents[2] / "rust/pvclock/tests/vectors/rows.rs"
SEED = 0x6B766D636C6F636B

MAX = 2**64 - 1
TSC = 77_000_000_000_123  # Some hours at 2.6 GHz.
WEEK_NS = 7 * 24 * 3600 * 10**9
TAI = 1_795_000_000 * 10**9
KHZ = 2_596_100
HALF, ONE, ONE_AND_A_HALF = 1 << 31, 1 << 32, 0x1_8000_0000  # SVM's ratios have 32 fraction bits, VMX's 48.
SCALES = [(0, 0), (ONE, 32), (ONE_AND_A_HALF, 32), (HALF, 32), (0x9_4D65, 32), (1 << 48, 48), (3 << 47, 48),
          (0x94CF_7F5F_0B71, 48), (MAX, 32), (MAX, 63), (1, 1), (1, 63)]
# A rate that is 0.666 kHz above whole kHz, so that KVM's own factor is not that of the rate in Hz.
ABOVE_WHOLE_KHZ = 3 * ONE // 4 + 286, 32
MULS = [1, 3, 1 << 31, (1 << 32) - 1, 3_308_699_862, 0xC530_0000]
SHIFTS = [-31, -2, -1, 0, 1, 4, 31]


class Numbers(random.Random):
    """Random numbers of all magnitudes."""

    def bits(self, width):
        return self.getrandbits(width) >> self.randrange(width)


def records(numbers):
    """(tsc_timestamp, system_time, mul, shift)"""
    rows = [(TSC, 12_345_678_901, mul, shift) for mul in MULS for shift in SHIFTS]
    rows += [(MAX - 5, MAX - 7, 3_308_699_862, -1), (0, 0, 1, 0), (1 << 63, 1 << 63, 1 << 31, 1)]
    rows += [(numbers.bits(64), numbers.bits(64), numbers.bits(32) or 1, numbers.randrange(-31, 32)) for _ in range(20)]
    return rows


def kvmclock_rows(numbers):
    rows = []
    for index, record in enumerate(records(numbers)):
        for ticks in (0, (1, 10, MAX)[index % 3], numbers.bits(64)):
            guest_tsc = (record[0] + ticks) % 2**64
            rows.append((*record, guest_tsc, reference.kvmclock_ns(*record, guest_tsc)))
    # No record that SET takes, but defined all the same.
    for shift in (-128, -64, -63, 63, 64, 127):
        record = (TSC, 5, (1 << 32) - 1, shift)
        rows.append((*record, TSC + MAX // 3 & MAX, reference.kvmclock_ns(*record, TSC + MAX // 3 & MAX)))
    return rows


def not_ahead_rows(numbers):
    rows = []
    for index, record in enumerate(records(numbers)):
        for ahead in ((0, 1, -1)[index % 3], (2**63 - 1, 2**63, 2**31)[index % 3], numbers.bits(40)):
            guest_tsc = (record[0] - ahead) % 2**64
            moved = reference.not_ahead_of(*record, guest_tsc)
            rows.append((*record, guest_tsc, moved))
    return rows


def transform_rows(numbers):
    """ratio, frac_bits, host_tsc, guest_tsc there, the offset; another host TSC, and the guest TSC there"""
    rows = []
    for ratio, frac_bits in SCALES:
        for host in (0, TSC, MAX, numbers.bits(64)):
            guest, other = numbers.bits(64), (host + numbers.bits(50)) % 2**64
            offset = (guest - reference.scaled(ratio, frac_bits, host)) % 2**64
            rows.append((ratio, frac_bits, host, guest, offset, other,
                         (reference.scaled(ratio, frac_bits, other) + offset) % 2**64))
    return rows


def ticks_rows(numbers):
    rows = []
    for ratio, frac_bits in SCALES:
        for khz, ns in ((KHZ, 0), (KHZ, 1), (KHZ, 10**9), (KHZ, WEEK_NS), (2**32 - 1, MAX), (1, 999_999),
                        (numbers.bits(32), numbers.bits(64))):
            rows.append((khz, ratio, frac_bits, ns, reference.ticks(khz, ratio, frac_bits, ns)))
    return rows


def factor_rows(numbers):
    """Hz, their factor, and the rate in kHz that this implies"""
    rates = [khz * 1000 for khz in (1, 2, 999, 1_000_000, 1_000_001, 1_999_999, 2_000_000, 2_000_001, KHZ, 4_000_000, 4_294_967,
                                    4_294_968, 16_000_000, 16_000_001, 2**32 - 1, 2**42, MAX // 1000)]
    rates += [0, 1, 2, 999, 1001, 10**9 - 1, 10**9 + 1, 2_000_000_001, 2_000_000_002, 2_596_100_999, 2**32, MAX - 1, MAX]
    # Where the first loop halves once too often.
    rates += [2_000_000_001 << shift for shift in (1, 2, 20, 33)]
    rates += [numbers.bits(32) * 1000 for _ in range(4)] + [numbers.bits(64) for _ in range(4)]
    rows = []
    for hz in rates:
        factor = reference.factor_of_hz(hz)
        rows.append((hz, factor, factor and reference.khz_of_factor(*factor)))
    return rows


def implied_rows(numbers):
    """mul, shift, kHz"""
    pairs = [(mul, shift) for mul in [0, *MULS] for shift in SHIFTS]
    return [(mul, shift, reference.khz_of_factor(mul, shift)) for mul, shift in pairs]


def close_rows(numbers):
    """mul, shift, Hz, ppm, whether the factor is that close: a Hz around each edge of the tolerance too"""
    rows = []
    for mul in (0, 1 << 31, (1 << 32) - 1, 3_308_699_862):
        for shift in (-31, -1, 0, 31):
            for ppm in (0, 250, 2**32 - 1):
                exact = reference.hz_of_factor(mul or 1, shift)
                edges = [exact * 10**6 / (10**6 + off) for off in sorted({ppm, -ppm}) if off > -(10**6)]
                for edge in edges:
                    for hz in (floor(edge), floor(edge) + 1):
                        if hz <= MAX:
                            rows.append((mul, shift, hz, ppm, reference.is_close(mul, shift, hz, ppm)))
    rows += [(mul, shift, hz, 2**32 - 1, reference.is_close(mul, shift, hz, 2**32 - 1))
             for mul, shift, hz in ((2**32 - 1, 31, MAX), (2**32 - 1, -31, MAX), (1, -31, 0), (2**32 - 1, 0, 0))]
    return rows


def rate_rows(numbers):
    """kHz, ratio, frac_bits; Hz, and the factor that KVM gives a guest of this rate"""
    rates = [(khz, *scale) for scale in [*SCALES, ABOVE_WHOLE_KHZ] for khz in (1, KHZ, 2**32 - 1, numbers.bits(32))]
    rates += [(numbers.bits(32), numbers.bits(64) or 1, numbers.randrange(1, 64)) for _ in range(8)]
    return [(*rate, reference.whole_hz(*rate), reference.own_factor(*rate)) for rate in rates]


def accepted_rows(numbers):
    """kHz, ratio, frac_bits; mul and shift, ppm, whether that record is for that TSC"""
    rows = []
    for scale in ((0, 0), (ONE, 32), (3 << 47, 48), ABOVE_WHOLE_KHZ, (1, 32), (MAX, 1)):
        hz = reference.whole_hz(KHZ, *scale) or 1
        exact = reference.factor_of_hz(hz)
        own = reference.own_factor(KHZ, *scale) or exact
        for ppm in (0, 250):
            # The last mul on one side of each edge of the tolerance, and the first on the other.
            shifted = hz * Fraction(2) ** exact[1]
            edges = [floor(2**32 * 10**9 / (shifted * (1 + Fraction(off, 10**6)))) for off in (ppm, -ppm)]
            muls = [(edge + more, exact[1]) for edge in edges for more in (0, 1) if edge + more < 2**32]
            rows += [(KHZ, *scale, factor, ppm) for factor in dict.fromkeys([own, exact, *muls])]
    return [(*row, reference.accepts(*row)) for row in rows]


def reslope_rows(numbers):
    """mode, kHz there and here, ratio, frac_bits, the saved factor, guest TSC and kvmclock at the anchor, TAI elapsed; the
    record"""
    rates = [(khz, (0, 0)) for khz in (KHZ, KHZ * 2 // 3, KHZ + 1, 1, 2**32 - 1)]
    rates += [(KHZ, ABOVE_WHOLE_KHZ), (KHZ - 1, ABOVE_WHOLE_KHZ), (KHZ, (3 << 47, 48)), (KHZ + 7, (0x9_4D65, 32)),
              (2**32 - 1, (MAX, 32)), (2_600_000, (0x94CF_7F5F_0B71, 48))]
    there = reference.factor_of_hz(KHZ * 1000)
    other = there[0] * 3 // 4, there[1] + 1  # 3/2 of that rate, as KVM would write it.
    rows = []
    for mode in (reference.EXACT, reference.ADVANCE, reference.FREEZE):
        for here, scale in rates:
            own = reference.own_factor(here, *scale) or there
            exact = reference.factor_of_hz(reference.whole_hz(here, *scale))
            for factor in dict.fromkeys((there, other, (1 << 31, 0), (1 << 31, 31), own, exact)):
                ns = numbers.choice((0, 1, -1, 10**9, -(10**9), WEEK_NS, -WEEK_NS, numbers.bits(60)))
                # A record that is not for the TSC here can go back however far; the other has room for some days.
                guest, kvmclock = numbers.choice((5, 10**15, MAX - 5)), numbers.choice((0, 10**15, MAX))
                if factor in (own, exact) and factor[1] > 0:
                    ns = abs(ns)
                # No row takes 2^62 ticks.
                ns = min(ns, 2**62 * 10**9 // reference.whole_hz(KHZ, *scale))
                if -31 <= factor[1] <= 31:
                    rows.append((mode, KHZ, here, *scale, factor, guest, kvmclock, ns))
    return [(*row, reference.resloped(*row)) for row in rows]


def advance_rows(numbers):
    """TAI and TAI - UTC saved and now; kHz, ratio, frac_bits; the guest ticks that advance adds"""
    rows = []
    # 110 and 115 years at 2.6 GHz are below and above 2^63 ticks.
    elapsed = [0, 1, -1, 10**9, -(10**9), 3 * WEEK_NS, -3 * WEEK_NS, 52 * WEEK_NS, 110 * 52 * WEEK_NS, -115 * 52 * WEEK_NS]
    for index, (ratio, frac_bits) in enumerate(SCALES[:-4]):
        for ns in elapsed:
            saved_offset, now_offset = ((37, 37), (0, 0), (37, 38), (0, 1), (9, 10))[index % 5]
            rows.append((TAI, saved_offset, TAI + ns, now_offset, KHZ, ratio, frac_bits))
        rows.append((TAI, 37, TAI + numbers.bits(60), index % 2, numbers.randrange(10**5, 2**32), ratio, frac_bits))
        rows.append((TAI, 0, TAI - numbers.bits(60), 37, numbers.randrange(10**5, 2**32), ratio, frac_bits))
    least, most = -(2**63), 2**63 - 1
    rows += [(least, 37, most, 37, 1, 0, 0), (most, 37, least, 37, 1, 0, 0), (least, 37, most, 37, KHZ, 0, 0),
             (least, 2**31 - 1, most, 0, 1, 0, 0), (most, -(2**31), least, 0, 1, 0, 0),
             (least, 0, most, -(2**31), 1, 0, 0)]
    return [(*row, reference.advance_ticks(*row)) for row in rows]


def precision_rows(numbers):
    windows = [0, 1, 2, 3, 100, KHZ, 2**45, 2**46, MAX - 1, MAX] + [numbers.bits(64) for _ in range(6)]
    rates = [1, 1_000_000, KHZ, 2**32 - 1, 0]
    return [(read_window, khz, reference.precision_ns(read_window, khz)) for read_window in windows for khz in rates]


# name, types of the fields, what the fields are, and the generator
TABLES = [
    ("KVMCLOCK", "u64 u64 u32 i8 u64 u64",
     "`tsc_timestamp`, `system_time`, `mul`, `shift`; guest TSC, ns.", kvmclock_rows),
    ("NOT_AHEAD", "u64 u64 u32 i8 u64 Option<(u64,u64)>",
     "`tsc_timestamp`, `system_time`, `mul`, `shift`; guest TSC; the first two of the moved record.", not_ahead_rows),
    ("TRANSFORM", "u64 u32 u64 u64 u64 u64 u64",
     "Ratio, fraction bits; host TSC, guest TSC, the offset for these; another host TSC, guest TSC there.",
     transform_rows),
    ("TICKS", "u32 u64 u32 u64 Option<u64>", "kHz, ratio, fraction bits, ns; guest ticks.", ticks_rows),
    ("FACTOR", "u64 Option<(u32,i8)> Option<u64>",
     "Hz; `mul` and `shift`; the kHz that these imply.", factor_rows),
    ("IMPLIED", "u32 i8 Option<u64>", "`mul`, `shift`; the kHz that these imply.", implied_rows),
    ("CLOSE", "u32 i8 u64 u32 bool", "`mul`, `shift`; Hz, ppm; whether the rate that they imply is that close.",
     close_rows),
    ("ADVANCE", "i64 i32 i64 i32 u32 u64 u32 Option<u64>",
     "Saved TAI (ns) and TAI - UTC (s), the same now; kHz, ratio, fraction bits; guest ticks to add.", advance_rows),
    ("RATE", "u32 u64 u32 u64 Option<(u32,i8)>",
     "kHz, ratio, fraction bits; Hz; `mul` and `shift` that KVM gives a guest of this rate.", rate_rows),
    ("ACCEPTED", "u32 u64 u32 (u32,i8) u32 bool",
     "kHz, ratio, fraction bits; `mul` and `shift`, ppm; whether that record is for that TSC.", accepted_rows),
    ("RESLOPE", "u32 u32 u32 u64 u32 (u32,i8) u64 u64 i64 Option<(u64,u64,u32,i8)>",
     "Mode, kHz saved and here, ratio and fraction bits of both; `mul` and `shift`, guest TSC and kvmclock (ns) at the "
     "anchor, TAI elapsed (ns); `tsc_timestamp`, `system_time`, `mul` and `shift` with the slope of the TSC here.", reslope_rows),
    ("PRECISION", "u64 u32 u32", "Read window (ticks), kHz; ns.", precision_rows),
]


def generate():
    """All rows, by table; the same ones in every run."""
    return {name: rows(Numbers(SEED)) for name, _, _, rows in TABLES}


def rust(value, kind):
    """The value as a Rust literal of that type."""
    if kind.startswith("Option"):
        return "None" if value is None else f"Some({rust(value, kind[7:-1])})"
    if kind.startswith("("):
        return "({})".format(", ".join(map(rust, value, kind[1:-1].split(","))))
    if kind == "bool":
        return str(value).lower()
    return str(value) if abs(value) < 10**6 else ("-" if value < 0 else "") + hex(abs(value))


def render():
    """The Rust file."""
    tables = generate()
    lines = ["// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 OR BSD-3-Clause", "",
             "//! Inputs and the results that Python's integers have for them.", "//!",
             "//! Made by kvm-clock-guest's `tools/prove/vectors.py --write`; do not edit."]
    for name, kinds, fields, _ in TABLES:
        kinds = kinds.split()
        row = name.title().replace("_", "") + "Row"
        types = [kind.replace(",", ", ") for kind in kinds]
        row_type = f"pub(crate) type {row} = ({', '.join(types)});"
        if len(row_type) > 100:  # As rustfmt has it.
            row_type = "\n".join([f"pub(crate) type {row} = (", *(f"    {kind}," for kind in types), ");"])
        lines += ["", *textwrap.wrap(fields, 100, initial_indent="/// ", subsequent_indent="/// "),
                  row_type, "",
                  "#[rustfmt::skip]", f"pub(crate) const {name}: &[{row}] = &["]
        for row in tables[name]:
            lines += textwrap.wrap("({}),".format(", ".join(map(rust, row, kinds))), 100,
                                   initial_indent=" " * 4, subsequent_indent=" " * 8, break_on_hyphens=False)
        lines.append("];")
    return "\n".join(lines) + "\n"


def main():
    if sys.argv[1:] == ["--write"]:
        FILE.write_text(render())
    elif not sys.argv[1:]:
        print(render(), end="")
    else:
        sys.exit("usage: vectors.py [--write]    print the vectors as Rust, or write them to " + str(FILE))


if __name__ == "__main__":
    main()

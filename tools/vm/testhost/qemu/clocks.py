# SPDX-License-Identifier: GPL-2.0-only
"""The arithmetic of the measurements: records, the test host's own clocks, and error bounds of rates.

Ticks are of the TSC that the test host and its guests share: a guest's TSC is the host's plus its offset, mod 2^64.
"""

import bisect

MODULUS = 2**64


def signed(value):
    """The representative of `value` mod 2^64 that is nearest to 0."""
    return (value + MODULUS // 2) % MODULUS - MODULUS // 2


def kvmclock(record, tsc):
    """The value of a pvclock record at a guest's TSC, which may lie before its timestamp.

    >>> from testhost.qemu.readings import Record
    >>> kvmclock(Record(1000, 5, 1 << 31, 1, 1), 1100), kvmclock(Record(1000, 5, 1 << 31, 1, 1), 900)
    (105, -95)
    """
    ticks = signed(tsc - record.tsc_timestamp)
    ticks = ticks << record.shift if record.shift >= 0 else ticks >> -record.shift
    return record.system_time + (ticks * record.mul >> 32)


def khz(record):
    """The TSC rate that a record is for, in kHz; it need not be whole.

    >>> from testhost.qemu.readings import Record
    >>> khz(Record(0, 0, 1 << 31, 1, 1))
    1000000.0
    """
    return 1e6 * 2**32 / record.mul / 2**record.shift


def linux_khz(record):
    """The TSC rate that Linux takes from a record, in kHz: pvclock_tsc_khz().

    >>> from testhost.qemu.readings import Record
    >>> linux_khz(Record(0, 0, (1 << 31) - 1, 1, 1)), linux_khz(Record(0, 0, 1 << 31, -1, 1))
    (1000000, 4000000)
    """
    rate = (10**6 << 32) // record.mul
    return rate << -record.shift if record.shift < 0 else rate >> record.shift


def rate_error(rate_khz):
    """The error bound of the slope of Linux' clocksource tsc, as a fraction: it multiplies by a whole number.

    clocks_calc_mult_shift() makes it as large as 600 seconds of ticks allow, in 64 bits; timekeeping_adjust()
    goes back and forth between the two around the right one.

    >>> round(rate_error(2596000) * 1e6, 3)
    0.155
    """
    bits, left = 32, int(rate_khz) * 600_000 >> 32
    while left:
        left >>= 1
        bits -= 1
    factor = next(factor for shift in range(32, 0, -1)
                  if (factor := ((10**6 << shift) + int(rate_khz) // 2) // int(rate_khz)) >> bits == 0)
    return 1 / factor


class HostClocks:
    """The test host's clocks at any value of its TSC, from readings of both."""

    NAMES = ("monotonic", "realtime", "raw")

    def __init__(self, lines):
        rows = [[int(word) for word in line.split()] for line in lines if line.count(" ") == 4 and line.endswith("\n")]
        self._at = [(row[0] + row[4]) / 2 for row in rows]
        self._rows = rows
        span = self._at[-1] - self._at[0]
        self._slopes = [(rows[-1][column] - rows[0][column]) / span for column in (1, 2, 3)]
        self.khz = 1e6 / self._slopes[0]
        self.rate_error = rate_error(self.khz)
        self.begin_tsc, self.end_tsc = rows[0][0], rows[-1][4]
        self.end_ns = rows[-1][1]

    def at(self, name, tsc):
        """(ns, error bound), extrapolated from the nearest reading with the slope of all."""
        column = self.NAMES.index(name)
        right = min(max(bisect.bisect(self._at, tsc), 1), len(self._at) - 1)
        index = min((right - 1, right), key=lambda index: abs(self._at[index] - tsc))
        row = self._rows[index]
        slope = self._slopes[column]
        return row[column + 1] + (tsc - self._at[index]) * slope, (row[4] - row[0]) / 2 * slope

    def tsc(self, time, name="monotonic"):
        """The TSC at a time of a clock."""
        column = self.NAMES.index(name)
        index = min(bisect.bisect([row[column + 1] for row in self._rows], time), len(self._rows) - 1)
        return self._at[index] + (time - self._rows[index][column + 1]) / self._slopes[column]


class TSCClock:
    """What any clock of a host would show that counts its TSC at a rate, and nothing else."""

    rate_error = 0

    def __init__(self, rate_khz):
        self.khz = rate_khz

    def at(self, _name, tsc):
        """As HostClocks.at()."""
        return tsc / self.khz * 1e6, 0

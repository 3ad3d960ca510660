# SPDX-License-Identifier: GPL-2.0-only
"""The readings that the probe (probe.rs) writes to rings in the guest's memory, and their form in a file."""

import mmap
import os
import struct
from typing import NamedTuple

PAGE = 4096
SLOT = struct.Struct("<16Q")
MAGIC = struct.pack("<2Q", 0x6B63_6F6C_632D_6D76 + 1, 0x2D67_6E69_722D_7472 + 1)
HEADER = struct.Struct("<16s3Q")
READINGS, SLEEPS, CHARGES, SPINS = range(4)
# The number of the probe's threads that only sleep.
LONG_SLEEPERS = 2


# The guest itself clears this flag in its copy: it is not part of the clock.
GUEST_STOPPED = 2


class Record(NamedTuple):
    """A pvclock record without its version and without the flag GUEST_STOPPED, which are not part of the clock."""

    tsc_timestamp: int
    system_time: int
    mul: int
    shift: int
    flags: int


class Reading(NamedTuple):
    """All clocks of a vCPU between two readings of its TSC, and the sleep that came before."""

    number: int
    before: int
    monotonic: int
    realtime: int
    raw: int
    after: int
    record: Record | None
    due: int
    woke: int
    woke_tsc: int


class Sleep(NamedTuple):
    """A sleep by CLOCK_MONOTONIC, and the TSC when it began and ended."""

    number: int
    began: int
    due: int
    woke: int
    woke_tsc: int


class Charge(NamedTuple):
    """The CPU time that the guest's kernel has charged so far: to the group of the spinning task, and as steal time."""

    number: int
    tsc: int
    monotonic: int
    usage_us: int
    throttled_us: int
    # Hundredths of a second, of all CPUs.
    steal: int


class Spin(NamedTuple):
    """A moment when the spinning task ran."""

    number: int
    tsc: int
    monotonic: int


def reading(slot):
    number, before, monotonic, realtime, raw, after, *words, due, woke, woke_tsc = SLOT.unpack(slot)[:13]
    _, _, timestamp, system_time, mul, shift, flags = struct.unpack("<IIQQIbB2x", struct.pack("<4Q", *words))
    record = Record(timestamp, system_time, mul, shift, flags & ~GUEST_STOPPED) if mul else None
    return Reading(number, before, monotonic, realtime, raw, after, record, due, woke, woke_tsc)


def sleep(slot):
    return Sleep(*SLOT.unpack(slot)[:5])


def charge(slot):
    return Charge(*SLOT.unpack(slot)[:6])


def spin(slot):
    return Spin(*SLOT.unpack(slot)[:3])


DECODERS = {READINGS: reading, SLEEPS: sleep, CHARGES: charge, SPINS: spin}


def pages_with_magic(data, begin, end):
    """Offsets of the pages between two offsets in `data` that begin with the magic number.

    >>> list(pages_with_magic(b"x" + MAGIC + bytes(PAGE - 17) + MAGIC, 0, 2 * PAGE))
    [4096]
    """
    at = data.find(MAGIC, begin, end)
    while at >= 0:
        if at % PAGE == 0:
            yield at
        at = data.find(MAGIC, at + 1, end)


class Memory:
    """A guest's memory, as the file that QEMU keeps it in."""

    def __init__(self, path):
        self._file = open(path, "rb")
        self._map = mmap.mmap(self._file.fileno(), 0, prot=mmap.PROT_READ)

    def close(self):
        self._map.close()
        self._file.close()

    def _data(self):
        """The parts of the file that are no holes: reading a hole would fill it."""
        begin = 0
        while True:
            try:
                begin = os.lseek(self._file.fileno(), begin, os.SEEK_DATA)
            except OSError:
                return
            end = os.lseek(self._file.fileno(), begin, os.SEEK_HOLE)
            yield begin, end
            begin = end

    def _with_magic(self):
        """Offsets of the pages that begin with the magic number."""
        for begin, end in self._data():
            yield from pages_with_magic(self._map, begin, end)

    def page(self, offset):
        return self._map[offset:offset + PAGE]

    def rings(self):
        """Offsets of the pages of each ring, as {(kind, number): [offset, ...]}."""
        rings = {}
        for at in self._with_magic():
            _, which, page, pages = HEADER.unpack_from(self.page(at))
            rings.setdefault((which >> 32, which & 0xFFFF_FFFF), {})[page] = (at, pages)
        return {which: [found[page][0] for page in sorted(found)] for which, found in rings.items()
                if len(found) == next(iter(found.values()))[1]}

    def slots(self, offsets):
        """The slots of a ring by number, without one that is being written."""
        found = {}
        for offset in offsets:
            page = self.page(offset)
            for at in range(SLOT.size, PAGE, SLOT.size):
                number, = struct.unpack_from("<Q", page, at)
                if number:
                    found[number] = page[at:at + SLOT.size]
        return found


class Timeline:
    """All slots seen in a ring, as the guest remembers them: those after a snapshot are dropped when that is loaded."""

    def __init__(self):
        # The first slot is the one after `skipped` slots, which were overwritten before the first update().
        self.slots, self.skipped = None, 0

    @property
    def count(self):
        """How many slots the guest has written."""
        return self.skipped + len(self.slots)

    def update(self, found):
        """Take the present slots of a ring. Returns how many of those known before are still valid."""
        if self.slots is None:
            self.slots, self.skipped = [], min(found, default=1) - 1
        newest = max(found, default=0)
        while self.slots and (self.count > newest or found.get(self.count, self.slots[-1]) != self.slots[-1]):
            self.slots.pop()
        known = self.count
        if found and min(found) > known + 1:
            raise LookupError(f"the probe's reading {known + 1} was overwritten before it was collected")
        # The pages are not read atomically: the next update closes a gap.
        while slot := found.get(self.count + 1):
            self.slots.append(slot)
        return known

    def part(self, begin, end):
        """The slots after the first `begin`, up to `end` of all."""
        return self.slots[max(0, begin - self.skipped):max(0, end - self.skipped)]

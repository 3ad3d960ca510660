# SPDX-License-Identifier: GPL-2.0-only
"""A guest's memory as the process has it that runs the guest, whatever it is mapped from."""

import os
import re

from ..qemu.readings import PAGE, Memory, pages_with_magic

CHUNK = 256 * PAGE


class ProcessMemory(Memory):
    """Offsets are addresses in the process."""

    def __init__(self, pid, size):
        """All writable mappings of at least `size` bytes, one of which is the guest's memory."""
        with open(f"/proc/{pid}/maps") as file:
            found = [tuple(int(word, 16) for word in match) for match in re.findall(r"^([0-9a-f]+)-([0-9a-f]+) rw", file.read(), re.MULTILINE)]
        self._mappings = [(begin, end) for begin, end in found if end - begin >= size]
        self._file = os.open(f"/proc/{pid}/mem", os.O_RDONLY)

    def close(self):
        os.close(self._file)

    def _with_magic(self):
        for begin, end in self._mappings:
            for at in range(begin, end, CHUNK):
                chunk = os.pread(self._file, min(CHUNK, end - at), at)
                yield from (at + offset for offset in pages_with_magic(chunk, 0, len(chunk)))

    def page(self, offset):
        return os.pread(self._file, PAGE, offset)

# SPDX-License-Identifier: GPL-2.0-only
"""The clock fields of a migration stream, as QEMU's own scripts/analyze-migration.py reads them."""

import json
import re
import subprocess
from typing import NamedTuple

from paths import built

# The head of the first device's section; the guest's memory is before it.
FIRST_DEVICE = b"\x05timer"


class Stream(NamedTuple):
    """Fields of devices cpu and kvmclock."""

    # MSR_IA32_TSC of each vCPU, in ticks.
    tsc: list[int]
    # The field of every QEMU, in ns.
    clock: int
    # The subsection kvmclock/relation, if there is one.
    relation: dict | None


def analyze(path, what):
    listed = subprocess.run(["/usr/bin/python3", f"{built('qemu-source')}/scripts/analyze-migration.py", "-f", path, "-d", what],
                            stdout=subprocess.PIPE, text=True, check=True).stdout
    return json.loads(listed)


def devices(path):
    """All bytes after the guest's memory, which is in as many sections as there was time."""
    saved = path.read_bytes()
    return saved[saved.rindex(FIRST_DEVICE):]


def stopped(path):
    """All fields of all devices, without the two clocks that count although the guest does not run."""
    found = analyze(path, "state")
    for name, fields in found.items():
        for clock, field in (("kvmclock ", "clock"), ("mc146818rtc ", "cmos_data")):
            if name.startswith(clock):
                del fields[field]
    return found


def read(path):
    """Read the file that a guest was migrated to."""
    devices = analyze(path, "state")
    cpus = sorted((int(match[1]), fields) for name, fields in devices.items() if (match := re.fullmatch(r"cpu \((\d+)\)", name)))
    kvmclock = next(fields for name, fields in devices.items() if name.startswith("kvmclock "))
    relation = kvmclock.get("kvmclock/relation")
    return Stream([int(fields["env.tsc"], 16) for _, fields in cpus], int(kvmclock["clock"], 16),
                  relation and relation["relation"])

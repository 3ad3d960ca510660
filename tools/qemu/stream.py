# SPDX-License-Identifier: GPL-2.0-only
"""What a migration stream holds of a guest's clocks, as QEMU's own scripts/analyze-migration.py reads it."""

import json
import re
import subprocess
from typing import NamedTuple

from made import made


class Stream(NamedTuple):
    """Fields of devices cpu and kvmclock."""

    # MSR_IA32_TSC of each vCPU, in ticks.
    tsc: list[int]
    # What every QEMU knows of kvmclock, in ns.
    clock: int
    # The subsection kvmclock/relation, if it is there.
    relation: dict | None


def read(path):
    """From the file that a guest was migrated to."""
    said = subprocess.run(["/usr/bin/python3", f"{made('qemu-source')}/scripts/analyze-migration.py", "-f", path, "-d", "state"],
                          stdout=subprocess.PIPE, text=True, check=True).stdout
    devices = json.loads(said)
    cpus = sorted((int(match[1]), fields) for name, fields in devices.items() if (match := re.fullmatch(r"cpu \((\d+)\)", name)))
    kvmclock = next(fields for name, fields in devices.items() if name.startswith("kvmclock "))
    relation = kvmclock.get("kvmclock/relation")
    return Stream([int(fields["env.tsc"], 16) for _, fields in cpus], int(kvmclock["clock"], 16),
                  relation and relation["relation"])

# SPDX-License-Identifier: GPL-2.0-only
"""The clock fields of a migration stream, as QEMU's own scripts/analyze-migration.py reads them."""

import json
import re
import subprocess
from typing import NamedTuple

from paths import built


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


def description(path):
    """The devices, their fields and their subsections, without values."""
    return analyze(path, "desc")


def read(path):
    """Read the file that a guest was migrated to."""
    devices = analyze(path, "state")
    cpus = sorted((int(match[1]), fields) for name, fields in devices.items() if (match := re.fullmatch(r"cpu \((\d+)\)", name)))
    kvmclock = next(fields for name, fields in devices.items() if name.startswith("kvmclock "))
    relation = kvmclock.get("kvmclock/relation")
    return Stream([int(fields["env.tsc"], 16) for _, fields in cpus], int(kvmclock["clock"], 16),
                  relation and relation["relation"])

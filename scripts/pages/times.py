# SPDX-License-Identifier: GPL-2.0-only
"""How long targets take: the last duration of each line that names one."""

import json
import re

from pages.marks import Broken
from pages.record import DATA

_TARGET = re.compile(r"\bmake ([a-z-]+)|^([a-z-]+):.*##")
# Seconds are of something else than a whole target.
_DURATION = re.compile(r"\b\d+ (?:min|h)\b(?!.*\b\d+ (?:min|h)\b)")


def fill(lines, times):
    """Write the durations of `times`.

    >>> fill(["bench: tools ## count (5 min)", "``make check``  tests, 1 min each  9 min", "no 2 min"], {"bench": "6 min", "check": "10 min"})
    ['bench: tools ## count (6 min)', '``make check``  tests, 1 min each  10 min', 'no 2 min']
    >>> fill(["make prove  1 min"], {})
    Traceback (most recent call last):
    pages.marks.Broken: times.json has no time of `make prove`
    """
    out = []
    for line in lines:
        if (target := _TARGET.search(line)) and _DURATION.search(line):
            name = target[1] or target[2]
            if name not in times:
                raise Broken(f"times.json has no time of `make {name}`")
            line = _DURATION.sub(times[name], line)
        out.append(line)
    return out


def block(lines):
    return fill(lines, json.loads((DATA / "times.json").read_text())["times"])

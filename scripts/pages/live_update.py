# SPDX-License-Identifier: GPL-2.0-only
"""Clock errors of the methods in one live update."""

import json

from testhost.luo import COLUMNS

from .record import KERNEL, NotTaken
from .rst import table

NAME, COMMAND = "live-update", "make check-migrations"
# The boot after the first kexec.
RESULTS = ["build/vm/live-update/boot-1.json"]
SOURCES = [*KERNEL, "tools/clockguest/src/update", "tools/clockguest/src/method", "tools/vm/inside/live-update",
           "tools/vm/testhost/luo.py"]
ERRORS = {"tsc_error_ticks": "TSC error, ticks", "kvmclock_error_ns": "kvmclock error, ns", "tsc_kvmclock_skew_ns": "skew, ns"}


def take(boot):
    runs = json.loads(boot)["runs"]
    found = {guest: (runs.get(guest) or {}).get("found") for guest in COLUMNS}
    if missing := [guest for guest in COLUMNS if not found[guest]]:
        raise NotTaken(f"the last live update has no result of {missing[0]}")
    if failed := [guest for guest in COLUMNS if runs[guest]["status"]]:
        raise NotTaken(f"the last live update failed for {failed[0]}")
    return {"guests": [{"guest": guest, **{key: one[key] for key in (*ERRORS, "downtime_ns")}} for guest, one in found.items()]}


def errors(data, _):
    down = [guest["downtime_ns"] / 1e9 for guest in data["guests"]]
    signed = [[COLUMNS[guest["guest"]], *(f"{guest[key]:+,}" if guest[key] else "0" for key in ERRORS)] for guest in data["guests"]]
    return table([f"4 vCPUs, down {min(down):.0f} to {max(down):.0f} s", *ERRORS.values()], signed)


BLOCKS = {"live-update": errors}

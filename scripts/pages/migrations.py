# SPDX-License-Identifier: GPL-2.0-only
"""Clock errors of migrations between two hosts."""

import json

from .record import KERNEL, NotTaken
from .rst import table

NAME, COMMAND = "migrations", "make check-migrations"
RESULTS = ["build/vm/migrations/measured.json"]
SOURCES = [*KERNEL, "tools/clockguest/src/migration", "tools/vm/testhost/migrations.py"]

# Rows: pair of hosts, how the names of its guests begin, the least number of moves.
ROWS = {
    "equal, atomic": ("equal hosts", "atomic: ", 50),
    "equal, legacy-offset": ("equal hosts", "legacy-offset", 6),
    "equal, legacy-msr": ("equal hosts", "legacy-msr", 6),
    "B at 3/4, scaled, atomic": ("B at 3/4 of A's rate, both scale", "atomic at", 18),
    "B at 3/2, scaled, atomic": ("B at 3/2 of A's rate, both scale", "atomic at", 18),
}
WORST = {"tsc": "tsc_error_ticks_max", "restore": "restore_error_ticks_max", "sync": "clock_sync_error_ticks_max", "skew": "tsc_kvmclock_skew_ns_max"}


def take(measured):
    measured = json.loads(measured)
    rows = []
    for name, (hosts, begin, least) in ROWS.items():
        found = [one for one in measured if one["hosts"] == hosts and one["guests"].startswith(begin) and one["moves_done"]]
        if failed := next((one["first_error"] for one in found if one["first_error"]), None):
            raise NotTaken(f"{name}: the last run failed: {failed}")
        moves = sum(one["moves_done"] for one in found)
        if moves < least:
            raise NotTaken(f"{name}: {moves} of {least} moves in the last run")
        values = {key: [one[field] for one in found] for key, field in WORST.items()}
        rows.append({"name": name, "moves": moves,
                     **{key: None if None in all_of else round(max(all_of), 2) for key, all_of in values.items()},
                     "record": all(one["record_bit_identical"] for one in found)})
    return {"rows": rows}


def number(value):
    return "" if value is None else f"{value:,.2f}" if isinstance(value, float) and value < 100 else f"{value:,.0f}"


def worst(data, _):
    return table(["hosts, method", "moves", "TSC error", "restore", "clock sync", "skew, ns", "record"],
                 [[row["name"], str(row["moves"]), *(number(row[key]) for key in WORST), "same" if row["record"] else "changed"]
                  for row in data["rows"]])


BLOCKS = {"migrations": worst}

# SPDX-License-Identifier: GPL-2.0-only
"""What QEMU does to the clocks of guests."""

import json

from testhost.qemu import cases, distributions, report
from testhost.qemu.properties import FREEZE

from .record import KERNEL, NotTaken
from .rst import table

NAME, COMMAND = "qemu", "make check-qemu"
RESULTS = ["build/vm/qemu/measurements.json"]
SOURCES = [*KERNEL, "samples/qemu", "tools/vm/testhost/qemu"]

CLOCKSOURCES = ("kvm-clock", "tsc")
CHARGED = {"paused_s": "pause", "steal_s": "steal time", "usage_s": "task charged", "without_cpu_s": "without CPU"}


def take(measurements):
    found = json.loads(measurements)
    guests, pairs = found["guests"], found["pairs"]
    if failed := next((f"{guest['guest']}: {guest['error']}" for guest in guests
                       # Others are meant to be refused.
                       if guest["error"] and (guest["in_table"] or guest["kernel"] or guest["limited"])), None):
        raise NotTaken(f"the last run failed: {failed}")
    operations = [{"operation": operation, "clocksource": clocksource,
                   **{qemu: report.measured(guests, qemu, operation, clocksource) for qemu in ("stock", "patched")}}
                  for operation in cases.CHAIN for clocksource in CLOCKSOURCES]
    for row in operations:
        if any(not row[qemu] or row[qemu]["of"] < 2 for qemu in ("stock", "patched")):
            raise NotTaken(f"the last run has not both guests for {row['operation']}, {row['clocksource']}")
    kernels = [guest for guest in distributions.measured(guests) if guest["qemu"] == "patched"]
    if not kernels or any(set(guest["operations"]) != set(distributions.OPERATIONS) for guest in kernels):
        raise NotTaken("the last run lacks guests with Debian's kernels")
    limited = [charged(guest, operation) for guest in guests if guest["limited"] and not guest["kernel"] for operation in longest(guest)]
    limited += [{"guest": "to another host; 1 vCPU", **seconds(pair["charged"])} for pair in pairs if pair["charged"]]
    sharing = [{"guest": way(guest, "7.3"), "without_cpu_s": round(operation["shared"]["without_cpu_s"], 2)}
               for guest in guests if not guest["kernel"] for operation in guest["operations"] if operation["shared"]]
    expected = [check for check in cases.with_module() if check.limit]
    if len(limited) < sum(len({each["name"] for each in check.operations}) for check in expected) + 1 or len(sharing) < len(cases.sharing()):
        raise NotTaken("the last run lacks guests with tasks that spin")
    moves = [{"hosts": pair["hosts"], "ticks": ticks, "within": round(bound)} for pair in pairs
             for ticks, bound in zip(pair["tsc_from_home_ticks"], pair["bound_ticks"])]
    return {"operations": operations, "kernels": kernels, "limited": limited, "sharing": sharing, "moves": moves}


def way(guest, what):
    """`what`, and how this guest differs from the others of its kind."""
    return what + ", frozen" * (FREEZE in guest["properties"]) + ", no pause passed" * ("no pause passed" in guest["guest"])


def longest(guest):
    """Of operations that are repeated, the one that the task waits longest after."""
    names = dict.fromkeys(operation["operation"] for operation in guest["operations"])
    return [max((operation for operation in guest["operations"] if operation["operation"] == name), key=lambda one: one["charged"]["without_cpu_s"])
            for name in names]


def seconds(found):
    return {key: round(found[key], 2) for key in CHARGED}


def charged(guest, operation):
    return {"guest": f"{way(guest, operation['operation'])}; {guest['vcpus']} vCPU{'s' * (guest['vcpus'] > 1)}", **seconds(operation["charged"])}


def operations(data, _):
    rows = [[row["operation"] if row["clocksource"] == CLOCKSOURCES[0] else "", row["clocksource"],
             *(text for qemu in ("stock", "patched") for text in report.cells(row[qemu]))] for row in data["operations"]]
    return table(["operation", "clocksource", *["TSC - kvmclock", "time lost", "unstable"] * 2], rows)


def kernels(data, _):
    rows = [[guest["kernel"], guest["clocksource"], str(guest["vcpus"]),
             *(distributions.cell(guest["operations"][name]) for name in distributions.OPERATIONS)] for guest in data["kernels"]]
    for row, before in reversed([*zip(rows[1:], rows)]):
        if row[0] == before[0]:
            row[0] = ""
    return table(["Linux", "clocksource", "vCPUs", *distributions.OPERATIONS], rows)


def limited(data, _, head="operation"):
    return table([head, *CHARGED.values()], [[row["guest"], *(f"{row[key]:.2f} s" for key in CHARGED)] for row in data["limited"]])


def moves(data, _):
    return table(["hosts", "TSC, ticks", "known to"], [[row["hosts"], f"{row['ticks']:+,}", f"{row['within']:,}"] for row in data["moves"]])


BLOCKS = {"qemu": operations, "qemu-kernels": kernels, "qemu-limited": limited, "qemu-moves": moves}

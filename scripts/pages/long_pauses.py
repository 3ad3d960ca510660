# SPDX-License-Identifier: GPL-2.0-only
"""What long pauses do to kernels, and which of their tasks pays for a pause."""

import json

from testhost.qemu import long_pauses
from testhost.qemu.ways import PAUSES_S

from . import qemu
from .record import NotTaken, load
from .rst import table

NAME, COMMAND = "long-pauses", "tools/vm/host qemu --long-pauses"
RESULTS = ["build/vm/qemu/long-pauses.json"]
SOURCES = qemu.SOURCES


def take(measurements):
    guests = json.loads(measurements)["guests"]
    kept = ("settled_ns", "short_readings", "worst_ns", "unstable", "alarms")
    seen = [{**guest, "pauses": {name: {key: found[key] for key in kept} for name, found in guest["pauses"].items()}}
            for guest in long_pauses.seen(guests)]
    if len(seen) < 4 or any(set(guest["pauses"]) != set(PAUSES_S) for guest in seen):
        raise NotTaken("the last run lacks guests, or pauses")
    paying = [guest for guest in guests if guest["kernel"] and guest["operations"]]
    sharing = [{"kernel": guest["kernel"], "frozen": qemu.way(guest, "") == ", frozen",
                "without_cpu_s": round(guest["operations"][0]["shared"]["without_cpu_s"], 2)} for guest in paying if guest["operations"][0]["shared"]]
    limited = [{"guest": f"Linux {guest['kernel']}{qemu.way(guest, '')}", **qemu.seconds(operation["charged"])}
               for guest in paying if guest["limited"] for operation in qemu.longest(guest)]
    if not limited or len(sharing) != len(limited):
        raise NotTaken("the last run lacks guests with tasks that spin")
    return {"seen": seen, "sharing": sharing, "limited": limited}


def seen(data, _):
    rows, last = [], None
    for guest in data["seen"]:
        rows.append([guest["kernel"] if guest["kernel"] != last else "", guest["clocksource"],
                     *(long_pauses.cell(guest["pauses"][name]) for name in PAUSES_S)])
        last = guest["kernel"]
    return table(["Linux", "clocksource", *PAUSES_S], rows)


def sharing(data, _):
    found = {(row["kernel"], row["frozen"]): f"{row['without_cpu_s']:.2f} s" for row in data["sharing"]}
    rows = [[kernel, found[kernel, False], found.get((kernel, True), ""), "no"] for kernel in dict.fromkeys(row["kernel"] for row in data["sharing"])]
    # The test host's own kernel is among the guests of the other run.
    rows += [[row["guest"], f"{row['without_cpu_s']:.2f} s", "", "yes"] for row in load(qemu)["data"]["sharing"]]
    return table(["Linux", "without CPU", "frozen", "counts steal time"], rows)


def limited(data, lines):
    return qemu.limited(data, lines, "guest")


BLOCKS = {"long-pauses": seen, "sharing": sharing, "long-pauses-limited": limited}

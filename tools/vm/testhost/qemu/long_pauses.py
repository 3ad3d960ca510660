# SPDX-License-Identifier: GPL-2.0-only
"""Long pauses of a guest, imitated (interpose.c): what the arithmetic and the watchdogs of each kernel bear."""

from . import distributions, guest_kernels, verdicts
from ..table import columns
from .cases import Check, name_of, operations
from .clocks import kvmclock, rate_error, signed
from .measure import RATE_STEP_KHZ, UNSTABLE
from .properties import WITH_LIMIT, WITHOUT_LIMIT
from .ways import PAUSES_S, title

HOST = "test host, long pauses"
PRELOAD = "interpose.so,long-pause"
# QEMU lets guests see this much by default.
LIMIT_S = 600
LONG = {name: seconds for name, seconds in PAUSES_S.items() if seconds > LIMIT_S}
# The guest's clocks are looked at again this many readings later.
SETTLED = 10


def error(before, reading, clocksource):
    """How far CLOCK_MONOTONIC of a vCPU is from what its TSC implies, since a reading before the pause: (ns, allowed)."""
    ns_per_tick = 2**before.record.shift * before.record.mul / 2**32
    ticks = signed((reading.before + reading.after) // 2 - (before.before + before.after) // 2)
    expected = kvmclock(before.record, reading.before) - kvmclock(before.record, before.before)
    expected += ((reading.after - reading.before) - (before.after - before.before)) / 2 * ns_per_tick
    # The guest's own slope is that of a whole number for each tick.
    khz = 1e6 / ns_per_tick
    slope = RATE_STEP_KHZ / khz + rate_error(khz) if clocksource == "tsc" else 0
    windows = (before.after - before.before + reading.after - reading.before) / 2 * ns_per_tick
    return reading.monotonic - before.monotonic - expected, windows + abs(ticks) * ns_per_tick * slope + 2


def measured(operation):
    """The figures of a pause."""
    found = {"worst_ns": 0.0, "settled_ns": 0.0, "allowed_ns": 0.0, "short_readings": 0, "went_on_s": 0.0}
    for vcpu, (before, after) in enumerate(zip(operation.before, operation.after)):
        errors = [error(before[-1], reading, operation.case.clocksource) for reading in after]
        late = errors[min(SETTLED, len(errors) - 1)]
        found["worst_ns"] = max(found["worst_ns"], *(ns for ns, _ in errors[:SETTLED]), key=abs)
        found["settled_ns"] = max(found["settled_ns"], late[0], key=abs)
        found["allowed_ns"] = max(found["allowed_ns"], late[1])
        found["short_readings"] += sum(abs(ns) > allowed for ns, allowed in errors[:SETTLED])
        ticks = signed(operation.offsets[1][vcpu] - operation.offsets[0][vcpu])
        found["went_on_s"] = ticks / operation.case.host.khz / 1e3
    return {**found, "alarms": guest_kernels.alarms(operation.printed), "unstable": bool(UNSTABLE.search(operation.printed))}


def figures(case):
    return {"pauses": {operation.name: measured(operation) for operation in case.operations if operation.complete}}


def bears(operation, seconds, baseline, kernel):
    """The clocks went on by the pause, as the guest reads them, and nobody barked."""
    if not operation.complete:
        return "it did not end"
    for vcpu, sequence in enumerate(operation.after):
        if why := verdicts.other_record(vcpu, sequence, baseline):
            return why
    found = measured(operation)
    if abs(found["went_on_s"] - seconds) > 0.1 + seconds / 1000:
        return f"the TSC went on by {found['went_on_s']:.3f} s"
    if operation.unstable and not (kernel and guest_kernels.caught_up(kernel, operation.printed)):
        return "the guest's kernel marked its TSC unstable"
    if abs(found["settled_ns"]) > found["allowed_ns"]:
        return f"CLOCK_MONOTONIC is {found['settled_ns']:,.0f} ns from its TSC, {found['allowed_ns']:,.0f} allowed"
    if found["short_readings"] and not (kernel and kernel.name in OVERFLOWS and seconds > OVERFLOW_S):
        return f"{found['short_readings']} readings are wrong, one by {found['worst_ns']:,.0f} ns"
    return f"its watchdogs: {found['alarms']}" if found["alarms"] else None


# These kernels multiply the ns or ticks since the last timer interrupt in 64 bits: a reading right after the pause, before
# the next interrupt, may be short by a multiple of 2^40 ns. Later ones do it in more bits.
OVERFLOWS, OVERFLOW_S = ("5.10", "6.1"), 2**40 / 1e9


def unwarned(kernel):
    """KVM does not warn the guest that it was stopped. A watchdog reports that, or its silence would prove nothing."""
    pause = "1 h"

    def judge(case):
        if not case.operations or case.error:
            return []
        found = measured(case.operations[0])
        return [None if any("soft lockup" in alarm for alarm in found["alarms"]) else f"its watchdogs: {found['alarms']}"]

    check = guest(kernel, "kvm-clock", ["the guest is not warned"], [pause], WITHOUT_LIMIT, judge)
    check.results = check.results[:1]
    check.operations[0]["options"] = {"unwarned": True}
    return check


def without_limit(kernel, clocksource):
    """The guest sees all pauses."""

    def judge(case):
        if not case.operations:
            return []
        baseline = verdicts.Baseline(case)
        found = [bears(operation, seconds, baseline, kernel) for operation, seconds in zip(case.operations, PAUSES_S.values())]
        return found + [case.error or (guest_kernels.runs(case, kernel) if kernel else None)]

    return guest(kernel, clocksource, ["seen"], PAUSES_S, WITHOUT_LIMIT, judge)


def with_limit(kernel, clocksource):
    """The default: the guest's clocks stand still, and nothing happens in it."""

    def judge(case):
        if not case.operations:
            return []
        baseline = verdicts.Baseline(case)
        found = [verdicts.limited(operation, baseline) or (guest_kernels.alarms(operation.printed) or None)
                 for operation in case.operations]
        return found + [verdicts.life(case, baseline) or (guest_kernels.runs(case, kernel) if kernel else None)]

    return guest(kernel, clocksource, ["limited"], LONG, WITH_LIMIT, judge)


def guest(kernel, clocksource, also, pauses, properties, judge):
    names = [title(name) for name in pauses]
    debian = {"kernel": kernel, "memory": guest_kernels.MEMORY} if kernel else {}
    vcpus = 1 if clocksource == "tsc" and kernel and not kernel.smp_tsc else 2
    return Check(name_of("long pauses", *also, f"Linux {kernel.name if kernel else 'of the test host'}", clocksource, vcpus=vcpus),
                 "patched", clocksource, vcpus, operations(*names, watch=6), judge, [*names, verdicts.LIFE], properties, spin=1,
                 preload=PRELOAD, figures=figures, boot=guest_kernels.BOOT_ON, **debian)


def checks():
    """The first vCPU has a spinning task, a second one has none."""
    kernels = [*guest_kernels.all_kernels(), None]
    both = ("kvm-clock", "tsc")
    return [*(make(kernel, clocksource) for kernel in kernels for clocksource in both for make in (without_limit, with_limit)),
            *(unwarned(kernel) for kernel in kernels[:1]), *distributions.limited_checks()]


def hosts():
    """As cases.hosts()."""
    return [(HOST, [], checks())]


def seen(summaries):
    """The figures of each guest that saw the pauses, by pause."""
    for summary in summaries:
        if "pauses" in summary and "seen" in summary["guest"]:
            yield {"kernel": summary["kernel"] or "of the test host", "clocksource": summary["clocksource"],
                   "pauses": {name: found for name in PAUSES_S if (found := summary["pauses"].get(title(name)))}}


def table(summaries):
    """What each kernel bears, as lines."""
    rows = [["Linux", "clocksource", *PAUSES_S],
            *([guest["kernel"], guest["clocksource"], *(cell(guest["pauses"].get(name)) for name in PAUSES_S)] for guest in seen(summaries))]
    if len(rows) == 1:
        return
    yield "the guest's CLOCK_MONOTONIC against its TSC after a pause; lockup: its watchdog reports one; short: so many readings are"
    yield from columns(rows)


def cell(found):
    if found is None:
        return "not done"
    text = "0" if abs(found["settled_ns"]) <= 2000 else f"{found['settled_ns'] / 1e6:+,.3f} ms"
    if found["short_readings"]:
        text += f", {found['short_readings']} short by {-found['worst_ns'] / 1e9:,.0f} s"
    text += ", unstable" if found["unstable"] else ""
    return text + (", lockup" if any("lockup" in alarm for alarm in found["alarms"]) else "") + (
        ", RCU stall" if any("rcu" in alarm for alarm in found["alarms"]) else "")

# SPDX-License-Identifier: GPL-2.0-only
"""The table of the clock errors of each operation, with stock and with patched QEMU."""

from . import cases
from ..table import columns, widths


def summary(check, case):
    """All measurements of a guest, for JSON."""
    return {
        "guest": check.name, "in_table": check.in_table, "qemu": check.binary, "properties": check.properties,
        "kernel": check.kernel.version if check.kernel else "", "limited": check.limit,
        **(check.figures(case) if check.figures else {}),
        "machine": check.machine, "clocksource": check.clocksource, "vcpus": check.vcpus, "error": case.error,
        "operations": [{
            "operation": operation.name, "tsc_unstable": operation.unstable,
            "stopped_or_moved_s": (operation.runs_ns - operation.began_ns) / 1e9,
            "offsets_identical": operation.offsets[0] == operation.offsets[1],
            "vcpus": [{
                "tsc_ahead_of_kvmclock_ns": step.change_ns, "tsc_lost_ticks": step.tsc_lost_ticks,
                **{f"{name}_lost_ns": lost.ns for name, lost in step.lost.items()},
                **{f"{name}_lost_bound_ns": lost.allowed for name, lost in step.lost.items()},
                "raw_against_tsc_ns": step.raw.ns, "raw_against_tsc_bound_ns": step.raw.allowed,
                "elapsed_ns": step.elapsed_ns,
            } for step in operation.steps()],
            "charged": operation.charged()._asdict() if check.limit else None,
            "shared": operation.shared()._asdict() if check.spin > 1 else None,
        } for operation in case.operations if operation.complete],
    }


def pair_summary(pair, apart, destination):
    """The measurements of a move to another host, for JSON."""
    return {"hosts": pair.name, "tsc_from_home_ticks": [ticks for ticks, _ in apart],
            "bound_ticks": [allowed for _, allowed in apart],
            "charged": destination.charged()._asdict() if pair.destination.limit else None}


def worst(values):
    return max(values, key=abs, default=None)


def measured(summaries, qemu, operation, clocksource):
    """The worst of all guests in the table, or None."""
    found = [entry for summary in summaries for entry in summary["operations"]
             if summary["in_table"] and summary["qemu"] == qemu and summary["clocksource"] == clocksource
             and entry["operation"] == operation
             # Unless it only prepared another operation.
             and (qemu == "patched" or entry is summary["operations"][-1])]
    return {**errors(found), "unstable": sum(entry["tsc_unstable"] for entry in found), "of": len(found)} if found else None


def errors(entries):
    """The worst clock errors of all vCPUs."""
    steps = [step for entry in entries for step in entry["vcpus"]]
    lost = max(steps, key=lambda step: abs(step["monotonic_lost_ns"]))
    return {"ahead_ns": worst(step["tsc_ahead_of_kvmclock_ns"] or 0 for step in steps),
            "lost_ns": round(lost["monotonic_lost_ns"]), "within_ns": round(lost["monotonic_lost_bound_ns"])}


def cells(found):
    """TSC against kvmclock, time lost, unstable."""
    if not found:
        return ["", "", ""]
    return [milliseconds(found["ahead_ns"]), within(found["lost_ns"], found["within_ns"]),
            f"yes, {found['unstable']} of {found['of']}" if found["unstable"] else "no"]


def milliseconds(ns):
    return "0" if ns == 0 else f"{ns / 1e6:+,.3f} ms"


def within(ns, allowed):
    return f"0 ± {allowed:,.0f} ns" if abs(ns) <= allowed else milliseconds(ns)


def table(summaries):
    """The lines of the table, if there is anything to show."""
    head = ["operation", "clocksource", *["TSC - kvmclock", "time lost", "tsc unstable"] * 2]
    rows = [head]
    for operation in cases.CHAIN:
        for clocksource in ("kvm-clock", "tsc"):
            row = [text for qemu in ("stock", "patched") for text in cells(measured(summaries, qemu, operation, clocksource))]
            if any(row):
                rows.append([operation, clocksource, *row])
    if len(rows) == 1:
        return
    first, second, *others = widths(rows)
    stock, patched = sum(others[:3]) + 4, sum(others[3:]) + 4
    yield "worst of guests with 1 and 2 vCPUs; time lost: the guest's CLOCK_MONOTONIC against the host's"
    yield f"{'':{first}}  {'':{second}}  {'stock':^{stock}}  {'patched':^{patched}}".rstrip()
    yield from columns(rows, left=2)


def charged(what, found):
    """A line about a pause: its steal time, and the time that the task was charged."""
    more = "" if found["got_cpu_again"] else " or more"
    return (f"{what}: pause {found['paused_s']:.2f} s, steal time {found['steal_s']:.2f} s; the task was charged {found['usage_s']:.2f} s "
            f"of {found['elapsed_s']:.2f} s, and got no CPU for up to {found['without_cpu_s']:.3f} s{more} afterwards")


def tasks(summaries):
    """Lines about the guests that have tasks that spin: one with a CPU limit, or two that share a vCPU."""
    for summary in summaries:
        for operation in summary["operations"]:
            what = f"{summary['guest']}, {operation['operation']}"
            if operation["charged"]:
                yield charged(what, operation["charged"])
            if found := operation["shared"]:
                yield f"{what}: pause {found['paused_s']:.2f} s; one of the tasks got no CPU for up to {found['without_cpu_s']:.3f} s afterwards"


def pairs(summaries):
    """Lines about how far a guest's TSC is from its value on the source host, measured with the clocks of both hosts."""
    for summary in summaries:
        for ticks, bound in zip(summary["tsc_from_home_ticks"], summary["bound_ticks"]):
            yield f"{summary['hosts']}: the guest's TSC is {ticks:+,} ticks from its value on the source host, known to {bound:,.0f}"
        if summary["charged"]:
            yield charged(summary["hosts"], summary["charged"])

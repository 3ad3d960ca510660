# SPDX-License-Identifier: GPL-2.0-only
"""The guests that are stopped, saved and moved as in production (ways.py), and the verdicts about them."""

from . import guest_kernels, measure, verdicts, ways
from .cases import STOP, UNIX, Check, each, last, name_of, operations
from .properties import OLD_STREAM, ON

HOST = "test host, as in production"
# A guest that starts anew has a TSC that started with it. Its first reading is some time later.
RESET_SLACK_NS = 1e9


class Later(verdicts.Baseline):
    """A guest's clocks when an operation had begun."""

    def __init__(self, operation):
        self.offsets = operation.offsets[0]
        self.records = [sequence[-1].record for sequence in operation.before]


def started_anew(life):
    """As `life`, after a reset: the TSC counts from there."""

    def verdict(case, baseline):
        if why := life(case, baseline):
            return why
        for vcpu, sequence in enumerate(case.booted):
            reading = sequence[-1]
            place = case.operations[0].host_tsc(reading.after, vcpu, False)
            since_ns = case.host.at("monotonic", place)[0] - case.notes["reset_ns"]
            counted_ns = reading.after / case.host.khz * 1e6
            if counted_ns > since_ns + RESET_SLACK_NS:
                return f"vCPU {vcpu}'s TSC has counted {counted_ns / 1e9:.3f} s since the reset {since_ns / 1e9:.3f} s before"
        return None

    return verdict


def one_tsc(life):
    """As `life`, and all vCPUs have the same TSC offset."""
    return lambda case, baseline: life(case, baseline) or (
        None if len(set(baseline.offsets)) == 1 else f"the TSC offsets differ: {baseline.offsets}")


def clones(case):
    """Each clone goes on as if it were the only one."""
    if not case.operations or case.error:
        return []
    baseline = verdicts.Baseline(case)
    entries = case.notes.get("clones", [])
    if len(entries) != ways.CLONES:
        return [f"there are {len(entries)} clones"]
    found = []
    for entry in entries:
        operation = measure.Operation(case, entry)
        operation.printed = entry["printed"]
        operation.unstable = bool(measure.UNSTABLE.search(operation.printed))
        found.append(verdicts.same_host(operation, baseline))
    return [*found, verdicts.life(case, baseline)]


def there_and_back(case):
    """Stock QEMU moves a guest's clocks apart; once the guest is back, they are kept as they are then."""
    if case.error or len(case.operations) < 4:
        return []
    away, back, *rest = case.operations
    found = [verdicts.moved(away), verdicts.moved(back)]
    return found + [verdicts.same_host(operation, Later(rest[0])) for operation in rest]


def slept(case):
    """No clock of the guest goes back in S3; its TSC does, as hardware's does. From then on the clocks are kept."""
    if case.error or len(case.operations) < 3:
        return []
    sleep, *rest = case.operations
    found = [verdicts.moved(sleep) or verdicts.clock_goes_back(sleep.sequences())
             or ("the guest's kernel marked its TSC unstable" if sleep.unstable else None)
             or ("its TSC did not restart" if sleep.offsets[0] == sleep.offsets[1] else None)]
    return found + [verdicts.same_host(operation, Later(rest[0])) for operation in rest]


def patched(title, first, judge, clocksource="kvm-clock", vcpus=2, names=(STOP, UNIX), **other):
    return Check(name_of("patched", title, clocksource, vcpus=vcpus), "patched", clocksource, vcpus, operations(*names),
                 judge, [*names, verdicts.LIFE], [ON], first=first, **other)


def checks():
    # The test host's own kernel has no hotplug.
    kernel = next(kernel for kernel in guest_kernels.all_kernels() if kernel.name == "6.12")
    debian = {"kernel": kernel, "boot": guest_kernels.BOOT, "memory": guest_kernels.MEMORY}
    reset = "system_reset while stopped"
    plain = each(verdicts.same_host, one_tsc(verdicts.exact_life))
    return [
        patched(f"after a {reset}", reset, each(verdicts.same_host, started_anew(verdicts.exact_life))),
        patched(f"after a {reset}", reset, each(verdicts.same_host, started_anew(verdicts.exact_life)), "tsc", 1),
        *(patched(f"after: {first}", first, plain, clocksource, plugged=1, **debian)
          for first, clocksource in (("plug in a vCPU", "kvm-clock"), ("stop, plug in a vCPU", "tsc"),
                                     ("migration, plug in a vCPU", "kvm-clock"))),
        Check(name_of("patched", ways.FAN_OUT, "kvm-clock", vcpus=1), "patched", "kvm-clock", 1, operations(ways.FAN_OUT),
              clones, [*(f"clone {number} of {ways.CLONES}" for number in range(1, ways.CLONES + 1)), verdicts.LIFE], [ON]),
        Check(name_of("patched to stock and back", "kvm-clock", vcpus=2), "patched", "kvm-clock", 2,
              [*operations(ways.TO_STOCK, binary="stock", properties=[]), *operations(ways.TO_PATCHED, properties=[ON]),
               *operations(STOP, UNIX)],
              there_and_back, [ways.TO_STOCK, ways.TO_PATCHED, STOP, UNIX], [ON, OLD_STREAM]),
        *(Check(name_of("patched, S3", clocksource, vcpus=vcpus), "patched", clocksource, vcpus, operations(ways.SUSPEND, STOP, UNIX),
                slept, [ways.SUSPEND, STOP, UNIX], [ON], suspend=20) for clocksource, vcpus in (("kvm-clock", 2), ("tsc", 1))),
        Check("a snapshot of patched in stock", "patched", "kvm-clock", 1,
              operations(ways.SNAPSHOT, binary="stock", properties=[]), last(verdicts.moved), [ways.SNAPSHOT], [ON, OLD_STREAM]),
    ]


def hosts():
    """As cases.hosts()."""
    return [(HOST, [], checks())]

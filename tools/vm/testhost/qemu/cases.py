# SPDX-License-Identifier: GPL-2.0-only
"""The guests, the operations on each, and the verdicts about them."""

import dataclasses
import itertools
import re
from collections.abc import Callable

from . import guest_kernels, verdicts
from .properties import AUTO, FREEZE, OFF, OLD_STREAM, ON, VIRTUAL, max_advance

STOP, LONG_STOP = "stop/cont, 5 s", "stop/cont, 20 s"
AUDITED = "stop/cont, 5 s, audited"
SAVE, LOAD, LOAD_NEW = "savevm while running", "loadvm, same process", "savevm, loadvm in a new process"
UNIX, FILE, TO_FILE = "migration, unix socket", "migration, file", "migration to a file, cont"
# In the order of a chain: each finds the guest as the one before left it.
CHAIN = [STOP, SAVE, LOAD, LOAD_NEW, UNIX, FILE,
         "cpr-reboot", "cpr-transfer", "cpr-exec", "migration cancelled", "migration failed"]
# A stop finds a task with a limit waiting now and then, and then nobody pays. It runs for this percentage of the time,
# and is stopped so many times. It pays with a wait of a quarter of the pause.
PAYING_SHARE, PAYING_STOPS = 80, 3
PAYS = "pays with a wait, in one of the stops"
# With TSC deadlines for timers, as the guests of today's hosts have.
CPU = "qemu64,+tsc-deadline"


@dataclasses.dataclass
class Check:
    """A guest, the operations on it, and the function that judges their results, which have names."""

    name: str
    binary: str
    clocksource: str
    vcpus: int
    operations: list[dict]
    judge: Callable
    results: list[str]
    properties: list[str]
    machine: str = "pc"
    cpu: str = CPU
    # QEMU's address that the guest comes from, if it is not booted; a file is one of the results.
    incoming: str = ""
    # Percentage of a CPU for a spinning task in it, if there is one.
    limit: int = 0
    # A library that stands between QEMU and the C library, and its argument.
    preload: str = ""
    # More arguments of QEMU.
    arguments: tuple[str, ...] = ()
    # A row of the table.
    in_table: bool = False
    # Distinguishes it from others of its name.
    detail: str = ""
    # One of Debian's kernels (guest_kernels.py), if not the test host's own, and more arguments of the kernel.
    kernel: guest_kernels.GuestKernel | None = None
    # A softlockup watchdog occasionally makes the kernel ignore a TSC error from a stop.
    boot: str = "nowatchdog"
    memory: str = "128M"
    # How many tasks spin without any limit, on the first vCPU.
    spin: int = 0
    # After how many seconds it goes to sleep.
    suspend: int = 0
    # How many timers it has armed in addition, for 15 s, 30 s, 45 s and so on.
    timers: int = 0
    # Its memory is where LUO can preserve it for the next kernel.
    outlives_kernel: bool = False
    # By how many seconds the host's clock is put forward before the guest arrives.
    wall_ahead: int = 0
    # How many seconds it is watched before the operations.
    settles: int = 2
    # How many of the vCPUs are plugged in later, and what is done before the first readings (ways.py).
    plugged: int = 0
    first: str = ""
    # Another VMM than QEMU, and for how many seconds a restored guest is slow, as its memory is read when it touches it.
    vmm: str = "qemu"
    slow_s: int = 0
    # More measurements of a guest, for its part of the table.
    figures: Callable | None = None

    @property
    def title(self):
        return f"{self.name}: {self.detail}" if self.detail else self.name

    @property
    def slug(self):
        return re.sub(r"\W+", "-", self.title).strip("-")

    def plan(self, results):
        """Its part of the plan for drive.py; files are in the folder `results`."""
        keys = ("slug", "binary", "clocksource", "vcpus", "machine", "cpu", "properties", "operations", "limit", "arguments")
        more = {key: getattr(self, key) for key in ("boot", "memory", "spin", "suspend", "plugged", "first", "timers", "outlives_kernel", "wall_ahead", "settles", "vmm", "slow_s")}
        more["kernel"] = self.kernel.release if self.kernel else ""
        return {**{key: getattr(self, key) for key in keys}, **more, "incoming": self.incoming.replace("file:", f"file:{results}/"),
                "preload": self.preload and f"{results}/{self.preload}"}


def operations(*names, watch=0, **options):
    """`watch` is for how many seconds to watch the guest afterwards, if longer than usual."""
    return [{"name": name, "options": options, "watch": watch} for name in names]


def in_turn(judgements, life):
    """Judge each operation by its own function, then the guest's whole life."""

    def judge(case):
        if not case.operations:
            return []
        baseline = verdicts.Baseline(case)
        return [judgement(operation, baseline) for judgement, operation in zip(judgements, case.operations)] + [life(case, baseline)]

    return judge


def each(judgement, life):
    """Judge all operations by one function, then the guest's whole life."""
    return in_turn(itertools.repeat(judgement), life)


def last(judgement):
    """Judge the last operation; those before it prepare for it."""
    return lambda case: [judgement(case.operations[-1])] if case.operations and not case.error else []


def name_of(*words, vcpus):
    return ", ".join([*words, f"{vcpus} vCPU" + "s" * (vcpus > 1)])


def exact(clocksource, vcpus, names=CHAIN, also=(), migrate=True, **other):
    """Patched QEMU, on one host: the clocks show no trace of the operations."""
    life = verdicts.chain_life if names is CHAIN else verdicts.exact_life
    return Check(name_of("patched", *also, clocksource, vcpus=vcpus), "patched", clocksource, vcpus, operations(*names),
                 each(verdicts.same_host, life), [*names, verdicts.LIFE], [ON, *([] if migrate else [OLD_STREAM])], **other)


def sends(check, judgement):
    """As `check`, and judge the stream that the guest was saved to."""
    return dataclasses.replace(check, judge=lambda case: [*check.judge(case), judgement(case)],
                               results=[*check.results, "the stream"])


def stock(name, clocksource, vcpus, binary="stock"):
    """A guest of its own for each operation: an error of a guest's TSC stays."""
    qemu = "stock" if binary == "stock" else "patched, x-clock-guest=off"
    steps = [SAVE, LOAD] if name == LOAD else [name]
    return Check(name_of(qemu, clocksource, vcpus=vcpus), binary, clocksource, vcpus, operations(*steps),
                 last(verdicts.measured), [name], [], in_table=binary == "stock", detail=name)


def limited():
    """Guests with a task that may use half of a CPU, and one whose QEMU reports no pause to KVM."""
    title = "a task with a CPU limit"
    steps = [LONG_STOP, FILE]
    return [
        *(Check(name_of("patched", title, clocksource, vcpus=vcpus), "patched", clocksource, vcpus, operations(*steps, watch=5),
                each(verdicts.charged_to_nobody, verdicts.exact_life), [*steps, verdicts.LIFE], [ON], limit=50)
          for clocksource, vcpus in (("kvm-clock", 1), ("tsc", 2))),
        Check(name_of("patched, freeze", title, "kvm-clock", vcpus=1), "patched", "kvm-clock", 1, operations(LONG_STOP),
              each(verdicts.nothing_to_charge, verdicts.life), [LONG_STOP, verdicts.LIFE], [ON, FREEZE], limit=50),
        Check(name_of("patched, no pause passed", title, "kvm-clock", vcpus=1), "patched", "kvm-clock", 1,
              operations(*[LONG_STOP] * PAYING_STOPS, watch=10), verdicts.pays, [PAYS], [ON], limit=PAYING_SHARE, preload="interpose.so,no-pause"),
    ]


def sharing():
    """Guests with two tasks that spin on one vCPU, and one whose QEMU reports no pause to KVM."""
    title = "two tasks that spin"
    return [
        Check(name_of("patched", title, "kvm-clock", vcpus=1), "patched", "kvm-clock", 1, operations(LONG_STOP, watch=10),
              each(verdicts.shared_fairly, verdicts.exact_life), [LONG_STOP, verdicts.LIFE], [ON], spin=2),
        Check(name_of("patched, no pause passed", title, "kvm-clock", vcpus=1), "patched", "kvm-clock", 1,
              operations(LONG_STOP, watch=30), last(verdicts.shared_unfairly), [LONG_STOP], [ON], spin=2, preload="interpose.so,no-pause"),
    ]


def chosen():
    """Guests whose clocks stand still in some operations, and QEMUs that refuse."""
    still = "standing still"
    freeze = {"restore": "freeze"}
    gone = "/tmp/clock-guest-module-is-gone"
    return [
        Check(name_of("patched, chosen for one operation", "kvm-clock", vcpus=2), "patched", "kvm-clock", 2,
              [*operations(STOP, **freeze), *operations(STOP), *operations(UNIX, **freeze), *operations(UNIX),
               *operations(LOAD_NEW, **freeze), *operations(FILE)],
              in_turn([verdicts.frozen, verdicts.went_on] * 3, verdicts.life),
              [f"{STOP}, {still}", STOP, f"{UNIX}, {still}", UNIX, f"{LOAD_NEW}, {still}", FILE, verdicts.LIFE], [ON]),
        Check(name_of("patched, limit of 3 s", "tsc", vcpus=1), "patched", "tsc", 1, operations(STOP, UNIX, FILE),
              in_turn([verdicts.limited, verdicts.went_on, verdicts.limited], verdicts.life),
              [f"{STOP}, {still}", UNIX, f"{FILE}, {still}", verdicts.LIFE], [ON, max_advance(3)]),
        Check("patched, in a chroot without /proc", "patched", "kvm-clock", 1, operations(STOP),
              each(verdicts.same_host, verdicts.exact_life), [STOP, verdicts.LIFE], [ON], arguments=("-run-with", "chroot=/srv")),
        Check("patched, to a host with another TSC rate", "patched", "kvm-clock", 2,
              operations("migration refused", preload="other-rate"),
              each(verdicts.printed("x-clock-guest=on: the guest's TSC would be", verdicts.same_host), verdicts.exact_life),
              ["migration refused", verdicts.LIFE], [ON], preload="interpose.so"),
        Check("patched, without the module later", "patched", "kvm-clock", 1, operations("stop/cont, the module goes away"),
              last(verdicts.not_pinned), ["reports it"], [ON], preload=f"interpose.so,{gone}"),
    ]


def devices():
    """Guests that have clocks of QEMU's, which count its virtual clock."""
    bare = CPU + ",-kvmclock,-kvmclock-stable-bit"
    watchdog = "stop/cont, 15 s, a watchdog of 10 s"
    plain = [STOP, SAVE, LOAD, UNIX, FILE]
    moves = [LOAD, UNIX, FILE]
    return [
        Check(name_of("patched, guest without kvmclock, devices' clocks go on", "hpet", vcpus=2), "patched", "hpet", 2,
              operations(*plain), each(verdicts.kept_stable, verdicts.no_error), [*plain, verdicts.LIFE], [ON, VIRTUAL],
              # The newest that has no device kvmclock for such a guest unless it is asked for.
              machine="pc-i440fx-5.1", cpu=bare),
        Check(name_of("patched, guest without kvmclock", "acpi_pm", vcpus=2), "patched", "acpi_pm", 2, operations(SAVE, *moves),
              lambda case: each(verdicts.stood_still, verdicts.no_error)(case)[1:], [*moves, verdicts.LIFE], [ON],
              machine="pc-i440fx-5.1", cpu=bare),
        Check("patched, devices' clocks go on, with a watchdog", "patched", "kvm-clock", 1, operations(watchdog),
              last(verdicts.with_devices), [watchdog], [ON, VIRTUAL],
              arguments=("-device", "ib700", "-action", "watchdog=none", "-rtc", "clock=vm")),
        Check("patched, vmclock", "patched", "kvm-clock", 1,
              [*operations(STOP), *operations(STOP, restore="freeze"), *operations(STOP)],
              lambda case: [verdicts.marker_moves(case)], ["the marker moves"], [ON], arguments=("-device", "vmclock")),
    ]


def observed():
    """Guests that `clockguest audit` looks at."""
    return [Check(name_of(binary, "audited", "kvm-clock", vcpus=2), binary, "kvm-clock", 2, operations(AUDITED),
                  last(verdicts.audited(binary == "stock")), [AUDITED], properties, arguments=("-name", f"audited-{binary}"))
            for binary, properties in (("stock", []), ("patched", [ON]))]


def streams():
    """Other ways of migration, and other QEMUs on the way."""
    ways = ["migration, multifd", "migration, mapped-ram"]
    twice = "migration, arrival paused, migration"
    to_stock = {"binary": "stock", "properties": []}
    return [
        exact("kvm-clock", 2, ways, ["other ways"]),
        Check(name_of("patched, through a process that does not start it", vcpus=2), "patched", "kvm-clock", 2,
              operations(twice, through={}), each(verdicts.same_host, verdicts.exact_life), [twice, verdicts.LIFE], [ON]),
        Check("patched, through x-clock-guest=off, to stock", "patched", "kvm-clock", 1,
              operations(twice, through={"properties": [OFF]}, **to_stock), last(verdicts.moved), [twice], [ON]),
        Check("patched, x-clock-guest=off, saved again by both", "patched", "kvm-clock", 2,
              operations("migration to a file, saved again by others", off={}, stock=to_stock),
              lambda case: [verdicts.stream_of_stock(case)], ["as stock saves it, byte for byte"], [OFF]),
        Check("a snapshot of stock in patched", "stock", "kvm-clock", 1, operations(LOAD_NEW, binary="patched", properties=[ON]),
              last(verdicts.pinned), [LOAD_NEW], []),
    ]


def with_module():
    both = [(clocksource, vcpus) for clocksource in ("kvm-clock", "tsc") for vcpus in (1, 2)]
    frozen = [STOP, LOAD_NEW, UNIX, FILE, "cpr-transfer"]
    mixed = operations(UNIX, binary="stock", properties=[])
    return [
        *(exact(*which, in_table=True) for which in both),
        exact("kvm-clock", 2, [STOP, UNIX], ["q35, LAPIC timer"], machine="q35", cpu="qemu64"),
        exact("kvm-clock", 1, [STOP, UNIX], ["microvm"], machine="microvm"),
        Check(name_of("patched, freeze", "kvm-clock", vcpus=2), "patched", "kvm-clock", 2, operations(*frozen),
              each(verdicts.frozen, verdicts.life), [*frozen, verdicts.LIFE], [ON, FREEZE]),
        Check(name_of("patched, freeze", "tsc", vcpus=1), "patched", "tsc", 1, operations(*frozen),
              each(verdicts.frozen, verdicts.life), [*frozen, verdicts.LIFE], [ON, FREEZE]),
        *limited(),
        *sharing(),
        *chosen(),
        *devices(),
        *observed(),
        *streams(),
        Check("patched to stock, which refuses the unknown subsection", "patched", "kvm-clock", 2, operations("migration refused", binary="stock", properties=[]),
              each(verdicts.same_host, verdicts.exact_life), ["migration refused", verdicts.LIFE], [ON]),
        Check("patched, x-clock-guest-migrate=off, to stock", "patched", "kvm-clock", 1, mixed,
              last(verdicts.moved), [UNIX], [ON, OLD_STREAM]),
        Check("stock to patched", "stock", "kvm-clock", 1, operations(UNIX, binary="patched", properties=[ON]),
              last(verdicts.moved), [UNIX], []),
        sends(exact("kvm-clock", 2, [TO_FILE], ["for a host without the module"]), verdicts.one_instant(relation=True)),
        sends(exact("kvm-clock", 2, [TO_FILE], ["x-clock-guest-migrate=off"], migrate=False), verdicts.one_instant(relation=False)),
        sends(Check(name_of("stock, to a file", vcpus=2), "stock", "kvm-clock", 2, operations(TO_FILE), last(verdicts.moved),
                    [TO_FILE], []), verdicts.two_instants),
        *(stock(STOP, *which, binary="patched") for which in both),
        *(stock(name, *which) for name in CHAIN for which in both),
    ]


def without_module():
    return [
        Check("patched, x-clock-guest=on", "patched", "kvm-clock", 1, [], verdicts.refuses("x-clock-guest=on requires KVM_CAP_VM_CLOCK_GUEST"),
              ["refuses to start"], [ON]),
        Check(name_of("patched, x-clock-guest=auto", "kvm-clock", vcpus=1), "patched", "kvm-clock", 1, operations(STOP),
              last(verdicts.measured), [STOP], [AUTO]),
        Check(name_of("patched, x-clock-guest=auto", "kvm-clock", vcpus=2), "patched", "kvm-clock", 2, operations(UNIX),
              last(verdicts.moved), [UNIX], [AUTO]),
        Check("patched, from a file of a host with the module", "patched", "kvm-clock", 2, [],
              verdicts.arrives("KVM cannot restore TSC and kvmclock as one"), ["goes on, and QEMU reports the loss"],
              [AUTO], incoming="file:test-host/patched-for-a-host-without-the-module-kvm-clock-2-vCPUs/guest.file"),
    ]


def hosts():
    """Test hosts, as (name, options of `tools/vm/host run`, checks)."""
    return [("test host", [], with_module()), ("test host without the module", ["--no-module"], without_module())]


@dataclasses.dataclass
class Pair:
    """Two test hosts, a guest that moves from one to the other, and the verdict about its halves."""

    name: str
    options: list[str]
    source: Check
    destination: Check
    verdict: Callable


def pair(name, options, clocksource, properties, verdict, move="migration, another host", **other):
    halves = [Check(side, "patched", clocksource, 1, steps, None, [], properties, incoming=incoming, **other)
              for side, steps, incoming in (("source", operations(move), ""),
                                            ("destination", [], "tcp:$CLOCK_GUEST_ADDRESS:4444"))]
    # Each host of a pair emulates its CPUs in turn: with two of them, a guest makes little progress.
    return Pair(name, ["--cpus-a", "1", "--cpus-b", "1", *options], *halves, verdict)


def pairs():
    return [
        pair("two hosts, kvm-clock", [], "kvm-clock", [ON], verdicts.other_host),
        pair("two hosts, tsc", ["--wall-b", "1"], "tsc", [ON], verdicts.other_host),
        pair("two hosts, a task with a CPU limit", [], "kvm-clock", [ON], verdicts.other_host_steal,
             move="migration, another host, 20 s", limit=50),
        pair("two hosts, the other's clock 60 s behind", ["--wall-b", "-60"], "kvm-clock", [ON], verdicts.other_host_behind),
        pair("two hosts, the other without the module", ["--no-module-b"], "kvm-clock", [AUTO],
             verdicts.falls_back("KVM cannot restore TSC and kvmclock as one")),
    ]

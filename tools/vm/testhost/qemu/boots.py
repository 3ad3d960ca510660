# SPDX-License-Identifier: GPL-2.0-only
"""Boot guests of patched QEMU in test hosts, and count how many get lost, with this emulator of the hosts or another.

Nothing is retried: a guest that does not boot is lost, and so are those that run in a test host that ends early.
"""

import json
import os
import subprocess

from paths import built

from . import check
from .cases import Check, name_of
from .properties import ON

# Guests for one test host.
EACH_HOST = 10


def guests(first, number):
    """All four kinds of guest in turn; their operations are to boot and to run for 2 s."""
    kinds = [("kvm-clock", 1), ("tsc", 2), ("kvm-clock", 2), ("tsc", 1)]
    return [Check(name_of(f"boot {index + 1}", kinds[index % 4][0], vcpus=kinds[index % 4][1]), "patched", *kinds[index % 4],
                  [], None, [], [ON]) for index in range(first, first + number)]


def host(checks, args, results):
    """Boot these guests in a test host. Returns the fate of each that began, and why the host ended badly, or None."""
    begun = {}

    def live(line):
        words = line.split()
        if len(words) == 2 and words[0] == "begin":
            begun[words[1]] = "lost with its test host"
        elif len(words) == 2 and words[0] == "done" and words[1] in begun:
            begun[words[1]] = fate(results / words[1])

    emulator = ["--qemu", args.emulator, *(["--qemu-cpu", args.emulator_cpu] if args.emulator_cpu else [])]
    bad = check.carry_out(results, check.prepare(results, checks, args), args, check.BOOT_TIMEOUT * (1 + len(checks)), emulator, live)
    return begun, bad


def fate(folder):
    result = json.loads((folder / "result.json").read_text())
    if not result["error"]:
        return "booted"
    printed = "after its first line" if (folder / "console").read_text() else "before its first line"
    return f"lost {printed}: {result['error'].splitlines()[-1][:200]}"


def main(args):
    """Count `args.boots` boots. Returns the exit status."""
    args.emulator = args.emulator or str(built("qemu"))
    version = subprocess.run([args.emulator, "--version"], stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[0]
    fates, hosts, ended_early = {}, 0, 0
    while len(fates) < args.boots:
        results = check.RESULTS / f"boots-{os.getpid()}-{hosts}"
        begun, bad = host(guests(len(fates), min(EACH_HOST, args.boots - len(fates))), args, results)
        hosts += 1
        ended_early += bool(bad)
        for name, what in begun.items():
            fates[f"{hosts}/{name}"] = what
            if what != "booted":
                print(f"test host {hosts}, {name}: {what}", flush=True)
        if bad:
            print(f"test host {hosts}: {bad}", flush=True)
        if not begun and hosts > 2 * args.boots / EACH_HOST + 3:
            break
    booted = sum(what == "booted" for what in fates.values())
    print(f"{version}: of {len(fates)} guests, {booted} booted, {len(fates) - booted} were lost; "
          f"of {hosts} test hosts, {ended_early} ended badly")
    return 0 if booted == len(fates) and not ended_early else 1

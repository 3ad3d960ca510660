# SPDX-License-Identifier: GPL-2.0-only
"""Save and restore Linux guests of a VMM with the patch in samples/ and without, and write KTAP and a table.

The guests have the probe of `tools/vm/host qemu`, and their clocks are judged as those of QEMU's guests. With the patch
they must show no error; without it, the errors are measured.
"""

import json
import os
import re

import ktap
from paths import REPO, built

from .. import options
from ..kernel import clock_guest_module
from ..qemu import check as guests
from ..qemu.report import errors, milliseconds, within
from ..table import columns
from . import cases

EPILOG = """\
samples/build-patched builds the programs.

exit status:
  0  all results are good
  1  some are not
  4  a program is missing
"""

NO_PROGRAM = 4


def add_arguments(parser):
    parser.add_argument("vmm", choices=cases.VMMS, metavar="NAME", help=" or ".join(cases.VMMS))
    parser.add_argument("--patched", metavar="FILE",
                        help="the program with the patch (default: build/NAME/target/debug/NAME)")
    parser.add_argument("--stock", metavar="FILE",
                        help="the program without it (default: build/NAME-stock/target/debug/NAME)")
    options.add_kdir(parser)
    options.add_module(parser)
    parser.add_argument("--one-thread", action="store_true", help="as `tools/vm/host run --one-thread`")
    parser.add_argument("--guest-kdir", metavar="DIR",
                        help="built kernel tree or O= folder of the guests' kernel (default: the one that `make setup` built)")
    parser.add_argument("--only", metavar="PATTERN", default="", help="only guests whose name, as --list prints it, matches")
    parser.add_argument("--list", action="store_true", help="print the names of the guests")


def table(summaries):
    """The lines of the table."""
    rows = [["guest", "operation", "TSC lost, ticks", "TSC - kvmclock", "time lost", "tsc unstable"]]
    for summary in summaries:
        for entry in summary["operations"]:
            found = errors([entry])
            lost = {vcpu["tsc_lost_ticks"] for vcpu in entry["vcpus"]}
            rows.append([summary["guest"], entry["operation"], " ".join(f"{ticks:,}" for ticks in sorted(lost)),
                         f"{found['ahead_ns']:,} ns" if abs(found["ahead_ns"]) < 1000 else milliseconds(found["ahead_ns"]),
                         within(found["lost_ns"], found["within_ns"]), "yes" if entry["tsc_unstable"] else "no"])
    return columns(rows)


def main(args):
    hosts = [(name, more, chosen) for name, more, checks in cases.hosts(args.vmm)
             if (chosen := [check for check in checks if re.search(args.only, check.name)])]
    if args.list:
        print("\n".join(check.name for _, _, checks in hosts for check in checks))
        return 0
    args.patched = args.patched or str(REPO / f"build/{args.vmm}/target/debug/{args.vmm}")
    args.stock = args.stock or str(REPO / f"build/{args.vmm}-stock/target/debug/{args.vmm}")
    if missing := [path for path in (args.patched, args.stock) if not os.access(path, os.X_OK)]:
        print(f"KTAP version 1\n1..0 # SKIP no {', '.join(missing)}: run samples/build-patched first")
        return NO_PROGRAM
    args.kdir = args.kdir or str(built("kdir"))
    args.guest_kernel = f"{args.guest_kdir or built('kdir')}/{cases.KERNELS[args.vmm]}"
    module = clock_guest_module(args.module)
    guests.build_guest()
    out = ktap.Report(sum(1 + sum(len(check.results) for check in checks) for _, _, checks in hosts))
    summaries = []
    for name, more, checks in hosts:
        summaries += guests.run(name, ["--module", module, *["--one-thread"] * args.one_thread, *more], checks, args, out)
    path = guests.RESULTS / f"{args.vmm}.json"
    path.write_text(json.dumps(summaries, indent=1))
    out.note(*table(summaries), f"measurements in {path.relative_to(REPO)}")
    return out.end()

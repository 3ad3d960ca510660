# SPDX-License-Identifier: GPL-2.0-only
"""The command line of tools/vm/host."""

import argparse
import signal
import sys

from paths import NotBuilt

from . import intel, live_update, migrations, pair, run, selftest, sleep
from .outcome import HOST_FAILED, HostError
from .qemu import check as qemu
from .vmm import check as vmm

# Name, module, and the line in `tools/vm/host --help`. A module has add_arguments(parser), main(args),
# its docstring as description, and EPILOG if there is more to say.
COMMANDS = [
    ("run", run, "boot a test host and run a command in it, or a shell"),
    ("pair", pair, "boot two connected test hosts and run a command in each"),
    ("intel", intel, "run a command in a test host with an Intel CPU, under Bochs"),
    ("sleep", sleep, "run a command in a test host that can suspend to memory"),
    ("migrations", migrations, "migrate guests between two test hosts"),
    ("live-update", live_update, "replace the test host's kernel by kexec under saved guests"),
    ("qemu", qemu, "stop, save and move Linux guests of stock and patched QEMU"),
    ("vmm", vmm, "save and restore Linux guests of Cloud Hypervisor and Firecracker"),
    ("selftest", selftest, "test this program itself"),
]


def parse_args():
    parser = argparse.ArgumentParser(
        prog="tools/vm/host",
        description="Boot emulated hosts with the patched kernel, and run commands in them.",
        epilog="tools/vm/host SUBCOMMAND --help describes a subcommand, its results and its exit status.")
    commands = parser.add_subparsers(metavar="SUBCOMMAND", required=True)
    for name, module, summary in COMMANDS:
        command = commands.add_parser(name, help=summary, description=module.__doc__,
                                      epilog=getattr(module, "EPILOG", None),
                                      formatter_class=argparse.RawDescriptionHelpFormatter)
        module.add_arguments(command)
        command.set_defaults(parser=command, main=module.main)
    return parser.parse_args()


def main():
    # An exception ends the emulators too: the functions that start them see to it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    args = parse_args()
    try:
        return args.main(args)
    except HostError as error:
        print(f"{args.parser.prog}: {error}", file=sys.stderr)
        for line in error.lines:
            print(f"  {line}", file=sys.stderr)
        return error.status
    except NotBuilt as error:
        print(f"{args.parser.prog}: {error}", file=sys.stderr)
        return HOST_FAILED

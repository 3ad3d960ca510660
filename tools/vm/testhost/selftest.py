# SPDX-License-Identifier: GPL-2.0-only
"""Test tools/vm/host itself, and write KTAP.

A run returns the command's status, fails on a real kernel warning, and ends a hang. A pair connects
two such hosts and checks both.
"""

import subprocess

import ktap
from paths import REPO

from . import options
from .outcome import HOST_FAILED, TIMED_OUT

CRASH = "/sys/kernel/debug/provoke-crash/DIRECT"

# B's command: accepts a connection and provokes a warning.
SERVE = f"""\
import os, socket
peer, _ = socket.create_server((os.environ["CLOCK_GUEST_ADDRESS"], 4000)).accept()
open("{CRASH}", "w").write("WARNING")
peer.sendall(b"this is B\\n")"""
# A's command: connects, and reads to the end.
ASK = 'until exec 3<>"/dev/tcp/$CLOCK_GUEST_PEER/4000"; do sleep 0.2; done 2>/dev/null; cat <&3'

# Name, subcommand and its arguments, expected status, and a text that its output must have.
CASES = [
    ("status and output are passed on", ["run", "echo to stdout; echo to stderr >&2; exit 7"], 7, "\nto stderr\n"),
    ("a kernel warning fails a command that succeeds", ["run", f"echo WARNING >{CRASH}; exit 0"], HOST_FAILED, "WARNING: "),
    ("a panic is no success", ["run", f"echo PANIC >{CRASH}"], HOST_FAILED, "Kernel panic"),
    ("a hang ends at the time limit", ["run", "--timeout", "25", "sleep 1000"], TIMED_OUT, "no end after 25 s"),
    ("a kernel warning of host B fails host A's command",
     ["pair", "--a", f"bash -c '{ASK}'", "--b", f"python3 -c '{SERVE}'; sleep 1000"], HOST_FAILED, "WARNING: "),
]


def add_arguments(parser):
    options.add_kdir(parser)


def main(args):
    report = ktap.Report(len(CASES))
    for name, (subcommand, *arguments), expected, text in CASES:
        kdir = ["--kdir", args.kdir] if args.kdir else []
        done = subprocess.run([REPO / "tools/vm/host", subcommand, "--quiet", *kdir, *arguments], stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
        why = None
        if done.returncode != expected:
            why = f"status {done.returncode}, not {expected}"
        elif text not in "\n" + done.stdout:
            why = f"no '{text.strip()}' in the output"
        report.result(name, why, done.stdout.splitlines() if why else ())
    return report.end()

# SPDX-License-Identifier: GPL-2.0-only
"""Boot two test hosts that are connected by a network link, and run a command in each.

Both are hosts of `tools/vm/host run`. Host A starts before B does: their TSCs count from
different values, and their wall clocks differ. B's command starts first, then A's. The end of
A's command ends both: A drives, B serves.
"""

import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

from paths import REPO

from . import options
from .outcome import HOST_FAILED, TIMED_OUT, HostError
from .results import results_folder

HOST = REPO / "tools/vm/host"

# How often each host is asked for its TSC; the tightest of the answers is shown.
QUESTIONS = 1000

# Seconds between the boots: A's TSC is ahead of B's by as much.
HEAD_START = 2

# Seconds for a host to power off.
PATIENCE = 60

EPILOG = f"""\
exit status:
  that of A's command, or if that is 0, that of B's if it ended before A's; else
  {TIMED_OUT}  the time limit was reached
  {HOST_FAILED}  a host failed as in `tools/vm/host run`, or truth.json was wrong

environment of both commands, besides that of `tools/vm/host run`:
  CLOCK_GUEST_ADDRESS  the address of this host
  CLOCK_GUEST_PEER     the address of the other one
CLOCK_GUEST_RESULTS is the folder a or b below the pair's results folder. It holds

  truth.json  {{"a": {{"ticks_offset": O, "ratio": R}}, "b": {{...}}}}
              both host TSCs follow from this machine's: at its TSC p, that of a host is
              ((p + O) * R) >> 32, where p + O is taken mod 2^64. Checked before the commands
              start, by reading each host's TSC between two readings of the machine's, and
              unchanged when they have ended.
  output.log  in b: the output of B's command; shown if the pair fails
"""


def add_arguments(parser):
    for side in "ab":
        parser.add_argument(f"--{side}", required=True, metavar="COMMAND", help=f"{side.upper()}'s command, passed to sh -c")
    for side in "ab":
        name = side.upper()
        parser.add_argument(f"--cpus-{side}", default="2", metavar="N", help=f"CPUs of {name} (default: 2)")
        parser.add_argument(f"--no-module-{side}", action="store_true", help=f"{name} loads KVM alone")
        parser.add_argument(f"--scaling-{side}", action="store_true", help=f"{name}'s CPU can scale a guest's TSC")
        parser.add_argument(f"--tsc-ratio-{side}", metavar="R", help=f"{name}'s TSC counts R times as fast as this machine's")
        parser.add_argument(f"--append-{side}", action="append", default=[], metavar="ARG",
                            help="kernel command line argument; may be repeated")
        parser.add_argument(f"--wall-{side}", type=int, default={"a": 0, "b": 7}[side], metavar="SECONDS",
                            help=f"how far {name}'s wall clock is ahead of this machine's, to a second (default: %(default)s)")
    parser.add_argument("--mem", default="2G", metavar="SIZE", help="memory of each (default: %(default)s)")
    options.add_kdir(parser)
    parser.add_argument("--timeout", type=float, default=600, metavar="SECONDS",
                        help="time limit for boots and commands (default: %(default)s)")
    parser.add_argument("--results", metavar="DIR", help="folder for all results (default: a new one in build/vm)")
    options.add_quiet(parser)


class Host:
    """One side: `tools/vm/host run` and its QEMU."""

    def __init__(self, side, args, results, link):
        self.side, self.name = side, f"host {side.upper()}"
        self.results = results / side
        self.results.mkdir(exist_ok=True)
        self.page = pathlib.Path(link, f"echo-{side}")
        for stale in ("ready", "status", "truth.json"):
            (self.results / stale).unlink(missing_ok=True)

        def option(name):
            return getattr(args, f"{name}_{side}")

        wall = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(time.time() + option("wall")))
        command = [HOST, "run", "--quiet", "--link", f"{side}:{link}", "--results", self.results, "--rtc", wall,
                   "--cpus", option("cpus"), "--mem", args.mem, "--timeout", str(args.timeout)]
        command += ["--kdir", args.kdir] if args.kdir else []
        command += ["--no-module"] if option("no_module") else []
        command += ["--scaling"] if option("scaling") else []
        command += [f"--tsc-ratio={option('tsc_ratio')}"] if option("tsc_ratio") else []
        command += [f"--append={argument}" for argument in option("append")]
        # A's output is the pair's; B's would mix with it.
        log = open(self.results / "output.log", "w") if side == "b" else None
        self.run = subprocess.Popen([*command, "--", getattr(args, side)], stdin=subprocess.DEVNULL, stdout=log,
                                    stderr=subprocess.STDOUT if log else None)

    def check(self):
        """Fail if the host has ended before end()."""
        if (status := self.run.poll()) is not None:
            # The run has printed why.
            raise HostError(f"{self.name} ended too early", TIMED_OUT if status == TIMED_OUT else HOST_FAILED)

    def wait_for(self, path):
        while not path.exists():
            self.check()
            time.sleep(0.1)

    def wait_ready(self):
        self.wait_for(self.results / "ready")
        self.qemu = int((self.results / "qemu.pid").read_text())
        self.offset_address = ticks_offset_address(self.qemu)
        asked = re.search(r"x-tcg-tsc-ratio=(\d+)", pathlib.Path(f"/proc/{self.qemu}/cmdline").read_text())
        self.ratio = int(asked[1]) if asked else 1 << 32

    def status(self):
        """Exit status of the command, None if it still runs."""
        try:
            return int((self.results / "status").read_text())
        except (FileNotFoundError, ValueError):
            return None

    def truth(self):
        """How this host's TSC follows from the machine's."""
        with open(f"/proc/{self.qemu}/mem", "rb") as memory:
            memory.seek(self.offset_address)
            offset = int.from_bytes(memory.read(8), "little", signed=True)
        return {"ticks_offset": offset, "ratio": self.ratio}

    def check_truth(self, truth, echo):
        """Compare the truth with the host's readings. Returns the narrowest read window in ticks of the machine's TSC."""
        asked = subprocess.run([echo, "ask", self.page, str(QUESTIONS)], stdout=subprocess.PIPE, text=True)
        if asked.returncode != 0:
            raise HostError(f"{self.name} did not report its TSC")
        brackets = [tuple(map(int, line.split())) for line in asked.stdout.splitlines()]
        for before, tsc, after in brackets:
            low, high = host_tsc(before, truth), host_tsc(after, truth)
            if not low <= tsc <= high:
                raise HostError(f"{self.name} read its TSC as {tsc} when by {truth} it was between {low} and {high}")
        if len(brackets) != QUESTIONS:
            raise HostError(f"{self.name} answered {len(brackets)} of {QUESTIONS} questions")
        return min(after - before for before, _, after in brackets)

    def go(self):
        # GO of tools/vm/inside/tsc-echo.c
        with open(self.page, "r+b") as page:
            page.write(b"\xff" * 8)

    def end(self):
        """Make it power off."""
        (self.results / "end").touch()

    def wait(self):
        """Return the exit status of the run, which has then checked the console."""
        try:
            return self.run.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise HostError(f"{self.name} did not power off within {PATIENCE} s") from None

    def kill(self):
        # The run ends its QEMU.
        self.run.terminate()
        self.run.wait()


def host_tsc(machine_tsc, truth):
    return ((machine_tsc + truth["ticks_offset"]) % 2**64 * truth["ratio"] >> 32) % 2**64


def ticks_offset_address(qemu):
    """The address of timers_state.cpu_ticks_offset in a QEMU, which it adds to the machine's TSC (system/cpu-timers.c)."""
    binary = os.readlink(f"/proc/{qemu}/exe")
    symbols = subprocess.run(["nm", "--dynamic", "--defined-only", binary], stdout=subprocess.PIPE, text=True, check=True).stdout
    symbol = re.search(r"^([0-9a-f]+) \w timers_state$", symbols, re.MULTILINE)
    if not symbol:
        raise HostError(f"{binary} does not export timers_state, which holds the emulated TSC's offset")
    with open(f"/proc/{qemu}/maps") as maps:
        base = next(int(line.split("-")[0], 16) for line in maps if line.rstrip().endswith(binary))
    # The first field is cpu_ticks_prev, 8 bytes as well.
    return base + int(symbol[1], 16) + 8


def run_pair(args, results, link, hosts):
    """Boot, check, run, end. Returns the exit status; `hosts` lists the hosts that were started."""
    echo = results / "tsc-echo"
    (results / "b/output.log").unlink(missing_ok=True)
    subprocess.run(["cc", "-O2", "-o", echo, REPO / "tools/vm/inside/tsc-echo.c"], check=True)
    hosts.append(Host("a", args, results, link))
    hosts[0].wait_for(pathlib.Path(link, "link"))
    time.sleep(HEAD_START)
    hosts.append(Host("b", args, results, link))
    for host in hosts:
        host.wait_ready()
    a, b = hosts
    truth = {host.side: host.truth() for host in hosts}
    for host in hosts:
        tightest = host.check_truth(truth[host.side], echo)
        if not args.quiet:
            print(f"{host.name}: its TSC is the predicted one, {QUESTIONS} times, at best to {tightest} ticks; "
                  f"console {host.results}/console.log", file=sys.stderr)
    for host in hosts:
        (host.results / "truth.json").write_text(json.dumps(truth) + "\n")
    b.go()
    a.go()
    while a.status() is None:
        for host in hosts:
            host.check()
        time.sleep(0.1)
    early = b.status()
    if truth != {host.side: host.truth() for host in hosts}:
        raise HostError("a host's TSC jumped: truth.json was not true until the end")
    for host in hosts:
        host.end()
    # A run returns another status than the command's only if its host failed.
    if [host.wait() for host in hosts] != [host.status() for host in hosts]:
        return HOST_FAILED
    return a.status() or early or 0


def main(args):
    results = results_folder(args.results, "pair")
    hosts, status = [], HOST_FAILED
    # A socket's path is short.
    with tempfile.TemporaryDirectory(prefix="clock-guest-pair-") as link:
        try:
            status = run_pair(args, results, link, hosts)
        except (OSError, subprocess.CalledProcessError) as error:
            # No compiler, no nm, no room.
            raise HostError(str(error)) from error
        finally:
            for host in hosts:
                host.kill()
            if status != 0:
                show_output(results / "b/output.log")
    return status


def show_output(log):
    if log.exists():
        print(f"the end of host B's output ({log}):", file=sys.stderr)
        for line in log.read_text(errors="replace").splitlines()[-40:]:
            print(f"  {line}", file=sys.stderr)

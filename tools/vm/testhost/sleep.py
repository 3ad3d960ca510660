# SPDX-License-Identifier: GPL-2.0-only
"""Boot a test host that can suspend to memory, and run one command in it.

It is the patched kernel under QEMU TCG as in `tools/vm/host run`, but on an initramfs: QEMU resets its
devices when it wakes a machine, and Linux cannot bring a 9p root back from that. The initramfs has
every program that the command names, and their libraries. Whenever the host suspends, it is woken
after --asleep seconds. COMMAND runs as root in the initramfs' copy of the repository's folder.
"""

import pathlib
import subprocess
import sys
import tempfile
import time

from paths import REPO, built

from . import image, options
from .kernel import Kernel, clock_guest_module
from .outcome import EXIT_STATUS, conclude
from .qmp import QMP, QMPError
from .run import CPU, SCALING_CPU

APPEND = [
    "console=ttyS0,115200", "loglevel=8", "log_buf_len=4M", "panic=-1",
    # As in `tools/vm/host run`.
    "tsc=reliable", "rcupdate.rcu_cpu_stall_timeout=60",
    # The module's KUnit tests run in other boots.
    "kunit.enable=0",
    # The console must show what the kernel prints while it suspends, splats above all.
    "no_console_suspend",
]

EPILOG = f"""\
{EXIT_STATUS}
The results folder gets console.log, the kernel's console, and output.log, the command's output.
"""


def add_arguments(parser):
    options.add_kdir(parser)
    options.add_module(parser)
    parser.add_argument("--mem", default="1G", metavar="SIZE", help="memory (default: %(default)s)")
    parser.add_argument("--with", dest="files", action="append", default=[], metavar="FILE",
                        help="a file that the command needs and does not name; may be repeated")
    options.add_scaling(parser)
    parser.add_argument("--tsc-restarts", action="store_true",
                        help="the host TSC restarts from 0 when the host wakes up")
    parser.add_argument("--asleep", type=float, default=1, metavar="SECONDS",
                        help="how long the host sleeps before it is woken (default: %(default)s)")
    options.add_timeout(parser)
    parser.add_argument("--results", metavar="DIR", help="folder for logs and initramfs (default: build/vm/sleep)")
    options.add_allow(parser)
    options.add_command(parser, "+")


def start_qemu(args, kernel, results, monitor):
    cpu = SCALING_CPU if args.scaling else CPU
    if args.tsc_restarts:
        cpu += ",x-tcg-tsc-restarts=on"
    return subprocess.Popen([
        # QEMU 7.2's q35 goes to sleep only once.
        str(built("qemu")), "-machine", "pc,accel=tcg", "-cpu", cpu, "-smp", "2", "-m", args.mem, "-nodefaults", "-display", "none",
        "-no-reboot", "-kernel", str(kernel.image), "-initrd", str(results / "initramfs"),
        "-append", " ".join([*APPEND, image.RESULTS_ARGUMENT]),
        "-serial", f"file:{results}/console.log", "-serial", f"file:{results}/output.log",
        "-qmp", f"unix:{monitor},server=on,wait=off",
    ], stdin=subprocess.DEVNULL, start_new_session=True)


class Sleeper:
    """Wakes the host when it has slept for a while."""

    def __init__(self, monitor, asleep):
        self._monitor, self._asleep, self._since = monitor, asleep, None

    def look(self):
        if self._monitor("query-status")["status"] != "suspended":
            self._since = None
            return
        now = time.monotonic()
        self._since = self._since or now
        if now - self._since >= self._asleep:
            self._monitor("system_wakeup")
            self._since = None


def boot(args, kernel, results):
    """Run the host. Returns the status as follow() does."""
    # The path of a socket may have 107 characters, that of the results folder more.
    with tempfile.TemporaryDirectory() as folder:
        monitor = pathlib.Path(folder) / "monitor"
        qemu = start_qemu(args, kernel, results, monitor)

        def is_running():
            return qemu.poll() is None

        try:
            sleeper = Sleeper(QMP(monitor, is_running, timeout=20), args.asleep)
            return image.follow(results / "output.log", args.timeout, is_running, sleeper.look)
        except QMPError as error:
            print(f"{args.parser.prog}: {error}", file=sys.stderr)
            return "none"
        finally:
            qemu.kill()
            qemu.wait()


def main(args):
    kernel, own = Kernel(args.kdir), clock_guest_module(args.module)
    results = pathlib.Path(args.results or REPO / "build/vm/sleep").resolve()
    results.mkdir(parents=True, exist_ok=True)
    console = results / "console.log"
    image.write_initramfs(results / "initramfs", kernel, "amd", own, " ".join(args.command), files=args.files)

    print(f"test host that sleeps: {kernel.kdir}, 2 CPUs, console {console}", file=sys.stderr)
    for last in (False, True):
        for log in (console, results / "output.log"):
            log.write_text("")
        status = boot(args, kernel, results)
        # Nothing was run yet then.
        if last or status != "uncalibrated":
            break
        print(f"{args.parser.prog}: the emulated host calibrated its TSC wrongly: booting it again", file=sys.stderr)
    return conclude(console, status, args.timeout, args.allow)

# SPDX-License-Identifier: GPL-2.0-only
"""Boot the test host and run one command in it.

The test host is the patched kernel under QEMU TCG (never /dev/kvm: a build
machine's may lack TSC offsets), with this machine's root file system read-only
underneath, KVM loaded, and kvm_clock_guest.ko loaded if it has been built.
The command runs as root in the repository's folder.
"""

import argparse
import fractions
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading

from paths import REPO, built

from . import options
from .job import ENVIRONMENT, job
from .kernel import Kernel
from .outcome import EXIT_STATUS, HostError, conclude
from .results import results_folder

# QEMU's -cpu argument: without TSC scaling, and with it. With 5-level paging KASAN takes an interrupt for a
# wild access while identify_cpu() has no feature noted.
CPU = "max,+svm,-la57,-tsc-scale"
SCALING_CPU = "max,+svm,-la57,+invtsc,+tsc-scale"

# The two ends of the link that `tools/vm/host pair` makes, with their addresses.
LINK = {"a": "10.0.0.1", "b": "10.0.0.2"}

INIT = REPO / "tools/vm/inside/init"

EPILOG = f"""\
{EXIT_STATUS}
{ENVIRONMENT}
The kernel's console is saved as console.log in the results folder.
"""


def add_arguments(parser):
    options.add_kdir(parser)
    options.add_module(parser, ", if it exists")
    parser.add_argument("--no-module", action="store_true", help="load KVM alone")
    parser.add_argument("--cpus", type=int, default=2, metavar="N", help="CPUs (default: %(default)s)")
    parser.add_argument("--mem", default="4G", metavar="SIZE", help="memory (default: %(default)s)")
    parser.add_argument("--append", action="append", default=[], metavar="ARG",
                        help="kernel command line argument; may be repeated")
    options.add_scaling(parser)
    parser.add_argument("--qemu", metavar="FILE", help="QEMU binary (default: the one that `make setup` built)")
    parser.add_argument("--qemu-cpu", metavar="MODEL",
                        help=f"QEMU's -cpu argument (default: {CPU}; {SCALING_CPU} with --scaling)")
    parser.add_argument("--tsc-ratio", type=tsc_ratio, metavar="R",
                        help="ticks of the host TSC per tick of this machine's, e.g. 0.75")
    parser.add_argument("--icount", action="store_true",
                        help="one CPU, whose TSC counts its instructions, one tick each; slower")
    parser.add_argument("--plugin", metavar="FILE[,ARG=VALUE]", help="QEMU's -plugin argument")
    parser.add_argument("--one-thread", action="store_true",
                        help="emulate all CPUs in one thread: with more threads, a CPU occasionally executes code that "
                             "another one is patching, as a kernel with jump labels does to itself")
    parser.add_argument("--rtc", metavar="BASE", help="QEMU's -rtc base: the wall clock that the host boots with")
    parser.add_argument("--link", type=link, metavar="SIDE:DIR",
                        help="host a or b of the two that `tools/vm/host pair` connects; for its use only")
    parser.add_argument("--timeout", type=float, metavar="SECONDS",
                        help="time limit for boot and command (default: 600; none for a shell)")
    parser.add_argument("--results", metavar="DIR",
                        help="folder for console.log and the command's own files (default: a new one in build/vm)")
    options.add_allow(parser)
    options.add_quiet(parser)
    options.add_command(parser, "*", "; none gives a shell")


def tsc_ratio(text):
    """The ratio with 32 fraction bits, as QEMU's x-tcg-tsc-ratio wants it."""
    ratio = round(fractions.Fraction(text) * 2**32)
    if not 2**24 <= ratio <= 2**40:
        raise argparse.ArgumentTypeError(f"{text} is not between 1/256 and 256")
    return ratio


def link(text):
    side, _, folder = text.partition(":")
    if side not in LINK or not folder:
        raise argparse.ArgumentTypeError(f"{text} is not a:DIR or b:DIR")
    return side, folder


def choose_emulator(args):
    """Fill in the options that follow from others."""
    args.qemu = args.qemu or str(built("qemu"))
    if shutil.which(args.qemu) is None:
        raise HostError(f"no {args.qemu}")
    if args.qemu_cpu is None:
        args.qemu_cpu = SCALING_CPU if args.scaling else CPU
    if args.tsc_ratio is not None:
        args.qemu_cpu += f",x-tcg-tsc-ratio={args.tsc_ratio}"
    if args.icount:
        args.cpus = 1


def qemu_options(args, results, console):
    # Without QEMU's default devices: the firmware waits for a drive, with --icount for minutes.
    words = ["-nodefaults", "-cpu", args.qemu_cpu]
    # With an eventfd for each of their queues the main loop polls some 400 files whenever it wakes up, which takes a
    # fifth of the emulator's CPU time.
    for device in "9p", "serial", "rng", "net", "blk":
        words += ["-global", f"virtio-{device}-pci.ioeventfd=off"]
    # A command's stderr must not mix with the kernel's console, so that goes to the log alone; a shell needs
    # the console itself.
    words += ["-set", f"chardev.console.{'path' if args.command else 'logfile'}={console}"]
    if args.icount:
        # 2^0 ns for an instruction, at 1 GHz.
        words += ["-icount", "shift=0"]
    if args.plugin:
        words += ["-plugin", args.plugin]
    if args.one_thread:
        words += ["-accel", "tcg,thread=single"]
    if args.rtc:
        words += ["-rtc", f"base={args.rtc}"]
    if args.link:
        words += link_options(results, *args.link)
    return shlex.join(words)


def link_options(results, side, folder):
    """QEMU's options for host a or b of a pair, whose common files are in `folder`."""
    return [
        "-pidfile", f"{results}/qemu.pid",
        # The wire.
        "-netdev", f"stream,id=link,server={'on' if side == 'a' else 'off'},addr.type=unix,addr.path={folder}/link",
        "-device", f"virtio-net-pci,netdev=link,mac=52:54:00:00:00:0{side},romfile=",
        # The page with which the host is asked for its TSC (tsc-echo.c).
        "-object", f"memory-backend-file,id=echo,share=on,size=4K,mem-path={folder}/echo-{side}",
        "-device", "ivshmem-plain,memdev=echo",
    ]


def vng_command(args, kernel, results, console):
    """The virtme-ng command line; it starts tools/vm/inside/init in the host."""
    vng = [
        "vng", "-r", str(kernel.image),
        "--disable-kvm", "--force-9p",
        "--user", "root", "--name", "clock-guest",
        "--cpus", str(args.cpus), "--memory", args.mem,
        "--cwd", str(REPO), f"--rwdir={results}", "--qemu", args.qemu,
        f"--qemu-opts={qemu_options(args, results, console)}",
    ]
    append = []
    # A distribution's kernel has 9p as modules, which virtme-ng loads from an initramfs, and needs all of udev.
    if not (kernel.kdir / "lib/modules").exists():
        vng += ["--skip-modules"]
        append += [f"PATH={REPO}/tools/vm/inside/boot"]
    append += [
        # 9p refuses the empty source that virtme-ng leaves. Without a cache each start of a program reads its
        # libraries again, a quarter of a boot. Nothing but the results changes while the host runs, and these are a
        # mount of their own.
        "root=/dev/root", "rootflags=version=9p2000.L,trans=virtio,access=any,msize=524288,cache=loose",
        f"clock_guest_results={results}",
        # Under emulation the watchdog's own readings are late, not the TSC.
        "tsc=reliable",
        # udev must not load KVM before the TSC is calibrated: see tools/vm/inside/init.
        "modprobe.blacklist=kvm,kvm_amd,kvm_intel,kvm_clock_guest",
        "loglevel=8", "log_buf_len=4M",
        # Emulated CPUs stall when the machine is busy.
        "rcupdate.rcu_cpu_stall_timeout=60",
    ]
    for argument in append + args.append:
        vng += ["--append", argument]
    if args.command:
        # --verbose sends the kernel's console to stderr, from where qemu_options() redirects it.
        return [*vng, "--verbose", "--", shlex.quote(str(INIT))]
    return [*vng, "--shell", str(INIT)]


def qemu_version(qemu):
    """The first line of `qemu --version`, or nothing if that fails."""
    asked = subprocess.run([qemu, "--version"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return asked.stdout.partition("\n")[0]


def link_variables(results, side):
    peer = "b" if side == "a" else "a"
    return {"CLOCK_GUEST_ADDRESS": LINK[side], "CLOCK_GUEST_PEER": LINK[peer], "tsc_echo": results.parent / "tsc-echo"}


def pump(source, sink):
    """Copy a pipe as it comes. virtme-ng's own output must be pipes: it reopens them by path, which truncates a file."""
    while chunk := os.read(source.fileno(), 65536):
        sink.buffer.write(chunk)
        sink.buffer.flush()


def run_batch(vng, env, timeout):
    """Run virtme-ng and stream its output. Returns its exit status, or None on timeout."""
    with subprocess.Popen(vng, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, start_new_session=True) as process:
        pumps = [threading.Thread(target=pump, args=pair, daemon=True)
                 for pair in ((process.stdout, sys.stdout), (process.stderr, sys.stderr))]
        for thread in pumps:
            thread.start()
        try:
            status = process.wait(timeout)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            # The session has only virtme-ng and its QEMU.
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait()
        for thread in pumps:
            thread.join()
        return status


def main(args):
    if args.link and not args.command:
        args.parser.error("--link needs a command")
    if not args.command and not sys.stdin.isatty():
        raise HostError("a shell needs a terminal: give a command")
    choose_emulator(args)
    kernel = Kernel(args.kdir)
    modules = kernel.kvm_modules()
    own = os.path.realpath(args.module) if os.path.exists(args.module) else ""
    if own and not args.no_module:
        modules.append(own)
    results = results_folder(args.results, "run")
    console = results / "console.log"
    console.write_text("")
    variables = link_variables(results, args.link[0]) if args.link else {}
    (results / "job").write_text(job(
        " ".join(args.command), kernel, modules, own,
        CLOCK_GUEST_RESULTS=results, CLOCK_GUEST_QEMU=qemu_version(args.qemu), **variables))

    env = dict(os.environ, PATH=f"{built('vng').parent}:{os.environ['PATH']}")
    vng = vng_command(args, kernel, results, console)
    timeout = args.timeout or 600
    if not args.command:
        return conclude(console, subprocess.run(vng, env=env).returncode, timeout, args.allow)
    if not args.quiet:
        print(f"test host: {kernel.kdir}, {args.cpus} CPUs, console {console}", file=sys.stderr)
    for last in (False, True):
        for stale in ("status", "uncalibrated", "ready", "end", "qemu.pid"):
            (results / stale).unlink(missing_ok=True)
        status = run_batch(vng, env, timeout)
        # Nothing was run yet then.
        if last or not (results / "uncalibrated").exists():
            break
        print(f"{args.parser.prog}: the emulated host calibrated its TSC wrongly, as it may under load: booting it again",
              file=sys.stderr)
        console.write_text("")
    if status is not None and not (results / "status").exists():
        status = f"virtme-ng returned {status}"
    return conclude(console, status, timeout, args.allow)

# SPDX-License-Identifier: GPL-2.0-only
"""Boot the Intel test host and run one command, or a plan, in it.

The Intel test host is the patched kernel under Debian's Bochs, an emulator that has VMX with EPT
and TSC scaling where QEMU has none: kvm_intel is loaded, and kvm_clock_guest.ko. It has one CPU,
whose TSC counts the instructions that Bochs executes, and no folder of this machine: it boots from
a CD image with the kernel, every program that the command or plan names, and their libraries.
COMMAND runs as root in the image's copy of the repository's folder.
"""

import os
import pathlib
import pty
import re
import shutil
import subprocess
import sys
import threading

from paths import REPO

from . import image, options
from .kernel import Kernel, clock_guest_module
from .outcome import EXIT_STATUS, HostError, conclude

# Instructions, and so ticks of the TSC, in an emulated second. Few, as a guest that spins while its VMM
# sleeps executes as many; but at 20 MHz polling VMMs leave their guests no time. No round number: there
# kvmclock grows by whole ns every few ticks, and not, as for any real CPU, every few seconds.
TSC_KHZ = 200_031

# Of Debian's Bochs 2.7. It lets VMX guests run with EPT and scales their TSC.
CPU_MODEL = "corei7_skylake_x"

# Files that tests use, but no command names.
USED_BY_TESTS = [REPO / "build/module-other-layout/kvm_clock_guest.ko", REPO / "target/release/vmm-sample"]

SCREEN = re.compile(rb'connected to screen "([^"]+)"')

APPEND = [
    "console=ttyS0,115200", "loglevel=5", "log_buf_len=4M", "panic=-1",
    # CPUID reports the real CPU's rate.
    "tsc=reliable", f"tsc_early_khz={TSC_KHZ}", "no_timer_check",
    # Bochs' XSAVE state is not as large as its parts: Linux would give XSAVE up, and crash.
    "noxsave",
    # The model's CPUID reports 8 cores, Bochs one: Linux warns of the contradiction.
    "clearcpuid=ht",
    "nokaslr", "mitigations=off",
]

BOCHSRC = """\
display_library: term
memory: guest=1024, host=1024
boot: cdrom
ata0-master: type=cdrom, path="{results}/image.iso", status=inserted
cpu: model={model}, count=1, ips={ips}, reset_on_triple_fault=0, ignore_bad_msrs=1
clock: sync=none, time0=utc
com1: enabled=1, mode=file, dev="{results}/console.log"
com2: enabled=1, mode=file, dev="{results}/output.log"
log: {results}/bochs.log
panic: action=fatal
error: action=ignore
info: action=ignore
"""

GRUB = """\
set timeout=0
linux /boot/bzImage {append}
initrd /boot/initramfs
boot
"""

# The folder of the modules that tests load, beside kvm_clock_guest.ko.
TEST_MODULES = "tools/testing/selftests/kvm_clock_guest/modules"

EPILOG = f"""\
{EXIT_STATUS}
The results folder gets console.log, the kernel's console, and output.log, the command's output.
The exit status comes from the serial lines, not from Bochs, which panics at a power-off.
"""


def add_arguments(parser):
    options.add_kdir(parser)
    options.add_module(parser)
    options.add_timeout(parser)
    parser.add_argument("--results", metavar="DIR", help="folder for logs and image (default: build/vm/intel)")
    parser.add_argument("--plan", metavar="FILE", help="run this plan with tools/vm/inside/plan")
    options.add_command(parser, "*")


def make_cd(results, kernel, own, command, plan):
    """Write the CD: GRUB, the kernel, and the initramfs."""
    disk = results / "iso"
    shutil.rmtree(disk, ignore_errors=True)
    (disk / "boot/grub").mkdir(parents=True)
    shutil.copy2(kernel.image, disk / "boot")
    # A test that misses one of these says so.
    others = [file for file in USED_BY_TESTS if file.exists()]
    tests = pathlib.Path(own).parent.glob(f"{TEST_MODULES}/*.ko")
    image.write_initramfs(disk / "boot/initramfs", kernel, "intel", own, command, plan, [*tests, *others])
    (disk / "boot/grub/grub.cfg").write_text(GRUB.format(append=" ".join([*APPEND, image.RESULTS_ARGUMENT])))
    made = subprocess.run(["grub-mkrescue", "-o", str(results / "image.iso"), str(disk),
                           "--install-modules=linux normal iso9660 biosdisk"],
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if made.returncode != 0:
        raise HostError("grub-mkrescue failed:", lines=made.stdout.splitlines())
    shutil.rmtree(disk)


class Bochs:
    """The emulator, on a terminal of its own: it has no mode without a screen."""

    def __init__(self, results):
        config, debugger = results / "bochsrc", results / "debugger"
        config.write_text(BOCHSRC.format(results=results, model=CPU_MODEL, ips=TSC_KHZ * 1000))
        # Debian's Bochs waits for its debugger to say go.
        debugger.write_text("c\n")
        screen, terminal = pty.openpty()
        self.process = subprocess.Popen(["bochs-bin", "-q", "-f", str(config), "-rc", str(debugger)],
                                        env=dict(os.environ, TERM="xterm"), stdin=terminal, stdout=terminal,
                                        stderr=terminal, start_new_session=True)
        os.close(terminal)
        self._drain(screen)

    def _drain(self, terminal):
        """Read what it prints: it would wait for ever once a terminal is full.

        A Bochs with a debugger has the emulated screen on one more terminal, and prints that one's name.
        """

        def read():
            printed = b""
            try:
                while new := os.read(terminal, 65536):
                    printed = (printed + new)[-4096:]
                    if found := SCREEN.search(printed):
                        printed = b""
                        self._drain(os.open(found[1], os.O_RDWR | os.O_NOCTTY))
            except OSError:
                os.close(terminal)

        threading.Thread(target=read, daemon=True).start()

    def is_running(self):
        return self.process.poll() is None

    def end(self):
        # It catches all other signals that would end it.
        self.process.kill()
        self.process.wait()


def main(args):
    if bool(args.plan) == bool(args.command):
        args.parser.error("give either a command or a plan")
    needed = ("bochs-bin", "grub-mkrescue", "xorriso", "mformat", "cpio")
    if missing := [tool for tool in needed if not shutil.which(tool)]:
        raise HostError(f"no {', '.join(missing)}: run `scripts/setup --intel` first")
    kernel, own = Kernel(args.kdir), clock_guest_module(args.module)
    results = pathlib.Path(args.results or REPO / "build/vm/intel").resolve()
    results.mkdir(parents=True, exist_ok=True)
    console, output = results / "console.log", results / "output.log"
    for log in (console, output):
        log.write_text("")
    command, plan = " ".join(args.command), None
    if args.plan:
        command, plan = f"tools/vm/inside/plan {image.RESULTS}/plan", pathlib.Path(args.plan).read_text()
    make_cd(results, kernel, own, command, plan)

    print(f"Intel test host: {kernel.kdir}, 1 CPU of {TSC_KHZ} kHz, console {console}", file=sys.stderr)
    bochs = Bochs(results)
    try:
        status = image.follow(output, args.timeout, bochs.is_running)
    finally:
        bochs.end()
    return conclude(console, status, args.timeout)

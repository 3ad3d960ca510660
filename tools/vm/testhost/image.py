# SPDX-License-Identifier: GPL-2.0-only
"""A root file system of a few programs of this machine, for test hosts that cannot use this machine's own."""

import os
import pathlib
import re
import shlex
import shutil
import subprocess
import time

from paths import REPO

from .job import job

INSIDE = REPO / "tools/vm/inside"

# The programs that tools/vm/inside/init and tools/vm/inside/plan need, with paths as here.
TOOLS = ["/bin/sh", "/bin/bash", "/usr/bin/sed", "/usr/bin/grep", "/usr/bin/timeout", "/usr/bin/mountpoint"]

# The last line of the output: tools/vm/inside/initramfs-init writes it.
END = re.compile(r"initramfs-init: status (\d+|none|uncalibrated)")

# The results folder inside, as a kernel command line argument as well.
RESULTS = "/results"
RESULTS_ARGUMENT = f"clock_guest_results={RESULTS}"


class Image:
    """The root file system: files of this machine, at the same paths."""

    def __init__(self, root):
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
        self.root = root

    def add(self, path):
        """Add a file, and the symbolic links that lead to it."""
        left = list(pathlib.Path(os.path.abspath(path)).parts[1:])
        here = pathlib.Path("/")
        while left:
            here /= left.pop(0)
            copy = self.root / here.relative_to("/")
            if here.is_symlink():
                if not copy.is_symlink():
                    copy.symlink_to(os.readlink(here))
                left = [*pathlib.Path(os.path.normpath(here.parent / os.readlink(here))).parts[1:], *left]
                here = pathlib.Path("/")
            elif here.is_dir():
                copy.mkdir(exist_ok=True)
            elif not copy.exists():
                shutil.copy2(here, copy)

    def add_program(self, path):
        """Add a program, and the libraries or the interpreter that it needs."""
        self.add(path)
        with open(path, "rb") as file:
            start = file.read(64)
        if start.startswith(b"#!"):
            self.add_program(start[2:].split()[0].decode())
        elif start.startswith(b"\x7fELF"):
            listed = subprocess.run(["ldd", path], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
            for library in re.findall(r"(/\S+) \(0x", listed):
                self.add(library)

    def write(self, path, text):
        """Write a file that this machine does not have."""
        copy = self.root / pathlib.Path(path).relative_to("/")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(text)

    def pack(self, archive):
        """Write an initramfs, and remove the folder. This kernel unpacks no compressed one."""
        names = subprocess.run(["find", ".", "-print0"], cwd=self.root, check=True, stdout=subprocess.PIPE).stdout
        with open(archive, "wb") as file:
            subprocess.run(["cpio", "--quiet", "--null", "-o", "-H", "newc", "-R", "0:0"], cwd=self.root, check=True,
                           input=names, stdout=file)
        shutil.rmtree(self.root)


def programs(commands):
    """The executable files that these shell commands name."""
    for command in commands:
        words = shlex.shlex(command, posix=True, punctuation_chars=True)
        words.whitespace_split = True
        for word in words:
            path = REPO / word
            if path.is_file() and os.access(path, os.X_OK):
                yield str(path)


def write_initramfs(archive, kernel, vendor, own, command, plan=None, files=()):
    """Write an initramfs whose /init runs `command` as tools/vm/inside/init does.

    It has the programs that `command` and the lines of `plan` name, and `files`.
    """
    modules = [*kernel.kvm_modules(vendor), own]
    image = Image(archive.with_name("root"))
    commands = [command]
    if plan is not None:
        image.write(f"{RESULTS}/plan", plan)
        commands += [line.split("\t")[3] for line in plan.splitlines()]
    for program in [*TOOLS, str(INSIDE / "init"), *programs(commands)]:
        image.add_program(program)
    for file in [*modules, "/bin/busybox", REPO / "scripts/ktap.sh", *files]:
        image.add(file)
    shutil.copy2(INSIDE / "initramfs-init", image.root / "init")
    image.write(f"{RESULTS}/job", job(command, kernel, modules, own, CLOCK_GUEST_RESULTS=RESULTS))
    image.pack(archive)


def follow(log, timeout, is_running, poll=lambda: None):
    """Print the host's output as it comes, from the file `log`.

    Returns the command's status, None on timeout, or a string if the host ended first. `poll` is called
    ten times a second.
    """
    deadline = time.monotonic() + timeout
    rest = ""
    with open(log, errors="replace") as output:
        while True:
            running = is_running()
            lines = (rest + output.read()).split("\n")
            rest = lines.pop()
            for line in lines:
                if end := END.fullmatch(line):
                    return int(end[1]) if end[1].isdigit() else end[1]
                print(line, flush=True)
            if not running:
                return "none"
            if time.monotonic() > deadline:
                return None
            poll()
            time.sleep(0.1)

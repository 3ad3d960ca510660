# SPDX-License-Identifier: GPL-2.0-only
"""The guest's initramfs: busybox, guest-init as /init, and the probe, which is built here."""

import pathlib
import subprocess

from paths import REPO

HERE = pathlib.Path(__file__).resolve().parent
BUSYBOX = pathlib.Path("/usr/bin/busybox")


def build_probe(path):
    """Linked statically: the guest has no libraries, and the test host starts it faster."""
    subprocess.run([REPO / "scripts/env", "--", "rustc", "--edition", "2021", "-O", "-D", "warnings",
                    "-C", "target-feature=+crt-static", "-C", "panic=abort", "-C", "strip=symbols",
                    "-o", path, HERE / "probe.rs"], check=True)


def build_preload(path):
    """The library that stands between QEMU and the C library, which is this machine's."""
    subprocess.run(["cc", "-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-o", path, HERE / "interpose.c"], check=True)


def entry(number, name, mode, content=b""):
    """One file of a cpio archive of the kind that the kernel unpacks ("newc")."""
    fields = [number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0]
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
    return b"".join(part + b"\0" * (-len(part) % 4) for part in (head, content))


def make(path, probe):
    """Write the initramfs to `path`."""
    directories = ["bin", "dev", "proc", "sys"]
    files = {"init": HERE / "guest-init", "bin/busybox": BUSYBOX, "bin/probe": probe}
    entries = [entry(number, name, 0o040755) for number, name in enumerate(directories, 1)]
    entries += [entry(100 + number, name, 0o100755, source.read_bytes())
                for number, (name, source) in enumerate(files.items())]
    # The kernel's own messages need a console before /dev is mounted; it makes that itself.
    entries.append(entry(0, "TRAILER!!!", 0))
    path.write_bytes(b"".join(entries))

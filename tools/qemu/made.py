# SPDX-License-Identifier: GPL-2.0-only
"""What `make setup` made."""

import pathlib
import subprocess
import sys

REPO = pathlib.Path(__file__).resolve().parents[2]


def made(what, otherwise=""):
    """Its path; ends the program if it is not there, and tells what to do, or `otherwise`."""
    asked = subprocess.run([REPO / "scripts/env", what], stdout=subprocess.PIPE, text=True)
    if asked.returncode != 0:
        sys.exit(f"tools/qemu/check: no {what} yet: run `make setup QEMU=1` first{otherwise}")
    return asked.stdout.strip()

# SPDX-License-Identifier: GPL-2.0-only
"""Options that several subcommands share."""

import os

from paths import REPO

MODULE = REPO / "build/module/kvm_clock_guest.ko"


def add_kdir(parser):
    parser.add_argument("--kdir", default=os.environ.get("KDIR"), metavar="DIR",
                        help="built kernel tree or O= folder (default: $KDIR, else the one that `make setup` built)")


def add_module(parser, more=""):
    parser.add_argument("--module", default=str(MODULE), metavar="FILE",
                        help=f"kvm_clock_guest.ko to load{more} (default: %(default)s)")


def add_timeout(parser, default=600):
    parser.add_argument("--timeout", type=float, default=default, metavar="SECONDS",
                        help="time limit for boot and command (default: %(default)s)")


def add_scaling(parser):
    parser.add_argument("--scaling", action="store_true",
                        help="a CPU that can scale a guest's TSC")


def add_allow(parser):
    parser.add_argument("--allow", action="append", default=[], metavar="REGEX",
                        help="a kernel splat that does not fail the run, but must appear; may be repeated")


def add_quiet(parser):
    parser.add_argument("--quiet", action="store_true", help="do not print a line about the run itself")


def add_command(parser, nargs, more=""):
    parser.add_argument("command", nargs=nargs, metavar="COMMAND",
                        help=f"passed to sh -c; several words are joined with blanks{more}")

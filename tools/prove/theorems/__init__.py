# SPDX-License-Identifier: GPL-2.0-only
"""Every theorem; importing a module here registers its own."""

from . import products, tsc, record, wide, rate, plan, reslope  # noqa: F401

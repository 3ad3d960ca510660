# SPDX-License-Identifier: GPL-2.0-only
"""Numbers in README.md, the pages and `make help`: taken from runs, kept in Documentation/data, written between marks."""

# SPDX-License-Identifier: GPL-2.0-only
"""Tables of text."""


def widths(rows):
    """The width of each column."""
    return [max(map(len, column)) for column in zip(*rows)]


def columns(rows, left=None):
    """The lines of a table: the first `left` columns, by default all, are aligned to the left, the others to the right."""
    found = widths(rows)
    for row in rows:
        cells = [text.ljust(width) if left is None or index < left else text.rjust(width)
                 for index, (text, width) in enumerate(zip(row, found))]
        yield "  ".join(cells).rstrip()

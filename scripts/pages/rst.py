# SPDX-License-Identifier: GPL-2.0-only
"""Tables of reStructuredText."""


def table(head, rows):
    r"""The lines of a simple table. A cell of the first column that is empty goes on below the one before.

    >>> print("\n".join(table(["a", "number"], [["x", "1"], ["", "2,000"]])))
    == ======
    a  number
    == ======
    x  1
    \  2,000
    == ======
    """
    rows = [[row[0] or "\\", *row[1:]] for row in rows]
    # A column of one character would be an enumeration, or a title's line.
    widths = [max(2, *map(len, column)) for column in zip(head, *rows)]
    line = " ".join("=" * width for width in widths)
    cells = [" ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in [head, *rows]]
    return [line, cells[0], line, *cells[1:], line]

# SPDX-License-Identifier: GPL-2.0-only
"""Blocks of a text, between a line `begin: NAME` and a line `end: NAME`, each in a comment of the text's language."""

import re

_MARK = re.compile(r"^ *(?:\.\.|<!--|#) (begin|end): ([\w-]+)(?: -->)?$")


class Broken(Exception):
    """The marks of a text do not match."""


def rewrite(text, contents):
    r"""Replace the lines of each block by contents(name, lines).

    >>> print(rewrite("a\n.. begin: b\n\nold\n\n.. end: b\nc", lambda name, lines: [name.upper(), *lines]))
    a
    .. begin: b
    <BLANKLINE>
    B
    old
    <BLANKLINE>
    .. end: b
    c

    An empty line stays after the first mark, and before the last one, if there is one.

    >>> rewrite("# begin: b\nold\n# end: b", lambda name, lines: ["new"])
    '# begin: b\nnew\n# end: b'
    >>> rewrite(".. begin: b\n.. end: c", None)
    Traceback (most recent call last):
    marks.Broken: end: c, but the block is b
    >>> rewrite("<!-- begin: b -->\n", None)
    Traceback (most recent call last):
    marks.Broken: block b has no end
    """
    out, name, block = [], None, []
    for line in text.split("\n"):
        kind, found = match.groups() if (match := _MARK.match(line)) else (None, None)
        if kind == "begin" and name is None:
            name, block = found, []
        elif kind and (kind, found) != ("end", name):
            raise Broken(f"{kind}: {found}, but the block is {name}")
        elif kind:
            out += _framed(block, lambda lines: contents(found, lines))
            name = None
        elif name is not None:
            block.append(line)
            continue
        out.append(line)
    if name is not None:
        raise Broken(f"block {name} has no end")
    return "\n".join(out)


def _framed(block, contents):
    first, last = block[:1] == [""], block[-1:] == [""]
    return [""] * first + contents(block[first:len(block) - last]) + [""] * last

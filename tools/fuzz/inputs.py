# SPDX-License-Identifier: GPL-2.0-only
r"""Kept inputs: a text file for each target, in the syntax of libFuzzer's dictionaries.

A line is an input: a name and `=`, if it has a name, then its bytes in quotes. Printable ASCII but the backslash stands for
itself, quotes too, as the last one of the line ends the input; any other byte is `\x` and two hexadecimal digits. A line
that begins with `#` is a comment.

>>> write_bytes(b'{"a": 1}\n')
'"{"a": 1}\\x0a"'
>>> read_bytes(write_bytes(bytes(range(256)))) == bytes(range(256))
True
"""

import re

LICENSE = "# SPDX-License-Identifier: GPL-2.0-only"


def write_bytes(data):
    return '"{}"'.format("".join(chr(byte) if 32 <= byte < 127 and byte != ord("\\") else f"\\x{byte:02x}" for byte in data))


def read_bytes(text):
    assert len(text) >= 2 and text[0] == text[-1] == '"', text
    return re.sub(rb"\\x([0-9a-f]{2})", lambda match: bytes([int(match[1], 16)]), text[1:-1].encode("ascii"))


def read(file):
    """({name: input}, {line number: input}) of a file, with and without a name; both are empty if there is no file."""
    named, others = {}, {}
    for number, line in enumerate(file.read_text().splitlines() if file.exists() else [], 1):
        if not line.startswith("#"):
            name, text = re.fullmatch(r'(?:([a-z][\w-]*)=)?(".*")', line).groups()
            (named if name else others)[name or str(number)] = read_bytes(text)
    return named, others


def write(file, named, others):
    """Write the inputs with a name, and then the others, each once, in the order of their bytes."""
    others = sorted(set(others) - set(named.values()))
    lines = [LICENSE, *(f"{name}={write_bytes(data)}" for name, data in named.items()), *map(write_bytes, others)]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(lines) + "\n")


def unpack(file, folder):
    """Write each input of a file into a file of its own, named by the input's name or line number."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    for inputs in read(file):
        for name, data in inputs.items():
            (folder / name).write_bytes(data)

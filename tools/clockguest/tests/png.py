# SPDX-License-Identifier: GPL-2.0-only
"""Reads PNG files with 8-bit RGBA, as the report writes them."""

import struct
import zlib


class Png:
    def __init__(self, path):
        data = path.read_bytes()
        if data[:8] != b"\x89PNG\r\n\x1a\n":
            raise AssertionError(f"{path.name} is not a PNG")
        self.width, self.height, depth, kind = struct.unpack(">IIBB", data[16:26])
        if (depth, kind) != (8, 6):
            raise AssertionError(f"{path.name} is not 8-bit RGBA")
        packed, at = b"", 8
        while at < len(data):
            size, name = struct.unpack(">I4s", data[at:at + 8])
            packed += data[at + 8:at + 8 + size] if name == b"IDAT" else b""
            at += 12 + size
        rows, stride = zlib.decompress(packed), 4 * self.width + 1
        # As stored: the number of a filter, and the filtered bytes.
        self.lines = [rows[row * stride:(row + 1) * stride] for row in range(self.height)]

    def colours(self, least=30):
        """Return the colours of at least `least` pixels."""
        above, counts = bytes(4 * self.width), {}
        for line in self.lines:
            above = unfilter(line[0], bytearray(line[1:]), above)
            for pixel in range(0, len(above), 4):
                colour = bytes(above[pixel:pixel + 4])
                counts[colour] = counts.get(colour, 0) + 1
        return {colour for colour, count in counts.items() if count >= least}


def unfilter(kind, line, above):
    """Undo the filter of a line."""
    for i in range(len(line) if kind else 0):
        left, up, corner = line[i - 4] if i > 3 else 0, above[i], above[i - 4] if i > 3 else 0
        if kind == 4:
            guess = left + up - corner
            near = min((left, up, corner), key=lambda value: abs(guess - value))
        else:
            near = {1: left, 2: up, 3: (left + up) // 2}[kind]
        line[i] = (line[i] + near) & 255
    return line

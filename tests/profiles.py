"""Small colour profiles, written as ICC.1 lays them out: Display P3 by its primaries, and an ink of simple laws."""

import struct

import numpy as np

D50 = (0.9642, 1.0, 0.8249)
P3_TO_XYZ_D50 = ((0.51512, 0.29198, 0.15710), (0.24120, 0.69225, 0.06657), (-0.00105, 0.04189, 0.78407))
"""Rows give X, Y, Z; columns red, green, blue: the colorants of Apple's Display P3."""


def p3(gamma: float | None = None, space: bytes = b"RGB ") -> bytes:
    """A matrix profile with the primaries of P3, and a power or (by default) the curve of sRGB, as Display P3 has."""
    law = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
    curve = _power(gamma) if gamma else b"para" + struct.pack(">IHH", 0, 3, 0) + b"".join(map(_s15, law))
    tags = {b"wtpt": _xyz(D50)}
    for name, column in zip((b"r", b"g", b"b"), zip(*P3_TO_XYZ_D50, strict=True), strict=True):
        tags |= {name + b"XYZ": _xyz(column), name + b"TRC": curve}
    return _profile(b"mntr", space, b"XYZ ", tags)


def grey(gamma: float) -> bytes:
    """A profile of grey values whose light is their power."""
    return _profile(b"mntr", b"GRAY", b"XYZ ", {b"wtpt": _xyz(D50), b"kTRC": _power(gamma)})


def ink() -> bytes:
    """A CMYK profile by a table of its 16 corners: lightness falls with black and with the mean of the colours.

    a and b are 0, so every colour is a grey: paper is L* 100, black ink 20, full colours without black 40.
    """
    lut = b"mft1" + struct.pack(">I4B", 0, 4, 3, 2, 0) + b"".join(_s15(v) for v in (1, 0, 0, 0, 1, 0, 0, 0, 1))
    ramp = bytes(range(256))
    corners = [lightness(*corner) for corner in np.ndindex(2, 2, 2, 2)]
    table = b"".join(bytes((round(value * 255 / 100), 128, 128)) for value in corners)
    lut += ramp * 4 + table + ramp * 3
    return _profile(b"prtr", b"CMYK", b"Lab ", {b"wtpt": _xyz(D50), b"A2B0": lut})


def lightness(cyan: float, magenta: float, yellow: float, black: float) -> float:
    """L* of an ink, each share from 0 to 1."""
    return (100 - 60 * (cyan + magenta + yellow) / 3) * (1 - 0.8 * black)


def _power(gamma: float) -> bytes:
    return b"curv" + struct.pack(">IIH", 0, 1, round(gamma * 256)) + bytes(2)


def _s15(value: float) -> bytes:
    return struct.pack(">i", round(value * 65536))


def _xyz(values: tuple[float, ...]) -> bytes:
    return b"XYZ " + bytes(4) + b"".join(map(_s15, values))


def _profile(kind: bytes, space: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    tags = {b"desc": b"desc" + struct.pack(">II", 0, 5) + b"test\0" + bytes(78), **tags}
    offset, table, body = 128 + 4 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name, content in tags.items():
        content += bytes(-len(content) % 4)
        table += name + struct.pack(">II", offset + len(body), len(content))
        body += content
    version = 0x04000000 if b"rTRC" in tags else 0x02400000
    header = struct.pack(">III4s4s4s", offset + len(body), 0, version, kind, space, connection)
    header += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + b"".join(map(_s15, D50))
    return header + bytes(128 - len(header)) + table + body

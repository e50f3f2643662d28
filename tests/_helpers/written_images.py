"""Image files whose samples are known, of kinds that Pillow does not write."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence


def png(
    width: int, height: int, depth: int, color: int, rows: bytes, key: Sequence[int] = ()
) -> bytes:
    """A PNG of raw rows, each behind its filter byte, with a transparent color if there is one."""
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    if key:
        chunks.insert(1, (b"tRNS", struct.pack(f">{len(key)}H", *key)))
    bodies = ((len(content), kind + content) for kind, content in chunks)
    parts = (
        struct.pack(">I", n) + body + struct.pack(">I", zlib.crc32(body)) for n, body in bodies
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff(
    width: int,
    bits: int,
    data: bytes,
    photometric: int = 1,
    bands: int = 1,
    sample_format: int = 1,
    deflated: bool = False,
) -> bytes:
    """A TIFF of one row, without ExtraSamples."""
    data = zlib.compress(data) if deflated else data
    long = bands > 2
    tags = {
        256: width, 257: 1, 258: bits, 259: 8 if deflated else 1, 262: photometric, 273: 0,
        277: bands, 278: 1, 279: len(data), 339: sample_format,
    }  # fmt: skip
    end = 8 + 2 + 12 * len(tags) + 4
    tags[273] = end + (2 * bands if long else 0)
    entries = b"".join(
        struct.pack("<HHII", tag, 3, bands, end)
        if tag == 258 and long
        else struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, value)
        for tag, value in tags.items()
    )
    many = struct.pack(f"<{bands}H", *[bits] * bands) if long else b""
    head = b"II*\0" + struct.pack("<IH", 8, len(tags))
    return head + entries + bytes(4) + many + data


def tga(pixels: Sequence[Sequence[int]], alpha_bits: int) -> bytes:
    """A TGA of one row of 32 bits a pixel; the pixels are (red, green, blue, fourth)."""
    head = struct.pack("<3B5x4H2B", 0, 0, 2, 0, 0, len(pixels), 1, 32, alpha_bits | 0x20)
    return head + b"".join(bytes([b, g, r, a]) for r, g, b, a in pixels)


def bmp(pixels: Sequence[Sequence[int]], has_alpha: bool) -> bytes:
    """A BMP of one row of 32 bits a pixel, whose header (V4) has a mask of alpha or not."""
    data = b"".join(bytes([b, g, r, a]) for r, g, b, a in pixels)
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000 if has_alpha else 0)
    head = struct.pack("<IiiHHIIiiII", 108, len(pixels), 1, 1, 32, 3, len(data), 0, 0, 0, 0)
    head += masks + bytes(108 - len(head) - len(masks))
    start = 14 + len(head)
    return b"BM" + struct.pack("<IHHI", start + len(data), 0, 0, start) + head + data

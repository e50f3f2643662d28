"""Outlines of COCO's annotations as runs of pixels, checked before pycocotools draws them.

pycocotools does not validate its input: NaN, distant coordinates or runs that do not fit the image
make it access memory out of bounds or exhaust it. Every outline is checked here first.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import ModuleType
from typing import Any

import numpy as np

#: Largest length of an outline, in borders of its image, which bounds the memory to draw it.
#: Outlines traced pixel by pixel are far shorter.
MAX_TURNS = 100
#: The same in pixels, for images of one long line; drawing takes 80 bytes a pixel.
MAX_LENGTH = 2**22
#: Number of bits of the largest run that can be compressed.
MAX_BITS = 35


def encode_outline(segmentation: Any, height: int, width: int) -> tuple[bytes, list[str]]:
    """Encode an annotation's `segmentation` as COCO's compressed runs.

    Args:
        segmentation: Polygons [[x, y, x, y, ...], ...], or {"size": [height, width], "counts":
            runs} with runs as numbers or text.
        height: Height of the image in pixels, at least 1.
        width: Width of the image in pixels, at least 1.

    Returns:
        The runs, empty if no pixel is covered, and the reasons why parts were skipped, such as
        polygons with fewer than three points.

    Raises:
        ValueError: If the format is another, coordinates are far from the image, or runs do not fit
            it.
        ImportError: If pycocotools is missing.
    """
    mask = _import_mask()
    if isinstance(segmentation, list):
        polygons, skipped = _check_polygons(segmentation, height, width)
        if not polygons:
            return b"", skipped
        outline = mask.merge(mask.frPyObjects(polygons, height, width))
    else:
        if not isinstance(segmentation, dict) or not {"size", "counts"} <= segmentation.keys():
            raise ValueError(f"it is {segmentation!r:.80}, expected polygons, or a size and counts")
        if segmentation["size"] != [height, width]:
            raise ValueError(
                f"it has size {segmentation['size']!r:.80}, its image {[height, width]}"
            )
        counts, skipped = segmentation["counts"], []
        if counts in ("", []):
            return b"", ["an outline without runs"]
        runs = _check_runs(counts, height, width)
        outline = mask.frPyObjects({"size": [height, width], "counts": runs}, height, width)
    return (bytes(outline["counts"]) if mask.area(outline) else b""), skipped


def decode_outlines(outlines: Iterable[bytes], height: int, width: int) -> np.ndarray:
    """Return the union of outlines.

    Args:
        outlines: Runs from `encode_outline` for the same size.
        height: Height of the image in pixels.
        width: Width of the image in pixels.

    Returns:
        Array (height, width) of bool.
    """
    runs = [{"size": [height, width], "counts": outline} for outline in outlines]
    if not runs:
        return np.zeros((height, width), bool)
    mask = _import_mask()
    covered: np.ndarray = mask.decode(mask.merge(runs)).astype(bool)
    return covered


def _check_polygons(
    polygons: list[Any], height: int, width: int
) -> tuple[list[list[float]], list[str]]:
    """Return the polygons that can be drawn, and the reasons for skipping others."""
    drawable: list[list[float]] = []
    skipped = [] if polygons else ["an outline without polygons"]
    length = 0.0
    for polygon in polygons:
        if not isinstance(polygon, list) or not set(map(type, polygon)) <= {int, float}:
            raise ValueError(f"a polygon is {polygon!r:.80}, expected a list of numbers")
        expected = f"a polygon of {len(polygon)} numbers, expected x, y of 3 points or more"
        if len(polygon) < 6:
            skipped.append(expected)
            continue
        if len(polygon) % 2:
            raise ValueError(expected)
        length += _boundary_length(polygon, height, width)
        drawable.append(polygon)
    if length > min(MAX_TURNS * 2 * (height + width), MAX_LENGTH):
        raise ValueError(
            f"its outline is {length:.0f} pixels long, expected at most {MAX_TURNS} times the "
            f"border of its image of {width} x {height}, and {MAX_LENGTH:,}"
        )
    return drawable, skipped


def _boundary_length(polygon: list[float], height: int, width: int) -> float:
    """Return the length of a polygon's boundary in pixels.

    Raises:
        ValueError: If a point is far from the image.
    """
    try:
        points = np.array([*polygon, *polygon[:2]], dtype=float).reshape(-1, 2)
    except OverflowError:  # integers beyond the range of floats
        points = np.full((1, 2), np.inf)
    sides = np.array([width, height])
    near = (points >= -sides) & (points <= 2 * sides)  # False for NaN
    if not near.all():
        x, y = points[~near.all(axis=1)][0]
        raise ValueError(
            f"a polygon has the point ({x:g}, {y:g}), expected x in {-width}..{2 * width} and y "
            f"in {-height}..{2 * height}, at or near its image of {width} x {height}"
        )
    return float(np.abs(np.diff(points, axis=0)).max(axis=1).sum())


def _check_runs(counts: Any, height: int, width: int) -> list[int]:
    """Return runs as numbers that cover the image exactly, with no empty run after the first.

    pycocotools reads out of bounds when it merges outlines with empty runs inside.
    """
    runs = _decompress(counts) if isinstance(counts, str) else counts
    if not isinstance(runs, list) or not set(map(type, runs)) <= {int} or min(runs) < 0:
        raise ValueError(f"its runs are {counts!r:.80}, expected whole numbers of 0 or more")
    if sum(runs) != height * width:
        raise ValueError(f"its runs have {sum(runs)!s:.20} pixels, expected {height} x {width}")
    joined = runs[:1]
    for place, run in enumerate(runs[1:], 1):
        if not run:
            continue
        if (len(joined) - place) % 2:  # same value as the previous run
            joined[-1] += run
        else:
            joined.append(run)
    return joined


def _decompress(text: str) -> list[int]:
    """Decode COCO's compressed text: differences of runs, 5 bits per character."""
    runs: list[int] = []
    value = bits = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64 or bits >= MAX_BITS:
            raise ValueError(f"its runs are {text!r:.80}, expected compressed runs")
        value |= (code & 31) << bits
        bits += 5
        if code & 32:  # continues in the next character
            continue
        if code & 16:  # negative
            value -= 1 << bits
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = bits = 0
    if bits:
        raise ValueError(f"its runs are {text!r:.80}, which ends within a number")
    return runs


def _import_mask() -> ModuleType:
    try:
        from pycocotools import mask
    except ImportError:
        raise ImportError(
            "COCO's outlines need pycocotools; install the extra: "
            "pip install 'captum_clip_surgery[datasets]'"
        ) from None
    return mask

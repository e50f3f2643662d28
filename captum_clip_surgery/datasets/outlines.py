"""Outlines of COCO's annotations as runs of pixels, checked before pycocotools draws them.

pycocotools believes what it is given: NaN, far coordinates or runs that do not fit the image make
it read and write outside its memory or take all of it. Nothing unchecked reaches it.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import ModuleType
from typing import Any

import numpy as np

#: An outline may be this many times as long as the border of its image, which bounds the memory
#: to draw it. Outlines traced pixel by pixel stay far below.
MAX_TURNS = 100
#: Bits of the largest run that can be compressed.
MAX_BITS = 35


def encode_outline(segmentation: Any, height: int, width: int) -> tuple[bytes, list[str]]:
    """Encode an annotation's `segmentation` as COCO's compressed runs.

    Args:
        segmentation: polygons [[x, y, x, y, ...], ...], or {"size": [height, width], "counts":
            runs}, the runs being numbers or text.
        height: of the image, at least 1.
        width: of the image, at least 1.

    Returns:
        The runs, empty if no pixel is covered, and why outlines or parts of them were skipped:
        those without a pixel or with fewer than three points.

    Raises:
        ValueError: what is not of this form, coordinates far from the image, or runs that do not
            fit it.
        ImportError: pycocotools is missing.
    """
    mask = pycocotools_mask()
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
                f"it is of size {segmentation['size']!r:.80}, its image of {[height, width]}"
            )
        counts, skipped = segmentation["counts"], []
        if counts in ("", []):
            return b"", ["an outline without runs"]
        runs = _check_runs(counts, height, width)
        outline = mask.frPyObjects({"size": [height, width], "counts": runs}, height, width)
    return (bytes(outline["counts"]) if mask.area(outline) else b""), skipped


def decode_outlines(outlines: Iterable[bytes], height: int, width: int) -> np.ndarray:
    """Return the mask (height, width) of the pixels that any of `outlines` covers.

    Args:
        outlines: from `encode_outline`, for the same size.
        height: of the image.
        width: of the image.
    """
    runs = [{"size": [height, width], "counts": outline} for outline in outlines]
    if not runs:
        return np.zeros((height, width), bool)
    mask = pycocotools_mask()
    covered: np.ndarray = mask.decode(mask.merge(runs)).astype(bool)
    return covered


def _check_polygons(
    polygons: list[Any], height: int, width: int
) -> tuple[list[list[float]], list[str]]:
    """Return the polygons that can be drawn, and why others are skipped."""
    kept: list[list[float]] = []
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
        kept.append(polygon)
    if length > MAX_TURNS * 2 * (height + width):
        raise ValueError(
            f"its outline is {length:.0f} pixels long, more than {MAX_TURNS} times the border of "
            f"its image of {width} x {height}"
        )
    return kept, skipped


def _boundary_length(polygon: list[float], height: int, width: int) -> float:
    """Return the pixels on a polygon's boundary; raise for a point far from the image."""
    try:
        points = np.array([*polygon, *polygon[:2]], dtype=float).reshape(-1, 2)
    except OverflowError:  # integers beyond floats
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
    """Return runs as numbers that cover the image exactly, none of them empty but the first.

    pycocotools reads past the end of its memory when it merges outlines with empty runs inside.
    """
    runs = _decompress(counts) if isinstance(counts, str) else counts
    if not isinstance(runs, list) or not set(map(type, runs)) <= {int} or min(runs) < 0:
        raise ValueError(f"its runs are {counts!r:.80}, expected whole numbers of 0 or more")
    if sum(runs) != height * width:
        raise ValueError(f"its runs are of {sum(runs)!s:.20} pixels, not {height} x {width}")
    joined = runs[:1]
    for place, run in enumerate(runs[1:], 1):
        if not run:
            continue
        if (len(joined) - place) % 2:  # of the same value as the run before
            joined[-1] += run
        else:
            joined.append(run)
    return joined


def _decompress(text: str) -> list[int]:
    """Return the runs that COCO's text stands for: 5 bits a character, as differences."""
    runs: list[int] = []
    value = bits = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64 or bits >= MAX_BITS:
            raise ValueError(f"its runs are {text!r:.80}, no compressed text")
        value |= (code & 31) << bits
        bits += 5
        if code & 32:  # goes on
            continue
        if code & 16:  # negative
            value -= 1 << bits
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = bits = 0
    if bits:
        raise ValueError(f"its runs are {text!r:.80}, which ends within a number")
    return runs


def pycocotools_mask() -> ModuleType:
    """Import pycocotools' masks.

    Raises:
        ImportError: pycocotools is missing.
    """
    try:
        from pycocotools import mask
    except ImportError:
        raise ImportError(
            "COCO's outlines need pycocotools; install the extra: "
            "pip install 'captum_clip_surgery[datasets]'"
        ) from None
    return mask

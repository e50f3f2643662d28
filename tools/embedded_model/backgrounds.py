"""Further kinds of background for training, which neither validation nor test scenes have.

Each is a function of a generator and a side that returns the background (side, side, 3) in 0..1.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw

from captum_clip_surgery.demo._scenes import (
    BACKGROUNDS,
    Array,
    Generator,
    _blend,
    _colors,
    _smooth,
)

TRAINED = BACKGROUNDS["train"]
#: A background has fewer shapes or strokes than this.
MAX_SHAPES = 24


def dots(rng: Generator, size: int) -> Array:
    """Draw a grid of dots of one color on another."""
    step, angle = rng.uniform(0.06, 0.25), rng.uniform(0, math.pi / 2)
    line = np.linspace(0, 1, size, dtype=np.float32)
    x = (line[None] * math.cos(angle) + line[:, None] * math.sin(angle)) / step
    y = (line[:, None] * math.cos(angle) - line[None] * math.sin(angle)) / step
    inside = np.hypot(x - x.round(), y - y.round()) < rng.uniform(0.15, 0.42)
    return _blend(~inside, rng)


def bricks(rng: Generator, size: int) -> Array:
    """Draw rows of bricks, each of a slightly different color, with mortar between them."""
    rows, ratio, joint = int(rng.integers(4, 14)), rng.uniform(1.5, 3), rng.uniform(0.05, 0.15)
    line = np.linspace(0, rows, size, endpoint=False, dtype=np.float32)
    row = np.floor(line)[:, None]
    column = line[None] / ratio + 0.5 * (row % 2)
    shade = rng.uniform(0.75, 1, (rows, rows + 2)).astype(np.float32)
    wall = shade[row.astype(int), np.floor(column).astype(int)]
    mortar = (line[:, None] % 1 < joint) | (column % 1 < joint / ratio)
    brick, gap = _colors(rng, 2)
    return np.where(mortar[..., None], gap, wall[..., None] * brick)


def cells(rng: Generator, size: int) -> Array:
    """Fill the regions nearest to random points with random colors."""
    count = int(rng.integers(8, 60))
    points = rng.uniform(0, size, (count, 2)).astype(np.float32)
    line = np.arange(size, dtype=np.float32)
    down = (line[:, None] - points[:, 0]) ** 2  # (size, count)
    across = (line[:, None] - points[:, 1]) ** 2
    nearest = np.empty((size, size), dtype=np.int64)
    for row in range(size):
        nearest[row] = (down[row] + across).argmin(1)
    return _colors(rng, count)[nearest]


def plaid(rng: Generator, size: int) -> Array:
    """Weave bands of random widths and colors across each other."""

    def bands() -> Array:
        widths = rng.uniform(0.02, 0.2, 24)
        index = np.searchsorted(np.cumsum(widths), np.linspace(0, 0.999, size))
        return _colors(rng, 25)[index]

    return (bands()[:, None] + bands()[None]) / 2


def shapes(rng: Generator, size: int) -> Array:
    """Draw polygons and ellipses of random colors."""
    image, draw = _canvas(rng, size)
    for _ in range(rng.integers(6, MAX_SHAPES)):
        center, reach = rng.uniform(0, size, 2), rng.uniform(0.03, 0.25) * size
        color = _color(rng)
        if rng.random() < 0.4:
            (top, left), (down, across) = center - reach, center + reach * rng.uniform(0.2, 1, 2)
            draw.ellipse((left, top, across, down), fill=color)
        else:
            corners = center + reach * rng.uniform(-1, 1, (int(rng.integers(3, 6)), 2))
            draw.polygon([tuple(corner) for corner in corners], fill=color)
    return _floats(image)


def scribbles(rng: Generator, size: int) -> Array:
    """Draw winding strokes of random colors."""
    image, draw = _canvas(rng, size)
    for _ in range(rng.integers(4, MAX_SHAPES)):
        turns = np.cumsum(rng.normal(0, 0.7, 20)) + rng.uniform(0, 2 * math.pi)
        steps = np.stack([np.cos(turns), np.sin(turns)], 1) * size * 0.06
        path = rng.uniform(0, size, 2) + np.cumsum(steps, 0)
        width = max(1, int(rng.uniform(0.005, 0.04) * size))
        draw.line([tuple(point) for point in path], fill=_color(rng), width=width, joint="curve")
    return _floats(image)


def fractal(rng: Generator, size: int) -> Array:
    """Add colored noise of several scales, the finer the weaker."""
    total, weight = np.full((size, size, 3), 0.5, np.float32), 0.5
    fall = rng.uniform(0.5, 0.9)
    for octave in range(2, 7):
        total += (_smooth(rng, size, 2**octave) - 0.5) * weight
        weight *= fall
    return np.clip(total, 0, 1)


def patches_of_color(rng: Generator, size: int) -> Array:
    """Divide smooth noise into a few flat colors, as camouflage does."""
    coarse = rng.integers(0, 256, (int(rng.integers(4, 12)),) * 2, dtype=np.uint8)
    smooth = Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)
    count = int(rng.integers(2, 6))
    level = np.minimum(np.asarray(smooth, np.int64) * count // 256, count - 1)
    return _colors(rng, count)[level]


def zigzag(rng: Generator, size: int) -> Array:
    """Draw parallel zigzag lines of two colors."""
    line = np.linspace(0, 1, size, dtype=np.float32)
    first, second = (
        (line[None], line[:, None]) if rng.random() < 0.5 else (line[:, None], line[None])
    )
    teeth = np.abs((first * rng.uniform(3, 12)) % 1 - 0.5) * rng.uniform(0.5, 2)
    return _blend(np.floor(second * rng.uniform(4, 14) + teeth) % 2, rng)


def quilt(rng: Generator, size: int) -> Array:
    """Sew squares of other kinds together."""
    count = int(rng.integers(2, 4))
    side = -(-size // count)
    kinds = [*TRAINED, *PLAIN_KINDS]
    rows = [
        np.concatenate([kinds[rng.integers(len(kinds))](rng, side) for _ in range(count)], axis=1)
        for _ in range(count)
    ]
    return np.ascontiguousarray(np.concatenate(rows)[:size, :size], dtype=np.float32)


def _color(rng: Generator) -> tuple[int, ...]:
    return tuple(int(value) for value in rng.integers(0, 256, 3))


def _canvas(rng: Generator, size: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("RGB", (size, size), _color(rng))
    return image, ImageDraw.Draw(image)


def _floats(image: Image.Image) -> Array:
    return np.asarray(image, dtype=np.float32) / 255


PLAIN_KINDS = (
    dots, bricks, cells, plaid, shapes, scribbles, fractal, patches_of_color, zigzag,
)  # fmt: skip
#: Kinds of the scenes' own training split and of this module.
MORE_BACKGROUNDS = (*TRAINED, *PLAIN_KINDS, quilt)

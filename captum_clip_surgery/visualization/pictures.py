"""Pictures as figures show them: shrunk, greyed, without ticks."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

PIXELS = 1000  # of a picture's longer side that are drawn: more than a panel shows
STRIP = 4  # times as long as wide, a panel is at most


def show_picture(axis: Axes, picture: np.ndarray, place: np.ndarray | None = None) -> None:
    """A picture without ticks, in coordinates of its own pixels, however small it is drawn.

    Args:
        axis: where.
        picture: (H, W, 3) or (H, W, 4).
        place: the picture in whose coordinates it stands instead.
    """
    axis.imshow(shrunk(picture), extent=extent(picture if place is None else place))
    bare(axis)


def extent(picture: np.ndarray) -> tuple[float, float, float, float]:
    """Left, right, bottom and top of a picture's pixels."""
    height, width = picture.shape[:2]
    return -0.5, width - 0.5, height - 0.5, -0.5


def bare(axis: Axes) -> None:
    """No ticks, and no frame."""
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(False)


def shrunk(picture: np.ndarray) -> np.ndarray:
    """Rows and columns left out, so that no side has much more than `PIXELS`: (h, w, ...)."""
    step = max(1, max(picture.shape[:2]) // PIXELS)
    return picture[::step, ::step]


def as_floats(picture: np.ndarray) -> np.ndarray:
    """A picture of bytes or floats, in 0..1."""
    return picture / 255 if picture.dtype == np.uint8 else picture


def greyed(picture: np.ndarray) -> np.ndarray:
    """A shrunk picture (h, w, 3) in pale grey, 0..1, on which colours stand out."""
    return 0.25 + 0.75 * as_floats(shrunk(picture)).mean(-1, keepdims=True).repeat(3, -1)


def drawn_aspect(picture: np.ndarray) -> float:
    """Height / width of the room for a picture, which a strip does not fill."""
    aspect: float = picture.shape[0] / picture.shape[1]
    return min(max(aspect, 1 / STRIP), STRIP)

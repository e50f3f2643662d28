"""Images as figures show them: downsampled, in pale gray, without ticks."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

#: Pixels drawn of an image's longer side: more than a panel shows.
MAX_PIXELS = 1000
#: Largest aspect ratio of a panel.
MAX_ASPECT = 4


def show_image(axis: Axes, image: np.ndarray, frame: np.ndarray | None = None) -> None:
    """Draw an image without ticks, in its own pixel coordinates even if it is downsampled.

    Args:
        axis: The axis to draw on.
        image: The image (H, W, 3) or (H, W, 4).
        frame: An image whose pixel coordinates are used instead.
    """
    axis.imshow(downsample(image), extent=extent(image if frame is None else frame))
    hide_frame(axis)


def extent(image: np.ndarray) -> tuple[float, float, float, float]:
    """Return the left, right, bottom and top edge of an image in its pixel coordinates."""
    height, width = image.shape[:2]
    return -0.5, width - 0.5, height - 0.5, -0.5


def hide_frame(axis: Axes) -> None:
    """Remove an axis's ticks and spines."""
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[:].set_visible(False)


def downsample(image: np.ndarray) -> np.ndarray:
    """Drop rows and columns of an image (H, W, ...) that a figure would not show.

    Args:
        image: An image, or labels or a mask of its size.

    Returns:
        Every n-th row and column, so that the longer side has less than twice 1,000 pixels.
    """
    step = max(1, max(image.shape[:2]) // MAX_PIXELS)
    return image[::step, ::step]


def as_floats(image: np.ndarray) -> np.ndarray:
    """Return an image of uint8 or floats as floats in 0..1."""
    return image / 255 if image.dtype == np.uint8 else image


def pale_gray(image: np.ndarray) -> np.ndarray:
    """Return an image (H, W, 3), downsampled, in pale gray (0..1) on which colors stand out."""
    return in_pale_gray(downsample(image))


def in_pale_gray(image: np.ndarray) -> np.ndarray:
    """Return an image (H, W, 3) in pale gray (0..1), at its own size."""
    return 0.25 + 0.75 * as_floats(image).mean(-1, keepdims=True).repeat(3, -1)


def panel_aspect(image: np.ndarray) -> float:
    """Return height / width of an image's panel, limited to 4 to 1 either way."""
    aspect: float = image.shape[0] / image.shape[1]
    return min(max(aspect, 1 / MAX_ASPECT), MAX_ASPECT)

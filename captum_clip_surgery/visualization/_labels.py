"""Labels over an image: which text is highest where, with a legend. Captum has no such views."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from captum_clip_surgery._utils.tensors import check_real
from captum_clip_surgery.preprocessing import ImageInput, load_image
from captum_clip_surgery.visualization._images import downsample, extent, pale_gray, show_image
from captum_clip_surgery.visualization._layout import image_pair
from captum_clip_surgery.visualization._scales import check_drawable

Color = tuple[float, float, float]

#: Largest number of classes in a legend.
MAX_NAMES = 12
OPACITY = 0.65
#: Smallest longer side in pixels of labels with outlines, and how much darker outlines are.
OUTLINE_SIDE, SHADE = 256, 0.45
#: Color-blind-safe palette of Okabe and Ito, "Color Universal Design" (2008). Matplotlib's own
#: qualitative color maps are not.
PALETTE = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442")
#: Number of different colors. All but the first ones are those of PASCAL VOC.
NUM_COLORS = 256
BACKGROUND_COLOR = to_rgb("lightgray")
#: Shades of repetitions of the palette: darker, then paler.
SHADES = (0.0, -0.45, 0.55)
#: Legend entry of pixels below the threshold.
UNASSIGNED = "no text"


def label_color(index: int) -> Color:
    """Return the RGB color (0..1) of a class or text.

    The first 21 are the palette and its shades; further ones, up to 256, are PASCAL VOC's.
    """
    if index >= len(SHADES) * len(PALETTE):
        return _voc_color(index % NUM_COLORS)
    shade = SHADES[index // len(PALETTE) % len(SHADES)]
    end = 1.0 if shade > 0 else 0.0
    red, green, blue = (
        channel + abs(shade) * (end - channel) for channel in to_rgb(PALETTE[index % len(PALETTE)])
    )
    return red, green, blue


def _voc_color(label: int) -> Color:
    """Return PASCAL VOC's color of a label below 256.

    The bits of the label go to red, green and blue in turn, each filled from its highest bit down,
    as in the data set's development kit.
    """
    channels = [0, 0, 0]
    for bit in range(8):
        for channel in range(3):
            channels[channel] |= (label >> (3 * bit + channel) & 1) << (7 - bit)
    red, green, blue = (channel / 255 for channel in channels)
    return red, green, blue


def winner_figure(
    image: ImageInput,
    maps: Tensor | np.ndarray,
    texts: Sequence[str],
    threshold: float | None = None,
    width: float | str | None = None,
) -> Figure:
    """Draw an image and, for each pixel, the text with the highest map; the legend shows shares.

    Args:
        image: A PIL image, an array (H, W, 3) of uint8 or of floats in 0..1, or a path.
        maps: Maps (K, h, w) of one method whose values compare between texts. They are upsampled
            bilinearly.
        texts: The K texts.
        threshold: Pixels where no map is above this value belong to no text; None assigns every
            pixel to a text.
        width: Width of the figure in inches, or "column", "page", "notebook" or "slide".

    Returns:
        A figure that is not registered with pyplot; `save_figure` writes it.

    Raises:
        ValueError: If the maps have another shape, do not fit the texts or are not finite.

    Example::

        >>> left = np.tile([1.0, 0.0], (2, 1))
        >>> figure = winner_figure(np.zeros((8, 8, 3)), np.stack([left, 1 - left]), ["dog", "cat"])
        >>> [text.get_text() for text in figure.axes[1].get_legend().get_texts()]
        ['dog  50.0%', 'cat  50.0%']
    """
    values = maps if isinstance(maps, Tensor) else torch.from_numpy(maps)
    check_real(values, "maps")
    values = values.detach().cpu().double()
    if values.ndim != 3 or len(values) != len(texts) or not values.numel():
        raise ValueError(
            f"maps have shape {tuple(values.shape)}, expected ({len(texts)}, h, w), one per text"
        )
    check_drawable(values.numpy())
    pixels = np.asarray(load_image(image))
    size = downsample(pixels).shape[:2]
    highest, labels = F.interpolate(values[None], size, mode="bilinear")[0].max(0)
    if threshold is not None:
        labels[highest <= threshold] = len(texts)
    counts = torch.bincount(labels.flatten(), minlength=len(texts) + 1).double() / labels.numel()
    names = [*texts, UNASSIGNED]
    order = sorted(range(len(texts)), key=lambda index: -counts[index])
    order += [len(texts)] if threshold is not None else []
    shares = [(index, names[index], float(counts[index])) for index in order]
    colors = {index: label_color(index) for index in range(len(texts))}
    return labels_figure(pixels, labels.numpy(), shares, colors, width)


def labels_figure(
    image: np.ndarray,
    labels: np.ndarray,
    shares: Sequence[tuple[int, str, float]],
    colors: Mapping[int, Color],
    width: float | str | None = None,
) -> Figure:
    """Draw an image next to its labels, with a legend.

    Args:
        image: The image (H, W, 3), uint8 or floats in 0..1.
        labels: The label of each pixel (h, w), at any resolution.
        shares: Classes of the legend in order: label, name and share of the pixels in 0..1.
        colors: Colors by label; labels without a color show the image in pale gray.
        width: Width of the figure in inches, or "column", "page", "notebook" or "slide".

    Returns:
        A figure that is not registered with pyplot; `save_figure` writes it.
    """
    figure, (left, right) = image_pair(image, width)
    show_image(left, image)
    show_labels(right, image, labels, colors)
    entries = [(f"{name}  {share:.1%}", colors.get(label)) for label, name, share in shares]
    more = ""
    if len(entries) > MAX_NAMES:
        rest = sum(share for *_, share in shares[MAX_NAMES:])
        more = f"{len(entries) - MAX_NAMES} more  {rest:.1%}"
    add_legend(right, entries[:MAX_NAMES], more)
    return figure


def show_labels(
    axis: Axes, image: np.ndarray, labels: np.ndarray, colors: Mapping[int, Color]
) -> None:
    """Draw labels in colors, with outlines, over an image in pale gray.

    Args:
        axis: The axis to draw on.
        image: The image (H, W, 3), uint8 or floats in 0..1.
        labels: The label of each pixel (h, w), at any resolution.
        colors: Colors by label; labels without a color are not drawn.
    """
    small = downsample(labels)
    overlay = np.zeros((*small.shape, 4), dtype=np.float32)
    times = -(-OUTLINE_SIDE // max(small.shape))  # outlines of few pixels would be thick
    large = small.repeat(times, 0).repeat(times, 1)
    edges, outlines = _edges(large), np.zeros((*large.shape, 4), dtype=np.float32)
    for label, color in colors.items():
        overlay[small == label] = (*color, OPACITY)
        outlines[(large == label) & edges] = (*(SHADE * channel for channel in color), 1.0)
    show_image(axis, pale_gray(image), image)
    for layer in (overlay, outlines):
        axis.imshow(layer, extent=extent(image), interpolation="nearest")


def _edges(labels: np.ndarray) -> np.ndarray:
    """Return a mask of the pixels (h, w) that have a neighbor with another label."""
    edges = np.zeros(labels.shape, dtype=bool)
    down, across = labels[1:] != labels[:-1], labels[:, 1:] != labels[:, :-1]
    edges[1:] |= down
    edges[:-1] |= down
    edges[:, 1:] |= across
    edges[:, :-1] |= across
    return edges


def add_legend(axis: Axes, entries: Sequence[tuple[str, Color | None]], more: str = "") -> None:
    """Add a legend to the right of an axis.

    Args:
        axis: The axis.
        entries: Names with their colors; None means gray.
        more: A last line without a color.
    """
    handles = [Patch(color=color or BACKGROUND_COLOR, label=name) for name, color in entries]
    if more:
        handles.append(Patch(alpha=0, label=more))
    if handles:
        size = min(10.0, max(7.0, axis.figure.get_figwidth()))  # type: ignore[union-attr]
        legend = axis.legend(
            handles=handles,
            loc="upper left",
            bbox_to_anchor=(1.01, 1),
            frameon=False,
            fontsize=size,
        )
        for text in legend.get_texts():  # "$" is a price
            text.set_parse_math(False)

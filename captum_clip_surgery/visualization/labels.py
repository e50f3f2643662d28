"""Classes over a picture: which text wins where, with a legend."""

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

from captum_clip_surgery.preprocessing import ImageInput, load_image
from captum_clip_surgery.visualization.layout import picture_pair
from captum_clip_surgery.visualization.pictures import extent, greyed, show_picture, shrunk
from captum_clip_surgery.visualization.scales import refuse_undrawable

Colour = tuple[float, float, float]

NAMED = 12  # classes that a legend names
OPACITY = 0.65
#: Told apart by colour-blind readers: Okabe and Ito, "Color Universal Design" (2008).
PALETTE = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442")
SHADES = (0.0, -0.45, 0.55)  # of the palette when it comes again: darker, then paler
NOBODY = "no text"


def hue(index: int) -> Colour:
    """The colour of a class or text; after 21 they come again."""
    shade = SHADES[index // len(PALETTE) % len(SHADES)]
    to = 1.0 if shade > 0 else 0.0
    red, green, blue = (
        part + abs(shade) * (to - part) for part in to_rgb(PALETTE[index % len(PALETTE)])
    )
    return red, green, blue


def winner_figure(
    picture: ImageInput,
    maps: Tensor | np.ndarray,
    texts: Sequence[str],
    threshold: float | None = None,
    width: float | str | None = None,
) -> Figure:
    """A picture beside the text whose map is highest at each pixel, with a legend of their shares.

    Args:
        picture: a PIL image, an array (H, W, 3) of uint8 or of floats in 0..1, or a path.
        maps: (K, h, w), of one method, whose values compare between texts; enlarged bilinearly.
        texts: the K texts.
        threshold: pixels where no map is above this value belong to no text; None gives every
            pixel to one.
        width: of the figure, in inches or by its name in `WIDTHS`.

    Returns:
        A figure, free of pyplot: `save_figure` writes it.

    Raises:
        ValueError: maps of another shape or count, or not finite.

    Example::

        >>> left = np.tile([1.0, 0.0], (2, 1))
        >>> figure = winner_figure(np.zeros((8, 8, 3)), np.stack([left, 1 - left]), ["dog", "cat"])
        >>> [text.get_text() for text in figure.axes[1].get_legend().get_texts()]
        ['dog  50.0%', 'cat  50.0%']
    """
    values = torch.as_tensor(maps).detach().cpu().double()
    if values.ndim != 3 or len(values) != len(texts) or not values.numel():
        raise ValueError(
            f"maps have shape {tuple(values.shape)}, expected ({len(texts)}, h, w), one a text"
        )
    refuse_undrawable(values.numpy())
    shown = np.asarray(load_image(picture))
    small = shrunk(shown)
    enlarged = F.interpolate(values[None], small.shape[:2], mode="bilinear", align_corners=False)
    highest, labels = enlarged[0].max(0)
    if threshold is not None:
        labels[highest <= threshold] = len(texts)
    counts = torch.bincount(labels.flatten(), minlength=len(texts) + 1).double() / labels.numel()
    names = [*texts, NOBODY]
    order = sorted(range(len(texts)), key=lambda index: -counts[index])
    order += [len(texts)] if threshold is not None else []
    shares = [(index, names[index], float(counts[index])) for index in order]
    colours = {index: hue(index) for index in range(len(texts))}
    return labels_figure(shown, labels.numpy(), shares, colours, width)


def labels_figure(
    picture: np.ndarray,
    labels: np.ndarray,
    shares: Sequence[tuple[int, str, float]],
    colours: Mapping[int, Colour],
    width: float | str | None = None,
) -> Figure:
    """A picture beside its classes, and a legend.

    Args:
        picture: (H, W, 3), uint8 or floats in 0..1.
        labels: a class a pixel, at any resolution.
        shares: classes of the legend in order: label, name and share of the pixels in 0..1.
        colours: by label; without one a class shows the greyed picture.
        width: of the figure, in inches or by its name in `WIDTHS`.
    """
    figure, (left, right) = picture_pair(picture, width)
    show_picture(left, picture)
    show_labels(right, picture, labels, colours)
    entries = [(f"{name}  {share:.1%}", colours.get(label)) for label, name, share in shares]
    if len(entries) > NAMED:
        rest = sum(share for *_, share in shares[NAMED:])
        more = f"{len(entries) - NAMED} more  {rest:.1%}"
        add_legend(right, entries[:NAMED], more)
    else:
        add_legend(right, entries)
    return figure


def show_labels(
    axis: Axes, picture: np.ndarray, labels: np.ndarray, colours: Mapping[int, Colour]
) -> None:
    """Classes in colours over the greyed picture; those without a colour show it alone."""
    small = shrunk(labels)
    overlay = np.zeros((*small.shape, 4), dtype=np.float32)
    for label, colour in colours.items():
        overlay[small == label] = (*colour, OPACITY)
    show_picture(axis, greyed(picture), picture)
    axis.imshow(overlay, extent=extent(picture), interpolation="nearest")


def add_legend(axis: Axes, entries: Sequence[tuple[str, Colour | None]], more: str = "") -> None:
    """Names and their colours (None is grey) to the right of an axis, then `more` in words."""
    handles = [Patch(color=colour or "lightgrey", label=name) for name, colour in entries]
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

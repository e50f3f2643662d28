"""Images of results for the page, as bytes without margins."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from captum_clip_surgery.app._settings import Settings
from captum_clip_surgery.tasks import Prompt, Segmentation
from captum_clip_surgery.tasks.figures import points_figure
from captum_clip_surgery.visualization._attribution import show_map
from captum_clip_surgery.visualization._labels import label_color, show_labels
from captum_clip_surgery.visualization._scales import format_value
from captum_clip_surgery.visualization._style import MapStyle
from captum_clip_surgery.visualization._views import View

#: Longer side in pixels of a small and of a large image.
PANEL, LARGE = 480, 640
DPI = 100
#: Resolution of whole figures; higher, so that text stays sharp.
FIGURE_DPI = 150
#: Number of colors of a legend.
STOPS = 9


@dataclass(frozen=True)
class Drawn:
    """A drawn image.

    Args:
        content: Bytes of the file.
        note: Note on a map with nothing to draw.
        kind: Format, "png" or "jpeg".
    """

    content: bytes
    note: str = ""
    kind: str = "png"

    @property
    def uri(self) -> str:
        """Data URI, so that the page fetches no file."""
        return f"data:image/{self.kind};base64,{base64.b64encode(self.content).decode()}"


def map_style(maps: Tensor, settings: Settings) -> MapStyle:
    """Return how the maps (K, h, w) of a method are drawn: on one scale, as in figures."""
    view = View(cmap=settings.cmap, alpha_overlay=settings.opacity)
    return MapStyle.of(maps, view, settings.sign)


@dataclass(frozen=True)
class Legend:
    """Color legend of maps on one scale.

    Args:
        low: Value of the first color.
        high: Value of the last color.
        colors: Colors for CSS, evenly spaced from low to high.
        zero: Place of zero in percent of the bar, or None if it is not between low and high.
    """

    low: str
    high: str
    colors: tuple[str, ...]
    zero: float | None


def legend(style: MapStyle) -> Legend | None:
    """Return the legend of a method's maps, or None if they are constant."""
    colors = style.colors()
    if colors is None or style.shared is None:
        return None
    low, high = style.shared
    stops = tuple(map(to_hex, colors.to_rgba(np.linspace(low, high, STOPS))))
    zero = 100 * -low / (high - low) if low < 0 < high else None
    return Legend(format_value(low), format_value(high), stops, zero)


def overlay(image: Image.Image, attribution: Tensor, style: MapStyle) -> Drawn:
    """Draw a map (h, w) over its image."""
    axis, small = _axis(image, PANEL)
    show_map(axis, np.asarray(small), attribution, style.view, style.scale)
    return Drawn(_png(axis), axis.get_xlabel())


def plain(image: Image.Image, side: int = PANEL) -> Drawn:
    """Draw the image itself, at most `side` pixels long."""
    buffer = io.BytesIO()
    _small(image, side).save(buffer, format="JPEG", quality=90)
    return Drawn(buffer.getvalue(), kind="jpeg")


def segments(image: Image.Image, segmentation: Segmentation) -> tuple[Drawn, dict[str, str]]:
    """Draw classes over the image in pale gray; return each class's color for CSS, too."""
    colors = segmentation.colors()
    axis, small = _axis(image, LARGE)
    labels = Image.fromarray(segmentation.labels.cpu().numpy().astype(np.int32))
    labels = labels.resize(small.size, Image.Resampling.NEAREST)
    by_label = {segmentation.classes.index(name): color for name, color in colors.items()}
    show_labels(axis, np.asarray(small), np.asarray(labels), by_label)
    return Drawn(_png(axis)), {name: to_hex(color) for name, color in colors.items()}


def points(image: Image.Image, prompts: Sequence[Prompt]) -> tuple[Drawn, dict[str, str]]:
    """Draw prompts on the image; return each text's color for CSS, too."""
    figure = points_figure(np.asarray(image), prompts)
    figure.set_dpi(DPI)
    figure.draw_without_rendering()
    figure.set_layout_engine(
        "none"
    )  # at another resolution it would move the panel that is cropped
    axis = figure.axes[1]
    box = axis.get_window_extent().transformed(figure.dpi_scale_trans.inverted())
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=LARGE / max(box.size), bbox_inches=box)
    texts = list(dict.fromkeys(prompt.text for prompt in prompts))
    colors = {text: to_hex(label_color(index)) for index, text in enumerate(texts)}
    return Drawn(buffer.getvalue()), colors


def drawn_figure(figure: Figure) -> Drawn:
    """Draw a whole figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=FIGURE_DPI)
    return Drawn(buffer.getvalue())


def _scaled_size(image: Image.Image, scale: float) -> tuple[int, int]:
    width, height = (max(1, round(scale * length)) for length in image.size)
    return width, height


def _small(image: Image.Image, side: int) -> Image.Image:
    scale = min(1.0, side / max(image.size))
    return image if scale == 1 else image.resize(_scaled_size(image, scale))


def _axis(image: Image.Image, side: int) -> tuple[Axes, Image.Image]:
    """Return an axis that fills a figure pixel for pixel, and the image for it."""
    width, height = _scaled_size(image, side / max(image.size))
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set_facecolor("none")
    return axis, _small(image, side)


def _png(axis: Axes) -> bytes:
    axis.set_aspect("auto")  # the figure has the image's shape up to less than a pixel
    buffer = io.BytesIO()
    # Shown once and not kept: speed matters more than size.
    axis.figure.savefig(  # type: ignore[union-attr]
        buffer, format="png", dpi=DPI, pil_kwargs={"compress_level": 1}
    )
    return buffer.getvalue()

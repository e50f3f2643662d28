"""Pictures for the page, as bytes without margins."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from captum_clip_surgery.app.settings import Settings
from captum_clip_surgery.tasks import BACKGROUND, Prompt, Segmentation
from captum_clip_surgery.tasks.figures import points_figure
from captum_clip_surgery.visualization import hue, show_labels, visualize_attribution

PANEL, LARGE = 360, 640  # pixels of a longer side
DPI = 100


@dataclass(frozen=True)
class Drawn:
    """Bytes of a picture, and a word on what could not be drawn, or ""."""

    content: bytes
    note: str = ""
    kind: str = "png"

    @property
    def uri(self) -> str:
        """For a page that fetches no file."""
        return f"data:image/{self.kind};base64,{base64.b64encode(self.content).decode()}"


def overlay(picture: Image.Image, attribution: Tensor, settings: Settings) -> Drawn:
    """A map (h, w) over its picture, as `visualize_attribution` draws it."""
    axis, small = _axis(picture, PANEL)
    visualize_attribution(
        attribution,
        small,
        sign=settings.sign,
        cmap=settings.cmap,
        alpha_overlay=settings.opacity,
        axis=axis,
    )
    return Drawn(_png(axis), axis.get_xlabel())


def plain(picture: Image.Image, side: int = PANEL) -> Drawn:
    """The picture itself, at most `side` pixels long."""
    buffer = io.BytesIO()
    _small(picture, side).save(buffer, format="JPEG", quality=90)
    return Drawn(buffer.getvalue(), kind="jpeg")


def segments(picture: Image.Image, found: Segmentation) -> tuple[Drawn, dict[str, str]]:
    """Classes over the greyed picture, and each class's colour as CSS takes it."""
    names = [name for name in found.shares() if name != BACKGROUND]
    colours = {name: hue(index) for index, name in enumerate(names)}
    axis, small = _axis(picture, LARGE)
    labels = np.asarray(
        Image.fromarray(found.labels.cpu().numpy().astype(np.int32)).resize(
            small.size, Image.Resampling.NEAREST
        )
    )
    by_label = {found.classes.index(name): colour for name, colour in colours.items()}
    show_labels(axis, np.asarray(small), labels, by_label)
    return Drawn(_png(axis)), {name: css(colour) for name, colour in colours.items()}


def points(picture: Image.Image, prompts: Sequence[Prompt]) -> tuple[Drawn, dict[str, str]]:
    """Prompts on the picture, and each text's colour as CSS takes it."""
    figure = points_figure(np.asarray(picture), prompts)
    figure.set_dpi(DPI)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # at another resolution it would move what is cut out
    axis = figure.axes[1]
    box = axis.get_window_extent().transformed(figure.dpi_scale_trans.inverted())
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=LARGE / max(box.size), bbox_inches=box)
    texts = list(dict.fromkeys(prompt.text for prompt in prompts))
    return Drawn(buffer.getvalue()), {text: css(hue(index)) for index, text in enumerate(texts)}


def css(colour: tuple[float, float, float]) -> str:
    """A colour of 0..1 as CSS takes it."""
    return "#" + "".join(f"{round(255 * part):02x}" for part in colour)


def _small(picture: Image.Image, side: int) -> Image.Image:
    scale = min(1.0, side / max(picture.size))
    width, height = (max(1, round(scale * length)) for length in picture.size)
    return picture if scale == 1 else picture.resize((width, height))


def _axis(picture: Image.Image, side: int) -> tuple[Axes, Image.Image]:
    """An axis that fills a figure of a small picture's size, pixel for pixel."""
    scale = side / max(picture.size)
    width, height = (max(1, round(scale * length)) for length in picture.size)
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set_facecolor("none")
    return axis, _small(picture, side)


def _png(axis: Axes) -> bytes:
    axis.set_aspect("auto")  # its figure has the picture's shape but for less than a pixel
    buffer = io.BytesIO()
    # Drawn for the eye at once: speed before size.
    axis.figure.savefig(  # type: ignore[union-attr]
        buffer, format="png", dpi=DPI, pil_kwargs={"compress_level": 1}
    )
    return buffer.getvalue()

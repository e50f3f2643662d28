"""Methods side by side on one's own images: the same model, texts and preprocessing for each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from captum_clip_surgery._utils.profiling import ProfileResult, profile_call
from captum_clip_surgery._utils.tables import markdown
from captum_clip_surgery.attr._base import Method
from captum_clip_surgery.attr._engine import explain_of
from captum_clip_surgery.attr.registry import DEFAULT_METHODS, choose
from captum_clip_surgery.classifier import ZeroShotClassifier
from captum_clip_surgery.metrics import PairMeasures
from captum_clip_surgery.models import validation
from captum_clip_surgery.preprocessing import ImageInput, load_image
from captum_clip_surgery.visualization import compare_figure

AT_ONCE = 8  # images that a method is given
ROWS = 100  # of a figure; more have too many pixels for Matplotlib
#: Of the measures, those a table shows.
SHOWN = {"explanation_iou": "mIoU", "msc": "mSC", "pointing": "pointing", "energy": "energy"}


@dataclass(frozen=True)
class Comparison:
    """What `compare` finds.

    Args:
        pictures: the images as they are shown, (H, W, 3) in 0..1 or uint8.
        texts: the K texts asked for.
        scores: (N, K) logits of the images for the texts.
        maps: for each method (N, K, h, w), raw and signed.
        costs: for each method what all its maps took together.
        left_out: methods that were asked for and are not defined here, or failed, and why.
        measures: for each method figures against masks, in percent; empty without masks.
    """

    pictures: Sequence[np.ndarray]
    texts: tuple[str, ...]
    scores: Tensor
    maps: Mapping[str, Tensor]
    costs: Mapping[str, ProfileResult]
    left_out: Mapping[str, str]
    measures: Mapping[str, Mapping[str, float]]

    def rows(self) -> list[dict[str, Any]]:
        """For each method its name, seconds an image, and measures."""
        return [
            {"method": name, "seconds": self.costs[name].seconds / len(self.pictures)}
            | dict(self.measures.get(name, {}))
            for name in self.maps
        ]

    def table(self) -> Any:
        """The rows as a pandas DataFrame where pandas is installed, otherwise as they are."""
        if find_spec("pandas") is None:
            return self.rows()
        return import_module("pandas").DataFrame(self.rows()).set_index("method")

    def to_markdown(self) -> str:
        """The rows as a table, aligned for the terminal as well."""
        return rows_to_markdown(self.rows())

    def figure(
        self,
        shared: bool = False,
        sign: str = "range",
        transpose: bool = False,
        width: float | str | None = None,
    ) -> Figure:
        """A row for each image and text, a column for each method.

        Args:
            shared: one scale of colours for all of a method's maps, so that strengths compare;
                otherwise each map has its own, so that places show.
            sign: of values to draw, see `visualization.visualize_attribution`; with "range", maps
                of both signs are drawn in two colours around zero.
            transpose: rows are methods, columns images and texts.
            width: of the figure, in inches or by its name in `visualization.WIDTHS`.

        Returns:
            A figure, free of pyplot: `visualization.save_figure` writes it.
        """
        images, texts = self.scores.shape
        check_rows(images, texts)
        notes = {
            row["method"]: [[f"{1000 * row['seconds']:.0f} ms"] * texts] * images
            for row in self.rows()
        }
        notes["image"] = [[f"logit {score:.2f}" for score in row] for row in self.scores.tolist()]
        return compare_figure(
            self.pictures,
            self.maps,
            self.texts,
            shared=shared,
            diverging=True,
            notes=notes,
            sign=sign,
            transpose=transpose,
            width=width,
        )


def check_rows(images: int, texts: int) -> None:
    """Raises ValueError for more rows, one for each image and text, than a figure holds."""
    if images * texts > ROWS:
        raise ValueError(
            f"{images} images and {texts} texts make {images * texts} rows, of which a figure "
            f"holds {ROWS}; compare fewer"
        )


def rows_to_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table of methods: seconds, and the measures that are there."""
    shown = {key: name for key, name in SHOWN.items() if any(key in row for row in rows)}
    header = ["method", *shown.values(), "s/image"]
    body = [
        [row["method"], *(f"{row[key]:.1f}" for key in shown), f"{row['seconds']:.3f}"]
        for row in rows
    ]
    return markdown(header, body)


def compare(
    clip: ZeroShotClassifier,
    images: ImageInput | Sequence[ImageInput] | Tensor,
    targets: Sequence[int] | None = None,
    methods: Iterable[str] | Mapping[str, Method] = DEFAULT_METHODS,
    masks: Sequence[Any] | Tensor | None = None,
    size: int | tuple[int, int] | None = None,
) -> Comparison:
    """Explain images by several methods.

    Args:
        clip: the classifier.
        images: pictures, or a batch (N, 3, H, W) that `clip.preprocess` made.
        targets: indices of the texts; None is all.
        methods: names of `registry.METHODS` ("all" for every one), or methods by name.
        masks: for each image (K, H', W') of bool, where each text asked for is; for measures.
        size: side or (height, width) in pixels that the model sees of pictures; None is native.

    A method that refuses the classifier, the images or an option with TypeError, ValueError or
    ImportError is left out by name and with its words; the others are compared.

    Raises:
        TypeError, ValueError, IndexError: see `clip.preprocess`, `choose` and `checks`; masks that
            do not fit the images or texts; methods of which none works.
    """
    batch, pictures = _batch(clip, images, size)
    masks = None if masks is None else _check_masks(masks, len(batch), clip, targets)
    chosen, left_out = (
        (dict(methods), {}) if isinstance(methods, Mapping) else choose(clip, methods)
    )
    count = len(clip.texts)
    wanted = range(count) if targets is None else targets
    indices = validation.resolve_indices(wanted, count, batch.device).tolist()
    with torch.no_grad():
        scores = torch.cat([clip(part)[:, indices].cpu() for part in batch.split(AT_ONCE)])
    maps, costs = {}, {}
    for name, method in chosen.items():
        try:
            maps[name], costs[name] = _explain(method, clip, batch, indices)
        except (TypeError, ValueError, ImportError) as error:
            left_out[name] = str(error)
    if not maps:
        raise ValueError(f"no method gave a map: {left_out}")
    return Comparison(
        pictures,
        tuple(clip.texts[i] for i in indices),
        scores,
        maps,
        costs,
        left_out,
        {} if masks is None else _measures(maps, masks),
    )


def _explain(
    method: Method, clip: ZeroShotClassifier, images: Tensor, targets: Sequence[int]
) -> tuple[Tensor, ProfileResult]:
    """Maps on the CPU, some images at a time: all seconds, and the most memory of a part."""
    found, costs = [], []
    with torch.no_grad():  # methods of gradients enable them themselves
        explain = explain_of(method(clip))
        for part in images.split(AT_ONCE):
            maps, cost = profile_call(partial(explain, part, targets), images.device)
            found.append(maps.detach().cpu())
            costs.append(cost)
    peaks = [cost.peak_bytes for cost in costs if cost.peak_bytes is not None]
    return torch.cat(found), ProfileResult(
        sum(cost.seconds for cost in costs), max(peaks, default=None)
    )


def _batch(
    clip: ZeroShotClassifier,
    images: ImageInput | Sequence[ImageInput] | Tensor,
    size: int | tuple[int, int] | None,
) -> tuple[Tensor, list[np.ndarray]]:
    if isinstance(images, Tensor):
        if size is not None:
            raise ValueError(f"size {size} is of pictures; a batch has its own: preprocess it so")
        validation.check_images(images, clip.tower, clip.device)
        shown = clip.unnormalize(images.detach().cpu()).permute(0, 2, 3, 1)
        return images, list(shown.numpy())
    if isinstance(images, str) or not isinstance(images, Sequence):
        images = [images]
    pictures = [load_image(image) for image in images]
    return clip.preprocess(pictures, size), [np.asarray(picture) for picture in pictures]


def _check_masks(
    masks: Sequence[Any] | Tensor,
    images: int,
    clip: ZeroShotClassifier,
    targets: Sequence[int] | None,
) -> list[Tensor]:
    """Masks of bool, one for each image and text asked for, before any method runs."""
    found = [torch.as_tensor(mask) for mask in masks]
    texts = len(clip.texts) if targets is None else len(targets)
    if len(found) != images or any(mask.ndim != 3 or len(mask) != texts for mask in found):
        shapes = [tuple(mask.shape) for mask in found]
        raise ValueError(
            f"masks are {shapes}, expected for each of {images} images ({texts} texts, H, W)"
        )
    if any(mask.dtype != torch.bool for mask in found):
        raise TypeError(f"masks are {[mask.dtype for mask in found]}, expected bool")
    if not any(of_text.any() and not of_text.all() for mask in found for of_text in mask):
        raise ValueError("every mask is empty or full: there is nothing to measure")
    return found


def _measures(maps: Mapping[str, Tensor], masks: Sequence[Tensor]) -> dict[str, dict[str, float]]:
    measured = {}
    for name, values in maps.items():
        measures = PairMeasures()
        for image, (of_image, of_masks) in enumerate(zip(values, masks, strict=True)):
            for attribution, mask in zip(of_image, of_masks, strict=True):
                measures.update(attribution, mask, image)
        measured[name] = measures.compute()
    return measured

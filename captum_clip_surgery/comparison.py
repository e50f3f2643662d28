"""Methods side by side on your own images: the same model, texts and preprocessing for each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from captum_clip_surgery._utils.profiling import ProfileResult, profile_call
from captum_clip_surgery._utils.similarity import format_cosines
from captum_clip_surgery._utils.tables import markdown
from captum_clip_surgery._utils.text import join_reasons
from captum_clip_surgery.attr import Method, attribute_many
from captum_clip_surgery.attr._coverage import cover_image
from captum_clip_surgery.attr._descriptions import title_of
from captum_clip_surgery.attr._registry import DEFAULT_METHODS, choose
from captum_clip_surgery.classifier import ZeroShotClassifier
from captum_clip_surgery.metrics import PairMeasures
from captum_clip_surgery.metrics._alone import describe_specificity, specificity_of_maps
from captum_clip_surgery.models._validation import check_images, resolve_indices
from captum_clip_surgery.preprocessing import ImageInput, load_image
from captum_clip_surgery.visualization import compare_figure
from captum_clip_surgery.visualization._scales import AUTO

__all__ = ["Comparison", "compare"]

#: Number of images that a method explains at once.
BATCH_SIZE = 8
#: Largest number of rows of a figure; Matplotlib cannot draw the pixels of many more.
MAX_ROWS = 100
#: Measures that a table shows, and their titles.
COLUMNS = {"explanation_iou": "mIoU", "msc": "mSC", "pointing": "pointing", "energy": "energy"}


@dataclass(frozen=True)
class Comparison:
    """Maps of several methods side by side, as `compare` returns them.

    Args:
        images: The N images as they are drawn, (H, W, 3), uint8 or floats in 0..1.
        texts: The K texts.
        logits: Logits of the images for the texts, (N, K).
        cosines: Cosines of the images and the texts, (N, K), or differences of two.
        differences: Whether each text names a difference, (K,).
        maps: Maps by method, (N, K, h, w), raw and signed.
        costs: Time and memory of all maps of a method.
        left_out: Reason by name of each method that is not defined on this classifier or failed,
            and of each text specificity that is not defined.
        measures: Measures against masks by method, in percent; empty without masks.
        specificity: Text specificity of every map by method, (N, K) in -1..1; empty if it was not
            measured. See `metrics.text_specificity`.
    """

    images: Sequence[np.ndarray]
    texts: tuple[str, ...]
    logits: Tensor
    cosines: Tensor
    differences: Sequence[bool]
    maps: Mapping[str, Tensor]
    costs: Mapping[str, ProfileResult]
    left_out: Mapping[str, str]
    measures: Mapping[str, Mapping[str, float]]
    specificity: Mapping[str, Tensor] = field(default_factory=dict)

    def rows(self) -> list[dict[str, Any]]:
        """Return each method's name, seconds per image, measures, and mean text specificity."""
        return [
            {"method": name, "seconds": self.costs[name].seconds / len(self.images)}
            | dict(self.measures.get(name, {}))
            | (
                {"text_specificity": float(self.specificity[name].mean())}
                if name in self.specificity
                else {}
            )
            for name in self.maps
        ]

    def table(self) -> Any:
        """Return the rows as a pandas DataFrame, or as they are if pandas is not installed."""
        if find_spec("pandas") is None:
            return self.rows()
        return import_module("pandas").DataFrame(self.rows()).set_index("method")

    def to_markdown(self) -> str:
        """Return the rows as a Markdown table, with text specificity in words."""
        rows = self.rows()
        columns = {key: title for key, title in COLUMNS.items() if any(key in row for row in rows)}
        body = [
            [row["method"], *(f"{row[key]:.1f}" for key in columns), f"{row['seconds']:.3f}"]
            for row in rows
        ]
        header = ["method", *columns.values(), "s/image"]
        if self.specificity:
            header.append("dependence on the text")
            for cells, row in zip(body, rows, strict=True):
                value = row.get("text_specificity")
                cells.append("-" if value is None else describe_specificity(value))
        return markdown(header, body)

    def figure(
        self,
        scales: str = "method",
        sign: str = AUTO,
        transpose: bool = False,
        width: float | str | None = None,
    ) -> Figure:
        """Draw the maps: one row per image and text, one column per method.

        Args:
            scales: "method" for one color scale for all maps of a method, so that strengths
                compare, or "map" for one for each map, so that positions show; see
                `visualization.compare_figure`.
            sign: Values to draw, as for `visualization.compare_figure`.
            transpose: Whether rows are methods, and columns images and texts.
            width: Width of the figure in inches, or "column", "page", "notebook" or "slide".

        Returns:
            A figure that is not registered with pyplot; `visualization.save_figure` writes it.

        Raises:
            ValueError: If there are more than 100 images and texts, or an option is unknown.
        """
        n_images, n_texts = self.logits.shape
        check_rows(n_images, n_texts)
        notes = {
            row["method"]: [[f"{1000 * row['seconds']:.0f} ms"] * n_texts] * n_images
            for row in self.rows()
        }
        notes |= {
            name: [[describe_specificity(value) for value in row] for row in values.tolist()]
            for name, values in self.specificity.items()
        }
        return compare_figure(
            self.images,
            {title_of(name): values for name, values in self.maps.items()},
            self.texts,
            notes={title_of(name): rows for name, rows in notes.items()},
            text_notes=[format_cosines(row, self.differences) for row in self.cosines.tolist()],
            scales=scales,
            sign=sign,
            transpose=transpose,
            width=width,
        )


def check_rows(n_images: int, n_texts: int) -> None:
    """Check that a figure holds one row per image and text.

    Raises:
        ValueError: If there are more than 100 rows.
    """
    if n_images * n_texts > MAX_ROWS:
        raise ValueError(
            f"{n_images} images and {n_texts} texts make {n_images * n_texts} rows; the limit is "
            f"{MAX_ROWS}. Compare fewer images or texts"
        )


def compare(
    clip: ZeroShotClassifier,
    images: ImageInput | Sequence[ImageInput] | Tensor,
    targets: Sequence[int] | None = None,
    methods: Iterable[str] | Mapping[str, Method] = DEFAULT_METHODS,
    masks: Sequence[Any] | Tensor | None = None,
    size: int | tuple[int, int] | None = None,
    trust: bool = False,
    progress: bool = False,
) -> Comparison:
    """Explain images by several methods.

    A method that raises TypeError, ValueError or ImportError is left out with its message, and the
    others are compared.

    Args:
        clip: The classifier.
        images: Images as `clip.preprocess` takes them, or a batch (N, 3, H, W) from it.
        targets: Indices of texts; None means all.
        methods: Names in `attr.METHODS` ("all" for every one), or methods by name.
        masks: For each image, bool masks (K, H', W') of the texts, to measure the maps against.
        size: Side or (height, width) in pixels to which images are resized; None means the
            native size.
        trust: Whether to measure how much each map depends on its text. For each image, this
            computes maps of each text alone and of four absent texts; dense methods share one
            forward pass for them.
        progress: Whether to show a progress bar over the methods.

    Raises:
        TypeError: If the images or masks have the wrong type, or `methods` is a string.
        ValueError: If the images do not fit the model, the masks do not fit images and texts, a
            method is unknown, or no method gives a map.
        IndexError: If a target is out of range.

    Example::

        >>> from captum_clip_surgery.demo import Scenes
        >>> scene = Scenes("test", 1, size=64)[0]
        >>> clip = ZeroShotClassifier.demo(scene.nouns)
        >>> comparison = compare(clip, scene.image, methods=["CLIP", "CLIPSurgery"])
        >>> list(comparison.maps), comparison.left_out
        (['CLIP', 'CLIPSurgery'], {})
    """
    batch, pixels = load_batch(clip, images, size)
    count = len(clip.texts)
    wanted = range(count) if targets is None else targets
    indices = resolve_indices(wanted, count, batch.device).tolist()
    mask_list = None if masks is None else _check_masks(masks, len(batch), len(indices))
    if isinstance(methods, Mapping):
        chosen, left_out = dict(methods), dict[str, str]()
    else:
        chosen, left_out = choose(clip, methods)
    with torch.no_grad():
        logits = torch.cat([clip(part).cpu() for part in batch.split(BATCH_SIZE)])
    maps, costs = {}, {}
    bar = tqdm(chosen.items(), leave=False, disable=not progress, unit="method")
    for name, method in bar:
        bar.set_description(name)
        try:
            maps[name], costs[name] = _explain(method, clip, batch, indices)
        except (TypeError, ValueError, ImportError) as error:
            left_out[name] = str(error)
    if not maps:
        raise ValueError(f"no method gave a map: {join_reasons(left_out)}")
    texts = tuple(clip.texts[i] for i in indices)
    specificity: Mapping[str, Tensor] = {}
    if trust:
        explained = {name: chosen[name] for name in maps}
        specificity, undefined = specificity_of_maps(clip, explained, batch, texts)
        left_out |= {f"text specificity of {name}": why for name, why in undefined.items()}
    return Comparison(
        pixels,
        texts,
        logits[:, indices],
        clip.cosines(logits)[:, indices],
        [clip.differences[i] for i in indices],
        maps,
        costs,
        left_out,
        {} if mask_list is None else _measures(maps, mask_list),
        specificity,
    )


def _explain(
    method: Method, clip: ZeroShotClassifier, images: Tensor, targets: Sequence[int]
) -> tuple[Tensor, ProfileResult]:
    """Return a method's maps on the CPU, its seconds in total and its largest peak of memory.

    Methods run one by one, because a shared forward pass has no cost of one method.
    """
    maps, costs = [], []
    with torch.no_grad():  # methods that need gradients enable them themselves
        explainers = {"": method(clip)}
        for part in images.split(BATCH_SIZE):
            explain = partial(attribute_many, explainers, part, targets)
            results, cost = profile_call(explain, images.device)
            maps.append(cover_image(clip, results[""], part).detach().cpu())
            costs.append(cost)
    peaks = [cost.peak_bytes for cost in costs if cost.peak_bytes is not None]
    seconds = sum(cost.seconds for cost in costs)
    return torch.cat(maps), ProfileResult(seconds, max(peaks, default=None))


def load_batch(
    clip: ZeroShotClassifier,
    images: ImageInput | Sequence[ImageInput] | Tensor,
    size: int | tuple[int, int] | None = None,
) -> tuple[Tensor, list[np.ndarray]]:
    """Return images as a batch (N, 3, H, W), and as arrays (H, W, 3) to draw.

    Args:
        clip: The classifier.
        images: Images as `clip.preprocess` takes them, or a batch from it.
        size: Side or (height, width) in pixels to which images are resized; None means the
            native size.

    Raises:
        TypeError: If the images have the wrong type.
        ValueError: If the images do not fit the model, or a batch is given with a size.
    """
    if isinstance(images, Tensor):
        if size is not None:
            raise ValueError(
                f"size={size} does not apply to a batch; resize it with clip.preprocess(..., size=)"
            )
        check_images(images, clip.tower, clip.device)
        pixels = clip.unnormalize(images.detach().cpu()).permute(0, 2, 3, 1)
        return images, list(pixels.numpy())
    if isinstance(images, str) or not isinstance(images, Sequence):
        images = [images]
    loaded = [load_image(image) for image in images]
    return clip.preprocess(loaded, size), [np.asarray(image) for image in loaded]


def _check_masks(masks: Sequence[Any] | Tensor, n_images: int, n_texts: int) -> list[Tensor]:
    """Return masks as tensors, after checks that come before any method runs."""
    tensors = [
        mask if isinstance(mask, Tensor) else torch.as_tensor(mask, device="cpu") for mask in masks
    ]
    if len(tensors) != n_images or any(m.ndim != 3 or len(m) != n_texts for m in tensors):
        shapes = [tuple(mask.shape) for mask in tensors]
        raise ValueError(
            f"masks have shapes {shapes}, expected ({n_texts} texts, H, W) for each of {n_images} "
            "images"
        )
    if any(mask.dtype != torch.bool for mask in tensors):
        raise TypeError(f"masks must be bool, got {[mask.dtype for mask in tensors]}")
    if not any(mask.any() and not mask.all() for of_image in tensors for mask in of_image):
        raise ValueError("every mask is empty or full, so nothing can be measured")
    return tensors


def _measures(maps: Mapping[str, Tensor], masks: Sequence[Tensor]) -> dict[str, dict[str, float]]:
    measures = {}
    for name, values in maps.items():
        metric = PairMeasures()
        for image, (attributions, targets) in enumerate(zip(values, masks, strict=True)):
            for attribution, mask in zip(attributions, targets, strict=True):
                metric.update(attribution, mask, image)
        measures[name] = metric.compute()
    return measures

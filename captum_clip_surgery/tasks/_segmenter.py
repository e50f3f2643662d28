"""Segmentation of preprocessed images by any number of methods, in bounded memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from captum_clip_surgery.attr import Method, attribute_many
from captum_clip_surgery.attr._coverage import covered_size
from captum_clip_surgery.tasks._images import Size
from captum_clip_surgery.tasks._refinement import FILTERS, REFINED_BYTES, check_refinement
from captum_clip_surgery.tasks._sliding import Windows
from captum_clip_surgery.tasks._upsample import ImageScores, streaming_argmax, upsample
from captum_clip_surgery.tasks._vocabulary import BACKGROUND, Vocabulary
from captum_clip_surgery.visualization._labels import BACKGROUND_COLOR, label_color

#: Number of classes that a palette holds.
MAX_COLORS = 256


@dataclass(frozen=True)
class Segmentation:
    """The class of every pixel of one image.

    Attributes:
        labels: Indices (H, W) of `classes`, int64. The background, if there is one, is class 0.
        classes: Names of the classes.
        scores: If requested, scores (K, H, W) of the classes that have texts: cosines, unless
            feature surgery was requested.
    """

    labels: Tensor
    classes: tuple[str, ...]
    scores: Tensor | None = None

    def shares(self) -> dict[str, float]:
        """Return each class's share of the pixels, in 0..1, largest first.

        Absent classes are left out.

        Example::

            >>> Segmentation(torch.tensor([[0, 1, 1, 1]]), ("dog", "sky", "sea")).shares()
            {'sky': 0.75, 'dog': 0.25}
        """
        return {name: area / self.labels.numel() for name, area in self.areas().items()}

    def areas(self) -> dict[str, int]:
        """Return each class's number of pixels, largest first; absent classes are left out."""
        counts = torch.bincount(self.labels.flatten(), minlength=len(self.classes))
        order = counts.argsort(descending=True, stable=True).tolist()
        return {self.classes[i]: int(counts[i]) for i in order if counts[i]}

    def colors(self) -> dict[str, tuple[float, float, float]]:
        """Return the RGB color (0..1) of each class that is present, except the background's.

        Colors are those of `label_colors`, in the order of `areas`.
        """
        rows = {row["name"]: row["color"] for row in label_colors(self.classes)}
        return {
            name: (rows[name][0] / 255, rows[name][1] / 255, rows[name][2] / 255)
            for name in self.areas()
            if name != BACKGROUND
        }

    def save(self, path: str | PathLike[str]) -> None:
        """Write the labels as a PNG whose pixel values are the labels.

        Args:
            path: The file. It has the colors of `label_colors`; with more than 256 classes, which
                no palette can hold, it is a 16-bit grayscale PNG.
        """
        labels = self.labels.cpu().numpy()
        if len(self.classes) > MAX_COLORS:
            Image.fromarray(labels.astype(np.uint16)).save(path, format="PNG")
            return
        image = Image.fromarray(labels.astype(np.uint8))
        image.putpalette([c for row in label_colors(self.classes) for c in row["color"]])
        image.save(path, format="PNG")


class Segmenter:
    """Segmentation by one or several methods, prepared once for any number of images.

    `segment` and `evaluate` both call it. Methods that share a forward pass of the image tower
    share it here.

    Args:
        vocabulary: The classes and their texts.
        methods: Functions that create methods for a classifier, by name.
        windows: Windows that slide over an image; None means the whole image.
        stepwise: Whether scores are upsampled to the image that the model sees and then resized, as
            windows are, instead of in one step.
        scale: Factor of the scores in the softmax that the vocabulary's threshold is compared with;
            None means the model's logit scale.
        refine: Filter by which scores follow the image's edges, a name in `FILTERS`, or None.
        keep_scores: Whether each `Segmentation` holds its scores.
        dtype: Dtype of the upsampled scores.

    Raises:
        ValueError: If a window is smaller than a patch, `scale` is not positive, or `refine` is
            unknown.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        methods: Mapping[str, Method],
        windows: Windows | None = None,
        *,
        stepwise: bool = False,
        scale: float | None = None,
        refine: str | None = None,
        keep_scores: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        clip = vocabulary.clip
        if scale is not None and not 0 < scale < float("inf"):
            raise ValueError(f"scale must be a positive number, got {scale!r}")
        check_refinement(refine)
        self.windows = windows or Windows()
        self.windows.check_patch(clip.tower.patch_size)
        self.vocabulary = vocabulary
        self.methods = {name: method(clip) for name, method in methods.items()}
        self.stepwise = stepwise or self.windows.side is not None
        self.scale = scale or float(clip.model.logit_scale.detach().exp())
        self.refine = refine
        self.keep_scores = keep_scores
        self.dtype = dtype
        self._labels = torch.tensor(vocabulary.labels, device=clip.device)

    @torch.no_grad()  # methods that need gradients enable them themselves
    def __call__(self, images: Tensor, sizes: Sequence[Size]) -> list[dict[str, Segmentation]]:
        """Segment preprocessed images.

        Args:
            images: Images (N, 3, H, W).
            sizes: (height, width) of each image's labels.

        Returns:
            For each image, its segmentation by each method.
        """
        return [
            {name: self._segmentation(by_method[name], image, size) for name in self.methods}
            for by_method, image, size in zip(self.scores(images), images, sizes, strict=True)
        ]

    def scores(self, images: Tensor) -> list[dict[str, ImageScores]]:
        """Return the scores of preprocessed images before they are upsampled, by method."""
        height, width = images.shape[-2:]
        boxes = self.windows.boxes(height, width) if self.stepwise else []
        parts = [self._crop(images[..., rows, columns]) for rows, columns in boxes] or [images]
        grids = [
            {name: self.vocabulary.rows(maps) for name, maps in by_method.items()}
            for by_method in (attribute_many(self.methods, part) for part in parts)
        ]
        shown = (height, width)
        covered = {
            name: shown if boxes else covered_size(self.vocabulary.clip, grids[0][name], shown)
            for name in self.methods
        }
        return [
            {
                name: ImageScores(
                    tuple(by_method[name][index] for by_method in grids),
                    tuple(boxes),
                    shown,
                    covered[name],
                )
                for name in self.methods
            }
            for index in range(len(images))
        ]

    def _crop(self, images: Tensor) -> Tensor:
        """Crop images to whole patches, as a strided convolution leaves out the remainder."""
        patch_size = self.vocabulary.clip.tower.patch_size
        height, width = (
            side // patch * patch for side, patch in zip(images.shape[-2:], patch_size, strict=True)
        )
        return images[..., :height, :width]

    def _segmentation(self, scores: ImageScores, image: Tensor, size: Size) -> Segmentation:
        """Return the best class of every pixel."""
        vocabulary = self.vocabulary
        scale = None if vocabulary.threshold is None else self.scale
        rows, best, log_total = self._best_rows(scores, image, size, scale)
        labels = self._labels[rows]
        if log_total is not None and vocabulary.threshold is not None:
            probability = (self.scale * best.float() - log_total).exp()
            labels = labels.where(probability >= vocabulary.threshold, vocabulary.background)
        if vocabulary.min_area is not None:
            counts = torch.bincount(labels.flatten(), minlength=len(vocabulary.classes))
            foreground = labels.numel() - counts[vocabulary.background]
            small = counts < vocabulary.min_area * foreground
            labels = labels.masked_fill(small[labels], vocabulary.background)
        kept = self.class_scores(scores, size) if self.keep_scores else None
        return Segmentation(labels, vocabulary.classes, kept)

    def _best_rows(
        self, scores: ImageScores, image: Tensor, size: Size, scale: float | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the result of `streaming_argmax` for scores that are refined if requested."""
        if self.refine is None:
            return streaming_argmax(upsample(scores, size, self.dtype), scale)
        guide = self.vocabulary.clip.unnormalize(image)
        refined = FILTERS[self.refine]
        if self.refine != "guided":
            chunks = upsample(scores, size, self.dtype, REFINED_BYTES)
            return streaming_argmax(refined(guide, chunks, size), scale)
        # Guiding every row would be slow; one that is nowhere the best gains no pixel.
        rows, _, log_total = streaming_argmax(upsample(scores, size, self.dtype), scale)
        candidates = rows.unique()
        chunks = upsample(scores.select(candidates), size, self.dtype, REFINED_BYTES)
        places, best, _ = streaming_argmax(refined(guide, chunks, size))
        return candidates[places], best, log_total

    def class_scores(self, scores: ImageScores, size: Size) -> Tensor:
        """Return the upsampled scores (K, H, W) of all classes that have texts."""
        places = self._labels.unique(return_inverse=True)[1].tolist()
        like = scores.grids[0]
        kept = torch.full(
            (max(places) + 1, *size), -torch.inf, dtype=self.dtype, device=like.device
        )
        for start, chunk in upsample(scores, size, self.dtype):
            for place, row in zip(places[start:], chunk, strict=False):
                torch.maximum(kept[place], row, out=kept[place])
        return kept


def label_colors(classes: Sequence[str]) -> list[dict[str, Any]]:
    """Return index, name and color of each class, the same in label images and figures.

    More than `MAX_COLORS` classes share colors in figures, and have none in label images.

    Args:
        classes: Names of the classes. The background is gray.

    Example::

        >>> label_colors(["background", "dog"])[1]
        {'index': 1, 'name': 'dog', 'color': [0, 114, 178]}
    """
    is_there = BACKGROUND in classes[:1]  # it takes none of the palette's colors
    colors = [label_color(index - is_there) for index in range(len(classes))]
    if is_there:
        colors[0] = BACKGROUND_COLOR
    return [
        {"index": index, "name": name, "color": [round(255 * channel) for channel in color]}
        for index, (name, color) in enumerate(zip(classes, colors, strict=True))
    ]

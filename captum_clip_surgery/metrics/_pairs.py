"""All measures of localization over many pairs of a map and a mask, with confidence intervals."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Integral

import torch
from torch import Tensor

from captum_clip_surgery.metrics._bootstrap import check_bootstrap, percentiles, resample
from captum_clip_surgery.metrics.functional._energy import energy_share
from captum_clip_surgery.metrics.functional._localization import share_near
from captum_clip_surgery.metrics.functional._maps import (
    check_pair,
    check_tolerance,
    is_measurable,
    prepare_levels,
)
from captum_clip_surgery.metrics.functional._ranked import THRESHOLDS, RankedPixels
from captum_clip_surgery.metrics.functional._segmentation import pixel_accuracy, segmentation_miou

#: Measures that are means over pairs.
MEANS = ("msc", "pointing", "pointing_near", "energy", "auroc", "average_precision")
#: Widths of `pair_stats`, IoU curve, values of `MEANS` and confusion, and of 1 to count pairs.
WIDTHS = [len(THRESHOLDS), len(MEANS), 4, 1]
#: Tolerance of `pointing_near` in pixels of the mask, as in the paper.
TOLERANCE = 15


@dataclass(frozen=True)
class Localization:
    """Measures over pairs of a map and a mask, in percent.

    Args:
        explanation_iou: Mean IoU at the threshold that is best for all pairs.
        threshold: That threshold, in 0..1.
        msc: Mean score inside the mask minus outside; negative for opposite visualization.
        pointing: Maxima inside the mask.
        pointing_near: Maxima inside the mask or at most `TOLERANCE` pixels away.
        n_pairs: Number of pairs.
        skipped: Number of further pairs, skipped because their mask is empty or full.
        energy: Positive mass inside the mask.
        auroc: Probability that a pixel inside scores above one outside.
        average_precision: Mean precision over the pixels of the mask.
        pixel_accuracy: Correct pixels at each map's mean, over the pixels of all pairs.
        segmentation_miou: Mean IoU of foreground and background at each map's mean, over the pixels
            of all pairs.
    """

    explanation_iou: float
    threshold: float
    msc: float
    pointing: float
    pointing_near: float
    n_pairs: int
    skipped: int
    energy: float
    auroc: float
    average_precision: float
    pixel_accuracy: float
    segmentation_miou: float


def localization(pairs: Iterable[tuple[Tensor, Tensor]]) -> Localization:
    """Measure maps against masks.

    Args:
        pairs: Maps (h, w) of any size, raw and signed, each with its mask (H, W) of bool.

    Raises:
        TypeError: If a map or a mask is not a tensor.
        ValueError: If there is no pair to measure, a shape or a mask's dtype is wrong, or a map is
            not finite.

    Example::

        >>> mask = torch.tensor([[True, False], [False, False]])
        >>> measured = localization([(mask.float(), mask), (mask.float(), ~mask)])
        >>> measured.msc, measured.pointing, measured.n_pairs
        (0.0, 50.0, 2)
    """
    measures = PairMeasures()
    for attribution, mask in pairs:
        measures.update(attribution, mask)
    figures = measures.compute()
    n_pairs, skipped = int(figures.pop("n_pairs")), int(figures.pop("skipped"))
    return Localization(n_pairs=n_pairs, skipped=skipped, **figures)


class PairMeasures:
    """All measures of localization, accumulated over pairs as sums per image.

    A pair whose mask is empty or full is skipped and counted as skipped.

    Args:
        tolerance: Tolerance of `pointing_near`, in pixels of the mask.

    Raises:
        ValueError: If the tolerance is negative, NaN or infinite.

    Example::

        >>> measures = PairMeasures()
        >>> mask = torch.tensor([[True, False], [False, False]])
        >>> measures.update(mask.float(), mask, image=0)
        >>> measures.update(-mask.float(), mask, image=1)
        >>> figures = measures.compute()
        >>> figures["msc"], figures["auroc"], figures["n_pairs"]
        (0.0, 50.0, 2.0)
        >>> measures.confidence()["auroc"]
        (0.0, 100.0)
    """

    def __init__(self, tolerance: float = TOLERANCE) -> None:
        check_tolerance(tolerance)
        self.tolerance = tolerance
        self.skipped = 0
        #: Summed statistics (112,) by image.
        self.sums: dict[object, Tensor] = {}

    def update(
        self,
        attribution: Tensor,
        mask: Tensor,
        image: int | None = None,
        ignored: Tensor | None = None,
    ) -> None:
        """Add a pair.

        Args:
            attribution: Map (h, w) of any size, raw and signed.
            mask: Mask (H, W) of bool.
            image: Number of the image for `confidence`, or None for an image with this pair only.
            ignored: Pixels (H, W) of bool that count neither as inside nor as outside; the maxima
                of the pointing game are those of the other pixels.

        Raises:
            TypeError: If the map or the mask is not a tensor, or `image` is not an int.
            ValueError: If a shape or dtype is wrong, or the map is not finite.
        """
        if image is not None and not isinstance(image, Integral):
            raise TypeError(f"image must be an int or None, got {image!r} ({type(image).__name__})")
        self.add(pair_stats(attribution, mask, ignored, self.tolerance), image)

    def add(self, stats: Tensor | None, image: int | None = None) -> None:
        """Add the statistics of a pair.

        Args:
            stats: Statistics from `pair_stats`; None counts a skipped pair.
            image: Number of the image, see `update`.
        """
        if stats is None:
            self.skipped += 1
        else:
            pair = torch.cat([stats, torch.ones(1, dtype=torch.float64, device="cpu")])
            self._add(object() if image is None else image, pair)

    @property
    def n_pairs(self) -> int:
        """Number of measured pairs."""
        return int(sum(sums[-1] for sums in self.sums.values()))

    def merge(self, other: PairMeasures) -> None:
        """Add the pairs of other measures; equal image numbers mean the same image.

        Raises:
            ValueError: If the tolerances differ.
        """
        if self.tolerance != other.tolerance:
            raise ValueError(
                "measures to merge must have the same tolerance, got "
                f"{self.tolerance} and {other.tolerance}"
            )
        self.skipped += other.skipped
        for image, sums in list(other.sums.items()):
            self._add(image, sums)

    def compute(self) -> dict[str, float]:
        """Return the measures in percent, `threshold` in 0..1, and the counts of pairs.

        `explanation_iou` uses the threshold that is best for all pairs; `pixel_accuracy` and
        `segmentation_miou` count the pixels of all pairs together; the others are means over pairs.

        Returns:
            The fields of `Localization`, by name.

        Raises:
            ValueError: If there are no pairs.
        """
        sums = self._table().sum(0)
        figures = {name: float(value) for name, value in _compute(sums).items()}
        return figures | {"n_pairs": float(sums[-1]), "skipped": float(self.skipped)}

    def confidence(
        self, level: float = 0.95, resamples: int = 1000, seed: int = 0
    ) -> dict[str, tuple[float, float]]:
        """Return percentile intervals of the measures and the threshold by bootstrap over images.

        Images are drawn with replacement, because pairs of one image are not independent; the
        threshold is chosen again in each resample. With a single image the interval is a point.

        Args:
            level: Fraction of resamples inside the interval, between 0 and 1.
            resamples: Number of resamples.
            seed: Seed of the draw.

        Returns:
            Intervals (low, high) by measure.

        Raises:
            ValueError: If there are no pairs, `level` is not between 0 and 1, or `resamples` is
                less than 1.

        References:
            Efron and Tibshirani: An Introduction to the Bootstrap. 1993, ch. 13.
        """
        check_bootstrap(level, resamples)
        table = self._table()
        chunks = (_compute(counts @ table) for counts in resample(len(table), resamples, seed))
        return percentiles(chunks, level)

    def _add(self, image: object, stats: Tensor) -> None:
        self.sums[image] = self.sums[image] + stats if image in self.sums else stats

    def _table(self) -> Tensor:
        """Return the sums as one row per image, (images, 112)."""
        if not self.sums:
            raise ValueError(
                f"no pair to measure ({self.skipped} skipped for an empty or full mask)"
            )
        return torch.stack(list(self.sums.values()))


def _valid_pixels(mask: Tensor, ignored: Tensor | None) -> Tensor | None:
    """Return the pixels (H, W) that count, or None if all do."""
    if ignored is None:
        return None
    if ignored.shape != mask.shape or ignored.dtype != torch.bool:
        raise ValueError(
            f"ignored has shape {tuple(ignored.shape)} and dtype {ignored.dtype}, expected "
            f"{tuple(mask.shape)} and torch.bool, like the mask"
        )
    return ~ignored.cpu() if ignored.any() else None


def pair_stats(
    attribution: Tensor,
    mask: Tensor,
    ignored: Tensor | None = None,
    tolerance: float = TOLERANCE,
) -> Tensor | None:
    """Return the statistics of a pair, from whose sums all measures follow.

    Args:
        attribution: Map (h, w) of any size, raw and signed.
        mask: Mask (H, W) of bool.
        ignored: Pixels (H, W) of bool that do not count, see `PairMeasures.update`.
        tolerance: Tolerance of the pointing game, in pixels of the mask.

    Returns:
        IoU curve (101,), values of `MEANS` and confusion (4,) in a row (111,) of float64, or None
        if no counted pixel is inside the mask or none outside.

    Raises:
        TypeError: If the map or the mask is not a tensor.
        ValueError: If a shape or dtype is wrong, or the map is not finite.
    """
    check_pair(attribution, mask)
    attribution, mask = attribution.detach().cpu(), mask.cpu()
    valid = _valid_pixels(mask, ignored)
    if not is_measurable(mask if valid is None else mask[valid]):
        return None
    levels = prepare_levels(attribution, mask)
    constant = levels is None
    pixels = RankedPixels.of(
        torch.zeros_like(mask, dtype=torch.int32) if levels is None else levels, mask, valid
    )
    # A constant map points nowhere, and has no foreground at any threshold.
    means = [
        pixels.contrast(),
        *(0.0 if constant else share_near(pixels.maxima, mask, t) for t in (0, tolerance)),
        energy_share(attribution, mask, valid),
        *pixels.auroc_and_ap(),
    ]
    return torch.cat(
        [
            torch.zeros_like(THRESHOLDS) if constant else pixels.iou_curve(),
            torch.tensor(means, dtype=torch.float64, device="cpu"),
            pixels.confusion(),
        ]
    )


def _compute(sums: Tensor) -> dict[str, Tensor]:
    """Return the measures (...) in percent, and the threshold, of summed statistics (..., 112)."""
    curve, means, counts, n_pairs = sums.split(WIDTHS, -1)
    highest, index = (curve / n_pairs).max(-1)
    return {
        "explanation_iou": 100 * highest,
        "threshold": THRESHOLDS[index],
        **dict(zip(MEANS, (100 * means / n_pairs).unbind(-1), strict=True)),
        "pixel_accuracy": 100 * pixel_accuracy(counts),
        "segmentation_miou": 100 * segmentation_miou(counts),
    }

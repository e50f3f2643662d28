"""All measures of localisation over many pairs of a map and a mask, with confidence intervals."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Integral

import torch
from torch import Tensor

from captum_clip_surgery.metrics.bootstrap import check_bootstrap, percentiles, resample
from captum_clip_surgery.metrics.energy import positive_part, share
from captum_clip_surgery.metrics.localization import (
    THRESHOLDS,
    check_tolerance,
    dilate,
    iou_curve,
    pointing_game,
    score_contrast,
)
from captum_clip_surgery.metrics.maps import check_pair, is_measurable, prepare, resize
from captum_clip_surgery.metrics.ranking import ranking
from captum_clip_surgery.metrics.segmentation import confusion, pixel_accuracy, segmentation_miou

#: Measures that are means over pairs.
MEANS = ("msc", "pointing", "pointing_near", "energy", "auroc", "average_precision")
#: What a pair adds to the sums: its IoU curve, the measures above, its confusion, and one pair.
PARTS = [len(THRESHOLDS), len(MEANS), 4, 1]
#: Of the pointing game, in pixels of the mask: the paper's.
TOLERANCE = 15


@dataclass(frozen=True)
class Localization:
    """Measures over pairs of a map and a mask, in percent.

    `explanation_iou` (mean IoU at the one best `threshold`, which is in 0..1), `msc` (mean score
    inside minus outside; negative is opposite visualization), `pointing` (maxima inside),
    `pointing_near` (maxima inside or at most `TOLERANCE` pixels away), the
    number of pairs `n_pairs`, and of pairs `skipped` because their mask is empty or full. Then as in
    `PairMeasures`.
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
        pairs: maps (h, w) of any size, each with its mask (H, W) of bool.

    Raises:
        TypeError, ValueError: no pair with a mask, or one of another shape, or a map that is not
            finite.

    Example::

        >>> mask = torch.tensor([[True, False], [False, False]])
        >>> found = localization([(mask.float(), mask), (mask.float(), ~mask)])
        >>> found.msc, found.pointing, found.n_pairs
        (0.0, 50.0, 2)
    """
    measures = PairMeasures()
    for attribution, mask in pairs:
        measures.update(attribution, mask)
    found = measures.compute()
    pairs_measured, skipped = int(found.pop("n_pairs")), int(found.pop("skipped"))
    return Localization(n_pairs=pairs_measured, skipped=skipped, **found)


class PairMeasures:
    """All measures of localisation, accumulated over pairs: only sums for each image are kept.

    A pair whose mask is empty or full is skipped and counted as skipped.

    Args:
        tolerance: of `pointing_near`, in pixels of the mask.

    Raises:
        ValueError: a tolerance that is negative, NaN or infinite.

    Example::

        >>> measures = PairMeasures()
        >>> mask = torch.tensor([[True, False], [False, False]])
        >>> measures.update(mask.float(), mask, image=0)
        >>> measures.update(-mask.float(), mask, image=1)
        >>> found = measures.compute()
        >>> found["msc"], found["auroc"], found["n_pairs"]
        (0.0, 50.0, 2.0)
        >>> measures.confidence()["auroc"]
        (0.0, 100.0)
    """

    def __init__(self, tolerance: float = TOLERANCE) -> None:
        check_tolerance(tolerance)
        self.tolerance = tolerance
        self.skipped = 0
        self._sums: dict[object, Tensor] = {}  # by image

    def update(
        self,
        attribution: Tensor,
        mask: Tensor,
        image: int | None = None,
        ignored: Tensor | None = None,
    ) -> None:
        """Add a pair.

        Args:
            attribution: (h, w) of any size, raw and signed.
            mask: (H, W) of bool.
            image: which image it is of, for `confidence`; None is one of its own.
            ignored: (H, W) of bool, pixels that count neither as inside nor as outside: the
                maximum of the pointing game is looked for among the others.

        Raises:
            TypeError: no tensors, or an image that is no int.
            ValueError: other shapes, a mask that is not of bool, a map that is not finite.
        """
        if image is not None and not isinstance(image, Integral):
            raise TypeError(f"image {image!r} is a {type(image).__name__}, expected an int or None")
        check_pair(attribution, mask)
        mask = mask.cpu()
        judged = _judged(mask, ignored)
        if not is_measurable(mask[judged]):
            self.skipped += 1
            return
        sums = _sums_of_pair(attribution.detach().cpu(), mask, judged, self.tolerance)
        self._add(object() if image is None else image, sums)

    def state(self, image: int) -> Tensor:
        """All that an image's pairs added, and how many were skipped so far, as one row."""
        sums = self._sums.get(image, torch.zeros(sum(PARTS), dtype=torch.float64))
        return torch.cat([sums, torch.tensor([self.skipped], dtype=torch.float64)])

    def add_state(self, image: int, state: Tensor) -> None:
        """Add what another's `state` holds."""
        self.skipped += int(state[-1])
        if state[-2]:  # its pairs
            self._add(image, state[:-1])

    @property
    def n_pairs(self) -> int:
        """How many were measured."""
        return int(sum(sums[-1] for sums in self._sums.values()))

    def merge(self, other: PairMeasures) -> None:
        """Add another's pairs, of the same images where their numbers are the same.

        Raises:
            ValueError: the other has another tolerance.
        """
        if self.tolerance != other.tolerance:
            raise ValueError(
                f"measures with tolerance {self.tolerance} and {other.tolerance} do not merge; "
                "accumulate both with the same"
            )
        self.skipped += other.skipped
        for image, sums in list(other._sums.items()):
            self._add(image, sums)

    def compute(self) -> dict[str, float]:
        """The measures in percent, `threshold` in 0..1, and the numbers `n_pairs` and `skipped`.

        `explanation_iou` takes the one threshold that is best for all pairs; `pixel_accuracy` and
        `segmentation_miou` count the pixels of all pairs together; the others are means over pairs.

        Raises:
            ValueError: no pair.
        """
        sums = self._table().sum(0)
        found = {name: float(value) for name, value in _figures(sums).items()}
        return found | {"n_pairs": float(sums[-1]), "skipped": float(self.skipped)}

    def confidence(
        self, level: float = 0.95, resamples: int = 1000, seed: int = 0
    ) -> dict[str, tuple[float, float]]:
        """Percentile bootstrap over images: (low, high) for each measure and the threshold.

        Pairs of one image are not independent, so whole images are drawn, with replacement; the
        threshold is chosen anew in each resample. With a single image the interval is a point.

        Args:
            level: the share of resamples within the interval.
            resamples: their number.
            seed: of their draw.

        Raises:
            ValueError: no pair, a level not between 0 and 1, no resamples.

        Source: Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), ch. 13.
        """
        check_bootstrap(level, resamples)
        table = self._table()
        chunks = (_figures(counts @ table) for counts in resample(len(table), resamples, seed))
        return percentiles(chunks, level)

    def _add(self, image: object, sums: Tensor) -> None:
        self._sums[image] = self._sums[image] + sums if image in self._sums else sums

    def _table(self) -> Tensor:
        """The sums, one row for each image."""
        if not self._sums:
            raise ValueError(
                f"no pair to measure ({self.skipped} skipped for an empty or full mask)"
            )
        return torch.stack(list(self._sums.values()))


def _judged(mask: Tensor, ignored: Tensor | None) -> Tensor:
    """The pixels (H, W) that count."""
    if ignored is None:
        return torch.ones_like(mask)
    if ignored.shape != mask.shape or ignored.dtype != torch.bool:
        raise ValueError(
            f"ignored pixels are {tuple(ignored.shape)} of {ignored.dtype}, expected "
            f"{tuple(mask.shape)} of torch.bool, as the mask is"
        )
    return ~ignored.cpu()


def _sums_of_pair(attribution: Tensor, mask: Tensor, judged: Tensor, tolerance: float) -> Tensor:
    prepared, near = prepare(attribution, mask), dilate(mask, tolerance)
    positive = resize(positive_part(attribution), mask)
    # What follows looks at pixels one by one, wherever they stand.
    mask, near, positive = (part[judged][None] for part in (mask, near, positive))
    prepared = None if prepared is None else prepared[judged][None]
    means = [
        score_contrast(prepared, mask),
        pointing_game(prepared, mask),
        pointing_game(prepared, near),
        share(positive[mask].sum(), positive.sum()),
        *ranking(prepared, mask),
    ]
    return torch.cat(
        [
            iou_curve(prepared, mask),
            torch.tensor(means, dtype=torch.float64),
            confusion(prepared, mask),
            torch.ones(1, dtype=torch.float64),
        ]
    )


def _figures(sums: Tensor) -> dict[str, Tensor]:
    """Sums (..., all parts) as figures (...) in percent, and the threshold."""
    curve, means, counts, pairs = sums.split(PARTS, -1)
    highest, at = (curve / pairs).max(-1)
    return {
        "explanation_iou": 100 * highest,
        "threshold": THRESHOLDS[at],
        **dict(zip(MEANS, (100 * means / pairs).unbind(-1), strict=True)),
        "pixel_accuracy": 100 * pixel_accuracy(counts),
        "segmentation_miou": 100 * segmentation_miou(counts),
    }

"""The measures of localisation as torchmetrics classes, for batches and several processes.

All take `update(maps (N, h, w), masks (N, H, W))`, maps raw and signed, masks of bool, and return
percent, as `PairMeasures` does; NaN before the first pair. Pairs whose mask is empty or full are
skipped. States are sums on whichever device the metric is on; the measuring is done on the CPU.
`GridPointingGame` and `InsertionDeletion` need no masks and take what their `update` says.

Raises ImportError without torchmetrics: `pip install 'captum_clip_surgery[metrics]'`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from captum_clip_surgery.classifier import ZeroShotClassifier
from captum_clip_surgery.metrics.energy import energy_pointing_game, grid_pointing_game
from captum_clip_surgery.metrics.faithfulness import insertion_deletion
from captum_clip_surgery.metrics.localization import (
    THRESHOLDS,
    check_tolerance,
    iou_curve,
    pointing_game,
    score_contrast,
)
from captum_clip_surgery.metrics.maps import check_maps, check_pair, is_measurable, prepare
from captum_clip_surgery.metrics.ranking import pixel_auroc, pixel_average_precision
from captum_clip_surgery.metrics.segmentation import confusion, pixel_accuracy, segmentation_miou
from captum_clip_surgery.models import validation

try:
    from torchmetrics import Metric
except ImportError as error:
    raise ImportError(
        "captum_clip_surgery.metrics.modules needs torchmetrics; install the extra: "
        "pip install 'captum_clip_surgery[metrics]'"
    ) from error


class MeanOfFigures(Metric):
    """Sums of figures in 0..1, and their means in percent.

    Args:
        variant: tells apart metrics of one class that measure differently.
        **options: for torchmetrics: `sync_on_compute`, `dist_sync_fn`, ...
    """

    is_differentiable = False
    higher_is_better: bool | None = True
    full_state_update = False
    #: How many figures there are.
    width: ClassVar[int] = 1

    def __init__(self, variant: object = "", **options: Any) -> None:
        super().__init__(**options)
        # A MetricCollection lets metrics share one state whose states are alike by name and, after
        # the first batch, by value; of constant maps all are zero. So each has a name of its own.
        self._state = f"sums_{type(self).__name__}_{variant}".replace(".", "_")
        sums = torch.zeros(self.width + 1, dtype=torch.float64)
        self.add_state(self._state, default=sums, dist_reduce_fx="sum")

    def add(self, figures: Tensor) -> None:
        """Add some, (n, width)."""
        sums = getattr(self, self._state)
        added = torch.cat([figures.sum(0), figures.new_tensor([len(figures)])]).to(sums)
        setattr(self, self._state, sums + added)

    def compute(self) -> Any:
        """The figure in percent."""
        return self.mean()[0]

    def mean(self) -> Tensor:
        """The means, times 100: (width,)."""
        sums = getattr(self, self._state)
        return 100 * sums[:-1] / sums[-1]


class PairMetric(MeanOfFigures):
    """Means over pairs of a map and a mask."""

    @abstractmethod
    def measure(self, attribution: Tensor, prepared: Tensor | None, mask: Tensor) -> Tensor:
        """What a pair adds: (width,). `attribution` is raw, `prepared` see `maps.prepare`."""

    def update(self, maps: Tensor, masks: Tensor) -> None:
        """Add pairs.

        Args:
            maps: (N, h, w), raw and signed.
            masks: (N, H, W) of bool.

        Raises:
            TypeError, ValueError: other shapes, a mask that is not of bool, a map that is not
                finite.
        """
        check_maps(maps, len(masks))
        for attribution, mask in zip(maps.detach().cpu(), masks.cpu(), strict=True):
            check_pair(attribution, mask)
            if is_measurable(mask):
                self.add(self.measure(attribution, prepare(attribution, mask), mask)[None])


class ExplanationIoU(PairMetric):
    """Mean IoU at the one threshold that is best for all pairs; see `iou_curve`.

    Example::

        >>> metric, masks = ExplanationIoU(), torch.tensor([[[True, False]]])
        >>> metric.update(torch.tensor([[[0.4, -2.0]]]), masks)
        >>> metric.compute()
        tensor(100., dtype=torch.float64)
    """

    width = len(THRESHOLDS)

    def measure(self, attribution: Tensor, prepared: Tensor | None, mask: Tensor) -> Tensor:
        return iou_curve(prepared, mask)

    def compute(self) -> Tensor:
        """The figure in percent."""
        return self.mean().max()


class ScoreContrast(PairMetric):
    """mSC: mean score inside minus outside, in -100..100; see `score_contrast`.

    Example::

        >>> metric, masks = ScoreContrast(), torch.tensor([[[True, False]]])
        >>> metric(torch.tensor([[[0.4, 2.0]]]), masks)
        tensor(-100., dtype=torch.float64)
    """

    def measure(self, attribution: Tensor, prepared: Tensor | None, mask: Tensor) -> Tensor:
        return _number(score_contrast(prepared, mask))


class PointingGame(PairMetric):
    """Maxima inside the mask, or near it; see `pointing_game`.

    Args:
        tolerance: in pixels of the mask.
        **options: for torchmetrics.

    Example::

        >>> metric, masks = PointingGame(tolerance=1), torch.tensor([[[True, False]]])
        >>> metric(torch.tensor([[[0.4, 2.0]]]), masks)
        tensor(100., dtype=torch.float64)
    """

    def __init__(self, tolerance: float = 0, **options: Any) -> None:
        check_tolerance(tolerance)
        super().__init__(variant=tolerance, **options)
        self.tolerance = tolerance

    def measure(self, attribution: Tensor, prepared: Tensor | None, mask: Tensor) -> Tensor:
        return _number(pointing_game(prepared, mask, self.tolerance))


class EnergyPointingGame(PairMetric):
    """Positive mass inside the mask; see `energy_pointing_game`.

    Example::

        >>> metric, masks = EnergyPointingGame(), torch.tensor([[[True, False]]])
        >>> metric(torch.tensor([[[3.0, 1.0]]]), masks)
        tensor(75., dtype=torch.float64)
    """

    def measure(self, attribution: Tensor, prepared: Tensor | None, mask: Tensor) -> Tensor:
        return _number(energy_pointing_game(attribution, mask))


class PixelAUROC(PairMetric):
    """Mean over pairs of AUROC; see `pixel_auroc`.

    Example::

        >>> metric, masks = PixelAUROC(), torch.tensor([[[True, False]]])
        >>> metric(torch.tensor([[[1.0, 1.0]]]), masks)
        tensor(50., dtype=torch.float64)
    """

    def measure(self, attribution: Tensor, prepared: Tensor | None, mask: Tensor) -> Tensor:
        return _number(pixel_auroc(prepared, mask))


class PixelAveragePrecision(PairMetric):
    """Mean over pairs of average precision; see `pixel_average_precision`.

    Example::

        >>> metric, masks = PixelAveragePrecision(), torch.tensor([[[True, False]]])
        >>> metric(torch.tensor([[[1.0, 2.0]]]), masks)
        tensor(50., dtype=torch.float64)
    """

    def measure(self, attribution: Tensor, prepared: Tensor | None, mask: Tensor) -> Tensor:
        return _number(pixel_average_precision(prepared, mask))


class SegmentationProtocol(PairMetric):
    """Pixel accuracy and mean IoU at each map's mean, over the pixels of all pairs together.

    A dict of `pixel_accuracy` and `segmentation_miou`; see `segmentation`.

    Example::

        >>> metric, masks = SegmentationProtocol(), torch.tensor([[[True, False]]])
        >>> found = metric(torch.tensor([[[2.0, 1.0]]]), masks)
        >>> found["pixel_accuracy"], found["segmentation_miou"]
        (tensor(100., dtype=torch.float64), tensor(100., dtype=torch.float64))
    """

    width = 4

    def measure(self, attribution: Tensor, prepared: Tensor | None, mask: Tensor) -> Tensor:
        return confusion(prepared, mask)

    def compute(self) -> dict[str, Tensor]:
        """The figures in percent."""
        counts = self.mean()
        return {
            "pixel_accuracy": 100 * pixel_accuracy(counts),
            "segmentation_miou": 100 * segmentation_miou(counts),
        }


class GridPointingGame(MeanOfFigures):
    """Positive mass in the right cell of a grid of images; see `grid_pointing_game`.

    Args:
        rows, columns: of the grid.
        **options: for torchmetrics.

    Example::

        >>> metric = GridPointingGame(rows=1, columns=2)
        >>> metric(torch.tensor([[[3.0, 1.0]]]), cells=[1])
        tensor(25., dtype=torch.float64)
    """

    def __init__(self, rows: int = 2, columns: int = 2, **options: Any) -> None:
        super().__init__(variant=f"{rows}_{columns}", **options)
        self.rows, self.columns = rows, columns

    def update(self, maps: Tensor, cells: Tensor | Sequence[int]) -> None:
        """Add maps (N, h, w), raw and signed, each with the cell of its object.

        Raises:
            TypeError, ValueError, IndexError: other shapes, a map that is not finite, a cell there
                is not.
        """
        check_maps(maps, len(cells))
        for attribution, cell in zip(maps, cells, strict=True):
            share = grid_pointing_game(attribution, self.rows, self.columns, int(cell))
            self.add(_number(share)[None])


class InsertionDeletion(MeanOfFigures):
    """Areas as pixels come and go, {"insertion": ..., "deletion": ...}; see `insertion_deletion`.

    Args:
        clip: the classifier, of at least two texts.
        steps, baseline, batch_size, seed: as of the function.
        **options: for torchmetrics.

    Example::

        >>> from captum_clip_surgery import ZeroShotClassifier
        >>> clip = ZeroShotClassifier.demo(["dog", "pizza"])
        >>> metric = InsertionDeletion(clip, steps=5)
        >>> metric.update(torch.zeros(1, 3, *clip.native_size), torch.rand(1, 8, 8), 0)
        >>> sorted(metric.compute())
        ['deletion', 'insertion']
    """

    width = 2
    higher_is_better = None  # insertion is, deletion is not

    def __init__(
        self,
        clip: ZeroShotClassifier,
        steps: int = 100,
        baseline: str = "blur",
        batch_size: int = 32,
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(variant=f"{steps}_{baseline}_{seed}", **options)
        # Bound, not an attribute: as one, the model would be a part of the metric.
        self._areas: Callable[..., tuple[Tensor, Tensor]] = partial(
            insertion_deletion,
            clip,
            steps=steps,
            baseline=baseline,
            batch_size=batch_size,
            seed=seed,
        )

    def update(self, images: Tensor, maps: Tensor, targets: validation.Target) -> None:
        """Add images (N, 3, H, W) with their maps (N, h, w) and the text each map is of.

        Raises:
            TypeError, ValueError, IndexError: see `insertion_deletion`.
        """
        self.add(torch.stack(self._areas(images, maps, targets), dim=1))

    def compute(self) -> dict[str, Tensor]:
        """The figures in percent."""
        insertion, deletion = self.mean()
        return {"insertion": insertion, "deletion": deletion}


def _number(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float64)

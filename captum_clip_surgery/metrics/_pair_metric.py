"""Base classes of the torchmetrics classes: means in percent, over batches and processes."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from captum_clip_surgery.metrics.functional._maps import check_maps, check_pair, is_measurable

try:
    from torchmetrics import Metric
except ImportError as error:
    raise ImportError(
        "captum_clip_surgery.metrics.modules needs torchmetrics; install the extra: "
        "pip install 'captum_clip_surgery[metrics]'"
    ) from error


class PercentMean(Metric):
    """Sums of statistics in 0..1, and their means in percent.

    Args:
        variant: Options that distinguish metrics of the same class.
        **options: Options of `torchmetrics.Metric`, such as `sync_on_compute`.
    """

    is_differentiable = False
    higher_is_better: bool | None = True
    full_state_update = False
    #: Number of statistics.
    width: ClassVar[int] = 1

    def __init__(self, variant: object = "", **options: Any) -> None:
        super().__init__(**options)
        # A MetricCollection merges metrics whose states have equal names and, after the first
        # batch, equal values, as after constant maps. So the name contains class and options.
        self._state = f"sums_{type(self).__name__}_{variant}".replace(".", "_")
        sums = torch.zeros(self.width + 1, dtype=torch.float64, device="cpu")
        self.add_state(self._state, default=sums, dist_reduce_fx="sum")

    def add(self, stats: Tensor) -> None:
        """Add statistics (n, width)."""
        sums = getattr(self, self._state)
        added = torch.cat([stats.sum(0), stats.new_tensor([len(stats)])]).to(sums)
        setattr(self, self._state, sums + added)

    def compute(self) -> Any:
        """Return the mean in percent."""
        return self.mean()[0]

    def mean(self) -> Tensor:
        """Return the means of the statistics in percent, (width,)."""
        sums = getattr(self, self._state)
        return 100 * sums[:-1] / sums[-1]


class PairMetric(PercentMean):
    """Base class of means over pairs of a map and a mask.

    A subclass implements `measure`, sets `width` if it returns more than one number, and overrides
    `compute` if its result is more than their mean in percent.

    Args:
        variant: Options that distinguish metrics of the same class.
        **options: Options of `torchmetrics.Metric`, such as `sync_on_compute`.

    Example::

        >>> from captum_clip_surgery.metrics import prepare
        >>> class MeanScore(PairMetric):
        ...     def measure(self, attribution, mask):
        ...         return float(prepare(attribution, mask)[mask].mean())
        >>> metric = MeanScore()
        >>> metric.update(torch.tensor([[[0.0, 1.0, 2.0]]]), torch.tensor([[[True, True, False]]]))
        >>> metric.compute()
        tensor(25., dtype=torch.float64)
    """

    @abstractmethod
    def measure(self, attribution: Tensor, mask: Tensor) -> Tensor | float:
        """Return the statistics of one pair.

        Args:
            attribution: Map (h, w), raw and signed, on the CPU.
            mask: Mask (H, W) of bool with pixels inside and outside.

        Returns:
            Statistics in 0..1, a number or (width,).
        """

    def update(self, maps: Tensor, masks: Tensor) -> None:
        """Add pairs.

        Args:
            maps: Maps (N, h, w), raw and signed.
            masks: Masks (N, H, W) of bool.

        Raises:
            TypeError: If the maps or masks are not tensors.
            ValueError: If a shape or the masks' dtype is wrong, or a map is not finite.
        """
        check_maps(maps, len(masks))
        for attribution, mask in zip(maps.detach().cpu(), masks.cpu(), strict=True):
            check_pair(attribution, mask)
            if is_measurable(mask):
                stats = torch.as_tensor(
                    self.measure(attribution, mask), dtype=torch.float64, device="cpu"
                )
                self.add(stats.reshape(1, self.width))

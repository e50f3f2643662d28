"""Steps of a forward pass as affine maps: each norm within them with its statistics frozen.

With its mean and standard deviation frozen, a norm is affine, and so is every step from attended
values to a tower's embedding. Its linear part is the same for all images and tokens, apart from the
factors 1/sigma of its norms: directions are pulled back through it once.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

LAYER_NORMS = (F.layer_norm, torch.layer_norm)
RMS_NORMS = (F.rms_norm, torch.rms_norm)


class FrozenNorms(TorchFunctionMode):
    """Context that computes LayerNorm and RMSNorm with given factors 1/sigma, in order.

    The model is not changed: the functions that its norms call are answered here. A norm that calls
    others is not frozen, and the parts of an embedding then do not sum to it.

    Args:
        scales: The factors, one per call of a norm, as `scales` of another context holds them. None
            computes them from the inputs.
        watched: A tensor whose use is recorded.

    Attributes:
        scales: Factors (..., 1) of the calls so far.
        was_read: Whether a function took the watched tensor.
    """

    def __init__(
        self, scales: Iterable[Tensor | float] | None = None, watched: Tensor | None = None
    ) -> None:
        super().__init__()
        self.was_read = False
        self._watched = watched
        self.scales: list[Any] = []
        self._given: Iterator[Any] | None = None if scales is None else iter(scales)

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._watched is not None:
            self.was_read |= any(each is self._watched for each in (*args, *kwargs.values()))
        if func in LAYER_NORMS:
            return self._layer_norm(*args, **kwargs)
        if func in RMS_NORMS:
            return self._rms_norm(*args, **kwargs)
        return func(*args, **kwargs)

    def _layer_norm(
        self,
        input: Tensor,
        normalized_shape: Any,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
        cudnn_enable: bool = True,
    ) -> Tensor:
        normalized = self._scaled(input - input.mean(-1, keepdim=True), normalized_shape, eps)
        normalized = normalized if weight is None else normalized * weight
        return normalized if bias is None else normalized + bias

    def _rms_norm(
        self,
        input: Tensor,
        normalized_shape: Any,
        weight: Tensor | None = None,
        eps: float | None = None,
    ) -> Tensor:
        eps = torch.finfo(input.dtype).eps if eps is None else eps
        normalized = self._scaled(input, normalized_shape, eps)
        return normalized if weight is None else normalized * weight

    def _scaled(self, centered: Tensor, normalized_shape: Any, eps: float) -> Tensor:
        if math.prod(normalized_shape) != centered.shape[-1]:
            raise TypeError(
                f"a norm spans dimensions of {tuple(normalized_shape)}, not the last one alone: "
                "direct effects are not defined on it"
            )
        if self._given is None:
            wide = centered.to(torch.promote_types(centered.dtype, torch.float32))
            scale: Any = (wide.square().mean(-1, keepdim=True) + eps).rsqrt().to(centered.dtype)
        else:
            scale = next(self._given)
        self.scales.append(scale)
        return centered * scale


def pull_back(
    step: Callable[[Tensor], Tensor], directions: Tensor, *shape: int, unread: Tensor | None = None
) -> tuple[Tensor, FrozenNorms]:
    """Pull directions back through the linear part of a step, with every 1/sigma set to 1.

    Args:
        step: Maps inputs (B, *shape) to outputs (B, ..., C), affine once its norms are frozen.
        directions: Directions (B, ..., C) at its output.
        *shape: The input's shape without B.
        unread: A tensor that the step holds and may not read.

    Returns:
        The directions (B, *shape) at the input, and the context in which the step ran: how many
        norms it has, and whether it read that tensor. The directions are differentiable if
        gradients are enabled.
    """
    norms = FrozenNorms(itertools.repeat(1.0), watched=unread)
    recorded = torch.is_grad_enabled()
    with torch.inference_mode(False), torch.set_grad_enabled(recorded):
        if not recorded:  # tensors of inference mode cannot be used here, their copies can
            directions = directions.clone()
        start = directions.new_zeros(len(directions), *shape)
        with norms:
            result: Any = torch.func.vjp(step, start)
        (pulled,) = result[1](directions)
    return pulled, norms

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

from captum_clip_surgery.models._internals import are_transforms_active

#: Largest difference between a sum of parts and the whole, relative to the parts' size. Rounding
#: stays below, a part that is not affine above.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
#: The same for float32 where products are allowed fewer bits (TF32, bfloat16).
TOLERANCE_OF_FEWER_BITS = 1e-2

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
                f"a norm spans dimensions of {tuple(normalized_shape)}, not only the last one: "
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
        if torch.compiler.is_compiling() or are_transforms_active():
            with norms:
                result: Any = torch.func.vjp(step, start)
            (pulled,) = result[1](directions)
            return pulled, norms
        # Hooks on the model's modules see tensors with values here, unlike within `torch.func`.
        with torch.enable_grad(), norms:
            start = start.detach().requires_grad_()
            output = step(start)
        (pulled,) = torch.autograd.grad(output, start, directions, create_graph=recorded)
    return pulled, norms


def check_sum(
    total: Tensor, expected: Tensor, scale: Tensor, dtype: torch.dtype, what: str
) -> None:
    """Check that parts sum to what they are parts of; on a GPU this waits once.

    Args:
        total: Sums of the parts.
        expected: What they are parts of.
        scale: Size of the parts, to which differences are related.
        dtype: Dtype in which the model computes.
        what: What the parts are of, for the message, such as "image tower".

    Raises:
        RuntimeError: If they do not.
    """
    if torch.compiler.is_compiling():  # a graph cannot raise
        return
    tolerance = TOLERANCE[dtype]
    exact = torch.get_float32_matmul_precision() == "highest"
    if dtype == torch.float32 and (not exact or torch.backends.cuda.matmul.allow_tf32):
        tolerance = TOLERANCE_OF_FEWER_BITS
    error = (total - expected).detach().abs()
    if bool((error > tolerance * scale).any()):
        raise RuntimeError(
            f"the parts of the {what} differ from its embedding by {error.max():.1e} of "
            f"{scale.max():.1e}: a layer between attention and embedding is not affine, or "
            "normalizes by another function than torch's layer_norm and rms_norm"
        )

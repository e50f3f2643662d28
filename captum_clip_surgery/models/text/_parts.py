"""Steps of a text tower applied to the parts of a stream, with norms frozen."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from captum_clip_surgery.models._frozen_norms import FrozenNorms


def apply_to_parts(function: Callable[[Tensor], Tensor], parts: Tensor) -> tuple[Tensor, Tensor]:
    """Apply a function that is affine, once its norms are frozen, to the parts of a tensor.

    Args:
        function: Maps (N, ...) to (N, ...), each row on its own, by affine functions and norms.
        parts: Parts (P, N, ...), whose sum the function's norms take their statistics from.

    Returns:
        What becomes of each part (P, N, ...), and the constant (N, ...) that no part accounts for.
        Together they sum to the function of the sum.

    Example::

        >>> parts = torch.randn(4, 2, 8)
        >>> norm = torch.nn.LayerNorm(8)
        >>> outputs, constant = apply_to_parts(norm, parts)
        >>> torch.allclose(outputs.sum(0) + constant, norm(parts.sum(0)), atol=1e-5)
        True
    """
    with FrozenNorms() as norms:
        function(parts.sum(0))
    # What comes of zeros is the constant.
    rows = torch.cat([parts, torch.zeros_like(parts[:1])])
    scales = [scale.repeat(len(rows), *[1] * (scale.ndim - 1)) for scale in norms.scales]
    with FrozenNorms(scales):
        outputs = function(rows.flatten(0, 1)).unflatten(0, (len(rows), -1))
    return outputs[:-1] - outputs[-1], outputs[-1]

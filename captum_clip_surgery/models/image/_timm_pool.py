"""timm's attention pooling, whose learned query attends to the tokens."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from captum_clip_surgery.models._blocks import linear_rows


def value_path(pooler: Any, x: Tensor) -> Tensor:
    """Pass each token alone through the pooler.

    With one key, attention returns the value for any query.
    """
    values = slice(pooler.num_heads * pooler.head_dim, None)  # the keys come first
    x = pooler.proj_drop(pooler.proj(linear_rows(pooler.kv, x, values)))
    return x if pooler.mlp is None else x + pooler.mlp(pooler.norm(x))

"""Token ids to features, with nothing computed twice and nothing behind the end of a text."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from captum_clip_surgery.functional import normalized
from captum_clip_surgery.models._dual_encoders import TransformersText
from captum_clip_surgery.models._internals import warn_of_hooks
from captum_clip_surgery.models.text._prefix_tree import encode_shared, shares_prefixes
from captum_clip_surgery.models.text._towers import (
    bypassed_hooks,
    device_of,
    end_of_text,
    final_tokens,
    is_open_clip_transformer,
    pool_text,
    pooled_at_end_of_text,
    project_text,
    text_lengths,
)

MAX_TOKENS = 2**14  # that pass through the text tower at once


def text_tower_of(model: Any) -> Any:
    """Return the text tower: the model itself (CLIP) or its `text` (CustomTextCLIP)."""
    return getattr(model, "text", model)


def encode_tokens(model: Any, tokens: Tensor) -> Tensor:
    """Return unnormalized features (P, C) of texts, equal to those of `model.encode_text`.

    The beginnings that texts share are computed once, and nothing behind their ends, if the text
    tower allows it: it is one of open_clip's own, causal, pooled at the end of the text, and has no
    hooks on its transformer, blocks and attention. Hooks there receive whole batches, at the cost
    of that speed.

    Args:
        model: An open_clip model.
        tokens: Token ids (P, context).
    """
    lengths = text_lengths(text_tower_of(model), tokens)
    order = lengths.argsort()
    chunks = (lengths[order].cumsum(0) - 1).div(MAX_TOKENS, rounding_mode="floor").bincount()
    rows = [chunk for chunk in order.split(chunks.tolist()) if len(chunk)]
    features = torch.cat([_encode_chunk(model, tokens[chunk]) for chunk in rows])
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    return features[order.argsort().to(features.device)]


def token_features(model: Any, tokens: Tensor) -> Tensor:
    """Return the L2-normalized feature (P, L, C) of every token, before pooling.

    They are the tower's tokens after its final LayerNorm, projected to the joint space. L is the
    length of the longest text if tokens behind the end have no effect, otherwise the context.

    Args:
        model: An open_clip model.
        tokens: Token ids (P, context).

    Raises:
        TypeError: If the text tower is one of transformers' within a model of open_clip.
    """
    tower = text_tower_of(model)
    if isinstance(tower, TransformersText):
        tokens = tokens[:, : int(text_lengths(tower, tokens).max())].to(device_of(tower))
        return normalized(tower.token_features(tokens))
    if not is_open_clip_transformer(tower):
        raise TypeError(
            f"the text tower {type(tower).__name__} has no tokens in the joint space; open_clip's "
            "own text transformers have (CLIP and the TextTransformer of CustomTextCLIP and CoCa)"
        )
    warn_of_hooks(bypassed_hooks(model, tower))
    if pooled_at_end_of_text(tower):
        tokens = tokens[:, : int(end_of_text(tower, tokens).max()) + 1]
    tokens = tokens.to(device_of(tower))
    return normalized(project_text(tower, final_tokens(tower, tokens)))


def _encode_chunk(model: Any, tokens: Tensor) -> Tensor:
    tower = text_tower_of(model)
    device = device_of(tower)
    if bypassed_hooks(model, tower):  # they fire if the tower is called
        return model.encode_text(tokens.to(device))
    if shares_prefixes(tower):
        return encode_shared(tower, tokens, device)
    tokens = tokens[:, : int(text_lengths(tower, tokens).max())].to(device)
    if pooled_at_end_of_text(tower) and not isinstance(tower, TransformersText):
        return pool_text(tower, final_tokens(tower, tokens), tokens)
    return model.encode_text(tokens)

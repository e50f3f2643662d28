"""The mathematics of CLIP Surgery on plain tensors, with no model in sight.

Source of all: Li, Wang, Duan, Zhang, Li, "A Closer Look at the Explainability of Contrastive
Language-Image Pre-training" (arXiv 2304.05653), and its published code where that differs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

#: The forms of feature surgery; None in their place leaves the plain scores.
VARIANTS = ("release", "paper", "empty")
INVERSE_TEMPERATURE = 2.0


def vv_attention(values: Tensor) -> Tensor:
    """Values weighted by their likeness to each other: softmax(v v^T / sqrt(d)) v.

    Self-attention of q and k links regions of different meaning; of v alone it stays consistent
    (paper, Sec. 3.2).

    Args:
        values: (..., L, d), d the width of one head.

    Returns:
        (..., L, d).
    """
    return F.scaled_dot_product_attention(values, values, values)


def normalized_vv_attention(values: Tensor) -> Tensor:
    """v-v attention by direction alone, as the paper states it for ResNets.

    q = k = v / (|v| + 1e-6) with eight times the usual scale. The published code never reaches
    this variant.

    Args:
        values: (..., L, d), d the width of one head.

    Returns:
        (..., L, d).
    """
    directions = values / (values.norm(dim=-1, keepdim=True) + 1e-6)
    scale = 8 * values.shape[-1] ** -0.5
    return F.scaled_dot_product_attention(directions, directions, values, scale=scale)


def class_weights(class_scores: Tensor, inverse_temperature: float = INVERSE_TEMPERATURE) -> Tensor:
    """How much each text belongs to the image, relative to the mean text.

    Args:
        class_scores: (N, T) cosines of the image's class feature with every text.
        inverse_temperature: inverse temperature of the softmax over texts.

    Returns:
        (N, T), positive, with mean 1 over the texts of an image.
    """
    likelihood = (inverse_temperature * class_scores).softmax(-1)
    return likelihood / likelihood.mean(-1, keepdim=True)


def feature_surgery(
    tokens: Tensor,
    text_features: Tensor,
    class_features: Tensor,
    form: str | None = "release",
    inverse_temperature: float = INVERSE_TEMPERATURE,
    empty_features: Tensor | None = None,
    targets: Tensor | None = None,
) -> Tensor:
    """Scores of tokens for texts without what the texts have in common.

    With cosines s and weights w (`class_weights`), a token i and texts t, u (paper, Sec. 3.3):

    - "release", the published code: S_it = w_t s_it - mean_u(w_u s_iu)
    - "paper": S_it = s_it - mean_u(w_u s_iu)
    - "empty": S_it = s_it - s_i0, with 0 the empty text
    - None: S_it = s_it

    All are linear in the text features, so the mean over texts is taken once, of the features:
    nothing larger than the scores themselves is built.

    Args:
        tokens: (N, L, C), L2-normalised.
        text_features: (T, C), L2-normalised: every text that competes.
        class_features: (N, C), L2-normalised: the image's pooled embedding.
        form: one of `VARIANTS`, or None.
        inverse_temperature: see `class_weights`.
        empty_features: (C,), needed by "empty" alone.
        targets: indices of the texts to return, (K,) for all images or (N, K); None is all.

    Returns:
        (N, K, L): one row of scores for each text asked for.

    Raises:
        ValueError: an unknown form, or "empty" without `empty_features`.

    Example::

        >>> tokens, texts = torch.eye(3)[None], torch.eye(3)[:2]
        >>> feature_surgery(tokens, texts, torch.eye(3)[:1], form=None)
        tensor([[[1., 0., 0.],
                 [0., 1., 0.]]])
    """
    selected = text_features if targets is None else text_features[targets]
    scores = selected @ tokens.mT
    if form is None:
        return scores
    if form == "empty":
        if empty_features is None:
            raise ValueError('feature surgery "empty" needs empty_features')
        return scores - (tokens @ empty_features)[:, None]
    if form not in VARIANTS:
        raise ValueError(f"feature surgery {form!r} is none of {', '.join(VARIANTS)} and None")
    weights = class_weights(class_features @ text_features.T, inverse_temperature)
    common = weights @ text_features / weights.shape[-1]
    redundant = common[:, None] @ tokens.mT
    if form == "paper":
        return scores - redundant
    return torch.addcmul(-redundant, scores, _select(weights, targets)[..., None])


def _select(weights: Tensor, targets: Tensor | None) -> Tensor:
    """Weights (N, T) of the texts asked for, (N, K)."""
    if targets is None:
        return weights
    return weights[:, targets] if targets.ndim == 1 else weights.gather(1, targets)


def normalized(features: Tensor) -> Tensor:
    """L2-normalised in float32 or wider, whatever the model computes in."""
    dtype = torch.promote_types(features.dtype, torch.float32)
    return F.normalize(features.to(dtype), dim=-1)


def has_direction(features: Tensor) -> Tensor:
    """Which rows (..., C) -> (...) come out of normalisation with length one.

    Not so: zero, NaN, infinity, and what is too small or too large for its type to measure.
    """
    lengths = F.normalize(features.detach(), dim=-1).float().norm(dim=-1)
    return (lengths - 1).abs() < 0.1


def full_precision(like: Tensor) -> torch.autocast:
    """No autocast: scores are small differences of features, which half precision loses."""
    return torch.autocast(like.device.type, enabled=False)

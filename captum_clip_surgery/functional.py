"""The mathematics of CLIP Surgery on plain tensors, without any model.

References:
    Li, Wang, Duan, Zhang, Li: A closer look at the explainability of Contrastive Language-Image
    Pre-training. Pattern Recognition 162, 2025, 111409 (arXiv 2304.05653), and its published code
    where that differs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "class_weights",
    "feature_surgery",
    "text_span",
    "vv_attention",
]

#: The variants of feature surgery; None instead leaves plain cosines.
VARIANTS = ("release", "paper", "empty")
#: Those that contrast texts with each other, weighted by the image's embedding.
CONTRASTING = ("release", "paper")
#: Inverse temperature of the softmax over texts in the published code.
INVERSE_TEMPERATURE = 2.0


def vv_attention(values: Tensor) -> Tensor:
    """Return values weighted by their similarity to each other: softmax(v v^T / sqrt(d)) v.

    Attention of queries and keys links regions of different meaning; attention of values alone
    stays consistent (paper, Sec. 3.2).

    Args:
        values: Values (..., L, d), where d is the width of one head.

    Returns:
        Attended values (..., L, d).

    Example::

        >>> vv_attention(torch.zeros(1, 8, 50, 64)).shape
        torch.Size([1, 8, 50, 64])
    """
    return F.scaled_dot_product_attention(values, values, values)


def normalized_vv_attention(values: Tensor) -> Tensor:
    """Return v-v attention by direction only, as the paper states it for ResNets.

    q = k = v / (|v| + 1e-6), with eight times the usual scale. The published code never reaches
    this variant.

    Args:
        values: Values (..., L, d), where d is the width of one head.

    Returns:
        Attended values (..., L, d).
    """
    directions = values / (values.norm(dim=-1, keepdim=True) + 1e-6)
    scale = 8 * values.shape[-1] ** -0.5
    return F.scaled_dot_product_attention(directions, directions, values, scale=scale)


def class_weights(class_scores: Tensor, inverse_temperature: float = INVERSE_TEMPERATURE) -> Tensor:
    """Return how well each text fits the image, relative to the mean over texts.

    Args:
        class_scores: Cosines (N, T) of the image's class feature with every text.
        inverse_temperature: Inverse temperature of the softmax over texts.

    Returns:
        Weights (N, T), positive, with mean 1 over the texts of an image.

    Example::

        >>> class_weights(torch.tensor([[0.3, 0.3]]))
        tensor([[1., 1.]])
    """
    likelihood = (inverse_temperature * class_scores).softmax(-1)
    return likelihood / likelihood.mean(-1, keepdim=True)


def feature_surgery(
    tokens: Tensor,
    text_features: Tensor,
    class_features: Tensor,
    variant: str | None = "release",
    inverse_temperature: float = INVERSE_TEMPERATURE,
    empty_features: Tensor | None = None,
    targets: Tensor | None = None,
) -> Tensor:
    """Return the scores of tokens for texts without what the texts have in common.

    With cosines s and weights w (`class_weights`), a token i and texts t, u (paper, Sec. 3.3):

    - "release", the published code: S_it = w_t s_it - mean_u(w_u s_iu)
    - "paper": S_it = s_it - mean_u(w_u s_iu)
    - "empty": S_it = s_it - s_i0, with 0 the empty text
    - None: S_it = s_it

    All are linear in the text features, so the mean over texts is taken once, over features:
    nothing larger than the scores themselves is built.

    Args:
        tokens: Tokens (N, L, C), L2-normalized.
        text_features: Features (T, C) of all competing texts, L2-normalized.
        class_features: The images' pooled embeddings (N, C), L2-normalized.
        variant: "release", "paper", "empty" or None.
        inverse_temperature: Inverse temperature of the softmax over texts.
        empty_features: Feature (C,) of the empty text, L2-normalized, or what is subtracted from
            each text's feature, (T, C); only for "empty".
        targets: Indices of the texts to return, (K,) for all images or (N, K); None means
            all.

    Returns:
        Scores (N, K, L).

    Raises:
        ValueError: If `variant` is unknown, or "empty" without `empty_features`.

    Example::

        >>> tokens, texts = torch.eye(3)[None], torch.eye(3)[:2]
        >>> feature_surgery(tokens, texts, torch.eye(3)[:1], variant=None)
        tensor([[[1., 0., 0.],
                 [0., 1., 0.]]])
    """
    if variant == "empty":
        if empty_features is None:
            raise ValueError('variant "empty" needs empty_features')
        text_features, variant = text_features - empty_features, None
    selected = text_features if targets is None else text_features[targets]
    scores = selected @ tokens.mT
    if variant is None:
        return scores
    if variant not in VARIANTS:
        raise ValueError(f"variant must be one of {', '.join(VARIANTS)} or None, got {variant!r}")
    weights = class_weights(class_features @ text_features.T, inverse_temperature)
    common = weights @ text_features / len(text_features)
    redundant = common[:, None] @ tokens.mT
    if variant == "paper":
        return scores - redundant
    return torch.addcmul(-redundant, scores, _select(weights, targets)[..., None])


def _select(weights: Tensor, targets: Tensor | None) -> Tensor:
    """Return the columns (N, K) of weights (N, T) for targets (K,) or (N, K)."""
    if targets is None:
        return weights
    return weights[:, targets] if targets.ndim == 1 else weights.gather(1, targets)


def text_span(outputs: Tensor, text_features: Tensor, count: int = 5) -> list[tuple[int, float]]:
    """Choose the texts whose directions explain most of the variance of outputs, one by one.

    TextSpan: take the text r along which the outputs vary most, remove r's direction from all
    texts, and repeat. (Algorithm 1 removes it from the outputs as well, which changes nothing.)

    Args:
        outputs: Outputs of one part of a model, such as an attention head, over a collection of
            images, (N, C).
        text_features: Features of the candidate texts (T, C); their lengths do not matter.
        count: Number of texts to choose, at least 1.

    Returns:
        Indices of texts in the order they were chosen, each with the share of the outputs' variance
        (0..1) along its direction that no earlier text explains. There are fewer than `count` if
        the chosen texts span all others or explain all variance.

    Raises:
        ValueError: If shapes do not fit, there are fewer than two outputs, or `count` is below 1.

    References:
        Gandelsman, Efros, Steinhardt: Interpreting CLIP's image representation via text-based
        decomposition. ICLR 2024, Algorithm 1.

    Example::

        >>> outputs = torch.tensor([[3.0, 0.0, 0.0], [-3.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
        >>> [index for index, _ in text_span(outputs, torch.eye(3))]
        [0, 1]
    """
    shapes = tuple(outputs.shape), tuple(text_features.shape)
    if [len(shape) for shape in shapes] != [2, 2] or shapes[0][1] != shapes[1][1]:
        raise ValueError(f"outputs and texts have shapes {shapes}, expected (N, C) and (T, C)")
    if len(outputs) < 2:
        raise ValueError(f"got {len(outputs)} outputs; a variance needs two or more images")
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count!r}")
    centered = outputs - outputs.mean(0)
    texts = F.normalize(text_features.to(centered.dtype))
    total = centered.square().sum()
    tiny = 10 * torch.finfo(centered.dtype).eps  # less is a rounding error
    chosen: list[tuple[int, float]] = []
    while len(chosen) < min(count, len(texts)):
        strengths = (centered @ texts.T).square().sum(0)  # (T,)
        best = int(strengths.argmax())
        length = texts[best].norm()
        if length <= tiny:
            break
        direction = texts[best] / length
        share = (centered @ direction).square().sum() / total
        if not share > tiny:
            break
        chosen.append((best, float(share)))
        # The remaining texts are orthogonal to the removed directions, so the outputs need no
        # projection.
        texts = texts - (texts @ direction)[:, None] * direction
    return chosen


def normalized(features: Tensor) -> Tensor:
    """Return features (..., C) L2-normalized, in float32 or wider."""
    dtype = torch.promote_types(features.dtype, torch.float32)
    return F.normalize(features.to(dtype), dim=-1)


def has_direction(features: Tensor) -> Tensor:
    """Return a mask (...) of the rows of features (..., C) that can be L2-normalized.

    Rows that are zero, contain NaN or infinity, or under- or overflow in their dtype are False.
    """
    lengths = F.normalize(features.detach(), dim=-1).float().norm(dim=-1)
    return (lengths - 1).abs() < 0.1


def full_precision(like: Tensor) -> torch.autocast:
    """Return a context without autocast on a tensor's device.

    Scores are small differences of features, which half precision loses.
    """
    return torch.autocast(like.device.type, enabled=False)

"""Dependence of a map on the text and on the image.

Both measures are rank correlations with other maps of the same method: 1 for a map that does not
depend on the text, or on the image.
"""

from __future__ import annotations

from torch import Tensor

from captum_clip_surgery.metrics.functional._maps import check_maps
from captum_clip_surgery.metrics.functional._ranking import spearman


def text_specificity(attribution: Tensor, others: Tensor) -> float:
    """Return the mean rank correlation of a text's map with the same image's maps for other texts.

    The text is one that the image shows, and the others are absent from it or mean nothing. Compute
    each map with its text alone (`clip.with_texts([text])`), so that contrast between texts cannot
    help, as `metrics.specificity` does. The map of a method that ignores the text scores 1.

    Spearman's correlation with a constant map is 0, but two constant maps count as equal and
    score 1.

    Args:
        attribution: Map (h, w) of the text, raw and signed.
        others: Maps (T, h, w) of the other texts.

    Returns:
        The correlation, in -1..1; lower is more specific.

    Raises:
        TypeError: If the maps are not tensors.
        ValueError: If a shape is wrong, there is no other map, or a map is not finite.

    Example::

        >>> import torch
        >>> attribution = torch.tensor([[1.0, 2.0, 4.0]])
        >>> round(text_specificity(attribution, torch.stack([2 * attribution, -attribution])), 4)
        0.0
    """
    return _mean_correlation(attribution, others)


def image_specificity(attribution: Tensor, others: Tensor) -> float:
    """Return the mean rank correlation of an image's map with the same text's maps on other images.

    The map of a method that ignores the image scores 1. If most images show objects in the middle,
    the correlation is higher for every method. Constant maps count as for `text_specificity`.

    Args:
        attribution: Map (h, w) of the image, raw and signed.
        others: Maps (N, h, w) of other images for the same text.

    Returns:
        The correlation, in -1..1; lower is more specific.

    Raises:
        TypeError: If the maps are not tensors.
        ValueError: If a shape is wrong, there is no other map, or a map is not finite.

    Example::

        >>> import torch
        >>> center = torch.tensor([[0.0, 1.0, 0.0]])
        >>> image_specificity(center, center.expand(2, 1, 3))
        1.0
    """
    return _mean_correlation(attribution, others)


def _mean_correlation(attribution: Tensor, others: Tensor) -> float:
    if isinstance(others, Tensor) and others.ndim == 3 and not len(others):
        raise ValueError("there are no other maps to compare with; pass at least one, (1, h, w)")
    check_maps(attribution[None], 1)
    check_maps(others, len(others), "other maps")
    maps = attribution.detach().cpu().expand(len(others), -1, -1)
    others = others.detach().cpu()
    correlations = spearman(maps, others).clamp(-1, 1)
    constant = _is_constant(maps) & _is_constant(others)
    return float(correlations.masked_fill(constant, 1.0).mean())


def _is_constant(maps: Tensor) -> Tensor:
    """Return a mask (N,) of the maps (N, h, w) that are constant."""
    values = maps.flatten(1)
    return values.amin(1) == values.amax(1)

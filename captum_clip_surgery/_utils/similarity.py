"""Similarities of images and texts in words, the same on the command line, the page and figures."""

from __future__ import annotations

from collections.abc import Sequence

#: What the softmax over the texts of a call is called: it says nothing about other texts.
SHARE = "share among your texts"


def format_cosine(cosine: float) -> str:
    """Write a cosine.

    Example::

        >>> format_cosine(0.3123)
        'cosine 0.312'
    """
    return f"cosine {cosine:.3f}"


def format_share(share: float) -> str:
    """Write a softmax's share in percent, which rounding makes neither nothing nor everything.

    Example::

        >>> format_share(0.946), format_share(0.0002), format_share(0.99999)
        ('94.6%', 'under 0.1%', 'over 99.9%')
    """
    if share < 0.0005:
        return "under 0.1%"
    return "over 99.9%" if share >= 0.9995 else f"{share:.1%}"


def describe_similarities(cosines: Sequence[float], shares: Sequence[float]) -> list[str]:
    """Describe how similar an image is to each text.

    Args:
        cosines: Cosines with the K texts.
        shares: Softmax of the logits over the K texts. A single text has the share 1 in every
            image, so only its cosine is written.

    Example::

        >>> describe_similarities([0.312, 0.25], [0.946, 0.054])[0]
        'cosine 0.312, share among your texts 94.6%'
        >>> describe_similarities([0.312], [1.0])
        ['cosine 0.312']
    """
    if len(cosines) == 1:
        return [format_cosine(cosines[0])]
    return [
        f"{format_cosine(cosine)}, {SHARE} {format_share(share)}"
        for cosine, share in zip(cosines, shares, strict=True)
    ]

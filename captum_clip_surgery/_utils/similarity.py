"""Similarities of images and texts in words, the same on the command line, the page and figures."""

from __future__ import annotations

from collections.abc import Sequence

#: Label of the softmax over the texts of a call, which says nothing about other texts.
SHARE = "share among your texts"


def format_cosine(cosine: float, difference: bool = False) -> str:
    """Write a cosine, or the difference of two.

    Example::

        >>> format_cosine(0.3123), format_cosine(-0.0123, difference=True)
        ('cosine 0.312', 'difference of cosines -0.012')
    """
    return f"{'difference of cosines' if difference else 'cosine'} {cosine:.3f}"


def format_cosines(cosines: Sequence[float], differences: Sequence[bool]) -> list[str]:
    """Write cosines, each of which may be the difference of two."""
    return list(map(format_cosine, cosines, differences))


def format_share(share: float) -> str:
    """Write a softmax's share in percent, which rounding makes neither nothing nor everything.

    Example::

        >>> format_share(0.946), format_share(0.0002), format_share(0.99999)
        ('94.6%', 'under 0.1%', 'over 99.9%')
    """
    if share < 0.0005:
        return "under 0.1%"
    return "over 99.9%" if share >= 0.9995 else f"{share:.1%}"


def describe_similarities(
    cosines: Sequence[float], shares: Sequence[float], differences: Sequence[bool]
) -> list[str]:
    """Describe how similar an image is to each text.

    Args:
        cosines: Cosines with the K texts.
        shares: Softmax of the logits over the K texts. A single text has the share 1 in every
            image, so only its cosine is written.
        differences: Whether each is the difference of two cosines.

    Example::

        >>> describe_similarities([0.312, 0.25], [0.946, 0.054], [False, False])[0]
        'cosine 0.312, share among your texts 94.6%'
        >>> describe_similarities([0.312], [1.0], [False])
        ['cosine 0.312']
    """
    written = format_cosines(cosines, differences)
    if len(cosines) == 1:
        return written
    return [
        f"{cosine}, {SHARE} {format_share(share)}"
        for cosine, share in zip(written, shares, strict=True)
    ]

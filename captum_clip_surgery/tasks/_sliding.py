"""Windows that slide over the pixels of an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

#: Rows and columns of pixels.
Box = tuple[slice, slice]


@dataclass(frozen=True)
class Windows:
    """Square windows that cover an image; the last ones end at its edge.

    Args:
        side: Side in pixels; None means one window, the whole image.
        stride: Pixels from one window to the next; None means half of `side`.

    Raises:
        ValueError: If `stride` is given without `side`, or is not between 1 and `side`.

    Example::

        >>> [(rows.start, columns.start) for rows, columns in Windows(64, 48).boxes(64, 150)]
        [(0, 0), (0, 48), (0, 86)]
    """

    side: int | None = None
    stride: int | None = None

    def __post_init__(self) -> None:
        if self.side is None:
            if self.stride is not None:
                raise ValueError(f"stride {self.stride} needs a window; pass window= as well")
        elif self.stride is not None and not 0 < self.stride <= self.side:
            raise ValueError(
                f"stride {self.stride} must be at least 1 and at most the window of {self.side}: "
                "pixels between windows would not be seen"
            )

    def check_patch(self, patch_size: Sequence[int]) -> None:
        """Check that a window holds at least one patch.

        Raises:
            ValueError: If it is smaller.
        """
        if self.side is not None and self.side < max(patch_size):
            raise ValueError(
                f"window {self.side} must be at least the patch, {patch_size[0]} x {patch_size[1]}"
            )

    def boxes(self, height: int, width: int) -> list[Box]:
        """Return the windows of an image, row by row."""
        sides = [min(self.side or length, length) for length in (height, width)]
        stride = self.stride or max(1, (self.side or 1) // 2)
        tops, lefts = (
            starts(length, side, stride)
            for length, side in zip((height, width), sides, strict=True)
        )
        return [
            (slice(top, top + sides[0]), slice(left, left + sides[1]))
            for top in tops
            for left in lefts
        ]


def starts(length: int, side: int, stride: int) -> list[int]:
    """Return where windows start that cover a line, the last of them at its end.

    Example::

        >>> starts(10, 4, 4), starts(3, 4, 4)
        ([0, 4, 6], [0])
    """
    last = max(0, length - side)
    return [*range(0, last, stride), last]

"""Windows that slide over an image, on its patch grid."""

from __future__ import annotations

from dataclasses import dataclass

from captum_clip_surgery.classifier import ZeroShotClassifier


@dataclass(frozen=True)
class Windows:
    """Windows on the patch grid: `side` and `stride` in patches (rows, columns)."""

    side: tuple[int, int]
    stride: tuple[int, int]

    def corners(self, grid: tuple[int, int]) -> list[tuple[int, int]]:
        """Upper left corners of the windows that cover a grid."""
        down, across = (
            starts(length, side, stride)
            for length, side, stride in zip(grid, self.side, self.stride, strict=True)
        )
        return [(row, column) for row in down for column in across]


def starts(length: int, side: int, stride: int) -> list[int]:
    """Where windows begin that cover a line, the last of them at its end.

    Example::

        >>> starts(10, 4, 4), starts(3, 4, 4)
        ([0, 4, 6], [0])
    """
    last = max(0, length - side)
    return [*range(0, last, stride), last]


def windows_of(clip: ZeroShotClassifier, window: int | None, stride: int | None) -> Windows | None:
    if window is None:
        if stride is not None:
            raise ValueError(f"stride {stride} needs a window")
        return None
    patches = clip.tower.patch_size
    if stride is None:
        stride_in_patches = tuple(max(1, window // patch // 2) for patch in patches)
    elif not 0 < stride <= window or any(stride % patch for patch in patches):
        raise ValueError(
            f"stride {stride} must be a multiple of the patch, {patches}, of at most the window of "
            f"{window}: pixels between windows would not be seen"
        )
    else:
        stride_in_patches = tuple(stride // patch for patch in patches)
    if window < 1 or any(window % patch for patch in patches):
        raise ValueError(f"window {window} must be a multiple of the patch, {patches}")
    side = tuple(window // patch for patch in patches)
    return Windows((side[0], side[1]), (stride_in_patches[0], stride_in_patches[1]))

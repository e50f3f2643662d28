"""Markdown tables."""

from __future__ import annotations

from collections.abc import Sequence

from tabulate import tabulate


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Format cells as a Markdown table with aligned columns.

    Args:
        header: Names of the columns.
        rows: Cells as text, one sequence per row.
        left: Number of leading columns aligned left; the others hold numbers and are aligned
            right.

    Returns:
        The table, without a newline at its end.

    Example::

        >>> print(markdown(["method", "mIoU"], [["CLIP", "6.8"], ["CLIPSurgery", "52.3"]]))
        | method      |   mIoU |
        |:------------|-------:|
        | CLIP        |    6.8 |
        | CLIPSurgery |   52.3 |
    """
    alignment = ["left" if index < left else "right" for index in range(len(header))]
    return tabulate(rows, header, "pipe", colalign=alignment, disable_numparse=True)

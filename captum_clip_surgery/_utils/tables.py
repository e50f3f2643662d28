"""Tables in Markdown that read well in a terminal, too."""

from __future__ import annotations

from collections.abc import Sequence


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Cells as an aligned table.

    Args:
        header: names of the columns.
        rows: cells as text.
        left: how many leading columns are aligned left; the others, numbers, right.

    Example::

        >>> print(markdown(["method", "mIoU"], [["CLIP", "6.8"], ["CLIPSurgery", "52.3"]]))
        | method      | mIoU |
        |-------------|-----:|
        | CLIP        |  6.8 |
        | CLIPSurgery | 52.3 |
    """
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        aligned = [
            f"{cell:{width}}" if index < left else f"{cell:>{width}}"
            for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(aligned)} |"

    rules = [
        "-" * (width + 2) if index < left else "-" * (width + 1) + ":"
        for index, width in enumerate(widths)
    ]
    return "\n".join([line(header), f"|{'|'.join(rules)}|", *map(line, rows)])

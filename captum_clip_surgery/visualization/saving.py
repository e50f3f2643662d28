"""Figures as files, for screens and for print."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

#: By suffix, what is written beside the figure: without dates, the same figure is the same file.
FORMATS: dict[str, dict[str, Any]] = {
    "png": {},
    "svg": {"Date": None},
    "pdf": {"CreationDate": None},
}


def save_figure(figure: Figure, path: str | PathLike[str], dpi: int = 150) -> Path:
    """Write a figure, its folder made where it is not there.

    Args:
        figure: of this package, or any other.
        path: ends in .png, .svg or .pdf, which is the format.
        dpi: pixels an inch, of PNG and of pictures within the others.

    Returns:
        The path.

    Raises:
        ValueError: another suffix.
    """
    path = Path(path)
    kind = path.suffix.lower().removeprefix(".")
    if kind not in FORMATS:
        raise ValueError(f"{path} is no figure's name: it must end in .{', .'.join(FORMATS)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    # Text stays text, which can be searched, copied and edited; PDF's fonts are TrueType, as
    # journals ask.
    with rc_context({"svg.fonttype": "none", "pdf.fonttype": 42, "svg.hashsalt": path.stem}):
        figure.savefig(path, format=kind, dpi=dpi, metadata=FORMATS[kind])
    return path

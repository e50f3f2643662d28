"""Figures as files, for screens and for print."""

from __future__ import annotations

import re
from io import StringIO
from os import PathLike
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

#: Metadata by format: without dates, the same figure always gives the same file.
FORMATS: dict[str, dict[str, Any]] = {
    "png": {},
    "svg": {"Date": None},
    "pdf": {"CreationDate": None},
}
#: Characters that a document of XML 1.0 cannot contain.
NOT_XML = re.compile("[^\\t\\n\\r\\x20-\\ud7ff\\ue000-\\ufffd\U00010000-\U0010ffff]")


def save_figure(figure: Figure, path: str | PathLike[str], dpi: int = 150) -> Path:
    """Write a figure to a file, creating its folder if needed.

    Args:
        figure: Any Matplotlib figure.
        path: Path whose suffix .png, .svg or .pdf is the format.
        dpi: Resolution of PNG files, and of images within the others, in pixels per inch.

    Returns:
        The path.

    Raises:
        ValueError: If the suffix is another one.
    """
    path = Path(path)
    kind = path.suffix.lower().removeprefix(".")
    if kind not in FORMATS:
        raise ValueError(f"path of a figure must end in .{', .'.join(FORMATS)}, got {str(path)!r}")
    path.parent.mkdir(parents=True, exist_ok=True)
    # Text stays text that can be searched, copied and edited; journals ask for TrueType fonts.
    with rc_context({"svg.fonttype": "none", "pdf.fonttype": 42, "svg.hashsalt": path.stem}):
        if kind != "svg":
            figure.savefig(path, format=kind, dpi=dpi, metadata=FORMATS[kind])
            return path
        drawing = StringIO()
        figure.savefig(drawing, format=kind, dpi=dpi, metadata=FORMATS[kind])
    # Texts can hold what XML has no place for, and Matplotlib writes it as it is.
    path.write_text(NOT_XML.sub("\N{REPLACEMENT CHARACTER}", drawing.getvalue()), "utf-8")
    return path

"""Options that benchmarks share: the model that is measured, lists of names, and a file."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Annotated

import typer

from captum_clip_surgery import ZeroShotClassifier

sys.path.insert(0, str(Path(__file__).parents[1]))

from tools.embedded_model.report import ModelFolder, load_trained

__all__ = ["ModelFolder", "TablesFile", "load_model", "split_names"]

#: The option `--output` of a benchmark that prints tables.
TablesFile = Annotated[
    Path | None, typer.Option("--output", help="Markdown file for what is printed.")
]


def load_model(folder: Path | None, texts: Iterable[str]) -> ZeroShotClassifier:
    """Return a classifier of texts with the model of a folder, or with the embedded model."""
    return load_trained(folder).with_texts(texts)


def split_names(names: str, known: Collection[str], option: str) -> list[str]:
    """Split comma-separated names.

    Raises:
        typer.BadParameter: If a name is unknown.
    """
    chosen = names.split(",")
    for name in chosen:
        if name not in known:
            raise typer.BadParameter(
                f"must be among {', '.join(known)}, got {name!r}", param_hint=option
            )
    return chosen

"""The model that a benchmark measures: the embedded one, or one that training has written."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from captum_clip_surgery import ZeroShotClassifier

sys.path.insert(0, str(Path(__file__).parents[1]))

from tools.embedded_model.report import load_trained

#: The option `--model` of a benchmark.
ModelFolder = Annotated[
    Path | None,
    typer.Option("--model", help="Folder of a trained model (default: the embedded model)."),
]


def load_model(folder: Path | None, texts: Iterable[str]) -> ZeroShotClassifier:
    """Return a classifier of texts with the model of a folder, or with the embedded model."""
    if folder is None:
        return ZeroShotClassifier.demo(texts)
    return load_trained(folder).with_texts(texts)

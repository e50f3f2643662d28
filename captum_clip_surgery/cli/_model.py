"""Models and texts that commands are given, and the lines that they print."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from open_clip.model import convert_weights_to_lp, get_cast_dtype
from tqdm import tqdm

from captum_clip_surgery._utils import files
from captum_clip_surgery.classifier import ZeroShotClassifier
from captum_clip_surgery.cli._groups import ModelOptions, TextOptions
from captum_clip_surgery.demo import nouns
from captum_clip_surgery.models.text.templates import Template

EMBEDDED_MODEL_NOTE = (
    "This is the embedded model: small, trained by this project on scenes of emoji; it does not "
    "work on photographs."
)


def load_model(
    options: ModelOptions,
    texts: Sequence[str],
    distractors: Sequence[str] = (),
    quiet: bool = False,
    templates: Sequence[Template] | None = None,
    device: str | None = None,
    precision: str = "fp32",
    positions: str = "bilinear",
) -> ZeroShotClassifier:
    """Load the chosen model, or the embedded one if none is chosen.

    Args:
        options: The model.
        texts: Texts of the classifier.
        distractors: Further texts that compete in feature surgery.
        quiet: Do not print that the embedded model is used.
        templates: Prompt templates; None stands for the model's usual ones.
        device: Device of the model; None stands for a GPU if there is one.
        precision: Precision of the model as open_clip names it, such as "bf16".
        positions: How positional embeddings are resized where the options do not say it.

    Raises:
        ValueError: If `--pretrained` or `--positions` is given without `--model`.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if options.model is None:
        if options.pretrained is not None:
            raise ValueError("--pretrained needs --model")
        if options.positions is not None:
            raise ValueError("--positions needs --model")
        if not quiet:
            print(f"No --model given. {EMBEDDED_MODEL_NOTE}")
        clip = ZeroShotClassifier.demo(texts, distractors, templates).to(device)
        if precision != "fp32":
            convert_weights_to_lp(clip.model, get_cast_dtype(precision))
        return clip
    return ZeroShotClassifier.from_pretrained(
        options.model,
        options.pretrained,
        texts,
        distractors,
        templates,
        positions=options.positions or positions,
        device=device,
        precision=precision,
    )


def read_lines(path: Path | None) -> list[str]:
    """Return the non-empty lines of a file, stripped; none if there is no file."""
    return [] if path is None else files.read_lines(path)


def read_texts(options: TextOptions, model: ModelOptions) -> list[str]:
    """Return the given texts; without any, the embedded model's nouns.

    Raises:
        ValueError: If there are no texts and the model is not the embedded one.
    """
    texts = [*(options.text or ()), *read_lines(options.texts)]
    if not texts and model.model is None:
        texts = list(nouns())
    if not texts:
        raise ValueError("no texts: give --text, once per text, or --texts FILE")
    return texts


def split_names(names: str) -> list[str]:
    """Return comma-separated names as a list."""
    return [name.strip() for name in names.split(",")]


def feature_surgery_of(choice: str) -> str | None:
    """Return a choice of feature surgery as functions take it: None for "none"."""
    return None if choice == "none" else choice


def echo(line: str, quiet: bool = False) -> None:
    """Print a line above a progress bar, unless `quiet`."""
    if not quiet:
        tqdm.write(line)


def report_left_out(left_out: Mapping[str, str]) -> None:
    """Print the methods that are left out, and why, to standard error."""
    for name, reason in left_out.items():
        print(f"left out: {name}: {reason}", file=sys.stderr)

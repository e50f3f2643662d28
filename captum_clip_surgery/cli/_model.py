"""Models and texts that commands are given, and the lines that they print."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from open_clip.model import convert_weights_to_lp, get_cast_dtype
from tqdm import tqdm

from captum_clip_surgery._utils import files
from captum_clip_surgery._utils.progress import report_step
from captum_clip_surgery.attr import Method
from captum_clip_surgery.attr._registry import SURGERY_METHODS, choose, fine
from captum_clip_surgery.classifier import ZeroShotClassifier
from captum_clip_surgery.cli._collection_options import Audit
from captum_clip_surgery.cli._groups import Command, ModelOptions, QueryOptions, TextOptions
from captum_clip_surgery.cli._options import Evaluate
from captum_clip_surgery.demo import nouns
from captum_clip_surgery.functional import CONTRASTING
from captum_clip_surgery.models.text._templates import Template

#: Texts of a classifier that is asked for none.
PLACEHOLDER = ("dog",)
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
    positions: str = "bilinear",
) -> ZeroShotClassifier:
    """Load the chosen model, or the embedded one if none is chosen.

    Args:
        options: The model.
        texts: Texts of the classifier.
        distractors: Further texts that compete in feature surgery.
        quiet: Do not print that the embedded model is used.
        templates: Prompt templates; None means the model's usual ones.
        device: Device of this process if it has one of its own; None means a GPU if there is
            one.
        positions: How positional embeddings are resized where the options do not say it.

    Raises:
        ValueError: If `--pretrained` or `--positions` is given without `--model`, or there is no
            such device.
    """
    device = choose_device(options.device, device)
    if options.model is None:
        if options.pretrained is not None:
            raise ValueError("--pretrained needs --model")
        if options.positions is not None:
            raise ValueError("--positions needs --model")
        if not quiet:
            print(f"No --model given. {EMBEDDED_MODEL_NOTE}")
        clip = ZeroShotClassifier.demo(texts, distractors, templates).to(device)
        if options.precision != "fp32":
            convert_weights_to_lp(clip.model, get_cast_dtype(options.precision))
        return clip
    report_step(f"loading {options.model}")
    return ZeroShotClassifier.from_pretrained(
        options.model,
        options.pretrained,
        texts,
        distractors,
        templates,
        positions=options.positions or positions,
        device=device,
        precision=options.precision,
    )


def choose_device(wanted: str | None, of_process: str | None = None) -> str:
    """Return the device to compute on.

    Args:
        wanted: Kind of device that the user chose, or None.
        of_process: Device of this process if it has one of its own, such as "cuda:3".

    Raises:
        ValueError: If there is no device of the chosen kind.
    """
    if wanted is None:
        return of_process or ("cuda" if torch.cuda.is_available() else "cpu")
    if of_process is not None and of_process.partition(":")[0] == wanted:
        return of_process
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if not available[wanted]:
        names = ", ".join(name for name, is_there in available.items() if is_there)
        raise ValueError(f"--device {wanted} is not available on this machine; choose {names}")
    return wanted


def read_lines(path: Path | None) -> list[str]:
    """Return the non-empty lines of a file, stripped; none if no file is given.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If it has no such lines.
    """
    if path is None:
        return []
    lines = files.read_lines(existing(path))
    if not lines:
        raise ValueError(f"{path} is empty; write one text per line")
    return lines


def existing(path: Path) -> Path:
    """Return the path of a file or a folder that the user names.

    Raises:
        FileNotFoundError: If it does not exist.
    """
    if not path.exists():
        raise FileNotFoundError(f"no file at {path}")
    return path


def existing_image(path: Path) -> Path:
    """Return the path of an image file that the user names.

    Raises:
        FileNotFoundError: If it does not exist or is a folder.
    """
    if path.is_dir():
        raise FileNotFoundError(f"no image file at {path}, which is a folder")
    return existing(path)


def read_texts(
    options: TextOptions, model: ModelOptions, queries: QueryOptions | None = None
) -> list[str]:
    """Return the given texts; without any, and without query images, the embedded model's nouns.

    Raises:
        ValueError: If there is nothing to look for and the model is not the embedded one.
    """
    asked = given_texts(options) or (queries is not None and queries.query_image)
    if not asked and model.model is None:
        return list(nouns())
    return required_texts(options, queries)


def given_texts(options: TextOptions) -> list[str]:
    """Return the texts of the command line and of the file."""
    return [*(options.text or ()), *read_lines(options.texts)]


def required_texts(options: TextOptions, queries: QueryOptions | None = None) -> list[str]:
    """Return the given texts, of which there may be none only if there are query images.

    Raises:
        ValueError: If there is nothing to look for.
    """
    texts = given_texts(options)
    if not texts and (queries is None or not queries.query_image):
        raise ValueError("no texts: give --text, once per text, or --texts FILE")
    return texts


def required_root(options: Evaluate | Audit) -> Path:
    """Return the folder of the chosen data set.

    Raises:
        ValueError: If none is given.
    """
    if options.root is None:
        raise ValueError(f"--dataset {options.dataset} needs --root, the folder of the data set")
    return options.root


def changed_options(options: Command, names: Collection[str]) -> list[str]:
    """Return those of the named options that differ from their defaults, as they are spelled."""
    return [
        f"--{field.name.replace('_', '-')}"
        for field in fields(options)
        if field.name in names and getattr(options, field.name) != field.default
    ]


def split_names(names: str) -> list[str]:
    """Return comma-separated names as a list."""
    return [name.strip() for name in names.split(",")]


def feature_surgery_of(choice: str) -> str | None:
    """Return a choice of feature surgery as functions take it: None for "none"."""
    return None if choice == "none" else choice


def check_contrast(
    feature_surgery: str,
    texts: Sequence[str],
    distractors: Sequence[str],
    queries: QueryOptions | None = None,
) -> None:
    """Check that a variant of feature surgery that contrasts texts has several of them.

    Raises:
        ValueError: If there is only one.
    """
    images = (queries.query_image if queries else None) or ()
    if feature_surgery in CONTRASTING and len({*texts, *distractors, *images}) == 1:
        raise ValueError(
            f"--feature-surgery {feature_surgery} contrasts texts, and there is only one; add "
            "texts or --distractors, or choose --feature-surgery empty"
        )


def echo(line: str, quiet: bool = False) -> None:
    """Print a line above a progress bar, unless `quiet`."""
    if not quiet:
        tqdm.write(line)


def choose_methods(
    clip: ZeroShotClassifier,
    names: Sequence[str],
    feature_surgery: str = "auto",
    is_fine: bool = False,
    repair: str | None = None,
) -> tuple[dict[str, Method], dict[str, str]]:
    """Select methods by name as `registry.choose` does, with options that concern all of them.

    Args:
        clip: The classifier.
        names: Names of methods, or "all".
        feature_surgery: Variant of feature surgery of the methods that have it.
        is_fine: Whether to average the maps of shifted copies.
        repair: Remedy for outlier tokens of the methods that have one.

    Raises:
        ValueError: If no method has such a variant or remedy.
    """
    methods, left_out = choose(clip, names)
    if feature_surgery != "auto":
        variant: dict[str, Any] = {"feature_surgery": feature_surgery_of(feature_surgery)}
        with_variants = (*SURGERY_METHODS, "CLIPSurgeryFine")
        changed = [name for name in with_variants if name in methods]
        if not changed and left_out.keys().isdisjoint(with_variants):
            raise ValueError(
                f"--feature-surgery {feature_surgery} has no effect on {', '.join(methods)}; add "
                f"one of {', '.join(with_variants)} to --methods, or leave it out"
            )
        methods |= {name: partial(methods[name], **variant) for name in changed}
    if repair is not None:
        repairable = [n for n, each in methods.items() if "repair" in signature(each).parameters]
        if not repairable:
            raise ValueError(
                f"--repair {repair} is not defined for {', '.join(methods)}; use --repair "
                "registers, which serves all methods"
            )
        if unchanged := [name for name in methods if name not in repairable]:
            print(f"--repair {repair} has no effect on {', '.join(unchanged)}", file=sys.stderr)
        options: dict[str, Any] = {"repair": repair}
        methods |= {name: partial(methods[name], **options) for name in repairable}
    if is_fine:
        methods = {name: fine(method) for name, method in methods.items()}
    return methods, left_out


def report_left_out(left_out: Mapping[str, str]) -> None:
    """Print the methods that are left out, and why, to standard error."""
    for name, reason in left_out.items():
        print(f"left out: {name}: {reason}", file=sys.stderr)

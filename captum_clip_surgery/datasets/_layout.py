"""Checks that a data set on disk is complete, before anything is read."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from captum_clip_surgery._utils.files import read_lines


def check_layout(name: str, root: Path, needed: Iterable[str], hint: str) -> None:
    """Check that the files and folders of a data set exist.

    Args:
        name: Name of the data set, for the message.
        root: Its folder.
        needed: Paths below `root`.
        hint: What to download and where to unpack it, for the message.

    Raises:
        FileNotFoundError: If a path is missing; the message names it and ends with the hint.

    Example::

        >>> check_layout("Mine", Path("/nowhere"), ["images"], "images/*.png")
        Traceback (most recent call last):
        FileNotFoundError: Mine is incomplete at /nowhere (no such folder). Expected: images/*.png
    """
    missing = [path for path in needed if not (root / path).exists()]
    if missing:
        reason = f"missing: {', '.join(missing)}" if root.is_dir() else "no such folder"
        raise FileNotFoundError(f"{name} is incomplete at {root} ({reason}). Expected: {hint}")


def check_option(name: str, option: str, value: object, allowed: Collection[object]) -> None:
    """Check that an option of a data set has one of its allowed values.

    Raises:
        ValueError: If it has not.
    """
    if value not in allowed:
        values = ", ".join(map(repr, allowed))
        raise ValueError(f"{option} of {name} must be one of {values}, got {value!r:.80}")


def check_files(
    name: str, folder: Path, files: Sequence[str], hint: str, listed: Path | None = None
) -> None:
    """Check that a folder holds all files, listing it once because there can be thousands.

    Args:
        name: Name of the data set, for the message.
        folder: The folder.
        files: Names of the files.
        hint: What to download and where to unpack it, for the message.
        listed: File that lists the names, for the message.

    Raises:
        FileNotFoundError: If files are missing; the message counts them, names the first and ends
            with the hint.
    """
    present = {path.name for path in folder.iterdir()}
    missing = [file for file in files if file not in present]
    if missing:
        source = f" listed in {listed}" if listed else ""
        raise FileNotFoundError(
            f"{name} is incomplete: {len(missing)} of {len(files)} files{source} are missing, such "
            f"as {folder / missing[0]}. Expected: {hint}"
        )


def check_paired(
    name: str, images: Mapping[str, Path], labels: Mapping[str, Path], hint: str
) -> None:
    """Check that every image has labels and every file of labels an image.

    Args:
        name: Name of the data set, for the message.
        images: Image files by sample name.
        labels: Label files by sample name.
        hint: What to download and where to unpack it, for the message.

    Raises:
        FileNotFoundError: If files have no counterpart; the message counts them, names the first
            and ends with the hint.
    """
    for files, others, what in ((images, labels, "labels"), (labels, images, "image")):
        alone = sorted(set(files) - set(others))
        if alone:
            raise FileNotFoundError(
                f"{name} is incomplete: {len(alone)} of {len(files)} have no {what}, such as "
                f"{files[alone[0]]}. Expected: {hint}"
            )


def read_names(path: Path) -> list[str]:
    """Return the first word of every line that is not blank."""
    return [line.split()[0] for line in read_lines(path)]

"""Digests of everything results depend on, so that stale results are not reused."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import captum_clip_surgery
from captum_clip_surgery._utils.files import state_of, walk

#: Suffixes of the package's files that determine its results.
SOURCES = (".py", ".toml", ".txt")


def file_states(root: Path, output: Path) -> dict[str, str]:
    """Return sizes and times of all files in a folder by relative path, following links.

    Args:
        root: The folder.
        output: Folder of the results, which is left out if it is inside `root`.

    Raises:
        ValueError: If both are the same folder.
    """
    results = os.path.realpath(output)
    if os.path.realpath(root) == results:
        raise ValueError(f"--output {output} is the folder of the data set; choose another one")
    return {
        os.path.relpath(path, root)
        .encode(errors="surrogateescape")
        .decode(errors="replace"): state_of(path)
        for path in walk(root, results)
    }


def code_digest() -> str:
    """Return the SHA-256 of the package's sources."""
    folder = Path(captum_clip_surgery.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.suffix in SOURCES):
        digest.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes())
    return digest.hexdigest()

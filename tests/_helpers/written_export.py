"""Tiny collections of scenes, and exports of them by processes that may be killed."""

from __future__ import annotations

import errno
import io
import multiprocessing
import os
import tarfile
from collections.abc import Callable, Sequence
from functools import cache
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from captum_clip_surgery import LayerCLIPSurgery, ZeroShotClassifier
from captum_clip_surgery._utils.checkpoint import CheckpointStore
from captum_clip_surgery.demo import Scenes
from captum_clip_surgery.export import ExportSummary, export_maps, load_maps
from captum_clip_surgery.export._manifest import JOURNAL
from captum_clip_surgery.export._shards import FOLDER, FORMATS, files_of
from captum_clip_surgery.export._writing import entries

TEXTS = ["dog", "pizza", "camera"]
SHARD, BATCH = 4, 2
IMAGES = 36  # nine shards of four


@cache
def surgery() -> LayerCLIPSurgery:
    return LayerCLIPSurgery(ZeroShotClassifier.demo(TEXTS))


@cache
def scene(index: int) -> Image.Image:
    return Image.fromarray(Scenes("test", 100, size=64)[index].image)


def encoded(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def write_folder(root: Path, count: int) -> list[str]:
    """Scenes in two folders; their names in order."""
    names = [f"{'b' if index % 2 else 'a'}/s{index:03d}.png" for index in range(count)]
    for index, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(encoded(scene(index)))
    return sorted(names)


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def export(source: Path | str, output: Path, **options: Any) -> ExportSummary:
    given = {"shard_size": SHARD, "batch_size": BATCH, "workers": 0, "size": 64, "top": 2}
    return export_maps(surgery(), source, output, **(given | options))


def shards(output: Path) -> dict[str, bytes]:
    """All files of all shards, and what is in them."""
    found = {}
    for path in sorted((output / FOLDER).iterdir()):
        for file in files_of(path):
            found[file.relative_to(output).as_posix()] = file.read_bytes()
    return found


def states(output: Path, names: Sequence[str]) -> dict[str, tuple[int, int]]:
    """What changes when a shard is written again."""
    found = {}
    for name in names:
        state = (output / name).stat()
        found[name] = (state.st_ino, state.st_mtime_ns)
    return found


def forked(call: Callable[[], object]) -> BaseProcess:
    """A started process that calls a function; it has all that is loaded here."""
    surgery().forward_func.text_features()
    process = multiprocessing.get_context("fork").Process(target=call)
    process.start()
    return process


def finished(output: Path) -> set[str]:
    """Files of finished shards by the journal."""
    if not (output / JOURNAL / "run.json").exists():
        return set()
    with CheckpointStore.open(output / JOURNAL) as journal:
        known = entries(journal)
    return {entry.file for of_piece in known.values() for entry in of_piece if entry.file}


def assert_same(output: Path, whole: Path) -> None:
    assert shards(output) == shards(whole)
    maps, wanted = load_maps(output), load_maps(whole)
    maps.verify()
    assert list(maps) == list(wanted)
    assert maps.unreadable == wanted.unreadable
    assert all((maps[name] == wanted[name]).all() for name in wanted)
    assert all(maps.top(name) == wanted.top(name) for name in wanted)


def fail_at(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, call: int, do: Any) -> None:
    """Have a method do something else at its n-th call."""
    original, calls = getattr(owner, name), 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            do()
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, counted)


def full_disk() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def write_broken_folder(root: Path) -> Path:
    """A folder of which one picture is unreadable."""
    names = write_folder(root, IMAGES)
    (root / names[5]).write_bytes(b"broken")
    return root


def export_whole(folder: Path, root: Path) -> dict[str, Path]:
    """What an export comes to that nothing befalls, by format."""
    for format in FORMATS:
        export(folder, root / format, format=format)
    return {format: root / format for format in FORMATS}


def expected(pictures: list[Path | Image.Image]) -> np.ndarray:
    clip = surgery().forward_func
    with torch.no_grad():
        return surgery().attribute_all(clip.preprocess(pictures, 64)).half().numpy()


def close(found: np.ndarray, wanted: np.ndarray) -> bool:
    """To a unit of float16, as a batch of another size may round otherwise."""
    assert found.dtype == wanted.dtype == np.float16
    return np.allclose(found.astype(float), wanted.astype(float), rtol=2e-3, atol=1e-5)

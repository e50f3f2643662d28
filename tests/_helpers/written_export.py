"""Tiny collections of scenes, and exports of them by processes that may be killed."""

from __future__ import annotations

import io
import multiprocessing
import tarfile
from collections.abc import Callable, Iterable
from functools import cache
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from captum_clip_surgery import LayerCLIPSurgery, ZeroShotClassifier
from captum_clip_surgery.demo import Scenes
from captum_clip_surgery.export import Plan, load_maps, plan
from captum_clip_surgery.export._plan import Explained

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


def write_broken_folder(root: Path) -> Path:
    """A folder in which one image is unreadable."""
    names = write_folder(root, IMAGES)
    (root / names[5]).write_bytes(b"broken")
    return root


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def planned(source: Path | str, output: Path, **options: Any) -> Plan:
    given = {"shard_size": SHARD, "batch_size": BATCH, "size": 64, "top": 2}
    return plan(surgery(), source, output, **(given | options))


def export(
    source: Path | str,
    output: Path,
    workers: int = 0,
    numbers: Iterable[int] | None = None,
    **options: Any,
) -> Explained:
    """Export by a loop, some shards or all that are left."""
    made = planned(source, output, **options)
    done = made.explain(surgery(), made.left() if numbers is None else numbers, workers)
    made.finish()
    return done


def files(output: Path) -> dict[str, bytes]:
    """Finished files of an export by name."""
    return {path.name: path.read_bytes() for path in sorted((output / "data").glob("0*.parquet"))}


def states(output: Path) -> dict[str, tuple[int, int]]:
    """What changes when a finished file is written again."""
    found = {path.name: path.stat() for path in (output / "data").glob("0*.parquet")}
    return {name: (state.st_ino, state.st_mtime_ns) for name, state in found.items()}


def forked(call: Callable[[], object]) -> BaseProcess:
    """A started process that calls a function; it has all that is loaded here."""
    surgery().forward_func.text_features()
    process = multiprocessing.get_context("fork").Process(target=call)
    process.start()
    return process


def assert_same(output: Path, whole: Path) -> None:
    """Check that two exports are equal to the last bit, and that nothing else remains."""
    assert files(output) == files(whole)
    assert not list((output / "data").glob(".*"))
    maps, wanted = load_maps(output), load_maps(whole)
    maps.verify()
    assert list(maps) == list(wanted)
    assert maps.unreadable == wanted.unreadable


def expected(pictures: list[Path | Image.Image]) -> np.ndarray:
    clip = surgery().forward_func
    with torch.no_grad():
        return surgery().attribute_all(clip.preprocess(pictures, 64)).half().numpy()


def close(found: np.ndarray, wanted: np.ndarray) -> bool:
    """To a unit of float16, as a batch of another size may round otherwise."""
    assert found.dtype == wanted.dtype == np.float16
    return np.allclose(found.astype(float), wanted.astype(float), rtol=2e-3, atol=1e-5)

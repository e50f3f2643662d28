"""PostScript in the place of pictures and labels never starts Ghostscript, whatever opens it."""

from __future__ import annotations

import io
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from captum_clip_surgery.app._images import read_image
from captum_clip_surgery.cli._images import ImageFiles
from captum_clip_surgery.datasets import open_dataset, open_labels, open_rgb
from captum_clip_surgery.datasets._files import image_size
from captum_clip_surgery.export._sources import open_source
from captum_clip_surgery.preprocessing import load_image, open_image
from tests._helpers.decoded import samples
from tests._helpers.written_city import write_city
from tests._helpers.written_coco import write_coco
from tests._helpers.written_imagenet_s import write_imagenet_s

EPS = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 2\n%%EndComments\n"
    b"(%pipe%touch started) (w) file\n%%EOF\n"
)


def iptc(content: bytes) -> bytes:
    """A file in a file: Pillow opens the inner one by whatever it is."""

    def field(record: int, tag: int, data: bytes) -> bytes:
        return struct.pack(">BBBH", 0x1C, record, tag, len(data)) + data

    fields = [(3, 60, b"\1\0"), (3, 20, b"\4"), (3, 30, b"\2"), (3, 120, b"\5")]
    head = b"".join(field(*one) for one in fields)
    size = struct.pack(">BBBBBI", 0x1C, 8, 10, 132, 0, len(content))
    return head + size + content + bytes(5)


KINDS = {
    "PostScript": EPS,
    "with a binary head": b"\xc5\xd0\xd3\xc6" + struct.pack("<II", 32, len(EPS)) + bytes(20) + EPS,
    "in IPTC": iptc(EPS),
}


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that is there once a stand-in for Ghostscript was started."""
    (tmp_path / "bin").mkdir()
    program, told = tmp_path / "bin" / "gs", tmp_path / "started"
    program.write_text(f"#!/bin/sh\necho x >> '{told}'\nexit 0\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    (tmp_path / "data").mkdir()
    return told


@pytest.mark.parametrize("kind", ["PostScript", "in IPTC"])
def test_pillow_itself_starts_it(started: Path, kind: str) -> None:
    """Or nothing here would show anything."""
    with Image.open(io.BytesIO(KINDS[kind])) as image, pytest.raises(OSError, match=r"."):
        image.load()
    assert started.exists()


def path_of(root: Path, content: bytes) -> Path:
    (root / "x.png").write_bytes(content)
    return root / "x.png"


def imagenet_s(root: Path, content: bytes, part: str) -> object:
    folder = write_imagenet_s(root, {"n01443537/a": np.ones((2, 4), int)})
    next((folder / part).glob("*/a.*")).write_bytes(content)
    return open_dataset("imagenet-s50", root)[0]


def cityscapes(root: Path, content: bytes) -> object:
    write_city(root, "bonn_0_0", np.full((2, 4), 7))
    next(root.glob("gtFine/val/*/*labelIds.png")).write_bytes(content)
    return open_dataset("cityscapes", root)[0]


def coco(root: Path, content: bytes) -> object:
    write_coco(root)
    next(root.glob("val2017/*285.jpg")).write_bytes(content)
    return [*open_dataset("coco", root)]


def folder(root: Path, content: bytes, part: str, mask: str) -> object:
    for path in (root / "images/a.png", root / f"masks/{mask}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 2)).save(path)
    (root / "classes.txt").write_text("dog")
    (root / part).write_bytes(content)
    return open_dataset("folder", root)[0]


def hugging_face(root: Path, content: bytes, column: str) -> object:
    datasets = pytest.importorskip("datasets")
    stream = io.BytesIO()
    Image.new("L", (4, 2)).save(stream, "PNG")
    row = {name: {"bytes": stream.getvalue(), "path": None} for name in ("image", "mask")}
    row[column]["bytes"] = content
    stored = datasets.Features(dict.fromkeys(row, datasets.Image(decode=False)))
    rows = datasets.Dataset.from_dict({name: [one] for name, one in row.items()}, features=stored)
    for name in row:
        rows = rows.cast_column(name, datasets.Image())
    rows.save_to_disk(str(root / "saved"))
    (root / "saved/classes.txt").write_text("dog")
    return open_dataset("huggingface", root / "saved")[0]


def exported(root: Path, content: bytes, packed: bool) -> object:
    path = path_of(root, content)
    if packed:
        with tarfile.open(root / "x.tar", "w") as archive:
            archive.add(path, "x.png")
        path.unlink()
    (piece,) = open_source(root).pieces
    (sample,) = samples(piece)
    assert sample.picture is None
    raise ValueError(sample.reason)


def command_line(root: Path, content: bytes) -> object:
    files = ImageFiles([str(path_of(root, content))])
    assert not list(files)
    raise ValueError(f"{files.unreadable}")


DOORS: dict[str, Callable[[Path, bytes], object]] = {
    "a picture": lambda root, content: load_image(path_of(root, content)),
    "a picture opened": lambda _, content: load_image(Image.open(io.BytesIO(content))),
    "a stream": lambda _, content: open_image(io.BytesIO(content)).load(),
    "an image": lambda root, content: open_rgb(path_of(root, content)),
    "labels": lambda root, content: open_labels(path_of(root, content)),
    "a size": lambda root, content: image_size(path_of(root, content)),
    "the page": lambda _, content: read_image(content, "x.png"),
    "the command line": command_line,
    "a folder to export": lambda root, content: exported(root, content, False),
    "an archive to export": lambda root, content: exported(root, content, True),
    "ImageNet-S, image": lambda root, content: imagenet_s(root, content, "validation"),
    "ImageNet-S, labels": lambda root, content: imagenet_s(
        root, content, "validation-segmentation"
    ),
    "Cityscapes": cityscapes,
    "COCO": coco,
    "folder, image": lambda root, content: folder(root, content, "images/a.png", "a.png"),
    "folder, numbers": lambda root, content: folder(root, content, "masks/a.png", "a.png"),
    "folder, mask": lambda root, content: folder(root, content, "masks/a/dog.png", "a/dog.png"),
    "Hugging Face, image": lambda root, content: hugging_face(root, content, "image"),
    "Hugging Face, mask": lambda root, content: hugging_face(root, content, "mask"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("door", DOORS)
def test_no_door_starts_it(started: Path, tmp_path: Path, door: str, kind: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        DOORS[door](tmp_path / "data", KINDS[kind])
    assert not started.exists()


def test_a_image_that_was_decoded_before_is_the_callers(started: Path) -> None:
    """What a caller decoded, of whatever format, is pixels."""
    image: Any = Image.open(io.BytesIO(EPS))
    image.im, image.tile, image._mode = Image.new("RGB", (4, 2), "red").im, [], "RGB"
    assert np.asarray(load_image(image)).tolist() == [[[255, 0, 0]] * 4] * 2
    assert not started.exists()


def test_the_package_opens_images_in_one_place() -> None:
    """Others would have to repeat which formats are allowed."""
    package = Path(load_image.__code__.co_filename).parent
    places = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if "Image.open(" in path.read_text()
    }
    assert places == {
        "preprocessing.py",
        "demo/_scenes.py",
    }  # the latter: the package's own sprites

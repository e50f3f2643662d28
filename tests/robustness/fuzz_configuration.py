"""What `fuzz.py` tries of configurations: all that is read as JSON or TOML."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from PIL import Image
from safetensors.torch import save_file

from captum_clip_surgery import ZeroShotClassifier
from captum_clip_surgery.app._files import read_link, read_view, view
from captum_clip_surgery.app._images import PageImage
from captum_clip_surgery.app._settings import Settings
from captum_clip_surgery.evaluation import _results
from captum_clip_surgery.evaluation._protocol import FOLDER, Protocol
from captum_clip_surgery.export import load_maps
from tests._helpers.written_export import export
from tests.robustness.fuzz_inputs import WORK, Part, Target, by_token, folder, may_refuse

TOWER = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 8, "layers": 1, "width": 8, "head_width": 8, "patch_size": 4},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
}
LOOK = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bicubic"}
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8))


@functools.cache
def tower() -> Path:
    state = open_clip.model.CLIP(**TOWER).half().state_dict()
    save_file(state, folder("model") / "open_clip_model.safetensors")
    return folder("model")


def configures(data: bytes) -> None:
    """A model's folder whose configuration is anything, beside weights that are sound."""
    where = tower()
    (where / "open_clip_config.json").write_bytes(data)
    named = (str(where), "preprocessing has", "the text tower makes", "vocabulary", " hold NaN")
    with may_refuse(*named, errors=(ValueError, TypeError, OSError)), torch.no_grad():
        clip = ZeroShotClassifier.from_pretrained(f"local-dir:{where}", None, ["dog"], templates=())
        assert clip(clip.preprocess(PICTURE)).isfinite().all()


def protocols(data: bytes) -> None:
    path = folder("protocols") / "mine.toml"
    path.write_bytes(data)
    with may_refuse(f"protocol {path}: "):
        protocol = Protocol.load(path)
        assert protocol.views
        for task, dataset in [*protocol.changes, *((task, "none") for task in protocol.views)]:
            protocol.view(task, dataset)


def settings(data: bytes) -> None:
    with may_refuse(""):
        found = Settings.from_json(data.decode("utf-8", "replace"))
        assert Settings.from_json(found.to_json()) == found


def views(data: bytes) -> None:
    with may_refuse(""):
        found, picture = read_view(data)
        assert picture.pixels.mode == "RGB"
        again, same = read_view(view(picture, found).content)
        assert again == found
        assert same.pixels.tobytes() == picture.pixels.tobytes()


def links(data: bytes) -> None:
    with may_refuse(""):
        found, _ = read_link(data.decode("utf-8", "replace"))
        assert found.example is not None


@functools.cache
def exported() -> Path:
    source, output = folder("in"), WORK / "out"
    PICTURE.save(source / "x.png")
    export(source, output)
    return output


@functools.cache
def whole(name: str) -> bytes:
    return (exported() / name).read_bytes()


DESCRIPTION, TABLE = "run.json", "data/000000.parquet"


def changed(name: str, data: bytes) -> Path:
    """The path of a file of the export, which is changed, and no other is."""
    for each in (DESCRIPTION, TABLE):
        before = whole(each)
        (exported() / each).write_bytes(data if each == name else before)
    return exported() / name


def descriptions(data: bytes) -> None:
    """What says of an export what it is of."""
    with may_refuse(str(changed(DESCRIPTION, data))):
        maps = load_maps(exported())
        maps.verify()
        assert maps["x.png"].ndim == 3


def tables(data: bytes) -> None:
    """The file of an export's first images."""
    with may_refuse(str(changed(TABLE, data)), "000000.parquet (", "x.png"):
        maps = load_maps(exported())
        maps.verify()
        assert maps["x.png"].ndim == 3
        assert all(text in maps.texts for text, _ in maps.top("x.png"))


def measures(data: bytes) -> None:
    path = folder("results") / "results.json"
    path.write_bytes(data)
    with may_refuse(str(path)):
        for result in _results.read_results(path.parent).values():
            assert all(isinstance(value, float) for value in result.measures.values())


def configuration_seeds() -> list[bytes]:
    model = {"model_cfg": TOWER, "preprocess_cfg": LOOK}
    resnet = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None}
    set_up = Settings(texts=("a dog", "a cat"), point=(0.25, 0.5), side=64, caption="a dog")
    example = Settings(texts=("a dog",), example=0)
    measured = {"seconds": 1.5, "peak_bytes": None, "intervals": {"pointing": [0.1, 0.9]}}
    seeds: list[tuple[Part, Any]] = [
        (configures, model), (configures, model | {"model_cfg": TOWER | {"vision_cfg": resnet}}),
        *((protocols, path.read_bytes()) for path in sorted(FOLDER.glob("*.toml"))),
        (settings, set_up.to_json()), (views, view(PageImage(PICTURE, "x.png"), set_up).content),
        (views, view(PageImage(PICTURE, "x", 0), example).content), (links, example.to_json()),
        (measures, {"methods": {"CLIP": measured | {"measures": {"pointing": 0.5}}}}),
    ]  # fmt: skip
    return [as_bytes(content) + bytes([PARTS.index(part)]) for part, content in seeds]


def as_bytes(content: Any) -> bytes:
    if isinstance(content, bytes):
        return content
    return (content if isinstance(content, str) else json.dumps(content)).encode()


PARTS = (configures, protocols, settings, views, links, measures)
CONFIGURATION = Target(PARTS, configuration_seeds, by_token, 6000)

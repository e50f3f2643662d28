"""What `fuzz.py` tries: seeds of each kind of input, and what may come of any bytes instead."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import random
import re
import sqlite3
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import atheris
import open_clip
import torch
from PIL import Image

from captum_clip_surgery import ZeroShotClassifier
from captum_clip_surgery._utils.pieces import start_run
from captum_clip_surgery.app._images import read_image
from captum_clip_surgery.datasets import Classes, open_labels, open_rgb
from captum_clip_surgery.models.text._cache import FILE, TextCache
from captum_clip_surgery.models.text._templates import format_prompt
from captum_clip_surgery.preprocessing import Preprocess, load_image
from tests._helpers.tiny import tiny_model
from tests.robustness.fuzz_configuration import (
    CONFIGURATION,
    DESCRIPTION,
    PICTURE,
    TABLE,
    descriptions,
    tables,
    whole,
)
from tests.robustness.fuzz_inputs import (
    Target,
    by_byte,
    by_token,
    folder,
    may_refuse,
    resealed,
)

# --- templates ------------------------------------------------------------------------------------

SLOTS = re.compile(r"(?:[^{}]|\{\{|\}\}|(\{\}))*")
MODEL = functools.cache(lambda: tiny_model("vit"))


def strings(data: bytes) -> list[str]:
    try:
        return data.decode("utf-8", "surrogatepass").split("\x1e")
    except UnicodeDecodeError:
        return data.decode("utf-8", "replace").split("\x1e")


def fills(data: bytes) -> None:
    """A template and a text, as Python itself puts one into the other."""
    template, *texts = strings(data)
    text = texts[0] if texts else "dog"
    plain = SLOTS.fullmatch(template)
    if plain is not None and plain[1]:
        assert format_prompt(template, text) == template.format(*[text] * len(template))
        return
    with may_refuse("template "):
        # Python takes some more for plain, "{:}" and "{!\0:}"; then they are that here as well.
        assert format_prompt(template, text) == template.format(*[text] * len(template))


def classifies(data: bytes) -> None:
    """Texts through a template and a model, as the model itself reads them."""
    template, *texts = strings(data)
    model = MODEL()
    with may_refuse("template ", "text", "prompt "):
        clip = ZeroShotClassifier(model, texts, templates=[template])
        prompts = [format_prompt(template, text) for text in texts]
        with torch.no_grad():
            expected = model.encode_text(open_clip.tokenize(prompts, 16), normalize=True)
        torch.testing.assert_close(clip.text_features(), expected)


def truncates(data: bytes) -> None:
    template, *texts = strings(data)
    with may_refuse("template ", "text", "prompt "):
        clip = ZeroShotClassifier(MODEL(), texts, templates=[template, "{}"], truncate=True)
        assert clip.text_features().isfinite().all()


def takes_anything(data: bytes) -> None:
    """What is given is no list of strings, at times."""
    provider = atheris.FuzzedDataProvider(data)
    texts, templates = _given(provider), _given(provider)
    with may_refuse("template", "text", "prompt ", errors=(ValueError, TypeError)):
        clip = ZeroShotClassifier(MODEL(), texts, templates=templates)
        assert clip.text_features().shape[0] == len(clip.texts) > 0


def _given(provider: atheris.FuzzedDataProvider, depth: int = 0) -> Any:
    made: list[Callable[[], Any]] = [
        lambda: provider.ConsumeUnicode(20), lambda: provider.ConsumeBytes(4),
        lambda: provider.ConsumeInt(8), lambda: provider.ConsumeFloat(), lambda: None,
        lambda: str.upper, lambda: (lambda text: provider.ConsumeBool() or None),
    ]  # fmt: skip
    if depth < 2:
        several = [_given(provider, depth + 1) for _ in range(provider.ConsumeIntInRange(0, 3))]
        made += [lambda kind=kind: kind(several) for kind in (list, tuple, iter)]
        made += [lambda kind=kind: kind(map(repr, several)) for kind in (set, dict.fromkeys)]
    return provider.PickValueInList(made)()


def names_classes(data: bytes) -> None:
    with may_refuse("class"):
        classes = Classes.parse("\n".join(strings(data)))
        assert all(classes.first)
        assert len(set(classes.first)) == len(classes) > 0


def template_seeds() -> list[bytes]:
    lines = ["a photo of a {}.\x1edog\x1ea cat", "{} {{}} {}\x1e🦆", "{!r:>{0.x}}\x1ex", "{\x1e}",
             "{}\x1edog <end_of_text> cat", "{}\x1e\ufeff\x1e \x1e\u0301", "{}" * 20 + "\x1edog",
             "# source: x\x1eperson, man\x1epotted plant", "{}\x1e&amp;&lt;b&gt;\x1eİ"]  # fmt: skip
    seeds = [line.encode() for line in lines] + [b"{}\x1e\xed\xa0\x80", bytes(40), b"\x01" * 60]
    return [seed + bytes([part]) for seed in seeds for part in range(5)]


# --- runs -----------------------------------------------------------------------------------------

ABOUT = {"images": 3, "model": {"name": "ViT", "weights": "ab"}, "methods": ["CLIP"]}


def beginnings(data: bytes) -> None:
    """What a run was of."""
    where = folder("beginning")
    (where / "run.json").write_bytes(data)
    with may_refuse(str(where)):
        start_run(where, ABOUT)
        assert json.loads(data) == ABOUT


KEYS = [b"k" * 32, b"l" * 32]


def features(data: bytes) -> None:
    """A cache of text features."""
    path = folder("cache") / FILE
    path.write_bytes(data)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for key, found in TextCache(path.parent).get(KEYS).items():
            array = found.numpy()
            content = key + array.dtype.name.encode() + array.tobytes()
            assert hashlib.sha256(content).digest() in data
    assert all(str(path) in str(warning.message) for warning in told)


def database(write: Callable[[Path], object], size: int) -> bytes:
    """What a writer makes, in pages of a size: smaller ones hold more structure in fewer bytes."""
    with tempfile.TemporaryDirectory() as made:
        write(Path(made))
        (path,) = Path(made).glob("*.sqlite")
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as opened:
            opened.execute(f"PRAGMA page_size = {size}")
            opened.execute("VACUUM")
        return path.read_bytes()


def _write_features(where: Path) -> None:
    TextCache(where).put(dict.fromkeys(KEYS, torch.arange(3.0)))


def run_seeds() -> list[bytes]:
    return [
        json.dumps(ABOUT).encode() + b"\0",
        *(database(_write_features, size) + b"\1" for size in (512, 4096)),
        whole(DESCRIPTION) + b"\2",
        whole(TABLE) + b"\3",
    ]


def by_part(data: bytes, most: int, chance: random.Random) -> bytes:
    """Databases and tables by bytes, text by tokens."""
    return (by_byte if data.startswith((b"SQLite", b"PAR1")) else by_token)(data, most, chance)


# --- pictures -------------------------------------------------------------------------------------

SHOW = Preprocess((16, 16), (0.5,) * 3, (0.5,) * 3, "bicubic")


def opens(data: bytes) -> None:
    """A file by all that reads pictures."""
    path = folder("pictures") / "x.png"
    path.write_bytes(data)
    with may_refuse(f"{path} cannot be read as an image: "):
        picture = load_image(path)
        assert picture.mode == "RGB"
        assert SHOW(picture).isfinite().all()
    with may_refuse(f"{path} cannot be read as an image: "):
        assert open_rgb(path).mode == "RGB"
    with may_refuse(f"{path} cannot be read as labels: "):
        assert open_labels(path).ndim == 2
    with may_refuse("the file ", "the image "):
        assert read_image(data, "x.png").pixels.mode == "RGB"


def picture_seeds() -> list[bytes]:
    Image.init()
    seeds = []
    for kind in sorted(Image.SAVE.keys() & Image.OPEN.keys()):
        for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F"):
            stream = io.BytesIO()
            with contextlib.suppress(Exception):  # formats have modes of their own
                PICTURE.convert("L" if mode[0] in "IF" else mode).convert(mode).save(stream, kind)
                seeds.append(stream.getvalue())
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind in ("PNG", "JPEG", "WEBP", "TIFF"):
        stream = io.BytesIO()
        PICTURE.save(stream, kind, exif=exif)
        seeds.append(stream.getvalue())
    return [seed + b"\0" for seed in seeds if len(seed) < 4096]


TARGETS = {
    "template": Target(
        (fills, classifies, truncates, takes_anything, names_classes),
        template_seeds, by_token, 1000,
    ),
    "configuration": CONFIGURATION,
    "run": Target((beginnings, features, descriptions, tables), run_seeds, by_part, 2**14),
    "image": Target((opens,), picture_seeds, resealed, 4096),
}  # fmt: skip

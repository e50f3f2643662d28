"""How long a visitor of the page waits: a first result, and a changed text.

    python benchmarks/app.py [--repeats 5] [--methods CLIP,ClipSurgery]

Seconds from what a visitor does to the finished HTML, without the browser: a picture that was never
seen, other texts on it, and another look of the same maps. Texts are new each time.
"""

from __future__ import annotations

import io
import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Annotated

import torch
import typer
from PIL import Image

from captum_clip_surgery import ZeroShotClassifier
from captum_clip_surgery.app import tabs
from captum_clip_surgery.app.explaining import Explainer
from captum_clip_surgery.app.pictures import read_picture
from captum_clip_surgery.app.settings import Settings
from captum_clip_surgery.cli.common import Model, Pretrained, load_model
from captum_clip_surgery.demo import Scenes, nouns
from captum_clip_surgery.tables import markdown


def seconds(act: Callable[[], object]) -> float:
    begin = time.perf_counter()
    act()
    return time.perf_counter() - begin


def upload(number: int) -> bytes:
    """A picture of 1600 x 1200 pixels as a file."""
    buffer = io.BytesIO()
    scene = Scenes("test", number + 1, size=256, objects=[3])[number]
    Image.fromarray(scene.image).resize((1600, 1200)).save(buffer, format="JPEG")
    return buffer.getvalue()


def come(explainer: Explainer, content: bytes, settings: Settings) -> None:
    tabs.complete(explainer, read_picture(content, "photo.jpg"), settings)


def main(
    repeats: Annotated[int, typer.Option(min=1)] = 5,
    methods: str = "CLIP,ClipSurgery",
    model: Model = None,
    pretrained: Pretrained = None,
) -> None:
    warnings.filterwarnings("ignore", message="the embedded model never learnt")
    clip: ZeroShotClassifier = load_model(model, pretrained, ["a picture"], quiet=True)
    explainer = Explainer(clip)
    names, words = tuple(methods.split(",")), iter(nouns())
    found: dict[str, list[float]] = {"first result": [], "changed texts": [], "another look": []}
    for number in range(repeats + 1):  # the first warms up
        content = upload(number)
        first = Settings((next(words), next(words), next(words)), names)
        second = Settings((next(words), first.texts[1], first.texts[2]), names)
        third = Settings(second.texts, names, opacity=0.4)
        times = [seconds(partial(come, explainer, content, first))]
        times += [seconds(partial(come, explainer, content, s)) for s in (second, third)]
        if number:
            for name, value in zip(found, times, strict=True):
                found[name].append(value)
    rows = [[name, f"{statistics.median(t):.2f}", f"{max(t):.2f}"] for name, t in found.items()]
    print(f"{torch.get_num_threads()} threads, {clip.tower.describe()}, methods {methods}\n")
    print(markdown(["", "median s", "largest s"], rows))


if __name__ == "__main__":
    typer.run(main)

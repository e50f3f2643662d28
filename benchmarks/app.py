"""Time until a visitor of the web demo sees a first result, or the result of changed texts.

    python benchmarks/app.py [--repeats 5] [--methods CLIP,CLIPSurgery] [--browser]

Without a browser, seconds are measured from the request to the finished HTML: for a new image, for
other texts on it, and for another look of the same maps. Texts are new each time. With `--browser`,
a process serves the page to headless Chromium, and seconds are measured until the new maps are
decoded on the page.
"""

from __future__ import annotations

import io
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from PIL import Image

from captum_clip_surgery import ZeroShotClassifier
from captum_clip_surgery._utils.tables import markdown
from captum_clip_surgery.app import _tabs as tabs
from captum_clip_surgery.app._explaining import Explainer
from captum_clip_surgery.app._images import example_scene, read_image
from captum_clip_surgery.app._settings import Settings
from captum_clip_surgery.demo import Scenes, nouns


def seconds(act: Callable[[], object]) -> float:
    begin = time.perf_counter()
    act()
    return time.perf_counter() - begin


def upload(number: int) -> bytes:
    """Return a JPEG file of an image of 1600 x 1200 pixels."""
    buffer = io.BytesIO()
    drawn = Scenes("test", number + 1, size=256, objects=[3])[number]
    Image.fromarray(drawn.image).resize((1600, 1200)).save(buffer, format="JPEG")
    return buffer.getvalue()


def explain(explainer: Explainer, content: bytes, settings: Settings) -> None:
    tabs.complete(explainer, read_image(content, "photo.jpg"), settings)


def rows(found: dict[str, list[float]]) -> str:
    lines = [[name, f"{statistics.median(t):.2f}", f"{max(t):.2f}"] for name, t in found.items()]
    return markdown(["", "median s", "largest s"], lines)


#: Maps of these texts are on the page, decoded, and the picture is not the one before.
SHOWN = """([texts, before]) => {
    const titles = [...document.querySelectorAll('#ccs-maps h2')];
    const found = titles.map(title => title.innerText.replace(/^\\d+\\. /, '')).sort();
    const maps = [...document.querySelectorAll('#ccs-maps img.ccs-map')];
    return JSON.stringify(found) === JSON.stringify(texts) && maps.every(map => map.complete)
        && maps[0].src !== before;
}"""


def look(
    page: Any, act: Callable[[], object], texts: tuple[str, ...], before: str | None = None
) -> float:
    """Return the seconds from an action until the page shows maps of these texts, on another image
    than `before`."""
    begin = time.perf_counter()
    act()
    page.wait_for_function(SHOWN, arg=[sorted(texts), before], polling="raf")
    return time.perf_counter() - begin


def visit(page: Any, address: str, number: int, words: Iterator[str]) -> list[float]:
    """Return seconds for opening the page, choosing an image, and changing a text."""
    begin = time.perf_counter()
    page.goto(address)
    page.wait_for_function("document.querySelector('#ccs-maps img.ccs-map')?.complete")
    times = [time.perf_counter() - begin]
    written, picture = page.locator("#ccs-texts textarea"), page.locator("#ccs-upload input")
    texts = (next(words), *written.input_value().split("\n")[1:])
    written.fill("\n".join(texts))  # texts of an example are cleared by an upload, these are not
    look(page, lambda: page.locator("#ccs-run").click(), texts)
    photo = {"name": "photo.jpg", "mimeType": "image/jpeg", "buffer": upload(number)}
    before = page.locator("#ccs-maps img.ccs-map").first.get_attribute("src")
    times.append(look(page, lambda: picture.set_input_files(photo), texts, before))
    changed = (next(words), *texts[1:])

    def write() -> None:
        written.fill("\n".join(changed))
        page.locator("#ccs-run").click()

    return [*times, look(page, write, changed)]


def in_browser(repeats: int) -> dict[str, list[float]]:
    """Measure in Chromium the page of the embedded model, served by a process of its own."""
    from playwright.sync_api import sync_playwright

    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests._helpers.served import chromium, serve

    found: dict[str, list[float]] = {"page opened": [], "first result": [], "changed text": []}
    words = iter([noun for noun in nouns() if noun not in example_scene(0).nouns])
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        server = serve(Path(folder))
        try:
            browser = chromium(driver)
            for number in range(repeats + 1):  # the first one is a warm-up
                context = browser.new_context()
                times = visit(context.new_page(), server.address, number, words)
                context.close()
                for name, value in zip(found, times, strict=True):
                    found[name] += [value] if number else []
            browser.close()
        finally:
            server.process.terminate()
            server.process.wait()
    return found


def main(
    repeats: Annotated[int, typer.Option(min=1)] = 5,
    methods: str = "CLIP,CLIPSurgery",
    model: Annotated[
        str | None, typer.Option(help="open_clip name (default: the embedded model).")
    ] = None,
    pretrained: Annotated[
        str | None, typer.Option(help="open_clip pretrained tag or checkpoint file.")
    ] = None,
    browser: Annotated[bool, typer.Option("--browser")] = False,
) -> None:
    if browser:
        print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores\n")
        print(rows(in_browser(repeats)))
        return
    warnings.filterwarnings("ignore", message="the embedded model was not trained on")
    clip = (
        ZeroShotClassifier.demo(["a picture"])
        if model is None
        else ZeroShotClassifier.from_pretrained(model, pretrained, ["a picture"])
    )
    explainer = Explainer(clip)
    names, words = tuple(methods.split(",")), iter(nouns())
    found: dict[str, list[float]] = {"first result": [], "changed texts": [], "another look": []}
    for number in range(repeats + 1):  # the first one is a warm-up
        content = upload(number)
        first = Settings((next(words), next(words), next(words)), names)
        second = Settings((next(words), first.texts[1], first.texts[2]), names)
        third = Settings(second.texts, names, opacity=0.4)
        times = [seconds(partial(explain, explainer, content, first))]
        times += [seconds(partial(explain, explainer, content, s)) for s in (second, third)]
        if number:
            for name, value in zip(found, times, strict=True):
                found[name].append(value)
    print(f"{torch.get_num_threads()} threads, {clip.tower.describe()}, methods {methods}\n")
    print(rows(found))


if __name__ == "__main__":
    typer.run(main)

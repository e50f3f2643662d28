"""Draw the figures in `docs/images` again, on the embedded model.

    python -m tools.figures [demo] [check] [outliers] [tasks] [ledger] [match] [results] [app]

Without a name, all are drawn.

`app` takes screenshots of the web demo (extras `app` and `test`, and a Chromium). `results` draws
the table of docs/results.md, whose numbers take `clip-surgery evaluate` hours, and `scaling.png` is
drawn by `benchmarks/scaling.py`, which takes hours as well.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from io import BytesIO
from pathlib import Path

import torch
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from captum_clip_surgery import LayerCLIPSurgery, ZeroShotClassifier, tower_report
from captum_clip_surgery.attr._descriptions import title_of
from captum_clip_surgery.demo import Scenes, nouns
from captum_clip_surgery.visualization import compare_figure, save_figure
from captum_clip_surgery.visualization._charts import bar_figure
from tests._helpers import served
from tests._helpers.outliers import with_outliers

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
TABS = {"segmentation": "Segmentation", "points": "Points and boxes", "words": "Words"}
DESKTOP = {"width": 1280, "height": 900}
PHONE = {"width": 390, "height": 844}
#: Titles of the measures that `results.png` shows, by column of the table.
MEASURES = {
    "mIoU": "mIoU",
    "mSC": "mSC",
    "pointing": "pointing game",
    "AUROC": "AUROC",
    "seg. mIoU": "segmentation mIoU",
    "insertion": "insertion",
}


def draw_demo() -> None:
    """Draw `demo.png` by the command that README shows."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "captum_clip_surgery", "demo", "--output", folder]
        subprocess.run([*command, "--scenes", "1"], check=True)
        shutil.copy(Path(folder) / "demo.png", IMAGES / "demo.png")


def draw_check() -> None:
    """Draw `check.png`, the figure of a tower's report."""
    clip = ZeroShotClassifier.demo(nouns())
    images = clip.preprocess([scene.image for scene in Scenes("test", 12)])
    save_figure(tower_report(clip, images).figure(), IMAGES / "check.png")


def draw_outliers() -> None:
    """Draw `outliers.png`: maps of a model that writes outliers, without and with remedies."""
    sound, edited = ZeroShotClassifier.demo(nouns()), with_outliers()
    scenes = Scenes("test", 60, sound.native_size[0], objects=[2, 3])
    registers = edited.with_registers(edited.preprocess([scene.image for scene in scenes[:24]]))
    columns = {
        "unedited": (sound, None),
        "with outliers": (edited, None),
        "registers": (registers, None),
        **{f'"{repair}"': (edited, repair) for repair in ("auto", "neighbors", "likeness")},
    }
    chosen = [scenes[index] for index in (0, 8, 12)]
    maps = {
        name: torch.cat(
            [
                LayerCLIPSurgery(clip.with_texts(scene.nouns), repair=repair)
                .attribute_all(clip.preprocess(scene.image), [0])
                .detach()
                for scene in chosen
            ]
        )
        for name, (clip, repair) in columns.items()
    }
    notes = {"unedited": [[scene.nouns[0]] for scene in chosen]}
    figure = compare_figure([scene.image for scene in chosen], maps, [""], notes=notes)
    figure.savefig(IMAGES / "outliers.png", dpi=100)


def draw_page(name: str, figures: tuple[str, ...]) -> None:
    """Draw the figures of a page of docs/ by its own code."""
    page = (ROOT / "docs" / name).read_text(encoding="utf-8")
    code = "\n".join(part.partition("```")[0] for part in page.split("```python\n")[1:])
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-c", code], cwd=folder, check=True)
        for figure in figures:
            shutil.copy(Path(folder) / f"{figure}.png", IMAGES / f"{figure}.png")


def draw_tasks() -> None:
    """Draw the figures of docs/tasks.md."""
    draw_page("tasks.md", ("segments", "points", "words", "regions"))


def draw_ledger() -> None:
    """Draw the figure of README and docs/ledger.md."""
    draw_page("ledger.md", ("ledger",))


def draw_match() -> None:
    """Draw the figure of docs/queries.md."""
    draw_page("queries.md", ("match",))


def draw_results() -> None:
    """Draw `results.png`, the main measures of the table of docs/results.md."""
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    table = page[page.index("| method") :].split("\n\n")[0].splitlines()
    names, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    values = {
        title: {title_of(row[0]): (float(row[names.index(measure)]), None) for row in rows}
        for measure, title in MEASURES.items()
    }
    save_figure(bar_figure(values), IMAGES / "results.png", dpi=100)


def save_screenshot(page: Page, name: str, full_page: bool = False) -> None:
    """Save what a page shows, in 256 colors."""
    page.wait_for_timeout(1000)  # for transitions
    screenshot = Image.open(BytesIO(page.screenshot(full_page=full_page)))
    screenshot.convert("RGB").quantize(256).save(IMAGES / name, optimize=True)


def draw_app() -> None:
    """Take the screenshots of docs/app.md."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        server = served.serve(Path(folder))
        browser = served.chromium(driver)
        page = browser.new_page(viewport=DESKTOP)
        page.goto(server.address)
        page.wait_for_selector("#ccs-maps img.ccs-map")
        page.locator("#ccs-maps button.ccs-frame").nth(1).click()
        large = page.locator("dialog img.ccs-map")
        side = large.bounding_box()["width"]
        large.click(position={"x": 0.52 * side, "y": 0.33 * side})  # on the zebra
        page.wait_for_selector(".ccs-point")
        save_screenshot(page, "app-maps.png", full_page=True)
        for name, title in TABS.items():
            page.get_by_role("tab", name=title).click()
            page.wait_for_selector(f"#ccs-{name} img")
            save_screenshot(page, f"app-{name}.png", full_page=True)
        phone = browser.new_page(viewport=PHONE, color_scheme="dark")
        phone.goto(server.address)
        phone.wait_for_selector("#ccs-maps img.ccs-map")
        phone.evaluate("document.querySelector('#ccs-tabs').scrollIntoView()")
        save_screenshot(phone, "app-phone.png")
        browser.close()
        served.end(server)


DRAW = {
    "demo": draw_demo,
    "check": draw_check,
    "outliers": draw_outliers,
    "tasks": draw_tasks,
    "ledger": draw_ledger,
    "match": draw_match,
    "results": draw_results,
    "app": draw_app,
}

if __name__ == "__main__":
    for figure in sys.argv[1:] or DRAW:
        DRAW[figure]()

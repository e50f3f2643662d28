"""Figures compared pixel by pixel with baselines, to notice unintended changes.

The maps of the embedded model are stored, so that figures do not depend on a machine's rounding.
After an intended change, run pytest on this file with --mpl-generate-path=tests/data/figures, and
look at the new baselines.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor

from captum_clip_surgery.tasks import Prompt, WordMaps, figures
from captum_clip_surgery.visualization import (
    compare_figure,
    visualize_attribution,
    winner_figure,
)
from captum_clip_surgery.visualization._charts import bar_figure
from captum_clip_surgery.visualization._views import VIEWS

pytest.importorskip("pytest_mpl", reason="images are compared by pytest-mpl")

FIGURES = Path(__file__).parents[1] / "data" / "figures"


@pytest.fixture(autouse=True)
def compared(request: pytest.FixtureRequest) -> None:
    """Without --mpl the plugin draws and compares nothing: no such test may pass."""
    options = request.config.option
    assert options.mpl or options.mpl_generate_path, "run with --mpl, as setup.cfg's addopts has it"


def same(test: Any) -> Any:
    """Text in matplotlib's own DejaVu Sans; its edges may differ a little between builds."""
    return pytest.mark.mpl_image_compare(
        baseline_dir=str(FIGURES), style="default", tolerance=4, savefig_kwargs={"dpi": 40}
    )(test)


@pytest.fixture
def scene() -> tuple[np.ndarray, list[str], dict[str, Tensor]]:
    """A scene (128, 128, 3), its nouns, and maps (1, K, h, w) by method."""
    with np.load(FIGURES / "maps.npz") as kept:
        maps = {
            name: torch.from_numpy(kept[name]).float()
            for name in ("CLIP", "CLIPSurgery", "GradCam")
        }
        return kept["image"], kept["texts"].tolist(), maps


@same
def test_views(scene) -> Figure:
    picture, _, maps = scene
    figure = Figure(figsize=(8.5, 3), layout="constrained")
    axes = figure.subplots(2, len(VIEWS))
    for line, name, text in zip(axes, ("CLIPSurgery", "CLIP"), (1, 2), strict=True):
        for axis, method in zip(line, VIEWS, strict=True):
            sign = "positive" if method in ("masked_image", "alpha_scaling", "mask") else "all"
            visualize_attribution(maps[name][0, text], picture, method, sign, axis=axis)
    return figure


@same
def test_one(scene) -> Figure:
    picture, texts, maps = scene
    figure, _ = visualize_attribution(
        maps["CLIPSurgery"][:, 1], picture, show_colorbar=True, title=texts[1]
    )
    return figure


@same
def test_compare(scene) -> Figure:
    picture, texts, maps = scene
    notes, beside = {"CLIP": [["31 ms"] * 3]}, [["cosine 0.312"] * 3]
    return compare_figure([picture], maps, texts, notes=notes, text_notes=beside, width=5)


@same
def test_compare_transposed(scene) -> Figure:
    picture, texts, maps = scene
    return compare_figure([picture], maps, texts, "A title", scales="map", transpose=True, width=5)


@same
def test_winner(scene) -> Figure:
    picture, texts, maps = scene
    return winner_figure(picture, maps["CLIPSurgery"][0], texts, threshold=0.02, width=5)


@same
def test_points(scene) -> Figure:
    picture, texts, _ = scene
    prompts = [
        Prompt(texts[0], np.array([[80.0, 60], [5, 5]]), np.array([1, 0]), None, None, 0.5),
        Prompt(
            texts[1],
            np.array([[30.0, 97]]),
            np.array([1]),
            np.array([10.0, 77, 51, 120]),
            None,
            0.4,
        ),
    ]
    row, column = np.ogrid[:128, :128]
    masks = [np.zeros((128, 128), bool), np.hypot(row - 98, column - 30) < 20]
    return figures.points_figure(picture, prompts, masks, width=5)


@same
def test_words(scene) -> Figure:
    picture, texts, maps = scene
    found = WordMaps(
        tuple(texts), maps["CLIPSurgery"][0], (128, 128), torch.tensor([1.2, 0.8, -0.1])
    )
    return figures.words_figure(picture, found, columns=2)


@same
def test_bars(scene) -> Figure:
    return bar_figure(
        {
            "mIoU": {"CLIP": (6.8, (5.0, 9.0)), "CLIPSurgery": (52.3, (50.1, 55.0))},
            "mSC": {"CLIP": (-6.3, (-8.0, -4.0)), "CLIPSurgery": (53.2, None)},
        }
    )

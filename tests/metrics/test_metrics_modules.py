"""The torchmetrics classes: the same numbers, over batches, in collections and by processes."""

from __future__ import annotations

import importlib
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torchmetrics import Metric, MetricCollection

import captum_clip_surgery
from captum_clip_surgery import ZeroShotClassifier
from captum_clip_surgery.metrics import (
    PairMeasures,
    grid_pointing_game,
    insertion_deletion,
    modules,
)
from tests._helpers.cases import each
from tests._helpers.masked_maps import MASK, random_map, random_mask
from tests._helpers.tiny import random_images, tiny_model

TOLERANCE = 1.5


def collection(**options: Any) -> dict[str, Metric]:
    return {
        "explanation_iou": modules.ExplanationIoU(**options),
        "msc": modules.ScoreContrast(**options),
        "pointing": modules.PointingGame(**options),
        "pointing_near": modules.PointingGame(TOLERANCE, **options),
        "energy": modules.EnergyPointingGame(**options),
        "auroc": modules.PixelAUROC(**options),
        "average_precision": modules.PixelAveragePrecision(**options),
        "segmentation": modules.SegmentationProtocol(**options),
    }


def batches() -> list[tuple[Tensor, Tensor]]:
    """Of several sizes; one mask is empty, one full, one map constant."""
    found = []
    for start, count in ((0, 3), (3, 1), (4, 4)):
        maps = torch.stack([random_map(start + i, side=4 + count) for i in range(count)])
        masks = torch.stack([random_mask(start + i) for i in range(count)])
        found.append((maps, masks))
    found[0][1][1] = False
    found[2][1][2] = True
    found[2][0][3] = 7
    return found


def expected() -> dict[str, float]:
    measures = PairMeasures(TOLERANCE)
    for maps, masks in batches():
        for attribution, mask in zip(maps, masks, strict=True):
            measures.update(attribution, mask)
    found = measures.compute()
    assert found.pop("skipped") == 2
    del found["n_pairs"], found["threshold"]
    return found


def figures(metrics: dict[str, Metric]) -> dict[str, float]:
    found = {name: metric.compute() for name, metric in metrics.items()}
    return {name: float(value) for name, value in (found | found.pop("segmentation")).items()}


def test_over_batches_the_same_as_pair_measures() -> None:
    metrics = collection()
    for maps, masks in batches():
        for metric in metrics.values():
            metric.update(maps, masks)
    assert figures(metrics) == pytest.approx(expected())
    for metric in metrics.values():
        metric.reset()
        metric.update(MASK.float()[None], MASK[None])
    assert set(figures(metrics).values()) == {100}


def test_forward_gives_the_batch_s_own_figure_and_accumulates() -> None:
    first, second = collection(), collection()
    for maps, masks in batches():
        for name, metric in first.items():
            alone = collection()[name]
            alone.update(maps, masks)
            torch.testing.assert_close(metric(maps, masks), alone.compute())
            second[name].update(maps, masks)
    assert figures(first) == pytest.approx(figures(second))


def test_a_collection_keeps_apart_what_the_first_batch_made_equal() -> None:
    """A collection joins metrics whose states look alike, and then updates one of them only."""
    both = MetricCollection(
        {name: metric for name, metric in collection().items() if name != "segmentation"}
    )
    constant = torch.zeros(1, 4, 4)
    near = torch.zeros(1, 8, 8)
    near[0, 2, 2] = 1  # a pixel left of the mask
    for maps in (constant, near):
        both.update(maps, MASK[None])
    found = {name: float(value) for name, value in both.compute().items()}
    measures = PairMeasures(TOLERANCE)
    for maps in (constant, near):
        measures.update(maps[0], MASK)
    assert (found["pointing"], found["pointing_near"]) == (0, 50)
    assert found == pytest.approx({name: measures.compute()[name] for name in found})


def test_a_collection_keeps_apart_areas_of_other_steps_and_grids_of_other_shapes() -> None:
    clip = ZeroShotClassifier(tiny_model("vit"), ["a dog", "a cat"], templates=["{}"])
    plain, picture = torch.zeros(1, 3, *clip.native_size), random_images(clip, 1)
    few, many = (modules.InsertionDeletion(clip, steps=steps) for steps in (1, 8))
    both = MetricCollection({"few": few, "many": many})
    for images in (plain, picture):  # a plain image is the same after any step
        both.update(images, random_map(0)[None], 1)
    areas = [
        insertion_deletion(clip, picture, random_map(0)[None], 1, steps)[0] for steps in (1, 8)
    ]
    assert float(areas[0] - areas[1]) != pytest.approx(0, abs=1e-5)
    found = few.compute()["insertion"] - many.compute()["insertion"]
    assert float(found) == pytest.approx(100 * float(areas[0] - areas[1]) / 2, rel=1e-3)

    wide, tall = modules.GridPointingGame(1, 4), modules.GridPointingGame(4, 1)
    grids = MetricCollection({"wide": wide, "tall": tall})
    corner = torch.zeros(1, 4, 4)
    corner[0, 0, 3] = 1
    for maps in (torch.zeros(1, 4, 4), corner):
        grids.update(maps, [0])
    assert (float(wide.compute()), float(tall.compute())) == (0, 50)


def test_options_reach_torchmetrics_and_sums_are_of_double_precision() -> None:
    clip = ZeroShotClassifier(tiny_model("vit"), ["a dog", "a cat"], templates=["{}"])
    options = {"sync_on_compute": False}
    pairs = collection(**options).values()
    grids = modules.GridPointingGame(**options)
    areas = modules.InsertionDeletion(clip, steps=2, **options)
    for metric in pairs:
        metric.update(random_map(0)[None], MASK[None])
    grids.update(random_map(0)[None], [0])
    areas.update(random_images(clip, 1), random_map(0)[None], 0)
    for metric in (*pairs, grids, areas):
        assert metric.sync_on_compute is False
        found = metric.compute()
        for value in found.values() if isinstance(found, dict) else [found]:
            assert value.dtype == torch.float64


def test_before_the_first_pair_there_is_no_figure() -> None:
    for metric in collection().values():
        found = metric(torch.ones(1, 4, 4), torch.ones(1, 8, 8, dtype=torch.bool))
        for value in found.values() if isinstance(found, dict) else [found]:
            assert torch.isnan(value)


@each(
    ("maps", "masks", "message"),
    [
        (torch.zeros(2, 3, 8, 8), MASK[None].expand(2, 8, 8), r"expected \(2, h, w\)"),
        (torch.zeros(1, 8, 8), MASK[None].expand(2, 8, 8), r"expected \(2, h, w\)"),
        (torch.zeros(1, 8, 8), MASK[None].float(), "a mask must be bool"),
        (torch.full((1, 8, 8), torch.nan), MASK[None], "NaN or infinity"),
    ],
)
def test_refused_batches(maps: Tensor, masks: Tensor, message: str) -> None:
    for metric in collection().values():
        with pytest.raises(ValueError, match=message):
            metric.update(maps, masks)
    with pytest.raises(ValueError, match=r"tolerance must be .* got -1"):
        modules.PointingGame(-1)


def test_grids_accumulate() -> None:
    metric = modules.GridPointingGame(2, 2)
    maps = torch.stack([random_map(seed, side=4) for seed in range(3)])
    cells = [0, 3, 1]
    shares = [grid_pointing_game(one, 2, 2, cell) for one, cell in zip(maps, cells, strict=True)]
    metric.update(maps[:2], torch.tensor(cells[:2]))
    metric.update(maps[2:], cells[2:])
    assert float(metric.compute()) == pytest.approx(100 * sum(shares) / 3, rel=1e-12)
    with pytest.raises(IndexError, match=r"cell must be 0 to 3 .* got 4"):
        metric.update(maps[:1], [4])
    with pytest.raises(ValueError, match=r"expected \(2, h, w\)"):
        metric.update(maps, [0, 1])


def test_grids_are_two_by_two_where_nothing_is_said() -> None:
    stated, default = modules.GridPointingGame(2, 2), modules.GridPointingGame()
    for metric in (stated, default):
        metric.update(random_map(0)[None], [3])
    assert default.compute() == stated.compute()


def test_insertion_and_deletion_accumulate() -> None:
    clip = ZeroShotClassifier(tiny_model("vit"), ["a dog", "a cat"], templates=["{}"])
    images, targets = random_images(clip, 3), [1, 0, 1]
    maps = torch.stack([random_map(seed, side=4) for seed in range(3)])
    metric = modules.InsertionDeletion(clip, steps=4, baseline="mean")
    assert torch.isnan(metric.compute()["insertion"])
    metric.update(images[:2], maps[:2], targets[:2])
    metric.update(images[2:], maps[2:], targets[2])
    areas = insertion_deletion(clip, images, maps, targets, steps=4, baseline="mean")
    for name, area in zip(("insertion", "deletion"), areas, strict=True):
        assert float(metric.compute()[name]) == pytest.approx(100 * float(area.mean()), rel=1e-5)
    metric.reset()
    assert torch.isnan(metric.compute()["deletion"])


@each(
    "options", [{}, {"baseline": "noise", "steps": 4}, {"baseline": "noise", "steps": 4, "seed": 7}]
)
def test_areas_have_the_options_and_defaults_of_the_function(options: dict[str, Any]) -> None:
    clip = ZeroShotClassifier(tiny_model("vit"), ["a dog", "a cat"], templates=["{}"])
    images, maps = random_images(clip, 1), random_map(0, side=4)[None]
    metric = modules.InsertionDeletion(clip, **options)
    metric.update(images, maps, 0)
    areas = insertion_deletion(clip, images, maps, 0, **options)
    for name, area in zip(("insertion", "deletion"), areas, strict=True):
        assert float(metric.compute()[name]) == pytest.approx(100 * float(area[0]), rel=1e-6)


def _measure_a_share(rank: int, meeting: str, results: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    metrics = collection()
    for index, (maps, masks) in enumerate(batches()):
        if index % 2 == rank:
            for metric in metrics.values():
                metric.update(maps, masks)
    results[rank] = figures(metrics)
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_give_the_number_of_one(tmp_path: Path) -> None:
    """Shares of unequal size: two batches to one process, one to the other."""
    with mp.Manager() as manager:
        results = manager.dict()
        mp.spawn(_measure_a_share, (str(tmp_path / "meeting"), results), nprocs=2)
        for rank in range(2):
            assert results[rank] == pytest.approx(expected())


def test_without_torchmetrics_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    for name in ("modules", "_pair_metric"):
        monkeypatch.delitem(sys.modules, f"captum_clip_surgery.metrics.{name}")
    with pytest.raises(ImportError, match=r"pip install 'captum_clip_surgery\[metrics\]'"):
        importlib.import_module("captum_clip_surgery.metrics.modules")


def test_nothing_else_imports_torchmetrics() -> None:
    package = Path(captum_clip_surgery.__file__).parent
    importing = re.compile(
        r"^\s*(?:from|import)\s.*(?:torchmetrics|metrics\.modules)", re.MULTILINE
    )
    found = [
        os.fspath(path.relative_to(package))
        for path in package.rglob("*.py")
        if importing.search(path.read_text())
    ]
    # Recognition imports it on use.
    assert sorted(found) == ["evaluation/_average_precision.py", "metrics/_pair_metric.py"]

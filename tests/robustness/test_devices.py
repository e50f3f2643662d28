"""Every public function on a device without float64, and whatever the default device and dtype."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from captum_clip_surgery import CLIPSurgery, ZeroShotClassifier, compare, metrics, tasks
from captum_clip_surgery.attr import word_scores
from captum_clip_surgery.attr._registry import choose
from captum_clip_surgery.diagnostics import tower_report
from captum_clip_surgery.metrics import modules
from captum_clip_surgery.metrics.functional._points import point_confusion
from captum_clip_surgery.metrics.functional._segmentation import confusion
from captum_clip_surgery.visualization import visualize_attribution, winner_figure
from tests._helpers.pretend_mps import PretendMps, model_to_mps

pytestmark = pytest.mark.slow

IMAGE = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
PREPARED = (
    "iou_curve",
    "score_contrast",
    "pointing_game",
    "pixel_auroc",
    "pixel_average_precision",
)
PAIR_METRICS = [
    kind
    for kind in vars(modules).values()
    if isinstance(kind, type) and issubclass(kind, modules.PairMetric) and kind.measure
    if not getattr(kind.measure, "__isabstractmethod__", False)
]


def results(clip: ZeroShotClassifier) -> dict[str, Any]:
    """Call everything, with tensors on the classifier's device."""
    device = clip.device
    images = torch.linspace(-1, 1, 2 * 3 * 32 * 48, dtype=torch.float32, device="cpu")
    images = images.sin().reshape(2, 3, 32, 48).to(device)
    mask = torch.ones(8, 8, dtype=torch.bool, device="cpu").triu(2).to(device)
    attribution = torch.arange(16, dtype=torch.float32, device="cpu").cos().reshape(4, 4).to(device)
    prepared = metrics.prepare(attribution, mask)
    methods, _ = choose(clip, ["all"])
    measures = metrics.PairMeasures()
    measures.update(attribution, mask, 0)
    positions = torch.full((2,), 0.4, dtype=torch.float32, device="cpu").to(device)
    calls: dict[str, Callable[[], Any]] = {
        "preprocess": lambda: clip.preprocess(IMAGE),
        "unnormalize": lambda: clip.unnormalize(images),
        "logits": lambda: clip(images),
        "image shape": lambda: CLIPSurgery(clip).attribute(images, target=[0, 1]),
        **{
            name: lambda method=method: method(clip).attribute_all(images)
            for name, method in methods.items()
            if name not in ("KernelShap", "Occlusion", "IntegratedGradients")
        },
        "words": lambda: word_scores(clip, images, "a dog").scores,
        "words, eclip": lambda: word_scores(clip, images, "a dog", "grad-eclip").scores,
        "segment": lambda: tasks.segment(clip, [IMAGE], background=["dogs"], size=64)[0].labels,
        "windows": lambda: (
            tasks.segment(clip, [IMAGE], background=0.5, window=48, size=64)[0].labels
        ),
        "recognize": lambda: tasks.recognize(clip, [IMAGE], size=64)[0].scores,
        "prompts": lambda: [
            p.points for p in tasks.prompts(clip, [IMAGE], boxes=True, masks=True, size=64)[0]
        ],
        "peaks": lambda: [
            p.points for p in tasks.prompts(clip, [IMAGE], instances="peaks", size=64)[0]
        ],
        "points": lambda: tasks.points_from_map(attribution, (30, 40)),
        "word maps": lambda: tasks.word_maps(clip, [IMAGE], ["a dog here"], size=64)[0].maps,
        "own texts": lambda: tasks.maps_of_own_texts(clip, [IMAGE], [["a dog here"]], size=64)[0],
        "report": lambda: [*tower_report(clip, images).to_dict()["norm_max"]],
        "compare": lambda: [
            *compare(clip, images, methods=["CLIP"], masks=[mask.expand(2, 8, 8)] * 2)
            .measures["CLIP"]
            .values()
        ],
        "prepare": lambda: prepared,
        **{name: lambda name=name: getattr(metrics, name)(prepared, mask) for name in PREPARED},
        **{
            f"{name} of none": lambda name=name: getattr(metrics, name)(None, mask)
            for name in PREPARED
        },
        "confusion": lambda: confusion(prepared, mask),
        "confusion of none": lambda: confusion(None, mask),
        "near": lambda: metrics.pointing_game(prepared, mask, 2),
        "energy": lambda: metrics.energy_pointing_game(attribution, mask),
        "grid": lambda: metrics.grid_pointing_game(attribution, 2, 2, 1),
        "point confusion": lambda: point_confusion(mask, positions, positions, [True, False]),
        "pairs": lambda: [*measures.compute().values()],
        "confidence": lambda: [*measures.confidence().values()],
        **{
            f"insertion, {baseline}": lambda baseline=baseline: metrics.insertion_deletion(
                clip, images, attribution.expand(2, 4, 4), 0, 2, baseline
            )
            for baseline in ("blur", "noise")
        },
        "figures": lambda: [
            bool(visualize_attribution(attribution, IMAGE)),
            bool(winner_figure(IMAGE, attribution.expand(2, 4, 4), ["a", "b"])),
        ],
    }
    return {name: call() for name, call in calls.items()}


def metric_results(device: torch.device) -> dict[str, Any]:
    """Metrics of torchmetrics, which puts their state on the default device."""
    mask = torch.ones(8, 8, dtype=torch.bool).triu(2).to(device)
    attribution = torch.arange(16, dtype=torch.float32).cos().reshape(4, 4).to(device)
    return {kind.__name__: measured(kind, attribution, mask) for kind in PAIR_METRICS}


def measured(kind: Any, attribution: Tensor, mask: Tensor) -> Any:
    metric = kind()
    metric.update(attribution[None], mask[None])
    return metric.compute()


def numbers(value: Any) -> Iterator[Tensor]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for part in value:
            yield from numbers(part)
    elif not isinstance(value, str):
        yield (
            value.detach().cpu() if isinstance(value, Tensor) else torch.as_tensor(value)
        ).double()


def assert_same(actual: dict[str, Any], expected: dict[str, Any]) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        for a, e in zip(numbers(actual[name]), numbers(value), strict=True):
            torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-5, msg=name, equal_nan=True)


@pytest.fixture(scope="module")
def demo() -> ZeroShotClassifier:
    return ZeroShotClassifier.demo(["dog", "pizza"])


@pytest.fixture(scope="module")
def expected(demo) -> dict[str, Any]:
    return results(demo)


def test_a_device_without_float64(demo, expected):
    moved = copy.deepcopy(demo)
    model_to_mps(moved.model)
    with PretendMps():
        assert moved.text_features().device.type == "mps"
        actual = results(moved)
        assert_same(metric_results(moved.device), metric_results(demo.device))
        assert actual["CLIPSurgery"].device.type == actual["preprocess"].device.type == "mps"
    assert_same(actual, expected)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


each_default = pytest.mark.parametrize(
    "default",
    [lambda: torch.device("meta"), lambda: default_dtype(torch.bfloat16)],
    ids=["device", "dtype"],
)


@each_default
def test_models_are_loaded_whatever_the_default(demo, default):
    with default():
        loaded = ZeroShotClassifier.demo(demo.texts)
    state = loaded.model.state_dict()
    for name, value in demo.model.state_dict().items():
        assert torch.equal(state[name], value), name
    assert torch.equal(loaded.text_features(), demo.text_features())


@each_default
def test_whatever_the_default(demo, expected, default):
    texts = ZeroShotClassifier(
        demo.model, demo.texts, tokenizer=demo.text_encoder.tokenizer, templates=demo.templates
    )
    with default():
        fresh = ZeroShotClassifier(
            demo.model, demo.texts, tokenizer=demo.text_encoder.tokenizer, templates=demo.templates
        )
        assert torch.equal(fresh.text_features(), texts.text_features())
        actual = results(demo)
    assert_same(actual, expected)
    for name, value in expected.items():
        if isinstance(value, Tensor):
            assert (actual[name].dtype, actual[name].device) == (value.dtype, value.device), name

"""Prompts for SAM: held to the published points, to plain restatements, and shown to real SAMs."""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import sys
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from captum_clip_surgery import LayerCLIPSurgery, ZeroShotClassifier
from captum_clip_surgery.attr import METHODS
from captum_clip_surgery.demo import Scenes
from captum_clip_surgery.tasks import (
    Prompt,
    _prompts,
    _regions,
    points_from_map,
    prompts,
    sam_inputs,
)
from captum_clip_surgery.tasks._prompts import _mask
from captum_clip_surgery.tasks._sam import PADDING
from tests._helpers.cases import each
from tests._helpers.tiny import DATA, on_models, random_images, with_preprocessing
from tests._helpers.tower_kinds import Tiny, _shrunk, _timm

H, W = 60, 100

# Of 6 x 10 cells two objects, the second with two tops.
TWO = torch.zeros(6, 10)
TWO[1:3, 1:4] = torch.tensor([[8.0, 9, 8], [8, 8, 8]])
TWO[3:5, 6:10] = torch.tensor([[10.0, 8, 8, 9], [8, 8, 8, 8]])
TWO[0, 5] = -1


@pytest.fixture(scope="module")
def demo() -> ZeroShotClassifier:
    return ZeroShotClassifier.demo(["dog", "pizza"])


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch, demo: ZeroShotClassifier) -> Any:
    """Prompts of hand-made maps (K, h, w), on an image of 6 x 10 cells."""

    def show(maps: Tensor, **options: Any) -> list[Prompt]:
        monkeypatch.setattr(
            LayerCLIPSurgery, "attribute_all", lambda self, images, chosen: maps[None, chosen]
        )
        return prompts(demo, [Image.new("RGB", (W, H))], **options)[0]

    return show


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def on(prompt: Prompt, label: int = 1) -> list[list[float]]:
    return sorted(prompt.points[prompt.labels == label].tolist())


# --- points of a map -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "size"), [("vit", "native"), ("vit", "larger"), ("resnet", "larger")]
)
def test_points_are_the_published_ones(family: str, size: str) -> None:
    expected = load_file(DATA / f"{family}-expected.safetensors")
    scores = expected[f"{size}.feature_surgery"][0, 1:, 0]
    side = round(len(scores) ** 0.5)
    found, labels = points_from_map(scores.reshape(side, side), (50, 70))
    assert found.dtype == torch.int64
    assert torch.equal(found, expected[f"{size}.points"])
    assert labels.dtype == torch.uint8
    assert torch.equal(labels, expected[f"{size}.point_labels"])


def test_a_map_of_one_reduced_cell_has_no_published_points() -> None:
    expected = load_file(DATA / "resnet-expected.safetensors")
    assert "native.points" not in expected
    scores = expected["native.feature_surgery"][0, 1:, 0].reshape(2, 2)
    assert points_from_map(scores, (50, 70))[0].shape == (0, 2)


def test_known_points() -> None:
    attribution = torch.tensor([[-5.0, 1, 2, 9], [0, 3, 10, 4]])
    found, labels = points_from_map(attribution, (20, 40), down_sample=1)
    # 9 and 10 reach 0.8 of the way from -5 to 10; in pixels a cell has 10 a side.
    assert found.tolist() == [[35, 5], [25, 15], [5, 5], [5, 15]]
    assert labels.tolist() == [1, 1, 0, 0]
    assert len(points_from_map(attribution, (20, 40), threshold=0.95, down_sample=1)[0]) == 2
    assert len(points_from_map(attribution, (20, 40), threshold=0, down_sample=1)[0]) == 8


def test_reaching_the_threshold_is_enough(shown: Any) -> None:
    attribution = torch.zeros(6, 10)
    attribution[1, 1:4] = torch.tensor([8.0, 10, 7.9])
    assert points_from_map(attribution, (6, 10), down_sample=1)[1].sum() == 2
    (prompt,) = shown(attribution[None], targets=[0], instances="components")
    assert on(prompt) == [[15, 15], [25, 15]]


def test_equal_cells_stay_equal_when_reduced() -> None:
    attribution = torch.full((7, 7), 0.1, dtype=torch.float64)
    attribution[:3] = 0.7
    found, labels = points_from_map(attribution, (21, 21), threshold=1)
    assert found.tolist() == [[3, 3], [10, 3], [17, 3], [3, 10], [10, 10], [17, 10]]
    assert labels.tolist() == [1, 1, 1, 0, 0, 0]


def test_reduction_takes_means_of_cells() -> None:
    attribution = torch.tensor([[8.0, 0, 0, 1], [0, 0, 1, 1], [3, 3, 0, 0], [3, 3, 0, 0]])
    found, labels = points_from_map(attribution, (8, 8))
    assert found.tolist() == [[2, 6], [6, 6]]  # not the cell with the 8 in it, of mean 2
    assert labels.tolist() == [1, 0]


def test_half_of_the_cells_at_most() -> None:
    attribution = torch.ones(3, 3)
    attribution[1, 1] = 0
    found, labels = points_from_map(attribution, (3, 3), down_sample=1)
    # Later of equal cells count as higher, so no cell is both.
    assert found.tolist() == [[2, 1], [0, 2], [1, 2], [2, 2], [1, 1], [0, 0], [1, 0], [2, 0]]
    assert labels.tolist() == [1] * 4 + [0] * 4


@each("shape", [(1, 1), (1, 7), (5, 3), (7, 7), (9, 4)])
@each("down_sample", [1, 2, 3, 50])
def test_odd_grids(shape: tuple[int, int], down_sample: int) -> None:
    found, labels = points_from_map(noise(*shape), (11, 13), down_sample=down_sample)
    rows, columns = (max(1, side // down_sample) for side in shape)
    assert len(found) == 2 * labels.sum() <= rows * columns
    assert (len(found) > 0) == (rows * columns > 1)
    x = {int((column + 0.5) * 13 / columns) for column in range(columns)}
    y = {int((row + 0.5) * 11 / rows) for row in range(rows)}
    assert {x for x, _ in found.tolist()} <= x
    assert {y for _, y in found.tolist()} <= y


@each("value", [0.0, 0.1, -1 / 3, 1e6])
@each("shape", [(6, 6), (7, 5)])
def test_constant_maps_have_no_points(value: float, shape: tuple[int, int]) -> None:
    for dtype in (torch.float64, torch.float16 if value < 1e4 else torch.float32):
        found, labels = points_from_map(torch.full(shape, value, dtype=dtype), (9, 9))
        assert found.shape == (0, 2)
        assert labels.shape == (0,)


def test_scale_offset_and_gradients_do_not_matter() -> None:
    attribution = noise(8, 8).requires_grad_()
    found, _ = points_from_map(attribution, (80, 80))
    assert torch.equal(found, points_from_map(attribution * 1e-5 + 1, (80, 80))[0])


@each(
    ("change", "error", "message"),
    [
        (
            {"threshold": 1.1},
            ValueError,
            "threshold must be from 0 to 1, of the normalized map, got 1.1",
        ),
        ({"threshold": -0.1}, ValueError, r"threshold must be .*, got -0.1"),
        ({"threshold": float("nan")}, ValueError, r"threshold must be .*, got nan"),
        ({"threshold": "high"}, ValueError, r"threshold must be .*, got 'high'"),
        ({"down_sample": 0}, ValueError, "down_sample must be an int of at least 1, got 0"),
        ({"down_sample": 1.5}, ValueError, r"down_sample must be .*, got 1.5"),
        (
            {"size": (0, 5)},
            ValueError,
            r"size must be the image's \(height, width\) in pixels, got \(0, 5\)",
        ),
        ({"attribution": [[1.0]]}, TypeError, r"attribution must be a tensor .*, got list"),
        (
            {"attribution": torch.ones(1, 2, 2)},
            ValueError,
            r"must be one map \(h, w\).* got shape \(1, 2, 2\)",
        ),
        ({"attribution": torch.ones(0, 2)}, ValueError, r"shape \(0, 2\)"),
        ({"attribution": torch.tensor([[1, torch.nan]])}, ValueError, "NaN or infinity"),
        ({"attribution": torch.tensor([[1, torch.inf]])}, ValueError, "NaN or infinity"),
    ],
)
def test_refusals(change: dict[str, Any], error: type[Exception], message: str) -> None:
    given = {"attribution": noise(4, 4), "size": (8, 8)} | change
    with pytest.raises(error, match=message):
        points_from_map(**given)


# --- regions, against plain restatements ---------------------------------------------------------


@each("seed", range(5))
def test_components_are_scipy_s(seed: int) -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    inside = noise(9, 12, seed=seed) > 0.6
    labels, count = ndimage.label(inside.numpy(), structure=np.ones((3, 3)))
    expected = {tuple(np.flatnonzero(labels == i + 1)) for i in range(count)}
    found = _regions.components(inside)
    assert len(found) == count > 2
    assert {tuple(np.flatnonzero(part.numpy())) for part in found} == expected


def test_a_winding_component_is_one() -> None:
    inside = torch.ones(9, 9, dtype=torch.bool)
    inside[1::4, :-1] = inside[3::4, 1:] = False
    assert len(_regions.components(inside)) == 1


def plateaus(values: np.ndarray) -> set[tuple[int, ...]]:
    """Groups of equal cells that touch, beside which nothing is higher: by walking from each."""
    rows, columns = values.shape
    found = set()
    for start in np.ndindex(values.shape):
        seen, waiting, top = {start}, [start], True
        while waiting:
            row, column = waiting.pop()
            for r in range(max(0, row - 1), min(rows, row + 2)):
                for c in range(max(0, column - 1), min(columns, column + 2)):
                    top = top and values[r, c] <= values[start]
                    if values[r, c] == values[start] and (r, c) not in seen:
                        seen.add((r, c))
                        waiting.append((r, c))
        if top:
            found.add(tuple(sorted(r * columns + c for r, c in seen)))
    return found


@each("seed", range(5))
def test_peaks_are_plateaus_with_nothing_higher_beside_them(seed: int) -> None:
    scaled = (noise(8, 11, seed=seed).sigmoid() * 5).round() / 5
    everywhere = torch.ones_like(scaled, dtype=torch.bool)
    found = _regions.peaks(scaled.double(), everywhere)
    assert {tuple(np.flatnonzero(peak.numpy())) for peak, _ in found} == plateaus(scaled.numpy())
    shares = torch.stack([region for _, region in found])
    assert (shares.sum(0) == 1).all()
    assert all(region[peak].all() for peak, region in found)


# --- prompts of hand-made maps -------------------------------------------------------------------


def test_one_prompt(shown: Any) -> None:
    (prompt,) = shown(TWO[None], targets=[0], boxes=True, threshold=0.7)
    found, labels = points_from_map(TWO, (H, W), threshold=0.7)
    assert prompt.text == "dog"
    assert np.array_equal(prompt.points, found.numpy())
    assert np.array_equal(prompt.labels, labels.numpy())
    assert (prompt.points.dtype, prompt.labels.dtype) == (np.float32, np.int64)
    assert prompt.box.tolist() == [10, 10, 99, 49]
    assert prompt.box.dtype == np.float32
    assert prompt.score == 10
    assert prompt.mask is None


def test_components_are_instances(shown: Any) -> None:
    right, left = shown(
        TWO[None], targets=[0], instances="components", boxes=True, masks=True, threshold=0.8
    )
    assert (left.score, right.score) == (9, 10)  # the strongest first
    assert left.box.tolist() == [10, 10, 39, 29]
    assert right.box.tolist() == [60, 30, 99, 49]
    assert on(left) == [[x, y] for x in (15, 25, 35) for y in (15, 25)]
    assert on(right) == [[x, y] for x in (65, 75, 85, 95) for y in (35, 45)]
    assert on(left, 0) == on(right, 0) != []
    # A mask is positive on its own instance alone; a cell is 25.6 entries wide.
    for prompt, own, other in ((left, (51, 64), (102, 200)), (right, (102, 200), (51, 64))):
        assert prompt.mask[own] > 0 > prompt.mask[other]


def test_peaks_are_instances(shown: Any) -> None:
    first, *others = shown(TWO[None], targets=[0], instances="peaks", boxes=True, threshold=0.8)
    assert first.box.tolist() == [60, 30, 79, 49]
    assert on(first) == [[65, 35]]
    assert sorted(on(prompt) for prompt in others) == [[[25, 15]], [[95, 35]]]
    assert [prompt.score for prompt in (first, *others)] == [10, 9, 9]
    boxes = sorted(prompt.box.tolist() for prompt in others)
    assert boxes == [[10, 10, 39, 29], [80, 30, 99, 49]]


def test_a_plateau_is_one_peak(shown: Any) -> None:
    plateau = torch.zeros(6, 10)
    plateau[2, 3:6] = 1
    (prompt,) = shown(plateau[None], targets=[0], instances="peaks")
    assert on(prompt) == [[35, 25], [45, 25], [55, 25]]


def test_negative_points_are_on_no_instance(shown: Any) -> None:
    mostly = torch.ones(6, 10) + noise(6, 10) / 100
    mostly[4:, 8:] = 0
    (one,) = shown(mostly[None], targets=[0])
    assert len(on(one, 0)) == 7  # by the published rule, half of 3 x 5 cells
    (prompt,) = shown(mostly[None], targets=[0], instances="components")
    assert on(prompt, 0) == [[90, 50]]


def test_union(shown: Any) -> None:
    maps = torch.stack([TWO, TWO.flip(1) - 3])
    one, two = shown(maps, boxes=True, masks=True, threshold=0.6)
    (union,) = shown(maps, union=True, boxes=True, masks=True, threshold=0.6)
    assert union.text == "dog+pizza"
    positive = sorted({*map(tuple, on(one)), *map(tuple, on(two))})
    negative = {*map(tuple, on(one, 0)), *map(tuple, on(two, 0))}
    assert negative & set(positive)  # what is to be dropped does occur
    assert [*map(tuple, on(union))] == positive
    assert [*map(tuple, on(union, 0))] == sorted(negative - set(positive))
    assert union.box.tolist() == [0, 10, 99, 49]
    # Each map in its own range: the largest of the two, bilinear in between.
    assert (union.mask >= np.maximum(one.mask, two.mask) - 1e-5).all()
    assert union.score == 10


def test_union_of_one_and_of_a_constant_map(shown: Any) -> None:
    maps = torch.stack([TWO, torch.ones(6, 10)])
    (alone,) = shown(maps, targets=[0])
    for targets, text in (([0], "dog"), ([0, 1], "dog+pizza")):
        (union,) = shown(maps, targets=targets, union=True)
        assert union.text == text
        assert (on(union), on(union, 0)) == (on(alone), on(alone, 0))


def test_constant_maps(shown: Any) -> None:
    maps = torch.full((2, 6, 10), 0.25)
    for options in ({}, {"threshold": 0}, {"union": True}):
        empty = shown(maps, boxes=True, masks=True, **options)[0]
        assert empty.points.shape == (0, 2)
        assert (empty.box, empty.mask, empty.score) == (None, None, 0.25)
        for use in (empty.for_predictor, lambda row=[empty]: sam_inputs([row])):
            with pytest.raises(
                ValueError, match=f"for '{empty.text}' has no points: all cells".replace("+", r"\+")
            ):
                use()
    assert shown(maps, instances="components") == shown(maps, instances="peaks") == []


def test_a_map_of_one_cell_has_no_points_but_four_have_a_box(shown: Any) -> None:
    assert shown(torch.ones(2, 1, 1))[0].points.shape == (0, 2)
    corner = torch.tensor([[1.0, 0], [0, 0]])
    (prompt,) = shown(corner[None], targets=[0], boxes=True)
    assert {name: value.tolist() for name, value in prompt.for_predictor().items()} == {
        "box": [0, 0, 49, 29]
    }
    (prompt,) = shown(corner[None], targets=[0], instances="peaks")
    assert on(prompt) == [[25, 15]]


@each(("height", "width"), [(60, 100), (100, 60), (40, 200), (50, 50)])
def test_masks_lie_where_sam_looks(
    demo: ZeroShotClassifier, monkeypatch: pytest.MonkeyPatch, height: int, width: int
) -> None:
    """Brought to the picture as SAM brings its own masks there, they are the map enlarged."""
    monkeypatch.setattr(
        LayerCLIPSurgery, "attribute_all", lambda self, images, chosen: TWO[None, None]
    )
    picture = Image.new("RGB", (width, height))
    mask = prompts(demo, [picture], [0], masks=True)[0][0].mask
    assert (mask.shape, mask.dtype) == ((256, 256), np.float32)
    square = F.interpolate(torch.from_numpy(mask)[None, None], (1024, 1024), mode="bilinear")
    rows, columns = (round(1024 * side / max(height, width)) for side in (height, width))
    shown = F.interpolate(square[..., :rows, :columns], (height, width), mode="bilinear")[0, 0]
    enlarged = F.interpolate(TWO[None, None], (height, width), mode="bilinear")[0, 0]
    expected = 20 * (enlarged + 1) / 11 - 10  # the map goes from -1 to 10
    assert (shown - expected).abs().max() < 3  # at edges, by enlarging and reducing
    assert (shown - expected).abs().mean() < 0.3
    if height != width:
        assert mask[-1, -1] == -10
    assert (mask[-(-rows // 4) :] == -10).all()
    assert (mask[:, -(-columns // 4) :] == -10).all()


def test_the_narrowest_image_has_a_mask(demo: ZeroShotClassifier) -> None:
    picture = Image.fromarray(Scenes("test", 1)[0].image).resize((1000, 1))
    mask = prompts(demo, [picture], [0], masks=True)[0][0].mask
    assert np.ptp(mask[0]) > 2
    assert (mask[1:] == -10).all()


def test_prompts_are_plain_data(shown: Any) -> None:
    (prompt,) = shown(TWO[None], targets=[0], boxes=True, masks=True)
    found = json.loads(json.dumps(prompt.to_dict()))
    assert list(found) == ["text", "points", "labels", "box", "mask", "score"]
    for name, value in found.items():
        assert np.array_equal(getattr(prompt, name), value)
    (bare,) = shown(TWO[None], targets=[0])
    assert bare.to_dict()["box"] is bare.to_dict()["mask"] is None


def test_without_scipy_the_extra_is_named(shown: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    assert len(shown(TWO[None], targets=[0])) == 1
    with pytest.raises(ImportError, match=r"pip install 'captum_clip_surgery\[sam\]'"):
        shown(TWO[None], targets=[0], instances="peaks")


# --- prompts of images ---------------------------------------------------------------------------


@on_models
def test_maps_are_those_of_surgery(clip: ZeroShotClassifier) -> None:
    images = torch.cat([random_images(clip), random_images(clip, seed=1)])
    maps = LayerCLIPSurgery(clip, num_blocks=1, feature_surgery=None).attribute_all(images, [2, 0])
    found = prompts(
        clip, images, [2, -3], down_sample=1, num_blocks=1, feature_surgery=None, batch_size=3
    )
    assert [[prompt.text for prompt in row] for row in found] == [["a tree", "a dog"]] * 4
    for row, of_image in zip(found, maps, strict=True):
        for prompt, attribution in zip(row, of_image, strict=True):
            expected, _ = points_from_map(attribution, images.shape[-2:], down_sample=1)
            assert np.array_equal(prompt.points, expected.numpy())
            assert prompt.score == pytest.approx(attribution.max().item(), abs=1e-6)


@pytest.mark.parametrize("name", ["NACLIP", "Saliency"])
def test_any_method(demo: ZeroShotClassifier, name: str) -> None:
    image = demo.preprocess(Scenes("test", 1)[0].image, 96)
    maps = METHODS[name](demo).attribute_all(image)[0]
    for prompt, attribution in zip(
        prompts(demo, image, method=METHODS[name])[0], maps, strict=True
    ):
        expected, _ = points_from_map(attribution, (96, 96))
        assert np.array_equal(prompt.points, expected.numpy())


def test_images_have_points_in_their_own_pixels(demo: ZeroShotClassifier) -> None:
    scene = Scenes("test", 1)[0]
    pictures = [Image.fromarray(scene.image).resize(size) for size in ((300, 100), (64, 128))]
    found = prompts(demo, pictures, size=(128, 160), boxes=True)
    maps = LayerCLIPSurgery(demo).attribute_all(demo.preprocess(pictures, (128, 160)))
    for row, of_image, picture in zip(found, maps, pictures, strict=True):
        for prompt, attribution in zip(row, of_image, strict=True):
            expected, _ = points_from_map(attribution, (picture.height, picture.width))
            assert np.array_equal(prompt.points, expected.numpy())
            assert (prompt.box[2:] < picture.size).all()
            assert (prompt.box[:2] <= prompt.box[2:]).all()


def test_no_graph_is_built(demo: ZeroShotClassifier, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    original = LayerCLIPSurgery.attribute_all

    def spy(*given: Any) -> Tensor:
        seen.append(original(*given))
        return seen[-1]

    monkeypatch.setattr(LayerCLIPSurgery, "attribute_all", spy)
    prompts(demo, torch.zeros(3, 3, 64, 64, requires_grad=True), batch_size=2)
    assert [len(maps) for maps in seen] == [2, 1]
    assert not any(maps.requires_grad for maps in seen)


def test_pixels_that_patches_leave_out_have_no_points() -> None:
    """As ViT-SO400M-14-SigLIP-384 leaves out 6; this one the last 4 of 36."""
    vision = _timm(_shrunk("vit_so400m_patch14_siglip_384", img_size=36), "map", "none")
    model = Tiny("ViT-SO400M-14-SigLIP-384", vision | {"image_size": 36}, embed_dim=32).build()
    clip = ZeroShotClassifier(with_preprocessing(model.eval()), ["a dog"], templates=())
    images = random_images(clip)
    assert clip.tower.grid(36, 36) == (4, 4)
    for (prompt,) in prompts(clip, images, threshold=0, down_sample=1, boxes=True, masks=True):
        assert {x for x, _ in prompt.points.tolist()} == {4, 12, 20, 28}
        assert prompt.box.tolist() == [0, 0, 31, 31]
        assert (prompt.mask[228:] == -10).all()


@each(
    ("options", "error", "message"),
    [
        (
            {"instances": "many"},
            ValueError,
            "must be one of 'one', 'components', 'peaks', got 'many'",
        ),
        (
            {"instances": "peaks", "union": True},
            ValueError,
            r"union=True joins .*'peaks' separates",
        ),
        ({"threshold": 2}, ValueError, r"threshold must .*, got 2"),
        ({"down_sample": -1}, ValueError, r"down_sample must .*, got -1"),
        ({"targets": [2]}, IndexError, "target 2 is out of range for 2 texts"),
        ({"targets": []}, ValueError, "targets are empty"),
        ({"size": 64}, ValueError, "size 64 is for images to be resized"),
        ({"num_blocks": 99}, ValueError, r"num_blocks must .*, got 99"),
    ],
)
def test_prompts_refuse(
    demo: ZeroShotClassifier, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        prompts(demo, torch.zeros(1, 3, 64, 64), **options)


def test_points_lie_on_what_is_named(demo: ZeroShotClassifier) -> None:
    inside, outside = [], []
    for scene in Scenes("test", 12, demo.native_size[0]):
        (row,) = prompts(demo.with_texts(scene.nouns), [scene.image])
        for prompt, mask in zip(row, scene.masks, strict=True):
            x, y = prompt.points.astype(int).T
            inside += mask[y, x][prompt.labels == 1].tolist()
            outside += (~mask[y, x])[prompt.labels == 0].tolist()
    assert np.mean(inside) > 0.7
    assert np.mean(outside) > 0.7


# --- shown to SAM --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    scenes = Scenes("test", 4)
    return [
        Image.fromarray(scenes[index].image).resize(size)
        for index, size in ((0, (90, 60)), (3, (70, 110)))
    ]


@functools.cache
def tiny_sam() -> Any:
    """The authors' own model with random weights, narrow, of its real sides."""
    modeling = importlib.import_module("segment_anything.modeling")
    transformer = importlib.import_module("segment_anything.modeling.transformer")
    torch.manual_seed(0)
    width = 16
    return modeling.Sam(
        image_encoder=modeling.ImageEncoderViT(
            depth=1, embed_dim=8, num_heads=1, out_chans=width, window_size=8
        ),
        prompt_encoder=modeling.PromptEncoder(width, (64, 64), (1024, 1024), mask_in_chans=4),
        mask_decoder=modeling.MaskDecoder(
            transformer_dim=width,
            transformer=transformer.TwoWayTransformer(1, width, num_heads=2, mlp_dim=8),
        ),
    ).eval()


def test_the_predictor_of_segment_anything_takes_them(
    demo: ZeroShotClassifier, pictures: list[Image.Image]
) -> None:
    segment_anything = pytest.importorskip("segment_anything")
    predictor = segment_anything.SamPredictor(tiny_sam())
    answers = set()
    for picture in pictures:
        predictor.set_image(np.asarray(picture))
        for boxes, masks in ((False, False), (True, False), (False, True), (True, True)):
            for prompt in prompts(demo, [picture], boxes=boxes, masks=masks)[0]:
                given = prompt.for_predictor()
                assert len(given) == 2 + boxes + masks
                inspect.signature(predictor.predict).bind(**given)
                found, quality, logits = predictor.predict(**given)
                assert found.shape == (3, picture.height, picture.width)
                assert found.dtype == bool
                assert np.isfinite(logits).all()
                answers.add(quality.tobytes())
    assert len(answers) == 2 * 2 * 4  # whatever is given has a part in the answer


@pytest.fixture(scope="module")
def hugging_face(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """transformers' SAM and its processor, narrow and random, saved and loaded."""
    transformers = pytest.importorskip("transformers")
    from tests._helpers.sams import save_sam

    folder = save_sam(tmp_path_factory.mktemp("sam"), std=0.5)
    loaded = transformers.SamModel.from_pretrained(folder).eval()
    return loaded, transformers.SamProcessor.from_pretrained(folder)


def ask(
    hugging_face: tuple[Any, Any],
    pictures: list[Image.Image],
    inputs: dict[str, Any],
    **options: Any,
) -> tuple[Tensor, list[Tensor]]:
    """Low-resolution logits, and masks of each picture's own size."""
    model, processor = hugging_face
    ready = processor(images=pictures, **inputs, return_tensors="pt")
    with torch.no_grad():
        logits = model(**ready, **options).pred_masks
    masks = processor.post_process_masks(
        logits, ready["original_sizes"], ready["reshaped_input_sizes"]
    )
    return logits, masks


@pytest.mark.parametrize("boxes", [False, True])
@pytest.mark.parametrize("targets", [[1], [0, 1]])
def test_transformers_take_them(
    hugging_face: tuple[Any, Any],
    demo: ZeroShotClassifier,
    pictures: list[Image.Image],
    targets: list[int],
    boxes: bool,
) -> None:
    found = prompts(demo, pictures, targets, boxes=boxes, threshold=0.7)
    inputs = sam_inputs(found)
    lengths = {len(prompt.points) for row in found for prompt in row}
    assert {len(p) for row in inputs["input_points"] for p in row} == {max(lengths)}
    assert len(lengths) > 1  # so that some are filled up
    assert ("input_boxes" in inputs) == boxes
    logits, masks = ask(hugging_face, pictures, inputs)
    assert logits.isfinite().all()
    for picture, of_image in zip(pictures, masks, strict=True):
        assert of_image.shape == (len(targets), 3, picture.height, picture.width)
    for index, row in enumerate(found):  # each picture's answer is its own, whatever the batch
        alone = {name: [value[index]] for name, value in inputs.items()}
        answer, _ = ask(hugging_face, [pictures[index]], alone)
        assert torch.allclose(answer[0], logits[index], atol=1e-4 * logits.abs().max().item())
        assert len(row) == len(targets)


def test_boxes_and_masks_have_a_part_in_the_answer(
    hugging_face: tuple[Any, Any], demo: ZeroShotClassifier, pictures: list[Image.Image]
) -> None:
    found = prompts(demo, pictures, [0], boxes=True, masks=True)
    inputs = sam_inputs(found)
    masks = torch.stack([torch.from_numpy(row[0].mask)[None] for row in found])
    with_all, sized = ask(hugging_face, pictures, inputs, input_masks=masks)
    without_masks, _ = ask(hugging_face, pictures, inputs)
    del inputs["input_boxes"]
    without_boxes, _ = ask(hugging_face, pictures, inputs, input_masks=masks)
    assert [tuple(mask.shape[-2:]) for mask in sized] == [(60, 90), (110, 70)]
    for other in (without_masks, without_boxes):
        assert (with_all - other).abs().max() > 1e-3 * with_all.abs().max()


def test_filled_up_points_are_those_of_transformers(hugging_face: tuple[Any, Any]) -> None:
    """Of label -10: their embedding is zero, wherever they are."""
    encoder = hugging_face[0].prompt_encoder
    places = torch.tensor([[[[5.0, 5.0], [0.0, 0.0], [900.0, 3.0]]]])
    labels = torch.tensor([[[1, PADDING, PADDING]]])
    embedded = encoder._embed_points(places, labels, pad=False)[0, 0]
    assert embedded[0].abs().min() > 0
    assert (embedded[1:] == 0).all()


def prompt_of(count: int, box: bool = False) -> Prompt:
    values = np.arange(2 * count, dtype=np.float32).reshape(count, 2)
    corners = np.array([0, 0, 4, 4], dtype=np.float32) if box else None
    return Prompt("a dog", values, np.ones(count, dtype=np.int64), corners, None, 1.0)


def test_inputs_are_filled_up() -> None:
    inputs = sam_inputs([[prompt_of(1), prompt_of(3)], [prompt_of(2, box=True), prompt_of(3)]])
    assert list(inputs) == ["input_points", "input_labels"]  # one has a box, the others none
    assert inputs["input_points"][0][0] == [[0, 1], [0, 0], [0, 0]]
    assert inputs["input_labels"] == [[[1, -10, -10], [1, 1, 1]], [[1, 1, -10], [1, 1, 1]]]


@each(
    ("given", "error", "message"),
    [
        (
            [prompt_of(1)],
            TypeError,
            r"a list per image; for one image call sam_inputs\(\[prompts\]\)",
        ),
        ([], ValueError, r"same number of prompts, at least one, got \[\]"),
        ([[], []], ValueError, r"at least one, got \[0, 0\]"),
        ([[prompt_of(1)], [prompt_of(1)] * 2], ValueError, r"got \[1, 2\]; .* one at a time"),
        ([[prompt_of(1), prompt_of(0, box=True)]], ValueError, "for 'a dog' has no points"),
    ],
)
def test_inputs_refuse(given: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        sam_inputs(given)


def test_unequal_numbers_pass_one_image_at_a_time(
    hugging_face: tuple[Any, Any], demo: ZeroShotClassifier, pictures: list[Image.Image]
) -> None:
    found = prompts(demo, pictures, [0], instances="peaks", threshold=0.5, boxes=True)
    assert len({len(row) for row in found}) == 2
    for picture, row in zip(pictures, found, strict=True):
        _, masks = ask(hugging_face, [picture], sam_inputs([row]))
        assert masks[0].shape == (len(row), 3, picture.height, picture.width)


@pytest.mark.parametrize("cells", [7, 14, 16, 27])
def test_boxes_end_with_the_image_whatever_its_size(cells: int) -> None:
    """In whole numbers: cell k of n covers pixels floor(k W / n) to ceil((k + 1) W / n) - 1."""
    for width in range(1, 400):
        for cell in range(cells):
            inside = torch.zeros(cells, cells, dtype=torch.bool)
            inside[cell, cell] = True
            expected = [cell * width // cells, -(-(cell + 1) * width // cells) - 1]
            found = _prompts.make_box(inside, (float(width), float(width)))
            assert found.tolist() == [expected[0]] * 2 + [expected[1]] * 2, (width, cell)


def test_two_of_ten_thousand_texts_and_one_of_two_alike() -> None:
    clip = ZeroShotClassifier.demo(["dog", "dog"])
    picture = Image.new("RGB", (1, 1))
    assert [prompt.text for prompt in prompts(clip, [picture])[0]] == ["dog", "dog"]
    features = torch.randn(10_000, clip.text_features().shape[1])
    many = ZeroShotClassifier.from_features(clip.model, features)
    images = torch.rand(1, 3, 64, 64)
    (found,) = prompts(many, images, targets=[3, 9_999])
    maps = LayerCLIPSurgery(many).attribute_all(images, [3, 9_999])[0]
    for prompt, attribution in zip(found, maps, strict=True):
        points, labels = points_from_map(attribution, (64, 64))
        assert prompt.points.tolist() == points.tolist()
        assert prompt.labels.tolist() == labels.tolist()


def test_masks_of_thin_strips_keep_the_highest_patch():
    scaled = torch.zeros(14, 14, dtype=torch.float64)
    scaled[2, 5] = 1
    mask = _mask(scaled, (10, 2560), (10, 2560))
    assert mask.max() > 0

"""Several path configurations in one pass of a tower: each as if it had the tower to itself."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from captum_clip_surgery import ZeroShotClassifier, functional
from captum_clip_surgery.attr import (
    METHODS,
    CLIPSurgery,
    LayerCLIPSimilarity,
    LayerCLIPSurgery,
    LayerFeatureCLIPSurgery,
    attribute_many,
)
from captum_clip_surgery.attr._dense import (
    LayerGEM,
    LayerSCLIP,
    correlative_attention,
    qq_attention,
)
from captum_clip_surgery.attr._engine import Explain, attribute_each, explain_of
from captum_clip_surgery.functional import normalized
from captum_clip_surgery.models.image import AttentionInputs, PathConfig
from captum_clip_surgery.models.image._surgery import vv_attention
from tests._helpers.cases import each
from tests._helpers.tiny import TOWERS, random_images, relative_error, tiny_model
from tests._helpers.tower_kinds import TINY

TOLERANCE = 1e-5
_NAMES = "CLIP CLIPSurgery ArchitectureSurgery FeatureSurgery MaskCLIP SCLIP ClearCLIP NACLIP GEM"
DENSE = _NAMES.split()


def keys_only(inputs: AttentionInputs) -> torch.Tensor:
    return functional.vv_attention(inputs.k)


def path_configs_of(blocks: int) -> dict[str, PathConfig]:
    """Of all kinds; deep ones span every block there is."""
    return {
        "own": PathConfig(0, vv_attention),
        "last": PathConfig(1, vv_attention, values_only=True),
        "last, all queries": PathConfig(1, correlative_attention),
        "deep": PathConfig(blocks, vv_attention, values_only=True),
        "deep with mlp": PathConfig(blocks, keys_only, mlp=True),
        "alone": PathConfig(1, qq_attention, residual=False),
        "deep alone with mlp": PathConfig(min(2, blocks), vv_attention, residual=False, mlp=True),
    }


TOGETHER = [
    ["own"],
    ["last"],
    ["deep", "last"],  # the last block makes the pooled tokens' queries alone
    ["last", "last, all queries"],  # it makes all, for one of them
    ["deep", "alone", "deep with mlp"],
    ["deep with mlp", "own", "last"],  # the model's own tokens are needed to the end
    ["deep", "deep"],
    list(path_configs_of(1)),
]


@each("names", TOGETHER)
@pytest.mark.parametrize("kind", TOWERS)
def test_each_path_as_alone(kind: str, names: list[str]) -> None:
    clip = ZeroShotClassifier(tiny_model(kind), ["a dog"], templates=[])
    tower, images = clip.tower, random_images(clip)
    known = path_configs_of(len(tower.blocks))
    path_configs = [known[name] for name in names]
    with torch.no_grad():
        together = tower.paths(images, path_configs)
        embedding = normalized(clip.model.encode_image(images))  # CoCa's is normalised already
        for name, path_config, found in zip(names, path_configs, together, strict=True):
            alone = tower.dual_path(images, path_config)
            assert found.grid == alone.grid == tower.grid(*images.shape[-2:])
            assert relative_error(found.patches, alone.patches) < TOLERANCE, name
            assert relative_error(found.pooled, alone.pooled) < TOLERANCE, name
            assert relative_error(normalized(found.pooled), embedding) < TOLERANCE, name


def test_paths_differ() -> None:
    """Or the test above would not tell them apart."""
    clip = ZeroShotClassifier(tiny_model("vit"), ["a dog"], templates=[])
    with torch.no_grad():
        found = clip.tower.paths(random_images(clip), list(path_configs_of(3).values()))
    for place, one in enumerate(found):
        for other in found[:place]:
            assert relative_error(one.patches, other.patches) > 0.01


@pytest.fixture
def clip() -> ZeroShotClassifier:
    texts = ["a dog", "a cat", "a tree"]
    return ZeroShotClassifier(tiny_model("vit"), texts, ["a car"], templates=["a photo of {}."])


class Calls:
    """How often a module is called."""

    def __init__(self, module: nn.Module) -> None:
        self.count = 0
        self._handle = module.register_forward_hook(self._called)

    def _called(self, *_: object) -> None:
        self.count += 1

    def __enter__(self) -> Calls:
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()


def dense(clip: ZeroShotClassifier) -> Iterator[tuple[str, LayerCLIPSurgery]]:
    for name in DENSE:
        yield name, METHODS[name](clip)
    yield (
        "shallow",
        LayerCLIPSurgery(clip, num_blocks=1, feature_surgery="release", inverse_temperature=3.0),
    )
    yield "image", CLIPSurgery(clip, num_blocks=2)


@pytest.mark.parametrize("kind", [kind for kind, tiny in TINY.items() if tiny.everywhere])
@each("targets", [None, [2, 0], [1]])
def test_maps_as_of_each_method(kind: str, targets: list[int] | None) -> None:
    model = tiny_model(kind)
    clip = ZeroShotClassifier(model, ["a dog", "a cat", "a tree"], ["a car"], templates=[])
    if kind == "resnet":
        methods = {"CLIP": LayerCLIPSimilarity(clip), "surgery": LayerCLIPSurgery(clip)}
    else:
        methods = dict(dense(clip))
    images = random_images(clip)
    with torch.no_grad():
        with Calls(clip.model.visual.get_submodule(TINY[kind].parts.entry)) as calls:
            together = attribute_many(methods, images, targets)
        assert calls.count == 1
        assert list(together) == list(methods)
        for name, method in methods.items():
            alone = method.attribute_all(images, targets)
            assert together[name].shape == alone.shape, name
            assert relative_error(together[name], alone) < TOLERANCE, name


def test_types_of_images_are_kept(clip: ZeroShotClassifier) -> None:
    images = random_images(clip).half()
    with torch.no_grad():
        (found,) = attribute_many({"a": LayerCLIPSurgery(clip)}, images).values()
        assert found.dtype == torch.half
        assert torch.equal(found, LayerCLIPSurgery(clip).attribute_all(images))


def test_refused(clip: ZeroShotClassifier) -> None:
    images = random_images(clip)
    other = ZeroShotClassifier(copy.deepcopy(clip.model), ["a car"])
    methods = {"a": LayerCLIPSurgery(clip), "b": LayerGEM(other)}
    with pytest.raises(ValueError, match="belong to different models"):
        attribute_many(methods, images)
    with pytest.raises(IndexError, match="3"):
        attribute_many({"a": LayerCLIPSurgery(clip)}, images, [3])
    with pytest.raises(ValueError, match="NaN"):
        attribute_many({"a": LayerCLIPSurgery(clip)}, images * torch.nan)


# --- which methods share a pass ------------------------------------------------------------------


class Doubled(LayerFeatureCLIPSurgery):
    """One's own method made of one of the package's, the way that its docs show."""

    def scores(self, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return 2 * super().scores(images, targets)


class Halved(LayerFeatureCLIPSurgery):
    def attribute_all(self, *arguments: object, **options: object) -> torch.Tensor:
        return super().attribute_all(*arguments, **options) / 2  # type: ignore[arg-type]


def among_distractors(clip: ZeroShotClassifier) -> Explain:
    return LayerCLIPSurgery(clip.with_texts(clip.texts, ["a house"])).attribute_all


def test_one_pass_for_all_that_can_share_it(clip: ZeroShotClassifier) -> None:
    methods = {name: METHODS[name] for name in [*DENSE, "LeGrad"]}
    methods |= {
        "doubled": lambda clip: Doubled(clip).attribute_all,
        "halved": lambda clip: Halved(clip).attribute_all,
        "among distractors": among_distractors,
    }
    images = random_images(clip)
    with Calls(clip.model.visual.conv1) as calls, torch.no_grad():
        found = attribute_many({name: make(clip) for name, make in methods.items()}, images)
    assert calls.count == 2  # one for all paths, other texts included, and LeGrad's
    assert list(found) == list(methods)
    for name, method in methods.items():
        expected = explain_of(method(clip))(images).detach()
        assert relative_error(found[name], expected) < TOLERANCE, name


def test_the_last_block_makes_the_queries_that_are_read(
    clip: ZeroShotClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The class token's, unless a path attends by queries itself."""
    asked: list[int | None] = []
    inputs = type(clip.tower).attention_inputs

    def record(self, index, x, grid_spec, queries=None):
        asked.append(queries)
        return inputs(self, index, x, grid_spec, queries)

    monkeypatch.setattr(type(clip.tower), "attention_inputs", record)
    images = random_images(clip)
    LayerCLIPSurgery(clip, num_blocks=2).attribute_all(images)
    assert asked == [None, 1]
    asked.clear()
    LayerSCLIP(clip).attribute_all(images)
    assert asked == [None]


def test_each_image_is_asked_for_its_own_texts(clip: ZeroShotClassifier) -> None:
    methods = {name: METHODS[name] for name in ("LeGrad", "CLIPSurgery", "CLIP")}
    images, targets = random_images(clip, 3), [[2], [], [2, 0]]
    explainers = {name: method(clip) for name, method in methods.items()}
    with Calls(clip.model.visual.conv1) as calls:
        found = attribute_each(explainers, images, targets)
    assert calls.count == 1 + 2  # one for the dense, one for each image that LeGrad is asked about
    assert found[1] == {}
    for index in (0, 2):
        assert list(found[index]) == list(methods)
        for name, method in methods.items():
            explain = explain_of(method(clip))
            alone = explain(images[index : index + 1], targets[index])[0]
            assert relative_error(found[index][name], alone) < TOLERANCE
    assert attribute_each(explainers, images, [[], [], []]) == [{}, {}, {}]

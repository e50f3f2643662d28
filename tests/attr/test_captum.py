"""Captum's contract for the methods of `method_table`: targets, inputs, shapes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import GradientAttribution, LayerAttribution
from torch import Tensor

from captum_clip_surgery import (
    CLIPSurgery,
    FeatureCLIPSurgery,
    LayerCLIPSurgery,
    LayerFeatureCLIPSurgery,
    functional,
)
from captum_clip_surgery.attr._base import PatchAttribution
from captum_clip_surgery.models.image import AttentionInputs, PathConfig
from tests._helpers.cases import each
from tests._helpers.method_table import (
    BASES,
    EVERY,
    METHODS,
    ONCE,
    Bench,
    Case,
    Method,
    assert_close,
    set_up,
    sized_images,
    tiny_classifier,
)
from tests._helpers.tiny import FAMILIES, TOWERS, random_images, relative_error

GRIDS = ((4, 4), (2, 2), (3, 5), (5, 2))  # (rows, columns); the first two are native for some


@pytest.fixture(params=BASES)
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    """What a base class decides for all of its methods."""
    yield from set_up(request.param)


@pytest.fixture(params=ONCE)
def once_bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    """What every method decides itself, whatever the tower."""
    yield from set_up(request.param)


@pytest.fixture(params=EVERY)
def every_bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    """What every method decides itself, and may differ between the towers it reads."""
    yield from set_up(request.param)


@pytest.mark.parametrize("tower", TOWERS)
def test_attention_matters(tower: str) -> None:
    """Of each block, or its queries and keys could be anything in the other tests."""
    clip = tiny_classifier(tower)
    images = random_images(clip, 3)

    def patches(num_blocks: int, attention: Callable[[AttentionInputs], Tensor]) -> Tensor:
        path_config = PathConfig(num_blocks, attention, mlp=True)
        return functional.normalized(clip.tower.dual_path(images, path_config).patches.detach())

    for num_blocks in range(1, len(clip.tower.blocks) + 1):
        own = patches(num_blocks, AttentionInputs.attend)
        mean = patches(num_blocks, lambda heads: heads.v.mean(2, keepdim=True).expand_as(heads.v))
        assert relative_error(mean, own) > 0.03
        assert relative_error(patches(num_blocks, lambda heads: heads.v), own) > 0.03


# --- target -------------------------------------------------------------------------------------

TARGETS: dict[str, tuple[Any, list[int]]] = {
    "int": (1, [1, 1, 1]),
    "negative int": (-1, [2, 2, 2]),
    "lowest int": (-3, [0, 0, 0]),
    "numpy int": (np.int64(2), [2, 2, 2]),
    "0-d tensor": (torch.tensor(2), [2, 2, 2]),
    "0-d tensor, negative": (torch.tensor(-2), [1, 1, 1]),
    "tensor of one": (torch.tensor([1]), [1, 1, 1]),
    "tensor": (torch.tensor([2, 0, 1]), [2, 0, 1]),
    "tensor, int32 and negative": (torch.tensor([-1, 0, -2], dtype=torch.int32), [2, 0, 1]),
    "list": ([2, 0, 1], [2, 0, 1]),
    "list, negative and numpy": ([-3, np.int32(2), 1], [0, 2, 1]),
}


def test_target(bench: Bench) -> None:
    every = bench.attribution.attribute_all(bench.images)
    by_text = {"index of a text": (bench.clip.index("a cat"), [1, 1, 1])}
    for kind, (target, texts) in (TARGETS | by_text).items():
        found = bench.attribution.attribute(bench.images, target=target)
        assert_close(found, bench.shaped(every[range(3), texts][:, None]), what=kind)


def test_target_none_with_one_text(bench: Bench) -> None:
    one = bench.clip.with_texts(["a cat"], distractors=["a car", "a dog"])
    attribution = bench.case.build(one)
    expected = bench.shaped(attribution.attribute_all(bench.images))
    assert_close(attribution.attribute(bench.images), expected)
    assert_close(attribution.attribute(bench.images, None), expected)


REFUSED: dict[str, tuple[Any, type[Exception], str]] = {
    "tuple": ((1,), TypeError, "target is a tuple"),
    "tuple of batch length": ((0, 1, 2), TypeError, "target is a tuple"),
    "float": (1.0, TypeError, "target is a float"),
    "numpy float": (np.float64(1), TypeError, "target is a float64"),
    "bool": (True, TypeError, "target is a bool"),
    "numpy bool": (np.bool_(True), TypeError, "target is a bool"),
    "str": ("a dog", TypeError, re.escape("clip.index('a dog')")),
    "float tensor": (torch.tensor(1.0), TypeError, "0-d tensor of torch.float32"),
    "bool tensor": (torch.tensor([True] * 3), TypeError, "1-d tensor of torch.bool"),
    "bool tensor of one": (torch.tensor(True), TypeError, "0-d tensor of torch.bool"),
    "2-d tensor": (torch.tensor([[0], [1], [2]]), TypeError, "2-d tensor of torch.int64"),
    "2-d tensor of one": (torch.tensor([[0]]), TypeError, "2-d tensor of torch.int64"),
    "list too short": ([0, 1], ValueError, "2 entries for 3 images"),
    "list of one": ([0], ValueError, "1 entries for 3 images"),
    "empty list": ([], ValueError, "0 entries for 3 images"),
    "tensor too long": (torch.tensor([0, 1, 2, 0]), ValueError, "4 entries for 3 images"),
    "list with a float": ([0, 1.0, 2], TypeError, r"target 1\.0 is a float"),
    "list with a bool": ([0, True, 2], TypeError, "target True is a bool"),
    "list with a text": (["a dog"] * 3, TypeError, "target 'a dog' is a str"),
    "list of lists": ([[0], [1], [2]], TypeError, "is a list, expected an int"),
    # There is a distractor at 3, which competes but is no target.
    "past the end": (3, IndexError, "target 3 is out of range for 3 texts"),
    "past the beginning": (-4, IndexError, "target -4 is out of range for 3 texts"),
    "tensor past the end": (torch.tensor(3), IndexError, "target 3 is out of range for 3 texts"),
    "list past the end": ([0, 5, 1], IndexError, "target 5 is out of range for 3 texts"),
    "tensor past the beginning": (
        torch.tensor([0, 1, -4]),
        IndexError,
        "target -4 is out of range",
    ),
    "None": (None, ValueError, "there are 3 texts"),
}


def test_target_refused(bench: Bench) -> None:
    for target, error, message in REFUSED.values():
        with pytest.raises(error, match=message):
            bench.attribution.attribute(bench.images, target)


# Every ndarray has __index__, and those of no dimension even turn into an int.
ARRAYS: dict[str, Any] = {
    "array": np.array([0, 1, 2]),
    "array of one": np.array([1]),
    "float array": np.array(1.7),
    "list with a float array": [0, np.array(1.7), 2],
}


@each("kind", ARRAYS)
def test_target_array_refused(kind: str) -> None:
    clip = tiny_classifier("vit")
    with pytest.raises(TypeError, match="ndarray"):
        LayerCLIPSurgery(clip).attribute(random_images(clip, 3), ARRAYS[kind])


def test_attribute_all_of_some_texts(once_bench: Bench) -> None:
    attribution, images = once_bench.attribution, once_bench.images
    every = attribution.attribute_all(images)
    assert every.shape[:2] == (3, 3)
    for targets in ([2], [2, 0], (0, -1), [1, 1, 1, 0], [np.int64(1)], range(2)):
        found = attribution.attribute_all(images, targets=targets)
        assert_close(found, every[:, list(targets)], what=str(targets))


def test_attribute_all_refuses(bench: Bench) -> None:
    with pytest.raises(ValueError, match="targets are empty"):
        bench.attribution.attribute_all(bench.images, [])
    with pytest.raises(IndexError, match="target 3 is out of range for 3 texts"):
        bench.attribution.attribute_all(bench.images, [0, 3])
    with pytest.raises(TypeError, match="target True is a bool"):
        bench.attribution.attribute_all(bench.images, [0, True])
    with pytest.raises(TypeError, match=r"target 1\.0 is a float"):
        bench.attribution.attribute_all(bench.images, [1.0])


def test_attribute_all_refuses_an_int() -> None:
    clip = tiny_classifier("vit")
    with pytest.raises(TypeError, match="target"):
        LayerCLIPSurgery(clip).attribute_all(random_images(clip), 1)


# --- inputs and shapes --------------------------------------------------------------------------


def test_tuple_in_tuple_out(bench: Bench) -> None:
    plain = bench.attribution.attribute(bench.images, target=[1, 2, 0])
    assert isinstance(plain, Tensor)
    found = bench.attribution.attribute((bench.images,), target=[1, 2, 0])
    assert isinstance(found, tuple)
    assert len(found) == 1
    assert torch.equal(found[0], plain)


def test_other_inputs_are_refused(bench: Bench) -> None:
    with pytest.raises(ValueError, match="tuple of 2"):
        bench.attribution.attribute((bench.images, bench.images), target=0)
    with pytest.raises(TypeError, match="images must be a tensor, got list"):
        bench.attribution.attribute([bench.images], target=0)


def test_additional_forward_args_are_refused(bench: Bench) -> None:
    for arguments in (torch.zeros(3), (1,), "a dog", 0):
        with pytest.raises(TypeError, match="additional_forward_args must be None"):
            bench.attribution.attribute(bench.images, 0, additional_forward_args=arguments)
    allowed = bench.attribution.attribute(bench.images, 0, additional_forward_args=None)
    assert torch.equal(allowed, bench.attribution.attribute(bench.images, 0))


@each("grid", GRIDS)
def test_shapes(bench: Bench, grid: tuple[int, int]) -> None:
    images = sized_images(bench.clip, grid)
    every = bench.attribution.attribute_all(images)
    one = bench.attribution.attribute(images, target=1)
    assert one.dtype == images.dtype
    assert one.is_contiguous()
    if bench.case.on_grid:
        assert every.shape == (3, 3, *grid)
        assert_close(one, every[:, 1:2])
    else:
        assert every.shape == (3, 3, *images.shape[-2:])
        assert one.shape == images.shape
        assert_close(one.sum(1), every[:, 1])
        assert torch.equal(one[:, :1].expand(-1, 3, -1, -1), one)


@each("case", [parameter.values[0] for parameter in ONCE])
def test_image_map_is_the_grid_map_enlarged(case: Case) -> None:
    method, clip = case.method, tiny_classifier(case.tower)
    images = sized_images(clip, (3, 5))
    size = (images.shape[-2], images.shape[-1])
    small = method.grid(clip, **method.options).attribute_all(images)
    large = method.image(clip, **method.options).attribute_all(images)
    assert_close(large, LayerAttribution.interpolate(small, size, "bilinear"))


def test_batch_equals_one_by_one(every_bench: Bench) -> None:
    """Of maps that differ between texts, images and places, or it would show nothing."""
    attribution, images, texts = every_bench.attribution, every_bench.images, [2, 0, 1]
    together = attribution.attribute_all(images)
    maps = together.detach().flatten(2)
    assert relative_error(maps.roll(1, 0), maps) > 0.01
    assert (relative_error(maps.roll(1, 1), maps) > 0.01) == every_bench.case.method.reads_text
    assert maps.std(-1).mean() > 0.03 * maps.abs().max()
    every = [attribution.attribute_all(image[None]) for image in images]
    assert_close(together, torch.cat(every))
    pairs = zip(images, texts, strict=True)
    single = [attribution.attribute(image[None], text) for image, text in pairs]
    assert_close(attribution.attribute(images, texts), torch.cat(single))


# --- what kind of thing it is -------------------------------------------------------------------


@each("method", METHODS)
def test_class(method: Method) -> None:
    for attribution in (method.image, method.grid):
        # NoiseTunnel would switch on gradients of the images it is given.
        assert not issubclass(attribution, GradientAttribution)
    assert method.grid.get_name() == "Layer " + method.image.get_name()
    # Captum's own rule would spell the acronyms: "C L I P Surgery".
    assert not re.search(r"\b[A-Z] [A-Z] ", method.image.get_name())
    assert issubclass(method.grid, LayerAttribution)
    assert not issubclass(method.image, LayerAttribution)


def test_names() -> None:
    assert CLIPSurgery.get_name() == "CLIP Surgery"
    assert LayerCLIPSurgery.get_name() == "Layer CLIP Surgery"


# --- feature surgery with few texts -------------------------------------------------------------

SURGERIES = (CLIPSurgery, LayerCLIPSurgery, FeatureCLIPSurgery, LayerFeatureCLIPSurgery)


@pytest.mark.parametrize("tower", FAMILIES)
@each("surgery", SURGERIES)
def test_two_texts(surgery: type[PatchAttribution], tower: str) -> None:
    clip = tiny_classifier(tower).with_texts(["a dog", "a cat"])
    images = random_images(clip, 3)

    def two(form: str | None) -> tuple[Tensor, Tensor]:
        attribution = surgery(clip, feature_surgery=form)
        return attribution.attribute(images, 0), attribution.attribute(images, 1)

    dog, cat = two("release")
    assert_close(cat, -dog)
    dog, cat = two("auto")
    assert relative_error(cat.detach(), -dog.detach()) > 0.1
    assert relative_error(cat.detach(), dog.detach()) > 0.1
    assert torch.equal(surgery(clip).attribute(images, 1), cat)


@pytest.mark.parametrize("tower", FAMILIES)
@each(("count", "form"), [(7, "empty"), (8, "release")])
@each("surgery", SURGERIES)
def test_auto_counts_texts_and_distractors(
    surgery: type[PatchAttribution], tower: str, count: int, form: str
) -> None:
    distractors = ["a car", "a bus", "a bird", "a boat", "a chair", "a cow"][: count - 2]
    clip = tiny_classifier(tower).with_texts(["a dog", "a cat"], distractors)
    images = random_images(clip, 2)
    maps = {
        name: surgery(clip, feature_surgery=name).attribute_all(images).detach()
        for name in ("auto", "empty", "release")
    }
    (other,) = {"empty", "release"} - {form}
    assert torch.equal(maps["auto"], maps[form])
    assert relative_error(maps["auto"], maps[other]) > 0.1

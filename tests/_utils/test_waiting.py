"""Explaining waits for the device once, to hear whether pixels and maps are finite, or not at all.

What waits on a GPU is an operator that hands a number to Python, whose result's shape depends on
the data, or that copies from the CPU. Operators are the same on every device, so they are counted
here on the CPU.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from captum_clip_surgery import CLIPSurgery, LayerCLIPSurgery, ZeroShotClassifier
from tests._helpers.cases import each
from tests._helpers.tiny import random_images, tiny_model
from tests._helpers.tower_kinds import TINY

WAITING = {
    "aten::_local_scalar_dense",  # item(), bool(), int()
    "aten::nonzero",
    "aten::masked_select",
    "aten::lift_fresh",  # torch.tensor of Python numbers
    "aten::_unique2",
    "aten::repeat_interleave.Tensor",
}


class Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.name() in WAITING:
            self.waits.append(func.name())
        return func(*args, **(kwargs or {}))


def recorded(call: Any, *arguments: Any, **options: Any) -> list[str]:
    with Recorder() as recorder, torch.no_grad():
        call(*arguments, **options)
    return recorder.waits


def test_the_recorder_sees_what_waits():
    assert recorded(lambda: bool(torch.ones(2).all())) == ["aten::_local_scalar_dense"]
    assert recorded(lambda: torch.tensor([1])) == ["aten::lift_fresh"]
    assert recorded(lambda: torch.ones(2).nonzero()) == ["aten::nonzero"]


@pytest.mark.slow
@each("kind", TINY)
def test_all_texts_wait_once(kind):
    """Variants and shapes come after the tower and are tried on one."""
    clip = ZeroShotClassifier(tiny_model(kind), ["dog", "cat"], ["tree"], templates=["a {}."])
    images = random_images(clip, 2)
    methods = (LayerCLIPSurgery, CLIPSurgery) if kind == "vit" else (LayerCLIPSurgery,)
    variants = ("release", "paper", "empty", None) if kind == "vit" else ("release",)
    for method, variant in itertools.product(methods, variants):
        surgery = method(clip, feature_surgery=variant)
        surgery.attribute_all(images)  # remembers the text features
        assert recorded(surgery.attribute_all, images) == ["aten::_local_scalar_dense"]
        assert recorded(surgery.attribute_all, images, check_finite=False) == []


def test_pixels_that_are_not_searched(vit_images: tuple[ZeroShotClassifier, torch.Tensor]):
    clip, images = vit_images
    surgery = LayerCLIPSurgery(clip)
    expected = surgery.attribute_all(images)
    assert torch.equal(surgery.attribute_all(images, check_finite=False), expected)
    images[1, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinite pixels"):
        surgery.attribute_all(images)
    found = surgery.attribute_all(images, check_finite=False)
    assert torch.equal(found[0], expected[0])
    assert found[1].isnan().all()


@pytest.fixture
def vit_images() -> tuple[ZeroShotClassifier, torch.Tensor]:
    clip = ZeroShotClassifier(tiny_model("vit"), ["dog", "cat"], templates=["a {}."])
    return clip, random_images(clip, 2)

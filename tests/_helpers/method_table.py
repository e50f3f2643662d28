"""The methods on which Captum's contract is tested, and the classifiers they explain.

A new method is one more line in `METHODS`. What a base class decides for all methods is tested on
`BASES`, what each method decides itself on `EVERY`, and Captum's tools on `REPRESENTATIVE`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

import captum_clip_surgery
from captum_clip_surgery import (
    CLIPSimilarity,
    CLIPSurgery,
    FeatureCLIPSurgery,
    LayerCLIPSimilarity,
    LayerCLIPSurgery,
    LayerFeatureCLIPSurgery,
    ZeroShotClassifier,
)
from captum_clip_surgery.attr._base import PatchAttribution
from tests._helpers.tiny import marks_of, random_images, relative_error, tiny_model


@dataclass(frozen=True)
class Method:
    """A method in its image-shaped and its grid-shaped form, and how it is constructed."""

    image: type[PatchAttribution]
    grid: type[PatchAttribution]
    options: dict[str, Any] = field(default_factory=dict)
    towers: tuple[str, ...] = ("vit", "resnet", "siglip", "eva02")
    reads_text: bool = True


METHODS: tuple[Method, ...] = (
    Method(CLIPSurgery, LayerCLIPSurgery),
    Method(CLIPSurgery, LayerCLIPSurgery, {"num_blocks": 1, "feature_surgery": "release"}),
    Method(FeatureCLIPSurgery, LayerFeatureCLIPSurgery),
    Method(FeatureCLIPSurgery, LayerFeatureCLIPSurgery, {"feature_surgery": "paper"}),
    Method(CLIPSimilarity, LayerCLIPSimilarity),
)


def peer(name: str, *towers: str, reads_text: bool = True, **options: Any) -> Method:
    """A method to compare with, on towers that differ in what it reads."""
    image, grid = (getattr(captum_clip_surgery, prefix + name) for prefix in ("", "Layer"))
    return Method(image, grid, options, towers, reads_text)


METHODS += (
    peer("MaskCLIP", "vit", "resnet", "siglip"),
    peer("SCLIP", "vit", "resnet", "eva02"),
    peer("ClearCLIP", "vit", "pe"),
    peer("NACLIP", "vit", "resnet", "siglip"),
    peer("GEM", "vit", "eva02"),
    peer("CLIPtrase", "vit"),
    peer("ResCLIP", "vit"),
    peer("SCCLIP", "siglip"),
    peer("SFP", "vit"),
    peer("DirectEffect", "vit", "resnet", "siglip", "clipa", "eva02-e", "coca"),
    peer("DirectEffect", "vit", blocks=(-1, 0), heads=(1,), feature_surgery="release"),
    peer("LeGrad", "vit", "siglip", "coca"),
    peer("AttentionRelevance", "vit", "eva02"),
    peer("AttentionRelevance", "vit", "mobileclip", blocks="all"),
    peer("GradECLIP", "vit", "eva02-e"),
    peer("GradECLIP", "vit", "eva02", per_head=True),
    peer("AttentionRollout", "vit", "eva02", reads_text=False),
    peer("RawAttention", "vit", "resnet", reads_text=False),
    peer("RawAttention", "mobileclip", reads_text=False, block=0, head=1),
    # In the ResNet, channels and places nearly cancel; test_peers.py holds it to Captum there.
    peer("TokenGradCam", "vit", "siglip", "pe"),
)


@dataclass(frozen=True)
class Case:
    """One form of a method on one tower."""

    method: Method
    on_grid: bool
    tower: str

    @property
    def attribution(self) -> type[PatchAttribution]:
        return self.method.grid if self.on_grid else self.method.image

    def build(self, clip: ZeroShotClassifier) -> PatchAttribution:
        return self.attribution(clip, **self.method.options)

    def __str__(self) -> str:
        options = [str(value) for value in self.method.options.values()]
        return "-".join([self.attribution.__name__, *options, self.tower])


def find_method(name: str, **options: Any) -> Method:
    """The entry of `METHODS` for an image-shaped class and its options."""
    return next(m for m in METHODS if m.image.__name__ == name and m.options == options)


def as_parameters(cases: Iterable[Case]) -> list[Any]:
    return [pytest.param(case, marks=marks_of(case.tower), id=str(case)) for case in cases]


#: One method per base class (a second path; a pass of its own), in both shapes.
BASES = as_parameters(
    Case(find_method(name), on_grid, "vit")
    for name in ("CLIPSurgery", "AttentionRelevance")
    for on_grid in (True, False)
)
#: Every method on every tower it is listed with; the shape is the base class's.
EVERY = as_parameters(Case(method, True, tower) for method in METHODS for tower in method.towers)
#: Every method once.
ONCE = as_parameters(Case(method, True, method.towers[0]) for method in METHODS)
#: Seven methods of different makes for what Captum's tools do with any of them.
REPRESENTATIVE = as_parameters(
    [
        Case(find_method("CLIPSurgery"), False, "vit"),
        Case(find_method("CLIPSurgery"), True, "resnet"),
        Case(find_method("SCLIP"), True, "vit"),
        Case(find_method("DirectEffect"), False, "vit"),
        Case(find_method("LeGrad"), False, "siglip"),
        Case(find_method("GradECLIP"), True, "vit"),
        Case(find_method("TokenGradCam"), False, "vit"),
    ]
)


@functools.cache
def _shared_classifier(tower: str) -> ZeroShotClassifier:
    model = tiny_model(tower)
    return ZeroShotClassifier(
        model, ["a dog", "a cat", "a tree"], distractors=["a car"], templates=["a photo of {}."]
    )


def tiny_classifier(tower: str) -> ZeroShotClassifier:
    """A new classifier, with no token grids yet, on a tiny model that all tests share."""
    shared = _shared_classifier(tower)
    return shared.with_texts(shared.texts, shared.distractors)


def assert_untouched(clip: ZeroShotClassifier) -> None:
    """No hooks, gradients or modes left behind."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    for name, module in clip.named_modules():
        left = [kind for kind in kinds if getattr(module, kind)]
        assert not left, f"{name} keeps {left}"
    for name, parameter in clip.named_parameters():
        assert parameter.grad is None, f"{name} has a gradient"
        assert parameter.requires_grad, f"{name} lost requires_grad"
    assert not any(module.training for module in clip.model.modules())


def sized_images(
    clip: ZeroShotClassifier, grid: tuple[int, int] | None = None, count: int = 3
) -> Tensor:
    """Random images of native size, or that make a grid of so many (rows, columns)."""
    rows, columns = clip.tower.patch_size
    size = clip.native_size if grid is None else (grid[0] * rows, grid[1] * columns)
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, *size, generator=generator)


def assert_close(
    actual: Tensor, expected: Tensor, tolerance: float = 1e-5, what: str = "result"
) -> None:
    assert actual.shape == expected.shape, what
    error = relative_error(actual.detach(), expected.detach())
    assert error < tolerance, f"{what} is off by {error:.1e}"


@dataclass(frozen=True)
class Bench:
    """A case set up: its attribution, the classifier explained, three images of native size."""

    case: Case
    clip: ZeroShotClassifier
    attribution: PatchAttribution
    images: Tensor

    def shaped(self, maps: Tensor) -> Tensor:
        """Maps (N, 1, ., .) of `attribute_all` in the shape that `attribute` promises."""
        return maps if self.case.on_grid else torch.cat([maps / 3] * 3, dim=1)


def set_up(case: Case) -> Iterator[Bench]:
    """What a fixture yields; afterwards, whatever was done, the model is as it was."""
    clip = tiny_classifier(case.tower)
    images = random_images(clip, 3)
    before = images.clone()
    yield Bench(case, clip, case.build(clip), images)
    assert_untouched(clip)
    assert torch.equal(images, before)
    assert not images.requires_grad

"""One pass whatever the number of texts, and nothing larger than the scores themselves.

Feature surgery is defined on the product of every token with every text along the joint space's
width, 2 GiB at 1,000 texts and 512 pixels; here it never exists.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function

from captum_clip_surgery import CLIPSurgery, LayerCLIPSurgery, ZeroShotClassifier, functional
from tests._helpers.cases import each
from tests._helpers.tiny import TOWERS, TWO_TOWERS, relative_error, tiny_model
from tests._helpers.tower_kinds import TINY, Tiny, _shrunk, _timm

VARIANTS = ("release", "paper", "empty", None)
TOWER_ENDS = "the image tower ends"
each_form = each("form", VARIANTS)


# --- what is alive -------------------------------------------------------------------------------


def allocations(function: Callable[[], object], folder: Path) -> list[int]:
    """Bytes that a function takes (positive) and gives back (negative), in order of time.

    As the profiler sees them in the allocator, so that what an operator takes for itself counts
    too. Those from before the last mark `TOWER_ENDS` are left out, where there is one.
    """
    trace = folder / "trace.json"
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    profiler.export_chrome_trace(str(trace))
    events = json.loads(trace.read_text())["traceEvents"]
    begin = max((e["ts"] for e in events if e["name"] == TOWER_ENDS), default=0)
    memory = [e for e in events if e["name"] == "[memory]" and e["ts"] >= begin]
    assert memory, "the profiler saw nothing"
    sizes: list[int] = []
    ours = set()
    for event in sorted(memory, key=lambda e: e["args"]["Ev Idx"]):
        size, address = event["args"]["Bytes"], event["args"]["Addr"]
        if size > 0:
            ours.add(address)
        elif address not in ours:
            continue  # taken before the function or the mark
        else:
            ours.remove(address)
        sizes.append(size)
    return sizes


def peak(sizes: list[int], at_least: int) -> int:
    """The most bytes alive at once in pieces of at least a size."""
    alive = most = 0
    for size in sizes:
        if abs(size) >= at_least:
            alive += size
            most = max(most, alive)
    return most


def naive(
    tokens: Tensor, texts: Tensor, class_features: Tensor, form: str | None, empty: Tensor
) -> Tensor:
    """The definition (N, L, T, C), summed over C last: (N, T, L)."""
    features = tokens[:, :, None] * texts
    weights = (2 * class_features @ texts.T).softmax(-1)
    weighted = features * (weights / weights.mean(-1, keepdim=True))[:, None, :, None]
    redundant = {
        "release": weighted.mean(2, keepdim=True),
        "paper": weighted.mean(2, keepdim=True),
        "empty": (tokens * empty)[:, :, None],
        None: torch.zeros(()),
    }[form]
    return ((weighted if form == "release" else features) - redundant).sum(-1).mT


def plain_tensors(texts: int, patches: int = 12, width: int = 16) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    sizes = ((2, patches, width), (texts, width), (2, width), (width,))
    return tuple(
        F.normalize(torch.randn(size, generator=generator, dtype=torch.double), dim=-1)
        for size in sizes
    )


@each_form
@each("targets", [None, [0, 6, 3], [[4], [1]]])
def test_equals_the_definition_with_four_dimensions(form, targets):
    tokens, texts, class_features, empty = plain_tensors(7)
    expected = naive(tokens, texts, class_features, form, empty)
    if targets is not None:
        targets = torch.tensor(targets)
        rows = targets.expand(2, -1)
        expected = torch.stack([maps[row] for maps, row in zip(expected, rows, strict=True)])
    actual = functional.feature_surgery(
        tokens, texts, class_features, form, empty_features=empty, targets=targets
    )
    assert actual.shape == expected.shape
    assert relative_error(actual, expected) < 1e-12


def test_the_profiler_sees_the_definition(tmp_path):
    """What is looked for shows where it is: (N, L, T, C), and more than three score tensors."""
    tokens, texts, class_features, empty = plain_tensors(200)
    score, product = (2 * 12 * 200 * 8, 2 * 12 * 200 * 16 * 8)
    sizes = allocations(lambda: naive(tokens, texts, class_features, "release", empty), tmp_path)
    assert max(sizes) >= product
    assert peak(sizes, score) > 3 * score

    def four_at_once() -> Tensor:
        scores = tokens @ texts.T
        return torch.stack([scores, scores + 1, scores + 2]).sum(0)

    assert peak(allocations(four_at_once, tmp_path), score) > 3 * score


# --- of a classifier -----------------------------------------------------------------------------


def with_random_features(model: nn.Module, texts: int, width: int) -> ZeroShotClassifier:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(texts + 1, width, generator=generator)
    return ZeroShotClassifier.from_features(model, features[:-1], features[-1])


def mark_end_of_tower(module: nn.Module) -> Any:
    def mark(*_: object) -> None:
        with record_function(TOWER_ENDS):
            pass

    return module.register_forward_hook(mark)


def scores_fit(
    clip: ZeroShotClassifier, last: nn.Module, images: Tensor, form: str | None, folder: Path
) -> None:
    """After its last module, the pass takes at most two score tensors at once, none larger."""
    rows, columns = clip.tower.grid(*images.shape[-2:])
    texts, width = clip.text_features().shape
    score = len(images) * rows * columns * texts * images.element_size()
    surgery = LayerCLIPSurgery(clip, feature_surgery=form)
    maps: list[Tensor] = []
    handle = mark_end_of_tower(last)
    with torch.no_grad():
        sizes = allocations(lambda: maps.append(surgery.attribute_all(images)), folder)
    handle.remove()
    assert maps[0].shape == (len(images), texts, rows, columns)
    assert score <= peak(sizes, score) <= 2 * score
    # Nothing is hidden in pieces below the size of a score tensor either: beside the scores there
    # are tokens and text features, of the joint space's width.
    others = 4 * len(images) * rows * columns * width + 4 * texts * width
    assert peak(sizes, 0) <= 2 * score + others * images.element_size()
    assert max(sizes) < score * width


@each_form
@pytest.mark.parametrize("family", TOWERS)
def test_scores_are_the_largest_thing(family, form, tmp_path):
    model = tiny_model(family)
    # Where the pass leaves the tower; the fewer the patches and the more the texts, the clearer.
    last = model.visual.get_submodule(TINY[family].parts.exit)
    clip = with_random_features(model, 1000, TINY[family].embed_dim)
    rows, columns = clip.tower.patch_size
    scores_fit(clip, last, torch.randn(2, 3, 6 * rows, 4 * columns), form, tmp_path)


@pytest.mark.slow
def test_a_thousand_texts_on_vit_b_16_at_512_pixels(tmp_path):
    model = open_clip.create_model("ViT-B-16").eval()
    clip = with_random_features(model, 1000, 512)
    for form in VARIANTS:
        scores_fit(clip, model.visual.ln_post, torch.randn(1, 3, 512, 512), form, tmp_path)


@pytest.mark.slow
@each("sides", [(96, 96), (100, 100)])
def test_image_shaped_maps_are_held_once(sides, tmp_path):
    """Also where the last pixels are in no patch, and the edge of maps continues."""
    tower = _timm(_shrunk("vit_so400m_patch14_siglip_384", img_size=sides[0]), "map", "none")
    vision = tower | {"image_size": sides[0]}
    model = Tiny("ViT-SO400M-14-SigLIP-384", vision, embed_dim=32).build().eval()
    clip = with_random_features(model, 1000, 32)
    assert clip.native_size == sides
    method, maps = CLIPSurgery(clip), []
    images = torch.randn(1, 3, *sides)
    with torch.no_grad():
        sizes = allocations(lambda: maps.append(method.attribute_all(images)), tmp_path)
    whole = maps[0].numel() * maps[0].element_size()
    assert maps[0].shape == (1, 1000, *sides)
    assert whole <= peak(sizes, whole // 100) < 1.6 * whole


@each("method", [CLIPSurgery, LayerCLIPSurgery])
@each("grad", [True, False])
@pytest.mark.parametrize("family", TWO_TOWERS)
def test_the_tower_runs_once_whatever_the_number_of_texts(family, grad, method):
    model = tiny_model(family)
    passes: list[tuple[int, ...]] = []
    entry = model.visual.get_submodule(TINY[family].parts.entry)
    entry.register_forward_pre_hook(lambda _, args: passes.append(args[0].shape))
    for texts in (2, 8, 300):
        clip = with_random_features(model, texts, TINY[family].embed_dim)
        images = torch.randn(3, 3, *clip.native_size)
        for form in VARIANTS:
            passes.clear()
            with nullcontext() if grad else torch.no_grad():
                maps = method(clip, feature_surgery=form).attribute_all(images)
            assert maps.shape[:2] == (3, texts)
            assert passes == [images.shape]
            passes.clear()
            with nullcontext() if grad else torch.no_grad():
                method(clip, feature_surgery=form).attribute(images, target=[0, -1, texts // 2])
            assert passes == [images.shape]

"""Traces, steps before and after a path, and paths that are summed, against plain restatements."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from captum_clip_surgery import ZeroShotClassifier
from captum_clip_surgery.attr import (
    DualPathAttribution,
    LayerCLIPSurgery,
    LayerShapeMixin,
    attribute_many,
)
from captum_clip_surgery.attr._clip_surgery import vv_attention
from captum_clip_surgery.models.image import AttentionInputs, PathConfig, PathTrace, Tower
from tests._helpers.tiny import FAMILIES, random_images, relative_error, tiny_model

TOLERANCE = 1e-5


@dataclass(frozen=True)
class Scale:
    """A step that multiplies tokens."""

    factor: float

    def __call__(self, tokens: Tensor, trace: PathTrace) -> Tensor:
        return self.factor * tokens


def first_attention(inputs: AttentionInputs, trace: PathTrace) -> Tensor:
    """Values weighted by what the first block attends to."""
    return trace.attentions[0] @ inputs.v


def add_first_stream(tokens: Tensor, trace: PathTrace) -> Tensor:
    return tokens + trace.streams[0].mean()


def tower_of(kind: str) -> Tower:
    return ZeroShotClassifier(tiny_model(kind), ["a dog"], templates=[]).tower


def own_streams(tower: Tower, images: Tensor) -> list[Tensor]:
    """Streams that enter each block, by the model's own modules."""
    return [tower.enter(images, index)[0] for index in range(len(tower.blocks))]


@pytest.mark.parametrize("kind", FAMILIES)
def test_paths_with_steps_as_restated(kind: str) -> None:
    tower, images = tower_of(kind), random_images(ZeroShotClassifier(tiny_model(kind), ["a"]))
    count, prefix = len(tower.blocks), tower.num_prefix_tokens
    span = min(2, count)
    start = count - span
    surgery = PathConfig(span, vv_attention)
    repaired = replace(surgery, before=Scale(0.5), after=Scale(3.0))
    summed = replace(surgery, plus=(repaired,), streams=(0,), after=add_first_stream)
    with torch.no_grad():
        _, grid_spec = tower.enter(images, 0)
        streams = own_streams(tower, images)

        def path(x: Tensor) -> Tensor:
            new = x
            for index in range(start, count):
                heads = tower.attention_inputs(index, x, grid_spec)
                update = tower.merge(index, vv_attention(heads), heads.x)
                new = new + update if tower.has_residual else update
                x = tower.run_block(index, x, grid_spec)
            return new[:, prefix:]

        plain = path(streams[start])
        expected = {
            surgery: plain,
            repaired: 3 * path(0.5 * streams[start]),
            summed: plain + 3 * path(0.5 * streams[start]) + streams[0].mean(),
        }
        found = tower.paths(images, list(expected))
        pooled = tower.encode(images)
        for output, (config, tokens) in zip(found, expected.items(), strict=True):
            assert relative_error(output.patches, tower.project(tokens)) < TOLERANCE
            assert relative_error(output.pooled, pooled) < TOLERANCE
            alone = tower.dual_path(images, config)
            assert relative_error(alone.patches, output.patches) < TOLERANCE


def test_the_trace_is_of_the_models_own_pass() -> None:
    tower, images = tower_of("vit"), random_images(ZeroShotClassifier(tiny_model("vit"), ["a"]))
    config = PathConfig(
        1, first_attention, residual=False, reads_trace=True, attentions=(0,), before=Scale(2.0)
    )
    with torch.no_grad():
        streams = own_streams(tower, images)
        x, grid_spec = tower.enter(images, 0)
        (first, *_) = tower.iter_blocks_with_attention(x, grid_spec, 0)
        heads = tower.attention_inputs(2, 2 * streams[2], grid_spec)
        expected = tower.merge(2, first.probabilities @ heads.v, heads.x)[:, 1:]
        found = tower.dual_path(images, config)
        assert relative_error(found.patches, tower.project(expected)) < TOLERANCE

        traces: list[PathTrace] = []

        def keep(tokens: Tensor, trace: PathTrace) -> Tensor:
            traces.append(trace)
            return tokens

        tower.dual_path(images, PathConfig(1, vv_attention, streams=(0, 2), after=keep))
        assert traces[0].grid == tower.grid(*images.shape[-2:])
        assert traces[0].streams.keys() == {0, 2}
        assert not traces[0].attentions
        for index, stream in traces[0].streams.items():
            assert relative_error(stream, streams[index]) < TOLERANCE


class _Steps(DualPathAttribution):
    def __init__(self, clip: ZeroShotClassifier, config: PathConfig) -> None:
        super().__init__(clip, config)


class LayerSteps(_Steps, LayerShapeMixin):
    """A method of one's own with steps."""


def test_steps_share_a_pass_and_carry_gradients() -> None:
    clip = ZeroShotClassifier(tiny_model("vit"), ["a dog", "a cat"], templates=[])
    images = random_images(clip).requires_grad_()
    calls = []

    def mean_stream(trace: PathTrace) -> Tensor:
        calls.append(trace)
        return trace.streams[1].mean(1, keepdim=True)

    def center(stream: Tensor, trace: PathTrace) -> Tensor:
        return stream - trace.once(mean_stream)

    centered = PathConfig(2, vv_attention, streams=(1,), before=center)
    twice = replace(centered, plus=(replace(centered, residual=False),))
    assert twice == replace(twice)
    assert hash(twice) == hash(replace(twice))
    assert twice != centered
    methods = {"one": LayerSteps(clip, centered), "two": LayerSteps(clip, twice)}
    maps = attribute_many({**methods, "surgery": LayerCLIPSurgery(clip)}, images)
    assert len(calls) == 1  # for all three paths
    for map_ in maps.values():
        (gradient,) = torch.autograd.grad(map_[:, 0].sum(), images, retain_graph=True)
        assert gradient.abs().sum() > 0
    assert relative_error(maps["one"], methods["one"].attribute_all(images)) < TOLERANCE
    step = replace(centered, before=Scale(2.0))
    assert pickle.loads(pickle.dumps(step)) == step


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"streams": (3,)}, r"streams= names block 3, and of the tower's 3 blocks the first 3"),
        ({"attentions": (0, -1)}, "attentions= names block -1"),
        ({"attentions": (2,)}, "attentions= names block 2, .* the first 2 can"),
    ],
)
def test_blocks_that_cannot_be_traced(options: dict[str, tuple[int, ...]], message: str) -> None:
    tower, images = tower_of("vit"), random_images(ZeroShotClassifier(tiny_model("vit"), ["a"]))
    with pytest.raises(ValueError, match=message):
        tower.dual_path(images, PathConfig(1, vv_attention, **options))


def test_a_step_before_no_blocks() -> None:
    with pytest.raises(ValueError, match="num_blocks=0 has none"):
        PathConfig(0, vv_attention, before=Scale(2.0))

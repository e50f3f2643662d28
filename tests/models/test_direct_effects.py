"""What parts of image towers contribute to their embeddings: exact sums, on every kind of tower."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_clip_surgery.models._guards import check_clip
from captum_clip_surgery.models.image import Tower, VisionTransformerTower, build_tower
from captum_clip_surgery.models.image._direct_effects import direct_effects
from captum_clip_surgery.models.image._traces import num_decomposed_blocks
from tests._helpers.cases import each
from tests._helpers.model_snapshot import differences, snapshot
from tests._helpers.tiny import quick_on, relative_error, tiny_model
from tests._helpers.tower_kinds import TINY
from tests._helpers.transformers_models import NAMES, build
from tests.models.test_towers import OPTIONS, built

#: A class token, a mean of tokens, and a pooling that is taken apart itself.
KINDS = quick_on(("vit", "clipa", "siglip"), TINY)
UNDEFINED = {
    "siglip dynamic, mlp head": "open_clip's head is an MLP",
    "vit registers alone": "its attention pooling leaves out the prefix tokens",
}
PRECISION = {torch.float32: 1e-5, torch.float64: 1e-10}


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def tower_of(kind: str, dtype: torch.dtype = torch.float64) -> Tower:
    return build_tower(tiny_model(kind).to(dtype).visual)


def inputs_of(tower: Tower, grid: tuple[int, int] | None = None, count: int = 2) -> Tensor:
    size = tower.native_size
    if grid is not None:
        size = (grid[0] * tower.patch_size[0], grid[1] * tower.patch_size[1])
    generator = torch.Generator().manual_seed(3)
    return torch.randn(count, 3, *size, generator=generator, dtype=torch.float64).to(tower.dtype)


def directions_of(tower: Tower, images: Tensor, *shape: int) -> Tensor:
    width = tower.encode(images[:1]).shape[-1]
    generator = torch.Generator().manual_seed(4)
    return torch.randn(*shape, width, generator=generator, dtype=images.dtype)


def check_sums(tower: Tower, images: Tensor) -> None:
    """All parts, however they are chosen and grouped, sum to the model's own embedding."""
    tolerance = PRECISION[images.dtype]
    embedding = tower.encode(images)
    directions = directions_of(tower, images, 3)
    products = embedding @ directions.T
    effects = direct_effects(tower, images, directions, detailed=True)
    assert relative_error(effects.embedding, embedding) < tolerance
    assert relative_error(effects.sum(), products) < tolerance
    assert effects.patches.shape == (len(images), 3, effects.grid[0] * effects.grid[1])
    assert effects.grid == tower.grid(*images.shape[-2:])

    assert effects.by_head is not None
    assert effects.prefix_by_head is not None
    by_head, prefix = effects.by_head, effects.prefix_by_head
    assert by_head.shape[2] == num_decomposed_blocks(tower)
    assert relative_error(by_head.sum((2, 3)), effects.patches) < tolerance
    if tower.num_prefix_tokens:
        share = effects.remainder["prefix tokens"]
        assert relative_error(prefix.sum((2, 3)), share) < 10 * tolerance
    else:
        assert not prefix.any()
        assert "prefix tokens" not in effects.remainder
    if effects.feed_forward is not None:
        share = effects.remainder["feed-forward"]
        assert relative_error(effects.feed_forward.sum(2), share) < 10 * tolerance

    chosen = direct_effects(tower, images, directions, blocks=[-1], heads=[1, 0])
    assert relative_error(chosen.patches, by_head[:, :, -1, :2].sum(2)) < 10 * tolerance
    assert relative_error(chosen.sum(), products) < tolerance
    attended = (by_head.sum(-1) + prefix).sum((2, 3))  # by all heads
    share = chosen.patches.sum(-1) + chosen.remainder["other heads"]
    share = share + chosen.remainder.get("prefix tokens", 0)
    assert relative_error(share, attended) < 10 * tolerance

    each_own = directions_of(tower, images, len(images), 2)
    apart = direct_effects(tower, images, each_own)
    for index in range(len(images)):
        alone = direct_effects(tower, images[index : index + 1], each_own[index])
        assert relative_error(apart.patches[index], alone.patches[0]) < 10 * tolerance


@pytest.mark.parametrize("kind", KINDS)
def test_parts_sum_to_the_embedding(kind: str) -> None:
    for dtype in PRECISION:
        tower = tower_of(kind, dtype)
        for grid in (None, (3, 5), (5, 2)):
            check_sums(tower, inputs_of(tower, grid))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in OPTIONS if name not in UNDEFINED])
def test_parts_of_options_sum_to_the_embedding(name: str) -> None:
    """Gates, norms within blocks, registers: what no configuration uses."""
    tower = build_tower(built(name))
    check_sums(tower, inputs_of(tower, (3, 5)))


@pytest.mark.parametrize("name", quick_on(("SiglipModel",), NAMES))
def test_parts_of_transformers_sum_to_the_embedding(name: str) -> None:
    with pytest.warns(UserWarning, match="the preprocessing of"):
        tower = build_tower(check_clip(build(name, "sdpa", torch.float64)).visual)
    for grid in (None, (3, 5)):
        check_sums(tower, inputs_of(tower, grid))


# --- each part is what it is said to be ----------------------------------------------------------


class FrozenNorm(nn.Module):
    """A norm that keeps the statistics of the first input it saw."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight, self.bias = norm.weight, getattr(norm, "bias", None)
        self.eps, self.centers = norm.eps, "RMS" not in type(norm).__name__.upper()
        self.mean: Tensor | None = None
        self.deviation = torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        if self.mean is None:
            self.mean = x.mean(-1, keepdim=True) if self.centers else torch.zeros_like(x[..., :1])
            self.deviation = ((x - self.mean).square().mean(-1, keepdim=True) + self.eps).sqrt()
        # Only what an input adds counts: its mean is that of a sum of inputs.
        x = (x - (x.mean(-1, keepdim=True) if self.centers else 0)) / self.deviation
        x = x if self.weight is None else x * self.weight
        return x if self.bias is None else x + self.bias


def with_frozen_norms(tower: Tower, images: Tensor) -> Tower:
    """An adapter of a copy whose norms are affine, and equal to the model's on these images."""
    frozen = type(tower)(copy.deepcopy(tower.visual))
    for parent in list(frozen.visual.modules()):
        for name, child in list(parent.named_children()):
            kind = type(child).__name__
            if kind.endswith(("LayerNorm", "RmsNorm", "RMSNorm")):
                setattr(parent, name, FrozenNorm(child))
    assert relative_error(frozen.encode(images), tower.encode(images)) < 1e-10
    return frozen


class FrozenAttention:
    """The attention of a block, or of the pooling, and what reads the embedding off its output."""

    def __init__(self, tower: Tower, images: Tensor, block: int) -> None:
        if (pool := tower.attention_pool) is not None:
            x, _ = tower.enter(images, len(tower.blocks))
            self.heads = pool.attention_inputs(x)
            self.merge, self.read = pool.merge, pool.pool
        else:
            x, grid_spec = tower.enter(images, block)
            self.heads = tower.attention_inputs(block, x, grid_spec)
            self.merge = functools.partial(tower.merge, block, x=self.heads.x)
            self.read = tower.pool
        self.probabilities = self.heads.probabilities()
        self.whole = self.read(self.merge(self.heads.attend()))

    def lost(self, head: int, tokens: int | slice) -> Tensor:
        """What the embedding loses if a head does not attend to some tokens."""
        probabilities = self.probabilities.clone()
        probabilities[:, head, :, tokens] = 0
        return self.whole - self.read(self.merge(probabilities @ self.heads.v))


@pytest.mark.parametrize("kind", KINDS)
def test_head_and_patch_are_what_zeroing_them_changes(kind: str) -> None:
    """Head by head and patch by patch, in a copy of the model without any nonlinear norm."""
    tower = tower_of(kind)
    images = inputs_of(tower)
    directions = directions_of(tower, images, 2)
    effects = direct_effects(tower, images, directions, detailed=True)
    assert effects.by_head is not None
    assert effects.prefix_by_head is not None
    frozen, prefix = with_frozen_norms(tower, images), tower.num_prefix_tokens
    for block in range(num_decomposed_blocks(tower)):
        part = FrozenAttention(frozen, images, block)
        for head in range(effects.by_head.shape[3]):
            of_head = effects.by_head[:, :, block, head]
            share = of_head.sum(-1) + effects.prefix_by_head[:, :, block, head]
            expected = part.lost(head, slice(None)) @ directions.T
            assert relative_error(share, expected) < 1e-9
            for patch in (0, of_head.shape[-1] - 2):
                expected = part.lost(head, prefix + patch) @ directions.T
                # What a patch moves may be as small as what rounding leaves of the difference.
                assert (of_head[..., patch] - expected).abs().max() < 1e-12


def stream_of(visual: Any, block: int, x: Tensor) -> Tensor:
    """The class token after a block's attention, which its second norm reads."""
    streams: list[Tensor] = []
    layer = visual.transformer.resblocks[block]
    handle = layer.ln_2.register_forward_pre_hook(lambda _, args: streams.append(args[0][:, 0]))
    layer(x)
    handle.remove()
    return streams[0]


def test_head_is_what_its_weights_do_to_the_stream() -> None:
    """The columns of a head in the output projection set to 0, in a copy of the weights."""
    tower = tower_of("vit")
    images = inputs_of(tower)
    directions = directions_of(tower, images, 2)
    effects = direct_effects(tower, images, directions, detailed=True)
    assert effects.by_head is not None
    assert effects.prefix_by_head is not None
    visual: Any = tower.visual
    final: list[Tensor] = []
    visual.ln_post.register_forward_pre_hook(lambda _, args: final.append(args[0][:, 0]))
    visual(images)
    deviation = (final[0].var(-1, unbiased=False, keepdim=True) + visual.ln_post.eps).sqrt()
    width = visual.transformer.resblocks[0].attn.head_dim
    for block in range(len(tower.blocks)):
        x, _ = tower.enter(images, block)
        for head in range(visual.transformer.resblocks[block].attn.num_heads):
            edited = copy.deepcopy(visual)
            edited.transformer.resblocks[block].attn.out_proj.weight[
                :, head * width : (head + 1) * width
            ] = 0
            moved = stream_of(visual, block, x) - stream_of(edited, block, x)
            centered = (moved - moved.mean(-1, keepdim=True)) / deviation
            expected = (centered * visual.ln_post.weight) @ visual.proj @ directions.T
            share = effects.by_head[:, :, block, head].sum(-1)
            share = share + effects.prefix_by_head[:, :, block, head]
            assert relative_error(share, expected) < 1e-10


def test_permuted_patches_of_one_block_permute_the_map() -> None:
    kind = TINY["vit"]
    visual: Any = replace(kind, vision=kind.vision | {"layers": 1}).build().visual.double().eval()
    visual.positional_embedding.zero_()
    tower = build_tower(visual)
    images = inputs_of(tower)
    directions = directions_of(tower, images, 2)
    effects = direct_effects(tower, images, directions)
    (rows, columns), (height, width) = effects.grid, tower.patch_size
    patches = images.unfold(2, height, height).unfold(3, width, width).flatten(2, 3)
    order = torch.randperm(rows * columns, generator=torch.Generator().manual_seed(0))
    moved = patches[:, :, order].unflatten(2, effects.grid).transpose(3, 4).flatten(4, 5)
    moved = moved.flatten(2, 3)
    permuted = direct_effects(tower, moved, directions)
    assert relative_error(permuted.patches, effects.patches[..., order]) < 1e-10
    for name, share in permuted.remainder.items():
        torch.testing.assert_close(share, effects.remainder[name], msg=name)


def test_names_of_the_remainder() -> None:
    expected = {
        "vit": ["embedding", "feed-forward", "prefix tokens", "bias"],
        "gap": ["embedding", "feed-forward", "bias"],
        "siglip": ["feed-forward", "bias"],
        "coca": ["prefix tokens", "bias"],
        "resnet": ["prefix tokens", "bias"],
    }
    for kind, names in expected.items():
        tower = tower_of(kind)
        images = inputs_of(tower, count=1)
        effects = direct_effects(tower, images, directions_of(tower, images, 1))
        assert list(effects.remainder) == names, kind
        assert effects.feed_forward is None


def test_model_is_left_alone() -> None:
    model = tiny_model("vit")
    before = snapshot(model)
    tower = build_tower(model.visual)
    images = inputs_of(tower)
    direct_effects(tower, images, directions_of(tower, images, 2), detailed=True)
    assert not differences(before, snapshot(model))


@each("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    tower = tower_of("vit", torch.float32)
    images = inputs_of(tower)
    directions = directions_of(tower, images, 2)
    wide = direct_effects(tower, images, directions)
    narrow = direct_effects(tower_of("vit", dtype), images.to(dtype), directions)
    assert narrow.patches.dtype == torch.float32
    assert relative_error(narrow.patches, wide.patches) < 0.1


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", UNDEFINED)
def test_undefined(name: str) -> None:
    tower = build_tower(built(name))
    images = inputs_of(tower)
    with pytest.raises(TypeError, match=f"direct effects are not defined on .*{UNDEFINED[name]}"):
        direct_effects(tower, images, directions_of(tower, images, 1))


@each(
    ("options", "error", "message"),
    [
        (dict(blocks=[3]), IndexError, "block must be from -3 to 2, got 3"),
        (dict(heads=[-5]), IndexError, "head must be from -4 to 3, got -5"),
        (dict(blocks=[]), ValueError, "at least one index"),
        (dict(heads=[True]), TypeError, "heads must be a list of ints or None, got True"),
        (dict(blocks=["last"]), TypeError, "blocks must be a list of ints or None, got 'last'"),
    ],
)
def test_choices_are_checked(options: dict[str, Any], error: type[Exception], message: str) -> None:
    tower = tower_of("vit")
    images = inputs_of(tower)
    with pytest.raises(error, match=message):
        direct_effects(tower, images, directions_of(tower, images, 1), **options)


class Saturating(VisionTransformerTower):
    """An adapter whose blocks add to the stream by a nonlinear function of attended values."""

    def merge(self, index: int, values: Tensor, x: Tensor) -> Tensor:
        return super().merge(index, values, x).tanh()


def test_parts_that_do_not_sum_are_an_error() -> None:
    tower = Saturating(tiny_model("vit").visual)
    images = inputs_of(tower)
    with pytest.raises(RuntimeError, match="a layer between attention and embedding is not affine"):
        direct_effects(tower, images, directions_of(tower, images, 1))

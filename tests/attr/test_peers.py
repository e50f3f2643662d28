"""The methods people compare with: published outputs, independent statements, and refusals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from captum.attr import LayerGradCam
from safetensors.torch import load_file
from torch import Tensor

from captum_clip_surgery import ZeroShotClassifier, attr
from captum_clip_surgery.attr import LayerGradECLIP, LayerLeGrad, LayerTokenGradCam, _gradients
from captum_clip_surgery.attr._base import PatchAttribution
from tests._helpers.cases import each
from tests._helpers.tiny import (
    DATA,
    REFERENCE_TEXTS,
    TOWERS,
    load_reference_model,
    random_images,
    relative_error,
    tiny_model,
    with_preprocessing,
)

TOLERANCE = 1e-5
TEXTS = ["a dog", "a cat", "a tree"]


@pytest.fixture(scope="module")
def published() -> dict[str, Tensor]:
    return load_file(DATA / "peers-expected.safetensors")


@pytest.fixture(scope="module")
def images() -> Tensor:
    return load_file(DATA / "vit-expected.safetensors")["native.images"]


@pytest.fixture(scope="module")
def clip() -> ZeroShotClassifier:
    return ZeroShotClassifier(load_reference_model("vit"), REFERENCE_TEXTS)


def min_max(maps: Tensor) -> Tensor:
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    return (maps - low) / (high - low)


# --- what the published implementations return ---------------------------------------------------


@pytest.mark.parametrize("name", ["maskclip", "sclip", "clearclip", "naclip", "gem"])
def test_dense_methods(clip, published, images, name):
    method = {
        "maskclip": attr.LayerMaskCLIP,
        "sclip": attr.LayerSCLIP,
        "clearclip": attr.LayerClearCLIP,
        "naclip": attr.LayerNACLIP,
        "gem": attr.LayerGEM,
    }[name]
    tokens = F.normalize(published[f"{name}.tokens"][:, -36:], dim=-1)
    expected = tokens @ clip.text_features().T
    maps = method(clip).attribute_all(images)
    assert relative_error(maps.flatten(2).mT.detach(), expected) < TOLERANCE


@pytest.mark.parametrize("size", ["native", "larger"])
def test_cliptrase(size):
    """Hold the maps to those of the released code (MIT); the file's metadata say what was run."""
    expected = load_file(DATA / "cliptrase-expected.safetensors")[f"{size}.maps"]
    images = load_file(DATA / "vit-expected.safetensors")[f"{size}.images"]
    model = load_reference_model("vit")
    if size == "larger":  # a tower of this native size, with positions resized as the code does
        grid = expected.shape[-1]
        positions = model.visual.positional_embedding.detach()
        patches = positions[1:].unflatten(0, model.visual.grid_size).permute(2, 0, 1)[None]
        factor = (grid + 0.1) / model.visual.grid_size[0]
        patches = F.interpolate(patches, scale_factor=factor, mode="bicubic")[0].flatten(1).mT
        model.visual.positional_embedding = torch.nn.Parameter(torch.cat([positions[:1], patches]))
        model.visual.grid_size = (grid, grid)
        model.visual.image_size = tuple(images.shape[-2:])
        with_preprocessing(model)
    clip = ZeroShotClassifier(model, REFERENCE_TEXTS)
    maps = attr.LayerCLIPtrase(clip).attribute_all(images)
    assert relative_error(maps, expected) < 2e-6


def test_legrad(clip, published, images):
    maps = LayerLeGrad(clip).attribute_all(images)
    enlarged = F.interpolate(maps, scale_factor=16, mode="bilinear")
    assert relative_error(min_max(enlarged), published["legrad.maps"]) < TOLERANCE


@pytest.mark.parametrize("blocks", ["last", "all"])
def test_attention_relevance(clip, published, images, blocks):
    maps = attr.LayerAttentionRelevance(clip, blocks).attribute_all(images)
    assert relative_error(maps, published[f"relevance_{blocks}.maps"]) < TOLERANCE


def test_grad_eclip(clip, published, images):
    maps = LayerGradECLIP(clip).attribute_all(images)
    assert relative_error(maps, published["grad_eclip.maps"]) < TOLERANCE
    # The tower's own heads are another method.
    own = LayerGradECLIP(clip, per_head=True).attribute_all(images)
    assert relative_error(own, published["grad_eclip.maps"]) > 0.01


# --- independent statements ----------------------------------------------------------------------


def attention_of(model: torch.nn.Module, images: Tensor) -> list[Tensor]:
    """Softmaxed weights (N, heads, L, L) of every block, from nn.MultiheadAttention itself."""
    weights = []
    with torch.no_grad():
        x = model.visual._embeds(images)
        for block in model.visual.transformer.resblocks:
            normalised = block.ln_1(x)
            weights.append(
                block.attn(normalised, normalised, normalised, average_attn_weights=False)[1]
            )
            x = block(x)
    return weights


def test_raw_attention_is_what_the_module_returns(clip, images):
    weights = attention_of(clip.model, images)
    for block in (0, 3, -1):
        maps = attr.LayerRawAttention(clip, block=block).attribute_all(images)
        expected = weights[block].mean(1)[:, 0, 1:].unflatten(-1, (6, 6))
        assert relative_error(maps, expected[:, None].expand_as(maps)) < TOLERANCE
        one = attr.LayerRawAttention(clip, block=block, head=1).attribute(images, target=2)
        assert relative_error(one[:, 0].flatten(1), weights[block][:, 1, 0, 1:]) < TOLERANCE


@each("kind", ["siglip", "coca", "pe"])
def test_raw_attention_of_a_pooling_is_what_weights_its_values(kind):
    """Values of patches, weighted by the map's heads and put out, are the pooling's output."""
    clip = ZeroShotClassifier(tiny_model(kind), TEXTS, templates=())
    tower, batch = clip.tower, random_images(clip)
    whole = attr.LayerRawAttention(clip).attribute(batch, target=0)
    heads = [
        attr.LayerRawAttention(clip, head=h).attribute(batch, target=0).flatten(1) for h in range(2)
    ]
    assert whole.shape == (2, 1, 4, 4)
    with torch.no_grad():
        tokens, _ = tower.enter(batch, len(tower.blocks))
        weights = tower.pool_attention(tokens)
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:2]))
        expected, count = pooled_by(kind, clip.model.visual, tokens, weights)
    assert relative_error(count, expected) < TOLERANCE
    patches = weights[..., tower.num_prefix_tokens :]
    assert relative_error(whole.flatten(1), patches.mean(1)) < TOLERANCE
    assert relative_error(heads[1], patches[:, 1]) < TOLERANCE
    with pytest.raises(TypeError, match="block=-1 stands for the attention of its pooling, got 0"):
        attr.LayerRawAttention(clip, block=0)


def pooled_by(kind: str, visual: Any, tokens: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """What the pooling's attention gives, and the same by its weights and raw parameters."""
    if kind == "coca":
        pooler, module = visual.attn_pool, visual.attn_pool.attn
        keys = pooler.ln_k(tokens)
        expected = pooler(tokens)[:, 0]
        value, bias = module.v_proj_weight, module.in_proj_bias.chunk(3)[2]
        project = module.out_proj
    else:
        pooler, keys = visual.trunk.attn_pool, visual.trunk.norm(tokens)
        outputs: list[Tensor] = []
        handle = pooler.proj.register_forward_hook(lambda _, args, out: outputs.append(out))
        pooler(keys)
        handle.remove()
        expected = outputs[0][:, 0]
        value, bias = pooler.kv.weight.chunk(2)[1], pooler.kv.bias.chunk(2)[1]
        project = pooler.proj
    values = (keys @ value.T + bias).unflatten(-1, (weights.shape[1], -1))  # (N, L, heads, d)
    joined = torch.einsum("nhl,nlhd->nhd", weights, values).flatten(1)
    return expected, joined @ project.weight.T + project.bias


def test_rollout_is_the_product_of_the_blocks(clip, images):
    product = torch.eye(37).expand(2, -1, -1)
    for weights in attention_of(clip.model, images):
        mixing = weights.mean(1) + torch.eye(37)
        product = mixing / mixing.sum(-1, keepdim=True) @ product
    maps = attr.LayerAttentionRollout(clip).attribute(images, target=0)
    assert relative_error(maps.flatten(1), product[:, 0, 1:]) < TOLERANCE


@pytest.mark.parametrize("kind", TOWERS)
@each("block", [0, -1])
@each("grid", [None, (3, 5)])
def test_grad_cam_is_captums_on_the_token_grid(kind, block, grid):
    clip = ZeroShotClassifier(tiny_model(kind), TEXTS, templates=())
    rows, columns = clip.tower.patch_size
    size = clip.native_size if grid is None else (grid[0] * rows, grid[1] * columns)
    images = torch.randn(2, 3, *size)
    maps = LayerTokenGradCam(clip, block=block).attribute_all(images)
    captums = LayerGradCam(clip, clip.token_grid(block))
    expected = [
        captums.attribute(images, target=target, relu_attributions=True).detach()
        for target in range(len(TEXTS))
    ]
    # In the ResNet, channels and places nearly cancel.
    assert relative_error(maps, torch.cat(expected, dim=1)) < (1e-3 if kind == "resnet" else 1e-4)


def test_grad_eclip_with_the_towers_own_heads(clip, images):
    """Eq. 8-12 said once more, with the block's own module and a gradient taken by hooks."""
    model, features = clip.model, clip.text_features()
    block = model.visual.transformer.resblocks[-1]
    with torch.no_grad():
        x = model.visual._embeds(images)
        for earlier in model.visual.transformer.resblocks[:-1]:
            x = earlier(x)
        z = block.ln_1(x)
        weight, bias = block.attn.in_proj_weight, block.attn.in_proj_bias
        q, k, v = (z @ weight.T + bias).chunk(3, -1)
        heads = [part.unflatten(-1, (2, 64)).transpose(1, 2) for part in (q, k, v)]
        mixed = (heads[0] @ heads[1].mT / 8).softmax(-1) @ heads[2]
        output = mixed.transpose(1, 2).flatten(2)[:, 0]
        keys, query = block.attn.out_proj(k[:, 1:]), block.attn.out_proj(q[:, :1])
        likeness = F.cosine_similarity(query, keys, dim=-1)
        likeness = (likeness - likeness.amin(1, keepdim=True)) / (
            likeness.amax(1, keepdim=True) - likeness.amin(1, keepdim=True)
        )
    maps = LayerGradECLIP(clip, per_head=True).attribute_all(images)
    for target, feature in enumerate(features):
        leaf = output.clone().requires_grad_()
        y = x[:, 0] + block.attn.out_proj(leaf)
        y = y + block.mlp(block.ln_2(y))
        pooled = F.normalize(model.visual.ln_post(y) @ model.visual.proj, dim=-1)
        (gradient,) = torch.autograd.grad((pooled @ feature).sum(), leaf)
        expected = ((gradient[:, None] * v[:, 1:]).sum(-1) * likeness).relu()
        assert relative_error(maps[:, target].flatten(1), expected) < TOLERANCE


@pytest.mark.parametrize("kind", TOWERS)
def test_legrad_is_its_definition(kind):
    """One text, one block at a time, with the gradient of a plain sum."""
    clip = ZeroShotClassifier(tiny_model(kind), TEXTS, templates=())
    tower = clip.tower
    if not tower.has_residual:
        with pytest.raises(TypeError, match="not defined on open_clip ModifiedResNet"):
            LayerLeGrad(clip)
        return
    images, feature = random_images(clip), clip.text_features()[1]
    expected = 0
    for index in (1, 2):
        x, grid_spec = tower.enter(images, index)
        heads = tower.attention_inputs(index, x.detach(), grid_spec)
        weights = (heads.q @ heads.k.mT / heads.q.shape[-1] ** 0.5).softmax(-1).detach()
        weights.requires_grad_()
        y = x.detach() + tower.merge(index, weights @ heads.v, heads.x)
        y = tower.feed_forward(index, y)
        pooled = F.normalize(tower.project(y.mean(1, keepdim=True))[:, 0], dim=-1)
        (gradient,) = torch.autograd.grad((pooled @ feature).sum(), weights)
        expected = expected + gradient.relu().mean((1, 2))[:, tower.num_prefix_tokens :]
    maps = LayerLeGrad(clip).attribute(images, target=1)
    assert relative_error(maps.flatten(1), expected) < 1e-4


# --- what holds for all that take gradients ------------------------------------------------------

GRADIENT: dict[str, Callable[[ZeroShotClassifier], PatchAttribution]] = {
    "legrad": LayerLeGrad,
    "relevance": attr.LayerAttentionRelevance,
    "relevance all": lambda clip: attr.LayerAttentionRelevance(clip, "all"),
    "grad-eclip": LayerGradECLIP,
    "grad-cam": LayerTokenGradCam,
}


@pytest.mark.parametrize("name", GRADIENT)
def test_any_mode_and_nothing_left_behind(clip, images, name):
    method = GRADIENT[name](clip)
    expected = method.attribute_all(images)
    assert not expected.requires_grad
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            inside = images.clone()  # made in that mode
            assert relative_error(method.attribute_all(inside), expected) < 1e-6
    frozen = [parameter.requires_grad_(False) for parameter in clip.model.parameters()]
    try:
        assert relative_error(method.attribute_all(images), expected) < 1e-6
    finally:
        for parameter in frozen:
            parameter.requires_grad_()
    assert all(parameter.grad is None for parameter in clip.model.parameters())


@pytest.mark.parametrize("name", GRADIENT)
def test_many_texts_are_one_pass_in_any_number_of_batches(clip, images, name, monkeypatch):
    passes = []
    handle = clip.model.visual.conv1.register_forward_hook(lambda *_: passes.append(1))
    try:
        together = GRADIENT[name](clip).attribute_all(images)
    finally:
        handle.remove()
    assert len(passes) == 1
    monkeypatch.setattr(_gradients, "GRADIENT_BYTES", 1)  # one text a time
    for targets in (None, [3, 0]):
        maps = GRADIENT[name](clip).attribute_all(images, targets)
        expected = together if targets is None else together[:, targets]
        assert relative_error(maps, expected) < 1e-5
    each = GRADIENT[name](clip).attribute(images, target=[4, 1])
    assert relative_error(each[:, 0], torch.stack([together[0, 4], together[1, 1]])) < 1e-5


def test_a_layer_is_the_block_where_the_method_begins(clip):
    blocks = clip.tower.blocks
    for method, index in (
        (attr.LayerGEM(clip), -6),
        (attr.LayerMaskCLIP(clip), -1),
        (LayerLeGrad(clip), -2),
        (attr.LayerAttentionRelevance(clip), -1),
        (attr.LayerAttentionRelevance(clip, "all"), 0),
        (attr.LayerAttentionRollout(clip), 0),
        (attr.LayerRawAttention(clip, block=2), 2),
        (LayerTokenGradCam(clip, block=3), 3),
    ):
        assert method.layer is blocks[index], method


# --- refusals ------------------------------------------------------------------------------------

NEEDS_CLASS_TOKEN = (
    attr.LayerAttentionRelevance,
    attr.LayerAttentionRollout,
    LayerGradECLIP,
)


@each("method", NEEDS_CLASS_TOKEN)
def test_towers_without_a_class_token_are_refused(method):
    clip = ZeroShotClassifier(tiny_model("siglip"), TEXTS, templates=())
    message = "not defined on timm VisionTransformer: it reads a class token's attention, and"
    with pytest.raises(TypeError, match=message):
        method(clip)


@each(
    ("make", "error", "message"),
    [
        (
            lambda c: LayerLeGrad(c, num_blocks=0),
            ValueError,
            "num_blocks must be at least 1",
        ),
        (lambda c: LayerLeGrad(c, num_blocks=9), ValueError, "from 0 to the tower's 8"),
        (
            lambda c: attr.LayerAttentionRelevance(c, "some"),
            ValueError,
            'must be "last" or "all", got .some.',
        ),
        (
            lambda c: attr.LayerRawAttention(c, block=8),
            IndexError,
            "block must be from -8 to 7, got 8",
        ),
        (
            lambda c: LayerTokenGradCam(c, block=-9),
            IndexError,
            "block must be from -8 to 7, got -9",
        ),
        (lambda c: LayerTokenGradCam(c, block=True), TypeError, "block must be an int, got True"),
        (lambda c: attr.LayerGEM(c, num_blocks=9), ValueError, "from 0 to the tower's 8"),
    ],
)
def test_options_that_do_not_exist(clip, make, error, message):
    with pytest.raises(error, match=message):
        make(clip)


def test_a_head_that_does_not_exist(clip, images):
    with pytest.raises(IndexError, match="head must be from -2 to 1, got 2"):
        attr.LayerRawAttention(clip, head=2).attribute(images, target=0)

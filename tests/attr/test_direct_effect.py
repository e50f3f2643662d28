"""Direct effects: the method restated plainly, what its parts sum to, and Captum's tools."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from captum.attr import NoiseTunnel
from torch import Tensor

from captum_clip_surgery import (
    METHODS,
    DirectEffect,
    LayerDirectEffect,
    ZeroShotClassifier,
    functional,
)
from tests._helpers.cases import each
from tests._helpers.tiny import quick_on, random_images, relative_error, tiny_model

TEXTS = ["a dog", "a cat", "a tree"]
VARIANTS = (None, "empty", "release", "paper")


@pytest.fixture
def clip() -> ZeroShotClassifier:
    model = tiny_model("vit").double()
    return ZeroShotClassifier(model, TEXTS, distractors=["a car"], templates=["a photo of {}."])


@pytest.fixture
def images(clip: ZeroShotClassifier) -> Tensor:
    return random_images(clip, 2).double()


def cosines(clip: ZeroShotClassifier, images: Tensor) -> Tensor:
    """Cosines (N, T) of images with all texts and distractors."""
    return (clip.image_features(images) @ clip.text_features().to(images.dtype).T).detach()


# --- methods.md read aloud, from the raw parameters ----------------------------------------------


def layer_norm(x: Tensor, norm: Any) -> Tensor:
    centered = x - x.mean(-1, keepdim=True)
    deviation = (centered.square().mean(-1, keepdim=True) + norm.eps).sqrt()
    return centered / deviation * norm.weight + norm.bias


def plain_map(visual: Any, image: Tensor, direction: Tensor) -> Tensor:
    """Contributions (L,) of the tokens of one image, head by head and token by token."""
    patches = visual.conv1(image[None]).flatten(2).mT
    x = torch.cat([visual.class_embedding[None, None], patches], 1) + visual.positional_embedding
    x = layer_norm(x, visual.ln_pre)[0]  # (L, D)
    moved = []  # by one head from one token to the class token: token, vector (D,)
    for block in visual.transformer.resblocks:
        attention = block.attn
        q, k, v = (
            layer_norm(x, block.ln_1) @ attention.in_proj_weight.T + attention.in_proj_bias
        ).chunk(3, -1)
        width, update = attention.head_dim, torch.zeros_like(x)
        for head in range(attention.num_heads):
            part = slice(head * width, (head + 1) * width)
            output = attention.out_proj.weight[:, part]  # (D, d)
            probabilities = (q[:, part] @ k[:, part].T / width**0.5).softmax(-1)
            update = update + probabilities @ v[:, part] @ output.T
            moved += [
                (token, probabilities[0, token] * (output @ v[token, part]))
                for token in range(len(x))
            ]
        x = x + update + attention.out_proj.bias
        hidden = block.mlp.gelu(block.mlp.c_fc(layer_norm(x, block.ln_2)))
        x = x + block.mlp.c_proj(hidden)
    final = x[0]
    sigma = (final.var(unbiased=False) + visual.ln_post.eps).sqrt()
    length = (layer_norm(final, visual.ln_post) @ visual.proj).norm()
    contributions = torch.zeros(len(x), dtype=x.dtype)
    for token, vector in moved:
        frozen = visual.ln_post.weight * (vector - vector.mean()) / sigma
        contributions[token] += frozen @ visual.proj @ direction / length
    return contributions


def test_plainly_restated(clip: ZeroShotClassifier, images: Tensor) -> None:
    features, empty = clip.text_features().double(), clip.empty_features()
    assert empty is not None
    maps = LayerDirectEffect(clip, feature_surgery=None).attribute_all(images)
    against_empty = LayerDirectEffect(clip).attribute_all(images)
    with torch.no_grad():
        for text in range(2):
            plain = plain_map(clip.model.visual, images[0], features[text])
            assert relative_error(maps[0, text].flatten(), plain[1:]) < 1e-10
            plain = plain_map(clip.model.visual, images[0], features[text] - empty)
            assert relative_error(against_empty[0, text].flatten(), plain[1:]) < 1e-8


# --- what the parts sum to -----------------------------------------------------------------------


@each("variant", VARIANTS)
def test_parts_sum_to_the_score(
    clip: ZeroShotClassifier, images: Tensor, variant: str | None
) -> None:
    """The cosine after feature surgery, which is linear in the cosines of all texts."""
    method = LayerDirectEffect(clip, feature_surgery=variant)
    target = torch.tensor([2, 0])
    maps, delta = method.attribute(images, target, return_convergence_delta=True)
    rest = method.remainder(images, target)
    assert delta.shape == (2,)
    assert delta.abs().max() < 1e-12
    class_features = clip.image_features(images).detach()
    empty = clip.empty_features()
    assert empty is not None
    scores = functional.feature_surgery(
        class_features[:, None], clip.text_features().double(), class_features, variant,
        empty_features=empty.double(), targets=target[:, None],
    )  # fmt: skip
    total = maps.sum((1, 2, 3)) + torch.stack(list(rest.values())).sum(0)
    assert relative_error(total, scores[:, 0, 0].detach()) < 1e-7


@each("variant", VARIANTS)
def test_variants_are_linear_in_the_texts(
    clip: ZeroShotClassifier, images: Tensor, variant: str | None
) -> None:
    empty = clip.empty_features()
    assert empty is not None
    features = torch.cat([clip.text_features(), empty[None]]).detach()
    every = ZeroShotClassifier.from_features(clip.model, features)
    plain = LayerDirectEffect(every, feature_surgery=None).attribute_all(images)
    plain, of_empty = plain[:, :4], plain[:, 4:]
    weights = functional.class_weights(cosines(clip, images))[..., None, None]
    expected = {
        None: plain,
        "empty": plain - of_empty,
        "release": weights * plain - (weights * plain).mean(1, keepdim=True),
        "paper": plain - (weights * plain).mean(1, keepdim=True),
    }[variant]
    maps = LayerDirectEffect(clip, feature_surgery=variant).attribute_all(images)
    assert relative_error(maps, expected[:, :3]) < 1e-6


def test_blocks_and_heads_make_up_the_whole(clip: ZeroShotClassifier, images: Tensor) -> None:
    whole = LayerDirectEffect(clip).attribute(images, 1)
    by_block = [LayerDirectEffect(clip, blocks=[i]).attribute(images, 1) for i in range(3)]
    assert relative_error(torch.stack(by_block).sum(0), whole) < 1e-9
    by_head = [LayerDirectEffect(clip, heads=[i]).attribute(images, 1) for i in range(-4, 0)]
    assert relative_error(torch.stack(by_head).sum(0), whole) < 1e-9
    assert LayerDirectEffect(clip, blocks=[-1, 1]).layer is clip.tower.blocks[1]
    assert LayerDirectEffect(clip).layer is clip.tower.blocks[0]


def test_image_shape(clip: ZeroShotClassifier, images: Tensor) -> None:
    attribution, delta = DirectEffect(clip).attribute(
        (images,), target=1, return_convergence_delta=True
    )
    assert isinstance(attribution, tuple)
    maps = DirectEffect(clip).attribute_all(images)
    assert relative_error(attribution[0].sum(1), maps[:, 1]) < 1e-12
    assert delta.abs().max() < 1e-12


# --- Captum's tools, gradients, modes ------------------------------------------------------------


def test_noise_tunnel_returns_deltas(clip: ZeroShotClassifier, images: Tensor) -> None:
    attribution, delta = NoiseTunnel(LayerDirectEffect(clip)).attribute(
        images, nt_samples=3, target=1, return_convergence_delta=True
    )
    assert attribution.shape == (2, 1, 4, 4)
    assert delta.shape == (6,)
    assert delta.abs().max() < 1e-12


@pytest.mark.parametrize("kind", quick_on(("vit",), ("vit", "eva02", "gap")))
def test_gradients_are_those_of_the_map(kind: str) -> None:
    """By images: against central differences of the map itself, norms not frozen."""
    clip = ZeroShotClassifier(tiny_model(kind).double(), TEXTS)
    images = random_images(clip, 1).double().requires_grad_()
    method = LayerDirectEffect(clip)
    weights = torch.randn(4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def value(images: Tensor) -> Tensor:
        return (method.attribute(images, 1)[0, 0] * weights).sum()

    (gradient,) = torch.autograd.grad(value(images), images)
    step = torch.randn(images.shape, generator=torch.Generator().manual_seed(1)).double()
    with torch.no_grad():
        moved = value(images + 1e-5 * step) - value(images - 1e-5 * step)
    assert (gradient * step).sum().item() == pytest.approx(moved.item() / 2e-5, rel=1e-5)


def test_gradients_flow_to_text_features(clip: ZeroShotClassifier, images: Tensor) -> None:
    features = clip.text_features().detach().double().requires_grad_()
    given = ZeroShotClassifier.from_features(clip.model, features)
    maps = LayerDirectEffect(given, feature_surgery=None).attribute(images, 1)
    (gradient,) = torch.autograd.grad(maps.sum(), features)
    assert gradient[1].abs().max() > 0
    assert not gradient[[0, 2, 3]].any()


def test_hooks_see_values(clip: ZeroShotClassifier, images: Tensor) -> None:
    method, seen = LayerDirectEffect(clip), []
    expected = method.attribute_all(images)
    handle = clip.model.visual.ln_post.register_forward_hook(
        lambda module, inputs, output: seen.append(output.detach().cpu().numpy())
    )
    try:
        assert torch.equal(method.attribute_all(images), expected)
    finally:
        handle.remove()
    assert seen


def test_transform_of_torch_func(clip: ZeroShotClassifier, images: Tensor) -> None:
    method = LayerDirectEffect(clip)
    watched = images.clone().requires_grad_()
    (expected,) = torch.autograd.grad(method.attribute_all(watched, [1]).square().sum(), watched)
    gradient = torch.func.grad(lambda x: method.attribute_all(x, [1]).square().sum())(images)
    assert relative_error(gradient.detach(), expected) < 1e-10


@pytest.mark.slow
def test_compiled(clip: ZeroShotClassifier, images: Tensor) -> None:
    method = LayerDirectEffect(clip)
    compiled = torch.compile(method.attribute_all, backend="eager")
    assert relative_error(compiled(images), method.attribute_all(images)) < 1e-10


@each("kind", ["vit", "siglip"])
def test_inference_mode(kind: str) -> None:
    clip = ZeroShotClassifier(tiny_model(kind), TEXTS)
    images = random_images(clip, 2)
    expected = LayerDirectEffect(clip).attribute_all(images)
    assert expected.grad_fn is None
    with torch.inference_mode():
        assert (
            relative_error(LayerDirectEffect(clip).attribute_all(images.clone()), expected) < 1e-5
        )


# --- options and refusals ------------------------------------------------------------------------


def test_registered_with_its_name(clip: ZeroShotClassifier) -> None:
    assert METHODS["DirectEffect"] is LayerDirectEffect
    assert DirectEffect.get_name() == "Direct effect"
    assert LayerDirectEffect.get_name() == "Layer Direct effect"
    assert repr(LayerDirectEffect(clip, blocks=[1])) == (
        "LayerDirectEffect(blocks=(1,), heads=None, feature_surgery='empty', "
        "inverse_temperature=2.0)"
    )


@each(
    ("options", "error", "message"),
    [
        (dict(blocks=[7]), IndexError, "block must be from -3 to 2, got 7"),
        (dict(blocks=[]), ValueError, "at least one index"),
        (dict(feature_surgery="none"), ValueError, "feature_surgery must be one of"),
        (dict(inverse_temperature="2"), ValueError, "inverse_temperature must be a finite number"),
    ],
)
def test_options_are_checked(
    clip: ZeroShotClassifier, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        LayerDirectEffect(clip, **options)


def test_heads_are_checked_when_called(clip: ZeroShotClassifier, images: Tensor) -> None:
    with pytest.raises(IndexError, match="head must be from -4 to 3, got 4"):
        LayerDirectEffect(clip, heads=[4]).attribute(images, 0)


def test_empty_feature_is_needed(clip: ZeroShotClassifier, images: Tensor) -> None:
    given = ZeroShotClassifier.from_features(clip.model, clip.text_features().detach())
    with pytest.raises(ValueError, match=re.escape("pass empty_features= to from_features")):
        LayerDirectEffect(given).attribute(images, 0)

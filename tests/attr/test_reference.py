"""Held to the numbers that the published implementations return on fixed weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from captum_clip_surgery import LayerCLIPSurgery, ZeroShotClassifier
from captum_clip_surgery.attr._clip_surgery import OWN_TOKENS
from captum_clip_surgery.functional import feature_surgery
from captum_clip_surgery.models.image import AttentionInputs, PathConfig
from captum_clip_surgery.models.image._surgery import vv_attention
from tests._helpers.tiny import DATA, REFERENCE_TEXTS, load_reference_model, relative_error

TOLERANCE = 1e-5
SIZES = ("native", "larger")
Reference = tuple[ZeroShotClassifier, dict[str, Tensor]]


def test_text_features(reference: Reference) -> None:
    clip, expected = reference
    assert relative_error(clip.text_features(), expected["text_features"]) < TOLERANCE
    empty = clip.empty_features()
    assert relative_error(empty, expected["empty_text_features"][0]) < TOLERANCE


@pytest.mark.parametrize("size", SIZES)
def test_surgery_tokens(reference: Reference, size: str) -> None:
    clip, expected = reference
    encoded = clip.tower.dual_path(
        expected[f"{size}.images"], PathConfig(_depth(clip), vv_attention)
    )
    tokens = expected[f"{size}.surgery_tokens"]
    assert relative_error(encoded.patches, tokens[:, 1:]) < TOLERANCE
    if clip.tower.has_residual:  # the release's class token of a ResNet is not CLIP's own
        assert relative_error(encoded.pooled, tokens[:, 0]) < TOLERANCE


def test_plain_tokens(reference: Reference) -> None:
    clip, expected = reference
    encoded = clip.tower.dual_path(expected["native.images"], OWN_TOKENS)
    tokens = expected["native.raw_tokens"]
    assert relative_error(encoded.patches, tokens[:, 1:]) < TOLERANCE
    assert relative_error(encoded.pooled, tokens[:, 0]) < TOLERANCE


@pytest.mark.parametrize("num_blocks", [0, 1, None])
def test_class_token_is_the_untouched_model_s_embedding(
    reference: Reference, num_blocks: int | None
) -> None:
    clip, expected = reference
    images = expected["native.images"]
    num_blocks = _depth(clip) if num_blocks is None else num_blocks
    pooled = clip.tower.dual_path(images, PathConfig(num_blocks, vv_attention)).pooled
    assert relative_error(pooled, clip.model.encode_image(images)) < TOLERANCE


@pytest.mark.parametrize("size", SIZES)
def test_cosines(reference: Reference, size: str) -> None:
    clip, expected = reference
    maps = LayerCLIPSurgery(clip, feature_surgery=None).attribute_all(expected[f"{size}.images"])
    assert relative_error(maps.flatten(2).mT, expected[f"{size}.cosine"][:, 1:]) < TOLERANCE


@pytest.mark.parametrize("size", SIZES)
def test_release_form(reference: Reference, size: str) -> None:
    _, expected = reference
    tokens = F.normalize(expected[f"{size}.surgery_tokens"], dim=-1)
    # Row 0 is what the release takes for the class feature, also where it is not CLIP's own.
    scores = feature_surgery(tokens, expected["text_features"], tokens[:, 0], "release")
    assert relative_error(scores.mT, expected[f"{size}.feature_surgery"]) < TOLERANCE


@pytest.mark.parametrize("size", SIZES)
def test_release_form_end_to_end(size: str) -> None:
    expected = load_file(DATA / "vit-expected.safetensors")
    clip = ZeroShotClassifier(load_reference_model("vit"), REFERENCE_TEXTS)
    images = expected[f"{size}.images"]
    maps = LayerCLIPSurgery(clip, feature_surgery="release").attribute_all(images)
    patches = expected[f"{size}.feature_surgery"][:, 1:]
    assert relative_error(maps.flatten(2).mT, patches) < TOLERANCE


@pytest.mark.parametrize("size", SIZES)
def test_single_text(reference: Reference, size: str) -> None:
    clip, expected = reference
    images = expected[f"{size}.images"]
    maps = LayerCLIPSurgery(clip.with_texts(["dog"])).attribute(images)
    patches = expected[f"{size}.feature_surgery_single"][:, 1:]
    assert relative_error(maps.flatten(2).mT, patches) < TOLERANCE


@pytest.mark.parametrize("size", SIZES)
def test_batch_equals_one_by_one(reference: Reference, size: str) -> None:
    clip, expected = reference
    images = torch.cat([expected[f"{size}.images"], expected[f"{size}.images"].flip(-1)])
    method = LayerCLIPSurgery(clip, feature_surgery="release")
    alone = torch.cat([method.attribute_all(image[None]) for image in images])
    assert relative_error(method.attribute_all(images), alone) < TOLERANCE


# The same engine under other recipes: the published implementations of five more methods.


def _self_similarity(name: str) -> Any:
    def attention(heads: AttentionInputs) -> Tensor:
        z = getattr(heads, name)
        return F.scaled_dot_product_attention(z, z, heads.v)

    return attention


def _correlative(heads: AttentionInputs) -> Tensor:
    return _self_similarity("q")(heads) + _self_similarity("k")(heads)


def _neighbourhood(heads: AttentionInputs) -> Tensor:
    rows, columns = heads.grid
    places = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).float()
    gaussian = torch.exp(-(torch.cdist(places, places) ** 2) / (2 * 5**2))
    bias = F.pad(gaussian, (1, 0, 1, 0))
    return F.scaled_dot_product_attention(heads.k, heads.k, heads.v, attn_mask=bias)


def _gem(heads: AttentionInputs) -> Tensor:
    inverse_temperature = (
        heads.x.norm(dim=-1).mean(-1)[:, None, None, None] * heads.v.shape[-1] ** -0.5
    )
    attended = []
    for z in (heads.q, heads.k, heads.v):
        z = F.normalize(z, dim=-1)
        z = F.normalize((inverse_temperature * z @ z.mT).softmax(-1) @ z, dim=-1)
        attended.append((inverse_temperature * z @ z.mT).softmax(-1) @ heads.v)
    return torch.stack(attended).mean(0)


@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        ("maskclip", PathConfig(1, lambda heads: heads.v, mlp=True)),
        ("maskclip_no_residual", PathConfig(1, lambda heads: heads.v, residual=False)),
        ("sclip", PathConfig(1, _correlative, mlp=True)),
        ("clearclip", PathConfig(1, _self_similarity("q"), residual=False)),
        ("naclip", PathConfig(1, _neighbourhood, residual=False)),
        ("gem", PathConfig(6, _gem)),
    ],
)
def test_other_recipes(name: str, recipe: PathConfig) -> None:
    expected = load_file(DATA / "peers-expected.safetensors")[f"{name}.tokens"][:, -36:]
    images = load_file(DATA / "vit-expected.safetensors")["native.images"]
    clip = ZeroShotClassifier(load_reference_model("vit"), ["dog"], templates=())
    assert relative_error(clip.tower.dual_path(images, recipe).patches, expected) < TOLERANCE


def _depth(clip: ZeroShotClassifier) -> int:
    return min(6, len(clip.tower.blocks))

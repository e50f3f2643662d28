"""The parts of a text's feature: their sum on every kind of text tower, and their definition."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from open_clip.model import CustomTextCLIP
from torch import Tensor, nn

from captum_clip_surgery import ZeroShotClassifier
from captum_clip_surgery.models.text._direct_effects import TextEffects, text_effects
from captum_clip_surgery.models.text._encoder import PromptEncoder
from captum_clip_surgery.models.text._parts import apply_to_parts
from tests._helpers.cases import each
from tests._helpers.text_towers import KINDS, TEXTS, Words, manner, shrunk, text_model
from tests._helpers.transformers_models import NAMES, build, processor

DTYPES = [(torch.float32, 1e-5), (torch.float64, 1e-10)]


def total(effects: TextEffects) -> Tensor:
    return effects.tokens.sum(1) + sum(effects.remainder.values())


def check_sum(encoder: PromptEncoder, texts: list[str], expected: Tensor, tolerance: float) -> None:
    effects = text_effects(encoder, encoder.tokenize(texts))
    assert (total(effects) - expected).abs().max() < tolerance * expected.abs().max()
    assert (effects.feature - expected).abs().max() < tolerance * expected.abs().max()
    assert effects.tokens.norm() > 0.05 * expected.norm()  # the parts are not all remainder


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@each("name", KINDS)
def test_parts_sum_to_encode_text(name, dtype, tolerance):
    config = KINDS[name]
    model = shrunk(config).to(dtype)
    encoder = PromptEncoder(model, Words(manner(config["text_cfg"])), ())
    with torch.no_grad():
        expected = model.encode_text(encoder.tokenize(TEXTS), normalize=False)
    check_sum(encoder, TEXTS, expected, tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@each("name", [name for name in NAMES if name != "Tipsv2Model"])
def test_parts_sum_to_the_features_of_transformers(name, dtype, tolerance):
    # Their eager attention takes its softmax in float32.
    model = build(name, "sdpa", dtype)
    clip = ZeroShotClassifier(model, ["dog"], processor=processor(name), templates=[])
    texts = ["a dog sat", "cat"]
    with torch.no_grad():
        expected = clip.model.encode_text(clip.text_encoder.tokenize(texts))
    check_sum(clip.text_encoder, texts, expected, tolerance)


NORMS = dict(qk_norm=True, scale_heads=True, scale_attn_inner=True, scale_attn=True, scale_fc=True)


@pytest.mark.parametrize(
    ("options", "switches"),
    [
        (dict(ls_init_value=0.3), []),
        (dict(block_type="custom", **NORMS), []),
        (dict(embed_cls=True), ["correct_cls_mask"]),
        (dict(no_causal_mask=True, pool_type="first"), ["use_pad_mask"]),
    ],
    ids=["layer scale", "norms within attention", "class token", "padding masked, first"],
)
def test_parts_sum_with_every_option_of_a_block(options, switches):
    model = text_model(CustomTextCLIP, **options).double()
    for switch in switches:  # which configurations do not reach
        setattr(model.text, switch, True)
    with torch.no_grad():
        for name, parameter in model.text.named_parameters():
            if "head_scale" in name:
                parameter.uniform_(0.5, 2)
    encoder = PromptEncoder(model, templates=())
    with torch.no_grad():
        expected = model.encode_text(encoder.tokenize(TEXTS))
    check_sum(encoder, TEXTS, expected, 1e-10)
    remainder = text_effects(encoder, encoder.tokenize(TEXTS)).remainder
    assert ("class token" in remainder) == ("embed_cls" in options)
    assert all(part.abs().amax(-1).min() > 1e-3 for part in remainder.values())


# --- definition ----------------------------------------------------------------------------------


def naive_parts(tower: Any, ids: Tensor, pooled: int, project: Any) -> dict[str, Tensor]:
    """The parts of one text's feature (C,) from raw parameters, head by head, token by token.

    A norm maps a part u of the stream x to weight * (u - mean(u)) / std(x).
    """
    x = tower.token_embedding.weight[ids] + tower.positional_embedding[: len(ids)]
    mask = torch.zeros(len(ids), len(ids), dtype=x.dtype)
    if tower.attn_mask is not None:
        mask = torch.full_like(mask, -torch.inf).triu(1)
    stream = {"embedding": x[pooled], "feed-forward": 0, "bias": 0}
    stream["tokens"] = torch.zeros_like(x)
    for block in tower.transformer.resblocks:
        attention = block.attn
        width = x.shape[1] // attention.num_heads
        normed = block.ln_1(x)
        update = torch.zeros_like(x)
        for head in range(attention.num_heads):
            rows = slice(head * width, (head + 1) * width)
            q, k, v = (
                normed @ weight[rows].T + bias[rows]
                for weight, bias in zip(
                    attention.in_proj_weight.chunk(3),
                    attention.in_proj_bias.chunk(3),
                    strict=True,
                )
            )
            probabilities = (q @ k.T / width**0.5 + mask).softmax(-1)
            moved = v @ attention.out_proj.weight[:, rows].T  # (L, D)
            update += probabilities @ moved
            stream["tokens"] += probabilities[pooled][:, None] * moved
        stream["bias"] = stream["bias"] + attention.out_proj.bias
        x = x + update + attention.out_proj.bias
        added = block.mlp(block.ln_2(x))
        stream["feed-forward"] = stream["feed-forward"] + added[pooled]
        x = x + added
    norm, final = tower.ln_final, x[pooled]
    deviation = (final.var(correction=0) + norm.eps).sqrt()
    weight, bias = project
    parts = {
        name: norm.weight * (part - part.mean(-1, keepdim=True)) / deviation @ weight
        for name, part in stream.items()
    }
    parts["bias"] = parts["bias"] + norm.bias @ weight + bias
    return parts


@pytest.mark.parametrize("pooling", ["end of text", "last position"])
def test_parts_are_their_definition(pooling):
    config = KINDS["convnext_base" if pooling == "end of text" else "ViT-B-16-SigLIP"]
    model = shrunk(config).double()
    encoder = PromptEncoder(model, Words(manner(config["text_cfg"])), ())
    tower, tokens = encoder.tower, encoder.tokenize(TEXTS[:2])
    with torch.no_grad():
        effects = text_effects(encoder, tokens)
        for index, ids in enumerate(tokens):
            if pooling == "end of text":
                pooled = int(ids.argmax())
                ids = ids[: pooled + 1]
                project = tower.text_projection, 0
            else:
                pooled = len(ids) - 1
                project = tower.text_projection.weight.T, tower.text_projection.bias
            expected = naive_parts(tower, ids, pooled, project)
            length = len(ids)
            assert torch.allclose(effects.tokens[index, :length], expected.pop("tokens"))
            assert not effects.tokens[index, length:].any()  # behind the end
            assert list(effects.remainder) == list(expected)
            for name, part in expected.items():
                assert torch.allclose(effects.remainder[name][index], part), name


def test_a_batch_is_its_texts_and_needs_no_mode():
    encoder = ZeroShotClassifier.demo(["dog"]).text_encoder
    tokens = encoder.tokenize(["a dog", "a dog and a big pizza"])
    together = text_effects(encoder, tokens)
    assert not together.tokens.requires_grad
    with torch.inference_mode():
        for index in range(2):
            alone = text_effects(encoder, tokens[index : index + 1])
            length = alone.tokens.shape[1]
            assert torch.allclose(alone.tokens[0], together.tokens[index, :length], atol=1e-5)


# --- parts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["LayerNorm", "RMSNorm"])
def test_parts_through_a_norm(kind):
    torch.manual_seed(0)
    norm: Any = getattr(nn, kind)(8, eps=1e-3).double()
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    parts = torch.randn(5, 2, 3, 8, dtype=torch.float64)
    outputs, constant = apply_to_parts(norm, parts)
    assert torch.allclose(outputs.sum(0) + constant, norm(parts.sum(0)))
    # Statistics are those of the sum, so that parts do not depend on how the rest is split.
    fewer, _ = apply_to_parts(norm, torch.stack([parts[0], parts[1:].sum(0)]))
    assert torch.allclose(fewer[0], outputs[0])


def test_a_bias_before_a_norm_belongs_to_no_part():
    torch.manual_seed(0)
    function = nn.Sequential(nn.Linear(8, 6), nn.LayerNorm(6)).double()
    parts = torch.randn(5, 2, 8, dtype=torch.float64)
    outputs, constant = apply_to_parts(function, parts)
    assert torch.allclose(outputs.sum(0) + constant, function(parts.sum(0)))


# --- what is refused -----------------------------------------------------------------------------


def test_towers_that_are_refused():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        encoder = PromptEncoder(text_model(CustomTextCLIP, pool_type="none"), templates=())
    with pytest.raises(TypeError, match="TextTransformer is not supported: its feature must be"):
        text_effects(encoder, torch.zeros(1, 16, dtype=torch.long))


@pytest.mark.skipif("Tipsv2Model" not in NAMES, reason="the installed transformers has none")
def test_a_mean_over_tokens_is_refused():
    clip = ZeroShotClassifier(
        build("Tipsv2Model"), ["dog"], processor=processor("Tipsv2Model"), templates=[]
    )
    with pytest.raises(TypeError, match="Tipsv2TextModel is not supported: its feature must be"):
        text_effects(clip.text_encoder, clip.text_encoder.tokenize(["a dog"]))

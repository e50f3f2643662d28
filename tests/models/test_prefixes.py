"""Shared beginnings of prompts computed once: the tree, and features equal to `encode_text`."""

from __future__ import annotations

import pytest
import torch
from open_clip.model import CLIP, CustomTextCLIP
from torch import nn

from captum_clip_surgery.models.text import _prefix_tree, _token_encoder
from captum_clip_surgery.models.text._encoder import PromptEncoder
from captum_clip_surgery.models.text._prefix_tree import (
    build_prefix_tree,
    encode_shared,
    shares_prefixes,
)
from captum_clip_surgery.models.text._templates import TEMPLATES, format_prompt
from tests._helpers.cases import each
from tests._helpers.text_towers import CONTEXT, KINDS, Words, manner, shrunk, text_model
from tests._helpers.tiny import relative_error

CPU = torch.device("cpu")
CUSTOM = dict(qk_norm=True, scale_heads=True, scale_attn_inner=True, scale_attn=True, scale_fc=True)
TOWERS = {
    "CLIP": (CLIP, {}),
    "eos": (CLIP, dict(pool_type="eos", eos_id=49407)),
    "biased projection": (CLIP, dict(proj_bias=True)),
    "one block": (CLIP, dict(layers=1)),
    "LayerScale": (CustomTextCLIP, dict(ls_init_value=0.3)),
    "custom blocks": (CustomTextCLIP, dict(**CUSTOM, ls_init_value=0.5)),
    "no projection": (CustomTextCLIP, dict(proj_type="none", width=24)),
}
WORDS = ["dog", "remote control", "cat", "dog", "potted plant"]


def some_prompts() -> list[str]:
    """Alike, a beginning of another, the same twice, empty, too long, and nothing alike."""
    filled = [format_prompt(template, word) for word in WORDS for template in TEMPLATES[::9]]
    return [*filled, "a", "a photo", "a photo", "", "x " * 40, "zebra"]


def ids(model: nn.Module, texts: list[str]) -> torch.Tensor:
    return PromptEncoder(model, truncate=True).tokenize(texts)


@pytest.mark.parametrize("name", TOWERS)
def test_features_are_those_of_encode_text(name):
    family, text_cfg = TOWERS[name]
    model = text_model(family, **text_cfg)
    tokens = ids(model, some_prompts())
    tower = getattr(model, "text", model)
    assert shares_prefixes(tower)
    with torch.no_grad():
        features = encode_shared(tower, tokens, CPU)
        assert relative_error(features, model.encode_text(tokens)) < 2e-6
        double = encode_shared(tower.double(), tokens, CPU)
        assert relative_error(double, model.encode_text(tokens)) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["CLIP", "custom blocks"])
def test_half_precision_errs_no_more_than_the_model(name, dtype):
    family, text_cfg = TOWERS[name]
    model = text_model(family, **text_cfg)
    tokens = ids(model, some_prompts())
    with torch.no_grad():
        model = model.to(dtype)
        own = model.encode_text(tokens)
        shared = encode_shared(getattr(model, "text", model), tokens, CPU)
        exact = model.double().encode_text(tokens)
    assert shared.dtype == own.dtype == dtype
    assert relative_error(shared, exact) < 1.5 * relative_error(own, exact)


@each("name", KINDS)
def test_every_kind_of_open_clips_own_towers(name):
    config = KINDS[name]
    model, tokenizer = shrunk(config), Words(manner(config["text_cfg"]))
    encoder = PromptEncoder(model, tokenizer)
    tokens = encoder.tokenize([f"a photo of {word}" for word in [*WORDS, "a photo"]])
    with torch.no_grad():
        expected = model.encode_text(tokens)
        assert relative_error(encoder.encode_tokens(tokens), expected) < 2e-6


@pytest.mark.parametrize("places", [1, 40, 100])
def test_chunks_keep_the_order(monkeypatch, places):
    monkeypatch.setattr(_token_encoder, "MAX_TOKENS", places)
    model = text_model()
    tokens = ids(model, some_prompts())
    with torch.no_grad():
        features = PromptEncoder(model).encode_tokens(tokens)
        assert relative_error(features, model.encode_text(tokens)) < 2e-6


def test_the_tree_holds_each_beginning_once():
    texts = [[1, 2, 3, 9, 0], [1, 2, 9, 7, 7], [1, 2, 3, 9, 5], [4, 9, 0, 0, 0], [1, 2, 3, 3, 9]]
    tokens = torch.tensor(texts)
    ends = tokens.argmax(1)
    tree = build_prefix_tree(tokens, ends, CPU)
    cut = [tuple(text[: end + 1]) for text, end in zip(texts, ends.tolist(), strict=True)]
    beginnings = {text[: i + 1] for text in cut for i in range(len(text))}
    assert len(tree.tokens) == len(beginnings) == 9
    read = set()
    asked = torch.cat([path.queries.flatten() for path in tree.paths])
    for path in tree.paths:
        assert (tree.positions[path.nodes] == torch.arange(path.nodes.shape[1])).all()
        read |= {tuple(row) for row in tree.tokens[path.nodes].tolist()}
    assert read == set(cut)
    assert asked.unique().tolist() == list(range(9))  # none is left without its attention
    assert tree.ends[0] == tree.ends[2]
    assert tree.tokens[tree.ends].tolist() == [9] * 5


def test_nothing_shared_is_computed_twice(monkeypatch):
    """85 prompts of 7 words: nodes, not places of the context, pass through a block."""
    seen = []
    plain = _prefix_tree.block_feed_forward
    monkeypatch.setattr(
        _prefix_tree, "block_feed_forward", lambda b, x: (seen.append(x.shape[1]), plain(b, x))[1]
    )
    model = text_model(context_length=77)
    words = ["dog", "cat", "car", "bus", "cow", "tv", "sofa"]
    encoder = PromptEncoder(model)
    encoder.check()  # compares two texts with the model itself
    seen.clear()
    encoder(words)
    tokens = encoder.tokenize(
        [format_prompt(template, word) for word in words for template in TEMPLATES]
    )
    rows = zip(tokens.tolist(), tokens.argmax(1).tolist(), strict=True)
    distinct = {tuple(row[: i + 1]) for row, end in rows for i in range(end + 1)}
    assert seen == [len(distinct), len(tokens)]  # of the last block the ends alone
    assert 17 * seen[0] < tokens.numel()


@pytest.mark.parametrize("kind", ["transformer", "block", "attention"])
def test_hooks_see_and_change_what_they_always_did(kind):
    model = text_model()
    tokens = ids(model, some_prompts())
    block = model.transformer.resblocks[0]
    module = {"transformer": model.transformer, "block": block, "attention": block.attn}[kind]
    seen = []
    if kind == "attention":
        handle = module.register_forward_pre_hook(lambda *_: seen.append(1))
    else:
        handle = module.register_forward_hook(lambda m, a, out: (seen.append(1), 2 * out)[1])
    encoder = PromptEncoder(model)
    with torch.no_grad():
        hooked = encoder.encode_tokens(tokens)
        assert seen
        assert relative_error(hooked, model.encode_text(tokens)) < 2e-6
        handle.remove()
        plain = encoder.encode_tokens(tokens)
        assert relative_error(plain, model.encode_text(tokens)) < 2e-6
    assert (relative_error(hooked, plain) > 1e-2) == (kind == "block")


def test_blocks_of_other_kinds_keep_the_towers_own_way():
    class Louder(type(text_model().transformer.resblocks[0])):  # type: ignore[misc]
        def forward(self, *args, **kwargs):
            return 2 * super().forward(*args, **kwargs)

    model = text_model()
    model.transformer.resblocks[1].__class__ = Louder
    tokens = ids(model, some_prompts())
    assert not shares_prefixes(model)
    with torch.no_grad():
        features = PromptEncoder(model).encode_tokens(tokens)
        assert relative_error(features, model.encode_text(tokens)) < 2e-6
    assert tokens.shape[1] == CONTEXT


def test_what_sees_behind_the_end_shares_nothing():
    assert not shares_prefixes(text_model(no_causal_mask=True))
    assert not shares_prefixes(text_model(CustomTextCLIP, pool_type="last").text)
    assert not shares_prefixes(text_model(CustomTextCLIP, embed_cls=True).text)

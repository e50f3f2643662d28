"""Text towers of every kind open_clip configures, and Hugging Face's: features of `encode_text`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import open_clip
import pytest
import torch
from open_clip.model import CustomTextCLIP
from safetensors.torch import save_file
from torch import Tensor

from captum_clip_surgery import ZeroShotClassifier
from captum_clip_surgery.models import _loading
from captum_clip_surgery.models.text._encoder import PromptEncoder
from tests._helpers.cases import each
from tests._helpers.text_towers import (
    HUGGING_FACE,
    KINDS,
    TEXTS,
    VISION,
    VOCABULARY,
    WIDTH,
    Words,
    manner,
    save_text_tower,
    save_tokenizer,
    shrunk,
)
from tests._helpers.tower_kinds import TINY


def test_the_kinds_cover_what_open_clip_has():
    text_cfgs = [config["text_cfg"] for config in KINDS.values()]
    assert {manner(text_cfg) for text_cfg in text_cfgs} == {"bpe", "t5", "bert", "roberta"}
    lengths = {text_cfg.get("context_length", 77) for text_cfg in text_cfgs}
    assert lengths == {16, 32, 64, 72, 76, 77}
    assert {text_cfg.get("no_causal_mask", False) for text_cfg in text_cfgs} == {True, False}
    assert any("multimodal_cfg" in config for config in KINDS.values())


@each("name", KINDS)
def test_features_equal_encode_text(name):
    config = KINDS[name]
    model, tokenizer = shrunk(config), Words(manner(config["text_cfg"]))
    context = config["text_cfg"].get("context_length", 77)
    seen: list[int] = []
    tower = getattr(model, "text", model)
    tower.transformer.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))

    features = PromptEncoder(model, tokenizer, ["{}", "a photo of {}"])(TEXTS)

    with torch.no_grad():
        single = [
            model.encode_text(tokenizer([prompt], context))[0]
            for text in TEXTS
            for prompt in (text, f"a photo of {text}")
        ]
    prompts = torch.stack([feature / feature.norm() for feature in single]).unflatten(0, (-1, 2))
    expected = prompts.mean(1) / prompts.mean(1).norm(dim=-1, keepdim=True)
    assert torch.allclose(features, expected, atol=1e-6)
    assert (features[0] - features[1]).abs().max() > 1e-2  # texts matter
    # What comes after the end is left out where it cannot be seen, and nowhere else.
    text_cfg = config["text_cfg"]
    exact = text_cfg.get("pool_type", "argmax") in ("argmax", "eos") and not (
        text_cfg.get("no_causal_mask") or text_cfg.get("embed_cls")
    )
    assert (seen[0] < context) == exact


@each("name", KINDS)
def test_a_prompt_that_does_not_fit_is_noticed(name):
    config = KINDS[name]
    tokenizer = Words(manner(config["text_cfg"]))
    context = config["text_cfg"].get("context_length", 77)
    model = shrunk(config)
    start = tokenizer.manner != "t5"
    # The end, or a separator stripped to padding, takes a place as well.
    fits = " ".join(f"w{i}" for i in range(context - 1 - start))
    for text, whole in ((fits, True), (f"{fits} more", False), (f"{fits} two more", False)):
        if whole:
            feature = PromptEncoder(model, tokenizer, ())([text])
            with torch.no_grad():
                expected = model.encode_text(tokenizer([text], context))
            assert torch.allclose(feature, expected / expected.norm(dim=-1), atol=1e-6)
            continue
        with pytest.raises(ValueError, match=f"longer than the model's context of {context}"):
            PromptEncoder(model, tokenizer, ())([text])
        cut = PromptEncoder(model, tokenizer, (), truncate=True)([text, "dog"])
        with torch.no_grad():
            expected = model.encode_text(tokenizer([text, "dog"], context))
        assert torch.allclose(cut, expected / expected.norm(dim=-1, keepdim=True), atol=1e-6)


@pytest.mark.parametrize("name", [n for n in KINDS if "init_logit_bias" in KINDS[n]])
def test_logits_have_the_models_bias(name):
    model, tokenizer = shrunk(KINDS[name]), Words("t5")
    model.visual.preprocess_cfg = dict(mean=(0.5,) * 3, std=(0.5,) * 3)
    with torch.no_grad():
        model.logit_bias.fill_(-3.5)
    clip = ZeroShotClassifier(model, TEXTS[:3], tokenizer=tokenizer, templates=())
    images = torch.randn(2, 3, *clip.native_size)
    context = model.text.context_length
    with torch.no_grad():
        expected, _ = model.get_logits(images, tokenizer(TEXTS[:3], context))
    assert torch.allclose(clip(images), expected, atol=1e-5)


# --- Hugging Face --------------------------------------------------------------------------------


@pytest.fixture(params=HUGGING_FACE)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A model with a Hugging Face text tower as open_clip's `local-dir:` loads it."""
    config_class, pooler, proj = HUGGING_FACE[request.param]
    torch.manual_seed(0)
    save_tokenizer(tmp_path)
    save_text_tower(tmp_path / "text", config_class)
    text_cfg = dict(
        hf_model_name=str(tmp_path / "text"),
        hf_tokenizer_name="in this folder",
        hf_pooler_type=pooler,
        hf_proj_type=proj,
        context_length=20,
    )
    config = dict(embed_dim=24, vision_cfg=VISION, text_cfg=text_cfg)
    model = CustomTextCLIP(**{**config, "vision_cfg": dict(VISION)})
    state = {name: value.clone() for name, value in model.state_dict().items()}
    save_file(state, tmp_path / "open_clip_model.safetensors")
    preprocess = dict(mean=[0.5] * 3, std=[0.5] * 3)
    content = json.dumps(dict(model_cfg=config, preprocess_cfg=preprocess))
    (tmp_path / "open_clip_config.json").write_text(content)
    return tmp_path


def test_hugging_face_text_towers(folder):
    clip = ZeroShotClassifier.from_pretrained(
        f"local-dir:{folder}", None, TEXTS[:3], templates=["{}", "a photo of {}"]
    )
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    with torch.no_grad():
        each = clip.model.encode_text(
            tokenizer([p for t in TEXTS[:3] for p in (t, f"a photo of {t}")])
        )
    each = (each / each.norm(dim=-1, keepdim=True)).unflatten(0, (3, 2)).mean(1)
    assert torch.allclose(clip.text_features(), each / each.norm(dim=-1, keepdim=True), atol=1e-6)
    # As many tokens as the tokenizer gives, not as the tower has places.
    assert clip.text_encoder.context_length == 20
    fits = "dog " * 18
    plain = ZeroShotClassifier(clip.model, ["dog"], tokenizer=tokenizer, templates=())
    plain.with_texts([fits])
    with pytest.raises(ValueError, match="longer than the model's context of 20"):
        plain.with_texts([f"{fits} plant"])
    assert torch.isfinite(clip(torch.randn(1, 3, *clip.native_size))).all()


def test_a_changed_hugging_face_tower_is_noticed(folder):
    clip = ZeroShotClassifier.from_pretrained(f"local-dir:{folder}", None, ["dog"], templates=())
    before = clip.text_features().clone()
    with torch.no_grad():
        next(clip.model.text.transformer.parameters()).mul_(1.5)
    assert not torch.allclose(clip.text_features(), before)


def test_a_tokenizer_of_ones_own_needs_a_length_where_the_tower_has_none(folder):
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")

    def own(texts: Sequence[str], context_length: int) -> Tensor:
        return tokenizer(texts, context_length=context_length)

    model.eval()
    if model.text.context_length:
        own_length = PromptEncoder(model, own, ()).context_length
        assert own_length == model.text.context_length
    else:
        with pytest.raises(ValueError, match="HFTextEncoder has no context length; pass"):
            PromptEncoder(model, own, ())


@pytest.mark.parametrize(
    ("name", "part"),
    [("roberta-ViT-B-32", "text tower"), ("ViT-B-16-SigLIP", "tokenizer")],
)
def test_without_transformers_the_extra_is_named(name, part, monkeypatch, tmp_path):
    checkpoint = tmp_path / "weights.pt"
    checkpoint.touch()
    monkeypatch.setattr(_loading, "find_spec", lambda _: None)
    message = rf"the {part} of {name} .* pip install 'captum_clip_surgery\[transformers\]'"
    with pytest.raises(ImportError, match=message):
        ZeroShotClassifier.from_pretrained(name, checkpoint, ["dog"])


def test_a_tokenizer_given_needs_no_transformers_and_no_hub(monkeypatch, tmp_path):
    """SigLIP by name, from a local checkpoint, with a tokenizer of the user's own."""
    name = "tiny-siglip-of-the-tests"
    text_cfg = KINDS["ViT-B-16-SigLIP"]["text_cfg"] | dict(
        width=WIDTH, heads=2, layers=2, vocab_size=VOCABULARY
    )
    config = dict(
        embed_dim=32, custom_text=True, init_logit_bias=-10, vision_cfg=TINY["siglip"].vision,
        text_cfg=text_cfg,
    )  # fmt: skip
    (tmp_path / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / f"{name}.json")
    try:
        model, _, _ = open_clip.create_model_and_transforms(name)
        torch.save(model.state_dict(), tmp_path / "weights.pt")
        monkeypatch.setattr(_loading, "find_spec", lambda _: None)
        clip = ZeroShotClassifier.from_pretrained(
            name, tmp_path / "weights.pt", ["dog", "cat"], tokenizer=Words("t5"), templates=()
        )
    finally:
        del open_clip.factory._MODEL_CONFIGS[name]
    assert clip.tower.pooling == "attention"
    assert clip(torch.randn(1, 3, 32, 32)).shape == (1, 2)


def test_an_unreachable_hub_says_what_to_pass(monkeypatch, tmp_path):
    def unreachable(name: str) -> None:
        raise OSError("We couldn't connect to the hub")

    monkeypatch.setattr(open_clip, "get_tokenizer", unreachable)
    model = TINY["vit"].build()
    monkeypatch.setattr(open_clip, "create_model_and_transforms", lambda *a, **k: (model, 0, 0))
    torch.save({"weight": torch.zeros(1)}, tmp_path / "weights.pt")
    with pytest.raises(
        OSError, match=r"tokenizer of ViT-B-32 could not be loaded.*\nPass tokenizer="
    ):
        ZeroShotClassifier.from_pretrained("ViT-B-32", tmp_path / "weights.pt", ["dog"])

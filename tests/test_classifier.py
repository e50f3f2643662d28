"""The classifier: its logits, other texts, ready features, and loading by name."""

from __future__ import annotations

import copy
import json
import re
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from captum_clip_surgery import TEMPLATES, LayerCLIPSurgery, ZeroShotClassifier
from tests._helpers.cases import each
from tests._helpers.tiny import (
    MODELS,
    random_images,
    relative_error,
    tiny_model,
    with_preprocessing,
)
from tests._helpers.tower_kinds import TINY

TEXTS = ["a dog", "a cat", "a tree"]
RIVALS = ["a car", "the sky"]
WIDTH = TINY["vit"].embed_dim
tokenize = partial(open_clip.tokenize, context_length=16)


def unit_features(count: int, seed: int = 0) -> Tensor:
    features = torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))
    return features / features.norm(dim=-1, keepdim=True)


@pytest.fixture
def vit() -> ZeroShotClassifier:
    return ZeroShotClassifier(tiny_model("vit"), TEXTS, RIVALS, templates=())


# --- logits --------------------------------------------------------------------------------------


@each("extra", [{}, dict(init_logit_bias=-5.0), dict(nonscalar_logit_scale=True)])
@pytest.mark.parametrize("family", MODELS)
def test_logits_are_those_of_open_clip(family, extra):
    model = TINY[family].build(**extra)
    weights = {k: v for k, v in tiny_model(family).state_dict().items() if k != "logit_scale"}
    model.load_state_dict(weights, strict=False)
    with_preprocessing(model.eval())
    with torch.no_grad():
        model.logit_scale.fill_(3.0)
    clip = ZeroShotClassifier(model, TEXTS, RIVALS)
    images = random_images(clip)
    image = model.encode_image(images, normalize=True)
    text = open_clip.build_zero_shot_classifier(model, tokenize, TEXTS, TEMPLATES)
    expected = np.exp(3) * image @ text + extra.get("init_logit_bias", 0)
    torch.testing.assert_close(clip(images), expected, atol=1e-4, rtol=1e-5)
    plain = ZeroShotClassifier(model, TEXTS, templates=())
    if hasattr(model, "get_logits"):
        expected = model.get_logits(images, tokenize(TEXTS))[0]
    else:  # CoCa leaves them to its loss
        text = model.encode_text(tokenize(TEXTS), normalize=True)
        expected = np.exp(3) * image @ text.T + extra.get("init_logit_bias", 0)
    torch.testing.assert_close(plain(images), expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("family", MODELS)
def test_with_texts_is_a_new_classifier_on_the_same_model(family):
    clip = ZeroShotClassifier(tiny_model(family), TEXTS, RIVALS, templates=["my {}."])
    other = clip.with_texts(["a red car", "a dog"], ["a cat"])
    fresh = ZeroShotClassifier(clip.model, ["a red car", "a dog"], ["a cat"], templates=["my {}."])
    assert other.model is clip.model
    assert (other.texts, other.distractors) == (("a red car", "a dog"), ("a cat",))
    assert (clip.texts, clip.distractors) == (tuple(TEXTS), tuple(RIVALS))
    images = random_images(clip)
    torch.testing.assert_close(other(images), fresh(images))
    for form in "empty", "release":
        actual, expected = (
            LayerCLIPSurgery(each, feature_surgery=form).attribute_all(images)
            for each in (other, fresh)
        )
        torch.testing.assert_close(actual, expected)
    assert clip(images).shape == (2, 3)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (9, 9, 3), dtype=np.uint8))
    assert torch.equal(other.preprocess(picture), clip.preprocess(picture))


def test_distractors_compete_but_are_no_targets(vit):
    images = random_images(vit)
    together, alone = vit.with_texts(TEXTS + RIVALS), vit.with_texts(TEXTS)
    maps, expected, without = (
        LayerCLIPSurgery(clip, feature_surgery="release").attribute_all(images)
        for clip in (vit, together, alone)
    )
    torch.testing.assert_close(maps, expected[:, :3])
    assert relative_error(maps.detach(), without.detach()) > 0.01
    torch.testing.assert_close(vit(images), alone(images))
    for target in 3, -4:
        with pytest.raises(IndexError, match=f"target {target} is out of range for 3 texts"):
            LayerCLIPSurgery(vit).attribute(images, target)


def test_what_it_says_and_saves(vit):
    vit.token_grid(0)
    said = repr(vit)
    tower = (
        "open_clip VisionTransformer, pooled by class token, 3 blocks, "
        "32 x 32 pixels in 4 x 4 patches of 8 x 8"
    )
    for part in (*TEXTS, *RIVALS, tower):
        assert part in said
    assert set(vit.state_dict()) == {f"model.{name}" for name in vit.model.state_dict()}


def test_only_the_embedded_model_lists_its_words(vit):
    assert vit.vocabulary is None


# --- ready features ------------------------------------------------------------------------------


@pytest.mark.parametrize("family", MODELS)
def test_from_features_equals_the_constructor_given_its_features(family):
    clip = ZeroShotClassifier(tiny_model(family), TEXTS, templates=["my {}."])
    images = random_images(clip)
    scales = torch.tensor([[0.1], [7.0], [1.0]])  # only directions count
    ready = ZeroShotClassifier.from_features(
        clip.model, clip.text_features() * scales, clip.empty_features() * 3, texts=TEXTS
    )
    torch.testing.assert_close(ready.text_features(), clip.text_features())
    torch.testing.assert_close(ready(images), clip(images))
    for form in "auto", "release", None:
        expected = LayerCLIPSurgery(clip, feature_surgery=form).attribute_all(images)
        actual = LayerCLIPSurgery(ready, feature_surgery=form).attribute_all(images)
        torch.testing.assert_close(actual, expected)
    assert set(ready.state_dict()) == set(clip.state_dict())
    assert ready.index("a cat") == 1
    unnamed = ZeroShotClassifier.from_features(clip.model, clip.text_features())
    assert unnamed.index("feature 2") == 2
    with pytest.raises(ValueError, match="made by from_features has no texts to replace"):
        ready.with_texts(["a dog"])


def test_gradients_reach_features():
    features = (unit_features(2) * 2).requires_grad_()
    clip = ZeroShotClassifier.from_features(tiny_model("vit"), features)
    images = random_images(clip)
    gradient = torch.autograd.grad(clip(images)[0, 1], features)[0]
    unit = features.detach()[1] / 2
    image = clip.image_features(images)[0] * clip.model.logit_scale.exp()
    expected = (image - image @ unit * unit) / 2  # of a cosine, along the sphere
    torch.testing.assert_close(gradient[1], expected)
    assert not gradient[0].any()


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_features_given_without_gradients_serve_gradients_later(mode):
    model = tiny_model("vit")
    with mode():
        clip = ZeroShotClassifier.from_features(model, unit_features(2))
    images = random_images(clip).requires_grad_()
    assert torch.autograd.grad(clip(images).sum(), images)[0].any()


def test_few_features_need_the_empty_text():
    model, features, empty = tiny_model("vit"), unit_features(8), unit_features(1, seed=1)
    few = ZeroShotClassifier.from_features(model, features[:7])
    images = random_images(few)
    for form in "auto", "empty":
        remedies = 'pass empty_features= to from_features, or use feature_surgery="release"'
        with pytest.raises(ValueError, match=f"'{form}' with 7 features .* {remedies}"):
            LayerCLIPSurgery(few, feature_surgery=form).attribute(images, 0)
    LayerCLIPSurgery(few, feature_surgery="release").attribute(images, 0)
    many = ZeroShotClassifier.from_features(model, features)
    auto, release = (
        LayerCLIPSurgery(many, feature_surgery=form).attribute_all(images)
        for form in ("auto", "release")
    )
    assert torch.equal(auto, release)
    for given in empty, empty[0]:
        helped = ZeroShotClassifier.from_features(model, features[:7], given)
        plain = LayerCLIPSurgery(few, feature_surgery=None).attribute_all(images)
        common = LayerCLIPSurgery(
            ZeroShotClassifier.from_features(model, empty), feature_surgery=None
        ).attribute_all(images)
        maps = LayerCLIPSurgery(helped).attribute_all(images)
        torch.testing.assert_close(maps, plain - common, atol=1e-6, rtol=1e-5)


GOOD = unit_features(3)
REFUSED_FEATURES = {
    "width": (dict(features=GOOD[:, :20]), ValueError, r"\(3, 20\), expected \(K, 24\)"),
    "one row": (dict(features=GOOD[0]), ValueError, r"features have shape \(24,\), expected \(K"),
    "batch": (dict(features=GOOD[None]), ValueError, r"features have shape \(1, 3, 24\)"),
    "none": (dict(features=GOOD[:0]), ValueError, r"features have shape \(0, 24\)"),
    "zero": (dict(features=GOOD * torch.tensor([[1], [0], [1]])), ValueError, "features 1 is zero"),
    "NaN": (dict(features=GOOD * torch.nan), ValueError, "features hold NaN or infinity"),
    "infinite": (dict(features=GOOD / 0), ValueError, "features hold NaN or infinity"),
    "numpy": (dict(features=GOOD.numpy()), TypeError, "features are ndarray, expected a floating"),
    "int": (dict(features=GOOD.long()), TypeError, "features are torch.int64, expected a floating"),
    "names": (dict(features=GOOD, texts=["a"]), ValueError, "got 1 texts for 3 features"),
    "a name": (dict(features=GOOD, texts="abc"), TypeError, "texts is the string 'abc'; pass a li"),
    "empty width": (dict(features=GOOD, empty_features=GOOD[0, 1:]), ValueError, "empty_features"),
    "empty rows": (dict(features=GOOD, empty_features=GOOD[:2]), ValueError, "empty_features have"),
    "empty zero": (dict(features=GOOD, empty_features=GOOD[0] * 0), ValueError, "empty.* is zero"),
    "empty NaN": (
        dict(features=GOOD, empty_features=GOOD[0] * torch.nan),
        ValueError,
        "empty.*NaN",
    ),
    "empty list": (dict(features=GOOD, empty_features=[1.0] * 24), TypeError, "are list, exp"),
}


@each("kind", REFUSED_FEATURES)
def test_refused_features(kind):
    arguments, error, message = REFUSED_FEATURES[kind]
    with pytest.raises(error, match=message):
        ZeroShotClassifier.from_features(tiny_model("vit"), **arguments)


# --- loading -------------------------------------------------------------------------------------

NAME = "tiny-of-the-tests"
PREPROCESSING = dict(mean=(0.1, 0.3, 0.6), std=(0.2, 0.4, 0.5), interpolation="bilinear")
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8))


@pytest.fixture
def registered(tmp_path, monkeypatch):
    """open_clip knows the tiny ViT by name; afterwards no more."""
    factory = open_clip.factory
    monkeypatch.setattr(factory, "_MODEL_CONFIGS", dict(factory._MODEL_CONFIGS))
    monkeypatch.setattr(factory, "_MODEL_CONFIG_PATHS", list(factory._MODEL_CONFIG_PATHS))
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / f"{NAME}.json").write_text(json.dumps(TINY["vit"].config))
    open_clip.add_model_config(tmp_path / "configs")


def save(path: Path) -> Path:
    """The tiny ViT's weights, as the files of this kind hold them."""
    state = tiny_model("vit").state_dict()
    if path.suffix == ".safetensors":
        save_file(state, path)
    elif path.suffix == ".pt":  # as open_clip's own training leaves them
        torch.save({"epoch": 1, "state_dict": {f"module.{k}": v for k, v in state.items()}}, path)
    else:
        torch.save(state, path)
    return path


def check_loaded(clip: ZeroShotClassifier, preprocessing: dict[str, Any]) -> None:
    model = tiny_model("vit")
    for name, value in clip.model.state_dict().items():
        torch.testing.assert_close(value.float(), model.state_dict()[name], atol=0.02, rtol=0.01)
    assert not any(module.training for module in clip.model.modules())
    expected = open_clip.image_transform(32, False, resize_mode="squash", **preprocessing)(PICTURE)
    torch.testing.assert_close(clip.preprocess(PICTURE)[0], expected, atol=1e-6, rtol=0)
    plain = ZeroShotClassifier(model, TEXTS, RIVALS, templates=())
    images = clip.preprocess([PICTURE, PICTURE.rotate(90)])
    tolerance = 0.05 if clip.tower.dtype == torch.bfloat16 else 1e-6
    assert relative_error(clip(images).detach(), plain(images).detach()) < tolerance


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("suffix", [".pt", ".bin", ".safetensors"])
def test_a_checkpoint_file(registered, tmp_path, suffix, precision):
    path = save(tmp_path / f"weights{suffix}")
    clip = ZeroShotClassifier.from_pretrained(
        NAME, str(path), TEXTS, RIVALS, templates=(), precision=precision, **PREPROCESSING
    )
    assert clip.tower.dtype == {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    check_loaded(clip, PREPROCESSING)


@pytest.mark.parametrize(
    "file", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin", "model.pth"]
)
def test_a_folder(tmp_path, file):
    config = {"model_cfg": TINY["vit"].config, "preprocess_cfg": PREPROCESSING}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    save(tmp_path / file)
    name = f"local-dir:{tmp_path}"
    clip = ZeroShotClassifier.from_pretrained(name, None, TEXTS, RIVALS, templates=())
    check_loaded(clip, PREPROCESSING)


def test_a_folder_without_weights_is_no_random_model(tmp_path):
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY["vit"].config}))
    with pytest.raises(FileNotFoundError, match=f"no (checkpoint|weights).*{tmp_path.name}"):
        ZeroShotClassifier.from_pretrained(f"local-dir:{tmp_path}", None, TEXTS)


def test_what_is_loaded_is_in_eval_mode_as_a_whole(registered, tmp_path):
    path = str(save(tmp_path / "weights.pt"))
    assert not ZeroShotClassifier.from_pretrained(NAME, path, TEXTS, templates=()).training


def test_options_reach_open_clip_and_the_class(registered, tmp_path):
    path = str(save(tmp_path / "weights.pt"))
    texts = ["dog " * 20]
    with pytest.raises(ValueError, match="longer than the model's context of 16 tokens"):
        ZeroShotClassifier.from_pretrained(NAME, path, texts, templates=())
    clip = ZeroShotClassifier.from_pretrained(
        NAME, path, texts, templates=(), truncate=True, positions="bicubic", force_image_size=64
    )
    assert clip.tower.positions == "bicubic"
    assert clip.native_size == (64, 64)
    assert clip.preprocess(PICTURE).shape == (1, 3, 64, 64)


@pytest.mark.parametrize(
    ("published", "given", "warns"),
    [
        ("ViT-B-16-SigLIP", {}, True),
        ("ViT-B-16-SigLIP", dict(mean=(0.5,) * 3, std=(0.5,) * 3), False),
        ("RN50", {}, False),
        ("nothing", {}, False),
    ],
)
def test_a_file_records_no_preprocessing(
    registered, tmp_path, monkeypatch, published, given, warns
):
    """The tiny model gets another's published tags."""
    tags, config = open_clip.list_pretrained_tags_by_model, open_clip.get_pretrained_cfg
    monkeypatch.setattr(open_clip, "list_pretrained_tags_by_model", lambda name: tags(published))
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda name, tag: config(published, tag))
    path = str(save(tmp_path / "weights.safetensors"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        clip = ZeroShotClassifier.from_pretrained(NAME, path, TEXTS, templates=(), **given)
    said = [str(each.message) for each in caught if "preprocessing" in str(each.message)]
    assert len(said) == warns
    if warns:
        assert f"{NAME} gets OpenAI's; its published weights use mean=(0.5, 0.5, 0.5)" in said[0]
        assert "Pass mean=, std= and interpolation=" in said[0]
    mean = torch.tensor(given.get("mean", open_clip.OPENAI_DATASET_MEAN))
    torch.testing.assert_close(clip.unnormalize(torch.zeros(3, 1, 1)).flatten(), mean)


@each(
    ("name", "pretrained", "options", "error", "message"),
    [
        (NAME, "there/weights.pt", {}, FileNotFoundError, "no checkpoint file at there/weights.pt"),
        ("RN50", "weights.safetensors", {}, FileNotFoundError, "file at weights.safetensors"),
        ("local-dir:not/there", None, {}, FileNotFoundError, "no open_clip_config.json in not/th"),
        (
            "ViT-B16",
            "openai",
            {},
            ValueError,
            "open_clip has no model 'ViT-B16'; did you mean .*'ViT-B-16'",
        ),
        ("zzz", "openai", {}, ValueError, "open_clip has no model 'zzz'$"),
        ("RN50", "opanai", {}, ValueError, "RN50 has no pretrained tag 'opanai'; it has openai, "),
        (NAME, "openai", {}, ValueError, "'openai'; it has none; pass a checkpoint file"),
        ("RN50", None, {}, ValueError, "pretrained is missing: .* RN50 .* file or one of openai, "),
        (NAME, None, {}, ValueError, "has random weights; pass a checkpoint file$"),
        (
            "RN50",
            "openai",
            dict(interpolation="cubic"),
            ValueError,
            "interpolation must be one of bicubic, .* got 'cubic'",
        ),
    ],
)
def test_what_cannot_be_loaded(registered, name, pretrained, options, error, message):
    with pytest.raises(error, match=re.compile(message)):
        ZeroShotClassifier.from_pretrained(name, pretrained, TEXTS, **options)


def test_features_can_be_learnt():
    """Two steps: nothing of the first is left in the second."""
    features = unit_features(2).requires_grad_()
    clip = ZeroShotClassifier.from_features(tiny_model("vit"), features)
    images = random_images(clip)
    optimizer = torch.optim.SGD([features], lr=1e-3)
    for _ in range(2):
        before = clip(images).detach()
        optimizer.zero_grad()
        (-clip(images)[:, 0].sum()).backward()
        optimizer.step()
        assert (clip(images)[:, 0] > before[:, 0]).all()
    fresh = ZeroShotClassifier.from_features(clip.model, features.detach())
    torch.testing.assert_close(clip(images), fresh(images))
    torch.testing.assert_close(copy.deepcopy(clip)(images), fresh(images))

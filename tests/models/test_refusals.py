"""What the classifier refuses, each with a message that says how to mend it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from open_clip.model import CLIP, CustomTextCLIP
from open_clip.transformer import PatchDropout
from PIL import Image
from timm.layers import DropPath
from torch import Tensor, nn

from captum_clip_surgery import LayerCLIPSurgery, ZeroShotClassifier
from tests._helpers.cases import each
from tests._helpers.tiny import MODELS, random_images, tiny_model, with_preprocessing
from tests._helpers.tower_kinds import TINY

TEXTS = ["a dog", "a cat", "a tree"]


def built(family: type[nn.Module] = CLIP, vision: Any = None, text: Any = None) -> Any:
    """The tiny ViT model built otherwise."""
    config = TINY["vit"].config
    config["vision_cfg"] |= vision or {}
    config["text_cfg"] |= text or {}
    return with_preprocessing(family(**config).eval())


@pytest.fixture
def vit() -> ZeroShotClassifier:
    return ZeroShotClassifier(tiny_model("vit"), TEXTS, templates=())


# --- models --------------------------------------------------------------------------------


def with_visual(visual: nn.Module) -> nn.Module:
    model = tiny_model("vit")
    model.visual = visual
    return model


def traced_visual() -> nn.Module:
    visual = tiny_model("vit").visual
    return torch.jit.trace(visual, torch.zeros(1, 3, 32, 32), check_trace=False)


# The towers refused are in test_towers_real.py; here are one of each sort, inside a model.
WORKS = "Supported families: open_clip VisionTransformer; open_clip ModifiedResNet; timm"
REFUSED_MODELS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "a name": (
        lambda: "ViT-B-16",
        TypeError,
        "model is a str, not a model of open_clip or transformers",
    ),
    "None": (
        lambda: None,
        TypeError,
        "model is a NoneType, not a model of open_clip or transformers",
    ),
    "no CLIP": (
        lambda: nn.Linear(2, 2),
        TypeError,
        "CLIP of open_clip or transformers, but Linear has no visual, encode_image, .*create_model",
    ),
    "an image tower": (
        lambda: tiny_model("vit").visual,
        TypeError,
        "a CLIP of open_clip or transformers, but VisionTransformer has no",
    ),
    "scripted": (
        lambda: torch.jit.script(nn.Linear(2, 2)),
        TypeError,
        "is a ScriptModule, whose hooks never fire; load the model with jit=False",
    ),
    "scripted tower": (
        lambda: with_visual(traced_visual()),
        TypeError,
        "is a ScriptModule.*jit=False",
    ),
    "convolutions": (
        lambda: built(CustomTextCLIP, dict(timm_model_name="test_convnext", timm_pool="avg")),
        TypeError,
        f"TimmModel is not supported: its trunk is timm's ConvNeXt: it convolves.*{WORKS}",
    ),
    "no pooling": (
        lambda: built(vision=dict(pool_type="none")),
        TypeError,
        f"VisionTransformer is not supported: it pools its tokens by 'none'.*{WORKS}",
    ),
    "no tower": (
        lambda: with_visual(nn.Identity()),
        TypeError,
        f"Identity is not supported: no family of towers has its class.*{WORKS}",
    ),
    "other vocabulary": (
        lambda: built(text=dict(vocab_size=100)),
        ValueError,
        r"vocabulary is 100, .*49408; pass tokenizer=open_clip\.get_tokenizer\(name\)",
    ),
    "train mode": (
        lambda: tiny_model("resnet").train(),
        ValueError,
        r"visual\.bn1 \(BatchNorm2d\) is in train mode.*call model\.eval\(\) first",
    ),
    "patch dropout": (
        lambda: built(vision=dict(patch_dropout=0.5)).train(),
        ValueError,
        r"visual\.patch_dropout \(PatchDropout\) is in train mode",
    ),
}


@pytest.mark.filterwarnings("ignore:.torch.jit", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("kind", REFUSED_MODELS)
def test_refused_models(kind):
    make, error, message = REFUSED_MODELS[kind]
    model = make()
    with pytest.raises(error, match=message):
        ZeroShotClassifier(model, TEXTS, templates=())
    if kind != "other vocabulary":  # no texts, no vocabulary
        with pytest.raises(error, match=message):
            ZeroShotClassifier.from_features(model, torch.randn(2, 24))


ENTRIES: dict[str, Callable[[ZeroShotClassifier, Any], Any]] = {
    "forward": lambda clip, images: clip(images),
    "attribute": lambda clip, images: LayerCLIPSurgery(clip).attribute(images, 0),
    "attribute_all": lambda clip, images: LayerCLIPSurgery(clip).attribute_all(images),
}


@pytest.mark.parametrize(
    ("module", "matters"),
    [
        (nn.Dropout(0.1), True),
        (nn.Dropout(0.0), False),
        (DropPath(0.1), True),
        (DropPath(0.0), False),
        (PatchDropout(0.5), True),
        (nn.BatchNorm1d(17), True),
        (nn.Identity(), False),
    ],
    ids=repr,
)
def test_train_mode_is_refused_where_it_matters(module, matters):
    model = tiny_model("vit")
    model.visual.ln_pre = nn.Sequential(model.visual.ln_pre, module.eval())
    clip = ZeroShotClassifier(model, TEXTS, templates=())
    images = random_images(clip)
    expected = {entry: call(clip, images) for entry, call in ENTRIES.items()}
    model.train()
    entries = ENTRIES | {"with_texts": lambda clip, images: clip.with_texts(["a bird"]).texts}
    for entry, call in entries.items():
        if matters:
            message = r"visual\.ln_pre\.1 .* is in train mode.*call model\.eval\(\)"
            with pytest.raises(ValueError, match=message):
                call(clip, images)
        elif entry in expected:
            assert torch.equal(call(clip, images), expected[entry])
    assert model.training  # refused, not switched


def test_a_tokenizer_for_another_vocabulary():
    model = built(text=dict(vocab_size=9))
    clip = ZeroShotClassifier(model, ["b", "a"], tokenizer=by_letter, templates=())
    expected = model.encode_text(by_letter(["b", "a"], 16), normalize=True)
    torch.testing.assert_close(clip.text_features(), expected)


def test_a_model_without_preprocessing_warns():
    model = TINY["vit"].build().eval()
    with pytest.warns(UserWarning, match=r"no visual\.preprocess_cfg; using OpenAI's mean and std"):
        clip = ZeroShotClassifier(model, TEXTS, templates=())
    mean, std = map(torch.tensor, (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD))
    black = clip.preprocess(Image.new("RGB", (5, 5)))[0, :, 0, 0]
    torch.testing.assert_close(black, -mean / std)


def test_an_unknown_way_to_resize_positions():
    with pytest.raises(
        ValueError, match="positions must be one of bilinear, bicubic, got 'nearest'"
    ):
        ZeroShotClassifier(tiny_model("vit"), TEXTS, positions="nearest")


def by_letter(texts: list[str], context_length: int) -> Tensor:
    """1 starts, 8 ends, letters in between."""
    rows = [[1, *(ord(letter) - 90 for letter in text), 8] for text in texts]
    return torch.tensor([row + [0] * (context_length - len(row)) for row in rows])


# --- bad images, texts and blocks ----------------------------------------------------------------


def with_one(value: float) -> Tensor:
    images = torch.zeros(2, 3, 32, 32)
    images[1, 2, 3, 4] = value
    return images


SHAPE = r"expected \(N, 3, H, W\)"
REFUSED_IMAGES: dict[str, tuple[Any, type[Exception], str]] = {
    "no batch": (torch.zeros(3, 32, 32), ValueError, SHAPE + r"; add the batch: images\[None\]"),
    "rank 2": (torch.zeros(32, 32), ValueError, rf"shape \(32, 32\), {SHAPE}$"),
    "rank 5": (torch.zeros(1, 1, 3, 32, 32), ValueError, SHAPE),
    "one channel": (torch.zeros(1, 1, 32, 32), ValueError, "1 channels, expected 3"),
    "channels last": (torch.zeros(1, 32, 32, 3), ValueError, r"32 channels, .*\(1, 32, 32, 3\)"),
    "uint8": (torch.zeros(1, 3, 32, 32).byte(), TypeError, "are torch.uint8, expected floating"),
    "int64": (torch.zeros(1, 3, 32, 32).long(), TypeError, "are torch.int64, expected floating"),
    "width": (torch.zeros(1, 3, 32, 30), ValueError, "32 x 30 pixels .* do not divide into patc"),
    "height": (torch.zeros(1, 3, 36, 32), ValueError, "36 x 32 pixels .* do not divide into patc"),
    "no pixels": (torch.zeros(1, 3, 0, 32), ValueError, "0 x 32 pixels .* do not divide"),
    "empty batch": (torch.zeros(0, 3, 32, 32), ValueError, r"batch is empty: .*\(0, 3, 32, 32\)"),
    "NaN": (with_one(torch.nan), ValueError, "images hold NaN or infinite pixels"),
    "infinite": (with_one(torch.inf), ValueError, "images hold NaN or infinite pixels"),
    "-infinite": (with_one(-torch.inf), ValueError, "images hold NaN or infinite pixels"),
    "device": (torch.zeros(1, 3, 32, 32, device="meta"), ValueError, "on meta, the model on cpu"),
    "numpy": (
        np.zeros((1, 3, 32, 32)),
        TypeError,
        r"must be a tensor, got ndarray; clip\.preprocess",
    ),
    "picture": (
        Image.new("RGB", (32, 32)),
        TypeError,
        r"must be a tensor, got Image; clip\.preprocess",
    ),
    "None": (None, TypeError, "must be a tensor, got NoneType"),
}


@each("entry", ENTRIES)
@each("kind", REFUSED_IMAGES)
def test_refused_images(vit, kind, entry):
    images, error, message = REFUSED_IMAGES[kind]
    with pytest.raises(error, match=message):
        ENTRIES[entry](vit, images)


@each(
    ("texts", "distractors", "error", "message"),
    [
        ([], None, ValueError, "no texts: a classifier needs at least one"),
        ([], ["a car"], ValueError, "no texts"),
        (["a dog", ""], None, ValueError, "text 1 is empty"),
        ([" \n"], None, ValueError, "text 0 is empty"),
        (["a dog", 5], None, TypeError, "text 1 must be a string, got 5 of type int"),
        ([None], None, TypeError, "text 0 must be a string, got None of type NoneType"),
        ([["a dog"]], None, TypeError, r"text 0 must be a string, got \['a dog'\] of type list"),
        ("a dog", None, TypeError, r"texts is the string 'a dog'; pass a list: \['a dog'\]"),
        (TEXTS, "a car", TypeError, r"distractors is the string 'a car'; pass a list: \['a car'\]"),
        (TEXTS, ["a car", ""], ValueError, "distractor 1 is empty"),
        (TEXTS, [b"a car"], TypeError, "distractor 0 must be a string, got b'a car' of type bytes"),
    ],
)
def test_refused_texts(vit, texts, distractors, error, message):
    with pytest.raises(error, match=message):
        ZeroShotClassifier(vit.model, texts, distractors)
    with pytest.raises(error, match=message):
        vit.with_texts(texts, distractors)


@pytest.mark.parametrize("family", MODELS)
def test_blocks_that_are_not_there(family):
    clip = ZeroShotClassifier(tiny_model(family), TEXTS, templates=())
    blocks = len(TINY[family].parts.blocks)
    for index in blocks, -blocks - 1:
        message = f"block must be from -{blocks} to {blocks - 1}, got {index} of {blocks} blocks"
        with pytest.raises(IndexError, match=message):
            clip.token_grid(index)
    assert clip.token_grid(-1) is clip.token_grid(blocks - 1)

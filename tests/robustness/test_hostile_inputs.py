"""Texts, templates, features and images made to mislead: an exact result, or an exact refusal."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from captum_clip_surgery import CLIPSurgery, LayerCLIPSurgery, ZeroShotClassifier
from tests._helpers.tiny import random_images, tiny_model


@pytest.fixture(scope="module")
def clip() -> ZeroShotClassifier:
    return ZeroShotClassifier(tiny_model("vit"), ["a dog", "a cat", "a tree"], templates=())


def features_of(clip: ZeroShotClassifier, *texts: str, **options: Any) -> Tensor:
    return ZeroShotClassifier(clip.model, list(texts), templates=(), **options).text_features()


# --- texts ---------------------------------------------------------------------------------------

READ = {
    "escape sequences": "\x07dog\x1b[31m", "emoji": "🦆🦆", "joined emoji": "👨‍👩‍👧‍👦",
    "right to left": "כלב", "turned round": "\u202edog", "combining": "e\u0301e\u0301",
    "astral": "\U0010ffff", "mathematical": "\U0001d49f\U0001d454",
    "full width": "\uff44\uff4f\uff47", "Turkish": "İ",
    "mixed": "dog🦆כלב", "entities": "&amp;&lt;", "html": "<b>dog</b>", "percent": "%s%n",
    "slot": "{}", "brace": "{", "attribute": "{0.__class__}", "quotes": "'; DROP TABLE x;--",
    "path": "../../etc/passwd", "lines": "dog\ncat", "returns": "dog\rcat", "digits": "1234567890",
    "spaces": " " * 100_000 + "dog", "zero byte": "dog\0", "mark": "\ufeffdog",
    "start": "<start_of_text>",
    "end": "dog <end_of_text>",
}  # fmt: skip


@pytest.mark.parametrize("kind", READ)
def test_texts_that_are_read_as_the_model_reads_them(clip: ZeroShotClassifier, kind: str) -> None:
    text = READ[kind]
    expected = clip.model.encode_text(clip.text_encoder.tokenizer([text], 16), normalize=True)
    torch.testing.assert_close(features_of(clip, text), expected)


LONG = {"letters": "a" * 100_000, "words": "dog " * 25_000, "emoji": "🦆" * 100_000,
        "signs": "犬" * 100_000, "marks": "a" + "\u0300" * 100_000}  # fmt: skip


@pytest.mark.parametrize("kind", LONG)
def test_texts_of_100_000_characters(clip: ZeroShotClassifier, kind: str) -> None:
    with pytest.raises(ValueError, match="longer than the model's context of 16 tokens") as caught:
        features_of(clip, LONG[kind])
    assert f"... ({len(LONG[kind])} characters)" in str(caught.value)
    assert len(str(caught.value)) < 600
    assert features_of(clip, LONG[kind], truncate=True).isfinite().all()


UNSEEN = "which has no visible characters"
HALF = "an unpaired UTF-16 surrogate"
TEXTS: dict[str, tuple[str, str]] = {
    "nothing": ("", "text 0 is empty"),
    "space": (" ", "text 0 is empty"),
    "no-break space": ("\u00a0", "text 0 is empty"),
    "tab": ("\t", "text 0 is empty"),
    "zero byte": ("\0", UNSEEN),
    "bell": ("\x07", UNSEEN),
    "byte order mark": ("\ufeff", UNSEEN),
    "zero width space": ("\u200b", UNSEEN),
    "direction": ("\u202e", UNSEEN),
    "joiners": ("\u200d\u200d", UNSEEN),
    "lone surrogate": ("\ud800", HALF),
    "surrogate in a word": ("dog\udcff", HALF),
    "surrogate pair": ("\ud83e\udd86", HALF),
    "words behind the end": ("dog <end_of_text> cat", "own end of a text, and the tower would"),
    "end first": ("<end_of_text> cat", "own end of a text, and the tower would"),
}


@pytest.mark.parametrize("kind", TEXTS)
def test_refused_texts(clip: ZeroShotClassifier, kind: str) -> None:
    text, message = TEXTS[kind]
    with pytest.raises(ValueError, match=message):
        features_of(clip, text)
    with pytest.raises(ValueError, match=message):
        clip.with_texts([text])


LISTS: dict[str, tuple[Any, type[Exception], str]] = {
    "None": (None, TypeError, "texts is a NoneType, expected a list of strings"),
    "number": (3, TypeError, "texts is a int, expected a list of strings"),
    "bytes": (b"dog", TypeError, "text 0 must be a string, got 100 of type int"),
    "set": ({"a"}, TypeError, "texts is a set, whose order changes"),
    "nested": ([["a"]], TypeError, r"text 0 must be a string, got \['a'\] of type list"),
    "tensor": (torch.zeros(2), TypeError, "text 0 must be a string, got .* of type Tensor"),
    "long string": ("dog " * 50_000, TypeError, r"texts is the string 'dog .*\.\.\."),
    "long bytes": ([b"x" * 50_000], TypeError, "must be a string, got .* of type bytes"),
    "empty generator": (iter(()), ValueError, "no texts: a classifier needs at least one"),
}


@pytest.mark.parametrize("kind", LISTS)
def test_refused_lists_of_texts(clip: ZeroShotClassifier, kind: str) -> None:
    texts, error, message = LISTS[kind]
    with pytest.raises(error, match=message) as caught:
        ZeroShotClassifier(clip.model, texts, templates=())
    assert len(str(caught.value)) < 600


@pytest.mark.slow
def test_100_000_texts(clip: ZeroShotClassifier) -> None:
    many = clip.with_texts([f"thing {index}" for index in range(100_000)])
    images = random_images(clip, 1)
    found = many(images)
    assert found.shape == (1, 100_000)
    alone = ZeroShotClassifier(clip.model, ["thing 99999"], templates=())(images)
    torch.testing.assert_close(found[:, -1:], alone, rtol=1e-4, atol=1e-4)


# --- templates -----------------------------------------------------------------------------------

SLOT = "only plain {} is filled"
TEMPLATES: dict[str, tuple[Any, type[Exception], str]] = {
    "attribute": ("{0.__class__}", ValueError, SLOT),
    "attribute of nothing": ("{.__class__.__mro__}", ValueError, SLOT),
    "globals": ("{0.__init__.__globals__}", ValueError, SLOT),
    "item": ("{0[0]}", ValueError, SLOT),
    "name": ("{x}", ValueError, SLOT),
    "number": ("{0}", ValueError, SLOT),
    "repr": ("{!r}", ValueError, SLOT),
    "str": ("{!s}", ValueError, SLOT),
    "padding of 100 MB": ("{:>99999999}", ValueError, SLOT),
    "nested": ("{:{}}", ValueError, SLOT),
    "one of two": ("{} {0.__class__}", ValueError, SLOT),
    "open": ("{", ValueError, "is not a format string"),
    "closed": ("}", ValueError, "is not a format string"),
    "half": ("{}{", ValueError, "is not a format string"),
    "conversion of nothing": ("{!}", ValueError, "is not a format string"),
    "escaped": ("{{}}", ValueError, "has no slot"),
    "without": ("a photo", ValueError, "has no slot"),
    "empty": ("", ValueError, "has no slot"),
    "None": (None, TypeError, "must be a format string or a function"),
    "bytes": (b"{}", TypeError, "must be a format string or a function"),
    "returns nothing": (lambda text: None, TypeError, "must return a string, got None for 'text'"),
    "1000 slots": ("{} " * 1000, ValueError, r"longer than .* 16 tokens"),
    "ends the text": ("{} <end_of_text> more", ValueError, "own end of a text"),
}


@pytest.mark.parametrize("kind", TEMPLATES)
def test_refused_templates(clip: ZeroShotClassifier, kind: str) -> None:
    template, error, message = TEMPLATES[kind]
    with pytest.raises(error, match=message):
        ZeroShotClassifier(clip.model, ["a dog"], templates=[template])


LONG_TEMPLATES: dict[str, tuple[Any, type[Exception], str]] = {
    "no slot": ("x" * 100_000, ValueError, "has no slot"),
    "other slot": ("{" + "x" * 100_000 + "}", ValueError, SLOT),
    "open": ("x" * 100_000 + "{", ValueError, "is not a format string"),
    "bytes": (b"x" * 100_000, TypeError, "must be a format string or a function"),
    "returned": (lambda text: b"x" * 100_000, TypeError, "must return a string"),
}


@pytest.mark.parametrize("kind", LONG_TEMPLATES)
def test_refused_templates_of_100_000_characters(clip: ZeroShotClassifier, kind: str) -> None:
    template, error, message = LONG_TEMPLATES[kind]
    with pytest.raises(error, match=message) as caught:
        ZeroShotClassifier(clip.model, ["a dog"], templates=[template])
    assert len(str(caught.value)) < 600


ALONE: dict[str, tuple[Any, str]] = {
    "number": (1.5, "templates is a float, expected a list"),
    "string": ("{}" * 50_000, r"templates must be a list, got .*; pass \["),
    "callable": (str.upper, r"templates must be a list, got .*; pass \["),
}


@pytest.mark.parametrize("kind", ALONE)
def test_templates_that_are_no_list(clip: ZeroShotClassifier, kind: str) -> None:
    templates, message = ALONE[kind]
    with pytest.raises(TypeError, match=message) as caught:
        ZeroShotClassifier(clip.model, ["a dog"], templates=templates)
    assert len(str(caught.value)) < 600


def test_templates_that_come_once_are_all_taken(clip: ZeroShotClassifier) -> None:
    given = ["a photo of {}.", "a drawing of {}."]
    expected = ZeroShotClassifier(clip.model, ["a dog"], templates=given).text_features()
    found = ZeroShotClassifier(clip.model, ["a dog"], templates=iter(given)).text_features()
    assert torch.equal(found, expected)


# --- features ------------------------------------------------------------------------------------

GIVEN = torch.randn(4, 24, generator=torch.Generator().manual_seed(0))
UNMEASURED = "features 0 is too small or too large to be measured in "
FEATURES: dict[str, tuple[Any, type[Exception], str]] = {
    "zero row": (torch.cat([GIVEN, torch.zeros(1, 24)]), ValueError, "features 4 is zero"),
    "all zero": (torch.zeros(2, 24), ValueError, "features 0 is zero, which has no direction"),
    "NaN": (GIVEN.clone().fill_(torch.nan), ValueError, "features hold NaN or infinity"),
    "infinity": (GIVEN.clone().fill_(torch.inf), ValueError, "features hold NaN or infinity"),
    "denormal": (GIVEN * 1e-40, ValueError, UNMEASURED),
    "tiny": (GIVEN * 1e-30, ValueError, UNMEASURED),
    "huge": (GIVEN * 1e30, ValueError, UNMEASURED),
    "half beyond itself": (GIVEN.sign().mul(6e4).half(), ValueError, UNMEASURED + "torch.float16"),
    "int": (GIVEN.int(), TypeError, "features are torch.int32, expected a floating-point tensor"),
    "bool": (GIVEN > 0, TypeError, "features are torch.bool"),
    "complex": (GIVEN.to(torch.complex64), TypeError, "features are torch.complex64"),
    "array": (GIVEN.numpy(), TypeError, "features are ndarray"),
    "list": (GIVEN.tolist(), TypeError, "features are list"),
    "None": (None, TypeError, "features are NoneType"),
    "no rows": (GIVEN[:0], ValueError, r"features have shape \(0, 24\), expected \(K, 24\)"),
    "one row": (GIVEN[0], ValueError, r"features have shape \(24,\), expected \(K, 24\)"),
    "batch": (GIVEN[None], ValueError, r"features have shape \(1, 4, 24\)"),
    "narrow": (GIVEN[:, :5], ValueError, r"features have shape \(4, 5\), expected \(K, 24\)"),
    "elsewhere": (GIVEN.to("meta"), ValueError, "features are on meta, the model on cpu"),
}


@pytest.mark.parametrize("kind", FEATURES)
def test_refused_features(clip: ZeroShotClassifier, kind: str) -> None:
    features, error, message = FEATURES[kind]
    with pytest.raises(error, match=message):
        ZeroShotClassifier.from_features(clip.model, features)


@pytest.mark.parametrize("power", [-8, -4, 4, 8, 12])
def test_features_of_any_usual_length_are_the_same(clip: ZeroShotClassifier, power: int) -> None:
    images = random_images(clip)
    expected = ZeroShotClassifier.from_features(clip.model, GIVEN)(images)
    found = ZeroShotClassifier.from_features(clip.model, GIVEN * 10.0**power)(images)
    torch.testing.assert_close(found, expected)


def test_texts_that_are_all_the_same_have_nothing_of_their_own(clip: ZeroShotClassifier) -> None:
    same = ZeroShotClassifier.from_features(clip.model, GIVEN[:1].expand(9, -1))
    assert LayerCLIPSurgery(same).attribute_all(random_images(clip)).abs().max() < 1e-6


# --- images --------------------------------------------------------------------------------------

ONES = torch.ones(1, 3, 32, 32)
STRIPES = torch.tensor([1.0, -1.0]).repeat(1, 3, 32, 16)
OVERFLOW = "hold NaN or infinity, though the images do not: are the model's weights intact"
IMAGES: dict[str, tuple[Any, type[Exception], str]] = {
    "1e20": (STRIPES * 1e20, ValueError, OVERFLOW),
    "1e30": (ONES * 1e30, ValueError, OVERFLOW),
    "largest": (STRIPES * 3e38, ValueError, OVERFLOW),
    "beyond float32": (STRIPES.double() * 1e300, ValueError, OVERFLOW),
    "NaN": (ONES * torch.nan, ValueError, "images hold NaN or infinite pixels"),
    "infinity": (ONES * torch.inf, ValueError, "images hold NaN or infinite pixels"),
    "int8": (ONES.to(torch.int8), TypeError, "images are torch.int8, expected floating point"),
    "uint8": (ONES.byte(), TypeError, "images are torch.uint8"),
    "bool": (ONES.bool(), TypeError, "images are torch.bool"),
    "complex": (ONES.to(torch.complex64), TypeError, "images are torch.complex64"),
    "float8": (ONES.to(torch.float8_e4m3fn), TypeError, "images are torch.float8_e4m3fn"),
    "sparse": (ONES.to_sparse(), TypeError, r"images are torch.sparse_coo, .*to_dense\(\)"),
    "empty batch": (ONES[:0], ValueError, "the batch is empty"),
    "four channels": (torch.ones(1, 4, 32, 32), ValueError, "images have 4 channels, expected 3"),
    "list": ([ONES], TypeError, "images must be a tensor, got list"),
}


@pytest.mark.parametrize("method", [LayerCLIPSurgery, CLIPSurgery, None])
@pytest.mark.parametrize("kind", IMAGES)
def test_refused_images(clip: ZeroShotClassifier, kind: str, method: Any) -> None:
    images, error, message = IMAGES[kind]
    call = clip if method is None else method(clip).attribute_all
    with pytest.raises(error, match=message):
        call(images)


@pytest.mark.parametrize("value", [0.0, -0.0, 1e-45, 1e-40, 1e-30, -1e-38])
def test_images_that_are_all_but_zero_are_as_zero(clip: ZeroShotClassifier, value: float) -> None:
    for call in (clip, LayerCLIPSurgery(clip).attribute_all):
        found = call(torch.full((1, 3, 32, 32), value))
        torch.testing.assert_close(found, call(torch.zeros(1, 3, 32, 32)))


@pytest.mark.parametrize("part", ["visual.ln_post.weight", "visual.proj", "visual.conv1.weight"])
def test_weights_of_nan_are_told(part: str) -> None:
    model = tiny_model("vit")
    clip = ZeroShotClassifier(model, ["a dog", "a cat"], templates=())
    with torch.no_grad():
        model.get_parameter(part).view(-1)[:3] = torch.nan
    for call in (clip, LayerCLIPSurgery(clip).attribute_all, CLIPSurgery(clip).attribute_all):
        with pytest.raises(ValueError, match=OVERFLOW):
            call(random_images(clip))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_logit_scale_of_nothing_is_told(value: float) -> None:
    model = tiny_model("vit")
    model.logit_scale.data.fill_(value)
    clip = ZeroShotClassifier(model, ["a dog", "a cat"], templates=())
    with pytest.raises(ValueError, match=f"logits {OVERFLOW}"):
        clip(random_images(clip))


@pytest.mark.parametrize("value", [0.0, torch.nan, torch.inf])
def test_a_text_tower_of_nothing_is_told(value: float) -> None:
    model = tiny_model("vit")
    model.text_projection.data.fill_(value)
    with pytest.raises(ValueError, match="the text feature of 'a dog' is zero, NaN or infinity"):
        ZeroShotClassifier(model, ["a dog", "a cat"], templates=())


OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "num_blocks -1": (
        {"num_blocks": -1},
        "num_blocks must be an int from 0 to the tower's 3, got -1",
    ),
    "num_blocks 10^30": (
        {"num_blocks": 10**30},
        "num_blocks must be an int from 0 to .*, got 1000",
    ),
    "num_blocks 1.0": ({"num_blocks": 1.0}, "must be an int from 0 to .*, got 1.0"),
    "num_blocks True": ({"num_blocks": True}, "must be an int from 0 to .*, got True"),
    "inverse_temperature NaN": (
        {"inverse_temperature": float("nan")},
        "must be a finite number, got nan",
    ),
    "inverse_temperature infinity": (
        {"inverse_temperature": float("inf")},
        "must be a finite number, got inf",
    ),
    "inverse_temperature text": (
        {"inverse_temperature": "2"},
        "must be a finite number, got '2'",
    ),
    "inverse_temperature complex": (
        {"inverse_temperature": 1j},
        "must be a finite number, got 1j",
    ),
    "form of capitals": (
        {"feature_surgery": "RELEASE"},
        "feature_surgery must be one of .*, got 'RELEASE'",
    ),
    "form of nothing": ({"feature_surgery": ""}, "feature_surgery must be one of .*, got ''"),
    "form 0": ({"feature_surgery": 0}, "feature_surgery must be one of .*, got 0"),
    "form list": ({"feature_surgery": ["paper"]}, "feature_surgery must be one of .*, got "),
    "layer 3": ({"layer": 3}, "layer must be one of the tower's 3 blocks, got int"),
}


@pytest.mark.parametrize("kind", OPTIONS)
def test_refused_options(clip: ZeroShotClassifier, kind: str) -> None:
    options, message = OPTIONS[kind]
    with pytest.raises(ValueError, match=message):
        LayerCLIPSurgery(clip, **options)


@pytest.mark.parametrize("inverse_temperature", [1e300, -1e300])
def test_a_tau_that_is_too_large_is_told(
    clip: ZeroShotClassifier, inverse_temperature: float
) -> None:
    with pytest.raises(ValueError, match=OVERFLOW):
        LayerCLIPSurgery(
            clip, feature_surgery="release", inverse_temperature=inverse_temperature
        ).attribute_all(ONES)


PREPROCESSING: dict[str, tuple[dict[str, Any], str]] = {
    "two means": ({"mean": [0, 0]}, r"mean \[0, 0\], expected three finite numbers"),
    "mean text": ({"mean": "abc"}, "mean 'abc', expected three finite numbers"),
    "mean words": ({"mean": ["a", "b", "c"]}, "expected three finite numbers"),
    "mean infinity": ({"mean": [float("inf")] * 3}, "expected three finite numbers"),
    "std NaN": ({"std": [float("nan")] * 3}, "std .* expected three finite numbers"),
    "std zero": ({"std": [0, 0, 0]}, r"std \(0, 0, 0\), expected numbers above 0"),
    "std negative": ({"std": [-1, -1, -1]}, r"std \(-1, -1, -1\), expected numbers above 0"),
    "interpolation": ({"interpolation": "evil"}, "interpolation 'evil', expected one of bicubic"),
}


@pytest.mark.parametrize("kind", PREPROCESSING)
def test_refused_preprocessing(kind: str) -> None:
    changed, message = PREPROCESSING[kind]
    model = tiny_model("vit")
    model.visual.preprocess_cfg |= changed
    with pytest.raises(ValueError, match=f"preprocessing has .*{message}"):
        ZeroShotClassifier(model, ["a dog"], templates=())


@pytest.mark.parametrize("size", [8.0, "32", (8,), (8, 8, 8), (8, None), float("nan")])
def test_sizes_that_are_none(clip: ZeroShotClassifier, size: Any) -> None:
    with pytest.raises(TypeError, match="is neither an int nor"):
        clip.preprocess(Image.new("RGB", (9, 7)), size=size)

"""The page without a browser: settings, pictures, what is found and computed, what is handed on."""

from __future__ import annotations

import io
import json
import re
import socket
import struct
import sys
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from jinja2 import StrictUndefined, UndefinedError
from PIL import Image

from captum_clip_surgery import LayerCLIPSurgery, ZeroShotClassifier, cli, explain_pair
from captum_clip_surgery.app import (
    _code,
    _figures,
    _files,
    _images,
    _serving,
    _tabs,
    _templates,
    serve,
)
from captum_clip_surgery.app._explaining import Explainer
from captum_clip_surgery.app._images import (
    PHOTO_EXAMPLE,
    PageImage,
    Sessions,
    example_image,
    example_scene,
    read_image,
)
from captum_clip_surgery.app._models import Models
from captum_clip_surgery.app._settings import MAX_CHARACTERS, Settings
from captum_clip_surgery.attr import METHODS
from captum_clip_surgery.attr._descriptions import title_of
from captum_clip_surgery.demo import MODEL_FOLDER
from captum_clip_surgery.metrics import draw_absent, specificity
from captum_clip_surgery.metrics._alone import describe_specificity
from captum_clip_surgery.queries import ImageQuery
from captum_clip_surgery.tasks import Prompt
from tests._helpers.cases import each
from tests._helpers.served import CHROMIUM, chromium

TEXTS = ("star", "zebra", "pizza")


@pytest.fixture(scope="module")
def clip() -> ZeroShotClassifier:
    return ZeroShotClassifier.demo(["star"])


@pytest.fixture
def explainer(clip: ZeroShotClassifier) -> Explainer:
    return Explainer(clip)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawings for the page take longer than what is computed, and decide nothing of it."""
    drawn = _figures.plain(example_image(0).pixels)
    monkeypatch.setattr(_figures, "overlay", lambda *_: drawn)


without_drawing = pytest.mark.usefixtures("undrawn")


@pytest.fixture
def passes(clip: ZeroShotClassifier) -> Iterator[list[int]]:
    """A number for each image that passes the image tower."""
    counted: list[int] = []
    hook = clip.model.visual.conv1.register_forward_hook(
        lambda module, inputs, output: counted.append(len(output))
    )
    yield counted
    hook.remove()


def png_of(picture: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format=kind)
    return buffer.getvalue()


def settings(**given: Any) -> Settings:
    return Settings(**{"texts": TEXTS, "example": 0, "caption": example_scene(0).caption, **given})


# --- settings ------------------------------------------------------------------------------------


def test_settings_come_back_from_json() -> None:
    given = settings(
        query="mine.png",
        minus="a cat",
        methods=("GEM", "LeGrad"),
        distractors=('a "quoted" cat', "naïve"),
        feature_surgery="release",
        side=336,
        opacity=0.25,
        cmap="viridis",
        sign="positive",
        point=(0.1, 1.0),
        background=(),
        instances="peaks",
        boxes=False,
        example=None,
        tab="points",
    )
    assert Settings.from_json(given.to_json()) == given
    assert given != settings()


@each(
    ("given", "words"),
    [
        ({"texts": []}, "no text given; write what to look for, one text per line"),
        ({"texts": ["a"] * 2}, "'a' is listed twice"),
        ({"query": TEXTS[0]}, f"'{TEXTS[0]}' is also the name of the query image"),
        ({"texts": [str(i) for i in range(25)]}, "25 texts given; the limit is 24"),
        ({"texts": "star"}, "texts must be a list, got 'star'"),
        ({"texts": [3]}, "must be a string, got 3"),
        ({"texts": ["  "]}, "is empty"),
        (
            {"texts": ["text \x07bell"]},
            r"text 'text \\x07bell' contains the control character '\\x07'",
        ),
        ({"texts": ["a\nb"]}, "control character"),  # which a text box would take for two texts
        ({"distractors": ["a \ud800"]}, "control character"),
        ({"caption": "a \uffff"}, "control character"),
        ({"texts": ["x" * (MAX_CHARACTERS + 1)]}, "201 characters; the limit is 200"),
        ({"distractors": [str(i) for i in range(201)]}, "201 distractors given; the limit is 200"),
        ({"methods": []}, "no method is ticked; tick at least one"),
        ({"methods": ["Magic"]}, "method must be one of CLIP, .*, got 'Magic'"),
        ({"texts": [str(i) for i in range(24)], "methods": list(METHODS)}, "the limit is 96"),
        ({"feature_surgery": "softly"}, "must be one of auto, .*, got 'softly'"),
        ({"side": 1e9}, "resolution must be a whole number .*, got 1000000000.0"),
        ({"side": -5}, "from 1 to 1024"),
        ({"opacity": 2}, "opacity must be a number from 0 to 1, got 2"),
        ({"opacity": float("nan")}, "opacity must .*, got nan"),
        ({"opacity": True}, "opacity must .*, got True"),
        ({"cmap": ["inferno"]}, "color map must be one of none, inferno"),
        ({"sign": None}, "sign must be one of .*, got None"),
        ({"point": [0.5]}, r"a point must be \[x, y\]"),
        ({"point": [0.5, 7]}, "a coordinate of a point must .*, got 7"),
        ({"boxes": "yes"}, "true or false"),
        ({"example": -1}, "example must .*, got -1"),
        ({"tab": "admin"}, "tab must be one of maps, .*, got 'admin'"),
        ({"colour": "red"}, "unknown setting 'colour'"),
        ({"x" * 5000: 1}, "unknown setting 'x{79}; expected texts"),
    ],
)
def test_what_is_refused_is_told_in_words(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Settings.from_dict({"texts": list(TEXTS), **given})


@each(
    ("text", "words"),
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[1]", "JSON object, got list"),
        ("{}", "have no texts"),
        (" " * 300_000, "the limit is 200000"),
    ],
)
def test_json_that_is_no_settings(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Settings.from_json(text)


# --- pictures ------------------------------------------------------------------------------------


def bomb(width: int, height: int) -> bytes:
    """A small PNG that says it has many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(1000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    )


PHOTO = png_of(Image.fromarray(example_scene(0).image))
HOSTILE = {
    "empty": (b"", "the file is empty"),
    "text": (b"not an image at all", "cannot be read as an image"),
    "cut off": (PHOTO[: len(PHOTO) // 2], "cannot be read as an image"),
    "garbled": (PHOTO[:60] + bytes(400) + PHOTO[460:], "cannot be read as an image"),
    "bomb": (bomb(60_000, 60_000), "far too many pixels; the limit is 40 million"),
    "large": (bomb(9000, 9000), "9000 x 9000 pixels; the limit is 40 million"),
    "header alone": (bomb(100, 100), "cannot be read as an image"),
    "strip": (png_of(Image.new("RGB", (4000, 3))), "is a strip"),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"><script>1</script></svg>', "cannot be read"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "cannot be read"),
    "page": (b"<html><script>alert(1)</script></html>", "cannot be read as an image"),
    "too large": (bytes(21 * 2**20), "21 MB; the limit is 20 MB"),
}


@each("kind", HOSTILE)
def test_hostile_images_are_told_in_words(kind: str) -> None:
    content, words = HOSTILE[kind]
    with pytest.raises(ValueError, match=words):
        read_image(content, "upload.png")


def test_images_are_upright_rgb_and_not_too_large() -> None:
    wide = Image.new("RGBA", (3000, 1500), (255, 0, 0, 0))
    shown = read_image(png_of(wide), "wide.png")
    assert (shown.pixels.size, shown.pixels.mode) == ((1024, 512), "RGB")
    assert shown.pixels.getpixel((5, 5)) == (255, 255, 255)  # what is transparent lies on white

    turned = Image.new("RGB", (40, 20))
    exif = turned.getexif()
    exif[274] = 6  # to be turned by a quarter
    buffer = io.BytesIO()
    turned.save(buffer, format="JPEG", exif=exif)
    assert read_image(buffer.getvalue(), "turned.jpg").pixels.size == (20, 40)

    for kind in ("JPEG", "WEBP", "GIF", "BMP", "TIFF"):
        assert read_image(png_of(turned, kind), f"a.{kind}").pixels.size == (40, 20)


def test_an_image_is_dropped_with_its_session() -> None:
    sessions = Sessions(max_sessions=2)
    first = PageImage(example_image(0).pixels, "mine.png")
    second = PageImage(example_image(1).pixels, "yours.png")
    sessions.set_image("anna", first)
    sessions.set_image("bert", first)
    assert sessions.image("anna") is first
    assert sessions.close("anna") == set()  # bert has the same
    with pytest.raises(ValueError, match="choose it again"):
        sessions.image("anna")
    assert sessions.close("bert") == {first.digest}
    assert sessions.close("nobody") == set()
    sessions.set_image("carl", example_image(0))
    assert sessions.close("carl") == set()  # an example is everybody's
    assert sessions.set_image("dora", first) == set()
    assert sessions.set_image("dora", second) == {first.digest}  # instead of the one before
    sessions.set_image("emil", first)
    assert sessions.set_image("fred", second) == set()
    assert sessions.set_image("gerd", second) == {first.digest}  # pushed out
    for name in "abc":
        sessions.set_image(name, second)
    with pytest.raises(ValueError, match="no longer in memory"):
        sessions.image("a")
    assert sessions.image("c") is second


# --- what is found -------------------------------------------------------------------------------


@without_drawing
def test_maps_and_ranking_are_those_of_the_api(explainer: Explainer) -> None:
    shown = example_image(0)
    given = settings(
        methods=("CLIP", "CLIPSurgery", "GEM", "GradCam"), distractors=("dog",), side=160
    )
    result = _tabs.complete(explainer, shown, given)
    clip = ZeroShotClassifier.demo(TEXTS, distractors=["dog"])
    images = clip.preprocess(shown.pixels, 160)
    for name in given.methods:
        expected = METHODS[name](clip).attribute_all(images)[0].detach().numpy()
        assert np.allclose(result.arrays[name], expected, atol=1e-5), name
    with torch.no_grad():
        assert np.allclose(result.arrays["logits"], clip(images)[0].numpy(), atol=1e-4)
    order = [re.sub("<.*?>", "", part) for part in re.findall(r"<h2>\d+\. (.*?)</h2>", result.html)]
    assert order == [TEXTS[i] for i in np.argsort(-result.arrays["logits"])]
    assert result.complete


@without_drawing
def test_forms_of_feature_surgery_are_chosen(explainer: Explainer) -> None:
    shown, clip = example_image(0), ZeroShotClassifier.demo(TEXTS)
    for variant in ("release", None):
        given = settings(methods=("CLIPSurgery",), feature_surgery=variant)
        expected = LayerCLIPSurgery(clip, feature_surgery=variant).attribute_all(
            clip.preprocess(shown.pixels)
        )
        found = _tabs.complete(explainer, shown, given).arrays["CLIPSurgery"]
        assert np.allclose(found, expected[0].detach().numpy(), atol=1e-5), variant


@without_drawing
def test_an_image_passes_the_tower_once(explainer: Explainer, passes: list[int]) -> None:
    shown, given = example_image(0), settings(methods=("CLIP", "CLIPSurgery"))
    _tabs.complete(explainer, shown, given)
    assert passes == [1]
    for other in (
        replace(given, texts=("kiwi", "duck")),
        replace(given, opacity=0.1, sign="positive", point=(0.5, 0.5)),
        replace(given, distractors=("dog",), feature_surgery="release"),
        replace(given, methods=("ArchitectureSurgery", "FeatureSurgery")),
    ):
        _tabs.complete(explainer, shown, other)
    assert passes == [1]
    again = PageImage(shown.pixels.copy(), "the same pixels, from somebody else")
    _tabs.complete(explainer, again, given)
    assert passes == [1]
    _tabs.complete(explainer, example_image(1), given)
    assert passes == [1, 1]
    explainer.forget(shown.digest)
    _tabs.complete(explainer, shown, given)
    assert passes == [1, 1, 1]


@without_drawing
def test_a_method_of_gradients_is_asked_for_new_texts_alone(
    explainer: Explainer, passes: list[int]
) -> None:
    shown, given = example_image(0), settings(methods=("GradCam",))
    _tabs.complete(explainer, shown, given)
    before = len(passes)
    _tabs.complete(explainer, shown, replace(given, texts=(*TEXTS[1:], "kiwi")))
    assert len(passes) == before + 1
    _tabs.complete(explainer, shown, replace(given, opacity=0.2))
    assert len(passes) == before + 1


@without_drawing
def test_who_leaves_is_left_between_texts(explainer: Explainer, passes: list[int]) -> None:
    given = settings(methods=("CLIPSurgery", "GradCam", "LeGrad"))
    steps = _tabs.show(explainer, example_image(2), given)
    first = next(steps)
    assert first is not None
    assert not first.complete
    assert "CLIPSurgery" in first.arrays
    assert "Still running: Grad-CAM, LeGrad." in first.hints
    next(steps)
    done = len(passes)
    steps.close()  # as Gradio does when a request is stopped
    _tabs.complete(explainer, example_image(2), replace(given, methods=("CLIPSurgery",)))
    assert len(passes) == done == 2


@pytest.mark.slow
def test_trust_is_a_line_below_each_map(explainer: Explainer, passes: list[int]) -> None:
    shown, given = example_image(0), settings(methods=("CLIPSurgery", "RawAttention"))
    assert "on the text" not in _tabs.complete(explainer, shown, given).html
    assert (before := len(passes)) == 1 + len(TEXTS)
    given = replace(given, trust=True)
    result = _tabs.complete(explainer, shown, given)
    lines = re.findall(r'<span class="ccs-trust">(.*?)</span>', result.html)
    assert len(lines) == 2 * len(TEXTS)
    assert lines[1::2] == ["hardly depends on the text: 1.00"] * len(TEXTS)
    local = ZeroShotClassifier.demo([TEXTS[0]])
    images = local.preprocess(shown.pixels)
    (absent,) = draw_absent(local, images, [TEXTS])
    method = {"": METHODS["CLIPSurgery"]}
    expected = specificity(local, method, images, TEXTS[0], [absent], nonsense=())[""]
    place = 2 * np.argsort(-result.arrays["logits"]).tolist().index(0)
    assert lines[place] == describe_specificity(expected.absent.item())
    # One pass to find absent texts, and of a method with passes of its own one for each text.
    shown_alone = len(passes)
    _tabs.complete(explainer, shown, replace(given, opacity=0.2))
    assert len(passes) == shown_alone + 1
    assert before < shown_alone


@pytest.mark.slow
def test_trust_says_why_a_variant_cannot_be_asked_alone(explainer: Explainer) -> None:
    given = settings(methods=("CLIP", "CLIPSurgery"), feature_surgery="release", trust=True)
    steps = list(filter(None, _tabs.show(explainer, example_image(0), given)))
    assert "Still running: text specificity of CLIP, text specificity of CLIP Surgery." in (
        steps[0].hints
    )
    assert not steps[0].complete
    assert "text specificity of CLIP Surgery is left out: " in steps[-1].hints[0]
    assert steps[-1].complete
    assert steps[-1].html.count("ccs-trust") == len(TEXTS)


@without_drawing
def test_a_method_that_is_not_defined_is_left_out_in_words(explainer: Explainer) -> None:
    given = settings(
        texts=("star",), methods=("CLIP", "CLIPSurgery", "GuidedGradCam"), feature_surgery="paper"
    )
    result = _tabs.complete(explainer, example_image(0), given)
    assert set(result.arrays) == {"texts", "logits", "CLIP"}
    left_out = " ".join(result.hints)
    assert "CLIP Surgery is left out: feature_surgery='paper' contrasts texts" in left_out
    assert "Guided Grad-CAM is left out" in left_out
    assert result.complete


@without_drawing
def test_scores_at_a_point_are_those_of_its_patch(explainer: Explainer) -> None:
    given = settings(methods=("CLIP",), point=(0.99, 0.0))
    result = _tabs.complete(explainer, example_image(0), given)
    shown = dict(re.findall(r'<th scope="row">(\w+)</th>.*?<td>([-+.\de]+)</td>', result.html))
    for text, score in zip(TEXTS, result.arrays["CLIP"][:, 0, -1], strict=True):
        assert float(shown[text]) == pytest.approx(score, rel=1e-3)


@without_drawing
def test_resolutions(explainer: Explainer) -> None:
    assert explainer.sides() == [224, 336, 448, 672]
    given = settings(methods=("CLIP",), side=672)
    assert _tabs.complete(explainer, example_image(0), given).arrays["CLIP"].shape == (3, 42, 42)
    with pytest.raises(ValueError, match="100"):
        _tabs.complete(explainer, example_image(0), replace(given, side=100))


@pytest.mark.slow
def test_words_the_model_never_learnt_and_texts_that_are_too_long(explainer: Explainer) -> None:
    with pytest.warns(UserWarning, match="not trained on: xylophone"):
        result = _tabs.complete(explainer, example_image(0), settings(texts=("xylophone", "star")))
    assert any("never seen: xylophone" in hint for hint in result.hints)
    with pytest.raises(ValueError, match="longer than the model's context"):
        _tabs.complete(explainer, example_image(0), settings(texts=("star " * 39,)))
    with pytest.raises(ValueError, match="no caption given"):
        _tabs.complete(explainer, example_image(0), settings(tab="words", caption=""))


def test_what_visitors_write_stays_text(explainer: Explainer) -> None:
    evil = "<img src=x> ${1} {{2}} `"
    with pytest.warns(UserWarning, match="not trained on"):
        result = _tabs.complete(explainer, example_image(0), settings(texts=(evil, "star")))
    for html in (
        result.html,
        _templates.notice(result.hints),
        _templates.html("code", python=evil),
    ):
        assert "<img src=x" not in html
        assert not re.search(r"[{}$`]", html)


# --- what is handed on ---------------------------------------------------------------------------

CASES = {
    "maps": settings(
        texts=("star", "zebra"),
        methods=("CLIPSurgery", "FeatureSurgery", "GEM", "GradCam"),
        distractors=("dog", "cat"),
        feature_surgery="paper",
        side=160,
        cmap="viridis",
        sign="positive",
        opacity=0.4,
        point=(0.25, 0.75),
    ),
    "trust": settings(methods=("CLIP", "CLIPSurgery", "RawAttention"), trust=True),
    "trust of differences": settings(
        texts=("star", "zebra"), query="dog", minus="kiwi", methods=("CLIP", "GradCam"), trust=True
    ),
    "samples": settings(texts=("star", "zebra"), methods=("KernelShap", "CLIP")),
    "segmentation": settings(tab="segmentation"),
    "no background": settings(tab="segmentation", background=()),
    "points": settings(tab="points", instances="components"),
    "queries": settings(
        texts=("star",), query="query.bmp", minus="dog", methods=("CLIPSurgery", "GEM", "GradCam")
    ),
    "query alone": settings(texts=(), query="query.bmp", tab="segmentation", minus="dog"),
    "pair": settings(texts=(), query="query.bmp", minus="dog", tab="pair", side=96),
    "words": settings(
        tab="words",
        minus="dog",
        caption="a star, a zebra",
        cmap="viridis",
        sign="positive",
        opacity=0.4,
    ),
}
#: The other cases try the options that most visitors use.
SLOW_CASES = (
    *("samples", "no background", "trust", "trust of differences"),
    *("queries", "query alone", "pair"),
)


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(float)


@each("size", [(256, 256), (240, 160), (120, 320)])
def test_points_are_drawn_on_the_whole_image(size: tuple[int, int]) -> None:
    framed = Image.new("RGB", size, "red")  # so that what is cut off or added shows
    framed.paste("gray", (8, 8, size[0] - 8, size[1] - 8))
    inside = np.array([[size[0] / 2, size[1] / 2]], dtype=np.float32)
    prompt = Prompt("star", inside, np.array([1]), None, None, 1.0)
    drawn = pixels(_figures.points(framed, [prompt])[0].content)
    assert drawn.shape[:2] == pytest.approx(
        (size[1] * 640 / max(size), size[0] * 640 / max(size)), abs=1
    )
    frame = 8 * 640 // max(size)
    for turned in (np.rot90(drawn, turns) for turns in range(4)):
        assert (turned[2 : frame - 2, 40:-40] == (255, 0, 0)).all()
        assert (turned[frame + 2, 40:-40] == 128).all()


def run_code(python: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    exec(compile(python, "shown.py", "exec"), names)
    return names


@pytest.mark.filterwarnings("ignore:the embedded model was not trained on")
@pytest.mark.parametrize(
    "case",
    [pytest.param(c, marks=[pytest.mark.slow] * (c in SLOW_CASES)) for c in CASES],
)
def test_the_code_repeats_what_is_shown_and_handed_on(
    case: str, explainer: Explainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = CASES[case]
    shown, query = example_image(0), None
    if given.query:
        example_image(1).pixels.save(tmp_path / given.query, format="BMP")
        query = read_image((tmp_path / given.query).read_bytes(), given.query)
    result = _tabs.complete(explainer, shown, given, query)
    aside = [hint for hint in result.hints if "leaves the text to subtract aside" in hint]
    assert bool(aside) == (given.tab not in ("maps", "points") and given.minus != "")
    python = _files.script(_code.Model(), shown, given, query).content.decode()
    names = run_code(python, tmp_path, monkeypatch)
    (saved,) = tmp_path.glob("*.png")
    # As does what is handed on.
    arrays = np.load(io.BytesIO(_files.npz(result, given).content))
    assert set(arrays) == set(result.arrays)
    assert all(np.array_equal(arrays[name], result.arrays[name]) for name in arrays)
    drawn = pixels(_files.png(result, given).content)
    assert drawn.std() > 30
    assert drawn.shape[1] > 500
    if given.tab in ("maps", "words", "pair"):  # which have a look
        assert np.abs(pixels(saved.read_bytes()) - drawn).mean() < 0.1
    if given.tab == "maps":
        for name in given.methods:
            assert np.allclose(
                names["maps"][title_of(name)].numpy(), result.arrays[name], atol=1e-5
            ), name
        words = [line for (lines,) in names.get("notes", {}).values() for line in lines]
        assert sorted(words) == sorted(re.findall(r'"ccs-trust">(.*?)<', result.html))
        assert len(words) == given.trust * len(given.methods) * len(given.asked)
    elif given.tab == "segmentation":
        assert np.array_equal(names["segmentation"].labels.numpy(), result.arrays["labels"])
    elif given.tab == "points":
        for number, prompt in enumerate(names["image_prompts"]):
            assert np.array_equal(prompt.points, result.arrays[f"points-{number}"])
            assert np.array_equal(prompt.box, result.arrays[f"box-{number}"])
    elif given.tab == "pair":
        interactions = names["pair"].interactions.numpy()
        assert np.allclose(interactions, result.arrays["interactions"], atol=1e-6)
        assert interactions.shape == (6, 6, 6, 6)
    else:
        assert np.allclose(names["words"].maps.numpy(), result.arrays["maps"], atol=1e-5)


@pytest.mark.slow
@without_drawing
def test_the_code_repeats_a_visitors_image_and_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = _code.Model(f"local-dir:{MODEL_FOLDER}")
    explainer = Explainer(ZeroShotClassifier.from_pretrained(model.name, None, ["star"]))
    name = 'my "photo".png'
    Image.fromarray(example_scene(0).image).resize((1500, 900)).save(tmp_path / name)
    shown = read_image((tmp_path / name).read_bytes(), name)
    given = settings(methods=("CLIPSurgery",), example=None)
    result = _tabs.complete(explainer, shown, given)
    names = run_code(_code.python(model, shown, given), tmp_path, monkeypatch)
    assert np.array_equal(np.asarray(names["image"]), np.asarray(shown.pixels))
    found = names["maps"]["CLIP Surgery"].numpy()
    assert np.allclose(found, result.arrays["CLIPSurgery"], atol=1e-5)


def test_no_code_compares_with_a_query_image_that_is_missing(explainer: Explainer) -> None:
    given = settings(texts=("star",), tab="pair")
    for make in (
        lambda: _tabs.complete(explainer, example_image(0), given),
        lambda: _code.python(_code.Model(), example_image(0), given),
    ):
        with pytest.raises(ValueError, match="query image is missing; choose it under “Query im"):
            make()
    with pytest.raises(UndefinedError, match="'name' is undefined"):
        _templates.literal(["a", StrictUndefined(name="name")])


def test_figures_are_handed_on_for_print(explainer: Explainer) -> None:
    given = settings(tab="words", caption="a star")
    svg = _files.svg(_tabs.complete(explainer, example_image(0), given), given)
    assert svg.content.lstrip().startswith(b"<?xml")
    assert svg.to_dict()["name"] == "words.svg"


def kept_view(kept: dict[str, Any]) -> _files.Kept:
    view = _files.read_kept(json.dumps(kept))
    assert view is not None
    return view


def test_a_view_comes_back(explainer: Explainer) -> None:
    own = read_image(PHOTO, "mine.png")
    given = settings(example=None, point=(0.5, 0.25), tab="points")
    found, shown, query = _files.read_view(_files.view(own, given).content)
    assert (found, shown.digest, shown.name, query) == (given, own.digest, "mine.png", None)
    other, asked = read_image(png_of(example_image(1).pixels), "q.png"), settings(query="q.png")
    view = _files.view(example_image(0), asked, other)
    found, shown, query = _files.read_view(view.content)
    assert query is not None
    assert (found, shown.example, query.digest, query.name) == (asked, 0, other.digest, "q.png")
    kept = json.loads(_files.view(own, replace(asked, example=None), other).content)
    assert kept_view(kept)[0] == replace(asked, example=None)
    del kept["query"]  # as keep.js does without room for it
    found, shown, query, (hint,) = kept_view(kept)
    assert (found, shown.digest, query) == (settings(example=None), own.digest, None)
    assert "no room to keep the query image" in hint
    kept["settings"]["texts"] = []
    found, shown, *_ = kept_view(kept)
    assert (found, shown.digest) == (None, own.digest)
    assert _files.read_kept("[]") is None

    for number in (2, PHOTO_EXAMPLE):
        picked = settings(example=number, opacity=0.3)
        for back in (
            _files.read_view(_files.view(example_image(number), picked).content),
            _files.read_link(unquoted(_files.link(picked))),
        ):
            assert back[0] == picked
            assert back[1].digest == example_image(number).digest


def unquoted(link: str) -> str:
    from urllib.parse import parse_qs

    return parse_qs(link.removeprefix("?"))["view"][0]


@each(
    ("content", "words"),
    [
        (b"\xff\x00", "not a view"),
        (b"[]", "no settings"),
        (b'{"settings": {"texts": ["a"]}}', "neither an image nor an example"),
        (b'{"settings": {"texts": ["a"], "example": 99}}', "there is no example 99; choose 0 to 4"),
        (b'{"settings": {"texts": ["a"], "example": 0, "query": "q"}}', "has no query image"),
        (b'{"settings": {"texts": ["a"]}, "image": {"png": "%%%"}}', "image of the view is damag"),
        (b'{"settings": {"texts": ["a"]}, "image": {"png": "AAAA"}}', "cannot be read"),
        (b'{"settings": {"texts": [""]}}', "is empty"),
    ],
)
def test_files_that_are_no_view(content: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        _files.read_view(content)


def test_links_that_are_none() -> None:
    with pytest.raises(ValueError, match="cannot hold your own image"):
        _files.link(settings(example=None))
    with pytest.raises(ValueError, match="cannot hold your own images"):
        _files.link(settings(query="q.png"))
    with pytest.raises(ValueError, match="too long for a link"):
        _files.link(settings(distractors=tuple(f"{i} " + "x" * 150 for i in range(60))))
    with pytest.raises(ValueError, match="names no example, and"):
        _files.read_link(json.dumps({"texts": ["a"]}))
    with pytest.raises(ValueError, match=r"names the query image 'q\.png', which"):
        _files.read_link(json.dumps({"texts": ["a"], "example": 0, "query": "q.png"}))


@without_drawing
def test_every_example_is_told_apart_by_the_model(explainer: Explainer) -> None:
    for number in range(len(_images.SCENES)):
        given = settings(
            texts=example_scene(number).nouns, methods=("CLIPSurgery",), example=number
        )
        maps = _tabs.complete(explainer, example_image(number), given).arrays["CLIPSurgery"]
        for attribution, mask in zip(maps, example_scene(number).masks, strict=True):
            row, column = np.unravel_index(attribution.argmax(), attribution.shape)
            scale = mask.shape[0] / attribution.shape[0]
            assert mask[int((row + 0.5) * scale), int((column + 0.5) * scale)]


@without_drawing
def test_what_was_found_of_a_image_goes_with_its_visitor(
    explainer: Explainer, passes: list[int]
) -> None:
    pytest.importorskip("gradio")
    from captum_clip_surgery.app._page import Page

    page, visitor = Page(Models([(explainer, _code.Model())])), SimpleNamespace(session_hash="anna")
    mine = read_image(PHOTO, "mine.png")
    page._set_image(mine, visitor)
    _tabs.complete(explainer, mine, settings(example=None))
    page._set_image(example_image(1), visitor)  # instead of it
    _tabs.complete(explainer, mine, settings(example=None))
    page._set_image(mine, visitor)
    page._close(visitor)  # as Gradio does when a browser's page is closed
    with pytest.raises(ValueError, match="choose it again"):
        page.sessions.image("anna")
    _tabs.complete(explainer, mine, settings(example=None))
    assert passes == [1, 1, 1]  # nothing was remembered


@pytest.mark.slow
@without_drawing
def test_a_query_image_stands_beside_the_texts(
    explainer: Explainer, passes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gradio")
    from captum_clip_surgery.app import _query
    from captum_clip_surgery.app._page import Page

    page, visitor = Page(Models([(explainer, _code.Model())])), SimpleNamespace(session_hash="anna")
    query, named, layout = page.layout.query, page.controls.by_name, page.layout
    page._set_image(example_image(0), visitor)
    values = page.controls.values(settings(methods=("CLIPSurgery", "GEM")))
    content = png_of(example_image(1).pixels)
    monkeypatch.setattr(_query, "take_file", lambda content: (content, "mi\x07ne.png"))

    def merged(updates: Iterator[dict[Any, Any]]) -> dict[Any, Any]:
        found = {}
        for update in updates:
            found |= update
        values.update({c: v for c, v in found.items() if c in named.values()})
        return found

    kept = layout.kept_settings
    sent = {query.upload: content, kept: settings(query="before.png").to_json()}
    # What fails leaves the name of the image that is kept.
    clash = "\n".join((*TEXTS, "mi_ne.png"))
    found = merged(page._on_query({**values, **sent, named["texts"]: clash}, visitor))
    assert "is also the name of the query image" in found[layout.notice]
    assert Settings.from_json(found[kept]) == settings(query="mi_ne.png")
    assert found[query.kept]["name"] == "mi_ne.png"
    found = merged(page._on_query({**values, **sent}, visitor))
    assert found[query.upload] is None
    assert "mi_ne.png" in found[query.picture]
    assert found[query.kept]["name"] == values[named["query"]] == "mi_ne.png"
    assert "mi_ne.png</h2>" in found[layout.results["maps"]]
    image = read_image(content, "")
    clip = explainer.clip.with_queries([*TEXTS, ImageQuery(image.pixels, "mi_ne.png")])
    maps = LayerCLIPSurgery(clip).attribute_all(clip.preprocess(example_image(0).pixels))
    shown = page._shown(page._settings(values, visitor), visitor)
    again = _tabs.complete(explainer, shown.image, shown.settings, shown.query)
    assert np.allclose(again.arrays["CLIPSurgery"], maps[0].numpy(), atol=1e-5)

    # With a text to subtract, neither image passes the tower again.
    before = len(passes)
    found = merged(page._run({**values, named["minus"]: "dog"}, visitor))
    assert "mi_ne.png rather than dog</h2>" in found[layout.results["maps"]]
    assert "difference of cosines" in found[layout.results["maps"]]
    assert len(passes) == before

    # The tab of two images compares the query image with the image.
    (_, opened, *_, result) = page._on_select("pair")(values, visitor)
    assert opened[query.accordion].open is True
    cosine = float(explain_pair(explainer.clip, image.pixels, example_image(0).pixels).cosine)
    assert f">cosine {cosine:.3f}<" in result[layout.results["pair"]]
    assert Settings.from_json(result[layout.kept_settings]).tab == "pair"

    values |= {named["tab"]: "pair", kept: result[kept]}
    found = merged(page._on_remove(values, visitor))
    assert "query image is missing" in found[layout.notice]
    assert found[layout.results["pair"]] == ""
    assert found[query.kept] is None
    assert Settings.from_json(found[kept]) == settings(methods=("CLIPSurgery", "GEM"), tab="pair")
    merged(page._on_query({**values, **sent}, visitor))

    values[named["tab"]] = "maps"
    found = merged(page._on_remove(values, visitor))
    assert found[query.picture] == values[named["query"]] == ""
    assert "ne.png" not in found[layout.results["maps"]]
    values[named["query"]] = "mi_ne.png"  # as a browser sends it whose image is kept no more
    found = merged(page._run(values, visitor))
    assert "The query image is no longer in memory; choose it again." in found[layout.notice]
    page._close(visitor)
    assert not explainer._queries


@without_drawing
def test_the_photograph_is_an_example_of_models_that_know_photographs(
    explainer: Explainer, clip: ZeroShotClassifier
) -> None:
    pytest.importorskip("gradio")
    from captum_clip_surgery.app._layout import about_demo
    from captum_clip_surgery.app._page import Page

    embedded, named = (explainer, _code.Model()), (Explainer(clip), _code.Model("ViT-B-16"))
    scenes = [0, 1, 2, 3]
    assert Models([embedded]).examples() == scenes
    assert Models([named]).examples() == [PHOTO_EXAMPLE, *scenes]
    assert Models([named, embedded]).examples() == [PHOTO_EXAMPLE, *scenes]
    models = Models([embedded, named])
    assert models.examples() == [*scenes, PHOTO_EXAMPLE]
    assert "choose another model under “Methods and model”" in about_demo(models)
    assert "clip-surgery app --model" in about_demo(Models([embedded]))
    with pytest.raises(ValueError, match="example 4 is not a test scene; choose 0 to 3"):
        example_scene(PHOTO_EXAMPLE)

    # A view or a link may show it to the embedded model, which says what that is worth.
    page, visitor = Page(models), SimpleNamespace(session_hash="anna")
    page._set_image(example_image(0), visitor)
    for title, is_warned in (("", True), ("ViT-B-16", False)):
        values = page.controls.values(settings(methods=("CLIP",), model=title))
        event = SimpleNamespace(example=PHOTO_EXAMPLE)
        *_, last = page._on_example(event, values, visitor)
        assert ("no photographs" in last[page.layout.notice]) == is_warned
        assert ("choose another model under" in last[page.layout.notice]) == is_warned
        kept = Settings.from_json(last[page.layout.kept_settings])
        assert (kept.texts, kept.example) == (_images.PHOTO_TEXTS, PHOTO_EXAMPLE)


def test_a_model_is_chosen_by_its_title(explainer: Explainer) -> None:
    other = Explainer(ZeroShotClassifier.demo(["star"]))
    named = _code.Model("ViT-B-16", "openai")
    models = Models([(explainer, _code.Model()), (other, named)])
    assert models.titles == ["embedded model", "ViT-B-16, openai"]
    assert models.get("") == models.get("embedded model") == (explainer, _code.Model())
    assert models.get("ViT-B-16, openai") == (other, named)
    with pytest.raises(ValueError, match="no model 'ViT-L'; choose one of embedded model, ViT-B"):
        models.get("ViT-L")
    with pytest.raises(ValueError, match="2 models given, but only 1 have different names"):
        Models([(explainer, _code.Model()), (other, _code.Model())])


def test_without_gradio_the_extra_is_named(
    clip: ZeroShotClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    for name in ("GRADIO_ANALYTICS_ENABLED", "HF_HUB_DISABLE_TELEMETRY", "GRADIO_TEMP_DIR"):
        monkeypatch.setenv(name, "set anew")
    with pytest.raises(ImportError, match=r"pip install \"captum_clip_surgery\[app\]\""):
        serve(clip)
    with pytest.raises(ValueError, match="password is empty"):
        serve(clip, password="")


def test_a_file_that_is_deleted_while_it_is_asked_for_is_not_found(tmp_path: Path) -> None:
    """As an upload is, which the browser wants to show."""
    from starlette.applications import Starlette
    from starlette.responses import FileResponse
    from starlette.routing import Route
    from starlette.testclient import TestClient

    class Vanishing(FileResponse):
        async def _handle_simple(self, *arguments: object) -> None:
            Path(self.path).unlink(missing_ok=True)
            await super()._handle_simple(*arguments)  # type: ignore[arg-type]

    (tmp_path / "upload.png").write_bytes(b"1234")
    (tmp_path / "stays.png").write_bytes(b"1234")

    async def gone(request: object) -> Vanishing:
        return Vanishing(tmp_path / "upload.png")

    async def there(request: object) -> FileResponse:
        return FileResponse(tmp_path / "stays.png")

    async def never(request: object) -> FileResponse:
        return FileResponse(tmp_path / "never.png")

    routes = [Route(f"/file={name.__name__}", name) for name in (gone, there, never)]
    with TestClient(Starlette(routes=routes, middleware=[_serving._headers()])) as client:
        assert client.get("/file=gone").status_code == 404
        assert client.get("/file=never").status_code == 404
        answer = client.get("/file=there")
    assert answer.content == b"1234"
    assert "default-src 'self'" in answer.headers["Content-Security-Policy"]


# --- what is left out ----------------------------------------------------------------------------


@without_drawing
@pytest.mark.parametrize(
    "given",
    [
        settings(methods=("CLIP", "GuidedGradCam"), point=(0.5, 0.5)),
        settings(
            texts=("star",),
            methods=("FeatureSurgery", "CLIP", "CLIPSurgery"),
            feature_surgery="paper",
        ),
        settings(texts=("star",), methods=("CLIPSurgery", "CLIP"), feature_surgery="release"),
        settings(
            texts=("star",),
            methods=("CLIPSurgery",),
            feature_surgery="release",
            distractors=("dog",),
        ),
        settings(texts=("star",), methods=("CLIPSurgery",), feature_surgery="empty"),
        settings(
            texts=("star",), methods=("CLIPSurgery", "GuidedGradCam"), feature_surgery="paper"
        ),
    ],
    ids=lambda given: f"{given.feature_surgery}-{'-'.join(given.methods)}-{len(given.texts)}",
)
def test_the_code_leaves_out_what_the_page_does(
    given: Settings, explainer: Explainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = _tabs.complete(explainer, example_image(0), given)
    python = _code.python(_code.Model.of(explainer.clip), example_image(0), given)
    names = run_code(python, tmp_path, monkeypatch)
    shown = [name for name in given.methods if name in result.arrays]
    assert list(names.get("maps", {})) == [title_of(name) for name in shown]
    for name in given.methods:
        assert (f"# {title_of(name)} is left out: " in python) == (name not in shown)
    assert np.allclose(names["logits"].numpy(), result.arrays["logits"], atol=1e-4)
    assert len(list(tmp_path.glob("*.png"))) == bool(shown)
    assert max(map(len, python.splitlines())) <= 100


def test_maps_without_a_method_make_no_figure(explainer: Explainer) -> None:
    given = settings(texts=("star",), methods=("CLIPSurgery",), feature_surgery="paper")
    result = _tabs.complete(explainer, example_image(0), given)
    words = "no method has a map to draw; choose another. CLIP Surgery is left out: .* contrasts"
    for drawn in (_files.png, _files.svg):
        with pytest.raises(ValueError, match=words):
            drawn(result, given)


# --- looks ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_figure_of_words_has_the_look_of_the_screen(explainer: Explainer) -> None:
    def drawn(**look: Any) -> np.ndarray:
        given = settings(tab="words", caption="a star", **look)
        result = _tabs.complete(explainer, example_image(0), given)
        return pixels(_files.png(result, given).content)

    usual = drawn()
    for look in ({"cmap": "viridis"}, {"sign": "positive"}, {"opacity": 0.1}):
        assert np.abs(drawn(**look) - usual).mean() > 1, look


@pytest.mark.slow
def test_numbers_keep_away_from_their_bars() -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("there is no chromium here")
    macros = _templates._HTML.get_template("_macros.html").module
    table = macros.bars("CLIP", [("star", 0.25)])  # type: ignore[attr-defined]
    style = (Path(_templates.__file__).parent / "page.css").read_text(encoding="utf-8")
    gap = """() => {
        const number = document.createRange();
        number.selectNodeContents(document.querySelector("td:last-child"));
        const bar = document.querySelector("i").getBoundingClientRect();
        return number.getBoundingClientRect().left - bar.right;
    }"""
    with playwright.sync_playwright() as driver:
        browser = chromium(driver)
        page = browser.new_page()
        page.set_content(f"<style>{style}</style>{table}")
        assert page.evaluate(gap) >= 6
        browser.close()


# --- what browsers send, and ports ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        pytest.param(
            *(
                "across",
                10**400,
                "a point in percent must be a number from 0 to 100, got 10+",
            ),
            id="too long for a float",
        ),
        ("down", float("nan"), "a point in percent must .*, got nan"),
        ("down", -1, "a point in percent must .*, got -1"),
        ("pointed", "no", "at a point must be true or false, got 'no'"),
        ("boxes", 1, "boxes must be true or false, got 1"),
    ],
)
def test_what_browsers_send_is_refused_in_words(
    name: str, value: object, words: str, explainer: Explainer
) -> None:
    pytest.importorskip("gradio")
    from captum_clip_surgery.app._controls import Controls

    controls = Controls(Models([(explainer, _code.Model())]))
    for make in (
        "texts",
        "minus",
        "options",
        "appearance",
        "point",
        "background",
        "prompts",
        "caption",
        "hidden",
    ):
        getattr(controls, make)()
    given = settings(point=(0.5, 0.25))
    sent = controls.values(given)
    assert controls.settings(sent, 0) == given
    with pytest.raises(ValueError, match=words):
        controls.settings({**sent, controls.by_name[name]: value}, 0)


def test_further_models_are_named_with_their_tags(monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[Any] = []
    command = "captum_clip_surgery.cli._app"
    monkeypatch.setattr(f"{command}.load_model", lambda options, *_, **__: options)
    monkeypatch.setattr(f"{command}.serve", lambda *_, more, **__: served.extend(more))
    also = ["ViT-B-16:openai", "RN50", "local-dir:a/b", "hf-hub:org/model", "hf:org/model"]
    options = [word for name in also for word in ("--also", name)]
    monkeypatch.setattr(sys, "argv", ["clip-surgery", "app", "--model", "ViT-L-14", *options])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    assert [(name, tag) for _, name, tag in served] == [
        ("ViT-B-16", "openai"),
        *((name, None) for name in also[1:]),
    ]
    assert all((one.model, one.pretrained) == (name, tag) for one, name, tag in served)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "error: port PORT is in use; choose another --port"),
        (
            ["--host", "203.0.113.1"],
            "error: cannot listen on 203.0.113.1, port PORT: .*; choose another --host or .*",
        ),
    ],
)
def test_a_port_that_is_taken_is_told(
    options: list[str],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # which main sets
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        monkeypatch.setattr(sys, "argv", ["clip-surgery", "app", "--port", port, *options])
        with pytest.raises(SystemExit) as ended:
            cli.main()
    assert re.fullmatch(words.replace("PORT", port), str(ended.value.code))
    assert capsys.readouterr().out == ""  # at once, before a model is loaded

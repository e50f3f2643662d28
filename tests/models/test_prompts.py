"""Templates, the prompt ensemble, its exact truncation and cache, and what is refused of texts."""

from __future__ import annotations

import mmap
from collections.abc import Callable

import open_clip
import pytest
import torch
from open_clip.model import CLIP, CustomTextCLIP
from torch import Tensor, nn

from captum_clip_surgery import TEMPLATES, LayerCLIPSurgery, ZeroShotClassifier
from captum_clip_surgery.models.text import _encoder as encoder
from captum_clip_surgery.models.text._templates import format_prompt
from tests._helpers.cases import each
from tests._helpers.text_towers import CONTEXT, text_model, text_tower
from tests._helpers.tiny import random_images, relative_error, tiny_model

EOT = 49407
# Of different lengths and out of order, so that a mistake in sorting shows.
TEXTS = ["a remote control on a table", "dog", "potted plant", "cat", "tv monitor", "car", "a b"]


def naive_features(
    model: nn.Module, texts: list[str], prompts: Callable[[str], list[str]] = lambda text: [text]
) -> Tensor:
    """The definition: the model's own encode_text of whole contexts, one text at a time."""
    rows = []
    for text in texts:
        tokens = open_clip.tokenize(prompts(text), context_length=CONTEXT)
        with torch.no_grad():
            features = model.encode_text(tokens)
        mean = (features / features.norm(dim=-1, keepdim=True)).mean(0)
        rows.append(mean / mean.norm())
    return torch.stack(rows)


class Watched:
    """Shapes (prompts, places) of what passed through a model's text tower."""

    def __init__(self, model: nn.Module) -> None:
        self.shapes: list[tuple[int, int]] = []
        text_tower(model).transformer.register_forward_hook(
            lambda module, args, output: self.shapes.append(tuple(args[0].shape[:2]))
        )


# --- templates -----------------------------------------------------------------------------------


def test_the_85_templates():
    assert len(TEMPLATES) == len(set(TEMPLATES)) == 85
    published = [template("sea lion") for template in open_clip.OPENAI_IMAGENET_TEMPLATES]
    assert [template.format("sea lion") for template in TEMPLATES[:80]] == published
    assert TEMPLATES[80:] == (
        "there is a {} in the scene.",
        "there is the {} in the scene.",
        "this is a {} in the scene.",
        "this is the {} in the scene.",
        "this is one {} in the scene.",
    )


@each(
    ("template", "text", "prompt"),
    [
        ("a photo of a {}.", "dog", "a photo of a dog."),
        ("{}", "dog", "dog"),
        ("{} or {}", "dog", "dog or dog"),
        ("{{set}} of {}", "dog", "{set} of dog"),
        ("a {}", "{0.__class__} and {}", "a {0.__class__} and {}"),  # a text is never a template
        (str.upper, "dog", "DOG"),
        (lambda text: f"two {text}s", "dog", "two dogs"),
    ],
)
def test_fill(template, text, prompt):
    assert format_prompt(template, text) == prompt


REFUSED_TEMPLATES = [
    ("a photo", ValueError, "'a photo' has no slot; write {} where"),
    ("a {{}}", ValueError, "has no slot"),
    ("", ValueError, "has no slot"),
    ("{0.__class__}", ValueError, r"slot {0.__class__}; only plain {} is filled"),
    ("a {} {text}", ValueError, r"slot {text}; only plain {} is filled"),
    ("{0}", ValueError, r"slot \{0\}; only plain {} is filled"),
    ("{:>10}", ValueError, r"'{:>10}' .* only plain {} is filled"),
    ("{:{}}", ValueError, "only plain {} is filled"),
    ("{!r}", ValueError, r"'{!r}' .* only plain {} is filled"),
    ("a } {}", ValueError, "'a } {}' is not a format string: .*'}'"),
    ("{", ValueError, "is not a format string"),
    (5, TypeError, "template 5 must be a format string or a function"),
    (None, TypeError, "None must be a format string or a function"),
    (len, TypeError, "len.* must return a string, got 4 for 'text'"),
]


@each(("template", "error", "message"), REFUSED_TEMPLATES)
def test_refused_templates(template, error, message):
    with pytest.raises(error, match=message):
        format_prompt(template, "text")
    # At the door as well, before the good ones are encoded.
    with pytest.raises(error, match=message):
        ZeroShotClassifier(tiny_model("vit"), ["a dog"], templates=["a {}", template])


def test_one_string_for_templates():
    with pytest.raises(TypeError, match=r"got 'a photo of a {}'; pass \['a photo of a {}'\]"):
        ZeroShotClassifier(tiny_model("vit"), ["a dog"], templates="a photo of a {}")


# --- features ------------------------------------------------------------------------------------

TWO = ["a photo of the {} here.", "{}"]
CALLED = [str.upper, lambda text: f"a drawing of {text}", "my {}"]


@pytest.mark.parametrize(
    ("templates", "prompts"),
    [
        (None, lambda text: [template.format(text) for template in TEMPLATES]),
        (TWO, lambda text: [f"a photo of the {text} here.", text]),
        (CALLED, lambda text: [text.upper(), f"a drawing of {text}", f"my {text}"]),
        ((), lambda text: [text]),
    ],
    ids=["default", "list", "callables", "none"],
)
def test_features_are_the_normalised_mean_of_normalised_prompts(templates, prompts):
    model = text_model()
    texts = ["remote control", "dog", "potted plant", "cat", "sofa", "tv", "car", "dining table"]
    clip = ZeroShotClassifier(model, texts[:6], texts[6:], templates=templates)
    expected = naive_features(model, texts, prompts)
    torch.testing.assert_close(clip.text_features(), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(
        clip.empty_features(), naive_features(model, [""], prompts)[0], atol=1e-6, rtol=0
    )
    if templates is None:
        assert len(texts) * len(TEMPLATES) > 512


TOWERS = {
    "CLIP": (CLIP, {}, True),
    "CLIP, eos": (CLIP, dict(pool_type="eos", eos_id=EOT), True),
    "CLIP, biased projection": (CLIP, dict(proj_bias=True), True),
    "CLIP, bidirectional": (CLIP, dict(no_causal_mask=True), False),
    "custom": (CustomTextCLIP, {}, True),
    "custom, eos": (CustomTextCLIP, dict(pool_type="eos", eos_id=EOT), True),
    "custom, no projection": (CustomTextCLIP, dict(proj_type="none", width=24), True),
    "custom, other blocks": (CustomTextCLIP, dict(qk_norm=True, ls_init_value=0.5), True),
    "custom, last of bidirectional": (
        CustomTextCLIP,
        dict(no_causal_mask=True, pool_type="last"),
        False,
    ),
    "custom, bidirectional": (CustomTextCLIP, dict(no_causal_mask=True), False),
    "custom, last": (CustomTextCLIP, dict(pool_type="last"), False),
    "custom, class token": (CustomTextCLIP, dict(embed_cls=True), False),
}


@each("tower", TOWERS)
def test_truncation_is_exact_and_only_where_it_can_be(tower):
    family, text_cfg, exact = TOWERS[tower]
    model = text_model(family, **text_cfg)
    expected = naive_features(model, TEXTS)
    longest = max(int(open_clip.tokenize(text).argmax()) + 1 for text in TEXTS)
    watched = Watched(model)
    clip = ZeroShotClassifier(model, TEXTS, templates=())
    assert relative_error(clip.text_features(), expected) < 1e-6
    whole = CONTEXT + (text_cfg.get("embed_cls") is True)
    assert watched.shapes == [(len(TEXTS), longest if exact else whole)]


@pytest.mark.parametrize("tower", ["CLIP", "custom, bidirectional"])
def test_too_long_texts(tower):
    family, text_cfg, _ = TOWERS[tower]
    model = text_model(family, **text_cfg)
    fits, too_long = "dog " * (CONTEXT - 2), "cat " * (CONTEXT - 1)  # besides start and end
    ZeroShotClassifier(model, [fits], templates=())
    message = f"the prompt '{too_long}' is longer than the model's context of 16 tokens; .*truncate"
    for texts, distractors in (["car", too_long], None), (["car"], [fits, too_long]):
        with pytest.raises(ValueError, match=message):
            ZeroShotClassifier(model, texts, distractors, templates=())
    with pytest.raises(ValueError, match="longer than the model's context"):
        ZeroShotClassifier(model, [fits], templates=["the {}"])
    cut = ZeroShotClassifier(model, [too_long, fits], templates=(), truncate=True)
    expected = naive_features(model, [too_long, fits])  # cut by open_clip's own tokenizer
    assert relative_error(cut.text_features(), expected) < 1e-6


# --- the cache -----------------------------------------------------------------------------------


def test_features_are_computed_once():
    model = text_model()
    watched = Watched(model)
    clip = ZeroShotClassifier(model, ["dog", "cat", "dog"], ["dog"], templates=TWO)
    assert [prompts for prompts, _ in watched.shapes] == [2 * 2]  # duplicates need no second pass
    images = random_images(clip)
    clip(images)
    clip.with_texts(["cat"], ["dog"])(images)
    assert len(watched.shapes) == 1
    other = clip.with_texts(["cat", "car"])
    clip.with_texts(["car"])  # what one classifier learnt, all of the family know
    assert [prompts for prompts, _ in watched.shapes[1:]] == [2]
    for _ in range(2):
        LayerCLIPSurgery(other).attribute_all(images)  # "empty" for so few texts
    assert [prompts for prompts, _ in watched.shapes[2:]] == [2]
    torch.testing.assert_close(other.text_features()[:1], clip.text_features()[1:2])


def optimizer_step(model: nn.Module) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.encode_text(open_clip.tokenize(["dog"], context_length=CONTEXT)).square().sum().backward()
    optimizer.step()


def swapped_data(model: nn.Module) -> None:
    weight = model.ln_final.weight
    weight.data = weight.data * torch.linspace(-1, 2, len(weight))


CHANGES = [
    optimizer_step,
    swapped_data,
    lambda model: model.load_state_dict(tiny_model("vit", seed=1).state_dict()),
    lambda model: model.load_state_dict(tiny_model("vit", seed=1).state_dict(), assign=True),
]
IDS = ["optimizer", "data", "load_state_dict", "assigned state"]


@pytest.mark.parametrize("change", CHANGES, ids=IDS)
def test_a_changed_parameter_is_noticed(change):
    model = text_model()
    clip = ZeroShotClassifier(model, ["dog", "a red car"], templates=TWO)
    sibling = clip.with_texts(["a red car"])
    before = clip.text_features()
    empty = clip.empty_features()
    change(model)
    images = random_images(clip)
    expected = naive_features(model, ["dog", "a red car"], lambda t: [s.format(t) for s in TWO])
    assert relative_error(before, expected) > 0.01  # the change matters
    logits = clip(images)
    torch.testing.assert_close(clip.text_features(), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(sibling.text_features(), expected[1:], atol=1e-6, rtol=0)
    assert relative_error(clip.empty_features(), empty) > 0.01
    image = nn.functional.normalize(model.encode_image(images), dim=-1)
    torch.testing.assert_close(logits, model.logit_scale.exp() * image @ expected.T)


def mapped(values: Tensor) -> Tensor:
    """A copy in pages of its own, which the system hands out again once they are free."""
    pages = mmap.mmap(-1, values.numel() * values.element_size())
    return torch.frombuffer(pages, dtype=values.dtype).view_as(values).copy_(values)


def test_a_change_in_the_same_memory_is_noticed():
    """`p.data = ...` twice, as some averages of weights do, may end where it began."""
    model = text_model()
    projection = model.text_projection
    projection.data = mapped(projection.data)
    address = projection.data_ptr()
    clip = ZeroShotClassifier(model, ["dog"], templates=())
    projection.data = torch.randn_like(projection)
    projection.data = mapped(projection.data)
    expected = naive_features(model, ["dog"])
    reused = "in the same memory" if projection.data_ptr() == address else "elsewhere"
    assert relative_error(clip.text_features(), expected) < 1e-6, f"stale; the weights are {reused}"


def test_a_change_of_the_image_tower_costs_no_text_pass():
    model = text_model()
    watched = Watched(model)  # before, for a new hook on the text tower may change features
    clip = ZeroShotClassifier(model, ["dog"], templates=())
    watched.shapes.clear()
    with torch.no_grad():
        model.visual.proj.mul_(2)
    clip(random_images(clip))
    assert not watched.shapes


@pytest.mark.parametrize("refreshed", [False, True], ids=["at the start", "after a change"])
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_features_of_a_mode_without_gradients_serve_gradients_later(mode, refreshed):
    model = text_model()
    images = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    clip = ZeroShotClassifier(model, ["dog", "cat"], templates=()) if refreshed else None
    if refreshed:
        swapped_data(model)
    with mode():
        clip = clip or ZeroShotClassifier(model, ["dog", "cat"], templates=())
        LayerCLIPSurgery(clip).attribute_all(images)  # remembers the empty text's too
    plain = ZeroShotClassifier(model, ["dog", "cat"], templates=())
    gradients = []
    for one in clip, plain:
        inputs = images.clone().requires_grad_()
        total = LayerCLIPSurgery(one).attribute_all(inputs).square().sum() + one(inputs).sum()
        gradients.extend(torch.autograd.grad(total, inputs))
    assert gradients[1].abs().max() > 0
    torch.testing.assert_close(gradients[0], gradients[1])


def test_features_remembered_under_autocast_are_not_rounded():
    """Otherwise every later map would depend on who asked first."""
    model = text_model()
    with torch.autocast("cpu", torch.bfloat16):
        clip = ZeroShotClassifier(model, TEXTS, templates=())
        empty = clip.empty_features()
    assert relative_error(clip.text_features(), naive_features(model, TEXTS)) < 1e-5
    assert relative_error(empty[None], naive_features(model, [""])) < 1e-5


# --- targets by text -----------------------------------------------------------------------------


def test_index():
    clip = ZeroShotClassifier(tiny_model("vit"), ["a dog", "a cat", "a dog"], ["a car"])
    assert clip.index("a cat") == 1
    torch.testing.assert_close(clip.text_features()[0], clip.text_features()[2])
    with pytest.raises(ValueError, match=r"'a dog' occurs at \[0, 2\]; give .* as an index"):
        clip.index("a dog")
    with pytest.raises(ValueError, match=r"'cat' is not among the 3 texts; did you mean 'a cat'\?"):
        clip.index("cat")
    with pytest.raises(ValueError, match=r"'zebra' is not among the 3 texts$"):
        clip.index("zebra")
    with pytest.raises(ValueError, match="'a car' is not among"):  # a distractor is no target
        clip.index("a car")


def test_remembered_texts_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who serves others is asked for new texts for ever."""
    monkeypatch.setattr(encoder, "MAX_CACHED", 10)
    clip = ZeroShotClassifier(tiny_model("vit"), ["a dog"], templates=["{}"])
    for start in range(0, 40, 4):
        texts = [f"text {number}" for number in range(start, start + 4)]
        asked = clip.with_texts(texts)
        assert len(clip.text_encoder._cached.features) <= 10
    alone = ZeroShotClassifier(tiny_model("vit"), texts, templates=["{}"])
    torch.testing.assert_close(asked.text_features(), alone.text_features())

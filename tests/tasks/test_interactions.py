"""Words by patches: their sum is the cosine, each is a product of parts, and what is refused."""

from __future__ import annotations

import copy
import json
import warnings
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from captum_clip_surgery import ZeroShotClassifier
from captum_clip_surgery.demo import Scenes
from captum_clip_surgery.models.image._direct_effects import direct_effects
from captum_clip_surgery.models.text._direct_effects import text_effects
from captum_clip_surgery.tasks import Interactions, interactions, word_maps
from captum_clip_surgery.tasks.figures import interactions_figure
from tests._helpers.cases import each
from tests._helpers.tiny import TWO_TOWERS, random_images, tiny_model, with_preprocessing
from tests._helpers.transformers_models import (
    NAMES,
    build,
    clip_model,
    processor,
    siglip_model,
    tiny_siglip,
    tokenizer,
)

CAPTIONS = ["a dog", "one xylophonist and the cat", "the big potted plant on a tv"]


def classifier(model: Any, **options: Any) -> ZeroShotClassifier:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the preprocessing of transformers' models is not known
        return ZeroShotClassifier(model, ["dog"], templates=(), **options)


@pytest.fixture(scope="module")
def vit() -> ZeroShotClassifier:
    return classifier(tiny_model("vit"))


def check_sums(clip: ZeroShotClassifier, captions: list[str], tolerance: float) -> None:
    images = random_images(clip, len(captions)).to(clip.tower.dtype)
    found = interactions(clip, images, captions)
    with torch.no_grad():
        tokens = clip.text_encoder.tokenize(captions)
        texts = F.normalize(clip.model.encode_text(tokens), dim=-1)
        cosines = (texts * F.normalize(clip.model.encode_image(images), dim=-1)).sum(-1)
    for one, cosine in zip(found, cosines, strict=True):
        assert abs(one.sum() - cosine) < tolerance
        assert abs(one.cosine - cosine) < tolerance
        assert one.maps.abs().max() > 100 * tolerance
        assert one.maps.shape == (len(one.words), *one.remainder["patches"].shape)
        assert one.remainder["words"].shape == (len(one.words),)


# --- sums ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TWO_TOWERS)
def test_contributions_sum_to_the_cosine(kind):
    check_sums(classifier(tiny_model(kind)), CAPTIONS, 1e-5)


def test_contributions_sum_to_the_cosine_in_double_precision():
    check_sums(classifier(tiny_model("vit").double()), CAPTIONS, 1e-10)


@pytest.mark.parametrize("name", ["CLIP", "SigLIP"])
def test_models_of_transformers_have_the_interactions_of_open_clip(name):
    """On the same weights; SigLIP's towers are pooled by attention and at the last position."""
    if name == "CLIP":
        source, options = tiny_model("vit"), {}
        other = clip_model(source)
    else:
        source, options = (
            with_preprocessing(tiny_siglip()),
            dict(tokenizer=tokenizer("SiglipModel")),
        )
        other = siglip_model(source)
    clips = [classifier(model, **options) for model in (source, other)]
    captions = ["a dog", "dog a dog"]
    for clip in clips:
        check_sums(clip, captions, 1e-5)
    images = random_images(clips[0])
    pairs = zip(*(interactions(clip, images, captions) for clip in clips), strict=True)
    for ours, theirs in pairs:
        assert ours.words == theirs.words
        assert torch.allclose(ours.maps, theirs.maps, atol=1e-5)


@pytest.mark.parametrize("name", ["AltCLIPModel", "ChineseCLIPModel"])
def test_contributions_sum_to_the_cosine_of_post_norm_texts(name):
    clip = classifier(build(name), processor=processor(name))
    check_sums(clip, ["a dog", "dog a dog"], 1e-5)


# --- definition ----------------------------------------------------------------------------------


def parts_of(clip: ZeroShotClassifier, images: Tensor, caption: str) -> tuple[Tensor, ...]:
    """Vectors of one image's patches and rest, of the caption's tokens and rest, normalized."""
    tokens = clip.text_encoder.tokenize([caption])
    text = text_effects(clip.text_encoder, tokens)
    axes = torch.eye(text.feature.shape[1])
    with torch.no_grad():
        image = direct_effects(clip.tower, images, axes)
    lengths = image.embedding.norm(), text.feature.norm()
    patches, rest = image.patches[0].T / lengths[0], image.embedding[0] / lengths[0]
    words, whole = text.tokens[0] / lengths[1], text.feature[0] / lengths[1]
    return patches, rest - patches.sum(0), words, whole


@pytest.mark.parametrize("special", [False, True])
def test_interactions_are_products_of_parts(vit, special):
    """Of all axes of the joint space one by one; a word of several tokens has their sum."""
    images = random_images(vit, 1)
    (found,) = interactions(vit, images, CAPTIONS[1], special=special)
    patches, rest, tokens, whole = parts_of(vit, images, CAPTIONS[1])
    pieces = len(tokens) - 2 - 4  # without start and end, and the other four words
    assert pieces > 1
    words = torch.stack(
        [tokens[0], tokens[1], tokens[2 : 2 + pieces].sum(0), *tokens[2 + pieces :]]
    )
    words = words if special else words[1:-1]
    names = CAPTIONS[1].split()
    assert found.words == (("<start>", *names, "<end>") if special else tuple(names))
    assert torch.allclose(found.maps.flatten(1), words @ patches.T, atol=1e-6)
    assert torch.allclose(found.remainder["words"], words @ rest, atol=1e-6)
    others = whole - words.sum(0)
    assert torch.allclose(found.remainder["patches"].flatten(), patches @ others, atol=1e-6)
    assert torch.allclose(found.remainder["rest"], rest @ others, atol=1e-6)
    assert torch.allclose(found.by_word(), words @ (patches.sum(0) + rest), atol=1e-6)


def test_what_words_have_in_common_is_subtracted(vit):
    images = random_images(vit, 2)
    for special in (False, True):
        for found in interactions(vit, images, CAPTIONS[:2], special=special):
            inner = found.maps[1:-1] if special else found.maps
            assert torch.allclose(found.centered(), found.maps - inner.mean(0))
    (found, _), (maps, _) = (f(vit, images, CAPTIONS[:2]) for f in (interactions, word_maps))
    assert torch.equal(maps.maps, found.centered())
    (common, _) = word_maps(vit, images, CAPTIONS[:2], common=True)
    assert torch.equal(common.maps, found.maps)


def test_one_word_keeps_its_map(vit):
    (alone,) = interactions(vit, random_images(vit, 1), "dog")
    assert alone.words == ("dog",)
    assert torch.equal(alone.centered(), alone.maps)
    assert alone.maps.abs().max() > 0


def test_norms_that_cannot_be_frozen_are_refused(vit):
    class Restated(torch.nn.LayerNorm):
        def forward(self, x: Tensor) -> Tensor:
            deviation = (x.var(-1, keepdim=True, correction=0) + self.eps).sqrt()
            return (x - x.mean(-1, keepdim=True)) / deviation * self.weight + self.bias

    model = copy.deepcopy(vit.model)
    norm = model.ln_final
    model.ln_final = Restated(norm.weight.shape[0], norm.eps)
    model.ln_final.load_state_dict(norm.state_dict())
    other = ZeroShotClassifier(model, ["a dog"], templates=())
    with pytest.raises(RuntimeError, match="the parts of the text tower differ from its embedding"):
        interactions(other, random_images(vit, 1), "a dog")


def test_images_of_any_size_and_the_pixels_that_patches_cover(vit):
    pictures = [np.full((h, w, 3), 90, np.uint8) for h, w in ((50, 70), (9, 9))]
    first, second = interactions(vit, pictures, CAPTIONS[:2], size=(40, 64), batch_size=1)
    assert (first.size, second.size) == ((50, 70), (9, 9))
    assert first.maps.shape == (2, 5, 8)
    assert first.pixels.shape == (40, 64, 3)
    assert np.allclose(first.pixels, 90 / 255, atol=1e-6)


def test_nothing_is_left_behind(vit):
    before = copy.deepcopy(vit.model.state_dict())
    images = random_images(vit, 1)
    (expected,) = interactions(vit, images, "a dog")
    with torch.inference_mode():
        (found,) = interactions(vit, images.clone(), "a dog")
    assert torch.equal(found.maps, expected.maps)
    assert not found.maps.requires_grad
    assert all(p.requires_grad and p.grad is None for p in vit.model.parameters())
    assert all(torch.equal(v, before[name]) for name, v in vit.model.state_dict().items())


# --- what they are good for ----------------------------------------------------------------------


def test_words_point_to_their_objects_and_add_most_inside_of_them():
    """On 20 validation scenes of two or three objects of the embedded model."""
    clip = ZeroShotClassifier.demo(["dog"])
    scenes = list(Scenes("validation", 20, 224, objects=[2, 3]))
    found = interactions(clip, [s.image for s in scenes], [s.caption for s in scenes])
    inside, best = [], []
    for scene, one in zip(scenes, found, strict=True):
        maps = F.interpolate(one.centered()[None], one.size, mode="bilinear")[0]
        for noun, mask in zip(scene.nouns, torch.tensor(scene.masks), strict=True):
            places = [i for i, word in enumerate(one.words) if word in noun.split()]
            inside.append(bool(mask.flatten()[maps[places].sum(0).argmax()]))
            best.append(int(maps[:, mask].mean(1).argmax()) in places)
    assert np.mean(inside) > 0.85
    assert np.mean(best) > 0.85


# --- results -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def result() -> Interactions:
    scene = Scenes("test", 40, 224, objects=[2])[0]
    clip = ZeroShotClassifier.demo(["dog"])
    return interactions(clip, scene.image, f"a {' and a '.join(scene.nouns)} $x$")[0]


def test_figure(result):
    figure = result.figure(columns=4)
    shown = [axis for axis in figure.axes if axis.get_visible() and axis.images]  # no color bar
    assert [axis.get_title().split()[0] for axis in shown[1:]] == list(result.words)
    assert shown[1].get_title().split()[1] == f"{result.by_word()[0].item():+z.3f}"
    limits = {axis.get_images()[-1].get_clim() for axis in shown[1:]}
    strongest = float(result.centered().abs().max())
    assert limits == {(-strongest, strongest)}  # one scale
    figure.canvas.draw()
    large = result.figure(np.zeros((300, 200, 3), np.uint8), centered=False)
    assert large.axes[0].get_images()[0].get_array().shape == (300, 200, 3)
    (low, high) = large.axes[1].get_images()[-1].get_clim()
    assert high == -low == float(result.maps.abs().max())
    with pytest.raises(ValueError, match="columns must be at least 1, got 0"):
        result.figure(columns=0)


def test_regions(result):
    figure = result.figure(regions=True)
    legend = [text.get_text().rsplit("  ", 1) for text in figure.axes[1].get_legend().get_texts()]
    shares = {name: float(share.rstrip("%")) for name, share in legend}
    assert set(shares) == {*result.words, "no text"}
    maps = F.interpolate(result.maps[None].double(), result.size, mode="bilinear")[0]
    none = (maps.amax(0) <= 0.1 * result.maps.max()).double().mean()
    assert shares["no text"] == pytest.approx(100 * float(none), abs=0.1)
    assert 20 < shares["no text"] < 100


def test_maps_without_a_value_are_drawn():
    words, maps = ("a", "dog"), torch.zeros(2, 3, 3)
    remainder = {"words": torch.zeros(2), "patches": maps[0], "rest": torch.tensor(0.0)}
    empty = Interactions(words, maps, remainder, torch.tensor(0.0), (8, 8), np.zeros((8, 8, 3)))
    for regions in (False, True):
        interactions_figure(empty.pixels, empty, regions=regions).canvas.draw()


def test_results_are_written_as_json(result):
    read = json.loads(json.dumps(result.to_dict()))
    assert tuple(read["words"]) == result.words
    assert torch.equal(torch.tensor(read["maps"]), result.maps)
    total = sum(np.sum(part) for part in read["remainder"].values()) + np.sum(read["maps"])
    assert total == pytest.approx(read["cosine"], abs=1e-5)
    assert read["size"] == [224, 224]


# --- what is refused -----------------------------------------------------------------------------


@each(
    ("captions", "error", "message"),
    [
        (["a dog"], ValueError, "there are 1 captions for 2 images; pass one per image"),
        (["a dog", " "], ValueError, "caption 1 is empty"),
        (["a dog", 3], TypeError, "caption 1 must be a string, got 3 of type int"),
        (3, TypeError, "captions is a int, expected a list of strings"),
        (["a dog", "dog " * 20], ValueError, "longer than the model's context of 16.*truncate"),
    ],
)
def test_captions_that_are_refused(vit, captions, error, message):
    with pytest.raises(error, match=message):
        interactions(vit, random_images(vit, 2), captions)


def test_models_that_are_refused(vit):
    images = random_images(vit, 1)
    bare = ZeroShotClassifier.from_features(vit.model, torch.randn(3, 24))
    with pytest.raises(TypeError, match="from_features has no text tower"):
        interactions(bare, images, "a dog")
    with pytest.raises(TypeError, match="forward_func must be a ZeroShotClassifier, got CLIP"):
        interactions(vit.model, images, "a dog")
    with pytest.raises(ValueError, match="batch_size 0 must be at least 1"):
        interactions(vit, images, "a dog", batch_size=0)
    clip = classifier(tiny_model("vit"))
    block = clip.model.transformer.resblocks[1]
    block.forward = block.forward
    with pytest.raises(TypeError, match="block 1 of the text tower has forward replaced"):
        interactions(clip, images, "a dog")


@pytest.mark.skipif("Tipsv2Model" not in NAMES, reason="the installed transformers has none")
def test_texts_without_one_pooled_token_are_refused():
    clip = classifier(build("Tipsv2Model"), processor=processor("Tipsv2Model"))
    images = random_images(clip, 1)
    with pytest.raises(TypeError, match="its feature must be that of one token"):
        interactions(clip, images, "a dog")
    with pytest.raises(TypeError, match=r'one token.*method="surgery" compares tokens instead'):
        word_maps(clip, images, "a dog")
    assert word_maps(clip, images, "a dog", method="surgery")[0].words == ("a", "dog")

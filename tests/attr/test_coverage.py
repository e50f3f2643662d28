"""Maps of a tower that never sees an image's last pixels are drawn and measured where it looked."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from captum_clip_surgery import (
    CLIPSimilarity,
    LayerCLIPSimilarity,
    ZeroShotClassifier,
    audit,
    compare,
    explain_pair,
)
from captum_clip_surgery.attr._coverage import fill_image
from captum_clip_surgery.collection._evidence import collect
from captum_clip_surgery.collection._report import class_figure
from captum_clip_surgery.datasets import Classes, ImageDataset, Masks, Sample
from captum_clip_surgery.decomposition import decompose
from captum_clip_surgery.export import load_maps, plan
from captum_clip_surgery.tasks import interactions, word_maps
from captum_clip_surgery.visualization._attribution import upsample
from tests._helpers.tiny import random_images, with_preprocessing
from tests._helpers.tower_kinds import Tiny, _shrunk, _timm


@pytest.fixture(scope="module")
def clip() -> ZeroShotClassifier:
    """As ViT-SO400M-14-SigLIP-384, which leaves out 6 pixels; this one the last 4 of 36."""
    vision = _timm(_shrunk("vit_so400m_patch14_siglip_384", img_size=36), "map", "none")
    model = Tiny("ViT-SO400M-14-SigLIP-384", vision | {"image_size": 36}, embed_dim=32).build()
    return ZeroShotClassifier(with_preprocessing(model.eval()), ["a dog", "a cat"], templates=())


def test_image_shaped_maps_continue_where_no_patch_is(clip):
    """Zeros would be the maximum of a map of negative cosines."""
    images = random_images(clip, 2)
    grid = LayerCLIPSimilarity(clip).attribute_all(images)
    maps = CLIPSimilarity(clip).attribute_all(images)
    assert grid.shape[-2:] == (4, 4)
    assert maps.shape[-2:] == (36, 36)
    inner = F.interpolate(grid, (32, 32), mode="bilinear", align_corners=False)
    assert torch.equal(maps[..., :32, :32], inner)
    assert torch.equal(maps[..., 32:, :32], inner[..., -1:, :].expand(-1, -1, 4, -1))
    assert torch.equal(maps[..., 32:], maps[..., 31:32].expand(-1, -1, -1, 4))


def test_comparisons_and_measures_place_maps_where_the_patches_are(clip):
    images = random_images(clip, 1)
    expected = CLIPSimilarity(clip).attribute_all(images)
    mask = torch.zeros(2, 36, 36, dtype=torch.bool)
    for text in range(2):  # the only maximum of a map is exactly inside
        mask[text].view(-1)[expected[0, text].flatten().argmax()] = True
    compared = compare(clip, images, methods=["CLIP"], masks=[mask])
    assert torch.equal(compared.maps["CLIP"], expected)
    assert compared.measures["CLIP"]["pointing"] > 0


def test_cosines_are_the_models_own_without_scale_and_bias(clip, monkeypatch):
    bias = torch.nn.Parameter(torch.tensor(-10.0))
    monkeypatch.setattr(clip.model, "logit_bias", bias, raising=False)
    images = random_images(clip, 2)
    with torch.no_grad():
        features = clip.model.encode_image(images, normalize=True)
        expected = features @ clip.text_features().T
        found = clip.cosines(clip(images))
    assert not torch.allclose(clip(images), expected, atol=0.1)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_figures_of_decompositions_place_maps_where_the_patches_are(clip):
    parts = decompose(clip, random_images(clip, 1))
    assert (parts.covered, parts.shown) == ((32, 32), (36, 36))
    mapped = parts.figure(heads=0).axes[1].get_images()[-1].get_array()
    assert mapped.shape == (36, 36)
    inner = F.interpolate(parts.map()[:, :1], (32, 32), mode="bilinear")[0, 0]
    np.testing.assert_allclose(mapped[:32, :32], inner, atol=1e-9)
    np.testing.assert_array_equal(mapped[32:], mapped[31:32].repeat(4, 0))


def test_images_of_whole_patches_are_covered(clip):
    images = torch.zeros(1, 3, 24, 16)
    assert compare(clip, images, methods=["CLIP"]).maps["CLIP"].shape == (1, 2, 3, 2)


def test_exports_say_which_pixels_their_maps_cover(clip, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (72, 90, 3), dtype=np.uint8)
    (tmp_path / "images").mkdir()
    Image.fromarray(pixels).save(tmp_path / "images" / "one.png")
    for method, covered in ((LayerCLIPSimilarity, (64, 80)), (CLIPSimilarity, (72, 90))):
        export = plan(method(clip), tmp_path / "images", tmp_path / method.__name__)
        export.explain(method(clip), export.left(), workers=0)
        export.finish()
        maps = load_maps(tmp_path / method.__name__)
        assert maps.covered("one.png") == pytest.approx(covered)
        assert maps.settings["covered"] == ([32, 32] if covered == (64, 80) else [36, 36])


def test_maps_of_words_continue_where_no_patch_is(clip):
    images = random_images(clip, 1)
    (words,) = word_maps(clip, images, "a dog", common=True)
    assert words.maps.shape == (2, 36, 36)
    assert torch.equal(words.maps[:, 32:], words.maps[:, 31:32].expand(-1, 4, -1))


def test_interactions_stay_on_the_grid_and_say_which_pixels_it_covers(clip):
    images = random_images(clip, 1)
    (found,) = interactions(clip, images, "a dog")
    assert found.maps.shape == (2, 4, 4)  # stretched, they would not sum to the cosine
    seen = clip.unnormalize(images)[0, :, :32, :32].permute(1, 2, 0)
    assert np.array_equal(found.pixels, seen.numpy())


class OneObject(ImageDataset):
    """Images of a gray square, objects of one pixel and of others that no patch covers."""

    def __init__(self, texts):
        super().__init__("one", Classes(tuple((text,) for text in texts)), ["a", "b"])

    def read(self, index):
        mask = np.zeros((72, 72), bool)
        mask[48:64, 64:] = mask[40, 63] = True
        return Sample(self.names[index], Image.new("RGB", (72, 72), "gray"), Masks({index: mask}))


def test_audits_place_objects_and_evidence_where_the_patches_are(clip):
    result = audit(clip, data := OneObject(clip.texts), min_images=1)
    assert (result.size, result.covered) == ((36, 36), (32, 32))
    evidence = collect(clip, data, [0], None, 1, progress=False)
    assert evidence.pairs[0].inside.nonzero().flatten().tolist() == [2 * 4 + 3]
    entry = next(entry for entry in result.classes if entry.maps.max() > 0)
    axis = class_figure(result, entry).axes[1]
    drawn = axis.images[-1].get_array()
    whole = fill_image(entry.maps[None], (32, 32), (36, 36))[0, 0].double().numpy()
    assert np.allclose(drawn, upsample(whole, (72, 72)).clip(0), atol=1e-6)


def test_pairs_are_drawn_on_the_part_that_the_patches_cover(clip):
    image = Image.new("RGB", (144, 72), "gray")
    result = explain_pair(clip, image, random_images(clip, 1))
    assert result.sizes == ((64, 128), (32, 32))
    figure = result.figure(image, np.zeros((360, 360, 3), np.uint8))
    shapes = [axis.images[0].get_array().shape[:2] for axis in figure.axes[:2]]
    assert shapes == [(64, 128), (320, 320)]

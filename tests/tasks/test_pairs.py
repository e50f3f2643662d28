"""Two images: contributions of pairs of patches sum to the cosine; matching regions."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from matplotlib.patches import ConnectionPatch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, normalize

from captum_clip_surgery import LayerDirectEffect, ZeroShotClassifier, explain_pair
from captum_clip_surgery.demo import Scenes
from captum_clip_surgery.queries import ImageQuery
from captum_clip_surgery.tasks import PairExplanation
from tests._helpers.cases import each
from tests._helpers.tiny import random_images, tiny_model


def classifier(kind: str) -> ZeroShotClassifier:
    return ZeroShotClassifier(tiny_model(kind), ["a dog"], templates=())


def planted(values: Tensor) -> PairExplanation:
    """An explanation of two images of 80 x 60 and 40 x 40 pixels with given interactions."""
    remainder = {"query": values.new_zeros(values.shape[:2]), "rest": values.new_zeros(())}
    remainder["image"] = values.new_zeros(values.shape[2:])
    pixels = np.zeros((80, 60, 3)), np.ones((40, 40, 3))
    return PairExplanation(values, remainder, values.sum(), ((80, 60), (40, 40)), pixels)


@each("kind", ["vit", "resnet", "siglip", "gap", "layerscale"])
def test_contributions_sum_to_the_cosine(kind):
    clip = classifier(kind)
    first, second = random_images(clip).split(1)
    result = explain_pair(clip, first, second)
    with torch.no_grad():
        embeddings = normalize(clip.model.encode_image(torch.cat([first, second])), dim=-1)
    assert abs(result.cosine - embeddings[0] @ embeddings[1]) < 1e-5
    assert abs(result.sum() - result.cosine) < 1e-5
    assert result.interactions.abs().max() > 1e-4


@each("kind", ["vit", "resnet", "siglip", "gap"])
def test_maps_are_direct_effects_of_the_other_image(kind):
    clip = classifier(kind)
    first, second = random_images(clip).split(1)
    maps = explain_pair(clip, first, second).maps()
    for actual, image, query in zip(maps, (first, second), (second, first), strict=True):
        asked = clip.with_queries([ImageQuery(query)])
        expected = LayerDirectEffect(asked, feature_surgery=None).attribute_all(image)[0, 0]
        torch.testing.assert_close(actual, expected, atol=1e-6, rtol=1e-4)


def test_exchanging_the_images_transposes():
    clip = classifier("vit")
    first, second = torch.randn(1, 3, 32, 32), torch.randn(1, 3, 48, 32)
    result, swapped = explain_pair(clip, first, second), explain_pair(clip, second, first)
    (rows, columns), (more, same) = clip.tower.grid(32, 32), clip.tower.grid(48, 32)
    assert result.interactions.shape == (rows, columns, more, same)
    transposed = swapped.interactions.permute(2, 3, 0, 1)
    torch.testing.assert_close(result.interactions, transposed, atol=1e-7, rtol=1e-5)
    torch.testing.assert_close(result.remainder["query"], swapped.remainder["image"])
    for pair, other in zip(result.pairs(), swapped.pairs(), strict=True):
        assert torch.equal(pair.region, other.query_region)
        assert torch.equal(pair.query_region, other.region)


def test_pairs_find_planted_regions():
    values = torch.zeros(8, 7, 10, 10)
    values[0:4, 0:4, 5:9, 5:9] = 0.05
    values[5:8, 3:7, 0:3, 0:3] = 0.04
    values[4, 4, 4, 4] = -3.0
    result = planted(values)
    for pair, rows, columns in zip(
        result.pairs(2),
        ((slice(0, 4), slice(0, 4)), (slice(5, 8), slice(3, 7))),
        ((slice(5, 9), slice(5, 9)), (slice(0, 3), slice(0, 3))),
        strict=True,
    ):
        # All but the corners, whose neighborhoods have four of nine patches inside.
        for region, place in ((pair.query_region, rows), (pair.region, columns)):
            inside = torch.zeros_like(region)
            inside[place] = True
            assert not (region & ~inside).any()
            assert (inside & ~region).sum() <= 4
        block = pair.query_region[:, :, None, None] & pair.region
        assert pair.contribution == pytest.approx(float(values[block].sum()))
    assert result.to_dict(2)["pairs"][1]["box"][:2] == [0, 0]
    assert not planted(-values.abs()).pairs(), "nothing raises the cosine"
    blocks = [p.query_region[:, :, None, None] & p.region for p in result.pairs(50)]
    assert torch.stack(blocks).sum(0).max() == 1, "a pair of patches counts twice"


def test_the_object_that_two_scenes_share():
    scenes = Scenes("validation", 80, size=256, objects=(2, 3))
    first, second = scenes[0], next(s for s in scenes[1:] if "backpack" in s.nouns)
    clip = ZeroShotClassifier.demo(["dog"])
    result = explain_pair(clip, first.image, second.image)
    pair = result.pairs(1)[0]
    for scene, region in ((first, pair.query_region), (second, pair.region)):
        mask = torch.from_numpy(scene.masks[scene.nouns.index("backpack")]).float()
        shares = adaptive_avg_pool2d(mask[None, None], region.shape)[0, 0]
        assert shares[region].mean() > 0.5, shares[region].mean()
    figure = result.figure(first.image, count=2)
    lines = [a for a in figure.axes[1].patches if isinstance(a, ConnectionPatch)]
    assert len(lines) == 2 * len(result.pairs(2))  # each with a white border
    named = result.figure(maps=False, names=("$x", "other.png"))
    titles = ["$x", f"other.png, cosine {float(result.cosine):.3f}"]
    assert [axis.get_title() for axis in named.axes] == titles
    content = json.loads(json.dumps(result.to_dict()))
    assert content["patches"] + sum(content["remainder"].values()) == pytest.approx(
        content["cosine"], abs=1e-5
    )


def test_what_is_refused():
    clip = classifier("vit")
    images = random_images(clip)
    with pytest.raises(ValueError, match="a batch of 2"):
        explain_pair(clip, images, images[:1])
    with pytest.raises(ValueError, match="a preprocessed batch has its own"):
        explain_pair(clip, images[:1], images[:1], size=64)
    with pytest.raises(ValueError, match="at least 1"):
        explain_pair(clip, images[:1], images[1:]).pairs(0)

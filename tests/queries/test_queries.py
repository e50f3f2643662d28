"""Queries beside texts: what their features are, where they go, and which are refused."""

from __future__ import annotations

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from captum_clip_surgery import METHODS, LayerCLIPSurgery, LayerDirectEffect, ZeroShotClassifier
from captum_clip_surgery.comparison import compare
from captum_clip_surgery.decomposition import decompose
from captum_clip_surgery.metrics import randomization
from captum_clip_surgery.models import _image_encoder
from captum_clip_surgery.models.image._surgery import surgery_path
from captum_clip_surgery.queries import (
    DifferenceQuery,
    FeatureQuery,
    ImageQuery,
    MeanQuery,
    RegionQuery,
)
from captum_clip_surgery.tasks import recognize, segment
from tests._helpers.cases import each
from tests._helpers.tiny import TOWERS, random_images, tiny_model
from tests._helpers.tower_kinds import TINY

TEXTS = ["a dog", "a cat", "a tree"]
WIDTH = TINY["vit"].embed_dim


@pytest.fixture
def vit() -> ZeroShotClassifier:
    return ZeroShotClassifier(tiny_model("vit"), TEXTS, templates=())


def pictures(clip: ZeroShotClassifier, count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (40, 56, 3), dtype=np.uint8) for _ in range(count)]


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> bool:
    return actual.shape == expected.shape and bool((actual - expected).abs().max() < tolerance)


# --- features ------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", TOWERS)
def test_features_by_their_definitions(family):
    clip = ZeroShotClassifier(tiny_model(family), TEXTS, templates=())
    first, second = pictures(clip, 2)
    given = torch.randn(TINY[family].embed_dim)
    mask = np.zeros((40, 56), bool)
    mask[:20] = True
    queries = [
        "a dog",
        ImageQuery(first),
        RegionQuery(first, mask=mask, name="upper half"),
        RegionQuery(first, box=(0, 0, 56, 20)),
        MeanQuery(["a cat", ImageQuery(second, "second")]),
        DifferenceQuery("a cat", MeanQuery(["a dog", "a tree"]), name="cats"),
        FeatureQuery(given),
    ]
    asked = clip.with_queries(queries)
    assert asked.texts == (
        "a dog",
        "image 1",
        "upper half",
        "region of image 3",
        "mean of a cat, second",
        "cats",
        "feature 6",
    )
    assert asked.index("cats") == 5
    texts = clip.text_features()
    batch = clip.preprocess([first, second])
    with torch.no_grad():
        embeddings = clip.image_features(batch)
        output = clip.tower.dual_path(batch[:1].to(clip.tower.dtype), surgery_path(clip.tower))
    rows = output.grid[0] // 2  # all tiny grids have an even number of rows
    half = normalize(output.patches, dim=-1).unflatten(1, output.grid)[0, :rows].mean((0, 1))
    expected = [
        texts[0],
        embeddings[0],
        normalize(half, dim=0),
        normalize(half, dim=0),
        normalize(texts[1] + embeddings[1], dim=0),
        texts[1] - normalize(texts[0] + texts[2], dim=0),
        normalize(given, dim=0),
    ]
    assert output.grid[0] % 2 == 0
    features = asked.text_features()
    for name, actual, wanted in zip(asked.texts, features, expected, strict=True):
        assert close(actual, wanted), name
    assert clip.texts == tuple(TEXTS), "the classifier itself was changed"


def test_a_text_as_a_query_equals_the_text(vit):
    images = random_images(vit)
    asked = vit.with_queries(["a dog", ImageQuery(images[0])])
    assert torch.equal(asked.text_features()[0], vit.text_features()[0])
    assert torch.equal(asked.empty_features(), vit.empty_features())
    maps = LayerCLIPSurgery(asked).attribute_all(images, [0])
    assert close(maps, LayerCLIPSurgery(vit).attribute_all(images, [0]), 1e-6)
    assert vit.with_queries(TEXTS).texts == vit.texts


def test_batch_equals_one_by_one(vit):
    queries = [ImageQuery(image, f"picture {i}") for i, image in enumerate(pictures(vit, 20))]
    queries += [ImageQuery(torch.randn(1, 3, 32, 48), "of another size")]
    together = vit.with_queries(queries).text_features()
    alone = [vit.with_queries([query]).text_features()[0] for query in queries]
    assert close(together, torch.stack(alone))


@each("family", ["vit", "resnet", "siglip", "gap"])
def test_a_difference_is_antisymmetric(family):
    clip = ZeroShotClassifier(tiny_model(family), TEXTS, templates=())
    image = ImageQuery(pictures(clip, 1)[0], "it")
    queries = [
        DifferenceQuery("a dog", "a cat"),
        DifferenceQuery("a cat", "a dog"),
        DifferenceQuery(image, "a dog"),
        DifferenceQuery("a dog", image),
    ]
    asked = clip.with_queries(queries)
    images = random_images(clip)
    for variant in ("empty", None):
        maps = LayerCLIPSurgery(asked, feature_surgery=variant).attribute_all(images)
        assert maps.abs().max() > 1e-3
        assert close(maps[:, 0], -maps[:, 1], 1e-6)
        assert close(maps[:, 2], -maps[:, 3], 1e-6)
        texts = LayerCLIPSurgery(clip, feature_surgery=variant).attribute_all(images)
        assert close(maps[:, 0], texts[:, 0] - texts[:, 1]), "not the difference of the maps"
    assert torch.equal(asked.empty_features(), torch.zeros(4, clip.joint_width()))


def test_a_difference_is_the_logarithm_of_the_odds(vit):
    images = random_images(vit)
    probabilities = vit(images).softmax(-1)
    logit = vit.with_queries([DifferenceQuery("a dog", "a tree")])(images)[:, 0]
    assert close(logit, (probabilities[:, 0] / probabilities[:, 2]).log(), 1e-4)


def test_a_bias_of_logits_cancels_in_differences():
    model = tiny_model("siglip")
    model.logit_bias = torch.nn.Parameter(torch.tensor(-7.5))
    clip = ZeroShotClassifier(model, TEXTS, templates=())
    images = random_images(clip)
    queries = [DifferenceQuery("a dog", "a cat"), "a dog", DifferenceQuery("a cat", "a dog")]
    asked = clip.with_queries(queries, ["a tree"])
    logits, texts = asked(images), clip(images)
    assert asked.differences == (True, False, True)
    assert close(logits[:, 0], texts[:, 0] - texts[:, 1])
    assert torch.equal(logits[:, 1], texts[:, 0])
    assert close(logits[:, 0], -logits[:, 2])
    cosines = clip.image_features(images) @ asked.text_features()[:3].T
    assert close(asked.cosines(logits), cosines)
    assert close(compare(asked, images, methods=["CLIP"], targets=[1, 2]).cosines, cosines[:, 1:])
    assert close(decompose(asked, images).logits().float(), logits)


def test_names_without_name_survive_another_order(vit):
    first, second = pictures(vit, 2)
    query = ImageQuery(second)
    asked = vit.with_queries([ImageQuery(first), query])
    turned = asked.with_texts(["image 1", "image 0"])
    for local in (turned, asked, asked.with_texts(["image 1"])):
        feature = local.with_texts(["image 1"]).text_features()[0]
        assert torch.equal(feature, asked.text_features()[1])
    assert torch.equal(turned.text_features(), asked.text_features().flip(0))
    assert turned.queries["image 1"] is asked.queries["image 1"] is query
    assert turned.with_texts(["a dog"]).queries == {}


def test_images_of_queries_pass_the_registers(vit, monkeypatch):
    neurons = ((0, 3), (1, 5))
    monkeypatch.setattr(_image_encoder, "find_register_neurons", lambda *_: neurons)
    images = random_images(vit)
    asked = vit.with_queries([ImageQuery(images[0], "it"), "a dog"])
    registered = asked.with_registers(images)
    with torch.no_grad():
        expected = registered.image_features(images[:1])[0]
    assert close(registered.text_features()[0], expected)
    assert not close(asked.text_features()[0], expected, 1e-3)
    assert torch.equal(registered.text_features()[1], vit.text_features()[0])


def test_differences_compete_only_with_differences(vit):
    images = pictures(vit, 1)
    queries = [DifferenceQuery("a dog", "a cat"), DifferenceQuery("a tree", "a cat")]
    asked = vit.with_queries(queries)
    labels = segment(asked, images)[0].labels
    assert torch.equal(labels, segment(vit.with_texts(["a dog", "a tree"]), images)[0].labels)
    for clip, background in ((asked, ["grass"]), (vit.with_queries([*queries, "a dog"]), None)):
        with pytest.raises(ValueError, match=r"is a difference and '(grass|a dog)' is not"):
            segment(clip, images, background=background)


def test_an_image_query_finds_itself(vit):
    images = random_images(vit, 3)
    asked = vit.with_queries([ImageQuery(image, str(i)) for i, image in enumerate(images)])
    cosines = asked(images) / vit.model.logit_scale.exp()
    assert close(cosines.diagonal(), torch.ones(3))


def test_a_region_counts_patches_by_their_share(vit):
    """The box takes a quarter of one patch and half of its neighbor, wherever the edges are."""
    image = torch.randn(1, 3, *vit.native_size)
    rows, columns = vit.tower.patch_size
    box = (columns / 2, rows / 2, 2 * columns, rows)
    with torch.no_grad():
        output = vit.tower.dual_path(image, surgery_path(vit.tower))
    tokens = normalize(output.patches, dim=-1)[0]
    feature = vit.with_queries([RegionQuery(image, box=box)]).text_features()[0]
    assert close(feature, normalize(tokens[0] / 4 + tokens[1] / 2, dim=0))
    mask = torch.zeros(vit.native_size, dtype=torch.bool)
    mask[rows // 2 : rows, columns // 2 : 2 * columns] = True
    same = vit.with_queries([RegionQuery(image[0], mask=mask)]).text_features()[0]
    assert close(same, feature)
    for arrays in (np.array(box), torch.tensor(box), list(box)):
        assert RegionQuery(image, box=arrays).box == box


# --- where they go -------------------------------------------------------------------------------


def test_every_method_takes_queries(vit):
    asked = vit.with_queries(
        ["a dog", ImageQuery(pictures(vit, 1)[0]), DifferenceQuery("a dog", "a cat")],
        distractors=[FeatureQuery(torch.ones(WIDTH))],
    )
    images = random_images(vit)
    for name, method in METHODS.items():
        if name == "GuidedGradCam":  # for ResNets only
            continue
        maps = method(asked).attribute_all(images)
        assert maps.shape[:2] == (2, 3), name
        assert maps.isfinite().all(), name


def test_contributions_sum_to_the_score(vit):
    asked = vit.with_queries([ImageQuery(pictures(vit, 1)[0]), DifferenceQuery("a dog", "a cat")])
    for target in (0, 1):
        effect = LayerDirectEffect(asked, feature_surgery=None)
        _, delta = effect.attribute(random_images(vit), target, return_convergence_delta=True)
        assert delta.abs().max() < 1e-5


@pytest.mark.slow
def test_tasks_and_measures_take_queries(vit):
    images = pictures(vit, 2)
    asked = vit.with_queries(["a dog", ImageQuery(images[0], "this")])
    scores = recognize(asked, images, feature_surgery=None)
    assert scores[0].classes == ("a dog", "this")
    assert scores[0].scores[1] > 0.999
    # Texts of the background are added to the queries, whose names stand for them.
    result = segment(asked, images, background=["a tree"])[0]
    assert result.classes == ("background", "a dog", "this")
    local = asked.with_texts(["this", "a cat"])
    assert torch.equal(local.text_features()[0], asked.text_features()[1])
    assert torch.equal(local.text_features()[1], vit.text_features()[1])
    shuffled = randomization(asked, {"m": METHODS["CLIP"]}, random_images(vit), 1, num_stages=1)
    assert shuffled.correlations["m"][0] == pytest.approx(1)


def test_competition_is_among_all_queries(vit):
    """The release form by its formula, with image and text queries side by side."""
    images = random_images(vit)
    asked = vit.with_queries(["a dog", ImageQuery(pictures(vit, 1)[0])], ["a cat"])
    output = vit.tower.dual_path(images, surgery_path(vit.tower))
    tokens, features = normalize(output.patches, dim=-1), asked.text_features()
    weights = 3 * (2 * vit.image_features(images) @ features.T).softmax(-1)
    weighted = weights[:, :, None] * (features @ tokens.mT)
    expected = (weighted - weighted.mean(1, keepdim=True))[:, :2].unflatten(-1, output.grid)
    maps = LayerCLIPSurgery(asked, feature_surgery="release").attribute_all(images)
    assert close(maps, expected)


def test_features_follow_the_model(vit):
    asked = vit.with_queries([ImageQuery(pictures(vit, 1)[0]), "a dog"])
    before = asked.text_features()
    assert asked.text_features() is before, "computed without need"
    with torch.no_grad():
        vit.model.visual.proj.mul_(torch.linspace(0.5, 1.5, WIDTH))
    after = asked.text_features()
    assert not close(after[0], before[0], 1e-3)
    assert torch.equal(after[1], before[1])


def test_gradients_flow_to_images_and_features(vit):
    image = torch.randn(3, *vit.native_size, requires_grad=True)
    feature = torch.randn(WIDTH, requires_grad=True)
    asked = vit.with_queries([ImageQuery(image), FeatureQuery(feature), "a dog"])
    maps = LayerCLIPSurgery(asked).attribute_all(random_images(vit))
    maps[:, :2].square().sum().backward()
    assert image.grad.abs().max() > 0
    assert feature.grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in vit.model.transformer.parameters())
    texts = asked.with_queries([DifferenceQuery("a dog", "a cat")])
    assert texts.text_features() is texts.text_features(), "follows images that it does not have"


def test_a_classifier_of_features_takes_queries(vit):
    given = ZeroShotClassifier.from_features(vit.model, torch.randn(2, WIDTH))
    query = ImageQuery(pictures(vit, 1)[0])
    asked = given.with_queries([query, FeatureQuery(torch.ones(1, WIDTH), "ones")])
    assert asked.texts == ("image 0", "ones")
    assert not asked.has_empty_features
    assert torch.equal(asked.text_features()[0], vit.with_queries([query]).text_features()[0])
    difference = given.with_queries([DifferenceQuery(query, FeatureQuery(torch.ones(WIDTH)))])
    assert difference.has_empty_features, "the empty text cancels"
    with pytest.raises(ValueError, match="made by from_features"):
        given.with_queries([query, "a dog"])


def test_copies_keep_their_queries(vit):
    asked = vit.with_queries([ImageQuery(pictures(vit, 1)[0]), DifferenceQuery("a dog", "a cat")])
    buffer = io.BytesIO()
    torch.save(asked, buffer)
    buffer.seek(0)
    copies = [copy.deepcopy(asked), pickle.loads(pickle.dumps(asked))]
    copies.append(torch.load(buffer, weights_only=False))
    for each_copy in copies:
        assert close(each_copy.text_features(), asked.text_features(), 1e-6)


# --- what is refused -----------------------------------------------------------------------------


def test_bad_queries_are_refused_by_name(vit, tmp_path):
    path = tmp_path / "street.png"
    Image.new("RGB", (40, 30)).save(path)
    assert vit.with_queries([ImageQuery(path)]).texts == ("street.png",)
    image, mask = torch.zeros(3, *vit.native_size), torch.zeros(vit.native_size, dtype=torch.bool)
    cases = [
        ([ImageQuery(torch.zeros(3, 33, 32), "odd")], "query 'odd': images of 33 x 32 pixels"),
        ([ImageQuery(torch.zeros(2, 3, 32, 32), "two")], "query 'two': .* batch of 2"),
        ([ImageQuery(torch.full((3, 32, 32), torch.nan), "nan")], "query 'nan': .*NaN"),
        ([RegionQuery(path, box=(0, 0, 41, 30))], "region of street.png': .*exceeds .*40 x 30"),
        (
            [RegionQuery(path, mask=np.ones((3, 4), bool))],
            r"mask is \(3, 4\), the image \(30, 40\)",
        ),
        ([FeatureQuery(torch.ones(WIDTH + 1), "wide")], f"query 'wide' have shape .*{WIDTH + 1}"),
        ([FeatureQuery(torch.zeros(WIDTH), "null")], "query 'null' 0 is zero"),
        ([DifferenceQuery("a dog", "a dog")], "'a dog rather than a dog' is zero"),
        ([DifferenceQuery(ImageQuery(path), ImageQuery(path))], "is zero"),
        ([ImageQuery(path), RegionQuery(path, box=(0, 0, 9, 9), name="street.png")], "two queries"),
        ([], "no queries"),
        (["a dog", " "], "is empty"),
    ]
    for queries, message in cases:
        with pytest.raises(ValueError, match=message):
            vit.with_queries(queries)
    with pytest.raises(FileNotFoundError, match=r"query 'nowhere\.png'"):
        vit.with_queries([ImageQuery("nowhere.png")])
    for queries, message in [("a dog", "must be a list"), ([image], "expected texts or queries")]:
        with pytest.raises(TypeError, match=message):
            vit.with_queries(queries)
    for make, message in [
        (lambda: RegionQuery(image), "either box= or mask="),
        (lambda: RegionQuery(image, mask=mask), "mask is empty"),
        (lambda: RegionQuery(image, box=(5, 5, 5, 9)), "left < right"),
        (lambda: RegionQuery(image, box=np.array([0, 9, 5, 9])), "top < bottom"),
        (lambda: RegionQuery(image, box=("a", 1, 2, 3)), r"four numbers .*got \('a', 1, 2, 3\)"),
        (lambda: RegionQuery(image, box=torch.ones(3)), "four numbers"),
        (lambda: MeanQuery([]), "at least one"),
    ]:
        with pytest.raises(ValueError, match=message):
            make()
    for make, message in [
        (lambda: RegionQuery(image, mask=mask.float()), "of bool"),
        (lambda: MeanQuery("a dog"), "must be a list"),
        (lambda: MeanQuery([DifferenceQuery("a", "b")]), "difference of means"),
        (lambda: DifferenceQuery("a", 3), "holds int"),
    ]:
        with pytest.raises(TypeError, match=message):
            make()

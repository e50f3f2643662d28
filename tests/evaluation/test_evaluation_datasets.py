"""Data sets measured end to end, against scikit-learn, torchmetrics and the public API."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchmetrics.classification import MulticlassJaccardIndex

from captum_clip_surgery import LayerCLIPSimilarity, LayerCLIPSurgery, ZeroShotClassifier
from captum_clip_surgery.attr import METHODS
from captum_clip_surgery.attr._engine import Explain
from captum_clip_surgery.datasets import (
    IGNORE_INDEX,
    ImageDataset,
    Labels,
    Masks,
    Point,
    Points,
    Tags,
)
from captum_clip_surgery.demo import Scenes, nouns
from captum_clip_surgery.evaluation import Protocol, Result, View, evaluate, evaluate_scenes
from captum_clip_surgery.evaluation._grids import GridDataset
from captum_clip_surgery.metrics import (
    grid_pointing_game,
    insertion_deletion,
    localization,
    text_specificity,
)
from captum_clip_surgery.tasks import prompts, recognize
from tests._helpers.written_scenes import Given, of_few_nouns, scene_folder, scene_voc

SCENES = Scenes("test", 8, 224, objects=[2, 3])
#: Sums in another order swap pixels that are all but equal: one swap is some 1e-8 of AUROC.
CLOSE = dict(rel=1e-6, abs=1e-6)
#: Measures that change by a pixel if one at a map's mean is on the other side of it.
AT_THE_MEAN = ("pixel_accuracy", "segmentation_miou")
FOUR = "dog\ncat, kitten\nhorse\ncow"


@pytest.fixture(scope="module")
def clip() -> ZeroShotClassifier:
    return ZeroShotClassifier.demo(["dog"])


def way(**views: View) -> Protocol:
    return Protocol("test", "tests", views, {})


def measured(
    clip: ZeroShotClassifier, data: ImageDataset, protocol: Protocol, *methods: str
) -> dict[str, Result]:
    chosen = {name: METHODS[name] for name in methods or ("CLIPSurgery",)}
    return dict(evaluate(clip, data, chosen, protocol, progress=False, confidence=False).results)


# --- localization --------------------------------------------------------------------------------


def check_same_as_scenes(
    clip: ZeroShotClassifier, scenes: Scenes, root: Path, names: Sequence[str]
) -> None:
    methods = {name: METHODS[name] for name in names}
    expected = evaluate_scenes(clip, scenes, methods, progress=False)
    data = scene_folder(scenes, root)
    found = evaluate(clip, data, methods, Protocol.load("present"), progress=False)
    assert found.images == len(scenes)
    assert list(found.results) == list(names)
    for name, result in found.results.items():
        assert result.measures.keys() == expected[name].measures.keys()
        for key, value in expected[name].measures.items():
            close = {**CLOSE, "rel": 1e-5} if key in AT_THE_MEAN else CLOSE
            assert result.measures[key] == pytest.approx(value, **close), (name, key)
            if key in expected[name].intervals:
                interval = expected[name].intervals[key]
                assert result.intervals[key] == pytest.approx(interval, **close), (name, key)


@pytest.mark.slow
def test_a_folder_of_scenes_as_the_scenes(clip: ZeroShotClassifier, tmp_path: Path) -> None:
    check_same_as_scenes(clip, SCENES, tmp_path, ["CLIP", "CLIPSurgery", "LeGrad"])


@pytest.mark.slow
def test_all_test_scenes_as_a_folder(clip: ZeroShotClassifier, tmp_path: Path) -> None:
    scenes = Scenes("test", 500, 224, objects=[2, 3])
    check_same_as_scenes(clip, scenes, tmp_path, ["CLIP", "CLIPSurgery"])


def test_scenes_in_the_layout_of_voc(clip: ZeroShotClassifier, tmp_path: Path) -> None:
    """JPEG takes little away."""
    scenes = of_few_nouns(SCENES)
    assert len(scenes) >= 5
    protocol = Protocol.load("present")
    png = measured(clip, scene_folder(scenes, tmp_path / "png"), protocol)["CLIPSurgery"].measures
    jpeg = measured(clip, scene_voc(scenes, tmp_path / "voc"), protocol)["CLIPSurgery"].measures
    print({name: f"{jpeg[name] - value:+.3f}" for name, value in png.items()})
    assert jpeg["n_pairs"] == png["n_pairs"]
    assert jpeg != png
    for name in ("explanation_iou", "msc", "energy", "auroc", "average_precision"):
        assert jpeg[name] == pytest.approx(png[name], abs=2), name


def test_classes_compete_and_the_background_is_none(
    clip: ZeroShotClassifier, tmp_path: Path
) -> None:
    data = scene_folder(SCENES[:3], tmp_path)
    found = measured(clip, data, way(localization=View(size=128)))["CLIPSurgery"].measures
    local, pairs = clip.with_texts(nouns()), []
    surgery = LayerCLIPSurgery(local)
    for scene in SCENES[:3]:
        targets = [local.index(noun) for noun in scene.nouns]
        with torch.no_grad():
            maps = surgery.attribute_all(clip.preprocess(scene.image, 128), targets)[0]
        pairs += zip(maps, torch.from_numpy(scene.masks), strict=True)
    assert found == pytest.approx(vars(localization(pairs)), **CLOSE)


def corner(clip: ZeroShotClassifier) -> Explain:
    """A method whose map of text k is highest in the k-th of four cells, whatever the image."""

    def explain(images: Tensor, targets: Sequence[int] | None = None) -> Tensor:
        chosen = range(len(clip.texts)) if targets is None else targets
        return torch.eye(4)[list(chosen)].reshape(1, -1, 2, 2).expand(len(images), -1, -1, -1)

    return explain


def quarters(*classes: int) -> np.ndarray:
    """Labels (8, 8) of the four quarters."""
    return np.array(classes, np.int32).reshape(2, 2).repeat(4, 0).repeat(4, 1)


GREY = np.full((8, 8, 3), 128, np.uint8)


def test_ignored_pixels_reach_the_measures(clip: ZeroShotClassifier) -> None:
    """Of labels for all classes of an image, of masks for one class alone."""
    view = way(localization=View(size=64))

    def found(truth: Labels | Masks) -> dict[str, float]:
        data = Given(FOUR, [GREY], [truth])
        result = evaluate(clip, data, {"corner": corner}, view, progress=False).results
        return dict(result["corner"].measures)

    labels = quarters(
        1, 1, 2, IGNORE_INDEX
    )  # texts point at their own quarter: 1 right, 2 left down
    judged = found(Labels(labels))
    assert (judged["n_pairs"], judged["skipped"], judged["pointing"]) == (2, 0, 100)
    everything = {1: labels == 1, 2: labels == 2}
    assert found(Masks(everything, {1: labels == -1, 2: labels == -1})) == judged
    counted = found(Masks(everything))
    assert counted["msc"] < judged["msc"] - 1
    one = found(Masks(everything, {1: labels == -1}))["msc"]
    assert counted["msc"] < one < judged["msc"]
    # Nothing but its mask is left of class 1.
    assert found(Masks(everything, {1: labels != 1}))["skipped"] == 1


def test_images_that_show_nothing_add_nothing(clip: ZeroShotClassifier) -> None:
    data = Given(FOUR, [GREY] * 3, [Masks({}), Masks({1: quarters(0, 1, 0, 0) > 0}), Masks({})])
    for texts in ("classes", "present"):
        view = way(localization=View(size=64, texts=texts))
        found = evaluate(clip, data, {"CLIP": METHODS["CLIP"]}, view, progress=False)
        assert found.results["CLIP"].measures["n_pairs"] == 1
        assert [index for _, index in found.ranked_images["localization"]] == [1]
    with pytest.raises(ValueError, match="no pair to measure"):
        evaluate(clip, Given(FOUR, [GREY], [Masks({})]), {"CLIP": METHODS["CLIP"]}, view)


# --- segmentation --------------------------------------------------------------------------------


def test_confusion_by_other_libraries(clip: ZeroShotClassifier, tmp_path: Path) -> None:
    rng, truths, said = np.random.default_rng(0), [], []
    local = clip.with_texts(["background", *nouns()])
    surgery = LayerCLIPSurgery(local)
    data = scene_folder(SCENES[:5], tmp_path)
    for index, scene in enumerate(SCENES[:5]):
        labels = data[index].target.labels  # type: ignore[union-attr]
        labels[rng.random(labels.shape) < 0.2] = IGNORE_INDEX
        truths.append(Labels(labels))
        with torch.no_grad():
            maps = surgery.attribute_all(clip.preprocess(scene.image, 160))
        large = F.interpolate(maps, scene.image.shape[:2], mode="bilinear", align_corners=False)
        said.append(large[0].argmax(0))
    pictures = [scene.image for scene in SCENES[:5]]
    given = Given("\n".join(local.texts), pictures, truths, background=0)
    found = measured(clip, given, way(segmentation=View(size=160)))["CLIPSurgery"].measures

    there = np.concatenate([truth.labels.ravel() for truth in truths])
    chosen = torch.stack(said).numpy().ravel()
    judged = there != IGNORE_INDEX
    matrix = sklearn.metrics.confusion_matrix(
        there[judged], chosen[judged], labels=range(len(local.texts))
    )
    hits, union = np.diag(matrix), matrix.sum(0) + matrix.sum(1) - np.diag(matrix)
    shown = matrix.sum(1) > 0
    expected = {
        "class_iou": 100 * (hits[union > 0] / union[union > 0]).mean(),
        "class_accuracy": 100 * (hits[shown] / matrix.sum(1)[shown]).mean(),
        "all_accuracy": 100 * hits.sum() / matrix.sum(),
    }
    assert (union > 0).sum() > shown.sum()  # classes that are found where they are not
    assert found == pytest.approx(expected, rel=1e-6)
    jaccard = MulticlassJaccardIndex(len(local.texts), ignore_index=IGNORE_INDEX)
    value = jaccard(torch.from_numpy(chosen), torch.from_numpy(there).long())
    assert found["class_iou"] == pytest.approx(100 * float(value), rel=1e-5)


def test_void_alone_is_refused_and_adds_nothing(clip: ZeroShotClassifier) -> None:
    view = way(segmentation=View(size=64))
    void, shown = Labels(quarters(-1, -1, -1, -1)), Labels(quarters(0, 1, 2, 2))
    methods = {"corner": corner}
    both = evaluate(clip, Given(FOUR, [GREY] * 2, [void, shown]), methods, view).results["corner"]
    alone = evaluate(clip, Given(FOUR, [GREY], [shown]), methods, view).results["corner"]
    # The fourth text wins a quarter where the third class is: IoU of 1, 1, 1/2 and 0.
    assert both.measures == alone.measures
    assert both.measures["class_iou"] == pytest.approx(62.5)
    assert both.measures["all_accuracy"] == pytest.approx(75)
    assert both.intervals == alone.intervals
    with pytest.raises(ValueError, match="no pixel to measure: all are ignored"):
        evaluate(clip, Given(FOUR, [GREY], [void]), methods, view)


def test_a_task_that_measures_nothing_keeps_the_others(clip: ZeroShotClassifier) -> None:
    """Every pixel is of one class: there are labels to compare, and no pair of a map and a mask."""
    data = Given(FOUR, [GREY], [Labels(quarters(1, 1, 1, 1))])
    views = way(localization=View(size=64), segmentation=View(size=64))
    found = evaluate(clip, data, {"corner": corner}, views, progress=False)
    assert found.results["corner"].measures["all_accuracy"] == pytest.approx(25)
    assert "no pair to measure (1 skipped" in found.left_out["localization"]


def test_unlabeled_pixels_are_remarked(clip: ZeroShotClassifier) -> None:
    """Where the background is ignored, figures do not compare with those where it counts."""
    with_background = Given(FOUR, [GREY], [Labels(quarters(0, 1, 2, 0))], 0)
    without = Given(FOUR, [GREY], [Labels(quarters(-1, 1, 2, -1))])
    views = way(localization=View(size=64), segmentation=View(size=64))
    remarks = [
        evaluate(clip, data, {"corner": corner}, views, progress=False).remarks
        for data in (with_background, without)
    ]
    assert remarks[0] == {}
    assert list(remarks[1]) == ["localization", "segmentation"]
    assert all(remark.startswith("50.0 % of the pixels") for remark in remarks[1].values())


# --- recognition ---------------------------------------------------------------------------------


def test_average_precision_by_scikit_learn(clip: ZeroShotClassifier) -> None:
    scenes = Scenes("test", 12, 128, objects=[2, 3])
    names = sorted({noun for scene in scenes for noun in scene.nouns})
    rng, truths = np.random.default_rng(0), []
    for scene in scenes:
        present = {names.index(noun) for noun in scene.nouns}
        unknown = set(np.flatnonzero(rng.random(len(names)) < 0.3).tolist()) - present
        truths.append(Tags(frozenset(present), frozenset(unknown)))
    pictures = [scene.image for scene in scenes]
    classes = [*names, *[noun for noun in nouns() if noun not in names][:2]]  # which nobody shows
    view = way(recognition=View(size=128))
    given = Given("\n".join(classes), pictures, truths)
    found = measured(clip, given, view, "CLIP", "CLIPSurgery", "LeGrad")
    assert list(found) == ["CLIP", "CLIPSurgery"]

    for method, form in (("CLIP", None), ("CLIPSurgery", "release")):
        local = clip.with_texts(classes)
        scores = np.stack([r.scores.numpy() for r in recognize(local, pictures, form, size=128)])
        values = []
        for label in range(len(classes)):
            known = [i for i, truth in enumerate(truths) if label not in truth.unknown]
            shown = [label in truths[i].present for i in known]
            if any(shown):
                values.append(sklearn.metrics.average_precision_score(shown, scores[known, label]))
        expected = 100 * np.mean(values)
        assert found[method].measures == {"mean_ap": pytest.approx(expected, rel=1e-6)}
    nothing = Given("\n".join(classes), pictures, [Tags(frozenset())] * len(pictures))
    with pytest.raises(ValueError, match="no image shows any class"):
        measured(clip, nothing, view)
    with pytest.raises(ValueError, match=r"recognition needs dense methods .*, got LeGrad"):
        measured(clip, given, view, "LeGrad")


def test_methods_that_recognition_cannot_ask(clip: ZeroShotClassifier) -> None:
    given = Given(FOUR, [GREY] * 2, [Tags(frozenset({1})), Tags(frozenset({0}))])
    methods = {name: METHODS[name] for name in ("LeGrad", "CLIP")}
    found = evaluate(clip, given, methods, way(recognition=View(size=64)), progress=False)
    assert list(found.results) == ["CLIP"]
    assert found.left_out == {
        "LeGrad": "recognition needs dense methods with feature surgery (DualPathAttribution)"
    }


# --- points --------------------------------------------------------------------------------------


def test_points_by_hand(clip: ZeroShotClassifier) -> None:
    """`corner` has class k in the k-th quarter."""
    first = Points(
        (
            Point(1, 0.9, 0.1, True),  # inside
            Point(1, 0.1, 0.1, True),  # outside
            Point(1, 0.8, 0.2, False),  # inside, where it is not: IoU is 1 / 3
            Point(1, 0.2, 0.8, False),
            Point(3, 0.9, 0.9, False),  # class 3 has no positive point here
        )
    )
    second = Points((Point(1, 0.7, 0.2, True), Point(2, 0.3, 0.7, True), Point(2, 0.9, 0.9, True)))
    data = Given(FOUR, [GREY] * 3, [first, second, Points(())])
    # Class 1: 2 hits, 1 miss, 1 false alarm; class 2: 1 hit, 1 miss. Pairs: 1/3, 1 and 1/2.
    among_all = {"p_miou": 50, "pair_iou": 100 * (1 / 3 + 1 + 1 / 2) / 3, "n_pairs": 3}
    # Each image's own texts, of which `corner` puts the first into the first quarter.
    own = {"p_miou": 100 * (1 / 3 + 0) / 2, "pair_iou": 100 * (1 / 2 + 0 + 0) / 3, "n_pairs": 3}
    for texts, expected in (("classes", among_all), ("present", own)):
        view = way(points=View(size=64, texts=texts))
        found = evaluate(clip, data, {"corner": corner}, view, progress=False)
        assert found.results["corner"].measures == pytest.approx(expected)
        assert [index for _, index in found.ranked_images["points"]] in ([0, 1], [1, 0])
    with pytest.raises(ValueError, match="no image has a positive point"):
        evaluate(clip, Given(FOUR, [GREY], [Points(())]), {"corner": corner}, view)


def test_points_are_measured_on_what_prompts_gives(clip: ZeroShotClassifier) -> None:
    picture = SCENES[0].image[:150]
    rng = np.random.default_rng(0)
    points = tuple(
        Point(label, *rng.random(2).tolist(), bool(rng.random() < 0.5))
        for label in (0, 2)
        for _ in range(200)
    )
    data = Given("\n".join(nouns()), [picture], [Points(points)])
    found = evaluate(
        clip, data, {"CLIP": METHODS["CLIP"]}, way(points=View(size=128)), progress=False
    ).results["CLIP"]
    local = clip.with_texts(nouns())
    (shown,) = prompts(local, [picture], [0, 2], masks=True, method=METHODS["CLIP"], size=128)
    ious = []
    for label, prompt in zip((0, 2), shown, strict=True):
        hits = wrong = 0
        for point in points:
            if point.label == label:  # SAM's mask is of 256 cells along the longer side
                inside = prompt.mask[int(point.y * 150 / 224 * 256), int(point.x * 256)] > 0
                hits += inside and point.positive
                wrong += inside != point.positive
        ious.append(hits / (hits + wrong))
    assert found.measures["p_miou"] == pytest.approx(100 * np.mean(ious), abs=1)
    assert 10 < found.measures["p_miou"] < 90


# --- faithfulness --------------------------------------------------------------------------------


def test_insertion_and_deletion_by_the_public_function(clip: ZeroShotClassifier) -> None:
    masks = [np.zeros((64, 64), bool) for _ in range(2)]
    masks[0][:20] = masks[1][30:] = True
    names = nouns()[:6]
    truths = [Masks({1: masks[0], 3: masks[1], 4: masks[0] & masks[1]}), Masks({2: masks[0]})]
    data = Given("\n".join(names), [scene.image[:64, :64] for scene in SCENES[:2]], truths)
    protocol = way(faithfulness=View(size=64, steps=4))
    result = evaluate(clip, data, {"CLIP": METHODS["CLIP"]}, protocol, figures=True)
    assert result.figures == {}
    local, areas = clip.with_texts(names), []
    for picture, labels in zip(data.pictures, ([1, 3], [2]), strict=True):
        image = local.preprocess(picture, 64)
        maps = METHODS["CLIP"](local).attribute_all(image, labels)[0].detach()  # type: ignore[union-attr]
        for label, one in zip(labels, maps, strict=True):
            areas.append(torch.cat(insertion_deletion(local, image, one[None], label, 4)))
    insertion, deletion = (100 * torch.stack(areas).double().mean(0)).tolist()
    found = result.results["CLIP"]
    expected = {"insertion": insertion, "deletion": deletion}
    assert found.measures == pytest.approx(expected, rel=1e-5)
    for name, (low, high) in found.intervals.items():
        assert low <= found.measures[name] <= high


# --- specificity ---------------------------------------------------------------------------------


def test_specificity_is_against_classes_that_are_surely_absent(clip: ZeroShotClassifier) -> None:
    names, asked = nouns()[:7], set()
    tags = [Tags(frozenset([0, 1]), frozenset([2])), Tags(frozenset([5])), Tags(frozenset())]
    data = Given("\n".join(names), [scene.image for scene in SCENES[:3]], tags)

    def watch(local: ZeroShotClassifier) -> LayerCLIPSimilarity:
        asked.add(local.texts)
        return LayerCLIPSimilarity(local)

    methods = {"CLIP": watch, "Raw": METHODS["RawAttention"]}
    protocol = way(specificity=View(size=64))
    result = evaluate(clip, data, methods, protocol, progress=False, figures=True)
    assert result.figures == {}
    found = {name: one.measures for name, one in result.results.items()}
    assert found["Raw"] == pytest.approx({"text_specificity": 100, "nonsense_specificity": 100})
    first = random.Random(data.names[0]).sample([3, 4, 5, 6], 4)
    second = random.Random(data.names[1]).sample([0, 1, 2, 3, 4, 6], 4)
    values = []
    for picture, labels, absent in zip(
        data.pictures[:2], ([0, 1], [5]), (first, second), strict=True
    ):
        image = clip.preprocess(picture, 64)
        local = clip.with_texts(names)  # CLIP's own maps do not depend on the texts beside them
        maps = LayerCLIPSimilarity(local).attribute_all(image).detach()[0]
        values += [text_specificity(maps[label], maps[absent]) for label in labels]
    assert found["CLIP"]["text_specificity"] == pytest.approx(100 * np.mean(values), abs=0.01)
    assert {len(texts) for texts in asked} == {1}
    scores = {index: score for score, index in result.ranked_images["specificity"]}
    assert scores[1] == pytest.approx(1 - values[2], abs=1e-4)
    assert 2 not in scores


# --- grids ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_grids_of_images_of_which_one_shows_the_class(clip: ZeroShotClassifier) -> None:
    scenes = Scenes("test", 6, 112, objects=[1])
    names = list(dict.fromkeys(noun for scene in scenes for noun in scene.nouns))
    truths = [Tags(frozenset([names.index(scene.nouns[0])])) for scene in scenes]
    data = Given("\n".join(names), [scene.image for scene in scenes], truths)
    methods = {"CLIPSurgery": METHODS["CLIPSurgery"]}
    protocol = way(grid=View(size=224))
    result = evaluate(clip, data, methods, protocol, progress=False, batch_size=4)
    local, grids, shares = clip.with_texts(names), GridDataset(data), []
    for index, truth in enumerate(truths):
        grid = grids[index]
        assert isinstance(grid.target, Masks)
        ((label, mask),) = grid.target.masks.items()
        assert {label} == truth.present
        (rows, columns), half = np.nonzero(mask), mask.shape[0] // 2
        assert mask.sum() == half**2
        y, x = rows.min(), columns.min()
        tile = Image.fromarray(data.pictures[index]).resize((half, half), Image.Resampling.BICUBIC)
        assert np.array_equal(np.asarray(grid.image)[y : y + half, x : x + half], np.asarray(tile))
        image = local.preprocess(grid.image, 224)
        maps = methods["CLIPSurgery"](local).attribute_all(image, [label])  # type: ignore[union-attr]
        cell = 2 * int(y > 0) + int(x > 0)
        shares.append(grid_pointing_game(maps[0, 0].detach(), 2, 2, cell))
    found = result.results["CLIPSurgery"]
    assert found.measures == pytest.approx({"grid_pointing": 100 * np.mean(shares)}, rel=1e-4)
    assert found.measures["grid_pointing"] > 40
    low, high = found.intervals["grid_pointing"]
    assert low <= found.measures["grid_pointing"] <= high


def test_no_grid_holds_the_class_twice_or_perhaps() -> None:
    pictures = [np.full((8, 8, 3), 40 * number, np.uint8) for number in range(5)]
    tags = [Tags(frozenset([0])), Tags(frozenset([0])), Tags(frozenset([1]), frozenset([0]))]
    tags += [Tags(frozenset([2])), Tags(frozenset())]
    grids = GridDataset(Given("a\nb\nc", pictures, tags))
    assert [len(grid.target.masks) for grid in grids] == [0, 0, 1, 1, 0]  # type: ignore[union-attr]
    again = [np.asarray(grid.image) for grid in grids]
    assert all(
        np.array_equal(one, np.asarray(grid.image)) for one, grid in zip(again, grids, strict=True)
    )

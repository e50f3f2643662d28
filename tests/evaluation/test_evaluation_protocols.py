"""How protocols show images and choose classes, restated in plain loops of float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from captum_clip_surgery import LayerCLIPSurgery, ZeroShotClassifier
from captum_clip_surgery.attr import METHODS
from captum_clip_surgery.datasets import IGNORE_INDEX, Labels
from captum_clip_surgery.demo import Scenes
from captum_clip_surgery.evaluation import Protocol, View, evaluate
from captum_clip_surgery.evaluation._data import EvalDataLoader, resize_policy
from captum_clip_surgery.evaluation._predictors import SegmentationPredictor
from captum_clip_surgery.tasks import segment
from tests._helpers.cases import each
from tests._helpers.written_scenes import Given

#: Of what the two scenes show, and synonyms that they do not.
CLASSES = "ghost, peacock\nbackground\ncarrot\nmicrophone, pig, whale\ncrown"
BACKGROUND = 1
SURGERY = {"CLIPSurgery": METHODS["CLIPSurgery"]}


@pytest.fixture(scope="module")
def clip() -> ZeroShotClassifier:
    return ZeroShotClassifier.demo(["dog"])


@pytest.fixture(scope="module")
def data() -> Given:
    """Two pictures, one lying and one standing, of no side that patches divide."""
    first, second = (scene.image for scene in Scenes("test", 2, 160, objects=[3]))
    pictures = [first[:90, :151], second[:133, :70]]
    rng = np.random.default_rng(0)
    truths = [Labels(rng.integers(-1, 5, p.shape[:2]).astype(np.int32)) for p in pictures]
    return Given(CLASSES, pictures, truths, BACKGROUND)


# --- in plain words ------------------------------------------------------------------------------


def enlarge(grid: np.ndarray, height: int, width: int) -> np.ndarray:
    """(K, h, w) to (K, height, width): bilinear, half-pixel centres, the edge goes on."""

    def weights(small: int, large: int) -> np.ndarray:
        table = np.zeros((large, small))
        for pixel in range(large):
            at = min(max((pixel + 0.5) * small / large - 0.5, 0), small - 1)
            low = int(at)
            table[pixel, low] += 1 - (at - low)
            table[pixel, min(low + 1, small - 1)] += at - low
        return table

    down, across = weights(grid.shape[1], height), weights(grid.shape[2], width)
    return np.stack([down @ layer @ across.T for layer in grid])


def shown(clip: ZeroShotClassifier, picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """(3, height, width) as the model takes it."""
    image = Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC)
    scaled = np.asarray(image) / 255
    normal = (scaled - clip.preprocessing.mean) / clip.preprocessing.std
    return normal.transpose(2, 0, 1).astype(np.float32)


def scores(method: LayerCLIPSurgery, pixels: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        found = method.attribute_all(torch.from_numpy(np.ascontiguousarray(pixels))[None])
    return found[0].double().numpy()


def places(length: int, window: int, stride: int) -> list[int]:
    """Where windows begin: as mmsegmentation's slide_inference has them."""
    count = max(length - window + stride - 1, 0) // stride + 1
    return [max(min(number * stride + window, length) - window, 0) for number in range(count)]


def dense_scores(
    method: LayerCLIPSurgery, image: np.ndarray, window: int | None, stride: int | None
) -> np.ndarray:
    """Of an image as it is shown, at its size."""
    _, height, width = image.shape
    total = np.zeros((len(method.forward_func.texts), height, width))
    times = np.zeros((height, width))
    for top in places(height, window or height, stride or 1):
        for left in places(width, window or width, stride or 1):
            part = image[:, top : top + (window or height), left : left + (window or width)]
            _, rows, columns = part.shape
            small = scores(method, part[:, : rows // 16 * 16, : columns // 16 * 16])
            total[:, top : top + rows, left : left + columns] += enlarge(small, rows, columns)
            times[top : top + rows, left : left + columns] += 1
    return total / times


def choose(
    values: np.ndarray, owners: list[int], scale: float, threshold: float | None
) -> tuple[np.ndarray, np.ndarray]:
    """Each pixel's class by its best name, and by how little that was decided."""
    labels = np.zeros(values.shape[1:], int)
    margins = np.zeros(values.shape[1:])
    for row in range(values.shape[1]):
        for column in range(values.shape[2]):
            own = values[:, row, column]
            powers = np.exp(scale * (own - own.max()))
            probabilities = powers / powers.sum()
            classes = np.zeros(max(owners) + 1)
            for owner, probability in zip(owners, probabilities, strict=True):
                classes[owner] = max(classes[owner], probability)
            order = np.argsort(-classes)
            labels[row, column] = order[0]
            margins[row, column] = classes[order[0]] - classes[order[1]]
            if threshold is not None:
                margins[row, column] = min(margins[row, column], abs(classes[order[0]] - threshold))
                if classes[order[0]] < threshold:
                    labels[row, column] = BACKGROUND
    return labels, margins


# --- against the package -------------------------------------------------------------------------


def found_labels(clip: ZeroShotClassifier, data: Given, view: View) -> list[np.ndarray]:
    predictor = SegmentationPredictor(clip, data, SURGERY, view)
    return [
        labels["CLIPSurgery"].numpy()
        for batch in EvalDataLoader(clip, data, [[(0, index)] for index in range(len(data))], view)
        for labels in predictor.predict(batch, [[]])
    ]


def check(
    clip: ZeroShotClassifier, data: Given, view: View, expected: list[tuple[np.ndarray, np.ndarray]]
) -> None:
    found = found_labels(clip, data, view)
    for (labels, margins), said in zip(expected, found, strict=True):
        assert said.shape == labels.shape
        assert len(np.unique(labels)) > 1
        differing = said != labels
        assert margins[differing].max(initial=0) < 1e-5  # where next to nothing decided
        assert differing.mean() < 0.001
    # The table by counting, of the labels found.
    result = evaluate(
        clip, data, SURGERY, Protocol("t", "tests", {"segmentation": view}, {}), progress=False
    ).results["CLIPSurgery"]
    ious, recalls, right, judged = [], [], 0, 0
    truths = [truth.labels for truth in data.truths]  # type: ignore[union-attr]
    for label in range(5):
        hits = union = there = 0
        for truth, said in zip(truths, found, strict=True):
            counts = truth != IGNORE_INDEX
            mine, true = (said == label) & counts, (truth == label) & counts
            hits += int((mine & true).sum())
            union += int((mine | true).sum())
            there += int(true.sum())
        ious.append(hits / union)
        recalls.append(hits / there)
        right, judged = right + hits, judged + there
    figures = {
        "class_iou": 20 * sum(ious),
        "class_accuracy": 20 * sum(recalls),
        "all_accuracy": 100 * right / judged,
    }
    assert result.measures == pytest.approx(figures, rel=1e-9)


@pytest.mark.parametrize(("size", "side"), [(80, 80), (100, 96), (None, 224)])
def test_squashed_as_the_paper_has_it(
    clip: ZeroShotClassifier, data: Given, size: int | None, side: int
) -> None:
    method = LayerCLIPSurgery(clip.with_texts([row[0] for row in data.classes.synonyms]))
    expected = []
    for picture in data.pictures:
        grid = scores(method, shown(clip, picture, side, side))
        expected.append(choose(enlarge(grid, *picture.shape[:2]), [0, 1, 2, 3, 4], 40, None))
    check(clip, data, View(size=size), expected)


@pytest.mark.parametrize(
    ("window", "stride", "longest", "synonyms", "background"),
    [
        (None, None, None, False, None),
        (None, None, 100, True, 0.8),
        (64, 24, None, True, 0.8),
        (40, 40, 112, True, None),  # windows of no whole patches
    ],
)
def test_dense(
    clip: ZeroShotClassifier,
    data: Given,
    window: int | None,
    stride: int | None,
    longest: int | None,
    synonyms: bool,
    background: float | None,
) -> None:
    rows = [names if synonyms else names[:1] for names in data.classes.synonyms]
    owners = [owner for owner, names in enumerate(rows) for _ in names]
    method = LayerCLIPSurgery(clip.with_texts([name for names in rows for name in names]))
    expected = []
    for picture in data.pictures:
        height, width = picture.shape[:2]
        scale = 80 / min(height, width)
        if longest is not None:
            scale = min(scale, longest / max(height, width))
        image = shown(clip, picture, int(height * scale + 0.5), int(width * scale + 0.5))
        values = dense_scores(method, image, window, stride)
        expected.append(choose(enlarge(values, height, width), owners, 40, background))
    view = View(
        size=80, keep_aspect=True, longest=longest, window=window, stride=stride,
        synonyms=synonyms, background=background, scale=40,
    )  # fmt: skip
    check(clip, data, view, expected)
    if background is not None:
        plain = View(size=80, keep_aspect=True, longest=longest, window=window, stride=stride,
                     synonyms=synonyms, scale=40)  # fmt: skip
        low, high = found_labels(clip, data, plain), found_labels(clip, data, view)
        changed = np.concatenate([(a != b).ravel() for a, b in zip(low, high, strict=True)])
        assert 0.01 < changed.mean() < 0.99  # some pixels were below, and not all


EVERY = ("CLIPSurgery", "NACLIP", "LeGrad")


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"size": 64}, EVERY),
        ({"size": 224}, EVERY),
        ({"size": 80, "keep_aspect": True}, EVERY),
        # Windows are the same for every method, so that one method each is enough.
        ({"size": 80, "keep_aspect": True, "window": 64, "stride": 32}, EVERY[:1]),
        (
            {"size": 80, "keep_aspect": True, "window": 40, "stride": 24, "longest": 112},
            EVERY[2:],
        ),
        *(
            pytest.param(options, EVERY, marks=pytest.mark.slow)
            for options in (
                {"size": 80, "keep_aspect": True, "window": 64, "stride": 32},
                {"size": 80, "keep_aspect": True, "window": 40, "stride": 24, "longest": 112},
                {"size": 150, "keep_aspect": True, "window": 112, "stride": 56},
            )
        ),
    ],
    ids=str,
)
def test_what_is_evaluated_is_what_segment_gives(
    clip: ZeroShotClassifier, data: Given, options: dict[str, Any], names: tuple[str, ...]
) -> None:
    """To the pixel, with the first names and with all of them, with and without a background."""
    for name in names:
        check_same_as_segment(clip, data, name, options)


def check_same_as_segment(
    clip: ZeroShotClassifier, data: Given, name: str, options: dict[str, Any]
) -> None:
    first = clip.with_texts(data.classes.first)
    rows = list(data.classes.synonyms)
    (background,) = rows.pop(BACKGROUND)
    several = clip.with_texts([text for names in rows for text in names])
    classes = {names[0]: names for names in rows}
    # `segment` has the background first.
    order = torch.tensor([BACKGROUND, *(k for k in range(len(rows) + 1) if k != BACKGROUND)])
    views = View(**options), View(**options, synonyms=True, background=0.6, scale=40)
    methods = {"NACLIP": METHODS["NACLIP"], name: METHODS[name]}
    seen: set[int] = set()
    for index, picture in enumerate(data.pictures):
        plain = segment(first, [picture], method=METHODS[name], **options)
        full = segment(
            several,
            [picture],
            background=[background],
            threshold=0.6,
            scale=40,
            classes=classes,
            method=METHODS[name],
            **options,
        )
        expected = plain[0].labels, order[full[0].labels]
        for view, labels in zip(views, expected, strict=True):
            predictor = SegmentationPredictor(clip, data, methods, view)
            (batch,) = EvalDataLoader(clip, data, [[(0, index)]], view)
            (found,) = predictor.predict(batch, [[]])
            assert torch.equal(found[name], labels)
            seen |= set(labels.unique().tolist())
    assert len(seen) > 1


def test_small_classes_become_background_as_in_segment(
    clip: ZeroShotClassifier, data: Given
) -> None:
    rows = list(data.classes.synonyms)
    (background,) = rows.pop(BACKGROUND)
    several = clip.with_texts([text for names in rows for text in names])
    options = {"size": 96, "keep_aspect": True}
    plain, view = (
        View(**options, synonyms=True, background=0.6, scale=40, min_area=area)
        for area in (None, 0.3)
    )
    order = torch.tensor([BACKGROUND, *(k for k in range(len(rows) + 1) if k != BACKGROUND)])
    moved = 0
    for picture, before, found in zip(
        data.pictures, found_labels(clip, data, plain), found_labels(clip, data, view), strict=True
    ):
        (full,) = segment(
            several, [picture], background=[background], threshold=0.6, scale=40,
            classes={names[0]: names for names in rows}, min_area=0.3,
            method=METHODS["CLIPSurgery"], **options,
        )  # fmt: skip
        assert np.array_equal(order[full.labels], found)
        counts = np.bincount(before.ravel(), minlength=5)
        small = counts < 0.3 * (before.size - counts[BACKGROUND])
        assert np.array_equal(np.where(small[before], BACKGROUND, before), found)
        moved += (before != found).sum()
    assert moved > 0


def test_the_name_of_the_background_is_left_out(clip: ZeroShotClassifier) -> None:
    data = Given("ghost\nbackground, crown, carrot", [np.zeros((64, 64, 3), np.uint8)], [], 1)
    texts = {}
    for named in (True, False):
        view = View(size=64, synonyms=True, background_name=named)
        texts[named] = SegmentationPredictor(clip, data, SURGERY, view)._segmenter.vocabulary
    assert texts[True].clip.texts == ("ghost", "background", "crown", "carrot")
    assert texts[False].clip.texts == ("ghost", "crown", "carrot")
    assert texts[False].members == ((0,), (1, 2))
    with pytest.raises(ValueError, match="leaves the background without a name; set synonyms"):
        SegmentationPredictor(clip, data, SURGERY, View(size=64, background_name=False))


def test_without_a_scale_the_models_own(clip: ZeroShotClassifier, data: Given) -> None:
    own = float(clip.model.logit_scale.detach().exp())
    views = [View(size=64, background=0.9, scale=scale) for scale in (None, own, 40)]
    by_default, told, other = ([*found_labels(clip, data, view)] for view in views)
    assert all(np.array_equal(a, b) for a, b in zip(by_default, told, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(by_default, other, strict=True))


@each(
    ("picture", "view", "expected"),
    [
        ((500, 375), View(size=224), (224, 224)),
        ((500, 375), View(), (224, 224)),
        ((500, 375), View(size=512), (512, 512)),
        ((500, 375), View(size=336, keep_aspect=True, longest=2048), (448, 336)),
        ((1024, 2048), View(size=560, keep_aspect=True, longest=2048), (560, 1120)),
        ((100, 900), View(size=336, keep_aspect=True, longest=2048), (228, 2048)),
        ((10, 900), View(size=16, keep_aspect=True, longest=450), (16, 450)),  # not below a patch
    ],
)
def test_sizes(
    clip: ZeroShotClassifier, picture: tuple[int, int], view: View, expected: tuple[int, int]
) -> None:
    assert resize_policy(view, clip).target(*picture) == expected


def test_refused(clip: ZeroShotClassifier, data: Given) -> None:
    without = Given(CLASSES, data.pictures, data.truths)
    with pytest.raises(ValueError, match="a threshold of the background; given has no background"):
        SegmentationPredictor(clip, without, SURGERY, View(background=0.5))
    with pytest.raises(ValueError, match="classes 'voc20' are 20, given has 5"):
        SegmentationPredictor(clip, data, SURGERY, View(classes="voc20"))

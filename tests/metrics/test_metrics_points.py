"""IoU of points, against cases computed by hand and scikit-learn."""

from __future__ import annotations

import pickle

import pytest
import torch
from sklearn.metrics import jaccard_score

from captum_clip_surgery.metrics import PointMeasures
from captum_clip_surgery.metrics.functional._points import point_confusion, point_iou
from tests._helpers.cases import each

#: 2 x 4, left half inside.
LEFT = torch.tensor([[True, True, False, False]] * 2)
X = [0.1, 0.3, 0.6, 0.9, 0.2, 0.8]
Y = [0.1, 0.9, 0.1, 0.9, 0.5, 0.5]
POSITIVE = [True, True, True, False, False, False]


def test_by_hand() -> None:
    """Inside are points 0, 1 (positive) and 4 (negative); outside 2 (positive) and 3, 5."""
    counts = point_confusion(LEFT, X, Y, POSITIVE)
    assert counts.tolist() == [2, 1, 1, 2]
    assert point_iou(counts) == pytest.approx(2 / 4)


def test_against_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(5, 7, generator=generator) > 0.5
    x, y = torch.rand(2, 200, generator=generator).tolist()
    positive = (torch.rand(200, generator=generator) > 0.3).tolist()
    inside = [bool(mask[int(b * 5), int(a * 7)]) for a, b in zip(x, y, strict=True)]
    expected = jaccard_score(positive, inside)
    assert float(point_iou(point_confusion(mask, x, y, positive))) == pytest.approx(expected)


def test_x_goes_right_and_y_down() -> None:
    mask = torch.zeros(2, 3, dtype=torch.bool)
    mask[0, 2] = True
    assert point_confusion(mask, [0.9], [0.1], [True]).tolist() == [1, 0, 0, 0]
    assert point_confusion(mask, [0.1], [0.9], [True]).tolist() == [0, 0, 1, 0]


@each(("x", "column"), [(0.0, 0), (0.25, 1), (0.2499, 0), (0.25 - 1e-12, 0), (1.0, 3)])
def test_a_point_is_in_the_pixel_that_holds_it(x: float, column: int) -> None:
    for inside in range(4):
        mask = torch.arange(4)[None] == inside
        assert point_confusion(mask, [x], [0.5], [True])[0] == (inside == column)


def test_maps_are_masks_above_the_threshold() -> None:
    scores = torch.tensor([[0.4, 0.5, 0.6]])
    x, y, positive = [0.1, 0.5, 0.9], [0.5] * 3, [True] * 3
    assert point_confusion(scores, x, y, positive)[0] == 1
    assert point_confusion(scores, x, y, positive, threshold=0.45)[0] == 2


def test_over_classes_and_over_pairs() -> None:
    """Cat: 1 of 1 and 1 of 4 points, so 2 / 5 over images; dog: 0 of 1.

    By class (2/5 + 0) / 2; by pair (1 + 1/4 + 0) / 3.
    """
    measures = PointMeasures()
    measures.update("cat", LEFT, [0.1], [0.5], [True])
    measures.update("cat", LEFT, [0.1, 0.6, 0.7, 0.2, 0.9], [0.5] * 5, [True] * 3 + [False] * 2)
    measures.update("dog", LEFT, [0.9], [0.5], [True])
    found = measures.compute()
    assert found.p_miou == pytest.approx(100 * (2 / 5) / 2)
    assert found.pair_iou == pytest.approx(100 * (1 + 1 / 4) / 3)
    assert (found.n_classes, found.n_pairs, found.n_points, found.skipped) == (2, 3, 7, 0)


def test_a_class_with_as_many_misses_as_hits_counts() -> None:
    measures = PointMeasures()
    measures.update("cat", LEFT, [0.1, 0.9], [0.5, 0.5], [True, True])
    found = measures.compute()
    assert (found.p_miou, found.n_pairs, found.skipped) == (50, 1, 0)


def test_classes_that_an_image_does_not_show_are_skipped() -> None:
    measures = PointMeasures()
    measures.update("cat", LEFT, [0.1], [0.5], [True])
    measures.update("cat", LEFT, [0.1], [0.5], [False])  # would halve it
    measures.update("dog", LEFT, [0.1], [0.5], [False])
    found = measures.compute()
    assert (found.p_miou, found.n_classes, found.n_pairs, found.skipped) == (100, 1, 1, 2)


def test_nothing_to_measure() -> None:
    measures = PointMeasures()
    measures.update("cat", LEFT, [0.1], [0.5], [False])
    with pytest.raises(ValueError, match="no image has a positive point"):
        measures.compute()


def test_measures_go_between_processes() -> None:
    measures = PointMeasures()
    measures.update("cat", LEFT, X, Y, POSITIVE)
    assert pickle.loads(pickle.dumps(measures)).compute() == measures.compute()


@each(
    ("prediction", "x", "error", "message"),
    [
        (LEFT[None], [0.5], ValueError, r"shape \(1, 2, 4\)"),
        (LEFT[:0], [0.5], ValueError, r"shape \(0, 4\)"),
        (LEFT.int(), [0.5], TypeError, "int32, expected bool"),
        (LEFT.float() / 0, [0.5], ValueError, "holds NaN or infinity"),
        (LEFT, [1.1], ValueError, "outside 0..1"),
        (LEFT, [float("nan")], ValueError, "outside 0..1"),
        (LEFT, [0.5, 0.5], ValueError, "same length, got 2, 1 and 1"),
    ],
)
def test_refusals(
    prediction: torch.Tensor, x: list[float], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        point_confusion(prediction, x, [0.5], [True])

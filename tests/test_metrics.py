"""Measures of localisation against independent computations and cases with known answers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import jaccard_score
from torch import Tensor

from captum_clip_surgery.metrics import localization
from captum_clip_surgery.metrics.localization import iou_curve, pointing_game, prepare

MASK = torch.zeros(8, 8, dtype=torch.bool)
MASK[2:5, 3:7] = True


def random_map(seed: int, side: int = 8) -> Tensor:
    return torch.randn(side, side, generator=torch.Generator().manual_seed(seed))


def test_perfect_map() -> None:
    found = localization([(MASK.float(), MASK)])
    assert (found.explanation_iou, found.msc, found.pointing) == (100, 100, 100)


def test_opposite_map() -> None:
    found = localization([(-MASK.float(), MASK)])
    assert (found.msc, found.pointing) == (-100, 0)
    assert found.explanation_iou == pytest.approx(100 * MASK.float().mean())  # threshold 0: all


def test_constant_map_gets_nothing() -> None:
    found = localization([(torch.full((4, 4), 3.0), MASK)])
    assert (found.explanation_iou, found.msc, found.pointing, found.pairs) == (0, 0, 0, 1)


@pytest.mark.parametrize("value", [True, False])
def test_empty_and_full_masks_are_skipped_and_counted(value: bool) -> None:
    mask = torch.full((8, 8), value)
    found = localization([(MASK.float(), MASK), (random_map(0), mask)])
    assert (found.explanation_iou, found.msc, found.pairs, found.skipped) == (100, 100, 1, 1)
    with pytest.raises(ValueError, match=r"no pair to measure \(1 skipped"):
        localization([(random_map(0), mask)])


def test_iou_curve_against_scikit_learn() -> None:
    prepared = prepare(random_map(1), MASK)
    assert prepared is not None
    expected = [
        jaccard_score(MASK.flatten().numpy(), (prepared >= step / 100).flatten().numpy())
        for step in range(101)
    ]
    np.testing.assert_allclose(iou_curve(prepared, MASK).numpy(), expected)


def test_one_threshold_for_all_pairs_by_a_naive_loop() -> None:
    pairs = [(random_map(seed), random_map(seed + 50) > 0.5) for seed in range(5)]
    best = 0.0
    for step in range(101):
        ious = []
        for attribution, mask in pairs:
            scaled = attribution.double() - attribution.double().min()
            chosen = scaled / scaled.max() >= step / 100
            ious.append(float((chosen & mask).sum() / (chosen | mask).sum()))
        best = max(best, sum(ious) / len(ious))
    assert localization(pairs).explanation_iou == pytest.approx(100 * best)


def test_contrast_and_pointing_by_a_naive_loop() -> None:
    pairs = [(random_map(seed), random_map(seed + 50) > 0.5) for seed in range(5)]
    contrasts, hits = [], []
    for attribution, mask in pairs:
        values = attribution.double().numpy()
        values = (values - values.min()) / (values.max() - values.min())
        contrasts.append(values[mask.numpy()].mean() - values[~mask.numpy()].mean())
        hits.append(bool(mask.flatten()[values.argmax()]))
    found = localization(pairs)
    assert found.msc == pytest.approx(100 * np.mean(contrasts))
    assert found.pointing == pytest.approx(100 * np.mean(hits))


def test_tied_maxima_count_by_their_share() -> None:
    attribution = torch.zeros(8, 8)
    attribution[2, 3] = attribution[3, 4] = attribution[7, 7] = 1
    assert pointing_game(prepare(attribution, MASK), MASK) == pytest.approx(2 / 3)


def test_maps_are_normalised_before_they_are_resized() -> None:
    """An independent bilinear resize: Pillow's, which enlarges by the same rule."""
    attribution = random_map(3, side=4)
    scaled = (attribution - attribution.min()) / (attribution.max() - attribution.min())
    image = Image.fromarray(scaled.numpy()).resize((8, 8), Image.Resampling.BILINEAR)
    prepared = prepare(attribution, MASK)
    assert prepared is not None
    np.testing.assert_allclose(prepared.numpy(), np.asarray(image), atol=1e-6)


@pytest.mark.parametrize(
    ("attribution", "mask", "message"),
    [
        (torch.zeros(3, 8, 8), MASK, "summed over channels first"),
        (torch.zeros(8, 8), MASK.float(), "a mask is of bool"),
        (torch.full((8, 8), torch.nan), MASK, "NaN or infinity"),
    ],
)
def test_refused_pairs(attribution: Tensor, mask: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        localization([(attribution, mask)])

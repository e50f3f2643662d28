"""Measures of localisation against independent computations and cases with known answers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score, jaccard_score, roc_auc_score
from torch import Tensor
from torchmetrics.functional.classification import (
    binary_accuracy,
    binary_auroc,
    binary_average_precision,
    multiclass_jaccard_index,
)

from captum_clip_surgery.metrics import (
    energy_pointing_game,
    grid_pointing_game,
    iou_curve,
    localization,
    pixel_auroc,
    pixel_average_precision,
    pointing_game,
    prepare,
    score_contrast,
)
from captum_clip_surgery.metrics.functional._ranked import THRESHOLDS
from captum_clip_surgery.metrics.functional._segmentation import (
    confusion,
    pixel_accuracy,
    segmentation_miou,
)
from tests._helpers.cases import each
from tests._helpers.masked_maps import MASK, random_map, random_mask


def prepared(attribution: Tensor, mask: Tensor = MASK) -> Tensor:
    found = prepare(attribution, mask)
    assert found is not None
    return found


def with_ties(seed: int) -> Tensor:
    """Few distinct values, so that most pixels are tied with others."""
    return (random_map(seed) * 2).round()


#: Maps at the mask's size and others, of both signs and of one, with ties and without.
MAPS = {
    "signed": random_map(0),
    "negative": -random_map(1).abs() - 1,
    "positive": random_map(2).exp(),
    "ties": with_ties(3),
    "one pixel": torch.eye(8)[:1].T @ torch.eye(8)[3:4],
    "smaller": random_map(4, side=3),
    "larger": random_map(5, side=13),
    "integers": random_map(6).mul(9).int(),
    "half": random_map(7).half(),
}
each_map = each("attribution", MAPS.values())
each_mask = each(
    "mask",
    [
        MASK,
        random_mask(0),
        torch.eye(64).view(64, 8, 8)[17] > 0,  # one pixel inside
        torch.eye(64).view(64, 8, 8)[9] < 1,  # one pixel outside
    ],
)


# --- all together --------------------------------------------------------------------------------


def test_perfect_map() -> None:
    found = localization([(MASK.float(), MASK)])
    assert (found.explanation_iou, found.msc, found.pointing) == (100, 100, 100)
    assert (found.energy, found.auroc, found.average_precision) == (100, 100, 100)
    assert (found.pixel_accuracy, found.segmentation_miou) == (100, 100)


def test_opposite_map() -> None:
    found = localization([(-MASK.float(), MASK)])
    area = 100 * float(MASK.double().mean())
    assert (found.msc, found.pointing, found.energy, found.auroc) == (-100, 0, 0, 0)
    assert found.explanation_iou == pytest.approx(area)  # threshold 0: all
    assert found.average_precision == pytest.approx(area)  # all come last, together
    assert (found.pixel_accuracy, found.segmentation_miou) == (0, 0)


@each("value", [3.0, 0.0, -2.0])
def test_constant_map_gets_nothing_but_what_guessing_gets(value: float) -> None:
    found = localization([(torch.full((4, 4), value), MASK)])
    area = float(MASK.double().mean())
    assert (found.explanation_iou, found.msc, found.pointing, found.energy) == (0, 0, 0, 0)
    assert (found.auroc, found.n_pairs) == (50, 1)
    assert found.average_precision == pytest.approx(100 * area)
    assert found.pixel_accuracy == pytest.approx(100 * (1 - area))  # all is background
    assert found.segmentation_miou == pytest.approx(100 * (1 - area) / 2)


@each("value", [True, False])
def test_empty_and_full_masks_are_skipped_and_counted(value: bool) -> None:
    mask = torch.full((8, 8), value)
    found = localization([(MASK.float(), MASK), (random_map(0), mask)])
    assert (found.explanation_iou, found.msc, found.n_pairs, found.skipped) == (100, 100, 1, 1)
    with pytest.raises(ValueError, match=r"no pair to measure \(1 skipped"):
        localization([(random_map(0), mask)])


def test_one_threshold_for_all_pairs_by_a_naive_loop() -> None:
    pairs = [(random_map(seed), random_mask(seed)) for seed in range(5)]
    means = []
    for step in range(101):
        ious = []
        for attribution, mask in pairs:
            scaled = attribution.double() - attribution.double().min()
            chosen = scaled / scaled.max() >= step / 100
            ious.append(float((chosen & mask).sum() / (chosen | mask).sum()))
        means.append(sum(ious) / len(ious))
    found = localization(pairs)
    assert found.explanation_iou == pytest.approx(100 * max(means))
    assert found.threshold == np.argmax(means) / 100


def test_means_over_pairs_by_a_naive_loop() -> None:
    pairs = [(random_map(seed), random_mask(seed)) for seed in range(5)]
    contrasts, hits, energies = [], [], []
    for attribution, mask in pairs:
        raw = attribution.double().numpy()
        values = (raw - raw.min()) / (raw.max() - raw.min())
        contrasts.append(values[mask.numpy()].mean() - values[~mask.numpy()].mean())
        hits.append(bool(mask.flatten()[values.argmax()]))
        energies.append(raw[mask.numpy() & (raw > 0)].sum() / raw[raw > 0].sum())
    found = localization(pairs)
    assert found.msc == pytest.approx(100 * np.mean(contrasts))
    assert found.pointing == pytest.approx(100 * np.mean(hits))
    assert found.energy == pytest.approx(100 * np.mean(energies))


@each(
    ("attribution", "mask", "error", "message"),
    [
        (
            torch.zeros(3, 8, 8),
            MASK,
            ValueError,
            "sum image-shaped attributions over channels first",
        ),
        (torch.zeros(8, 8), MASK[None], ValueError, r"got \(8, 8\) and \(1, 8, 8\)"),
        (torch.zeros(8, 0), MASK, ValueError, "must have pixels"),
        (torch.zeros(8, 8), MASK.float(), ValueError, "a mask must be bool"),
        (torch.full((8, 8), torch.nan), MASK, ValueError, "NaN or infinity"),
        (torch.full((8, 8), -torch.inf), MASK, ValueError, "NaN or infinity"),
        (np.zeros((8, 8)), MASK, TypeError, "a map must be a tensor, got ndarray"),
        (torch.zeros(8, 8), MASK.numpy(), TypeError, "a mask must be a tensor, got ndarray"),
    ],
)
def test_refused_pairs(
    attribution: Tensor, mask: Tensor, error: type[Exception], message: str
) -> None:
    for measure in (
        lambda: localization([(attribution, mask)]),
        lambda: prepare(attribution, mask),
        lambda: energy_pointing_game(attribution, mask),
    ):
        with pytest.raises(error, match=message):
            measure()


# --- prepare -------------------------------------------------------------------------------------


def test_maps_are_normalised_before_they_are_resized() -> None:
    """An independent bilinear resize: Pillow's, which enlarges by the same rule."""
    attribution = random_map(3, side=4)
    scaled = (attribution - attribution.min()) / (attribution.max() - attribution.min())
    image = Image.fromarray(scaled.numpy()).resize((8, 8), Image.Resampling.BILINEAR)
    np.testing.assert_allclose(prepared(attribution).numpy(), np.asarray(image), atol=1e-6)


@each("side", [50, 63])
def test_resizing_keeps_ties(side: int) -> None:
    """At these sizes interpolation within the plateau is off by the last bit at most pixels."""
    plateau = torch.zeros(4, 4)
    plateau[:2, :2] = 1
    mask = torch.zeros(side, side, dtype=torch.bool)
    mask[: side // 4] = True
    tied = np.arange(side) < math.floor(1.5 * side / 4 - 0.5) + 1  # centres up to the cell's own
    scores = prepared(plateau, mask)
    assert torch.equal(scores == 1, torch.from_numpy(tied[:, None] & tied))
    expected = (side // 4) / tied.sum()
    assert pointing_game(scores, mask) == pytest.approx(expected)


# --- thresholds, contrast, pointing --------------------------------------------------------------


@each_map
def test_iou_curve_against_scikit_learn(attribution: Tensor) -> None:
    scores, mask = prepared(attribution), MASK
    expected = [
        jaccard_score(mask.flatten().numpy(), (scores >= step / 100).flatten().numpy())
        for step in range(101)
    ]
    np.testing.assert_allclose(iou_curve(scores, mask).numpy(), expected, atol=1e-12)


def test_a_score_at_a_threshold_reaches_it() -> None:
    """Every threshold as a score of its own; the mask is the pixels that reach 0.29."""
    scores = prepared(THRESHOLDS[None], torch.ones(1, 101, dtype=torch.bool))
    mask = (THRESHOLDS >= 0.29)[None]
    curve = iou_curve(scores, mask)
    assert int(curve.argmax()) == 29
    assert curve[29] == 1


@each_map
def test_contrast_by_definition(attribution: Tensor) -> None:
    scores = prepared(attribution)
    expected = scores[MASK].mean() - scores[~MASK].mean()
    assert score_contrast(scores, MASK) == pytest.approx(float(expected), abs=1e-12)


def test_tied_maxima_count_by_their_share() -> None:
    attribution = torch.zeros(8, 8)
    attribution[2, 3] = attribution[3, 4] = attribution[7, 7] = 1
    assert pointing_game(prepared(attribution), MASK) == pytest.approx(2 / 3)


@each("tolerance", [0, 0.9, 1, 1.5, 2, math.sqrt(5), 3, 5, 100])
def test_pointing_with_tolerance_by_distances(tolerance: float) -> None:
    mask = torch.zeros(9, 7, dtype=torch.bool)
    mask[4, 1] = mask[0, 6] = True
    inside = mask.nonzero().double()
    for row in range(9):
        for column in range(7):
            attribution = torch.zeros(9, 7)
            attribution[row, column] = 1
            near = torch.cdist(torch.tensor([[row, column]]).double(), inside).min()
            expected = float(near <= tolerance + 1e-12)
            assert pointing_game(prepared(attribution, mask), mask, tolerance) == expected


def test_a_tolerance_larger_than_the_image_reaches_its_far_corner() -> None:
    mask = torch.zeros(9, 7, dtype=torch.bool)
    mask[8, 0] = True
    opposite = torch.zeros(9, 7)
    opposite[0, 6] = 1
    assert pointing_game(prepared(opposite, mask), mask, tolerance=10) == 1
    assert pointing_game(prepared(opposite, mask), mask, tolerance=9.9) == 0


@each("tolerance", [-1, math.nan, math.inf])
def test_refused_tolerance(tolerance: float) -> None:
    with pytest.raises(ValueError, match="must be a finite number of pixels"):
        pointing_game(None, MASK, tolerance)


# --- energy --------------------------------------------------------------------------------------


def test_energy_is_of_the_positive_part_at_the_map_s_own_size() -> None:
    """The negative cell takes nothing from its neighbour where they meet."""
    mask = torch.tensor([[True, True, False, False]])
    # Bilinear, the positive part (4, 0) is (4, 3, 1, 0): 7 of 8 in the left half.
    for right in (0.0, -1.0, -1000.0):
        assert energy_pointing_game(torch.tensor([[4.0, right]]), mask) == pytest.approx(7 / 8)


def test_energy_of_a_map_without_positive_mass_or_contrast() -> None:
    assert energy_pointing_game(-random_map(0).abs(), MASK) == 0
    assert energy_pointing_game(torch.ones(8, 8), MASK) == 0
    one_off = torch.ones(8, 8)
    one_off[0, 0] = 0
    assert energy_pointing_game(one_off, MASK) == pytest.approx(12 / 63)


@each(("rows", "columns"), [(2, 2), (1, 4), (4, 2)])
def test_grid_pointing_game_by_slices(rows: int, columns: int) -> None:
    attribution = random_map(0).double()
    positive = attribution.clamp(min=0)
    high, wide = 8 // rows, 8 // columns
    for cell in range(rows * columns):
        top, left = cell // columns * high, cell % columns * wide
        expected = positive[top : top + high, left : left + wide].sum() / positive.sum()
        found = grid_pointing_game(attribution, rows, columns, cell)
        assert found == pytest.approx(float(expected))


def test_grid_pointing_game_shares_pixels_on_borders() -> None:
    attribution = torch.tensor([[1.0, 2.0, 5.0]])
    assert grid_pointing_game(attribution, 1, 2, 0) == pytest.approx(2 / 8)
    # Quarters of 0.75 pixels: the second has the last quarter of 1 and the first half of 2.
    assert grid_pointing_game(attribution, 1, 4, 1) == pytest.approx(1.25 / 8)
    enlarged = random_map(0, side=7).repeat_interleave(2, 0).repeat_interleave(2, 1)
    for cell in range(4):
        found = grid_pointing_game(random_map(0, side=7), 2, 2, cell)
        assert found == pytest.approx(grid_pointing_game(enlarged, 2, 2, cell))


def test_grid_pointing_game_of_nothing_and_of_no_cell() -> None:
    assert grid_pointing_game(torch.ones(4, 4), 2, 2, 0) == 0
    assert grid_pointing_game(-random_map(0).abs(), 2, 2, 0) == 0
    with pytest.raises(IndexError, match="cell must be 0 to 3 in a grid of 2 x 2, got 4"):
        grid_pointing_game(torch.ones(4, 4), 2, 2, 4)
    with pytest.raises(ValueError, match="at least 1 x 1 images, got 0 x 2"):
        grid_pointing_game(torch.ones(4, 4), 0, 2, 0)


# --- ranking and segmentation --------------------------------------------------------------------


@each_map
@each_mask
def test_ranking_against_scikit_learn_and_torchmetrics(attribution: Tensor, mask: Tensor) -> None:
    scores = prepared(attribution, mask)
    truth, flat = mask.flatten().numpy(), scores.flatten().numpy()
    auroc, precision = pixel_auroc(scores, mask), pixel_average_precision(scores, mask)
    assert auroc == pytest.approx(roc_auc_score(truth, flat), abs=1e-12)
    assert precision == pytest.approx(average_precision_score(truth, flat), abs=1e-12)
    assert auroc == pytest.approx(float(binary_auroc(scores, mask.int())), abs=1e-6)
    average = float(binary_average_precision(scores, mask.int()))
    assert precision == pytest.approx(average, abs=1e-6)


def test_auroc_by_all_pairs_of_pixels() -> None:
    scores = prepared(with_ties(3))
    inside, outside = scores[MASK][:, None], scores[~MASK][None]
    expected = ((inside > outside) + 0.5 * (inside == outside)).double().mean()
    assert (inside == outside).any()
    assert pixel_auroc(scores, MASK) == pytest.approx(float(expected))


@each_map
@each_mask
def test_segmentation_against_torchmetrics(attribution: Tensor, mask: Tensor) -> None:
    scores = prepared(attribution, mask)
    chosen, truth = (scores > scores.mean()).int(), mask.int()
    counts = confusion(scores, mask)
    assert float(pixel_accuracy(counts)) == pytest.approx(float(binary_accuracy(chosen, truth)))
    expected = multiclass_jaccard_index(chosen, truth, num_classes=2, average="macro")
    assert float(segmentation_miou(counts)) == pytest.approx(float(expected))


def test_a_pixel_at_the_mean_is_background() -> None:
    mask = torch.tensor([[True, True, False]])
    scores = prepared(torch.tensor([[4.0, 2.0, 0.0]]), mask)
    assert confusion(scores, mask).tolist() == [1, 0, 1, 1]


def test_segmentation_counts_the_pixels_of_all_pairs_together() -> None:
    """As the published protocol does; the mean over pairs would be another number."""
    pairs = [(random_map(0), random_mask(0)), (-MASK.float(), MASK)]
    chosen, truth = [], []
    for attribution, mask in pairs:
        scores = prepared(attribution, mask)
        chosen.append((scores > scores.mean()).int())
        truth.append(mask.int())
    together = (torch.stack(chosen), torch.stack(truth))
    expected = float(multiclass_jaccard_index(*together, num_classes=2, average="macro"))
    apart = [localization([pair]).segmentation_miou for pair in pairs]
    assert abs(np.mean(apart) - 100 * expected) > 1
    assert localization(pairs).segmentation_miou == pytest.approx(100 * expected)


# --- maps that were not prepared -----------------------------------------------------------------


@each("measure", [iou_curve, score_contrast, pointing_game, confusion, pixel_auroc])
@each("factor", [1e-9, 1.5, 100.0, -1.0])
def test_maps_that_were_not_prepared_are_refused(measure, factor: float) -> None:
    with pytest.raises(ValueError, match=r"normalized to 0\.\.1, got .*; use prepare\(map, mask\)"):
        measure(MASK.double() * factor, MASK)
    with pytest.raises(ValueError, match=r"the same shape, got \(3, 3\) and \(8, 8\)"):
        measure(random_map(0, side=3).sigmoid(), MASK)


def test_finite_maps_of_any_range_are_measured() -> None:
    huge = random_map(0).double().sign() * 1.7e308
    assert localization([(huge, MASK)]) == localization([(huge.sign(), MASK)])

"""Pairs accumulated: merged, and resampled for confidence intervals."""

from __future__ import annotations

import itertools
import math
import pickle

import numpy as np
import pytest
import torch
from torch import Tensor

from captum_clip_surgery.metrics import PairMeasures, localization
from captum_clip_surgery.metrics._bootstrap import CHUNK, ImageMeans, resample
from captum_clip_surgery.metrics._pairs import TOLERANCE
from tests._helpers.cases import each
from tests._helpers.masked_maps import MASK, random_map, random_mask

#: (map, mask, image): eleven pairs of four images, and two that are skipped.
PAIRS: list[tuple[Tensor, Tensor, int]] = [
    (random_map(seed, side=3 + seed % 3), random_mask(seed), (0, 7, 7, 3, -2)[seed % 5])
    for seed in range(11)
]
PAIRS.insert(4, (random_map(20), torch.ones_like(MASK), 7))
PAIRS.append((random_map(21), torch.zeros_like(MASK), 8))
KEYS = ["explanation_iou", "threshold", "msc", "pointing", "pointing_near", "energy", "auroc"]
KEYS += ["average_precision", "pixel_accuracy", "segmentation_miou"]


def measures_of(
    pairs: list[tuple[Tensor, Tensor, int]], tolerance: float = TOLERANCE
) -> PairMeasures:
    measures = PairMeasures(tolerance)
    for attribution, mask, image in pairs:
        measures.update(attribution, mask, image)
    return measures


def test_keys_and_counts() -> None:
    found = measures_of(PAIRS).compute()
    assert list(found) == [*KEYS, "n_pairs", "skipped"]
    assert (found["n_pairs"], found["skipped"]) == (11, 2)


def test_the_same_as_localization() -> None:
    found = measures_of(PAIRS).compute()
    expected = localization([(attribution, mask) for attribution, mask, _ in PAIRS])
    assert found == pytest.approx(vars(expected))


def test_pairs_of_one_image_together_or_apart() -> None:
    """The image a pair is of changes intervals, not figures."""
    alone = PairMeasures()
    for attribution, mask, _ in PAIRS:
        alone.update(attribution, mask)
    together = measures_of(PAIRS)
    assert alone.compute() == pytest.approx(together.compute())
    assert alone.confidence()["auroc"] != pytest.approx(together.confidence()["auroc"])


@each("cuts", [(0, 3, 13), (0, 6, 7, 13), (0, 5, 5, 13)])
def test_merged_batches_equal_one_pass(cuts: tuple[int, ...]) -> None:
    merged = PairMeasures()
    for start, stop in itertools.pairwise(cuts):
        merged.merge(pickle.loads(pickle.dumps(measures_of(PAIRS[start:stop]))))
    whole = measures_of(PAIRS)
    assert merged.compute() == pytest.approx(whole.compute())
    # Images cut apart by the batches are one again: the same resamples give the same intervals.
    for key, interval in merged.confidence().items():
        assert interval == pytest.approx(whole.confidence()[key])


def test_merging_leaves_the_other_alone_and_keeps_unnamed_images_apart() -> None:
    first, second = PairMeasures(), PairMeasures()
    first.update(MASK.float(), MASK)
    second.update(-MASK.float(), MASK)
    before = second.compute()
    first.merge(second)
    first.update(MASK.float(), MASK)
    assert second.compute() == before
    assert first.compute()["n_pairs"] == 3
    assert first.confidence()["msc"] == (-100, 100)  # three images; as one, a point


def test_merging_with_itself_counts_twice() -> None:
    measures = measures_of(PAIRS)
    once = measures.compute()
    measures.merge(measures)
    twice = measures.compute()
    assert (twice["n_pairs"], twice["skipped"]) == (22, 4)
    assert [twice[key] for key in KEYS] == pytest.approx([once[key] for key in KEYS])


def test_tolerance() -> None:
    corner = torch.zeros(8, 8)
    corner[2, 1] = 1  # two pixels left of the mask
    for tolerance, expected in ((0, 0), (1.9, 0), (2, 100)):
        measures = measures_of([(corner, MASK, 0)], tolerance)
        assert measures.compute()["pointing_near"] == expected
        assert measures.compute()["pointing"] == 0
    with pytest.raises(ValueError, match="same tolerance, got 2 and 15"):
        measures.merge(PairMeasures())
    with pytest.raises(ValueError, match=r"tolerance must be .* got -1"):
        PairMeasures(-1)


@pytest.mark.slow
def test_bootstrap_by_a_naive_loop_over_the_same_resamples() -> None:
    """Each resample measured from its pairs, as often as their images were drawn."""
    pairs = [pair for pair in PAIRS if pair[1].any() and not pair[1].all()]
    images = list(dict.fromkeys(image for _, _, image in pairs))
    rounds = CHUNK + 20
    found: dict[str, list[float]] = {key: [] for key in KEYS}
    for counts in torch.cat(list(resample(len(images), rounds, seed=5))):
        drawn = PairMeasures()
        for attribution, mask, image in pairs:
            for _ in range(int(counts[images.index(image)])):
                drawn.update(attribution, mask)
        for key in KEYS:
            found[key].append(drawn.compute()[key])
    intervals = measures_of(PAIRS).confidence(0.9, rounds, seed=5)
    assert list(intervals) == KEYS
    assert len(set(found["threshold"])) > 1  # chosen anew
    for key in KEYS:
        expected = np.percentile(found[key], [5, 95])
        assert intervals[key] == pytest.approx(tuple(expected)), key


def test_resamples_draw_as_many_images_with_replacement() -> None:
    counts = torch.cat(list(resample(7, 2 * CHUNK + 1, seed=0)))
    assert counts.shape == (2 * CHUNK + 1, 7)
    assert (counts.sum(1) == 7).all()
    assert (counts.mean(0) - 1).abs().max() < 5 * math.sqrt(6 / 7 / len(counts))
    assert torch.equal(counts, torch.cat(list(resample(7, 2 * CHUNK + 1, seed=0))))
    assert not torch.equal(counts, torch.cat(list(resample(7, 2 * CHUNK + 1, seed=1))))


def test_intervals_hold_the_figure_and_widen_with_the_level() -> None:
    measures = measures_of(PAIRS)
    found = measures.compute()
    narrow, wide = measures.confidence(0.5), measures.confidence(0.95)
    for key in KEYS:
        assert wide[key][0] <= narrow[key][0] <= narrow[key][1] <= wide[key][1]
        # Explanation IoU takes the best threshold of each resample, which leans upwards.
        assert wide[key][0] <= found[key] <= wide[key][1]


def test_of_one_image_the_interval_is_a_point() -> None:
    measures = measures_of([(attribution, mask, 0) for attribution, mask, _ in PAIRS])
    found = measures.compute()
    for resamples in (1, 3):
        for key, interval in measures.confidence(resamples=resamples).items():
            assert interval == pytest.approx((found[key], found[key]))


def test_intervals_are_of_a_thousand_resamples_where_none_are_asked_for() -> None:
    measures = measures_of(PAIRS)
    assert measures.confidence() == measures.confidence(0.95, 1000, seed=0)


@each(
    ("options", "message"),
    [
        ({"level": 1}, "level must be between 0 and 1, .* got 1"),
        ({"level": 95}, "level must be between 0 and 1, .* got 95"),
        ({"resamples": 0}, "resamples must be at least 1, .* got 0"),
    ],
)
def test_refused_intervals(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measures_of(PAIRS).confidence(**options)


def test_means_over_images_by_numpy() -> None:
    """Figures that not every image has are drawn among those that have them."""
    rng = np.random.default_rng(0)
    first, second = rng.random(9), rng.random(4)
    means = ImageMeans()
    assert (means.compute(), means.confidence()) == ({}, {})
    for index, value in enumerate(first):
        means.update(first=value, **({"second": second[index]} if index < 4 else {}))
    assert means.compute() == pytest.approx(
        {"first": 100 * first.mean(), "second": 100 * second.mean()}
    )
    for name, values in (("first", first), ("second", second)):
        draws = torch.cat(list(resample(len(values), 250, seed=3))).numpy()
        expected = np.percentile(100 * draws @ values / len(values), [5, 95])
        found = means.confidence(0.9, 250, seed=3)[name]
        assert found == pytest.approx(tuple(expected), rel=1e-12)
    assert means.confidence() == means.confidence(0.95, 1000, seed=0)
    with pytest.raises(ValueError, match=r"level must be between .* got 2"):
        means.confidence(2)


def test_nothing_measured_and_refused_images() -> None:
    measures = PairMeasures()
    for ask in (measures.compute, measures.confidence):
        with pytest.raises(ValueError, match=r"no pair to measure \(0 skipped"):
            ask()
    with pytest.raises(TypeError, match=r"image must be an int or None, got 'cat' \(str\)"):
        measures.update(MASK.float(), MASK, "cat")  # type: ignore[arg-type]
    measures.update(MASK.float(), MASK, np.int64(3))  # type: ignore[arg-type]
    measures.update(MASK.float().requires_grad_(), MASK, 3)
    assert measures.compute()["n_pairs"] == 2

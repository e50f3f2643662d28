"""Ignored pixels: each measure of a pair by hand, with and without them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from captum_clip_surgery.metrics._pairs import PairMeasures, pair_stats
from tests._helpers.cases import each

#: The highest pixel lies outside the mask, two pixels from it, and is ignored.
MAP = torch.tensor([[1.0, 0.6, 0.8, 0.3, 0.2, 0.0]])
MASK = torch.tensor([[False, False, True, False, True, False]])
IGNORED = torch.tensor([[True, False, False, False, False, False]])

#: Values for the valid pixels, .6 .8 .3 .2 0, and for all; inside are .8 and .2.
BY_HAND = {
    "explanation_iou": (2 / 4, 2 / 5),  # at thresholds up to .2
    "msc": (0.5 - 0.9 / 3, 0.5 - 1.9 / 4),
    "pointing": (1, 0),
    "pointing_near": (1, 0),
    "energy": (1 / 1.9, 1 / 2.9),
    "auroc": (4 / 6, 4 / 8),
    "average_precision": ((1 + 2 / 4) / 2, (1 / 2 + 2 / 5) / 2),
    # Above the mean, .38 of the valid pixels and .483 of all: .6 and .8, and 1 where it counts.
    "pixel_accuracy": (3 / 5, 3 / 6),
    "segmentation_miou": ((1 / 3 + 2 / 4) / 2, (1 / 4 + 2 / 5) / 2),
}


def measured(attribution: Tensor, mask: Tensor, ignored: Tensor | None) -> dict[str, float]:
    measures = PairMeasures(tolerance=1)
    measures.update(attribution, mask, ignored=ignored)
    return measures.compute()


def test_each_measure_by_hand() -> None:
    apart, counted = measured(MAP, MASK, IGNORED), measured(MAP, MASK, None)
    assert set(BY_HAND) == set(apart) - {"threshold", "n_pairs", "skipped"}
    for name, (valid, everywhere) in BY_HAND.items():
        assert apart[name] == pytest.approx(100 * valid, rel=1e-6), name
        assert counted[name] == pytest.approx(100 * everywhere, rel=1e-6), name


def test_ignored_pixels_of_the_mask_are_not_inside() -> None:
    """A crowd's pixels are within its own mask."""
    found = measured(MAP, MASK | IGNORED, IGNORED)
    assert found == measured(MAP, MASK, IGNORED)


@each("seed", range(3))
def test_as_if_cut_away(seed: int) -> None:
    """Pixels at an edge, while the least and the highest of the map lie elsewhere."""
    generator = torch.Generator().manual_seed(seed)
    attribution = torch.randn(9, 12, generator=generator).clamp(-2, 2)
    attribution[0, 0], attribution[4, 4] = -3, 3
    mask = torch.rand(9, 12, generator=generator) > 0.6
    ignored = torch.zeros_like(mask)
    ignored[:, 9:] = True
    cut = measured(attribution[:, :9], mask[:, :9], None)
    # A mask that continues into ignored pixels is near pixels at the edge.
    mask[:, 9:] = False
    assert measured(attribution, mask, ignored) == pytest.approx(cut, rel=1e-9)
    assert measured(attribution, mask, None) != pytest.approx(cut, rel=1e-3)


def test_a_map_is_enlarged_before_pixels_are_left_out() -> None:
    """Cells of a map reach beyond pixels: what is ignored has no say in what others are."""
    attribution = torch.tensor([[0.0, 1.0]])
    mask = torch.tensor([[False, False, True, True]])
    ignored = torch.tensor([[False, False, False, True]])  # pixels are 0, .25, .75, 1
    found = measured(attribution, mask, ignored)
    assert found["msc"] == pytest.approx(100 * (0.75 - 0.125))
    assert found["pointing"] == 100
    assert found["energy"] == pytest.approx(75)  # of .25 and .75


@each(
    ("mask", "ignored"),
    [
        ([True, True, False], [False, False, True]),  # what is left is full,
        ([True, False, False], [True, False, False]),  # empty,
        ([True, False, False], [True, True, True]),  # or nothing
    ],
)
def test_pairs_without_two_sides_are_skipped(mask: list[bool], ignored: list[bool]) -> None:
    measures = PairMeasures()
    measures.update(torch.rand(1, 3), torch.tensor([mask]), ignored=torch.tensor([ignored]))
    assert (measures.n_pairs, measures.skipped) == (0, 1)


@each("ignored", [torch.zeros(6, dtype=torch.bool), torch.zeros(1, 6)])
def test_refused(ignored: Tensor) -> None:
    with pytest.raises(ValueError, match=r"expected \(1, 6\) and torch.bool, like the mask"):
        measured(MAP, MASK, ignored)


# --- rows ----------------------------------------------------------------------------------------


def test_states_add_up() -> None:
    """Measures put together from each image's record are those of one accumulator."""
    generator = torch.Generator().manual_seed(0)
    whole, parts = PairMeasures(), PairMeasures()
    empty = torch.zeros(6, 6, dtype=torch.bool)
    for image, pairs in enumerate((2, 0, 1, 3)):
        for _ in range(pairs):
            attribution = torch.randn(3, 3, generator=generator)
            mask = torch.rand(6, 6, generator=generator) > 0.5
            whole.update(attribution, mask, image)
            parts.add(pair_stats(attribution, mask), image)
        whole.update(torch.rand(3, 3), empty, image)
        parts.add(pair_stats(torch.rand(3, 3), empty), image)
    assert parts.compute() == whole.compute()
    assert parts.confidence(resamples=50) == whole.confidence(resamples=50)
    assert (parts.n_pairs, parts.skipped) == (6, 4)

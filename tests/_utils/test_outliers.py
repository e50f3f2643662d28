"""Outliers on plain tensors, against scikit-learn and loops over neighbors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.neighbors import LocalOutlierFactor

from captum_clip_surgery._utils.outliers import (
    fill_from_neighbors,
    local_outlier_factors,
    local_outliers,
    norm_outliers,
)


def test_local_outlier_factors_are_those_of_scikit_learn():
    tokens = torch.randn(2, 3, 40, 7, dtype=torch.float64)
    tokens[0, 1, 5] += 9
    tokens[1, 2, 4] = tokens[1, 2, 3]  # identical tokens
    for k in (1, 5, 39):
        for found, points in zip(
            local_outlier_factors(tokens, k).flatten(0, 1), tokens.flatten(0, 1), strict=True
        ):
            expected = -LocalOutlierFactor(k).fit(points.numpy()).negative_outlier_factor_
            assert np.allclose(found, expected, rtol=1e-6)
    chosen = local_outliers(tokens, 5, 0.1)
    assert (chosen.sum(-1) == 4).all()
    assert chosen[0, 1, 5]
    assert torch.equal(local_outlier_factors(tokens, 99), local_outlier_factors(tokens, 39))
    with pytest.raises(ValueError, match="two tokens or more"):
        local_outlier_factors(tokens[..., :1, :])


def test_norm_outliers_are_relative_to_each_image():
    tokens = torch.nn.functional.normalize(torch.randn(3, 25, 8), dim=-1)
    tokens = tokens * torch.tensor([1.0, 10.0, 1.0])[:, None, None]
    tokens[0, 7] *= 4.1
    tokens[1, 3] *= 3.9
    expected = torch.zeros(3, 25, dtype=torch.bool)
    expected[0, 7] = True
    assert torch.equal(norm_outliers(tokens), expected)
    assert torch.equal(norm_outliers(tokens.half()), expected)


def naive_fill(tokens, outliers, grid):
    """One image, ring by ring."""
    rows, columns = grid
    values = {divmod(i, columns): t for i, t in enumerate(tokens)}
    sound = {divmod(i, columns) for i, out in enumerate(outliers) if not out}
    while len(sound) < len(values) and sound:
        ready = {}
        for row, column in values.keys() - sound:
            around = [
                values[row + i, column + j]
                for i in (-1, 0, 1)
                for j in (-1, 0, 1)
                if (row + i, column + j) in sound
            ]
            if around:
                ready[row, column] = torch.stack(around).mean(0)
        values |= ready
        sound |= ready.keys()
    return torch.stack([values[divmod(i, columns)] for i in range(rows * columns)])


@pytest.mark.parametrize("grid", [(5, 7), (1, 6), (3, 3)])
def test_fill_from_neighbors_is_the_mean_of_sound_ones(grid):
    count = grid[0] * grid[1]
    tokens = torch.randn(4, count, 5, dtype=torch.float64)
    outliers = torch.rand(4, count) < torch.tensor([0.0, 0.2, 0.8, 1.0])[:, None]
    outliers[2, 0] = False
    tokens[outliers] *= 1e6
    filled = fill_from_neighbors(tokens, outliers, grid)
    for one, given, mask in zip(filled, tokens, outliers, strict=True):
        assert torch.allclose(one, naive_fill(given, mask, grid))
    assert torch.equal(filled[0], tokens[0])
    assert torch.equal(filled[3], tokens[3])

"""Captum's tools around six methods of different makes: noise, measures, figures."""

from __future__ import annotations

import io
from collections.abc import Iterator

import matplotlib
import numpy as np
import pytest
import torch
from captum.attr import LayerAttribution, NoiseTunnel, visualization
from captum.metrics import infidelity, sensitivity_max
from matplotlib.figure import Figure
from torch import Tensor

from tests._helpers.cases import each
from tests._helpers.method_table import REPRESENTATIVE, Bench, assert_close, set_up
from tests._helpers.tiny import relative_error

matplotlib.use("Agg")

INT_AND_LIST = each("target", [1, [1, 2, 0]])


@pytest.fixture(params=REPRESENTATIVE)
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    yield from set_up(request.param)


# --- NoiseTunnel --------------------------------------------------------------------------------


@each("target", [1, torch.tensor([1, 2, 0])])
def test_noise_tunnel_without_noise(bench: Bench, target: int | Tensor) -> None:
    tunnel = NoiseTunnel(bench.attribution)
    plain = bench.attribution.attribute(bench.images, target)
    # Three samples by two: a full batch of samples and a remainder.
    options = {"nt_samples": 3, "nt_samples_batch_size": 2, "stdevs": 0.0, "target": target}
    smooth = tunnel.attribute(bench.images, nt_type="smoothgrad", **options)
    assert_close(smooth, plain)
    squared = tunnel.attribute(bench.images, nt_type="smoothgrad_sq", **options)
    assert_close(squared, plain**2)
    variance = tunnel.attribute(bench.images, nt_type="vargrad", **options)
    assert variance.abs().max() < 1e-5 * squared.max()
    (inside,) = tunnel.attribute((bench.images,), nt_type="smoothgrad", **options)
    assert_close(inside, plain)


@INT_AND_LIST
@each("kind", ["smoothgrad", "smoothgrad_sq", "vargrad"])
def test_noise_tunnel(bench: Bench, kind: str, target: int | list[int]) -> None:
    torch.manual_seed(0)
    found = NoiseTunnel(bench.attribution).attribute(
        bench.images, nt_type=kind, nt_samples=2, stdevs=0.5, target=target
    )
    torch.manual_seed(0)
    noisy = bench.images.repeat_interleave(2, dim=0)
    noisy = noisy + torch.normal(0, torch.full_like(noisy, 0.5))
    texts = target if isinstance(target, int) else [text for text in target for _ in range(2)]
    samples = bench.attribution.attribute(noisy, texts).unflatten(0, (3, 2))
    expected = {
        "smoothgrad": samples.mean(1),
        "smoothgrad_sq": (samples**2).mean(1),
        "vargrad": samples.var(1, correction=0),
    }[kind]
    assert torch.isfinite(found).all()
    # Captum takes the variance as a difference of two means, which costs digits.
    assert_close(found, expected, 1e-3 if kind == "vargrad" else 1e-5)
    plain = bench.attribution.attribute(bench.images, target).detach()
    assert relative_error(found.detach(), plain) > 0.01


# --- measures -----------------------------------------------------------------------------------


@INT_AND_LIST
def test_sensitivity(bench: Bench, target: int | list[int]) -> None:
    attribute, images = bench.attribution.attribute, bench.images
    options = {"n_perturb_samples": 2, "target": target}
    nothing = sensitivity_max(attribute, images, lambda inputs: inputs, **options)
    assert nothing.shape == (3,)
    assert nothing.max() < 1e-5
    flipped = sensitivity_max(attribute, images, lambda inputs: inputs.flip(-1), **options)
    plain = attribute(images, target).flatten(1)
    changed = attribute(images.flip(-1), target).flatten(1)
    expected = (plain - changed).norm(dim=1) / plain.norm(dim=1)
    assert expected.min() > 0.01
    assert_close(flipped, expected, 1e-4)


def image_shaped(bench: Bench, attribution: Tensor) -> Tensor:
    """An attribution as Captum's infidelity wants it: shaped like the images."""
    if not bench.case.on_grid:
        return attribution
    size = (bench.images.shape[-2], bench.images.shape[-1])
    return LayerAttribution.interpolate(attribution, size, "bilinear").expand(-1, 3, -1, -1)


def change_by(inputs: Tensor) -> tuple[Tensor, Tensor]:
    change = 0.1 * inputs.flip(-1)
    return change, inputs - change


@INT_AND_LIST
def test_infidelity(bench: Bench, target: int | list[int]) -> None:
    clip, images = bench.clip, bench.images
    attribution = image_shaped(bench, bench.attribution.attribute(images, target)).detach()
    found = infidelity(clip, change_by, images, attribution, target=target, n_perturb_samples=2)
    assert torch.isfinite(found).all()
    change, changed = change_by(images)
    drop = (clip(images) - clip(changed))[range(3), target]
    assert_close(found, ((attribution * change).sum((1, 2, 3)) - drop) ** 2, 1e-4)


# --- figures ------------------------------------------------------------------------------------


def picture(images: Tensor) -> np.ndarray:
    return images[0].detach().permute(1, 2, 0).numpy()


def assert_draws(figure: Figure) -> None:
    """It renders, and not to an empty canvas."""
    file = io.BytesIO()
    figure.savefig(file, format="rgba", dpi=20)
    assert len(np.unique(np.frombuffer(file.getvalue(), np.uint8))) > 10
    figure.clear()


def scaled(maps: Tensor) -> np.ndarray:
    """What Captum draws of a map with sign "all" and no outliers cut."""
    return (maps / maps.abs().max()).detach().numpy()


def test_visualize_image_attr(bench: Bench) -> None:
    attribution = bench.attribution.attribute(bench.images, target=1)
    figure, axis = visualization.visualize_image_attr(
        picture(attribution), sign="all", outlier_perc=0, fig_size=(2, 2), use_pyplot=False
    )
    expected = scaled(bench.attribution.attribute_all(bench.images)[0, 1])
    np.testing.assert_allclose(axis.images[-1].get_array(), expected, atol=1e-5)
    assert_draws(figure)


def test_visualize_image_attr_multiple(bench: Bench) -> None:
    attribution = image_shaped(bench, bench.attribution.attribute(bench.images, target=1))
    figure, axes = visualization.visualize_image_attr_multiple(
        picture(attribution),
        picture(bench.clip.unnormalize(bench.images)),
        methods=["blended_heat_map", "masked_image"],
        signs=["all", "absolute_value"],
        titles=[bench.attribution.get_name(), bench.clip.texts[1]],
        outlier_perc=0,
        fig_size=(4, 2),
        use_pyplot=False,
    )
    expected = scaled(attribution[0].sum(0))
    np.testing.assert_allclose(axes[0].images[-1].get_array(), expected, atol=1e-5)
    assert axes[0].get_title() == bench.attribution.get_name()
    assert_draws(figure)

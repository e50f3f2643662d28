"""Gradients of maps equal finite differences; grad modes, now or while texts were encoded."""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from captum_clip_surgery import (
    CLIPSimilarity,
    CLIPSurgery,
    LayerCLIPSimilarity,
    LayerCLIPSurgery,
    LayerFeatureCLIPSurgery,
    ZeroShotClassifier,
)
from captum_clip_surgery.attr import METHODS, LayerShapeMixin, PathConfig, attribute_many
from captum_clip_surgery.attr._base import PatchAttribution
from captum_clip_surgery.attr._gradients import minmax_cosines
from captum_clip_surgery.attr._registry import choose
from tests._helpers.cases import each
from tests._helpers.tiny import FAMILIES, TOWERS, on_models, relative_error, tiny_model

TEXTS = ["dog", "cat", "tree", "car"]
TEMPLATES = ["a photo of a {}."]
VARIANTS = ("release", "paper", "empty", None)
MAPS: dict[str, Callable[[ZeroShotClassifier], PatchAttribution]] = {
    **{
        f"surgery {form}": functools.partial(LayerCLIPSurgery, feature_surgery=form)
        for form in VARIANTS
    },
    "similarity": LayerCLIPSimilarity,
    "normalised values": functools.partial(
        LayerCLIPSurgery, num_blocks=1, feature_surgery=None, normalize_values=True
    ),
    "feature surgery": functools.partial(LayerFeatureCLIPSurgery, feature_surgery="paper"),
    "image-shaped": functools.partial(CLIPSurgery, feature_surgery="release"),
    "image-shaped similarity": CLIPSimilarity,
}
each_family = pytest.mark.parametrize("family", TOWERS)
at_sizes = pytest.mark.parametrize("grid", [None, (3, 2)], ids=["native", "other size"])
#: Every method at a size that is not native on one family, and one that uses all steps on every
#: family at both sizes: methods differ behind the tower, families within it.
each_method_or_family = pytest.mark.parametrize(
    ("family", "grid", "method"),
    [pytest.param("vit", (3, 2), method) for method in MAPS]
    + [
        pytest.param(*family.values, grid, "surgery release", marks=family.marks)
        for family in TOWERS
        for grid in (None, (3, 2))
        if (*family.values, grid) != ("vit", (3, 2))
    ],
)
#: Text features enter behind the tower.
each_method_or_model = pytest.mark.parametrize(
    ("family", "grid", "method"),
    [("vit", (3, 2), method) for method in MAPS]
    + [(family, None, "surgery release") for family in FAMILIES],
)


@functools.cache
def double_clip(family: str) -> ZeroShotClassifier:
    model = tiny_model(family).double()
    return ZeroShotClassifier(model, TEXTS[:3], distractors=TEXTS[3:], templates=TEMPLATES)


def image_of(clip: ZeroShotClassifier, grid: tuple[int, int] | None) -> Tensor:
    """One random image of a grid of patches; None is the native size."""
    rows, columns = grid or clip.tower.grid(*clip.native_size)
    height, width = clip.tower.patch_size
    generator = torch.Generator().manual_seed(3)
    size = (1, 3, rows * height, columns * width)
    return torch.randn(size, generator=generator, dtype=torch.double)


def check_gradients(
    function: Callable[[], Tensor],
    inputs: Sequence[Tensor],
) -> list[Tensor | None]:
    """Gradients of a function of leaves, held to central differences.

    Along the gradient itself, where the difference is largest, and along a random direction.
    `torch.autograd.gradcheck` has an absolute tolerance, under which small gradients vanish. The
    step is small for the sake of the ResNet's many kinks.

    Returns:
        The gradients; None for an input that has no say.
    """
    step, tolerance = 1e-7, 1e-5
    generator = torch.Generator().manual_seed(2)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.double)

    weights = noise(function())
    gradients = torch.autograd.grad((function() * weights).sum(), inputs, allow_unused=True)
    filled = [
        torch.zeros_like(x) if g is None else g for x, g in zip(inputs, gradients, strict=True)
    ]
    size = torch.stack([g.norm() for g in filled]).norm()
    assert size > 0
    for direction in (filled, [noise(x) for x in inputs]):
        length = torch.stack([d.norm() for d in direction]).norm()
        sides = []
        for sign in (1, -1):
            # There and back in place, since parameters cannot be exchanged.
            originals = [x.detach().clone() for x in inputs]
            with torch.no_grad():
                for x, d in zip(inputs, direction, strict=True):
                    x.add_(d / length, alpha=sign * step)
                sides.append((function() * weights).sum())
                for x, original in zip(inputs, originals, strict=True):
                    x.copy_(original)
        numeric = float(sides[0] - sides[1]) / (2 * step)
        analytic = float(
            sum((g * d).sum() for g, d in zip(filled, direction, strict=True)) / length
        )
        assert numeric == pytest.approx(analytic, abs=tolerance * float(size))
    return list(gradients)


# --- against finite differences ------------------------------------------------------------------


@each_method_or_family
def test_gradients_with_respect_to_images(family, grid, method):
    clip = double_clip(family)
    attribution = MAPS[method](clip)
    images = image_of(clip, grid).requires_grad_()
    for maps in (attribution.attribute_all, functools.partial(attribution.attribute, target=-1)):
        check_gradients(lambda maps=maps: maps(images), [images])


@each_method_or_model
def test_gradients_with_respect_to_text_features(family, grid, method):
    clip = double_clip(family)
    images = image_of(clip, grid)
    generator = torch.Generator().manual_seed(1)
    width = clip.text_features().shape[1]
    features, empty = (
        torch.randn(size, generator=generator, dtype=torch.double).requires_grad_()
        for size in ((4, width), (width,))
    )

    def maps() -> Tensor:
        made = ZeroShotClassifier.from_features(clip.model, features, empty)
        return MAPS[method](made).attribute_all(images)

    gradients = check_gradients(maps, [features, empty])
    assert (gradients[0] != 0).any(dim=1).all()
    assert (gradients[1] is not None) == (method == "surgery empty")
    # One classifier serves every step of an optimiser, and the leaf collects its gradients.
    attribution = MAPS[method](ZeroShotClassifier.from_features(clip.model, features, empty))
    attribution.attribute_all(images).square().sum().backward()
    once = features.grad.clone()
    attribution.attribute_all(images).square().sum().backward()
    assert once.any()
    assert relative_error(features.grad, 2 * once) < 1e-12


# Only the weights of the texts ask for the image's pooled embedding. To it alone go the last
# block's feed-forward, its q and k where they have matrices of their own, and the pooling's query.
POOLED_ALONE = re.compile(
    r"blocks\.2\.(ln_2|norm2|mlp|ls_?2)\.|blocks\.2\.attn\.(ln_)?[qk](_proj)?\."
    r"|attnpool\.[qk]_proj\.|attn_pool\.(query|latent|q\.|ln_q\.|attn\.[qk]_proj)"
)


@each_family
@at_sizes
def test_gradients_with_respect_to_parameters(family, grid):
    """With and without the image's embedding; the other forms differ behind the tower."""
    for form in VARIANTS if family == "vit" else ("release", None):
        check_gradients_with_respect_to_parameters(family, grid, form)


def check_gradients_with_respect_to_parameters(
    family: str, grid: tuple[int, int] | None, form: str | None
) -> None:
    # A copy, since differences are taken by moving its parameters.
    clip = copy.deepcopy(double_clip(family))
    surgery = LayerCLIPSurgery(clip, num_blocks=len(clip.tower.blocks), feature_surgery=form)
    images = image_of(clip, grid).requires_grad_()
    parameters = dict(clip.model.visual.named_parameters())
    gradients = check_gradients(lambda: surgery.attribute_all(images), [*parameters.values()])
    unused = {name for name, g in zip(parameters, gradients, strict=True) if g is None}
    if form in ("release", "paper"):
        assert not unused
    else:
        assert unused == {name for name in parameters if POOLED_ALONE.search(name)}
    assert all(parameter.grad is None for parameter in parameters.values())


# --- on request only ----------------------------------------------------------------------------


class OwnPass(LayerShapeMixin):
    """A user's method that calls the tower itself."""

    def scores(self, images: Tensor, targets: Tensor) -> Tensor:
        output = self.forward_func.tower.dual_path(images, PathConfig(0, lambda heads: heads.v))
        return (output.patches @ self.forward_func.text_features()[targets].T).mT.unflatten(
            -1, output.grid
        )


@pytest.mark.slow
@each("name", [*METHODS, *MAPS, "own pass"])
def test_plain_calls_keep_no_graph(name):
    """Parameters require gradients, as in every model that was just loaded."""
    clip = ZeroShotClassifier(tiny_model("vit"), TEXTS, templates=TEMPLATES)
    methods = {**METHODS, **MAPS, "own pass": OwnPass}
    if name in choose(clip, ["all"])[1]:
        methods[name] = OwnPass
    method = methods[name](clip)
    images = image_of(clip, (3, 2)).float()
    with torch.enable_grad():
        shared = attribute_many({"": method, "CLIP": LayerCLIPSimilarity(clip)}, images)
        assert not any(maps.requires_grad for maps in shared.values())
        assert not method.attribute_all(images, [1]).requires_grad
    assert all(parameter.requires_grad for parameter in clip.model.parameters())
    assert clip(images).requires_grad  # logits train the model as any output does


def test_transforms_of_functions_reach_images_and_parameters():
    """Under torch.func nothing says that it requires gradients."""
    clip = double_clip("vit")
    images = image_of(clip, None)
    model = torch.nn.ModuleDict({"clip": clip})
    surgery = LayerCLIPSurgery(clip)
    model.forward = lambda pixels: surgery.attribute_all(pixels, None, False).square().sum()
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    by_images = torch.func.grad(model)(images)
    by_parameters = torch.func.grad(
        lambda values: torch.func.functional_call(model, values, (images,))
    )(parameters)
    leaf = images.clone().requires_grad_()
    trained = dict(clip.model.visual.named_parameters(prefix="clip.model.visual"))
    expected = torch.autograd.grad(model(leaf), [leaf, *trained.values()], allow_unused=True)
    assert relative_error(by_images, expected[0]) < 1e-12
    for name, gradient in zip(trained, expected[1:], strict=True):
        if gradient is not None:
            assert relative_error(by_parameters[name], gradient) < 1e-10, name


# --- grad modes ----------------------------------------------------------------------------------

MODES = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}


@each("mode", MODES)
@pytest.mark.parametrize("grid", [(3, 2), pytest.param(None, marks=pytest.mark.slow)])
def test_results_do_not_depend_on_the_grad_mode(clip, grid, mode):
    images = image_of(clip, grid).float().requires_grad_()
    for make in MAPS.values():
        method = make(clip)
        expected = method.attribute(images, target=0), method.attribute_all(images)
        with MODES[mode]():
            actual = method.attribute(images, target=0), method.attribute_all(images)
        for a, e in zip(actual, expected, strict=True):
            assert e.requires_grad
            assert not a.requires_grad
            # nn.MultiheadAttention takes another way where nothing needs gradients.
            assert relative_error(a, e.detach()) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("family", ["vit", "resnet", "coca"])
@each("mode", MODES)
@each("where", ["made", "with_texts", "attribute", "from_features"])
def test_text_features_of_another_grad_mode_allow_gradients_later(family, mode, where):
    model = tiny_model(family)
    make = functools.partial(ZeroShotClassifier, model, templates=TEMPLATES)
    plain, others, same = make(TEXTS), make(["bird"]), make(TEXTS)
    images = image_of(plain, (3, 2)).float()
    with MODES[mode]():
        if where == "made":
            fresh = make(TEXTS)
        elif where == "with_texts":
            fresh = others.with_texts(TEXTS)
        elif where == "attribute":
            fresh = same  # the texts are known already, but the empty one is not
        else:
            features, empty = plain.text_features().clone(), plain.empty_features().clone()
            fresh = ZeroShotClassifier.from_features(model, features, empty)
        for form in VARIANTS:
            LayerCLIPSurgery(fresh, feature_surgery=form).attribute_all(images)
        fresh(images)
    images.requires_grad_()
    for function in (
        lambda c: c(images),
        *(lambda c, m=m: m(c).attribute_all(images) for m in MAPS.values()),
    ):
        actual, expected = (
            torch.autograd.grad(function(c).square().sum(), images)[0] for c in (fresh, plain)
        )
        assert relative_error(actual, expected) < 1e-5


@on_models
def test_a_model_made_in_inference_mode(clip):
    images = image_of(clip, None).float()
    with torch.inference_mode():
        frozen = copy.deepcopy(clip.model)
    made = ZeroShotClassifier(
        frozen, clip.texts, distractors=clip.distractors, templates=clip.text_encoder.templates
    )
    for make in MAPS.values():
        with torch.no_grad():
            actual, expected = (make(c).attribute_all(images) for c in (made, clip))
        assert relative_error(actual, expected) < 1e-5


@each("name", ["LeGrad", "AttentionRelevance", "GradECLIP", "GradCam"])
def test_anomaly_detection_changes_nothing(name):
    """Its check reads values, which batched gradients do not allow."""
    clip = ZeroShotClassifier(tiny_model("vit"), TEXTS, templates=TEMPLATES)
    images = image_of(clip, (3, 2)).float()
    method = METHODS[name](clip)
    with torch.autograd.set_detect_anomaly(True):
        actual = method.attribute_all(images)
    assert relative_error(actual, method.attribute_all(images)) < 1e-5


def test_equal_keys_weigh_nothing():
    keys = torch.randn(1, 1, 8).expand(2, 5, 8)
    assert torch.equal(minmax_cosines(torch.randn(2, 1, 8), keys), torch.zeros(2, 5))

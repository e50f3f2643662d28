"""Nothing of the model changes: after success, after an exception halfway, while threads use it."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from captum.attr import LayerGradCam
from torch import Tensor, nn

from captum_clip_surgery import (
    CLIPSimilarity,
    CLIPSurgery,
    FeatureCLIPSurgery,
    LayerCLIPSimilarity,
    LayerCLIPSurgery,
    LayerFeatureCLIPSurgery,
    ZeroShotClassifier,
)
from tests._helpers.cases import each
from tests._helpers.model_snapshot import differences, snapshot
from tests._helpers.tiny import (
    MODELS,
    ONE_MODEL,
    TWO_MODELS,
    on_models,
    quick_on,
    random_images,
    relative_error,
    tiny_model,
)
from tests._helpers.tower_kinds import TINY

METHODS = (
    CLIPSurgery,
    LayerCLIPSurgery,
    FeatureCLIPSurgery,
    LayerFeatureCLIPSurgery,
    CLIPSimilarity,
    LayerCLIPSimilarity,
)
TEXTS = ["a dog", "a cat", "a tree"]
TEMPLATES = ["a photo of {}."]
# Sides in patches: native for no kind, and not square.
OTHER_GRIDS = ((3, 5), (1, 2))
Grids = tuple[tuple[int, int] | None, ...]
#: One size, and all of them in the slow tests.
on_grids = pytest.mark.parametrize(
    "grids", [OTHER_GRIDS[:1], pytest.param((None, *OTHER_GRIDS), marks=pytest.mark.slow)]
)

on_two_models = pytest.mark.parametrize("clip", TWO_MODELS, indirect=True)

Job = Callable[[ZeroShotClassifier, Tensor], Tensor]


def make_clip(family: str) -> ZeroShotClassifier:
    return ZeroShotClassifier(tiny_model(family), TEXTS, distractors=["a car"], templates=TEMPLATES)


def resized(clip: ZeroShotClassifier, grid: tuple[int, int] | None, seed: int = 0) -> Tensor:
    """Random images of a grid of patches; None is the native size."""
    if grid is None:
        return random_images(clip, 2, seed)
    height, width = clip.tower.patch_size
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 3, grid[0] * height, grid[1] * width, generator=generator)


def gradcam(clip: ZeroShotClassifier, images: Tensor) -> Tensor:
    return LayerGradCam(clip, clip.token_grid(-1)).attribute(images, target=1)


JOBS: dict[str, Job] = {
    "forward": lambda clip, images: clip(images),
    "with_texts": lambda clip, images: clip.with_texts(["a bird", "a fish"])(images),
    "token_grid": lambda clip, images: (clip.token_grid(0), clip(images))[1],
    "gradcam": gradcam,
    "text features": lambda clip, images: clip.empty_features(),
    **{
        method.__name__: lambda clip, images, m=method: m(clip).attribute(images, target=1)
        for method in METHODS
    },
    **{
        f"{method.__name__} all": lambda clip, images, m=method: m(clip).attribute_all(images)
        for method in (CLIPSurgery, LayerCLIPSurgery)
    },
    **{
        f"form {form}": lambda clip, images, form=form: LayerCLIPSurgery(
            clip, feature_surgery=form, normalize_values=True
        ).attribute_all(images)
        for form in ("release", "paper", "empty", None)
    },
}


def run_all(clip: ZeroShotClassifier, grids: Grids = OTHER_GRIDS[:1]) -> dict[str, Tensor]:
    """Results of every job at every size, with gradients on."""
    return {
        f"{name} {grid}": job(clip, resized(clip, grid)).detach()
        for grid in grids
        for name, job in JOBS.items()
    }


def assert_equal(
    actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 0
) -> None:
    assert actual.keys() == expected.keys()
    errors = {name: relative_error(actual[name], expected[name]) for name in expected}
    assert not {name: error for name, error in errors.items() if not error <= tolerance}


# --- after success -------------------------------------------------------------------------------


def _plain(model: nn.Module) -> None:
    pass


def _with_gradients(model: nn.Module) -> None:
    """In the middle of training: every parameter has a gradient."""
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def _frozen(model: nn.Module) -> None:
    model.requires_grad_(False)


def _train_mode_where_harmless(model: nn.Module) -> None:
    """Train mode in every module that acts the same in it."""
    for module in model.modules():
        if not isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.training = True


@on_grids
def test_untouched_after_success(clip, grids):
    before = snapshot(clip.model)
    for grid in grids:
        images = resized(clip, grid)
        for name, job in JOBS.items():
            result = job(clip, images)
            assert torch.isfinite(result).all(), name
            assert images.grad is None, name
            assert not images.requires_grad, name
            assert not differences(before, snapshot(clip.model)), (name, grid)


@on_grids
@on_two_models
def test_state_of_the_model_stays_and_does_not_matter(clip, grids):
    states = [_with_gradients, _frozen, _train_mode_where_harmless]
    expected = run_all(clip, grids)
    for prepare in states if len(grids) == 1 else [_plain, *states]:
        check_state(clip, prepare, expected, grids)


def check_state(clip, prepare, expected, grids):
    model = copy.deepcopy(clip.model)
    prepare(model)
    before = snapshot(model)
    prepared = ZeroShotClassifier(model, TEXTS, distractors=["a car"], templates=TEMPLATES)
    # Where nothing needs gradients, nn.MultiheadAttention takes another way to the same numbers.
    assert_equal(run_all(prepared, grids), expected, tolerance=1e-5)
    assert not differences(before, snapshot(model))


# --- after an exception halfway ------------------------------------------------------------------


#: Every kind, since passes go through the parts of a tower in different ways; all but one slow.
IN_PARTS = quick_on(("vit",), TINY)


class Halfway(Exception):
    pass


def _raise(*_: object) -> None:
    raise Halfway


def parts_called(visual: nn.Module, call: Callable[[], object]) -> set[str]:
    """The modules without parts of their own that a call passes through."""
    called: set[str] = set()
    handles = [
        module.register_forward_pre_hook(lambda *_, place=place: called.add(place))
        for place, module in visual.named_modules()
        if not any(module.children())
    ]
    call()
    for handle in handles:
        handle.remove()
    return called


@pytest.mark.parametrize("grid", [OTHER_GRIDS[0], pytest.param(None, marks=pytest.mark.slow)])
@pytest.mark.parametrize("family", IN_PARTS)
def test_untouched_after_an_exception_in_any_submodule(family, grid):
    clip = make_clip(family)
    images = resized(clip, grid)[:1]
    jobs: dict[str, Job] = {
        "forward": JOBS["forward"],
        # Depth 1, so that blocks before it are called whole and the last one part by part.
        "surgery": lambda clip, images: LayerCLIPSurgery(clip, num_blocks=1).attribute_all(images),
        "gradcam": gradcam,
    }
    expected = {name: job(clip, images).detach() for name, job in jobs.items()}
    own = parts_called(clip.model.visual, lambda: clip.model.encode_image(random_images(clip)))
    before = snapshot(clip.model)
    own_hooks = snapshot(clip._grids)
    raised: dict[str, set[str]] = {name: set() for name in jobs}
    for place, module in clip.model.visual.named_modules():
        for name, job in jobs.items():
            handle = module.register_forward_pre_hook(_raise)
            try:
                result = job(clip, images)
            except Halfway:
                raised[name].add(place)
            else:
                assert torch.equal(result.detach(), expected[name])
            finally:
                handle.remove()
        assert not differences(before, snapshot(clip.model)), place
        assert not differences(own_hooks, snapshot(clip._grids)), place
    assert_equal({name: job(clip, images).detach() for name, job in jobs.items()}, expected)
    # All that the model's own pass calls, and more.
    assert raised["surgery"] >= own | {*TINY[family].parts.beside}
    assert len(own) > 10
    assert raised["forward"] >= own
    assert raised["gradcam"] >= own


@pytest.mark.parametrize("family", ONE_MODEL)
def test_untouched_after_an_exception_in_the_text_tower(family):
    clip = make_clip(family)
    images = random_images(clip)
    expected = clip.with_texts(["a bird"])(images)
    before = snapshot(clip.model)
    reached = set()
    for number, (place, module) in enumerate(clip.model.named_modules()):
        if place.startswith("visual") or not place:
            continue
        handle = module.register_forward_pre_hook(_raise)
        try:
            clip.with_texts([f"text number {number}"])
        except Halfway:
            reached.add(place)
        finally:
            handle.remove()
        assert not differences(before, snapshot(clip.model)), place
    names = {name.removeprefix("text.") for name in reached}
    assert names >= {"token_embedding", "transformer.resblocks.1", "ln_final"}
    assert torch.equal(clip.with_texts(["a bird"])(images), expected)


# --- while threads share it ----------------------------------------------------------------------


def _work(clip: ZeroShotClassifier, worker: int) -> dict[str, Tensor]:
    """One user's day: texts and a size of their own, on the classifier all share and on theirs."""
    grids = [None, (2, 2), (3, 2), (2, 4), (1, 3), (4, 3), (2, 3), (3, 3)]
    images = resized(clip, grids[worker], seed=worker)
    texts = [f"a {noun} of worker {worker}" for noun in ("bird", "fish", "horse")[: 1 + worker % 3]]
    own = clip.with_texts(texts, distractors=[f"a thing number {worker}"])
    form = ("release", "paper", "empty", None)[worker % 4]
    results = {
        "own logits": own(images),
        "own surgery": CLIPSurgery(own).attribute(images, target=-1),
        "own surgery all": LayerCLIPSurgery(own, feature_surgery=form).attribute_all(images),
        "own gradcam": LayerGradCam(own, own.token_grid(0)).attribute(images, target=0),
        "shared logits": clip(images),
        "shared surgery": LayerCLIPSurgery(clip).attribute(images, target=[0, 2]),
        "shared similarity": LayerCLIPSimilarity(clip).attribute_all(images),
    }
    return {name: result.detach() for name, result in results.items()}


@pytest.mark.slow
@pytest.mark.parametrize("family", MODELS)
def test_eight_threads_share_a_model(family):
    rounds, workers = 3, 8
    sequential = make_clip(family)
    expected = [_work(sequential, worker) for worker in range(workers)]
    # A classifier of its own, whose text features the threads are the first to compute.
    clip = make_clip(family)
    before = snapshot(clip.model)
    start, done = threading.Barrier(workers + 1), threading.Event()
    seen: list[tuple[str, ...]] = []
    observations = 0

    def watch() -> None:
        nonlocal observations
        start.wait()
        while not done.is_set():
            seen.extend(differences(before, snapshot(clip.model)))
            # The last look may have ended after the work.
            observations += not done.is_set()

    def run(worker: int) -> list[dict[str, Tensor]]:
        start.wait()
        return [_work(clip, worker) for _ in range(rounds)]

    with ThreadPoolExecutor(workers + 1) as pool:
        watcher = pool.submit(watch)
        try:
            actual = list(pool.map(run, range(workers), timeout=120))
        finally:
            done.set()
        watcher.result()
    assert observations > 1
    assert not seen
    assert not differences(before, snapshot(clip.model))
    for worker, results in enumerate(actual):
        for result in results:
            assert_equal(result, expected[worker], tolerance=1e-6)


# --- copies --------------------------------------------------------------------------------------

COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
}


@each("duplicate", COPIES)
@on_grids
@on_two_models
def test_a_copied_classifier_gives_equal_results_and_is_independent(clip, grids, duplicate):
    clip.token_grid(0)
    expected = run_all(clip, grids)
    before = snapshot(clip.model)
    twin = COPIES[duplicate](clip)
    assert_equal(run_all(twin, grids), expected)
    assert (twin.texts, twin.distractors, repr(twin)) == (clip.texts, clip.distractors, repr(clip))
    assert twin.tower.visual is twin.model.visual is not clip.model.visual
    assert twin.text_encoder.model is twin.model
    twin.model.requires_grad_(False)
    for parameter in twin.model.parameters():
        parameter.zero_()
    assert not differences(before, snapshot(clip.model))
    assert_equal(run_all(clip, grids), expected)


@each("duplicate", COPIES)
@on_two_models
def test_a_copied_method_gives_equal_results(clip, duplicate):
    images = resized(clip, OTHER_GRIDS[0])
    for method in METHODS:
        original = method(clip)
        twin = COPIES[duplicate](original)
        assert twin.forward_func.model is not clip.model
        assert repr(twin) == repr(original)
        assert torch.equal(twin.attribute_all(images), original.attribute_all(images))
        assert torch.equal(twin.attribute(images, -1), original.attribute(images, -1))


@on_models
def test_a_copy_of_a_classifier_made_from_features(clip):
    width = clip.text_features().shape[1]
    features = torch.randn(9, width, generator=torch.Generator().manual_seed(0))
    made = ZeroShotClassifier.from_features(clip.model, features[:8], features[8])
    images = random_images(clip)
    for form in ("empty", "release"):
        expected = LayerCLIPSurgery(made, feature_surgery=form).attribute_all(images)
        for duplicate in COPIES.values():
            surgery = LayerCLIPSurgery(duplicate(made), feature_surgery=form)
            assert torch.equal(surgery.attribute_all(images), expected)


@on_models
def test_a_pickle_holds_the_model_once(clip):
    LayerCLIPSurgery(clip, feature_surgery="empty").attribute(random_images(clip), target=0)
    assert len(pickle.dumps(clip)) < 1.1 * len(pickle.dumps(clip.model))

"""What is raised inside any module comes out as it is, and nothing stays behind."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_clip_surgery import METHODS, ZeroShotClassifier, compare, word_scores
from captum_clip_surgery.attr import LayerCLIPSurgery
from captum_clip_surgery.export import explain_batch
from captum_clip_surgery.tasks import segment, word_maps
from tests._helpers.model_snapshot import differences, snapshot
from tests._helpers.tiny import random_images, tiny_model

RAISED = (RuntimeError, KeyboardInterrupt, MemoryError, torch.OutOfMemoryError, SystemExit)
#: Passes of which are many; their first ones stand for all.
SLOW = ("KernelShap", "Occlusion", "IntegratedGradients")

Job = Callable[[ZeroShotClassifier, Tensor], Any]

TASKS: dict[str, Job] = {
    "logits": lambda clip, images: clip(images),
    "texts": lambda clip, images: clip.with_texts([f"text {next(NUMBERS)}"]).text_features(),
    "words": lambda clip, images: word_scores(clip, images, "a dog and a tree").scores,
    "word maps": lambda clip, images: word_maps(clip, images, ["a dog"])[0].maps,
    "segment": lambda clip, images: segment(clip, images),
    "export": lambda clip, images: torch.tensor(explain_batch(LayerCLIPSurgery(clip), images).maps),
    "compare": lambda clip, images: compare(clip, images, methods=["CLIPSurgery"]).logits,
}
NUMBERS = itertools.count()


def method(name: str) -> Job:
    return lambda clip, images: METHODS[name](clip).attribute_all(images, [1])


def jobs_of(family: str) -> dict[str, Job]:
    # GuidedGradCam is defined on ResNets alone; words need a text tower pooled at the end of texts.
    left_out = {"resnet": (), "vit": ("GuidedGradCam",)}[family]
    not_on_resnet = ("Attention", "LeGrad", "GradECLIP", "GEM", "ResCLIP", "SCCLIP", "SFP")
    names = [
        name
        for name in METHODS
        if name not in left_out
        and not (family == "resnet" and any(part in name for part in not_on_resnet))
    ]
    return {name: method(name) for name in names} | TASKS


def world() -> tuple[Any, ...]:
    """What a process has one of."""
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.get_rng_state().sum().item(),
        torch.are_deterministic_algorithms_enabled(),
    )


@pytest.mark.parametrize("family", ["vit", pytest.param("resnet", marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore:hooks on")
@pytest.mark.filterwarnings("ignore:Setting backward hooks")
def test_what_is_raised_in_any_module_comes_out_and_leaves_nothing(family: str) -> None:
    clip = ZeroShotClassifier(
        tiny_model(family), ["a dog", "a cat", "a tree"], distractors=["a car"], templates=["{}."]
    )
    images = random_images(clip, 1)
    jobs = jobs_of(family)
    expected = {name: job(clip, images) for name, job in jobs.items() if name != "texts"}
    before, own, around = snapshot(clip.model), snapshot(clip._grids), world()
    kinds = itertools.cycle(RAISED)
    reached: dict[str, int] = dict.fromkeys(jobs, 0)
    for place, module in clip.model.named_modules():
        for name, job in jobs.items():
            if name in SLOW and reached[name] > 3:
                continue
            error = next(kinds)(f"raised in {place}")
            raised = _raised_with(module, error, lambda job=job: job(clip, images))
            assert raised in (None, error), f"{name}, {place}: {raised!r}"
            assert world() == around, (name, place)
            reached[name] += raised is error
        assert not differences(before, snapshot(clip.model)), place
        assert not differences(own, snapshot(clip._grids)), place
    # Each goes through much of the model, and the next call after all of them is right.
    assert {name: count for name, count in reached.items() if count < 4} == {}
    for name, value in expected.items():
        assert torch.equal(jobs[name](clip, images).detach(), value.detach()), name
    assert not differences(before, snapshot(clip.model))


def _raised_with(
    module: nn.Module, error: BaseException, call: Callable[[], object]
) -> BaseException | None:
    """What a call raises with a hook on a module that raises an error."""

    def hook(*_: object) -> None:
        raise error

    handle = module.register_forward_hook(hook)  # at the end: the module itself has run
    try:
        call()
    except BaseException as raised:
        return raised
    finally:
        handle.remove()
    return None


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_raised_in_the_middle_of_a_backward_pass(error: type[BaseException]) -> None:
    clip = ZeroShotClassifier(tiny_model("vit"), ["a dog", "a cat"], templates=["{}."])
    images = random_images(clip, 1)
    raising = [False]

    class Break(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, x: Tensor) -> Tensor:
            return x.view_as(x)

        @staticmethod
        def backward(context: Any, gradient: Tensor) -> Tensor:
            if raising[0]:
                raise error("backward")
            return gradient

        @staticmethod
        def vmap(info: Any, dims: Any, x: Tensor) -> Any:
            return Break.apply(x), dims[0]

    handle = clip.model.visual.transformer.resblocks[2].ln_2.register_forward_hook(
        lambda module, given, output: Break.apply(output)
    )
    before = snapshot(clip.model)
    for name in ("Saliency", "LeGrad", "GradCam", "AttentionRelevanceAll"):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            expected = METHODS[name](clip).attribute_all(images)
            raising[0] = True
            with pytest.raises(error, match="backward"):
                METHODS[name](clip).attribute_all(images)
            raising[0] = False
            assert torch.equal(METHODS[name](clip).attribute_all(images), expected), name
    assert not differences(before, snapshot(clip.model))
    handle.remove()

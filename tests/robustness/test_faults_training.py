"""A model that is trained: between calls results follow it, during a call they are refused."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from captum.attr import LayerGradCam
from torch import Tensor, nn

from captum_clip_surgery import (
    METHODS,
    LayerCLIPSurgery,
    LayerFeatureCLIPSurgery,
    ZeroShotClassifier,
    word_scores,
)
from captum_clip_surgery.attr import attribute_many
from captum_clip_surgery.export import explain_batch
from captum_clip_surgery.tasks import maps_of_own_texts, word_maps
from tests._helpers.model_snapshot import differences, snapshot
from tests._helpers.tiny import random_images, relative_error, tiny_model

TEXTS = ["a dog", "a cat", "a tree"]
CHANGED = "a parameter of the model was changed during the call.*explain a copy"


def make(family: str = "vit", **options: Any) -> ZeroShotClassifier:
    return ZeroShotClassifier(tiny_model(family), TEXTS, templates=["{}."], **options)


OPTIMISERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, 0.1),
    "SGD foreach": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, foreach=True),
    "Adam fused": lambda p: torch.optim.Adam(p, 1e-2, fused=True),
    "AdamW": lambda p: torch.optim.AdamW(p, 1e-2),
}


@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize("family", ["vit", "siglip"])
def test_a_step_between_calls_shows(family: str, optimiser: str) -> None:
    """As a classifier does that is made of the trained model anew."""
    clip = make(family)
    images = random_images(clip)
    surgery = LayerCLIPSurgery(clip)
    first = surgery.attribute_all(images)
    steps = OPTIMISERS[optimiser](clip.model.parameters())
    for _ in range(2):
        clip(images).log_softmax(-1)[:, 0].sum().neg().backward()
        steps.step()
        steps.zero_grad()
        fresh = ZeroShotClassifier(copy.deepcopy(clip.model), TEXTS, templates=["{}."])
        assert torch.equal(clip(images), fresh(images))
        assert torch.equal(
            surgery.attribute_all(images), LayerCLIPSurgery(fresh).attribute_all(images)
        )
    assert relative_error(surgery.attribute_all(images), first) > 1e-3


@contextmanager
def stepping(module: nn.Module, change: Callable[[], None]) -> Iterator[list[int]]:
    """A hook that trains; counts how often it was called."""
    called: list[int] = []

    def hook(*_: object) -> None:
        called.append(1)
        change()

    handle = module.register_forward_hook(hook)
    try:
        yield called
    finally:
        handle.remove()


CALLS: dict[str, Callable[[ZeroShotClassifier, Tensor], object]] = {
    "logits": lambda clip, images: clip(images),
    "image features": lambda clip, images: clip.image_features(images),
    "attribute": lambda clip, images: LayerCLIPSurgery(clip).attribute(images, 0),
    "unchecked": lambda clip, images: LayerCLIPSurgery(clip).attribute_all(
        images, check_finite=False
    ),
    "together": lambda clip, images: attribute_many(
        {"a": LayerCLIPSurgery(clip), "b": LayerFeatureCLIPSurgery(clip)}, images
    ),
    "export": lambda clip, images: explain_batch(LayerCLIPSurgery(clip), images),
    "words": lambda clip, images: word_scores(clip, images, "a dog"),
    "word maps": lambda clip, images: word_maps(clip, images[:1], ["a dog"]),
    "own texts": lambda clip, images: maps_of_own_texts(clip, images[:1], [["dog", "cat"]]),
    **{
        name: lambda clip, images, name=name: METHODS[name](clip).attribute_all(images, [0])
        for name in METHODS
        if name not in ("GuidedGradCam", "KernelShap", "Occlusion")
    },
}


@pytest.mark.parametrize("name", CALLS)
def test_a_step_during_a_call_is_refused(name: str) -> None:
    clip = make()
    images = random_images(clip)
    CALLS[name](clip, images)
    weight = clip.model.visual.transformer.resblocks[2].mlp.c_fc.weight
    entered = clip.model.visual.transformer.resblocks[0].ln_1

    def step() -> None:
        with torch.no_grad():
            weight.mul_(1.01)

    before = snapshot(clip.model)
    with stepping(entered, step) as called, pytest.raises(RuntimeError, match=CHANGED):
        CALLS[name](clip, images)
    assert called
    # What the step itself did, and nothing else.
    place = "visual.transformer.resblocks.2.mlp.c_fc.weight"
    assert {key[1] for key in differences(before, snapshot(clip.model))} == {place}
    # The next call is of the model as it is now.
    fresh = ZeroShotClassifier(copy.deepcopy(clip.model), TEXTS, templates=["{}."])
    assert torch.equal(clip(images), fresh(images))


def test_a_step_of_the_text_tower_while_it_reads_is_refused(tmp_path: Any) -> None:
    clip = make(cache=tmp_path / "features")
    images = random_images(clip)
    weight = clip.model.text_projection
    known = sorted(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())

    def step() -> None:
        with torch.no_grad():
            weight.mul_(-1)

    # A hook there keeps the disk out of it; the step is made by what calls the tokenizer.
    tokenizer = clip.text_encoder.tokenizer
    clip.text_encoder.tokenizer = lambda *a, **k: (step(), tokenizer(*a, **k))[1]
    with pytest.raises(RuntimeError, match=CHANGED):
        clip.with_texts(["a bird"])
    clip.text_encoder.tokenizer = tokenizer
    assert known == sorted(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    fresh = ZeroShotClassifier(copy.deepcopy(clip.model), ["a bird"], templates=["{}."])
    assert torch.equal(clip.with_texts(["a bird"])(images), fresh(images))


def test_a_thread_that_trains_is_noticed() -> None:
    """Every result is that of one of the two models there were, or is refused."""
    clip = make()
    images = random_images(clip, 1)
    weight = clip.model.visual.transformer.resblocks[1].ln_1.weight
    surgery = LayerCLIPSurgery(clip)
    ended = threading.Event()

    def turn() -> None:  # forth and, the next time, back to the bit
        with torch.no_grad():
            weight.neg_()

    def train() -> None:
        while not ended.is_set():
            turn()
            time.sleep(3e-3)

    there_were = []
    for _ in range(2):
        there_were.append(surgery.attribute_all(images))
        turn()
    assert not torch.equal(*there_were)
    thread = threading.Thread(target=train)
    thread.start()
    refused = right = 0
    try:
        until = time.monotonic() + 20
        while time.monotonic() < until and not (refused and refused + right > 100):
            try:
                found = surgery.attribute_all(images)
            except RuntimeError as error:
                refused += "was changed during the call" in str(error)
                continue
            assert any(torch.equal(found, one) for one in there_were)
            right += 1
    finally:
        ended.set()
        thread.join()
    assert refused


def test_inference_parameters_which_count_nothing_are_explained() -> None:
    with torch.inference_mode():
        model = tiny_model("vit")
        for name, parameter in list(model.named_parameters()):
            owner, _, key = name.rpartition(".")
            setattr(model.get_submodule(owner), key, nn.Parameter(parameter.clone(), False))
    clip = ZeroShotClassifier(model, TEXTS, templates=["{}."])
    assert next(model.parameters()).is_inference()
    images = random_images(clip)
    with torch.no_grad():
        assert relative_error(clip(images), make()(images)) < 1e-5


# --- changes that no parameter counts ------------------------------------------------------------


class Scaled(nn.Module):
    """An adapter of a user's own around a feed-forward, which also counts and keeps."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.scaling, self.enabled, self.gain = inner, 2.0, True, 1
        self.options = {"default": 1.0}
        self.register_buffer("quantum", torch.ones(()))
        self.calls, self.kept = 0, None

    def forward(self, x: Tensor) -> Tensor:
        self.calls, self.kept = self.calls + 1, x
        scale = self.scaling * self.enabled * self.gain * self.options["default"]
        return self.inner(x) * scale * self.quantum


UNCOUNTED: dict[str, Callable[[Any, Scaled], object]] = {
    "data replaced": lambda visual, own: setattr(
        visual.ln_post.weight, "data", visual.ln_post.weight.data * 2
    ),
    "data transposed": lambda visual, own: setattr(
        visual.transformer.resblocks[1].attn.out_proj.weight,
        "data",
        visual.transformer.resblocks[1].attn.out_proj.weight.data.T,
    ),
    "flag": lambda visual, own: setattr(own, "enabled", False),
    "flag turned at each pass": lambda visual, own: setattr(own, "enabled", not own.enabled),
    "scaling": lambda visual, own: setattr(own, "scaling", own.scaling * 1.5),
    "whole number": lambda visual, own: setattr(own, "gain", 2),
    "entry": lambda visual, own: own.options.update(default=0.5),
    "buffer": lambda visual, own: own.quantum.mul_(2),
    "buffer replaced": lambda visual, own: setattr(own, "quantum", own.quantum * 2),
    "eps": lambda visual, own: setattr(visual.ln_post, "eps", 0.5),
    "mode": lambda visual, own: visual.train(not visual.training),
    "forward": lambda visual, own: setattr(visual.ln_post, "forward", lambda x: -x),
    "hook": lambda visual, own: visual.ln_post.register_forward_hook(lambda m, a, out: -out),
    "module": lambda visual, own: setattr(visual, "ln_post", copy.deepcopy(visual.ln_post)),
}


def with_own_adapter() -> tuple[ZeroShotClassifier, Scaled]:
    model = tiny_model("vit")
    block = model.visual.transformer.resblocks[1]
    block.mlp = own = Scaled(block.mlp)
    return ZeroShotClassifier(model, TEXTS, templates=["{}."]), own


@pytest.mark.parametrize("name", UNCOUNTED)
def test_changes_that_no_parameter_counts_are_refused(name: str) -> None:
    clip, own = with_own_adapter()
    images = random_images(clip)
    surgery = LayerCLIPSurgery(clip)
    surgery.attribute_all(images)
    entered = clip.model.visual.transformer.resblocks[0].ln_1
    with stepping(entered, lambda: UNCOUNTED[name](clip.model.visual, own)):
        for call in (surgery.attribute_all, clip, clip.image_features):
            with pytest.raises(RuntimeError, match=r"was changed during the call.*explain a copy"):
                call(images)
            if name not in ("scaling", "flag turned at each pass", "buffer", "mode", "hook"):
                break  # done once and for all


def test_what_modules_do_as_they_run_is_no_change() -> None:
    """Counters, kept tensors and caches move with every pass, and hooks gather what they see."""
    clip, own = with_own_adapter()
    images = random_images(clip)
    seen: list[Tensor] = []
    handle = clip.model.visual.ln_post.register_forward_hook(lambda m, args, out: seen.append(out))
    first = clip(images)
    for _ in range(3):
        before = own.calls
        assert torch.equal(clip(images), first)
        assert own.calls == before + 1
    handle.remove()
    assert len(seen) >= 4


def test_another_mode_set_by_a_thread_is_refused() -> None:
    clip = make("resnet")
    images = random_images(clip)
    entered, go_on = threading.Event(), threading.Event()

    def train() -> None:
        entered.wait(20)
        clip.model.train()
        go_on.set()

    thread = threading.Thread(target=train)
    thread.start()

    def hook(*_: object) -> None:
        entered.set()
        go_on.wait(20)

    handle = clip.model.visual.layer1.register_forward_hook(hook)
    with pytest.raises(
        RuntimeError, match="the training mode of a module of the model was changed"
    ):
        clip(images)
    thread.join()
    handle.remove()
    clip.model.eval()


def test_captums_reading_hooks_in_another_thread_are_no_change() -> None:
    clip = make()
    images = random_images(clip)
    expected = clip(images)
    layer = clip.model.visual.transformer.resblocks[0].ln_1
    captum = LayerGradCam(clip, clip.model.visual.ln_post)
    inside, leave = threading.Event(), threading.Event()
    waiting = threading.local()

    def hook(*_: object) -> None:
        if getattr(waiting, "here", False):
            inside.set()
            leave.wait(20)

    def explain() -> None:
        waiting.here = True
        captum.attribute(images, target=0)

    handle = layer.register_forward_hook(hook)
    thread = threading.Thread(target=explain)

    def start(*_: object) -> None:
        if not inside.is_set() and threading.current_thread() is threading.main_thread():
            thread.start()
            inside.wait(20)

    starter = layer.register_forward_hook(start)
    try:
        assert torch.equal(clip(images), expected)
    finally:
        leave.set()
        thread.join()
        handle.remove()
        starter.remove()

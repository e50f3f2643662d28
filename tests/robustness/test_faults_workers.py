"""Workers of data loaders, forked and spawned, and sixteen threads on one model."""

from __future__ import annotations

import multiprocessing
import threading
import time
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from captum_clip_surgery import METHODS, LayerCLIPSurgery, LayerLeGrad, ZeroShotClassifier
from tests._helpers.model_snapshot import differences, snapshot
from tests._helpers.tiny import random_images, relative_error, tiny_model

TEXTS = ["a dog", "a cat", "a tree"]
METHODS_USED = ("CLIP", "CLIPSurgery", "SCLIP", "LeGrad", "AttentionRelevance", "Saliency")


def make() -> ZeroShotClassifier:
    return ZeroShotClassifier(tiny_model("vit"), TEXTS, distractors=["a car"], templates=["{}."])


class Maps(Dataset[dict[str, Tensor]]):
    """Explains in the worker: by methods that came with it, and by ones made there."""

    def __init__(self, clip: ZeroShotClassifier, images: Tensor) -> None:
        self.clip, self.images = clip, images
        self.methods = [LayerCLIPSurgery(clip), LayerLeGrad(clip)]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        image = self.images[index : index + 1]
        found = {type(method).__name__: method.attribute_all(image) for method in self.methods}
        found |= {
            name: METHODS[name](self.clip).attribute_all(image, [0, 2]) for name in METHODS_USED
        }
        found["logits"] = self.clip(image)
        found["other texts"] = self.clip.with_texts(["a bird", f"number {index}"])(image)
        return {name: maps.detach()[0] for name, maps in found.items()}


@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_find_what_the_process_itself_finds(start: str) -> None:
    assert start in multiprocessing.get_all_start_methods()
    clip = make()
    data = Maps(clip, random_images(clip, 4))
    expected = [data[index] for index in range(4)]  # before: threads of the parent have run
    before = snapshot(clip.model)
    loader = DataLoader(
        data, batch_size=None, num_workers=2, multiprocessing_context=start, timeout=300
    )
    found = list(loader)
    assert len(found) == 4
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        errors = {name: relative_error(one[name], other[name]) for name in other}
        assert max(errors.values()) < 1e-6, errors
    # What torch sends to a spawned process it moves to memory that both share, bits and all.
    allowed = {"storage"} if start == "spawn" else set()
    assert {key[0] for key in differences(before, snapshot(clip.model))} <= allowed
    assert torch.equal(clip(data.images[:1])[0], expected[0]["logits"])


class Failing(Maps):
    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"maps": LayerCLIPSurgery(self.clip).attribute_all(self.images[index])}


def test_an_error_in_a_worker_comes_with_its_words() -> None:
    clip = make()
    loader = DataLoader(
        Failing(clip, random_images(clip, 2)),
        batch_size=None,
        num_workers=1,
        multiprocessing_context="fork",
        timeout=300,
    )
    with pytest.raises(ValueError, match=r"worker process 0[\s\S]*add the batch: images\[None\]"):
        list(loader)


# --- threads -------------------------------------------------------------------------------------

THREADS = 16
GRIDS = ((4, 4), (2, 2), (3, 2), (2, 4), (1, 3), (4, 3), (1, 1), (5, 2))


def _day(clip: ZeroShotClassifier, worker: int) -> dict[str, Tensor]:
    """Texts and a size of its own, on the classifier that all share and on its own."""
    rows, columns = GRIDS[worker % len(GRIDS)]
    height, width = clip.tower.patch_size
    generator = torch.Generator().manual_seed(worker)
    images = torch.randn(1 + worker % 2, 3, rows * height, columns * width, generator=generator)
    own = clip.with_texts([f"a thing of {worker}", *TEXTS[: worker % 4]], distractors=["another"])
    names = [METHODS_USED[(worker + i) % len(METHODS_USED)] for i in range(2)]
    with torch.set_grad_enabled(worker % 3 > 0):
        found: dict[str, Any] = {
            f"own {name}": METHODS[name](own).attribute_all(images) for name in names
        }
        found["own logits"] = own(images)
        found["shared logits"] = clip(images)
        found["shared"] = LayerCLIPSurgery(clip).attribute(images, target=worker % 3)
    return {name: value.detach() for name, value in found.items()}


@pytest.mark.parametrize("seconds", [1, pytest.param(60, marks=pytest.mark.slow)])
@pytest.mark.parametrize("family", ["vit", pytest.param("eva02", marks=pytest.mark.slow)])
def test_sixteen_threads_on_one_model(family: str, seconds: float) -> None:
    clip = ZeroShotClassifier(tiny_model(family), TEXTS, distractors=["a car"], templates=["{}."])
    expected = [_day(clip, worker) for worker in range(THREADS)]
    before = snapshot(clip.model)
    start = threading.Barrier(THREADS)
    failures: list[str] = []
    days = [0] * THREADS

    def run(worker: int) -> None:
        start.wait()
        until = time.monotonic() + seconds
        while not failures and (time.monotonic() < until or not days[worker]):
            try:
                found = _day(clip, worker)
            except BaseException as error:
                failures.append(f"{worker}: {error!r}")
                raise
            for name, value in found.items():
                if value.shape != expected[worker][name].shape or not (
                    relative_error(value, expected[worker][name]) < 1e-6
                ):
                    failures.append(f"{worker}: {name}")
            days[worker] += 1

    threads = [threading.Thread(target=run, args=(worker,)) for worker in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert all(days)
    assert not differences(before, snapshot(clip.model))

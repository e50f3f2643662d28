"""Fixtures that all tests share; helpers are in `tests._helpers`."""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import ftfy
import open_clip
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import load_file
from torch import Tensor

from captum_clip_surgery import ZeroShotClassifier
from captum_clip_surgery.demo import MODEL_FOLDER
from captum_clip_surgery.models import _loading
from captum_clip_surgery.models._config_check import check_folder
from tests._helpers.tiny import (
    DATA,
    REFERENCE,
    REFERENCE_TEXTS,
    TOWERS,
    load_reference_model,
    tiny_model,
)

if "PYTEST_XDIST_WORKER" in os.environ:
    # Processes that share the cores would wait for each other's threads.
    torch.set_num_threads(1)

#: The fuzzer's own modules, whose doctests pytest would look for: they need atheris.
collect_ignore_glob = ["robustness/fuzz*.py"]


@pytest.fixture(scope="session", autouse=True)
def embedded_model_read_once() -> Iterator[None]:
    """Check and build the embedded model and its tokenizer once; the model is copied."""

    def once(function: Callable[..., Any], duplicate: Callable[[Any], Any]) -> Callable[..., Any]:
        known: dict[str, Any] = {}

        def call(name: str | Path, *arguments: Any, **options: Any) -> Any:
            if str(name).removeprefix("local-dir:") != str(MODEL_FOLDER):
                return function(name, *arguments, **options)
            key = repr((arguments, options))
            if key not in known:
                known[key] = function(name, *arguments, **options)
            return duplicate(known[key])

        return call

    with pytest.MonkeyPatch.context() as patch:
        build, tokenizer = open_clip.create_model_and_transforms, open_clip.get_tokenizer
        patch.setattr(open_clip, "create_model_and_transforms", once(build, copy.deepcopy))
        patch.setattr(open_clip, "get_tokenizer", once(tokenizer, lambda shared: shared))
        patch.setattr(_loading, "check_folder", once(check_folder, dict))
        patch.setattr(_loading, "_check_shapes", once(_loading._check_shapes, lambda none: none))
        yield


@pytest.fixture(scope="session", autouse=True)
def vocabulary_read_once() -> Iterator[None]:
    """Read open_clip's vocabulary once, and clean each prompt once, which take longest of all."""
    read, known = SimpleTokenizer.__init__, dict[str, dict[str, Any]]()

    def once(self: SimpleTokenizer, *arguments: Any, **options: Any) -> None:
        key = repr((arguments, options))
        if key not in known:
            read(self, *arguments, **options)
            known[key] = dict(vars(self))
        for name, value in known[key].items():
            setattr(self, name, dict(value) if isinstance(value, dict) else value)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SimpleTokenizer, "__init__", once)
        patch.setattr(ftfy, "fix_text", functools.cache(ftfy.fix_text))
        yield


@pytest.fixture(scope="session", autouse=True)
def drawn_quickly() -> Iterator[None]:
    """Compress figures as little as there is: files are larger, and their pixels the same."""
    draw: Any = FigureCanvasAgg.print_png

    @functools.wraps(draw)
    def quickly(*arguments: Any, pil_kwargs: dict[str, Any] | None = None, **options: Any) -> None:
        draw(*arguments, pil_kwargs={"compress_level": 1, **(pil_kwargs or {})}, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FigureCanvasAgg, "print_png", quickly)
        yield


@pytest.fixture(scope="session", params=tuple(REFERENCE))
def reference(request: pytest.FixtureRequest) -> tuple[ZeroShotClassifier, dict[str, Tensor]]:
    """A classifier on the reference weights, and what was published of it."""
    expected = load_file(DATA / f"{request.param}-expected.safetensors")
    return ZeroShotClassifier(load_reference_model(request.param), REFERENCE_TEXTS), expected


@pytest.fixture(params=TOWERS)
def clip(request: pytest.FixtureRequest) -> ZeroShotClassifier:
    """A tiny classifier of each family, with three texts and one distractor."""
    model = tiny_model(request.param)
    return ZeroShotClassifier(
        model, ["a dog", "a cat", "a tree"], distractors=["a car"], templates=["a photo of {}."]
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Where the project itself runs its tests, nothing may be missing: a skip is a failure."""
    report = yield
    if report.skipped and "CAPTUM_CLIP_SURGERY_CI" in os.environ:
        report.outcome = "failed"
        report.longrepr = f"skipped: {report.longrepr}"
    return report

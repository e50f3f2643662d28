"""Fixtures that all tests share; helpers are in `tests._helpers`."""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest
from safetensors.torch import load_file
from torch import Tensor

from captum_clip_surgery import ZeroShotClassifier
from tests._helpers.tiny import (
    DATA,
    REFERENCE,
    REFERENCE_TEXTS,
    TOWERS,
    load_reference_model,
    tiny_model,
)

#: The fuzzer's own modules, whose doctests pytest would look for: they need atheris.
collect_ignore_glob = ["robustness/fuzz*.py"]


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

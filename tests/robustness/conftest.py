"""Mark hostile, fault and fuzz tests slow, except a few cases that every run should try."""

from __future__ import annotations

import pytest

SLOW = ("test_hostile_", "test_faults_", "test_fuzz")
#: The most important cases of security and of silent errors.
SMOKE = {
    # code from data
    "test_hostile_models.py::test_pickled_code_in_a_folder_does_not_run[m.safetensors-torch]",
    "test_hostile_models.py::test_pickled_code_in_a_checkpoint_does_not_run[pt-pickle]",
    "test_hostile_folders.py::test_code_that_a_folder_names[tokenizer_config.json-trusted]",
    "test_hostile_inputs.py::test_refused_templates[globals]",
    # files elsewhere
    "test_hostile_folders.py::test_links_out_of_a_folder[open_clip_config.json]",
    "test_hostile_files.py::test_names_in_archives_lead_nowhere[../../up]",
    # Ghostscript, decompression bombs, crashes of pycocotools
    "test_hostile_postscript.py::test_no_door_starts_it[a picture-PostScript]",
    "test_hostile_postscript.py::test_the_package_opens_images_in_one_place",
    "test_hostile_pictures.py::test_files_that_lie[bomb of zeros]",
    "test_hostile_annotations.py::test_empty_runs_inside_are_joined[counts0]",
    # stale text features, a model that changes during a call
    "test_faults_training.py::test_a_step_between_calls_shows[vit-SGD]",
    "test_faults_training.py::test_a_step_during_a_call_is_refused[attribute]",
    "test_faults_raised.py::test_raised_in_the_middle_of_a_backward_pass[KeyboardInterrupt]",
}


def name_of(item: pytest.Item) -> str:
    """Return file and case, as in `SMOKE`."""
    return f"{item.path.name}::{item.name}"


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark an item slow before `-m` selects; pytest calls this for the items of this folder."""
    if item.path.name.startswith(SLOW) and name_of(item) not in SMOKE:
        item.add_marker(pytest.mark.slow)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Check that no case of the smoke selection was renamed, where whole files are collected.

    Raises:
        UsageError: If a file lacks a case named in `SMOKE`.
    """
    if config.getoption("lf", default=False) or any("::" in argument for argument in config.args):
        return
    files = {item.path.name for item in items}
    expected = {name for name in SMOKE if name.partition("::")[0] in files}
    if missing := expected - {name_of(item) for item in items}:
        raise pytest.UsageError(f"tests/robustness/conftest.py names no tests: {sorted(missing)}")

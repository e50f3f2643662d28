"""The Python of README and of the page on tasks runs, and their links exist."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "docs" / "tasks.md", *sorted((ROOT / "tutorials").glob("*.md"))]


def names(page: Path) -> str:
    return str(page.relative_to(ROOT))


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"-?\d+\.\d*", text)]


@pytest.mark.parametrize("page", PAGES, ids=names)
def test_python_blocks_run_in_order(
    page: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(ROOT / "docs" / "images", tmp_path / "docs" / "images")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.S)
    assert blocks
    shared: dict[str, object] = {}
    for block in blocks:
        exec(block, shared)
    for shown in re.findall(r"```text\n(.*?)```", page.read_text(), flags=re.S):
        expected = numbers(shown)
        printed = numbers(capsys.readouterr().out)[: len(expected)]
        assert printed == pytest.approx(expected, abs=0.11)  # a last digit may round otherwise
    clip = shared["clip"]
    images = shared["images"] if "images" in shared else clip.preprocess(shared["scenes"])  # type: ignore
    assert clip(images).shape == (1, len(clip.texts))  # type: ignore


@pytest.mark.parametrize("page", PAGES, ids=names)
def test_local_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)", page.read_text())
    assert all((page.parent / link).exists() for link in links)

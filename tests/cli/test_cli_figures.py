"""What of maps `explain` and `compare` draw, and into which files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from PIL import Image

from captum_clip_surgery.demo import Scenes
from tests._helpers.command_line import run


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(Scenes("test", 1, size=96, objects=[2])[0].image).save(path)
    return path


@pytest.fixture
def colours(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The colour maps of every map that a figure is saved with."""
    found: list[str] = []
    save = Figure.savefig

    def spy(figure: Figure, *arguments: Any, **options: Any) -> None:
        maps = [axis.images[1] for axis in figure.axes if len(axis.images) > 1]
        found.extend(image.get_cmap().name for image in maps)
        save(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", spy)
    return found


def test_sign_and_format(monkeypatch, tmp_path, photo, colours) -> None:
    options = ["--text", "pig", "--methods", "CLIP,CLIPSurgery", "--output", tmp_path]
    drawn = ["--sign", "positive", "--format", "svg"]
    assert run(monkeypatch, "compare", photo, *options, *drawn) == 0
    assert set(colours) == {"inferno"}
    svg = (tmp_path / "compare.svg").read_text()
    assert ">CLIP Surgery</text>" in svg
    assert ">pig</text>" in svg
    colours.clear()
    drawn = ["--sign", "all", "--format", "pdf"]
    assert run(monkeypatch, "compare", photo, *options, *drawn) == 0
    assert set(colours) == {"RdBu_r"}
    assert (tmp_path / "compare.pdf").read_bytes().startswith(b"%PDF")


def test_explain_takes_them_too(monkeypatch, tmp_path, photo, colours) -> None:
    from captum_clip_surgery.attr import _registry

    monkeypatch.setitem(_registry.METHODS, "IntegratedGradients", _registry.METHODS["CLIP"])
    options = ["--text", "pig", "--output", tmp_path, "--sign", "all", "--format", "svg"]
    assert run(monkeypatch, "explain", photo, *options) == 0
    assert set(colours) == {"RdBu_r"}
    assert ">CLIP Surgery</text>" in (tmp_path / "photo-maps.svg").read_text()


@pytest.mark.parametrize("command", ["explain", "compare"])
def test_unknown_choices_are_rejected_before_the_work(
    monkeypatch, tmp_path, capsys, command
) -> None:
    options = ["none.png", "--text", "pig", "--output", tmp_path / "out"]
    assert run(monkeypatch, command, *options, "--sign", "both") == 2
    assert "'both' is not one of 'auto', 'all', 'positive'" in capsys.readouterr().err
    assert run(monkeypatch, command, *options, "--format", "gif") == 2
    assert "'gif' is not one of 'png', 'svg', 'pdf'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
